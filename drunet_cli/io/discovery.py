"""Cases in folders and tables: which files of a tree make which patient. Reads no voxel.

The last word of a file's name says what it is: a modality in one of the field's spellings, `seg`, or a channel's number as in
nnU-Net. What stands before is the case's name, so that one folder may hold many cases.
"""

import errno
import functools
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, join_some
from drunet_cli.io.case import HEADER, BrokenCase, Case, case_of, is_table, place_of, read_table, why_unreadable
from drunet_cli.io.naming import (
    BUILT_IN,
    CHANNEL_NUMBERS,
    SEGMENTATION,
    Channels,
    Naming,
    common_stem,
    described_channels,
    is_nifti,
    roles_in_name,
    with_a_name,
)

Identity: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Cohort:
    """What the sources hold, sorted by name; no two cases share a name.

    alone: one folder was given, and all there is in it is one case whose files lie directly in it.
    notes: one line for each source about its folders without a NIfTI file.
    """

    cases: tuple[Case, ...]
    broken: tuple[BrokenCase, ...]
    alone: bool
    notes: tuple[str, ...] = ()


def find_cases(sources: Sequence[Path], naming: Naming = BUILT_IN, *, leave_out: Path | None = None) -> Cohort:
    """The cases of case folders, of folders that hold such at any depth, and of tables.

    leave_out: a folder below the sources that is not entered, such as that of results.
    Whatever cannot be used is a BrokenCase, also a source that holds no case. What is found twice counts once.
    """
    search = _Search(naming, _identity(leave_out))
    found: dict[Hashable, _Found] = {}
    notes: dict[str, None] = {}  # each once
    for source in sources:
        for item in search.source(source):
            if isinstance(item, str):
                notes[item] = None
            else:
                found.setdefault(item.key, item)
    items = list(found.values())
    cases, doubled = _told_apart_by_name([(item.case, item.place) for item in items if isinstance(item.case, Case)])
    broken = doubled + [item.case for item in items if isinstance(item.case, BrokenCase)]
    return Cohort(
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        broken=tuple(sorted(broken, key=lambda case: (case.name, str(case.error)))),
        alone=len(sources) == len(items) == 1 and items[0].folder == sources[0],
        notes=tuple(notes),
    )


def _told_apart_by_name(cases: Iterable[tuple[Case, str]]) -> tuple[list[Case], list[BrokenCase]]:
    """The cases whose name is theirs alone, and those that share it with a case of other files. Given with their places."""
    by_name: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for case, place in cases:
        by_name[case.name].append((case, place))
    unique, doubled = [], []
    for name, several in by_name.items():
        if len(several) == 1 or len(places := list({_real_files(case): place for case, place in several}.values())) == 1:
            unique.append(several[0][0])
            continue
        for n, place in enumerate(places):
            other = places[0 if n else 1]
            message = f"{place}: {name} is also the name of the case in {other}; name them apart in a table ({HEADER})"
            doubled.append(BrokenCase(name, CaseError(message)))
    return unique, doubled


def _real_files(case: Case) -> tuple[str, ...]:
    paths = [case.images[modality] for modality in CHANNELS] + ([case.segmentation] if case.segmentation else [])
    return tuple(os.path.realpath(path) for path in paths)


@dataclass(frozen=True)
class _Found:
    """A case and its place. key: equal when the same is found again. folder: that its files lie in, if it was found in one."""

    case: Case | BrokenCase
    place: str
    key: Hashable
    folder: Path | None = None


# nnU-Net's label maps are not taken as references: their class numbers are those of dataset.json, and in its BraTS sets 1 is
# oedema and 2 the core. Nor are they looked at: a label map called case_0001.nii.gz would pass for a channel.
_LABEL_FOLDERS: Final = ("labelsTr", "labelsTs")


class _Search:
    """The search of one source after the other. left_out: a folder that is not entered."""

    def __init__(self, naming: Naming, left_out: Identity | None) -> None:
        self._naming, self._left_out = naming, left_out
        self._channels_in = functools.cache(lambda folder: naming.channels or described_channels(folder))

    def source(self, source: Path) -> Iterator[_Found | str]:
        """The cases of a source, and a note about its folders without a NIfTI file."""
        try:
            status = source.stat()
        except (OSError, ValueError) as error:
            reason = why_unreadable(source, error, kind="file or folder")
            yield _unusable(source, f"{reason}; give the folder of a case or of many, or a table")
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self._folder(source, None if self._left_out == identity_of(status) else self._left_out)
        elif stat.S_ISREG(status.st_mode) and is_table(source):
            yield from _cases_of_table(source, identity_of(status))
        else:
            folders = "give the folder of a case or of many, or the images of one by --t1 --t1ce --t2 --flair"
            yield _unusable(source, f"is neither a folder nor a table (.csv, .tsv); {folders}")

    def _folder(self, source: Path, left_out: Identity | None) -> Iterator[_Found | str]:
        is_empty = True
        without_cases = _FoldersWithoutCases(source)
        file_names: list[str] = []
        for folder in folders_from(source, left_out=left_out, names_left_out=_LABEL_FOLDERS):
            if not isinstance(folder, Folder):
                is_empty = False
                path, error = folder
                without_cases.leave_out(path)
                yield _unusable(path, f"{why_unreadable(path, error, kind='folder')}; mend its permissions or leave it out")
                continue
            if is_empty:
                file_names += folder.files
            groups = list(_groups(folder, self._naming))
            without_cases.add(folder, has_cases=bool(groups))
            for group in groups:
                is_empty = False
                # A file's name, unlike the case's, is the same by whatever path the folder is found.
                [file, *_], *_ = group.files.values()
                yield _Found(self._case(group), str(folder.path), (folder.identity, file.name), folder.path)
        if is_empty:
            numbered = "" if self._naming.patterns else ", or NAME_0000.nii.gz to NAME_0003.nii.gz"
            files = self._naming.expected(CHANNELS) + numbered
            yield _unusable(source, f"no case found: looked for files named {files}, found {_found_instead(file_names)}")
        yield from without_cases.notes()

    def _case(self, group: "_Group") -> Case | BrokenCase:
        try:
            return _case(group, self._naming, self._channels_in)
        except CaseError as refusal:
            return BrokenCase(group.name, refusal)


def _cases_of_table(table: Path, identity: Identity) -> Iterator[_Found]:
    try:
        rows = read_table(table)
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

    others: names of further images in the folder that may be the case's too.
    """

    name: str
    folder: Path
    files: Mapping[str, Sequence[Path]]
    others: Sequence[str]


def _groups(folder: "Folder", naming: Naming) -> Iterator[_Group]:
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    # A link that leads nowhere, or a pipe, counts too, so that case_of says what is wrong with it.
    every = [name for name in folder.files if is_nifti(name)]
    for image in every:
        before, roles = roles_in_name(image, naming)
        name = "" if naming.patterns else before or with_a_name(folder.path).name
        for role in roles:
            groups[name][role].append(folder.path / image)
    for name, files in groups.items():
        if not files.keys() & _IMAGE_ROLES:
            continue
        images = [path for role, paths in files.items() if role != SEGMENTATION for path in paths]
        own = {path.name for paths in files.values() for path in paths}
        few = len(every) <= _MOST_NAMES
        others = [other for other in every if other not in own and (few or other.startswith(name))]
        yield _Group(name or common_stem(images) or with_a_name(folder.path).name, folder.path, files, others)


def _case(group: _Group, naming: Naming, channels_in: Callable[[Path], Channels]) -> Case:
    """Raises CaseError that names the folder for modalities that are missing, or there twice."""
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
            remedy = "tell it apart by --pattern"
            if role in naming.patterns:
                remedy = f"narrow --pattern {role}={naming.patterns[role]}"
            raise CaseError(f"{where} has {first} and {second}{more} for {part}; keep one, or {remedy}")
    if missing := [modality for modality in CHANNELS if roles[modality] not in group.files]:
        parts = ", ".join(modality.display for modality in missing)
        looked_for = naming.expected(roles[modality] for modality in missing)
        own = sorted({path.name for paths in group.files.values() for path in paths})
        found = _join_names([*group.others, *own])  # first what the reader has not been told yet
        raise CaseError(f"{where} has no {parts}: looked for {looked_for}, found {found}; --pattern names others")
    images = {modality: group.files[roles[modality]][0] for modality in CHANNELS}
    return case_of(images, name=group.name, segmentation=next(iter(group.files.get(SEGMENTATION, ())), None))


# The most file names in a message about what was not found; a folder with no more images than these is listed whole.
_MOST_NAMES: Final = 6
_LONGEST_NAME: Final = 60


def _found_instead(names: Sequence[str]) -> str:
    """What there is where no case is, and what to do."""
    if images := [name for name in names if is_nifti(name)]:
        return f"{_join_names(images)}; say by --pattern MODALITY=GLOB which are which, such as t1ce='*_contrast.nii.gz'"
    if names:
        return f"no .nii.gz or .nii but {_join_names(names)}; convert the images to NIfTI first, or name another folder"
    return "no file at all; name another folder"


def _join_names(names: Sequence[str]) -> str:
    return join_some([*map(_shorten, names[:_MOST_NAMES]), *names[_MOST_NAMES:]], most=_MOST_NAMES)


def _shorten(name: str) -> str:
    cut = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:cut]}...{name[-cut:]}"


_MOST_FOLDERS: Final = 3
_OF_NO_PATIENT: Final = (".py", ".pyc", ".m", ".r", ".sh", ".ipynb", ".md", ".rst", ".html", ".log")


class _FoldersWithoutCases:
    """The folders below top that a reader would take for patients, and that hold no NIfTI file.

    A folder is such a one beside folders with cases, be they of the data set itself, or of a folder in it that parts several
    (so p1/dicom beside p1/nifti is none). Folders that hold code or notes alone are none either.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._folders: list[Path] = []
        # Each with the folders above, up to the top.
        self._with_nifti: set[Path] = set()
        self._with_cases: set[Path] = set()
        self._with_other_files: set[Path] = set()
        self._first_files: dict[Path, Sequence[str]] = {}

    def add(self, folder: "Folder", *, has_cases: bool) -> None:
        """Take note of a folder. has_cases: some were found directly in it."""
        self._folders.append(folder.path)
        if has_cases:
            self._mark(self._with_cases, folder.path)
        if any(map(is_nifti, folder.files)):
            self._mark(self._with_nifti, folder.path)
        elif folder.files:
            for path in self._upwards(folder.path):
                if path in self._first_files:
                    break
                self._first_files[path] = folder.files[:2]
            if not all(name.lower().endswith(_OF_NO_PATIENT) for name in folder.files):
                self._mark(self._with_other_files, folder.path)

    def leave_out(self, path: Path) -> None:
        """Say nothing about a folder that cannot be looked into: it is a broken case."""
        self._mark(self._with_nifti, path)

    def notes(self) -> list[str]:
        """One line for all, or none."""
        n_beside = Counter(path.parent for path in self._with_cases if path != self._top)
        found = [path for path in self._folders if self._would_be_missed(path, n_beside)]
        if not found:
            return []
        named = [f"{path} ({self._content(path)})" for path in found[:_MOST_FOLDERS]]
        folders = join_some([*named, *found[_MOST_FOLDERS:]], most=_MOST_FOLDERS)
        how_many = "1 folder holds no NIfTI and was" if len(found) == 1 else f"{len(found)} folders hold no NIfTI and were"
        return [f"{how_many} passed over: {folders}"]

    def _would_be_missed(self, path: Path, n_beside: Counter[Path]) -> bool:
        if path == self._top or path in self._with_nifti:
            return False
        if n_beside[path.parent] < (1 if path.parent == self._top else 2):
            return False
        return path not in self._first_files or path in self._with_other_files

    def _content(self, path: Path) -> str:
        if path not in self._first_files:
            return "empty"
        first, *more = self._first_files[path]
        return f"{_shorten(first)}, ..." if more else _shorten(first)

    def _mark(self, marked: set[Path], path: Path) -> None:
        for each in self._upwards(path):
            if each in marked:
                break
            marked.add(each)

    def _upwards(self, path: Path) -> Iterator[Path]:
        """The folder and those above it, up to the top."""
        while path != self._top:
            yield path
            path = path.parent
        yield path


@dataclass(frozen=True)
class Folder:
    """A folder and the names of the files in it, sorted, hidden ones left out."""

    path: Path
    identity: Identity
    files: Sequence[str]


def folders_from(
    top: Path, *, left_out: Identity | None = None, names_left_out: Container[str] = ()
) -> Iterator[Folder | tuple[Path, OSError]]:
    """The folders from top down in sorted order; for one that refuses, its path and why.

    left_out: a folder that is not entered. names_left_out: no folder of these names, below top, is entered.
    """
    entered: set[Identity] = set() if left_out is None else {left_out}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            identity = identity_of(path.stat())
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(path) as entries:
                is_folder = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            yield path, error
            continue
        names = sorted(is_folder)
        yield Folder(path, identity, [name for name in names if not is_folder[name]])
        waiting += [path / name for name in reversed(names) if is_folder[name] and name not in names_left_out]


def identity_of(status: os.stat_result) -> Identity:
    """Equal for one file or folder by whatever path it is reached."""
    return status.st_dev, status.st_ino


def _identity(folder: Path | None) -> Identity | None:
    try:
        return None if folder is None else identity_of(folder.stat())
    except (OSError, ValueError):
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link: to itself, or to what may not be seen, which is then said of the folder or the image
        return error.errno != errno.ELOOP and not is_nifti(entry.name)
