"""From a volume as stored to the network's frame, and the exact way back.

The network knows one geometry: voxel axes L, P, S, axial frames of 240 x 240 pixels of 1 mm. A volume in another orientation is
turned (nothing is interpolated), one of another in-plane size is padded or cropped around the brain, one of another in-plane
spacing is resampled. Along S the slices stay as they are. On the BraTS grid every step is the identity.

Axis letters: I, J, K as stored; X, Y, Z the same voxels turned to L, P, S; a frame is [240, 240].
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes, apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from drunet_cli.brats import ClassMap

FloatArray = npt.NDArray[np.floating[Any]]
Affine = npt.NDArray[np.float64]  # 4 x 4: takes positions to positions, or voxel indices to positions in RAS mm

FRAME: Final = 240
_NETWORK_AXES: Final = ("L", "P", "S")
# Two grids are one where no corner lies farther apart than a tenth of a voxel: files of ITK and elastix differ by hundredths of
# a millimetre there, since they keep float32 spacings and directions, and the nearest voxel changes from half a voxel on.
_SAME_GRID_VOXELS: Final = 0.1
_ROUNDING_VOXELS: Final = 1e-3  # float32 affines; not worth a word
_SAME_SPACING_MM: Final = 1e-3
# A field of view within half a pixel of the frame is the frame: 480 pixels of 0.5 mm stay where the BraTS grid has them.
_SAME_EXTENT_MM: Final = 0.5

_MAX_FIELD_OF_VIEW_MM: Final = 1000.0
_SPACING_RANGE_MM: Final = (0.1, 20.0)

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class AxisFit:
    """The place of one in-plane axis on the frame.

    size: voxels; spacing_mm: their size; start_mm: where the frame begins, from the outer edge of the axis' first voxel.
    brain_mm: extent of the brain along this axis.
    """

    size: int
    spacing_mm: float
    start_mm: float
    brain_mm: float

    @property
    def resampled(self) -> bool:
        """Whether the axis has another spacing than the frame."""
        return not at_1_mm([self.spacing_mm])

    @property
    def shift(self) -> int:
        """First voxel that the frame shows, below 0 where it begins outside; for axes that are not resampled."""
        return round(self.start_mm)

    @property
    def untouched(self) -> bool:
        """Whether axis and frame are the same pixels."""
        return not self.resampled and self.shift == 0 and self.size == FRAME

    def on_frame(self, planes: slice) -> tuple[slice, slice]:
        """The place of consecutive voxels on the frame, and those that lie on it; for axes that are not resampled."""
        first = max(planes.start, self.shift)
        end = max(first, min(planes.stop, self.shift + FRAME))
        return slice(first - self.shift, end - self.shift), slice(first - planes.start, end - planes.start)

    def to_frame(self) -> FloatArray:
        """Weights [240, size] that interpolate voxels at the frame's pixels; 0 outside the volume."""
        pixels = self.start_mm + np.arange(FRAME) + 0.5
        voxels = (np.arange(self.size) + 0.5) * self.spacing_mm
        return _interpolation(pixels, 1.0, voxels, self.spacing_mm)

    def from_frame(self) -> FloatArray:
        """Weights [size, 240] that interpolate the frame's pixels at the voxels; 0 outside the frame."""
        pixels = self.start_mm + np.arange(FRAME) + 0.5
        voxels = (np.arange(self.size) + 0.5) * self.spacing_mm
        return _interpolation(voxels, self.spacing_mm, pixels, 1.0)


@dataclass(frozen=True)
class Geometry:
    """The place of one case's voxels, and the two ways between its volumes and the network's frames.

    shape: I, J, K. axcodes: where these point, such as LPS. orientation: nibabel's [3, 2] array that turns them into L, P, S.
    """

    shape: tuple[int, int, int]
    axcodes: str
    orientation: npt.NDArray[np.float64]
    x: AxisFit
    y: AxisFit
    slice_spacing_mm: float

    @property
    def resampled(self) -> bool:
        """Whether the frames are interpolated, so that class probabilities and not class indices must come back."""
        return self.x.resampled or self.y.resampled

    @property
    def untouched(self) -> bool:
        """Whether the frames are the volume's own pixels, neither shifted nor interpolated."""
        return self.x.untouched and self.y.untouched

    @property
    def fit(self) -> str:
        """The change of the slices for the network: none (untouched), padding or cropping (shifted), or resampled."""
        return "resampled" if self.resampled else "untouched" if self.untouched else "shifted"

    @property
    def n_slices(self) -> int:
        """Z."""
        return self.shape[self.stored_axis_of_slices]

    @property
    def stored_axis_of_slices(self) -> int:
        """Which of I, J, K is Z."""
        return int(np.flatnonzero(self.orientation[:, 0] == 2)[0])

    def frames(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turned voxels [X, Y, Z] as [240, 240, Z]: resampled (float64) if need be, else shifted; 0 where there is no volume.

        Brain and background are not mixed: a pixel is the weighted mean of the voxels above 0 around it, or 0 where these have
        less than half of the weight.
        """
        if not self.resampled:
            return _shifted(voxels, (self.x.shift, self.y.shift), (FRAME, FRAME))
        to_x, to_y = _Taps(self.x.to_frame()), _Taps(self.y.to_frame())
        result = np.zeros((FRAME, FRAME, voxels.shape[2]))
        for z in range(voxels.shape[2]):
            plane = voxels[:, :, z].astype(np.float64)
            brain = plane > 0
            share = to_y.along_second(to_x.along_first(brain.astype(np.float64)))
            inside = share >= 0.5
            result[inside, z] = to_y.along_second(to_x.along_first(plane * brain))[inside] / share[inside]
        return result

    def classes(self, frames: ClassMap) -> ClassMap:
        """Class indices of frames [N, 240, 240] at the volume's pixels [N, X, Y]; background outside the frame."""
        return self._shifted_back(frames)

    def probabilities(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Class probabilities of frames [N, 240, 240, 4] at the volume's pixels [N, X, Y, 4], interpolated if need be.

        Outside the frame all are 0.
        """
        if not self.resampled:
            return self._shifted_back(frames)
        from_x, from_y = _Taps(self.x.from_frame()), _Taps(self.y.from_frame())
        result = np.empty((len(frames), self.x.size, self.y.size, frames.shape[3]), dtype=np.float32)
        for n, frame in enumerate(frames):
            for index in range(frames.shape[3]):
                result[n, :, :, index] = from_y.along_second(from_x.along_first(frame[:, :, index]))
        return result

    def _shifted_back(self, frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
        planes = np.moveaxis(frames, 0, 2)
        return np.moveaxis(_shifted(planes, (-self.x.shift, -self.y.shift), (self.x.size, self.y.size)), 2, 0)

    def turned(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Voxels [I, J, K] as [X, Y, Z], a view."""
        return np.asarray(apply_orientation(voxels, self.orientation))

    def turned_back(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Voxels [X, Y, Z] as [I, J, K]: the exact inverse of `turned`."""
        back = np.empty_like(self.orientation)
        for axis, (network_axis, flip) in enumerate(self.orientation):
            back[int(network_axis)] = axis, flip
        return np.asarray(apply_orientation(voxels, back))


def orientation_to_network(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """nibabel's orientation array [3, 2] that turns voxel axes I, J, K into L, P, S; an oblique affine goes to the nearest."""
    return np.asarray(ornt_transform(io_orientation(affine), axcodes2ornt(_NETWORK_AXES)))


def axcodes(affine: npt.NDArray[np.float64]) -> str:
    """The directions of the voxel axes, such as LPS; of an oblique affine the nearest."""
    return "".join(aff2axcodes(affine))


def spacing_mm(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size along the three voxel axes: the lengths of the affine's columns."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return float(i), float(j), float(k)


def skew_degrees(affine: npt.NDArray[np.float64]) -> float:
    """How far the voxel axes are from right angles to one another, at most; 0 unless the affine is sheared."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (axes.T @ axes)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, np.abs(cosines).max()))))


def why_implausible(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> str | None:
    """Why no image of a head can have this affine and this shape, in words that follow a colon; None where one can."""
    if not np.isfinite(affine).all():
        return "its affine holds values that are not finite"
    spacing = spacing_mm(affine)
    sizes = " x ".join(f"{size:g}" for size in spacing)
    smallest, largest = _SPACING_RANGE_MM
    if not all(smallest <= size <= largest for size in spacing):
        return f"voxels of {sizes} mm are impossible for brain MRI; it may not be in mm"
    if any(n * size > _MAX_FIELD_OF_VIEW_MM for n, size in zip(shape, spacing, strict=True)):
        return f"{' x '.join(map(str, shape))} voxels of {sizes} mm are larger than any head"
    return None


def at_1_mm(spacing_mm: Iterable[float]) -> bool:
    """Whether voxels have the network's size in all these directions."""
    return all(abs(size - 1.0) < _SAME_SPACING_MM for size in spacing_mm)


def farthest_corner_mm(affine: npt.NDArray[np.float64], other: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """The largest distance along R, A or S between where two affines place a corner of the same volume."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))])
    return float(np.abs(corners @ (affine - other)[:3].T).max())


def is_same_place(distance_mm: float, affine: npt.NDArray[np.float64]) -> bool:
    """Whether corners so far apart are those of one grid. affine: of either."""
    return distance_mm <= _SAME_GRID_VOXELS * min(spacing_mm(affine))


def is_rounding(distance_mm: float, affine: npt.NDArray[np.float64]) -> bool:
    """Whether corners so far apart differ by no more than the rounding of an affine."""
    return distance_mm <= _ROUNDING_VOXELS * min(spacing_mm(affine))


def fit(brain: npt.NDArray[np.bool_], *, affine: npt.NDArray[np.float64]) -> Geometry:
    """Lay the frame over a volume.

    brain: [I, J, K], whatever is above 0 in any modality; not empty. affine: voxel indices to RAS millimetres.
    An axis that fills the frame exactly stays untouched; any other is centred on the brain's box.
    """
    orientation = orientation_to_network(affine)
    stored = np.argsort(orientation[:, 0])  # stored axis behind X, Y and Z
    spacing = spacing_mm(affine)
    lengths = [(brain.shape[axis], spacing[axis]) for axis in stored]
    turned = np.asarray(apply_orientation(brain, orientation))
    x, y = (
        _axis_fit(np.asarray(turned.any(axis=(1 - axis, 2))), size, spacing) for axis, (size, spacing) in enumerate(lengths[:2])
    )
    return laid_out(brain.shape, affine, x, y)


def laid_out(shape: tuple[int, ...], affine: npt.NDArray[np.float64], x: AxisFit, y: AxisFit) -> Geometry:
    """The geometry of a volume whose in-plane axes lie on the frame as given."""
    i, j, k = shape
    geometry = Geometry((i, j, k), axcodes(affine), orientation_to_network(affine), x, y, 0.0)
    return replace(geometry, slice_spacing_mm=spacing_mm(affine)[geometry.stored_axis_of_slices])


@dataclass(frozen=True)
class Turn:
    """From stored axes I, J, K to X, Y, Z, for pictures: every voxel as stored, no frame. affine: of the turned volume.

    axes: which stored axis lies behind X, Y and Z. flips: for each, 1 or -1, whether that runs the same way.
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...]
    affine: npt.NDArray[np.float64]

    @classmethod
    def of(cls, affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> "Turn":
        """The turn of a stored volume. shape: I, J, K."""
        orientation = orientation_to_network(affine).astype(int)
        axes = np.argsort(orientation[:, 0])
        flips = orientation[axes, 1]
        turned = affine.copy()
        turned[:, :3] = affine[:, axes] * flips
        turned[:, 3] += affine[:, axes] @ np.where(flips < 0, np.array(shape)[axes] - 1, 0)
        return cls(tuple(axes.tolist()), tuple(flips.tolist()), turned)

    def turned(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The voxels along X, Y and Z, as a view of the same memory."""
        return voxels.transpose(self.axes)[tuple(slice(None, None, flip) for flip in self.flips)]


def box_of(mask: npt.NDArray[np.bool_]) -> Box | None:
    """The smallest box [a, b, c] of a mask that holds all of it; None where the mask is empty."""
    planes = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if planes[0].size == 0:
        return None
    first, second, third = (slice(int(indices[0]), int(indices[-1]) + 1) for indices in planes)
    return first, second, third


def _axis_fit(brain: npt.NDArray[np.bool_], size: int, spacing: float) -> AxisFit:
    """Lay an axis on the frame. brain: [size], whether the brain reaches this plane."""
    planes = np.flatnonzero(brain)
    first, end = int(planes[0]), int(planes[-1]) + 1
    resampled = not at_1_mm([spacing])
    if abs(size * spacing - FRAME) < _SAME_EXTENT_MM:
        start = (size * spacing - FRAME) / 2 if resampled else 0.0
    elif resampled:
        start = (first + end) / 2 * spacing - FRAME / 2
    else:
        start = float((first + end - FRAME) // 2)
    return AxisFit(size, spacing, start, (end - first) * spacing)


def _shifted(voxels: npt.NDArray[Any], shift: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The first two axes of [X, Y, ...] from index `shift` on (it may be below 0), `size` long; 0 where there is nothing."""
    if shift == (0, 0) and voxels.shape[:2] == size:
        return voxels
    result = np.zeros((*size, *voxels.shape[2:]), dtype=voxels.dtype)
    source, target = [], []
    for begin, length, available in zip(shift, size, voxels.shape[:2], strict=True):
        first, end = max(begin, 0), min(begin + length, available)
        source.append(slice(first, max(first, end)))
        target.append(slice(first - begin, max(first, end) - begin))
    result[tuple(target)] = voxels[tuple(source)]
    return result


class _Taps:
    """A matrix of weights [targets, sources], kept as the few weights of each row that are not 0.

    A product of matrices would let BLAS start threads inside the threads that read the four modalities.
    """

    def __init__(self, weights: FloatArray) -> None:
        n_taps = int(np.count_nonzero(weights, axis=1).max(initial=1))
        self._sources = np.argsort(-weights, axis=1, kind="stable")[:, :n_taps]
        self._weights = np.take_along_axis(weights, self._sources, axis=1)

    def along_first(self, plane: FloatArray) -> FloatArray:
        """[sources, M] to [targets, M]."""
        taps = zip(self._weights.T, self._sources.T, strict=True)
        return np.asarray(np.sum([weight[:, None] * plane[source] for weight, source in taps], axis=0))

    def along_second(self, plane: FloatArray) -> FloatArray:
        """[M, sources] to [M, targets]."""
        return np.asarray(self.along_first(plane.T).T)


def _interpolation(targets: FloatArray, target_size: float, sources: FloatArray, source_size: float) -> FloatArray:
    """Weights [targets, sources]: the mean over the sources that a coarser target covers, linear interpolation at a finer one.

    All positions and sizes in mm, positions of centres. A row sums to 1 inside the sources' extent and is 0 outside it.
    """
    distance = np.abs(targets[:, None] - sources[None, :])
    if target_size > source_size:
        weights = np.clip((target_size + source_size) / 2 - distance, 0.0, source_size)  # overlap of the two intervals
    else:
        weights = np.clip(1.0 - distance / source_size, 0.0, None)
    inside = (targets > sources[0] - source_size / 2) & (targets < sources[-1] + source_size / 2)
    weights[~inside] = 0.0
    sums = weights.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weights, sums, out=weights, where=sums > 0))
