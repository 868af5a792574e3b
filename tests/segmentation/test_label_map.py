"""The label map after the network: what cleaning up changes, and which label maps cannot be right."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.checks import WarningCode
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.segmentation.label_map import CleanedMap, clean_up, label_map_warnings, measure
from drunet_cli.weights.checkpoint import Postprocessing

NCR, ED, ET = TumourClass.NCR, TumourClass.ED, TumourClass.ET
MICROLITRE: Final = 0.001


def _map_of(**parts: tuple[slice, slice, slice]) -> npt.NDArray[np.uint8]:
    class_map = np.zeros((12, 10, 8), dtype=np.uint8)
    for name, where in parts.items():
        class_map[where] = TumourClass[name]
    return class_map


def _cleaned(
    class_map: ClassMap, *, brain: npt.NDArray[np.bool_] | None = None, voxel_ml: float = MICROLITRE, **volumes_ml: Any
) -> CleanedMap:
    return clean_up(class_map, Postprocessing(**volumes_ml), brain=brain, voxel_ml=voxel_ml)


@pytest.fixture
def two_components() -> npt.NDArray[np.uint8]:
    """Eight voxels of oedema around a core, and, away from them, three of enhancing tumour."""
    class_map = _map_of(ED=np.s_[1:3, 1:3, 1:3], ET=np.s_[8:11, 5:6, 5:6])
    class_map[1, 1, 1] = NCR
    return class_map


def test_components_below_the_volume_become_background(two_components: npt.NDArray[np.uint8]) -> None:
    before = two_components.copy()
    done = _cleaned(two_components, min_volume_ml=0.004)
    assert np.array_equal(done.class_map, np.where(before == ET, 0, before))
    assert done.changes == {
        "voxels_outside_brain_removed": 0,
        "components_removed": 1,
        "voxels_removed": 3,
        "voxels_core_to_oedema": 0,
        "voxels_enhancing_to_ncr": 0,
    }
    assert np.array_equal(two_components, before)


@pytest.mark.parametrize(("min_volume_ml", "n_left"), [(0.003, 11), (0.0030001, 8), (0.008, 8), (0.0081, 0)])
def test_a_component_of_just_the_volume_stays(two_components: npt.NDArray[np.uint8], min_volume_ml: float, n_left: int) -> None:
    done = _cleaned(two_components, min_volume_ml=min_volume_ml)
    assert np.count_nonzero(done.class_map) == n_left


def test_a_component_is_of_the_whole_tumour_and_not_of_a_class() -> None:
    class_map = _map_of(ED=np.s_[1:4, 1:4, 1:4])
    class_map[2, 2, 2] = ET  # one voxel, within 27
    done = _cleaned(class_map, min_volume_ml=0.020)
    assert np.array_equal(done.class_map, class_map)
    assert done.changes["components_removed"] == 0  # the background, none of which lies in this tumour's box, is none


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    class_map = np.zeros((6, 6, 6), dtype=np.uint8)
    class_map[1, 1, 1] = class_map[2, 2, 2] = class_map[3, 3, 3] = ED
    class_map[5, 5, 1] = ED
    done = _cleaned(class_map, min_volume_ml=0.003)
    assert np.argwhere(done.class_map).tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize(("min_enhancing_ml", "becomes"), [(0.003, ET), (0.0031, NCR), (5.0, NCR)])
def test_less_enhancing_tumour_than_asked_for_becomes_necrosis(
    two_components: npt.NDArray[np.uint8], min_enhancing_ml: float, becomes: TumourClass
) -> None:
    done = _cleaned(two_components, min_enhancing_ml=min_enhancing_ml)
    assert np.array_equal(done.class_map, np.where(two_components == ET, becomes, two_components))
    assert done.changes["voxels_enhancing_to_ncr"] == (3 if becomes is NCR else 0)


def test_enhancing_tumour_is_counted_after_small_components_are_gone() -> None:
    class_map = _map_of(ED=np.s_[1:4, 1:4, 1:4], ET=np.s_[8:11, 5:6, 5:6])
    class_map[2, 2, 2] = ET
    done = _cleaned(class_map, min_volume_ml=0.010, min_enhancing_ml=0.002)
    assert done.class_map[2, 2, 2] == NCR
    names = ("components_removed", "voxels_removed", "voxels_enhancing_to_ncr")
    assert [done.changes[name] for name in names] == [1, 3, 1]


@pytest.mark.parametrize(
    ("min_volume_ml", "core", "speck", "spot", "changed"),
    [
        ((0, 0, 0), NCR, NCR, ET, (0, 0)),
        ((0, 0.003, 0), NCR, ED, ET, (2, 0)),
        ((0, 0, 0.002), NCR, NCR, NCR, (0, 1)),
        ((0, 0.003, 0.002), NCR, ED, NCR, (2, 1)),
        ((0, 0.009, 0.002), ED, ED, ED, (10, 0)),  # with the core its enhancing tumour is gone, before that is looked at
    ],
)
def test_small_parts_of_core_and_of_enhancing_tumour_become_what_surrounds_them(
    min_volume_ml: tuple[float, float, float], core: int, speck: int, spot: int, changed: tuple[int, int]
) -> None:
    class_map = _map_of(ED=np.s_[1:10, 1:8, 1:7], NCR=np.s_[2:4, 2:4, 2:4])  # a core of 8 voxels, one of which enhances
    class_map[2, 2, 2] = ET
    class_map[7, 5, 4:6] = NCR
    done = _cleaned(class_map, min_volume_ml=min_volume_ml)
    expected = class_map.copy()
    expected[2:4, 2:4, 2:4], expected[7, 5, 4:6], expected[2, 2, 2] = core, speck, spot
    assert np.array_equal(done.class_map, expected)
    assert (done.changes["voxels_core_to_oedema"], done.changes["voxels_enhancing_to_ncr"]) == changed


def test_volumes_are_millilitres_whatever_the_voxel() -> None:
    class_map = _map_of(ED=np.s_[1:3, 1:3, 1:3])
    halved = _cleaned(class_map, min_volume_ml=0.03, voxel_ml=0.004)  # 8 voxels of 4 microlitres
    assert np.count_nonzero(halved.class_map) == 8
    assert not _cleaned(class_map, min_volume_ml=0.033, voxel_ml=0.004).class_map.any()


def test_labels_outside_the_brain_go_before_components_are_measured(two_components: npt.NDArray[np.uint8]) -> None:
    before = two_components.copy()
    brain = np.ones(before.shape, dtype=np.bool_)
    brain[2] = brain[8] = False  # half of the oedema, and one of three voxels of enhancing tumour
    done = _cleaned(two_components, brain=brain)
    assert np.array_equal(done.class_map, np.where(brain, before, 0))
    assert done.changes["voxels_outside_brain_removed"] == 5
    assert np.array_equal(two_components, before)
    assert np.count_nonzero(_cleaned(two_components, brain=brain, min_volume_ml=0.003).class_map) == 4


# Label maps that cannot be right. A voxel is a cubic millimetre.

SHAPE: Final = (60, 60, 30)
BRAIN: Final = np.s_[5:55, 5:55, 2:28]  # 65,000 voxels
TUMOUR: Final = np.s_[20:30, 20:30, 10:20]  # 1,000 voxels


def _brain(where: tuple[slice, slice, slice] = BRAIN) -> npt.NDArray[np.bool_]:
    brain = np.zeros(SHAPE, dtype=np.bool_)
    brain[where] = True
    return brain


def _codes(class_map: ClassMap, brain: npt.NDArray[np.bool_] | None = None, geometry: Geometry | None = None) -> list[str]:
    brain = _brain() if brain is None else brain
    geometry = geometry or fit(brain, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    return [warning.code for warning in label_map_warnings(measure(class_map, brain, geometry, voxel_ml=MICROLITRE))]


def _specks(n: int) -> ClassMap:
    class_map = np.zeros(SHAPE, dtype=np.uint8)
    places = np.argwhere(np.ones((24, 24)))[:n] * 2 + 6
    class_map[places[:, 0], places[:, 1], 10] = ED
    return class_map


def _box(*where: tuple[slice, slice, slice]) -> ClassMap:
    class_map = np.zeros(SHAPE, dtype=np.uint8)
    for each in where:
        class_map[each] = ED
    return class_map


# Each limit of label_map.py from both sides.
@pytest.mark.parametrize(
    ("class_map", "code"),
    [
        (_box(TUMOUR), None),
        (_box(), WarningCode.EMPTY_RESULT),
        (_box(TUMOUR, np.s_[55:56, 10:35, 5:25]), None),  # 500 voxels outside the brain
        (_box(TUMOUR, np.s_[55:56, 10:35, 5:25], np.s_[55:56, 35:36, 5:6]), WarningCode.LABELS_OUTSIDE_BRAIN),
        (_box(np.s_[5:55, 5:55, 10:18]), None),  # 8 / 26 of the brain
        (_box(np.s_[5:55, 5:55, 10:19]), WarningCode.LARGE_TUMOUR),
        (_box(TUMOUR, np.s_[20:30, 20:21, 0:1]), None),  # 10 mm2 of the lowest slice
        (_box(TUMOUR, np.s_[20:31, 20:21, 0:1]), WarningCode.TUMOUR_AT_EDGE),
        (_box(TUMOUR, np.s_[20:31, 20:21, 29:30]), WarningCode.TUMOUR_AT_EDGE),
        (_box(TUMOUR, np.s_[0:1, 20:31, 10:11]), WarningCode.TUMOUR_AT_EDGE),
        (_box(TUMOUR, np.s_[20:31, 59:60, 10:11]), WarningCode.TUMOUR_AT_EDGE),
        (_specks(100), None),
        (_specks(101), WarningCode.MANY_SMALL_PARTS),
    ],
)
def test_a_label_map_that_cannot_be_right_is_reported(class_map: ClassMap, code: WarningCode | None) -> None:
    assert _codes(class_map) == ([] if code is None else [code])


def test_tumour_at_the_edge_of_the_frame_is_reported_though_the_volume_goes_on() -> None:
    brain = np.zeros((300, 60, 30), dtype=np.bool_)
    brain[10:290, 5:55, 2:28] = True
    geometry = fit(brain, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    for first, expected in ((30, [WarningCode.TUMOUR_AT_EDGE]), (31, [])):  # the frame shows voxels 30 to 269
        class_map = np.zeros(brain.shape, dtype=np.uint8)
        class_map[first : first + 10, 20:30, 10:20] = ED
        assert _codes(class_map, brain, geometry) == expected
