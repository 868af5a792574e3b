"""From what was asked to what can be trained: recipe, cases, split, slices in the store. No torch."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, WeightsError
from drunet_cli.io.naming import BUILT_IN, Naming
from drunet_cli.jobs import run_tasks
from drunet_cli.training.cases import Split, find_sources, read_split, split_by_fold, split_by_fraction
from drunet_cli.training.recipe import RECIPES, Recipe, RecipeName, changed, differences, read_recipe
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.store import PreparedCase, StoreTask, open_store, prepare_case
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import Metadata

_NAMED: Final = 20
_DEFAULT_FRACTION: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for. sources: may be empty where a training is resumed, whose slices are then taken as they are.

    recipe, config: at most one names the other's recipe; changes: to that, nested as the TOML file. fraction, folds and fold,
    split: at most one kind; the default is a fraction of 0.2. init: of the weights to begin with.
    """

    run: RunFolder
    sources: Sequence[Path]
    naming: Naming = BUILT_IN
    recipe: RecipeName | None = None
    config: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    fraction: float | None = None
    folds: int | None = None
    fold: int | None = None
    split: Path | None = None
    slices: Path
    init: Metadata | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    n_jobs: int = 1

    @property
    def continues(self) -> bool:
        """Whether there is a training to resume."""
        return self.resume and self.run.exists


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is settled before a voxel is read. tasks: none where a training is resumed without sources."""

    recipe: Recipe
    split: Split
    tasks: tuple[StoreTask, ...]
    n_jobs: int
    continues: bool


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Everything that is settled before the first step.

    cases: as they are in the store, by name; empty where a training is resumed without sources.
    """

    recipe: Recipe
    split: Split
    cases: Mapping[str, PreparedCase]
    continues: bool


def settle(request: Request) -> Plan:
    """Settle recipe, cases and split; nothing is read of the images, nothing written.

    Raises MisuseError, CaseError (with every case that is refused among its details), OutputError and WeightsError.
    """
    recipe = _recipe(request)
    split = None
    if request.continues:
        stored, split = request.run.read()
        if changes := differences(stored, recipe):
            raise MisuseError(
                f"{request.run.config}: the training to resume has {'; '.join(changes)}; leave these options as they were, or "
                "begin another run, with --init of this one's weights"
            )
        _check_same_split(request, split, seed=recipe.seed)
        if not request.sources:
            open_store(request.slices, [*split.train, *split.validation])  # raises for what is missing
            return Plan(recipe=recipe, split=split, tasks=(), n_jobs=request.n_jobs, continues=True)
    else:
        if request.run.exists and not request.overwrite:
            raise OutputError(
                f"{request.run.root}: holds a training already; --resume continues it, --overwrite begins anew in its place"
            )
        request.run.check(overwrite=request.overwrite or request.run.was_begun_in_vain)
        if not request.sources:
            raise MisuseError(f"{request.run.root}: there is no training to resume; name the cases to learn from")
    sources = find_sources(request.sources, request.naming)
    if sources.refused:
        raise _refused([(case.name, case.error) for case in sources.refused], n_cases=len(sources.cases) + len(sources.refused))
    if split is None:
        split = _new_split(request, [case.name for case in sources.cases], seed=recipe.seed)
    elif missing := sorted({*split.train, *split.validation} - {case.name for case in sources.cases}):
        raise CaseError(f"{request.run.split}: the training to resume has {missing[0]}, which is not among the cases given")
    wanted = {*split.train, *split.validation}
    earlier = request.run.cases_of_session() if request.continues else {}
    tasks = tuple(
        StoreTask(case=case, folder=request.slices, write=not request.dry_run, expected=earlier.get(case.name))
        for case in sources.cases
        if case.name in wanted
    )
    return Plan(recipe=recipe, split=split, tasks=tasks, n_jobs=request.n_jobs, continues=request.continues)


def fill(plan: Plan, watcher: Watcher) -> Preparation:
    """Read and check every case, and put it into the store; with a dry run it is read and checked alone.

    Raises CaseError, with every case that is refused among its details, and OutputError.
    """
    cases = _prepared(plan.tasks, plan.n_jobs, watcher) if plan.tasks else {}
    return Preparation(recipe=plan.recipe, split=plan.split, cases=cases, continues=plan.continues)


def _prepared(tasks: Sequence[StoreTask], n_jobs: int, watcher: Watcher) -> dict[str, PreparedCase]:
    prepared: dict[str, PreparedCase] = {}
    refused: list[tuple[str, DrunetError]] = []
    watcher.found(len(tasks))
    with closing(run_tasks(prepare_case, tasks, n_processes=n_jobs)) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, OutputError):  # of the store: the next case would not fare better
                raise outcome
            if isinstance(outcome, DrunetError):
                refused.append((task.case.name, outcome))
            else:
                prepared[outcome.name] = outcome
                watcher.prepared(outcome)
    if refused:
        raise _refused(refused, n_cases=len(tasks))
    return prepared


def _refused(refused: Sequence[tuple[str, DrunetError]], *, n_cases: int) -> DrunetError:
    """One error for all: training begins with every case that was named, or not at all."""
    if len(refused) == 1:
        return refused[0][1]
    lines = [str(error) for _, error in sorted(refused, key=lambda item: item[0])]
    more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return CaseError(
        f"{len(lines)} of {n_cases} cases cannot be learnt from; mend them, or leave them out",
        details=(*lines[:_NAMED], *more),
    )


def _recipe(request: Request) -> Recipe:
    """Raises CaseError, MisuseError."""
    if request.config is not None:
        recipe = read_recipe(request.config, otherwise=request.recipe or RecipeName.MODERN)
        if request.recipe not in (None, recipe.recipe):
            raise MisuseError(f"--recipe {request.recipe}: {request.config} is of recipe {recipe.recipe}")
    elif request.continues:
        recipe = read_recipe(request.run.config)
        if request.recipe not in (None, recipe.recipe):
            raise MisuseError(f"--recipe {request.recipe}: the training to resume is of recipe {recipe.recipe}")
    else:
        recipe = RECIPES[request.recipe or RecipeName.MODERN]
    recipe = changed(recipe, request.changes, where="")
    if request.init is not None:
        usual = RECIPES[recipe.recipe].network.base_width
        asked_for = "base_width" in request.changes.get("network", {}) or recipe.network.base_width != usual
        recipe = _adopted(recipe, request.init, width_is_asked_for=asked_for)
    return recipe


def _adopted(recipe: Recipe, init: Metadata, *, width_is_asked_for: bool) -> Recipe:
    """The recipe with what the weights to begin with settle: base width and epsilon."""
    if width_is_asked_for and recipe.network.base_width != init.base_width:
        raise WeightsError(
            f"weights {init.name}: are of base width {init.base_width}, not {recipe.network.base_width}; leave that out"
        )
    return replace(recipe, network=replace(recipe.network, base_width=init.base_width, bn_epsilon=init.bn_epsilon))


def _new_split(request: Request, names: Sequence[str], *, seed: int) -> Split:
    if request.split is not None:
        return read_split(request.split, names)
    if request.folds is not None and request.fold is not None:
        return split_by_fold(names, request.folds, request.fold, seed=seed)
    return split_by_fraction(names, _DEFAULT_FRACTION if request.fraction is None else request.fraction, seed=seed)


def _check_same_split(request: Request, split: Split, *, seed: int) -> None:
    """Raise MisuseError where another split is asked for than that of the training to resume."""
    names = [*split.train, *split.validation]
    if request.split is not None:
        same = read_split(request.split, names) == split
    elif (request.folds, request.fraction) == (None, None):
        return
    else:
        # A split of a file leaves cases out, so that the others cannot tell it; of all cases it can be told.
        same = _new_split(request, names, seed=seed) == split
    if not same:
        raise MisuseError(
            f"{request.run.split}: the training to resume was split otherwise; leave out the options of the split"
        )
