"""Cases to PNG slices, as the published conversion makes them: the plan of a run, and the conversion of each case."""

import itertools
import os
import stat
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.brats import TUMOUR_CLASSES, ClassMap
from drunet_cli.conversion.dataset import (
    Description,
    Layout,
    SliceRow,
    is_manifest,
    read_description,
    slice_files,
    slice_name,
)
from drunet_cli.errors import CaseError, OutputError, changed_since, join_some
from drunet_cli.io.atomic import check_writable, publish_unflushed, remove_stale, remove_stale_in
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.inputs import changed_files
from drunet_cli.io.intensities import SliceStack
from drunet_cli.io.png import DamagedPngError, decode_png, encode_label_slices, encode_slices
from drunet_cli.io.volumes import read_labelled

_SLICES_AT_ONCE: Final = 16  # encoded by one thread, in a few steps of numpy
_AGAIN: Final = "convert the case again"


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """The settings of a run from cases to slices."""

    folder: Path
    """Folder of the dataset."""
    skip_blank: bool = False
    """Leave out slices with neither brain nor label."""
    skip_existing: bool = False
    """Leave out complete cases of the same inputs and settings."""
    overwrite: bool = False
    """Replace what is there."""
    threads: int = 1
    """Threads that encode one case."""

    @property
    def layout(self) -> Layout:
        """The paths of the dataset."""
        return Layout(self.folder)


class SlicesState(StrEnum):
    """The state of a case's slices before a run."""

    NEW = "new"
    COMPLETE = "converted"
    UNFINISHED = "unfinished"  # a run was killed: these slices are drunet's to replace
    FOREIGN = "foreign slices"  # not described by drunet: never replaced unasked


class SlicesAction(StrEnum):
    """The work of a run on one case."""

    CONVERT = "convert"
    CONVERT_AGAIN = "convert again"
    VERIFY = "verify and leave out"
    REFUSE = "refuse"


@dataclass(frozen=True)
class PlannedSlices:
    """The plan of one case. slices: the files that bear the names of its slices."""

    case: Case
    state: SlicesState
    action: SlicesAction
    slices: tuple[Path, ...] = ()


def plan_slices(cases: Sequence[Case], settings: SliceSettings) -> list[PlannedSlices]:
    """Decide what will be done with every case, with one look at each folder however many cases there are.

    Raises OutputError for folders that cannot be read or written.
    """
    layout = settings.layout
    _check_folders(layout)
    images, masks = slice_files(layout.images), slice_files(layout.masks)
    planned = []
    for case in cases:
        slices = tuple(file.path for found in (images, masks) for file in found.get(case.name, ()))
        if os.path.exists(layout.description(case.name)):
            state = SlicesState.COMPLETE
        elif os.path.exists(layout.unfinished(case.name)):
            state = SlicesState.UNFINISHED
        else:
            state = SlicesState.FOREIGN if slices else SlicesState.NEW
        planned.append(PlannedSlices(case, state, _action(state, settings), slices))
    return planned


def _check_folders(layout: Layout) -> None:
    try:
        layout.root.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{layout.root}: cannot be written: {error.strerror}") from error
    check_writable(layout.manifest, overwrite=True)
    for path in (layout.images, layout.masks, layout.cases):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputError(f"{path}: is not a folder; name another DIR")
        if os.path.lexists(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OutputError(f"{path}: no permission to read and write in it")


def _action(state: SlicesState, settings: SliceSettings) -> SlicesAction:
    if state in (SlicesState.NEW, SlicesState.UNFINISHED):
        return SlicesAction.CONVERT
    if settings.overwrite:
        return SlicesAction.CONVERT_AGAIN
    return SlicesAction.VERIFY if state is SlicesState.COMPLETE and settings.skip_existing else SlicesAction.REFUSE


def check_plan(planned: Sequence[PlannedSlices], settings: SliceSettings) -> None:
    """Raise OutputError before any work for files that would be overwritten unasked."""
    manifest = settings.layout.manifest
    if not (settings.overwrite or is_manifest(manifest)):
        raise OutputError(f"{manifest}: exists already and is not drunet's; name another DIR, or give --overwrite")
    refused = [each for each in planned if each.action is SlicesAction.REFUSE]
    if refused:
        names = join_some([each.case.name for each in refused], most=1)
        complete = refused[0].state is SlicesState.COMPLETE
        reason = "converted already" if complete else "slices of that name are there, which drunet did not make"
        remedy = "--skip-existing to leave out complete cases, or --overwrite" if complete else "--overwrite to replace them"
        raise OutputError(f"{settings.folder}: {names}: {reason}; give {remedy}")


def remove_stale_slices(layout: Layout) -> None:
    """Remove the temporaries that killed runs have left."""
    remove_stale_in(layout.images, ".png")
    remove_stale_in(layout.masks, ".png")
    remove_stale_in(layout.cases, ".json", ".part")
    remove_stale(layout.manifest)


@dataclass(frozen=True)
class ConvertedCase:
    """A case whose slices are complete. path: of the description; skipped: the slices were complete before."""

    description: Description
    path: Path
    seconds: float
    skipped: bool = False


def convert_case(planned: PlannedSlices, settings: SliceSettings) -> ConvertedCase:
    """Write image and label slices of one case, then the description, whose presence says that the case is complete.

    Raises CaseError for images or labels that cannot be converted, OutputError for slices that exist or cannot be written.
    """
    begin = time.perf_counter()
    case, layout = planned.case, settings.layout
    path = layout.description(case.name)
    finished = None if settings.overwrite else _finished_description(path)
    if finished is not None:
        if not settings.skip_existing:  # another process may have converted the case meanwhile
            raise OutputError(f"{path}: exists already; give --skip-existing or --overwrite")
        _check_same(finished, path, case, settings)
        if _slices_are_there(finished, layout):
            layout.unfinished(case.name).unlink(missing_ok=True)  # a run was killed just before it did
            return ConvertedCase(finished, path, time.perf_counter() - begin, skipped=True)
        planned = replace(planned, slices=())  # what is there beyond the description is not drunet's to remove
    labelled = read_labelled(case)
    images, seg = labelled.images, labelled.segmentation
    files, rows = _encoded(case.name, images.slices(), None if seg is None else seg.frames, settings)
    description = Description(
        case=case.name,
        inputs=labelled.inputs,
        skip_blank=settings.skip_blank,
        labels=None if seg is None else seg.labels,
        shape=images.geometry.shape,
        affine=tuple(tuple(row) for row in images.reference.affine.tolist()),
        x=images.geometry.x,
        y=images.geometry.y,
        rows=rows,
        warnings=images.warnings,
    )
    _publish(planned, files, description, layout)
    return ConvertedCase(description, path, time.perf_counter() - begin)


def _finished_description(path: Path) -> Description | None:
    """The description, if there is one. A machine that loses its power may leave an empty file."""
    try:
        return read_description(path) if path.stat().st_size else None
    except OSError:  # absent; a file that cannot be read cannot be written either, and the writer says so
        return None
    except CaseError as error:
        raise OutputError(f"{error}; give --overwrite") from error


def _check_same(finished: Description, path: Path, case: Case, settings: SliceSettings) -> None:
    """Raise OutputError where complete slices are those of other files or settings."""
    remedy = "give --overwrite to convert it again"
    if finished.skip_blank != settings.skip_blank:
        raise OutputError(f"{path}: was converted {'with' if finished.skip_blank else 'without'} --skip-blank; {remedy}")
    if set(case.files) != set(finished.inputs):
        raise OutputError(f"{path}: was converted {'with' if finished.has_masks else 'without'} a segmentation; {remedy}")
    for file in changed_files(finished.inputs, case.files):
        raise OutputError(f"{file}: is not the file from which {path} was converted; {remedy}")


def _slices_are_there(finished: Description, layout: Layout) -> bool:
    """Whether every slice is as it was written; False where some are missing or damaged, and none has been changed.

    Raises OutputError for a slice that somebody has changed: it is not drunet's to replace.
    """
    complete = True
    for row in finished.rows:
        expected = [(layout.images, row.image_crc), *([(layout.masks, row.mask_crc)] if finished.has_masks else [])]
        for folder, crc in expected:
            complete &= _is_intact(folder / slice_name(finished.case, row.z), crc)
    return complete


def _is_intact(path: Path, crc: int | None) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe need never end
            raise OutputError(changed_since(path, then=_AGAIN))
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    if zlib.crc32(content) == crc:
        return True
    try:
        decode_png(content, (FRAME, FRAME))
    except DamagedPngError:  # what a machine that lost its power may leave
        return False
    except CaseError as error:
        raise OutputError(changed_since(path, then=_AGAIN)) from error
    raise OutputError(changed_since(path, then=_AGAIN))


def _encoded(
    name: str, stack: SliceStack, frames: ClassMap | None, settings: SliceSettings
) -> tuple[dict[Path, bytes], tuple[SliceRow, ...]]:
    """Every file with its content, and the rows that describe them. stack: [Z, 240, 240, 4]; frames: [240, 240, Z]."""
    classes = None if frames is None else np.moveaxis(frames, 2, 0)

    def encode(part: slice) -> list[tuple[SliceRow, bytes, bytes | None]]:
        return _encoded_part(part.start, stack[part], None if classes is None else classes[part])

    with ThreadPoolExecutor(settings.threads) as threads:  # deflate runs outside the interpreter's lock
        parts = threads.map(encode, (slice(z, z + _SLICES_AT_ONCE) for z in range(0, len(stack), _SLICES_AT_ONCE)))
        encoded = list(itertools.chain.from_iterable(parts))
    files, rows = {}, []
    for row, image, mask in encoded:
        if settings.skip_blank and row.is_blank:
            continue
        file_name = slice_name(name, row.z)
        files[settings.layout.images / file_name] = image
        if mask is not None:
            files[settings.layout.masks / file_name] = mask
        rows.append(row)
    return files, tuple(rows)


def _encoded_part(first: int, stack: SliceStack, classes: ClassMap | None) -> list[tuple[SliceRow, bytes, bytes | None]]:
    """Consecutive slices from index `first` on: their rows, image files and label files."""
    images = encode_slices(stack)
    brain = np.count_nonzero(stack.view(np.uint32), axis=(1, 2, 3)).tolist()  # one number for the four channels of a pixel
    if classes is None:
        return [(SliceRow(first + n, zlib.crc32(image), brain[n]), image, None) for n, image in enumerate(images)]
    masks = encode_label_slices(classes)
    counts = [np.count_nonzero(classes == index, axis=(1, 2)).tolist() for index in TUMOUR_CLASSES]
    return [
        (SliceRow(first + n, zlib.crc32(image), brain[n], zlib.crc32(mask), *(of_class[n] for of_class in counts)), image, mask)
        for n, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]


def _publish(planned: PlannedSlices, files: Mapping[Path, bytes], description: Description, layout: Layout) -> None:
    """Write the slices, then the description; a case that was complete is marked as unfinished meanwhile."""
    path, unfinished = layout.description(planned.case.name), layout.unfinished(planned.case.name)
    try:
        for folder in {file.parent for file in files} | {path.parent}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be made: {error.strerror}") from error
    publish_unflushed(unfinished, b"")
    try:
        path.unlink(missing_ok=True)
        for earlier in planned.slices:
            if earlier not in files:
                earlier.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be removed: {error.strerror}") from error
    for file, content in files.items():
        publish_unflushed(file, content)
    publish_unflushed(path, description.encoded())
    with suppress(FileNotFoundError):  # another process has converted the same case
        unfinished.unlink()
