"""`drunet report`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drunet_cli.cli import options
from drunet_cli.errors import MisuseError, OutputError, plural

if TYPE_CHECKING:
    from drunet_cli.cli.console import Screen
    from drunet_cli.report.page import CaseFiles
    from drunet_cli.report.runs import Record, Runs


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT_DIRS",
            help="Folders that drunet segment wrote, searched at any depth, or single .json sidecars.",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="FILE.html",
            help="Page to write: table, previews, distribution of volumes, provenance. It needs no other file.",
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
            help="Table to write, one row a case.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    xlsx: options.Workbook = None,
    viewer: Annotated[
        bool,
        options.flag(
            "--viewer",
            help="A page for each case too, in a folder beside FILE.html and linked from its rows: all slices with their "
            "labels, at most 6 MB a case. The images must be where they were when they were segmented.",
            panel=options.OUTPUT,
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            parser=options.path,
            metavar="REF",
            help="Reference label maps that --viewer shows beside the predicted ones, with Dice: a folder, as for evaluate, or "
            "the file of one case.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Put the results of any number of runs on one page, or in one table.

    Volumes (mL), warnings and provenance come from the sidecars, the .json beside
    each label map; failed cases from summary.csv. A label map that was
    changed since is reported. Previews are shown where segment --preview drew
    them. Without -o, --csv and --xlsx a table is printed.
    --viewer adds a page a case.

    drunet report results -o report.html
    drunet report results -o report.html --viewer
    """
    if "" in runs:
        raise MisuseError("OUT_DIRS: an empty path; an unset variable?")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise MisuseError(f"-o {output}: name a .html file, or give --csv for a table")
    if csv is not None and csv.suffix.lower() in (".html", ".htm", ".json"):
        raise MisuseError(f"--csv {csv}: name a .csv file")
    if xlsx is not None and (xlsx.suffix.lower() != ".xlsx" or xlsx == csv):
        raise MisuseError(f"--xlsx {xlsx}: name a .xlsx file of its own")
    if viewer and output is None:
        raise MisuseError("--viewer: its pages lie beside the report; name this by -o FILE.html")
    if reference is not None and not viewer:
        raise MisuseError("--reference: is for --viewer; drunet evaluate compares without it")

    from drunet_cli.cli.console import Screen, cohort_table, result, result_json
    from drunet_cli.io.atomic import check_writable, publish
    from drunet_cli.io.tables import encode_table, encode_workbook
    from drunet_cli.report.runs import merge_messages, read_runs
    from drunet_cli.segmentation.summary import COLUMNS, columns_of, is_summary

    outputs = [path for path in (csv, xlsx, output) if path is not None]
    for path in reversed(outputs):
        check_writable(path, overwrite=overwrite)
    if csv is not None and csv.exists() and is_summary(csv):
        raise OutputError(f"{csv}: is the summary of a run, which tells of its failed cases; name another file")
    screen = Screen(quiet=quiet)
    found = read_runs([Path(run) for run in runs])
    for notice in (*merge_messages(_problems(found.records)), *found.notices):
        screen.warning(notice)
    rows = [{**columns_of(record.row), "folder": str(record.folder)} for record in found.records]
    viewers = None
    if viewer and output is not None:  # first: references that are not there, and pages that are, end the command
        viewers = _viewers(found, output, screen, reference, overwrite=overwrite)
    for table, encode in ((csv, encode_table), (xlsx, encode_workbook)):
        if table is not None:
            # The last column tells a table from a run's summary, should it lie in the folder of one.
            publish(table, encode([*COLUMNS, "folder"], rows), overwrite=overwrite)
    if output is not None:
        _write_page(found, output, screen, viewers, overwrite=overwrite)
    if json:
        for row in rows:
            result_json(row)
    elif outputs:
        for path in outputs:
            result(str(path))
    else:
        Screen().table(cohort_table([record.row for record in found.records]))
    n_failed = sum(record.row.has_failed for record in found.records)
    n_warned = sum(bool(record.row.warnings) for record in found.records)
    screen.note(f"{plural(len(rows), 'case')}: {len(rows) - n_failed} segmented, {n_failed} failed; {n_warned} with warnings")


def _problems(records: Sequence["Record"]) -> Iterator[tuple[str, str]]:
    """Case and label map, and the fault of the label map."""
    for record in records:
        if record.problem:
            yield f"{record.row.case}: {record.row.output}", record.problem.removeprefix(f"{record.row.output}: ")


def _viewers(runs: "Runs", path: Path, screen: "Screen", reference: Path | None, *, overwrite: bool) -> "CaseFiles":
    """Write the pages of the cases, in a folder beside the report."""
    from drunet_cli.host import granted_cpus
    from drunet_cli.io.atomic import check_writable
    from drunet_cli.report.page import NO_FILES, CaseFiles, plan_pages, references_of, write_pages

    pages = plan_pages(runs.records, path.with_name(f"{path.stem}_views"))
    for page in pages.values():
        check_writable(page, overwrite=overwrite)
    references = NO_FILES if reference is None else references_of(runs.records, reference)
    with screen.case_bar(len(pages)) as advance:
        viewers = write_pages(
            runs.records, pages, references.by_label_map, overwrite=overwrite, n_threads=granted_cpus(), on_progress=advance
        )
    return CaseFiles(viewers.by_label_map, (*references.notices, *viewers.notices))


def _write_page(runs: "Runs", path: Path, screen: "Screen", viewers: "CaseFiles | None", *, overwrite: bool) -> None:
    from drunet_cli.host import granted_cpus
    from drunet_cli.io.atomic import publish
    from drunet_cli.report.page import encode_page, pages_beside_label_maps, read_thumbnails

    viewers = pages_beside_label_maps(runs.records) if viewers is None else viewers
    with screen.case_bar(len(runs.records)) as advance:
        thumbnails = read_thumbnails(runs.records, n_threads=granted_cpus(), on_progress=advance)
    for notice in (*viewers.notices, *thumbnails.notices):
        screen.warning(notice)
    publish(path, encode_page(runs, thumbnails, beside=path.parent, viewers=viewers), overwrite=overwrite)
