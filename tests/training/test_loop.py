"""What a training writes, which epoch it keeps, what it tells, and what ends it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from drunet_cli.brats import CHANNELS, REGIONS, ClassMap
from drunet_cli.cli.app import main
from drunet_cli.errors import DeviceError, DivergedError
from drunet_cli.io.geometry import FRAME
from drunet_cli.network.engine import Engine, Precision, WindowMode
from drunet_cli.network.torch_engine import build_model
from drunet_cli.phantom.scanner import make_phantom, write_phantom
from drunet_cli.training import loop, session
from drunet_cli.training.batches import BatchPlan
from drunet_cli.training.history import CaseScore
from drunet_cli.training.learner import Learner
from drunet_cli.training.loop import score_case
from drunet_cli.training.recipe import RecipeName
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.store import StoredCase
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import read_checkpoint
from drunet_cli.weights.structure import tensor_shapes
from tests.conversion.small_cases import SHAPE
from tests.support import image_options
from tests.training.shallow import PUBLISHED, stage_blocks
from tests.training.small_runs import (
    ONE_STEP,
    Follower,
    Run,
    assert_finite,
    assert_same_result,
    rows_of,
    run_training,
    small_settings,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("shallow")

NCR, ED, ET = 1, 2, 3


@pytest.fixture
def train(cases: Path, tmp_path: Path, no_curves: None) -> Callable[..., RunFolder]:
    """Run a small training in tmp_path/run to its end."""

    def run(changes: Mapping[str, Any] | None = None, follower: Follower | None = None, **others: Any) -> RunFolder:
        return run_training(small_settings(tmp_path / "run", cases, changes, **others), follower).folder

    return run


@pytest.fixture
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step changes one number alone, in no time; its loss is its number."""

    def step(self: Learner, pixels: Tensor, plan: BatchPlan) -> Tensor:
        self.averages["head.bias"] += 1
        return torch.tensor(float(plan.step))

    monkeypatch.setattr(Learner, "step", step)


def script_dice(monkeypatch: pytest.MonkeyPatch, *scores: Sequence[float]) -> list[WindowMode]:
    """Let the epochs have these Dice of WT, TC and ET; the list gets the windows that held-out cases were to be run with."""
    left, windows = iter(scores), []

    def score(case: StoredCase, engine: Engine, window: WindowMode, *, on_progress: object) -> CaseScore:
        windows.append(window)
        return CaseScore(case.name, dict(zip(REGIONS, next(left), strict=True)))

    monkeypatch.setattr(loop, "score_case", score)
    return windows


def spoil_steps(monkeypatch: pytest.MonkeyPatch, first: int, *, loss_too: bool) -> None:
    """Make the weights NaN from one step on, counted from 0."""
    step = Learner.step

    def spoilt_step(self: Learner, pixels: Tensor, plan: BatchPlan) -> Tensor:
        loss = step(self, pixels, plan)
        if plan.step < first:
            return loss
        with torch.no_grad():
            self.network.head.weight.fill_(math.nan)
        return loss * math.nan if loss_too else loss

    monkeypatch.setattr(Learner, "step", spoilt_step)


# What is written


def test_every_epoch_is_recorded_and_its_checkpoints_say_what_they_are(whole: Run) -> None:
    rows = rows_of(whole.folder.metrics)
    [held_out] = whole.plan.split.validation
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4")]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert [(row["epoch"], row["case"]) for row in rows_of(whole.folder.cases)] == [("1", held_out), ("2", held_out)]
    assert whole.folder.curves.read_bytes().startswith(b"\x89PNG")
    for path in (whole.folder.best, whole.folder.last):
        checkpoint = read_checkpoint(path)
        build_model(checkpoint)  # a whole network
        metadata = checkpoint.metadata
        assert (metadata.name, metadata.base_width, metadata.bn_epsilon, metadata.dropout) == ("run", 1, 1e-5, 0.1)
        assert (metadata.window, "DR-Unet104" in metadata.citation) == ("auto", True)
    begin = "drunet train, recipe modern, seed 0, cases learnt from: 2, epoch 2, step 4 of 4"
    dice = r"held out: 1, their mean Dice: WT [01]\.\d{3}, TC [01]\.\d{3}, ET [01]\.\d{3}"
    assert re.fullmatch(f"{begin}, {dice}", read_checkpoint(whole.folder.last).metadata.origin)


def test_network_that_learnt_on_whole_frames_is_scored_on_them_and_says_so(
    train: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = script_dice(monkeypatch, (1, 1, 1))
    folder = train({**ONE_STEP, "batches": {"windows": []}}, recipe=RecipeName.PAPER)
    assert (windows, read_checkpoint(folder.best).metadata.window) == ([WindowMode.FULL], "full")


@pytest.mark.parametrize("decay", [0.999, 0.0])
def test_checkpoint_holds_the_running_average_or_the_weights_themselves(decay: float, train: Callable[..., RunFolder]) -> None:
    folder = train({"length": {"steps": 2}, "average": {"decay": decay}})
    state, kept = tensors_of(folder.state), tensors_of(folder.last)
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in kept.items())
    assert torch.equal(kept["head.weight"], state["network.head.weight"]) == (decay == 0)


# Which epoch is the best, and how long epochs are


@pytest.mark.usefixtures("quick_steps")
def test_best_checkpoint_is_that_of_the_epoch_that_is_marked_best(
    train: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_dice(monkeypatch, (0.5, 0.5, 0.5), (0.6, 0.6, 0.6), (0.9, 0.3, 0.2))
    kept: list[bytes] = []
    follower = Follower(on_epoch=lambda: kept.append((tmp_path / "run" / "last.safetensors").read_bytes()))
    folder = train({"length": {"epochs": 3, "steps_per_epoch": 1}}, follower)
    assert [row["best"] for row in rows_of(folder.metrics)] == ["1", "1", "0"]
    assert len(set(kept)) == 3
    assert [folder.best.read_bytes(), folder.last.read_bytes()] == kept[1:]


@pytest.mark.usefixtures("quick_steps")
def test_without_held_out_cases_the_last_epoch_is_the_best(train: Callable[..., RunFolder]) -> None:
    folder = train({"length": {"steps_per_epoch": 1}}, val_fraction=0)
    assert folder.best.read_bytes() == folder.last.read_bytes()
    assert [row["dice_mean"] for row in rows_of(folder.metrics)] == ["", ""]


@pytest.mark.usefixtures("quick_steps")
def test_held_out_cases_are_scored_as_often_as_asked_and_after_the_last_epoch_which_may_be_short(
    train: Callable[..., RunFolder],
) -> None:
    folder = train({"length": {"steps": 5, "steps_per_epoch": 2}, "validation": {"every_epochs": 2}})
    rows = rows_of(folder.metrics)
    assert [(row["step"], row["dice_mean"] != "") for row in rows] == [("2", False), ("4", True), ("5", True)]


@pytest.mark.usefixtures("quick_steps")
def test_epoch_is_all_slices_where_its_length_is_not_given_and_its_loss_the_mean_over_its_steps(
    train: Callable[..., RunFolder],
) -> None:
    folder = train({"length": {"epochs": 2, "steps_per_epoch": 0}})
    n_steps = 2 * SHAPE[2] // 2  # two cases, batches of two
    mean = (n_steps - 1) / 2
    assert [(int(row["step"]), float(row["loss"])) for row in rows_of(folder.metrics)] == [
        (n_steps, mean),
        (2 * n_steps, mean + n_steps),
    ]


# The same again, and what is told


def test_same_seed_gives_the_same_bits_and_another_seed_others(
    whole: Run, train: Callable[..., RunFolder], tmp_path: Path
) -> None:
    assert_same_result(train(), whole.folder)
    other = train({"seed": 1, **ONE_STEP}, split_file=whole.folder.split, overwrite=True)
    assert not torch.equal(tensors_of(other.last)["head.weight"], tensors_of(whole.folder.last)["head.weight"])


@pytest.mark.usefixtures("quick_steps")
def test_progress_is_told_step_by_step_and_epoch_by_epoch(train: Callable[..., RunFolder]) -> None:
    follower = Follower()
    train(None, follower)
    told = [
        "epoch" if each.epoch else (each.stage.value, each.done, each.total)
        for each in follower.seen
        if each.stage == "training" or each.done == each.total
    ]
    of_epochs = [
        [*(("training", 2 * n + step, 4) for step in (1, 2)), ("validating", SHAPE[2], SHAPE[2]), "epoch"] for n in (0, 1)
    ]
    assert told == [*of_epochs[0], *of_epochs[1]]
    assert [(each.n_epochs, each.left_s > 0) for each in follower.seen if each.epoch] == [(2, True), (2, False)]


def test_training_uses_the_threads_and_the_algorithms_that_it_was_given_and_records_them(
    train: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "has_bfloat16", lambda: True)
    seen: list[tuple[int, bool]] = []
    follower = Follower(on_epoch=lambda: seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())))
    train(ONE_STEP, follower, threads=3, deterministic=True, precision=Precision.BFLOAT16)
    folder = train(ONE_STEP, follower, threads=1, overwrite=True)
    assert seen == [(3, True), (1, False)]
    [recorded] = json.loads(folder.document.read_text())["sessions"]
    assert (recorded["threads"], recorded["deterministic"], recorded["precision"]) == (1, False, "float32")
    assert {tensor.dtype for tensor in tensors_of(folder.last).values()} == {torch.float32}


# What ends a training


def test_learning_rate_that_is_far_too_high_ends_the_training_naming_step_and_remedy(
    train: Callable[..., RunFolder], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"at step \d+ \(learning rate .+--learning-rate below 1e\+30") as caught:
        train({"optimiser": {"learning_rate": 1e30}})
    assert "no epoch was complete, none is kept" in str(caught.value)
    assert {path.name for path in (tmp_path / "run").glob("*.safetensors")} == {"state.safetensors"}
    assert_finite(tmp_path / "run" / "state.safetensors")


@pytest.mark.parametrize("loss_too", [True, False], ids=["loss", "weights"])
def test_training_that_diverges_keeps_the_files_of_the_last_good_epoch(
    loss_too: bool, train: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, 3, loss_too=loss_too)
    files = [tmp_path / "run" / f"{name}.safetensors" for name in ("last", "best", "state")]
    kept: list[bytes] = []
    follower = Follower(on_epoch=lambda: kept.extend(path.read_bytes() for path in files))
    what = "the loss" if loss_too else "a weight"
    with pytest.raises(DivergedError, match=rf"{what} is no longer finite at step 4 .+last.safetensors holds .+ epoch 1"):
        train(None, follower)
    assert [path.read_bytes() for path in files] == kept
    assert [row["epoch"] for row in rows_of(tmp_path / "run" / "metrics.csv")] == ["1"]


def test_loss_that_is_not_finite_is_noticed_before_the_epoch_ends_and_no_such_state_is_saved(
    train: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, 1, loss_too=True)
    follower = Follower()
    with pytest.raises(DivergedError):
        train({"length": {"steps": 100, "steps_per_epoch": 100}}, follower)
    assert follower.step <= 10
    with pytest.raises(DivergedError):  # asked to stop right after the first bad step
        train(None, Follower(stop_after=2), overwrite=True)
    assert_finite(tmp_path / "run" / "state.safetensors")


ERRORS: Final[dict[str, tuple[int, Exception, type[Exception], str]]] = {
    "memory": (4, torch.OutOfMemoryError("CUDA out of memory."), DeviceError, "for a batch of 4; try --batch-size 2"),
    "memory for one slice": (1, torch.OutOfMemoryError("CUDA out of memory."), DeviceError, "take a smaller --base-width"),
    "a fault of ours": (2, RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
}


@pytest.mark.parametrize(("size", "raised", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_error_of_a_step_says_what_to_do_where_memory_is_the_cause(
    size: int,
    raised: Exception,
    error: type[Exception],
    message: str,
    train: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*_: object) -> Tensor:
        raise raised

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(error, match=message):
        train({"batches": {"size": size}})


# Scores of held-out cases


def case_of(*classes: int) -> StoredCase:
    """A case in memory: a block of each class beside one another, off the middle; its FLAIR gives the truth away."""
    truth = np.zeros((5, FRAME, FRAME), dtype=np.uint8)
    for n, index in enumerate(classes):
        truth[2:4, 60:90, 40 + 10 * n : 50 + 10 * n] = index
    pixels = np.zeros((*truth.shape, 4), dtype=np.uint8)
    pixels[1:-1, 50:190, 30:200] = 40  # brain; the first and the last slice are blank
    pixels[..., 0] += 40 * truth
    case = SimpleNamespace(name="case", slices=lambda: pixels, classes=lambda: truth)
    return cast(StoredCase, case)


def engine_that(answers: Callable[[npt.NDArray[np.uint8]], ClassMap], shapes: set[tuple[int, ...]] | None = None) -> Engine:
    """An engine that is told the truth (by the FLAIR) and answers with classes made of it."""

    def classes(slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = lambda _: None) -> ClassMap:
        if shapes is not None:
            shapes.add(slices.shape[1:3])
        on_progress(len(slices))
        return answers(np.where(slices[..., 0] > 0, slices[..., 0] // 40 - 1, 0).astype(np.uint8))

    return cast(Engine, SimpleNamespace(classes=classes, batch_size=1))


# WT = NCR + ED + ET, TC = NCR + ET, ET = ET; two empty regions agree: Dice 1.
SCORES: Final[dict[str, tuple[tuple[int, ...], Callable[[npt.NDArray[np.uint8]], ClassMap], tuple[float, ...]]]] = {
    "right": ((NCR, ED, ET), lambda truth: truth, (1, 1, 1)),
    "right that there is none": ((), lambda truth: truth, (1, 1, 1)),
    "blind": ((ED, ET), np.zeros_like, (0, 0, 0)),
    "blind where only oedema is": ((ED,), np.zeros_like, (0, 1, 1)),
    "all taken for oedema": ((NCR, ED, ET), lambda truth: np.where(truth > 0, ED, 0).astype(np.uint8), (1, 0, 0)),
    "tumour where none is": ((), lambda truth: np.full_like(truth, ED), (0, 1, 1)),
    # 2 n / (n + 2 n): half of the region is found.
    "half": ((ET,), lambda truth: truth * (np.arange(truth.shape[1])[:, None] % 2).astype(np.uint8), (2 / 3,) * 3),
}


@pytest.mark.parametrize(("classes", "answers", "dice"), SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("window", list(WindowMode))
def test_held_out_case_is_scored_by_the_regions_of_brats_on_the_windows_that_the_network_knows(
    window: WindowMode,
    classes: tuple[int, ...],
    answers: Callable[[npt.NDArray[np.uint8]], ClassMap],
    dice: tuple[float, ...],
) -> None:
    shapes: set[tuple[int, ...]] = set()
    told: list[tuple[int, int]] = []
    score = score_case(case_of(*classes), engine_that(answers, shapes), window, on_progress=lambda *n: told.append(n))
    assert tuple(score.dice.values()) == pytest.approx(dice)
    # The brain lies in x 50 to 190 and y 30 to 200, of the grid 32 to 208 and 0 to 208.
    assert shapes == ({(240, 240)} if window is WindowMode.FULL else {(176, 208)})
    assert told[-1] == (5, 5)


# The whole


@pytest.mark.slow
def test_segment_takes_the_best_checkpoint(train: Callable[..., RunFolder], cases: Path, tmp_path: Path) -> None:
    images = {modality: cases / "case_0" / f"case_0_{modality}.nii" for modality in CHANNELS}
    with stage_blocks(PUBLISHED):
        weights = train(ONE_STEP).best
        assert open_weights(str(weights)).state.keys() == tensor_shapes(1).keys()
        words = ["--weights", str(weights), "-o", str(tmp_path / "seg.nii.gz"), "--device", "cpu"]
        assert main(["segment", *image_options(images), *words]) == 0
    assert (tmp_path / "seg.nii.gz").exists()


@pytest.mark.slow
def test_narrow_network_learns_from_synthetic_cases(tmp_path: Path, no_curves: None) -> None:
    for seed in range(3):
        write_phantom(make_phantom(seed, shape=(112, 112, 24)), tmp_path / "cases", f"phantom_{seed}")
    # A narrow network and few steps want a higher learning rate than that of the recipe.
    changes = {
        "network": {"dropout": 0.0},
        "length": {"steps": 80, "steps_per_epoch": 40},
        "batches": {"size": 4, "windows": [[80, 80]]},
        "optimiser": {"learning_rate": 0.02},
    }
    folder = run_training(small_settings(tmp_path / "run", tmp_path / "cases", changes, val_fraction=0)).folder
    losses = [float(row["loss"]) for row in rows_of(folder.metrics)]
    assert losses[1] < 0.8 * losses[0]  # 1.0 and 1.5 were seen
