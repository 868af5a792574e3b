"""`drunet convert` from the command line: what it prints, what it writes, and its exit codes."""

import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main
from tests.cli.small_cohort import (
    N_SLICES,
    NAMES_2021,
    NAMES_2023,
    NAMES_NNUNET,
    brain,
    contents,
    save,
    segmentation,
    spoil,
    write_case,
    write_cases,
)
from tests.support import Drunet, image_options, open_image, unprivileged

N_CASES: Final = 3
CASES: Final = [f"case_{n}" for n in range(N_CASES)]
DESCRIPTIONS: Final = [f"slices/cases/{case}.json" for case in CASES]
LABEL_MAPS: Final = [f"maps/{case}.nii.gz" for case in CASES]
COLUMNS: Final = "case,z,image,mask,brain,ncr,ed,et"
CUT_SHORT: Final = "is truncated: the compressed data end too early; copy or download it again"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that no test changes."""
    return write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)


@pytest.fixture(scope="module")
def converted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their slices, which no test changes."""
    slices = tmp_path_factory.mktemp("converted") / "slices"
    assert main(["convert", "nii2png", str(cohort), "-o", str(slices), "--jobs", "1", "--quiet"]) == 0
    return slices


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def nii2png(*arguments: str | Path, jobs: int = 1) -> int:
    return main(["convert", "nii2png", *map(str, arguments), "--jobs", str(jobs)])


def png2nii(*arguments: str | Path, jobs: int = 1) -> int:
    return main(["convert", "png2nii", *map(str, arguments), "--jobs", str(jobs)])


def quietly_converted(*arguments: str | Path) -> None:
    assert nii2png(*arguments, "--quiet") == 0


def objects(lines: str) -> list[dict[str, Any]]:
    """JSON Lines by case."""
    return sorted((json.loads(line) for line in lines.splitlines()), key=lambda document: str(document["case"]))


def table() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("slices/slices.csv").read_text().splitlines()))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def own_copy(folder: Path, name: str) -> Path:
    shutil.copytree(folder, name)
    return Path(name)


def options_of(folder: Path) -> list[str]:
    return image_options({modality: folder / f"{folder.name}_{modality}.nii.gz" for modality in CHANNELS})


# Images to slices: what is written and printed


def test_a_dataset_gets_slices_descriptions_and_a_table(cohort: Path) -> None:
    assert nii2png(cohort, "-o", "slices") == 0
    slices = {f"{case}_slice_{z}.png" for case in CASES for z in range(N_SLICES)}
    assert {path.name for path in Path("slices").iterdir()} == {"images", "masks", "cases", "slices.csv"}
    assert {path.name for path in Path("slices/images").iterdir()} == slices
    assert {path.name for path in Path("slices/masks").iterdir()} == slices
    assert sorted(map(str, Path("slices/cases").iterdir())) == DESCRIPTIONS


def test_descriptions_are_printed_on_stdout_and_one_line_a_case_on_stderr(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort, "-o", "slices") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == DESCRIPTIONS
    *notes, summary = err.splitlines()
    assert [note.rsplit(" (", 1)[0] for note in notes] == [f"{case}: 6 slices and their label slices" for case in CASES]
    assert summary == "3 cases in slices, 3 with label slices"


def test_one_case_alone_has_no_summary(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort / "case_1", "-o", "slices") == 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("slices/cases/case_1.json\n", 1)


def test_quiet_leaves_the_results_alone(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort, "-o", "slices", "--quiet") == 0
    assert capsys.readouterr() == ("".join(f"{path}\n" for path in DESCRIPTIONS), "")


def test_the_table_counts_the_pixels_of_brain_and_labels(cohort: Path) -> None:
    quietly_converted(cohort, "-o", "slices")
    assert Path("slices/slices.csv").read_text().splitlines()[0] == COLUMNS
    rows = table()
    assert [(row["case"], int(row["z"])) for row in rows] == [(case, z) for case in CASES for z in range(N_SLICES)]
    for row in rows:
        z, labels = int(row["z"]), segmentation(CASES.index(row["case"]))[..., int(row["z"])]
        expected = [np.count_nonzero(brain()[..., z]), *(np.count_nonzero(labels == value) for value in (1, 2, 4))]
        assert [int(row[column]) for column in ("brain", "ncr", "ed", "et")] == expected
        assert Path("slices", row["image"]).is_file()
        assert Path("slices", row["mask"]).is_file()


def test_json_is_one_object_a_case_that_names_its_description(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort, "-o", "slices", "--json", "--quiet") == 0
    documents = objects(capsys.readouterr().out)
    assert [document["description"] for document in documents] == DESCRIPTIONS
    for document in documents:
        assert document.keys() == {"case", "description", "slices", "masks", "skipped", "warnings", "seconds"}
        assert (document["skipped"], document["warnings"]) == (False, [])
        assert document["slices"] == document["masks"] == N_SLICES
        assert Path(document["description"]).is_file()


def test_a_case_without_segmentation_has_no_label_slices(capsys: Captured) -> None:
    write_case(Path("plain"), labelled=False)
    assert nii2png("plain", "-o", "slices", "--json") == 0
    out, err = capsys.readouterr()
    assert (objects(out)[0]["masks"], Path("slices/masks").exists()) == (0, False)
    assert err.startswith("plain: 6 slices (")
    assert {tuple(row[column] for column in ("mask", "ncr", "ed", "et")) for row in table()} == {("",) * 4}


def test_skip_blank_leaves_out_slices_without_brain(cohort: Path) -> None:
    quietly_converted(cohort / "case_0", "-o", "slices", "--skip-blank")
    assert [int(row["z"]) for row in table()] == [1, 2, 3, 4]
    assert len(list(Path("slices/images").iterdir())) == len(list(Path("slices/masks").iterdir())) == 4


def test_a_warning_is_one_line_that_names_the_case_and_stands_in_the_json(capsys: Captured) -> None:
    folder = write_case(Path("case"))
    t2 = folder / "case_t2.nii.gz"
    save(np.roll(open_image(t2).get_fdata().astype(np.int16), 2, axis=1), t2)
    assert nii2png(folder, "-o", "slices", "--json") == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"Warning: case: {t2}: the outline of the brain in T2 is not that in FLAIR")
    assert [warning["code"] for warning in objects(out)[0]["warnings"]] == ["different-brains"]
    assert nii2png(folder, "-o", "quiet", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_any_number_of_jobs_writes_the_same_bytes(cohort: Path, drunet: Drunet) -> None:
    for jobs in (1, 2, 8):
        done = drunet("convert", "nii2png", cohort, "-o", f"slices_{jobs}", "--jobs", jobs)
        assert (done.returncode, sorted(done.stdout.split())) == (0, [f"slices_{jobs}/cases/{case}.json" for case in CASES])
        maps = drunet("convert", "png2nii", f"slices_{jobs}", "--like", cohort, "-o", f"maps_{jobs}", "--jobs", jobs)
        assert (maps.returncode, sorted(maps.stdout.split())) == (0, [f"maps_{jobs}/{case}.nii.gz" for case in CASES])
    for kind in ("slices", "maps"):
        assert contents(Path(f"{kind}_1")) == contents(Path(f"{kind}_2")) == contents(Path(f"{kind}_8"))


# Images to slices: which cases


@pytest.mark.parametrize(
    ("words", "suffix", "options"),
    [
        (NAMES_2021, ".nii.gz", ""),
        (NAMES_2021, ".nii", ""),
        (NAMES_2023, ".nii.gz", ""),
        (NAMES_NNUNET, ".nii.gz", "--channels t1,t1ce,t2,flair"),
        (
            ("_a", "_b", "_c", "_d"),
            ".nii.gz",
            "--pattern flair=*_a.* --pattern t1ce=*_b.* --pattern t1=*_c.* --pattern t2=*_d.*",
        ),
    ],
    ids=["BraTS 2021", "uncompressed", "BraTS 2023", "nnU-Net", "patterns"],
)
def test_files_of_any_naming_give_the_same_slices(words: Sequence[str], suffix: str, options: str, converted: Path) -> None:
    write_case(Path("cases/case_0"), words=words, suffix=suffix)
    quietly_converted("cases", "-o", "slices", *options.split())
    for folder in ("images", "masks"):
        expected = {name: content for name, content in contents(converted / folder).items() if name.startswith("case_0")}
        assert contents(Path("slices") / folder) == expected


def test_channels_that_nothing_names_are_refused(capsys: Captured) -> None:
    write_case(Path("case_0"), words=NAMES_NNUNET)
    assert nii2png("case_0", "-o", "slices") == 3
    assert "nothing says which modalities _0000 to _0003 are; give --channels" in capsys.readouterr().err


def test_dataset_json_says_what_the_channels_are(converted: Path) -> None:
    folder = write_case(Path("case_0"), words=NAMES_NNUNET)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}}))
    quietly_converted("case_0", "-o", "slices")
    assert Path("slices/images/case_0_slice_3.png").read_bytes() == (converted / "images/case_0_slice_3.png").read_bytes()


def test_four_files_and_a_segmentation_are_a_case(cohort: Path, converted: Path, capsys: Captured) -> None:
    folder = cohort / "case_0"
    assert nii2png(*options_of(folder), "--seg", folder / "case_0_seg.nii.gz", "-o", "slices") == 0
    assert capsys.readouterr().out == "slices/cases/case_0.json\n"
    for z in range(N_SLICES):
        name = f"masks/case_0_slice_{z}.png"
        assert Path("slices", name).read_bytes() == (converted / name).read_bytes()


def test_the_case_of_four_files_can_be_named(cohort: Path, capsys: Captured) -> None:
    assert nii2png(*options_of(cohort / "case_0"), "--case", "P 01", "-o", "slices") == 0
    assert capsys.readouterr().out == "slices/cases/P 01.json\n"
    assert Path("slices/images/P 01_slice_0.png").is_file()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_names_cases_by_paths_from_its_folder(suffix: str, cohort: Path, capsys: Captured) -> None:
    own_copy(cohort, "study/cases")
    rows = [["case", "t1", "t1ce", "t2", "flair", "seg"]]
    for n, case in enumerate(CASES):
        rows.append([f"patient {n}", *(f"cases/{case}/{case}_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair", "seg"))])
    rows[2][-1] = ""
    separator = "," if suffix == ".csv" else "\t"
    Path(f"study/table{suffix}").write_text("".join(f"{separator.join(row)}\n" for row in rows))
    assert nii2png(f"study/table{suffix}", "-o", "slices", "--json", "--quiet") == 0
    found = {document["case"]: document["masks"] for document in objects(capsys.readouterr().out)}
    assert found == {"patient 0": 6, "patient 1": 0, "patient 2": 6}


def test_a_row_that_makes_no_case_does_not_stop_the_others(cohort: Path, capsys: Captured) -> None:
    row = ",".join(f"{cohort}/case_0/case_0_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair"))
    Path("table.csv").write_text(f"case,t1,t1ce,t2,flair\ngood,{row}\nbad,a,b,c,d\n")
    assert nii2png("table.csv", "-o", "slices") == 1
    out, err = capsys.readouterr()
    assert out == "slices/cases/good.json\n"
    assert err.startswith("Error: bad: table.csv, line 3: d: no such file (given as FLAIR)")
    assert err.endswith("Error: 1 of 2 cases failed: bad\n")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_paths_on_stdin_are_cases(newline: str, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    lines = [str(cohort / "case_0"), "", str(cohort / "case_2")]
    monkeypatch.setattr("sys.stdin", io.StringIO(newline.join([*lines, ""]), newline=""))
    assert nii2png("-", "-o", "slices") == 0
    assert capsys.readouterr().out.splitlines() == ["slices/cases/case_0.json", "slices/cases/case_2.json"]


def test_empty_stdin_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert nii2png("-", "-o", "slices") == 3
    assert capsys.readouterr() == (
        "",
        "Error: stdin: no case: give paths of case folders, folders of cases or tables, one a line\n",
    )


def test_a_case_that_is_named_twice_is_converted_once(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort / "case_0", cohort / "case_0", cohort, "-o", "slices") == 0
    assert capsys.readouterr().out.splitlines() == DESCRIPTIONS


def test_two_cases_of_one_name_are_both_refused_and_the_others_converted(cohort: Path, capsys: Captured) -> None:
    write_case(Path("other/case_1"), seed=9)
    assert nii2png(cohort, "other", "-o", "slices") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [DESCRIPTIONS[0], DESCRIPTIONS[2]]
    assert f"Error: case_1: {cohort}/case_1: case_1 is also the name of the case in other/case_1" in err
    assert f"Error: case_1: other/case_1: case_1 is also the name of the case in {cohort}/case_1" in err


@pytest.mark.parametrize("name", ["with space", "München №1", "a.b.nii", "it's", '"quoted"', "100%", "[bold]", "a_slice_1"])
def test_names_of_any_characters_make_the_round_trip(name: str, capsys: Captured) -> None:
    write_case(Path("cases", name))
    assert nii2png("cases", "-o", "slices") == 0
    assert capsys.readouterr().out == f"slices/cases/{name}.json\n"
    assert {row["case"] for row in table()} == {name}
    assert png2nii("slices", "--like", "cases", "-o", "maps", "--quiet") == 0
    assert capsys.readouterr().out == f"maps/{name}.nii.gz\n"
    assert np.array_equal(open_image(f"maps/{name}.nii.gz").dataobj, segmentation(0))


def test_folders_whose_names_begin_with_a_dash_follow_a_double_dash(cohort: Path) -> None:
    own_copy(cohort / "case_0", "-case_0")
    assert nii2png("-case_0", "-o", "slices") == 2
    assert main(["convert", "nii2png", "-o", "slices", "--", "-case_0"]) == 0


def test_a_name_that_is_no_utf_8_is_converted_like_any_other() -> None:
    write_case(Path(os.fsdecode(b"case_\xff")))
    assert nii2png(".", "-o", "slices") == 0


def test_every_line_on_stdout_is_one_path(capsys: Captured) -> None:
    write_case(Path("cases/two\nlines"))
    write_case(Path("cases/case_0"))
    nii2png("cases", "-o", "slices")
    assert all(Path(line).is_file() for line in capsys.readouterr().out.splitlines())


# Images to slices: what cannot be converted


@pytest.fixture
def partly_bad(cohort: Path) -> Path:
    """The cohort with one case that cannot be read."""
    folder = own_copy(cohort, "cases")
    spoil(folder / "case_1")
    return folder


def test_a_bad_case_does_not_stop_the_others_and_is_listed_at_the_end(partly_bad: Path, capsys: Captured) -> None:
    assert nii2png(partly_bad, "-o", "slices") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [DESCRIPTIONS[0], DESCRIPTIONS[2]]
    assert f"Error: case_1: cases/case_1/case_1_t2.nii.gz: {CUT_SHORT}\n" in err
    assert err.endswith("2 cases in slices, 2 with label slices\nError: 1 of 3 cases failed: case_1\n")
    assert {row["case"] for row in table()} == {"case_0", "case_2"}
    assert not [path for path in Path("slices").rglob("*") if "case_1" in path.name]


def test_a_bad_case_of_a_batch_is_an_object_with_its_error_and_code(partly_bad: Path, capsys: Captured) -> None:
    assert nii2png(partly_bad, "-o", "slices", "--json") == 1
    documents = objects(capsys.readouterr().out)
    assert [document["case"] for document in documents] == CASES
    assert documents[1] == {"case": "case_1", "error": f"cases/case_1/case_1_t2.nii.gz: {CUT_SHORT}", "exit_code": 3}


def test_quiet_keeps_the_errors(partly_bad: Path, capsys: Captured) -> None:
    assert nii2png(partly_bad, "-o", "slices", "--quiet") == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        f"Error: case_1: cases/case_1/case_1_t2.nii.gz: {CUT_SHORT}",
        "Error: 1 of 3 cases failed: case_1",
    ]


def test_a_bad_case_alone_is_the_failure_of_the_command(partly_bad: Path, capsys: Captured) -> None:
    assert nii2png(partly_bad / "case_1", "-o", "slices", "--json") == 3
    assert capsys.readouterr() == ("", f"Error: cases/case_1/case_1_t2.nii.gz: {CUT_SHORT}\n")
    assert not Path("slices").exists()


def test_a_bad_case_from_stdin_is_one_of_a_batch(partly_bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{partly_bad}/case_1\n"))
    assert nii2png("-", "-o", "slices") == 1


def test_a_batch_of_bad_cases_alone_writes_nothing(capsys: Captured) -> None:
    for name in ("a", "b"):
        spoil(write_case(Path("cases", name)))
    assert nii2png("cases", "-o", "slices") == 1
    out, err = capsys.readouterr()
    assert (out, Path("slices").exists()) == ("", False)
    assert err.endswith("Error: 2 of 2 cases failed: a, b\n")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("segmentation of another grid", "segmentation not on the grid of FLAIR (case/case_flair.nii.gz)"),
        ("segmentation of other labels", "7"),
        ("voxels of 2 mm", "voxels of 2 x 2 x 2 mm; slices for this network have 1 x 1 x 1 mm"),
        ("no T1", "case has no T1: looked for"),
    ],
)
def test_what_has_no_slices_of_1_mm_is_refused(damage: str, told: str, capsys: Captured) -> None:
    folder = write_case(Path("case"))
    seg = folder / "case_seg.nii.gz"
    match damage:
        case "segmentation of another grid":
            save(segmentation(0)[..., :5], seg)
        case "segmentation of other labels":
            save(segmentation(0, enhancing=7), seg)
        case "voxels of 2 mm":
            for path in folder.iterdir():
                image = open_image(path)
                nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([2, 2, 2, 1])).to_filename(path)
        case "no T1":
            (folder / "case_t1.nii.gz").unlink()
    assert nii2png(folder, "-o", "slices") == 3
    out, err = capsys.readouterr()
    details = 3 * ("grid" in damage)  # a table of what differs
    assert (out, err.count("\n")) == ("", 1 + details)
    assert err.startswith("Error: case")
    assert told in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "missing -o"),
        ("cases", "missing -o: name a folder for the slices"),
        ("-o out", "missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair"),
        ("--flair a.nii -o out", "missing --t1ce, --t1, --t2: a case needs all four"),
        ("--case a -o out", "missing --flair, --t1ce, --t1, --t2"),
        ("--seg a.nii -o out", "missing --flair, --t1ce, --t1, --t2"),
        (
            "cases --flair a.nii -o out",
            "CASES (--pattern, --channels) and --t1 --t1ce --t2 --flair --seg --case exclude one another",
        ),
        (
            "cases --case a -o out",
            "CASES (--pattern, --channels) and --t1 --t1ce --t2 --flair --seg --case exclude one another",
        ),
        ("cases -o out --skip-existing --overwrite", "--skip-existing and --overwrite exclude one another"),
        ("cases -o out --pattern t1", "--pattern t1: write MODALITY=GLOB"),
        ("cases -o out --pattern t3=*", "--pattern t3=*: 't3' is none of"),
        ("cases -o out --channels t1,t2", "--channels t1,t2: name flair, t1ce, t1, t2 once each"),
        ("cases -o out --jobs 0", "Invalid value for '--jobs'"),
        ("cases -o out --jobs many", "Invalid value for '--jobs'"),
        ("cases -o out --labels brats2023", "No such option: --labels"),
        ("--t1 a --t1ce b --t2 c --flair d --case a/b -o out", "--case 'a/b': a case's name is part of a file name"),
    ],
)
def test_misuse_of_nii2png_ends_in_one_line(arguments: str, line: str, capsys: Captured) -> None:
    assert main(["convert", "nii2png", *shlex.split(arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"Error: {line}")
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["nii2png", "png2nii"])
def test_an_option_without_its_value_points_to_the_help_of_its_command(command: str, capsys: Captured) -> None:
    assert main(["convert", command, "cases", "-o"]) == 2
    assert capsys.readouterr().err == f"Error: Option '-o' requires an argument. Try: drunet convert {command} --help\n"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("absent", "absent: no such file or folder; give the folder of a case or of many, or a table"),
        ("empty", "empty: no case found: looked for files named NAME_flair.nii.gz"),
        ("image.nii.gz", "image.nii.gz: is neither a folder nor a table (.csv, .tsv)"),
        ("table.csv", "table.csv: has no column case"),
    ],
)
def test_a_source_without_cases_is_bad_input(source: str, told: str, capsys: Captured) -> None:
    Path("empty").mkdir()
    Path("image.nii.gz").touch()
    Path("table.csv").write_text("a,b\n")
    assert nii2png(source, "-o", "slices") == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"Error: {told}")


# Images to slices: outputs that are there


def test_existing_slices_are_refused_before_any_work(cohort: Path, converted: Path, capsys: Captured) -> None:
    slices = own_copy(converted, "slices")
    (slices / "cases/case_0.json").unlink()
    shutil.rmtree("slices/images")
    before = stamps(slices)
    assert nii2png(cohort, "-o", "slices") == 6
    out, err = capsys.readouterr()
    assert (out, stamps(slices)) == ("", before)
    assert err.startswith("Error: slices: case_0 and 2 more: slices of that name are there, which drunet did not make")
    shutil.rmtree("slices/masks")
    assert nii2png(cohort, "-o", "slices") == 6
    assert capsys.readouterr().err == (
        "Error: slices: case_1 and 1 more: converted already; "
        "give --skip-existing to leave out complete cases, or --overwrite\n"
    )


def test_skip_existing_converts_what_is_new_and_leaves_the_rest(cohort: Path, capsys: Captured) -> None:
    quietly_converted(cohort / "case_0", cohort / "case_2", "-o", "slices")
    before = stamps(Path("slices"))
    del before[Path("slices/slices.csv")]
    capsys.readouterr()
    assert nii2png(cohort, "-o", "slices", "--skip-existing", "--json") == 0
    out, err = capsys.readouterr()
    assert {document["case"]: document["skipped"] for document in objects(out)} == {
        "case_0": True,
        "case_1": False,
        "case_2": True,
    }
    assert before.items() <= stamps(Path("slices")).items()
    assert {row["case"] for row in table()} == set(CASES)
    assert err.count("(complete, left out)") == 2


def test_skip_existing_replaces_slices_that_are_lost(cohort: Path, converted: Path) -> None:
    slices = own_copy(converted, "slices")
    (slices / "masks/case_1_slice_2.png").unlink()
    assert nii2png(cohort, "-o", "slices", "--skip-existing") == 0
    assert contents(slices) == contents(converted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--skip-blank", "was converted without --skip-blank; give --overwrite to convert it again"),
        ("another image", "is not the file from which slices/cases/case_0.json was converted; give --overwrite"),
        ("no segmentation", "was converted with a segmentation; give --overwrite to convert it again"),
        ("a slice painted over", "has been changed since it was converted; give --overwrite to convert the case again"),
        ("a description cut short", "is damaged, or no description of a case by drunet; give --overwrite"),
    ],
)
def test_skip_existing_refuses_slices_of_other_inputs_or_settings(
    change: str, told: str, cohort: Path, converted: Path, capsys: Captured
) -> None:
    case, slices = own_copy(cohort / "case_0", "case_0"), own_copy(converted, "slices")
    match change:
        case "another image":
            write_case(case, seed=8)
        case "no segmentation":
            (case / "case_0_seg.nii.gz").unlink()
        case "a slice painted over":
            Image.new("RGBA", (240, 240)).save(slices / "images/case_0_slice_1.png")
        case "a description cut short":
            (slices / "cases/case_0.json").write_text("{")
    before = contents(slices)
    options = ["--skip-existing", *(["--skip-blank"] if change == "--skip-blank" else [])]
    assert nii2png("case_0", "-o", "slices", *options) == 6
    out, err = capsys.readouterr()
    assert (out, contents(slices)) == ("", before)
    assert told in err


def test_overwrite_writes_the_same_slices_again(cohort: Path, converted: Path) -> None:
    slices = own_copy(converted, "slices")
    before = stamps(slices)
    assert nii2png(cohort, "-o", "slices", "--overwrite") == 0
    after = stamps(slices)
    assert contents(slices) == contents(converted)
    assert all(after[path] > before[path] for path in before)


def test_overwrite_removes_the_slices_that_the_case_no_longer_has(cohort: Path, converted: Path) -> None:
    slices = own_copy(converted, "slices")
    assert nii2png(cohort / "case_0", "-o", "slices", "--overwrite", "--skip-blank") == 0
    assert not (slices / "images/case_0_slice_0.png").exists()
    assert not (slices / "masks/case_0_slice_5.png").exists()
    assert [int(row["z"]) for row in table() if row["case"] == "case_0"] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["images/case_0_slice_3.png", "masks/case_0_slice_03.png", "slices.csv"])
@pytest.mark.parametrize("option", ["--quiet", "--skip-existing"])
def test_files_of_the_users_are_not_replaced(name: str, option: str, cohort: Path, capsys: Captured) -> None:
    path = Path("mine", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert nii2png(cohort, "-o", "mine", option) == 6
    assert contents(Path("mine")) == {name: b"mine"}
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "output",
    [pytest.param(output) for output in ("file", "file/slices", "loop", "a" * 300)],
    ids=["a file", "below a file", "a link to itself", "too long a name"],
)
def test_an_output_that_can_be_no_folder_is_refused(output: str, cohort: Path, capsys: Captured) -> None:
    Path("file").touch()
    Path("loop").symlink_to("loop")
    assert nii2png(cohort, "-o", output) == 6
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that a user without rights may read: those of pytest are for their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o755)


@pytest.mark.parametrize("option", ["--quiet", "--skip-existing", "--overwrite"])
def test_a_folder_without_permission_is_refused_before_any_work(
    option: str, cohort: Path, converted: Path, public_folder: Path, capsys: Captured
) -> None:
    for folder, name in ((cohort, "cohort"), (converted, "slices")):
        shutil.copytree(folder, public_folder / name)
    (public_folder / "cohort").chmod(0o755)
    with unprivileged():
        assert nii2png(public_folder / "cohort", "-o", public_folder / "new", option) == 6
        assert nii2png(public_folder / "cohort", "-o", public_folder / "slices", option) == 6
        assert png2nii(public_folder / "slices", "--like", public_folder / "cohort", "-o", public_folder / "new") == 6
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.count("no permission to write in")) == ("", 3, 3)


# Runs drunet where no file may grow beyond so many bytes; Python ignores the signal, and the write fails as on a full disk.
CROWDED: Final = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
runpy.run_module("drunet_cli", run_name="__main__", alter_sys=True)
"""


def test_slices_for_which_there_is_no_room_are_one_error_line(cohort: Path) -> None:
    arguments = ["convert", "nii2png", str(cohort / "case_0"), "-o", "slices"]
    done = subprocess.run([sys.executable, "-c", CROWDED, "1000", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("Error: slices/images/case_0_slice_")
    assert done.stderr.endswith(".png: cannot be written: File too large\n")
    assert not [path for path in Path("slices").rglob("*") if path.suffix in (".json", ".csv", ".tmp")]
    assert nii2png(cohort, "-o", "slices") == 0  # without --overwrite: what a failed run has left is drunet's own


# Images to slices: a dry run


def test_a_dry_run_tells_what_is_there_and_writes_nothing(cohort: Path, capsys: Captured) -> None:
    quietly_converted(cohort / "case_1", "-o", "slices")
    before = stamps(Path("slices"))
    capsys.readouterr()
    for flag, would, code in (("--skip-existing", "verify", 0), ("--overwrite", "convert", 0), ("--quiet", "refuse", 6)):
        assert nii2png(cohort, "-o", "slices", "--dry-run", flag) == code
        out, err = capsys.readouterr()
        assert (bool(err), stamps(Path("slices"))) == (code != 0, before)
        rows = [tuple(line.split()[:3]) for line in out.splitlines() if line.startswith("case_")]
        assert rows == [("case_0", "new", "convert"), ("case_1", "converted", would), ("case_2", "new", "convert")]
    assert nii2png(cohort, "-o", "absent", "--dry-run") == 0
    assert not Path("absent").exists()


def test_a_dry_run_as_json_is_one_object_a_case(cohort: Path, capsys: Captured) -> None:
    (own_copy(cohort, "cases") / "case_1/case_1_t1.nii.gz").unlink()
    assert nii2png("cases", "-o", "slices", "--dry-run", "--json") == 1
    first, broken, last = objects(capsys.readouterr().out)
    kinds = ("flair", "t1ce", "t1", "t2", "seg")
    assert first == {
        "case": "case_0",
        "state": "new",
        "would": "convert",
        "files": {kind: f"cases/case_0/case_0_{kind}.nii.gz" for kind in kinds},
    }
    assert (broken["case"], broken["exit_code"], last["state"]) == ("case_1", 3, "new")
    assert broken["error"].startswith("cases/case_1: case_1 has no T1")


def test_a_dry_run_of_a_bad_case_alone_has_the_code_of_the_case(capsys: Captured) -> None:
    assert nii2png("absent", "-o", "slices") == 3
    assert nii2png("absent", "-o", "slices", "--dry-run") == 3


# Streams


def in_shell(*arguments: str | Path, redirection: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", sys.executable, "-m", "drunet_cli", "convert"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "redirection",
    [pytest.param(word) for word in ("| true", ">/dev/full")] + [">&-", "2>/dev/full", "<&- >&- 2>&-"],
)
def test_lost_stream_does_not_lose_the_cases_that_follow(redirection: str, cohort: Path, converted: Path) -> None:
    done = in_shell("nii2png", cohort, "-o", "slices", "--jobs", "1", redirection=redirection)
    assert "Traceback" not in done.stderr
    assert done.returncode == (6 if redirection == ">/dev/full" else 0)
    assert contents(Path("slices")) == contents(converted)


def test_failures_keep_their_exit_code_when_the_reader_of_the_results_has_gone(partly_bad: Path) -> None:
    assert in_shell("nii2png", partly_bad, "-o", "slices", "--jobs", "1", redirection="| true").returncode == 1


# Label slices to label maps


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR"])
def test_label_maps_return_as_the_segmentations_were(axcodes: str, capsys: Captured) -> None:
    write_case(Path("case"), axcodes=axcodes)
    quietly_converted("case", "-o", "slices")
    capsys.readouterr()
    assert png2nii("slices", "--like", "case/case_t1.nii.gz", "-o", "map.nii.gz") == 0
    assert capsys.readouterr().out == "map.nii.gz\n"
    ours, theirs = open_image("map.nii.gz"), open_image("case/case_seg.nii.gz")
    assert ours.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(ours.affine) == tuple(axcodes)
    assert np.array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_array_equal(ours.affine, theirs.affine)


def test_label_maps_of_several_cases_go_to_a_folder(cohort: Path, converted: Path, capsys: Captured) -> None:
    assert png2nii(converted, "--like", cohort, "-o", "maps") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == LABEL_MAPS
    *notes, summary = err.splitlines()
    assert [note.rsplit(" (", 1)[0] for note in notes] == [f"{case}: WT <0.1 mL, TC <0.1 mL, ET <0.1 mL" for case in CASES]
    assert summary == "3 label maps in maps"
    for n, path in enumerate(LABEL_MAPS):
        assert np.array_equal(open_image(path).dataobj, segmentation(n))


def test_the_folder_of_the_masks_does_as_well_as_that_of_the_dataset(cohort: Path, converted: Path) -> None:
    assert png2nii(converted / "masks", "--like", cohort, "-o", "maps") == 0
    assert np.array_equal(open_image(LABEL_MAPS[1]).dataobj, segmentation(1))


def test_json_describes_the_label_map(cohort: Path, converted: Path, capsys: Captured) -> None:
    assert png2nii(converted, "--like", cohort / "case_1", "--case", "case_1", "-o", "map.nii", "--json", "--quiet") == 0
    (document,) = objects(capsys.readouterr().out)
    labels = segmentation(1)
    voxels = {
        name: int(np.isin(labels, values).sum()) for name, values in {"NCR": [1], "ED": [2], "ET": [4], "TC": [1, 4]}.items()
    }
    voxels["WT"] = int((labels > 0).sum())
    assert document["voxels"] == voxels
    assert document["volumes_ml"] == {name: count / 1000 for name, count in voxels.items()}  # 1 mm3 voxels
    assert document["labels"] == {"convention": "brats2020", "values": {"NCR": 1, "ED": 2, "ET": 4}}
    assert (document["case"], document["output"], document["skipped"]) == ("case_1", "map.nii", False)
    assert document["reference"] == str(cohort / "case_1/case_1_flair.nii.gz")
    assert document["warnings"] == []


def test_one_image_suffices_for_the_slices_of_one_case(cohort: Path, converted: Path) -> None:
    flair = cohort / "case_2/case_2_flair.nii.gz"
    assert png2nii(converted, "--like", flair, "--case", "case_2", "-o", "maps") == 0
    assert [path.name for path in Path("maps").iterdir()] == ["case_2.nii.gz"]


def test_references_may_come_from_stdin_and_from_a_table(
    cohort: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{cohort}\n"))
    assert png2nii(converted, "--like", "-", "-o", "maps") == 0
    images = ",".join(f"{cohort}/case_0/case_0_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair"))
    Path("table.csv").write_text(f"case,t1,t1ce,t2,flair\ncase_0,{images}\n")
    assert png2nii(converted, "--like", "table.csv", "--case", "case_0", "-o", "map.nii.gz") == 0
    assert Path("map.nii.gz").read_bytes() == Path(LABEL_MAPS[0]).read_bytes()


@pytest.mark.parametrize(
    ("stored", "option", "expected"), [(4, [], 4), (3, [], 3), (4, ["brats2023"], 3), (3, ["brats2020"], 4)]
)
def test_enhancing_tumour_keeps_its_value_unless_another_is_asked_for(stored: int, option: list[str], expected: int) -> None:
    write_case(Path("case"), enhancing=stored)
    quietly_converted("case", "-o", "slices")
    labels = [word for value in option for word in ("--labels", value)]
    assert png2nii("slices", "--like", "case", "-o", "map.nii.gz", *labels) == 0
    assert np.array_equal(open_image("map.nii.gz").dataobj, segmentation(0, enhancing=expected))


def test_slices_without_blank_ones_give_the_whole_label_map(cohort: Path) -> None:
    quietly_converted(cohort, "-o", "slices", "--skip-blank")
    assert png2nii("slices", "--like", cohort, "-o", "maps") == 0
    assert np.array_equal(open_image(LABEL_MAPS[2]).dataobj, segmentation(2))


def test_colours_of_the_published_prediction_are_read(cohort: Path, converted: Path) -> None:
    slices = own_copy(converted, "slices")
    for path in (slices / "masks").iterdir():
        pixels = np.array(Image.open(path))
        pixels[..., 0] *= 50
        pixels[..., 1:] = 0
        Image.fromarray(pixels).save(path)
    assert png2nii("slices", "--like", cohort, "-o", "maps") == 0
    assert np.array_equal(open_image(LABEL_MAPS[0]).dataobj, segmentation(0))


# Label slices to label maps: what cannot be converted


@pytest.fixture
def partly_missing(converted: Path) -> Path:
    """Slices of which one case lacks one."""
    slices = own_copy(converted, "slices")
    (slices / "masks/case_1_slice_2.png").unlink()
    return slices


def test_a_case_that_lacks_a_slice_does_not_stop_the_others(partly_missing: Path, cohort: Path, capsys: Captured) -> None:
    assert png2nii(partly_missing, "--like", cohort, "-o", "maps") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [LABEL_MAPS[0], LABEL_MAPS[2]]
    assert "Error: case_1: slices/masks: slice 2 of case_1 is missing" in err
    assert err.endswith("2 label maps in maps\nError: 1 of 3 cases failed: case_1\n")
    assert not Path(LABEL_MAPS[1]).exists()


def test_a_case_that_lacks_a_slice_is_an_object_with_its_error(partly_missing: Path, cohort: Path, capsys: Captured) -> None:
    assert png2nii(partly_missing, "--like", cohort, "-o", "maps", "--json") == 1
    broken = objects(capsys.readouterr().out)[1]
    assert broken.keys() == {"case", "error", "exit_code"}
    assert broken["exit_code"] == 3


def test_a_case_that_lacks_a_slice_alone_is_the_failure_of_the_command(
    partly_missing: Path, cohort: Path, capsys: Captured
) -> None:
    assert png2nii(partly_missing, "--like", cohort / "case_1", "--case", "case_1", "-o", "maps") == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), Path("maps").exists()) == ("", 1, False)
    assert err.startswith("Error: slices/masks: slice 2 of case_1 is missing")


def test_a_case_without_reference_is_unpaired(cohort: Path, converted: Path, capsys: Captured) -> None:
    assert png2nii(converted, "--like", cohort / "case_0", "--like", cohort / "case_2", "-o", "maps") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [LABEL_MAPS[0], LABEL_MAPS[2]]
    assert f"Error: case_1: --like {cohort}/case_0 {cohort}/case_2: holds no case of that name\n" in err


@pytest.mark.parametrize("like", ["absent", "empty"])
def test_references_that_are_not_there_are_said_to_be_so(like: str, cohort: Path, converted: Path, capsys: Captured) -> None:
    Path("empty").mkdir()
    png2nii(converted, "--like", like, "-o", "maps")
    assert {"absent": "no such file or folder", "empty": "no case found"}[like] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("slices -o maps", 2, "missing --like: name the image whose geometry the label map gets, or CASES"),
        ("slices --like cohort", 2, "missing -o: name the label map to write, or a folder for them"),
        ("--like cohort -o maps", 2, "Missing argument 'DIR'"),
        ("slices more --like cohort -o maps", 2, "Got unexpected extra argument"),
        ("slices --like cohort -o maps --skip-existing --overwrite", 2, "--skip-existing and --overwrite exclude one another"),
        ("slices --like cohort -o maps --labels brats2024", 2, "Invalid value for '--labels'"),
        ("slices --like cohort -o maps --dry-run", 2, "No such option: --dry-run"),
        ("slices --like cohort -o maps --jobs -1", 2, "Invalid value for '--jobs'"),
        ("slices --like cohort -o map.nii.gz", 2, "-o map.nii.gz: slices/masks holds slices of 3 cases; name a folder"),
        ("slices --like cohort -o map.mha", 2, "-o map.mha: drunet writes NAME.nii.gz or NAME.nii"),
        ("slices --like cohort -o maps --pattern t1", 2, "--pattern t1: write MODALITY=GLOB"),
        ("absent --like cohort -o maps", 3, "absent: no such folder; name the folder of the label slices"),
        ("cohort --like cohort -o maps", 3, "cohort: holds no slice named CASE_slice_Z.png"),
        ("slices --like cohort --case absent -o maps", 3, "slices/masks: holds no slice of absent; there are those of case_0"),
        ("slices --like absent.nii.gz --case case_0 -o maps", 3, "absent.nii.gz: "),
        ("slices --like cohort/case_0/case_0_t1.nii.gz -o maps", 2, "--like cohort/case_0/case_0_t1.nii.gz: is one image, but"),
    ],
)
def test_what_png2nii_cannot_do_ends_in_one_line(
    arguments: str, code: int, line: str, cohort: Path, converted: Path, capsys: Captured
) -> None:
    Path("cohort").symlink_to(cohort)
    Path("slices").symlink_to(converted)
    assert main(["convert", "png2nii", *shlex.split(arguments)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"Error: {line}")
    assert not list(Path().glob("map*"))


LONG: Final = "a" * 300  # longer than any file name may be


@pytest.mark.parametrize(
    ("folder", "like", "output", "code"),
    [
        (LONG, "cohort", "maps", 3),
        ("slices", f"{LONG}.nii.gz", "maps", 3),
        ("slices", "cohort", LONG, 6),
        ("slices", "cohort", f"{LONG}.nii", 6),
    ],
    ids=["DIR", "--like", "-o folder", "-o file"],
)
def test_a_name_that_is_too_long_is_no_fault_of_drunet(
    folder: str, like: str, output: str, code: int, cohort: Path, converted: Path, capsys: Captured
) -> None:
    Path("cohort").symlink_to(cohort)
    Path("slices").symlink_to(converted)
    assert png2nii(folder, "--like", like, "--case", "case_0", "-o", output) == code


def test_descriptions_that_may_not_be_read_are_bad_input(
    cohort: Path, converted: Path, public_folder: Path, capsys: Captured
) -> None:
    shutil.copytree(converted, public_folder / "slices")
    shutil.copytree(cohort / "case_0", public_folder / "case_0")
    (public_folder / "slices/cases").chmod(0)
    with unprivileged():
        code = png2nii(
            public_folder / "slices", "--like", public_folder / "case_0", "--case", "case_0", "-o", public_folder / "map.nii"
        )
    assert (code, capsys.readouterr().err.count("\n")) == (3, 1)


# Label slices to label maps: outputs that are there


def test_an_existing_label_map_is_refused_before_any_work(cohort: Path, converted: Path, capsys: Captured) -> None:
    Path("maps").mkdir()
    Path(LABEL_MAPS[2]).write_bytes(b"mine")
    assert png2nii(converted, "--like", cohort, "-o", "maps") == 6
    assert capsys.readouterr() == ("", f"Error: {LABEL_MAPS[2]}: exists already; give --overwrite to replace it\n")
    assert contents(Path("maps")) == {"case_2.nii.gz": b"mine"}


def test_skip_existing_writes_the_label_maps_that_are_not_there(cohort: Path, converted: Path, capsys: Captured) -> None:
    assert png2nii(converted, "--like", cohort, "-o", "maps") == 0
    whole = contents(Path("maps"))
    Path(LABEL_MAPS[1]).unlink()
    before = stamps(Path("maps"))
    capsys.readouterr()
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--skip-existing", "--json") == 0
    documents = objects(capsys.readouterr().out)
    assert [document["skipped"] for document in documents] == [True, False, True]
    assert contents(Path("maps")) == whole
    assert before.items() <= stamps(Path("maps")).items()


def test_skip_existing_refuses_a_label_map_of_other_slices(cohort: Path, converted: Path, capsys: Captured) -> None:
    Path("maps").mkdir()
    Path(LABEL_MAPS[0]).write_bytes(b"mine")
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--skip-existing", "--json") == 1
    failed, *_ = objects(capsys.readouterr().out)
    assert failed == {
        "case": "case_0",
        "error": f"{LABEL_MAPS[0]}: is not a NIfTI file; give --overwrite to replace it",
        "exit_code": 6,
    }
    assert Path(LABEL_MAPS[0]).read_bytes() == b"mine"


def test_overwrite_replaces_label_maps(cohort: Path, converted: Path) -> None:
    Path("maps").mkdir()
    Path(LABEL_MAPS[0]).write_bytes(b"mine")
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--overwrite") == 0
    assert np.array_equal(open_image(LABEL_MAPS[0]).dataobj, segmentation(0))


@pytest.mark.parametrize(
    "modality",
    [pytest.param(modality) for modality in CHANNELS],
)
def test_an_image_of_a_reference_case_is_never_replaced(modality: Modality, cohort: Path, converted: Path) -> None:
    image = own_copy(cohort / "case_0", "case_0") / f"case_0_{modality}.nii.gz"
    before = image.read_bytes()
    assert png2nii(converted, "--like", "case_0", "--case", "case_0", "-o", image, "--overwrite") == 6
    assert image.read_bytes() == before
