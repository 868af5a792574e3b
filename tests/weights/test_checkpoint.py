"""drunet's own weights file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file as torch_save_file

from drunet_cli.errors import OutputError, WeightsError
from drunet_cli.io.inputs import file_sha256
from drunet_cli.weights.checkpoint import (
    Metadata,
    Postprocessing,
    encode_checkpoint,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)

STATE = {"head.weight": np.arange(8, dtype=np.float32).reshape(4, 2, 1, 1), "head.bias": np.zeros(4, dtype=np.float32)}
METADATA = Metadata(name="ours", base_width=2, bn_epsilon=1e-5, dropout=0.2, origin="run 1", licence="Apache-2.0")


def test_weights_and_metadata_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_checkpoint(path, STATE, METADATA, overwrite=False)
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == METADATA == read_metadata(path)
    assert checkpoint.sha256 == file_sha256(path)
    assert checkpoint.state.keys() == STATE.keys()
    assert all(np.array_equal(checkpoint.state[key], STATE[key]) for key in STATE)


def test_recommended_postprocessing_comes_back_and_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    recommended = replace(METADATA, postprocessing=Postprocessing(min_volume_ml=(0.25, 0.1, 0)))
    write_checkpoint(tmp_path / "w.safetensors", STATE, recommended, overwrite=False)
    assert read_metadata(tmp_path / "w.safetensors") == recommended
    assert b"postprocessing" not in encode_checkpoint(STATE, METADATA)


def test_equal_weights_give_equal_bytes_and_an_existing_file_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", STATE, METADATA, overwrite=False)
    write_checkpoint(tmp_path / "b", dict(reversed(STATE.items())), METADATA, overwrite=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_checkpoint(tmp_path / "b", STATE, METADATA, overwrite=False)
    assert (tmp_path / "b").read_text() == "mine"


def test_float16_weights_are_read_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(encode_checkpoint({key: array.astype(np.float16) for key, array in STATE.items()}, METADATA))
    assert {array.dtype for array in read_checkpoint(path).state.values()} == {np.dtype(np.float32)}


def _document(**changes: object) -> dict[str, object]:
    document: dict[str, object] = {
        "format": 1,
        "channels": ["flair", "t1ce", "t1", "t2"],
        "name": "x",
        "base_width": 1,
        "bn_epsilon": 1e-3,
        "dropout": None,
        "origin": "",
        "source_sha256": "",
        "licence": "",
        "citation": "",
    }
    return document | changes


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, "lacks drunet's metadata"),
        ({"format": "pt"}, "lacks drunet's metadata"),
        ({"drunet": "{"}, "cannot be understood"),
        ({"drunet": "[1]"}, "cannot be understood"),
        ({"drunet": "[" * 10**5}, "cannot be understood"),
        ({"drunet": "{}"}, "format None; this drunet reads format 1"),
        ({"drunet": json.dumps(_document(format=2))}, "format 2"),
        ({"drunet": json.dumps(_document(channels=["t1", "t1ce", "t2", "flair"]))}, "channels"),
        ({"drunet": json.dumps(_document(bn_epsilon=0))}, "bn_epsilon = 0: must be greater than 0"),
        ({"drunet": json.dumps(_document(base_width="wide"))}, "base_width = 'wide': must be a valid integer"),
        ({"drunet": json.dumps(_document(base_width="1"))}, "base_width = '1': must be a valid integer"),
        ({"drunet": json.dumps(_document(base_width=True))}, "base_width = True: must be a valid integer"),
        ({"drunet": json.dumps(_document(base_width=10**30))}, "base_width = 10000"),
        ({"drunet": json.dumps(_document(bn_epsilon="0.001"))}, "bn_epsilon = '0.001': must be a valid number"),
        ({"drunet": json.dumps(_document(dropout="x"))}, "dropout = 'x'"),
        ({"drunet": json.dumps(_document(name=5))}, "name = 5: must be a valid string"),
        ({"drunet": json.dumps(_document(postprocessing={"min_volume_ml": -1}))}, "min_volume_ml=-1.0: must be 0 or more"),
        (
            {"drunet": json.dumps(_document(postprocessing={"min_volume_ml": "1"}))},
            "min_volume_ml.float = '1': must be a valid number",
        ),
        ({"drunet": json.dumps(_document(postprocessing={"smallest": 1}))}, "cannot be understood"),
    ],
)
def test_a_file_that_does_not_say_how_to_run_it_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, complaint: str
) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(STATE, path, metadata)
    with pytest.raises(WeightsError, match=complaint):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"head.bias": torch.tensor([0, torch.inf, 0, 0])}, r"head\.bias holds values that are not finite"),
        ({"head_norm.running_var": torch.tensor([1.0, -1.0])}, r"head_norm\.running_var holds a negative variance"),
        ({"head.bias": torch.zeros(4, dtype=torch.bfloat16)}, r"head\.bias is BF16; float32 or float16 is needed"),
    ],
)
def test_numbers_that_cannot_be_weights_are_refused_by_their_tensor(
    tmp_path: Path, tensor: dict[str, torch.Tensor], complaint: str
) -> None:
    torch_save_file(tensor, tmp_path / "w.safetensors", {"drunet": json.dumps(_document())})
    with pytest.raises(WeightsError, match=complaint):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("n_bytes", [0, 4, 20, 300, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "w.safetensors"
    write_checkpoint(path, STATE, METADATA, overwrite=False)
    path.write_bytes(path.read_bytes()[:n_bytes])
    reason = "header too small" if 0 <= n_bytes < 8 else "it is cut short"
    with pytest.raises(WeightsError, match=f"not a readable safetensors file: .*{reason}"):
        read_checkpoint(path)


def test_an_error_of_the_system_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"^{tmp_path}: cannot be read: "):
        read_metadata(tmp_path)


def test_facts_that_a_later_version_adds_are_left_aside_and_missing_ones_keep_their_defaults(tmp_path: Path) -> None:
    document = _document(windows=[144, 176])
    del document["dropout"]
    safetensors.numpy.save_file(STATE, tmp_path / "w.safetensors", {"drunet": json.dumps(document)})
    assert read_metadata(tmp_path / "w.safetensors").dropout is None
