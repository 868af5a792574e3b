"""Two processes on this machine that learn as one, through torchrun and gloo, as on a cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest
import safetensors.numpy

from drunet_cli.network.torch_engine import build_model
from drunet_cli.training import loop
from drunet_cli.training.preparation import Request, fill, settle
from drunet_cli.training.recipe import Recipe, changed, encoded
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import read_checkpoint
from tests.conversion.small_cases import small_case
from tests.training.test_loop import (
    N_CASES,
    SMALL,
    asked,
    assert_finite,
    document_of,
    files_below,
    merged,
    resumed,
    rows_of,
    trained,
)

pytestmark = pytest.mark.slow
LIMIT_S: Final = 60.0  # issue 4: an end with a message, not a hang; torchrun itself waits 30 s for what does not heed it
TORCHRUN: Final = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

# Gradients of one step, by rank 0, for two processes and for one alone with the whole batch.
GRADIENTS: Final = """
import sys
from pathlib import Path
import safetensors.torch, torch
from drunet_cli.training.distributed import Team
from drunet_cli.training.learner import new_network
from drunet_cli.training.learner import Learner
from drunet_cli.training.processes import Processes, processes
from drunet_cli.training.recipe import read_recipe
from drunet_cli.training.batches import Planner, assembled
from drunet_cli.training.store import open_store

config, slices, output = map(Path, sys.argv[1:])
cpu = torch.device("cpu")
recipe = read_recipe(config)
cases = open_store(slices, sorted(path.stem for path in slices.glob("*.safetensors")))
plan = Planner(cases, recipe.batches, recipe.augmentation, seed=3).plan(7)

def gradients(own, team):
    part = own.part(recipe.batches.size)
    learner = Learner(new_network(recipe.network, seed=own.rank), recipe, n_steps=10, device=cpu, part=part)
    learner.network.load_state_dict(new_network(recipe.network, seed=0).state_dict())
    learner.forward = team.parallel(learner.network)
    learner.network.eval()
    learner.network.train = lambda: None  # batch norm stays in evaluation mode
    learner._update = lambda step: None  # which would clear the gradients
    learner.step(torch.from_numpy(assembled(plan, cases, part)), plan)
    return {name: parameter.grad.contiguous() for name, parameter in learner.network.named_parameters()}

own = processes()
team = Team(own, cpu)
with team.joined():
    together = gradients(own, team)
if own.is_first:
    alone = gradients(Processes(), Team(Processes(), cpu))
    safetensors.torch.save_file(together, output / "together.safetensors")
    safetensors.torch.save_file(alone, output / "alone.safetensors")
"""
# A whole training, of which each rank tells what its network is in the end.
ENDING: Final = """
import json, sys
from pathlib import Path
import safetensors.torch
from drunet_cli.training import session
from drunet_cli.training.processes import processes

output = Path(sys.argv.pop(1))
named = []
sys.addaudithook(lambda event, arguments: named.append(Path(str(arguments[1])).name) if event == "os.rename" else None)
train = session.train
def told(training, progress):
    is_done = train(training, progress)
    tensors = {f"average.{name}": tensor.contiguous() for name, tensor in training.learner.averages.items()}
    tensors |= {f"network.{name}": tensor.contiguous() for name, tensor in training.learner.network.state_dict().items()}
    safetensors.torch.save_file(tensors, output / f"rank{processes().rank}.safetensors")
    (output / f"rank{processes().rank}.json").write_text(json.dumps(named))
    return is_done
session.train = told
from drunet_cli.__main__ import run
run()
"""
# Runs drunet; one rank tells by a file when it is about to take a step, counted from 0, and waits a while or dies there.
STRUCK: Final = """
import os, sys, time
from pathlib import Path
rank, at_step, does = sys.argv[1], int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]
from drunet_cli.__main__ import run
from drunet_cli.training.learner import Learner
step = Learner.step
def struck(self, pixels, plan):
    if plan.step == at_step:
        if os.environ["RANK"] == rank:
            Path(f"at_step.{rank}").touch()
            if does == "dies":
                os.kill(os.getpid(), 9)
        if does == "waits":
            time.sleep(1)
    return step(self, pixels, plan)
Learner.step = struck
run()
"""


def recipe_of(*changes: dict[str, Any]) -> Recipe:
    # Two windows for each process, so that batch norm has something to average over.
    return changed(Recipe(), merged(SMALL, {"batches": {"size": 4}}, *changes), where="")


def arguments_of(cases: Path, folder: Path, *changes: dict[str, Any]) -> list[str]:
    config = folder / "config.toml"
    config.write_text(encoded(recipe_of(*changes)))
    return ["train", str(cases), "-o", "run", "--config", str(config), "--device", "cpu", "--threads", "1", "--jobs", "1"]


@contextmanager
def started(*words: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """torchrun with two processes, none of which survives."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*TORCHRUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment
    ) as process:
        ranks: list[psutil.Process] = []
        try:
            yield process
        finally:
            if process.poll() is None:
                ranks = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            for rank in ranks:
                rank.kill()


def ended(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    with started(*words, folder=folder) as process:
        stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def program(source: str, folder: Path) -> str:
    """torchrun takes a file."""
    path = folder / "program.py"
    path.write_text(source)
    return str(path)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, path
        time.sleep(0.01)


def errors_in(stderr: str) -> list[str]:
    return re.findall(r"^Error: .*$", stderr, re.MULTILINE)


def codes_in(stderr: str) -> set[str]:
    """What torchrun says of each process that failed first or later."""
    return set(re.findall(r"exitcode\s*: (-?\d+)", stderr))


def as_one(folder: Path, cases: Path) -> Request:
    """To go on with the training by this process alone."""
    root = folder / "run"
    return resumed(asked(root, cases, slices=root / "slices"))


def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(cases: Path, tmp_path: Path) -> None:
    request = asked(tmp_path / "run", cases)
    fill(settle(request), Watcher())
    # Without what makes a slice depend on its batch, or on the process: Dice, dropout, noise.
    changes = {
        "network": {"dropout": 0.0, "zero_residual": False},
        "loss": {"dice": 0.0},
        "augmentation": {"noise": 0.0},
    }
    (tmp_path / "recipe.toml").write_text(encoded(recipe_of(changes)))
    done = ended(
        program(GRADIENTS, tmp_path), str(tmp_path / "recipe.toml"), str(request.slices), str(tmp_path), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    together, alone = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("together", "alone"))
    assert together.keys() == alone.keys()
    largest = max(float(np.abs(gradient).max()) for gradient in alone.values())
    assert largest > 0
    for name, gradient in alone.items():
        # float32 rounds to 6e-8, and 104 layers add up thousands of products each, in another order.
        np.testing.assert_allclose(together[name], gradient, rtol=1e-4, atol=1e-6 * largest, err_msg=name)


@pytest.fixture(scope="module")
def both(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """A training by two processes to its end."""
    folder = tmp_path_factory.mktemp("both")
    return folder, ended(program(ENDING, folder), str(folder), *arguments_of(cases, folder), folder=folder)


def test_training_by_two_processes_ends_well(both: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    _, done = both
    assert done.returncode == 0, done.stderr
    assert errors_in(done.stderr) == []


def test_only_one_of_two_processes_speaks(both: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    _, done = both
    assert done.stdout == "run/best.safetensors\nrun/last.safetensors\n"
    assert re.findall(r"^epoch (\d)/2", done.stderr, re.MULTILINE) == ["1", "2"]


def test_only_one_of_two_processes_writes(both: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = both
    assert [(row["epoch"], row["step"]) for row in rows_of(folder / "run" / "metrics.csv")] == [("1", "3"), ("2", "6")]
    sessions = json.loads((folder / "run" / "run.json").read_text())["sessions"]
    assert [recorded["processes"] for recorded in sessions] == [2]
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert {"best.safetensors", "last.safetensors", "state.safetensors", "metrics.csv"} <= set(first)
    assert second == []
    assert [path for path in files_below(folder) if path.suffix == ".tmp"] == []
    assert len(list((folder / "run").glob("tensorboard/*"))) <= 1


def test_weights_of_two_processes_are_a_whole_network(both: "tuple[Path, subprocess.CompletedProcess[str]]") -> None:
    folder, _ = both
    for name in ("best", "last"):
        build_model(read_checkpoint(folder / "run" / f"{name}.safetensors"))


def test_parameters_and_their_averages_are_the_same_in_both_processes(
    both: "tuple[Path, subprocess.CompletedProcess[str]]",
) -> None:
    folder, _ = both
    first, second = (safetensors.numpy.load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1))
    names = [name for name in first if name.endswith((".weight", ".bias"))]
    assert len(names) > 200
    assert [name for name in names if not np.array_equal(first[name], second[name])] == []


def test_batch_norm_statistics_that_are_kept_are_those_of_rank_0_in_both_processes(
    both: "tuple[Path, subprocess.CompletedProcess[str]]",
) -> None:
    folder, _ = both
    first, second = (safetensors.numpy.load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1))
    kept = safetensors.numpy.load_file(folder / "run" / "last.safetensors")
    state = safetensors.numpy.load_file(folder / "run" / "state.safetensors")
    names = [name for name in kept if "running_" in name]
    assert len(names) > 100
    for name in names:
        assert np.array_equal(first[f"average.{name}"], second[f"average.{name}"]), name
        assert np.array_equal(first[f"average.{name}"], kept[name]), name
        assert np.array_equal(first[f"network.{name}"], state[f"network.{name}"]), name
    # Each has seen other slices: else this would say nothing.
    assert any(not np.array_equal(first[f"network.{name}"], second[f"network.{name}"]) for name in names)


def test_training_by_two_processes_is_the_same_each_time(
    both: "tuple[Path, subprocess.CompletedProcess[str]]", cases: Path, tmp_path: Path
) -> None:
    folder, _ = both
    done = ended("-m", "drunet_cli", *arguments_of(cases, tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("best", "last"):
        one, other = (safetensors.numpy.load_file(root / "run" / f"{name}.safetensors") for root in (folder, tmp_path))
        assert [key for key in one if one[key].tobytes() != other[key].tobytes()] == []


def test_killed_rank_ends_the_training_with_a_message_and_one_process_can_go_on(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (program(STRUCK, tmp_path), "1", "4", "dies", *arguments_of(cases, tmp_path))
    with started(*words, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.1", process)
        begin = time.monotonic()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert time.monotonic() - begin < LIMIT_S
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in stderr  # torchrun's word for it
    assert "This is a fault of drunet" not in stderr
    assert document_of(tmp_path / "run" / "state.safetensors")["step"] == 3  # the epoch before
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)
    run = trained(as_one(tmp_path, cases))
    assert run.is_done
    assert [(row["epoch"], row["step"]) for row in rows_of(run.folder.metrics)] == [("1", "3"), ("2", "6")]


def test_process_that_loses_another_says_so_in_one_line(cases: Path, tmp_path: Path) -> None:
    done = ended(program(STRUCK, tmp_path), "0", "4", "dies", *arguments_of(cases, tmp_path), folder=tmp_path)
    [error] = errors_in(done.stderr)
    assert error.startswith("Error: rank 1 of 2: another process of this training has ended, or cannot be reached; ")
    assert "This is a fault of drunet" not in done.stderr


def test_sigterm_to_torchrun_saves_the_state(cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (program(STRUCK, tmp_path), "0", "4", "waits", *arguments_of(cases, tmp_path, {"length": {"steps_per_epoch": 6}}))
    with started(*words, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.0", process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert stderr.count("Stopped; the state is saved. To continue: ") == 1
    assert errors_in(stderr) == []
    assert document_of(tmp_path / "run" / "state.safetensors")["step"] == 5
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)
    assert trained(as_one(tmp_path, cases)).is_done


def test_process_that_is_told_to_stop_takes_the_other_with_it(cases: Path, tmp_path: Path) -> None:
    words = (program(STRUCK, tmp_path), "0", "4", "waits", *arguments_of(cases, tmp_path, {"length": {"steps_per_epoch": 6}}))
    with started(*words, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.0", process)
        [second] = [rank for rank in psutil.Process(process.pid).children() if rank.environ()["RANK"] == "1"]
        second.terminate()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert stderr.count("Stopped; the state is saved. To continue: ") == 1
    assert errors_in(stderr) == []
    assert document_of(tmp_path / "run" / "state.safetensors")["step"] == 5


def test_sigterm_to_every_process_of_a_job_saves_the_state_too(cases: Path, tmp_path: Path) -> None:
    words = (program(STRUCK, tmp_path), "0", "4", "waits", *arguments_of(cases, tmp_path, {"length": {"steps_per_epoch": 6}}))
    with started(*words, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.0", process)
        # As Slurm does with all processes of a step; torchrun then sends its own SIGTERM to the same two.
        for each in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
            each.terminate()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert document_of(tmp_path / "run" / "state.safetensors")["step"] == 5, stderr


def test_batch_that_cannot_be_dealt_out_evenly_is_refused(cases: Path, tmp_path: Path) -> None:
    words = arguments_of(cases, tmp_path, {"batches": {"size": 3}})
    done = ended("-m", "drunet_cli", *words, folder=tmp_path)
    assert done.returncode != 0
    assert "Error: a batch of 3 cannot be dealt out to 2 processes; give another --batch-size" in errors_in(done.stderr)
    assert codes_in(done.stderr) <= {"2", "-15"}, done.stderr  # of the one that torchrun ends before it has spoken
    assert "2" in codes_in(done.stderr)
    assert "This is a fault of drunet" not in done.stderr
    assert not (tmp_path / "run" / "config.toml").exists()


def test_batch_that_cannot_be_dealt_out_evenly_is_refused_once_and_before_any_case_is_read(cases: Path, tmp_path: Path) -> None:
    words = arguments_of(cases, tmp_path, {"batches": {"size": 3}})
    done = ended("-m", "drunet_cli", *words, folder=tmp_path)
    assert len(errors_in(done.stderr)) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def spoilt_cases(tmp_path: Path) -> Path:
    """A case of which there is no T2 but by its name: found, and refused when it is read."""
    folder = tmp_path / "spoilt"
    for n in range(N_CASES):
        small_case(folder, name=f"case_{n}", seed=n)
    (folder / "case_1" / "case_1_t2.nii").write_bytes(b"not an image")
    return folder


def test_case_that_cannot_be_read_is_named_once_by_two_processes(spoilt_cases: Path, tmp_path: Path) -> None:
    done = ended("-m", "drunet_cli", *arguments_of(spoilt_cases, tmp_path), folder=tmp_path)
    assert done.returncode != 0
    assert len([line for line in errors_in(done.stderr) if "case_1_t2.nii" in line]) == 1, done.stderr
    assert codes_in(done.stderr) & {"3"}
    assert "This is a fault of drunet" not in done.stderr


def test_process_that_was_not_at_fault_says_nothing_of_resuming_what_has_not_begun(spoilt_cases: Path, tmp_path: Path) -> None:
    done = ended("-m", "drunet_cli", *arguments_of(spoilt_cases, tmp_path), folder=tmp_path)
    assert [line for line in errors_in(done.stderr) if "case_1_t2.nii" not in line] == []


def test_case_that_is_not_there_ends_both_processes(tmp_path: Path) -> None:
    with started("-m", "drunet_cli", *arguments_of(tmp_path / "nothing", tmp_path), folder=tmp_path) as process:
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    [error] = errors_in(stderr)
    assert "nothing" in error
    assert "This is a fault of drunet" not in stderr


def test_numbers_that_leave_their_range_end_both_processes(cases: Path, tmp_path: Path) -> None:
    words = arguments_of(cases, tmp_path, {"optimiser": {"learning_rate": 1e30}})
    with started("-m", "drunet_cli", *words, folder=tmp_path) as process:
        _, stderr = process.communicate(timeout=2 * LIMIT_S)
    assert process.returncode != 0
    assert any("is no longer finite at step" in line for line in errors_in(stderr))
    assert "This is a fault of drunet" not in stderr
    assert_finite(RunFolder(tmp_path / "run").state)


def test_two_processes_go_on_where_two_were_stopped(
    both: "tuple[Path, subprocess.CompletedProcess[str]]", cases: Path, tmp_path: Path
) -> None:
    folder, _ = both
    arguments = arguments_of(cases, tmp_path)
    with started(program(STRUCK, tmp_path), "0", "3", "waits", *arguments, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.0", process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert document_of(tmp_path / "run" / "state.safetensors")["step"] == 4
    done = ended("-m", "drunet_cli", *arguments, "--resume", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (rows_of(root / "run" / "metrics.csv") for root in (folder, tmp_path))
    assert [(row["epoch"], row["step"]) for row in one] == [(row["epoch"], row["step"]) for row in other]
    for name in ("network.head.weight", "network.bridge.0.conv2.weight"):
        first, second = (safetensors.numpy.load_file(root / "run" / "state.safetensors")[name] for root in (folder, tmp_path))
        assert np.array_equal(first, second), name
