"""Means over flips, weights and samples, and the maps that come of probabilities."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap, TumourClass
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.network.engine import EngineName, Precision, WindowMode, ignore_progress
from drunet_cli.segmentation.predict import Plan, entropy, predict, region_uncertainty

BOTH_MODES = pytest.mark.parametrize("window", list(WindowMode))
FLAIR = 0


class TiltedEngine:
    """Oedema is the more probable the brighter FLAIR is, and the farther along X and Y; the rest is background.

    With seeds, a slice's first pixel gets a probability drawn from its seed. share: what the probabilities are multiplied by.
    """

    name = EngineName.TORCH
    device = device_name = "none"
    threads = batch_size = 1
    precision = Precision.FLOAT32
    versions: Mapping[str, str] = {}

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.seeds: list[tuple[int, ...]] = []

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.asarray(self.probabilities(slices, on_done=on_done).argmax(axis=3), dtype=np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        on_done(len(slices))
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
def slices() -> npt.NDArray[np.uint8]:
    """[20, 240, 240, 4], more than go through at once; three blank ones."""
    random = np.random.default_rng(0)
    slices = np.zeros((20, 240, 240, 4), dtype=np.uint8)
    slices[2:19, 70:150, 40:120] = random.integers(1, 256, (17, 80, 80, 4))
    return slices


def _geometry(slices: npt.NDArray[np.uint8]) -> Geometry:
    return fit(slices[..., FLAIR].transpose(1, 2, 0) > 0, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))


def _probabilities(
    slices: npt.NDArray[np.uint8],
    *engines: TiltedEngine,
    window: WindowMode = WindowMode.FULL,
    flips: bool = False,
    mc: int = 0,
) -> npt.NDArray[np.float16]:
    plan = Plan(window=window, flips=flips, mc_samples=mc, probabilities=True)
    probabilities = predict(slices, _geometry(slices), engines, plan=plan).probabilities
    assert probabilities is not None
    return probabilities


@BOTH_MODES
@pytest.mark.parametrize("axis", [1, 2])
def test_with_flips_the_answer_for_a_flipped_case_is_the_flipped_answer(
    slices: npt.NDArray[np.uint8], window: WindowMode, axis: int
) -> None:
    once, turned = (
        predict(given, _geometry(given), [TiltedEngine()], plan=Plan(window=window, flips=True)).class_map
        for given in (slices, np.flip(slices, axis))
    )
    assert np.array_equal(np.flip(turned, axis - 1), once)
    tilted = predict(np.flip(slices, axis), _geometry(slices), [TiltedEngine()], plan=Plan(window=window)).class_map
    assert not np.array_equal(np.flip(tilted, axis - 1), once)


def test_the_mean_over_the_flips_is_that_of_four_runs(slices: npt.NDArray[np.uint8]) -> None:
    mean = np.zeros((240, 240, 20, 4))
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
    plan = Plan(window=WindowMode.FULL, flips=True, mc_samples=3)
    predict(slices, _geometry(slices), [one, other], plan=plan)
    seeds = [seed for engine in (one, other) for several in engine.seeds for seed in several]
    assert len(seeds) == len(set(seeds)) == 2 * 4 * 3 * (17 + 1)  # one for the blank slices


def test_the_seeds_of_a_slice_depend_on_the_seed_alone(slices: npt.NDArray[np.uint8]) -> None:
    def seeds(given: npt.NDArray[np.uint8], seed: int) -> set[int]:
        engine = TiltedEngine()
        predict(given, _geometry(slices), [engine], plan=Plan(window=WindowMode.AUTO, mc_samples=2, seed=seed))
        return {one for several in engine.seeds for one in several}

    fewer = slices.copy()
    fewer[2:10] = 0
    assert seeds(fewer, 5) < seeds(slices, 5)
    assert not seeds(slices, 5) & seeds(slices, 6)


def test_samples_are_averaged(slices: npt.NDArray[np.uint8]) -> None:
    engine = TiltedEngine()
    probabilities = _probabilities(slices, engine, mc=8)
    drawn = [np.random.default_rng(several[4]).random() for several in engine.seeds if len(several) == 16]
    assert len(drawn) == 8
    np.testing.assert_allclose(probabilities[0, 0, 2 + 4, TumourClass.ED], np.mean(drawn), atol=1e-3)


def test_progress_counts_every_pass(slices: npt.NDArray[np.uint8]) -> None:
    seen: list[tuple[int, int]] = []
    plan = Plan(window=WindowMode.AUTO, flips=True, mc_samples=2)
    predict(slices, _geometry(slices), [TiltedEngine()], plan=plan, on_progress=lambda *step: seen.append(step))
    assert seen[-1] == (20 * 8, 20 * 8)
    assert seen[0] == (3 * 8, 20 * 8)


def test_without_being_asked_for_no_map_is_kept(slices: npt.NDArray[np.uint8]) -> None:
    prediction = predict(slices, _geometry(slices), [TiltedEngine()], plan=Plan(window=WindowMode.FULL, flips=True))
    assert (prediction.probabilities, prediction.uncertainty, prediction.entropy) == (None, None, None)


@pytest.mark.parametrize("spacing", [1.0, 0.8])
@pytest.mark.parametrize("axes", ["LPS", "RSA"])
def test_maps_lie_on_the_grid_of_the_case_and_sum_to_one(slices: npt.NDArray[np.uint8], spacing: float, axes: str) -> None:
    shape = (340, 360, 20) if axes == "LPS" else (340, 20, 360)  # larger than the frame
    brain = np.zeros(shape, dtype=bool)
    brain[100:200, 5:15, 5:15] = True
    turn = np.diag([-spacing, -spacing, 1.0, 1.0])
    if axes == "RSA":
        turn = np.array([[spacing, 0, 0, 0], [0, 0, spacing, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    plan = Plan(window=WindowMode.FULL, probabilities=True, uncertainty=True)
    prediction = predict(slices, fit(brain, affine=turn), [TiltedEngine()], plan=plan)
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


def test_rounding_never_leaves_the_range() -> None:
    beyond = np.array([-1e-7, 1 + 1e-6, 0.5], dtype=np.float32)
    assert region_uncertainty(beyond).tolist() == [0, 0, 100]


def test_entropy_is_in_nats() -> None:
    certain, even, two = [1.0, 0, 0, 0], [0.25] * 4, [0.5, 0, 0.5, 0]
    np.testing.assert_allclose(entropy(np.array([certain, even, two], dtype=np.float32)), [0, np.log(4), np.log(2)], atol=1e-6)
