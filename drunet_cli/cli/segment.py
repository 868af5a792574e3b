"""`drunet segment`."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.brats import Labels, Modality, regions_in_words
from drunet_cli.cli import options
from drunet_cli.errors import DrunetError, MisuseError, plural
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.weights.registry import DEFAULT, members_of

if TYPE_CHECKING:
    from drunet_cli.cli.cases import Batch
    from drunet_cli.cli.console import Screen
    from drunet_cli.prepare.preparation import PreparationSettings
    from drunet_cli.segmentation.cohort import Outcome
    from drunet_cli.segmentation.outputs import OutputFiles
    from drunet_cli.segmentation.plan import PlannedCase, RunPlan
    from drunet_cli.segmentation.predict import Ensemble
    from drunet_cli.segmentation.settings import Settings
    from drunet_cli.segmentation.summary import SummaryRow

_MOST_ROWS: Final = 40


def segment(
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
    prepare: options.Prepare = False,
    keep_prepared: options.KeepPrepared = None,
    output: options.LabelMapOutput = None,
    bids: options.Bids = False,
    labels: Annotated[
        Labels,
        typer.Option(
            metavar="NAME",
            help="Label value of enhancing tumour: 4 (brats2020) or 3 (brats2023).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = Labels.BRATS2020,
    skip_existing: options.SkipExisting = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    no_sidecar: Annotated[
        bool,
        options.flag("--no-sidecar", help="Write no .json with volumes, warnings and provenance.", panel=options.OUTPUT),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    weights: options.WeightsOfSegment = None,
    device: options.Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="FORMAT",
            help="Number format: auto, float32, bfloat16 or float16. auto is float32, which gives the published labels. "
            "bfloat16 is for GPUs, and for CPUs that have it; others refuse it.",
            rich_help_panel=options.NETWORK,
        ),
    ] = Precision.AUTO,
    engine: Annotated[
        EngineName,
        typer.Option(
            metavar="LIBRARY",
            help="What computes: auto, torch, onnxruntime or openvino. auto is ONNX Runtime on the CPU, OpenVINO there for "
            "bfloat16 where it is installed, else PyTorch.",
            rich_help_panel=options.NETWORK,
        ),
    ] = EngineName.AUTO,
    window: Annotated[
        WindowMode | None,
        typer.Option(
            metavar="full|auto",
            help="What the network sees of a slice: full, all 240 x 240 pixels; auto, the smallest window around the brain, "
            "which is faster and gives other labels.",
            show_default="as the weights were trained; the published ones: full",
            rich_help_panel=options.NETWORK,
        ),
    ] = None,
    fast: Annotated[
        bool,
        options.flag(
            "--fast",
            help="For a look: --window auto, and bfloat16 on a CPU that has it, with the extra bfloat16. Other labels than the "
            "published ones; the sidecar says what ran.",
            panel=options.NETWORK,
        ),
    ] = False,
    deterministic: options.Deterministic = False,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    tta: options.Tta = options.TestTime.NONE,
    mc_samples: options.McSamples = 0,
    dropout: options.DropoutRate = None,
    seed: options.Seed = 0,
    within_brain: options.WithinBrain = False,
    min_volume: options.MinVolume = "0",
    min_enhancing: options.MinEnhancing = 0.0,
    postprocess: options.Postprocessing = options.Postprocess.NONE,
    preview: options.Preview = False,
    viewer: options.Viewer = False,
    in_space: options.InSpace = None,
    dicom_seg: options.DicomSeg = False,
    probabilities: options.Probabilities = False,
    uncertainty: options.Uncertainty = False,
) -> None:
    """Segment brain tumours: four MRI files of a patient in, a 3D label map out.

    Name one patient by --t1 --t1ce --t2 --flair, or any number as CASES. The
    images must be skull-stripped and on one common grid, in any orientation.
    Label values: 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumour
    (3 with --labels brats2023). Regions: WT, whole tumour, is all of them; TC,
    tumour core, is 1 and 4; ET is 4. The label map has the geometry of FLAIR. Its
    path is printed on stdout. A folder OUT also has a table, as summary.csv for
    programs and as summary.xlsx for Excel and LibreOffice.

    One patient, by four files or by the folder that holds them; then a data set:
    drunet segment --t1 t1.nii --t1ce t1c.nii --t2 t2.nii --flair f.nii -o seg.nii
    drunet segment BraTS2021_TrainingData/p01 -o p01_seg.nii.gz
    drunet segment BraTS2021_ValidationData -o results --skip-existing
    """
    given = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
    if output is None:
        raise MisuseError("missing -o: name the label map to write, or a folder for it")
    files = {"--t1": t1, "--t1ce": t1ce, "--t2": t2, "--flair": flair, "--case": case}
    options.check_cases(cases, files, {"--pattern": pattern, "--channels": channels, "--shard": shard})
    _check_raw_scans(prepare=prepare, keep=keep_prepared, bids=bids, dicom_seg=dicom_seg, skip_existing=skip_existing)

    from drunet_cli.cli.cases import find_cohort, label_maps_of, names_a_file
    from drunet_cli.cli.console import Screen
    from drunet_cli.cli.weights import opener
    from drunet_cli.segmentation.plan import plan_run
    from drunet_cli.segmentation.predict import Ensemble
    from drunet_cli.segmentation.settings import Settings
    from drunet_cli.segmentation.summary import SUMMARY

    screen = Screen(quiet=quiet)
    with _parameters_as_options():
        settings = Settings(
            weights=tuple(member for each in weights or [DEFAULT] for member in members_of(each)),
            device=device,
            precision=precision,
            engine=engine,
            window=window,
            fast=fast,
            deterministic=deterministic,
            batch_size=batch_size,
            threads=threads,
            flips=tta is options.TestTime.FLIPS,
            mc_samples=mc_samples,
            dropout=dropout,
            seed=seed,
            within_brain=within_brain,
            min_volume_ml=min_volume,
            min_enhancing_ml=min_enhancing,
            recommended_postprocessing=postprocess is options.Postprocess.RECOMMENDED,
            probabilities=probabilities,
            uncertainty=uncertainty,
            preview=preview,
            shows_preparation=preview and prepare,
            viewer=viewer,
            in_space=tuple(dict.fromkeys(in_space or ())),
            dicom_seg=dicom_seg,
            sidecar=not no_sidecar,
            bids=bids,
            labels=labels,
            strict=strict,
            overwrite=overwrite,
            skip_existing=skip_existing,
        )
        ensemble = Ensemble(settings, on_warning=screen.warning, open_weights=opener(screen))
    folders = [output] if keep_prepared is None else [output, keep_prepared]
    cohort = find_cohort(
        cases, given, name=case, patterns=pattern, channels=channels, shard=shard, leave_out=folders, raw=prepare
    )
    if settings.dicom_seg:
        from drunet_cli.prepare.dicom_seg import cohort_from_dicom

        cohort = cohort_from_dicom(cohort, settings.carried_to)
    label_maps = label_maps_of(cohort, output, bids=bids, prepare=prepare)
    summary = None if names_a_file(output) else output / SUMMARY
    with _parameters_as_options(), ExitStack() as temporary:
        preparation = _preparation_of(settings, keep_prepared, temporary) if prepare else None
        plan = plan_run(cohort, ensemble, label_maps, summary=summary, preparation=preparation)
        if preparation is not None and plan.stop is None and not dry_run:
            from drunet_cli.prepare.preparation import check_extra

            check_extra(preparation)
        _print_notes(plan, screen, shard=shard, preparation=preparation)
        if not dry_run:
            _segment(plan, ensemble, screen, output=output, json=json)
        elif preparation is None:
            _print_plan(plan, ensemble, screen, json=json)
        else:
            _print_raw_plan(plan, screen, json=json)


def _check_raw_scans(*, prepare: bool, keep: Path | None, bids: bool, dicom_seg: bool, skip_existing: bool) -> None:
    """Raise MisuseError where options of raw scans lack or exclude one another. keep: of --keep-prepared."""
    if keep is not None and not prepare:
        raise MisuseError("--keep-prepared DIR is for --prepare; give both")
    if prepare and bids and keep is None:
        raise MisuseError("--bids with --prepare needs --keep-prepared DIR: the labels lie on the grid of the prepared images")
    if dicom_seg and not prepare:
        raise MisuseError("--dicom-seg refers to the DICOM series of raw scans; give these with --prepare")
    if dicom_seg and bids:
        raise MisuseError("--dicom-seg and --bids exclude one another: a BIDS data set has no place for DICOM")
    if prepare and skip_existing and keep is None:
        raise MisuseError("--skip-existing with --prepare needs --keep-prepared DIR: prepared cases are compared with it")


@contextmanager
def _parameters_as_options() -> Iterator[None]:
    """Let errors name options where the segmentation names its own parameters: --mc-samples 2 for mc_samples=2."""
    try:
        yield
    except MisuseError as error:
        raise MisuseError(_PARAMETER.sub(_as_option, str(error)), details=error.details) from error


_OPTIONS: Final = {
    "flips=True": "--tta flips",
    "min_enhancing_ml=": "--min-enhancing ",
    "min_volume_ml=": "--min-volume ",
    "recommended_postprocessing=True": "--postprocess recommended",
    "sidecar=False": "--no-sidecar",
}
_PARAMETER: Final = re.compile(
    r"(?<![\w/.-])(bids|dropout|engine|fast|flips|mc_samples|min_enhancing_ml|min_volume_ml|overwrite|precision|preview"
    r"|recommended_postprocessing|seed|sidecar|skip_existing|weights|window)"
    r"=(True\b|False\b)?"
)


def _as_option(found: re.Match[str]) -> str:
    option = f"--{found[1].replace('_', '-')}"
    return _OPTIONS.get(found[0]) or (option if found[2] else f"{option} ")


def _preparation_of(settings: "Settings", keep: Path | None, temporary: ExitStack) -> "PreparationSettings":
    """The preparation that a segmentation asks for. keep: the folder of the prepared cases; without it they are temporary."""
    from drunet_cli.host import granted_cpus
    from drunet_cli.io.atomic import temporary_folder
    from drunet_cli.prepare.preparation import PreparationSettings

    return PreparationSettings(
        folder=temporary.enter_context(temporary_folder()) if keep is None else keep,
        keep=keep is not None,
        preview=settings.shows_preparation,
        strict=settings.strict,
        overwrite=settings.overwrite,
        skip_existing=not settings.overwrite,
        threads=settings.threads or granted_cpus(),
    )


def _print_notes(plan: "RunPlan", screen: "Screen", *, shard: str | None, preparation: "PreparationSettings | None") -> None:
    """Print what is remarkable about the plan."""
    for note in plan.notes:
        screen.warning(note)
    if shard is not None and plan.n_cases == 0:
        k, n = options.parsed_shard(shard)
        screen.note(f"shard {k} of {n} is empty: there are fewer cases than shards")
    if preparation is not None and not (preparation.keep or plan.settings.carried_to):
        screen.note(_NOT_KEPT)


_NOT_KEPT: Final = (
    "Labels lie on the grid of the prepared images, which are removed: to lay them over images in another program, add "
    "--keep-prepared DIR, or --in-space t1ce for labels on that scan's own grid"
)


def _print_plan(plan: "RunPlan", ensemble: "Ensemble", screen: "Screen", *, json: bool) -> None:
    """Print the plan. Raises the error that would stop the run before its first case; else ends with the run's exit code."""
    from drunet_cli.cli.cases import PlanRow, print_plan
    from drunet_cli.cli.weights import would_download
    from drunet_cli.segmentation.outputs import OutputState
    from drunet_cli.segmentation.plan import compare_outputs, look_at_headers, missing_weights

    plan = look_at_headers(plan)
    notes, stop = [], plan.stop
    if stop is None and any(each.error is None for each in plan.cases):
        try:
            notes = [would_download(entry) for entry in missing_weights(plan.settings)]
            if not notes:
                plan = compare_outputs(plan, ensemble)
        except DrunetError as error:
            stop = error
        else:
            notes = notes if plan.cohort.alone else [_counts(plan), *notes]
    differing = {each.case.name for each in plan.cases if each.differs}
    differing |= {name for name, files in plan.unusable.items() if files.state() is OutputState.COMPLETE}
    rows = [PlanRow(each.case, each.state, each.action, each.warnings, each.error) for each in plan.cases]
    print_plan(rows, plan.cohort, screen=screen, seg=False, differing=differing, json=json, notes=notes, stop=stop)


def _print_raw_plan(plan: "RunPlan", screen: "Screen", *, json: bool) -> None:
    """Print the plan of a segmentation of raw scans, of which nothing is read."""
    from drunet_cli.cli.cases import PlanRow, print_plan
    from drunet_cli.prepare.prepared_case import PreparationAction
    from drunet_cli.segmentation.plan import compare_prepared

    rows = []
    for each in (compare_prepared(plan) if plan.stop is None else plan).cases:
        preparation = each.preparation
        assert preparation is not None, "the run has one for each case"
        first = "verify" if preparation.action is PreparationAction.VERIFY else "prepare"
        error = each.error or preparation.error
        would = f"{first}, {each.action}" if error is None else "fail"
        rows.append(PlanRow(preparation.case, each.state, would, None, error))
    print_plan(rows, plan.cohort, screen=screen, seg=False, json=json, stop=plan.stop)


def _counts(plan: "RunPlan") -> str:
    """How many cases would be segmented, left out and so on, in one line."""
    from drunet_cli.segmentation.plan import Action

    would = Counter(each.action.value for each in plan.cases if each.error is None)
    would["fail in"] = plan.n_cases - would.total()
    counts = ", ".join(f"{words} {n}" for words, n in would.items() if n)
    n_warned = sum(bool(each.warnings) for each in plan.cases)
    warned = f"; {n_warned} with warnings" if n_warned else ""
    n_without_case = len(plan.cohort.folders_without_case)
    without_case = f"; {plural(n_without_case, 'folder')} without a case passed over" if n_without_case else ""
    unread = "" if would.keys() <= {Action.LEAVE_OUT.value, "fail in"} else _VOXELS_UNREAD
    return f"Of {plural(plan.n_cases, 'case')} drunet would {counts}{warned}{without_case}{unread}"


_VOXELS_UNREAD: Final = " (headers were read; voxels were not, nor was the device tried)"


def _segment(plan: "RunPlan", ensemble: "Ensemble", screen: "Screen", *, output: Path, json: bool) -> None:
    """Segment all cases. Raises the error of a case that was given alone, typer.Exit where one of several failed."""
    from drunet_cli.cli.cases import Batch, names_a_file
    from drunet_cli.host import limit_malloc_arenas
    from drunet_cli.io.atomic import create_folder
    from drunet_cli.segmentation.cohort import enter_rows_of, segment_cases
    from drunet_cli.segmentation.summary import Status

    begin = time.perf_counter()
    if plan.stop is not None:
        raise plan.stop
    limit_malloc_arenas()
    batch = Batch(screen, n_cases=plan.n_cases, alone=plan.cohort.alone, json=json, resumes=True)
    rows: list[SummaryRow] = []
    with create_folder(output.parent if names_a_file(output) else output):
        try:
            for broken in plan.cohort.broken:
                _report_failure(broken.name, broken.error, plan.unusable.get(broken.name), batch, rows)
            with (
                batch.slices_bar() as draw,
                closing(
                    segment_cases(plan, ensemble, on_warning=screen.warning, on_progress=draw, on_note=batch.tell)
                ) as outcomes,
            ):
                for planned, outcome in outcomes:
                    _report(planned, outcome, batch, rows, since=begin if plan.cohort.alone else None)
                    if planned.preparation is not None:
                        planned.preparation.remove_unless_kept()
        except BaseException:  # also Ctrl-C, SIGTERM and a fault of drunet: the rows so far are kept
            if rows and plan.summary is not None and (plan.summary.exists() or batch.n_done):
                enter_rows_of(plan, rows, on_warning=screen.warning)
            raise
        unwritten = None if plan.summary is None else enter_rows_of(plan, rows, on_warning=screen.warning)
        if plan.summary is not None:
            _show_rows(plan.summary, rows, screen)
        table = None if unwritten or plan.summary is None else plan.summary.name
        last = _last_line(rows, n_done=batch.n_done, output=output, table=table)
        n_left_out = sum(row.status is Status.LEFT_OUT for row in rows)
        batch.finish(f"{last} ({time.perf_counter() - begin:.1f} s)", unwritten, n_left_out=n_left_out)


def _report(
    planned: "PlannedCase", outcome: "Outcome", batch: "Batch", rows: "list[SummaryRow]", *, since: float | None
) -> None:
    """Report the outcome of a case, and add its row. since: when a run of one case began."""
    from drunet_cli.segmentation.summary import Status, row_of, time_now

    if isinstance(outcome, DrunetError):
        _report_failure(planned.case.name, outcome, planned.files, batch, rows)
        return
    # A complete output may have been moved with its sidecar since, or made of the case by another name.
    document = {**outcome.document, "case": planned.case.name, "output": str(planned.files.label_map)}
    rows.append(replace(row_of(document, Status.LEFT_OUT if outcome.left_out else Status.DONE), time=time_now()))
    seconds = sum(document["seconds"].values()) if since is None else time.perf_counter() - since
    batch.done(
        document["output"],
        {**document, "left_out": True} if outcome.left_out else document,
        note=_case_note(document, left_out=outcome.left_out, seconds=seconds),
    )


def _report_failure(
    name: str, error: DrunetError, files: "OutputFiles | None", batch: "Batch", rows: "list[SummaryRow]"
) -> None:
    """Report why a case failed, and add its row. files: its outputs, None for a source that holds no case."""
    from drunet_cli.segmentation.plan import row_of_failure
    from drunet_cli.segmentation.summary import Status, time_now

    row = row_of_failure(name, error, files)
    rows.append(replace(row, time=time_now()))
    batch.failed(name, error, differs=row.status is Status.DIFFERS)


def _case_note(document: Mapping[str, Any], *, left_out: bool, seconds: float) -> str:
    """One case in one line: its volumes, how long it took, and with which weights."""
    from drunet_cli.segmentation.summary import described_weights

    volumes = regions_in_words(document["volumes_ml"])
    how = "complete, left out" if left_out else f"{seconds:.1f} s on {document['device']}"
    weights = " and ".join(str(each["name"]) for each in described_weights(document))
    return f"{document['case']}: {volumes} ({how}, weights {weights})"


def _show_rows(path: Path, rows: Sequence["SummaryRow"], screen: "Screen") -> None:
    """Show the rows of several cases; of very many, those that failed and some with warnings. path: the table with all rows."""
    from drunet_cli.cli.console import cohort_table

    failed = [row for row in rows if row.error]
    warned = [row for row in rows if row.warnings and not row.error]
    remarkable = [*failed, *warned[: max(0, _MOST_ROWS - len(failed))]]
    shown = sorted(rows if len(rows) <= _MOST_ROWS else remarkable, key=lambda row: row.case)
    if shown and len(rows) > 1:
        screen.note_table(cohort_table(shown))
    if len(shown) < len(rows):
        screen.note(f"{plural(len(rows), 'case')}, all of them in {path}")


def _last_line(rows: Sequence["SummaryRow"], *, n_done: int, output: Path, table: str | None) -> str:
    """How many cases are in the output, and how they came there. table: the name of the table, if it was written."""
    n_warned = sum(bool(row.warnings) for row in rows)
    warned = f", {n_warned} with warnings" + (f" (see {table})" if table else "") if n_warned else ""
    done = plural(n_done, "case") if n_done == len(rows) else f"{n_done} of {plural(len(rows), 'case')}"
    return f"{done} in {output}{warned}"
