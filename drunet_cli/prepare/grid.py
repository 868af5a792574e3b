"""The BraTS grid, and the brain that others are laid on so that they lie there as those of BraTS do."""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import Affine, farthest_corner_mm, is_same_place
from drunet_cli.io.nifti import Grid, Header, Volume, load_volume, new_header
from drunet_cli.prepare.registration import Isotropic, isotropic, register

BRATS_SHAPE: Final = (240, 240, 155)
BRATS_AFFINE: Final[Affine] = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
BRATS_AFFINE.flags.writeable = False
NO_ATLAS: Final = "none"
OWN_ATLAS: Final = "drunet"
_TEMPLATE: Final = Path(__file__).with_name("template.nii.gz")


@dataclass(frozen=True)
class Atlas:
    """A brain that others are laid on.

    name: of the template, or the path of a file. sha256: of the file. to_grid: takes positions in the file to positions on the
    BraTS grid.
    """

    name: str
    sha256: str
    image: Isotropic
    to_grid: Affine

    def place(self, brain: Isotropic) -> Affine:
        """The transform that takes positions in a brain, whose background is 0, to positions on the BraTS grid."""
        return np.asarray(self.to_grid @ register(brain, self.image))


@cache
def load_atlas(name: str) -> Atlas:
    """The package's own template, or a skull-stripped image in a file. Raises CaseError for a file that cannot be one.

    A file on the BraTS grid is taken as it lies; the brain of any other is shifted to the middle of the template's.
    """
    own = load_volume(_TEMPLATE)
    template = isotropic(own.voxels, own.affine)
    if name == OWN_ATLAS:
        return Atlas(name, _sha256_of(own), template, np.eye(4))
    volume = load_volume(Path(name))
    if not volume.brain.any() or volume.brain.all():
        raise CaseError(f"{name}: no atlas: it has no background of 0 around a brain; give a skull-stripped image")
    image = isotropic(volume.voxels, volume.affine)
    shift = np.eye(4)
    if not is_brats_grid(volume):
        shift[:3, 3] = template.centre_mm - image.centre_mm
    return Atlas(name, _sha256_of(volume), image, shift)


def own_axes(affine: Affine, centre_mm: npt.NDArray[np.float64]) -> Affine:
    """The transform that lays a scan on the BraTS grid without an atlas: along the scan's own axes, its brain in the middle.

    affine: of the scan. centre_mm: the middle of its brain.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(axes)
    nearest = left @ right  # without shear
    # Each axis once, also where two are nearest to one. Not by scipy.optimize, whose import takes 0.3 s in every run.
    order = list(max(permutations(range(3)), key=lambda columns: np.abs(nearest[range(3), columns]).sum()))
    turned = nearest[:, order] * np.sign(nearest[range(3), order])
    template = load_atlas(OWN_ATLAS).image
    transform = np.eye(4)
    transform[:3, :3] = turned.T
    transform[:3, 3] = template.centre_mm - turned.T @ centre_mm
    return transform


def is_brats_grid(grid: Grid) -> bool:
    """Whether an image lies on the BraTS grid, voxel for voxel."""
    if grid.shape != BRATS_SHAPE:
        return False
    return is_same_place(farthest_corner_mm(grid.affine, BRATS_AFFINE, BRATS_SHAPE), BRATS_AFFINE)


def brats_header(dtype: npt.DTypeLike) -> Header:
    """The header of an image on the BraTS grid."""
    return new_header(BRATS_SHAPE, dtype, BRATS_AFFINE)


def as_stored(voxels: npt.NDArray[np.float32], source: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Interpolated voxels in the type that holds them without loss that matters: int16, as in BraTS, or float32.

    source: the voxels of the scan. Whole numbers of a scan that uses hundreds of them are rounded to whole numbers.
    """
    highest = float(source.max())
    whole = source.dtype.kind in "iu" or bool((source == np.rint(source)).all())
    if whole and _FEWEST_LEVELS <= highest <= np.iinfo(np.int16).max:
        return np.rint(voxels).astype(np.int16)
    return voxels


# Rounding then changes a voxel by less than a hundredth of the brain's range; no noise of an MRI is less.
_FEWEST_LEVELS: Final = 100


def _sha256_of(volume: Volume) -> str:
    assert volume.source is not None, "read from a file"
    return volume.source.sha256
