"""The way to the network's frames and back: orientations, windows, and other spacings."""

import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, at_1_mm, box_of, fit, laid_out, orientation_to_network

LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
# Every order of the three stored axes, each with every choice of axes that run backwards: 48.
ORIENTATIONS: Final = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
SPACINGS_MM: Final = [(0.5, 0.5), (0.9375, 0.9375), (2.0, 2.0), (0.8, 1.25), (1.0, 0.7), (3.0, 0.6)]


def stored_otherwise(
    voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], order: tuple[int, ...], backwards: tuple[bool, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The same volume with its axes stored in another order and partly backwards, and the affine that this takes.

    Worked out index by index, without nibabel's orientations, which the code under test relies on.
    """
    to_old = np.zeros((4, 4))  # new voxel index to old
    to_old[3, 3] = 1
    for new_axis, (old_axis, back) in enumerate(zip(order, backwards, strict=True)):
        to_old[old_axis, new_axis] = -1 if back else 1
        to_old[old_axis, 3] = voxels.shape[old_axis] - 1 if back else 0
    turned = voxels.transpose(order)[tuple(slice(None, None, -1 if back else 1) for back in backwards)]
    return np.ascontiguousarray(turned), affine @ to_old


def laid(brain: npt.NDArray[np.bool_], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Geometry:
    """The geometry of a volume that is stored in L, P, S."""
    return fit(brain, affine=LPS @ np.diag([*spacing_mm, 1.0]))


def label_map_from(geometry: Geometry, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classes of the frames [240, 240, Z] in the volume's own axes, as `predict` does it."""
    planes = geometry.classes(np.moveaxis(classes, 2, 0))
    return np.asarray(geometry.turned_back(np.moveaxis(planes, 0, 2)))


def box(shape: tuple[int, int, int], x: tuple[int, int], y: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A brain from the first to before the second voxel of each in-plane axis, in all slices."""
    brain = np.zeros(shape, dtype=bool)
    brain[x[0] : x[1], y[0] : y[1]] = True
    return brain


def random_volume(shape: tuple[int, int, int], brain: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """Voxels from 1 to 255, 0 outside the brain: no two places look the same."""
    voxels = np.random.default_rng(4).integers(1, 256, shape, dtype=np.uint8)
    return voxels if brain is None else voxels * brain


def pixel_centres_mm(size: int, spacing: float = 1.0) -> npt.NDArray[np.float64]:
    return np.asarray((np.arange(size) + 0.5) * spacing, dtype=np.float64)


def disc(
    sizes: tuple[int, int], spacing_mm: tuple[float, float], centre_mm: tuple[float, float], radius_mm: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Whether each pixel's centre lies in a disc, and how far it is from the disc's edge."""
    x, y = (pixel_centres_mm(n, d) - c for n, d, c in zip(sizes, spacing_mm, centre_mm, strict=True))
    distance = np.hypot(x[:, None], y[None, :])
    return distance < radius_mm, np.abs(distance - radius_mm)


# --- orientation


@pytest.mark.parametrize(("order", "backwards"), ORIENTATIONS)
def test_all_48_orientations_are_turned_for_the_network_and_labels_return_by_the_exact_inverse(
    order: tuple[int, ...], backwards: tuple[bool, ...]
) -> None:
    voxels = random_volume((13, 11, 7))
    stored, affine = stored_otherwise(voxels, LPS, order, backwards)
    geometry = fit(stored > 0, affine=affine)
    assert np.shares_memory(geometry.turned(stored), stored)
    np.testing.assert_array_equal(geometry.turned(stored), voxels)
    np.testing.assert_array_equal(geometry.frames(geometry.turned(stored)), laid(voxels > 0).frames(voxels))
    # The frames taken for classes: what comes back must be the stored volume itself.
    np.testing.assert_array_equal(label_map_from(geometry, geometry.frames(geometry.turned(stored))), stored)
    np.testing.assert_array_equal(orientation_to_network(tilted(affine)), orientation_to_network(affine))
    assert stored.shape[geometry.stored_axis_of_slices] == geometry.n_slices == 7


def tilted(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By 20 degrees about R, then about S: 28 degrees in all, well below the 45 at which another axis is nearer."""
    angle = np.deg2rad(20)
    about_r, about_s = np.eye(4), np.eye(4)
    about_r[1:3, 1:3] = about_s[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return np.asarray(about_s @ about_r @ affine)


@pytest.mark.parametrize(("order", "backwards"), ORIENTATIONS)
def test_each_axis_keeps_its_own_spacing_and_a_geometry_can_be_laid_out_again(
    order: tuple[int, ...], backwards: tuple[bool, ...]
) -> None:
    spacing = (0.8, 1.25, 3.0)  # of X, Y and Z
    stored, affine = stored_otherwise(random_volume((13, 11, 7)), LPS @ np.diag([*spacing, 1]), order, backwards)
    fitted = fit(stored > 0, affine=affine)
    again = laid_out(stored.shape, affine, fitted.x, fitted.y)
    for geometry in (fitted, again):
        assert (geometry.shape, geometry.x.size, geometry.y.size) == (stored.shape, 13, 11)
        assert (geometry.x.spacing_mm, geometry.y.spacing_mm, geometry.slice_spacing_mm) == spacing
        np.testing.assert_array_equal(geometry.turned_back(geometry.turned(stored)), stored)
    assert (again.axcodes, again.x, again.y) == (fitted.axcodes, fitted.x, fitted.y)


def test_the_orientation_is_named_by_where_the_stored_axes_point() -> None:
    assert laid(np.ones((3, 3, 3), bool)).axcodes == "LPS"
    assert fit(np.ones((3, 3, 3), bool), affine=np.eye(4)).axcodes == "RAS"


# --- the frame at 1 mm


@pytest.mark.parametrize(("x", "y"), [((0, 240), (0, 240)), ((0, 5), (230, 240)), ((47, 192), (28, 221))])
def test_the_brats_grid_passes_untouched_wherever_the_brain_is(x: tuple[int, int], y: tuple[int, int]) -> None:
    brain = box((FRAME, FRAME, 2), x, y)
    voxels = random_volume(brain.shape, brain)
    geometry = laid(brain)
    assert geometry.untouched
    assert not geometry.resampled
    np.testing.assert_array_equal(geometry.frames(voxels), voxels)
    np.testing.assert_array_equal(label_map_from(geometry, voxels), voxels)


@pytest.mark.parametrize("spacing_mm", [0.9995, 1.0005])
def test_a_spacing_within_a_thousandth_of_1_mm_is_1_mm(spacing_mm: float) -> None:
    geometry = laid(box((FRAME, FRAME, 2), (9, 30), (7, 40)), (spacing_mm, spacing_mm, 1.0))
    assert geometry.untouched


@pytest.mark.parametrize("shape", [(160, 200, 2), (256, 256, 2), (240, 200, 2), (200, 240, 2), (300, 180, 2), (1, 1, 1)])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_another_size_is_padded_or_cropped_around_the_brains_middle(shape: tuple[int, int, int], where: float) -> None:
    brain_size = [min(150, n) for n in shape[:2]]
    first = [round(where * (n - m)) for n, m in zip(shape[:2], brain_size, strict=True)]
    brain = box(shape, (first[0], first[0] + brain_size[0]), (first[1], first[1] + brain_size[1]))
    voxels = random_volume(shape, brain)
    frames = laid(brain).frames(voxels)
    assert frames.shape == (FRAME, FRAME, shape[2])
    assert frames.dtype == voxels.dtype
    for axis in (0, 1):
        found = np.flatnonzero(frames.any(axis=(1 - axis, 2)))
        # An axis of 240 stays where it is; elsewhere the brain's middle is the frame's, to half a voxel where the size is odd.
        begin = first[axis] if shape[axis] == FRAME else (FRAME - brain_size[axis] + 1) // 2
        assert (found[0], found[-1]) == (begin, begin + brain_size[axis] - 1)
    np.testing.assert_array_equal(np.bincount(frames.flat)[1:], np.bincount(voxels.flat)[1:])


@st.composite
def brains(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """A brain no wider than the frame, anywhere in a volume of any in-plane size."""
    sides = []
    for _ in range(2):
        size = draw(st.integers(1, 400))
        width = draw(st.integers(1, min(size, FRAME)))
        first = 0 if size == FRAME else draw(st.integers(0, size - width))
        sides.append((size, first, first + width))
    (rows, *x), (columns, *y) = sides
    return box((rows, columns, 2), (x[0], x[1]), (y[0], y[1]))


@settings(max_examples=30)
@given(brain=brains())
def test_labels_inside_the_frame_return_to_their_own_voxels(brain: npt.NDArray[np.bool_]) -> None:
    voxels = random_volume((brain.shape[0], brain.shape[1], 2), brain)
    geometry = laid(brain)
    frames = geometry.frames(voxels)
    np.testing.assert_array_equal(label_map_from(geometry, frames), voxels)
    # The brain's box, laid on the frame axis by axis, is what the frames show.
    found = box_of(voxels > 0)
    assert found is not None
    (frame_x, of_x), (frame_y, of_y) = geometry.x.on_frame(found[0]), geometry.y.on_frame(found[1])
    shown = np.zeros_like(frames)
    shown[frame_x, frame_y, found[2]] = voxels[found][of_x, of_y]
    np.testing.assert_array_equal(shown, frames)


def test_a_brain_wider_than_the_frame_loses_its_sides_alike_and_gets_background_there() -> None:
    brain = box((300, 250, 2), (10, 290), (0, 250))
    geometry = laid(brain)
    assert (geometry.x.brain_mm, geometry.y.brain_mm) == (280, 250)
    returned = label_map_from(geometry, np.full((FRAME, FRAME, 2), 3, dtype=np.uint8))
    expected = np.zeros(brain.shape, dtype=np.uint8)
    expected[30:270, 5:245] = 3  # 10 + (280 - 240) / 2, and (250 - 240) / 2
    np.testing.assert_array_equal(returned, expected)


# --- other spacings


def grid(spacing: tuple[float, float]) -> tuple[int, int]:
    """An in-plane size that makes a field of view of about 200 x 210 mm, so that the frame is centred on the brain."""
    return round(200 / spacing[0]), round(210 / spacing[1])


@pytest.mark.parametrize(
    ("size", "spacing_mm"),
    [(480, 0.5), (256, 0.9375), (120, 2.0), (400, 0.5), (213, 0.9375), (50, 3.0), (900, 0.3), (300, 0.7)],
)
def test_weights_sum_to_1_inside_and_to_0_outside(size: int, spacing_mm: float) -> None:
    brain = np.zeros((size, FRAME, 1), dtype=bool)
    brain[size // 4 : size // 2] = True
    axis = laid(brain, (spacing_mm, 1.0, 1.0)).x
    in_frame = axis.start_mm + pixel_centres_mm(FRAME)
    in_volume = pixel_centres_mm(size, spacing_mm)
    # Sums of a few float64 weights: their rounding is of the order of 1e-16.
    np.testing.assert_allclose(axis.to_frame().sum(axis=1), (in_frame > 0) & (in_frame < size * spacing_mm), atol=1e-12)
    inside = (in_volume > axis.start_mm) & (in_volume < axis.start_mm + FRAME)
    np.testing.assert_allclose(axis.from_frame().sum(axis=1), inside, atol=1e-12)
    assert axis.to_frame().min() >= 0
    assert axis.from_frame().min() >= 0


@pytest.mark.parametrize(("size", "spacing_mm"), [(480, 0.5), (256, 0.9375), (120, 2.0), (80, 3.0)])
def test_a_field_of_view_of_240_mm_is_the_frame_without_a_shift(size: int, spacing_mm: float) -> None:
    axis = laid(box((size, FRAME, 1), (3, size // 2), (0, 9)), (spacing_mm, 1.0, 1.0)).x
    assert axis.start_mm == 0
    # Where voxels lie alike on both sides, so do the weights.
    np.testing.assert_allclose(axis.to_frame(), axis.to_frame()[::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(axis.from_frame(), axis.from_frame()[::-1, ::-1], atol=1e-12)


def test_weights_towards_a_finer_grid_are_those_of_linear_interpolation() -> None:
    axis = AxisFit(size=480, spacing_mm=0.5, start_mm=0.0, brain_mm=240.0)
    # Voxel 10 is centred at 5.25 mm, between pixel 4 (4.5 mm) and pixel 5 (5.5 mm), at three quarters of the way.
    assert axis.from_frame()[10, 3:7].tolist() == [0, 0.25, 0.75, 0]


def test_weights_towards_a_coarser_grid_are_the_shares_of_what_it_covers() -> None:
    axis = AxisFit(size=480, spacing_mm=0.5, start_mm=0.0, brain_mm=240.0)
    assert axis.to_frame()[5, 9:13].tolist() == [0, 0.5, 0.5, 0]  # pixel 5 is 5 to 6 mm: voxels 10 and 11
    axis = AxisFit(size=300, spacing_mm=0.8, start_mm=0.0, brain_mm=240.0)
    # Pixel 1 is 1 to 2 mm: voxel 1 is 0.8 to 1.6 mm, voxel 2 is 1.6 to 2.4 mm. Decimals in float64: 1e-12.
    np.testing.assert_allclose(axis.to_frame()[1, 0:4], [0, 0.6, 0.4, 0], atol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS_MM)
def test_a_blob_keeps_its_place_on_the_way_to_the_frame(spacing: tuple[float, float]) -> None:
    size = grid(spacing)
    extent = [n * d for n, d in zip(size, spacing, strict=True)]
    offset = (17.3, -11.6)  # from the brain's middle, which is the volume's
    x, y = (pixel_centres_mm(n, d) - e / 2 - o for n, d, e, o in zip(size, spacing, extent, offset, strict=True))
    blob = np.exp(-(x[:, None] ** 2 + y[None, :] ** 2) / (2 * 8.0**2))
    geometry = laid(np.ones((*size, 1), bool), (*spacing, 1.0))
    frame = geometry.frames((100 + 50 * blob)[..., None])[:, :, 0] - 100
    frame[frame < 0] = 0  # outside the volume
    for axis in (0, 1):
        centroid = np.average(pixel_centres_mm(FRAME), weights=frame.sum(axis=1 - axis))
        # Linear interpolation of a blob of 8 mm errs by far less than this; half a voxel's shift would be 0.25 mm or more.
        assert centroid == pytest.approx(FRAME / 2 + offset[axis], abs=0.02)


@pytest.mark.parametrize("spacing", SPACINGS_MM)
def test_a_tumour_keeps_its_place_on_the_way_back(spacing: tuple[float, float]) -> None:
    size, offset = grid(spacing), (17.3, -11.6)
    geometry = laid(np.ones((*size, 1), bool), (*spacing, 1.0))
    inside, from_edge_mm = disc((FRAME, FRAME), (1, 1), (FRAME / 2 + offset[0], FRAME / 2 + offset[1]), 40.0)
    tumour = np.clip(0.5 + np.where(inside, from_edge_mm, -from_edge_mm), 0, 1)  # a pixel on the edge has its share
    probabilities = np.stack([1 - tumour, 0 * tumour, tumour, 0 * tumour], axis=-1)[None].astype(np.float32)
    classes = geometry.probabilities(probabilities).argmax(axis=3)[0]
    for axis in (0, 1):
        centroid_mm = np.average(pixel_centres_mm(size[axis], spacing[axis]), weights=(classes == 2).sum(axis=1 - axis))
        middle_mm = size[axis] * spacing[axis] / 2 + offset[axis]
        # A disc of whole voxels lies up to a tenth of a voxel beside the true one; the smallest real shift is half a voxel.
        assert centroid_mm == pytest.approx(middle_mm, abs=0.15 * max(1.0, *spacing))


@pytest.mark.parametrize("spacing", SPACINGS_MM)
def test_constant_brain_stays_constant_and_is_not_mixed_with_background(spacing: tuple[float, float]) -> None:
    size = grid(spacing)
    brain, _ = disc(size, spacing, (100.0, 105.0), 60.0)
    frames = laid(brain[..., None], (*spacing, 1.0)).frames(np.where(brain, 700, 0)[..., None].astype(np.int16))
    assert frames.dtype == np.float64
    # A weighted mean of equal values, in float64; anything of background in it would be off by several units.
    inside = frames > 0
    np.testing.assert_allclose(frames[inside], 700, rtol=1e-12)
    expected, from_edge_mm = disc((FRAME, FRAME), (1, 1), (120.0, 120.0), 60.0)
    certain = from_edge_mm > max(1.0, *spacing)
    np.testing.assert_array_equal(inside[:, :, 0][certain], expected[certain])


def test_negative_voxels_count_as_background_where_slices_are_resampled() -> None:
    voxels = np.full((100, 100, 1), 50.0)
    brain = voxels > 0
    voxels[:, 40:] = -50.0
    brain[:, 40:] = False
    frames = laid(brain, (2.0, 2.0, 1.0)).frames(voxels)
    assert set(np.unique(frames.round(9))) == {0.0, 50.0}


@pytest.mark.parametrize("spacing", SPACINGS_MM)
def test_what_lies_outside_the_frame_comes_back_as_background(spacing: tuple[float, float]) -> None:
    size = (round(300 / spacing[0]), round(330 / spacing[1]))
    geometry = laid(np.ones((*size, 1), bool), (*spacing, 1.0))
    tumour = np.zeros((1, FRAME, FRAME, 4), dtype=np.float32)
    tumour[..., 3] = 1
    classes = geometry.probabilities(tumour).argmax(axis=3)[0]
    x, y = (np.abs(pixel_centres_mm(n, d) - n * d / 2) < FRAME / 2 for n, d in zip(size, spacing, strict=True))
    np.testing.assert_array_equal(classes, 3 * np.outer(x, y))


def test_frames_show_nothing_where_there_is_no_volume() -> None:
    voxels = np.full((50, 50, 2), 9, dtype=np.uint8)
    frames = laid(voxels > 0, (2.0, 2.0, 1.0)).frames(voxels)
    expected = np.zeros(frames.shape)
    expected[70:170, 70:170] = 9  # 100 mm in the middle of 240
    np.testing.assert_allclose(frames, expected, rtol=1e-12)


def test_one_resampled_axis_leaves_the_other_exact() -> None:
    voxels = random_volume((FRAME, 120, 2))
    geometry = laid(voxels > 0, (1.0, 2.0, 1.0))
    assert geometry.resampled
    np.testing.assert_array_equal(geometry.x.to_frame(), np.eye(FRAME))
    np.testing.assert_array_equal(geometry.x.from_frame(), np.eye(FRAME))


def test_the_likeliest_class_wins_after_interpolation_and_not_before() -> None:
    axis = AxisFit(size=480, spacing_mm=0.5, start_mm=0.0, brain_mm=240.0)
    geometry = Geometry((480, 240, 1), "LPS", orientation_to_network(LPS), axis, AxisFit(240, 1.0, 0.0, 240.0), 1.0)
    probabilities = np.zeros((1, FRAME, FRAME, 4), dtype=np.float32)
    probabilities[..., 0] = 1
    probabilities[0, 4] = [0.51, 0.49, 0, 0]
    probabilities[0, 5] = [0.0, 1.0, 0, 0]
    # Voxel 9 (4.75 mm) is three parts pixel 4 and one part pixel 5: 0.62 for class 1, although pixel 4 itself says background.
    classes = geometry.probabilities(probabilities).argmax(axis=3)[0, :, 0]
    assert classes[7:12].tolist() == [0, 0, 1, 1, 1]


def test_slices_are_kept_one_for_one_at_any_spacing() -> None:
    voxels = random_volume((100, 100, 6))
    frames = laid(voxels > 0, (2.0, 2.0, 5.0)).frames(voxels)
    alone = laid(voxels > 0, (2.0, 2.0, 5.0)).frames(voxels[:, :, 3:4])
    assert frames.shape == (FRAME, FRAME, 6)
    np.testing.assert_array_equal(frames[:, :, 3:4], alone)


# --- boxes, and where consecutive voxels lie on the frame


def test_the_box_of_a_mask_is_the_smallest_that_holds_all_of_it() -> None:
    rng = np.random.default_rng(6)
    for n_voxels in (1, 2, 3, 10, 200, 13 * 11 * 7):
        for order in (np.ascontiguousarray, np.asfortranarray):
            mask = order(np.zeros((13, 11, 7), dtype=bool))
            mask.flat[rng.choice(mask.size, n_voxels, replace=False)] = True
            inside = np.argwhere(mask)
            assert box_of(mask) == tuple(
                slice(low, high + 1) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
            )
    assert box_of(np.zeros((13, 11, 7), dtype=bool)) is box_of(np.zeros((0, 11, 7), dtype=bool)) is None


@pytest.mark.parametrize("size", [1, 100, 240, 241, 600])
@pytest.mark.parametrize("shift", [-500, -239, -70, 0, 1, 60, 239, 599])
def test_consecutive_voxels_lie_on_the_frame_where_the_whole_axis_puts_them(size: int, shift: int) -> None:
    axis = AxisFit(size, 1.0, float(shift), 0.0)
    voxels = np.arange(1, size + 1)
    whole = np.zeros(FRAME, dtype=int)  # the frame's pixel p shows voxel p + shift
    for pixel in range(max(0, -shift), min(FRAME, size - shift)):
        whole[pixel] = voxels[pixel + shift]
    for start, stop in [(0, size), (0, 1), (size - 1, size), (size // 3, size // 2 + 1), (size // 2, size // 2)]:
        on_frame, of_planes = axis.on_frame(slice(start, stop))
        frame = np.zeros(FRAME, dtype=int)
        part = voxels[start:stop]
        assert len(frame[on_frame]) == len(part[of_planes])
        frame[on_frame] = part[of_planes]
        np.testing.assert_array_equal(frame, np.where((whole > start) & (whole <= stop), whole, 0))
        for found, length in ((on_frame, FRAME), (of_planes, stop - start)):
            if found.stop > found.start:  # a slice below 0 would count from the end
                assert 0 <= found.start < found.stop <= length


@pytest.mark.parametrize(
    ("spacing", "at_one"),
    [
        ((1.0, 1.0, 1.0), True),
        ((0.9991, 1.0, 1.0009), True),
        ((1.0, 1.0, 1.0011), False),
        ((1.0, 0.9989, 1.0), False),
        ((2.0, 1.0, 1.0), False),
        ((1.0, 1.0, -1.0), False),
        ((np.nan, 1.0, 1.0), False),
        ((), True),
    ],
)
def test_voxels_within_a_thousandth_of_1_mm_along_every_axis_are_at_1_mm(spacing: tuple[float, ...], at_one: bool) -> None:
    assert at_1_mm(spacing) is at_one
    assert at_1_mm(iter(spacing)) is at_one
