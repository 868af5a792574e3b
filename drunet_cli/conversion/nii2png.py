"""A case to PNG slices, as the published conversion makes them."""

import itertools
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.brats import TUMOUR_CLASSES, ClassMap
from drunet_cli.conversion.dataset import (
    Description,
    Layout,
    SliceRow,
    check_made_of,
    finished_description,
    slice_name,
    slices_are_there,
)
from drunet_cli.errors import OutputError
from drunet_cli.io.atomic import write_file_atomically
from drunet_cli.io.case import Case
from drunet_cli.io.png import encode_label_slices, encode_slices
from drunet_cli.io.slices import SliceStack
from drunet_cli.io.volumes import read_labelled

_SLICES_AT_ONCE: Final = 16  # encoded by one thread, in a few steps of numpy


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """One case to convert. leftovers: files of an earlier conversion of the case; threads: that encode."""

    case: Case
    layout: Layout
    skip_blank: bool = False
    skip_existing: bool = False
    overwrite: bool = False
    leftovers: tuple[Path, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class ConvertedCase:
    """A case whose slices are complete; skipped: they were so before."""

    description: Description
    path: Path
    seconds: float
    skipped: bool = False


def convert_case(task: CaseTask) -> ConvertedCase:
    """Write image and label slices of one case, then its description, whose presence says that they are complete.

    Raises CaseError for images or labels that cannot be converted, OutputError for slices that exist or cannot be written.
    """
    begin = time.perf_counter()
    path = task.layout.description(task.case.name)
    finished = None if task.overwrite else finished_description(path)
    if finished is not None:
        if not task.skip_existing:
            raise OutputError(f"{path}: exists already; give --skip-existing or --overwrite")
        check_made_of(path, finished, task.case, skip_blank=task.skip_blank)
        if slices_are_there(finished, task.layout):
            task.layout.unfinished(task.case.name).unlink(missing_ok=True)  # a run was killed just before it did
            return ConvertedCase(finished, path, time.perf_counter() - begin, skipped=True)
        task = replace(task, leftovers=())  # what is there beyond the description is not ours to remove
    labelled = read_labelled(task.case)
    images, seg = labelled.images, labelled.segmentation
    files, rows = _encoded(task, images.slices(), None if seg is None else seg.frames)
    description = Description(
        case=task.case.name,
        inputs=labelled.inputs,
        skip_blank=task.skip_blank,
        labels=None if seg is None else seg.labels,
        shape=images.geometry.shape,
        affine=tuple(tuple(row) for row in images.reference.affine.tolist()),
        x=images.geometry.x,
        y=images.geometry.y,
        rows=rows,
        warnings=images.warnings,
    )
    _publish(task, files, description)
    return ConvertedCase(description, path, time.perf_counter() - begin)


def _encoded(task: CaseTask, stack: SliceStack, frames: ClassMap | None) -> tuple[dict[Path, bytes], tuple[SliceRow, ...]]:
    """Every file with its content, and the rows that describe them. stack: [Z, 240, 240, 4]; frames: [240, 240, Z]."""
    classes = None if frames is None else np.moveaxis(frames, 2, 0)

    def encode(part: slice) -> list[tuple[SliceRow, bytes, bytes | None]]:
        return _encoded_part(part.start, stack[part], None if classes is None else classes[part])

    with ThreadPoolExecutor(task.threads) as threads:  # deflate runs outside the interpreter's lock
        parts = threads.map(encode, (slice(z, z + _SLICES_AT_ONCE) for z in range(0, len(stack), _SLICES_AT_ONCE)))
        encoded = list(itertools.chain.from_iterable(parts))
    files, rows = {}, []
    for row, image, mask in encoded:
        if task.skip_blank and row.is_blank:
            continue
        name = slice_name(task.case.name, row.z)
        files[task.layout.images / name] = image
        if mask is not None:
            files[task.layout.masks / name] = mask
        rows.append(row)
    return files, tuple(rows)


def _encoded_part(first: int, stack: SliceStack, classes: ClassMap | None) -> list[tuple[SliceRow, bytes, bytes | None]]:
    """Consecutive slices from index `first` on: their rows, image files and label files."""
    images = encode_slices(stack)
    brain = np.count_nonzero(stack.view(np.uint32), axis=(1, 2, 3)).tolist()  # a pixel's four channels are one number so
    if classes is None:
        return [(SliceRow(first + n, zlib.crc32(image), brain[n]), image, None) for n, image in enumerate(images)]
    masks = encode_label_slices(classes)
    counts = [np.count_nonzero(classes == index, axis=(1, 2)).tolist() for index in TUMOUR_CLASSES]
    return [
        (SliceRow(first + n, zlib.crc32(image), brain[n], zlib.crc32(mask), *(of_class[n] for of_class in counts)), image, mask)
        for n, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]


def _publish(task: CaseTask, files: Mapping[Path, bytes], description: Description) -> None:
    """Slices first, the description last; a case that was complete is marked as unfinished meanwhile."""
    path, unfinished = task.layout.description(task.case.name), task.layout.unfinished(task.case.name)
    try:
        for folder in {file.parent for file in files} | {path.parent}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be made: {error.strerror}") from error
    write_file_atomically(unfinished, b"")
    try:
        path.unlink(missing_ok=True)
        for leftover in task.leftovers:
            if leftover not in files:
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be removed: {error.strerror}") from error
    for file, content in files.items():
        write_file_atomically(file, content)
    write_file_atomically(path, description.encoded())
    with suppress(FileNotFoundError):  # another process has converted the same case
        unfinished.unlink()
