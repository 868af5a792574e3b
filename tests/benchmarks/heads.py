"""Heads of real cases, taken apart so that other tumours can be put into them; for `compact_implants`."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import ClassMap, Modality
from drunet_cli.io.case import Case
from drunet_cli.io.volumes import class_map_of, read_labelled
from drunet_cli.phantom.scanner import Phantom

Mask = npt.NDArray[np.bool_]
Voxels = npt.NDArray[np.float32]

ORDER: Final = (Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR)  # of what is drawn
NEAR_MM: Final = 3  # around a tumour: no healthy tissue


@dataclass(frozen=True)
class Head:
    """images: in SDs of healthy tissue from its mean. brain: where all four have voxels. classes: of its tumours."""

    images: dict[Modality, Voxels]
    brain: Mask
    classes: ClassMap

    @property
    def middle(self) -> float:
        """Of the brain along the first axis, which runs from side to side."""
        sagittal = np.flatnonzero(self.brain.any(axis=(1, 2)))
        return float(sagittal[0] + sagittal[-1]) / 2

    @property
    def healthy(self) -> Mask:
        near = ndimage.binary_dilation(self.classes > 0, iterations=NEAR_MM)
        return np.asarray(self.brain & ~near)

    def mirrored(self) -> "Head":
        """About its middle, left for right; outside the grid nothing."""
        sources = int(2 * self.middle) - np.arange(len(self.brain))
        inside = (sources >= 0) & (sources < len(self.brain))

        def mirror(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            turned = np.zeros_like(array)
            turned[inside] = array[sources[inside]]
            return turned

        images = {modality: mirror(voxels) for modality, voxels in self.images.items()}
        return Head(images, mirror(self.brain), mirror(self.classes))


@dataclass(frozen=True)
class Scan:
    """The voxels of a case as they were read, and its Head."""

    voxels: dict[Modality, Voxels]
    affine: npt.NDArray[np.float64]
    head: Head

    def with_head(self, head: Head) -> Phantom:
        """A case of another head, in the intensities of this one."""
        tissue, images = self.head.healthy, {}
        for modality, voxels in self.voxels.items():
            mean, sd = voxels[tissue].mean(), voxels[tissue].std()
            values = np.rint(head.images[modality] * sd + mean).clip(1, np.iinfo(np.int16).max)
            images[modality] = np.where(voxels > 0, values, 0).astype(np.int16)
        brain = np.any([image > 0 for image in images.values()], axis=0)
        return Phantom(images, np.where(brain, head.classes, 0).astype(np.uint8), self.affine)


def read_scan(case: Case) -> Scan:
    labelled = read_labelled(case)
    if labelled.segmentation is None:
        raise SystemExit(f"{case.name}: has no segmentation")
    volumes = labelled.images.volumes
    voxels = {modality: volumes[modality].voxels.astype(np.float32) for modality in ORDER}
    classes, _ = class_map_of(labelled.segmentation.volume)
    head = Head(voxels, np.all([image > 0 for image in voxels.values()], axis=0), classes)
    tissue = head.healthy
    images = {modality: (image - image[tissue].mean()) / image[tissue].std() for modality, image in voxels.items()}
    return Scan(voxels, labelled.images.reference.affine, replace(head, images=images))


def covered(head: Head, *, reach_mm: float) -> Head:
    """The head with its tumour under the mirror image of the other hemisphere, which fades in over a distance.

    A tumour that reaches over the midline stays in part, with its classes.
    """
    mirrored, share = head.mirrored(), fading(head.classes > 0, reach_mm) * head.brain
    share = share * mirrored.brain
    images = {modality: share * mirrored.images[modality] + (1 - share) * image for modality, image in head.images.items()}
    return Head(images, head.brain, np.where(share > 0.5, mirrored.classes, head.classes))


def fading(mask: Mask, reach_mm: float) -> Voxels:
    """1 in a mask, smoothly down to 0 at this distance from it."""
    share = np.clip(1 - ndimage.distance_transform_edt(~mask) / reach_mm, 0, 1)
    return np.asarray(share**2 * (3 - 2 * share), dtype=np.float32)


def thick_slices(image: Voxels, brain: Mask, *, axis: int, thickness: int) -> Voxels:
    """The image as of slices so many voxels thick along an axis, with linear interpolation between their middles."""
    within = [
        ndimage.uniform_filter1d(array, thickness, axis=axis, mode="nearest")
        for array in (np.where(brain, image, 0), brain.astype(np.float32))
    ]
    means = np.moveaxis(within[0] / np.maximum(within[1], 1e-3), axis, 0)
    middles = np.arange(thickness // 2, len(means), thickness)
    places = np.interp(np.arange(len(means)), middles, np.arange(len(middles)))
    lower = np.floor(places).astype(int)
    upper = np.minimum(lower + 1, len(middles) - 1)
    share = (places - lower).astype(np.float32)[:, None, None]
    slices = means[middles]
    return np.moveaxis(slices[lower] * (1 - share) + slices[upper] * share, 0, axis)
