"""Names by BIDS: where a case's label map lies, what is called how beside it, and the way back from names."""

from pathlib import Path

import pytest

from drunet_cli.errors import MisuseError
from drunet_cli.io.naming import (
    beside,
    case_of_segmentation,
    dataset_of,
    is_case_name,
    is_on_grid_of_scan,
    label_map_in,
    space_of,
)

STEM = "sub-01_ses-1_space-orig"
LABEL_MAP = Path(f"out/sub-01/ses-1/anat/{STEM}_desc-tumour_dseg.nii.gz")


@pytest.mark.parametrize(
    ("case", "path"),
    [
        ("sub-01_ses-1", str(LABEL_MAP)),
        ("sub-a9", "out/sub-a9/anat/sub-a9_space-orig_desc-tumour_dseg.nii.gz"),
        ("sub-1_acq-iso_run-02", "out/sub-1/anat/sub-1_acq-iso_run-02_space-orig_desc-tumour_dseg.nii.gz"),
    ],
)
def test_a_case_lies_in_the_folder_of_its_session_and_is_found_again(case: str, path: str) -> None:
    label_map = label_map_in(Path("out"), case, space="orig")
    assert str(label_map) == path
    assert (case_of_segmentation(label_map), dataset_of(label_map)) == (case, Path("out"))
    assert dataset_of(label_map.with_name(f"{label_map.name.removesuffix('.nii.gz')}.json")) == Path("out")


@pytest.mark.parametrize(
    "name",
    ["p1", "sub-", "sub-é", "sub-01_", "ses-1_sub-01", "sub-01_space-orig", "sub-01_run-a", "site_sub-01", "sub-01_flair"],
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_case_name(name)
    with pytest.raises(MisuseError, match="no name of a case in BIDS"):
        label_map_in(Path("out"), name, space="orig")


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        (".json", f"{STEM}_desc-tumour_dseg.json"),
        (".tsv", f"{STEM}_desc-tumour_dseg.tsv"),
        ("_preview.png", f"{STEM}_desc-tumour_preview.png"),
        ("_view.html", f"{STEM}_desc-tumour_view.html"),
        ("_in_t1ce.nii.gz", "sub-01_ses-1_space-T1ce_desc-tumour_dseg.nii.gz"),
        ("_probabilities.nii.gz", f"{STEM}_desc-tumour_probseg.nii.gz"),
        ("_unc_core.nii.gz", f"{STEM}_label-TC_desc-tumour_uncertainty.nii.gz"),
        ("_entropy.nii.gz", f"{STEM}_desc-tumour_entropy.nii.gz"),
    ],
)
def test_what_lies_beside_has_a_name_of_the_same_form(ending: str, name: str) -> None:
    assert beside(LABEL_MAP, ending) == LABEL_MAP.with_name(name)
    assert beside(Path("out/sub-01_dseg.nii"), ending) == Path(f"out/sub-01_dseg{ending}")  # of no data set of drunet's
    assert is_on_grid_of_scan(beside(LABEL_MAP, ending)) == (ending == "_in_t1ce.nii.gz")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("sub-01_dseg.nii.gz", "sub-01"),
        ("sub-01_ses-1_space-MNI305_label-tumor_desc-manual_dseg.nii", "sub-01_ses-1"),
        ("sub-01_run-1_dseg.nii.gz", "sub-01_run-1"),
        ("sub-01_probseg.nii.gz", None),
        ("p1_dseg.nii.gz", None),
    ],
)
def test_the_case_of_a_segmentation_of_others(name: str, case: str | None) -> None:
    assert case_of_segmentation(Path(name)) == case
    assert dataset_of(Path("flat") / name) == Path("flat")


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("sub-01_FLAIR.nii.gz", "orig"),
        ("sub-01_ses-1_space-SRI24_desc-brain_FLAIR.nii.gz", "SRI24"),
        ("p1_space-SRI24_flair.nii.gz", "orig"),
    ],
)
def test_the_space_of_an_image_is_the_one_in_its_name(name: str, space: str) -> None:
    assert space_of(Path(name)) == space
