"""What is kept of a case beside its slices: what they were made from, and how a label map goes back to its grid."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import drunet_cli
from drunet_cli.brats import Labels
from drunet_cli.errors import CaseError
from drunet_cli.io.checks import CaseWarning, WarningCode
from drunet_cli.io.geometry import AxisFit, Geometry, laid_out, orientation_to_network
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.naming import SEGMENTATION

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
