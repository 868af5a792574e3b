"""The field's vocabulary: modalities, tumour classes, regions, and the label values that files hold.

The only place where class index 3 becomes label value 4, and back. Every command imports this module, so numpy, which takes a
tenth of a second, is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from drunet_cli.errors import CaseError, join_some

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    ClassMap: TypeAlias = npt.NDArray[np.uint8]
    LabelMap: TypeAlias = npt.NDArray[np.uint8]
else:  # a class, which other modules may join with | in their signatures
    ClassMap = LabelMap = Any


Colour: TypeAlias = tuple[int, int, int]  # red, green and blue, 0 to 255


class Modality(StrEnum):
    """One of the four images of a case. Their order here is the network's channel order: it may not change."""

    FLAIR = "flair"
    T1CE = "t1ce"
    T1 = "t1"
    T2 = "t2"

    @property
    def display(self) -> str:
        """The name as the field writes it: FLAIR, T1ce, T1, T2."""
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
CLASS_NAMES: Final = {
    TumourClass.NCR: "necrotic core",
    TumourClass.ED: "oedema",
    TumourClass.ET: "enhancing tumour",
}
# Three of the eight colours of Okabe and Ito, that every kind of colour vision tells from each other and from grey;
# tests/segmentation/test_preview.py computes how well.
CLASS_COLOURS: Final[Mapping[TumourClass, Colour]] = {
    TumourClass.NCR: (0xD5, 0x5E, 0x00),
    TumourClass.ED: (0x56, 0xB4, 0xE9),
    TumourClass.ET: (0xF0, 0xE4, 0x42),
}
UNCERTAINTY_MAPS: Final = {"WT": "_unc_whole", "TC": "_unc_core", "ET": "_unc_enhance"}  # as BraTS 2020 names the files
REGION_NAMES: Final = {"WT": "whole tumour", "TC": "tumour core", "ET": CLASS_NAMES[TumourClass.ET]}


class Labels(StrEnum):
    """The conventions of the files that drunet writes, which differ in the label value of enhancing tumour."""

    BRATS2020 = "brats2020"  # 4: BraTS 2012 to 2022
    BRATS2023 = "brats2023"  # 3: BraTS 2023 on


class ReadLabels(StrEnum):
    """The conventions by which the label values of a file are read."""

    AUTO = "auto"  # brats2020 or brats2023, by whether 4 or 3 occurs
    BRATS2020 = "brats2020"  # 1 NCR, 2 ED, 4 ET
    BRATS2023 = "brats2023"  # 1 NCR, 2 ED, 3 ET
    BRATS2024 = "brats2024"  # after treatment: the same, and 4 resection cavity, which is no tumour


class Convention(StrEnum):
    """The definition of Dice and HD95. All other scores are the same in both."""

    BRATS = "brats"  # over the whole region, as until BraTS 2022
    LESIONWISE = "lesionwise"  # means over lesions, as BraTS 2023 ranked


_LABEL_VALUES: Final = {
    Labels.BRATS2020: (0, 1, 2, 4),
    Labels.BRATS2023: (0, 1, 2, 3),
}

_NO_LABEL: Final = 255
_CLASS_INDICES: Final = {  # by label value
    ReadLabels.AUTO: (0, 1, 2, 3, 3),
    ReadLabels.BRATS2020: (0, 1, 2, _NO_LABEL, 3),
    ReadLabels.BRATS2023: (0, 1, 2, 3, _NO_LABEL),
    ReadLabels.BRATS2024: (0, 1, 2, 3, 0),
}
_WHOLE: Final = 1e-3


def label_values(class_map: ClassMap, labels: Labels) -> LabelMap:
    """Class indices 0-3, any shape, as the label values that files of this convention hold."""
    import numpy as np

    return np.array(_LABEL_VALUES[labels], dtype=np.uint8)[class_map]


def class_indices(label_map: npt.NDArray[Any], labels: ReadLabels = ReadLabels.AUTO) -> ClassMap:
    """Label values of a file, any shape and type, as class indices 0-3; by default ET may be 3 or 4, but not both.

    Values that lie within 0.001 of a whole number count as that: the published png-to-nii script writes 1.000015 for 1.
    Raises CaseError, without a file name, that names the values which are no labels of BraTS.
    """
    import numpy as np

    if label_map.dtype.kind == "f":
        whole = np.rint(label_map)
        with np.errstate(invalid="ignore"):
            near = np.abs(label_map - whole) <= _WHOLE  # not where it is not finite
        if not near.all():
            raise CaseError("holds fractions or values that are not finite, where a label map has whole numbers")
        label_map = whole
    table = np.array(_CLASS_INDICES[labels], dtype=np.uint8)
    if label_map.size and (label_map.min() < 0 or label_map.max() >= len(table)):
        strange = [value for value in np.unique(label_map) if value not in range(len(table))]
        named = join_some([_in_words(value) for value in strange])
        raise CaseError(f"holds label {named}; a BraTS label map has 0, 1, 2 and 4 (or 3)")
    small = label_map.astype(np.uint8)
    present = np.bincount(small.ravel(), minlength=len(table)) > 0
    if labels is ReadLabels.AUTO and present[3] and present[4]:
        raise CaseError(
            "holds labels 3 and 4; enhancing tumour is 4 until BraTS 2022 and 3 from 2023 on, never both "
            "(in BraTS 2024 after treatment 4 is the resection cavity)"
        )
    if illegal := [value for value in np.flatnonzero(present) if table[value] == _NO_LABEL]:
        raise CaseError(f"holds label {illegal[0]}, which {labels} does not have")
    return table[small]


def _in_words(value: np.number[Any]) -> str:
    import numpy as np

    return str(value) if isinstance(value, np.integer) else f"{value:.20g}"


def label_value(tumour_class: TumourClass, labels: Labels) -> int:
    """The label value that files of this convention give one class."""
    return _LABEL_VALUES[labels][tumour_class]


def dice_of(common: int, of_one: int, of_other: int) -> float:
    """Dice from voxel counts: common to two masks, and of each mask; 1 where both are empty. The package's one definition."""
    return 2 * common / (of_one + of_other) if of_one + of_other else 1.0


def voxel_counts(class_map: ClassMap) -> dict[str, int]:
    """Voxels of every tumour class and region, by name; ET is both."""
    import numpy as np

    by_class = {index: int(np.count_nonzero(class_map == index)) for index in TUMOUR_CLASSES}  # bincount would copy to int64
    counts = {tumour_class.name: count for tumour_class, count in by_class.items()}
    return counts | {region: sum(by_class[index] for index in classes) for region, classes in REGIONS.items()}


def volumes_ml(counts: Mapping[str, int], millilitres_per_voxel: float) -> dict[str, float]:
    """The same in mL, as files have volumes."""
    return {name: round_ml(count * millilitres_per_voxel) for name, count in counts.items()}


def round_ml(volume_ml: float) -> float:
    """Round a volume to a cubic millimetre, as files have it; 0 has no sign."""
    return round(volume_ml, 3) + 0.0


def volume_in_words(volume_ml: float) -> str:
    """A volume for people, with its unit."""
    return f"{volume_digits(volume_ml)} mL"


def regions_in_words(region_volumes_ml: Mapping[str, float]) -> str:
    """The volumes of the three regions for people."""
    return ", ".join(f"{region} {volume_in_words(region_volumes_ml[region])}" for region in REGIONS)


def volume_digits(volume_ml: float) -> str:
    """A volume for people: to a tenth of a mL, and below 1 mL to a cubic millimetre."""
    rounded = round_ml(volume_ml)
    return f"{rounded:.3f}" if 0 < abs(rounded) < 1 else f"{rounded:z.1f}"


def describe_labels(labels: Labels) -> dict[str, Any]:
    """The convention of a file, and the label value of each class."""
    return {"convention": labels, "values": {index.name: label_value(index, labels) for index in TUMOUR_CLASSES}}
