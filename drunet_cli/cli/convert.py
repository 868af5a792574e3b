"""`drunet convert nii2png` and `drunet convert png2nii`."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.brats import Labels, Modality, regions_in_words
from drunet_cli.cli import options
from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, join_some, plural

if TYPE_CHECKING:
    from drunet_cli.cli.cases import Batch
    from drunet_cli.cli.console import Screen
    from drunet_cli.conversion.dataset import SliceFile
    from drunet_cli.conversion.nii2png import ConvertedCase, PlannedSlices, SliceSettings
    from drunet_cli.conversion.png2nii import LabelMapSettings, PlannedLabelMap


_HELP: Final = """Convert cases to PNG slices, and label slices to label maps.

drunet convert nii2png BraTS2021_TrainingData -o slices

drunet convert png2nii slices --like BraTS2021_TrainingData -o label_maps
"""
app = typer.Typer(no_args_is_help=True, add_completion=False, help=_HELP)


@app.command()
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
            parser=options.path,
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
        options.flag("--skip-blank", help="Leave out slices with neither brain nor label.", panel=options.OUTPUT),
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
    if output is None:
        raise MisuseError("missing -o: name a folder for the slices")
    files = {"--t1": t1, "--t1ce": t1ce, "--t2": t2, "--flair": flair, "--seg": seg, "--case": case}
    options.check_cases(cases, files, {"--pattern": pattern, "--channels": channels})
    options.check_exclusive(skip_existing=skip_existing, overwrite=overwrite)

    from drunet_cli.cli.cases import Batch, PlanRow, error_of, find_cohort, print_plan
    from drunet_cli.cli.console import Screen
    from drunet_cli.conversion.nii2png import SliceSettings, check_plan, plan_slices, remove_stale_slices
    from drunet_cli.host import granted_cpus

    cohort = find_cohort(cases, given, name=case, patterns=pattern, channels=channels, segmentation=seg)
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
    stop = error_of(lambda: check_plan(planned, settings))
    if dry_run:
        rows = [PlanRow(each.case, each.state, each.action) for each in planned]
        print_plan(rows, cohort, screen=screen, seg=True, json=json, stop=stop)
        return
    if stop is not None:
        raise stop
    batch = Batch(screen, n_cases=len(planned) + len(cohort.broken), alone=cohort.alone, json=json, resumes=True)
    for broken in cohort.broken:
        batch.failed(broken.name, broken.error)
    remove_stale_slices(settings.layout)
    try:
        converted = _convert_cases(planned, settings, batch, n_jobs=n_jobs)
    finally:  # also of an interrupted run, which may have begun to replace cases that the table names
        unwritten = _write_manifest(settings, screen)
    n_labelled, n_skipped = (sum(flags) for flags in zip(*converted, strict=True)) if converted else (0, 0)
    done = f"{plural(len(converted), 'case')} in {output}, {n_labelled} with label slices"
    batch.finish(done, unwritten, n_left_out=n_skipped)


def _convert_cases(
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
    """Write the table of all slices, if there is or was any; return its error, which is reported after those of the cases."""
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


@app.command()
def png2nii(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            metavar="DIR",
            help="Folder of label slices named CASE_slice_Z.png, or one that nii2png wrote (its masks are read).",
            show_default=False,
        ),
    ],
    *,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE_OR_CASES",
            help="Image that gives the label map its geometry, or CASES as for nii2png, of which FLAIR does. May be given "
            "again. Required.",
            show_default=False,
            rich_help_panel=options.IMAGES,
        ),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Convert only the slices of this case.",
            show_default="all that DIR holds",
            rich_help_panel=options.IMAGES,
        ),
    ] = None,
    pattern: options.Pattern = None,
    channels: options.Channels = None,
    output: options.LabelMapOutput = None,
    labels: Annotated[
        Labels | None,
        typer.Option(
            metavar="NAME",
            help="Label value of enhancing tumour: 4 (brats2020) or 3 (brats2023).",
            show_default="as in the segmentations that nii2png read, else brats2020",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    skip_existing: options.SkipExisting = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    jobs: options.Jobs = None,
) -> None:
    """Put label slices together to label maps in the geometry of a reference image.

    Pixels hold the class index 0-3 in every channel, as nii2png writes them, or
    50 times the index in red, as the published prediction does. Every slice of a
    case must be there. What nii2png turned, padded or cropped is undone, as the
    folder cases tells that it wrote, in DIR or beside it; without that folder
    the slices must be on the BraTS grid. Paths of label maps go to stdout.

    drunet convert png2nii slices --like BraTS2021_TrainingData -o label_maps
    """
    if not like:
        raise MisuseError("missing --like: name the image whose geometry the label map gets, or CASES")
    if output is None:
        raise MisuseError("missing -o: name the label map to write, or a folder for them")
    options.check_exclusive(skip_existing=skip_existing, overwrite=overwrite)

    from drunet_cli.cli.cases import Batch, names_a_file
    from drunet_cli.cli.console import Screen
    from drunet_cli.conversion.png2nii import LabelMapSettings, check_outputs, label_slices, masks_folder
    from drunet_cli.host import granted_cpus

    masks = masks_folder(folder)
    sets = label_slices(masks, case)
    screen = Screen(quiet=quiet)
    references = _references(like, list(sets), pattern or (), channels, masks=masks, screen=screen)
    if len(sets) > 1 and names_a_file(output):
        raise MisuseError(f"-o {output}: {masks} holds slices of {len(sets)} cases; name a folder")
    n_jobs = jobs or granted_cpus()
    settings = LabelMapSettings(
        folder=masks,
        labels=labels,
        skip_existing=skip_existing,
        overwrite=overwrite,
        threads=max(1, n_jobs // len(sets)),
    )
    batch = Batch(screen, n_cases=len(sets), alone=len(sets) == 1, json=json, resumes=True)
    planned = _plan_label_maps(sets, references, masks, output, batch)
    if labels is None:
        settings = replace(settings, labels=_common_labels(planned, screen))
    check_outputs(planned, settings)
    _convert_slices(planned, settings, batch, n_jobs=n_jobs)
    batch.finish(f"{plural(batch.n_done, 'label map')} in {output}")


def _references(
    like: Sequence[str],
    names: Sequence[str],
    pattern: Sequence[str],
    channels: str | None,
    *,
    masks: Path,
    screen: "Screen",
) -> Mapping[str, list[Path] | DrunetError]:
    """The images of each case, first the one that gives the geometry; or why there is none.

    Cases of --like without slices are counted in a note.
    """
    from drunet_cli.cli.cases import cohort_of
    from drunet_cli.io.naming import is_nifti

    images = [name for name in like if is_nifti(name) and not os.path.isdir(name)]
    if images and len(like) > 1:
        raise MisuseError(f"--like {images[0]}: give one image, or CASES")
    if images and (pattern or channels):
        raise MisuseError(f"--like {images[0]}: is one image; --pattern and --channels are for CASES")
    if images and len(names) > 1:
        raise MisuseError(
            f"--like {images[0]}: is one image, but there are slices of {len(names)} cases ({join_some(names)}); "
            "give --case NAME, or --like CASES"
        )
    if images:
        return {names[0]: [Path(images[0])]}
    cohort = cohort_of(like, patterns=pattern, channels=channels)
    if not cohort.cases and len(cohort.broken) == 1:
        raise cohort.broken[0].error
    if without := len({item.name for item in cohort.cases} - set(names)):
        screen.note(f"{plural(without, 'case')} of --like without slices in {masks}")
    found: dict[str, list[Path] | DrunetError] = {item.name: item.error for item in cohort.broken}
    for item in cohort.cases:
        reference = item.images[Modality.FLAIR]
        found[item.name] = [reference, *(path for path in item.files.values() if path != reference)]
    unusable = "".join(f"; {item.error}" for item in cohort.broken if item.name in like)
    unpaired = f"--like {' '.join(like)}: holds no case of that name{unusable}"
    return {name: found.get(name) or CaseError(unpaired) for name in names}


def _plan_label_maps(
    sets: Mapping[str, tuple["SliceFile", ...]],
    references: Mapping[str, list[Path] | DrunetError],
    masks: Path,
    output: Path,
    batch: "Batch",
) -> list["PlannedLabelMap"]:
    """The plans of the cases that have a reference; the others fail."""
    from drunet_cli.cli.cases import label_map_path
    from drunet_cli.conversion.png2nii import PlannedLabelMap, description_of

    planned = []
    for name, slices in sets.items():
        found = references[name]
        if isinstance(found, DrunetError):
            batch.failed(name, found)
            continue
        reference, *images = found
        planned.append(
            PlannedLabelMap(
                case=name,
                slices=slices,
                reference=reference,
                images=tuple(images),
                description=description_of(name, masks),
                output=label_map_path(output, name),
            )
        )
    return planned


def _common_labels(planned: Sequence["PlannedLabelMap"], screen: "Screen") -> Labels | None:
    """The one convention of all segmentations, also for cases whose own does not tell; None where there are two, or none."""
    from drunet_cli.conversion.png2nii import conventions_of

    conventions = conventions_of(planned)
    if len(conventions) > 1:
        screen.warning(
            "enhancing tumour was 3 in some segmentations and 4 in others: each case keeps its own; --labels makes them alike"
        )
        return None
    return next(iter(conventions), None)


def _convert_slices(planned: Sequence["PlannedLabelMap"], settings: "LabelMapSettings", batch: "Batch", *, n_jobs: int) -> None:
    from drunet_cli.conversion.png2nii import convert_labels
    from drunet_cli.processes import run_tasks

    convert = partial(convert_labels, settings=settings)
    with batch.bar(), closing(run_tasks(convert, planned, n_processes=n_jobs)) as outcomes:
        for each, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                batch.failed(each.case, outcome)
                continue
            done = "there already, left as it is" if outcome.skipped else f"{outcome.seconds:.1f} s"
            note = f"{each.case}: {regions_in_words(outcome.document['volumes_ml'])} ({done})"
            batch.done(str(each.output), outcome.document, note=note, warnings=outcome.warnings)
