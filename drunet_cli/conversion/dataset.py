"""A dataset of slices: what of it is there already, and the table of what it holds."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from drunet_cli.conversion.description import Description, read_description
from drunet_cli.conversion.layout import Layout, slice_files, slice_name
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import check_writable, remove_stale, remove_stale_in, written
from drunet_cli.io.case import Case

MANIFEST_COLUMNS: Final = ("case", "z", "image", "mask", "brain", "ncr", "ed", "et")


class State(StrEnum):
    """What of a case is there before it is converted."""

    NEW = "new"
    COMPLETE = "converted"
    UNFINISHED = "unfinished"  # a run was killed: its slices are ours to replace
    FOREIGN = "foreign slices"  # not described by drunet: never replaced unasked


@dataclass(frozen=True)
class Surveyed:
    """A case and what is there of it. slices: files that bear its slices' names."""

    case: Case
    state: State
    slices: tuple[Path, ...]


def survey(cases: Sequence[Case], layout: Layout) -> list[Surveyed]:
    """Look what is there, with one look at each folder however many cases there are."""
    images, masks = slice_files(layout.images), slice_files(layout.masks)
    surveyed = []
    for case in cases:
        slices = tuple(file.path for found in (images, masks) for file in found.get(case.name, ()))
        if os.path.exists(layout.description(case.name)):  # noqa: PTH110  # unlike Path.exists it raises for no folder
            state = State.COMPLETE
        elif os.path.exists(layout.unfinished(case.name)):  # noqa: PTH110
            state = State.UNFINISHED
        else:
            state = State.FOREIGN if slices else State.NEW
        surveyed.append(Surveyed(case, state, slices))
    return surveyed


def check_folders(layout: Layout) -> None:
    """Raise OutputError before any work for folders that could not be read or written."""
    try:
        layout.root.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{layout.root}: cannot be written: {error.strerror}") from error
    check_writable(layout.manifest, overwrite=True)
    for path in (layout.images, layout.masks, layout.cases):
        if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112  # unlike Path.is_dir it raises for no folder
            raise OutputError(f"{path}: is not a folder; name another DIR")
        if os.path.lexists(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OutputError(f"{path}: no permission to read and write in it")


def check_may_write(surveyed: Sequence[Surveyed], layout: Layout, *, skip_existing: bool, overwrite: bool) -> None:
    """Raise OutputError before any work for what would be overwritten unasked."""
    if overwrite:
        return
    if not _is_manifest(layout.manifest):
        raise OutputError(f"{layout.manifest}: exists already and is not drunet's; name another DIR, or give --overwrite")
    refused = [found for found in surveyed if found.state in (State.FOREIGN, *([] if skip_existing else [State.COMPLETE]))]
    if refused:
        others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        complete = refused[0].state is State.COMPLETE
        what = "converted already" if complete else "slices of that name are there, which drunet did not make"
        remedy = "--skip-existing to leave out complete cases, or --overwrite" if complete else "--overwrite to replace them"
        raise OutputError(f"{layout.root}: {refused[0].case.name}{others}: {what}; give {remedy}")


def remove_stale_slices(layout: Layout) -> None:
    """Remove the temporaries that killed runs have left."""
    for folder, suffix in ((layout.images, ".png"), (layout.masks, ".png"), (layout.cases, ".json"), (layout.cases, ".part")):
        remove_stale_in(folder, suffix=suffix)
    remove_stale(layout.manifest)


def write_manifest(layout: Layout) -> list[CaseError]:
    """Write the table of all complete cases that the dataset holds, whoever converted them; return what is unreadable."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    damaged = []
    for path in sorted(layout.cases.glob("*.json"), key=lambda path: path.stem):
        try:
            description = read_description(path)
            if layout.description(description.case) != path:
                raise CaseError(f"{path}: describes the case {description.case}, whose description has another name")
            writer.writerows(_rows(description, layout))
        except CaseError as error:
            damaged.append(error)
    with written(layout.manifest, overwrite=True) as stream:
        stream.write(table.getvalue().encode(errors="surrogateescape"))  # file names need not be text
    return damaged


def _rows(description: Description, layout: Layout) -> Iterable[tuple[str | int, ...]]:
    for row in description.rows:
        name = slice_name(description.case, row.z)
        mask = f"{layout.masks.name}/{name}" if description.has_masks else ""
        counts = ("" if count is None else count for count in (row.ncr, row.ed, row.et))
        yield (description.case, row.z, f"{layout.images.name}/{name}", mask, row.brain, *counts)


def _is_manifest(path: Path) -> bool:
    """Also where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline(1000).rstrip("\n") == ",".join(MANIFEST_COLUMNS)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
