"""What an input file was when it was read, and whether it is still the same."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.errors import CaseError


@dataclass(frozen=True)
class InputFile:
    """What a file was when it was read. sha256: of its bytes, in hexadecimal."""

    path: str
    n_bytes: int
    mtime_ns: int
    sha256: str


def stamp(file: Path) -> os.stat_result:
    """Size and time of an input. Raises CaseError."""
    try:
        return file.stat()
    except OSError as error:
        raise CaseError(f"{file}: cannot be read: {error.strerror}") from error


def input_file(file: Path, *, before: os.stat_result, sha256: str) -> InputFile:
    """A file that was read just now. before: its stamp from before it was read, so that a later change shows."""
    return InputFile(str(file), before.st_size, before.st_mtime_ns, sha256)


def changed_files(before: Mapping[str, InputFile], files: Mapping[str, Path]) -> list[Path]:
    """Those of the files, by modality, that are no longer what was read.

    A file of the same path, size and time is the same; else one of the same size and bytes. Raises CaseError when one cannot
    be read.
    """
    return [file for name, file in files.items() if not _is_unchanged(before[name], file)]


def _is_unchanged(before: InputFile, file: Path) -> bool:
    now = stamp(file)
    if (before.path, before.n_bytes, before.mtime_ns) == (str(file), now.st_size, now.st_mtime_ns):
        return True
    return before.n_bytes == now.st_size and _has_bytes(before, file)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _has_bytes(before: InputFile, file: Path) -> bool:
    try:
        return before.sha256 == file_sha256(file)
    except OSError as error:
        raise CaseError(f"{file}: cannot be read: {error.strerror}") from error
