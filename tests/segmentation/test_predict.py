"""All slices of a case through engines that remember what they were given: windows, passes, maps, and the clean-up after."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.network.engine import WindowMode, ignore_progress
from drunet_cli.segmentation.predict import (
    Window,
    entropy,
    predict,
    region_uncertainty,
    window_of,
    windows_by_shape,
)
from drunet_cli.segmentation.settings import Settings
from tests.segmentation.bright_engine import BrightEngine

BOTH_MODES = pytest.mark.parametrize("window", list(WindowMode))


class ThresholdEngine(BrightEngine):
    """Class 2 where FLAIR is above 100; remembers the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        self.shapes.append(slices.shape[:3])
        for _ in slices:
            on_progress(1)
        return np.where(slices[..., 0] > 100, 2, 0).astype(np.uint8)


class TumourEverywhere(ThresholdEngine):
    """Class 1 in every pixel, as a network may answer background."""

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.ones_like(super().classes(slices, on_progress=on_progress))


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
    classes = predict(slices, _geometry(brain), [ThresholdEngine()], window=window).class_map
    assert np.array_equal(classes == 2, brain)


def test_of_full_frames_slices_without_brain_are_computed_once() -> None:
    slices, brain = _case(20, {8, 9, 10, 11})
    engine = ThresholdEngine()
    predict(slices, _geometry(brain), [engine], window=WindowMode.FULL)
    assert engine.shapes == [(1, 240, 240), (4, 240, 240)]


def test_what_a_network_answers_to_a_blank_frame_is_the_answer_for_every_one() -> None:
    slices, brain = _case(20, {8, 9})
    assert predict(slices, _geometry(brain), [TumourEverywhere()], window=WindowMode.FULL).class_map.all()


def test_slices_go_to_the_network_in_windows_of_one_shape_and_blank_ones_do_not() -> None:
    slices, brain = _case(9, {1, 2})
    slices[5:7, 100:110, 100:110] = 200
    engine = ThresholdEngine()
    predict(slices, _geometry(brain), [engine], window=WindowMode.AUTO)
    # x 50 to 62 lies within 32 to 80, y 80 to 120 within 64 to 144, and 100 to 110 within 96 to 112.
    assert engine.shapes == [(2, 48, 80), (2, 16, 16)]


def test_outside_its_windows_a_case_is_background() -> None:
    slices, brain = _case(3, {1})
    classes = predict(slices, _geometry(brain), [TumourEverywhere()], window=WindowMode.AUTO).class_map
    expected = np.zeros((240, 240, 3), dtype=bool)
    expected[32:80, 64:144, 1] = True
    assert np.array_equal(classes == 1, expected)


def test_a_case_without_brain_is_background_without_the_network() -> None:
    slices, brain = _case(3, {1})
    engine = TumourEverywhere()
    assert not predict(np.zeros_like(slices), _geometry(brain), [engine], window=WindowMode.AUTO).class_map.any()
    assert engine.shapes == []


@BOTH_MODES
def test_progress_counts_every_slice_and_ends_complete(window: WindowMode) -> None:
    slices, brain = _case(7, {1, 2, 3, 5})
    seen: list[tuple[int, int]] = []
    predict(slices, _geometry(brain), [ThresholdEngine()], window=window, on_progress=lambda *step: seen.append(step))
    assert seen == [(3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]
    assert all(before < after for (before, _), (after, _) in pairwise(seen))


@BOTH_MODES
def test_a_resampled_case_comes_back_on_its_own_grid(window: WindowMode) -> None:
    n_slices = 6
    brain = np.zeros((480, 480, n_slices), dtype=bool)
    slices = np.zeros((n_slices, 240, 240, 4), dtype=np.uint8)
    for z in range(1, n_slices):
        brain[200:280, 180 : 260 + 2 * z, z] = True
        slices[z, 100:140, 90 : 130 + z] = 200
    classes = predict(slices, _geometry(brain, spacing=0.5), [ThresholdEngine()], window=window).class_map
    assert classes.shape == brain.shape
    assert np.array_equal(classes == 2, brain)


# Means over flips, weights and samples, and the maps that come of probabilities


FLAIR = 0


class TiltedEngine(BrightEngine):
    """Oedema is the more probable the brighter FLAIR is, and the farther along X and Y; the rest is background.

    With seeds, a slice's first pixel gets a probability drawn from its seed. share: what the probabilities are multiplied by.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        self.seeds: list[tuple[int, ...]] = []

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.asarray(self.probabilities(slices, on_progress=on_progress).argmax(axis=3), dtype=np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_progress: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        on_progress(len(slices))
        _, x, y, _ = slices.shape
        tilt = np.linspace(0, 0.3, x)[:, None] + np.linspace(0, 0.2, y)
        oedema = self.share * (slices[..., FLAIR] / 510 + tilt)
        if dropout_seeds is not None:
            self.seeds.append(tuple(dropout_seeds))
            oedema[:, 0, 0] = [np.random.default_rng(seed).random() for seed in dropout_seeds]
        probabilities = np.zeros((*slices.shape[:3], 4), dtype=np.float32)
        probabilities[..., TumourClass.ED], probabilities[..., TumourClass.BACKGROUND] = oedema, 1 - oedema
        return probabilities


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.uint8]:
    """[8, 240, 240, 4], more than go through at once; three blank ones."""
    monkeypatch.setattr("drunet_cli.segmentation.predict._SLICES_OF_PROBABILITIES", 4)
    random = np.random.default_rng(0)
    slices = np.zeros((8, 240, 240, 4), dtype=np.uint8)
    slices[2:7, 70:150, 40:120] = random.integers(1, 256, (5, 80, 80, 4))
    return slices


def _geometry_of(slices: npt.NDArray[np.uint8]) -> Geometry:
    return fit(slices[..., FLAIR].transpose(1, 2, 0) > 0, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))


def _probabilities(
    slices: npt.NDArray[np.uint8],
    *engines: TiltedEngine,
    window: WindowMode = WindowMode.FULL,
    flips: bool = False,
    mc: int = 0,
) -> npt.NDArray[np.float16]:
    settings = Settings(flips=flips, mc_samples=mc, probabilities=True)
    probabilities = predict(slices, _geometry_of(slices), engines, window=window, settings=settings).probabilities
    assert probabilities is not None
    return probabilities


@BOTH_MODES
@pytest.mark.parametrize("axis", [1, 2])
def test_with_flips_the_answer_for_a_flipped_case_is_the_flipped_answer(
    slices: npt.NDArray[np.uint8], window: WindowMode, axis: int
) -> None:
    once, turned = (
        predict(given, _geometry_of(given), [TiltedEngine()], window=window, settings=Settings(flips=True)).class_map
        for given in (slices, np.flip(slices, axis))
    )
    assert np.array_equal(np.flip(turned, axis - 1), once)
    tilted = predict(np.flip(slices, axis), _geometry_of(slices), [TiltedEngine()], window=window).class_map
    assert not np.array_equal(np.flip(tilted, axis - 1), once)


def test_the_mean_over_the_flips_is_that_of_four_runs(slices: npt.NDArray[np.uint8]) -> None:
    mean = np.zeros((240, 240, 8, 4))
    flips: list[tuple[int, ...]] = [(), (1,), (2,), (1, 2)]
    for axes in flips:
        turned = _probabilities(np.flip(slices, axes), TiltedEngine())
        mean += np.flip(turned, tuple(axis - 1 for axis in axes)) / 4
    np.testing.assert_allclose(_probabilities(slices, TiltedEngine(), flips=True), mean, atol=1e-3)  # float16


@BOTH_MODES
def test_several_weights_give_their_mean(slices: npt.NDArray[np.uint8], window: WindowMode) -> None:
    one, other = TiltedEngine(), TiltedEngine(share=0.5)
    both = _probabilities(slices, one, other, window=window)
    expected = (_probabilities(slices, one, window=window) + _probabilities(slices, other, window=window)) / 2
    np.testing.assert_allclose(both, expected, atol=1e-3)


def test_every_pass_of_every_slice_has_a_seed_of_its_own(slices: npt.NDArray[np.uint8]) -> None:
    one, other = TiltedEngine(), TiltedEngine()
    settings = Settings(flips=True, mc_samples=3)
    predict(slices, _geometry_of(slices), [one, other], window=WindowMode.FULL, settings=settings)
    seeds = [seed for engine in (one, other) for several in engine.seeds for seed in several]
    assert len(seeds) == len(set(seeds)) == 2 * 4 * 3 * (5 + 1)  # one for the blank slices


def test_the_seeds_of_a_slice_depend_on_the_seed_alone(slices: npt.NDArray[np.uint8]) -> None:
    def seeds(given: npt.NDArray[np.uint8], seed: int) -> set[int]:
        engine = TiltedEngine()
        predict(given, _geometry_of(slices), [engine], window=WindowMode.AUTO, settings=Settings(mc_samples=2, seed=seed))
        return {one for several in engine.seeds for one in several}

    fewer = slices.copy()
    fewer[2:5] = 0
    assert seeds(fewer, 5) < seeds(slices, 5)
    assert not seeds(slices, 5) & seeds(slices, 6)


def test_samples_are_averaged(slices: npt.NDArray[np.uint8]) -> None:
    engine = TiltedEngine()
    probabilities = _probabilities(slices, engine, mc=8)
    drawn = [np.random.default_rng(several[1]).random() for several in engine.seeds if len(several) == 4]
    assert len(drawn) == 8
    np.testing.assert_allclose(probabilities[0, 0, 2 + 1, TumourClass.ED], np.mean(drawn), atol=1e-3)


def test_progress_counts_every_pass(slices: npt.NDArray[np.uint8]) -> None:
    seen: list[tuple[int, int]] = []
    settings = Settings(flips=True, mc_samples=2)
    predict(
        slices,
        _geometry_of(slices),
        [TiltedEngine()],
        window=WindowMode.AUTO,
        settings=settings,
        on_progress=lambda *step: seen.append(step),
    )
    assert seen[-1] == (8 * 8, 8 * 8)
    assert seen[0] == (3 * 8, 8 * 8)


@pytest.mark.parametrize("spacing", [1.0, 0.8])
@pytest.mark.parametrize("axes", ["LPS", "RSA"])
def test_maps_lie_on_the_grid_of_the_case_and_sum_to_one(slices: npt.NDArray[np.uint8], spacing: float, axes: str) -> None:
    shape = (300, 310, 8) if axes == "LPS" else (300, 8, 310)  # larger than the frame
    brain = np.zeros(shape, dtype=bool)
    brain[100:200, 2:6, 2:6] = True
    turn = np.diag([-spacing, -spacing, 1.0, 1.0])
    if axes == "RSA":
        turn = np.array([[spacing, 0, 0, 0], [0, 0, spacing, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    settings = Settings(probabilities=True, uncertainty=True)
    prediction = predict(slices, fit(brain, affine=turn), [TiltedEngine()], window=WindowMode.FULL, settings=settings)
    assert prediction.probabilities is not None
    assert prediction.uncertainty is not None
    assert prediction.entropy is not None
    assert prediction.probabilities.shape == (*shape, 4)
    np.testing.assert_allclose(prediction.probabilities.sum(axis=3), 1, atol=2e-3)  # float16
    assert {prediction.entropy.shape, prediction.class_map.shape} == {shape}
    assert {map_.shape for map_ in prediction.uncertainty.values()} == {shape}
    assert prediction.probabilities[-1, -1, -1].tolist() == [1, 0, 0, 0]  # outside the frame
    assert prediction.entropy[-1, -1, -1] == prediction.uncertainty["WT"][-1, -1, -1] == 0
    assert prediction.uncertainty["WT"].max() > 90
    assert not prediction.uncertainty["ET"].any()  # its probability is 0 everywhere


@pytest.mark.parametrize(
    ("probability", "percent"),
    [(0.0, 0), (1.0, 0), (0.5, 100), (0.110028, 50), (0.889972, 50)],  # entropy of a coin with p = 0.11: half a bit
)
def test_the_uncertainty_of_a_region_is_its_entropy_in_bits(probability: float, percent: int) -> None:
    assert region_uncertainty(np.array([probability], dtype=np.float32)).tolist() == [percent]


def test_entropy_is_in_nats() -> None:
    certain, even, two = [1.0, 0, 0, 0], [0.25] * 4, [0.5, 0, 0.5, 0]
    np.testing.assert_allclose(entropy(np.array([certain, even, two], dtype=np.float32)), [0, np.log(4), np.log(2)], atol=1e-6)


# Windows


@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 100, 207, 208, 224, 225, 239])
def test_window_is_the_smallest_on_the_networks_grid_that_holds_the_brain(start: int) -> None:
    for stop in range(start + 1, 241):
        brain = np.zeros((240, 240), dtype=bool)
        brain[start:stop, 100:101] = True
        window = window_of(brain)
        assert window.x == max(x for x in range(0, 240, 32) if x <= start)
        assert window.x_stop == min(x for x in range(16, 241, 32) if x >= stop)
        assert (window.y, window.y_stop) == (96, 112)


def test_groups_are_of_one_shape_largest_first_and_leave_blank_slices_out() -> None:
    slices = np.zeros((5, 240, 240, 4), dtype=np.uint8)
    slices[0, 130:170, 130:170] = 1
    slices[2, 10, 10, 3] = slices[2, 40, 40, 0] = 1
    slices[3, 10:230, 10:230, 1] = 1
    assert list(windows_by_shape(slices, WindowMode.AUTO).items()) == [
        ((240, 240), {3: Window()}),
        ((48, 48), {0: Window(128, 176, 128, 176), 2: Window(0, 48, 0, 48)}),
    ]
