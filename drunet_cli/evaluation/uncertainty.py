"""Whether uncertainty lies where a segmentation errs: the scores of the BraTS 2020 uncertainty task, and an AUROC.

Sources: Mehta et al. 2022, "QU-BraTS", MELBA 2022:026 (arXiv:2112.10074), equation 1; the task's own script
github.com/RagMeh11/QU-BraTS, BraTS_Seg_Uncertainty.py, for which this is written anew: what the text leaves open is as there.
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
    """Of one region of one case. The areas lie under curves over THRESHOLDS, divided by 100: all scores are 0 to 1.

    dice_auc: of the Dice of the voxels that are kept, those whose uncertainty is at most the threshold; 1 where none is left.
    ftp_auc, ftn_auc: of the share of the true positives, and of the true negatives, that is filtered out; 0 where there is none
    to be filtered. Small is good.
    score: (dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3, by which BraTS 2020 ranked.
    error_auroc: the probability that a wrong voxel, one where the two masks differ, is more uncertain than a right one, a tie
    counted one half: 0.5 is no better than chance. None where all voxels are right, or all wrong.
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
    brain: the voxels that ftp_auc, ftn_auc and error_auroc count; None: all. Dice counts the whole volume in any case.
    ValueError where shapes differ.
    """
    if len({array.shape for array in (uncertainty, prediction, reference, brain) if array is not None}) > 1:
        raise ValueError("an uncertainty map, masks and a brain of different shapes")
    levels, counts = _counted(uncertainty, prediction, reference, brain)
    in_volume, in_brain = counts.sum(axis=0), counts[1]

    kept_of_each = np.searchsorted(levels, THRESHOLDS, side="right")

    def kept(of_levels: _Counts) -> _Counts:
        """At every threshold; at the last, 100, all."""
        return np.concatenate([[0], np.cumsum(of_levels)])[kept_of_each]

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
    lowest, highest = voxels.min(initial=UNCERTAIN), voxels.max(initial=CERTAIN)  # NaN, where there is one
    if not (lowest >= CERTAIN - _ROUNDING and highest <= UNCERTAIN + _ROUNDING):
        found = "values that are no numbers" if np.isnan(lowest) else f"values from {lowest:g} to {highest:g}"
        raise CaseError(f"holds {found}; an uncertainty map has {CERTAIN} (certain) to {UNCERTAIN} (uncertain)")
    if voxels.dtype.kind in "iu":
        return voxels.astype(np.uint8, copy=False)
    whole = voxels.astype(np.uint8)
    if np.array_equal(whole, voxels):
        return whole
    return np.asarray(np.clip(voxels.astype(np.float64, copy=False), CERTAIN, UNCERTAIN))


def _counted(
    uncertainty: UncertaintyMap, prediction: Mask, reference: Mask, brain: Mask | None
) -> tuple[npt.NDArray[Any], _Counts]:
    """Every uncertainty that occurs, ascending, and voxels [outside brain or in it, reference, prediction, uncertainty].

    True negatives outside the brain, which nobody asks for, are left out.
    """
    values, predicted, referred = (np.ravel(array) for array in (uncertainty, prediction, reference))
    outcome = 2 * referred.astype(np.uint8) + predicted
    if brain is None:
        outcome += 4
    else:
        outcome += 4 * np.ravel(brain).astype(np.uint8)
        asked_for = np.flatnonzero(outcome)
        values, outcome = values[asked_for], outcome[asked_for]
    levels, level_of = _levels(values)
    cells = np.bincount(outcome.astype(np.intp) * levels.size + level_of, minlength=8 * levels.size)
    return levels, cells.reshape(2, 2, 2, levels.size)


def _levels(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]:
    """Values, ascending, among them all that occur in values [N]; and the place of each value among them."""
    if values.dtype == np.uint8:
        return np.arange(256), values  # all that there can be, without a search
    levels, level_of = np.unique(values, return_inverse=True)
    return levels, level_of


def _area(curve: npt.NDArray[np.float64]) -> float:
    """By the trapezoidal rule, over thresholds in equal steps from 0 to 1."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def _filtered_share(kept: _Counts) -> npt.NDArray[np.float64]:
    """kept: at every threshold, the last keeping all. The script adds 1.2e-7 to the divisor, so that none of none is 0."""
    every = int(kept[-1])
    return (every - kept) / every if every else np.zeros(kept.size)


def _auroc(of_wrong: _Counts, of_right: _Counts) -> float | None:
    """Both by uncertainty, ascending.

    Source: Hanley and McNeil 1982, Radiology 143:29: the area under the ROC curve is the Mann-Whitney U over the pairs.
    """
    n_wrong, n_right = int(of_wrong.sum()), int(of_right.sum())
    if not (n_wrong and n_right):
        return None
    less_uncertain = np.cumsum(of_right) - of_right / 2
    return float((of_wrong / n_wrong * (less_uncertain / n_right)).sum())
