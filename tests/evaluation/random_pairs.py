"""Pairs of masks from a seed, which the reference packages and drunet both score: numpy only, no drunet."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

SPACINGS_MM: Final = ((1.0, 1.0, 1.0), (0.9375, 0.9375, 1.5), (1.0, 1.0, 5.0), (0.5, 1.25, 2.0), (3.0, 0.7, 0.7))
N_LARGE: Final = 20
N_SMALL: Final = 10


@dataclass(frozen=True)
class RandomPair:
    """prediction, reference: [I, J, K]; neither is empty."""

    name: str
    prediction: Mask
    reference: Mask
    spacing_mm: tuple[float, float, float]

    @property
    def checksum(self) -> str:
        """The SHA-256 of both masks: a change in numpy's generator would show here, and not as a wrong score."""
        return hashlib.sha256(np.packbits([self.prediction, self.reference]).tobytes()).hexdigest()[:16]


def random_pairs() -> Iterator[RandomPair]:
    """Large pairs of blobs with ragged outlines, some cut by the sides of the volume, and small pairs of scattered voxels."""
    for number in range(N_LARGE):
        rng = np.random.default_rng(number)
        shape = tuple(int(size) for size in rng.integers(30, 56, 3))
        common = _blobs(rng, shape, int(rng.integers(1, 6)), ((2, 11), (1, 5))[number % 2])
        reference = common | _blobs(rng, shape, number % 4, (1, 4))
        prediction = np.roll(common, tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2)) | _blobs(rng, shape, number % 3, (1, 6))
        prediction &= rng.random(shape) > 0.02
        prediction |= rng.random(shape) < (0, 0, 0.0005, 0.01)[number // 4 % 4]
        yield RandomPair(f"large-{number}", prediction, reference, SPACINGS_MM[number % len(SPACINGS_MM)])
    for number in range(N_SMALL):
        rng = np.random.default_rng(1000 + number)
        masks = rng.random((2, 5, 6, 7)) < (0.01, 0.05, 0.5)[number % 3]
        masks[:, 0, 0, 0] = rng.permutation([True, False])  # so that none is empty, and a corner of the volume is met
        masks[:, -1, 3, 2] = ~masks[:, 0, 0, 0]
        yield RandomPair(f"small-{number}", masks[0], masks[1], SPACINGS_MM[number % len(SPACINGS_MM)])


def _blobs(rng: np.random.Generator, shape: tuple[int, ...], n: int, radii: tuple[int, int]) -> Mask:
    """n ellipsoids anywhere in the volume, also across its sides."""
    mask = np.zeros(shape, dtype=np.bool_)
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    for _ in range(n):
        centre, radius = rng.integers(0, shape), rng.integers(*radii, 3)
        mask |= sum(((axis - at) / wide) ** 2 for axis, at, wide in zip(axes, centre, radius, strict=True)) <= 1
    return mask
