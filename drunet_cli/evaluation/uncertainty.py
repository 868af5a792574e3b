"""Whether uncertainty lies where a segmentation errs: the scores of the BraTS 2020 uncertainty task, and an AUROC.

Sources: Mehta et al. 2022, "QU-BraTS", MELBA 2022:026 (arXiv:2112.10074), equation 1; the task's own script,
BraTS_Seg_Uncertainty.py in github.com/RagMeh11/QU-BraTS, which is written anew here and decides where the text leaves something
open.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import dice_of
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.scores import Mask

CERTAIN: Final = 0
UNCERTAIN: Final = 100
# 0, 2.5, ..., 100: the script's default, --num_points 40. Under numpy 2 it loses the last, as its 100 + EPS rounds to 100.
THRESHOLDS: Final = np.linspace(CERTAIN, UNCERTAIN, 41)
_ROUNDING: Final = 1e-3  # a map that is stored as scaled integers need not come back to 100 exactly

UncertaintyMap = npt.NDArray[np.uint8 | np.float32 | np.float64]
_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UncertaintyScores:
    """The scores of one region of one case, all from 0 to 1.

    A threshold keeps the voxels whose uncertainty is at most that and filters out the others; the areas lie under curves over
    THRESHOLDS, divided by 100.
    dice_auc: area under the Dice of the kept voxels, which is 1 where none is left.
    ftp_auc, ftn_auc: area under the share of the true positives, and of the true negatives, that is filtered out; 0 where there
    are none. Small is good.
    score: (dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3, by which BraTS 2020 ranked.
    error_auroc: the probability that a wrong voxel, one where the two masks differ, is more uncertain than a right one; a tie
    counts one half, so that 0.5 is no better than chance. None where all voxels are right, or all wrong.
    """

    dice_auc: float
    ftp_auc: float
    ftn_auc: float
    score: float
    error_auroc: float | None


def uncertainty_scores(
    uncertainty: UncertaintyMap, prediction: Mask, reference: Mask, *, brain: Mask | None = None
) -> UncertaintyScores:
    """Score an uncertainty map of one region against where its two masks differ; all of one shape.

    uncertainty: 0 (certain) to 100, whole numbers or fractions, see percentages.
    brain: the voxels that ftp_auc, ftn_auc and error_auroc count; None: all. Dice always counts the whole volume.
    ValueError where shapes differ.
    """
    if len({array.shape for array in (uncertainty, prediction, reference, brain) if array is not None}) > 1:
        raise ValueError("an uncertainty map, masks and a brain of different shapes")
    levels, counts = _count_outcomes(uncertainty, prediction, reference, brain)
    in_volume, in_brain = counts.sum(axis=0), counts[1]

    n_levels_kept = np.searchsorted(levels, THRESHOLDS, side="right")

    def kept(by_level: _Counts) -> _Counts:
        """Voxels that every threshold keeps; the last, 100, keeps all."""
        return np.concatenate([[0], np.cumsum(by_level)])[n_levels_kept]

    true_positives, false_positives, false_negatives = (kept(in_volume[cell]) for cell in ((1, 1), (0, 1), (1, 0)))
    voxels, reference_voxels = true_positives + false_positives, true_positives + false_negatives
    dice_auc = _area(np.array([dice_of(*map(int, of)) for of in zip(true_positives, voxels, reference_voxels, strict=True)]))
    ftp_auc, ftn_auc = (_area(_filtered_share(kept(in_brain[cell]))) for cell in ((1, 1), (0, 0)))
    return UncertaintyScores(
        dice_auc=dice_auc,
        ftp_auc=ftp_auc,
        ftn_auc=ftn_auc,
        score=(dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3,
        error_auroc=_auroc(in_brain[0, 1] + in_brain[1, 0], in_brain[0, 0] + in_brain[1, 1]),
    )


def percentages(voxels: npt.NDArray[Any]) -> UncertaintyMap:
    """The voxels of a file as uncertainties from 0 to 100: uint8 where all are whole numbers, else as they are.

    Values beyond either end by at most 0.001 count as the end. Raises CaseError, without a file name, for any other value.
    """
    lowest, highest = voxels.min(initial=UNCERTAIN), voxels.max(initial=CERTAIN)  # NaN where any voxel is NaN
    if not (lowest >= CERTAIN - _ROUNDING and highest <= UNCERTAIN + _ROUNDING):
        found = "values that are no numbers" if np.isnan(lowest) else f"values from {lowest:g} to {highest:g}"
        raise CaseError(f"holds {found}; an uncertainty map has {CERTAIN} (certain) to {UNCERTAIN} (uncertain)")
    if voxels.dtype.kind in "iu":
        return voxels.astype(np.uint8, copy=False)
    whole = voxels.astype(np.uint8)
    if np.array_equal(whole, voxels):
        return whole
    return np.asarray(np.clip(voxels.astype(np.float64, copy=False), CERTAIN, UNCERTAIN))


def _count_outcomes(
    uncertainty: UncertaintyMap, prediction: Mask, reference: Mask, brain: Mask | None
) -> tuple[npt.NDArray[Any], _Counts]:
    """Uncertainties, ascending, and the number of voxels by [outside or inside the brain, reference, prediction, uncertainty].

    True negatives outside the brain, which no score uses, are left out.
    """
    values, predicted, true = (np.ravel(array) for array in (uncertainty, prediction, reference))
    outcome = 2 * true.astype(np.uint8) + predicted
    if brain is None:
        outcome += 4
    else:
        outcome += 4 * np.ravel(brain).astype(np.uint8)
        used = np.flatnonzero(outcome)
        values, outcome = values[used], outcome[used]
    levels, level_of = _levels(values)
    cells = np.bincount(outcome.astype(np.intp) * levels.size + level_of, minlength=8 * levels.size)
    return levels, cells.reshape(2, 2, 2, levels.size)


def _levels(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]:
    """Levels, ascending, among them all that occur in values [N]; and the level of each value by its number."""
    if values.dtype == np.uint8:
        return np.arange(256), values  # every possible level, which saves a search
    levels, level_of = np.unique(values, return_inverse=True)
    return levels, level_of


def _area(curve: npt.NDArray[np.float64]) -> float:
    """Area under a curve over thresholds in equal steps from 0 to 1, by the trapezoidal rule."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def _filtered_share(kept: _Counts) -> npt.NDArray[np.float64]:
    """The share that each threshold filters out; 0 where there are no voxels, as in the script. kept: by the last, all."""
    every = int(kept[-1])
    return (every - kept) / every if every else np.zeros(kept.size)


def _auroc(wrong: _Counts, right: _Counts) -> float | None:
    """wrong, right: numbers of voxels by uncertainty, ascending.

    Source: Hanley and McNeil 1982, Radiology 143:29: the area under the ROC curve is the Mann-Whitney U over the pairs.
    """
    n_wrong, n_right = int(wrong.sum()), int(right.sum())
    if not (n_wrong and n_right):
        return None
    less_uncertain = np.cumsum(right) - right / 2
    return float((wrong / n_wrong * (less_uncertain / n_right)).sum())
