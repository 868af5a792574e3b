"""What may follow the network, on label maps made by hand."""

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import TumourClass
from drunet_cli.segmentation.predict import Postprocessing, postprocess

NCR, ED, ET = TumourClass.NCR, TumourClass.ED, TumourClass.ET
MICROLITRE = 0.001


def _map_of(**parts: tuple[slice, slice, slice]) -> npt.NDArray[np.uint8]:
    class_map = np.zeros((12, 10, 8), dtype=np.uint8)
    for name, where in parts.items():
        class_map[where] = TumourClass[name]
    return class_map


@pytest.fixture
def two_components() -> npt.NDArray[np.uint8]:
    """Eight voxels of oedema around a core, and, away from them, three of enhancing tumour."""
    class_map = _map_of(ED=np.s_[1:3, 1:3, 1:3], ET=np.s_[8:11, 5:6, 5:6])
    class_map[1, 1, 1] = NCR
    return class_map


def test_nothing_is_done_unasked(two_components: npt.NDArray[np.uint8]) -> None:
    done = postprocess(two_components, Postprocessing(), voxel_ml=MICROLITRE)
    assert np.array_equal(done.class_map, two_components)
    assert set(done.described().values()) == {0}


def test_components_below_the_volume_become_background(two_components: npt.NDArray[np.uint8]) -> None:
    before = two_components.copy()
    done = postprocess(two_components, Postprocessing(min_volume_ml=0.004), voxel_ml=MICROLITRE)
    assert np.array_equal(done.class_map, np.where(before == ET, 0, before))
    assert done.described() == {"components_removed": 1, "voxels_removed": 3, "voxels_enhancing_to_ncr": 0}
    assert np.array_equal(two_components, before)


@pytest.mark.parametrize(("min_volume_ml", "n_left"), [(0.003, 11), (0.0030001, 8), (0.008, 8), (0.0081, 0)])
def test_a_component_of_just_the_volume_stays(two_components: npt.NDArray[np.uint8], min_volume_ml: float, n_left: int) -> None:
    done = postprocess(two_components, Postprocessing(min_volume_ml=min_volume_ml), voxel_ml=MICROLITRE)
    assert np.count_nonzero(done.class_map) == n_left


def test_a_component_is_of_the_whole_tumour_and_not_of_a_class() -> None:
    class_map = _map_of(ED=np.s_[1:4, 1:4, 1:4])
    class_map[2, 2, 2] = ET  # one voxel, within 27
    done = postprocess(class_map, Postprocessing(min_volume_ml=0.020), voxel_ml=MICROLITRE)
    assert np.array_equal(done.class_map, class_map)
    assert done.components_removed == 0  # the background, none of which lies in the box of this tumour, is no component


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    class_map = np.zeros((6, 6, 6), dtype=np.uint8)
    class_map[1, 1, 1] = class_map[2, 2, 2] = class_map[3, 3, 3] = ED
    class_map[5, 5, 1] = ED
    done = postprocess(class_map, Postprocessing(min_volume_ml=0.003), voxel_ml=MICROLITRE)
    assert np.argwhere(done.class_map).tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize(("min_enhancing_ml", "becomes"), [(0.003, ET), (0.0031, NCR), (5.0, NCR)])
def test_less_enhancing_tumour_than_asked_for_becomes_necrosis(
    two_components: npt.NDArray[np.uint8], min_enhancing_ml: float, becomes: TumourClass
) -> None:
    done = postprocess(two_components, Postprocessing(min_enhancing_ml=min_enhancing_ml), voxel_ml=MICROLITRE)
    assert np.array_equal(done.class_map, np.where(two_components == ET, becomes, two_components))
    assert done.enhancing_to_ncr == (3 if becomes is NCR else 0)


def test_enhancing_tumour_is_counted_after_small_components_are_gone() -> None:
    class_map = _map_of(ED=np.s_[1:4, 1:4, 1:4], ET=np.s_[8:11, 5:6, 5:6])
    class_map[2, 2, 2] = ET
    both = Postprocessing(min_volume_ml=0.010, min_enhancing_ml=0.002)
    done = postprocess(class_map, both, voxel_ml=MICROLITRE)
    assert done.class_map[2, 2, 2] == NCR
    assert done.described() == {"components_removed": 1, "voxels_removed": 3, "voxels_enhancing_to_ncr": 1}


def test_volumes_are_millilitres_whatever_the_voxel() -> None:
    class_map = _map_of(ED=np.s_[1:3, 1:3, 1:3])
    halved = postprocess(class_map, Postprocessing(min_volume_ml=0.03), voxel_ml=0.004)  # 8 voxels of 4 microlitres
    assert np.count_nonzero(halved.class_map) == 8
    assert not postprocess(class_map, Postprocessing(min_volume_ml=0.033), voxel_ml=0.004).class_map.any()


def test_an_empty_map_stays_empty() -> None:
    done = postprocess(_map_of(), Postprocessing(min_volume_ml=1, min_enhancing_ml=1), voxel_ml=MICROLITRE)
    assert not done.class_map.any()
