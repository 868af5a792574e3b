"""Held-out cases, segmented whole as `segment` would, and scored by the package's one Dice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from drunet_cli.brats import REGIONS, ClassMap
from drunet_cli.evaluation.comparison import mask_of
from drunet_cli.evaluation.metrics import dice
from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, laid_out
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import Engine, WindowMode
from drunet_cli.segmentation.predict import Plan, predict

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
    plan = Plan(window=window)
    predicted = predict(slices, _frames(len(slices)), [engine], plan=plan, on_progress=on_progress).class_map
    truth = np.moveaxis(truth, 0, 2)
    return CaseScore(case.name, {region: dice(mask_of(predicted, of), mask_of(truth, of)) for region, of in REGIONS.items()})


def mean_scores(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Over the cases, by region, and the mean of the regions; empty without cases."""
    if not scores:
        return {}
    means = {region: sum(score.dice[region] for score in scores) / len(scores) for region in REGIONS}
    return means | {"mean": sum(means.values()) / len(means)}


def _frames(n_slices: int) -> Geometry:
    """Slices that are the network's frames already."""
    return laid_out((FRAME, FRAME, n_slices), _LPS, _WHOLE_AXIS, _WHOLE_AXIS)
