"""The numbers of a training: the two recipes, files that change them, and what such files may not hold."""

import dataclasses
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.training.preparation import Request, fill, settle
from drunet_cli.training.recipe import (
    RECIPES,
    Decay,
    Length,
    Optimiser,
    Recipe,
    RecipeName,
    changed,
    differences,
    encoded,
    read_recipe,
)
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.watcher import Watcher
from tests.cli.small_cohort import write_cases

MODERN: Final = RECIPES[RecipeName.MODERN]
PAPER: Final = RECIPES[RecipeName.PAPER]

# reference.md, "Training" and "Network", which state what train.py and the paper do. Of several values that they give, and of
# what they do not name, the comment says which was taken.
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
    assert tomllib.loads(encoded(PAPER)) == PUBLISHED


def test_modern_is_what_a_recipe_is_unless_told_otherwise() -> None:
    assert Recipe() == MODERN


@pytest.mark.parametrize(("n_slices", "steps"), [(155 * 295, 4572), (10, 1), (19, 1)])  # reference.md: partial batch dropped
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


OTHER_EVERYWHERE: Final = {
    "recipe": "paper",
    "seed": 2**40,
    "network": {"base_width": 3, "bn_epsilon": 1e-3, "bn_momentum": 0.3, "dropout": 0.5, "zero_residual": False},
    "length": {"epochs": 7, "steps": 11, "steps_per_epoch": 3},
    "batches": {"size": 4, "sampling": "all", "tumour_share": 0.25, "windows": [[16, 240], [48, 80]]},
    "optimiser": {"name": "adam", "learning_rate": 1.5e-7, "warmup": 1.0, "decay": "constant", "clip_norm": 1e30},
    "loss": {"cross_entropy": 0.1, "dice": 3.0},
    "augmentation": {"flip_y": 1.0, "rotation": 180.0, "shift": 0.3, "blur": 0.7},
    "average": {"decay": 0.99999},
    "validation": {"every_epochs": 5},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(RecipeName.MODERN, {}), (RecipeName.PAPER, {}), (RecipeName.MODERN, OTHER_EVERYWHERE)],
    ids=["modern", "paper", "changed"],
)
def test_file_of_a_recipe_is_read_back_as_the_same_one(
    name: RecipeName, changes: dict[str, Any], file: Callable[[str], Path]
) -> None:
    recipe = changed(RECIPES[name], changes, where="")
    assert read_recipe(file(encoded(recipe))) == recipe


def test_file_of_a_recipe_holds_every_setting() -> None:
    document = tomllib.loads(encoded(MODERN))
    for section in dataclasses.fields(Recipe):
        value = getattr(MODERN, section.name)
        names = [item.name for item in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else None
        assert names is None or list(document[section.name]) == names


@pytest.mark.parametrize("name", list(RecipeName))
def test_empty_file_is_the_recipe_that_is_asked_for(name: RecipeName, file: Callable[[str], Path]) -> None:
    assert read_recipe(file(""), otherwise=name) == RECIPES[name]


def test_recipe_that_a_file_names_prevails_over_the_one_asked_for(file: Callable[[str], Path]) -> None:
    assert read_recipe(file('recipe = "paper"'), otherwise=RecipeName.MODERN) == PAPER


def test_numbers_of_a_file_replace_those_of_its_recipe_and_no_others(file: Callable[[str], Path]) -> None:
    recipe = read_recipe(file('recipe = "paper"\nseed = 3\n[optimiser]\ndecay = "cosine"\n'))
    other = {"seed": 3, "optimiser": PUBLISHED["optimiser"] | {"decay": "cosine"}}  # type: ignore[operator]
    assert tomllib.loads(encoded(recipe)) == PUBLISHED | other


def test_words_of_a_file_become_what_the_settings_are(file: Callable[[str], Path]) -> None:
    optimiser = read_recipe(file('[optimiser]\nname = "adam"\ndecay = "constant"\n')).optimiser
    assert (type(optimiser.name), type(optimiser.decay)) == (Optimiser, Decay)


def test_whole_number_serves_where_a_fraction_may_be(file: Callable[[str], Path]) -> None:
    rate = read_recipe(file("[optimiser]\nlearning_rate = 1\n")).optimiser.learning_rate
    assert (rate, type(rate)) == (1, float)


def test_options_prevail_over_the_file(file: Callable[[str], Path], tmp_path: Path) -> None:
    config = file('recipe = "paper"\nseed = 5\n[length]\nepochs = 7\n[batches]\nsize = 2\n')
    recipe = _prepared(tmp_path, config=config, changes={"length": {"epochs": 9}})
    assert (recipe.recipe, recipe.seed, recipe.length.epochs, recipe.batches.size) == (RecipeName.PAPER, 5, 9, 2)


def test_recipe_asked_for_serves_a_file_that_names_none(file: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = _prepared(tmp_path, recipe=RecipeName.PAPER, config=file("[length]\nepochs = 7\n"))
    assert (recipe.recipe, recipe.length.epochs, recipe.optimiser) == (RecipeName.PAPER, 7, PAPER.optimiser)


def test_recipe_asked_for_that_is_not_the_files_is_refused(file: Callable[[str], Path], tmp_path: Path) -> None:
    config = file('recipe = "modern"')
    with pytest.raises(MisuseError, match=f"^--recipe paper: {config} is of recipe modern$"):
        _prepared(tmp_path, recipe=RecipeName.PAPER, config=config)


def _prepared(
    tmp_path: Path, *, recipe: RecipeName | None = None, config: Path | None = None, changes: dict[str, Any] | None = None
) -> Recipe:
    """The recipe of a dry run."""
    request = Request(
        run=RunFolder(tmp_path / "run"),
        sources=[write_cases(tmp_path / "cases", 2)],
        recipe=recipe,
        config=config,
        changes=changes or {},
        slices=tmp_path / "slices",
        dry_run=True,
    )
    return fill(settle(request), Watcher()).recipe


WINDOWS: Final = "pairs of multiples of 32 plus 16, from 16 to 240"
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
    "table for a number": (
        "[network.base_width]\nw = 3",
        "network.base_width = {'w': 3}: must be a whole number from 1 to 256",
    ),
    "text for a number": ('[length]\nepochs = "9"', "length.epochs = '9': must be a whole number from 1"),
    "truth for a whole number": ("[length]\nepochs = true", "length.epochs = True: must be a whole number from 1"),
    "truth for a fraction": ("[loss]\ndice = true", "loss.dice = True: must be 0 or above"),
    "fraction for a whole number": ("[batches]\nsize = 2.0", "batches.size = 2.0: must be a whole number from 1"),
    "number for a truth": ("[network]\nzero_residual = 1", "network.zero_residual = 1: is true or false"),
    "date": ("[length]\nsteps = 2020-07-11", "length.steps = datetime.date(2020, 7, 11): must be a whole number from 0"),
    "unknown optimiser": ('[optimiser]\nname = "sgd"', "optimiser.name = 'sgd': is one of adam, adamw"),
    "number for a word": ("[optimiser]\ndecay = 1", "optimiser.decay = 1: is one of constant, cosine"),
    "list for a word": ("[batches]\nsampling = []", "batches.sampling = []: is one of all, balanced"),
    "unknown recipe": ('recipe = "Paper"', "recipe 'Paper': is one of modern, paper"),
    "list for a recipe": ("recipe = []", "recipe []: is one of modern, paper"),
    "number for the windows": ("[batches]\nwindows = 144", "batches.windows = 144: must be " + WINDOWS),
    "one window outside a list": ("[batches]\nwindows = [144, 176]", "batches.windows = [144, 176]: must be " + WINDOWS),
    "window of one side": ("[batches]\nwindows = [[144]]", "batches.windows = ((144,),): must be " + WINDOWS),
    "window of three sides": ("[batches]\nwindows = [[48, 48, 48]]", "batches.windows = ((48, 48, 48),): must be " + WINDOWS),
    "window that is not 32 k + 16": (
        "[batches]\nwindows = [[144, 160]]",
        "batches.windows = ((144, 160),): must be " + WINDOWS,
    ),
    "window beyond the frame": ("[batches]\nwindows = [[144, 272]]", "batches.windows = ((144, 272),): must be " + WINDOWS),
    "window of negative size": ("[batches]\nwindows = [[-16, 48]]", "batches.windows = ((-16, 48),): must be " + WINDOWS),
    "fractions for a window": ("[batches]\nwindows = [[48.0, 48]]", "batches.windows = [[48.0, 48]]: must be " + WINDOWS),
    "truth for a window": ("[batches]\nwindows = [[true, 48]]", "batches.windows = [[True, 48]]: must be " + WINDOWS),
    "one window of many": (
        "[batches]\nwindows = [[48, 48], [50, 48]]",
        "batches.windows = ((48, 48), (50, 48)): must be " + WINDOWS,
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_setting_is_refused_by_file_key_and_what_it_may_be(text: str, message: str, file: Callable[[str], Path]) -> None:
    path = file(text)
    with pytest.raises(MisuseError) as refusal:
        read_recipe(path)
    assert str(refusal.value) == f"{path}: {message}"


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
    for name, value in tomllib.loads(encoded(recipe)).items():
        settings |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return settings


def test_every_number_of_a_recipe_has_a_range() -> None:
    """Else the test below would pass over a new one."""
    assert {key for key, value in _settings(MODERN).items() if type(value) in (int, float)} == OUT_OF_RANGE.keys()


def _nested(key: str, value: float) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


BEYOND: Final = [(key, value) for key, values in OUT_OF_RANGE.items() for value in values if value is not None]
NOT_FINITE: Final = [(key, value) for key in OUT_OF_RANGE for value in (math.nan, math.inf, -math.inf)]


@pytest.mark.parametrize(("key", "value"), BEYOND + NOT_FINITE)
def test_number_beyond_its_range_is_refused(key: str, value: float) -> None:
    with pytest.raises(MisuseError) as refusal:
        changed(MODERN, _nested(key, value), where="x.toml: ")
    assert str(refusal.value).startswith(f"x.toml: {key} = {value}: must be ")


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


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in AT_THE_ENDS.items() for value in values])
def test_number_at_the_end_of_its_range_is_taken(key: str, value: float) -> None:
    recipe: Any = changed(MODERN, _nested(key, value), where="")
    for name in key.split("."):
        recipe = getattr(recipe, name)
    assert recipe == value


def test_whole_number_beyond_any_fraction_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"^loss\.dice = "):
        changed(MODERN, {"loss": {"dice": 10**400}}, where="")


def test_seed_that_torch_does_not_take_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"^seed = "):
        changed(MODERN, {"seed": 2**64}, where="")


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


def test_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CaseError) as refusal:
        read_recipe(tmp_path / "none.toml")
    assert str(refusal.value) == f"{tmp_path}/none.toml: cannot be read: No such file or directory"


def test_folder_for_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CaseError) as refusal:
        read_recipe(tmp_path)
    assert str(refusal.value) == f"{tmp_path}: cannot be read: Is a directory"


def test_recipe_differs_from_itself_in_nothing() -> None:
    assert differences(MODERN, Recipe()) == []


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
