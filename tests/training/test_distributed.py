"""Two processes that learn as one, through torchrun and gloo; and what ends them when a signal comes or another is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest
import safetensors.numpy

from drunet_cli.errors import DeviceError, MisuseError
from drunet_cli.network.torch_engine import build_model
from drunet_cli.training.distributed import Processes, Team, processes_of
from drunet_cli.training.recipe import Recipe, changed, recipe_toml
from drunet_cli.training.session import plan_training, read_cases
from drunet_cli.weights.checkpoint import read_checkpoint
from tests.conversion.small_cases import small_case
from tests.support import contents
from tests.training.shallow import SHALLOW_FROM_HERE
from tests.training.small_runs import (
    CPU,
    SMALL,
    assert_finite,
    document_of,
    merge,
    resuming,
    rows_of,
    run_training,
    small_settings,
)

LIMIT_S: Final = 90.0  # an end with a message, not a hang; torchrun itself waits 30 s for what does not heed it
TORCHRUN: Final = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

pytestmark = pytest.mark.usefixtures("shallow")

Ended = tuple[Path, str, str]


# The variables of torchrun

RENDEZVOUS: Final = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
GIVEN: Final[dict[str, tuple[Mapping[str, str], Processes]]] = {
    "none": ({}, Processes()),
    "empty ones": ({"RANK": "", "WORLD_SIZE": " ", "LOCAL_RANK": "", "MASTER_ADDR": ""}, Processes()),
    "an address alone": (RENDEZVOUS, Processes()),
    "one process": ({"RANK": "0", "WORLD_SIZE": "1"}, Processes()),
    "the second of three": ({"RANK": "1", "WORLD_SIZE": "3", **RENDEZVOUS}, Processes(1, 3, 1, "10.0.0.1:29500")),
    "on another machine": (
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **RENDEZVOUS},
        Processes(5, 8, 1, "10.0.0.1:29500"),
    ),
}
MISUSE: Final[dict[str, tuple[Mapping[str, str], str]]] = {
    "no WORLD_SIZE": ({"RANK": "1"}, "WORLD_SIZE: is not set, but RANK=1; "),
    "empty RANK": ({"RANK": "", "WORLD_SIZE": "2"}, "RANK: is not set, but WORLD_SIZE=2; "),
    "no number": ({"RANK": "a", "WORLD_SIZE": "2", **RENDEZVOUS}, "RANK=a: must be a whole number from 0 to 2147483647; "),
    "negative": ({"RANK": "-1", "WORLD_SIZE": "2", **RENDEZVOUS}, "RANK=-1: must be a whole number from 0 to 2147483647; "),
    "no process": ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number from 1 to 2147483647; "),
    "rank beyond": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2: ranks are counted from 0 to 1; "),
    "local rank": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **RENDEZVOUS}, "LOCAL_RANK=x: must be"),
    "no address": ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR: is not set, but WORLD_SIZE=2 is; "),
    "no port": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT: is not set, but RANK=0 and WORLD_SIZE=2; "),
    "port beyond": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "70000"},
        "MASTER_PORT=70000: must be a whole number from 1 to 65535; ",
    ),
}


@pytest.mark.parametrize(("environment", "expected"), GIVEN.values(), ids=GIVEN)
def test_processes_are_read_from_the_environment(environment: Mapping[str, str], expected: Processes) -> None:
    assert processes_of(environment) == expected


@pytest.mark.parametrize(("environment", "message"), MISUSE.values(), ids=MISUSE)
def test_variables_that_are_missing_or_no_numbers_are_named(environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(MisuseError) as refusal:
        processes_of(environment)
    assert str(refusal.value).startswith(message)
    assert "torchrun" in str(refusal.value)


def test_batch_is_dealt_out_evenly_or_refused() -> None:
    parts = [Processes(rank, 3).part(6) for rank in range(3)]
    assert [number for part in parts for number in range(6)[part]] == list(range(6))
    with pytest.raises(MisuseError, match="a batch of 5 cannot be dealt out to 3 processes; give another --batch-size"):
        Processes(0, 3).part(5)


def test_peers_are_no_longer_watched_when_parting_from_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(Team, "_meet", lambda _: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", fail)
    with pytest.raises(DeviceError, match="another process of this training has ended"), Team(Processes(0, 2), CPU):
        pass
    assert "peers" not in [thread.name for thread in threading.enumerate()]
    assert signal.set_wakeup_fd(-1) == -1


# Programs for torchrun

DRUNET: Final = "from drunet_cli.__main__ import run\nrun()\n"
# Gradients of one step, by rank 0, of two processes and of one process with the whole batch.
GRADIENTS: Final = """
import sys
from pathlib import Path
import safetensors.torch, torch
from drunet_cli.training.batches import Planner, assemble
from drunet_cli.training.distributed import Processes, Team, processes_of
from drunet_cli.training.learner import Learner, new_network
from drunet_cli.training.recipe import read_recipe
from drunet_cli.training.store import open_store

config, slices, output = map(Path, sys.argv[1:])
cpu = torch.device("cpu")
recipe = read_recipe(config)
cases = open_store(slices, sorted(path.stem for path in slices.glob("*.safetensors")))
plan = Planner(cases, recipe.batches, recipe.augmentation, seed=3).plan(7)

def gradients(processes, team):
    part = processes.part(recipe.batches.size)
    learner = Learner(new_network(recipe.network, seed=processes.rank), recipe, n_steps=10, device=cpu, part=part)
    learner.network.load_state_dict(new_network(recipe.network, seed=0).state_dict())
    learner.forward = team.parallel(learner.network)
    learner.network.eval()
    learner.network.train = lambda: None  # batch norm stays in evaluation mode
    learner._update = lambda step: None  # which would clear the gradients
    learner.step(torch.from_numpy(assemble(plan, cases, part)), plan)
    return {name: parameter.grad.contiguous() for name, parameter in learner.network.named_parameters()}

processes = processes_of()
with Team(processes, cpu) as team:
    together = gradients(processes, team)
if processes.is_first:
    alone = gradients(Processes(), Team(Processes(), cpu))
    safetensors.torch.save_file(together, output / "together.safetensors")
    safetensors.torch.save_file(alone, output / "alone.safetensors")
"""
# A whole training, after which each rank writes what its network is, and which files it has written.
ENDING: Final = """
import json, sys
from pathlib import Path
import safetensors.torch
from drunet_cli.training.distributed import processes_of
from drunet_cli.training.loop import Training

output, rank = Path(sys.argv.pop(1)), processes_of().rank
renamed = []
sys.addaudithook(lambda event, arguments: renamed.append(Path(str(arguments[1])).name) if event == "os.rename" else None)
run_to_end = Training.run_to_end
def run_and_write(self):
    is_done = run_to_end(self)
    tensors = {f"average.{name}": tensor.contiguous() for name, tensor in self.learner.averages.items()}
    tensors |= {f"network.{name}": tensor.contiguous() for name, tensor in self.learner.network.state_dict().items()}
    safetensors.torch.save_file(tensors, output / f"rank{rank}.safetensors")
    (output / f"rank{rank}.json").write_text(json.dumps(renamed))
    return is_done
Training.run_to_end = run_and_write
from drunet_cli.__main__ import run
run()
"""
# Runs drunet; one rank tells by a file when it is about to take a step, counted from 0, and then waits, dies, or stands still.
AT_STEP: Final = """
import os, sys, time
from pathlib import Path
rank, at_step, does = sys.argv[1], int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]
from drunet_cli.__main__ import run
from drunet_cli.training.learner import Learner
step = Learner.step
def step_or_not(self, pixels, plan):
    if plan.step == at_step:
        if os.environ["RANK"] == rank:
            Path(f"at_step.{rank}").touch()
            if does == "dies":
                os.kill(os.getpid(), 9)
            if does == "stands still":
                os.kill(os.getpid(), 19)
        if does == "waits":
            time.sleep(1)
    return step(self, pixels, plan)
Learner.step = step_or_not
run()
"""


def options_of(cases: Path, folder: Path, *changes: dict[str, Any]) -> list[str]:
    # Two windows for each process, so that batch norm has something to average over.
    recipe = changed(Recipe(), merge(SMALL, {"batches": {"size": 4}}, *changes), where="")
    config = folder / "config.toml"
    config.write_text(recipe_toml(recipe))
    return ["train", str(cases), "-o", "run", "--config", str(config), "--device", "cpu", "--threads", "1", "--jobs", "1"]


@contextmanager
def started(*command: str, folder: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A process, none of whose children survives."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment
    ) as process:
        children: list[psutil.Process] = []
        try:
            yield process
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            for child in children:
                child.kill()


@contextmanager
def pair(*words: str, folder: Path) -> Iterator[tuple["subprocess.Popen[str]", "subprocess.Popen[str]"]]:
    """Two processes of one training, as torchrun starts them, but without its own."""
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = (sys.executable, *words)
    with (
        started(*command, folder=folder, RANK="0", **rendezvous) as first,
        started(*command, folder=folder, RANK="1", **rendezvous) as second,
    ):
        yield first, second


def ended(*words: str, folder: Path) -> tuple[list[int], str]:
    """The exit codes of two processes of one training, and what both have told on stderr."""
    with pair(*words, folder=folder) as processes:
        told = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], "".join(told)


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def program(source: str, folder: Path) -> str:
    """Write a program for torchrun, which takes a file; it trains a shallow network."""
    path = folder / "program.py"
    path.write_text(SHALLOW_FROM_HERE + source)
    return str(path)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, path
        time.sleep(0.01)


def errors_in(stderr: str) -> list[str]:
    assert "This is a fault of drunet" not in stderr
    return re.findall(r"^Error: .*$", stderr, re.MULTILINE)


def step_of(folder: Path) -> int:
    return int(document_of(folder / "run" / "state.safetensors")["step"])


# What two processes compute


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(cases: Path, tmp_path: Path) -> None:
    settings = small_settings(tmp_path / "run", cases)
    read_cases(settings, plan_training(settings))
    # Without what makes a slice depend on its batch, or on the process: Dice, dropout, noise.
    changes = {
        "network": {"dropout": 0.0, "zero_residual": False},
        "loss": {"dice": 0.0},
        "augmentation": {"noise": 0.0},
    }
    options_of(cases, tmp_path, changes)
    words = [str(tmp_path / "config.toml"), str(settings.slices), str(tmp_path)]
    codes, stderr = ended(program(GRADIENTS, tmp_path), *words, folder=tmp_path)
    assert codes == [0, 0], stderr
    together, alone = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("together", "alone"))
    assert together.keys() == alone.keys()
    largest = max(float(np.abs(gradient).max()) for gradient in alone.values())
    assert largest > 0
    for name, gradient in alone.items():
        # float32 rounds to 6e-8, and 104 layers add up thousands of products each, in another order.
        np.testing.assert_allclose(together[name], gradient, rtol=1e-4, atol=1e-6 * largest, err_msg=name)


@pytest.fixture(scope="module")
def both(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A training by two processes to its end, which torchrun starts."""
    folder = tmp_path_factory.mktemp("both")
    with started(*TORCHRUN, program(ENDING, folder), str(folder), *options_of(cases, folder), folder=folder) as process:
        told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return folder, *told


@pytest.mark.slow
def test_only_the_first_of_two_processes_speaks_and_writes(both: Ended) -> None:
    folder, stdout, stderr = both
    assert errors_in(stderr) == []
    assert stdout == "run/best.safetensors\nrun/last.safetensors\n"
    assert re.findall(r"^epoch (\d)/2", stderr, re.MULTILINE) == ["1", "2"]
    assert [(row["epoch"], row["step"]) for row in rows_of(folder / "run" / "metrics.csv")] == [("1", "2"), ("2", "4")]
    sessions = json.loads((folder / "run" / "run.json").read_text())["sessions"]
    assert [recorded["processes"] for recorded in sessions] == [2]
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert {"best.safetensors", "last.safetensors", "state.safetensors", "metrics.csv"} <= set(first)
    assert second == []
    assert [name for name in contents(folder) if name.endswith(".tmp")] == []


@pytest.mark.slow
def test_two_processes_have_one_network_with_the_batch_norm_statistics_of_the_first(both: Ended) -> None:
    folder, *_ = both
    first, second = (safetensors.numpy.load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1))
    kept, state = (safetensors.numpy.load_file(folder / "run" / f"{name}.safetensors") for name in ("last", "state"))
    build_model(read_checkpoint(folder / "run" / "best.safetensors"))
    learnt = [name for name in first if name.endswith((".weight", ".bias"))]
    assert len(learnt) > 200
    assert [name for name in learnt if not np.array_equal(first[name], second[name])] == []
    statistics = [name for name in kept if "running_" in name]
    assert len(statistics) > 50
    for name in statistics:
        assert np.array_equal(first[f"average.{name}"], second[f"average.{name}"]), name
        assert np.array_equal(first[f"average.{name}"], kept[name]), name
        assert np.array_equal(first[f"network.{name}"], state[f"network.{name}"]), name
    # Each has seen other slices: otherwise this test would say nothing.
    assert any(not np.array_equal(first[f"network.{name}"], second[f"network.{name}"]) for name in statistics)


# Signals, and processes that are lost


@pytest.mark.slow
def test_sigterm_to_every_process_saves_the_state_from_which_two_processes_go_on(
    both: Ended, cases: Path, tmp_path: Path
) -> None:
    """As Slurm does with all processes of a step; torchrun then sends its own SIGTERM to the same two."""
    options = options_of(cases, tmp_path)
    with started(*TORCHRUN, program(AT_STEP, tmp_path), "0", "2", "waits", *options, folder=tmp_path) as process:
        wait_for(tmp_path / "at_step.0", process)
        torchrun = psutil.Process(process.pid)
        for each in (*torchrun.children(), torchrun):
            each.terminate()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert stderr.count("Stopped; the state is saved. To continue: ") == 1
    assert errors_in(stderr) == []
    assert step_of(tmp_path) == 3
    codes, stderr = ended(program(DRUNET, tmp_path), *options, "--resume", folder=tmp_path)
    assert codes == [0, 0], stderr
    for name in ("network.head.weight", "network.bridge.0.conv2.weight", "average.head.bias"):
        one, other = (safetensors.numpy.load_file(root / "run/state.safetensors")[name] for root in (both[0], tmp_path))
        assert np.array_equal(one, other), name


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_and_saves_the_state_too(cases: Path, tmp_path: Path) -> None:
    with pair(program(AT_STEP, tmp_path), "0", "2", "waits", *options_of(cases, tmp_path), folder=tmp_path) as processes:
        wait_for(tmp_path / "at_step.0", processes[0])
        processes[1].terminate()
        told = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert errors_in("".join(told)) == []
    assert step_of(tmp_path) == 3, told


@pytest.mark.slow
def test_killed_process_ends_the_other_with_a_message_and_one_process_can_go_on(
    cases: Path, tmp_path: Path, no_curves: None
) -> None:
    words = (program(AT_STEP, tmp_path), "0", "2", "dies", *options_of(cases, tmp_path))
    _, stderr = ended(*words, folder=tmp_path)
    [error] = errors_in(stderr)
    assert error.startswith("Error: rank 1 of 2: another process of this training has ended, or cannot be reached; ")
    assert step_of(tmp_path) == 2  # the epoch before
    settings = small_settings(tmp_path / "run", cases, slices=tmp_path / "run" / "slices")
    run = run_training(resuming(settings))
    assert [(row["epoch"], row["step"]) for row in rows_of(run.folder.metrics)] == [("1", "2"), ("2", "4")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_training_whose_peers_never_come_says_where_it_waits_and_heeds_signals(
    number: signal.Signals, code: int, cases: Path, tmp_path: Path
) -> None:
    command = (sys.executable, "-m", "drunet_cli", *options_of(cases, tmp_path))
    port = free_port()
    rendezvous = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with started(*command, folder=tmp_path, **rendezvous) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"Warning: rank 0 of 3: waiting for 2 other processes at 127.0.0.1:{port}, for at most 30 min")
        process.send_signal(number)
        assert process.wait(timeout=10) == code
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_whose_peers_never_come_gives_up_after_the_time_that_was_set(cases: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "drunet_cli", *options_of(cases, tmp_path), "--peer-timeout", "0.1")
    rendezvous = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with started(*command, folder=tmp_path, **rendezvous) as process:
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 5
    [error] = errors_in(stderr)
    assert "no answer from another process within 0.1 min" in error
    assert "--peer-timeout" in error


@pytest.mark.slow
def test_training_whose_peer_stands_still_heeds_signals(cases: Path, tmp_path: Path) -> None:
    """The step hangs where PyTorch averages the gradients, which Python cannot interrupt."""
    words = (program(AT_STEP, tmp_path), "1", "3", "stands still", *options_of(cases, tmp_path))
    with pair(*words, folder=tmp_path) as (first, second):
        wait_for(tmp_path / "at_step.1", first)
        time.sleep(1)
        first.send_signal(signal.SIGTERM)
        _, stderr = first.communicate(timeout=LIMIT_S)
        second.kill()
    assert first.returncode == 143
    assert "another process of this training does not answer; stopped without saving the state again" in stderr
    assert step_of(tmp_path) == 2
    assert_finite(tmp_path / "run" / "state.safetensors")


# What ends both


@pytest.mark.slow
def test_what_cannot_be_trained_is_told_once_and_ends_both(cases: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    for n in range(3):
        small_case(spoilt, name=f"case_{n}", seed=n)
    (spoilt / "case_1" / "case_1_t2.nii").write_bytes(b"not an image")
    for name, sources, changes, message in (
        ("case", spoilt, {}, "case_1_t2.nii"),
        ("range", cases, {"optimiser": {"learning_rate": 1e30}}, "is no longer finite at step"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        codes, stderr = ended(program(DRUNET, folder), *options_of(sources, folder, changes), folder=folder)
        assert codes[0] != 0  # the other process has nothing to tell where the first refuses, and ends with 0
        errors = errors_in(stderr)
        assert any(message in error for error in errors), stderr
        assert name == "range" or len(errors) == 1, errors
        written = {path.name for path in (folder / "run").glob("*")}
        assert "config.toml" in written if name == "range" else written == {"slices"}
