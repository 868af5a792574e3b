"""One function over many tasks, in worker processes. Standard library only.

Workers ignore Ctrl-C, which is the parent's to answer, and end when the parent has gone, however it went.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from drunet_cli.errors import DeviceError, DrunetError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, n_processes: int
) -> Generator[tuple[Task, Result | DrunetError]]:
    """Yield every task with its result, or with the DrunetError that it raised, in the order in which they end.

    function and tasks must pickle. With one process, or one task, all happens in this process, one after another. To be closed
    by whoever does not take all. Raises DeviceError when a worker is killed, as for want of memory; whatever else a task raises
    ends the whole.
    """
    n_workers = min(n_processes, len(tasks))
    if n_workers <= 1:
        for task in tasks:
            yield task, _outcome(function, task)
        return

    import multiprocessing  # a run of one process does without
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    executor = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        futures = _submitted(executor, function, tasks)
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        if error.__cause__ is not None:  # no worker is gone: what it sent could not be read, which is a fault of ours
            raise
        raise DeviceError("a worker process was killed, perhaps for want of memory; try fewer --jobs") from error
    finally:  # an interrupted run waits for the tasks in hand, at most
        executor.shutdown(cancel_futures=True)


def _submitted(
    executor: "ProcessPoolExecutor", function: Callable[[Task], Result], tasks: Sequence[Task]
) -> "dict[Future[Result | DrunetError], Task]":
    """Submit with SIGINT blocked, which the workers that this starts inherit; one that comes meanwhile is delivered after."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it would be started between, and unblock
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {executor.submit(_outcome, function, task): task for task in tasks}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _outcome(function: Callable[[Task], Result], task: Task) -> Result | DrunetError:
    """An error of the task is a result: it does not end the others."""
    try:
        return function(task)
    except DrunetError as error:
        return error


def _follow_parent() -> None:
    import multiprocessing
    from multiprocessing import connection

    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
