"""Folders of a data set that hold no NIfTI, though those beside them are cases: patients who would be missed in silence."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from drunet_cli.errors import listed
from drunet_cli.io.folders import Folder
from drunet_cli.io.name_lists import shortened
from drunet_cli.io.naming import is_nifti

_MOST: Final = 3
_OF_NO_PATIENT: Final = (".py", ".pyc", ".m", ".r", ".sh", ".ipynb", ".md", ".rst", ".html", ".log")


class PassedOver:
    """Is shown the folders below top, and tells which of them a reader would have taken for patients.

    Those are, with all below them without a NIfTI, beside folders with cases: of the data set itself, or of a folder in it that
    parts several (so p1/dicom beside p1/nifti is none). Folders that hold code or notes alone are none either.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._seen: list[Path] = []
        self._nifti: set[Path] = set()  # with the folders above, as the next
        self._cases: set[Path] = set()
        self._of_patients: set[Path] = set()
        self._first_files: dict[Path, Sequence[str]] = {}

    def saw(self, folder: Folder, *, cases: bool) -> None:
        """cases: some were found directly in it."""
        self._seen.append(folder.path)
        if cases:
            self._mark(self._cases, folder.path)
        if any(map(is_nifti, folder.files)):
            self._mark(self._nifti, folder.path)
        elif folder.files:
            for path in self._upwards(folder.path):
                if path in self._first_files:
                    break
                self._first_files[path] = folder.files[:2]
            if not all(name.lower().endswith(_OF_NO_PATIENT) for name in folder.files):
                self._mark(self._of_patients, folder.path)

    def refused(self, path: Path) -> None:
        """A folder that cannot be looked into, which is told elsewhere."""
        self._mark(self._nifti, path)

    def notes(self) -> list[str]:
        """One line for all, or none."""
        beside = Counter(path.parent for path in self._cases if path != self._top)
        found = [path for path in self._seen if self._would_be_missed(path, beside)]
        if not found:
            return []
        folders = listed(
            [f"{path} ({self._content(path)})" for path in found[:_MOST]] + [""] * (len(found) - _MOST), most=_MOST
        )
        how_many = "1 folder holds no NIfTI and was" if len(found) == 1 else f"{len(found)} folders hold no NIfTI and were"
        return [f"{how_many} passed over: {folders}"]

    def _would_be_missed(self, path: Path, beside: Counter[Path]) -> bool:
        if path == self._top or path in self._nifti or beside[path.parent] < (1 if path.parent == self._top else 2):
            return False
        return path not in self._first_files or path in self._of_patients

    def _content(self, path: Path) -> str:
        if path not in self._first_files:
            return "empty"
        first, *more = self._first_files[path]
        return f"{shortened(first)}, ..." if more else shortened(first)

    def _mark(self, marked: set[Path], path: Path) -> None:
        for each in self._upwards(path):
            if each in marked:
                break
            marked.add(each)

    def _upwards(self, path: Path) -> Iterator[Path]:
        """The folder and those above it, up to the top."""
        while path != self._top:
            yield path
            path = path.parent
        yield path
