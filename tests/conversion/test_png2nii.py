"""Label slices to a label map: which are read, what is refused with the file named, and what becomes of the output."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from drunet_cli.brats import CHANNELS, Labels, Modality
from drunet_cli.conversion.dataset import Layout, slice_files, slice_name
from drunet_cli.conversion.png2nii import LabelTask, check_outputs, convert_labels, description_of, masks_folder
from drunet_cli.errors import CaseError, DrunetError, OutputError
from drunet_cli.io.case import Case
from tests.conversion.small_cases import (
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    files_in,
    images_in,
    label_task,
    labels_in,
    mask_slice,
    pixels_of,
    save,
    save_pixels,
    saved_case,
    small_case,
)
from tests.support import open_image

FRAME: Final = (240, 240)
BRATS_SHAPE: Final = (*FRAME, 4)


@dataclass(frozen=True)
class Dataset:
    """A small case as nii2png wrote it, and the way back."""

    case: Case
    root: Path
    task: LabelTask

    def taken_again(self) -> LabelTask:
        """After a change of the folder."""
        return label_task(self.root, self.task.reference, self.task.output)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    return Dataset(case, tmp_path / "out", label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii"))


def labels_at(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(open_image(path).dataobj)


def refusal(task: LabelTask) -> str:
    """The one line of a task that is refused, with nothing written."""
    before = files_in(task.output.parent)
    with pytest.raises(CaseError) as caught:
        convert_labels(task)
    assert files_in(task.output.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def published_slices(folder: Path, classes: npt.NDArray[np.uint8], *, name: str = NAME, padding: str = "") -> None:
    """Class indices [X, Y, Z] as evaluate.py writes them. Source: reference.md, PNG layout."""
    for z in range(classes.shape[2]):
        pixels = np.zeros((*classes.shape[:2], 3), dtype=np.uint8)
        pixels[..., 0] = classes[..., z] * 50
        save_pixels(folder / f"{name}_slice_{z:{padding}}.png", pixels)


def published_case(tmp_path: Path) -> tuple[npt.NDArray[np.uint8], LabelTask]:
    """A prediction on the BraTS grid, without any file of drunet's: class indices, and the way back."""
    classes = labels_in(brain_in(BRATS_SHAPE), enhancing=3)
    published_slices(tmp_path / "predicted", classes)
    reference = save(tmp_path / "flair.nii", images_in(brain_in(BRATS_SHAPE))[Modality.FLAIR])
    return classes, label_task(tmp_path / "predicted", reference, tmp_path / "back.nii")


# --- which slices


@pytest.mark.parametrize("z", [0, 2, 4])
def test_a_missing_slice_is_named(dataset: Dataset, z: int) -> None:
    mask_slice(dataset.root, z).unlink()
    assert refusal(dataset.taken_again()).startswith(f"{dataset.root / 'masks'}: slice {z} of {NAME} is missing")


def test_many_missing_slices_are_counted(dataset: Dataset) -> None:
    assert "slice 0, 1, 2, 3, 4 of p1 is missing" in refusal(replace(dataset.task, slices=()))
    assert "slice 0, 1, 3, 4 of p1 is missing" in refusal(replace(dataset.task, slices=dataset.task.slices[2:3]))


def test_more_missing_slices_than_can_be_listed_are_counted(tmp_path: Path) -> None:
    case = small_case(tmp_path, shape=(20, 24, 9))
    convert(case, tmp_path / "out")
    task = label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    assert "slice 0, 1, 2, 3, 4 and 4 more of p1 is missing" in refusal(replace(task, slices=()))


@pytest.mark.parametrize("name", ["p1_slice_03.png", "p1_slice_003.png", "p1_slice_000000003.png"])
def test_a_slice_that_is_there_twice_is_named(dataset: Dataset, name: str) -> None:
    shutil.copy(mask_slice(dataset.root, 3), dataset.root / "masks" / name)
    message = refusal(dataset.taken_again())
    assert "slice 3 is there twice" in message
    assert name in message
    assert "p1_slice_3.png" in message


@pytest.mark.parametrize("z", [5, 155, 999_999_999])
def test_a_slice_beyond_the_volume_is_named(dataset: Dataset, z: int) -> None:
    shutil.copy(mask_slice(dataset.root, 3), mask_slice(dataset.root, z))
    assert refusal(dataset.taken_again()).startswith(f"{mask_slice(dataset.root, z)}: slice {z} lies beyond")


def test_slices_that_are_numbered_from_1_are_refused(dataset: Dataset) -> None:
    for z in reversed(range(SHAPE[2])):
        mask_slice(dataset.root, z).rename(mask_slice(dataset.root, z + 1))
    assert "slice 5 lies beyond" in refusal(dataset.taken_again())


def test_zero_padded_numbers_are_read(dataset: Dataset) -> None:
    for z in range(SHAPE[2]):
        mask_slice(dataset.root, z).rename(dataset.root / "masks" / f"{NAME}_slice_{z:03}.png")
    convert_labels(dataset.taken_again())
    np.testing.assert_array_equal(labels_at(dataset.task.output), labels_in(brain_in()))


def test_eleven_slices_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    case = small_case(tmp_path, shape=(20, 24, 11))
    convert(case, tmp_path / "out")
    convert_labels(label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii"))
    np.testing.assert_array_equal(labels_at(tmp_path / "back.nii"), labels_in(brain_in((20, 24, 11))))


def test_slices_of_other_cases_are_not_read(dataset: Dataset, tmp_path: Path) -> None:
    for seed, name in enumerate(("p10", "p1_slice_1"), start=1):
        convert(small_case(tmp_path, name=name, seed=seed), dataset.root)
    convert_labels(dataset.taken_again())
    np.testing.assert_array_equal(labels_at(dataset.task.output), labels_in(brain_in()))


def test_a_missing_slice_that_holds_brain_is_missing_also_after_skip_blank(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out", skip_blank=True)
    mask_slice(tmp_path / "out", 1).unlink()
    task = label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    assert "slice 1 of p1 is missing" in refusal(task)


def test_blank_slices_are_missing_where_there_is_no_description(tmp_path: Path) -> None:
    _, task = published_case(tmp_path)
    (tmp_path / "predicted" / slice_name(NAME, 0)).unlink()
    assert "slice 0 of p1 is missing" in refusal(label_task(tmp_path / "predicted", task.reference, task.output))


def test_a_label_drawn_in_a_slice_that_skip_blank_had_left_out_is_read(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out", skip_blank=True)
    pixels = np.zeros((*FRAME, 3), dtype=np.uint8)
    pixels[110 + 3, 109 + 4] = 1  # where SHAPE begins on the frame, see test_nii2png
    save_pixels(mask_slice(tmp_path / "out", 0), pixels)
    convert_labels(label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii"))
    assert np.argwhere(labels_at(tmp_path / "back.nii")[..., 0] == 1).tolist() == [[3, 4]]


# --- what a slice may hold


def rewrite(path: Path, change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> None:
    save_pixels(path, change(pixels_of(path)))


@pytest.mark.parametrize("shape", [(239, 240), (240, 241), (155, 240), (480, 480), (1, 1)])
def test_a_slice_of_another_size_is_named(dataset: Dataset, shape: tuple[int, int]) -> None:
    save_pixels(mask_slice(dataset.root, 2), np.zeros((*shape, 3), dtype=np.uint8))
    expected = f"{mask_slice(dataset.root, 2)}: has {shape[0]} x {shape[1]} pixels (rows x columns), not 240 x 240"
    assert refusal(dataset.task) == expected


@pytest.mark.parametrize(
    ("row", "column", "colour"),
    [
        (0, 0, (4, 4, 4)),
        (239, 239, (1, 0, 0)),
        (7, 5, (200, 0, 0)),
        (5, 7, (50, 50, 50)),
        (1, 1, (0, 1, 0)),
        (2, 2, (50, 0, 1)),
    ],
)
def test_an_illegal_colour_is_named_with_its_place(
    dataset: Dataset, row: int, column: int, colour: tuple[int, int, int]
) -> None:
    def coloured(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pixels[row, column] = colour
        return pixels

    rewrite(mask_slice(dataset.root, 2), coloured)
    message = refusal(dataset.task)
    assert message.startswith(f"{mask_slice(dataset.root, 2)}: has 1 pixels of illegal colour, the first ")
    assert f"({', '.join(map(str, colour))}) in row {row}, column {column};" in message


def test_image_slices_are_no_label_slices(dataset: Dataset) -> None:
    task = replace(dataset.task, slices=tuple(slice_files(dataset.root / "images")[NAME]))
    assert "illegal colour" in refusal(task)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:-13], id="truncated"),
        pytest.param(lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:], id="a bit flipped"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda content: b"GIF89a" + content, id="of another kind"),
        pytest.param(lambda content: content + bytes(2**23), id="far too long"),
    ],
)
def test_a_damaged_slice_is_named(dataset: Dataset, damage: Callable[[bytes], bytes]) -> None:
    path = mask_slice(dataset.root, 3)
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(dataset.task).startswith(f"{path}: ")


def test_a_slice_that_has_gone_is_named(dataset: Dataset) -> None:
    mask_slice(dataset.root, 3).unlink()
    assert refusal(dataset.task) == f"{mask_slice(dataset.root, 3)}: cannot be read: No such file or directory"


def test_a_pipe_with_the_name_of_a_slice_is_named(dataset: Dataset) -> None:
    mask_slice(dataset.root, 3).unlink()
    os.mkfifo(mask_slice(dataset.root, 3))
    assert refusal(dataset.taken_again()) == f"{mask_slice(dataset.root, 3)}: is not a regular file"


def test_a_slice_of_two_layouts_is_refused(dataset: Dataset) -> None:
    def drawn(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pixels[120, 120], pixels[121, 120] = (1, 1, 1), (50, 0, 0)
        return pixels

    rewrite(mask_slice(dataset.root, 2), drawn)
    assert "mixes two layouts" in refusal(dataset.task)


def test_an_image_of_another_patient_is_warned_of(dataset: Dataset, tmp_path: Path) -> None:
    other = small_case(tmp_path / "other", seed=1).images[Modality.FLAIR]
    result = convert_labels(replace(dataset.task, reference=other))
    assert [warning.partition(": ")[2] for warning in result.warnings] == [
        "is none of the files from which the slices of p1 were made; is it that case?"
    ]


def test_a_folder_with_the_name_of_a_slice_is_named(dataset: Dataset) -> None:
    mask_slice(dataset.root, 3).unlink()
    mask_slice(dataset.root, 3).mkdir()
    assert refusal(dataset.taken_again()) == f"{mask_slice(dataset.root, 3)}: is not a regular file"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_slices_that_another_program_has_saved_are_read(dataset: Dataset, mode: str) -> None:
    for z in range(SHAPE[2]):
        Image.fromarray(pixels_of(mask_slice(dataset.root, z))).convert(mode).save(mask_slice(dataset.root, z))
    task = dataset.task
    if mode == "L":  # Pillow weighs the channels, whose values are equal: 1 stays 1
        assert pixels_of(mask_slice(dataset.root, 2)).max() == 3
    convert_labels(task)
    np.testing.assert_array_equal(labels_at(task.output), labels_in(brain_in()))


# --- the published layout, and the BraTS grid


@pytest.mark.parametrize("padding", ["", "03"])
def test_published_predictions_are_read(tmp_path: Path, padding: str) -> None:
    classes, task = published_case(tmp_path)
    shutil.rmtree(tmp_path / "predicted")
    published_slices(tmp_path / "predicted", classes, padding=padding)
    document = convert_labels(label_task(tmp_path / "predicted", task.reference, task.output)).document
    np.testing.assert_array_equal(labels_at(task.output), np.where(classes == 3, 4, classes))
    assert document["labels"]["convention"] == "brats2020"
    assert document["description"] is None


def test_published_predictions_of_a_padded_case_are_read(dataset: Dataset, tmp_path: Path) -> None:
    # A network that was fed with our image slices, and whose output lies in a folder of the dataset.
    classes = np.stack([pixels_of(mask_slice(dataset.root, z))[..., 0] for z in range(SHAPE[2])], axis=2)
    published_slices(dataset.root / "predicted", classes)
    task = label_task(dataset.root / "predicted", dataset.task.reference, dataset.task.output)
    assert task.description == Layout(dataset.root).description(NAME)
    convert_labels(task)
    np.testing.assert_array_equal(labels_at(task.output), labels_in(brain_in()))


def test_training_masks_without_a_description_are_those_of_the_brats_grid(tmp_path: Path) -> None:
    case = saved_case(tmp_path, images_in(brain_in(BRATS_SHAPE)), labels_in(brain_in(BRATS_SHAPE)))
    convert(case, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "cases")
    task = label_task(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    assert task.description is None
    convert_labels(task)
    np.testing.assert_array_equal(labels_at(task.output), labels_in(brain_in(BRATS_SHAPE)))


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        pytest.param((240, 239, 4), (1, 1, 1), id="size of y"),
        pytest.param((20, 240, 4), (1, 1, 1), id="size of x"),
        pytest.param(BRATS_SHAPE, (-1, 1, 1), id="R, not L"),
        pytest.param(BRATS_SHAPE, (-1, -1, 1), id="R and A"),
        pytest.param(BRATS_SHAPE, (1, 1, -1), id="I, not S"),
        pytest.param(BRATS_SHAPE, (0.5, 1, 1), id="spacing of x"),
        pytest.param(BRATS_SHAPE, (1, 1, 2), id="spacing of z"),
    ],
)
def test_without_a_description_any_other_grid_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], scale: tuple[float, float, float]
) -> None:
    _, task = published_case(tmp_path)
    save(task.reference, images_in(brain_in(shape))[Modality.FLAIR], BRATS_AFFINE @ np.diag([*scale, 1]))
    message = refusal(task)
    assert message.startswith(f"{task.reference}: has axes ")
    assert "keep the folder cases/" in message


def test_without_a_description_another_number_of_slices_is_refused(tmp_path: Path) -> None:
    _, task = published_case(tmp_path)
    save(task.reference, images_in(brain_in((*FRAME, 5)))[Modality.FLAIR])
    assert "slice 4 of p1 is missing" in refusal(task)


def test_a_reference_that_cannot_be_read_is_named(dataset: Dataset) -> None:
    dataset.task.reference.write_bytes(b"no image")
    assert refusal(dataset.task).startswith(f"{dataset.task.reference}: ")


# --- the description


def test_the_folder_of_a_dataset_stands_for_its_masks(dataset: Dataset) -> None:
    assert masks_folder(dataset.root) == dataset.root / "masks"
    assert masks_folder(dataset.root / "masks") == dataset.root / "masks"


def test_a_folder_without_masks_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "masks").write_bytes(b"")
    assert masks_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("where", ["beside", "within", "above", "of another program"])
def test_the_description_is_above_the_folder_or_in_it(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "a" / "predicted"
    folder.mkdir(parents=True)
    cases = {"beside": tmp_path / "a" / "cases", "within": folder / "cases"}.get(where, tmp_path / "cases")
    cases.mkdir()
    (path := cases / f"{NAME}.json").write_text(
        '{"schema": "drunet.%s/1"}' % ("segmentation" if "other" in where else "slices")
    )
    assert description_of(NAME, folder) == (None if "other" in where else path)
    assert description_of("p2", folder) is None


def test_a_folder_that_is_named_by_a_dot_has_its_description(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.root / "masks")
    found = description_of(NAME, Path())
    assert found is not None
    assert found.samefile(Layout(dataset.root).description(NAME))


def test_a_folder_that_is_named_by_two_dots_has_its_description(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (dataset.root / "masks" / "notes").mkdir()
    monkeypatch.chdir(dataset.root / "masks" / "notes")
    found = description_of(NAME, Path(".."))
    assert found is not None
    assert found.samefile(Layout(dataset.root).description(NAME))


def test_a_damaged_description_is_an_error_and_not_the_brats_grid(dataset: Dataset) -> None:
    assert dataset.task.description is not None
    dataset.task.description.write_bytes(b"")
    assert refusal(dataset.taken_again()).startswith(f"{dataset.task.description}: is damaged")


@pytest.mark.parametrize(
    ("shape", "shift_mm"),
    [
        pytest.param((20, 24, 6), 0.0, id="another number of slices"),
        pytest.param((24, 20, 5), 0.0, id="axes of one another's size"),
        pytest.param(SHAPE, 0.01, id="another origin"),  # ten times SAME_PLACE_MM
    ],
)
def test_a_reference_on_another_grid_is_refused(dataset: Dataset, shape: tuple[int, int, int], shift_mm: float) -> None:
    affine = BRATS_AFFINE.copy()
    affine[2, 3] += shift_mm
    reference = save(dataset.task.reference.with_name("other.nii"), images_in(brain_in(shape))[Modality.FLAIR], affine)
    message = refusal(replace(dataset.task, reference=reference))
    assert message.startswith(f"{reference}: is not the grid from which the slices of {NAME} were made")


def test_a_turned_copy_of_the_reference_is_refused(dataset: Dataset) -> None:
    flair = images_in(brain_in())[Modality.FLAIR][::-1]
    affine = BRATS_AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    reference = save(dataset.task.reference.with_name("other.nii"), flair, affine)
    assert "is not the grid from which" in refusal(replace(dataset.task, reference=reference))


def test_a_description_of_another_case_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    # On the same grid, but its brain lies elsewhere on it, and the frame with it.
    other = saved_case(tmp_path, images_in(brain_in(at=(0.3, 0.3), radius=4)), None, name="p2")
    convert(other, dataset.root)
    layout = Layout(dataset.root)
    layout.description("p2").replace(layout.description(NAME))
    assert f"{layout.description(NAME)}: " in refusal(dataset.taken_again())


# --- padding


def test_labels_in_the_padding_are_dropped_with_a_warning(dataset: Dataset) -> None:
    def drawn(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pixels[[0, 109, 130], 120] = 2  # SHAPE lies at rows 110 to 129, see test_nii2png
        return pixels

    rewrite(mask_slice(dataset.root, 2), drawn)
    result = convert_labels(dataset.task)
    (warning,) = result.warnings
    assert "3 labelled pixels of p1 lie outside its image" in warning
    assert result.document["warnings"] == [warning]
    np.testing.assert_array_equal(labels_at(dataset.task.output), labels_in(brain_in()))


def test_no_warning_comes_for_labels_at_the_edge_of_the_image(dataset: Dataset) -> None:
    def drawn(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pixels[[110, 129], 109] = pixels[[110, 129], 132] = 2
        return pixels

    rewrite(mask_slice(dataset.root, 2), drawn)
    assert not convert_labels(dataset.task).warnings
    corners = labels_at(dataset.task.output)[:: SHAPE[0] - 1, :: SHAPE[1] - 1, 2]
    assert corners.tolist() == [[2, 2], [2, 2]]


# --- the output


def test_any_number_of_threads_gives_the_same_bytes(dataset: Dataset) -> None:
    convert_labels(dataset.task)
    other = replace(dataset.task, output=dataset.task.output.with_name("other.nii"), threads=4)
    convert_labels(other)
    assert other.output.read_bytes() == dataset.task.output.read_bytes()


def test_the_document_has_the_check_sum_of_the_file(dataset: Dataset) -> None:
    document = convert_labels(dataset.task).document
    assert document["output_sha256"] == hashlib.sha256(dataset.task.output.read_bytes()).hexdigest()
    assert document["skipped"] is False


def test_an_existing_output_is_refused_unasked(dataset: Dataset) -> None:
    dataset.task.output.write_bytes(b"a person's")
    for refuse in (lambda: check_outputs([dataset.task]), lambda: convert_labels(dataset.task)):
        with pytest.raises(OutputError, match="exists already; give --overwrite"):
            refuse()
    assert dataset.task.output.read_bytes() == b"a person's"


def test_an_existing_output_is_replaced_when_asked(dataset: Dataset) -> None:
    dataset.task.output.write_bytes(b"a person's")
    task = replace(dataset.task, overwrite=True)
    check_outputs([task])
    assert not convert_labels(task).skipped
    np.testing.assert_array_equal(labels_at(task.output), labels_in(brain_in()))


def test_an_equal_output_is_left_alone_with_skip_existing(dataset: Dataset) -> None:
    convert_labels(dataset.task)
    before = dataset.task.output.stat()
    task = replace(dataset.task, skip_existing=True)
    check_outputs([task])
    result = convert_labels(task)
    assert result.skipped
    assert result.document["skipped"] is True
    after = dataset.task.output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_absent_output_is_written_with_skip_existing(dataset: Dataset) -> None:
    assert not convert_labels(replace(dataset.task, skip_existing=True)).skipped
    assert dataset.task.output.is_file()


@pytest.mark.parametrize("what", ["a person's", "other slices", "other labels"])
def test_another_output_is_refused_with_skip_existing(dataset: Dataset, what: str) -> None:
    if what == "a person's":
        dataset.task.output.write_bytes(b"a person's")
    else:
        convert_labels(dataset.task)
    if what == "other slices":
        rewrite(mask_slice(dataset.root, 2), np.zeros_like)
    before = dataset.task.output.read_bytes()
    labels = Labels.BRATS2023 if what == "other labels" else None
    with pytest.raises(OutputError, match="give --overwrite to replace it"):
        convert_labels(replace(dataset.task, skip_existing=True, labels=labels))
    assert dataset.task.output.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True], ids=["--skip-existing", "--overwrite"])
def test_no_image_of_the_case_is_ever_the_output(dataset: Dataset, overwrite: bool) -> None:
    link = dataset.task.output.with_name("link.nii")
    link.symlink_to(dataset.task.reference)
    other = dataset.case.images[Modality.T2]
    for output in (dataset.task.reference, link, other):
        task = replace(dataset.task, output=output, inputs=(other,), overwrite=overwrite, skip_existing=not overwrite)
        with pytest.raises(OutputError, match="is an image of p1; name another output"):
            check_outputs([task])


@pytest.mark.parametrize("name", ["folder", "file/back.nii"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(dataset: Dataset, name: str) -> None:
    folder = dataset.task.output.parent
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        check_outputs([replace(dataset.task, output=folder / name)])


def test_missing_folders_of_the_output_are_made(dataset: Dataset) -> None:
    task = replace(dataset.task, output=dataset.task.output.parent / "a" / "b" / "back.nii.gz")
    check_outputs([task])
    convert_labels(task)
    assert task.output.read_bytes().startswith(b"\x1f\x8b")


def test_a_failed_run_leaves_the_earlier_label_map(dataset: Dataset) -> None:
    convert_labels(dataset.task)
    mask_slice(dataset.root, 0).write_bytes(b"")
    assert "is empty" in refusal(replace(dataset.task, overwrite=True))


def test_slices_and_reference_are_left_as_they_are(dataset: Dataset) -> None:
    before = files_in(dataset.root)
    images = {modality: dataset.case.images[modality].read_bytes() for modality in CHANNELS}
    convert_labels(dataset.task)
    assert files_in(dataset.root) == before
    assert {modality: dataset.case.images[modality].read_bytes() for modality in CHANNELS} == images


def test_whatever_is_refused_is_an_error_of_drunets(dataset: Dataset) -> None:
    dataset.task.reference.unlink()
    with pytest.raises(DrunetError, match="flair"):
        convert_labels(dataset.task)
