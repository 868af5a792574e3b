"""What stands in the tables for people, and where."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from drunet_cli.brats import REGIONS
from drunet_cli.cli.tables import cohort_table, fields_table, plan_table, worst_table
from drunet_cli.segmentation.summary import Status, SummaryRow


def lines_of(table: Table) -> list[str]:
    drawn = io.StringIO()
    Console(file=drawn, width=80).print(table)
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


def scored(case: str, dice: float) -> dict[str, Any]:
    return {"case": case, "regions": {region: {"dice": dice} for region in REGIONS}}


def test_numbers_end_below_one_another_and_names_begin_so() -> None:
    assert lines_of(worst_table([scored("a", 0.5), scored("longer", 1)])) == [
        "WORST CASES, DICE OF     WT     TC     ET",
        "a                     0.500  0.500  0.500",
        "longer                1.000  1.000  1.000",
    ]


def test_fields_without_a_value_are_left_out() -> None:
    assert lines_of(fields_table({"name": "w", "origin": "", "dropout": None, "base_width": 0})) == [
        "name        w",
        "base_width  0",
    ]


@pytest.mark.parametrize("name", ["[red]case", "a\nb", "a\x1b[31mb"])
def test_a_name_is_printed_as_it_is_and_on_one_line(name: str) -> None:
    row = SummaryRow(case=name, status=Status.DONE, volumes_ml=dict.fromkeys(REGIONS, 1.25))
    printed = {"[red]case": "[red]case", "a\nb": "a b", "a\x1b[31mb": "a [31mb"}[name]
    assert lines_of(cohort_table([row]))[1].startswith(f"{printed}  ")
    assert lines_of(plan_table([(name, "new", "segment", "folder")], seg=False))[1].startswith(f"{printed}  ")
