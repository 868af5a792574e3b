"""Which cases folders and tables hold, and what is said of those that cannot be used."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.io.discovery import Cohort, find_cases
from drunet_cli.io.naming import Naming
from tests.support import unprivileged

FLAIR, T1CE, T1, T2 = CHANNELS
BRATS_2021: Final = ("flair", "t1ce", "t1", "t2")
BRATS_2023: Final = ("t2f", "t1c", "t1n", "t2w")
NNUNET: Final = ("0000", "0001", "0002", "0003")
NNUNET_ORDER: Final = (T1, T1CE, T2, FLAIR)
DATASET_V2: Final = {"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}, "file_ending": ".nii.gz"}


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def written(folder: Path, prefix: str, words: Iterable[str] = BRATS_2021, *, suffix: str = ".nii.gz") -> Path:
    """A folder with one file for each word."""
    touched(*(folder / f"{prefix}{word}{suffix}" for word in words))
    return folder


def names(cohort: Cohort) -> list[str]:
    return [case.name for case in cohort.cases]


def all_found(*sources: Path, naming: Naming | None = None) -> list[str]:
    """The cases' names; nothing may be broken."""
    cohort = find_cases(sources, naming or Naming())
    assert [str(case.error) for case in cohort.broken] == []
    return names(cohort)


def only_error(*sources: Path, naming: Naming | None = None) -> str:
    """What is said of the one broken case; nothing else may be found."""
    cohort = find_cases(sources, naming or Naming())
    assert names(cohort) == []
    assert len(cohort.broken) == 1, cohort.broken
    return str(cohort.broken[0].error)


def file_names(cohort: Cohort) -> Mapping[Modality, str]:
    (case,) = cohort.cases
    return {modality: path.name for modality, path in case.images.items()}


def table(path: Path, *rows: str) -> Path:
    touched(path)
    path.write_text("\n".join(("case,t1,t1ce,t2,flair", *rows)) + "\n")
    return path


# What makes a case


def test_no_source_holds_no_case() -> None:
    assert find_cases([]) == Cohort((), (), alone=False)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ", ".Nii"])
@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("BraTS2021_01479_", BRATS_2021),
        ("Brats18_2013_11_1_", BRATS_2021),
        ("BraTS-GLI-00005-100-", BRATS_2023),
        ("TCGA-02-0006_1996.08.23_", ("flair", "t1Gd", "t1", "t2")),
        ("sub 7 ", BRATS_2021),
        ("p.", ("T2FLAIR", "T1post", "T1pre", "T2")),
        ("étude_Ärztin_患者_", BRATS_2021),
    ],
)
def test_the_last_word_of_a_file_tells_its_modality_and_the_rest_is_the_name(
    tmp_path: Path, prefix: str, words: tuple[str, ...], suffix: str
) -> None:
    cohort = find_cases([written(tmp_path / "any", prefix, words, suffix=suffix)])
    assert names(cohort) == [prefix[:-1]]
    assert file_names(cohort) == {modality: f"{prefix}{word}{suffix}" for modality, word in zip(CHANNELS, words, strict=True)}
    assert cohort.broken == ()


def test_a_modality_in_the_middle_of_a_name_does_not_count(tmp_path: Path) -> None:
    written(tmp_path, "p_flair_")
    touched(tmp_path / "p_t1_bias.nii.gz", tmp_path / "p_t1ce_brain_mask.nii.gz")
    assert all_found(tmp_path) == ["p_flair"]


def test_separators_around_the_words_do_not_count(tmp_path: Path) -> None:
    touched(*(tmp_path / f"{name}.nii" for name in ("a_flair_", "a__t1ce", "_a - t1", "a_t2.")))
    assert all_found(tmp_path) == ["a"]


def test_files_without_more_than_the_modality_take_the_name_of_their_folder(tmp_path: Path) -> None:
    assert all_found(written(tmp_path / "p 7", "")) == ["p 7"]


@pytest.mark.parametrize("here", [".", "../p7", "below/.."])
def test_a_folder_has_its_name_by_whatever_path_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    written(tmp_path / "p7", "")
    (tmp_path / "p7" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "p7")
    assert all_found(Path(here)) == ["p7"]


def test_files_named_by_their_folder_and_by_themselves_make_one_case(tmp_path: Path) -> None:
    written(tmp_path / "p7", "", ["flair", "t1"])
    written(tmp_path / "p7", "p7_", ["t1ce", "t2"])
    assert all_found(tmp_path) == ["p7"]


def test_a_flat_folder_holds_many_cases(tmp_path: Path) -> None:
    for name in ("b", "a", "a_2", "B"):
        written(tmp_path, f"{name}_")
    assert all_found(tmp_path) == ["B", "a", "a_2", "b"]


def test_compressed_and_plain_files_make_one_case(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["flair", "t1"])
    written(tmp_path, "a_", ["t1ce", "t2"], suffix=".nii")
    assert all_found(tmp_path) == ["a"]


def test_cases_are_found_at_any_depth_and_in_both_spellings(tmp_path: Path) -> None:
    written(tmp_path / "HGG" / "x", "x_")
    written(tmp_path / "LGG" / "site" / "w", "w-", BRATS_2023)
    written(tmp_path, "y_")
    assert all_found(tmp_path) == ["w", "x", "y"]


def test_a_tree_deeper_than_pythons_stack_is_walked(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(1100):
        folder = folder / "d"
        folder.mkdir()
    images = [folder / f"a_{word}.nii" for word in BRATS_2021]
    touched(*images)
    found = all_found(tmp_path)
    for image in images:
        image.unlink()
    while folder != tmp_path:  # pytest could not: it goes down by recursion
        folder.rmdir()
        folder = folder.parent
    assert found == ["a"]


def test_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    written(tmp_path, "._a_")
    written(tmp_path / "__MACOSX", "._a_")
    written(tmp_path / ".git" / "annex", "b_")
    touched(tmp_path / ".a_flair.nii.gz.host.77.tmp")
    assert all_found(tmp_path) == ["a"]


def test_other_files_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    touched(*(tmp_path / name for name in ("a.nii.gz", "a_entropy.nii.gz", "a_flair.json", "a_t1", "survival_t1.csv", "_.nii")))
    touched(tmp_path / "scan_2019.nii.gz", tmp_path / "BRATS_001.nii.gz", tmp_path / "x_00000.nii.gz")
    assert all_found(tmp_path) == ["a"]


def test_a_folder_may_be_named_like_an_image(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    written(tmp_path / "b_flair.nii", "b_")
    (tmp_path / "a_flair.nii").mkdir()
    assert all_found(tmp_path) == ["a", "b"]


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    written(tmp_path / "store", "")
    written(tmp_path / "store" / "b", "b_")
    tree = tmp_path / "tree"
    tree.mkdir()
    for word in BRATS_2021:
        (tree / f"a_{word}.nii.gz").symlink_to(tmp_path / "store" / f"{word}.nii.gz")
    (tree / "link").symlink_to(tmp_path / "store" / "b")
    assert all_found(tree) == ["a", "b"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    written(tmp_path / "HGG" / "a", "a_")
    (tmp_path / "HGG" / "again").symlink_to(tmp_path)
    (tmp_path / "HGG" / "a" / "self").symlink_to(".")
    for back in ("back", "again and", "again"):  # three ways to go at each of the 40 steps that Linux follows links for
        (tmp_path / back).symlink_to(".")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    (tmp_path / "gone").symlink_to("nowhere")
    assert all_found(tmp_path) == ["a"]


@pytest.mark.parametrize("word", ["seg", "SEG"])
def test_the_reference_beside_the_images_belongs_to_the_case(tmp_path: Path, word: str) -> None:
    written(tmp_path, "a_", [*BRATS_2021, word])
    written(tmp_path, "b_")
    one, other = find_cases([tmp_path]).cases
    assert one.segmentation == tmp_path / f"a_{word}.nii.gz"
    assert other.segmentation is None


def test_a_reference_alone_is_no_case(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    touched(tmp_path / "b_seg.nii.gz")
    assert all_found(tmp_path) == ["a"]


# What is broken


def test_what_a_case_lacks_is_named_with_its_folder(tmp_path: Path) -> None:
    written(tmp_path / "x", "a_", ["flair", "t2"])
    assert only_error(tmp_path) == (
        f"{tmp_path / 'x'}: a has no T1ce, T1: looked for NAME_t1ce.nii.gz, NAME_t1.nii.gz, "
        "found a_flair.nii.gz, a_t2.nii.gz; --pattern names others"
    )


def test_what_is_there_instead_of_a_modality_is_named_first(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["flair", "t1", "t2"])
    touched(tmp_path / "a_T1_contrast.nii.gz", tmp_path / "notes.txt")
    assert "looked for NAME_t1ce.nii.gz, found a_T1_contrast.nii.gz, a_flair.nii.gz, a_t1.nii.gz, " in only_error(tmp_path)


def test_of_many_cases_in_a_folder_only_the_broken_one_is_listed(tmp_path: Path) -> None:
    for n in range(20):
        written(tmp_path, f"case{n:02}_")
    (tmp_path / "case07_t1ce.nii.gz").rename(tmp_path / "case07_T1_contrast.nii.gz")
    [broken] = find_cases([tmp_path]).broken
    found = "found case07_T1_contrast.nii.gz, case07_flair.nii.gz, case07_t1.nii.gz, case07_t2.nii.gz; "
    assert found in str(broken.error)


def test_a_folder_of_other_names_lists_some_of_them_in_a_line_of_bounded_length(tmp_path: Path) -> None:
    for n in range(300):
        touched(tmp_path / f"p{n:03}" / f"{'long' * 40}_{n:03}_T1w.nii.gz")
    error = only_error(tmp_path)
    assert error.count("_T1w.nii.gz") == 6
    assert " and 294 more; say by --pattern MODALITY=GLOB which are which" in error
    assert len(error) - len(str(tmp_path)) < 800


def test_a_folder_of_dicom_files_is_told_apart(tmp_path: Path) -> None:
    touched(*(tmp_path / "study" / f"IM{n:04}" for n in range(9)))
    assert "found no .nii.gz or .nii but IM0000, IM0001, " in only_error(tmp_path)
    assert "convert the images to NIfTI first" in only_error(tmp_path)


def test_a_broken_case_leaves_the_others_and_keeps_its_name(tmp_path: Path) -> None:
    for name in ("a", "c"):
        written(tmp_path, f"{name}_")
    written(tmp_path, "d_", ["t1"])
    written(tmp_path, "b_", ["t1"])
    cohort = find_cases([tmp_path])
    assert names(cohort) == ["a", "c"]
    assert [case.name for case in cohort.broken] == ["b", "d"]


@pytest.mark.parametrize(
    ("more", "part"),
    [("a_flair.nii", "FLAIR"), ("a_t2f.nii.gz", "FLAIR"), ("a-t1c.nii.gz", "T1ce"), ("a_seg.nii", "segmentation")],
)
def test_two_files_for_one_modality_are_both_named(tmp_path: Path, more: str, part: str) -> None:
    written(tmp_path, "a_", [*BRATS_2021, "seg"])
    touched(tmp_path / more)
    error = only_error(tmp_path)
    first = {"FLAIR": "a_flair.nii.gz", "T1ce": "a_t1ce.nii.gz", "segmentation": "a_seg.nii.gz"}[part]
    assert error.startswith(f"{tmp_path}: a has ")
    assert {first, more, f"for {part};"} <= set(re.split(r" (?:has|and) | (?=for )|(?<=;) ", error))


def test_more_than_two_files_for_one_modality_are_counted(tmp_path: Path) -> None:
    touched(*(tmp_path / f"a{n:03}_t1.nii.gz" for n in range(1000)))
    error = only_error(tmp_path, naming=Naming({"t1": "*_t1.nii.gz"}))
    assert "a000_t1.nii.gz and a001_t1.nii.gz and 998 more for T1" in error


def test_a_link_to_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["t1ce", "t1", "t2"])
    (tmp_path / "a_flair.nii.gz").symlink_to("annex/missing")
    assert only_error(tmp_path) == f"{tmp_path / 'a_flair.nii.gz'}: is a link to a file that is missing (given as FLAIR)"


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["t1ce", "t1", "t2"])
    (tmp_path / "a_flair.nii.gz").symlink_to("a_flair.nii.gz")
    assert only_error(tmp_path).startswith(f"{tmp_path / 'a_flair.nii.gz'}: cannot be read: ")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["t1ce", "t1", "t2"])
    os.mkfifo(tmp_path / "a_flair.nii.gz")
    assert only_error(tmp_path) == f"{tmp_path / 'a_flair.nii.gz'}: is not a regular file (given as FLAIR)"


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    (tmp_path / "a_seg.nii.gz").hardlink_to(tmp_path / "a_t1.nii.gz")
    assert "given as T1 and as segmentation" in only_error(tmp_path)


def test_a_folder_without_cases_says_what_was_looked_for(tmp_path: Path) -> None:
    touched(tmp_path / "x" / "scan.nii.gz")
    error = only_error(tmp_path)
    assert error.startswith(f"{tmp_path}: no case found: looked for files named NAME_flair.nii.gz, ")
    assert "NAME_0000.nii.gz" in error
    assert "--pattern" in error


def test_a_folder_without_cases_beside_one_that_has_some_is_named(tmp_path: Path) -> None:
    written(tmp_path / "full", "a_")
    (tmp_path / "empty").mkdir()
    cohort = find_cases([tmp_path / "empty", tmp_path / "full"])
    assert names(cohort) == ["a"]
    assert [case.name for case in cohort.broken] == [str(tmp_path / "empty")]


def test_folders_without_nifti_beside_cases_are_told(tmp_path: Path) -> None:
    written(tmp_path / "set" / "p1", "p1_")
    touched(tmp_path / "set" / "p2" / "series" / "IM1.dcm", tmp_path / "set" / "p2" / "series" / "IM2.dcm")
    (tmp_path / "set" / "p3").mkdir()
    cohort = find_cases([tmp_path / "set", tmp_path / "set"])
    assert names(cohort) == ["p1"]
    folder = tmp_path / "set"
    assert cohort.notes == (
        f"2 folders hold no NIfTI and were passed over: {folder / 'p2'} (IM1.dcm, ...), {folder / 'p3'} (empty)",
    )


def test_of_many_folders_without_nifti_some_are_named(tmp_path: Path) -> None:
    written(tmp_path / "grade" / "p1", "p1_")
    written(tmp_path / "grade" / "p2", "p2_")
    for n in range(9):
        touched(tmp_path / "grade" / f"q{n}" / ("x" * 200))
    (note,) = find_cases([tmp_path]).notes
    assert note.startswith("9 folders hold no NIfTI and were passed over: ")
    assert note.endswith("xxx) and 6 more")
    assert note.count("q") == 3
    assert "x" * 61 not in note


def test_ordinary_side_folders_of_a_data_set_are_not_told(tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        written(tmp_path / case / "nifti", f"{case}_")
        touched(tmp_path / case / "dicom" / "IM1.dcm")
        (tmp_path / case / "nifti" / "empty").mkdir()
    written(tmp_path / "others" / "p3", "p3_", words=["t1"])
    touched(tmp_path / "code" / "run.py", tmp_path / "code" / "__pycache__" / "run.pyc", tmp_path / "labelsTr" / "a.mha")
    touched(tmp_path / ".git" / "config", tmp_path / "atlas" / "x" / "mni.nii.gz")
    assert find_cases([tmp_path]).notes == ()


def test_an_absent_source_is_named_by_its_path(tmp_path: Path) -> None:
    (broken,) = find_cases([tmp_path / "absent"]).broken
    assert broken.name == str(tmp_path / "absent")
    assert str(broken.error).startswith(f"{tmp_path / 'absent'}: no such file or folder; give ")


def test_a_source_that_links_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    assert only_error(tmp_path / "link").startswith(f"{tmp_path / 'link'}: is a link to a file or folder that is missing; ")


@pytest.mark.parametrize("source", ["a\0b", "x" * 300])
def test_a_source_that_no_file_system_could_hold_is_named(tmp_path: Path, source: str) -> None:
    assert ": cannot be read: " in only_error(tmp_path / source)


@pytest.mark.parametrize("name", ["a_flair.nii.gz", "notes.txt", "list.xlsx"])
def test_a_file_that_is_no_table_is_refused_with_what_to_give(tmp_path: Path, name: str) -> None:
    touched(tmp_path / name)
    error = only_error(tmp_path / name)
    assert error.startswith(f"{tmp_path / name}: is neither a folder nor a table (.csv, .tsv); give the folder of a case")
    assert "--flair" in error


def test_a_pipe_named_like_a_table_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cases.csv")
    assert "neither a folder nor a table" in only_error(tmp_path / "cases.csv")


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_that_refuses_is_named_and_the_rest_is_found(link: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder / "tree" / "a", "a_")
        written(folder / "locked" / "inner" / "b", "b_")
        locked = folder / "tree" / "locked"
        if link:
            locked.symlink_to(folder / "locked" / "inner")
        else:
            (folder / "locked").rename(locked)
        (folder / "locked" if link else locked).chmod(0)
        folder.chmod(0o755)
        try:
            with unprivileged():
                cohort = find_cases([folder / "tree"])
        finally:
            (folder / "locked" if link else locked).chmod(0o700)
    assert names(cohort) == ["a"]
    (broken,) = cohort.broken
    assert broken.name == str(locked)
    assert str(broken.error) == f"{locked}: cannot be read: Permission denied; mend its permissions or leave it out"
    assert not cohort.alone


def test_a_source_of_which_a_part_refuses_is_not_called_empty() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        locked = Path(name) / "locked"
        locked.mkdir(mode=0)
        with unprivileged():
            errors = [only_error(Path(name)), only_error(locked)]
        locked.chmod(0o700)
    assert errors == 2 * [f"{locked}: cannot be read: Permission denied; mend its permissions or leave it out"]


def test_files_in_a_folder_that_may_be_listed_but_not_entered_are_a_broken_case() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name) / "a", "a_")
        Path(name).chmod(0o755)
        folder.chmod(0o744)
        with unprivileged():
            error = only_error(folder)
    assert error == f"{folder / 'a_flair.nii.gz'}: cannot be read: Permission denied (given as FLAIR)"


def test_a_link_to_an_image_that_may_not_be_seen_is_said_of_the_image() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name) / "a", "a_", ["t1ce", "t1", "t2"])
        written(Path(name) / "locked", "a_", ["flair"])
        (folder / "a_flair.nii.gz").symlink_to(Path(name) / "locked" / "a_flair.nii.gz")
        Path(name).chmod(0o755)
        (Path(name) / "locked").chmod(0)
        with unprivileged():
            error = only_error(folder)
        (Path(name) / "locked").chmod(0o700)
    assert error == f"{folder / 'a_flair.nii.gz'}: cannot be read: Permission denied (given as FLAIR)"


# One name, one case


def test_two_cases_of_one_name_are_both_broken_and_name_each_other(tmp_path: Path) -> None:
    one, other, third = (written(tmp_path / folder, "a_") for folder in ("one", "other", "third"))
    written(tmp_path, "b_")
    cohort = find_cases([tmp_path])
    assert names(cohort) == ["b"]
    assert [case.name for case in cohort.broken] == ["a", "a", "a"]
    remedy = "name them apart in a table (case,t1,t1ce,t2,flair[,seg])"
    assert [str(case.error) for case in cohort.broken] == [
        f"{one}: a is also the name of the case in {other}; {remedy}",
        f"{other}: a is also the name of the case in {one}; {remedy}",
        f"{third}: a is also the name of the case in {one}; {remedy}",
    ]


@pytest.mark.parametrize(
    "sources", [["a", "a"], ["a", "."], [".", "a"], ["a", "link"], ["a", "b/../a"], ["flat_link/a", "."], ["a", "a.csv"]]
)
def test_a_case_found_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a", "a_")
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "flat_link").symlink_to(".")
    table(tmp_path / "a.csv", "a,a/a_t1.nii.gz,a/a_t1ce.nii.gz,a/a_t2.nii.gz,a/a_flair.nii.gz")
    assert all_found(*map(Path, sources)) == ["a"]


def test_a_case_named_by_its_folder_counts_once_also_by_another_name_of_the_folder(tmp_path: Path) -> None:
    written(tmp_path / "p7", "")
    (tmp_path / "link").symlink_to("p7")
    assert all_found(tmp_path / "p7", tmp_path / "link") == ["p7"]


def test_a_broken_case_found_twice_counts_once(tmp_path: Path) -> None:
    written(tmp_path / "a", "a_", ["t1"])
    (tmp_path / "empty").mkdir()
    broken_table = table(tmp_path / "t.csv", "x,,,,")
    (tmp_path / "link.csv").symlink_to(broken_table)
    sources = [tmp_path / "a", tmp_path, tmp_path / "empty", tmp_path / "empty", broken_table, tmp_path / "link.csv"]
    assert [case.name for case in find_cases(sources).broken] == sorted(["a", str(tmp_path / "empty"), "x"])


def test_links_to_the_files_of_one_case_under_the_same_name_are_that_case(tmp_path: Path) -> None:
    written(tmp_path / "store", "a_")
    (tmp_path / "view").mkdir()
    for word in BRATS_2021:
        (tmp_path / "view" / f"a_{word}.nii.gz").symlink_to(tmp_path / "store" / f"a_{word}.nii.gz")
    assert all_found(tmp_path) == ["a"]


def test_the_same_images_with_another_reference_are_another_case(tmp_path: Path) -> None:
    written(tmp_path / "a", "a_", [*BRATS_2021, "seg"])
    source = table(tmp_path / "a.csv", "a,a/a_t1.nii.gz,a/a_t1ce.nii.gz,a/a_t2.nii.gz,a/a_flair.nii.gz")
    cohort = find_cases([tmp_path / "a", source])
    assert names(cohort) == []
    assert {str(case.error).partition(":")[0] for case in cohort.broken} == {str(tmp_path / "a"), f"{source}, line 2"}


def test_a_table_gives_cases_of_one_name_two(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        written(tmp_path / folder, "brain_")
    source = table(
        tmp_path / "cases.csv",
        *(
            f"{folder}," + ",".join(f"{folder}/brain_{word}.nii.gz" for word in ("t1", "t1ce", "t2", "flair"))
            for folder in ("two", "one")
        ),
    )
    assert all_found(source) == ["one", "two"]


# Tables among the sources


def test_rows_that_are_equal_count_once_and_rows_that_differ_are_broken(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    written(tmp_path, "b_")
    a, b = (f"{name}_t1.nii.gz,{name}_t1ce.nii.gz,{name}_t2.nii.gz,{name}_flair.nii.gz" for name in "ab")
    source = table(tmp_path / "cases.csv", f"x,{a}", f"x,{a}", f"y,{a}", f"y,{b}")
    cohort = find_cases([source])
    assert names(cohort) == ["x"]
    assert [str(case.error).partition(";")[0] for case in cohort.broken] == [
        f"{source}, line 4: y is also the name of the case in {source}, line 5",
        f"{source}, line 5: y is also the name of the case in {source}, line 4",
    ]


def test_a_table_that_cannot_be_used_is_one_broken_case_of_its_path(tmp_path: Path) -> None:
    written(tmp_path / "a", "a_")
    touched(tmp_path / "t.csv")
    cohort = find_cases([tmp_path / "a", tmp_path / "t.csv"])
    assert names(cohort) == ["a"]
    assert [case.name for case in cohort.broken] == [str(tmp_path / "t.csv")]


def test_a_folder_named_like_a_table_is_a_folder(tmp_path: Path) -> None:
    assert all_found(written(tmp_path / "cases.csv", "a_")) == ["a"]


def test_tables_inside_of_folders_are_left_alone(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    table(tmp_path / "cases.csv", "b,1,2,3,4")
    assert all_found(tmp_path) == ["a"]


# nnU-Net's numbers


def test_numbers_are_what_the_channels_say(tmp_path: Path) -> None:
    written(tmp_path, "a_", NNUNET)
    cohort = find_cases([tmp_path], Naming(channels=NNUNET_ORDER))
    assert names(cohort) == ["a"]
    assert file_names(cohort) == {T1: "a_0000.nii.gz", T1CE: "a_0001.nii.gz", T2: "a_0002.nii.gz", FLAIR: "a_0003.nii.gz"}


@pytest.mark.parametrize("place", ["Dataset1/dataset.json", "Dataset1/imagesTr/dataset.json"])
@pytest.mark.parametrize(
    ("dataset", "order"),
    [
        (DATASET_V2, NNUNET_ORDER),
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}, (FLAIR, T1, T1CE, T2)),
        ({"channel_names": {"3": "t2-flair", "2": "t1pre", "1": "T1_Gd", "0": "T2 w"}}, (T2, T1CE, T1, FLAIR)),
    ],
)
def test_numbers_are_what_dataset_json_says(tmp_path: Path, place: str, dataset: object, order: tuple[Modality, ...]) -> None:
    images = written(tmp_path / "Dataset1" / "imagesTr", "a_", NNUNET)
    (tmp_path / place).write_text(json.dumps(dataset), encoding="utf-8-sig")
    for source in (images, tmp_path):
        cohort = find_cases([source])
        assert file_names(cohort) == {modality: f"a_{n}.nii.gz" for modality, n in zip(order, NNUNET, strict=True)}


def test_dataset_json_beside_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path / "imagesTr", "a_", NNUNET))
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_V2))
    assert all_found(Path()) == ["a"]


def test_channels_come_before_dataset_json(tmp_path: Path) -> None:
    written(tmp_path, "a_", NNUNET)
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET_V2))
    cohort = find_cases([tmp_path], Naming(channels=CHANNELS))
    assert file_names(cohort)[FLAIR] == "a_0000.nii.gz"


def test_numbers_that_nothing_explains_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "imagesTr", "a_", NNUNET)
    assert only_error(tmp_path) == (
        f"{tmp_path / 'imagesTr'}: nothing says which modalities _0000 to _0003 are; give --channels with the four in order, "
        "such as t1,t1ce,t2,flair"
    )


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        "null",
        "{}",
        "[1]",
        '"T1, T1ce, T2, FLAIR"',
        '{"channel_names": []}',
        '{"channel_names": ["T1", "T1ce", "T2", "FLAIR"]}',
        '{"channel_names": {"0": 1, "1": null, "2": [], "3": {}}}',
        '{"channel_names": {"0": "T1", "1": "T1", "2": "T2", "3": "FLAIR"}}',
        '{"channel_names": {"0": "T1w", "1": "T1w", "2": "T2", "3": "FLAIR"}}',
        '{"channel_names": {"0": "CT", "1": "T1ce", "2": "T2", "3": "FLAIR"}}',
        '{"channel_names": {"1": "T1", "2": "T1ce", "3": "T2", "4": "FLAIR"}}',
        '{"channel_names": {"0": "T1", "1": "T1ce", "2": "T2"}}',
        '{"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR", "4": "PD"}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_dataset_json_that_does_not_help_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    written(tmp_path, "a_", NNUNET)
    (tmp_path / "dataset.json").write_text(content, encoding="latin-1")
    error = only_error(tmp_path)
    assert error.startswith(f"{tmp_path / 'dataset.json'}: ")
    assert "--channels" in error


def test_a_dataset_json_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    written(tmp_path, "a_", NNUNET)
    os.mkfifo(tmp_path / "dataset.json")
    assert "--channels" in only_error(tmp_path)


def test_a_damaged_dataset_json_leaves_named_images_alone(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    (tmp_path / "dataset.json").write_text("{")
    assert all_found(tmp_path) == ["a"]


def test_more_than_four_channels_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "a_", [*NNUNET, "0004"])
    error = only_error(tmp_path, naming=Naming(channels=NNUNET_ORDER))
    assert error.startswith(f"{tmp_path}: a has channels beyond the four of drunet (0004); ")


def test_a_number_that_is_missing_is_named_with_its_modality(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["0000", "0002", "0003"])
    error = only_error(tmp_path, naming=Naming(channels=NNUNET_ORDER))
    assert error.startswith(f"{tmp_path}: a has no T1ce: looked for NAME_0001.nii.gz")


def test_two_files_of_one_number_are_both_named(tmp_path: Path) -> None:
    written(tmp_path, "a_", NNUNET)
    touched(tmp_path / "a_0002.nii")
    error = only_error(tmp_path, naming=Naming(channels=NNUNET_ORDER))
    assert "a_0002.nii and a_0002.nii.gz for T2" in error


def test_only_numbers_of_four_digits_are_channels(tmp_path: Path) -> None:
    written(tmp_path, "a_", [*NNUNET, "001", "00004", "٠٠٠٤"])
    assert all_found(tmp_path, naming=Naming(channels=NNUNET_ORDER)) == ["a"]


def test_numbers_beside_named_images_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, "a_", [*BRATS_2021, *NNUNET, "2019"])
    assert all_found(tmp_path) == ["a"]


def test_nnunets_label_maps_are_neither_references_nor_images(tmp_path: Path) -> None:
    written(tmp_path / "imagesTr", "case_0001_", NNUNET)
    touched(tmp_path / "labelsTr" / "case_0001.nii.gz", tmp_path / "labelsTs" / "case_0002.nii.gz")
    cohort = find_cases([tmp_path], Naming(channels=NNUNET_ORDER))
    assert [(case.name, case.segmentation) for case in cohort.cases] == [("case_0001", None)]
    assert cohort.broken == ()


# Patterns of one's own


def test_a_pattern_finds_its_modality_alone_and_the_words_the_others(tmp_path: Path) -> None:
    written(tmp_path / "p", "a_", ["FLAIR", "T1", "T1_contrast", "t1ce", "T2"])
    cohort = find_cases([tmp_path], Naming({"t1ce": "*_contrast.nii.gz"}))
    assert names(cohort) == ["a"]
    assert file_names(cohort)[T1CE] == "a_T1_contrast.nii.gz"
    assert cohort.broken == ()


def test_a_file_that_a_pattern_takes_is_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["FLAIR", "T1", "post_T1", "T2"])
    cohort = find_cases([tmp_path], Naming({"t1ce": "*_post_T1.nii.gz"}))
    assert file_names(cohort) == {
        FLAIR: "a_FLAIR.nii.gz",
        T1CE: "a_post_T1.nii.gz",
        T1: "a_T1.nii.gz",
        T2: "a_T2.nii.gz",
    }


def test_with_patterns_a_folder_is_one_case_named_by_its_files_or_itself(tmp_path: Path) -> None:
    patterns = {"flair": "*FL*", "t1ce": "*post*", "t1": "*pre*", "t2": "*T2*", "seg": "*truth*"}
    touched(*(tmp_path / "sub-1" / "anat" / f"sub-1_{word}.nii.gz" for word in ("FL", "post", "pre", "T2")))
    touched(tmp_path / "sub-1" / "anat" / "truth.nii.gz")
    touched(*(tmp_path / "p7" / f"{word}.nii" for word in ("FL", "post", "pre", "T2")))
    touched(
        *(tmp_path / "p8" / f"{word}.nii.gz" for word in ("FL", "T1post", "T1pre", "T2")), tmp_path / "p8" / "x_0001.nii.gz"
    )
    touched(tmp_path / "p9" / "other_t1.nii.gz", tmp_path / "p9" / "scan_0001.nii.gz")
    cohort = find_cases([tmp_path], Naming(patterns))
    assert cohort.broken == ()
    assert names(cohort) == ["p7", "p8", "sub-1"]
    assert [case.segmentation and case.segmentation.name for case in cohort.cases] == [None, None, "truth.nii.gz"]


@pytest.mark.parametrize("glob", ["*fl.nii.gz", "?_FL.nii", "a_FL"])
def test_a_pattern_is_of_the_whole_file_name_in_its_very_letters(tmp_path: Path, glob: str) -> None:
    written(tmp_path, "a_", ["FL", "t1ce", "t1", "t2"])
    error = only_error(tmp_path, naming=Naming({"flair": glob}))
    found = "a_FL.nii.gz, a_t1.nii.gz, a_t1ce.nii.gz, a_t2.nii.gz"
    assert error == f"{tmp_path}: a has no FLAIR: looked for {glob}, found {found}; --pattern names others"


def test_a_pattern_that_two_files_of_a_case_have_is_to_be_narrowed(tmp_path: Path) -> None:
    written(tmp_path, "a_", ["FLAIR", "T1w", "ce_T1w", "T2w"])
    error = only_error(tmp_path, naming=Naming({"t1ce": "*_ce_T1w.nii.gz", "t1": "*_T1w.nii.gz"}))
    assert error.endswith("a_T1w.nii.gz and a_ce_T1w.nii.gz for T1; keep one, or narrow --pattern t1=*_T1w.nii.gz")


def test_a_pattern_finds_neither_hidden_files_nor_other_formats(tmp_path: Path) -> None:
    written(tmp_path, "a_")
    touched(tmp_path / "a_flair.json", tmp_path / "._a_flair.nii.gz", tmp_path / ".a_flair.nii.gz.host.1.tmp")
    assert all_found(tmp_path, naming=Naming({"flair": "*flair*"})) == ["a"]


def test_a_pattern_for_the_reference_alone_goes_with_numbers(tmp_path: Path) -> None:
    written(tmp_path / "a", "a_", [*NNUNET, "truth"])
    (case,) = find_cases([tmp_path], Naming({"seg": "*truth*"}, channels=NNUNET_ORDER)).cases
    assert case.name == "a"
    assert case.segmentation == tmp_path / "a" / "a_truth.nii.gz"


def test_a_folder_without_cases_says_which_patterns_were_looked_for(tmp_path: Path) -> None:
    error = only_error(tmp_path, naming=Naming({"t1": "*T1w*"}))
    assert "looked for files named NAME_flair.nii.gz, NAME_t1ce.nii.gz, *T1w*, NAME_t2.nii.gz, found no file at all; " in error


# One case alone


@pytest.mark.parametrize("words", [BRATS_2021, ("flair",)])
def test_a_case_folder_given_alone_is_alone_broken_or_not(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert find_cases([written(tmp_path, "a_", words)]).alone


def test_a_case_folder_given_as_the_working_folder_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path, "a_"))
    assert find_cases([Path()]).alone


@pytest.mark.parametrize(
    "sources",
    [["."], ["a", "b"], ["flat"], ["a", "a"], ["a.csv"], ["above"], ["mixed"], ["empty"], ["absent"], ["a/a_t1.nii.gz"]],
)
def test_anything_else_is_not_alone(tmp_path: Path, sources: list[str]) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, f"{name}_")
    written(tmp_path / "flat", "c_")
    written(tmp_path / "flat", "d_", ["t1"])
    written(tmp_path / "above" / "e", "e_")
    written(tmp_path / "mixed", "f_")
    written(tmp_path / "mixed" / "derived", "g_", ["t1"])
    (tmp_path / "empty").mkdir()
    table(tmp_path / "a.csv", "a,a/a_t1.nii.gz,a/a_t1ce.nii.gz,a/a_t2.nii.gz,a/a_flair.nii.gz")
    assert not find_cases([tmp_path / source for source in sources]).alone


# Speed


def test_thousands_of_cases_are_found_in_a_moment(tmp_path: Path) -> None:
    for n in range(1000):
        written(tmp_path / f"BraTS2021_{n:05}", f"BraTS2021_{n:05}_", [*BRATS_2021, "seg"])
    begin = time.process_time()
    assert len(all_found(tmp_path)) == 1000
    assert time.process_time() - begin < 1.5  # 0.09 s on the machine where this was written


def test_no_package_that_reads_images_is_imported() -> None:
    code = "import sys, drunet_cli.io.discovery; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"nibabel", "torch", "scipy", "PIL"} & set(modules)
