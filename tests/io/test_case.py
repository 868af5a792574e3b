"""The four files of a case, its name, and tables of cases."""

import codecs
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.case import BrokenCase, Case, Row, case_of, read_table, text_of
from tests.support import open_to_all, unprivileged

NAMES_2021: Final = ("flair", "t1ce", "t1", "t2")
NAMES_2023: Final = ("t2f", "t1c", "t1n", "t2w")


def files(folder: Path, names: Sequence[str]) -> dict[Modality, Path]:
    """Four files, in the order FLAIR, T1ce, T1, T2."""
    images = {modality: folder / name for modality, name in zip(CHANNELS, names, strict=True)}
    for path in images.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return images


@pytest.fixture
def images(tmp_path: Path) -> dict[Modality, Path]:
    return files(tmp_path, [f"a_{word}.nii.gz" for word in NAMES_2021])


@pytest.mark.parametrize(
    ("pattern", "words", "expected"),
    [
        ("a_{}.nii.gz", NAMES_2021, "a"),
        ("BraTS2021_01479_{}.nii.gz", NAMES_2021, "BraTS2021_01479"),
        ("X-{}.nii.gz", NAMES_2023, "X"),
        ("BraTS-GLI-00005-100-{}.nii.gz", NAMES_2023, "BraTS-GLI-00005-100"),
        ("sub-01_{}.nii.gz", ("FLAIR", "ce-GD_T1w", "T1w", "T2w"), "sub-01"),
        ("p 7 {}.nii", NAMES_2021, "p 7"),
        ("p.{}.nii", NAMES_2021, "p"),
        ("a_{}", ("flair.nii", "t1ce.NII.GZ", "t1.nii.gz", "t2.nii"), "a"),
        ("{}.nii", ("Brain_FLAIR", "contrast", "plain", "t2"), "Brain_FLAIR"),
        ("{}.nii.gz", ("one/flair", "two/t1ce", "two/t1", "two/t2"), "flair"),
        ("{}.nii.gz", ("head", "tumour_ce", "tumour", "t2"), "head"),
        ("{}/a.nii.gz", NAMES_2021, "a"),
        ("{}/sub_1.nii.gz", NAMES_2021, "sub_1"),
        ("p7/{}.nii.gz", NAMES_2021, "p7"),
    ],
)
def test_a_case_is_called_what_its_files_share_or_else_as_flair_is(
    tmp_path: Path, pattern: str, words: Sequence[str], expected: str
) -> None:
    assert case_of(files(tmp_path, [pattern.format(word) for word in words])).name == expected


def test_files_beside_the_working_folder_have_the_name_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "p7", ["flair.nii", "t1ce.nii", "t1.nii", "t2.nii"])
    (tmp_path / "p7" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "p7" / "here")
    assert case_of({modality: Path("..") / f"{modality}.nii" for modality in CHANNELS}).name == "p7"


def test_what_is_given_is_kept_and_nothing_is_added(images: dict[Modality, Path]) -> None:
    assert case_of(images) == Case("a", images, segmentation=None)
    assert case_of(images, name="patient 7") == Case("patient 7", images, segmentation=None)


def test_a_reference_is_kept_beside_the_images(tmp_path: Path, images: dict[Modality, Path]) -> None:
    (tmp_path / "truth.nii.gz").touch()
    case = case_of(images, segmentation=tmp_path / "truth.nii.gz")
    assert (case.name, case.segmentation) == ("a", tmp_path / "truth.nii.gz")
    assert list(case.files) == [*CHANNELS, "seg"]


@pytest.mark.parametrize(
    ("modality", "path", "words"),
    [
        (Modality.FLAIR, "gone.nii", "no such file (given as FLAIR)"),
        (Modality.T1CE, "dangling.nii", "is a link to a file that is missing (given as T1ce)"),
        (Modality.T1, "folder", "is a folder, not a NIfTI file (given as T1)"),
        (Modality.T2, "pipe.nii", "is not a regular file (given as T2)"),
        (Modality.FLAIR, "a\0b", "cannot be read: "),
        (Modality.T1CE, "x" * 300, "cannot be read: "),
        (Modality.T1, "locked/a.nii", "cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_modality(
    images: dict[Modality, Path], modality: Modality, path: str, words: str
) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        folder = Path(name)
        (folder / "dangling.nii").symlink_to("gone")
        (folder / "folder").mkdir()
        (folder / "locked").mkdir(mode=0)
        os.mkfifo(folder / "pipe.nii")
        given = files(folder, [image.name for image in images.values()])
        open_to_all(folder)
        with unprivileged(), pytest.raises(CaseError) as caught:
            case_of({**given, modality: folder / path})
        assert str(caught.value).startswith(f"{folder / path}: {words}".replace("\0", " "))


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_one_file_given_twice_is_refused_by_whatever_path(tmp_path: Path, images: dict[Modality, Path], link: str) -> None:
    getattr(tmp_path / "link.nii", link)(images[Modality.FLAIR])
    for path in (images[Modality.FLAIR], tmp_path / ".." / tmp_path.name / images[Modality.FLAIR].name, tmp_path / "link.nii"):
        with pytest.raises(CaseError, match=r"given as FLAIR and as T2; give each its own file$"):
            case_of({**images, Modality.T2: path})
        with pytest.raises(CaseError, match=r"given as FLAIR and as segmentation; "):
            case_of(images, segmentation=path)


# --- tables

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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,t1.nii,,t2.nii,", "b has no FLAIR, T1ce; fill in flair, t1ce"),
        ("b,t1.nii, ,t2.nii", "b has no FLAIR, T1ce; fill in flair, t1ce"),
        (
            "b,t1, left.nii,t1ce.nii,t2.nii,flair.nii",
            "has more cells than the header; put a path that holds a separator in quot",
        ),
        ("b,t1.nii,t1.nii,t2.nii,flair.nii", "FOLDER/t1.nii: given as T1ce and as T1; give each its own file"),
        ("b,a\0b.nii,t1ce.nii,t2.nii,flair.nii", "FOLDER/a b.nii: cannot be read: "),
        ("b,t1.nii/x,t1ce.nii,t2.nii,flair.nii", "FOLDER/t1.nii/x: cannot be read: "),
    ],
)
def test_a_row_that_makes_no_case_says_why(folder: Path, row: str, words: str) -> None:
    broken = only_broken(rows_of(folder, f"{HEADER}{ROW}{row}\n"))
    assert broken.name == "b"
    assert str(broken.error).startswith(f"{folder / 'cases.csv'}, line 3: {words.replace('FOLDER', str(folder))}")


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


TABLES: Final[dict[str, tuple[str | bytes, str]]] = {
    **{f"no {column}": (HEADER.replace(f"{column},", "x,", 1) + ROW, f": has no column {column}; its first line must be ")
       for column in ("case", "t1", "t1ce", "t2")},
    "semicolons": (HEADER.replace(",", ";"), ": has no column case; its first line must be case,t1,t1ce,t2,flair[,seg], "),
    "two of a column": (f"SEG,seg,{HEADER}x,y,{ROW}", ": has more than one column seg; keep one"),
    "empty": ("", ": has no column case; "),
    "header alone": (HEADER + "\n,,,,\n", ": has no row below its header; give each case a row"),
    "UTF-16 without a mark": (HEADER.encode("utf-16-le"), ": begins as UTF-16 without a byte order mark does; "),
    "UTF-16 cut": ("\ufeff".encode("utf-16-le") + b"x", ": is not text in UTF-8; save it as UTF-8"),
    # A quotation mark without its partner must swallow no row.
    "quotation mark": (HEADER + ROW + 'a,"t1.nii,t1ce.nii,t2.nii,flair.nii\n' + ROW, ", line 3: cannot be read as a table: "),
    "text after one": (HEADER + ROW + 'a,"t1".nii,t1ce.nii,t2.nii,flair.nii\n', ", line 3: cannot be read as a table: "),
    "a cell beyond all size": (HEADER + "x" * 200_000 + ROW, ", line 2: cannot be read as a table: "),
}  # fmt: skip


TEXT: Final = "p\u00e9 1\r\np2\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        *((TEXT.encode(encoding), TEXT) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")),
        *((codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT), (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), TEXT)),
        (b"p\xe9", "p\udce9"),
        (codecs.BOM_UTF8 + b"p\xe9", "p\udce9"),
        (b"", ""),
    ],
)
def test_text_is_read_in_the_encodings_that_other_programs_write(content: bytes, text: str) -> None:
    assert text_of(content, name="stdin") == text


def test_a_table_names_files_by_their_bytes_or_says_that_it_is_not_utf8(folder: Path) -> None:
    header, row = HEADER.encode(), ROW.encode()
    (folder / os.fsdecode(b"p\xe9")).symlink_to(folder)
    found = rows_of(folder, header + row.replace(b"t1.nii", b"p\xe9/t1.nii", 1))
    assert os.fsencode(only_case(found).images[Modality.T1]).endswith(b"/p\xe9/t1.nii")
    [row_of_latin_1] = rows_of(folder, header + row.replace(b"t1.nii", b"q\xe9/t1.nii", 1))
    assert isinstance(row_of_latin_1.case, BrokenCase)
    assert str(row_of_latin_1.case.error).endswith("; the table is not text in UTF-8: save it as UTF-8")


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_used_says_why(folder: Path, kind: str) -> None:
    content, words = TABLES[kind]
    with pytest.raises(CaseError) as caught:
        rows_of(folder, content)
    assert str(caught.value).startswith(f"{folder / 'cases.csv'}{words}")


def test_a_table_that_is_gone_or_has_another_separator_is_refused(folder: Path) -> None:
    with pytest.raises(CaseError, match=r"gone\.csv: cannot be read: No such file"):
        read_table(folder / "gone.csv")
    with pytest.raises(CaseError, match=r"separated by tabs$"):
        rows_of(folder, HEADER, name="t.tsv")
