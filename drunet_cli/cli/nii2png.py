"""`drunet convert nii2png`."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drunet_cli.brats import Modality
from drunet_cli.cli import options
from drunet_cli.errors import DrunetError, MisuseError, OutputError, plural

if TYPE_CHECKING:
    from drunet_cli.cli.cases import Batch
    from drunet_cli.cli.console import Screen
    from drunet_cli.conversion.nii2png import ConvertedCase, PlannedSlices, SliceSettings


def nii2png(
    cases: options.Cases = None,
    *,
    t1: Annotated[Path | None, options.modality("T1", required=False)] = None,
    t1ce: Annotated[Path | None, options.modality("T1 with contrast agent (T1ce, T1Gd)", required=False)] = None,
    t2: Annotated[Path | None, options.modality("T2", required=False)] = None,
    flair: Annotated[Path | None, options.modality("T2-FLAIR", required=False)] = None,
    seg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Segmentation, if there is one; its enhancing tumour is 3 or 4.",
            show_default=False,
            rich_help_panel=options.IMAGES,
        ),
    ] = None,
    case: options.CaseName = None,
    pattern: options.Pattern = None,
    channels: options.Channels = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="DIR",
            help="Folder to write the slices into. Required.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    skip_blank: Annotated[
        bool,
        typer.Option("--skip-blank", help="Leave out slices with neither brain nor label.", rich_help_panel=options.OUTPUT),
    ] = False,
    skip_existing: options.SkipExisting = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    jobs: options.Jobs = None,
) -> None:
    """Write the axial slices of cases as PNG, pixel for pixel as the published code.

    DIR/images gets CASE_slice_Z.png: red FLAIR, green T1ce, blue T1, alpha T2.
    DIR/masks gets label slices of the same names, where there is a segmentation:
    class index 0 background, 1 NCR, 2 ED, 3 ET. DIR/slices.csv has a row a slice.
    DIR/cases has a JSON file a case, whose path is printed on stdout.
    Volumes are turned to the BraTS orientation and padded or cropped to
    240 x 240 pixels; their voxels must be 1 mm.

    drunet convert nii2png BraTS2021_TrainingData -o slices
    """
    given = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
    one_case = any(value is not None for value in (*given.values(), seg, case))
    if output is None:
        raise MisuseError("missing -o: name a folder for the slices")
    if not cases and not one_case:
        raise MisuseError("missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair")
    if one_case and (cases or pattern or channels):
        raise MisuseError("CASES (--pattern, --channels) and --t1 --t1ce --t2 --flair --seg --case exclude one another")
    options.check_exclusive(skip_existing=skip_existing, overwrite=overwrite)

    from drunet_cli.cli.cases import Batch, PlanRow, case_of_files, cohort_of, print_plan
    from drunet_cli.cli.console import Screen
    from drunet_cli.conversion.nii2png import SliceSettings, plan_slices, remove_stale_slices
    from drunet_cli.host import granted_cpus
    from drunet_cli.io.discovery import Cohort

    if cases:
        cohort = cohort_of(cases, patterns=pattern or (), channels=channels)
    else:
        cohort = Cohort((case_of_files(given, name=case, segmentation=seg),), (), alone=True)
    screen = Screen(quiet=quiet)
    for note in cohort.notes:
        screen.warning(note)
    n_jobs = jobs or granted_cpus()
    settings = SliceSettings(
        folder=output,
        skip_blank=skip_blank,
        skip_existing=skip_existing,
        overwrite=overwrite,
        threads=max(1, n_jobs // max(1, len(cohort.cases))),
    )
    planned = plan_slices(cohort.cases, settings)
    stop = _stop(planned, settings)
    if dry_run:
        rows = [PlanRow(each.case, each.state, each.action) for each in planned]
        print_plan(rows, cohort, seg=True, json=json, quiet=quiet, stop=stop)
        return
    if stop is not None:
        raise stop
    batch = Batch(screen, n_cases=len(planned) + len(cohort.broken), alone=cohort.alone, json=json, resumes=True)
    for broken in cohort.broken:
        batch.failed(broken.name, broken.error)
    remove_stale_slices(settings.layout)
    try:
        converted = _convert(planned, settings, batch, n_jobs=n_jobs)
    finally:  # also of an interrupted run, which may have begun to replace cases that the table names
        unwritten = _write_manifest(settings, screen)
    n_labelled, n_skipped = (sum(flags) for flags in zip(*converted, strict=True)) if converted else (0, 0)
    left_out = f"; {n_skipped} were complete and left out" if n_skipped else ""
    batch.finish(f"{plural(len(converted), 'case')} in {output}, {n_labelled} with label slices{left_out}", unwritten)


def _stop(planned: Sequence["PlannedSlices"], settings: "SliceSettings") -> OutputError | None:
    """What would end the run before its first case."""
    from drunet_cli.conversion.nii2png import check_plan

    try:
        check_plan(planned, settings)
    except OutputError as error:
        return error
    return None


def _convert(
    planned: Sequence["PlannedSlices"], settings: "SliceSettings", batch: "Batch", *, n_jobs: int
) -> list[tuple[bool, bool]]:
    """Convert and report every case; whether each that succeeded has label slices, and whether it was left out."""
    from drunet_cli.conversion.nii2png import convert_case
    from drunet_cli.processes import run_tasks

    converted = []
    convert = partial(convert_case, settings=settings)
    with batch.bar(), closing(run_tasks(convert, planned, n_processes=n_jobs)) as outcomes:
        for each, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                batch.failed(each.case.name, outcome)
                continue
            converted.append((outcome.description.has_masks, outcome.skipped))
            warnings = [] if outcome.skipped else [warning.message for warning in outcome.description.warnings]
            batch.done(str(outcome.path), _document(outcome), note=_note(outcome), warnings=warnings)
    return converted


def _write_manifest(settings: "SliceSettings", screen: "Screen") -> OutputError | None:
    """Write the table of all slices, if there is or was any; an error of that, which is told after those of the cases."""
    from drunet_cli.conversion.dataset import write_manifest

    if not (settings.layout.manifest.exists() or any(settings.layout.cases.glob("*.json"))):
        return None
    try:
        for error in write_manifest(settings.layout):
            screen.warning(f"{error}; left out of {settings.layout.manifest}")
    except OutputError as error:
        return error
    return None


def _document(converted: "ConvertedCase") -> dict[str, Any]:
    """The object of --json."""
    description = converted.description
    return {
        "case": description.case,
        "description": str(converted.path),
        "slices": len(description.rows),
        "masks": len(description.rows) if description.has_masks else 0,
        "skipped": converted.skipped,
        "warnings": [warning._asdict() for warning in description.warnings],
        "seconds": round(converted.seconds, 3),
    }


def _note(converted: "ConvertedCase") -> str:
    description = converted.description
    slices = plural(len(description.rows), "slice") + (" and their label slices" if description.has_masks else "")
    done = "complete, left out" if converted.skipped else f"{converted.seconds:.1f} s"
    return f"{description.case}: {slices} ({done})"
