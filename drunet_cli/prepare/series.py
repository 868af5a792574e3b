"""The series of a DICOM folder by the headers of their files: what each shows, and whether it is an image of a case.

pydicom reads the headers. Texts and dates that name the patient are known here, so that none gets out.
"""

import logging
import math
import re
import struct
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from drunet_cli.brats import Modality
from drunet_cli.errors import CaseError, MisuseError, one_line, plural
from drunet_cli.io.naming import modality_in_name

Triple: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """One stack of slices, or what stands in a folder in place of one.

    number: how the series is named within its folder: its number, and a letter where two share it. spacing_mm: between rows,
    columns and slices; None where there is no stack. modality: what the headers say; None where they leave it open.
    flaw: why no image of a case can be made of it, as in "is a localiser"; empty where one can.
    """

    number: str
    description: str
    n_slices: int
    spacing_mm: Triple | None
    has_agent: bool
    modality: Modality | None
    flaw: str
    study: str = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    private: frozenset[str] = field(repr=False)  # what names the patient, in small letters and digits


_LOGGERS: Final = ("pydicom", "highdicom")
_ONE_AT_A_TIME: Final = threading.Lock()  # `warnings` are of the whole process, and the next one finds the answer in the cache


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Let no warning or log of pydicom and highdicom out while the block runs: it would name a value. One thread at a time."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
        try:
            for logger in levels:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


def header_errors() -> tuple[type[Exception], ...]:
    """Whatever a header may hold comes as one of these, some of them where a value is first looked at."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    bad_values = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error)
    return (InvalidDicomError, BytesLengthException, EOFError, OSError, *bad_values)


def series_of_files(files: tuple[Path, ...], name: str) -> tuple[Series, ...]:
    """The series that DICOM files make, sorted by number. name: of their folder, in messages.

    Raises CaseError where there is no image, or a file is damaged; MisuseError where pydicom is not installed.
    """
    with silence_pydicom():
        return _read_series(files, name)


@lru_cache(maxsize=8)  # the four images of a study are named one by one
def _read_series(files: tuple[Path, ...], name: str) -> tuple[Series, ...]:
    stacks: dict[tuple[str, int, int, str, tuple[int, int]], list[_Image]] = defaultdict(list)
    n_damaged = 0
    for path in files:
        try:
            image = _read(path)
        except _Damaged:
            n_damaged += 1
            continue
        if image is not None:
            stacks[image.study, image.number, round(image.echo_ms), image.uid, image.size].append(image)
    if n_damaged:
        raise CaseError(f"{name}: {plural(n_damaged, 'DICOM file')} cannot be read; copy or download the folder again")
    if not stacks:
        raise CaseError(f"{name}: holds no DICOM image; give the folder of a series, or NIfTI")
    by_number: dict[int, list[Series]] = defaultdict(list)
    for key in sorted(stacks):
        by_number[stacks[key][0].number].append(_series_of(stacks[key]))
    series = [
        replace(each, number=f"{number}{_letters(n)}" if len(several) > 1 else str(number))
        for number, several in sorted(by_number.items())
        for n, each in enumerate(several)
    ]
    return tuple(series)


def study_of(file: Path) -> str | None:
    """The study that an image belongs to; None for a file without an image, and for a damaged one."""
    try:
        with silence_pydicom():
            image = _read(file)
    except _Damaged:
        return None
    return None if image is None else image.study


def names_one_of(text: str, private: frozenset[str]) -> bool:
    """Whether a text holds one of the words that name a patient, however they are written."""
    plain = _plain(text)
    return any(word in plain for word in private)


def _letters(n: int) -> str:
    return (_letters(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)


@dataclass(frozen=True)
class _Image:
    """The header of one file. Times in ms, 0 where there is none. positions: of its slices, mm; empty for none.

    orientation: the directions of a row and of a column, six cosines; empty for none. number: of the series.
    """

    path: Path
    uid: str
    study: str
    number: int
    description: str
    modality: str
    kind: frozenset[str]
    has_agent: bool
    echo_ms: float
    repetition_ms: float
    inversion_ms: float
    size: tuple[int, int]
    spacing_mm: Triple
    thickness_mm: float
    orientation: Triple
    positions: tuple[Triple, ...]
    is_secondary: bool
    is_diffusion: bool
    private: frozenset[str]


_PRIVATE: Final = (
    *("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthName", "AccessionNumber", "PatientBirthDate"),
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
)
GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS: Final = (
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "Modality"),
    *("ImageType", "ContrastBolusAgent", "ContrastBolusAgentSequence", "EchoTime", "RepetitionTime", "InversionTime", "Rows"),
    *("Columns", "PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient"),
    *("DiffusionBValue", "PatientIdentityRemoved", *_PRIVATE, *GROUPS),
)
_MR_IMAGES: Final = "1.2.840.10008.5.1.4.1.1.4"  # of one frame a file, and of many
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_NO_AGENT: Final = frozenset(("", "0", "n", "no", "none", "nil", "without"))


class _Damaged(Exception):  # noqa: N818  # never leaves this module
    """A file that begins as DICOM does, and cannot be read on."""


def _read(path: Path) -> _Image | None:
    """The header of one file; None where it holds no image, as a report or a list of files. Raises _Damaged."""
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise MisuseError("DICOM needs pydicom, which is not installed; run: pip install pydicom dcm2niix") from error
    try:
        return _image_of(path, dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS]))
    except header_errors() as error:
        raise _Damaged from error


def _image_of(path: Path, header: Any) -> _Image | None:
    if "Rows" not in header:
        if str(header.file_meta.get("MediaStorageSOPClassUID", "")).startswith(_MR_IMAGES):
            raise _Damaged  # its end is missing
        return None
    description = one_line(str(header.get("SeriesDescription") or header.get("ProtocolName") or ""))
    private = _private_words(header)
    size = int(header.Rows), int(header.Columns)
    orientation = _numbers(_value(header, "ImageOrientationPatient"))
    return _Image(
        path,
        uid=str(header.SeriesInstanceUID),
        study=str(header.get("StudyInstanceUID") or ""),
        number=int(header.get("SeriesNumber") or 0),
        description="(names the patient)" if names_one_of(description, private) else description,
        modality=str(header.get("Modality") or ""),
        kind=frozenset(str(word).upper() for word in _listed(header.get("ImageType"))),
        has_agent=_has_agent(header),
        echo_ms=_number(_value(header, "EchoTime", "EffectiveEchoTime")),
        repetition_ms=_number(_value(header, "RepetitionTime")),
        inversion_ms=_number(_value(header, "InversionTime", "InversionTimes")),
        size=size,
        spacing_mm=_numbers(_value(header, "PixelSpacing")),
        thickness_mm=_number(_value(header, "SliceThickness")),
        orientation=tuple(round(cosine, 3) for cosine in orientation),
        positions=tuple(_positions(header)) if len(orientation) == 6 else (),
        is_secondary=str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE),
        is_diffusion=_number(_value(header, "DiffusionBValue")) > 0,
        private=private,
    )


def _value(header: Any, *keywords: str) -> Any:
    """An attribute by the first of its keywords that is there; of many frames in one file, that of the first frame."""
    for keyword in keywords:
        if keyword in header:
            return header[keyword].value
        for groups in GROUPS:
            for item in list(header.get(groups) or [])[:1]:
                for element in item:
                    if element.VR == "SQ" and element.value and keyword in element.value[0]:
                        return element.value[0][keyword].value
    return None


def _positions(header: Any) -> Iterator[Triple]:
    """The positions of the slices of a file."""
    if "ImagePositionPatient" in header:
        yield _numbers(header.ImagePositionPatient)
    for frame in header.get("PerFrameFunctionalGroupsSequence") or []:
        for plane in frame.get("PlanePositionSequence") or []:
            yield _numbers(plane.ImagePositionPatient)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _numbers(value: Any) -> Triple:
    return tuple(float(number) for number in _listed(value))


def _number(value: Any) -> float:
    """A number, or the first of several; 0 for none, and for one that is not finite."""
    number = next(iter(_numbers(value or None)), 0.0)
    return number if math.isfinite(number) else 0.0


def _has_agent(header: Any) -> bool:
    named = str(header.get("ContrastBolusAgent") or "").strip().lower()
    return named not in _NO_AGENT or bool(header.get("ContrastBolusAgentSequence"))


def _private_words(header: Any) -> frozenset[str]:
    """The words that name the patient, as `_plain` has them. Short ones are left out, as they are parts of other words."""
    if str(header.get("PatientIdentityRemoved") or "").upper() == "YES":
        return frozenset()
    words: set[str] = set()
    for keyword in _PRIVATE:
        for value in _listed(header.get(keyword)):
            text = str(value)
            parts = re.split(r"[\^=\s]+", text) if keyword.endswith("Name") else [text]
            words.update(_plain(part) for part in parts)
            if keyword.endswith("Date") and len(text) == len("YYYYMMDD"):
                words.update((text[4:] + text[:4], text[6:] + text[4:6] + text[:4]))  # month or day first
    return frozenset(word for word in words if len(word) >= _SHORTEST_PRIVATE)


_SHORTEST_PRIVATE: Final = 4


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


# Series

# A head is some 150 mm high, long or wide, and slices are at most 10 mm apart; fewer are a localiser, or part of a scan.
_FEWEST_SLICES: Final = 10
_GAP: Final = 1.5  # of the usual distance between slices: the next slice but one lies at 2
_SAME_PLACE_MM: Final = 0.01
_NOT_ANATOMY: Final = frozenset(
    (
        *("dwi", "adc", "eadc", "dti", "diffusion", "apparent", "exponential", "trace", "tracew", "tensor", "fa"),
        *("ep2d", "epi", "perf", "perfusion", "dsc", "dce", "pwi", "cbf", "cbv", "rcbv", "mtt", "ttp", "asl"),
        *("swi", "swan", "bold", "fmri", "mra", "mrv", "tof", "angio", "spectro", "csi", "ciss", "fiesta"),
        *("map", "mapping", "fieldmap", "b1", "asset", "calibration", "mip", "minip", "subtraction", "sub"),
        *("localizer", "localiser", "scout", "survey", "loc"),
    )
)
_DERIVED: Final = frozenset(("PROJECTION IMAGE", "MIP", "MNIP", "MINIP", "SUBTRACT", "SUBTRACTION"))
_DIFFUSION: Final = frozenset(("DIFFUSION", "ADC", "TRACEW", "FA", "DTI", "TENSOR"))


def _series_of(images: Sequence[_Image]) -> Series:
    """The series that the files of one stack make, yet without a number of its own."""
    first = images[0]
    steps = _steps(images)
    flaw = _flaw(images, steps)
    across = float(np.median(steps)) if steps.size else first.thickness_mm
    has_agent = any(image.has_agent for image in images)
    return Series(
        number="",
        description=first.description,
        n_slices=sum(max(len(image.positions), 1) for image in images),
        spacing_mm=(*first.spacing_mm, across) if len(first.spacing_mm) == 2 and across > 0 else None,
        has_agent=has_agent,
        modality=None if flaw else _modality_of(first, has_agent=has_agent),
        flaw=flaw,
        study=first.study,
        files=tuple(image.path for image in images),
        private=frozenset().union(*(image.private for image in images)),
    )


def _steps(images: Sequence[_Image]) -> Any:
    """Distances in mm between slices that follow one another, each place once."""
    orientation = images[0].orientation
    if len(orientation) != 6:
        return np.empty(0)
    across = np.cross(orientation[:3], orientation[3:])
    depths = sorted(float(across @ np.array(position)) for image in images for position in image.positions)
    steps = np.array([after - before for before, after in pairwise(depths)])
    return steps[steps > _SAME_PLACE_MM]


def _flaw(images: Sequence[_Image], steps: Any) -> str:
    """Why a stack is no image of a case; empty where it may be one."""
    first = images[0]
    kinds = frozenset().union(*(image.kind for image in images))
    n_slices, n_places = sum(len(image.positions) for image in images), len(steps) + 1
    if first.modality != "MR":
        return f"is {one_line(first.modality)[:8] or 'of no modality'}, not MR"
    if any(image.is_secondary or not image.positions for image in images):
        return "is a secondary capture, not a scan"
    if "LOCALIZER" in kinds or len({image.orientation for image in images}) > 1:
        return "is a localiser"
    if kinds & _DIFFUSION or any(image.is_diffusion for image in images):
        return "is of diffusion"
    if kinds & _DERIVED:
        return "is a projection or subtraction, not a scan"
    if n_slices > n_places:
        return f"is 4D: {n_slices} slices at {n_places} places"
    if n_slices < _FEWEST_SLICES:
        return f"has only {plural(n_slices, 'slice')}"
    if n_missing := int(np.rint(steps[steps > _GAP * np.median(steps)] / np.median(steps) - 1).sum()):
        return f"lacks {plural(n_missing, 'slice')} between others; export or download it again"
    return ""


# In ms; ranges of clinical protocols at 1.5 and 3 T, wide apart from one another.
_LONGEST_ECHO_OF_T1: Final = 40
_SHORTEST_ECHO_OF_T2: Final = 60  # T2* and proton density have shorter times
_SHORTEST_REPETITION_OF_T2: Final = 1500
_LONGEST_REPETITION_OF_T1: Final = 1300  # without an inversion
_INVERSIONS_OF_T1: Final = (200, 1400)
_SHORTEST_INVERSION_OF_FLAIR: Final = 1500
_BEFORE_THE_AGENT: Final = re.compile(
    r"(?<![a-z])(pre|non?|without|wo|nativ|native)(?![a-z])|precontrast|noncontrast|unenhanced"
)


def _modality_of(image: _Image, *, has_agent: bool) -> Modality | None:
    """The modality of a stack, by its description, its times and the contrast agent; None where these leave it open."""
    text = image.description.lower().replace("w/o", "without").replace("/", " ")
    words = set(re.split(r"[^a-z0-9]+", text))
    if words & _NOT_ANATOMY:
        return None
    named = modality_in_name(Path(f"{text.strip() or 'none'}.nii"))
    by_times = _weighting(image)
    weighting: Modality | None = Modality.T1 if named is Modality.T1CE else named
    if weighting is not by_times and by_times is not None:
        # Other words than the last may tell: FLAIR T2, T1 FLAIR.
        weighting = by_times if named is None or by_times in words or Modality.FLAIR in (named, by_times) else None
    elif by_times is None and image.echo_ms > 0:  # the times of another sequence: T2*, proton density
        return None
    if weighting is Modality.T1 and (named is Modality.T1CE or (has_agent and not _BEFORE_THE_AGENT.search(text))):
        return Modality.T1CE
    return weighting


def _weighting(image: _Image) -> Modality | None:
    """T1, T2 or FLAIR by the times of a sequence."""
    echo, repetition, inversion = image.echo_ms, image.repetition_ms, image.inversion_ms
    if echo >= _SHORTEST_ECHO_OF_T2 and inversion >= _SHORTEST_INVERSION_OF_FLAIR:
        return Modality.FLAIR
    if echo >= _SHORTEST_ECHO_OF_T2 and repetition >= _SHORTEST_REPETITION_OF_T2 and inversion == 0:
        return Modality.T2
    if 0 < echo <= _LONGEST_ECHO_OF_T1:
        shortest, longest = _INVERSIONS_OF_T1
        if shortest <= inversion <= longest or (inversion == 0 and 0 < repetition <= _LONGEST_REPETITION_OF_T1):
            return Modality.T1
    return None
