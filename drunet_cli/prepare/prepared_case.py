"""The files of a prepared case, the plan of a run, and the carrying out. The record, CASE.json, is published last.

Where the record is, everything beside it is. A case whose files are being published bears a mark, `.unfinished`, so that what a
killed run has left is drunet's to replace, and nothing else is.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, DeviceError, DrunetError, OutputError, changed_since, join_some
from drunet_cli.host import is_out_of_memory
from drunet_cli.io.atomic import (
    Claim,
    check_not_an_input,
    check_writable,
    claim_file,
    create_folder,
    publish,
    publish_together,
    remove_abandoned_claims,
    remove_stale,
    remove_stale_folders,
    waiting_for,
)
from drunet_cli.io.case import Case
from drunet_cli.io.checks import refuse_serious
from drunet_cli.io.inputs import InputFile, sha256_of
from drunet_cli.io.nifti import encode_again, encode_map
from drunet_cli.prepare.grid import brats_header
from drunet_cli.prepare.preparation import Preparation, PreparationSettings, draw_overview, prepare_scans
from drunet_cli.prepare.record import describe_preparation, picture_beside, read_record, record_beside
from drunet_cli.prepare.scans import changed_scans
from drunet_cli.processes import hold_signals, run_tasks

_REMEDY: Final = "give --overwrite to prepare the case again"
_POLL_S: Final = 0.5
_THREADS: Final = 8  # file systems that answer slowly answer many questions at once


class PreparationState(StrEnum):
    """The state of a prepared case before a run."""

    NEW = "new"
    COMPLETE = "prepared"
    UNFINISHED = "unfinished"  # a run was killed: these files are drunet's to replace
    FOREIGN = "foreign file"  # not described by drunet: never replaced unasked


class PreparationAction(StrEnum):
    """The work of a run on one case."""

    PREPARE = "prepare"
    PREPARE_AGAIN = "prepare again"
    VERIFY = "verify and leave out"
    REFUSE = "refuse"
    FAIL = "fail"


@dataclass(frozen=True)
class PreparedFiles:
    """The paths of one case's files. root: the folder that has a folder of each case."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """The folder of the case."""
        return self.root / self.name

    @property
    def record(self) -> Path:
        """The record of the preparation, in JSON."""
        return self.folder / f"{self.name}.json"

    @property
    def brain(self) -> Path:
        """The brain mask."""
        return self.folder / f"{self.name}_brain.nii.gz"

    @property
    def picture(self) -> Path:
        """The four images with the outline of the brain."""
        return picture_beside(self.record)

    @property
    def mark(self) -> Path:
        """An empty file that stands while files are being published."""
        return self.folder / ".unfinished"

    @property
    def images(self) -> dict[Modality, Path]:
        """The four images on the BraTS grid."""
        return {modality: self.folder / f"{self.name}_{modality}.nii.gz" for modality in CHANNELS}

    @property
    def paths(self) -> list[Path]:
        """Every file that may be written."""
        return [self.record, *self.images.values(), self.brain, self.picture]

    def state(self) -> PreparationState:
        """The state of these files."""
        if read_record(self.record) is not None:
            return PreparationState.COMPLETE
        if os.path.lexists(self.mark):
            return PreparationState.UNFINISHED
        return PreparationState.FOREIGN if any(map(os.path.lexists, self.paths)) else PreparationState.NEW


@dataclass(frozen=True)
class PlannedPreparation:
    """The plan of one case. error: why the case fails, though the run goes on."""

    case: Case
    files: PreparedFiles
    settings: PreparationSettings
    state: PreparationState
    action: PreparationAction
    error: DrunetError | None = None

    @property
    def differs(self) -> bool:
        """Whether the case fails though its files are complete, which are then not known to be those that are asked for."""
        return self.error is not None and self.state is PreparationState.COMPLETE

    def remove_unless_kept(self) -> None:
        """Remove the files of the case where they are for this run alone."""
        if not self.settings.keep:
            shutil.rmtree(self.files.folder, ignore_errors=True)


@dataclass(frozen=True)
class PreparedResult:
    """A case whose files are complete. document: the object of the record. left_out: the files were complete before."""

    document: dict[str, Any]
    left_out: bool = False

    @property
    def in_words(self) -> str:
        """The preparation in one line, for `document` as it was written."""
        document = self.document
        if self.left_out:
            return f"{document['case']}: complete, left out"
        how = f"{document['seconds']:.1f} s"
        if document["untouched"]:
            return f"{document['case']}: prepared already (BraTS grid, stripped), its voxels were not touched ({how})"
        moves = [f"{Modality(name).display} {move['mm']:.1f} mm" for name, move in document["moved"].items() if move["mm"]]
        moved = f"moved {join_some(moves)}" if moves else "no scan had to be moved"
        brain = document["brain"]
        return f"{document['case']}: {moved}; brain {brain['volume_ml'] / 1000:.2f} litres by {brain['method']} ({how})"


def plan_preparations(cases: Sequence[Case], settings: PreparationSettings) -> list[PlannedPreparation]:
    """Decide what will be done with every case. Nothing is written, and no scan is read."""
    planned = []
    for case in cases:
        files = PreparedFiles(settings.folder, case.name)
        state = files.state()
        if state in (PreparationState.NEW, PreparationState.UNFINISHED):
            action = PreparationAction.PREPARE
        elif settings.overwrite:
            action = PreparationAction.PREPARE_AGAIN
        else:
            verify = state is PreparationState.COMPLETE and settings.skip_existing
            action = PreparationAction.VERIFY if verify else PreparationAction.REFUSE
        record = record_beside(case)
        error: DrunetError | None = None
        if record is not None and case.images[Modality.FLAIR].name in (read_record(record) or {}).get("files", ()):
            action, error = PreparationAction.FAIL, CaseError(f"{case.name}: {record} says that {_PREPARED_ALREADY}")
        planned.append(PlannedPreparation(case, files, settings, state, action, error))
    return planned


# A second preparation would take the images for the scans, and carry labels back to them.
_PREPARED_ALREADY: Final = "drunet has prepared these images; give them to drunet segment without --prepare, or name raw scans"


def compare_preparations(planned: Sequence[PlannedPreparation]) -> list[PlannedPreparation]:
    """The same plan with complete files compared, for a dry run; a run compares case by case."""

    def compared(each: PlannedPreparation) -> PlannedPreparation:
        try:
            if each.action is not PreparationAction.VERIFY or _complete_files(each) is not None:
                return each
            return replace(each, action=PreparationAction.PREPARE_AGAIN)  # for its picture
        except DrunetError as error:
            return replace(each, action=PreparationAction.FAIL, error=error)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(compared, planned))


def check_preparations(planned: Sequence[PlannedPreparation]) -> None:
    """Raise OutputError before any work for files that would be overwritten unasked, or cannot be written."""
    if refused := [each for each in planned if each.action is PreparationAction.REFUSE]:
        first = refused[0].files
        found = next(path for path in first.paths if os.path.lexists(path))
        others = f", and files of {len(refused) - 1} more of {len(planned)} cases" if len(refused) > 1 else ""
        skip = "--skip-existing to leave out what is complete, or " if refused[0].state is PreparationState.COMPLETE else ""
        raise OutputError(f"{found}: exists already{others}; give {skip}--overwrite")
    for each in planned:
        for path in each.files.paths if each.error is None else ():
            check_writable(path, overwrite=True)
            check_not_an_input(path, each.case.images.values())


def prepare_cases(
    planned: Sequence[PlannedPreparation], *, n_processes: int, on_warning: Callable[[str], None]
) -> Generator[tuple[PlannedPreparation, PreparedResult | DrunetError]]:
    """Carry a plan out: yield every case with its result, or the error it met. Cases that other runs have claimed come last.

    on_warning: called with what is remarkable about the run. A caller who may not take all outcomes closes the generator.
    """
    remove_stale_folders()
    waiting = list(planned)
    for wait in (False, True):
        turn, waiting = waiting, []
        for each in turn if wait else ():
            on_warning(f"{each.case.name}: {waiting_for(each.files.record, 'preparing it')}")
        work = partial(prepare_case, wait=wait)
        with closing(run_tasks(work, turn, n_processes=n_processes)) as outcomes:
            for each, outcome in outcomes:
                if outcome is None:
                    waiting.append(each)
                else:
                    yield each, outcome


def prepare_case(planned: PlannedPreparation, *, wait: bool = False) -> PreparedResult | None:
    """Prepare a case and write its files; None where another run is preparing it. wait: wait for that run instead.

    Raises DrunetError as `prepare_scans` does, and OutputError for files that are there and are not those that are asked for.
    """
    if planned.error is not None:
        raise planned.error
    files = planned.files
    with create_folder(files.folder):
        remove_abandoned_claims(files.folder)
        while (claim := claim_file(files.record)) is None:
            if not wait:
                return None
            time.sleep(_POLL_S)
        try:
            return _complete_files(planned) or _prepare_and_write(planned, claim)
        finally:
            claim.release()


def _complete_files(planned: PlannedPreparation) -> PreparedResult | None:
    """The files that are there, where they are complete and what this run would make; None where something is to be made.

    Raises OutputError for files of other scans or settings.
    """
    files, settings = planned.files, planned.settings
    if planned.action is PreparationAction.PREPARE_AGAIN or (known := read_record(files.record)) is None:
        return None
    if not settings.skip_existing:  # another run has prepared it meanwhile
        raise OutputError(f"{files.record}: exists already; {_REMEDY}")
    _check_same(known, files, planned.case, settings)
    return None if settings.preview and files.picture.name not in known["files"] else PreparedResult(known, left_out=True)


def _prepare_and_write(planned: PlannedPreparation, claim: Claim) -> PreparedResult:
    files, settings = planned.files, planned.settings
    _check_free(files, settings)
    try:
        with claim.keep_renewed():
            return PreparedResult(_write(prepare_scans(planned.case, settings), files, settings))
    except (MemoryError, RuntimeError) as error:  # PyTorch, in deepbet, and ITK raise the latter
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"{planned.case.name}: this machine's memory does not suffice to prepare the case") from error


def _check_free(files: PreparedFiles, settings: PreparationSettings) -> None:
    """Raise OutputError for files that no record describes, unless they are to be overwritten."""
    if files.state() is PreparationState.FOREIGN and not settings.overwrite:
        found = next(path for path in files.paths if os.path.lexists(path))
        raise OutputError(f"{found}: exists already, and no record says that drunet made it; {_REMEDY}, or name another DIR")


def _check_same(known: Mapping[str, Any], files: PreparedFiles, case: Case, settings: PreparationSettings) -> None:
    """Raise OutputError where complete files are those of other scans or settings, or have been changed."""
    try:
        before, named = known["settings"], known["files"]
        inputs = {name: InputFile(**entry) for name, entry in known["inputs"].items()}
        warnings = [(warning["code"], warning["message"]) for warning in known["warnings"]]
        for name, value in settings.recorded().items():
            if before[name] != value:
                raise OutputError(f"{files.record}: was prepared with {name} {before[name]}, now {value}; {_REMEDY}")
        for name, path in settings.files.items():
            if known[name]["sha256"] != sha256_of(path):
                raise OutputError(f"{files.record}: was prepared with another {path} than it is now; {_REMEDY}")
        for path in changed_scans(inputs, case):
            raise OutputError(f"{files.record}: was prepared of another file than {path} is now; {_REMEDY}")
        for name, sha256 in named.items():
            if not os.path.lexists(file := files.folder / name):
                raise OutputError(f"{file}: is missing; {_REMEDY}")
            if sha256_of(file, error=OutputError) != sha256:
                raise OutputError(changed_since(file, then="prepare the case again"))
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{files.record}: was written by another version of drunet; {_REMEDY}") from error
    if settings.strict:
        refuse_serious(warnings)


def _write(preparation: Preparation, files: PreparedFiles, settings: PreparationSettings) -> dict[str, Any]:
    """Write all files, the record last; return the record's object."""
    contents = _encoded(preparation, files, settings)
    document = {
        **describe_preparation(preparation, settings),
        "files": {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()},
    }
    outdated = [path for path in files.paths if path not in contents and path != files.record]
    with hold_signals():
        _check_free(files, settings)  # again, as it was a while ago
        known = files.state() is not PreparationState.NEW
        for path in files.paths:
            remove_stale(path)
        contents = {files.record: json.dumps(document, indent=2).encode() + b"\n", **contents}
        with publish_together(contents, replaceable=contents):
            publish(files.mark, b"", overwrite=True)
            if known:
                files.record.unlink(missing_ok=True)
                for path in outdated:
                    path.unlink(missing_ok=True)
        files.mark.unlink(missing_ok=True)
    return document


def _encoded(preparation: Preparation, files: PreparedFiles, settings: PreparationSettings) -> dict[Path, bytes]:
    """Every file but the record, with its content."""

    def encode(voxels: npt.NDArray[Any]) -> bytes:
        return encode_map(voxels, brats_header(voxels.dtype), compress=True)

    def encode_image(modality: Modality) -> bytes:
        volume = preparation.scans[modality].volume
        is_file = volume.path == preparation.case.images[modality]  # and no DICOM series
        return encode_again(volume) if preparation.untouched and is_file else encode(preparation.images[modality])

    with ThreadPoolExecutor(settings.threads) as threads:  # deflate runs outside the interpreter's lock
        contents = dict(zip(files.images.values(), threads.map(encode_image, files.images), strict=True))
    contents[files.brain] = encode(preparation.brain.view(np.uint8))
    if settings.preview:
        contents[files.picture] = draw_overview(preparation)
    return contents
