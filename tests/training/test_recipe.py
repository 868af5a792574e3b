"""The numbers of a training: the two recipes, files that change them, and what such files may not hold."""

import dataclasses
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.training.recipe import (
    RECIPES,
    Decay,
    Length,
    Optimiser,
    Recipe,
    RecipeName,
    changed,
    differences,
    read_recipe,
    recipe_toml,
)

MODERN: Final = RECIPES[RecipeName.MODERN]
PAPER: Final = RECIPES[RecipeName.PAPER]

# What the published train.py and the paper do; where they give several values, or none, the comment says which was taken.
PUBLISHED: Final = {
    "recipe": "paper",
    "seed": 0,
    "network": {
        "base_width": 16,
        "bn_epsilon": 1e-5,  # train.py's, which takes effect there
        "bn_momentum": 0.01,  # Keras' 0.99
        "dropout": 0.2,  # the paper's best of three; the code says 0.5
        "zero_residual": False,  # He-normal kernels everywhere
    },
    "length": {"epochs": 50, "steps": 0, "steps_per_epoch": 0},  # all slices, the last partial batch dropped
    "batches": {"size": 10, "sampling": "all", "tumour_share": 0.0, "windows": []},  # whole frames
    "optimiser": {
        "name": "adam",
        "learning_rate": 1e-4,
        "beta1": 0.9,  # Keras' defaults, as beta2
        "beta2": 0.999,
        "epsilon": 1e-7,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "decay": "constant",
        "clip_norm": 0.0,
    },
    "loss": {"cross_entropy": 1.0, "dice": 0.0},
    "augmentation": {
        "flip_x": 0.5,  # each with probability 1/2, where the code's bug applies both always
        "flip_y": 0.5,
        "rotation": 0.0,
        "scale": 0.0,
        "shift": 0.0,
        "contrast": 0.0,
        "brightness": 0.0,
        "gamma": 0.0,
        "bias": 0.0,
        "noise": 0.0,
        "blur": 0.0,
    },
    "average": {"decay": 0.0},
    "validation": {"every_epochs": 1},
}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a TOML file."""
    return lambda text: written(tmp_path / "recipe.toml", text)


def test_paper_recipe_holds_the_published_numbers_and_no_others() -> None:
    assert tomllib.loads(recipe_toml(PAPER)) == PUBLISHED


def test_modern_is_what_a_recipe_is_unless_told_otherwise() -> None:
    assert Recipe() == MODERN


@pytest.mark.parametrize(("n_slices", "steps"), [(155 * 295, 4572), (10, 1), (19, 1)])  # a partial batch is dropped
def test_an_epoch_of_the_paper_is_all_batches_that_the_slices_fill(n_slices: int, steps: int) -> None:
    length = Length.of(PAPER, n_slices=n_slices)
    assert (length.steps_per_epoch, length.n_epochs, length.n_steps) == (steps, 50, 50 * steps)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (250, 1), (251, 2), (500, 2)])
def test_steps_settle_the_length_whatever_the_epochs_are(steps: int, epochs: int) -> None:
    length = Length.of(changed(MODERN, {"length": {"steps": steps}}, where=""), n_slices=1000)
    assert (length.n_steps, length.n_epochs) == (steps, epochs)


def test_slices_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(MisuseError, match=r"^9 slices do not make one batch of 10; give a smaller --batch-size$"):
        Length.of(PAPER, n_slices=9)


shares = st.floats(0, 1, exclude_max=True)
positive = st.floats(min_value=1e-30, max_value=1e30)
window_sides = st.integers(0, 7).map(lambda n: 32 * n + 16)
recipes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "network": st.fixed_dictionaries(
            {"base_width": st.integers(1, 256), "dropout": shares, "zero_residual": st.booleans()}
        ),
        "length": st.fixed_dictionaries({"epochs": st.integers(1, 10**6), "steps": st.integers(0, 10**9)}),
        "batches": st.fixed_dictionaries(
            {
                "sampling": st.sampled_from(["all", "balanced"]),
                "windows": st.lists(st.tuples(window_sides, window_sides).map(list), max_size=3),
            }
        ),
        "optimiser": st.fixed_dictionaries({"name": st.sampled_from(["adam", "adamw"]), "learning_rate": positive}),
        "augmentation": st.fixed_dictionaries({"rotation": st.floats(0, 180), "blur": shares}),
    }
)


@given(name=st.sampled_from(RecipeName), changes=recipes)
def test_file_of_a_recipe_is_read_back_as_the_same_one(
    name: RecipeName, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = changed(RECIPES[name], changes, where="")
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    assert read_recipe(written(path, recipe_toml(recipe))) == recipe
    assert differences(recipe, recipe) == []


def test_file_of_a_recipe_holds_every_setting() -> None:
    document = tomllib.loads(recipe_toml(MODERN))
    for section in dataclasses.fields(Recipe):
        value = getattr(MODERN, section.name)
        names = [item.name for item in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else None
        assert names is None or list(document[section.name]) == names


@pytest.mark.parametrize("name", list(RecipeName))
def test_empty_file_is_the_recipe_that_is_asked_for(name: RecipeName, file: Callable[[str], Path]) -> None:
    assert read_recipe(file(""), otherwise=name) == RECIPES[name]
    assert read_recipe(file('recipe = "paper"'), otherwise=name) == PAPER


def test_numbers_of_a_file_replace_those_of_its_recipe_and_no_others(file: Callable[[str], Path]) -> None:
    recipe = read_recipe(file('recipe = "paper"\nseed = 3\n[optimiser]\ndecay = "cosine"\n'))
    other = {"seed": 3, "optimiser": PUBLISHED["optimiser"] | {"decay": "cosine"}}  # type: ignore[operator]
    assert tomllib.loads(recipe_toml(recipe)) == PUBLISHED | other


def test_values_of_a_file_become_what_the_settings_are(file: Callable[[str], Path]) -> None:
    optimiser = read_recipe(file('[optimiser]\nname = "adam"\ndecay = "constant"\nlearning_rate = 1\n')).optimiser
    assert (type(optimiser.name), type(optimiser.decay), type(optimiser.learning_rate)) == (Optimiser, Decay, float)


WRONG_WINDOWS: Final = {
    "number": "144",
    "one window outside a list": "[144, 176]",
    "one side": "[[144]]",
    "three sides": "[[48, 48, 48]]",
    "not 32 k + 16": "[[144, 160]]",
    "beyond the frame": "[[144, 272]]",
    "negative": "[[-16, 48]]",
    "fraction": "[[48.0, 48]]",
    "truth": "[[True, 48]]",
    "one of many": "[[48, 48], [50, 48]]",
}
REFUSED: Final = {
    "setting one letter off": (
        "[optimiser]\nlearning_rat = 1e-3",
        "optimiser.learning_rat: no such setting; perhaps optimiser.learning_rate",
    ),
    "table one letter off": ("[optimizer]\nbeta1 = 0.9", "optimizer: no such setting; perhaps optimiser"),
    "setting like no other": (
        "[loss]\nfocal_gamma = 2",
        "loss.focal_gamma: no such setting; there are cross_entropy, dice",
    ),
    "setting outside its table": (
        "epochs = 3",
        "epochs: no such setting; there are recipe, seed, network, length, batches, optimiser, loss, augmentation, average, "
        "validation",
    ),
    "section that is a number": ("optimiser = 3", "optimiser: is a table of settings, [optimiser]"),
    "section that is several tables": ("[[loss]]\ndice = 1", "loss: is a table of settings, [loss]"),
    "table for a number": ("[network.base_width]\nw = 3", "network.base_width = {'w': 3}: must be a valid integer"),
    "text for a number": ('[length]\nepochs = "9"', "length.epochs = '9': must be a valid integer"),
    "truth for a whole number": ("[length]\nepochs = true", "length.epochs = True: must be a valid integer"),
    "truth for a fraction": ("[loss]\ndice = true", "loss.dice = True: must be a valid number"),
    "fraction for a whole number": ("[batches]\nsize = 2.0", "batches.size = 2.0: must be a valid integer"),
    "number for a truth": ("[network]\nzero_residual = 1", "network.zero_residual = 1: must be a valid boolean"),
    "date": ("[length]\nsteps = 2020-07-11", "length.steps = '2020-07-11': must be a valid integer"),
    "unknown optimiser": ('[optimiser]\nname = "sgd"', "optimiser.name = 'sgd': must be 'adam' or 'adamw'"),
    "number for a word": ("[optimiser]\ndecay = 1", "optimiser.decay = 1: must be 'constant' or 'cosine'"),
    "list for a word": ("[batches]\nsampling = []", "batches.sampling = []: must be 'all' or 'balanced'"),
    "unknown recipe": ('recipe = "Paper"', "recipe = 'Paper': must be 'modern' or 'paper'"),
    "list for a recipe": ("recipe = []", "recipe = []: must be 'modern' or 'paper'"),
    "number too small": ("[length]\nepochs = 0", "length.epochs = 0: must be greater than or equal to 1"),
    "lists within lists": (f"seed = {'[' * 250}{']' * 250}", "is nested too deeply for a recipe"),
    **{
        f"windows, {name}": (
            f"[batches]\nwindows = {windows.lower()}",
            f"batches.windows = {windows}: must be a list of pairs of 16, 48, 80, 112, 144, 176, 208, 240",
        )
        for name, windows in WRONG_WINDOWS.items()
    },
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_setting_is_refused_by_file_key_and_what_it_may_be(text: str, message: str, file: Callable[[str], Path]) -> None:
    path = file(text)
    with pytest.raises(MisuseError) as refusal:
        read_recipe(path)
    assert (str(refusal.value), refusal.value.details) == (f"{path}: {message}", ())


def test_several_wrong_settings_are_told_one_a_line(file: Callable[[str], Path]) -> None:
    path = file("sead = 1\n[optimiser]\nbeta1 = 1\n[loss]\ndice = -1\n")
    with pytest.raises(MisuseError) as refusal:
        read_recipe(path)
    keys = [line.removeprefix(f"{path}: ").partition(" ")[0] for line in (str(refusal.value), *refusal.value.details)]
    assert keys == ["optimiser.beta1", "loss.dice", "sead:"]


# The last value below what is allowed, and the first above; None where there is none. From what each setting means.
OUT_OF_RANGE: Final[dict[str, tuple[float | None, float | None]]] = {
    "seed": (-1, None),
    "network.base_width": (0, 257),
    "network.bn_epsilon": (0.0, 1.0),
    "network.bn_momentum": (-0.1, 1.1),
    "network.dropout": (-0.1, 1.0),
    "length.epochs": (0, None),
    "length.steps": (-1, None),
    "length.steps_per_epoch": (-1, None),
    "batches.size": (0, None),
    "batches.tumour_share": (-0.1, 1.1),
    "optimiser.learning_rate": (0.0, None),
    "optimiser.beta1": (-0.1, 1.0),
    "optimiser.beta2": (-0.1, 1.0),
    "optimiser.epsilon": (0.0, None),
    "optimiser.weight_decay": (-0.1, None),
    "optimiser.warmup": (-0.1, 1.1),
    "optimiser.clip_norm": (-0.1, None),
    "loss.cross_entropy": (-0.1, None),
    "loss.dice": (-0.1, None),
    "augmentation.flip_x": (-0.1, 1.1),
    "augmentation.flip_y": (-0.1, 1.1),
    "augmentation.rotation": (-0.1, 180.1),
    "augmentation.scale": (-0.1, 1.0),
    "augmentation.shift": (-0.1, 1.0),
    "augmentation.contrast": (-0.1, 1.0),
    "augmentation.brightness": (-0.1, 1.0),
    "augmentation.gamma": (-0.1, 1.0),
    "augmentation.bias": (-0.1, 1.0),
    "augmentation.noise": (-0.1, 1.0),
    "augmentation.blur": (-0.1, None),
    "average.decay": (-0.1, 1.0),
    "validation.every_epochs": (0, None),
}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its key."""
    settings: dict[str, Any] = {}
    for name, value in tomllib.loads(recipe_toml(recipe)).items():
        settings |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return settings


def test_every_number_of_a_recipe_has_a_range() -> None:
    """Else the test below would pass over a new one."""
    assert {key for key, value in _settings(MODERN).items() if type(value) in (int, float)} == OUT_OF_RANGE.keys()


def _nested(key: str, value: float) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def is_taken(key: str, value: float) -> bool:
    """Whether a recipe may have this number; a refusal must name its key."""
    try:
        changed(MODERN, _nested(key, value), where="x.toml: ")
    except MisuseError as refusal:
        return not str(refusal).startswith(f"x.toml: {key} = {value}: must be ")
    return True


def test_number_beyond_its_range_is_refused_by_its_key() -> None:
    beyond = [(key, value) for key, values in OUT_OF_RANGE.items() for value in values if value is not None]
    not_finite = [(key, value) for key in OUT_OF_RANGE for value in (math.nan, math.inf, -math.inf)]
    too_large = [("loss.dice", 10**400), ("seed", 2**64)]
    assert [pair for pair in beyond + not_finite + too_large if is_taken(*pair)] == []


AT_THE_ENDS: Final = {
    "network.base_width": (1, 256),
    "network.bn_momentum": (0.0, 1.0),
    "network.dropout": (0.0, 0.999),
    "batches.tumour_share": (0.0, 1.0),
    "optimiser.warmup": (0.0, 1.0),
    "augmentation.rotation": (0.0, 180.0),
    "average.decay": (0.0, 0.99999),
    "length.steps": (0, 10**9),
    "optimiser.learning_rate": (1e-12, 1e6),
}


def test_number_at_the_end_of_its_range_is_taken() -> None:
    assert [(key, value) for key, values in AT_THE_ENDS.items() for value in values if not is_taken(key, value)] == []


@pytest.mark.parametrize("content", [b"[optimiser\n", b"seed 3", b"seed = 1\nseed = 2", b"\xff\xfe", b'recipe = "\xe9"', b"\0"])
def test_file_that_is_no_toml_in_utf_8_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(CaseError) as refusal:
        read_recipe(path)
    assert str(refusal.value).startswith(f"{path}: is not TOML: ")


def test_file_of_endless_brackets_is_refused(file: Callable[[str], Path]) -> None:
    with pytest.raises(CaseError, match="is not TOML"):
        read_recipe(file("seed = " + "[" * 20_000))


@pytest.mark.parametrize(("name", "reason"), [("none.toml", "No such file or directory"), ("", "Is a directory")])
def test_file_that_cannot_be_read_is_refused_by_its_name(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError) as refusal:
        read_recipe(tmp_path / name)
    assert str(refusal.value) == f"{tmp_path / name}: cannot be read: {reason}"


def test_differences_name_each_number_with_both_values() -> None:
    other = changed(MODERN, {"seed": 4, "length": {"steps": 200}, "batches": {"windows": [[48, 80]]}}, where="")
    assert differences(other, MODERN) == [
        "seed: 4, not 0",
        "length.steps: 200, not 0",
        "batches.windows: [[48, 80]], not [[112, 144], [144, 176], [144, 208]]",
    ]


def test_differences_of_the_recipes_are_all_that_the_paper_does_otherwise() -> None:
    published, modern = _settings(PAPER), _settings(MODERN)
    unlike = [f"{key}: {value}, not {modern[key]}" for key, value in published.items() if value != modern[key]]
    assert differences(PAPER, MODERN) == unlike


@pytest.mark.parametrize(("recipe", "window"), [(MODERN, "auto"), (PAPER, "full")], ids=["modern", "paper"])
def test_recipe_of_windows_says_that_they_are_part_of_the_network(recipe: Recipe, window: str) -> None:
    assert recipe.window == window
