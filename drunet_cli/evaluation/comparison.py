"""A segmentation against its reference: every score of every region and class, under a named convention."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from drunet_cli.brats import N_CLASSES, REGIONS, TUMOUR_CLASSES, ClassMap, TumourClass
from drunet_cli.evaluation.lesions import LesionCounts, lesion_scores
from drunet_cli.evaluation.metrics import Mask, SpacingMm, overlap
from drunet_cli.evaluation.surfaces import border_hd95_mm, box_of, surface_distances

MISSED_HD95_MM: Final = 373.12866  # BraTS: the diagonal of 240 x 240 x 155 voxels of 1 mm
REGIONS_AND_CLASSES: Final = REGIONS | {index.name: (index,) for index in TUMOUR_CLASSES}


class Convention(StrEnum):
    """What Dice and HD95 mean. All other scores are the same in both."""

    BRATS = "brats"  # of the whole region, as until BraTS 2022
    LESIONWISE = "lesionwise"  # means over lesions, as BraTS 2023 ranked


@dataclass(frozen=True)
class RegionScores:
    """One region or class of one case.

    dice, hd95_mm: by convention. surface_dice: of the whole region, at the tolerance asked for; 1 where both are empty.
    sensitivity, specificity, precision: voxel-wise, see Overlap. Volumes in mL; the error is prediction less reference.
    lesions: of the lesion-wise convention, else None.
    """

    dice: float
    hd95_mm: float
    surface_dice: float
    sensitivity: float
    specificity: float
    precision: float
    voxels: int
    reference_voxels: int
    volume_ml: float
    reference_volume_ml: float
    volume_error_ml: float
    lesions: LesionCounts | None


def compare(
    prediction: ClassMap, reference: ClassMap, *, spacing_mm: SpacingMm, convention: Convention, tolerance_mm: float = 1.0
) -> dict[str, RegionScores]:
    """Score class maps [I, J, K], class indices 0-3, on one grid: WT, TC, ET, NCR, ED in this order. ET is region and class.

    tolerance_mm: of the surface Dice. ValueError for shapes that differ, other class indices, and spacing or tolerance that
    are no lengths.
    """
    _check(prediction, reference, spacing_mm, tolerance_mm)
    box = box_of((prediction | reference) > 0)
    outside = prediction.size - prediction[box].size
    cropped = np.ascontiguousarray(prediction[box]), np.ascontiguousarray(reference[box])
    scores = {}
    for name, classes in REGIONS_AND_CLASSES.items():
        masks = [mask_of(class_map, classes) for class_map in cropped]
        scores[name] = _scores(*masks, outside=outside, spacing_mm=spacing_mm, convention=convention, tolerance_mm=tolerance_mm)
    return scores


def _scores(
    prediction: Mask,
    reference: Mask,
    *,
    outside: int,
    spacing_mm: SpacingMm,
    convention: Convention,
    tolerance_mm: float,
) -> RegionScores:
    """outside: voxels of the volume that the masks were cropped of, background in both."""
    counts = overlap(prediction, reference)
    counts = replace(counts, true_negatives=counts.true_negatives + outside)
    lesions = None
    if convention is Convention.LESIONWISE:
        by_lesion = lesion_scores(prediction, reference, spacing_mm=spacing_mm)
        dice, hd95_mm, lesions = by_lesion.dice, by_lesion.hd95_mm, by_lesion.counts
    else:
        dice, hd95_mm = counts.dice, border_hd95_mm(prediction, reference, spacing_mm=spacing_mm)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return RegionScores(
        dice=dice,
        hd95_mm=hd95_mm if np.isfinite(hd95_mm) else MISSED_HD95_MM,
        surface_dice=surface_distances(prediction, reference, spacing_mm=spacing_mm).dice(tolerance_mm),
        sensitivity=counts.sensitivity,
        specificity=counts.specificity,
        precision=counts.precision,
        voxels=counts.voxels,
        reference_voxels=counts.reference_voxels,
        volume_ml=counts.voxels * voxel_ml,
        reference_volume_ml=counts.reference_voxels * voxel_ml,
        volume_error_ml=(counts.voxels - counts.reference_voxels) * voxel_ml,
        lesions=lesions,
    )


def mask_of(class_map: ClassMap, classes: Collection[TumourClass]) -> Mask:
    """Where a class map, of any shape, has one of these classes."""
    return np.asarray(np.logical_or.reduce([class_map == index for index in classes]))


def _check(prediction: ClassMap, reference: ClassMap, spacing_mm: SpacingMm, tolerance_mm: float) -> None:
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"class maps of shapes {prediction.shape} and {reference.shape}; both must be [I, J, K]")
    if max(class_map.max(initial=0) for class_map in (prediction, reference)) >= N_CLASSES:
        raise ValueError("class indices above 3; label values must be turned into class indices first")
    if not all(np.isfinite(size) and size > 0 for size in spacing_mm) or len(spacing_mm) != 3:
        raise ValueError(f"a spacing of {spacing_mm}; it must be three lengths in mm")
    if not tolerance_mm >= 0:
        raise ValueError(f"a tolerance of {tolerance_mm} mm")
