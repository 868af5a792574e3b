"""`drunet weights`: what goes to which stream, exit codes, and the facts in both forms."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from drunet_cli.weights.cache import import_weights, open_weights
from drunet_cli.weights.checkpoint import write_checkpoint
from drunet_cli.weights.registry import BUNDLED, ENTRIES, cached_path, other_ways
from tests.support import GOLDEN_WEIGHTS, Drunet, image_options

Capture = pytest.CaptureFixture[str]


def weights(*arguments: str) -> int:
    return main(["weights", *arguments])


def objects(capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints with --json."""
    capsys.readouterr()
    assert weights(*arguments, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def test_import_prints_the_path_and_notes_what_was_imported(capsys: Capture) -> None:
    assert weights("import", str(GOLDEN_WEIGHTS), "--name", "tiny", "--epsilon", "1e-5") == 0
    assert capsys.readouterr() == (f"{cached_path('tiny')}\n", "Imported as tiny: base width 1, epsilon 1e-05\n")
    assert weights("import", str(GOLDEN_WEIGHTS), "--name", "tiny", "--overwrite", "--quiet") == 0
    assert capsys.readouterr() == (f"{cached_path('tiny')}\n", "")


@pytest.mark.usefixtures("golden_is_published")
def test_download_announces_size_source_licence_and_folder_once(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    assert weights("path") == 4
    assert "run: drunet weights download brats2020, or without internet: drunet weights import FILE" in capsys.readouterr().err
    assert weights("download") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{cached_path('brats2020')}\n"
    announcement = "\n".join(captured.err.splitlines()[:4])
    for part in ("307 MB", GOLDEN_WEIGHTS.as_uri(), str(cached_path("brats2020").parent), "research"):
        assert part in announcement
    assert captured.err.splitlines()[4:] == ["Verifying and converting 2 MB"]
    for command in ("download", "path"):
        assert weights(command) == 0
        assert capsys.readouterr() == (f"{cached_path('brats2020')}\n", "")


def test_a_failed_download_is_one_line_with_what_to_do_below_and_exit_4(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", "file:///nowhere/weights.h5")
    for options in (
        ["weights", "download", "--quiet"],
        ["segment", *image_options(), "-o", str(tmp_path / "seg.nii"), "--quiet"],
    ):
        assert main(options) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        error, *ways = captured.err.splitlines()
        assert error == "Error: download of weights brats2020 failed: file:///nowhere/weights.h5: No such file or directory"
        assert ways == [f"  {way}" for way in other_ways(ENTRIES["brats2020"])]
    assert not list(tmp_path.iterdir())


def test_where_no_download_is_allowed_none_is_proposed(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert weights("path") == 4
    error = capsys.readouterr().err
    assert "weights download" not in error
    assert "drunet weights import FILE --name brats2020" in error
    assert main(["segment", *image_options(), "-o", str(tmp_path / "seg.nii.gz")]) == 4
    assert "--weights compact" in capsys.readouterr().err  # which is not taken without being asked for
    for command in ("path", "download"):
        assert weights(command, "compact") == 0
        assert capsys.readouterr() == (f"{BUNDLED['compact'].path}\n", "")


def test_the_list_says_where_weights_are_and_which_are_the_default(capsys: Capture) -> None:
    import_weights(GOLDEN_WEIGHTS, name="mine")
    import_weights(GOLDEN_WEIGHTS, name="broken").write_bytes(b"")
    cached_path("compact").write_bytes(b"others, which never stand for bundled ones")
    assert weights("list") == 0
    header, *rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["NAME", "WHERE", "DESCRIPTION"]
    assert [row[:2] for row in rows] == [
        ["brats2020 (default)", "not downloaded"],
        ["compact", "bundled with drunet"],
        ["broken", "in the cache"],
        ["mine", "in the cache"],
    ]
    assert "for trying and testing, not for research results" in rows[1][2]
    assert "not a readable safetensors file" in rows[2][2]
    assert rows[3][2] == "base width 1, from keras_base1.h5"
    found = objects(capsys, "list")
    assert [row["where"] for row in found] == ["not-downloaded", "bundled", "cache", "cache"]
    assert [row["default"] for row in found] == [True, False, False, False]
    assert [bool(row["error"]) for row in found] == [False, False, True, False]
    assert [row["path"] for row in found] == [
        None,
        *map(str, (BUNDLED["compact"].path, cached_path("broken"), cached_path("mine"))),
    ]
    assert "10.7937/jc8x-9874" in found[1]["licence"]


def test_a_piped_list_stays_narrow(drunet: Drunet) -> None:
    """Also where the origin of weights of one's own is long."""
    golden = open_weights(str(GOLDEN_WEIGHTS))
    metadata = replace(golden.metadata, origin="drunet train, " * 20)
    write_checkpoint(cached_path("mine"), golden.state, metadata, overwrite=False)
    lines = drunet("weights", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "brats2020", "compact", "mine"]
    assert max(map(len, lines)) <= 104


@pytest.mark.usefixtures("golden_is_published")
def test_info_tells_what_belongs_to_the_weights(capsys: Capture) -> None:
    weights("import", str(GOLDEN_WEIGHTS), "--quiet")
    (cached,), (source,) = objects(capsys, "info"), objects(capsys, "info", str(GOLDEN_WEIGHTS))
    assert cached["source_sha256"] == source["sha256"] == source["source_sha256"]
    assert (cached["base_width"], cached["bn_epsilon"], cached["dropout"]) == (1, 0.001, None)
    assert "Colman" in cached["citation"]


def test_info_of_weights_that_are_not_there_tells_what_is_known_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    entry = ENTRIES["brats2020"]
    assert weights("info") == 0
    captured = capsys.readouterr()
    words = " ".join(captured.out.split())
    for part in ("not in the cache", "import FILE", "307 MB", "base width 16", entry.page, entry.licence, entry.citation):
        assert part in words
    (document,) = objects(capsys, "info", "brats2020")
    assert (document["where"], document["path"], document["sha256"]) == ("not-downloaded", None, None)
    assert (document["base_width"], document["bn_epsilon"]) == (16, 0.001)


def test_info_describes_bundled_weights_in_the_words_of_the_registry(capsys: Capture) -> None:
    """Once, and without the names of the runs that they come from, which the object for programs keeps."""
    (document,) = objects(capsys, "info", "compact")
    assert (document["name"], document["base_width"]) == ("compact", 4)
    assert document["sha256"] == file_sha256(BUNDLED["compact"].path)
    assert document["description"] == BUNDLED["compact"].description
    assert weights("info", "compact") == 0
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(rows)[:3] == ["name", "description", "where"]
    assert (rows["description"], rows["citation"]) == (BUNDLED["compact"].description, BUNDLED["compact"].citation)
    assert rows["origin"].startswith("Made by drunet train, recipe modern")
    assert rows["origin"].endswith(document["origin"][-len(", step 400 of 400") :])
    for part in ("SHA-256", "learnt from", "ft_", "Baid", BUNDLED["compact"].description[:30]):
        assert part not in rows["origin"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["import", str(GOLDEN_WEIGHTS)], 4, "base width 1, not 16; give them a name of their own by --name NAME"),
        (["import", "absent.h5"], 4, "absent.h5: no such weights file"),
        (["import", str(GOLDEN_WEIGHTS), "--name", "a b"], 2, "use letters"),
        (["import", str(GOLDEN_WEIGHTS), "--epsilon", "0"], 2, "--epsilon 0: must lie between 0 and 1"),
        (["import", str(GOLDEN_WEIGHTS), "--name", "compact"], 2, "weights compact come with drunet and are not replaced"),
        (["import", "x.h5", "--name"], 2, "Option '--name' requires an argument. Try: drunet weights import"),
        (["info", "absent.safetensors"], 4, "no such weights file"),
        (["info", "unknown"], 4, "weights 'unknown' are not known"),
        (["download", "unknown"], 4, "weights 'unknown' are not known"),
    ],
)
def test_mistakes_end_in_one_line_and_their_exit_code(arguments: list[str], code: int, complaint: str, capsys: Capture) -> None:
    assert weights(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
