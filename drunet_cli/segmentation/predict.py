"""All slices of a case through the network."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import N_CLASSES, ClassMap, TumourClass
from drunet_cli.io.geometry import FRAME, Geometry
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import Engine, WindowMode
from drunet_cli.segmentation.windows import Window, windows_by_shape

_SLICES_OF_PROBABILITIES: Final = 16  # at once: a slice takes a megabyte


def predict(
    slices: SliceStack,
    geometry: Geometry,
    engine: Engine,
    *,
    window: WindowMode,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> ClassMap:
    """Class indices [I, J, K], in the case's own geometry, of slices [Z, 240, 240, 4].

    Each slice for itself; the batch size changes nothing but float32 rounding. Slices without any brain are all the same: of
    full frames they are computed once; with windows they, and whatever lies outside a window, are background.
    on_progress: called with (slices done, slices in all).
    """
    n_slices, n_done = len(slices), 0

    def advance(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        on_progress(n_done, n_slices)

    planes = np.zeros((n_slices, geometry.x.size, geometry.y.size), dtype=np.uint8)
    groups = windows_by_shape(slices, window)
    blank = np.ones(n_slices, dtype=bool)
    blank[[index for group in groups.values() for index in group]] = False
    if blank.any() and window is WindowMode.FULL:
        planes[blank] = _planes(slices[blank][:1], {0: Window()}, geometry, engine, lambda _: None)
    advance(int(np.count_nonzero(blank)))
    for group in groups.values():
        planes[list(group)] = _planes(slices, group, geometry, engine, advance)
    return np.asarray(geometry.turned_back(np.moveaxis(planes, 0, 2)))


def _planes(
    slices: SliceStack, windows: Mapping[int, Window], geometry: Geometry, engine: Engine, advance: Callable[[int], None]
) -> ClassMap:
    """Class indices [N, X, Y] of the slices that have these windows, all of one shape."""
    if not geometry.resampled:
        classes = engine.classes(_seen(slices, windows), on_done=advance)
        return geometry.classes(_framed(classes, windows, outside=np.uint8(TumourClass.BACKGROUND)))
    planes = []
    indices = list(windows)
    for start in range(0, len(indices), _SLICES_OF_PROBABILITIES):
        some = {index: windows[index] for index in indices[start : start + _SLICES_OF_PROBABILITIES]}
        probabilities = engine.probabilities(_seen(slices, some), on_done=advance)
        background = np.eye(N_CLASSES, dtype=np.float32)[TumourClass.BACKGROUND]
        planes.append(geometry.classes_of_probabilities(_framed(probabilities, some, outside=background)))
    return np.concatenate(planes)


def _seen(slices: SliceStack, windows: Mapping[int, Window]) -> SliceStack:
    return np.stack([slices[index][window.pixels] for index, window in windows.items()])


def _framed(parts: npt.NDArray[Any], windows: Mapping[int, Window], *, outside: Any) -> npt.NDArray[Any]:
    """Put what windows hold, [N, x, y, ...], into frames [N, 240, 240, ...]."""
    frames = np.empty((len(parts), FRAME, FRAME, *parts.shape[3:]), dtype=parts.dtype)
    frames[...] = outside
    for frame, part, window in zip(frames, parts, windows.values(), strict=True):
        frame[window.pixels] = part
    return frames
