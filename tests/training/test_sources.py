"""What is found to learn from, what is refused and why, and what is read of it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.conversion.layout import Layout
from drunet_cli.errors import CaseError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.naming import Naming
from drunet_cli.training.sources import (
    MOST_SLICES,
    LabelledSlices,
    PngCase,
    Sources,
    TrainingCase,
    find_sources,
    read_labelled_slices,
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

FIRST, LAST = 1, SHAPE[2] - 2  # slices with brain


def dataset(tmp_path: Path, *, skip_blank: bool = False, described: bool = True, segmented: bool = True) -> Path:
    """A dataset of slices of one case; not described as if its cases folder had been lost."""
    root = tmp_path / "png"
    convert(small_case(tmp_path / "nifti", segmented=segmented), root, skip_blank=skip_blank)
    if not described:
        shutil.rmtree(root / "cases")
    return root


def names_of(sources: Sources) -> list[str]:
    return [case.name for case in sources.cases]


def only_case(path: Path) -> TrainingCase:
    sources = find_sources([path])
    assert not sources.refused
    [case] = sources.cases
    return case


def refusal(sources: Sources, name: str = NAME) -> str:
    """The one reason for which a case cannot be used."""
    assert not sources.cases
    [broken] = sources.refused
    assert broken.name == name
    return str(broken.error)


def read(path: Path) -> LabelledSlices:
    return read_labelled_slices(only_case(path))


def assert_equal(one: LabelledSlices, other: LabelledSlices) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.classes, other.classes)


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


@pytest.mark.parametrize("described", [True, False])
def test_slices_without_label_slices_are_refused(tmp_path: Path, described: bool) -> None:
    message = refusal(find_sources([dataset(tmp_path, described=described, segmented=False)]))
    assert ("converted without a segmentation" if described else "holds no label slice of p1") in message


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize("described", [True, False])
def test_a_missing_slice_is_named(tmp_path: Path, folder: str, described: bool) -> None:
    root = dataset(tmp_path, described=described)
    for z in (1, 3):
        (root / folder / f"{NAME}_slice_{z}.png").unlink()
    message = refusal(find_sources([root]))
    assert message.startswith(str(root / folder))
    assert "slice 1, 3 of p1 is missing" in message


def test_a_long_list_of_missing_slices_is_cut_short(tmp_path: Path) -> None:
    root = tmp_path / "png"
    convert(small_case(tmp_path, shape=(20, 24, 12)), root)
    shutil.rmtree(root / "masks")
    assert "slice 0, 1, 2, 3, 4 and 7 more of p1" in refusal(find_sources([root]))


def test_the_last_image_slice_is_missed_where_its_label_slice_is_there(tmp_path: Path) -> None:
    root = dataset(tmp_path, described=False)
    image_slice(root, SHAPE[2] - 1).unlink()
    assert "slice 4 of p1 is missing" in refusal(find_sources([root]))


def test_a_slice_that_misses_image_and_labels_between_others_is_named(tmp_path: Path) -> None:
    root = dataset(tmp_path, described=False)
    image_slice(root, 2).unlink()
    mask_slice(root, 2).unlink()
    assert "slice 2 of p1 is missing" in refusal(find_sources([root]))


def test_a_slice_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path, described=False)
    shutil.copy(image_slice(root, 2), root / "images" / f"{NAME}_slice_002.png")
    assert "slice 2 is there twice" in refusal(find_sources([root]))


def test_a_slice_number_beyond_any_brain_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path, described=False)
    image_slice(root, 4).rename(image_slice(root, MOST_SLICES))
    assert "1001 slices" in refusal(find_sources([root]))


def test_unfinished_slices_are_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    Layout(root).description(NAME).rename(Layout(root).unfinished(NAME))
    assert "not complete" in refusal(find_sources([root]))


DAMAGES: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "describes the case q": lambda document: document.update(case="q"),
    "no description of a case": lambda document: document.pop("rows"),
    "slices twice or beyond": lambda document: document["rows"].append(document["rows"][0]),
    "or beyond the 5": lambda document: document["rows"][-1].__setitem__(0, 5),
    "says that there are 2000 slices": lambda document: document["shape"].__setitem__(2, 2000),
    "slice 5 of p1 is missing": lambda document: document["shape"].__setitem__(2, 6),
}


@pytest.mark.parametrize("match", DAMAGES)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, match: str) -> None:
    root = dataset(tmp_path)
    path = Layout(root).description(NAME)
    document = json.loads(path.read_text())
    DAMAGES[match](document)
    path.write_text(json.dumps(document))
    assert match in refusal(find_sources([root]))


def test_a_name_that_no_file_may_have_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path, described=False)
    for z in range(SHAPE[2]):
        for path in (image_slice(root, z), mask_slice(root, z)):
            path.rename(path.with_name(f"a\nb_slice_{z}.png"))
    assert "cannot be part of a file name" in refusal(find_sources([root]), "a\nb")


@pytest.mark.parametrize("folder", ["images", "masks", "cases"])
def test_a_folder_that_cannot_be_listed_is_refused(folder: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        Path(name).chmod(0o755)
        root = dataset(Path(name))
        (root / folder).chmod(0o000)
        with unprivileged():
            sources = find_sources([root])
        (root / folder).chmod(0o755)
        assert f"{root / folder}: cannot be listed" in refusal(sources, str(root))


# --- what is read


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("skip_blank", [True, False])
def test_slices_give_what_the_images_gave(tmp_path: Path, skip_blank: bool, described: bool) -> None:
    root = dataset(tmp_path, skip_blank=skip_blank, described=described)
    of_images, of_slices = read(tmp_path / "nifti"), read(root)
    if skip_blank and not described:  # nothing tells of blank slices above the last
        of_images = LabelledSlices(of_images.images[: LAST + 1], of_images.classes[: LAST + 1])
    assert_equal(of_slices, of_images)
    assert of_images.images.dtype == of_images.classes.dtype == of_slices.images.dtype == of_slices.classes.dtype == np.uint8


def test_blank_slices_that_were_left_out_are_black(tmp_path: Path) -> None:
    case = read(dataset(tmp_path, skip_blank=True))
    assert case.images.shape == (SHAPE[2], FRAME, FRAME, 4)
    assert case.classes.shape == (SHAPE[2], FRAME, FRAME)
    assert not case.images[[0, -1]].any()
    assert not case.classes[[0, -1]].any()
    assert case.images[FIRST].any()


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


def assert_unreadable(path: Path, *, match: str) -> None:
    with pytest.raises(CaseError, match=match) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


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


def test_label_slices_as_the_published_predictions_have_them_are_read(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    expected = read(root)
    for z in range(SHAPE[2]):
        classes = pixels_of(mask_slice(root, z))
        save_pixels(mask_slice(root, z), classes * np.array([50, 0, 0], dtype=np.uint8))
    assert_equal(read(root), expected)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_slice_of_another_size_is_refused(tmp_path: Path, folder: str) -> None:
    root = dataset(tmp_path)
    path = root / folder / f"{NAME}_slice_2.png"
    save_pixels(path, pixels_of(path)[:-1])
    assert_unreadable(root, match=r"p1_slice_2\.png: has 239 x 240 pixels")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_damaged_slice_is_refused(tmp_path: Path, folder: str) -> None:
    root = dataset(tmp_path)
    path = root / folder / f"{NAME}_slice_2.png"
    path.write_bytes(path.read_bytes()[:-20])
    assert_unreadable(root, match=r"p1_slice_2\.png: is truncated")


def test_an_image_slice_without_alpha_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    save_pixels(image_slice(root, 2), pixels_of(image_slice(root, 2))[..., :3])
    assert_unreadable(root, match=r"p1_slice_2\.png: is not RGBA")


def test_a_label_slice_with_another_class_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    pixels = pixels_of(mask_slice(root, 2))
    pixels[100, 100] = 4
    save_pixels(mask_slice(root, 2), pixels)
    assert_unreadable(root, match=r"p1_slice_2\.png: has 1 pixels of illegal colour")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_slice_that_is_no_file_is_refused(tmp_path: Path, folder: str) -> None:
    root = dataset(tmp_path)
    path = root / folder / f"{NAME}_slice_2.png"
    path.unlink()
    os.mkfifo(path)
    assert_unreadable(root, match="is not a regular file")


def test_a_file_too_large_for_a_slice_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    with image_slice(root, 2).open("ab") as stream:
        stream.truncate(2**22 + 1)
    assert_unreadable(root, match="is larger than any slice")


def test_a_slice_that_has_gone_meanwhile_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    case = only_case(root)
    mask_slice(root, 2).unlink()
    with pytest.raises(CaseError, match=r"p1_slice_2\.png: cannot be read: No such file"):
        read_labelled_slices(case)


def test_slices_without_any_brain_are_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    for z in range(SHAPE[2]):
        save_pixels(image_slice(root, z), np.zeros((FRAME, FRAME, 4), dtype=np.uint8))
    assert_unreadable(root, match="no brain to learn from")
