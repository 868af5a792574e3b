"""The four volumes of a case, read and checked."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, brain_mask, case_warnings, check_volumes, grid_warnings
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.io.grids import check_grids
from drunet_cli.io.nifti import Volume, load_grid, load_volume, volume_of
from drunet_cli.io.slices import SliceStack, network_slices


@dataclass(frozen=True)
class CaseImages:
    """A case that has passed every check. volumes: in the network's channel order."""

    case: Case
    volumes: Mapping[Modality, Volume]
    geometry: Geometry
    warnings: tuple[CaseWarning, ...]

    @property
    def reference(self) -> Volume:
        """FLAIR, whose geometry a label map of the case gets."""
        return self.volumes[Modality.FLAIR]

    def slices(self) -> SliceStack:
        """[Z, 240, 240, 4], as the network takes them."""
        return network_slices(list(self.volumes.values()), self.geometry)


def read_images(case: Case) -> CaseImages:
    """Read the four volumes. Raises CaseError for whatever cannot be segmented."""
    with ThreadPoolExecutor(len(CHANNELS)) as threads:  # decompression runs outside the interpreter's lock
        volumes = dict(zip(CHANNELS, threads.map(lambda modality: load_volume(case.images[modality]), CHANNELS), strict=True))
    return _checked(case, volumes)


def check_headers(case: Case) -> tuple[CaseWarning, ...]:
    """The warnings that the headers of a case tell. Raises CaseError as read_images would, for what these tell."""
    grids = {modality: load_grid(case.images[modality]) for modality in CHANNELS}
    check_grids(grids)
    return tuple(grid_warnings(grids))


def images_of(arrays: Mapping[Modality, npt.NDArray[Any]], affine: npt.ArrayLike, *, name: str) -> CaseImages:
    """The same of arrays [I, J, K] that come from no file. affine: 4 x 4, voxel indices to RAS millimetres, of all four."""
    volumes = {modality: volume_of(arrays[modality], affine, name=f"{name}, array {modality}") for modality in CHANNELS}
    return _checked(Case(name, {modality: volume.path for modality, volume in volumes.items()}), volumes)


def _checked(case: Case, volumes: Mapping[Modality, Volume]) -> CaseImages:
    check_volumes(volumes)
    geometry = fit(brain_mask(volumes), affine=volumes[Modality.FLAIR].affine)
    return CaseImages(case, volumes, geometry, tuple(case_warnings(volumes, geometry)))
