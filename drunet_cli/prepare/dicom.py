"""DICOM folders: the studies and series in them, the four scans of a study, and a series as a volume.

A series is named by the path of its folder, with its number where the folder holds several: `study:4`. dcm2niix converts the
voxels. Nothing that names the patient leaves this module: no name, number or date, and no file's name.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.io.atomic import temporary_folder
from drunet_cli.io.folders import Folder, folders_from
from drunet_cli.io.inputs import InputFile, file_sha256
from drunet_cli.io.nifti import Volume, load_volume, volume_of
from drunet_cli.prepare.series import Series, names_one_of, series_of_files, study_of

_PREAMBLE: Final = 128
_NUMBERED: Final = re.compile(r"(.+):([0-9]+[a-z]*)", re.DOTALL)


def dicom_folder(scan: Path) -> Path | None:
    """The folder that a path stands for, or that it names a series of, where this holds DICOM files at any depth; else None.

    Raises CaseError where that folder itself, or a file, cannot be read.
    """
    folder, _ = _parted(scan)
    return folder if folder.is_dir() and next(_dicom_files(folder, skip_shut_folders=True), None) is not None else None


def series_in(folder: Path) -> tuple[Series, ...]:
    """Every series in a folder, at any depth, sorted by number. Raises CaseError where there is none, or a file is damaged."""
    return series_of_files(tuple(_dicom_files(folder)), str(folder))


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
    return {modality: Path(f"{folder}:{found[0].number}") for modality, found in candidates.items()}


def studies_in(folder: Path) -> list[Path]:
    """The folders of studies in a folder: for each the highest below it that holds no other study, as a patient's folder is.

    That is `folder` itself where series of one study lie in it side by side. One header a folder is read. Folders below it that
    cannot be read are left out: the search for cases tells of them, and a study that holds one is refused when it is read.
    Raises CaseError where `folder` itself, or a file, cannot be read, MisuseError where pydicom is not installed.
    """
    holders: dict[Path, set[str]] = defaultdict(set)
    series: dict[str, list[Path]] = defaultdict(list)
    for path in _dicom_files(folder, skip_shut_folders=True):
        if path.parent not in holders and (study := study_of(path)) is not None:
            series[study].append(path.parent)
            for place in (path.parent, *path.parent.parents):
                holders[place].add(study)
                if place == folder:
                    break
    found: dict[Path, None] = {}
    for places in series.values():
        place = Path(os.path.commonpath(places))
        while place != folder and place.parent != folder and len(holders[place.parent]) == 1:
            place = place.parent
        found[place] = None
    return sorted(found)


def chosen_series(scan: Path) -> Series:
    """The one series that a path stands for. Raises CaseError where there is none, or it is no image of a case."""
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


def load_series(scan: Path) -> Volume:
    """Read a series, converted by dcm2niix, as a volume whose path and header tell nothing but the series' number.

    scan: a folder that holds one series with a stack of slices, or FOLDER:NUMBER, which names one of several.
    Raises CaseError where that is not so, or dcm2niix cannot convert it; MisuseError where a program is not installed.
    """
    series = chosen_series(scan)
    source = _source_of(series)
    with temporary_folder() as place:
        staged, converted = place / "dicom", place / "converted"
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
    """The files of a series as they are now, as one input; its path is the series' number alone. Raises CaseError."""
    return _source_of(chosen_series(scan))


def names_patient(text: str, folder: Path) -> bool:
    """Whether a text, such as the name of a case, holds the patient's name, number or a date from the headers of a folder.

    False for series whose headers say that the patient's identity was removed from them.
    """
    return names_one_of(text, frozenset().union(*(series.private for series in series_in(_parted(folder)[0]))))


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


def _dicom_files(folder: Path, *, skip_shut_folders: bool = False) -> Iterator[Path]:
    """The files that begin as DICOM does, whatever their names are. Raises CaseError for what cannot be read."""
    for found in folders_from(folder):
        if not isinstance(found, Folder):
            path, error = found  # the path may hold a name
            if skip_shut_folders and path != folder:
                continue
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
