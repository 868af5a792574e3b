"""The constants that decide whether labels are right."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import (
    CHANNELS,
    N_CLASSES,
    REGIONS,
    Labels,
    Modality,
    ReadLabels,
    TumourClass,
    class_indices,
    label_value,
    label_values,
)
from drunet_cli.errors import CaseError

DTYPES: Final = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "g", ">i2", ">i4", ">f4", ">f8"]


def test_channels_are_in_the_order_that_the_network_was_trained_with() -> None:
    # drunet_cli/network/README.md, Images: any other order gives wrong labels without an error.
    assert CHANNELS == (Modality.FLAIR, Modality.T1CE, Modality.T1, Modality.T2)


def test_modalities_are_written_as_the_field_writes_them() -> None:
    assert [modality.display for modality in CHANNELS] == ["FLAIR", "T1ce", "T1", "T2"]


def test_class_indices_are_those_of_the_networks_output() -> None:
    # drunet_cli/network/README.md, Classes.
    assert list(TumourClass) == [0, 1, 2, 3]
    assert [tumour_class.name for tumour_class in TumourClass] == ["BACKGROUND", "NCR", "ED", "ET"]
    assert N_CLASSES == 4


@pytest.mark.parametrize(("labels", "values"), [(Labels.BRATS2020, [0, 1, 2, 4]), (Labels.BRATS2023, [0, 1, 2, 3])])
def test_label_values_are_those_of_the_convention(labels: Labels, values: list[int]) -> None:
    class_map = np.arange(4, dtype=np.uint8).reshape(2, 1, 2)
    label_map = label_values(class_map, labels)
    assert label_map.dtype == np.uint8
    assert label_map.shape == class_map.shape
    assert label_map.ravel().tolist() == values
    assert [label_value(tumour_class, labels) for tumour_class in TumourClass] == values


def test_regions_are_unions_of_classes() -> None:
    # drunet_cli/network/README.md, Classes: WT = 1+2+ET, TC = 1+ET, ET.
    assert {region: set(classes) for region, classes in REGIONS.items()} == {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}


# Label values as files hold them


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("labels", "values", "indices"),
    [
        (ReadLabels.AUTO, (0, 1, 2, 4), (0, 1, 2, 3)),
        (ReadLabels.AUTO, (0, 1, 2, 3), (0, 1, 2, 3)),
        (ReadLabels.BRATS2020, (0, 1, 2, 4), (0, 1, 2, 3)),
        (ReadLabels.BRATS2023, (0, 1, 2, 3), (0, 1, 2, 3)),
        (ReadLabels.BRATS2024, (0, 1, 2, 3, 4), (0, 1, 2, 3, 0)),  # 4: resection cavity
        (ReadLabels.BRATS2024, (0, 4), (0, 0)),
    ],
)
def test_label_values_of_every_type_mean_what_was_asked_for(
    labels: ReadLabels, values: tuple[int, ...], indices: tuple[int, ...], dtype: str
) -> None:
    found = class_indices(np.array(values, dtype=dtype), labels)
    assert (found.dtype.name, found.tolist()) == ("uint8", list(indices))


@pytest.mark.parametrize(("labels", "dtype"), [(Labels.BRATS2020, "f4"), (Labels.BRATS2023, "f8")])
def test_the_fractions_that_the_published_script_writes_count_as_the_labels_they_are_near(labels: Labels, dtype: str) -> None:
    classes = np.arange(4, dtype=np.uint8)
    # (float)(value * slope) where the script's file has a slope: off by a few 1e-5, as 1.000015 and 2.00003.
    voxels = (label_values(classes, labels) * 1.000015).astype(dtype)
    before = voxels.copy()
    for shifted in (voxels, voxels - np.dtype(dtype).type(2e-5)):
        np.testing.assert_array_equal(class_indices(shifted), classes)
    np.testing.assert_array_equal(voxels, before)


def test_memory_order_does_not_matter() -> None:
    classes = np.random.default_rng(0).integers(0, 4, (11, 7, 5)).astype(np.uint8)
    voxels = label_values(classes, Labels.BRATS2020)
    turned = np.ascontiguousarray(voxels.transpose(1, 2, 0)).transpose(2, 0, 1)
    backwards, strided = np.ascontiguousarray(voxels[::-1])[::-1], np.repeat(voxels, 2, 1)[:, ::2]
    for stored in (np.asfortranarray(voxels), turned, backwards, strided):
        np.testing.assert_array_equal(class_indices(stored), classes)


ALL_LABELS: Final = "; a BraTS label map has 0, 1, 2 and 4 (or 3)"
FRACTIONS: Final = "holds fractions or values that are not finite"
STRANGE: Final = {
    "u1": (5, 255),
    "u2": (65535,),
    "u4": (2**32 - 1,),
    "u8": (2**63 + 1, 2**64 - 1),
    "i1": (-1, -128),
    "i2": (-1, -256, 5, 256, 257),
    "i4": (-65535,),
    "i8": (-(2**63), 2**32 + 1),
    "f2": (6,),
    "f4": (-1, 256, 2.0**40),
    "f8": (-(2.0**40), 2.0**60),
}
UNEVEN: Final = (0.5, 1.0015, 2.998, -0.002, 4.002, np.nan, np.inf, -np.inf)
NO_LABELS: Final = {
    **{(dtype, value): f"holds label {int(value)}{ALL_LABELS}" for dtype, values in STRANGE.items() for value in values},
    **{(dtype, value): FRACTIONS for dtype in ("f4", "f8") for value in UNEVEN},
}


def refusal(voxels: npt.NDArray[Any], labels: ReadLabels = ReadLabels.AUTO) -> str:
    with pytest.raises(CaseError) as caught:
        class_indices(voxels, labels)
    return str(caught.value)


@pytest.mark.parametrize(("dtype", "value"), NO_LABELS)
def test_what_is_no_label_is_refused_and_named_in_every_convention(dtype: str, value: float) -> None:
    voxels = np.array([[0, 1], [2, value]], dtype=dtype)
    assert {refusal(voxels, labels).partition(", where")[0] for labels in ReadLabels} == {NO_LABELS[dtype, value]}


def test_of_many_strange_values_the_first_few_are_named_and_each_in_few_words() -> None:
    assert refusal(np.arange(1000, dtype=np.int16)) == f"holds label 5, 6, 7, 8, 9 and 990 more{ALL_LABELS}"
    assert len(refusal(np.array([0, 1, -1e308]))) < 200


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_a_label_of_another_convention_is_refused(dtype: str) -> None:
    both = np.array([0, 1, 2, 3, 4], dtype=dtype)
    assert refusal(both).startswith("holds labels 3 and 4; ")  # never both are enhancing tumour
    for labels, value in ((ReadLabels.BRATS2020, 3), (ReadLabels.BRATS2023, 4)):
        assert refusal(both, labels) == f"holds label {value}, which {labels} does not have"


def test_an_array_without_voxels_has_no_class() -> None:
    assert class_indices(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
