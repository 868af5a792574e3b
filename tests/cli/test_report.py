"""`drunet report` from the command line: what it prints, what it writes, and its exit codes."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from drunet_cli.cli.app import main
from drunet_cli.errors import CaseError
from drunet_cli.segmentation.summary import COLUMNS, Status, encode_summary, failed_row, row_of
from tests.segmentation.sidecars import write_case
from tests.support import GOLDEN_WEIGHTS, image_options

pytestmark = pytest.mark.usefixtures("in_tmp_path")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def runs() -> Path:
    """Two shards: a and c with a warning, b that failed."""
    write_case(Path("runs/one"), "a")
    write_case(Path("runs/two"), "c", warnings=["resampled"])
    Path("runs/one/summary-1-of-2.csv").write_bytes(encode_summary([failed_row("b", CaseError("b: no such file"))]))
    return Path("runs")


def test_table_is_printed_where_nothing_is_to_be_written(runs: Path, capsys: Captured) -> None:
    assert main(["report", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["CASE", "STATUS", "WT", "mL", "TC", "mL", "ET", "mL", "NOTES"],
        ["a", "done", "3.5", "1.5", "0.500"],
        ["b", "failed", "b:", "no", "such", "file"],
        ["c", "done", "(!)", "3.5", "1.5", "0.500", "resampled"],
    ]
    assert err == "3 cases: 2 segmented, 1 failed; 1 with warnings\n"


def test_page_and_table_are_written_and_their_paths_printed(runs: Path, capsys: Captured) -> None:
    assert main(["report", str(runs), "--csv", "cases.csv", "-o", "pages/report.html"]) == 0
    assert capsys.readouterr().out == "cases.csv\npages/report.html\n"
    assert Path("pages/report.html").read_text().startswith("<!doctype html>")
    rows = list(csv.DictReader(io.StringIO(Path("cases.csv").read_text())))
    assert list(rows[0]) == [*COLUMNS, "folder"]
    assert [(row["case"], row["status"], row["wt_ml"], row["folder"]) for row in rows] == [
        ("a", "done", "3.5", "runs/one"),
        ("b", "failed", "", "runs/one"),
        ("c", "done", "3.5", "runs/two"),
    ]


def test_json_gives_an_object_a_case_and_the_table_among_runs_is_no_summary(runs: Path, capsys: Captured) -> None:
    for _ in range(2):
        assert main(["report", str(runs), "--json", "--csv", "runs/summary.csv", "--overwrite"]) == 0
        documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [document["case"] for document in documents] == ["a", "b", "c"]
    assert (documents[2]["warnings"], documents[2]["network_s"]) == (["resampled"], 1.5)
    assert documents[1]["error"] == "b: no such file"


@pytest.mark.parametrize(("option", "name"), [("--csv", "cases.csv"), ("--xlsx", "cases.xlsx"), ("-o", "report.html")])
def test_file_that_exists_is_replaced_only_when_asked(option: str, name: str, runs: Path, capsys: Captured) -> None:
    Path(name).write_text("mine")
    assert main(["report", "absent", option, name]) == 6  # before anything is read
    assert (Path(name).read_text(), f"{name}: exists already" in capsys.readouterr().err) == ("mine", True)
    assert main(["report", str(runs), option, name, "--overwrite"]) == 0
    assert Path(name).read_bytes() != b"mine"


def test_summary_of_a_run_is_never_replaced(runs: Path, capsys: Captured) -> None:
    summary = runs / "one/summary-1-of-2.csv"
    before = summary.read_bytes()
    assert main(["report", str(runs), "--csv", str(summary), "--overwrite"]) == 6
    assert "is the summary of a run" in capsys.readouterr().err
    assert summary.read_bytes() == before


def test_folder_without_a_sidecar_is_named(runs: Path, capsys: Captured) -> None:
    Path("none").mkdir()
    assert main(["report", str(runs), "none", "-o", "report.html"]) == 3
    out, err = capsys.readouterr()
    assert (out, err.startswith("Error: none: holds no sidecar")) == ("", True)
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "report.txt"],
        ["--csv", "report.html"],
        ["--xlsx", "cases.csv"],
        ["--xlsx", "cases.xlsx", "--csv", "cases.xlsx"],
        [""],
        ["--csv", ""],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], runs: Path) -> None:
    assert main(["report", str(runs), *arguments]) == 2


def test_what_is_wrong_with_many_is_told_once_with_a_count(runs: Path, capsys: Captured) -> None:
    for case in "defg":
        write_case(Path("runs/two"), case)
        Path(f"runs/two/{case}_preview.png").write_bytes(b"no picture")
    for case in "def":
        Path(f"runs/two/{case}.nii.gz").unlink()
    for case in "hi":
        write_case(Path("runs/three"), case).write_text('{"schema": "drunet.segmentation/1"')
    done = [row_of(json.loads(Path(f"runs/two/{case}.json").read_text()), Status.DONE) for case in "cg"]
    for shard, row in zip((1, 2), done, strict=True):
        folder = Path(f"runs/bare-{shard}")
        folder.mkdir()
        folder.joinpath(f"summary-{shard}-of-2.csv").write_bytes(encode_summary([replace(row, case=f"bare {shard}")]))
        folder.joinpath(Path(row.output).name).write_bytes(b"a label map")
    folders = ["runs/bare-1", "runs/bare-2", "runs/two", "runs"]
    assert main(["report", *folders, "-o", "report.html"]) == 0
    told = [line.removeprefix("Warning: ") for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    gone = "is gone; the volumes are those that were found"
    assert told == [
        f"d: runs/two/d.nii.gz: {gone} (the same of 2 more)",
        "runs/three/h.json: is a damaged sidecar; left out (the same of 1 more)",
        "runs/bare-1/summary-1-of-2.csv and 1 more: 2 of their cases without a sidecar; taken from the tables",
        "runs/two/d_preview.png: is not a PNG file; not shown (the same of 3 more)",
    ]
    page = Path("report.html").read_text()
    assert (page.count("not shown"), page.count(gone)) == (1, 3)  # on the page every case says what is wrong with it
    assert main(["report", *folders, "-o", "report.html", "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("report.html\n", "")


def test_what_segment_wrote_is_reported(capsys: Captured) -> None:
    options = ["--case", "golden", "--weights", str(GOLDEN_WEIGHTS), "-o", "out", "--json", "--quiet"]
    assert main(["segment", *image_options(), *options]) == 0
    written = json.loads(capsys.readouterr().out)
    assert main(["report", "out", "--json", "--quiet", "-o", "report.html"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert {name: read[f"{name.lower()}_ml"] for name in written["volumes_ml"]} == written["volumes_ml"]
    assert read["warnings"] == [warning["code"] for warning in written["warnings"]]
    assert (read["weights"], read["weights_sha256"]) == ([written["weights"]["name"]], [written["weights"]["sha256"]])
    assert {stage: read[f"{stage}_s"] for stage in ("read", "network")} == written["seconds"]
    assert (read["device"], read["output"]) == (written["device"], written["output"])
    page = Path("report.html").read_text()
    assert all(str(told) in page for told in (written["weights"]["sha256"], *written["versions"].values()))
