"""What would become of cases and weights, as far as file names and headers tell: for a dry run. No torch, no voxel."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.errors import DrunetError, MisuseError, WeightsError
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning
from drunet_cli.io.images import check_headers
from drunet_cli.segmentation import existing
from drunet_cli.segmentation.existing import State
from drunet_cli.segmentation.outputs import Target
from drunet_cli.segmentation.sidecar import recorded_rate
from drunet_cli.weights.acquisition import metadata_of
from drunet_cli.weights.checkpoint import Metadata, read_metadata
from drunet_cli.weights.registry import (
    BUNDLED,
    PUBLISHED_BN_EPSILON,
    Entry,
    cached_path,
    check_file,
    find_entry,
    is_file,
    is_file_name,
    weights_path,
)
from drunet_cli.weights.sources import read_source

LEAVE_OUT: Final = "verify and leave out"
_THREADS: Final = 8  # four headers a case come from file systems that answer slowly and many at once


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """One case. state: what is there of it. would: what would be done, in words.

    warnings: those that are known before its voxels are. error: what it would fail with, though the run would go on.
    """

    case: Case
    state: State
    would: str
    warnings: tuple[CaseWarning, ...] = ()
    error: DrunetError | None = None


def prospects(tasks: Sequence[tuple[Case, Target]], *, skip_existing: bool) -> list[Prospect]:
    """What would become of cases, in their order. Nothing is written."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda task: _prospect(*task, skip_existing=skip_existing), tasks))


def _prospect(case: Case, target: Target, *, skip_existing: bool) -> Prospect:
    state = existing.state_of(target.label_map, sidecar=target.sidecar)
    try:
        if state is State.FOREIGN and existing.adoptable_sidecar(target.label_map) is not None:
            state = State.COMPLETE
        would = _would(case, target, state, skip_existing=skip_existing)
        warnings = () if would == LEAVE_OUT else check_headers(case)
    except DrunetError as error:
        return Prospect(case=case, state=state, would="fail", error=error)
    return Prospect(case=case, state=state, would=would, warnings=warnings)


def _would(case: Case, target: Target, state: State, *, skip_existing: bool) -> str:
    """Raises OutputError for what is in the way of a run that skips, which fails in that case alone."""
    extras = [os.path.lexists(path) for path in target.extra_paths]
    if target.overwrite:
        return "segment" if state in (State.NEW, State.UNFINISHED) else "overwrite"
    if not skip_existing:
        return "refuse" if state is not State.NEW or any(extras) else "segment"
    if state is State.COMPLETE:
        return LEAVE_OUT if all(extras) else "add missing files"
    if state is not State.UNFINISHED:  # whose remains the run would remove
        if os.path.lexists(target.label_map):
            raise existing.undescribed(target.label_map)
        target.check(case.images)
    return "segment"


def missing_weights(names: Iterable[str], *, sampled: bool) -> list[Entry]:
    """Those of the weights, by name or file, that would be downloaded.

    sampled: with dropout at the rates that they record. Raises MisuseError for weights that record none, and WeightsError for
    a file that holds no weights. Of a .safetensors file only the header is read.
    """
    missing = []
    rates: dict[str, float | None] = {}
    for name in names:
        if not is_file_name(name) and name not in BUNDLED and not is_file(cached_path(name)):
            missing.append(entry := find_entry(name))
            rates[name] = entry.dropout
            continue
        metadata = _of_file(Path(name)) if is_file_name(name) else metadata_of(name)[1]
        rates[metadata.name] = metadata.dropout
    if sampled:
        for name, rate in rates.items():
            recorded_rate(name, rate)
    return missing


def _of_file(path: Path) -> Metadata:
    """Raises WeightsError in the words of the run."""
    check_file(path)
    with path.open("rb") as stream:
        is_safetensors = stream.read(9)[8:] == b"{"
    return read_metadata(path) if is_safetensors else read_source(path, bn_epsilon=PUBLISHED_BN_EPSILON).metadata


def check_distinct(names: Iterable[str]) -> None:
    """Raise MisuseError for weights that are given twice, by whatever name: the mean would be the same."""
    seen: dict[str, str] = {}
    for name in names:
        with suppress(WeightsError):  # of a name that cannot be, which is told elsewhere
            file = os.path.realpath(name if is_file_name(name) else weights_path(name))
            if file in seen:
                raise MisuseError(f"--weights {name}: the same file as --weights {seen[file]}; give it once")
            seen[file] = name
