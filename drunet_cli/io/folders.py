"""The folders below a source: the walk through them, and those that hold no case though others beside them do."""

import errno
import os
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.io.naming import is_nifti

Identity: TypeAlias = tuple[int, int]

_BIDS_DESCRIPTION: Final = "dataset_description.json"
_BESIDE_BIDS: Final = ("derivatives", "sourcedata")


@dataclass(frozen=True)
class Folder:
    """A folder and the names of the files in it, sorted, hidden ones left out."""

    path: Path
    identity: Identity
    files: Sequence[str]


def folders_from(
    top: Path, *, left_out: Collection[Identity] = (), names_left_out: Container[str] = ()
) -> Iterator[Folder | tuple[Path, OSError]]:
    """The folders from top down in sorted order; for one that refuses, its path and why.

    left_out: folders that are not entered. names_left_out: no folder of these names, below top, is entered. The derivatives and
    the source data of a BIDS data set are not entered either: they hold the same patients again.
    """
    entered: set[Identity] = set(left_out)
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            identity = identity_of(path.stat())
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(path) as entries:
                is_folder = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            yield path, error
            continue
        names = sorted(is_folder)
        yield Folder(path, identity, [name for name in names if not is_folder[name]])
        beside = _BESIDE_BIDS if _BIDS_DESCRIPTION in is_folder else ()
        folders = [name for name in reversed(names) if is_folder[name] and name not in names_left_out and name not in beside]
        waiting += [path / name for name in folders]


def identity_of(status: os.stat_result) -> Identity:
    """Equal for one file or folder by whatever path it is reached."""
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link: to itself, or to what may not be seen, which is then said of the folder or the image
        return error.errno != errno.ELOOP and not is_nifti(entry.name)


@dataclass(frozen=True)
class FolderWithoutCase:
    """A folder that a reader would take for a patient, and that holds no case. content: a few files in it, in words."""

    path: Path
    content: str
    has_nifti: bool


_OF_NO_PATIENT: Final = (".py", ".pyc", ".m", ".r", ".sh", ".ipynb", ".md", ".rst", ".html", ".log")


class FolderSurvey:
    """Takes note of the folders from top down, and finds those that a reader would take for patients, and that hold no case.

    A folder is such a one beside folders with cases, be they of the data set itself, or of a folder in it that parts several
    (so p1/dicom beside p1/nifti is none). Folders that hold code or notes alone are none.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._folders: list[Path] = []
        # By folder, and by each above it up to the top: its first files of a kind, or those of the first folder below it.
        self._images: dict[Path, Sequence[str]] = {}
        self._no_images: dict[Path, Sequence[str]] = {}
        self._of_patients: dict[Path, Sequence[str]] = {}
        self._with_cases: dict[Path, Sequence[str]] = {}
        self._unreadable: dict[Path, Sequence[str]] = {}

    def add(self, folder: Folder, *, has_cases: bool) -> None:
        """Take note of a folder. has_cases: some were found directly in it."""
        self._folders.append(folder.path)
        if has_cases:
            self._note(self._with_cases, folder.path, folder.files)
        if images := [name for name in folder.files if is_nifti(name)]:
            self._note(self._images, folder.path, images)
        elif folder.files:
            self._note(self._no_images, folder.path, folder.files)
            if not all(name.lower().endswith(_OF_NO_PATIENT) for name in folder.files):
                self._note(self._of_patients, folder.path, folder.files)

    def leave_out(self, path: Path) -> None:
        """Say nothing about a folder that cannot be looked into: it is a broken case."""
        self._note(self._unreadable, path, ())

    def without_case(self) -> Iterator[FolderWithoutCase]:
        """The folders that a reader would take for patients, and that hold no case."""
        n_beside = Counter(path.parent for path in self._with_cases if path != self._top)
        for path in self._folders:
            if self._would_be_missed(path, n_beside):
                files = self._images.get(path) or self._no_images.get(path, ())
                content = ", ".join([*map(shorten, files[:1]), *(["..."] if len(files) > 1 else [])]) or "empty"
                yield FolderWithoutCase(path, content, path in self._images)

    def _would_be_missed(self, path: Path, n_beside: Counter[Path]) -> bool:
        if path == self._top or path in self._with_cases or path in self._unreadable:
            return False
        if n_beside[path.parent] < (1 if path.parent == self._top else 2):
            return False
        return path in self._images or path not in self._no_images or path in self._of_patients

    def _note(self, noted: dict[Path, Sequence[str]], folder: Path, files: Sequence[str]) -> None:
        for path in (folder, *folder.parents):
            noted.setdefault(path, files[:2])
            if path == self._top:
                break


_LONGEST_NAME: Final = 60


def shorten(name: str) -> str:
    """The beginning and the end of a long file name, for a message."""
    cut = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:cut]}...{name[-cut:]}"
