"""SIGINT and SIGTERM as exceptions that do not get lost.

Python raises them wherever the main thread happens to be; in a callback of the interpreter, or inside an import that tries and
gives up, they are swallowed. So they are remembered too, and raised again at the next step.
"""

import signal
from types import FrameType
from typing import NoReturn

from drunet_cli.errors import Terminated

_received: list[int] = []


def on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    """Remember the signal and raise KeyboardInterrupt or Terminated."""
    _received.append(number)
    _raise(number)


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
