"""The field's vocabulary: modalities, tumour classes, regions, and the label values that files hold.

The only place where class index 3 becomes label value 4, and back.
"""

from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

ClassMap = npt.NDArray[np.uint8]
LabelMap = npt.NDArray[np.uint8]


class Modality(StrEnum):
    """One of the four images of a case. Their order here is the network's channel order: it may not change."""

    FLAIR = "flair"
    T1CE = "t1ce"
    T1 = "t1"
    T2 = "t2"

    @property
    def display(self) -> str:
        """How the field writes it: FLAIR, T1ce, T1, T2."""
        return "T1ce" if self is Modality.T1CE else self.value.upper()


CHANNELS: Final = tuple(Modality)


class TumourClass(IntEnum):
    """Class index inside drunet and in the network's output."""

    BACKGROUND = 0
    NCR = 1  # necrotic and non-enhancing tumour core
    ED = 2  # peritumoural oedema
    ET = 3  # enhancing tumour


N_CLASSES: Final = len(TumourClass)
TUMOUR_CLASSES: Final = (TumourClass.NCR, TumourClass.ED, TumourClass.ET)

REGIONS: Final = {
    "WT": (TumourClass.NCR, TumourClass.ED, TumourClass.ET),
    "TC": (TumourClass.NCR, TumourClass.ET),
    "ET": (TumourClass.ET,),
}


class Labels(StrEnum):
    """Which label value a file gives enhancing tumour."""

    BRATS2020 = "brats2020"  # 4: BraTS 2012 to 2022
    BRATS2023 = "brats2023"  # 3: BraTS 2023 on


_LABEL_VALUES: Final = {
    Labels.BRATS2020: np.array([0, 1, 2, 4], dtype=np.uint8),
    Labels.BRATS2023: np.array([0, 1, 2, 3], dtype=np.uint8),
}


def label_values(class_map: ClassMap, labels: Labels) -> LabelMap:
    """Class indices 0-3, any shape, as the label values that files of this convention hold."""
    return _LABEL_VALUES[labels][class_map]


def label_value(tumour_class: TumourClass, labels: Labels) -> int:
    """The label value that files of this convention give one class."""
    return int(_LABEL_VALUES[labels][tumour_class])
