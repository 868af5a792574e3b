"""Held-out cases, segmented whole as `segment` would, and scored by the package's one Dice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from drunet_cli.brats import REGIONS, ClassMap
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, laid_out
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import Engine, WindowMode
from drunet_cli.segmentation.predict import predict
from drunet_cli.training.watcher import Watcher

if TYPE_CHECKING:
    from drunet_cli.training.distributed import Team

_WHOLE_AXIS: Final = AxisFit(size=FRAME, spacing_mm=1.0, start_mm=0.0, brain_mm=float(FRAME))
_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


class HeldOut(Protocol):
    """What is needed of a case: see `store.StoredCase`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def slices(self) -> SliceStack: ...  # noqa: D102

    def classes(self) -> ClassMap: ...  # noqa: D102


@dataclass(frozen=True)
class CaseScore:
    """Dice of one case by region, WT, TC, ET; 1 where neither prediction nor truth has the region."""

    case: str
    dice: Mapping[str, float]


def score(
    case: HeldOut, engine: Engine, *, window: WindowMode, on_progress: Callable[[int, int], None] = lambda *_: None
) -> CaseScore:
    """Segment a case and compare. on_progress: called with (slices done, slices in all)."""
    slices, truth = case.slices(), case.classes()
    predicted = predict(slices, _frames(len(slices)), [engine], window=window, on_progress=on_progress).class_map
    truth = np.moveaxis(truth, 0, 2)
    return CaseScore(case.name, {region: dice(mask_of(predicted, of), mask_of(truth, of)) for region, of in REGIONS.items()})


class _Stopped(Exception):  # noqa: N818  # not an error
    """The scoring was broken off."""


def score_all(
    cases: Sequence[HeldOut],
    engine: Engine,
    team: "Team",
    *,
    window: WindowMode,
    watcher: Watcher,
    should_stop: Callable[[], bool],
) -> tuple[CaseScore, ...] | None:
    """The scores of all cases by name, None when asked to stop. Each process of the team looks at its share of them."""
    scores: list[CaseScore] = []
    stopped = False
    try:
        for case in cases[team.processes.rank :: team.processes.n]:

            def on_progress(done: int, n_slices: int, name: str = case.name) -> None:
                if should_stop():
                    raise _Stopped
                watcher.validating(name, done, n_slices)

            scores.append(score(case, engine, window=window, on_progress=on_progress))
    except _Stopped:
        stopped = True
    if team.agreed(int(stopped)):
        return None
    return tuple(sorted(team.gathered(scores), key=lambda found: found.case))


def mean_scores(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Over the cases, by region, and the mean of the regions; empty without cases."""
    if not scores:
        return {}
    means = {region: sum(score.dice[region] for score in scores) / len(scores) for region in REGIONS}
    return means | {"mean": sum(means.values()) / len(means)}


def _frames(n_slices: int) -> Geometry:
    """Slices that are the network's frames already."""
    return laid_out((FRAME, FRAME, n_slices), _LPS, _WHOLE_AXIS, _WHOLE_AXIS)
