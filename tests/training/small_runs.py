"""Trainings of seconds, in this process, for the tests of several modules."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from drunet_cli.training.distributed import Processes, Team
from drunet_cli.training.history import TrainingProgress
from drunet_cli.training.recipe import TrainingSettings
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.session import TrainingPlan, plan_training, read_cases, train
from tests.conversion.small_cases import small_case

N_CASES: Final = 3  # one is held out
STEPS_PER_EPOCH: Final = 2
N_STEPS: Final = 4
CPU: Final = torch.device("cpu")
# Dropout, so that a repeated draw is noticed. Windows of 48, so that the deepest stage has more than one pixel.
SMALL: Final[Mapping[str, Mapping[str, Any]]] = {
    "network": {"base_width": 1, "dropout": 0.1},
    "length": {"epochs": 2, "steps_per_epoch": STEPS_PER_EPOCH},
    "batches": {"size": 2, "windows": [[48, 48]]},
    "optimiser": {"learning_rate": 3e-3},
}
ONE_STEP: Final = {"length": {"steps": 1}}


@dataclass
class Run:
    """A training that has ended."""

    folder: RunFolder
    settings: TrainingSettings
    plan: TrainingPlan
    is_done: bool


@dataclass
class Follower:
    """Remembers what a training tells, and asks it to stop after so many steps."""

    stop_after: float = math.inf
    on_epoch: Callable[[], object] = lambda: None
    seen: list[TrainingProgress] = field(default_factory=list)

    def __call__(self, progress: TrainingProgress) -> None:
        self.seen.append(progress)
        if progress.epoch is not None:
            self.on_epoch()

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return max((told.done for told in self.seen if told.stage == "training"), default=0)

    def should_stop(self) -> bool:
        """Whether the training has taken its steps."""
        return self.step >= self.stop_after


def write_small_cases(folder: Path) -> Path:
    """Write cases with segmentations, of five small slices each."""
    for n in range(N_CASES):
        small_case(folder, name=f"case_{n}", seed=n)
    return folder


def merge(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nest changes of a recipe; the later ones win, number by number."""
    result: dict[str, Any] = {}
    for change in changes:
        for name, value in change.items():
            result[name] = {**result.get(name, {}), **value} if isinstance(value, Mapping) else value
    return result


def small_settings(root: Path, cases: Path, changes: Mapping[str, Any] | None = None, **others: Any) -> TrainingSettings:
    """Settings of a small training. The slices lie beside the cases, so that runs share them."""
    settings = TrainingSettings(
        output=root, sources=[cases], slices=cases.parent / "slices", changes=merge(SMALL, changes or {})
    )
    return replace(settings, **others)


def resuming(settings: TrainingSettings, **others: Any) -> TrainingSettings:
    """Settings that continue a training, without repeating anything that the run folder knows."""
    forgotten: dict[str, Any] = {"sources": [], "changes": {}, "recipe": None, "split_file": None, "init": None}
    return replace(settings, resume=True, **{**forgotten, **others})


def run_training(
    settings: TrainingSettings, follower: Follower | None = None, *, should_stop: Callable[[], bool] | None = None
) -> Run:
    """Train on the CPU as `drunet train` does."""
    follower = follower or Follower()
    plan = read_cases(settings, plan_training(settings))
    team = Team(Processes(), CPU)
    is_done = train(settings, plan, team, on_progress=follower, should_stop=should_stop or follower.should_stop)
    return Run(RunFolder(settings.output), settings, plan, is_done)


def stop_training(settings: TrainingSettings, after: int) -> Run:
    """Train for so many steps."""
    run = run_training(settings, Follower(stop_after=after))
    assert not run.is_done
    return run


def continue_training(settings: TrainingSettings, **others: Any) -> RunFolder:
    """Continue a training to its end."""
    run = run_training(resuming(settings, **others))
    assert run.is_done
    return run.folder


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file."""
    return safetensors.torch.load_file(path)


def document_of(path: Path) -> Any:
    """Read drunet's document of a safetensors file."""
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["drunet"])


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_equal_tensors(one: Path, other: Path) -> None:
    """Compare to the last bit."""
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()] == []


def assert_finite(path: Path) -> None:
    """No number of a file is NaN or infinite."""
    assert [name for name, tensor in tensors_of(path).items() if not tensor.double().isfinite().all()] == []


def assert_same_result(one: RunFolder, other: RunFolder) -> None:
    """Compare every tensor of the three files, and all that is recorded except times."""
    for path, other_path in ((one.best, other.best), (one.last, other.last), (one.state, other.state)):
        assert_equal_tensors(path, other_path)
    times = ("seconds", "slices_per_s", "waiting")
    rows = [[{k: v for k, v in row.items() if k not in times} for row in rows_of(run.metrics)] for run in (one, other)]
    assert rows[0] == rows[1]
    assert one.cases.read_bytes() == other.cases.read_bytes()
