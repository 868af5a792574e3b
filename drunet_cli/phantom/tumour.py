"""A synthetic glioma in a head."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.phantom.anatomy import Coordinates, FloatArray, HeadGrid, Point, SyntheticHead, beyond, squares

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
    """Where the tissue of each voxel, [V], lay before the tumour grew: nearer to the tumour.

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
