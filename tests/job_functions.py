"""What workers do in test_processes.py: they import it, so it stands in a module of its own."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.errors import CaseError, DrunetError


@dataclass(frozen=True)
class Wait:
    """Leave a file that tells the process id, then wait."""

    folder: Path
    number: int
    seconds: float


class TwoPartError(Exception):
    """One that pickle can write but not read: it is made of two values, and keeps one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def doubled(number: int) -> int:
    return 2 * number


def process_id(number: int) -> int:
    return os.getpid()


def ignores_ctrl_c(number: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def refused_if_odd(number: int) -> int:
    if number % 2:
        raise CaseError(f"task {number} is odd", details=("first line", "second line")) from ValueError("odd")
    return number


def raised(error: type[DrunetError]) -> None:
    raise error(f"as {error.__name__}", details=("more",))


def inverse(number: int) -> float:
    return 1 / number


def broken_in_two(number: int) -> int:
    raise TwoPartError("first", "second")


def killed_at_3(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def left_at_3(number: int) -> int:
    if number == 3:
        os._exit(0)
    return number


def waited(task: Wait) -> int:
    unfinished = task.folder / f"{task.number}.part"
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(task.folder / str(task.number))
    time.sleep(task.seconds)
    return task.number
