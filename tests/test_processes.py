"""Worker processes, of which none is left behind; and signals as exceptions, held back where work ends at its own choice."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from drunet_cli.errors import CaseError, DeviceError, DrunetError, MisuseError, OutputError, Terminated, WeightsError
from drunet_cli.processes import hold_signals, raise_signals, run_tasks
from tests import job_functions
from tests.job_functions import Wait
from tests.support import wait_until

ROOT: Final = Path(__file__).parents[1]
PATIENCE_S: Final = 20.0  # a worker starts in about half a second; a busy machine takes longer
ERRORS: Final = [DrunetError, MisuseError, CaseError, WeightsError, DeviceError, OutputError]

# Two workers for so many tasks that wait for so many seconds each.
WAIT_IN_WORKERS: Final = """
import sys
from contextlib import closing
from pathlib import Path
from drunet_cli.processes import run_tasks
from tests.job_functions import Wait, waited
try:
    tasks = [Wait(Path(sys.argv[1]), n, float(sys.argv[3])) for n in range(int(sys.argv[2]))]
    with closing(run_tasks(waited, tasks, n_processes=2)) as outcomes:
        for _ in outcomes:
            pass
except KeyboardInterrupt:
    sys.exit(130)
"""


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Those below it that live; not multiprocessing's tracker of resources, which lives as long as its parent."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "--multiprocessing-fork" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)  # ended, where nobody asks for its exit code
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def no_worker_stays() -> Iterator[None]:
    """Whatever a test does, every worker of this process has ended when it ends."""
    yield
    assert workers_of(psutil.Process()) == []


pytestmark = pytest.mark.usefixtures("no_worker_stays")


# --- results


def test_several_processes_give_what_one_gives() -> None:
    tasks = list(range(7))
    alone = list(run_tasks(job_functions.doubled, tasks, n_processes=1))
    assert alone == [(task, 2 * task) for task in tasks]
    together = list(run_tasks(job_functions.doubled, tasks, n_processes=3))
    assert sorted(together) == alone


@pytest.mark.parametrize(("n_processes", "n_tasks"), [(1, 3), (0, 3), (4, 1)])
def test_one_process_or_one_task_stays_in_this_process(n_processes: int, n_tasks: int) -> None:
    outcomes = list(run_tasks(job_functions.process_id, range(n_tasks), n_processes=n_processes))
    assert outcomes == [(task, os.getpid()) for task in range(n_tasks)]


def test_several_processes_are_others_and_no_more_than_asked_for() -> None:
    pids = {pid for _, pid in run_tasks(job_functions.process_id, range(12), n_processes=2)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


@pytest.mark.parametrize("n_processes", [1, 2])
def test_no_tasks_give_no_outcomes(n_processes: int) -> None:
    assert list(run_tasks(job_functions.doubled, [], n_processes=n_processes)) == []


def test_nothing_is_done_before_the_first_outcome_is_asked_for(tmp_path: Path) -> None:
    with closing(run_tasks(job_functions.waited, [Wait(tmp_path, n, 0) for n in range(2)], n_processes=2)):
        assert workers_of(psutil.Process()) == []
    assert list(tmp_path.iterdir()) == []


def test_outcomes_come_in_the_order_in_which_they_end(tmp_path: Path) -> None:
    tasks = [Wait(tmp_path, 0, 0.6), *(Wait(tmp_path, n, 0) for n in range(1, 5))]
    outcomes = [outcome for _, outcome in run_tasks(job_functions.waited, tasks, n_processes=2)]
    assert outcomes[-1] == 0
    assert len(outcomes) == 5


# --- errors


@pytest.mark.parametrize("n_processes", [1, 2])
def test_an_expected_error_comes_back_beside_its_task_and_stops_no_other(n_processes: int) -> None:
    outcomes = dict(run_tasks(job_functions.refused_if_odd, range(5), n_processes=n_processes))
    assert [outcomes[task] for task in (0, 2, 4)] == [0, 2, 4]
    for task in (1, 3):
        error = outcomes[task]
        assert isinstance(error, CaseError)
        assert str(error) == f"task {task} is odd"
        assert error.exit_code == 3
        assert error.details == ("first line", "second line")


def test_expected_errors_of_every_kind_keep_their_kind_and_details() -> None:
    outcomes = list(run_tasks(job_functions.raised, ERRORS, n_processes=2))
    assert len(outcomes) == len(ERRORS)
    for kind, error in outcomes:
        assert type(error) is kind
        assert error.exit_code == kind.exit_code
        assert (str(error), error.details) == (f"as {kind.__name__}", ("more",))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_another_exception_ends_the_whole_with_its_traceback(n_processes: int) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(run_tasks(job_functions.inverse, [1, 0, 2], n_processes=n_processes))
    shown = "".join(traceback.format_exception(caught.value))
    assert "job_functions.py" in shown
    assert "in inverse" in shown


def test_an_exception_that_cannot_come_back_is_not_taken_for_a_killed_worker() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of whatever kind, so that the command ends with a traceback
        list(run_tasks(job_functions.broken_in_two, range(2), n_processes=2))
    assert not isinstance(caught.value, DrunetError)
    assert "TwoPartError" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("function", [job_functions.killed_at_3, job_functions.left_at_3])
def test_a_worker_that_is_killed_is_a_device_error(function: Callable[[int], int]) -> None:
    with pytest.raises(DeviceError, match="a worker process was killed, perhaps for want of memory; try fewer --jobs"):
        list(run_tasks(function, range(8), n_processes=2))


# --- ends that come early


def test_tasks_that_are_left_out_never_begin(tmp_path: Path) -> None:
    """A caller with an error closes the generator too."""
    tasks = [Wait(tmp_path, n, 0.1) for n in range(60)]
    with closing(run_tasks(job_functions.waited, tasks, n_processes=2)) as outcomes:
        next(outcomes)
    # One has ended, two are in hand, the pool hands out one beyond, and while this process pauses a few more may begin: not 60.
    begun = len(list(tmp_path.iterdir()))
    assert begun <= 12
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == begun


@pytest.fixture
def parent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """A process, leader of its own group, whose two workers wait: many tasks, of so many seconds each."""
    arguments = [str(tmp_path), "40", str(request.param)]
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT_IN_WORKERS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    yield process
    with suppress(ProcessLookupError):  # the group is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(moment: str, process: "subprocess.Popen[str]", folder: Path) -> list[int]:
    """Until the first worker is there, or both are at work; the process ids of all that the process has started."""
    below = psutil.Process(process.pid)
    if moment == "at work":
        wait_until(lambda: len([path for path in folder.iterdir() if not path.suffix]) >= 2, "no task has begun")
    else:
        wait_until(lambda: bool(workers_of(below)), "no worker has appeared")
    return [child.pid for child in below.children(recursive=True)]


@pytest.mark.parametrize("parent", [600], indirect=True)
@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_no_worker_survives_a_parent_that_is_killed(parent: "subprocess.Popen[str]", moment: str, tmp_path: Path) -> None:
    pids = wait_for(moment, parent, tmp_path)
    parent.kill()
    parent.wait()
    wait_until(lambda: all(map(is_gone, pids)), "a worker has survived its parent")


def test_workers_hold_ctrl_c_back_and_this_process_does_not() -> None:
    assert all(ignores for _, ignores in run_tasks(job_functions.ignores_ctrl_c, range(8), n_processes=2))
    assert not job_functions.ignores_ctrl_c(0)


@pytest.mark.parametrize("parent", [0.25], indirect=True)
@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_ctrl_c_is_the_parents_to_answer(parent: "subprocess.Popen[str]", moment: str, tmp_path: Path) -> None:
    pids = wait_for(moment, parent, tmp_path)
    os.killpg(parent.pid, signal.SIGINT)
    output, messages = parent.communicate(timeout=PATIENCE_S)
    assert (parent.returncode, output, messages) == (130, "", "")
    wait_until(lambda: all(map(is_gone, pids)), "a process has been left")
    assert len(list(tmp_path.iterdir())) <= 12  # of 40: only the tasks in hand are waited for


@pytest.mark.slow
@pytest.mark.parametrize("parent", [0.05], indirect=True)
@pytest.mark.parametrize("delay_s", [n / 20 for n in range(8)])  # a run takes 1.5 s, of which the first half is starting
def test_ctrl_c_at_any_moment_prints_nothing_and_leaves_nobody(
    parent: "subprocess.Popen[str]", delay_s: float, tmp_path: Path
) -> None:
    wait_until(lambda: bool(psutil.Process(parent.pid).children()), "nothing has been started")
    time.sleep(delay_s)
    pids = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    os.killpg(parent.pid, signal.SIGINT)
    output, messages = parent.communicate(timeout=PATIENCE_S)
    assert (parent.returncode, output, messages) in [(130, "", ""), (0, "", "")]
    wait_until(lambda: all(map(is_gone, pids)), "a process has been left")


# --- Ctrl-C and SIGTERM as exceptions


EXCEPTIONS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
both = pytest.mark.parametrize(("number", "expected"), EXCEPTIONS, ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def _raised() -> Iterator[None]:
    """As in every command, also those with workers."""
    with raise_signals():
        yield


@both
def test_signal_is_raised_where_the_program_is(number: int, expected: type[BaseException]) -> None:
    with pytest.raises(expected):
        signal.raise_signal(number)


class Finalized:
    """Something that is finalized while a signal comes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@both
@pytest.mark.parametrize("place", ["finalizer", "callback of a weak reference"])
def test_signal_is_raised_where_python_drops_exceptions(number: int, expected: type[BaseException], place: str) -> None:
    if place == "finalizer":
        dropped: list[object] = [Finalized(number)]
    else:
        dropped = [threading.Thread()]
        reference = weakref.ref(dropped[0], lambda _: signal.raise_signal(number))
        assert reference() is not None
    with pytest.raises(expected):
        drop_and_wait(dropped)


def drop_and_wait(dropped: list[object]) -> None:
    dropped.clear()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        pass


def test_other_exceptions_that_python_drops_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with raise_signals():
        [Finalized(10_000)].clear()  # there is no such signal
    assert told == [OSError]


@both
def test_held_signal_is_told_and_raised_after_the_block(number: int, expected: type[BaseException]) -> None:
    seen: list[bool] = []

    def hold() -> None:
        with hold_signals() as should_stop:
            seen.append(should_stop())
            signal.raise_signal(number)
            seen.append(should_stop())

    with pytest.raises(expected):
        hold()
    assert seen == [False, True]


def test_held_signal_is_raised_also_where_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), hold_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_only_a_second_ctrl_c_ends_the_block(number: int, raised: bool) -> None:
    reached: list[int] = []
    with pytest.raises((KeyboardInterrupt, Terminated)), hold_signals():  # noqa: PT012
        signal.raise_signal(number)
        signal.raise_signal(number)
        reached.append(number)
    assert bool(reached) is not raised


@pytest.mark.parametrize("block", [raise_signals, hold_signals])
def test_what_was_before_is_there_again_and_an_ignored_signal_stays_ignored(block: Callable[[], Iterator[None]]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminating = signal.getsignal(signal.SIGTERM)
    try:
        with block():  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not terminating
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is terminating
    finally:
        signal.signal(signal.SIGINT, before)


def test_block_in_another_thread_leaves_signals_alone() -> None:
    told: list[bool] = []

    def work() -> None:
        with hold_signals() as should_stop:
            told.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False]
