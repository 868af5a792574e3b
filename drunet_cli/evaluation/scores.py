"""Voxel-wise agreement of two masks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import dice_of

Mask = npt.NDArray[np.bool_]
SpacingMm = tuple[float, float, float]


@dataclass(frozen=True)
class Overlap:
    """Voxels of a prediction and a reference, by what the two say of them: four counts, and the ratios of these.

    Each ratio is of the voxels that both name to all that one names. Where that one names none, it is 1 if the other names none
    either, else 0; no ratio is ever NaN.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def voxels(self) -> int:
        """Of the prediction."""
        return self.true_positives + self.false_positives

    @property
    def reference_voxels(self) -> int:
        """Of the reference."""
        return self.true_positives + self.false_negatives

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where both masks are empty."""
        return dice_of(self.true_positives, self.voxels, self.reference_voxels)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN). Empty reference: 1 where the prediction is empty too, else 0, as BraTS 2023 scores it."""
        return _share(self.true_positives, self.reference_voxels, other=self.voxels)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), over the whole volume with the air around the head, as BraTS takes it."""
        negatives = self.true_negatives + self.false_positives
        return _share(self.true_negatives, negatives, other=self.true_negatives + self.false_negatives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP). Empty prediction: 1 where the reference is empty too, else 0."""
        return _share(self.true_positives, self.voxels, other=self.reference_voxels)


def overlap(prediction: Mask, reference: Mask) -> Overlap:
    """Count the voxels of two masks of one shape; ValueError where the shapes differ."""
    if prediction.shape != reference.shape:
        raise ValueError(f"a prediction of shape {prediction.shape} and a reference of shape {reference.shape}")
    both = int(np.count_nonzero(prediction & reference))
    false_positives = int(np.count_nonzero(prediction)) - both
    false_negatives = int(np.count_nonzero(reference)) - both
    return Overlap(both, false_positives, false_negatives, prediction.size - both - false_positives - false_negatives)


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice of two masks of one shape; 1 where both are empty."""
    return overlap(prediction, reference).dice


def _share(common: int, named: int, *, other: int) -> float:
    if named:
        return common / named
    return 0.0 if other else 1.0
