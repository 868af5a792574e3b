"""Exported files: what they answer, against Keras itself, and that none appears that is not good."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import safetensors.numpy

from drunet_cli.errors import OutputError, Terminated
from drunet_cli.io.inputs import file_sha256
from drunet_cli.network import export as exports
from drunet_cli.network import onnx_graph
from drunet_cli.network.engine import Format, Head, Precision
from drunet_cli.network.export import Exported, Variant, export
from drunet_cli.weights import keras
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint, State, encode_checkpoint
from tests.support import golden_logits

LOGITS: Final = Variant(format=Format.ONNX, head=Head.LOGITS)
LOGITS_HALF: Final = replace(LOGITS, precision=Precision.FLOAT16)
SOFTMAX: Final = replace(LOGITS, head=Head.SOFTMAX)
ARGMAX: Final = replace(LOGITS, head=Head.ARGMAX)
KERAS: Final = Variant(format=Format.KERAS)
SAFETENSORS: Final = Variant(format=Format.SAFETENSORS)
SAFETENSORS_HALF: Final = replace(SAFETENSORS, precision=Precision.FLOAT16)


def named(variant: Variant) -> str:
    return " ".join((variant.format, variant.precision, variant.head or ""))


def exported(checkpoint: Checkpoint, target: Path, variant: Variant) -> Exported:
    return export(checkpoint, target, variant, overwrite=False)


def run(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"slices": images})
    return np.asarray(output)


def clear_of(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where the two best classes are not so close that rounding may decide."""
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2] > 1e-3)


def test_onnx_heads_give_the_logits_probabilities_and_classes_of_keras(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for variant in (LOGITS, SOFTMAX, ARGMAX):
        exported(checkpoint, tmp_path / f"{variant.head}.onnx", variant)
    images, expected = golden_logits()
    logits, probabilities, classes = (run(tmp_path / f"{head}.onnx", images) for head in Head)
    best = expected.argmax(axis=1)
    # The project's bound for float32 rounding through 104 layers; 2e-6 was seen.
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-5
    softmax = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, softmax, rtol=0, atol=1e-4)  # 1.4e-5 is what export measures
    assert classes.dtype == np.uint8
    assert np.array_equal(classes[clear_of(expected)], best[clear_of(expected)])
    assert run(tmp_path / "logits.onnx", np.zeros((3, 4, 48, 112), dtype=np.float32)).shape == (3, 4, 48, 112)


def test_float16_lies_between_two_ends_of_float32_and_differs_by_its_few_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check = exported(checkpoint, tmp_path / "half.onnx", LOGITS_HALF).check
    assert 1e-4 < check.difference < check.tolerance  # 4e-3 was measured; 3.8e-6 in float32
    model = onnx.load(tmp_path / "half.onnx")
    ends = {end.type.tensor_type.elem_type for end in (*model.graph.input, *model.graph.output)}
    assert ends == {onnx.TensorProto.FLOAT}
    weights = {tensor.data_type for tensor in model.graph.initializer}
    assert weights == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}  # whole numbers: the padding


@pytest.mark.slow
def test_keras_and_safetensors_files_are_read_back_as_the_same_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    metadata = replace(checkpoint.metadata, bn_epsilon=1e-5, window="auto", dropout=0.2, licence="mine")
    trained = replace(checkpoint, metadata=metadata)
    exported(trained, tmp_path / "again.h5", KERAS)
    found = exported(trained, tmp_path / "again.safetensors", SAFETENSORS)
    for name in ("again.h5", "again.safetensors"):
        again = open_weights(str(tmp_path / name))
        assert all(np.array_equal(again.state[key], array) for key, array in checkpoint.state.items())
    assert again.metadata == metadata
    assert found.sha256 == file_sha256(tmp_path / "again.safetensors")
    assert found.n_bytes == (tmp_path / "again.safetensors").stat().st_size


def test_float16_safetensors_hold_the_rounded_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    exported(checkpoint, tmp_path / "half.safetensors", SAFETENSORS_HALF)
    tensors = safetensors.numpy.load_file(tmp_path / "half.safetensors")
    assert all(np.array_equal(tensors[name], array.astype(np.float16)) for name, array in checkpoint.state.items())
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}


def test_a_network_that_answers_0_everywhere_is_exported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    silent = {name: np.zeros_like(array) if name.startswith("head.") else array for name, array in checkpoint.state.items()}
    assert exported(replace(checkpoint, state=silent), tmp_path / "silent.onnx", LOGITS).check.difference == 0


def spoilt(state: Mapping[str, npt.NDArray[Any]]) -> State:
    """One number of one tensor is another."""
    tensor = state["head.bias"].copy()
    tensor[0] += 1
    return {**state, "head.bias": tensor}


@pytest.fixture
def _careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written, one of its tensors is wrong."""
    build, write = onnx_graph.build_graph, keras.write_keras_h5
    monkeypatch.setattr(
        onnx_graph, "build_graph", lambda given, **options: build(replace(given, state=spoilt(given.state)), **options)
    )
    monkeypatch.setattr(keras, "write_keras_h5", lambda stream, given: write(stream, replace(given, state=spoilt(given.state))))
    monkeypatch.setattr(exports, "encode_checkpoint", lambda state, metadata: encode_checkpoint(spoilt(state), metadata))


@pytest.mark.usefixtures("_careless")
@pytest.mark.parametrize("variant", [LOGITS, LOGITS_HALF, ARGMAX, KERAS, SAFETENSORS], ids=named)
def test_a_file_that_fails_its_check_does_not_appear(variant: Variant, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("the one before")
    with pytest.raises(OutputError, match=r"target: not written: it failed its check: largest .* allowed"):
        export(checkpoint, tmp_path / "target", variant, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_text() == "the one before"


@pytest.mark.parametrize("variant", [LOGITS, KERAS, SAFETENSORS], ids=named)
def test_a_file_that_is_cut_short_does_not_appear(
    variant: Variant, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_of(content: bytes | memoryview) -> bytes:
        return bytes(content[: len(content) // 2])

    encode, check = exports._ENCODE_AND_CHECK[variant.format]
    kinds = {variant.format: (lambda *given: half_of(encode(*given)), check)}
    monkeypatch.setattr(exports, "_ENCODE_AND_CHECK", kinds)
    with pytest.raises(OutputError, match="target: not written: "):
        exported(checkpoint, tmp_path / "target", variant)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_while_it_compares_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        raise Terminated

    monkeypatch.setattr(exports, "comparison_images", stop)
    with pytest.raises(Terminated):
        exported(checkpoint, tmp_path / "golden.onnx", LOGITS)
    assert not list(tmp_path.iterdir())


def louder(state: State, factor: float) -> State:
    """Weights that give the same classes, but logits so many times as large."""
    return {name: array * np.float32(factor) if name.startswith("head.") else array for name, array in state.items()}


@pytest.mark.parametrize(
    ("variant", "factor"),
    [
        (LOGITS_HALF, 20_000),  # weights up to 1e4 or so fit, logits of 2e5 do not, which most CPUs would not notice
        (replace(ARGMAX, precision=Precision.FLOAT16), 20_000),
        (LOGITS_HALF, 1e9),
        (SAFETENSORS_HALF, 1e9),
    ],
)
def test_weights_and_maps_beyond_float16_are_refused(
    variant: Variant, factor: float, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    loud = replace(checkpoint, state=louder(checkpoint.state, factor))
    with pytest.raises(OutputError, match="float16 overflows in this network; use --precision float32"):
        exported(loud, tmp_path / "loud", variant)


def test_weights_too_large_for_one_onnx_file_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_ONNX_LIMIT", 1_000_000)  # the golden weights have 1.2 MB
    with pytest.raises(OutputError, match=r"an ONNX file holds 2 GB, these weights are .* GB; export safetensors"):
        exported(checkpoint, tmp_path / "golden.onnx", LOGITS)


def test_the_graph_is_valid_onnx_with_named_ends_free_sizes_and_what_its_user_must_know(checkpoint: Checkpoint) -> None:
    model = onnx_graph.embed_weights(onnx_graph.build_graph(checkpoint, head=Head.SOFTMAX))
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"slices": ["batch", 4, "x", "y"], "probabilities": ["batch", 4, "x", "y"]}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["channels"]) == ["flair", "t1ce", "t1", "t2"]
    assert json.loads(facts["classes"]) == ["BACKGROUND", "NCR", "ED", "ET"]
    assert (facts["bn_epsilon"], facts["base_width"], facts["sha256"]) == ("0.001", "1", checkpoint.sha256)
    assert "truncated to uint8" in facts["normalisation"]
