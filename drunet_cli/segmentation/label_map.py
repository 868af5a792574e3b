"""The label map after the network: cleaned up as it was asked for, compared with what tumours look like, and located.

The side of the tumour is told by geometry alone. The mid-sagittal plane is the plane that mirrors the brain's outline best. A
tumour that shifts the midline moves the falx and the ventricles, and hardly the outline, which the skull gives; and heads lie
askew also on the BraTS grid, where the middle of the image was up to 15 mm off. The plane is found on a coarse mask, in 0.2 s.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import REGIONS, ClassMap, TumourClass, volume_in_words
from drunet_cli.errors import join_some
from drunet_cli.io.checks import CaseWarning, WarningCode
from drunet_cli.io.geometry import FRAME, AxisFit, Box, Geometry, box_of
from drunet_cli.weights.checkpoint import Postprocessing

_Mask = npt.NDArray[np.bool_]
_Points = npt.NDArray[np.floating[Any]]

_TOUCHING: Final = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours: by a face, an edge or a corner


@dataclass(frozen=True)
class CleanedMap:
    """Class indices, any shape, and how many components and voxels were changed, by the words of the sidecar."""

    class_map: ClassMap
    changes: Mapping[str, int]


def clean_up(class_map: ClassMap, postprocessing: Postprocessing, *, brain: _Mask | None = None, voxel_ml: float) -> CleanedMap:
    """Remove labels outside the brain, then small parts of the whole tumour; turn small parts of the core into oedema, then
    small parts of enhancing tumour, and too little enhancing tumour in all, into NCR.

    class_map: class indices [I, J, K], which stay as they are; the result is a copy where anything changes.
    brain: [I, J, K]; None keeps labels anywhere.
    """
    kept, n_outside = class_map, 0
    if brain is not None and (n_outside := int(np.count_nonzero(class_map[~brain]))):
        kept = np.where(brain, class_map, np.uint8(TumourClass.BACKGROUND))
    n_parts, n_changed = Counter[str](), Counter[str]()
    for region, least_ml in postprocessing.least_parts_ml.items():
        if least_ml == 0:
            continue
        small, n_parts[region] = _small_parts(np.isin(kept, REGIONS[region]), least_ml / voxel_ml)
        n_changed[region] = int(np.count_nonzero(small))
        if n_changed[region]:
            kept = np.where(small, np.uint8(_SURROUNDINGS[region]), kept)
    enhancing = kept == TumourClass.ET
    n_enhancing = int(np.count_nonzero(enhancing))
    if 0 < n_enhancing < _least_voxels(postprocessing.min_enhancing_ml / voxel_ml):
        kept = np.where(enhancing, np.uint8(TumourClass.NCR), kept)
        n_changed["ET"] += n_enhancing
    changes = {
        "voxels_outside_brain_removed": n_outside,
        "components_removed": n_parts["WT"],
        "voxels_removed": n_changed["WT"],
        "voxels_core_to_oedema": n_changed["TC"],
        "voxels_enhancing_to_ncr": n_changed["ET"],
    }
    return CleanedMap(kept, changes)


_SURROUNDINGS: Final = {"WT": TumourClass.BACKGROUND, "TC": TumourClass.ED, "ET": TumourClass.NCR}


def _small_parts(mask: _Mask, n_voxels: float) -> tuple[_Mask, int]:
    """Where connected parts of fewer voxels are, and how many such parts there are."""
    small_parts = np.zeros_like(mask)
    box = box_of(mask)
    if box is None:
        return small_parts, 0
    parts, sizes = _parts(mask, box)
    small = sizes < _least_voxels(n_voxels)
    small[0] = False
    small_parts[box] = small[parts]
    return small_parts, int(np.count_nonzero(small))


def _parts(mask: _Mask, box: Box) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Connected parts of a mask in its box, numbered from 1, and the voxels of each number; of 0, those around them."""
    parts, n_parts = ndimage.label(mask[box], structure=_TOUCHING)
    return parts, np.bincount(parts.ravel(), minlength=n_parts + 1)


def _least_voxels(n_voxels: float) -> float:
    """Undo the rounding of a volume that is a whole number of voxels."""
    return round(n_voxels) if abs(n_voxels - round(n_voxels)) < 1e-6 * max(1.0, n_voxels) else n_voxels


# Limits that no tumour exceeds. tests/benchmarks/label_maps.py measured the references of 19 BraTS cases, and the label maps
# that compact gave for them; drunet guide check has the figures in a table.
# References: none; compact: 3.324, 0.275, 0.009, 0.004, 0.002 and 14 times 0.
_OUTSIDE_ML: Final = 0.5
# References: 1.7 to 16.2 %; compact: 1.0 to 17.0 %.
_LARGEST_SHARE: Final = 1 / 3
# References and compact: 0, on the sides of the volume and on those of the box around the brain.
_EDGE_MM2: Final = 10.0
# References: up to 20; compact: up to 23.
_MOST_SMALL_PARTS: Final = 100
_SMALL_PART_ML: Final = 0.1


@dataclass(frozen=True)
class Measures:
    """The figures by which a label map that cannot be right is known.

    tumour_ml: the whole tumour; outside_ml: what of this lies where no image is above 0. brain_share: tumour as a share of the
    brain. edges_mm2: area of tumour on each side of what the network sees. n_small_parts: connected parts below 0.1 mL.
    """

    tumour_ml: float
    outside_ml: float
    brain_share: float
    edges_mm2: Mapping[str, float]
    n_small_parts: int


def measure(class_map: ClassMap, brain: _Mask, geometry: Geometry, *, voxel_ml: float) -> Measures | None:
    """Measure a label map; None where it is empty.

    class_map: class indices [I, J, K]. brain: [I, J, K], where any image is above 0.
    """
    tumour = class_map != TumourClass.BACKGROUND
    box = box_of(tumour)
    if box is None:
        return None
    n_tumour = int(np.count_nonzero(tumour[box]))
    _, sizes = _parts(tumour, box)
    return Measures(
        tumour_ml=n_tumour * voxel_ml,
        outside_ml=int(np.count_nonzero(tumour[box] & ~brain[box])) * voxel_ml,
        brain_share=n_tumour / max(1, int(np.count_nonzero(brain))),
        edges_mm2=_edges_mm2(geometry.turned(tumour), geometry, voxel_ml),
        n_small_parts=int(np.count_nonzero(sizes[1:] * voxel_ml < _SMALL_PART_ML)),
    )


def label_map_warnings(measures: Measures | None) -> list[CaseWarning]:
    """The warnings about a label map that cannot be right, or, for None, shows nothing."""
    if measures is None:
        return [CaseWarning(WarningCode.EMPTY_RESULT, "no tumour was found: every voxel is labelled background")]
    warnings = []
    if measures.outside_ml > _OUTSIDE_ML:
        share = measures.outside_ml / measures.tumour_ml
        message = (
            f"{volume_in_words(measures.outside_ml)} of the tumour ({share:.1%}) lie outside the brain, where none "
            "of the four images is above 0; look at the label map, or have these labels removed (--within-brain)"
        )
        warnings.append(CaseWarning(WarningCode.LABELS_OUTSIDE_BRAIN, message))
    if measures.brain_share > _LARGEST_SHARE:
        message = (
            f"the whole tumour, {volume_in_words(measures.tumour_ml)}, is as large as {measures.brain_share:.0%} of the brain, "
            "twice the largest tumour that drunet was tried on, or more; look at the label map and the images"
        )
        warnings.append(CaseWarning(WarningCode.LARGE_TUMOUR, message))
    if sides := [side for side, mm2 in measures.edges_mm2.items() if mm2 > _EDGE_MM2]:
        message = (
            f"the tumour reaches the edge of what the network sees of the images ({join_some(sides, most=len(sides))}); tumour "
            "beyond that is missing from label map and volumes"
        )
        warnings.append(CaseWarning(WarningCode.TUMOUR_AT_EDGE, message))
    if measures.n_small_parts > _MOST_SMALL_PARTS:
        message = (
            f"the tumour has {measures.n_small_parts} parts below {_SMALL_PART_ML:g} mL, as noise gives them; look at the "
            "label map and the images"
        )
        warnings.append(CaseWarning(WarningCode.MANY_SMALL_PARTS, message))
    return warnings


def _edges_mm2(tumour: _Mask, geometry: Geometry, voxel_ml: float) -> dict[str, float]:
    """Area of tumour on each side of the volume, or of the frame where that is smaller. tumour: [X, Y, Z]."""
    (right, left), (front, back) = _seen(geometry.x), _seen(geometry.y)
    planes = {
        "right": (tumour[right], geometry.x.spacing_mm),
        "left": (tumour[left], geometry.x.spacing_mm),
        "front": (tumour[:, front], geometry.y.spacing_mm),
        "back": (tumour[:, back], geometry.y.spacing_mm),
        "lowest slice": (tumour[:, :, 0], geometry.slice_spacing_mm),
        "highest slice": (tumour[:, :, -1], geometry.slice_spacing_mm),
    }
    return {side: int(np.count_nonzero(plane)) * voxel_ml * 1000 / depth_mm for side, (plane, depth_mm) in planes.items()}


def _seen(axis: AxisFit) -> tuple[int, int]:
    """The first and the last voxel of an axis whose centres lie in the frame."""
    first = int(np.ceil(axis.start_mm / axis.spacing_mm - 0.5))
    last = int(np.floor((axis.start_mm + FRAME) / axis.spacing_mm - 0.5))
    return max(0, first), min(axis.size - 1, last)


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
