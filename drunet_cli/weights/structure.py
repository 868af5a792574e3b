"""The layers of DR-Unet104 in one table: what each computes, from what, and how it begins. No torch.

The shapes that weights must have, the ONNX graph, the folding of batch norms and the first numbers of a training derive from
this table. `network/model.py` is the same network written by hand, to be read beside the paper. Whoever changes the network
changes both; the fingerprint at the end of this file says for which pair the tests have proved that they compute the same.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, N_CLASSES

N_CHANNELS: Final = len(CHANNELS)
MAX_BASE_WIDTH: Final = 256  # 16 times the published: whatever claims more is damaged
STAGE_BLOCKS: Final = (2, 3, 3, 5, 14, 4)  # five encoder stages and the bridge
BRIDGE: Final = len(STAGE_BLOCKS) - 1
PADDED_STAGE: Final = 3  # its map is padded by 1, 30 x 30 to 32 x 32, which can be halved twice more
IMAGES: Final = "slices"  # the map that the first block takes
OUTPUT: Final = "head"  # the layer that gives the logits

CONVOLUTION: Final = "Conv"
TRANSPOSED_CONVOLUTION: Final = "ConvTranspose"
BATCH_NORM: Final = "BatchNormalization"
CONCATENATION: Final = "Concat"
PADDING: Final = "Pad"
Shape: TypeAlias = tuple[int, ...]


class Start(Enum):
    """The first numbers of a kernel in a training; Keras' names."""

    HE_NORMAL = auto()
    GLOROT_UNIFORM = auto()
    END_OF_BRANCH = auto()  # He-normal, or 0 in a recipe whose blocks begin as their shortcuts


@dataclass(frozen=True)
class Layer:
    """A row of the table: one map that a block computes, named as the module of model.py that computes it.

    operator: as ONNX names it. inputs: maps of the same block; `x` is the block's input, `skip` the encoder's map.
    channels: of the result, in multiples of the block's width, for convolutions. kernel, stride: for convolutions.
    border: rows and columns that padding adds on each side (taken away where negative, also by a transposed convolution).
    then: the operator that follows at once, such as Relu.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    border: int = 0
    then: str = ""
    start: Start = Start.HE_NORMAL


class Block(Enum):
    """The kinds of blocks; see the classes of model.py."""

    INPUT = auto()
    DOWN = auto()  # a bottleneck of stride 2, with a convolution as shortcut
    BOTTLENECK = auto()
    PADDED = auto()  # no block of the paper: the zero-padding behind the fourth stage
    DECODER = auto()
    CROPPED_DECODER = auto()  # takes the padded map, and gives the size that it had before
    HEAD = auto()


def _convolution(name: str, of: str, channels: int, kernel: int, *, stride: int = 1, start: Start = Start.HE_NORMAL) -> Layer:
    return Layer(name, CONVOLUTION, (of,), channels=channels, kernel=kernel, stride=stride, start=start)


def _norm_relu(name: str, of: str) -> Layer:
    return Layer(name, BATCH_NORM, (of,), then="Relu")


def _bottleneck(stride: int) -> tuple[Layer, ...]:
    return (
        _norm_relu("norm1", "x"),
        _convolution("conv1", "norm1", 1, 1, stride=stride),
        _norm_relu("norm2", "conv1"),
        _convolution("conv2", "norm2", 1, 3),
        _norm_relu("norm3", "conv2"),
        _convolution("conv3", "norm3", 4, 1, start=Start.END_OF_BRANCH),
    )


def _decoder(border: int) -> tuple[Layer, ...]:
    """A decoder block. border: -1 takes off what the padding has added before the maps are joined; model.py does so after."""
    glorot = Start.GLOROT_UNIFORM
    return (
        Layer("upsample", TRANSPOSED_CONVOLUTION, ("x",), channels=4, kernel=3, stride=2, border=border, start=glorot),
        *((Layer("cropped", PADDING, ("skip",), border=border),) if border else ()),
        Layer("joined", CONCATENATION, ("upsample", "cropped" if border else "skip")),
        _norm_relu("norm1", "joined"),
        _convolution("conv1", "norm1", 2, 3),
        _norm_relu("norm2", "conv1"),
        _convolution("conv2", "norm2", 2, 3, start=Start.END_OF_BRANCH),
        _convolution("shortcut", "joined", 2, 1),
        Layer("sum", "Add", ("shortcut", "conv2")),
    )


# The last row of a block is its result.
LAYERS: Final[Mapping[Block, tuple[Layer, ...]]] = {
    Block.INPUT: (
        _convolution("conv1", "x", 1, 1),
        _norm_relu("norm1", "conv1"),
        _convolution("conv2", "norm1", 1, 3),
        _norm_relu("norm2", "conv2"),
        _convolution("conv3", "norm2", 4, 1, start=Start.END_OF_BRANCH),
        _convolution("shortcut", "x", 4, 1),
        Layer("sum", "Add", ("shortcut", "conv3")),
    ),
    Block.DOWN: (
        *_bottleneck(stride=2),
        _convolution("shortcut", "x", 4, 1, stride=2),
        Layer("sum", "Add", ("shortcut", "conv3")),
    ),
    Block.BOTTLENECK: (*_bottleneck(stride=1), Layer("sum", "Add", ("x", "conv3"))),
    Block.PADDED: (Layer("padded", PADDING, ("x",), border=1),),
    Block.DECODER: _decoder(border=0),
    Block.CROPPED_DECODER: _decoder(border=-1),
    Block.HEAD: (
        _norm_relu("head_norm", "x"),
        _convolution(OUTPUT, "head_norm", N_CLASSES, 1, start=Start.GLOROT_UNIFORM),
    ),
}


@dataclass(frozen=True)
class PlacedBlock:
    """A block in the network. path: of its module in model.py, empty where it has none.

    width: in multiples of the base width, 0 where the channels are the same at every base width.
    x, skip: the blocks whose results it takes, by their number in `blocks()`; x None is the image.
    dropout: whether dropout follows it in training.
    """

    kind: Block
    path: str
    width: int
    x: int | None
    skip: int | None = None
    dropout: bool = False


def blocks() -> Iterator[PlacedBlock]:
    """All blocks, from the image to the logits."""
    number, skips = -1, []
    for stage, n_blocks in enumerate(STAGE_BLOCKS):
        stage_path = "bridge" if stage == BRIDGE else f"encoder.{stage}"
        for index in range(n_blocks):
            first = Block.DOWN if stage else Block.INPUT
            dropout = stage > 0 and index == n_blocks - 1
            x = None if number < 0 else number
            yield PlacedBlock(Block.BOTTLENECK if index else first, f"{stage_path}.{index}", 1 << stage, x, dropout=dropout)
            number += 1
        if stage == PADDED_STAGE:
            yield PlacedBlock(Block.PADDED, "", 0, number)
            number += 1
        skips.append(number)
    for level, stage in enumerate(reversed(range(BRIDGE))):
        kind = Block.CROPPED_DECODER if stage == PADDED_STAGE else Block.DECODER
        yield PlacedBlock(kind, f"decoder.{level}", 1 << stage, number, skips[stage], dropout=stage > 0)
        number += 1
    yield PlacedBlock(Block.HEAD, "", 0, number)


@dataclass(frozen=True)
class PlacedLayer:
    """A row of the table in its place: all names are paths in the network, all channels are counted.

    path: of the layer's module in model.py, or the name of a map that no module makes. inputs: such paths, or IMAGES.
    """

    path: str
    layer: Layer
    inputs: tuple[str, ...]
    in_channels: int
    out_channels: int


def layers(base_width: int) -> Iterator[PlacedLayer]:
    """Every layer of the network in an order in which it can be computed; the last gives the logits."""
    channels = {IMAGES: N_CHANNELS}
    results: list[str] = []
    for block in blocks():
        given = {"x": IMAGES if block.x is None else results[block.x]}
        if block.skip is not None:
            given["skip"] = results[block.skip]
        paths = {layer.name: f"{block.path}.{layer.name}" if block.path else layer.name for layer in LAYERS[block.kind]}
        for layer in LAYERS[block.kind]:
            inputs = tuple(paths.get(name) or given[name] for name in layer.inputs)
            of_inputs = [channels[name] for name in inputs]
            in_channels = sum(of_inputs) if layer.operator == CONCATENATION else of_inputs[0]
            out_channels = layer.channels * (block.width * base_width or 1) or in_channels
            channels[paths[layer.name]] = out_channels
            yield PlacedLayer(paths[layer.name], layer, inputs, in_channels, out_channels)
        results.append(paths[LAYERS[block.kind][-1].name])


def tensor_shapes(base_width: int) -> dict[str, Shape]:
    """Shapes of all tensors by name; kernels are [out, in, h, w], of transposed convolutions [in, out, h, w]."""
    return {f"{placed.path}.{name}": shape for placed in layers(base_width) for name, shape in _tensors(placed)}


def _tensors(placed: PlacedLayer) -> Iterator[tuple[str, Shape]]:
    ends, size = (placed.out_channels, placed.in_channels), (placed.layer.kernel,) * 2
    match placed.layer.operator:
        case "Conv":
            yield from (("weight", (*ends, *size)), ("bias", ends[:1]))
        case "ConvTranspose":
            yield from (("weight", (*ends[::-1], *size)), ("bias", ends[:1]))
        case "BatchNormalization":
            yield from ((name, ends[:1]) for name in ("weight", "bias", "running_mean", "running_var"))


def folded_norms() -> dict[str, str]:
    """Paths of the batch norms that follow a convolution whose result nothing else takes, each with that convolution's path.

    Such a batch norm can become a part of the convolution. The others follow sums.
    """
    placed_layers = list(layers(1))
    convolutions = {placed.path for placed in placed_layers if placed.layer.operator == CONVOLUTION and not placed.layer.then}
    uses = Counter(name for placed in placed_layers for name in placed.inputs)
    norms = (placed for placed in placed_layers if placed.layer.operator == BATCH_NORM)
    return {
        placed.path: placed.inputs[0] for placed in norms if placed.inputs[0] in convolutions and uses[placed.inputs[0]] == 1
    }


def starts() -> dict[str, Start]:
    """The first numbers of each convolution's kernel in a training, by the convolution's path."""
    kinds = (CONVOLUTION, TRANSPOSED_CONVOLUTION)
    return {placed.path: placed.layer.start for placed in layers(1) if placed.layer.operator in kinds}


def fingerprint(model_source: bytes) -> str:
    """A checksum of the network: the text of model.py, and the rows of this table."""
    table = repr(list(layers(1)))
    return hashlib.sha256(model_source.replace(b"\r\n", b"\n") + table.encode()).hexdigest()


# The fingerprint of the pair for which tests/network/test_model.py proves that model.py and the ONNX graph compute the same.
# Whoever has changed either runs these tests, and writes here what they ask for. Until then ONNX Runtime is compared with
# model.py whenever it is opened, and PyTorch folds no batch norm.
PROVED_FINGERPRINT: Final = "52707922388128996816358f243d9cee1ceb8e5ab6ef1c62134bcab7ad9e710c"
