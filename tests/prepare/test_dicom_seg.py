"""A DICOM segmentation object has the labels where they lie in the patient, and says what they are."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drunet_cli.brats import CLASS_COLOURS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import Header, Volume
from drunet_cli.prepare.dicom import load_series
from drunet_cli.prepare.dicom_seg import encode_segmentation, series_of_space
from drunet_cli.prepare.record import NativeSpace
from tests.prepare.dicom_files import PATIENT, T1CE, voxels_of_series, write_enhanced, write_series, write_volume

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

WEIGHTS: Final = [("compact", "0123456789abcdef" * 4)]
# Directions of a row, of a column and of the slices, in RAS.
AXES: Final = {
    "axial": np.diag([-1, -1, 1]),
    "axial, from the top down": np.diag([-1, -1, -1]),
    "axial, from behind": np.diag([1, 1, 1]),
    "sagittal": np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]]),
    "sagittal, from left to right": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "coronal, rows upwards": np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]]),
}
OBLIQUE: Final = Rotation.from_euler("xyz", (12, -20, 33), degrees=True).as_matrix()


def space_of(volume: Volume) -> NativeSpace:
    i, j, k = volume.shape
    return NativeSpace(Modality.T1CE, "DICOM series 7", Header(), (i, j, k), volume.affine, np.eye(4))


def encoded(folder: Path, *, empty: bool = False) -> tuple[Volume, Any, Any]:
    """A series as NIfTI, random labels on its grid, and the segmentation object of these."""
    volume = load_series(folder)
    labels = np.random.default_rng(3).integers(0, 4, volume.shape).astype(np.uint8)
    labels[:, :, 4:6] = 0  # frames that are left out
    if empty:
        labels[:] = 0
    content = encode_segmentation(labels, series_of_space(folder, space_of(volume)), weights=WEIGHTS)
    return volume, labels, pydicom.dcmread(io.BytesIO(content))


def labels_in_patient(segmentation: Any, affine: Any, shape: tuple[int, ...]) -> Any:
    """The segments at the voxels of a grid, by what the object says of the place of each frame."""
    found = np.zeros(shape, dtype=np.uint8)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = np.nonzero(frame)
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        lps = place + np.outer(columns * column_mm, orientation[0]) + np.outer(rows * row_mm, orientation[1])
        ras = np.c_[lps * (-1, -1, 1), np.ones(len(lps))]
        voxels = (ras @ np.linalg.inv(affine).T)[:, :3]
        assert np.abs(voxels - np.rint(voxels)).max(initial=0) < 0.01  # of a voxel: rounding of the numbers in the headers
        where = tuple(np.rint(voxels).astype(int).T)
        assert not found[where].any()
        found[where] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


@pytest.mark.parametrize("turn", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_labels_lie_in_the_patient_where_those_of_nifti_do(axes: Any, turn: Any, tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * (1.0, 1.5, 5.0)
    affine[:3, 3] = 8, -10, 30
    folder = write_volume(tmp_path / "series", T1CE, voxels_of_series(), affine)
    volume, labels, segmentation = encoded(folder)
    assert np.array_equal(labels_in_patient(segmentation, volume.affine, volume.shape), labels)
    # The frames are those of the series, in place and in size, so that a viewer lays them over one another without a doubt.
    files = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, folder.iterdir())}
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        source = files[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert groups.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    assert segmentation.NumberOfFrames == 3 * (len(files) - 2)
    read = hd.seg.Segmentation.from_dataset(segmentation)
    frames = read.get_pixels_by_source_instance(sorted(files), combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.count_nonzero(frames) == np.count_nonzero(labels)


def test_the_frames_of_one_file_are_found(tmp_path: Path) -> None:
    volume, labels, segmentation = encoded(write_enhanced(tmp_path / "series", T1CE))
    assert np.array_equal(labels_in_patient(segmentation, volume.affine, volume.shape), labels)


def test_a_case_without_tumour_has_empty_frames(tmp_path: Path) -> None:
    volume, _, segmentation = encoded(write_series(tmp_path / "series", T1CE), empty=True)
    assert segmentation.NumberOfFrames == 3 * volume.shape[2]
    assert not segmentation.pixel_array.any()
    assert len(segmentation.SegmentSequence) == 3


def test_segments_say_what_they_are_and_whose(tmp_path: Path) -> None:
    tags = {"PatientIdentityRemoved": "YES", "DeidentificationMethod": "by hand", "PatientSex": "X"}
    tags |= {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"}
    _, _, segmentation = encoded(write_series(tmp_path / "series", {**T1CE, **tags}))
    assert {name: str(segmentation[name].value) for name in ("PatientID", "PatientBirthDate", "AccessionNumber")} == {
        name: PATIENT[name] for name in ("PatientID", "PatientBirthDate", "AccessionNumber")
    }
    assert str(segmentation.PatientName) == "Müller^Jörg"
    assert (segmentation.PatientIdentityRemoved, segmentation.DeidentificationMethod) == ("YES", "by hand")
    assert (segmentation.PatientSex, segmentation.StudyID) == ("", "")
    assert (segmentation.Modality, segmentation.SegmentationType, segmentation.SeriesNumber) == ("SEG", "BINARY", 701)
    assert "ImageComments" not in segmentation
    codes = pydicom.sr.codedict.codes
    types = (codes.cid7169.NonEnhancingLesion, codes.cid7169.Edema, codes.cid7169.EnhancingLesion)
    for segment, tumour_class, kind in zip(segmentation.SegmentSequence, CLASS_COLOURS, types, strict=True):
        described = hd.seg.SegmentDescription.from_dataset(segment)
        assert described.segment_number == tumour_class
        assert described.segmented_property_type == kind
        assert described.segmented_property_category == codes.cid7150.MorphologicallyAbnormalStructure
        assert described.algorithm_type is hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        (algorithm,) = described.algorithm_identification
        assert (algorithm.AlgorithmName, algorithm.AlgorithmFamilyCodeSequence[0].CodeValue) == ("drunet DR-Unet104", "123110")
        assert algorithm.AlgorithmParameters == "weights=compact 0123456789ab"
        shown = hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        assert np.allclose(shown.to_rgb(), CLASS_COLOURS[tumour_class], atol=1)  # rounding


@pytest.mark.filterwarnings("ignore:Invalid value")  # as the file is written
@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"FrameOfReferenceUID": ""}, "lack the FrameOfReferenceUID; export the series again, or leave --dicom-seg out"),
        ({"PatientBirthDate": "ERIKA"}, "break the standard; export the series again, or leave --dicom-seg out"),
    ],
)
def test_headers_that_do_not_suffice_fail_without_their_values(tags: Mapping[str, str], says: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", {**T1CE, **tags})
    with pytest.raises(CaseError, match=says) as caught:
        encoded(folder)
    assert "erika" not in str(caught.value).lower()


def test_another_series_than_the_prepared_one_is_told(tmp_path: Path) -> None:
    volume = load_series(write_series(tmp_path / "series", T1CE))
    other = write_series(tmp_path / "other", T1CE, n_slices=11)
    with pytest.raises(CaseError, match="do not lie where the voxels of DICOM series 7 do"):
        series_of_space(other, space_of(volume))
