"""What a training has done, as tables, curves and events."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image

from drunet_cli.errors import OutputError
from drunet_cli.training.history import Epoch, EventWriter, History, draw_curves, history_of, write_tables
from drunet_cli.training.validation import CaseScore


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
BLIND: Final = Epoch(epoch=2, step=500, learning_rate=1e-3, loss=0.75, seconds=60.0, slices_per_s=41.0, waiting=0.0)
LAST: Final = Epoch(
    epoch=3, step=600, learning_rate=1e-5, loss=1 / 3, scores=(score("a", 0.9, 0.8, 0.7), score("b", 0.7, 0.6, 0.5))
)
HISTORY: Final = History((FIRST, BLIND, LAST))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """metrics.csv and cases.csv of the history."""
    metrics, cases = tmp_path / "metrics.csv", tmp_path / "cases.csv"
    write_tables(HISTORY, metrics, cases)
    return metrics, cases


def test_metrics_are_a_row_an_epoch(tables: tuple[Path, Path]) -> None:
    assert tables[0].read_text().splitlines() == [
        "epoch,step,learning_rate,loss,dice_WT,dice_TC,dice_ET,dice_mean,best,seconds,slices_per_s,waiting",
        # Means of the two cases by hand, to six digits: (0 + 1/3) / 2, and the mean of the three.
        "1,250,0.00123457,1.5,0.75,0.5,0.166667,0.472222,1,61.25,40.8163,0.125",
        "2,500,0.001,0.75,,,,,0,60.0,41.0,0.0",
        "3,600,1e-05,0.333333,0.8,0.7,0.6,0.7,0,0.0,0.0,0.0",
    ]


def test_cases_are_a_row_for_each_held_out_case_of_each_epoch(tables: tuple[Path, Path]) -> None:
    assert tables[1].read_text().splitlines() == [
        "epoch,step,case,dice_WT,dice_TC,dice_ET",
        "1,250,a,0.5,0.25,0.0",
        "1,250,b,1.0,0.75,0.333333",
        "3,600,a,0.9,0.8,0.7",
        "3,600,b,0.7,0.6,0.5",
    ]


def test_tables_of_a_training_that_has_not_ended_an_epoch_are_headers(tmp_path: Path) -> None:
    write_tables(History(), tmp_path / "metrics.csv", tmp_path / "cases.csv")
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("metrics.csv", "cases.csv")] == [1, 1]


def test_tables_replace_those_of_the_epoch_before(tables: tuple[Path, Path]) -> None:
    write_tables(History((FIRST,)), *tables)
    assert [len(rows_of(path)) for path in tables] == [1, 2]


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


def with_dice(*dice: float | None) -> History:
    """Epochs as the loop records them, of one case with this Dice in all regions, or without held-out cases."""
    history = History()
    for n, value in enumerate(dice, start=1):
        scores = () if value is None else (score("a", value, value, value),)
        epoch = Epoch(epoch=n, step=n, learning_rate=1, loss=1, scores=scores, is_best=history.would_be_best(scores))
        history = History((*history.epochs, epoch))
    return history


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((0.5,), 1),
        ((0.5, 0.6), 2),
        ((0.6, 0.5), 1),
        ((0.5, 0.5), 1),  # only what is better than all before
        ((0.5, 0.7, 0.6, 0.65), 2),
        ((0.0, 0.0), 1),
        ((None, None, None), 3),  # none is held out: the last
        ((None, 0.1), 2),
        ((None, 0.3, 0.2), 2),
    ],
)
def test_best_epoch_is_the_first_of_the_highest_dice_or_without_held_out_cases_the_last(
    dice: tuple[float | None, ...], best: int
) -> None:
    found = with_dice(*dice).best
    assert found is not None
    assert found.epoch == best


def test_training_without_an_epoch_has_no_best_one() -> None:
    assert History().best is None


def test_best_is_judged_by_the_mean_of_the_regions() -> None:
    history = History((replace(FIRST, scores=(score("a", 0.9, 0.9, 0.0),)),))
    assert history.would_be_best([score("a", 0.6, 0.6, 0.61)])
    assert not history.would_be_best([score("a", 1.0, 0.79, 0.0)])


def test_history_survives_json() -> None:
    assert history_of(json.loads(json.dumps(HISTORY.as_json()))) == HISTORY


def test_loss_that_no_decimal_states_survives_json() -> None:
    history = History((replace(FIRST, loss=0.1 + 0.2, learning_rate=math.pi * 1e-9),))
    assert history_of(json.loads(json.dumps(history.as_json()))) == history


@pytest.mark.parametrize(
    "documents",
    [
        [{"epoch": 1}],
        [{**FIRST.__dict__, "colour": "red"}],
        [{**FIRST.__dict__, "scores": [{"case": "a"}]}],
        [3],
    ],
    ids=["settings missing", "unknown setting", "score without Dice", "a number"],
)
def test_document_that_is_no_history_raises_what_its_reader_expects(documents: list[Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        history_of(documents)


CURVES: Final = {
    "every kind of epoch": HISTORY,
    "one epoch": History((FIRST,)),
    "nothing held out": History((BLIND, replace(BLIND, step=750))),
    "no epoch": History(),
}


@pytest.mark.parametrize("history", CURVES.values(), ids=CURVES)
def test_curves_are_a_picture(history: History, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (960, 600))


@pytest.mark.parametrize(
    "other",
    [replace(LAST, loss=3.0), replace(LAST, scores=FIRST.scores), replace(LAST, step=900), replace(LAST, is_best=True)],
    ids=["loss", "Dice", "steps", "best"],
)
def test_curves_show_what_the_history_holds(other: Epoch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for n, epoch in enumerate((LAST, LAST, other)):
        draw_curves(History((FIRST, BLIND, epoch)), path := tmp_path / f"{n}.png")
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_curves_are_left_out_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_curves(HISTORY, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_process_that_writes_nothing_writes_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with EventWriter(None, after_step=0) as events:
        events.add(FIRST)
    assert not list(tmp_path.iterdir())


def test_events_are_left_out_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with EventWriter(tmp_path / "tensorboard", after_step=0) as events:
        events.add(FIRST)
    assert not list(tmp_path.iterdir())


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every curve that TensorBoard would show."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_loss_rate_speed_and_dice_over_the_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with EventWriter(tmp_path, after_step=0) as events:
        for epoch in HISTORY.epochs:
            events.add(epoch)
    found = scalars(tmp_path)
    assert found.keys() == {"loss", "learning_rate", "slices_per_s", *(f"dice/{of}" for of in ("WT", "TC", "ET", "mean"))}
    assert [step for step, _ in found["loss"]] == [250, 500, 600]
    assert [value for _, value in found["loss"]] == pytest.approx([1.5, 0.75, 1 / 3])  # events hold float32
    assert [step for step, _ in found["dice/mean"]] == [250, 600]


def test_tensorboard_hides_what_a_killed_run_did_after_its_last_state(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with EventWriter(tmp_path, after_step=0) as events:
        events.add(FIRST)
        events.add(replace(BLIND, loss=9.0))
    with EventWriter(tmp_path, after_step=FIRST.step) as events:
        events.add(BLIND)
    assert scalars(tmp_path)["loss"] == [(250, 1.5), (500, 0.75)]
