"""What a dry run of `drunet segment` tells of cases and weights."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from drunet_cli.cli.batch import PlanRow, print_plan
from drunet_cli.cli.console import Screen
from drunet_cli.cli.weights import would_download
from drunet_cli.errors import DrunetError, MisuseError, WeightsError, plural
from drunet_cli.io.discovery import Cohort
from drunet_cli.segmentation.plan import LEAVE_OUT, Prospect, missing_weights
from drunet_cli.segmentation.segmenter import Segmenter

_FAIL_IN: Final = "fail in"


def print_prospects(
    found: Sequence[Prospect], cohort: Cohort, segmenter: Segmenter, screen: Screen, *, json: bool, stop: DrunetError | None
) -> None:
    """Print what would become of the cases that can be used, those that cannot, and whether weights would be downloaded.

    stop: what would end the run before its first case. Raises that, or as the run would end.
    """
    notes = []
    if stop is None and any(each.error is None for each in found):
        try:
            notes = [
                would_download(entry) for entry in missing_weights(segmenter.weights, sampled=segmenter.samples_as_recorded)
            ]
        except (WeightsError, MisuseError) as error:
            stop = error
        else:
            notes = notes if cohort.alone else [_counts(found, cohort), *notes]
    planned = [PlanRow(each.case, each.state, each.would, each.warnings, each.error) for each in found]
    print_plan(planned, cohort, seg=False, json=json, quiet=screen.quiet, notes=notes, stop=stop)


def _counts(found: Sequence[Prospect], cohort: Cohort) -> str:
    would = Counter(each.would for each in found if each.error is None)
    would[_FAIL_IN] = len(cohort.broken) + sum(each.error is not None for each in found)
    counts = ", ".join(f"{words} {n}" for words, n in would.items() if n)
    n_warned = sum(bool(each.warnings) for each in found)
    warned = f"; {n_warned} with warnings" if n_warned else ""
    n_cases = plural(len(found) + len(cohort.broken), "case")
    read = "" if would.keys() <= {LEAVE_OUT, _FAIL_IN} else " (headers were read; voxels were not, nor was the device tried)"
    return f"Of {n_cases} drunet would {counts}{warned}{read}"
