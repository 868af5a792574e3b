"""The constants that decide whether labels are right."""

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, N_CLASSES, REGIONS, Labels, Modality, TumourClass, label_value, label_values


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
