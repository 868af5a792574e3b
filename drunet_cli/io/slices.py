"""Normalisation, and the axial uint8 slices that the network takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from drunet_cli.errors import CaseError
from drunet_cli.host import granted_cpus
from drunet_cli.io.geometry import FRAME, Box, Geometry, box_of
from drunet_cli.io.nifti import Volume

SliceStack: TypeAlias = npt.NDArray[np.uint8]  # [Z, X, Y, 4], channels FLAIR, T1ce, T1, T2


def normalise(voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale brain voxels to the 0-255 range that the published weights were trained on.

    voxels: [X, Y, Z] in network orientation, any intensity scale; background is 0 and stays 0, negative voxels become 0.
    Equal to the published code to the byte: its sums run over the voxels in this order, in float64, and it truncates.
    Raises CaseError when no voxel is above 0, or all that are have the same value.
    Source: convert_nii_to_png.py. Its comment says median and IQR; its code uses mean and population SD of voxels above 0.
    """
    pixels = np.zeros(voxels.shape, dtype=np.uint8)
    box, inner = _scaled_box(voxels, voxels > 0)
    pixels[box] = inner
    return pixels


def network_slices(volumes: Sequence[Volume], geometry: Geometry) -> SliceStack:
    """Four volumes, in the network's channel order, as slices [Z, 240, 240, 4].

    Statistics are taken over the whole volume; where it is resampled, over its frames, as if it had come on the 1 mm grid.
    Raises CaseError naming the volume that cannot be normalised.
    """
    stack = np.zeros((geometry.n_slices, FRAME, FRAME, len(volumes)), dtype=np.uint8)

    def place(channel: int) -> None:
        volume = volumes[channel]
        turned = geometry.turned(volume.voxels)
        try:
            if geometry.resampled:
                stack[..., channel] = np.moveaxis(normalise(geometry.frames(turned)), 2, 0)
                return
            (xs, ys, zs), inner = _scaled_box(turned, geometry.turned(volume.brain))
        except CaseError as error:
            raise CaseError(f"{volume.path}: {error}") from error
        (frame_x, of_x), (frame_y, of_y) = geometry.x.on_frame(xs), geometry.y.on_frame(ys)
        stack[zs, frame_x, frame_y, channel] = np.moveaxis(inner[of_x, of_y], 2, 0)

    # numpy computes outside the interpreter's lock; more threads than CPUs only fill memory.
    with ThreadPoolExecutor(min(len(volumes), granted_cpus())) as threads:
        list(threads.map(place, range(len(volumes))))
    return stack


def _scaled_box(voxels: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> tuple[Box, npt.NDArray[np.uint8]]:
    """The smallest box that holds every voxel above 0, and its pixels; what lies outside is 0. brain: voxels above 0."""
    box = box_of(brain)
    if box is None:
        raise CaseError("no voxel is above 0")
    inner = np.ascontiguousarray(voxels[box])  # so that the values below stand in the order in which the published code sums
    inside = inner > 0
    values = inner[inside]
    largest = values.max()
    mean, scale = _statistics(values)
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0) or values.min() == largest:
        raise CaseError("its voxels above 0 have no usable spread")
    if inner.dtype in (np.uint8, np.int16, np.uint16):
        # As many different values as voxels in a few slices: scale each once.
        table = _pixels(np.arange(float(largest) + 1), mean, scale)
        table[0] = 0
        return box, table[inner if inner.min() >= 0 else np.where(inside, inner, 0)]
    pixels = np.zeros(inner.shape, dtype=np.uint8)
    pixels[inside] = _pixels(values.astype(np.float64), mean, scale)
    return box, pixels


def _statistics(values: npt.NDArray[Any]) -> tuple[np.float64, np.float64]:
    """Mean, and 3 / 128 of the population SD, in float64 and to the last bit as numpy's mean and std; but in one array."""
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = values.astype(np.float64)
        mean = deviations.mean()
        deviations -= mean
        deviations *= deviations
        return mean, 3 * np.sqrt(deviations.mean()) / 128


def _pixels(values: npt.NDArray[np.float64], mean: np.float64, scale: np.float64) -> npt.NDArray[np.uint8]:
    return np.clip((values - mean) / scale + 127, 0, 255).astype(np.uint8)
