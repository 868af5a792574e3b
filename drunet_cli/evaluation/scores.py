"""Voxel-wise agreement of two masks."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap, TumourClass, dice_of

Mask = npt.NDArray[np.bool_]
SpacingMm = tuple[float, float, float]


def mask_of(class_map: ClassMap, classes: Collection[TumourClass]) -> Mask:
    """Where a class map, of any shape, has one of these classes."""
    return np.asarray(np.logical_or.reduce([class_map == index for index in classes]))


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice of two masks of one shape; 1 where both are empty."""
    return overlap(prediction, reference).dice


def overlap(prediction: Mask, reference: Mask) -> "Overlap":
    """Count the voxels of two masks of one shape; ValueError where the shapes differ."""
    if prediction.shape != reference.shape:
        raise ValueError(f"a prediction of shape {prediction.shape} and a reference of shape {reference.shape}")
    both = int(np.count_nonzero(prediction & reference))
    false_positives = int(np.count_nonzero(prediction)) - both
    false_negatives = int(np.count_nonzero(reference)) - both
    return Overlap(both, false_positives, false_negatives, prediction.size - both - false_positives - false_negatives)


@dataclass(frozen=True)
class Overlap:
    """The voxels of a prediction and a reference in four counts, and the ratios of the counts.

    A ratio divides the voxels that both masks name by all that one of them names. Where that one names none, the ratio is 1 if
    the other names none either, else 0; no ratio is ever NaN.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def voxels(self) -> int:
        """Voxels of the prediction."""
        return self.true_positives + self.false_positives

    @property
    def reference_voxels(self) -> int:
        """Voxels of the reference."""
        return self.true_positives + self.false_negatives

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where both masks are empty."""
        return dice_of(self.true_positives, self.voxels, self.reference_voxels)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN). Empty reference: 1 where the prediction is empty too, else 0, as BraTS 2023 scores it."""
        return _ratio(self.true_positives, self.reference_voxels, other=self.voxels)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), over the whole volume with the air around the head, as BraTS takes it."""
        negatives = self.true_negatives + self.false_positives
        return _ratio(self.true_negatives, negatives, other=self.true_negatives + self.false_negatives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP). Empty prediction: 1 where the reference is empty too, else 0."""
        return _ratio(self.true_positives, self.voxels, other=self.reference_voxels)


def _ratio(common: int, named: int, *, other: int) -> float:
    if named:
        return common / named
    return 0.0 if other else 1.0
