"""All slices of a case through an engine that remembers what it was given."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.network.engine import EngineName, Precision, WindowMode, ignore_progress
from drunet_cli.segmentation.predict import Plan, predict

BOTH_MODES = pytest.mark.parametrize("window", list(WindowMode))


class ThresholdEngine:
    """Class 2 where FLAIR is above 100; remembers the shapes it was given."""

    name = EngineName.TORCH
    device = device_name = "none"
    threads = batch_size = 1
    precision = Precision.FLOAT32
    versions: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        self.shapes.append(slices.shape[:3])
        for _ in slices:
            on_done(1)
        return np.where(slices[..., 0] > 100, 2, 0).astype(np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        return np.eye(4, dtype=np.float32)[self.classes(slices, on_done=on_done)]


class TumourEverywhere(ThresholdEngine):
    """Class 1 in every pixel, as a network may answer background."""

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.ones_like(super().classes(slices, on_done=on_done))


def _geometry(brain: npt.NDArray[np.bool_], spacing: float = 1.0) -> Geometry:
    return fit(brain, affine=np.diag([-spacing, -spacing, 1.0, 1.0]))


def _case(n_slices: int, with_brain: set[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    slices = np.zeros((n_slices, 240, 240, 4), dtype=np.uint8)
    for z in with_brain:
        slices[z, 50 : 60 + z, 80:120] = 200
    return slices, slices[..., 0].transpose(1, 2, 0) > 0


@BOTH_MODES
def test_every_slice_gets_its_own_result(window: WindowMode) -> None:
    slices, brain = _case(9, {1, 2, 4, 5, 6, 7})
    classes = predict(slices, _geometry(brain), [ThresholdEngine()], plan=Plan(window=window)).class_map
    assert np.array_equal(classes == 2, brain)


def test_of_full_frames_slices_without_brain_are_computed_once() -> None:
    slices, brain = _case(20, {8, 9, 10, 11})
    engine = ThresholdEngine()
    predict(slices, _geometry(brain), [engine], plan=Plan(window=WindowMode.FULL))
    assert engine.shapes == [(1, 240, 240), (4, 240, 240)]


def test_what_a_network_answers_to_a_blank_frame_is_the_answer_for_every_one() -> None:
    slices, brain = _case(20, {8, 9})
    assert predict(slices, _geometry(brain), [TumourEverywhere()], plan=Plan(window=WindowMode.FULL)).class_map.all()


def test_a_case_without_blank_slices_computes_none() -> None:
    slices, brain = _case(4, {0, 1, 2, 3})
    engine = ThresholdEngine()
    predict(slices, _geometry(brain), [engine], plan=Plan(window=WindowMode.FULL))
    assert engine.shapes == [(4, 240, 240)]


def test_slices_go_to_the_network_in_windows_of_one_shape_and_blank_ones_do_not() -> None:
    slices, brain = _case(9, {1, 2})
    slices[5:7, 100:110, 100:110] = 200
    engine = ThresholdEngine()
    predict(slices, _geometry(brain), [engine], plan=Plan(window=WindowMode.AUTO))
    # x 50 to 62 lies within 32 to 80, y 80 to 120 within 64 to 144, and 100 to 110 within 96 to 112.
    assert engine.shapes == [(2, 48, 80), (2, 16, 16)]


def test_outside_its_windows_a_case_is_background() -> None:
    slices, brain = _case(3, {1})
    classes = predict(slices, _geometry(brain), [TumourEverywhere()], plan=Plan(window=WindowMode.AUTO)).class_map
    expected = np.zeros((240, 240, 3), dtype=bool)
    expected[32:80, 64:144, 1] = True
    assert np.array_equal(classes == 1, expected)


def test_a_case_without_brain_is_background_without_the_network() -> None:
    slices, brain = _case(3, {1})
    engine = TumourEverywhere()
    assert not predict(np.zeros_like(slices), _geometry(brain), [engine], plan=Plan(window=WindowMode.AUTO)).class_map.any()
    assert engine.shapes == []


@BOTH_MODES
def test_progress_counts_every_slice_and_ends_complete(window: WindowMode) -> None:
    slices, brain = _case(7, {1, 2, 3, 5})
    seen: list[tuple[int, int]] = []
    predict(
        slices, _geometry(brain), [ThresholdEngine()], plan=Plan(window=window), on_progress=lambda *step: seen.append(step)
    )
    assert seen == [(3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]
    assert all(before < after for (before, _), (after, _) in pairwise(seen))


@BOTH_MODES
def test_a_resampled_case_comes_back_on_its_own_grid(window: WindowMode) -> None:
    n_slices = 20  # more than are kept as probabilities at once
    brain = np.zeros((480, 480, n_slices), dtype=bool)
    slices = np.zeros((n_slices, 240, 240, 4), dtype=np.uint8)
    for z in range(1, n_slices):
        brain[200:280, 180 : 260 + 2 * z, z] = True
        slices[z, 100:140, 90 : 130 + z] = 200
    classes = predict(slices, _geometry(brain, spacing=0.5), [ThresholdEngine()], plan=Plan(window=window)).class_map
    assert classes.shape == brain.shape
    assert np.array_equal(classes == 2, brain)
