"""The settings of a training: its numbers (two recipes, and TOML files that change them), and those of one command."""

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt, Predicate

from drunet_cli.errors import CaseError, MisuseError, fault_in_words
from drunet_cli.io.naming import BUILT_IN, Naming
from drunet_cli.network.engine import WINDOW_REST, WINDOW_STRIDE, Precision
from drunet_cli.weights.structure import MAX_BASE_WIDTH

if TYPE_CHECKING:
    import numpy as np
    from pydantic import TypeAdapter

    from drunet_cli.weights.checkpoint import Checkpoint


class RecipeName(StrEnum):
    """The recipes that drunet has."""

    MODERN = "modern"
    PAPER = "paper"


class Optimiser(StrEnum):
    """Adam as published, or with decoupled weight decay."""

    ADAM = "adam"
    ADAMW = "adamw"


class Sampling(StrEnum):
    """The choice of the slices of a batch."""

    ALL = "all"  # every slice of every case once an epoch, in random order
    BALANCED = "balanced"  # every case as often as any other, slices with tumour more often than others


class Decay(StrEnum):
    """How the learning rate falls after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to 0 at the end


# The values that a setting may have; checked where a recipe is read.
_Positive = Annotated[float, Gt(0)]
_NotNegative = Annotated[float, Ge(0)]
_Share = Annotated[float, Ge(0), Le(1)]
_BelowOne = Annotated[float, Ge(0), Lt(1)]
_FromZero = Annotated[int, Ge(0)]
_FromOne = Annotated[int, Ge(1)]
_Windows: TypeAlias = tuple[tuple[int, int], ...]


def _window_sides() -> Sequence[int]:
    from drunet_cli.io.geometry import FRAME  # nibabel, which --help does not need

    return range(WINDOW_REST, FRAME + 1, WINDOW_STRIDE)


def _are_windows(windows: _Windows) -> bool:
    return all(side in _window_sides() for window in windows for side in window)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network at the first step.

    bn_momentum: as PyTorch defines momentum; Keras' momentum is 1 less this. zero_residual: every residual branch begins as 0.
    """

    base_width: Annotated[int, Ge(1), Le(MAX_BASE_WIDTH)] = 16
    bn_epsilon: Annotated[float, Gt(0), Lt(1)] = 1e-5
    bn_momentum: _Share = 0.1
    dropout: _BelowOne = 0.0
    zero_residual: bool = True


@dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """The length of the training.

    steps: number of steps of the whole training; with 0, `epochs` decides. steps_per_epoch: 0 for one pass over all slices.
    """

    epochs: _FromOne = 100
    steps: _FromZero = 0
    steps_per_epoch: _FromZero = 250


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """The batch of one step.

    size: number of slices, over all processes. tumour_share: share of the slices that are drawn for a tumour class, when the
    sampling is balanced. windows: sizes [X, Y]; each batch draws one of them. An empty list means whole frames.
    """

    size: _FromOne = 10
    sampling: Sampling = Sampling.BALANCED
    tumour_share: _Share = 0.7
    windows: Annotated[_Windows, Predicate(_are_windows)] = ((112, 144), (144, 176), (144, 208))


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """The optimiser.

    learning_rate: the highest of the training. warmup: share of all steps during which the learning rate rises to that height.
    clip_norm: longest norm of the gradient, 0 for no limit.
    """

    name: Optimiser = Optimiser.ADAMW
    learning_rate: _Positive = 1e-3
    beta1: _BelowOne = 0.9
    beta2: _BelowOne = 0.99
    epsilon: _Positive = 1e-8
    weight_decay: _NotNegative = 0.01
    warmup: _Share = 0.05
    decay: Decay = Decay.COSINE
    clip_norm: _NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the two terms of the loss: cross-entropy of the four classes, and soft Dice of WT, TC and ET."""

    cross_entropy: _NotNegative = 1.0
    dice: _NotNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """The variations of images. Everything is drawn for each slice; 0 switches a variation off.

    flip_x, flip_y: probability of a flip of left and right, of front and back.
    rotation (degrees), scale, shift (shares of the size): largest value of a uniform draw in both directions.
    contrast (share of the gain), brightness (share of the range 0-1), gamma (logarithm of the exponent): SD of a normal draw
    for each modality. bias: SD of the share by which a smooth field differs between centre and edge.
    noise (SD as a share of the range 0-1), blur (SD in pixels): largest value of a uniform draw.
    """

    flip_x: _Share = 0.5
    flip_y: _Share = 0.0
    rotation: Annotated[float, Ge(0), Le(180)] = 10.0
    scale: _BelowOne = 0.1
    shift: _BelowOne = 0.0
    contrast: _BelowOne = 0.1
    brightness: _BelowOne = 0.05
    gamma: _BelowOne = 0.1
    bias: _BelowOne = 0.05
    noise: _BelowOne = 0.05
    blur: _Share = 0.0


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """The running average of the weights, which is validated and kept. decay: 0 keeps the weights themselves."""

    decay: _BelowOne = 0.999


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """The epochs that end with a segmentation of the held-out cases: every so many, and the last one."""

    every_epochs: _FromOne = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training. recipe: the recipe that the numbers were taken from, before any was changed."""

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # also for the sections

    recipe: RecipeName = RecipeName.MODERN
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
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
        # Source: the published train.py and the paper. Adam's and Keras' numbers, the batch and the use of all slices are as
        # published. Two things are mended: slices are shuffled over all cases (published: through a buffer of 128), and each
        # flip has probability 1/2 (published: every slice is flipped both ways). Dropout 0.2 is the paper's choice.
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


def changed(recipe: Recipe, changes: Mapping[str, Any], *, where: str) -> Recipe:
    """Return the recipe with some numbers replaced. changes: nested as the tables of a TOML file.

    where: begins each line of the MisuseError that unknown and wrong numbers raise.
    """
    from pydantic import ValidationError

    document = asdict(recipe)
    for name, value in changes.items():
        section = document.get(name)
        document[name] = section | value if isinstance(section, dict) and isinstance(value, dict) else value
    try:
        return _reader().validate_json(json.dumps(document, default=str))  # TOML has dates, which no setting is
    except ValidationError as error:
        first, *others = dict.fromkeys(f"{where}{_in_words(fault, document)}" for fault in error.errors())
        raise MisuseError(first, details=tuple(others)) from error


@functools.cache
def _reader() -> "TypeAdapter[Recipe]":
    from pydantic import TypeAdapter  # takes longer than all else that --help imports

    return TypeAdapter(Recipe)


def _in_words(fault: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Say which setting of the document has which value, and what is allowed. fault: as pydantic reports it."""
    if not fault["loc"]:
        return "is nested too deeply for a recipe"
    *table, name = fault["loc"][:2]  # what follows counts the windows
    key = ".".join([*table, name])
    if fault["type"] == "dataclass_type":
        return f"{key}: is a table of settings, [{key}]"
    if fault["type"] == "unexpected_keyword_argument":
        known = [item.name for item in fields(getattr(Recipe(), table[0]) if table else Recipe)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"perhaps {'.'.join([*table, *near])}" if near else f"there are {', '.join(known)}"
        return f"{key}: no such setting; {hint}"
    if key == "batches.windows":
        sides = ", ".join(map(str, _window_sides()))
        return f"{key} = {document['batches']['windows']!r}: must be a list of pairs of {sides}"
    return fault_in_words(fault)


def read_recipe(path: Path, *, otherwise: RecipeName = RecipeName.MODERN) -> Recipe:
    """Read a TOML file. Numbers that the file leaves out are those of the recipe that it names, else of `otherwise`.

    Raises CaseError for a file that cannot be read, MisuseError for a setting that is unknown or out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # neither TOML nor UTF-8
        raise CaseError(f"{path}: is not TOML: {error}") from error
    named = next((name for name in RecipeName if name == document.get("recipe")), otherwise)
    return changed(RECIPES[named], document, where=f"{path}: ")


def recipe_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML; `read_recipe` makes an equal recipe of it."""
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
    """Return the numbers in which two recipes differ, as lines such as `length.steps: 100, not 200`."""
    first, second = tomllib.loads(recipe_toml(one)), tomllib.loads(recipe_toml(other))
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
    """Write a value: TOML and JSON write numbers, booleans, plain words and lists alike."""
    return json.dumps(value)


@dataclass(frozen=True)
class Length:
    """The length of a training. The last epoch may be shorter than steps_per_epoch."""

    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, recipe: Recipe, *, n_slices: int) -> "Length":
        """The length by a recipe. n_slices: of all cases to learn from. Raises MisuseError when they do not fill one batch."""
        steps_of_all_slices = n_slices // recipe.batches.size
        if steps_of_all_slices == 0:
            raise MisuseError(f"{n_slices} slices do not make one batch of {recipe.batches.size}; give a smaller --batch-size")
        steps_per_epoch = recipe.length.steps_per_epoch or steps_of_all_slices
        n_steps = recipe.length.steps or recipe.length.epochs * steps_per_epoch
        return cls(min(steps_per_epoch, n_steps), n_steps)

    @property
    def n_epochs(self) -> int:
        """Number of epochs, the last one counted however short it is."""
        return -(-self.n_steps // self.steps_per_epoch)


class Stream(IntEnum):
    """Random draws of one training that are independent of one another."""

    ORDER = 1
    WINDOWS = 2
    AUGMENTATION = 3
    DEVICE = 4
    SPLIT = 5


def generator(seed: int, stream: Stream, index: int = 0) -> "np.random.Generator":
    """Return the generator of one stream at one step or epoch. A resumed training draws the same numbers from it."""
    import numpy as np  # --help does without

    return np.random.default_rng([seed, stream, index])


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of one `drunet train`: built once in `cli`, handed down whole."""

    output: Path
    """Folder of the run."""
    sources: Sequence[Path]
    """Folders and tables of cases. Empty where a training is resumed from its slices alone."""
    naming: Naming = BUILT_IN
    """How the files of a case are named."""
    slices: Path
    """Folder that keeps the cases as slices."""
    recipe: RecipeName | None = None
    """The recipe to begin with; None for that of `config`, of the run to resume, or `modern`."""
    config: Path | None = None
    """TOML file of numbers that differ from the recipe."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that were given as options, nested as the tables of the TOML file."""
    val_fraction: float | None = None
    """Share of the cases to hold out, by default 0.2. At most one of val_fraction, folds and split_file is given."""
    folds: int | None = None
    """Number of folds of a cross-validation, for which `output` is the folder of all."""
    fold: int | None = None
    """The one fold to train, counted from 1; None for all."""
    split_file: Path | None = None
    """JSON file that names the cases."""
    init: "Checkpoint | None" = None
    """Weights to begin with; None for new ones."""
    resume: bool = False
    """Continue the training in `output`, or begin it if there is none."""
    overwrite: bool = False
    """Replace the training in `output`."""
    dry_run: bool = False
    """Check everything, write nothing."""
    device: str = "auto"
    """Device by name."""
    precision: Precision = Precision.AUTO
    """Number format of the network's arithmetic."""
    deterministic: bool = False
    """Use only algorithms that give the same bytes in every run."""
    threads: int = 1
    """CPU threads that compute."""
    n_jobs: int = 1
    """Processes that read cases."""
    peer_timeout_min: float = 30.0
    """How long to wait for the other processes of this training, in minutes."""
    arguments: Sequence[str] = ()
    """The words of the command line, for the record."""
