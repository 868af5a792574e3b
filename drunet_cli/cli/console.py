"""The two streams, bars that move on a terminal, and tables for people."""

import json
import logging
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from socket import gethostname
from time import strftime
from typing import TYPE_CHECKING, Any, Final, TextIO

import drunet_cli
from drunet_cli.brats import REGIONS, volume_digits
from drunet_cli.errors import OutputError, one_line, without_folder
from drunet_cli.processes import hold_signals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID
    from rich.table import Table

    from drunet_cli.segmentation.summary import SummaryRow


_PLAIN: Final[Mapping[str, Any]] = {"highlight": False, "markup": False, "emoji": False}  # names of cases are no markup
_WIDE = 100_000
_WIDEST_PAGE = 100  # columns; longer lines tire the reader


@dataclass
class RunLog:
    """The state of --verbose and --log, which all screens of one command line share.

    verbose: show decisions and their reasons. file: gets every line, with time and host. command_line: as the user typed it.
    """

    verbose: bool = False
    file: TextIO | None = None
    command_line: str = ""

    def open(self, path: Path) -> None:
        """Append every further line to this file; the first has command line, version and folder. Raises OutputError."""
        try:
            self.file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError) as error:
            raise OutputError(f"--log {path}: cannot be written: {getattr(error, 'strerror', error)}") from error
        self.write(f"drunet {drunet_cli.__version__}, Python {platform.python_version()}, in {Path.cwd()}: {self.command_line}")

    def write(self, line: str, *, place: str = "") -> None:
        """Append a line to the file, if there is one. A lost line is no reason to stop the work."""
        if self.file is not None:
            with suppress(OSError):
                self.file.write(f"{log_prefix(place)}{line}\n")
                self.file.flush()

    def end(self, exit_code: int) -> None:
        """Log the exit code, and forget --verbose and --log."""
        self.write(f"exit code {int(exit_code)}")
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        self.verbose, self.file = False, None


run_log: Final = RunLog()


class Screen:
    """The lines, bars and tables that a person reads on stderr. quiet: no bar, notes or warnings; errors and results stay.

    A line that quiet withholds stands in the file of --log nonetheless.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._is_log = False
        self._console: Console | None = None
        log = logging.getLogger("drunet_cli")
        log.handlers[:] = [_ToScreen(self)]  # the newest screen shows what is logged
        log.setLevel(logging.INFO if run_log.verbose or run_log.file else logging.WARNING)

    @property
    def console(self) -> "Console":
        """rich's console on stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, soft_wrap=True, **_PLAIN)
        return self._console

    @property
    def draws(self) -> bool:
        """Whether stderr is a terminal, for bars. FORCE_COLOR does not count: it asks for colours in logs too."""
        return not self._quiet and sys.stderr.isatty()

    def keep_log(self) -> None:
        """Begin every further line with time and host, unless stderr is a terminal."""
        self._is_log = not _stderr_is_terminal()

    def error(self, message: str, details: tuple[str, ...] = (), *, place: str = "") -> None:
        """Print one line, whatever the message holds, and the details below it as they are. place: see `note`."""
        self._print(one_line(message), "Error: ", "bold red", place=place)
        for line in details:
            self._print(f"  {line}", is_part=True)

    def warning(self, message: str) -> None:
        """Print one line, unless the command is to be quiet."""
        self._print(one_line(message), "Warning: ", "yellow", shown=not self._quiet)

    def note(self, message: str, *, place: str = "") -> None:
        """Print one line that a person may like to read. place: of this line among many, as 17 of 2000, for a log."""
        self._print(message, place=place, shown=not self._quiet)

    def detail(self, message: str) -> None:
        """Print one line on a decision and its reason, for --verbose."""
        self._print(message, style="dim", shown=run_log.verbose)

    @contextmanager
    def slices_bar(self, n_cases: int) -> Iterator["SegmentationBar | None"]:
        """Yield a bar of slices, and of cases where there are several; None where there is no terminal."""
        if not self.draws:
            yield None
            return
        bar = SegmentationBar(self, n_cases)
        try:
            yield bar
        finally:
            bar.stop()

    @contextmanager
    def case_bar(self, n_cases: int) -> Iterator[Callable[[], None]]:
        """Yield a function that counts one case more. The bar is drawn on a terminal only."""
        if not self.draws or n_cases == 1:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        bar = Bar(self, BarColumn(), MofNCompleteColumn(), TextColumn("cases"), TimeRemainingColumn())
        try:
            bar.start()
            task = bar.progress.add_task("", total=n_cases)
            yield lambda: bar.progress.advance(task)
        finally:
            bar.stop()

    def table(self, table: "Table") -> None:
        """Print a table on stdout: the result of the command."""
        from rich.console import Console

        result(_rendered(table, Console(**_PLAIN)))

    def note_table(self, table: "Table") -> None:
        """Print a table on stderr that a person may like to read."""
        if not self._quiet:
            from rich.console import Console

            console = Console(stderr=True, **_PLAIN)
            # A terminal folds the last column; a log, which has told every failure in full, has one line a row.
            width = _WIDE if console.is_terminal else get_terminal_size().columns
            for line in _rendered(table, console).splitlines():
                self._print(line if len(line) <= width else f"{line[: width - 3]}...", is_part=True)

    def _print(
        self, text: str, label: str = "", style: str = "", *, place: str = "", is_part: bool = False, shown: bool = True
    ) -> None:
        """Print a line, and log it. label: the beginning of the line, in this style. is_part: of the line before."""
        run_log.write(f"{label}{text}", place=place)
        if not shown:
            return
        prefix = log_prefix(place) if self._is_log and not is_part else ""
        try:
            if _stderr_is_terminal():
                from rich.text import Text

                self.console.print(Text.assemble((f"{prefix}{label}", style), (text, "" if label else style)))
            else:
                sys.stderr.write(f"{prefix}{label}{text}\n")
                sys.stderr.flush()
        except (OSError, SystemExit):  # rich exits where a pipe is closed; a lost line is no reason to stop the work
            _discard(sys.stderr.fileno())


class _ToScreen(logging.Handler):
    """Shows the records of the logger, which rooms use where no callback reaches them, as warnings and details."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, unless the command is to be quiet."""
        tell = self._screen.warning if record.levelno >= logging.WARNING else self._screen.detail
        tell(record.getMessage())


def log_prefix(place: str) -> str:
    """The beginning of a line of a log: time and host, and the line's place among many, if it has one."""
    return f"{strftime('%Y-%m-%d %H:%M:%S')} {gethostname()}{place and ', '}{place}: "


def _rendered(table: "Table", console: "Console") -> str:
    if not console.is_terminal:
        console.width = _WIDE  # a program reads it: nothing is folded
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _stderr_is_terminal() -> bool:
    """Whether stderr is a terminal, or is to be treated as one, as rich has it."""
    return sys.stderr.isatty() or any(os.environ.get(name) not in (None, "", "0") for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


_lost: list[OSError] = []


def result(line: str) -> None:
    """Print a result on stdout at once, since a script may be reading. Where stdout fails, the work goes on without it."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        _lost.append(error)
        give_up_stdout()


def reason_of_lost_stdout() -> OSError | None:
    """The first error of stdout since the last call."""
    first = _lost[0] if _lost else None
    _lost.clear()
    return first


def result_json(document: Mapping[str, Any]) -> None:
    """Print a result as one JSON line on stdout."""
    result(json.dumps(document))


def give_up_stdout() -> None:
    """Point stdout nowhere after its reader has gone, so that the interpreter's last flush does not complain."""
    _discard(sys.stdout.fileno())


class Bar:
    """A bar on a terminal. It appears when it starts, and vanishes when it stops."""

    def __init__(self, screen: Screen, *columns: "ProgressColumn") -> None:
        from rich.progress import Progress

        # Redirected, results would go to stderr with the bar.
        self.progress = Progress(*columns, console=screen.console, transient=True, redirect_stdout=False, redirect_stderr=False)

    def start(self) -> None:
        """Draw the bar, unless it is there. A signal waits until it is drawn: half a bar cannot be taken away."""
        if not self.progress.live.is_started:
            with hold_signals():
                self.progress.start()

    def stop(self) -> None:
        """Take the bar away, if it is there. A signal waits until the terminal is as it was."""
        with hold_signals():
            self.progress.stop()


class SegmentationBar(Bar):
    """The bar of a run over cases, which appears with the first slices."""

    def __init__(self, screen: Screen, n_cases: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        case = TextColumn("{task.description}", markup=False)
        of_one = (case, BarColumn(), MofNCompleteColumn(), TextColumn("slices"))
        of_many = (BarColumn(), TextColumn("{task.fields[counted]}/{task.total} cases"), case)
        super().__init__(screen, *(of_one if n_cases == 1 else of_many), TimeRemainingColumn())
        self._n_cases = n_cases
        self._n_ended = 0
        self._parts: dict[str, float] = {}  # shares of the cases in hand
        self._task: TaskID | None = None

    def show(self, name: str, done: int, total: int) -> None:
        """Show how many slices of a case are done."""
        if self._task is None:
            self._task = self.progress.add_task(name, total=total if self._n_cases == 1 else self._n_cases, counted=0)
            self.start()
        self._parts[name] = done / total
        slices = f"{name} {done}/{total} slices"
        if self._n_cases == 1:
            self.progress.update(self._task, description=name, completed=done, total=total)
        else:
            self._draw(slices)

    def count(self, name: str) -> None:
        """Count a case that has succeeded or failed."""
        self._n_ended += 1
        self._parts.pop(name, None)
        if self._n_cases > 1:
            self._draw()

    def _draw(self, description: str | None = None) -> None:
        if self._task is not None:
            completed = self._n_ended + sum(self._parts.values())
            self.progress.update(self._task, description=description, completed=completed, counted=self._n_ended)


class DownloadBar(Bar):
    """The bar of one download, which appears with the first bytes."""

    def __init__(self, screen: Screen, name: str, n_bytes: float) -> None:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        super().__init__(screen, *columns)
        self._task = self.progress.add_task(name, total=n_bytes)

    def move(self, n_bytes: int, n_total: int | None) -> None:
        """Show how many bytes are there."""
        self.progress.update(self._task, completed=n_bytes, total=n_total)
        self.start()


class TrainingBar(Bar):
    """One bar for all stages of a training, which appears with the first."""

    def __init__(self, screen: Screen) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        super().__init__(
            screen,
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int, state: str = "") -> None:
        """Show one stage alone; each kind of stage, the first word, keeps its own time."""
        kind = stage.partition(" ")[0]
        if kind not in self._tasks:
            self._tasks[kind] = self.progress.add_task(stage, total=total, state=state)
        for other, task in self._tasks.items():
            self.progress.update(task, visible=other == kind)
        self.progress.update(self._tasks[kind], description=stage, completed=done, total=total, state=state)
        self.start()


def show_markdown(text: str) -> None:
    """Show a page on stdout: drawn, in the user's pager, if stdout is a terminal; else as it is."""
    if not sys.stdout.isatty():
        result(text.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # As git does: less lets colours through, and shows a page that fits the screen without waiting for a key.
    colours = "R" in os.environ.setdefault("LESS", "-FRX")
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST_PAGE)
    without_files = re.sub(r"\[([^]]*)\]\([\w/.-]+\.md(?:#[\w-]*)?\)", r"\1", text)  # a terminal follows no link to a file
    with console.pager(styles=colours):
        console.print(Markdown(without_files, hyperlinks=False))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers_from: int | None = None) -> "Table":
    """A table of one line a row. numbers_from: the first column that holds numbers, if any does."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if numbers_from is None or n < numbers_from else "right")
    for row in rows:
        table.add_row(*(one_line(str(cell)) for cell in row))
    return table


def fields_table(document: Mapping[str, Any]) -> "Table":
    """One row a field that has a value."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in document.items():
        if value not in (None, ""):
            table.add_row(name, one_line(str(value)))
    return table


def cohort_table(rows: Sequence["SummaryRow"]) -> "Table":
    """One row a case: its outcome, with (!) for warnings, and volumes in mL. Below the rows: the purpose of the weights."""
    from drunet_cli.weights.registry import caveat_of

    cells = []
    for row in rows:
        volumes = (volume_digits(row.volumes_ml[region]) if region in row.volumes_ml else "" for region in REGIONS)
        warnings = [code if n == 1 else f"{n} x {code}" for code, n in Counter(row.warnings).items()]
        status = f"{row.status} (!)" if row.warnings else row.status
        cells.append((row.case, status, *volumes, without_folder(row.error) or ", ".join(warnings)))
    table = table_of(("CASE", "STATUS", *(f"{region} mL" for region in REGIONS), "NOTES"), cells)
    for column in table.columns[2:-1]:
        column.justify = "right"
    table.caption = caveat_of(sha256 for row in rows for sha256 in row.weights_sha256) or None
    table.caption_justify, table.caption_style = "left", "bold"
    return table
