"""Pairs of a prediction and its reference, by file names and tables; no voxel is read."""

import csv
import io
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.brats import CHANNELS, UNCERTAINTY_MAPS, Modality
from drunet_cli.errors import CaseError, MisuseError, join_some
from drunet_cli.io.case import is_text, text_of
from drunet_cli.io.folders import Folder, folders_from
from drunet_cli.io.naming import (
    NIFTI_SUFFIXES,
    SEGMENTATION,
    WORDS,
    before_and_last_word,
    beside,
    case_of_segmentation,
    is_nifti,
    is_on_grid_of_scan,
    names_by_folder,
    role_by_words,
    stem,
    with_a_name,
)

COLUMNS: Final = ("case", "prediction", "reference")
# Ends of names of files beside a label map; the second and third in a BIDS data set.
_NO_LABEL_MAPS: Final = (
    *("_probabilities", "_probseg", "_uncertainty", "_entropy", *UNCERTAINTY_MAPS.values()),
    *(f"_in_{modality}" for modality in CHANNELS),  # label maps on the grids of raw scans
)


@dataclass(frozen=True)
class Pair:
    """One case: a predicted label map and its reference."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairing:
    """Pairs, sorted by case, and by case why the others are not compared.

    unpaired: cases with more than one label map on a side, or a bad row. missing: cases with a label map on one side only.
    """

    pairs: tuple[Pair, ...]
    unpaired: Mapping[str, CaseError]
    missing: Mapping[str, CaseError]

    def missing_in_words(self, *, allowed: bool) -> str:
        """One line on the cases with a label map on one side only: that they are left out, or how they would be."""
        if not allowed:
            cases = "1 case has" if len(self.missing) == 1 else f"{len(self.missing)} cases have"
            return f"{cases} no partner; --allow-missing leaves such out"
        if len(self.missing) == 1:
            return f"{next(iter(self.missing.values()))}; left out"
        return f"{len(self.missing)} cases without a partner are left out: {join_some(sorted(self.missing))}"


def pair_up(predictions: Path, references: Path) -> Pairing:
    """Two label maps, or two folders whose label maps are paired by the names of their cases.

    Raises MisuseError when one is a file and the other a folder, CaseError when one is absent or a folder holds no label map.
    """
    for path in (predictions, references):
        if not os.path.exists(path):
            raise CaseError(f"{path}: no such file or folder")
    if predictions.samefile(references):
        raise CaseError(f"{predictions}: is given as prediction and as reference")
    if predictions.is_dir() != references.is_dir():
        raise MisuseError(f"{predictions} and {references}: give two label maps, or two folders")
    if not predictions.is_dir():
        return Pairing((Pair(_case_of(references), predictions, references),), {}, {})
    sides = {folder: label_maps_in(folder) for folder in (predictions, references)}
    pairs: list[Pair] = []
    unpaired: dict[str, CaseError] = {}
    missing: dict[str, CaseError] = {}
    for case in sorted(set().union(*sides.values())):
        files = {folder: found[case] for folder, found in sides.items() if case in found}
        doubled = next((paths for paths in files.values() if len(paths) > 1), None)
        if doubled is not None:
            message = f"{doubled[0]} and {doubled[1]}: both are label maps of {case}; keep one, or give a table"
            unpaired[case] = CaseError(message)
        elif len(files) == 1:
            [(folder, [path])] = files.items()
            other = references if folder == predictions else predictions
            missing[case] = CaseError(f"{path}: has no partner in {other}")
        else:
            pairs.append(Pair(case, files[predictions][0], files[references][0]))
    return Pairing(tuple(pairs), unpaired, missing)


def read_table(path: Path) -> Pairing:
    """The pairs of a table with the columns case, prediction, reference; relative paths begin at the table's folder.

    Raises CaseError for a file that cannot be read or is no such table.
    """
    try:
        return parse_table(path.read_bytes(), folder=path.parent, name=str(path))
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error


def parse_table(table: bytes, *, folder: Path, name: str) -> Pairing:
    """The pairs of a table that was read from elsewhere. folder: where relative paths begin. name: the table in messages."""
    try:
        reader = csv.DictReader(io.StringIO(text_of(table, name=name), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise CaseError(f"{name}: cannot be read as a table: {error}") from error
    if not rows or not set(COLUMNS) <= rows[0][1].keys():
        raise CaseError(f"{name}: needs the header {','.join(COLUMNS)} and a row for each case")
    pairs: dict[str, Pair] = {}
    unpaired: dict[str, CaseError] = {}
    for number, row in rows:
        case, prediction, reference = (str(row[column] or "").strip() for column in COLUMNS)
        if not (case and prediction and reference):
            unpaired[case or f"line {number}"] = CaseError(f"{name}, line {number}: lacks a case, prediction or reference")
        elif case in pairs:
            unpaired[case] = CaseError(f"{name}, line {number}: {case} is there twice")
        elif any(not is_text(path) and not os.path.lexists(folder / path) for path in (prediction, reference)):
            message = f"{name}, line {number}: no such file; the table is not text in UTF-8: save it as UTF-8"
            unpaired[case] = CaseError(message)
        else:
            pairs[case] = Pair(case, folder / prediction, folder / reference)
    return Pairing(tuple(pairs[case] for case in sorted(pairs.keys() - unpaired.keys())), unpaired, {})


def label_maps_in(folder: Path) -> dict[str, list[Path]]:
    """Label maps at any depth, by case: CASE.nii.gz as drunet and nnU-Net have it, CASE_seg.nii.gz, CASE-seg.nii.gz as BraTS,
    and sub-01_ses-1_desc-manual_dseg.nii.gz of the case sub-01_ses-1 as BIDS.

    Images beside them are not taken for label maps. Raises CaseError when there is no label map or a folder cannot be listed.
    """
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        if is_nifti(path.name) and _may_be_label_map(path):
            found.setdefault(_case_of(path), []).append(path)
    for case, paths in found.items():  # the label map of a case goes before its copies on the grids of scans
        found[case] = [path for path in paths if not is_on_grid_of_scan(path)] or paths
    for case, paths in list(found.items()):
        if len(paths) > 1 and (names := _names_by_folder(case, paths, top=folder, taken=found)):
            del found[case]
            found |= {name: [path] for name, path in zip(names, paths, strict=True)}
    if not found:
        raise CaseError(f"{folder}: holds no label map; looked for CASE.nii.gz, CASE_seg.nii.gz and CASE-seg.nii.gz")
    return found


def _names_by_folder(case: str, paths: Sequence[Path], *, top: Path, taken: Container[str]) -> list[str] | None:
    """Names for references of one name, as their cases get them (`io.discovery`); None for other label maps."""
    before, words = zip(*(before_and_last_word(stem(path)) for path in paths), strict=True)
    if any(word.lower() != SEGMENTATION for word in words):
        return None
    folders = [path.parent for path in paths]
    return names_by_folder(case, folders, tops=[top] * len(paths), of_files=any(before), taken=taken)


def uncertainty_maps_of(label_map: Path) -> dict[str, Path]:
    """The uncertainty maps beside a label map, by region: NAME_unc_whole.nii.gz, NAME_unc_core and NAME_unc_enhance, or .nii.

    Raises one CaseError that names every absent map.
    """
    names = {region: stem(beside(label_map, f"{end}.nii.gz")) for region, end in UNCERTAINTY_MAPS.items()}
    found = {region: _beside(label_map, [name]) for region, name in names.items()}
    if absent := [f"{names[region]}.nii.gz" for region, path in found.items() if path is None]:
        raise CaseError(
            f"{label_map}: has no {', '.join(absent)} beside it; segment the case with --uncertainty, or compare it without"
        )
    return {region: path for region, path in found.items() if path is not None}


def t1_of(label_map: Path) -> Path | None:
    """The T1 image beside a reference, named as in BraTS: CASE_t1.nii.gz beside CASE_seg.nii.gz, CASE-t1n beside CASE-seg."""
    before, word = before_and_last_word(stem(label_map))
    case = before if word.lower() == SEGMENTATION else stem(label_map)
    words = [word for word, modality in WORDS.items() if modality is Modality.T1]
    return _beside(label_map, [f"{case}{separator}{word}" for separator in ("_-" if case else ("",)) for word in words])


def _beside(label_map: Path, names: Iterable[str]) -> Path | None:
    paths = (label_map.with_name(f"{name}{suffix}") for name in names for suffix in NIFTI_SUFFIXES)
    return next((path for path in paths if os.path.isfile(path)), None)


def _files(top: Path) -> Iterator[Path]:
    """Every file of a tree that is not hidden, in sorted order."""
    for folder in folders_from(top):
        if not isinstance(folder, Folder):
            path, error = folder
            raise CaseError(f"{path}: cannot be listed: {error.strerror}") from error
        yield from (folder.path / name for name in folder.files)


def _may_be_label_map(path: Path) -> bool:
    _, role = role_by_words(path.name)
    return not stem(path).endswith(_NO_LABEL_MAPS) and role not in CHANNELS


def _case_of(path: Path) -> str:
    if (by_bids := case_of_segmentation(path)) is not None:
        return by_bids
    before, word = before_and_last_word(stem(path))
    if word.lower() != SEGMENTATION:
        return stem(path)
    return before or with_a_name(path.parent).name
