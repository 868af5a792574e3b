"""`drunet evaluate` from the command line: what it prints, what it writes, and its exit codes."""

import csv
import io
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from drunet_cli.cli.app import main
from drunet_cli.evaluation import evaluate as summaries
from tests.cli.small_cohort import CASES, N_CASES, SHAPE, objects, save, segmentation, write_cases
from tests.forks import CLOSED_PIPE
from tests.io.test_tables import cells_of
from tests.support import Drunet, open_image

pytestmark = pytest.mark.usefixtures("in_tmp_path")

HEADER: Final = "case,prediction,reference\n"

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


def rows(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100])


# Results


def test_two_folders_give_a_table_of_regions_and_scores_and_a_note_a_case(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--quiet") == 0
    documents = objects(capsys.readouterr().out)
    assert evaluate(*folders) == 0
    out, err = capsys.readouterr()
    title, header, *lines = out.splitlines()
    assert title == "Convention brats, surface Dice at 1 mm, 3 cases"
    assert header.split() == ["REGION", "SCORE", "MEAN", "SD", "MEDIAN", "Q1", "Q3", "95", "%", "OF", "MEAN"]
    assert [line.split()[0] for line in lines] == ["WT"] * 7 + ["TC"] * 7 + ["ET"] * 7
    for line, region in zip(lines[::7], ("WT", "TC", "ET"), strict=True):
        dice = [document["regions"][region]["dice"] for document in documents]
        assert line.split()[2:5] == [f"{value:.3f}" for value in (np.mean(dice), np.std(dice, ddof=1), np.median(dice))]
    *notes, summary = err.splitlines()
    assert notes[0] == "case_0: Dice WT 1.000, TC 1.000, ET 1.000"
    assert [note.split(":")[0] for note in notes] == CASES
    assert summary == "3 cases compared, convention brats"


def test_a_grid_that_is_one_by_rounding_is_told_as_a_warning(own: Path, cohort: Path, capsys: Captured) -> None:
    (own / "case_1.nii.gz").unlink()
    labels = open_image(cohort / "out" / "case_1.nii.gz")
    affine = labels.affine.copy()
    affine[0, 3] += 0.05  # of a voxel of 1 mm
    nib.Nifti1Image(np.asarray(labels.dataobj), affine).to_filename(own / "case_1.nii.gz")
    assert evaluate(own, cohort / "ref", "--json") == 0
    out, err = capsys.readouterr()
    codes = [[warning["code"] for warning in document["warnings"]] for document in objects(out)]
    assert codes == [[], ["grids-rounded"], []]
    message = "out/case_1.nii.gz: prediction and reference differ by up to 0.05 mm at the corners"
    assert [message in line for line in err.splitlines() if "Warning: " in line] == [True]


def test_a_log_has_time_host_and_how_far_the_run_is_on_every_line(own: Path, cohort: Path, drunet: Drunet) -> None:
    damage(own / "case_1.nii.gz")
    done = drunet("evaluate", own, cohort / "ref", "--jobs", "1")
    begin = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {re.escape(socket.gethostname())}"
    told = [re.fullmatch(f"{begin}(, . of 3)?: (.+)", line) for line in done.stderr.splitlines()]
    assert [(line[1], " ".join(line[2].split()[:2])) for line in told if line] == [
        (", 1 of 3", "case_0: Dice"),
        (", 2 of 3", "Error: case_1:"),
        (", 3 of 3", "case_2: Dice"),
        (None, "2 cases"),
        (None, "Error: 1"),
    ]
    alone = drunet("evaluate", own / "case_1.nii.gz", *files_of(cohort, 1)[1:])
    assert alone.stderr.startswith("Error: ")


def test_two_files_are_compared_alone_by_their_own_scores(cohort: Path, capsys: Captured) -> None:
    assert evaluate(*files_of(cohort, 1), "--json", "--quiet") == 0
    [document] = objects(capsys.readouterr().out)
    assert evaluate(*files_of(cohort, 1)) == 0
    out, err = capsys.readouterr()
    title, header, *lines = out.splitlines()
    assert title == "Convention brats, surface Dice at 1 mm, case_1"
    assert header.split() == ["REGION", "SCORE", "VALUE"]
    values = {(line.split()[0], line[8:-8].strip()): line.split()[-1] for line in lines}
    assert len(values) == 3 * 7
    for region, scores in document["regions"].items():
        assert values[region, "Dice"] == f"{scores['dice']:.3f}"
        assert values[region, "HD95 mm"] == f"{scores['hd95_mm']:.1f}"
    assert err.count("\n") == 1


def test_options_reach_the_scores(cohort: Path, capsys: Captured) -> None:
    labels = segmentation(0, enhancing=3)
    save(labels, Path("r.nii.gz"))
    labels[0, 0, 0] = 4  # the resection cavity of BraTS 2024
    save(labels, Path("p.nii.gz"))
    assert evaluate("p.nii.gz", "r.nii.gz") == 3
    options = ("--labels", "brats2024", "--convention", "lesionwise", "--tolerance", "2.5")
    assert evaluate("p.nii.gz", "r.nii.gz", *options, "--json") == 0
    [document] = objects(capsys.readouterr().out)
    assert [document[name] for name in ("labels", "convention", "tolerance_mm")] == ["brats2024", "lesionwise", 2.5]
    assert document["regions"]["WT"]["dice"] == 1
    assert document["regions"]["WT"]["lesions"]["false_negatives"] == 0
    assert evaluate("p.nii.gz", "r.nii.gz", *options, "--quiet") == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[0], err) == ("Convention lesionwise, surface Dice at 2.5 mm, r", "")


def test_the_seed_of_the_interval_is_the_one_that_is_given(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    summarise = summaries.summarise

    def noting(documents: Sequence[Mapping[str, Any]], *, seed: int) -> Any:
        seeds.append(seed)
        return summarise(documents, seed=seed)

    monkeypatch.setattr(summaries, "summarise", noting)
    for options in ([], ["--seed", "7"]):
        assert evaluate(*folders, *options, "--quiet") == 0
    assert seeds == [0, 7]


@pytest.mark.parametrize(("n", "cases"), [(2, ["case_1", "case_2"]), (50, ["case_1", "case_2", "case_0"])])
def test_worst_lists_cases_of_lowest_dice_first(n: int, cases: list[str], folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--worst", str(n), "--quiet") == 0
    out = capsys.readouterr().out
    header, *lines = out[out.index("WORST CASES") :].splitlines()
    assert header.split() == ["WORST", "CASES,", "DICE", "OF", "WT", "TC", "ET"]
    assert [line.split()[0] for line in lines] == cases
    assert lines[0].split()[3] == "0.000"  # its ET is one plane thick, and shifted by one


@pytest.mark.slow
def test_any_number_of_jobs_gives_the_same_scores(folders: tuple[Path, Path], capsys: Captured) -> None:
    assert evaluate(*folders, "--json", "--csv", "one.csv") == 0
    alone = objects(capsys.readouterr().out)
    assert [document["case"] for document in alone] == CASES
    assert evaluate(*folders, "--json", "--csv", "many.csv", jobs=2) == 0
    assert objects(capsys.readouterr().out) == alone
    assert Path("one.csv").read_bytes() == Path("many.csv").read_bytes()


# Uncertainty


@pytest.fixture
def with_maps(own: Path) -> Path:
    """Uncertainty maps beside the predictions: 0 to 99 at random, others for each case and region."""
    for n, case in enumerate(CASES):
        for region, end in enumerate(("whole", "core", "enhance")):
            noise = np.random.default_rng((n, region)).integers(0, 100, SHAPE)
            save(noise.astype(np.uint8), own / f"{case}_unc_{end}.nii.gz")
    return own


def test_uncertainty_adds_its_scores_to_every_region_of_the_table(
    with_maps: Path, cohort: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)  # a terminal: with long numbers too, no line may be folded
    assert evaluate(with_maps, cohort / "ref", "--uncertainty", "--quiet", "--csv", "scores.csv") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()[2:]
    assert len(lines) == 3 * (7 + 5)
    names = ["Dice AUC", "FTP AUC", "FTN AUC", "uncertainty", "error AUROC"]
    assert [line[8:20].strip() for line in lines[7:12]] == names
    whole = [float(row["uncertainty_score"]) for row in rows("scores.csv") if row["region"] == "WT"]
    assert lines[10].split()[2] == f"{np.mean(whole):.3f}"
    assert err == ""


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


# Files


def test_tables_and_plot_are_written_beside_the_table(folders: tuple[Path, Path], capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate(*folders, "--csv", "new/scores.csv", "--xlsx", "new/scores.xlsx", "--plot", "new/scores.png") == 0
    assert capsys.readouterr().out.startswith("Convention brats")
    assert {path.name for path in Path("new").iterdir()} == {"scores.csv", "scores.png", "scores.xlsx"}
    numbers = [[text for kind, text in cells if kind is None] for cells in cells_of(Path("new/scores.xlsx"))[1:]]
    assert [list(map(float, of_row)) for of_row in numbers] == [
        [float(cell) for cell in list(row.values())[3:]] for row in rows("new/scores.csv")
    ]
    assert [(row["case"], row["region"]) for row in rows("new/scores.csv")] == [
        (case, region) for case in CASES for region in ("WT", "TC", "ET", "NCR", "ED")
    ]
    with Image.open("new/scores.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(("option", "name"), [("--csv", "there.csv"), ("--xlsx", "there.xlsx"), ("--plot", "there.png")])
def test_an_existing_file_is_replaced_only_when_asked(
    option: str, name: str, folders: tuple[Path, Path], capsys: Captured
) -> None:
    Path(name).write_text("mine")
    assert evaluate("absent", "absent", option, name) == 6  # before anything is read
    assert capsys.readouterr() == ("", f"Error: {name}: exists already; give --overwrite to replace it\n")
    assert Path(name).read_text() == "mine"
    assert evaluate(*folders, option, name, "--overwrite") == 0
    assert Path(name).read_bytes() != b"mine"


def test_an_input_is_never_replaced(cohort: Path, capsys: Captured) -> None:
    prediction, reference = files_of(cohort, 0)
    own = Path("mine.nii.gz")
    own.write_bytes(prediction.read_bytes())
    assert evaluate(own, reference, "--csv", own, "--overwrite") == 6
    assert capsys.readouterr().err == "Error: mine.nii.gz: is one of the inputs; name another output\n"
    assert own.read_bytes() == prediction.read_bytes()


def test_a_file_that_cannot_be_written_after_all_does_not_cost_the_table(
    folders: tuple[Path, Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(documents: object) -> bytes:
        Path("scores.csv").write_text("somebody else's")
        return b""

    monkeypatch.setattr("drunet_cli.evaluation.evaluate.encode_csv", appear)
    assert evaluate(*folders, "--csv", "scores.csv") == 6
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 + 21
    assert err.splitlines()[-1].startswith("Error: scores.csv: exists already")


def test_without_matplotlib_plot_is_misuse_and_the_rest_works(
    folders: tuple[Path, Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert evaluate(*folders, "--plot", "scores.png") == 2
    assert capsys.readouterr() == ("", "Error: --plot: matplotlib not installed; run: pip install matplotlib\n")
    assert evaluate(*folders, "--csv", "scores.csv") == 0


# Cases that cannot be compared


@pytest.mark.parametrize("n_damaged", [1, 3])
def test_damaged_cases_are_left_out_and_fail_the_run(n_damaged: int, own: Path, cohort: Path, capsys: Captured) -> None:
    for case in CASES[:n_damaged]:
        damage(own / f"{case}.nii.gz")
    assert evaluate(own, cohort / "ref", "--csv", "scores.csv") == 1
    out, err = capsys.readouterr()
    assert "Error: case_0: out/case_0.nii.gz: is truncated" in err
    assert err.splitlines()[-1] == f"Error: {n_damaged} of 3 cases failed: {', '.join(CASES[:n_damaged])}"
    if n_damaged == 3:
        assert (out, Path("scores.csv").exists()) == ("", False)
    else:
        assert out.splitlines()[0].endswith(", 2 cases")
        assert {row["case"] for row in rows("scores.csv")} == {"case_1", "case_2"}


def test_a_failure_is_an_object_in_json(own: Path, cohort: Path, capsys: Captured) -> None:
    damage(own / "case_1.nii.gz")
    assert evaluate(own, cohort / "ref", "--json", "--quiet") == 1
    first, failed, last = objects(capsys.readouterr().out)
    assert failed == {"case": "case_1", "exit_code": 3, "error": failed["error"]}
    assert "is truncated" in failed["error"]
    assert "regions" in first.keys() & last.keys()


def test_one_pair_that_is_no_good_has_the_code_and_the_details_of_its_error(own: Path, cohort: Path, capsys: Captured) -> None:
    damage(own / "case_0.nii.gz")
    assert evaluate(own / "case_0.nii.gz", files_of(cohort, 0)[1]) == 3
    assert capsys.readouterr().err.startswith("Error: out/case_0.nii.gz: is truncated")
    save(segmentation(0)[:-1], Path("smaller.nii.gz"))
    assert evaluate("smaller.nii.gz", files_of(cohort, 0)[1]) == 3
    first, *table = capsys.readouterr().err.splitlines()
    assert first.startswith("Error: smaller.nii.gz: prediction not on the grid of reference")
    assert any("23 x 20 x 6" in line for line in table)


@pytest.mark.parametrize(
    ("removed", "allowed", "code", "told"),
    [
        ((1,), False, 1, "1 case has no partner; --allow-missing leaves such out"),
        ((1,), True, 0, "{ref}/case_1/case_1_seg.nii.gz: has no partner in out; left out"),
        ((0, 2), True, 0, "2 cases without a partner are left out: case_0, case_2"),
        ((0, 1, 2), True, 3, "Error: {own}: holds no label map"),
    ],
)
def test_a_case_without_a_partner_is_a_failure_unless_allowed(
    removed: tuple[int, ...], allowed: bool, code: int, told: str, own: Path, cohort: Path, capsys: Captured
) -> None:
    for n in removed:
        (own / f"case_{n}.nii.gz").unlink()
    assert evaluate(own, cohort / "ref", *(["--allow-missing"] if allowed else [])) == code
    err = capsys.readouterr().err
    assert told.format(ref=cohort / "ref", own=own) in err
    assert (err.splitlines()[-1] == "Error: 1 of 3 cases failed: case_1") == (code == 1)


def test_allow_missing_excuses_nothing_else(own: Path, cohort: Path, capsys: Captured) -> None:
    (own / "case_0.nii.gz").unlink()
    (own / "case_1_seg.nii.gz").symlink_to(cohort / "out" / "case_1.nii.gz")
    damage(own / "case_2.nii.gz")
    assert evaluate(own, cohort / "ref", "--allow-missing") == 1
    err = capsys.readouterr().err
    assert "both are label maps of case_1" in err
    assert err.splitlines()[-1] == "Error: 2 of 2 cases failed: case_1, case_2"
    Path("other").mkdir()
    Path("other/stranger.nii.gz").symlink_to(cohort / "out" / "case_0.nii.gz")
    assert evaluate("other", cohort / "ref", "--allow-missing") == 3
    assert "have no case in common" in capsys.readouterr().err


# Tables of cases


def test_a_table_names_the_pairs_as_a_file_and_on_stdin(
    folders: tuple[Path, Path], cohort: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(*folders, "--json") == 0
    expected = objects(capsys.readouterr().out)
    Path("tables").mkdir()
    Path("tables/out").symlink_to(cohort / "out")  # relative paths of a file begin at its folder
    table = [f"{case},{{}}out/{case}.nii.gz,{files_of(cohort, n)[1]}\n" for n, case in enumerate(CASES)]
    Path("tables/pairs.csv").write_text(HEADER + "".join(table).format(*[""] * 3))
    assert evaluate("tables/pairs.csv", "--json") == 0
    found = objects(capsys.readouterr().out)
    assert [{**document, "prediction": ""} for document in found] == [{**each, "prediction": ""} for each in expected]
    bad = "lacking,only.nii.gz\nabsent,no.nii.gz,no.nii.gz\n,a,b\n"
    stdin = HEADER + "".join(table).format(*[f"{cohort}/"] * 3) + bad
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    assert evaluate("-", "--json") == 1
    out, err = capsys.readouterr()
    assert [document for document in objects(out) if "error" not in document] == expected
    assert "stdin, line 5: lacks a case, prediction or reference" in err
    assert "Error: 3 of 6 cases failed: " in err


# Misuse and bad input


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument 'PRED'"),
        (("folder",), 2, "folder: missing REF; alone it must be a table .csv, or - for one on stdin"),
        (("", "ref"), 2, "an empty path"),
        (("a", ""), 2, "an empty path"),
        (("a", "b", "c"), 2, "unexpected extra argument"),
        (("a", "b", "--convention", "brats2020"), 2, "'--convention': 'brats2020' is not one of 'brats', 'lesionwise'"),
        (("a", "b", "--labels", "brats2019"), 2, "--labels"),
        (("a", "b", "--worst", "0"), 2, "--worst"),
        (("a", "b", "--worst", "1", "--json"), 2, "--worst and --json exclude one another"),
        (("a", "b", "--tolerance", "-1"), 2, "--tolerance"),
        (("a", "b", "--tolerance", "nan"), 2, "--tolerance"),
        (("a", "b", "--tolerance", "inf"), 2, "--tolerance"),
        (("a", "b", "--seed", "-1"), 2, "--seed"),
        (("a", "b", "--csv", ""), 2, "--csv"),
        (("a", "b", "--plot", ""), 2, "--plot"),
        (("a", "b", "--plot", "scores.pdf"), 2, "--plot scores.pdf: name a .png file of its own"),
        (("a", "b", "--xlsx", "scores.csv"), 2, "--xlsx scores.csv: name a .xlsx file of its own"),
        (("a", "b", "--csv", "same.png", "--plot", "same.png"), 2, "--plot same.png: name a .png file of its own"),
        (("absent.nii.gz", "absent.nii.gz", "--allow-missing"), 3, "absent.nii.gz: no such file or folder"),
        (("absent", "ref", "--allow-missing"), 3, "absent: no such file or folder"),
        (("ref", "absent", "--allow-missing"), 3, "absent: no such file or folder"),
        (("absent.csv", "--allow-missing"), 3, "absent.csv: cannot be read: No such file"),
        (("ref", "ref", "--allow-missing"), 3, "ref: is given as prediction and as reference"),
        (("empty", "ref", "--allow-missing"), 3, "empty: holds no label map"),
        (("ref", "empty", "--allow-missing"), 3, "empty: holds no label map"),
    ],
)
def test_misuse_is_exit_2_and_bad_input_exit_3_in_one_line(
    arguments: tuple[str, ...], code: int, words: str, cohort: Path, capsys: Captured
) -> None:
    Path("ref").symlink_to(cohort / "ref")
    Path("empty").mkdir()
    assert evaluate(*arguments) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


# The process as a whole


def test_a_reader_that_goes_away_does_not_cost_the_csv(folders: tuple[Path, Path], drunet: Drunet) -> None:
    done = drunet("evaluate", *folders, "--jobs", "1", "--quiet", "--csv", "scores.csv", streams={"stdout": CLOSED_PIPE})
    assert (done.returncode, done.stderr) == (0, "")
    assert len(rows("scores.csv")) == 15


def test_a_table_through_a_pipe_is_neither_folded_nor_coloured(folders: tuple[Path, Path], drunet: Drunet) -> None:
    done = drunet("evaluate", *folders, "--worst", "1", "--jobs", "1", environment={"COLUMNS": "40"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2 + 21 + 2
    assert "Error" not in done.stderr
