"""`drunet prepare`, and `drunet segment --prepare`: raw scans on the command line."""

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main as drunet
from drunet_cli.errors import ExitCode
from drunet_cli.io.nifti import load_volume
from drunet_cli.prepare.prepared_case import PlannedPreparation, PreparedFiles, prepare_case
from tests.prepare.small_scans import NAME, Stripped, brats_case, prepared_at_once, small_scan
from tests.support import GOLDEN_WEIGHTS, image_options

HEADINGS: Final = ("t1", "t1ce", "t2", "flair")


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> Stripped:
    return prepared_at_once(tmp_path_factory.mktemp("stripped"))


def test_what_is_complete_is_refused_left_out_or_told_to_differ(
    stripped: Stripped, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case, made, _ = stripped
    shutil.copytree(made.root, tmp_path / "out")
    files = PreparedFiles(tmp_path / "out", NAME)
    options = image_options(case.images)
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out")]) == ExitCode.OUTPUT
    assert "give --skip-existing to leave out what is complete, or --overwrite" in capfd.readouterr().err
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out"), "--skip-existing"]) == 0
    assert capfd.readouterr().out == f"{files.record}\n"
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out"), "--skip-existing", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["left_out"] is True
    assert drunet(["prepare", str(tmp_path / "out"), "-o", str(tmp_path / "again")]) == ExitCode.SOME_FAILED
    assert f"{files.record} says that drunet has prepared these images" in capfd.readouterr().err
    scans = tmp_path / "scans.csv"
    scans.write_text("case,t1,t1ce,t2,flair\n" + ",".join([NAME, *(str(case.images[Modality(m)]) for m in HEADINGS)]))
    words = ["prepare", str(scans), "-o", str(tmp_path / "out"), "--skip-existing", "--dry-run", "--json"]
    assert drunet(words) == 0
    assert json.loads(capfd.readouterr().out)["would"] == "verify and leave out"
    files.brain.write_bytes(b"")
    assert drunet(words) == ExitCode.SOME_FAILED
    assert json.loads(capfd.readouterr().out)["differs"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--t1", "a.nii"], "missing --flair, --t1ce, --t2: a case needs all four"),
        (["--case", "p1"], "missing --flair, --t1ce, --t1, --t2"),
        ([], "missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair"),
        (["raw", "--t1", "a.nii"], "CASES (--pattern, --channels, --shard) and --t1 --t1ce --t2 --flair --case exclude"),
        (["raw", "--brain", "deepbett"], "--brain deepbett: is none of auto, deepbet, hd-bet, synthstrip, none, and no file"),
        (["raw", "--atlas", "sri24"], "--atlas sri24: is none of drunet, none, and no file of this name is there"),
    ],
)
def test_misuse_is_told(words: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert drunet(["prepare", *words, "-o", str(tmp_path / "out")]) == ExitCode.MISUSE
    assert message in capfd.readouterr().err


def test_without_the_extra_one_line_says_how_to_install_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drunet_cli.host.missing_packages", lambda names: names)
    for modality in CHANNELS:
        small_scan(tmp_path / f"p1_{modality}.nii")
    assert drunet(["prepare", str(tmp_path), "-o", str(tmp_path / "out")]) == ExitCode.MISUSE
    assert "SimpleITK and deepbet not installed; run: pip install SimpleITK deepbet" in capfd.readouterr().err


@pytest.mark.slow
def test_segment_prepares_each_case_just_before_it_and_keeps_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p1", "p2", "p3"):
        brats_case(tmp_path / "raw" / name, name)
    (tmp_path / "raw" / "p2" / "p2_t1.nii").write_bytes(b"")
    found = []

    def prepare(planned: PlannedPreparation) -> object:
        found.append((sorted(path.name for path in tmp_path.glob("out/*.nii.gz")), sorted(planned.files.root.iterdir())))
        return prepare_case(planned)

    monkeypatch.setattr("drunet_cli.prepare.prepared_case.prepare_case", prepare)
    words = ["segment", str(tmp_path / "raw"), "-o", str(tmp_path / "out"), "--prepare", "--weights", str(GOLDEN_WEIGHTS)]
    assert drunet([*words, "--window", "auto", "--preview"]) == ExitCode.SOME_FAILED
    assert found == [([], []), (["p1.nii.gz"], []), (["p1.nii.gz"], [])]
    assert "p2_t1.nii: is empty" in capfd.readouterr().err
    sidecar = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert sidecar["prepared_from"]["record"] is None
    assert sidecar["inputs"]["t1"]["path"] == "p1_t1.nii.gz"
    assert set(sidecar["files"]) == {"p1_preview.png", "p1_prepared.png"}
    assert drunet(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html"), "--viewer"]) == 0
    assert "its prepared images were not kept; segment the scans again by segment --prepare" in capfd.readouterr().err


def test_segment_prepares_and_carries_labels_back(
    stripped: Stripped, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case, made, _ = stripped
    options = image_options(case.images)
    keep, out = str(tmp_path / "prepared"), tmp_path / "out"
    words = ["segment", *options, "-o", str(out), "--prepare", "--weights", str(GOLDEN_WEIGHTS), "--window", "auto"]
    assert drunet([*words, "--keep-prepared", keep, "--dry-run"]) == 0
    assert "prepare, segment" in capfd.readouterr().out
    raw = PreparedFiles(tmp_path / "prepared", NAME).images[Modality.T1]
    raw.parent.mkdir(parents=True)
    raw.write_text("somebody's")
    for more in (["--dry-run"], []):
        assert drunet([*words, "--keep-prepared", keep, *more]) == ExitCode.OUTPUT
        assert f"{raw}: exists already" in " ".join(capfd.readouterr().err.split())
    assert raw.read_text() == "somebody's"
    shutil.rmtree(keep)
    shutil.copytree(made.root, keep)
    record = PreparedFiles(Path(keep), NAME).record
    doubt = {"code": "doubtful-brain", "message": "a small brain"}
    record.write_text(json.dumps({**json.loads(record.read_text()), "warnings": [doubt]}))
    assert drunet([*words, "--keep-prepared", keep, "--in-space", "t2"]) == 0
    label_map, carried = load_volume(out / "p1.nii.gz"), load_volume(out / "p1_in_t2.nii.gz")
    assert np.array_equal(label_map.voxels, carried.voxels)
    assert np.array_equal(carried.affine, load_volume(case.images[Modality.T2]).affine)
    sidecar = json.loads((out / "p1.json").read_text())
    told = json.loads(record.read_text())
    assert sidecar["prepared_from"]["record"] == str(record)
    assert sidecar["prepared_from"]["inputs"]["t2"] == told["inputs"]["t2"]
    assert sidecar["prepared_from"]["transforms"] == told["transforms"]
    assert set(sidecar["files"]) == {"p1_in_t2.nii.gz"}
    assert doubt in sidecar["warnings"]
    capfd.readouterr()
    assert drunet([*words, "--skip-existing"]) == ExitCode.MISUSE
    assert "--skip-existing with --prepare needs --keep-prepared DIR" in capfd.readouterr().err
    assert drunet([*words, "--keep-prepared", keep, "--in-space", "t2", "--skip-existing"]) == 0
    assert "complete, left out" in capfd.readouterr().err
    words = ["segment", *options, "-o", str(tmp_path / "other"), "--in-space", "t1", "--weights", str(GOLDEN_WEIGHTS)]
    assert drunet([*words, "--window", "auto"]) == ExitCode.BAD_INPUT
    assert "is not a case that drunet prepare has made" in capfd.readouterr().err
