"""A dataset of PNG slices: where its files lie, what describes a case, and the table of all slices."""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

import drunet_cli
from drunet_cli.brats import Labels
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import publish
from drunet_cli.io.checks import CaseWarning
from drunet_cli.io.geometry import AxisFit, Geometry, laid_out, orientation_to_network
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.naming import SEGMENTATION
from drunet_cli.io.tables import encode_table

SCHEMA: Final = "drunet.slices/1"
MANIFEST_COLUMNS: Final = ("case", "z", "image", "mask", "brain", "ncr", "ed", "et")
_SLICE_NAME: Final = re.compile(r"(?P<case>[^.].*)_slice_(?P<z>[0-9]{1,9})\.png", re.DOTALL)
_LARGEST_BYTES: Final = 2**22  # of a description


@dataclass(frozen=True)
class Layout:
    """The folder of a dataset, and the paths in it."""

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
        """Folder of the descriptions of cases."""
        return self.root / "cases"

    @property
    def manifest(self) -> Path:
        """Table of all slices."""
        return self.root / "slices.csv"

    def description(self, case: str) -> Path:
        """File that is written last: where it is, the case is complete."""
        return self.cases / f"{case}.json"

    def unfinished(self, case: str) -> Path:
        """File that marks a case while its slices are written, and after a writer was killed."""
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


@dataclass(frozen=True)
class SliceRow:
    """One slice. brain: pixels above 0 in any modality; ncr, ed, et: pixels of each class, None without a segmentation.

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
    """A complete case of slices: the content of DIR/cases/CASE.json."""

    case: str
    inputs: Mapping[str, InputFile]
    """By modality, and "seg"."""
    skip_blank: bool
    labels: Labels | None
    """Convention of the segmentation; None where its labels do not tell."""
    shape: tuple[int, int, int]
    """Voxels of FLAIR, as stored."""
    affine: tuple[tuple[float, ...], ...]
    """[4, 4], voxel indices of FLAIR to RAS mm."""
    x: AxisFit
    y: AxisFit
    """The place of FLAIR's in-plane axes on the frame."""
    rows: tuple[SliceRow, ...]
    """The slices that were written, by z."""
    warnings: tuple[CaseWarning, ...] = ()
    """Warnings about the images."""

    @property
    def has_masks(self) -> bool:
        """Whether the case has a segmentation."""
        return SEGMENTATION in self.inputs

    def affine_array(self) -> npt.NDArray[np.float64]:
        """The affine as a matrix, 4 x 4: voxel indices to RAS millimetres."""
        return np.array(self.affine, dtype=np.float64)

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
    """Read one. Raises CaseError when the file is absent, damaged, or none of drunet's."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_BYTES))
        if document["schema"] != SCHEMA:
            raise CaseError(f"{path}: is of schema {document['schema']!r}; this version reads {SCHEMA!r}")
        rows = [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]]
        return _checked(_reader().validate_python({**document, "rows": rows}))
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # pydantic's error is a ValueError
        raise CaseError(f"{path}: is damaged, or no description of a case by drunet") from error


def is_description(path: Path) -> bool:
    """Whether any version of drunet wrote the file as a description, or the file is too damaged to tell."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(document, dict) and str(document.get("schema", "")).startswith("drunet.slices/")


@functools.cache
def _reader() -> TypeAdapter[Description]:
    return TypeAdapter(Description)


def _checked(description: Description) -> Description:
    """Raise ValueError for numbers that no conversion writes."""
    affine = description.affine_array()
    axes = (description.x, description.y)
    if affine.shape != (4, 4) or not np.isfinite([*affine.flat, *(axis.start_mm for axis in axes)]).all():
        raise ValueError("numbers that are not finite, or no affine")
    stored = np.argsort(orientation_to_network(affine)[:, 0])
    if [axis.size for axis in axes] != [description.shape[stored[n]] for n in range(2)] or any(axis.resampled for axis in axes):
        raise ValueError("axes that do not fit the shape")
    return description


def write_manifest(layout: Layout) -> list[CaseError]:
    """Write the table of all complete cases that the dataset holds, whoever converted them; return what is unreadable."""
    rows: list[dict[str, str | int | None]] = []
    damaged = []
    for path in sorted(layout.cases.glob("*.json"), key=lambda path: path.stem):
        try:
            description = read_description(path)
            if layout.description(description.case) != path:
                raise CaseError(f"{path}: describes the case {description.case}, whose description has another name")
            rows += _manifest_rows(description, layout)
        except CaseError as error:
            damaged.append(error)
    publish(layout.manifest, encode_table(MANIFEST_COLUMNS, rows), overwrite=True)
    return damaged


def _manifest_rows(description: Description, layout: Layout) -> Iterator[dict[str, str | int | None]]:
    for row in description.rows:
        name = slice_name(description.case, row.z)
        mask = f"{layout.masks.name}/{name}" if description.has_masks else None
        cells = (description.case, row.z, f"{layout.images.name}/{name}", mask, row.brain, row.ncr, row.ed, row.et)
        yield dict(zip(MANIFEST_COLUMNS, cells, strict=True))


def is_manifest(path: Path) -> bool:
    """Whether the file is such a table, or absent. Raises OutputError for a file that cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline(1000).rstrip("\n") == ",".join(MANIFEST_COLUMNS)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
