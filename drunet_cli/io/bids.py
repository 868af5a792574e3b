"""Names by BIDS derivatives: where the label map of a case lies in a data set, and what is called how beside it.

    sub-01/ses-1/anat/sub-01_ses-1_space-orig_desc-tumour_dseg.nii.gz

Reads no file. Source: BIDS 1.10, "Derivatives: imaging data types" and the order of entities in its appendix.
"""

import re
from pathlib import Path
from typing import Final

from drunet_cli.brats import UNCERTAINTY_MAPS, Modality
from drunet_cli.errors import MisuseError
from drunet_cli.io.naming import stem

ORIGINAL_SPACE: Final = "orig"  # BIDS' word for the space of the input images
BRATS_SPACE: Final = "BraTS"  # of the images that drunet has prepared; no template that BIDS lists
SUBJECT_AND_SESSION: Final = "sub-LABEL or sub-LABEL_ses-LABEL"
_LABEL: Final = "[0-9A-Za-z]+"
# What tells the scans of one session apart may follow; entities that tell how images were processed are not of a case's name.
_CASE: Final = re.compile(
    rf"(?P<subject>sub-{_LABEL})(?:_(?P<session>ses-{_LABEL}))?"
    rf"(?:_acq-{_LABEL})?(?:_ce-{_LABEL})?(?:_rec-{_LABEL})?(?:_run-[0-9]+)?"
)
_PROCESSING: Final = f"(?:_(?:space|seg|res|den|label|desc)-{_LABEL})*"
_SPACE: Final = re.compile(rf"_space-({_LABEL})(?=_)")
_SEGMENTATION: Final = re.compile(rf"(?P<case>{_CASE.pattern}){_PROCESSING}_dseg")
_OURS: Final = re.compile(rf"(?P<case>{_CASE.pattern})_space-(?P<space>{_LABEL})_desc-tumour_dseg")
_SCANS: Final = frozenset(modality.display for modality in Modality)


def is_case_name(name: str) -> bool:
    """Whether a case can have outputs in a data set: sub-01, sub-01_ses-1, with acq, ce, rec and run behind these."""
    return _CASE.fullmatch(name) is not None


def space_of(image: Path) -> str:
    """The space that the name of an image tells, else that of the image itself."""
    found = _SPACE.search(stem(image)) if image.name.startswith("sub-") else None
    return ORIGINAL_SPACE if found is None else found[1]


def label_map_in(dataset: Path, case: str, *, space: str) -> Path:
    """Where the label map of a case lies. Raises MisuseError for a name that BIDS does not know."""
    if not is_case_name(case):
        raise MisuseError(f"{case}: is no name of a case in BIDS, which is {SUBJECT_AND_SESSION}")
    return dataset / _folder_of(case) / f"{case}_space-{space}_desc-tumour_dseg.nii.gz"


def beside(label_map: Path, ending: str) -> Path:
    """The path of NAME{ending} beside a label map NAME.nii.gz, such as NAME_preview.png.

    Beside a label map of `label_map_in` it has a name of BIDS' form, also where BIDS has no suffix for what it is.
    """
    found = _OURS.fullmatch(stem(label_map))
    if found is None:
        return label_map.with_name(f"{stem(label_map)}{ending}")
    case, space = found["case"], found["space"]
    word, _, suffix = ending.partition(".")
    regions = {end: region for region, end in UNCERTAINTY_MAPS.items()}
    if not word:
        name = stem(label_map)
    elif word in regions:
        name = f"{case}_space-{space}_label-{regions[word]}_desc-tumour_uncertainty"
    elif word.startswith("_in_"):
        name = f"{case}_space-{Modality(word.removeprefix('_in_')).display}_desc-tumour_dseg"
    else:
        name = f"{case}_space-{space}_desc-tumour{'_probseg' if word == '_probabilities' else word}"
    return label_map.with_name(f"{name}.{suffix}")


# Back from names


def is_on_grid_of_scan(label_map: Path) -> bool:
    """Whether a label map of ours lies on the grid of one scan, beside the one of the case (--in-space)."""
    found = _OURS.fullmatch(stem(label_map))
    return found is not None and found["space"] in _SCANS


def case_of_segmentation(path: Path) -> str | None:
    """The case of a discrete segmentation, whoever made it: sub-01_ses-1 of sub-01_ses-1_desc-manual_dseg.nii.gz; else None."""
    found = _SEGMENTATION.fullmatch(stem(path))
    return None if found is None else found["case"]


def dataset_of(path: Path) -> Path:
    """The folder of the data set that a segmentation or its sidecar lies in; of any other file the folder that it lies in."""
    case = case_of_segmentation(path)
    folder = Path() if case is None else _folder_of(case)
    depth = len(folder.parts)
    return path.parents[depth] if depth and path.parent.parts[-depth:] == folder.parts else path.parent


def _folder_of(case: str) -> Path:
    found = _CASE.match(case)
    assert found is not None
    return Path(found["subject"], found["session"] or "", "anat")
