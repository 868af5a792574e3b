"""The batch of a step: its slices and windows, made ready before the device asks, and varied as scanners and heads vary.

Every draw depends on the seed and the step alone: a resumed run, or one with more processes, sees the same batches. The
variation of a slice depends on the size and shape of the batch and the place of the slice in it too; the noise of the pixels
comes from the generator of the device.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from drunet_cli.brats import CHANNELS
from drunet_cli.io.geometry import FRAME
from drunet_cli.network.engine import WINDOW_STRIDE
from drunet_cli.training.recipe import AugmentationSettings, BatchSettings, Sampling, Stream, generator
from drunet_cli.training.store import StoredCase

_N_LAYERS: Final = len(CHANNELS) + 1  # four modalities and the class index
_AHEAD: Final = 4  # batches that are made before they are asked for
_BRAIN: Final = 0  # column of StoredCase.counts; the tumour classes follow
_MIDDLE: Final = 127 / 255  # where normalisation puts the mean of the brain
_BLUR_REACH: Final = 3  # pixels


@dataclass(frozen=True)
class SliceWindow:
    """A rectangle of slice z of a case, from pixel (x, y) of the frame on; and how it is mirrored."""

    case: int
    z: int
    x: int
    y: int
    flip_x: bool
    flip_y: bool


@dataclass(frozen=True)
class BatchPlan:
    """The batch of one step. shape: [X, Y] of all its windows."""

    step: int
    shape: tuple[int, int]
    windows: tuple[SliceWindow, ...]


class Planner:
    """Draws the batches of a training on these cases."""

    def __init__(
        self, cases: Sequence[StoredCase], batches: BatchSettings, augmentation: AugmentationSettings, *, seed: int
    ) -> None:
        self._cases = cases
        self._batches = batches
        self._augmentation = augmentation
        self._seed = seed
        self._all = [(index, z) for index, case in enumerate(cases) for z in range(case.n_slices)]
        self._brain = [np.flatnonzero(case.counts[:, _BRAIN]) for case in cases]
        self._with_class = [
            [found for column in case.counts[:, 1:].T if len(found := np.flatnonzero(column))] for case in cases
        ]
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def plan(self, step: int) -> BatchPlan:
        """The batch of a step, counted from 0."""
        rng = generator(self._seed, Stream.WINDOWS, step)
        shapes = self._batches.windows or ((FRAME, FRAME),)
        shape = shapes[int(rng.integers(len(shapes)))]
        if self._batches.sampling is Sampling.ALL:
            chosen = [(case, z, False) for case, z in self._next_in_order(step)]
        else:
            chosen = [self._draw_slice(rng) for _ in range(self._batches.size)]
        return BatchPlan(step, shape, tuple(self._window(rng, case, z, shape, for_tumour) for case, z, for_tumour in chosen))

    def _next_in_order(self, step: int) -> list[tuple[int, int]]:
        """Case and index of slices, when every slice comes once in each pass over all slices."""
        size = self._batches.size
        pass_number, within = divmod(step, len(self._all) // size)
        if self._order is None or self._order[0] != pass_number:
            self._order = pass_number, generator(self._seed, Stream.ORDER, pass_number).permutation(len(self._all))
        return [self._all[index] for index in self._order[1][within * size : (within + 1) * size]]

    def _draw_slice(self, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Draw a case, then one of its slices with brain or, with probability tumour_share, one with a tumour class.

        The class is drawn first among those that the case has. Returns case, index, and whether a tumour class was asked for.
        """
        case = int(rng.integers(len(self._cases)))
        classes = self._with_class[case]
        for_tumour = bool(rng.random() < self._batches.tumour_share and classes)
        slices = classes[int(rng.integers(len(classes)))] if for_tumour else self._brain[case]
        return case, int(rng.choice(slices)), for_tumour

    def _window(self, rng: np.random.Generator, case: int, z: int, shape: tuple[int, int], for_tumour: bool) -> SliceWindow:
        source = self._cases[case]
        box = (source.tumour_boxes if for_tumour else source.brain_boxes)[z]
        x = _start(rng, shape[0], int(box[0]), int(box[1]))
        y = _start(rng, shape[1], int(box[2]), int(box[3]))
        flips = rng.random(2) < (self._augmentation.flip_x, self._augmentation.flip_y)
        return SliceWindow(case, z, x, y, bool(flips[0]), bool(flips[1]))


def _start(rng: np.random.Generator, size: int, first: int, end: int) -> int:
    """Draw a multiple of the stride from which a window of this size holds as much of the interval as it can."""
    starts = np.arange(0, FRAME - size + 1, WINDOW_STRIDE)
    held = np.clip(np.minimum(starts + size, end) - np.maximum(starts, first), 0, None)
    return int(rng.choice(starts[held == held.max()]))


def assemble(plan: BatchPlan, cases: Sequence[StoredCase], part: slice = slice(None)) -> npt.NDArray[np.uint8]:
    """Read the windows of a plan, or of a part of it, as [N, X, Y, 5]: four modalities and the class index."""
    windows = plan.windows[part]
    batch = np.empty((len(windows), *plan.shape, _N_LAYERS), dtype=np.uint8)
    for pixels, window in zip(batch, windows, strict=True):
        source = cases[window.case].window(window.z, window.x, window.y, plan.shape)
        pixels[:] = source[:: -1 if window.flip_x else 1, :: -1 if window.flip_y else 1]
    return batch


class Feed:
    """The batches of steps first to end, in order, which threads assemble while the device computes.

    part: the slices of each batch that this process learns from. waited_s: how long the training has waited for batches.
    """

    def __init__(
        self,
        planner: Planner,
        cases: Sequence[StoredCase],
        *,
        first: int,
        end: int,
        device: torch.device,
        part: slice = slice(None),
        threads: int = 1,
    ) -> None:
        self._planner, self._cases, self._device, self._part = planner, cases, device, part
        self._steps = iter(range(first, end))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._waiting: deque[tuple[BatchPlan, Future[Tensor]]] = deque()
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[tuple[BatchPlan, Tensor]]:
        """Yield each plan with its pixels [N, X, Y, 5] uint8 on the device."""
        for _ in range(_AHEAD):
            self._submit_next()
        while self._waiting:
            plan, future = self._waiting.popleft()
            begin = time.perf_counter()
            pixels = future.result()
            self.waited_s += time.perf_counter() - begin
            self._submit_next()
            yield plan, pixels.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the threads; batches that were not taken are dropped."""
        self._executor.shutdown(cancel_futures=True)

    def _submit_next(self) -> None:
        if (step := next(self._steps, None)) is not None:
            plan = self._planner.plan(step)
            self._waiting.append((plan, self._executor.submit(self._assemble, plan)))

    def _assemble(self, plan: BatchPlan) -> Tensor:
        pixels = torch.from_numpy(assemble(plan, self._cases, self._part))
        return pixels.pin_memory() if self._device.type == "cuda" else pixels


@dataclass(frozen=True)
class Variation:
    """The variations of the N slices of a batch; None for one that the recipe leaves out.

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
