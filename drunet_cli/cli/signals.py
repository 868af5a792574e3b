"""SIGINT and SIGTERM as exceptions that do not get lost.

Python raises them wherever the main thread happens to be; in a callback of the interpreter they are swallowed. So they are
remembered too, and raised again at the next step. In an import they would leave half a module, which for some written in C ends
in a crash; there they are not raised until it is over.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from drunet_cli.errors import Terminated

_received: list[int] = []
_deferred: list[bool] = []  # one entry for each block that runs
_postponed: list[int] = []  # what this module will send once more
_POSTPONED_BY_S: Final = 0.05
_COMMAND_LINE: Final = "drunet_cli.cli.app"
_IMPORT: Final = "importlib._bootstrap"


def on_signal(number: int, frame: FrameType | None) -> None:
    """Remember the signal and raise KeyboardInterrupt or Terminated; in stops_deferred only for a second Ctrl-C.

    A second SIGTERM is no impatience: of a job's end, schedulers tell every process, and torchrun tells its own once more.
    """
    if number in _postponed:
        _postponed.remove(number)
    else:
        _received.append(number)
    if _imports(frame):
        _postpone(number)
    elif not _deferred or _received.count(signal.SIGINT) > 1:
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
    _postponed.clear()


def _imports(frame: FrameType | None) -> bool:
    """Whether the command is within an import."""
    while frame is not None and (module := frame.f_globals.get("__name__")) != _COMMAND_LINE:
        if module == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _postpone(number: int) -> None:
    def send() -> None:
        if number in _postponed and (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, number)

    _postponed.append(number)
    timer = threading.Timer(_POSTPONED_BY_S, send)
    timer.daemon = True
    timer.start()


def _raise(number: int) -> NoReturn:
    if number == signal.SIGTERM:
        raise Terminated
    raise KeyboardInterrupt
