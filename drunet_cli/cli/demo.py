"""`drunet demo`."""

import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.cli import options
from drunet_cli.errors import DrunetError, MisuseError, plural

if TYPE_CHECKING:
    from drunet_cli.cli.console import Screen
    from drunet_cli.io.case import Case
    from drunet_cli.segmentation.outputs import Target
    from drunet_cli.segmentation.steps import Network

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
    no_tumour: Annotated[bool, typer.Option("--no-tumour", help="With --write-cases: brains without a tumour.")] = False,
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
    if no_tumour and write_cases is None:
        raise MisuseError("--no-tumour is for --write-cases: there would be nothing to compare")
    if write_cases is None:
        _segment_one(seed, output, device=device, overwrite=overwrite, screen=_screen(quiet), json=json)
    elif device == "auto":
        seeds = range(seed, seed + write_cases)
        tasks = [_Task(seed=run_tasks, folder=output, tumour=not no_tumour, overwrite=overwrite) for run_tasks in seeds]
        _write(tasks, screen=_screen(quiet), json=json)
    else:
        raise MisuseError(f"--write-cases segments nothing, so --device {device} makes no sense with it")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A case to be written into a folder."""

    seed: int
    folder: Path
    tumour: bool = True
    overwrite: bool

    @property
    def name(self) -> str:
        return f"{'phantom' if self.tumour else 'healthy'}_{self.seed}"

    def check(self) -> None:
        """Raise OutputError now for what would stop the writing later."""
        from drunet_cli.phantom.scanner import check_phantom_writable

        check_phantom_writable(self.folder, self.name, overwrite=self.overwrite)


def _written(task: _Task) -> "Case":
    """In a worker process, or here."""
    from drunet_cli.phantom.scanner import make_phantom, write_phantom

    return write_phantom(make_phantom(task.seed, tumour=task.tumour), task.folder, task.name, overwrite=task.overwrite)


def _write(tasks: list[_Task], *, screen: "Screen", json: bool) -> None:
    from drunet_cli.cli.batch import Batch
    from drunet_cli.host import granted_cpus
    from drunet_cli.jobs import run_tasks

    for task in tasks:
        task.check()
    batch = Batch(screen, n_cases=len(tasks), alone=len(tasks) == 1, json=json)
    with batch.bar(), closing(run_tasks(_written, tasks, n_processes=granted_cpus())) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                batch.failed(task.name, outcome)
                continue
            files = {role: str(path) for role, path in outcome.files.items()}
            document = {"case": task.name, "seed": task.seed, "files": files}
            batch.done(str(task.folder / task.name), document, note=f"{task.name}: four images and the truth")
    batch.finish(f"{plural(batch.n_done, 'case')} in {tasks[0].folder}")


def _segment_one(seed: int, folder: Path, *, device: str, overwrite: bool, screen: "Screen", json: bool) -> None:
    begin = time.perf_counter()
    from drunet_cli.cli.console import result_json, scores_table
    from drunet_cli.segmentation.outputs import Extra, Target
    from drunet_cli.segmentation.segmenter import Segmenter
    from drunet_cli.weights.registry import COMPACT

    task = _Task(seed=seed, folder=folder, overwrite=overwrite)
    target = Target(label_map=folder / f"{task.name}.nii.gz", extras=frozenset({Extra.PREVIEW}), overwrite=overwrite)
    target.remove_stale()
    task.check()
    target.check({})
    network = Segmenter(COMPACT, device=device, on_warning=screen.warning).network
    screen.note(f"Writing {folder / task.name}: a synthetic case, four images and the truth")
    case = _written(task)
    try:
        segmented = _segmented(case, target, network, screen)
    except BaseException:  # an interrupted demo is run again as it was
        if not overwrite:
            _remove(case)
        raise
    scores = _scores(case, target.label_map)
    if json:
        seconds = round(time.perf_counter() - begin, 3)
        result_json({"case": case.name, "seed": seed, "segmentation": segmented, "evaluation": scores, "seconds": seconds})
    else:
        screen.table(scores_table(scores))
    _say_how_to_go_on(task, target, screen)


def _remove(case: "Case") -> None:
    for path in case.files.values():
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something else lies there
        case.files["flair"].parent.rmdir()


def _segmented(case: "Case", target: "Target", network: "Network", screen: "Screen") -> Mapping[str, Any]:
    """Segment a case by the code of `drunet segment`; the sidecar's object."""
    from drunet_cli.cli.console import regions_in_words
    from drunet_cli.segmentation.cohort import segment_cases
    from drunet_cli.segmentation.steps import CaseTask, Listener

    with screen.slices_bar(1) as bar:

        def on_progress(name: str, done: int, total: int) -> None:
            if bar is not None:
                bar.show(name, done, total)

        tasks, listener = [CaseTask(case, target)], Listener(on_progress=on_progress)
        with closing(segment_cases(tasks, lambda: network, n_cpus=1, listener=listener)) as outcomes:
            ((_, outcome),) = outcomes
    if isinstance(outcome, DrunetError):
        raise outcome
    document = outcome.document
    for warning in document["warnings"]:
        screen.warning(warning["message"])
    seconds = sum(document["seconds"].values())
    where = f"{seconds:.1f} s on {document['device']}, weights {document['weights']['name']}"
    screen.note(f"{case.name}: {regions_in_words(document['volumes_ml'])} ({where})")
    return document


def _scores(case: "Case", label_map: Path) -> dict[str, Any]:
    """The object of `drunet evaluate --json`."""
    from drunet_cli.brats import ReadLabels
    from drunet_cli.evaluation.evaluate import Convention, EvaluationTask, evaluate
    from drunet_cli.evaluation.pairs import Pair

    assert case.segmentation is not None
    pair = Pair(case.name, label_map, case.segmentation)
    return evaluate(EvaluationTask(pair=pair, convention=Convention.BRATS, labels=ReadLabels.BRATS2020, tolerance_mm=1.0))


def _say_how_to_go_on(task: _Task, target: "Target", screen: "Screen") -> None:
    from drunet_cli.weights.registry import COMPACT, DEFAULT, ENTRIES

    screen.note(f"Images and truth: {task.folder / task.name}")
    screen.note(f"Label map: {target.label_map}, sidecar: {target.sidecar_path}")
    screen.note(f"Picture: {target.extra_paths[0]}")
    screen.note("Images of your own, with the small weights of this demo (to try it out):")
    screen.note("  drunet segment --t1 t1.nii.gz --t1ce t1ce.nii.gz --t2 t2.nii.gz \\")
    screen.note(f"      --flair flair.nii.gz -o seg.nii.gz --weights {COMPACT}")
    screen.note(f"With the published ones; their first use downloads {ENTRIES[DEFAULT].megabytes} MB:")
    screen.note("  drunet segment --t1 t1.nii.gz --t1ce t1ce.nii.gz --t2 t2.nii.gz \\")
    screen.note("      --flair flair.nii.gz -o seg.nii.gz")
    screen.note("  drunet segment BraTS_FOLDER -o results")


def _screen(quiet: bool) -> "Screen":
    from drunet_cli.cli.console import Screen

    return Screen(quiet=quiet)
