"""Who works on a file: a claim beside the file tells other runs to leave the file alone.

A claim is a small file, `.{name}.claim`, which only one process can make; so it needs no locks of the file system. It names the
host and the process. A process that is killed leaves its claim, which counts for nothing once the process has ended, or, where
the process is on another host, once nobody has renewed the claim for ten minutes.

A claim spares work and guards no file: files appear by `io/atomic`, whoever has made them.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from drunet_cli.io.atomic import is_abandoned

_SUFFIX: Final = ".claim"
_RENEWED_AFTER_S: Final = 30.0
# By a process on another host. Steps that renew take seconds as a rule, and clocks of hosts may differ.
_ABANDONED_AFTER_S: Final = 600.0
_TURN_S: Final = 0.05  # between two attempts at a file that others hold for milliseconds


class Claim:
    """A claim of this process. path: None where the folder takes no claim; the work then goes on without."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._renewed_s = time.monotonic()

    def renew(self) -> None:
        """Tell other hosts that this process still works. Cheap enough to be called at every step."""
        if self._path is not None and time.monotonic() - self._renewed_s > _RENEWED_AFTER_S:
            self._renewed_s = time.monotonic()
            with suppress(OSError):
                os.utime(self._path)

    @contextmanager
    def keep_renewed(self) -> Iterator[None]:
        """Renew the claim from a thread while the block runs, for work whose steps may take longer than a claim lasts."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_RENEWED_AFTER_S):
                self.renew()

        threading.Thread(target=renew, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def release(self) -> None:
        """Remove the claim, unless another process has taken it for abandoned and claimed the file."""
        with suppress(OSError):
            if self._path is not None and self._path.read_bytes() == _signature():
                self._path.unlink()


def claim_file(target: Path) -> Claim | None:
    """Claim a file that this process is about to make; None where another process has claimed it. Makes missing folders."""
    path = claim_of(target)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # again where the claim that was there counted for nothing
            try:
                _make(path)
            except FileExistsError:
                if claimant(target) is not None:
                    return None
                _take_away(path)
            else:
                return Claim(path)
    return Claim(None)


def claimant(target: Path) -> str | None:
    """The process that has claimed a file, in words; None where there is none, or only one that is gone."""
    path = claim_of(target)
    if not os.path.lexists(path):
        return None
    host, pid = _read(path)
    if is_abandoned(path, host, pid, after_s=_ABANDONED_AFTER_S):
        return None
    return f"process {pid} on {host}" if host else "another process"


def claim_of(target: Path) -> Path:
    """The path of a file's claim, which a user deletes where a run has died in a way that drunet cannot see."""
    return target.with_name(f".{target.name}{_SUFFIX}")


@contextmanager
def take_turns(target: Path) -> Iterator[None]:
    """Hold the claim of a file while the block runs, and wait before it until no other process holds the claim."""
    while (claim := claim_file(target)) is None:
        time.sleep(_TURN_S)
    try:
        yield
    finally:
        claim.release()


def remove_abandoned_claims(folder: Path) -> None:
    """Remove the claims that killed processes have left in a folder."""
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            target = folder / name.removeprefix(".").removesuffix(_SUFFIX)
            if name == claim_of(target).name and claimant(target) is None:
                _take_away(folder / name)


def _make(path: Path) -> None:
    with path.open("xb") as stream:
        try:
            stream.write(_signature())
            stream.flush()
        except OSError:  # a full disk: an unsigned claim would make others wait
            path.unlink(missing_ok=True)
            raise


def _signature() -> bytes:
    return f"{socket.gethostname()} {os.getpid()}\n".encode()


def _read(path: Path) -> tuple[str, int]:
    """Host and process id of a claim; no host where its process was killed before it had signed, or nobody may read it."""
    try:
        host, pid = path.read_text().split()
        return host, int(pid)
    except (OSError, ValueError):
        return "", 0


def _take_away(path: Path) -> None:
    """Remove a claim that counts for nothing, and put it back where another process has just claimed the file anew.

    Several may try this at once: only one can rename the claim.
    """
    away = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with suppress(OSError):
        path.rename(away)
        if not is_abandoned(away, *_read(away), after_s=_ABANDONED_AFTER_S) and not os.path.lexists(path):
            away.rename(path)
        away.unlink(missing_ok=True)
