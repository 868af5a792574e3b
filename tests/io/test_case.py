"""Which file is which modality, and what the case is called."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.case import case_of, modality_in_name, stem
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
        ("sub-01_ce-GD_T1w.nii.gz", None),
        ("t1/flair.nii", Modality.FLAIR),
        ("T1_brain.nii.gz", Modality.T1),
        ("contrast.nii.gz", None),
    ],
)
def test_a_file_name_tells_its_modality(name: str, modality: Modality | None) -> None:
    assert modality_in_name(Path(name)) is modality
