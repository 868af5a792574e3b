"""What a training has done so far, epoch by epoch: as a table, as curves, as TensorBoard events."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drunet_cli.brats import REGIONS
from drunet_cli.evaluation.plots import REGION_COLOURS
from drunet_cli.io.atomic import write_atomically
from drunet_cli.training.validation import CaseScore, mean_scores


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, counted from 1. step: of the whole training, at its end. loss: mean over its steps.

    learning_rate: of its last step. scores: of the held-out cases, empty where they were not looked at.
    slices_per_s: learnt from. waiting: share of the time that went by waiting for slices.
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
        """Mean over the held-out cases, by region, and the mean of the regions; empty where there are none."""
        return mean_scores(self.scores)

    def in_words(self, n_steps: int) -> str:
        """For the origin of its weights. n_steps: of the whole training."""
        dice = ", ".join(f"{region} {value:.3f}" for region, value in self.dice.items() if region != "mean")
        held_out = f", held out: {len(self.scores)}, their mean Dice: {dice}" if dice else ""
        return f"epoch {self.epoch}, step {self.step} of {n_steps}{held_out}"


@dataclass(frozen=True)
class History:
    """All epochs so far, in order."""

    epochs: tuple[Epoch, ...] = field(default=())

    @property
    def best(self) -> Epoch | None:
        """The last that was better than all before."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.is_best), None)

    def would_be_best(self, scores: Sequence[CaseScore]) -> bool:
        """Whether an epoch with these scores would be the best; without scores every one is better than those before."""
        if not scores or self.best is None or not self.best.scores:
            return True
        return mean_scores(scores)["mean"] > self.best.dice["mean"]

    def as_json(self) -> list[dict[str, Any]]:
        """Plain objects that `history_of` reads."""
        return [asdict(epoch) for epoch in self.epochs]


def history_of(documents: Sequence[Mapping[str, Any]]) -> History:
    """What `History.as_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    return History(
        tuple(
            Epoch(**{**document, "scores": tuple(CaseScore(**score) for score in document["scores"])}) for document in documents
        )
    )


def write_tables(history: History, metrics: Path, cases: Path) -> None:
    """A row an epoch, and a row for each held-out case of each epoch. Raises OutputError."""
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
    of_cases = [
        [epoch.epoch, epoch.step, score.case, *(_rounded(score.dice[region]) for region in REGIONS)]
        for epoch in history.epochs
        for score in epoch.scores
    ]
    _write_csv(cases, ["epoch", "step", "case", *(f"dice_{region}" for region in REGIONS)], of_cases)


def _rounded(value: float) -> float:
    """Six digits: more would be noise, and float's own words differ from run to run."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    with write_atomically(path, overwrite=True) as stream:
        stream.write(table.getvalue().encode(errors="surrogateescape"))


def draw_curves(history: History, path: Path) -> bool:
    """Loss, and Dice of the regions, over the steps; False without matplotlib (the extra `plot`). Raises OutputError."""
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
    with write_atomically(path, overwrite=True) as stream:
        stream.write(drawn.getvalue())
    return True


class EventWriter:
    """TensorBoard events of the epochs, where the extra `tensorboard` is installed; nothing where it is not."""

    def __init__(self, folder: Path | None, *, after_step: int) -> None:
        """folder: None for a process that writes nothing. after_step: later steps of an earlier run are to be hidden."""
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
        """One epoch."""
        if self._writer is None:
            return
        values = {"loss": epoch.loss, "learning_rate": epoch.learning_rate, "slices_per_s": epoch.slices_per_s}
        values |= {f"dice/{region}": value for region, value in epoch.dice.items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch.step)
        self._writer.flush()
