"""Where the slices of a dataset lie.

DIR/images/{case}_slice_{z}.png   RGBA: FLAIR, T1ce, T1, T2
DIR/masks/{case}_slice_{z}.png    RGB: the class index, for cases with a segmentation
DIR/cases/{case}.json             how they were made and how to go back; only of complete cases
DIR/slices.csv                    one row a slice
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.errors import CaseError

_SLICE_NAME: Final = re.compile(r"(?P<case>[^.].*)_slice_(?P<z>[0-9]{1,9})\.png", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """One dataset of slices."""

    root: Path

    @property
    def images(self) -> Path:
        """Folder of the image slices."""
        return self.root / "images"

    @property
    def masks(self) -> Path:
        """Folder of the label slices."""
        return self.root / "masks"

    @property
    def cases(self) -> Path:
        """Folder of the cases' descriptions."""
        return self.root / "cases"

    @property
    def manifest(self) -> Path:
        """Table of all slices."""
        return self.root / "slices.csv"

    def description(self, case: str) -> Path:
        """Written last: its presence says that the case is complete."""
        return self.cases / f"{case}.json"

    def unfinished(self, case: str) -> Path:
        """Marks a case whose slices are being written, or were when the writer was killed."""
        return self.cases / f"{case}.part"


def slice_name(case: str, z: int) -> str:
    """File name of the slice at index z; not zero-padded, as the published scripts have it."""
    return f"{case}_slice_{z}.png"


@dataclass(frozen=True, order=True)
class SliceFile:
    """A file that bears the name of a slice, with or without zero padding."""

    z: int
    path: Path


def slice_files(folder: Path) -> dict[str, list[SliceFile]]:
    """The slices that a folder holds, by case, cases by name and slices by z. An absent folder holds none.

    Raises CaseError for a folder that cannot be listed.
    """
    found: dict[str, list[SliceFile]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _SLICE_NAME.fullmatch(entry.name):
                    found.setdefault(match["case"], []).append(SliceFile(int(match["z"]), Path(entry.path)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CaseError(f"{folder}: cannot be listed: {error.strerror}") from error
    return {case: sorted(found[case]) for case in sorted(found)}


def slices_by_z(files: Iterable[SliceFile]) -> dict[int, Path]:
    """The slices of one case. Raises CaseError where one is there twice, with and without zero padding."""
    paths: dict[int, Path] = {}
    for file in files:
        if file.z in paths:
            raise CaseError(f"{file.path}: slice {file.z} is there twice, also as {paths[file.z].name}; remove one")
        paths[file.z] = file.path
    return paths
