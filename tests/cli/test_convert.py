"""`drunet convert` from the command line: what it prints and where, its exit codes, and that its options arrive."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.cli.app import main
from drunet_cli.errors import OutputError
from tests.cli.small_cohort import CASES, NAMES_NNUNET, objects, segmentation, spoil, write_case
from tests.forks import CLOSED_PIPE, limit_files
from tests.support import Drunet, contents, image_options, open_image, stdin_of

pytestmark = pytest.mark.usefixtures("in_tmp_path")

DESCRIPTIONS: Final = [f"slices/cases/{case}.json" for case in CASES]
LABEL_MAPS: Final = [f"maps/{case}.nii.gz" for case in CASES]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def converted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their slices, which no test changes."""
    slices = tmp_path_factory.mktemp("converted") / "slices"
    assert main(["convert", "nii2png", str(cohort), "-o", str(slices), "--jobs", "1", "--quiet"]) == 0
    return slices


@pytest.fixture
def partly_bad(cohort: Path) -> Path:
    """The cohort with one case that cannot be read."""
    shutil.copytree(cohort, "cases")
    spoil(Path("cases/case_1"))
    return Path("cases")


@pytest.fixture
def partly_missing(converted: Path) -> Path:
    """The slices, of which one case lacks one."""
    shutil.copytree(converted, "slices")
    Path("slices/masks/case_1_slice_2.png").unlink()
    return Path("slices")


def nii2png(*arguments: str | Path) -> int:
    return main(["convert", "nii2png", *map(str, arguments), "--jobs", "1"])


def png2nii(*arguments: str | Path) -> int:
    return main(["convert", "png2nii", *map(str, arguments), "--jobs", "1"])


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- images to slices


def test_descriptions_are_printed_on_stdout_and_notes_on_stderr(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort, "-o", "slices") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == DESCRIPTIONS
    *notes, summary = err.splitlines()
    assert [note.rsplit(" (", 1)[0] for note in notes] == [f"{case}: 6 slices and their label slices" for case in CASES]
    assert summary == "3 cases in slices, 3 with label slices"
    assert {path.name for path in Path("slices").iterdir()} == {"images", "masks", "cases", "slices.csv"}
    assert Path("slices/slices.csv").read_text().splitlines()[0] == "case,z,image,mask,brain,ncr,ed,et"
    assert nii2png(cohort / "case_1", "-o", "one") == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert nii2png(cohort, "-o", "quiet", "--quiet") == 0
    assert capsys.readouterr() == ("".join(f"quiet/cases/{case}.json\n" for case in CASES), "")


def test_json_is_one_object_a_case(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort, "-o", "slices", "--json", "--quiet") == 0
    for case, document in zip(CASES, objects(capsys.readouterr().out), strict=True):
        assert document.pop("seconds") >= 0
        assert document == {
            "case": case,
            "description": f"slices/cases/{case}.json",
            "slices": 6,
            "masks": 6,
            "skipped": False,
            "warnings": [],
        }


def test_a_warning_is_one_line_that_names_the_case_and_stands_in_the_json(capsys: Captured) -> None:
    folder = write_case(Path("case"))
    (folder / "case_t1.nii.gz").rename(folder / "swap")
    (folder / "case_t2.nii.gz").rename(folder / "case_t1.nii.gz")
    (folder / "swap").rename(folder / "case_t2.nii.gz")
    images = {modality: folder / f"case_{modality}.nii.gz" for modality in CHANNELS}
    options = image_options({**images, CHANNELS[2]: images[CHANNELS[3]], CHANNELS[3]: images[CHANNELS[2]]})
    assert nii2png(*options, "-o", "slices", "--json") == 0
    out, err = capsys.readouterr()
    assert err.startswith("Warning: case: ")
    assert [warning["code"] for warning in objects(out)[0]["warnings"]] == ["modality-name"] * 2


def test_options_reach_the_conversion(cohort: Path, converted: Path, capsys: Captured) -> None:
    folder = cohort / "case_0"
    images = image_options({modality: folder / f"case_0_{modality}.nii.gz" for modality in CHANNELS})
    assert nii2png(*images, "--seg", folder / "case_0_seg.nii.gz", "--case", "P 01", "--skip-blank", "-o", "slices") == 0
    assert capsys.readouterr().out == "slices/cases/P 01.json\n"
    assert sorted(contents(Path("slices/masks"))) == [f"P 01_slice_{z}.png" for z in (1, 2, 3, 4)]
    name = "images/{}_slice_3.png"
    assert Path("slices", name.format("P 01")).read_bytes() == Path(converted, name.format("case_0")).read_bytes()
    for words, options in (
        (("_a", "_b", "_c", "_d"), "--pattern flair=*_a.* --pattern t1ce=*_b.* --pattern t1=*_c.* --pattern t2=*_d.*"),
        (NAMES_NNUNET, "--channels t1,t1ce,t2,flair"),
    ):
        shutil.rmtree("cases", ignore_errors=True)
        write_case(Path("cases/case_0"), words=words)
        assert nii2png("cases", "-o", "slices", "--overwrite", *options.split()) == 0
        assert Path("slices", name.format("case_0")).read_bytes() == Path(converted, name.format("case_0")).read_bytes()


def test_a_bad_case_does_not_stop_the_others_and_is_listed_at_the_end(partly_bad: Path, capsys: Captured) -> None:
    assert nii2png(partly_bad, "-o", "slices", "--json") == 1
    out, err = capsys.readouterr()
    first, bad, last = objects(out)
    assert (first["case"], last["case"]) == ("case_0", "case_2")
    assert (sorted(bad), bad["case"], bad["exit_code"]) == (["case", "error", "exit_code"], "case_1", 3)
    assert bad["error"].startswith("cases/case_1/case_1_t2.nii.gz: is truncated")
    assert f"Error: case_1: {bad['error']}\n" in err
    assert err.endswith("2 cases in slices, 2 with label slices\nError: 1 of 3 cases failed: case_1\n")
    assert not [path for path in Path("slices").rglob("*") if "case_1" in path.name]
    assert nii2png(partly_bad, "-o", "quiet", "--quiet") == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_bad_case_alone_is_the_failure_of_the_command(
    partly_bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert nii2png(partly_bad / "case_1", "-o", "slices", "--json") == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), Path("slices").exists()) == ("", 1, False)
    monkeypatch.setattr("sys.stdin", stdin_of(f"{partly_bad}/case_1\n"))
    assert nii2png("-", "-o", "slices") == 1  # a list is a batch
    assert not Path("slices").exists()


def test_existing_slices_are_refused_before_any_work_and_left_out_or_replaced_when_asked(
    cohort: Path, converted: Path, capsys: Captured
) -> None:
    shutil.copytree(converted, "slices")
    before = stamps(Path("slices"))
    assert nii2png(cohort, "-o", "slices") == 6
    assert capsys.readouterr() == (
        "",
        "Error: slices: case_0 and 2 more: converted already; "
        "give --skip-existing to leave out complete cases, or --overwrite\n",
    )
    assert stamps(Path("slices")) == before
    for lost, left_out in (((1,), "2 were"), ((0, 1), "1 was")):
        for n in lost:
            Path(f"slices/masks/case_{n}_slice_2.png").unlink()
        assert nii2png(cohort, "-o", "slices", "--skip-existing", "--json") == 0
        out, err = capsys.readouterr()
        assert [document["skipped"] for document in objects(out)] == [n not in lost for n in range(3)]
        assert err.endswith(f"3 cases in slices, 3 with label slices; {left_out} complete and left out\n")
    assert contents(Path("slices")) == contents(converted)
    assert nii2png(cohort, "-o", "slices", "--overwrite") == 0
    after = stamps(Path("slices"))
    assert all(after[path] > before[path] for path in before)
    assert contents(Path("slices")) == contents(converted)


def test_a_dry_run_tells_what_is_there_and_writes_nothing(cohort: Path, capsys: Captured) -> None:
    assert nii2png(cohort / "case_1", "-o", "slices", "--quiet") == 0
    before = stamps(Path("slices"))
    capsys.readouterr()
    for flag, would, code in (("--skip-existing", "verify", 0), ("--overwrite", "convert", 0), ("--quiet", "refuse", 6)):
        assert nii2png(cohort, "-o", "slices", "--dry-run", flag) == code
        out, err = capsys.readouterr()
        assert (bool(err), stamps(Path("slices"))) == (code != 0, before)
        rows = [tuple(line.split()[:4]) for line in out.splitlines() if line.startswith("case_")]
        assert [row[:3] for row in rows] == [
            ("case_0", "new", "convert"),
            ("case_1", "converted", would),
            (*CASES[2:], "new", "convert"),
        ]
    shutil.copytree(cohort, "cases")
    Path("cases/case_1/case_1_t1.nii.gz").unlink()
    assert nii2png("cases", "-o", "absent", "--dry-run", "--json") == 1
    first, broken, _ = objects(capsys.readouterr().out)
    files = {kind: f"cases/case_0/case_0_{kind}.nii.gz" for kind in (*CHANNELS, "seg")}
    assert first == {"case": "case_0", "state": "new", "would": "convert", "files": files}
    assert (broken["case"], broken["exit_code"], Path("absent").exists()) == ("case_1", 3, False)
    Path("slices/slices.csv").write_text("name,fold\n")
    assert nii2png("cases", "-o", "slices", "--dry-run") == nii2png("cases", "-o", "slices") == 6
    assert "case_1: " in capsys.readouterr().err


def test_the_table_of_slices_is_true_also_after_a_run_in_which_every_case_failed(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert nii2png(cohort, "-o", "slices") == 0

    def publish_unflushed(path: Path, content: bytes) -> None:
        if path.suffix == ".png":
            raise OutputError(f"{path}: No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("drunet_cli.conversion.nii2png.publish_unflushed", publish_unflushed)
    capsys.readouterr()
    assert nii2png(cohort, "-o", "slices", "--overwrite") == 1
    assert " in slices" not in capsys.readouterr().err  # 0 cases
    assert list(Path("slices/cases").glob("*.json")) == []
    assert len(Path("slices/slices.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("nii2png cases", 2, "missing -o: name a folder for the slices"),
        ("nii2png -o out", 2, "missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair"),
        ("nii2png --flair a.nii -o out", 2, "missing --t1ce, --t1, --t2: a case needs all four"),
        ("nii2png --seg a.nii -o out", 2, "missing --flair, --t1ce, --t1, --t2"),
        ("nii2png cases --case a -o out", 2, "CASES (--pattern, --channels) and --t1 --t1ce --t2 --flair --seg --case exclude"),
        ("nii2png cases -o out --skip-existing --overwrite", 2, "--skip-existing and --overwrite exclude one another"),
        ("nii2png cases -o out --pattern t1", 2, "--pattern t1: write MODALITY=GLOB"),
        ("nii2png cases -o out --channels t1,t2", 2, "--channels t1,t2: name flair, t1ce, t1, t2 once each"),
        ("nii2png cases -o out --jobs 0", 2, "Invalid value for '--jobs'"),
        ("nii2png cases -o", 2, "Option '-o' requires an argument. Try: drunet convert nii2png --help"),
        ("nii2png --t1 a --t1ce b --t2 c --flair d --case a/b -o out", 2, "--case 'a/b': a case's name is part of a file name"),
        ("nii2png absent -o out", 3, "absent: no such file or folder"),
        ("nii2png slices/images -o out", 3, "slices/images: no case found"),
        (f"nii2png cohort -o {'a' * 300}", 6, "a"),
        ("png2nii slices -o out", 2, "missing --like: name the image whose geometry the label map gets, or CASES"),
        ("png2nii slices --like cohort", 2, "missing -o: name the label map to write, or a folder for them"),
        ("png2nii --like cohort -o out", 2, "Missing argument 'DIR'"),
        ("png2nii '' --like cohort -o out", 2, "Invalid value for 'DIR': an empty path; an unset variable?"),
        ("png2nii slices --like cohort -o out --skip-existing --overwrite", 2, "--skip-existing and --overwrite exclude"),
        ("png2nii slices --like cohort -o out --labels brats2024", 2, "Invalid value for '--labels'"),
        ("png2nii slices --like cohort -o out.nii.gz", 2, "-o out.nii.gz: slices/masks holds slices of 3 cases; name a folder"),
        ("png2nii slices --like cohort -o out.mha", 2, "-o out.mha: drunet writes NAME.nii.gz or NAME.nii"),
        ("png2nii slices --like cohort/case_0/case_0_t1.nii.gz -o out", 2, "--like cohort/case_0/case_0_t1.nii.gz: is one"),
        ("png2nii slices --like a.nii --like b.nii -o out", 2, "--like a.nii: give one image, or CASES"),
        ("png2nii slices --like a.nii --case case_0 --pattern t1=b -o out", 2, "--like a.nii: is one image; --pattern and"),
        ("png2nii absent --like cohort -o out", 3, "absent: no such folder; name the folder of the label slices"),
        ("png2nii slices --like cohort --case absent -o out", 3, "slices/masks: holds no slice of absent; there are those"),
        ("png2nii slices --like absent.nii.gz --case case_0 -o out", 3, "absent.nii.gz: "),
        ("png2nii slices --like absent -o out", 3, "absent: no such file or folder"),
        (f"png2nii slices --like cohort -o {'a' * 300}", 6, "a"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_ends_in_one_line(
    arguments: str, code: int, line: str, cohort: Path, converted: Path, capsys: Captured
) -> None:
    Path("cohort").symlink_to(cohort)
    Path("slices").symlink_to(converted)
    assert main(["convert", *shlex.split(arguments)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"Error: {line}")
    assert not list(Path().glob("out*"))


def test_slices_for_which_there_is_no_room_are_one_error_line(cohort: Path, drunet: Drunet) -> None:
    words = ("convert", "nii2png", cohort / "case_0", "-o", "slices")
    done = drunet(*words, before=limit_files(1000, signal_ignored=True))  # as on a full disk
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("Error: slices/images/case_0_slice_")
    assert done.stderr.endswith(".png: cannot be written: File too large\n")
    assert not [path for path in Path("slices").rglob("*") if path.suffix in (".json", ".csv", ".tmp")]
    assert nii2png(cohort, "-o", "slices") == 0  # without --overwrite: what a failed run has left is drunet's own


@pytest.mark.parametrize(("stdout", "code"), [(CLOSED_PIPE, 0), ("/dev/full", 6)])
def test_a_lost_stream_does_not_lose_the_cases_that_follow(
    stdout: str, code: int, cohort: Path, converted: Path, drunet: Drunet
) -> None:
    done = drunet("convert", "nii2png", cohort, "-o", "slices", "--jobs", "1", streams={"stdout": stdout})
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert contents(Path("slices")) == contents(converted)


def test_paths_are_printed_byte_for_byte_where_stdout_is_no_terminal() -> None:
    names = [b"caf\xe9", "M\u00fcller \u2116 1".encode(), b"[bold] 'q' 100%"]
    for name in names:
        write_case(Path("cases", os.fsdecode(name)))
    command = [sys.executable, "-m", "drunet_cli", "convert", "nii2png", "cases", "-o", "out", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True)
    assert done.stdout.splitlines() == sorted(b"out/cases/" + name + b".json" for name in names)
    assert not [path for path in done.stdout.splitlines() if not Path(os.fsdecode(path)).is_file()]


@pytest.mark.slow
def test_any_number_of_jobs_writes_the_same_bytes(cohort: Path, converted: Path, drunet: Drunet) -> None:
    done = drunet("convert", "nii2png", cohort, "-o", "slices", "--jobs", "3")
    assert (done.returncode, sorted(done.stdout.split())) == (0, DESCRIPTIONS)
    for jobs in ("1", "2"):
        maps = drunet("convert", "png2nii", "slices", "--like", cohort, "-o", f"maps_{jobs}", "--jobs", jobs)
        assert (maps.returncode, sorted(maps.stdout.split())) == (0, [f"maps_{jobs}/{case}.nii.gz" for case in CASES])
    assert contents(Path("slices")) == contents(converted)
    assert contents(Path("maps_1")) == contents(Path("maps_2"))


# --- label slices to label maps


def test_label_maps_are_printed_on_stdout_and_notes_on_stderr(cohort: Path, converted: Path, capsys: Captured) -> None:
    assert png2nii(converted, "--like", cohort, "-o", "maps") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == LABEL_MAPS
    *notes, summary = err.splitlines()
    assert [note.split(": WT 0.")[0] for note in notes] == CASES
    assert summary == "3 label maps in maps"
    for n, path in enumerate(LABEL_MAPS):
        assert np.array_equal(open_image(path).dataobj, segmentation(n))
    options = ("--like", cohort / "case_1", "--case", "case_1", "--json", "--quiet")
    assert png2nii(converted / "masks", *options, "-o", "map.nii") == 0
    out, err = capsys.readouterr()
    (document,) = objects(out)
    assert (document["case"], document["output"], document["skipped"], err) == ("case_1", "map.nii", False, "")
    assert document["reference"] == str(cohort / "case_1/case_1_flair.nii.gz")
    assert png2nii(converted, "--like", cohort, "--case", "case_2", "-o", "more") == 0
    assert "2 cases of --like without slices in " in capsys.readouterr().err


def test_enhancing_tumour_keeps_its_value_unless_another_is_asked_for(capsys: Captured) -> None:
    stored = {"three": 3, "four": 4}
    for name, enhancing in stored.items():
        write_case(Path("cases", name), enhancing=enhancing)
    assert nii2png("cases", "-o", "slices") == 0
    for words, expected in (([], stored), (["--labels", "brats2023"], dict.fromkeys(stored, 3))):
        assert png2nii("slices", "--like", "cases", "-o", "maps", "--overwrite", *words) == 0
        for name, enhancing in expected.items():
            assert np.array_equal(open_image(f"maps/{name}.nii.gz").dataobj, segmentation(0, enhancing=enhancing))
        warning = "Warning: enhancing tumour was 3 in some segmentations and 4 in others: each case keeps its own"
        assert (warning in capsys.readouterr().err) is (words == [])


def test_a_case_whose_segmentation_does_not_tell_follows_the_others(capsys: Captured) -> None:
    write_case(Path("cases/three"), enhancing=3)
    write_case(Path("cases/untold"), enhancing=2)
    assert nii2png("cases", "-o", "slices") == 0
    assert png2nii("slices", "--like", "cases", "-o", "maps", "--json") == 0
    documents = objects(capsys.readouterr().out.partition("\n")[2].partition("\n")[2])
    assert [document["labels"]["convention"] for document in documents] == ["brats2023"] * 2


def test_a_case_that_lacks_a_slice_or_a_reference_does_not_stop_the_others(
    partly_missing: Path, cohort: Path, capsys: Captured
) -> None:
    assert png2nii(partly_missing, "--like", cohort / "case_0", "--like", cohort / "case_1", "-o", "maps", "--json") == 1
    out, err = capsys.readouterr()
    _, *failed = objects(out)
    assert [(each["case"], each["exit_code"]) for each in failed] == [("case_1", 3), ("case_2", 3)]
    assert "Error: case_1: slices/masks: slice 2 of case_1 is missing" in err
    assert f"Error: case_2: --like {cohort}/case_0 {cohort}/case_1: holds no case of that name\n" in err
    assert err.endswith("1 label map in maps\nError: 2 of 3 cases failed: case_2, case_1\n")
    assert contents(Path("maps")).keys() == {"case_0.nii.gz"}
    assert png2nii(partly_missing, "--like", cohort / "case_1", "--case", "case_1", "-o", "alone") == 3
    assert capsys.readouterr().err.startswith("Error: slices/masks: slice 2 of case_1 is missing")


def test_existing_label_maps_are_refused_before_any_work_and_left_or_replaced_when_asked(
    cohort: Path, converted: Path, capsys: Captured
) -> None:
    Path("maps").mkdir()
    Path(LABEL_MAPS[2]).write_bytes(b"mine")
    assert png2nii(converted, "--like", cohort, "-o", "maps") == 6
    assert capsys.readouterr() == ("", f"Error: {LABEL_MAPS[2]}: exists already; give --overwrite to replace it\n")
    assert contents(Path("maps")) == {"case_2.nii.gz": b"mine"}
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--skip-existing", "--json") == 1
    assert objects(capsys.readouterr().out)[2]["exit_code"] == 6
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--overwrite") == 0
    Path(LABEL_MAPS[0]).unlink()
    capsys.readouterr()
    assert png2nii(converted, "--like", cohort, "-o", "maps", "--skip-existing", "--json") == 0
    assert [document["skipped"] for document in objects(capsys.readouterr().out)] == [False, True, True]
    image = Path(shutil.copytree(cohort / "case_0", "case_0")) / "case_0_t2.nii.gz"
    before = image.read_bytes()
    assert png2nii(converted, "--like", "case_0", "--case", "case_0", "-o", image, "--overwrite") == 6
    assert image.read_bytes() == before
