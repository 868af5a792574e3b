"""The uncertainty scores of BraTS 2020, by hand and by one mask a threshold; the AUROC, by all pairs; and uncertainty maps."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.errors import CaseError
from drunet_cli.evaluation.scores import Mask
from drunet_cli.evaluation.uncertainty import UncertaintyMap, UncertaintyScores, percentages, uncertainty_scores
from tests.evaluation.random_masks import masks, plainly


def scores(
    uncertainty: list[float], *, prediction: list[int], reference: list[int], brain: list[int] | None = None
) -> UncertaintyScores:
    """The scores of a few voxels in a row."""
    masks = [np.array(mask, dtype=np.bool_) for mask in (prediction, reference)]
    return uncertainty_scores(
        percentages(np.array(uncertainty)), *masks, brain=None if brain is None else np.array(brain, dtype=np.bool_)
    )


def area_of_step(before: float, after: float, threshold: float) -> float:
    """Under a curve that steps at a threshold (a multiple of 2.5), by 40 trapezoids: the one that ends there is halfway."""
    ends_at = threshold / 2.5
    return (before * (ends_at - 0.5) + after * (40.5 - ends_at)) / 40


def slowly(uncertainty: UncertaintyMap, prediction: Mask, reference: Mask, brain: Mask) -> dict[str, float | None]:
    """The definitions as they are written: every threshold a mask of the volume."""
    curves: dict[str, list[float]] = {"dice_auc": [], "ftp_auc": [], "ftn_auc": []}
    hits, rejections = prediction & reference & brain, ~prediction & ~reference & brain
    for step in range(41):
        kept = uncertainty <= 2.5 * step
        common = np.count_nonzero(prediction & reference & kept)
        both = np.count_nonzero(prediction & kept) + np.count_nonzero(reference & kept)
        curves["dice_auc"].append(2 * common / both if both else 1)
        for name, of_kind in (("ftp_auc", hits), ("ftn_auc", rejections)):
            n, n_kept = np.count_nonzero(of_kind), np.count_nonzero(of_kind & kept)
            curves[name].append((n - n_kept) / n if n else 0)
    areas = {name: sum((curve[n] + curve[n + 1]) / 2 * 2.5 for n in range(40)) / 100 for name, curve in curves.items()}
    score = (areas["dice_auc"] + (1 - areas["ftp_auc"]) + (1 - areas["ftn_auc"])) / 3
    return areas | {"score": score, "error_auroc": by_all_pairs(uncertainty[brain], (prediction != reference)[brain])}


def by_all_pairs(uncertainty: npt.NDArray[Any], wrong: Mask) -> float | None:
    of_wrong, of_right = uncertainty[wrong][:, np.newaxis], uncertainty[~wrong][np.newaxis]
    pairs = (of_wrong > of_right) + 0.5 * (of_wrong == of_right)
    return float(pairs.mean()) if pairs.size else None


@plainly
@given(masks(3), st.integers(0, 9), st.booleans())
def test_scores_are_those_of_one_mask_a_threshold(drawn: Any, seed: int, whole_numbers: bool) -> None:
    prediction, reference, brain = drawn
    noise = np.random.default_rng(seed).normal(40 + 25 * (prediction != reference), 35)
    uncertainty = np.clip(np.rint(noise).astype(int), 0, 100).astype(np.uint8) if whole_numbers else np.clip(noise, 0, 100)
    found = uncertainty_scores(uncertainty, prediction, reference, brain=brain)
    assert vars(found) == pytest.approx(slowly(uncertainty, prediction, reference, brain), abs=1e-12)  # sums of 41 float64
    found = uncertainty_scores(uncertainty, prediction, reference)
    assert vars(found) == pytest.approx(slowly(uncertainty, prediction, reference, np.ones_like(brain)), abs=1e-12)


@pytest.mark.parametrize(
    ("uncertainty", "threshold"), [(5.0, 5), (5.001, 7.5), (7.499, 7.5), (99, 100), (100, 100), (0.1, 2.5)]
)
def test_a_voxel_is_kept_from_the_first_threshold_that_is_not_below_it(uncertainty: float, threshold: float) -> None:
    found = scores([0, uncertainty], prediction=[1, 1], reference=[1, 1])
    assert found.ftp_auc == pytest.approx(area_of_step(1 / 2, 0, threshold))


@pytest.mark.parametrize(
    ("uncertainty", "prediction", "reference", "expected"),
    [
        # Certain everywhere: errors cost nothing but Dice.
        ([0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], (0.5, 0, 0, 0.5)),
        # Nothing is kept: Dice is 1.
        ([100, 100, 100], [1, 1, 0], [1, 0, 0], (area_of_step(1, 2 / 3, 100), 39.5 / 40, 39.5 / 40, 0.5)),
        # In neither mask, and in one only.
        ([0, 40], [0, 0], [0, 0], (1, 0, area_of_step(1 / 2, 0, 40), None)),
        ([20, 60, 0], [0, 0, 0], [1, 1, 0], (area_of_step(1, 0, 20), 0, 0, 1)),
        ([20, 60, 0], [1, 1, 0], [0, 0, 0], (area_of_step(1, 0, 20), 0, 0, 1)),
        # No negatives to filter.
        ([90, 90], [1, 1], [1, 1], (1, area_of_step(1, 0, 90), 0, None)),
    ],
)
def test_corners_by_hand(
    uncertainty: list[float], prediction: list[int], reference: list[int], expected: tuple[float | None, ...]
) -> None:
    found = scores(uncertainty, prediction=prediction, reference=reference)
    assert [found.dice_auc, found.ftp_auc, found.ftn_auc, found.error_auroc] == pytest.approx(list(expected))


def test_outside_the_brain_only_dice_counts() -> None:
    inside = scores([0, 50, 10], prediction=[1, 0, 0], reference=[1, 1, 0])
    found = scores(
        [0, 50, 10, 80, 90, 100], prediction=[1, 0, 0, 0, 1, 1], reference=[1, 1, 0, 0, 0, 1], brain=[1, 1, 1, 0, 0, 0]
    )
    assert (found.ftp_auc, found.ftn_auc, found.error_auroc) == (inside.ftp_auc, inside.ftn_auc, inside.error_auroc)
    # Two and three voxels share one, then four; at 100 three and three share two.
    steps = (area_of_step(1, 2 / 3, 50), area_of_step(0, 2 / 4 - 2 / 3, 90), area_of_step(0, 4 / 6 - 2 / 4, 100))
    assert found.dice_auc == pytest.approx(sum(steps))


@pytest.mark.parametrize("odd", range(4))
def test_arrays_of_different_shapes_are_refused(odd: int) -> None:
    arrays: list[npt.NDArray[Any]] = [np.zeros((2, 3), dtype=np.uint8 if n == 0 else np.bool_) for n in range(4)]
    arrays[odd] = arrays[odd][:, :1]  # numpy would stretch it
    with pytest.raises(ValueError, match="different shapes"):
        uncertainty_scores(*arrays[:3], brain=arrays[3])


def test_auroc_counts_pairs_of_a_wrong_and_a_right_voxel() -> None:
    # Wrong 3 and 1, right 2, 1 and 0: above all three; above one, with one tie.
    found = scores([3, 1, 2, 1, 0], prediction=[1, 1, 0, 0, 0], reference=[0, 0, 0, 0, 0])
    assert found.error_auroc == pytest.approx((3 + 1.5) / 6)


@pytest.mark.parametrize("wrong", [1, 0])
def test_auroc_of_one_kind_of_voxels_is_none(wrong: int) -> None:
    assert scores([0, 1, 2], prediction=[wrong] * 3, reference=[0, 0, 0]).error_auroc is None


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_whole_numbers_of_any_type_become_uint8(dtype: str) -> None:
    found = percentages(np.array([0, 37, 100], dtype=dtype))
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 37, 100]


def test_fractions_stay_as_they_are() -> None:
    assert percentages(np.array([0, 37.25, 100], dtype=np.float32)).tolist() == [0, 37.25, 100]


def test_ends_that_scaling_has_moved_are_put_back() -> None:
    assert percentages(np.array([-0.0004, 50.5, 100.0004])).tolist() == [0, 50.5, 100]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "values that are no numbers"),
        (np.inf, "values from 0 to inf"),
        (-1, "values from -1 to 0"),
        (100.5, "values from 0 to 100.5"),
        (255, "values from 0 to 255"),
    ],
)
def test_other_values_are_refused(value: float, words: str) -> None:
    with pytest.raises(CaseError, match=f"^holds {words}; an uncertainty map has 0 "):
        percentages(np.array([0, value]))
