"""DICOM on the command line: folders of studies and of series in place of cases and files."""

from pathlib import Path

import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.cases import case_of_files, cohort_of
from drunet_cli.errors import CaseError
from drunet_cli.io.case import BrokenCase
from drunet_cli.phantom.scanner import write_phantom
from tests.phantom.test_phantom import small
from tests.prepare.dicom_files import FLAIR, T1, T1CE, T2, write_series, write_study


def test_folders_of_studies_are_a_cohort_beside_nifti(tmp_path: Path) -> None:
    write_study(tmp_path / "in" / "p1" / "MR")
    write_study(tmp_path / "in" / "p2")
    write_series(tmp_path / "in" / "p3")
    write_phantom(small(0), tmp_path / "others", "p4")
    cohort = cohort_of([str(tmp_path / name) for name in ("in", "others")], dicom=True)
    assert [case.name for case in cohort.cases] == ["p1", "p2", "p4"]
    assert cohort.cases[0].images[Modality.T1CE] == tmp_path / "in" / "p1:7"
    [broken] = cohort.broken
    assert broken.name == "p3"
    assert "no DICOM series is recognised as FLAIR or T1ce or T2" in str(broken.error)
    assert not cohort.alone
    assert cohort_of([str(tmp_path / "in" / "p2")], dicom=True).alone
    without = cohort_of([str(tmp_path / "in")])
    assert [type(case) for case in without.broken] == [BrokenCase]
    assert without.cases == ()


def test_studies_of_one_name_are_told_apart_in_a_table(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_study(tmp_path / patient / "MR")
    sources = [str(tmp_path / patient / "MR") for patient in ("p1", "p2")]
    cohort = cohort_of(sources, dicom=True)
    assert [case.name for case in cohort.cases] == ["MR"]
    assert "name them apart in a table" in str(cohort.broken[0].error)
    rows = [f"{patient},{','.join(f'{patient}/MR:{n}' for n in (3, 7, 4, 5))}" for patient in ("p1", "p2")]
    (tmp_path / "cases.csv").write_text("\n".join(["case,t1,t1ce,t2,flair", *rows]))
    cohort = cohort_of([str(tmp_path / "cases.csv")], dicom=True)
    assert [case.name for case in cohort.cases] == ["p1", "p2"]
    assert cohort.cases[1].images[Modality.FLAIR] == tmp_path / "p2" / "MR:5"
    assert "is a folder" not in str(cohort.broken)


def test_options_take_series_and_files(tmp_path: Path) -> None:
    study = write_study(tmp_path / "p1")
    numbers = {Modality.T1: 3, Modality.T1CE: 7, Modality.T2: 4, Modality.FLAIR: 5}
    named = {modality: Path(f"{study}:{number}") for modality, number in numbers.items()}
    assert case_of_files(named, name=None, dicom=True).name == "p1"
    folders = {
        modality: write_series(tmp_path / "p5" / modality, tags)
        for modality, tags in {Modality.T1: T1, Modality.T1CE: T1CE, Modality.T2: T2, Modality.FLAIR: FLAIR}.items()
    }
    assert case_of_files(folders, name=None, dicom=True).name == "p5"
    images = write_phantom(small(0), tmp_path, "p4").images
    assert case_of_files({**images, Modality.T1: folders[Modality.T1]}, name="mixed", dicom=True).images.keys() == {*CHANNELS}
    with pytest.raises(CaseError, match="given as T1ce and as T1; give each its own series"):
        case_of_files({**named, Modality.T1: named[Modality.T1CE]}, name=None, dicom=True)
    with pytest.raises(CaseError, match="no such file"):
        case_of_files(named, name=None)
