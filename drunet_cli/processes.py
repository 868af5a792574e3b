"""Signals that end a run, and worker processes. Standard library only.

Ctrl-C and SIGTERM end a run as exceptions do, so that every `finally` runs and nothing is left behind. Workers leave Ctrl-C to
their parent, and end when the parent is gone, however it ended.
"""

import _thread
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from drunet_cli.errors import DeviceError, DrunetError, Terminated

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor


_RAISED: Final[dict[signal.Signals, type[BaseException]]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_NUMBERS: Final = tuple(_RAISED)

# The delay after which a signal whose exception was lost is sent again: Python has left that place long before.
_AGAIN_AFTER_S: Final = 0.01


@contextmanager
def raise_signals() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM raise Terminated while the block runs.

    Python drops exceptions in finalizers and in callbacks of weak references, and prints them only, so that a signal that
    comes there would be lost: such a signal comes again a moment later.
    """

    def raise_at_once(number: int, _frame: FrameType | None) -> None:
        raise _RAISED[signal.Signals(number)]

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        lost = [number for number, raised in _RAISED.items() if dropped.exc_type is raised]
        for number in lost:  # threading.Thread takes locks, which whatever is being finalized may hold
            _thread.start_new_thread(_come_again, (number,))
        if not lost:
            hook_before(dropped)

    hook_before = sys.unraisablehook
    try:
        sys.unraisablehook = send_again
        with _handle_signals(raise_at_once):
            yield
    finally:
        sys.unraisablehook = hook_before


def _come_again(number: signal.Signals) -> None:
    time.sleep(_AGAIN_AFTER_S)
    _thread.interrupt_main(number)


@contextmanager
def hold_signals() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back until the block has ended; yield a function that says whether one has come.

    A second Ctrl-C takes effect at once. A second SIGTERM does not: at the end of a job, schedulers send SIGTERM to every
    process, and torchrun sends its own to the same ones.
    """
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in held:
            raise KeyboardInterrupt
        held.append(number)

    try:
        with _handle_signals(hold):
            yield lambda: bool(held)
    finally:
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Change what both signals do while the block runs; nothing outside the main thread, which alone receives signals.

    A signal that is ignored stays ignored, as a shell leaves SIGINT for a command in the background, and nohup others.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _NUMBERS}
    changed = {number: earlier for number, earlier in before.items() if earlier not in (signal.SIG_IGN, None)}
    try:
        for number in changed:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in changed.items():
            signal.signal(number, earlier)


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold both signals back while processes are started, which begin with the signals blocked where the system can do so.

    Blocked signals alone do not suffice: another thread of this process may receive one, and Python raises here.
    """
    with hold_signals():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ctrl_c_to_parent() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes of a command, and heed SIGTERM again; for a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, n_processes: int
) -> Generator[tuple[Task, Result | DrunetError]]:
    """Yield every task with its result, or with the DrunetError that it raised, in the order in which the tasks end.

    function and tasks must pickle. One process, or one task, does the work in this process. A caller who may not take all
    outcomes closes the generator. Raises DeviceError when a worker is killed, as for want of memory; any other exception of a
    task ends the whole.
    """
    n_workers = min(n_processes, len(tasks))
    if n_workers <= 1:
        for task in tasks:
            yield task, _outcome(function, task)
        return

    import multiprocessing  # a run of one process does without
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    executor = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    waiting = iter(tasks)
    futures: dict[Future[Result | DrunetError], Task] = {}
    try:
        # One task more than there are workers, to begin with next: a task that was submitted can no longer be taken back.
        _submit(executor, function, itertools.islice(waiting, n_workers + 1), futures)
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            _submit(executor, function, itertools.islice(waiting, len(done)), futures)
            for future in done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        for worker in multiprocessing.active_children():  # the executor would wait for a worker that was just starting
            worker.kill()
        if error.__cause__ is not None:  # no worker is gone: its result could not be read, which is a fault of drunet
            raise
        raise DeviceError("a worker process was killed, perhaps for want of memory; try fewer --jobs") from error
    finally:  # an interrupted run waits for the tasks in hand
        executor.shutdown(cancel_futures=True)


def _submit(
    executor: "ProcessPoolExecutor",
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    futures: "dict[Future[Result | DrunetError], Task]",
) -> None:
    """Submit tasks with signals held back: an exception while a worker starts would leave it with half a message.

    Raises BrokenProcessPool where a worker is gone.
    """
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import resource_tracker

    with block_signals():
        resource_tracker.ensure_running()  # its start unblocks signals, so it is not to be started between the workers
    try:
        with block_signals():
            for task in tasks:
                futures[executor.submit(_outcome, function, task)] = task
    except OSError:  # the executor has just closed its pipes, since a worker is gone
        raise BrokenProcessPool from None


def _outcome(function: Callable[[Task], Result], task: Task) -> Result | DrunetError:
    """The result of a task, or its DrunetError, which does not end the others."""
    try:
        return function(task)
    except DrunetError as error:
        return error


def _follow_parent() -> None:
    """Begin a worker: leave Ctrl-C to the parent, and end with it."""
    import multiprocessing
    from multiprocessing import connection

    leave_ctrl_c_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
