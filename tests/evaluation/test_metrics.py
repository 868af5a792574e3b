"""Counts of voxels and the ratios of them."""

import numpy as np
import pytest

from drunet_cli.evaluation.scores import Mask, Overlap, dice, overlap
from tests.evaluation.stored_scores import PAIRS, STORED, TOLERANCE, every_pair

EMPTY = np.zeros((2, 3, 4), dtype=np.bool_)
FULL = ~EMPTY


def with_voxels(*indices: int) -> Mask:
    mask = EMPTY.copy()
    mask.flat[list(indices)] = True
    return mask


def ratios(prediction: Mask, reference: Mask) -> tuple[float, float, float, float]:
    counts = overlap(prediction, reference)
    return counts.dice, counts.sensitivity, counts.specificity, counts.precision


def test_the_stored_scores_are_of_these_very_pairs() -> None:
    assert {name: pair.checksum for name, pair in PAIRS.items()} == {
        name: stored["checksum"] for name, stored in STORED["pairs"].items()
    }


@every_pair
@pytest.mark.parametrize("score", ["dice", "sensitivity", "specificity", "precision"])
def test_ratios_are_those_of_medpy(name: str, score: str) -> None:
    counts = overlap(PAIRS[name].prediction, PAIRS[name].reference)
    assert getattr(counts, score) == pytest.approx(STORED["pairs"][name]["packages"][score], abs=TOLERANCE)


def test_voxels_are_counted_by_what_both_masks_say() -> None:
    counts = overlap(with_voxels(0, 1, 2, 3), with_voxels(2, 3, 4))
    assert counts == Overlap(true_positives=2, false_positives=2, false_negatives=1, true_negatives=19)
    assert (counts.voxels, counts.reference_voxels) == (4, 3)


def test_ratios_of_a_case_counted_by_hand() -> None:
    assert ratios(with_voxels(0, 1, 2, 3), with_voxels(2, 3, 4)) == (4 / 7, 2 / 3, 19 / 21, 2 / 4)


def test_two_empty_masks_agree_in_everything() -> None:
    assert ratios(EMPTY, EMPTY) == (1, 1, 1, 1)


def test_a_prediction_where_the_reference_is_empty_is_all_wrong() -> None:
    assert ratios(with_voxels(5), EMPTY) == (0, 0, 23 / 24, 0)


def test_an_empty_prediction_finds_nothing_and_is_not_precise() -> None:
    assert ratios(EMPTY, with_voxels(5)) == (0, 0, 1, 0)


def test_two_masks_that_fill_the_volume_agree_in_everything() -> None:
    assert ratios(FULL, FULL) == (1, 1, 1, 1)


def test_a_reference_that_fills_the_volume_leaves_no_background_to_find() -> None:
    assert ratios(with_voxels(*range(12)), FULL) == (24 / 36, 0.5, 0, 1)


def test_dice_is_the_one_of_the_counts() -> None:
    assert dice(with_voxels(0, 1, 2, 3), with_voxels(2, 3, 4)) == 4 / 7
    assert dice(EMPTY, EMPTY) == 1


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and a reference of shape \(2, 3, 1\)"):
        dice(EMPTY, EMPTY[:, :, :1])  # numpy would stretch the second
