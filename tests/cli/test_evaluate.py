"""`drunet evaluate` from the command line: what it prints, what it writes, and its exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from drunet_cli.cli.app import main
from tests.cli.small_cohort import SHAPE, save, segmentation, write_cases
from tests.support import Drunet, unprivileged

N_CASES: Final = 3
CASES: Final = [f"case_{n}" for n in range(N_CASES)]
HEADER: Final = "case,prediction,reference\n"
MISSED_MM: Final = 373.12866

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that no test changes: in ref a data set with images; in out a perfect case, a shifted one and one without ET."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cases(folder / "ref", N_CASES)
    (folder / "out").mkdir()
    for n, case in enumerate(CASES):
        labels = segmentation(n)
        if n == 1:
            labels = np.roll(labels, 1, axis=0)
        if n == 2:
            labels[labels == 4] = 1
        save(labels, folder / "out" / f"{case}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folders(cohort: Path) -> tuple[Path, Path]:
    """Predictions and references: the two arguments."""
    return cohort / "out", cohort / "ref"


@pytest.fixture
def own(cohort: Path) -> Path:
    """A folder of links to the predictions, to be changed: out, in the current folder."""
    Path("out").mkdir()
    for case in CASES:
        Path(f"out/{case}.nii.gz").symlink_to(cohort / "out" / f"{case}.nii.gz")
    return Path("out")


def evaluate(*arguments: str | Path, jobs: int = 1) -> int:
    return main(["evaluate", *map(str, arguments), "--jobs", str(jobs)])


def files_of(cohort: Path, n: int) -> tuple[Path, Path]:
    return cohort / "out" / f"case_{n}.nii.gz", cohort / "ref" / f"case_{n}" / f"case_{n}_seg.nii.gz"


def objects(lines: str) -> list[dict[str, Any]]:
    """JSON Lines by case; NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return sorted(
        (json.loads(line, parse_constant=refuse) for line in lines.splitlines()), key=lambda document: str(document["case"])
    )


def rows(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def table_of_cases(cohort: Path) -> str:
    return HEADER + "".join(f"{case},{prediction},{reference}\n" for case, (prediction, reference) in of_all(cohort).items())


def of_all(cohort: Path) -> dict[str, tuple[Path, Path]]:
    return {case: files_of(cohort, n) for n, case in enumerate(CASES)}


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100])


# The table


def test_two_folders_give_a_table_of_regions_and_scores(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("Convention brats, surface Dice at 1 mm, 3 case")
    assert header.split() == ["REGION", "SCORE", "MEAN", "SD", "MEDIAN", "Q1", "Q3", "95", "%", "OF", "MEAN"]
    assert [line.split()[0] for line in lines] == ["WT"] * 7 + ["TC"] * 7 + ["ET"] * 7


def test_the_table_holds_the_mean_of_the_cases(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--quiet") == 0
    documents = objects(capsys.readouterr().out)
    assert evaluate(*folders, "--quiet") == 0
    out = capsys.readouterr().out
    for region in ("WT", "TC", "ET"):
        dice = [document["regions"][region]["dice"] for document in documents]
        [line] = [line for line in out.splitlines() if line.startswith(f"{region} ") and line.split()[1] == "Dice"]
        assert line.split()[2:5] == [f"{value:.3f}" for value in (np.mean(dice), np.std(dice, ddof=1), np.median(dice))]


def test_of_one_case_its_own_scores_are_printed(cohort: Path, capsys: Captured) -> None:
    assert evaluate(*files_of(cohort, 1), "--json", "--quiet") == 0
    [document] = objects(capsys.readouterr().out)
    assert evaluate(*files_of(cohort, 1), "--quiet") == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == f"Convention brats, surface Dice at 1 mm, {document['case']}"
    assert header.split() == ["REGION", "SCORE", "VALUE"]
    values = {(line.split()[0], line[8:-8].strip()): line.split()[-1] for line in lines}
    assert len(values) == 3 * 7
    for region, scores in document["regions"].items():
        assert values[region, "Dice"] == f"{scores['dice']:.3f}"
        assert values[region, "HD95 mm"] == f"{scores['hd95_mm']:.1f}"


def test_notes_go_to_stderr_one_a_case(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders) == 0
    *notes, summary = capsys.readouterr().err.splitlines()
    assert notes[0] == "case_0: Dice WT 1.000, TC 1.000, ET 1.000"
    assert [note.split(":")[0] for note in notes] == CASES
    assert summary == "3 cases compared, convention brats"


def test_quiet_leaves_the_table_alone(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--quiet") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Convention ")
    assert err == ""


def test_two_files_are_compared_alone(cohort: Path, capsys: Captured) -> None:
    assert evaluate(*files_of(cohort, 0)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Convention brats, surface Dice at 1 mm, case_0\n")
    assert err == "case_0: Dice WT 1.000, TC 1.000, ET 1.000\n"


def test_convention_and_tolerance_are_those_asked_for(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--convention", "lesionwise", "--tolerance", "2.5") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Convention lesionwise, surface Dice at 2.5 mm, ")
    assert err.endswith("3 cases compared, convention lesionwise\n")


def test_the_seed_decides_the_interval_and_nothing_else(cohort: Path, capsys: Captured) -> None:
    for n in range(9):  # of few cases, or of few values, every seed gives the same ends
        noise = np.random.default_rng(n).random(SHAPE) < n / 9
        save(np.where(noise, 2, segmentation(n)).astype(np.int16), Path(f"{n}.nii"))
    reference = files_of(cohort, 0)[1]
    Path("pairs.csv").write_text(HEADER + "".join(f"{n},{n}.nii,{reference}\n" for n in range(9)))
    printed = []
    for seed in range(3):
        assert evaluate("pairs.csv", "--seed", str(seed), "--quiet") == 0
        printed.append(capsys.readouterr().out)
    assert evaluate("pairs.csv", "--quiet") == 0
    assert capsys.readouterr().out == printed[0]
    assert len(set(printed)) > 1
    before_interval = [[line.split()[:-3] for line in out.splitlines()[2:]] for out in printed]
    assert before_interval.count(before_interval[0]) == len(printed)


def test_worst_lists_cases_of_lowest_dice_first(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--worst", "2", "--quiet") == 0
    out = capsys.readouterr().out
    header, *lines = out[out.index("WORST CASES") :].splitlines()
    assert header.split() == ["WORST", "CASES,", "DICE", "OF", "WT", "TC", "ET"]
    assert [line.split()[0] for line in lines] == ["case_1", "case_2"]
    assert lines[0].split()[3] == "0.000"  # its ET is one plane thick, and shifted by one


def test_worst_of_more_cases_than_there_are_lists_all(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--worst", "50", "--quiet") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out[out.index("WORST CASES") :].splitlines()[1:]] == ["case_1", "case_2", "case_0"]


def test_the_table_of_a_missed_region_fits_a_terminal_of_80_columns(
    folders: tuple[Path, Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert evaluate(*folders, "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 21


# JSON


def test_json_is_one_object_a_case(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json") == 0
    documents = objects(capsys.readouterr().out)
    assert [document["case"] for document in documents] == CASES
    for document in documents:
        assert document.keys() == {
            *("case", "convention", "labels", "tolerance_mm", "prediction", "reference", "regions", "classes")
        }
        assert (document["convention"], document["labels"], document["tolerance_mm"]) == ("brats", "auto", 1.0)
        assert (list(document["regions"]), list(document["classes"])) == (["WT", "TC", "ET"], ["NCR", "ED", "ET"])
    assert documents[0]["regions"]["WT"]["dice"] == 1
    assert documents[2]["regions"]["ET"]["hd95_mm"] == MISSED_MM


def test_lesionwise_json_states_convention_and_lesions(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--convention", "lesionwise") == 0
    for document in objects(capsys.readouterr().out):
        assert document["convention"] == "lesionwise"
        assert document["regions"]["WT"]["lesions"]["false_negatives"] == 0


def test_json_of_a_failed_case_has_its_error(own: Path, cohort: Path, capsys: Captured) -> None:
    damage(own / "case_1.nii.gz")
    assert evaluate(own, cohort / "ref", "--json", "--quiet") == 1
    first, failed, last = objects(capsys.readouterr().out)
    assert (failed["case"], failed["exit_code"]) == ("case_1", 3)
    assert "is truncated" in failed["error"]
    assert "regions" in first
    assert "regions" in last


def test_an_endless_tolerance_is_refused(folders: tuple[Path, Path]) -> None:
    assert evaluate(*folders, "--tolerance", "inf", "--json") == 2


@pytest.mark.parametrize("jobs", [2, 8])
def test_any_number_of_jobs_gives_the_same_scores(jobs: int, folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--csv", "one.csv") == 0
    alone = objects(capsys.readouterr().out)
    assert evaluate(*folders, "--json", "--csv", "many.csv", jobs=jobs) == 0
    assert objects(capsys.readouterr().out) == alone
    assert Path("one.csv").read_bytes() == Path("many.csv").read_bytes()


# Uncertainty


SCORES_OF_UNCERTAINTY: Final = ["Dice AUC", "FTP AUC", "FTN AUC", "uncertainty", "error AUROC"]


@pytest.fixture
def with_maps(own: Path) -> Path:
    """Uncertainty maps beside the predictions: 0 to 99 at random, others for each case and region."""
    for n, case in enumerate(CASES):
        for region, end in enumerate(("whole", "core", "enhance")):
            noise = np.random.default_rng((n, region)).integers(0, 100, SHAPE)
            save(noise.astype(np.uint8), own / f"{case}_unc_{end}.nii.gz")
    return own


def test_uncertainty_adds_its_scores_to_every_region_of_the_table(with_maps: Path, cohort: Path, capsys: Captured) -> None:
    assert evaluate(with_maps, cohort / "ref", "--uncertainty", "--json", "--quiet") == 0
    documents = objects(capsys.readouterr().out)
    assert evaluate(with_maps, cohort / "ref", "--uncertainty") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()[2:]
    assert len(lines) == 3 * (7 + 5)
    assert [line[8:20].strip() for line in lines[7:12]] == SCORES_OF_UNCERTAINTY
    mean = np.mean([document["regions"]["WT"]["uncertainty"]["score"] for document in documents])
    assert lines[10].split()[2] == f"{mean:.3f}"
    assert "Warning" not in err


def test_json_and_csv_hold_the_same_scores_of_uncertainty(with_maps: Path, cohort: Path, capsys: Captured) -> None:
    assert evaluate(with_maps, cohort / "ref", "--uncertainty", "--json", "--csv", "scores.csv") == 0
    first, _, last = objects(capsys.readouterr().out)
    assert first["regions"]["WT"]["uncertainty"]["error_auroc"] is None  # nothing of it is wrong
    assert first["brain_image"] == str(cohort / "ref" / "case_0" / "case_0_t1.nii.gz")
    found = {row["region"]: row for row in rows("scores.csv") if row["case"] == "case_2"}
    for region in ("WT", "TC", "ET"):
        for name, value in last["regions"][region]["uncertainty"].items():
            assert found[region][f"uncertainty_{name}"] == ("" if value is None else str(value))
    assert found["NCR"]["uncertainty_score"] == ""


def test_without_t1_images_the_whole_volume_counts_and_a_warning_says_so(
    with_maps: Path, cohort: Path, capsys: Captured
) -> None:
    Path("ref").mkdir()
    for n, case in enumerate(CASES[:2]):
        Path(f"ref/{case}_seg.nii.gz").symlink_to(files_of(cohort, n)[1])
    Path("ref/case_0_t1.nii.gz").symlink_to(cohort / "ref" / "case_0" / "case_0_t1.nii.gz")
    assert evaluate(with_maps, "ref", "--uncertainty", "--allow-missing") == 0
    assert (
        "Warning: 1 of 2 cases without a T1 image beside the reference: FTP, FTN and AUROC count the air around the head too, "
        "unlike those of BraTS 2020\n"
    ) in capsys.readouterr().err


def test_a_case_without_maps_is_one_error_and_the_others_are_scored(with_maps: Path, cohort: Path, capsys: Captured) -> None:
    for path in with_maps.glob("case_1_unc_*"):
        path.unlink()
    assert evaluate(with_maps, cohort / "ref", "--uncertainty", "--csv", "scores.csv") == 1
    out, err = capsys.readouterr()
    assert ", 2 case" in out.splitlines()[0]
    assert [line for line in err.splitlines() if "unc_" in line] == [
        "Error: case_1: out/case_1.nii.gz: has no case_1_unc_whole.nii.gz, case_1_unc_core.nii.gz, case_1_unc_enhance.nii.gz "
        "beside it; segment the case with --uncertainty, or compare it without"
    ]


def test_one_pair_without_maps_is_bad_input(cohort: Path, capsys: Captured) -> None:
    assert evaluate(*files_of(cohort, 0), "--uncertainty") == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_with_uncertainty_fits_a_terminal_of_80_columns(
    with_maps: Path, cohort: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert evaluate(with_maps, cohort / "ref", "--uncertainty", "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 36


# Files


def test_csv_holds_the_numbers_of_the_json(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--csv", "scores.csv") == 0
    documents = {document["case"]: document for document in objects(capsys.readouterr().out)}
    found = rows("scores.csv")
    assert [(row["case"], row["region"]) for row in found] == [
        (case, region) for case in CASES for region in ("WT", "TC", "ET", "NCR", "ED")
    ]
    for row in found:
        scores = documents[row["case"]]
        expected = (scores["regions"] | scores["classes"])[row["region"]]
        assert row["convention"] == "brats"
        assert {name: float(row[name]) for name in expected} == expected


def test_csv_and_plot_are_written_beside_the_table(folders: tuple[Path, Path], capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate(*folders, "--csv", "new/scores.csv", "--plot", "new/scores.png") == 0
    assert capsys.readouterr().out.startswith("Convention brats")
    assert {path.name for path in Path("new").iterdir()} == {"scores.csv", "scores.png"}
    with Image.open("new/scores.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_an_existing_file_is_left_and_nothing_is_compared(option: str, folders: tuple[Path, Path], capsys: Captured) -> None:
    Path("there.png").write_text("mine")
    assert evaluate(*folders, option, "there.png") == 6
    assert capsys.readouterr() == ("", "Error: there.png: exists already; give --overwrite to replace it\n")
    assert Path("there.png").read_text() == "mine"


def test_overwrite_replaces_a_file(folders: tuple[Path, Path]) -> None:
    Path("scores.csv").write_text("old")
    assert evaluate(*folders, "--csv", "scores.csv", "--overwrite") == 0
    assert len(rows("scores.csv")) == 15


def test_a_file_that_cannot_be_written_is_told_before_anything_is_compared(
    folders: tuple[Path, Path], capsys: Captured
) -> None:
    Path("closed").mkdir(mode=0o555)
    with unprivileged():
        assert evaluate("/nowhere", "/nowhere", "--csv", "closed/scores.csv") == 6
    assert "no permission to write" in capsys.readouterr().err


def test_one_file_for_csv_and_plot_is_refused_at_once(folders: tuple[Path, Path]) -> None:
    assert evaluate(*folders, "--csv", "same", "--plot", "same") == 2
    assert not Path("same").exists()


def test_an_input_is_never_replaced(cohort: Path) -> None:
    prediction, reference = files_of(cohort, 0)
    own = Path("mine.nii.gz")
    own.write_bytes(prediction.read_bytes())
    assert evaluate(own, reference, "--csv", own, "--overwrite") != 0
    assert own.read_bytes() == prediction.read_bytes()


def test_without_matplotlib_plot_is_misuse_and_the_rest_works(
    folders: tuple[Path, Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert evaluate(*folders, "--plot", "scores.png") == 2
    assert capsys.readouterr() == ("", "Error: --plot needs matplotlib: pip install 'drunet-cli[plot]'\n")
    assert evaluate(*folders, "--csv", "scores.csv") == 0


def test_a_damaged_case_is_left_out_of_table_and_csv(own: Path, cohort: Path, capsys: Captured) -> None:
    damage(own / "case_1.nii.gz")
    assert evaluate(own, cohort / "ref", "--csv", "scores.csv") == 1
    out, err = capsys.readouterr()
    assert ", 2 case" in out.splitlines()[0]
    assert {row["case"] for row in rows("scores.csv")} == {"case_0", "case_2"}
    assert "Error: case_1: out/case_1.nii.gz: is truncated" in err
    assert err.splitlines()[-1] == "Error: 1 of 3 cases failed: case_1"


def test_where_no_case_can_be_compared_nothing_is_written(own: Path, cohort: Path, capsys: Captured) -> None:
    for case in CASES:
        damage(own / f"{case}.nii.gz")
    assert evaluate(own, cohort / "ref", "--csv", "scores.csv") == 1
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "Error: 3 of 3 cases failed: case_0, case_1, case_2")
    assert not Path("scores.csv").exists()


# Cases without a partner


def test_a_case_without_a_partner_is_a_failure_and_the_others_are_compared(own: Path, cohort: Path, capsys: Captured) -> None:
    (own / "case_1.nii.gz").unlink()
    assert evaluate(own, cohort / "ref") == 1
    out, err = capsys.readouterr()
    assert ", 2 case" in out.splitlines()[0]
    assert f"case_1_seg.nii.gz: has no partner in {own}\n" in err
    assert "1 case has no partner; --allow-missing leaves such out\n" in err
    assert err.splitlines()[-1] == "Error: 1 of 3 cases failed: case_1"


def test_allow_missing_lists_it_and_succeeds(own: Path, cohort: Path, capsys: Captured) -> None:
    (own / "case_1.nii.gz").unlink()
    assert evaluate(own, cohort / "ref", "--allow-missing") == 0
    err = capsys.readouterr().err
    assert f"case_1_seg.nii.gz: has no partner in {own}; left out\n" in err
    assert "Error" not in err


def test_many_cases_without_a_partner_are_left_out_in_one_line(own: Path, cohort: Path, capsys: Captured) -> None:
    for n in (0, 2):
        (own / f"case_{n}.nii.gz").unlink()
    assert evaluate(own, cohort / "ref", "--allow-missing") == 0
    [told] = [line for line in capsys.readouterr().err.splitlines() if "partner" in line]
    assert told == "2 cases without a partner are left out: case_0, case_2"


def test_allow_missing_does_not_excuse_a_damaged_case(own: Path, cohort: Path) -> None:
    (own / "case_1.nii.gz").unlink()
    damage(own / "case_2.nii.gz")
    assert evaluate(own, cohort / "ref", "--allow-missing") in (1, 3)


def test_allow_missing_does_not_excuse_a_case_that_is_there_twice(own: Path, cohort: Path, capsys: Captured) -> None:
    (own / "case_1_seg.nii.gz").symlink_to(cohort / "out" / "case_1.nii.gz")
    assert evaluate(own, cohort / "ref", "--allow-missing") == 1
    assert "both are label maps of case_1" in capsys.readouterr().err


def test_folders_that_share_no_case_are_no_success(cohort: Path) -> None:
    Path("other").mkdir()
    Path("other/stranger.nii.gz").symlink_to(cohort / "out" / "case_0.nii.gz")
    assert evaluate("other", cohort / "ref", "--allow-missing", "--csv", "scores.csv") != 0


# Tables of cases


def test_a_table_names_the_pairs_and_its_relative_paths_begin_at_its_folder(cohort: Path, capsys: Captured) -> None:
    Path("tables").mkdir()
    for side, path in zip("pr", files_of(cohort, 1), strict=True):
        Path(f"tables/{side}.nii.gz").symlink_to(path)
    Path("tables/pairs.csv").write_text(f"{HEADER}patient 7,p.nii.gz,r.nii.gz\n")
    assert evaluate("tables/pairs.csv", "--json") == 0
    [document] = objects(capsys.readouterr().out)
    assert (document["case"], document["prediction"]) == ("patient 7", "tables/p.nii.gz")


def test_a_table_on_stdin_gives_what_the_folders_give(
    folders: tuple[Path, Path], cohort: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(*folders, "--json") == 0
    expected = objects(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((table_of_cases(cohort)).encode())))
    assert evaluate("-", "--json") == 0
    assert objects(capsys.readouterr().out) == expected


def test_bad_rows_of_a_table_fail_and_the_others_are_compared(
    cohort: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "lacking,only.nii.gz\nabsent,no.nii.gz,no.nii.gz\n,a,b\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((table_of_cases(cohort) + bad).encode())))
    assert evaluate("-", "--csv", "scores.csv") == 1
    assert {row["case"] for row in rows("scores.csv")} == set(CASES)
    err = capsys.readouterr().err
    assert "stdin, line 5: lacks a case, prediction or reference" in err
    assert "no.nii.gz: cannot be read: No such file or directory" in err
    assert "Error: 3 of 6 cases failed: " in err


@pytest.mark.parametrize("text", ["", HEADER, "case;prediction;reference\na;b;c\n"])
def test_a_table_on_stdin_that_is_none_is_bad_input(text: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((text).encode())))
    assert evaluate("-") == 3
    assert capsys.readouterr().err.startswith("Error: stdin: needs the header case,prediction,reference")


def test_a_table_on_stdin_that_is_no_utf8_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HEADER.encode() + b"caf\xe9,p,r\n"), encoding="utf-8"))
    assert evaluate("-") == 3


# Misuse and bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument 'PRED'"),
        (("folder",), "folder: missing REF; alone it must be a table .csv, or - for one on stdin"),
        (("", "ref"), "an empty path"),
        (("a", ""), "an empty path"),
        (("a", "b", "c"), "unexpected extra argument"),
        (("a", "b", "--convention", "brats2020"), "--convention brats2020: is neither brats nor lesionwise"),
        (("a", "b", "--labels", "brats2019"), "--labels"),
        (("a", "b", "--worst", "0"), "--worst"),
        (("a", "b", "--tolerance", "-1"), "--tolerance"),
        (("a", "b", "--tolerance", "nan"), "--tolerance"),
        (("a", "b", "--seed", "-1"), "--seed"),
        (("a", "b", "--csv", ""), "--csv"),
        (("a", "b", "--plot", ""), "--plot"),
    ],
)
def test_misuse_is_exit_2_in_one_line(arguments: tuple[str, ...], words: str, capsys: Captured) -> None:
    assert evaluate(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize(
    "arguments", [("absent.nii.gz", "absent.nii.gz"), ("absent", "ref"), ("ref", "absent"), ("absent.csv",), ("ref", "ref")]
)
def test_bad_input_is_exit_3_in_one_line(arguments: tuple[str, ...], cohort: Path, capsys: Captured) -> None:
    Path("ref").symlink_to(cohort / "ref")
    assert evaluate(*arguments) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", ["out", "ref"])
def test_an_empty_folder_is_bad_input(name: str, cohort: Path, capsys: Captured) -> None:
    Path("empty").mkdir()
    arguments = {"out": cohort / "out", "ref": cohort / "ref", name: Path("empty")}
    assert evaluate(*arguments.values(), "--allow-missing") == 3
    assert "empty: holds no label map" in capsys.readouterr().err


def test_one_pair_that_is_no_good_has_the_code_of_its_error(own: Path, cohort: Path, capsys: Captured) -> None:
    damage(own / "case_0.nii.gz")
    assert evaluate(own / "case_0.nii.gz", files_of(cohort, 0)[1]) == 3
    assert capsys.readouterr().err.startswith("Error: out/case_0.nii.gz: is truncated")


def test_other_grids_are_told_with_what_differs(cohort: Path, capsys: Captured) -> None:
    save(segmentation(0)[:-1], Path("smaller.nii.gz"))
    assert evaluate("smaller.nii.gz", files_of(cohort, 0)[1]) == 3
    first, *table = capsys.readouterr().err.splitlines()
    assert first.startswith("Error: smaller.nii.gz: ")
    assert "not on the grid of" in first
    assert any("23 x 20 x 6" in line for line in table)
    assert any(" x ".join(map(str, SHAPE)) in line for line in table)


def test_labels_tell_the_cavity_of_brats_2024_from_enhancing_tumour(capsys: Captured) -> None:
    labels = segmentation(0, enhancing=3)
    save(labels, Path("r.nii.gz"))
    labels[0, 0, 0] = 4
    save(labels, Path("p.nii.gz"))
    assert evaluate("p.nii.gz", "r.nii.gz") == 3
    assert "p.nii.gz: holds labels 3 and 4" in capsys.readouterr().err
    assert evaluate("p.nii.gz", "r.nii.gz", "--labels", "brats2024", "--json") == 0
    [document] = objects(capsys.readouterr().out)
    assert (document["labels"], document["regions"]["WT"]["dice"]) == ("brats2024", 1)


# Streams that go away, and the process as a whole


def piped(*arguments: str | Path, stdout: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "drunet_cli", "evaluate", *map(str, arguments), "--jobs", "1", "--quiet"]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120)


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "table",
        ),
        "json",
    ],
)
def test_a_reader_that_goes_away_does_not_cost_the_csv(how: str, folders: tuple[Path, Path]) -> None:
    writer = closed_pipe()
    try:
        done = piped(*folders, "--csv", "scores.csv", *(["--json"] if how == "json" else []), stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(rows("scores.csv")) == 15


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_table_that_cannot_be_printed_is_a_lost_output(folders: tuple[Path, Path]) -> None:
    with Path("/dev/full").open("w") as full:
        done = piped(*folders, stdout=full.fileno())
    assert done.returncode == 6
    assert done.stderr.startswith(b"Error: stdout: cannot be written: No space left on device")


def test_a_table_through_a_pipe_is_neither_folded_nor_coloured(folders: tuple[Path, Path], drunet: Drunet) -> None:
    done = drunet("evaluate", *folders, "--worst", "1", environment={"COLUMNS": "40"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2 + 21 + 2
    assert "Error" not in done.stderr


def test_help_fits_80_columns_and_names_every_option(drunet: Drunet) -> None:
    done = drunet("evaluate", "--help", environment={"COLUMNS": "80", "NO_COLOR": "1"})
    assert done.returncode == 0
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    for option in ("convention", "labels", "tolerance", "seed", "allow-missing", "worst", "csv", "plot", "json", "jobs"):
        assert f"--{option} " in done.stdout
