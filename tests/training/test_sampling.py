"""Which slices and windows make a batch, and that seed and step alone decide."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.io.geometry import FRAME
from drunet_cli.training.batches import BatchPlan, Pixels, Planner, SliceSource, Stream, assembled, generator
from drunet_cli.training.recipe import AugmentationSettings, BatchSettings, Sampling

Counts = npt.NDArray[np.int64]
Interval = tuple[int, int]

NO_FLIPS: Final = AugmentationSettings(flip_x=0, flip_y=0)
WINDOWS: Final = ((112, 144), (144, 176), (48, 48))
ED: Final = 2


@dataclass(frozen=True)
class Volume:
    """A case in memory. pixels: [Z, 240, 240, 5]."""

    pixels: Pixels

    @property
    def n_slices(self) -> int:
        return len(self.pixels)

    @property
    def counts(self) -> Counts:
        brain = self.pixels[..., :4].any(axis=3)
        masks = [brain, *(self.pixels[..., 4] == index for index in (1, 2, 3))]
        return np.stack([mask.sum(axis=(1, 2)) for mask in masks], axis=1)

    @property
    def brain_boxes(self) -> Counts:
        return boxes(np.asarray(self.pixels[..., :4].any(axis=3)))

    @property
    def tumour_boxes(self) -> Counts:
        return boxes(self.pixels[..., 4] > 0)

    def window(self, z: int, x: int, y: int, shape: tuple[int, int]) -> Pixels:
        return self.pixels[z, x : x + shape[0], y : y + shape[1]]


@dataclass(frozen=True)
class Table:
    """A case without its pixels."""

    counts: Counts
    brain_boxes: Counts
    tumour_boxes: Counts

    @property
    def n_slices(self) -> int:
        return len(self.counts)

    def window(self, z: int, x: int, y: int, shape: tuple[int, int]) -> Pixels:
        raise AssertionError("a planner reads no pixel")


def boxes(masks: npt.NDArray[np.bool_]) -> Counts:
    """[Z, 4], by looking at every pixel."""
    found = np.zeros((len(masks), 4), dtype=np.int64)
    for box, mask in zip(found, masks, strict=True):
        x, y = np.nonzero(mask)
        if len(x):
            box[:] = x.min(), x.max() + 1, y.min(), y.max() + 1
    return found


def table(classes: Sequence[Sequence[int]], *, brain: Sequence[bool] | None = None) -> Table:
    """A case of which each slice holds these tumour classes; all slices hold brain, unless told otherwise."""
    has_brain = np.ones(len(classes), dtype=bool) if brain is None else np.array(brain)
    counts = [
        [1000 * bool(filled), *(9 * (index in of) for index in (1, 2, 3))]
        for filled, of in zip(has_brain, classes, strict=True)
    ]
    brain_boxes = np.outer(has_brain, (50, 190, 30, 215))
    tumour_boxes = np.outer([bool(of) for of in classes], (60, 100, 120, 150))
    return Table(np.array(counts), brain_boxes, tumour_boxes)


def volume(seed: int, n_slices: int = 4) -> Volume:
    """Noise everywhere, so that no window, and no window mirrored, looks like another."""
    pixels = np.random.default_rng(seed).integers(1, 256, (n_slices, FRAME, FRAME, 5), dtype=np.uint8)
    pixels[..., 4] = 0
    pixels[1:, 60:100, 120:150, 4] = ED
    return Volume(pixels)


def planner(
    cases: Sequence[SliceSource],
    *,
    seed: int = 0,
    size: int = 10,
    sampling: Sampling = Sampling.BALANCED,
    tumour_share: float = 0.7,
    windows: tuple[tuple[int, int], ...] = WINDOWS,
    augmentation: AugmentationSettings = NO_FLIPS,
) -> Planner:
    batches = BatchSettings(size=size, sampling=sampling, tumour_share=tumour_share, windows=windows)
    return Planner(cases, batches, augmentation, seed=seed)


def drawn(plans: Planner, n_steps: int) -> list[tuple[int, int]]:
    """Case and slice of all windows of the first steps."""
    return [(window.case, window.z) for step in range(n_steps) for window in plans.plan(step).windows]


COHORT: Final = (
    table([()] * 3 + [(1, 2)] * 4 + [(2,)] * 3, brain=[False] + [True] * 8 + [False]),
    table([()] * 20 + [(1, 2, 3)] * 3),
    table([()] * 10),
)
EVERY_SAMPLING: Final = pytest.mark.parametrize("sampling", list(Sampling))


@EVERY_SAMPLING
def test_plan_of_a_step_is_the_same_in_whatever_order_steps_are_asked_for(sampling: Sampling) -> None:
    forwards, backwards = planner(COHORT, sampling=sampling, size=3), planner(COHORT, sampling=sampling, size=3)
    steps = range(40)  # of 43 slices, almost three epochs
    assert [forwards.plan(step) for step in steps] == [backwards.plan(step) for step in reversed(steps)][::-1]


@EVERY_SAMPLING
def test_plan_of_a_step_is_the_same_when_it_is_asked_for_again(sampling: Sampling) -> None:
    plans = planner(COHORT, sampling=sampling)
    assert plans.plan(5) == plans.plan(5)


@EVERY_SAMPLING
def test_another_seed_plans_otherwise(sampling: Sampling) -> None:
    assert planner(COHORT, sampling=sampling).plan(0) != planner(COHORT, sampling=sampling, seed=1).plan(0)


@EVERY_SAMPLING
def test_every_step_plans_otherwise(sampling: Sampling) -> None:
    plans = planner(COHORT, sampling=sampling)
    assert len({plans.plan(step).windows for step in range(30)}) == 30


def test_streams_and_indices_of_one_seed_draw_independently() -> None:
    """SeedSequence mixes all words of its entropy; equal draws of 62 bits would mean that one of them is not among these."""
    draws = {int(generator(0, stream, index).integers(2**62)) for stream, index in product(Stream, range(20))}
    assert len(draws) == len(Stream) * 20


@EVERY_SAMPLING
def test_windows_lie_on_the_frame_at_multiples_of_32(sampling: Sampling) -> None:
    plans = planner(COHORT, sampling=sampling)
    for plan in map(plans.plan, range(40)):
        starts = np.array([(window.x, window.y) for window in plan.windows])
        assert not (starts % 32).any()
        assert (starts >= 0).all()
        assert (starts + plan.shape <= FRAME).all()


def test_shapes_of_the_recipe_are_drawn_evenly() -> None:
    plans = planner(COHORT, size=1)
    counts = Counter(plans.plan(step).shape for step in range(900))
    # Binomial: 300 each with an SD of 14; five of them.
    assert {shape: abs(count - 300) < 71 for shape, count in counts.items()} == dict.fromkeys(WINDOWS, True)


@EVERY_SAMPLING
def test_whole_frames_are_planned_where_the_recipe_has_no_windows(sampling: Sampling) -> None:
    plan = planner(COHORT, sampling=sampling, windows=()).plan(0)
    assert plan.shape == (FRAME, FRAME)
    assert {(window.x, window.y) for window in plan.windows} == {(0, 0)}


def test_an_epoch_of_all_slices_holds_each_once() -> None:
    plans = planner(COHORT, sampling=Sampling.ALL, size=1)
    everything = [(case, z) for case, source in enumerate(COHORT) for z in range(source.n_slices)]
    assert sorted(drawn(plans, plans.steps_of_all_slices)) == everything


def test_an_epoch_of_all_slices_leaves_out_what_fills_no_batch() -> None:
    plans = planner(COHORT, sampling=Sampling.ALL, size=10)
    slices = drawn(plans, 4)  # 43 slices
    assert (plans.n_slices, plans.steps_of_all_slices, len(slices), len(set(slices))) == (43, 4, 40, 40)


def test_all_slices_come_in_another_order_in_every_epoch() -> None:
    plans = planner(COHORT, sampling=Sampling.ALL, size=1)
    slices = drawn(plans, 3 * 43)
    epochs = [tuple(slices[begin : begin + 43]) for begin in (0, 43, 86)]
    assert len(set(epochs)) == 3
    assert len({frozenset(epoch) for epoch in epochs}) == 1


def test_all_slices_are_shuffled_over_all_cases() -> None:
    """reference.md: the published buffer of 128 slices made batches of one or two cases."""
    cases = [table([()] * 155) for _ in range(10)]
    n_cases = [len({window.case for window in planner(cases, sampling=Sampling.ALL).plan(step).windows}) for step in range(20)]
    # Ten draws of ten cases meet 6.5 on average; four or fewer in one batch of 140.
    assert min(n_cases) > 2
    assert np.mean(n_cases) > 5


N_DRAWS: Final = 3000


def margin(share: float) -> float:
    """Five SDs of how often a thing of this share occurs among all draws; of a fixed seed it holds always, or never."""
    return 5 * float(np.sqrt(N_DRAWS * share * (1 - share)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_share_of_the_slices_is_drawn_for_the_tumour(share: float) -> None:
    case = table([()] * 90 + [(1, 2, 3)] * 10)
    slices = drawn(planner([case], size=100, tumour_share=share), N_DRAWS // 100)
    expected = share + (1 - share) * 0.1  # the others meet it by chance
    found = sum(z >= 90 for _, z in slices)
    assert found == pytest.approx(N_DRAWS * expected, abs=margin(expected))


def test_tumour_classes_are_drawn_evenly_however_few_their_slices() -> None:
    case = table([()] * 20 + [(1,)] * 1 + [(2,)] * 30 + [(3,)] * 4)
    slices = drawn(planner([case], size=100, tumour_share=1), N_DRAWS // 100)
    ends = {"none": (0, 20), "NCR": (20, 21), "ED": (21, 51), "ET": (51, 55)}
    counts = {name: sum(first <= z < end for _, z in slices) for name, (first, end) in ends.items()}
    assert counts.pop("none") == 0
    assert list(counts.values()) == pytest.approx([N_DRAWS / 3] * 3, abs=margin(1 / 3))


def test_slices_of_a_class_are_drawn_evenly() -> None:
    slices = drawn(planner([table([()] * 5 + [(3,)] * 5)], size=100, tumour_share=1), N_DRAWS // 100)
    counts = Counter(z for _, z in slices)
    assert [counts[z] for z in range(5, 10)] == pytest.approx([N_DRAWS / 5] * 5, abs=margin(1 / 5))


def test_cases_are_drawn_evenly_however_many_their_slices() -> None:
    cases = [table([()] * 3 + [(2,)]), table([()] * 300 + [(1, 2, 3)] * 50), table([()] * 40)]
    counts = Counter(case for case, _ in drawn(planner(cases, size=100), N_DRAWS // 100))
    assert [counts[case] for case in range(3)] == pytest.approx([N_DRAWS / 3] * 3, abs=margin(1 / 3))


def test_balanced_batches_hold_no_blank_slice() -> None:
    case = table([()] * 4 + [(2,)], brain=[False, True, False, True, True])
    assert {z for _, z in drawn(planner([case], tumour_share=0.2), 30)} == {1, 3, 4}


def test_case_without_tumour_gives_any_of_its_brain_slices() -> None:
    case = table([()] * 4, brain=[False, True, True, False])
    assert {z for _, z in drawn(planner([case], tumour_share=1), 10)} == {1, 2}


def held(start: int, size: int, interval: Interval) -> int:
    return max(0, min(start + size, interval[1]) - max(start, interval[0]))


def most_held(size: int, interval: Interval) -> int:
    return max(held(start, size, interval) for start in range(0, FRAME - size + 1, 32))


def _intervals(n: int, seed: int) -> list[Interval]:
    ends = np.sort(np.random.default_rng(seed).choice(FRAME + 1, (n, 2)), axis=1)
    return [(int(first), int(end) + (first == end)) for first, end in ends]


@pytest.mark.parametrize("tumour_share", [0, 1])
def test_window_holds_as_much_of_the_tumour_or_brain_as_any_window_could(tumour_share: float) -> None:
    x, y = _intervals(300, 0), _intervals(300, 1)
    wanted = np.array([(*of_x, *of_y) for of_x, of_y in zip(x, y, strict=True)])
    other = np.zeros_like(wanted)
    counts = np.full((300, 4), 9)
    case = Table(counts, *((other, wanted) if tumour_share else (wanted, other)))
    plans = planner([case], size=100, tumour_share=tumour_share)
    for plan in map(plans.plan, range(10)):
        for window in plan.windows:
            for start, size, interval in ((window.x, plan.shape[0], x[window.z]), (window.y, plan.shape[1], y[window.z])):
                assert held(start, size, interval) == most_held(size, interval)


def test_every_window_that_holds_the_tumour_is_drawn() -> None:
    plans = planner([table([(2,)])], size=100, tumour_share=1, windows=((112, 144),))  # tumour at 60-100, 120-150
    assert {(window.x, window.y) for window in plans.plan(0).windows} == set(product((0, 32), (32, 64, 96)))


def test_window_of_a_blank_slice_lies_anywhere_on_the_frame() -> None:
    plans = planner([table([()], brain=[False])], sampling=Sampling.ALL, size=1, windows=((144, 176),))
    starts = {(window.x, window.y) for step in range(200) for window in plans.plan(step).windows}
    assert starts == set(product((0, 32, 64, 96), (0, 32, 64)))


@pytest.mark.parametrize(("flip_x", "flip_y"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_flips_that_are_certain_happen_and_those_that_are_not_do_not(flip_x: float, flip_y: float) -> None:
    augmentation = AugmentationSettings(flip_x=flip_x, flip_y=flip_y)
    windows = planner(COHORT, size=100, augmentation=augmentation).plan(0).windows
    assert {(window.flip_x, window.flip_y) for window in windows} == {(bool(flip_x), bool(flip_y))}


def test_flips_of_probability_one_half_are_independent() -> None:
    plans = planner(COHORT, size=100, augmentation=AugmentationSettings(flip_x=0.5, flip_y=0.5))
    counts = Counter((window.flip_x, window.flip_y) for step in range(N_DRAWS // 100) for window in plans.plan(step).windows)
    assert list(counts.values()) == pytest.approx([N_DRAWS / 4] * 4, abs=margin(1 / 4))


def test_probability_of_a_flip_moves_no_window() -> None:
    flipped = planner(COHORT, augmentation=AugmentationSettings(flip_x=1, flip_y=1)).plan(0)
    windows = tuple(replace(window, flip_x=False, flip_y=False) for window in flipped.windows)
    assert BatchPlan(0, flipped.shape, windows) == planner(COHORT).plan(0)


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    return [volume(seed) for seed in range(3)]


def test_batch_is_what_slicing_and_flipping_give(volumes: list[Volume]) -> None:
    plan = planner(volumes, size=20, augmentation=AugmentationSettings(flip_x=0.5, flip_y=0.5)).plan(0)
    assert len({(window.flip_x, window.flip_y) for window in plan.windows}) == 4
    expected = []
    for window in plan.windows:
        pixels = volumes[window.case].pixels[window.z][window.x : window.x + plan.shape[0], window.y : window.y + plan.shape[1]]
        pixels = np.flip(pixels, axis=0) if window.flip_x else pixels
        expected.append(np.flip(pixels, axis=1) if window.flip_y else pixels)
    assert np.array_equal(assembled(plan, volumes), np.stack(expected))


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 5), slice(5, 6), slice(3, 3)], ids=str)
def test_part_of_a_batch_is_that_part_of_the_whole(part: slice, volumes: list[Volume]) -> None:
    plan = planner(volumes, size=6, augmentation=AugmentationSettings()).plan(3)
    assert np.array_equal(assembled(plan, volumes, part), assembled(plan, volumes)[part])


def test_batch_drawn_for_the_tumour_holds_it(volumes: list[Volume]) -> None:
    plans = planner(volumes, size=20, tumour_share=1, windows=((112, 144),))
    assert (assembled(plans.plan(0), volumes)[..., 4] == ED).any(axis=(1, 2)).all()


def test_assembling_leaves_the_cases_as_they_are(volumes: list[Volume]) -> None:
    before = [case.pixels.copy() for case in volumes]
    assembled(planner(volumes).plan(0), volumes)[:] = 0
    assert all(np.array_equal(case.pixels, pixels) for case, pixels in zip(volumes, before, strict=True))
