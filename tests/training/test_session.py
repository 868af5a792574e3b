"""A training that is stopped, killed or refused, and continued: the end is that of a training that nobody disturbed."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors.torch
import torch
from torch import Tensor

from drunet_cli.cli.app import main
from drunet_cli.errors import CaseError, MisuseError, WeightsError
from drunet_cli.network.engine import Precision
from drunet_cli.training import session
from drunet_cli.training.cases import Split
from drunet_cli.training.recipe import RECIPES, RecipeName, TrainingSettings, changed, recipe_toml
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.session import plan_training, read_cases
from drunet_cli.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.conversion.small_cases import brain_in, labels_in, save, small_case
from tests.support import ENDED_PID, contents
from tests.training.shallow import SHALLOW_DRUNET, SHALLOW_FROM_HERE
from tests.training.small_runs import (
    N_CASES,
    N_STEPS,
    ONE_STEP,
    SMALL,
    Follower,
    Run,
    assert_same_result,
    continue_training,
    document_of,
    merge,
    resuming,
    run_training,
    small_settings,
    stop_training,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("shallow", "no_curves")


@pytest.fixture
def own_cases(cases: Path, tmp_path: Path) -> Path:
    """Cases to be changed, with a store of their own."""
    return Path(shutil.copytree(cases, tmp_path / "own" / "cases"))


@pytest.fixture
def own_half(half: Run, tmp_path: Path) -> Run:
    """A training that was stopped in its second epoch, in a folder to be changed."""
    root = Path(shutil.copytree(half.folder.root, tmp_path / "run"))  # its name is the name of the weights
    return replace(half, folder=RunFolder(root), settings=replace(half.settings, output=root))


def step_of(folder: RunFolder) -> int:
    return int(document_of(folder.state)["step"])


# Stopped and continued


def test_training_stopped_after_every_step_ends_as_if_it_had_not_been(whole: Run, cases: Path, tmp_path: Path) -> None:
    settings = small_settings(tmp_path / "run", cases)
    stop_training(settings, 0)
    for after in range(1, N_STEPS):
        assert step_of(stop_training(resuming(settings), after).folder) == after
    folder = continue_training(settings)
    assert_same_result(folder, whole.folder)
    sessions = json.loads(folder.document.read_text())["sessions"]
    assert [recorded["from_step"] for recorded in sessions] == [0, *range(N_STEPS)]
    assert [len(recorded["cases"]) for recorded in sessions] == [*[0] * N_STEPS, N_CASES]


@pytest.mark.parametrize("at_step", [2, pytest.param(4, marks=pytest.mark.slow)], ids=["first validation", "last validation"])
def test_training_stopped_while_it_validates_ends_as_if_it_had_not_been(
    at_step: int, whole: Run, cases: Path, tmp_path: Path
) -> None:
    settings = small_settings(tmp_path / "run", cases)
    follower = Follower()

    def should_stop() -> bool:
        return follower.step == at_step and follower.seen[-1].stage == "validating"

    assert not run_training(settings, follower, should_stop=should_stop).is_done
    folder = RunFolder(settings.output)
    assert (step_of(folder), folder.metrics.exists()) == (at_step, at_step == 4)
    assert_same_result(continue_training(settings), whole.folder)


def test_resume_begins_where_there_is_nothing(cases: Path, tmp_path: Path) -> None:
    assert run_training(small_settings(tmp_path / "run", cases, ONE_STEP, resume=True)).is_done


def test_training_goes_on_without_its_cases_in_a_folder_that_has_moved(whole: Run, own_half: Run) -> None:
    slices = Path(shutil.copytree(own_half.settings.slices, own_half.folder.root / "slices"))
    assert_same_result(continue_training(own_half.settings, slices=slices), whole.folder)


def test_training_goes_on_with_its_options_given_again_lost_slices_and_a_new_case(
    whole: Run, own_half: Run, own_cases: Path, tmp_path: Path
) -> None:
    folder = own_half.folder
    settings = small_settings(folder.root, own_cases)
    config = Path(shutil.copyfile(folder.config, tmp_path / "again.toml"))
    small_case(own_cases, name="case_new", seed=9)
    again = replace(settings, resume=True, config=config, split_file=folder.split, recipe=RecipeName.MODERN)
    assert_same_result(run_training(again).folder, whole.folder)
    assert not (settings.slices / "case_new.safetensors").exists()


@pytest.mark.parametrize("begins", [False, True], ids=["resumed", "overwritten"])
def test_what_killed_sessions_have_left_is_removed_by_a_training_and_not_by_a_dry_run(
    begins: bool, own_half: Run, cases: Path
) -> None:
    root = own_half.folder.root
    left = root / f".best.safetensors.{socket.gethostname()}.{ENDED_PID}.tmp"
    left.touch()
    settings = small_settings(root, cases, overwrite=True) if begins else resuming(own_half.settings)
    read_cases(replace(settings, dry_run=True), plan_training(settings))
    assert left.exists()
    stop_training(settings, 0)
    assert not left.exists()


def test_dry_run_of_a_training_that_goes_on_without_its_cases_says_how_far_it_would_go(
    half: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-o", str(half.folder.root), "--slices-dir", str(half.settings.slices), "--dry-run", "--json", "--quiet"]
    assert main(["train", "--resume", *words]) == 0
    *rows, whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["case"], row["slices"], row["tumour_slices"], row["in_store"]) for row in rows] == [
        (f"case_{n}", 5, 3, True) for n in range(3)
    ]
    assert (whole["train"], whole["validation"], whole["epochs"], whole["steps"], whole["continues"]) == (2, 1, 2, 4, True)


def test_finished_training_has_nothing_left_to_do(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole.folder.root, tmp_path / "run"))
    before = {name: content for name, content in contents(root).items() if name != "run.json" and "tfevents" not in name}
    continue_training(small_settings(root, cases))
    after = contents(root)
    assert {name: after[name] for name in before} == before


def test_overwriting_begins_anew_and_leaves_no_file_of_the_earlier_training(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole.folder.root, tmp_path / "run"))
    folder = stop_training(small_settings(root, cases, {"seed": 1}, overwrite=True), 0).folder
    left = {path.name for path in root.iterdir()} - {"tensorboard", "slices"}
    assert left == {"config.toml", "run.json", "split.json", "state.safetensors"}
    assert len(json.loads(folder.document.read_text())["sessions"]) == 1


# What a run records


def test_run_folder_holds_every_file_that_its_documentation_names(whole: Run, cases: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = {path.name for path in whole.folder.root.iterdir()} - {"tensorboard", "curves.png"}
    assert names == {"best.safetensors", "last.safetensors", "state.safetensors", "config.toml", "split.json"} | {
        "metrics.csv",
        "cases.csv",
        "run.json",
    }
    recipe, split = whole.folder.read()
    assert (recipe, split) == (whole.plan.recipe, whole.plan.split)
    [recorded] = json.loads(whole.folder.document.read_text())["sessions"]
    assert recorded["cases"].keys() == {"case_0", "case_1", "case_2"}
    assert (recorded["from_step"], recorded["n_steps"], recorded["device"], recorded["precision"]) == (0, 4, "cpu", "float32")
    assert (recorded["versions"]["torch"], recorded["deterministic"]) == (torch.__version__, False)
    [found] = [EventAccumulator(str(path)).Reload() for path in whole.folder.events.iterdir()]
    assert [event.step for event in found.Scalars("loss")] == [2, 4]
    for path in whole.folder.root.rglob("*"):  # a run is shown to others: no place of this machine stands in it
        for place in (whole.folder.root.parent, cases.parent):
            assert path.is_dir() or str(place).encode() not in path.read_bytes(), path.name


# Weights to begin with


@pytest.fixture(scope="module")
def earlier(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Weights of base width 1, with an epsilon and a licence of their own."""
    path = tmp_path_factory.mktemp("earlier") / "earlier.safetensors"
    checkpoint = read_checkpoint(whole.folder.last)
    metadata = replace(checkpoint.metadata, name="earlier", bn_epsilon=0.002, licence="CC0-1.0")
    write_checkpoint(path, checkpoint.state, metadata, overwrite=False)
    return read_checkpoint(path)


def test_training_begins_with_the_weights_given_and_names_them_when_it_has_gone_on(
    earlier: Checkpoint, cases: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"  # says neither base width nor epsilon
    config.write_text("[network]\ndropout = 0.1\n")
    changes = {name: value for name, value in merge(SMALL, ONE_STEP).items() if name != "network"}
    settings = replace(small_settings(tmp_path / "run", cases), init=earlier, config=config, changes=changes)
    folder = stop_training(settings, 0).folder
    state = tensors_of(folder.state)
    for name, array in earlier.state.items():
        assert torch.equal(state[f"network.{name}"], torch.from_numpy(array)), name
        assert torch.equal(state[f"average.{name}"], torch.from_numpy(array)), name
    again = replace(settings, resume=True, init=None)  # as the command line has it, which opens no weights in vain
    with pytest.raises(MisuseError, match=r"network\.base_width: 1, not 2; leave"):
        plan_training(replace(again, changes=merge(changes, {"network": {"base_width": 2}})))
    metadata = read_checkpoint(run_training(again).folder.last).metadata
    assert (metadata.base_width, metadata.bn_epsilon, metadata.licence) == (1, 0.002, "CC0-1.0")
    assert f"from earlier (SHA-256 {earlier.sha256})" in metadata.origin


@pytest.mark.parametrize("where", ["option", "config"])
def test_base_width_that_is_not_that_of_the_weights_given_is_refused(
    where: str, earlier: Checkpoint, cases: Path, tmp_path: Path
) -> None:
    settings = small_settings(tmp_path / "run", cases, init=earlier)
    if where == "option":
        settings = replace(settings, changes={"network": {"base_width": 2}})
    else:
        config = tmp_path / "config.toml"
        config.write_text("[network]\nbase_width = 2\n")
        settings = replace(settings, config=config, changes={})
    with pytest.raises(WeightsError, match="earlier: are of base width 1, not 2; leave the width out"):
        plan_training(settings)


# Which recipe and split


def test_options_prevail_over_the_file_and_the_file_over_the_recipe(cases: Path, tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("seed = 5\n[length]\nepochs = 7\n[batches]\nsize = 2\n")
    settings = TrainingSettings(
        output=tmp_path / "run",
        sources=[cases],
        slices=tmp_path / "slices",
        recipe=RecipeName.PAPER,
        config=config,
        changes={"length": {"epochs": 9}},
    )
    recipe = plan_training(settings).recipe
    assert (recipe.recipe, recipe.seed, recipe.length.epochs, recipe.batches.size) == (RecipeName.PAPER, 5, 9, 2)
    assert recipe.optimiser == RECIPES[RecipeName.PAPER].optimiser
    config.write_text('recipe = "modern"')
    with pytest.raises(MisuseError, match=f"^--recipe paper: {config} is of recipe modern$"):
        plan_training(settings)


# What is refused


REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "seed": ({"changes": {"seed": 1}}, "config.toml: the training to resume has seed: 0, not 1; leave"),
    "width": ({"changes": {"network": {"base_width": 2}}}, "network.base_width: 1, not 2"),
    "length": ({"changes": {"length": {"epochs": 3}}}, "length.epochs: 2, not 3"),
    "recipe": ({"recipe": RecipeName.PAPER}, "--recipe paper: the training to resume is of recipe modern"),
    "share": ({"val_fraction": 0.7}, "split.json: the training to resume was split otherwise"),
    "no share": ({"val_fraction": 0.0}, "was split otherwise"),
}


@pytest.mark.parametrize(("others", "message"), REFUSED.values(), ids=REFUSED)
def test_training_does_not_go_on_with_another_setting(others: dict[str, Any], message: str, half: Run) -> None:
    with pytest.raises(MisuseError) as refusal:
        plan_training(resuming(half.settings, **others))
    assert message in str(refusal.value)


def test_training_does_not_go_on_with_a_file_of_other_numbers_or_another_split(half: Run, tmp_path: Path) -> None:
    config, split = tmp_path / "other.toml", tmp_path / "split.json"
    config.write_text(recipe_toml(changed(half.plan.recipe, {"loss": {"dice": 0.25}}, where="")))
    with pytest.raises(MisuseError, match=r"loss\.dice: 1\.0, not 0\.25"):
        plan_training(resuming(half.settings, config=config))
    split.write_bytes(Split(half.plan.split.validation, half.plan.split.train).as_json())
    with pytest.raises(MisuseError, match="was split otherwise"):
        plan_training(resuming(half.settings, split_file=split))


def remove_case(cases: Path, slices: Path) -> None:
    shutil.rmtree(cases / "case_1")


def change_labels(cases: Path, slices: Path) -> None:
    save(cases / "case_1" / "case_1_seg.nii", labels_in(brain_in(), seed=77))


def change_labels_and_lose_slices(cases: Path, slices: Path) -> None:
    change_labels(cases, slices)
    shutil.rmtree(slices)


def remove_slices(cases: Path, slices: Path) -> None:
    shutil.rmtree(cases)
    (slices / "case_0.safetensors").unlink()


OTHER_CASES: Final[dict[str, tuple[Callable[[Path, Path], None], bool, str]]] = {
    "a case is missing": (remove_case, True, "split.json: the training to resume has case_1"),
    "other labels": (change_labels, True, "case_1: its files are not those"),
    "other labels, no slices": (change_labels_and_lose_slices, True, "case_1: its files are not those"),
    "neither case nor slices": (remove_slices, False, "case_0.safetensors: is missing from the store; prepare the case first"),
}


@pytest.mark.parametrize(("change", "with_cases", "message"), OTHER_CASES.values(), ids=OTHER_CASES)
def test_training_does_not_go_on_with_other_cases(
    change: Callable[[Path, Path], None], with_cases: bool, message: str, own_half: Run, own_cases: Path
) -> None:
    slices = Path(shutil.copytree(own_half.settings.slices, own_cases.parent / "slices"))
    change(own_cases, slices)
    before, stored = contents(own_half.folder.root), contents(slices)
    sources = [own_cases] if with_cases else []
    with pytest.raises(CaseError) as refusal:
        run_training(resuming(own_half.settings, slices=slices, sources=sources))
    assert message in str(refusal.value)
    assert contents(own_half.folder.root) == before
    refused = "case_1.safetensors"  # is not stored as it is now: the next try would take it for what was trained on
    assert contents(slices).get(refused) == stored.get(refused)


def test_resume_where_there_is_nothing_and_no_cases_is_refused(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no training to resume; name the cases"):
        plan_training(small_settings(tmp_path / "run", cases, sources=[], resume=True))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"precision": Precision.FLOAT16}, "float16"),
        ({"precision": Precision.BFLOAT16}, "this processor .+ has no arithmetic for it.+leave it out"),
        ({"changes": merge(SMALL, {"batches": {"size": 11}})}, "10 slices do not make one batch of 11"),
    ],
    ids=["float16 on the CPU", "bfloat16 on a CPU without it", "fewer slices than a batch"],
)
def test_training_that_cannot_begin_writes_nothing(
    others: dict[str, Any], message: str, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "has_bfloat16", lambda: False)
    with pytest.raises(MisuseError, match=message):
        run_training(replace(small_settings(tmp_path / "run", cases), **others))
    assert not (tmp_path / "run").exists()


# A damaged state


def change_state(change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors, document = tensors_of(path), document_of(path)
        change(tensors, document)
        path.write_bytes(safetensors.torch.save(tensors, {"drunet": json.dumps(document)}))

    return damage


def drop_optimiser(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("optimiser.")]:
        del tensors[name]


DAMAGES: Final[Mapping[str, Callable[[Path], object]]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100_000]),
    "empty": lambda path: path.write_bytes(b""),
    "absent": Path.unlink,
    "weights": lambda path: shutil.copyfile(path.with_name("last.safetensors"), path),
    "lacks a weight": change_state(lambda tensors, _: tensors.pop("network.head.weight")),
    "other width": change_state(lambda tensors, _: tensors.update({"network.head.weight": torch.zeros(4, 32, 1, 1)})),
    "lacks the step": change_state(lambda _, document: document.pop("step")),
    "epoch without its loss": change_state(lambda _, document: document["history"][0].pop("loss")),
    "score without Dice": change_state(lambda _, document: document["history"][0]["scores"][0].pop("dice")),
    "later version": change_state(lambda _, document: document.update(schema="drunet.training-state/99")),
    "lacks the optimiser": change_state(drop_optimiser),
    "more parameters": change_state(lambda tensors, _: tensors.update({"optimiser.9999.exp_avg": torch.zeros(1)})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_state_that_is_damaged_is_named_and_nothing_is_lost(damage: Callable[[Path], None], own_half: Run) -> None:
    damage(own_half.folder.state)
    before = contents(own_half.folder.root)
    with pytest.raises(WeightsError, match=r"state\.safetensors: "):
        run_training(resuming(own_half.settings))
    assert contents(own_half.folder.root) == before


def test_split_that_is_damaged_is_named(own_half: Run) -> None:
    own_half.folder.split.write_text("{")
    with pytest.raises(CaseError, match=r"split\.json: cannot be read, or is damaged"):
        plan_training(resuming(own_half.settings))


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 10**5, '{"sessions": [{}]}', '{"sessions": [{"cases": {"a": 3}, "init": null}]}']
)
def test_record_of_sessions_that_is_damaged_is_named(content: str, own_half: Run) -> None:
    own_half.folder.document.write_text(content)
    with pytest.raises(CaseError, match=r"run\.json: cannot be read, or is none of drunet's"):
        run_training(resuming(own_half.settings))


# The command itself, which a signal meets

# Runs drunet, which gets a signal when it is about to take a step, counted from 0.
AT_STEP: Final = f"""{SHALLOW_FROM_HERE}
import os, sys
number, at_step = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
from drunet_cli.__main__ import run
from drunet_cli.training.learner import Learner
step = Learner.step
def signalled_step(self, pixels, plan):
    if plan.step == at_step:
        os.kill(os.getpid(), number)
    return step(self, pixels, plan)
Learner.step = signalled_step
run()
"""


class Killed(BaseException):
    """Stands for SIGKILL."""


def options_of(cases: Path, run: Run, tmp_path: Path) -> list[str]:
    config = tmp_path / "config.toml"
    config.write_text(recipe_toml(run.plan.recipe))
    return ["train", str(cases), "-o", "my run", "--config", str(config), "--device", "cpu", "--threads", "1", "--jobs", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_training_that_a_signal_ends_goes_on_by_the_command_that_it_names(
    number: signal.Signals, code: int, whole: Run, cases: Path, tmp_path: Path
) -> None:
    options = options_of(cases, whole, tmp_path)
    command = [sys.executable, "-c", AT_STEP, str(int(number)), "2", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    folder = RunFolder(tmp_path / "my run")
    words = ["drunet", *options, "--resume"]
    if number != signal.SIGKILL:
        assert "Traceback" not in done.stderr
        words = shlex.split(done.stderr.splitlines()[-1].removeprefix("Stopped; the state is saved. To continue: "))
        assert words == ["drunet", "train", "--resume", "-o", "my run"]
    assert step_of(folder) == (2 if number == signal.SIGKILL else 3)  # the step in which the signal came is finished
    on_cpu = [] if number == signal.SIGKILL else ["--device", "cpu", "--threads", "1"]
    again = [sys.executable, "-c", SHALLOW_DRUNET, *words[1:], *on_cpu]
    assert subprocess.run(again, capture_output=True, cwd=tmp_path, timeout=240, check=False).returncode == 0
    assert_same_result(folder, whole.folder)


# Every file that a training writes, and for which time.
WRITINGS: Final = (
    *(("config", 1), ("split", 1), ("run", 1), ("state", 1)),
    *(("best", 1), ("last", 1), ("state", 2), ("metrics", 1), ("cases", 1)),
    *(("last", 2), ("state", 3), ("metrics", 2), ("cases", 2)),
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nth"), WRITINGS)
def test_training_killed_while_it_writes_ends_as_if_it_had_not_been(
    kind: str, nth: int, whole: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file, left = os.replace, [None] * nth

    def kill(source: Any, target: Any, **options: Any) -> None:
        if Path(target).stem == kind:
            left.pop()
            if not left:
                raise Killed
        replace_file(source, target, **options)

    settings = small_settings(tmp_path / "run", cases)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            run_training(settings)
    assert_same_result(run_training(replace(settings, resume=True)).folder, whole.folder)
