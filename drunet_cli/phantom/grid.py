"""The voxels of a phantom that are computed, where they lie in atlas millimetres, and smooth noise on them.

x to the left, y to the back, z upwards, 0 near the middle of the brain. Lengths without a unit are atlas mm.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]  # float32, all of them
Shape: TypeAlias = tuple[int, int, int]
Mask: TypeAlias = npt.NDArray[np.bool_]
Coordinates: TypeAlias = tuple[FloatArray, FloatArray, FloatArray]

BRATS_SHAPE: Final = (240, 240, 155)
_CENTRE_VOXEL: Final = (118.5, 128.5, 75.0)  # mean of the ten brains' boxes
EXTENT: Final = (76.0, 96.0, 78.0)  # of the box that is computed, to each side; the largest of the ten brains fits in
_COARSE: Final = 3
# SD of white noise after the spline: the mean of the sum of its squared weights is 151 / 315 along each axis.
_B_SPLINE_SD: Final = (151 / 315) ** 1.5


@dataclass(frozen=True)
class Grid:
    """The voxels that are computed, V in number. axes: atlas mm along X, Y and Z of the box around them; voxel: its size there.

    chosen: [X, Y, Z], which voxels of the box they are. The head fills but a third of it, and time goes by voxels.
    """

    box: tuple[slice, slice, slice]
    axes: tuple[FloatArray, FloatArray, FloatArray]
    voxel: float
    chosen: Mask

    @classmethod
    def of(cls, shape: Shape, spacing_mm: float) -> "Grid":
        """The box of a head in a volume; one smaller than BraTS' 240 x 240 x 155 mm has the head made smaller."""
        scale = min(1.0, *(n * spacing_mm / n_brats for n, n_brats in zip(shape, BRATS_SHAPE, strict=True)))
        voxel = spacing_mm / scale
        box, axes = [], []
        for n, n_brats, centre, extent in zip(shape, BRATS_SHAPE, _CENTRE_VOXEL, EXTENT, strict=True):
            mm = (np.arange(n) - (n - 1) / 2) * voxel + (n_brats - 1) / 2 - centre
            inside = np.flatnonzero(np.abs(mm) <= extent)
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
            axes.append(mm[inside].astype(np.float32))
        chosen = np.ones([axis.size for axis in axes], dtype=np.bool_)
        return cls((box[0], box[1], box[2]), (axes[0], axes[1], axes[2]), voxel, chosen)

    def coarser(self) -> "Grid":
        """Every third voxel along each axis."""
        x, y, z = (axis[1::_COARSE] for axis in self.axes)
        return replace(self, axes=(x, y, z), voxel=_COARSE * self.voxel, chosen=self.chosen[1::_COARSE, 1::_COARSE, 1::_COARSE])

    def around(self, brain: Mask) -> "Grid":
        """The same with those voxels alone that lie in or near the brain. brain: [V] of the coarser grid."""
        x, y, z = self.coarser().chosen.shape
        near = ndimage.binary_dilation(brain.reshape(x, y, z), np.ones((3, 3, 3)))
        at = [np.minimum(np.arange(n) // _COARSE, size - 1) for n, size in zip(self.chosen.shape, near.shape, strict=True)]
        return replace(self, chosen=near[np.ix_(*at)])

    @cached_property
    def xyz(self) -> Coordinates:
        """Where the voxels lie, each [V]."""
        i, j, k = np.nonzero(self.chosen)
        return self.axes[0][i], self.axes[1][j], self.axes[2][k]

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[V] as [X, Y, Z], 0 elsewhere."""
        whole = np.zeros(self.chosen.shape, dtype=values.dtype)
        whole[self.chosen] = values
        return whole

    def noise(self, rng: np.random.Generator, cell: float) -> FloatArray:
        """[V]: smooth noise of mean 0 and SD 1, by cubic B-splines over random numbers `cell` apart.

        The numbers drawn do not depend on the grid, so that a seed is one head at every resolution.
        """
        counts = [math.ceil(2 * extent / cell) + 4 for extent in EXTENT]
        field = rng.standard_normal(counts, dtype=np.float32) / np.float32(_B_SPLINE_SD)
        for mm, extent in zip(self.axes[::-1], EXTENT[::-1], strict=True):  # each turn works off the last axis
            field = np.tensordot(_b_spline((mm + extent) / cell, field.shape[-1]), field, axes=(1, 2))
        return np.asarray(field[self.chosen])

    def ramp(self, depth: FloatArray, width: float = 0.0) -> FloatArray:
        """Share of a voxel that lies within a surface, from its depth below it; the edge is a voxel wide, or `width`."""
        share = depth / np.float32(max(self.voxel, width))
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)


def _b_spline(positions: FloatArray, n_knots: int) -> FloatArray:
    """[positions, knots]: weights of the uniform cubic B-spline; position 0 lies on knot 1."""
    t = np.abs(positions[:, None] + 1 - np.arange(n_knots))
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
    return np.asarray(weights, dtype=np.float32)
