"""Trainings of seconds, in process: what they write, what they keep, and what ends them."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from drunet_cli.brats import CHANNELS, REGIONS
from drunet_cli.errors import DeviceError, DivergedError, MisuseError, WeightsError
from drunet_cli.network.engine import Engine, Precision, WindowMode
from drunet_cli.network.torch_engine import build_model
from drunet_cli.training import loop, session, validation
from drunet_cli.training.batches import BatchPlan, Planner
from drunet_cli.training.cases import read_split
from drunet_cli.training.distributed import Team
from drunet_cli.training.feed import Feed
from drunet_cli.training.history import Epoch
from drunet_cli.training.learner import Learner
from drunet_cli.training.loop import Training
from drunet_cli.training.preparation import Preparation, Request, fill, settle
from drunet_cli.training.processes import Processes
from drunet_cli.training.recipe import RecipeName, encoded, read_recipe
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.session import Session
from drunet_cli.training.state import Progress
from drunet_cli.training.store import open_store
from drunet_cli.training.validation import CaseScore, HeldOut
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.conversion.small_cases import SHAPE
from tests.support import Drunet, image_options

N_CASES: Final = 3  # of which a fifth is held out: one
STEPS_PER_EPOCH: Final = 3
BATCH_SIZE: Final = 2
CPU: Final = torch.device("cpu")
# Dropout, so that its draws are seen to be repeated. Windows of 48, so that the deepest stage has more than one pixel.
SMALL: Final[Mapping[str, Mapping[str, Any]]] = {
    "network": {"base_width": 1, "dropout": 0.1},
    "length": {"epochs": 2, "steps_per_epoch": STEPS_PER_EPOCH},
    "batches": {"size": BATCH_SIZE, "windows": [[48, 48]]},
    "optimiser": {"learning_rate": 3e-3},
}
TIMES: Final = ("seconds", "slices_per_s", "waiting")


@dataclass(frozen=True)
class Run:
    """A training that was ended, and what it said meanwhile."""

    folder: RunFolder
    request: Request
    preparation: Preparation
    is_done: bool


@dataclass
class Follower(Watcher):
    """Remembers; and says stop when so many steps are done."""

    stop_after: float = math.inf
    step: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    on_epoch: Callable[[Epoch], object] = lambda _: None

    def stepped(self, done: int, n_steps: int, *, loss: float | None, slices_per_s: float) -> None:
        self.step = done

    def finished(self, epoch: Epoch, n_epochs: int, *, left_s: float) -> None:
        self.epochs.append(epoch)
        self.on_epoch(epoch)

    def should_stop(self) -> bool:
        return self.step >= self.stop_after


def merged(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """The later wins, setting by setting."""
    result: dict[str, Any] = {}
    for change in changes:
        for name, value in change.items():
            result[name] = {**result.get(name, {}), **value} if isinstance(value, Mapping) else value
    return result


def asked(root: Path, cases: Path, changes: Mapping[str, Any] | None = None, **others: Any) -> Request:
    """A small training on these cases, whose slices lie beside them, so that the runs of a module share them."""
    request = Request(
        run=RunFolder(root), sources=[cases], slices=cases.parent / "slices", changes=merged(SMALL, changes or {})
    )
    return replace(request, **others)


def resumed(request: Request, **others: Any) -> Request:
    """The same again, without a word of what the run knows."""
    return replace(request, **{"sources": [], "changes": {}, "recipe": None, "split": None, "resume": True, **others})


def trained(request: Request, watcher: Watcher | None = None, **options: Any) -> Run:
    """What `drunet train` does of it, on the CPU."""
    preparation = fill(settle(request), Watcher())
    given: dict[str, Any] = {
        "preparation": preparation,
        "run": request.run,
        "slices": request.slices,
        "team": Team(Processes(), CPU),
        "device": CPU,
        "watcher": watcher or Watcher(),
        **options,
    }
    if isinstance(watcher, Follower):
        given.setdefault("should_stop", watcher.should_stop)
    return Run(request.run, request, preparation, session.run(Session(**given)))


def tensors_of(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def document_of(path: Path) -> Any:
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["drunet"])


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def assert_equal_tensors(one: Path, other: Path) -> None:
    """To the last bit, NaN too."""
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()] == []


def assert_finite(path: Path) -> None:
    assert [name for name, tensor in tensors_of(path).items() if not tensor.double().isfinite().all()] == []


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def metrics_of(folder: RunFolder) -> list[dict[str, str]]:
    """Without what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows_of(folder.metrics)]


def assert_same_result(one: RunFolder, other: RunFolder) -> None:
    """Every tensor of all three files, and all that is recorded but times."""
    for path, other_path in ((one.best, other.best), (one.last, other.last), (one.state, other.state)):
        assert_equal_tensors(path, other_path)
    assert metrics_of(one) == metrics_of(other)
    assert one.cases.read_bytes() == other.cases.read_bytes()


def poisoned(monkeypatch: pytest.MonkeyPatch, at_step: int, *, loss_too: bool) -> None:
    """From one step on, counted from 0, the weights are no longer numbers."""
    step = Learner.step

    def poisoned_step(self: Learner, pixels: Tensor, plan: BatchPlan) -> Tensor:
        loss = step(self, pixels, plan)
        if plan.step < at_step:
            return loss
        with torch.no_grad():
            self.network.head.weight.fill_(math.nan)
        return loss * math.nan if loss_too else loss

    monkeypatch.setattr(Learner, "step", poisoned_step)


def scripted_dice(monkeypatch: pytest.MonkeyPatch, *values: float) -> list[WindowMode]:
    """These Dice, one after another, for the one held-out case; how it was to be segmented is entered in the list."""
    left = iter(values)
    modes: list[WindowMode] = []

    def scripted(case: HeldOut, engine: Engine, *, window: WindowMode, on_progress: object) -> CaseScore:
        modes.append(window)
        return CaseScore(case.name, dict.fromkeys(REGIONS, next(left)))

    monkeypatch.setattr(validation, "score", scripted)
    return modes


@pytest.fixture(scope="module")
def whole(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that nobody disturbs, of two epochs of three steps; with everything that it writes."""
    return trained(asked(tmp_path_factory.mktemp("whole") / "run", cases))


@pytest.fixture
def uncurved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes as long as three steps."""
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


# The run folder


def test_run_folder_holds_what_its_documentation_says(whole: Run) -> None:
    optional = {"tensorboard"}  # an extra
    assert sorted({path.name for path in whole.folder.root.iterdir()} - optional) == [
        "best.safetensors",
        "cases.csv",
        "config.toml",
        "curves.png",
        "last.safetensors",
        "metrics.csv",
        "run.json",
        "split.json",
        "state.safetensors",
    ]


def test_training_to_the_end_says_so(whole: Run) -> None:
    assert whole.is_done


def test_recipe_and_split_of_the_run_folder_are_those_of_the_training(whole: Run) -> None:
    assert read_recipe(whole.folder.config) == whole.preparation.recipe
    split = whole.preparation.split
    assert read_split(whole.folder.split, [*split.train, *split.validation]) == split


def test_metrics_have_a_row_an_epoch(whole: Run) -> None:
    rows = rows_of(whole.folder.metrics)
    assert list(rows[0]) == [
        *("epoch", "step", "learning_rate", "loss", "dice_WT", "dice_TC", "dice_ET", "dice_mean", "best"),
        *TIMES,
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


def test_table_of_cases_has_a_row_for_each_held_out_case_of_each_epoch(whole: Run) -> None:
    [held_out] = whole.preparation.split.validation
    assert [(row["epoch"], row["case"]) for row in rows_of(whole.folder.cases)] == [("1", held_out), ("2", held_out)]


def test_curves_are_a_picture(whole: Run) -> None:
    with Image.open(whole.folder.curves) as image:
        image.load()
        assert (image.format, image.width > 500) == ("PNG", True)


def test_run_document_records_the_session(whole: Run) -> None:
    [recorded] = json.loads(whole.folder.document.read_text())["sessions"]
    assert recorded["cases"].keys() == {"case_0", "case_1", "case_2"}
    assert (recorded["from_step"], recorded["n_steps"], recorded["device"]) == (0, 6, "cpu")
    assert (recorded["precision"], recorded["versions"]["torch"]) == ("float32", torch.__version__)


def test_no_file_of_a_run_holds_the_place_of_the_run_or_of_its_cases(whole: Run, cases: Path) -> None:
    for path in files_below(whole.folder.root):
        for place in (whole.folder.root.parent, cases.parent):
            assert str(place).encode() not in path.read_bytes(), path.name


def test_progress_is_told_step_by_step_and_epoch_by_epoch(uncurved: None, cases: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    class Listener(Watcher):
        def stepped(self, done: int, n_steps: int, *, loss: float | None, slices_per_s: float) -> None:
            assert n_steps == 6
            told.append(("step", done))

        def finished(self, epoch: Epoch, n_epochs: int, *, left_s: float) -> None:
            assert n_epochs == 2
            told.append(("epoch", epoch.epoch))

        def validating(self, case: str, done: int, n_slices: int) -> None:
            assert n_slices == SHAPE[2]
            if done == n_slices:
                told.append((case, done))

    request = asked(tmp_path / "run", cases)
    [held_out] = trained(request, Listener()).preparation.split.validation
    epochs = [[*(("step", 3 * n + step) for step in (1, 2, 3)), (held_out, 5), ("epoch", n + 1)] for n in (0, 1)]
    assert told == [*epochs[0], *epochs[1]]


# Checkpoints


def test_checkpoints_say_what_they_are(whole: Run) -> None:
    for path in (whole.folder.best, whole.folder.last):
        metadata = read_checkpoint(path).metadata
        assert (metadata.base_width, metadata.bn_epsilon, metadata.dropout, metadata.window) == (1, 1e-5, 0.1, "auto")
        assert metadata.name == "run"
        assert "DR-Unet104" in metadata.citation


def test_origin_of_a_checkpoint_tells_the_recipe_the_epoch_and_its_dice(whole: Run) -> None:
    origin = read_checkpoint(whole.folder.last).metadata.origin
    begin = "drunet train, recipe modern, seed 0, cases learnt from: 2, epoch 2, step 6 of 6"
    dice = r"held out: 1, their mean Dice: WT [01]\.\d{3}, TC [01]\.\d{3}, ET [01]\.\d{3}"
    assert re.fullmatch(f"{begin}, {dice}", origin), origin


def test_checkpoints_are_whole_networks(whole: Run) -> None:
    for path in (whole.folder.best, whole.folder.last):
        build_model(read_checkpoint(path))


def test_network_that_learnt_on_whole_frames_is_not_to_be_run_on_windows(uncurved: None, cases: Path, tmp_path: Path) -> None:
    changes = {"network": {"base_width": 1}, "length": {"steps": 1}, "batches": {"size": 2}}
    request = Request(
        run=RunFolder(tmp_path / "run"),
        sources=[cases],
        slices=cases.parent / "slices",
        recipe=RecipeName.PAPER,
        changes=changes,
    )
    metadata = read_checkpoint(trained(request).folder.best).metadata
    assert (metadata.window, metadata.dropout) == ("full", 0.2)
    assert "recipe paper" in metadata.origin


@pytest.mark.slow
def test_segment_takes_the_best_checkpoint(whole: Run, cases: Path, drunet: Drunet, tmp_path: Path) -> None:
    images = {modality: cases / "case_0" / f"case_0_{modality}.nii" for modality in CHANNELS}
    done = drunet("segment", *image_options(images), "--weights", whole.folder.best, "-o", "seg.nii.gz", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "seg.nii.gz\n"), done.stderr


@pytest.mark.parametrize(("windows", "window"), [([], WindowMode.FULL), ([[48, 48]], WindowMode.AUTO)], ids=["full", "auto"])
def test_held_out_cases_are_scored_as_the_network_is_trained(
    windows: list[list[int]],
    window: WindowMode,
    uncurved: None,
    cases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = scripted_dice(monkeypatch, 0.2)
    trained(asked(tmp_path / "run", cases, {"length": {"epochs": 1, "steps_per_epoch": 1}, "batches": {"windows": windows}}))
    assert seen == [window]


def test_best_is_the_epoch_of_the_best_mean_dice(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_dice(monkeypatch, 0.2, 0.6, 0.4)
    request = asked(tmp_path / "run", cases, {"length": {"epochs": 3, "steps_per_epoch": 1}})
    kept: list[bytes] = []
    follower = Follower(on_epoch=lambda _: kept.append(request.run.last.read_bytes()))
    trained(request, follower)
    assert len(set(kept)) == 3
    assert request.run.best.read_bytes() == kept[1]
    assert request.run.last.read_bytes() == kept[2]
    assert [row["best"] for row in rows_of(request.run.metrics)] == ["1", "1", "0"]


def test_best_is_by_the_mean_of_the_regions(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_epochs = iter([{"WT": 0.5, "TC": 0.5, "ET": 0.5}, {"WT": 0.9, "TC": 0.3, "ET": 0.2}])
    monkeypatch.setattr(validation, "score", lambda case, engine, **_: CaseScore(case.name, next(of_epochs)))
    folder = trained(asked(tmp_path / "run", cases, {"length": {"steps_per_epoch": 1}})).folder
    assert "epoch 1, step 1 of 2" in read_checkpoint(folder.best).metadata.origin


def test_of_equal_epochs_the_first_is_the_best(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_dice(monkeypatch, 0.5, 0.5)
    folder = trained(asked(tmp_path / "run", cases, {"length": {"steps_per_epoch": 1}})).folder
    assert [row["best"] for row in rows_of(folder.metrics)] == ["1", "0"]


def test_without_held_out_cases_the_last_is_the_best(uncurved: None, cases: Path, tmp_path: Path) -> None:
    run = trained(asked(tmp_path / "run", cases, {"length": {"steps_per_epoch": 1}}, fraction=0))
    assert run.preparation.split.validation == ()
    assert run.folder.best.read_bytes() == run.folder.last.read_bytes()
    assert [row["dice_mean"] for row in rows_of(run.folder.metrics)] == ["", ""]


def test_held_out_cases_are_looked_at_as_often_as_asked_and_after_the_last_epoch(
    uncurved: None, cases: Path, tmp_path: Path
) -> None:
    changes = {"length": {"epochs": 3, "steps_per_epoch": 1}, "validation": {"every_epochs": 2}}
    request = asked(tmp_path / "run", cases, changes)
    had_best: list[bool] = []
    trained(request, Follower(on_epoch=lambda _: had_best.append(request.run.best.exists())))
    assert [row["dice_mean"] != "" for row in rows_of(request.run.metrics)] == [False, True, True]
    assert had_best == [False, True, True]


def test_checkpoint_holds_the_running_average_of_the_weights(uncurved: None, cases: Path, tmp_path: Path) -> None:
    folder = trained(asked(tmp_path / "run", cases, {"length": {"steps": 2, "steps_per_epoch": 2}})).folder
    state, kept = tensors_of(folder.state), tensors_of(folder.last)
    for name, tensor in kept.items():
        assert torch.equal(tensor, state[f"average.{name}"])
    assert not torch.equal(kept["head.weight"], state["network.head.weight"])


def test_checkpoint_holds_the_weights_themselves_where_the_recipe_has_no_average(
    uncurved: None, cases: Path, tmp_path: Path
) -> None:
    folder = trained(asked(tmp_path / "run", cases, {"length": {"steps": 1}, "average": {"decay": 0}})).folder
    state = tensors_of(folder.state)
    assert all(torch.equal(tensor, state[f"network.{name}"]) for name, tensor in tensors_of(folder.last).items())


# Length


def test_steps_decide_over_epochs_and_a_shorter_last_epoch_is_recorded(uncurved: None, cases: Path, tmp_path: Path) -> None:
    folder = trained(asked(tmp_path / "run", cases, {"length": {"steps": 4}})).folder
    rows = rows_of(folder.metrics)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "4")]
    assert "step 4 of 4" in read_checkpoint(folder.last).metadata.origin


def test_epoch_goes_through_all_slices_where_its_length_is_not_given(uncurved: None, cases: Path, tmp_path: Path) -> None:
    changes = {"length": {"epochs": 1, "steps_per_epoch": 0}}
    folder = trained(asked(tmp_path / "run", cases, changes)).folder
    [row] = rows_of(folder.metrics)
    assert int(row["step"]) == 2 * SHAPE[2] // BATCH_SIZE


def test_loss_of_an_epoch_is_the_mean_over_its_steps(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "step", lambda self, pixels, plan: torch.tensor(float(plan.step)))
    folder = trained(asked(tmp_path / "run", cases, fraction=0)).folder
    assert [row["loss"] for row in rows_of(folder.metrics)] == ["1.0", "4.0"]  # of 0, 1, 2 and 3, 4, 5


# The same again


def test_same_seed_gives_the_same_bits(uncurved: None, whole: Run, cases: Path, tmp_path: Path) -> None:
    assert_same_result(trained(asked(tmp_path / "run", cases)).folder, whole.folder)


def test_another_seed_gives_other_weights(uncurved: None, whole: Run, cases: Path, tmp_path: Path) -> None:
    other = trained(asked(tmp_path / "run", cases, {"seed": 1}, split=whole.folder.split)).folder
    assert rows_of(other.metrics)[0]["loss"] != rows_of(whole.folder.metrics)[0]["loss"]
    name = "average.head.weight"
    assert not torch.equal(tensors_of(other.state)[name], tensors_of(whole.folder.state)[name])


@pytest.mark.slow
def test_number_of_threads_that_feed_does_not_matter(
    uncurved: None, whole: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(training: Training, progress: Progress) -> bool:
        return loop.train(replace(training, threads=4), progress)

    monkeypatch.setattr(session, "train", train)
    assert_same_result(trained(asked(tmp_path / "run", cases)).folder, whole.folder)


def test_batches_come_in_their_order_from_any_number_of_threads(whole: Run, cases: Path) -> None:
    opened = open_store(whole.request.slices, whole.preparation.split.train)
    recipe = whole.preparation.recipe

    def batches(threads: int) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        planner = Planner(opened, recipe.batches, recipe.augmentation, seed=0)
        feed = Feed(planner, opened, first=2, end=12, device=CPU, threads=threads)
        found = [(plan.step, cast("npt.NDArray[np.uint8]", pixels.numpy())) for plan, pixels in feed]
        feed.close()
        return found

    one, four = batches(1), batches(4)
    assert [step for step, _ in one] == [step for step, _ in four] == list(range(2, 12))
    assert all(np.array_equal(first, second) for (_, first), (_, second) in zip(one, four, strict=True))


def test_training_uses_as_many_threads_as_it_was_given(uncurved: None, cases: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def should_stop() -> bool:
        seen.append(torch.get_num_threads())
        return True

    trained(asked(tmp_path / "run", cases), threads=5, should_stop=should_stop)
    assert seen == [5]


def test_deterministic_training_allows_no_other_algorithms_and_the_next_allows_them_again(
    uncurved: None, cases: Path, tmp_path: Path
) -> None:
    seen: list[bool] = []
    follower = Follower(on_epoch=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()))
    for deterministic in (True, False):
        request = asked(tmp_path / str(deterministic), cases, {"length": {"steps": 1}})
        trained(request, follower, deterministic=deterministic)
        [recorded] = json.loads(request.run.document.read_text())["sessions"]
        assert recorded["deterministic"] is deterministic
    assert seen == [True, False]


# What ends a training


def test_learning_rate_that_is_far_too_high_ends_the_training_naming_step_and_remedy(
    uncurved: None, cases: Path, tmp_path: Path
) -> None:
    request = asked(tmp_path / "run", cases, {"optimiser": {"learning_rate": 1e30}})
    with pytest.raises(DivergedError, match=r"at step \d+ \(learning rate .+--learning-rate below 1e\+30") as caught:
        trained(request)
    assert "no epoch was complete, none is kept" in str(caught.value)
    assert caught.value.exit_code == 3


def test_training_that_diverges_in_its_first_epoch_leaves_no_weights_but_a_finite_state(
    uncurved: None, cases: Path, tmp_path: Path
) -> None:
    request = asked(tmp_path / "run", cases, {"optimiser": {"learning_rate": 1e30}})
    with pytest.raises(DivergedError):
        trained(request)
    assert not request.run.best.exists()
    assert not request.run.last.exists()
    assert_finite(request.run.state)


@pytest.mark.parametrize("loss_too", [True, False], ids=["loss", "weights"])
def test_training_that_diverges_keeps_the_files_of_the_last_good_epoch(
    loss_too: bool, uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 5, loss_too=loss_too)
    request = asked(tmp_path / "run", cases)
    kept: list[bytes] = []
    follower = Follower(on_epoch=lambda _: kept.extend(path.read_bytes() for path in (request.run.last, request.run.state)))
    what = "the loss" if loss_too else "a weight"
    with pytest.raises(DivergedError, match=rf"{what} is no longer finite at step 6 .+last.safetensors holds .+ epoch 1"):
        trained(request, follower)
    assert [request.run.last.read_bytes(), request.run.state.read_bytes()] == kept
    assert [row["epoch"] for row in rows_of(request.run.metrics)] == ["1"]
    for path in (request.run.best, request.run.last, request.run.state):
        assert_finite(path)


def test_loss_that_is_not_finite_is_noticed_before_the_epoch_ends(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 0, loss_too=True)
    follower = Follower()
    with pytest.raises(DivergedError):
        trained(asked(tmp_path / "run", cases, {"length": {"steps": 100, "steps_per_epoch": 100}}), follower)
    assert follower.step <= 10


@pytest.mark.slow
def test_training_that_diverged_goes_on_from_its_last_good_epoch(
    uncurved: None, whole: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(tmp_path / "run", cases)
    with monkeypatch.context() as patch:
        poisoned(patch, 4, loss_too=True)
        with pytest.raises(DivergedError):
            trained(request)
    assert trained(resumed(request)).is_done
    assert_same_result(request.run, whole.folder)


def test_state_that_is_saved_between_two_epochs_is_finite(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 3, loss_too=False)  # the last step before the stop spoils the weights, whose loss is yet to come
    request = asked(tmp_path / "run", cases)
    with pytest.raises(DivergedError):
        trained(request, Follower(stop_after=4))
    assert_finite(request.run.state)


@pytest.mark.parametrize(("size", "remedy"), [(4, "try --batch-size 2"), (1, "take a smaller --base-width")])
def test_too_little_memory_names_half_the_batch(
    size: int, remedy: str, uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(DeviceError, match=rf"memory does not suffice for a batch of {size}; {remedy}") as caught:
        trained(asked(tmp_path / "run", cases, {"batches": {"size": size}}))
    assert caught.value.exit_code == 5


def test_error_that_is_no_lack_of_memory_is_a_fault_of_ours(
    uncurved: None, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(asked(tmp_path / "run", cases))


def test_float16_is_refused_on_the_cpu_before_anything_is_written(uncurved: None, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases)
    with pytest.raises(MisuseError, match="float16"):
        trained(request, precision=Precision.FLOAT16)
    assert not request.run.root.exists()


@pytest.mark.slow
def test_float16_on_the_cpu_is_refused_before_any_case_is_read(cases: Path, drunet: Drunet, tmp_path: Path) -> None:
    done = drunet("train", cases, "-o", "run", "--device", "cpu", "--precision", "float16", "--base-width", "1")
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_bfloat16_learns_on_the_cpu_and_is_recorded(uncurved: None, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, {"length": {"steps": 1}})
    trained(request, precision=Precision.BFLOAT16)
    [recorded] = json.loads(request.run.document.read_text())["sessions"]
    assert recorded["precision"] == "bfloat16"
    assert {tensor.dtype for tensor in tensors_of(request.run.last).values()} == {torch.float32}


def test_fewer_slices_than_a_batch_are_refused(uncurved: None, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, {"batches": {"size": 11}})
    with pytest.raises(MisuseError, match="10 slices do not make one batch of 11"):
        trained(request)
    assert not request.run.root.exists()


# Weights to begin with


@pytest.fixture(scope="module")
def earlier(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Weights of base width 1, with an epsilon and a licence of their own."""
    path = tmp_path_factory.mktemp("earlier") / "earlier.safetensors"
    checkpoint = read_checkpoint(whole.folder.last)
    metadata = replace(checkpoint.metadata, name="earlier", bn_epsilon=0.002, licence="CC0-1.0")
    write_checkpoint(path, checkpoint.state, metadata, overwrite=False)
    return read_checkpoint(path)


def from_earlier(root: Path, cases: Path, earlier: Checkpoint, changes: Sequence[Mapping[str, Any]] = ()) -> Request:
    """Without a word of the base width."""
    request = asked(root, cases)
    without_width = {**SMALL, "network": {"dropout": 0.1}}
    return replace(request, init=earlier.metadata, changes=merged(without_width, *changes))


def test_training_begins_with_the_numbers_of_the_weights_given(
    uncurved: None, earlier: Checkpoint, cases: Path, tmp_path: Path
) -> None:
    request = from_earlier(tmp_path / "run", cases, earlier)
    assert not trained(request, Follower(stop_after=0), init=earlier).is_done
    state = tensors_of(request.run.state)
    for name, array in earlier.state.items():
        for kind in ("network", "average"):
            assert np.array_equal(state[f"{kind}.{name}"].numpy(), array), (kind, name)


def test_weights_given_settle_base_width_and_epsilon(uncurved: None, earlier: Checkpoint, cases: Path, tmp_path: Path) -> None:
    request = from_earlier(tmp_path / "run", cases, earlier, [{"length": {"steps": 1}}])
    folder = trained(request, init=earlier).folder
    metadata = read_checkpoint(folder.last).metadata
    assert (metadata.base_width, metadata.bn_epsilon) == (1, 0.002)
    assert read_recipe(folder.config).network.bn_epsilon == 0.002


def test_origin_and_licence_of_the_weights_given_are_passed_on(
    uncurved: None, earlier: Checkpoint, cases: Path, tmp_path: Path
) -> None:
    request = from_earlier(tmp_path / "run", cases, earlier, [{"length": {"steps": 1}}])
    folder = trained(request, init=earlier).folder
    metadata = read_checkpoint(folder.last).metadata
    assert metadata.licence == "CC0-1.0"
    assert f"from earlier (SHA-256 {earlier.sha256})" in metadata.origin
    [recorded] = json.loads(folder.document.read_text())["sessions"]
    assert recorded["init"]["sha256"] == earlier.sha256


def test_base_width_that_is_not_that_of_the_weights_given_is_refused(earlier: Checkpoint, cases: Path, tmp_path: Path) -> None:
    request = from_earlier(tmp_path / "run", cases, earlier, [{"network": {"base_width": 2}}])
    with pytest.raises(WeightsError, match="earlier: are of base width 1, not 2"):
        fill(settle(request), Watcher())


def test_base_width_of_a_configuration_that_is_not_that_of_the_weights_given_is_refused(
    whole: Run, earlier: Checkpoint, cases: Path, tmp_path: Path
) -> None:
    recipe = whole.preparation.recipe
    config = tmp_path / "config.toml"
    config.write_text(encoded(replace(recipe, network=replace(recipe.network, base_width=2))))
    request = replace(from_earlier(tmp_path / "run", cases, earlier), config=config, changes={})
    with pytest.raises(WeightsError, match="base width"):
        fill(settle(request), Watcher())
