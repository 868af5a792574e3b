"""DICOM folders: what their series are taken for, what is refused, and that nothing in them names the patient outside."""

import logging
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import dcm2niix
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from drunet_cli.brats import Modality
from drunet_cli.errors import CaseError, DrunetError, ExitCode
from drunet_cli.prepare import dicom
from drunet_cli.prepare.dicom import dicom_folder, load_series, names_patient, scans_of_study, series_in, source_of, studies_in
from drunet_cli.prepare.series import silence_pydicom
from tests.prepare.dicom_files import (
    FLAIR,
    SECRETS,
    SHAPE,
    SPACING_MM,
    T1,
    T1CE,
    T2,
    number_of_study,
    voxels_of_series,
    write_enhanced,
    write_series,
    write_study,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that no test changes, beside an empty folder."""
    folder = tmp_path_factory.mktemp("dicom")
    (folder / "empty").mkdir()
    return write_study(folder / "study")


def refusal(scan: Path) -> DrunetError:
    with pytest.raises(DrunetError) as caught:
        load_series(scan)
    assert not told_secrets("\n".join([str(caught.value), *caught.value.details]))
    return caught.value


def told_secrets(text: str | bytes) -> list[str]:
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    return [secret for secret in SECRETS if secret in text.lower()]


@pytest.mark.parametrize("write", [write_series, write_enhanced, "compressed"])
def test_a_series_becomes_the_image_that_was_scanned(write: Callable[..., Path] | str, tmp_path: Path) -> None:
    folder = (write_series if isinstance(write, str) else write)(tmp_path / "scan", T1CE)
    if write == "compressed":
        for path in folder.iterdir():
            header = dcmread(path)
            header.compress(RLELossless)
            header.save_as(path)
    volume = load_series(folder)
    np.testing.assert_array_equal(volume.voxels, voxels_of_series()[:, ::-1, :])  # dcm2niix turns rows from back to front
    assert volume.axcodes == "LAS"
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    # The first voxel of the first DICOM slice, at (-8, -10, 0) in DICOM's L, P, S.
    assert volume.affine @ [0, SHAPE[1] - 1, 0, 1] == pytest.approx([8, 10, 0, 1])


def test_nothing_that_names_the_patient_is_left(tmp_path: Path) -> None:
    study = write_study(tmp_path / "Mustermann")
    for scan in scans_of_study(study).values():
        volume = load_series(scan)
        assert not told_secrets(f"{volume.path} {volume.source}")
        assert not told_secrets(volume.header.binaryblock)
        assert volume.source == source_of(scan)
    assert not told_secrets(repr(series_in(study)))


def test_studies_are_the_highest_folders_that_hold_no_other(tmp_path: Path) -> None:
    for path, study in {"p1/MR/a": "1", "p1/MR/b": "1", "p2/before": "2", "p2/after/a": "3"}.items():
        write_series(tmp_path / path, {**T1, "StudyInstanceUID": f"1.2.{study}"}, n_slices=2)
    assert studies_in(tmp_path) == [tmp_path / name for name in ("p1", "p2/after", "p2/before")]
    assert studies_in(tmp_path / "p1") == [tmp_path / "p1" / "MR"]
    for one_study in ("p1/MR", "p1/MR/a"):
        assert studies_in(tmp_path / one_study) == [tmp_path / one_study]


def test_the_four_scans_of_a_study_are_recognised(study: Path) -> None:
    numbers = {Modality.FLAIR: 5, Modality.T1CE: 7, Modality.T1: 3, Modality.T2: 4}
    assert scans_of_study(study) == {modality: Path(f"{study}:{number}") for modality, number in numbers.items()}


def test_a_study_that_leaves_a_choice_is_refused_with_a_table(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    number = number_of_study(study)
    write_series(study / "e", {**T1CE, **number, "SeriesNumber": 8, "SeriesDescription": "COR T1 of Mustermann"})
    write_series(study / "f", {**T2, **number, "SeriesDescription": "PD", "EchoTime": 20})  # also number 4, as the first echo
    for path in (study / "c").iterdir():
        path.unlink()
    with pytest.raises(CaseError) as caught:
        scans_of_study(study)
    assert str(caught.value) == (
        f"{study}: no DICOM series is recognised as FLAIR, and several series may be T1ce; "
        "name each by --t1 FOLDER:NUMBER and so on, with numbers of the table"
    )
    table = [line.split() for line in caught.value.details]
    assert [row[0] for row in table] == ["series", "1", "3", "4a", "4b", "7", "8"]
    assert [" ".join(row[-2:]) for row in table[1:]] == ["a localiser", "- T1", "- ?", "- T2", "yes T1ce", "yes T1ce"]
    assert not told_secrets("\n".join(caught.value.details))
    assert max(map(len, caught.value.details)) < 80
    assert load_series(study.with_name("study:4b")).shape == SHAPE


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (T1, Modality.T1),
        (T1CE, Modality.T1CE),
        (T2, Modality.T2),
        (FLAIR, Modality.FLAIR),
        ({**T1, "SeriesDescription": "AX T1 +C"}, Modality.T1CE),
        ({**T1CE, "SeriesDescription": "AX T1 PRE"}, Modality.T1),  # the agent was entered for the whole examination
        ({**T1CE, "SeriesDescription": "T1 W/O CONTRAST"}, Modality.T1),
        ({**T1, "ContrastBolusAgent": "NONE"}, Modality.T1),
        ({**T2, "ContrastBolusAgent": "Gd"}, Modality.T2),
        ({**FLAIR, "SeriesDescription": "FLAIR T2 AX"}, Modality.FLAIR),
        ({**T1, "SeriesDescription": "Ax T1 FLAIR", "RepetitionTime": 2500, "InversionTime": 860}, Modality.T1),
        ({**T1, "SeriesDescription": "MPRAGE", "EchoTime": 3, "RepetitionTime": 1900, "InversionTime": 900}, Modality.T1),
        ({**FLAIR, "SeriesDescription": ""}, Modality.FLAIR),  # by its times alone
        ({**T2, "SeriesDescription": "Hirn tra"}, Modality.T2),
        ({"SeriesNumber": 1, "SeriesDescription": "T2 FLAIR"}, Modality.FLAIR),  # by its description alone
        ({**T2, "SeriesDescription": "t2_fl2d_tra_hemo", "EchoTime": 22, "RepetitionTime": 800}, None),
        ({**T2, "SeriesDescription": "PD", "EchoTime": 20}, None),
        ({**T1, "SeriesDescription": "TOF 3D"}, None),
        ({**T2, "SeriesDescription": "T1"}, None),  # times and description disagree
    ],
)
def test_headers_tell_the_modality(tags: Mapping[str, Any], expected: Modality | None, tmp_path: Path) -> None:
    [series] = series_in(write_series(tmp_path / "scan", tags))
    assert series.modality == expected
    assert not series.flaw


FLAWS: Final[dict[str, tuple[Mapping[str, Any], str]]] = {
    "localiser": ({"per_slice": {3: {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}}}, "series 4 is a localiser"),
    "diffusion": ({"per_slice": {3: {"DiffusionBValue": 1000.0}}}, "series 4 is of diffusion"),
    "4D": (
        {"per_slice": {z: {"ImagePositionPatient": [-8, -10, 5 * (z // 2)]} for z in range(12)}},
        "series 4 is 4D: 12 slices at 6",
    ),
    "gap": ({"leave_out": (4, 5)}, "series 4 lacks 2 slices between others; export or download it again"),
    "few slices": ({"n_slices": 4}, "series 4 has only 4 slices"),
    "screenshot": ({"tags": {**T2, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}}, "series 4 is a secondary capture"),
    "CT": ({"tags": {**T2, "Modality": "CT"}}, "series 4 is CT, not MR"),
    "projection": ({"tags": {**T2, "ImageType": ["DERIVED", "SECONDARY", "MIP"]}}, "series 4 is a projection"),
    "compression": ({"syntax": DeflatedExplicitVRLittleEndian}, "export the series uncompressed"),
}


@pytest.mark.parametrize("fault", FLAWS)
def test_what_is_no_scan_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    how, expected = FLAWS[fault]
    folder = write_series(tmp_path / "scan", **{"tags": T2, **how})
    error = refusal(folder)
    assert error.exit_code == ExitCode.BAD_INPUT
    assert str(error).startswith(f"{folder}: ")
    assert expected in str(error)


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (152, "1 DICOM file cannot be read; copy or download the folder again"),
        (300, "1 DICOM file cannot be read; copy or download the folder again"),
        (-40, "dcm2niix could not convert it (exit code 1)"),
    ],
)
def test_a_damaged_file_fails_its_folder(n_bytes: int, expected: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan")
    last = max(folder.iterdir())
    last.write_bytes(last.read_bytes()[:n_bytes])
    assert expected in str(refusal(folder))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("study", "holds 5 DICOM series; name the one that is meant"),
        ("study:99", "holds no DICOM series 99; give a number of the table"),
        ("study:1", "series 1 is a localiser; give another series, or NIfTI"),
        ("empty", "holds no DICOM image; give the folder of a series, or NIfTI"),
        ("absent", "cannot be read: No such file or directory"),
    ],
)
def test_a_name_that_stands_for_no_scan_is_refused(name: str, expected: str, study: Path) -> None:
    error = refusal(study.parent / name)
    assert expected in str(error)
    assert bool(error.details) == ("table" in expected or "name the one" in expected)


def test_a_folder_with_a_colon_in_its_name_is_that_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "p")
    folder = write_series(tmp_path / "p:4", T1)
    assert [series.number for series in series_in(folder)] == ["3"]
    assert load_series(folder).shape == SHAPE


def test_dicom_is_told_by_content(tmp_path: Path) -> None:
    for folder in ("scan", "others"):
        (tmp_path / folder / "below").mkdir(parents=True)
    (tmp_path / "others" / "below" / "1.dcm").write_bytes(b"no DICOM" * 40)
    write_series(tmp_path / "scan" / "below")
    paths = ("scan", "scan:3", "others", "absent", "others:3")
    assert [dicom_folder(tmp_path / name) for name in paths] == [tmp_path / "scan", tmp_path / "scan", None, None, None]


@pytest.mark.parametrize(
    ("name", "removed", "expected"),
    [
        ("Mustermann_1", "NO", True),
        ("erika", "NO", True),
        ("HOSP-4711", "NO", True),
        ("2021-03-17", "NO", True),
        ("03-17-2021-MR BRAIN", "NO", True),
        ("patient_7", "NO", False),
        ("HOSP-4711", "YES", False),  # a pseudonym then, as in public collections
    ],
)
def test_a_name_that_names_the_patient_is_known(name: str, removed: str, expected: bool, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", {**T1, "PatientIdentityRemoved": removed}, n_slices=1)
    assert names_patient(name, folder) is expected


def stand_in(folder: Path, script: str) -> Path:
    """A program in place of dcm2niix."""
    path = folder / "dcm2niix"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "expected", "code"),
    [
        ("exit 3", "could not convert it (exit code 3)", ExitCode.BAD_INPUT),
        ("exit 0", "could not convert it (exit code 0)", ExitCode.BAD_INPUT),
        ("exec sleep 60", "has not converted it", ExitCode.BAD_INPUT),
        ('touch "${12}/scan.nii" "${12}/scan_e2.nii"', "makes 2 images of it", ExitCode.BAD_INPUT),
        ('echo junk > "${12}/scan.nii"', "as NIfTI it is not a NIfTI file", ExitCode.BAD_INPUT),
        (None, "cannot be run", ExitCode.MISUSE),
    ],
)
def test_a_program_that_fails_is_one_line(
    script: str | None, expected: str, code: ExitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "absent" if script is None else stand_in(tmp_path, script)
    monkeypatch.setattr(dcm2niix, "bin", str(program))
    monkeypatch.setattr(dicom, "_PATIENCE_S", 0.1 if script == "exec sleep 60" else 60)
    error = refusal(write_series(tmp_path / "scan"))
    assert expected in str(error)
    assert error.exit_code == code


def test_without_its_package_a_program_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = stand_in(tmp_path, f'exec "{dcm2niix.bin}" "$@"')
    monkeypatch.setitem(__import__("sys").modules, "dcm2niix", None)
    folder = write_series(tmp_path / "scan")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    error = refusal(folder)
    assert "not installed; run: pip install" in str(error)
    assert error.exit_code == ExitCode.MISUSE
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    assert load_series(folder).shape == SHAPE


def test_only_while_dicom_is_read_its_libraries_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("highdicom.seg")
    with silence_pydicom():
        logger.error("Mustermann^Erika")
    assert caplog.text == ""
    logger.error("of another program")
    assert "of another program" in caplog.text
