"""What a dry run tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from drunet_cli.errors import DrunetError
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import Cohort

if TYPE_CHECKING:
    from drunet_cli.cli.console import Screen
    from drunet_cli.io.checks import CaseWarning

_SOME_FAIL: Final = 1


@dataclass(frozen=True)
class Planned:
    """A case that was found, what is there of it, and what would be done.

    warnings: those that are known already; None where nothing was looked at. error: what it would fail with.
    """

    case: Case
    state: str
    would: str
    warnings: Sequence["CaseWarning"] | None = None
    error: DrunetError | None = None


def print_plan(
    planned: Sequence[Planned],
    cohort: Cohort,
    *,
    seg: bool,
    json: bool,
    quiet: bool = False,
    notes: Sequence[str] = (),
    stop: DrunetError | None = None,
) -> None:
    """Print every case of a cohort, those that cannot be used too. seg: say which have a segmentation.

    notes: the last lines for people. stop: what would end the run before its first case; it is raised at the end. Raises else
    the error of a case that was given alone and would fail, typer.Exit where one of several would.
    """
    from drunet_cli.cli.batch import counted, named, told
    from drunet_cli.cli.console import Screen

    failing: list[tuple[str, DrunetError]] = [(item.name, item.error) for item in cohort.broken]
    failing += [(each.case.name, each.error) for each in planned if each.error is not None]
    if cohort.alone and failing:
        raise stop or failing[0][1]
    screen = Screen(quiet=quiet)
    _print_cases(planned, cohort, screen, seg=seg, json=json)
    for each in planned:
        for warning in each.warnings or ():
            screen.warning(warning.message if cohort.alone else f"{each.case.name}: {warning.message}")
    for name, error in failing:
        screen.error(told(name, error), error.details)
    for note in notes:
        screen.note(note)
    if failing:
        n_cases = len(planned) + len(cohort.broken)
        screen.error(f"{len(failing)} of {counted(n_cases, 'case')} would fail: {named([name for name, _ in failing])}")
    if stop is not None:
        raise stop
    if failing:
        raise typer.Exit(_SOME_FAIL)


def _print_cases(planned: Sequence[Planned], cohort: Cohort, screen: "Screen", *, seg: bool, json: bool) -> None:
    from drunet_cli.cli.batch import failure
    from drunet_cli.cli.console import plan_table, result_json
    from drunet_cli.segmentation.sidecar import describe_warnings

    if not json:
        rows = [_row(each, seg=seg) for each in planned]
        unusable = ["unusable", "fail", *([""] if seg else [])]
        rows += [(item.name, *unusable, str(item.error)) for item in cohort.broken]
        screen.table(plan_table(rows, seg=seg))
        return
    for each in planned:
        if each.error is not None:
            result_json(failure(each.case.name, each.error))
            continue
        files = {name: str(path) for name, path in (each.case.files if seg else each.case.images).items()}
        known = {} if each.warnings is None else {"warnings": describe_warnings(each.warnings)}
        result_json({"case": each.case.name, "state": each.state, "would": each.would, "files": files, **known})
    for item in cohort.broken:
        result_json(failure(item.name, item.error))


def _row(planned: Planned, *, seg: bool) -> tuple[str, ...]:
    has_seg = ["no" if planned.case.segmentation is None else "yes"] if seg else []
    place = str(next(iter(planned.case.images.values())).parent) if planned.error is None else str(planned.error)
    return planned.case.name, planned.state, planned.would, *has_seg, place
