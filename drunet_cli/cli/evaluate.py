"""`drunet evaluate`."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.brats import REGIONS, Convention, ReadLabels, volume_digits
from drunet_cli.cli import options
from drunet_cli.cli.console import Screen, result, table_of
from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, one_line, plural

if TYPE_CHECKING:
    from rich.table import Table

    from drunet_cli.cli.cases import Batch
    from drunet_cli.evaluation.evaluate import EvaluationTask, Statistics
    from drunet_cli.evaluation.pairs import Pairing

_STDIN: Final = "-"
_METRICS: Final = "Metrics"


def evaluate(
    prediction: Annotated[
        str,
        typer.Argument(
            metavar="PRED",
            help="Label map or folder of label maps; or, without REF, a .csv table with the columns case, prediction, "
            "reference, or - for that table on stdin.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="Label map or folder to compare with, such as a BraTS data set.", show_default=False
        ),
    ] = None,
    *,
    convention: Annotated[
        Convention,
        typer.Option(
            metavar="brats|lesionwise",
            help="Dice and HD95: brats, of whole regions; lesionwise, means over lesions, as BraTS 2023 ranked.",
            rich_help_panel=_METRICS,
        ),
    ] = Convention.BRATS,
    labels: Annotated[
        ReadLabels,
        typer.Option(
            metavar="NAME",
            help="What label values mean: auto (enhancing tumour is 4 or 3, whichever occurs), brats2020 (4), brats2023 (3) or "
            "brats2024 (3; 4 is the resection cavity).",
            rich_help_panel=_METRICS,
        ),
    ] = ReadLabels.AUTO,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, metavar="MM", help="How far apart surfaces may be for surface Dice, in mm.", rich_help_panel=_METRICS
        ),
    ] = 1.0,
    uncertainty: Annotated[
        bool,
        options.flag(
            "--uncertainty", help="Also score the maps of segment --uncertainty beside PRED, as BraTS 2020 did.", panel=_METRICS
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the bootstrap.", rich_help_panel=_METRICS)] = 0,
    allow_missing: Annotated[
        bool,
        options.flag("--allow-missing", help="Leave out cases that only PRED or REF has.", panel=options.OUTPUT),
    ] = False,
    worst: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Also list the N cases of lowest mean Dice, below the table.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            parser=options.path,
            metavar="FILE",
            help="Table to write as well, one row a case and region.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    xlsx: options.Workbook = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            parser=options.path,
            metavar="FILE.png",
            help="Picture to draw as well: box plots, cases as points. Needs the extra plot.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    jobs: options.Jobs = None,
) -> None:
    """Compare label maps with reference segmentations: the metrics of BraTS.

    Regions are WT (whole tumour), TC (tumour core) and ET (enhancing tumour).
    Folders are paired by case: CASE.nii.gz, CASE_seg.nii.gz, CASE-seg.nii.gz, at
    any depth. Printed is a table over cases: mean, SD, median, quartiles and the
    95 % bootstrap interval of the mean; of one case its scores. --json prints one
    object a case instead.

    drunet evaluate results BraTS2021_TrainingData
    """
    _check_options(prediction, reference, tolerance)
    files = _files(csv=csv, xlsx=xlsx, plot=plot)
    if json and worst is not None:
        raise MisuseError("--worst and --json exclude one another: --json prints every case")

    from drunet_cli.cli.cases import Batch
    from drunet_cli.evaluation.evaluate import EvaluationTask
    from drunet_cli.host import granted_cpus

    _check_outputs(files, overwrite=overwrite)
    pairing = _pairing(prediction, reference)
    _check_not_an_input(files.values(), prediction, pairing)
    screen = Screen(quiet=quiet)
    if pairing.missing:
        screen.note(pairing.missing_in_words(allowed=allow_missing))
    failures = pairing.unpaired if allow_missing else {**pairing.unpaired, **pairing.missing}
    n_cases = len(pairing.pairs) + len(failures)
    if n_cases == 0:
        raise CaseError(f"{prediction} and {reference}: have no case in common")
    two_files = reference is not None and not os.path.isdir(prediction)
    batch = Batch(screen, n_cases=n_cases, alone=two_files, json=json)
    for case, error in failures.items():
        batch.failed(case, error)
    tasks = [
        EvaluationTask(pair=pair, convention=convention, labels=labels, tolerance_mm=tolerance, uncertainty=uncertainty)
        for pair in pairing.pairs
    ]
    documents = _evaluate(tasks, batch, n_jobs=jobs or granted_cpus())
    if uncertainty and (without := sum(document["brain_image"] is None for document in documents)):
        screen.warning(
            f"{without} of {plural(len(documents), 'case')} without a T1 image beside the reference: FTP, FTN and AUROC count "
            "the air around the head too, unlike those of BraTS 2020"
        )
    unwritten = _write(documents, files, overwrite=overwrite) if documents else None
    if documents and not json:  # also where a file could not be written
        _print_tables(documents, seed=seed, worst=worst)
    batch.finish(f"{plural(batch.n_done, 'case')} compared, convention {convention}", unwritten)


def _check_options(prediction: str, reference: str | None, tolerance_mm: float) -> None:
    if "" in (prediction, reference):
        raise MisuseError("PRED and REF: an empty path; an unset variable?")
    if not math.isfinite(tolerance_mm):
        raise MisuseError(f"--tolerance {tolerance_mm}: must be a length in mm")


def _files(*, csv: Path | None, xlsx: Path | None, plot: Path | None) -> dict[str, Path]:
    """The files that are wanted, by the name of their option."""
    if plot is not None and (plot.suffix.lower() != ".png" or plot == csv):
        raise MisuseError(f"--plot {plot}: name a .png file of its own")
    if xlsx is not None and (xlsx.suffix.lower() != ".xlsx" or xlsx == csv):
        raise MisuseError(f"--xlsx {xlsx}: name a .xlsx file of its own")
    files = {"csv": csv, "xlsx": xlsx, "plot": plot}
    return {name: path for name, path in files.items() if path is not None}


def _check_outputs(files: Mapping[str, Path], *, overwrite: bool) -> None:
    from drunet_cli.io.atomic import check_writable

    if "plot" in files:
        from drunet_cli.evaluation.evaluate import check_plottable

        check_plottable()
    for path in files.values():
        check_writable(path, overwrite=overwrite)


def _pairing(prediction: str, reference: str | None) -> "Pairing":
    from drunet_cli.cli.cases import read_stdin
    from drunet_cli.evaluation.pairs import pair_up, parse_table, read_table

    if reference is not None:
        return pair_up(Path(prediction), Path(reference))
    if prediction == _STDIN:
        return parse_table(read_stdin(), folder=Path(), name="stdin")
    if not prediction.lower().endswith(".csv"):
        raise MisuseError(f"{prediction}: missing REF; alone it must be a table .csv, or - for one on stdin")
    return read_table(Path(prediction))


def _check_not_an_input(outputs: Iterable[Path], prediction: str, pairing: "Pairing") -> None:
    from drunet_cli.io.atomic import check_not_an_input

    inputs = [Path(prediction), *(path for pair in pairing.pairs for path in (pair.prediction, pair.reference))]
    for output in outputs:
        check_not_an_input(output, inputs)


def _evaluate(tasks: "Sequence[EvaluationTask]", batch: "Batch", *, n_jobs: int) -> list[Mapping[str, Any]]:
    """The objects of all cases that could be compared, by case."""
    from drunet_cli.evaluation.evaluate import evaluate
    from drunet_cli.processes import run_tasks

    documents: list[Mapping[str, Any]] = []
    with batch.bar(), closing(run_tasks(evaluate, tasks, n_processes=n_jobs)) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                batch.failed(task.pair.case, outcome)
                continue
            documents.append(outcome)
            dice = ", ".join(f"{name} {scores['dice']:.3f}" for name, scores in outcome["regions"].items())
            warnings = [warning["message"] for warning in outcome["warnings"]]
            batch.done(None, outcome, note=f"{task.pair.case}: Dice {dice}", warnings=warnings)
    return sorted(documents, key=lambda document: str(document["case"]))


def _write(documents: Sequence[Mapping[str, Any]], files: Mapping[str, Path], *, overwrite: bool) -> OutputError | None:
    """Write the files that are wanted; return why one could not be written."""
    from drunet_cli.evaluation.evaluate import box_plots, encode_csv, encode_xlsx
    from drunet_cli.io.atomic import publish

    encoders = {"csv": encode_csv, "xlsx": encode_xlsx, "plot": box_plots}
    try:
        for name, path in files.items():
            publish(path, encoders[name](documents), overwrite=overwrite)
    except OutputError as error:
        return error
    return None


def _print_tables(documents: Sequence[Mapping[str, Any]], *, seed: int, worst: int | None) -> None:
    """Statistics over cases, or the scores of the only one; and the worst cases, if any are wanted."""
    from drunet_cli.evaluation.evaluate import SCORES, UNCERTAINTY_SCORES, scores_of, summarise, worst_cases

    first, labels, screen = documents[0], {**SCORES, **UNCERTAINTY_SCORES}, Screen()
    subject = first["case"] if len(documents) == 1 else plural(len(documents), "case")
    title = f"Convention {first['convention']}, surface Dice at {first['tolerance_mm']:g} mm, {subject}"
    if len(documents) == 1:
        result(one_line(title))  # above the table and not in it, whose columns are narrower
        screen.table(case_table(scores_of(first), labels))
    else:
        screen.table(statistics_table(title, summarise(documents, seed=seed), labels))
    if worst is not None:
        screen.table(worst_table(worst_cases(documents, worst)))


def statistics_table(title: str, summary: Mapping[str, Mapping[str, "Statistics"]], labels: Mapping[str, str]) -> "Table":
    """One row a region and score. summary: by region, then score; labels: names of the scores."""
    rows = []
    for region, scores in summary.items():
        for score, found in scores.items():
            numbers = (found.mean, found.sd, found.median, found.lower_quartile, found.upper_quartile)
            interval = f"{_fixed(found.low, score)} to {_fixed(found.high, score)}"
            rows.append((region, labels[score], *(_fixed(number, score) for number in numbers), interval))
    table = table_of(("REGION", "SCORE", "MEAN", "SD", "MEDIAN", "Q1", "Q3", "95 % OF MEAN"), rows, numbers_from=2)
    table.title, table.title_justify, table.title_style = title, "left", ""
    return table


def case_table(scores: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> "Table":
    """One row a region and score of one case."""
    rows = [
        (region, labels[score], _fixed(number, score))
        for region, of_region in scores.items()
        for score, number in of_region.items()
    ]
    return table_of(("REGION", "SCORE", "VALUE"), rows, numbers_from=2)


def worst_table(documents: Sequence[Mapping[str, Any]]) -> "Table":
    """One row a case: the Dice of the regions."""
    rows = [(document["case"], *(f"{document['regions'][region]['dice']:.3f}" for region in REGIONS)) for document in documents]
    return table_of(("WORST CASES, DICE OF", *REGIONS), rows, numbers_from=1)


def scores_table(document: Mapping[str, Any]) -> "Table":
    """One row a region: how one label map compares with its reference. document: as `evaluation.evaluate` gives it."""
    numbers = ("dice", "hd95_mm", "volume_ml", "reference_volume_ml")
    rows = [(region, *(_fixed(scores[name], name) for name in numbers)) for region, scores in document["regions"].items()]
    return table_of(("REGION", "DICE", "HD95 mm", "VOLUME mL", "REFERENCE mL"), rows, numbers_from=1)


def _fixed(number: float, score: str) -> str:
    """A number as tables show it; a number that rounds to 0 has no sign."""
    if score.endswith("volume_ml"):
        return volume_digits(number)
    return f"{number:z.1f}" if score.endswith(("_mm", "_ml")) else f"{number:z.3f}"
