"""The scores of a case from class maps and from files; statistics, tables and box plots of many cases."""

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from drunet_cli.brats import ClassMap, Convention, ReadLabels, TumourClass
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.evaluate import (
    SCORES,
    EvaluationTask,
    RegionScores,
    Statistics,
    box_plots,
    check_plottable,
    compare,
    encode_csv,
    evaluate,
    scores_of,
    statistics,
    summarise,
    worst_cases,
)
from drunet_cli.evaluation.pairs import Pair
from drunet_cli.evaluation.scores import LesionCounts, Mask, SpacingMm, mask_of
from drunet_cli.evaluation.uncertainty import uncertainty_scores
from tests.evaluation.random_masks import plainly
from tests.support import AXCODES

UNIT: Final = (1.0, 1.0, 1.0)
SHAPE: Final = (20, 16, 12)
LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
EMPTY: Final = np.zeros(SHAPE, dtype=np.uint8)
REGIONS: Final = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
CLASSES: Final = ["NCR", "ED", "ET"]
ENDS: Final = {"WT": "whole", "TC": "core", "ET": "enhance"}

every_convention = pytest.mark.parametrize("convention", Convention)


def tumour(start: int = 3) -> ClassMap:
    """Along I: 4 planes of oedema, 3 of enhancing tumour, 2 of necrosis, each of 6 x 5 voxels."""
    class_map = EMPTY.copy()
    class_map[start : start + 4, 4:10, 3:8] = TumourClass.ED
    class_map[start + 4 : start + 7, 4:10, 3:8] = TumourClass.ET
    class_map[start + 7 : start + 9, 4:10, 3:8] = TumourClass.NCR
    return class_map


def labels(class_map: ClassMap, *, enhancing: int = 4) -> npt.NDArray[np.int16]:
    return np.where(class_map == 3, enhancing, class_map).astype(np.int16)


def compared(
    prediction: ClassMap,
    reference: ClassMap,
    convention: Convention = Convention.BRATS,
    spacing_mm: SpacingMm = UNIT,
    tolerance_mm: float = 1.0,
) -> dict[str, RegionScores]:
    return compare(prediction, reference, spacing_mm=spacing_mm, convention=convention, tolerance_mm=tolerance_mm)


# Class maps


def test_every_score_of_a_case_worked_out_by_hand() -> None:
    prediction = tumour()
    prediction[7:9] = np.where(prediction[7:9] == TumourClass.ET, TumourClass.ED, prediction[7:9])  # the last plane is left
    found = compared(prediction, tumour(), spacing_mm=(1.0, 2.0, 0.5))
    assert list(found) == ["WT", "TC", "ET", "NCR", "ED"]
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
    assert {name: of_region.reference_voxels for name, of_region in found.items()} == {
        "WT": 270,
        "TC": 150,
        "ET": 90,
        "NCR": 60,
        "ED": 120,
    }


@pytest.mark.parametrize(
    ("prediction", "reference", "dice", "mm", "counts"),
    [
        (tumour(), tumour(), 1, {"brats": 0, "lesionwise": 0}, (1, 0, 0)),
        (EMPTY, EMPTY, 1, {"brats": 0, "lesionwise": 0}, (0, 0, 0)),
        (tumour(), EMPTY, 0, {"brats": 373.12866, "lesionwise": 374}, (0, 0, 1)),
        (EMPTY, tumour(), 0, {"brats": 373.12866, "lesionwise": 374}, (0, 1, 0)),
    ],
    ids=["perfect", "both empty", "added", "missed"],
)
@pytest.mark.parametrize("spacing_mm", [UNIT, (3.0, 3.0, 3.0)])
@every_convention
def test_perfect_and_empty_maps_have_the_constants_of_their_convention(
    prediction: ClassMap,
    reference: ClassMap,
    dice: float,
    mm: dict[str, float],
    counts: tuple[int, int, int],
    spacing_mm: SpacingMm,
    convention: Convention,
) -> None:
    for found in compared(prediction, reference, convention, spacing_mm).values():
        assert (found.dice, found.hd95_mm, found.surface_dice) == (dice, mm[convention], dice)
        assert (found.sensitivity, found.precision) == (dice, dice)
        assert found.lesions == (LesionCounts(*counts) if convention is Convention.LESIONWISE else None)


def test_conventions_differ_in_dice_hd95_and_lesions_alone() -> None:
    prediction = np.roll(tumour(), 1, axis=0)
    prediction[18, 14, 10] = TumourClass.ED
    of_region, of_lesions = (asdict(compared(prediction, tumour(), convention)["WT"]) for convention in Convention)
    assert {name for name in of_region if of_region[name] != of_lesions[name]} == {"dice", "hd95_mm", "lesions"}
    assert of_lesions["lesions"] == {"true_positives": 1, "false_negatives": 0, "false_positives": 1}
    assert of_lesions["dice"] == pytest.approx(240 / 270 / 2)


@pytest.mark.parametrize(("tolerance_mm", "score"), [(0.0, 0.0), (2.9, 0.0), (3.0, 0.5), (4.0, 1.0)])
def test_surface_dice_is_taken_at_the_tolerance_asked_for(tolerance_mm: float, score: float) -> None:
    prediction, reference = EMPTY.copy(), EMPTY.copy()
    prediction[2, 5, 5] = reference[6, 5, 5] = TumourClass.ED  # 3 voxels from corner to corner, and 4 to the far ones
    assert compared(prediction, reference, tolerance_mm=tolerance_mm)["ED"].surface_dice == pytest.approx(score)


@every_convention
def test_the_order_in_memory_does_not_matter_and_arrays_stay_as_they_were(convention: Convention) -> None:
    prediction, reference = np.roll(tumour(), (1, 2, 0), axis=(0, 1, 2)), tumour()
    prediction.flags.writeable = reference.flags.writeable = False
    expected = compared(prediction, reference, convention)
    assert compared(np.asfortranarray(prediction), np.asfortranarray(reference), convention) == expected
    assert compared(np.asfortranarray(prediction), reference, convention) == expected


@every_convention
def test_turned_volumes_have_the_same_scores(convention: Convention) -> None:
    prediction = np.roll(tumour(), (1, 2, 0), axis=(0, 1, 2))
    expected = compared(prediction, tumour(), convention, (1.0, 2.0, 0.5))
    turned = compared(prediction.T[:, ::-1], tumour().T[:, ::-1], convention, (0.5, 2.0, 1.0))
    for name, found in turned.items():
        assert asdict(replace(found, lesions=None)) == pytest.approx(asdict(replace(expected[name], lesions=None)))
        assert found.lesions == expected[name].lesions


@pytest.mark.parametrize(
    ("reference", "options", "words"),
    [
        (EMPTY[:, :, :1], {}, "shapes"),
        (np.full_like(EMPTY, 4), {}, "class indices"),
        (EMPTY, {"spacing_mm": (0.0, 1.0, 1.0)}, "three lengths in mm"),
        (EMPTY, {"spacing_mm": (1.0, -1.0, 1.0)}, "three lengths in mm"),
        (EMPTY, {"spacing_mm": (1.0, 1.0, float("nan"))}, "three lengths in mm"),
        (EMPTY, {"spacing_mm": (1.0, 1.0, float("inf"))}, "three lengths in mm"),
        (EMPTY, {"tolerance_mm": -0.1}, "tolerance"),
        (EMPTY, {"tolerance_mm": float("nan")}, "tolerance"),
    ],
)
def test_what_makes_no_sense_is_a_fault_of_the_caller(reference: ClassMap, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compared(EMPTY, reference, **options)
    with pytest.raises(ValueError, match=r"must be \[I, J, K\]"):
        compared(EMPTY[0], EMPTY[0])


# Files


def save(voxels: npt.NDArray[Any], path: Path, affine: npt.NDArray[np.float64] = LPS) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


def task_of(folder: Path, **options: Any) -> EvaluationTask:
    pair = Pair("case", folder / "p.nii", folder / "r.nii.gz")
    return EvaluationTask(
        **{"pair": pair, "convention": Convention.BRATS, "labels": ReadLabels.AUTO, "tolerance_mm": 1.0, **options}
    )


def scored(
    folder: Path,
    prediction: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    *,
    affines: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = (LPS, LPS),
    **options: Any,
) -> dict[str, Any]:
    save(prediction, folder / "p.nii", affines[0])
    save(reference, folder / "r.nii.gz", affines[1])
    return evaluate(task_of(folder, **options))


def refusal(folder: Path, *voxels: npt.NDArray[Any], **options: Any) -> CaseError:
    with pytest.raises(CaseError) as caught:
        scored(folder, *voxels, **options)
    return caught.value


def dice(document: dict[str, Any]) -> list[float]:
    return [document["regions"][region]["dice"] for region in REGIONS]


@every_convention
def test_a_case_states_what_was_compared_and_goes_through_json(convention: Convention, tmp_path: Path) -> None:
    smaller = labels(np.where(tumour() == 2, 2, 0).astype(np.uint8))
    options: dict[str, Any] = {"labels": ReadLabels.BRATS2020, "convention": convention, "tolerance_mm": 2.5}
    found = scored(tmp_path, smaller, labels(tumour()), **options)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {name: value for name, value in found.items() if name not in ("regions", "classes")} == {
        "case": "case",
        "convention": convention,
        "labels": "brats2020",
        "tolerance_mm": 2.5,
        "prediction": str(tmp_path / "p.nii"),
        "reference": str(tmp_path / "r.nii.gz"),
        "warnings": [],
    }
    assert (list(found["regions"]), list(found["classes"])) == (list(REGIONS), CLASSES)
    assert found["regions"]["ET"] == found["classes"]["ET"]
    whole = found["regions"]["WT"]
    assert (whole["voxels"], whole["reference_voxels"], whole["volume_error_ml"]) == (120, 270, -0.15)
    assert (whole["sensitivity"], whole["precision"]) == (120 / 270, 1)
    assert ("lesions" in whole) == (convention is Convention.LESIONWISE)


@pytest.mark.parametrize("enhancing", [(3, 3), (3, 4), (4, 3), (4, 4)])
def test_either_value_of_enhancing_tumour_is_read_on_either_side(enhancing: tuple[int, int], tmp_path: Path) -> None:
    assert dice(scored(tmp_path, *(labels(tumour(), enhancing=value) for value in enhancing))) == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_label_maps_of_any_type_are_read(dtype: str, tmp_path: Path) -> None:
    assert dice(scored(tmp_path, labels(tumour()).astype(dtype), labels(tumour()))) == [1, 1, 1]


def test_label_4_of_brats_2024_is_no_tumour(tmp_path: Path) -> None:
    reference = labels(tumour(), enhancing=3)
    prediction = reference.copy()
    prediction[0:2, :4, :4] = 4
    assert str(refusal(tmp_path, prediction, reference)).startswith(f"{tmp_path}/p.nii: holds labels 3 and 4; ")
    assert str(refusal(tmp_path, reference, prediction)).startswith(f"{tmp_path}/r.nii.gz: holds labels 3 and 4; ")
    found = scored(tmp_path, prediction, reference, labels=ReadLabels.BRATS2024)
    assert (dice(found), found["regions"]["WT"]["voxels"]) == ([1, 1, 1], 270)


@pytest.mark.parametrize(("convention", "enhancing"), [(ReadLabels.BRATS2020, 3), (ReadLabels.BRATS2023, 4)])
def test_labels_of_another_convention_than_asked_for_are_refused(
    convention: ReadLabels, enhancing: int, tmp_path: Path
) -> None:
    maps = (labels(tumour(), enhancing=value) for value in (7 - enhancing, enhancing))
    error = refusal(tmp_path, *maps, labels=convention)
    assert str(error) == f"{tmp_path / 'r.nii.gz'}: holds label {enhancing}, which {convention} does not have"


@pytest.mark.parametrize("axcodes", AXCODES)
def test_scores_do_not_depend_on_how_the_axes_are_stored(axcodes: str, tmp_path: Path) -> None:
    affine = np.diag([-1.0, -2.0, 0.5, 1.0])
    pair = {"p.nii": labels(tumour()), "r.nii.gz": labels(tumour(start=5))}
    expected = scored(tmp_path, *pair.values(), affines=(affine, affine))
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    for name, voxels in pair.items():
        nib.Nifti1Image(voxels, affine).as_reoriented(turn).to_filename(tmp_path / name)
    found = evaluate(task_of(tmp_path))
    for group in ("regions", "classes"):
        for name, of_region in expected[group].items():
            assert found[group][name] == pytest.approx(of_region)


@pytest.mark.parametrize(("spacing_mm", "hd95_mm"), [((1.5, 2.0, 4.0), 6), ((2.0, 2.0, 3.0), 8)])
@pytest.mark.parametrize("degrees", [0, 20])
def test_distances_and_volumes_are_those_of_the_spacing_in_the_file(
    spacing_mm: SpacingMm, hd95_mm: float, degrees: int, tmp_path: Path
) -> None:
    turn, affine = np.deg2rad(degrees), np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= spacing_mm
    prediction, reference = np.zeros((2, *SHAPE), dtype=np.int16)
    prediction[4, 5, 5] = reference[8, 5, 5] = 1
    found = scored(tmp_path, prediction, reference, affines=(affine, affine))["regions"]["TC"]
    assert found["hd95_mm"] == pytest.approx(hd95_mm, rel=1e-6)  # the header holds float32
    assert (found["volume_ml"], found["volume_error_ml"]) == (0.012, 0)


def test_volumes_are_rounded_to_a_cubic_millimetre_and_never_minus_nothing(tmp_path: Path) -> None:
    affine = np.diag([0.7, 0.7, 0.7, 1.0])
    found = scored(tmp_path, labels(tumour()), labels(tumour()), affines=(affine, affine))["regions"]["WT"]
    assert found["volume_ml"] == 0.093  # 270 * 0.343 = 92.61 mm3
    smaller, affine = labels(tumour()), np.diag([0.2, 0.2, 0.2, 1.0])
    smaller[3, 4, 3] = 0
    found = scored(tmp_path, smaller, labels(tumour()), affines=(affine, affine))["regions"]["WT"]
    assert json.dumps(found["volume_error_ml"]) == "0.0"


def shifted(mm: float) -> npt.NDArray[np.float64]:
    return LPS + mm * np.eye(4, k=3)


@pytest.mark.parametrize(
    ("affine", "first_plane", "in_details"),
    [
        (shifted(5), 0, ("5, 0, 0", "0, 0, 0")),
        (LPS, 1, ("19 x 16 x 12", "20 x 16 x 12")),
        (np.diag([-1.0, -1.0, 1.2, 1.0]), 0, ("1 x 1 x 1.2", "1 x 1 x 1 ")),
        (np.eye(4), 0, ("(1, 0, 0) (0, 1, 0) (0, 0, 1)", "(-1, 0, 0) (0, -1, 0) (0, 0, 1)")),
    ],
    ids=["shift", "shape", "spacing", "axes"],
)
def test_another_grid_is_refused_with_what_differs(
    affine: npt.NDArray[np.float64], first_plane: int, in_details: tuple[str, str], tmp_path: Path
) -> None:
    error = refusal(tmp_path, labels(tumour())[first_plane:], labels(tumour()), affines=(affine, LPS))
    assert str(error).startswith(f"{tmp_path}/p.nii: prediction not on the grid of reference ({tmp_path}/r.nii.gz)")
    _, *lines = error.details
    assert all(words in line for words, line in zip(in_details, lines, strict=True))


def test_grids_within_a_thousandth_of_a_millimetre_are_one(tmp_path: Path) -> None:
    assert dice(scored(tmp_path, labels(tumour()), labels(tumour()), affines=(shifted(0.0009), LPS))) == [1, 1, 1]


@pytest.mark.parametrize("name", ["p.nii", "r.nii.gz"])
@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut short", "an image"])
def test_a_file_that_is_no_label_map_is_refused_by_name(name: str, damage: str, tmp_path: Path) -> None:
    scored(tmp_path, labels(tumour()), labels(tumour()))
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "an image":
        save(np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16), path)
    elif damage != "absent":
        path.write_bytes({"empty": b"", "text": b"hello", "cut short": content[: len(content) * 2 // 3]}[damage])
    with pytest.raises(CaseError) as caught:
        evaluate(task_of(tmp_path))
    assert str(caught.value).startswith(f"{path}: {'holds label ' if damage == 'an image' else ''}")


# Uncertainty maps


def uncertainty_map(region: str) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(ENDS[region])).integers(0, 101, SHAPE).astype(np.uint8)


@pytest.fixture
def with_maps(tmp_path: Path) -> EvaluationTask:
    """A shifted prediction with three different maps beside it, and the reference, without images."""
    save(labels(tumour(start=4)), tmp_path / "p.nii")
    save(labels(tumour()), tmp_path / "r.nii.gz")
    for region, end in ENDS.items():
        save(uncertainty_map(region), tmp_path / f"p_unc_{end}.nii.gz")
    return task_of(tmp_path, uncertainty=True)


def expected_uncertainty(region: str, brain: Mask | None = None) -> dict[str, Any]:
    masks = [mask_of(class_map, tuple(map(TumourClass, REGIONS[region]))) for class_map in (tumour(start=4), tumour())]
    return vars(uncertainty_scores(uncertainty_map(region), *masks, brain=brain))


def test_every_region_is_scored_by_its_own_map(with_maps: EvaluationTask, tmp_path: Path) -> None:
    found = evaluate(with_maps)
    for region, of_region in found["regions"].items():
        assert of_region["uncertainty"] == expected_uncertainty(region)
    assert found["uncertainty_maps"] == {region: f"{tmp_path}/p_unc_{end}.nii.gz" for region, end in ENDS.items()}
    assert found["brain_image"] is None
    assert found["classes"]["ET"] == found["regions"]["ET"]
    assert "uncertainty" not in found["classes"]["NCR"]


def test_the_brain_is_that_of_the_t1_image_beside_the_reference(with_maps: EvaluationTask, tmp_path: Path) -> None:
    brain = np.zeros(SHAPE, dtype=np.int16)
    brain[1:18, 1:15, 1:11] = 300
    save(brain, tmp_path / "r_t1.nii.gz")
    found = evaluate(with_maps)
    assert found["brain_image"] == f"{tmp_path}/r_t1.nii.gz"
    assert found["regions"]["WT"]["uncertainty"] == expected_uncertainty("WT", brain > 0) != expected_uncertainty("WT")


def test_a_score_that_does_not_exist_is_null_in_json_and_absent_from_the_scores(
    with_maps: EvaluationTask, tmp_path: Path
) -> None:
    save(labels(tumour()), tmp_path / "p.nii")  # all voxels are right
    found = evaluate(with_maps)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["regions"]["TC"]["uncertainty"]["error_auroc"] is None
    assert list(scores_of(found)["TC"])[len(SCORES) :] == [
        f"uncertainty_{name}" for name in ("dice_auc", "ftp_auc", "ftn_auc", "score")
    ]


def test_maps_and_t1_images_that_cannot_be_used_are_refused_by_name(with_maps: EvaluationTask, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(CaseError) as caught:
            evaluate(with_maps)
        return str(caught.value)

    save(labels(tumour())[1:], tmp_path / "r_t1.nii.gz")
    assert refused().startswith(f"{tmp_path}/r_t1.nii.gz: T1 not on the grid of reference ({tmp_path}/r.nii.gz)")
    (tmp_path / "r_t1.nii.gz").unlink()
    path = tmp_path / "p_unc_core.nii.gz"
    save(uncertainty_map("TC"), path, shifted(1))
    assert refused().startswith(f"{path}: uncertainty map not on the grid of label map ({tmp_path}/p.nii)")
    save(np.full(SHAPE, 101, dtype=np.float32), path)
    assert refused().startswith(f"{path}: holds values from ")


def test_without_being_asked_for_no_map_is_read(with_maps: EvaluationTask, tmp_path: Path) -> None:
    for path in tmp_path.glob("*_unc_*"):
        path.write_bytes(b"")
    found = evaluate(replace(with_maps, uncertainty=False))
    assert not {"uncertainty_maps", "brain_image"} & found.keys()
    assert "uncertainty" not in found["regions"]["WT"]


# Statistics of many cases


def document(case: str, dice: float = 0.5, *, auroc: float | None = None, **of_regions: float) -> dict[str, Any]:
    """A case as `evaluate` gives it. dice: of every region and class that of_regions does not name."""

    def scores(name: str) -> dict[str, Any]:
        counts = {"true_positives": 1, "false_negatives": 0, "false_positives": 2}
        return {**dict.fromkeys(SCORES, 0.25), "dice": of_regions.get(name, dice), "voxels": 3, "lesions": counts}

    uncertainty = {"uncertainty": {"dice_auc": 0.9, "error_auroc": auroc}}
    return {
        "case": case,
        "convention": "lesionwise",
        "regions": {name: scores(name) | uncertainty for name in REGIONS},
        "classes": {name: scores(name) for name in CLASSES},
    }


def test_statistics_of_four_cases_worked_out_by_hand() -> None:
    found = statistics((0.9, 0.5, 0.7, 1.0), seed=0)
    assert [found.n, found.mean, found.median] == pytest.approx([4, 3.1 / 4, 0.8])
    # Squares of the distances from 0.775: 0.015625, 0.075625, 0.005625, 0.050625.
    assert found.sd == pytest.approx(math.sqrt(0.1475 / 3))
    # At the ranks 0.75 and 2.25 of 0.5, 0.7, 0.9, 1.0, counted from 0.
    assert [found.lower_quartile, found.upper_quartile] == pytest.approx([0.65, 0.925])


def test_statistics_of_few_cases() -> None:
    assert statistics([0.8], seed=0) == Statistics(1, 0.8, 0.0, 0.8, 0.8, 0.8, 0.8, 0.8)
    # The means 0, 0.5 and 1 of two cases' resamples come with 1/4, 1/2 and 1/4: both percentiles are at the ends.
    found = statistics([0.0, 1.0], seed=0)
    assert (found.low, found.high) == (0, 1)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(5).beta(8, 2, 60)
    found = statistics(values.tolist(), seed=0)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=10_000,
        confidence_level=0.95,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    # Two runs of 10,000 resamples: a 2.5th percentile has an error of 0.027 SD of the mean each; 5 of both together.
    tolerance = 5 * math.sqrt(2) * 0.027 * values.std() / math.sqrt(len(values))
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=tolerance)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert statistics(values, seed=4) == statistics(values, seed=4)
    one, other = statistics(values, seed=4), statistics(values, seed=5)
    assert (one.low, one.high) != (other.low, other.high)
    assert replace(one, low=0, high=0) == replace(other, low=0, high=0)


def test_a_score_is_summarised_over_the_cases_that_have_it() -> None:
    found = summarise([document("a", 0.4, ET=0.0, auroc=0.8), document("b", 0.6, ET=0.5), document("c", auroc=0.6)], seed=0)
    assert list(found) == list(REGIONS)
    assert list(found["TC"]) == [*SCORES, "uncertainty_dice_auc", "uncertainty_error_auroc"]
    assert found["WT"]["dice"] == statistics([0.4, 0.6, 0.5], seed=0)
    assert found["ET"]["dice"] == statistics([0.0, 0.5, 0.5], seed=0)
    assert found["WT"]["uncertainty_error_auroc"] == statistics([0.8, 0.6], seed=0)
    assert "uncertainty_error_auroc" not in summarise([document("b")], seed=0)["WT"]


def test_the_worst_cases_come_first_by_the_mean_of_regions_and_then_by_name() -> None:
    documents = [document("c", 0.9, NCR=0.0, ED=0.0), document("d", 0.9), document("b", 0.9, TC=0.6), document("a", 0.5)]
    assert [found["case"] for found in worst_cases(documents, 3)] == ["a", "b", "c"]
    assert len(worst_cases(documents, 9)) == 4


@plainly
@given(case=st.text("aé ,;\"'\n\t=+-", min_size=1), dice=st.floats(0, 1))
def test_names_and_numbers_come_back_from_the_table_as_they_were(case: str, dice: float) -> None:
    text = encode_csv([document(case, dice)]).decode(errors="surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {(row["case"], float(row["dice"])) for row in rows} == {(case, dice)}


def test_a_table_has_a_row_a_case_and_region_or_class_and_the_columns_of_the_json_objects() -> None:
    text = encode_csv([document("a"), document("caf\udce9", auroc=0.5)]).decode(errors="surrogateescape")
    assert text.endswith("\n")
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [*REGIONS, "NCR", "ED"]  # ET is both, and the same
    assert [(row["case"], row["region"]) for row in rows] == [(case, name) for case in ("a", "caf\udce9") for name in names]
    counts = {"lesions_true_positives": "1", "lesions_false_negatives": "0", "lesions_false_positives": "2"}
    uncertainty = {"uncertainty_dice_auc": "0.9", "uncertainty_error_auroc": "0.5"}
    first = {"case": "a", "convention": "lesionwise", "region": "WT"}
    scores = {**dict.fromkeys(SCORES, "0.25"), "dice": "0.5", "voxels": "3"}
    assert rows[0] == first | scores | counts | uncertainty | {"uncertainty_error_auroc": ""}
    assert (rows[5]["uncertainty_error_auroc"], rows[-1]["uncertainty_dice_auc"]) == ("0.5", "")


# Box plots. The points are read from matplotlib, and the colours from the picture itself.


MISSED_MM: Final = 373.12866
# Okabe and Ito's blue, orange and green, which `plots` gives to WT, TC and ET.
COLOURS: Final = {"WT": (0x00, 0x72, 0xB2), "TC": (0xE6, 0x9F, 0x00), "ET": (0x00, 0x9E, 0x73)}


def documents(n_cases: int, *, missed: int = 0) -> list[dict[str, Any]]:
    """missed: cases in which no ET was found. The first case has a perfect WT."""
    random = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    for n in range(n_cases):
        regions = {region: {"dice": random.uniform(0.5, 1), "hd95_mm": random.uniform(1, 9)} for region in REGIONS}
        if n < missed:
            regions["ET"] = {"dice": 0.0, "hd95_mm": MISSED_MM}
        cases.append({"case": f"case_{n}", "convention": "brats", "regions": regions})
    cases[0]["regions"]["WT"] = {"dice": 1.0, "hd95_mm": 0.0}
    return cases


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved while a test runs."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    seen: list[Any] = []
    plain_save = Figure.savefig

    def remember(figure: Any, *arguments: Any, **options: Any) -> None:
        seen.append(figure)
        plain_save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def values(drawn: Sequence[dict[str, Any]], score: str) -> list[list[float]]:
    return [sorted(document["regions"][region][score] for document in drawn) for region in REGIONS]


@pytest.mark.parametrize("n_cases", [1, 40])
def test_every_case_is_a_point_of_its_region_in_its_panel_and_nothing_is_cut_off(n_cases: int, figures: list[Any]) -> None:
    drawn = documents(n_cases, missed=n_cases // 2)
    content = box_plots(drawn)
    for axes, (score, label) in zip(figures[0].axes, {"dice": "Dice", "hd95_mm": "HD95 (mm)"}.items(), strict=True):
        points = [collection.get_offsets() for collection in axes.collections]
        np.testing.assert_allclose([sorted(float(y) for _, y in of_region) for of_region in points], values(drawn, score))
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert all(left < x < right and bottom < y < top for x, y in np.concatenate(points))  # half a point would be cut off
        assert axes.get_ylabel() == label
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list(REGIONS)
    words = "1 case" if n_cases == 1 else f"{n_cases} cases"
    assert figures[0].get_suptitle() == f"{words}, convention brats"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("PNG", (1200, 675))
        picture = np.asarray(image.convert("RGB")).astype(int)
    for colour in COLOURS.values():
        # 0.7 opaque on white, or nearer to the colour where points overlap; 5 pixels a case at the least.
        blended = [np.rint(255 + opacity * (np.array(colour) - 255)) for opacity in (0.7, 0.91)]
        seen = sum(np.count_nonzero(np.abs(picture - blend).max(axis=2) <= 3) for blend in blended)
        assert seen >= 2 * 5 * min(n_cases, 8)
    for border in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (border == 255).all()


def test_axes_are_the_same_for_any_cases_and_tell_small_distances_apart(figures: list[Any]) -> None:
    box_plots(documents(2))
    content = box_plots(documents(40, missed=40))
    assert box_plots(documents(40, missed=40)) == content
    for first, second in zip(*(figure.axes for figure in figures[:2]), strict=True):
        assert first.get_ylim() == second.get_ylim()
    axes = figures[1].axes[1]
    near, far = (axes.transData.transform((1, mm))[1] for mm in (1, 9))
    assert far - near > 0.1 * axes.get_window_extent().height


def test_a_matplotlib_that_is_there_and_broken_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('libpng16.so.16: cannot open')")
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libpng16\.so\.16"):
        check_plottable()
