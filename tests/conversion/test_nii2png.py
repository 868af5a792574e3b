"""Cases to slices: pixel for pixel the published ones; what is refused; what a second run finds and does; kills."""

import itertools
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion import nii2png
from drunet_cli.conversion.dataset import Layout, read_description
from drunet_cli.conversion.nii2png import PlannedSlices, SlicesAction, SliceSettings, SlicesState, convert_case, plan_slices
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import publish_unflushed
from drunet_cli.io.case import Case
from tests.conversion.small_cases import (
    BLANK,
    BRATS_AFFINE,
    N_FILES,
    NAME,
    SHAPE,
    brain_in,
    convert,
    convert_back,
    image_slice,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    save_pixels,
    saved_case,
    small_case,
)
from tests.io.test_intensities import published
from tests.support import ENDED_PID, GOLDEN, GOLDEN_IMAGES, GOLDEN_LABELS, contents, open_to_all, unprivileged

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


def segmented(folder: Path, label_map: npt.NDArray[np.generic]) -> Case:
    """A small case with this label map."""
    return saved_case(folder, images_in(brain_in()), label_map)


# --- pixels


@pytest.mark.parametrize("order", ["LPS", "PSR"])  # all 48: tests/io/test_geometry.py
def test_the_golden_case_gives_the_published_slices_and_labels_however_it_is_stored(tmp_path: Path, order: str) -> None:
    convert(golden_case(tmp_path, order), tmp_path / "out")
    labels = np.asarray(nib.load(GOLDEN_LABELS).dataobj)  # type: ignore[attr-defined]  # nibabel types what it opens vaguely
    with np.load(GOLDEN / "slices.npz") as golden:  # made by the published convert_nii_to_png.py
        for z, expected in enumerate(golden["slices"]):
            np.testing.assert_array_equal(pixels_of(image_slice(tmp_path / "out", z, case="golden")), expected)
            mask = pixels_of(mask_slice(tmp_path / "out", z, case="golden"))
            np.testing.assert_array_equal(mask[..., 0], np.where(labels[:, :, z] == 4, 3, labels[:, :, z]))


def test_slices_have_the_published_names_and_kinds(tmp_path: Path) -> None:
    convert(small_case(tmp_path, shape=(20, 24, 19)), tmp_path / "out")  # more than a thread encodes at once
    names = {f"{NAME}_slice_{z}.png" for z in range(19)}
    for folder, mode in (("images", "RGBA"), ("masks", "RGB")):
        assert {path.name for path in (tmp_path / "out" / folder).iterdir()} == names
        for name in names:
            with Image.open(tmp_path / "out" / folder / name) as image:
                assert (image.format, image.mode, image.size) == ("PNG", mode, (FRAME, FRAME))


@pytest.mark.parametrize("enhancing", [3, 4])
def test_a_small_volume_is_padded_around_its_brain(tmp_path: Path, enhancing: int) -> None:
    """And label slices hold the class index in every channel, whichever value enhancing tumour has."""
    labels = labels_in(brain_in(), enhancing=enhancing)
    description = convert(segmented(tmp_path, labels), tmp_path / "out").description
    assert description.labels == {3: "brats2023", 4: "brats2020"}[enhancing]
    images = images_in(brain_in())
    for z, row in enumerate(description.rows):
        image, mask = np.zeros((FRAME, FRAME, 4), dtype=np.uint8), np.zeros((FRAME, FRAME, 3), dtype=np.uint8)
        for channel, modality in enumerate(CHANNELS):
            image[PADDED_X, PADDED_Y, channel] = published(images[modality])[:, :, z]
        mask[PADDED_X, PADDED_Y] = np.where(labels == 4, 3, labels)[:, :, z, np.newaxis]
        np.testing.assert_array_equal(pixels_of(image_slice(tmp_path / "out", z)), image)
        np.testing.assert_array_equal(pixels_of(mask_slice(tmp_path / "out", z)), mask)
        assert row.brain == np.count_nonzero(image.any(axis=2))
        assert [row.ncr, row.ed, row.et] == [np.count_nonzero(mask[..., 0] == index) for index in (1, 2, 3)]
        assert row.image_crc == zlib.crc32(image_slice(tmp_path / "out", z).read_bytes())
        assert row.mask_crc == zlib.crc32(mask_slice(tmp_path / "out", z).read_bytes())


def test_a_large_volume_is_cropped_around_its_brain(tmp_path: Path) -> None:
    brain = brain_in((300, 270, 3), at=(0.8, 0.3))  # x 232-248, y 73-89
    images = images_in(brain)
    convert(saved_case(tmp_path, images, None), tmp_path / "out")
    shown = pixels_of(image_slice(tmp_path / "out", 1))
    for channel, modality in enumerate(CHANNELS):
        scaled = published(images[modality])[:, :, 1]
        # The middle of x 232-248 is 240.5, less 120 and rounded down; likewise of y, below 0.
        expected = np.pad(scaled, FRAME)[FRAME + 120 :, FRAME - 39 :][:FRAME, :FRAME]
        np.testing.assert_array_equal(shown[..., channel], expected)
        assert np.count_nonzero(shown[..., channel]) == np.count_nonzero(scaled)


def test_a_segmentation_may_be_absent_or_without_labels(tmp_path: Path) -> None:
    absent = convert(small_case(tmp_path / "a", segmented=False), tmp_path / "absent").description
    assert not (tmp_path / "absent" / "masks").exists()
    assert not absent.has_masks
    assert all(row.mask_crc is row.ncr is row.ed is row.et is None for row in absent.rows)
    empty = convert(segmented(tmp_path / "b", np.zeros(SHAPE, dtype=np.uint8)), tmp_path / "empty").description
    assert (empty.labels, empty.has_masks) == (None, True)
    assert not any(pixels_of(mask_slice(tmp_path / "empty", z)).any() for z in range(SHAPE[2]))


def test_labels_that_the_published_script_has_written_and_rounded_spacings_are_read(tmp_path: Path) -> None:
    convert(small_case(tmp_path), tmp_path / "exact")
    affine = BRATS_AFFINE @ np.diag([1.0004, 0.9996, 1.0004, 1.0])  # less than the 0.001 mm of geometry.at_1_mm
    labels = labels_in(brain_in()) * np.float64(1.000015)  # drunet_cli/network/README.md, PNG layout
    convert(saved_case(tmp_path, images_in(brain_in()), labels, affine=affine), tmp_path / "rounded")
    for folder in ("images", "masks"):
        assert contents(tmp_path / "rounded" / folder) == contents(tmp_path / "exact" / folder)


def test_any_number_of_threads_and_a_second_run_give_the_same_bytes(tmp_path: Path) -> None:
    case = small_case(tmp_path, shape=(20, 24, 37))  # not a multiple of what a thread encodes at once
    convert(case, tmp_path / "one")
    settings = SliceSettings(folder=tmp_path / "four", threads=4)
    convert_case(plan_slices([case], settings)[0], settings)
    for folder in ("images", "masks", "cases"):
        assert contents(tmp_path / "four" / folder) == contents(tmp_path / "one" / folder)
    before = contents(tmp_path / "one")
    assert not convert(case, tmp_path / "one", overwrite=True).skipped
    assert contents(tmp_path / "one") == before


def test_a_pixel_that_one_modality_alone_shows_counts_as_brain(tmp_path: Path) -> None:
    images = images_in(brain_in())
    images[CHANNELS[3]][2, 2, BLANK[0]] = 900
    assert convert(saved_case(tmp_path, images, None), tmp_path / "out").description.rows[BLANK[0]].brain == 1


def test_warnings_of_the_images_are_in_the_description(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    t1, t2 = case.images[Modality.T1], case.images[Modality.T2]
    converted = convert(replace(case, images={**case.images, Modality.T1: t2, Modality.T2: t1}), tmp_path / "out")
    assert [warning.code for warning in converted.description.warnings] == ["modality-name"] * 2
    assert read_description(converted.path) == converted.description


def test_skip_blank_leaves_out_slices_with_neither_brain_nor_label(tmp_path: Path) -> None:
    labels = labels_in(brain_in())
    labels[3, 4, BLANK[1]] = 4
    case = segmented(tmp_path, labels)
    convert(case, tmp_path / "all")
    description = convert(case, tmp_path / "some", skip_blank=True).description
    assert description.skip_blank
    assert [row.z for row in description.rows] == [1, 2, 3, BLANK[1]]
    expected = contents(tmp_path / "all")
    for folder in ("images", "masks"):
        del expected[f"{folder}/{NAME}_slice_{BLANK[0]}.png"]
    some = contents(tmp_path / "some")
    assert some.keys() == expected.keys()
    assert all(some[name] == content for name, content in expected.items() if name.endswith(".png"))


# --- what is refused


def with_value(value: float) -> npt.NDArray[np.generic]:
    labels = labels_in(brain_in()).astype(np.asarray(value).dtype)
    labels[10, 10, 2] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        *((with_value(value), "holds ") for value in (5, 255, -1, 0.5, 5.0, np.nan, np.inf)),
        (np.where(np.arange(SHAPE[1])[:, np.newaxis] > 11, labels_in(brain_in()), with_value(3)), "labels 3 and 4"),
        *((np.repeat(labels_in(brain_in()), 2, axis=axis), "not on the grid of FLAIR") for axis in range(3)),
    ],
)
def test_a_bad_segmentation_is_refused_and_named(tmp_path: Path, labels: npt.NDArray[np.generic], message: str) -> None:
    case = segmented(tmp_path, labels)
    with pytest.raises(CaseError, match=message) as caught:
        convert(case, tmp_path / "out")
    assert str(caught.value).startswith(f"{case.segmentation}: ")
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("axis", range(2))
def test_labels_outside_the_frame_are_refused(tmp_path: Path, axis: int) -> None:
    shape = (300, 24, 3) if axis == 0 else (24, 300, 3)
    brain = brain_in(shape, at=(0.2, 0.5) if axis == 0 else (0.5, 0.2))
    labels = labels_in(brain)
    labels[(shape[0] - 1, shape[1] - 1, 1)] = labels[(shape[0] - 1, shape[1] - 2, 1)] = 2
    with pytest.raises(CaseError, match="2 labelled voxels lie outside"):
        convert(saved_case(tmp_path, images_in(brain), labels), tmp_path / "out")


@pytest.mark.parametrize(("axis", "size_mm"), [(0, 0.5), (0, 1.002), (1, 0.998), (1, 2.0), (2, 0.998), (2, 1.002)])
def test_voxels_of_another_size_are_refused_with_the_remedy(tmp_path: Path, axis: int, size_mm: float) -> None:
    scale = np.ones(4)
    scale[axis] = size_mm
    case = saved_case(tmp_path, images_in(brain_in()), None, affine=BRATS_AFFINE @ np.diag(scale))
    with pytest.raises(CaseError, match=rf"voxels of .*{size_mm:g}.*resample .*nearest neighbour"):
        convert(case, tmp_path / "out")


@pytest.mark.parametrize(("kind", "damage"), [("t1", Path.unlink), ("seg", lambda path: path.write_bytes(b"no NIfTI file"))])
def test_a_case_that_cannot_be_read_is_named_and_leaves_its_earlier_slices(
    tmp_path: Path, kind: str, damage: Callable[[Path], object]
) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    before = contents(tmp_path / "out")
    damage(case.files[kind])
    with pytest.raises(CaseError, match=case.files[kind].name):
        convert(case, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


# --- what is there, and what will be done


@dataclass(frozen=True)
class Converted:
    """A complete case and what its folder holds."""

    case: Case
    root: Path
    files: dict[str, bytes]

    @property
    def description(self) -> Path:
        return Layout(self.root).description(NAME)

    def assert_unchanged(self) -> None:
        assert contents(self.root) == self.files

    def assert_refused(self, *, match: str, case: Case | None = None, skip_blank: bool = False) -> None:
        """With --skip-existing, with nothing changed and the remedy, which helps."""
        before = contents(self.root)
        with pytest.raises(OutputError, match=match) as caught:
            convert(case or self.case, self.root, skip_existing=True, skip_blank=skip_blank)
        assert "--overwrite" in str(caught.value)
        assert contents(self.root) == before
        assert not convert(case or self.case, self.root, overwrite=True, skip_blank=skip_blank).skipped


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    return Converted(case, tmp_path / "out", contents(tmp_path / "out"))


@pytest.mark.parametrize(
    ("there", "state", "unasked", "skip_existing", "overwrite"),
    [
        ([], "new", "convert", "convert", "convert"),
        (["images/p1_slice_2.png"], "foreign slices", "refuse", "refuse", "convert again"),
        (["masks/p1_slice_002.png"], "foreign slices", "refuse", "refuse", "convert again"),
        (["images/p1_slice_2.png", "cases/p1.part"], "unfinished", "convert", "convert", "convert"),
        (["cases/p1.json"], "converted", "refuse", "verify and leave out", "convert again"),
        (["cases/p1.json", "cases/p1.part"], "converted", "refuse", "verify and leave out", "convert again"),
        (["cases/p10.json", "images/p10_slice_1.png", "images/p1_slice_.png"], "new", "convert", "convert", "convert"),
    ],
)
def test_the_plan_follows_from_what_is_there_and_from_the_options(
    tmp_path: Path, there: list[str], state: str, unasked: str, skip_existing: str, overwrite: str
) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = contents(tmp_path)
    case = Case(NAME, dict.fromkeys(CHANNELS, Path("image.nii")))
    for options, action in (({}, unasked), ({"skip_existing": True}, skip_existing), ({"overwrite": True}, overwrite)):
        settings = SliceSettings(folder=tmp_path, **options)
        (planned,) = plan_slices([case], settings)
        assert (planned.state, planned.action) == (state, action)
        if action == SlicesAction.REFUSE:
            with pytest.raises(OutputError, match=r"p1 and 1 more: .*give --"):
                nii2png.check_plan([planned, planned], settings)
        else:
            nii2png.check_plan([planned], settings)
    assert contents(tmp_path) == before


def test_a_table_of_somebody_else_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "slices.csv").write_text("mine")
    for options in ({}, {"skip_existing": True}):
        with pytest.raises(OutputError, match=r"slices\.csv: exists already and is not drunet's"):
            nii2png.check_plan([], SliceSettings(folder=tmp_path, **options))
    nii2png.check_plan([], SliceSettings(folder=tmp_path, overwrite=True))


@pytest.mark.parametrize("name", [".", "images", "masks", "cases", "slices.csv"])
def test_a_dataset_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    is_table = name == "slices.csv"
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    if is_table:
        path.mkdir(parents=True)
    elif name == ".":
        path.rmdir() if path.exists() else None
        (tmp_path / "out").touch()
    else:
        path.touch()
    with pytest.raises(OutputError, match="is a folder" if is_table else "is not a folder"):
        plan_slices([], SliceSettings(folder=tmp_path / "out", overwrite=True))
    if not is_table:
        (tmp_path / "out").unlink() if name == "." else path.unlink()
        path.mkdir(parents=True)
        open_to_all(tmp_path)
        path.chmod(0o555)
        with unprivileged(), pytest.raises(OutputError, match="no permission"):
            plan_slices([], SliceSettings(folder=tmp_path / "out", overwrite=True))


def test_a_case_that_another_process_has_converted_meanwhile_is_not_replaced(converted: Converted) -> None:
    planned = PlannedSlices(converted.case, SlicesState.NEW, SlicesAction.CONVERT)
    with pytest.raises(OutputError, match="exists already; give --skip-existing"):
        convert_case(planned, SliceSettings(folder=converted.root))
    converted.assert_unchanged()


@pytest.mark.parametrize("name", ["images", "masks", "cases"])
def test_only_temporaries_of_dead_writers_are_removed(converted: Converted, name: str) -> None:
    host = os.uname().nodename
    file = "p1.json" if name == "cases" else "p1_slice_3.png"
    (converted.root / name / f".{file}.{host}.{ENDED_PID}.tmp").touch()
    kept = [f".{file}.{host}.{os.getppid()}.tmp", f".{file}.another-host.4.tmp", f".hidden.{ENDED_PID}.tmp", "x.tmp"]
    for each in kept:
        (converted.root / name / each).touch()
    nii2png.remove_stale_slices(Layout(converted.root))
    assert contents(converted.root) == {**converted.files, **{f"{name}/{each}": b"" for each in kept}}


# --- complete cases with --skip-existing


def test_a_complete_case_of_the_same_inputs_is_left_alone(converted: Converted, tmp_path: Path) -> None:
    for path in converted.case.files.values():  # another time of change, the same content
        os.utime(path, ns=(10**18, 10**18))
    Layout(converted.root).unfinished(NAME).touch()  # as a kill after the last file leaves it
    result = convert(converted.case, converted.root, skip_existing=True)
    assert (result.skipped, result.path) == (True, converted.description)
    assert convert(small_case(tmp_path / "moved"), converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("kind", ["flair", "t1ce", "t1", "t2", "seg"])
def test_other_voxels_in_a_file_of_the_same_size_are_another_input(converted: Converted, kind: str) -> None:
    path = converted.case.files[kind]
    content = bytearray(path.read_bytes())
    content[-SHAPE[0] * SHAPE[1] * 3] = 1
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    converted.assert_refused(match=rf"{NAME}_{kind}\.nii: is not the file from which")


def test_other_files_or_settings_are_refused(converted: Converted, tmp_path: Path) -> None:
    case, images = converted.case, converted.case.images
    for path in images.values():  # as an archive unpacks them: one time of change for all, and one size
        os.utime(path, ns=(10**18, 10**18))
    convert(case, converted.root, overwrite=True)
    swapped = replace(case, images={**images, Modality.T1: images[Modality.T2], Modality.T2: images[Modality.T1]})
    converted.assert_refused(case=swapped, match="is not the file from which")
    convert(case, converted.root, overwrite=True)
    converted.assert_refused(case=replace(case, segmentation=None), match="with a segmentation")
    converted.assert_refused(match="without a segmentation")
    converted.assert_refused(match="without --skip-blank", skip_blank=True)
    converted.assert_refused(match="with --skip-blank")


@pytest.mark.parametrize(
    ("slice_of", "loss"),
    [
        (image_slice, Path.unlink),
        (mask_slice, Path.unlink),
        (image_slice, lambda path: path.write_bytes(b"")),
        (mask_slice, lambda path: path.write_bytes(path.read_bytes()[:-20])),
        (image_slice, lambda path: path.write_bytes(bytes(path.stat().st_size))),
        (mask_slice, lambda path: [each.unlink() for each in path.parent.iterdir()]),
    ],
)
def test_a_lost_slice_is_made_again(
    converted: Converted, slice_of: Callable[[Path, int], Path], loss: Callable[[Path], object]
) -> None:
    loss(slice_of(converted.root, 2))
    assert not convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("edit", ["pixel", "same pixels", "palette", "16 bit", "another size", "JPEG", "pipe", "beside a loss"])
def test_a_slice_that_somebody_has_changed_is_not_replaced(converted: Converted, edit: str) -> None:
    path = mask_slice(converted.root, 2)
    pixels = pixels_of(path)
    picture = Image.fromarray(pixels)
    match edit:
        case "pixel" | "beside a loss":
            pixels[120, 120] = 1 - pixels[120, 120] % 2
            save_pixels(path, pixels)
        case "same pixels":
            save_pixels(path, pixels)
        case "palette":
            picture.convert("P").save(path, "PNG")
        case "16 bit":
            Image.fromarray(pixels[..., 0].astype(np.uint16)).save(path, "PNG")
        case "another size":
            picture.resize((480, 480)).save(path, "PNG")
        case "JPEG":
            picture.save(path, "JPEG")
        case "pipe":
            path.unlink()
            os.mkfifo(path)
    if edit == "beside a loss":
        mask_slice(converted.root, 0).unlink()
    with pytest.raises(OutputError, match="has been changed since drunet wrote it; move it away to keep the changes"):
        convert(converted.case, converted.root, skip_existing=True)
    assert not convert(converted.case, converted.root, overwrite=True).skipped
    converted.assert_unchanged()


def test_label_slices_of_ones_own_survive_where_an_image_slice_is_lost(tmp_path: Path) -> None:
    case, root = small_case(tmp_path, segmented=False), tmp_path / "out"
    convert(case, root)
    own = mask_slice(root, 2)
    save_pixels(own, np.ones((FRAME, FRAME, 3), dtype=np.uint8))  # drawn by hand, or the output of another network
    before = own.read_bytes()
    image_slice(root, 3).unlink()
    convert(case, root, skip_existing=True)
    assert own.read_bytes() == before


def test_a_damaged_description_is_refused_and_an_empty_one_is_none(converted: Converted) -> None:
    converted.description.write_bytes(b"{")
    converted.assert_refused(match=rf"{NAME}\.json: is damaged")
    converted.description.write_bytes(b"")  # what a machine that lost its power may leave
    assert not convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


def test_overwriting_leaves_what_a_fresh_run_would_and_the_files_of_others(converted: Converted, tmp_path: Path) -> None:
    convert(small_case(tmp_path, name="p10", seed=1), converted.root)
    for stranger in ("images/p1_slice_.png", "images/notes.txt", "masks/p1.png", "images/p1_slice_2.png.bak"):
        (converted.root / stranger).write_bytes(b"a person's")
    before = contents(converted.root)
    image_slice(converted.root, 2).with_name(f"{NAME}_slice_002.png").write_bytes(b"zero-padded: of this case")
    convert(converted.case, converted.root, overwrite=True)
    assert contents(converted.root) == before
    fewer = small_case(tmp_path / "fewer", shape=(20, 24, 3), segmented=False)
    convert(fewer, converted.root, overwrite=True)
    convert(fewer, tmp_path / "fresh")
    own = {name for name in contents(converted.root) if f"{NAME}_slice" in name and name.endswith(".png")}
    assert own - {"images/p1_slice_.png"} == {name for name in contents(tmp_path / "fresh") if name.endswith(".png")}


# --- kills


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, n: int) -> Iterator[None]:
    """Stop the conversion just before its n-th file is there, which is just after the one before; or after the last."""
    count = itertools.count()

    def write(target: Path, content: bytes) -> None:
        number = next(count)
        if number < n:
            publish_unflushed(target, content)
        if number == n or number == N_FILES - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        context.setattr(nii2png, "publish_unflushed", write)
        yield


@contextmanager
def killed_at_removal(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Stop the conversion when it has removed this file."""
    unlink = Path.unlink

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.name == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        context.setattr(Path, "unlink", unlinking)
        yield


def undisturbed(case: Case, root: Path) -> dict[str, bytes]:
    convert(case, root)
    return contents(root)


def test_a_first_run_killed_at_any_file_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = small_case(tmp_path)
    whole = undisturbed(case, tmp_path / "fresh")
    for n in range(N_FILES + 1):
        root = tmp_path / str(n)
        with killed_at(monkeypatch, n):
            convert(case, root)
        assert Layout(root).description(NAME).exists() is (n == N_FILES)  # the last
        assert n in (0, N_FILES) or Layout(root).unfinished(NAME).exists()
        assert not Layout(root).manifest.exists()
        convert(case, root, skip_existing=True)
        assert contents(root) == whole


@pytest.mark.slow
def test_an_overwriting_run_killed_at_any_file_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, earlier = small_case(tmp_path), small_case(tmp_path / "earlier", seed=3, shape=(20, 24, 9))
    whole, before = undisturbed(case, tmp_path / "fresh"), undisturbed(earlier, tmp_path / "before")
    for n in range(N_FILES + 1):
        root = tmp_path / str(n)
        shutil.copytree(tmp_path / "before", root)
        with killed_at(monkeypatch, n):
            convert(case, root, overwrite=True)
        if Layout(root).description(NAME).exists() and n < N_FILES:  # killed before anything was replaced
            left = contents(root)
            left.pop(f"cases/{NAME}.part", None)
            assert left == before
            with pytest.raises(OutputError, match="is not the file from which"):  # the earlier case, still complete
                convert(case, root, skip_existing=True)
            convert(case, root, overwrite=True)
        else:
            convert(case, root, skip_existing=True)
        assert contents(root) == whole


@pytest.mark.parametrize("name", [f"{NAME}.json", f"{NAME}_slice_5.png", f"{NAME}_slice_8.png", f"{NAME}.part"])
def test_an_overwriting_run_killed_at_a_removal_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    convert(small_case(tmp_path / "earlier", seed=3, shape=(20, 24, 9)), root)
    with killed_at_removal(monkeypatch, name):
        convert(case, root, overwrite=True)
    convert(case, root, skip_existing=True)
    assert contents(root) == undisturbed(case, tmp_path / "fresh")


def test_a_killed_run_or_repair_goes_on_with_what_is_asked_for_now(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_slice(converted.root, 4).unlink()
    with killed_at(monkeypatch, 4):
        convert(converted.case, converted.root, skip_existing=True)
    convert(converted.case, converted.root, skip_existing=True)
    converted.assert_unchanged()
    with killed_at(monkeypatch, 9):
        convert(converted.case, tmp_path / "other")
    bare = replace(converted.case, segmentation=None)
    convert(bare, tmp_path / "other", skip_existing=True)
    assert contents(tmp_path / "other") == undisturbed(bare, tmp_path / "fresh")


def test_label_slices_of_an_unfinished_case_are_not_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the BraTS grid, where no description is needed: else slices of two segmentations would make one label map.
    shape, root = (FRAME, FRAME, 5), tmp_path / "out"
    convert(small_case(tmp_path / "earlier", seed=3, shape=shape), root)
    case = small_case(tmp_path, shape=shape)
    with killed_at(monkeypatch, N_FILES // 2):
        convert(case, root, overwrite=True)
    with pytest.raises(CaseError, match=rf"{NAME}\.part: the slices of {NAME} are not complete"):
        convert_back(root, case.images[Modality.FLAIR], tmp_path / "back.nii")
