"""Cases with labels, as NIfTI files or as PNG slices; and the split into cases to learn from and held-out cases."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, ClassMap, Modality
from drunet_cli.conversion.dataset import (
    Layout,
    SliceFile,
    is_description,
    read_description,
    slice_files,
    slice_name,
    slices_by_z,
)
from drunet_cli.errors import CaseError, MisuseError, join_some
from drunet_cli.io.case import BrokenCase, Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.folders import Identity, identity_of
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.intensities import SliceStack
from drunet_cli.io.naming import BUILT_IN, SEGMENTATION, Naming, may_name_a_file
from drunet_cli.io.png import read_label_slice, read_slice_file
from drunet_cli.io.volumes import read_labelled
from drunet_cli.training.recipe import Stream, generator

MOST_SLICES: Final = 1000  # io.nifti takes no field of view above 1000 mm, and slices are 1 mm apart


@dataclass(frozen=True, kw_only=True)
class PngCase:
    """A case as PNG slices.

    n_slices: number of slices, of which those without a file are blank. images, masks: file names by slice index.
    description: the file in which nii2png describes the case; None for slices without one.
    """

    layout: Layout
    n_slices: int
    images: Mapping[int, str]
    masks: Mapping[int, str]
    description: Path | None = None


@dataclass(frozen=True)
class TrainingCase:
    """A case with labels that was found; no voxel is read yet."""

    name: str
    source: Case | PngCase

    @property
    def place(self) -> Path:
        """The folder in which the case was found."""
        return self.source.layout.root if isinstance(self.source, PngCase) else self.source.images[Modality.FLAIR].parent

    @property
    def inputs(self) -> dict[str, tuple[Path, ...]]:
        """Every file of the case by its role: the modalities and "seg", or "slices" and "description"."""
        source = self.source
        if isinstance(source, Case):
            return {name: (file,) for name, file in source.files.items()}
        folders = ((source.layout.images, source.images), (source.layout.masks, source.masks))
        slices = tuple(folder / names[z] for folder, names in folders for z in sorted(names))
        return {"slices": slices} if source.description is None else {"slices": slices, "description": (source.description,)}


@dataclass(frozen=True)
class FoundCases:
    """Cases to learn from, no two of one name, and cases that are refused; both sorted by name. notes: see `Cohort`."""

    cases: tuple[TrainingCase, ...]
    refused: tuple[BrokenCase, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LabelledSlices:
    """All slices of a case, blank ones too. images: [Z, 240, 240, 4]; classes: class indices [Z, 240, 240]."""

    images: SliceStack
    classes: ClassMap
    warnings: tuple[str, ...] = ()


def find_training_cases(paths: Sequence[Path], naming: Naming = BUILT_IN, *, leave_out: Path | None = None) -> FoundCases:
    """Find cases in folders of PNG slices, case folders, folders of case folders, and tables.

    leave_out: a folder below them that is not entered, such as that of results.
    A folder holds PNG slices when its `images` has slices or its `cases` has descriptions; its NIfTI files are then left alone.
    """
    found: list[TrainingCase] = []
    refused: list[BrokenCase] = []
    others: list[Path] = []
    entered: set[Identity] = set()
    for path in paths:
        try:
            dataset = _find_png_cases(Layout(path))
        except CaseError as error:
            refused.append(BrokenCase(str(path), error))
            continue
        if dataset is None:
            others.append(path)
        elif (identity := identity_of(path.stat())) not in entered:
            entered.add(identity)
            found += [TrainingCase(name, case) for name, case in dataset.items() if isinstance(case, PngCase)]
            refused += [BrokenCase(name, error) for name, error in dataset.items() if isinstance(error, CaseError)]
    cohort = find_cases(others, naming, leave_out=() if leave_out is None else [leave_out])
    found += [TrainingCase(case.name, case) for case in cohort.cases]
    usable, unusable = _sort_out(found, naming)
    refused += [*cohort.broken, *unusable]
    return FoundCases(
        tuple(sorted(usable, key=lambda case: case.name)),
        tuple(sorted(refused, key=lambda case: (case.name, str(case.error)))),
        cohort.notes,
    )


def _sort_out(found: Iterable[TrainingCase], naming: Naming) -> tuple[list[TrainingCase], list[BrokenCase]]:
    """Part the cases that have labels and a name of their own from the others."""
    by_name: dict[str, list[TrainingCase]] = defaultdict(list)
    for case in found:
        by_name[case.name].append(case)
    usable, unusable = [], []
    for name, several in by_name.items():
        for n, case in enumerate(several):
            if len(several) > 1:
                other = several[0 if n else 1].place
                message = f"{case.place}: {name} is also the name of the case in {other}; give one of the two sources alone"
            elif isinstance(case.source, Case) and case.source.segmentation is None:
                looked_for = naming.expected([SEGMENTATION])
                message = (
                    f"{case.place}: {name} has no segmentation, without which there is nothing to learn: looked for "
                    f"{looked_for}; --pattern names others, a table its column seg"
                )
            else:
                usable.append(case)
                continue
            unusable.append(BrokenCase(name, CaseError(message)))
    return usable, unusable


@dataclass(frozen=True)
class Split:
    """Names of the cases to learn from and of the held-out cases, both sorted; no name is in both."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    def as_json(self) -> bytes:
        """Return the file that `read_split` reads."""
        return json.dumps({"train": self.train, "validation": self.validation}, indent=2).encode() + b"\n"


# The end of a case's name where a patient has several cases: a visit, or its date.
_DATE: Final = r"(?:19|20)\d\d(?P<sign>[-_.]?)(?:0[1-9]|1[0-2])(?P=sign)(?:0[1-9]|[12]\d|3[01])"
_VISIT: Final = rf"(?:ses|session|visit|tp|timepoint|day|week|month|year)[-_ ]?\d+|baseline|follow[-_ ]?up[-_ ]?\d*|{_DATE}"
_IS_VISIT: Final = re.compile(_VISIT, re.IGNORECASE)
_OF_PATIENT: Final = (
    re.compile(r"(sub-[A-Za-z0-9]+)_.*"),  # BIDS
    re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}"),  # BraTS from 2023 on
    re.compile(rf"(.+?)[-_. ](?:{_VISIT})", re.IGNORECASE),
)


def patients_of(cases: Iterable[TrainingCase], sources: Sequence[Path]) -> dict[str, str]:
    """Return the patient of each case, by case, as its name tells; the case's own name where it tells nothing.

    Where the whole name is a visit, the patient is the folder above the case's. sources: the folders and tables that were
    searched, which hold many patients.
    """
    roots = {*sources, *(source.parent for source in sources if source.is_file())}
    patients = {}
    for case in cases:
        patients[case.name] = patient_of(case.name)
        if _IS_VISIT.fullmatch(case.name) and not {case.place, case.place.parent} & roots:
            patients[case.name] = str(case.place.parent)
    return patients


def patient_of(name: str) -> str:
    """Return the part of a case's name that names the patient: of P01_2019-03-01, P01. The whole name where nothing tells."""
    return next((found[1] for pattern in _OF_PATIENT if (found := pattern.fullmatch(name))), name)


def split_by_fraction(patients: Mapping[str, str], fraction: float, *, seed: int) -> Split:
    """Hold out a share of the cases, drawn by the seed: at least one case unless the share is 0, and whole patients.

    patients: by case. Raises MisuseError when no case is left to learn from.
    """
    if not patients:
        raise MisuseError("there is no case to learn from")
    n_wanted = max(1, round(fraction * len(patients))) if fraction > 0 else 0
    held_out: list[str] = []
    for cases in _shuffled(patients, seed):
        if len(held_out) < n_wanted:
            held_out += cases
    if len(held_out) >= len(patients):
        raise MisuseError(
            f"a held-out share of {fraction:g} leaves none of {len(patients)} to learn from; give more cases, or "
            "--val-fraction 0"
        )
    return Split(tuple(sorted(patients.keys() - held_out)), tuple(sorted(held_out)))


def draw_folds(patients: Mapping[str, str], n_folds: int, *, seed: int) -> tuple[tuple[str, ...], ...]:
    """Deal cases out to folds, drawn by the seed; the cases of a patient come into one fold. Nothing else is balanced.

    patients: by case. Returns the sorted cases of each fold; where no patient has several, sizes differ by one case at most.
    Raises MisuseError when there are fewer patients than folds.
    """
    groups = _shuffled(patients, seed)
    if n_folds > len(groups):
        kind, in_cases = ("cases", "") if len(groups) == len(patients) else ("patients", f" in {len(patients)} cases")
        raise MisuseError(f"--folds {n_folds}: there are fewer {kind} than that ({len(groups)}{in_cases})")
    folds: list[list[str]] = [[] for _ in range(n_folds)]
    for cases in sorted(groups, key=len, reverse=True):  # the small ones last, to even out the sizes
        min(folds, key=len).extend(cases)
    return tuple(tuple(sorted(cases)) for cases in folds)


def read_split(path: Path, names: Sequence[str]) -> Split:
    """Read a JSON file {"train": [names], "validation": [names]}. Cases that the file does not name are left out.

    names: the cases that there are. Raises CaseError for another content, a name that comes twice, or an unknown name.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        train, validation = document["train"], document["validation"]
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CaseError(f'{path}: is not a split: a JSON object {{"train": [names], "validation": [names]}}') from error
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in (train, validation)):
        raise CaseError(f"{path}: train and validation are lists of case names")
    named = train + validation
    if doubled := sorted({name for name in named if named.count(name) > 1}):
        raise CaseError(f"{path}: names {join_some(doubled)} more than once; a case is learnt from or held out")
    if missing := sorted(set(named) - set(names)):
        raise CaseError(f"{path}: names {join_some(missing)}, not among the {len(names)} cases that were found")
    if not train:
        raise CaseError(f"{path}: names no case to learn from")
    return Split(tuple(sorted(train)), tuple(sorted(validation)))


def _shuffled(patients: Mapping[str, str], seed: int) -> list[list[str]]:
    """Return the cases of each patient, in an order that the seed draws, whatever the patients are called."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(patients):
        groups[patients[name]].append(name)
    ordered = list(groups.values())
    return [ordered[index] for index in generator(seed, Stream.SPLIT).permutation(len(ordered))]


def read_labelled_slices(case: TrainingCase) -> LabelledSlices:
    """Read all slices of a case. Raises CaseError for images, labels or slices that cannot be learnt from."""
    if isinstance(case.source, PngCase):
        return LabelledSlices(*_read_png_case(case.name, case.source))
    labelled = read_labelled(case.source)
    assert labelled.segmentation is not None, "find_training_cases refuses a case without segmentation"
    return LabelledSlices(
        images=labelled.images.slices(),
        classes=np.moveaxis(labelled.segmentation.frames, 2, 0),
        warnings=tuple(warning.message for warning in labelled.images.warnings),
    )


def _find_png_cases(layout: Layout) -> dict[str, PngCase | CaseError] | None:
    """Return the cases of a folder of PNG slices by name, or what is wrong with one; None where there are no slices.

    Raises CaseError for a folder that cannot be listed.
    """
    described = _described(layout)
    images = slice_files(layout.images) if layout.images.is_dir() else {}
    if not images and not described:
        return None
    masks = slice_files(layout.masks)
    cases: dict[str, PngCase | CaseError] = {}
    for name in sorted(images.keys() | described):
        files = images.get(name, []), masks.get(name, [])
        try:
            if not may_name_a_file(name):
                raise CaseError(f"{layout.images}: {name!r} cannot be part of a file name; rename the slices of this case")
            cases[name] = _described_case(name, layout, *files) if name in described else _bare_case(name, layout, *files)
        except CaseError as error:
            cases[name] = error
    return cases


def _read_png_case(name: str, source: PngCase) -> tuple[SliceStack, ClassMap]:
    """Read images [Z, 240, 240, 4] and class indices [Z, 240, 240]."""
    images = np.zeros((source.n_slices, FRAME, FRAME, len(CHANNELS)), dtype=np.uint8)
    classes = np.zeros((source.n_slices, FRAME, FRAME), dtype=np.uint8)
    for z, file in source.images.items():
        images[z] = _read_image_slice(source.layout.images / file)
    for z, file in source.masks.items():
        classes[z] = read_label_slice(source.layout.masks / file, (FRAME, FRAME))
    if not images.any():
        raise CaseError(f"{source.layout.images}: no pixel of {name} is above 0; there is no brain to learn from")
    return images, classes


def _described(layout: Layout) -> set[str]:
    """Return the names of the cases that have a description, also of those whose description is damaged."""
    if not layout.cases.is_dir():
        return set()
    try:
        names = [name.removesuffix(".json") for name in os.listdir(layout.cases) if name.endswith(".json")]  # noqa: PTH208
    except OSError as error:
        raise CaseError(f"{layout.cases}: cannot be listed: {error.strerror}") from error
    return {name for name in names if not name.startswith(".") and is_description(layout.description(name))}


def _described_case(name: str, layout: Layout, images: Sequence[SliceFile], masks: Sequence[SliceFile]) -> PngCase:
    path = layout.description(name)
    description = read_description(path)
    if description.case != name:
        raise CaseError(f"{path}: describes the case {description.case}, not {name}; convert the case again")
    if not description.has_masks:
        raise CaseError(f"{path}: {name} was converted without a segmentation; convert it again with one")
    n_slices = _checked_number(description.geometry().n_slices, path)
    slices = {row.z: slice_name(name, row.z) for row in description.rows}
    if len(slices) != len(description.rows) or not slices.keys() <= set(range(n_slices)):
        raise CaseError(f"{path}: is damaged: it names slices twice or beyond the {n_slices} of {name}; convert the case again")
    expected = slices.keys() if description.skip_blank else range(n_slices)
    for folder, files in ((layout.images, images), (layout.masks, masks)):
        if missing := set(expected) - {file.z for file in files}:
            raise CaseError(f"{folder}: slice {join_some(sorted(missing))} of {name} is missing; convert the case again")
    return PngCase(layout=layout, n_slices=n_slices, images=slices, masks=slices, description=path)


def _bare_case(name: str, layout: Layout, images: Sequence[SliceFile], masks: Sequence[SliceFile]) -> PngCase:
    """Return a case without description, as the published code makes it. Slices below the first one count as blank."""
    if os.path.lexists(unfinished := layout.unfinished(name)):
        raise CaseError(f"{unfinished}: the slices of {name} are not complete; convert the case again")
    if not masks:
        raise CaseError(f"{layout.masks}: holds no label slice of {name}, without which there is nothing to learn; add them")
    of_image, of_mask = slices_by_z(images), slices_by_z(masks)
    first, last = min(of_image), max(of_image)
    n_slices = _checked_number(last + 1, of_image[last])
    if missing := set(range(first, last)) - of_image.keys() | of_mask.keys() - of_image.keys():
        raise CaseError(f"{layout.images}: slice {join_some(sorted(missing))} of {name} is missing; make its slices again")
    if unlabelled := sorted(of_image.keys() - of_mask.keys()):
        raise CaseError(f"{layout.masks}: the label slice {join_some(unlabelled)} of {name} is missing; make its slices again")
    return PngCase(layout=layout, n_slices=n_slices, images=_names(of_image), masks=_names(of_mask))


def _checked_number(n_slices: int, path: Path) -> int:
    if n_slices > MOST_SLICES:
        raise CaseError(f"{path}: says that there are {n_slices} slices, more than any brain has; make the slices again")
    return n_slices


def _read_image_slice(path: Path) -> npt.NDArray[np.uint8]:
    """Read one slice, [240, 240, 4]."""
    pixels = read_slice_file(path, (FRAME, FRAME))
    if pixels.shape[2] != len(CHANNELS):
        channels = ", ".join(modality.display for modality in CHANNELS)
        raise CaseError(f"{path}: is not RGBA, as an image slice is ({channels}); make its slices again")
    return pixels


def _names(files: Mapping[int, Path]) -> dict[int, str]:
    return {z: path.name for z, path in files.items()}
