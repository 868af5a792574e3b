"""Many cases: the next are read while one is computed, and the last are written.

Reading and writing happen in threads, whose work is done outside the interpreter's lock. What waits between them is bounded:
one case for each reader and one more, and one for each writer, whatever the cohort's size. One device computes in the
caller's thread, which an interruption reaches at once; several compute in a thread each and share the cases.
"""

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from drunet_cli.errors import DeviceError, DrunetError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import Engine
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.existing import Making, adopt_sidecar, finished_document
from drunet_cli.segmentation.outputs import Extra, Target
from drunet_cli.segmentation.pipeline import PreparedCase, Segmentation
from drunet_cli.segmentation.postprocess import NO_POSTPROCESSING, Postprocessing
from drunet_cli.segmentation.predict import Plan
from drunet_cli.segmentation.sidecar import Dropout, describe_settings, encode_sidecar, read_sidecar

_MOST_READERS: Final = 8
_CPUS_A_READER: Final = 4  # a case's four files are inflated at once
_WRITERS: Final = 2


@dataclass(frozen=True)
class CaseTask:
    """One case to segment. skip_if: outputs are there, and it is left out if they are complete and were made so, else fails."""

    case: Case
    target: Target
    skip_if: Making | None = None


@dataclass(frozen=True)
class CaseResult:
    """A case whose outputs are complete. document: the sidecar's object; left_out: they were so before.

    new_warnings: those that were not known when the case had been read.
    """

    document: dict[str, Any]
    new_warnings: tuple[CaseWarning, ...] = ()
    left_out: bool = False


Outcome: TypeAlias = CaseResult | DrunetError
_Computed: TypeAlias = tuple[Segmentation, dict[str, Any]] | Outcome


@dataclass(frozen=True, kw_only=True)
class Network:
    """What computes: the opened weights, and for each device an engine for each of them.

    plan, postprocessing: what is asked of it. dropout: of the plan's samples. making: where outputs that appear meanwhile are
    those of another run at the same cases, what they must be made with.
    """

    checkpoints: Sequence[Checkpoint]
    engines: Sequence[Sequence[Engine]]
    plan: Plan
    postprocessing: Postprocessing = NO_POSTPROCESSING
    dropout: Dropout | None = None
    making: Making | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As the sidecar has them."""
        return describe_settings(self.plan, self.postprocessing, self.dropout)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Is told how a run goes, from any thread, and may raise to end it.

    on_read: of a case before it is computed. on_progress: the name of a case, its slices done, and its slices in all.
    """

    on_read: Callable[[PreparedCase], None] = lambda _: None
    on_progress: Callable[[str, int, int], None] = lambda *_: None


_NOBODY: Final = Listener()


def segment_cases(
    tasks: Sequence[CaseTask],
    open_network: Callable[[], Network],
    *,
    n_cpus: int,
    listener: Listener = _NOBODY,
) -> Generator[tuple[CaseTask, Outcome]]:
    """Segment every case and write its outputs; yield each task with its result, or with the DrunetError that it met.

    open_network: called once, when the first case has been read; never when none can be. To be closed by whoever does not take
    all: what is being written then is written whole, and what waited is dropped. Whatever else than a DrunetError is raised
    ends the run.
    """
    n_readers = max(1, min(n_cpus // _CPUS_A_READER, _MOST_READERS, len(tasks)))
    readers = ThreadPoolExecutor(n_readers, thread_name_prefix="drunet-reader")
    writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="drunet-writer")
    try:
        ahead = _Ahead(tasks, readers, depth=n_readers + 1)
        while (taken := ahead.take()) is not None:
            task, prepared = taken
            if isinstance(prepared, PreparedCase):
                break
            yield task, prepared
        else:
            return
        network = open_network()
        ahead.put_back(task, prepared)
        del prepared, taken  # its slices
        if len(network.engines) == 1:
            yield from _one_after_another(ahead, network, writers, listener)
        else:
            with closing(_side_by_side(ahead, network, writers, listener)) as outcomes:
                yield from outcomes
    finally:  # an interrupted run waits for the cases in hand to be read, and for those computed to be written
        readers.shutdown(cancel_futures=True)
        writers.shutdown()


class _Ahead:
    """Cases in their order, read before they are asked for, so many at once. For any number of threads."""

    def __init__(self, tasks: Sequence[CaseTask], readers: ThreadPoolExecutor, *, depth: int) -> None:
        self._waiting = iter(tasks)
        self._readers = readers
        self._depth = depth
        self._begun: deque[Future[tuple[CaseTask, PreparedCase | Outcome]]] = deque()
        self._lock = threading.Lock()
        for _ in range(depth):
            self._begin()

    def _begin(self) -> None:
        task = next(self._waiting, None)
        if task is not None:
            self._begun.append(self._readers.submit(_read, task))

    def take(self) -> tuple[CaseTask, PreparedCase | Outcome] | None:
        """The next case as soon as it has been read; None after the last."""
        with self._lock:
            if not self._begun:
                return None
            future = self._begun.popleft()
            if len(self._begun) < self._depth:
                self._begin()
        return future.result()

    def put_back(self, task: CaseTask, prepared: PreparedCase) -> None:
        """Make a case the next to be taken again."""
        future: Future[tuple[CaseTask, PreparedCase | Outcome]] = Future()
        future.set_result((task, prepared))
        self._begun.appendleft(future)


def _read(task: CaseTask) -> tuple[CaseTask, PreparedCase | Outcome]:
    try:
        if task.skip_if is not None:
            document = finished_document(task.target.label_map, task.case, task.skip_if)
            if document is None:  # something else may be in the way: known before the work
                task.target.check(task.case.images)
            elif task.target.has_extras:
                return task, CaseResult(document, left_out=True)
            else:  # the label map will be the same again, with the files that are missing beside it
                task = replace(task, target=replace(task.target, overwrite=True))
        return task, pipeline.prepare(task.case, keep_views=Extra.PREVIEW in task.target.extras)
    except DrunetError as error:
        return task, error
    except MemoryError:
        return task, DeviceError(f"{task.case.name}: this machine's memory does not suffice to read the case")


def _left_out(task: CaseTask, making: Making | None) -> CaseResult | None:
    """A case whose outputs are there, all of them. Raises DrunetError where they are not as they should be."""
    document = None if making is None else finished_document(task.target.label_map, task.case, making)
    if document is None or not task.target.has_extras:
        return None
    return CaseResult(document, left_out=True)


def _compute(
    task: CaseTask, prepared: PreparedCase, engines: Sequence[Engine], network: Network, listener: Listener
) -> _Computed:
    name = task.case.name
    try:
        if (left_out := _left_out(task, network.making)) is not None:
            return left_out
        listener.on_read(prepared)
        segmentation = pipeline.segment(
            prepared,
            engines,
            plan=network.plan,
            postprocessing=network.postprocessing,
            on_progress=lambda done, total: listener.on_progress(name, done, total),
        )
    except DrunetError as error:
        return error
    except MemoryError:
        return DeviceError(f"{name}: this machine's memory does not suffice for the case")
    return segmentation, pipeline.describe(segmentation, engines[0], network.checkpoints, network.settings)


def _begin_to_write(task: CaseTask, computed: _Computed, network: Network, writers: ThreadPoolExecutor) -> Future[Outcome]:
    if isinstance(computed, tuple):
        return writers.submit(_write, task, *computed, network.making)
    return _known(computed)


def _write(task: CaseTask, segmentation: Segmentation, document: dict[str, Any], making: Making | None) -> Outcome:
    new_warnings = segmentation.warnings[len(segmentation.prepared.warnings) :]
    try:
        return CaseResult(task.target.write(segmentation, document), new_warnings)
    except OutputError as error:
        if (published := _published_by_another(task, document)) is not None:
            return CaseResult(published, new_warnings)
        try:
            if making is not None:
                adopt_sidecar(task.target.label_map)  # of another run that is about to publish it
            return _left_out(task, making) or error
        except DrunetError:
            return error
    except MemoryError:
        return DeviceError(f"{task.case.name}: this machine's memory does not suffice to write the label map")


def _published_by_another(task: CaseTask, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar's object where a run that has just begun took this one for killed, and has published its sidecar for it."""
    found = read_sidecar(task.target.sidecar_path)
    ours = {**json.loads(encode_sidecar(document)), "output": str(task.target.label_map)}
    return found if found is not None and ours.items() <= found.items() else None


def _known(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def _ended(task: CaseTask, future: Future[Outcome]) -> tuple[CaseTask, Outcome]:
    return task, future.result()


def _one_after_another(
    ahead: _Ahead, network: Network, writers: ThreadPoolExecutor, listener: Listener
) -> Iterator[tuple[CaseTask, Outcome]]:
    (engines,) = network.engines
    # A CPU that computes has nothing over for writing at the same time, and a case takes it so long that it is told at once.
    n_late = 0 if engines[0].device == "cpu" else _WRITERS
    written: deque[tuple[CaseTask, Future[Outcome]]] = deque()
    while (taken := ahead.take()) is not None:
        task, prepared = taken
        if isinstance(prepared, PreparedCase):
            computed = _compute(task, prepared, engines, network, listener)
            del prepared, taken  # its slices
            written.append((task, _begin_to_write(task, computed, network, writers)))
        else:
            yield task, prepared
        while written and (len(written) > n_late or written[0][1].done()):
            yield _ended(*written.popleft())
    for task, future in written:
        yield _ended(task, future)


def _side_by_side(
    ahead: _Ahead, network: Network, writers: ThreadPoolExecutor, listener: Listener
) -> Generator[tuple[CaseTask, Outcome]]:
    """The same with several devices."""
    ended: queue.SimpleQueue[tuple[CaseTask, Future[Outcome]] | BaseException | None] = queue.SimpleQueue()
    free_writers = threading.Semaphore(_WRITERS + len(network.engines))
    stop = threading.Event()

    def on_progress(name: str, done: int, total: int) -> None:
        if stop.is_set():
            raise _StoppedError
        listener.on_progress(name, done, total)

    heard = Listener(on_read=listener.on_read, on_progress=on_progress)

    def compute(engines: Sequence[Engine]) -> None:
        while not stop.is_set() and (taken := ahead.take()) is not None:
            task, prepared = taken
            if not isinstance(prepared, PreparedCase):
                ended.put((task, _known(prepared)))
                continue
            computed = _compute(task, prepared, engines, network, heard)
            free_writers.acquire()
            future = _begin_to_write(task, computed, network, writers)
            future.add_done_callback(lambda _: free_writers.release())
            ended.put((task, future))

    def run(engines: Sequence[Engine]) -> None:
        try:
            compute(engines)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again where what has ended is taken
            ended.put(error)
        finally:
            ended.put(None)

    threads = [threading.Thread(target=run, args=(each,), name=f"drunet-{each[0].device}") for each in network.engines]
    for thread in threads:
        thread.start()
    try:
        n_running = len(threads)
        while n_running:
            item = ended.get()
            if item is None:
                n_running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield _ended(*item)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _StoppedError(Exception):
    """The run has ended for a reason met elsewhere."""
