"""Which slices and windows make a batch: seed and step alone decide, whatever the number of threads or processes."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.io.geometry import FRAME
from drunet_cli.training.batches import BatchPlan, Feed, Planner, assemble
from drunet_cli.training.recipe import AugmentationSettings, BatchSettings, Sampling, Stream, generator
from drunet_cli.training.store import StoredCase

NO_FLIPS: Final = AugmentationSettings(flip_x=0, flip_y=0)
WINDOWS: Final = ((112, 144), (144, 176), (48, 48))
N_DRAWS: Final = 3000
BRAIN_BOX: Final = (50, 190, 30, 215)
TUMOUR_BOX: Final = (60, 100, 120, 150)


def table(
    classes: Sequence[Sequence[int]],
    *,
    brain: Sequence[bool] | None = None,
    brain_box: Sequence[int] = BRAIN_BOX,
    tumour_box: Sequence[int] = TUMOUR_BOX,
    window: Callable[..., npt.NDArray[np.uint8]] | None = None,
) -> StoredCase:
    """A case of which each slice holds these tumour classes; all slices hold brain, unless told otherwise."""
    has_brain = np.ones(len(classes), dtype=bool) if brain is None else np.array(brain)
    counts = [[1000 * filled, *(9 * (n in found) for n in (1, 2, 3))] for filled, found in zip(has_brain, classes, strict=True)]
    case = SimpleNamespace(
        n_slices=len(classes),
        counts=np.array(counts),
        brain_boxes=np.outer(has_brain, brain_box),
        tumour_boxes=np.outer([bool(found) for found in classes], tumour_box),
        window=window,
    )
    return cast(StoredCase, case)


def noise(seed: int) -> StoredCase:
    """A case whose pixels are noise everywhere, so that no window, and no mirrored window, looks like another."""
    pixels = np.random.default_rng(seed).integers(1, 256, (4, FRAME, FRAME, 5), dtype=np.uint8)
    return table([(), (2,), (2,), (2,)], window=lambda z, x, y, shape: pixels[z, x : x + shape[0], y : y + shape[1]].copy())


def planner(cases: Sequence[StoredCase], *, seed: int = 0, flips: AugmentationSettings = NO_FLIPS, **batches: Any) -> Planner:
    return Planner(cases, BatchSettings(**{"windows": WINDOWS, **batches}), flips, seed=seed)


def drawn(plans: Planner, n_steps: int) -> list[tuple[int, int]]:
    """Case and slice of all windows of the first steps."""
    return [(window.case, window.z) for step in range(n_steps) for window in plans.plan(step).windows]


def margin(share: float) -> float:
    """Five SDs of how often a thing of this share occurs among all draws."""
    return 5 * float(np.sqrt(N_DRAWS * share * (1 - share)))


COHORT: Final = (
    table([()] * 3 + [(1, 2)] * 4 + [(2,)] * 3, brain=[False] + [True] * 8 + [False]),
    table([()] * 20 + [(1, 2, 3)] * 3),
    table([()] * 10),
)
every_sampling: Final = pytest.mark.parametrize("sampling", list(Sampling))


# Seed and step alone decide


@every_sampling
def test_plan_of_a_step_depends_on_seed_and_step_alone(sampling: Sampling) -> None:
    steps = range(40)  # of 43 slices, almost three passes
    forwards, backwards = planner(COHORT, sampling=sampling, size=3), planner(COHORT, sampling=sampling, size=3)
    plans = [forwards.plan(step) for step in steps]
    assert plans == [backwards.plan(step) for step in reversed(steps)][::-1]
    assert len({plan.windows for plan in plans}) == len(plans)
    assert planner(COHORT, sampling=sampling, size=3, seed=1).plan(0) != plans[0]


def test_streams_and_indices_of_one_seed_draw_independently() -> None:
    draws = {int(generator(0, stream, index).integers(2**62)) for stream, index in product(Stream, range(20))}
    assert len(draws) == len(Stream) * 20


# Which slices


def test_pass_over_all_slices_holds_each_once_in_another_order_each_time() -> None:
    slices = drawn(planner(COHORT, sampling=Sampling.ALL, size=1), 3 * 43)
    passes = [tuple(slices[begin : begin + 43]) for begin in (0, 43, 86)]
    everything = [(case, z) for case, source in enumerate(COHORT) for z in range(source.n_slices)]
    assert [sorted(found) for found in passes] == [everything] * 3
    assert len(set(passes)) == 3
    of_ten = drawn(planner(COHORT, sampling=Sampling.ALL, size=10), 4)  # the last three slices fill no batch
    assert len(set(of_ten)) == 40


def test_all_slices_are_shuffled_over_all_cases() -> None:
    """The published buffer of 128 slices made batches of one or two cases."""
    cases = [table([()] * 155) for _ in range(10)]
    n_cases = [len({window.case for window in planner(cases, sampling=Sampling.ALL).plan(step).windows}) for step in range(20)]
    assert min(n_cases) > 2  # ten draws of ten cases meet 6.5 on average; two or fewer in one batch of 10^6
    assert np.mean(n_cases) > 5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_the_slices_is_drawn_for_the_tumour(share: float) -> None:
    slices = drawn(planner([table([()] * 90 + [(1, 2, 3)] * 10)], size=100, tumour_share=share), N_DRAWS // 100)
    expected = share + (1 - share) * 0.1  # the others meet a tumour by chance
    assert sum(z >= 90 for _, z in slices) == pytest.approx(N_DRAWS * expected, abs=margin(expected))


def test_cases_classes_and_slices_of_a_class_are_drawn_evenly_however_few_there_are() -> None:
    cases = [table([()] * 20 + [(1,)] * 1 + [(2,)] * 30 + [(3,)] * 4), table([()] * 300 + [(2,)] * 5)]
    slices = drawn(planner(cases, size=100, tumour_share=1), N_DRAWS // 100)
    of_first = [z for case, z in slices if case == 0]
    assert len(of_first) == pytest.approx(N_DRAWS / 2, abs=margin(1 / 2))
    counts = [sum(first <= z < end for z in of_first) for first, end in ((0, 20), (20, 21), (21, 51), (51, 55))]
    assert counts[0] == 0
    assert counts[1:] == pytest.approx([N_DRAWS / 6] * 3, abs=margin(1 / 6))
    of_second = Counter(z for case, z in slices if case == 1)
    assert [of_second[z] for z in range(300, 305)] == pytest.approx([N_DRAWS / 10] * 5, abs=margin(1 / 10))


def test_balanced_batches_hold_brain_also_where_a_case_has_no_tumour() -> None:
    with_tumour = table([()] * 4 + [(2,)], brain=[False, True, False, True, True])
    assert {z for _, z in drawn(planner([with_tumour], tumour_share=0.2), 30)} == {1, 3, 4}
    without = table([()] * 4, brain=[False, True, True, False])
    assert {z for _, z in drawn(planner([without], tumour_share=1), 10)} == {1, 2}


# Which windows


@every_sampling
def test_shapes_are_drawn_evenly_and_windows_lie_on_the_frame_at_multiples_of_32(sampling: Sampling) -> None:
    plans = [planner(COHORT, sampling=sampling, size=1).plan(step) for step in range(900)]
    # Binomial: 300 each with an SD of 14; five of them.
    assert list(Counter(plan.shape for plan in plans).values()) == pytest.approx([300] * 3, abs=71)
    for plan in plans:
        starts = np.array([(window.x, window.y) for window in plan.windows])
        assert not (starts % 32).any()
        assert (starts >= 0).all()
        assert (starts + plan.shape <= FRAME).all()
    whole = planner(COHORT, sampling=sampling, windows=()).plan(0)
    assert (whole.shape, {(window.x, window.y) for window in whole.windows}) == ((FRAME, FRAME), {(0, 0)})


intervals = st.tuples(st.integers(0, FRAME - 1), st.integers(1, FRAME)).map(lambda ends: (ends[0], max(ends[0] + 1, ends[1])))


@given(x=intervals, y=intervals, for_tumour=st.booleans(), step=st.integers(0, 10))
def test_window_holds_as_much_of_the_tumour_or_brain_as_any_window_could(
    x: tuple[int, int], y: tuple[int, int], for_tumour: bool, step: int
) -> None:
    box, other = (*x, *y), (0, 16, 0, 16)
    case = table([(1,)], brain_box=other if for_tumour else box, tumour_box=box if for_tumour else other)
    plan = planner([case], size=4, tumour_share=float(for_tumour)).plan(step)
    for window in plan.windows:
        for start, size, (first, end) in ((window.x, plan.shape[0], x), (window.y, plan.shape[1], y)):
            held = [max(0, min(begin + size, end) - max(begin, first)) for begin in range(0, FRAME - size + 1, 32)]
            assert held[start // 32] == max(held)


def test_every_window_that_holds_the_tumour_is_drawn_and_for_a_blank_slice_any() -> None:
    plans = planner([table([(2,)])], size=100, tumour_share=1, windows=((112, 144),))
    assert {(window.x, window.y) for window in plans.plan(0).windows} == set(product((0, 32), (32, 64, 96)))
    blank = planner([table([()], brain=[False])], sampling=Sampling.ALL, size=1, windows=((144, 176),))
    starts = {(window.x, window.y) for step in range(200) for window in blank.plan(step).windows}
    assert starts == set(product((0, 32, 64, 96), (0, 32, 64)))


# Flips, and the pixels of a batch


def test_flips_happen_by_their_probability_each_for_itself_and_move_no_window() -> None:
    for flip_x, flip_y in product((0.0, 1.0), repeat=2):
        plan = planner(COHORT, flips=AugmentationSettings(flip_x=flip_x, flip_y=flip_y)).plan(0)
        assert {(window.flip_x, window.flip_y) for window in plan.windows} == {(bool(flip_x), bool(flip_y))}
        unflipped = tuple(replace(window, flip_x=False, flip_y=False) for window in plan.windows)
        assert BatchPlan(0, plan.shape, unflipped) == planner(COHORT).plan(0)
    plans = planner(COHORT, size=100, flips=AugmentationSettings(flip_x=0.5, flip_y=0.5))
    counts = Counter((window.flip_x, window.flip_y) for step in range(N_DRAWS // 100) for window in plans.plan(step).windows)
    assert list(counts.values()) == pytest.approx([N_DRAWS / 4] * 4, abs=margin(1 / 4))


@pytest.fixture(scope="module")
def noises() -> list[StoredCase]:
    return [noise(seed) for seed in range(3)]


def test_images_and_class_index_of_a_batch_are_sliced_and_flipped_together(noises: list[StoredCase]) -> None:
    plan = planner(noises, size=20, flips=AugmentationSettings(flip_x=0.5, flip_y=0.5)).plan(0)
    assert len({(window.flip_x, window.flip_y) for window in plan.windows}) == 4
    expected = []
    for window in plan.windows:
        pixels = noises[window.case].window(window.z, window.x, window.y, plan.shape)
        pixels = np.flip(pixels, axis=0) if window.flip_x else pixels
        expected.append(np.flip(pixels, axis=1) if window.flip_y else pixels)
    batch = assemble(plan, noises)
    assert np.array_equal(batch, np.stack(expected))
    for part in (slice(0, 2), slice(2, 5), slice(19, 20), slice(3, 3)):
        assert np.array_equal(assemble(plan, noises, part), batch[part])


def test_batches_come_in_their_order_from_any_number_of_threads(noises: list[StoredCase]) -> None:
    def batches(threads: int) -> list[tuple[int, torch.Tensor]]:
        plans = planner(noises, size=2)
        with closing(Feed(plans, noises, first=2, end=12, device=torch.device("cpu"), threads=threads)) as feed:
            return [(plan.step, pixels) for plan, pixels in feed]

    one, four = batches(1), batches(4)
    assert [step for step, _ in one] == [step for step, _ in four] == list(range(2, 12))
    assert all(torch.equal(first, second) for (_, first), (_, second) in zip(one, four, strict=True))
