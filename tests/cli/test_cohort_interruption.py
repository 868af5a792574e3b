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

from tests.cli.small_cohort import SETTINGS, write_cases
from tests.forks import Forks, Strike
from tests.support import Drunet, names_in

N_CASES: Final = 6
CASES: Final = [f"case_{n}" for n in range(N_CASES)]
LABEL_FILES: Final = [f"{case}{suffix}" for case in CASES for suffix in (".json", ".nii.gz")]
OUTPUTS: Final = sorted([*LABEL_FILES, "labels_itksnap.txt", "labels_slicer.ctbl", "summary.csv", "summary.xlsx"])
N_DISTURBED: Final = 6
SIGNALS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES: Final = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Reading the weights and making the engine take this share of a run's time; before there is nothing to be lost.
BEGINNING: Final = 0.3
# Some steps of writing: what Python is about to do, and with which temporary. All of them: tests/segmentation/test_outputs.py.
STEPS: Final = [("os.link", "/.case_2.json."), ("os.link", "/.case_2.nii.gz."), ("os.rename", "/.summary.xlsx.")]
CLAIMING: Final = ("os.link", "/..case_2.nii.gz.claim.")


@dataclass(frozen=True)
class WholeRun:
    """A run that nobody disturbs: its words, how long it takes, and what it writes into the folder `out`."""

    words: Sequence[str]
    seconds: float
    label_maps: Mapping[str, bytes]
    sidecars: Mapping[str, Any]
    summary: Sequence[Mapping[str, str]]


@pytest.fixture(scope="module")
def whole(golden_safetensors: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    cohort = write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)
    folder = tmp_path_factory.mktemp("whole")
    words = ("segment", str(cohort), "--weights", str(golden_safetensors), *SETTINGS, "-o", "out")
    done = forks.run(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    return WholeRun(words, done.seconds, label_maps(folder), sidecars(folder), summary(folder))


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
    assert names_in(folder / "out") == OUTPUTS
    assert label_maps(folder) == whole.label_maps
    assert sidecars(folder) == whole.sidecars
    assert summary(folder) == whole.summary


def disturb(number: signal.Signals, whole: WholeRun, forks: Forks, folder: Path, *options: str, after_s: float) -> None:
    """One signal, which ends the run with its code; a run that hears it leaves nothing unfinished of its own."""
    of_earlier_runs = temporaries(folder)
    with forks.started(*whole.words, *options, folder=folder) as run:
        time.sleep(after_s)
        run.send_signal(number)
        done = run.wait()
    # Before drunet has the word, the signal itself ends the process: to a shell that is the same code. At the end it is done.
    assert done.returncode in (0, -number, CODES.get(number)), done.stderr
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    if number in CODES:
        assert temporaries(folder) <= of_earlier_runs
    assert_whole_where_there(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(N_DISTURBED), ids=lambda n: f"{n}-{SIGNALS[n % 3].name}")
def test_disturbed_run_is_completed_by_the_next(n: int, whole: WholeRun, forks: Forks, drunet: Drunet, tmp_path: Path) -> None:
    share = BEGINNING + (1 - BEGINNING) * (n + 0.5) / N_DISTURBED
    disturb(SIGNALS[n % 3], whole, forks, tmp_path, after_s=share * whole.seconds)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
def test_run_that_is_disturbed_again_and_again_is_completed_at_last(
    whole: WholeRun, forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    for n in range(6):
        disturb(SIGNALS[n % 3], whole, forks, tmp_path, "--skip-existing", after_s=(0.5 + n / 30) * whole.seconds)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "temporary", "options"),
    [
        *((*step, []) for step in (CLAIMING, *STEPS)),
        *(("os.rename", f"/.case_2.{kind}.", ["--overwrite"]) for kind in ("json", "nii.gz")),
    ],
    ids=str,
)
def test_run_killed_while_it_writes_or_replaces_is_completed_by_the_next(
    event: str, temporary: str, options: list[str], whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    if options:
        assert drunet(*whole.words).returncode == 0
    done = drunet(*whole.words, *options, strike=Strike(signal.SIGKILL, event, temporary))
    assert done.returncode == -signal.SIGKILL
    assert_whole_where_there(tmp_path, whole)
    assert_next_run_completes(drunet, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "temporary", "number"),
    [(*STEPS[0], signal.SIGINT), (*STEPS[0], signal.SIGTERM), (*STEPS[1], signal.SIGTERM), (*STEPS[2], signal.SIGINT)],
    ids=str,
)
def test_signal_while_outputs_are_written_ends_the_run_with_its_code_and_nothing_unfinished(
    event: str, temporary: str, number: signal.Signals, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    done = drunet(*whole.words, strike=Strike(number, event, temporary))
    finished = temporary == STEPS[2][1]  # the last thing that a run does
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
def test_two_runs_over_the_same_cases_share_them_and_both_succeed(
    option: list[str], whole: WholeRun, forks: Forks, tmp_path: Path
) -> None:
    forks.warm(2)
    with (
        forks.started(*whole.words, *option, folder=tmp_path) as one,
        forks.started(*whole.words, *option, folder=tmp_path) as other,
    ):
        for run in (one, other):
            done = run.wait()
            assert done.returncode == 0, done.stderr
            assert sorted(done.stdout.splitlines()) == [f"out/{case}.nii.gz" for case in CASES]
    assert_as_undisturbed(tmp_path, whole)


@pytest.mark.slow
def test_killed_shard_is_completed_when_it_is_submitted_again_beside_the_others(
    whole: WholeRun, forks: Forks, drunet: Drunet, tmp_path: Path
) -> None:
    drunet(*whole.words, "--shard", "1/2", strike=Strike(signal.SIGKILL, "os.link", "/.case_2.json."))
    with forks.started(*whole.words, "--shard", "2/2", folder=tmp_path) as other:
        again, beside = drunet(*whole.words, "--shard", "1/2", "--skip-existing"), other.wait()
    assert (again.returncode, beside.returncode) == (0, 0), again.stderr + beside.stderr
    assert_as_undisturbed(tmp_path, whole)
