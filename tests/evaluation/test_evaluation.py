"""Two files to the scores of a case: labels of either convention, grids, orientations, volumes, and files that are no good."""

import itertools
import json
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ReadLabels
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.evaluate import Convention, EvaluationTask, evaluate
from drunet_cli.evaluation.pairs import Pair

SHAPE: Final = (20, 16, 12)
LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
REGIONS: Final = ["WT", "TC", "ET"]
CLASSES: Final = ["NCR", "ED", "ET"]
AXCODES: Final = [
    "".join(pair[backwards] for pair, backwards in zip(order, ends, strict=True))
    for order in itertools.permutations(("LR", "PA", "IS"))
    for ends in itertools.product((0, 1), repeat=3)
]


def tumour(*, enhancing: int = 4, start: int = 3) -> npt.NDArray[np.int16]:
    """Along I: 4 planes of oedema, 3 of enhancing tumour, 2 of necrosis, each of 6 x 5 voxels."""
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[start : start + 4, 4:10, 3:8] = 2
    voxels[start + 4 : start + 7, 4:10, 3:8] = enhancing
    voxels[start + 7 : start + 9, 4:10, 3:8] = 1
    return voxels


def scored(
    tmp_path: Path,
    prediction: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    *,
    labels: ReadLabels = ReadLabels.AUTO,
    convention: Convention = Convention.BRATS,
    tolerance_mm: float = 1.0,
    affine: npt.NDArray[np.float64] = LPS,
    affine_of_reference: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    nib.save(nib.Nifti1Image(prediction, affine), tmp_path / "p.nii")
    nib.save(nib.Nifti1Image(reference, affine if affine_of_reference is None else affine_of_reference), tmp_path / "r.nii.gz")
    return of_files(tmp_path, labels=labels, convention=convention, tolerance_mm=tolerance_mm)


def of_files(
    folder: Path,
    *,
    labels: ReadLabels = ReadLabels.AUTO,
    convention: Convention = Convention.BRATS,
    tolerance_mm: float = 1.0,
) -> dict[str, Any]:
    pair = Pair("case", folder / "p.nii", folder / "r.nii.gz")
    return evaluate(EvaluationTask(pair=pair, convention=convention, labels=labels, tolerance_mm=tolerance_mm))


def refusal(tmp_path: Path, *voxels: npt.NDArray[Any], **options: Any) -> CaseError:
    with pytest.raises(CaseError) as caught:
        scored(tmp_path, *voxels, **options)
    return caught.value


def dice(document: dict[str, Any]) -> list[float]:
    return [document["regions"][region]["dice"] for region in REGIONS]


# --- the object of a case


def test_a_case_states_what_was_compared_and_how(tmp_path: Path) -> None:
    found = scored(
        tmp_path, tumour(), tumour(), labels=ReadLabels.BRATS2020, convention=Convention.LESIONWISE, tolerance_mm=2.5
    )
    assert {name: value for name, value in found.items() if name not in ("regions", "classes")} == {
        "case": "case",
        "convention": "lesionwise",
        "labels": "brats2020",
        "tolerance_mm": 2.5,
        "prediction": str(tmp_path / "p.nii"),
        "reference": str(tmp_path / "r.nii.gz"),
    }
    assert (list(found["regions"]), list(found["classes"])) == (REGIONS, CLASSES)


@pytest.mark.parametrize("convention", Convention)
def test_a_case_goes_through_json_unchanged(convention: Convention, tmp_path: Path) -> None:
    found = scored(tmp_path, tumour(), tumour(start=4), convention=convention)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_lesions_are_counted_by_the_lesionwise_convention_alone(tmp_path: Path) -> None:
    by_convention = {name: scored(tmp_path, tumour(), tumour(), convention=name)["regions"]["WT"] for name in Convention}
    assert "lesions" not in by_convention[Convention.BRATS]
    assert by_convention[Convention.LESIONWISE]["lesions"] == {
        "true_positives": 1,
        "false_negatives": 0,
        "false_positives": 0,
    }


def test_the_first_file_is_the_prediction(tmp_path: Path) -> None:
    smaller = np.where(tumour() == 2, 2, 0).astype(np.int16)
    found = scored(tmp_path, smaller, tumour())["regions"]["WT"]
    assert (found["voxels"], found["reference_voxels"]) == (120, 270)
    assert (found["sensitivity"], found["precision"]) == (120 / 270, 1)
    assert found["volume_error_ml"] == -0.15


def test_et_is_the_same_as_region_and_as_class(tmp_path: Path) -> None:
    found = scored(tmp_path, tumour(), tumour(start=4))
    assert found["regions"]["ET"] == found["classes"]["ET"]


def test_two_empty_label_maps_agree(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, dtype=np.int16)
    assert dice(scored(tmp_path, empty, empty)) == [1, 1, 1]


def test_a_missed_tumour_scores_with_the_constants_of_brats(tmp_path: Path) -> None:
    found = scored(tmp_path, np.zeros(SHAPE, dtype=np.int16), tumour())
    assert {(scores["dice"], scores["hd95_mm"]) for scores in found["regions"].values()} == {(0, 373.12866)}


# --- what label values mean


@pytest.mark.parametrize("of_prediction", [3, 4])
@pytest.mark.parametrize("of_reference", [3, 4])
def test_either_value_of_enhancing_tumour_is_read_on_either_side(of_prediction: int, of_reference: int, tmp_path: Path) -> None:
    assert dice(scored(tmp_path, tumour(enhancing=of_prediction), tumour(enhancing=of_reference))) == [1, 1, 1]


@pytest.mark.parametrize("side", ["p.nii", "r.nii.gz"])
def test_a_file_with_labels_3_and_4_is_refused_by_name(side: str, tmp_path: Path) -> None:
    mixed = tumour()
    mixed[0, 0, 0] = 3
    pair = (mixed, tumour()) if side == "p.nii" else (tumour(), mixed)
    assert str(refusal(tmp_path, *pair)).startswith(f"{tmp_path / side}: holds labels 3 and 4; ")


def test_label_4_of_brats_2024_is_no_tumour(tmp_path: Path) -> None:
    reference = tumour(enhancing=3)
    prediction = reference.copy()
    prediction[0:2, :4, :4] = 4
    found = scored(tmp_path, prediction, reference, labels=ReadLabels.BRATS2024)
    assert dice(found) == [1, 1, 1]
    assert found["regions"]["WT"]["voxels"] == 270


@pytest.mark.parametrize(("labels", "enhancing"), [(ReadLabels.BRATS2020, 3), (ReadLabels.BRATS2023, 4)])
def test_labels_of_another_convention_than_asked_for_are_refused(labels: ReadLabels, enhancing: int, tmp_path: Path) -> None:
    error = refusal(tmp_path, tumour(enhancing=7 - enhancing), tumour(enhancing=enhancing), labels=labels)
    assert str(error) == f"{tmp_path / 'r.nii.gz'}: holds label {enhancing}, which {labels} does not have"


def test_an_image_in_place_of_a_label_map_is_refused(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    assert "p.nii: holds label " in str(refusal(tmp_path, image, tumour()))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_label_maps_of_any_type_are_read(dtype: str, tmp_path: Path) -> None:
    assert dice(scored(tmp_path, tumour().astype(dtype), tumour())) == [1, 1, 1]


# --- grids


@pytest.mark.parametrize("axcodes", AXCODES)
def test_scores_do_not_depend_on_how_the_axes_are_stored(axcodes: str, tmp_path: Path) -> None:
    affine = np.diag([-1.0, -2.0, 0.5, 1.0])
    expected = scored(tmp_path, tumour(), tumour(start=5), affine=affine)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    for name, voxels in (("p.nii", tumour()), ("r.nii.gz", tumour(start=5))):
        nib.Nifti1Image(voxels, affine).as_reoriented(turn).to_filename(tmp_path / name)
    found = of_files(tmp_path)
    for group in ("regions", "classes"):
        for name, scores in expected[group].items():
            assert found[group][name] == pytest.approx(scores)


def test_distances_and_volumes_are_those_of_the_spacing_in_the_file(tmp_path: Path) -> None:
    prediction, reference = np.zeros((2, *SHAPE), dtype=np.int16)
    prediction[4, 5, 5] = reference[8, 5, 5] = 1
    found = scored(tmp_path, prediction, reference, affine=np.diag([1.5, 2.0, 4.0, 1.0]))["regions"]["TC"]
    assert found["hd95_mm"] == pytest.approx(6)
    assert (found["volume_ml"], found["reference_volume_ml"], found["volume_error_ml"]) == (0.012, 0.012, 0)


@pytest.mark.parametrize(("tolerance_mm", "score"), [(2.9, 0.0), (4.0, 1.0)])
def test_surface_dice_is_taken_at_the_tolerance_asked_for(tolerance_mm: float, score: float, tmp_path: Path) -> None:
    prediction, reference = np.zeros((2, *SHAPE), dtype=np.int16)
    prediction[4, 5, 5] = reference[8, 5, 5] = 1  # corners 3 to 4 mm from the nearest of the other
    found = scored(tmp_path, prediction, reference, tolerance_mm=tolerance_mm)
    assert found["regions"]["TC"]["surface_dice"] == pytest.approx(score)


def test_an_oblique_grid_has_the_spacing_of_its_columns(tmp_path: Path) -> None:
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = 2 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    prediction, reference = np.zeros((2, *SHAPE), dtype=np.int16)
    prediction[4, 5, 5] = reference[8, 5, 5] = 1
    assert scored(tmp_path, prediction, reference, affine=affine)["regions"]["TC"]["hd95_mm"] == pytest.approx(8, rel=1e-6)


def test_volumes_are_rounded_to_a_cubic_millimetre(tmp_path: Path) -> None:
    found = scored(tmp_path, tumour(), tumour(), affine=np.diag([0.7, 0.7, 0.7, 1.0]))["regions"]["WT"]
    assert found["volume_ml"] == 0.093  # 270 * 0.343 = 92.61 mm3


def shifted(mm: float) -> npt.NDArray[np.float64]:
    affine = LPS.copy()
    affine[0, 3] = mm
    return affine


def test_a_shifted_grid_is_refused_with_both_origins(tmp_path: Path) -> None:
    error = refusal(tmp_path, tumour(), tumour(), affine=shifted(5), affine_of_reference=shifted(0))
    assert str(error).startswith(f"{tmp_path / 'p.nii'}: ")
    assert f"not on the grid of reference ({tmp_path / 'r.nii.gz'})" in str(error)
    _, first, second = error.details
    assert "5, 0, 0" in first
    assert "0, 0, 0" in second


def test_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    _, first, second = refusal(tmp_path, tumour()[:-1], tumour()).details
    assert "19 x 16 x 12" in first
    assert "20 x 16 x 12" in second


def test_another_spacing_is_refused_with_both_spacings(tmp_path: Path) -> None:
    error = refusal(tmp_path, tumour(), tumour(), affine_of_reference=np.diag([-1.0, -1.0, 1.2, 1.0]))
    _, first, second = error.details
    assert "1 x 1 x 1 " in first
    assert "1 x 1 x 1.2 " in second


def test_axes_that_run_the_other_way_are_refused_with_both_axes(tmp_path: Path) -> None:
    _, first, second = refusal(tmp_path, tumour(), tumour(), affine_of_reference=np.eye(4)).details
    assert "(-1, 0, 0) (0, -1, 0) (0, 0, 1)" in first
    assert "(1, 0, 0) (0, 1, 0) (0, 0, 1)" in second


def test_grids_within_a_thousandth_of_a_millimetre_are_one(tmp_path: Path) -> None:
    assert dice(scored(tmp_path, tumour(), tumour(), affine=shifted(0.0009), affine_of_reference=shifted(0))) == [1, 1, 1]


# --- files that are no good


@pytest.mark.parametrize("name", ["p.nii", "r.nii.gz"])
def test_an_absent_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    scored(tmp_path, tumour(), tumour())
    (tmp_path / name).unlink()
    with pytest.raises(CaseError, match=f"{name}: cannot be read: No such file or directory"):
        of_files(tmp_path)


@pytest.mark.parametrize("name", ["p.nii", "r.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "cut short"])
def test_a_damaged_file_is_refused_by_name(name: str, content: bytes | None, tmp_path: Path) -> None:
    scored(tmp_path, tumour(), tumour())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3] if content is None else content)
    with pytest.raises(CaseError) as caught:
        of_files(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_volume_that_is_a_little_too_small_is_not_minus_nothing(tmp_path: Path) -> None:
    smaller = tumour()
    smaller[3, 4, 3] = 0
    fine = np.diag([-0.2, -0.2, 0.2, 1.0])
    error = scored(tmp_path, smaller, tumour(), affine=fine)["regions"]["WT"]["volume_error_ml"]
    assert json.dumps(error) == "0.0"
