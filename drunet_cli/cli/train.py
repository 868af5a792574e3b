"""`drunet train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from drunet_cli.cli import options
from drunet_cli.cli.options import weights_names
from drunet_cli.errors import MisuseError
from drunet_cli.network.engine import Precision
from drunet_cli.training.recipe import RecipeName

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
        int | None, _number("Length of the training in steps, instead.", min=1, metavar="N", default=False)
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
    from drunet_cli.cli.console import Screen
    from drunet_cli.cli.training import run_training
    from drunet_cli.host import granted_cpus, limit_openmp_spinning
    from drunet_cli.training.preparation import Request
    from drunet_cli.training.run_folder import RunFolder

    run = RunFolder(output)
    request = Request(
        run=run,
        sources=paths_of(cases or []),
        naming=naming_of(pattern or (), channels),
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
        split=split,
        slices=run.slices if slices_dir is None else slices_dir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        n_jobs=jobs or granted_cpus(),
    )
    limit_openmp_spinning()
    run_training(
        request,
        init=init,
        device=device,
        precision=precision,
        deterministic=deterministic,
        threads=threads or granted_cpus(),
        screen=Screen(quiet=quiet),
        json=json,
    )


def _changes(**sections: Any) -> dict[str, Any]:
    """What was given of the recipe's settings, nested as its file."""
    changes: dict[str, Any] = {}
    for name, value in sections.items():
        given = {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value
        if given not in (None, {}):
            changes[name] = given
    return changes


def _check_options(splits: Mapping[str, object], *, folds: int | None, fold: int | None, lengths: Mapping[str, object]) -> None:
    """Raise MisuseError for options that exclude one another, or lack another."""
    for options_of_one_kind in (splits, lengths):
        given = [name for name, value in options_of_one_kind.items() if value is not None]
        if len(given) > 1:
            raise MisuseError(f"{' and '.join(given)} exclude one another")
    if (folds is None) != (fold is None):
        raise MisuseError("--folds and --fold belong together: how many folds, and which of them is held out")
    if folds is not None and fold is not None and fold > folds:
        raise MisuseError(f"--fold {fold}: there are {folds} folds, counted from 1")
