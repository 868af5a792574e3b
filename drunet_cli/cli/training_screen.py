"""The screen of a training: how far the training is, and the plan that a dry run prints."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from drunet_cli.brats import REGIONS
from drunet_cli.cli.console import Screen, TrainingBar, result, result_json, table_of
from drunet_cli.errors import plural
from drunet_cli.training.recipe import Length, TrainingSettings
from drunet_cli.training.run_folder import RunFolder

if TYPE_CHECKING:
    from drunet_cli.training.folds import CrossValidationPlan
    from drunet_cli.training.history import Epoch, TrainingProgress
    from drunet_cli.training.session import TrainingPlan
    from drunet_cli.training.store import CaseSummary

STOPPED_FOLDS: Final = "Stopped; what is done is saved. To continue: the same command with --resume"


class TrainingScreen:
    """Shows how far a training is: a bar on a terminal, and a line for each epoch; with json, a line on stdout too.

    fold: of a cross-validation, which the lines name.
    """

    def __init__(self, screen: Screen, *, json: bool, fold: int | None = None) -> None:
        self.screen, self.json = screen, json
        self._bar: TrainingBar | None = None
        self._dice = ""
        self._words = "" if fold is None else f"fold {fold}, "
        self._keys = {} if fold is None else {"fold": fold}

    def __enter__(self) -> None:
        if self.screen.draws:
            self._bar = TrainingBar(self.screen)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
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

    def tell_end(self, settings: TrainingSettings, *, is_done: bool) -> None:
        """Tell that the training has ended, or has been stopped."""
        run = RunFolder(settings.output)
        if not is_done:
            words = ["drunet", "train", "--resume", "-o", str(run.root)]
            words += ["--slices-dir", str(settings.slices)] if settings.slices != run.slices else []
            resume = f"Stopped; the state is saved. To continue: {shlex.join(words)}"
            self.screen.note(STOPPED_FOLDS if self._keys else resume)
        elif self.json:
            result_json({**self._keys, "best": str(run.best), "last": str(run.last)})
        else:
            result(str(run.best))
            result(str(run.last))

    def _tell_epoch(self, epoch: "Epoch", progress: "TrainingProgress") -> None:
        dice = epoch.dice
        if dice:
            self._dice = f"Dice {dice['mean']:.3f}  "
        scores = "".join(f", {region} {dice[region]:.3f}" for region in REGIONS if dice)
        best = " (best)" if epoch.is_best and dice else ""
        left = f", about {duration_in_words(progress.left_s)} left" if progress.left_s else ""
        speed = f"{epoch.slices_per_s:.1f} slices/s"
        self.screen.note(
            f"{self._words}epoch {epoch.epoch}/{progress.n_epochs}: loss {epoch.loss:.4f}{scores}{best}, {speed}{left}"
        )
        if self.json:
            result_json(
                {
                    **self._keys,
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


def print_training_plan(plan: "TrainingPlan", settings: TrainingSettings, *, screen: Screen, json: bool) -> None:
    """Print the cases that a dry run has found, and the plan of the training."""
    split = plan.split
    rows = _case_rows(plan.summaries, "split", lambda name: "validation" if name in split.validation else "train")
    length = _length_of(plan)  # first: it may refuse
    _print_cases(rows, "split", screen=screen, json=json)
    _print_training(plan, length, settings, screen=screen, json=json)


def print_fold_plans(plan: "CrossValidationPlan", *, screen: Screen, json: bool) -> None:
    """Print the cases that a dry run has found, and the plan of the cross-validation."""
    fold_of = {name: number for number, names in enumerate(plan.folds.held_out, start=1) for name in names}
    rows = _case_rows(plan.fold_plans[0].plan.summaries, "fold", fold_of.__getitem__)
    lengths = [_length_of(fold.plan) for fold in plan.fold_plans]
    _print_cases(rows, "fold", screen=screen, json=json)
    for fold, length in zip(plan.fold_plans, lengths, strict=True):
        if fold.is_finished and not json:
            screen.note(f"fold {fold.number}: is trained, would be left out")
        else:
            more = {"fold": fold.number, "finished": fold.is_finished}
            _print_training(fold.plan, length, fold.settings, screen=screen, json=json, **more)


def _case_rows(summaries: "Mapping[str, CaseSummary]", place: str, place_of: Callable[[str], object]) -> list[dict[str, Any]]:
    return [
        {
            "case": name,
            place: place_of(name),
            "slices": case.n_slices,
            "tumour_slices": case.n_tumour_slices,
            "in_store": case.reused,
        }
        for name, case in sorted(summaries.items())
    ]


def _print_cases(rows: Sequence[Mapping[str, Any]], place: str, *, screen: Screen, json: bool) -> None:
    """Print one row a case. place: the key of its part in the split, or of the fold that holds the case out."""
    if json:
        for row in rows:
            result_json(row)
    elif rows:
        columns = ("CASE", "FOR" if place == "split" else "FOLD", "IN STORE", "SLICES", "WITH TUMOUR")
        cells = [
            (row["case"], row[place], "yes" if row["in_store"] else "no", row["slices"], row["tumour_slices"]) for row in rows
        ]
        screen.table(table_of(columns, cells, numbers_from=3))


def _length_of(plan: "TrainingPlan") -> Length:
    learnt = [case.n_slices for name, case in plan.summaries.items() if name in plan.split.train]
    return Length.of(plan.recipe, n_slices=sum(learnt))


def _print_training(
    plan: "TrainingPlan", length: Length, settings: TrainingSettings, *, screen: Screen, json: bool, **more: Any
) -> None:
    """Print how one training would go. more: further fields of the object of --json, such as the fold."""
    split, recipe = plan.split, plan.recipe
    if json:
        result_json(
            {
                **more,
                "train": len(split.train),
                "validation": len(split.validation),
                "epochs": length.n_epochs,
                "steps": length.n_steps,
                "continues": plan.continues,
                "run": str(settings.output),
            }
        )
        return
    where = f"fold {more['fold']}: " if "fold" in more else ""
    does = "would go on with" if plan.continues else "would train"
    screen.note(
        f"{where}{does} recipe {recipe.recipe}, base width {recipe.network.base_width}: {plural(length.n_epochs, 'epoch')}, "
        f"{plural(length.n_steps, 'step')} of {plural(recipe.batches.size, 'slice')}; {plural(len(split.train), 'case')} to "
        f"learn from, {len(split.validation)} held out"
    )
