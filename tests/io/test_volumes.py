"""Label maps as files hold them, of either convention and any type, to class indices."""

from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import Labels, ReadLabels, class_indices, label_values
from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import Volume, load_volume
from drunet_cli.io.volumes import class_map_of

INTEGERS: Final = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
FLOATS: Final = ["f2", "f4", "f8", "g"]
BIG_ENDIAN: Final = [">i2", ">i4", ">f4", ">f8"]
SHAPE: Final = (11, 7, 5)


def classes_in_a_corner(*indices: int) -> npt.NDArray[np.uint8]:
    """Class indices [I, J, K], background but for a box that does not touch every side."""
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[2:6, 1:7, 3:] = np.resize(indices, (4, 6, 2))
    return classes


def volume_of(voxels: npt.NDArray[Any]) -> Volume:
    return Volume(Path("seg.nii"), np.eye(4), nib.Nifti1Header(), voxels)


def refusal(voxels: npt.NDArray[Any]) -> str:
    with pytest.raises(CaseError) as caught:
        class_indices(voxels)
    return str(caught.value)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS + BIG_ENDIAN)
@pytest.mark.parametrize("labels", Labels)
def test_label_values_of_every_type_and_both_conventions_are_read(dtype: str, labels: Labels) -> None:
    classes = classes_in_a_corner(1, 2, 3, 0)
    read, convention = class_map_of(volume_of(label_values(classes, labels).astype(dtype)))
    assert convention is labels
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, classes)
    np.testing.assert_array_equal(class_indices(label_values(classes, labels).astype(dtype)), classes)


@pytest.mark.parametrize("indices", [(1,), (2,), (1, 2), (0,)])
def test_labels_without_enhancing_tumour_tell_no_convention(indices: tuple[int, ...]) -> None:
    classes = classes_in_a_corner(*indices)
    read, convention = class_map_of(volume_of(classes))
    assert convention is None
    np.testing.assert_array_equal(read, classes)


@pytest.mark.parametrize(("label", "labels"), [(4, Labels.BRATS2020), (3, Labels.BRATS2023)])
@pytest.mark.parametrize("place", [(0, 0, 0), (10, 6, 4), (5, 0, 4)])
def test_one_voxel_of_enhancing_tumour_tells_the_convention(label: int, labels: Labels, place: tuple[int, int, int]) -> None:
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[place] = label
    read, convention = class_map_of(volume_of(voxels))
    assert convention is labels
    assert read[place] == 3
    assert np.count_nonzero(read) == 1


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_labels_3_and_4_are_never_both_taken_for_enhancing_tumour(dtype: str) -> None:
    voxels = label_values(classes_in_a_corner(1, 2, 3), Labels.BRATS2020).astype(dtype)
    voxels[0, 0, 0] = 3
    assert refusal(voxels).startswith("holds labels 3 and 4; ")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("labels", Labels)
def test_the_fractions_that_the_published_script_writes_count_as_the_labels_they_are_near(dtype: str, labels: Labels) -> None:
    classes = classes_in_a_corner(1, 2, 3, 0)
    # (float)(value * slope) where the script's file has a slope: off by a few 1e-5, as 1.000015 and 2.00003.
    voxels = (label_values(classes, labels) * 1.000015).astype(dtype)
    read, convention = class_map_of(volume_of(voxels))
    assert convention is labels
    np.testing.assert_array_equal(read, classes)
    np.testing.assert_array_equal(class_indices(voxels - np.dtype(dtype).type(2e-5)), classes)


@pytest.mark.parametrize("fraction", [0.5, 1.0015, 2.998, -0.002, 4.002, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_other_fraction_is_refused(fraction: float, dtype: str) -> None:
    voxels = label_values(classes_in_a_corner(1, 2), Labels.BRATS2020).astype(dtype)
    voxels[10, 6, 4] = fraction
    assert refusal(voxels).startswith("holds fractions")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *(("i1", -1), ("i1", -128), ("i2", -1), ("i2", -256), ("i4", -65535), ("i8", -(2**63)), ("f4", -1), ("f8", -(2.0**40))),
        *(("u1", 5), ("u1", 255), ("i2", 5), ("i2", 256), ("i2", 257), ("u2", 65535), ("u4", 2**32 - 1), ("i8", 2**32 + 1)),
        *(("u8", 2**63 + 1), ("u8", 2**64 - 1), ("f2", 6), ("f4", 256), ("f4", 2.0**40), ("f8", 2.0**60)),
    ],
)
def test_negative_and_large_values_are_refused_and_named(dtype: str, value: float) -> None:
    voxels = np.zeros(SHAPE, dtype=dtype)
    voxels[3, 3, 3], voxels[0, 0, 0] = value, 1
    assert refusal(voxels) == f"holds label {int(value)}; a BraTS label map has 0, 1, 2 and 4 (or 3)"


def test_of_many_strange_values_the_first_few_are_named() -> None:
    voxels = np.arange(1000, dtype=np.int16)
    assert refusal(voxels) == "holds label 5, 6, 7, 8, 9 and 990 more; a BraTS label map has 0, 1, 2 and 4 (or 3)"


def test_an_absurd_value_is_named_in_few_words() -> None:
    assert len(refusal(np.array([0, 1, -1e308]))) < 200


@pytest.mark.parametrize("labels", Labels)
def test_memory_order_does_not_matter(labels: Labels) -> None:
    classes = classes_in_a_corner(1, 2, 3, 0, 2)
    voxels = label_values(classes, labels)
    turned = np.ascontiguousarray(voxels.transpose(1, 2, 0)).transpose(2, 0, 1)
    for stored in (
        np.asfortranarray(voxels),
        turned,
        np.ascontiguousarray(voxels[::-1])[::-1],
        np.repeat(voxels, 2, 1)[:, ::2],
    ):
        read, convention = class_map_of(volume_of(stored))
        assert convention is labels
        np.testing.assert_array_equal(read, classes)
        np.testing.assert_array_equal(class_indices(stored), classes)


def test_the_voxels_are_left_as_they_were() -> None:
    voxels = (classes_in_a_corner(1, 2) * 1.000015).astype(np.float32)
    before = voxels.copy()
    class_map_of(volume_of(voxels))
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize(("slope", "dtype"), [(1, np.uint8), (1.0000153, np.int16), (0.5, np.uint8)])
def test_a_label_map_in_a_file_is_read_with_its_scaling(
    labels: Labels, slope: float, dtype: npt.DTypeLike, tmp_path: Path
) -> None:
    classes = classes_in_a_corner(1, 2, 3, 0)
    stored = np.rint(label_values(classes, labels) / slope).astype(dtype)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path / "seg.nii.gz")
    read, convention = class_map_of(load_volume(tmp_path / "seg.nii.gz"))
    assert convention is labels
    np.testing.assert_array_equal(read, classes)


# What label values are taken for


@pytest.mark.parametrize(
    ("labels", "values", "indices"),
    [
        (ReadLabels.AUTO, (0, 1, 2, 4), (0, 1, 2, 3)),
        (ReadLabels.AUTO, (0, 1, 2, 3), (0, 1, 2, 3)),
        (ReadLabels.BRATS2020, (0, 1, 2, 4), (0, 1, 2, 3)),
        (ReadLabels.BRATS2023, (0, 1, 2, 3), (0, 1, 2, 3)),
        (ReadLabels.BRATS2024, (0, 1, 2, 3, 4), (0, 1, 2, 3, 0)),  # 4: resection cavity
        (ReadLabels.BRATS2024, (0, 4), (0, 0)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_label_values_mean_what_was_asked_for(
    labels: ReadLabels, values: tuple[int, ...], indices: tuple[int, ...], dtype: str
) -> None:
    found = class_indices(np.array(values, dtype=dtype), labels)
    assert found.dtype == np.uint8
    assert found.tolist() == list(indices)


@pytest.mark.parametrize(("labels", "value"), [(ReadLabels.BRATS2020, 3), (ReadLabels.BRATS2023, 4)])
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_label_that_the_named_convention_lacks_is_refused(labels: ReadLabels, value: int, dtype: str) -> None:
    with pytest.raises(CaseError) as caught:
        class_indices(np.array([0, 1, 2, value], dtype=dtype), labels)
    assert str(caught.value) == f"holds label {value}, which {labels} does not have"


@pytest.mark.parametrize("labels", ReadLabels)
@pytest.mark.parametrize("value", [-1, 5, 255])
def test_other_labels_are_refused_in_every_convention(labels: ReadLabels, value: int) -> None:
    with pytest.raises(CaseError, match=f"holds label {value}; "):
        class_indices(np.array([0, 1, value], dtype=np.int16), labels)


@pytest.mark.parametrize("labels", ReadLabels)
def test_an_empty_label_map_is_background_in_every_convention(labels: ReadLabels) -> None:
    for dtype in ("u1", "f8", "?"):
        read, convention = class_map_of(volume_of(np.zeros(SHAPE, dtype=dtype)), labels)
        assert (read.shape, read.dtype.name, convention) == (SHAPE, "uint8", None)
        assert not read.any()
    assert class_indices(np.zeros((0, 3), dtype=np.float32), labels).shape == (0, 3)


def test_a_resection_cavity_far_from_the_tumour_is_background() -> None:
    voxels = classes_in_a_corner(1, 2, 3)
    expected = voxels.copy()
    voxels[0, 0, 0] = voxels[10, 6, 0] = 4
    read, _ = class_map_of(volume_of(voxels), ReadLabels.BRATS2024)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("label", "labels", "words"),
    [
        (7, ReadLabels.AUTO, "holds label 7; a BraTS label map has 0, 1, 2 and 4 (or 3)"),
        (3, ReadLabels.BRATS2020, "holds label 3, which brats2020 does not have"),
    ],
)
def test_a_refusal_names_the_file(label: int, labels: ReadLabels, words: str) -> None:
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[10, 0, 0] = label  # far from all others
    with pytest.raises(CaseError) as caught:
        class_map_of(volume_of(voxels), labels)
    assert str(caught.value) == f"seg.nii: {words}"


def test_a_label_map_with_a_3_is_of_brats_2023_though_a_cavity_has_4() -> None:
    voxels = classes_in_a_corner(1, 2, 3)
    voxels[0, 0, 0] = 4
    assert class_map_of(volume_of(voxels), ReadLabels.BRATS2024)[1] is Labels.BRATS2023
