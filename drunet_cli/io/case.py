"""One patient's images, which file is which modality, and tables of such cases. Reads no voxel."""

import codecs
import csv
import errno
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, DrunetError
from drunet_cli.io.naming import SEGMENTATION, common_stem, may_name_a_file, role_by_words, stem, with_a_name


@dataclass(frozen=True)
class Case:
    """The four image files of one patient, and the name that their outputs bear.

    segmentation: the reference label map, where there is one.
    """

    name: str
    images: Mapping[Modality, Path]
    segmentation: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Every file by modality, in the network's channel order, and "seg"."""
        files: dict[str, Path] = {modality: self.images[modality] for modality in CHANNELS}
        return files if self.segmentation is None else {**files, SEGMENTATION: self.segmentation}


@dataclass(frozen=True)
class BrokenCase:
    """A case that was found but cannot be used, and why. is_source: the source itself is broken, and no case of it is known."""

    name: str
    error: DrunetError
    is_source: bool = False


SeriesFolder: TypeAlias = Callable[[Path], Path | None]


def no_series(_: Path) -> None:
    """The `SeriesFolder` of callers that take files alone."""


def case_of(
    images: Mapping[Modality, Path],
    *,
    name: str | None = None,
    segmentation: Path | None = None,
    series_folder: SeriesFolder = no_series,
) -> Case:
    """The case that four files make. Without a name, the stem that all four share, else their folder's name, else FLAIR's stem.

    series_folder: tells the folder of a path that stands for a series of images in place of a file.
    Raises CaseError when a file is missing, one file is given for two modalities or for one and the segmentation, or the name
    cannot be that of a file.
    """
    given = {modality.display: images[modality] for modality in CHANNELS}
    if segmentation is not None:
        given["segmentation"] = segmentation
    folders = {part: series_folder(path) for part, path in given.items()}
    found = {part: _regular(path, part) for part, path in given.items() if folders[part] is None}
    for one, other in itertools.combinations(given, 2):
        if given[one] == given[other] or (one in found and other in found and os.path.samestat(found[one], found[other])):
            raise CaseError(
                f"{given[one]}: given as {one} and as {other}; give each its own {'file' if one in found else 'series'}"
            )
    name = name or _name_of([folders[modality.display] or images[modality] for modality in CHANNELS])
    if not may_name_a_file(name):
        raise CaseError(f"{name!r}: cannot be part of a file name; rename the case")
    return Case(name, images, segmentation)


def why_unreadable(path: Path, error: OSError | ValueError, *, kind: str = "file") -> str:
    """Why stat() failed, in words that may follow the path. kind: of the missing thing."""
    if isinstance(error, ValueError):  # a path with a NUL
        return f"cannot be read: {error}"
    if error.errno == errno.ENOENT:
        return f"is a link to a {kind} that is missing" if path.is_symlink() else f"no such {kind}"
    return f"cannot be read: {error.strerror}"


def _regular(path: Path, part: str) -> os.stat_result:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise CaseError(f"{path}: {why_unreadable(path, error)} (given as {part})") from error
    if stat.S_ISDIR(found.st_mode):
        raise CaseError(f"{path}: is a folder, not a NIfTI file (given as {part})")
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device, which may never end and cannot be read twice
        raise CaseError(f"{path}: is not a regular file (given as {part})")
    return found


def _name_of(paths: Sequence[Path]) -> str:
    if name := common_stem(paths):
        return name
    if len(set(paths)) == 1:  # the series of one study
        return with_a_name(paths[0]).name
    folders = {path.absolute().parent for path in paths}
    before, role = role_by_words(paths[0].name)
    if len(folders) == 1 and role is not None and not before:  # p7/flair.nii.gz, p7/t1.nii.gz: FLAIR's says nothing
        return with_a_name(folders.pop()).name or stem(paths[0])
    return stem(paths[0])


DELIMITERS: Final[Mapping[str, str]] = {".csv": ",", ".tsv": "\t"}
HEADER: Final = "case,t1,t1ce,t2,flair[,seg]"
_NAME: Final = "case"


@dataclass(frozen=True)
class Row:
    """A row of a table. line: its number in the file, from 1."""

    case: Case | BrokenCase
    line: int


_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32: Final = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def text_of(content: bytes, *, name: str) -> str:
    """The text of a list or table: UTF-8, with a byte order mark or without one, or UTF-16 and UTF-32 with one.

    Bytes that are no UTF-8 stand for themselves, as in arguments, since names of files are bytes. name: the source in messages.
    Raises CaseError for other text.
    """
    try:
        if content.startswith(_UTF_32):  # before UTF-16, whose mark UTF-32's begins with
            text = content.decode("utf-32")
        elif content.startswith(_UTF_16):
            text = content.decode("utf-16")
        else:
            text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError as error:
        raise CaseError(f"{name}: is not text in UTF-8; save it as UTF-8") from error
    if "\0" in text[:2]:
        raise CaseError(f"{name}: begins as UTF-16 without a byte order mark does; save it as UTF-8")
    return text


def paths_of_list(content: bytes, *, name: str) -> list[str]:
    """The paths of a list: one a line, as `text_of` reads text; or each before a NUL, as find -print0 writes them.

    name: the source in messages. Raises CaseError as `text_of` does.
    """
    if b"\0" in content and not _is_in_units(content):
        return [os.fsdecode(path) for path in content.split(b"\0") if path]
    text = text_of(content, name=name)
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None) if line.strip()]


def _is_in_units(content: bytes) -> bool:
    """Whether text is in units of two bytes or four. A list of nothing but names of one letter has no /, and no line break."""
    if content.startswith((*_UTF_16, *_UTF_32)):
        return True
    begin = content[:64]
    return all(0 in begin[n : n + 2] for n in range(0, len(begin), 2)) and (b"/" in content or b"\n" in content)


def is_text(name: str) -> bool:
    """Whether a name that the system or `text_of` gave holds no byte that stands for itself."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def is_table(path: Path) -> bool:
    """Whether a file of this name is taken for a table."""
    return path.suffix.lower() in DELIMITERS


def place_of(table: Path, line: int) -> str:
    """A row, as messages name it."""
    return f"{table}, line {line}"


def read_table(path: Path, *, series_folder: SeriesFolder = no_series) -> list[Row]:
    """The cases of a .csv or .tsv file, as `text_of` reads text; relative paths in it begin at its folder.

    series_folder: as for `case_of`.
    A row that makes no case is a BrokenCase. Raises CaseError when the table as a whole cannot be read or has no rows.
    """
    lines = _lines(path)
    _, header = next(lines, (0, []))
    columns = [cell.lower() for cell in header]
    for column in (_NAME, *CHANNELS, SEGMENTATION):
        if column not in columns and column != SEGMENTATION:
            separated = "tabs" if DELIMITERS[path.suffix.lower()] == "\t" else "commas"
            raise CaseError(f"{path}: has no column {column}; its first line must be {HEADER}, separated by {separated}")
        if columns.count(column) > 1:
            raise CaseError(f"{path}: has more than one column {column}; keep one")
    rows = [_row(path, line, columns, cells, series_folder) for line, cells in lines]
    if not rows:
        raise CaseError(f"{path}: has no row below its header; give each case a row")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, from 1, and stripped cells of every row that is not blank."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    text = text_of(content, name=str(path))
    # Strict: else a quotation mark without its partner silently takes the rest of the table into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise CaseError(f"{place_of(path, line)}: cannot be read as a table: {error}; mend its quotation marks") from error
        if any(cells):
            yield line, cells


def _row(table: Path, line: int, columns: list[str], cells: list[str], series_folder: SeriesFolder) -> Row:
    place = place_of(table, line)
    values = dict(zip(columns, cells, strict=False))
    name = values.get(_NAME, "")
    if not may_name_a_file(name):
        return Row(BrokenCase(place, CaseError(f"{place}: {name!r} cannot be part of a file name; rename the case")), line)
    try:
        return Row(_case(table, name, values, series_folder, surplus=cells[len(columns) :]), line)
    except CaseError as error:
        remedy = "" if is_text("".join(cells)) else "; the table is not text in UTF-8: save it as UTF-8"
        return Row(BrokenCase(name, CaseError(f"{place}: {error}{remedy}")), line)


def _case(table: Path, name: str, values: Mapping[str, str], series_folder: SeriesFolder, *, surplus: list[str]) -> Case:
    if any(surplus):
        raise CaseError("has more cells than the header; put a path that holds a separator in quotation marks")
    if empty := [column for column in CHANNELS if not values.get(column)]:
        raise CaseError(f"{name} has no {', '.join(modality.display for modality in empty)}; fill in {', '.join(empty)}")
    segmentation = values.get(SEGMENTATION)
    images: dict[Modality, Path] = {modality: table.parent / values[modality] for modality in CHANNELS}
    reference = table.parent / segmentation if segmentation else None
    return case_of(images, name=name, segmentation=reference, series_folder=series_folder)
