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
N_MOMENTS: Final = 4
JOBS: Final = ("--jobs", "2")
# A process that has lost its parent ends on its own; this is far more than that was seen to take.
ORPHAN_LIMIT_S: Final = 10.0
CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class WholeRun:
    """A command that nobody disturbs: its words, how long it takes, and what it writes into the folder `out`."""

    words: Sequence[str]
    seconds: float
    files: Mapping[str, bytes]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)


@pytest.fixture(scope="module")
def to_slices(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    return whole_run(("nii2png", str(cohort), "-o", "out"), tmp_path_factory.mktemp("to_slices"))


@pytest.fixture(scope="module")
def to_label_maps(cohort: Path, to_slices: WholeRun, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    dataset = tmp_path_factory.mktemp("dataset")
    for name, content in to_slices.files.items():
        path = dataset / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return whole_run(("png2nii", str(dataset), "--like", str(cohort), "-o", "out"), tmp_path_factory.mktemp("to_label_maps"))


@pytest.fixture(params=["nii2png", "png2nii"])
def whole(request: pytest.FixtureRequest) -> WholeRun:
    name = {"nii2png": "to_slices", "png2nii": "to_label_maps"}[request.param]
    run = request.getfixturevalue(name)
    assert isinstance(run, WholeRun)
    return run


def whole_run(words: Sequence[str], folder: Path) -> WholeRun:
    begin = time.monotonic()
    with started(words, folder) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return WholeRun(words, time.monotonic() - begin, contents(folder / "out"))


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


def offspring(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in offspring(process) if "spawn_main" in " ".join(child.cmdline())]


def assert_none_left(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ORPHAN_LIMIT_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def wait_for(path: Path) -> None:
    """Until a file is there, which a run makes after its first case."""
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, path
        time.sleep(0.002)


def assert_complete_where_there(folder: Path, whole: WholeRun) -> None:
    """What stands under a final name is whole. The table of slices alone tells no more than there was when it was written."""
    for name, content in contents(folder / "out").items():
        if not name.endswith((".tmp", ".part")):
            assert content == whole.files[name], name


def assert_next_run_completes(drunet: Drunet, folder: Path, whole: WholeRun) -> None:
    done = drunet("convert", *whole.words, *JOBS, "--skip-existing")
    assert done.returncode == 0, done.stderr
    assert contents(folder / "out") == whole.files


def moments(whole: WholeRun) -> Sequence[float]:
    return [n / N_MOMENTS * whole.seconds for n in range(1, N_MOMENTS + 1)]


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(N_MOMENTS))
def test_killed_run_leaves_no_process_and_the_next_completes_it(
    moment: int, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    with started(whole.words, tmp_path) as process:
        time.sleep(moments(whole)[moment])
        children = offspring(process)
        process.kill()
        process.communicate(timeout=60)  # a worker that was just starting complains of its lost parent: not drunet's word
    assert process.returncode in (-signal.SIGKILL, 0)
    assert_none_left(children)
    assert_complete_where_there(tmp_path, whole)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_worker_ends_the_run_in_one_line_and_the_next_completes_it(
    number: int, to_slices: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    with started(to_slices.words, tmp_path) as process:
        limit = time.monotonic() + 60
        while not (found := workers(process)):
            assert time.monotonic() < limit
        os.kill(found[0].pid, number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (5, "")
    assert stderr == "Error: a worker process was killed, perhaps for want of memory; try fewer --jobs\n"
    assert_none_left(found)
    assert_next_run_completes(drunet, tmp_path, to_slices)


# Interrupted


def interrupted(number: int, whole: WholeRun, folder: Path, *, after_s: float, group: bool) -> None:
    """One signal, which ends the run with its code, silently, and with every process."""
    with started(whole.words, folder) as process:
        time.sleep(after_s)
        children = offspring(process)
        (os.killpg if group else os.kill)(process.pid, number)
        stdout, stderr = process.communicate(timeout=60)
    # Before drunet has the word, the signal itself ends the process: to a shell that is the same code. At the end it is done.
    assert process.returncode in (CODES[signal.Signals(number)], -number, 0), stderr
    assert "Traceback" not in stderr
    assert "Error" not in stderr
    assert all((folder / line).is_file() for line in stdout.splitlines())
    assert_none_left(children)


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("moment", range(N_MOMENTS))
def test_interrupted_run_ends_with_its_code_and_the_next_completes_it(
    moment: int, number: int, group: bool, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    interrupted(number, whole, tmp_path, after_s=moments(whole)[moment], group=group)
    assert_complete_where_there(tmp_path, whole)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.parametrize("number", CODES)
def test_run_interrupted_between_its_cases_has_the_code_of_the_signal(
    number: signal.Signals, to_slices: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    with started(to_slices.words, tmp_path) as process:
        wait_for(tmp_path / "out/cases")  # made with the first case, five before the end
        children = offspring(process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert "Traceback" not in stderr
    assert not (tmp_path / "out/slices.csv").exists()
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, to_slices)


@pytest.mark.slow
def test_run_that_replaces_slices_and_is_killed_is_completed_without_overwrite(
    to_slices: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    assert drunet("convert", *to_slices.words, *JOBS).returncode == 0
    with started((*to_slices.words, "--overwrite"), tmp_path) as process:
        limit = time.monotonic() + 60
        while not list((tmp_path / "out/cases").glob("*.part")):
            assert time.monotonic() < limit
        children = offspring(process)
        process.kill()
        process.communicate(timeout=60)
    assert_none_left(children)
    assert_next_run_completes(drunet, tmp_path, to_slices)


def test_cases_of_a_killed_run_are_unfinished_and_not_foreign(to_slices: WholeRun, drunet: Drunet, tmp_path: Path) -> None:
    for name, content in to_slices.files.items():
        if name != "slices.csv" and "case_1" not in name:
            path = tmp_path / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (tmp_path / "out/cases/case_0.json").rename(tmp_path / "out/cases/case_0.part")
    done = drunet("convert", *to_slices.words, "--dry-run")
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("case_")][:3] == [
        "unfinished",
        "new",
        "converted",
    ]
    assert_next_run_completes(drunet, tmp_path, to_slices)
