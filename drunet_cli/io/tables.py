"""Tables of results: as CSV for programs, and as a workbook (.xlsx) for whoever opens them by a double click.

Numbers are numbers in a workbook in every locale. A CSV table has none: LibreOffice takes 257.528 for 257528 where decimals are
written with a comma, and every separator that suits one locale breaks pandas and R, or another locale.
"""

import csv
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from drunet_cli.errors import one_line

LIST_SEPARATOR: Final = ";"  # in a cell


def encode_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows by column as CSV. File names need not be text: their bytes are kept."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _flat(cell) for name, cell in row.items()})
    return table.getvalue().encode(errors="surrogateescape")


_PROGRAM: Final = "docProps/app.xml"  # names the program that wrote the workbook; every other program writes its own name
# The least that a workbook consists of (ECMA-376), by the name in its archive.
_WORKBOOK: Final = {
    "[Content_Types].xml": """<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>
<Override PartName="/xl/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>
<Override PartName="/docProps/app.xml" ContentType="application/vnd.openxmlformats-officedocument.extended-properties+xml"/>
</Types>""",
    "_rels/.rels": """<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
 Target="xl/workbook.xml"/>
<Relationship Id="rId2" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/extended-properties"
 Target="docProps/app.xml"/></Relationships>""",
    _PROGRAM: """<Properties xmlns="http://schemas.openxmlformats.org/officeDocument/2006/extended-properties">
<Application>drunet</Application></Properties>""",
    "xl/workbook.xml": """<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">
<sheets><sheet name="cases" sheetId="1" r:id="rId1"/></sheets></workbook>""",
    "xl/_rels/workbook.xml.rels": """<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
 Target="sheet1.xml"/></Relationships>""",
}
_SHEET: Final = """<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">
<sheetViews><sheetView workbookViewId="0"><pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/></sheetView>
</sheetViews><cols>{}</cols><sheetData>{}</sheetData></worksheet>"""
_WIDEST: Final = 50  # of columns, in characters: a path or an error would push all others off the screen


def encode_workbook(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows by column as a workbook for Excel and LibreOffice (.xlsx). Equal rows give equal bytes.

    Numbers are numbers there in every locale, where a CSV table loses its decimal points in those that write commas, and text
    is never taken for a formula or a date. The part of a file name that is no text is left out.
    """
    lines = [list(columns), *([_flat(row.get(name)) for name in columns] for row in rows)]
    cells = [[_cell(value) for value in line] for line in lines]
    sheet = _SHEET.format(_widths(lines), "\n".join(f"<row>{''.join(row)}</row>" for row in cells))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**_WORKBOOK, "xl/sheet1.xml": sheet}.items():
            declared = f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n{text}'
            archive.writestr(zipfile.ZipInfo(name), declared, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def is_our_workbook(path: Path) -> bool:
    """Whether a workbook is as drunet wrote it: any other program that saves it names itself there. Raises OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(_PROGRAM).endswith(_WORKBOOK[_PROGRAM].encode())
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, zlib.error):
        return False


def _widths(lines: Sequence[Sequence[Any]]) -> str:
    """The widths of columns that show what is in them. lines: of cells."""
    longest = [max(len("" if value is None else str(value)) for value in column) for column in zip(*lines, strict=True)]
    widths = [min(_WIDEST, 2 + length) for length in longest]
    return "".join(f'<col min="{n}" max="{n}" width="{width}" customWidth="1"/>' for n, width in enumerate(widths, start=1))


def _cell(value: str | float | None) -> str:
    if value is None or value == "":
        return "<c/>"
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{escape(one_line(value))}</t></is></c>'
    return f"<c><v>{value}</v></c>"


def _flat(cell: Any) -> Any:
    """A list of words as one text; anything else as it is."""
    return LIST_SEPARATOR.join(cell) if isinstance(cell, list) else cell
