"""What is found to learn from, what is refused and why, and what is read of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.conversion.dataset import Layout
from drunet_cli.io.case import Case
from drunet_cli.io.naming import Naming
from drunet_cli.training.cases import PngCase, find_sources
from tests.conversion.small_cases import BRATS_AFFINE, NAME, SHAPE, brain_in, images_in, labels_in, save, saved_case, small_case
from tests.training.datasets import assert_unreadable, dataset, names_of, only_case, read, refusal

# --- what is found


def test_cases_of_nifti_files_are_found_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        small_case(tmp_path, name=name)
    sources = find_sources([tmp_path / "c", tmp_path])
    assert names_of(sources) == ["a", "b", "c"]
    assert not sources.refused
    assert all(isinstance(case.source, Case) for case in sources.cases)


def test_a_table_of_cases_is_taken(tmp_path: Path) -> None:
    files = small_case(tmp_path).files
    table = tmp_path / "cases.csv"
    table.write_text("case,t1,t1ce,t2,flair,seg\nq," + ",".join(str(files[m]) for m in ("t1", "t1ce", "t2", "flair", "seg")))
    assert names_of(find_sources([table])) == ["q"]


def test_patterns_name_the_segmentation(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert case.segmentation is not None
    case.segmentation.rename(case.segmentation.with_name("p1_truth.nii"))
    assert "NAME_seg.nii.gz" in refusal(find_sources([tmp_path]))
    patterns = {modality.value: f"*_{modality}.nii" for modality in CHANNELS}
    assert len(find_sources([tmp_path], Naming({**patterns, "seg": "*_truth.nii"})).cases) == 1
    assert "*_other.nii" in refusal(find_sources([tmp_path], Naming({**patterns, "seg": "*_other.nii"})))


@pytest.mark.parametrize("described", [True, False])
def test_a_dataset_of_slices_is_found(tmp_path: Path, described: bool) -> None:
    root = dataset(tmp_path, described=described)
    case = only_case(root)
    assert isinstance(case.source, PngCase)
    assert (case.name, case.place, case.source.n_slices) == (NAME, root, SHAPE[2])
    assert set(case.inputs) == ({"slices", "description"} if described else {"slices"})
    assert {path for paths in case.inputs.values() for path in paths} == {
        *(root / "images").iterdir(),
        *(root / "masks").iterdir(),
        *([Layout(root).description(NAME)] if described else []),
    }


def test_a_dataset_and_a_tree_of_cases_are_found_together(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    small_case(tmp_path / "more", name="a9")
    assert names_of(find_sources([root, tmp_path / "more"])) == ["a9", NAME]


def test_a_dataset_given_twice_counts_once(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (tmp_path / "link").symlink_to(root)
    sources = find_sources([root, tmp_path / "link", root])
    assert names_of(sources) == [NAME]
    assert not sources.refused


def test_a_folder_of_images_that_are_no_slices_is_a_tree_of_cases(tmp_path: Path) -> None:
    small_case(tmp_path / "images")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "notes.json").write_text("{}")
    assert isinstance(only_case(tmp_path).source, Case)


def test_a_file_beside_the_descriptions_that_is_none_is_left_alone(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (root / "cases" / "split.json").write_text('{"folds": 5}')
    assert names_of(find_sources([root])) == [NAME]


def test_no_image_is_read_to_find_cases(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    small_case(tmp_path / "more", name="q")
    for path in [*(tmp_path / "more").rglob("*.nii"), *root.rglob("*.png")]:
        path.write_bytes(b"")
    assert names_of(find_sources([root, tmp_path / "more"])) == [NAME, "q"]


# --- what is refused


def test_a_case_without_segmentation_is_refused(tmp_path: Path) -> None:
    folder = small_case(tmp_path, segmented=False).images[CHANNELS[0]].parent
    assert refusal(find_sources([tmp_path])).startswith(f"{folder}: {NAME} has no segmentation")


def test_what_discovery_calls_broken_is_refused(tmp_path: Path) -> None:
    small_case(tmp_path).images[CHANNELS[1]].unlink()
    assert "has no T1ce" in refusal(find_sources([tmp_path]))


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(find_sources([tmp_path / "nowhere"]), str(tmp_path / "nowhere"))


def test_other_cases_stay_usable_beside_refused_ones(tmp_path: Path) -> None:
    small_case(tmp_path, name="a", segmented=False)
    small_case(tmp_path, name="b")
    sources = find_sources([tmp_path])
    assert (names_of(sources), [case.name for case in sources.refused]) == (["b"], ["a"])


def test_a_name_that_a_dataset_and_a_tree_share_is_refused_in_both(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    sources = find_sources([root, tmp_path / "nifti"])
    assert not sources.cases
    images, slices = sorted((str(case.error) for case in sources.refused), key=lambda text: text.startswith(str(root)))
    folder = tmp_path / "nifti" / NAME
    assert images.startswith(f"{folder}: {NAME} is also the name of the case in {root};")
    assert slices.startswith(f"{root}: {NAME} is also the name of the case in {folder};")


def test_a_name_that_two_datasets_share_is_refused_in_both(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    shutil.copytree(root, tmp_path / "copy")
    sources = find_sources([root, tmp_path / "copy"])
    assert not sources.cases
    assert [case.name for case in sources.refused] == [NAME, NAME]


# --- what is read


@pytest.mark.parametrize("enhancing", [3, 4])
def test_both_values_of_enhancing_tumour_are_class_3(tmp_path: Path, enhancing: int) -> None:
    brain = brain_in()
    saved_case(tmp_path, images_in(brain), labels_in(brain, enhancing=enhancing))
    expected = labels_in(brain, enhancing=3)
    found = read(tmp_path).classes
    assert [np.count_nonzero(found == n) for n in range(1, 5)] == [np.count_nonzero(expected == n) for n in (1, 2, 3)] + [0]


def test_warnings_of_the_images_are_passed_on(tmp_path: Path) -> None:
    case = saved_case(tmp_path, images_in(np.ones(SHAPE, dtype=np.bool_)), np.zeros(SHAPE, dtype=np.uint8))
    [warning] = read(tmp_path).warnings
    assert warning.startswith(str(case.images[CHANNELS[0]]))
    assert "does not look skull-stripped" in warning


def test_a_segmentation_on_another_grid_is_refused(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert case.segmentation is not None
    save(case.segmentation, labels_in(brain_in())[:, :-1])
    assert_unreadable(tmp_path, match="segmentation not on the grid of FLAIR")


def test_a_segmentation_with_a_value_that_is_no_label_is_refused(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert case.segmentation is not None
    save(case.segmentation, labels_in(brain_in()) * np.uint8(3))
    assert_unreadable(tmp_path, match="holds label 6")


@pytest.mark.parametrize("axis", range(3))
def test_voxels_that_are_not_1_mm_are_refused(tmp_path: Path, axis: int) -> None:
    spacing = np.ones(4)
    spacing[axis] = 1.25
    brain = brain_in()
    saved_case(tmp_path, images_in(brain), labels_in(brain), affine=BRATS_AFFINE * spacing)
    assert_unreadable(tmp_path, match="1.25")


def test_labels_outside_the_frame_are_refused(tmp_path: Path) -> None:
    brain = brain_in((300, 20, 5), at=(0.1, 0.5))
    labels = labels_in(brain)
    labels[299, 10, 2] = 1
    saved_case(tmp_path, images_in(brain), labels)
    assert_unreadable(tmp_path, match="1 labelled voxels lie outside")
