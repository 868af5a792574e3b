"""Which slices, and which windows of them, make the batch of a step.

Every draw is a function of the seed and the step alone: a resumed run, or one with more processes, sees the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS
from drunet_cli.io.geometry import FRAME
from drunet_cli.training.recipe import WINDOW_STRIDE, AugmentationSettings, BatchSettings, Sampling

Pixels = npt.NDArray[np.uint8]
N_LAYERS: Final = len(CHANNELS) + 1  # four modalities and the class index
_BRAIN: Final = 0  # column of SliceSource.counts; the tumour classes follow


class Stream(IntEnum):
    """Draws that are independent of one another."""

    ORDER = 1
    WINDOWS = 2
    AUGMENTATION = 3
    DEVICE = 4
    SPLIT = 5


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The draws of one stream at one step or epoch."""
    return np.random.default_rng([seed, stream, index])


class SliceSource(Protocol):
    """What is needed of a case: see `store.StoredCase`."""

    @property
    def n_slices(self) -> int: ...  # noqa: D102

    @property
    def counts(self) -> npt.NDArray[np.int64]: ...  # noqa: D102

    @property
    def brain_boxes(self) -> npt.NDArray[np.int64]: ...  # noqa: D102

    @property
    def tumour_boxes(self) -> npt.NDArray[np.int64]: ...  # noqa: D102

    def window(self, z: int, x: int, y: int, shape: tuple[int, int]) -> Pixels: ...  # noqa: D102


@dataclass(frozen=True)
class Window:
    """A rectangle of one slice: of which case, at which index, from where on the frame; and how it is mirrored."""

    case: int
    z: int
    x: int
    y: int
    flip_x: bool
    flip_y: bool


@dataclass(frozen=True)
class BatchPlan:
    """The batch of one step. shape: of its windows."""

    step: int
    shape: tuple[int, int]
    windows: tuple[Window, ...]


class Planner:
    """Draws the batches of a training on these cases."""

    def __init__(
        self, cases: Sequence[SliceSource], batches: BatchSettings, augmentation: AugmentationSettings, *, seed: int
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

    @property
    def n_slices(self) -> int:
        """Of all cases."""
        return len(self._all)

    @property
    def steps_of_all_slices(self) -> int:
        """Whole batches that one pass over all slices makes."""
        return self.n_slices // self._batches.size

    def plan(self, step: int) -> BatchPlan:
        """The batch of a step, counted from 0."""
        rng = generator(self._seed, Stream.WINDOWS, step)
        shapes = self._batches.windows or ((FRAME, FRAME),)
        shape = shapes[int(rng.integers(len(shapes)))]
        if self._batches.sampling is Sampling.ALL:
            chosen = [(case, z, False) for case, z in self._of_all(step)]
        else:
            chosen = [self._favoured(rng) for _ in range(self._batches.size)]
        return BatchPlan(step, shape, tuple(self._window(rng, case, z, shape, for_tumour) for case, z, for_tumour in chosen))

    def _of_all(self, step: int) -> list[tuple[int, int]]:
        epoch, within = divmod(step, self.steps_of_all_slices)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, generator(self._seed, Stream.ORDER, epoch).permutation(self.n_slices)
        size = self._batches.size
        return [self._all[index] for index in self._order[1][within * size : (within + 1) * size]]

    def _favoured(self, rng: np.random.Generator) -> tuple[int, int, bool]:
        """A slice of a case drawn evenly: one that holds a class drawn evenly among the case's, or any that holds brain."""
        case = int(rng.integers(len(self._cases)))
        classes = self._with_class[case]
        for_tumour = bool(rng.random() < self._batches.tumour_share and classes)
        slices = classes[int(rng.integers(len(classes)))] if for_tumour else self._brain[case]
        return case, int(rng.choice(slices)), for_tumour

    def _window(self, rng: np.random.Generator, case: int, z: int, shape: tuple[int, int], for_tumour: bool) -> Window:
        source = self._cases[case]
        box = (source.tumour_boxes if for_tumour else source.brain_boxes)[z]
        x = _start(rng, shape[0], int(box[0]), int(box[1]))
        y = _start(rng, shape[1], int(box[2]), int(box[3]))
        flips = rng.random(2) < (self._augmentation.flip_x, self._augmentation.flip_y)
        return Window(case, z, x, y, bool(flips[0]), bool(flips[1]))


def _start(rng: np.random.Generator, size: int, first: int, end: int) -> int:
    """A multiple of the stride from which a window holds as much of the interval as any does."""
    starts = np.arange(0, FRAME - size + 1, WINDOW_STRIDE)
    held = np.clip(np.minimum(starts + size, end) - np.maximum(starts, first), 0, None)
    return int(rng.choice(starts[held == held.max()]))


def assembled(plan: BatchPlan, cases: Sequence[SliceSource], part: slice = slice(None)) -> Pixels:
    """The windows of a plan, or of a part of it, as [N, X, Y, 5]: four modalities and the class index."""
    windows = plan.windows[part]
    batch = np.empty((len(windows), *plan.shape, N_LAYERS), dtype=np.uint8)
    for pixels, window in zip(batch, windows, strict=True):
        source = cases[window.case].window(window.z, window.x, window.y, plan.shape)
        pixels[:] = source[:: -1 if window.flip_x else 1, :: -1 if window.flip_y else 1]
    return batch
