"""DICOM on the command line: folders of studies and of series in place of cases and files."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main as drunet
from drunet_cli.cli.cases import case_of_files, cohort_of, raw_cohort_of
from drunet_cli.errors import CaseError, ExitCode
from drunet_cli.io.nifti import load_volume
from drunet_cli.phantom.scanner import write_phantom
from tests.phantom.test_phantom import small
from tests.prepare.dicom_files import (
    FLAIR,
    PATIENT,
    SECRETS,
    T1,
    T1CE,
    T2,
    number_of_study,
    write_series,
    write_study,
    write_volume,
)
from tests.prepare.simulated import Acquisition, head_of_phantom, movement, scan_of
from tests.support import GOLDEN_WEIGHTS, open_to_all, stdin_of, unprivileged

TAGS: Final = {Modality.T1: T1, Modality.T1CE: T1CE, Modality.T2: T2, Modality.FLAIR: FLAIR}
NUMBERS: Final = {modality: tags["SeriesNumber"] for modality, tags in TAGS.items()}


def series_options(study: Path) -> list[str]:
    return [word for modality, number in NUMBERS.items() for word in (f"--{modality}", f"{study}:{number}")]


def write_stripped(study: Path) -> None:
    """Four skull-stripped images of a phantom as DICOM series, which are prepared soon."""
    for modality, path in write_phantom(small(0), study.parent, "phantom").images.items():
        image = load_volume(path)
        write_volume(study / f"Mustermann_{modality}", {**TAGS[modality], **number_of_study(study)}, image.voxels, image.affine)


@pytest.mark.slow
def test_folders_of_studies_are_a_cohort_beside_nifti(tmp_path: Path) -> None:
    write_study(tmp_path / "in" / "p1" / "MR")
    write_study(tmp_path / "in" / "p2")
    write_series(tmp_path / "in" / "p3")
    write_phantom(small(0), tmp_path / "in", "p4")
    write_study(tmp_path / "in" / "Mustermann")
    for visit in ("before", "after"):
        write_study(tmp_path / "in" / "HOSP4711" / visit)
    cohort = raw_cohort_of([str(tmp_path / "in")])
    assert [case.name for case in cohort.cases] == ["p1", "p2", "p4"]
    assert cohort.cases[0].images[Modality.T1CE] == tmp_path / "in" / "p1:7"
    assert len(cohort.broken) == 4
    assert "p3: no DICOM series is recognised as FLAIR or T1ce or T2" in str(cohort.broken[-1].error)
    said = " ".join([*cohort.notes, *(f"{case.name} {case.error}" for case in cohort.broken)])
    assert "its folder names the patient" in said
    assert not any(secret in said.replace(str(tmp_path), "").lower() for secret in SECRETS)
    assert [case.name for case in cohort_of([str(tmp_path / "in")]).cases] == ["p4"]


def test_the_folder_of_a_study_that_cannot_be_read_is_not_named(tmp_path: Path) -> None:
    write_study(tmp_path / "in" / "p1")
    write_study(tmp_path / "in" / "Mustermann_Erika")
    damaged = max(path for path in (tmp_path / "in" / "Mustermann_Erika").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:300])
    cohort = raw_cohort_of([str(tmp_path / "in")])
    assert [case.name for case in cohort.cases] == ["p1"]
    (broken,) = cohort.broken
    assert "cannot be read" in str(broken.error)
    assert "mustermann" not in f"{broken.name} {broken.error} {broken.error.details} {cohort.notes}".lower()


@pytest.mark.parametrize("nifti", [[], ["p2"]])
def test_a_study_is_alone_only_where_nothing_is_beside_it(
    nifti: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "in" / "p1")
    for name in nifti:
        write_phantom(small(0), tmp_path / "in", name)
    cohort = raw_cohort_of([str(tmp_path / "in")])
    assert [case.name for case in cohort.cases] == ["p1", *nifti]
    assert cohort.alone is (not nifti)
    monkeypatch.setattr("sys.stdin", stdin_of(f"{tmp_path / 'in'}\n"))
    assert not raw_cohort_of(["-"]).alone


def test_a_folder_that_cannot_be_read_fails_beside_the_others(tmp_path: Path) -> None:
    write_study(tmp_path / "in" / "p1")
    write_phantom(small(0), tmp_path / "mixed", "p2")
    inside, beside, named = tmp_path / "in" / "shut", tmp_path / "mixed" / "shut", tmp_path / "named"
    for folder in (inside, beside, named):
        write_study(folder)
    write_study(tmp_path / "in" / "p3")
    part = next(path for path in (tmp_path / "in" / "p3").iterdir() if path.is_dir())
    open_to_all(tmp_path)
    for folder in (inside, beside, named, part):
        folder.chmod(0o000)
    with unprivileged():
        cohort = raw_cohort_of([str(tmp_path / name) for name in ("mixed", "in", "named")])
    assert [case.name for case in cohort.cases] == ["p1", "p2"]
    shut, lacking = (beside, inside, named, part), f"{tmp_path / 'in'}, study 2"  # whose folder might name the patient
    assert {str(case.error).partition(";")[0] for case in cohort.broken} == {
        *(f"{folder}: cannot be read: Permission denied" for folder in shut),
        f"{lacking}: a folder in it cannot be read: Permission denied",
    }


def test_tables_and_options_name_series(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_study(tmp_path / patient / "MR")
    cohort = raw_cohort_of([str(tmp_path / patient / "MR") for patient in ("p1", "p2")])
    assert cohort.cases == ()
    assert "MR: is the name of several cases; name them apart in a table" in str(cohort.broken[0].error)
    rows = [",".join([patient, *(f"{patient}/MR:{NUMBERS[modality]}" for modality in TAGS)]) for patient in ("p1", "p2")]
    (tmp_path / "cases.csv").write_text("\n".join(["case,t1,t1ce,t2,flair", *rows]))
    cohort = raw_cohort_of([str(tmp_path / "cases.csv")])
    assert [case.name for case in cohort.cases] == ["p1", "p2"]
    assert cohort.cases[1].images[Modality.FLAIR] == tmp_path / "p2" / "MR:5"

    named = {modality: Path(f"{tmp_path}/p1/MR:{number}") for modality, number in NUMBERS.items()}
    assert case_of_files(named, name=None, raw=True).name == "MR"
    folders = {modality: write_series(tmp_path / "p5" / modality, tags) for modality, tags in TAGS.items()}
    assert case_of_files(folders, name=None, raw=True).name == "p5"
    images = write_phantom(small(0), tmp_path, "p4").images
    assert case_of_files({**images, Modality.T1: folders[Modality.T1]}, name="mixed", raw=True).name == "mixed"
    with pytest.raises(CaseError, match="given as T1ce and as T1; give each its own series"):
        case_of_files({**named, Modality.T1: named[Modality.T1CE]}, name=None, raw=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match=r"empty: is a folder, not a NIfTI file \(given as T1\)"):
        case_of_files({**named, Modality.T1: tmp_path / "empty"}, name=None, raw=True)


@pytest.mark.slow
def test_a_study_is_prepared_and_nothing_names_the_patient(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = head_of_phantom()
    study = tmp_path / "patient 7"
    for seed, (modality, tags) in enumerate(TAGS.items()):
        how = Acquisition(axcodes=("LPS", "RAS", "PSL", "LAI")[seed], spacing_mm=3, slice_mm=6, seed=seed)
        scan = scan_of(head, modality, how, movement(head, np.random.default_rng(seed), degrees=8, mm=8))
        write_volume(study / f"Mustermann_{modality}", {**tags, **number_of_study(study)}, scan.voxels, scan.affine)
    out = tmp_path / "out"
    words = ["--brain", "none", "--atlas", "none", "--preview"]
    assert drunet(["prepare", str(study), "-o", str(out), *words, "--json"]) == ExitCode.DONE
    told = capfd.readouterr()
    record = json.loads(told.out)
    assert record["case"] == "patient 7"
    assert record["inputs"]["t1ce"]["path"] == "DICOM series 7"
    written = {path.name: path for path in (out / "patient 7").iterdir()}
    texts = [told.out, told.err, *written, *(path.read_bytes().decode("latin-1") for path in written.values())]
    texts += [load_volume(path).header.binaryblock.decode("latin-1") for name, path in written.items() if name.endswith(".gz")]
    assert [secret for secret in SECRETS for text in texts if secret in text.lower()] == []
    assert {f"patient 7_{modality}.nii.gz" for modality in CHANNELS} <= written.keys()

    again = ["prepare", *series_options(study), "--case", "patient 7", "-o", str(out), *words]
    assert drunet([*again, "--skip-existing"]) == ExitCode.DONE
    assert "complete, left out" in capfd.readouterr().err
    max((study / "Mustermann_t2").iterdir()).unlink()
    assert drunet([*again, "--skip-existing"]) == ExitCode.OUTPUT
    assert "was prepared of another file than" in capfd.readouterr().err


def test_a_name_that_names_the_patient_fails_the_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study")
    code = drunet(["prepare", *series_options(study), "--case", "Mustermann", "-o", str(tmp_path / "out")])
    assert code == ExitCode.BAD_INPUT
    assert "its name holds the patient's name or number, or a date; give another by --case" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_that_leaves_a_choice_prints_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study")
    write_series(study / "e", {**T1CE, **number_of_study(study), "SeriesNumber": 8})
    assert drunet(["prepare", str(study), "-o", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    told = capfd.readouterr().err.splitlines()
    assert "several series may be T1ce; name each by --t1 FOLDER:NUMBER and so on, with numbers of the table" in told[0]
    assert told[-1].split()[0] == "8"
    assert told[-1].endswith("yes    T1ce")


@pytest.mark.slow
def test_a_segmented_study_has_a_segmentation_object_beside_its_label_map(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    from pydicom import dcmread

    write_stripped(tmp_path / "in" / "p7")
    out, kept = tmp_path / "out", str(tmp_path / "kept")
    words = ["segment", str(tmp_path / "in"), "-o", str(out), "--prepare", "--keep-prepared", kept, "--dicom-seg"]
    words += ["--in-space", "t1ce", "--in-space", "flair", "--weights", str(GOLDEN_WEIGHTS), "--window", "auto"]
    assert drunet([*words, "--dry-run"]) == ExitCode.SOME_FAILED
    assert "prepare, segment" in capfd.readouterr().out
    assert not out.exists()
    assert drunet([*words, "--json"]) == ExitCode.SOME_FAILED
    told = capfd.readouterr()
    assert "phantom: has no DICOM series of T1ce and FLAIR" in told.err
    assert "Warning: p7: the brain has " in told.err
    document = {each["case"]: each for each in map(json.loads, told.out.splitlines())}["p7"]
    names = {f"p7_in_{modality}.{ending}" for modality in ("t1ce", "flair") for ending in ("nii.gz", "dcm")}
    assert document["files"].keys() == names
    for modality in ("t1ce", "flair"):
        segmentation = dcmread(out / f"p7_in_{modality}.dcm")
        assert segmentation.PatientID == PATIENT["PatientID"]
        assert segmentation.SeriesNumber == 100 * NUMBERS[Modality(modality)] + 1
        carried = load_volume(out / f"p7_in_{modality}.nii.gz").voxels
        assert np.count_nonzero(segmentation.pixel_array) == np.count_nonzero(carried)
    texts = [told.err, told.out, *(path.read_bytes().decode("latin-1") for path in out.iterdir() if path.suffix != ".dcm")]
    assert [secret for secret in SECRETS for text in texts if secret in text.lower()] == []

    written = (out / "p7_in_t1ce.dcm").read_bytes()
    assert drunet([*words, "--skip-existing"]) == ExitCode.SOME_FAILED
    assert (out / "p7_in_t1ce.dcm").read_bytes() == written
    (out / "p7_in_flair.dcm").unlink()
    assert drunet([*words, "--skip-existing"]) == ExitCode.SOME_FAILED
    assert (out / "p7_in_flair.dcm").exists()


def test_segmentation_objects_need_raw_scans_from_dicom(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_phantom(small(0), tmp_path, "p4").images
    words = ["segment", *(word for modality, path in images.items() for word in (f"--{modality}", str(path)))]
    words += ["-o", str(tmp_path / "out"), "--dicom-seg"]
    assert drunet(words) == ExitCode.MISUSE
    assert "--dicom-seg refers to the DICOM series of raw scans; give these with --prepare" in capfd.readouterr().err
    monkeypatch.setattr("drunet_cli.host.missing_packages", lambda names: [name for name in names if name == "highdicom"])
    assert drunet([*words, "--prepare"]) == ExitCode.MISUSE
    assert "highdicom not installed; run: pip install highdicom" in capfd.readouterr().err
    monkeypatch.setattr("drunet_cli.host.missing_packages", lambda names: [])
    for dry_run in ([], ["--dry-run"]):
        monkeypatch.setitem(sys.modules, "highdicom", None)  # so that it cannot be imported
        assert drunet([*words, "--prepare", *dry_run]) == ExitCode.MISUSE
        assert "highdicom cannot be imported" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "highdicom", ModuleType("highdicom"))
    assert drunet([*words, "--prepare"]) == ExitCode.BAD_INPUT
    assert "p4: has no DICOM series of T1ce, to which --dicom-seg refers; give one, or leave" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
