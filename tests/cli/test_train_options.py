"""What `drunet train` refuses before it learns, and what a dry run says that it would do."""

import io
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest
from typer.main import get_command

from drunet_cli.cli.app import app, main
from tests.cli.small_cohort import N_SLICES, contents, save, segmentation, spoil, write_case, write_cases
from tests.cli.test_startup import outcome
from tests.support import GOLDEN_WEIGHTS, Drunet

Captured = pytest.CaptureFixture[str]
Outcome = tuple[int, str, str]
Train = Callable[..., Outcome]

N_CASES: Final = 4
NAMES: Final = {f"case_{n}" for n in range(N_CASES)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that no test changes."""
    return write_cases(tmp_path_factory.mktemp("cohort") / "cases", N_CASES)


def _began(_session: object) -> bool:
    raise AssertionError("a training begins that should have been refused")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Train:
    """`drunet train` in this process, in tmp_path, to its first step; gives its code, stdout and stderr."""
    monkeypatch.setattr("drunet_cli.training.session.run", _began)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Outcome:
        code = main(["train", "--jobs", "1", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def plan(train: Train, cohort: Path) -> Callable[..., list[dict[str, Any]]]:
    """The objects of a dry run on the cohort: one a case, and one of the whole."""

    def run(*arguments: str | Path) -> list[dict[str, Any]]:
        code, out, error = train(cohort, "-o", "run", "--dry-run", "--json", *arguments)
        assert code == 0, error
        return [json.loads(line) for line in out.splitlines()]

    return run


def held_out(documents: list[dict[str, Any]]) -> set[str]:
    return {document["case"] for document in documents if document.get("split") == "validation"}


MISUSE: Final = {
    "no RUN": (["cases"], "missing -o: name a folder for the run"),
    "no cases": (["-o", "run"], "missing CASES_OR_PNG_DIRS: name folders or tables of cases, or --resume a run"),
    "an empty path": (["", "-o", "run"], "CASES: an empty path; an unset variable?"),
    "nothing to resume": (["-o", "run", "--resume"], "run: there is no training to resume; name the cases to learn from"),
    "resume and overwrite": (
        ["cases", "-o", "run", "--resume", "--overwrite"],
        "--resume and --overwrite exclude one another",
    ),
    "epochs and steps": (["cases", "-o", "run", "--epochs", "2", "--steps", "9"], "--epochs and --steps exclude one another"),
    "share and folds": (
        ["cases", "-o", "run", "--val-fraction", "0.5", "--folds", "3", "--fold", "1"],
        "--val-fraction and --folds exclude one another",
    ),
    "share and file": (
        ["cases", "-o", "run", "--val-fraction", "0.5", "--split", "split.json"],
        "--val-fraction and --split exclude one another",
    ),
    "all three": (
        ["cases", "-o", "run", "--val-fraction", "0", "--folds", "3", "--fold", "1", "--split", "split.json"],
        "--val-fraction and --folds and --split exclude one another",
    ),
    "folds without fold": (
        ["cases", "-o", "run", "--folds", "3"],
        "--folds and --fold belong together: how many folds, and which of them is held out",
    ),
    "fold without folds": (
        ["cases", "-o", "run", "--fold", "1"],
        "--folds and --fold belong together: how many folds, and which of them is held out",
    ),
    "fold beyond folds": (
        ["cases", "-o", "run", "--folds", "3", "--fold", "4"],
        "--fold 4: there are 3 folds, counted from 1",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_told_in_one_line_and_nothing_is_written(
    arguments: list[str], message: str, train: Train, tmp_path: Path
) -> None:
    assert train(*arguments) == (2, "", f"Error: {message}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-o", ""),
        ("--slices-dir", ""),
        ("--recipe", "published"),
        ("--base-width", "0"),
        ("--epochs", "0"),
        ("--steps", "0"),
        ("--batch-size", "0"),
        ("--learning-rate", "fast"),
        ("--dropout", "1"),
        ("--seed", "-1"),
        ("--dropout", "nan"),
        ("--val-fraction", "1.01"),
        ("--val-fraction", "nan"),
        ("--folds", "1"),
        ("--fold", "0"),
        ("--device", "tpu"),
        ("--precision", "int8"),
        ("--threads", "0"),
        ("--jobs", "0"),
    ],
)
def test_option_beyond_its_range_is_named(option: str, value: str, train: Train) -> None:
    code, out, error = train("cases", "-o", "run", option, value)
    assert (code, out) == (2, "")
    assert f"'{option}'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--base-width", "1000", "network.base_width = 1000: must be a whole number from 1 to 256"),
        ("--learning-rate", "0", "optimiser.learning_rate = 0.0: must be above 0"),
        ("--learning-rate", "nan", "optimiser.learning_rate = nan: must be above 0"),
        ("--channels", "t1,t2", "--channels"),
        ("--pattern", "t9=*.nii", "--pattern"),
    ],
)
def test_option_that_makes_no_recipe_or_naming_is_refused(
    option: str, value: str, message: str, train: Train, cohort: Path, tmp_path: Path
) -> None:
    code, out, error = train(cohort, "-o", "run", option, value)
    assert (code, out) == (2, "")
    assert error.startswith(f"Error: {message}")
    assert not list(tmp_path.iterdir())


def test_precision_that_the_device_cannot_train_in_is_refused_by_a_dry_run(train: Train, cohort: Path) -> None:
    assert train(cohort, "-o", "run", "--dry-run", "--device", "cpu", "--precision", "float16")[0] == 2


def test_more_folds_than_cases_are_refused(train: Train, cohort: Path) -> None:
    assert train(cohort, "-o", "run", "--folds", "5", "--fold", "1") == (
        2,
        "",
        "Error: --folds 5: there are fewer cases than that (4)\n",
    )


def test_single_case_cannot_be_learnt_from_and_held_out(train: Train, cohort: Path, tmp_path: Path) -> None:
    code, out, error = train(cohort / "case_0", "-o", "run")
    assert (code, out) == (2, "")
    assert "--val-fraction 0" in error
    assert not list(tmp_path.iterdir())


def test_slices_that_fill_no_batch_are_refused_by_a_dry_run(train: Train, cohort: Path) -> None:
    code, out, error = train(cohort, "-o", "run", "--dry-run", "--batch-size", "19")
    assert (code, out, error) == (
        2,
        "",
        "Error: 18 slices do not make one batch of 19; give a smaller --batch-size\n",
    )


BAD_CONFIGS: Final = {
    "unknown key": ("[optimiser]\nlerning_rate = 1\n", 2, "optimiser.lerning_rate: no such setting; perhaps"),
    "out of range": ("[length]\nepochs = 0\n", 2, "length.epochs = 0: must be a whole number from 1"),
    "unknown recipe": ('recipe = "nnunet"\n', 2, "recipe 'nnunet': is one of modern, paper"),
    "no TOML": ("[length\n", 3, "is not TOML: "),
}


@pytest.mark.parametrize(("text", "code", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_config_that_is_wrong_is_named_with_its_fault(
    text: str, code: int, message: str, train: Train, cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text(text)
    found, out, error = train(cohort, "-o", "run", "--config", "my.toml")
    assert (found, out) == (code, "")
    assert error.startswith(f"Error: my.toml: {message}")
    assert not (tmp_path / "run").exists()


def test_config_that_is_not_there_is_named(train: Train, cohort: Path) -> None:
    assert train(cohort, "-o", "run", "--config", "my.toml") == (
        3,
        "",
        "Error: my.toml: cannot be read: No such file or directory\n",
    )


DRY_OR_NOT: Final = pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["", "dry run"])


@DRY_OR_NOT
def test_run_that_exists_is_refused_with_both_ways_out_and_left_as_it_is(
    dry_run: list[str], train: Train, cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text("of another training")
    message = "Error: run: holds a training already; --resume continues it, --overwrite begins anew in its place\n"
    assert train(cohort, "-o", "run", *dry_run) == (6, "", message)
    assert contents(tmp_path) == {"run/config.toml": b"of another training"}


@DRY_OR_NOT
@pytest.mark.parametrize("file", ["best.safetensors", "state.safetensors", "metrics.csv"])
def test_file_that_a_run_would_replace_is_refused_and_left_as_it_is(
    file: str, dry_run: list[str], train: Train, cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("mine")
    code, out, error = train(cohort, "-o", "run", *dry_run)
    assert (code, out) == (6, "")
    assert error.startswith(f"Error: run/{file}: ")
    assert "--overwrite" in error
    assert contents(tmp_path) == {f"run/{file}": b"mine"}


def test_dry_run_with_overwrite_takes_nothing_away(train: Train, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("of another training")
    code, _, error = train(cohort, "-o", "run", "--overwrite", "--dry-run")
    assert code == 0, error
    assert contents(tmp_path) == {"run/config.toml": b"of another training"}


def test_file_where_the_run_is_to_be_is_refused(train: Train, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert train(cohort, "-o", "run", "--slices-dir", "elsewhere", "--dry-run")[0] == 6
    assert (tmp_path / "run").read_text() == "mine"


def illegal(folder: Path) -> None:
    """Give the segmentation of a case a label that BraTS has not."""
    path = next(folder.glob("*seg.nii.gz"))
    save(np.where(segmentation(0) == 2, 7, 0).astype(np.int16), path)


def cropped(folder: Path) -> None:
    """Give the segmentation of a case another shape."""
    save(segmentation(0)[:, 2:], next(folder.glob("*seg.nii.gz")))


def shifted(folder: Path) -> None:
    """Give the segmentation of a case another place in space."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.Nifti1Image(segmentation(0), affine).to_filename(next(folder.glob("*seg.nii.gz")))


def unlabelled(folder: Path) -> None:
    """Take the segmentation of a case away."""
    next(folder.glob("*seg.nii.gz")).unlink()


def incomplete(folder: Path) -> None:
    """Take the T2 image of a case away."""
    next(folder.glob("*_t2.nii.gz")).unlink()


FAULTS: Final[Mapping[str, tuple[Callable[[Path], object], str]]] = {
    "no segmentation": (unlabelled, "case_0 has no segmentation"),
    "illegal label": (illegal, "holds label 7; a BraTS label map has 0, 1, 2 and 4 (or 3)"),
    "segmentation of another shape": (cropped, "case_0_seg.nii.gz: segmentation not on the grid of FLAIR"),
    "segmentation of another place": (shifted, "case_0_seg.nii.gz: segmentation not on the grid of FLAIR"),
    "image missing": (incomplete, "t2"),
    "image cut short": (spoil, "case_0_t2.nii.gz: "),
}


@DRY_OR_NOT
@pytest.mark.parametrize(("spoiled", "message"), FAULTS.values(), ids=FAULTS)
def test_case_that_cannot_be_learnt_from_is_named_and_no_run_is_begun(
    dry_run: list[str], spoiled: Callable[[Path], object], message: str, train: Train, tmp_path: Path
) -> None:
    spoiled(write_case(tmp_path / "cases" / "case_0"))
    code, out, error = train("cases", "-o", "run", "--val-fraction", "0", *dry_run)
    assert (code, out) == (3, "")
    assert "case_0" in error
    assert message in error
    assert not (tmp_path / "run").exists()


def test_single_fault_among_good_cases_stops_all_of_them(train: Train, tmp_path: Path) -> None:
    illegal(write_cases(tmp_path / "cases", 3) / "case_1")
    code, out, error = train("cases", "-o", "run")
    assert (code, out) == (3, "")
    assert "case_1_seg.nii.gz: holds label 7" in error
    # Good cases stay in the store for the next try; of a training there is nothing.
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"slices"}


@pytest.mark.parametrize("faults", [(unlabelled, incomplete), (illegal, cropped, spoil)], ids=["of files", "of their content"])
def test_all_cases_that_cannot_be_learnt_from_are_listed(
    faults: tuple[Callable[[Path], object], ...], train: Train, tmp_path: Path
) -> None:
    cases = write_cases(tmp_path / "cases", 4)
    for n, spoiled in enumerate(faults):
        spoiled(cases / f"case_{n}")
    code, out, error = train("cases", "-o", "run", "--dry-run")
    lines = error.splitlines()
    assert (code, out) == (3, "")
    assert lines[0].startswith(f"Error: {len(faults)} of 4 cases cannot be learnt from; ")
    assert [f"case_{n}" in line for n, line in enumerate(lines[1:])] == [True] * len(faults)


def test_a_long_list_of_refused_cases_ends_with_their_number(train: Train, tmp_path: Path) -> None:
    for n in range(23):
        write_case(tmp_path / "cases" / f"case_{n:02}", seed=n, labelled=False)
    _, _, error = train("cases", "-o", "run")
    lines = error.splitlines()
    assert lines[0].startswith("Error: 23 of 23 cases")
    assert (len(lines), lines[-1]) == (22, "  and 3 more")


def test_folder_that_is_not_there_is_named(train: Train, tmp_path: Path) -> None:
    assert train("nowhere", "-o", "run") == (
        3,
        "",
        "Error: nowhere: no such file or folder; give the folder of a case or of many, or a table\n",
    )
    assert not list(tmp_path.iterdir())


def test_folder_without_cases_is_named(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, error = train("empty", "-o", "run")
    assert (code, out) == (3, "")
    assert error.startswith("Error: empty: ")


def test_empty_list_on_stdin_is_refused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, _, error = train("-", "-o", "run")
    assert (code, error.startswith("Error: stdin: no case")) == (3, True)


@pytest.mark.parametrize("init", ["no_such_name", "no_such_file.safetensors"])
def test_weights_to_begin_with_that_are_unknown_are_refused(init: str, train: Train, cohort: Path, tmp_path: Path) -> None:
    code, out, error = train(cohort, "-o", "run", "--init", init)
    assert (code, out, init in error) == (4, "", True)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_width_than_asked_for_are_refused(train: Train, cohort: Path, tmp_path: Path) -> None:
    code, _, error = train(cohort, "-o", "run", "--init", GOLDEN_WEIGHTS, "--base-width", "2")
    assert code == 4
    assert error.endswith(": are of base width 1, not 2; leave that out\n")
    assert not list(tmp_path.iterdir())


def test_network_has_the_width_of_the_weights_it_begins_with(train: Train, cohort: Path) -> None:
    code, _, error = train(cohort, "-o", "run", "--init", GOLDEN_WEIGHTS, "--dry-run")
    assert (code, "base width 1:" in error) == (0, True)


def test_dry_run_prints_a_table_of_the_cases_and_what_would_be_done(train: Train, cohort: Path, tmp_path: Path) -> None:
    code, out, error = train(cohort, "-o", "run", "--dry-run", "--recipe", "paper", "--batch-size", "6")
    assert code == 0, error
    header, *rows = out.splitlines()
    assert header.split() == ["CASE", "FOR", "IN", "STORE", "SLICES", "WITH", "TUMOUR"]
    # small_cohort.py: six slices, the tumour in two.
    cells = [row.split() for row in rows]
    assert [(case, slices, tumour) for case, _, _, slices, tumour in cells] == [(name, "6", "2") for name in sorted(NAMES)]
    assert sorted(kind for _, kind, *_ in cells) == ["train"] * 3 + ["validation"]
    assert error == (
        "would train recipe paper, base width 16: 50 epochs, 150 steps of 6 slices; 3 cases to learn from, 1 held out\n"
    )
    assert not list(tmp_path.iterdir())


def test_dry_run_with_json_prints_an_object_a_case_and_one_of_the_whole(
    plan: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    *cases, whole = plan("--steps", "7", "--batch-size", "9")
    for case in cases:
        assert case.pop("split") in ("train", "validation")
    expected = {"slices": N_SLICES, "tumour_slices": 2, "in_store": False}
    assert cases == [{"case": name, **expected} for name in sorted(NAMES)]
    assert whole == {"train": 3, "validation": 1, "epochs": 1, "steps": 7, "continues": False, "run": "run"}
    assert not list(tmp_path.iterdir())


def test_dry_run_with_quiet_and_json_leaves_stderr_empty(train: Train, cohort: Path) -> None:
    _, _, error = train(cohort, "-o", "run", "--dry-run", "--json", "--quiet")
    assert error == ""


def test_dry_run_with_quiet_prints_the_table_alone(train: Train, cohort: Path) -> None:
    _, out, error = train(cohort, "-o", "run", "--dry-run", "--quiet")
    assert (bool(out), error) == (True, "")


@pytest.mark.parametrize(("recipe", "epochs"), [("modern", 100), ("paper", 50)])
def test_recipe_settles_the_length(recipe: str, epochs: int, plan: Callable[..., list[dict[str, Any]]]) -> None:
    assert plan("--recipe", recipe)[-1]["epochs"] == epochs


def test_epochs_prevail_over_the_steps_of_the_config(plan: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[length]\nsteps = 11\nsteps_per_epoch = 5\n")
    assert [plan("--config", "my.toml", *more)[-1]["steps"] for more in ([], ["--epochs", "4"], ["--steps", "3"])] == [
        11,
        20,
        3,
    ]


@pytest.mark.parametrize(("fraction", "n"), [("0", 0), ("0.25", 1), ("0.5", 2)])
def test_share_of_the_cases_is_held_out(fraction: str, n: int, plan: Callable[..., list[dict[str, Any]]]) -> None:
    documents = plan("--val-fraction", fraction)
    assert (len(held_out(documents)), documents[-1]["validation"], documents[-1]["train"]) == (n, n, N_CASES - n)


def test_folds_hold_out_every_case_once(plan: Callable[..., list[dict[str, Any]]]) -> None:
    folds = [held_out(plan("--folds", "3", "--fold", fold)) for fold in "123"]
    assert sorted(map(len, folds)) == [1, 1, 2]
    assert set().union(*folds) == NAMES


def test_seed_draws_another_split(plan: Callable[..., list[dict[str, Any]]]) -> None:
    assert len({frozenset(held_out(plan("--seed", str(seed)))) for seed in range(6)}) > 1


def test_split_of_a_file_leaves_the_other_cases_out(plan: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text('{"train": ["case_3", "case_0"], "validation": ["case_2"]}')
    documents = plan("--split", "my.json")
    assert held_out(documents) == {"case_2"}
    assert [document["case"] for document in documents[:-1]] == ["case_0", "case_2", "case_3"]


@pytest.mark.parametrize(
    "split", ['{"train": ["case_0"], "validation": ["case_9"]}', '{"train": ["case_9"], "validation": []}']
)
def test_split_with_an_unknown_case_is_refused(split: str, train: Train, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text(split)
    assert train(cohort, "-o", "run", "--split", "my.json") == (
        3,
        "",
        "Error: my.json: names case_9, not among the 4 cases that were found\n",
    )
    assert not (tmp_path / "run").exists()


def test_cases_may_be_named_on_stdin(train: Train, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{cohort}/case_0\n{cohort}/case_3\n"))
    _, out, _ = train("-", "-o", "run", "--dry-run", "--json", "--batch-size", "2")
    assert [json.loads(line).get("case") for line in out.splitlines()] == ["case_0", "case_3", None]


@pytest.fixture
def slices(cohort: Path, tmp_path: Path) -> Path:
    """case_0 and case_1 as convert writes them."""
    for name in ("case_0", "case_1"):
        assert main(["convert", "nii2png", str(cohort / name), "-o", str(tmp_path / "png"), "--jobs", "1", "--quiet"]) == 0
    return tmp_path / "png"


def test_folders_of_slices_and_of_cases_may_be_mixed(train: Train, cohort: Path, slices: Path) -> None:
    code, out, error = train(slices, cohort / "case_2", "-o", "run", "--dry-run", "--json")
    assert code == 0, error
    cases = [json.loads(line) for line in out.splitlines() if line.startswith('{"case"')]
    assert [(case["case"], case["slices"], case["tumour_slices"]) for case in cases] == [(f"case_{n}", 6, 2) for n in range(3)]


def test_same_case_as_slices_and_as_images_is_refused(train: Train, cohort: Path, slices: Path) -> None:
    code, _, error = train(slices, cohort / "case_0", "-o", "run", "--dry-run")
    assert (code, error.count("case_0 is also the name of the case in")) == (3, 2)


def test_options_become_numbers_of_the_run(drunet: Drunet, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[batches]\nwindows = [[16, 16]]\n[augmentation]\nrotation = 5\n")
    numbers = ["--base-width", "1", "--steps", "1", "--batch-size", "2", "--learning-rate", "1e-5", "--dropout", "0.3"]
    options = ["--recipe", "paper", "--config", "my.toml", *numbers, "--seed", "7", "--val-fraction", "0", "--jobs", "1"]
    done = drunet("train", cohort, "-o", "run", *options, "--device", "cpu", "--threads", "1")
    assert (done.returncode, done.stdout) == (0, "run/best.safetensors\nrun/last.safetensors\n"), done.stderr
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (config["recipe"], config["seed"]) == ("paper", 7)
    assert (config["network"]["base_width"], config["network"]["dropout"]) == (1, 0.3)
    assert (config["length"]["steps"], config["batches"]["size"], config["optimiser"]["learning_rate"]) == (1, 2, 1e-5)
    assert (config["batches"]["windows"], config["augmentation"]["rotation"]) == ([[16, 16]], 5.0)


@pytest.mark.parametrize(("arguments", "code"), [(["cases"], 2), (["nowhere", "-o", "run"], 3)], ids=["misuse", "refusal"])
def test_what_needs_no_look_at_an_image_imports_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert outcome("train", *arguments, folder=tmp_path) == (code, [])


# ../shared/cli.md, the rows that name train.
OPTIONS: Final = (
    *("--pattern", "--channels", "--overwrite", "--dry-run", "--json", "--quiet", "--device", "--precision", "--threads"),
    *("--jobs", "--dropout", "--seed", "--deterministic", "--recipe", "--config", "--base-width", "--epochs", "--steps"),
    *("--batch-size", "--learning-rate", "--val-fraction", "--folds", "--fold", "--split", "--slices-dir", "--init"),
    *("--resume", "-o"),
)


@pytest.fixture
def help_words(drunet: Drunet) -> list[list[str]]:
    """The help on a terminal of 80 columns, as lines of words."""
    done = drunet("train", "--help", environment={"COLUMNS": "80", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.replace("│", " ").split() for line in lines]


def test_help_at_80_columns_names_every_option_and_breaks_no_word(help_words: list[list[str]]) -> None:
    words = {word for line in help_words for word in line}
    command: Any = get_command(app)
    described = {word for parameter in command.commands["train"].params for word in (parameter.help or "").split()}
    assert not {*OPTIONS, *described} - words
