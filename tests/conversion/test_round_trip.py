"""nii -> png -> nii of a label map is the identity, in the geometry of the reference."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
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


def case_with(
    tmp_path: Path,
    brain: npt.NDArray[np.bool_] | None = None,
    *,
    affine: Affine = BRATS_AFFINE,
    storage: Storage = PLAIN,
    enhancing: int = 4,
    dtype: npt.DTypeLike = np.uint8,
) -> Case:
    brain = brain_in() if brain is None else brain
    labels = labels_in(brain, enhancing=enhancing).astype(dtype)
    assert set(np.unique(labels)) == {0, 1, 2, enhancing}
    return saved_case(tmp_path, images_in(brain), labels, affine=affine, storage=storage)


def turned_case(tmp_path: Path, orientation: int, shape: Shape = SHAPE) -> Case:
    order, backwards = ORIENTATIONS[orientation]
    brain = brain_in(shape)
    images = {m: stored_otherwise(voxels, BRATS_AFFINE, order, backwards)[0] for m, voxels in images_in(brain).items()}
    labels, affine = stored_otherwise(labels_in(brain), BRATS_AFFINE, order, backwards)
    return saved_case(tmp_path, images, labels, affine=affine)


def labelled_outside_the_brain(tmp_path: Path) -> Case:
    """And in one of the two slices that show no brain."""
    labels = labels_in(np.ones(SHAPE, dtype=bool))
    labels[..., BLANK[0]] = 0
    return saved_case(tmp_path, images_in(brain_in()), labels)


# What makes the case.
CASES: Final[dict[str, Callable[[Path], Case]]] = {
    **{f"orientation {n}": partial(turned_case, orientation=n) for n in range(48)},
    # Cropped, or of odd size, in other orientations.
    **{
        f"{shape} in orientation {n}": partial(turned_case, orientation=n, shape=shape)
        for shape, n in [((251, 22, 4), 9), ((251, 22, 4), 30), ((21, 246, 4), 21), ((240, 23, 4), 35)]
    },
    **{
        f"{shape} with its brain at {at}": partial(case_with, brain=brain_in(shape, at=at, radius=15))
        for shape, at in [
            ((240, 240, 3), (0.0, 0.0)),
            ((240, 21, 3), (0.1, 0.9)),
            ((21, 240, 3), (0.5, 0.5)),
            ((241, 239, 3), (0.1, 0.9)),
            ((239, 241, 3), (0.0, 0.0)),
            ((300, 250, 3), (0.5, 0.5)),
            ((300, 250, 3), (0.1, 0.9)),
        ]
    },
    **{
        f"oblique about axis {axis}, forms {forms}": partial(case_with, affine=rotated(axis), storage=Storage(forms=forms))
        for axis, forms in [(0, (1, 1)), (1, (1, 0)), (2, (0, 1)), (0, (4, 2))]
    },
    "big-endian, compressed": partial(case_with, storage=Storage(".nii.gz", nib.Nifti1Image, ">")),
    "NIfTI-2": partial(case_with, storage=Storage(".nii", nib.Nifti2Image, "<")),
    # nibabel takes such a header for axes L, A, S with the origin in the middle: the codes 0 must stay.
    "without orientation": partial(case_with, storage=Storage(forms=(0, 0))),
    "labels of int16": partial(case_with, dtype=np.int16),
    "labels of float64": partial(case_with, dtype=np.float64),
    "with blank slices": case_with,
    "labelled outside the brain": labelled_outside_the_brain,
    "empty": lambda folder: saved_case(folder, images_in(brain_in()), np.zeros(SHAPE, dtype=np.uint8)),
    "golden": lambda _: Case("golden", GOLDEN_IMAGES, GOLDEN_LABELS),
}
# The slices that are left out of the folder, of the cases that are converted without blank slices.
LEFT_OUT: Final = {"with blank slices": BLANK, "labelled outside the brain": BLANK[:1], "empty": BLANK}


@pytest.mark.parametrize("name", CASES)
def test_a_label_map_comes_back_in_the_geometry_of_flair(name: str, tmp_path: Path) -> None:
    """Voxel for voxel, as uint8, and with every header field that places the voxels as FLAIR has it."""
    case = CASES[name](tmp_path)
    reference = case.images[Modality.FLAIR]
    output = tmp_path / f"back{''.join(reference.suffixes)}"
    convert(case, tmp_path / "out", skip_blank=name in LEFT_OUT)
    assert not any(mask_slice(tmp_path / "out", z).exists() for z in LEFT_OUT.get(name, ()))
    result = convert_back(tmp_path / "out", reference, output, case=case.name)
    assert [each for each in result.warnings if "lie outside the brain" not in each] == []  # some cases have such labels
    back, like, given = (open_image(path) for path in (output, reference, case.segmentation or reference))
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(given.dataobj))
    assert type(back) is type(like)
    np.testing.assert_array_equal(back.affine, like.affine)
    np.testing.assert_array_equal(back.header.get_zooms(), like.header.get_zooms())
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(back.header[field], like.header[field], err_msg=field)


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


@pytest.mark.parametrize("affine", [BRATS_AFFINE, rotated(0), rotated(2, 100)])
def test_the_description_gives_the_geometry_that_the_images_have(tmp_path: Path, affine: Affine) -> None:
    case = case_with(tmp_path, brain_in(), affine=affine)
    geometry = convert(case, tmp_path / "out").description.geometry()
    expected = read_images(case).geometry
    np.testing.assert_array_equal(geometry.orientation, expected.orientation)
    assert replace(geometry, orientation=expected.orientation) == expected
