"""Many cases: the next ones are read while one is computed, and the last ones are written."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from drunet_cli.brats import Modality
from drunet_cli.errors import CaseError, DeviceError, DrunetError, LostDeviceError, OutputError
from drunet_cli.io.atomic import (
    Claim,
    claim_file,
    claimant,
    remove_abandoned_claims,
    remove_stale_folders,
    remove_stale_in,
    waiting_for,
)
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.derivatives import write_colour_tables
from drunet_cli.segmentation.outputs import OutputState, describe
from drunet_cli.segmentation.pipeline import CheckedCase, PredictedCase
from drunet_cli.segmentation.plan import Action, PlannedCase, RunPlan, look_again
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.summary import SummaryRow, enter_rows

_MOST_READERS: Final = 8
_CPUS_A_READER: Final = 4  # a case's four files are inflated at once
_WRITERS: Final = 2
_PUBLISHED_WITHIN_S: Final = 2.0  # by another run that has begun to publish its files of a case
_LOOK_EVERY_S: Final = 0.1  # whether it has
_POLL_S: Final = 0.5  # while another run computes a case
_OUTPUT_SUFFIXES: Final = (".nii.gz", ".json", ".png", ".html", ".txt", ".ctbl", ".csv", ".xlsx", ".tsv", ".dcm", ".claim")


@dataclass(frozen=True)
class CaseResult:
    """A case whose outputs are complete. document: the sidecar's object. left_out: the outputs were complete before."""

    document: dict[str, Any]
    left_out: bool = False


Outcome: TypeAlias = CaseResult | DrunetError
_Read: TypeAlias = tuple[PlannedCase, CheckedCase | Outcome]


def segment_cases(
    plan: RunPlan,
    ensemble: Ensemble,
    *,
    on_warning: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Generator[tuple[PlannedCase, Outcome]]:
    """Carry a plan out: segment every case and write its outputs; yield each with its result, or with the error it met.

    Other runs may work on the same cases: a case is claimed before it is computed, and one that another run has claimed is left
    to that run, and looked at again at the end.

    Raw scans are prepared case by case, each just before it is segmented. The networks are opened when the first case has been
    read, and never when none can be.

    on_warning: called with each warning about a case. on_progress: called with the name of a case, its slices done, and
    its slices in all. on_note: called with a line on each prepared case. All may raise, which ends the run; so does
    every error but the DrunetError of one case. A caller that does not take all outcomes closes the generator: outputs that are
    being written are then completed, and the cases that wait are dropped.
    """
    _remove_stale(plan)
    if any(each.action in (Action.LEAVE_OUT, Action.ADD_FILES) for each in plan.cases):
        _ = ensemble.checkpoints  # existing outputs are compared with the weights, in the threads that read
    n_readers = max(1, min(ensemble.threads // _CPUS_A_READER, _MOST_READERS, len(plan.cases)))
    readers = ThreadPoolExecutor(n_readers, thread_name_prefix="drunet-reader")
    writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="drunet-writer")
    writing: deque[tuple[PlannedCase, Future[Outcome]]] = deque()
    left_to_others: deque[PlannedCase] = deque()

    def begin(planned: PlannedCase) -> "Future[_Read] | None":
        """Begin to read a case; None where another run is preparing the case, which is then left to that run."""
        ready = _prepare(planned, on_note, on_progress)
        if ready is None:
            left_to_others.append(planned)
            return None
        return readers.submit(_read, ready, ensemble)

    prepares = any(each.preparation is not None for each in plan.cases)  # takes all CPUs: none is left to read ahead
    begun = _read_ahead(plan.cases, begin, depth=0 if prepares else n_readers + 1)
    begun_again = _wait_for_others(left_to_others, begin, on_warning)
    try:
        for futures in (begun, begun_again):
            for future in futures:
                planned, checked = future.result()
                del future
                if not isinstance(checked, CheckedCase):
                    yield planned, checked
                    continue
                ensemble.open()  # not while a case is claimed
                if (claim := claim_file(planned.files.label_map)) is None:
                    del checked
                    left_to_others.append(planned)
                    continue
                with ExitStack() as on_failure:
                    on_failure.callback(planned.files.remove_empty_folders)
                    on_failure.callback(claim.release)
                    planned, predicted = _compute(
                        planned,
                        checked,
                        ensemble,
                        claim,
                        alone=plan.cohort.alone,
                        on_warning=on_warning,
                        on_progress=on_progress,
                    )
                    del checked  # its slices
                    if isinstance(predicted, PredictedCase):
                        document = describe(predicted, ensemble)
                        writing.append((planned, writers.submit(_write, planned, predicted, document, ensemble, claim)))
                        on_failure.pop_all()
                if not isinstance(predicted, PredictedCase):
                    yield planned, predicted
                    continue
                del predicted
                # A CPU that computes leaves no time for writing; a case takes long there, so its result is reported at once.
                n_late = 0 if ensemble.engines[0].device == "cpu" else _WRITERS
                yield from _finished(writing, most_late=n_late)
            yield from _finished(writing, most_late=0)
    finally:  # an interrupted run waits for the cases in hand to be read, and for those computed to be written
        readers.shutdown(cancel_futures=True)
        writers.shutdown()


def _finished(
    writing: deque[tuple[PlannedCase, "Future[Outcome]"]], *, most_late: int
) -> Generator[tuple[PlannedCase, Outcome]]:
    """Yield the cases whose outputs are written, in their order; wait where more than `most_late` are being written."""
    while writing and (len(writing) > most_late or writing[0][1].done()):
        planned, outcome = writing.popleft()
        yield planned, outcome.result()


def _remove_stale(plan: RunPlan) -> None:
    """Remove the temporary files and the claims of killed runs, of any case in a folder."""
    remove_stale_folders()
    if plan.summary is None:
        for each in plan.cases:
            each.files.remove_stale()
            remove_abandoned_claims(each.files.label_map.parent)
        return
    for folder in {plan.summary.parent, *(each.files.label_map.parent for each in plan.cases)}:
        remove_stale_in(folder, *_OUTPUT_SUFFIXES)
        remove_abandoned_claims(folder)


def _read_ahead(
    cases: Iterable[PlannedCase], begin: Callable[[PlannedCase], "Future[_Read] | None"], *, depth: int
) -> Generator["Future[_Read]"]:
    """Yield the cases in their order, as they are being read; `depth` more are being read or wait. No slices are kept here."""
    begun: deque[Future[_Read]] = deque()
    for planned in cases:
        begun.extend(future for future in (begin(planned),) if future is not None)
        if len(begun) > depth:
            yield begun.popleft()
    while begun:
        yield begun.popleft()


def _wait_for_others(
    left: deque[PlannedCase], begin: Callable[[PlannedCase], "Future[_Read] | None"], on_warning: Callable[[str], None]
) -> Generator["Future[_Read]"]:
    """Yield the cases that other runs had claimed, once those runs have finished or left them; each is being read again."""
    announced = set()
    while left:
        claimed = [(planned, _claimed(planned)) for planned in left]
        free = [planned for planned, file in claimed if file is None]
        if free:
            left.remove(free[0])
            if (future := begin(replace(free[0], action=Action.LEAVE_OUT))) is not None:
                yield future
                del future
            continue
        for planned, file in claimed:
            if file is not None and planned.case.name not in announced:
                announced.add(planned.case.name)
                work = "segmenting it" if file == planned.files.label_map else "preparing it"
                on_warning(f"{planned.case.name}: {waiting_for(file, work)}")
        time.sleep(_POLL_S)


def _claimed(planned: PlannedCase) -> Path | None:
    """The file of a case that another run has claimed, to segment the case or to prepare it."""
    records = [] if planned.preparation is None else [planned.preparation.files.record]
    return next((file for file in (planned.files.label_map, *records) if claimant(file) is not None), None)


def _prepare(
    planned: PlannedCase, on_note: Callable[[str], None], on_progress: Callable[[str, int, int], None]
) -> PlannedCase | None:
    """Prepare the raw scans of a case, if it has any; the plan keeps a failure. None where another run is preparing them.

    This is done in the main thread, so that Ctrl-C ends it at once.
    """
    if planned.preparation is None or planned.error is not None:
        return planned
    from drunet_cli.prepare.grid import BRATS_SHAPE
    from drunet_cli.prepare.prepared_case import prepare_case

    on_progress(planned.case.name, 0, BRATS_SHAPE[2])
    try:
        result = prepare_case(planned.preparation)
    except DrunetError as error:
        return replace(planned, action=Action.FAIL, error=error)
    if result is None:
        return None
    on_note(result.in_words)
    return planned


def _read(planned: PlannedCase, ensemble: Ensemble) -> _Read:
    """Read a case, or leave it out; return its plan as things are now, and what was read."""
    if planned.error is not None:
        return planned, planned.error
    try:
        if planned.action in (Action.LEAVE_OUT, Action.ADD_FILES):
            planned, document = look_again(planned, ensemble)
            if document is not None:
                return planned, CaseResult(document, left_out=True)
        settings = planned.files.settings
        scans: dict[Modality, Path] = {}
        if settings.dicom_seg and planned.preparation is not None:
            scans = {modality: planned.preparation.case.images[modality] for modality in settings.carried_to}
        checked = pipeline.read_case(
            planned.case,
            shown=settings.shown,
            strict=settings.strict,
            needs_origin=bool(settings.carried_to),
            referred_to=scans,
        )
        return planned, checked
    except DrunetError as error:
        return planned, error
    except MemoryError:
        return planned, DeviceError(f"{planned.case.name}: this machine's memory does not suffice to read the case")


def _compute(
    planned: PlannedCase,
    checked: CheckedCase,
    ensemble: Ensemble,
    claim: Claim,
    *,
    alone: bool,
    on_warning: Callable[[str], None],
    on_progress: Callable[[str, int, int], None],
) -> tuple[PlannedCase, PredictedCase | Outcome]:
    """Predict a case, and tell its warnings, unless another run has made its outputs. Raises the error of a lost device.

    claim: is renewed slice by slice. alone: there is no other case, so that warnings need not name this one.
    """

    def warn(message: str) -> None:
        on_warning(message if alone else f"{planned.case.name}: {message}")

    def tell(done: int, n_slices: int) -> None:
        claim.renew()
        on_progress(planned.case.name, done, n_slices)

    try:
        planned, document = look_again(planned, ensemble)
        if document is not None:
            return planned, CaseResult(document, left_out=True)
        for warning in checked.warnings:
            warn(warning.message)
        predicted = pipeline.segment(checked, ensemble, on_progress=tell)
        for warning in predicted.new_warnings:
            warn(warning.message)
    except LostDeviceError:  # the next case would fare no better
        raise
    except DrunetError as error:
        return planned, error
    except MemoryError:
        return planned, DeviceError(f"{planned.case.name}: this machine's memory does not suffice for the case")
    return planned, predicted


def _write(
    planned: PlannedCase, predicted: PredictedCase, document: dict[str, Any], ensemble: Ensemble, claim: Claim
) -> Outcome:
    """Write the outputs of a case, unless another run has done so in spite of the claim; release the claim."""
    try:
        return CaseResult(planned.files.write(predicted, document, adding=planned.action is Action.ADD_FILES))
    except OutputError as error:
        return _made_by_another_run(planned, ensemble, error)
    except CaseError as error:  # headers of a DICOM series
        return error
    except MemoryError:
        return DeviceError(f"{planned.case.name}: this machine's memory does not suffice to write the label map")
    finally:
        claim.release()


def _made_by_another_run(planned: PlannedCase, ensemble: Ensemble, error: OutputError) -> Outcome:
    """The outcome of a case whose outputs cannot be written: outputs of another run that are the same, or else the error."""
    until = time.monotonic() + _PUBLISHED_WITHIN_S
    while planned.files.state() is OutputState.UNFINISHED and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)  # the sidecar appears a moment before its label map
    if planned.files.state() is not OutputState.COMPLETE:
        return error
    try:
        _, document = look_again(planned, ensemble)
    except DrunetError as difference:
        return difference
    return error if document is None else CaseResult(document, left_out=True)


def enter_rows_of(plan: RunPlan, rows: Sequence[SummaryRow], *, on_warning: Callable[[str], None]) -> OutputError | None:
    """Enter the rows of a run into the table; return the error of a table that cannot be written, which undoes no case.

    on_warning: called where the workbook beside the table is not written.
    """
    assert plan.summary is not None, "the run has a table"
    try:
        if not (plan.cohort.alone or all(row.has_failed for row in rows)):
            write_colour_tables(plan.summary.parent)
        overwrite = plan.settings.overwrite and not plan.cohort.alone
        enter_rows(plan.summary, rows, overwrite=overwrite, on_warning=on_warning)
    except OutputError as error:
        return error
    return None
