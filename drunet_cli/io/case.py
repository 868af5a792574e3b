"""One patient's images: which file is which modality. Reads no voxel."""

import errno
import itertools
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.naming import SEGMENTATION, WORDS, common_stem, may_name_a_file, stem, with_a_name, words


@dataclass(frozen=True)
class Case:
    """The four image files of one patient, and the name that their outputs bear.

    segmentation: the reference label map, where there is one.
    """

    name: str
    images: Mapping[Modality, Path]
    segmentation: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Every file by modality, in the network's channel order, and "seg"."""
        files: dict[str, Path] = {modality: self.images[modality] for modality in CHANNELS}
        return files if self.segmentation is None else {**files, SEGMENTATION: self.segmentation}


@dataclass(frozen=True)
class BrokenCase:
    """A case that was found but cannot be used, and why. is_source: it is no case, but what should have held some."""

    name: str
    error: CaseError
    is_source: bool = False


def case_of(images: Mapping[Modality, Path], *, name: str | None = None, segmentation: Path | None = None) -> Case:
    """The case that four files make. Without a name, the stem that all four share, else their folder's name, else FLAIR's stem.

    Raises CaseError when a file is missing, one file is given for two modalities or for one and the segmentation, or the name
    cannot be that of a file.
    """
    given = {modality.display: images[modality] for modality in CHANNELS}
    if segmentation is not None:
        given["segmentation"] = segmentation
    found = {part: _regular(path, part) for part, path in given.items()}
    for one, other in itertools.combinations(given, 2):
        if os.path.samestat(found[one], found[other]):
            raise CaseError(f"{given[one]}: given as {one} and as {other}; give each its own file")
    name = name or _name_of([images[modality] for modality in CHANNELS])
    if not may_name_a_file(name):
        raise CaseError(f"{name!r}: cannot be part of a file name; rename the case")
    return Case(name, images, segmentation)


def why_unreadable(path: Path, error: OSError | ValueError, *, kind: str = "file") -> str:
    """What stat() met, in words that may follow the path. kind: what should have been there."""
    if isinstance(error, ValueError):  # a path with a NUL
        return f"cannot be read: {error}"
    if error.errno == errno.ENOENT:
        return f"is a link to a {kind} that is missing" if path.is_symlink() else f"no such {kind}"
    return f"cannot be read: {error.strerror}"


def _regular(path: Path, part: str) -> os.stat_result:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise CaseError(f"{path}: {why_unreadable(path, error)} (given as {part})") from error
    if stat.S_ISDIR(found.st_mode):
        raise CaseError(f"{path}: is a folder, not a NIfTI file (given as {part})")
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device, which may never end and cannot be read twice
        raise CaseError(f"{path}: is not a regular file (given as {part})")
    return found


def _name_of(paths: Sequence[Path]) -> str:
    if name := common_stem(paths):
        return name
    folders = {path.absolute().parent for path in paths}
    if len(folders) == 1 and set(words(paths[0])) <= WORDS.keys():  # p7/flair.nii.gz, p7/t1.nii.gz: FLAIR's says nothing
        return with_a_name(folders.pop()).name or stem(paths[0])
    return stem(paths[0])
