"""Some 150 damaged files, each given as one modality of the golden case to a process of its own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.errors import ExitCode
from tests.cli.small_cohort import SETTINGS
from tests.forks import Done, Forks
from tests.mutations import mutations
from tests.support import GOLDEN_IMAGES, image_options

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
    done: Done
    files: tuple[str, ...]

    def __str__(self) -> str:
        done = self.done
        told = f"exit {done.returncode}, {done.seconds:.1f} s, {done.peak_bytes >> 20} MB, {self.files}: {done.stderr}"
        return f"{self.mutation}: {told}"


def all_runs(folder: Path, forks: Forks, weights: Path) -> list[Run]:
    """Every mutation; the modalities take turns."""
    modalities, runs = list(GOLDEN_IMAGES), []
    for n, mutation in enumerate(mutations(list(GOLDEN_IMAGES.values()))):
        modality, own = modalities[n % len(modalities)], folder / str(n)
        own.mkdir()
        image = own / f"golden_{modality}{mutation.suffix}"
        image.write_bytes(mutation.content)
        options = image_options({**GOLDEN_IMAGES, modality: image})
        words: tuple[str | Path, ...] = ("segment", *options, "--weights", weights, *SETTINGS, "-o", own / "out" / "seg.nii.gz")
        done = forks.run(*words, folder=own, timeout=LIMIT_S)
        files = tuple(sorted(path.name for path in (own / "out").glob("*")))
        runs.append(Run(mutation.name, image, done, files))
    return runs


def breaches_of(run: Run) -> list[str]:
    """What a run did that none may do."""
    done, accepted = run.done, run.done.returncode == SUCCESS
    broken = {
        "another exit code": done.returncode not in (SUCCESS, BAD_INPUT),
        "more or less than warnings and one line": not (ACCEPTANCE if accepted else REFUSAL).fullmatch(done.stderr),
        "a result of a refused file": not accepted and bool(done.stdout),
        # FLAIR is what the others are compared with: where it has another grid, they are named too.
        "the file is not named": not accepted and str(run.image) not in done.stderr,
        "other outputs": run.files != (("seg.json", "seg.nii.gz") if accepted else ()),
        "too much memory": done.peak_bytes > LIMIT_BYTES,
    }
    return [f"{breach}: {run}" for breach, is_so in broken.items() if is_so]


def test_every_damaged_file_is_segmented_or_refused_in_one_line_that_names_it(
    forks: Forks, golden_safetensors: Path, tmp_path: Path
) -> None:
    runs = all_runs(tmp_path, forks, golden_safetensors)
    assert not "\n".join(breach for run in runs for breach in breaches_of(run))
    # Else the mutations would test one way alone.
    assert 0 < sum(run.done.returncode == SUCCESS for run in runs) < len(runs) / 2
