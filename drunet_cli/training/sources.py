"""What `drunet train` learns from: cases of NIfTI files with a segmentation, and datasets of PNG slices."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drunet_cli.brats import ClassMap, Modality
from drunet_cli.conversion.layout import Layout
from drunet_cli.errors import CaseError
from drunet_cli.io.case import BrokenCase, Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.folders import Identity, identity_of
from drunet_cli.io.labelled import read_labelled
from drunet_cli.io.naming import BUILT_IN, SEGMENTATION, Naming
from drunet_cli.io.slices import SliceStack
from drunet_cli.training.png_dataset import PngCase, png_cases, read_png_case


@dataclass(frozen=True)
class TrainingCase:
    """A case with labels, by its images or by its slices. Reads no voxel."""

    name: str
    source: Case | PngCase

    @property
    def place(self) -> Path:
        """The folder in which it was found."""
        return self.source.layout.root if isinstance(self.source, PngCase) else self.source.images[Modality.FLAIR].parent

    @property
    def inputs(self) -> dict[str, tuple[Path, ...]]:
        """Every file that the case is made from, by what it is: a modality and "seg", or "slices" and "description"."""
        source = self.source
        if isinstance(source, Case):
            return {name: (file,) for name, file in source.files.items()}
        folders = ((source.layout.images, source.images), (source.layout.masks, source.masks))
        slices = tuple(folder / names[z] for folder, names in folders for z in sorted(names))
        return {"slices": slices} if source.description is None else {"slices": slices, "description": (source.description,)}


@dataclass(frozen=True)
class Sources:
    """What was found, sorted by name: cases to learn from, no two of one name, and what cannot be used."""

    cases: tuple[TrainingCase, ...]
    refused: tuple[BrokenCase, ...]


@dataclass(frozen=True)
class LabelledSlices:
    """A whole case, blank slices included. images: [Z, 240, 240, 4]; classes: class indices [Z, 240, 240]."""

    images: SliceStack
    classes: ClassMap
    warnings: tuple[str, ...] = ()


def find_sources(paths: Sequence[Path], naming: Naming = BUILT_IN) -> Sources:
    """The cases of datasets of PNG slices, and of all that `find_cases` takes: case folders, trees of such, tables.

    A folder is a dataset when its `images` holds slices or its `cases` descriptions; NIfTI files in it are not looked at.
    """
    found: list[TrainingCase] = []
    refused: list[BrokenCase] = []
    others: list[Path] = []
    entered: set[Identity] = set()
    for path in paths:
        try:
            dataset = png_cases(Layout(path))
        except CaseError as error:
            refused.append(BrokenCase(str(path), error))
            continue
        if dataset is None:
            others.append(path)
        elif (identity := identity_of(path.stat())) not in entered:
            entered.add(identity)
            found += [TrainingCase(name, case) for name, case in dataset.items() if isinstance(case, PngCase)]
            refused += [BrokenCase(name, error) for name, error in dataset.items() if isinstance(error, CaseError)]
    cohort = find_cases(others, naming)
    found += [TrainingCase(case.name, case) for case in cohort.cases]
    usable, unusable = _told_apart(found, naming)
    refused += [*cohort.broken, *unusable]
    return Sources(
        tuple(sorted(usable, key=lambda case: case.name)),
        tuple(sorted(refused, key=lambda case: (case.name, str(case.error)))),
    )


def read_labelled_slices(case: TrainingCase) -> LabelledSlices:
    """Read a case whole. Raises CaseError for images, labels or slices that cannot be learnt from."""
    if isinstance(case.source, PngCase):
        return LabelledSlices(*read_png_case(case.name, case.source))
    labelled = read_labelled(case.source)
    assert labelled.segmentation is not None, "find_sources refuses a case without segmentation"
    return LabelledSlices(
        images=labelled.images.slices(),
        classes=np.moveaxis(labelled.segmentation.frames, 2, 0),
        warnings=tuple(warning.message for warning in labelled.images.warnings),
    )


def _told_apart(found: Iterable[TrainingCase], naming: Naming) -> tuple[list[TrainingCase], list[BrokenCase]]:
    """Cases whose name is theirs alone and that have labels, and the others."""
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
