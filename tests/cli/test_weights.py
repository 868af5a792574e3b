"""`drunet weights`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from drunet_cli.cli.app import main
from drunet_cli.io.volumes import file_sha256
from drunet_cli.weights.cache import import_weights, open_weights
from drunet_cli.weights.checkpoint import write_checkpoint
from drunet_cli.weights.registry import BUNDLED, ENTRIES, cached_path, other_ways
from tests.support import GOLDEN_WEIGHTS, Drunet, image_options


def _json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_import_makes_weights_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "import", str(GOLDEN_WEIGHTS), "--name", "tiny", "--epsilon", "1e-5"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{cached_path('tiny')}\n"
    assert captured.err == "Imported as tiny: base width 1, epsilon 1e-05\n"
    assert main(["weights", "list", "--json"]) == 0
    rows = _json_lines(capsys.readouterr().out)
    assert [(row["name"], row["where"]) for row in rows] == [
        ("brats2020", "not-downloaded"),
        ("compact", "bundled"),
        ("tiny", "cache"),
    ]


def test_other_weights_are_not_imported_as_the_default_and_the_way_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "import", str(GOLDEN_WEIGHTS)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"Error: {GOLDEN_WEIGHTS}: holds other weights than brats2020, the published DR-Unet104: base width 1, not 16; "
        "give them a name of their own by --name NAME\n"
    )
    assert not cached_path("brats2020").exists()


@pytest.mark.usefixtures("golden_is_published")
def test_info_tells_what_belongs_to_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    main(["weights", "import", str(GOLDEN_WEIGHTS), "--quiet"])
    capsys.readouterr()
    assert main(["weights", "info", "--json"]) == 0
    cached = json.loads(capsys.readouterr().out)
    assert main(["weights", "info", str(GOLDEN_WEIGHTS), "--json"]) == 0
    source = json.loads(capsys.readouterr().out)
    assert cached["source_sha256"] == source["sha256"] == source["source_sha256"]
    assert (cached["base_width"], cached["bn_epsilon"], cached["dropout"]) == (1, 0.001, None)
    assert "Colman" in cached["citation"]


@pytest.mark.usefixtures("golden_is_published")
def test_path_prints_the_cached_file_or_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "path"]) == 4
    error = capsys.readouterr().err
    assert "run: drunet weights download brats2020, or without internet: drunet weights import FILE" in error
    assert error.count("\n") == 1
    main(["weights", "import", str(GOLDEN_WEIGHTS)])
    capsys.readouterr()
    assert main(["weights", "path"]) == 0
    assert Path(capsys.readouterr().out.rstrip("\n")) == cached_path("brats2020")


def test_path_does_not_ask_for_a_download_where_none_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert main(["weights", "path"]) == 4
    error = capsys.readouterr().err
    assert "weights download" not in error
    assert "drunet weights import FILE --name brats2020" in error


def test_info_of_weights_that_are_not_there_tells_what_is_known_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    entry = ENTRIES["brats2020"]
    assert main(["weights", "info"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    words = " ".join(captured.out.split())
    known = (
        "not in the cache",
        "drunet weights import FILE",
        "307 MB",
        "base width 16",
        entry.page,
        entry.licence,
        entry.citation,
    )
    for part in known:
        assert part in words
    assert main(["weights", "info", "brats2020", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["where"], document["path"], document["sha256"]) == ("not-downloaded", None, None)
    assert (document["base_width"], document["bn_epsilon"]) == (16, 0.001)
    assert main(["weights", "info", "unknown"]) == 4


@pytest.mark.usefixtures("golden_is_published")
def test_download_announces_size_source_licence_and_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    assert main(["weights", "download"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{cached_path('brats2020')}\n"
    announcement = "\n".join(captured.err.splitlines()[:4])
    for part in ("307 MB", GOLDEN_WEIGHTS.as_uri(), str(cached_path("brats2020").parent), "research"):
        assert part in announcement
    assert captured.err.splitlines()[4:] == ["Verifying and converting 2 MB"]
    assert main(["weights", "download"]) == 0
    assert capsys.readouterr().err == ""


def test_a_failed_download_is_one_line_with_what_to_do_below_and_exit_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", "file:///nowhere/weights.h5")
    assert main(["weights", "download", "--quiet"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    error, *ways = captured.err.splitlines()
    assert error == "Error: download of weights brats2020 failed: file:///nowhere/weights.h5: No such file or directory"
    assert ways == [f"  {way}" for way in other_ways(ENTRIES["brats2020"])]


def test_failed_fetch_is_told_by_segment_with_the_weights_that_need_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And they are not taken without being asked for."""
    options = ["segment", *image_options(), "-o", str(tmp_path / "seg.nii.gz")]
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", "file:///nowhere/weights.h5")
    assert main(options) == 4
    assert "--weights compact" in capsys.readouterr().err
    monkeypatch.delenv("DRUNET_WEIGHTS_URL")
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert main(options) == 4
    assert "--weights compact" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bundled_weights_are_listed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever lies in the cache under their name."""
    cached_path("compact").parent.mkdir(parents=True)
    cached_path("compact").write_bytes(b"others")
    assert main(["weights", "list"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compact")]
    assert len(rows) == 1
    for part in ("bundled with drunet", "for trying and testing, not for research results"):
        assert part in rows[0]
    assert main(["weights", "list", "--json"]) == 0
    (row,) = [row for row in _json_lines(capsys.readouterr().out) if row["name"] == "compact"]
    assert (row["where"], row["default"], row["url"]) == ("bundled", False, None)
    assert row["path"] == str(BUNDLED["compact"].path)
    assert "10.7937/jc8x-9874" in str(row["licence"])


def test_the_list_says_where_weights_are_and_which_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    import_weights(GOLDEN_WEIGHTS, name="mine")
    import_weights(GOLDEN_WEIGHTS, name="broken").write_bytes(b"")
    capsys.readouterr()
    assert main(["weights", "list"]) == 0
    header, *rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["NAME", "WHERE", "DESCRIPTION"]
    assert [row[:2] for row in rows] == [
        ["brats2020 (default)", "not downloaded"],
        ["compact", "bundled with drunet"],
        ["broken", "in the cache"],
        ["mine", "in the cache"],
    ]
    assert "not a readable safetensors file" in rows[2][2]
    assert rows[3][2] == "base width 1, from keras_base1.h5"
    assert main(["weights", "list", "--json"]) == 0
    found = _json_lines(capsys.readouterr().out)
    assert [row["name"] for row in found if row["default"]] == ["brats2020"]
    assert [row["name"] for row in found if row["error"]] == ["broken"]
    assert [row["path"] is None for row in found] == [True, False, False, False]


def test_a_piped_list_stays_narrow(drunet: Drunet) -> None:
    """Also where the origin of weights of one's own is long."""
    golden = open_weights(str(GOLDEN_WEIGHTS))
    metadata = replace(golden.metadata, origin="drunet train, " * 20)
    write_checkpoint(cached_path("mine"), golden.state, metadata, overwrite=False)
    lines = drunet("weights", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "brats2020", "compact", "mine"]
    assert max(map(len, lines)) <= 104


@pytest.mark.parametrize("command", ["path", "download"])
def test_path_and_download_of_bundled_weights_print_the_file_in_the_package(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert main(["weights", command, "compact"]) == 0
    assert capsys.readouterr() == (f"{BUNDLED['compact'].path}\n", "")


def test_info_describes_bundled_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "info", "compact", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["base_width"]) == ("compact", 4)
    assert document["sha256"] == file_sha256(BUNDLED["compact"].path)
    assert document["description"] == BUNDLED["compact"].description


def test_info_describes_bundled_weights_in_the_words_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, and without the names of the runs that they come from, which the object for programs keeps."""
    assert main(["weights", "info", "compact", "--json"]) == 0
    recorded = json.loads(capsys.readouterr().out)["origin"]
    assert main(["weights", "info", "compact"]) == 0
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(rows)[:3] == ["name", "description", "where"]
    assert rows["description"] == BUNDLED["compact"].description
    assert rows["citation"] == BUNDLED["compact"].citation
    assert rows["origin"].startswith("Made by drunet train, recipe modern")
    assert rows["origin"].endswith(recorded[-len(", step 600 of 600") :])
    for part in ("SHA-256", "learnt from", "ft_", "Baid", BUNDLED["compact"].description[:30]):
        assert part not in rows["origin"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["import", "absent.h5"], 4, "absent.h5: no such weights file"),
        (["import", str(GOLDEN_WEIGHTS.parent / "slices.npz")], 4, "neither a Keras HDF5 nor a safetensors file"),
        (["import", str(GOLDEN_WEIGHTS), "--name", "a b"], 2, "use letters"),
        (["import", str(GOLDEN_WEIGHTS), "--epsilon", "0"], 2, "--epsilon 0: must lie between 0 and 1"),
        (["import", str(GOLDEN_WEIGHTS), "--name", "compact"], 2, "weights compact come with drunet and are not replaced"),
        (["import", str(GOLDEN_WEIGHTS), "--name", "compact", "--overwrite"], 2, "give yours another --name"),
        (["info", "absent.safetensors"], 4, "no such weights file"),
        (["info", "./"], 4, ": is a folder; give the weights file in it"),
        (["import", "x.h5", "--name"], 2, "Option '--name' requires an argument. Try: drunet weights import"),
        (["download", "unknown"], 4, "weights 'unknown' are not known"),
    ],
)
def test_mistakes_end_in_one_line_and_their_exit_code(
    arguments: list[str], code: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", *arguments]) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
