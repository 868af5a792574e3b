"""Many cases: the next ones are read while one is computed, and the last ones are written."""

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from drunet_cli.errors import DeviceError, DrunetError, LostDeviceError, OutputError
from drunet_cli.io.atomic import remove_stale_in
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.ensemble import Ensemble
from drunet_cli.segmentation.outputs import describe
from drunet_cli.segmentation.pipeline import PredictedCase, PreparedCase
from drunet_cli.segmentation.plan import Action, PlannedCase, RunPlan, same_document

_MOST_READERS: Final = 8
_CPUS_A_READER: Final = 4  # a case's four files are inflated at once
_WRITERS: Final = 2
_PUBLISHED_WITHIN_S: Final = 2.0  # by another run that has begun to publish its files of a case
_OUTPUT_SUFFIXES: Final = (".nii.gz", ".json", ".png", ".csv")


@dataclass(frozen=True)
class CaseResult:
    """A case whose outputs are complete. document: the sidecar's object. left_out: the outputs were complete before."""

    document: dict[str, Any]
    left_out: bool = False


Outcome: TypeAlias = CaseResult | DrunetError
_Read: TypeAlias = tuple[PlannedCase, PreparedCase | Outcome]


def segment_cases(
    plan: RunPlan,
    ensemble: Ensemble,
    *,
    on_warning: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Generator[tuple[PlannedCase, Outcome]]:
    """Carry a plan out: segment every case and write its outputs; yield each with its result, or with the error it met.

    The networks are opened when the first case has been read, and never when none can be. on_warning: called with what is
    remarkable about a case. on_progress: called with the name of a case, its slices done, and its slices in all. Both may raise
    to end the run, as may anything but a DrunetError of one case. Whoever does not take all outcomes closes the generator: the
    outputs that are being written are then written whole, and the cases that wait are dropped.
    """
    _remove_stale(plan)
    if any(each.action in (Action.LEAVE_OUT, Action.ADD_FILES) for each in plan.cases):
        _ = ensemble.checkpoints  # existing outputs are compared with the weights, in the threads that read
    n_readers = max(1, min(ensemble.threads // _CPUS_A_READER, _MOST_READERS, len(plan.cases)))
    readers = ThreadPoolExecutor(n_readers, thread_name_prefix="drunet-reader")
    writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="drunet-writer")
    written: deque[tuple[PlannedCase, Future[Outcome]]] = deque()
    try:
        for future in _read_ahead(plan, ensemble, readers, depth=n_readers + 1):
            planned, prepared = future.result()
            del future
            if not isinstance(prepared, PreparedCase):
                yield planned, prepared
                continue

            def tell(done: int, n_slices: int, name: str = planned.case.name) -> None:
                on_progress(name, done, n_slices)

            def warn(message: str, name: str = planned.case.name) -> None:
                on_warning(message if plan.cohort.alone else f"{name}: {message}")

            predicted = _compute(planned, prepared, ensemble, on_warning=warn, on_progress=tell)
            del prepared  # its slices
            if not isinstance(predicted, PredictedCase):
                yield planned, predicted
                continue
            written.append((planned, writers.submit(_write, planned, predicted, describe(predicted, ensemble), ensemble)))
            del predicted
            # A CPU that computes has no time left for writing, and takes so long for a case that it is told at once.
            n_late = 0 if ensemble.engines[0].device == "cpu" else _WRITERS
            while written and (len(written) > n_late or written[0][1].done()):
                done, outcome = written.popleft()
                yield done, outcome.result()
        for done, outcome in written:
            yield done, outcome.result()
    finally:  # an interrupted run waits for the cases in hand to be read, and for those computed to be written
        readers.shutdown(cancel_futures=True)
        writers.shutdown()


def _remove_stale(plan: RunPlan) -> None:
    """Remove the temporary files of killed runs, of any case in the folder."""
    if plan.summary is None:
        for each in plan.cases:
            each.files.remove_stale()
    else:
        for suffix in _OUTPUT_SUFFIXES:
            remove_stale_in(plan.summary.parent, suffix=suffix)


def _read_ahead(plan: RunPlan, ensemble: Ensemble, readers: ThreadPoolExecutor, *, depth: int) -> Generator["Future[_Read]"]:
    """Yield the cases in their order, as they are being read; `depth` more are being read or wait. No slices are kept here."""
    waiting = iter(plan.cases)
    begun: deque[Future[_Read]] = deque()

    def begin() -> None:
        if (planned := next(waiting, None)) is not None:
            begun.append(readers.submit(_read, planned, ensemble))

    for _ in range(depth):
        begin()
    while begun:
        begin()
        yield begun.popleft()


def _read(planned: PlannedCase, ensemble: Ensemble) -> _Read:
    """Read a case, or leave it out. The plan of the case comes back as it is to be carried out."""
    case, files = planned.case, planned.files
    if planned.error is not None:
        return planned, planned.error
    try:
        if planned.action in (Action.LEAVE_OUT, Action.ADD_FILES):
            document = same_document(case, files, ensemble)
            if document is None:  # removed since the plan was made
                planned = replace(planned, action=Action.SEGMENT)
                files.check(case.files.values())
            elif files.has_extras(document):
                return planned, CaseResult(document, left_out=True)
            else:
                planned = replace(planned, action=Action.ADD_FILES)
        return planned, pipeline.prepare(case, keep_views=files.settings.preview)
    except DrunetError as error:
        return planned, error
    except MemoryError:
        return planned, DeviceError(f"{case.name}: this machine's memory does not suffice to read the case")


def _compute(
    planned: PlannedCase,
    prepared: PreparedCase,
    ensemble: Ensemble,
    *,
    on_warning: Callable[[str], None],
    on_progress: Callable[[int, int], None],
) -> PredictedCase | Outcome:
    """Predict a case, and tell its warnings. Raises what concerns all cases: networks that cannot be opened, a lost device."""
    _ = ensemble.engines
    try:
        if (result := _finished_by_another_run(planned, ensemble)) is not None:
            return result
        for warning in prepared.warnings:
            on_warning(warning.message)
        predicted = pipeline.segment(prepared, ensemble, on_progress=on_progress)
        for warning in predicted.new_warnings:
            on_warning(warning.message)
    except LostDeviceError:  # the next case would fare no better
        raise
    except DrunetError as error:
        return error
    except MemoryError:
        return DeviceError(f"{planned.case.name}: this machine's memory does not suffice for the case")
    return predicted


def _write(planned: PlannedCase, predicted: PredictedCase, document: dict[str, Any], ensemble: Ensemble) -> Outcome:
    """Write the outputs of a case, unless another run has done so meanwhile."""
    try:
        return CaseResult(planned.files.write(predicted, document, adding=planned.action is Action.ADD_FILES))
    except OutputError as error:
        until = time.monotonic() + _PUBLISHED_WITHIN_S
        try:
            while (result := _finished_by_another_run(planned, ensemble)) is None and time.monotonic() < until:
                if not planned.files.settings.skip_existing:
                    break
                time.sleep(_PUBLISHED_WITHIN_S / 20)  # its sidecar appears a moment before its label map
        except DrunetError:
            return error
        return result or error
    except MemoryError:
        return DeviceError(f"{planned.case.name}: this machine's memory does not suffice to write the label map")


def _finished_by_another_run(planned: PlannedCase, ensemble: Ensemble) -> CaseResult | None:
    """The result of another run over the same cases that has finished this one since the plan was made.

    Raises DrunetError for outputs that are not those that this run would make.
    """
    if not planned.files.settings.skip_existing or planned.action is Action.ADD_FILES:
        return None
    document = same_document(planned.case, planned.files, ensemble)
    return CaseResult(document, left_out=True) if document is not None and planned.files.has_extras(document) else None
