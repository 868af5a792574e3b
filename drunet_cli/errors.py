"""What can go wrong for a reason the user can mend, each kind with its exit code.

Core code raises these; only `cli` prints them. Anything else that escapes is a fault of drunet and keeps its traceback.
"""

from collections.abc import Sequence
from typing import ClassVar


def one_line(text: str) -> str:
    """Text without line breaks and control characters, spaces folded: file names and servers may hold anything."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def join_some(items: Sequence[object], *, most: int = 5) -> str:
    """The first of them, and how many more there are, for a message."""
    words = [str(item) for item in items[:most]]
    return ", ".join(words) + (f" and {len(items) - most} more" if len(items) > most else "")


def plural(n: int, noun: str) -> str:
    """A number with its noun: 1 case, 2 cases."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def without_remedy(message: str) -> str:
    """What was wrong and where, for a caller who knows another remedy than the one that follows the last semicolon."""
    return message.rpartition("; ")[0] or message


class DrunetError(Exception):
    """One line for the user: what was wrong, where, and what to do.

    details: further lines shown below the message, such as a table of what differs; below a traceback too.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, details: tuple[str, ...] = ()) -> None:
        super().__init__(one_line(message))
        self.details = details
        for line in details:
            self.add_note(line)


class MisuseError(DrunetError):
    """The command line asks for something that makes no sense, or needs an extra that is not installed."""

    exit_code = 2


class CaseError(DrunetError):
    """An image, or a set of four, that cannot be segmented as it is."""

    exit_code = 3


class DivergedError(DrunetError):
    """A training whose numbers have left the range of numbers."""

    exit_code = 3


class WeightsError(DrunetError):
    """Weights that are unknown, cannot be fetched, or are not those of this network."""

    exit_code = 4


class DeviceError(DrunetError):
    """A device that is absent, or too small even for one slice."""

    exit_code = 5


class LostDeviceError(DeviceError):
    """A device whose driver reports a fault: whatever comes next on it fails too."""


class OutputError(DrunetError):
    """An output that exists already, cannot be written, or failed its check."""

    exit_code = 6


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` runs; not an error, and not for `except Exception`."""
