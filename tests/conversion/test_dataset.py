"""A dataset of slices: names of its files, the description of a case, and the table of all slices."""

import csv
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import drunet_cli
from drunet_cli.conversion.dataset import (
    SCHEMA,
    Description,
    Layout,
    SliceRow,
    is_manifest,
    read_description,
    slice_files,
    slice_name,
    slices_by_z,
    write_manifest,
)
from drunet_cli.errors import CaseError, OutputError
from tests.conversion.small_cases import BRATS_AFFINE, NAME, brain_in, convert, images_in, saved_case, small_case
from tests.support import contents

# Keys of a description, and what JSON can hold in their place; the numbers are too large for a float, and for numpy's integers.
KEYS: Final = (
    *("schema", "case", "inputs", "skip_blank", "labels", "shape", "affine", "x", "y", "columns", "rows", "warnings"),
    *(f"{axis}.{field}" for axis in "xy" for field in ("size", "spacing_mm", "start_mm", "brain_mm")),
    *("rows.2.0", "columns.0", "shape.1", "affine.1", "affine.1.1", "inputs.t1.sha256"),
)
STRANGE: Final = ("null", '"text"', "[]", "{}", "NaN", "1e999", "1" + "0" * 400, "[" * 100_000 + "]" * 100_000)
PLACEHOLDER: Final = "here it stands"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


# --- names of slices


def test_slices_are_found_by_case_and_number(tmp_path: Path) -> None:
    names = ("p1_slice_010.png", "p1_slice_9.png", "p1_slice_000.png", "p10_slice_0.png", "p_slice_3_slice_4.png")
    strangers = ("p1_slice_.png", "p1_slice_-1.png", "p1_slice_1.PNG", "p1_slice_1.png.tmp", "_slice_1.png", "p1.png")
    hidden = ("._p1_slice_3.png", ".p1_slice_1.png.host.12.tmp")
    for name in (*names, *strangers, *hidden, slice_name("two\nlines", 154)):
        touch(tmp_path / name)
    found = {case: [(file.z, file.path.name) for file in files] for case, files in slice_files(tmp_path).items()}
    assert found == {
        "p1": [(0, "p1_slice_000.png"), (9, "p1_slice_9.png"), (10, "p1_slice_010.png")],
        "p10": [(0, "p10_slice_0.png")],
        "p_slice_3": [(4, "p_slice_3_slice_4.png")],
        "two\nlines": [(154, "two\nlines_slice_154.png")],
    }
    assert list(found) == sorted(found)


def test_an_absent_folder_holds_no_slice_and_one_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    assert slice_files(tmp_path / "absent") == {}
    path = touch(tmp_path / "masks")
    with pytest.raises(CaseError, match=f"{path}: cannot be listed: Not a directory"):
        slice_files(path)


def test_a_slice_that_is_there_twice_is_named(tmp_path: Path) -> None:
    for name in ("p1_slice_3.png", "p1_slice_003.png"):
        touch(tmp_path / name)
    with pytest.raises(CaseError, match="slice 3 is there twice, also as p1_slice_"):
        slices_by_z(slice_files(tmp_path)[NAME])


# --- the description


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Description]:
    """A description as it was written, and as it was meant."""
    folder = tmp_path_factory.mktemp("described")
    converted = convert(small_case(folder), folder / "out")
    return converted.path, converted.description


def test_a_description_tells_what_it_is_of_in_json_with_a_line_for_every_slice(described: tuple[Path, Description]) -> None:
    path, description = described
    document = json.loads(path.read_bytes())
    assert (document["schema"], document["drunet"]) == (SCHEMA, drunet_cli.__version__)
    assert [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]] == [
        {field: getattr(row, field) for field in SliceRow.__dataclass_fields__} for row in description.rows
    ]
    assert all(f"    {json.dumps(row)}" in path.read_text() for row in document["rows"])
    assert list(description.inputs) == ["flair", "t1ce", "t1", "t2", "seg"]
    for file in description.inputs.values():
        stamp = Path(file.path).stat()
        assert (file.n_bytes, file.mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    assert len({file.sha256 for file in description.inputs.values()}) == 5


@pytest.mark.parametrize("name", [NAME, "Müller 1", 'a"b\\c', "caf\udce9", "two\nlines"])
def test_a_description_comes_back_as_it_was_written(described: tuple[Path, Description], tmp_path: Path, name: str) -> None:
    affine = BRATS_AFFINE + np.random.default_rng(6).normal(size=(4, 4)) / 30
    changed = replace(described[1], case=name, affine=tuple(tuple(row) for row in affine.tolist()))
    for description in (described[1], changed):
        (path := tmp_path / "p.json").write_bytes(description.encoded())
        assert read_description(path) == description
    np.testing.assert_array_equal(read_description(path).affine_array(), affine)


def test_a_description_of_many_slices_is_read_whole(tmp_path: Path) -> None:
    converted = convert(saved_case(tmp_path, images_in(brain_in((20, 24, 400))), None), tmp_path / "out")
    assert len(read_description(converted.path).rows) == 400


@pytest.mark.parametrize(
    ("row", "blank"),
    [
        (SliceRow(0, 0, 0), True),
        (SliceRow(0, 7, 1), False),
        (SliceRow(0, 7, 0, 7, 0, 0, 0), True),
        *((SliceRow(0, 7, 0, 7, *counts), False) for counts in ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    ],
)
def test_a_blank_slice_has_neither_brain_nor_label(row: SliceRow, blank: bool) -> None:
    assert row.is_blank is blank


def assert_damaged(path: Path) -> None:
    with pytest.raises(CaseError) as caught:
        read_description(path)
    assert str(caught.value) == f"{path}: is damaged, or no description of a case by drunet"


def write_changed(
    described: tuple[Path, Description], path: Path, key: str, change: Callable[[Any, str | int], object], strange: str = ""
) -> None:
    """Write a copy in which `change` was done to the container and the last word of a key such as x.size."""
    document = container = json.loads(described[0].read_bytes())
    *outer, last = (int(word) if word.isdecimal() else word for word in key.split("."))
    for word in outer:
        container = container[word]
    change(container, last)
    path.write_text(json.dumps(document).replace(json.dumps(PLACEHOLDER), strange))


def test_a_file_that_is_no_description_is_refused(described: tuple[Path, Description], tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(CaseError, match=r"p\.json: cannot be read: No such file or directory"):
        read_description(path)
    whole = described[0].read_bytes()
    others = (b"\0" * 64, b"\xff\xfe\x00", b"{}", b"[]", b"3", b"null", b'"x"', b"[" * 10**6)
    for content in (*others, *(whole[:end] for end in range(0, len(whole) - 2, 97))):
        path.write_bytes(content)
        assert_damaged(path)
    path.write_bytes(whole.replace(SCHEMA.encode(), b"drunet.slices/2"))
    with pytest.raises(CaseError, match=r"p\.json: is of schema 'drunet.slices/2'; this version reads 'drunet.slices/1'"):
        read_description(path)


@pytest.mark.parametrize("key", KEYS)
def test_whatever_stands_in_a_description_it_can_be_used_or_is_refused(
    described: tuple[Path, Description], tmp_path: Path, key: str
) -> None:
    path = tmp_path / "p.json"
    for strange in STRANGE:
        write_changed(described, path, key, lambda container, last: container.__setitem__(last, PLACEHOLDER), strange)
        try:
            description = read_description(path)
        except CaseError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017  # either is right
            continue
        classes = description.geometry().classes(np.zeros((1, 240, 240), dtype=np.uint8))
        assert classes.shape == (1, *description.shape[:2])
    if key != "warnings":  # to have none is as good as an empty list
        write_changed(described, path, key, lambda container, last: container.pop(last))
        assert_damaged(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *itertools.product(("affine.0.0", "affine.3.3", "x.start_mm", "y.start_mm", "x.spacing_mm"), (np.nan, np.inf, -np.inf)),
        *(("x.spacing_mm", 0.5), ("y.spacing_mm", 0.5)),  # resampled axes cannot be undone
        *(("x.size", 100), ("y.size", 100)),  # else a label map of that size would get the affine of the reference
    ],
)
def test_a_geometry_that_no_conversion_writes_is_refused(
    described: tuple[Path, Description], tmp_path: Path, key: str, value: float
) -> None:
    write_changed(described, tmp_path / "p.json", key, lambda container, last: container.__setitem__(last, value))
    assert_damaged(tmp_path / "p.json")


# --- the table


def rows_in(root: Path) -> list[dict[str, str]]:
    with Layout(root).manifest.open(newline="", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_a_row_for_every_slice_by_case_whoever_converted_it(tmp_path: Path) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path, name="p2", segmented=False), root, skip_blank=True)
    convert(small_case(tmp_path, name="p10"), root)
    rows = rows_in(root)
    assert [(row["case"], int(row["z"])) for row in rows] == [("p10", z) for z in range(5)] + [("p2", z) for z in (1, 2, 3)]
    listed = {row[column] for row in rows for column in ("image", "mask")} - {""}
    assert listed == {name for name in contents(root) if name.endswith(".png")}
    for row in rows:
        description = read_description(Layout(root).description(row["case"]))
        (expected,) = (each for each in description.rows if each.z == int(row["z"]))
        counts = ("" if count is None else str(count) for count in (expected.brain, expected.ncr, expected.ed, expected.et))
        assert [row[name] for name in ("brain", "ncr", "ed", "et")] == list(counts)


@pytest.mark.parametrize("name", ["a,b", 'a"b', "=1+1", "Müller", os.fsdecode(b"M\xfcller")])
def test_any_name_of_a_case_survives_the_table(tmp_path: Path, name: str) -> None:
    convert(small_case(tmp_path, name=name), tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert {row["case"] for row in rows} == {name}
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)


def test_only_complete_cases_under_their_own_name_are_in_the_table(tmp_path: Path) -> None:
    root, layout = tmp_path / "out", Layout(tmp_path / "out")
    for name in ("p1", "p2", "p3"):
        convert(small_case(tmp_path, name=name), root)
    layout.description("copy").write_bytes(layout.description("p1").read_bytes())
    layout.description("p2").rename(layout.unfinished("p2"))
    layout.description("p3").write_bytes(b"{")
    told = write_manifest(layout)
    assert sorted(str(error).partition(":")[0] for error in told) == [str(layout.description(n)) for n in ("copy", "p3")]
    assert {row["case"] for row in rows_in(root)} == {"p1"}


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        (b"case,z,image,mask,brain,ncr,ed,et\r\n", True),  # as a spreadsheet saves it
        *((content, False) for content in (b"", b"case,z\n", b"z,case,image\np1,0\n", b"\xff\xfe", b"x" * 5000)),
    ],
)
def test_a_table_of_drunets_is_told_from_others(tmp_path: Path, content: bytes, ours: bool) -> None:
    path = tmp_path / "slices.csv"
    assert is_manifest(path)
    path.write_bytes(content)
    assert is_manifest(path) is ours


def test_a_table_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    Layout(tmp_path).manifest.mkdir()
    with pytest.raises(OutputError, match=r"slices\.csv"):
        write_manifest(Layout(tmp_path))
