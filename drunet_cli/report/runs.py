"""What runs have left in their folders, a record for each case, and where the label maps come from."""

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

from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.naming import stem
from drunet_cli.io.volumes import file_sha256
from drunet_cli.segmentation.cohort import (
    Status,
    SummaryRow,
    described_warnings,
    described_weights,
    is_summary,
    read_summary,
    row_of,
)
from drunet_cli.segmentation.sidecar import SCHEMA, read_sidecar

_SUMMARY: Final = re.compile(r"summary(-[0-9]+-of-[0-9]+)?\.csv")
_SCHEMA_BEGINS: Final = SCHEMA.partition("/")[0].encode()
_LOOKED_AT_BYTES: Final = 1000  # the schema is a sidecar's first key
_THREADS: Final = 8


class LabelMapState(StrEnum):
    """Codes of further warnings: what has become of a label map since its sidecar was written."""

    MISSING = "label-map-missing"
    CHANGED = "label-map-changed"
    UNREADABLE = "label-map-unreadable"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One case of one run.

    row: with the label map where it lies now. source: the sidecar, or the summary that tells of a case without one.
    messages: of the row's warnings, one each. problem: what is wrong with the label map; its message is the last of them.
    document: the sidecar's object.
    """

    row: SummaryRow
    source: Path
    messages: tuple[str, ...] = ()
    problem: str = ""
    document: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Of the run, or of its shard."""
        return self.source.parent

    @property
    def needs_a_look(self) -> bool:
        """Whether it failed or has warnings."""
        return self.row.status is Status.FAILED or bool(self.row.warnings)


@dataclass(frozen=True)
class Runs:
    """records: by case. notices: whoever reads the records must know these, one line each."""

    records: tuple[Record, ...]
    notices: tuple[str, ...] = ()


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read what runs have left. paths: their folders, looked through at any depth, or sidecars.

    A file that is found twice counts once. Raises CaseError for a folder that cannot be listed or holds nothing of a run, and
    for a file that is no sidecar.
    """
    notices = _Notices()
    records: dict[tuple[str, str], Record] = {}
    for path in paths:
        is_folder = os.path.isdir(path)  # noqa: PTH112  # unlike Path.is_dir it raises for no path
        for record in _in_folder(path, notices) if is_folder else [_of_file(path)]:
            records.setdefault((os.path.realpath(record.source), record.row.case), record)
    ordered = sorted(records.values(), key=lambda record: (record.row.case, str(record.source)))
    return Runs(tuple(ordered), (*notices.lines(), *_repeated(ordered)))


@dataclass
class _Notices:
    """left_out: files and why, each once. tables: summaries from which so many cases were taken."""

    left_out: dict[str, str] = field(default_factory=dict)
    tables: Counter[Path] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """One for each kind."""
        told = collapsed((path, f"{reason}; left out") for path, reason in self.left_out.items())
        if self.tables:
            n_more, n_cases = len(self.tables) - 1, self.tables.total()
            which, whose, what = (f" and {n_more} more", "their", "tables") if n_more else ("", "its", "table")
            told.append(
                f"{next(iter(self.tables))}{which}: {n_cases} of {whose} cases without a sidecar; taken from the {what}"
            )
        return told


def collapsed(told: Iterable[tuple[str, str]]) -> list[str]:
    """One line for all that the same is told of. told: of what, and what."""
    of_what: dict[str, list[str]] = defaultdict(list)
    for each, words in told:
        of_what[words].append(each)
    more = {words: f" (the same of {len(found) - 1} more)" if len(found) > 1 else "" for words, found in of_what.items()}
    return [f"{found[0]}: {words}{more[words]}" for words, found in of_what.items()]


def _of_file(path: Path) -> Record:
    record = _record_of(path)
    if isinstance(record, Record):
        return record
    reason = record or "is not a sidecar that drunet wrote; name the folder of a run, or a sidecar in it"
    raise CaseError(f"{path}: {reason}")


def _in_folder(folder: Path, notices: _Notices) -> list[Record]:
    files = _files_in(folder)
    others = [path for path in files if not _SUMMARY.fullmatch(path.name)]
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(threads.map(_record_of, others))
    records = [each for each in read if isinstance(each, Record)]
    damaged = {str(path): each for path, each in zip(others, read, strict=True) if isinstance(each, str)}
    records += _without_sidecar([path for path in files if _SUMMARY.fullmatch(path.name)], records, notices)
    if not records and not any(_SUMMARY.fullmatch(path.name) and is_summary(path) for path in files):  # of an empty shard
        reason = ": ".join(next(iter(damaged.items()))) if damaged else f"{folder}: holds no sidecar of a segmented case"
        raise CaseError(f"{reason}; name a folder that drunet segment wrote")
    notices.left_out |= damaged
    return records


def _files_in(folder: Path) -> list[Path]:
    """Those that may be sidecars or summaries."""

    def refuse(error: OSError) -> None:
        raise CaseError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    files: list[Path] = []
    entered = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:  # a link back
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        files += [Path(parent, name) for name in sorted(names) if name.lower().endswith(".json") or _SUMMARY.fullmatch(name)]
    return files


def _record_of(path: Path) -> Record | str | None:
    """The case of a sidecar; why it cannot be used; None for any other file."""
    document = read_sidecar(path)
    if document is None:
        try:
            with path.open("rb") as stream:
                is_ours = _SCHEMA_BEGINS in stream.read(_LOOKED_AT_BYTES)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "is a damaged sidecar" if is_ours else None
    if document["schema"] != SCHEMA:
        return f"is of schema {document['schema']}, which another version of drunet wrote"
    if not isinstance(document.get("case"), str):
        return "is a damaged sidecar: names no case"
    row = row_of(document, Status.DONE)
    messages = tuple(message for _, message in described_warnings(document))
    return _looked_up(Record(row=row, source=path, messages=messages, document=document))


def _looked_up(record: Record) -> Record:
    """The same record with its label map where it lies now, and what is wrong with that."""
    label_map = _label_map_of(record)
    sha256 = (record.document or {}).get("output_sha256")
    state, message = None, ""
    try:
        if not label_map.exists():
            state, message = LabelMapState.MISSING, "is gone; the volumes are those that were found"
        elif sha256 is not None and file_sha256(label_map) != sha256:
            state, message = LabelMapState.CHANGED, "is not the file that was written; the volumes are those of that file"
    except OSError as error:
        state, message = LabelMapState.UNREADABLE, f"cannot be read: {error.strerror}"
    row = replace(record.row, output=str(label_map))
    if state is None:
        return replace(record, row=row)
    row = replace(row, warnings=(*row.warnings, state))
    problem = f"{label_map}: {message}"
    return replace(record, row=row, messages=(*record.messages, problem), problem=problem)


def _label_map_of(record: Record) -> Path:
    """Beside its sidecar, wherever that has been moved to, and also when both have been given another name."""
    beside = record.folder / (Path(record.row.output).name or f"{record.row.case}.nii.gz")
    if record.document is None or stem(beside) == record.source.stem:
        return beside
    candidates = [record.folder / f"{record.source.stem}{suffix}" for suffix in (".nii.gz", ".nii")]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])  # noqa: PTH110


def _without_sidecar(summaries: Iterable[Path], of_cases: Sequence[Record], notices: _Notices) -> Iterator[Record]:
    """What summaries tell of cases that have no sidecar beside them; of several that tell of a case the latest."""
    described = {(os.path.realpath(record.folder), record.row.case) for record in of_cases}
    told: dict[tuple[str, str], Record] = {}
    for path in sorted(summaries, key=lambda path: (_mtime_ns(path), path.name)):
        try:
            if is_summary(path):
                rows = {(os.path.realpath(path.parent), row.case): Record(row=row, source=path) for row in read_summary(path)}
                told |= rows
        except (CaseError, OutputError) as error:
            notices.left_out[str(path)] = str(error).removeprefix(f"{path}: ")
    records = [record for key, record in told.items() if key not in described]
    notices.tables |= Counter(record.source for record in records if record.row.status is not Status.FAILED)
    for record in records:
        yield record if record.row.status is Status.FAILED else _looked_up(record)


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # it will be told when it is read
        return 0


def _repeated(records: Iterable[Record]) -> list[str]:
    """Cases that occur more than once, told once for all that lie in the same folders."""
    sources = defaultdict(list)
    for record in records:
        sources[record.row.case].append(record.source)
    cases = defaultdict(list)
    for case, files in sources.items():
        if len(files) > 1:
            folders = sorted({str(file.parent) for file in files})
            cases[tuple(folders if len(folders) > 1 else sorted(map(str, files)))].append(case)
    notices = []
    for places, names in cases.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notices.append(f"{names[0]}{others}: in {' and in '.join(places)}; all are kept")
    return notices


_NOT_RECORDED: Final = "not recorded"


@dataclass(frozen=True)
class Fact:
    """One thing that was recorded of the cases. variants: each with the number of its cases, the most frequent first."""

    name: str
    variants: tuple[tuple[str, int], ...]


def provenance(records: Iterable[Record]) -> list[Fact]:
    """Folders, weights, devices, settings and versions of all cases that were segmented.

    A case of whose sidecar is nothing known, or not this, counts as not recorded.
    """
    segmented = [record for record in records if record.row.status is not Status.FAILED]
    facts = [dict(_facts(record)) for record in segmented]
    names = dict.fromkeys(name for of_case in facts for name in of_case)
    return [Fact(name, _variants([of_case.get(name, _NOT_RECORDED) for of_case in facts])) for name in names]


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    document = record.document or {}
    yield "folder", str(record.folder)
    if weights := described_weights(document):
        yield "weights", " + ".join(map(_weights_in_words, weights))
    if device := document.get("device"):
        name = document.get("device_name")
        yield "device", f"{device} ({name})" if name and name != device else str(device)
    yield from _inner("label values, ", document.get("labels"))
    yield from _inner("", document.get("settings"))
    yield from _inner("version of ", document.get("versions"))


def _weights_in_words(weights: Mapping[str, Any]) -> str:
    origin = f", origin {weights['origin']}" if weights.get("origin") else ""
    return f"{weights.get('name') or 'unnamed'}, sha256 {weights.get('sha256') or 'unknown'}{origin}"


def _inner(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        yield from ((f"{prefix}{name}".replace("_", " "), _in_words(each)) for name, each in value.items())


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _variants(values: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(values).items(), key=lambda variant: (-variant[1], variant[0])))
