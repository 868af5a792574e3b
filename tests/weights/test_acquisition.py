"""Weights by name: fetched once, verified, kept, and never half there."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import pytest
import urllib3.util.connection

from drunet_cli.errors import MisuseError, OutputError, WeightsError
from drunet_cli.io.volumes import file_sha256
from drunet_cli.weights import download, registry
from drunet_cli.weights.cache import Watcher, import_weights, metadata_of, obtain, open_weights
from drunet_cli.weights.checkpoint import read_checkpoint, write_checkpoint
from drunet_cli.weights.registry import DEFAULT, ENTRIES, Entry, cache_folder, cached_path, check_available
from tests.support import GOLDEN_WEIGHTS
from tests.weights.file_server import Answer, FileServer, serving

pytestmark = pytest.mark.usefixtures("golden_is_published")

CONTENT = GOLDEN_WEIGHTS.read_bytes()
GUIDE = Path(__file__).parents[2] / "drunet_cli" / "guide" / "weights.md"
HTML = {"Content-Type": "text/html"}


@pytest.fixture(autouse=True)
def _no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda _seconds: None, monotonic=time.monotonic))


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Callable[[FileServer], None]:
    return lambda server: monkeypatch.setenv("DRUNET_WEIGHTS_URL", server.url)


def _files() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir()) if cache_folder().is_dir() else []


def _refusal() -> str:
    with pytest.raises(WeightsError) as caught:
        obtain(DEFAULT)
    assert "\n" not in str(caught.value)
    assert caught.value.__notes__ == list(caught.value.details)
    return "\n".join([str(caught.value), *caught.value.details])


def _assert_golden(path: Path) -> None:
    ours, keras = read_checkpoint(path), open_weights(str(GOLDEN_WEIGHTS))
    assert all(np.array_equal(ours.state[key], keras.state[key]) for key in keras.state)
    assert ours.metadata.source_sha256 == file_sha256(GOLDEN_WEIGHTS)


def test_the_first_use_downloads_and_later_ones_need_no_network(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT) as server:
        mirror(server)
        first = open_weights(DEFAULT)
    assert len(server.requests) == 1
    assert open_weights(DEFAULT).sha256 == first.sha256  # the server is gone
    _assert_golden(cached_path(DEFAULT))
    assert first.metadata.origin == server.url
    assert first.metadata.bn_epsilon == 1e-3
    assert first.metadata.dropout is None
    assert _files() == ["brats2020.lock", "brats2020.safetensors"]


def test_a_mirror_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    _assert_golden(obtain(DEFAULT))


def test_a_mirror_may_hold_a_cached_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(import_weights(GOLDEN_WEIGHTS, name="ours"), tmp_path / "mirrored")
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", (tmp_path / "mirrored").as_uri())
    _assert_golden(obtain(DEFAULT))
    assert read_checkpoint(cached_path(DEFAULT)).metadata.name == DEFAULT


def test_a_download_that_is_cut_and_refused_meanwhile_is_resumed(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT, Answer(cut_after=700_000), Answer(status=503), Answer(status=503)) as server:
        mirror(server)
        _assert_golden(obtain(DEFAULT))
    assert server.ranges == [None, "bytes=700000-", "bytes=700000-", "bytes=700000-"]


def test_what_a_failed_run_has_fetched_is_used_by_the_next(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT, Answer(cut_after=500_000), default=Answer(status=404)) as server:
        mirror(server)
        assert "404" in _refusal()
    assert any(name.endswith(".part") for name in _files())
    with serving(CONTENT) as server:
        mirror(server)
        _assert_golden(obtain(DEFAULT))
    assert server.ranges == ["bytes=500000-"]
    assert _files() == ["brats2020.lock", "brats2020.safetensors"]


def test_what_another_file_has_left_is_thrown_away_and_fetched_anew(mirror: Callable[[FileServer], None]) -> None:
    with serving(b"\0" * len(CONTENT), Answer(cut_after=500_000), default=Answer(status=404)) as server:
        mirror(server)
        _refusal()
    with serving(CONTENT) as server:
        mirror(server)
        _assert_golden(obtain(DEFAULT))
    assert server.ranges == ["bytes=500000-", None]


def _damaged(tmp_path: Path, damage: Callable[[h5py.File], object]) -> bytes:
    path = tmp_path / "damaged.h5"
    shutil.copy(GOLDEN_WEIGHTS, path)
    with h5py.File(path, "r+") as file:
        damage(file)
    return path.read_bytes()


def _put_nan(file: h5py.File) -> None:
    file["output_layer/output_layer/bias:0"][1] = np.nan


def _put_extra(file: h5py.File) -> None:
    file["conv2d/conv2d/gamma:0"] = np.zeros(1, dtype=np.float32)


def _drop_layer(file: h5py.File) -> None:
    del file["conv2d_20"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_put_nan, "not finite"), (_put_extra, "left over"), (_drop_layer, "conv2d_20 is listed but missing")],
)
def test_a_file_of_another_network_is_refused_and_nothing_is_kept(
    tmp_path: Path, mirror: Callable[[FileServer], None], damage: Callable[[h5py.File], object], reason: str
) -> None:
    with serving(_damaged(tmp_path, damage)) as server:
        mirror(server)
        message = _refusal()
    assert reason in message
    assert _files() == ["brats2020.lock"]


@pytest.mark.parametrize(
    ("content", "answer", "reason"),
    [
        (b"garbage" * 1000, Answer(), "neither a Keras HDF5 nor a safetensors file"),
        (CONTENT[:100_000], Answer(), "not a readable Keras HDF5"),
        (CONTENT, Answer(status=200, body=b"<html><title>Sign in</title></html>", headers=HTML), "web page"),
        (CONTENT, Answer(status=200, body=b"<title>Google Drive - Quota exceeded</title>", headers=HTML), "quota"),
        (CONTENT, Answer(headers={"Content-Length": str(len(CONTENT) + 5)}, ranges=False), "the connection was cut"),
        (CONTENT, Answer(status=500), "500"),
    ],
)
def test_every_failure_names_the_url_the_cache_and_the_ways_without_it(
    mirror: Callable[[FileServer], None], content: bytes, answer: Answer, reason: str
) -> None:
    with serving(content, default=answer) as server:
        mirror(server)
        message = _refusal()
    assert reason in message.splitlines()[0]
    assert message.count(server.url) == 1
    for part in (str(cache_folder()), "drunet weights import FILE --name brats2020", "DRUNET_WEIGHTS_URL", "--weights compact"):
        assert part in message
    assert not cached_path(DEFAULT).exists()


def test_a_download_that_fails_is_told_in_lines_of_80_columns_that_name_the_page_of_the_guide_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(urllib3.util.connection, "create_connection", no_such_name)
    message, *ways = _refusal().splitlines()
    assert message == (
        "download of weights brats2020 failed: could not connect to drive.usercontent.google.com: Name or service not known"
    )
    (page,) = [line.strip() for line in ways if "https://drive" in line]
    assert f"<{page}>" in GUIDE.read_text()
    # cli/console.py indents them by two.
    assert max(len(line) for line in ways if str(cache_folder()) not in line) <= 78


def test_a_program_is_told_of_the_download_and_of_each_attempt(
    mirror: Callable[[FileServer], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(CONTENT, Answer(status=503)) as server:
        mirror(server)
        open_weights(DEFAULT)
    told = [record.getMessage() for record in caplog.records if record.name == "drunet_cli"]
    assert told[0] == f"downloading weights brats2020, about 307 MB, from {server.url} into {cache_folder()}"
    assert "licence" in told[1]
    assert re.fullmatch("download: the server answered 503 Service Unavailable; trying again in 1 s", told[2])
    assert len(told) == 3


# Whether they are those of the registry


def _trained(tmp_path: Path, **changes: Any) -> Path:
    """The golden weights as drunet would have trained them."""
    golden = open_weights(str(GOLDEN_WEIGHTS))
    facts = {"name": "run", "origin": "drunet train, recipe paper", "source_sha256": "", **changes}
    write_checkpoint(tmp_path / "best.safetensors", golden.state, replace(golden.metadata, **facts), overwrite=False)
    return tmp_path / "best.safetensors"


def _width_of_the_published(monkeypatch: pytest.MonkeyPatch, base_width: int) -> None:
    monkeypatch.setitem(cast(dict[str, Entry], ENTRIES), DEFAULT, replace(ENTRIES[DEFAULT], base_width=base_width))


def test_a_network_of_another_width_is_not_imported_as_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _width_of_the_published(monkeypatch, 16)
    with pytest.raises(WeightsError) as caught:
        import_weights(GOLDEN_WEIGHTS)
    assert str(caught.value) == (
        f"{GOLDEN_WEIGHTS}: holds other weights than brats2020, the published DR-Unet104: base width 1, not 16; "
        "give them a name of their own by --name NAME"
    )
    assert not cached_path(DEFAULT).exists()
    assert import_weights(GOLDEN_WEIGHTS, name="mine").is_file()


@pytest.mark.parametrize("changes", [{}, {"source_sha256": "5" * 64, "dropout": 0.2}])
def test_a_network_that_drunet_has_trained_is_not_imported_as_the_published_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Of the same width, which is that of `drunet train`; in half precision it names the file it was made from."""
    path = _trained(tmp_path, **changes)
    with pytest.raises(
        WeightsError, match=r"their origin is drunet train, recipe paper; give them a name of their own by --name"
    ):
        import_weights(path)
    assert not cached_path(DEFAULT).exists()


def test_a_mirror_that_holds_another_network_is_refused(
    mirror: Callable[[FileServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _width_of_the_published(monkeypatch, 16)
    with serving(CONTENT) as server:
        mirror(server)
        assert _refusal().startswith(f"download of weights brats2020 failed: {server.url}: holds other weights than brats2020")
    assert _files() == ["brats2020.lock"]


def test_another_network_that_lies_in_the_cache_under_that_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a drunet that did not look has left it."""
    path = import_weights(GOLDEN_WEIGHTS)
    _width_of_the_published(monkeypatch, 16)
    for attempt in (lambda: open_weights(DEFAULT), lambda: obtain(DEFAULT), lambda: metadata_of(DEFAULT)):
        with pytest.raises(
            WeightsError, match=r"base width 1, not 16; delete that file and run: drunet weights download"
        ) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path}: holds other weights")


def test_a_web_page_that_was_saved_as_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(WeightsError, match=r"w\.h5: is a web page, not weights; open its address in a browser"):
        import_weights(tmp_path / "w.h5")


@pytest.mark.parametrize(("n_bytes", "reason"), [(0, "is empty"), (300_000, "it is cut short")])
def test_a_file_that_did_not_arrive_whole_is_to_be_copied_again(tmp_path: Path, n_bytes: int, reason: str) -> None:
    (tmp_path / "w.h5").write_bytes(CONTENT[:n_bytes])
    with pytest.raises(WeightsError, match=rf"w\.h5: .*{reason}; copy or download it again$"):
        import_weights(tmp_path / "w.h5", name="mine")


def test_an_import_into_a_cache_that_cannot_be_written_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="is not a folder; set DRUNET_CACHE_DIR to another cache folder"):
        import_weights(GOLDEN_WEIGHTS, name="mine")


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is a folder; give the weights file in it, such as best\.safetensors"):
        open_weights(f"{tmp_path}/")


@pytest.mark.parametrize("name", ["my/name", "a b", "mine.h5", ""])
def test_a_name_that_cannot_be_is_misuse(name: str) -> None:
    with pytest.raises(MisuseError, match=r"--name: weights name .*: use letters"):
        import_weights(GOLDEN_WEIGHTS, name=name)


@pytest.mark.parametrize("switch", ["0", "false", "No", "off", ""])
def test_offline_can_be_switched_off(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", switch)
    check_available(DEFAULT)


@pytest.mark.parametrize("switch", ["1", "TRUE", "y"])
def test_offline_is_an_error_before_any_request(
    switch: str, mirror: Callable[[FileServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", switch)
    with serving(CONTENT) as server:
        mirror(server)
        message = _refusal()
    assert "DRUNET_OFFLINE forbids downloading" in message
    assert "drunet weights import FILE" in message
    assert "drunet segment --weights compact" in message
    assert server.requests == []


def test_a_known_checksum_must_match(monkeypatch: pytest.MonkeyPatch, mirror: Callable[[FileServer], None]) -> None:
    entry = replace(ENTRIES[DEFAULT], source_sha256="0" * 64)
    monkeypatch.setitem(cast(dict[str, Entry], ENTRIES), DEFAULT, entry)
    with serving(CONTENT) as server:
        mirror(server)
        assert f"not {'0' * 64}" in _refusal()
        with pytest.raises(WeightsError, match="holds other weights than brats2020"):
            import_weights(GOLDEN_WEIGHTS)
    assert not cached_path(DEFAULT).exists()


def test_a_file_system_without_locks_still_ends_in_whole_weights(
    monkeypatch: pytest.MonkeyPatch, mirror: Callable[[FileServer], None]
) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with serving(CONTENT, Answer(cut_after=100_000)) as server:
        mirror(server)
        _assert_golden(obtain(DEFAULT))
    assert _files() == ["brats2020.lock", "brats2020.safetensors"]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    message = _refusal()
    assert f"the cache {cache_folder()} cannot be written: Not a directory" in message
    assert "DRUNET_CACHE_DIR" in message


def test_an_unknown_name_lists_the_known_ones() -> None:
    import_weights(GOLDEN_WEIGHTS, name="ours")
    with pytest.raises(WeightsError, match="weights 'their' are not known; known: brats2020, compact, ours"):
        obtain("their")


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "a\nb", "x.h5"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="use letters"):
        obtain(name)


def test_an_imported_file_is_found_by_its_name() -> None:
    path = import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-5)
    assert open_weights("ours").metadata.bn_epsilon == 1e-5
    assert metadata_of("ours")[0] == path == cached_path("ours")
    assert registry.cached_names() == ["ours"]


def test_a_name_that_is_taken_is_kept_unless_told_otherwise() -> None:
    import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-5)
    with pytest.raises(OutputError, match="--overwrite"):
        import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-3)
    assert metadata_of("ours")[1].bn_epsilon == 1e-5
    import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-3, overwrite=True)
    assert metadata_of("ours")[1].bn_epsilon == 1e-3


def test_the_same_import_gives_the_same_bytes() -> None:
    one, other = (import_weights(GOLDEN_WEIGHTS, name=name) for name in ("one", "other"))
    assert read_checkpoint(one).metadata == replace(read_checkpoint(other).metadata, name="one")
    again = file_sha256(one)
    assert file_sha256(import_weights(GOLDEN_WEIGHTS, name="one", overwrite=True)) == again


# In a process of its own, which no fixture reaches.
_PROGRAM = """
import sys
from dataclasses import replace
from drunet_cli.cli.app import main
from drunet_cli.weights.registry import DEFAULT, ENTRIES
ENTRIES[DEFAULT] = replace(ENTRIES[DEFAULT], base_width=1)
sys.exit(main(["weights", "download"]))
"""
_DOWNLOAD = [sys.executable, "-c", _PROGRAM]


def test_ten_processes_at_once_on_an_empty_cache_all_succeed_with_one_download(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT, default=Answer(pause_s=0.02)) as server:
        mirror(server)
        processes = [subprocess.Popen(_DOWNLOAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(10)]
        results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in results] == [0] * 10, [errors for _, errors, _ in results]
    assert {output for output, _, _ in results} == {f"{cached_path(DEFAULT)}\n"}
    assert len(server.requests) == 1
    assert any("Another process is downloading" in errors for _, errors, _ in results)
    _assert_golden(cached_path(DEFAULT))
    assert _files() == ["brats2020.lock", "brats2020.safetensors"]


def test_a_killed_downloader_gives_way_and_its_bytes_are_used(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT, Answer(pause_s=0.2)) as server:
        mirror(server)
        killed = subprocess.Popen(_DOWNLOAD, stderr=subprocess.DEVNULL)
        waiting = None
        try:
            _wait_until(lambda: any(path.stat().st_size > 100_000 for path in cache_folder().glob(".*.part")))
            waiting = subprocess.Popen(_DOWNLOAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert waiting.stderr is not None
            assert "waiting" in waiting.stderr.readline()
            killed.send_signal(signal.SIGKILL)
            killed.wait(timeout=30)
            output, _ = waiting.communicate(timeout=60)
        finally:
            killed.kill()
            killed.wait(timeout=30)
            if waiting is not None:
                waiting.kill()
                waiting.wait(timeout=30)
    assert output == f"{cached_path(DEFAULT)}\n"
    assert server.ranges[0] is None
    assert server.ranges[1] is not None
    assert int(server.ranges[1].removeprefix("bytes=").removesuffix("-")) > 100_000
    _assert_golden(cached_path(DEFAULT))


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_weights_in_a_cache_that_is_read_only_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "cache"))
    import_weights(GOLDEN_WEIGHTS)
    for folder in (tmp_path / "cache" / "weights", tmp_path / "cache"):
        folder.chmod(0o555)
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        # A read-only folder does not stop root, so what is opened for writing is counted instead.
        if (
            event == "open"
            and str(arguments[0]).startswith(str(tmp_path))
            and int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR)
        ):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        assert open_weights(DEFAULT).metadata.name == DEFAULT
    finally:
        for folder in (tmp_path / "cache", tmp_path / "cache" / "weights"):
            folder.chmod(0o755)
    assert opened == []


def test_user_and_password_of_a_mirror_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        monkeypatch.setenv("DRUNET_WEIGHTS_URL", server.url.replace("http://", "http://me:s3cret@"))
        told: list[str] = []
        watcher = Watcher()
        monkeypatch.setattr(watcher, "announce_download", lambda _entry, url, _cache: told.append(url))
        obtain(DEFAULT, watcher=watcher)
    assert told == [server.url]
    assert metadata_of(DEFAULT)[1].origin == server.url
    monkeypatch.setenv("DRUNET_CACHE_DIR", os.environ["DRUNET_CACHE_DIR"] + "2")
    assert "s3cret" not in _refusal()


def test_a_damaged_file_in_the_cache_is_named_with_the_way_to_replace_it() -> None:
    path = import_weights(GOLDEN_WEIGHTS)
    path.write_bytes(path.read_bytes()[:1000])
    for attempt in (lambda: open_weights(DEFAULT), lambda: obtain(DEFAULT), lambda: metadata_of(DEFAULT)):
        with pytest.raises(WeightsError, match=r"delete that file and run: drunet weights download brats2020\n") as caught:
            attempt()
        assert any("import FILE" in line for line in caught.value.details)


def test_a_known_checksum_must_match_in_the_cache_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import_weights(GOLDEN_WEIGHTS)
    monkeypatch.setitem(cast(dict[str, Entry], ENTRIES), DEFAULT, replace(ENTRIES[DEFAULT], source_sha256="0" * 64))
    with pytest.raises(WeightsError, match="holds other weights than brats2020"):
        open_weights(DEFAULT)


def test_offline_allows_a_mirror_that_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    _assert_golden(obtain(DEFAULT))


def test_an_epsilon_that_a_file_records_otherwise_is_refused(tmp_path: Path) -> None:
    shutil.copy(import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-5), tmp_path / "w.safetensors")
    with pytest.raises(MisuseError, match="records 1e-05"):
        import_weights(tmp_path / "w.safetensors", name="other", bn_epsilon=1e-3)
    assert metadata_of(str(tmp_path / "w.safetensors"))[1].bn_epsilon == 1e-5


def test_what_was_left_of_old_downloads_goes_once_the_weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder().mkdir(parents=True)
    old, new = cache_folder() / ".brats2020.h5.elsewhere.part", cache_folder() / ".brats2020.h5.busy.part"
    for left in (old, new):
        left.touch()
    os.utime(old, (0, 0))
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    obtain(DEFAULT)
    assert _files() == [".brats2020.h5.busy.part", "brats2020.lock", "brats2020.safetensors"]


@pytest.mark.parametrize("weights", ["x" * 300 + ".h5", "/dev/null/w.h5"])
def test_a_file_that_cannot_be_opened_is_one_line(weights: str) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        open_weights(weights)
