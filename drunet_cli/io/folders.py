"""The folders of a tree, each once though links may lead back, with the names in them. Opens no file."""

import errno
import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from drunet_cli.io.naming import is_nifti

Identity: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """A folder and the names of the files in it, sorted, hidden ones left out."""

    path: Path
    identity: Identity
    files: Sequence[str]


def identity_of(status: os.stat_result) -> Identity:
    """The same by whatever path a file or folder is reached."""
    return status.st_dev, status.st_ino


def folders_from(
    top: Path, *, left_out: Identity | None = None, names_left_out: Container[str] = ()
) -> Iterator[Folder | tuple[Path, OSError]]:
    """The folders from top down in sorted order; for one that refuses, its path and why.

    left_out: a folder that is not entered. names_left_out: of folders below top that are not.
    """
    entered: set[Identity] = set() if left_out is None else {left_out}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            identity = identity_of(path.stat())
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(path) as entries:
                listed = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            yield path, error
            continue
        names = sorted(listed)
        yield Folder(path, identity, [name for name in names if not listed[name]])
        waiting += [path / name for name in reversed(names) if listed[name] and name not in names_left_out]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link: to itself, or to what may not be seen, which is then said of the folder or the image
        return error.errno != errno.ELOOP and not is_nifti(entry.name)
