"""Structures as signed distances: depth below the surface, negative outside, all in atlas mm."""

import itertools
import math
from typing import TypeAlias

import numpy as np

from drunet_cli.phantom.grid import Coordinates, FloatArray

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
