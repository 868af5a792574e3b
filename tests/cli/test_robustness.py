"""Two hundred damaged files, each given as one modality of the golden case to a process of its own."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.mutations import N_MUTATIONS, mutations
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIMIT_S: Final = 60.0  # issue 2
LIMIT_BYTES: Final = 4 * 2**30  # issue 2
SUCCESS, BAD_INPUT = 0, 3  # cli.md

# Whatever may come before: warnings. The one line. Whatever may follow it: the indented table of grids that differ.
REFUSAL: Final = re.compile(r"(Warning: .+\n)*Error: .+\n(  .*\n)*")
ACCEPTANCE: Final = re.compile(r"(Warning: .+\n)*golden\S*: WT .+ mL, TC .+ mL, ET .+ mL \(.+\)\n")


@dataclass(frozen=True)
class Run:
    """What became of one damaged file. files: names in the output folder afterwards."""

    mutation: str
    image: Path
    code: int
    stdout: str
    stderr: str
    files: tuple[str, ...]
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.mutation}: exit {self.code}, {self.seconds:.1f} s, {self.peak_bytes >> 20} MB, {self.files}: {self.stderr}"
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return all_runs(tmp_path_factory.mktemp("mutations"))


def all_runs(folder: Path) -> list[Run]:
    """Every mutation, two at a time, each in a folder of its own; the modalities take turns."""
    modalities = list(GOLDEN_IMAGES)

    def run(n: int) -> Run:
        mutation, modality, own = damaged[n], modalities[n % len(modalities)], folder / str(n)
        own.mkdir()
        image = own / f"golden_{modality}{mutation.suffix}"
        image.write_bytes(mutation.content)
        options = image_options({**GOLDEN_IMAGES, modality: image})
        code, seconds, peak_bytes = measured(["segment", *options, *SETTINGS, "-o", str(own / "out" / "seg.nii.gz")], own)
        files = tuple(sorted(path.name for path in (own / "out").glob("*")))
        stdout, stderr = ((own / name).read_text() for name in ("stdout", "stderr"))
        return Run(mutation.name, image, code, stdout, stderr, files, seconds, peak_bytes)

    damaged = mutations(list(GOLDEN_IMAGES.values()))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(N_MUTATIONS)))


SETTINGS: Final = ("--weights", str(GOLDEN_WEIGHTS), "--device", "cpu", "--threads", "1")


def measured(arguments: Iterable[str], folder: Path) -> tuple[int, float, int]:
    """Run drunet with its streams in files of `folder`; give its code, its seconds and the most memory that it held.

    A process that outlives the limit is killed. Linux counts into the peak what this process held when it started the child,
    some hundreds of megabytes at most.
    """
    unset = ("DRUNET_", "SLURM_", "NO_COLOR", "FORCE_COLOR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    begin = time.monotonic()
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        command = [sys.executable, "-m", "drunet_cli", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment)
        timer = threading.Timer(LIMIT_S + 1, process.kill)
        timer.start()
        # Popen.wait would not tell this child's memory from that of the others.
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, time.monotonic() - begin, usage.ru_maxrss * unit


def breaches(runs: Iterable[Run]) -> str:
    return "\n".join(map(str, runs))


def test_every_damaged_file_is_segmented_or_refused_as_bad_input(runs: list[Run]) -> None:
    assert not breaches(run for run in runs if run.code not in (SUCCESS, BAD_INPUT))


def test_refusal_is_one_line_on_stderr_and_nothing_on_stdout(runs: list[Run]) -> None:
    refused = [run for run in runs if run.code != SUCCESS]
    assert not breaches(run for run in refused if not REFUSAL.fullmatch(run.stderr) or run.stdout)


def test_refusal_names_the_damaged_file(runs: list[Run]) -> None:
    refused = [run for run in runs if run.code != SUCCESS]
    # FLAIR is what the others are compared with: where it has another grid, they are named too.
    assert not breaches(run for run in refused if str(run.image) not in run.stderr)


def test_success_says_nothing_but_warnings_and_the_summary(runs: list[Run]) -> None:
    done = [run for run in runs if run.code == SUCCESS]
    assert not breaches(run for run in done if not ACCEPTANCE.fullmatch(run.stderr))


def test_outputs_are_there_after_success_alone(runs: list[Run]) -> None:
    expected = {True: ("seg.json", "seg.nii.gz"), False: ()}
    assert not breaches(run for run in runs if run.files != expected[run.code == SUCCESS])


def test_no_damaged_file_takes_more_than_a_minute(runs: list[Run]) -> None:
    assert not breaches(run for run in runs if run.seconds > LIMIT_S)


def test_no_damaged_file_takes_more_than_four_gigabytes(runs: list[Run]) -> None:
    assert not breaches(run for run in runs if run.peak_bytes > LIMIT_BYTES)


def test_some_damage_does_no_harm_and_most_is_refused(runs: list[Run]) -> None:
    """Else the mutations test one way alone."""
    assert 0 < sum(run.code == SUCCESS for run in runs) < N_MUTATIONS / 2
