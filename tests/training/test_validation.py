"""Scores of held-out cases, of engines that know the truth and of one that sees nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import ClassMap
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import EngineName, Precision, WindowMode, ignore_progress
from drunet_cli.training.validation import CaseScore, mean_scores, score

NCR, ED, ET = 1, 2, 3
N_SLICES: Final = 5
GREY: Final = 40  # of a class above the one before


@dataclass(frozen=True)
class Case:
    """A case in memory, whose FLAIR gives the truth away."""

    truth: ClassMap
    name: str = "case"

    def slices(self) -> SliceStack:
        pixels = np.zeros((*self.truth.shape, 4), dtype=np.uint8)
        pixels[1:-1, 50:190, 30:200] = GREY  # brain; the first and last slice are blank
        pixels[..., 0] += GREY * self.truth
        return pixels

    def classes(self) -> ClassMap:
        return self.truth


class Clairvoyant:
    """An engine that reads the truth off the FLAIR."""

    name = EngineName.TORCH
    device = device_name = "none"
    threads = batch_size = 1
    precision = Precision.FLOAT32
    versions: Mapping[str, str] = {}

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        on_done(len(slices))
        return np.where(slices[..., 0] > 0, slices[..., 0] // GREY - 1, 0).astype(np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        raise AssertionError("frames of 1 mm need no probabilities")


class Blind(Clairvoyant):
    """An engine that sees no tumour."""

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.zeros(slices.shape[:3], dtype=np.uint8)


class OedemaOnly(Clairvoyant):
    """An engine that takes all tumour for oedema."""

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        return np.where(super().classes(slices) > 0, ED, 0).astype(np.uint8)


def case(*classes: int) -> Case:
    """A block of each class, beside one another, longer along X than along Y, and off the middle of the frame."""
    truth = np.zeros((N_SLICES, FRAME, FRAME), dtype=np.uint8)
    for n, index in enumerate(classes):
        truth[2:4, 60:90, 40 + 10 * n : 50 + 10 * n] = index
    return Case(truth)


@pytest.mark.parametrize("classes", [(), (ED,), (NCR, ED), (NCR, ED, ET)], ids=str)
def test_prediction_that_is_the_truth_scores_1_everywhere(classes: tuple[int, ...]) -> None:
    assert score(case(*classes), Clairvoyant(), window=WindowMode.FULL) == CaseScore("case", {"WT": 1, "TC": 1, "ET": 1})


@pytest.mark.parametrize(
    ("classes", "dice"),
    # reference.md, Classes: WT = 1 + 2 + 3, TC = 1 + 3, ET = 3.
    [((), (1, 1, 1)), ((ED,), (0, 1, 1)), ((NCR,), (0, 0, 1)), ((ED, ET), (0, 0, 0))],
    ids=str,
)
def test_prediction_without_tumour_scores_0_for_regions_that_are_there_and_1_for_the_others(
    classes: tuple[int, ...], dice: tuple[float, ...]
) -> None:
    assert tuple(score(case(*classes), Blind(), window=WindowMode.FULL).dice.values()) == dice


def test_tumour_where_there_is_none_scores_0() -> None:
    seen = case(ED)
    assert score(Case(seen.truth * 0), _Constant(seen.truth), window=WindowMode.FULL).dice == {"WT": 0, "TC": 1, "ET": 1}


class _Constant(Clairvoyant):
    """An engine that answers the same, whatever it is shown; all slices at once."""

    def __init__(self, answer: ClassMap) -> None:
        self._answer = answer[1:-1]

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        return self._answer if len(slices) > 1 else np.zeros(slices.shape[:3], dtype=np.uint8)


def test_half_of_a_region_scores_two_thirds() -> None:
    truth = case(ET)
    half = truth.truth.copy()
    half[3] = 0
    # 2 x n / (n + 2 n), the package's Dice.
    assert list(score(truth, _Constant(half), window=WindowMode.FULL).dice.values()) == pytest.approx([2 / 3] * 3)


def test_regions_are_those_of_brats() -> None:
    assert score(case(NCR, ED, ET), OedemaOnly(), window=WindowMode.FULL).dice == {"WT": 1, "TC": 0, "ET": 0}


@pytest.mark.parametrize("window", list(WindowMode))
def test_the_network_sees_what_it_was_trained_on(window: WindowMode) -> None:
    shapes: set[tuple[int, ...]] = set()

    class Looking(Clairvoyant):
        def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
            shapes.add(slices.shape[1:3])
            return super().classes(slices, on_done=on_done)

    assert score(case(ED), Looking(), window=window).dice == {"WT": 1, "TC": 1, "ET": 1}
    # The brain of the case lies in x 50 to 190 and y 30 to 200, of the grid 32 to 208 and 0 to 208.
    assert shapes == ({(240, 240)} if window is WindowMode.FULL else {(176, 208)})


def test_progress_counts_every_slice() -> None:
    seen: list[tuple[int, int]] = []
    score(case(ED), Clairvoyant(), window=WindowMode.FULL, on_progress=lambda done, n: seen.append((done, n)))
    assert seen == [(2, N_SLICES), (5, N_SLICES)]  # blank ones first


def test_means_are_over_the_cases_by_region_and_over_the_regions() -> None:
    scores = [CaseScore("a", {"WT": 1, "TC": 0.5, "ET": 0}), CaseScore("b", {"WT": 0.5, "TC": 0.5, "ET": 0.75})]
    assert mean_scores(scores) == pytest.approx({"WT": 0.75, "TC": 0.5, "ET": 0.375, "mean": 1.625 / 3})


def test_no_case_has_no_mean() -> None:
    assert mean_scores([]) == {}
