"""All slices of a case through an engine that remembers what it was given."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.network.engine import Precision
from drunet_cli.segmentation.predict import predict


class ThresholdEngine:
    """Class 2 where FLAIR is above 100; remembers the size of every batch."""

    device = device_name = "none"
    threads = 1
    precision = Precision.FLOAT32
    versions: Mapping[str, str] = {}

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []

    def classes(self, slices: npt.NDArray[np.uint8]) -> ClassMap:
        self.batches.append(len(slices))
        return np.where(slices[..., 0] > 100, 2, 0).astype(np.uint8)

    def probabilities(self, slices: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.eye(4, dtype=np.float32)[self.classes(slices)]


def _geometry(brain: npt.NDArray[np.bool_], spacing: float = 1.0) -> Geometry:
    return fit(brain, affine=np.diag([-spacing, -spacing, 1.0, 1.0]))


def _case(n_slices: int, with_brain: set[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    slices = np.zeros((n_slices, 240, 240, 4), dtype=np.uint8)
    for z in with_brain:
        slices[z, 50 : 60 + z, 80:120] = 200
    return slices, slices[..., 0].transpose(1, 2, 0) > 0


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_every_slice_gets_its_own_result_whatever_the_batch_size(batch_size: int) -> None:
    slices, brain = _case(9, {1, 2, 4, 5, 6, 7})
    classes = predict(slices, _geometry(brain), ThresholdEngine(batch_size))
    assert np.array_equal(classes == 2, brain)


def test_slices_without_brain_are_computed_once() -> None:
    slices, brain = _case(20, {8, 9, 10, 11})
    engine = ThresholdEngine(2)
    predict(slices, _geometry(brain), engine)
    assert engine.batches == [1, 2, 2]


def test_a_case_without_blank_slices_computes_none() -> None:
    slices, brain = _case(4, {0, 1, 2, 3})
    engine = ThresholdEngine(4)
    predict(slices, _geometry(brain), engine)
    assert engine.batches == [4]


def test_progress_counts_every_slice_and_ends_complete() -> None:
    slices, brain = _case(7, {1, 2, 3, 5})
    seen: list[tuple[int, int]] = []
    predict(slices, _geometry(brain), ThresholdEngine(2), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (5, 7), (7, 7)]
    assert all(before < after for (before, _), (after, _) in pairwise(seen))


def test_a_smaller_batch_size_after_lack_of_memory_is_used_from_then_on() -> None:
    class Shrinking(ThresholdEngine):
        def classes(self, slices: npt.NDArray[np.uint8]) -> ClassMap:
            self.batch_size = 1
            return super().classes(slices)

    slices, brain = _case(6, {0, 1, 2, 3, 4, 5})
    engine = Shrinking(3)
    assert np.array_equal(predict(slices, _geometry(brain), engine) == 2, brain)
    assert engine.batches == [3, 1, 1, 1]


def test_a_resampled_case_comes_back_on_its_own_grid() -> None:
    brain = np.zeros((480, 480, 3), dtype=bool)
    brain[200:280, 180:300, 1] = True
    geometry = _geometry(brain, spacing=0.5)
    slices = np.zeros((3, 240, 240, 4), dtype=np.uint8)
    slices[1, 100:140, 90:150] = 200
    classes = predict(slices, geometry, ThresholdEngine(2))
    assert classes.shape == brain.shape
    assert np.array_equal(classes == 2, brain)
