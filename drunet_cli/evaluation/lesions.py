"""Scores by lesion, as BraTS 2023 ranked adult glioma (GLI): a small lesion counts as much as a large one.

Source: eval.py in github.com/rachitsaluja/BraTS-2023-Metrics, written anew here with the parameters for GLI.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.evaluation.scores import Mask, SpacingMm, dice
from drunet_cli.evaluation.surfaces import box_around, surface_distances
from drunet_cli.io.geometry import Box

MISSED_LESION_HD95_MM: Final = 374.0  # for a lesion without a match, and for every false positive
SMALL_MM3: Final = 50.0
_GROWTH: Final = ndimage.generate_binary_structure(3, 2)  # a voxel and the 18 that share a face or an edge with it
_GROWTH_STEPS: Final = 3
_CONTACT: Final = ndimage.generate_binary_structure(3, 3)  # and the 8 that share a corner

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of the reference above 50 mm3, with (TP) and without (FN) a match; predicted components that match none (FP)."""

    true_positives: int
    false_negatives: int
    false_positives: int


@dataclass(frozen=True)
class LesionScores:
    """Means over the lesions above 50 mm3 and the false positives; a miss and a false positive give Dice 0 and 374 mm.

    Without any of these Dice is 1 and HD95 0.
    """

    dice: float
    hd95_mm: float
    counts: LesionCounts


def lesion_scores(prediction: Mask, reference: Mask, *, spacing_mm: SpacingMm) -> LesionScores:
    """Match the predicted components of a region to the lesions of the reference, both [I, J, K], and score every lesion.

    Components of the reference whose surroundings meet are one lesion. A predicted component, in which voxels may join at a
    corner, matches every lesion whose surroundings it reaches, and enters the lesion's Dice and HD95 as a whole; the lesion
    enters as it is. Surroundings are three steps wide. HD95 is that of surface_distances.
    Lesions of 50 mm3 or less do not count, but a component that matches one is no false positive.
    """
    box = box_around(prediction | reference)
    prediction, reference = prediction[box], reference[box]
    # The box cuts surroundings off without effect: where two of them meet outside, they also meet at the nearest voxels inside,
    # which are no farther from either lesion along any axis.
    i, j, k = (slice(max(axis.start - _GROWTH_STEPS, 0), axis.stop + _GROWTH_STEPS) for axis in box_around(reference))
    near = i, j, k
    grown = ndimage.binary_dilation(reference[near], _GROWTH, iterations=_GROWTH_STEPS)
    near_lesions, n_lesions = ndimage.label(grown, _CONTACT)
    components, n_components = ndimage.label(prediction, _CONTACT)
    lesion, component = _matches(near_lesions, components[near], n_components)
    near_lesions[~reference[near]] = 0
    lesions = np.zeros(reference.shape, dtype=np.int32)
    lesions[near] = near_lesions

    lesion_boxes, component_boxes = ndimage.find_objects(near_lesions), ndimage.find_objects(components)
    voxels = np.bincount(near_lesions.ravel(), minlength=n_lesions + 1)
    scores, n_missed = [], 0
    for number in range(1, n_lesions + 1):
        if int(voxels[number]) * spacing_mm[0] * spacing_mm[1] * spacing_mm[2] <= SMALL_MM3:
            continue
        matched = component[lesion == number]
        if not len(matched):
            n_missed += 1
            continue
        both = _box_around_all([_in_whole(near, lesion_boxes[number - 1]), *(component_boxes[match - 1] for match in matched)])
        is_matched = np.zeros(n_components + 1, dtype=np.bool_)
        is_matched[matched] = True
        found, sought = is_matched[components[both]], lesions[both] == number
        scores.append((dice(found, sought), surface_distances(found, sought, spacing_mm=spacing_mm).hd95_mm))
    n_false = n_components - len(np.unique(component))
    return _mean_scores(scores, LesionCounts(len(scores), n_missed, n_false))


def _matches(lesions: IntArray, components: IntArray, n_components: int) -> tuple[IntArray, IntArray]:
    """Lesion and component, both numbered from 1, of every two that have a voxel in common; sorted by lesion."""
    common = (lesions > 0) & (components > 0)
    pairs = np.unique(lesions[common].astype(np.int64) * (n_components + 1) + components[common])
    lesion, component = np.divmod(pairs, n_components + 1)
    return lesion, component


def _in_whole(part: Box, box: Box) -> Box:
    """A box in a part of a volume as a box in the whole volume."""
    i, j, k = (slice(of.start + axis.start, of.start + axis.stop) for of, axis in zip(part, box, strict=True))
    return i, j, k


def _box_around_all(boxes: Iterable[Box]) -> Box:
    i, j, k = (slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in zip(*boxes, strict=True))
    return i, j, k


def _mean_scores(scores: list[tuple[float, float]], counts: LesionCounts) -> LesionScores:
    """scores: Dice and HD95 in mm of every true positive."""
    unmatched = counts.false_negatives + counts.false_positives
    scored = len(scores) + unmatched
    if not scored:
        return LesionScores(1.0, 0.0, counts)
    dice_sum, hd95_sum = sum(dice for dice, _ in scores), sum(hd95_mm for _, hd95_mm in scores)
    return LesionScores(dice_sum / scored, (hd95_sum + unmatched * MISSED_LESION_HD95_MM) / scored, counts)
