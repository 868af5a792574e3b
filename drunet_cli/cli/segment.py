"""`drunet segment`."""

from pathlib import Path
from typing import Annotated

import typer

from drunet_cli.brats import Labels, Modality
from drunet_cli.cli import options
from drunet_cli.errors import MisuseError
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.weights.registry import DEFAULT


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
    output: options.LabelMapOutput = None,
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
    dry_run: options.DryRun = False,
    no_sidecar: Annotated[
        bool,
        typer.Option(
            "--no-sidecar", help="Write no .json with volumes, warnings and provenance.", rich_help_panel=options.OUTPUT
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    weights: options.WeightsOfSegment = None,
    device: options.Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="FORMAT",
            help="Number format: auto, float32, bfloat16 or float16. auto is float32, which gives the published labels.",
            rich_help_panel=options.NETWORK,
        ),
    ] = Precision.AUTO,
    engine: Annotated[
        EngineName,
        typer.Option(
            metavar="LIBRARY",
            help="What computes: auto, torch or onnxruntime. auto is ONNX Runtime on the CPU where the extra onnx is installed "
            "(faster), else PyTorch.",
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
    deterministic: options.Deterministic = False,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    tta: options.Tta = options.TestTime.NONE,
    mc_samples: options.McSamples = 0,
    dropout: options.DropoutRate = None,
    seed: options.Seed = 0,
    min_volume: options.MinVolume = 0.0,
    min_enhancing: options.MinEnhancing = 0.0,
    preview: options.Preview = False,
    probabilities: options.Probabilities = False,
    uncertainty: options.Uncertainty = False,
) -> None:
    """Segment brain tumours: four MRI files of a patient in, a 3D label map out.

    Name one patient by --t1 --t1ce --t2 --flair, or any number as CASES. The
    images must be skull-stripped and on one common grid, in any orientation.
    Label values: 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumour
    (3 with --labels brats2023). Regions: WT, whole tumour, is all of them; TC,
    tumour core, is 1 and 4; ET is 4. The label map has the geometry of FLAIR. Its
    path is printed on stdout. Several cases also give OUT/summary.csv.

    One patient, by four files or by the folder that holds them; then a data set:
    drunet segment --t1 t1.nii --t1ce t1c.nii --t2 t2.nii --flair f.nii -o seg.nii
    drunet segment BraTS2021_TrainingData/p01 -o p01_seg.nii.gz
    drunet segment BraTS2021_ValidationData -o results --skip-existing
    """
    given = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
    one_case = any(value is not None for value in (*given.values(), case))
    if output is None:
        raise MisuseError("missing -o: name the label map to write, or a folder for it")
    if one_case and (cases or pattern or channels or shard):
        exclude = "exclude one another"
        raise MisuseError(f"CASES (--pattern, --channels, --shard) and --t1 --t1ce --t2 --flair --case {exclude}")
    options.check_exclusive(skip_existing=skip_existing, overwrite=overwrite)
    if skip_existing and no_sidecar:
        raise MisuseError("--skip-existing needs the sidecars; leave --no-sidecar out")

    from drunet_cli.cli import cases as cases_of
    from drunet_cli.cli.console import Screen
    from drunet_cli.cli.segmenting import Outputs, Run
    from drunet_cli.cli.weights import opener
    from drunet_cli.io.discovery import Cohort
    from drunet_cli.segmentation.outputs import Extra, chosen
    from drunet_cli.segmentation.segmenter import Segmenter

    screen = Screen(quiet=quiet)
    # Cheap checks first: nothing is read, and nothing imported that takes time, for a run that cannot end well.
    segmenter = Segmenter(
        weights or DEFAULT,
        device=device,
        precision=precision,
        engine=engine,
        window=window,
        deterministic=deterministic,
        batch_size=batch_size,
        threads=threads,
        flips=tta is options.TestTime.FLIPS,
        mc_samples=mc_samples,
        dropout=dropout,
        seed=seed,
        probabilities=probabilities,
        uncertainty=uncertainty,
        min_volume_ml=min_volume,
        min_enhancing_ml=min_enhancing,
        on_warning=screen.warning,
        open_weights=opener(screen),
    )
    if cases:
        cohort = cases_of.cohort_of(cases, patterns=pattern or (), channels=channels, leave_out=output)
    else:
        cohort = Cohort((cases_of.case_of_files(given, name=case),), (), alone=True)
    share = None if shard is None else options.parsed_shard(shard)
    outputs = Outputs(
        output=output,
        labels=labels,
        sidecar=not no_sidecar,
        extras=chosen({Extra.PREVIEW: preview, Extra.PROBABILITIES: probabilities, Extra.UNCERTAINTY: uncertainty}),
        skip_existing=skip_existing,
        overwrite=overwrite,
        shard=share,
    )
    run = Run(cohort if share is None else cases_of.share_of(cohort, share), outputs, segmenter, screen, json=json)
    if dry_run:
        run.print_plan()
    else:
        run.segment()
