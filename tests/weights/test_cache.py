"""Weights by name or file: fetched once, verified, kept, and never half there."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import h5py
import numpy as np
import pytest

from drunet_cli.errors import MisuseError, OutputError, WeightsError
from drunet_cli.io.inputs import file_sha256
from drunet_cli.weights import download, registry
from drunet_cli.weights.cache import import_weights, metadata_of, obtain, open_weights
from drunet_cli.weights.checkpoint import read_checkpoint, write_checkpoint
from drunet_cli.weights.registry import BUNDLED, COMPACT, DEFAULT, ENTRIES, Entry, cache_folder, cached_path, check_available
from tests.forks import Forks, Run
from tests.support import GOLDEN_WEIGHTS, wait_until
from tests.weights.file_server import Answer, FileServer, serving

pytestmark = pytest.mark.usefixtures("golden_is_published")

CONTENT: Final = GOLDEN_WEIGHTS.read_bytes()
GUIDE: Final = Path(__file__).parents[2] / "drunet_cli" / "guide" / "weights.md"
HTML: Final = {"Content-Type": "text/html"}


@pytest.fixture(autouse=True)
def _no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda _seconds: None))


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Callable[[FileServer], None]:
    return lambda server: monkeypatch.setenv("DRUNET_WEIGHTS_URL", server.url)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change what the registry knows of the published weights."""

    def change(**facts: Any) -> None:
        monkeypatch.setitem(cast(dict[str, Entry], ENTRIES), DEFAULT, replace(ENTRIES[DEFAULT], **facts))

    return change


def kept_files() -> list[str]:
    return sorted(path.name for path in cache_folder().glob("*"))


def refusal() -> str:
    with pytest.raises(WeightsError) as caught:
        obtain(DEFAULT)
    assert "\n" not in str(caught.value)
    return "\n".join([str(caught.value), *caught.value.details])


def assert_golden(path: Path) -> None:
    ours, keras = read_checkpoint(path), open_weights(str(GOLDEN_WEIGHTS))
    assert all(np.array_equal(ours.state[key], keras.state[key]) for key in keras.state)
    assert ours.metadata.source_sha256 == file_sha256(GOLDEN_WEIGHTS)


# Downloads


def test_the_first_use_downloads_and_later_ones_need_no_network(
    mirror: Callable[[FileServer], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(CONTENT, Answer(status=503)) as server:
        mirror(server)
        first = open_weights(DEFAULT)
    assert len(server.requests) == 2
    assert open_weights(DEFAULT).sha256 == first.sha256  # the server is gone
    assert_golden(cached_path(DEFAULT))
    metadata = first.metadata
    assert (metadata.name, metadata.origin, metadata.bn_epsilon, metadata.dropout) == (DEFAULT, server.url, 1e-3, None)
    assert kept_files() == ["brats2020.safetensors"]
    announced, retried, verifying = [record.getMessage() for record in caplog.records if record.name == "drunet_cli"]
    for part in ("brats2020", "307 MB", server.url, str(cache_folder()), "licence: for your own research"):
        assert part in announced
    assert retried == "Download: the server answered 503 Service Unavailable; trying again in 1 s"
    assert verifying == "Verifying and converting 2 MB"


def test_a_mirror_may_be_a_file_of_either_kind_also_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    assert_golden(obtain(DEFAULT))
    shutil.copy(cached_path(DEFAULT), tmp_path / "mirrored")
    cached_path(DEFAULT).unlink()
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", (tmp_path / "mirrored").as_uri())
    assert_golden(obtain(DEFAULT))


def test_the_part_of_a_failed_run_is_used_by_the_next(mirror: Callable[[FileServer], None]) -> None:
    with serving(CONTENT, Answer(cut_after=500_000), Answer(status=404)) as server:
        mirror(server)
        assert "404" in refusal()
        assert not cached_path(DEFAULT).exists()
        assert_golden(obtain(DEFAULT))
    assert server.ranges == [None, "bytes=500000-", "bytes=500000-"]
    assert not list(cache_folder().glob(".*"))


def test_the_part_of_another_file_is_thrown_away_and_fetched_anew(mirror: Callable[[FileServer], None]) -> None:
    with serving(b"\0" * len(CONTENT), Answer(cut_after=500_000), default=Answer(status=404)) as server:
        mirror(server)
        refusal()
    with serving(CONTENT) as server:
        mirror(server)
        assert_golden(obtain(DEFAULT))
    assert server.ranges == [None]
    assert not list(cache_folder().glob(".*"))


def with_nan(tmp_path: Path) -> bytes:
    shutil.copy(GOLDEN_WEIGHTS, tmp_path / "nan.h5")
    with h5py.File(tmp_path / "nan.h5", "r+") as file:
        file["output_layer/output_layer/bias:0"][1] = np.nan
    return (tmp_path / "nan.h5").read_bytes()


@pytest.mark.parametrize(
    ("content", "answer", "reason"),
    [
        (b"garbage" * 1000, Answer(), "neither a Keras HDF5 nor a safetensors file"),
        (CONTENT[:100_000], Answer(), "not a readable Keras HDF5"),
        (with_nan, Answer(), "not finite"),
        (CONTENT, Answer(status=200, body=b"<html><title>Sign in</title></html>", headers=HTML), "web page"),
        (CONTENT, Answer(headers={"Content-Length": str(len(CONTENT) + 5)}, ranges=False), "the connection was cut"),
        (CONTENT, Answer(status=500), "500"),
    ],
)
def test_every_failure_names_the_url_the_cache_and_the_ways_without_it_and_takes_nothing_in(
    mirror: Callable[[FileServer], None], tmp_path: Path, content: Any, answer: Answer, reason: str
) -> None:
    with serving(content(tmp_path) if callable(content) else content, default=answer) as server:
        mirror(server)
        message = refusal()
    assert reason in message.splitlines()[0]
    assert message.count(server.url) == 1
    for part in (str(cache_folder()), "drunet weights import FILE --name brats2020", "DRUNET_WEIGHTS_URL", "--weights compact"):
        assert part in message
    # What was cut is gone on from another time.
    assert {name.rpartition(".")[2] for name in kept_files()} == ({"part", "origin"} if "cut" in reason else set())


def test_a_failure_at_the_authors_url_is_told_in_80_columns_and_names_the_page_of_the_guide_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    message, *ways = refusal().splitlines()
    assert message == "download of weights brats2020 failed: could not connect to the proxy: Connection refused (2 attempts)"
    (page,) = [line.strip() for line in ways if "https://drive" in line]
    assert f"<{page}>" in GUIDE.read_text()
    assert max(len(line) for line in ways if str(cache_folder()) not in line) <= 78  # cli/console.py indents them by two


@pytest.mark.parametrize(("switch", "off"), [("1", False), ("TRUE", False), ("0", True), ("No", True), ("", True)])
def test_offline_is_an_error_before_any_request_unless_switched_off(
    switch: str, off: bool, mirror: Callable[[FileServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", switch)
    if off:
        check_available(DEFAULT)
        return
    with serving(CONTENT) as server:
        mirror(server)
        message = refusal()
    assert "DRUNET_OFFLINE forbids downloading" in message
    assert "drunet weights import FILE" in message
    assert server.requests == []


def test_a_mirror_that_cannot_be_one_is_an_error_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", "gopher://host/w.h5")
    with pytest.raises(WeightsError, match=r"^gopher://host/w.h5: not a URL of a kind that can be fetched"):
        check_available(DEFAULT)


def test_user_and_password_of_a_mirror_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with serving(CONTENT) as server:
        monkeypatch.setenv("DRUNET_WEIGHTS_URL", server.url.replace("http://", "http://me:s3cret@"))
        obtain(DEFAULT, on_note=notes.append)
    assert f"from {server.url}\n" in notes[0]
    assert metadata_of(DEFAULT)[1].origin == server.url
    cached_path(DEFAULT).unlink()
    assert "s3cret" not in "".join([*notes, refusal()])


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    assert f"the cache {cache_folder()} cannot be written: Not a directory; set DRUNET_CACHE_DIR to another" in refusal()
    with pytest.raises(OutputError, match="is not a folder; set DRUNET_CACHE_DIR to another cache folder"):
        import_weights(GOLDEN_WEIGHTS, name="mine")


def test_parts_that_other_hosts_have_left_go_once_the_weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder().mkdir(parents=True)
    old, new = cache_folder() / ".brats2020.h5.elsewhere.part", cache_folder() / ".brats2020.h5.busy.part"
    for left in (old, new):
        left.touch()
    os.utime(old, (0, 0))
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    obtain(DEFAULT)
    assert [path.name for path in cache_folder().glob(".*.part")] == [new.name]


# Several processes

# In a process of its own, which no fixture reaches.
GOLDEN_IS_PUBLISHED: Final = """
from dataclasses import replace
from drunet_cli.weights.registry import DEFAULT, ENTRIES
ENTRIES[DEFAULT] = replace(ENTRIES[DEFAULT], base_width=1)
"""


def start(forks: Forks, folder: Path) -> AbstractContextManager[Run]:
    return forks.started("weights", "download", folder=folder, before=GOLDEN_IS_PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8])
def test_processes_at_once_on_an_empty_cache_make_one_download(
    n: int, mirror: Callable[[FileServer], None], forks: Forks, tmp_path: Path
) -> None:
    forks.warm(n)
    with serving(CONTENT, default=Answer(pause_s=0.02 * n)) as server, ExitStack() as stack:
        mirror(server)
        runs = [stack.enter_context(start(forks, tmp_path)) for _ in range(n)]
        results = [run.wait() for run in runs]
    assert [(done.returncode, done.stdout) for done in results] == [(0, f"{cached_path(DEFAULT)}\n")] * n, results
    assert len(server.requests) == 1
    assert n == 2 or any("which is downloading them" in done.stderr for done in results)
    assert_golden(cached_path(DEFAULT))
    assert not list(cache_folder().glob(".*"))


def test_a_killed_downloader_gives_way_to_the_one_that_waits_and_its_bytes_are_used(
    mirror: Callable[[FileServer], None], forks: Forks, tmp_path: Path
) -> None:
    with serving(CONTENT, Answer(pause_s=0.2)) as server:
        mirror(server)
        with start(forks, tmp_path) as killed:
            wait_until(lambda: any(path.stat().st_size > 100_000 for path in cache_folder().glob(".*.part")))
            with start(forks, tmp_path) as waiting:
                wait_until(lambda: "waiting" in waiting.written("stderr"))
                killed.send_signal(signal.SIGKILL)
                done = waiting.wait()
    assert done.stdout == f"{cached_path(DEFAULT)}\n"
    assert server.ranges[0] is None
    assert int(str(server.ranges[1]).removeprefix("bytes=").removesuffix("-")) > 100_000
    assert_golden(cached_path(DEFAULT))


# Files in the cache


def test_weights_in_a_cache_that_is_read_only_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "cache"))
    import_weights(GOLDEN_WEIGHTS)
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        # A read-only folder does not stop root, so what is opened for writing is counted.
        mine = event == "open" and str(arguments[0]).startswith(str(tmp_path))
        if mine and int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    assert open_weights(DEFAULT).metadata.name == DEFAULT
    assert opened == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path, _: path.write_bytes(path.read_bytes()[:1000]), ""),
        (lambda _, known: known(base_width=16), "holds other weights than brats2020, .*: base width 1, not 16; "),
        (lambda _, known: known(source_sha256="0" * 64), f"SHA-256 of the source [0-9a-f]+, not {'0' * 64}; "),
    ],
)
def test_a_wrong_file_in_the_cache_is_named_with_the_way_to_replace_it(
    damage: Callable[..., object], reason: str, known: Callable[..., None]
) -> None:
    path = import_weights(GOLDEN_WEIGHTS)
    damage(path, known)
    for attempt in (lambda: open_weights(DEFAULT), lambda: obtain(DEFAULT), lambda: metadata_of(DEFAULT)):
        with pytest.raises(
            WeightsError, match=rf"{path}: .*{reason}delete that file and run: drunet weights download brats"
        ) as caught:
            attempt()
        assert any("import FILE" in line for line in caught.value.details)


def test_imported_weights_are_found_by_their_name_and_kept_unless_told_otherwise() -> None:
    path = import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-5)
    assert open_weights("ours").metadata.bn_epsilon == 1e-5
    assert metadata_of("ours")[0] == path == cached_path("ours")
    assert registry.cached_names() == ["ours"]
    with pytest.raises(OutputError, match="--overwrite"):
        import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-3)
    assert metadata_of("ours")[1].bn_epsilon == 1e-5
    import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-3, overwrite=True)
    assert metadata_of("ours")[1].bn_epsilon == 1e-3
    again = file_sha256(path)
    assert file_sha256(import_weights(GOLDEN_WEIGHTS, name="ours", overwrite=True)) == again  # the same bytes


def trained(tmp_path: Path, **changes: Any) -> Path:
    """The golden weights as drunet would have trained them."""
    golden = open_weights(str(GOLDEN_WEIGHTS))
    facts = {"name": "run", "origin": "drunet train, recipe paper", "source_sha256": "", **changes}
    write_checkpoint(tmp_path / "best.safetensors", golden.state, replace(golden.metadata, **facts), overwrite=False)
    return tmp_path / "best.safetensors"


@pytest.mark.parametrize(
    ("facts", "changes", "reason"),
    [
        ({"base_width": 16}, None, "base width 1, not 16"),
        ({"source_sha256": "0" * 64}, None, f"not {'0' * 64}"),
        ({}, {}, "their origin is drunet train, recipe paper"),
        ({}, {"source_sha256": "5" * 64, "dropout": 0.2}, "their origin is drunet train, recipe paper"),
    ],
)
def test_other_weights_are_not_taken_for_the_published_ones(
    tmp_path: Path,
    known: Callable[..., None],
    mirror: Callable[[FileServer], None],
    facts: dict[str, Any],
    changes: dict[str, Any] | None,
    reason: str,
) -> None:
    path = GOLDEN_WEIGHTS if changes is None else trained(tmp_path, **changes)
    known(**facts)
    with pytest.raises(WeightsError, match=f"holds other weights than brats2020, .*{reason}; .* by --name NAME$"):
        import_weights(path)
    with serving(path.read_bytes()) as server:
        mirror(server)
        assert refusal().startswith(f"download of weights brats2020 failed: {server.url}: holds other weights than brats2020")
    assert kept_files() == []
    assert import_weights(path, name="mine").is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html><head><title>Google Drive", "is a web page, not the file itself; open its address"),
        (b"", "is empty; copy or download it again"),
        (CONTENT[:300_000], "it is cut short; copy or download it again"),
        (b"PK\x03\x04 and more", "is neither a Keras HDF5 nor a safetensors file"),
    ],
)
def test_a_file_that_is_no_weights_file_is_refused_by_its_kind(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.h5: .*{reason}"):
        import_weights(tmp_path / "w.h5", name="mine")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("their", "weights 'their' are not known; known: brats2020, compact, or give a .h5 or .safetensors file"),
        *((name, "use letters") for name in ("", "a b", ".hidden", "a\nb")),
        ("x" * 300 + ".h5", "cannot be read"),
        ("/dev/null/w.h5", "cannot be read"),
        ("absent.h5", "no such weights file"),
        ("pipe.h5", "is a pipe, which cannot be read twice"),
        ("./", r"is a folder; give the weights file in it, such as best\.safetensors"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(
    weights: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.h5")
    with pytest.raises(WeightsError, match=reason) as caught:
        open_weights(weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["my/name", "../x", "a b", "mine.h5", ""])
def test_a_name_that_cannot_be_imported_is_misuse(name: str) -> None:
    with pytest.raises(MisuseError, match=r"--name: weights name .*: use letters"):
        import_weights(GOLDEN_WEIGHTS, name=name)


def test_an_epsilon_that_a_file_records_otherwise_is_refused(tmp_path: Path) -> None:
    shutil.copy(import_weights(GOLDEN_WEIGHTS, name="ours", bn_epsilon=1e-5), tmp_path / "w.safetensors")
    with pytest.raises(MisuseError, match="records 1e-05"):
        import_weights(tmp_path / "w.safetensors", name="other", bn_epsilon=1e-3)
    assert metadata_of(str(tmp_path / "w.safetensors"))[1].bn_epsilon == 1e-5


def test_a_link_to_weights_that_are_gone_and_a_folder_are_no_weights() -> None:
    link, folder = cached_path("purged"), cached_path("folder")
    folder.mkdir(parents=True)
    link.symlink_to("elsewhere")
    assert registry.cached_names() == []
    with pytest.raises(WeightsError, match="weights 'purged' are not known; known: brats2020, compact, or"):
        open_weights("purged")


# Weights that come with drunet


def test_a_file_in_the_cache_never_stands_for_bundled_weights() -> None:
    cached = Path(shutil.move(import_weights(GOLDEN_WEIGHTS, name="other"), cached_path(COMPACT)))
    expected = file_sha256(BUNDLED[COMPACT].path)
    assert file_sha256(cached) != expected
    assert open_weights(COMPACT).sha256 == expected
    assert obtain(COMPACT) == metadata_of(COMPACT)[0] == BUNDLED[COMPACT].path
    assert registry.cached_names() == []
    for overwrite in (False, True):
        with pytest.raises(MisuseError, match="weights compact come with drunet and are not replaced"):
            import_weights(GOLDEN_WEIGHTS, name=COMPACT, overwrite=overwrite)


@pytest.mark.parametrize("content", [None, b"", b"noise" * 100])
def test_a_damaged_installation_is_named(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PACKAGED", tmp_path)
    if content is not None:
        BUNDLED[COMPACT].path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"compact\.safetensors: .* install drunet-cli again"):
        open_weights(COMPACT)


def test_a_network_that_somebody_has_changed_is_no_damaged_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = open_weights(COMPACT)
    monkeypatch.setattr(registry, "_PACKAGED", tmp_path)
    fewer = {name: array for name, array in compact.state.items() if name != "head.bias"}
    write_checkpoint(BUNDLED[COMPACT].path, fewer, compact.metadata, overwrite=False)
    with pytest.raises(WeightsError, match=r"head\.bias is missing; weights/structure\.py describes another network"):
        open_weights(COMPACT)
