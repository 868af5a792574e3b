"""Batches varied as scanners and heads vary, on the device that trains.

The variation of a slice depends on the seed, the step, the size and shape of the batch, and the place of the slice in it. The
noise of the pixels comes from the generator of the device.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from drunet_cli.brats import CHANNELS
from drunet_cli.training.recipe import AugmentationSettings, Stream, generator

_MIDDLE: Final = 127 / 255  # where normalisation puts the mean of the brain
_BLUR_REACH: Final = 3  # pixels


@dataclass(frozen=True)
class Variation:
    """How the N slices of a batch are varied; None for what the recipe leaves out.

    warp: [N, 2, 3], from places on the varied slice to places on the given slice, both -1 to 1, Y before X for grid_sample.
    intensity: [N, 4, 3], gain, offset and gamma of each modality. bias: [N, 4, 2], slopes of a smooth field along X and Y.
    noise: [N], SD in the range 0-1. blur: [N], SD in pixels.
    """

    warp: npt.NDArray[np.float32] | None
    intensity: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.float32] | None
    noise: npt.NDArray[np.float32] | None
    blur: npt.NDArray[np.float32] | None

    def part(self, part: slice) -> "Variation":
        """Return the variation of some of the slices."""
        return Variation(**{name: None if array is None else array[part] for name, array in vars(self).items()})


def draw_variation(settings: AugmentationSettings, *, seed: int, step: int, n: int, shape: tuple[int, int]) -> Variation:
    """Draw the variation of a batch of n windows of one shape."""
    rng = generator(seed, Stream.AUGMENTATION, step)
    modalities = (n, len(CHANNELS))
    # Everything is drawn, also what the recipe leaves out, so that one setting does not change the draws of another.
    angle, zoom, shift = rng.uniform(-1, 1, n), rng.uniform(-1, 1, n), rng.uniform(-1, 1, (n, 2))
    normal = rng.standard_normal((*modalities, 3))
    slopes = rng.standard_normal((*modalities, 2))
    noise, blur = rng.uniform(0, 1, n), rng.uniform(0, 1, n)
    intensity = np.stack(
        [
            np.exp(settings.contrast * normal[..., 0]),
            settings.brightness * normal[..., 1],
            np.exp(settings.gamma * normal[..., 2]),
        ],
        axis=-1,
    )
    return Variation(
        warp=_warp(np.deg2rad(settings.rotation) * angle, 1 + settings.scale * zoom, 2 * settings.shift * shift, shape)
        if settings.rotation or settings.scale or settings.shift
        else None,
        intensity=intensity.astype(np.float32) if settings.contrast or settings.brightness or settings.gamma else None,
        bias=(settings.bias * slopes).astype(np.float32) if settings.bias else None,
        noise=(settings.noise * noise).astype(np.float32) if settings.noise else None,
        blur=(settings.blur * blur).astype(np.float32) if settings.blur else None,
    )


def vary(pixels: Tensor, variation: Variation) -> tuple[Tensor, Tensor]:
    """Make images [N, 4, X, Y] float in 0-1 and classes [N, X, Y] int64 of a batch [N, X, Y, 5] uint8, both warped alike.

    Background is 0 before and after; it moves with the warp.
    """
    layers = pixels.permute(0, 3, 1, 2)
    images, classes = layers[:, :-1].float() / 255, layers[:, -1:]
    if variation.warp is not None:
        grid = functional.affine_grid(_on(variation.warp, pixels), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
        classes = functional.grid_sample(classes.float(), grid, mode="nearest", align_corners=False)
    brain = images > 0
    if variation.blur is not None:
        images = _blurred(images, _on(variation.blur, pixels))
    if variation.intensity is not None:
        gain, offset, gamma = _on(variation.intensity, pixels)[:, :, :, None, None].unbind(dim=2)
        images = ((images - _MIDDLE) * gain + _MIDDLE + offset).clamp(1e-6, 1) ** gamma
    if variation.bias is not None:
        images = images * _field(_on(variation.bias, pixels), images.shape[2:])
    if variation.noise is not None:
        images = images + torch.randn_like(images) * _on(variation.noise, pixels)[:, None, None, None]
    return images.clamp(0, 1) * brain, classes[:, 0].long()


def _warp(
    angle: npt.NDArray[np.float64], zoom: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Rotate by an angle, and zoom, around the centre of windows [X, Y] that need not be square."""
    x, y = shape
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    # grid_sample counts in halves of the sides, so that a rotation of pixels contains the ratio of the sides.
    rows = [[cosine, -sine * x / y, shift[:, 1]], [sine * y / x, cosine, shift[:, 0]]]
    return np.moveaxis(np.array(rows), 2, 0).astype(np.float32)


def _field(slopes: Tensor, shape: torch.Size) -> Tensor:
    """Return smooth factors [N, 4, X, Y] around 1."""
    along_x, along_y = (torch.linspace(-1, 1, size, device=slopes.device) for size in shape)
    return (slopes[..., 0, None, None] * along_x[:, None] + slopes[..., 1, None, None] * along_y).exp()


def _blurred(images: Tensor, sd_pixels: Tensor) -> Tensor:
    """Blur each slice with a Gaussian of its own SD."""
    n, channels, x, y = images.shape
    places = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, device=images.device)
    kernel = torch.exp(-0.5 * (places / sd_pixels.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None, :]
    flat = images.reshape(1, n * channels, x, y)
    flat = functional.conv2d(flat, kernel[..., None], padding=(_BLUR_REACH, 0), groups=n * channels)
    flat = functional.conv2d(flat, kernel[:, :, None], padding=(0, _BLUR_REACH), groups=n * channels)
    return flat.reshape(n, channels, x, y)


def _on(array: npt.NDArray[np.float32], like: Tensor) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor.to(like.device)
