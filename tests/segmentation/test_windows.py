"""The window of a slice: where it may begin and end, and that it is the smallest."""

import numpy as np
import pytest

from drunet_cli.network.engine import WindowMode
from drunet_cli.segmentation.predict import Window, window_of, windows_by_shape


@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 100, 207, 208, 224, 225, 239])
def test_window_is_the_smallest_on_the_networks_grid_that_holds_the_brain(start: int) -> None:
    for stop in range(start + 1, 241):
        brain = np.zeros((240, 240), dtype=bool)
        brain[start:stop, 100:101] = True
        window = window_of(brain)
        assert window.x == max(x for x in range(0, 240, 32) if x <= start)
        assert window.x_stop == min(x for x in range(16, 241, 32) if x >= stop)
        assert (window.y, window.y_stop) == (96, 112)


def test_sides_of_windows_are_multiples_of_32_plus_16() -> None:
    for x in range(0, 240, 7):
        brain = np.zeros((240, 240), dtype=bool)
        brain[x : x + 9, 3:] = True
        assert [side % 32 for side in window_of(brain).shape] == [16, 16]


def test_groups_are_of_one_shape_largest_first_and_leave_blank_slices_out() -> None:
    slices = np.zeros((5, 240, 240, 4), dtype=np.uint8)
    slices[0, 130:170, 130:170] = 1
    slices[2, 10, 10, 3] = slices[2, 40, 40, 0] = 1
    slices[3, 10:230, 10:230, 1] = 1
    assert list(windows_by_shape(slices, WindowMode.AUTO).items()) == [
        ((240, 240), {3: Window()}),
        ((48, 48), {0: Window(128, 176, 128, 176), 2: Window(0, 48, 0, 48)}),
    ]


@pytest.mark.parametrize("index", [0, 2])
def test_whole_frames_are_one_group(index: int) -> None:
    slices = np.zeros((3, 240, 240, 4), dtype=np.uint8)
    slices[index, 1, 2, 3] = 1
    assert windows_by_shape(slices, WindowMode.FULL) == {(240, 240): {index: Window()}}
