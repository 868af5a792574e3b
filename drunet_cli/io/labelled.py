"""A case's images with its segmentation, both on the network's frames."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from drunet_cli.brats import ClassMap, Labels
from drunet_cli.errors import CaseError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME, at_1_mm
from drunet_cli.io.grids import grids_differ
from drunet_cli.io.images import CaseImages, read_images
from drunet_cli.io.labels import class_map_of
from drunet_cli.io.nifti import Volume, load_volume


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


def read_labelled(case: Case) -> LabelledImages:
    """Read a case's images, and its segmentation where it has one.

    Raises CaseError for whatever cannot be segmented, for voxels that are not 1 mm, and for a segmentation that is on another
    grid, holds what is no label of BraTS, or reaches outside the frame.
    """
    with ThreadPoolExecutor(1) as thread:
        loaded = None if case.segmentation is None else thread.submit(load_volume, case.segmentation)
        images = read_images(case)
        _check_spacing(images)
        return LabelledImages(images, None if loaded is None else _segmentation(loaded.result(), images))


def _check_spacing(images: CaseImages) -> None:
    spacing = images.reference.spacing_mm
    if not at_1_mm(spacing):
        raise CaseError(
            f"{images.reference.path}: voxels of {' x '.join(f'{size:g}' for size in spacing)} mm; slices for this network "
            "have 1 x 1 x 1 mm: resample the four images to it first, and the segmentation by nearest neighbour"
        )


def _segmentation(volume: Volume, images: CaseImages) -> Segmentation:
    if (error := grids_differ(volume, images.reference, names=("segmentation", "FLAIR"))) is not None:
        raise error
    class_map, labels = class_map_of(volume)
    turned = images.geometry.turned(class_map)
    frames = images.geometry.frames(turned)
    if n_lost := np.count_nonzero(turned) - np.count_nonzero(frames):
        raise CaseError(
            f"{volume.path}: {n_lost} labelled voxels lie outside the {FRAME} mm frame that is centred on the brain, and would "
            "be lost; crop the images to the brain first"
        )
    return Segmentation(volume, labels, frames)
