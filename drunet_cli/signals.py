"""Ctrl-C and SIGTERM: they end a run as exceptions do, so that every `finally` runs and nothing is left behind."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from drunet_cli.errors import Terminated

_RAISED: Final[dict[signal.Signals, type[BaseException]]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_NUMBERS: Final = tuple(_RAISED)

# How long after a signal whose exception was lost it comes again: well after Python has left the place where it was lost.
_AGAIN_AFTER_S: Final = 0.01


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM raise Terminated while the block runs.

    Python drops exceptions in finalizers and in callbacks of weak references, and prints them only, so that a signal that
    comes there would be lost: such a signal comes again a moment later.
    """

    def raise_at_once(number: int, _frame: FrameType | None) -> None:
        raise _RAISED[signal.Signals(number)]

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        lost = [number for number, raised in _RAISED.items() if dropped.exc_type is raised]
        for number in lost:  # threading.Thread takes locks, which whatever is being finalized may hold
            _thread.start_new_thread(_come_again, (number,))
        if not lost:
            hook_before(dropped)

    hook_before = sys.unraisablehook
    try:
        sys.unraisablehook = send_again
        with _handled_by(raise_at_once):
            yield
    finally:
        sys.unraisablehook = hook_before


def _come_again(number: signal.Signals) -> None:
    time.sleep(_AGAIN_AFTER_S)
    _thread.interrupt_main(number)


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
