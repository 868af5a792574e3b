"""Which slices, and which windows of them, make the batch of a step; and batches ready before the device asks for them.

Every draw depends on the seed and the step alone: a resumed run, or one with more processes, sees the same batches.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS
from drunet_cli.io.geometry import FRAME
from drunet_cli.network.engine import WINDOW_STRIDE
from drunet_cli.training.recipe import AugmentationSettings, BatchSettings, Sampling, Stream, generator
from drunet_cli.training.store import StoredCase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_N_LAYERS: Final = len(CHANNELS) + 1  # four modalities and the class index
_AHEAD: Final = 4  # batches that are made before they are asked for
_BRAIN: Final = 0  # column of StoredCase.counts; the tumour classes follow


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
        device: "torch.device",
        part: slice = slice(None),
        threads: int = 1,
    ) -> None:
        self._planner, self._cases, self._device, self._part = planner, cases, device, part
        self._steps = iter(range(first, end))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._waiting: deque[tuple[BatchPlan, Future[Tensor]]] = deque()
        self.waited_s = 0.0

    def __iter__(self) -> "Iterator[tuple[BatchPlan, Tensor]]":
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

    def _assemble(self, plan: BatchPlan) -> "Tensor":
        import torch

        pixels = torch.from_numpy(assemble(plan, self._cases, self._part))
        return pixels.pin_memory() if self._device.type == "cuda" else pixels
