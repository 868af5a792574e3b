"""Cases of a few small slices, and what the two commands do with them, without the command line."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion.dataset import slice_files, slice_name, write_manifest
from drunet_cli.conversion.nii2png import (
    ConvertedCase,
    SliceSettings,
    check_plan,
    convert_case,
    plan_slices,
    remove_stale_slices,
)
from drunet_cli.conversion.png2nii import (
    LabelMapSettings,
    PlannedLabelMap,
    WrittenLabelMap,
    check_outputs,
    convert_labels,
    description_of,
    masks_folder,
)
from drunet_cli.io.case import Case

Affine: TypeAlias = npt.NDArray[np.float64]
Shape: TypeAlias = tuple[int, int, int]

NAME: Final = "p1"
SHAPE: Final = (20, 24, 5)
BLANK: Final = (0, 4)  # slices without brain of a case of this shape
N_FILES: Final = 2 * 5 + 2  # that are put for it: two of each slice, the marker and the description
# drunet_cli/network/README.md, Images.
BRATS_AFFINE: Final = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Storage:
    """How the files of a case are stored."""

    suffix: str = ".nii"
    image_class: type[nib.Nifti1Image] = nib.Nifti1Image  # Nifti2Image derives from it
    order: str = "<"
    forms: tuple[int, int] = (1, 1)  # codes of sform and qform


PLAIN: Final = Storage()


def brain_in(shape: Shape = SHAPE, *, at: tuple[float, float] = (0.5, 0.45), radius: float = 9.0) -> npt.NDArray[np.bool_]:
    """A blunt brain [I, J, K], in every slice but the first and the last. at: its centre, as shares of I and J."""
    i, j, _ = np.indices(shape)
    disc = np.hypot(i - at[0] * shape[0], j - at[1] * shape[1]) < radius
    disc[:, :, [0, -1]] = False
    return np.asarray(disc)


def images_in(brain: npt.NDArray[np.bool_], seed: int = 0) -> dict[Modality, npt.NDArray[np.int16]]:
    """Four images, no two alike, with as many intensities as an MRI."""
    rng = np.random.default_rng(seed)
    return {modality: (rng.integers(100, 1000, brain.shape) * brain).astype(np.int16) for modality in CHANNELS}


def labels_in(brain: npt.NDArray[np.bool_], seed: int = 0, *, enhancing: int = 4) -> npt.NDArray[np.uint8]:
    """Every class at random, so that no turn or shift looks like another."""
    labels = np.random.default_rng(1000 + seed).choice(np.array([0, 1, 2, enhancing], dtype=np.uint8), brain.shape)
    return np.asarray(labels * brain)


def save(path: Path, voxels: npt.NDArray[Any], affine: Affine = BRATS_AFFINE, storage: Storage = PLAIN) -> Path:
    """Write an image as the path's suffix says."""
    image = storage.image_class(voxels, affine, storage.image_class.header_class(endianness=storage.order), dtype=voxels.dtype)
    image.set_sform(affine, storage.forms[0])
    image.set_qform(affine, storage.forms[1])
    image.header.set_xyzt_units("mm", "sec")
    content = image.to_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def saved_case(
    folder: Path,
    images: Mapping[Modality, npt.NDArray[Any]],
    label_map: npt.NDArray[Any] | None,
    *,
    name: str = NAME,
    affine: Affine = BRATS_AFFINE,
    storage: Storage = PLAIN,
) -> Case:
    """A case of files in a folder of its own."""
    own = folder / name
    files = {m: save(own / f"{name}_{m}{storage.suffix}", voxels, affine, storage) for m, voxels in images.items()}
    if label_map is None:
        return Case(name, files)
    return Case(name, files, save(own / f"{name}_seg{storage.suffix}", label_map, affine, storage))


def small_case(folder: Path, *, name: str = NAME, seed: int = 0, shape: Shape = SHAPE, segmented: bool = True) -> Case:
    """A case in L, P, S, to be padded on all sides; with all classes where it is segmented."""
    brain = brain_in(shape)
    return saved_case(folder, images_in(brain, seed), labels_in(brain, seed) if segmented else None, name=name)


def convert(case: Case, root: Path, **options: bool) -> ConvertedCase:
    """What `drunet convert nii2png` does with one case, the table included. options: those of SliceSettings."""
    settings = SliceSettings(folder=root, **options)
    planned = plan_slices([case], settings)
    check_plan(planned, settings)
    remove_stale_slices(settings.layout)
    converted = convert_case(planned[0], settings)
    assert not write_manifest(settings.layout)
    return converted


def planned_label_map(folder: Path, reference: Path, output: Path, *, case: str = NAME) -> PlannedLabelMap:
    """What `drunet convert png2nii` plans for one case of a folder."""
    masks = masks_folder(folder)
    return PlannedLabelMap(
        case=case,
        slices=tuple(slice_files(masks).get(case, ())),
        reference=reference,
        description=description_of(case, masks),
        output=output,
    )


def convert_back(folder: Path, reference: Path, output: Path, *, case: str = NAME, **options: Any) -> WrittenLabelMap:
    """What `drunet convert png2nii` does with one case. options: those of LabelMapSettings."""
    settings = LabelMapSettings(folder=masks_folder(folder), **options)
    planned = planned_label_map(folder, reference, output, case=case)
    check_outputs([planned], settings)
    return convert_labels(planned, settings)


def image_slice(root: Path, z: int, *, case: str = NAME) -> Path:
    return root / "images" / slice_name(case, z)


def mask_slice(root: Path, z: int, *, case: str = NAME) -> Path:
    return root / "masks" / slice_name(case, z)


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    """As Pillow alone reads them."""
    with Image.open(path) as image:
        return np.array(image)


def save_pixels(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """As Pillow alone writes them: other bytes than drunet's for the same pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
