"""One patient's images: which file is which modality. Reads no voxel."""

import errno
import itertools
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError

_NIFTI_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """The four image files of one patient, and the name that their outputs bear."""

    name: str
    images: Mapping[Modality, Path]


def case_of(images: Mapping[Modality, Path], *, name: str | None = None) -> Case:
    """The case that four files make. Without a name, the stem that all four share, else FLAIR's.

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
    return name.strip("_-. ") or stems[0]
