"""A dataset of PNG slices: where they lie, what is kept beside them, what of a case is there already."""

import csv
import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import drunet_cli
from drunet_cli.brats import Labels
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import check_writable, remove_stale, remove_stale_in, write_atomically
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode
from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, laid_out, orientation_to_network
from drunet_cli.io.naming import SEGMENTATION
from drunet_cli.io.png import DamagedPngError, decode_png
from drunet_cli.io.volumes import InputFile, changed_files

_SLICE_NAME: Final = re.compile(r"(?P<case>[^.].*)_slice_(?P<z>[0-9]{1,9})\.png", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """One dataset of slices."""

    root: Path

    @property
    def images(self) -> Path:
        """Folder of the image slices."""
        return self.root / "images"

    @property
    def masks(self) -> Path:
        """Folder of the label slices."""
        return self.root / "masks"

    @property
    def cases(self) -> Path:
        """Folder of the cases' descriptions."""
        return self.root / "cases"

    @property
    def manifest(self) -> Path:
        """Table of all slices."""
        return self.root / "slices.csv"

    def description(self, case: str) -> Path:
        """Written last: its presence says that the case is complete."""
        return self.cases / f"{case}.json"

    def unfinished(self, case: str) -> Path:
        """Marks a case whose slices are being written, or were when the writer was killed."""
        return self.cases / f"{case}.part"


def slice_name(case: str, z: int) -> str:
    """File name of the slice at index z; not zero-padded, as the published scripts have it."""
    return f"{case}_slice_{z}.png"


@dataclass(frozen=True, order=True)
class SliceFile:
    """A file that bears the name of a slice, with or without zero padding."""

    z: int
    path: Path


def slice_files(folder: Path) -> dict[str, list[SliceFile]]:
    """The slices that a folder holds, by case, cases by name and slices by z. An absent folder holds none.

    Raises CaseError for a folder that cannot be listed.
    """
    found: dict[str, list[SliceFile]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _SLICE_NAME.fullmatch(entry.name):
                    found.setdefault(match["case"], []).append(SliceFile(int(match["z"]), Path(entry.path)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CaseError(f"{folder}: cannot be listed: {error.strerror}") from error
    return {case: sorted(found[case]) for case in sorted(found)}


def slices_by_z(files: Iterable[SliceFile]) -> dict[int, Path]:
    """The slices of one case. Raises CaseError where one is there twice, with and without zero padding."""
    paths: dict[int, Path] = {}
    for file in files:
        if file.z in paths:
            raise CaseError(f"{file.path}: slice {file.z} is there twice, also as {paths[file.z].name}; remove one")
        paths[file.z] = file.path
    return paths


SCHEMA: Final = "drunet.slices/1"
_LARGEST_BYTES: Final = 2**22


@dataclass(frozen=True)
class SliceRow:
    """One slice. brain, ncr, ed, et: pixels above 0 in any modality, and of each class; None without a segmentation.

    image_crc, mask_crc: CRC-32 of the files.
    """

    z: int
    image_crc: int
    brain: int
    mask_crc: int | None = None
    ncr: int | None = None
    ed: int | None = None
    et: int | None = None

    @property
    def is_blank(self) -> bool:
        """Whether there is neither brain nor label."""
        return not (self.brain or self.ncr or self.ed or self.et)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A complete case of slices.

    inputs: by modality, and "seg". labels: convention of the segmentation, None where that does
    not tell. affine: of FLAIR, voxel indices to RAS mm.
    shape, x, y: of FLAIR, and how its in-plane axes lie on the frame. rows: the slices that were written, by z.
    warnings: what was unusual about the images.
    """

    case: str
    inputs: Mapping[str, InputFile]
    skip_blank: bool
    labels: Labels | None
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    x: AxisFit
    y: AxisFit
    rows: tuple[SliceRow, ...]
    warnings: tuple[CaseWarning, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether the case has a segmentation."""
        return SEGMENTATION in self.inputs

    def affine_array(self) -> npt.NDArray[np.float64]:
        """[4, 4]."""
        return np.array(self.affine)

    def geometry(self) -> Geometry:
        """As `io.geometry.fit` found it."""
        return laid_out(self.shape, self.affine_array(), self.x, self.y)

    def encoded(self) -> bytes:
        """As JSON: one line a slice, the rest indented for people."""
        columns = list(SliceRow.__dataclass_fields__)
        fields = asdict(replace(self, rows=()))
        del fields["rows"]
        document = {"schema": SCHEMA, "drunet": drunet_cli.__version__, **fields, "columns": columns}
        rows = ",\n".join("    " + json.dumps([getattr(row, column) for column in columns]) for row in self.rows)
        return (json.dumps(document, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{rows}\n  ]\n}}\n').encode()


def read_description(path: Path) -> Description:
    """Read one. Raises CaseError when it is absent, damaged, or not ours."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_BYTES))
        if document["schema"] != SCHEMA:
            raise CaseError(f"{path}: is of schema {document['schema']!r}; this version reads {SCHEMA!r}")
        return _description(document)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CaseError(f"{path}: is damaged, or no description of a case by drunet") from error


def is_description(path: Path) -> bool:
    """Whether a file is there that one of drunet's versions wrote as a description, or that is too damaged to tell."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(document, dict) and str(document.get("schema", "")).startswith("drunet.slices/")


def _axis_fit(size: int, spacing_mm: float, start_mm: float, brain_mm: float) -> AxisFit:
    axis = AxisFit(int(size), float(spacing_mm), float(start_mm), float(brain_mm))
    if not math.isfinite(axis.start_mm) or axis.resampled:
        raise ValueError
    return axis


def _description(document: dict[str, Any]) -> Description:
    """Raises ValueError, TypeError or KeyError where a field is missing or of another kind."""
    columns = document["columns"]
    rows = tuple(SliceRow(**dict(zip(columns, row, strict=True))) for row in document["rows"])
    i, j, k = (int(n) for n in document["shape"])
    affine = np.array(document["affine"], dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not all(isinstance(row.z, int) for row in rows):
        raise ValueError
    x, y = (_axis_fit(**document[axis]) for axis in "xy")
    stored = np.argsort(orientation_to_network(affine)[:, 0])
    if (x.size, y.size) != ((i, j, k)[stored[0]], (i, j, k)[stored[1]]):
        raise ValueError
    return Description(
        case=str(document["case"]),
        inputs={name: InputFile(**fields) for name, fields in document["inputs"].items()},
        skip_blank=bool(document["skip_blank"]),
        labels=None if document["labels"] is None else Labels(document["labels"]),
        shape=(i, j, k),
        affine=tuple(tuple(row) for row in affine.tolist()),
        x=x,
        y=y,
        rows=rows,
        warnings=tuple(CaseWarning(WarningCode(item["code"]), str(item["message"])) for item in document["warnings"]),
    )


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
    with write_atomically(layout.manifest, overwrite=True) as stream:
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


_CHANGED: Final = "has been changed since it was converted; give --overwrite to convert the case again"


def finished_description(path: Path) -> Description | None:
    """The description, if there is one. An empty one is what a machine that lost its power may leave."""
    try:
        return read_description(path) if path.stat().st_size else None
    except OSError:  # absent; what cannot be read cannot be written either, which is told then
        return None
    except CaseError as error:
        raise OutputError(f"{error}; give --overwrite") from error


def check_made_of(path: Path, finished: Description, case: Case, *, skip_blank: bool) -> None:
    """Raise OutputError where the existing slices, whose description lies at path, are those of other files or settings."""
    remedy = "give --overwrite to convert it again"
    files = case.files
    if finished.skip_blank != skip_blank:
        raise OutputError(f"{path}: was converted {'with' if finished.skip_blank else 'without'} --skip-blank; {remedy}")
    if set(files) != set(finished.inputs):
        raise OutputError(f"{path}: was converted {'with' if finished.has_masks else 'without'} a segmentation; {remedy}")
    for file in changed_files(finished.inputs, files):
        raise OutputError(f"{file}: is not the file from which {path} was converted; {remedy}")


def slices_are_there(finished: Description, layout: Layout) -> bool:
    """Whether every slice is as it was written; False where some are missing or damaged, and none has been changed.

    Raises OutputError for one that somebody has changed: it is not ours to replace.
    """
    complete = True
    for row in finished.rows:
        expected = [(layout.images, row.image_crc), *([(layout.masks, row.mask_crc)] if finished.has_masks else [])]
        for folder, crc in expected:
            path = folder / slice_name(finished.case, row.z)
            try:
                if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe need never end
                    raise OutputError(f"{path}: {_CHANGED}")
                content = path.read_bytes()
            except FileNotFoundError:
                complete = False
                continue
            except OSError as error:
                raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
            if zlib.crc32(content) == crc:
                continue
            try:
                decode_png(content, (FRAME, FRAME))
            except DamagedPngError:  # what a machine that lost its power may leave
                complete = False
                continue
            except CaseError as error:
                raise OutputError(f"{path}: {error}: {_CHANGED}") from error
            raise OutputError(f"{path}: {_CHANGED}")
    return complete
