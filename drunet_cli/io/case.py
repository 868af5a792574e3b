"""One patient's images: which file is which modality. Reads no voxel."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError

_NIFTI_SUFFIXES = (".nii.gz", ".nii")
_WORDS = {
    **dict.fromkeys(("flair", "t2f", "t2flair"), Modality.FLAIR),
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "t1gad", "t1post"), Modality.T1CE),
    **dict.fromkeys(("t1", "t1n", "t1pre"), Modality.T1),
    **dict.fromkeys(("t2", "t2w"), Modality.T2),
}


@dataclass(frozen=True)
class Case:
    """The four image files of one patient, and the name that their outputs bear."""

    name: str
    images: Mapping[Modality, Path]


def case_of(images: Mapping[Modality, Path], *, name: str | None = None) -> Case:
    """The case that four files make. Without a name, the stem that all four share, else their folder's name, else FLAIR's stem.

    Raises CaseError when a file is missing, or one file is given for two modalities.
    """
    for modality in CHANNELS:
        _check_regular(images[modality], modality)
    for one, other in itertools.combinations(CHANNELS, 2):
        if images[one].samefile(images[other]):
            raise CaseError(f"{images[one]}: given as {one.display} and as {other.display}; give each modality its own file")
    return Case(name or _common_stem([images[modality] for modality in CHANNELS]), images)


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    for suffix in _NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def modality_in_name(path: Path) -> Modality | None:
    """The modality that the last telling word of a file name stands for; None where none does, or T1w, which may be either."""
    return next((_WORDS[word] for word in reversed(_words(path)) if word in _WORDS), None)


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", stem(path).lower())


def _check_regular(path: Path, modality: Modality) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            reason = "is a link to a file that is missing" if path.is_symlink() else "no such file"
        else:
            reason = f"cannot be read: {error.strerror}"
        raise CaseError(f"{path}: {reason} (given as {modality.display})") from error
    if stat.S_ISDIR(mode):
        raise CaseError(f"{path}: is a folder, not a NIfTI file (given as {modality.display})")
    if not stat.S_ISREG(mode):  # a pipe or a device, which may never end and cannot be read twice
        raise CaseError(f"{path}: is not a regular file (given as {modality.display})")


def _common_stem(paths: list[Path]) -> str:
    stems = [stem(path) for path in paths]
    # Cut back to a whole word: a_t1, a_t1ce, a_t2 and a_flair share "a"; T1w and T1wce share nothing worth a name.
    shared = os.path.commonprefix(stems)  # noqa: RUF071  # of names, not of paths
    name = shared if shared in stems else shared[: max(shared.rfind("_"), shared.rfind("-"), shared.rfind(".")) + 1]
    if name := name.strip("_-. "):
        return name
    folders = {path.absolute().parent for path in paths}
    if len(folders) == 1 and set(_words(paths[0])) <= _WORDS.keys():  # p7/flair.nii.gz, p7/t1.nii.gz: FLAIR's says nothing
        return folders.pop().name or stems[0]
    return stems[0]
