"""What DR-Unet104 consists of, as names and shapes: what a set of weights must hold. No torch.

The names are those of model.py's state dict; a test holds both together.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, N_CLASSES

N_CHANNELS: Final = len(CHANNELS)
STAGE_BLOCKS: Final = (2, 3, 3, 5, 14, 4)  # five encoder stages and the bridge
BRIDGE: Final = len(STAGE_BLOCKS) - 1
PADDED_STAGE: Final = 3  # its map is padded by 1, 30 x 30 to 32 x 32, which can be halved twice more

Shape: TypeAlias = tuple[int, ...]
_Named: TypeAlias = Iterator[tuple[str, Shape]]


class Block(Enum):
    """The kinds of residual blocks; see the classes of model.py."""

    INPUT = auto()
    DOWN = auto()  # a bottleneck of stride 2, with a convolution as shortcut
    BOTTLENECK = auto()
    DECODER = auto()


def stage_blocks(stage: int) -> Iterator[tuple[Block, str]]:
    """Kind and path in the model of the blocks of an encoder stage, or of the bridge."""
    stage_path = "bridge" if stage == BRIDGE else f"encoder.{stage}"
    yield Block.DOWN if stage else Block.INPUT, f"{stage_path}.0"
    yield from ((Block.BOTTLENECK, f"{stage_path}.{number}") for number in range(1, STAGE_BLOCKS[stage]))


def blocks() -> Iterator[tuple[Block, str]]:
    """Kind and path of all blocks, from the image to the head."""
    for stage in range(len(STAGE_BLOCKS)):
        yield from stage_blocks(stage)
    yield from ((Block.DECODER, f"decoder.{level}") for level in range(BRIDGE))


def stage_width(base_width: int, stage: int) -> int:
    """Filters within the blocks of a stage, which end in four times as many."""
    return base_width << stage


def tensor_shapes(base_width: int) -> dict[str, Shape]:
    """Shapes of all tensors by name; kernels are [out, in, h, w], of transposed convolutions [in, out, h, w]."""
    return dict(_tensors(base_width))


def _tensors(base_width: int) -> _Named:
    channels = N_CHANNELS
    for stage in range(len(STAGE_BLOCKS)):
        width = stage_width(base_width, stage)
        for kind, path in stage_blocks(stage):
            if kind is Block.INPUT:
                yield from _input_block(path, width)
            else:
                yield from _bottleneck(path, channels, width, shortcut=kind is Block.DOWN)
            channels = 4 * width
    for level, stage in enumerate(reversed(range(BRIDGE))):
        width = stage_width(base_width, stage)
        yield from _decoder_block(f"decoder.{level}", channels, 4 * width, 2 * width)
        channels = 2 * width
    yield from _norm("head_norm", channels)
    yield from _convolution("head", channels, N_CLASSES, 1)


def _input_block(path: str, width: int) -> _Named:
    yield from _convolution(f"{path}.shortcut", N_CHANNELS, 4 * width, 1)
    yield from _convolution(f"{path}.conv1", N_CHANNELS, width, 1)
    yield from _norm(f"{path}.norm1", width)
    yield from _convolution(f"{path}.conv2", width, width, 3)
    yield from _norm(f"{path}.norm2", width)
    yield from _convolution(f"{path}.conv3", width, 4 * width, 1)


def _bottleneck(path: str, channels: int, width: int, *, shortcut: bool) -> _Named:
    yield from _norm(f"{path}.norm1", channels)
    yield from _convolution(f"{path}.conv1", channels, width, 1)
    yield from _norm(f"{path}.norm2", width)
    yield from _convolution(f"{path}.conv2", width, width, 3)
    yield from _norm(f"{path}.norm3", width)
    yield from _convolution(f"{path}.conv3", width, 4 * width, 1)
    if shortcut:
        yield from _convolution(f"{path}.shortcut", channels, 4 * width, 1)


def _decoder_block(path: str, channels: int, skip_channels: int, out_channels: int) -> _Named:
    yield f"{path}.upsample.weight", (channels, skip_channels, 3, 3)
    yield f"{path}.upsample.bias", (skip_channels,)
    yield from _convolution(f"{path}.shortcut", 2 * skip_channels, out_channels, 1)
    yield from _norm(f"{path}.norm1", 2 * skip_channels)
    yield from _convolution(f"{path}.conv1", 2 * skip_channels, out_channels, 3)
    yield from _norm(f"{path}.norm2", out_channels)
    yield from _convolution(f"{path}.conv2", out_channels, out_channels, 3)


def _convolution(path: str, channels: int, out_channels: int, size: int) -> _Named:
    yield f"{path}.weight", (out_channels, channels, size, size)
    yield f"{path}.bias", (out_channels,)


def _norm(path: str, channels: int) -> _Named:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{path}.{name}", (channels,)
