"""What `drunet segment` says on stderr of the cases that it is done with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from drunet_cli.cli.console import Screen, cohort_table, regions_in_words
from drunet_cli.errors import plural
from drunet_cli.segmentation.cohort import Status, SummaryRow, described_weights

_MOST_ROWS: Final = 40


def note_rows(rows: Sequence[SummaryRow], summary: Path, screen: Screen) -> None:
    """Show the table of several cases; of very many those alone that failed or have warnings."""
    remarkable = [row for row in rows if row.error or row.warnings]
    shown = sorted(rows if len(rows) <= _MOST_ROWS else remarkable[:_MOST_ROWS], key=lambda row: row.case)
    if shown and len(rows) > 1:
        screen.note_table(cohort_table(shown))
    if len(shown) < len(rows):
        screen.note(f"{plural(len(rows), 'case')}, all of them in {summary}")


def last_line(rows: Sequence[SummaryRow], *, n_done: int, output: Path, told_in: str | None) -> str:
    """How many cases are in the output, and how they came there. told_in: the name of the table, if it was written."""
    n_warned = sum(bool(row.warnings) for row in rows)
    warned = f", {n_warned} with warnings" + (f" (see {told_in})" if told_in else "") if n_warned else ""
    n_left_out = sum(row.status is Status.LEFT_OUT and not row.error for row in rows)
    were = "was" if n_left_out == 1 else "were"
    left_out = f"; {n_left_out} {were} complete and left out" if n_left_out else ""
    done = plural(n_done, "case") if n_done == len(rows) else f"{n_done} of {plural(len(rows), 'case')}"
    return f"{done} in {output}{warned}{left_out}"


def case_note(document: Mapping[str, Any], *, left_out: bool, seconds: float) -> str:
    """One case in one line: its volumes, how long it took, and with which weights."""
    volumes = regions_in_words(document["volumes_ml"])
    how = "complete, left out" if left_out else f"{seconds:.1f} s on {document['device']}"
    weights = " and ".join(str(each["name"]) for each in described_weights(document))
    return f"{document['case']}: {volumes} ({how}, weights {weights})"
