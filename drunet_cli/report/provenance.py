"""Where the label maps of many cases come from: what was the same for all of them, and what was not."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from drunet_cli.report.runs import Record
from drunet_cli.segmentation.summary import Status, described_weights

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
