"""The numbers of a training, and two recipes of them.

paper: what the published code and paper state (reference: train.py; Colman et al. 2020), with its bugs mended.
modern: what a 2D residual U-Net on few cases is better trained with; see CHANGELOG for the comparison of the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

from drunet_cli.io.geometry import FRAME
from drunet_cli.training.recipe_name import RecipeName
from drunet_cli.weights.checkpoint import MAX_BASE_WIDTH

WINDOW_STRIDE: Final = 32  # of the network: windows that begin at its multiples meet the same grid of strides as the frame


class Optimiser(StrEnum):
    """Adam as published, or with decoupled weight decay."""

    ADAM = "adam"
    ADAMW = "adamw"


class Sampling(StrEnum):
    """Which slices a batch is made of."""

    ALL = "all"  # every slice of every case once an epoch, in random order
    BALANCED = "balanced"  # cases drawn evenly, slices with tumour favoured


class Decay(StrEnum):
    """How the learning rate goes down after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # towards 0 at the end


_Check = Callable[[Any], bool]


def _number(default: Any, allowed: _Check, range_in_words: str) -> Any:
    """A setting with the values it may have."""
    return field(default=default, metadata={"allowed": allowed, "range": range_in_words})


def _positive(default: float) -> Any:
    return _number(default, lambda value: value > 0, "above 0")


def _not_negative(default: float) -> Any:
    return _number(default, lambda value: value >= 0, "0 or above")


def _share(default: float) -> Any:
    return _number(default, lambda value: 0 <= value <= 1, "from 0 to 1")


def _below_1(default: float) -> Any:
    return _number(default, lambda value: 0 <= value < 1, "from 0 to below 1")


def _whole(default: int, smallest: int = 1) -> Any:
    return _number(default, lambda value: value >= smallest, f"a whole number from {smallest}")


def _is_window(value: Any) -> bool:
    return len(value) == 2 and all(16 <= size <= FRAME and size % WINDOW_STRIDE == FRAME % WINDOW_STRIDE for size in value)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """bn_momentum as PyTorch counts it (Keras: 1 less it). zero_residual: residual branches begin at 0."""

    base_width: int = _number(16, lambda value: 1 <= value <= MAX_BASE_WIDTH, f"a whole number from 1 to {MAX_BASE_WIDTH}")
    bn_epsilon: float = _number(1e-5, lambda value: 0 < value < 1, "between 0 and 1")
    bn_momentum: float = _share(0.1)
    dropout: float = _below_1(0.0)
    zero_residual: bool = True


@dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """steps: of the whole training, 0 for epochs. steps_per_epoch: 0 for as many as all slices make."""

    epochs: int = _whole(100)
    steps: int = _whole(0, 0)
    steps_per_epoch: int = _whole(250, 0)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """size: slices a step, over all processes. windows: [X, Y] of each batch, drawn from these; none for whole frames.

    tumour_share: of slices that are drawn for a tumour class, when the sampling is balanced.
    """

    size: int = _whole(10)
    sampling: Sampling = Sampling.BALANCED
    tumour_share: float = _share(0.7)
    windows: tuple[tuple[int, int], ...] = _number(
        ((112, 144), (144, 176), (144, 208)),
        lambda value: all(map(_is_window, value)),
        "pairs of multiples of 32 plus 16, from 16 to 240",
    )


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """warmup: share of all steps in which the learning rate rises to its height. clip_norm: of the gradient, 0 for none."""

    name: Optimiser = Optimiser.ADAMW
    learning_rate: float = _positive(1e-3)
    beta1: float = _below_1(0.9)
    beta2: float = _below_1(0.99)
    epsilon: float = _positive(1e-8)
    weight_decay: float = _not_negative(0.01)
    warmup: float = _share(0.05)
    decay: Decay = Decay.COSINE
    clip_norm: float = _not_negative(0.0)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the two terms: cross-entropy of the four classes, and soft Dice of WT, TC and ET over the batch."""

    cross_entropy: float = _not_negative(1.0)
    dice: float = _not_negative(1.0)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Probabilities of the flips; the rest are half-widths or SDs of what is drawn for each slice, 0 for none.

    flip_x: left and right; flip_y: front and back. rotation: degrees, scale, shift: shares of size (uniform).
    contrast: share of the gain, brightness: of the range 0-1, gamma: exponent's log (all normal, each modality for itself).
    bias: share by which a smooth field differs between centre and edge (normal). noise: largest SD, of the range 0-1. blur:
    largest SD in pixels (both uniform).
    """

    flip_x: float = _share(0.5)
    flip_y: float = _share(0.0)
    rotation: float = _number(10.0, lambda value: 0 <= value <= 180, "from 0 to 180")
    scale: float = _below_1(0.1)
    shift: float = _below_1(0.0)
    contrast: float = _below_1(0.1)
    brightness: float = _below_1(0.05)
    gamma: float = _below_1(0.1)
    bias: float = _below_1(0.05)
    noise: float = _below_1(0.05)
    blur: float = _share(0.0)


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """decay: of the running average of the weights that is validated and kept, 0 for the weights themselves."""

    decay: float = _below_1(0.999)


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """every_epochs: how often the held-out cases are segmented; always after the last epoch."""

    every_epochs: int = _whole(1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training. recipe: which one the others were taken from, before any was changed."""

    recipe: RecipeName = RecipeName.MODERN
    seed: int = _number(0, lambda value: 0 <= value < 2**63, "a whole number from 0 to below 2^63")
    network: NetworkSettings = NetworkSettings()
    length: LengthSettings = LengthSettings()
    batches: BatchSettings = BatchSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    loss: LossSettings = LossSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    average: AverageSettings = AverageSettings()
    validation: ValidationSettings = ValidationSettings()

    @property
    def window(self) -> Literal["auto", "full"]:
        """`auto` where the network learns on windows of the frame, so that windows are part of it."""
        return "auto" if self.batches.windows else "full"


RECIPES: Final[Mapping[RecipeName, Recipe]] = MappingProxyType(
    {
        RecipeName.MODERN: Recipe(),
        # Source: train.py and the paper; see reference.md. Kept: Adam's and Keras' numbers, the batch, all slices. Mended:
        # slices are shuffled over all cases (published: through a buffer of 128), and each flip has probability 1/2
        # (published: both always). Dropout 0.2 is the paper's choice.
        RecipeName.PAPER: Recipe(
            recipe=RecipeName.PAPER,
            network=NetworkSettings(bn_momentum=0.01, dropout=0.2, zero_residual=False),
            length=LengthSettings(epochs=50, steps_per_epoch=0),
            batches=BatchSettings(sampling=Sampling.ALL, tumour_share=0.0, windows=()),
            optimiser=OptimiserSettings(
                name=Optimiser.ADAM,
                learning_rate=1e-4,
                beta2=0.999,
                epsilon=1e-7,
                weight_decay=0.0,
                warmup=0.0,
                decay=Decay.CONSTANT,
            ),
            loss=LossSettings(dice=0.0),
            augmentation=AugmentationSettings(
                flip_y=0.5,
                rotation=0.0,
                scale=0.0,
                shift=0.0,
                contrast=0.0,
                brightness=0.0,
                gamma=0.0,
                bias=0.0,
                noise=0.0,
                blur=0.0,
            ),
            average=AverageSettings(decay=0.0),
        ),
    }
)
