"""Lesion-wise scores, against the published procedure and by hand."""

from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given

from drunet_cli.evaluation.scores import LesionCounts, LesionScores, Mask, SpacingMm, dice, lesion_scores, surface_distances
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


FAR_VOXEL: Final = box((38, 1, 1), (1, 1, 1))
BAR: Final = box((0, 8, 8), (16, 4, 4))
SMALL: Final = box((4, 8, 8), (5, 5, 2))  # 50 mm3


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (EMPTY, EMPTY, (1, 0, (0, 0, 0))),
        (cube(4), EMPTY, (0, 374, (0, 0, 1))),
        (EMPTY, cube(4), (0, 374, (0, 1, 0))),
        (cube(6), cube(4), (0.5, 2, (1, 0, 0))),
        # Lesions and components that touch at a corner are one; components with a gap between are two.
        (cube(4, 4, 4) | cube(8, 8, 8), cube(4, 4, 4) | cube(8, 8, 8), (1, 0, (1, 0, 0))),
        (box((30, 2, 2), (2, 2, 2)) | box((32, 4, 4), (2, 2, 2)), EMPTY, (0, 374, (0, 0, 1))),
        (box((30, 2, 2), (2, 2, 2)) | box((33, 2, 2), (2, 2, 2)), EMPTY, (0, 374, (0, 0, 2))),
        # A component that reaches two lesions is taken whole for both, each as if the other were not there: the far end of the
        # bar is 12 voxels beyond either.
        (BAR, cube(0) | cube(12), (2 * 64 / (256 + 64), 12, (2, 0, 0))),
        # All components that match a lesion count as one; the middle of the gap is 2 mm from both.
        (cube(0) | cube(8), box((0, 8, 8), (12, 4, 4)), (2 * 128 / (128 + 192), 2, (1, 0, 0))),
        # Every lesion and false positive has the same weight.
        (cube(0) | FAR_VOXEL, cube(0) | cube(20), (1 / 3, 2 * 374 / 3, (1, 1, 1))),
        # A lesion of 50 mm3 does not count, but what matches it is no false positive; one of 51 mm3 counts, and two of 32 mm3
        # that merge.
        (EMPTY, SMALL, (1, 0, (0, 0, 0))),
        (cube(4), SMALL, (1, 0, (0, 0, 0))),
        (cube(0), cube(0) | box((30, 3, 3), (2, 2, 2)), (1, 0, (1, 0, 0))),
        (EMPTY, box((4, 8, 8), (17, 3, 1)), (0, 374, (0, 1, 0))),
        (EMPTY, box((0, 8, 8), (2, 4, 4)), (1, 0, (0, 0, 0))),
        (EMPTY, box((0, 8, 8), (2, 4, 4)) | box((6, 8, 8), (2, 4, 4)), (0, 374, (0, 1, 0))),
    ],
)
def test_scores_by_hand(prediction: Mask, reference: Mask, expected: tuple[float, float, tuple[int, int, int]]) -> None:
    dice, hd95_mm, counts = expected
    found = scores(prediction, reference)
    assert found.counts == LesionCounts(*counts)
    assert (found.dice, found.hd95_mm) == pytest.approx((dice, hd95_mm))


@pytest.mark.parametrize(("start", "n_lesions"), [(7, 1), (10, 1), (11, 2), (20, 2)])
def test_lesions_merge_when_their_surroundings_meet(start: int, n_lesions: int) -> None:
    # The first cube ends at voxel 3. Three steps from it reach 6, and three steps back from 10 reach 7, which touches 6.
    reference = cube(0) | cube(start)
    assert scores(reference, reference).counts == LesionCounts(n_lesions, 0, 0)


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
    assert scores(near, cube(4)).counts == (LesionCounts(1, 0, 0) if matches else LesionCounts(0, 1, 1))


@pytest.mark.parametrize(("n", "counted"), [(10, False), (11, True)])
def test_the_threshold_is_a_volume_and_hd95_is_in_mm(n: int, counted: bool) -> None:
    found = scores(EMPTY, box((4, 8, 8), (n, 1, 1)), (1.0, 1.0, 5.0))
    assert found.counts.false_negatives == counted
    assert scores(cube(6), cube(4), (2.5, 1.0, 1.0)).hd95_mm == 5
