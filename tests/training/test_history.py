"""What a training has done, as tables, curves and events."""

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from drunet_cli.errors import OutputError
from drunet_cli.training.history import CaseScore, Epoch, EventWriter, History, draw_curves, mean_scores, write_tables


def score(case: str, wt: float, tc: float, et: float) -> CaseScore:
    return CaseScore(case, {"WT": wt, "TC": tc, "ET": et})


FIRST: Final = Epoch(
    epoch=1,
    step=250,
    learning_rate=1.23456789e-3,
    loss=1.5,
    scores=(score("a", 0.5, 0.25, 0.0), score("b", 1.0, 0.75, 1 / 3)),
    is_best=True,
    seconds=61.25,
    slices_per_s=40.8163265,
    waiting=0.125,
)
UNSCORED: Final = Epoch(epoch=2, step=500, learning_rate=1e-3, loss=0.75, seconds=60.0, slices_per_s=41.0, waiting=0.0)
LAST: Final = Epoch(
    epoch=3, step=600, learning_rate=1e-5, loss=1 / 3, scores=(score("a", 0.9, 0.8, 0.7), score("b", 0.7, 0.6, 0.5))
)
HISTORY: Final = History((FIRST, UNSCORED, LAST))


def test_tables_have_a_row_an_epoch_and_a_row_for_each_held_out_case_of_each(tmp_path: Path) -> None:
    metrics, cases = tmp_path / "metrics.csv", tmp_path / "cases.csv"
    write_tables(History(), metrics, cases)
    assert [len(path.read_text().splitlines()) for path in (metrics, cases)] == [1, 1]
    write_tables(HISTORY, metrics, cases)
    assert metrics.read_text().splitlines() == [
        "epoch,step,learning_rate,loss,dice_WT,dice_TC,dice_ET,dice_mean,best,seconds,slices_per_s,waiting",
        # Means of the two cases by hand, to six digits: (0 + 1/3) / 2, and the mean of the three.
        "1,250,0.00123457,1.5,0.75,0.5,0.166667,0.472222,1,61.25,40.8163,0.125",
        "2,500,0.001,0.75,,,,,0,60.0,41.0,0.0",
        "3,600,1e-05,0.333333,0.8,0.7,0.6,0.7,0,0.0,0.0,0.0",
    ]
    assert cases.read_text().splitlines() == [
        "epoch,step,case,dice_WT,dice_TC,dice_ET",
        "1,250,a,0.5,0.25,0.0",
        "1,250,b,1.0,0.75,0.333333",
        "3,600,a,0.9,0.8,0.7",
        "3,600,b,0.7,0.6,0.5",
    ]


def test_name_with_a_comma_or_bytes_that_are_no_utf_8_survives_the_table(tmp_path: Path) -> None:
    name = b"left, 3\xe9".decode(errors="surrogateescape")
    cases = tmp_path / "cases.csv"
    write_tables(History((replace(FIRST, scores=(score(name, 1, 1, 1),)),)), tmp_path / "metrics.csv", cases)
    with cases.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert next(csv.DictReader(stream))["case"] == name


def test_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.csv: is a folder"):
        write_tables(HISTORY, tmp_path / "metrics.csv", tmp_path / "cases.csv")


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((), None),
        ((0.5, 0.7, 0.6, 0.65), 2),
        ((0.5, 0.5), 1),  # only what is better than all before
        ((0.0, 0.0), 1),
        ((None, None, None), 3),  # none is held out: the last
        ((None, 0.3, 0.2), 2),
    ],
)
def test_best_epoch_is_the_first_of_the_highest_dice_or_without_held_out_cases_the_last(
    dice: tuple[float | None, ...], best: int | None
) -> None:
    history = History()
    for n, value in enumerate(dice, start=1):
        scores = () if value is None else (score("a", value, value, value),)
        epoch = Epoch(epoch=n, step=n, learning_rate=1, loss=1, scores=scores, is_best=history.would_be_best(scores))
        history = History((*history.epochs, epoch))
    assert (history.best.epoch if history.best else None) == best


def test_best_is_judged_by_the_mean_over_cases_and_regions() -> None:
    assert mean_scores(FIRST.scores) == pytest.approx({"WT": 0.75, "TC": 0.5, "ET": 1 / 6, "mean": 17 / 36})
    assert mean_scores([]) == {}
    history = History((replace(FIRST, scores=(score("a", 0.9, 0.9, 0.0),)),))
    assert history.would_be_best([score("a", 0.6, 0.6, 0.61)])
    assert not history.would_be_best([score("a", 1.0, 0.79, 0.0)])


@pytest.mark.parametrize("epochs", [(), (UNSCORED, replace(UNSCORED, step=750))], ids=["none", "not scored"])
def test_curves_are_drawn_of_any_history(epochs: tuple[Epoch, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_curves(History(epochs), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_curves_show_loss_dice_steps_and_the_best_epoch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    others = (replace(LAST, loss=3.0), replace(LAST, scores=FIRST.scores), replace(LAST, step=900), replace(LAST, is_best=True))
    for n, epoch in enumerate((LAST, LAST, *others)):
        draw_curves(History((FIRST, UNSCORED, epoch)), path := tmp_path / f"{n}.png")
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 5


def test_curves_and_events_are_left_out_without_their_extras_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with EventWriter(None, after_step=0) as events:
        events.add(FIRST)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert not draw_curves(HISTORY, tmp_path / "curves.png")
    with EventWriter(tmp_path / "tensorboard", after_step=0) as events:
        events.add(FIRST)
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_every_epoch_once_though_the_session_before_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventWriter(tmp_path, after_step=0) as events:
        events.add(FIRST)
        events.add(replace(UNSCORED, loss=9.0))  # after the last state that was written
    with EventWriter(tmp_path, after_step=FIRST.step) as events:
        for epoch in (UNSCORED, LAST):
            events.add(epoch)
    read: Any = EventAccumulator(str(tmp_path))
    read.Reload()
    found = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert found.keys() == {"loss", "learning_rate", "slices_per_s", *(f"dice/{of}" for of in ("WT", "TC", "ET", "mean"))}
    assert found["loss"] == [(250, 1.5), (500, 0.75), (600, pytest.approx(1 / 3))]  # events hold float32
    assert [step for step, _ in found["dice/mean"]] == [250, 600]
