"""What stops a case before the work, and what is said about one that goes on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.checks import (
    CaseWarning,
    WarningCode,
    brain_mask,
    case_warnings,
    check_volumes,
    voxel_litres,
)
from drunet_cli.io.geometry import fit
from drunet_cli.io.intensities import mend_rounded_zero, without_ringing
from drunet_cli.io.nifti import Volume, load_volume

SHAPE: Final = (60, 64, 20)
LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume_of(modality: Modality, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64] = LPS, *, codes: int = 1) -> Volume:
    header = nib.Nifti1Header()
    header.set_sform(affine, codes)
    header.set_qform(affine, codes)
    return Volume(Path(f"a_{modality}.nii.gz"), affine, header, voxels)


def brain_voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.int16]:
    """An ellipsoid in the middle, two thirds as wide as the volume, of random intensities; 0 around it."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < (2 / 3) ** 2
    voxels = np.random.default_rng(seed).integers(100, 1000, shape) * inside
    return voxels.astype(np.int16)


def case(affine: npt.NDArray[np.float64] = LPS, shape: tuple[int, ...] = SHAPE, *, codes: int = 1) -> dict[Modality, Volume]:
    """Four images with which nothing is wrong."""
    return {
        modality: volume_of(modality, brain_voxels(seed, shape), affine, codes=codes) for seed, modality in enumerate(CHANNELS)
    }


def complaint(volumes: Mapping[Modality, Volume]) -> CaseError:
    with pytest.raises(CaseError) as caught:
        check_volumes(volumes)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def changed(modality: Modality, *, dtype: npt.DTypeLike = np.float64) -> tuple[dict[Modality, Volume], npt.NDArray[Any]]:
    """A good case, and the voxels of one of its images to spoil."""
    volumes = case()
    voxels = volumes[modality].voxels.astype(dtype)
    volumes[modality] = volume_of(modality, voxels)
    return volumes, voxels


def warnings_of(volumes: Mapping[Modality, Volume]) -> list[CaseWarning]:
    brain, flair = brain_mask(volumes), volumes[Modality.FLAIR]
    return case_warnings(volumes, fit(brain, affine=flair.affine))


def codes_of(volumes: Mapping[Modality, Volume]) -> list[WarningCode]:
    return [warning.code for warning in warnings_of(volumes)]


def test_an_ordinary_case_passes_without_a_warning() -> None:
    volumes = case()
    check_volumes(volumes)
    assert warnings_of(volumes) == []


def test_a_case_on_the_brats_grid_passes_without_a_warning() -> None:
    affine = LPS.copy()
    affine[1, 3] = 239
    volumes = case(affine, (240, 240, 20))
    check_volumes(volumes)
    assert warnings_of(volumes) == []


# --- grids


@pytest.mark.parametrize("modality", [Modality.T1CE, Modality.T1, Modality.T2])
def test_another_shape_than_flairs_is_refused(modality: Modality) -> None:
    volumes = case()
    volumes[modality] = volume_of(modality, brain_voxels(9, (60, 64, 21)))
    error = complaint(volumes)
    assert str(error).startswith(f"a_{modality}.nii.gz: {modality.display} not on the grid of FLAIR (a_flair.nii.gz)")


def test_what_differs_is_shown_in_a_table() -> None:
    volumes = case()
    shifted = LPS.copy()
    shifted[:3, 3] = [1.5, 0, -7]
    volumes[Modality.T1] = volume_of(Modality.T1, volumes[Modality.T1].voxels, shifted)
    volumes[Modality.T2] = volume_of(Modality.T2, brain_voxels(9, (30, 64, 20)), LPS @ np.diag([2.0, 1, 1, 1]))
    head, flair, t1, t2 = complaint(volumes).details
    assert head.split("  ")[-1].strip() == "axes"
    assert [row.split()[0] for row in (flair, t1, t2)] == ["FLAIR", "T1", "T2"]
    assert "60 x 64 x 20" in flair
    assert "1.5, 0, -7" in t1
    assert "30 x 64 x 20" in t2
    assert "2 x 1 x 1" in t2
    assert {row.index("60 x 64") for row in (flair, t1)} == {head.index("shape")}


ONE_GRID, A_NOTE, ANOTHER = "one grid", "a note", "another"


def outcome(volumes: Mapping[Modality, Volume]) -> str:
    try:
        check_volumes(volumes)
    except CaseError:
        return ANOTHER
    return A_NOTE if WarningCode.GRIDS_ROUNDED in codes_of(volumes) else ONE_GRID


# geometry.py: a tenth of a voxel; a thousandth is rounding. The last of 60 voxels lies 59 steps from the first.
@pytest.mark.parametrize(("share", "expected"), [(0.9e-3, ONE_GRID), (1.1e-3, A_NOTE), (0.09, A_NOTE), (0.11, ANOTHER)])
@pytest.mark.parametrize(("size_mm", "where"), [(0.5, (0, 3)), (1.0, (2, 3)), (2.0, (2, 0))])
def test_grids_are_compared_by_shares_of_a_voxel_at_the_farthest_corner(
    where: tuple[int, int], size_mm: float, share: float, expected: str
) -> None:
    affine = LPS @ np.diag([size_mm, size_mm, size_mm, 1])
    moved = affine.copy()
    moved[where] += share * size_mm / (59 if where == (2, 0) else 1)
    volumes = case(affine)
    volumes[Modality.T2] = volume_of(Modality.T2, volumes[Modality.T2].voxels, moved)
    assert outcome(volumes) == expected


def test_a_refusal_says_how_far_corners_are_apart_in_digits_that_differ() -> None:
    volumes = case(shape=(240, 64, 20))
    affine = LPS.copy()
    affine[0, 0] *= 1.0005
    volumes[Modality.T1] = volume_of(Modality.T1, volumes[Modality.T1].voxels, affine)
    error = complaint(volumes)
    assert "T1 not on the grid of FLAIR (a_flair.nii.gz): corners up to 0.119 mm apart; " in str(error)
    assert "1.0005 x 1 x 1" in error.details[2]


def test_the_same_place_stored_in_another_orientation_is_not_the_same_grid() -> None:
    affine = np.diag([1.0, -1.0, 1.0, 1.0])
    affine[0, 3] = -59
    volumes = case()
    volumes[Modality.T1] = volume_of(Modality.T1, volumes[Modality.T1].voxels[::-1], affine)
    assert "(1, 0, 0)" in "".join(complaint(volumes).details)


# --- voxels


def with_nan(voxels: npt.NDArray[np.float64]) -> None:
    voxels[0, 0, :7] = np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan, np.nan


def one_value(voxels: npt.NDArray[np.float64]) -> None:
    voxels[voxels > 0] = 1


def z_scored_brain(voxels: npt.NDArray[np.float64]) -> None:
    brain = voxels > 0
    voxels[brain] = (voxels[brain] - np.median(voxels[brain])) / voxels[brain].std()


def z_scored_volume(voxels: npt.NDArray[np.float64]) -> None:
    voxels[:] = (voxels - voxels.mean()) / voxels.std()


def z_scored_brain_on_minus_9(voxels: npt.NDArray[np.float64]) -> None:
    z_scored_brain(voxels)
    voxels[voxels == 0] = -9


def background(value: float) -> Callable[[npt.NDArray[np.float64]], None]:
    def fill(voxels: npt.NDArray[np.float64]) -> None:
        voxels[voxels == 0] = value

    return fill


def outside_the_scan(voxels: npt.NDArray[np.float64]) -> None:
    voxels[:10] = -1024


def label_map(voxels: npt.NDArray[np.float64]) -> None:
    voxels[:] = np.random.default_rng(0).choice((1, 2, 4), SHAPE) * (voxels > 0)


@pytest.mark.parametrize("modality", CHANNELS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_nan, "7 of 76800 voxels are NaN or infinite"),
        (lambda voxels: voxels.fill(0), "no voxel is above 0"),
        (lambda voxels: voxels.fill(-3), "no voxel is above 0"),
        (one_value, "all its voxels above 0 are 1; this is a mask"),
        (label_map, "its voxels above 0 hold only 1, 2, 4, as a label map does"),
        (z_scored_brain, "50% of its non-zero voxels are negative, as after z-scoring"),
        (z_scored_volume, "one value, -0."),
        (z_scored_brain_on_minus_9, "one value, -9, fills 86% of the voxels, as a background does that is not 0, and "),
        (background(-1024), "one value, -1024, fills 86% of the voxels, as a background does that is not 0; set it to 0"),
        (background(-0.03), "one value, -0.03, fills 86% of the voxels, as a background does that is not 0; set it to 0"),
        (background(0.02), "one value, 0.02, fills 86% of the voxels, as a background does that is not 0; set it to 0"),
        (
            outside_the_scan,
            "one value, -1024, is that of most negative voxels, as a background outside ",
        ),
    ],
)
def test_voxels_that_cannot_be_segmented_are_refused_with_their_modality(
    modality: Modality, spoil: Callable[[npt.NDArray[np.float64]], None], words: str
) -> None:
    volumes, voxels = changed(modality)
    spoil(voxels)
    assert str(complaint(volumes)).startswith(f"a_{modality}.nii.gz ({modality.display}): {words}")


@pytest.mark.parametrize(("order", "dtype"), [(1, np.float32), (3, np.float64), (3, np.int16), (5, np.float32)])
def test_ringing_of_interpolation_is_taken_for_background_with_its_cause(order: int, dtype: npt.DTypeLike) -> None:
    volumes, voxels = changed(Modality.T2)
    smooth = ndimage.gaussian_filter(voxels, 2) * (voxels > 0)
    moved = ndimage.shift(smooth, (0.4, -0.3, 0), order=order)
    volumes[Modality.T2] = volume_of(Modality.T2, (np.rint(moved) if dtype is np.int16 else moved).astype(dtype))
    check_volumes(volumes)
    found = [warning for warning in warnings_of(volumes) if warning.code is WarningCode.BACKGROUND_NOT_ZERO]
    assert len(found) == (order > 1)
    assert all("small and negative, as interpolation by splines" in warning.message for warning in found)


@pytest.mark.parametrize(("order", "dtype"), [(3, np.float32), (5, np.int16)])
def test_ringing_above_0_is_background_and_the_brain_stays(order: int, dtype: npt.DTypeLike) -> None:
    brain = ndimage.gaussian_filter(brain_voxels(2, (60, 64, 40)).astype(float), 2) * (brain_voxels(2, (60, 64, 40)) > 0)
    moved, linear = (ndimage.shift(brain, (0.4, -0.3, 0.2), order=each) for each in (order, 1))
    before = volume_of(Modality.T2, (np.rint(moved) if dtype is np.int16 else moved).astype(dtype))
    after = without_ringing(before)
    np.testing.assert_array_equal(after.voxels, np.where(after.brain, before.voxels, np.minimum(before.voxels, 0)))
    near_brain = ndimage.binary_dilation(linear > 0, iterations=2)
    assert np.count_nonzero(before.brain & ~near_brain) > 400
    assert not (after.brain & ~near_brain).any()
    assert after.brain[ndimage.binary_erosion(linear > 0)].all()


def test_an_image_that_does_not_ring_stays_as_it_is() -> None:
    linear = volume_of(Modality.T2, ndimage.shift(brain_voxels(2).astype(np.float32), (0.4, -0.3, 0), order=1))
    few_negative = volume_of(Modality.T2, brain_voxels(2))
    few_negative.voxels[30, 30, :10] = -1
    for volume in (linear, few_negative):
        assert without_ringing(volume) is volume


@pytest.mark.parametrize(("z_score", "dtype"), [(z_scored_brain, np.float32), (z_scored_volume, np.float64)])
def test_interpolation_does_not_hide_z_scoring(
    z_score: Callable[[npt.NDArray[np.float64]], None], dtype: npt.DTypeLike
) -> None:
    volumes, voxels = changed(Modality.T2)
    z_score(voxels)
    volumes[Modality.T2] = volume_of(Modality.T2, ndimage.shift(voxels, (0.4, -0.3, 0), order=3, mode="nearest").astype(dtype))
    complaint(volumes)


@pytest.mark.parametrize("offset", [-0.4, 0.4])
def test_a_zero_that_scaling_rounded_is_0_again(offset: float, tmp_path: Path) -> None:
    stored = brain_voxels(0)
    image = nib.Nifti1Image(stored, LPS)
    image.header.set_slope_inter(0.5, offset * 0.5)
    nib.save(image, tmp_path / "flair.nii")
    volume = mend_rounded_zero(load_volume(tmp_path / "flair.nii"))
    assert volume.rounded_zero == pytest.approx(offset * 0.5, rel=1e-6)  # a float32 in the header
    np.testing.assert_array_equal(volume.brain, stored > 0)
    volumes = {**case(), Modality.FLAIR: volume}
    check_volumes(volumes)
    (warning,) = warnings_of(volumes)
    assert warning.code is WarningCode.BACKGROUND_NOT_ZERO
    assert "as the scaling of the file rounds 0" in warning.message


@pytest.mark.parametrize(("value", "dtype"), [(-1024, np.int16), (-1, np.int16), (1, np.int16), (-0.4, np.float32)])
def test_a_background_that_no_rounding_explains_stays(value: float, dtype: npt.DTypeLike, tmp_path: Path) -> None:
    stored = brain_voxels(0).astype(dtype)
    stored[stored == 0] = value
    nib.save(nib.Nifti1Image(stored, LPS), tmp_path / "flair.nii")
    volume = mend_rounded_zero(load_volume(tmp_path / "flair.nii"))
    assert volume.rounded_zero == 0
    np.testing.assert_array_equal(volume.voxels, stored)


@pytest.mark.parametrize(("one", "other"), [(Modality.FLAIR, Modality.T2), (Modality.T1CE, Modality.T1)])
def test_the_same_content_in_two_files_is_refused_whatever_its_type(one: Modality, other: Modality) -> None:
    volumes = case()
    volumes[other] = volume_of(other, volumes[one].voxels.astype(np.float32))
    message = str(complaint(volumes))
    assert message.startswith(f"a_{other}.nii.gz: has the same voxels as a_{one}.nii.gz")
    assert one.display in message
    assert other.display in message


def test_one_different_voxel_makes_another_image() -> None:
    volumes = case()
    voxels = volumes[Modality.T1CE].voxels.copy()
    voxels[30, 32, 10] += 1
    volumes[Modality.T1] = volume_of(Modality.T1, voxels)
    check_volumes(volumes)


@pytest.mark.parametrize(("share", "warned"), [(0.045, False), (0.055, True)])
def test_a_few_negative_voxels_as_interpolation_leaves_them_are_fine(share: float, warned: bool) -> None:
    volumes, voxels = changed(Modality.T2)
    brain = np.flatnonzero(voxels)
    voxels.flat[brain[: round(share * brain.size)]] = -1  # checks.py draws the line at 5 %
    check_volumes(volumes)
    assert (WarningCode.BACKGROUND_NOT_ZERO in codes_of(volumes)) is warned


@pytest.mark.parametrize(("factor", "refused"), [(0.95, False), (1.05, True)])
def test_negative_voxels_that_sum_to_more_than_ringing_are_refused(factor: float, refused: bool) -> None:
    volumes, voxels = changed(Modality.T2)
    few = np.flatnonzero(voxels)[::10]
    voxels.flat[few] = 0
    random = np.random.default_rng(1).random(few.size)
    voxels.flat[few] = -random * (0.07 * factor * voxels.sum() / random.sum())  # checks.py draws the line at 7 %
    if refused:
        assert "as after z-scoring" in str(complaint(volumes))
    else:
        check_volumes(volumes)


# --- warnings


def spaced(x_mm: float, y_mm: float, z_mm: float, *, codes: int = 1) -> dict[Modality, Volume]:
    return case(LPS @ np.diag([x_mm, y_mm, z_mm, 1]), codes=codes)


def sheared(shear: float) -> dict[Modality, Volume]:
    affine = LPS.copy()
    affine[0, 2] = shear
    return case(affine)


def with_qform_moved(shift_mm: float) -> dict[Modality, Volume]:
    volumes, shifted = case(), LPS.copy()
    shifted[1, 3] += shift_mm
    volumes[Modality.FLAIR].header.set_qform(shifted, 1)
    return volumes


def painted(volumes: dict[Modality, Volume], place: Any, value: int, *, alone: bool = False) -> dict[Modality, Volume]:
    """The images with one value in a part of each. alone: and 0 in the rest."""
    for volume in volumes.values():
        if alone:
            volume.voxels[:] = 0
        volume.voxels[place] = value
    return volumes


def of_width(width: int) -> dict[Modality, Volume]:
    return painted(case(shape=(300, 64, 20)), np.s_[20 : 20 + width, 20:40, 5:15], 5, alone=True)


NO_ORIENTATION, FORMS_DISAGREE, SHEARED = WarningCode.NO_ORIENTATION, WarningCode.FORMS_DISAGREE, WarningCode.SHEARED
RESAMPLED, THICK_SLICES, OUTSIDE_FRAME = WarningCode.RESAMPLED, WarningCode.THICK_SLICES, WarningCode.BRAIN_OUTSIDE_FRAME
NOT_STRIPPED: Final = WarningCode.NOT_SKULL_STRIPPED
FLAIR, T1CE, T1, T2 = CHANNELS
STORED_PSL: Final = np.array([[0, 0, -1.0, 0], [-1.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1.0]])  # S of 3 mm
MENDED: Final = "its qform is not finite and was left out"

# What makes the images, the codes of all warnings, and a pattern of the first one's message.
WARNED: Final[dict[str, tuple[Callable[[], dict[Modality, Volume]], list[WarningCode], str]]] = {
    "no orientation": (lambda: case(codes=0), [NO_ORIENTATION], r"^a_flair\.nii\.gz: "),
    "a qform mended": (
        lambda: {**case(), FLAIR: replace(case()[FLAIR], mended=MENDED)},
        [WarningCode.QFORM_MENDED],
        rf"^a_flair\.nii\.gz: {MENDED}$",
    ),
    "sheared by 0.57 degrees": (lambda: sheared(0.01), [], ""),
    # A qform cannot hold a shear.
    "sheared by 1.1 degrees": (lambda: sheared(0.02), [FORMS_DISAGREE, SHEARED], ""),
    "sheared by 11 degrees": (lambda: sheared(0.2), [FORMS_DISAGREE, SHEARED], ""),
    "a qform at the same place": (lambda: with_qform_moved(0), [], ""),
    "a qform 0.4 mm off": (lambda: with_qform_moved(0.4), [], ""),
    "a qform 0.6 mm off": (lambda: with_qform_moved(0.6), [FORMS_DISAGREE], ""),
    "a qform 30 mm off": (lambda: with_qform_moved(30), [FORMS_DISAGREE], ""),
    "small pixels": (lambda: spaced(0.5, 0.5, 1), [RESAMPLED], r"0\.5 x 0\.5 mm"),
    "low pixels": (lambda: spaced(1, 0.9, 1), [RESAMPLED], r"1 x 0\.9 mm"),
    "wide pixels": (lambda: spaced(1.1, 1, 1), [RESAMPLED], r"1\.1 x 1 mm"),
    "slices of 1 mm": (lambda: spaced(1, 1, 1), [], ""),
    "slices of 2 mm": (lambda: spaced(1, 1, 2), [], ""),
    "slices above 2 mm": (lambda: spaced(1, 1, 2.01), [THICK_SLICES], ""),
    "slices of 5 mm": (lambda: spaced(1, 1, 5), [THICK_SLICES], ""),
    "slices along the second stored axis": (lambda: case(STORED_PSL), [THICK_SLICES], ""),
    "several": (lambda: spaced(0.9, 0.9, 4, codes=0), [NO_ORIENTATION, RESAMPLED, THICK_SLICES], ""),
    "as wide as the frame": (lambda: of_width(240), [], ""),
    "wider than the frame": (lambda: of_width(242), [OUTSIDE_FRAME], ""),
    # 2.3 litres, above the 2.2 that checks.py draws from BraTS 2021 (1.25 to 1.73), in half of the field of view.
    "more than any brain": (
        lambda: painted(case(LPS @ np.diag([1, 1, 2, 1]), (170, 140, 100)), np.s_[20:140, 20:116], 5, alone=True),
        [NOT_STRIPPED],
        r"2\.3 litres",
    ),
    "air that is not 0": (lambda: {**case(), T2: volume_of(T2, np.maximum(brain_voxels(3), 3))}, [NOT_STRIPPED], "100%"),
    "a head that reaches the sides": (
        lambda: painted(case(), np.s_[[0, -1], 10:30, 5:15], 300),
        [NOT_STRIPPED],
        "on the sides of the volume",
    ),
    "a brain cut by the first and last slice": (lambda: painted(case(), np.s_[20:40, 20:40], 300), [], ""),
    "names of other modalities": (
        lambda: {**case(), T1: case()[T1CE], T1CE: case()[T1]},
        [WarningCode.MODALITY_NAME] * 2,
        r"^a_t1\.nii\.gz: given as T1ce, but its name says T1;",
    ),
    "another brain": (
        lambda: {**case(), FLAIR: volume_of(FLAIR, np.roll(brain_voxels(9), 8, axis=0))},
        [WarningCode.DIFFERENT_BRAINS] * 3,
        "",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_may_spoil_the_result_is_reported(name: str) -> None:
    make, codes, pattern = WARNED[name]
    found = warnings_of(make())
    assert [warning.code for warning in found] == codes
    assert not found or re.search(pattern, found[0].message)


# --- measures


def test_the_brain_is_what_any_modality_shows_above_0() -> None:
    volumes = case()
    for index, modality in enumerate(CHANNELS):
        volumes[modality].voxels[:] = -1
        volumes[modality].voxels[index, 0, 0] = 1
    assert np.argwhere(brain_mask(volumes)).tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]


def test_the_brain_mask_leaves_the_images_as_they_were() -> None:
    volumes = case()
    brain_mask(volumes)
    np.testing.assert_array_equal(volumes[Modality.FLAIR].voxels, brain_voxels(0))


def test_a_voxel_of_1_mm_is_a_millionth_of_a_litre() -> None:
    assert voxel_litres(LPS) == pytest.approx(1e-6, rel=1e-12)  # a determinant in float64
    assert voxel_litres(LPS @ np.diag([2.0, 3, 4, 1])) == pytest.approx(24e-6, rel=1e-12)


def test_the_odd_one_out_is_named_also_when_it_is_flair() -> None:
    volumes = case()
    volumes[Modality.FLAIR] = volume_of(Modality.FLAIR, brain_voxels(0, (60, 64, 21)))
    error = complaint(volumes)
    assert str(error).startswith("a_flair.nii.gz: FLAIR not on the grid of T1ce (a_t1ce.nii.gz)")
    assert len(error.details) == 3
