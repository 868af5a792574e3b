"""The three cuts of a preview: which planes, how they are turned, and with what contrast. Arrays only, no picture.

Everything is turned to voxel axes X, Y, Z that point L, P, S, and cut to the box of the brain, so that a case's cuts match.
A cut is [rows, columns] as it is looked at, from the top left. Radiological: the patient's right is on the left of an axial and
a coronal cut; a sagittal cut has the face on the left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap, Modality
from drunet_cli.io.geometry import Box, box_of, orientation_to_network, spacing_mm

Greys = npt.NDArray[np.uint8]
Voxels = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]

_PERCENTILES: Final = (0.5, 99.5)
_MOST_SAMPLED: Final = 2**20  # voxels that the percentiles are taken of


class Plane(StrEnum):
    """The direction of a cut."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


@dataclass(frozen=True)
class Letters:
    """Where in the patient the four edges of a cut lie."""

    top: str
    bottom: str
    left: str
    right: str


LETTERS: Final = {
    Plane.AXIAL: Letters(top="A", bottom="P", left="R", right="L"),
    Plane.CORONAL: Letters(top="S", bottom="I", left="R", right="L"),
    Plane.SAGITTAL: Letters(top="S", bottom="I", left="A", right="P"),
}


@dataclass(frozen=True)
class Cut:
    """One plane through the case.

    greys: by modality, [rows, columns], the contrast already set. classes: class indices [rows, columns].
    height_mm, width_mm: of the whole cut, outer edge to outer edge. position_mm: RAS coordinate of its middle, across it.
    """

    plane: Plane
    greys: Mapping[Modality, Greys]
    classes: ClassMap
    height_mm: float
    width_mm: float
    position_mm: float


def largest_cuts(images: Mapping[Modality, Voxels], class_map: ClassMap, *, affine: Affine) -> tuple[Cut, Cut, Cut]:
    """The axial, the coronal and the sagittal plane with the most tumour voxels; without any tumour, the brain's middle.

    images: each [I, J, K], background 0. class_map: [I, J, K]. affine: voxel indices to RAS millimetres; an oblique one goes to
    the nearest axes. Of several planes with equally many voxels it is the middle one.
    """
    turn = _Turn.of(affine, class_map.shape)
    turned = {modality: turn.turned(voxels) for modality, voxels in images.items()}
    classes = turn.turned(class_map)
    box = _box_of_all([*turned.values(), classes])
    windows = {modality: _window(voxels[box]) for modality, voxels in turned.items()}
    tumour = classes[box] > 0
    of_tumour = box_of(tumour)

    def cut(plane: Plane, axis: int) -> Cut:
        index = box[axis].start + _fullest(tumour, of_tumour, axis)
        section = (*box[:axis], index, *box[axis + 1 :])
        greys = {modality: _grey(_seen(voxels[section], plane), windows[modality]) for modality, voxels in turned.items()}
        seen = _seen(classes[section], plane)
        across_mm, down_mm = np.delete(spacing_mm(turn.affine), axis)
        height_mm, width_mm = float(seen.shape[0] * down_mm), float(seen.shape[1] * across_mm)
        return Cut(plane, greys, seen, height_mm, width_mm, _position_mm(turn.affine, classes.shape, axis, index))

    return cut(Plane.AXIAL, 2), cut(Plane.CORONAL, 1), cut(Plane.SAGITTAL, 0)


@dataclass(frozen=True)
class _Turn:
    """From stored axes I, J, K to X, Y, Z. affine: of the turned volume.

    axes: which stored axis lies behind X, Y and Z. flips: for each, 1 or -1, whether that runs the same way.
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...]
    affine: Affine

    @classmethod
    def of(cls, affine: Affine, shape: tuple[int, ...]) -> "_Turn":
        """shape: I, J, K."""
        orientation = orientation_to_network(affine).astype(int)
        axes = np.argsort(orientation[:, 0])
        flips = orientation[axes, 1]
        turned = affine.copy()
        turned[:, :3] = affine[:, axes] * flips
        turned[:, 3] += affine[:, axes] @ np.where(flips < 0, np.array(shape)[axes] - 1, 0)
        return cls(tuple(axes.tolist()), tuple(flips.tolist()), turned)

    def turned(self, voxels: Voxels) -> Voxels:
        """A view."""
        return voxels.transpose(self.axes)[tuple(slice(None, None, flip) for flip in self.flips)]


def _box_of_all(volumes: Sequence[Voxels]) -> Box:
    """The box of whatever is above 0 in any; the whole of them where nothing is."""
    whole = (slice(0, volumes[0].shape[0]), slice(0, volumes[0].shape[1]), slice(0, volumes[0].shape[2]))
    mask = np.asarray(volumes[0] > 0)
    for voxels in volumes[1:]:
        mask |= voxels > 0
    return box_of(mask) or whole


def _fullest(mask: npt.NDArray[np.bool_], box: Box | None, axis: int) -> int:
    """The plane across this axis with the most voxels; the middle one of those that have as many. box: of the mask."""
    if box is None:
        return int(mask.shape[axis]) // 2
    counts = np.count_nonzero(mask[box], axis=tuple({0, 1, 2} - {axis}))
    fullest = np.flatnonzero(counts == counts.max())
    return int(box[axis].start) + int(fullest[len(fullest) // 2])


def _position_mm(affine: Affine, shape: tuple[int, ...], axis: int, index: int) -> float:
    """affine, shape: of the turned volume. index: of the plane across this axis."""
    middle = (np.array(shape) - 1) / 2
    middle[axis] = index
    return float(affine[axis] @ [*middle, 1])


def _seen(section: Voxels, plane: Plane) -> Voxels:
    """A plane of turned voxels, its two axes in their order, as [rows, columns]."""
    return section.T if plane is Plane.AXIAL else section.T[::-1]


def _window(voxels: Voxels) -> tuple[float, float]:
    """The intensities that become black and white: percentiles of the brain, which is whatever is above 0.

    A brain of one intensity becomes grey.
    """
    step = max(1, math.ceil((voxels.size / _MOST_SAMPLED) ** (1 / 3)))
    sampled = voxels[::step, ::step, ::step]
    brain = sampled[sampled > 0]
    if brain.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(brain, _PERCENTILES))
    return (low, high) if low < high else (0.0, 2 * high)


def _grey(section: Voxels, window: tuple[float, float]) -> Greys:
    low, high = window
    shares = (np.clip(section.astype(np.float64), low, high) - low) / (high - low)
    return np.rint(shares * 255).astype(np.uint8)
