"""The published normalisation to the byte, and the slices that the network takes."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import FRAME, fit
from drunet_cli.io.intensities import network_slices, normalise
from drunet_cli.io.nifti import Volume, load_volume
from tests.support import GOLDEN, GOLDEN_IMAGES


def published(voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The formula of drunet_cli/network/README.md, Normalisation, word for word: everything in float64, nothing saved."""
    v = np.array(voxels, dtype=np.float64)
    brain = v > 0
    m, s = np.mean(v[brain]), np.std(v[brain])
    scaled = (v - m) / (3 * s / 128) + 127
    scaled[scaled < 0] = 0
    scaled[scaled > 255] = 255
    scaled[~brain] = 0
    return np.asarray(scaled, dtype=np.uint8)


def brain_like(dtype: npt.DTypeLike, seed: int = 0) -> npt.NDArray[Any]:
    """About a third background, 2 % negative where the type can be, and a few voxels far above the rest."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    top = 250 if dtype == np.uint8 else 3000
    voxels = rng.normal(top / 2, top / 8, (31, 29, 23))
    voxels[rng.random(voxels.shape) < 0.33] = 0
    if dtype.kind != "u":
        voxels[rng.random(voxels.shape) < 0.02] *= -1
    voxels[rng.random(voxels.shape) < 0.001] = 255 if dtype == np.uint8 else 32000
    brain: npt.NDArray[Any] = np.clip(voxels, -32000 if dtype.kind != "u" else 0, None).astype(dtype)
    return brain


def volume_of(voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], path: Path = Path("t1.nii")) -> Volume:
    return Volume(path, affine, nib.Nifti1Header(), voxels)


def golden_volumes() -> list[Volume]:
    return [load_volume(GOLDEN_IMAGES[modality]) for modality in CHANNELS]


def slices_of(volumes: list[Volume]) -> npt.NDArray[np.uint8]:
    brain = np.logical_or.reduce([volume.voxels > 0 for volume in volumes])
    return network_slices(volumes, fit(brain, affine=volumes[0].affine))


def test_golden_slices_are_equal_to_the_byte() -> None:
    with np.load(GOLDEN / "slices.npz") as golden:  # made by the published convert_nii_to_png.py
        np.testing.assert_array_equal(slices_of(golden_volumes()), golden["slices"])


@pytest.mark.parametrize("order", ["RAS", "SPL", "AIR", "PSR"])
def test_golden_slices_are_the_same_from_another_stored_orientation(order: str) -> None:
    turned = []
    for modality in CHANNELS:
        image = nib.load(GOLDEN_IMAGES[modality])
        assert isinstance(image, nib.Nifti1Image)
        stored = nib.orientations.axcodes2ornt(tuple(order))
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), stored))
        turned.append(volume_of(np.asarray(image.dataobj), np.asarray(image.affine)))
    with np.load(GOLDEN / "slices.npz") as golden:
        np.testing.assert_array_equal(slices_of(turned), golden["slices"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_every_voxel_type_is_scaled_as_the_published_formula_does_it(dtype: str, seed: int) -> None:
    voxels = brain_like(np.int16, seed) // 300 if dtype == "i1" else brain_like(dtype, seed)
    voxels = voxels.astype(dtype)
    np.testing.assert_array_equal(normalise(voxels), published(voxels))


@pytest.mark.parametrize(("dtype", "top"), [("u1", 255), ("i2", 32767), ("u2", 65535), ("i2", 1), ("u2", 2)])
def test_the_types_whose_values_are_scaled_once_reach_their_ends(dtype: str, top: int) -> None:
    rng = np.random.default_rng(9)
    least = np.iinfo(dtype).min
    voxels = rng.integers(least, top, (20, 20, 20), endpoint=True).astype(dtype)
    voxels.flat[:4] = [least, 0, 1, top]
    if top == 1:
        with pytest.raises(CaseError):
            normalise(voxels)
    else:
        np.testing.assert_array_equal(normalise(voxels), published(voxels))


def test_a_turned_view_is_scaled_as_its_copy_is() -> None:
    # The sums run over the voxels in the order of the axes, not of the memory: float64 sums depend on it.
    voxels = brain_like(np.float32)
    view = np.asfortranarray(voxels)
    np.testing.assert_array_equal(normalise(view), normalise(voxels))


def test_values_are_truncated_and_not_rounded() -> None:
    # Mean 2, population SD sqrt(2/3): 127 -+ 128 / (3 sqrt(2/3)) = 74.74 and 179.26.
    assert normalise(np.array([[[0, 1, 2, 3]]], dtype=np.int16)).tolist() == [[[0, 74, 127, 179]]]


def test_far_values_are_cut_at_0_and_255() -> None:
    voxels = np.concatenate([np.full(1000, 500), [1, 2, 32000], np.arange(480, 520)]).astype(np.int32).reshape(7, 149, 1)
    assert normalise(voxels).max() == 255
    values = np.append(np.full(10000, 1000) + np.arange(10000) % 3, 1).astype(np.int32).reshape(-1, 1, 1)
    assert normalise(values)[-1] == 0


def constant_brain(dtype: str, value: float) -> npt.NDArray[Any]:
    voxels = np.zeros((9, 9, 9), dtype=dtype)
    voxels[2:7] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        *((np.zeros((3, 3, 3), dtype=dtype), "no voxel is above 0") for dtype in ("u1", "i2", "f8")),
        *((constant_brain(dtype, 7), "no usable spread") for dtype in ("u1", "i2", "i4", "f4")),
        (np.full((3, 1, 1), 0.1), "no usable spread"),  # in float64 the mean of three tenths is not quite a tenth
        (np.array([[[1e300, 2e300, 0]]]), "no usable spread"),  # squares overflow
    ],
)
def test_an_image_that_cannot_be_scaled_is_refused(voxels: npt.NDArray[Any], words: str) -> None:
    with pytest.raises(CaseError, match=words):
        normalise(voxels)


def test_a_volume_that_cannot_be_scaled_is_named() -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    volumes = [volume_of(brain_like(np.int16, seed), affine, Path(f"{seed}.nii")) for seed in range(3)]
    volumes.append(volume_of(np.zeros_like(volumes[0].voxels), affine, Path("t2.nii")))
    with pytest.raises(CaseError) as caught:
        slices_of(volumes)
    assert str(caught.value) == "t2.nii: no voxel is above 0"


def test_slices_are_stacked_along_s_with_the_modalities_last() -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    volumes = [volume_of(brain_like(np.int16, seed), affine) for seed in range(4)]
    slices = slices_of(volumes)
    assert slices.shape == (23, FRAME, FRAME, 4)
    assert slices.dtype == np.uint8
    for channel, volume in enumerate(volumes):
        expected = published(volume.voxels)
        # 31 x 29 voxels in the middle of 240 x 240: (240 - 31 + 1) // 2 and (240 - 29 + 1) // 2 from the sides.
        np.testing.assert_array_equal(slices[:, 105:136, 106:135, channel], np.moveaxis(expected, 2, 0))
        assert np.count_nonzero(slices[..., channel]) == np.count_nonzero(expected)


def test_resampled_volumes_are_scaled_after_resampling() -> None:
    affine = np.diag([-2.0, -2.0, 1.0, 1.0])
    volumes = [volume_of(brain_like(np.int16, seed)[:, :, :4], affine) for seed in range(4)]
    brain = np.logical_or.reduce([volume.voxels > 0 for volume in volumes])
    geometry = fit(brain, affine=affine)
    expected = published(geometry.frames(volumes[2].voxels))
    np.testing.assert_array_equal(network_slices(volumes, geometry)[..., 2], np.moveaxis(expected, 2, 0))
