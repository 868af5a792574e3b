"""One session of a training on one device: from a preparation to weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from drunet_cli.errors import CaseError, DeviceError, MisuseError
from drunet_cli.network.engine import Precision
from drunet_cli.network.model import DRUNet104
from drunet_cli.network.torch_engine import check_device_fault, device_name, exact_arithmetic, is_out_of_memory
from drunet_cli.training.distributed import Team
from drunet_cli.training.learner import Learner, new_network
from drunet_cli.training.loop import Training, train
from drunet_cli.training.preparation import Preparation
from drunet_cli.training.processes import Processes
from drunet_cli.training.recipe import Length, Recipe
from drunet_cli.training.run_folder import RunFolder, versions
from drunet_cli.training.state import Progress, read_state, write_state
from drunet_cli.training.store import StoredCase, open_store
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import Checkpoint, Metadata

# A GPU computes a step while these make the next; on the CPU they would take its cores.
_FEEDING_THREADS: Final = 4
_PAPER: Final = "DR-Unet104: Colman et al. 2020, arXiv:2011.02840"


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where and how a training is computed. arguments: of the command line, to be recorded.

    init: weights to begin with, None for new ones.
    """

    preparation: Preparation
    run: RunFolder
    slices: Path
    team: Team
    device: torch.device
    precision: Precision = Precision.AUTO
    threads: int = 1
    deterministic: bool = False
    init: Checkpoint | None = None
    arguments: Sequence[str] = ()
    watcher: Watcher = field(default_factory=Watcher)
    should_stop: Callable[[], bool] = lambda: False


def run(session: Session) -> bool:
    """Train to the end; False when asked to stop before, with the state saved.

    Raises CaseError, WeightsError, MisuseError, DeviceError, OutputError, DivergedError.
    """
    torch.set_num_threads(session.threads)
    with exact_arithmetic(deterministic=session.deterministic):
        if session.device.type == "cuda":
            torch.cuda.set_device(session.device)
            torch.backends.cudnn.benchmark = not session.deterministic
        return _run(session)


def _run(session: Session) -> bool:
    preparation, team = session.preparation, session.team
    recipe, split = preparation.recipe, preparation.split
    precision = resolve_precision(session.precision, session.device)
    part = team.processes.part(recipe.batches.size)
    cases = {case.name: case for case in open_store(session.slices, [*split.train, *split.validation])}
    learnt = [cases[name] for name in split.train]
    length = Length.of(recipe, n_slices=sum(case.n_slices for case in learnt))
    n_steps = length.n_steps
    try:
        learner = Learner(_network(session), recipe, n_steps=n_steps, device=session.device, precision=precision, part=part)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(f"device {session.device}: memory does not suffice for the network") from error
        check_device_fault(session.device, error)
        raise
    progress = Progress(n_steps=n_steps)
    if preparation.continues:
        progress = read_state(session.run.state, learner)
        if progress.n_steps != n_steps:
            raise CaseError(f"{session.run.state}: is of {progress.n_steps} steps, but the slices make {n_steps}")
    if team.processes.is_first:
        if not preparation.continues:
            session.run.clear()
            session.run.begin(recipe, split)
        _record(session, cases, precision, progress)
        if not preparation.continues:
            write_state(session.run.state, learner, progress)
    learner.forward = team.parallel(learner.network)
    return train(
        Training(
            recipe=recipe,
            run=session.run,
            learner=learner,
            team=team,
            train=learnt,
            precision=precision,
            validation=[cases[name] for name in split.validation],
            metadata=_metadata(session),
            length=length,
            threads=min(_FEEDING_THREADS, session.threads) if session.device.type == "cuda" else 1,
            watcher=session.watcher,
            should_stop=session.should_stop,
        ),
        progress,
    )


def check(recipe: Recipe, processes: Processes, device: torch.device, precision: Precision) -> None:
    """Raise MisuseError now for what `run` would raise once all cases are read."""
    resolve_precision(precision, device)
    processes.part(recipe.batches.size)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` is on a device: on CUDA bfloat16, or float16 where the card lacks it; else float32. Raises MisuseError."""
    if precision is Precision.FLOAT16 and device.type != "cuda":
        raise MisuseError("--precision float16: trains on CUDA GPUs only; give bfloat16 or float32")
    if precision is not Precision.AUTO:
        return precision
    if device.type != "cuda":
        return Precision.FLOAT32
    return Precision.BFLOAT16 if torch.cuda.is_bf16_supported() else Precision.FLOAT16


def _network(session: Session) -> DRUNet104:
    recipe = session.preparation.recipe
    network = new_network(recipe.network, seed=recipe.seed)
    if session.init is not None:
        # Not strict, for it lacks the counters of batch norm; whoever opened it has seen that all else is there.
        network.load_state_dict({name: torch.from_numpy(array) for name, array in session.init.state.items()}, strict=False)
    return network


def _metadata(session: Session) -> Metadata:
    recipe, split = session.preparation.recipe, session.preparation.split
    origin = f"drunet train, recipe {recipe.recipe}, seed {recipe.seed}, cases learnt from: {len(split.train)}"
    # Of an earlier session too; rank 0 has recorded this one's before.
    init = session.run.init_of_first_session()
    if init is not None:
        origin += f", from {init['name']} (SHA-256 {init['sha256']})"
    return Metadata(
        name=session.run.root.absolute().name,
        base_width=recipe.network.base_width,
        bn_epsilon=recipe.network.bn_epsilon,
        dropout=recipe.network.dropout,
        window=recipe.window,
        origin=origin,
        licence=init["licence"] if init is not None else "",
        citation=_PAPER,
    )


def _record(session: Session, cases: Mapping[str, StoredCase], precision: Precision, progress: Progress) -> None:
    contents = {name: {role: item.sha256 for role, item in case.inputs.items()} for name, case in cases.items()}
    session.run.check_same_cases(contents)
    document: dict[str, Any] = {
        "arguments": list(session.arguments),
        "from_step": progress.step,
        "n_steps": progress.n_steps,
        "device": str(session.device),
        "device_name": device_name(session.device),
        "precision": precision,
        "threads": session.threads,
        "processes": session.team.processes.n,
        "deterministic": session.deterministic,
        "init": None
        if session.init is None
        else {
            "name": session.init.metadata.name,
            "sha256": session.init.sha256,
            "licence": session.init.metadata.licence,
        },
        "versions": versions(torch.__version__),
        "cases": contents,
    }
    session.run.record_session(document)
