"""What may follow the network: small components away, too little enhancing tumour to necrosis. Off unless asked for."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.geometry import box_of

_TOUCHING: Final = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours: by a face, an edge or a corner


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What to do, 0 for nothing.

    min_volume_ml: components of the whole tumour below it become background.
    min_enhancing_ml: enhancing tumour that is less in all becomes NCR, as in Isensee et al., nnU-Net for Brain Tumor
    Segmentation (BrainLes 2020, arXiv:2011.00848): of a case without any, a single false voxel makes BraTS' Dice 0.
    """

    min_volume_ml: float = 0.0
    min_enhancing_ml: float = 0.0


NO_POSTPROCESSING: Final = Postprocessing()


@dataclass(frozen=True)
class Postprocessed:
    """Class indices, any shape, and what was done to them: components and voxels removed, voxels turned from ET to NCR."""

    class_map: ClassMap
    components_removed: int = 0
    voxels_removed: int = 0
    enhancing_to_ncr: int = 0

    def described(self) -> dict[str, Any]:
        """For the sidecar."""
        return {
            "components_removed": self.components_removed,
            "voxels_removed": self.voxels_removed,
            "voxels_enhancing_to_ncr": self.enhancing_to_ncr,
        }


def postprocess(class_map: ClassMap, settings: Postprocessing, *, voxel_ml: float) -> Postprocessed:
    """Class indices [I, J, K] after what the settings ask for, components first. The map that was given stays as it is."""
    result = Postprocessed(class_map)
    if settings.min_volume_ml > 0:
        result = _without_small_components(class_map, settings.min_volume_ml / voxel_ml)
    if settings.min_enhancing_ml == 0:
        return result
    enhancing: npt.NDArray[np.bool_] = result.class_map == TumourClass.ET
    n_enhancing = int(np.count_nonzero(enhancing))
    if 0 < n_enhancing < _least(settings.min_enhancing_ml / voxel_ml):
        turned = np.where(enhancing, np.uint8(TumourClass.NCR), result.class_map)
        result = Postprocessed(turned, result.components_removed, result.voxels_removed, n_enhancing)
    return result


def _without_small_components(class_map: ClassMap, least_voxels: float) -> Postprocessed:
    box = box_of(class_map != TumourClass.BACKGROUND)
    if box is None:
        return Postprocessed(class_map)
    components, n_components = ndimage.label(class_map[box], structure=_TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=n_components + 1)
    small = sizes < _least(least_voxels)
    small[0] = False
    if not small.any():
        return Postprocessed(class_map)
    kept = class_map.copy()
    kept[box][small[components]] = TumourClass.BACKGROUND
    return Postprocessed(kept, int(np.count_nonzero(small)), int(sizes[small].sum()))


def _least(voxels: float) -> float:
    """A volume that amounts to a whole number of voxels but for rounding is that number."""
    return round(voxels) if abs(voxels - round(voxels)) < 1e-6 * max(1.0, voxels) else voxels
