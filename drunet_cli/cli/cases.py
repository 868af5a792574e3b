"""The cases that a command line names: four files, folders, tables, or a list on stdin."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from drunet_cli.brats import Modality
from drunet_cli.errors import CaseError, MisuseError, join_some
from drunet_cli.io.case import HEADER, BrokenCase, Case, SeriesFolder, case_of, no_series, paths_of_list
from drunet_cli.io.discovery import Cohort, find_cases
from drunet_cli.io.naming import (
    BRATS_SPACE,
    ORIGINAL_SPACE,
    SUBJECT_AND_SESSION,
    Naming,
    is_case_name,
    is_nifti,
    label_map_in,
    may_name_a_file,
    parse_channels,
    parse_patterns,
    space_of,
    stem,
)

STDIN: Final = "-"
_OTHER_FORMATS: Final = (".gz", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".img", ".hdr", ".png", ".json", ".h5", ".zip")


def case_of_files(given: Mapping[Modality, Path | None], *, name: str | None, segmentation: Path | None = None) -> Case:
    """The case that --t1 --t1ce --t2 --flair (--seg, --case) name. Raises MisuseError, CaseError."""
    return case_of(_images_of(given, name=name), name=name, segmentation=segmentation)


def raw_case_of(given: Mapping[Modality, Path | None], *, name: str | None) -> Case:
    """The same of raw scans, each of which may be a DICOM series. Raises MisuseError, CaseError."""
    from drunet_cli.prepare.dicom import dicom_folder

    return case_of(_images_of(given, name=name), name=name, series_folder=dicom_folder)


def _images_of(given: Mapping[Modality, Path | None], *, name: str | None) -> dict[Modality, Path]:
    images = {modality: path for modality, path in given.items() if path is not None}
    missing = [f"--{modality}" for modality in given if modality not in images]
    if missing:
        raise MisuseError(
            f"missing {', '.join(missing)}: a case needs all four of --t1 --t1ce --t2 --flair, and -o; the network cannot do "
            "without any of the four"
        )
    if name is not None and not (name.strip() and may_name_a_file(name)):
        raise MisuseError(f"--case {name!r}: a case's name is part of a file name")
    return images


def cohort_of(
    sources: Sequence[str],
    *,
    patterns: Sequence[str] = (),
    channels: str | None = None,
    leave_out: Sequence[Path] = (),
    series_folder: SeriesFolder = no_series,
) -> Cohort:
    """The cases in folders and tables; `-` stands for a list of such paths on stdin. Raises MisuseError.

    leave_out: the folders of results, which may lie among the cases. series_folder: as for `find_cases`.
    """
    cohort = find_cases(paths_of(sources), naming_of(patterns, channels), leave_out=leave_out, series_folder=series_folder)
    only_source_fails = len(sources) == len(cohort.broken) == 1 and not cohort.cases
    return replace(cohort, alone=STDIN not in sources and (cohort.alone or only_source_fails))


def raw_cohort_of(
    sources: Sequence[str], *, patterns: Sequence[str] = (), channels: str | None = None, leave_out: Sequence[Path] = ()
) -> Cohort:
    """The same of raw scans: a folder that holds no case of NIfTI files may hold DICOM studies, and a scan be a series."""
    from drunet_cli.prepare.dicom import dicom_folder

    cohort = cohort_of(sources, patterns=patterns, channels=channels, leave_out=leave_out, series_folder=dicom_folder)
    empty = [item for item in cohort.broken if item.is_source and Path(item.name).is_dir()]
    if not empty:
        return cohort
    from drunet_cli.prepare.scans import cases_of_studies  # scipy: for this alone

    studies = {item.name: cases_of_studies(Path(item.name)) for item in empty if dicom_folder(Path(item.name))}
    found = [case for several in studies.values() for case in several]
    names = Counter([case.name for case in (*cohort.cases, *found)])
    cases = [case for case in found if isinstance(case, Case) and names[case.name] == 1]
    broken = [case for case in found if isinstance(case, BrokenCase)]
    broken += [
        BrokenCase(case.name, CaseError(f"{case.name}: is the name of several cases; name them apart in a table ({HEADER})"))
        for case in found
        if isinstance(case, Case) and names[case.name] > 1
    ]
    return replace(
        cohort,
        cases=tuple(sorted((*cohort.cases, *cases), key=lambda case: case.name)),
        broken=(*(item for item in cohort.broken if item.name not in studies), *broken),
        alone=len(sources) == len(found) + len(cohort.cases) == 1,
    )


def share_of(cohort: Cohort, shard: tuple[int, int]) -> Cohort:
    """The K-th of N shares of a cohort, K from 1: every N-th case by name, also of those that cannot be used.

    A source that holds no case, or cannot be read, is a failure of every share.
    """
    k, n = shard
    sources = tuple(item for item in cohort.broken if item.is_source)
    found: list[Case | BrokenCase] = [*cohort.cases, *(item for item in cohort.broken if not item.is_source)]
    share = sorted(found, key=lambda item: item.name)[k - 1 :: n]
    cases = tuple(item for item in share if isinstance(item, Case))
    broken = tuple(item for item in share if isinstance(item, BrokenCase))
    return replace(cohort, cases=cases, broken=(*broken, *sources), alone=False)


def naming_of(patterns: Sequence[str], channels: str | None) -> Naming:
    """What --pattern and --channels say of file names. Raises MisuseError."""
    return Naming(parse_patterns(patterns), None if channels is None else parse_channels(channels))


def paths_of(sources: Sequence[str]) -> list[Path]:
    """What CASES names; `-` stands for a list of paths on stdin. Raises MisuseError, and CaseError for an empty stdin."""
    if "" in sources:
        raise MisuseError("CASES: an empty path; an unset variable?")
    given = [paths_of_list(read_stdin(), name="stdin") if source == STDIN else [source] for source in sources]
    paths = [Path(path) for several in given for path in several]
    if sources and not paths:
        raise CaseError("stdin: no case: give paths of case folders, folders of cases or tables, one a line")
    return paths


def label_map_path(output: Path, case: str) -> Path:
    """What -o stands for: a NIfTI file, or a folder that gets {case}.nii.gz. Raises MisuseError."""
    if is_nifti(output.name) and stem(output):
        return output
    name = output.name.lower()
    if ".nii" in name or name.endswith(_OTHER_FORMATS):
        raise MisuseError(f"-o {output}: drunet writes NAME.nii.gz or NAME.nii; without such an ending OUT is a folder")
    return output / f"{case}.nii.gz"


def label_maps_of(cohort: Cohort, output: Path, *, bids: bool, prepare: bool) -> dict[str, Path]:
    """Where the label map of each case goes, by name, also of cases that cannot be used.

    bids: lay them out as a BIDS data set. prepare: the cases are to be prepared. Raises MisuseError.
    """
    unusable = [item.name for item in cohort.broken if not item.is_source]
    if not bids:
        return {name: label_map_path(output, name) for name in [*(case.name for case in cohort.cases), *unusable]}
    if names_a_file(output):
        raise MisuseError(f"-o {output}: is one file; --bids needs a folder, which becomes the data set")
    if others := [case.name for case in cohort.cases if not is_case_name(case.name)]:
        remedy = f"name cases {SUBJECT_AND_SESSION} in a table ({HEADER}), or one case by --case"
        cases = "1 case has" if len(others) == 1 else f"{len(others)} cases have"
        raise MisuseError(f"--bids: {cases} no name that BIDS knows ({join_some(others)}); {remedy}")
    from drunet_cli.prepare.native_space import is_prepared  # scipy: for this alone

    on_brats_grid = {case.name for case in cohort.cases if prepare or is_prepared(case)}
    spaces = {
        case.name: BRATS_SPACE if case.name in on_brats_grid else space_of(case.images[Modality.FLAIR]) for case in cohort.cases
    }
    spaces |= {name: ORIGINAL_SPACE for name in unusable if is_case_name(name)}
    return {name: label_map_in(output, name, space=space) for name, space in spaces.items()}


def names_a_file(output: Path) -> bool:
    """Whether -o is one NIfTI file and not a folder."""
    return label_map_path(output, "any") == output


def read_stdin() -> bytes:
    """All bytes of stdin. Raises CaseError."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:  # such as a folder
        raise CaseError(f"stdin: cannot be read: {error.strerror}") from error
