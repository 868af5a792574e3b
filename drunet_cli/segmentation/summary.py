"""The table of a run: a row for each case, as summary.csv has it and reports read it back."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from drunet_cli.brats import REGIONS, TUMOUR_CLASSES
from drunet_cli.errors import CaseError, DrunetError, OutputError, one_line

_SEPARATOR: Final = ";"


class Status(StrEnum):
    """What became of a case."""

    DONE = "done"
    LEFT_OUT = "left out"  # its outputs were complete before; with an error where they are not those that were asked for
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One case. What is not known is absent or empty.

    volumes_ml: by class and region. seconds: by stage, read and network. warnings: their codes. weights, weights_sha256: one
    each, more where the mean of several was taken. output: the label map. error: one line.
    """

    case: str
    status: Status
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    weights_sha256: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    output: str = ""
    error: str = ""


VOLUMES: Final = (*REGIONS, *(tumour_class.name for tumour_class in TUMOUR_CLASSES if tumour_class.name not in REGIONS))
STAGES: Final = ("read", "network")
# Scripts read these: a later version adds its own at the end, and still knows this header.
_VOLUME_COLUMNS: Final = {name: f"{name.lower()}_ml" for name in VOLUMES}
_STAGE_COLUMNS: Final = {name: f"{name}_s" for name in STAGES}
COLUMNS: Final = (
    "case",
    "status",
    *_VOLUME_COLUMNS.values(),
    "warnings",
    "weights",
    "weights_sha256",
    *_STAGE_COLUMNS.values(),
    "device",
    "output",
    "error",
)
_HEADER: Final = f"{','.join(COLUMNS)}\n".encode()


def summary_name(shard: tuple[int, int] | None) -> str:
    """Name of the table in its folder. shard: K and N; written without leading zeros, as a batch script counts."""
    return "summary.csv" if shard is None else f"summary-{shard[0]}-of-{shard[1]}.csv"


def row_of(document: Mapping[str, Any], status: Status) -> SummaryRow:
    """The row of a case that has a sidecar. document: the sidecar's object; only its case must be there."""
    weights = described_weights(document)
    return SummaryRow(
        case=str(document["case"]),
        status=status,
        volumes_ml=_numbers(document.get("volumes_ml"), VOLUMES),
        warnings=tuple(code for code, _ in described_warnings(document)),
        weights=tuple(str(each.get("name") or "") for each in weights),
        weights_sha256=tuple(str(each.get("sha256") or "") for each in weights),
        seconds=_numbers(document.get("seconds"), STAGES),
        device=str(document.get("device") or ""),
        output=str(document.get("output") or ""),
    )


def failed_row(case: str, error: DrunetError) -> SummaryRow:
    """The row of a case that came to no label map."""
    return SummaryRow(case=case, status=Status.FAILED, error=str(error))


def described_warnings(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Code and message of every warning in a sidecar's object."""
    warnings = document.get("warnings")
    found = [_object(each) for each in warnings] if isinstance(warnings, list) else []
    return [(str(each.get("code") or "unknown"), one_line(str(each.get("message") or ""))) for each in found]


def described_weights(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a sidecar's object says of the weights: one object, or one for each of several."""
    weights = document.get("weights") or []
    return [_object(each) for each in (weights if isinstance(weights, list) else [weights])]


def columns_of(row: SummaryRow) -> dict[str, Any]:
    """A row by columns: text, lists of text, and numbers or None."""
    return {
        "case": row.case,
        "status": row.status,
        **{column: row.volumes_ml.get(name) for name, column in _VOLUME_COLUMNS.items()},
        "warnings": list(row.warnings),
        "weights": list(row.weights),
        "weights_sha256": list(row.weights_sha256),
        **{column: row.seconds.get(name) for name, column in _STAGE_COLUMNS.items()},
        "device": row.device,
        "output": row.output,
        "error": row.error,
    }


def encode_summary(rows: Iterable[SummaryRow]) -> bytes:
    """The table of a run as CSV, by case."""
    return encode_table(COLUMNS, [columns_of(row) for row in sorted(rows, key=lambda row: (row.case, row.output))])


def encode_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows by column as CSV. File names need not be text: their bytes are kept."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _SEPARATOR.join(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    return table.getvalue().encode(errors="surrogateescape")


def is_summary(path: Path) -> bool:
    """Whether a file is the table of a run; also where there is none. Raises OutputError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.readline(len(_HEADER) + 1) == _HEADER
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


def read_summary(path: Path) -> list[SummaryRow]:
    """The rows of a table that drunet wrote. Raises CaseError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.startswith(_HEADER):
        raise CaseError(f"{path}: is not a summary that drunet wrote")
    reader = csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    try:
        return [_parsed(cells) for cells in reader]
    except (csv.Error, ValueError) as error:
        raise CaseError(f"{path}: line {reader.line_num} is damaged ({error}); run the cases again, or remove it") from error


def _parsed(row: Mapping[str, str | None]) -> SummaryRow:
    cells = {column: cell for column in COLUMNS if (cell := row[column]) is not None}
    if len(cells) < len(COLUMNS):
        raise ValueError("it ends too early")
    return SummaryRow(
        case=cells["case"],
        status=Status(cells["status"]),
        volumes_ml={name: float(cells[column]) for name, column in _VOLUME_COLUMNS.items() if cells[column]},
        warnings=_listed(cells["warnings"]),
        weights=_listed(cells["weights"]),
        weights_sha256=_listed(cells["weights_sha256"]),
        seconds={name: float(cells[column]) for name, column in _STAGE_COLUMNS.items() if cells[column]},
        device=cells["device"],
        output=cells["output"],
        error=cells["error"],
    )


def _listed(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(_SEPARATOR)) if cell else ()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(value: object, names: Iterable[str]) -> dict[str, float]:
    """Those of the named values that volumes and times can be; JSON as Python reads it knows NaN, and true is no number."""
    found = {name: _object(value).get(name) for name in names}
    return {name: n for name, n in found.items() if isinstance(n, int | float) and type(n) is not bool and 0 <= n < math.inf}
