"""Which cases are held out: whole ones, drawn by the seed, or named by a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.training.cases import Split, read_split, split_by_fold, split_by_fraction

NAMES: Final = [f"BraTS20_Training_{n:03}" for n in range(1, 24)]


def everything(split: Split) -> list[str]:
    return sorted([*split.train, *split.validation])


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.95])
def test_every_case_is_learnt_from_or_held_out_and_none_both(fraction: float) -> None:
    assert everything(split_by_fraction(NAMES, fraction, seed=0)) == NAMES


# Half to even, as Python's round has it: 0.5 of 23 is 11.5, and becomes 12.
@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.001, 1), (0.1, 2), (0.2, 5), (0.5, 12), (0.95, 22)])
def test_share_of_the_cases_is_held_out_and_at_least_one(fraction: float, held_out: int) -> None:
    assert len(split_by_fraction(NAMES, fraction, seed=0).validation) == held_out


@pytest.mark.parametrize("fraction", [0.98, 1.0])
def test_share_that_would_hold_out_every_case_is_refused(fraction: float) -> None:
    with pytest.raises(MisuseError, match=r"^a held-out share of .* leaves none of 23 to learn from; .* --val-fraction 0"):
        split_by_fraction(NAMES, fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_single_case_cannot_be_held_out_and_learnt_from(fraction: float) -> None:
    with pytest.raises(MisuseError, match=r"^a held-out share of .* leaves none of 1 to learn from; .* --val-fraction 0"):
        split_by_fraction(["a"], fraction, seed=0)


def test_single_case_may_be_learnt_from_where_none_is_held_out() -> None:
    assert split_by_fraction(["a"], 0, seed=0) == Split(("a",), ())


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"^there is no case"):
        split_by_fraction([], 0, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_one_of_two_cases_is_held_out(seed: int) -> None:
    split = split_by_fraction(["a", "b"], 0.2, seed=seed)
    assert (len(split.train), len(split.validation)) == (1, 1)


def test_names_of_a_split_are_sorted() -> None:
    split = split_by_fraction(NAMES, 0.4, seed=3)
    assert (list(split.train), list(split.validation)) == (sorted(split.train), sorted(split.validation))


def test_same_seed_splits_alike() -> None:
    assert split_by_fraction(NAMES, 0.2, seed=7) == split_by_fraction(NAMES, 0.2, seed=7)


def test_seeds_split_otherwise() -> None:
    # Of 33,649 ways to hold 5 of 23 out, five seeds hit five.
    assert len({split_by_fraction(NAMES, 0.2, seed=seed) for seed in range(5)}) == 5


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[7:] + NAMES[:7]], ids=["reversed", "turned"])
def test_order_in_which_cases_were_found_changes_no_split(names: Sequence[str]) -> None:
    assert split_by_fraction(names, 0.2, seed=1) == split_by_fraction(NAMES, 0.2, seed=1)
    assert split_by_fold(names, 5, 2, seed=1) == split_by_fold(NAMES, 5, 2, seed=1)


@pytest.mark.parametrize("n_folds", [2, 5, 23])
def test_folds_hold_every_case_out_once(n_folds: int) -> None:
    held_out = [name for fold in range(1, n_folds + 1) for name in split_by_fold(NAMES, n_folds, fold, seed=0).validation]
    assert sorted(held_out) == NAMES


@pytest.mark.parametrize("fold", [1, 3, 5])
def test_what_a_fold_does_not_hold_out_is_learnt_from(fold: int) -> None:
    assert everything(split_by_fold(NAMES, 5, fold, seed=0)) == NAMES


def test_folds_are_of_equal_size_but_for_one_case() -> None:
    assert [len(split_by_fold(NAMES, 5, fold, seed=0).validation) for fold in range(1, 6)] == [5, 5, 5, 4, 4]


def test_folds_of_another_seed_are_others() -> None:
    assert split_by_fold(NAMES, 5, 1, seed=0) != split_by_fold(NAMES, 5, 1, seed=1)


def test_more_folds_than_cases_are_refused() -> None:
    with pytest.raises(MisuseError, match=r"^--folds 24: there are fewer cases than that \(23\)$"):
        split_by_fold(NAMES, 24, 1, seed=0)


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "split.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_file_of_a_split_is_read_back_as_the_same_one(fraction: float, tmp_path: Path) -> None:
    split = split_by_fraction(NAMES, fraction, seed=2)
    assert read_split(written(tmp_path, split.encoded()), NAMES) == split


def test_name_that_is_not_utf_8_survives_the_file(tmp_path: Path) -> None:
    split = Split((b"caf\xe9".decode(errors="surrogateescape"),), ("größer",))
    assert read_split(written(tmp_path, split.encoded()), everything(split)) == split


def test_cases_that_a_file_does_not_name_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, '{"train": ["c", "a"], "validation": ["b"]}')
    assert read_split(path, ["a", "b", "c", "d"]) == Split(("a", "c"), ("b",))


NO_SPLIT: Final = 'is not a split: a JSON object {"train": [names], "validation": [names]}'
LISTS: Final = "train and validation are lists of case names"
REFUSED: Final = {
    "no JSON": ('{"train": ["a"]', NO_SPLIT),
    "nothing": ("", NO_SPLIT),
    "no UTF-8": (b'{"train": ["\xe9"], "validation": []}', NO_SPLIT),
    "a list": ('[["a"], ["b"]]', NO_SPLIT),
    "a number": ("3", NO_SPLIT),
    "null": ("null", NO_SPLIT),
    "without validation": ('{"train": ["a"]}', NO_SPLIT),
    "without train": ('{"validation": ["a"]}', NO_SPLIT),
    "nested without end": ("[" * 100_000, NO_SPLIT),
    "one name for a list": ('{"train": "a", "validation": ["b"]}', LISTS),
    "null for a list": ('{"train": ["a"], "validation": null}', LISTS),
    "number for a name": ('{"train": ["a", 3], "validation": ["b"]}', LISTS),
    "case in both": ('{"train": ["a", "b"], "validation": ["b"]}', "names b more than once; a case is learnt from or held out"),
    "case twice": ('{"train": ["a", "a"], "validation": []}', "names a more than once; a case is learnt from or held out"),
    "unknown case": ('{"train": ["a"], "validation": ["x"]}', "names x, not among the 3 cases that were found"),
    "many unknown cases": (
        json.dumps({"train": ["a"], "validation": list("zyxwvut")}),
        "names t, u, v, w, x and 2 more, not among the 3 cases that were found",
    ),
    "nothing to learn from": ('{"train": [], "validation": ["a"]}', "names no case to learn from"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_file_that_splits_nothing_is_refused_by_its_name_and_why(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CaseError) as refusal:
        read_split(path, ["a", "b", "c"])
    assert str(refusal.value) == f"{path}: {message}"


def test_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CaseError) as refusal:
        read_split(tmp_path / "none.json", NAMES)
    assert str(refusal.value) == f"{tmp_path}/none.json: cannot be read: No such file or directory"
