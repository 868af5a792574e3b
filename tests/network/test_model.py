"""The network: model.py, the table of its layers, and all that derives from the table are one network, the published one.

Whoever changes the network changes model.py and weights/structure.py, runs this file, and writes down the fingerprint that its
last test asks for.
"""

from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from torch import nn

from drunet_cli.errors import WeightsError
from drunet_cli.network import model as model_module
from drunet_cli.network.cpu_engine import OnnxEngine
from drunet_cli.network.engine import SAME_NETWORK, Images
from drunet_cli.network.model import DRUNet104
from drunet_cli.network.torch_engine import build_model, check_model, fold_norms, logits_of
from drunet_cli.weights.checkpoint import Checkpoint, Metadata
from drunet_cli.weights.keras import keras_layers
from drunet_cli.weights.structure import (
    BATCH_NORM,
    CONVOLUTION,
    PROVED_FINGERPRINT,
    TRANSPOSED_CONVOLUTION,
    PlacedLayer,
    Start,
    blocks,
    fingerprint,
    layers,
    starts,
    tensor_shapes,
)

ROUNDING: Final = 1e-5  # of float32 through 104 layers, as a share of the largest logit; 1e-6 was measured
WITH_WEIGHTS: Final = {CONVOLUTION: "conv2d", TRANSPOSED_CONVOLUTION: "conv2d_transpose", BATCH_NORM: "batch_normalization"}


def random_checkpoint(base_width: int) -> Checkpoint:
    """Weights of which none is neutral: batch norms that shift and scale, biases that are not 0."""
    rng = np.random.default_rng(base_width)
    state = {}
    for name, shape in tensor_shapes(base_width).items():
        values = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        if name.endswith("running_var") or (".norm" in name and name.endswith("weight")):
            values = rng.uniform(0.5, 1.5, shape)
        state[name] = values.astype(np.float32)
    return Checkpoint(metadata=Metadata(name="random", base_width=base_width, bn_epsilon=1e-2), state=state, sha256="0" * 64)


def random_images(n: int, x: int, y: int) -> Images:
    return np.random.default_rng(x).random((n, 4, x, y), dtype=np.float32)


def of_operator(operator: str) -> list[PlacedLayer]:
    return [placed for placed in layers(16) if placed.layer.operator == operator]


def test_the_table_has_the_layers_and_numbers_of_the_paper() -> None:
    convolutions = [placed.path for placed in of_operator(CONVOLUTION)]
    assert len([path for path in convolutions if not path.endswith("shortcut")]) == 104
    assert len([path for path in convolutions if path.endswith("shortcut")]) == 11
    assert (len(of_operator(TRANSPOSED_CONVOLUTION)), len(of_operator(BATCH_NORM))) == (5, 103)
    # Counted in the published Keras model: 76,431,716 trainable, 76,516,708 with batch-norm statistics.
    sizes = {name: int(np.prod(shape)) for name, shape in tensor_shapes(16).items()}
    assert sum(sizes.values()) == 76_516_708
    assert sum(size for name, size in sizes.items() if "running" not in name) == 76_431_716


@pytest.mark.parametrize("base_width", [1, 2, 16])
def test_the_model_has_the_tensors_of_the_table(base_width: int) -> None:
    with torch.device("meta"):
        model = DRUNet104(base_width, bn_epsilon=1e-3)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert tensors == tensor_shapes(base_width)
    check_model(model)


@pytest.mark.parametrize(("base_width", "size"), [(1, (1, 240, 240)), (2, (3, 16, 48)), (4, (2, 144, 176))])
def test_the_graph_of_the_table_computes_what_the_model_computes(base_width: int, size: tuple[int, int, int]) -> None:
    checkpoint, images = random_checkpoint(base_width), random_images(*size)
    expected = logits_of(checkpoint, images)
    assert expected.shape == images.shape
    assert np.abs(OnnxEngine(checkpoint).logits(images) - expected).max() <= ROUNDING * np.abs(expected).max()
    assert ROUNDING <= SAME_NETWORK


def test_folding_takes_the_batch_norms_behind_convolutions_away_and_changes_no_logit() -> None:
    checkpoint, images = random_checkpoint(2), random_images(1, 48, 80)
    model = build_model(checkpoint)
    fold_norms(model)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images)).numpy()
    expected = logits_of(checkpoint, images)
    assert np.abs(logits - expected).max() <= ROUNDING * np.abs(expected).max()
    # 103 less two in the input block, two in each of 30 bottlenecks, and one in each of five decoder blocks.
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 103 - 2 - 2 * 30 - 5


def test_every_layer_with_weights_begins_in_one_way() -> None:
    found = starts()
    assert Counter(found.values()) == {Start.HE_NORMAL: 120 - 6 - 36, Start.GLOROT_UNIFORM: 6, Start.END_OF_BRANCH: 36}
    assert {path for path, start in found.items() if start is Start.GLOROT_UNIFORM} == {
        "head",
        *(f"decoder.{level}.upsample" for level in range(5)),
    }


def test_keras_names_every_layer_of_the_table_once() -> None:
    named = [(kind.replace("output_layer", "conv2d"), path) for kind, path in keras_layers()]
    expected = [(WITH_WEIGHTS[each.layer.operator], each.path) for each in layers(1) if each.layer.operator in WITH_WEIGHTS]
    assert sorted(named) == sorted(expected)


def test_dropout_follows_every_stage_but_the_first_and_every_decoder_level_but_the_last() -> None:
    model = DRUNet104(1, bn_epsilon=1e-3, dropout=0.5)
    calls: list[torch.Size] = []
    model.dropout.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].shape[1:]))
    model(torch.rand(2, 4, 240, 240))
    # [channels, X, Y] at base width 1: four stages, the bridge, four decoder levels.
    encoder = [(8, 120, 120), (16, 60, 60), (32, 30, 30), (64, 16, 16), (128, 8, 8)]
    decoder = [(32, 16, 16), (16, 30, 30), (8, 60, 60), (4, 120, 120)]
    assert [tuple(shape) for shape in calls] == encoder + decoder
    paths = [*(f"encoder.{stage}.{last}" for stage, last in ((1, 2), (2, 2), (3, 4), (4, 13))), "bridge.3"]
    assert [block.path for block in blocks() if block.dropout] == [*paths, *(f"decoder.{level}" for level in range(4))]


def test_epsilon_reaches_every_batch_norm() -> None:
    model = DRUNet104(1, bn_epsilon=1e-5)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


def test_a_model_that_was_changed_alone_is_refused_by_the_tensor() -> None:
    model = DRUNet104(1, bn_epsilon=1e-3)
    model.decoder[0].gate = nn.Conv2d(64, 64, 1)
    with pytest.raises(WeightsError, match=r"decoder\.0\.gate\.bias is \(64,\) in network/model\.py, absent in weights/struct"):
        check_model(model)


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("head.bias", None, r"tensor head\.bias is missing"),
        ("tail.bias", np.zeros(4, np.float32), r"tensor tail\.bias is left over"),
        ("head.bias", np.zeros(5, np.float32), r"tensor head\.bias has shape \(5,\), base width 1 needs \(4,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_every_engine(name: str, array: Images | None, complaint: str) -> None:
    checkpoint = random_checkpoint(1)
    del checkpoint.state["head.bias"]
    checkpoint.state.update({"head.bias": np.zeros(4, np.float32)} if name != "head.bias" else {})
    checkpoint.state.update({} if array is None else {name: array})
    for opened in (build_model, OnnxEngine):
        with pytest.raises(WeightsError, match=complaint):
            opened(checkpoint)


def test_the_fingerprint_is_that_of_the_model_and_table_which_the_tests_above_have_proved() -> None:
    source = Path(model_module.__file__).read_bytes()
    assert fingerprint(source) == PROVED_FINGERPRINT, "where all tests above pass, write this into weights/structure.py"
    assert fingerprint(source.replace(b"\n", b"\r\n")) == PROVED_FINGERPRINT  # as Git checks it out on Windows
