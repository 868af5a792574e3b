"""What the names of files tell."""

from pathlib import Path

import pytest

from drunet_cli.brats import Modality
from drunet_cli.errors import MisuseError
from drunet_cli.io.naming import modality_in_name, parse_channels, parse_patterns, stem


@pytest.mark.parametrize(
    ("name", "expected"), [("a.nii.gz", "a"), ("a.NII.GZ", "a"), ("a.b.nii", "a.b"), ("a.mgz", "a"), ("a", "a")]
)
def test_a_stem_is_the_name_without_its_nifti_suffix(name: str, expected: str) -> None:
    assert stem(Path("folder.nii") / name) == expected


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("BraTS2021_01479_t1ce.nii.gz", Modality.T1CE),
        ("BraTS-GLI-00005-100-t2f.nii.gz", Modality.FLAIR),
        ("BraTS-GLI-00005-100-t2w.nii.gz", Modality.T2),
        ("sub-01_T2w.nii", Modality.T2),
        ("sub-01_T1w.nii.gz", None),
        ("sub-01_ce-GD_T1w.nii.gz", Modality.T1CE),
        ("t1/flair.nii", Modality.FLAIR),
        ("T1_brain.nii.gz", Modality.T1),
        ("contrast.nii.gz", None),
    ],
)
def test_a_file_name_tells_its_modality(name: str, modality: Modality | None) -> None:
    assert modality_in_name(Path(name)) is modality


WITH_AGENT = """
    T1post T1_post T1-post t1gd p_T1_Gd T1-Gd T1_Gad T1.gado T1-gadolinium T1C T1_C T1-C T1+C T1w+C T1_CE T1w_CE T1w_Gd
    T1_contrast T1_enhanced T1_postcontrast T1_post_contrast T1_KM Gd_T1 contrast_T1 CE-T1 ce_T1w T1_mprage_post ses-pre_T1_Gd
    T1_Gd_brain sub-01_ce-gadolinium_T1w
"""
WITHOUT_AGENT = """
    T1 T1n T1pre T1_pre pre_T1 T1w_pre T1_noncontrast T1w_noncontrast T1_non_contrast T1_pre_contrast T1-pre-Gd
    T1_precontrast T1_without_contrast T1_unenhanced C_T1 c-01_T1 T1_postop T1_brain
"""


@pytest.mark.parametrize("name", WITH_AGENT.split())
def test_words_of_a_contrast_agent_make_a_t1_a_t1ce(name: str) -> None:
    assert modality_in_name(Path(f"{name}.nii.gz")) is Modality.T1CE


@pytest.mark.parametrize("name", WITHOUT_AGENT.split())
def test_words_for_no_contrast_agent_leave_a_t1_a_t1(name: str) -> None:
    assert modality_in_name(Path(f"{name}.nii.gz")) is Modality.T1


@pytest.mark.parametrize("name", ["post_T1", "ses-post_T1w", "ses-pre_T1w"])
def test_a_session_before_or_after_something_says_nothing_of_a_contrast_agent(name: str) -> None:
    assert modality_in_name(Path(f"{name}.nii.gz")) is None


@pytest.mark.parametrize(
    ("name", "modality"),
    [("T2_post", Modality.T2), ("FLAIR_Gd", Modality.FLAIR), ("T1_to_T2", Modality.T2), ("T2_in_T1w", Modality.T2)],
)
def test_words_of_a_contrast_agent_are_of_t1_alone(name: str, modality: Modality) -> None:
    assert modality_in_name(Path(f"{name}.nii.gz")) is modality


def test_patterns_go_by_modality_in_any_of_its_spellings() -> None:
    options = ["T1c=*_Contrast.nii.gz", "flair =a=b*", "seg=*truth*"]
    assert parse_patterns(options) == {"t1ce": "*_Contrast.nii.gz", "flair": "a=b*", "seg": "*truth*"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["t1"], "write MODALITY=GLOB"),
        (["t1="], "write MODALITY=GLOB"),
        ([""], "write MODALITY=GLOB"),
        (["pd=*"], "'pd' is none of flair, t1ce, t1, t2, seg"),
        (["t1w=*"], "'t1w' is none of"),
        (["=*"], "'' is none of"),
        (["t1=anat/*_T1w.nii.gz"], "leave out the folders and the /"),
        (["t2=*", "t1c=a*", "t1ce=b*"], "t1ce has the pattern a* already"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_misuse(options: list[str], reason: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_patterns(options)
    assert str(caught.value).startswith(f"--pattern {options[-1]}: ".replace("  ", " "))
    assert reason in str(caught.value)


@pytest.mark.parametrize("option", ["t1,t1ce,t2,flair", "T1, T1Gd, T2, FLAIR", "T1w,T1c,T2w,t2f", "t1n,t1-gd,t2w,T2-FLAIR"])
def test_channels_are_the_modalities_in_the_order_given(option: str) -> None:
    assert parse_channels(option) == (Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR)


@pytest.mark.parametrize(
    "option",
    ["", "t1", "t1,t1ce,t2", "t1,t1ce,t2,flair,t1", "t1,t1,t2,flair", "t1,t1ce,t2,pd", "t1 t1ce t2 flair", "T1w,T1w,T2,FLAIR"],
)
def test_channels_that_are_not_all_four_once_are_misuse(option: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_channels(option)
    assert "name flair, t1ce, t1, t2 once each, in the order of _0000 to _0003" in str(caught.value)
