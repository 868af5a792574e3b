"""Rigid registration: how one scan of a head lies to another scan of it, or a brain to a template.

All positions are RAS millimetres, and every transform is a 4 x 4 matrix that takes positions in one scan to those in another.
ITK is given coarse images whose axes are R, A and S; since these axes are perpendicular, ITK may take R for its own L and A for
its own P, and no matrix needs to be turned.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import Affine, spacing_mm

if TYPE_CHECKING:
    import SimpleITK

Parameters = tuple[float, ...]

FINEST_MM: Final = 2.0  # the fifth part of a second in place of 6 at the full size, and no voxel of the result is made of these
_LEVELS_MM: Final = (8.0, 4.0, FINEST_MM)
_BINS: Final = 48
_SEARCHED_DEGREES: Final = (-18.0, 0.0, 18.0)  # a head in its coil is turned by less than twice this
_BEGINNINGS: Final = 3  # so many of the best rotations are followed
_STEPS: Final = {8.0: 60, 4.0: 60, FINEST_MM: 40}
_SMALLEST_STEP_MM: Final = 0.01
_SHARE_SAMPLED: Final = 0.25  # of the voxels of the finest level
_HEAD_PERCENTILE: Final = 99.5
_HEAD_SHARE: Final = 0.1  # of that percentile: what is brighter belongs to the head
_MARGIN_MM: Final = 10.0


@dataclass(frozen=True)
class Isotropic:
    """A coarse image whose voxels are cubes and whose axes are R, A and S.

    voxels: [R, A, S], float32, none below 0. origin_mm: RAS position of the first voxel's centre.
    """

    voxels: npt.NDArray[np.float32]
    origin_mm: npt.NDArray[np.float64]
    size_mm: float

    @property
    def affine(self) -> Affine:
        """Voxel indices to RAS millimetres."""
        affine = np.diag([self.size_mm, self.size_mm, self.size_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    @cached_property
    def head(self) -> npt.NDArray[np.bool_]:
        """[R, A, S]: what is clearly brighter than air."""
        bright = self.voxels[self.voxels > 0]
        if bright.size == 0:
            return np.zeros(self.voxels.shape, dtype=np.bool_)
        return np.asarray(self.voxels > _HEAD_SHARE * np.percentile(bright, _HEAD_PERCENTILE))

    @property
    def centre_mm(self) -> npt.NDArray[np.float64]:
        """RAS position of the middle of the head."""
        indices = np.argwhere(self.head).mean(axis=0) if self.head.any() else (np.array(self.voxels.shape) - 1) / 2
        return np.asarray(self.origin_mm + indices * self.size_mm)

    def coarser(self, size_mm: float) -> "Isotropic":
        """The mean of cubes of voxels. size_mm: a multiple of this image's."""
        voxels, affine = _block_means(self.voxels, self.affine, [round(size_mm / self.size_mm)] * 3)
        return Isotropic(voxels, affine[:3, 3], size_mm)

    def cropped(self) -> "Isotropic":
        """The head with a margin of air."""
        if not self.head.any():
            return self
        margin = round(_MARGIN_MM / self.size_mm)
        found = np.argwhere(self.head)
        first = np.maximum(found.min(axis=0) - margin, 0)
        end = np.minimum(found.max(axis=0) + 1 + margin, self.voxels.shape)
        box = tuple(slice(a, b) for a, b in zip(first, end, strict=True))
        return Isotropic(np.ascontiguousarray(self.voxels[box]), self.origin_mm + first * self.size_mm, self.size_mm)

    def itk(self) -> "SimpleITK.Image":
        """The same image for ITK."""
        import SimpleITK

        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(self.voxels.T))
        image.SetOrigin(self.origin_mm.tolist())
        image.SetSpacing([self.size_mm] * 3)
        return image


def isotropic(voxels: npt.NDArray[Any], affine: Affine, *, size_mm: float = FINEST_MM) -> Isotropic:
    """A scan [I, J, K] on cubes along R, A and S that cover all of it. Values below 0 count as 0."""
    factors = [max(1, int(size_mm / spacing)) for spacing in spacing_mm(affine)]
    means, affine = _block_means(np.maximum(voxels, 0).astype(np.float32), affine, factors)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in means.shape))))
    positions = corners @ affine[:3, :3].T + affine[:3, 3]
    origin = positions.min(axis=0)
    shape = np.ceil((positions.max(axis=0) - origin) / size_mm).astype(int) + 1
    target = Isotropic(np.zeros((1, 1, 1), np.float32), origin, size_mm).affine
    return Isotropic(resampled(means, affine, target, tuple(shape.tolist())), origin, size_mm)


def resampled(
    voxels: npt.NDArray[Any], affine: Affine, target: Affine, shape: tuple[int, ...], *, transform: Affine | None = None
) -> npt.NDArray[np.float32]:
    """Linear interpolation of an image [I, J, K] at the voxels of another grid, float32; 0 outside the image.

    affine, target: voxel indices of the image and of the grid to RAS millimetres. transform: takes positions in the image to
    positions on the grid; None where they are the same.
    """
    matrix = np.linalg.inv(affine) @ (target if transform is None else np.linalg.inv(transform) @ target)
    result: npt.NDArray[np.float32] = ndimage.affine_transform(
        voxels, matrix[:3, :3], matrix[:3, 3], output_shape=shape, output=np.float32, order=1, mode="constant", cval=0.0
    )
    return result


def register(moving: Isotropic, fixed: Isotropic) -> Affine:
    """The rigid transform that takes positions in one image to those of the same anatomy in another, by mutual information.

    Both are images of `FINEST_MM`. The search begins where the headers place the images, and where their middles meet,
    turned in steps about all three axes; it ends at the finest level. Equal images give an equal transform in every run.
    Raises CaseError where no part of the one lies over the other.
    Source of the measure: Mattes et al., PET-CT image registration in the chest (IEEE TMI 2003), as ITK has it.
    """
    fixed, moving = fixed.cropped(), moving.cropped()
    centre = fixed.centre_mm
    first = _LEVELS_MM[0]
    pyramid = {
        size: (fixed, moving) if size == FINEST_MM else (fixed.coarser(size), moving.coarser(size)) for size in _LEVELS_MM
    }
    beginnings = [
        (*rotation, *shift)
        for shift in ((0.0, 0.0, 0.0), tuple((moving.centre_mm - centre).tolist()))
        for rotation in itertools.product(np.radians(_SEARCHED_DEGREES).tolist(), repeat=3)
    ]
    level = _Level(*pyramid[first], centre)
    ranked = sorted(beginnings, key=level.cost)
    best = [level.refined(each) for each in ranked[:_BEGINNINGS]]
    for size in _LEVELS_MM[1:]:
        level = _Level(*pyramid[size], centre)
        best = [level.refined(min(best, key=level.cost))]
    if not np.isfinite(level.cost(best[0])):
        raise CaseError("no part of the two images shows the same place")
    return np.asarray(np.linalg.inv(_matrix_of(best[0], centre)), dtype=np.float64)


class _Level:
    """One level of the search: ITK's measure of how badly two images agree, and the way downhill from a beginning."""

    def __init__(self, fixed: Isotropic, moving: Isotropic, centre_mm: npt.NDArray[np.float64]) -> None:
        import SimpleITK

        self._fixed, self._moving = fixed.itk(), moving.itk()
        self._centre_mm = centre_mm
        self._size_mm = fixed.size_mm
        # Sums of several threads differ in their last digits from run to run. Not by the method's own number of threads, which
        # not all of its parts heed; registrations run side by side instead.
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        self._method = SimpleITK.ImageRegistrationMethod()
        self._method.SetMetricAsMattesMutualInformation(_BINS)
        self._method.SetInterpolator(SimpleITK.sitkLinear)
        if fixed.size_mm == FINEST_MM:
            self._method.SetMetricSamplingStrategy(self._method.REGULAR)
            self._method.SetMetricSamplingPercentage(_SHARE_SAMPLED, seed=1)
        self._method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self._size_mm, minStep=_SMALLEST_STEP_MM, numberOfIterations=_STEPS[self._size_mm]
        )
        self._method.SetOptimizerScalesFromPhysicalShift()

    def cost(self, parameters: Parameters) -> float:
        """Less where the images agree better; infinite where none of their voxels meet."""
        self._method.SetInitialTransform(self._transform(parameters), inPlace=False)
        self._method.MetricUseMovingImageGradientFilterOff()  # takes longer than the measure, which does not need it
        try:
            return float(self._method.MetricEvaluate(self._fixed, self._moving))
        except RuntimeError:  # all samples map outside the moving image
            return float("inf")

    def refined(self, parameters: Parameters) -> Parameters:
        """Three angles in radians and three shifts in millimetres, improved."""
        transform = self._transform(parameters)
        self._method.SetInitialTransform(transform, inPlace=True)
        self._method.MetricUseMovingImageGradientFilterOn()
        try:
            self._method.Execute(self._fixed, self._moving)
        except RuntimeError:
            return parameters
        return tuple(transform.GetParameters())

    def _transform(self, parameters: Parameters) -> "SimpleITK.Euler3DTransform":
        import SimpleITK

        transform = SimpleITK.Euler3DTransform()
        transform.SetCenter(self._centre_mm.tolist())
        transform.SetParameters(parameters)
        return transform


def _matrix_of(parameters: Parameters, centre_mm: npt.NDArray[np.float64]) -> Affine:
    """The transform of ITK's parameters, from the fixed image to the moving one, as a matrix."""
    import SimpleITK

    transform = SimpleITK.Euler3DTransform()
    transform.SetParameters(parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(parameters[3:]) + centre_mm - matrix[:3, :3] @ centre_mm
    return matrix


def _block_means(voxels: npt.NDArray[np.float32], affine: Affine, factors: list[int]) -> tuple[npt.NDArray[np.float32], Affine]:
    """The means of blocks of voxels, and the affine of the blocks; voxels beyond the last whole block are left out."""
    factors = [min(factor, n) for factor, n in zip(factors, voxels.shape, strict=True)]
    i, j, k = (n // factor for n, factor in zip(voxels.shape, factors, strict=True))
    a, b, c = factors
    means = voxels[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c).mean(axis=(1, 3, 5), dtype=np.float32)
    blocks = affine.copy()
    blocks[:3, :3] = affine[:3, :3] * factors
    blocks[:3, 3] = affine[:3, :3] @ ((np.array(factors) - 1) / 2) + affine[:3, 3]
    return means, blocks


def mutual_information(voxels: npt.NDArray[Any], others: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> float:
    """Normalised mutual information of two images of one shape within a mask: 1 for none, 2 for a one-to-one relation.

    Each image is divided into bins of equally many voxels, so that no contrast and no scale matters.
    Source: Studholme et al., An overlap invariant entropy measure of 3D medical image alignment (1999).
    """
    one, other = (_ranks(image[inside]) for image in (voxels, others))
    if one.size == 0:
        return 1.0
    joint = np.bincount(one * _BINS + other, minlength=_BINS * _BINS).reshape(_BINS, _BINS) / one.size
    both = _entropy(joint)
    return (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / both if both > 0 else 1.0


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])) if values.size else np.zeros(0)
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    filled = shares[shares > 0]
    return float(-(filled * np.log(filled)).sum())


def edge_peak(
    voxels: npt.NDArray[np.float32], others: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], *, size_mm: float
) -> float:
    """How many times better the edges of two images of one shape agree within a mask than with one image shifted by 8 mm.

    Edges of images of one head agree at one place alone; those of two heads agree nowhere, and this is then about 1.
    Source of the measure: Haber and Modersitzki, Intensity gradient based registration and fusion (MICCAI 2006).
    """
    edges, other_edges = _edges(voxels, inside), _edges(others, inside)
    shown = inside & (others > 0)

    def agreement(axis: int, n_voxels: int) -> float:
        shifted, there = np.roll(other_edges, n_voxels, axis + 1), np.roll(others > 0, n_voxels, axis)
        found = ((edges * shifted).sum(axis=0) ** 2)[shown & there]
        return float(found.mean()) if found.size else 0.0

    n_voxels = round(_AWAY_MM / size_mm)
    away = [agreement(axis, n) for axis in range(3) for n in (-n_voxels, n_voxels)]
    return agreement(0, 0) / max(float(np.mean(away)), 1e-6)


_AWAY_MM: Final = 8.0


def _edges(voxels: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """[3, R, A, S]: the direction of the gradient, shorter than 1 where the gradient is less than its median."""
    smooth = ndimage.gaussian_filter(voxels, 1.0)
    gradient = np.stack(np.gradient(smooth))
    squares = (gradient**2).sum(axis=0)
    typical = float(np.median(squares[inside])) if inside.any() else 1.0
    return np.asarray(gradient / np.sqrt(squares + max(typical, 1e-12)), dtype=np.float32)


def move_of(transform: Affine, centre_mm: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The shift of a position by a rigid transform, in millimetres, and its rotation, in degrees."""
    shift_mm = float(np.linalg.norm(transform[:3, :3] @ centre_mm + transform[:3, 3] - centre_mm))
    cosine = (np.trace(transform[:3, :3]) - 1) / 2
    return shift_mm, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
