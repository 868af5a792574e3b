"""The table of a cohort."""

from pathlib import Path

import pytest

from drunet_cli.errors import CaseError, OutputError
from drunet_cli.segmentation.summary import (
    COLUMNS,
    Status,
    SummaryRow,
    encode_summary,
    encode_table,
    failed_row,
    is_summary,
    read_summary,
    row_of,
    summary_name,
)
from tests.segmentation.small_runs import document_of

HEADER = b"case,status,wt_ml,tc_ml,et_ml,ncr_ml,ed_ml,warnings,weights,weights_sha256,read_s,network_s,device,output,error\n"
FAILED = failed_row("b", CaseError("b: no such file"))


def test_table_has_a_row_a_case_in_their_order() -> None:
    document = {**document_of("c", warnings=["resampled", "thick-slices"]), "output": "out/c.nii.gz"}
    rows = [row_of(document, Status.DONE), FAILED, row_of({"case": "a"}, Status.LEFT_OUT)]
    sha256 = b"5" * 64
    assert encode_summary(rows) == (
        HEADER
        + b"a,left out,,,,,,,,,,,,,\n"
        + b"b,failed,,,,,,,,,,,,,b: no such file\n"
        + b"c,done,3.5,1.5,0.5,1.0,2.0,resampled;thick-slices,brats2020,"
        + sha256
        + b",0.25,1.5,cpu,out/c.nii.gz,\n"
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


@pytest.mark.parametrize("line", ["a,done", "a,finished,,,,,,,,,,,,,", "a,done,many,,,,,,,,,,,,"])
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
        "report": encode_table([*COLUMNS, "folder"], []),
        "theirs": b"case,dice\n",
        "nothing": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in contents if is_summary(tmp_path / name)] == ["ours", "empty"]


def test_summary_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be read: Is a directory"):
        is_summary(tmp_path)


@pytest.mark.parametrize(("shard", "name"), [(None, "summary.csv"), ((3, 16), "summary-3-of-16.csv")])
def test_each_shard_has_a_summary_of_its_own(shard: tuple[int, int] | None, name: str) -> None:
    assert summary_name(shard) == name
