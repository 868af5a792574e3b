"""One function over many tasks, in worker processes. Standard library only.

Workers leave Ctrl-C to their parent, and end when the parent is gone, however it ended.
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

    with signals_blocked():
        resource_tracker.ensure_running()  # its start unblocks signals, so it is not to be started between the workers
    try:
        with signals_blocked():
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
