"""Label maps as files hold them, of either convention and any type, to class indices on their grid.

Which value is which class is tried in tests/test_brats.py.
"""

from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import Labels, ReadLabels, label_values
from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import Volume, load_volume
from drunet_cli.io.volumes import class_map_of

SHAPE: Final = (11, 7, 5)


def classes_in_a_corner(*indices: int) -> npt.NDArray[np.uint8]:
    """Class indices [I, J, K], background but for a box that does not touch every side."""
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[2:6, 1:7, 3:] = np.resize(indices, (4, 6, 2))
    return classes


def volume_of(voxels: npt.NDArray[Any]) -> Volume:
    return Volume(Path("seg.nii"), np.eye(4), nib.Nifti1Header(), voxels)


@pytest.mark.parametrize(("labels", "dtype"), [(Labels.BRATS2020, ">i2"), (Labels.BRATS2023, "f8")])
def test_label_values_of_both_conventions_are_read_and_left_as_they_are(labels: Labels, dtype: str) -> None:
    classes = classes_in_a_corner(1, 2, 3, 0)
    voxels = label_values(classes, labels).astype(dtype)
    before = voxels.copy()
    read, convention = class_map_of(volume_of(voxels))
    assert convention is labels
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, classes)
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize("indices", [(1,), (2,), (1, 2), (0,)])
def test_labels_without_enhancing_tumour_tell_no_convention(indices: tuple[int, ...]) -> None:
    classes = classes_in_a_corner(*indices)
    read, convention = class_map_of(volume_of(classes))
    assert convention is None
    np.testing.assert_array_equal(read, classes)


@pytest.mark.parametrize(
    ("label", "labels", "place"),
    [
        (4, Labels.BRATS2020, (0, 0, 0)),
        (3, Labels.BRATS2023, (10, 6, 4)),
        (4, Labels.BRATS2020, (5, 0, 4)),
    ],
)
def test_one_voxel_of_enhancing_tumour_tells_the_convention(label: int, labels: Labels, place: tuple[int, int, int]) -> None:
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[place] = label
    read, convention = class_map_of(volume_of(voxels))
    assert convention is labels
    assert read[place] == 3
    assert np.count_nonzero(read) == 1


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


@pytest.mark.parametrize("labels", ReadLabels)
def test_an_empty_label_map_is_background_in_every_convention(labels: ReadLabels) -> None:
    for dtype in ("u1", "f8", "?"):
        read, convention = class_map_of(volume_of(np.zeros(SHAPE, dtype=dtype)), labels)
        assert (read.shape, read.dtype.name, convention) == (SHAPE, "uint8", None)
        assert not read.any()


def test_a_resection_cavity_is_background_however_far_from_the_tumour_and_tells_no_convention() -> None:
    voxels = classes_in_a_corner(1, 2, 3)
    expected = voxels.copy()
    voxels[0, 0, 0] = voxels[10, 6, 0] = 4
    read, convention = class_map_of(volume_of(voxels), ReadLabels.BRATS2024)
    assert convention is Labels.BRATS2023
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
