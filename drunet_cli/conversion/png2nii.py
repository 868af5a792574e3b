"""Label slices of a case back to a label map in the geometry of a reference image."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drunet_cli.brats import ClassMap, LabelMap, Labels, describe_labels, label_values, volumes_ml, voxel_counts
from drunet_cli.conversion.dataset import Description, Layout, SliceFile, is_description, read_description, slices_by_z
from drunet_cli.errors import CaseError, OutputError, join_some, without_remedy
from drunet_cli.io.atomic import check_writable, is_same_file, remove_stale, write_atomically
from drunet_cli.io.checks import same_grid, voxel_litres
from drunet_cli.io.geometry import FRAME, SAME_PLACE_MM, AxisFit, Geometry, at_1_mm, farthest_corner_mm, laid_out
from drunet_cli.io.naming import with_a_name
from drunet_cli.io.nifti import Volume, encode_label_map, load_volume
from drunet_cli.io.png import read_label_slice


@dataclass(frozen=True, kw_only=True)
class LabelTask:
    """The label slices of one case, and where they go.

    folder: that holds the slices. reference: image that gives the geometry. description: how nii2png made the case, if known.
    inputs: files that no output may replace, the reference among them. labels: None for the convention of the case's
    segmentation, or where that does not tell brats2020.
    """

    case: str
    folder: Path
    slices: tuple[SliceFile, ...]
    reference: Path
    inputs: tuple[Path, ...] = ()
    description: Path | None
    output: Path
    labels: Labels | None = None
    overwrite: bool = False
    skip_existing: bool = False
    threads: int = 1


@dataclass(frozen=True)
class WrittenLabelMap:
    """A label map that was written; skipped: it was there already, to the byte."""

    document: Mapping[str, Any]
    warnings: tuple[str, ...]
    seconds: float
    skipped: bool = False


def masks_folder(folder: Path) -> Path:
    """The folder that holds the label slices: `masks` of a dataset that nii2png wrote, else the folder itself."""
    masks = Layout(folder).masks
    return masks if os.path.isdir(masks) else folder  # noqa: PTH112  # unlike Path.is_dir it raises for no folder


def description_of(case: str, folder: Path) -> Path | None:
    """The description that belongs to a folder of label slices: of the dataset in which it lies, at any depth.

    Raises CaseError where it may not be read.
    """
    for layout in _layouts(folder):
        if os.path.isdir(layout.cases) and not os.access(layout.cases, os.R_OK | os.X_OK):  # noqa: PTH112
            raise CaseError(f"{layout.cases}: no permission to read what is kept of the cases")
        if is_description(path := layout.description(case)):
            return path
    return None


def _layouts(folder: Path) -> list[Layout]:
    """Where `cases` may lie: in the folder of the slices, or above it."""
    return [Layout(folder), *(Layout(parent) for parent in with_a_name(folder).absolute().parents)]


def check_outputs(tasks: Iterable[LabelTask]) -> None:
    """Raise OutputError before any work for label maps that are there already or cannot be written."""
    for task in tasks:
        if any(is_same_file(task.output, path) for path in (task.reference, *task.inputs)):
            raise OutputError(f"{task.output}: is an image of {task.case}; name another output")
        check_writable(task.output, overwrite=task.overwrite or task.skip_existing)
        remove_stale(task.output)


def convert_labels(task: LabelTask) -> WrittenLabelMap:
    """Read every slice of a case, put them together on the reference's grid, and write the label map.

    Raises CaseError for slices that are missing, doubled, of another size, damaged or not label slices, and for a reference
    that is not the grid they come from; OutputError.
    """
    begin = time.perf_counter()
    description = _checked_description(task)
    reference = load_volume(task.reference)
    geometry = _brats_geometry(reference) if description is None else _described_geometry(description, reference)
    files = _files_by_z(task, geometry, blank=frozenset() if description is None else _left_out(description, geometry))
    frames = _read_frames(files, geometry.n_slices, threads=task.threads)
    class_map = geometry.turned_back(np.moveaxis(geometry.classes(frames), 0, 2))
    warnings = _warnings(task, frames, class_map, reference, description)
    labels = task.labels
    if labels is None:
        labels = (None if description is None else description.labels) or Labels.BRATS2020
    label_map = label_values(class_map, labels)
    compress = task.output.name.lower().endswith(".gz")
    content = encode_label_map(label_map, reference.header, compress=compress)
    skipped = task.skip_existing and _holds(task.output, label_map, reference)
    if not skipped:
        with write_atomically(task.output, overwrite=task.overwrite) as stream:
            stream.write(content)
    counts = voxel_counts(class_map)
    document = {
        "case": task.case,
        "output": str(task.output),
        "output_sha256": hashlib.sha256(content).hexdigest(),
        "labels": describe_labels(labels),
        "volumes_ml": volumes_ml(counts, voxel_litres(reference.affine) * 1000),
        "voxels": counts,
        "reference": str(reference.path),
        "description": None if task.description is None else str(task.description),
        "warnings": list(warnings),
        "skipped": skipped,
    }
    return WrittenLabelMap(document, warnings, time.perf_counter() - begin, skipped)


def _checked_description(task: LabelTask) -> Description | None:
    if task.description is None:
        if unfinished := [path for layout in _layouts(task.folder) if os.path.lexists(path := layout.unfinished(task.case))]:
            raise CaseError(f"{unfinished[0]}: the slices of {task.case} are not complete; convert the case again")
        return None
    description = read_description(task.description)
    if description.case != task.case:
        raise CaseError(f"{task.description}: describes the case {description.case}, not {task.case}")
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
    if shape != description.shape or farthest_corner_mm(affine, reference.affine, shape) > SAME_PLACE_MM:
        raise CaseError(
            f"{reference.path}: is not the grid from which the slices of {description.case} were made "
            f"({' x '.join(map(str, description.shape))} voxels, not {' x '.join(map(str, shape))}, or another affine); "
            "give an image of that case"
        )
    return description.geometry()


def _left_out(description: Description, geometry: Geometry) -> frozenset[int]:
    """Slices that --skip-blank has left out."""
    if not description.skip_blank:
        return frozenset()
    return frozenset(range(geometry.n_slices)) - {row.z for row in description.rows}


def _files_by_z(task: LabelTask, geometry: Geometry, *, blank: frozenset[int]) -> dict[int, Path]:
    """Every slice once, from 0 to Z - 1, but for those that are known to be blank."""
    files, last = slices_by_z(task.slices), geometry.n_slices - 1
    for z, path in files.items():
        if z > last:
            raise CaseError(f"{path}: slice {z} lies beyond {task.reference}, whose slices are 0 to {last}")
    if missing := sorted(set(range(last + 1)) - files.keys() - blank):
        raise CaseError(
            f"{task.folder}: slice {join_some(missing)} of {task.case} is missing; {task.reference} has slices 0 to {last}"
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
    task: LabelTask, frames: ClassMap, class_map: ClassMap, reference: Volume, description: Description | None
) -> tuple[str, ...]:
    warnings = []
    converted = set() if description is None else {file.sha256 for file in description.inputs.values()}
    if converted and (reference.source is None or reference.source.sha256 not in converted):
        warnings.append(
            f"{reference.path}: is none of the files from which the slices of {task.case} were made; is it that case?"
        )
    outside = int(np.count_nonzero(frames)) - int(np.count_nonzero(class_map))
    if outside:
        warnings.append(
            f"{task.folder}: {outside} labelled pixels of {task.case} lie outside its image, in the padding, and were dropped"
        )
    return tuple(warnings)


def _holds(path: Path, label_map: LabelMap, reference: Volume) -> bool:
    """Whether the file is there with just these labels. Raises OutputError where it holds something else."""
    if not os.path.lexists(path):
        return False
    try:
        existing = load_volume(path)
    except CaseError as error:
        raise OutputError(f"{without_remedy(str(error))}; give --overwrite to replace it") from error
    if not np.array_equal(existing.voxels, label_map) or not same_grid(existing, reference):
        raise OutputError(f"{path}: exists already and is not what these slices give; give --overwrite to replace it")
    return True
