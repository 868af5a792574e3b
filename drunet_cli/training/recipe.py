"""The numbers of a training: two recipes, and the TOML files that change them."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.weights.structure import MAX_BASE_WIDTH


class RecipeName(StrEnum):
    """Where the numbers come from."""

    MODERN = "modern"
    PAPER = "paper"


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
    from drunet_cli.io.geometry import FRAME  # nibabel, which --help does not need

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


Settings = TypeVar("Settings")


def changed(recipe: Recipe, changes: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe with some numbers replaced. changes: nested as the TOML file is.

    Raises MisuseError that begins with `where`.
    """
    return _changed(recipe, changes, where, "")


def read_recipe(path: Path, *, otherwise: RecipeName = RecipeName.MODERN) -> Recipe:
    """The recipe of a TOML file: what it leaves out is that of the `recipe` it names, else of `otherwise`.

    Raises CaseError for a file that cannot be read, MisuseError for what it may not hold.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise CaseError(f"{path}: is not TOML: {error}") from error
    name = document.get("recipe", otherwise)
    if name not in list(RecipeName):
        raise MisuseError(f"{path}: recipe {name!r}: is one of {', '.join(RecipeName)}")
    return changed(RECIPES[RecipeName(name)], document, where=f"{path}: ")


def encoded(recipe: Recipe) -> str:
    """The recipe as TOML that `read_recipe` reads back as an equal one."""
    lines, tables = [], []
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            tables += [
                "",
                f"[{item.name}]",
                *(f"{inner.name} = {_toml(getattr(value, inner.name))}" for inner in fields(value)),
            ]
        else:
            lines.append(f"{item.name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The numbers in which two recipes differ, as lines such as `length.steps: 100, not 200`."""
    first, second = tomllib.loads(encoded(one)), tomllib.loads(encoded(other))
    return [f"{key}: {value}, not {other_value}" for key, value, other_value in _differing(first, second, "")]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], before: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key, value in one.items():
        if isinstance(value, dict):
            found += _differing(value, other[key], f"{before}{key}.")
        elif value != other[key]:
            found.append((before + key, value, other[key]))
    return found


def _toml(value: Any) -> str:
    """Numbers, booleans, plain words and lists are written alike in TOML and JSON."""
    return json.dumps(value)


def _changed(settings: Settings, changes: Mapping[str, Any], where: str, before: str) -> Settings:
    known = {item.name: item for item in fields(settings)}  # type: ignore[arg-type]
    values = {}
    for name, value in changes.items():
        key = f"{before}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; perhaps {before}{near[0]}" if near else f"; there are {', '.join(known)}"
            raise MisuseError(f"{where}{key}: no such setting{hint}")
        old = getattr(settings, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise MisuseError(f"{where}{key}: is a table of settings, [{key}]")
            values[name] = _changed(old, value, where, f"{key}.")
        else:
            values[name] = _checked(value, old, known[name].metadata, f"{where}{key}")
    return replace(settings, **values)  # type: ignore[type-var]


def _checked(value: Any, old: Any, limits: Mapping[str, Any], what: str) -> Any:
    """The value in the type of the old one. Raises MisuseError."""
    if isinstance(old, StrEnum):
        kinds = type(old)
        if value not in list(kinds):
            raise MisuseError(f"{what} = {value!r}: is one of {', '.join(kinds)}")
        return kinds(value)
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise MisuseError(f"{what} = {value!r}: is true or false")
        return value
    right_type = False
    if isinstance(old, tuple):
        right_type = isinstance(value, list | tuple) and all(
            isinstance(item, list | tuple) and all(type(size) is int for size in item) for item in value
        )
        value = tuple(tuple(item) for item in value) if right_type else value
    elif isinstance(old, int):
        right_type = type(value) is int
    elif isinstance(old, float) and type(value) in (int, float):
        with suppress(OverflowError):  # of a whole number beyond all fractions
            value = float(value)
        right_type = isinstance(value, float) and math.isfinite(value)
    if not right_type or not limits["allowed"](value):
        raise MisuseError(f"{what} = {value!r}: must be {limits['range']}")
    return value


@dataclass(frozen=True)
class Length:
    """steps_per_epoch: of all epochs but perhaps the last, which may be shorter."""

    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, recipe: Recipe, *, n_slices: int) -> "Length":
        """n_slices: of all cases to learn from. Raises MisuseError when they do not make one batch."""
        steps_of_all_slices = n_slices // recipe.batches.size
        if steps_of_all_slices == 0:
            raise MisuseError(f"{n_slices} slices do not make one batch of {recipe.batches.size}; give a smaller --batch-size")
        steps_per_epoch = recipe.length.steps_per_epoch or steps_of_all_slices
        n_steps = recipe.length.steps or recipe.length.epochs * steps_per_epoch
        return cls(min(steps_per_epoch, n_steps), n_steps)

    @property
    def n_epochs(self) -> int:
        """The last one counted however short it is."""
        return -(-self.n_steps // self.steps_per_epoch)
