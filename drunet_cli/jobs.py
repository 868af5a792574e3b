"""One function over many tasks, in worker processes. Standard library only.

Workers ignore Ctrl-C, which is the parent's to answer, and end when the parent has gone, however it went.
"""

import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from drunet_cli.errors import DeviceError, DrunetError
from drunet_cli.signals import leave_ctrl_c_to_parent, signals_blocked

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
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
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    executor = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    waiting = iter(tasks)
    futures: dict[Future[Result | DrunetError], Task] = {}
    try:
        # No more at once than there are workers, and one to begin with next: what is handed over can no longer be taken back.
        _submit(executor, function, itertools.islice(waiting, n_workers + 1), futures)
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            _submit(executor, function, itertools.islice(waiting, len(done)), futures)
            for future in done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        for worker in multiprocessing.active_children():  # the executor overlooks one that was just starting, and waits for it
            worker.kill()
        if error.__cause__ is not None:  # no worker is gone: what it sent could not be read, which is a fault of ours
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
    """Submit with signals blocked, which the workers that this starts inherit; what comes meanwhile is delivered after.

    An exception between the start of a worker and what is then sent to it would leave it with half a message.
    Raises BrokenProcessPool where a worker is gone.
    """
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it would be started between, and unblock
    try:
        with signals_blocked():
            for task in tasks:
                futures[executor.submit(_outcome, function, task)] = task
    except OSError:  # the executor has just closed its pipes for that reason
        raise BrokenProcessPool from None


def _outcome(function: Callable[[Task], Result], task: Task) -> Result | DrunetError:
    """An error of the task is a result: it does not end the others."""
    try:
        return function(task)
    except DrunetError as error:
        return error


def _follow_parent() -> None:
    import multiprocessing
    from multiprocessing import connection

    leave_ctrl_c_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
