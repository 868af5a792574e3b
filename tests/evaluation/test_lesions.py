"""Lesion-wise scores, against the published procedure and by hand."""

from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given

from drunet_cli.evaluation.lesions import LesionCounts, LesionScores, lesion_scores
from drunet_cli.evaluation.scores import Mask, SpacingMm, dice
from drunet_cli.evaluation.surfaces import surface_distances
from tests.evaluation.make_reference_scores import lesionwise
from tests.evaluation.random_masks import SPACINGS_MM, masks, plainly
from tests.evaluation.stored_scores import PAIRS, STORED, TOLERANCE, every_pair

UNIT: Final = (1.0, 1.0, 1.0)
EMPTY: Final = np.zeros((40, 20, 20), dtype=np.bool_)

Corner = tuple[int, int, int]


def box(start: Corner, size: Corner) -> Mask:
    mask = EMPTY.copy()
    mask[tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))] = True
    return mask


def cube(i: int, j: int = 8, k: int = 8) -> Mask:
    """64 mm3, above the threshold."""
    return box((i, j, k), (4, 4, 4))


def scores(prediction: Mask, reference: Mask, spacing_mm: SpacingMm = UNIT) -> LesionScores:
    return lesion_scores(prediction, reference, spacing_mm=spacing_mm)


def counts(prediction: Mask, reference: Mask) -> tuple[int, int, int]:
    """TP, FN, FP."""
    found = scores(prediction, reference).counts
    return found.true_positives, found.false_negatives, found.false_positives


@every_pair
def test_scores_are_those_of_the_published_procedure(name: str) -> None:
    pair, stored = PAIRS[name], STORED["pairs"][name]["lesionwise"]
    found = scores(pair.prediction, pair.reference, pair.spacing_mm)
    assert found.counts == LesionCounts(stored["true_positives"], stored["false_negatives"], stored["false_positives"])
    assert found.dice == pytest.approx(stored["dice"], abs=TOLERANCE)
    assert found.hd95_mm == pytest.approx(stored["hd95_mm"], abs=TOLERANCE)


@every_pair
def test_room_around_the_volume_changes_nothing(name: str) -> None:
    pair = PAIRS[name]
    roomy = [np.pad(mask, 7) for mask in (pair.prediction, pair.reference)]
    assert scores(roomy[0], roomy[1], pair.spacing_mm) == scores(pair.prediction, pair.reference, pair.spacing_mm)


@plainly
@given(masks(2), SPACINGS_MM)
def test_scores_are_those_of_a_plain_rendering(drawn: Any, spacing_mm: SpacingMm) -> None:
    """The steps of the published procedure, over whole volumes, a lesion at a time; Dice and HD95 have tests of their own."""

    def hd95(found: Mask, sought: Mask) -> float:
        return surface_distances(found, sought, spacing_mm=spacing_mm).hd95_mm

    prediction, reference = (np.kron(mask, np.ones((3, 3, 3), dtype=np.bool_)) for mask in drawn)
    expected = lesionwise(prediction, reference, spacing_mm, dice=dice, hd95=hd95)
    found = scores(prediction, reference, spacing_mm)
    assert vars(found.counts) == {name: expected.pop(name) for name in vars(found.counts)}
    assert {"dice": found.dice, "hd95_mm": found.hd95_mm} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (EMPTY, EMPTY, LesionScores(1, 0, LesionCounts(0, 0, 0))),
        (cube(4), EMPTY, LesionScores(0, 374, LesionCounts(0, 0, 1))),
        (EMPTY, cube(4), LesionScores(0, 374, LesionCounts(0, 1, 0))),
    ],
)
def test_empty_masks(prediction: Mask, reference: Mask, expected: LesionScores) -> None:
    assert scores(prediction, reference) == expected


@pytest.mark.parametrize(("start", "n_lesions"), [(7, 1), (10, 1), (11, 2), (20, 2)])
def test_lesions_merge_when_their_surroundings_meet(start: int, n_lesions: int) -> None:
    # The first cube ends at voxel 3. Three steps from it reach 6, and three steps back from 10 reach 7, which touches 6.
    reference = cube(0) | cube(start)
    assert counts(reference, reference) == (n_lesions, 0, 0)


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    reference = cube(4, 4, 4) | cube(8, 8, 8)
    assert scores(reference, reference) == LesionScores(1, 0, LesionCounts(1, 0, 0))


def test_merged_lesions_are_above_the_threshold_together() -> None:
    one, other = box((0, 8, 8), (2, 4, 4)), box((6, 8, 8), (2, 4, 4))  # 32 mm3 each
    assert counts(EMPTY, one) == (0, 0, 0)
    assert counts(EMPTY, one | other) == (0, 1, 0)


def test_predicted_components_that_touch_at_a_corner_are_one_and_do_not_merge_otherwise() -> None:
    one, at_its_corner, beyond_a_gap = box((30, 2, 2), (2, 2, 2)), box((32, 4, 4), (2, 2, 2)), box((33, 2, 2), (2, 2, 2))
    assert counts(one | at_its_corner, EMPTY) == (0, 0, 1)
    assert counts(one | beyond_a_gap, EMPTY) == (0, 0, 2)


@pytest.mark.parametrize(
    ("steps", "matches"),
    [
        ((3, 0, 0), True),
        ((4, 0, 0), False),
        ((3, 3, 0), True),  # three steps over an edge
        ((2, 2, 2), True),  # six faces, two at a time
        ((3, 2, 2), False),  # seven
        ((3, 3, 1), False),
    ],
)
def test_a_voxel_matches_within_three_steps_over_faces_or_edges(steps: Corner, matches: bool) -> None:
    near = EMPTY.copy()
    near[7 + steps[0], 11 + steps[1], 11 + steps[2]] = True  # from the cube's last voxel
    assert counts(near, cube(4)) == ((1, 0, 0) if matches else (0, 1, 1))


def test_a_component_that_reaches_two_lesions_is_taken_whole_for_both() -> None:
    bar = box((0, 8, 8), (16, 4, 4))
    found = scores(bar, cube(0) | cube(12))
    assert found.counts == LesionCounts(2, 0, 0)
    assert found.dice == pytest.approx(2 * 64 / (256 + 64))  # of each lesion alone, as if the other were not there
    assert found.hd95_mm == 12  # the bar's far end, 12 voxels beyond either lesion


def test_all_components_that_match_a_lesion_count_as_one() -> None:
    lesion = box((0, 8, 8), (12, 4, 4))
    found = scores(cube(0) | cube(8), lesion)
    assert found.counts == LesionCounts(1, 0, 0)
    assert found.dice == pytest.approx(2 * 128 / (128 + 192))


def test_every_lesion_and_false_positive_has_the_same_weight() -> None:
    far_voxel = box((38, 1, 1), (1, 1, 1))
    found = scores(cube(0) | far_voxel, cube(0) | cube(20))
    assert found == LesionScores(1 / 3, 2 * 374 / 3, LesionCounts(1, 1, 1))


@pytest.mark.parametrize(("size", "counted"), [((5, 5, 2), False), ((17, 3, 1), True)])
def test_a_lesion_of_exactly_50_mm3_does_not_count_and_one_of_51_does(size: Corner, counted: bool) -> None:
    lesion = box((4, 8, 8), size)
    assert scores(EMPTY, lesion) == (
        LesionScores(0, 374, LesionCounts(0, 1, 0)) if counted else LesionScores(1, 0, LesionCounts(0, 0, 0))
    )


@pytest.mark.parametrize(("n", "counted"), [(10, False), (11, True)])
def test_the_threshold_is_a_volume_and_not_a_number_of_voxels(n: int, counted: bool) -> None:
    found = scores(EMPTY, box((4, 8, 8), (n, 1, 1)), (1.0, 1.0, 5.0))
    assert found.counts.false_negatives == counted


def test_what_matches_a_small_lesion_is_no_false_positive() -> None:
    assert scores(cube(4), box((5, 9, 9), (1, 1, 1))) == LesionScores(1, 0, LesionCounts(0, 0, 0))


def test_a_small_lesion_beside_a_large_one_changes_no_mean() -> None:
    assert scores(cube(0), cube(0) | box((30, 3, 3), (2, 2, 2))) == LesionScores(1, 0, LesionCounts(1, 0, 0))


def test_voxel_spacing_scales_hd95() -> None:
    assert scores(cube(6), cube(4)).hd95_mm == 2
    assert scores(cube(6), cube(4), (2.5, 1.0, 1.0)).hd95_mm == 5
