"""The two streams, and what becomes of them when nobody reads: with bars and tables, the only modules that know rich.

stdout carries results alone; progress, notes, warnings and errors go to stderr. A reader that goes away (a closed pipe) stops
the output, not the work. rich is imported where something is drawn, since a script's run need not wait for it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drunet_cli.brats import REGIONS
from drunet_cli.cli.bars import SegmentationBar, progress
from drunet_cli.errors import DrunetError, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 100_000


class Screen:
    """Writes for one command. quiet: no bar, no notes, no warnings; errors and results stay."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console: Console | None = None

    @property
    def console(self) -> "Console":
        """rich's way to stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        return self._console

    @property
    def draws(self) -> bool:
        """Whether there is a terminal for bars."""
        return not self.quiet and _stderr_is_terminal()

    def error(self, message: str, details: tuple[str, ...] = ()) -> None:
        """One line, whatever the message holds; details below it as they are."""
        self._line("Error", "bold red", message)
        for line in details:
            self._print(f"  {line}")

    def warning(self, message: str) -> None:
        """One line."""
        if not self.quiet:
            self._line("Warning", "yellow", message)

    def note(self, message: str) -> None:
        """One line that a person may like to read."""
        if not self.quiet:
            self._print(message)

    @contextmanager
    def slices_bar(self, n_cases: int) -> Iterator[SegmentationBar | None]:
        """Yield a bar of slices, of the cases too where there are several; None where there is no terminal."""
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
        """Yield a function that counts one case more; draws a bar on a terminal only."""
        if not self.draws or n_cases == 1:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        with progress(self, BarColumn(), MofNCompleteColumn(), TextColumn("cases"), TimeRemainingColumn()) as bar:
            task = bar.add_task("", total=n_cases)
            yield lambda: bar.advance(task)

    def table(self, table: "Table") -> None:
        """A table on stdout, which is the result of the command."""
        from rich.console import Console

        result(_rendered(table, Console(highlight=False)))

    def note_table(self, table: "Table") -> None:
        """A table that a person may like to read, on stderr."""
        if not self.quiet:
            from rich.console import Console

            for line in _rendered(table, Console(stderr=True, highlight=False)).splitlines():
                self._print(line)

    def _line(self, label: str, style: str, message: str) -> None:
        self._print(one_line(message), f"{label}: ", style)

    def _print(self, text: str, label: str = "", style: str = "") -> None:
        try:
            if _stderr_is_terminal():
                from rich.text import Text

                self.console.print(Text.assemble((label, style), text))
            else:
                sys.stderr.write(f"{label}{text}\n")
                sys.stderr.flush()
        except (OSError, SystemExit):  # rich exits where a pipe is closed; a lost line is no reason to stop the work
            _discard(sys.stderr.fileno())


def _rendered(table: "Table", console: "Console") -> str:
    if not console.is_terminal:
        console.width = _WIDE  # a program reads it: nothing is folded
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def regions_in_words(volumes_ml: Mapping[str, float]) -> str:
    """Volumes of the three regions, for a note."""
    return ", ".join(f"{region} {_millilitres(volumes_ml[region])}" for region in REGIONS)


def _millilitres(volume_ml: float) -> str:
    return "<0.1 mL" if 0 < volume_ml < 0.1 else f"{volume_ml:.1f} mL"


_lost: list[OSError] = []


def result(line: str) -> None:
    """A result on stdout, at once: a script may be reading. Where it cannot be written, the work goes on without."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        _lost.append(error)
        give_up_stdout()


def why_stdout_was_lost() -> OSError | None:
    """The first reason since this was asked last."""
    first = _lost[0] if _lost else None
    _lost.clear()
    return first


def result_json(document: Mapping[str, Any]) -> None:
    """A result as one JSON line on stdout."""
    result(json.dumps(document))


def report(error: DrunetError) -> None:
    """An error on stderr."""
    Screen().error(str(error), error.details)


def give_up_stdout() -> None:
    """Point stdout nowhere after its reader has gone, so that the interpreter's last flush does not complain."""
    _discard(sys.stdout.fileno())


def _stderr_is_terminal() -> bool:
    """Or is to be treated as one, as rich has it."""
    return sys.stderr.isatty() or any(os.environ.get(name) not in (None, "", "0") for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
