"""Many cases: the next are read while one is computed, and the last are written.

Reading and writing happen in threads, whose work is done outside the interpreter's lock. What waits between them is bounded:
one case for each reader and one more, and one for each writer, whatever the cohort's size. One device computes in the
caller's thread, which an interruption reaches at once; several compute in a thread each and share the cases.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final

from drunet_cli.network.engine import Engine
from drunet_cli.segmentation.pipeline import PreparedCase
from drunet_cli.segmentation.steps import CaseTask, Computed, Listener, Network, Outcome, compute, read, write

_MOST_READERS: Final = 8
_CPUS_A_READER: Final = 4  # a case's four files are inflated at once
_WRITERS: Final = 2


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
            self._begun.append(self._readers.submit(read, task))

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


def _begin_to_write(task: CaseTask, computed: Computed, network: Network, writers: ThreadPoolExecutor) -> Future[Outcome]:
    if isinstance(computed, tuple):
        return writers.submit(write, task, *computed, network.making)
    return _known(computed)


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
            computed = compute(task, prepared, engines, network, listener)
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

    def compute_all(engines: Sequence[Engine]) -> None:
        while not stop.is_set() and (taken := ahead.take()) is not None:
            task, prepared = taken
            if not isinstance(prepared, PreparedCase):
                ended.put((task, _known(prepared)))
                continue
            computed = compute(task, prepared, engines, network, heard)
            free_writers.acquire()
            future = _begin_to_write(task, computed, network, writers)
            future.add_done_callback(lambda _: free_writers.release())
            ended.put((task, future))

    def run(engines: Sequence[Engine]) -> None:
        try:
            compute_all(engines)
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
