"""`drunet train`: one training, or one for each fold of a cross-validation."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drunet_cli.cli import options
from drunet_cli.cli.console import Screen
from drunet_cli.cli.options import weights_names
from drunet_cli.errors import DrunetError, MisuseError, Terminated, plural
from drunet_cli.network.engine import Precision
from drunet_cli.processes import hold_signals
from drunet_cli.training.recipe import RecipeName, TrainingSettings

if TYPE_CHECKING:
    from drunet_cli.cli.training_screen import TrainingScreen
    from drunet_cli.training.distributed import Team
    from drunet_cli.training.folds import CrossValidationPlan
    from drunet_cli.training.session import TrainingPlan
    from drunet_cli.weights.checkpoint import Checkpoint

_DATA = "Data"
_TRAINING = "Training"


def _option(help_text: str, *, panel: str = _TRAINING, default: str | bool = "as the recipe has it", **limits: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, show_default=default, **limits)


def train(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASES_OR_PNG_DIRS",
            help="Case folders with segmentations; folders that hold such at any depth; tables (.csv or .tsv with the columns "
            "case, t1, t1ce, t2, flair, seg); folders that drunet convert nii2png wrote; or - for such paths on stdin.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="RUN",
            help="Folder to write the run into. Required.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        _option("Settings to train with: modern, or paper (as published).", default="modern"),
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            "Settings that differ from the recipe; RUN/config.toml of another run has all.",
            parser=options.path,
            metavar="FILE.toml",
            default=False,
        ),
    ] = None,
    base_width: Annotated[
        int | None, _option("Filters of the first level; fewer make a smaller network.", min=1, metavar="N", default="16")
    ] = None,
    epochs: Annotated[int | None, _option("Length of the training in epochs.", min=1, metavar="N")] = None,
    steps: Annotated[
        int | None, _option("Length of the training in steps, in place of --epochs.", min=1, metavar="N", default=False)
    ] = None,
    batch_size: Annotated[int | None, _option("Slices a step, over all processes.", min=1, metavar="N")] = None,
    learning_rate: Annotated[float | None, _option("Highest learning rate of the training.", metavar="X")] = None,
    dropout: Annotated[float | None, _option("Dropout rate.", min=0, max=0.99, metavar="P")] = None,
    seed: Annotated[int | None, _option("Seed of all that is random, the split too.", min=0, metavar="N", default="0")] = None,
    init: Annotated[
        str | None,
        _option(
            "Begin with these weights (fine-tuning): a name (drunet weights list) or a file.",
            metavar="NAME_OR_FILE",
            autocompletion=weights_names,
            default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        options.flag("--resume", help="Continue the training in RUN, or begin it if there is none.", panel=_TRAINING),
    ] = False,
    val_fraction: Annotated[
        float | None,
        _option("Share of the cases held out for validation.", panel=_DATA, min=0, max=1, metavar="F", default="0.2"),
    ] = None,
    folds: Annotated[
        int | None,
        _option(
            "Cross-validation: deal the cases out to N folds, and hold each out of a training of its own in RUN.",
            panel=_DATA,
            min=2,
            metavar="N",
            default=False,
        ),
    ] = None,
    fold: Annotated[
        int | None,
        _option("Train this one of the folds, from 1, as in an array of jobs.", panel=_DATA, min=1, metavar="K", default="all"),
    ] = None,
    split: Annotated[
        Path | None,
        _option(
            'Names of the cases, {"train": [...], "validation": [...]}; RUN/split.json is such a file.',
            panel=_DATA,
            parser=options.path,
            metavar="FILE.json",
            default=False,
        ),
    ] = None,
    slices_dir: Annotated[
        Path | None,
        _option(
            "Folder that keeps the cases as slices, about 16 MB a case; runs may share it.",
            panel=_DATA,
            parser=options.path,
            metavar="DIR",
            default="RUN/slices",
        ),
    ] = None,
    pattern: options.Pattern = None,
    channels: options.Channels = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    device: options.Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="FORMAT",
            help="Number format: auto, float32, bfloat16 or float16. auto is bfloat16 on CUDA GPUs, else float32.",
            rich_help_panel=options.NETWORK,
        ),
    ] = Precision.AUTO,
    deterministic: options.Deterministic = False,
    threads: options.Threads = None,
    jobs: options.Jobs = None,
    peer_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=10_000,
            metavar="MINUTES",
            help="With torchrun: how long to wait for another process before giving up.",
            rich_help_panel=_TRAINING,
        ),
    ] = 30.0,
) -> None:
    """Train DR-Unet104 on cases with segmentations.

    RUN/best.safetensors, for drunet segment --weights, is the epoch with the best
    Dice on the cases held out. RUN also gets last.safetensors, metrics.csv,
    curves.png, config.toml with all settings, and what --resume needs.
    Ctrl-C and SIGTERM (Slurm) save the state first; --resume goes on from there.
    With --folds RUN holds a run for each fold, the label map of each case by the
    fold that held it out, and their scores; drunet segment --weights RUN averages
    the folds.

    drunet train BraTS2021_TrainingData -o run
    drunet train BraTS2021_TrainingData -o cv --folds 5

    On 4 GPUs of one machine:
    torchrun --nproc-per-node 4 -m drunet_cli train BraTS2021_TrainingData -o run
    """
    if output is None:
        raise MisuseError("missing -o: name a folder for the run")
    if not cases and not resume:
        raise MisuseError("missing CASES_OR_PNG_DIRS: name folders or tables of cases, or --resume a run")
    if not cases and folds is not None:
        raise MisuseError("missing CASES_OR_PNG_DIRS: a cross-validation segments the cases, also with --resume")
    _check_options(
        {"--val-fraction": val_fraction, "--folds": folds, "--split": split},
        folds=folds,
        fold=fold,
        lengths={"--epochs": epochs, "--steps": steps},
    )
    if resume and overwrite:
        raise MisuseError("--resume and --overwrite exclude one another")

    from drunet_cli.cli.cases import naming_of, paths_of
    from drunet_cli.host import granted_cpus, limit_openmp_spinning

    limit_openmp_spinning()
    screen = Screen(quiet=quiet)
    settings = TrainingSettings(
        output=output,
        sources=paths_of(cases or []),
        naming=naming_of(pattern or (), channels),
        slices=slices_dir or output / "slices",
        recipe=recipe,
        config=config,
        changes=_changes(
            network={"base_width": base_width, "dropout": dropout},
            length={"epochs": epochs, "steps": 0 if epochs is not None else steps},
            batches={"size": batch_size},
            optimiser={"learning_rate": learning_rate},
            seed=seed,
        ),
        val_fraction=val_fraction,
        folds=folds,
        fold=fold,
        split_file=split,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        device=device,
        precision=precision,
        deterministic=deterministic,
        threads=threads or granted_cpus(),
        n_jobs=jobs or granted_cpus(),
        peer_timeout_min=peer_timeout,
        arguments=sys.argv[1:],
    )
    if folds is None:
        _run(settings, init=init, screen=screen, json=json)
    else:
        _cross_validate(settings, init=init, screen=screen, json=json)


def _run(settings: TrainingSettings, *, init: str | None, screen: Screen, json: bool) -> None:
    """Train, or print the plan of a dry run. init: weights to begin with, by name or file."""
    from drunet_cli.cli.training_screen import TrainingScreen, print_training_plan
    from drunet_cli.training.distributed import Team, own_device, processes_of
    from drunet_cli.training.run_folder import RunFolder
    from drunet_cli.training.session import plan_training, read_together

    processes = processes_of()
    warn = screen.warning
    if not processes.is_first:
        screen, json = Screen(quiet=True), False  # the first process speaks for all
    begins = not (settings.resume and RunFolder(settings.output).exists)
    if init is not None and begins:
        settings = replace(settings, init=_checkpoint(init, screen, dry_run=settings.dry_run))
    # Checks that do without PyTorch, whose import takes seconds, come first; images are read last.
    plan = None if processes.several else plan_training(settings)
    device = own_device(processes, settings.device, on_warning=screen.warning)
    training_screen = TrainingScreen(screen, json=json)
    with Team(processes, device, timeout_min=settings.peer_timeout_min, on_warning=warn) as team:
        with training_screen:
            plan = read_together(settings, plan, team, on_progress=training_screen.show, on_warning=screen.warning)
        if plan is None:  # the first process has failed, and says why
            return
        if not settings.dry_run:
            _learn(settings, plan, team, training_screen)
        elif processes.is_first:
            print_training_plan(plan, settings, screen=screen, json=json)


def _cross_validate(settings: TrainingSettings, *, init: str | None, screen: Screen, json: bool) -> None:
    """Train the folds that are wanted, segment what they hold out, and score all cases once all folds are done."""
    from drunet_cli.cli.training_screen import TrainingScreen, print_fold_plans
    from drunet_cli.training.distributed import Processes, Team, own_device, processes_of
    from drunet_cli.training.folds import CrossValidation, begin_folds, plan_folds, read_fold_cases, segment_held_out
    from drunet_cli.training.session import resolve_precision

    if processes_of().several:
        raise MisuseError("--folds: one process trains a fold; start a job for each --fold, without torchrun")
    folder = CrossValidation(settings.output)
    numbers = range(1, (settings.folds or 0) + 1)
    if init is not None and not (settings.resume and all(folder.run(number).exists for number in numbers)):
        settings = replace(settings, init=_checkpoint(init, screen, dry_run=settings.dry_run))
    plan = plan_folds(settings)
    device = own_device(Processes(), settings.device, on_warning=screen.warning)
    resolve_precision(settings.precision, device)
    training_screen = TrainingScreen(screen, json=json)
    with training_screen:
        plan = read_fold_cases(plan, on_progress=training_screen.show, on_warning=screen.warning)
    if settings.dry_run:
        print_fold_plans(plan, screen=screen, json=json)
        return
    begin_folds(settings, plan)
    with Team(Processes(), device) as team:
        for fold in plan.fold_plans:
            fold_screen = TrainingScreen(screen, json=json, fold=fold.number)
            if fold.is_finished:
                screen.note(f"fold {fold.number}: is trained, left out")
            elif not _learn(fold.settings, fold.plan, team, fold_screen):
                return  # the signal that came ends the command here
            with _name_resume(screen), fold_screen:
                n_cases = segment_held_out(settings, plan, fold, on_progress=fold_screen.show)
            if n_cases:
                screen.note(f"fold {fold.number}: {plural(n_cases, 'held-out case')} segmented into {folder.out_of_fold}")
    with _name_resume(screen), training_screen:
        _score_folds(settings, plan, training_screen)


@contextmanager
def _name_resume(screen: Screen) -> Iterator[None]:
    """Say how to go on where a signal ends the work that follows a training."""
    from drunet_cli.cli.training_screen import STOPPED_FOLDS

    try:
        yield
    except (KeyboardInterrupt, Terminated):
        screen.note(STOPPED_FOLDS)
        raise


def _score_folds(settings: TrainingSettings, plan: "CrossValidationPlan", training_screen: "TrainingScreen") -> None:
    """Score all cases if all folds are done, by this job or others; report the result of the cross-validation."""
    from drunet_cli.cli.console import result, result_json
    from drunet_cli.cli.evaluate import statistics_table
    from drunet_cli.evaluation.evaluate import SCORES
    from drunet_cli.training.folds import CrossValidation, score_all, unfinished_folds, write_ensemble

    folder, screen = CrossValidation(settings.output), training_screen.screen
    if unfinished := unfinished_folds(settings, plan):
        folds = "fold" if len(unfinished) == 1 else "folds"
        numbers = ", ".join(map(str, unfinished))
        screen.note(f"{folds} {numbers}: not done yet; whichever job finishes the last fold scores all cases")
        return
    if not folder.ensemble.exists():
        write_ensemble(settings, plan)
    if folder.scores.exists():
        screen.note(f"{folder.scores}: is there already")
    else:
        screen.note(f"Scoring {plural(len(plan.cases), 'case')}; the ensemble can be used already")
        title = f"{plural(len(plan.cases), 'case')}, each segmented by the network that has not seen it"
        summary = score_all(settings, plan, on_progress=training_screen.show)
        training_screen.stop()
        screen.note_table(statistics_table(title, summary, SCORES))
    if training_screen.json:
        result_json({"scores": str(folder.scores), "statistics": str(folder.statistics), "ensemble": str(folder.ensemble)})
    else:
        result(str(folder.scores))


def _learn(settings: TrainingSettings, plan: "TrainingPlan", team: "Team", training_screen: "TrainingScreen") -> bool:
    """Train to the end; False after a signal, which ends the command when this call has said how to continue."""
    from drunet_cli.training.session import train

    with hold_signals() as should_stop:
        try:
            with training_screen:
                is_done = train(settings, plan, team, on_progress=training_screen.show, should_stop=should_stop)
        except DrunetError as error:
            if not (team.processes.several or should_stop()):
                raise
            # Printed here, where signals are held: a signal that has come, or that torchrun sends next, would hide the error.
            training_screen.screen.error(str(error), error.details)
            raise typer.Exit(error.exit_code) from error
        if team.processes.is_first:
            training_screen.tell_end(settings, is_done=is_done)
    return is_done


def _checkpoint(init: str, screen: Screen, *, dry_run: bool) -> "Checkpoint | None":
    """Open the weights to begin with; None where a dry run would have to download them."""
    from drunet_cli.cli.weights import opener
    from drunet_cli.weights.registry import check_available, is_file, is_file_name, weights_path

    check_available(init)
    if dry_run and not is_file_name(init) and not is_file(weights_path(init)):
        return None
    return opener(screen)(init)


def _changes(**sections: Any) -> dict[str, Any]:
    """Nest the numbers that were given as in the TOML file; None counts as not given."""
    changes: dict[str, Any] = {}
    for name, value in sections.items():
        given = {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value
        if given not in (None, {}):
            changes[name] = given
    return changes


def _check_options(splits: Mapping[str, object], *, folds: int | None, fold: int | None, lengths: Mapping[str, object]) -> None:
    """Raise MisuseError for options that exclude one another, or lack another."""
    for alternatives in (splits, lengths):
        given = [name for name, value in alternatives.items() if value is not None]
        if len(given) > 1:
            raise MisuseError(f"{' and '.join(given)} exclude one another")
    if fold is not None and folds is None:
        raise MisuseError(f"--fold {fold}: of how many? give --folds N too")
    if folds is not None and fold is not None and fold > folds:
        raise MisuseError(f"--fold {fold}: there are {folds} folds, counted from 1")
