"""Small DICOM series, written as a scanner would write them, of a patient whose name may be seen nowhere."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE: Final = (16, 14, 12)  # columns, rows, slices
SPACING_MM: Final = (1.0, 1.5, 5.0)  # along a row, along a column, between slices
# Every text and date that names the patient; a file name and a comment too.
PATIENT: Final[Mapping[str, str]] = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "HOSP4711",
    "PatientBirthDate": "19640812",
    "AccessionNumber": "ACC99821",
    "StudyDate": "20210317",
    "SeriesDate": "20210317",
    "AcquisitionDate": "20210317",
    "AcquisitionTime": "101114.5",
    "ImageComments": "Erika at 56",
}
SECRETS: Final = ("mustermann", "erika", "hosp4711", "19640812", "acc99821", "20210317", "101114")

T1: Final[Mapping[str, Any]] = {"SeriesNumber": 3, "SeriesDescription": "AX T1", "EchoTime": 9, "RepetitionTime": 550}
T1CE: Final[Mapping[str, Any]] = {**T1, "SeriesNumber": 7, "ContrastBolusAgent": "Gadovist 7.5 ml"}
T2: Final[Mapping[str, Any]] = {"SeriesNumber": 4, "SeriesDescription": "T2 TSE", "EchoTime": 96, "RepetitionTime": 4800}
FLAIR: Final[Mapping[str, Any]] = {
    "SeriesNumber": 5,
    "SeriesDescription": "t2_tirm_tra_dark-fluid",
    "EchoTime": 90,
    "RepetitionTime": 9000,
    "InversionTime": 2500,
}


def voxels_of_series(seed: int = 0) -> Any:
    """Voxels [column, row, slice] of a series, uint16."""
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def write_series(
    folder: Path,
    tags: Mapping[str, Any] = T1,
    *,
    n_slices: int = SHAPE[2],
    leave_out: tuple[int, ...] = (),
    per_slice: Mapping[int, Mapping[str, Any]] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """A series of axial slices, a file each. leave_out: slices that are not written. per_slice: tags of some slices."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = 8, 10, 0
    voxels = voxels_of_series()[:, :, np.arange(n_slices) % SHAPE[2]]
    return write_volume(folder, tags, voxels, affine, leave_out=leave_out, per_slice=per_slice, syntax=syntax)


def write_volume(
    folder: Path,
    tags: Mapping[str, Any],
    voxels: Any,
    affine: Any,
    *,
    leave_out: tuple[int, ...] = (),
    per_slice: Mapping[int, Mapping[str, Any]] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """A series of these voxels [column, row, slice], which are cast to uint16. affine: to RAS mm."""
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    in_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = np.linalg.norm(in_lps[:3, :3], axis=0)
    directions = in_lps[:3, :3] / sizes
    columns, rows, n_slices = voxels.shape
    plain, tagged = _header(series, syntax), _tags(tags)
    plain.Rows, plain.Columns = rows, columns
    plain.PixelSpacing, plain.SliceThickness = _decimal(sizes[1::-1]), _decimal(sizes[2:])[0]
    plain.ImageOrientationPatient = _decimal(directions[:, :2].T)
    for z in range(n_slices):
        if z not in leave_out:
            header = copy.deepcopy(plain) if per_slice else plain
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
            header.InstanceNumber = z + 1
            header.ImagePositionPatient = _decimal(in_lps[:3, 2] * z + in_lps[:3, 3])
            pixels = voxels[:, :, z].T.astype("<u2").tobytes()
            header.PixelData = encapsulate([pixels]) if syntax.is_encapsulated else pixels
            header.update(tagged)
            header.update(_tags((per_slice or {}).get(z, {})))
            header.save_as(folder / f"Mustermann_{tags.get('SeriesNumber', 0)}_{z:03}.dcm", enforce_file_format=True)
    return folder


def _decimal(values: Any) -> list[float]:
    """As numbers of at most 16 characters, which DICOM asks for."""
    return [float(f"{value:.8g}") for value in np.ravel(values)]


def write_enhanced(folder: Path, tags: Mapping[str, Any] = T1) -> Path:
    """The same in one file of many frames, with times and places in functional groups."""
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(generate_uid(), ExplicitVRLittleEndian)
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = EnhancedMRImageStorage
    plain = dict(tags)
    echo, repetition = plain.pop("EchoTime"), plain.pop("RepetitionTime")
    if plain.pop("ContrastBolusAgent", None):
        header.ContrastBolusAgentSequence = Sequence([_tags({"CodeMeaning": "Gadolinium"})])
    header.update(_tags(plain))
    measures = _tags({"PixelSpacing": header.PixelSpacing, "SliceThickness": SPACING_MM[2]})
    for name in ("PixelSpacing", "SliceThickness", "ImageOrientationPatient"):
        del header[name]
    shared = {
        "PlaneOrientationSequence": [_tags({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]})],
        "PixelMeasuresSequence": [measures],
        "MREchoSequence": [_tags({"EffectiveEchoTime": echo})],
        "MRTimingAndRelatedParametersSequence": [_tags({"RepetitionTime": repetition})],
    }
    frames = [
        {
            "PlanePositionSequence": [_tags({"ImagePositionPatient": [-8, -10, SPACING_MM[2] * z]})],
            "FrameContentSequence": [
                _tags({"InStackPositionNumber": z + 1, "DimensionIndexValues": [1, z + 1], "StackID": "1"})
            ],
        }
        for z in range(SHAPE[2])
    ]
    header.NumberOfFrames = SHAPE[2]
    header.SharedFunctionalGroupsSequence = Sequence([_tags(shared)])
    header.PerFrameFunctionalGroupsSequence = Sequence([_tags(frame) for frame in frames])
    header.PixelData = voxels_of_series().transpose(2, 1, 0).tobytes()
    header.save_as(folder / "Mustermann.dcm", enforce_file_format=True)
    return folder


def number_of_study(folder: Path) -> dict[str, str]:
    """The tag that tells the study of a folder."""
    return {"StudyInstanceUID": generate_uid(entropy_srcs=[str(folder)])}


def write_study(folder: Path) -> Path:
    """The four scans that a case needs, and what else a study holds. Its number is told by the folder's path."""
    study = number_of_study(folder)
    for name, tags in {"Erika_a": T1, "b": T2, "c": FLAIR, "d": T1CE}.items():
        write_series(folder / name, {**tags, **study})
    localiser = {"SeriesNumber": 1, "SeriesDescription": "loc", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(folder / "scout", {**localiser, **study}, n_slices=3)
    return folder


def _header(series: str, syntax: UID) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    columns, rows, _ = SHAPE
    header.update(_tags(PATIENT))
    header.update(
        _tags(
            {
                "Modality": "MR",
                "Manufacturer": "SIEMENS",
                "StudyInstanceUID": "1.2.3",
                "SeriesInstanceUID": series,
                "FrameOfReferenceUID": "1.2.3.4",
                "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
                "ScanningSequence": "SE",
                "SequenceVariant": "SK",
                "MRAcquisitionType": "2D",
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "Rows": rows,
                "Columns": columns,
                "PixelSpacing": [SPACING_MM[1], SPACING_MM[0]],
                "SliceThickness": SPACING_MM[2],
                "SamplesPerPixel": 1,
                "PhotometricInterpretation": "MONOCHROME2",
                "BitsAllocated": 16,
                "BitsStored": 16,
                "HighBit": 15,
                "PixelRepresentation": 0,
            }
        )
    )
    return header


def _tags(values: Mapping[str, Any]) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset
