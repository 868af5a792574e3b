"""The side of the brain on which the tumour lies, by geometry alone.

The mid-sagittal plane is the plane that mirrors the brain's outline best. A tumour that shifts the midline moves the falx and
the ventricles, and hardly the outline, which the skull gives; and heads lie askew also on the BraTS grid, where the middle of
the image was up to 15 mm off. The plane is found on a coarse mask, in 0.2 s.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.geometry import Geometry

_Points = npt.NDArray[np.floating[Any]]
_Mask = npt.NDArray[np.bool_]

_COARSE_MM: Final = 6.0
# In 19 BraTS cases 2 to 5 % of the brain lie where its mirror image has none; of each of these brains cut in half, more than
# this. Twice the most is allowed.
_MOST_UNLIKE: Final = 0.1
# The planes of those brains lay within 1.3 mm of themselves, anywhere in the brain, where the brains were turned by 8 and 12
# degrees (tests/benchmarks/midline.py); and within some 3 mm of the fissure in the T2 images that were looked at.
MIDDLE_MM: Final = 5.0
# The smaller side had at most 0.2 % or at least 5.8 % of the tumour in 19 references, and at most 0.8 % or at least
# 3.5 % in the label maps that compact gave for these cases, where false parts count too.
_LEAST_PERCENT: Final = 2.0
_MOVES: Final = np.concatenate([np.eye(3), -np.eye(3)])
# Shift in mm, yaw and roll in degrees.
_STARTS: Final = tuple(np.array([shift, yaw, 0.0]) for yaw in (0.0, -8.0, 8.0) for shift in (0.0, -6.0, 6.0))
_FIRST_STEP: Final = 4.0  # mm and degrees
_LAST_STEP: Final = 0.1  # 0.1 degrees are 0.2 mm at the poles of a brain


@dataclass(frozen=True)
class Midplane:
    """The points p for which normal . p = offset_mm.

    normal: towards the patient's left, of length 1, along X, Y, Z (L, P, S). offset_mm: from the first voxel's outer corner.
    unlikeness: the share of the brain that has no brain at its mirror image.
    """

    normal: _Points
    offset_mm: float
    unlikeness: float

    def left_of(self, points_mm: _Points) -> _Points:
        """How far points [N, 3] lie to the left, in mm; below 0 to the right."""
        return np.asarray(points_mm @ self.normal - self.offset_mm)


@dataclass(frozen=True)
class Sides:
    """The shares of the whole tumour, in percent: left and right of the mid-sagittal plane, and within 5 mm of it."""

    left: float
    middle: float
    right: float

    @property
    def word(self) -> str:
        """left or right, where the other side has none of the tumour; both; or middle, for a tumour that no side has."""
        sides = [side for side, percent in (("left", self.left), ("right", self.right)) if percent >= _LEAST_PERCENT]
        return "both" if len(sides) > 1 else sides[0] if sides else "middle"


def sides_of(class_map: ClassMap, brain: _Mask, geometry: Geometry) -> Sides | None:
    """The sides of the tumour; None without a tumour, and for a brain too unlike its mirror image to have a midline.

    class_map: class indices [I, J, K]. brain: [I, J, K]. The geometry must say truly which side is left.
    """
    spacing = np.array([geometry.x.spacing_mm, geometry.y.spacing_mm, geometry.slice_spacing_mm])
    tumour = np.argwhere(geometry.turned(class_map) != TumourClass.BACKGROUND)
    plane = midsagittal_plane(geometry.turned(brain), spacing) if len(tumour) else None
    if plane is None or plane.unlikeness > _MOST_UNLIKE:
        return None
    left_mm = plane.left_of((tumour + 0.5) * spacing)
    left, right = (100 * float(np.mean(side)) for side in (left_mm > MIDDLE_MM, left_mm < -MIDDLE_MM))
    return Sides(round(left, 1), round(100 - left - right, 1) + 0.0, round(right, 1))


def midsagittal_plane(brain: _Mask, spacing_mm: _Points) -> Midplane | None:
    """The plane that mirrors a brain best; None where there is no brain.

    brain: [X, Y, Z], voxel axes L, P, S. spacing_mm: of X, Y, Z. The plane may lie askew by any yaw and roll of a head.
    """
    steps = np.maximum(1, np.rint(_COARSE_MM / spacing_mm)).astype(int)
    coarse: npt.NDArray[np.float32] = brain.astype(np.float32)
    for axis, step in enumerate(steps):
        coarse = np.add.reduceat(coarse, np.arange(0, coarse.shape[axis], step), axis=axis)
    # Without smoothing, planes at which voxels of the mask and of its mirror image coincide would look better than they are.
    coarse = ndimage.gaussian_filter(coarse / steps.prod(), 1.0, mode="constant")
    inside = np.argwhere(coarse > 0.01)
    if not len(inside):
        return None
    size, weights = steps * spacing_mm, coarse[tuple(inside.T)]
    points = (inside + 0.5) * size
    centre = np.average(points, axis=0, weights=weights)

    def at(pose: _Points) -> Midplane:
        shift, yaw, roll = pose
        normal = np.array([1.0, np.tan(np.radians(yaw)), np.tan(np.radians(roll))])
        normal /= np.linalg.norm(normal)
        offset = float(centre @ normal + shift)
        mirrored = points - 2 * np.outer(points @ normal - offset, normal)
        found = ndimage.map_coordinates(coarse, (mirrored / size - 0.5).T, order=1, mode="constant")
        return Midplane(normal, offset, float(np.abs(found - weights).sum() / weights.sum() / 2))

    pose = min(_STARTS, key=lambda start: at(start).unlikeness)
    best, step = at(pose), _FIRST_STEP
    while step > _LAST_STEP:
        tries = [pose + step * move for move in _MOVES]
        planes = [at(each) for each in tries]
        better = min(range(len(tries)), key=lambda n: planes[n].unlikeness)
        if planes[better].unlikeness < best.unlikeness:
            pose, best = tries[better], planes[better]
        else:
            step /= 2
    return best
