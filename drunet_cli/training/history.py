"""The epochs of a training: as tables, as curves, as TensorBoard events; and how far the training is, for a bar."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from drunet_cli.brats import REGIONS
from drunet_cli.evaluation.evaluate import REGION_COLOURS
from drunet_cli.io.atomic import publish


@dataclass(frozen=True)
class CaseScore:
    """Dice of one held-out case by region (WT, TC, ET); 1 where neither prediction nor truth has the region."""

    case: str
    dice: Mapping[str, float]


def mean_scores(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Return the mean over the cases by region, and as "mean" the mean of the regions; nothing where there are no cases."""
    if not scores:
        return {}
    means = {region: sum(score.dice[region] for score in scores) / len(scores) for region in REGIONS}
    return means | {"mean": sum(means.values()) / len(means)}


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, counted from 1.

    step: number of steps of the whole training that are done when this epoch ends. learning_rate: at the last step.
    loss: mean over the steps. scores: one for each held-out case; empty where the epoch was not validated.
    slices_per_s: speed of learning. waiting: share of the seconds in which the device waited for slices.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    scores: tuple[CaseScore, ...] = ()
    is_best: bool = False
    seconds: float = 0.0
    slices_per_s: float = 0.0
    waiting: float = 0.0

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice of the held-out cases, as `mean_scores` gives it."""
        return mean_scores(self.scores)

    def in_words(self, n_steps: int) -> str:
        """Describe the epoch for the origin of its weights. n_steps: of the whole training."""
        dice = ", ".join(f"{region} {value:.3f}" for region, value in self.dice.items() if region != "mean")
        held_out = f", held out: {len(self.scores)}, their mean Dice: {dice}" if dice else ""
        return f"epoch {self.epoch}, step {self.step} of {n_steps}{held_out}"


@dataclass(frozen=True)
class History:
    """All epochs so far, in order."""

    epochs: tuple[Epoch, ...] = field(default=())

    @property
    def best(self) -> Epoch | None:
        """The best epoch; None before the first one."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.is_best), None)

    def would_be_best(self, scores: Sequence[CaseScore]) -> bool:
        """Whether an epoch with these scores would be the best. Without scores each epoch is better than those before."""
        if not scores or self.best is None or not self.best.scores:
            return True
        return mean_scores(scores)["mean"] > self.best.dice["mean"]


class Stage(StrEnum):
    """The present work of a training."""

    READING = "reading cases"
    LEARNING = "training"
    VALIDATING = "validating"
    SEGMENTING = "segmenting"
    SCORING = "scoring"


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is: `done` of `total` cases, steps or slices of a held-out case, as the stage counts.

    case: the held-out case. loss: the last one that is known. epoch: the epoch that has just ended, one of n_epochs. left_s:
    seconds that the rest of the training will take.
    """

    stage: Stage
    done: int
    total: int
    case: str = ""
    loss: float | None = None
    slices_per_s: float = 0.0
    epoch: Epoch | None = None
    n_epochs: int = 0
    left_s: float = 0.0


OnProgress: TypeAlias = Callable[[TrainingProgress], None]


def ignore_progress(progress: TrainingProgress) -> None:
    """Do nothing."""


def write_tables(history: History, metrics: Path, cases: Path) -> None:
    """Write one row for each epoch, and one row for each held-out case of each epoch. Raises OutputError."""
    names = [item.name for item in fields(Epoch) if item.name not in ("scores", "is_best")]
    regions = [*REGIONS, "mean"]
    rows = [
        [
            *(_rounded(getattr(epoch, name)) for name in names[:4]),
            *(_rounded(epoch.dice[region]) if epoch.scores else "" for region in regions),
            int(epoch.is_best),
            *(_rounded(getattr(epoch, name)) for name in names[4:]),
        ]
        for epoch in history.epochs
    ]
    _write_csv(metrics, [*names[:4], *(f"dice_{region}" for region in regions), "best", *names[4:]], rows)
    case_rows = [
        [epoch.epoch, epoch.step, score.case, *(_rounded(score.dice[region]) for region in REGIONS)]
        for epoch in history.epochs
        for score in epoch.scores
    ]
    _write_csv(cases, ["epoch", "step", "case", *(f"dice_{region}" for region in REGIONS)], case_rows)


def _rounded(value: float) -> float:
    """Round a fraction to six digits; more would be noise."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    publish(path, table.getvalue().encode(errors="surrogateescape"), overwrite=True)


def draw_curves(history: History, path: Path) -> bool:
    """Draw loss and Dice over the steps. Returns False without matplotlib (the extra `plot`). Raises OutputError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [epoch.step for epoch in history.epochs]
    upper.plot(steps, [epoch.loss for epoch in history.epochs], color="tab:blue", marker=".")
    upper.set_ylabel("training loss")
    scored = [epoch for epoch in history.epochs if epoch.scores]
    for region, colour in REGION_COLOURS.items():
        dice = [epoch.dice[region] for epoch in scored]
        lower.plot([epoch.step for epoch in scored], dice, color=colour, marker=".", label=region)
    if history.best is not None and history.best.scores:
        lower.axvline(history.best.step, color="0.6", linestyle=":", label="best")
    lower.set(xlabel="step", ylabel="Dice of the held-out cases", ylim=(0, 1))
    if scored:
        lower.legend(loc="best", ncols=4)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    publish(path, drawn.getvalue(), overwrite=True)
    return True


class EventWriter:
    """Writes TensorBoard events of the epochs; does nothing where the extra `tensorboard` is not installed."""

    def __init__(self, folder: Path | None, *, after_step: int) -> None:
        """Begin a file in the folder, None for no file. after_step: TensorBoard hides later steps of an earlier session."""
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        writer: Any = SummaryWriter  # torch does not type it
        self._writer = writer(str(folder), purge_step=after_step + 1 if after_step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, epoch: Epoch) -> None:
        """Write the events of one epoch."""
        if self._writer is None:
            return
        values = {"loss": epoch.loss, "learning_rate": epoch.learning_rate, "slices_per_s": epoch.slices_per_s}
        values |= {f"dice/{region}": value for region, value in epoch.dice.items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch.step)
        self._writer.flush()
