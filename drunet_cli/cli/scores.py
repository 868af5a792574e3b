"""What `drunet evaluate` prints and writes of the cases that it compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drunet_cli.cli.console import Screen, case_table, result, statistics_table, worst_table
from drunet_cli.errors import one_line, plural
from drunet_cli.evaluation import evaluate
from drunet_cli.io.atomic import remove_stale, write_atomically


def print_tables(documents: Sequence[Mapping[str, Any]], *, seed: int, worst: int | None) -> None:
    """Statistics over cases, or the scores of the only one; and the worst cases, if that many are wanted."""
    first = documents[0]
    of_what = first["case"] if len(documents) == 1 else plural(len(documents), "case")
    title = f"Convention {first['convention']}, surface Dice at {first['tolerance_mm']:g} mm, {of_what}"
    screen = Screen()
    labels = {**evaluate.SCORES, **evaluate.UNCERTAINTY_SCORES}
    if len(documents) == 1:
        result(one_line(title))  # above the table and not in it, whose columns are narrower
        screen.table(case_table(evaluate.scores_of(first), labels))
    else:
        screen.table(statistics_table(title, evaluate.summarised(documents, seed=seed), labels))
    if worst is not None:
        screen.table(worst_table(evaluate.worst(documents, worst)))


def write(documents: Sequence[Mapping[str, Any]], *, csv: Path | None, plot: Path | None, overwrite: bool) -> None:
    """Write the files that are wanted. Raises OutputError."""
    for path in (csv, plot):
        if path is not None:
            remove_stale(path)
    if csv is not None:
        with write_atomically(csv, overwrite=overwrite) as stream:
            stream.write(evaluate.as_csv(documents).encode(errors="surrogateescape"))
    if plot is not None:
        from drunet_cli.evaluation.plots import box_plots

        with write_atomically(plot, overwrite=overwrite) as stream:
            stream.write(box_plots(documents))
