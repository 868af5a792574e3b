"""Small cases to convert: an ellipsoid for a brain, boxes for a tumour, stored along any axes, named as any data set names."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from tests.support import open_image

SHAPE: Final = (24, 20, 6)  # in LPS, as BraTS stores its images
N_CASES: Final = 3
CASES: Final = [f"case_{n}" for n in range(N_CASES)]  # of the fixture `cohort`
ORIGIN_MM: Final = (17.0, 31.0, -4.0)
SEGMENTATION: Final = "seg"
# Last words of the files' names, in the order of drunet's channels: FLAIR, T1ce, T1, T2.
NAMES_2021: Final = ("_flair", "_t1ce", "_t1", "_t2")
NAMES_2023: Final = ("-t2f", "-t1c", "-t1n", "-t2w")
NAMES_NNUNET: Final = ("_0003", "_0001", "_0000", "_0002")  # with --channels t1,t1ce,t2,flair

# Options of `drunet segment`. Windows are fast, and how the network sees the slices is no matter in these tests.
SETTINGS: Final = ("--window", "auto", "--device", "cpu", "--threads", "1")

Voxels = npt.NDArray[np.int16]


def brain() -> npt.NDArray[np.bool_]:
    """[24, 20, 6]: an ellipsoid that touches no side of the volume in plane, and fills slices 1 to 4."""
    centred = np.moveaxis(np.indices(SHAPE), 0, 3) - (np.array(SHAPE) - 1) / 2
    return np.asarray(((centred / (9.0, 7.0, 2.2)) ** 2).sum(axis=3) < 1)


def images(seed: int) -> dict[Modality, Voxels]:
    """Four volumes [24, 20, 6] with many intensities, 0 outside the brain."""
    random = np.random.default_rng(seed)
    return {modality: np.where(brain(), random.integers(40, 900, SHAPE), 0).astype(np.int16) for modality in CHANNELS}


def segmentation(seed: int, *, enhancing: int = 4) -> Voxels:
    """[24, 20, 6]: oedema about a necrotic core and enhancing tumour, in a place of its own for each seed."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    first = 7 + seed % 4
    labels[first : first + 6, 7:13, 2:4] = 2
    labels[first + 1 : first + 4, 8:11, 2:4] = 1
    labels[first + 4, 8:10, 2:4] = enhancing
    return np.where(brain(), labels, 0).astype(np.int16)


def write_case(
    folder: Path,
    *,
    seed: int = 0,
    name: str | None = None,
    words: Sequence[str] = NAMES_2021,
    suffix: str = ".nii.gz",
    axcodes: str = "LPS",
    labelled: bool = True,
    enhancing: int = 4,
) -> Path:
    """Write the files of one case into a folder, by default under its name; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder.name if name is None else name
    for word, voxels in zip(words, images(seed).values(), strict=True):
        save(voxels, folder / f"{name}{word}{suffix}", axcodes)
    if labelled:
        separator = words[0][0]
        save(segmentation(seed, enhancing=enhancing), folder / f"{name}{separator}{SEGMENTATION}{suffix}", axcodes)
    return folder


def write_cases(folder: Path, n_cases: int) -> Path:
    """Write case_0, case_1, ... each into a folder of its own; return the folder that holds them."""
    for n in range(n_cases):
        write_case(folder / f"case_{n}", seed=n)
    return folder


def save(voxels: npt.NDArray[np.integer], path: Path, axcodes: str = "LPS") -> None:
    """A volume [24, 20, 6] as a NIfTI file that stores it along other axes."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = ORIGIN_MM
    image = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    image.as_reoriented(turn).to_filename(path)


def spoil(folder: Path) -> Path:
    """Cut the T2 file of a case short; return it."""
    path = next(folder.glob("*_t2.nii.gz"))
    path.write_bytes(path.read_bytes()[:200])
    return path


def shift(path: Path) -> None:
    """Move an image by 5 mm."""
    image = open_image(path)
    affine = image.affine.copy()
    affine[0, 3] += 5
    nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(path)


def objects(lines: str) -> list[dict[str, Any]]:
    """JSON Lines by case."""
    return sorted((json.loads(line) for line in lines.splitlines()), key=lambda document: str(document["case"]))
