"""The errors that a user can mend, each kind with its exit code; and the words of messages.

Core code raises these errors; only `cli` prints them. Any other exception is a fault of drunet and keeps its traceback.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """The exit codes of the command line, as the page `exit-codes` of the guide documents them."""

    DONE = 0
    SOME_FAILED = 1  # some case of a batch
    MISUSE = 2
    BAD_INPUT = 3
    WEIGHTS = 4
    DEVICE = 5
    OUTPUT = 6
    FAULT = 70  # of drunet
    INTERRUPTED = 130  # 128 and the number of SIGINT
    TERMINATED = 143  # 128 and the number of SIGTERM


class DrunetError(Exception):
    """One line for the user: what was wrong, where, and what to do.

    details: further lines shown below the message, such as a table of what differs; below a traceback too.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAULT

    def __init__(self, message: str, *, details: tuple[str, ...] = ()) -> None:
        super().__init__(one_line(message))
        self.details = details
        for line in details:
            self.add_note(line)


class MisuseError(DrunetError):
    """The command line asks for something that makes no sense, or needs an extra that is not installed."""

    exit_code = ExitCode.MISUSE


class CaseError(DrunetError):
    """An image, or a set of four, that cannot be segmented as it is."""

    exit_code = ExitCode.BAD_INPUT


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Put a file's path before the message of a CaseError that concerns its content."""
    try:
        yield
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from error


class DivergedError(DrunetError):
    """A training whose numbers have left the range of numbers."""

    exit_code = ExitCode.BAD_INPUT


class WeightsError(DrunetError):
    """Weights that are unknown, cannot be fetched, or are not those of this network."""

    exit_code = ExitCode.WEIGHTS


class DeviceError(DrunetError):
    """A device that is absent, or too small even for one slice."""

    exit_code = ExitCode.DEVICE


class LostDeviceError(DeviceError):
    """A device whose driver reports a fault: whatever comes next on it fails too."""


class OutputError(DrunetError):
    """An output that exists already, cannot be written, or failed its check."""

    exit_code = ExitCode.OUTPUT


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` runs; not an error, and not for `except Exception`."""


def one_line(text: str) -> str:
    """Replace line breaks and control characters by single spaces: file names and servers may hold anything."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def join_some(items: Sequence[object], *, most: int = 5) -> str:
    """The first of several items, and how many more there are: a, b, c, d, e and 3 more."""
    words = [str(item) for item in items[:most]]
    return ", ".join(words) + (f" and {len(items) - most} more" if len(items) > most else "")


def plural(n: int, noun: str) -> str:
    """A number with its noun: 1 case, 2 cases."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def fault_in_words(fault: Mapping[str, Any]) -> str:
    """One of the faults that pydantic finds in a document, such as `optimiser.beta1 = 1: must be less than 1`."""
    value = "" if fault["type"] == "missing" else f" = {fault['input']!r}"  # else the whole document
    reason = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{'.'.join(map(str, fault['loc']))}{value}: {reason}"


def changed_since(path: Path, *, then: str) -> str:
    """Say of an output that a person has changed how to keep the changes, and what discards them. then: what follows that."""
    remedy = f"move it away to keep the changes, or give --overwrite to discard them and {then}"
    return f"{path}: has been changed since drunet wrote it; {remedy}"


def without_folder(message: str) -> str:
    """The message about an image without the folder of the image, where there is room for little else."""
    return re.sub(r"^[^:]*/(?=[^/:]+\.nii(\.gz)?: )", "", message)


def without_remedy(message: str) -> str:
    """The message without the remedy after its last semicolon, for a caller who knows another remedy."""
    return message.rpartition("; ")[0] or message
