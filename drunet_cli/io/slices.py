"""Normalisation, and the axial uint8 slices that the network takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import FRAME, Geometry
from drunet_cli.io.nifti import Volume

SliceStack: TypeAlias = npt.NDArray[np.uint8]  # [Z, X, Y, 4], channels FLAIR, T1ce, T1, T2


def normalise(voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale brain voxels to the 0-255 range that the published weights were trained on.

    voxels: [X, Y, Z] in network orientation, any intensity scale; background is 0 and stays 0, negative voxels become 0.
    Equal to the published code to the byte: its sums run over the voxels in this order, in float64, and it truncates.
    Raises CaseError when no voxel is above 0, or all that are have the same value.
    Source: convert_nii_to_png.py. Its comment says median and IQR; its code uses mean and population SD of voxels above 0.
    """
    brain = voxels > 0
    values = voxels[brain].astype(np.float64)
    if values.size == 0:
        raise CaseError("no voxel is above 0")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = values.mean(), 3 * values.std() / 128
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0) or values.min() == values.max():
        raise CaseError("its voxels above 0 have no usable spread")
    if voxels.dtype in (np.uint8, np.int16, np.uint16):
        # As many different values as voxels in a few slices: scale each once.
        every = np.arange(values.max() + 1)
        table = _pixels(every, mean, scale)
        table[0] = 0
        return table[np.where(brain, voxels, 0)]
    pixels = np.zeros(voxels.shape, dtype=np.uint8)
    pixels[brain] = _pixels(values, mean, scale)
    return pixels


def network_slices(volumes: Sequence[Volume], geometry: Geometry) -> SliceStack:
    """Four volumes, in the network's channel order, as slices [Z, 240, 240, 4].

    Statistics are taken over the whole volume; where it is resampled, over its frames, as if it had come on the 1 mm grid.
    Raises CaseError naming the volume that cannot be normalised.
    """
    stack = np.empty((volumes[0].voxels.shape[geometry.stored_axis_of_slices], FRAME, FRAME, len(volumes)), dtype=np.uint8)

    def place(channel: int) -> None:
        stack[..., channel] = np.moveaxis(_frames(volumes[channel], geometry), 2, 0)

    with ThreadPoolExecutor(len(volumes)) as threads:  # numpy computes outside the interpreter's lock
        list(threads.map(place, range(len(volumes))))
    return stack


def _frames(volume: Volume, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """[240, 240, Z]."""
    turned = geometry.turned(volume.voxels)
    try:
        return normalise(geometry.frames(turned)) if geometry.resampled else geometry.frames(normalise(turned))
    except CaseError as error:
        raise CaseError(f"{volume.path}: {error}") from error


def _pixels(values: npt.NDArray[np.float64], mean: np.float64, scale: np.float64) -> npt.NDArray[np.uint8]:
    return np.clip((values - mean) / scale + 127, 0, 255).astype(np.uint8)
