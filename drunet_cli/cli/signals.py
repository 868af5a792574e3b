"""SIGINT and SIGTERM as exceptions that do not get lost.

Python raises them wherever the main thread happens to be; in a callback of the interpreter, or inside an import that tries and
gives up, they are swallowed. So they are remembered too, and raised again at the next step.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from drunet_cli.errors import Terminated

_received: list[int] = []
_deferred: list[bool] = []  # one entry for each block that runs


def on_signal(number: int, _frame: FrameType | None) -> None:
    """Remember the signal and raise KeyboardInterrupt or Terminated; in stops_deferred only for a second Ctrl-C.

    A second SIGTERM is no impatience: of a job's end, schedulers tell every process, and torchrun tells its own once more.
    """
    _received.append(number)
    if not _deferred or _received.count(signal.SIGINT) > 1:
        _raise(number)


@contextmanager
def stops_deferred() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop, for work that ends at a place of its choice; then call raise_lost."""
    _deferred.append(True)
    try:
        yield lambda: bool(_received)
    finally:
        _deferred.pop()


@contextmanager
def lost_in_silence() -> Iterator[None]:
    """Print nothing of an exception of ours that a callback of the interpreter swallows; it is raised again later."""
    before = sys.unraisablehook

    def hook(report: "sys.UnraisableHookArgs", /) -> None:
        if not (_received and issubclass(report.exc_type, (KeyboardInterrupt, Terminated))):
            before(report)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def raise_lost() -> None:
    """Raise again what came and had no effect."""
    if _received:
        _raise(_received[0])


def forget() -> None:
    """Begin anew."""
    _received.clear()


def _raise(number: int) -> NoReturn:
    if number == signal.SIGTERM:
        raise Terminated
    raise KeyboardInterrupt
