"""The three steps of one case of a cohort: read, compute, write. Each ends in a result or an error, which is a result too."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from drunet_cli.errors import DeviceError, DrunetError, LostDeviceError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning
from drunet_cli.network.engine import Engine
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.outputs import Extra, Target
from drunet_cli.segmentation.pipeline import PreparedCase, Segmentation
from drunet_cli.segmentation.plan import Making, adopt_sidecar, finished_document
from drunet_cli.segmentation.predict import NO_POSTPROCESSING, Plan, Postprocessing
from drunet_cli.segmentation.sidecar import Dropout, describe_settings, encode_sidecar, read_sidecar
from drunet_cli.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class CaseTask:
    """One case to segment. skip_if: outputs are there, and it is left out if they are complete and were made so, else fails."""

    case: Case
    target: Target
    skip_if: Making | None = None


@dataclass(frozen=True)
class CaseResult:
    """A case whose outputs are complete. document: the sidecar's object; left_out: they were so before.

    new_warnings: those that were not known when the case had been read.
    """

    document: dict[str, Any]
    new_warnings: tuple[CaseWarning, ...] = ()
    left_out: bool = False


Outcome: TypeAlias = CaseResult | DrunetError
Computed: TypeAlias = tuple[Segmentation, dict[str, Any]] | Outcome


@dataclass(frozen=True, kw_only=True)
class Network:
    """What computes: the opened weights, and for each device an engine for each of them.

    plan, postprocessing: what is asked of it. dropout: of the plan's samples. deterministic: as the engines were opened.
    making: where outputs that appear meanwhile are those of another run at the same cases, what they must be made with.
    """

    checkpoints: Sequence[Checkpoint]
    engines: Sequence[Sequence[Engine]]
    plan: Plan
    postprocessing: Postprocessing = NO_POSTPROCESSING
    dropout: Dropout | None = None
    deterministic: bool = False
    making: Making | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As the sidecar has them."""
        described = describe_settings(self.plan, self.postprocessing, self.dropout)
        return {**described, "deterministic": self.deterministic}


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Is told how a run goes, from any thread, and may raise to end it.

    on_read: of a case before it is computed. on_progress: the name of a case, its slices done, and its slices in all.
    """

    on_read: Callable[[PreparedCase], None] = lambda _: None
    on_progress: Callable[[str, int, int], None] = lambda *_: None


def read(task: CaseTask) -> tuple[CaseTask, PreparedCase | Outcome]:
    """Read a case, or leave it out. The task comes back as it is to be computed."""
    try:
        if task.skip_if is not None:
            document = finished_document(task.target.label_map, task.case, task.skip_if)
            if document is None:  # something else may be in the way: known before the work
                task.target.check(task.case.images)
            elif task.target.has_extras(document):
                return task, CaseResult(document, left_out=True)
            else:
                task = replace(task, target=replace(task.target, overwrite=True, completing=True))
        return task, pipeline.prepare(task.case, keep_views=Extra.PREVIEW in task.target.extras)
    except DrunetError as error:
        return task, error
    except MemoryError:
        return task, DeviceError(f"{task.case.name}: this machine's memory does not suffice to read the case")


def _left_out(task: CaseTask, making: Making | None) -> CaseResult | None:
    """A case whose outputs are there, all of them. Raises DrunetError where they are not as they should be."""
    document = None if making is None else finished_document(task.target.label_map, task.case, making)
    if document is None or task.target.completing or not task.target.has_extras(document):
        return None
    return CaseResult(document, left_out=True)


def compute(
    task: CaseTask, prepared: PreparedCase, engines: Sequence[Engine], network: Network, listener: Listener
) -> Computed:
    """Predict a case on one device. Whatever the listener raises goes through."""
    name = task.case.name
    try:
        if (left_out := _left_out(task, network.making)) is not None:
            return left_out
        listener.on_read(prepared)
        segmentation = pipeline.segment(
            prepared,
            engines,
            plan=network.plan,
            postprocessing=network.postprocessing,
            on_progress=lambda done, total: listener.on_progress(name, done, total),
        )
    except LostDeviceError:  # the next case would fare no better
        raise
    except DrunetError as error:
        return error
    except MemoryError:
        return DeviceError(f"{name}: this machine's memory does not suffice for the case")
    return segmentation, pipeline.describe(segmentation, engines[0], network.checkpoints, network.settings)


def write(task: CaseTask, segmentation: Segmentation, document: dict[str, Any], making: Making | None) -> Outcome:
    """Write the outputs of a case. making: what those of another run must be made with that was there first."""
    new_warnings = segmentation.warnings[len(segmentation.prepared.warnings) :]
    try:
        return CaseResult(task.target.write(segmentation, document), new_warnings)
    except OutputError as error:
        if (published := _published_by_another(task, document)) is not None:
            return CaseResult(published, new_warnings)
        try:
            if making is not None:
                adopt_sidecar(task.target.label_map)  # of another run that is about to publish it
            return _left_out(task, making) or error
        except DrunetError:
            return error
    except MemoryError:
        return DeviceError(f"{task.case.name}: this machine's memory does not suffice to write the label map")


def _published_by_another(task: CaseTask, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar's object where a run that has just begun took this one for killed, and has published its sidecar for it."""
    found = read_sidecar(task.target.sidecar_path)
    ours = {**json.loads(encode_sidecar(document)), "output": str(task.target.label_map)}
    return found if found is not None and ours.items() <= found.items() else None
