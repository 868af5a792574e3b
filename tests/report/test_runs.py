"""What is found of runs in their folders."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from drunet_cli.errors import CaseError
from drunet_cli.report.runs import Runs, provenance, read_runs
from drunet_cli.segmentation.outputs import SCHEMA
from drunet_cli.segmentation.summary import Status, SummaryRow, encode_summary, failed_row, row_of
from tests.segmentation.sidecars import document_of, write_case, write_outputs
from tests.support import open_to_all, unprivileged


def cases(runs: Runs) -> list[str]:
    return [record.row.case for record in runs.records]


def write_summary(folder: Path, *rows: SummaryRow, name: str = "summary.csv", age_s: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(encode_summary(rows))
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))


def failed(case: str, reason: str = "no such file") -> SummaryRow:
    return failed_row(case, CaseError(f"{case}: {reason}"))


def test_cases_are_found_at_any_depth_in_their_order(tmp_path: Path) -> None:
    for folder, case in (("", "c"), ("one", "b"), ("one/two", "a")):
        write_case(tmp_path / folder, case)
    assert cases(read_runs([tmp_path])) == ["a", "b", "c"]


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    for name, content in (
        ("dataset.json", '{"schema": 1}'),
        ("broken.json", "{"),
        ("list.json", "[]"),
        ("summary.csv", "case\n"),
    ):
        (tmp_path / name).write_text(content)
    runs = read_runs([tmp_path])
    assert (cases(runs), runs.notices) == (["a"], ())


def test_sidecar_may_be_named_itself(tmp_path: Path) -> None:
    write_case(tmp_path, "b")
    assert cases(read_runs([write_case(tmp_path, "a")])) == ["a"]


def test_file_that_is_found_twice_counts_once(tmp_path: Path) -> None:
    sidecar = write_case(tmp_path / "runs/one", "a")
    write_summary(tmp_path / "runs/one", failed("b"))
    (tmp_path / "link").symlink_to("runs/one")
    runs = read_runs([tmp_path / "runs", tmp_path / "runs/one", sidecar, tmp_path / "link"])
    assert (cases(runs), runs.notices) == (["a", "b"], ())


@pytest.mark.timeout(20)  # looked through again and again, it would take for ever
def test_folder_that_is_linked_into_a_run_is_looked_through_once(tmp_path: Path) -> None:
    write_case(tmp_path / "elsewhere", "a")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/shard").symlink_to("../elsewhere")
    for name in ("back", "again"):
        (tmp_path / "elsewhere" / name).symlink_to("../run")
    assert cases(read_runs([tmp_path / "run"])) == ["a"]


def test_case_of_two_runs_is_kept_twice_and_told(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_case(tmp_path / folder, "a")
        write_case(tmp_path / folder, "b")
    write_case(tmp_path / "two", "c")
    runs = read_runs([tmp_path / "one", tmp_path / "two"])
    assert cases(runs) == ["a", "a", "b", "b", "c"]
    assert runs.notices == (f"a and 1 more: in {tmp_path}/one and in {tmp_path}/two; all are kept",)


def test_label_map_is_found_where_its_run_was_moved_to(tmp_path: Path) -> None:
    write_case(tmp_path / "before", "a")
    (tmp_path / "before").rename(tmp_path / "after")
    (record,) = read_runs([tmp_path / "after"]).records
    assert (record.row.output, record.row.warnings) == (str(tmp_path / "after/a.nii.gz"), ())


def test_label_map_is_found_when_it_was_renamed_with_its_sidecar(tmp_path: Path) -> None:
    sidecar = write_case(tmp_path, "a")
    sidecar.rename(tmp_path / "z.json")
    (tmp_path / "a.nii.gz").rename(tmp_path / "z.nii.gz")
    (record,) = read_runs([tmp_path]).records
    assert (record.row.output, record.row.warnings) == (str(tmp_path / "z.nii.gz"), ())


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("label-map-missing", "is gone; the volumes are those that were found"),
        ("label-map-changed", "is not the file that was written; the volumes are those of that file"),
        ("label-map-unreadable", "cannot be read: Is a directory"),
    ],
)
def test_what_became_of_a_label_map_is_the_last_warning(state: str, message: str, sidecar: bool, tmp_path: Path) -> None:
    path = write_case(tmp_path, "a", warnings=["resampled"])
    write_summary(tmp_path, row_of(document_of("a", warnings=["resampled"]), Status.DONE))
    label_map = tmp_path / "a.nii.gz"
    label_map.unlink()
    if state == "label-map-changed":
        label_map.write_bytes(b"corrected by hand")
    elif state == "label-map-unreadable":
        label_map.mkdir()
    if not sidecar:  # a summary knows the codes of warnings alone, and not what the label map was
        path.unlink()
        state = state if state == "label-map-missing" else ""
    (record,) = read_runs([tmp_path]).records
    problem = (state, f"{label_map}: {message}")
    assert record.warnings == (("resampled", "what resampled means" if sidecar else ""), *([problem] if state else []))
    assert record.row.warnings == ("resampled", *([state] if state else []))
    assert record.problem == (problem[1] if state else "")


def test_failed_cases_of_all_shards_are_counted(tmp_path: Path) -> None:
    for shard in (1, 2):
        document = document_of(f"done_{shard}")
        write_outputs(tmp_path, document)
        rows = (row_of(document, Status.DONE), failed(f"failed_{shard}"))
        write_summary(tmp_path, *rows, name=f"summary-{shard}-of-2.csv")
    runs = read_runs([tmp_path])
    assert cases(runs) == ["done_1", "done_2", "failed_1", "failed_2"]
    assert [record.row.status for record in runs.records] == ["done", "done", "failed", "failed"]
    assert runs.records[2].row.error == "failed_1: no such file"


@pytest.mark.parametrize(("folder", "statuses"), [("one", ["done"]), ("two", ["done", "failed"])])
def test_case_has_failed_where_it_was_not_segmented_later(folder: str, statuses: list[str], tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    write_summary(tmp_path / folder, failed("a"))
    assert [record.row.status for record in read_runs([tmp_path]).records] == statuses


@pytest.mark.parametrize(("time", "status"), [("09:00:00", "differs"), ("10:00:00", "done")])
def test_case_differs_unless_it_was_segmented_later(time: str, status: str, tmp_path: Path) -> None:
    document = {**document_of("a"), "time": f"2026-11-28T{time}Z"}
    write_outputs(tmp_path, document)
    row = replace(row_of(document, Status.DIFFERS), error="was made otherwise", time="2026-11-28T09:30:00Z")
    write_summary(tmp_path, row)
    runs = read_runs([tmp_path])
    (record,) = runs.records
    assert (record.row.status, record.row.error, record.needs_a_look) == (
        (status, "was made otherwise", True) if status == "differs" else (status, "", False)
    )
    assert (record.row.volumes_ml["WT"], runs.notices) == (3.5, ())
    assert provenance(runs.records)


def test_latest_of_several_summaries_tells_why_a_case_failed(tmp_path: Path) -> None:
    write_summary(tmp_path, failed("a", "the latest reason"), name="summary-1-of-2.csv")
    write_summary(tmp_path, failed("a", "an earlier reason"), age_s=60)
    assert [record.row.error for record in read_runs([tmp_path]).records] == ["a: the latest reason"]


def test_case_without_a_sidecar_is_taken_from_the_summary(tmp_path: Path) -> None:
    write_case(tmp_path, "a").unlink()
    write_summary(tmp_path, row_of(document_of("a"), Status.DONE))
    runs = read_runs([tmp_path])
    assert runs.records[0].row.volumes_ml["WT"] == 3.5
    assert runs.records[0].row.output == str(tmp_path / "a.nii.gz")
    assert runs.notices == (f"{tmp_path}/summary.csv: 1 of its cases without a sidecar; taken from the table",)


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        ("", "is a damaged sidecar"),
        (json.dumps({"schema": SCHEMA, "case": 7}), "is a damaged sidecar: names no case"),
        (json.dumps({"schema": "drunet.segmentation/2", "case": "b"}), "is of schema drunet.segmentation/2, which another"),
    ],
)
def test_sidecar_that_cannot_be_understood_is_told(content: str, notice: str, tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    damaged = write_case(tmp_path, "b")
    damaged.write_text(content or damaged.read_text()[:200])
    runs = read_runs([tmp_path])
    assert cases(runs) == ["a"]
    assert [told.startswith(f"{damaged}: {notice}") for told in runs.notices] == [True]


def test_damaged_summary_is_told(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    (tmp_path / "summary.csv").write_bytes(encode_summary([]) + b"b,fai\n")
    runs = read_runs([tmp_path])
    assert cases(runs) == ["a"]
    assert [told.startswith(f"{tmp_path}/summary.csv: line 2 is damaged") for told in runs.notices] == [True]


def test_folder_that_holds_nothing_of_a_run_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "run", "a")
    (tmp_path / "none").mkdir()
    with pytest.raises(CaseError, match="none: holds no sidecar of a segmented case"):
        read_runs([tmp_path / "run", tmp_path / "none"])


@pytest.mark.parametrize("name", ["absent", "a.nii.gz"])
def test_file_that_is_no_sidecar_is_refused(name: str, tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    with pytest.raises(CaseError, match=name):
        read_runs([tmp_path / name])


def test_summary_of_an_empty_shard_is_a_run_without_cases(tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "summary-2-of-2.csv").write_bytes(encode_summary([]))
    assert cases(read_runs([tmp_path / "one", tmp_path / "two"])) == ["a"]


def test_folder_that_may_not_be_listed_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    (tmp_path / "shut").mkdir(mode=0o000)
    open_to_all(tmp_path)
    with unprivileged(), pytest.raises(CaseError, match="shut: cannot be listed"):
        read_runs([tmp_path])
