"""Counts of voxels and their ratios."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from drunet_cli.brats import TumourClass
from drunet_cli.evaluation.scores import Mask, Overlap, dice, mask_of, overlap
from tests.evaluation.random_masks import masks, plainly
from tests.evaluation.stored_scores import PAIRS, STORED, TOLERANCE, every_pair

EMPTY = np.zeros((2, 3, 4), dtype=np.bool_)
FULL = ~EMPTY


def with_voxels(*indices: int) -> Mask:
    mask = EMPTY.copy()
    mask.flat[list(indices)] = True
    return mask


def test_the_stored_scores_are_of_these_very_pairs() -> None:
    assert {name: pair.checksum for name, pair in PAIRS.items()} == {
        name: stored["checksum"] for name, stored in STORED["pairs"].items()
    }


@every_pair
def test_ratios_are_those_of_medpy(name: str) -> None:
    counts = overlap(PAIRS[name].prediction, PAIRS[name].reference)
    for score in ("dice", "sensitivity", "specificity", "precision"):
        assert getattr(counts, score) == pytest.approx(STORED["pairs"][name]["packages"][score], abs=TOLERANCE)


@plainly
@given(masks(2))
def test_counts_are_those_of_sets_of_voxels(drawn: Any) -> None:
    predicted, true = ({tuple(voxel) for voxel in np.argwhere(mask)} for mask in drawn)
    counts = overlap(*drawn)
    assert counts == Overlap(
        true_positives=len(predicted & true),
        false_positives=len(predicted - true),
        false_negatives=len(true - predicted),
        true_negatives=drawn[0].size - len(predicted | true),
    )
    assert (counts.voxels, counts.reference_voxels, counts.dice) == (len(predicted), len(true), dice(*drawn))


@pytest.mark.parametrize(
    ("prediction", "reference", "ratios"),
    [
        (with_voxels(0, 1, 2, 3), with_voxels(2, 3, 4), (4 / 7, 2 / 3, 19 / 21, 2 / 4)),
        (EMPTY, EMPTY, (1, 1, 1, 1)),
        (with_voxels(5), EMPTY, (0, 0, 23 / 24, 0)),
        (EMPTY, with_voxels(5), (0, 0, 1, 0)),
        (FULL, FULL, (1, 1, 1, 1)),
        (with_voxels(*range(12)), FULL, (24 / 36, 0.5, 0, 1)),  # no background is left to find
    ],
)
def test_ratios_by_hand(prediction: Mask, reference: Mask, ratios: tuple[float, ...]) -> None:
    counts = overlap(prediction, reference)
    assert (counts.dice, counts.sensitivity, counts.specificity, counts.precision) == ratios
    assert dice(prediction, reference) == ratios[0]


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and a reference of shape \(2, 3, 1\)"):
        dice(EMPTY, EMPTY[:, :, :1])  # numpy would stretch the second


def test_a_mask_is_where_any_of_its_classes_is() -> None:
    class_map = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    assert mask_of(class_map, (TumourClass.NCR, TumourClass.ET)).tolist() == [[False, True], [False, True]]
