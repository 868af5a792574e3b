"""Cases from tables: what a spreadsheet may write, and what is said of rows that make no case."""

from pathlib import Path
from typing import Final

import pytest

from drunet_cli.brats import Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.case import BrokenCase, Case, Row, is_table, read_table

COLUMNS: Final = ("t1", "t1ce", "t2", "flair", "seg")
HEADER: Final = "case,t1,t1ce,t2,flair\n"
ROW: Final = "a,t1.nii,t1ce.nii,t2.nii,flair.nii\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for column in COLUMNS:
        (tmp_path / f"{column}.nii").touch()
    return tmp_path


def rows_of(folder: Path, content: str | bytes, *, name: str = "cases.csv") -> list[Row]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


def only_case(rows: list[Row]) -> Case:
    (row,) = rows
    assert isinstance(row.case, Case), row.case
    return row.case


def only_broken(rows: list[Row]) -> BrokenCase:
    (broken,) = [row.case for row in rows if isinstance(row.case, BrokenCase)]
    return broken


@pytest.mark.parametrize(
    ("name", "expected"), [("a.csv", True), ("a.TSV", True), ("a.nii", False), ("csv", False), ("a.csv.gz", False)]
)
def test_a_table_is_told_by_its_suffix(name: str, expected: bool) -> None:
    assert is_table(Path(name)) is expected


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROW,
        HEADER + ROW.rstrip("\n"),
        "\ufeff" + HEADER + ROW,
        (HEADER + ROW).replace("\n", "\r\n"),
        (HEADER + ROW).replace("\n", "\r"),
        '"case","t1","t1ce","t2","flair"\n"a","t1.nii","t1ce.nii","t2.nii","flair.nii"\n',
        "flair,t2,t1ce,t1,case\nflair.nii,t2.nii,t1ce.nii,t1.nii,a\n",
        "age,case,t1,t1ce,t2,flair,age\n61,a,t1.nii,t1ce.nii,t2.nii,flair.nii,62\n",
        " Case , T1,T1CE,t2 ,FLAIR\n a , t1.nii,t1ce.nii ,t2.nii,flair.nii\n",
        "\n" + HEADER + "\n,,,,\n  \n" + ROW + "\n\n",
        "case,t1,t1ce,t2,flair,seg\na,t1.nii,t1ce.nii,t2.nii,flair.nii,\n",
        "case,t1,t1ce,t2,flair,seg\na,t1.nii,t1ce.nii,t2.nii,flair.nii\n",
        HEADER + "a,t1.nii,t1ce.nii,t2.nii,flair.nii,,\n",
    ],
)
def test_a_table_is_read_however_a_program_writes_it(folder: Path, content: str) -> None:
    case = only_case(rows_of(folder, content))
    assert case == Case("a", {modality: folder / f"{modality}.nii" for modality in Modality})


def test_a_tsv_is_separated_by_tabs(folder: Path) -> None:
    (folder / "t1, left.nii").touch()
    content = (HEADER + ROW).replace(",", "\t").replace("t1.nii", "t1, left.nii")
    assert only_case(rows_of(folder, content, name="cases.TSV")).images[Modality.T1] == folder / "t1, left.nii"


def test_a_path_in_quotation_marks_may_hold_anything(folder: Path) -> None:
    (folder / 'Müller, "p 7".nii').touch()
    content = HEADER + 'a,"Müller, ""p 7"".nii",t1ce.nii,t2.nii,flair.nii\n'
    assert only_case(rows_of(folder, content)).images[Modality.T1] == folder / 'Müller, "p 7".nii'


def test_relative_paths_begin_at_the_table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "tables").mkdir()
    for column in COLUMNS:
        (elsewhere / f"{column}.nii").touch()
    content = f"{HEADER}a,../t1.nii,{folder}/t1ce.nii,../t2.nii,../flair.nii\n"
    images = only_case(rows_of(elsewhere / "tables", content)).images
    assert images[Modality.T1] == elsewhere / "tables" / "../t1.nii"
    assert images[Modality.T1CE] == folder / "t1ce.nii"


def test_a_row_may_name_its_reference(folder: Path) -> None:
    case = only_case(rows_of(folder, f"seg,{HEADER}seg.nii,{ROW}"))
    assert case.segmentation == folder / "seg.nii"


def test_a_bad_row_breaks_itself_alone_and_is_named_by_its_line(folder: Path) -> None:
    rows = rows_of(folder, f"{HEADER}{ROW}\nb,t1.nii,gone.nii,t2.nii,flair.nii\nc,{ROW[2:]}")
    assert [row.case.name for row in rows] == ["a", "b", "c"]
    assert [row.line for row in rows] == [2, 4, 5]
    assert str(only_broken(rows).error) == (
        f"{folder / 'cases.csv'}, line 4: {folder / 'gone.nii'}: no such file (given as T1ce)"
    )


def test_lines_are_counted_as_an_editor_does_also_after_a_cell_of_several(folder: Path) -> None:
    rows = rows_of(folder, f'note,{HEADER}"one\ntwo\nthree",{ROW}x,b,,,,\n')
    assert [row.line for row in rows] == [2, 5]
    assert ", line 5: " in str(only_broken(rows).error)


@pytest.mark.parametrize("row", ["b,t1.nii,,t2.nii,\n", "b,t1.nii, ,t2.nii\n"])
def test_an_empty_cell_is_named(folder: Path, row: str) -> None:
    error = only_broken(rows_of(folder, HEADER + ROW + row)).error
    assert str(error) == f"{folder / 'cases.csv'}, line 3: b has no FLAIR, T1ce; fill in flair, t1ce"


def test_a_row_that_ends_before_its_name_is_refused(folder: Path) -> None:
    broken = only_broken(rows_of(folder, "flair,t2,t1ce,t1,case\nflair.nii,t2.nii\n"))
    assert str(broken.error).startswith(f"{folder / 'cases.csv'}, line 2: '' cannot be part of a file name; ")


def test_a_cell_too_many_is_named(folder: Path) -> None:
    error = only_broken(rows_of(folder, HEADER + "b,t1, left.nii,t1ce.nii,t2.nii,flair.nii\n")).error
    assert "line 2: has more cells than the header; put a path that holds a separator in quotation marks" in str(error)


def test_one_file_in_two_columns_is_named(folder: Path) -> None:
    error = only_broken(rows_of(folder, HEADER + "b,t1.nii,t1.nii,t2.nii,flair.nii\n")).error
    assert "line 2: " in str(error)
    assert "given as T1ce and as T1;" in str(error)


@pytest.mark.parametrize("path", ["a\0b.nii", "x" * 300, "t1.nii/x"])
def test_a_path_that_no_file_system_could_hold_is_named(folder: Path, path: str) -> None:
    error = only_broken(rows_of(folder, HEADER + f"b,{path},t1ce.nii,t2.nii,flair.nii\n")).error
    assert ": cannot be read: " in str(error)


@pytest.mark.parametrize("name", ["", ".", "..", "...", "a/b", "/", '"a\nb"', "a\tb", "a\x00", "a\x7fb", "a\u2028b"])
def test_a_name_that_no_file_can_bear_is_refused(folder: Path, name: str) -> None:
    broken = only_broken(rows_of(folder, f"{HEADER}{name}{ROW[1:]}"))
    place = f"{folder / 'cases.csv'}, line 2"
    assert broken.name == place
    assert str(broken.error).startswith(f"{place}: ")
    assert str(broken.error).endswith(" cannot be part of a file name; rename the case")


@pytest.mark.parametrize("name", ["Müller 7", "患者\u3000一", "a.b", ".a", "-1", "a\u0301", "patient\\7"])
def test_other_names_are_kept_as_they_are(folder: Path, name: str) -> None:
    assert only_case(rows_of(folder, f"{HEADER}{name}{ROW[1:]}")).name == name


@pytest.mark.parametrize("column", ["case", "t1", "t1ce", "t2", "flair"])
def test_a_missing_column_is_named(folder: Path, column: str) -> None:
    header = HEADER.strip().split(",")
    header[header.index(column)] = "other"
    with pytest.raises(CaseError) as caught:
        rows_of(folder, ",".join(header) + "\n" + ROW)
    assert str(caught.value).startswith(f"{folder / 'cases.csv'}: has no column {column}; its first line must be case,t1,")


@pytest.mark.parametrize(("name", "content"), [("t.csv", HEADER.replace(",", ";")), ("t.tsv", HEADER)])
def test_another_separator_is_told(folder: Path, name: str, content: str) -> None:
    with pytest.raises(CaseError, match=r"separated by commas" if name == "t.csv" else r"separated by tabs"):
        rows_of(folder, content, name=name)


@pytest.mark.parametrize("column", ["t1", "SEG", "case"])
def test_a_doubled_column_is_named(folder: Path, column: str) -> None:
    with pytest.raises(CaseError, match=rf": has more than one column {column.lower()}; keep one$"):
        rows_of(folder, f"{column},{column},{HEADER}x,y,{ROW}")


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", HEADER, HEADER + "\n,,,,\n"])
def test_a_table_without_rows_is_refused(folder: Path, content: str) -> None:
    with pytest.raises(CaseError, match=r"cases\.csv: has no "):
        rows_of(folder, content)


@pytest.mark.parametrize("content", [(HEADER + ROW).encode("utf-16"), HEADER.encode() + "Müller".encode("latin-1")])
def test_another_encoding_is_refused(folder: Path, content: bytes) -> None:
    with pytest.raises(CaseError, match=r"cases\.csv: is not text in UTF-8; save the table as UTF-8$"):
        rows_of(folder, content)


@pytest.mark.parametrize("row", ['a,"t1.nii,t1ce.nii,t2.nii,flair.nii\n' + ROW, 'a,"t1".nii,t1ce.nii,t2.nii,flair.nii\n'])
def test_a_quotation_mark_without_its_partner_swallows_no_row(folder: Path, row: str) -> None:
    with pytest.raises(CaseError, match=r"cases\.csv, line 3: cannot be read as a table: "):
        rows_of(folder, HEADER + ROW + row)


def test_a_cell_beyond_all_size_is_refused(folder: Path) -> None:
    with pytest.raises(CaseError, match=r"line 2: cannot be read as a table: "):
        rows_of(folder, HEADER + "x" * 200_000 + ROW)


def test_a_table_that_is_gone_is_refused(folder: Path) -> None:
    with pytest.raises(CaseError, match=r"gone\.csv: cannot be read: No such file"):
        read_table(folder / "gone.csv")
