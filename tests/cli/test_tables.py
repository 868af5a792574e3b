"""What stands in the tables for people, and where."""

import io
import logging
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from drunet_cli.brats import REGIONS, regions_in_words
from drunet_cli.cli.console import (
    Screen,
    case_table,
    cohort_table,
    fields_table,
    scores_table,
    statistics_table,
    table_of,
    worst_table,
)
from drunet_cli.evaluation.evaluate import SCORES, statistics
from drunet_cli.segmentation.summary import Status, SummaryRow
from drunet_cli.weights.registry import BUNDLED, COMPACT


def lines_of(table: Table) -> list[str]:
    drawn = io.StringIO()
    Console(file=drawn, width=80, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


def scored(case: str, dice: float) -> dict[str, Any]:
    return {"case": case, "regions": {region: {"dice": dice} for region in REGIONS}}


def test_numbers_end_below_one_another_and_names_begin_so() -> None:
    assert lines_of(worst_table([scored("a", 0.5), scored("longer", 1)])) == [
        "WORST CASES, DICE OF     WT     TC     ET",
        "a                     0.500  0.500  0.500",
        "longer                1.000  1.000  1.000",
    ]


def test_what_rounds_to_nothing_has_no_sign() -> None:
    scores = {"volume_error_ml": -0.04, "dice": -0.0}
    shown = [*lines_of(case_table({"WT": scores}, SCORES))]
    over_cases = {"WT": {name: statistics([number, number], seed=0) for name, number in scores.items()}}
    shown += lines_of(statistics_table("two", over_cases, SCORES))
    assert [line.split()[-1] for line in shown[1:3]] == ["0.0", "0.000"]
    assert not [line for line in shown if "-" in line]


def test_volumes_have_the_same_digits_in_tables_and_in_lines() -> None:
    volumes = {"WT": 12.345, "TC": 0.0214, "ET": 0.0}
    row = SummaryRow(case="a", status=Status.DONE, volumes_ml=volumes)
    assert lines_of(cohort_table([row]))[1].split()[2:] == ["12.3", "0.021", "0.0"]
    assert regions_in_words(volumes) == "WT 12.3 mL, TC 0.021 mL, ET 0.0 mL"
    scores = {"dice": 1.0, "hd95_mm": 0.0, "volume_ml": 0.0214, "reference_volume_ml": 12.345}
    assert lines_of(scores_table({"regions": {"WT": scores}}))[1].split() == ["WT", "1.000", "0.0", "0.021", "12.3"]


@pytest.mark.parametrize("quiet", [False, True])
def test_what_a_room_logs_is_a_warning_like_others(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Screen(quiet=True)
    Screen(quiet=quiet)
    logging.getLogger("drunet_cli").warning("a %s", "note")
    assert capsys.readouterr() == ("", "" if quiet else "Warning: a note\n")


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().table(fields_table({"path": "w[red]/:brain:.h5"}))
    assert capsys.readouterr().out == "path  w[red]/:brain:.h5\n"


def test_fields_without_a_value_are_left_out() -> None:
    assert lines_of(fields_table({"name": "w", "origin": "", "dropout": None, "base_width": 0})) == [
        "name        w",
        "base_width  0",
    ]


def test_a_warning_that_a_case_has_twice_is_counted() -> None:
    row = SummaryRow(case="a", status=Status.DONE, warnings=("modality-name", "resampled", "modality-name"))
    line = lines_of(cohort_table([row]))[1]
    assert line.startswith("a     done (!)  ")
    assert line.endswith("  2 x modality-name, resampled")


def test_what_the_weights_are_for_stands_once_below_the_cases() -> None:
    rows = [SummaryRow(case=case, status=Status.DONE, weights_sha256=(BUNDLED[COMPACT].sha256,)) for case in "ab"]
    below = " ".join(lines_of(cohort_table(rows))[3:])
    assert below == "weights compact: for trying and testing, not for research results"
    assert len(lines_of(cohort_table([replace(row, weights_sha256=("5" * 64,)) for row in rows]))) == 3


@pytest.mark.parametrize("name", ["[red]case", "a\nb", "a\x1b[31mb"])
def test_a_name_is_printed_as_it_is_and_on_one_line(name: str) -> None:
    row = SummaryRow(case=name, status=Status.DONE, volumes_ml=dict.fromkeys(REGIONS, 1.25))
    printed = {"[red]case": "[red]case", "a\nb": "a b", "a\x1b[31mb": "a [31mb"}[name]
    assert lines_of(cohort_table([row]))[1].startswith(f"{printed}  ")
    assert lines_of(table_of(("CASE", "STATE"), [(name, "new")]))[1].startswith(f"{printed}  ")
