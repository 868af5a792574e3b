"""`drunet prepare`, and the preparation that `drunet segment --prepare` asks for."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from drunet_cli.brats import Modality
from drunet_cli.cli import options
from drunet_cli.errors import DrunetError, MisuseError, plural

if TYPE_CHECKING:
    from drunet_cli.cli.cases import Batch
    from drunet_cli.prepare.preparation import PreparationSettings
    from drunet_cli.prepare.prepared_case import PlannedPreparation, PreparedResult

_PREPARATION: Final = "Preparation of raw scans"


def prepare(
    cases: options.Cases = None,
    *,
    t1: Annotated[Path | None, options.modality("T1", required=False)] = None,
    t1ce: Annotated[Path | None, options.modality("T1 with contrast agent (T1ce, T1Gd)", required=False)] = None,
    t2: Annotated[Path | None, options.modality("T2", required=False)] = None,
    flair: Annotated[Path | None, options.modality("T2-FLAIR", required=False)] = None,
    case: options.CaseName = None,
    pattern: options.Pattern = None,
    channels: options.Channels = None,
    shard: options.Shard = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=options.path,
            metavar="DIR",
            help="Folder that gets a folder of each case. Required.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    preview: Annotated[
        bool,
        options.flag(
            "--preview", help="CASE_preview.png: the four images with the outline of the brain.", panel=options.OUTPUT
        ),
    ] = False,
    skip_existing: options.SkipExisting = False,
    overwrite: options.Overwrite = False,
    strict: Annotated[
        bool,
        options.flag(
            "--strict",
            help="Let a case fail, and write nothing of it, when a registration or the brain is likely wrong.",
            panel=options.OUTPUT,
        ),
    ] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    jobs: Annotated[
        int,
        options.count(
            "Cases worked on at once, each by a process that takes up to 3 GB; the CPUs are divided among them.",
            default=True,
            panel=options.OUTPUT,
        ),
    ] = 1,
    brain: Annotated[
        str,
        typer.Option(
            "--brain",
            metavar="METHOD_OR_FILE",
            autocompletion=options.one_of(("auto", "deepbet", "hd-bet", "synthstrip", "none")),
            help="How the brain is found: deepbet; hd-bet or synthstrip, programs that you have installed; none, everything "
            "above 0; or a mask on the grid of any of the four scans. auto takes the background of scans that are stripped "
            "already, with a GPU hd-bet or synthstrip if there, else deepbet.",
            rich_help_panel=_PREPARATION,
        ),
    ] = "auto",
    atlas: Annotated[
        str,
        typer.Option(
            "--atlas",
            metavar="drunet|none|FILE",
            help="What the brain is laid on: a mean of BraTS cases, which is part of drunet; nothing, which keeps the axes of "
            "the reference; or a skull-stripped image.",
            rich_help_panel=_PREPARATION,
        ),
    ] = "drunet",
    reference: Annotated[
        Modality,
        typer.Option(
            "--reference",
            metavar="MODALITY",
            help="The scan that the others are registered to: the sharpest.",
            rich_help_panel=_PREPARATION,
        ),
    ] = Modality.T1CE,
    threads: options.Threads = None,
) -> None:
    """Prepare raw scans: registered, skull-stripped, on the BraTS grid.

    The four scans of a patient may each have its own grid, slices of any
    thickness, and a skull. T1, T2 and FLAIR are registered to T1ce, the brain is
    found in T1, T1ce's brain is laid on a template, all rigidly; then each scan
    is interpolated once. DIR/CASE gets CASE_t1.nii.gz and so on, the mask
    CASE_brain.nii.gz, and CASE.json with transforms, warnings and provenance,
    whose path is printed on stdout. drunet segment DIR takes it from there.

    Needs the extra prepare (drunet guide install).

    drunet prepare --t1 t1.nii --t1ce t1c.nii --t2 t2.nii --flair f.nii -o out
    drunet prepare patients -o prepared --preview --skip-existing
    """
    given = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
    if output is None:
        raise MisuseError("missing -o: name a folder for the prepared cases")
    files = {"--t1": t1, "--t1ce": t1ce, "--t2": t2, "--flair": flair, "--case": case}
    options.check_cases(cases, files, {"--pattern": pattern, "--channels": channels, "--shard": shard})
    options.check_exclusive(skip_existing=skip_existing, overwrite=overwrite)

    from drunet_cli.cli.cases import Batch, PlanRow, error_of, find_cohort, print_plan
    from drunet_cli.cli.console import Screen
    from drunet_cli.host import granted_cpus
    from drunet_cli.prepare.preparation import PreparationSettings, check_extra
    from drunet_cli.prepare.prepared_case import (
        check_preparations,
        compare_preparations,
        plan_preparations,
        prepare_cases,
    )

    cohort = find_cohort(
        cases, given, name=case, patterns=pattern, channels=channels, shard=shard, leave_out=[output], raw=True
    )
    screen = Screen(quiet=quiet)
    for note in cohort.notes:
        screen.warning(note)
    n_jobs = min(jobs, max(1, len(cohort.cases)))
    settings = PreparationSettings(
        folder=output,
        reference=reference,
        brain=brain,
        atlas=atlas,
        preview=preview,
        strict=strict,
        overwrite=overwrite,
        skip_existing=skip_existing,
        threads=max(1, (threads or granted_cpus()) // n_jobs),
    )
    _check_files(settings, n_cases=len(cohort.cases))
    planned = plan_preparations(cohort.cases, settings)
    stop = error_of(lambda: check_preparations(planned))
    if dry_run:
        planned = planned if stop else compare_preparations(planned)
        rows = [PlanRow(each.case, each.state, each.action, None, each.error) for each in planned]
        differing = {each.case.name for each in planned if each.differs}
        print_plan(rows, cohort, screen=screen, seg=False, differing=differing, json=json, stop=stop)
        return
    if stop is not None:
        raise stop
    check_extra(settings)
    batch = Batch(screen, n_cases=len(planned) + len(cohort.broken), alone=cohort.alone, json=json, resumes=True)
    for broken in cohort.broken:
        batch.failed(broken.name, broken.error)
    n_left_out = 0
    with (
        batch.bar(),
        closing(prepare_cases(planned, n_processes=n_jobs, on_warning=screen.warning)) as outcomes,
    ):
        for each, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                batch.failed(each.case.name, outcome)
            else:
                n_left_out += outcome.left_out
                _report(each, outcome, batch)
    batch.finish(f"{plural(batch.n_done, 'case')} in {output}", n_left_out=n_left_out)


def _check_files(settings: "PreparationSettings", *, n_cases: int) -> None:
    """Raise MisuseError for a mask or an atlas that is neither a known word nor a file, and for one mask of several cases."""
    from drunet_cli.prepare.brain import BrainMethod
    from drunet_cli.prepare.grid import NO_ATLAS, OWN_ATLAS

    for option, value, words in (
        ("--brain", settings.brain, [*BrainMethod]),
        ("--atlas", settings.atlas, [OWN_ATLAS, NO_ATLAS]),
    ):
        if value not in words and not Path(value).is_file():
            raise MisuseError(f"{option} {value}: is none of {', '.join(words)}, and no file of this name is there")
    if settings.method is None and n_cases > 1:
        raise MisuseError(
            f"--brain {settings.brain}: a mask is that of one case, and there are {n_cases}; prepare them one by one"
        )


def _report(planned: "PlannedPreparation", result: "PreparedResult", batch: "Batch") -> None:
    # A complete output may have been made of the case by another name.
    result = replace(result, document={**result.document, "case": planned.case.name})
    batch.done(
        str(planned.files.record),
        {**result.document, "left_out": True} if result.left_out else result.document,
        note=result.in_words,
        warnings=[] if result.left_out else [warning["message"] for warning in result.document["warnings"]],
    )
