"""Raw scans of a head, as scanners in hospitals make them, whose place in space is known.

A head is a phantom's brain, or that of a real case, with cerebrospinal fluid, skull and scalp around it. A scan of it is taken
after a rigid movement, with slices of any orientation and thickness, noise, a bias field, and a field of view that may be cut.
Positions are RAS mm. Equal arguments give equal scans.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.io.case import Case, case_of
from drunet_cli.io.geometry import box_of, spacing_mm
from drunet_cli.io.nifti import encode_map, new_header
from drunet_cli.phantom.anatomy import BRATS_SHAPE
from drunet_cli.phantom.scanner import make_phantom

Affine = npt.NDArray[np.float64]
# Outside a brain, from inwards: how thick each layer is, and its intensity, as a share of the brain's median on FLAIR, T1ce, T1
# and T2. Rough values, as clinical scans have them.
_LAYERS: Final[tuple[tuple[float, tuple[float, float, float, float]], ...]] = (
    (2.5, (0.35, 0.4, 0.35, 2.0)),  # fluid
    (5.5, (0.1, 0.15, 0.1, 0.15)),  # bone
    (6.0, (1.1, 1.6, 1.6, 1.0)),  # scalp, mostly fat
)
_SHELL_MM: Final = sum(thickness for thickness, _ in _LAYERS)
_TEXTURE_MM: Final = 6.0
_MARGIN_MM: Final = 6.0  # of air around the head in a field of view
_BRIGHTEST: Final = 2000  # what the brightest voxel becomes
_SMALLER: Final = 0.85  # length of a synthetic head by that of a phantom: a brain of 0.8 litres costs two thirds of the time


@dataclass(frozen=True)
class SimulatedHead:
    """images: float32 [I, J, K], 0 in air. brain: the voxels that a perfect skull stripping leaves. affine: to RAS mm."""

    images: Mapping[Modality, npt.NDArray[np.float32]]
    brain: npt.NDArray[np.bool_]
    class_map: npt.NDArray[np.uint8]
    affine: Affine

    @property
    def brain_mm(self) -> npt.NDArray[np.float64]:
        """Positions of some thousand voxels of the brain [N, 3]."""
        indices = np.argwhere(self.brain)
        return moved(self.affine, indices[:: max(1, len(indices) // 5000)])

    @property
    def centre_mm(self) -> npt.NDArray[np.float64]:
        """The middle of the brain."""
        return np.asarray(self.brain_mm.mean(axis=0))


@dataclass(frozen=True)
class Acquisition:
    """How a scan is taken.

    axcodes: where its voxel axes point; the third goes across the slices. spacing_mm: within a slice. noise: SD, as a share of
    the brain's median. bias: the coil's gain lies between 1 - bias and 1 + bias. cut: share of the slices that are missing
    at the end where the head's top or right or front is not.
    """

    axcodes: str = "LPS"
    spacing_mm: float = 1.0
    slice_mm: float = 1.0
    noise: float = 0.03
    bias: float = 0.15
    cut: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class SimulatedScan:
    """voxels: int16 [I, J, K]. affine: to the scanner's RAS mm. transform: takes positions in the head to the scanner's."""

    voxels: npt.NDArray[np.int16]
    affine: Affine
    transform: Affine


def head_of_phantom(seed: int = 0, *, spacing_mm: float = 3.0) -> SimulatedHead:
    """A synthetic head. At 3 mm it takes a second, and has as many voxels as tests can bear."""
    shape = tuple(round(n / spacing_mm) for n in BRATS_SHAPE)
    phantom = make_phantom(seed, shape=(shape[0], shape[1], shape[2]), spacing_mm=spacing_mm)
    return in_skull(phantom.images, phantom.class_map, phantom.affine @ np.diag([_SMALLER, _SMALLER, _SMALLER, 1.0]), seed)


def in_skull(
    images: Mapping[Modality, npt.NDArray[Any]], class_map: npt.NDArray[np.uint8], affine: Affine, seed: int
) -> SimulatedHead:
    """A brain whose surroundings are 0 [I, J, K] in a synthetic skull."""
    sizes = spacing_mm(affine)
    margin = [round((_SHELL_MM + 2 * size) / size) for size in sizes]
    padded = {modality: np.pad(voxels, [(n, n) for n in margin]) for modality, voxels in images.items()}
    brain = ndimage.binary_fill_holes(np.logical_or.reduce([voxels > 0 for voxels in padded.values()]))
    found = box_of(brain)
    assert found is not None, "there is a brain"
    box = tuple(slice(axis.start - n, axis.stop + n) for axis, n in zip(found, margin, strict=True))
    brain = brain[box]
    depth = ndimage.distance_transform_edt(~brain, sampling=sizes)
    rng = np.random.default_rng(seed)
    heads = {}
    for number, modality in enumerate(CHANNELS):
        voxels = padded[modality][box].astype(np.float32)
        texture = ndimage.gaussian_filter(rng.standard_normal(brain.shape, dtype=np.float32), _TEXTURE_MM / np.array(sizes))
        texture = 1 + 0.15 * texture / texture.std()  # of each modality its own: registration may not rest on it
        median, begin = float(np.median(voxels[brain])), 0.0
        for thickness, intensities in _LAYERS:
            layer = (depth > begin) & (depth <= begin + thickness)
            voxels[layer] = intensities[number] * median * texture[layer]
            begin += thickness
        heads[modality] = voxels
    placed = affine.copy()
    placed[:3, 3] += affine[:3, :3] @ np.array([axis.start - n for axis, n in zip(box, margin, strict=True)])
    return SimulatedHead(heads, brain, np.pad(class_map, [(n, n) for n in margin])[box], placed)


def scan_of(
    head: SimulatedHead, modality: Modality, acquisition: Acquisition | None = None, transform: Affine | None = None
) -> SimulatedScan:
    """One scan of a head that a rigid transform has moved."""
    how = acquisition or Acquisition()
    transform = np.eye(4) if transform is None else transform
    affine, shape = _grid(head, how, transform)
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(transform) @ affine
    n_planes = max(1, round(how.slice_mm / min(spacing_mm(head.affine))))  # of the head that a slice averages
    voxels = np.zeros(shape, dtype=np.float32)
    for plane in range(n_planes):
        offset = to_head[:3, :3] @ [0, 0, (plane + 0.5) / n_planes - 0.5] + to_head[:3, 3]
        voxels += ndimage.affine_transform(
            head.images[modality], to_head[:3, :3], offset, output_shape=shape, output=np.float32, order=1
        )
    voxels /= n_planes
    rng = np.random.default_rng(how.seed)
    level = float(np.median(head.images[modality][head.brain]))
    knots = rng.uniform(1 - how.bias, 1 + how.bias, (3, 3, 3))
    voxels *= ndimage.zoom(knots, [n / 3 for n in shape], order=1, mode="nearest", grid_mode=True)
    real, imaginary = (rng.standard_normal(shape, dtype=np.float32) * np.float32(how.noise * level) for _ in range(2))
    magnitude = np.hypot(voxels + real, imaginary)
    return SimulatedScan(np.rint(magnitude * (_BRIGHTEST / magnitude.max())).astype(np.int16), affine, transform)


def _grid(head: SimulatedHead, how: Acquisition, transform: Affine) -> tuple[Affine, tuple[int, int, int]]:
    """A grid along the scanner's axes around the moved head."""
    edge = np.argwhere(next(iter(head.images.values())) > 0)[::7]
    places = moved(transform @ head.affine, edge)
    affine, shape = np.eye(4), []
    for axis, code in enumerate(how.axcodes):
        along = np.zeros(3)
        along["RAS".find(code) if code in "RAS" else "LPI".find(code)] = 1 if code in "RAS" else -1
        size = how.slice_mm if axis == 2 else how.spacing_mm
        depths = places @ along
        first, last = depths.min() - _MARGIN_MM, depths.max() + _MARGIN_MM
        if axis == 2:
            cut = how.cut * (last - first)
            first, last = (first + cut, last) if code in "RAS" else (first, last - cut)
        affine[:3, axis] = along * size
        affine[:3, 3] += along * first
        shape.append(int(np.ceil((last - first) / size)) + 1)
    return affine, (shape[0], shape[1], shape[2])


def moved(affine: Affine, places: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Places [N, 3] after an affine transform."""
    return np.asarray(places @ affine[:3, :3].T + affine[:3, 3])


def movement(head: SimulatedHead, rng: np.random.Generator, *, degrees: float = 20, mm: float = 30) -> Affine:
    """A rigid transform about the middle of the brain: up to so many degrees about any axis, and so far in any direction."""
    direction, axis = (vector / np.linalg.norm(vector) for vector in rng.standard_normal((2, 3)))
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_rotvec(axis * np.radians(rng.uniform(0, degrees))).as_matrix()
    transform[:3, 3] = head.centre_mm + direction * rng.uniform(0, mm) - transform[:3, :3] @ head.centre_mm
    return transform


def error_mm(found: Affine, true: Affine, head: SimulatedHead, *, of: Affine) -> npt.NDArray[np.float64]:
    """How far a found transform places each position of the brain from where it belongs [N].

    found, true: from positions in one scan. of: takes positions in the head to positions in that scan.
    """
    places = moved(of, head.brain_mm)
    return np.asarray(np.linalg.norm(moved(found, places) - moved(true, places), axis=1))


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: Affine, *, code: int = 1) -> Path:
    """An image as a file, compressed as its suffix says. code: of sform and qform."""
    header = new_header(voxels.shape, voxels.dtype, affine)
    header["sform_code"] = header["qform_code"] = code
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_map(voxels, header, compress=path.suffix == ".gz"))
    return path


def write_raw_case(folder: Path, name: str, scans: Mapping[Modality, SimulatedScan]) -> Case:
    """The four scans as files `folder/name/name_t1.nii` and so on."""
    paths = {m: write_nifti(folder / name / f"{name}_{m}.nii", scans[m].voxels, scans[m].affine) for m in CHANNELS}
    return case_of(paths, name=name)
