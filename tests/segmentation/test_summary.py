"""The table of a cohort."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.tables import encode_table
from drunet_cli.segmentation.summary import (
    COLUMNS,
    SUMMARY,
    WORKBOOK,
    Status,
    SummaryRow,
    encode_summary,
    enter_rows,
    failed_row,
    is_summary,
    read_summary,
    row_of,
)
from tests.io.test_tables import cells_of
from tests.segmentation.sidecars import document_of
from tests.support import names_in

HEADER_0_1_0 = (
    b"case,status,wt_ml,tc_ml,et_ml,ncr_ml,ed_ml,warnings,weights,weights_sha256,read_s,network_s,device,output,error\n"
)
HEADER_WITHOUT_SIDE = HEADER_0_1_0[:-1] + b",wt_uncertainty,tc_uncertainty,et_uncertainty,time\n"
HEADER = HEADER_WITHOUT_SIDE[:-1] + b",side\n"
TIME = "2026-11-28T09:30:00Z"
FAILED = failed_row("b", CaseError("b: no such file"))


def test_table_has_a_row_a_case_in_their_order() -> None:
    document = {**document_of("c", warnings=["resampled", "thick-slices"]), "output": "out/c.nii.gz", "time": TIME}
    document |= {"mean_uncertainty": {"WT": 12.5, "TC": 20, "ET": None}, "side": "both"}
    rows = [row_of(document, Status.DONE), FAILED, row_of({"case": "a"}, Status.LEFT_OUT)]
    sha256 = b"5" * 64
    assert encode_summary(rows) == (
        HEADER
        + b"a,left out,,,,,,,,,,,,,,,,,,\n"
        + b"b,failed,,,,,,,,,,,,,b: no such file,,,,,\n"
        + b"c,done,3.5,1.5,0.5,1.0,2.0,resampled;thick-slices,brats2020,"
        + sha256
        + b",0.25,1.5,cpu,out/c.nii.gz,,12.5,20,,2026-11-28T09:30:00Z,both\n"
    )


def test_what_another_version_adds_to_the_sidecar_is_no_matter() -> None:
    document = document_of("a")
    more = {**document, "volumes_ml": {**document["volumes_ml"], "RC": 1.0}, "seconds": {**document["seconds"], "write": 1}}
    assert row_of({**more, "another": {}}, Status.DONE) == row_of(document, Status.DONE)


@pytest.mark.parametrize("wrong", [None, "text", 7, [7], float("nan"), {"WT": "1.0", "read": True, "name": None}])
def test_what_is_not_as_it_should_be_counts_as_unknown(wrong: object) -> None:
    row = row_of({"case": "a", "volumes_ml": wrong, "seconds": wrong, "device": None}, Status.DONE)
    assert (dict(row.volumes_ml), dict(row.seconds), row.device) == ({}, {}, "")


def test_bytes_of_a_name_that_is_no_text_are_kept(tmp_path: Path) -> None:
    row = SummaryRow(case="caf\udce9", status=Status.DONE, output="out/caf\udce9.nii.gz")
    table = encode_summary([row])
    assert b"caf\xe9,done" in table
    (tmp_path / "summary.csv").write_bytes(table)
    assert read_summary(tmp_path / "summary.csv") == [row]


@pytest.mark.parametrize(
    "row",
    [
        row_of(document_of("a", warnings=["resampled", "thick-slices"]), Status.DONE),
        row_of({"case": 'a,"b";\nc'}, Status.LEFT_OUT),
        FAILED,
    ],
)
def test_row_is_read_as_it_was_written(row: SummaryRow, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_bytes(encode_summary([row]))
    assert read_summary(tmp_path / "summary.csv") == [row]


@pytest.mark.parametrize("line", ["a,done", f"a,finished{',' * 18}", f"a,done,many{',' * 17}"])
def test_damaged_row_is_told_by_its_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_bytes(HEADER + f"{line}\n".encode())
    with pytest.raises(CaseError, match=r"summary\.csv: line 2 is damaged"):
        read_summary(tmp_path / "summary.csv")


def test_table_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text("case,dice\na,0.9\n")
    with pytest.raises(CaseError, match="is not a summary that drunet wrote"):
        read_summary(tmp_path / "summary.csv")


def test_summary_is_told_from_other_tables(tmp_path: Path) -> None:
    contents = {
        "ours": encode_summary([FAILED]),
        "empty": encode_summary([]),
        "earlier": HEADER_0_1_0,
        "without side": HEADER_WITHOUT_SIDE,
        "report": encode_table([*COLUMNS, "folder"], []),
        "theirs": b"case,dice\n",
        "nothing": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in contents if is_summary(tmp_path / name)] == ["ours", "empty", "earlier", "without side"]


def test_summary_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be read: Is a directory"):
        is_summary(tmp_path)


# One table for a folder


def row(case: str, status: Status = Status.DONE, **more: Any) -> SummaryRow:
    return SummaryRow(case=case, status=status, **{"time": TIME, **more})


def test_a_run_replaces_the_rows_of_its_cases_alone(tmp_path: Path) -> None:
    table = tmp_path / SUMMARY
    enter_rows(table, [row("b"), row("a"), row("c", Status.FAILED, error="no T1")])
    enter_rows(table, [row("b", Status.FAILED, error="one"), row("b", Status.FAILED, error="another"), row("d")])
    assert [(each.case, each.error) for each in read_summary(table)] == [
        ("a", ""),
        ("b", "one"),
        ("b", "another"),
        ("c", "no T1"),
        ("d", ""),
    ]
    enter_rows(table, [row("b"), row("c", Status.DIFFERS, error="was made otherwise")])
    assert [each.status for each in read_summary(table)] == ["done", "done", "differs", "done"]
    assert names_in(tmp_path) == [SUMMARY, WORKBOOK]
    assert [cells[:2] for cells in cells_of(tmp_path / WORKBOOK)[1:]] == [
        [("inlineStr", case), ("inlineStr", status)]
        for case, status in (("a", "done"), ("b", "done"), ("c", "differs"), ("d", "done"))
    ]


@pytest.mark.parametrize("what", ["saved by another program", "a folder"])
def test_a_workbook_that_cannot_be_replaced_costs_no_row(what: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    if what == "a folder":
        (tmp_path / WORKBOOK).mkdir()
    else:
        (tmp_path / WORKBOOK).write_bytes(b"with somebody's notes")
    for overwrite in (False, True):
        enter_rows(tmp_path / SUMMARY, [row("a")], overwrite=overwrite, on_warning=warnings.append)
        assert [each.case for each in read_summary(tmp_path / SUMMARY)] == ["a"]
    assert [line.startswith(f"{tmp_path}/summary.xlsx: ") and "summary.csv has" in line for line in warnings] == [True, True]
    assert what == "a folder" or (tmp_path / WORKBOOK).read_bytes() == b"with somebody's notes"


def test_tables_of_0_1_0_are_taken_in(tmp_path: Path) -> None:
    def write(name: str, *lines: bytes, age_s: int) -> str:
        (tmp_path / name).write_bytes(HEADER_0_1_0 + b"".join(line + b"\n" for line in lines))
        os.utime(tmp_path / name, (1_800_000_000 - age_s,) * 2)
        return f"{datetime.fromtimestamp(1_800_000_000 - age_s, UTC):%Y-%m-%dT%H:%M:%SZ}"

    first = write("summary-1-of-2.csv", b"a,failed,,,,,,,,,,,,,no T1", b"b,done,1.5,,,,,,,,,,,out/b.nii.gz,", age_s=60)
    second = write("summary-2-of-2.csv", b"a,left out,2.5,,,,,,,,,,,,was made otherwise", age_s=30)
    (tmp_path / "summary-3-of-2.csv").write_text("somebody's\n")
    enter_rows(tmp_path / SUMMARY, [row("c")])
    assert read_summary(tmp_path / SUMMARY) == [
        row("a", Status.DIFFERS, volumes_ml={"WT": 2.5}, error="was made otherwise", time=second),
        row("b", volumes_ml={"WT": 1.5}, output="out/b.nii.gz", time=first),
        row("c"),
    ]
    enter_rows(tmp_path / SUMMARY, [row("a")])
    assert [each.status for each in read_summary(tmp_path / SUMMARY)] == ["done"] * 3


@pytest.mark.parametrize("content", [b"mine\n", HEADER + b"a,done\n"], ids=["somebody's", "damaged"])
def test_a_table_that_cannot_be_kept_is_replaced_only_where_that_is_asked_for(content: bytes, tmp_path: Path) -> None:
    table = tmp_path / SUMMARY
    table.write_bytes(content)
    with pytest.raises(OutputError, match=r"summary\.csv: (exists already and is not drunet's|line 2 is damaged)"):
        enter_rows(table, [row("b")])
    assert table.read_bytes() == content
    enter_rows(table, [row("b")], overwrite=True)
    assert read_summary(table) == [row("b")]


def test_runs_that_end_at_once_lose_no_row(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path / SUMMARY, n) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert [each.case for each in read_summary(tmp_path / SUMMARY)] == [f"{n}_{k}" for n in range(3) for k in range(10)]


def start_writer(table: Path, n: int) -> "subprocess.Popen[bytes]":
    """A process that enters ten rows, one after the other."""
    code = (
        "import sys, pathlib; from drunet_cli.segmentation.summary import SummaryRow, Status, enter_rows\n"
        f"for k in range(10): enter_rows(pathlib.Path(sys.argv[1]), [SummaryRow(case=f'{n}_{{k}}', status=Status.DONE)])"
    )
    return subprocess.Popen([sys.executable, "-c", code, table])
