"""Label slices back to label maps in the geometry of reference images."""

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from drunet_cli.brats import ClassMap, LabelMap, Labels, describe_labels, label_values, volumes_ml, voxel_counts
from drunet_cli.conversion.dataset import (
    Description,
    Layout,
    SliceFile,
    is_description,
    read_description,
    slice_files,
    slices_by_z,
)
from drunet_cli.errors import CaseError, OutputError, join_some, without_remedy
from drunet_cli.io.atomic import check_writable, is_same_file, publish
from drunet_cli.io.checks import same_grid, voxel_litres
from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, at_1_mm, farthest_corner_mm, is_same_place, laid_out
from drunet_cli.io.inputs import sha256_of
from drunet_cli.io.naming import with_a_name
from drunet_cli.io.nifti import Volume, encode_map, load_volume
from drunet_cli.io.png import read_label_slice


@dataclass(frozen=True, kw_only=True)
class LabelMapSettings:
    """The settings of a run from label slices to label maps."""

    folder: Path
    """Folder of the label slices."""
    labels: Labels | None = None
    """Convention of the label maps; None for that of the segmentations, or brats2020 where these do not tell."""
    skip_existing: bool = False
    """Leave out label maps that are there with the same labels."""
    overwrite: bool = False
    """Replace what is there."""
    threads: int = 1
    """Threads that read the slices of one case."""


@dataclass(frozen=True, kw_only=True)
class PlannedLabelMap:
    """A case, its label slices, and the label map to be written."""

    case: str
    slices: tuple[SliceFile, ...]
    reference: Path
    """Image that gives the geometry."""
    images: tuple[Path, ...] = ()
    """The other images of the case; no output may replace them."""
    description: Path | None = None
    """The description that nii2png wrote of the case, if there is one."""
    output: Path


@dataclass(frozen=True)
class WrittenLabelMap:
    """A label map that was written, and the object of --json. skipped: the file was there before, with the same labels."""

    document: Mapping[str, Any]
    warnings: tuple[str, ...]
    seconds: float
    skipped: bool = False


def masks_folder(folder: Path) -> Path:
    """The folder that holds the label slices: `masks` of a dataset that nii2png wrote, else the folder itself."""
    masks = Layout(folder).masks
    return masks if os.path.isdir(masks) else folder


def label_slices(masks: Path, case: str | None = None) -> dict[str, tuple[SliceFile, ...]]:
    """The label slices in a folder, by case; those of one case where it is named. Raises CaseError where there are none."""
    sets = {name: tuple(files) for name, files in slice_files(masks).items()}
    if not sets:
        if slice_files(Layout(masks).images):
            raise CaseError(f"{masks}: holds image slices but no label slices; its cases had no segmentation")
        there = "holds no slice named CASE_slice_Z.png" if os.path.isdir(masks) else "no such folder"
        raise CaseError(f"{masks}: {there}; name the folder of the label slices")
    if case is None:
        return sets
    if case not in sets:
        raise CaseError(f"{masks}: holds no slice of {case}; there are those of {join_some(list(sets))}")
    return {case: sets[case]}


def description_of(case: str, folder: Path) -> Path | None:
    """The description that belongs to a folder of label slices: of the dataset in which it lies, at any depth.

    Raises CaseError where it may not be read.
    """
    for layout in _layouts(folder):
        if os.path.isdir(layout.cases) and not os.access(layout.cases, os.R_OK | os.X_OK):
            raise CaseError(f"{layout.cases}: no permission to read what is kept of the cases")
        if is_description(path := layout.description(case)):
            return path
    return None


def check_outputs(planned: Iterable[PlannedLabelMap], settings: LabelMapSettings) -> None:
    """Raise OutputError before any work for label maps that are there already or cannot be written."""
    for each in planned:
        if any(is_same_file(each.output, path) for path in (each.reference, *each.images)):
            raise OutputError(f"{each.output}: is an image of {each.case}; name another output")
        check_writable(each.output, overwrite=settings.overwrite or settings.skip_existing)


def conventions_of(planned: Iterable[PlannedLabelMap]) -> set[Labels]:
    """The conventions of the segmentations from which the slices were made, as far as these tell."""
    found = set()
    for each in planned:
        if each.description is not None:
            with suppress(CaseError):  # raised again when the case is converted
                found.add(read_description(each.description).labels)
    return {labels for labels in found if labels is not None}


def convert_labels(planned: PlannedLabelMap, settings: LabelMapSettings) -> WrittenLabelMap:
    """Read every slice of a case, put the slices together on the grid of the reference, and write the label map.

    Raises CaseError for slices that are missing, doubled, of another size, damaged or not label slices, and for a reference
    that is not the grid they come from; OutputError.
    """
    begin = time.perf_counter()
    description = _checked_description(planned, settings)
    reference = load_volume(planned.reference)
    geometry = _brats_geometry(reference) if description is None else _described_geometry(description, reference)
    files = _files_by_z(planned, settings, geometry, blank=_left_out(description, geometry))
    frames = _read_frames(files, geometry.n_slices, threads=settings.threads)
    class_map = geometry.turned_back(np.moveaxis(geometry.classes(frames), 0, 2))
    warnings = _warnings(planned, settings, frames, class_map, reference, description)
    labels = settings.labels or (None if description is None else description.labels) or Labels.BRATS2020
    label_map = label_values(class_map, labels)
    skipped = settings.skip_existing and _holds(planned.output, label_map, reference)
    if not skipped:
        content = encode_map(label_map, reference.header, compress=planned.output.name.lower().endswith(".gz"))
        publish(planned.output, content, overwrite=settings.overwrite)
    counts = voxel_counts(class_map)
    document = {
        "case": planned.case,
        "output": str(planned.output),
        "output_sha256": sha256_of(planned.output, error=OutputError),
        "labels": describe_labels(labels),
        "volumes_ml": volumes_ml(counts, voxel_litres(reference.affine) * 1000),
        "voxels": counts,
        "reference": str(reference.path),
        "description": None if planned.description is None else str(planned.description),
        "warnings": list(warnings),
        "skipped": skipped,
    }
    return WrittenLabelMap(document, warnings, time.perf_counter() - begin, skipped)


def _layouts(folder: Path) -> list[Layout]:
    """The folders in which `cases` may lie: that of the slices, and those above."""
    return [Layout(folder), *(Layout(parent) for parent in with_a_name(folder).absolute().parents)]


def _checked_description(planned: PlannedLabelMap, settings: LabelMapSettings) -> Description | None:
    case, path = planned.case, planned.description
    if path is None:
        for layout in _layouts(settings.folder):
            if os.path.lexists(unfinished := layout.unfinished(case)):
                raise CaseError(f"{unfinished}: the slices of {case} are not complete; convert the case again")
        return None
    description = read_description(path)
    if description.case != case:
        raise CaseError(f"{path}: describes the case {description.case}, not {case}")
    return description


def _brats_geometry(reference: Volume) -> Geometry:
    """Without a description the slices are taken for those of a volume on the BraTS grid, untouched."""
    frame = AxisFit(FRAME, 1.0, 0.0, float(FRAME))
    geometry = laid_out(reference.voxels.shape, reference.affine, frame, frame)
    i, j, k = reference.voxels.shape
    if geometry.axcodes != "LPS" or (i, j) != (FRAME, FRAME) or not at_1_mm(reference.spacing_mm):
        spacing = " x ".join(f"{size:g}" for size in reference.spacing_mm)
        raise CaseError(
            f"{reference.path}: has axes {geometry.axcodes}, {i} x {j} x {k} voxels of {spacing} mm; slices without drunet's "
            f"description are taken for those of the BraTS grid (LPS, {FRAME} x {FRAME} x n voxels of 1 mm): keep the folder "
            "cases/ that convert nii2png wrote beside the folder of the slices"
        )
    return geometry


def _described_geometry(description: Description, reference: Volume) -> Geometry:
    affine = description.affine_array()
    shape = reference.voxels.shape
    if shape != description.shape or not is_same_place(farthest_corner_mm(affine, reference.affine, shape), affine):
        raise CaseError(
            f"{reference.path}: is not the grid from which the slices of {description.case} were made "
            f"({' x '.join(map(str, description.shape))} voxels, not {' x '.join(map(str, shape))}, or another affine); "
            "give an image of that case"
        )
    return description.geometry()


def _left_out(description: Description | None, geometry: Geometry) -> frozenset[int]:
    """Slices that --skip-blank has left out."""
    if description is None or not description.skip_blank:
        return frozenset()
    return frozenset(range(geometry.n_slices)) - {row.z for row in description.rows}


def _files_by_z(
    planned: PlannedLabelMap, settings: LabelMapSettings, geometry: Geometry, *, blank: frozenset[int]
) -> dict[int, Path]:
    """Every slice once, from 0 to Z - 1, without slices that are known to be blank."""
    files, last = slices_by_z(planned.slices), geometry.n_slices - 1
    for z, path in files.items():
        if z > last:
            raise CaseError(f"{path}: slice {z} lies beyond {planned.reference}, whose slices are 0 to {last}")
    if missing := sorted(set(range(last + 1)) - files.keys() - blank):
        raise CaseError(
            f"{settings.folder}: slice {join_some(missing)} of {planned.case} is missing; "
            f"{planned.reference} has slices 0 to {last}"
        )
    return files


def _read_frames(files: Mapping[int, Path], n_slices: int, *, threads: int) -> ClassMap:
    """[Z, 240, 240]."""
    frames = np.zeros((n_slices, FRAME, FRAME), dtype=np.uint8)

    def read(z: int) -> None:
        frames[z] = read_label_slice(files[z], (FRAME, FRAME))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, sorted(files)))
    return frames


def _warnings(
    planned: PlannedLabelMap,
    settings: LabelMapSettings,
    frames: ClassMap,
    class_map: ClassMap,
    reference: Volume,
    description: Description | None,
) -> tuple[str, ...]:
    warnings = []
    converted = set() if description is None else {file.sha256 for file in description.inputs.values()}
    if converted and (reference.source is None or reference.source.sha256 not in converted):
        warnings.append(
            f"{reference.path}: is none of the files from which the slices of {planned.case} were made; is it that case?"
        )
    if outside := int(np.count_nonzero(frames)) - int(np.count_nonzero(class_map)):
        warnings.append(
            f"{settings.folder}: {outside} labelled pixels of {planned.case} lie outside its image, in the padding, and were "
            "dropped"
        )
    n_labelled, n_beside = np.count_nonzero(class_map), np.count_nonzero((class_map > 0) & (reference.voxels <= 0))
    if n_beside > max(_STRAY_VOXELS, _STRAY_SHARE * n_labelled):
        warnings.append(
            f"{settings.folder}: {n_beside / n_labelled:.1%} of the labelled voxels of {planned.case} lie outside the brain, "
            f"where {reference.path} is 0; are the slices transposed or mirrored, or those of another case?"
        )
    return tuple(warnings)


# In none of 19 BraTS cases does a label lie where FLAIR is 0. More than a thousandth of the labels does in 15 cases if the
# slices are transposed, and in 15 if they are mirrored from front to back.
_STRAY_SHARE: Final = 1e-3
_STRAY_VOXELS: Final = 10  # drawn by hand across the brain's edge


def _holds(path: Path, label_map: LabelMap, reference: Volume) -> bool:
    """Whether the file is there with the same labels. Raises OutputError where it holds something else."""
    if not os.path.lexists(path):
        return False
    try:
        earlier = load_volume(path)
    except CaseError as error:
        raise OutputError(f"{without_remedy(str(error))}; give --overwrite to replace it") from error
    if not np.array_equal(earlier.voxels, label_map) or not same_grid(earlier, reference):
        remedy = "move it away to keep it, or give --overwrite to replace it"
        raise OutputError(f"{path}: exists already and is not what these slices give; {remedy}")
    return True
