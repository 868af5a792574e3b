"""A dataset of slices: what of it is there, what may be written, the table, and what killed runs have left."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drunet_cli.conversion.dataset import (
    MANIFEST_COLUMNS,
    Layout,
    State,
    check_folders,
    check_may_write,
    remove_stale_slices,
    slice_files,
    slice_name,
    survey,
    write_manifest,
)
from drunet_cli.errors import CaseError, DrunetError, OutputError
from tests.conversion.small_cases import (
    NAME,
    brain_in,
    convert,
    files_in,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    saved_case,
    small_case,
)
from tests.support import open_to_all, unprivileged


def table_in(root: Path) -> list[dict[str, str]]:
    """Rows of the manifest as the csv module reads them."""
    with Layout(root).manifest.open(newline="") as stream:
        return list(csv.DictReader(stream))


def empty_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def state_of(folder: Path, root: Path) -> State:
    (found,) = survey([small_case(folder)], Layout(root))
    return found.state


@pytest.fixture(scope="module")
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


# --- names of slices


@pytest.mark.parametrize("z", [0, 7, 154, 1000])
def test_the_name_of_a_slice_is_read_as_it_is_written(tmp_path: Path, z: int) -> None:
    path = empty_file(tmp_path / slice_name("a case_1", z))
    (found,) = slice_files(tmp_path)["a case_1"]
    assert (found.z, found.path) == (z, path)


def test_hidden_files_are_no_slices(tmp_path: Path) -> None:
    empty_file(tmp_path / f"._{slice_name('p1', 3)}")
    assert slice_files(tmp_path) == {}


def test_a_name_with_a_line_break_is_read(tmp_path: Path) -> None:
    empty_file(tmp_path / slice_name("p\n1", 3))
    assert list(slice_files(tmp_path)) == ["p\n1"]


def test_zero_padded_names_are_those_of_the_same_slices(tmp_path: Path) -> None:
    for name in ("p1_slice_010.png", "p1_slice_9.png", "p1_slice_000.png", "p1_slice_11.png", "p1_slice_0000000010.png"):
        empty_file(tmp_path / name)
    assert [(file.z, file.path.name) for file in slice_files(tmp_path)[NAME]] == [
        (0, "p1_slice_000.png"),
        (9, "p1_slice_9.png"),
        (10, "p1_slice_010.png"),
        (11, "p1_slice_11.png"),
    ]


def test_the_last_number_of_a_name_is_the_slices(tmp_path: Path) -> None:
    empty_file(tmp_path / "p_slice_3_slice_4.png")
    ((case, (found,)),) = slice_files(tmp_path).items()
    assert (case, found.z) == ("p_slice_3", 4)


@pytest.mark.parametrize(
    "name",
    ["p1_slice_.png", "p1_slice_-1.png", "p1_slice_1.PNG", "p1_slice_1.png.tmp", "_slice_1.png", "p1_slice_1.5.png", "p1.png"],
)
def test_other_names_are_no_slices(tmp_path: Path, name: str) -> None:
    empty_file(tmp_path / name)
    assert not slice_files(tmp_path)


def test_a_temporary_is_no_slice(tmp_path: Path) -> None:
    empty_file(tmp_path / ".p1_slice_1.png.host.12.tmp")
    assert not slice_files(tmp_path)


def test_cases_come_by_name_whatever_the_folder_says(tmp_path: Path) -> None:
    for name in ("p2", "p10", "p1", "P3"):
        empty_file(tmp_path / f"{name}_slice_0.png")
    assert list(slice_files(tmp_path)) == ["P3", "p1", "p10", "p2"]


def test_an_absent_folder_holds_no_slice(tmp_path: Path) -> None:
    assert slice_files(tmp_path / "absent") == {}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "masks")
    with pytest.raises(CaseError, match=f"{path}: cannot be listed: Not a directory"):
        slice_files(path)


# --- what is there


def test_the_states_of_a_case(tmp_path: Path) -> None:
    root = tmp_path / "out"
    layout = Layout(root)
    assert state_of(tmp_path, root) is State.NEW
    empty_file(mask_slice(root, 3))
    assert state_of(tmp_path, root) is State.FOREIGN
    empty_file(layout.unfinished(NAME))
    assert state_of(tmp_path, root) is State.UNFINISHED
    empty_file(layout.description(NAME))
    assert state_of(tmp_path, root) is State.COMPLETE


def test_a_survey_finds_every_slice_of_each_case_and_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "out"
    cases = [small_case(tmp_path, name=name, seed=seed) for seed, name in enumerate(("p1", "p10", "p2"))]
    for case in cases[:2]:
        convert(case, root)
    empty_file(root / "images" / "p1_slice_007.png")
    before = files_in(root)
    found = {surveyed.case.name: surveyed for surveyed in survey(cases, Layout(root))}
    assert files_in(root) == before
    names = {path.relative_to(root).as_posix() for path in found["p1"].slices}
    expected = {f"{folder}/p1_slice_{z}.png" for folder in ("images", "masks") for z in range(5)}
    assert names == expected | {"images/p1_slice_007.png"}
    assert len(found["p10"].slices) == 10
    assert found["p2"].slices == ()
    assert [surveyed.state for surveyed in found.values()] == [State.COMPLETE, State.COMPLETE, State.NEW]


# --- what may be written


def may_write(folder: Path, root: Path, *, skip_existing: bool = False, overwrite: bool = False) -> None:
    layout = Layout(root)
    check_folders(layout)
    check_may_write(survey([small_case(folder)], layout), layout, skip_existing=skip_existing, overwrite=overwrite)


def test_an_absent_folder_may_be_written_and_is_not_made(tmp_path: Path) -> None:
    may_write(tmp_path, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_folder_with_other_things_may_be_written(tmp_path: Path) -> None:
    for name in ("notes.txt", "images/README", "cases/README"):
        empty_file(tmp_path / "out" / name)
    may_write(tmp_path, tmp_path / "out")


def test_several_refused_cases_are_counted(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    cases = [small_case(tmp_path, name=f"p{n}") for n in range(3)]
    for case in cases:
        empty_file(layout.description(case.name))
    with pytest.raises(OutputError, match="p0 and 2 more: converted already; give --skip-existing"):
        check_may_write(survey(cases, layout), layout, skip_existing=False, overwrite=False)


@pytest.mark.parametrize("content", [b"", b"case,z\n", b"z,case,image\np1,0\n", b"\xff\xfe", b"x" * 5000])
def test_a_table_of_somebody_else_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    table = empty_file(tmp_path / "out" / "slices.csv")
    table.write_bytes(content)
    for skip_existing in (False, True):
        with pytest.raises(OutputError, match=r"slices\.csv: exists already and is not drunet's"):
            may_write(tmp_path, tmp_path / "out", skip_existing=skip_existing)
    may_write(tmp_path, tmp_path / "out", overwrite=True)
    assert table.read_bytes() == content


def test_a_table_that_a_spreadsheet_has_saved_is_drunets(tmp_path: Path) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path), root)
    table = Layout(root).manifest
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    convert(small_case(tmp_path, name="p2"), root)
    assert b"\r" not in table.read_bytes()


def test_a_folder_in_the_place_of_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out" / "slices.csv").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"slices\.csv: is a folder"):
        may_write(tmp_path, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("name", [".", "images", "masks", "cases"])
def test_a_file_in_the_place_of_a_folder_is_an_output_that_cannot_be(tmp_path: Path, name: str) -> None:
    empty_file(tmp_path / "out" / name)
    with pytest.raises(OutputError, match="is not a folder"):
        may_write(tmp_path, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("name", [".", "images", "masks", "cases"])
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out" / name
    folder.mkdir(parents=True)
    open_to_all(tmp_path)
    folder.chmod(0o555)
    layout = Layout(tmp_path / "out")
    with unprivileged(), pytest.raises(OutputError, match="no permission"):
        check_folders(layout)


# --- the table


def test_the_table_has_a_row_for_every_slice(tmp_path: Path) -> None:
    root = tmp_path / "out"
    labels = labels_in(brain_in())
    convert(saved_case(tmp_path, images_in(brain_in()), labels), root)
    rows = table_in(root)
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    assert [int(row["z"]) for row in rows] == list(range(5))
    for z, row in enumerate(rows):
        assert row["case"] == NAME
        assert (row["image"], row["mask"]) == (f"images/{NAME}_slice_{z}.png", f"masks/{NAME}_slice_{z}.png")
        assert int(row["brain"]) == np.count_nonzero(pixels_of(root / row["image"]).any(axis=2))
        counts = [np.count_nonzero(labels[:, :, z] == label) for label in (1, 2, 4)]
        assert [int(row[name]) for name in ("ncr", "ed", "et")] == counts
        assert counts == [np.count_nonzero(pixels_of(root / row["mask"])[..., 0] == index) for index in (1, 2, 3)]


def test_the_table_says_nothing_of_labels_where_there_is_no_segmentation(tmp_path: Path) -> None:
    convert(small_case(tmp_path, segmented=False), tmp_path / "out")
    for row in table_in(tmp_path / "out"):
        assert [row[name] for name in ("mask", "ncr", "ed", "et")] == [""] * 4
        assert row["brain"]


def test_the_table_leaves_out_what_skip_blank_does(tmp_path: Path) -> None:
    convert(small_case(tmp_path), tmp_path / "out", skip_blank=True)
    assert [row["z"] for row in table_in(tmp_path / "out")] == ["1", "2", "3"]


def test_the_table_is_by_case_whoever_converted_it_and_when(tmp_path: Path) -> None:
    for name in ("p2", "p10", "p1"):
        convert(small_case(tmp_path, name=name), tmp_path / "out")
    for name in ("p1", "p10", "p2"):
        convert(small_case(tmp_path, name=name), tmp_path / "fresh")
    rows = table_in(tmp_path / "out")
    assert [row["case"] for row in rows] == ["p1"] * 5 + ["p10"] * 5 + ["p2"] * 5
    assert Layout(tmp_path / "out").manifest.read_bytes() == Layout(tmp_path / "fresh").manifest.read_bytes()


def test_every_file_of_the_table_is_there_and_no_other(tmp_path: Path) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path), root)
    convert(small_case(tmp_path, name="p2", segmented=False), root, skip_blank=True)
    listed = {row[column] for row in table_in(root) for column in ("image", "mask")} - {""}
    assert listed == {name for name in files_in(root) if name.endswith(".png")}


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a b", "=1+1", "Müller"])
def test_any_name_of_a_case_survives_the_table(tmp_path: Path, name: str) -> None:
    convert(small_case(tmp_path, name=name), tmp_path / "out")
    rows = table_in(tmp_path / "out")
    assert {row["case"] for row in rows} == {name}
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)


def test_a_name_that_is_no_unicode_can_be_converted(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")  # from a system of another encoding
    convert(small_case(tmp_path, name=name), tmp_path / "out")
    assert len(Layout(tmp_path / "out").manifest.read_bytes().splitlines()) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"schema": "drunet.slices/2"}'])
def test_a_damaged_description_is_told_and_left_out(tmp_path: Path, content: bytes) -> None:
    root = tmp_path / "out"
    for name in ("p1", "p2"):
        convert(small_case(tmp_path, name=name), root)
    path = Layout(root).description("p1")
    path.write_bytes(content)
    (error,) = write_manifest(Layout(root))
    assert str(error).startswith(f"{path}: ")
    assert {row["case"] for row in table_in(root)} == {"p2"}
    assert path.read_bytes() == content


def test_an_unfinished_case_is_not_in_the_table(tmp_path: Path) -> None:
    root = tmp_path / "out"
    for name in ("p1", "p2"):
        convert(small_case(tmp_path, name=name), root)
    Layout(root).description("p1").rename(Layout(root).unfinished("p1"))
    assert not write_manifest(Layout(root))
    assert {row["case"] for row in table_in(root)} == {"p2"}


def test_a_copy_of_a_description_does_not_double_the_rows_of_a_case(tmp_path: Path) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path), root)
    path = Layout(root).description(NAME)
    path.with_name(f"{NAME} (copy).json").write_bytes(path.read_bytes())
    write_manifest(Layout(root))
    assert [int(row["z"]) for row in table_in(root)] == list(range(5))


def test_a_table_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path), root)
    Layout(root).manifest.unlink()
    Layout(root).manifest.mkdir()
    with pytest.raises(DrunetError, match=r"slices\.csv"):
        write_manifest(Layout(root))


# --- what killed runs have left


TARGETS = ("images/p1_slice_3.png", "masks/p1_slice_3.png", "cases/p1.json", "cases/p1.part", "slices.csv")


def temporary(root: Path, target: str, *, pid: int, host: str | None = None) -> Path:
    """As io.atomic names it."""
    path = root / target
    return empty_file(path.with_name(f".{path.name}.{host or socket.gethostname()}.{pid}.tmp"))


@pytest.mark.parametrize("target", TARGETS)
def test_temporaries_of_dead_writers_are_removed(tmp_path: Path, dead_pid: int, target: str) -> None:
    path = temporary(tmp_path, target, pid=dead_pid)
    remove_stale_slices(Layout(tmp_path))
    assert not path.exists()


@pytest.mark.parametrize("target", TARGETS)
def test_temporaries_of_living_writers_are_kept(tmp_path: Path, target: str) -> None:
    living = temporary(tmp_path, target, pid=os.getppid())
    elsewhere = temporary(tmp_path, target, pid=4, host="another-host")
    remove_stale_slices(Layout(tmp_path))
    assert living.exists()
    assert elsewhere.exists()


@pytest.mark.parametrize("target", TARGETS)
def test_temporaries_of_another_host_are_removed_after_a_day(tmp_path: Path, target: str) -> None:
    path = temporary(tmp_path, target, pid=4, host="another-host")
    os.utime(path, (0, 0))
    remove_stale_slices(Layout(tmp_path))
    assert not path.exists()


def test_nothing_but_temporaries_is_removed(tmp_path: Path, dead_pid: int) -> None:
    root = tmp_path / "out"
    convert(small_case(tmp_path), root)
    for name in (f"images/.hidden.png.{dead_pid}.tmp", "images/.png.tmp", "masks/x.tmp", f"cases/p1.json.host.{dead_pid}.tmp"):
        empty_file(root / name)
    before = files_in(root)
    remove_stale_slices(Layout(root))
    assert files_in(root) == before


def test_a_dataset_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    remove_stale_slices(Layout(tmp_path / "absent"))
    assert not list(tmp_path.iterdir())
