"""The table of a folder of results: a row for each case that any run met, as summary.csv has it and reports read it back."""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from drunet_cli.brats import REGIONS, TUMOUR_CLASSES
from drunet_cli.errors import CaseError, DrunetError, OutputError, one_line
from drunet_cli.io.atomic import publish, take_turns
from drunet_cli.io.tables import LIST_SEPARATOR, encode_table, encode_workbook, is_our_workbook

SUMMARY: Final = "summary.csv"
WORKBOOK: Final = "summary.xlsx"  # the same table, for whoever opens it in Excel or LibreOffice
_SHARDS: Final = "summary-*-of-*.csv"  # one for each shard, as version 0.1.0 wrote them


class Status(StrEnum):
    """The outcome of a case."""

    DONE = "done"
    LEFT_OUT = "left out"  # its outputs were complete before
    DIFFERS = "differs"  # its label map was there before, and is not known to be the one that was asked for: a failure
    FAILED = "failed"  # it has no label map


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One case. What is not known is absent or empty.

    volumes_ml: by class and region. seconds: by stage, read and network. warnings: their codes. weights, weights_sha256: one
    each, more where the mean of several was taken. output: the label map. error: one line. mean_uncertainty: by region, in
    percent. time: when the case came to this end, as `time_now` has it. side: of the brain, see `Sides`.
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
    mean_uncertainty: Mapping[str, float] = field(default_factory=dict)
    time: str = ""
    side: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the run did not come to the label map that was asked for."""
        return self.status in (Status.FAILED, Status.DIFFERS)


def time_now() -> str:
    """The time in UTC, to the second: 2026-11-28T09:30:00Z. Such times sort as text."""
    return _as_text(datetime.now(UTC))


def _as_text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


VOLUMES: Final = (*REGIONS, *(tumour_class.name for tumour_class in TUMOUR_CLASSES if tumour_class.name not in REGIONS))
STAGES: Final = ("read", "network")
# Scripts read these: a later version adds its own at the end, and still knows this header.
_VOLUME_COLUMNS: Final = {name: f"{name.lower()}_ml" for name in VOLUMES}
_STAGE_COLUMNS: Final = {name: f"{name}_s" for name in STAGES}
_UNCERTAINTY_COLUMNS: Final = {region: f"{region.lower()}_uncertainty" for region in REGIONS}
_FIRST_COLUMNS: Final = (
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
COLUMNS: Final = (*_FIRST_COLUMNS, *_UNCERTAINTY_COLUMNS.values(), "time", "side")
_HEADERS: Final = {
    f"{','.join(columns)}\n".encode(): columns for columns in (COLUMNS, COLUMNS[:-1], _FIRST_COLUMNS)
}  # of 0.1.0


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
        mean_uncertainty=_numbers(document.get("mean_uncertainty"), REGIONS),
        time=str(document.get("time") or ""),
        side=str(document.get("side") or ""),
    )


def failed_row(case: str, error: DrunetError) -> SummaryRow:
    """The row of a case that came to no label map."""
    return SummaryRow(case=case, status=Status.FAILED, error=str(error))


def described_warnings(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Code and message of every warning in a sidecar's object."""
    warnings = document.get("warnings")
    found = [_object(each) for each in warnings] if isinstance(warnings, list) else []
    return [(str(each.get("code") or "unknown"), one_line(str(each.get("message") or ""))) for each in found]


def side_in_words(document: Mapping[str, Any]) -> str:
    """The side of the tumour in a sidecar's object, for people; empty where there is none."""
    side, percent = str(document.get("side") or ""), _numbers(document.get("side_percent"), ("left", "right"))
    if not side or len(percent) < 2:
        return ""
    words = "on both sides" if side == "both" else "in the middle" if side == "middle" else f"on the {side}"
    return f"{words} (left {percent['left']:.0f} %, right {percent['right']:.0f} %)"


def described_weights(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The weights in a sidecar's object, as a list: the sidecar has one object, or a list of several."""
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
        **{column: row.mean_uncertainty.get(region) for region, column in _UNCERTAINTY_COLUMNS.items()},
        "time": row.time,
        "side": row.side,
    }


def enter_rows(
    path: Path,
    rows: Sequence[SummaryRow],
    *,
    overwrite: bool = False,
    on_warning: Callable[[str], None] = lambda _: None,
) -> None:
    """Enter the rows of a run into the table of its folder, where they replace those of the same cases. Others stay.

    The tables of shards that version 0.1.0 wrote are taken in. Runs that end at once take turns. overwrite: replace a file that
    drunet did not write, or that is damaged. on_warning: called where the workbook beside the table cannot be written, or is
    kept because a person has changed it: the table has all rows. Raises OutputError.
    """
    with take_turns(path):
        kept = _rows_by_case(path, overwrite=overwrite) | _by_case(rows)
        entered = [row for of_case in kept.values() for row in of_case]
        publish(path, encode_summary(entered), overwrite=True)
        _write_workbook(path.with_name(WORKBOOK), _in_order(entered), on_warning)


def _write_workbook(path: Path, table: Sequence[Mapping[str, Any]], on_warning: Callable[[str], None]) -> None:
    try:
        if os.path.lexists(path) and not is_our_workbook(path):
            remedy = f"{SUMMARY} has them; move {WORKBOOK} away, and the next run writes a new one"
            on_warning(f"{path}: was saved by another program, and is kept without the cases of this run: {remedy}")
            return
        publish(path, encode_workbook(COLUMNS, table), overwrite=True)
    except (OSError, OutputError) as error:  # a program that has the file open, for example
        reason = error if isinstance(error, OutputError) else f"{path}: cannot be read: {error.strerror}"
        on_warning(f"{reason}; {SUMMARY} has all cases")


def check_summary(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError for a table that `enter_rows` would refuse."""
    _rows_by_case(path, overwrite=overwrite)


def _rows_by_case(path: Path, *, overwrite: bool) -> dict[str, list[SummaryRow]]:
    """The newest rows of every case in the tables of a folder. path: its summary.csv, which may be absent."""
    found: dict[str, list[SummaryRow]] = {}
    for table in sorted([*path.parent.glob(_SHARDS), path], key=lambda table: (_changed(table), table == path)):
        try:
            if not is_summary(table):
                raise OutputError(f"{table}: exists already and is not drunet's; move it away, or name another OUT")
            found |= _by_case(read_summary(table) if table.exists() else [])
        except (CaseError, OutputError) as error:
            if table == path and not overwrite:
                raise OutputError(str(error)) from error
    return found


def _by_case(rows: Iterable[SummaryRow]) -> dict[str, list[SummaryRow]]:
    """One row a case; more only for cases of one name, which fail."""
    found = defaultdict(list)
    for row in rows:
        found[row.case].append(row)
    return dict(found)


def _changed(path: Path) -> str:
    """The time of a file's last change, as rows have it; the first of times where there is no file."""
    try:
        return _as_text(datetime.fromtimestamp(path.stat().st_mtime, UTC))
    except OSError:  # reading the file will raise the same error
        return ""


def encode_summary(rows: Iterable[SummaryRow]) -> bytes:
    """A table as CSV, by case."""
    return encode_table(COLUMNS, _in_order(rows))


def _in_order(rows: Iterable[SummaryRow]) -> list[dict[str, Any]]:
    return [columns_of(row) for row in sorted(rows, key=lambda row: (row.case, row.output))]


def is_summary(path: Path) -> bool:
    """Whether a file is the table of a folder; also where there is none. Raises OutputError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.readline(len(max(_HEADERS, key=len)) + 1) in _HEADERS
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error


def read_summary(path: Path) -> list[SummaryRow]:
    """The rows of a table that drunet wrote; in one of version 0.1.0 all have the time of its last change. Raises CaseError."""
    time = _changed(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    columns = _HEADERS.get(content[: content.find(b"\n") + 1])
    if columns is None:
        raise CaseError(f"{path}: is not a summary that drunet wrote")
    reader = csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    try:
        return [_parsed(cells, columns, time) for cells in reader]
    except (csv.Error, ValueError) as error:
        raise CaseError(f"{path}: line {reader.line_num} is damaged ({error}); mend or remove the line") from error


def _parsed(row: Mapping[str, str | None], columns: Sequence[str], time: str) -> SummaryRow:
    cells = {column: cell for column in columns if (cell := row[column]) is not None}
    if len(cells) < len(columns):
        raise ValueError("it ends too early")
    status = Status(cells["status"])
    if status is Status.LEFT_OUT and cells["error"]:  # so version 0.1.0 wrote it
        status = Status.DIFFERS
    return SummaryRow(
        case=cells["case"],
        status=status,
        volumes_ml=_parsed_numbers(cells, _VOLUME_COLUMNS),
        warnings=_listed(cells["warnings"]),
        weights=_listed(cells["weights"]),
        weights_sha256=_listed(cells["weights_sha256"]),
        seconds=_parsed_numbers(cells, _STAGE_COLUMNS),
        device=cells["device"],
        output=cells["output"],
        error=cells["error"],
        mean_uncertainty=_parsed_numbers(cells, _UNCERTAINTY_COLUMNS),
        time=cells.get("time", time),
        side=cells.get("side", ""),
    )


def _parsed_numbers(cells: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, column in columns.items() if (cell := cells.get(column))}


def _listed(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(LIST_SEPARATOR)) if cell else ()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(value: object, names: Iterable[str]) -> dict[str, float]:
    """The named values that are finite numbers; JSON as Python reads it knows NaN, and true is no number."""
    found = {name: _object(value).get(name) for name in names}
    return {name: n for name, n in found.items() if isinstance(n, int | float) and type(n) is not bool and 0 <= n < math.inf}
