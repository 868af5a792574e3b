"""The records of cases that runs have left in their folders, and where the label maps come from."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from drunet_cli.errors import CaseError, OutputError, join_some
from drunet_cli.io.inputs import file_sha256
from drunet_cli.io.naming import dataset_of, stem
from drunet_cli.segmentation.outputs import SCHEMA, read_sidecar
from drunet_cli.segmentation.summary import (
    Status,
    SummaryRow,
    described_warnings,
    described_weights,
    is_summary,
    read_summary,
    row_of,
)

_SUMMARY: Final = re.compile(r"summary(-[0-9]+-of-[0-9]+)?\.csv")
_SCHEMA_BEGINS: Final = SCHEMA.partition("/")[0].encode()
_SCHEMA_WITHIN_BYTES: Final = 1000  # the schema is a sidecar's first key
_THREADS: Final = 8
_NOT_RECORDED: Final = "not recorded"


class LabelMapState(StrEnum):
    """The changes of a label map since its sidecar was written; codes of warnings, beside those of the run."""

    MISSING = "label-map-missing"
    CHANGED = "label-map-changed"
    UNREADABLE = "label-map-unreadable"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One case of one run.

    row: with the label map where it lies now. source: the sidecar, or the summary where the case has no sidecar.
    warnings: code and message of each of the row's warnings; a summary has no messages. problem: what is wrong with the label
    map, which is the last warning. document: the sidecar's object.
    """

    row: SummaryRow
    source: Path
    warnings: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    document: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run, or of its shard."""
        return dataset_of(self.source)

    @property
    def needs_a_look(self) -> bool:
        """Whether the case failed or has warnings."""
        return self.row.has_failed or bool(self.row.warnings)


@dataclass(frozen=True)
class Runs:
    """The records of runs, by case. notices: what a reader of the records must know, one line each."""

    records: tuple[Record, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """One thing that was recorded of the cases. variants: every value with the number of its cases, the most frequent first."""

    name: str
    variants: tuple[tuple[str, int], ...]


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read the records of runs. paths: their folders, searched at any depth, or sidecars.

    A file that is found twice counts once. Raises CaseError for a folder that cannot be listed or holds nothing of a run, and
    for a file that is no sidecar.
    """
    notices = _Notices()
    records: dict[tuple[str, str], Record] = {}
    for path in paths:
        is_folder = os.path.isdir(path)
        for record in _records_in(path, notices) if is_folder else [_named_sidecar(path)]:
            records.setdefault((os.path.realpath(record.source), record.row.case), record)
    ordered = sorted(records.values(), key=lambda record: (record.row.case, str(record.source)))
    return Runs(tuple(ordered), (*notices.lines(), *_repeated_cases(ordered)))


def provenance(records: Iterable[Record]) -> list[Fact]:
    """Folders, weights, devices, settings and versions of all cases that were segmented.

    A case without a sidecar, or whose sidecar does not hold a fact, counts as not recorded.
    """
    facts = [dict(_facts(record)) for record in records if record.row.status is not Status.FAILED]
    names = dict.fromkeys(name for of_case in facts for name in of_case)
    return [Fact(name, _variants([of_case.get(name, _NOT_RECORDED) for of_case in facts])) for name in names]


def merge_messages(messages: Iterable[tuple[str, str]]) -> list[str]:
    """One line for every message, however many subjects it has. messages: subject, such as a path, and message."""
    subjects: dict[str, list[str]] = defaultdict(list)
    for subject, message in messages:
        subjects[message].append(subject)
    more = {message: f" (the same of {len(found) - 1} more)" if len(found) > 1 else "" for message, found in subjects.items()}
    return [f"{found[0]}: {message}{more[message]}" for message, found in subjects.items()]


@dataclass
class _Notices:
    """Notes on files. left_out: those that cannot be used, and why. tables: summaries that stood in for so many sidecars."""

    left_out: dict[str, str] = field(default_factory=dict)
    tables: Counter[Path] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        lines = merge_messages((path, f"{reason}; left out") for path, reason in self.left_out.items())
        if self.tables:
            whose, tables = ("their", "tables") if len(self.tables) > 1 else ("its", "table")
            named, n_cases = join_some(list(self.tables), most=1), self.tables.total()
            lines.append(f"{named}: {n_cases} of {whose} cases without a sidecar; taken from the {tables}")
        return lines


def _named_sidecar(path: Path) -> Record:
    record = _record_of(path)
    if isinstance(record, Record):
        return record
    reason = record or "is not a sidecar that drunet wrote; name the folder of a run, or a sidecar in it"
    raise CaseError(f"{path}: {reason}")


def _records_in(folder: Path, notices: _Notices) -> list[Record]:
    files = _files_in(folder)
    summaries = [path for path in files if _SUMMARY.fullmatch(path.name)]
    others = [path for path in files if not _SUMMARY.fullmatch(path.name)]
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(threads.map(_record_of, others))
    records = [found for found in read if isinstance(found, Record)]
    damaged = {str(path): reason for path, reason in zip(others, read, strict=True) if isinstance(reason, str)}
    records = _with_tables(summaries, records, notices)
    if not records and not any(is_summary(path) for path in summaries):  # an empty shard has a summary without rows
        reason = ": ".join(next(iter(damaged.items()))) if damaged else f"{folder}: holds no sidecar of a segmented case"
        raise CaseError(f"{reason}; name a folder that drunet segment wrote")
    notices.left_out |= damaged
    return records


def _files_in(folder: Path) -> list[Path]:
    """The files below a folder that may be sidecars or summaries."""

    def refuse(error: OSError) -> None:
        raise CaseError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    files: list[Path] = []
    entered = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:  # a link leads back
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        files += [Path(parent, name) for name in sorted(names) if name.lower().endswith(".json") or _SUMMARY.fullmatch(name)]
    return files


def _record_of(path: Path) -> Record | str | None:
    """The case of a sidecar; why the sidecar cannot be used; None for any other file."""
    document = read_sidecar(path)
    if document is None:
        try:
            with path.open("rb") as stream:
                is_ours = _SCHEMA_BEGINS in stream.read(_SCHEMA_WITHIN_BYTES)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "is a damaged sidecar" if is_ours else None
    if document["schema"] != SCHEMA:
        return f"is of schema {document['schema']}, which another version of drunet wrote"
    if not isinstance(document.get("case"), str):
        return "is a damaged sidecar: names no case"
    row, warnings = row_of(document, Status.DONE), tuple(described_warnings(document))
    return _with_label_map(Record(row=row, source=path, warnings=warnings, document=document))


def _with_label_map(record: Record) -> Record:
    """The record with its label map where that lies now, and a warning if something is wrong with the label map."""
    label_map = _label_map_of(record)
    sha256 = (record.document or {}).get("output_sha256")
    record = replace(record, row=replace(record.row, output=str(label_map)))
    try:
        if not label_map.exists():
            state, message = LabelMapState.MISSING, "is gone; the volumes are those that were found"
        elif sha256 is not None and file_sha256(label_map) != sha256:
            state, message = LabelMapState.CHANGED, "is not the file that was written; the volumes are those of that file"
        else:
            return record
    except OSError as error:
        state, message = LabelMapState.UNREADABLE, f"cannot be read: {error.strerror}"
    problem = f"{label_map}: {message}"
    row = replace(record.row, warnings=(*record.row.warnings, state))
    return replace(record, row=row, warnings=(*record.warnings, (state, problem)), problem=problem)


def _label_map_of(record: Record) -> Path:
    """The label map beside its sidecar, wherever both have been moved to, and also when both have been renamed."""
    recorded = Path(record.row.output or f"{record.row.case}.nii.gz")
    if record.document is None:
        return record.folder / recorded.relative_to(dataset_of(recorded))
    beside = record.source.with_name(recorded.name)
    if stem(beside) == record.source.stem:
        return beside
    candidates = [record.source.with_name(f"{record.source.stem}{suffix}") for suffix in (".nii.gz", ".nii")]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def _with_tables(summaries: Iterable[Path], with_sidecar: Sequence[Record], notices: _Notices) -> list[Record]:
    """The records of sidecars, with facts from tables: cases without a sidecar, and label maps that a later run refused.

    The newest of several tables that hold a case counts.
    """
    found: dict[tuple[str, str], Record] = {}
    for path in sorted(summaries, key=lambda path: (_mtime_ns(path), path.name)):
        try:
            for row in read_summary(path) if is_summary(path) else []:
                warnings = tuple((code, "") for code in row.warnings)
                found[os.path.realpath(path.parent), row.case] = Record(row=row, source=path, warnings=warnings)
        except (CaseError, OutputError) as error:
            notices.left_out[str(path)] = str(error).removeprefix(f"{path}: ")
    records = []
    for record in with_sidecar:
        in_table = found.pop((os.path.realpath(record.folder), record.row.case), None)
        if in_table is not None and in_table.row.status is Status.DIFFERS and in_table.row.time >= record.row.time:
            row = replace(record.row, status=Status.DIFFERS, error=in_table.row.error, time=in_table.row.time)
            record = replace(record, row=row)
        records.append(record)
    notices.tables |= Counter(record.source for record in found.values() if record.row.status is not Status.FAILED)
    return records + [each if each.row.status is Status.FAILED else _with_label_map(each) for each in found.values()]


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # reading the file will raise the same error
        return 0


def _repeated_cases(records: Iterable[Record]) -> list[str]:
    """One notice for all cases that lie in the same several places."""
    sources = defaultdict(list)
    for record in records:
        sources[record.row.case].append(record.source)
    cases = defaultdict(list)
    for case, files in sources.items():
        if len(files) > 1:
            folders = sorted({str(dataset_of(file)) for file in files})
            cases[tuple(folders if len(folders) > 1 else sorted(map(str, files)))].append(case)
    return [f"{join_some(names, most=1)}: in {' and in '.join(places)}; all are kept" for places, names in cases.items()]


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    """Name and value of everything that is known of where one label map comes from."""
    document = record.document or {}
    yield "folder", str(record.folder)
    if weights := described_weights(document):
        yield "weights", " + ".join(map(_weights_in_words, weights))
    if device := document.get("device"):
        name = document.get("device_name")
        yield "device", f"{device} ({name})" if name and name != device else str(device)
    for prefix, part in (("label values, ", "labels"), ("", "settings"), ("version of ", "versions")):
        if isinstance(values := document.get(part), Mapping):
            yield from ((f"{prefix}{name}".replace("_", " "), _in_words(value)) for name, value in values.items())


def _weights_in_words(weights: Mapping[str, Any]) -> str:
    origin = f", origin {weights['origin']}" if weights.get("origin") else ""
    return f"{weights.get('name') or 'unnamed'}, sha256 {weights.get('sha256') or 'unknown'}{origin}"


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _variants(values: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(values).items(), key=lambda variant: (-variant[1], variant[0])))
