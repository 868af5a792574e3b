"""Predictions find their references by the names of their cases, or by a table. No file needs to be a NIfTI file for it."""

import os
from pathlib import Path

import pytest

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.evaluation.pairs import (
    Pair,
    label_maps_in,
    pair_up,
    parse_table,
    read_table,
    t1_of,
    uncertainty_maps_of,
)

HEADER = "case,prediction,reference\n"
LACKS = "lacks a case, prediction or reference"


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


@pytest.mark.parametrize(
    ("reference", "case"), [("BraTS2021_00001_seg.nii.gz", "BraTS2021_00001"), ("case_7/seg.nii", "case_7")]
)
def test_two_files_are_a_pair_that_is_called_as_the_reference_or_its_folder(reference: str, case: str, tmp_path: Path) -> None:
    touch(tmp_path, "result.nii.gz", reference)
    prediction, reference_file = tmp_path / "result.nii.gz", tmp_path / reference
    assert pair_up(prediction, reference_file).pairs == (Pair(case, prediction, reference_file),)


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


def test_names_of_bids_tell_the_case_and_copies_on_the_grids_of_scans_are_left_aside(tmp_path: Path) -> None:
    ours = [f"out/sub-01/ses-1/anat/sub-01_ses-1_space-{space}_desc-tumour_dseg.nii.gz" for space in ("BraTS", "T1ce")]
    beside = [ours[0].replace("dseg", suffix) for suffix in ("probseg", "entropy", "uncertainty")]
    touch(tmp_path, *ours, *beside, "manual/sub-01_ses-1_space-BraTS_label-L_desc-manual_dseg.nii")
    assert paired(tmp_path / "out", tmp_path / "manual") == ["sub-01_ses-1"]
    assert label_maps_in(tmp_path / "out")["sub-01_ses-1"] == [tmp_path / ours[0]]


def test_names_of_brats_2023_keep_all_their_words(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "out", "BraTS-GLI-00001-000.nii.gz", "BraTS-GLI-00001-001.nii.gz")
    references = touch(tmp_path / "ref", "a/BraTS-GLI-00001-000-seg.nii.gz", "b/BraTS-GLI-00001-001-seg.nii.gz")
    assert paired(predictions, references) == ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"]


def test_pairs_are_sorted_by_case(tmp_path: Path) -> None:
    names = ("c.nii", "a.nii", "b.nii", os.fsdecode(b"caf\xe9.nii"))  # the last is no UTF-8
    cases = ["a", "b", "c", os.fsdecode(b"caf\xe9")]
    assert paired(touch(tmp_path / "out", *names), touch(tmp_path / "ref", *names)) == cases


@pytest.mark.parametrize(
    "others",
    [
        [f"x/x{word}.nii.gz" for word in ("_t1", "_t1ce", "_t2", "_flair", "-t1n", "-t1c", "-t2w", "-t2f", "_T1", "_T1Gd")],
        [f"x_{word}.nii.gz" for word in ("probabilities", "entropy", "unc_whole", "unc_core", "unc_enhance")],
        ["x.json", "x_preview.png", "summary.csv", "notes.txt"],
        ["._x.nii.gz", ".x.nii.gz.host.12.tmp", ".trash/y.nii.gz"],
    ],
    ids=["images", "volumes of segment", "other files of segment", "hidden"],
)
def test_other_files_beside_label_maps_are_no_label_maps(others: list[str], tmp_path: Path) -> None:
    assert cases_in(touch(tmp_path, "x/x_seg.nii.gz", *others)) == {"x"}
    (tmp_path / "x/x_seg.nii.gz").unlink()
    with pytest.raises(CaseError, match=f"{tmp_path}: holds no label map; looked for"):
        label_maps_in(tmp_path)


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


@pytest.mark.parametrize("spelling", ["linked", "relative", "same"])
def test_a_folder_by_any_path_is_not_compared_with_itself(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = touch(tmp_path / "out", "a.nii")
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaseError, match="is given as prediction and as reference"):
        pair_up(folder, {"linked": tmp_path / "linked", "relative": Path("out"), "same": folder}[spelling])


def test_an_absent_folder_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"[Nn]o such|does not exist|is absent"):
        pair_up(tmp_path / "absent", touch(tmp_path / "ref", "a.nii"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "a.nii", "more/b.nii")
    folder = touch(tmp_path / "out", "deep/c.nii")
    for link, target in (
        ("a.nii", elsewhere / "a.nii"),
        ("more", elsewhere / "more"),
        ("deep/again", folder),
        ("self", "self"),
    ):
        (folder / link).symlink_to(target)
    assert label_maps_in(folder) == {
        "a": [folder / "a.nii"],
        "b": [folder / "more" / "b.nii"],
        "c": [folder / "deep" / "c.nii"],
    }


def test_relative_paths_of_a_table_begin_at_its_folder_and_absolute_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{HEADER}b,p/b.nii,/data/b.nii\na,a.nii,r.nii\n")
    assert read_table(tmp_path / "t.csv").pairs == (
        Pair("a", tmp_path / "a.nii", tmp_path / "r.nii"),
        Pair("b", tmp_path / "p/b.nii", Path("/data/b.nii")),
    )


@pytest.mark.parametrize(
    ("text", "case"),
    [
        ("case,prediction,reference\r\na,p,r\r\n", "a"),
        ("\ufeffcase,prediction,reference\na,p,r", "a"),
        ("reference,age,case,prediction\nr,61,a,p\n", "a"),
        ('case,prediction,reference\n"a", p ,"r"\n', "a"),
        ("case,prediction,reference\n\na,p,r\n\n", "a"),
        ('case,prediction,reference\n"Smith, J",p,r\n', "Smith, J"),
    ],
    ids=["windows", "byte order mark", "other columns", "quotes and spaces", "blank lines", "comma"],
)
def test_tables_are_read_as_spreadsheets_write_them(text: str, case: str) -> None:
    assert parse_table(text.encode(), folder=Path(), name="t").pairs == (Pair(case, Path("p"), Path("r")),)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        *((text, "needs the header case,prediction,reference and a row for each case") for text in ("", "\n", HEADER)),
        ("case,prediction\na,b\n", "needs the header "),
        ("case;prediction;reference\na;b;c\n", "needs the header "),
        ("Case,Prediction,Ref\n", "needs the header "),
        (f'{HEADER}"a,p,r\n', "cannot be read as a table: "),
    ],
)
def test_what_is_no_table_is_refused(table: str, words: str) -> None:
    with pytest.raises(CaseError) as caught:
        parse_table(table.encode(errors="surrogateescape"), folder=Path(), name="t.csv")
    assert str(caught.value).startswith(f"t.csv: {words}")


def test_a_table_names_label_maps_by_their_bytes_or_says_that_it_is_not_utf8(tmp_path: Path) -> None:
    Path(tmp_path, os.fsdecode(b"\xe9")).touch()
    pairing = parse_table(HEADER.encode() + b"a,\xe9,r\nb,\xe8,r\n", folder=tmp_path, name="t.csv")
    assert [os.fsencode(pair.prediction)[-1:] for pair in pairing.pairs] == [b"\xe9"]
    assert str(pairing.unpaired["b"]) == "t.csv, line 3: no such file; the table is not text in UTF-8: save it as UTF-8"


def test_a_table_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"t\.csv: cannot be read: No such file or directory"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("rows", "unpaired"),
    [
        *((f"{row}\nb,p,r\n", {"a": f"line 2: {LACKS}"}) for row in ("a,p,", "a,,r", "a", "a, ,r")),
        ("b,p,r\n,p,r\n", {"line 3": f"line 3: {LACKS}"}),
        ("a,p,r\na,q,r\nb,p,r\n", {"a": "line 3: a is there twice"}),
        ("b,p,r\n\na,p\n", {"a": f"line 4: {LACKS}"}),  # the line of the file
    ],
)
def test_a_bad_row_is_a_failed_case_and_the_others_stay(rows: str, unpaired: dict[str, str]) -> None:
    pairing = parse_table((HEADER + rows).encode(), folder=Path(), name="t.csv")
    assert [pair.case for pair in pairing.pairs] == ["b"]
    assert {case: str(error) for case, error in pairing.unpaired.items()} == {
        case: f"t.csv, {words}" for case, words in unpaired.items()
    }
    assert not pairing.missing


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_uncertainty_maps_are_found_beside_a_label_map_of_either_suffix(name: str, tmp_path: Path) -> None:
    maps = {"WT": "x_unc_whole.nii.gz", "TC": "x_unc_core.nii", "ET": "x_unc_enhance.nii.gz"}
    touch(tmp_path, *maps.values(), "xx_unc_core.nii.gz")
    assert {region: path.name for region, path in uncertainty_maps_of(tmp_path / name).items()} == maps


def test_uncertainty_maps_that_are_absent_are_all_named_in_one_error(tmp_path: Path) -> None:
    touch(tmp_path, "a_unc_core.nii.gz")
    with pytest.raises(CaseError) as caught:
        uncertainty_maps_of(tmp_path / "a.nii.gz")
    assert str(caught.value) == (
        f"{tmp_path}/a.nii.gz: has no a_unc_whole.nii.gz, a_unc_enhance.nii.gz beside it; segment the case with "
        "--uncertainty, or compare it without"
    )


@pytest.mark.parametrize(
    ("reference", "t1"),
    [
        ("a_seg.nii.gz", "a_t1.nii.gz"),
        ("a-seg.nii.gz", "a-t1n.nii.gz"),
        ("a.nii", "a_t1.nii"),
        ("seg.nii", "t1.nii.gz"),
    ],
)
def test_the_t1_image_is_found_by_the_names_of_brats(reference: str, t1: str, tmp_path: Path) -> None:
    touch(tmp_path, "b_t1.nii.gz", "a_t1ce.nii.gz", "a-t1c.nii.gz", "t1ce.nii.gz", "a_t2.nii.gz")
    assert t1_of(tmp_path / reference) is None
    touch(tmp_path, t1)
    assert t1_of(tmp_path / reference) == tmp_path / t1


def test_references_of_one_name_are_named_by_their_folders_as_their_cases_are(tmp_path: Path) -> None:
    references = touch(tmp_path / "r", *(f"{case}/MR/{name}.nii.gz" for case in ("P01", "P02") for name in ("seg", "t2tse")))
    touch(references, "Q1/x_seg.nii.gz", "Q2/x_seg.nii.gz", "Q2/x_mprage_post.nii.gz")
    predictions = touch(tmp_path / "p", *(f"{case}.nii.gz" for case in ("P01", "P02", "Q1_x", "Q2_x")))
    assert paired(predictions, references) == ["P01", "P02", "Q1_x", "Q2_x"]
