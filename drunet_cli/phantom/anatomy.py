"""A synthetic head and the glioma in it: the grid of its voxels, the shapes of its parts, and the shares of its tissues."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import ClassMap, TumourClass

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
class HeadGrid:
    """The voxels that are computed, V in number. axes: atlas mm along X, Y and Z of the box around them; voxel: its size there.

    chosen: [X, Y, Z], which voxels of the box they are. The head fills but a third of it, and time goes by voxels.
    """

    box: tuple[slice, slice, slice]
    axes: tuple[FloatArray, FloatArray, FloatArray]
    voxel: float
    chosen: Mask

    @classmethod
    def of(cls, shape: Shape, spacing_mm: float) -> "HeadGrid":
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

    def coarser(self) -> "HeadGrid":
        """Every third voxel along each axis."""
        x, y, z = (axis[1::_COARSE] for axis in self.axes)
        return replace(self, axes=(x, y, z), voxel=_COARSE * self.voxel, chosen=self.chosen[1::_COARSE, 1::_COARSE, 1::_COARSE])

    def around(self, brain: Mask) -> "HeadGrid":
        """The same with those voxels alone that lie in or near the brain. brain: [V] of the coarser grid."""
        x, y, z = self.coarser().chosen.shape
        near = ndimage.binary_dilation(brain.reshape(x, y, z), np.ones((3, 3, 3)))
        at = [np.minimum(np.arange(n) // _COARSE, size - 1) for n, size in zip(self.chosen.shape, near.shape, strict=True)]
        return replace(self, chosen=near[np.ix_(*at)])

    @cached_property
    def xyz(self) -> Coordinates:
        """The places of the voxels, each [V]."""
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


Point: TypeAlias = tuple[float, float, float]


def squares(first: FloatArray, *others: FloatArray) -> FloatArray:
    """Sum of the squares, voxel by voxel."""
    total = first * first
    for other in others:
        total += other * other
    return total


def beyond(distance: FloatArray) -> FloatArray:
    """The distance where it is above 0, elsewhere 0."""
    return np.clip(distance, 0, None)


def ellipsoid(p: Coordinates, centre: Point, radii: Point) -> FloatArray:
    """Depth below an ellipsoid's surface, negative outside; to first order."""
    parts = [(c - np.float32(middle)) / np.float32(radius) for c, middle, radius in zip(p, centre, radii, strict=True)]
    norm = np.sqrt(squares(*parts))
    slope = np.sqrt(squares(*(part / np.float32(radius) for part, radius in zip(parts, radii, strict=True))))
    return np.asarray(norm * (1 - norm) / np.maximum(slope, np.float32(1e-5)))


def tube(p: Coordinates, path: tuple[tuple[Point, float], ...]) -> FloatArray:
    """Depth below the surface of a chain of cones, given by points and the radius at each."""
    depth = np.full_like(p[0], -np.inf)
    for (start, radius), (end, radius_at_end) in itertools.pairwise(path):
        step = [b - a for a, b in zip(start, end, strict=True)]
        from_start = [c - np.float32(a) for c, a in zip(p, start, strict=True)]
        along = np.zeros_like(depth)
        for away, d in zip(from_start, step, strict=True):
            along += away * np.float32(d / math.hypot(*step) ** 2)
        along = np.clip(along, 0, 1)
        distance = np.sqrt(squares(*(away - along * np.float32(d) for away, d in zip(from_start, step, strict=True))))
        depth = np.maximum(depth, radius + np.float32(radius_at_end - radius) * along - distance)
    return depth


def joined(depth: FloatArray, other: FloatArray, width: float) -> FloatArray:
    """Depth below the surface of both together, the crease between them filled over `width`."""
    h = np.clip(width - np.abs(depth - other), 0, None)
    return np.maximum(depth, other) + h * h * np.float32(0.25 / width)


_FOLD_STEP: Final = 2.0
_FOLD: Final = 2.8  # SD of the wider Gaussian below, in steps; gives a sulcus about every 12 mm
_SHELL: Final = 0.8  # of the cerebrum's radii
_LATERAL_VENTRICLE: Final = (
    ((14, -42, 3), 3.0), ((7, -25, 9), 5.0), ((6.5, -4, 14), 4.5), ((11, 15, 15), 4.8), ((21, 30, 7), 6.0), ((24, 40, -1), 4.0),
    ((21, 54, -3), 1.5),
)  # fmt: skip
_TEMPORAL_HORN: Final = (((22, 31, 5), 4.5), ((31, 22, -12), 2.2), ((31, -6, -24), 1.6))


@dataclass(frozen=True)
class SyntheticHead:
    """The place of each voxel in the anatomy, and its depths below the surfaces of the parts, all [V].

    p: anatomical x, y, z: the grid's, pushed aside by a tumour, turned, scaled and bent. outline: depth below the brain's.
    """

    grid: HeadGrid
    p: Coordinates
    cerebrum: FloatArray
    cerebellum: FloatArray
    stem: FloatArray
    outline: FloatArray

    @property
    def brain(self) -> Mask:
        """[V]: what skull stripping leaves."""
        return self.outline > 0

    @property
    def in_cerebrum(self) -> Mask:
        """[V]: deeper below the surface of the cerebrum than below that of the cerebellum; also outside the brain."""
        return self.cerebrum > self.cerebellum

    @classmethod
    def of(cls, grid: HeadGrid, rng: np.random.Generator, places: Coordinates | None = None) -> "SyntheticHead":
        """The head that the generator draws.

        places: where the tissue of each voxel lay before a tumour pushed it aside; without a tumour, where the voxel lies.
        """
        p = x, y, z = _anatomical(grid, rng, grid.xyz if places is None else places)
        base = z + np.float32(19.0) - np.float32(0.04) * np.abs(y + 10)  # above the floor of the frontal and occipital lobes
        cerebrum = -joined(-ellipsoid(p, (0, 0, 0), (65, 84, 66)), -base, 12.0)
        temporal = ellipsoid((np.abs(x), y, z), (42, -10, -25), (22, 41, 21))
        cerebrum = joined(cerebrum, temporal, 8.0)
        cerebellum = ellipsoid(p, (0, 38, -43), (50, 33, 32))
        cerebellum -= 5 * np.exp(-((x / 7) ** 2)) * np.clip((y - 40) / 20, 0, 1)  # the notch between its hemispheres
        stem = tube(p, (((0, 0, -8), 12.0), ((0, 3, -33), 14.0), ((0, 13, -55), 9.0), ((0, 20, -90), 8.0)))
        whole = joined(joined(cerebrum, cerebellum, 14.0), stem, 10.0)
        return cls(grid, p, cerebrum, cerebellum, stem, whole - np.float32(0.2) + np.float32(0.6) * grid.noise(rng, 6.0))


def _anatomical(grid: HeadGrid, rng: np.random.Generator, places: Coordinates) -> Coordinates:
    turn_x, turn_y, turn_z = rng.normal(0, math.radians(2.5), 3)  # what is left after registration to an atlas
    turns = np.array([[1, -turn_z, turn_y], [turn_z, 1, -turn_x], [-turn_y, turn_x, 1]])
    scales = np.clip(rng.normal(0.99, 0.025) + rng.normal(0, 0.015, 3), 0.92, 1.06)
    p = []
    for row, scale in zip((turns / scales[:, None]).astype(np.float32), scales, strict=True):
        place = grid.noise(rng, 30.0) * np.float32(2.2 / scale)
        for factor, coordinate in zip(row, places, strict=True):
            place += factor * coordinate
        p.append(place)
    return p[0], p[1], p[2]


def healthy_shares(head: SyntheticHead, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Shares of the healthy tissues, each laid over those before it and all over white matter."""
    grid = head.grid
    nuclei, ventricles, choroid = _nuclei_and_ventricles(head, rng)
    uneven, finest = grid.noise(rng, 9.0), grid.noise(rng, 5.0)
    surface = _below_cortex(head, rng)
    width = rng.uniform(0.1, 0.9)  # of CSF over the cortex, as age has it
    thickness = rng.uniform(2.6, 3.2)
    csf = grid.ramp(width + np.float32(0.45) * uneven - surface)
    grey = grid.ramp(width + thickness + np.float32(0.5) * uneven - surface, 1.8)

    leaves = ellipsoid(head.p, (0, 12, -36), (60, 44, 40)) + np.float32(1.4) * grid.noise(rng, 13.0)
    folia = np.sin(leaves * np.float32(2 * math.pi / 4.2) + np.float32(0.9) * finest)
    outer = np.where(~head.in_cerebrum & (head.stem < 0), grid.ramp(14 - head.cerebellum, 9.0), 0)
    grey = np.where(head.in_cerebrum, grey, outer * (np.float32(0.75) + np.float32(0.25) * folia))
    csf = np.maximum(csf, outer * np.clip(np.float32(0.6) * folia - np.float32(0.4) + np.float32(0.15) * uneven, 0, 0.4))

    near = np.exp(-beyond(-ventricles) / np.float32(rng.uniform(1.2, 2.5))) * np.float32(rng.uniform(0.2, 0.9))
    lesions = np.clip(finest - np.float32(rng.uniform(2.4, 4.0)), 0, 1) * (1 - grey) * (head.cerebrum > 8)
    veins = np.clip(2 * grid.noise(rng, 3.0) - np.float32(3.8), 0, 1) * grid.ramp(width + 1 - surface)
    return {
        "grey": grey,
        "deep": grid.ramp(nuclei, 1.5),
        "pallidum": grid.ramp(ellipsoid((np.abs(head.p[0]), *head.p[1:]), (19, -3, -1), (4, 10, 7)), 1.5),
        "rim": np.maximum(near, lesions),
        "csf": np.maximum(csf, grid.ramp(ventricles)),
        "vessel": np.maximum(veins, choroid),
        "dura": grid.ramp(np.float32(0.8) + np.float32(0.6) * finest - head.outline) * np.float32(rng.uniform(0.3, 0.9)),
    }


def _below_cortex(head: SyntheticHead, rng: np.random.Generator) -> FloatArray:
    """Depth below the nearest surface that bears cortex: the outer one, a sulcus or a fissure."""
    tentorium = np.abs(head.cerebrum - head.cerebellum) * np.float32(0.5)
    surface = np.minimum(np.maximum(head.cerebrum, head.cerebellum), tentorium)
    surface = np.where(head.in_cerebrum, np.minimum(surface, _from_fissures(head, rng)), surface)
    # Basal nuclei and brain stem have no cortex, whatever surface is near.
    surface = np.maximum(surface, ellipsoid(head.p, (0, 4, -10), (24, 34, 24)))
    return np.maximum(surface, head.stem)


def _from_fissures(head: SyntheticHead, rng: np.random.Generator) -> FloatArray:
    """Distance from the nearest sulcus, the fissure between the hemispheres, and those beside the temporal lobes."""
    grid, (x, y, z) = head.grid, head.p
    in_callosum = beyond(27 - np.sqrt(squares(np.float32(0.64) * (y - 2), z - 2)))
    away = squares(x + grid.noise(rng, 16.0), in_callosum)
    side = np.abs(x)
    above = z + np.float32(5) - np.float32(0.4) * y
    lateral = squares(above, beyond(35 - side), beyond(np.abs(y) - 28))
    insula = squares(side - 36, beyond(np.abs(above) - 11), beyond(np.abs(y + 2) - 22))
    reach = np.float32(rng.uniform(17, 22)) + 5 * grid.noise(rng, 18.0)
    sulci = squares(_from_folds(head, rng), beyond(head.cerebrum - reach))
    return np.sqrt(np.minimum(np.minimum(away, sulci), np.minimum(lateral, insula)))


def _from_folds(head: SyntheticHead, rng: np.random.Generator) -> FloatArray:
    """Distance from the nearest sheet of a labyrinth that stands upright on the surface: zeros of noise of one wavelength."""
    counts = [math.ceil(2 * (extent + 10) / _FOLD_STEP) for extent in EXTENT]
    white = rng.standard_normal(counts, dtype=np.float32)
    band = ndimage.gaussian_filter(white, 0.62 * _FOLD, mode="wrap") - ndimage.gaussian_filter(white, _FOLD, mode="wrap")
    slope = np.sqrt(squares(*np.gradient(band, np.float32(_FOLD_STEP))))
    # Taken where the ray from the middle meets a shell, or nearly, so that the sheets run inwards; bent, so that they meander.
    x, y, z = head.p
    norm = np.sqrt(squares(x / 65, y / 84, z / 66))
    outwards = np.sqrt(np.float32(_SHELL) / np.clip(norm, 0.3, None))
    at = np.empty((3, norm.size), dtype=np.float32)
    for row, coordinate, n in zip(at, head.p, counts, strict=True):
        row[:] = coordinate * outwards + np.float32(1.6) * head.grid.noise(rng, 7.0)
        row /= np.float32(_FOLD_STEP)
        row += np.float32((n - 1) / 2)
    field, steepness = (ndimage.map_coordinates(f, at, order=1, mode="grid-wrap", output=np.float32) for f in (band, slope))
    return np.asarray(np.abs(field) / (np.maximum(steepness, np.float32(0.4) * slope.mean()) * outwards))


def _nuclei_and_ventricles(head: SyntheticHead, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Depths below the surfaces of the grey nuclei and the ventricles, -inf far from them; share of the choroid plexus."""
    size = np.float32(np.clip(rng.normal(0.3, 0.9), -1.5, 2.5))
    part = np.flatnonzero((np.abs(head.p[0]) < 45) & (np.abs(head.p[1]) < 70) & (np.abs(head.p[2] + 10) < 50))
    p = (np.abs(head.p[0][part]), head.p[1][part], head.p[2][part])
    nuclei = np.maximum(ellipsoid(p, (10, 8, 2), (8.5, 14, 9)), ellipsoid(p, (14, -22, 6), (5, 12, 8)))
    nuclei = np.maximum(nuclei, ellipsoid(p, (26, -5, 0), (5.5, 16, 9)))
    lateral = np.maximum(tube(p, _LATERAL_VENTRICLE), tube(p, _TEMPORAL_HORN)) + size
    lateral = np.minimum(lateral, p[0] - np.float32(0.9))  # the septum
    middle = np.maximum(ellipsoid(p, (0, 4, -7), (2.2 + 0.5 * float(size), 14, 10)), ellipsoid(p, (0, 22, -38), (8, 5, 9)))
    wobble = np.float32(0.8) * head.grid.noise(rng, 8.0)[part]
    plexus = head.grid.ramp(ellipsoid(p, (21, 31, 6), (2.4, 4.5, 2.4)) + 2 * wobble) * np.float32(rng.uniform(0.3, 0.9))
    found = []
    for values, elsewhere in ((nuclei + wobble, -np.inf), (np.maximum(lateral, middle) + wobble, -np.inf), (plexus, 0)):
        whole = np.full(head.outline.shape, elsewhere, dtype=np.float32)
        whole[part] = values
        found.append(whole)
    return found[0], found[1], found[2]


_PUSHED_WITHIN: Final = 3.0  # radii of the core


@dataclass(frozen=True)
class Glioma:
    """A tumour as the seed decides it, in atlas mm.

    foci: centre and radius of each core. reach: how far oedema goes beyond them in white matter. rim: thickness of enhancing
    tumour, 0 without. gaps: the noise below which the rim is broken. push: the share by which tissue beside a core gives way.
    """

    foci: tuple[tuple[Point, float], ...]
    reach: float
    rim: float
    gaps: float
    push: float


def draw_glioma(rng: np.random.Generator, enhancing: bool | None) -> Glioma:
    """A tumour of one core, or of two close to each other. enhancing: whether it enhances; None for what the seed draws."""
    drawn = bool(rng.random() < 0.75)
    enhances = drawn if enhancing is None else enhancing
    radius = float(np.clip(rng.lognormal(math.log(16 if enhances else 21), 0.35), 8, 31))
    first = _draw_place(rng, within=0.8 - radius / 100)
    foci = [(first, radius)]
    away, size, several = rng.normal(0, 1, 3), rng.uniform(0.3, 0.7), rng.random() < 0.2
    if several:  # a daughter beside the first
        x, y, z = (float(c) for c in first + 1.5 * radius * away / np.linalg.norm(away))
        foci.append(((x, y, z), max(5.0, float(size) * radius)))
    return Glioma(
        foci=tuple(foci),
        reach=float(rng.uniform(7, 18) if enhances else rng.uniform(4, 12)),
        rim=min(float(rng.uniform(2.0, 5.5)), 0.25 * radius) if enhances else 0.0,
        gaps=float(rng.uniform(-2.5, -0.7)),
        push=float(rng.uniform(0.15, 0.4)),
    )


def _draw_place(rng: np.random.Generator, *, within: float) -> Point:
    """A point of the cerebrum at less than that share of its radii, and not astride the middle."""
    while True:
        x, y, z = (float(c) for c in rng.uniform((0.22, -0.7, -0.1), (0.7, 0.7, 0.7)))
        left = rng.random() < 0.5
        if math.hypot(x, y, z) < within:
            return (65 * x if left else -65 * x, 84 * y, 66 * z)


def places_before(glioma: Glioma, grid: HeadGrid) -> Coordinates:
    """The place of each voxel's tissue, [V], before the tumour grew: nearer to the tumour.

    The skull holds surface and base in place.
    """
    x, y, z = grid.xyz
    inside = np.clip(2 - 2 * squares(x / 65, y / 84, z / 66), 0, 1) * np.clip((z + 14) / 8, 0, 1)
    pushed = [x, y, z]
    for centre, radius in glioma.foci:
        aside = [c - np.float32(middle) for c, middle in zip(grid.xyz, centre, strict=True)]
        nearness = np.clip(1 - squares(*aside) / np.float32((_PUSHED_WITHIN * radius) ** 2), 0, None)
        share = nearness * nearness * inside * np.float32(glioma.push)
        pushed = [place - share * away for place, away in zip(pushed, aside, strict=True)]
    return pushed[0], pushed[1], pushed[2]


def tumour_shares(
    glioma: Glioma, head: SyntheticHead, healthy: Mapping[str, FloatArray], rng: np.random.Generator
) -> tuple[dict[str, FloatArray], ClassMap]:
    """Shares of the tumour's tissues, to be laid over the healthy, and the truth, [V]."""
    grid = head.grid
    coarse, fine, finest = grid.noise(rng, 11.0), grid.noise(rng, 6.0), grid.noise(rng, 3.5)
    size = np.float32(glioma.foci[0][1])
    core = np.full_like(coarse, -np.inf)
    for centre, radius in glioma.foci:
        away = squares(*(c - np.float32(middle) for c, middle in zip(grid.xyz, centre, strict=True)))
        core = np.maximum(core, np.float32(radius) - np.sqrt(away))
    core += np.float32(0.2) * size * coarse + np.float32(0.09) * size * fine + np.float32(0.5) * finest
    # Gliomas hardly cross the falx, and keep within the cerebrum; oedema goes a little way through the corpus callosum.
    side = head.p[0] * np.float32(math.copysign(1, glioma.foci[0][0][0])) - np.float32(1.5)
    within = np.where(head.in_cerebrum, head.cerebrum - 1, -9)
    core = np.minimum(core, np.minimum(side, within))

    white = 1 - np.clip(healthy["grey"] + healthy["csf"] + np.float32(0.7) * healthy["deep"], 0, 1)
    fingers = np.float32(0.4) * np.clip(coarse, -2, 1.5) + np.float32(0.2) * fine
    reach = np.float32(glioma.reach) * (1 + fingers)
    oedema = core + reach - np.float32(0.6 * glioma.reach) * (1 - white) - beyond(-side)
    oedema = np.minimum(oedema, within)
    inside = grid.ramp(core, 1.2)
    enhancing = np.zeros_like(inside)
    if glioma.rim:
        rim = np.float32(glioma.rim) * (1 + np.float32(0.5) * fine + np.float32(0.25) * finest)
        shell = np.maximum(rim - core, np.float32(2.2) * (finest - np.float32(1.2)))  # and nodules within
        enhancing = grid.ramp(shell, 1.2) * np.clip((fine - np.float32(glioma.gaps)) * 3, 0, 1) * inside
    solid = np.clip(np.float32(0.45) * (coarse - fine) + np.float32(-0.1 if glioma.rim else 1.0), 0, 1)
    classes = np.zeros(core.shape, dtype=np.uint8)
    classes[(oedema > 0) & (healthy["csf"] < 0.5)] = TumourClass.ED
    classes[inside > 0.5] = TumourClass.NCR
    classes[enhancing > 0.5] = TumourClass.ET
    oedema_share = grid.ramp(oedema, 3.0) * (1 - healthy["csf"])
    return {"ED": oedema_share, "NCR": inside, "solid": inside * solid, "ET": enhancing}, classes
