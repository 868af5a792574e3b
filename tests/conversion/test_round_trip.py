"""nii -> png -> nii of a label map is the identity, in the geometry of the reference."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import Labels, Modality
from drunet_cli.io.case import Case
from drunet_cli.io.volumes import read_images
from tests.conversion.small_cases import (
    BLANK,
    BRATS_AFFINE,
    PLAIN,
    SHAPE,
    Affine,
    Shape,
    Storage,
    brain_in,
    convert,
    convert_back,
    images_in,
    labels_in,
    mask_slice,
    saved_case,
    small_case,
)
from tests.io.test_geometry import ORIENTATIONS, stored_otherwise
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, open_image

# What places the voxels: sform, qform, zooms and units.
GEOMETRY_FIELDS: Final = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def rotated(axis: int, degrees: float = 10) -> Affine:
    """The BraTS grid, turned around one of R, A, S."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    one, other = (n for n in range(3) if n != axis)
    turn[one, one] = turn[other, other] = cosine
    turn[one, other], turn[other, one] = -sine, sine
    return np.asarray(turn @ BRATS_AFFINE)


def assert_comes_back(case: Case, tmp_path: Path, *, skip_blank: bool = False, suffix: str = ".nii") -> None:
    """Voxel for voxel, as uint8, and with every header field that places the voxels as FLAIR has it."""
    reference = case.images[Modality.FLAIR]
    convert(case, tmp_path / "out", skip_blank=skip_blank)
    result = convert_back(tmp_path / "out", reference, tmp_path / f"back{suffix}", case=case.name)
    assert [each for each in result.warnings if "lie outside the brain" not in each] == []  # some cases have such labels
    back, like, given = (open_image(path) for path in (tmp_path / f"back{suffix}", reference, case.segmentation or reference))
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(given.dataobj))
    assert type(back) is type(like)
    np.testing.assert_array_equal(back.affine, like.affine)
    np.testing.assert_array_equal(back.header.get_zooms(), like.header.get_zooms())
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(back.header[field], like.header[field], err_msg=field)


def case_with(
    tmp_path: Path,
    brain: npt.NDArray[np.bool_],
    *,
    affine: Affine = BRATS_AFFINE,
    storage: Storage = PLAIN,
    enhancing: int = 4,
) -> Case:
    labels = labels_in(brain, enhancing=enhancing)
    assert set(np.unique(labels)) == {0, 1, 2, enhancing}
    return saved_case(tmp_path, images_in(brain), labels, affine=affine, storage=storage)


def assert_comes_back_from(tmp_path: Path, shape: Shape, order: tuple[int, ...], backwards: tuple[bool, ...]) -> None:
    brain = brain_in(shape)
    images = {m: stored_otherwise(voxels, BRATS_AFFINE, order, backwards)[0] for m, voxels in images_in(brain).items()}
    labels, affine = stored_otherwise(labels_in(brain), BRATS_AFFINE, order, backwards)
    assert_comes_back(saved_case(tmp_path, images, labels, affine=affine), tmp_path)


@pytest.mark.parametrize(("order", "backwards"), ORIENTATIONS)
def test_a_label_map_comes_back_in_all_48_orientations(
    tmp_path: Path, order: tuple[int, ...], backwards: tuple[bool, ...]
) -> None:
    assert_comes_back_from(tmp_path, SHAPE, order, backwards)


@pytest.mark.parametrize(
    ("shape", "orientation"), [((251, 22, 4), 9), ((251, 22, 4), 30), ((21, 246, 4), 21), ((240, 23, 4), 35)]
)
def test_a_cropped_or_odd_label_map_comes_back_from_other_orientations(tmp_path: Path, shape: Shape, orientation: int) -> None:
    assert_comes_back_from(tmp_path, shape, *ORIENTATIONS[orientation])


@pytest.mark.parametrize(
    ("shape", "at"),
    [
        ((240, 240, 3), (0.0, 0.0)),
        ((240, 21, 3), (0.1, 0.9)),
        ((21, 240, 3), (0.5, 0.5)),
        ((241, 239, 3), (0.1, 0.9)),
        ((239, 241, 3), (0.0, 0.0)),
        ((300, 250, 3), (0.5, 0.5)),
        ((300, 250, 3), (0.1, 0.9)),
    ],
)
def test_a_label_map_of_any_size_comes_back(tmp_path: Path, shape: Shape, at: tuple[float, float]) -> None:
    assert_comes_back(case_with(tmp_path, brain_in(shape, at=at, radius=15)), tmp_path)


@pytest.mark.parametrize(("axis", "forms"), [(0, (1, 1)), (1, (1, 0)), (2, (0, 1)), (0, (4, 2))])
def test_a_label_map_of_an_oblique_volume_comes_back(tmp_path: Path, axis: int, forms: tuple[int, int]) -> None:
    assert_comes_back(case_with(tmp_path, brain_in(), affine=rotated(axis), storage=Storage(forms=forms)), tmp_path)


@pytest.mark.parametrize("storage", [Storage(".nii.gz", nib.Nifti1Image, ">"), Storage(".nii", nib.Nifti2Image, "<")], ids=str)
def test_a_label_map_comes_back_from_other_kinds_of_files(tmp_path: Path, storage: Storage) -> None:
    assert_comes_back(case_with(tmp_path, brain_in(), storage=storage), tmp_path, suffix=storage.suffix)


def test_a_label_map_without_orientation_comes_back(tmp_path: Path) -> None:
    # nibabel takes such a header for axes L, A, S with the origin in the middle: the codes 0 must stay.
    assert_comes_back(case_with(tmp_path, brain_in(), storage=Storage(forms=(0, 0))), tmp_path)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_label_map_of_any_type_comes_back_as_bytes(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    brain = brain_in()
    assert_comes_back(saved_case(tmp_path, images_in(brain), labels_in(brain).astype(dtype)), tmp_path)


@pytest.mark.parametrize(("labels", "value"), [(Labels.BRATS2020, 4), (Labels.BRATS2023, 3), (None, 0)])
@pytest.mark.parametrize("enhancing", [3, 4])
def test_enhancing_tumour_gets_the_value_that_was_asked_for_or_that_it_had(
    tmp_path: Path, enhancing: int, labels: Labels | None, value: int
) -> None:
    value = value or enhancing
    case = case_with(tmp_path, brain_in(), enhancing=enhancing)
    convert(case, tmp_path / "out")
    output = tmp_path / "back.nii"
    result = convert_back(tmp_path / "out", case.images[Modality.FLAIR], output, labels=labels)
    assert result.document["labels"]["values"]["ET"] == value
    np.testing.assert_array_equal(np.asarray(open_image(output).dataobj), labels_in(brain_in(), enhancing=value))


def test_a_label_map_comes_back_without_its_blank_slices(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert_comes_back(case, tmp_path, skip_blank=True)
    assert not any(mask_slice(tmp_path / "out", z).exists() for z in BLANK)


def test_labels_outside_the_brain_and_in_blank_slices_come_back(tmp_path: Path) -> None:
    labels = labels_in(np.ones(SHAPE, dtype=bool))
    labels[..., BLANK[0]] = 0
    assert_comes_back(saved_case(tmp_path, images_in(brain_in()), labels), tmp_path, skip_blank=True)


def test_an_empty_label_map_comes_back(tmp_path: Path) -> None:
    case = saved_case(tmp_path, images_in(brain_in()), np.zeros(SHAPE, dtype=np.uint8))
    assert_comes_back(case, tmp_path, skip_blank=True)


def test_the_golden_label_map_comes_back(tmp_path: Path) -> None:
    assert_comes_back(Case("golden", GOLDEN_IMAGES, GOLDEN_LABELS), tmp_path, suffix=".nii.gz")


@pytest.mark.parametrize("affine", [BRATS_AFFINE, rotated(0), rotated(2, 100)])
def test_the_description_gives_the_geometry_that_the_images_have(tmp_path: Path, affine: Affine) -> None:
    case = case_with(tmp_path, brain_in(), affine=affine)
    geometry = convert(case, tmp_path / "out").description.geometry()
    expected = read_images(case).geometry
    np.testing.assert_array_equal(geometry.orientation, expected.orientation)
    assert replace(geometry, orientation=expected.orientation) == expected
