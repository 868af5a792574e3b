"""`drunet convert` killed or interrupted with two workers: the next run, with --skip-existing, completes what it left."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.cli.small_cohort import write_cases
from tests.forks import Forks, Run
from tests.support import Drunet, contents, wait_until

N_CASES: Final = 6
JOBS: Final = ("--jobs", "2")
# A process that has lost its parent ends on its own; this is far more than that was seen to take.
ORPHAN_LIMIT_S: Final = 10.0
CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class WholeRun:
    """A command that nobody disturbs: its words, and what it writes into the folder `out`."""

    words: Sequence[str]
    files: Mapping[str, bytes]


@pytest.fixture(scope="module")
def runs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, WholeRun]:
    cohort, folder = write_cases(tmp_path_factory.mktemp("cohort"), N_CASES), tmp_path_factory.mktemp("whole")
    dataset = folder / "slices" / "out"
    found = {}
    for name, words in (
        ("slices", ("nii2png", str(cohort), "-o", "out")),
        ("label_maps", ("png2nii", str(dataset), "--like", str(cohort), "-o", "out")),
    ):
        (folder / name).mkdir()
        done = forks.run("convert", *words, *JOBS, folder=folder / name)
        assert done.returncode == 0, done.stderr
        found[name] = WholeRun(words, contents(folder / name / "out"))
    return found


def started(forks: Forks, words: Sequence[str], folder: Path) -> AbstractContextManager[Run]:
    """A conversion with two workers, in a process group of its own as a shell or Slurm would start it."""
    return forks.started("convert", *words, *JOBS, folder=folder, before="import os; os.setsid()")


def wait_until_some_case_is_done(folder: Path, kind: str) -> None:
    pattern = "out/cases/*.json" if kind == "slices" else "out/*.nii.gz"
    wait_until(lambda: bool(list(folder.glob(pattern))))


def offspring(run: Run) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(run.pid).children(recursive=True)
    return found


def assert_none_left(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ORPHAN_LIMIT_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def assert_next_run_completes(drunet: Drunet, folder: Path, whole: WholeRun) -> None:
    """And what stands under a final name before it is whole; the table tells no more than there was when it was written."""
    for name, content in contents(folder / "out").items():
        if name == "slices.csv":
            assert set(content.splitlines()) <= set(whole.files[name].splitlines())
        else:
            assert name.endswith((".tmp", ".part")) or content == whole.files[name], name
    done = drunet("convert", *whole.words, "--jobs", "1", "--skip-existing")
    assert done.returncode == 0, done.stderr
    assert contents(folder / "out") == whole.files


@pytest.mark.parametrize(
    ("kind", "number", "group"),
    [
        ("slices", signal.SIGKILL, False),
        ("slices", signal.SIGINT, True),  # Ctrl-C on a terminal
        ("slices", signal.SIGTERM, False),
        ("slices", signal.SIGTERM, True),  # as Slurm sends it
        ("label_maps", signal.SIGKILL, False),
        ("label_maps", signal.SIGINT, True),
    ],
)
def test_a_run_that_is_stopped_leaves_no_process_and_the_next_completes_it(
    kind: str, number: signal.Signals, group: bool, runs: dict[str, WholeRun], forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    with started(forks, runs[kind].words, tmp_path) as run:
        wait_until_some_case_is_done(tmp_path, kind)
        children = offspring(run)
        if group:
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
        done = run.wait()
    # Where a worker is killed first, as by Slurm, the run may end by its loss.
    assert done.returncode in {CODES[number], *([5] if number == signal.SIGTERM and group else [])}, done.stderr
    assert "Traceback" not in done.stderr
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, runs[kind])


def test_a_run_that_is_interrupted_while_its_workers_start_says_at_most_how_far_it_was(
    runs: dict[str, WholeRun], forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    with started(forks, runs["slices"].words, tmp_path) as run:
        wait_until(lambda: bool(offspring(run)))
        children = offspring(run)
        os.killpg(run.pid, signal.SIGINT)
        done = run.wait()
    told = [line for line in done.stderr.splitlines() if "Stopped: 0 of 6 cases done; --skip-existing goes on" not in line]
    assert (done.returncode, done.stdout, told) == (130, "", [])
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, runs["slices"])


def test_a_killed_worker_ends_the_run_in_one_line_and_the_next_completes_it(
    runs: dict[str, WholeRun], forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    with started(forks, runs["slices"].words, tmp_path) as run:
        wait_until_some_case_is_done(tmp_path, "slices")
        workers = [child for child in offspring(run) if "spawn_main" in " ".join(child.cmdline())]
        workers[0].kill()
        done = run.wait()
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: a worker process was killed")
    assert "Traceback" not in done.stderr
    assert_none_left(workers)
    assert_next_run_completes(drunet, tmp_path, runs["slices"])


def test_a_run_that_replaces_slices_and_is_killed_is_completed_without_overwrite(
    runs: dict[str, WholeRun], forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    whole = runs["slices"]
    for name, content in whole.files.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with started(forks, (*whole.words, "--overwrite"), tmp_path) as run:
        wait_until(lambda: bool(list((tmp_path / "out/cases").glob("*.part"))))
        children = offspring(run)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, whole)
