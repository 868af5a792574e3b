"""Many cases, told as they end: results on stdout, failures on stderr, one exit code. And what a dry run says of them."""

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import typer

from drunet_cli.cli.console import Screen, plan_table, result, result_json
from drunet_cli.errors import DrunetError, ExitCode, Terminated, join_some, plural

if TYPE_CHECKING:
    from drunet_cli.io.case import Case
    from drunet_cli.io.checks import CaseWarning
    from drunet_cli.io.discovery import Cohort

_MOST_NAMES: Final = 10
_NO_CASE: Final = ("no case", "pass over")  # the state of a folder, and what would be done
_DIFFERS: Final = "differs"  # the outputs of a case are there, and are not known to be those that are asked for


class Batch:
    """One run over cases.

    alone: a single case was given, whose failure is the failure of the command. resumes: --skip-existing goes on where a run
    was stopped. Where stderr is no terminal, what is told of several cases is a log.
    """

    def __init__(self, screen: Screen, *, n_cases: int, alone: bool, json: bool, resumes: bool = False) -> None:
        self._screen = screen
        self._n_cases = n_cases
        self._alone = alone
        self._json = json
        self._resumes = resumes
        self._failed: list[str] = []
        self._advance: Callable[[str], None] = lambda _: None
        self._held: list[str | Mapping[str, Any]] | None = None
        self.n_done = 0
        if n_cases > 1:
            screen.keep_log()

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Draw a bar of cases while the block runs. Results that would run into the bar wait until it is gone."""
        with self._holding_results(), self._screen.case_bar(self._n_cases) as advance:
            self._advance_by(lambda _: advance())
            yield

    @contextmanager
    def slices_bar(self) -> Iterator[Callable[[str, int, int], None]]:
        """Draw a bar of cases and slices likewise; yield what to call with a case's name, its slices done, and its slices."""
        with self._holding_results(), self._screen.slices_bar(self._n_cases) as bar:
            if bar is None:
                yield lambda *_: None
                return
            self._advance_by(bar.count)
            yield bar.show

    def done(self, path: str | None, document: Mapping[str, Any], *, note: str, warnings: Sequence[str] = ()) -> None:
        """Tell of a case that came to its end: print `path`, if there is one, or `document` with --json."""
        self.n_done += 1
        for warning in warnings:
            self._screen.warning(f"{document['case']}: {warning}")
        self.tell(note)
        if self._json:
            self._print(document)
        elif path is not None:
            self._print(path)
        self._advance(document["case"])

    def tell(self, note: str) -> None:
        """Tell something of a case in one line, unless a bar of many cases is drawn."""
        if self._n_cases == 1 or not self._screen.draws:
            self._screen.note(note, place=self._place())

    def failed(self, name: str, error: DrunetError, *, differs: bool = False) -> None:
        """Tell why a case failed, and go on. Raises the error where there is no other case.

        differs: it has outputs from before, which are not known to be those that were asked for.
        """
        if self._alone:
            raise error
        self._failed.append(name)
        self._screen.error(_failure_line(name, error, differs=differs), error.details, place=self._place())
        if self._json:
            self._print(_failure_object(name, error, differs=differs))
        self._advance(name)

    def finish(self, summary: str, error: DrunetError | None = None) -> None:
        """Print the last lines. Raises typer.Exit where a case failed, else `error`, which concerns all cases."""
        if self._n_cases > 1:
            self._screen.note(summary)
        if self._failed:
            if error is not None:
                self._screen.error(str(error))
            names = join_some(self._failed, most=_MOST_NAMES)
            self._screen.error(f"{len(self._failed)} of {plural(self._n_cases, 'case')} failed: {names}")
            raise typer.Exit(ExitCode.SOME_FAILED)
        if error is not None:
            raise error

    def _place(self) -> str:
        return "" if self._n_cases == 1 else f"{self.n_done + len(self._failed)} of {self._n_cases}"

    def _advance_by(self, advance: Callable[[str], None]) -> None:
        self._advance = advance
        for name in self._failed:
            advance(name)

    @contextmanager
    def _holding_results(self) -> Iterator[None]:
        if self._screen.draws and sys.stdout.isatty():
            self._held = []
        try:
            yield
        except (KeyboardInterrupt, Terminated):
            if not self._alone:
                how = "; --skip-existing goes on from there" if self._resumes else ""
                self._screen.note(f"Stopped: {self.n_done} of {plural(self._n_cases, 'case')} done{how}")
            raise
        finally:
            held, self._held = self._held or [], None
            for line in held:
                self._print(line)

    def _print(self, line: str | Mapping[str, Any]) -> None:
        if self._held is not None:
            self._held.append(line)
        elif isinstance(line, str):
            result(line)
        else:
            result_json(line)


@dataclass(frozen=True)
class PlanRow:
    """What a dry run says of one case.

    state: what there is of the case. would: what would be done. warnings: those known without the voxels; None where a command
    looks for none. error: what the case would fail with.
    """

    case: "Case"
    state: str
    would: str
    warnings: "Sequence[CaseWarning] | None" = None
    error: DrunetError | None = None


def print_plan(
    rows: Sequence[PlanRow],
    cohort: "Cohort",
    *,
    seg: bool,
    differing: Container[str] = (),
    json: bool,
    quiet: bool = False,
    notes: Sequence[str] = (),
    stop: DrunetError | None = None,
) -> None:
    """Print what a dry run found: a row for every case, for every case of the cohort that cannot be used, and for every
    folder that was passed over.

    seg: say which cases have a segmentation. differing: names of cases that would fail though they have outputs. notes: the
    last lines for people. stop: what would end the run before its first case. Raises `stop`, else the error of a case that was
    given alone and would fail, else typer.Exit where a case would fail.
    """
    failing: list[tuple[str, DrunetError]] = [(item.name, item.error) for item in cohort.broken]
    failing += [(row.case.name, row.error) for row in rows if row.error is not None]
    if cohort.alone and failing:
        raise stop or failing[0][1]
    screen = Screen(quiet=quiet)
    if json:
        _print_objects(rows, cohort, seg=seg, differing=differing)
    else:
        _print_table(rows, cohort, screen, seg=seg, differing=differing)
    for row in rows:
        for warning in row.warnings or ():
            screen.warning(warning.message if cohort.alone else f"{row.case.name}: {warning.message}")
    for name, error in failing:
        screen.error(_failure_line(name, error, differs=name in differing), error.details)
    for note in notes:
        screen.note(note)
    if failing:
        n_cases = plural(len(rows) + len(cohort.broken), "case")
        names = join_some([name for name, _ in failing], most=_MOST_NAMES)
        screen.error(f"{len(failing)} of {n_cases} would fail: {names}")
    if stop is not None:
        raise stop
    if failing:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _print_objects(rows: Sequence[PlanRow], cohort: "Cohort", *, seg: bool, differing: Container[str]) -> None:
    for row in rows:
        if row.error is not None:
            result_json(_failure_object(row.case.name, row.error, differs=row.case.name in differing))
            continue
        files = {name: str(path) for name, path in (row.case.files if seg else row.case.images).items()}
        document: dict[str, Any] = {"case": row.case.name, "state": row.state, "would": row.would, "files": files}
        if row.warnings is not None:
            document["warnings"] = [{"code": warning.code, "message": warning.message} for warning in row.warnings]
        result_json(document)
    for item in cohort.broken:
        result_json(_failure_object(item.name, item.error, differs=item.name in differing))
    for folder in cohort.passed_over:
        state, would = _NO_CASE
        result_json({"case": None, "state": state, "would": would, "folder": str(folder.path), "holds": folder.content})


def _print_table(rows: Sequence[PlanRow], cohort: "Cohort", screen: Screen, *, seg: bool, differing: Container[str]) -> None:
    lines = []
    for row in rows:
        has_seg = ["no" if row.case.segmentation is None else "yes"] if seg else []
        place = str(next(iter(row.case.images.values())).parent) if row.error is None else str(row.error)
        state = _DIFFERS if row.case.name in differing else row.state
        lines.append((row.case.name, state, row.would, *has_seg, place))
    for item in cohort.broken:
        state = _DIFFERS if item.name in differing else "unusable"
        lines.append((item.name, state, "fail", *([""] if seg else []), str(item.error)))
    lines += [("", *_NO_CASE, *([""] if seg else []), f"{each.path} ({each.content})") for each in cohort.passed_over]
    screen.table(plan_table(lines, seg=seg))


def _failure_line(name: str, error: DrunetError, *, differs: bool = False) -> str:
    """Why a case failed, in one line that begins with the case's name."""
    if differs:
        return f"{name}: {_DIFFERS}: {error}"
    return str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"


def _failure_object(name: str, error: DrunetError, *, differs: bool = False) -> dict[str, Any]:
    """Why a case failed, for --json."""
    document = {"case": name, "error": str(error), "exit_code": error.exit_code}
    return {**document, _DIFFERS: True} if differs else document
