"""Ctrl-C and SIGTERM: they end a run as exceptions do, so that every `finally` runs and nothing is left behind."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from drunet_cli.errors import Terminated

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM raise Terminated while the block runs."""

    def raise_at_once(number: int, _frame: FrameType | None) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled_by(raise_at_once):
        yield


@contextmanager
def hold_signals() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back until the block has ended; yield a function that says whether one has come.

    A second Ctrl-C takes effect at once. A second SIGTERM does not: at the end of a job, schedulers send SIGTERM to every
    process, and torchrun sends its own to the same ones.
    """
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT in held:
            raise KeyboardInterrupt
        held.append(number)

    try:
        with _handled_by(hold):
            yield lambda: bool(held)
    finally:
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Change what both signals do while the block runs; nothing outside the main thread, which alone receives signals.

    A signal that is ignored stays ignored, as a shell leaves SIGINT for a command in the background, and nohup others.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _NUMBERS}
    changed = {number: earlier for number, earlier in before.items() if earlier not in (signal.SIG_IGN, None)}
    try:
        for number in changed:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in changed.items():
            signal.signal(number, earlier)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold both signals back while processes are started, which begin with the signals blocked where the system can do so.

    Blocked signals alone do not suffice: another thread of this process may receive one, and Python raises here.
    """
    with hold_signals():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ctrl_c_to_parent() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes of a command, and heed SIGTERM again; for a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
