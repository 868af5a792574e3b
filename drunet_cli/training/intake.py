"""Cases into the store, each read and checked once. No torch."""

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import check_writable, written
from drunet_cli.io.inputs import file_sha256, stamp
from drunet_cli.training.sources import TrainingCase, read_labelled_slices
from drunet_cli.training.store import SCHEMAS, Input, StoredCase, digest, encoded_case, path_in_store

_HEAD_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class StoreTask:
    """One case to prepare. write: False to check everything and leave the store as it is.

    expected: SHA-256 of the files that it must be made of, by role, None for any.
    """

    case: TrainingCase
    folder: Path
    write: bool = True
    expected: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """A case that is in the store, or could be. reused: it was there before; n_bytes: of its file; warnings: of its images."""

    name: str
    path: Path
    n_slices: int
    n_tumour_slices: int
    n_bytes: int
    seconds: float
    reused: bool = False
    warnings: tuple[str, ...] = ()


def prepare_case(task: StoreTask) -> PreparedCase:
    """Put a case into the store, unless it is there already, made from the same files.

    Raises CaseError for a case that cannot be learnt from, OutputError for a file of its name that is not a store's, and for a
    folder that cannot be written.
    """
    begin = time.perf_counter()
    path = path_in_store(task.case.name, task.folder)
    stamps = _stamps(task.case.inputs)
    stored = _existing(path, task.case, stamps)
    if stored is not None:
        _check_expected(task, stored.inputs)
        return _reused(stored, begin)
    check_writable(path, overwrite=True)
    read = read_labelled_slices(task.case)
    inputs = {
        role: Input(paths[0].name if len(paths) == 1 else role, *stamps[role], _sha256(paths))
        for role, paths in task.case.inputs.items()
    }
    if _stamps(task.case.inputs) != stamps:
        raise CaseError(f"{task.case.place}: the files of {task.case.name} have changed while they were read; start again")
    _check_expected(task, inputs)
    content = encoded_case(task.case.name, read, inputs)
    if task.write and _existing(path, task.case, stamps) is None:  # another run may have been faster, and may be reading it
        with written(path, overwrite=True) as stream:
            stream.write(content)
    return PreparedCase(
        name=task.case.name,
        path=path,
        n_slices=len(read.classes),
        n_tumour_slices=int(np.count_nonzero(read.classes.any(axis=(1, 2)))),
        n_bytes=len(content),
        seconds=time.perf_counter() - begin,
        warnings=read.warnings,
    )


def _check_expected(task: StoreTask, inputs: Mapping[str, Input]) -> None:
    if task.expected is not None and {role: found.sha256 for role, found in inputs.items()} != task.expected:
        raise CaseError(
            f"{task.case.place}: {task.case.name}: its files are not those that were trained on until now; begin a new run"
        )


def _reused(stored: StoredCase, begin: float) -> PreparedCase:
    return PreparedCase(
        name=stored.name,
        path=stored.path,
        n_slices=stored.n_slices,
        n_tumour_slices=int(np.count_nonzero(stored.tumour_boxes.any(axis=1))),
        n_bytes=stored.path.stat().st_size,
        seconds=time.perf_counter() - begin,
        reused=True,
    )


def _existing(path: Path, case: TrainingCase, stamps: Mapping[str, tuple[int, str]]) -> StoredCase | None:
    """The case as it is in the store, None where it is to be made. Raises OutputError for a file that is not a store's."""
    try:
        stored = StoredCase(path)
    except CaseError as error:
        if os.path.lexists(path) and not _is_ours(path):
            raise OutputError(f"{path}: is no case of drunet's store; remove it, or name another folder") from error
        return None
    inputs = case.inputs
    if stored.name != case.name or stored.inputs.keys() != inputs.keys():
        return None
    for role, before in stored.inputs.items():
        if (before.n_bytes, before.stamp) == stamps[role]:
            continue
        if before.n_bytes != stamps[role][0] or before.sha256 != _sha256(inputs[role]):
            return None
    return stored


def _is_ours(path: Path) -> bool:
    """Whether a file is a store's, of any version and however damaged; or empty, as a machine may leave that lost its power."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return SCHEMAS in head or not head.strip(b"\0")


def _stamps(inputs: Mapping[str, Sequence[Path]]) -> dict[str, tuple[int, str]]:
    """Bytes and stamp of each input. Raises CaseError for a file that is not there."""
    return {role: _stamp_of(paths) for role, paths in inputs.items()}


def _stamp_of(paths: Sequence[Path]) -> tuple[int, str]:
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    files = [(folders[path.parent], path.name, (status := stamp(path)).st_size, status.st_mtime_ns) for path in paths]
    return sum(size for _, _, size, _ in files), digest(files)


def _sha256(paths: Sequence[Path]) -> str:
    try:
        contents = [(path.parent.name, path.name, file_sha256(path)) for path in paths]
    except OSError as error:
        raise CaseError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return contents[0][-1] if len(contents) == 1 else digest(contents)
