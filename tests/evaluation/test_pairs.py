"""Predictions find their references by the names of their cases, or by a table. No file needs to be a NIfTI file for it."""

import os
from pathlib import Path

import pytest

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.evaluation.pairs import Pair, Pairing, label_maps_in, pair_up, read_pairs, table_of

HEADER = "case,prediction,reference\n"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def cases_in(folder: Path) -> set[str]:
    return set(label_maps_in(folder))


def paired(predictions: Path, references: Path) -> list[str]:
    pairing = pair_up(predictions, references)
    assert not pairing.unpaired
    assert not pairing.missing
    return [pair.case for pair in pairing.pairs]


def rows(text: str) -> Pairing:
    return read_pairs(HEADER + text, folder=Path("tables"), name="pairs.csv")


# --- two files


def test_two_files_are_a_pair_that_is_called_as_the_reference_is(tmp_path: Path) -> None:
    prediction, reference = tmp_path / "result.nii.gz", tmp_path / "BraTS2021_00001_seg.nii.gz"
    touch(tmp_path, prediction.name, reference.name)
    assert pair_up(prediction, reference).pairs == (Pair("BraTS2021_00001", prediction, reference),)


def test_a_reference_without_a_name_of_its_own_is_called_as_its_folder_is(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "case_7/seg.nii")
    assert pair_up(tmp_path / "a.nii", tmp_path / "case_7" / "seg.nii").pairs[0].case == "case_7"


def test_a_reference_in_the_current_folder_is_called_as_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "case_8/a.nii", "case_8/seg.nii")
    monkeypatch.chdir(tmp_path / "case_8")
    assert pair_up(Path("a.nii"), Path("seg.nii")).pairs[0].case == "case_8"


@pytest.mark.parametrize("folder_first", [True, False])
def test_a_file_and_a_folder_are_no_pair(folder_first: bool, tmp_path: Path) -> None:
    touch(tmp_path, "folder/a.nii", "b.nii")
    one, other = (tmp_path / "folder", tmp_path / "b.nii")[:: 1 if folder_first else -1]
    with pytest.raises(MisuseError, match="give two label maps, or two folders"):
        pair_up(one, other)


# --- two folders


@pytest.mark.parametrize(
    "reference",
    [
        "case_1.nii.gz",
        "case_1.nii",
        "case_1.NII.GZ",
        "case_1_seg.nii.gz",
        "case_1-seg.nii.gz",
        "case_1_SEG.nii",
        "case_1 seg.nii",
        "case_1.seg.nii",
        "case_1/case_1_seg.nii.gz",
        "case_1/seg.nii.gz",
        "HGG/case_1/case_1_seg.nii.gz",
    ],
)
def test_every_way_to_name_a_label_map_finds_its_partner(reference: str, tmp_path: Path) -> None:
    predictions, references = touch(tmp_path / "out", "case_1.nii.gz"), touch(tmp_path / "ref", reference)
    assert pair_up(predictions, references).pairs == (Pair("case_1", predictions / "case_1.nii.gz", references / reference),)


def test_names_of_brats_2023_keep_all_their_words(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "out", "BraTS-GLI-00001-000.nii.gz", "BraTS-GLI-00001-001.nii.gz")
    references = touch(tmp_path / "ref", "a/BraTS-GLI-00001-000-seg.nii.gz", "b/BraTS-GLI-00001-001-seg.nii.gz")
    assert paired(predictions, references) == ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"]


def test_pairs_are_sorted_by_case(tmp_path: Path) -> None:
    names = ("c.nii", "a.nii", "b.nii")
    assert paired(touch(tmp_path / "out", *names), touch(tmp_path / "ref", *names)) == ["a", "b", "c"]


@pytest.mark.parametrize("words", [("_t1", "_t1ce", "_t2", "_flair"), ("-t1n", "-t1c", "-t2w", "-t2f"), ("_T1", "_T1Gd")])
def test_images_beside_label_maps_are_not_taken_for_these(words: tuple[str, ...], tmp_path: Path) -> None:
    assert cases_in(touch(tmp_path, "x/x_seg.nii.gz", *(f"x/x{word}.nii.gz" for word in words))) == {"x"}


@pytest.mark.parametrize("word", ["probabilities", "entropy", "unc_whole", "unc_core", "unc_enhance"])
def test_what_segment_writes_beside_a_label_map_is_no_label_map(word: str, tmp_path: Path) -> None:
    assert cases_in(touch(tmp_path, "x.nii.gz", f"x_{word}.nii.gz", "x.json", "x_preview.png", "summary.csv")) == {"x"}


@pytest.mark.parametrize("hidden", ["._x.nii.gz", ".x.nii.gz.host.12.tmp", ".trash/y.nii.gz"])
def test_hidden_files_and_folders_are_passed_over(hidden: str, tmp_path: Path) -> None:
    assert cases_in(touch(tmp_path, "x.nii.gz", hidden)) == {"x"}


def test_a_case_on_one_side_only_is_missing_and_named_with_its_file(tmp_path: Path) -> None:
    predictions, references = touch(tmp_path / "out", "a.nii", "b.nii"), touch(tmp_path / "ref", "b_seg.nii", "c_seg.nii")
    pairing = pair_up(predictions, references)
    assert [pair.case for pair in pairing.pairs] == ["b"]
    assert {case: str(error) for case, error in pairing.missing.items()} == {
        "a": f"{predictions / 'a.nii'}: has no partner in {references}",
        "c": f"{references / 'c_seg.nii'}: has no partner in {predictions}",
    }
    assert not pairing.unpaired


@pytest.mark.parametrize("side", ["out", "ref"])
def test_a_case_that_is_there_twice_is_not_chosen_from(side: str, tmp_path: Path) -> None:
    touch(tmp_path, "out/a.nii.gz", "ref/a_seg.nii.gz", f"{side}/more/a.nii", "out/b.nii", "ref/b.nii")
    pairing = pair_up(tmp_path / "out", tmp_path / "ref")
    assert [pair.case for pair in pairing.pairs] == ["b"]
    assert list(pairing.unpaired) == ["a"]
    assert "both are label maps of a; keep one, or give a table" in str(pairing.unpaired["a"])
    assert not pairing.missing


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("x_t1.nii.gz",), ("x_entropy.nii.gz",)])
def test_a_folder_without_label_maps_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty", *names)
    with pytest.raises(CaseError, match="empty: holds no label map; looked for"):
        pair_up(touch(tmp_path / "out", "a.nii"), tmp_path / "empty")


def test_a_folder_is_not_compared_with_itself(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="is given as prediction and as reference"):
        pair_up(touch(tmp_path, "a.nii"), tmp_path)


@pytest.mark.parametrize("spelling", ["linked", "relative"])
def test_a_folder_by_another_path_is_not_compared_with_itself(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = touch(tmp_path / "out", "a.nii")
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaseError, match="is given as prediction and as reference"):
        pair_up(folder, tmp_path / "linked" if spelling == "linked" else Path("out"))


def test_an_absent_folder_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"[Nn]o such|does not exist|is absent"):
        pair_up(tmp_path / "absent", touch(tmp_path / "ref", "a.nii"))


def test_links_that_lead_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    folder = touch(tmp_path / "out", "deep/a.nii")
    (folder / "deep" / "again").symlink_to(folder)
    assert label_maps_in(folder) == {"a": [folder / "deep" / "a.nii"]}


def test_a_link_to_itself_does_not_hide_the_label_maps_beside_it(tmp_path: Path) -> None:
    folder = touch(tmp_path / "out", "a.nii")
    (folder / "self").symlink_to("self")
    assert cases_in(folder) == {"a"}


def test_a_linked_file_and_a_linked_folder_are_found(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "a.nii", "more/b.nii")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii").symlink_to(elsewhere / "a.nii")
    (tmp_path / "out" / "more").symlink_to(elsewhere / "more")
    assert cases_in(tmp_path / "out") == {"a", "b"}


def test_a_name_that_is_no_utf8_pairs_too(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.nii")
    assert paired(touch(tmp_path / "out", name), touch(tmp_path / "ref", name)) == [os.fsdecode(b"caf\xe9")]


# --- a table


def test_relative_paths_of_a_table_begin_at_its_folder_and_absolute_ones_stay() -> None:
    assert rows("b,p/b.nii,/data/b.nii\na,a.nii,r.nii\n").pairs == (
        Pair("a", Path("tables/a.nii"), Path("tables/r.nii")),
        Pair("b", Path("tables/p/b.nii"), Path("/data/b.nii")),
    )


@pytest.mark.parametrize(
    "text",
    [
        "case,prediction,reference\r\na,p,r\r\n",
        "\ufeffcase,prediction,reference\na,p,r",
        "reference,age,case,prediction\nr,61,a,p\n",
        'case,prediction,reference\n"a", p ,"r"\n',
        "case,prediction,reference\n\na,p,r\n\n",
    ],
    ids=["windows", "byte order mark", "other columns", "quotes and spaces", "blank lines"],
)
def test_tables_are_read_as_spreadsheets_write_them(text: str) -> None:
    assert read_pairs(text, folder=Path(), name="t").pairs == (Pair("a", Path("p"), Path("r")),)


def test_a_quoted_field_may_hold_a_comma() -> None:
    assert rows('"Smith, J",p,r\n').pairs[0].case == "Smith, J"


@pytest.mark.parametrize(
    "text",
    ["", "\n", HEADER, "case,prediction\na,b\n", "case;prediction;reference\na;b;c\n", "a,b,c\n", "Case,Prediction,Ref\n"],
)
def test_a_table_without_its_columns_or_rows_is_refused(text: str) -> None:
    with pytest.raises(CaseError, match=r"t\.csv: needs the header case,prediction,reference and a row for each case"):
        read_pairs(text, folder=Path(), name="t.csv")


def test_a_table_with_an_open_quote_is_refused() -> None:
    with pytest.raises(CaseError, match=r"pairs\.csv: cannot be read as a table: "):
        rows('"a,p,r\n')


@pytest.mark.parametrize("row", ["a,p,", "a,,r", "a,p", "a", "a, ,r"])
def test_a_row_that_lacks_a_field_is_a_failed_case_and_the_others_stay(row: str) -> None:
    pairing = rows(f"{row}\nb,p,r\n")
    assert [pair.case for pair in pairing.pairs] == ["b"]
    assert {case: str(error) for case, error in pairing.unpaired.items()} == {
        "a": "pairs.csv, line 2: lacks a case, prediction or reference"
    }
    assert not pairing.missing


def test_a_row_without_a_case_is_named_by_its_line() -> None:
    assert list(rows("b,p,r\n,p,r\n").unpaired) == ["line 3"]


def test_a_case_of_two_rows_is_compared_in_none() -> None:
    pairing = rows("a,p,r\na,q,r\nb,p,r\n")
    assert [pair.case for pair in pairing.pairs] == ["b"]
    assert str(pairing.unpaired["a"]) == "pairs.csv, line 3: a is there twice"


def test_the_line_of_a_bad_row_is_the_line_of_the_file() -> None:
    assert str(rows("b,p,r\n\na,p\n").unpaired["a"]).startswith("pairs.csv, line 4: ")


def test_a_table_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"t\.csv: cannot be read: No such file or directory"):
        table_of(tmp_path / "t.csv")


def test_a_table_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEADER.encode() + b"caf\xe9,p,r\n")
    with pytest.raises(CaseError, match=r"t\.csv: is not text in UTF-8; save the table as UTF-8"):
        table_of(tmp_path / "t.csv")
