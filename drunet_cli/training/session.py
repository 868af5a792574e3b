"""One session of a training, from settings to weights: find cases, split, store, and learn.

`plan_training` finds and splits the cases before PyTorch is imported, so that mistakes are told within a second;
`read_together` reads the cases into the store; `train` learns from them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from drunet_cli.errors import CaseError, DeviceError, DrunetError, MisuseError, OutputError, WeightsError
from drunet_cli.host import cpu_name, has_bfloat16, is_out_of_memory
from drunet_cli.network.engine import Precision, changed_network
from drunet_cli.processes import run_tasks
from drunet_cli.training.cases import (
    FoundCases,
    Split,
    TrainingCase,
    find_training_cases,
    patient_of,
    patients_of,
    read_split,
    split_by_fraction,
)
from drunet_cli.training.history import OnProgress, Stage, TrainingProgress, ignore_progress
from drunet_cli.training.recipe import (
    RECIPES,
    Length,
    NetworkSettings,
    Recipe,
    RecipeName,
    TrainingSettings,
    changed,
    differences,
    read_recipe,
)
from drunet_cli.training.run_folder import FOLDS_FILE, RunFolder, TrainingState, read_state, write_state
from drunet_cli.training.store import CaseSummary, StoredCase, StoreTask, open_store, store_case
from drunet_cli.weights.checkpoint import Metadata

if TYPE_CHECKING:
    import torch

    from drunet_cli.training.distributed import Team
    from drunet_cli.training.learner import Learner
    from drunet_cli.weights.checkpoint import Checkpoint

_MOST_REFUSED: Final = 20  # that are listed
_DEFAULT_FRACTION: Final = 0.2
_FEEDING_THREADS: Final = 4  # on a GPU; on the CPU they would take the cores of the network
_PAPER: Final = "DR-Unet104: Colman et al. 2020, arXiv:2011.02840"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The plan of a session.

    cases: to be read into the store; none where a training is resumed from its slices alone. expected: SHA-256 that the files
    of a case must have, by case and role.
    continues: whether there is a training to resume. summaries: of the cases that have been read or are in the store, by name.
    notes: on the search for cases.
    """

    recipe: Recipe
    split: Split
    cases: tuple[TrainingCase, ...]
    continues: bool
    expected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    summaries: Mapping[str, CaseSummary] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_training(
    settings: TrainingSettings,
    *,
    found: FoundCases | None = None,
    recipe: Recipe | None = None,
    split: Split | None = None,
) -> TrainingPlan:
    """Settle recipe, cases and split. Reads no image and writes nothing.

    found, recipe, split: given for a fold of a cross-validation, which settles them for all of its folds.
    Raises MisuseError, CaseError, OutputError and WeightsError.
    """
    run = RunFolder(settings.output)
    continues = settings.resume and run.exists
    recipe = recipe or settle_recipe(settings, run, continues=continues)
    if continues:
        stored, stored_split = run.read()
        if changes := differences(stored, recipe):
            raise MisuseError(
                f"{run.config}: the training to resume has {'; '.join(changes)}; leave these options as they were, or "
                "begin another run, with --init of this one's weights"
            )
        asked = split or _split_asked_for(settings, [*stored_split.train, *stored_split.validation], seed=recipe.seed)
        if asked not in (None, stored_split):
            raise MisuseError(f"{run.split}: the training to resume was split otherwise; leave out the options of the split")
        split = stored_split
        if not settings.sources:
            stored_cases = open_store(settings.slices, [*split.train, *split.validation])
            summaries = {case.name: case.summary() for case in stored_cases}
            return TrainingPlan(recipe=recipe, split=split, cases=(), continues=True, summaries=summaries)
    else:
        if run.exists and not settings.overwrite:
            raise OutputError(
                f"{run.root}: holds a training already; --resume continues it, --overwrite begins anew in its place"
            )
        if (run.root / FOLDS_FILE).exists():
            raise OutputError(f"{run.root}: holds a cross-validation; give --folds to go on with it, or name another folder")
        run.check_writable(overwrite=settings.overwrite or run.is_abandoned)
        if not settings.sources:
            raise MisuseError(f"{run.root}: there is no training to resume; name the cases to learn from")
    found = found or find_usable_cases(settings)
    if split is None:
        split = _new_split(settings, patients_of(found.cases, settings.sources), seed=recipe.seed)
    wanted = {*split.train, *split.validation}
    if missing := sorted(wanted - {case.name for case in found.cases}):
        raise CaseError(f"{run.split}: the training to resume has {missing[0]}, which is not among the cases given")
    cases = tuple(case for case in found.cases if case.name in wanted)
    expected = run.cases_of_last_session() if continues else {}
    return TrainingPlan(recipe=recipe, split=split, cases=cases, continues=continues, expected=expected, notes=found.notes)


def settle_recipe(settings: TrainingSettings, run: RunFolder, *, continues: bool) -> Recipe:
    """Return the numbers to train with; a run that continues keeps its own. Raises CaseError, MisuseError, WeightsError."""
    asked = settings.recipe
    if settings.config is not None:
        recipe, source = read_recipe(settings.config, otherwise=asked or RecipeName.MODERN), f"{settings.config} is of"
    elif continues:
        recipe, source = read_recipe(run.config), "the training to resume is of"
    else:
        recipe, source = RECIPES[asked or RecipeName.MODERN], ""
    if asked not in (None, recipe.recipe):
        raise MisuseError(f"--recipe {asked}: {source} recipe {recipe.recipe}")
    recipe = changed(recipe, settings.changes, where="")
    # Weights to begin with settle the epsilon, and a base width that is not asked for.
    settled: NetworkSettings | Metadata
    if continues and run.init_of_first_session() is not None:
        settled = run.read()[0].network
    elif not continues and settings.init is not None:
        settled = settings.init.metadata
    else:
        return recipe
    width = recipe.network.base_width
    is_width_asked_for = (
        "base_width" in settings.changes.get("network", {}) or width != RECIPES[recipe.recipe].network.base_width
    )
    if not is_width_asked_for:
        width = settled.base_width
    elif isinstance(settled, Metadata) and width != settled.base_width:
        raise WeightsError(f"weights {settled.name}: are of base width {settled.base_width}, not {width}; leave the width out")
    return replace(recipe, network=replace(recipe.network, base_width=width, bn_epsilon=settled.bn_epsilon))


def _split_asked_for(settings: TrainingSettings, names: Sequence[str], *, seed: int) -> Split | None:
    """Return the split of these cases that options ask for; None without such options."""
    if (settings.split_file, settings.val_fraction) == (None, None):
        return None
    # A split by a file leaves cases out, and the names that are left cannot show that; a split of all cases can be repeated.
    return _new_split(settings, {name: patient_of(name) for name in names}, seed=seed)


def _new_split(settings: TrainingSettings, patients: Mapping[str, str], *, seed: int) -> Split:
    """Split the cases as the options ask, else by the default share. patients: by case."""
    if settings.split_file is not None:
        return read_split(settings.split_file, list(patients))
    return split_by_fraction(patients, _DEFAULT_FRACTION if settings.val_fraction is None else settings.val_fraction, seed=seed)


def find_usable_cases(settings: TrainingSettings) -> FoundCases:
    """Find the cases to learn from. Raises CaseError where one of them cannot be learnt from."""
    found = find_training_cases(settings.sources, settings.naming, leave_out=settings.output)
    if found.refused:
        raise _refusal([(case.name, case.error) for case in found.refused], n_cases=len(found.cases) + len(found.refused))
    return found


def _refusal(refused: Sequence[tuple[str, DrunetError]], *, n_cases: int) -> DrunetError:
    """Make one error of all: a training begins with every case that was named, or not at all."""
    if len(refused) == 1:
        return refused[0][1]
    lines = [str(error) for _, error in sorted(refused, key=lambda item: item[0])]
    more = [f"and {len(lines) - _MOST_REFUSED} more"] if len(lines) > _MOST_REFUSED else []
    return CaseError(
        f"{len(lines)} of {n_cases} cases cannot be learnt from; mend them, or leave them out",
        details=(*lines[:_MOST_REFUSED], *more),
    )


def read_together(
    settings: TrainingSettings,
    plan: TrainingPlan | None,
    team: "Team",
    *,
    on_progress: OnProgress = ignore_progress,
    on_warning: Callable[[str], None] = lambda _: None,
) -> TrainingPlan | None:
    """Let rank 0 read the cases, and give its plan to all processes; None where rank 0 has failed, which says why itself.

    plan: None where several processes train; rank 0 then makes the plan.
    """
    if not team.processes.is_first:
        received: TrainingPlan | _StillReading | None = _StillReading()
        while isinstance(received, _StillReading):
            received = team.broadcast(None)
        return received

    def tell(progress: TrainingProgress) -> None:
        on_progress(progress)
        team.broadcast(_StillReading())

    try:
        plan = plan or plan_training(settings)
        for note in plan.notes:
            on_warning(note)
        resolve_precision(settings.precision, team.device)
        team.processes.part(plan.recipe.batches.size)
        plan = read_cases(settings, plan, on_progress=tell, on_warning=on_warning)
    except BaseException:
        with suppress(DeviceError):  # the first error says more than the loss of another process
            team.broadcast(None)
        raise
    team.broadcast(replace(plan, cases=(), expected={}, summaries={}))
    return plan


class _StillReading:
    """Keeps the processes that wait for rank 0 from giving up."""


def read_cases(
    settings: TrainingSettings,
    plan: TrainingPlan,
    *,
    on_progress: OnProgress = ignore_progress,
    on_warning: Callable[[str], None] = lambda _: None,
) -> TrainingPlan:
    """Read and check every case, and put it into the store; a dry run only reads and checks. Returns the plan with summaries.

    Raises CaseError, with the refused cases among its details, and OutputError.
    """
    if not plan.cases:
        return plan
    tasks = [
        StoreTask(case=case, folder=settings.slices, write=not settings.dry_run, expected=plan.expected.get(case.name))
        for case in plan.cases
    ]
    summaries: dict[str, CaseSummary] = {}
    refused: list[tuple[str, DrunetError]] = []
    with closing(run_tasks(store_case, tasks, n_processes=settings.n_jobs)) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, OutputError):  # about the store: the next case would not fare better
                raise outcome
            if isinstance(outcome, DrunetError):
                refused.append((task.case.name, outcome))
                continue
            summaries[outcome.name] = outcome
            for warning in outcome.warnings:
                on_warning(f"{outcome.name}: {warning}")
            on_progress(TrainingProgress(stage=Stage.READING, done=len(summaries) + len(refused), total=len(tasks)))
    if refused:
        raise _refusal(refused, n_cases=len(tasks))
    return replace(plan, summaries=summaries)


def train(
    settings: TrainingSettings,
    plan: TrainingPlan,
    team: "Team",
    *,
    on_progress: OnProgress = ignore_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train to the end; False when asked to stop before, with the state saved.

    Raises CaseError, WeightsError, MisuseError, DeviceError, OutputError, DivergedError.
    """
    import torch

    from drunet_cli.network.torch_engine import exact_arithmetic

    torch.set_num_threads(settings.threads)
    with exact_arithmetic(deterministic=settings.deterministic):
        if team.device.type == "cuda":
            torch.cuda.set_device(team.device)
            torch.backends.cudnn.benchmark = not settings.deterministic
        return _train(settings, plan, team, on_progress, should_stop)


def _train(
    settings: TrainingSettings,
    plan: TrainingPlan,
    team: "Team",
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> bool:
    from drunet_cli.training.loop import Training

    run, recipe, device = RunFolder(settings.output), plan.recipe, team.device
    precision = resolve_precision(settings.precision, device)
    part = team.processes.part(recipe.batches.size)
    cases = {case.name: case for case in open_store(settings.slices, [*plan.split.train, *plan.split.validation])}
    learnt = [cases[name] for name in plan.split.train]
    length = Length.of(recipe, n_slices=sum(case.n_slices for case in learnt))
    learner = _learner(recipe, settings.init, length, device, precision, part)
    state = TrainingState(n_steps=length.n_steps)
    if plan.continues:
        state = read_state(run.state, learner)
        if state.n_steps != length.n_steps:
            raise CaseError(f"{run.state}: is of {state.n_steps} steps, but the slices make {length.n_steps}")
    if team.processes.is_first:
        run.remove_stale()
        if not plan.continues:
            run.clear()
            run.begin(recipe, plan.split)
        _record(settings, run, cases, state, device=device, precision=precision, n_processes=team.processes.n)
        if not plan.continues:
            write_state(run.state, learner, state)
    learner.forward = team.parallel(learner.network)  # waits for all: rank 0 has recorded the session when _metadata reads it
    return Training(
        run=run,
        learner=learner,
        team=team,
        state=state,
        length=length,
        train=learnt,
        validation=[cases[name] for name in plan.split.validation],
        metadata=_metadata(run, recipe, plan.split),
        precision=precision,
        feeding_threads=min(_FEEDING_THREADS, settings.threads) if device.type == "cuda" else 1,
        on_progress=on_progress,
        should_stop=should_stop,
    ).run_to_end()


def resolve_precision(precision: Precision, device: "torch.device") -> Precision:
    """Settle `auto`: bfloat16 on CUDA, or float16 where the card lacks it; elsewhere float32. Raises MisuseError."""
    if precision is Precision.FLOAT16 and device.type != "cuda":
        raise MisuseError("--precision float16: trains on CUDA GPUs only; give bfloat16 or float32")
    if precision is Precision.BFLOAT16 and device.type == "cpu" and not has_bfloat16():
        raise MisuseError(
            f"--precision bfloat16: this processor ({cpu_name()}) has no arithmetic for it, so that training would be several "
            "times slower than in float32; leave it out"
        )
    if precision is not Precision.AUTO:
        return precision
    if device.type != "cuda":
        return Precision.FLOAT32
    import torch

    return Precision.BFLOAT16 if torch.cuda.is_bf16_supported() else Precision.FLOAT16


def _learner(
    recipe: Recipe, init: "Checkpoint | None", length: Length, device: "torch.device", precision: Precision, part: slice
) -> "Learner":
    import torch

    from drunet_cli.network.torch_engine import check_device_fault
    from drunet_cli.training.learner import Learner, new_network

    network = new_network(recipe.network, seed=recipe.seed)
    if init is not None:
        # Not strict: the counters of batch norm are missing. Opening the checkpoint has checked all other tensors.
        network.load_state_dict({name: torch.from_numpy(array) for name, array in init.state.items()}, strict=False)
    try:
        return Learner(network, recipe, n_steps=length.n_steps, device=device, precision=precision, part=part)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(f"device {device}: memory does not suffice for the network") from error
        check_device_fault(device, error)
        raise


def _record(
    settings: TrainingSettings,
    run: RunFolder,
    cases: Mapping[str, StoredCase],
    state: TrainingState,
    *,
    device: "torch.device",
    precision: Precision,
    n_processes: int,
) -> None:
    """Write the beginning of this session into run.json. Raises CaseError where the session before had other cases."""
    from drunet_cli.network.torch_engine import device_name

    contents = {name: {role: item.sha256 for role, item in case.inputs.items()} for name, case in cases.items()}
    earlier = run.cases_of_last_session()
    if other := sorted(name for name, files in contents.items() if earlier.get(name, files) != files):
        raise CaseError(f"{other[0]}: its files are not those that {run.root} was trained on until now; begin a new run")
    init: dict[str, Any] | None = None
    if settings.init is not None:
        metadata = settings.init.metadata
        init = {"name": metadata.name, "sha256": settings.init.sha256, "licence": metadata.licence}
    run.record_session(
        {
            "arguments": list(settings.arguments),
            "from_step": state.step,
            "n_steps": state.n_steps,
            "device": str(device),
            "device_name": device_name(device),
            "precision": precision,
            "threads": settings.threads,
            "processes": n_processes,
            "deterministic": settings.deterministic,
            "init": init,
            "cases": contents,
        }
    )


def _metadata(run: RunFolder, recipe: Recipe, split: Split) -> Metadata:
    origin = f"drunet train, recipe {recipe.recipe}, seed {recipe.seed}, cases learnt from: {len(split.train)}"
    init = run.init_of_first_session()
    if init is not None:
        origin += f", from {init['name']} (SHA-256 {init['sha256']})"
    return Metadata(
        name=run.name,
        base_width=recipe.network.base_width,
        bn_epsilon=recipe.network.bn_epsilon,
        dropout=recipe.network.dropout,
        window=recipe.window,
        origin=origin,
        licence=init["licence"] if init is not None else "",
        citation=_PAPER,
        network=changed_network(),
    )
