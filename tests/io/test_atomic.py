"""Files that are complete or absent, whoever is killed and whoever else writes."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drunet_cli.errors import OutputError, Terminated
from drunet_cli.io.atomic import check_writable, remove_stale, remove_stale_in, write_atomically, write_file_atomically
from tests.support import unprivileged

WRITE_HALF_AND_DIE = """
import os, signal, sys
from pathlib import Path
from drunet_cli.io.atomic import write_atomically
with write_atomically(Path(sys.argv[1]), overwrite=sys.argv[2] == "overwrite") as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "seg.nii.gz"


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def temporary_of(target: Path, host: str, pid: int, *, age_s: float = 0) -> Path:
    """What a writer on this host, of this process id, has left."""
    path = target.with_name(f".{target.name}.{host}.{pid}.tmp")
    path.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def write(target: Path, content: bytes = b"all", *, overwrite: bool = False) -> None:
    with write_atomically(target, overwrite=overwrite) as stream:
        stream.write(content)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """One that may be read but not written; tmp_path lies in folders that only their owner may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o700)


# --- complete or absent


def test_a_file_appears_when_the_block_ends_and_not_before(target: Path) -> None:
    with write_atomically(target, overwrite=False) as stream:
        stream.write(b"all")
        stream.flush()
        assert not target.exists()
    assert target.read_bytes() == b"all"
    assert names_in(target.parent) == [target.name]


def write_half(target: Path, failure: BaseException, *, overwrite: bool = False) -> None:
    with write_atomically(target, overwrite=overwrite) as stream:
        stream.write(b"half")
        stream.flush()
        raise failure


@pytest.mark.parametrize("failure", [ValueError(), KeyboardInterrupt(), SystemExit()])
def test_nothing_is_left_when_the_block_raises(target: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        write_half(target, failure)
    assert names_in(target.parent) == []


def test_the_earlier_file_stays_when_the_block_raises(target: Path) -> None:
    target.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="half way"):
        write_half(target, ValueError("half way"), overwrite=True)
    assert target.read_bytes() == b"earlier"
    assert names_in(target.parent) == [target.name]


def test_an_error_of_the_system_inside_the_block_names_the_target(target: Path) -> None:
    with pytest.raises(OutputError) as caught, write_atomically(target, overwrite=False):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{target}: cannot be written: No space left on device"
    assert names_in(target.parent) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_output_error(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(OutputError, match="No space left on device"):
        write(target)
    assert names_in(target.parent) == []


@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_a_killed_writer_leaves_no_half_and_the_next_one_cleans_up(target: Path, mode: str) -> None:
    if mode == "overwrite":
        target.write_bytes(b"earlier")
    process = subprocess.run([sys.executable, "-c", WRITE_HALF_AND_DIE, str(target), mode], check=False)
    assert process.returncode == -9
    assert len([name for name in names_in(target.parent) if name.endswith(".tmp")]) == 1
    assert not target.exists() if mode == "new" else target.read_bytes() == b"earlier"
    write(target, overwrite=mode == "overwrite")
    assert target.read_bytes() == b"all"
    assert names_in(target.parent) == [target.name]


# --- overwriting


def test_an_existing_file_is_not_replaced_unasked(target: Path) -> None:
    target.write_bytes(b"earlier")
    with pytest.raises(OutputError) as caught:
        write(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert target.read_bytes() == b"earlier"
    assert names_in(target.parent) == [target.name]


def test_an_existing_file_is_replaced_on_demand(target: Path) -> None:
    target.write_bytes(b"earlier")
    write(target, overwrite=True)
    assert target.read_bytes() == b"all"


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(target: Path, hard_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match="appeared"), write_atomically(target, overwrite=False):
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert names_in(target.parent) == [target.name]


def no_links(*arguments: object, **options: object) -> None:
    raise PermissionError(1, "Operation not permitted")  # what FAT and some network file systems say


def test_a_file_system_without_hard_links_gets_the_file_too(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    write(target)
    assert target.read_bytes() == b"all"
    assert names_in(target.parent) == [target.name]


def test_a_dangling_link_in_the_place_of_the_target_is_not_followed(target: Path) -> None:
    target.symlink_to("elsewhere")
    with pytest.raises(OutputError):
        write(target)
    assert names_in(target.parent) == [target.name]


# --- permissions and folders


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_permissions_follow_the_umask(target: Path, umask: int, mode: int, overwrite: bool) -> None:
    before = os.umask(umask)
    try:
        write(target, overwrite=overwrite)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "seg.nii.gz"
    check_writable(target, overwrite=False)
    write(target)
    assert target.read_bytes() == b"all"


def test_a_target_without_a_folder_lies_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("seg.nii.gz"), overwrite=False)
    write(Path("seg.nii.gz"))
    assert names_in(tmp_path) == ["seg.nii.gz"]


# --- temporaries of others


def test_a_dead_processs_temporary_is_removed(target: Path, dead_pid: int) -> None:
    temporary = temporary_of(target, socket.gethostname(), dead_pid)
    remove_stale(target)
    assert not temporary.exists()


def test_a_living_processs_temporary_is_kept_however_old(target: Path) -> None:
    temporary = temporary_of(target, socket.gethostname(), os.getppid(), age_s=48 * 3600)
    remove_stale(target)
    assert temporary.exists()


def test_a_living_process_of_another_user_counts_as_living(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    temporary = temporary_of(target, socket.gethostname(), 4242)
    remove_stale(target)
    assert temporary.exists()


def test_a_temporary_under_our_own_process_id_is_of_an_earlier_container(target: Path) -> None:
    temporary_of(target, socket.gethostname(), os.getpid())
    write(target)
    assert names_in(target.parent) == [target.name]


@pytest.mark.parametrize(("age_s", "kept"), [(60, True), (23 * 3600, True), (25 * 3600, False)])  # atomic.py: after a day
def test_another_hosts_temporary_is_removed_when_old(target: Path, age_s: float, kept: bool, dead_pid: int) -> None:
    temporary = temporary_of(target, "another-host.example.org", dead_pid, age_s=age_s)
    remove_stale(target)
    assert temporary.exists() is kept


def test_temporaries_of_other_targets_and_other_files_are_kept(target: Path, dead_pid: int) -> None:
    temporary_of(target.with_name("other.nii.gz"), socket.gethostname(), dead_pid)
    temporary_of(target.with_name("seg.nii.gz.json"), socket.gethostname(), dead_pid)
    (target.parent / f".{target.name}.tmp").touch()
    (target.parent / f".{target.name}.note").touch()
    before = names_in(target.parent)
    remove_stale(target)
    assert names_in(target.parent) == before


def test_a_temporary_that_cannot_be_removed_does_not_stop_the_writing() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)  # as /tmp: everybody may write, but remove only their own
        foreign = temporary_of(folder / "seg.nii", "another-host", 1, age_s=48 * 3600)
        if os.geteuid() != 0:
            pytest.skip("only root can lay a file of another user there")
        with unprivileged():
            write(folder / "seg.nii")
        assert foreign.exists()
        assert (folder / "seg.nii").read_bytes() == b"all"


def test_a_folder_that_may_be_written_but_not_listed_can_hold_the_target() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o333)
        try:
            with unprivileged():
                check_writable(folder / "seg.nii", overwrite=False)
                remove_stale(folder / "seg.nii")
                write(folder / "seg.nii")
        finally:
            folder.chmod(0o700)
        assert names_in(folder) == ["seg.nii"]


# --- what can never be written


def test_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        check_writable(tmp_path, overwrite=True)
    assert str(caught.value) == f"{tmp_path}: is a folder; name a file"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_in_the_place_of_the_target_is_an_output_error(target: Path, overwrite: bool) -> None:
    with pytest.raises(OutputError), write_atomically(target, overwrite=overwrite):
        target.mkdir()
    assert names_in(target.parent) == [target.name]


def test_an_existing_target_is_refused_before_the_work(target: Path) -> None:
    target.touch()
    with pytest.raises(OutputError, match="--overwrite"):
        check_writable(target, overwrite=False)
    check_writable(target, overwrite=True)


def test_a_dangling_link_counts_as_existing(target: Path) -> None:
    target.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="exists already"):
        check_writable(target, overwrite=False)


def test_a_file_in_the_place_of_a_parent_folder_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError, match="a is not a folder"):
        check_writable(tmp_path / "a" / "b" / "seg.nii", overwrite=False)


def test_a_file_in_the_place_of_a_parent_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError):
        write(tmp_path / "a" / "b" / "seg.nii")


def test_a_folder_that_refuses_is_named_before_the_work(closed_folder: Path) -> None:
    with unprivileged(), pytest.raises(OutputError, match="no permission to write"):
        check_writable(closed_folder / "new" / "seg.nii", overwrite=False)


def test_a_folder_that_refuses_is_an_output_error(closed_folder: Path) -> None:
    with unprivileged(), pytest.raises(OutputError, match=r"[Pp]ermission"):
        write(closed_folder / "seg.nii")


@pytest.mark.parametrize("length", [256, 300, 5000])
def test_a_name_that_the_file_system_refuses_is_found_before_the_work(tmp_path: Path, length: int) -> None:
    with pytest.raises(OutputError):
        check_writable(tmp_path / ("x" * length), overwrite=False)


def test_a_name_of_the_greatest_length_is_either_written_or_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 248 + ".nii.gz")  # 255 bytes, the limit of most file systems
    try:
        check_writable(target, overwrite=False)
    except OutputError:
        return
    write(target)
    assert target.read_bytes() == b"all"


# --- many small files


def test_a_small_file_appears_whole_and_leaves_nothing_beside_it(target: Path) -> None:
    for content in (b"", b"all", b"x" * 10**6):
        write_file_atomically(target, content)
        assert target.read_bytes() == content
        assert names_in(target.parent) == [target.name]


def test_a_reader_meets_the_earlier_small_file_or_the_new_one_and_no_part(target: Path) -> None:
    contents = [bytes([value]) * 2**20 for value in range(2)]
    write_file_atomically(target, contents[0])
    met: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            met.append(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(60):
        write_file_atomically(target, contents[n % 2])
    stop.set()
    reader.join()
    assert met
    assert set(met) <= set(contents)


def test_the_earlier_small_file_stays_where_the_new_one_cannot_be_written(closed_folder: Path) -> None:
    target = closed_folder / "seg.nii.gz"
    closed_folder.chmod(0o755)
    target.write_bytes(b"earlier")
    closed_folder.chmod(0o555)
    with unprivileged(), pytest.raises(OutputError) as caught:
        write_file_atomically(target, b"new")
    assert str(caught.value) == f"{target}: cannot be written: Permission denied"
    assert target.read_bytes() == b"earlier"
    assert names_in(closed_folder) == [target.name]


def test_a_small_file_that_can_only_be_begun_leaves_nothing(target: Path) -> None:
    target.write_bytes(b"earlier")
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from drunet_cli.errors import OutputError\n"
        "from drunet_cli.io.atomic import write_file_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # as a full disk: a part is written, then an error comes
        "try:\n"
        "    write_file_atomically(Path(sys.argv[1]), bytes(100_000))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True).stdout
    assert said == f"{target}: cannot be written: File too large\n"
    assert target.read_bytes() == b"earlier"
    assert names_in(target.parent) == [target.name]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), Terminated()])
def test_an_interruption_leaves_no_temporary_of_a_small_file(
    target: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", interrupt)
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(type(failure)):
        write_file_atomically(target, b"all")
    assert names_in(target.parent) == []


def test_a_killed_writer_of_a_small_file_leaves_no_half_and_the_next_one_cleans_up(target: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\n"
        "from drunet_cli.io.atomic import write_file_atomically\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file_atomically(pathlib.Path(sys.argv[1]), b'half')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == -9
    assert [name for name in names_in(target.parent) if not name.endswith(".tmp")] == []
    assert len(names_in(target.parent)) == 1
    remove_stale_in(target.parent, suffix=".nii.gz")
    assert names_in(target.parent) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_of_a_small_file_follow_the_umask(target: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_file_atomically(target, b"all")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_link_in_the_place_of_a_small_file_is_replaced_and_not_followed(target: Path) -> None:
    elsewhere = target.with_name("elsewhere")
    elsewhere.write_bytes(b"theirs")
    target.symlink_to(elsewhere)
    write_file_atomically(target, b"all")
    assert elsewhere.read_bytes() == b"theirs"
    assert not target.is_symlink()
    assert target.read_bytes() == b"all"


@pytest.mark.parametrize("name", ["missing/seg.png", "folder", "x" * 250, "x" * 5000])
def test_a_small_file_that_has_no_place_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        write_file_atomically(tmp_path / name, b"all")
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be written: ")
    assert names_in(tmp_path) == ["folder"]


def test_stale_temporaries_of_every_file_with_the_suffix_are_removed_at_once(tmp_path: Path, dead_pid: int) -> None:
    host = socket.gethostname()
    (tmp_path / "case_0.png").touch()
    for name in (
        "case_0.png",
        "case_1.png",
        ".png",
        "a b.png",
        "x.png.png",
        "x.png.y.png",
        "\N{LATIN SMALL LETTER E WITH ACUTE}.png",
    ):
        temporary_of(tmp_path / name, host, dead_pid)
        temporary_of(tmp_path / f"2{name}", "another-host", dead_pid, age_s=25 * 3600)
        temporary_of(tmp_path / f"3{name}", host, os.getpid())  # of an earlier container
    remove_stale_in(tmp_path, suffix=".png")
    assert names_in(tmp_path) == ["case_0.png"]


def test_temporaries_of_living_writers_and_of_other_files_are_kept(tmp_path: Path, dead_pid: int) -> None:
    host = socket.gethostname()
    temporary_of(tmp_path / "case_0.png", host, os.getppid(), age_s=48 * 3600)
    temporary_of(tmp_path / "case_0.png", "another-host", dead_pid, age_s=23 * 3600)
    temporary_of(tmp_path / "case_0.json", host, dead_pid)
    temporary_of(tmp_path / "case_0.pngx", host, dead_pid)
    for name in (
        "case_0.png",
        ".case_0.png.tmp",
        ".case_0.png",
        f"case_0.png.{host}.{dead_pid}.tmp",
        f".case_0.png.{host}.{dead_pid}",
    ):
        (tmp_path / name).touch()
    before = names_in(tmp_path)
    remove_stale_in(tmp_path, suffix=".png")
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("middle", ["note", "old.x", f"{socket.gethostname()}.x"])
def test_an_old_file_of_the_user_that_only_looks_alike_is_kept(target: Path, middle: str) -> None:
    path = target.with_name(f".{target.name}.{middle}.tmp")
    path.touch()
    os.utime(path, (0, 0))
    remove_stale(target)
    assert path.exists()
    remove_stale_in(target.parent, suffix=".nii.gz")
    assert path.exists()


def test_a_folder_that_is_not_there_or_may_not_be_listed_has_no_stale_temporaries(tmp_path: Path) -> None:
    remove_stale_in(tmp_path / "missing", suffix=".png")
    (tmp_path / "file").touch()
    remove_stale_in(tmp_path / "file", suffix=".png")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o333)
        with unprivileged():
            remove_stale_in(Path(name), suffix=".png")
        Path(name).chmod(0o700)


def test_a_folder_with_the_name_of_a_stale_temporary_stops_nothing(tmp_path: Path, dead_pid: int) -> None:
    (tmp_path / f".case_0.png.{socket.gethostname()}.{dead_pid}.tmp").mkdir()
    temporary_of(tmp_path / "case_1.png", socket.gethostname(), dead_pid)
    remove_stale_in(tmp_path, suffix=".png")
    assert len(names_in(tmp_path)) == 1
