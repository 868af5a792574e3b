"""Which cases are found, refused and held out, and what is read of them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.brats import CHANNELS
from drunet_cli.conversion.dataset import Layout
from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.naming import Naming
from drunet_cli.training.cases import (
    MOST_SLICES,
    FoundCases,
    LabelledSlices,
    PngCase,
    Split,
    TrainingCase,
    draw_folds,
    find_training_cases,
    patient_of,
    patients_of,
    read_labelled_slices,
    read_split,
    split_by_fraction,
)
from tests.conversion.small_cases import (
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    image_slice,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    save,
    save_pixels,
    saved_case,
    small_case,
)
from tests.support import unprivileged


def dataset(folder: Path, *, skip_blank: bool = False, described: bool = True, segmented: bool = True) -> Path:
    """PNG slices of one case, and the case in folder/nifti; not described as if the descriptions had been lost."""
    root = folder / "png"
    convert(small_case(folder / "nifti", segmented=segmented), root, skip_blank=skip_blank)
    if not described:
        shutil.rmtree(root / "cases")
    return root


def names_of(found: FoundCases) -> list[str]:
    return [case.name for case in found.cases]


def only_case(path: Path) -> TrainingCase:
    found = find_training_cases([path])
    assert not found.refused
    [case] = found.cases
    return case


def refusal(found: FoundCases) -> str:
    """The one reason for which nothing can be learnt from."""
    assert not found.cases
    [broken] = found.refused
    return str(broken.error)


def read(path: Path) -> LabelledSlices:
    return read_labelled_slices(only_case(path))


# What is found


def test_cases_are_found_in_folders_trees_tables_and_slices_sorted_by_name(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    files = {name: small_case(tmp_path / "more", name=name).files for name in ("b", "a9")}
    table = tmp_path / "cases.csv"
    table.write_text(
        "case,t1,t1ce,t2,flair,seg\nq," + ",".join(str(files["b"][m]) for m in ("t1", "t1ce", "t2", "flair", "seg"))
    )
    (root / "cases" / "split.json").write_text('{"folds": 5}')  # no description, left alone
    (tmp_path / "link").symlink_to(root)
    for path in [*(tmp_path / "more").rglob("*.nii"), *root.rglob("*.png")]:
        path.write_bytes(b"")  # no image is read to find cases
    found = find_training_cases([root, tmp_path / "more" / "b", tmp_path / "more", table, tmp_path / "link", root])
    assert (names_of(found), found.refused) == (["a9", "b", NAME, "q"], ())


@pytest.mark.parametrize("described", [True, False])
def test_case_of_slices_knows_every_file_that_it_is_made_of(tmp_path: Path, described: bool) -> None:
    root = dataset(tmp_path, described=described)
    case = only_case(root)
    assert isinstance(case.source, PngCase)
    assert (case.name, case.place, case.source.n_slices) == (NAME, root, SHAPE[2])
    assert set(case.inputs) == ({"slices", "description"} if described else {"slices"})
    files = {*(root / "images").iterdir(), *(root / "masks").iterdir()} | (
        {Layout(root).description(NAME)} if described else set()
    )
    assert {path for paths in case.inputs.values() for path in paths} == files


def test_folder_of_images_that_are_no_slices_is_a_tree_of_cases(tmp_path: Path) -> None:
    small_case(tmp_path / "images")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "notes.json").write_text("{}")
    assert isinstance(only_case(tmp_path).source, Case)


def test_patterns_name_the_segmentation(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert case.segmentation is not None
    case.segmentation.rename(case.segmentation.with_name("p1_truth.nii"))
    assert "NAME_seg.nii.gz" in refusal(find_training_cases([tmp_path]))
    patterns = {modality.value: f"*_{modality}.nii" for modality in CHANNELS}
    assert len(find_training_cases([tmp_path], Naming({**patterns, "seg": "*_truth.nii"})).cases) == 1
    assert "*_other.nii" in refusal(find_training_cases([tmp_path], Naming({**patterns, "seg": "*_other.nii"})))


# What is refused before a voxel is read


def test_case_that_lacks_something_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    folder = small_case(tmp_path, name="a", segmented=False).images[CHANNELS[0]].parent
    small_case(tmp_path, name="b").images[CHANNELS[1]].unlink()
    small_case(tmp_path, name="c")
    found = find_training_cases([tmp_path, tmp_path / "nowhere"])
    assert names_of(found) == ["c"]
    messages = {case.name: str(case.error) for case in found.refused}
    assert messages.pop("a").startswith(f"{folder}: a has no segmentation")
    assert "has no T1ce" in messages.pop("b")
    [nowhere] = messages.values()
    assert "no such file or folder" in nowhere


def test_name_that_two_sources_share_is_refused_in_both(tmp_path: Path) -> None:
    root, folder = dataset(tmp_path), tmp_path / "nifti" / NAME
    found = find_training_cases([root, tmp_path / "nifti"])
    assert not found.cases
    images, slices = sorted((str(case.error) for case in found.refused), key=lambda text: text.startswith(str(root)))
    assert images.startswith(f"{folder}: {NAME} is also the name of the case in {root};")
    assert slices.startswith(f"{root}: {NAME} is also the name of the case in {folder};")


def change_description(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = Layout(root).description(NAME)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def remove_slices(*paths: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        for path in paths:
            (root / f"{path}.png").unlink()

    return damage


def rename_case(root: Path) -> None:
    for path in (root / "images", root / "masks"):
        for file in list(path.iterdir()):
            file.rename(file.with_name(file.name.replace(NAME, "a\nb")))


# What happens to a folder of slices x whether it has descriptions -> the words of the refusal.
REFUSED: Final[dict[str, tuple[bool, Callable[[Path], object], str]]] = {
    "described, slices missing": (True, remove_slices("images/p1_slice_1", "images/p1_slice_3"), "slice 1, 3 of p1 is missing"),
    "described, label slices missing": (True, remove_slices("masks/p1_slice_1"), "masks: slice 1 of p1 is missing"),
    "bare, slice missing": (False, remove_slices("images/p1_slice_1"), "images: slice 1 of p1 is missing"),
    "bare, label slice missing": (False, remove_slices("masks/p1_slice_3"), "masks: the label slice 3 of p1 is missing"),
    "bare, both missing": (False, remove_slices("images/p1_slice_3", "masks/p1_slice_3"), "slice 3 of p1 is missing"),
    "bare, last image missing": (False, remove_slices("images/p1_slice_4"), "slice 4 of p1 is missing"),
    "bare, no labels": (False, lambda root: shutil.rmtree(root / "masks"), "holds no label slice of p1"),
    "bare, a slice twice": (
        False,
        lambda root: shutil.copy(image_slice(root, 2), root / "images" / f"{NAME}_slice_002.png"),
        "slice 2 is there twice",
    ),
    "bare, beyond any brain": (
        False,
        lambda root: image_slice(root, 4).rename(image_slice(root, MOST_SLICES)),
        "says that there are 1001 slices",
    ),
    "bare, no name of a file": (False, rename_case, "cannot be part of a file name"),
    "unfinished": (
        True,
        lambda root: Layout(root).description(NAME).rename(Layout(root).unfinished(NAME)),
        "not complete",
    ),
    "of another case": (True, change_description(lambda document: document.update(case="q")), "describes the case q"),
    "without rows": (True, change_description(lambda document: document.pop("rows")), "no description of a case"),
    "a row twice": (
        True,
        change_description(lambda document: document["rows"].append(document["rows"][0])),
        "slices twice or beyond",
    ),
    "a row beyond": (True, change_description(lambda document: document["rows"][-1].__setitem__(0, 5)), "or beyond the 5"),
    "too large": (
        True,
        change_description(lambda document: document["shape"].__setitem__(2, 2000)),
        "says that there are 2000 slices",
    ),
    "one slice more": (
        True,
        change_description(lambda document: document["shape"].__setitem__(2, 6)),
        "slice 5 of p1 is missing",
    ),
}


@pytest.mark.parametrize(("described", "damage", "message"), REFUSED.values(), ids=REFUSED)
def test_slices_that_are_not_a_whole_case_are_refused(
    described: bool, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = dataset(tmp_path, described=described)
    damage(root)
    assert message in refusal(find_training_cases([root]))


def test_slices_of_a_case_without_segmentation_are_refused(tmp_path: Path) -> None:
    assert "converted without a segmentation" in refusal(find_training_cases([dataset(tmp_path, segmented=False)]))


@pytest.mark.parametrize("folder", ["images", "masks", "cases"])
def test_folder_that_cannot_be_listed_is_refused(folder: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        Path(name).chmod(0o755)
        root = dataset(Path(name))
        (root / folder).chmod(0o000)
        with unprivileged():
            found = find_training_cases([root])
        (root / folder).chmod(0o755)
        assert f"{root / folder}: cannot be listed" in refusal(found)


# What is read


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("skip_blank", [True, False])
def test_slices_give_what_the_images_gave(tmp_path: Path, skip_blank: bool, described: bool) -> None:
    root = dataset(tmp_path, skip_blank=skip_blank, described=described)
    of_images, of_slices = read(tmp_path / "nifti"), read(root)
    # Without a description nothing tells of blank slices above the last one.
    n = SHAPE[2] - 1 if skip_blank and not described else SHAPE[2]
    for found, expected in ((of_slices.images, of_images.images), (of_slices.classes, of_images.classes)):
        assert found.dtype == expected.dtype == np.uint8
        np.testing.assert_array_equal(found, expected[:n])
    assert not of_slices.images[0].any()  # blank, be there a file or not


def test_both_values_of_enhancing_tumour_and_colours_of_published_predictions_are_class_3(tmp_path: Path) -> None:
    brain = brain_in()
    found = []
    for enhancing in (3, 4):
        saved_case(tmp_path / str(enhancing), images_in(brain), labels_in(brain, enhancing=enhancing))
        found.append(read(tmp_path / str(enhancing)).classes)
    expected = labels_in(brain, enhancing=3)
    assert [np.count_nonzero(found[0] == n) for n in range(5)][1:] == [np.count_nonzero(expected == n) for n in (1, 2, 3)] + [0]
    np.testing.assert_array_equal(found[1], found[0])
    root = dataset(tmp_path)
    classes = read(root).classes
    for z in range(SHAPE[2]):
        save_pixels(mask_slice(root, z), pixels_of(mask_slice(root, z)) * np.array([50, 0, 0], dtype=np.uint8))
    np.testing.assert_array_equal(read(root).classes, classes)


def test_warnings_of_the_images_are_passed_on(tmp_path: Path) -> None:
    saved_case(tmp_path, images_in(np.ones(SHAPE, dtype=np.bool_)), np.zeros(SHAPE, dtype=np.uint8))
    [warning] = read(tmp_path).warnings
    assert "does not look skull-stripped" in warning


def change_labels(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda root: save(root.parent / "nifti" / NAME / f"{NAME}_seg.nii", change(labels_in(brain_in())))


def save_on_grid(spacing_mm: float) -> Callable[[Path], object]:
    brain = brain_in()
    affine = BRATS_AFFINE * np.array([1, spacing_mm, 1, 1])
    return lambda root: saved_case(root.parent / "nifti", images_in(brain), labels_in(brain), affine=affine)


def save_labels_outside_frame(root: Path) -> None:
    brain = brain_in((300, 20, 5), at=(0.1, 0.5))
    labels = labels_in(brain)
    labels[299, 10, 2] = 1
    saved_case(root.parent / "nifti", images_in(brain), labels)


def change_slice(folder: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = root / folder / f"{NAME}_slice_2.png"
        save_pixels(path, change(pixels_of(path)))

    return damage


def replace_by_pipe(root: Path) -> None:
    image_slice(root, 2).unlink()
    os.mkfifo(image_slice(root, 2))


def grow(root: Path) -> None:
    with image_slice(root, 2).open("ab") as stream:
        stream.truncate(2**22 + 1)


def cut(folder: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = root / folder / f"{NAME}_slice_2.png"
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def blacken(root: Path) -> None:
    for z in range(SHAPE[2]):
        save_pixels(image_slice(root, z), np.zeros((FRAME, FRAME, 4), dtype=np.uint8))


UNREADABLE: Final[dict[str, tuple[str, Callable[[Path], object], str]]] = {
    "labels on another grid": ("nifti", change_labels(lambda labels: labels[:, :-1]), "segmentation not on the grid of FLAIR"),
    "illegal label": ("nifti", change_labels(lambda labels: labels * np.uint8(3)), "holds label 6"),
    "voxels of 1.25 mm": ("nifti", save_on_grid(1.25), "1.25"),
    "labels outside the frame": ("nifti", save_labels_outside_frame, "1 labelled voxels lie outside"),
    "image slice of another size": ("png", change_slice("images", lambda pixels: pixels[:-1]), "has 239 x 240 pixels"),
    "label slice of another size": ("png", change_slice("masks", lambda pixels: pixels[:-1]), "has 239 x 240 pixels"),
    "image slice without alpha": ("png", change_slice("images", lambda pixels: pixels[..., :3]), "is not RGBA"),
    "illegal class": ("png", change_slice("masks", lambda pixels: pixels + np.uint8(4)), "pixels of illegal colour"),
    "cut image slice": ("png", cut("images"), "is truncated"),
    "cut label slice": ("png", cut("masks"), "is truncated"),
    "a pipe": ("png", replace_by_pipe, "is not a regular file"),
    "too large": ("png", grow, "is larger than any slice"),
    "no brain": ("png", blacken, "no brain to learn from"),
}


@pytest.mark.parametrize(("source", "damage", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_case_that_cannot_be_learnt_from_is_refused_by_its_file(
    source: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = dataset(tmp_path)
    damage(root)
    with pytest.raises(CaseError) as caught:
        read(tmp_path / source)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / source))


def test_slice_that_has_gone_meanwhile_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    case = only_case(root)
    mask_slice(root, 2).unlink()
    with pytest.raises(CaseError, match=r"p1_slice_2\.png: cannot be read: No such file"):
        read_labelled_slices(case)


# Which cases are held out

NAMES: Final = [f"BraTS20_Training_{n:03}" for n in range(1, 24)]
name_lists = st.integers(2, 40).map(lambda n: [f"case_{index}" for index in range(n)])


def alone(names: Sequence[str]) -> dict[str, str]:
    """The patients of cases of which no two are of one patient."""
    return {name: name for name in names}


@given(names=name_lists, fraction=st.floats(0, 0.99), seed=st.integers(0, 2**40))
def test_share_of_the_cases_is_held_out_and_none_is_learnt_from_too(names: list[str], fraction: float, seed: int) -> None:
    n_held_out = max(1, round(fraction * len(names))) if fraction > 0 else 0
    if n_held_out >= len(names):
        with pytest.raises(MisuseError, match=r"^a held-out share of .* leaves none of .* to learn from; .* --val-fraction 0"):
            split_by_fraction(alone(names), fraction, seed=seed)
        return
    split = split_by_fraction(alone(names), fraction, seed=seed)
    assert sorted([*split.train, *split.validation]) == sorted(names)
    assert (list(split.train), list(split.validation)) == (sorted(split.train), sorted(split.validation))
    assert len(split.validation) == n_held_out
    assert split == split_by_fraction(alone(names[::-1]), fraction, seed=seed)  # whatever order they were found in


@given(names=name_lists, n_folds=st.integers(2, 10), seed=st.integers(0, 2**40))
def test_folds_hold_every_case_out_once(names: list[str], n_folds: int, seed: int) -> None:
    if n_folds > len(names):
        with pytest.raises(MisuseError, match=rf"^--folds {n_folds}: there are fewer cases than that \({len(names)}\)$"):
            draw_folds(alone(names), n_folds, seed=seed)
        return
    folds = draw_folds(alone(names), n_folds, seed=seed)
    assert folds == draw_folds(alone(names[::-1]), n_folds, seed=seed)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    sizes = {len(fold) for fold in folds}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("sub-01_ses-pre", "sub-01"),
        ("BraTS-GLI-00012-001", "BraTS-GLI-00012"),
        ("P01_2019-03-01", "P01"),
        ("P01-20190301", "P01"),
        ("anna.b week-04", "anna.b"),
        ("P01_Baseline", "P01"),
        ("P01_followup2", "P01"),
        *(
            (name, name)
            for name in ("BraTS2021_00012", "BraTS20_Training_001", "Brats18_CBICA_AAB_1", "MR_12345678", "20190301")
        ),
    ],
)
def test_patient_is_the_part_of_the_name_before_a_visit(name: str, patient: str) -> None:
    assert patient_of(name) == patient


def test_folder_above_those_that_are_called_by_their_visits_is_a_patient(tmp_path: Path) -> None:
    for name in ("P01/20190301", "P01/20200301", "P02/20190401", "20210301"):
        folder, _, case = f"cohort/{name}".rpartition("/")
        small_case(tmp_path / folder, name=case)
    found = find_training_cases([cohort := tmp_path / "cohort"]).cases
    patients = patients_of(found, [cohort])
    assert {name: Path(patient).name for name, patient in patients.items()} == {
        "20190301": "P01",
        "20200301": "P01",
        "20190401": "P02",
        "20210301": "20210301",  # the folder above holds many patients
    }


@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=12), seed=st.integers(0, 2**40))
def test_cases_of_a_patient_stay_together(sizes: list[int], seed: int) -> None:
    patients = {f"p{n}_visit{k}": f"p{n}" for n, size in enumerate(sizes) for k in range(size)}
    folds = draw_folds(patients, 3, seed=seed)
    assert sum(len({patients[name] for name in fold}) for fold in folds) == len(sizes)
    assert max(map(len, folds)) - min(map(len, folds)) <= max(sizes)
    split = split_by_fraction(patients, 0.2, seed=seed)
    assert not {patients[name] for name in split.train} & {patients[name] for name in split.validation}


def test_seeds_split_otherwise() -> None:
    # Of 33,649 ways to hold 5 of 23 out, five seeds hit five.
    assert len({split_by_fraction(alone(NAMES), 0.2, seed=seed) for seed in range(5)}) == 5
    assert draw_folds(alone(NAMES), 5, seed=0) != draw_folds(alone(NAMES), 5, seed=1)


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"^there is no case"):
        split_by_fraction({}, 0, seed=0)


def write_split(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "split.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_file_of_a_split_is_read_back_as_the_same_one_and_leaves_other_cases_out(tmp_path: Path) -> None:
    split = Split((b"caf\xe9".decode(errors="surrogateescape"), "d"), ("größer",))
    path = write_split(tmp_path, split.as_json())
    assert read_split(path, [*split.train, *split.validation, "another"]) == split


NO_SPLIT: Final = 'is not a split: a JSON object {"train": [names], "validation": [names]}'
LISTS: Final = "train and validation are lists of case names"
NO_SPLITS: Final = {
    "no JSON": ('{"train": ["a"]', NO_SPLIT),
    "no UTF-8": (b'{"train": ["\xe9"], "validation": []}', NO_SPLIT),
    "a list": ('[["a"], ["b"]]', NO_SPLIT),
    "null": ("null", NO_SPLIT),
    "without validation": ('{"train": ["a"]}', NO_SPLIT),
    "nested without end": ("[" * 100_000, NO_SPLIT),
    "one name for a list": ('{"train": "a", "validation": ["b"]}', LISTS),
    "number for a name": ('{"train": ["a", 3], "validation": ["b"]}', LISTS),
    "case in both": ('{"train": ["a", "b"], "validation": ["b"]}', "names b more than once; a case is learnt from or held out"),
    "case twice": ('{"train": ["a", "a"], "validation": []}', "names a more than once; a case is learnt from or held out"),
    "many unknown cases": (
        json.dumps({"train": ["a"], "validation": list("zyxwvut")}),
        "names t, u, v, w, x and 2 more, not among the 3 cases that were found",
    ),
    "nothing to learn from": ('{"train": [], "validation": ["a"]}', "names no case to learn from"),
}


@pytest.mark.parametrize(("content", "message"), NO_SPLITS.values(), ids=NO_SPLITS)
def test_file_that_splits_nothing_is_refused_by_its_name_and_why(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, content)
    with pytest.raises(CaseError) as caught:
        read_split(path, ["a", "b", "c"])
    assert str(caught.value) == f"{path}: {message}"
