"""`drunet train`: its options, and how a training is shown."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drunet_cli.brats import REGIONS
from drunet_cli.cli import options
from drunet_cli.cli.console import Screen
from drunet_cli.cli.options import weights_names
from drunet_cli.errors import DrunetError, MisuseError
from drunet_cli.network.engine import Precision
from drunet_cli.signals import hold_signals
from drunet_cli.training.recipe import RecipeName, TrainingSettings

if TYPE_CHECKING:
    from drunet_cli.cli.console import TrainingBar
    from drunet_cli.training.history import Epoch, TrainingProgress
    from drunet_cli.training.session import TrainingPlan
    from drunet_cli.weights.checkpoint import Checkpoint

_DATA = "Data"
_TRAINING = "Training"


def _number(help_text: str, *, panel: str = _TRAINING, default: str | bool = "as the recipe has it", **limits: Any) -> Any:
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
        _number("Settings to train with: modern, or paper (as published).", default="modern"),
    ] = None,
    config: Annotated[
        Path | None,
        _number(
            "Settings that differ from the recipe; RUN/config.toml of another run has all.", metavar="FILE.toml", default=False
        ),
    ] = None,
    base_width: Annotated[
        int | None, _number("Filters of the first level; fewer make a smaller network.", min=1, metavar="N", default="16")
    ] = None,
    epochs: Annotated[int | None, _number("Length of the training in epochs.", min=1, metavar="N")] = None,
    steps: Annotated[
        int | None, _number("Length of the training in steps, in place of --epochs.", min=1, metavar="N", default=False)
    ] = None,
    batch_size: Annotated[int | None, _number("Slices a step, over all processes.", min=1, metavar="N")] = None,
    learning_rate: Annotated[float | None, _number("Highest learning rate of the training.", metavar="X")] = None,
    dropout: Annotated[float | None, _number("Dropout rate.", min=0, max=0.99, metavar="P")] = None,
    seed: Annotated[int | None, _number("Seed of all that is random, the split too.", min=0, metavar="N", default="0")] = None,
    init: Annotated[
        str | None,
        _number(
            "Begin with these weights (fine-tuning): a name (drunet weights list) or a file.",
            metavar="NAME_OR_FILE",
            autocompletion=weights_names,
            default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the training in RUN, or begin it if there is none.", rich_help_panel=_TRAINING),
    ] = False,
    val_fraction: Annotated[
        float | None,
        _number("Share of the cases held out for validation.", panel=_DATA, min=0, max=1, metavar="F", default="0.2"),
    ] = None,
    folds: Annotated[
        int | None, _number("Cross-validation: split the cases into K folds.", panel=_DATA, min=2, metavar="K", default=False)
    ] = None,
    fold: Annotated[
        int | None, _number("Which of the K folds is held out, from 1.", panel=_DATA, min=1, metavar="k", default=False)
    ] = None,
    split: Annotated[
        Path | None,
        _number(
            'Names of the cases, {"train": [...], "validation": [...]}; RUN/split.json is such a file.',
            panel=_DATA,
            metavar="FILE.json",
            default=False,
        ),
    ] = None,
    slices_dir: Annotated[
        Path | None,
        _number(
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

    drunet train BraTS2021_TrainingData -o run
    drunet train BraTS2021_TrainingData -o fold1 --folds 5 --fold 1

    On 4 GPUs of one machine:
    torchrun --nproc-per-node 4 -m drunet_cli train BraTS2021_TrainingData -o run
    """
    if output is None:
        raise MisuseError("missing -o: name a folder for the run")
    if not cases and not resume:
        raise MisuseError("missing CASES_OR_PNG_DIRS: name folders or tables of cases, or --resume a run")
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
        fraction=val_fraction,
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
    _run(settings, init=init, screen=screen, json=json)


def _run(settings: TrainingSettings, *, init: str | None, screen: Screen, json: bool) -> None:
    """Train, or print the plan of a dry run. init: weights to begin with, by name or file."""
    from drunet_cli.training.distributed import Team, own_device, processes_of
    from drunet_cli.training.run_folder import RunFolder
    from drunet_cli.training.session import agree_on_plan, plan_training, train

    processes = processes_of()
    warn = screen.warning
    if not processes.is_first:
        screen, json = Screen(quiet=True), False  # the first process speaks for all
    begins = not (settings.resume and RunFolder(settings.output).exists)
    if init is not None and begins:
        settings = replace(settings, init=_checkpoint(init, screen, dry_run=settings.dry_run))
    # What can be checked without PyTorch, which takes seconds to import, comes first; images are read last.
    plan = None if processes.several else plan_training(settings)
    device = own_device(processes, settings.device, on_warning=screen.warning)
    training_screen = _TrainingScreen(screen, json=json)
    with Team(processes, device, timeout_min=settings.peer_timeout_min, on_warning=warn) as team:
        with training_screen:
            plan = agree_on_plan(settings, plan, team, device, on_progress=training_screen.show, on_warning=screen.warning)
        if plan is None:  # the first process has failed, and says why
            return
        if settings.dry_run:
            if processes.is_first:
                _print_plan(plan, settings, screen=screen, json=json)
            return
        with hold_signals() as should_stop:
            try:
                with training_screen:
                    is_done = train(settings, plan, team, device, on_progress=training_screen.show, should_stop=should_stop)
            except DrunetError as error:
                if not (processes.several or should_stop()):
                    raise
                # Told here, where signals are held: the one that has come, or that torchrun sends next, would hide the error.
                screen.error(str(error), error.details)
                raise typer.Exit(error.exit_code) from error
            if processes.is_first:
                _print_end(settings, is_done=is_done, screen=screen, json=json)


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
    if (folds is None) != (fold is None):
        raise MisuseError("--folds and --fold belong together: how many folds, and which of them is held out")
    if folds is not None and fold is not None and fold > folds:
        raise MisuseError(f"--fold {fold}: there are {folds} folds, counted from 1")


def _print_end(settings: TrainingSettings, *, is_done: bool, screen: Screen, json: bool) -> None:
    from drunet_cli.cli.console import result, result_json
    from drunet_cli.training.run_folder import RunFolder

    run = RunFolder(settings.output)
    if not is_done:
        words = ["drunet", "train", "--resume", "-o", str(run.root)]
        words += ["--slices-dir", str(settings.slices)] if settings.slices != run.slices else []
        screen.note(f"Stopped; the state is saved. To continue: {shlex.join(words)}")
    elif json:
        result_json({"best": str(run.best), "last": str(run.last)})
    else:
        result(str(run.best))
        result(str(run.last))


def _print_plan(plan: "TrainingPlan", settings: TrainingSettings, *, screen: Screen, json: bool) -> None:
    """Print on stdout what a dry run has found and what would be done."""
    from drunet_cli.cli.console import result_json, training_plan_table
    from drunet_cli.errors import plural
    from drunet_cli.training.recipe import Length

    split, recipe = plan.split, plan.recipe
    rows = [
        {
            "case": name,
            "split": "validation" if name in split.validation else "train",
            "slices": case.n_slices,
            "tumour_slices": case.n_tumour_slices,
            "in_store": case.reused,
        }
        for name, case in sorted(plan.summaries.items())
    ]
    learnt = [case.n_slices for name, case in plan.summaries.items() if name in split.train]
    length = Length.of(recipe, n_slices=sum(learnt))
    if json:
        for row in rows:
            result_json(row)
        result_json(
            {
                "train": len(split.train),
                "validation": len(split.validation),
                "epochs": length.n_epochs,
                "steps": length.n_steps,
                "continues": plan.continues,
                "run": str(settings.output),
            }
        )
        return
    if rows:
        screen.table(training_plan_table(rows))
    does = "would go on with" if plan.continues else "would train"
    screen.note(
        f"{does} recipe {recipe.recipe}, base width {recipe.network.base_width}: {plural(length.n_epochs, 'epoch')}, "
        f"{plural(length.n_steps, 'step')} of {plural(recipe.batches.size, 'slice')}; {plural(len(split.train), 'case')} to "
        f"learn from, {len(split.validation)} held out"
    )


class _TrainingScreen:
    """Shows how far a training is: a bar on a terminal, and a line for each epoch; with json, a line on stdout too."""

    def __init__(self, screen: Screen, *, json: bool) -> None:
        self._screen, self._json = screen, json
        self._bar: TrainingBar | None = None
        self._dice = ""

    def __enter__(self) -> None:
        if self._screen.draws:
            from drunet_cli.cli.console import TrainingBar

            self._bar = TrainingBar(self._screen)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, progress: "TrainingProgress") -> None:
        """Move the bar; tell of an epoch that has ended."""
        if progress.epoch is not None:
            self._tell_epoch(progress.epoch, progress)
        elif self._bar is not None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}  "
            state = f"{loss}{self._dice}{progress.slices_per_s:.1f} slices/s" if progress.slices_per_s else ""
            self._bar.show(f"{progress.stage} {progress.case}".rstrip(), progress.done, progress.total, state)

    def _tell_epoch(self, epoch: "Epoch", progress: "TrainingProgress") -> None:
        dice = epoch.dice
        if dice:
            self._dice = f"Dice {dice['mean']:.3f}  "
        scores = "".join(f", {region} {dice[region]:.3f}" for region in REGIONS if dice)
        best = " (best)" if epoch.is_best and dice else ""
        left = f", about {duration_in_words(progress.left_s)} left" if progress.left_s else ""
        speed = f"{epoch.slices_per_s:.1f} slices/s"
        self._screen.note(f"epoch {epoch.epoch}/{progress.n_epochs}: loss {epoch.loss:.4f}{scores}{best}, {speed}{left}")
        if self._json:
            from drunet_cli.cli.console import result_json

            result_json(
                {
                    "epoch": epoch.epoch,
                    "step": epoch.step,
                    "learning_rate": epoch.learning_rate,
                    "loss": epoch.loss,
                    "dice": dice or None,
                    "cases": {score.case: dict(score.dice) for score in epoch.scores},
                    "best": epoch.is_best,
                    "seconds": epoch.seconds,
                    "slices_per_s": epoch.slices_per_s,
                    "waiting": epoch.waiting,
                }
            )


def duration_in_words(seconds: float) -> str:
    """Say a duration in two units at most: 45 s, 3 min, 2 h 05 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
