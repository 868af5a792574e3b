"""All scores of a pair of class maps, worked out by hand."""

import math
from dataclasses import asdict, replace
from typing import Final

import numpy as np
import pytest

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.evaluation.evaluate import Convention, RegionScores, compare
from drunet_cli.evaluation.lesions import LesionCounts
from drunet_cli.evaluation.scores import SpacingMm

UNIT: Final = (1.0, 1.0, 1.0)
EMPTY: Final = np.zeros((20, 16, 12), dtype=np.uint8)
NAMES: Final = ["WT", "TC", "ET", "NCR", "ED"]

every_convention = pytest.mark.parametrize("convention", Convention)


def tumour() -> ClassMap:
    """Along I: 4 planes of oedema, 3 of enhancing tumour, 2 of necrosis, each of 6 x 5 voxels."""
    class_map = EMPTY.copy()
    class_map[3:7, 4:10, 3:8] = TumourClass.ED
    class_map[7:10, 4:10, 3:8] = TumourClass.ET
    class_map[10:12, 4:10, 3:8] = TumourClass.NCR
    return class_map


def scores(
    prediction: ClassMap,
    reference: ClassMap,
    convention: Convention = Convention.BRATS,
    spacing_mm: SpacingMm = UNIT,
    tolerance_mm: float = 1.0,
) -> dict[str, RegionScores]:
    return compare(prediction, reference, spacing_mm=spacing_mm, convention=convention, tolerance_mm=tolerance_mm)


@every_convention
def test_regions_and_classes_come_in_one_order(convention: Convention) -> None:
    assert list(scores(tumour(), tumour(), convention)) == NAMES


@every_convention
def test_a_perfect_prediction_has_perfect_scores(convention: Convention) -> None:
    for found in scores(tumour(), tumour(), convention).values():
        assert (found.dice, found.hd95_mm, found.surface_dice) == (1, 0, 1)
        assert (found.sensitivity, found.specificity, found.precision, found.volume_error_ml) == (1, 1, 1, 0)


def test_regions_are_made_of_their_classes() -> None:
    found = scores(tumour(), EMPTY)
    assert {name: found[name].voxels for name in NAMES} == {"WT": 270, "TC": 150, "ET": 90, "NCR": 60, "ED": 120}
    assert {found[name].reference_voxels for name in NAMES} == {0}


def test_every_score_of_a_case_worked_out_by_hand() -> None:
    prediction = tumour()
    prediction[7:9] = np.where(prediction[7:9] == TumourClass.ET, TumourClass.ED, prediction[7:9])  # the last plane is left
    found = scores(prediction, tumour(), spacing_mm=(1.0, 2.0, 0.5))
    # Pieces of the reference's surface lie on four planes of corners. The last two are the prediction's, the second is 1 mm
    # from these and the first 2 mm. Faces of a voxel: 1, 0.5 and 2 mm2.
    end_mm2 = math.sqrt(5.25) / 2 + 10 * math.sqrt(5) / 2 + 8 * math.sqrt(1.25) / 2 + 20  # corners, edges along J and K, face
    ring_mm2 = 4 * math.sqrt(4.25) / 2 + 10 * 2 + 8 * 0.5
    assert asdict(found["ET"]) == {
        "dice": 2 * 30 / (30 + 90),
        # The prediction's 30 border voxels are the reference's too; 30 more of it are 2 mm away, and 18 1 mm.
        "hd95_mm": 2,
        "surface_dice": pytest.approx((3 * end_mm2 + 2 * ring_mm2) / (4 * end_mm2 + 2 * ring_mm2)),
        "sensitivity": 30 / 90,
        "specificity": 1,
        "precision": 1,
        "voxels": 30,
        "reference_voxels": 90,
        "volume_ml": pytest.approx(0.03),
        "reference_volume_ml": pytest.approx(0.09),
        "volume_error_ml": pytest.approx(-0.06),
        "lesions": None,
    }
    assert found["ED"].volume_error_ml == pytest.approx(0.06)
    assert found["ED"].precision == 120 / 180
    assert found["ED"].specificity == (EMPTY.size - 180) / (EMPTY.size - 120)  # over the whole volume, not the tumour's box
    assert (found["WT"].dice, found["WT"].surface_dice) == (1, 1)


@pytest.mark.parametrize(("tolerance_mm", "score"), [(0.0, 0.0), (2.9, 0.0), (3.0, 0.5), (4.0, 1.0)])
def test_surface_dice_is_taken_at_the_tolerance_asked_for(tolerance_mm: float, score: float) -> None:
    prediction, reference = EMPTY.copy(), EMPTY.copy()
    prediction[2, 5, 5] = reference[6, 5, 5] = TumourClass.ED  # 3 voxels from corner to corner, and 4 to the far ones
    assert scores(prediction, reference, tolerance_mm=tolerance_mm)["ED"].surface_dice == pytest.approx(score)


@pytest.mark.parametrize(("spacing_mm", "hd95_mm"), [(UNIT, 4), ((1.5, 1.0, 1.0), 6)])
def test_hd95_is_in_mm(spacing_mm: SpacingMm, hd95_mm: float) -> None:
    prediction, reference = EMPTY.copy(), EMPTY.copy()
    prediction[0, 0, 0] = reference[4, 0, 0] = TumourClass.NCR
    assert scores(prediction, reference, spacing_mm=spacing_mm)["TC"].hd95_mm == hd95_mm


# --- empty maps


def test_brats_scores_a_region_that_both_lack_as_perfect() -> None:
    for found in scores(EMPTY, EMPTY).values():
        assert (found.dice, found.hd95_mm, found.surface_dice) == (1, 0, 1)
        assert (found.sensitivity, found.specificity, found.precision) == (1, 1, 1)


def test_brats_scores_a_region_that_one_lacks_with_its_constants() -> None:
    for found in (scores(tumour(), EMPTY)["ET"], scores(EMPTY, tumour())["ET"]):
        assert (found.dice, found.hd95_mm, found.surface_dice) == (0, 373.12866, 0)
        assert (found.sensitivity, found.precision) == (0, 0)


def test_the_brats_constant_does_not_depend_on_the_spacing() -> None:
    assert scores(tumour(), EMPTY, spacing_mm=(3.0, 3.0, 3.0))["WT"].hd95_mm == 373.12866


def test_lesionwise_scores_what_one_lacks_with_374() -> None:
    added = scores(tumour(), EMPTY, Convention.LESIONWISE)["ET"]
    missed = scores(EMPTY, tumour(), Convention.LESIONWISE)["ET"]
    assert (added.dice, added.hd95_mm, added.lesions) == (0, 374, LesionCounts(0, 0, 1))
    assert (missed.dice, missed.hd95_mm, missed.lesions) == (0, 374, LesionCounts(0, 1, 0))
    both = scores(EMPTY, EMPTY, Convention.LESIONWISE)["ET"]
    assert (both.dice, both.hd95_mm, both.lesions) == (1, 0, LesionCounts(0, 0, 0))


def test_conventions_differ_in_dice_hd95_and_lesions_alone() -> None:
    prediction = np.roll(tumour(), 1, axis=0)
    prediction[18, 14, 10] = TumourClass.ED
    of_region, of_lesions = (asdict(scores(prediction, tumour(), convention)["WT"]) for convention in Convention)
    assert {name for name in of_region if of_region[name] != of_lesions[name]} == {"dice", "hd95_mm", "lesions"}
    assert of_lesions["lesions"] == {"true_positives": 1, "false_negatives": 0, "false_positives": 1}
    assert of_lesions["dice"] == pytest.approx(240 / 270 / 2)


# --- arrays as they come


@every_convention
def test_the_order_of_the_voxels_in_memory_does_not_matter(convention: Convention) -> None:
    prediction = np.roll(tumour(), (1, 2, 0), axis=(0, 1, 2))
    expected = scores(prediction, tumour(), convention)
    assert scores(np.asfortranarray(prediction), np.asfortranarray(tumour()), convention) == expected
    assert scores(np.asfortranarray(prediction), tumour(), convention) == expected


@every_convention
def test_turned_volumes_have_the_same_scores(convention: Convention) -> None:
    prediction = np.roll(tumour(), (1, 2, 0), axis=(0, 1, 2))
    expected = scores(prediction, tumour(), convention, (1.0, 2.0, 0.5))
    turned = scores(prediction.T[:, ::-1], tumour().T[:, ::-1], convention, (0.5, 2.0, 1.0))
    for name, found in turned.items():
        assert asdict(replace(found, lesions=None)) == pytest.approx(asdict(replace(expected[name], lesions=None)))
        assert found.lesions == expected[name].lesions


@every_convention
def test_class_maps_are_left_as_they_were(convention: Convention) -> None:
    prediction, reference = np.roll(tumour(), 1, axis=0), tumour()
    prediction.flags.writeable = reference.flags.writeable = False
    scores(prediction, reference, convention)


def test_maps_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        scores(EMPTY, EMPTY[:, :, :1])


def test_maps_of_two_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[I, J, K\]"):
        scores(EMPTY[0], EMPTY[0])


def test_label_values_in_place_of_class_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="class indices"):
        scores(EMPTY, np.full_like(EMPTY, 4))


@pytest.mark.parametrize("spacing_mm", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan")), (1.0, 1.0, float("inf"))])
def test_a_spacing_that_is_no_length_is_refused(spacing_mm: SpacingMm) -> None:
    with pytest.raises(ValueError, match="three lengths in mm"):
        scores(EMPTY, EMPTY, spacing_mm=spacing_mm)


@pytest.mark.parametrize("tolerance_mm", [-0.1, float("nan")])
def test_a_tolerance_that_is_no_length_is_refused(tolerance_mm: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        scores(EMPTY, EMPTY, tolerance_mm=tolerance_mm)
