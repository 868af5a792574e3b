"""`drunet convert` killed or interrupted with two workers: the next run, with --skip-existing, completes what it left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.cli.small_cohort import contents, write_cases
from tests.support import Drunet

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
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WholeRun]:
    cohort, folder = write_cases(tmp_path_factory.mktemp("cohort"), N_CASES), tmp_path_factory.mktemp("whole")
    to_slices = ("nii2png", str(cohort), "-o", "out")
    dataset = folder / "slices" / "out"
    to_label_maps = ("png2nii", str(dataset), "--like", str(cohort), "-o", "out")
    found = {}
    for name, words in (("slices", to_slices), ("label_maps", to_label_maps)):
        (folder / name).mkdir()
        with started(words, folder / name) as process:
            _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        found[name] = WholeRun(words, contents(folder / name / "out"))
    return found


@contextmanager
def started(words: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A conversion with two workers, in a process group of its own as a shell or Slurm would start it."""
    command = [sys.executable, "-m", "drunet_cli", "convert", *words, *JOBS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_some_case_is_done(folder: Path, kind: str) -> None:
    pattern = "out/cases/*.json" if kind == "slices" else "out/*.nii.gz"
    limit = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < limit
        time.sleep(0.002)


def offspring(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
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
    done = drunet("convert", *whole.words, *JOBS, "--skip-existing")
    assert done.returncode == 0, done.stderr
    assert contents(folder / "out") == whole.files


@pytest.mark.parametrize("kind", ["slices", "label_maps"])
@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGKILL, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["SIGKILL", "Ctrl-C on a terminal", "SIGTERM", "SIGTERM for all, as Slurm sends it"],
)
def test_a_run_that_is_stopped_leaves_no_process_and_the_next_completes_it(
    kind: str, number: signal.Signals, group: bool, runs: dict[str, WholeRun], drunet: Drunet, tmp_path: Path
) -> None:
    with started(runs[kind].words, tmp_path) as process:
        wait_until_some_case_is_done(tmp_path, kind)
        children = offspring(process)
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    # Where a worker is killed first, as by Slurm, the run may end by its loss.
    assert process.returncode in {CODES[number], *([5] if number == signal.SIGTERM and group else [])}, stderr
    assert "Traceback" not in stderr
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, runs[kind])


def test_a_run_that_is_interrupted_while_its_workers_start_says_at_most_how_far_it_was(
    runs: dict[str, WholeRun], drunet: Drunet, tmp_path: Path
) -> None:
    with started(runs["slices"].words, tmp_path) as process:
        while not (children := offspring(process)):
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    told = [line for line in stderr.splitlines() if "Stopped: 0 of 6 cases done; --skip-existing goes on" not in line]
    assert (process.returncode, stdout, told) == (130, "", [])
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, runs["slices"])


def test_a_killed_worker_ends_the_run_in_one_line_and_the_next_completes_it(
    runs: dict[str, WholeRun], drunet: Drunet, tmp_path: Path
) -> None:
    with started(runs["slices"].words, tmp_path) as process:
        wait_until_some_case_is_done(tmp_path, "slices")
        workers = [child for child in offspring(process) if "spawn_main" in " ".join(child.cmdline())]
        workers[0].kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 5, stderr
    assert stderr.splitlines()[-1].startswith("Error: a worker process was killed")
    assert "Traceback" not in stderr
    assert_none_left(workers)
    assert_next_run_completes(drunet, tmp_path, runs["slices"])


def test_a_run_that_replaces_slices_and_is_killed_is_completed_without_overwrite(
    runs: dict[str, WholeRun], drunet: Drunet, tmp_path: Path
) -> None:
    whole = runs["slices"]
    for name, content in whole.files.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with started((*whole.words, "--overwrite"), tmp_path) as process:
        limit = time.monotonic() + 60
        while not list((tmp_path / "out/cases").glob("*.part")):
            assert time.monotonic() < limit
        children = offspring(process)
        process.kill()
        process.communicate(timeout=60)
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, whole)
