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
from drunet_cli.io.volumes import file_sha256
from drunet_cli.network import comparison, onnx_engine
from drunet_cli.network import export as exports
from drunet_cli.network.engine import Precision
from drunet_cli.network.export import Exported, Format, Variant, export
from drunet_cli.weights import checkpoint as checkpoints
from drunet_cli.weights import keras
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint, State, read_checkpoint
from tests.support import GOLDEN, GOLDEN_WEIGHTS

LOGITS: Final = Variant(format=Format.ONNX, head="logits")
LOGITS_HALF: Final = replace(LOGITS, precision=Precision.FLOAT16)
SOFTMAX: Final = replace(LOGITS, head="softmax")
ARGMAX: Final = replace(LOGITS, head="argmax")
KERAS: Final = Variant(format=Format.KERAS)
SAFETENSORS: Final = Variant(format=Format.SAFETENSORS)
SAFETENSORS_HALF: Final = replace(SAFETENSORS, precision=Precision.FLOAT16)


def named(variant: Variant) -> str:
    return " ".join((variant.format, variant.precision, variant.head or ""))


@pytest.fixture
def golden() -> Checkpoint:
    return open_weights(str(GOLDEN_WEIGHTS))


def exported(checkpoint: Checkpoint, target: Path, variant: Variant) -> Exported:
    return export(checkpoint, target, variant, overwrite=False)


def answer(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"slices": images})
    return np.asarray(output)


def golden_images() -> npt.NDArray[np.float32]:
    """[1, 4, X, Y]: the slice whose logits Keras has told."""
    index = int(np.load(GOLDEN / "logits.npz")["slice_index"])
    slices = np.load(GOLDEN / "slices.npz")["slices"][index : index + 1]
    return np.ascontiguousarray(slices.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def keras_logits() -> npt.NDArray[np.float32]:
    """[1, 4, X, Y]."""
    return np.asarray(np.load(GOLDEN / "logits.npz")["logits"].transpose(0, 3, 1, 2))


def keras_probabilities() -> npt.NDArray[np.float32]:
    exponentials = np.exp(keras_logits())
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def test_onnx_logits_equal_those_of_keras(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "golden.onnx", LOGITS)
    logits = answer(tmp_path / "golden.onnx", golden_images())
    # As for PyTorch in test_keras_h5: the bound that issue and reference set for float32 rounding.
    assert np.linalg.norm(logits - keras_logits()) / np.linalg.norm(keras_logits()) < 1e-5


def test_softmax_head_gives_the_probabilities_of_keras(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "golden.onnx", SOFTMAX)
    probabilities = answer(tmp_path / "golden.onnx", golden_images())
    np.testing.assert_allclose(probabilities, keras_probabilities(), rtol=0, atol=1e-4)  # 1.4e-5 is what export measures


def test_argmax_head_gives_the_classes_of_keras(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "golden.onnx", ARGMAX)
    classes = answer(tmp_path / "golden.onnx", golden_images())
    ordered = np.sort(keras_logits(), axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-3  # the bound: closer ones may change places
    assert classes.dtype == np.uint8
    assert np.array_equal(classes[clear], keras_logits().argmax(axis=1)[clear])


def test_batch_and_both_sizes_are_free(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "golden.onnx", LOGITS)
    assert answer(tmp_path / "golden.onnx", np.zeros((3, 4, 48, 112), dtype=np.float32)).shape == (3, 4, 48, 112)


def test_onnx_file_tells_where_its_weights_come_from(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "golden.onnx", LOGITS)
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "golden.onnx").metadata_props}
    assert properties["sha256"] == file_sha256(GOLDEN_WEIGHTS)
    assert json.loads(properties["channels"]) == ["flair", "t1ce", "t1", "t2"]


def test_float16_lies_between_two_ends_of_float32(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "half.onnx", LOGITS_HALF)
    model = onnx.load(tmp_path / "half.onnx")
    ends = {end.type.tensor_type.elem_type for end in (*model.graph.input, *model.graph.output)}
    assert ends == {onnx.TensorProto.FLOAT}
    weights = {tensor.data_type for tensor in model.graph.initializer}
    assert weights == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}  # whole numbers: the padding


def test_difference_of_float16_is_that_of_its_few_bits(golden: Checkpoint, tmp_path: Path) -> None:
    check = exported(golden, tmp_path / "half.onnx", LOGITS_HALF).check
    assert 1e-4 < check.difference < check.tolerance  # 4e-3 was measured; 3.8e-6 in float32


def test_keras_file_is_read_back_as_the_same_weights(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "again.h5", KERAS)
    again = open_weights(str(tmp_path / "again.h5"))
    assert all(np.array_equal(again.state[name], array) for name, array in golden.state.items())


def test_safetensors_carry_weights_and_metadata(golden: Checkpoint, tmp_path: Path) -> None:
    trained = replace(golden, metadata=replace(golden.metadata, bn_epsilon=1e-5, window="auto", dropout=0.2, licence="mine"))
    exported(trained, tmp_path / "again.safetensors", SAFETENSORS)
    again = read_checkpoint(tmp_path / "again.safetensors")
    assert again.metadata == trained.metadata
    assert all(np.array_equal(again.state[name], array) for name, array in golden.state.items())


def test_float16_safetensors_hold_the_rounded_weights(golden: Checkpoint, tmp_path: Path) -> None:
    exported(golden, tmp_path / "half.safetensors", SAFETENSORS_HALF)
    tensors = safetensors.numpy.load_file(tmp_path / "half.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    assert all(np.array_equal(tensors[name], array.astype(np.float16)) for name, array in golden.state.items())


def test_sha256_and_size_are_those_of_the_file(golden: Checkpoint, tmp_path: Path) -> None:
    found = exported(golden, tmp_path / "again.safetensors", SAFETENSORS)
    assert found.sha256 == file_sha256(tmp_path / "again.safetensors")
    assert found.n_bytes == (tmp_path / "again.safetensors").stat().st_size


def test_network_that_answers_0_everywhere_is_exported(golden: Checkpoint, tmp_path: Path) -> None:
    silent = {name: np.zeros_like(array) if name.startswith("head.") else array for name, array in golden.state.items()}
    assert exported(replace(golden, state=silent), tmp_path / "silent.onnx", LOGITS).check.difference == 0


def spoilt(state: Mapping[str, npt.NDArray[Any]]) -> State:
    """One number of one tensor is another."""
    tensor = state["head.bias"].copy()
    tensor[0] += 1
    return {**state, "head.bias": tensor}


@pytest.fixture
def _careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written, one of its tensors is wrong."""
    build, write, encode = onnx_engine.build_graph, keras.write_keras_h5, checkpoints.encode_checkpoint
    monkeypatch.setattr(
        onnx_engine, "build_graph", lambda given, **options: build(replace(given, state=spoilt(given.state)), **options)
    )
    monkeypatch.setattr(keras, "write_keras_h5", lambda stream, given: write(stream, replace(given, state=spoilt(given.state))))
    monkeypatch.setattr(checkpoints, "encode_checkpoint", lambda state, metadata: encode(spoilt(state), metadata))


@pytest.mark.usefixtures("_careless")
@pytest.mark.parametrize("variant", [LOGITS, LOGITS_HALF, SOFTMAX, ARGMAX, KERAS, SAFETENSORS, SAFETENSORS_HALF], ids=named)
def test_file_that_fails_its_check_does_not_appear(variant: Variant, golden: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"target: not written: it failed its check: largest .* allowed"):
        exported(golden, tmp_path / "target", variant)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_careless")
def test_file_that_fails_its_check_replaces_nothing(golden: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "golden.onnx").write_text("the one before")
    with pytest.raises(OutputError):
        export(golden, tmp_path / "golden.onnx", LOGITS, overwrite=True)
    assert (tmp_path / "golden.onnx").read_text() == "the one before"


@pytest.mark.parametrize("variant", [LOGITS, KERAS, SAFETENSORS], ids=named)
def test_file_that_is_cut_short_does_not_appear(
    variant: Variant, golden: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_of(content: bytes | memoryview) -> bytes:
        return bytes(content[: len(content) // 2])

    encode, check = exports._KINDS[variant.format]
    kinds = {variant.format: (lambda *given: half_of(encode(*given)), check)}
    monkeypatch.setattr(exports, "_KINDS", kinds)
    with pytest.raises(OutputError, match="target: not written: "):
        exported(golden, tmp_path / "target", variant)
    assert not list(tmp_path.iterdir())


def test_run_that_is_stopped_while_it_compares_leaves_nothing(
    golden: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        raise Terminated

    monkeypatch.setattr(comparison, "comparison_images", stop)
    with pytest.raises(Terminated):
        exported(golden, tmp_path / "golden.onnx", LOGITS)
    assert not list(tmp_path.iterdir())


def louder(state: State, factor: float) -> State:
    """The same classes, but logits so many times as large."""
    return {name: array * np.float32(factor) if name.startswith("head.") else array for name, array in state.items()}


@pytest.mark.parametrize("variant", [LOGITS_HALF, ARGMAX], ids=named)
def test_maps_beyond_float16_are_refused_though_this_cpu_would_not_notice(
    variant: Variant, golden: Checkpoint, tmp_path: Path
) -> None:
    loud = replace(golden, state=louder(golden.state, 20_000))  # weights up to 1e4 or so fit, logits of 2e5 do not
    with pytest.raises(OutputError, match="float16 overflows in this network; use --precision float32"):
        exported(loud, tmp_path / "loud.onnx", replace(variant, precision=Precision.FLOAT16))


@pytest.mark.parametrize("variant", [LOGITS_HALF, SAFETENSORS_HALF], ids=named)
def test_weights_beyond_float16_are_refused(variant: Variant, golden: Checkpoint, tmp_path: Path) -> None:
    loud = replace(golden, state=louder(golden.state, 1e9))
    with pytest.raises(OutputError, match="float16 overflows in this network; use --precision float32"):
        exported(loud, tmp_path / "loud", variant)


def test_weights_too_large_for_one_onnx_file_are_refused(
    golden: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_ONNX_LIMIT", 1_000_000)  # the golden weights have 1.2 MB
    with pytest.raises(OutputError, match=r"an ONNX file holds 2 GB, these weights are .* GB; export safetensors"):
        exported(golden, tmp_path / "golden.onnx", LOGITS)
