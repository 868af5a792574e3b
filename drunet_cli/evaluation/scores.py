"""Scores of two masks, a prediction and a reference: voxels that they share, distances of their surfaces, lesion by lesion.

Voxels: `overlap` counts them, and has Dice and the other ratios.

Surfaces: `border_hd95_mm` takes the border voxels of a mask, each with the same weight; where no mask is empty it equals
medpy.metric.binary.hd95 of MedPy 0.5.2. `surface_distances` takes the pieces of a surface laid between the voxels, each with
the weight of its area, as surface-distance 0.1 (DeepMind) does. In both, everything outside the volume is background: a mask
that reaches the side of the volume has a surface there.

Lesions: `lesion_scores` are those by which BraTS 2023 ranked adult glioma (GLI): a small lesion counts as much as a large one.
Source: eval.py in github.com/rachitsaluja/BraTS-2023-Metrics, written anew here with the parameters for GLI.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from drunet_cli.brats import ClassMap, TumourClass, dice_of
from drunet_cli.io import geometry
from drunet_cli.io.geometry import Box

Mask = npt.NDArray[np.bool_]
SpacingMm = tuple[float, float, float]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]


def mask_of(class_map: ClassMap, classes: Collection[TumourClass]) -> Mask:
    """The mask of voxels at which a class map, of any shape, has one of these classes."""
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


PERCENT: Final = 95
_ALL_INSIDE: Final = 255


@dataclass(frozen=True)
class SurfaceDistances:
    """The pieces of two surfaces: distance of each to the other surface in mm, inf where that is empty, and area in mm2.

    All four are [N] by piece, of the prediction or of the reference.
    """

    prediction_mm: FloatArray
    prediction_mm2: FloatArray
    reference_mm: FloatArray
    reference_mm2: FloatArray

    def dice(self, tolerance_mm: float) -> float:
        """Surface Dice: the share of the area of both surfaces within the tolerance of the other; 1 where both are empty."""
        whole = self.prediction_mm2.sum() + self.reference_mm2.sum()
        near = self.prediction_mm2[self.prediction_mm <= tolerance_mm].sum()
        near += self.reference_mm2[self.reference_mm <= tolerance_mm].sum()
        return float(near / whole) if whole else 1.0

    @property
    def hd95_mm(self) -> float:
        """The larger 95th percentile by area of the two surfaces; inf where one surface is empty, 0 where both are."""
        prediction = _percentile_by_area(self.prediction_mm, self.prediction_mm2)
        return max(prediction, _percentile_by_area(self.reference_mm, self.reference_mm2))


def border_hd95_mm(prediction: Mask, reference: Mask, *, spacing_mm: SpacingMm) -> float:
    """95th percentile of the distances of all border voxels of each mask [I, J, K] to the nearest one of the other.

    A border voxel has one of its six neighbours outside of the mask. inf where one mask is empty, 0 where both are.
    """
    box = box_around(prediction | reference)
    border, reference_border = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, reference))
    if border.any() != reference_border.any():
        return float("inf")
    distances = [_nearest_mm(border, reference_border, spacing_mm), _nearest_mm(reference_border, border, spacing_mm)]
    return float(np.percentile(np.concatenate(distances), PERCENT)) if distances[0].size else 0.0


def surface_distances(prediction: Mask, reference: Mask, *, spacing_mm: SpacingMm) -> SurfaceDistances:
    """Distances between the surfaces of two masks [I, J, K], piece by piece.

    A piece sits in the middle of every 2 x 2 x 2 voxels that are not all inside or all outside of the mask.
    """
    box = box_around(prediction | reference)
    codes = _codes(prediction[box]), _codes(reference[box])
    pieces, reference_pieces = ((code != 0) & (code != _ALL_INSIDE) for code in codes)
    mm2 = _piece_areas_mm2(spacing_mm)
    return SurfaceDistances(
        _nearest_mm(pieces, reference_pieces, spacing_mm),
        mm2[codes[0][pieces]],
        _nearest_mm(reference_pieces, pieces, spacing_mm),
        mm2[codes[1][reference_pieces]],
    )


def box_around(mask: Mask) -> Box:
    """The smallest box that holds all of a mask; a single voxel where the mask is empty."""
    return geometry.box_of(mask) or (slice(0, 1), slice(0, 1), slice(0, 1))


def _nearest_mm(of: Mask, to: Mask, spacing_mm: SpacingMm) -> FloatArray:
    """For every True of one grid, in the order of the grid, the distance to the nearest True of the other; inf without any."""
    sources, targets = (np.flatnonzero(grid) for grid in (of, to))
    if not targets.size:
        return np.full(sources.shape, np.inf)
    apart = ~to.ravel()[sources]  # a place on both grids has distance 0 and need not be searched
    searched, targets = (np.stack(np.unravel_index(found, of.shape), axis=1) for found in (sources[apart], targets))
    _, nearest = KDTree(targets * spacing_mm).query(searched * spacing_mm)
    # Computed from the number of voxels between them, as the packages do: differences of positions in mm are rounded
    # differently from place to place, and a distance that equals the tolerance would be within it here and not there.
    result = np.zeros(sources.shape)
    result[apart] = np.sqrt((((searched - targets[nearest]) * spacing_mm) ** 2).sum(axis=1))
    return result


def _codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """[I, J, K] to [I + 1, J + 1, K + 1]: for each voxel corner a bit for each of its 8 voxels, set where the mask holds it."""
    codes = np.pad(mask, 1).view(np.uint8)
    codes = codes[:-1] << np.uint8(4) | codes[1:]
    codes = codes[:, :-1] << np.uint8(2) | codes[:, 1:]
    return codes[:, :, :-1] << np.uint8(1) | codes[:, :, 1:]


def _percentile_by_area(distances_mm: FloatArray, mm2: FloatArray) -> float:
    """The smallest distance that 95 % of the area do not exceed."""
    if not distances_mm.size:
        return 0.0
    order = np.lexsort((mm2, distances_mm))
    share = np.cumsum(mm2[order]) / mm2[order].sum()
    index = min(int(np.searchsorted(share, PERCENT / 100)), len(order) - 1)  # rounding may leave the last share below 1
    return float(distances_mm[order][index])


@cache
def _piece_areas_mm2(spacing_mm: SpacingMm) -> FloatArray:
    """[256], by code: area of the surface between 8 voxel centres; the bits of the code say which of them are in the mask.

    The surface is that of marching cubes: half-way along every edge that joins inside and outside. It cuts off the corners of
    the rarer kind (of four and four, the inside ones); corners that edges join share a patch. A code and its complement have
    equal areas.
    """
    i, j, k = spacing_mm
    faces_mm2 = np.array([j * k, i * k, i * j])
    areas = np.zeros(_ALL_INSIDE + 1)
    for code in range(len(areas)):
        inside = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        groups, n_groups = ndimage.label(inside if inside.sum() <= 4 else 1 - inside)
        patches = [normal for group in range(1, n_groups + 1) for normal in _patch_normals(np.argwhere(groups == group))]
        areas[code] = sum(np.linalg.norm(normal * faces_mm2) for normal in patches)
    return areas


def _patch_normals(corners: npt.NDArray[np.intp]) -> Sequence[npt.NDArray[Any]]:
    """Normals of the flat parts of the surface that cuts joined corners [N, 3] off a unit cube, N from 1 to 4.

    A normal [3] is without sign and as long as its part's area. Parts that lie in one plane are taken together. Two of the cuts
    are not flat, and triangles can be laid through them in several ways; these are the ones with the largest area.
    """
    every = np.ones(3)
    across = np.ptp(corners, axis=0) == 0  # the axes along which the corners do not extend
    halved = corners.sum(axis=0) == 2  # the axes with two of four corners at either end
    match len(corners), int(across.sum()):
        case 1, _:
            return [every / 8]  # a triangle
        case 2, _:
            return [across / 2]  # a rectangle along the edge
        case 3, _:
            return [across / 2, every * 3 / 8]  # half of the square between the faces, and a trapezium down from it
        case 4, 1:
            return [across * 1.0]  # a face: the square in the middle
    if not halved.any():
        return [every * 3 / 4]  # a corner and its three neighbours: a regular hexagon
    # A chain whose middle edge runs along `halved`: two trapezia's worth of slope, and a triangle to each of the other axes.
    return [every / 2, *((every - axis) / 4 for axis in np.eye(3)[~halved])]


MISSED_LESION_HD95_MM: Final = 374.0  # for a lesion without a match, and for every false positive
SMALL_MM3: Final = 50.0
_GROWTH: Final = ndimage.generate_binary_structure(3, 2)  # a voxel and the 18 that share a face or an edge with it
_GROWTH_STEPS: Final = 3
_CONTACT: Final = ndimage.generate_binary_structure(3, 3)  # and the 8 that share a corner


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
    """Average over the lesions. scores: Dice and HD95 in mm of every true positive."""
    unmatched = counts.false_negatives + counts.false_positives
    scored = len(scores) + unmatched
    if not scored:
        return LesionScores(1.0, 0.0, counts)
    dice_sum, hd95_sum = sum(dice for dice, _ in scores), sum(hd95_mm for _, hd95_mm in scores)
    return LesionScores(dice_sum / scored, (hd95_sum + unmatched * MISSED_LESION_HD95_MM) / scored, counts)
