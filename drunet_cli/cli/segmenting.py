"""A run of `drunet segment` over the cases that were found."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from drunet_cli.cli.batch import Batch
from drunet_cli.cli.cases import label_map_path, names_a_file
from drunet_cli.cli.console import Screen
from drunet_cli.cli.prospects import print_prospects
from drunet_cli.cli.results import case_note, last_line, note_rows
from drunet_cli.errors import DrunetError, MisuseError, OutputError, Terminated, plural
from drunet_cli.host import limit_malloc_arenas
from drunet_cli.io.atomic import check_writable, create_folder, remove_stale_in, write_atomically
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import Cohort
from drunet_cli.segmentation import plan
from drunet_cli.segmentation.cohort import (
    Status,
    SummaryRow,
    encode_summary,
    failed_row,
    is_summary,
    row_of,
    segment_cases,
    summary_name,
)
from drunet_cli.segmentation.outputs import Wanted
from drunet_cli.segmentation.pipeline import PreparedCase
from drunet_cli.segmentation.plan import State, check_distinct, prospects
from drunet_cli.segmentation.segmenter import Segmenter
from drunet_cli.segmentation.steps import CaseTask, Listener, Network, Outcome


@dataclass(frozen=True, kw_only=True)
class Outputs(Wanted):
    """What is to be written, and where. output: a label map, or the folder of any number. shard: K and N."""

    output: Path
    skip_existing: bool = False
    shard: tuple[int, int] | None = None

    @property
    def folder(self) -> Path | None:
        """None where the output is one file."""
        return None if names_a_file(self.output) else self.output

    @property
    def summary(self) -> Path:
        """Of several cases."""
        return self.output / summary_name(self.shard)


class Run:
    """One run. Raises MisuseError where several cases would get one file, or the same weights are given twice."""

    def __init__(self, cohort: Cohort, outputs: Outputs, segmenter: Segmenter, screen: Screen, *, json: bool) -> None:
        self._cohort = cohort
        self._outputs = outputs
        self._segmenter = segmenter
        self._screen = screen
        self._json = json
        self._targets = {case.name: outputs.target(label_map_path(outputs.output, case.name)) for case in cohort.cases}
        check_distinct(segmenter.weights)
        if outputs.folder is None and not cohort.alone:
            raise MisuseError(f"-o {outputs.output}: is one file; name a folder, which gets a label map of each case")

    def print_plan(self) -> None:
        """What would be done. Raises what would stop the run before its first case, else as the run would end."""
        cases = [(case, self._targets[case.name]) for case in self._cohort.cases]
        found = prospects(cases, skip_existing=self._outputs.skip_existing)
        stop = None
        try:
            self._check()
        except DrunetError as error:
            stop = error
        self._tell_of_cohort()
        print_prospects(found, self._cohort, self._segmenter, self._screen, json=self._json, stop=stop)

    def segment(self) -> None:
        """Segment all cases. Raises the error of a case that was given alone, typer.Exit where one of several failed."""
        begin = time.perf_counter()
        limit_malloc_arenas()
        self._remove_stale()
        self._check()
        with create_folder(self._outputs.folder or self._outputs.output.parent):
            self._segment(since=begin)

    def _segment(self, *, since: float) -> None:
        self._tell_of_cohort()
        tasks = self._tasks()
        n_cases = len(tasks) + len(self._cohort.broken)
        batch = Batch(self._screen, n_cases=n_cases, alone=self._cohort.alone, json=self._json)
        rows = [failed_row(broken.name, broken.error) for broken in self._cohort.broken]
        for broken in self._cohort.broken:
            batch.failed(broken.name, broken.error)
        with batch.slices_bar() as draw:
            listener = Listener(on_read=self._warn, on_progress=draw)
            n_cpus = self._segmenter.threads
            with closing(segment_cases(tasks, self._open_network, n_cpus=n_cpus, listener=listener)) as outcomes:
                for task, outcome in self._noted(outcomes, batch):
                    rows.append(self._tell(task, outcome, batch, since=since))
        self._end(rows, batch, seconds=time.perf_counter() - since)

    def _tell_of_cohort(self) -> None:
        for note in self._cohort.notes:
            self._screen.warning(note)
        if self._outputs.shard is not None and not (self._cohort.cases or self._cohort.broken):
            k, n = self._outputs.shard
            self._screen.note(f"shard {k} of {n} is empty: there are fewer cases than shards")

    def _noted(self, outcomes: Iterator[tuple[CaseTask, Outcome]], batch: Batch) -> Iterator[tuple[CaseTask, Outcome]]:
        """Say of an interrupted run how far it came."""
        try:
            yield from outcomes
        except (KeyboardInterrupt, Terminated):
            if not self._cohort.alone:
                n_cases = len(self._cohort.cases)
                self._screen.note(
                    f"Stopped: {batch.n_done} of {plural(n_cases, 'case')} done; --skip-existing goes on from there"
                )
            raise

    def _state(self, case: Case) -> State:
        return plan.state_of(self._targets[case.name].label_map, sidecar=self._outputs.sidecar)

    def _something_there(self, case: Case) -> bool:
        """A label map, or what is in the way of the files beside it."""
        return self._state(case) in (State.COMPLETE, State.FOREIGN) or any(self._extras_there(case))

    def _extras_there(self, case: Case) -> list[bool]:
        return [os.path.lexists(path) for path in self._targets[case.name].extra_paths]

    def _remove_stale(self) -> None:
        """Remove what killed runs have left of these outputs."""
        targets = self._targets.values()
        # Sidecars are adopted whatever this run is to do, and at whichever cases: with the rest they would be lost to the next.
        if self._outputs.folder is None:
            for target in targets:
                plan.adopt_sidecar(target.label_map)
                target.remove_stale()
        else:
            plan.adopt_sidecars_in(self._outputs.folder)
            for suffix in (".nii.gz", ".json", ".png", ".csv"):
                remove_stale_in(self._outputs.folder, suffix=suffix)
        if self._outputs.skip_existing:
            for target in targets:
                plan.remove_orphan(target.label_map)

    def _check(self) -> None:
        """Raise, before anything is read, what would stop the run later."""
        cases = self._cohort.cases
        if not (self._cohort.alone or self._outputs.skip_existing or self._outputs.overwrite):
            label_maps = [target.label_map for target in self._targets.values()]
            if refusal := plan.refusal(label_maps, sidecar=self._outputs.sidecar):
                raise OutputError(refusal)
        if not self._cohort.alone:
            check_writable(self._outputs.summary, overwrite=True)
            if not (self._outputs.overwrite or is_summary(self._outputs.summary)):
                raise OutputError(f"{self._outputs.summary}: exists already and is not drunet's; name another OUT")
        for case in cases:
            if not (self._outputs.skip_existing and self._something_there(case)):
                self._targets[case.name].check(case.images)
        if cases:
            self._segmenter.check()

    def _tasks(self) -> list[CaseTask]:
        """A weights file is opened for what is there already, to be compared with; else not before a case has been read."""
        there = {case.name for case in self._cohort.cases if self._outputs.skip_existing and self._something_there(case)}
        making = self._segmenter.making(self._outputs.labels) if there else None
        return [
            CaseTask(case, self._targets[case.name], skip_if=making if case.name in there else None)
            for case in self._cohort.cases
        ]

    def _open_network(self) -> Network:
        network = self._segmenter.network
        making = self._segmenter.making(self._outputs.labels) if self._outputs.skip_existing else None
        return replace(network, making=making)

    def _warn(self, prepared: PreparedCase) -> None:
        for warning in prepared.warnings:
            self._screen.warning(self._of_case(prepared.case.name, warning.message))

    def _of_case(self, name: str, message: str) -> str:
        return message if self._cohort.alone else f"{name}: {message}"

    def _tell(self, task: CaseTask, outcome: Outcome, batch: Batch, *, since: float) -> SummaryRow:
        if isinstance(outcome, DrunetError):
            batch.failed(task.case.name, outcome)
            kept = plan.intact_document(task.target.label_map) if task.skip_if else None
            if kept is None:
                return failed_row(task.case.name, outcome)
            known = {**kept, "case": task.case.name, "output": str(task.target.label_map)}
            return replace(row_of(known, Status.LEFT_OUT), error=str(outcome))
        # A complete output may have been moved with its sidecar since, or made of the case by another name.
        document = {**outcome.document, "case": task.case.name, "output": str(task.target.label_map)}
        for warning in outcome.new_warnings:
            self._screen.warning(self._of_case(task.case.name, warning.message))
        seconds = time.perf_counter() - since if self._cohort.alone else sum(document["seconds"].values())
        batch.done(
            str(task.target.label_map),
            {**document, "left_out": True} if outcome.left_out else document,
            note=case_note(document, left_out=outcome.left_out, seconds=seconds),
        )
        return row_of(document, Status.LEFT_OUT if outcome.left_out else Status.DONE)

    def _end(self, rows: Sequence[SummaryRow], batch: Batch, *, seconds: float) -> None:
        """Write the summary, print the last lines, and raise what says that a case failed."""
        unwritten = None
        if not self._cohort.alone:
            try:
                with write_atomically(self._outputs.summary, overwrite=True) as stream:
                    stream.write(encode_summary(rows))
            except OutputError as error:
                unwritten = error
            note_rows(rows, self._outputs.summary, self._screen)
        told_in = None if unwritten else self._outputs.summary.name
        done = last_line(rows, n_done=batch.n_done, output=self._outputs.output, told_in=told_in)
        batch.finish(f"{done} ({seconds:.1f} s)", unwritten)
