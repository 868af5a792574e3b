"""`drunet demo`."""

import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.brats import Modality, ReadLabels, regions_in_words
from drunet_cli.cli import options
from drunet_cli.errors import DrunetError, MisuseError, plural

if TYPE_CHECKING:
    from drunet_cli.cli.console import Screen
    from drunet_cli.io.case import Case

FOLDER: Final = Path("drunet-demo")


def demo(
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=options.path, metavar="DIR", help="Folder to write into.", rich_help_panel=options.OUTPUT
        ),
    ] = FOLDER,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Which synthetic case: each seed makes another, phantom_N.")
    ] = 0,
    write_cases: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Only write N cases, with the seeds from --seed on, to train or test with; segment none.",
            show_default=False,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    device: options.Device = "auto",
) -> None:
    """Segment a synthetic case with the weights that come with drunet: no download.

    DIR/phantom_0 (0 is the seed) gets four made-up images of a brain with a
    tumour, and the truth, named as in BraTS. DIR/phantom_0.nii.gz is the label
    map; beside it lie a .json and a picture. Printed are Dice and the 95 %
    Hausdorff distance to the truth: they show that drunet works on this machine,
    and say nothing of images of patients.

    drunet demo
    """
    from drunet_cli.cli.console import Screen

    screen = Screen(quiet=quiet)
    if write_cases is None:
        _segment_one(seed, output, device=device, overwrite=overwrite, screen=screen, json=json)
    elif device == "auto":
        _write_cases(range(seed, seed + write_cases), output, overwrite=overwrite, screen=screen, json=json)
    else:
        raise MisuseError(f"--write-cases segments nothing, so --device {device} makes no sense with it")


def _segment_one(seed: int, folder: Path, *, device: str, overwrite: bool, screen: "Screen", json: bool) -> None:
    """Make a case, segment it, compare the label map with the truth, and say how to go on."""
    begin = time.perf_counter()
    from drunet_cli.cli.console import result_json
    from drunet_cli.cli.evaluate import scores_table
    from drunet_cli.io.atomic import check_writable, create_folder
    from drunet_cli.phantom.scanner import check_phantom_writable

    name = _name(seed)
    label_map, sidecar, preview = (folder / f"{name}{suffix}" for suffix in (".nii.gz", ".json", "_preview.png"))
    check_phantom_writable(folder, name, overwrite=overwrite)
    for path in (label_map, sidecar, preview):
        check_writable(path, overwrite=overwrite)
    screen.note(f"Writing {folder / name}: a synthetic case, four images and the truth")
    with create_folder(folder / name):
        try:
            case = _make_case(seed, folder, overwrite=overwrite)
            segmented = _segment(case, label_map, device=device, overwrite=overwrite, screen=screen)
        except BaseException:  # an interrupted demo is run again as it was
            if not overwrite:
                _remove_case(seed, folder)
            raise
    scores = _scores(case, label_map)
    if json:
        seconds = round(time.perf_counter() - begin, 3)
        result_json({"case": name, "seed": seed, "segmentation": segmented, "evaluation": scores, "seconds": seconds})
    else:
        screen.table(scores_table(scores))
    screen.note(f"Images and truth: {folder / name}")
    screen.note(f"Label map: {label_map}, sidecar: {sidecar}")
    screen.note(f"Picture: {preview}")
    _say_how_to_go_on(screen)


def _name(seed: int) -> str:
    return f"phantom_{seed}"


def _make_case(seed: int, folder: Path, *, overwrite: bool) -> "Case":
    """Make the synthetic case of a seed, and write its images and its segmentation. Also runs in worker processes."""
    from drunet_cli.phantom.scanner import make_phantom, write_phantom

    return write_phantom(make_phantom(seed), folder, _name(seed), overwrite=overwrite)


def _segment(case: "Case", label_map: Path, *, device: str, overwrite: bool, screen: "Screen") -> Mapping[str, Any]:
    """Segment a case as a Python program does; the content of the sidecar."""
    from json import loads

    from drunet_cli.segmentation.segmenter import Segmenter
    from drunet_cli.weights.registry import COMPACT

    segmenter = Segmenter(COMPACT, device=device, on_warning=screen.warning)
    with screen.slices_bar(1) as bar:
        show = (lambda *_: None) if bar is None else partial(bar.show, case.name)
        segmented = segmenter.segment(
            t1=case.images[Modality.T1],
            t1ce=case.images[Modality.T1CE],
            t2=case.images[Modality.T2],
            flair=case.images[Modality.FLAIR],
            name=case.name,
            on_progress=show,
        )
    segmented.save(label_map, overwrite=overwrite, preview=True)
    for warning in segmented.warnings:
        screen.warning(warning)
    document: Mapping[str, Any] = loads(label_map.with_name(f"{case.name}.json").read_bytes())
    where = f"{sum(document['seconds'].values()):.1f} s on {document['device']}, weights {COMPACT}"
    screen.note(f"{case.name}: {regions_in_words(document['volumes_ml'])} ({where})")
    return document


def _remove_case(seed: int, folder: Path) -> None:
    """Remove the files that were written of a case."""
    from drunet_cli.phantom.scanner import phantom_files

    for path in phantom_files(folder, _name(seed)).values():
        path.unlink(missing_ok=True)


def _scores(case: "Case", label_map: Path) -> dict[str, Any]:
    """The object of `drunet evaluate --json`."""
    from drunet_cli.evaluation.evaluate import EvaluationTask, evaluate
    from drunet_cli.evaluation.pairs import Pair

    assert case.segmentation is not None
    pair = Pair(case.name, label_map, case.segmentation)
    return evaluate(EvaluationTask(pair=pair, labels=ReadLabels.BRATS2020))


def _say_how_to_go_on(screen: "Screen") -> None:
    from drunet_cli.weights.registry import COMPACT, DEFAULT, ENTRIES

    screen.note("Images of your own, with the small weights of this demo (to try it out):")
    screen.note("  drunet segment --t1 t1.nii.gz --t1ce t1ce.nii.gz --t2 t2.nii.gz \\")
    screen.note(f"      --flair flair.nii.gz -o seg.nii.gz --weights {COMPACT}")
    screen.note(f"With the published ones; their first use downloads {ENTRIES[DEFAULT].megabytes} MB:")
    screen.note("  drunet segment --t1 t1.nii.gz --t1ce t1ce.nii.gz --t2 t2.nii.gz \\")
    screen.note("      --flair flair.nii.gz -o seg.nii.gz")
    screen.note("  drunet segment BraTS_FOLDER -o results")


def _write_cases(seeds: range, folder: Path, *, overwrite: bool, screen: "Screen", json: bool) -> None:
    from drunet_cli.cli.cases import Batch
    from drunet_cli.host import granted_cpus
    from drunet_cli.phantom.scanner import check_phantom_writable
    from drunet_cli.processes import run_tasks

    for seed in seeds:
        check_phantom_writable(folder, _name(seed), overwrite=overwrite)
    batch = Batch(screen, n_cases=len(seeds), alone=len(seeds) == 1, json=json)
    make_case = partial(_make_case, folder=folder, overwrite=overwrite)
    with batch.bar(), closing(run_tasks(make_case, seeds, n_processes=granted_cpus())) as outcomes:
        for seed, outcome in outcomes:
            name = _name(seed)
            if isinstance(outcome, DrunetError):
                batch.failed(name, outcome)
                continue
            document = {"case": name, "seed": seed, "files": {role: str(path) for role, path in outcome.files.items()}}
            batch.done(str(folder / name), document, note=f"{name}: four images and the truth")
    batch.finish(f"{plural(batch.n_done, 'case')} in {folder}")
