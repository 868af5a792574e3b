"""Which file is which modality, and what the case is called."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.io.case import case_of
from drunet_cli.io.naming import modality_in_name, parse_channels, parse_patterns, stem
from tests.support import unprivileged


def files(folder: Path, names: Sequence[str]) -> dict[Modality, Path]:
    """Four files, in the order FLAIR, T1ce, T1, T2."""
    images = {modality: folder / name for modality, name in zip(CHANNELS, names, strict=True)}
    for path in images.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return images


@pytest.fixture
def images(tmp_path: Path) -> dict[Modality, Path]:
    return files(tmp_path, ["a_flair.nii.gz", "a_t1ce.nii.gz", "a_t1.nii.gz", "a_t2.nii.gz"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_flair.nii.gz", "a_t1ce.nii.gz", "a_t1.nii.gz", "a_t2.nii.gz"], "a"),
        (
            [
                "BraTS2021_01479_flair.nii.gz",
                "BraTS2021_01479_t1ce.nii.gz",
                "BraTS2021_01479_t1.nii.gz",
                "BraTS2021_01479_t2.nii.gz",
            ],
            "BraTS2021_01479",
        ),
        (["X-t2f.nii.gz", "X-t1c.nii.gz", "X-t1n.nii.gz", "X-t2w.nii.gz"], "X"),
        (
            [
                "BraTS-GLI-00005-100-t2f.nii.gz",
                "BraTS-GLI-00005-100-t1c.nii.gz",
                "BraTS-GLI-00005-100-t1n.nii.gz",
                "BraTS-GLI-00005-100-t2w.nii.gz",
            ],
            "BraTS-GLI-00005-100",
        ),
        (["sub-01_FLAIR.nii.gz", "sub-01_ce-GD_T1w.nii.gz", "sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"], "sub-01"),
        (["p 7 flair.nii", "p 7 t1ce.nii", "p 7 t1.nii", "p 7 t2.nii"], "p 7"),
        (["p.flair.nii", "p.t1ce.nii", "p.t1.nii", "p.t2.nii"], "p"),
        (["a_flair.nii", "a_t1ce.NII.GZ", "a_t1.nii.gz", "a_t2.nii"], "a"),
        (["Brain_FLAIR.nii", "contrast.nii", "plain.nii", "t2.nii"], "Brain_FLAIR"),
        (["one/flair.nii.gz", "two/t1ce.nii.gz", "two/t1.nii.gz", "two/t2.nii.gz"], "flair"),
        (["head.nii.gz", "tumour_ce.nii.gz", "tumour.nii.gz", "t2.nii.gz"], "head"),
        (["flair/a.nii.gz", "t1ce/a.nii.gz", "t1/a.nii.gz", "t2/a.nii.gz"], "a"),
        (["flair/sub_1.nii.gz", "t1ce/sub_1.nii.gz", "t1/sub_1.nii.gz", "t2/sub_1.nii.gz"], "sub_1"),
        (["p7/flair.nii.gz", "p7/t1ce.nii.gz", "p7/t1.nii.gz", "p7/t2.nii.gz"], "p7"),
    ],
)
def test_a_case_is_called_what_its_files_share_or_else_as_flair_is(tmp_path: Path, names: list[str], expected: str) -> None:
    assert case_of(files(tmp_path, names)).name == expected


def test_files_beside_the_working_folder_have_the_name_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "p7", ["flair.nii", "t1ce.nii", "t1.nii", "t2.nii"])
    (tmp_path / "p7" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "p7" / "here")
    assert case_of({modality: Path("..") / f"{modality}.nii" for modality in CHANNELS}).name == "p7"


def test_a_given_name_is_kept(images: dict[Modality, Path]) -> None:
    assert case_of(images, name="patient 7").name == "patient 7"


def test_the_images_are_kept_as_they_were_given(images: dict[Modality, Path]) -> None:
    assert case_of(images).images == images


@pytest.mark.parametrize(
    ("name", "expected"), [("a.nii.gz", "a"), ("a.NII.GZ", "a"), ("a.b.nii", "a.b"), ("a.mgz", "a"), ("a", "a")]
)
def test_a_stem_is_the_name_without_its_nifti_suffix(name: str, expected: str) -> None:
    assert stem(Path("folder.nii") / name) == expected


@pytest.mark.parametrize("modality", CHANNELS)
def test_a_missing_file_is_named_with_its_modality(images: dict[Modality, Path], modality: Modality) -> None:
    images[modality].unlink()
    with pytest.raises(CaseError) as caught:
        case_of(images)
    assert str(caught.value) == f"{images[modality]}: no such file (given as {modality.display})"


def test_a_dangling_link_is_told_from_a_missing_file(images: dict[Modality, Path]) -> None:
    images[Modality.T1].unlink()
    images[Modality.T1].symlink_to("gone.nii.gz")
    with pytest.raises(CaseError) as caught:
        case_of(images)
    assert str(caught.value) == f"{images[Modality.T1]}: is a link to a file that is missing (given as T1)"


def test_links_to_four_different_files_are_fine(tmp_path: Path, images: dict[Modality, Path]) -> None:
    links = {modality: tmp_path / f"link_{modality}.nii.gz" for modality in CHANNELS}
    for modality, link in links.items():
        link.symlink_to(images[modality])
    assert case_of(links).name == "link"


def test_one_file_under_two_modalities_is_refused(images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError) as caught:
        case_of({**images, Modality.T2: images[Modality.T1CE]})
    message = str(caught.value)
    assert message.startswith(f"{images[Modality.T1CE]}: ")
    assert "T1ce" in message
    assert "T2" in message


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_one_file_under_two_names_is_refused(images: dict[Modality, Path], link: str) -> None:
    images[Modality.T2].unlink()
    getattr(images[Modality.T2], link)(images[Modality.FLAIR])
    with pytest.raises(CaseError, match="given as FLAIR and as T2"):
        case_of(images)


def test_one_file_by_two_ways_is_refused(tmp_path: Path, images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError, match="given as FLAIR and as T2"):
        case_of({**images, Modality.T2: tmp_path / ".." / tmp_path.name / images[Modality.FLAIR].name})


def test_a_case_has_no_reference_unless_one_is_given(tmp_path: Path, images: dict[Modality, Path]) -> None:
    (tmp_path / "truth.nii.gz").touch()
    assert case_of(images).segmentation is None
    with_reference = case_of(images, segmentation=tmp_path / "truth.nii.gz")
    assert with_reference.segmentation == tmp_path / "truth.nii.gz"
    assert with_reference.name == "a"


def test_a_missing_reference_is_named_as_such(tmp_path: Path, images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError) as caught:
        case_of(images, segmentation=tmp_path / "gone.nii.gz")
    assert str(caught.value) == f"{tmp_path / 'gone.nii.gz'}: no such file (given as segmentation)"


def test_an_image_given_as_the_reference_too_is_refused(images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError) as caught:
        case_of(images, segmentation=images[Modality.T2])
    assert str(caught.value) == f"{images[Modality.T2]}: given as T2 and as segmentation; give each its own file"


def test_a_path_with_a_nul_is_a_case_error(images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError, match="cannot be read: "):
        case_of({**images, Modality.T1: Path("a\0b")})


def test_a_file_in_a_folder_that_refuses_is_a_case_error() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = files(Path(folder), ["a_flair.nii", "a_t1ce.nii", "a_t1.nii", "a_t2.nii"])
        Path(folder).chmod(0)
        try:
            with unprivileged(), pytest.raises(CaseError) as caught:
                case_of(images)
        finally:
            Path(folder).chmod(0o700)
    assert str(caught.value).startswith(f"{images[Modality.FLAIR]}: ")


def test_a_name_too_long_for_the_file_system_is_a_case_error(images: dict[Modality, Path]) -> None:
    with pytest.raises(CaseError):
        case_of({**images, Modality.T1: Path("x" * 300)})


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
