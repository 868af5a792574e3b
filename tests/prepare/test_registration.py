"""What registration is made of. Whole scans are registered in tests/prepare/test_preparation.py."""

import numpy as np
import pytest
from scipy import ndimage

from drunet_cli.errors import CaseError
from drunet_cli.prepare.registration import edge_peak, isotropic, move_of, mutual_information, register, resampled


def test_isotropic_covers_an_oblique_scan_and_keeps_places() -> None:
    rng = np.random.default_rng(0)
    blob = np.zeros((20, 24, 10), np.int16)
    blob[12:15, 6:9, 4:6] = 100
    affine = np.array([[0, 1.5, 0, -7], [1.5, 0, 0.2, 3], [0, 0.1, 4, 9], [0, 0, 0, 1]])
    image = isotropic(blob, affine)
    where = np.argwhere(image.voxels > 1)
    weights = image.voxels[tuple(where.T)]
    centre = np.average(where, axis=0, weights=weights) * image.size_mm + image.origin_mm
    assert np.allclose(centre, affine[:3, :3] @ [13, 7, 4.5] + affine[:3, 3], atol=0.3)
    noise = rng.random((9, 9, 9)).astype(np.float32)
    assert np.array_equal(resampled(noise, np.eye(4), np.eye(4), (9, 9, 9)), noise)


def test_measures_tell_one_head_from_two() -> None:
    rng = np.random.default_rng(0)
    one, other = (isotropic(rng.random((20, 20, 20)), np.diag([6.0, 6, 6, 1])).voxels + 1 for _ in range(2))
    inside = np.zeros(one.shape, dtype=np.bool_)
    inside[10:-10, 10:-10, 10:-10] = True
    assert mutual_information(one, 5 - one, inside) > 1.9 > 1.1 > mutual_information(one, other, inside)
    assert edge_peak(one, 5 - one, inside, size_mm=2.0) > 2 > 1.3 > edge_peak(one, other, inside, size_mm=2.0)


@pytest.mark.slow
def test_a_registration_gives_the_same_bytes_in_every_run() -> None:
    rng = np.random.default_rng(0)
    voxels = np.zeros((40, 50, 30))
    voxels[8:30, 10:40, 5:25] = 100 + 400 * ndimage.gaussian_filter(rng.standard_normal((22, 30, 20)), 2)
    there = np.diag([4.0, 4, 5, 1])
    here = there.copy()
    here[:3, 3] = 3, -5, 2
    found = [register(isotropic(voxels, here), isotropic(voxels, there)) for _ in range(2)]
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0][:3, 3] == pytest.approx([-3, 5, -2], abs=0.05)


def test_a_move_is_a_shift_and_a_turn() -> None:
    quarter = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 2], [0, 0, 0, 1]])
    assert move_of(quarter, np.zeros(3)) == pytest.approx((3, 90))


def test_an_image_without_a_head_is_compared_and_cut_to_nothing() -> None:
    dark = isotropic(np.zeros((9, 9, 9), np.int16), np.eye(4))
    assert not dark.head.any()
    assert dark.cropped() is dark
    assert mutual_information(dark.voxels, dark.voxels, dark.head) == 1
    with pytest.raises(CaseError, match="no part of the two images shows the same place"):
        register(dark, dark)
