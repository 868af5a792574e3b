"""The ONNX graph is the network: equal to PyTorch on every legal size, whatever the head."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch

from drunet_cli.errors import WeightsError
from drunet_cli.network.engine import Precision
from drunet_cli.network.onnx_engine import Head, build_graph, embedded
from drunet_cli.network.torch_engine import build_model
from drunet_cli.weights.checkpoint import Checkpoint, Metadata
from drunet_cli.weights.structure import tensor_shapes
from tests.support import GOLDEN

SIZES = [(1, 240, 240), (3, 16, 48), (2, 144, 176)]


def random_checkpoint(base_width: int) -> Checkpoint:
    """Weights of which none is neutral: batch norm that shifts and scales, biases that are not 0."""
    rng = np.random.default_rng(base_width)
    state = {}
    for name, shape in tensor_shapes(base_width).items():
        fan_in = int(np.prod(shape[1:]))
        values = rng.normal(0, 1 / np.sqrt(fan_in), shape)
        if name.endswith("running_var") or (".norm" in name and name.endswith("weight")):
            values = rng.uniform(0.5, 1.5, shape)
        state[name] = values.astype(np.float32)
    return Checkpoint(metadata=Metadata(name="random", base_width=base_width, bn_epsilon=1e-2), state=state, sha256="0" * 64)


def run(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The model's answer in ONNX Runtime."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"slices": images})[0])


def logits_of(checkpoint: Checkpoint, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """PyTorch's."""
    with torch.inference_mode():
        return np.asarray(build_model(checkpoint)(torch.from_numpy(images)).numpy())


def images_of(size: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    n, x, y = size
    return np.random.default_rng(x).random((n, 4, x, y), dtype=np.float32)


@pytest.mark.parametrize("base_width", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal_pytorchs_to_float32_rounding(base_width: int, size: tuple[int, int, int]) -> None:
    checkpoint = random_checkpoint(base_width)
    expected = logits_of(checkpoint, images_of(size))
    ours = run(embedded(build_graph(checkpoint)), images_of(size))
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()  # float32 rounding of 104 layers; 1e-6 measured


def test_logits_equal_keras_on_the_golden_slice(checkpoint: Checkpoint) -> None:
    keras = np.load(GOLDEN / "logits.npz")
    image = np.load(GOLDEN / "slices.npz")["slices"][int(keras["slice_index"])]
    ours = run(embedded(build_graph(checkpoint)), image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    expected = keras["logits"][0].transpose(2, 0, 1)
    assert np.abs(ours[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_heads_are_made_of_the_logits(checkpoint: Checkpoint) -> None:
    images = images_of((2, 144, 176))
    logits = run(embedded(build_graph(checkpoint)), images)
    probabilities = run(embedded(build_graph(checkpoint, head=Head.SOFTMAX)), images)
    classes = run(embedded(build_graph(checkpoint, head=Head.ARGMAX)), images)
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(dim=1).numpy(), atol=1e-6)
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, logits.argmax(axis=1))


def test_float16_lies_within_and_float32_at_both_ends(checkpoint: Checkpoint) -> None:
    graph = build_graph(checkpoint, precision=Precision.FLOAT16)
    assert {array.dtype for array in graph.weights.values()} == {np.dtype(np.float16)}
    images = images_of((1, 48, 48))
    half, whole = run(embedded(graph), images), run(embedded(build_graph(checkpoint)), images)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() <= 2e-2 * np.abs(whole).max()  # ten bits, after 104 layers; 4e-3 measured


def test_graph_is_valid_onnx_with_named_ends_and_sizes_that_may_vary(checkpoint: Checkpoint) -> None:
    model = embedded(build_graph(checkpoint, head=Head.SOFTMAX))
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"slices": ["batch", 4, "x", "y"], "probabilities": ["batch", 4, "x", "y"]}


def test_file_says_what_its_user_must_know(checkpoint: Checkpoint) -> None:
    facts = {entry.key: entry.value for entry in build_graph(checkpoint).model.metadata_props}
    assert json.loads(facts["channels"]) == ["flair", "t1ce", "t1", "t2"]
    assert json.loads(facts["classes"]) == ["BACKGROUND", "NCR", "ED", "ET"]
    assert (facts["bn_epsilon"], facts["base_width"], facts["sha256"]) == ("0.001", "1", checkpoint.sha256)
    assert "truncated to uint8" in facts["normalisation"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("missing", "tensor head.bias is missing"), ("extra", "tensor tail is left over"), ("shape", "needs \\(4,\\)")],
)
def test_weights_that_do_not_fit_are_refused(checkpoint: Checkpoint, change: str, complaint: str) -> None:
    state = dict(checkpoint.state)
    match change:
        case "missing":
            del state["head.bias"]
        case "extra":
            state["tail"] = np.zeros(1, dtype=np.float32)
        case "shape":
            state["head.bias"] = np.zeros(5, dtype=np.float32)
    with pytest.raises(WeightsError, match=complaint):
        build_graph(Checkpoint(metadata=checkpoint.metadata, state=state, sha256=""))
