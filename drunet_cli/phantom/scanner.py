"""From shares of tissues to the four images: contrast, blur, noise and a bias field."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.phantom.grid import FloatArray
from drunet_cli.phantom.head import Head
from drunet_cli.phantom.shapes import squares

# Intensities of tissues, FLAIR, T1ce, T1, T2. Ten BraTS 2021 cases gave the medians in SDs of the brain from its mean: healthy
# tissues by clusters in T1ce, T1 and T2, eroded and away from the tumour, CSF in the middle of the ventricles. With the numbers
# here the contrasts measured so on phantoms come near; they are smaller because a phantom's brain varies less. Oedema and core
# are a little darker on T1 than they were, and enhancing tumour is brighter on T1ce.
_TISSUES: Final[Mapping[str, tuple[float, float, float, float]]] = {
    "white": (-0.20, 0.60, 0.75, -0.45),
    "grey": (0.10, -0.15, -0.15, -0.05),
    "deep": (0.05, 0.15, 0.25, -0.25),
    "pallidum": (-0.40, 0.45, 0.60, -0.70),
    "rim": (0.80, 0.35, 0.35, 0.00),  # around the ventricles, and white matter lesions of age
    "csf": (-2.50, -2.15, -1.95, 3.10),
    "vessel": (-0.90, 3.20, -0.60, -0.90),
    "dura": (-1.20, 0.40, -1.30, -1.90),  # and what else skull stripping leaves at the edge
    "ED": (1.45, 0.15, 0.25, 0.70),
    "NCR": (1.20, -0.55, -0.40, 1.75),
    "solid": (1.75, -0.25, -0.20, 1.40),  # core of a tumour that does not enhance
    "ET": (1.70, 2.30, 0.45, 1.15),
}
# How far a tissue of one case lies from that of another, SD.
_SPREAD: Final = {"csf": 0.3, "ED": 0.2, "NCR": 0.45, "solid": 0.35, "ET": 0.4}
_USUAL_SPREAD: Final = 0.1
_MOST: Final = 32767


def scanned(
    shares: Mapping[str, FloatArray], head: Head, rng: np.random.Generator
) -> Iterator[tuple[Modality, npt.NDArray[np.int16]]]:
    """Each modality's image of the grid's box, [X, Y, Z], 0 outside the brain."""
    grid, brain = head.grid, head.brain
    contrasts = {
        tissue: (np.array(means) + rng.normal(0, _SPREAD.get(tissue, _USUAL_SPREAD), len(means))).astype(np.float32)
        for tissue, means in _TISSUES.items()
    }
    fibres = grid.noise(rng, 4.0)
    scans = [_Scan.drawn(rng) for _ in CHANNELS]
    textures = [
        np.float32(scan.fibres) * fibres + np.float32(0.17) * (grid.noise(rng, 3.0) + grid.noise(rng, 14.0)) for scan in scans
    ]
    biases = [1 + np.float32(scan.bias) * grid.noise(rng, 60.0) for scan in scans]
    for number, (modality, scan) in enumerate(zip(CHANNELS, scans, strict=True)):
        image = textures[number] + contrasts["white"][number]
        for tissue, share in shares.items():
            image += share * (contrasts[tissue][number] - image)
        image += np.float32(scan.noise) * rng.standard_normal(image.size, dtype=np.float32)
        image = ndimage.gaussian_filter(grid.spread(image), np.array(scan.blur) / grid.voxel, truncate=3.0)[grid.chosen]
        signal = (1 + np.float32(scan.spread) * image) * biases[number]
        # Rician: the receiver's other channel holds noise alone.
        other = rng.standard_normal(image.size, dtype=np.float32) * np.float32(0.4 * scan.noise * scan.spread)
        voxels = np.clip(np.float32(scan.level) * np.sqrt(squares(signal, other)), 1, _MOST)
        yield modality, grid.spread(np.where(brain, voxels, 0).astype(np.int16))


@dataclass(frozen=True)
class _Scan:
    """How one modality was taken.

    level: intensity of the brain; spread: its SD as a share of that. noise, fibres: SD of the noise, and contrast of a texture
    that all modalities share, in SDs of the brain. blur: SD along each axis. bias: SD of the gain over the head.
    """

    level: float
    spread: float
    noise: float
    fibres: float
    blur: tuple[float, float, float]
    bias: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "_Scan":
        blur = np.full(3, rng.uniform(0.5, 0.75))
        thick, axis, width = rng.random() < 0.35, int(rng.integers(3)), rng.uniform(0.9, 1.6)
        if thick:  # slices of 3 to 5 mm, resampled
            blur[axis] = width
        return cls(
            level=float(rng.lognormal(math.log(600), 0.4)),
            spread=float(rng.uniform(0.2, 0.3)),
            noise=float(rng.uniform(0.15, 0.45)),
            fibres=float(rng.normal(0, 0.1)),
            blur=(float(blur[0]), float(blur[1]), float(blur[2])),
            bias=float(rng.uniform(0.02, 0.07)),
        )
