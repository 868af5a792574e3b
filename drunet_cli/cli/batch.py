"""What happens to many cases, told as it happens: results on stdout, failures on stderr, and one exit code."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from drunet_cli.cli.console import Screen, result, result_json
from drunet_cli.errors import DrunetError

_SOME_FAILED = 1
_NAMED = 10


class Batch:
    """One run over cases. alone: a single case was given, whose failure is the failure of the command."""

    def __init__(self, screen: Screen, *, n_cases: int, alone: bool, json: bool) -> None:
        self._screen = screen
        self._n_cases = n_cases
        self._alone = alone
        self._json = json
        self._failed: list[str] = []
        self._advance: Callable[[str], None] = lambda _: None
        self.n_done = 0
        self._held: list[str | Mapping[str, Any]] | None = None

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Draw a bar of cases meanwhile. Results wait until it is gone where they would run into it."""
        with self._holding(), self._screen.case_bar(self._n_cases) as advance:
            self._count_by(lambda _: advance())
            yield

    @contextmanager
    def slices_bar(self) -> Iterator[Callable[[str, int, int], None]]:
        """The same of cases and their slices: yield what is to be told the name of a case, its slices done, and in all."""
        with self._holding(), self._screen.slices_bar(self._n_cases) as bar:
            if bar is None:
                yield lambda *_: None
                return
            self._count_by(bar.count)
            yield bar.show

    def _count_by(self, advance: Callable[[str], None]) -> None:
        self._advance = advance
        for name in self._failed:
            advance(name)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        if self._screen.draws and sys.stdout.isatty():
            self._held = []
        try:
            yield
        finally:
            held, self._held = self._held or [], None
            for line in held:
                self._print(line)

    def done(self, path: str | None, document: Mapping[str, Any], *, note: str, warnings: Sequence[str] = ()) -> None:
        """A case that came to its end: print path, if it has one, or document with --json."""
        self.n_done += 1
        for warning in warnings:
            self._screen.warning(f"{document['case']}: {warning}")
        if self._n_cases == 1 or not self._screen.draws:
            self._screen.note(note)
        if self._json:
            self._print(document)
        elif path is not None:
            self._print(path)
        self._advance(document["case"])

    def failed(self, name: str, error: DrunetError) -> None:
        """A case that did not: tell why, and go on; raises the error where there is no other case."""
        if self._alone:
            raise error
        self._failed.append(name)
        self._screen.error(told(name, error), error.details)
        if self._json:
            self._print(failure(name, error))
        self._advance(name)

    def finish(self, summary: str, error: DrunetError | None = None) -> None:
        """The last lines. Raises typer.Exit where a case failed, else `error`, which concerns all cases."""
        if self._n_cases > 1:
            self._screen.note(summary)
        if self._failed:
            if error is not None:
                self._screen.error(str(error))
            self._screen.error(f"{len(self._failed)} of {counted(self._n_cases, 'case')} failed: {named(self._failed)}")
            raise typer.Exit(_SOME_FAILED)
        if error is not None:
            raise error

    def _print(self, line: str | Mapping[str, Any]) -> None:
        if self._held is not None:
            self._held.append(line)
        elif isinstance(line, str):
            result(line)
        else:
            result_json(line)


def told(name: str, error: DrunetError) -> str:
    """Why a case failed, in one line that begins with its name."""
    return str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"


def failure(name: str, error: DrunetError) -> dict[str, Any]:
    """The same as an object for --json."""
    return {"case": name, "error": str(error), "exit_code": error.exit_code}


def named(names: Sequence[str]) -> str:
    """The first of several cases."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def counted(n: int, noun: str) -> str:
    """1 case, 2 cases."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
