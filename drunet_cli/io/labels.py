"""Label maps as files hold them, to class indices."""

import numpy as np

from drunet_cli.brats import ClassMap, Labels, ReadLabels, TumourClass, class_indices, label_value
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import box_of
from drunet_cli.io.nifti import Volume


def class_map_of(volume: Volume, labels: ReadLabels = ReadLabels.AUTO) -> tuple[ClassMap, Labels | None]:
    """Class indices [I, J, K] of a label map, and its convention; None where it holds no enhancing tumour to tell it by.

    Raises CaseError when a value is no label of BraTS, or 3 and 4 both occur.
    """
    classes = np.zeros_like(volume.voxels, dtype=np.uint8)
    box = box_of(np.asarray(volume.voxels != 0))
    if box is None:
        return classes, None
    inner = volume.voxels[box]
    try:
        classes[box] = class_indices(inner, labels)
    except CaseError as error:
        raise CaseError(f"{volume.path}: {error}") from error
    if not (classes[box] == TumourClass.ET).any():
        return classes, None
    return classes, Labels.BRATS2023 if (
        np.rint(inner) == label_value(TumourClass.ET, Labels.BRATS2023)
    ).any() else Labels.BRATS2020
