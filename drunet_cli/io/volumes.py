"""The four volumes of a case, and its segmentation, read and checked."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, ClassMap, Labels, Modality, ReadLabels, TumourClass, class_indices, label_value
from drunet_cli.errors import CaseError, name_file
from drunet_cli.io.case import Case
from drunet_cli.io.checks import (
    CaseWarning,
    brain_mask,
    case_warnings,
    check_grids,
    check_one_grid,
    check_volumes,
    grid_warnings,
)
from drunet_cli.io.geometry import FRAME, Geometry, at_1_mm, box_of, fit
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.intensities import SliceStack, mend_rounded_zero, network_slices, without_ringing
from drunet_cli.io.naming import SEGMENTATION
from drunet_cli.io.nifti import Volume, load_grid, load_volume, volume_of


@dataclass(frozen=True)
class CaseImages:
    """A case that has passed every check.

    volumes: in the network's channel order. brain: [I, J, K], where any of them is above 0.
    """

    case: Case
    volumes: Mapping[Modality, Volume]
    brain: npt.NDArray[np.bool_]
    geometry: Geometry
    warnings: tuple[CaseWarning, ...]

    @property
    def reference(self) -> Volume:
        """FLAIR, whose geometry a label map of the case gets."""
        return self.volumes[Modality.FLAIR]

    @property
    def inputs(self) -> dict[str, InputFile]:
        """The files by modality, as they were when they were read; empty where arrays were given."""
        return {modality: volume.source for modality, volume in self.volumes.items() if volume.source is not None}

    def slices(self) -> SliceStack:
        """[Z, 240, 240, 4], as the network takes them."""
        return network_slices(list(self.volumes.values()), self.geometry)


def read_images(case: Case) -> CaseImages:
    """Read the four volumes. Raises CaseError for whatever cannot be segmented."""
    with ThreadPoolExecutor(len(CHANNELS)) as threads:  # decompression runs outside the interpreter's lock
        loaded = threads.map(lambda modality: mend_rounded_zero(load_volume(case.images[modality])), CHANNELS)
        volumes = dict(zip(CHANNELS, loaded, strict=True))
    return _check_images(case, volumes)


def check_headers(case: Case) -> tuple[CaseWarning, ...]:
    """The warnings that the headers of a case tell. Raises CaseError as read_images would, for what these tell."""
    grids = {modality: load_grid(case.images[modality]) for modality in CHANNELS}
    check_grids(grids)
    return tuple(grid_warnings(grids))


def images_of(arrays: Mapping[Modality, npt.NDArray[Any]], affine: npt.ArrayLike, *, name: str) -> CaseImages:
    """The checked images of a case whose voxels are arrays [I, J, K] and come from no file.

    affine: 4 x 4, voxel indices to RAS millimetres, of all four images.
    """
    volumes = {modality: volume_of(arrays[modality], affine, name=f"{name}, array {modality}") for modality in CHANNELS}
    return _check_images(Case(name, {modality: volume.path for modality, volume in volumes.items()}), volumes)


def _check_images(case: Case, volumes: Mapping[Modality, Volume]) -> CaseImages:
    check_volumes(volumes)
    volumes = {modality: without_ringing(volume) for modality, volume in volumes.items()}
    brain = brain_mask(volumes)
    geometry = fit(brain, affine=volumes[Modality.FLAIR].affine)
    return CaseImages(case, volumes, brain, geometry, tuple(case_warnings(volumes, geometry)))


def class_map_of(volume: Volume, labels: ReadLabels = ReadLabels.AUTO) -> tuple[ClassMap, Labels | None]:
    """Class indices [I, J, K] of a label map, and its convention; None where it holds no enhancing tumour to tell it by.

    Raises CaseError when a value is no label of BraTS, or 3 and 4 both occur.
    """
    classes = np.zeros_like(volume.voxels, dtype=np.uint8)
    box = box_of(np.asarray(volume.voxels != 0))
    if box is None:
        return classes, None
    inner = volume.voxels[box]
    with name_file(volume.path):
        classes[box] = class_indices(inner, labels)
    if not (classes[box] == TumourClass.ET).any():
        return classes, None
    return classes, Labels.BRATS2023 if (
        np.rint(inner) == label_value(TumourClass.ET, Labels.BRATS2023)
    ).any() else Labels.BRATS2020


@dataclass(frozen=True)
class Segmentation:
    """A reference label map on the frames of its images.

    labels: its convention, None where that does not tell. frames: class indices [240, 240, Z].
    """

    volume: Volume
    labels: Labels | None
    frames: ClassMap


@dataclass(frozen=True)
class LabelledImages:
    """A case of 1 mm voxels that has passed every check; without a segmentation where it has none."""

    images: CaseImages
    segmentation: Segmentation | None

    @property
    def inputs(self) -> dict[str, InputFile]:
        """The files by modality, and "seg", as they were when they were read."""
        source = None if self.segmentation is None else self.segmentation.volume.source
        return self.images.inputs if source is None else {**self.images.inputs, SEGMENTATION: source}


def read_labelled(case: Case) -> LabelledImages:
    """Read a case's images, and its segmentation where it has one.

    Raises CaseError for whatever cannot be segmented, for voxels that are not 1 mm, and for a segmentation that is on another
    grid, holds what is no label of BraTS, or reaches outside the frame.
    """
    with ThreadPoolExecutor(1) as thread:
        loaded = None if case.segmentation is None else thread.submit(load_volume, case.segmentation)
        images = read_images(case)
        _check_spacing(images)
        if loaded is None:
            return LabelledImages(images, None)
        volume = loaded.result()
        warnings = check_one_grid(volume, images.reference, names=("segmentation", "FLAIR"))
        return LabelledImages(replace(images, warnings=(*images.warnings, *warnings)), _segmentation(volume, images))


def _check_spacing(images: CaseImages) -> None:
    spacing = images.reference.spacing_mm
    if not at_1_mm(spacing):
        raise CaseError(
            f"{images.reference.path}: voxels of {' x '.join(f'{size:g}' for size in spacing)} mm; slices for this network "
            "have 1 x 1 x 1 mm: resample the four images to it first, and the segmentation by nearest neighbour"
        )


def _segmentation(volume: Volume, images: CaseImages) -> Segmentation:
    class_map, labels = class_map_of(volume)
    turned = images.geometry.turned(class_map)
    frames = images.geometry.frames(turned)
    if n_lost := np.count_nonzero(turned) - np.count_nonzero(frames):
        raise CaseError(
            f"{volume.path}: {n_lost} labelled voxels lie outside the {FRAME} mm frame that is centred on the brain, and would "
            "be lost; crop the images to the brain first"
        )
    return Segmentation(volume, labels, frames)
