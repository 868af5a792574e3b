"""The uncertainty scores of BraTS 2020, by hand and by one mask a threshold; the AUROC, by all pairs; and their files."""

import json
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import REGIONS, ClassMap, ReadLabels
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.evaluate import Convention, EvaluationTask, evaluate, mask_of
from drunet_cli.evaluation.pairs import Pair, t1_of, uncertainty_maps_of
from drunet_cli.evaluation.scores import Mask
from drunet_cli.evaluation.uncertainty import UncertaintyMap, UncertaintyScores, percentages, uncertainty_scores

SHAPE: Final = (9, 8, 7)
LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
ENDS: Final = {"WT": "whole", "TC": "core", "ET": "enhance"}


def scores(
    uncertainty: list[float], *, prediction: list[int], reference: list[int], brain: list[int] | None = None
) -> UncertaintyScores:
    """Of a few voxels in a row."""
    masks = [np.array(mask, dtype=np.bool_) for mask in (prediction, reference)]
    return uncertainty_scores(
        percentages(np.array(uncertainty)), *masks, brain=None if brain is None else np.array(brain, dtype=np.bool_)
    )


def area_of_step(before: float, after: float, threshold: float) -> float:
    """Under a curve that steps at a threshold (a multiple of 2.5), by 40 trapezoids: the one that ends there is halfway."""
    ends_at = threshold / 2.5
    return (before * (ends_at - 0.5) + after * (40.5 - ends_at)) / 40


def slowly(uncertainty: UncertaintyMap, prediction: Mask, reference: Mask, brain: Mask) -> dict[str, float]:
    """The definitions as they are written: every threshold a mask of the volume."""
    curves: dict[str, list[float]] = {"dice_auc": [], "ftp_auc": [], "ftn_auc": []}
    hits, rejections = (np.count_nonzero(mask & brain) for mask in (prediction & reference, ~prediction & ~reference))
    for step in range(41):
        kept = uncertainty <= 2.5 * step
        common = np.count_nonzero(prediction & reference & kept)
        both = np.count_nonzero(prediction & kept) + np.count_nonzero(reference & kept)
        curves["dice_auc"].append(2 * common / both if both else 1)
        kept_hits = np.count_nonzero(prediction & reference & kept & brain)
        kept_rejections = np.count_nonzero(~prediction & ~reference & kept & brain)
        curves["ftp_auc"].append((hits - kept_hits) / hits if hits else 0)
        curves["ftn_auc"].append((rejections - kept_rejections) / rejections)
    areas = {name: sum((curve[n] + curve[n + 1]) / 2 * 2.5 for n in range(40)) / 100 for name, curve in curves.items()}
    areas["score"] = (areas["dice_auc"] + (1 - areas["ftp_auc"]) + (1 - areas["ftn_auc"])) / 3
    areas["error_auroc"] = by_all_pairs(uncertainty[brain], (prediction != reference)[brain])
    return areas


def by_all_pairs(uncertainty: npt.NDArray[Any], wrong: Mask) -> float:
    of_wrong, of_right = uncertainty[wrong][:, np.newaxis], uncertainty[~wrong][np.newaxis]
    return float(np.mean((of_wrong > of_right) + 0.5 * (of_wrong == of_right)))


def random_case(seed: int, *, whole_numbers: bool) -> tuple[UncertaintyMap, Mask, Mask, Mask]:
    """An uncertainty map, higher where the masks differ, and a brain that leaves some of them out; all [9, 8, 7]."""
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random((2, *SHAPE)) < (0.05, 0.5)[seed % 2]
    uncertainty = np.clip(rng.normal(40 + 25 * (prediction != reference), 35), 0, 100)
    brain = rng.random(SHAPE) < 0.7
    return np.rint(uncertainty).astype(np.uint8) if whole_numbers else uncertainty, prediction, reference, brain


# The scores of BraTS 2020


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole_numbers", [True, False])
def test_scores_are_those_of_one_mask_a_threshold(seed: int, whole_numbers: bool) -> None:
    uncertainty, prediction, reference, brain = random_case(seed, whole_numbers=whole_numbers)
    found = uncertainty_scores(uncertainty, prediction, reference, brain=brain)
    assert vars(found) == pytest.approx(slowly(uncertainty, prediction, reference, brain), abs=1e-12)  # sums of 41 float64
    found = uncertainty_scores(uncertainty, prediction, reference)
    assert vars(found) == pytest.approx(slowly(uncertainty, prediction, reference, np.ones_like(brain)), abs=1e-12)


def test_an_uncertain_error_raises_dice_until_its_threshold() -> None:
    found = scores([0, 50, 0], prediction=[1, 1, 0], reference=[1, 0, 0])
    assert found.dice_auc == pytest.approx(area_of_step(1, 2 / 3, 50))  # 0.8292
    assert (found.ftp_auc, found.ftn_auc, found.error_auroc) == (0, 0, 1)
    assert found.score == pytest.approx((area_of_step(1, 2 / 3, 50) + 2) / 3)  # 0.9431


def test_uncertain_hits_and_rejections_are_paid_for() -> None:
    found = scores([0, 30, 0, 0, 70], prediction=[1, 1, 0, 0, 0], reference=[1, 1, 0, 0, 0])
    assert found.dice_auc == 1
    assert found.ftp_auc == pytest.approx(area_of_step(1 / 2, 0, 30))  # 0.1438
    assert found.ftn_auc == pytest.approx(area_of_step(1 / 3, 0, 70))  # 0.2292
    assert found.score == pytest.approx((3 - area_of_step(1 / 2, 0, 30) - area_of_step(1 / 3, 0, 70)) / 3)


@pytest.mark.parametrize(
    ("uncertainty", "threshold"), [(5.0, 5), (5.001, 7.5), (7.499, 7.5), (99, 100), (100, 100), (0.1, 2.5)]
)
def test_a_voxel_is_kept_from_the_first_threshold_that_is_not_below_it(uncertainty: float, threshold: float) -> None:
    found = scores([0, uncertainty], prediction=[1, 1], reference=[1, 1])
    assert found.ftp_auc == pytest.approx(area_of_step(1 / 2, 0, threshold))


def test_a_map_of_certainty_costs_a_wrong_segmentation_nothing_but_its_dice() -> None:
    found = scores([0, 0, 0, 0], prediction=[1, 1, 0, 0], reference=[1, 0, 1, 0])
    assert (found.dice_auc, found.ftp_auc, found.ftn_auc, found.error_auroc) == (0.5, 0, 0, 0.5)


def test_where_nothing_is_kept_dice_is_1() -> None:
    found = scores([100, 100, 100], prediction=[1, 1, 0], reference=[1, 0, 0])
    assert found.dice_auc == pytest.approx(area_of_step(1, 2 / 3, 100))
    assert found.ftp_auc == found.ftn_auc == pytest.approx(39.5 / 40)


def test_a_region_that_is_in_neither_mask_is_scored_by_its_negatives() -> None:
    found = scores([0, 40], prediction=[0, 0], reference=[0, 0])
    assert (found.dice_auc, found.ftp_auc, found.error_auroc) == (1, 0, None)
    assert found.ftn_auc == pytest.approx(area_of_step(1 / 2, 0, 40))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_region_in_one_mask_only_has_dice_where_it_is_filtered_out(swapped: bool) -> None:
    masks = ([0, 0, 0], [1, 1, 0])[:: -1 if swapped else 1]
    found = scores([20, 60, 0], prediction=masks[0], reference=masks[1])
    assert found.dice_auc == pytest.approx(area_of_step(1, 0, 20))
    assert (found.ftp_auc, found.ftn_auc, found.error_auroc) == (0, 0, 1)


def test_masks_that_fill_the_volume_have_no_negatives_to_filter() -> None:
    assert scores([90, 90], prediction=[1, 1], reference=[1, 1]).ftn_auc == 0


def test_outside_the_brain_only_dice_counts() -> None:
    inside = scores([0, 50, 10], prediction=[1, 0, 0], reference=[1, 1, 0])
    found = scores(
        [0, 50, 10, 80, 90, 100], prediction=[1, 0, 0, 0, 1, 1], reference=[1, 1, 0, 0, 0, 1], brain=[1, 1, 1, 0, 0, 0]
    )
    assert (found.ftp_auc, found.ftn_auc, found.error_auroc) == (inside.ftp_auc, inside.ftn_auc, inside.error_auroc)
    # Of two and three voxels one common, then of four; at 100 of three and three two.
    steps = (area_of_step(1, 2 / 3, 50), area_of_step(0, 2 / 4 - 2 / 3, 90), area_of_step(0, 4 / 6 - 2 / 4, 100))
    assert found.dice_auc == pytest.approx(sum(steps))


def test_a_case_with_errors_alone_has_no_auroc() -> None:
    assert scores([10, 20], prediction=[1, 0], reference=[0, 1]).error_auroc is None


@pytest.mark.parametrize("odd", range(4))
def test_arrays_of_different_shapes_are_refused(odd: int) -> None:
    arrays: list[npt.NDArray[Any]] = [np.zeros((2, 3), dtype=np.uint8 if n == 0 else np.bool_) for n in range(4)]
    arrays[odd] = arrays[odd][:, :1]  # numpy would stretch it
    with pytest.raises(ValueError, match="different shapes"):
        uncertainty_scores(*arrays[:3], brain=arrays[3])


# AUROC


def auroc(uncertainty: npt.NDArray[Any], wrong: npt.NDArray[np.bool_]) -> float:
    found = uncertainty_scores(uncertainty, wrong, np.zeros_like(wrong)).error_auroc
    assert found is not None
    return found


def test_auroc_counts_pairs_of_a_wrong_and_a_right_voxel() -> None:
    # Wrong 3 and 1, right 2, 1 and 0: above all three; above one, with one tie.
    assert auroc(np.array([3, 1, 2, 1, 0]), np.array([1, 1, 0, 0, 0], dtype=np.bool_)) == pytest.approx((3 + 1.5) / 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_auroc_is_that_of_all_pairs(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(1)
    uncertainty, wrong = rng.integers(0, 255, SHAPE).astype(dtype), rng.random(SHAPE) < 0.2
    assert auroc(uncertainty, wrong) == pytest.approx(by_all_pairs(uncertainty, wrong), abs=1e-12)


def test_auroc_does_not_depend_on_the_scale() -> None:
    uncertainty = np.random.default_rng(2).random(50)
    wrong = uncertainty > np.random.default_rng(3).random(50)
    assert auroc(np.log(uncertainty), wrong) == auroc(uncertainty, wrong) > 0.5
    assert auroc(-uncertainty, wrong) == pytest.approx(1 - auroc(uncertainty, wrong))


@pytest.mark.parametrize("wrong", [True, False])
def test_auroc_of_one_kind_of_voxels_is_none(wrong: bool) -> None:
    assert uncertainty_scores(np.arange(4.0), np.full(4, wrong), np.zeros(4, dtype=np.bool_)).error_auroc is None


# What files hold


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


# Files


def label_map() -> npt.NDArray[np.int16]:
    """[9, 8, 7]: oedema, necrosis and enhancing tumour in planes along I."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[1:4, 2:6, 2:5], labels[4, 2:6, 2:5], labels[5, 2:6, 2:5] = 2, 1, 4
    return labels


def random_map(region: str) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(ENDS[region])).integers(0, 101, SHAPE).astype(np.uint8)


def save(voxels: npt.NDArray[Any], path: Path, affine: npt.NDArray[np.float64] = LPS) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def case(tmp_path: Path) -> EvaluationTask:
    """Files of a case: a shifted prediction, three different maps beside it, and the reference, without images."""
    (tmp_path / "ref").mkdir()
    save(np.roll(label_map(), 1, axis=1), tmp_path / "a.nii.gz")
    save(label_map(), tmp_path / "ref" / "a_seg.nii.gz")
    for region, end in ENDS.items():
        save(random_map(region), tmp_path / f"a_unc_{end}.nii.gz")
    pair = Pair("a", tmp_path / "a.nii.gz", tmp_path / "ref" / "a_seg.nii.gz")
    return EvaluationTask(pair=pair, convention=Convention.BRATS, labels=ReadLabels.AUTO, tolerance_mm=1, uncertainty=True)


def expected(region: str, brain: Mask | None = None) -> dict[str, Any]:
    class_map: ClassMap = np.where(label_map() == 4, 3, label_map()).astype(np.uint8)
    masks = [mask_of(of, REGIONS[region]) for of in (np.roll(class_map, 1, axis=1), class_map)]
    return vars(uncertainty_scores(random_map(region), *masks, brain=brain))


def refusal(case: EvaluationTask) -> str:
    with pytest.raises(CaseError) as caught:
        evaluate(case)
    return str(caught.value)


def test_every_region_is_scored_by_its_own_map(case: EvaluationTask) -> None:
    found = evaluate(case)
    assert {region: of["uncertainty"] for region, of in found["regions"].items()} == {
        region: expected(region) for region in REGIONS
    }
    assert found["uncertainty_maps"] == {
        region: str(case.pair.prediction.parent / f"a_unc_{end}.nii.gz") for region, end in ENDS.items()
    }


def test_the_brain_is_that_of_the_t1_image_beside_the_reference(case: EvaluationTask) -> None:
    assert evaluate(case)["brain_image"] is None
    brain = np.zeros(SHAPE, dtype=np.int16)
    brain[1:8, 1:7, 1:6] = 300
    t1 = case.pair.reference.with_name("a_t1.nii.gz")
    save(brain, t1)
    found = evaluate(case)
    assert found["brain_image"] == str(t1)
    assert found["regions"]["WT"]["uncertainty"] == expected("WT", brain > 0) != expected("WT")


def test_only_regions_have_uncertainty_and_et_is_one(case: EvaluationTask) -> None:
    found = evaluate(case)
    assert found["classes"]["ET"] == found["regions"]["ET"]
    assert "uncertainty" not in found["classes"]["NCR"]


def test_scores_of_uncertainty_go_through_json_where_all_voxels_are_right(case: EvaluationTask) -> None:
    save(label_map(), case.pair.prediction)
    found = evaluate(case)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["regions"]["TC"]["uncertainty"]["error_auroc"] is None


def test_maps_that_are_absent_are_all_named_in_one_error(case: EvaluationTask) -> None:
    for end in ("whole", "enhance"):
        case.pair.prediction.with_name(f"a_unc_{end}.nii.gz").unlink()
    assert refusal(case) == (
        f"{case.pair.prediction}: has no a_unc_whole.nii.gz, a_unc_enhance.nii.gz beside it; segment the case with "
        "--uncertainty, or compare it without"
    )


def test_a_map_on_another_grid_than_the_label_map_is_refused(case: EvaluationTask) -> None:
    path = case.pair.prediction.with_name("a_unc_core.nii.gz")
    save(random_map("TC"), path, LPS + np.eye(4, k=3))
    assert refusal(case).startswith(f"{path}: uncertainty map not on the grid of label map ({case.pair.prediction})")


def test_a_t1_image_on_another_grid_is_refused(case: EvaluationTask) -> None:
    t1 = case.pair.reference.with_name("a_t1.nii.gz")
    save(label_map()[1:], t1)
    assert refusal(case).startswith(f"{t1}: T1 not on the grid of reference")


@pytest.mark.parametrize("value", [101, np.nan])
def test_a_map_of_no_uncertainties_is_refused_by_name(value: float, case: EvaluationTask) -> None:
    path = case.pair.prediction.with_name("a_unc_enhance.nii.gz")
    save(np.where(label_map() == 4, value, 0).astype(np.float32), path)
    assert refusal(case).startswith(f"{path}: holds values ")


def test_without_being_asked_for_no_map_is_read(case: EvaluationTask) -> None:
    for path in case.pair.prediction.parent.glob("*_unc_*"):
        path.write_bytes(b"")
    asked = EvaluationTask(pair=case.pair, convention=case.convention, labels=case.labels, tolerance_mm=1)
    found = evaluate(asked)
    assert not {"uncertainty_maps", "brain_image"} & found.keys()
    assert "uncertainty" not in found["regions"]["WT"]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_maps_are_found_beside_a_label_map_of_either_suffix(name: str, tmp_path: Path) -> None:
    for file in ("x_unc_whole.nii.gz", "x_unc_core.nii", "x_unc_enhance.nii.gz", "xx_unc_core.nii.gz"):
        (tmp_path / file).touch()
    assert [path.name for path in uncertainty_maps_of(tmp_path / name).values()] == [
        *("x_unc_whole.nii.gz", "x_unc_core.nii", "x_unc_enhance.nii.gz")
    ]


@pytest.mark.parametrize(
    ("reference", "t1"),
    [
        ("a_seg.nii.gz", "a_t1.nii.gz"),
        ("a-seg.nii.gz", "a-t1n.nii.gz"),
        ("a.nii", "a_t1.nii"),
        ("seg.nii", "t1.nii.gz"),
    ],
)
def test_the_t1_image_is_found_by_the_names_of_brats(reference: str, t1: str, tmp_path: Path) -> None:
    for name in ("b_t1.nii.gz", "a_t1ce.nii.gz", "a-t1c.nii.gz", "t1ce.nii.gz", "a_t2.nii.gz"):
        (tmp_path / name).touch()
    assert t1_of(tmp_path / reference) is None
    (tmp_path / t1).touch()
    assert t1_of(tmp_path / reference) == tmp_path / t1
