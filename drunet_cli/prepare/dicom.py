"""DICOM folders: which series they hold, which of the four images each is, and a series as a NIfTI file.

Series are told by their headers, which pydicom reads; dcm2niix converts the voxels. Nothing that names the patient leaves this
module: no name, number or date, and no file's name. A series is named by the path of its folder, with its number where the
folder holds several: `study:4`.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, MisuseError, one_line, plural
from drunet_cli.io.folders import Folder, folders_from
from drunet_cli.io.inputs import InputFile, file_sha256
from drunet_cli.io.naming import modality_in_name
from drunet_cli.io.nifti import Volume, load_volume, volume_of

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


_PREAMBLE: Final = 128
_NUMBERED: Final = re.compile(r"(.+):([0-9]+[a-z]*)", re.DOTALL)


def is_dicom(folder: Path) -> bool:
    """Whether a folder holds DICOM files, at any depth, or a path names one series of such a folder."""
    top, _ = _parted(folder)
    return top.is_dir() and next(_dicom_files(top), None) is not None


def series_in(folder: Path) -> tuple[Series, ...]:
    """Every series in a folder, at any depth, sorted by number. Raises CaseError where there is none, or a file is damaged."""
    return _series_of_files(tuple(_dicom_files(folder)), str(folder))


def scans_of_study(folder: Path) -> dict[Modality, Path]:
    """The four images of the one study in a folder, each as the path that names its series.

    Raises CaseError, with a table of the series, unless there is exactly one candidate for each.
    """
    series = series_in(folder)
    if len({each.study for each in series}) > 1:
        raise CaseError(f"{folder}: holds DICOM series of several studies; {_HOW_TO_NAME}", details=_table(series))
    candidates = {modality: [each for each in series if each.modality is modality and not each.flaw] for modality in CHANNELS}
    missing = [modality.display for modality, found in candidates.items() if not found]
    doubtful = [modality.display for modality, found in candidates.items() if len(found) > 1]
    if missing or doubtful:
        absent = [f"no DICOM series is recognised as {' or '.join(missing)}"] if missing else []
        several = [f"several series may be {' and '.join(doubtful)}"] if doubtful else []
        raise CaseError(f"{folder}: {', and '.join(absent + several)}; {_HOW_TO_NAME}", details=_table(series))
    return {modality: folder.with_name(f"{folder.name}:{found[0].number}") for modality, found in candidates.items()}


def studies_in(folder: Path) -> list[Path]:
    """The folders of studies in a folder: for each the highest that holds no other study; `folder` itself for a single one.

    One header a folder is read. Raises CaseError as `series_in` does.
    """
    holders: dict[Path, set[str]] = defaultdict(set)
    lowest: list[Path] = []
    for path in _dicom_files(folder):
        if path.parent not in holders and (image := _read_or_none(path)) is not None:
            lowest.append(path.parent)
            for place in (path.parent, *path.parent.parents):
                holders[place].add(image.study)
                if place == folder:
                    break
    found: dict[Path, None] = {}
    for place in lowest:
        while place != folder and len(holders[place.parent]) == 1:
            place = place.parent
        found[place] = None
    return [*found]


def load_series(scan: Path) -> Volume:
    """Read a series, converted by dcm2niix, as a volume whose path and header tell nothing but the series' number.

    scan: a folder that holds one series with a stack of slices, or FOLDER:NUMBER, which names one of several.
    Raises CaseError where that is not so, or dcm2niix cannot convert it; MisuseError where a program is not installed.
    """
    series = _chosen(scan)
    source = _source_of(series)
    with tempfile.TemporaryDirectory(prefix="drunet-dicom-") as place:
        staged, converted = Path(place) / "dicom", Path(place) / "converted"
        staged.mkdir()
        converted.mkdir()
        for n, file in enumerate(series.files):  # by neutral names, and without the other series of the folder
            (staged / f"{n}.dcm").symlink_to(file.absolute())
        image = _convert(scan, staged, converted)
        try:
            found = load_volume(image)
        except CaseError as error:  # it names a temporary file
            reason = str(error).removeprefix(f"{image}: ").partition(";")[0]
            raise CaseError(f"{scan}: as NIfTI it {reason}; {_ANOTHER}") from error
    voxels = found.voxels.astype(np.float32) if found.voxels.dtype == np.float64 else found.voxels
    # A new header: dcm2niix writes the time of day and the comments on the patient into its own.
    return replace(volume_of(voxels, found.affine, name=source.path), source=source)


def source_of(scan: Path) -> InputFile:
    """What the files of a series are now, as one input; its path is the series' number alone. Raises CaseError."""
    return _source_of(_chosen(scan))


def names_patient(text: str, folder: Path) -> bool:
    """Whether a text, such as the name of a case, holds the patient's name, number or a date from the headers of a folder.

    False for series whose headers say that the patient's identity was removed from them.
    """
    return _names_one_of(text, frozenset().union(*(series.private for series in series_in(_parted(folder)[0]))))


_HOW_TO_NAME: Final = "name each by --t1 FOLDER:NUMBER and so on, with numbers of the table"
_ANOTHER: Final = "give another series, or NIfTI"


def _source_of(series: Series) -> InputFile:
    name = f"DICOM series {series.number}"
    digest = hashlib.sha256()
    try:
        status = [file.stat() for file in series.files]
        for file in series.files:
            digest.update(bytes.fromhex(file_sha256(file)))
    except OSError as error:
        raise CaseError(f"{name}: a file in it cannot be read: {error.strerror}") from error
    n_bytes, latest = sum(each.st_size for each in status), max(each.st_mtime_ns for each in status)
    return InputFile(name, n_bytes, latest, digest.hexdigest())


def _parted(scan: Path) -> tuple[Path, str | None]:
    """The folder, and the number of the series in it. What exists under the whole name is a folder whose name has a colon."""
    found = None if os.path.lexists(scan) else _NUMBERED.fullmatch(str(scan))
    return (Path(found[1]), found[2]) if found and Path(found[1]).is_dir() else (scan, None)


def _chosen(scan: Path) -> Series:
    """The one series that a path stands for."""
    folder, number = _parted(scan)
    series = series_in(folder)
    if number is not None:
        found = [each for each in series if each.number == number.lstrip("0") or each.number == number]
        if not found:
            raise CaseError(f"{folder}: holds no DICOM series {number}; give a number of the table", details=_table(series))
    elif len(series) == 1:
        found = list(series)
    else:
        found = [each for each in series if not each.flaw]
        if len(found) != 1:
            example = (found or series)[0].number
            message = f"{folder}: holds {len(series)} DICOM series; name the one that is meant, as {folder}:{example}"
            raise CaseError(message, details=_table(series))
    if found[0].flaw:
        remedy = "" if ";" in found[0].flaw else f"; {_ANOTHER}"
        raise CaseError(f"{scan}: series {found[0].number} {found[0].flaw}{remedy}")
    return found[0]


def _table(series: Sequence[Series]) -> tuple[str, ...]:
    """The series of a folder, for people, in less than 80 columns."""
    studies = list(dict.fromkeys(each.study for each in series))
    rows = [("series", "description", "slices", "spacing in mm", "agent", "taken for")]
    for each in series:
        spacing = "-" if each.spacing_mm is None else " x ".join(f"{mm:.3g}" for mm in each.spacing_mm)
        taken_for = f"none: {each.flaw}" if each.flaw else each.modality.display if each.modality else "?"
        of_study = f" (study {studies.index(each.study) + 1})" if len(studies) > 1 else ""
        agent = "yes" if each.has_agent else "-"
        rows.append((each.number, _cut(each.description), str(each.n_slices), spacing, agent, taken_for + of_study))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return tuple("  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows)


_LONGEST_DESCRIPTION: Final = 24


def _cut(description: str) -> str:
    return description if len(description) <= _LONGEST_DESCRIPTION else f"{description[: _LONGEST_DESCRIPTION - 3]}..."


# Reading


@dataclass(frozen=True)
class _Image:
    """What the header of one file says. Times in ms, 0 where it says nothing. positions: of its slices, mm; empty for none.

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
_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS: Final = (
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "Modality"),
    *("ImageType", "ContrastBolusAgent", "ContrastBolusAgentSequence", "EchoTime", "RepetitionTime", "InversionTime", "Rows"),
    *("Columns", "PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient"),
    *("DiffusionBValue", "PatientIdentityRemoved", *_PRIVATE, *_GROUPS),
)
_MR_IMAGES: Final = "1.2.840.10008.5.1.4.1.1.4"  # of one frame a file, and of many
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_NO_AGENT: Final = frozenset(("", "0", "n", "no", "none", "nil", "without"))

# pydicom reports what it finds odd in a value, with the value.
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


@lru_cache(maxsize=8)  # the four images of a study are named one by one
def _series_of_files(files: tuple[Path, ...], name: str) -> tuple[Series, ...]:
    """name: the folder, in messages."""
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


def _letters(n: int) -> str:
    return (_letters(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)


def _dicom_files(folder: Path) -> Iterator[Path]:
    """The files that begin as DICOM does, whatever their names are."""
    for found in folders_from(folder):
        if not isinstance(found, Folder):
            path, error = found  # the path may hold a name
            inside = "" if path == folder else "a folder in it "
            raise CaseError(f"{folder}: {inside}cannot be read: {error.strerror}; mend its permissions or leave it out")
        for name in found.files:
            try:
                if not (path := found.path / name).is_file():
                    continue
                with path.open("rb") as stream:
                    if stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM":
                        yield path
            except OSError as error:
                raise CaseError(f"{folder}: a file in it cannot be read: {error.strerror}; mend its permissions") from error


class _Damaged(Exception):  # noqa: N818  # never leaves this module
    """A file that begins as DICOM does, and cannot be read on."""


def _read_or_none(path: Path) -> _Image | None:
    try:
        return _read(path)
    except _Damaged:
        return None


def _read(path: Path) -> _Image | None:
    """The header of one file; None where it holds no image, as a report or a list of files. Raises _Damaged."""
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise MisuseError("DICOM needs pydicom, which is not installed; run: pip install pydicom dcm2niix") from error
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            return _image_of(path, dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS]))
    except (
        InvalidDicomError,
        BytesLengthException,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ) as error:
        # Whatever a header may hold comes as one of these, some of them where a value is first looked at.
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
        description="(names the patient)" if _names_one_of(description, private) else description,
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
        for groups in _GROUPS:
            for item in list(header.get(groups) or [])[:1]:
                for element in item:
                    if element.VR == "SQ" and element.value and keyword in element.value[0]:
                        return element.value[0][keyword].value
    return None


def _positions(header: Any) -> Iterator[Triple]:
    """Where the slices of a file lie."""
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
    return next(iter(_numbers(value or None)), 0.0)


def _has_agent(header: Any) -> bool:
    named = str(header.get("ContrastBolusAgent") or "").strip().lower()
    return named not in _NO_AGENT or bool(header.get("ContrastBolusAgentSequence"))


def _private_words(header: Any) -> frozenset[str]:
    """What names the patient, as `_plain` has it. Short names are left out, as they are parts of other words."""
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


def _names_one_of(text: str, private: frozenset[str]) -> bool:
    plain = _plain(text)
    return any(word in plain for word in private)


# What a series is

# A head is some 150 mm high, long or wide, and slices are at most 10 mm apart; fewer are a localiser, or part of a scan.
_FEWEST_SLICES: Final = 10
_GAP: Final = 1.5  # of the usual distance between slices: the next slice but one lies at 2
_SAME_PLACE_MM: Final = 0.01
_NOT_ANATOMY: Final = frozenset(
    (
        *(
            "dwi",
            "adc",
            "dti",
            "trace",
            "tracew",
            "tensor",
            "fa",
            "perf",
            "perfusion",
            "dsc",
            "dce",
            "pwi",
            "cbf",
            "cbv",
            "rcbv",
        ),
        *("mtt", "ttp", "asl", "swi", "swan", "mra", "mrv", "tof", "angio", "bold", "fmri", "spectro", "csi", "ciss", "fiesta"),
        *("mip", "minip", "subtraction", "sub", "localizer", "localiser", "scout", "survey", "loc"),
    )
)
_DERIVED: Final = frozenset(("PROJECTION IMAGE", "MIP", "MNIP", "MINIP", "SUBTRACT", "SUBTRACTION"))
_DIFFUSION: Final = frozenset(("DIFFUSION", "ADC", "TRACEW", "FA", "DTI", "TENSOR"))


def _series_of(images: Sequence[_Image]) -> Series:
    """What the files of one stack make, yet without a number that is theirs alone."""
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
_SHORTEST_ECHO_OF_T2: Final = 60  # those of T2* and of proton density are shorter
_SHORTEST_REPETITION_OF_T2: Final = 1500
_LONGEST_REPETITION_OF_T1: Final = 1300  # without an inversion
_INVERSIONS_OF_T1: Final = (200, 1400)
_SHORTEST_INVERSION_OF_FLAIR: Final = 1500
_BEFORE_THE_AGENT: Final = re.compile(
    r"(?<![a-z])(pre|non?|without|wo|nativ|native)(?![a-z])|precontrast|noncontrast|unenhanced"
)


def _modality_of(image: _Image, *, has_agent: bool) -> Modality | None:
    """Which of the four a stack is, by its description, its times and the contrast agent; None where these leave it open."""
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
    elif by_times is None and image.echo_ms > 0:  # its times are those of none of the four: T2*, proton density
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


# Converting

_PATIENCE_S: Final = 600  # a series takes seconds; hundreds of files from a slow network drive take minutes
# One image, uncompressed, with no sidecar (which holds dates), without the user's defaults, of all slices whatever their times.
_OPTIONS: Final = ("-b", "n", "-z", "n", "-g", "i", "-m", "y", "-f", "scan")


def _program() -> str:
    try:
        import dcm2niix

        return str(dcm2niix.bin)
    except ModuleNotFoundError as error:
        if found := shutil.which("dcm2niix"):
            return found
        raise MisuseError("DICOM needs dcm2niix, which is not installed; run: pip install pydicom dcm2niix") from error


def _convert(scan: Path, staged: Path, converted: Path) -> Path:
    """Have dcm2niix convert what lies in `staged`; exactly one image. Its output is read for causes, and never shown."""
    program = _program()
    command = [program, *_OPTIONS, "-o", str(converted), str(staged)]
    try:
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise CaseError(f"{scan}: dcm2niix has not converted it in {_PATIENCE_S // 60} minutes; {_ANOTHER}") from error
    except OSError as error:
        raise MisuseError(f"{program}: cannot be run: {error.strerror}; run: pip install --force-reinstall dcm2niix") from error
    images = sorted(converted.glob("*.nii"))
    if b"nsupported transfer syntax" in ended.stdout + ended.stderr:
        raise CaseError(f"{scan}: dcm2niix cannot read how its voxels are compressed; export the series uncompressed")
    if ended.returncode != 0 or not images:
        raise CaseError(f"{scan}: dcm2niix could not convert it (exit code {ended.returncode}); {_ANOTHER}")
    if len(images) > 1:
        raise CaseError(
            f"{scan}: dcm2niix makes {len(images)} images of it, not one: its slices do not belong together; {_ANOTHER}"
        )
    return images[0]
