"""`drunet train`: wiring of its options, refusals with their exit codes, and what a dry run says that it would do."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.cli.app import main
from drunet_cli.cli.training_screen import duration_in_words
from tests.conversion.small_cases import SHAPE, brain_in, labels_in, save, small_case
from tests.support import GOLDEN_WEIGHTS, contents, stdin_of

Outcome = tuple[int, str, str]
Train = Callable[..., Outcome]
Documents = list[dict[str, Any]]

NAMES: Final = [f"case_{n}" for n in range(4)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that no test changes, of five slices each, three of them with tumour."""
    folder = tmp_path_factory.mktemp("cohort") / "cases"
    for seed, name in enumerate(NAMES):
        small_case(folder, name=name, seed=seed)
    return folder


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """`drunet train` in this process, in tmp_path, to its first step; gives its code, stdout and stderr."""

    def begin(*_: object, **__: object) -> bool:
        raise AssertionError("a training begins that should have been refused")

    monkeypatch.setattr("drunet_cli.training.session.train", begin)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Outcome:
        code = main(["train", "--jobs", "1", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def plan(train: Train, cohort: Path) -> Callable[..., Documents]:
    """The objects of a dry run on the cohort: one for each case, and one of the whole."""

    def run(*arguments: str | Path) -> Documents:
        code, out, error = train(cohort, "-o", "run", "--dry-run", "--json", "--quiet", *arguments)
        assert (code, error) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return run


def held_out(documents: Documents) -> set[str]:
    return {document["case"] for document in documents if document.get("split") == "validation"}


# Misuse


MISUSE: Final = {
    "no RUN": ("cases", "missing -o: name a folder for the run"),
    "no cases": ("-o run", "missing CASES_OR_PNG_DIRS: name folders or tables of cases, or --resume a run"),
    "nothing to resume": ("-o run --resume", "run: there is no training to resume; name the cases to learn from"),
    "resume and overwrite": ("cases -o run --resume --overwrite", "--resume and --overwrite exclude one another"),
    "epochs and steps": ("cases -o run --epochs 2 --steps 9", "--epochs and --steps exclude one another"),
    "share and folds": (
        "cases -o run --val-fraction 0.5 --folds 3 --fold 1",
        "--val-fraction and --folds exclude one another",
    ),
    "all three": (
        "cases -o run --val-fraction 0 --folds 3 --fold 1 --split split.json",
        "--val-fraction and --folds and --split exclude one another",
    ),
    "fold without folds": ("cases -o run --fold 1", "--fold 1: of how many? give --folds N too"),
    "folds without cases": (
        "-o run --folds 3 --resume",
        "missing CASES_OR_PNG_DIRS: a cross-validation segments the cases, also with --resume",
    ),
    "fold beyond folds": ("cases -o run --folds 3 --fold 4", "--fold 4: there are 3 folds, counted from 1"),
}


@pytest.mark.parametrize(("words", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_told_in_one_line_and_nothing_is_written(words: str, message: str, train: Train, tmp_path: Path) -> None:
    assert train(*words.split()) == (2, "", f"Error: {message}\n")
    assert not list(tmp_path.iterdir())


BEYOND: Final = {
    "--recipe": "published",
    "--base-width": "0",
    "--epochs": "0",
    "--steps": "0",
    "--batch-size": "0",
    "--seed": "-1",
    "--learning-rate": "fast",
    "--dropout": "nan",
    "--val-fraction": "1.01",
    "--folds": "1",
    "--fold": "0",
    "--device": "tpu",
    "--precision": "int8",
    "--threads": "0",
    "--slices-dir": "",
    "-o": "",
    "--peer-timeout": "0",
}


@pytest.mark.parametrize(("option", "value"), BEYOND.items())
def test_option_beyond_its_range_is_named(option: str, value: str, train: Train) -> None:
    output = [] if option == "-o" else ["-o", "run"]
    code, out, error = train("cases", *output, option, value)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"'{option}'" in error


REFUSED: Final = {
    "width": (2, "--base-width 1000", "network.base_width = 1000: must be less than or equal to 256\n"),
    "rate": (2, "--learning-rate nan", "optimiser.learning_rate = nan: must be a finite number\n"),
    "channels": (2, "--channels t1,t2", "--channels"),
    "pattern": (2, "--pattern t9=*.nii", "--pattern"),
    "folds": (2, "--folds 5 --fold 1", "--folds 5: there are fewer cases than that (4)\n"),
    "precision": (2, "--device cpu --precision float16", "--precision float16: trains on CUDA GPUs only"),
    "batch": (2, "--dry-run --batch-size 16", "15 slices do not make one batch of 16; give a smaller --batch-size\n"),
    "unknown weights": (4, "--init no_such_name", "weights 'no_such_name'"),
    "missing weights": (4, "--init no_such_file.safetensors", "no_such_file.safetensors"),
    "width of weights": (4, f"--init {GOLDEN_WEIGHTS} --base-width 2", "weights "),
    "no config": (3, "--config none.toml", "none.toml: cannot be read: No such file or directory\n"),
    "wrong config": (2, "--config my.toml", "my.toml: optimiser.lerning_rate: no such setting; perhaps"),
    "wrong split": (3, "--split my.json", "my.json: names case_9, not among the 4 cases that were found\n"),
}


@pytest.mark.parametrize(("code", "words", "message"), REFUSED.values(), ids=REFUSED)
def test_refusal_has_its_exit_code_and_comes_before_anything_is_written(
    code: int, words: str, message: str, train: Train, cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text("[optimiser]\nlerning_rate = 1\n")
    (tmp_path / "my.json").write_text('{"train": ["case_0"], "validation": ["case_9"]}')
    found, out, error = train(cohort, "-o", "run", *words.split())
    assert (found, out) == (code, ""), error
    assert error.startswith(f"Error: {message}")
    assert not (tmp_path / "run").exists()


def test_cross_validation_by_several_processes_is_refused(train: Train, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    message = "Error: --folds: one process trains a fold; start a job for each --fold, without torchrun\n"
    assert train(cohort, "-o", "cv", "--folds", "2") == (2, "", message)


# Files that are in the way


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["", "dry run"])
@pytest.mark.parametrize("file", ["config.toml", "best.safetensors", "state.safetensors", "metrics.csv"])
def test_run_or_file_that_is_there_is_refused_and_left_as_it_is(
    file: str, dry_run: list[str], train: Train, cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("mine")
    code, out, error = train(cohort, "-o", "run", *dry_run)
    way_out = "--resume continues it, --overwrite begins anew in its place\n" if file == "config.toml" else "--overwrite"
    assert (code, out, error.startswith("Error: run"), way_out in error) == (6, "", True, True)
    assert train(cohort, "-o", "run", "--dry-run", "--overwrite")[0] == 0
    assert contents(tmp_path) == {f"run/{file}": b"mine"}


def test_file_where_the_run_is_to_be_is_refused(train: Train, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert train(cohort, "-o", "run", "--slices-dir", "elsewhere", "--dry-run")[0] == 6
    assert (tmp_path / "run").read_text() == "mine"


# Cases that cannot be learnt from


def give_illegal_label(folder: Path) -> None:
    save(next(folder.glob("*seg.nii")), labels_in(brain_in()) * np.uint8(3))


def crop_labels(folder: Path) -> None:
    save(next(folder.glob("*seg.nii")), labels_in(brain_in())[:, 2:])


def cut_image(folder: Path) -> None:
    path = next(folder.glob("*_t2.nii"))
    path.write_bytes(path.read_bytes()[:-100])


def remove_labels(folder: Path) -> None:
    next(folder.glob("*seg.nii")).unlink()


def remove_image(folder: Path) -> None:
    next(folder.glob("*_t2.nii")).unlink()


@pytest.mark.parametrize(
    "faults", [(give_illegal_label,), (remove_labels, remove_image), (give_illegal_label, crop_labels, cut_image)]
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["", "dry run"])
def test_cases_that_cannot_be_learnt_from_are_listed_and_no_run_is_begun(
    dry_run: list[str], faults: tuple[Callable[[Path], None], ...], train: Train, tmp_path: Path
) -> None:
    for seed, name in enumerate(NAMES):
        small_case(tmp_path / "cases", name=name, seed=seed)
    for n, spoil in enumerate(faults):
        spoil(tmp_path / "cases" / f"case_{n}")
    code, out, error = train("cases", "-o", "run", *dry_run)
    first, *lines = error.splitlines()
    assert (code, out) == (3, "")
    if len(faults) == 1:
        assert "case_0_seg.nii: holds label" in first
    else:
        assert first.startswith(f"Error: {len(faults)} of 4 cases cannot be learnt from; ")
        assert [f"case_{n}" in line for n, line in enumerate(lines)] == [True] * len(faults)
    # Good cases stay in the store for the next try; of a training there is nothing.
    assert {path.name for path in tmp_path.glob("run/*")} <= {"slices"}


def test_long_list_of_refused_cases_ends_with_their_number(train: Train, tmp_path: Path) -> None:
    for n in range(23):
        small_case(tmp_path / "cases", name=f"case_{n:02}", segmented=False)
    lines = train("cases", "-o", "run")[2].splitlines()
    assert lines[0].startswith("Error: 23 of 23 cases")
    assert (len(lines), lines[-1]) == (22, "  and 3 more")


def test_sources_without_cases_are_named(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", stdin_of("\n"))
    (tmp_path / "empty").mkdir()
    for source, message in (("nowhere", "nowhere: no such file or folder"), ("empty", "empty: "), ("-", "stdin: no case")):
        code, _, error = train(source, "-o", "run")
        assert (code, error.startswith(f"Error: {message}")) == (3, True), error


# Dry runs


def test_dry_run_prints_a_table_of_the_cases_and_what_would_be_done(train: Train, cohort: Path, tmp_path: Path) -> None:
    code, out, error = train(cohort, "-o", "run", "--dry-run", "--recipe", "paper", "--batch-size", "5")
    header, *rows = out.splitlines()
    cells = [row.split() for row in rows]
    assert (code, header.split()) == (0, ["CASE", "FOR", "IN", "STORE", "SLICES", "WITH", "TUMOUR"])
    assert [(case, slices, tumour) for case, _, _, slices, tumour in cells] == [(name, "5", "3") for name in NAMES]
    assert sorted(kind for _, kind, *_ in cells) == ["train"] * 3 + ["validation"]
    assert error == (
        "would train recipe paper, base width 16: 50 epochs, 150 steps of 5 slices; 3 cases to learn from, 1 held out\n"
    )
    assert "base width 1:" in train(cohort, "-o", "run", "--init", GOLDEN_WEIGHTS, "--dry-run")[2]
    assert not list(tmp_path.iterdir())


def test_dry_run_with_json_prints_an_object_a_case_and_one_of_the_whole(plan: Callable[..., Documents]) -> None:
    *cases, whole = plan("--steps", "7", "--batch-size", "9")
    assert {case.pop("split") for case in cases} == {"train", "validation"}
    assert cases == [{"case": name, "slices": SHAPE[2], "tumour_slices": 3, "in_store": False} for name in NAMES]
    assert whole == {"train": 3, "validation": 1, "epochs": 1, "steps": 7, "continues": False, "run": "run"}


def test_split_is_by_share_by_seed_or_by_file(plan: Callable[..., Documents], tmp_path: Path) -> None:
    assert [len(held_out(plan("--val-fraction", share))) for share in ("0", "0.25", "0.5")] == [0, 1, 2]
    assert len({frozenset(held_out(plan("--seed", str(seed)))) for seed in range(6)}) > 1
    (tmp_path / "my.json").write_text('{"train": ["case_3", "case_0"], "validation": ["case_2"]}')
    documents = plan("--split", "my.json")
    assert held_out(documents) == {"case_2"}
    assert [document["case"] for document in documents[:-1]] == ["case_0", "case_2", "case_3"]


def test_cases_may_be_named_on_stdin_and_mixed_with_slices_but_not_twice(
    train: Train, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = ["convert", "nii2png", str(cohort / "case_0"), str(cohort / "case_1"), "-o", str(tmp_path / "png"), "--quiet"]
    assert main([*convert, "--jobs", "1"]) == 0
    monkeypatch.setattr("sys.stdin", stdin_of(f"{cohort}/case_2\n{tmp_path}/png\n"))
    _, out, _ = train("-", "-o", "run", "--dry-run", "--json", "--batch-size", "2")
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"case"')]
    assert [(case["case"], case["slices"], case["tumour_slices"]) for case in found] == [(name, 5, 3) for name in NAMES[:3]]
    code, _, error = train(tmp_path / "png", cohort / "case_0", "-o", "run", "--dry-run")
    assert (code, error.count("case_0 is also the name of the case in")) == (3, 2)


# The command


def test_options_become_numbers_of_the_run_and_epochs_lines_on_both_streams(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("[batches]\nwindows = [[16, 16]]\n[augmentation]\nrotation = 5\n")
    numbers = ["--base-width", "1", "--steps", "1", "--batch-size", "2", "--learning-rate", "1e-5", "--dropout", "0.3"]
    options = ["--recipe", "paper", "--config", "my.toml", *numbers, "--seed", "7", "--val-fraction", "0", "--jobs", "1"]
    assert main(["train", str(cohort), "-o", "run", *options, "--device", "cpu", "--threads", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    epoch, files = (json.loads(line) for line in out.splitlines())
    assert (epoch["epoch"], epoch["step"], epoch["best"], epoch["dice"], epoch["cases"]) == (1, 1, True, None, {})
    assert files == {"best": "run/best.safetensors", "last": "run/last.safetensors"}
    assert err.startswith("epoch 1/1: loss ")
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (config["recipe"], config["seed"]) == ("paper", 7)
    assert (config["network"]["base_width"], config["network"]["dropout"]) == (1, 0.3)
    assert (config["length"]["steps"], config["batches"]["size"], config["optimiser"]["learning_rate"]) == (1, 2, 1e-5)
    assert (config["batches"]["windows"], config["augmentation"]["rotation"]) == ([[16, 16]], 5.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (91, "2 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_duration_is_said_in_two_units_at_most(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
