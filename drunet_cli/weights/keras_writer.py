"""Weights as the HDF5 file that Keras 2 `save_weights` would write of the authors' model; keras_h5.py reads it back.

Keras fills a model from such a file layer by layer, in the order of `layer_names`, without a look at the names: that order is
the contract. It is that of computation, layers without weights included; a shortcut stands where the sum needs it.
Source of order, names and kinds of attributes: files written by Keras 2.15.
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final

import h5py
import numpy as np

from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.keras_h5 import WEIGHT_NAMES, keras_layers
from drunet_cli.weights.structure import BRIDGE, PADDED_STAGE, STAGE_BLOCKS, Block, stage_blocks

_KERAS: Final = {"backend": b"tensorflow", "keras_version": b"2.15.0"}
_INPUT: Final = "input_1"  # the one kind that Keras numbers from 1
# What a block computes one after the other: its layers by their names in model.py, those without weights by Keras' kind.
_WITHOUT_WEIGHTS: Final = ("re_lu", "add")
_BOTTLENECK: Final = ("norm1", "re_lu", "conv1", "norm2", "re_lu", "conv2", "norm3", "re_lu", "conv3")
_COMPUTED: Final = {
    Block.INPUT: ("conv1", "norm1", "re_lu", "conv2", "norm2", "re_lu", "conv3", "shortcut", "add"),
    Block.DOWN: (*_BOTTLENECK, "shortcut", "add"),
    Block.BOTTLENECK: (*_BOTTLENECK, "add"),
    Block.DECODER: ("norm1", "re_lu", "conv1", "norm2", "re_lu", "shortcut", "conv2", "add"),
}


def write_keras_h5(stream: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write the weights to a stream that can be read and sought too. The metadata, as epsilon, have no place in such a file."""
    with h5py.File(stream, "w") as file:
        file.attrs.update(_KERAS)
        file.create_group("top_level_model_weights").attrs["weight_names"] = []
        names = []
        for name, kind, path in _layers():
            names.append(name.encode())
            group = file.create_group(name)
            weights = WEIGHT_NAMES.get(kind, {})
            group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight in weights]
            for weight, parameter in weights.items():
                array = checkpoint.state[f"{path}.{parameter}"]
                group[f"{name}/{weight}"] = np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
        file.attrs["layer_names"] = names


def _layers() -> Iterator[tuple[str, str, str]]:
    """Keras' name, kind, and path in the model, in the file's order; a layer without weights has no path."""
    numbers: Counter[str] = Counter()

    def numbered(kind: str) -> str:
        numbers[kind] += 1
        return kind if numbers[kind] == 1 else f"{kind}_{numbers[kind] - 1}"

    weighted = {path: (numbered(kind), kind) for kind, path in keras_layers()}
    yield _INPUT, "", ""
    for node in _nodes():
        yield (*weighted[node], node) if node in weighted else (numbered(node), "", "")


def _nodes() -> Iterator[str]:
    """What is computed, in its order: paths of layers, and kinds of those that have no weights."""
    for stage in range(len(STAGE_BLOCKS)):
        for block, path in stage_blocks(stage):
            yield from _within(path, _COMPUTED[block])
        if stage > 0:
            yield "dropout"
        if stage == PADDED_STAGE:
            yield "zero_padding2d"
    for level in range(BRIDGE):
        path = f"decoder.{level}"
        yield from (f"{path}.upsample", "concatenate")
        if BRIDGE - 1 - level == PADDED_STAGE:
            yield "cropping2d"
        yield from _within(path, _COMPUTED[Block.DECODER])
        if level < BRIDGE - 1:
            yield "dropout"
    yield from ("head_norm", "re_lu", "head")


def _within(path: str, names: tuple[str, ...]) -> Iterator[str]:
    return (name if name in _WITHOUT_WEIGHTS else f"{path}.{name}" for name in names)
