"""The side of the brain that the tumour lies on."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.geometry import fit
from drunet_cli.segmentation.label_map import Midplane, Sides, midsagittal_plane, sides_of

SHAPE: Final = (96, 112, 60)  # axes L, P, S, of 2, 2 and 3 mm
SPACING: Final = np.array([2.0, 2.0, 3.0])
CENTRE_MM: Final = np.array([88.0, 118.0, 84.0])
HALF_AXES_MM: Final = np.array([66.0, 85.0, 60.0])
AFFINES: Final = {  # of the stored axes, from indices to RAS
    "LPS": np.diag([-2.0, -2.0, 3.0, 1.0]),
    "RAS": np.diag([2.0, 2.0, 3.0, 1.0]),
    "SRP": np.array([[0, 2.0, 0, 0], [0, 0, -2.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]]),
}


def _mid(yaw: float, roll: float) -> Midplane:
    normal = np.array([1.0, np.tan(np.radians(yaw)), np.tan(np.radians(roll))])
    normal /= np.linalg.norm(normal)
    return Midplane(normal, float(CENTRE_MM @ normal), 0.0)


def _brain(plane: Midplane) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """A brain [X, Y, Z] whose mirror is the plane, narrower in front; and how far each voxel lies to its left, in mm."""
    places = (np.moveaxis(np.indices(SHAPE), 0, -1) + 0.5) * SPACING - CENTRE_MM
    back = np.cross(np.cross(plane.normal, [0, 1.0, 0]), plane.normal)
    back /= np.linalg.norm(back)
    frame = np.stack([plane.normal, back, np.cross(plane.normal, back)], axis=1)
    left, behind, up = np.moveaxis(places @ frame, -1, 0)
    widths = HALF_AXES_MM[0] * (1 + 0.1 * behind / HALF_AXES_MM[1])
    return (left / widths) ** 2 + (behind / HALF_AXES_MM[1]) ** 2 + (up / HALF_AXES_MM[2]) ** 2 < 1, left


def _tumour(where: npt.NDArray[np.bool_]) -> ClassMap:
    return np.where(where, np.uint8(TumourClass.ED), np.uint8(TumourClass.BACKGROUND))


@pytest.mark.parametrize(("yaw", "roll"), [(0, 0), (9, -5), (-12, 8)])
def test_the_plane_is_found_in_a_head_that_lies_askew(yaw: float, roll: float) -> None:
    true = _mid(yaw, roll)
    brain, left = _brain(true)
    found = midsagittal_plane(brain, SPACING)
    assert found is not None
    places = (np.argwhere(brain) + 0.5) * SPACING
    assert np.abs(found.left_of(places) - left[brain]).max() < 1.5  # mm; a voxel of the coarse mask has 6


@pytest.mark.parametrize("axes", AFFINES)
@pytest.mark.parametrize(
    ("low", "high", "word", "left", "right"),
    [(20, 40, "left", 100, 0), (-40, 2, "right", 0, 83), (-40, 40, "both", 44, 44), (-3, 3, "middle", 0, 0)],
)
def test_shares_and_word_are_those_of_the_patient_in_every_orientation(
    low: float, high: float, word: str, left: float, right: float, axes: str
) -> None:
    turned, left_mm = _brain(_mid(6, 0))
    to_stored = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))
    brain = apply_orientation(turned, to_stored)
    class_map = apply_orientation(_tumour(turned & (left_mm > low) & (left_mm < high)), to_stored)
    sides = sides_of(class_map, brain, fit(brain, affine=AFFINES[axes]))
    assert sides is not None
    assert sides.word == word
    assert sides.left == pytest.approx(left, abs=2)
    assert sides.right == pytest.approx(right, abs=2)
    assert sides.left + sides.middle + sides.right == pytest.approx(100, abs=0.11)


def test_false_specks_make_no_tumour_bilateral() -> None:
    assert [Sides(98.1, 0, 1.9).word, Sides(98, 0, 2).word, Sides(1.9, 96.1, 2).word] == ["left", "both", "right"]


def test_nothing_is_said_of_a_brain_without_a_midline_or_without_a_tumour() -> None:
    brain, left_mm = _brain(_mid(0, 0))
    half = brain & (left_mm > -10)
    affine = AFFINES["LPS"]
    assert midsagittal_plane(np.zeros_like(brain), SPACING) is None
    assert sides_of(_tumour(half & (left_mm > 20)), half, fit(half, affine=affine)) is None
    assert sides_of(_tumour(np.zeros_like(brain)), brain, fit(brain, affine=affine)) is None
