"""Cases in folders and tables: which files of a tree make which patient. Reads no voxel.

The last word of a file's name says what it is: a modality in one of the field's spellings, `seg`, or a channel's number as in
nnU-Net. What stands before is the case's name, so that one folder may hold many cases. Where the last words make no whole case,
all known words at the end of a name count, as clinics have them: mprage_post. Patterns go before both, in the folders in which
they match.
"""

import functools
import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, join_some, plural
from drunet_cli.io.case import (
    HEADER,
    BrokenCase,
    Case,
    SeriesFolder,
    case_of,
    is_table,
    no_series,
    place_of,
    read_table,
    why_unreadable,
)
from drunet_cli.io.folders import Folder, FolderSurvey, FolderWithoutCase, Identity, folders_from, identity_of, shorten
from drunet_cli.io.naming import (
    BUILT_IN,
    CHANNEL_NUMBERS,
    SEGMENTATION,
    Channels,
    Naming,
    common_stem,
    described_channels,
    is_nifti,
    is_scan_in_bids,
    names_by_folder,
    role_by_last_word,
    role_by_words,
    with_a_name,
)


@dataclass(frozen=True)
class Cohort:
    """The cases of the sources, sorted by name; no two cases share a name.

    alone: one folder was given, and all there is in it is one case whose files lie directly in it.
    notes: lines on surprises: folders that were passed over, cases that their folders name, and folders in
    which no pattern matches.
    """

    cases: tuple[Case, ...]
    broken: tuple[BrokenCase, ...]
    alone: bool
    notes: tuple[str, ...] = ()
    folders_without_case: tuple[FolderWithoutCase, ...] = ()


def find_cases(
    sources: Sequence[Path],
    naming: Naming = BUILT_IN,
    *,
    leave_out: Sequence[Path] = (),
    series_folder: SeriesFolder = no_series,
) -> Cohort:
    """The cases of case folders, of folders that hold such at any depth, and of tables.

    leave_out: folders below the sources that are not entered, such as that of results. series_folder: as for `case_of`. A
    source that holds folders of such series beside cases is a BrokenCase too.
    Whatever cannot be used is a BrokenCase, also a source that holds no case. What is found twice counts once.
    """
    left_out = frozenset(identity for folder in leave_out if (identity := _identity(folder)) is not None)
    search = _Search(naming, left_out, series_folder)
    found: dict[Hashable, _Found] = {}
    without_case: dict[Path, FolderWithoutCase] = {}
    for source in sources:
        for item in search.source(source):
            if isinstance(item, FolderWithoutCase):
                without_case[item.path] = item
            else:
                found.setdefault(item.key, item)
    items = list(found.values())
    named, renamings = _with_distinct_names(items)
    unmatched = list(dict.fromkeys(item.folder for item in items if item.is_beside_patterns))
    return Cohort(
        cases=tuple(sorted((case for case in named if isinstance(case, Case)), key=lambda case: case.name)),
        broken=tuple(
            sorted((case for case in named if isinstance(case, BrokenCase)), key=lambda case: (case.name, str(case.error)))
        ),
        alone=len(sources) == len(items) == 1 and items[0].folder == sources[0],
        notes=(
            *_notes_on(without_case.values()),
            *renamings,
            *_note_on_unmatched(unmatched),
            *_note_on_left_aside(items),
        ),
        folders_without_case=tuple(without_case.values()),
    )


_MOST_FOLDERS: Final = 3


def _notes_on(folders: Iterable[FolderWithoutCase]) -> Iterator[str]:
    for has_nifti, held, remedy in (
        (False, "no NIfTI", ""),
        (True, "NIfTI but no case", "; name such files by --pattern, or in a table"),
    ):
        named = [f"{each.path} ({each.content})" for each in folders if each.has_nifti is has_nifti]
        if named:
            how_many = f"1 folder holds {held} and was" if len(named) == 1 else f"{len(named)} folders hold {held} and were"
            yield f"{how_many} passed over: {join_some(named, most=_MOST_FOLDERS)}{remedy}"


def _note_on_unmatched(folders: Sequence[Path | None]) -> Iterator[str]:
    if folders:
        named = join_some(folders, most=_MOST_FOLDERS)
        yield f"no --pattern matches a file in {plural(len(folders), 'folder')}, read by the built-in names: {named}"


def _note_on_left_aside(found: Iterable["_Found"]) -> Iterator[str]:
    """The note on images that may be the ones that are wanted: t2tse beside t2."""
    if paths := [path for item in found if isinstance(item.case, Case) for path in item.left_aside]:
        named = join_some(paths, most=_MOST_FOLDERS)
        yield f"{plural(len(paths), 'image')} left aside, since others have plainer names: {named}; --pattern t2=GLOB chooses"


def _with_distinct_names(found: Iterable["_Found"]) -> tuple[list[Case | BrokenCase], list[str]]:
    """Every case once, under a name that is its alone or as broken; and a note on cases that their folders name."""
    by_name: dict[str, list[_Found]] = defaultdict(list)
    for item in found:
        by_name[item.case.name].append(item)
    named: list[Case | BrokenCase] = []
    notes = []
    taken = set(by_name)
    for name, several in by_name.items():
        distinct: dict[Hashable, _Found] = {}
        for item in several:
            distinct.setdefault(_real_files(item.case) if isinstance(item.case, Case) else item.key, item)
        items = list(distinct.values())
        if (names := _names_by_folder(name, items, taken)) is not None:
            taken |= set(names)
            named += [replace(item.case, name=new) for item, new in zip(items, names, strict=True)]
            notes.append(f"{len(names)} cases called {name} are named by their folders: {join_some(sorted(names))}")
        else:
            named += _refuse_doubled(name, items)
    return named, notes


def _names_by_folder(name: str, items: Sequence["_Found"], taken: Container[str]) -> list[str] | None:
    """Names for cases of one name; None where it is no more than one case, or their folders give none that are free."""
    of_files = any(item.is_named_by_files for item in items)
    n_cases = sum(isinstance(item.case, Case) for item in items) if of_files else len(items)
    places = [(item.folder, item.source) for item in items if item.folder is not None and item.source is not None]
    if n_cases < 2 or len(places) < len(items):
        return None
    folders, tops = zip(*places, strict=True)
    return names_by_folder(name, folders, tops=tops, of_files=of_files, taken=taken)


def _refuse_doubled(name: str, items: Sequence["_Found"]) -> list[Case | BrokenCase]:
    """The same cases; those that can be used are broken where they are several."""
    places = [item.place for item in items if isinstance(item.case, Case)]
    if len(places) < 2:
        return [item.case for item in items]
    refused: list[Case | BrokenCase] = [item.case for item in items if isinstance(item.case, BrokenCase)]
    for n, place in enumerate(places):
        other = places[0 if n else 1]
        message = f"{place}: {name} is also the name of the case in {other}; name them apart in a table ({HEADER})"
        refused.append(BrokenCase(name, CaseError(message)))
    return refused


def _real_files(case: Case) -> tuple[str, ...]:
    paths = [case.images[modality] for modality in CHANNELS] + ([case.segmentation] if case.segmentation else [])
    return tuple(os.path.realpath(path) for path in paths)


@dataclass(frozen=True)
class _Found:
    """A case and its place. key: equal when the same is found again.

    folder: that its files lie in, if it was found in one, below source. is_named_by_files: and not by this folder.
    is_beside_patterns: there are patterns, and none matches in the folder. left_aside: other images in the folder whose names
    say a modality too, but less plainly.
    """

    case: Case | BrokenCase
    place: str
    key: Hashable
    folder: Path | None = None
    source: Path | None = None
    is_named_by_files: bool = False
    is_beside_patterns: bool = False
    left_aside: tuple[Path, ...] = ()


# nnU-Net's label maps are not taken as references: their class numbers are those of dataset.json, and in its BraTS sets 1 is
# oedema and 2 the core. Nor are they looked at: a label map called case_0001.nii.gz would pass for a channel.
_LABEL_FOLDERS: Final = ("labelsTr", "labelsTs")


class _Search:
    """The search of one source after the other. left_out: folders that are not entered."""

    def __init__(self, naming: Naming, left_out: frozenset[Identity], series_folder: SeriesFolder) -> None:
        self._naming, self._left_out, self._series_folder = naming, left_out, series_folder
        self._channels_in = functools.cache(lambda folder: naming.channels or described_channels(folder))

    def source(self, source: Path) -> Iterator[_Found | FolderWithoutCase]:
        """The cases of a source, and the folders in it that were passed over."""
        try:
            status = source.stat()
        except (OSError, ValueError) as error:
            reason = why_unreadable(source, error, kind="file or folder")
            yield _unusable(source, f"{reason}; give the folder of a case or of many, or a table")
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self._folder(source, self._left_out - {identity_of(status)})
        elif stat.S_ISREG(status.st_mode) and is_table(source):
            yield from _cases_of_table(source, identity_of(status), self._series_folder)
        else:
            folders = "give the folder of a case or of many, or the images of one by --t1 --t1ce --t2 --flair"
            yield _unusable(source, f"is neither a folder nor a table (.csv, .tsv); {folders}")

    def _folder(self, source: Path, left_out: frozenset[Identity]) -> Iterator[_Found | FolderWithoutCase]:
        has_case = has_shut_folder = False
        survey = FolderSurvey(source)
        file_names: list[str] = []
        for folder in folders_from(source, left_out=left_out, names_left_out=_LABEL_FOLDERS):
            if not isinstance(folder, Folder):
                has_shut_folder = True
                path, error = folder
                survey.leave_out(path)
                yield _unusable(path, f"{why_unreadable(path, error, kind='folder')}; mend its permissions or leave it out")
                continue
            if not (has_case or has_shut_folder):
                file_names += folder.files
            groups = list(_groups(folder, self._naming))
            survey.add(folder, has_cases=bool(groups))
            for group in groups:
                has_case = True
                # A file's name, unlike the case's, is the same by whatever path the folder is found.
                [file, *_], *_ = group.files.values()
                yield _Found(
                    self._case(group),
                    str(folder.path),
                    (folder.identity, file.name),
                    folder.path,
                    source,
                    is_named_by_files=group.is_named_by_files,
                    is_beside_patterns=bool(self._naming.patterns) and not group.is_by_pattern,
                    left_aside=() if len(groups) > 1 or group.is_by_pattern else group.left_aside(),
                )
        if not has_case and (not has_shut_folder or self._holds_series(source)):
            files = self._naming.expected(CHANNELS) + ", or NAME_0000.nii.gz to NAME_0003.nii.gz"
            yield _unusable(source, f"no case found: looked for files named {files}, found {_found_instead(file_names)}")
        without_case = list(survey.without_case())
        of_series = [each for each in without_case if not each.has_nifti and self._holds_series(each.path)]
        if of_series:
            yield _unusable(source, f"holds DICOM files in {plural(len(of_series), 'folder')} beside cases")
        yield from (each for each in without_case if each not in of_series)

    def _holds_series(self, folder: Path) -> bool:
        try:
            return self._series_folder(folder) is not None
        except CaseError:  # it cannot be read, as is told elsewhere
            return False

    def _case(self, group: "_Group") -> Case | BrokenCase:
        try:
            return _case(group, self._naming, self._channels_in)
        except CaseError as refusal:
            return BrokenCase(group.name, refusal)


def _cases_of_table(table: Path, identity: Identity, series_folder: SeriesFolder) -> Iterator[_Found]:
    try:
        rows = read_table(table, series_folder=series_folder)
    except CaseError as error:
        yield _Found(BrokenCase(str(table), error, is_source=True), str(table), identity)
        return
    for row in rows:
        yield _Found(row.case, place_of(table, row.line), (identity, row.line))


def _unusable(path: Path, reason: str) -> _Found:
    return _Found(BrokenCase(str(path), CaseError(f"{path}: {reason}"), is_source=True), str(path), str(path))


_IMAGE_ROLES: Final = frozenset((*CHANNELS, *CHANNEL_NUMBERS))


@dataclass(frozen=True)
class _Group:
    """Files of one folder that make a case, by what each may be: a modality, "seg", or a number of four digits.

    others: names of further images in the folder that may be the case's too. is_named_by_files: and not by the folder.
    is_by_pattern: a pattern matches in the folder.
    """

    name: str
    folder: Path
    files: "_Files"
    others: Sequence[str]
    is_named_by_files: bool
    is_by_pattern: bool

    def left_aside(self) -> tuple[Path, ...]:
        """The further images whose names say a modality."""
        return tuple(self.folder / name for name in self.others if role_by_words(name)[1] in CHANNELS)


_Files: TypeAlias = Mapping[str, Sequence[Path]]


def _groups(folder: Folder, naming: Naming) -> Iterator[_Group]:
    # A link that leads nowhere, or a pipe, counts too, so that case_of says what is wrong with it.
    every = [name for name in folder.files if is_nifti(name)]
    is_by_pattern = any(map(naming.roles_by_pattern, every))
    for name, files in _files_by_name(folder.path, every, naming, is_by_pattern=is_by_pattern).items():
        images = [path for role, paths in files.items() if role != SEGMENTATION for path in paths]
        own = {path.name for paths in files.values() for path in paths}
        few = len(every) <= _MOST_NAMES
        others = [other for other in every if other not in own and (few or other.startswith(name))]
        common = "" if name else common_stem(images)
        is_named_by_files = bool(common or (name and any(role_by_words(path.name)[0] for path in images)))
        case = name or common or with_a_name(folder.path).name
        yield _Group(case, folder.path, files, others, is_named_by_files, is_by_pattern)


def _files_by_name(folder: Path, images: Sequence[str], naming: Naming, *, is_by_pattern: bool) -> dict[str, _Files]:
    """Images by the name of their case, "" where patterns make the folder a case, and by what they may be.

    Images whose last words make a whole case are it. The others are read by all words at the end of their names; of those that
    only this makes known, and where patterns match elsewhere, a single one makes no case, unless its name is of BIDS.
    """

    def read(images: Iterable[str], role_in: Callable[[str], tuple[str, str | None]]) -> dict[str, dict[str, list[Path]]]:
        groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for image in images:
            before, role = role_in(image)
            name = "" if is_by_pattern else before or with_a_name(folder).name
            for each in naming.roles_beside_patterns(image, role) if is_by_pattern else [role] if role is not None else []:
                groups[name][each].append(folder / image)
        return {name: files for name, files in groups.items() if files.keys() & _IMAGE_ROLES}

    by_last_word = read(images, role_by_last_word)
    groups: dict[str, _Files] = {
        name: files for name, files in by_last_word.items() if files.keys() >= {*CHANNELS} or files.keys() >= {*CHANNEL_NUMBERS}
    }
    whole = {path.name for files in groups.values() for paths in files.values() for path in paths}
    known = set() if naming.patterns and not is_by_pattern else {*itertools.chain(*map(_image_paths, by_last_word.values()))}
    for name, files in read([image for image in images if image not in whole], role_by_words).items():
        found = _image_paths(files)
        is_sure = not known.isdisjoint(found) or any(is_scan_in_bids(path.name) for path in found)
        if name not in groups and (is_sure or len(files.keys() & _IMAGE_ROLES) > 1):
            groups[name] = files
    return groups


def _image_paths(files: _Files) -> list[Path]:
    return [path for role, paths in files.items() if role in _IMAGE_ROLES for path in paths]


def _case(group: _Group, naming: Naming, channels_in: Callable[[Path], Channels]) -> Case:
    """The case of a group. Raises CaseError, naming the folder, for modalities that are missing or there twice."""
    where = f"{group.folder}: {group.name}"
    roles: dict[Modality, str] = {modality: modality.value for modality in CHANNELS}
    if not group.files.keys() & roles.values():
        if surplus := sorted(group.files.keys() - {SEGMENTATION, *CHANNEL_NUMBERS}):
            beyond = ", ".join(surplus)
            raise CaseError(f"{where} has channels beyond the four of drunet ({beyond}); name its four in a table ({HEADER})")
        roles = dict(zip(channels_in(group.folder), CHANNEL_NUMBERS, strict=True))
    for part, role in [*((modality.display, roles[modality]) for modality in CHANNELS), ("segmentation", SEGMENTATION)]:
        if len(several := group.files.get(role, ())) > 1:
            first, second, *others = (path.name for path in several)
            more = f" and {len(others)} more" if others else ""
            remedy = f"choose one by --pattern {role}=GLOB"
            if role in naming.patterns and group.is_by_pattern:
                remedy = f"narrow --pattern {role}={naming.patterns[role]}"
            raise CaseError(f"{where} has {first} and {second}{more} for {part}; keep one, or {remedy}")
    if missing := [modality for modality in CHANNELS if roles[modality] not in group.files]:
        parts = ", ".join(modality.display for modality in missing)
        own = sorted({path.name for paths in group.files.values() for path in paths})
        bids_case = group.name if any(map(is_scan_in_bids, own)) else ""
        looked_for = naming.expected(
            (roles[modality] for modality in missing), by_pattern=group.is_by_pattern, bids_case=bids_case
        )
        found = _join_names([*group.others, *own])  # first what the reader has not been told yet
        remedy = "--pattern names others, and the network needs all four"
        raise CaseError(f"{where} has no {parts}: looked for {looked_for}, found {found}; {remedy}")
    images = {modality: group.files[roles[modality]][0] for modality in CHANNELS}
    return case_of(images, name=group.name, segmentation=next(iter(group.files.get(SEGMENTATION, ())), None))


# The most file names in a message about what was not found; a folder with no more images than these is listed whole.
_MOST_NAMES: Final = 6


def _found_instead(names: Sequence[str]) -> str:
    """The files of a source without a case, and the remedy."""
    if images := [name for name in names if is_nifti(name)]:
        return f"{_join_names(images)}; say by --pattern MODALITY=GLOB which are which, such as t1ce='*_contrast.nii.gz'"
    if names:
        return f"no .nii.gz or .nii but {_join_names(names)}; drunet prepare takes DICOM series; or name another folder"
    return "no file at all; name another folder"


def _join_names(names: Sequence[str]) -> str:
    return join_some([*map(shorten, names[:_MOST_NAMES]), *names[_MOST_NAMES:]], most=_MOST_NAMES)


def _identity(folder: Path) -> Identity | None:
    try:
        return identity_of(folder.stat())
    except (OSError, ValueError):
        return None
