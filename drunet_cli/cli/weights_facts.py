"""What is known of weights, as objects for programs and as words for people."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from drunet_cli.errors import WeightsError
from drunet_cli.weights.registry import (
    BUNDLED,
    DEFAULT,
    ENTRIES,
    cached_names,
    find_entry,
    is_file,
    is_file_name,
    shown_source,
    weights_path,
)

_LONGEST_SUMMARY: Final = 60
# `where` of an object, and the words for it.
_PLACES: Final = {
    "bundled": "bundled with drunet",
    "cache": "in the cache",
    "not-downloaded": "not downloaded",
    "file": "a file of yours",
}
_WINDOWS: Final = {"auto": "auto: trained on windows of the frame", "full": "full: trained on whole frames"}
_LABELS: Final = {
    "name": "name",
    "description": "description",
    "where": "where",
    "path": "file",
    "get": "to get them",
    "megabytes": "download",
    "base_width": "base width",
    "bn_epsilon": "batch-norm epsilon",
    "dropout": "trained with dropout",
    "window": "window",
    "licence": "licence",
    "citation": "citation",
    "origin": "origin",
    "sha256": "SHA-256",
    "source_sha256": "SHA-256 of source",
}


def listed_weights() -> list[dict[str, Any]]:
    """Of every set that drunet knows, brings, or has in its cache: where it is, and whether it is the default."""
    return [_listed(name) for name in dict.fromkeys([*ENTRIES, *BUNDLED, *cached_names()])]


def words_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Name, place and summary, for a table."""
    name = f"{row['name']} (default)" if row["default"] else row["name"]
    return name, _PLACES[row["where"]], row["error"] or row["summary"]


def _listed(name: str) -> dict[str, Any]:
    from drunet_cli.weights.cache import metadata_of

    known = ENTRIES.get(name) or BUNDLED.get(name)
    where, error = _where(name), None
    summary = description = known.summary if known else ""
    if known is not None:
        description = known.description
    licence = known.licence if known else None
    if where == "cache":
        try:
            metadata = metadata_of(name)[1]
        except WeightsError as damage:
            error = str(damage)
        else:
            if known is None:
                description = f"base width {metadata.base_width}, from {metadata.origin}"
                summary = description if len(description) <= _LONGEST_SUMMARY else f"{description[: _LONGEST_SUMMARY - 1]}…"
                licence = metadata.licence or None
    return {
        "name": name,
        "default": name == DEFAULT,
        "where": where,
        "path": None if where == "not-downloaded" else str(weights_path(name)),
        "url": ENTRIES[name].url if name in ENTRIES else None,
        "page": ENTRIES[name].page if name in ENTRIES else None,
        "summary": summary,
        "description": description,
        "licence": licence,
        "error": error,
    }


def described_weights(weights: str) -> dict[str, Any]:
    """All that is known of weights by name or file, be they there or not. Raises WeightsError for unknown or damaged ones."""
    from drunet_cli.io.volumes import file_sha256
    from drunet_cli.weights.cache import metadata_of

    where = "file" if is_file_name(weights) else _where(weights)
    if where == "not-downloaded":
        return _of_registry(weights)
    known = (ENTRIES.get(weights) or BUNDLED.get(weights)) if where != "file" else None
    file, metadata = metadata_of(weights)
    description = {"description": known.description} if known is not None else {}
    return {
        "path": str(file),
        "where": where,
        "default": where != "file" and weights == DEFAULT,
        "sha256": file_sha256(file),
        **asdict(metadata),
        **description,
    }


def _of_registry(name: str) -> dict[str, Any]:
    entry = find_entry(name)
    return {
        "path": None,
        "where": "not-downloaded",
        "default": name == DEFAULT,
        "sha256": None,
        "name": name,
        "description": entry.description,
        "base_width": entry.base_width,
        "bn_epsilon": entry.bn_epsilon,
        "dropout": entry.dropout,
        "origin": shown_source(entry),
        "source_sha256": entry.source_sha256,
        "megabytes": entry.megabytes,
        "licence": entry.licence,
        "citation": entry.citation,
    }


def words_for(document: Mapping[str, Any]) -> dict[str, str]:
    """The object of described_weights in words, by label, in the order in which a person wants to know it."""
    words = {name: "" if document.get(name) is None else str(document[name]) for name in _LABELS}
    place = "not in the cache" if document["where"] == "not-downloaded" else _PLACES[document["where"]]
    words["where"] = place + ("; used unless others are named" if document["default"] else "")
    if words["window"]:
        words["window"] = _WINDOWS[document["window"]]
    words["origin"] = _origin(document)
    if document["where"] == "not-downloaded":
        name = document["name"]
        words["get"] = f"drunet weights download {name}; without internet: drunet weights import FILE --name {name}"
        words["megabytes"] = f"about {document['megabytes']} MB"
    return {_LABELS[name]: text for name, text in words.items() if text}


def _origin(document: Mapping[str, Any]) -> str:
    """As recorded; of bundled weights less what description and citation have said, and less names that mean nothing here."""
    origin = str(document["origin"])
    if document["where"] != "bundled":
        return origin
    parts = origin.removeprefix(str(document["description"])).split(". ")
    told = str(document["citation"])
    own = ". ".join(part for part in parts if part.strip() and part.strip() not in told)
    own = re.sub(r", from [^,(]+ \(SHA-256 [0-9a-f]+\)", ", begun from other weights", own)
    return re.sub(r"cases learnt from: (\d+)", r"\1 cases", own)


def _where(name: str) -> str:
    if name in BUNDLED:
        return "bundled"
    return "cache" if is_file(weights_path(name)) else "not-downloaded"
