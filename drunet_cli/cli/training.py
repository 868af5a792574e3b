"""A run of `drunet train`, of one process or as one of several."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from drunet_cli.cli.console import Screen, result, result_json
from drunet_cli.cli.training_screen import TrainingScreen, print_plan
from drunet_cli.cli.weights import opener
from drunet_cli.network.engine import Precision
from drunet_cli.signals import hold_signals
from drunet_cli.training.preparation import Plan, Preparation, Request, fill, settle
from drunet_cli.training.processes import processes

if TYPE_CHECKING:
    from drunet_cli.training.distributed import Team
    from drunet_cli.training.recipe import Recipe
    from drunet_cli.weights.checkpoint import Checkpoint


def run_training(
    request: Request,
    *,
    init: str | None,
    device: str,
    precision: Precision,
    deterministic: bool,
    threads: int,
    screen: Screen,
    json: bool,
) -> None:
    """Prepare the cases and train, or print the plan of a dry run. init: weights to begin with, by name or file."""
    own = processes()
    if not own.is_first:
        screen, json = Screen(quiet=True), False
    begins = not request.continues
    checkpoint = _checkpoint(init, request, screen) if init is not None and begins else None
    if checkpoint is not None:
        request = replace(request, init=checkpoint.metadata)
    # The cheap checks come first, then the device; cases are read when nothing else can go wrong any more.
    plan = None if own.several else settle(request)

    from drunet_cli.training.distributed import Team, own_device  # torch: seconds
    from drunet_cli.training.session import Session, check, run

    where = own_device(own, device, on_warning=screen.warning)
    team = Team(own, where)
    with team.joined():
        preparation = _prepared(
            plan, request, team, lambda recipe: check(recipe, own, where, precision), TrainingScreen(screen, json=json)
        )
        if preparation is None:  # rank 0 has failed, and says why itself
            return
        if request.dry_run:
            if own.is_first:
                print_plan(preparation, request, screen=screen, json=json)
            return
        with hold_signals() as should_stop:
            with TrainingScreen(screen, json=json).shown() as progress:
                is_done = run(
                    Session(
                        preparation=preparation,
                        run=request.run,
                        slices=request.slices,
                        team=team,
                        device=where,
                        precision=precision,
                        threads=threads,
                        deterministic=deterministic,
                        init=checkpoint,
                        arguments=sys.argv[1:],
                        watcher=progress,
                        should_stop=should_stop,
                    )
                )
            if own.is_first:
                _finish(request, is_done=is_done, screen=screen, json=json)


def _prepared(
    plan: Plan | None, request: Request, team: "Team", check: Callable[["Recipe"], None], watcher: TrainingScreen
) -> Preparation | None:
    """The cases as rank 0 has read them, for all processes; None where it has failed.

    plan: None where it is not settled yet. check: raises for a recipe that cannot be trained here.
    """
    preparation = None
    try:
        if team.processes.is_first:
            plan = plan or settle(request)
            check(plan.recipe)
            with watcher.shown():
                preparation = fill(plan, watcher)
    finally:
        preparation = team.told(preparation)
    return preparation


def _finish(request: Request, *, is_done: bool, screen: Screen, json: bool) -> None:
    if not is_done:
        elsewhere = request.slices != request.run.slices
        words = ["drunet", "train", "--resume", "-o", str(request.run.root)]
        words += ["--slices-dir", str(request.slices)] if elsewhere else []
        screen.note(f"Stopped; the state is saved. To continue: {shlex.join(words)}")
        return
    if json:
        result_json({"best": str(request.run.best), "last": str(request.run.last)})
        return
    for path in (request.run.best, request.run.last):
        result(str(path))


def _checkpoint(init: str, request: Request, screen: Screen) -> "Checkpoint | None":
    """The weights to begin with; a dry run does without those that it would have to download."""
    from drunet_cli.weights.registry import check_available, is_file, is_file_name, weights_path

    check_available(init)
    if request.dry_run and not is_file_name(init) and not is_file(weights_path(init)):
        return None
    return opener(screen)(init)
