"""Everything that a person sees: the only module that knows rich.

stdout carries results alone; progress, notes, warnings and errors go to stderr. A reader that goes away (a closed pipe) stops
the output, not the work.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from drunet_cli.errors import DrunetError, one_line
from drunet_cli.network.acquisition import Watcher
from drunet_cli.network.registry import Entry


class Screen:
    """Writes for one command. quiet: no bar, no notes, no warnings; errors and results stay."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def error(self, message: str, details: tuple[str, ...] = ()) -> None:
        """One line, whatever the message holds; details below it as they are."""
        self._line("Error", "bold red", message)
        for line in details:
            self._print(Text(f"  {line}"))

    def warning(self, message: str) -> None:
        """One line."""
        if not self.quiet:
            self._line("Warning", "yellow", message)

    def note(self, message: str) -> None:
        """One line that a person may like to read."""
        if not self.quiet:
            self._print(Text(message))

    @contextmanager
    def slice_bar(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function that takes (done, total) and draws a bar; on a terminal only."""
        if self.quiet or not self._stderr.is_terminal:
            yield lambda *_: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("slices"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._stderr, transient=True) as progress:
            task = progress.add_task(name, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def table(self, table: Table) -> None:
        """A table on stdout, which is the result of the command."""
        Console(highlight=False).print(table)

    def _line(self, label: str, style: str, message: str) -> None:
        self._print(Text.assemble((f"{label}: ", style), one_line(message)))

    def _print(self, text: Text) -> None:
        try:
            self._stderr.print(text)
        except (OSError, SystemExit):  # rich exits where a pipe is closed; a lost line is no reason to stop the work
            _discard(sys.stderr.fileno())


class DownloadWatcher(Watcher):
    """Announces a download and draws its bar."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._progress: Progress | None = None
        self._task: Any = None

    @contextmanager
    def shown(self) -> Iterator["DownloadWatcher"]:
        """End the bar when the block ends, however it ends."""
        try:
            yield self
        finally:
            self._stop()

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """Say what will be fetched, how much, from where, to where, on what terms; then draw the bar, on a terminal only."""
        self._screen.note(
            f"Weights {entry.name} are not in the cache: downloading about {entry.megabytes} MB from {url} into {cache}. "
            f"Licence: {entry.licence}."
        )
        console = self._screen._stderr
        if not self._screen.quiet and console.is_terminal:
            columns = (TextColumn(entry.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task(entry.name, total=entry.megabytes * 1e6)
            self._progress.start()

    def downloaded(self, n_bytes: int, n_total: int | None) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=n_bytes, total=n_total)

    def retrying(self, reason: str, delay_s: float) -> None:
        """Why the bar stands still."""
        self._screen.note(f"Download: {reason}; trying again in {delay_s:.0f} s")

    def importing(self, path: Path) -> None:
        """The last step, which takes some seconds."""
        self._stop()
        self._screen.note(f"Verifying and converting {path.name.lstrip('.')}")

    def waiting_for_other(self, name: str) -> None:
        """Why nothing seems to happen."""
        self._screen.note(f"Another process is downloading the weights {name}: waiting for it")

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def weights_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a set of weights."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "CACHED", "DESCRIPTION", "LICENCE"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], "yes" if row["cached"] else "no", row["description"], row["licence"] or "")
    return table


def fields_table(document: Mapping[str, Any]) -> Table:
    """One row a field that has a value."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in document.items():
        if value not in (None, ""):
            table.add_row(name, str(value))
    return table


def result(line: str) -> None:
    """A result on stdout, at once: a script may be reading."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def result_json(document: Mapping[str, Any]) -> None:
    """A result as one JSON line on stdout."""
    result(json.dumps(document))


def report(error: DrunetError) -> None:
    """An error on stderr."""
    Screen().error(str(error), error.details)


def give_up_stdout() -> None:
    """Point stdout nowhere after its reader has gone, so that the interpreter's last flush does not complain."""
    _discard(sys.stdout.fileno())


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
