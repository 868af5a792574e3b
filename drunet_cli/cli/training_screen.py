"""How a training is shown: bars on a terminal, a line an epoch everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drunet_cli.brats import REGIONS
from drunet_cli.cli.console import Screen, TrainingBar, result_json, training_plan_table
from drunet_cli.training.watcher import Watcher

if TYPE_CHECKING:
    from drunet_cli.training.history import Epoch
    from drunet_cli.training.preparation import Preparation, Request
    from drunet_cli.training.store import PreparedCase


class TrainingScreen(Watcher):
    """Draws what it is told. json: print every epoch on stdout too."""

    def __init__(self, screen: Screen, *, json: bool) -> None:
        self._screen, self._json = screen, json
        self._bar: TrainingBar | None = None
        self._dice = ""

    @contextmanager
    def shown(self) -> Iterator["TrainingScreen"]:
        """End the bar when the block ends, however it ends."""
        if self._screen.draws:
            self._bar = TrainingBar(self._screen)
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def found(self, n_cases: int) -> None:
        """Begin to count cases."""
        self._n_cases, self._n_prepared = n_cases, 0

    def prepared(self, case: "PreparedCase") -> None:
        """Count one more, and tell what is unusual about it."""
        self._n_prepared += 1
        for warning in case.warnings:
            self._screen.warning(f"{case.name}: {warning}")
        if self._bar is not None:
            self._bar.show("reading cases", self._n_prepared, self._n_cases)

    def stepped(self, done: int, n_steps: int, *, loss: float | None, slices_per_s: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            known = "" if loss is None else f"loss {loss:.3f}  "
            self._bar.show("training", done, n_steps, f"{known}{self._dice}{slices_per_s:.1f} slices/s")

    def validating(self, case: str, done: int, n_slices: int) -> None:
        """Show the case instead of the steps."""
        if self._bar is not None:
            self._bar.show(f"validating {case}", done, n_slices)

    def finished(self, epoch: "Epoch", n_epochs: int, *, left_s: float) -> None:
        """One line, and one on stdout with --json."""
        dice = epoch.dice
        if dice:
            self._dice = f"Dice {dice['mean']:.3f}  "
        scores = "".join(f", {region} {dice[region]:.3f}" for region in REGIONS if dice)
        best = " (best)" if epoch.is_best and dice else ""
        left = f", about {duration_in_words(left_s)} left" if left_s else ""
        self._screen.note(
            f"epoch {epoch.epoch}/{n_epochs}: loss {epoch.loss:.4f}{scores}{best}, {epoch.slices_per_s:.1f} slices/s{left}"
        )
        if self._json:
            cases = {score.case: dict(score.dice) for score in epoch.scores}
            result_json(
                {
                    "epoch": epoch.epoch,
                    "step": epoch.step,
                    "learning_rate": epoch.learning_rate,
                    "loss": epoch.loss,
                    "dice": dice or None,
                    "cases": cases,
                    "best": epoch.is_best,
                    "seconds": epoch.seconds,
                    "slices_per_s": epoch.slices_per_s,
                    "waiting": epoch.waiting,
                }
            )


def print_plan(preparation: "Preparation", request: "Request", *, screen: Screen, json: bool) -> None:
    """What a dry run has found and what would be done, on stdout."""
    from drunet_cli.errors import plural
    from drunet_cli.training.recipe import Length

    split, recipe = preparation.split, preparation.recipe
    validation = set(split.validation)
    rows = [
        {
            "case": name,
            "split": "validation" if name in validation else "train",
            "slices": case.n_slices,
            "tumour_slices": case.n_tumour_slices,
            "in_store": case.reused,
        }
        for name, case in sorted(preparation.cases.items())
    ]
    length = Length.of(
        recipe, n_slices=sum(case.n_slices for name, case in preparation.cases.items() if name not in validation)
    )
    if json:
        for row in rows:
            result_json(row)
        result_json(
            {
                "train": len(split.train),
                "validation": len(split.validation),
                "epochs": length.n_epochs,
                "steps": length.n_steps,
                "continues": preparation.continues,
                "run": str(request.run.root),
            }
        )
        return
    if rows:
        screen.table(training_plan_table(rows))
    does = "would go on with" if preparation.continues else "would train"
    screen.note(
        f"{does} recipe {recipe.recipe}, base width {recipe.network.base_width}: {plural(length.n_epochs, 'epoch')}, "
        f"{plural(length.n_steps, 'step')} of {plural(recipe.batches.size, 'slice')}; {plural(len(split.train), 'case')} to "
        f"learn from, {len(split.validation)} held out"
    )


def duration_in_words(seconds: float) -> str:
    """Two units at most: 45 s, 3 min, 2 h 05 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
