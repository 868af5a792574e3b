"""What augmentation does to a batch, and what it leaves alone."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from drunet_cli.errors import MisuseError
from drunet_cli.training import augmentation
from drunet_cli.training.augmentation import Variation, draw, part_of, varied
from drunet_cli.training.recipe import AugmentationSettings, Recipe, changed

Floats = npt.NDArray[np.float32]

NOTHING: Final = AugmentationSettings(
    **dict.fromkeys((item.name for item in fields(AugmentationSettings)), 0.0),
)
INTENSITIES: Final = {"contrast": 0.3, "brightness": 0.2, "gamma": 0.3, "bias": 0.3, "noise": 0.2, "blur": 1.0}
GEOMETRY: Final = {"rotation": 30.0, "scale": 0.2, "shift": 0.1}
EVERYTHING: Final = replace(NOTHING, **INTENSITIES, **GEOMETRY)
MEAN: Final = 127 / 255  # reference.md, Normalisation: where the mean of the brain comes to lie
# float32 has 24 bits, and a pixel goes through some ten operations.
ROUNDING: Final = 1e-5

DrawnAtTheirEnds = Callable[..., Variation]


class AtTheirEnds:
    """A generator whose uniform draws are the upper end, and whose normal ones are an SD above the mean."""

    def uniform(self, _low: float, high: float, size: Any) -> npt.NDArray[np.float64]:
        return np.full(size, float(high))

    def standard_normal(self, size: Any) -> npt.NDArray[np.float64]:
        return np.ones(size)


@pytest.fixture
def at_their_ends(monkeypatch: pytest.MonkeyPatch) -> DrawnAtTheirEnds:
    """Draws for one slice of a shape, by settings, what is no matter of chance."""
    monkeypatch.setattr(augmentation, "generator", lambda *_: AtTheirEnds())

    def drawn(shape: tuple[int, int], **settings: float) -> Variation:
        return draw(replace(NOTHING, **settings), seed=0, step=0, n=1, shape=shape)

    return drawn


def batch(n: int = 4, shape: tuple[int, int] = (80, 112), seed: int = 0) -> Tensor:
    """[N, X, Y, 5]: heads of many intensities with background around, in each modality of another size; classes inside."""
    rng = np.random.default_rng(seed)
    x, y = np.indices(shape)
    radius = np.hypot(x - shape[0] / 2, y - shape[1] / 2)
    pixels = rng.integers(60, 200, (n, *shape, 5), dtype=np.uint8)
    for channel, reach in enumerate((30, 31, 32, 33)):
        pixels[..., channel][:, radius > reach] = 0
    pixels[..., 4] = np.where(radius < 15, pixels[..., 4] % 4, 0)
    return torch.from_numpy(pixels)


def one_slice(image: npt.NDArray[Any], classes: npt.NDArray[Any] | None = None) -> Tensor:
    """A batch of one slice, whose four modalities are alike. image: [X, Y], 0-255."""
    layers = [image] * 4 + [np.zeros_like(image) if classes is None else classes]
    return torch.from_numpy(np.stack(layers, axis=-1)[np.newaxis].astype(np.uint8))


def first(images: Tensor) -> Floats:
    """[X, Y] of the first slice and modality."""
    return np.asarray(images[0, 0].numpy())


def disc(shape: tuple[int, int], *, at: tuple[float, float] = (0, 0), radius: float = 20) -> npt.NDArray[np.bool_]:
    """at: pixels from the centre of the window."""
    x, y = np.indices(shape)
    return np.asarray(np.hypot(x - (shape[0] - 1) / 2 - at[0], y - (shape[1] - 1) / 2 - at[1]) < radius)


def centre(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of a mask, in pixels from the centre of the window."""
    return np.asarray(np.argwhere(mask).mean(axis=0) - (np.array(mask.shape) - 1) / 2)


def test_batch_is_unchanged_to_the_byte_where_the_recipe_augments_nothing() -> None:
    pixels = batch()
    images, classes = varied(pixels, draw(NOTHING, seed=0, step=0, n=4, shape=(80, 112)))
    assert torch.equal(images, pixels[..., :4].movedim(3, 1) / 255)
    assert torch.equal(classes, pixels[..., 4].long())


def test_variation_holds_nothing_of_what_the_recipe_leaves_out() -> None:
    assert set(vars(draw(NOTHING, seed=0, step=0, n=4, shape=(80, 112))).values()) == {None}


def test_batch_comes_as_the_network_takes_it() -> None:
    images, classes = varied(batch(), draw(EVERYTHING, seed=0, step=0, n=4, shape=(80, 112)))
    assert (images.shape, images.dtype, classes.shape, classes.dtype) == (
        (4, 4, 80, 112),
        torch.float32,
        (4, 80, 112),
        torch.int64,
    )


def test_images_stay_within_0_and_1_and_classes_among_the_four() -> None:
    strong = replace(EVERYTHING, contrast=0.9, brightness=0.9, gamma=0.9, bias=0.9, noise=0.9)
    images, classes = varied(batch(16), draw(strong, seed=0, step=0, n=16, shape=(80, 112)))
    assert (float(images.min()), float(images.max())) == (0, 1)
    assert set(classes.flatten().tolist()) == {0, 1, 2, 3}


def test_background_of_every_modality_stays_0() -> None:
    pixels = batch()
    images, _ = varied(pixels, draw(replace(NOTHING, **INTENSITIES), seed=0, step=0, n=4, shape=(80, 112)))
    background = (pixels[..., :4] == 0).movedim(3, 1)
    assert not images[background].any()


def test_background_stays_0_wherever_the_warp_has_moved_it() -> None:
    pixels = batch()
    moved, _ = varied(pixels, draw(replace(NOTHING, **GEOMETRY), seed=0, step=0, n=4, shape=(80, 112)))
    images, _ = varied(pixels, draw(EVERYTHING, seed=0, step=0, n=4, shape=(80, 112)))
    assert not images[moved == 0].any()


@pytest.mark.parametrize(("name", "strength"), INTENSITIES.items())
def test_intensity_setting_changes_every_modality_and_no_class(
    name: str, strength: float, at_their_ends: DrawnAtTheirEnds
) -> None:
    pixels = batch(1)
    before, classes_before = varied(pixels, at_their_ends((80, 112)))
    images, classes = varied(pixels, at_their_ends((80, 112), **{name: strength}))
    assert (images - before).abs().amax(dim=(2, 3)).min() > 0.01  # 2.5 of 255 grey levels, where the strengths are 20 % or more
    assert torch.equal(classes, classes_before)


@pytest.mark.parametrize("name", ["contrast", "brightness", "gamma", "bias"])
def test_modalities_of_a_slice_change_each_for_itself(name: str) -> None:
    pixels = one_slice(np.full((48, 48), 150))
    images, _ = varied(pixels, draw(replace(NOTHING, **{name: 0.3}), seed=0, step=0, n=1, shape=(48, 48)))
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(images[0]))


GREYS: Final = np.arange(1, 257).clip(max=255).reshape(16, 16)  # none is background


def test_contrast_multiplies_what_lies_above_the_mean(at_their_ends: DrawnAtTheirEnds) -> None:
    images, _ = varied(one_slice(GREYS), at_their_ends((16, 16), contrast=0.1))
    expected = (GREYS / 255 - MEAN) * np.exp(0.1) + MEAN
    assert first(images) == pytest.approx(expected.clip(1e-6, 1), abs=ROUNDING)


def test_brightness_adds_a_share_of_the_range(at_their_ends: DrawnAtTheirEnds) -> None:
    images, _ = varied(one_slice(GREYS), at_their_ends((16, 16), brightness=0.1))
    assert first(images) == pytest.approx((GREYS / 255 + 0.1).clip(max=1), abs=ROUNDING)


def test_gamma_is_the_log_of_an_exponent(at_their_ends: DrawnAtTheirEnds) -> None:
    images, _ = varied(one_slice(GREYS), at_their_ends((16, 16), gamma=0.2))
    assert first(images) == pytest.approx((GREYS / 255) ** np.exp(0.2), abs=ROUNDING)


def test_bias_is_a_field_that_rises_smoothly_from_edge_to_edge(at_their_ends: DrawnAtTheirEnds) -> None:
    images, _ = varied(one_slice(np.full((48, 80), 127)), at_their_ends((48, 80), bias=0.1))
    along_x, along_y = np.linspace(-0.1, 0.1, 48), np.linspace(-0.1, 0.1, 80)
    assert first(images) == pytest.approx(MEAN * np.exp(along_x[:, np.newaxis] + along_y), abs=ROUNDING)


def test_noise_has_the_sd_of_the_setting_at_its_largest(at_their_ends: DrawnAtTheirEnds) -> None:
    torch.manual_seed(0)
    images, _ = varied(one_slice(np.full((160, 160), 127)), at_their_ends((160, 160), noise=0.05))
    # The SD of 102,400 normal numbers is known to 0.2 %; five times that.
    assert float((images - MEAN).std()) == pytest.approx(0.05, rel=0.011)
    assert float((images - MEAN).mean()) == pytest.approx(0, abs=5 * 0.05 / np.sqrt(images.numel()))


def test_noise_is_no_stronger_than_its_setting_and_not_the_same_in_every_slice() -> None:
    pixels = torch.full((16, 64, 64, 5), 127, dtype=torch.uint8)
    images, _ = varied(pixels, draw(replace(NOTHING, noise=0.05), seed=0, step=0, n=16, shape=(64, 64)))
    sds = images.std(dim=(1, 2, 3))
    assert float(sds.max()) < 0.05 * 1.03  # of 16,384 numbers to 0.55 %; five times that
    assert float(sds.max() - sds.min()) > 0.02


@pytest.mark.parametrize("sd_pixels", [0.4, 0.7, 1.0])
def test_blur_is_gaussian(sd_pixels: float, at_their_ends: DrawnAtTheirEnds) -> None:
    """As scipy's, cut at three pixels, where a Gaussian of an SD of one has 0.3 % left."""
    pixels = batch(1, (48, 80))
    images, _ = varied(pixels, at_their_ends((48, 80), blur=sd_pixels))
    flair = pixels[0, ..., 0].numpy() / 255
    expected = ndimage.gaussian_filter(flair, sd_pixels, mode="constant", radius=3)
    assert first(images) == pytest.approx(np.where(flair > 0, expected, 0), abs=ROUNDING)


@pytest.mark.parametrize("sd_pixels", [2.0, 4.0])
def test_blur_is_as_wide_as_its_setting_says(sd_pixels: float, at_their_ends: DrawnAtTheirEnds) -> None:
    with suppress(MisuseError):  # a setting that is refused need not be done
        changed(Recipe(), {"augmentation": {"blur": sd_pixels}}, where="")
        point = np.ones((81, 81))
        point[40, 40] = 255
        images, _ = varied(one_slice(point), at_their_ends((81, 81), blur=sd_pixels))
        spread = first(images)[20:61, 20:61] - 1 / 255
        sd = float(np.sqrt((spread.sum(axis=1) * (np.arange(41) - 20) ** 2).sum() / spread.sum()))
        assert sd == pytest.approx(sd_pixels, rel=0.05)  # 3 % are lost where a Gaussian is cut at three SD


def test_blur_that_is_drawn_as_0_changes_nothing() -> None:
    pixels = batch(1)
    none = draw(NOTHING, seed=0, step=0, n=1, shape=(80, 112))
    images, _ = varied(pixels, replace(none, blur=np.zeros(1, dtype=np.float32)))
    assert torch.allclose(images, varied(pixels, none)[0], rtol=0, atol=ROUNDING)


SQUARE: Final = slice(22, 62), slice(36, 76)  # in the middle of a window of 84 x 112


@pytest.mark.parametrize("step", range(5))
def test_images_and_classes_move_together(step: int) -> None:
    image = np.full((84, 112), 40)
    classes = np.zeros((84, 112))
    image[SQUARE], classes[SQUARE] = 240, 2
    images, moved = varied(
        one_slice(image, classes), draw(replace(NOTHING, **GEOMETRY), seed=0, step=step, n=1, shape=(84, 112))
    )
    bright, labelled = first(images) > 140 / 255, moved[0].numpy() == 2
    # Where a straight edge is bilinear, half of its height is where the nearest pixel changes; not at the four corners.
    assert np.count_nonzero(bright != labelled) <= 12
    assert np.count_nonzero(labelled != (classes == 2)) > 50


@pytest.mark.parametrize("size", [48, 112])
def test_rotation_by_90_degrees_turns_the_first_axis_towards_the_second(size: int, at_their_ends: DrawnAtTheirEnds) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, size, size, 5), dtype=np.uint8))
    pixels[..., 4] %= 4
    images, _ = varied(pixels, at_their_ends((size, size), rotation=90.0))
    expected = torch.rot90(pixels[..., :4].movedim(3, 1) / 255, 1, dims=(2, 3))
    # The grid is float32 in units of half a window, off by 1e-7 of them: 1e-5 pixels of neighbours that differ by up to 1.
    assert torch.allclose(images, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [48, 112])
def test_rotation_by_90_degrees_turns_classes_as_it_turns_images(size: int, at_their_ends: DrawnAtTheirEnds) -> None:
    map_ = np.random.default_rng(0).integers(0, 4, (size, size))
    _, classes = varied(one_slice(map_, map_), at_their_ends((size, size), rotation=90.0))
    assert np.array_equal(classes[0].numpy(), np.rot90(map_))


@pytest.mark.parametrize("shape", [(112, 144), (176, 112)], ids=str)
@pytest.mark.parametrize("angle", [17.0, 45.0, 90.0, 133.0])
def test_circle_stays_a_circle_when_a_window_that_is_not_square_turns(
    shape: tuple[int, int], angle: float, at_their_ends: DrawnAtTheirEnds
) -> None:
    mask = disc(shape, at=(24, 0))
    _, classes = varied(one_slice(mask, mask), at_their_ends(shape, rotation=angle))
    # Twenty pixels across, whose border the nearest pixel decides: half a pixel of the centre, 5 % of the area.
    turn = np.deg2rad(angle)
    expected = disc(shape, at=(24 * np.cos(turn), 24 * np.sin(turn)))
    turned = classes[0].numpy() > 0
    overlap = 2 * np.count_nonzero(turned & expected) / (np.count_nonzero(turned) + np.count_nonzero(expected))
    assert centre(turned) == pytest.approx(centre(expected), abs=0.5)
    assert overlap > 0.95


def test_scale_enlarges_by_its_share_about_the_centre(at_their_ends: DrawnAtTheirEnds) -> None:
    mask = disc((112, 144), at=(10, -20))
    _, classes = varied(one_slice(mask, mask), at_their_ends((112, 144), scale=0.25))
    enlarged = classes[0].numpy() > 0
    assert centre(enlarged) == pytest.approx([12.5, -25], abs=0.5)  # half a pixel: the nearest one decides
    assert np.count_nonzero(enlarged) == pytest.approx(1.25**2 * np.count_nonzero(mask), rel=0.03)


def test_shift_moves_by_its_share_of_the_window(at_their_ends: DrawnAtTheirEnds) -> None:
    mask = disc((112, 144))
    _, classes = varied(one_slice(mask, mask), at_their_ends((112, 144), shift=0.125))
    assert np.abs(centre(classes[0].numpy() > 0)) == pytest.approx([14, 18], abs=0.5)  # half a pixel


def test_shift_moves_every_slice_its_own_way() -> None:
    mask = disc((112, 144), radius=10)
    pixels = one_slice(mask, mask).repeat(8, 1, 1, 1)
    _, classes = varied(pixels, draw(replace(NOTHING, shift=0.2), seed=0, step=0, n=8, shape=(112, 144)))
    moved = np.array([centre(of.numpy() > 0) for of in classes])
    assert len(np.unique(moved.round(1), axis=0)) == 8
    assert (np.abs(moved).max(axis=0) > 2).all()


def test_rotation_is_no_larger_than_its_setting_and_goes_both_ways() -> None:
    mask = disc((112, 112), at=(40, 0), radius=8)
    pixels = one_slice(mask, mask).repeat(64, 1, 1, 1)
    _, classes = varied(pixels, draw(replace(NOTHING, rotation=30.0), seed=0, step=0, n=64, shape=(112, 112)))
    x, y = np.array([centre(of.numpy() > 0) for of in classes]).T
    angles = np.rad2deg(np.arctan2(y, x))
    # A degree is 0.7 pixels at this radius. The ends of 64 uniform draws lie within 12 % of the range but once in 3,000.
    assert np.abs(angles).max() < 31
    assert angles.min() < -22
    assert angles.max() > 22


def test_what_the_warp_brings_in_from_outside_is_background(at_their_ends: DrawnAtTheirEnds) -> None:
    full = np.full((48, 80), 200)
    images, classes = varied(one_slice(full, full % 4 + 1), at_their_ends((48, 80), rotation=90.0))
    assert not images[..., :10].any()
    assert not classes[..., :10].any()


def same(one: Variation, other: Variation) -> bool:
    return all(
        (mine is None and yours is None) or (mine is not None and yours is not None and np.array_equal(mine, yours))
        for mine, yours in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_same_seed_and_step_draw_alike() -> None:
    assert same(*(draw(EVERYTHING, seed=3, step=7, n=4, shape=(48, 80)) for _ in range(2)))


@pytest.mark.parametrize(("seed", "step"), [(4, 7), (3, 8)], ids=["seed", "step"])
def test_another_seed_or_step_draws_all_otherwise(seed: int, step: int) -> None:
    one = draw(EVERYTHING, seed=3, step=7, n=4, shape=(48, 80))
    other = draw(EVERYTHING, seed=seed, step=step, n=4, shape=(48, 80))
    assert not any(np.array_equal(mine, yours) for mine, yours in zip(vars(one).values(), vars(other).values(), strict=True))


def test_every_place_of_a_batch_draws_otherwise() -> None:
    for array in vars(draw(EVERYTHING, seed=0, step=0, n=4, shape=(48, 80))).values():
        assert len(np.unique(array.reshape(4, -1), axis=0)) == 4


KINDS: Final = {
    "warp": GEOMETRY,
    "intensity": {name: INTENSITIES[name] for name in ("contrast", "brightness", "gamma")},
    **{name: {name: INTENSITIES[name]} for name in ("bias", "noise", "blur")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_one_kind_are_those_of_all_kinds_together(kind: str) -> None:
    alone = draw(replace(NOTHING, **KINDS[kind]), seed=0, step=0, n=4, shape=(48, 80))
    together = draw(EVERYTHING, seed=0, step=0, n=4, shape=(48, 80))
    assert np.array_equal(vars(alone)[kind], vars(together)[kind])


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 6), slice(5, 6)], ids=str)
def test_part_of_a_batch_varies_as_that_part_of_the_whole(part: slice) -> None:
    pixels = batch(6, (48, 80))
    variation = draw(replace(EVERYTHING, noise=0.0), seed=0, step=0, n=6, shape=(48, 80))
    images, classes = varied(pixels, variation)
    own_images, own_classes = varied(pixels[part], part_of(variation, part))
    # Equal to float32 rounding: how a blur is computed may depend on the size of the batch.
    assert torch.allclose(own_images, images[part], rtol=0, atol=ROUNDING)
    assert torch.equal(own_classes, classes[part])


def test_part_of_a_variation_has_nothing_where_the_whole_has_nothing() -> None:
    assert set(vars(part_of(draw(NOTHING, seed=0, step=0, n=4, shape=(48, 48)), slice(0, 2))).values()) == {None}


def test_noise_is_that_of_the_devices_generator() -> None:
    variation = draw(replace(NOTHING, noise=0.1), seed=0, step=0, n=4, shape=(80, 112))
    noisy = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        noisy.append(varied(batch(), variation)[0])
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])


def test_pixels_of_the_batch_are_left_as_they_are() -> None:
    pixels = batch()
    varied(pixels, draw(EVERYTHING, seed=0, step=0, n=4, shape=(80, 112)))
    assert torch.equal(pixels, batch())
