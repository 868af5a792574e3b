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

from drunet_cli.errors import ExitCode
from tests.mutations import N_MUTATIONS, mutations
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIMIT_S: Final = 60.0
LIMIT_BYTES: Final = 4 * 2**30
SUCCESS, BAD_INPUT = ExitCode.DONE, ExitCode.BAD_INPUT

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


def breaches_of(run: Run) -> list[str]:
    """What a run did that none may do."""
    accepted = run.code == SUCCESS
    broken = {
        "another exit code": run.code not in (SUCCESS, BAD_INPUT),
        "more or less than warnings and one line": not (ACCEPTANCE if accepted else REFUSAL).fullmatch(run.stderr),
        "a result of a refused file": not accepted and bool(run.stdout),
        # FLAIR is what the others are compared with: where it has another grid, they are named too.
        "the file is not named": not accepted and str(run.image) not in run.stderr,
        "other outputs": run.files != (("seg.json", "seg.nii.gz") if accepted else ()),
        "too slow": run.seconds > LIMIT_S,
        "too much memory": run.peak_bytes > LIMIT_BYTES,
    }
    return [f"{breach}: {run}" for breach, is_so in broken.items() if is_so]


def test_every_damaged_file_is_segmented_or_refused_in_one_line_that_names_it(tmp_path: Path) -> None:
    runs = all_runs(tmp_path)
    assert not "\n".join(breach for run in runs for breach in breaches_of(run))
    # Else the mutations would test one way alone.
    assert 0 < sum(run.code == SUCCESS for run in runs) < N_MUTATIONS / 2
