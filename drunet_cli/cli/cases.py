"""The cases of a command: found by four files, folders, tables or stdin; shown as a plan; and reported as they end.

Results go to stdout and failures to stderr; all cases together have one exit code.
"""

import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from drunet_cli.brats import Modality
from drunet_cli.cli.console import Screen, result, result_json, table_of
from drunet_cli.cli.options import parsed_shard
from drunet_cli.errors import CaseError, DrunetError, ExitCode, MisuseError, OutputError, Terminated, join_some, plural
from drunet_cli.io.case import HEADER, BrokenCase, Case, SeriesFolder, case_of, no_series, paths_of_list
from drunet_cli.io.discovery import Cohort, find_cases
from drunet_cli.io.naming import (
    BRATS_SPACE,
    ORIGINAL_SPACE,
    SUBJECT_AND_SESSION,
    Naming,
    is_case_name,
    is_nifti,
    label_map_in,
    may_name_a_file,
    parse_channels,
    parse_patterns,
    space_of,
    stem,
)

if TYPE_CHECKING:
    from drunet_cli.io.checks import CaseWarning

STDIN: Final = "-"
_OTHER_FORMATS: Final = (".gz", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".img", ".hdr", ".png", ".json", ".h5", ".zip")
_MOST_NAMES: Final = 10
_NO_CASE: Final = ("no case", "pass over")  # the state of a folder, and what would be done
_DIFFERS: Final = "differs"  # the state of a case whose outputs may not be those that are asked for


def find_cohort(
    cases: Sequence[str] | None,
    given: Mapping[Modality, Path | None],
    *,
    name: str | None,
    patterns: Sequence[str] | None,
    channels: str | None,
    shard: str | None = None,
    leave_out: Sequence[Path] = (),
    raw: bool = False,
    segmentation: Path | None = None,
) -> Cohort:
    """The cases that a command is given: CASES, or the share of them, or the one of --t1 --t1ce --t2 --flair (--seg, --case).

    raw: they are raw scans. Raises MisuseError, and CaseError for the files of one case.
    """
    if cases:
        find = raw_cohort_of if raw else cohort_of
        cohort = find(cases, patterns=patterns or (), channels=channels, leave_out=leave_out)
        return cohort if shard is None else share_of(cohort, parsed_shard(shard))
    return Cohort((case_of_files(given, name=name, segmentation=segmentation, raw=raw),), (), alone=True)


def case_of_files(
    given: Mapping[Modality, Path | None], *, name: str | None, segmentation: Path | None = None, raw: bool = False
) -> Case:
    """The case that --t1 --t1ce --t2 --flair (--seg, --case) name. raw: each scan may be a DICOM series.

    Raises MisuseError, CaseError.
    """
    images = {modality: path for modality, path in given.items() if path is not None}
    missing = [f"--{modality}" for modality in given if modality not in images]
    if missing:
        raise MisuseError(
            f"missing {', '.join(missing)}: a case needs all four of --t1 --t1ce --t2 --flair, and -o; the network cannot do "
            "without any of the four"
        )
    if name is not None and not (name.strip() and may_name_a_file(name)):
        raise MisuseError(f"--case {name!r}: a case's name is part of a file name")
    if not raw:
        return case_of(images, name=name, segmentation=segmentation)
    from drunet_cli.prepare.dicom import dicom_folder

    return case_of(images, name=name, series_folder=dicom_folder)


def cohort_of(
    sources: Sequence[str],
    *,
    patterns: Sequence[str] = (),
    channels: str | None = None,
    leave_out: Sequence[Path] = (),
    series_folder: SeriesFolder = no_series,
) -> Cohort:
    """The cases in folders and tables; `-` stands for a list of such paths on stdin. Raises MisuseError.

    leave_out: the folders of results, which may lie among the cases. series_folder: as for `find_cases`.
    """
    cohort = find_cases(paths_of(sources), naming_of(patterns, channels), leave_out=leave_out, series_folder=series_folder)
    only_source_fails = len(sources) == len(cohort.broken) == 1 and not cohort.cases
    return replace(cohort, alone=STDIN not in sources and (cohort.alone or only_source_fails))


def raw_cohort_of(
    sources: Sequence[str], *, patterns: Sequence[str] = (), channels: str | None = None, leave_out: Sequence[Path] = ()
) -> Cohort:
    """The cases of raw scans: a folder without cases of NIfTI files may hold DICOM studies, and a scan be a DICOM series."""
    from drunet_cli.prepare.dicom import dicom_folder

    cohort = cohort_of(sources, patterns=patterns, channels=channels, leave_out=leave_out, series_folder=dicom_folder)
    studies: dict[str, list[Case | BrokenCase]] = {}
    for item in cohort.broken:
        if not item.is_source or not (folder := Path(item.name)).is_dir():
            continue
        try:
            if dicom_folder(folder):
                from drunet_cli.prepare.scans import cases_of_studies  # imports scipy

                studies[item.name] = cases_of_studies(folder)
        except CaseError as error:  # a folder in it may not be read
            studies[item.name] = [BrokenCase(item.name, error, is_source=True)]
    if not studies:
        return cohort
    found = [case for several in studies.values() for case in several]
    names = Counter([case.name for case in (*cohort.cases, *found)])
    cases = [*cohort.cases, *(case for case in found if isinstance(case, Case) and names[case.name] == 1)]
    broken = [item for item in cohort.broken if item.name not in studies]
    broken += [case for case in found if isinstance(case, BrokenCase)]
    broken += [
        BrokenCase(case.name, CaseError(f"{case.name}: is the name of several cases; name them apart in a table ({HEADER})"))
        for case in found
        if isinstance(case, Case) and names[case.name] > 1
    ]
    return replace(
        cohort,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        broken=tuple(broken),
        alone=STDIN not in sources and len(sources) == len(cases) + len(broken) == 1,
    )


def share_of(cohort: Cohort, shard: tuple[int, int]) -> Cohort:
    """The K-th of N shares of a cohort, K from 1: every N-th case by name, also of those that cannot be used.

    A source that holds no case, or cannot be read, is a failure of every share.
    """
    k, n = shard
    sources = tuple(item for item in cohort.broken if item.is_source)
    found: list[Case | BrokenCase] = [*cohort.cases, *(item for item in cohort.broken if not item.is_source)]
    share = sorted(found, key=lambda item: item.name)[k - 1 :: n]
    cases = tuple(item for item in share if isinstance(item, Case))
    broken = tuple(item for item in share if isinstance(item, BrokenCase))
    return replace(cohort, cases=cases, broken=(*broken, *sources), alone=False)


def naming_of(patterns: Sequence[str], channels: str | None) -> Naming:
    """The file names that --pattern and --channels ask for. Raises MisuseError."""
    return Naming(parse_patterns(patterns), None if channels is None else parse_channels(channels))


def paths_of(sources: Sequence[str]) -> list[Path]:
    """The paths of CASES; `-` stands for a list of paths on stdin. Raises MisuseError, and CaseError for an empty stdin."""
    if "" in sources:
        raise MisuseError("CASES: an empty path; an unset variable?")
    given = [paths_of_list(read_stdin(), name="stdin") if source == STDIN else [source] for source in sources]
    paths = [Path(path) for several in given for path in several]
    if sources and not paths:
        raise CaseError("stdin: no case: give paths of case folders, folders of cases or tables, one a line")
    return paths


def label_map_path(output: Path, case: str) -> Path:
    """The label map of a case by -o: the NIfTI file that -o names, or {case}.nii.gz in its folder. Raises MisuseError."""
    if is_nifti(output.name) and stem(output):
        return output
    name = output.name.lower()
    if ".nii" in name or name.endswith(_OTHER_FORMATS):
        raise MisuseError(f"-o {output}: drunet writes NAME.nii.gz or NAME.nii; without such an ending OUT is a folder")
    return output / f"{case}.nii.gz"


def label_maps_of(cohort: Cohort, output: Path, *, bids: bool, prepare: bool) -> dict[str, Path]:
    """The path of each case's label map, by name, also of cases that cannot be used.

    bids: lay them out as a BIDS data set. prepare: the cases are to be prepared. Raises MisuseError.
    """
    if names_a_file(output) and not cohort.alone:
        raise MisuseError(f"-o {output}: is one file; name a folder, which gets a label map of each case")
    unusable = [item.name for item in cohort.broken if not item.is_source]
    if not bids:
        return {name: label_map_path(output, name) for name in [*(case.name for case in cohort.cases), *unusable]}
    if names_a_file(output):
        raise MisuseError(f"-o {output}: is one file; --bids needs a folder, which becomes the data set")
    if others := [case.name for case in cohort.cases if not is_case_name(case.name)]:
        remedy = f"name cases {SUBJECT_AND_SESSION} in a table ({HEADER}), or one case by --case"
        cases = "1 case has" if len(others) == 1 else f"{len(others)} cases have"
        raise MisuseError(f"--bids: {cases} no name that BIDS knows ({join_some(others)}); {remedy}")
    from drunet_cli.prepare.record import is_prepared  # imports scipy

    on_brats_grid = {case.name for case in cohort.cases if prepare or is_prepared(case)}
    spaces = {
        case.name: BRATS_SPACE if case.name in on_brats_grid else space_of(case.images[Modality.FLAIR]) for case in cohort.cases
    }
    spaces |= {name: ORIGINAL_SPACE for name in unusable if is_case_name(name)}
    return {name: label_map_in(output, name, space=space) for name, space in spaces.items()}


def names_a_file(output: Path) -> bool:
    """Whether -o is one NIfTI file and not a folder."""
    return label_map_path(output, "any") == output


def read_stdin() -> bytes:
    """All bytes of stdin. Raises CaseError."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:  # such as a folder
        raise CaseError(f"stdin: cannot be read: {error.strerror}") from error


class Batch:
    """One run over cases.

    alone: a single case was given, whose failure is the failure of the command. resumes: --skip-existing goes on where a run
    was stopped. Where stderr is no terminal, the lines on several cases form a log.
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
        with self._hold_results(), self._screen.case_bar(self._n_cases) as advance:
            self._advance_by(lambda _: advance())
            yield

    @contextmanager
    def slices_bar(self) -> Iterator[Callable[[str, int, int], None]]:
        """Draw a bar of cases and slices; yield a function of a case's name, its slices done, and its slices in all."""
        with self._hold_results(), self._screen.slices_bar(self._n_cases) as bar:
            if bar is None:
                yield lambda *_: None
                return
            self._advance_by(bar.count)
            yield bar.show

    def done(self, path: str | None, document: Mapping[str, Any], *, note: str, warnings: Sequence[str] = ()) -> None:
        """Report a case that has succeeded: print `path`, if there is one, or `document` with --json."""
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
        """Print one line about a case, unless a bar of many cases is drawn."""
        if self._n_cases == 1 or not self._screen.draws:
            self._screen.note(note, place=self._place())

    def failed(self, name: str, error: DrunetError, *, differs: bool = False) -> None:
        """Report why a case failed, and go on. Raises the error where there is no other case.

        differs: the case has outputs from before, which may not be those that are asked for.
        """
        if self._alone:
            raise error
        self._failed.append(name)
        self._screen.error(_failure_line(name, error, differs=differs), error.details, place=self._place())
        if self._json:
            self._print(_failure_object(name, error, differs=differs))
        self._advance(name)

    def finish(self, summary: str, error: DrunetError | None = None, *, n_left_out: int = 0) -> None:
        """Print the last lines. Raises typer.Exit where a case failed, else `error`, which concerns all cases.

        n_left_out: number of cases that were complete already.
        """
        if self._n_cases > 1 and (self.n_done or not self._failed):
            left_out = f"; {n_left_out} {'was' if n_left_out == 1 else 'were'} complete and left out" if n_left_out else ""
            self._screen.note(summary + left_out)
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
    def _hold_results(self) -> Iterator[None]:
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


def error_of(check: Callable[[], None]) -> OutputError | None:
    """The error by which a check of outputs would end the run before its first case, if any."""
    try:
        check()
    except OutputError as error:
        return error
    return None


@dataclass(frozen=True)
class PlanRow:
    """The row of one case in a dry run.

    state: of the case's outputs. would: the work that a run would do. warnings: known without the voxels; None where
    a command looks for none. error: by which the case would fail.
    """

    case: Case
    state: str
    would: str
    warnings: "Sequence[CaseWarning] | None" = None
    error: DrunetError | None = None


def print_plan(
    rows: Sequence[PlanRow],
    cohort: Cohort,
    *,
    screen: Screen,
    seg: bool,
    differing: Container[str] = (),
    json: bool,
    notes: Sequence[str] = (),
    stop: DrunetError | None = None,
) -> None:
    """Print what a dry run found: a row for every case, for every case of the cohort that cannot be used, and for every
    folder that was passed over.

    seg: say which cases have a segmentation. differing: names of cases that would fail though they have outputs. notes: the
    last lines for people. stop: the error that would end the run before its first case. Raises `stop`, else the error of a
    case that was given alone and would fail, else typer.Exit where a case would fail.
    """
    failing: list[tuple[str, DrunetError]] = [(item.name, item.error) for item in cohort.broken]
    failing += [(row.case.name, row.error) for row in rows if row.error is not None]
    if cohort.alone and failing:
        raise stop or failing[0][1]
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


def _print_objects(rows: Sequence[PlanRow], cohort: Cohort, *, seg: bool, differing: Container[str]) -> None:
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
    for folder in cohort.folders_without_case:
        state, would = _NO_CASE
        result_json({"case": None, "state": state, "would": would, "folder": str(folder.path), "holds": folder.content})


def _print_table(rows: Sequence[PlanRow], cohort: Cohort, screen: Screen, *, seg: bool, differing: Container[str]) -> None:
    lines = []
    for row in rows:
        has_seg = ["no" if row.case.segmentation is None else "yes"] if seg else []
        place = str(next(iter(row.case.images.values())).parent) if row.error is None else str(row.error)
        state = _DIFFERS if row.case.name in differing else row.state
        lines.append((row.case.name, state, row.would, *has_seg, place))
    for item in cohort.broken:
        state = _DIFFERS if item.name in differing else "unusable"
        lines.append((item.name, state, "fail", *([""] if seg else []), str(item.error)))
    lines += [("", *_NO_CASE, *([""] if seg else []), f"{each.path} ({each.content})") for each in cohort.folders_without_case]
    screen.table(table_of(("CASE", "STATE", "WOULD", *(["SEG"] if seg else []), "FOLDER"), lines))


def _failure_line(name: str, error: DrunetError, *, differs: bool = False) -> str:
    """Why a case failed, in one line that begins with the case's name."""
    reason = str(error).removeprefix(f"{name}: ")
    return f"{name}: {_DIFFERS}: {reason}" if differs else f"{name}: {reason}"


def _failure_object(name: str, error: DrunetError, *, differs: bool = False) -> dict[str, Any]:
    """Why a case failed, for --json."""
    document = {"case": name, "error": str(error), "exit_code": error.exit_code}
    return {**document, _DIFFERS: True} if differs else document
