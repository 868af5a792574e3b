"""Is this the same input as before? The one rule, for `segment`, `convert` and `train`.

A file is the same input while its path, its size and its time of last change are the same: that is told without reading it.
Where one of these differs, as after a copy or a touch, equal size and an equal SHA-256 make it the same input still.
"""

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from drunet_cli.errors import CaseError, DrunetError

_LARGEST_DOCUMENT_BYTES: Final = 2**20


@dataclass(frozen=True)
class InputFile:
    """A file as it was when it was read, for sidecars and descriptions of slices. sha256: in hexadecimal.

    before = InputFile.of(path, path.stat(), sha256=...)
    before.is_still(Path("flair.nii.gz"))  # False once the file has other bytes
    """

    path: str
    n_bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, status: os.stat_result, *, sha256: str) -> "InputFile":
        """Describe a file. status: from before it was read, so that a later change shows."""
        return cls(str(path), status.st_size, status.st_mtime_ns, sha256)

    def is_still(self, path: Path) -> bool:
        """Whether the file that lies at this path now is the same input. Raises CaseError where it cannot be read."""
        status = read_status(path)
        return is_same_input(
            Stamp(self.n_bytes, (self.path, self.mtime_ns)),
            self.sha256,
            now=Stamp(status.st_size, (str(path), status.st_mtime_ns)),
            read_sha256=lambda: sha256_of(path),
        )


def changed_files(before: Mapping[str, InputFile], files: Mapping[str, Path]) -> list[Path]:
    """The files, given by modality, that are no longer the inputs that were read. Raises CaseError as `is_still` does."""
    return [path for name, path in files.items() if not before[name].is_still(path)]


@dataclass(frozen=True)
class Stamp:
    """One or several files without their content. mark: their paths and times of last change, in any form."""

    n_bytes: int
    mark: Hashable


def is_same_input(before: Stamp, sha256: str, *, now: Stamp, read_sha256: Callable[[], str]) -> bool:
    """Apply the rule to one or several files. read_sha256: reads the files; called only where the stamps differ."""
    return before == now or (before.n_bytes == now.n_bytes and sha256 == read_sha256())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(path: Path, *, error: type[DrunetError] = CaseError) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises `error`, with the path, where the file cannot be read."""
    try:
        return file_sha256(path)
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from reason


def stand_in(start: bytes) -> str | None:
    """The kind of stand-in for a file whose content is elsewhere, with the remedy; None for anything else.

    start: the first bytes of the file. A data set that was cloned without its content has pointers, and a download that was
    answered with a page for signing in leaves that page.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"version https://git-lfs.", b"version http://git-media.")):
        return "is a pointer of Git LFS, not the file itself; run git lfs pull"
    if b"annex/objects/" in text[:200]:
        return "is a pointer of git-annex, not the file itself; run datalad get, or git annex get"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the file itself; open its address in a browser, and confirm the download there"
    return None


def read_status(path: Path) -> os.stat_result:
    """Size and time of last change of an input. Raises CaseError."""
    try:
        return path.stat()
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error


def read_document(path: Path, *, schema: str) -> dict[str, Any] | None:
    """The object of a JSON file that drunet wrote, whose `schema` begins so; None for any other file or none."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_DOCUMENT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and str(document.get("schema", "")).startswith(schema) else None
