"""`drunet export`: wiring, streams and exit codes; tests/network/test_export.py looks into the files."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from drunet_cli.network import export as exports
from drunet_cli.network.engine import Precision
from drunet_cli.weights.cache import import_weights
from drunet_cli.weights.checkpoint import Checkpoint, read_metadata, write_checkpoint
from drunet_cli.weights.registry import cached_path
from tests.support import GOLDEN_WEIGHTS

Capture = pytest.CaptureFixture[str]


def export(target: Path, *arguments: str, weights: Path | str = GOLDEN_WEIGHTS) -> int:
    return main(["export", "--weights", str(weights), "-o", str(target), *arguments])


def complaint(capsys: Capture) -> str:
    """The one line on stderr, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_path_is_the_result_and_the_difference_a_note(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "golden.onnx"
    assert export(target) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert captured.err.startswith(f"{target}: largest difference of a logit from PyTorch's")
    assert captured.err.endswith("e-06 (allowed 0.0001)\n")  # 3.8e-06 was measured; another processor rounds in its own way
    assert export(tmp_path / "golden.safetensors", "--quiet") == 0
    assert capsys.readouterr() == (f"{tmp_path / 'golden.safetensors'}\n", "")


def test_json_tells_what_was_written_and_how_it_was_found(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "golden.onnx"
    assert export(target, "--json", "--head", "argmax", "--precision", "float16") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert 0 <= document.pop("difference") <= document["tolerance"]
    assert document == {
        "path": str(target),
        "format": "onnx",
        "precision": "float16",
        "head": "argmax",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "bytes": target.stat().st_size,
        "tolerance": exports.TOLERANCES[Precision.FLOAT16],
        "weights": {"name": "keras_base1", "sha256": file_sha256(GOLDEN_WEIGHTS)},
    }


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.H5", [], "keras"),
        ("a.safetensors", [], "safetensors"),
        ("a.weights", ["--format", "keras"], "keras"),
        ("a", ["--format", "safetensors"], "safetensors"),
    ],
)
def test_suffix_decides_the_format_unless_it_is_named_and_these_need_no_extra(
    name: str, options: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_text("the one before")
    assert export(tmp_path / name, "--json", "--overwrite", *options) == 0
    assert json.loads(capsys.readouterr().out)["format"] == expected
    begin = (tmp_path / name).read_bytes()[:9]
    assert begin.startswith(b"\x89HDF") if expected == "keras" else begin.endswith(b"{")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bn_epsilon": 1e-5}, "these weights need epsilon 1e-05 and run on whole frames"),
        ({"window": "auto"}, "these weights need epsilon 0.001 and run on windows"),
        ({}, ""),
    ],
)
def test_a_keras_file_that_does_not_say_how_it_is_run_is_warned_of(
    change: dict[str, Any], told: str, checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    weights = tmp_path / "tiny.safetensors"
    write_checkpoint(weights, checkpoint.state, replace(checkpoint.metadata, **change), overwrite=False)
    assert export(tmp_path / "tiny.h5", weights=str(weights)) == 0
    errors = capsys.readouterr().err
    assert ("does not say how it is to be run" in errors) == bool(told)
    assert told in errors


@pytest.mark.usefixtures("golden_is_published")
def test_weights_that_are_not_in_the_cache_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    assert export(tmp_path / "published.safetensors", weights="brats2020") == 0
    assert GOLDEN_WEIGHTS.as_uri() in capsys.readouterr().err
    assert read_metadata(tmp_path / "published.safetensors") == read_metadata(cached_path("brats2020"))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("a.pt", [], "TorchScript is not written, as PyTorch gives it up; use --format onnx"),
        ("a.onnx", ["--format", "torchscript"], "TorchScript is not written"),
        ("a.bin", [], "ends in none of .onnx, .h5, .safetensors; give --format"),
        ("a.h5", ["--format", "onnx"], "a.h5: by its name it would be keras, not onnx"),
        ("a.onnx", ["--format", "tflite"], "--format tflite: is none of onnx, keras, safetensors"),
        ("a.onnx", ["--head", "sigmoid"], "Invalid value for '--head': 'sigmoid' is not one of 'logits', 'softmax'"),
        ("a.h5", ["--head", "logits"], "--head logits: is for ONNX; a keras file holds weights alone"),
        ("a.h5", ["--precision", "float16"], "--precision float16: Keras files are float32"),
        ("a.onnx", ["--precision", "auto"], "--precision auto: an export is float32 or float16"),
    ],
)
def test_what_makes_no_sense_is_misuse(name: str, options: list[str], named: str, tmp_path: Path, capsys: Capture) -> None:
    assert export(tmp_path / name, *options) == 2
    assert named in complaint(capsys)


def test_a_missing_extra_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(tmp_path / "a.onnx", weights="no_such_file.h5") == 2
    assert "run: pip install onnx" in complaint(capsys)


def test_outputs_that_cannot_be_are_refused_and_nothing_is_replaced(tmp_path: Path, capsys: Capture) -> None:
    own = tmp_path / "own.h5"
    own.write_bytes(GOLDEN_WEIGHTS.read_bytes())
    (tmp_path / "a.h5").write_text("mine")
    (tmp_path / "a.onnx").mkdir()
    tiny = import_weights(GOLDEN_WEIGHTS, name="tiny")
    for target, options, source, words in (
        (tmp_path / "a.h5", [], GOLDEN_WEIGHTS, "exists already; give --overwrite to replace it"),
        (tmp_path / "a.onnx", ["--overwrite"], GOLDEN_WEIGHTS, "is a folder; name a file"),
        (tmp_path / "." / "own.h5", ["--overwrite"], own, "is the file of these weights; name another output"),
        (tiny, ["--overwrite"], "tiny", "is the file of these weights; name another output"),
    ):
        assert export(target, *options, weights=source) == 6
        assert words in complaint(capsys)
    assert (tmp_path / "a.h5").read_text() == "mine"
    assert own.read_bytes() == GOLDEN_WEIGHTS.read_bytes()
