"""Which part of each slice the network sees: the whole frame, or the smallest window that holds the brain.

Windows begin at multiples of 32 and end at multiples of 32 plus 16, as the frame does, so that strides and the padding of stage
4 fall on the frame's own grid. They are another function than whole frames all the same: background has a response too.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.io.geometry import FRAME
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import WindowMode

_STRIDE: Final = 32
_PAST_STRIDE: Final = 16


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of the frame [240, 240]: pixels x to x_stop, y to y_stop."""

    x: int = 0
    x_stop: int = FRAME
    y: int = 0
    y_stop: int = FRAME

    @property
    def shape(self) -> tuple[int, int]:
        """[X, Y]."""
        return self.x_stop - self.x, self.y_stop - self.y

    @property
    def pixels(self) -> tuple[slice, slice]:
        """To index [X, Y, ...] with."""
        return slice(self.x, self.x_stop), slice(self.y, self.y_stop)


def windows_by_shape(slices: SliceStack, mode: WindowMode) -> Mapping[tuple[int, int], Mapping[int, Window]]:
    """Window of each slice that has brain, by its index, in groups of one shape, largest first."""
    groups: dict[tuple[int, int], dict[int, Window]] = defaultdict(dict)
    for index in np.flatnonzero(slices.max(axis=(1, 2, 3))):
        window = window_of(_brain(slices[index])) if mode is WindowMode.AUTO else Window()
        groups[window.shape][int(index)] = window
    return dict(sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1]))


def window_of(brain: npt.NDArray[np.bool_]) -> Window:
    """The smallest window that holds a brain [240, 240].

    8 or 16 pixels of background around it left Dice with the truth as it was (ten cases, tests/benchmarks/windows.py).
    """
    return Window(*_interval(np.any(brain, axis=1)), *_interval(np.any(brain, axis=0)))


def _brain(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where one of the channels of a slice [X, Y, 4] is above 0."""
    flair, t1ce, t1, t2 = np.moveaxis(pixels, 2, 0)
    return np.asarray((flair | t1ce | t1 | t2) > 0)  # numpy takes four times as long to reduce a last axis of four


def _interval(occupied: npt.NDArray[Any]) -> tuple[int, int]:
    indices = np.flatnonzero(occupied)
    start, stop = int(indices[0]), int(indices[-1]) + 1
    return start // _STRIDE * _STRIDE, -(-(stop - _PAST_STRIDE) // _STRIDE) * _STRIDE + _PAST_STRIDE
