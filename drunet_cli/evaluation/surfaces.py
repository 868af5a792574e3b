"""Distances between the surfaces of two masks, by the two definitions that the field uses.

`border_hd95_mm` takes the border voxels of a mask, each with the same weight. `surface_distances` takes the pieces of a surface
laid between the voxels, each with the weight of its area. In both, everything outside the volume is background: a mask that
reaches the side of the volume has a surface there.

Where no mask is empty the first equals medpy.metric.binary.hd95 of MedPy 0.5.2, and the second surface-distance 0.1 (DeepMind).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from drunet_cli.evaluation.scores import Mask, SpacingMm
from drunet_cli.io import geometry
from drunet_cli.io.geometry import Box

FloatArray = npt.NDArray[np.float64]

PERCENT: Final = 95
_ALL_INSIDE: Final = 255


@dataclass(frozen=True)
class SurfaceDistances:
    """The pieces of two surfaces: distance of each to the other surface in mm, inf where that is empty, and area in mm2.

    All four are [N] by piece, of the prediction or of the reference.
    """

    prediction_mm: FloatArray
    prediction_mm2: FloatArray
    reference_mm: FloatArray
    reference_mm2: FloatArray

    def dice(self, tolerance_mm: float) -> float:
        """Surface Dice: the share of the area of both surfaces within the tolerance of the other; 1 where both are empty."""
        whole = self.prediction_mm2.sum() + self.reference_mm2.sum()
        near = self.prediction_mm2[self.prediction_mm <= tolerance_mm].sum()
        near += self.reference_mm2[self.reference_mm <= tolerance_mm].sum()
        return float(near / whole) if whole else 1.0

    @property
    def hd95_mm(self) -> float:
        """The larger 95th percentile by area of the two surfaces; inf where one surface is empty, 0 where both are."""
        prediction = _percentile_by_area(self.prediction_mm, self.prediction_mm2)
        return max(prediction, _percentile_by_area(self.reference_mm, self.reference_mm2))


def border_hd95_mm(prediction: Mask, reference: Mask, *, spacing_mm: SpacingMm) -> float:
    """95th percentile of the distances of all border voxels of each mask [I, J, K] to the nearest one of the other.

    A border voxel has one of its six neighbours outside of the mask. inf where one mask is empty, 0 where both are.
    """
    box = box_around(prediction | reference)
    border, reference_border = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, reference))
    if border.any() != reference_border.any():
        return float("inf")
    distances = [_nearest_mm(border, reference_border, spacing_mm), _nearest_mm(reference_border, border, spacing_mm)]
    return float(np.percentile(np.concatenate(distances), PERCENT)) if distances[0].size else 0.0


def surface_distances(prediction: Mask, reference: Mask, *, spacing_mm: SpacingMm) -> SurfaceDistances:
    """Distances between the surfaces of two masks [I, J, K], piece by piece.

    A piece sits in the middle of every 2 x 2 x 2 voxels that are not all inside or all outside of the mask.
    """
    box = box_around(prediction | reference)
    codes = _codes(prediction[box]), _codes(reference[box])
    pieces, reference_pieces = ((code != 0) & (code != _ALL_INSIDE) for code in codes)
    mm2 = _piece_areas_mm2(spacing_mm)
    return SurfaceDistances(
        _nearest_mm(pieces, reference_pieces, spacing_mm),
        mm2[codes[0][pieces]],
        _nearest_mm(reference_pieces, pieces, spacing_mm),
        mm2[codes[1][reference_pieces]],
    )


def box_around(mask: Mask) -> Box:
    """The smallest box that holds all of a mask; a single voxel where the mask is empty."""
    return geometry.box_of(mask) or (slice(0, 1), slice(0, 1), slice(0, 1))


def _nearest_mm(of: Mask, to: Mask, spacing_mm: SpacingMm) -> FloatArray:
    """For every True of one grid, in the order of the grid, the distance to the nearest True of the other; inf without any."""
    sources, targets = (np.flatnonzero(grid) for grid in (of, to))
    if not targets.size:
        return np.full(sources.shape, np.inf)
    apart = ~to.ravel()[sources]  # a place on both grids has distance 0 and need not be searched
    searched, targets = (np.stack(np.unravel_index(found, of.shape), axis=1) for found in (sources[apart], targets))
    _, nearest = KDTree(targets * spacing_mm).query(searched * spacing_mm)
    # Computed from the number of voxels between them, as the packages do: differences of positions in mm are rounded
    # differently from place to place, and a distance that equals the tolerance would be within it here and not there.
    result = np.zeros(sources.shape)
    result[apart] = np.sqrt((((searched - targets[nearest]) * spacing_mm) ** 2).sum(axis=1))
    return result


def _codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """[I, J, K] to [I + 1, J + 1, K + 1]: for each voxel corner a bit for each of its 8 voxels, set where the mask holds it."""
    codes = np.pad(mask, 1).view(np.uint8)
    codes = codes[:-1] << np.uint8(4) | codes[1:]
    codes = codes[:, :-1] << np.uint8(2) | codes[:, 1:]
    return codes[:, :, :-1] << np.uint8(1) | codes[:, :, 1:]


def _percentile_by_area(distances_mm: FloatArray, mm2: FloatArray) -> float:
    """The smallest distance that 95 % of the area do not exceed."""
    if not distances_mm.size:
        return 0.0
    order = np.lexsort((mm2, distances_mm))
    share = np.cumsum(mm2[order]) / mm2[order].sum()
    index = min(int(np.searchsorted(share, PERCENT / 100)), len(order) - 1)  # rounding may leave the last share below 1
    return float(distances_mm[order][index])


@cache
def _piece_areas_mm2(spacing_mm: SpacingMm) -> FloatArray:
    """[256], by code: area of the surface between 8 voxel centres; the bits of the code say which of them are in the mask.

    The surface is that of marching cubes: half-way along every edge that joins inside and outside. It cuts off the corners of
    the rarer kind (of four and four, the inside ones); corners that edges join share a patch. A code and its complement have
    equal areas.
    """
    i, j, k = spacing_mm
    faces_mm2 = np.array([j * k, i * k, i * j])
    areas = np.zeros(_ALL_INSIDE + 1)
    for code in range(len(areas)):
        inside = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        groups, n_groups = ndimage.label(inside if inside.sum() <= 4 else 1 - inside)
        patches = [normal for group in range(1, n_groups + 1) for normal in _patch_normals(np.argwhere(groups == group))]
        areas[code] = sum(np.linalg.norm(normal * faces_mm2) for normal in patches)
    return areas


def _patch_normals(corners: npt.NDArray[np.intp]) -> Sequence[npt.NDArray[Any]]:
    """Normals of the flat parts of the surface that cuts joined corners [N, 3] off a unit cube, N from 1 to 4.

    A normal [3] is without sign and as long as its part's area. Parts that lie in one plane are taken together. Two of the cuts
    are not flat, and triangles can be laid through them in several ways; these are the ones with the largest area.
    """
    every = np.ones(3)
    across = np.ptp(corners, axis=0) == 0  # the axes along which the corners do not extend
    halved = corners.sum(axis=0) == 2  # the axes with two of four corners at either end
    match len(corners), int(across.sum()):
        case 1, _:
            return [every / 8]  # a triangle
        case 2, _:
            return [across / 2]  # a rectangle along the edge
        case 3, _:
            return [across / 2, every * 3 / 8]  # half of the square between the faces, and a trapezium down from it
        case 4, 1:
            return [across * 1.0]  # a face: the square in the middle
    if not halved.any():
        return [every * 3 / 4]  # a corner and its three neighbours: a regular hexagon
    # A chain whose middle edge runs along `halved`: two trapezia's worth of slope, and a triangle to each of the other axes.
    return [every / 2, *((every - axis) / 4 for axis in np.eye(3)[~halved])]
