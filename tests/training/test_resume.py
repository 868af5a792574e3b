"""Trainings that are stopped, preempted or killed, and continued: the end is that of one that nobody disturbed."""

import json
import os
import shlex
import shutil
import signal
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

from drunet_cli.errors import CaseError, MisuseError, OutputError, WeightsError
from drunet_cli.training import loop
from drunet_cli.training.preparation import Request, fill, settle
from drunet_cli.training.recipe import RecipeName, encoded
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import read_checkpoint
from tests.conversion.small_cases import brain_in, files_in, labels_in, save, small_case
from tests.support import Drunet
from tests.training.test_loop import (
    Follower,
    Run,
    asked,
    assert_same_result,
    document_of,
    resumed,
    rows_of,
    tensors_of,
    trained,
)

N_STEPS: Final = 6
# Runs drunet, which gets a signal when it is about to take one of its steps, counted from 0.
STRUCK: Final = """
import os, sys
number, at_step = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
from drunet_cli.__main__ import run
from drunet_cli.training.learner import Learner
step = Learner.step
def struck(self, pixels, plan):
    if plan.step == at_step:
        os.kill(os.getpid(), number)
    return step(self, pixels, plan)
Learner.step = struck
run()
"""
# Runs drunet, which gets a signal when it is about to give a file its final name for the nth time.
STRUCK_WRITING: Final = """
import os, runpy, sys
number, about, nth = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
left = [None] * nth
def strike(event, arguments):
    if event == "os.rename" and about in str(arguments[0]) and left:
        left.pop()
        if not left:
            os.kill(os.getpid(), number)
sys.addaudithook(strike)
runpy.run_module("drunet_cli", run_name="__main__", alter_sys=True)
"""


class Killed(BaseException):
    """What no handler of ours catches."""


@pytest.fixture(scope="module")
def whole(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of three steps without a stop."""
    return trained(asked(tmp_path_factory.mktemp("whole") / "run", cases))


@pytest.fixture
def own_cases(cases: Path, tmp_path: Path) -> Path:
    """To be changed, with a store of their own."""
    return Path(shutil.copytree(cases, tmp_path / "own" / "cases"))


@pytest.fixture(autouse=True)
def _uncurved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes as long as three steps."""
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)


def stopped(request: Request, after: int) -> Run:
    run = trained(request, Follower(stop_after=after))
    assert not run.is_done
    return run


def step_of(folder: RunFolder) -> int:
    """Where its state is."""
    return int(document_of(folder.state)["step"])


def continued(request: Request, **others: Any) -> RunFolder:
    run = trained(resumed(request, **others))
    assert run.is_done
    return run.folder


# Stopped and continued


@pytest.mark.slow
@pytest.mark.parametrize("after", range(N_STEPS))
def test_training_stopped_after_any_step_ends_as_if_it_had_not_been(
    after: int, whole: Run, cases: Path, tmp_path: Path
) -> None:
    request = asked(tmp_path / "run", cases)
    assert step_of(stopped(request, after).folder) == after
    assert_same_result(continued(request), whole.folder)


def test_training_stopped_after_every_step_ends_as_if_it_had_not_been(whole: Run, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases)
    stopped(request, 0)
    for after in range(1, N_STEPS):
        assert step_of(stopped(resumed(request), after).folder) == after
    assert_same_result(continued(request), whole.folder)


def test_training_stopped_while_it_validates_ends_as_if_it_had_not_been(
    whole: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(tmp_path / "run", cases)
    wish: list[bool] = []

    class Impatient(Follower):
        def validating(self, case: str, done: int, n_slices: int) -> None:
            wish.append(True)

    assert not trained(request, Impatient(), should_stop=lambda: bool(wish)).is_done
    assert (step_of(request.run), request.run.metrics.exists()) == (3, False)
    assert_same_result(continued(request), whole.folder)


@pytest.mark.slow
def test_training_stopped_in_its_last_validation_ends_as_if_it_had_not_been(whole: Run, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases)
    wish: list[bool] = []

    class Impatient(Follower):
        def validating(self, case: str, done: int, n_slices: int) -> None:
            if self.step == N_STEPS:
                wish.append(True)

    assert not trained(request, Impatient(), should_stop=lambda: bool(wish)).is_done
    assert [row["epoch"] for row in rows_of(request.run.metrics)] == ["1"]
    assert_same_result(continued(request), whole.folder)


def test_training_that_is_killed_between_two_saves_ends_as_if_it_had_not_been(
    whole: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", 0.0)
    request = asked(tmp_path / "run", cases)

    class Killer(Watcher):
        def stepped(self, done: int, n_steps: int, *, loss: float | None, slices_per_s: float) -> None:
            if done == 5:
                raise Killed

    with pytest.raises(Killed):
        trained(request, Killer())
    assert step_of(request.run) == 4  # saved before the fifth step, in the middle of the second epoch
    assert_same_result(continued(request), whole.folder)


def test_seconds_of_an_epoch_that_was_interrupted_are_those_of_both_parts(cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, {"length": {"steps": 3}})
    stopped(request, 2)
    before = float(document_of(request.run.state)["seconds"])
    [row] = rows_of(continued(request).metrics)
    assert float(row["seconds"]) > before > 0


def test_every_session_is_recorded(cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, {"length": {"steps": 2}})
    stopped(request, 1)
    document = json.loads(continued(request).document.read_text())
    assert [recorded["from_step"] for recorded in document["sessions"]] == [0, 1]


def test_resume_begins_where_there_is_nothing(whole: Run, cases: Path, tmp_path: Path) -> None:
    run = trained(asked(tmp_path / "run", cases, resume=True))
    assert run.is_done
    assert_same_result(run.folder, whole.folder)


def test_resume_where_there_is_nothing_and_no_cases_is_refused(cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, sources=[], resume=True)
    with pytest.raises(MisuseError, match="there is no training to resume; name the cases"):
        fill(settle(request), Watcher())


@pytest.mark.slow
def test_training_goes_on_without_its_cases(whole: Run, own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 4)
    shutil.rmtree(own_cases)
    assert_same_result(continued(request), whole.folder)


def test_training_goes_on_with_its_cases_and_options_given_again(whole: Run, cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases)
    stopped(request, 4)
    config = tmp_path / "again.toml"
    config.write_bytes(request.run.config.read_bytes())
    run = trained(replace(request, resume=True, config=config, split=request.run.split, recipe=RecipeName.MODERN))
    assert_same_result(run.folder, whole.folder)


@pytest.mark.slow
def test_case_that_has_come_since_is_left_out_of_a_training_that_goes_on(whole: Run, own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 4)
    small_case(own_cases, name="case_new", seed=9)
    assert_same_result(continued(request, sources=[own_cases]), whole.folder)
    assert not (request.slices / "case_new.safetensors").exists()


def test_training_goes_on_without_the_options_of_its_split(cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases, fraction=0.7)
    split = stopped(request, 0).preparation.split
    assert len(split.validation) == 2
    assert fill(settle(resumed(request, fraction=None)), Watcher()).split == split


@pytest.mark.slow
def test_training_goes_on_with_slices_that_were_lost_and_read_again(whole: Run, own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 4)
    shutil.rmtree(request.slices)
    assert_same_result(continued(request, sources=[own_cases]), whole.folder)


@pytest.mark.slow
def test_run_folder_that_has_moved_goes_on(whole: Run, own_cases: Path, tmp_path: Path) -> None:
    place = tmp_path / "here" / "run"
    request = asked(place, own_cases, slices=place / "slices")
    stopped(request, 4)
    moved = tmp_path / "there" / "run"
    moved.parent.mkdir()
    place.parent.rename(tmp_path / "there" / "parent")
    (tmp_path / "there" / "parent" / "run").rename(moved)
    shutil.rmtree(own_cases.parent)
    assert_same_result(continued(request, run=RunFolder(moved), slices=moved / "slices"), whole.folder)


def test_finished_training_has_nothing_left_to_do(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole.folder.root, tmp_path / "run"))
    before = {name: content for name, content in files_in(root).items() if name != "run.json" and "tfevents" not in name}
    continued(asked(root, cases))
    after = files_in(root)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_overwriting_begins_anew(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    stopped(asked(root, cases, {"seed": 1, "length": {"epochs": 9}}), 4)
    folder = trained(asked(root, cases, overwrite=True)).folder
    assert_same_result(folder, whole.folder)
    assert len(json.loads(folder.document.read_text())["sessions"]) == 1


def test_overwriting_leaves_no_file_of_the_earlier_training(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole.folder.root, tmp_path / "run"))
    stopped(asked(root, cases, overwrite=True), 0)
    left = {path.name for path in root.iterdir()} - {"tensorboard", "slices"}
    assert left == {"config.toml", "run.json", "split.json", "state.safetensors"}


def test_training_that_is_there_is_neither_resumed_nor_replaced_unasked(whole: Run, cases: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole.folder.root, tmp_path / "run"))
    before = files_in(root)
    with pytest.raises(OutputError, match="--overwrite"):
        trained(asked(root, cases))
    assert files_in(root) == before


@pytest.mark.slow
def test_training_that_began_with_weights_still_names_them_and_their_licence_when_it_has_gone_on(
    whole: Run, cases: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(whole.folder.last)
    init = replace(checkpoint, metadata=replace(checkpoint.metadata, licence="CC0-1.0"))
    undisturbed, request = (asked(tmp_path / name / "run", cases, init=init.metadata) for name in ("one", "two"))
    trained(undisturbed, init=init)
    assert not trained(request, Follower(stop_after=4), init=init).is_done
    continued(request)
    assert_same_result(request.run, undisturbed.run)
    assert read_checkpoint(request.run.last).metadata == read_checkpoint(undisturbed.run.last).metadata


# Refused


@pytest.fixture(scope="module")
def half(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that was stopped, to be resumed in vain."""
    return stopped(asked(tmp_path_factory.mktemp("half") / "run", cases), 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 0, not 1"),
        ({"network": {"base_width": 2}}, "network.base_width: 1, not 2"),
        ({"length": {"epochs": 3}}, "length.epochs: 2, not 3"),
        ({"batches": {"size": 4}}, "batches.size: 2, not 4"),
        ({"optimiser": {"learning_rate": 0.5}}, "optimiser.learning_rate: 0.003, not 0.5"),
        ({"network": {"dropout": 0.5}}, "network.dropout: 0.1, not 0.5"),
    ],
)
def test_training_does_not_go_on_with_another_number(changes: Mapping[str, Any], said: str, half: Run) -> None:
    with pytest.raises(MisuseError, match=said):
        fill(settle(resumed(half.request, changes=changes)), Watcher())


def test_training_does_not_go_on_with_a_configuration_of_another_number(half: Run, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    recipe = half.preparation.recipe
    config.write_text(encoded(replace(recipe, loss=replace(recipe.loss, dice=0.25))))
    with pytest.raises(MisuseError, match=r"loss\.dice: 1\.0, not 0\.25"):
        fill(settle(resumed(half.request, config=config)), Watcher())


def test_training_does_not_go_on_with_another_recipe(half: Run) -> None:
    with pytest.raises(MisuseError, match="--recipe paper: the training to resume is of recipe modern"):
        fill(settle(resumed(half.request, recipe=RecipeName.PAPER)), Watcher())


@pytest.mark.parametrize("options", [{"fraction": 0.7}, {"fraction": 0}, {"folds": 3, "fold": 1}, {"folds": 3, "fold": 2}])
def test_training_does_not_go_on_with_another_split(options: Mapping[str, Any], half: Run, cases: Path) -> None:
    fresh = fill(settle(asked(half.folder.root.parent / "unused", cases, dry_run=True, **options)), Watcher()).split
    if fresh == half.preparation.split:  # one of the folds is
        fill(settle(resumed(half.request, **options)), Watcher())
        return
    with pytest.raises(MisuseError, match=r"split\.json: the training to resume was split otherwise"):
        fill(settle(resumed(half.request, **options)), Watcher())


def test_training_does_not_go_on_with_the_split_of_another_file(half: Run, tmp_path: Path) -> None:
    file, split = tmp_path / "split.json", half.preparation.split
    file.write_text(json.dumps({"train": split.validation, "validation": split.train}))
    with pytest.raises(MisuseError, match="was split otherwise"):
        fill(settle(resumed(half.request, split=file)), Watcher())


def test_training_does_not_go_on_without_one_of_its_cases(own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 1)
    shutil.rmtree(own_cases / "case_1")
    with pytest.raises(CaseError, match=r"split\.json: the training to resume has case_1"):
        fill(settle(resumed(request, sources=[own_cases])), Watcher())


def with_other_labels(cases: Path) -> None:
    save(cases / "case_1" / "case_1_seg.nii", labels_in(brain_in(), seed=77))


def test_training_does_not_go_on_with_other_files_of_a_case(own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 1)
    before = files_in(request.run.root)
    with_other_labels(own_cases)
    with pytest.raises(CaseError, match="case_1: its files are not those"):
        trained(resumed(request, sources=[own_cases]))
    assert files_in(request.run.root) == before


def test_training_that_was_refused_other_files_still_goes_on_with_its_own_slices(
    whole: Run, own_cases: Path, tmp_path: Path
) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 1)
    with_other_labels(own_cases)
    with pytest.raises(CaseError):
        trained(resumed(request, sources=[own_cases]))
    assert_same_result(continued(request), whole.folder)


def test_training_does_not_go_on_without_its_slices(own_cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", own_cases)
    stopped(request, 1)
    (request.slices / "case_0.safetensors").unlink()
    with pytest.raises(CaseError, match=r"case_0\.safetensors: is missing from the store; prepare the case first"):
        trained(resumed(request))


# Damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced_by_weights(path: Path) -> None:
    path.write_bytes(path.with_name("weights").read_bytes())


def changed_state(change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors, document = tensors_of(path), document_of(path)
        change(tensors, document)
        path.write_bytes(safetensors.torch.save(tensors, {"drunet": json.dumps(document)}))

    return damage


def without_a_weight(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors["network.head.weight"]


def of_another_width(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["network.head.weight"] = torch.zeros(4, 32, 1, 1)


def without_optimiser(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("optimiser.")]:
        del tensors[name]


def of_more_parameters(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["optimiser.9999.exp_avg"] = torch.zeros(1)


def of_a_later_version(_: dict[str, Tensor], document: dict[str, Any]) -> None:
    document["schema"] = "drunet.training-state/99"


def without_step(_: dict[str, Tensor], document: dict[str, Any]) -> None:
    del document["step"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut, id="cut"),
        pytest.param(emptied, id="empty"),
        pytest.param(Path.unlink, id="absent"),
        pytest.param(replaced_by_weights, id="weights"),
        pytest.param(changed_state(without_a_weight), id="lacks-a-weight"),
        pytest.param(changed_state(of_another_width), id="other-width"),
        pytest.param(changed_state(without_step), id="lacks-step"),
        pytest.param(changed_state(of_a_later_version), id="later-version"),
        pytest.param(changed_state(without_optimiser), id="lacks-optimiser"),
        pytest.param(changed_state(of_more_parameters), id="more-parameters"),
    ],
)
def test_state_that_is_damaged_is_named_and_nothing_is_lost(
    damage: Callable[[Path], None], half: Run, cases: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(half.folder.root, tmp_path / "run"))
    shutil.copyfile(half.folder.last, root / "weights")
    folder = RunFolder(root)
    damage(folder.state)
    before = files_in(root)
    with pytest.raises(WeightsError, match=r"state\.safetensors: ") as caught:
        trained(resumed(half.request, run=folder))
    assert caught.value.exit_code == 4
    assert files_in(root) == before


def test_split_that_is_damaged_is_named(half: Run, tmp_path: Path) -> None:
    root = Path(shutil.copytree(half.folder.root, tmp_path / "run"))
    (root / "split.json").write_text("{")
    with pytest.raises(CaseError, match=r"split\.json: cannot be read, or is damaged"):
        trained(resumed(half.request, run=RunFolder(root)))


# The real command


@pytest.fixture(scope="module")
def config(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(encoded(whole.preparation.recipe))
    return path


def arguments_of(cases: Path, config: Path) -> list[str]:
    return ["train", str(cases), "-o", "run", "--config", str(config), "--device", "cpu", "--threads", "1", "--jobs", "1"]


def struck(program: str, *words: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240, check=False)


@pytest.mark.slow
def test_sigterm_saves_and_tells_how_to_continue(whole: Run, cases: Path, config: Path, tmp_path: Path) -> None:
    done = struck(STRUCK, int(signal.SIGTERM), 4, *arguments_of(cases, config), folder=tmp_path)
    assert (done.returncode, done.stdout) == (143, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "Stopped; the state is saved. To continue: drunet train --resume -o run"
    folder = RunFolder(tmp_path / "run")
    assert step_of(folder) == 5  # the step in which the signal came is finished
    request = asked(folder.root, cases, slices=folder.slices)
    assert_same_result(continued(request), whole.folder)


@pytest.mark.slow
def test_ctrl_c_saves_too(whole: Run, cases: Path, config: Path, drunet: Drunet, tmp_path: Path) -> None:
    done = struck(STRUCK, int(signal.SIGINT), 1, *arguments_of(cases, config), folder=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert step_of(RunFolder(tmp_path / "run")) == 2
    again = drunet("train", "--resume", "-o", "run", "--device", "cpu", "--threads", "1")
    assert (again.returncode, again.stdout) == (0, "run/best.safetensors\nrun/last.safetensors\n"), again.stderr
    assert_same_result(RunFolder(tmp_path / "run"), whole.folder)


@pytest.mark.slow
def test_killed_training_goes_on_without_a_gap_or_an_epoch_twice(
    whole: Run, cases: Path, config: Path, drunet: Drunet, tmp_path: Path
) -> None:
    done = struck(STRUCK, int(signal.SIGKILL), 4, *arguments_of(cases, config), folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "run")
    assert [row["epoch"] for row in rows_of(folder.metrics)] == ["1"]
    again = drunet(*arguments_of(cases, config), "--resume")
    assert again.returncode == 0, again.stderr
    assert [(row["epoch"], row["step"]) for row in rows_of(folder.metrics)] == [("1", "3"), ("2", "6")]
    assert_same_result(folder, whole.folder)


# Every file that a training writes, and for which time.
WRITINGS: Final = [
    *(("config", 1), ("split", 1), ("run", 1), ("state", 1)),
    *(("best", 1), ("last", 1), ("state", 2), ("metrics", 1), ("cases", 1)),
    *(("last", 2), ("state", 3), ("metrics", 2), ("cases", 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nth"), WRITINGS)
def test_training_killed_while_it_writes_ends_as_if_it_had_not_been(
    kind: str, nth: int, whole: Run, cases: Path, config: Path, tmp_path: Path
) -> None:
    done = struck(STRUCK_WRITING, int(signal.SIGKILL), f"/.{kind}.", nth, *arguments_of(cases, config), folder=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = RunFolder(tmp_path / "run")
    request = asked(folder.root, cases, slices=folder.slices, resume=True)
    assert trained(request).is_done
    assert_same_result(folder, whole.folder)
    assert [name for name in os.listdir(folder.root) if name.endswith(".tmp")] == []  # noqa: PTH208


@pytest.mark.slow
def test_command_that_a_stopped_training_names_continues_it(
    own_cases: Path, config: Path, drunet: Drunet, tmp_path: Path
) -> None:
    words = [*arguments_of(own_cases, config), "--slices-dir", "shared"]
    assert_note_continues(struck(STRUCK, int(signal.SIGTERM), 4, *words, folder=tmp_path), drunet)


@pytest.mark.slow
def test_command_that_a_stopped_training_names_may_be_pasted_into_a_shell(
    own_cases: Path, config: Path, drunet: Drunet, tmp_path: Path
) -> None:
    words = [{"run": "my first run"}.get(word, word) for word in arguments_of(own_cases, config)]
    assert_note_continues(struck(STRUCK, int(signal.SIGTERM), 4, *words, folder=tmp_path), drunet)


def assert_note_continues(done: "subprocess.CompletedProcess[str]", drunet: Drunet) -> None:
    program, *words = shlex.split(done.stderr.splitlines()[-1].partition("To continue: ")[2])
    assert program == "drunet"
    again = drunet(*words, "--device", "cpu", "--threads", "1")
    assert again.returncode == 0, again.stderr
