"""Synthetic cases: four images of a head as a scanner would make them, with the true label map."""

import gzip
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import CHANNELS, ClassMap, Labels, Modality, TumourClass, label_values
from drunet_cli.errors import MisuseError
from drunet_cli.io import atomic
from drunet_cli.io.case import Case, case_of
from drunet_cli.io.naming import SEGMENTATION, may_name_a_file
from drunet_cli.io.nifti import encode_map, new_header
from drunet_cli.phantom.anatomy import (
    BRATS_SHAPE,
    FloatArray,
    HeadGrid,
    Shape,
    SyntheticHead,
    draw_glioma,
    healthy_shares,
    places_before,
    squares,
    tumour_shares,
)

_SMALLEST: Final = 24  # voxels an axis, below which nothing looks like a brain
_GZIP_LEVEL: Final = 1  # voxel noise hardly compresses; level 6 takes four times as long for 5 %


@dataclass(frozen=True)
class Phantom:
    """A synthetic case. images: int16 [X, Y, Z], above 0 in the brain alone, which is one mask for all four.

    affine: 4 x 4, voxel axes L, P, S as in BraTS.
    """

    images: Mapping[Modality, npt.NDArray[np.int16]]
    class_map: ClassMap
    affine: npt.NDArray[np.float64]


def make_phantom(
    seed: int,
    *,
    shape: Shape = BRATS_SHAPE,
    spacing_mm: float = 1.0,
    tumour: bool = True,
    enhancing: bool | None = None,
) -> Phantom:
    """The case of this seed. The same head and tumour at every shape, only the noise is drawn anew.

    A volume smaller than BraTS' 240 x 240 x 155 mm holds the whole brain made smaller. Without a tumour the brain is that of
    the same seed, unequal only around where its tumour would be. enhancing: whether it has enhancing tumour; by default the
    seed decides (about three of four have). Its size may differ between the two: what does not enhance is larger.
    Equal arguments give equal arrays, but for rounding of numpy's functions on other processors, or another stream of its
    generator in a later release. Raises ValueError for a negative seed or a shape too small for a brain.
    """
    if min(shape) < _SMALLEST or spacing_mm <= 0:
        raise ValueError(f"shape {shape} at {spacing_mm} mm is too small for a brain")
    for_head, for_tumour, for_scan = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3))
    grid = HeadGrid.of(shape, spacing_mm)
    glioma = draw_glioma(for_tumour, enhancing)
    grid = grid.around(SyntheticHead.of(grid.coarser(), deepcopy(for_head)).brain)  # with or without a tumour the same voxels
    head = SyntheticHead.of(grid, for_head, places_before(glioma, grid) if tumour else None)
    shares = healthy_shares(head, for_head)
    class_map = np.zeros(shape, dtype=np.uint8)
    if tumour:
        added, classes = tumour_shares(glioma, head, shares, for_tumour)
        shares |= added
        class_map[grid.box] = grid.spread(np.where(head.brain, classes, TumourClass.BACKGROUND))
    images = {modality: np.zeros(shape, dtype=np.int16) for modality in CHANNELS}
    for modality, image in _scan(shares, head, for_scan):
        images[modality][grid.box] = image
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = (shape[1] - 1) * spacing_mm
    return Phantom(images, class_map, affine)


def write_phantom(
    phantom: Phantom, folder: Path, name: str, *, labels: Labels = Labels.BRATS2020, overwrite: bool = False
) -> Case:
    """Write `folder/name/name_flair.nii.gz` and so on, `name_seg.nii.gz` with the truth, named as BraTS 2021 names them.

    Nothing is written when one of the five exists and is not to be replaced. Raises OutputError, and MisuseError for a name
    that cannot be that of a file.
    """
    if not may_name_a_file(name):
        raise MisuseError(f"{name!r}: cannot be part of a file name; give the case another")
    check_phantom_writable(folder, name, overwrite=overwrite)
    paths = phantom_files(folder, name)
    header = new_header(phantom.class_map.shape, np.int16, phantom.affine)
    for modality, voxels in phantom.images.items():
        content = gzip.compress(encode_map(voxels, header, compress=False), _GZIP_LEVEL, mtime=0)
        atomic.publish(paths[modality], content, overwrite=overwrite)
    content = encode_map(label_values(phantom.class_map, labels), header, compress=True)
    atomic.publish(paths[SEGMENTATION], content, overwrite=overwrite)
    images = {modality: paths[modality] for modality in CHANNELS}
    return case_of(images, name=name, segmentation=paths[SEGMENTATION])


def check_phantom_writable(folder: Path, name: str, *, overwrite: bool) -> None:
    """Raise OutputError now for what would stop write_phantom later."""
    for path in phantom_files(folder, name).values():
        atomic.check_writable(path, overwrite=overwrite)


def phantom_files(folder: Path, name: str) -> dict[str, Path]:
    """The paths of a phantom's images and segmentation, by their roles."""
    return {role: folder / name / f"{name}_{role}.nii.gz" for role in (*CHANNELS, SEGMENTATION)}


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
# The spread of a tissue between cases, SD.
_SPREAD: Final = {"csf": 0.3, "ED": 0.2, "NCR": 0.45, "solid": 0.35, "ET": 0.4}
_USUAL_SPREAD: Final = 0.1
_BRIGHTEST: Final = 32767


def _scan(
    shares: Mapping[str, FloatArray], head: SyntheticHead, rng: np.random.Generator
) -> Iterator[tuple[Modality, npt.NDArray[np.int16]]]:
    """Each modality's image of the grid's box, [X, Y, Z], 0 outside the brain."""
    grid, brain = head.grid, head.brain
    contrasts = {
        tissue: (np.array(means) + rng.normal(0, _SPREAD.get(tissue, _USUAL_SPREAD), len(means))).astype(np.float32)
        for tissue, means in _TISSUES.items()
    }
    fibres = grid.noise(rng, 4.0)
    protocols = [_Protocol.draw(rng) for _ in CHANNELS]
    textures = [
        np.float32(protocol.fibres) * fibres + np.float32(0.17) * (grid.noise(rng, 3.0) + grid.noise(rng, 14.0))
        for protocol in protocols
    ]
    biases = [1 + np.float32(protocol.bias) * grid.noise(rng, 60.0) for protocol in protocols]
    for number, (modality, protocol) in enumerate(zip(CHANNELS, protocols, strict=True)):
        image = textures[number] + contrasts["white"][number]
        for tissue, share in shares.items():
            image += share * (contrasts[tissue][number] - image)
        image += np.float32(protocol.noise) * rng.standard_normal(image.size, dtype=np.float32)
        image = ndimage.gaussian_filter(grid.spread(image), np.array(protocol.blur) / grid.voxel, truncate=3.0)[grid.chosen]
        signal = (1 + np.float32(protocol.spread) * image) * biases[number]
        # Rician: the receiver's other channel holds noise alone.
        other = rng.standard_normal(image.size, dtype=np.float32) * np.float32(0.4 * protocol.noise * protocol.spread)
        voxels = np.clip(np.float32(protocol.level) * np.sqrt(squares(signal, other)), 1, _BRIGHTEST)
        yield modality, grid.spread(np.where(brain, voxels, 0).astype(np.int16))


@dataclass(frozen=True)
class _Protocol:
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
    def draw(cls, rng: np.random.Generator) -> "_Protocol":
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
