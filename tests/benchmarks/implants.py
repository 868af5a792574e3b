"""Synthetic tumours laid into real brains, on grids of 1 mm; for `compact_implants`.

A tumour keeps to the brain, mostly to one hemisphere, and its middle to 8 mm from others. Its kinds follow how BraTS labels
gliomas: where something enhances, what is bright in FLAIR around it is oedema; where nothing does, most of that is
non-enhancing core.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from scipy import ndimage

from drunet_cli.brats import Modality, TumourClass
from tests.benchmarks.heads import ORDER, Head, Mask, Voxels

APART_MM: Final = 8  # from a tumour that is there to the middle of another
Box = tuple[slice, slice, slice]
Range = tuple[float, float]


class Kind(StrEnum):
    """Of a tumour."""

    RING = "ring"  # an enhancing rim around necrosis
    PATCHY = "patchy"  # enhancing all through
    SOLID = "solid"  # non-enhancing
    CYST = "cyst"  # fluid, sometimes with a rim
    OEDEMA = "oedema"  # a small core in much oedema


SHARES: Final = {Kind.RING: 0.3, Kind.PATCHY: 0.17, Kind.SOLID: 0.3, Kind.CYST: 0.08, Kind.OEDEMA: 0.15}
RADIUS_MM: Final[dict[Kind, Range]] = {
    Kind.RING: (9, 26),
    Kind.PATCHY: (10, 30),
    Kind.SOLID: (10, 32),
    Kind.CYST: (12, 30),
    Kind.OEDEMA: (4, 8),
}
OEDEMA_MM: Final[dict[Kind, Range]] = {  # how far it goes beyond the core
    Kind.RING: (4, 20),
    Kind.PATCHY: (1, 12),
    Kind.SOLID: (1.5, 8),
    Kind.CYST: (1, 6),
    Kind.OEDEMA: (12, 26),
}


@dataclass(frozen=True)
class Site:
    """A part of a head around the middle of a tumour. offsets: from there, along the axes, in voxels."""

    head: Head
    box: Box
    middle: tuple[int, int, int]
    offsets: list[Voxels]

    @property
    def brain(self) -> Mask:
        return self.head.brain[self.box]

    def image(self, modality: Modality) -> Voxels:
        return self.head.images[modality][self.box]


@dataclass(frozen=True)
class Tumour:
    """Shares of its tissues in a site, in the order in which they are laid over it, and the brain that is no fluid."""

    kind: Kind
    shares: dict[TumourClass, Voxels]
    tissue: Mask


def with_tumour(head: Head, rng: np.random.Generator) -> Head:
    """One more, where there is room; classes of the ones that are there stay."""
    kind = Kind(rng.choice([kind.value for kind in Kind], p=[SHARES[kind] for kind in Kind]))
    radius = {kind: float(rng.uniform(*bounds)) for kind, bounds in RADIUS_MM.items()}[kind]
    reach = {kind: float(rng.uniform(*bounds)) for kind, bounds in OEDEMA_MM.items()}[kind]
    site = draw_site(head, radius, reach, rng)
    if site is None:
        return head
    tumour = grown(site, kind, radius, reach, rng)
    classes = head.classes.copy()
    within = classes[site.box]
    for tumour_class, share in tumour.shares.items():
        if tumour_class is TumourClass.ED:
            within[(share > 0.45) & tumour.tissue & (within == TumourClass.BACKGROUND)] = tumour_class
        else:
            within[share > 0.5] = tumour_class
    return replace(head, images=laid_over(site, tumour, rng), classes=classes)


def draw_site(head: Head, radius: float, reach: float, rng: np.random.Generator) -> Site | None:
    """In the upper 70 % of the brain, inside it, away from other tumours; None if there is no such place."""
    free = head.brain & ~ndimage.binary_dilation(head.classes > 0, iterations=APART_MM)
    axial = np.flatnonzero(head.brain.any(axis=(0, 1)))
    places = np.argwhere(ndimage.distance_transform_edt(free) > min(6.0, radius / 2.5))
    places = places[places[:, 2] > axial[0] + 0.3 * (axial[-1] - axial[0])]
    if not len(places):
        return None
    i, j, k = (int(index) for index in places[rng.integers(len(places))])
    half = int(1.7 * radius + reach + 8)
    ranges = [slice(max(0, c - half), min(n, c + half + 1)) for c, n in zip((i, j, k), head.brain.shape, strict=True)]
    along = [np.arange(r.start, r.stop, dtype=np.float32) - np.float32(c) for r, c in zip(ranges, (i, j, k), strict=True)]
    return Site(head, (ranges[0], ranges[1], ranges[2]), (i, j, k), list(np.meshgrid(*along, indexing="ij")))


def grown(site: Site, kind: Kind, radius: float, reach: float, rng: np.random.Generator) -> Tumour:
    """Core, oedema and enhancing tumour as depths below ragged surfaces, which become shares."""
    away = from_middle(site, rng)
    coarse, fine, finest = (noise(rng, site.brain.shape, mm) for mm in (12, 6, 3))
    rough = float(rng.uniform(0.4, 1.3))
    core = radius - away + rough * (0.22 * radius * coarse + 0.10 * radius * fine + 0.5 * finest)
    depth = ndimage.distance_transform_edt(site.brain)
    core = np.minimum(core, depth - 1 if rng.random() < 0.6 else depth)
    if rng.random() < 0.75:  # of one hemisphere
        middle = site.head.middle
        side = np.sign(site.middle[0] - middle) * (np.arange(site.box[0].start, site.box[0].stop) - middle)
        core = np.minimum(core, side[:, None, None].astype(np.float32) + float(rng.uniform(-1, 5)) + 2 * fine + 1.5 * coarse)

    fluid = (site.image(Modality.T2) > 2.0) & (site.image(Modality.FLAIR) < -0.8)
    tissue = np.asarray(site.brain & (ndimage.gaussian_filter(fluid.astype(np.float32), 0.7) <= 0.5))
    # Oedema goes farther in white matter, which is darker in T2.
    t2 = ndimage.gaussian_filter(site.image(Modality.T2), 1)
    grey = np.clip((t2 - (np.median(t2[tissue]) if tissue.any() else 0)) / 0.5, 0, 1)
    fingers = 1 + 0.45 * np.clip(coarse, -2, 1.5) + 0.25 * fine
    oedema = core + reach * fingers - float(rng.uniform(0.2, 0.8)) * reach * grey + 0.4 * finest
    oedema = np.where(tissue, np.minimum(oedema, depth), -9)

    room = site.brain & ~ndimage.binary_dilation(site.head.classes[site.box] > 0, iterations=2)
    inside = ramp(core, float(rng.uniform(1, 4))) * room
    enhancing = ramp(core, 1.0) * room * enhancing_share(kind, core, (coarse, fine, finest), rng)
    around = ramp(oedema, float(rng.uniform(2, 8))) * (tissue & room)
    return Tumour(kind, {TumourClass.ED: around, TumourClass.NCR: inside, TumourClass.ET: enhancing}, tissue)


def from_middle(site: Site, rng: np.random.Generator) -> Voxels:
    """Distance in voxels of an ellipsoid's axes, drawn with their directions; their product is 1."""
    turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    axes = np.exp(rng.normal(0, 0.22, 3))
    axes /= np.prod(axes) ** (1 / 3)
    along = [sum(turned[a, b] * site.offsets[b] for b in range(3)) / axes[a] for a in range(3)]
    return np.asarray(np.sqrt(sum(offset**2 for offset in along)), dtype=np.float32)


def enhancing_share(kind: Kind, core: Voxels, of_noise: tuple[Voxels, Voxels, Voxels], rng: np.random.Generator) -> Voxels:
    """Of the core: a broken rim with nodules, patches, or nothing."""
    coarse, fine, finest = of_noise
    if kind is Kind.RING or (kind is Kind.CYST and rng.random() < 0.4):
        rim = float(rng.uniform(1.5, 6)) * (1 + 0.5 * fine + 0.3 * finest)
        shell = np.maximum(rim - core, 2.2 * (finest - float(rng.uniform(0.9, 1.8))))
        return np.asarray(ramp(shell, 1.2) * np.clip((fine - float(rng.uniform(-2.5, -0.5))) * 3, 0, 1))
    if kind is Kind.PATCHY:
        patches = 0.6 * coarse + 0.7 * fine + 0.5 * finest
        return np.asarray(np.clip((patches - float(rng.uniform(-0.8, 0.6))) * 3, 0, 1))
    if kind is Kind.OEDEMA:
        return np.asarray(np.clip((fine + 0.5 * finest - float(rng.uniform(-1, 0.3))) * 3, 0, 1))
    return np.zeros_like(core)


def draw_contrasts(kind: Kind, rng: np.random.Generator) -> dict[TumourClass, Voxels]:
    """Mean of each class in the images of ORDER, in SDs of healthy tissue; around what the ten cases have."""

    def about(mean: tuple[float, ...], sd: tuple[float, ...]) -> Voxels:
        return np.array(mean, np.float32) + np.array(sd, np.float32) * rng.standard_normal(4, dtype=np.float32)

    grade = float(rng.uniform(0.6, 1.5))
    oedema = about((-0.15, -0.2, 1.2 * grade, 2.2 * grade), (0.25, 0.25, 0.4, 0.4))
    if kind is Kind.CYST:  # in FLAIR dark as other fluid, or bright by its protein
        core = about((-1.6, -1.7, 4.5, float(rng.choice([-1.5, 0.5, 2.5]))), (0.5, 0.4, 1.2, 0.8))
    elif kind is Kind.SOLID:
        grade = float(rng.uniform(0.6, 1.7))
        core = about((-0.4, -0.5, 1.9 * grade, 2.5 * grade), (0.35, 0.35, 0.5, 0.6))
        core[3] = max(core[3], 1.0)
    else:
        core = about((-0.6, -0.7, 2.2, 2.0), (0.6, 0.5, 1.1, 1.2))
    enhancing = about((0.3, 0, 1.4, 2.0), (0.5, 0, 0.8, 0.9))
    enhancing[1] = rng.uniform(1.3, 4.5)
    core[1] = min(core[1], enhancing[1] - 1.3)
    oedema[1] = min(oedema[1], enhancing[1] - 1.2)
    return {TumourClass.ED: oedema, TumourClass.NCR: core, TumourClass.ET: enhancing}


def laid_over(site: Site, tumour: Tumour, rng: np.random.Generator) -> dict[Modality, Voxels]:
    """The head's images with the tumour: contrast, texture and grain of each class, and what shows through of the tissue."""
    contrasts = draw_contrasts(tumour.kind, rng)
    smooth = tumour.kind in (Kind.SOLID, Kind.CYST)
    shown = {
        TumourClass.ED: float(rng.uniform(0.15, 0.6)),
        TumourClass.NCR: float(rng.uniform(0, 0.5 if tumour.kind is Kind.SOLID else 0.2)),
        TumourClass.ET: float(rng.uniform(0, 0.3)),
    }
    shape = site.brain.shape
    common = [noise(rng, shape, float(rng.uniform(*mm))) for mm in ((4, 12), (2, 5))]
    images = {}
    for index, modality in enumerate(ORDER):
        image = site.image(modality).copy()
        own = noise(rng, shape, float(rng.uniform(3, 8)))
        grain = 0.08 * rng.standard_normal(shape, dtype=np.float32)
        for tumour_class, share in tumour.shares.items():
            heterogeneity = float(rng.uniform(0.1, 0.35 if smooth else 0.9))
            amplitude = {TumourClass.ED: 0.15, TumourClass.NCR: heterogeneity, TumourClass.ET: 0.45}[tumour_class]
            sign = int(rng.choice([-1, 1]))
            texture = amplitude * (sign * (0.6 * common[0] + 0.4 * common[1]) + 0.6 * own) + grain
            middle = np.median(image[tumour.tissue]) if tumour.tissue.any() else 0
            target = contrasts[tumour_class][index] + texture + shown[tumour_class] * np.clip(image - middle, -1.5, 1.5)
            image = (1 - share) * image + share * target
        images[modality] = site.head.images[modality].copy()
        images[modality][site.box] = image
    return images


def ramp(depth: Voxels, width_mm: float) -> Voxels:
    """Share of a tissue by depth below its surface, where it is one half."""
    return np.asarray(np.clip(depth / width_mm + 0.5, 0, 1), dtype=np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, ...], mm: float) -> Voxels:
    """Of mean 0 and SD 1, smooth over about so many voxels; drawn on a coarser grid."""
    step = max(1, int(mm / 2))
    drawn = rng.standard_normal([n // step + 4 for n in shape], dtype=np.float32)
    drawn = ndimage.gaussian_filter(drawn, mm / step / 2)
    if step > 1:
        drawn = ndimage.zoom(drawn, [(n + 2 * step) / m for n, m in zip(shape, drawn.shape, strict=True)], order=1)
    drawn = drawn[tuple(slice(n) for n in shape)]
    return np.asarray((drawn - drawn.mean()) / drawn.std())
