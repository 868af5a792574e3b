"""Cases of a dataset of PNG slices, described by nii2png or of the published layout: found, checked and read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, ClassMap
from drunet_cli.conversion.description import is_description, read_description
from drunet_cli.conversion.layout import Layout, SliceFile, slice_files, slice_name, slices_by_z
from drunet_cli.errors import CaseError, listed
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.naming import may_name_a_file
from drunet_cli.io.png import read_label_slice, read_slice_file
from drunet_cli.io.slices import SliceStack

MOST_SLICES: Final = 1000  # of 1 mm; io.nifti takes no larger field of view


@dataclass(frozen=True, kw_only=True)
class PngCase:
    """A case of a dataset of slices.

    n_slices: of the case; those without a file are blank. images, masks: file names by z.
    description: how nii2png made the case, None for slices that are not described.
    """

    layout: Layout
    n_slices: int
    images: Mapping[int, str]
    masks: Mapping[int, str]
    description: Path | None = None


def png_cases(layout: Layout) -> dict[str, PngCase | CaseError] | None:
    """The cases of a dataset of slices by name, or what is wrong with one; None where there is no dataset.

    Raises CaseError for a folder that cannot be listed.
    """
    described = _described(layout)
    images = slice_files(layout.images) if layout.images.is_dir() else {}
    if not images and not described:
        return None
    masks = slice_files(layout.masks)
    cases: dict[str, PngCase | CaseError] = {}
    for name in sorted(images.keys() | described):
        files = images.get(name, []), masks.get(name, [])
        try:
            if not may_name_a_file(name):
                raise CaseError(f"{layout.images}: {name!r} cannot be part of a file name; rename the slices of this case")
            cases[name] = _described_case(name, layout, *files) if name in described else _bare_case(name, layout, *files)
        except CaseError as error:
            cases[name] = error
    return cases


def read_png_case(name: str, source: PngCase) -> tuple[SliceStack, ClassMap]:
    """Images [Z, 240, 240, 4] and class indices [Z, 240, 240] of the whole case, blank slices included. Raises CaseError."""
    images = np.zeros((source.n_slices, FRAME, FRAME, len(CHANNELS)), dtype=np.uint8)
    classes = np.zeros((source.n_slices, FRAME, FRAME), dtype=np.uint8)
    for z, file in source.images.items():
        images[z] = _read_image_slice(source.layout.images / file)
    for z, file in source.masks.items():
        classes[z] = read_label_slice(source.layout.masks / file, (FRAME, FRAME))
    if not images.any():
        raise CaseError(f"{source.layout.images}: no pixel of {name} is above 0; there is no brain to learn from")
    return images, classes


def _described(layout: Layout) -> set[str]:
    """Names of the cases that have a description, be it a damaged one."""
    if not layout.cases.is_dir():
        return set()
    try:
        names = [name.removesuffix(".json") for name in os.listdir(layout.cases) if name.endswith(".json")]  # noqa: PTH208
    except OSError as error:
        raise CaseError(f"{layout.cases}: cannot be listed: {error.strerror}") from error
    return {name for name in names if not name.startswith(".") and is_description(layout.description(name))}


def _described_case(name: str, layout: Layout, images: Sequence[SliceFile], masks: Sequence[SliceFile]) -> PngCase:
    path = layout.description(name)
    description = read_description(path)
    if description.case != name:
        raise CaseError(f"{path}: describes the case {description.case}, not {name}; convert the case again")
    if not description.has_masks:
        raise CaseError(f"{path}: {name} was converted without a segmentation; convert it again with one")
    n_slices = _checked_number(description.geometry().n_slices, path)
    written = {row.z: slice_name(name, row.z) for row in description.rows}
    if len(written) != len(description.rows) or not written.keys() <= set(range(n_slices)):
        raise CaseError(f"{path}: is damaged: it names slices twice or beyond the {n_slices} of {name}; convert the case again")
    expected = written.keys() if description.skip_blank else range(n_slices)
    for folder, files in ((layout.images, images), (layout.masks, masks)):
        if missing := set(expected) - {file.z for file in files}:
            raise CaseError(f"{folder}: slice {listed(sorted(missing))} of {name} is missing; convert the case again")
    return PngCase(layout=layout, n_slices=n_slices, images=written, masks=written, description=path)


def _bare_case(name: str, layout: Layout, images: Sequence[SliceFile], masks: Sequence[SliceFile]) -> PngCase:
    """A case of the published layout. Slices below the first are taken for blank ones that were left out."""
    if os.path.lexists(unfinished := layout.unfinished(name)):
        raise CaseError(f"{unfinished}: the slices of {name} are not complete; convert the case again")
    if not masks:
        raise CaseError(f"{layout.masks}: holds no label slice of {name}, without which there is nothing to learn; add them")
    of_image, of_mask = slices_by_z(images), slices_by_z(masks)
    first, last = min(of_image), max(of_image)
    n_slices = _checked_number(last + 1, of_image[last])
    if missing := set(range(first, last)) - of_image.keys() | of_mask.keys() - of_image.keys():
        raise CaseError(f"{layout.images}: slice {listed(sorted(missing))} of {name} is missing; make its slices again")
    if unlabelled := sorted(of_image.keys() - of_mask.keys()):
        raise CaseError(f"{layout.masks}: the label slice {listed(unlabelled)} of {name} is missing; make its slices again")
    return PngCase(layout=layout, n_slices=n_slices, images=_names(of_image), masks=_names(of_mask))


def _checked_number(n_slices: int, path: Path) -> int:
    if n_slices > MOST_SLICES:
        raise CaseError(f"{path}: says that there are {n_slices} slices, more than any brain has; make the slices again")
    return n_slices


def _read_image_slice(path: Path) -> npt.NDArray[np.uint8]:
    """[240, 240, 4]."""
    pixels = read_slice_file(path, (FRAME, FRAME))
    if pixels.shape[2] != len(CHANNELS):
        channels = ", ".join(modality.display for modality in CHANNELS)
        raise CaseError(f"{path}: is not RGBA, as an image slice is ({channels}); make its slices again")
    return pixels


def _names(files: Mapping[int, Path]) -> dict[int, str]:
    return {z: path.name for z, path in files.items()}
