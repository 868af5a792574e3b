"""`drunet segment` of many cases: which are found, what is printed and written, and its exit codes."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from tests.cli.small_cohort import (
    CASES,
    N_CASES,
    NAMES_2021,
    NAMES_2023,
    NAMES_NNUNET,
    SETTINGS,
    SHAPE,
    save,
    shift,
    spoil,
    write_case,
    write_cases,
)
from tests.support import ENDED_PID, contents, names_in, open_image, stdin_of

LABEL_MAPS: Final = [f"out/{case}.nii.gz" for case in CASES]
OUTPUTS: Final = sorted(f"{case}{suffix}" for case in CASES for suffix in (".json", ".nii.gz"))
TABLES: Final = ["labels_itksnap.txt", "labels_slicer.ctbl", "summary.csv", "summary.xlsx"]
WEIGHTS: Final = "../weights.safetensors"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def segmented(cohort: Path, golden_safetensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of them, which no test changes."""
    out = tmp_path_factory.mktemp("segmented") / "out"
    assert main(["segment", str(cohort), "-o", str(out), "--weights", str(golden_safetensors), *SETTINGS, "--quiet"]) == 0
    return out


@pytest.fixture(autouse=True)
def in_an_empty_folder(golden_safetensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path(WEIGHTS).hardlink_to(golden_safetensors)


def segment(*arguments: str | Path) -> int:
    return main(["segment", "--weights", WEIGHTS, *SETTINGS, *map(str, arguments)])


def outputs(segmented: Path, *cases: str) -> None:
    """Put outputs that are complete into the folder `out`."""
    Path("out").mkdir()
    for case in cases:
        for suffix in (".nii.gz", ".json"):
            shutil.copyfile(segmented / f"{case}{suffix}", f"out/{case}{suffix}")


def objects(lines: str) -> dict[str, dict[str, Any]]:
    """JSON Lines by case, none of which may come twice."""
    found = [json.loads(line) for line in lines.splitlines()]
    by_case = {str(document["case"]): document for document in found}
    assert len(by_case) == len(found)
    return by_case


def summary() -> dict[str, dict[str, str]]:
    """The rows of the table by case, none of which may come twice."""
    rows = list(csv.DictReader(Path("out/summary.csv").read_text().splitlines()))
    by_case = {row["case"]: row for row in rows}
    assert len(by_case) == len(rows)
    return by_case


def errors(lines: str) -> dict[str, str]:
    """What was said of each case that failed."""
    told = (line.removeprefix("Error: ").split(": ", 1) for line in lines.splitlines() if line.startswith("Error: "))
    return {name: reason for name, reason in told if " cases failed" not in name}


# What is written and printed


def test_every_case_gets_a_label_map_and_a_sidecar(cohort: Path, segmented: Path) -> None:
    assert names_in(segmented) == sorted([*OUTPUTS, *TABLES])
    for case in CASES:
        label_map = open_image(segmented / f"{case}.nii.gz")
        assert label_map.shape == SHAPE
        np.testing.assert_array_equal(label_map.affine, open_image(cohort / case / f"{case}_flair.nii.gz").affine)
        document = json.loads((segmented / f"{case}.json").read_text())
        assert (document["case"], document["output_sha256"]) == (case, file_sha256(segmented / f"{case}.nii.gz"))
        assert {Path(entry["path"]).parent.name for entry in document["inputs"].values()} == {case}


@pytest.mark.usefixtures("label_maps_unjudged")
def test_paths_are_printed_on_stdout_and_lines_and_a_table_on_stderr(cohort: Path, capsys: Captured) -> None:
    assert segment(cohort, "-o", "out") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == LABEL_MAPS
    lines = err.splitlines()
    assert [line.split(": WT ")[0] for line in lines[:N_CASES]] == CASES
    assert lines[N_CASES].split() == ["CASE", "STATUS", "WT", "mL", "TC", "mL", "ET", "mL", "NOTES"]
    assert [line.split()[:2] for line in lines[N_CASES + 1 : -1]] == [[case, "done"] for case in CASES]
    assert lines[-1].startswith("3 cases in out (")
    assert {case: row["status"] for case, row in summary().items()} == dict.fromkeys(CASES, "done")
    for case, row in summary().items():
        document = json.loads(Path(f"out/{case}.json").read_text())
        assert row["output"] == document["output"] == f"out/{case}.nii.gz"
        assert float(row["wt_ml"]) == document["volumes_ml"]["WT"]


def test_json_is_one_object_a_case_and_nothing_else_on_stdout(cohort: Path, segmented: Path, capsys: Captured) -> None:
    shutil.copytree(cohort, "cohort")
    spoiled = spoil(Path("cohort/case_1"))
    (write_case(Path("cohort/case_3"), seed=3) / "case_3_t1.nii.gz").unlink()
    assert segment("cohort", "-o", "out", "--json") == 1
    found = objects(capsys.readouterr().out)
    assert found.keys() == {*CASES, "case_3"}
    for case in ("case_0", "case_2"):
        assert found[case] == json.loads(Path(f"out/{case}.json").read_text())
    assert found["case_1"].keys() == found["case_3"].keys() == {"case", "error", "exit_code"}
    assert found["case_1"]["error"].startswith(f"{spoiled}: is truncated")
    assert "has no T1" in found["case_3"]["error"]
    assert (found["case_1"]["exit_code"], found["case_3"]["exit_code"]) == (3, 3)


@pytest.mark.usefixtures("label_maps_unjudged")
def test_a_warning_names_its_case_and_stands_in_table_and_summary(cohort: Path, capsys: Captured) -> None:
    shutil.copytree(cohort, "cohort")
    t2 = Path("cohort/case_1/case_1_t2.nii.gz")
    save(np.roll(open_image(t2).get_fdata().astype(np.int16), 2, axis=1), t2)
    assert segment("cohort", "-o", "out") == 0
    err = capsys.readouterr().err
    (warning,) = [line for line in err.splitlines() if line.startswith("Warning: ")]
    assert warning.startswith(f"Warning: case_1: {t2}: the outline of the brain in T2 is not that in FLAIR")
    assert {case: row["warnings"] for case, row in summary().items()} == {
        "case_0": "",
        "case_1": "different-brains",
        "case_2": "",
    }
    assert any(line.split()[:3] == ["case_1", "done", "(!)"] and line.endswith("different-brains") for line in err.splitlines())
    (told,) = json.loads(Path("out/case_1.json").read_text())["warnings"]
    assert (told["code"], warning) == ("different-brains", f"Warning: case_1: {told['message']}")
    assert err.splitlines()[-1].startswith("3 cases in out, 1 with warnings (see summary.csv) (")
    assert segment("cohort", "-o", "out", "--skip-existing") == 0
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.endswith("(complete, left out, weights keras_base1)") for line in lines[:N_CASES]] == [True] * N_CASES
    assert last.startswith("3 cases in out, 1 with warnings (see summary.csv) (")
    assert last.endswith(" s); 3 were complete and left out")


# Which cases


def test_files_of_any_naming_give_the_same_label_map(segmented: Path) -> None:
    for n, words in enumerate((NAMES_2021, NAMES_2023, NAMES_NNUNET)):
        write_case(Path(f"any/{words[0]}/case_{n}"), seed=n, words=words)
    assert segment("any", "-o", "out", "--channels", "t1,t1ce,t2,flair", "--quiet") == 0
    for case in CASES:
        assert Path(f"out/{case}.nii.gz").read_bytes() == (segmented / f"{case}.nii.gz").read_bytes()


def table_of(cohort: Path, path: str, cases: Sequence[str], *, separator: str = ",") -> None:
    """Write a table that names each case `patient of CASE`."""
    rows = [["case", "t1", "t1ce", "t2", "flair"]]
    rows += [
        [f"patient of {case}", *(str(cohort / case / f"{case}_{kind}.nii.gz") for kind in ("t1", "t1ce", "t2", "flair"))]
        for case in cases
    ]
    Path(path).write_text("".join(f"{separator.join(row)}\n" for row in rows))


def test_folders_tables_and_stdin_can_be_mixed(cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    table_of(cohort, "table.csv", ["case_1"])
    monkeypatch.setattr("sys.stdin", stdin_of(f"{cohort}/case_2\n\ntable.csv\r\n"))
    assert segment(cohort / "case_0", "-", "-o", "out", "--dry-run", "--json") == 0
    assert list(objects(capsys.readouterr().out)) == ["case_0", "case_2", "patient of case_1"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("p\u00e9", "utf-8-sig"), ("p\u00e9", "utf-16"), (os.fsdecode(b"p\xe9"), "utf-8")]
)
def test_a_list_on_stdin_may_have_a_mark_and_names_that_are_no_text(
    name: str, encoding: str, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    Path(name).symlink_to(cohort / "case_0")
    monkeypatch.setattr("sys.stdin", stdin_of(f"{name}\r\n".encode(encoding, "surrogateescape")))
    assert segment("-", "-o", "out", "--dry-run", "--json") == 0
    assert list(objects(capsys.readouterr().out)) == ["case_0"]


@pytest.mark.parametrize("before", [".\0", "", "x\0y\0"])
def test_a_list_on_stdin_may_be_that_of_find_print0(
    before: str, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name in ("one\ntwo", "x", "y"):
        Path(name).symlink_to(cohort / "case_0")
    monkeypatch.setattr("sys.stdin", stdin_of(f"{before}{cohort}/case_1\0./one\ntwo\0"))
    assert segment("-", "-o", "out", "--dry-run", "--json") == 0
    assert list(objects(capsys.readouterr().out)) == ["case_0", "case_1"]


def test_empty_stdin_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("sys.stdin", stdin_of(""))
    assert segment("-", "-o", "out") == 3
    assert capsys.readouterr().err.startswith("Error: stdin: no case: give paths of case folders")
    assert not Path("out").exists()


# Misuse, and what stops a run before it begins


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        *(
            (["-o", name], f"Error: -o {name}: is one file; name a folder, which gets a label map of each case")
            for name in ("seg.nii.gz", "seed=3.nii.gz")  # the name of a parameter is no option here
        ),
        (["-o", "out", "--dry-run", "--shard", "2"], "Error: Invalid value for '--shard': '2' is not K/N"),
        ([], "Error: missing -o"),
        (["-o", "out", "--skip-existing", "--overwrite"], "Error: --skip-existing and --overwrite exclude one another"),
        (["-o", "out", "--skip-existing", "--no-sidecar"], "Error: --skip-existing needs the sidecars"),
        (["-o", "out", "--case", "one"], "Error: CASES (--pattern, --channels, --shard) and --t1 --t1ce --t2 --flair --case"),
        (["-o", "out", "--keep-prepared", "kept"], "Error: --keep-prepared DIR is for --prepare; give both"),
        (
            ["-o", "out", "--prepare", "--keep-prepared", "kept", "--bids", "--dicom-seg"],
            "Error: --dicom-seg and --bids exclude one another: a BIDS data set has no place for DICOM",
        ),
        (["-o", "out", "--pattern", "t9=*"], "Error: "),
        (["-o", "out", "--channels", "t1,t2"], "Error: "),
        *(
            (["-o", "out", "--shard", shard], "Error: Invalid value for '--shard'")
            for shard in ("", "0/3", "4/3", "1/2/3", "²/3", "1/1000000000")
        ),
    ],
    ids=str,
)
def test_misuse_is_one_line_and_exit_2(arguments: list[str], line: str, cohort: Path, capsys: Captured) -> None:
    settings = [] if "--device" in arguments else SETTINGS
    assert main(["segment", str(cohort), *settings, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert names_in(".") == []


@pytest.mark.parametrize(
    ("cases", "line"),
    [
        ([], "missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair"),
        ([""], "CASES: an empty path; an unset variable?"),
    ],
)
def test_a_run_without_a_place_of_cases_is_misuse(cases: list[str], line: str, capsys: Captured) -> None:
    assert segment(*cases, "-o", "out") == 2
    assert capsys.readouterr() == ("", f"Error: {line}\n")


@pytest.mark.parametrize("option", [[], ["--skip-existing"]], ids=["plain", "skip-existing"])
def test_a_summary_of_others_is_not_replaced(option: list[str], cohort: Path, capsys: Captured) -> None:
    Path("out").mkdir()
    Path("out/summary.csv").write_text("mine\n")
    assert segment(cohort, "-o", "out", *option) == 6
    assert "out/summary.csv: exists already and is not drunet's" in capsys.readouterr().err
    assert contents(Path("out")) == {"summary.csv": b"mine\n"}


def test_overwrite_replaces_everything_but_colours_and_a_workbook_of_others(segmented: Path, cohort: Path) -> None:
    Path("out").mkdir()
    for name in [*OUTPUTS, *TABLES]:
        Path("out", name).write_text("earlier")
    assert segment(cohort, "-o", "out", "--overwrite", "--quiet") == 0
    assert names_in("out") == sorted([*OUTPUTS, *TABLES])
    for case in CASES:
        assert Path(f"out/{case}.nii.gz").read_bytes() == (segmented / f"{case}.nii.gz").read_bytes()
    assert [Path("out", name).read_text() == "earlier" for name in TABLES] == [True, True, False, True]  # may be somebody's


# Again


def test_a_case_that_differs_is_called_so_everywhere_and_keeps_what_is_known_of_its_label_map(
    cohort: Path, capsys: Captured
) -> None:
    shutil.copytree(cohort, "cohort")
    assert segment("cohort", "-o", "out", "--quiet") == 0
    before = summary()
    Path("cohort/case_2/case_2_t1.nii.gz").unlink()  # cannot be compared
    said = []
    for option in (["--dry-run"], []):
        capsys.readouterr()
        assert segment("cohort", "-o", "out", "--skip-existing", "--labels", "brats2023", *option) == 1
        out, err = capsys.readouterr()
        said.append(sorted(errors(err.replace("would fail", "failed")).items()))
        table = [line.split() for line in (out if option else err).splitlines() if line.startswith("case_")]
        assert [(name, status) for name, status, *_ in table] == [(case, "differs") for case in CASES]
    assert said[0] == said[1]
    after = summary()
    assert {case: {**row, "status": "done", "error": "", "time": ""} for case, row in after.items()} == {
        case: {**row, "time": ""} for case, row in before.items()
    }
    assert {row["status"] for row in after.values()} == {"differs"}
    for option in (["--dry-run"], []):
        capsys.readouterr()
        segment("cohort", "-o", "out", "--skip-existing", "--labels", "brats2023", "--json", *option)
        found = objects(capsys.readouterr().out)
        assert {(case, document["differs"]) for case, document in found.items()} == {(case, True) for case in CASES}
    assert main(["report", "out", "--json"]) == 0
    out, err = capsys.readouterr()
    assert {case: (str(row["wt_ml"]), row["status"]) for case, row in objects(out).items()} == {
        case: (row["wt_ml"], "differs") for case, row in before.items()
    }
    assert "3 cases: 0 segmented, 3 failed" in err


def test_the_table_keeps_the_rows_of_all_runs_and_the_report_their_failures(cohort: Path, capsys: Captured) -> None:
    shutil.copytree(cohort, "cohort")
    t1 = Path("cohort/case_1/case_1_t1.nii.gz")
    t1.rename("t1.nii.gz")
    for source, code in (("cohort/case_0", 0), ("cohort/case_1", 3)):  # one by one, as cases alone
        assert segment(source, "-o", "out", "--quiet") == code
    assert {case: row["status"] for case, row in summary().items()} == {"case_0": "done", "case_1": "failed"}
    assert segment("cohort/case_1", "cohort/case_2", "-o", "out", "--quiet", "--uncertainty") == 1
    rows = summary()
    assert {case: row["status"] for case, row in rows.items()} == {"case_0": "done", "case_1": "failed", "case_2": "done"}
    assert [bool(rows[case]["wt_uncertainty"]) for case in CASES] == [False, False, True]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["time"]) for row in rows.values())
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "3 cases: 2 segmented, 1 failed" in capsys.readouterr().err
    Path("t1.nii.gz").rename(t1)
    assert segment("cohort/case_1", "-o", "out", "--quiet") == 0
    assert {row["status"] for row in summary().values()} == {"done"}


def test_a_case_alone_does_not_touch_a_table_of_others(cohort: Path, capsys: Captured) -> None:
    Path("out").mkdir()
    Path("out/summary.csv").write_text("mine\n")
    assert segment(cohort / "case_0", "-o", "out", "--overwrite") == 0
    assert "Warning: out/summary.csv: is not a table that drunet wrote; the case is not entered" in capsys.readouterr().err
    assert Path("out/summary.csv").read_text() == "mine\n"


def test_a_folder_that_cannot_be_made_ends_the_run_before_its_first_case(cohort: Path, capsys: Captured) -> None:
    assert segment(cohort, "-o", "/proc/drunet/out") == 6
    assert capsys.readouterr() == (
        "",
        "Error: /proc/drunet/out: the folder cannot be made: No such file or directory; name another\n",
    )


def test_what_killed_runs_have_left_is_removed(segmented: Path, cohort: Path) -> None:
    outputs(segmented, *CASES)
    Path("out/case_0.nii.gz").unlink()  # a sidecar alone
    host = os.uname().nodename
    for name in ("case_0.nii.gz", "case_0.json", "case_1.json", "summary.csv", "summary-1-of-2.csv", "gone.nii.gz"):
        Path(f"out/.{name}.{host}.{ENDED_PID}.tmp").write_text("{")
    Path("out/.mine.tmp").write_text("")
    assert segment(cohort, "-o", "out", "--skip-existing", "--quiet") == 0
    assert names_in("out") == [".mine.tmp", *OUTPUTS, *TABLES]


# Shards


@pytest.fixture
def with_broken(cohort: Path) -> Path:
    """Five cases, of which case_1 has no T1 and case_3's T2 is cut short."""
    shutil.copytree(cohort, "cohort")
    write_case(Path("cohort/case_3"), seed=3)
    write_case(Path("cohort/case_4"), seed=4)
    Path("cohort/case_1/case_1_t1.nii.gz").unlink()
    spoil(Path("cohort/case_3"))
    return Path("cohort")


def test_every_case_is_in_exactly_one_shard_and_the_shards_share_a_table(with_broken: Path, capsys: Captured) -> None:
    parts: dict[int, list[str]] = {}
    status: dict[str, str] = {}
    for k in (1, 2, 3):
        failed = segment(with_broken, "-o", "out", "--shard", f"{k}/3", "--json", "--quiet")
        found = objects(capsys.readouterr().out)
        assert failed == any("error" in document for document in found.values())
        status |= {case: "failed" if "error" in document else "done" for case, document in found.items()}
        assert {case: row["status"] for case, row in summary().items()} == status
        parts[k] = sorted(found)
    # Every third by name, also of those that are broken.
    assert parts == {1: ["case_0", "case_3"], 2: ["case_1", "case_4"], 3: ["case_2"]}
    label_maps = [f"case_{n}.nii.gz" for n in (0, 2, 4)]
    assert [name for name in names_in("out") if name.endswith(".nii.gz")] == label_maps


def test_an_empty_shard_says_so_and_is_no_failure(cohort: Path, capsys: Captured) -> None:
    assert segment(cohort, "-o", "out", "--shard", "4/4") == 0
    assert capsys.readouterr() == ("", "shard 4 of 4 is empty: there are fewer cases than shards\n")
    assert names_in("out") == ["summary.csv", "summary.xlsx"]
    assert summary() == {}
    assert segment(cohort, "-o", "out", "--shard", "4/4", "--dry-run") == 0
    assert "shard 4 of 4 is empty" in capsys.readouterr().err


def test_a_shard_that_is_resubmitted_keeps_its_share(segmented: Path, cohort: Path, capsys: Captured) -> None:
    outputs(segmented, "case_0")
    assert segment(cohort, "-o", "out", "--shard", "01/2", "--skip-existing", "--quiet") == 0
    assert capsys.readouterr().out.splitlines() == [LABEL_MAPS[0], LABEL_MAPS[2]]
    assert {case: row["status"] for case, row in summary().items()} == {
        "case_0": "left out",
        "case_2": "done",
    }


# Dry runs


def test_a_dry_run_makes_no_folder_and_needs_no_weights(cohort: Path, capsys: Captured) -> None:
    assert segment(cohort, "-o", "out", "--dry-run", "--json") == 0
    found = objects(capsys.readouterr().out)
    assert found["case_1"] == {
        "case": "case_1",
        "state": "new",
        "would": "segment",
        "files": {modality: str(cohort / "case_1" / f"case_1_{modality}.nii.gz") for modality in CHANNELS},
        "warnings": [],
    }
    assert found.keys() == set(CASES)
    assert names_in(".") == []


# Broken cases of every kind


def voxels_of(path: Path) -> Any:
    return open_image(path).get_fdata()


def saved(voxels: Any, path: Path) -> None:
    nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), open_image(path).affine).to_filename(path)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# How the T2 file of a case is spoilt, and what is then said of the case.
KINDS: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "missing": (Path.unlink, "has no T2: looked for"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:200]), "is truncated"),
    "another place": (shift, "T2 not on the grid of FLAIR"),
    "all zero": (lambda path: saved(np.zeros(SHAPE), path), "no voxel is above 0"),
    "pipe": (piped, "is not a regular file"),
    "same image twice": (lambda path: shutil.copyfile(str(path).replace("_t2", "_t1"), path), "has the same voxels as"),
}


def test_every_good_case_is_done_among_all_kinds_of_broken_ones_which_are_named_with_their_reason(
    cohort: Path, segmented: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr("drunet_cli.cli.segment._MOST_ROWS", 2)  # fewer than there are failures, which are all listed
    shutil.copytree(cohort, "cohort")
    for kind, (damage, _) in KINDS.items():
        damage(write_case(Path("cohort", kind), seed=7, labelled=False) / f"{kind}_t2.nii.gz")
    for name in ("a", "b"):
        write_case(Path(f"{name}_files"), name=name, seed=ord(name), labelled=False)
        paths = [f"{name}_files/{name}_{word}.nii.gz" for word in ("t1", "t1ce", "t2", "flair")]
        Path(f"{name}.csv").write_text(f"case,t1,t1ce,t2,flair\ntwice,{','.join(paths)}\n")
    expected = {kind: reason for kind, (_, reason) in KINDS.items()} | {"twice": "twice is also the name of the case in"}
    assert segment("cohort", "a.csv", "b.csv", "-o", "out") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == LABEL_MAPS
    for case in CASES:
        assert Path(f"out/{case}.nii.gz").read_bytes() == (segmented / f"{case}.nii.gz").read_bytes()
    said = errors(err)
    assert said.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in said[name], name
    n_broken = len(KINDS) + 2
    assert err.splitlines()[-1].startswith(f"Error: {n_broken} of {n_broken + N_CASES} cases failed: ")
    assert "Traceback" not in err
    table = err[err.index("CASE  ") :].splitlines()[:-3]
    assert [line for line in table[1:] if " failed " in line] == table[1:]
    assert (len(table), max(map(len, table))) == (1 + n_broken, 70)
    rows = list(csv.DictReader(Path("out/summary.csv").read_text().splitlines()))
    assert len(rows) == n_broken + N_CASES  # twice stands there twice
    assert {row["case"]: row["error"] for row in rows if row["status"] == "failed"}.keys() == expected.keys()
    assert names_in("out") == sorted([*OUTPUTS, *TABLES])


@pytest.mark.parametrize("shard", [[], ["--shard", "1/2"]])
def test_a_patient_without_nifti_is_told_before_the_cases(shard: list[str], cohort: Path, capsys: Captured) -> None:
    shutil.copytree(cohort, "cohort")
    Path("cohort/case_9").mkdir()
    told = "Warning: 1 folder holds no NIfTI and was passed over: cohort/case_9 (empty)"
    assert segment("cohort", "-o", "out", "--dry-run", *shard) == 0
    assert capsys.readouterr().err.splitlines().count(told) == 1
    assert segment("cohort", "-o", "out", *shard) == 0
    assert capsys.readouterr().err.splitlines()[0] == told


def test_results_among_the_cases_are_no_cases(tmp_path: Path) -> None:
    cohort = write_cases(tmp_path / "own", 1)
    write_case(cohort / "patient_0001", seed=5)  # whose label map would pass for a channel of nnU-Net's
    out = cohort / "results"
    assert segment(cohort, "-o", out) == 0
    assert segment(cohort, "-o", out, "--skip-existing") == 0
