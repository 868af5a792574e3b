"""Two hundred damaged files, each given as one modality of the golden case to a process of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.errors import ExitCode
from tests.mutations import N_MUTATIONS, Mutation, mutations
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIMIT_S: Final = 60
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
    """Every mutation, by two forks at a time; the modalities take turns."""
    damaged = mutations(list(GOLDEN_IMAGES.values()))
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(runs_of, folder, damaged, range(half, N_MUTATIONS, 2)) for half in range(2)]
        return [run for half in halves for run in half.result()]


def runs_of(folder: Path, damaged: Sequence[Mutation], numbers: Iterable[int]) -> list[Run]:
    """Some of the mutations, each in a folder of its own, by processes that one process forks."""
    modalities = list(GOLDEN_IMAGES)
    runs = []
    with forking(folder) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in numbers:
            mutation, modality, own = damaged[n], modalities[n % len(modalities)], folder / str(n)
            own.mkdir()
            image = own / f"golden_{modality}{mutation.suffix}"
            image.write_bytes(mutation.content)
            options = image_options({**GOLDEN_IMAGES, modality: image})
            words = ["segment", *map(str, options), *SETTINGS, "-o", str(own / "out" / "seg.nii.gz")]
            process.stdin.write(f"{json.dumps([words, str(own)])}\n")
            process.stdin.flush()
            code, seconds, peak_bytes = json.loads(process.stdout.readline())
            files = tuple(sorted(path.name for path in (own / "out").glob("*")))
            stdout, stderr = ((own / name).read_text() for name in ("stdout", "stderr"))
            runs.append(Run(mutation.name, image, code, stdout, stderr, files, seconds, peak_bytes))
    return runs


SETTINGS: Final = ("--weights", str(GOLDEN_WEIGHTS), "--device", "cpu", "--threads", "1")

# Forks a process for each command line that it reads, with its streams in files of a folder; prints its code, its seconds and
# the most memory that it held. One that outlives the limit is killed. What all runs import is imported once.
FORK: Final = f"""
import json, os, signal, sys, time
from drunet_cli.cli.app import main
import drunet_cli.network.cpu_engine, drunet_cli.segmentation.cohort, drunet_cli.weights.keras, h5py
for line in sys.stdin:
    words, folder = json.loads(line)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
        signal.alarm({LIMIT_S + 1})
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begin, usage.ru_maxrss * unit]), flush=True)
"""


@contextmanager
def forking(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The process that forks, without what the environment says to drunet."""
    unset = ("DRUNET_", "SLURM_", "NO_COLOR", "FORCE_COLOR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    command = [sys.executable, "-c", FORK]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


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
