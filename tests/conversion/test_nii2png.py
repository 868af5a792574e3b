"""Slices of a case: pixel for pixel the published ones, label slices as the published masks, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion.dataset import Layout, SliceRow, read_description
from drunet_cli.conversion.nii2png import CaseTask, convert_case
from drunet_cli.errors import CaseError, DrunetError, OutputError
from drunet_cli.io.case import Case
from tests.conversion.small_cases import (
    BLANK,
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    files_in,
    image_slice,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    save,
    saved_case,
    small_case,
    task_of,
)
from tests.io.test_slices import published
from tests.support import GOLDEN, GOLDEN_IMAGES, GOLDEN_LABELS

FRAME: Final = 240
# SHAPE is padded with its brain's box in the middle of the frame: x 1-19, y 2-19 of 20 and 24 voxels.
PADDED_X, PADDED_Y = slice(110, 130), slice(109, 133)


def golden_case(folder: Path, order: str) -> Case:
    """The golden case and its labels, stored in another orientation."""
    for path in (*GOLDEN_IMAGES.values(), GOLDEN_LABELS):
        image = nib.load(path)
        assert isinstance(image, nib.Nifti1Image)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(order)))
        (folder / path.name).write_bytes(image.as_reoriented(turn).to_bytes())
    return Case("golden", {m: folder / path.name for m, path in GOLDEN_IMAGES.items()}, folder / GOLDEN_LABELS.name)


def assert_refused(case: Case, root: Path, *, match: str) -> None:
    """With the segmentation named, in one line, before anything is written."""
    assert case.segmentation is not None
    with pytest.raises(CaseError, match=match) as caught:
        convert(case, root)
    assert str(caught.value).startswith(f"{case.segmentation}: ")
    assert not files_in(root)


def segmented(folder: Path, label_map: npt.NDArray[np.generic]) -> Case:
    """A small case with this label map."""
    return saved_case(folder, images_in(brain_in()), label_map)


def rows_by_z(task: CaseTask) -> dict[int, SliceRow]:
    return {row.z: row for row in convert_case(task).description.rows}


# --- image slices


@pytest.mark.parametrize("order", ["LPS", "RAS", "SPL", "AIR", "PSR"])
def test_the_golden_case_gives_the_published_slices_however_it_is_stored(tmp_path: Path, order: str) -> None:
    case = Case("golden", GOLDEN_IMAGES, GOLDEN_LABELS) if order == "LPS" else golden_case(tmp_path, order)
    convert(case, tmp_path / "out")
    with np.load(GOLDEN / "slices.npz") as golden:  # made by the published convert_nii_to_png.py
        for z, expected in enumerate(golden["slices"]):
            np.testing.assert_array_equal(pixels_of(image_slice(tmp_path / "out", z, case="golden")), expected)


@pytest.mark.parametrize("order", ["LPS", "RAS", "SPL", "AIR", "PSR"])
def test_the_golden_labels_lie_on_their_pixels_however_they_are_stored(tmp_path: Path, order: str) -> None:
    convert(golden_case(tmp_path, order), tmp_path / "out")
    labels = np.asarray(nib.load(GOLDEN_LABELS).dataobj)  # type: ignore[attr-defined]  # nibabel types what it opens vaguely
    for z in range(labels.shape[2]):
        expected = np.where(labels[:, :, z] == 4, 3, labels[:, :, z])
        np.testing.assert_array_equal(pixels_of(mask_slice(tmp_path / "out", z, case="golden"))[..., 0], expected)


def test_slices_have_the_published_names_and_kinds(tmp_path: Path) -> None:
    convert(small_case(tmp_path, shape=(20, 24, 19)), tmp_path / "out")  # more than a thread encodes at once
    names = {f"{NAME}_slice_{z}.png" for z in range(19)}
    for folder, mode in (("images", "RGBA"), ("masks", "RGB")):
        assert {path.name for path in (tmp_path / "out" / folder).iterdir()} == names
        for name in names:
            with Image.open(tmp_path / "out" / folder / name) as image:
                assert (image.format, image.mode, image.size) == ("PNG", mode, (FRAME, FRAME))


def test_a_small_volume_is_padded_around_its_brain(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    images = images_in(brain_in())
    for z in range(SHAPE[2]):
        expected = np.zeros((FRAME, FRAME, 4), dtype=np.uint8)
        for channel, modality in enumerate(CHANNELS):
            expected[PADDED_X, PADDED_Y, channel] = published(images[modality])[:, :, z]
        np.testing.assert_array_equal(pixels_of(image_slice(tmp_path / "out", z)), expected)


def test_a_large_volume_is_cropped_around_its_brain(tmp_path: Path) -> None:
    brain = brain_in((300, 270, 3), at=(0.8, 0.3))  # x 232-248, y 73-89
    images = images_in(brain)
    convert(saved_case(tmp_path, images, None), tmp_path / "out")
    shown = pixels_of(image_slice(tmp_path / "out", 1))
    for channel, modality in enumerate(CHANNELS):
        scaled = published(images[modality])[:, :, 1]
        padded = np.pad(scaled, FRAME)
        # The middle of x 232-248 is 240.5, less 120 and rounded down; likewise of y, below 0.
        np.testing.assert_array_equal(shown[..., channel], padded[FRAME + 120 :, FRAME - 39 :][:FRAME, :FRAME])
        assert np.count_nonzero(shown[..., channel]) == np.count_nonzero(scaled)


def test_a_case_without_segmentation_gets_no_label_slices(tmp_path: Path) -> None:
    description = convert(small_case(tmp_path, segmented=False), tmp_path / "out").description
    assert not (tmp_path / "out" / "masks").exists()
    assert not description.has_masks
    assert all(row.mask_crc is row.ncr is row.ed is row.et is None for row in description.rows)


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    case = small_case(tmp_path, shape=(20, 24, 37))  # not a multiple of what a thread encodes at once
    convert(case, tmp_path / "one")
    task = task_of(case, tmp_path / "four", threads=4)
    convert_case(task)
    for folder in ("images", "masks", "cases"):
        assert files_in(tmp_path / "four" / folder) == files_in(tmp_path / "one" / folder)


def test_a_second_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    before = files_in(tmp_path / "out")
    assert not convert(case, tmp_path / "out", overwrite=True).skipped
    assert files_in(tmp_path / "out") == before


# --- label slices


@pytest.mark.parametrize("enhancing", [3, 4])
def test_label_slices_hold_the_class_index_in_every_channel(tmp_path: Path, enhancing: int) -> None:
    labels = labels_in(brain_in(), enhancing=enhancing)
    description = convert(segmented(tmp_path, labels), tmp_path / "out").description
    assert description.labels == {3: "brats2023", 4: "brats2020"}[enhancing]
    for z in range(SHAPE[2]):
        expected = np.zeros((FRAME, FRAME, 3), dtype=np.uint8)
        expected[PADDED_X, PADDED_Y] = np.where(labels == 4, 3, labels)[:, :, z, np.newaxis]
        np.testing.assert_array_equal(pixels_of(mask_slice(tmp_path / "out", z)), expected)


def test_both_conventions_give_the_same_label_slices(tmp_path: Path) -> None:
    for enhancing in (3, 4):
        convert(segmented(tmp_path, labels_in(brain_in(), enhancing=enhancing)), tmp_path / f"out{enhancing}")
    assert files_in(tmp_path / "out3" / "masks") == files_in(tmp_path / "out4" / "masks")


def test_a_segmentation_without_any_label_gives_black_label_slices(tmp_path: Path) -> None:
    description = convert(segmented(tmp_path, np.zeros(SHAPE, dtype=np.uint8)), tmp_path / "out").description
    assert (description.labels, description.has_masks) == (None, True)
    assert not any(pixels_of(mask_slice(tmp_path / "out", z)).any() for z in range(SHAPE[2]))


def test_labels_that_the_published_script_has_written_are_read(tmp_path: Path) -> None:
    labels = labels_in(brain_in())
    convert(segmented(tmp_path, labels), tmp_path / "whole")
    convert(segmented(tmp_path, labels * np.float64(1.000015)), tmp_path / "scaled")  # reference.md, PNG layout
    assert files_in(tmp_path / "scaled" / "masks") == files_in(tmp_path / "whole" / "masks")


def test_a_segmentation_that_mixes_the_conventions_is_refused(tmp_path: Path) -> None:
    labels = labels_in(brain_in())
    labels[10, 10, 2], labels[10, 11, 2] = 3, 4
    assert_refused(segmented(tmp_path, labels), tmp_path / "out", match="labels 3 and 4")


@pytest.mark.parametrize("value", [5, 255, -1, 0.5, 5.0, np.nan, np.inf])
def test_a_segmentation_with_a_value_that_is_no_label_is_refused(tmp_path: Path, value: float) -> None:
    labels = labels_in(brain_in()).astype(np.asarray(value).dtype)
    labels[10, 10, 2] = value
    assert_refused(segmented(tmp_path, labels), tmp_path / "out", match="holds")


@pytest.mark.parametrize("axis", range(3))
def test_a_segmentation_of_another_shape_is_refused(tmp_path: Path, axis: int) -> None:
    labels = np.repeat(labels_in(brain_in()), [2 if n == 0 else 1 for n in range(SHAPE[axis])], axis=axis)
    assert_refused(segmented(tmp_path, labels), tmp_path / "out", match="not on the grid of FLAIR")


@pytest.mark.parametrize("axis", range(3))
def test_a_segmentation_in_another_place_is_refused(tmp_path: Path, axis: int) -> None:
    case = segmented(tmp_path, labels_in(brain_in()))
    assert case.segmentation is not None
    affine = BRATS_AFFINE.copy()
    affine[axis, 3] += 0.01  # ten times what `same_grid` lets pass
    save(case.segmentation, labels_in(brain_in()), affine)
    assert_refused(case, tmp_path / "out", match="not on the grid of FLAIR")


@pytest.mark.parametrize("axis", range(2))
def test_labels_outside_the_frame_are_refused(tmp_path: Path, axis: int) -> None:
    shape = (300, 24, 3) if axis == 0 else (24, 300, 3)
    brain = brain_in(shape, at=(0.2, 0.5) if axis == 0 else (0.5, 0.2))
    labels = labels_in(brain)
    labels[(shape[0] - 1, shape[1] - 1, 1)] = labels[(shape[0] - 1, shape[1] - 2, 1)] = 2
    assert_refused(saved_case(tmp_path, images_in(brain), labels), tmp_path / "out", match="2 labelled voxels lie outside")


def test_a_damaged_segmentation_is_refused(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    assert case.segmentation is not None
    case.segmentation.write_bytes(case.segmentation.read_bytes()[:-7])
    assert_refused(case, tmp_path / "out", match="truncated")


# --- spacing


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("size_mm", [0.5, 0.998, 1.002, 2.0])
def test_voxels_of_another_size_are_refused_with_the_remedy(tmp_path: Path, axis: int, size_mm: float) -> None:
    scale = np.ones(4)
    scale[axis] = size_mm
    brain = brain_in()
    case = saved_case(tmp_path, images_in(brain), labels_in(brain), affine=BRATS_AFFINE @ np.diag(scale))
    with pytest.raises(CaseError, match=r"resample .*nearest neighbour") as caught:
        convert(case, tmp_path / "out")
    assert str(caught.value).startswith(f"{case.images[CHANNELS[0]]}: voxels of ")
    assert f"{size_mm:g}" in str(caught.value)
    assert not files_in(tmp_path / "out")


def test_voxels_of_1_mm_but_for_rounding_are_taken(tmp_path: Path) -> None:
    brain = brain_in()
    affine = BRATS_AFFINE @ np.diag([1.0004, 0.9996, 1.0004, 1.0])  # less than the 0.001 mm of geometry.at_1_mm
    convert(saved_case(tmp_path, images_in(brain), labels_in(brain), affine=affine), tmp_path / "rounded")
    convert(small_case(tmp_path), tmp_path / "exact")
    for folder in ("images", "masks"):
        assert files_in(tmp_path / "rounded" / folder) == files_in(tmp_path / "exact" / folder)


# --- bad images


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    case.images[CHANNELS[2]].write_bytes(b"no NIfTI file")
    with pytest.raises(CaseError) as caught:
        convert(case, tmp_path / "out")
    assert str(caught.value).startswith(f"{case.images[CHANNELS[2]]}: ")
    assert not files_in(tmp_path / "out")


@pytest.mark.parametrize("role", ["t2", "seg"])
def test_an_input_that_has_gone_is_an_error_of_its_case_alone(tmp_path: Path, role: str) -> None:
    case = small_case(tmp_path)
    gone = case.segmentation if role == "seg" else case.images[CHANNELS[3]]
    assert gone is not None
    gone.unlink()
    with pytest.raises(DrunetError, match=gone.name):
        convert(case, tmp_path / "out")


def test_a_case_that_fails_leaves_its_earlier_slices(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    before = files_in(tmp_path / "out")
    case.images[CHANNELS[0]].write_bytes(b"")
    with pytest.raises(CaseError):
        convert(case, tmp_path / "out", overwrite=True)
    assert files_in(tmp_path / "out") == before


def test_a_folder_in_the_place_of_a_slice_is_named(tmp_path: Path) -> None:
    image_slice(tmp_path / "out", 2).mkdir(parents=True)
    with pytest.raises(OutputError, match=rf"{NAME}_slice_2\.png: cannot be"):
        convert(small_case(tmp_path), tmp_path / "out", overwrite=True)


# --- --skip-blank


def test_skip_blank_leaves_out_slices_without_brain(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "all")
    description = convert(case, tmp_path / "some", skip_blank=True).description
    assert description.skip_blank
    assert [row.z for row in description.rows] == [1, 2, 3]
    expected = files_in(tmp_path / "all")
    for z in BLANK:
        del expected[f"images/{NAME}_slice_{z}.png"], expected[f"masks/{NAME}_slice_{z}.png"]
    assert files_in(tmp_path / "some").keys() == expected.keys()
    for name, content in files_in(tmp_path / "some").items():
        assert not name.endswith(".png") or content == expected[name]


@pytest.mark.parametrize("label", [1, 2, 4])
def test_a_blank_slice_that_bears_a_label_is_kept(tmp_path: Path, label: int) -> None:
    labels = labels_in(brain_in())
    labels[3, 4, BLANK[1]] = label
    description = convert(segmented(tmp_path, labels), tmp_path / "out", skip_blank=True).description
    assert [row.z for row in description.rows] == [1, 2, 3, BLANK[1]]
    assert np.count_nonzero(pixels_of(mask_slice(tmp_path / "out", BLANK[1]))) == 3


def test_overwriting_with_skip_blank_removes_the_blank_slices(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    convert(case, tmp_path / "out", skip_blank=True, overwrite=True)
    convert(case, tmp_path / "fresh", skip_blank=True)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "fresh")


# --- what the description tells


def test_rows_count_the_pixels_of_brain_and_classes(tmp_path: Path) -> None:
    labels = labels_in(brain_in())
    task = task_of(segmented(tmp_path, labels), tmp_path / "out")
    for z, row in rows_by_z(task).items():
        assert row.brain == np.count_nonzero(pixels_of(image_slice(task.layout.root, z)).any(axis=2))
        assert [row.ncr, row.ed, row.et] == [int(np.count_nonzero(labels[:, :, z] == label)) for label in (1, 2, 4)]


def test_a_pixel_that_one_modality_alone_shows_counts_as_brain(tmp_path: Path) -> None:
    images = images_in(brain_in())
    images[CHANNELS[3]][2, 2, BLANK[0]] = 900
    assert rows_by_z(task_of(saved_case(tmp_path, images, None), tmp_path / "out"))[BLANK[0]].brain == 1


def test_warnings_of_the_images_are_in_the_description(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    t1, t2 = case.images[Modality.T1], case.images[Modality.T2]
    swapped = replace(case, images={**case.images, Modality.T1: t2, Modality.T2: t1})
    converted = convert(swapped, tmp_path / "out")
    assert [warning.code for warning in converted.description.warnings] == ["modality-name"] * 2
    assert read_description(converted.path) == converted.description


def test_the_layout_keeps_cases_apart_whose_names_contain_one_another(tmp_path: Path) -> None:
    root, layout = tmp_path / "out", Layout(tmp_path / "out")
    names = ["p1", "p1_slice_1", "p1_slice_1_slice_2"]
    for seed, name in enumerate(names):
        convert(small_case(tmp_path, name=name, seed=seed), root)
    for name in names:
        assert layout.description(name).exists()
    convert(small_case(tmp_path, name="p1", seed=9), root, overwrite=True)
    assert all(image_slice(root, z, case=name).exists() for z in range(SHAPE[2]) for name in names)
