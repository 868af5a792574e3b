"""Cross-validation: a training for each fold, label maps of all cases by networks that have not seen them, and their scores.

CV/folds.json      the held-out cases of each fold, written before the first step
CV/fold_1/, ...    an ordinary training for each fold
CV/slices/         the cases as slices, for all folds, unless --slices-dir names another folder
CV/out_of_fold/    the label map of each case, by the last weights of the fold that held the case out
CV/ensemble.json   the last weights of all folds, for `segment --weights CV`; written when all folds are done
CV/statistics.csv  one row for each region and score over all cases: mean, its interval, and more
CV/scores.csv      one row for each case and region, as `drunet evaluate --csv` writes; written last

The last weights are scored and not the best ones: the best epoch is chosen by the held-out cases, whose scores would then be
too good. Jobs that train different folds may run at the same time. Whichever finds all folds done writes the scores; where
two do so, both write the same bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, WeightsError, join_some
from drunet_cli.evaluation.evaluate import (
    EvaluationTask,
    Statistics,
    encode_csv,
    encode_statistics,
    evaluate,
    summarise,
)
from drunet_cli.evaluation.pairs import Pair
from drunet_cli.io.atomic import check_writable, publish
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import Cohort
from drunet_cli.io.inputs import sha256_of
from drunet_cli.network.engine import EngineName, is_proved
from drunet_cli.processes import run_tasks
from drunet_cli.segmentation.cohort import segment_cases
from drunet_cli.segmentation.outputs import OutputFiles, read_sidecar
from drunet_cli.segmentation.plan import plan_run, same_document, whole_document
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.settings import Settings
from drunet_cli.segmentation.summary import described_weights
from drunet_cli.training.cases import FoundCases, Split, draw_folds, patients_of
from drunet_cli.training.history import OnProgress, Stage, TrainingProgress, ignore_progress
from drunet_cli.training.recipe import Recipe, TrainingSettings, differences
from drunet_cli.training.run_folder import FOLDS_FILE, RunFolder
from drunet_cli.training.session import TrainingPlan, find_usable_cases, plan_training, read_cases, settle_recipe
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.registry import ENSEMBLE_FILE

FOLDS_SCHEMA: Final = "drunet.folds/1"
ENSEMBLE_SCHEMA: Final = "drunet.ensemble/1"
_SEED: Final = 0  # of the bootstrap, as `drunet evaluate` has it


@dataclass(frozen=True)
class Folds:
    """The held-out cases of each fold, sorted; every case is in one fold. seed: which drew the folds."""

    seed: int
    held_out: tuple[tuple[str, ...], ...]

    def split(self, fold: int) -> Split:
        """Return the split of one fold, counted from 1."""
        validation = self.held_out[fold - 1]
        return Split(tuple(sorted({name for names in self.held_out for name in names}.difference(validation))), validation)

    def as_json(self) -> bytes:
        """Return the file that `CrossValidation.read` reads."""
        document = {"schema": FOLDS_SCHEMA, "seed": self.seed, "folds": self.held_out}
        return json.dumps(document, indent=2).encode() + b"\n"


class CrossValidation:
    """The folder of a cross-validation; the head of this module says what its files are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folds = root / FOLDS_FILE
        self.out_of_fold = root / "out_of_fold"
        self.statistics = root / "statistics.csv"
        self.scores = root / "scores.csv"
        self.ensemble = root / ENSEMBLE_FILE
        self._results = (self.ensemble, self.scores, self.statistics)

    def run(self, fold: int) -> RunFolder:
        """Return the run folder of a fold, counted from 1."""
        return RunFolder(self.root / f"fold_{fold}")

    def label_map(self, case: str) -> Path:
        """Return the path of the label map of a case."""
        return self.out_of_fold / f"{case}.nii.gz"

    def read(self) -> Folds | None:
        """Read the folds; None where the folder holds no cross-validation. Raises CaseError for a damaged file."""
        try:
            document = json.loads(self.folds.read_text(encoding="utf-8"))
            return Folds(int(document["seed"]), tuple(tuple(map(str, names)) for names in document["folds"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CaseError(f"{self.folds}: cannot be read, or is damaged; --overwrite begins anew") from error

    def check_writable(self, *, overwrite: bool) -> None:
        """Raise OutputError now for faults that would stop the writing later."""
        for path in (self.folds, *self._results):
            check_writable(path, overwrite=overwrite)

    def check_same(self, folds: Folds) -> None:
        """Raise CaseError where the folder has other folds than these."""
        stored = self.read()
        if stored in (None, folds):
            return
        begin = f"{self.folds}: the cross-validation that is there"
        before, now = ({name for names in each.held_out for name in names} for each in (stored, folds))
        if missing := sorted(before - now):
            raise CaseError(f"{begin} has {join_some(missing)}, not among the cases given; {_ANEW}")
        if new := sorted(now - before):
            raise CaseError(f"{begin} lacks {join_some(new)}; leave such cases out, or begin another with all")
        if len(stored.held_out) != len(folds.held_out):
            raise CaseError(f"{begin} has {len(stored.held_out)} folds, not {len(folds.held_out)}; {_ANEW}")
        raise CaseError(f"{begin} has other cases in its folds (its seed is {stored.seed}, now {folds.seed}); {_ANEW}")

    def remove_results(self) -> None:
        """Remove the results of all folds, before one fold changes. Raises OutputError."""
        for path in self._results:
            _remove(path)


_ANEW: Final = "give the cases and options that it began with, or begin another"


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """The plan of one fold. number: from 1. settings: of its training. is_finished: nothing is left to train."""

    number: int
    settings: TrainingSettings
    plan: TrainingPlan
    is_finished: bool


@dataclass(frozen=True, kw_only=True)
class CrossValidationPlan:
    """The plan of a cross-validation. cases: by name. fold_plans: of the folds that are asked for."""

    folds: Folds
    cases: Mapping[str, Case]
    fold_plans: tuple[FoldPlan, ...]


def plan_folds(settings: TrainingSettings) -> CrossValidationPlan:
    """Find the cases, draw the folds, and plan the training of those that are wanted. Reads no image and writes nothing.

    Raises MisuseError, CaseError, OutputError and WeightsError.
    """
    assert settings.folds is not None
    folder = CrossValidation(settings.output)
    if RunFolder(folder.root).exists:
        raise OutputError(f"{folder.root}: holds a training of its own; name another folder for the cross-validation")
    numbers = [settings.fold] if settings.fold is not None else range(1, settings.folds + 1)
    replaced = numbers if settings.overwrite else []
    begun = [run for k in range(1, settings.folds + 1) if k not in replaced and (run := folder.run(k)).exists]
    recipe = settle_recipe(settings, begun[0] if begun else folder.run(1), continues=bool(begun))
    found = find_usable_cases(settings)
    cases = _images_of(found)
    folds = Folds(recipe.seed, draw_folds(patients_of(found.cases, settings.sources), settings.folds, seed=recipe.seed))
    is_new = _begins_anew(settings) or folder.read() is None
    if is_new:
        folder.check_writable(overwrite=settings.overwrite)
    else:
        folder.check_same(folds)
    expected = _check_alike(settings, recipe, begun)
    plans = []
    for number in numbers:
        of_fold = replace(settings, output=folder.run(number).root, folds=None, fold=None)
        plan = plan_training(of_fold, found=found, recipe=recipe, split=folds.split(number))
        is_finished = plan.continues and folder.run(number).is_finished
        plans.append(FoldPlan(number=number, settings=of_fold, plan=replace(plan, expected=expected), is_finished=is_finished))
    return CrossValidationPlan(folds=folds, cases=cases, fold_plans=tuple(plans))


def _images_of(found: FoundCases) -> dict[str, Case]:
    """Return the cases by name. Raises CaseError for PNG slices, which have no images to segment."""
    cases = {case.name: case.source for case in found.cases if isinstance(case.source, Case)}
    if other := next((case for case in found.cases if case.name not in cases), None):
        raise CaseError(
            f"{other.place}: {other.name} is PNG slices; a cross-validation writes label maps: give the NIfTI images"
        )
    return cases


def _begins_anew(settings: TrainingSettings) -> bool:
    return settings.overwrite and settings.fold is None


def _check_alike(settings: TrainingSettings, recipe: Recipe, begun: Sequence[RunFolder]) -> Mapping[str, Mapping[str, str]]:
    """Return the SHA-256 of the files that the folds learn from, where one has begun. Raises MisuseError for other numbers."""
    for run in begun:
        if changes := differences(run.read()[0], recipe):
            raise MisuseError(
                f"{run.config}: this fold has {'; '.join(changes)}; leave these options as they were for all folds"
            )
    if not begun:
        return {}
    before = begun[0].init_of_first_session()
    if not settings.dry_run and len(begun) < (settings.folds or 0):  # a dry run does not download weights to begin with
        now = None if settings.init is None else settings.init.sha256
        if now != (before["sha256"] if before is not None else None):
            began = "new weights; leave --init out" if before is None else f"{before['name']}; give that to --init"
            raise MisuseError(f"{begun[0].root}: this fold began with {began}, as all folds are trained alike")
    return begun[0].cases_of_last_session()


def read_fold_cases(
    plan: CrossValidationPlan,
    *,
    on_progress: OnProgress = ignore_progress,
    on_warning: Callable[[str], None] = lambda _: None,
) -> CrossValidationPlan:
    """Read every case into the store that the folds share, as `read_cases` does; return the plan with summaries."""
    first = plan.fold_plans[0]
    for note in first.plan.notes:
        on_warning(note)
    read = read_cases(first.settings, first.plan, on_progress=on_progress, on_warning=on_warning)
    fold_plans = tuple(replace(fold, plan=replace(fold.plan, summaries=read.summaries)) for fold in plan.fold_plans)
    return replace(plan, fold_plans=fold_plans)


def begin_folds(settings: TrainingSettings, plan: CrossValidationPlan) -> None:
    """Write these folds into the folder. Raises OutputError, and CaseError where another job has just written other folds."""
    folder = CrossValidation(settings.output)
    if _begins_anew(settings):
        for root in folder.root.glob("fold_*"):
            RunFolder(root).clear()
        for path in folder.out_of_fold.glob("*.nii.gz"):
            if whole_document(files := OutputFiles(path, Settings())) is not None:
                _remove(files.label_map)
                _remove(files.sidecar)
    if not all(fold.is_finished for fold in plan.fold_plans):
        folder.remove_results()
    if _begins_anew(settings) or folder.read() is None:
        try:
            publish(folder.folds, plan.folds.as_json(), overwrite=_begins_anew(settings))
        except OutputError:
            if folder.read() is None:  # else another job has written it first
                raise
    folder.check_same(plan.folds)


def segment_held_out(
    settings: TrainingSettings, plan: CrossValidationPlan, fold: FoldPlan, *, on_progress: OnProgress = ignore_progress
) -> int:
    """Segment the held-out cases of a fold by its last weights; return how many, without those done before.

    Raises OutputError for a label map in the way that is not as drunet wrote it, and whatever stops the segmentation of a case.
    """
    folder = CrossValidation(settings.output)
    ensemble = Ensemble(
        Settings(
            weights=(str(folder.run(fold.number).last),),
            device=settings.device,
            engine=EngineName.AUTO if is_proved() else EngineName.TORCH,  # only model.py has the changes of a changed network
            threads=settings.threads,
            deterministic=settings.deterministic,
            overwrite=True,
        ),
        on_warning=_ignore,
        open_weights=open_weights,
    )
    held_out = [plan.cases[name] for name in plan.folds.held_out[fold.number - 1]]
    cases = [case for case in held_out if not _is_segmented(case, folder, ensemble)]
    if not cases:
        return 0
    folder.remove_results()
    label_maps = {case.name: folder.label_map(case.name) for case in cases}
    run = plan_run(Cohort(tuple(cases), (), alone=False), ensemble, label_maps)
    if run.stop is not None:
        raise run.stop

    def tell(name: str, done: int, total: int) -> None:
        on_progress(TrainingProgress(stage=Stage.SEGMENTING, case=name, done=done, total=total))

    # The warnings about the images were given when they were read; an empty label map shows in the scores.
    with closing(segment_cases(run, ensemble, on_warning=_ignore, on_progress=tell)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                raise outcome
    return len(cases)


def _ignore(_: str) -> None:
    pass


def _is_segmented(case: Case, folder: CrossValidation, ensemble: Ensemble) -> bool:
    """Whether the label map of a case is there, by these weights; one by earlier weights is not. Raises OutputError."""
    files = OutputFiles(folder.label_map(case.name), ensemble.settings)
    try:
        return same_document(case, files, ensemble) is not None
    except OutputError:
        if whole_document(files) is None:
            raise
        return False


def unfinished_folds(settings: TrainingSettings, plan: CrossValidationPlan) -> list[int]:
    """Return the folds, counted from 1, that are not trained to the end, or whose label maps are not all there."""
    folder = CrossValidation(settings.output)
    return [
        number
        for number, held_out in enumerate(plan.folds.held_out, start=1)
        if not _is_done(folder, number, plan.folds.split(number), held_out)
    ]


def _is_done(folder: CrossValidation, number: int, split: Split, held_out: Sequence[str]) -> bool:
    run = folder.run(number)
    if not run.is_finished or run.read()[1] != split:
        return False
    sha256 = sha256_of(run.last, error=WeightsError)
    for name in held_out:
        label_map = folder.label_map(name)
        document = read_sidecar(OutputFiles(label_map, Settings()).sidecar)
        if document is None or not label_map.is_file() or described_weights(document)[0]["sha256"] != sha256:
            return False
    return True


def write_ensemble(settings: TrainingSettings, plan: CrossValidationPlan) -> None:
    """List the weights of all folds, which are done, for `segment --weights`. Raises OutputError."""
    folder = CrossValidation(settings.output)
    weights = [folder.run(number).last.relative_to(folder.root).as_posix() for number in range(1, len(plan.folds.held_out) + 1)]
    content = json.dumps({"schema": ENSEMBLE_SCHEMA, "weights": weights}, indent=2).encode() + b"\n"
    publish(folder.ensemble, content, overwrite=True)


def score_all(
    settings: TrainingSettings, plan: CrossValidationPlan, *, on_progress: OnProgress = ignore_progress
) -> Mapping[str, Mapping[str, Statistics]]:
    """Score the label maps of all cases as `drunet evaluate` does, and write the tables.

    Returns statistics by region and score. Raises CaseError and OutputError.
    """
    folder = CrossValidation(settings.output)
    tasks = []
    for case in plan.cases.values():
        assert case.segmentation is not None, "find_training_cases refuses a case without segmentation"
        tasks.append(EvaluationTask(pair=Pair(case.name, folder.label_map(case.name), case.segmentation)))
    documents: list[dict[str, Any]] = []
    with closing(run_tasks(evaluate, tasks, n_processes=settings.n_jobs)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, DrunetError):
                raise outcome
            documents.append(outcome)
            on_progress(TrainingProgress(stage=Stage.SCORING, done=len(documents), total=len(tasks)))
    documents.sort(key=lambda document: str(document["case"]))
    summary = summarise(documents, seed=_SEED)
    publish(folder.statistics, encode_statistics(summary), overwrite=True)
    publish(folder.scores, encode_csv(documents), overwrite=True)
    return summary


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed: {error.strerror}") from error
