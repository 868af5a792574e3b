import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drunet_cli.weights.download import exclusive

HOLD = """
import sys
from pathlib import Path
from drunet_cli.weights.download import exclusive
with exclusive(Path(sys.argv[1]), on_wait=lambda: None) as locked:
    print(locked, flush=True)
    sys.stdin.read()
"""

# The marker can be made only once at a time: a second process inside the block would raise FileExistsError.
TAKE_TURNS = """
import sys, time
from pathlib import Path
from drunet_cli.weights.download import exclusive
marker = Path(sys.argv[1] + ".inside")
for _ in range(5):
    with exclusive(Path(sys.argv[1]), on_wait=lambda: None, poll_s=0.001) as locked:
        assert locked
        marker.touch(exist_ok=False)
        time.sleep(0.01)
        marker.unlink()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.lock"


def started(program: str, path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def held(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the lock, until its stdin is closed or it is killed."""
    with started(HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process


def never() -> None:
    raise AssertionError("there was nothing to wait for")


def test_processes_are_never_inside_together(path: Path) -> None:
    processes = [started(TAKE_TURNS, path) for _ in range(3)]

    complaints = [process.communicate()[1] for process in processes]

    assert complaints == ["", "", ""]


def test_a_killed_holder_frees_the_lock(path: Path) -> None:
    with held(path) as holder:
        holder.kill()
        holder.wait()
        with exclusive(path, on_wait=never) as locked:
            assert locked


def test_waiting_is_told_once_and_ends_when_the_holder_is_done(path: Path) -> None:
    waits: list[str] = []
    with held(path) as holder:
        assert holder.stdin is not None
        release = threading.Timer(0.1, holder.stdin.close)

        def on_wait() -> None:
            waits.append("waiting")
            release.start()

        with exclusive(path, on_wait=on_wait, poll_s=0.005) as locked:
            assert locked
        release.join()

    assert waits == ["waiting"]


def test_an_interrupt_ends_the_wait_and_leaves_the_lock_to_its_holder(path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with exclusive(path, on_wait=never):
        with pytest.raises(KeyboardInterrupt), exclusive(path, on_wait=interrupt):
            pass
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_is_free_after_an_error_inside(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(path, on_wait=never):
        raise ZeroDivisionError

    with exclusive(path, on_wait=never) as locked:
        assert locked


def test_a_child_forked_inside_does_not_keep_the_lock(path: Path) -> None:
    reader, writer = os.pipe()
    with exclusive(path, on_wait=never):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with exclusive(path, on_wait=never) as locked:
            assert locked
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_no_obstacle(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)

    with exclusive(path, on_wait=never) as locked:
        assert not locked


def test_a_platform_without_fcntl_is_no_obstacle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)

    with exclusive(path, on_wait=never) as locked:
        assert not locked


def test_another_failure_of_locking_is_not_hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)

    with pytest.raises(OSError, match="Input/output error"), exclusive(path, on_wait=never):
        pass


def test_a_lock_file_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(tmp_path / "absent" / "weights.lock", on_wait=never):
        pass
