"""One process does a piece of work while the others wait for it. Standard library only."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems without advisory locks answer: NFS without its lock daemon, Lustre without -o flock, some FUSE.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None], poll_s: float = 0.5) -> Iterator[bool]:
    """Hold the advisory lock on `path`, a file made if absent, for as long as the block runs; wait while another holds it.

    on_wait: called once, when the lock is first found taken.
    Yields True with the lock, False where the platform or the file system has none: it spares work, it guards no result.
    The kernel frees the lock of a killed process. The file stays: a process waiting on a deleted one would lock nothing.
    Raises OSError when the file cannot be made or opened for writing.
    """
    descriptor = _opened(path)
    try:
        yield _wait(descriptor, on_wait, poll_s)
    finally:
        _release(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing: NFS grants exclusive locks on nothing else
    except PermissionError:  # another user's file in a shared folder; NFS will answer EBADF to the lock
        return os.open(path, os.O_RDONLY)


def _wait(descriptor: int, on_wait: Callable[[], None], poll_s: float) -> bool:
    try:
        import fcntl
    except ImportError:  # not POSIX
        return False
    waiting = False
    while True:
        # Polled, not left to the kernel: a lock daemon that does not answer would hold Ctrl-C back as well.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                waiting = True
                on_wait()
            time.sleep(poll_s)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        else:
            return True


def _release(descriptor: int) -> None:
    try:
        import fcntl

        # Closing would leave the lock with a child that was forked meanwhile and has a copy of the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except (ImportError, OSError):  # there was no lock to give back
        pass
    finally:
        os.close(descriptor)
