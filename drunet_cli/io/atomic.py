"""Files that are complete or absent, and claims on them. Every result that drunet writes goes through here.

A file is written beside its target as `.{name}.{host}.{pid}.tmp`, flushed to the disk, and then renamed. A process that is
killed leaves at most such a temporary, which the next writer of the same target removes.

A claim beside a file tells other runs to leave the file alone. It is a small file, `.{name}.claim`, which only one process can
make; so it needs no locks of the file system. It names the host and the process. A process that is killed leaves its claim,
which counts for nothing once the process has ended, or, where the process is on another host, once nobody has renewed the claim
for ten minutes. A claim spares work and guards no file: files appear complete, whoever has made them.
"""

import errno
import logging
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

from drunet_cli.errors import OutputError
from drunet_cli.processes import hold_signals


@contextmanager
def write_atomically(target: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a stream whose bytes appear under `target` all at once when the block ends, and not at all when it raises.

    Its `name` is the path where the bytes lie until then, for those who read them back after a flush.
    Missing parent folders are made, and removed again where nothing comes to lie in them. Permissions follow the umask.
    Raises OutputError when `target` exists (also when it appears meanwhile) without `overwrite`, or cannot be written.
    """
    check_writable(target, overwrite=overwrite)
    temporary = _temporary(target)
    with _refuse_as_output(target), create_folder(target.parent):
        remove_stale(target)
        stream = temporary.open("xb")
        _being_written.add(temporary.name)
        try:
            with stream:
                yield stream
                _flush_to_disk(stream)
            with hold_signals():  # the file is closed by now: Windows renames no open one
                _move_into_place(temporary, target, overwrite=overwrite)
        finally:
            _being_written.discard(temporary.name)
            temporary.unlink(missing_ok=True)


def publish(target: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a whole file as `write_atomically` does."""
    with write_atomically(target, overwrite=overwrite) as stream:
        stream.write(content)


@contextmanager
def publish_together(contents: Mapping[Path, bytes], *, replaceable: Container[Path]) -> Iterator[None]:
    """Write files that belong together: all lie ready beside their targets during the block, and appear after it.

    They appear in reverse order, so that the first, which is the one that counts, is the last to appear. The block is the place
    to remove what must not lie beside them. Signals wait. replaceable: the targets that may be there already.
    Raises OutputError as `write_atomically` does; where one file cannot be written, none appears.
    """
    with hold_signals(), ExitStack() as publish_in_reverse:
        for target, content in contents.items():
            stream = publish_in_reverse.enter_context(write_atomically(target, overwrite=target in replaceable))
            stream.write(content)
            stream.flush()  # a full disk is met here, before anything appears
        yield


def publish_unflushed(target: Path, content: bytes) -> None:
    """Write one of many small files that make sense together, replacing what is there; the folder exists.

    Complete or absent as all others, but not flushed to the disk: a file that is written after them, which tells what they
    must hold, says that they are complete. Whoever writes many calls `remove_stale_in` once before.
    Raises OutputError.
    """
    temporary = _temporary(target)
    with _refuse_as_output(target):
        try:
            temporary.unlink(missing_ok=True)  # nobody else's: it bears this process' number
            with temporary.open("xb") as stream:
                stream.write(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def create_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, before the block; remove after it what was made and is still empty.

    Raises OutputError where it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror or error}; name another") from error
    try:
        yield
    finally:
        for each in missing:
            with suppress(OSError):  # not empty, as a rule
                each.rmdir()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for what is no result, which no other user can read, and remove it after the block.

    A process that is killed leaves the folder; see `remove_stale_folders`.
    """
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{socket.gethostname()}.{os.getpid()}.") as folder:
        name = Path(folder).name
        _being_written.add(name)
        try:
            yield Path(folder)
        finally:
            _being_written.discard(name)


def remove_stale_folders() -> None:
    """Remove the temporary folders of processes that are gone, as `remove_stale` has it: a scan in them may show a face."""
    place = tempfile.gettempdir()
    with suppress(OSError):
        for name in os.listdir(place):  # noqa: PTH208
            path, writer = Path(place, name), name.removeprefix(_FOLDER).rpartition(".")[0]
            if name.startswith(_FOLDER) and _is_left_by(writer, path):
                shutil.rmtree(path, ignore_errors=True)  # another user's stays


def check_writable(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError now for faults that would stop `write_atomically` later: an existing file, or a folder that refuses."""
    if os.path.isdir(target):
        raise OutputError(f"{target}: is a folder; name a file")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target}: exists already; give --overwrite to replace it")
    folder = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise OutputError(f"{target}: cannot be written: {folder} is not a folder")
    missing = target.absolute().parent.parts[len(folder.parts) :]
    if max(len(os.fsencode(name)) for name in (_temporary(target).name, *missing)) > _longest_name(folder):
        raise OutputError(f"{target}: cannot be written: the name is too long; shorten it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: cannot be written: no permission to write in {folder}")


def is_same_file(path: Path, other: Path) -> bool:
    """Whether both are there and are one file."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def check_not_an_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError for an output that is a file which is read."""
    if any(is_same_file(output, path) for path in inputs):
        raise OutputError(f"{output}: is one of the inputs; name another output")


_TEMPORARY: Final = ".tmp"
_FOLDER: Final = "drunet-temporary-"  # a prefix that no results have, since such folders are removed
_ABANDONED_AFTER_S: Final = 24 * 3600.0
_being_written: Final[set[str]] = set()  # by the threads of this process: a second writer of a target is refused


def remove_stale(target: Path) -> None:
    """Remove temporaries of `target` whose writer is gone: a process of this host that has ended, or any older than a day."""
    start = f".{target.name}."
    for path in _temporaries_in(target.parent):
        if path.name.startswith(start):
            _remove_if_left(path, writer=path.name[len(start) : -len(_TEMPORARY)])


def remove_stale_in(folder: Path, *suffixes: str) -> None:
    """Remove such temporaries of every file in a folder whose name ends in one of `suffixes`, with one look at the folder."""
    for path in _temporaries_in(folder):
        for suffix in suffixes:
            _, found, writer = path.name.removesuffix(_TEMPORARY).rpartition(f"{suffix}.")
            if found:
                _remove_if_left(path, writer=writer)


def _temporaries_in(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.startswith(".") and name.endswith(_TEMPORARY)]  # noqa: PTH208
    except OSError:  # a folder that may not be listed keeps them
        return []


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}{_TEMPORARY}")


def _remove_if_left(path: Path, *, writer: str) -> None:
    """Remove a temporary whose writer is gone."""
    if _is_left_by(writer, path):
        with suppress(OSError):  # another user's, in a folder such as /tmp
            path.unlink()


def _is_left_by(writer: str, path: Path) -> bool:
    """Whether a process that is gone has left this. writer: host and process id, as they stand in the name."""
    host, _, pid = writer.rpartition(".")
    return bool(host) and pid.isdecimal() and is_abandoned(path, host, int(pid), after_s=_ABANDONED_AFTER_S)


def is_abandoned(path: Path, host: str, pid: int, *, after_s: float) -> bool:
    """Whether the process that wrote a file has ended; of one on another host, whether the file is older than `after_s`."""
    if host == socket.gethostname():
        if pid == os.getpid():  # a container's process ids begin anew, so that an earlier one may have left the file
            return path.name not in _being_written
        if os.name == "posix":  # elsewhere signal 0 would end the process
            return not _is_running(pid)
    try:
        return time.time() - path.stat().st_mtime > after_s
    except FileNotFoundError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _longest_name(folder: Path) -> float:
    """Bytes that a file name in this folder may have."""
    try:
        limit = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return math.inf
    return limit if limit > 0 else math.inf


# The answers of network file systems that cannot flush; they say nothing about the bytes, unlike those for a full or broken
# disk. 524 is the ENOTSUPP of Linux itself, which some of them let through.
_NO_FLUSH: Final = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, 524),
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTTY),
)


def _flush_to_disk(stream: BinaryIO) -> None:
    stream.flush()
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        _warn_of_no_flush(str(error.strerror))  # losing the work would help nobody


@cache
def _warn_of_no_flush(reason: str) -> None:
    """Log once in a process that files are not known to be on the disk."""
    message = "the file system cannot flush files to its disk (%s): what was just written may be lost if the machine crashes"
    logging.getLogger("drunet_cli").warning(message, reason)


def _move_into_place(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        target.hardlink_to(temporary)  # unlike a rename, a link never replaces a file that has appeared meanwhile
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(target):
            raise OutputError(f"{target}: has appeared while drunet was working; nothing was replaced") from error
        temporary.rename(target)  # a file system without hard links


@contextmanager
def _refuse_as_output(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


_CLAIM: Final = ".claim"
_RENEWED_AFTER_S: Final = 30.0
# By a process on another host. Steps that renew take seconds as a rule, and clocks of hosts may differ.
_CLAIM_LASTS_S: Final = 600.0
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
                _make_claim(path)
            except FileExistsError:
                if claimant(target) is not None:
                    return None
                _remove_claim(path)
            else:
                return Claim(path)
    return Claim(None)


def claimant(target: Path) -> str | None:
    """The process that has claimed a file, in words; None where there is none, or only one that is gone."""
    path = claim_of(target)
    if not os.path.lexists(path):
        return None
    host, pid = _read_claim(path)
    if is_abandoned(path, host, pid, after_s=_CLAIM_LASTS_S):
        return None
    return f"process {pid} on {host}" if host else "another process"


def claim_of(target: Path) -> Path:
    """The path of a file's claim, which a user deletes where a run has died in a way that drunet cannot see."""
    return target.with_name(f".{target.name}{_CLAIM}")


def waiting_for(target: Path, work: str) -> str:
    """Say which process has claimed a file, and what to do where that has died. work: what it does, such as segmenting it."""
    return f"waiting for {claimant(target) or 'another run'}, which is {work}; if that has died, delete {claim_of(target)}"


@contextmanager
def take_turns(target: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the claim of a file while the block runs, and wait before it until no other process holds the claim.

    on_wait: called once where another process holds it.
    """
    if (claim := claim_file(target)) is None:
        on_wait()
        while (claim := claim_file(target)) is None:
            time.sleep(_TURN_S)
    try:
        with claim.keep_renewed():
            yield
    finally:
        claim.release()


def remove_abandoned_claims(folder: Path) -> None:
    """Remove the claims of killed processes from a folder, and the temporaries of claims that such processes were making."""
    remove_stale_in(folder, _CLAIM)
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            target = folder / name.removeprefix(".").removesuffix(_CLAIM)
            if name == claim_of(target).name and claimant(target) is None:
                _remove_claim(folder / name)


def _make_claim(path: Path) -> None:
    """Make a claim that is signed from its first moment: others would wait for a killed process that could not sign.

    Raises FileExistsError where there is one.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(_signature())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            _make_unlinked_claim(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_unlinked_claim(path: Path) -> None:
    with path.open("xb") as stream:
        try:
            stream.write(_signature())
            stream.flush()
        except OSError:  # a full disk: an unsigned claim would make others wait
            path.unlink(missing_ok=True)
            raise


def _signature() -> bytes:
    return f"{socket.gethostname()} {os.getpid()}\n".encode()


def _read_claim(path: Path) -> tuple[str, int]:
    """Host and process id of a claim; no host where its process was killed before it had signed, or nobody may read it."""
    try:
        host, pid = path.read_text().split()
        return host, int(pid)
    except (OSError, ValueError):
        return "", 0


def _remove_claim(path: Path) -> None:
    """Remove a claim that counts for nothing, and put it back where another process has just claimed the file anew.

    Several may try this at once: only one can rename the claim.
    """
    away = _temporary(path)
    with suppress(OSError):
        path.rename(away)
        if not is_abandoned(away, *_read_claim(away), after_s=_CLAIM_LASTS_S) and not os.path.lexists(path):
            away.rename(path)
        away.unlink(missing_ok=True)
