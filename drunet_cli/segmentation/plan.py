"""The plan of a run: the state of each case's outputs, and the work to do. A dry run prints the plan, a run carries it out."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from drunet_cli.brats import REGIONS, Modality, describe_labels
from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, WeightsError, changed_since, without_remedy
from drunet_cli.io.atomic import check_writable
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, refuse_serious
from drunet_cli.io.discovery import Cohort
from drunet_cli.io.inputs import InputFile, changed_files, sha256_of
from drunet_cli.io.naming import dataset_of
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import check_headers
from drunet_cli.segmentation.derivatives import check_dataset
from drunet_cli.segmentation.outputs import OutputFiles, OutputState, read_sidecar
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.settings import Settings
from drunet_cli.segmentation.summary import (
    Status,
    SummaryRow,
    check_summary,
    described_warnings,
    described_weights,
    failed_row,
    row_of,
)
from drunet_cli.weights.cache import metadata_of
from drunet_cli.weights.checkpoint import Metadata
from drunet_cli.weights.registry import BUNDLED, Entry, cached_path, find_entry, is_file, is_file_name, weights_path

if TYPE_CHECKING:
    from drunet_cli.prepare.preparation import PreparationSettings  # of raw scans alone
    from drunet_cli.prepare.prepared_case import PlannedPreparation

_THREADS: Final = 8  # file systems that answer slowly answer many questions at once
_REMEDY: Final = "give --overwrite to segment the case again"


class Action(StrEnum):
    """The work of a run on one case."""

    SEGMENT = "segment"
    OVERWRITE = "overwrite"
    LEAVE_OUT = "verify and leave out"
    ADD_FILES = "add missing files"
    REFUSE = "refuse"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """The plan of one case: the state of its outputs, and the work to do.

    error: why the case fails, though the run goes on. warnings: of its headers, see `look_at_headers`.
    preparation: of raw scans, before the images are read.
    """

    case: Case
    files: OutputFiles
    state: OutputState
    action: Action
    error: DrunetError | None = None
    warnings: tuple[CaseWarning, ...] = ()
    preparation: "PlannedPreparation | None" = None

    @property
    def differs(self) -> bool:
        """Whether the case fails although it has outputs, which need not be those that are asked for."""
        return self.error is not None and self.state is OutputState.COMPLETE


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run of `drunet segment`.

    cases: the usable cases of the cohort, in its order. summary: the table of the folder that the label maps go to; None
    for a label map that was named itself, and for one case whose folder has a table that drunet did not write. unusable: where
    the outputs of cases that cannot be used would be, by name. stop: the error that ends the run before its first case.
    notes: what is remarkable about the search for cases and about the plan.
    """

    cohort: Cohort
    settings: Settings
    cases: tuple[PlannedCase, ...]
    summary: Path | None
    unusable: Mapping[str, OutputFiles]
    stop: DrunetError | None
    notes: tuple[str, ...]

    @property
    def n_cases(self) -> int:
        """All cases, also those that cannot be used."""
        return len(self.cases) + len(self.cohort.broken)


def plan_run(
    cohort: Cohort,
    ensemble: Ensemble,
    label_maps: Mapping[str, Path],
    *,
    summary: Path | None = None,
    preparation: "PreparationSettings | None" = None,
) -> RunPlan:
    """Decide what to do with every case. Nothing is written, and no image is read.

    label_maps: where the label map of each case goes, by name, also of cases that cannot be used. summary: the folder's table.
    preparation: of a cohort of raw scans; the cohort of the plan then has the images that will be made of them.
    Raises MisuseError for weights that are given twice.
    """
    settings = ensemble.settings
    _check_distinct(settings.weights)
    preparations: Sequence[PlannedPreparation] = ()
    if preparation is not None:
        from drunet_cli.prepare.prepared_case import plan_preparations

        preparations = plan_preparations(cohort.cases, preparation)
        cohort = replace(cohort, cases=tuple(replace(each.case, images=each.files.images) for each in preparations))
    notes = cohort.notes
    if cohort.alone and summary is not None:
        try:
            check_summary(summary, overwrite=False)
        except OutputError:  # somebody's table beside the label map is no reason to refuse the case
            notes += (f"{summary}: is not a table that drunet wrote; the case is not entered there",)
            summary = None
    files = [OutputFiles(label_maps[case.name], settings) for case in cohort.cases]
    cases = _in_threads(lambda case: _plan_case(*case), list(zip(cohort.cases, files, strict=True)))
    cases = _with_preparations(cases, preparations)
    usable = {case.name for case in cohort.cases}
    unusable = {name: OutputFiles(path, settings) for name, path in label_maps.items() if name not in usable}
    plan = RunPlan(cohort=cohort, settings=settings, cases=cases, summary=summary, unusable=unusable, stop=None, notes=notes)
    try:
        _check(plan, ensemble)
        if preparations:
            from drunet_cli.prepare.prepared_case import check_preparations

            check_preparations(preparations)
    except DrunetError as error:
        return replace(plan, stop=error)
    return plan


def look_at_headers(plan: RunPlan) -> RunPlan:
    """The same plan with the warnings and failures that headers tell, for a dry run. A run meets them as it reads the cases."""
    return replace(plan, cases=_in_threads(_with_header_checks, plan.cases))


def compare_prepared(plan: RunPlan) -> RunPlan:
    """The same plan with complete files of prepared cases compared, for a dry run; a run compares case by case."""
    from drunet_cli.prepare.prepared_case import compare_preparations

    preparations = compare_preparations([each.preparation for each in plan.cases if each.preparation is not None])
    return replace(plan, cases=_with_preparations(plan.cases, preparations))


def compare_outputs(plan: RunPlan, ensemble: Ensemble) -> RunPlan:
    """The same plan with complete outputs compared, for a dry run; a run compares case by case. Opens the weights."""
    if any(each.action in (Action.LEAVE_OUT, Action.ADD_FILES) for each in plan.cases):
        _ = ensemble.checkpoints
    return replace(plan, cases=_in_threads(partial(_compared, ensemble=ensemble), plan.cases))


def _with_preparations(cases: Sequence[PlannedCase], preparations: Sequence["PlannedPreparation"]) -> tuple[PlannedCase, ...]:
    by_name = {each.case.name: each for each in preparations}
    return tuple(replace(each, preparation=by_name.get(each.case.name)) for each in cases)


def _in_threads(function: Callable[[Any], PlannedCase], items: Sequence[Any]) -> tuple[PlannedCase, ...]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return tuple(threads.map(function, items))


def _plan_case(case: Case, files: OutputFiles) -> PlannedCase:
    state, settings = files.state(), files.settings
    extras_there = files.extras_there()
    error: DrunetError | None = None
    if settings.overwrite:
        is_free = state in (OutputState.NEW, OutputState.UNFINISHED)
        action = Action.SEGMENT if is_free else Action.OVERWRITE
    elif settings.skip_existing and state is OutputState.COMPLETE:
        action = Action.LEAVE_OUT if all(extras_there) else Action.ADD_FILES
    elif state in (OutputState.NEW, OutputState.UNFINISHED) and not any(extras_there):
        action = Action.SEGMENT
    elif settings.skip_existing:  # somebody's file is in the way: the case fails, and the run goes on
        action, error = Action.FAIL, _in_the_way(case, files)
    else:
        action = Action.REFUSE
    return PlannedCase(case=case, files=files, state=state, action=action, error=error)


def _in_the_way(case: Case, files: OutputFiles) -> OutputError:
    try:
        if os.path.lexists(files.label_map):
            raise _undescribed(files.label_map)
        files.check(case.files.values())
    except OutputError as error:
        return error
    return OutputError(f"{files.label_map}: a file in its way has just gone; try again")


def _undescribed(label_map: Path) -> OutputError:
    return OutputError(f"{label_map}: exists already, without a sidecar that says what it was made of; {_REMEDY}")


def _check(plan: RunPlan, ensemble: Ensemble) -> None:
    """Raise the error that would stop the run before its first case."""
    alone, settings = plan.cohort.alone, plan.settings
    in_the_way = [each for each in plan.cases if each.state in (OutputState.COMPLETE, OutputState.FOREIGN)]
    if in_the_way and not (alone or settings.skip_existing or settings.overwrite):
        files = in_the_way[0].files
        first = files.label_map if os.path.lexists(files.label_map) else files.sidecar
        others = f", and the outputs of {len(in_the_way) - 1} more of {len(plan.cases)} cases" if len(in_the_way) > 1 else ""
        remedy = "give --skip-existing to leave out what is complete, or --overwrite to replace all of it"
        raise OutputError(f"{first}: exists already{others}; {remedy}")
    if plan.summary is not None and not alone:
        check_writable(plan.summary, overwrite=True)
        check_summary(plan.summary, overwrite=settings.overwrite)
    if settings.bids:
        for dataset in dict.fromkeys(dataset_of(each.files.label_map) for each in plan.cases):
            check_dataset(dataset)
    _check_apart(plan.cases)
    for each in plan.cases:
        if each.action not in (Action.LEAVE_OUT, Action.ADD_FILES, Action.FAIL):
            each.files.check(each.case.files.values())
    if plan.cases:
        ensemble.check_weights()
        if any(map(_is_to_be_downloaded, settings.weights)):
            missing_weights(settings)  # before a download of weights that would be refused


def _check_apart(cases: Iterable[PlannedCase]) -> None:
    """Raise OutputError for a file that two cases would write, such as the entropy of p1 and the label map of p1_entropy."""
    owners: dict[Path, str] = {}
    for each in cases:
        for path in each.files.paths:
            if (owner := owners.setdefault(path, each.case.name)) != each.case.name:
                raise OutputError(f"{path}: of the case {owner} and of {each.case.name} alike; give one of them another name")


def _with_header_checks(planned: PlannedCase) -> PlannedCase:
    if planned.action in (Action.LEAVE_OUT, Action.FAIL):
        return planned
    try:
        warnings = check_headers(planned.case)
        if planned.files.settings.strict:
            refuse_serious(warnings)
        return replace(planned, warnings=warnings)
    except DrunetError as error:
        return replace(planned, action=Action.FAIL, error=error)


def _compared(planned: PlannedCase, ensemble: Ensemble) -> PlannedCase:
    if planned.action not in (Action.LEAVE_OUT, Action.ADD_FILES):
        return planned
    try:
        return look_again(planned, ensemble)[0]
    except DrunetError as error:
        return replace(planned, action=Action.FAIL, error=error)


# Resuming: whether a label map that is there is the one that would be made


def look_again(planned: PlannedCase, ensemble: Ensemble) -> tuple[PlannedCase, dict[str, Any] | None]:
    """Look whether the outputs of a case are complete by now: this run may have found them so, or another may have made them.

    Returns the plan of the case as things are now, and the sidecar's object of outputs that need nothing more. Outputs that
    were there and are to be overwritten are not looked at. Raises DrunetError for outputs that this run would not make.
    """
    case, files = planned.case, planned.files
    if planned.action is Action.OVERWRITE:
        return planned, None
    try:
        document = same_document(case, files, ensemble)
        if document is None:
            if planned.action in (Action.LEAVE_OUT, Action.ADD_FILES):  # removed since the plan was made
                files.check(case.files.values())
            return replace(planned, action=Action.SEGMENT), None
        if files.has_extras(document):
            return planned, document
    except DrunetError:
        if files.settings.overwrite:  # what another run has made meanwhile
            return replace(planned, action=Action.OVERWRITE), None
        raise
    return replace(planned, action=Action.ADD_FILES), None


def row_of_failure(name: str, error: DrunetError, files: OutputFiles | None) -> SummaryRow:
    """The row of a case for which a run made no label map. A label map from before is told with the error.

    files: None for a source that holds no case.
    """
    if files is None or files.state() is not OutputState.COMPLETE:
        return failed_row(name, error)
    known = whole_document(files) or {}
    row = row_of({**known, "case": name, "output": str(files.label_map)}, Status.DIFFERS)
    return replace(row, error=str(error))


def same_document(case: Case, files: OutputFiles, ensemble: Ensemble) -> dict[str, Any] | None:
    """The sidecar's object of a label map that is whole, and was made of this case in this way; None for no label map.

    Raises OutputError for a label map that was made of something else or otherwise, or that somebody has changed, and CaseError
    where an input cannot be read, or where the settings are strict and the label map has a serious warning.
    """
    if not os.path.lexists(files.label_map):
        return None
    document = read_sidecar(files.sidecar)
    if document is None:
        raise _undescribed(files.label_map)
    _check_whole(files.label_map, document)
    if difference := _difference(document, case, files, ensemble):
        raise OutputError(f"{files.label_map}: was made {difference}; {_REMEDY}")
    if files.settings.strict:
        refuse_serious(described_warnings(document))
    return document


def whole_document(files: OutputFiles) -> dict[str, Any] | None:
    """The sidecar's object of a label map that is as it was written, however it was made; None for any other."""
    document = read_sidecar(files.sidecar)
    with suppress(OutputError):
        if document is not None and document.get("output_sha256") == sha256_of(files.label_map, error=OutputError):
            return document
    return None


def _check_whole(label_map: Path, document: Mapping[str, Any]) -> None:
    if document.get("output_sha256") == sha256_of(label_map, error=OutputError):
        return
    try:
        load_volume(label_map)
    except CaseError as error:
        raise OutputError(f"{without_remedy(str(error))}; {_REMEDY}") from error
    raise OutputError(changed_since(label_map, then="segment the case again"))


def _difference(document: Mapping[str, Any], case: Case, files: OutputFiles, ensemble: Ensemble) -> str:
    """The first difference, in words that follow "was made"; empty for none. Raises OutputError for other images."""
    try:
        weights, settings = described_weights({"weights": document["weights"]}), document["settings"]
        inputs = {name: InputFile(**entry) for name, entry in document["inputs"].items()}
        if [each["sha256"] for each in weights] != [checkpoint.sha256 for checkpoint in ensemble.checkpoints]:
            return "with other weights: " + ", ".join(f"{each['name']}, SHA-256 {each['sha256'][:12]}..." for each in weights)
        if document["labels"] != describe_labels(ensemble.settings.labels):
            return "with other label values"
        for name, value in ensemble.compared.items():
            if (before := settings.get(name, _BEFORE.get(name))) != value:
                return f"with {name} {before}, now {value}"
        _check_reported(document)
    except (KeyError, TypeError, AttributeError):
        return "by another version of drunet, which recorded other things"
    images = {str(modality): path for modality, path in case.images.items()}
    if inputs.keys() != images.keys():
        return "of other images"
    changed = changed_files(inputs, images)
    if len(changed) == len(images) and not any(inputs[name].path == str(path) for name, path in images.items()):
        raise OutputError(
            f"{files.label_map}: is the label map of other images, {inputs[Modality.FLAIR].path} and so on; name another OUT, "
            "or name the case by its files"
        )
    return f"of another file than {changed[0]} is now" if changed else ""


# Settings that version 0.1.0 did not record, as it had them.
_BEFORE: Final = {"within_brain": False}


def _check_reported(document: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or AttributeError where the object lacks a value that is printed of a case left out."""
    words = (document["case"], document["device"], *(weights["name"] for weights in described_weights(document)))
    numbers = (*(document["volumes_ml"][region] for region in REGIONS), *document["seconds"].values())
    if not (all(isinstance(word, str) for word in words) and all(isinstance(number, int | float) for number in numbers)):
        raise TypeError


# Weights that are not in the cache


def missing_weights(settings: Settings) -> list[Entry]:
    """The sets of weights that would be downloaded.

    Raises MisuseError for weights that do not say what the settings leave to them, and WeightsError for a file that holds no
    weights. Only the header of a .safetensors file is read.
    """
    missing = []
    known = []
    for name in settings.weights:
        if _is_to_be_downloaded(name):
            missing.append(entry := find_entry(name))
            known.append(Metadata(name=name, base_width=entry.base_width, bn_epsilon=entry.bn_epsilon, dropout=entry.dropout))
        else:
            known.append(metadata_of(name)[1])
    settings.check_for(known)
    return missing


def _is_to_be_downloaded(name: str) -> bool:
    return not (is_file_name(name) or name in BUNDLED or is_file(cached_path(name)))


def _check_distinct(names: Iterable[str]) -> None:
    """Raise MisuseError for weights that are given twice, by whatever name: the mean would be the same."""
    seen: dict[str, str] = {}
    for name in names:
        with suppress(WeightsError):  # an illegal name is refused elsewhere
            file = os.path.realpath(name if is_file_name(name) else weights_path(name))
            if file in seen:
                raise MisuseError(f"weights={name}: the same file as weights={seen[file]}; give it once")
            seen[file] = name
