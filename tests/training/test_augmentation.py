"""What augmentation does to a batch, and what it leaves alone."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from drunet_cli.training import batches
from drunet_cli.training.batches import Variation, draw_variation, vary
from drunet_cli.training.recipe import AugmentationSettings

Floats = npt.NDArray[Any]
Draw = Callable[..., Variation]

NOTHING: Final = AugmentationSettings(**dict.fromkeys((item.name for item in fields(AugmentationSettings)), 0.0))
INTENSITIES: Final = {"contrast": 0.3, "brightness": 0.2, "gamma": 0.3, "bias": 0.3, "noise": 0.2, "blur": 1.0}
GEOMETRY: Final = {"rotation": 30.0, "scale": 0.2, "shift": 0.1}
EVERYTHING: Final = replace(NOTHING, **INTENSITIES, **GEOMETRY)
SHAPE: Final = (80, 112)
MEAN: Final = 127 / 255  # where normalisation puts the mean of the brain
ROUNDING: Final = 1e-5  # float32 has 24 bits, and a pixel goes through some ten operations


class LargestDraws:
    """A generator whose uniform draws are the upper end, and whose normal draws are one SD above the mean."""

    def uniform(self, _low: float, high: float, size: Any) -> Floats:
        return np.full(size, float(high))

    def standard_normal(self, size: Any) -> Floats:
        return np.ones(size)


@pytest.fixture
def draw_largest(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draw the largest variation of one slice of a shape, so that nothing is a matter of chance."""
    monkeypatch.setattr(batches, "generator", lambda *_: LargestDraws())
    return lambda shape, **settings: draw_variation(replace(NOTHING, **settings), seed=0, step=0, n=1, shape=shape)


def draw(
    settings: AugmentationSettings, *, seed: int = 0, step: int = 0, n: int = 4, shape: tuple[int, int] = SHAPE
) -> Variation:
    return draw_variation(settings, seed=seed, step=step, n=n, shape=shape)


def batch(n: int = 4, shape: tuple[int, int] = SHAPE) -> Tensor:
    """[N, X, Y, 5]: heads of noise, in each modality of another size, with background around; classes inside."""
    rng = np.random.default_rng(0)
    x, y = np.indices(shape)
    radius = np.hypot(x - shape[0] / 2, y - shape[1] / 2)
    pixels = rng.integers(60, 200, (n, *shape, 5), dtype=np.uint8)
    for channel, reach in enumerate((30, 31, 32, 33)):
        pixels[..., channel][:, radius > reach] = 0
    pixels[..., 4] = np.where(radius < 15, pixels[..., 4] % 4, 0)
    return torch.from_numpy(pixels)


def one_slice(image: Floats, classes: Floats | None = None) -> Tensor:
    """A batch of one slice [X, Y], 0-255, whose four modalities are alike."""
    layers = [image] * 4 + [np.zeros_like(image) if classes is None else classes]
    return torch.from_numpy(np.stack(layers, axis=-1)[np.newaxis].astype(np.uint8))


def disc(shape: tuple[int, int], *, at: tuple[float, float] = (0, 0), radius: float = 20) -> npt.NDArray[np.bool_]:
    """at: pixels from the centre of the window."""
    x, y = np.indices(shape)
    return np.asarray(np.hypot(x - (shape[0] - 1) / 2 - at[0], y - (shape[1] - 1) / 2 - at[1]) < radius)


def centre(mask: npt.NDArray[np.bool_]) -> Floats:
    """Centre of a mask, in pixels from the centre of the window."""
    return np.asarray(np.argwhere(mask).mean(axis=0) - (np.array(mask.shape) - 1) / 2)


# What stays


def test_batch_is_unchanged_to_the_byte_where_the_recipe_augments_nothing() -> None:
    pixels, variation = batch(), draw(NOTHING)
    images, classes = vary(pixels, variation)
    assert set(vars(variation).values()) == set(vars(variation.part(slice(0, 2))).values()) == {None}
    assert torch.equal(images, pixels[..., :4].movedim(3, 1) / 255)
    assert torch.equal(classes, pixels[..., 4].long())


def test_images_stay_within_0_and_1_and_background_and_classes_are_kept() -> None:
    strong = replace(EVERYTHING, contrast=0.9, brightness=0.9, gamma=0.9, bias=0.9, noise=0.9)
    pixels = batch(16)
    images, classes = vary(pixels, draw(strong, n=16))
    moved, _ = vary(pixels, draw(replace(NOTHING, **GEOMETRY), n=16))
    assert (images.shape, images.dtype, classes.shape, classes.dtype) == (
        (16, 4, *SHAPE),
        torch.float32,
        (16, *SHAPE),
        torch.int64,
    )
    assert (float(images.min()), float(images.max())) == (0, 1)
    assert set(classes.flatten().tolist()) == {0, 1, 2, 3}
    assert not images[moved == 0].any()  # the background, wherever the warp has moved it
    assert torch.equal(pixels, batch(16))


# Intensities

GREYS: Final = np.arange(1, 257).clip(max=255).reshape(16, 16)  # none is background
FORMULAS: Final[dict[str, Callable[[Floats], Floats]]] = {
    "contrast": lambda grey: ((grey - MEAN) * np.exp(0.1) + MEAN).clip(1e-6, 1),
    "brightness": lambda grey: (grey + 0.1).clip(max=1),
    "gamma": lambda grey: grey ** np.exp(0.1),
    "bias": lambda grey: (grey * np.exp(np.linspace(-0.1, 0.1, 16)[:, np.newaxis] + np.linspace(-0.1, 0.1, 16))).clip(max=1),
}


@pytest.mark.parametrize(("name", "formula"), FORMULAS.items())
def test_intensity_varies_by_its_formula(name: str, formula: Callable[[Floats], Floats], draw_largest: Draw) -> None:
    images, _ = vary(one_slice(GREYS), draw_largest((16, 16), **{name: 0.1}))
    for modality in images[0].numpy():
        assert modality == pytest.approx(formula(GREYS / 255), abs=ROUNDING)


@pytest.mark.parametrize("name", FORMULAS)
def test_modalities_vary_each_for_itself_and_classes_do_not(name: str) -> None:
    images, classes = vary(one_slice(np.full((48, 48), 150), np.full((48, 48), 3)), draw(replace(NOTHING, **{name: 0.3}), n=1))
    assert (
        len({round(float(image.mean()), 4) for image in images[0]} | {round(float(image[0, 0]), 4) for image in images[0]}) >= 4
    )
    assert set(classes.flatten().tolist()) == {3}


def test_noise_has_the_sd_of_its_setting_at_most_and_comes_from_the_generator_of_the_device(draw_largest: Draw) -> None:
    pixels, variation = one_slice(np.full((160, 160), 127)), draw_largest((160, 160), noise=0.05)
    noisy = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        noisy.append(vary(pixels, variation)[0])
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    # The SD of 102,400 normal numbers is known to 0.2 %; five times that.
    assert float((noisy[0] - MEAN).std()) == pytest.approx(0.05, rel=0.011)
    assert float((noisy[0] - MEAN).mean()) == pytest.approx(0, abs=5 * 0.05 / np.sqrt(noisy[0].numel()))


@pytest.mark.parametrize("sd_pixels", [0.4, 0.7, 1.0])
def test_blur_is_gaussian(sd_pixels: float, draw_largest: Draw) -> None:
    """Like scipy's, cut at three pixels."""
    pixels = batch(1, (48, 80))
    images, _ = vary(pixels, draw_largest((48, 80), blur=sd_pixels))
    flair = pixels[0, ..., 0].numpy() / 255
    expected = ndimage.gaussian_filter(flair, sd_pixels, mode="constant", radius=3)
    assert images[0, 0].numpy() == pytest.approx(np.where(flair > 0, expected, 0), abs=ROUNDING)


# Geometry


@pytest.mark.parametrize("step", range(5))
def test_images_and_classes_move_together(step: int) -> None:
    image, classes = np.full((84, 112), 40), np.zeros((84, 112))
    image[22:62, 36:76], classes[22:62, 36:76] = 240, 2
    images, moved = vary(one_slice(image, classes), draw(replace(NOTHING, **GEOMETRY), step=step, n=1, shape=(84, 112)))
    bright, labelled = images[0, 0].numpy() > 140 / 255, moved[0].numpy() == 2
    # Where a straight edge is bilinear, half of its height is where the nearest pixel changes; not at the four corners.
    assert np.count_nonzero(bright != labelled) <= 12
    assert np.count_nonzero(labelled != (classes == 2)) > 50


@pytest.mark.parametrize("size", [48, 112])
def test_rotation_by_90_degrees_turns_the_first_axis_towards_the_second(size: int, draw_largest: Draw) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, size, size, 5), dtype=np.uint8))
    pixels[..., 4] %= 4
    images, classes = vary(pixels, draw_largest((size, size), rotation=90.0))
    expected = torch.rot90(pixels.movedim(3, 1), 1, dims=(2, 3))
    # The grid is float32 in units of half a window, off by 1e-7 of them: 1e-5 pixels of neighbours that differ by up to 1.
    assert torch.allclose(images, expected[:, :4] / 255, rtol=0, atol=5e-5)
    assert torch.equal(classes, expected[:, 4].long())


@pytest.mark.parametrize("shape", [(112, 144), (176, 112)], ids=str)
@pytest.mark.parametrize("angle", [17.0, 90.0, 133.0])
def test_circle_stays_a_circle_when_a_window_that_is_not_square_turns(
    shape: tuple[int, int], angle: float, draw_largest: Draw
) -> None:
    mask = disc(shape, at=(24, 0))
    _, classes = vary(one_slice(mask, mask), draw_largest(shape, rotation=angle))
    # Twenty pixels across, whose border the nearest pixel decides: half a pixel of the centre, 5 % of the area.
    turn = np.deg2rad(angle)
    expected, turned = disc(shape, at=(24 * np.cos(turn), 24 * np.sin(turn))), classes[0].numpy() > 0
    assert centre(turned) == pytest.approx(centre(expected), abs=0.5)
    assert 2 * np.count_nonzero(turned & expected) > 0.95 * (np.count_nonzero(turned) + np.count_nonzero(expected))


def test_scale_enlarges_about_the_centre_and_shift_moves_by_a_share_of_the_window(draw_largest: Draw) -> None:
    mask = disc((112, 144), at=(10, -20))
    _, classes = vary(one_slice(mask, mask), draw_largest((112, 144), scale=0.25))
    enlarged = classes[0].numpy() > 0
    assert centre(enlarged) == pytest.approx([12.5, -25], abs=0.5)  # half a pixel: the nearest one decides
    assert np.count_nonzero(enlarged) == pytest.approx(1.25**2 * np.count_nonzero(mask), rel=0.03)
    mask = disc((112, 144))
    _, classes = vary(one_slice(mask, mask), draw_largest((112, 144), shift=0.125))
    assert np.abs(centre(classes[0].numpy() > 0)) == pytest.approx([14, 18], abs=0.5)


def test_rotation_is_no_larger_than_its_setting_and_goes_both_ways() -> None:
    mask = disc((112, 112), at=(40, 0), radius=8)
    _, classes = vary(one_slice(mask, mask).repeat(64, 1, 1, 1), draw(replace(NOTHING, rotation=30.0), n=64, shape=(112, 112)))
    x, y = np.array([centre(found.numpy() > 0) for found in classes]).T
    angles = np.rad2deg(np.arctan2(y, x))
    # A degree is 0.7 pixels at this radius. The ends of 64 uniform draws lie within 12 % of the range but once in 3,000.
    assert np.abs(angles).max() < 31
    assert (angles.min() < -22, angles.max() > 22) == (True, True)


def test_warp_brings_in_background_from_outside(draw_largest: Draw) -> None:
    full = np.full((48, 80), 200)
    images, classes = vary(one_slice(full, full % 4 + 1), draw_largest((48, 80), rotation=90.0))
    assert not images[..., :10].any()
    assert not classes[..., :10].any()


# Draws


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    one, same = (vars(draw(EVERYTHING, seed=3, step=7)) for _ in range(2))
    others = [vars(draw(EVERYTHING, seed=seed, step=step)) for seed, step in ((4, 7), (3, 8))]
    for kind, array in one.items():
        assert np.array_equal(array, same[kind])
        assert not any(np.array_equal(array, other[kind]) for other in others)
        assert len(np.unique(array.reshape(4, -1), axis=0)) == 4


KINDS: Final = {
    "warp": GEOMETRY,
    "intensity": {name: INTENSITIES[name] for name in ("contrast", "brightness", "gamma")},
    **{name: {name: INTENSITIES[name]} for name in ("bias", "noise", "blur")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_one_kind_do_not_depend_on_the_others(kind: str) -> None:
    assert np.array_equal(vars(draw(replace(NOTHING, **KINDS[kind])))[kind], vars(draw(EVERYTHING))[kind])


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 6), slice(5, 6)], ids=str)
def test_part_of_a_batch_varies_as_that_part_of_the_whole(part: slice) -> None:
    pixels = batch(6, (48, 80))
    variation = draw(replace(EVERYTHING, noise=0.0), n=6, shape=(48, 80))
    images, classes = vary(pixels, variation)
    own_images, own_classes = vary(pixels[part], variation.part(part))
    # Equal to float32 rounding: how a blur is computed may depend on the size of the batch.
    assert torch.allclose(own_images, images[part], rtol=0, atol=ROUNDING)
    assert torch.equal(own_classes, classes[part])
