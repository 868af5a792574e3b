"""Tables for people, a function for each: what a command found or did, in rows and columns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drunet_cli.brats import REGIONS
from drunet_cli.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from drunet_cli.evaluation.tables import Statistics
    from drunet_cli.segmentation.summary import SummaryRow


def weights_table(rows: Sequence[tuple[str, str, str]]) -> "Table":
    """One row a set of weights: name, place, summary."""
    from rich.text import Text

    table = _table("NAME", "WHERE", "DESCRIPTION")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def fields_table(document: Mapping[str, Any]) -> "Table":
    """One row a field that has a value."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in document.items():
        if value not in (None, ""):
            table.add_row(name, str(value))
    return table


def cohort_table(rows: Sequence["SummaryRow"]) -> "Table":
    """What became of cases, a row each: volumes in mL."""
    from rich.text import Text

    table = _table("CASE", "STATUS", *(f"{region} mL" for region in REGIONS), "NOTES")
    for column in table.columns[2:-1]:
        column.justify = "right"
    for row in rows:
        volumes = (f"{row.volumes_ml[region]:.1f}" if region in row.volumes_ml else "" for region in REGIONS)
        told = [code if n == 1 else f"{n} x {code}" for code, n in Counter(row.warnings).items()]
        table.add_row(Text(one_line(row.case)), row.status, *volumes, Text(one_line(row.error or ", ".join(told))))
    return table


def plan_table(rows: Sequence[tuple[str, ...]], *, seg: bool) -> "Table":
    """What a dry run has found: a case, what is there of it, what would be done, and where it is or what is wrong.

    seg: whether the rows say, before the folder, which cases have a segmentation.
    """
    from rich.text import Text

    table = _table("CASE", "STATE", "WOULD", *(["SEG"] if seg else []), "FOLDER")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def training_plan_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """What a dry run of a training has found: a row a case."""
    from rich.text import Text

    table = _table("CASE", "FOR", "IN STORE", "SLICES", "WITH TUMOUR", numbers_from=3)
    for row in rows:
        stored = "yes" if row["in_store"] else "no"
        table.add_row(Text(one_line(row["case"])), row["split"], stored, str(row["slices"]), str(row["tumour_slices"]))
    return table


def statistics_table(title: str, summary: Mapping[str, Mapping[str, "Statistics"]], labels: Mapping[str, str]) -> "Table":
    """One row a region and score. summary: by region and score; labels: of the scores."""
    table = _table("REGION", "SCORE", "MEAN", "SD", "MEDIAN", "Q1", "Q3", "95 % OF MEAN", numbers_from=2)
    table.title, table.title_justify, table.title_style = title, "left", ""
    for region, scores in summary.items():
        for score, found in scores.items():
            numbers = (found.mean, found.sd, found.median, found.lower_quartile, found.upper_quartile)
            interval = f"{_fixed(found.low, score)} to {_fixed(found.high, score)}"
            table.add_row(region, labels[score], *(_fixed(number, score) for number in numbers), interval)
    return table


def case_table(scores: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> "Table":
    """The same of one case."""
    table = _table("REGION", "SCORE", "VALUE", numbers_from=2)
    for region, of_region in scores.items():
        for score, number in of_region.items():
            table.add_row(region, labels[score], _fixed(number, score))
    return table


def worst_table(documents: Sequence[Mapping[str, Any]]) -> "Table":
    """One row a case: Dice of the regions."""
    from rich.text import Text

    table = _table("WORST CASES, DICE OF", *REGIONS, numbers_from=1)
    for document in documents:
        dice = (f"{document['regions'][region]['dice']:.3f}" for region in REGIONS)
        table.add_row(Text(one_line(document["case"])), *dice)
    return table


def scores_table(document: Mapping[str, Any]) -> "Table":
    """One row a region: how one label map compares with its reference, of the object that `evaluation.evaluate` gives."""
    table = _table("REGION", "DICE", "HD95 mm", "VOLUME mL", "REFERENCE mL", numbers_from=1)
    for region, scores in document["regions"].items():
        numbers = (_fixed(scores[score], score) for score in ("hd95_mm", "volume_ml", "reference_volume_ml"))
        table.add_row(region, f"{scores['dice']:.3f}", *numbers)
    return table


def _fixed(number: float, score: str) -> str:
    """A number as tables show it; what rounds to 0 has no sign."""
    return f"{number:z.1f}" if score.endswith(("_mm", "_ml")) else f"{number:z.3f}"


def _table(*columns: str, numbers_from: int | None = None) -> "Table":
    """numbers_from: the first column that holds numbers, if any does."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if numbers_from is None or n < numbers_from else "right")
    return table
