"""What the seed decides of a tumour: where it is and how it grows. Lengths are atlas mm."""

import math
from dataclasses import dataclass

import numpy as np

from drunet_cli.phantom.shapes import Point


@dataclass(frozen=True)
class Glioma:
    """What the seed decides of a tumour. foci: centre and radius of each core; reach: how far oedema goes beyond them, in white
    matter; rim: thickness of enhancing tumour, 0 without; gaps: from what noise on the rim is broken; push: mass effect.
    """

    foci: tuple[tuple[Point, float], ...]
    reach: float
    rim: float
    gaps: float
    push: float


def draw_glioma(rng: np.random.Generator, enhancing: bool | None) -> Glioma:
    """A tumour of one core, or of two close to each other. enhancing: as make_phantom has it, None for as drawn."""
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
