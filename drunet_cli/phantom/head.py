"""The anatomy of a phantom without its tumour: the parts of the brain, and the shares of the healthy tissues."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from drunet_cli.phantom.glioma import Glioma
from drunet_cli.phantom.grid import EXTENT, Coordinates, FloatArray, Grid, Mask
from drunet_cli.phantom.shapes import beyond, ellipsoid, joined, squares, tube

_PUSHED_WITHIN: Final = 3.0  # radii of the core
_FOLD_STEP: Final = 2.0
_FOLD: Final = 2.8  # SD of the wider Gaussian below, in steps; gives a sulcus about every 12 mm
_SHELL: Final = 0.8  # of the cerebrum's radii
_LATERAL_VENTRICLE: Final = (
    ((14, -42, 3), 3.0), ((7, -25, 9), 5.0), ((6.5, -4, 14), 4.5), ((11, 15, 15), 4.8), ((21, 30, 7), 6.0), ((24, 40, -1), 4.0),
    ((21, 54, -3), 1.5),
)  # fmt: skip
_TEMPORAL_HORN: Final = (((22, 31, 5), 4.5), ((31, 22, -12), 2.2), ((31, -6, -24), 1.6))


@dataclass(frozen=True)
class Head:
    """Where each voxel lies in the anatomy, and its depths below the surfaces of the parts, all [V].

    p: anatomical x, y, z: the grid's turned, scaled, bent, and pushed aside by a tumour. outline: depth below the brain's.
    """

    grid: Grid
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
    def of(cls, grid: Grid, rng: np.random.Generator, glioma: Glioma | None) -> "Head":
        """The head that the generator draws, pushed aside by the glioma where there is one; the draws are the same without."""
        p = x, y, z = _anatomical(grid, rng, glioma)
        base = z + np.float32(19.0) - np.float32(0.04) * np.abs(y + 10)  # above the floor of the frontal and occipital lobes
        cerebrum = -joined(-ellipsoid(p, (0, 0, 0), (65, 84, 66)), -base, 12.0)
        temporal = ellipsoid((np.abs(x), y, z), (42, -10, -25), (22, 41, 21))
        cerebrum = joined(cerebrum, temporal, 8.0)
        cerebellum = ellipsoid(p, (0, 38, -43), (50, 33, 32))
        cerebellum -= 5 * np.exp(-((x / 7) ** 2)) * np.clip((y - 40) / 20, 0, 1)  # the notch between its hemispheres
        stem = tube(p, (((0, 0, -8), 12.0), ((0, 3, -33), 14.0), ((0, 13, -55), 9.0), ((0, 20, -90), 8.0)))
        whole = joined(joined(cerebrum, cerebellum, 14.0), stem, 10.0)
        return cls(grid, p, cerebrum, cerebellum, stem, whole - np.float32(0.2) + np.float32(0.6) * grid.noise(rng, 6.0))


def _anatomical(grid: Grid, rng: np.random.Generator, glioma: Glioma | None) -> Coordinates:
    turn_x, turn_y, turn_z = rng.normal(0, math.radians(2.5), 3)  # what is left after registration to an atlas
    turns = np.array([[1, -turn_z, turn_y], [turn_z, 1, -turn_x], [-turn_y, turn_x, 1]])
    scales = np.clip(rng.normal(0.99, 0.025) + rng.normal(0, 0.015, 3), 0.92, 1.06)
    pushed = grid.xyz if glioma is None else _pushed_aside(grid, glioma)
    p = []
    for row, scale in zip((turns / scales[:, None]).astype(np.float32), scales, strict=True):
        place = grid.noise(rng, 30.0) * np.float32(2.2 / scale)
        for factor, coordinate in zip(row, pushed, strict=True):
            place += factor * coordinate
        p.append(place)
    return p[0], p[1], p[2]


def _pushed_aside(grid: Grid, glioma: Glioma) -> Coordinates:
    """Where the tissue of each voxel lay before the tumour grew: nearer to it. The skull holds surface and base in place."""
    x, y, z = grid.xyz
    inside = np.clip(2 - 2 * squares(x / 65, y / 84, z / 66), 0, 1) * np.clip((z + 14) / 8, 0, 1)
    pushed = [x, y, z]
    for centre, radius in glioma.foci:
        aside = [c - np.float32(middle) for c, middle in zip(grid.xyz, centre, strict=True)]
        nearness = np.clip(1 - squares(*aside) / np.float32((_PUSHED_WITHIN * radius) ** 2), 0, None)
        share = nearness * nearness * inside * np.float32(glioma.push)
        pushed = [place - share * away for place, away in zip(pushed, aside, strict=True)]
    return pushed[0], pushed[1], pushed[2]


def healthy_shares(head: Head, rng: np.random.Generator) -> dict[str, FloatArray]:
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


def _below_cortex(head: Head, rng: np.random.Generator) -> FloatArray:
    """Depth below the nearest surface that bears cortex: the outer one, a sulcus or a fissure."""
    tentorium = np.abs(head.cerebrum - head.cerebellum) * np.float32(0.5)
    surface = np.minimum(np.maximum(head.cerebrum, head.cerebellum), tentorium)
    surface = np.where(head.in_cerebrum, np.minimum(surface, _from_fissures(head, rng)), surface)
    # Basal nuclei and brain stem have no cortex, whatever surface is near.
    surface = np.maximum(surface, ellipsoid(head.p, (0, 4, -10), (24, 34, 24)))
    return np.maximum(surface, head.stem)


def _from_fissures(head: Head, rng: np.random.Generator) -> FloatArray:
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


def _from_folds(head: Head, rng: np.random.Generator) -> FloatArray:
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


def _nuclei_and_ventricles(head: Head, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
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
