"""Tables for programs and for people."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from drunet_cli.io.tables import encode_workbook, is_our_workbook

COLUMNS: Final = ("case", "wt_ml", "warnings", "et_ml")
ROWS: Final = (
    {"case": "=1+1 <&> caf\udce9", "wt_ml": 257.528, "warnings": ["a", "b"], "et_ml": None},
    {"case": "2026-11-29", "wt_ml": 0.0, "warnings": [], "et_ml": 1e-05},
    {"case": "1.5"},
)
SOFFICE: Final = shutil.which("soffice")
GERMAN: Final = """<oor:items xmlns:oor="http://openoffice.org/2001/registry"><item oor:path="/org.openoffice.Setup/L10N">
<prop oor:name="ooSetupSystemLocale" oor:op="fuse"><value>de-DE</value></prop></item></oor:items>"""


def cells_of(path: Path) -> list[list[tuple[str | None, str]]]:
    """The type and the text of every cell, by row."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        parts = {name: ElementTree.fromstring(archive.read(name)) for name in archive.namelist()}
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    rows = parts["xl/sheet1.xml"].iter(f"{space}row")
    return [[(cell.get("t"), "".join(cell.itertext())) for cell in row.iter(f"{space}c")] for row in rows]


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    path = tmp_path / "table.xlsx"
    path.write_bytes(encode_workbook(COLUMNS, ROWS))
    return path


def test_a_workbook_has_numbers_as_numbers_and_any_text_as_text(workbook: Path) -> None:
    assert workbook.read_bytes() == encode_workbook(COLUMNS, ROWS)
    assert cells_of(workbook) == [
        [("inlineStr", name) for name in COLUMNS],
        [("inlineStr", "=1+1 <&> caf"), (None, "257.528"), ("inlineStr", "a;b"), (None, "")],
        [("inlineStr", "2026-11-29"), (None, "0.0"), (None, ""), (None, "1e-05")],
        [("inlineStr", "1.5"), (None, ""), (None, ""), (None, "")],
    ]


@pytest.mark.slow
@pytest.mark.skipif(SOFFICE is None, reason="needs LibreOffice")
def test_libreoffice_reads_the_numbers_in_a_locale_with_decimal_commas_and_names_itself_where_it_saves(workbook: Path) -> None:
    assert SOFFICE is not None
    profile = workbook.parent / "profile"
    (profile / "user").mkdir(parents=True)
    (profile / "user/registrymodifications.xcu").write_text(GERMAN)
    for suffix in ("fods", "xlsx"):
        convert = ("--headless", "--convert-to", suffix, "--outdir", workbook.parent / "saved", workbook)
        subprocess.run([SOFFICE, f"-env:UserInstallation={profile.as_uri()}", *convert], check=True, capture_output=True)
    sheet = (workbook.parent / "saved/table.fods").read_text()
    assert re.findall(r'office:value="([^"]*)"', sheet) == ["257.528", "0", "0.00001"]
    assert "table:formula" not in sheet
    assert (is_our_workbook(workbook), is_our_workbook(workbook.parent / "saved/table.xlsx")) == (True, False)


def test_what_is_no_workbook_of_ours_is_told(workbook: Path) -> None:
    cut = workbook.with_name("cut.xlsx")
    for content in (b"", b"case\n", workbook.read_bytes()[:-30]):
        cut.write_bytes(content)
        assert not is_our_workbook(cut)
