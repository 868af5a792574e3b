"""`drunet segment`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from drunet_cli.brats import Labels, Modality
from drunet_cli.cli import options
from drunet_cli.cli.signals import raise_lost
from drunet_cli.errors import MisuseError
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.network.registry import DEFAULT, ENTRIES, PUBLISHED_BASE_WIDTH


def segment(
    *,
    t1: Annotated[Path | None, options.modality("T1")] = None,
    t1ce: Annotated[Path | None, options.modality("T1 with contrast agent (T1ce, T1Gd)")] = None,
    t2: Annotated[Path | None, options.modality("T2")] = None,
    flair: Annotated[Path | None, options.modality("T2-FLAIR")] = None,
    case: options.CaseName = None,
    output: options.LabelMapOutput = None,
    labels: Annotated[
        Labels,
        typer.Option(help="Label value of enhancing tumour: brats2020 is 4, brats2023 is 3.", rich_help_panel=options.OUTPUT),
    ] = Labels.BRATS2020,
    overwrite: options.Overwrite = False,
    no_sidecar: Annotated[
        bool,
        typer.Option("--no-sidecar", help="Do not write the .json beside the label map.", rich_help_panel=options.OUTPUT),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    weights: options.Weights = DEFAULT,
    device: options.Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="FORMAT",
            help="auto, float32, bfloat16 or float16; auto is float32, which gives the published labels.",
            rich_help_panel=options.NETWORK,
        ),
    ] = Precision.AUTO,
    engine: Annotated[
        EngineName,
        typer.Option(
            metavar="auto|torch|onnxruntime",
            help="What computes; auto is ONNX Runtime on the CPU, which is faster, where the extra onnx is installed.",
            rich_help_panel=options.NETWORK,
        ),
    ] = EngineName.AUTO,
    window: Annotated[
        WindowMode | None,
        typer.Option(
            metavar="full|auto",
            help="Whole frames, or (auto) of each slice the smallest window with its brain: faster, but not the same labels.",
            show_default="as the weights were trained; the published ones: full",
            rich_help_panel=options.NETWORK,
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
) -> None:
    """Segment a brain tumour: four MRI files of one patient in, a 3D label map out.

    The images must be skull-stripped and on one grid, in any orientation.
    Label values: 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumour
    (3 with --labels brats2023). Regions: WT, whole tumour, is all of them; TC,
    tumour core, is 1 and 4; ET is 4. The label map has the geometry of FLAIR.
    Its path is printed on stdout.

    drunet segment --t1 a_t1.nii.gz --t1ce a_t1ce.nii.gz --t2 a_t2.nii.gz \\
    --flair a_flair.nii.gz -o a_seg.nii.gz
    """
    begin = time.perf_counter()
    given = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
    if output is None:
        raise MisuseError("missing -o: name the label map to write, or a folder for it")

    from drunet_cli.cli.cases import case_of_files, label_map_path
    from drunet_cli.cli.console import Screen, result, result_json
    from drunet_cli.cli.downloads import DownloadWatcher
    from drunet_cli.host import granted_cpus, wait_considerately
    from drunet_cli.network.acquisition import open_weights
    from drunet_cli.network.engines import choose_engine, open_engine, settle_device
    from drunet_cli.network.registry import check_available
    from drunet_cli.segmentation import pipeline

    screen = Screen(quiet=quiet)
    # Cheap checks first: nothing is read, and nothing imported that takes time, for a run that cannot end well.
    engine = choose_engine(engine, device=device, precision=precision)
    patient = case_of_files(given, name=case)
    target = pipeline.Target(
        label_map=label_map_path(output, patient.name), labels=labels, sidecar=not no_sidecar, overwrite=overwrite
    )
    target.remove_stale()
    target.check(patient.images)
    check_available(weights)
    prepared = pipeline.prepare(patient)
    for warning in prepared.warnings:
        screen.warning(warning.message)

    wait_considerately()
    where = settle_device(engine, device, on_warning=screen.warning)
    raise_lost()
    with DownloadWatcher(screen).shown() as watcher:
        checkpoint = open_weights(weights, watcher=watcher)
    if weights in ENTRIES and checkpoint.metadata.base_width != PUBLISHED_BASE_WIDTH:
        screen.warning(f"the weights imported as {weights} have base width {checkpoint.metadata.base_width}; they are others")
    running = open_engine(
        engine,
        checkpoint,
        device=where,
        precision=precision,
        batch_size=batch_size,
        threads=threads or granted_cpus(),
        on_warning=screen.warning,
    )
    with screen.slice_bar(patient.name) as draw:

        def on_progress(done: int, total: int) -> None:
            raise_lost()
            draw(done, total)

        segmentation = pipeline.segment(
            prepared, running, window=window or WindowMode(checkpoint.metadata.window), on_progress=on_progress
        )
    document = target.write(segmentation, pipeline.describe(segmentation, running, checkpoint))
    for warning in segmentation.warnings[len(prepared.warnings) :]:
        screen.warning(warning.message)
    screen.note(_summary(document, time.perf_counter() - begin))
    if json:
        result_json(document)
    else:
        result(str(target.label_map))


def _summary(document: dict[str, Any], seconds: float) -> str:
    from drunet_cli.cli.console import regions_in_words

    volumes = regions_in_words(document["volumes_ml"])
    return f"{document['case']}: {volumes} ({seconds:.1f} s on {document['device']}, weights {document['weights']['name']})"
