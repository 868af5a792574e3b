"""What a dry run tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from drunet_cli.io.case import Case
from drunet_cli.io.discovery import Cohort


@dataclass(frozen=True)
class Planned:
    """A case that can be used, what is there of it, and what would be done."""

    case: Case
    state: str
    would: str


def print_plan(planned: Sequence[Planned], cohort: Cohort, *, seg: bool, json: bool) -> None:
    """Print every case of a cohort, those that cannot be used too. seg: say which have a segmentation.

    Raises the error of a case that was given alone and is broken, typer.Exit where one of several is.
    """
    from drunet_cli.cli.console import Screen, result_json
    from drunet_cli.cli.tables import plan_table

    if cohort.alone and cohort.broken:
        raise cohort.broken[0].error
    if json:
        for each in planned:
            files = {name: str(path) for name, path in (each.case.files if seg else each.case.images).items()}
            result_json({"case": each.case.name, "state": each.state, "would": each.would, "files": files})
        for item in cohort.broken:
            result_json({"case": item.name, "error": str(item.error), "exit_code": item.error.exit_code})
    else:
        rows = [_row(each, seg=seg) for each in planned]
        unusable = ["unusable", "fail", *([""] if seg else [])]
        rows += [(item.name, *unusable, str(item.error)) for item in cohort.broken]
        Screen().table(plan_table(rows, seg=seg))
    if cohort.broken:
        raise typer.Exit(1)


def _row(planned: Planned, *, seg: bool) -> tuple[str, ...]:
    has_seg = ["no" if planned.case.segmentation is None else "yes"] if seg else []
    folder = next(iter(planned.case.images.values())).parent
    return planned.case.name, planned.state, planned.would, *has_seg, str(folder)
