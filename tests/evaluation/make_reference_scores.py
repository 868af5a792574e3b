"""Score the random pairs with the reference packages, and write reference_scores.json for the tests. Run by hand:

    python -m venv /tmp/ref && /tmp/ref/bin/pip install MedPy==0.5.2 surface-distance==0.1
    PYTHONPATH=. /tmp/ref/bin/python -m tests.evaluation.make_reference_scores

Lesion-wise scores have no package; `lesionwise` follows BraTS-2023-Metrics' eval.py step by step, the slow way: whole
volumes, every lesion dilated on its own, no boxes. Nothing of drunet is used.
"""

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from tests.evaluation.random_pairs import Mask, random_pairs

RESULT: Final = Path(__file__).with_name("reference_scores.json")
TOLERANCES_MM: Final = (0.5, 1.0, 2.0)
MISSED_HD95_MM: Final = 374.0
SMALL_MM3: Final = 50

SpacingMm = tuple[float, float, float]
Score = Callable[[Mask, Mask], float]


def reference_packages() -> tuple[Any, Any]:
    """medpy.metric.binary and surface_distance; the latter asks numpy and scipy for names that they no longer have."""
    vars(np).update(Inf=np.inf, NaN=np.nan)
    vars(ndimage).update(filters=ndimage, morphology=ndimage)
    return import_module("medpy.metric.binary"), import_module("surface_distance")


def package_scores(prediction: Mask, reference: Mask, spacing_mm: SpacingMm) -> dict[str, Any]:
    """What the two packages say of one pair."""
    medpy, surface_distance = reference_packages()
    surfaces = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    return {
        "dice": float(medpy.dc(prediction, reference)),
        "hd95_mm": float(medpy.hd95(prediction, reference, voxelspacing=spacing_mm, connectivity=1)),
        "surface_dice": [
            float(surface_distance.compute_surface_dice_at_tolerance(surfaces, tolerance)) for tolerance in TOLERANCES_MM
        ],
        "surface_hd95_mm": float(surface_distance.compute_robust_hausdorff(surfaces, 95)),
        "sensitivity": float(medpy.sensitivity(prediction, reference)),
        "specificity": float(medpy.specificity(prediction, reference)),
        "precision": float(medpy.precision(prediction, reference)),
    }


def published_lesionwise(prediction: Mask, reference: Mask, spacing_mm: SpacingMm) -> dict[str, float | int]:
    """Lesion-wise scores with the packages' Dice and HD95."""
    medpy, surface_distance = reference_packages()

    def hd95(found: Mask, sought: Mask) -> float:
        surfaces = surface_distance.compute_surface_distances(sought, found, spacing_mm)
        return float(surface_distance.compute_robust_hausdorff(surfaces, 95))

    return lesionwise(prediction, reference, spacing_mm, dice=medpy.dc, hd95=hd95)


def lesionwise(prediction: Mask, reference: Mask, spacing_mm: SpacingMm, *, dice: Score, hd95: Score) -> dict[str, float | int]:
    """Lesion-wise Dice, HD95 and counts with the parameters for GLI."""
    around, corners = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    predicted, n_predicted = ndimage.label(prediction, corners)
    merged, n_merged = ndimage.label(ndimage.binary_dilation(reference, around, iterations=3), corners)
    ever_matched: set[int] = set()
    dices, hd95s_mm, found, missed = [], [], 0, 0
    for number in range(1, n_merged + 1):
        lesion = reference & (merged == number)
        dilated = ndimage.binary_dilation(lesion, around, iterations=3)
        matched = set(np.unique(predicted[dilated]).tolist()) - {0}
        ever_matched |= matched
        if lesion.sum() * np.prod(spacing_mm) <= SMALL_MM3:
            continue
        whole = np.isin(predicted, sorted(matched))
        hd95_mm = hd95(whole, lesion)
        dices.append(float(dice(whole, lesion)))
        hd95s_mm.append(hd95_mm if np.isfinite(hd95_mm) else MISSED_HD95_MM)
        found, missed = found + bool(matched), missed + (not matched)
    n_false = n_predicted - len(ever_matched)
    scored = len(dices) + n_false
    return {
        "dice": sum(dices) / scored if scored else 1.0,
        "hd95_mm": (sum(hd95s_mm) + n_false * MISSED_HD95_MM) / scored if scored else 0.0,
        "true_positives": found,
        "false_negatives": missed,
        "false_positives": n_false,
    }


def main() -> None:
    packages = {name: version(name) for name in ("MedPy", "surface-distance", "numpy", "scipy")}
    scores = {
        pair.name: {
            "checksum": pair.checksum,
            "packages": package_scores(pair.prediction, pair.reference, pair.spacing_mm),
            "lesionwise": published_lesionwise(pair.prediction, pair.reference, pair.spacing_mm),
        }
        for pair in random_pairs()
    }
    RESULT.write_text(json.dumps({"made_with": packages, "tolerances_mm": TOLERANCES_MM, "pairs": scores}, indent=1) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
