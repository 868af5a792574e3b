"""`drunet segment` of many cases killed or interrupted: the next run, with --skip-existing, ends as if nothing had happened."""

import csv
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.small_cohort import write_cases
from tests.cli.test_interruption import names, started, struck
from tests.support import GOLDEN_WEIGHTS, Drunet

N_CASES: Final = 6
CASES: Final = [f"case_{n}" for n in range(N_CASES)]
LABEL_FILES: Final = [f"{case}{suffix}" for case in CASES for suffix in (".json", ".nii.gz")]
OUTPUTS: Final = sorted([*LABEL_FILES, "labels_itksnap.txt", "labels_slicer.ctbl", "summary.csv"])
SETTINGS: Final = ("--weights", str(GOLDEN_WEIGHTS), "--device", "cpu", "--threads", "1")
N_DISTURBED: Final = 9
SIGNALS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES: Final = {signal.SIGTERM: 143, signal.SIGINT: 130}
# A run's imports and the reading of the weights take this share of its time; before it there is nothing to be lost.
BEGINNING: Final = 0.3
# Some steps of writing: what Python is about to do, and with which temporary. All of them: tests/segmentation/test_outputs.py.
STEPS: Final = [("os.link", ".case_2.json."), ("os.link", ".case_2.nii.gz."), ("os.rename", ".summary.csv.")]

every_step = pytest.mark.parametrize(("event", "temporary"), STEPS, ids=lambda word: word.strip("."))


@dataclass(frozen=True)
class WholeRun:
    """A run that nobody disturbs: its words, how long it takes, and what it writes into the folder `out`."""

    words: Sequence[str]
    seconds: float
    label_maps: Mapping[str, bytes]
    sidecars: Mapping[str, Any]
    summary: Sequence[Mapping[str, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    cohort = write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)
    folder = tmp_path_factory.mktemp("whole")
    words = ("segment", str(cohort), *SETTINGS, "-o", "out")
    begin = time.monotonic()
    with started(*words, folder=folder) as process:
        _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    seconds = time.monotonic() - begin
    return WholeRun(words, seconds, label_maps(folder), sidecars(folder), summary(folder))


def label_maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("[!.]*.nii.gz"))}


def sidecars(folder: Path) -> dict[str, Any]:
    """By name; when and how long differs from run to run."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "out").glob("[!.]*.json"))}
    return {
        name: {key: value for key, value in document.items() if key not in ("seconds", "time")}
        for name, document in found.items()
    }


def summary(folder: Path) -> list[dict[str, str]]:
    """The same of the table, where the run says too which cases it left out."""
    rows = list(csv.DictReader((folder / "out/summary.csv").read_text().splitlines()))
    varying = ("status", "read_s", "network_s", "time")
    return [{key: cell for key, cell in row.items() if key not in varying} for row in rows]


def assert_whole_where_there(folder: Path, whole: WholeRun) -> None:
    """What stands under a final name is whole, and no label map is without its sidecar."""
    for name, content in label_maps(folder).items():
        assert content == whole.label_maps[name], name
        assert f"{name.removesuffix('.nii.gz')}.json" in sidecars(folder)
    for name, document in sidecars(folder).items():
        assert document == whole.sidecars[name], name


def temporaries(folder: Path) -> set[Path]:
    return set(folder.rglob("*.tmp"))


def assert_next_run_completes(drunet: Drunet, folder: Path, whole: WholeRun) -> None:
    done = drunet(*whole.words, "--skip-existing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"out/{case}.nii.gz" for case in CASES]
    assert_as_undisturbed(folder, whole)


def assert_as_undisturbed(folder: Path, whole: WholeRun) -> None:
    assert names(folder / "out") == OUTPUTS
    assert label_maps(folder) == whole.label_maps
    assert sidecars(folder) == whole.sidecars
    assert summary(folder) == whole.summary


def disturb(number: signal.Signals, whole: WholeRun, folder: Path, *options: str, after_s: float) -> None:
    """One signal, which ends the run with its code; a run that hears it leaves nothing unfinished of its own."""
    of_earlier_runs = temporaries(folder)
    with started(*whole.words, *options, folder=folder) as process:
        time.sleep(after_s)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    # Before drunet has the word, the signal itself ends the process: to a shell that is the same code. At the end it is done.
    assert process.returncode in (0, -number, CODES.get(number)), stderr
    assert "Traceback" not in stderr
    assert "Error" not in stderr
    if number in CODES:
        assert temporaries(folder) <= of_earlier_runs
    assert_whole_where_there(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(N_DISTURBED), ids=lambda n: f"{n}-{SIGNALS[n % 3].name}")
def test_disturbed_run_is_completed_by_the_next(n: int, whole: WholeRun, drunet: Drunet, tmp_path: Path) -> None:
    share = BEGINNING + (1 - BEGINNING) * (n + 0.5) / N_DISTURBED
    disturb(SIGNALS[n % 3], whole, tmp_path, after_s=share * whole.seconds)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
def test_run_that_is_disturbed_again_and_again_is_completed_at_last(whole: WholeRun, drunet: Drunet, tmp_path: Path) -> None:
    for n in range(6):
        disturb(SIGNALS[n % 3], whole, tmp_path, "--skip-existing", after_s=(0.5 + n / 30) * whole.seconds)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@every_step
def test_run_killed_while_it_writes_is_completed_by_the_next(
    event: str, temporary: str, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    done = struck(signal.SIGKILL, event, temporary, *whole.words, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert_whole_where_there(tmp_path, whole)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("temporary", [".case_2.json.", ".case_2.nii.gz."])
def test_run_that_replaces_outputs_and_is_killed_is_completed_by_the_next(
    temporary: str, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    assert drunet(*whole.words).returncode == 0
    done = struck(signal.SIGKILL, "os.rename", temporary, *whole.words, "--overwrite", folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert_whole_where_there(tmp_path, whole)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@every_step
def test_signal_while_outputs_are_written_ends_the_run_with_its_code_and_nothing_unfinished(
    event: str, temporary: str, number: signal.Signals, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    done = struck(number, event, temporary, *whole.words, folder=tmp_path)
    finished = temporary == ".summary.csv."  # the last thing that a run does
    assert done.returncode in ((CODES[number], 0) if finished else (CODES[number],)), done.stderr
    assert "Traceback" not in done.stderr
    assert not temporaries(tmp_path)
    assert_whole_where_there(tmp_path, whole)
    complete = {name.partition(".")[0] for name in label_maps(tmp_path)}
    assert complete == {name.partition(".")[0] for name in sidecars(tmp_path)}
    assert "case_2" in complete  # what was being written is whole
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("option", [[], ["--skip-existing"]], ids=["plain", "skip-existing"])
def test_two_runs_over_the_same_cases_share_them_and_both_succeed(option: list[str], whole: WholeRun, tmp_path: Path) -> None:
    with (
        started(*whole.words, *option, folder=tmp_path) as one,
        started(*whole.words, *option, folder=tmp_path) as other,
    ):
        for process in (one, other):
            stdout, stderr = process.communicate(timeout=240)
            assert process.returncode == 0, stderr
            assert sorted(stdout.splitlines()) == [f"out/{case}.nii.gz" for case in CASES]
    assert_as_undisturbed(tmp_path, whole)


@pytest.mark.slow
def test_killed_shard_is_completed_when_it_is_submitted_again_beside_the_others(
    whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    struck(signal.SIGKILL, "os.link", ".case_2.json.", *whole.words, "--shard", "1/2", folder=tmp_path)
    with started(*whole.words, "--shard", "2/2", folder=tmp_path) as other:
        again = drunet(*whole.words, "--shard", "1/2", "--skip-existing")
        _, stderr = other.communicate(timeout=240)
    assert (again.returncode, other.returncode) == (0, 0), again.stderr + stderr
    assert_as_undisturbed(tmp_path, whole)
