"""DICOM segmentation objects: the labels of a case on the frames of the series that a raw scan was made of.

highdicom writes the object. Its patient and study are those of the series, as the standard asks; nothing of them goes anywhere
else.
"""

import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import drunet_cli
from drunet_cli.brats import CLASS_COLOURS, ClassMap, Modality, TumourClass
from drunet_cli.errors import CaseError
from drunet_cli.host import check_installed
from drunet_cli.io.case import BrokenCase, Case
from drunet_cli.io.discovery import Cohort
from drunet_cli.io.geometry import Affine
from drunet_cli.prepare.dicom import chosen_series, dicom_folder
from drunet_cli.prepare.record import NativeSpace
from drunet_cli.prepare.series import GROUPS, header_errors, silence_pydicom

# (value, coding scheme, meaning), as pydicom's dictionary has them. The types are those of context group 7169 of the standard
# (PS3.16, "Brain Lesion Segmentation Type Without Necrosis"): BraTS does not tell necrosis from what else does not enhance. The
# group takes the two lesions from the NCI Thesaurus.
_CATEGORY: Final = ("49755003", "SCT", "Morphologically Abnormal Structure")
_BRAIN: Final = ("12738006", "SCT", "Brain")
_ARTIFICIAL_INTELLIGENCE: Final = ("123110", "DCM", "Artificial Intelligence")
_TYPES: Final = {
    TumourClass.NCR: ("Necrotic and non-enhancing core", ("C81175", "NCIt", "Non-Enhancing Lesion")),
    TumourClass.ED: ("Oedema", ("79654002", "SCT", "Edema")),
    TumourClass.ET: ("Enhancing tumour", ("C113842", "NCIt", "Enhancing Lesion")),
}
_PRODUCER: Final = "drunet"
_ALGORITHM: Final = "DR-Unet104"
_DESCRIPTION: Final = "Research software, not a medical device"  # at most 64 characters
_LONGEST: Final = 64
# The standard asks for these, and lets them be empty.
_MAY_BE_EMPTY: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_SEXES: Final = ("M", "F", "O")
_SERIES_NUMBERS: Final = 100  # the series that are made of series 7 begin with 701, far from those of a scanner
_FARTHEST: Final = 0.25  # voxels; below a half, no frame is taken for its neighbour, though slices lie a little unevenly
_AWAY: Final = "leave --dicom-seg out"


@dataclass(frozen=True)
class SegmentedSeries:
    """The series that a segmentation object refers to.

    headers: of its files. steps: [F, 3, 3], the voxel of the raw scan's grid that is the first pixel of each frame, and the
    voxels by which a column and a row lead on. size: rows and columns of a frame.
    """

    scan: Path
    headers: Sequence[Any] = field(repr=False)
    steps: npt.NDArray[np.int64] = field(repr=False)
    size: tuple[int, int]


def check_highdicom() -> None:
    """Raise MisuseError where a segmentation object cannot be written, and ImportError for a highdicom that is broken."""
    check_installed(["highdicom", "pydicom"], needed_by="--dicom-seg")
    with silence_pydicom():
        import highdicom  # noqa: F401  # before a network has computed for minutes


def check_from_dicom(case: Case, modalities: Collection[Modality]) -> None:
    """Raise CaseError for raw scans that are no DICOM series."""
    if others := [modality for modality in modalities if dicom_folder(case.images[modality]) is None]:
        words = " and ".join(modality.display for modality in others)
        raise CaseError(f"{case.name}: has no DICOM series of {words}, to which --dicom-seg refers; give one, or {_AWAY}")


def cohort_from_dicom(raw: Cohort, modalities: Collection[Modality]) -> Cohort:
    """The cohort in which the cases that are not from DICOM are broken. Raises the error of a case that was given alone.

    Raises MisuseError where highdicom is not installed.
    """
    check_highdicom()
    cases, broken = [], []
    for case in raw.cases:
        try:
            check_from_dicom(case, modalities)
            cases.append(case)
        except CaseError as error:
            if raw.alone:
                raise
            broken.append(BrokenCase(case.name, error))
    return replace(raw, cases=tuple(cases), broken=(*raw.broken, *broken))


def series_of_space(scan: Path, space: NativeSpace) -> SegmentedSeries:
    """Read the headers of the series that a raw scan was made of, and find where its frames lie on the scan's grid.

    Raises CaseError where the series is not the one that was prepared, or its headers do not suffice.
    """
    files = chosen_series(scan).files
    from pydicom import dcmread

    with silence_pydicom(), _refuse_header(scan):
        headers = [dcmread(path, stop_before_pixels=True) for path in files]
        places = [_placement(*plane) for header in headers for plane in _planes(header)]
        size = int(headers[0].Rows), int(headers[0].Columns)
        if not all(header.get("FrameOfReferenceUID") for header in headers):
            raise CaseError(f"{scan}: its headers lack the FrameOfReferenceUID; export the series again, or {_AWAY}")
        for header in headers:
            _complete(header)
    to_voxels = np.linalg.inv(space.affine)
    steps = _steps_on_grid([to_voxels @ place for place in places], size, space.shape)
    if steps is None:
        raise CaseError(f"{scan}: its frames do not lie where the voxels of {space.scan} do; prepare it again, or {_AWAY}")
    return SegmentedSeries(scan, headers, steps, size)


def encode_segmentation(classes: ClassMap, series: SegmentedSeries, *, weights: Sequence[tuple[str, str]]) -> bytes:
    """The file of a segmentation object: a binary segment of each tumour class, numbered as the classes.

    classes: indices [I, J, K] on the raw scan's grid. weights: name and SHA-256 of each set. Frames without a voxel are
    left out; an object must have frames, so that one without tumour has all of them, empty. Raises CaseError for headers that
    do not suffice.
    """
    frames = frames_of(classes, series)
    with silence_pydicom(), _refuse_header(series.scan):
        import highdicom as hd

        names = " and ".join(dict.fromkeys(name for name, _ in weights))
        used = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in weights)
        algorithm = hd.AlgorithmIdentificationSequence(
            name=f"{_PRODUCER} {_ALGORITHM}",
            family=hd.sr.CodedConcept(*_ARTIFICIAL_INTELLIGENCE),
            version=drunet_cli.__version__,
            source=_PRODUCER,
            parameters={"weights": _plain(used)},
        )
        descriptions = [
            hd.seg.SegmentDescription(
                segment_number=int(tumour_class),
                segment_label=label,
                segmented_property_category=hd.sr.CodedConcept(*_CATEGORY),
                segmented_property_type=hd.sr.CodedConcept(*code),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                anatomic_regions=[hd.sr.CodedConcept(*_BRAIN)],
                display_color=hd.color.CIELabColor.from_rgb(*CLASS_COLOURS[tumour_class]),
            )
            for tumour_class, (label, code) in _TYPES.items()
        ]
        first = series.headers[0]
        segmentation = hd.seg.Segmentation(
            source_images=series.headers,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBERS * int(first.get("SeriesNumber") or 0) + 1,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=_PRODUCER,
            manufacturer_model_name=_ALGORITHM,
            software_versions=drunet_cli.__version__,
            device_serial_number=weights[0][1],
            omit_empty_frames=bool(frames.any()),
            content_label="BRAIN_TUMOUR",
            content_description=_DESCRIPTION,
            series_description=_plain(f"Brain tumour, {_PRODUCER}, weights {names}")[:_LONGEST],
        )
        if "LongitudinalTemporalInformationModified" in first:  # de-identified dates are told as such
            segmentation.LongitudinalTemporalInformationModified = first.LongitudinalTemporalInformationModified
        content = io.BytesIO()
        segmentation.save_as(content)
        return content.getvalue()


def frames_of(classes: ClassMap, series: SegmentedSeries) -> ClassMap:
    """Class indices [I, J, K] on the raw scan's grid as the frames of its series: [F, rows, columns]."""
    rows, columns = (np.arange(n) for n in series.size)
    frames = np.empty((len(series.steps), *series.size), dtype=np.uint8)
    for frame, (first, along_row, along_column) in zip(frames, series.steps, strict=True):
        voxels = first + columns[:, np.newaxis] * along_row + rows[:, np.newaxis, np.newaxis] * along_column
        frame[:] = classes[tuple(np.moveaxis(voxels, -1, 0))]
    return frames


@contextmanager
def _refuse_header(scan: Path) -> Iterator[None]:
    """Turn what a header that breaks the standard causes into a CaseError, without its text, which may hold values."""
    try:
        yield
    except header_errors() as error:
        reason = f"lack {error.name}" if isinstance(error, AttributeError) and error.name else "break the standard"
        raise CaseError(f"{scan}: its headers {reason}; export the series again, or {_AWAY}") from error


def _planes(header: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Position, orientation and pixel spacing of each frame of a file, as DICOM writes them."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        yield header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing
        return
    shared, per_frame = (header[name].value for name in GROUPS)
    for groups in per_frame:

        def found(sequence: str, keyword: str, groups: Any = groups) -> Any:
            return (groups if sequence in groups else shared[0])[sequence].value[0][keyword].value

        yield (
            found("PlanePositionSequence", "ImagePositionPatient"),
            found("PlaneOrientationSequence", "ImageOrientationPatient"),
            found("PixelMeasuresSequence", "PixelSpacing"),
        )


def _placement(position: Any, orientation: Any, spacing: Any) -> npt.NDArray[np.float64]:
    """[4, 3]: the first pixel of a frame, the step to the next column, and the step to the next row, in RAS mm."""
    along_row, along_column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = np.array(spacing, dtype=np.float64)
    in_lps = np.array([np.array(position, dtype=np.float64), along_row * between_columns, along_column * between_rows])
    return np.vstack([(in_lps * (-1, -1, 1)).T, (1, 0, 0)])


def _steps_on_grid(
    placements: Sequence[Affine], size: tuple[int, int], shape: tuple[int, int, int]
) -> npt.NDArray[np.int64] | None:
    """Placements in voxels as whole steps [F, 3, 3]; None unless the pixels of all frames are all voxels of the grid."""
    exact = np.array([placement[:3].T for placement in placements])
    steps = np.rint(exact).astype(np.int64)
    rows, columns = size
    corners = np.array([(1, column, row) for column in (0, columns - 1) for row in (0, rows - 1)])
    reached = corners @ steps
    is_near = np.abs(corners @ exact - reached).max() <= _FARTHEST
    is_inside = reached.min() >= 0 and (reached < shape).all()
    is_complete = len(steps) * rows * columns == np.prod(shape) and len(np.unique(steps[:, 0], axis=0)) == len(steps)
    is_straight = (np.abs(steps[:, 1:]).sum(axis=2) == 1).all() and (steps[:, 1:] == steps[0, 1:]).all()
    return steps if is_near and is_inside and is_complete and is_straight else None


def _complete(header: Any) -> None:
    """Have a header hold what may be empty, and no sex that the standard does not know, as of phantoms."""
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in _SEXES:
        header.PatientSex = ""


def _plain(text: str) -> str:
    """A text in ASCII, which every character set of DICOM has."""
    return re.sub(r"[^ -\[\]-~]", "?", text)
