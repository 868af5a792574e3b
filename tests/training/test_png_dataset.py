"""Which datasets of PNG slices can be learnt from, what is refused and why, and what is read of them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.conversion.dataset import Layout
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import FRAME
from drunet_cli.training.cases import MOST_SLICES, LabelledSlices, find_sources, read_labelled_slices
from tests.conversion.small_cases import NAME, SHAPE, convert, image_slice, mask_slice, pixels_of, save_pixels, small_case
from tests.support import unprivileged
from tests.training.datasets import assert_unreadable, dataset, only_case, read, refusal


def assert_equal(one: LabelledSlices, other: LabelledSlices) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.classes, other.classes)


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


@pytest.mark.parametrize("z", [1, SHAPE[2] - 2])
def test_a_slice_that_misses_image_and_labels_between_others_is_named(tmp_path: Path, z: int) -> None:
    root = dataset(tmp_path, described=False)
    image_slice(root, z).unlink()
    mask_slice(root, z).unlink()
    assert f"slice {z} of p1 is missing" in refusal(find_sources([root]))


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


FIRST, LAST = 1, SHAPE[2] - 2  # slices with brain
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
