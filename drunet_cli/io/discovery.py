"""Cases in folders and tables: which files of a tree make which patient. Reads no voxel.

The last word of a file's name says what it is: a modality in one of the field's spellings, `seg`, or a channel's number as in
nnU-Net. What stands before is the case's name, so that one folder may hold many cases.
"""

import functools
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.case import BrokenCase, Case, case_of, why_unreadable
from drunet_cli.io.case_table import HEADER, is_table, place_of, read_table
from drunet_cli.io.folders import Folder, Identity, folders_from, identity_of
from drunet_cli.io.name_lists import MOST_NAMES, found_instead, names_listed
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
from drunet_cli.io.passed_over import PassedOver

_IMAGE_ROLES: Final = frozenset((*CHANNELS, *CHANNEL_NUMBERS))
# nnU-Net's label maps are not taken as references: their class numbers are those of dataset.json, and in its BraTS sets 1 is
# oedema and 2 the core. Nor are they looked at: a label map called case_0001.nii.gz would pass for a channel.
_LABEL_FOLDERS: Final = ("labelsTr", "labelsTs")


@dataclass(frozen=True)
class Cohort:
    """What the sources hold, sorted by name; no two cases share a name.

    alone: one folder was given, and all there is in it is one case whose files lie directly in it.
    notes: of folders that were passed over, one line each.
    """

    cases: tuple[Case, ...]
    broken: tuple[BrokenCase, ...]
    alone: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Files of one folder that make a case, by what each may be: a modality, "seg", or a number of four digits.

    others: names of further images in the folder that may be the case's too.
    """

    name: str
    folder: Path
    files: Mapping[str, Sequence[Path]]
    others: Sequence[str]


@dataclass(frozen=True)
class _Found:
    """A case and its place. key: equal when the same is found again. folder: that its files lie in, if it was found in one."""

    case: Case | BrokenCase
    place: str
    key: Hashable
    folder: Path | None = None


def find_cases(sources: Sequence[Path], naming: Naming = BUILT_IN, *, leave_out: Path | None = None) -> Cohort:
    """The cases of case folders, of folders that hold such at any depth, and of tables.

    leave_out: a folder below the sources that is not entered, such as that of results.
    Whatever cannot be used is a BrokenCase, also a source that holds no case. What is found twice counts once.
    """
    channels_in = functools.cache(lambda folder: naming.channels or described_channels(folder))
    found: dict[Hashable, _Found] = {}
    notes: dict[str, None] = {}  # each once
    for source in sources:
        for item in _from_source(source, naming, channels_in, _identity(leave_out)):
            if isinstance(item, str):
                notes[item] = None
            else:
                found.setdefault(item.key, item)
    items = list(found.values())
    cases, doubled = _told_by_name([(item.case, item.place) for item in items if isinstance(item.case, Case)])
    broken = doubled + [item.case for item in items if isinstance(item.case, BrokenCase)]
    return Cohort(
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        broken=tuple(sorted(broken, key=lambda case: (case.name, str(case.error)))),
        alone=len(sources) == len(items) == 1 and items[0].folder == sources[0],
        notes=tuple(notes),
    )


def _told_by_name(cases: Iterable[tuple[Case, str]]) -> tuple[list[Case], list[BrokenCase]]:
    """Of cases and their places: those whose name is theirs alone, and those that share it with a case of other files."""
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


def _identity(folder: Path | None) -> Identity | None:
    try:
        return None if folder is None else identity_of(folder.stat())
    except (OSError, ValueError):
        return None


def _from_source(
    source: Path, naming: Naming, channels_in: Callable[[Path], Channels], left_out: Identity | None
) -> Iterator[_Found | str]:
    try:
        status = source.stat()
    except (OSError, ValueError) as error:
        reason = why_unreadable(source, error, kind="file or folder")
        yield _unusable(source, f"{reason}; give the folder of a case or of many, or a table")
        return
    if stat.S_ISDIR(status.st_mode):
        yield from _from_folder(source, naming, channels_in, None if left_out == identity_of(status) else left_out)
    elif stat.S_ISREG(status.st_mode) and is_table(source):
        yield from _from_table(source, identity_of(status))
    else:
        folders = "give the folder of a case or of many, or the images of one by --t1 --t1ce --t2 --flair"
        yield _unusable(source, f"is neither a folder nor a table (.csv, .tsv); {folders}")


def _unusable(path: Path, reason: str) -> _Found:
    return _Found(BrokenCase(str(path), CaseError(f"{path}: {reason}"), is_source=True), str(path), str(path))


def _from_table(table: Path, identity: Identity) -> Iterator[_Found]:
    try:
        rows = read_table(table)
    except CaseError as error:
        yield _Found(BrokenCase(str(table), error, is_source=True), str(table), identity)
        return
    for row in rows:
        yield _Found(row.case, place_of(table, row.line), (identity, row.line))


def _from_folder(
    source: Path, naming: Naming, channels_in: Callable[[Path], Channels], left_out: Identity | None
) -> Iterator[_Found | str]:
    nothing = True
    passed_over = PassedOver(source)
    seen: list[str] = []
    for folder in folders_from(source, left_out=left_out, names_left_out=_LABEL_FOLDERS):
        if not isinstance(folder, Folder):
            nothing = False
            path, error = folder
            passed_over.refused(path)
            yield _unusable(path, f"{why_unreadable(path, error, kind='folder')}; mend its permissions or leave it out")
            continue
        if nothing:
            seen += folder.files
        passed_over.saw(folder, cases=bool(groups := list(_groups(folder, naming))))
        for group in groups:
            nothing = False
            case: Case | BrokenCase
            try:
                case = _case(group, naming, channels_in)
            except CaseError as refusal:
                case = BrokenCase(group.name, refusal)
            # A file's name, unlike the case's, is the same by whatever path the folder is found.
            [file, *_], *_ = group.files.values()
            yield _Found(case, str(folder.path), (folder.identity, file.name), folder.path)
    if nothing:
        numbered = "" if naming.patterns else ", or NAME_0000.nii.gz to NAME_0003.nii.gz"
        files = naming.expected(CHANNELS) + numbered
        yield _unusable(source, f"no case found: looked for files named {files}, found {found_instead(seen)}")
    yield from passed_over.notes()


def _groups(folder: Folder, naming: Naming) -> Iterator[_Group]:
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    # A link that leads nowhere, or a pipe, counts too, so that case_of says what is wrong with it.
    for image in filter(is_nifti, folder.files):
        before, roles = roles_in_name(image, naming)
        name = "" if naming.patterns else before or with_a_name(folder.path).name
        for role in roles:
            groups[name][role].append(folder.path / image)
    every = [name for name in folder.files if is_nifti(name)]
    for name, files in groups.items():
        if not files.keys() & _IMAGE_ROLES:
            continue
        images = [path for role, paths in files.items() if role != SEGMENTATION for path in paths]
        own = {path.name for paths in files.values() for path in paths}
        few = len(every) <= MOST_NAMES
        others = [other for other in every if other not in own and (few or other.startswith(name))]
        yield _Group(name or common_stem(images) or with_a_name(folder.path).name, folder.path, files, others)


def _case(group: _Group, naming: Naming, channels_in: Callable[[Path], Channels]) -> Case:
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
            remedy = (
                f"narrow --pattern {role}={naming.patterns[role]}" if role in naming.patterns else "tell it apart by --pattern"
            )
            raise CaseError(f"{where} has {first} and {second}{more} for {part}; keep one, or {remedy}")
    if missing := [modality for modality in CHANNELS if roles[modality] not in group.files]:
        parts = ", ".join(modality.display for modality in missing)
        looked_for = naming.expected(roles[modality] for modality in missing)
        own = sorted({path.name for paths in group.files.values() for path in paths})
        found = names_listed([*group.others, *own])  # what is not told yet first
        raise CaseError(f"{where} has no {parts}: looked for {looked_for}, found {found}; --pattern names others")
    images = {modality: group.files[roles[modality]][0] for modality in CHANNELS}
    return case_of(images, name=group.name, segmentation=next(iter(group.files.get(SEGMENTATION, ())), None))
