"""Files that are complete or absent, whoever is killed and whoever else writes; and who has claimed a file."""

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from drunet_cli.errors import OutputError, Terminated
from drunet_cli.io import atomic
from drunet_cli.io.atomic import (
    _warn_of_no_flush,
    check_writable,
    claim_file,
    claimant,
    create_folder,
    is_same_file,
    publish_unflushed,
    remove_abandoned_claims,
    remove_stale,
    remove_stale_folders,
    remove_stale_in,
    temporary_folder,
    write_atomically,
)
from tests.forks import limit_files
from tests.support import ENDED_PID, names_in, open_to_all, unprivileged

HOST: Final = socket.gethostname()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "seg.nii.gz"


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """One that may be read but not written; tmp_path lies in folders that only their owner may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o700)


def write(target: Path, content: bytes = b"all", *, overwrite: bool = False) -> None:
    with write_atomically(target, overwrite=overwrite) as stream:
        stream.write(content)


def write_small(target: Path, content: bytes = b"all", *, overwrite: bool = True) -> None:
    publish_unflushed(target, content)


both_ways = pytest.mark.parametrize("write_file", [write, write_small])


# --- complete or absent

# Ends a process at every call of the system that changes something, before the call and after it, and prints what is there then
# and after the next writing. The writing is done in forks, of which each counts its calls.
KILL_AT_EVERY_STEP: Final = """
import json, os, sys
from pathlib import Path
from drunet_cli.io.atomic import remove_stale_in, write_atomically, publish_unflushed

def write(target, content, overwrite):
    if sys.argv[2] == "small":
        publish_unflushed(target, content)
        return
    with write_atomically(target, overwrite=overwrite) as stream:
        stream.write(content)
        stream.flush()

def die_at(step, after):
    count = 0
    def wrapped(call):
        def run(*arguments, **options):
            nonlocal count
            count += 1
            if count == step and not after:
                os._exit(9)
            try:
                return call(*arguments, **options)
            finally:
                if count == step:
                    os._exit(9)
        return run
    for name in ("mkdir", "fsync", "link", "replace", "rename", "unlink"):
        setattr(os, name, wrapped(getattr(os, name)))

def contents(folder):
    return {path.name: path.read_bytes().decode() for path in folder.iterdir()}

for earlier in (False, True):
    for after in (False, True):
        for step in range(1, 20):
            folder = Path(sys.argv[1]) / f"{earlier}-{after}-{step}"
            folder.mkdir()
            target = folder / "seg.nii.gz"
            if earlier:
                target.write_bytes(b"earlier")
            pid = os.fork()
            if pid == 0:
                die_at(step, after)
                write(target, b"new", earlier)
                os._exit(0)
            killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
            found = contents(folder)
            remove_stale_in(folder, ".nii.gz")
            write(target, b"next", True)
            print(json.dumps([earlier, killed, found, contents(folder)]))
            if not killed:
                break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("way", ["one", "small"])
def test_a_writer_killed_at_any_step_leaves_the_whole_file_or_none_and_the_next_one_cleans_up(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-c", KILL_AT_EVERY_STEP, str(tmp_path), way]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    steps = [json.loads(line) for line in lines]
    for earlier, killed, found, afterwards in steps:
        if killed:
            assert found.pop("seg.nii.gz", None) in ({"earlier", "new"} if earlier else {None, "new"})
            assert len(found) <= 1
            assert all(name.startswith(".seg.nii.gz.") and name.endswith(".tmp") for name in found)
        else:
            assert found == {"seg.nii.gz": "new"}
        assert afterwards == {"seg.nii.gz": "next"}
    # mkdir, fsync, link or replace, unlink; unlink, replace, unlink: before and after each, of a new file and over an earlier.
    assert sum(killed for _, killed, *_ in steps) == (16 if way == "one" else 12)


def test_the_bytes_are_on_the_disk_before_they_are_published(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def run(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return call(*arguments, **options)

        return run

    for name in ("fsync", "link", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    write(target)
    write(target, overwrite=True)
    assert calls == ["fsync", "link", "fsync", "replace"]


def write_half(target: Path, failure: BaseException) -> None:
    with write_atomically(target, overwrite=True) as stream:
        stream.write(b"half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError(), KeyboardInterrupt(), Terminated(), SystemExit()])
@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_changes_when_the_block_raises(target: Path, failure: BaseException, earlier: bool) -> None:
    if earlier:
        target.write_bytes(b"earlier")
    with pytest.raises(type(failure)):
        write_half(target, failure)
    assert names_in(target.parent) == ([target.name] if earlier else [])
    assert not earlier or target.read_bytes() == b"earlier"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), Terminated(), OSError(28, "No space left on device")])
@both_ways
def test_an_interruption_in_the_last_moment_leaves_no_temporary(
    target: Path, write_file: Callable[..., None], failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        write_file(target, overwrite=True)
    assert names_in(target.parent) == []


def test_a_disk_that_is_full_half_way_is_an_output_error(target: Path) -> None:
    target.write_bytes(b"earlier")
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from drunet_cli.errors import OutputError\n"
        "from tests.io.test_atomic import write, write_small\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for write_file in (write, write_small):\n"
        "    try:\n"
        "        write_file(Path(sys.argv[1]), bytes(100_000), overwrite=True)\n"
        "    except OutputError as error:\n"
        "        print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"{target}: cannot be written: File too large"] * 2
    assert target.read_bytes() == b"earlier"
    assert names_in(target.parent) == [target.name]


def test_a_folder_that_is_made_for_a_file_goes_with_it(target: Path) -> None:
    with pytest.raises(RuntimeError), write_atomically(target.parent / "new" / "newer" / "file", overwrite=False):
        raise RuntimeError
    assert names_in(target.parent) == []


@pytest.mark.parametrize(
    ("number", "refused"),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (524, False), (errno.EPERM, False), (errno.EIO, True)],
)
def test_a_file_system_that_cannot_flush_gets_the_file_with_one_warning_and_one_that_fails_to_does_not(
    target: Path, number: int, refused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    _warn_of_no_flush.cache_clear()
    if refused:
        with pytest.raises(OutputError, match=f"{target}: cannot be written: "):
            write(target)
    else:
        write(target)
        write(target, overwrite=True)
    assert caplog.text.count("cannot flush files") == (0 if refused else 1)
    assert names_in(target.parent) == ([] if refused else [target.name])


def test_a_reader_meets_the_earlier_small_file_or_the_new_one_and_no_part(target: Path) -> None:
    contents = [bytes([value]) * 2**20 for value in range(2)]
    publish_unflushed(target, contents[0])
    met: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            met.append(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(30):
        publish_unflushed(target, contents[n % 2])
    stop.set()
    reader.join()
    assert set(met) <= set(contents)


# --- overwriting


def no_links(*arguments: object, **options: object) -> None:
    raise PermissionError(1, "Operation not permitted")  # what FAT and some network file systems say


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("appears", [False, True])
def test_a_file_is_replaced_only_when_asked_also_where_it_appears_meanwhile(
    target: Path, hard_links: bool, appears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    if appears:
        with pytest.raises(OutputError, match="appeared"), write_atomically(target, overwrite=False):
            target.write_bytes(b"theirs")
    else:
        write(target, b"theirs")
    with pytest.raises(OutputError, match=rf"^{target}: exists already; give --overwrite"):
        write(target)
    assert target.read_bytes() == b"theirs"
    write(target, overwrite=True)
    assert target.read_bytes() == b"all"
    assert names_in(target.parent) == [target.name]


def test_a_link_in_the_place_of_the_target_is_never_followed(target: Path) -> None:
    target.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="exists already"):
        write(target)
    write_small(target)
    assert not target.is_symlink()
    assert names_in(target.parent) == [target.name]


# --- permissions and folders


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
@both_ways
def test_permissions_follow_the_umask(target: Path, write_file: Callable[..., None], umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for overwrite in (False, True):
            write_file(target, overwrite=overwrite)
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_missing_parent_folders_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (tmp_path / "a" / "b" / "seg.nii.gz", Path("seg.nii.gz")):
        check_writable(target, overwrite=False)
        write(target)
        assert target.read_bytes() == b"all"


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path: Path) -> None:
    with create_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names_in(tmp_path) == []
    with create_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert names_in(tmp_path / "a") == ["file"]
    with pytest.raises(OutputError, match=r"the folder cannot be made"), create_folder(tmp_path / "a" / "file" / "c"):
        pass


def test_one_file_by_two_names_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").touch()
    assert is_same_file(tmp_path / "a", tmp_path / "b")
    assert not is_same_file(tmp_path / "a", tmp_path / "c")
    assert not is_same_file(tmp_path / "a", tmp_path / "missing")


# --- what can never be written


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "is a folder; name a file"),
        ("file/b/seg.nii", "cannot be written: "),
        ("x" * 256, "cannot be written: the name is too long; shorten it"),
        ("x" * 250, "cannot be written: the name is too long; shorten it"),  # with what a temporary adds
        (f"{'x' * 300}/seg.nii", "cannot be written: the name is too long; shorten it"),
        ("x" * 5000, ""),
    ],
)
def test_a_target_that_has_no_place_is_refused_before_the_work_and_by_the_writing(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / name
    for refuse in (check_writable, write):
        with pytest.raises(OutputError) as caught:
            refuse(path, overwrite=True)
        assert str(caught.value).startswith(f"{path}: {words}")
    with pytest.raises(OutputError):
        write_small(path)
    assert names_in(tmp_path) == ["file", "folder"]


def test_a_folder_that_refuses_is_named_before_the_work_and_keeps_its_files(closed_folder: Path) -> None:
    target = closed_folder / "seg.nii"
    closed_folder.chmod(0o755)
    target.write_bytes(b"earlier")
    closed_folder.chmod(0o555)
    with unprivileged():
        with pytest.raises(OutputError, match="no permission to write"):
            check_writable(closed_folder / "new" / "seg.nii", overwrite=False)
        for write_file in (write, write_small):
            with pytest.raises(OutputError, match=r"[Pp]ermission"):
                write_file(target, overwrite=True)
    assert names_in(closed_folder) == [target.name]
    assert target.read_bytes() == b"earlier"


def test_a_folder_that_appears_in_the_place_of_the_target_is_an_output_error(target: Path) -> None:
    with pytest.raises(OutputError), write_atomically(target, overwrite=True):
        target.mkdir()
    assert names_in(target.parent) == [target.name]


def test_a_folder_that_may_be_written_but_not_listed_can_hold_the_target() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o333)
        try:
            with unprivileged():
                remove_stale_in(folder, ".nii")
                write(folder / "seg.nii")
        finally:
            folder.chmod(0o700)
        assert names_in(folder) == ["seg.nii"]


# --- temporaries of others

OURS, DEAD, PARENT = "ours", "dead", "parent"
HOUR_S: Final = 3600.0


@pytest.mark.parametrize(
    ("host", "writer", "age_s", "removed"),
    [
        (HOST, DEAD, 0, True),
        (HOST, PARENT, 48 * HOUR_S, False),  # it runs, however old the file is
        (HOST, OURS, 0, True),  # of an earlier container, whose process ids began at the same number
        ("another-host.example.org", DEAD, 60, False),
        ("another-host.example.org", DEAD, 23 * HOUR_S, False),  # atomic.py: after a day
        ("another-host.example.org", DEAD, 25 * HOUR_S, True),
    ],
)
@pytest.mark.parametrize("name", ["seg.nii.gz", ".nii.gz", "a b.nii.gz", "x.nii.gz.y.nii.gz", "é.nii.gz"])
def test_a_temporary_is_removed_when_its_writer_is_gone(
    tmp_path: Path, name: str, host: str, writer: str, age_s: float, removed: bool
) -> None:
    pid = {OURS: os.getpid(), DEAD: ENDED_PID, PARENT: os.getppid()}[writer]
    path = tmp_path / f".{name}.{host}.{pid}.tmp"
    for alone in (True, False):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
        if alone:
            remove_stale(tmp_path / name)
        else:
            remove_stale_in(tmp_path, ".nii.gz")
        assert path.exists() is not removed


def test_folders_of_scans_that_killed_processes_left_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = [f"drunet-temporary-{HOST}.{pid}.x1_y" for pid in (ENDED_PID, os.getpid())]
    kept = [
        f"drunet-temporary-{HOST}.{os.getppid()}.x",
        f"drunet-temporary-other.{ENDED_PID}.x",
        f"{HOST}.{ENDED_PID}.x",
        "drunet-demo",
        "drunet-temporary-1.x",
        f"drunet-{HOST}.{ENDED_PID}.x",  # results of somebody, by name
    ]
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "head.nii.gz").touch()
    with temporary_folder() as folder:
        (folder / "head.nii.gz").touch()
        remove_stale_folders()
        assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name}
    assert not folder.exists()


def test_other_files_are_kept_however_much_they_look_alike(target: Path) -> None:
    for name in (
        f".other.nii.{HOST}.{ENDED_PID}.tmp",
        f".seg.nii.gz.json.{HOST}.{ENDED_PID}.tmp",
        f".seg.nii.gzx.{HOST}.{ENDED_PID}.tmp",
        f"seg.nii.gz.{HOST}.{ENDED_PID}.tmp",
        f".seg.nii.gz.{HOST}.{ENDED_PID}",
        ".seg.nii.gz.tmp",
        ".seg.nii.gz.note",
        ".seg.nii.gz.note.tmp",
        ".seg.nii.gz.old.x.tmp",
        f".seg.nii.gz.{HOST}.x.tmp",
        "seg.nii.gz",
    ):
        (target.parent / name).touch()
        if HOST not in name:
            os.utime(target.parent / name, (0, 0))
    (target.parent / f".seg.nii.gz.{HOST}.{ENDED_PID}.tmp").mkdir()
    before = names_in(target.parent)
    remove_stale(target)
    remove_stale_in(target.parent, ".nii.gz")
    remove_stale_in(target.parent / "missing", ".nii.gz")
    assert names_in(target.parent) == before


def test_a_second_writer_of_this_process_is_refused_and_harms_nothing(target: Path) -> None:
    with write_atomically(target, overwrite=True) as stream:
        stream.write(b"first")
        with pytest.raises(OutputError, match="File exists"), write_atomically(target, overwrite=True):
            pass
    assert target.read_bytes() == b"first"


def test_another_users_temporary_counts_as_alive_and_does_not_stop_the_writing(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    temporary = target.with_name(f".{target.name}.{HOST}.4242.tmp")
    temporary.touch()
    write(target)
    assert names_in(target.parent) == [temporary.name, target.name]


# --- claims: who is at a file, and when that counts for nothing


LIVES: Final = os.getppid()

# What the claim of another process holds, its age, and who has therefore claimed the file.
CLAIMS: Final[dict[str, tuple[str, float, str | None]]] = {
    "lives": (f"{HOST} {LIVES}\n", 3600, f"process {LIVES} on {HOST}"),
    "has ended": (f"{HOST} {ENDED_PID}\n", 0, None),
    "had the number of this process": (f"{HOST} {os.getpid()}\n", 0, None),
    "elsewhere": ("elsewhere 7\n", 300, "process 7 on elsewhere"),
    "elsewhere, long silent": ("elsewhere 7\n", 900, None),
    "not yet signed": ("", 0, "another process"),
    "never signed": ("", 900, None),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_while_its_process_is_known_to_live(name: str, tmp_path: Path) -> None:
    content, age_s, holder = CLAIMS[name]
    target, path = tmp_path / "seg.nii.gz", tmp_path / ".seg.nii.gz.claim"
    path.write_text(content)
    os.utime(path, (time.time() - age_s,) * 2)
    assert claimant(target) == holder
    claim = claim_file(target)
    assert (claim is None) == (holder is not None)
    assert path.read_text() == (content if claim is None else f"{HOST} {os.getpid()}\n")
    if claim is not None:
        claim.release()
        assert list(tmp_path.iterdir()) == []


def test_claims_of_processes_that_have_ended_are_removed_from_a_folder(tmp_path: Path) -> None:
    contents = {name: (tmp_path / f".{name}.claim", content) for name, (content, _, _) in CLAIMS.items()}
    for path, content in contents.values():
        path.write_text(content)
    (tmp_path / ".mine").touch()
    remove_abandoned_claims(tmp_path)
    remove_abandoned_claims(tmp_path / "absent")
    gone = {"has ended", "had the number of this process"}
    assert {path.name for path in tmp_path.iterdir()} == {".mine", *(f".{name}.claim" for name in CLAIMS.keys() - gone)}


def test_a_claim_that_another_process_has_taken_over_is_not_released(tmp_path: Path) -> None:
    claim, path = claim_file(tmp_path / "seg.nii.gz"), tmp_path / ".seg.nii.gz.claim"
    assert claim is not None
    path.write_text(f"{HOST} {LIVES}\n")
    claim.release()
    assert path.exists()


def test_a_claim_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, path = claim_file(tmp_path / "seg.nii.gz"), tmp_path / ".seg.nii.gz.claim"
    assert claim is not None
    os.utime(path, (0, 0))
    claim.renew()  # made just now
    assert path.stat().st_mtime == 0
    monkeypatch.setattr(atomic, "_RENEWED_AFTER_S", 0.0)
    claim.renew()
    assert path.stat().st_mtime > 0


def test_a_claim_is_renewed_while_a_single_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_RENEWED_AFTER_S", 0.01)
    claim = claim_file(tmp_path / "p1.nii.gz")
    assert claim is not None
    path = atomic.claim_of(tmp_path / "p1.nii.gz")
    with claim.keep_renewed():
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
    assert path.stat().st_mtime > 0


def test_work_goes_on_where_nothing_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    open_to_all(tmp_path)
    with unprivileged():
        claim = claim_file(tmp_path / "shut/seg.nii.gz")
    assert claim is not None
    claim.renew()
    claim.release()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system kills no writer")
def test_nobody_waits_for_a_process_that_was_killed_before_it_had_signed_its_claim(target: Path) -> None:
    sign = f"from pathlib import Path; from drunet_cli.io.atomic import claim_file; claim_file(Path({str(target)!r}))"
    killed = subprocess.run([sys.executable, "-c", f"{limit_files(0, signal_ignored=False)};{sign}"], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert len(names_in(target.parent)) == 1
    assert claimant(target) is None
    remove_stale_in(target.parent, ".claim")
    assert names_in(target.parent) == []


def test_a_file_system_without_hard_links_takes_claims_too(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(errno.EPERM, "Operation not permitted")))
    claim = claim_file(target)
    assert claim is not None
    assert names_in(target.parent) == [".seg.nii.gz.claim"]
    atomic.claim_of(target).write_text(f"{HOST} {LIVES}\n")
    assert claim_file(target) is None


def test_a_claim_that_cannot_be_signed_is_not_left_for_others_to_wait_for(tmp_path: Path) -> None:
    with mock.patch.object(atomic, "_signature", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        claim = claim_file(tmp_path / "seg.nii.gz")
        assert claim is not None
        assert list(tmp_path.iterdir()) == []
        claim.release()
