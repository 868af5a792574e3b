"""Label slices to label maps: which slices are read, what is refused with the file named, and what becomes of the output."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from drunet_cli.brats import Labels, Modality
from drunet_cli.conversion.dataset import Layout
from drunet_cli.conversion.png2nii import (
    LabelMapSettings,
    WrittenLabelMap,
    check_outputs,
    conventions_of,
    convert_labels,
    description_of,
    label_slices,
    masks_folder,
)
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.case import Case
from tests.conversion.small_cases import (
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    convert_back,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    planned_label_map,
    save,
    save_pixels,
    saved_case,
    small_case,
)
from tests.support import contents, voxels_of

FRAME: Final = (240, 240)
BRATS_SHAPE: Final = (*FRAME, 4)
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """A small case as nii2png wrote it, and the way back."""

    case: Case
    root: Path
    output: Path

    @property
    def reference(self) -> Path:
        return self.case.images[Modality.FLAIR]

    def back(self, **options: Any) -> WrittenLabelMap:
        return convert_back(self.root, self.reference, self.output, **options)

    def labels(self) -> npt.NDArray[np.uint8]:
        return voxels_of(self.output)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    return Dataset(case, tmp_path / "out", tmp_path / "back.nii")


def refusal(folder: Path, reference: Path, output: Path, **options: Any) -> str:
    """The one line of a case that is refused, with nothing written."""
    before = contents(output.parent)
    with pytest.raises(CaseError) as caught:
        convert_back(folder, reference, output, **options)
    assert contents(output.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(dataset: Dataset) -> str:
    return refusal(dataset.root, dataset.reference, dataset.output)


def rewrite(path: Path, change: Callable[[Pixels], Pixels | None]) -> None:
    pixels = pixels_of(path)
    changed = change(pixels)
    save_pixels(path, pixels if changed is None else changed)


def published_slices(folder: Path, classes: Pixels, *, padding: str = "") -> None:
    """Class indices [X, Y, Z] as evaluate.py writes them. Source: drunet_cli/network/README.md, PNG layout."""
    for z in range(classes.shape[2]):
        pixels = np.zeros((*classes.shape[:2], 3), dtype=np.uint8)
        pixels[..., 0] = classes[..., z] * 50
        save_pixels(folder / f"{NAME}_slice_{z:{padding}}.png", pixels)


# --- which slices


def test_slices_are_taken_from_a_folder_of_masks_or_the_dataset_around_it(dataset: Dataset, tmp_path: Path) -> None:
    assert masks_folder(dataset.root) == masks_folder(dataset.root / "masks") == dataset.root / "masks"
    convert(small_case(tmp_path, name="p10"), dataset.root)
    sets = label_slices(dataset.root / "masks")
    assert [(name, len(slices)) for name, slices in sets.items()] == [(NAME, 5), ("p10", 5)]
    assert label_slices(dataset.root / "masks", "p10") == {"p10": sets["p10"]}
    with pytest.raises(CaseError, match="holds no slice of p2; there are those of p1, p10"):
        label_slices(dataset.root / "masks", "p2")
    with pytest.raises(CaseError, match=r"holds no slice named CASE_slice_Z\.png"):
        label_slices(tmp_path / NAME)
    with pytest.raises(CaseError, match="no such folder"):
        label_slices(tmp_path / "absent")
    shutil.rmtree(dataset.root / "masks")
    with pytest.raises(CaseError, match="holds image slices but no label slices"):
        label_slices(masks_folder(dataset.root))


def test_missing_slices_are_named(dataset: Dataset, tmp_path: Path) -> None:
    for zs, words in (([3], "3"), ([0, 3], "0, 3"), ([0, 1, 3, 4], "0, 1, 3, 4")):
        for z in zs:
            mask_slice(dataset.root, z).unlink(missing_ok=True)
        assert refused(dataset).startswith(f"{dataset.root / 'masks'}: slice {words} of {NAME} is missing")
    case = small_case(tmp_path / "long", shape=(20, 24, 9))
    convert(case, tmp_path / "long_out")
    for z in range(8):
        mask_slice(tmp_path / "long_out", z).unlink()
    message = refusal(tmp_path / "long_out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    assert "slice 0, 1, 2, 3, 4 and 3 more of p1 is missing" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p1_slice_03.png", "slice 3 is there twice"),
        ("p1_slice_000000003.png", "slice 3 is there twice"),
        ("p1_slice_5.png", "slice 5 lies beyond"),
        ("p1_slice_999999999.png", "slice 999999999 lies beyond"),
    ],
)
def test_a_slice_too_many_is_named(dataset: Dataset, name: str, message: str) -> None:
    shutil.copy(mask_slice(dataset.root, 3), dataset.root / "masks" / name)
    assert message in (told := refused(dataset))
    assert told.startswith(f"{dataset.root / 'masks'}/p1_slice_")


def test_slices_come_in_the_order_of_their_numbers_padded_or_not_and_without_those_of_others(tmp_path: Path) -> None:
    shape = (20, 24, 11)
    case = small_case(tmp_path, shape=shape)
    convert(case, tmp_path / "out")
    for seed, name in enumerate(("p10", "p1_slice_1"), start=1):
        convert(small_case(tmp_path, name=name, seed=seed), tmp_path / "out")
    for z in range(3, 8):
        mask_slice(tmp_path / "out", z).rename(tmp_path / "out" / "masks" / f"{NAME}_slice_{z:03}.png")
    convert_back(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    np.testing.assert_array_equal(voxels_of(tmp_path / "back.nii"), labels_in(brain_in(shape)))


def test_slices_that_skip_blank_left_out_may_be_missing_or_drawn_in(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out", skip_blank=True)
    pixels = np.zeros((*FRAME, 3), dtype=np.uint8)
    pixels[110 + 3, 109 + 4] = 1  # where SHAPE begins on the frame, see test_nii2png
    save_pixels(mask_slice(tmp_path / "out", 0), pixels)
    convert_back(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "back.nii")
    assert np.argwhere(voxels_of(tmp_path / "back.nii")[..., 0] == 1).tolist() == [[3, 4]]
    mask_slice(tmp_path / "out", 1).unlink()
    message = refusal(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "second.nii")
    assert "slice 1 of p1 is missing" in message


# --- what a slice may hold


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("shape", [(239, 240), (240, 241), (155, 240), (480, 480), (1, 1)])
def test_a_slice_of_another_size_is_named(dataset: Dataset, shape: tuple[int, int]) -> None:
    path = mask_slice(dataset.root, 2)
    save_pixels(path, np.zeros((*shape, 3), dtype=np.uint8))
    assert refused(dataset) == f"{path}: has {shape[0]} x {shape[1]} pixels (rows x columns), not 240 x 240"


@pytest.mark.parametrize(
    ("row", "column", "colour"),
    [(0, 0, (4, 4, 4)), (239, 238, (1, 0, 0)), (7, 5, (200, 0, 0)), (5, 7, (50, 50, 50)), (2, 2, (50, 0, 1))],
)
def test_an_illegal_colour_is_named_with_its_place(
    dataset: Dataset, row: int, column: int, colour: tuple[int, int, int]
) -> None:
    rewrite(mask_slice(dataset.root, 2), lambda pixels: pixels.__setitem__((row, column), colour))
    message = refused(dataset)
    assert message.startswith(f"{mask_slice(dataset.root, 2)}: has 1 pixels of illegal colour, the first ")
    assert f"({', '.join(map(str, colour))}) in row {row}, column {column};" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-13]), ""),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), ""),
        (lambda path: path.write_bytes(b"GIF89a" + path.read_bytes()), ""),
        (replace_by_pipe, "is not a regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("absent")), "cannot be read: No such file or directory"),
        (lambda path: shutil.copy(path.parents[1] / "images" / path.name, path), "illegal colour"),
        (
            lambda path: rewrite(path, lambda pixels: pixels.__setitem__((slice(120, 122), 120), [(1, 1, 1), (50, 0, 0)])),
            "mixes two layouts",
        ),
    ],
    ids=["empty", "truncated", "zeros", "GIF", "pipe", "folder", "gone", "image slice", "two layouts"],
)
def test_a_file_that_is_no_label_slice_is_named(dataset: Dataset, damage: Callable[[Path], object], message: str) -> None:
    damage(mask_slice(dataset.root, 3))
    told = refused(dataset)
    assert told.startswith(f"{mask_slice(dataset.root, 3)}: ")
    assert message in told


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_slices_that_another_program_has_saved_are_read(dataset: Dataset, mode: str) -> None:
    for z in range(SHAPE[2]):  # Pillow weighs the channels, whose values are equal: 1 stays 1
        Image.fromarray(pixels_of(mask_slice(dataset.root, z))).convert(mode).save(mask_slice(dataset.root, z))
    dataset.back()
    np.testing.assert_array_equal(dataset.labels(), labels_in(brain_in()))


# --- the published layout, and the BraTS grid


@pytest.mark.parametrize("padding", ["", "03"])
def test_published_predictions_on_the_brats_grid_are_read_without_a_description(tmp_path: Path, padding: str) -> None:
    classes = labels_in(brain_in(BRATS_SHAPE), enhancing=3)
    published_slices(tmp_path / "predicted", classes, padding=padding)
    reference = save(tmp_path / "flair.nii", images_in(brain_in(BRATS_SHAPE))[Modality.FLAIR])
    document = convert_back(tmp_path / "predicted", reference, tmp_path / "back.nii").document
    np.testing.assert_array_equal(voxels_of(tmp_path / "back.nii"), np.where(classes == 3, 4, classes))
    assert (document["labels"]["convention"], document["description"]) == ("brats2020", None)


def test_published_predictions_of_a_padded_case_are_read_by_the_description_above(dataset: Dataset) -> None:
    # A network that was fed with our image slices, and whose output lies in a folder of the dataset.
    classes = np.stack([pixels_of(mask_slice(dataset.root, z))[..., 0] for z in range(SHAPE[2])], axis=2)
    published_slices(dataset.root / "predicted", classes)
    document = convert_back(dataset.root / "predicted", dataset.reference, dataset.output).document
    assert document["description"] == str(Layout(dataset.root).description(NAME))
    np.testing.assert_array_equal(dataset.labels(), labels_in(brain_in()))


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        pytest.param((240, 239, 4), (1, 1, 1), id="size of y"),
        pytest.param((20, 240, 4), (1, 1, 1), id="size of x"),
        pytest.param(BRATS_SHAPE, (-1, 1, 1), id="R, not L"),
        pytest.param(BRATS_SHAPE, (1, -1, 1), id="A, not P"),
        pytest.param(BRATS_SHAPE, (1, 1, -1), id="I, not S"),
        pytest.param(BRATS_SHAPE, (0.5, 1, 1), id="spacing of x"),
        pytest.param(BRATS_SHAPE, (1, 1, 2), id="spacing of z"),
        pytest.param((*FRAME, 5), (1, 1, 1), id="number of slices"),
    ],
)
def test_without_a_description_any_other_grid_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], scale: tuple[float, float, float]
) -> None:
    published_slices(tmp_path / "predicted", labels_in(brain_in(BRATS_SHAPE), enhancing=3))
    image = images_in(brain_in(shape))[Modality.FLAIR]
    reference = save(tmp_path / "flair.nii", image, BRATS_AFFINE @ np.diag([*scale, 1]))
    message = refusal(tmp_path / "predicted", reference, tmp_path / "back.nii")
    if shape[2] == 5:
        assert "slice 4 of p1 is missing" in message
    else:
        assert message.startswith(f"{reference}: has axes ")
        assert "keep the folder cases/" in message


# --- the description


@pytest.mark.parametrize("where", ["beside", "within", "above", "of another program"])
def test_the_description_is_above_the_folder_or_in_it(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "a" / "predicted"
    folder.mkdir(parents=True)
    path = {"beside": tmp_path / "a", "within": folder}.get(where, tmp_path) / "cases" / f"{NAME}.json"
    path.parent.mkdir()
    path.write_text('{"schema": "drunet.%s/1"}' % ("segmentation" if "other" in where else "slices"))
    assert description_of(NAME, folder) == (None if "other" in where else path)
    assert description_of("p2", folder) is None
    (tmp_path / "a" / "predicted" / "b").mkdir()
    (folder / "b" / "cases").touch()
    assert description_of("p2", folder / "b") is None


@pytest.mark.parametrize("words", [".", ".."])
def test_a_folder_that_is_named_by_dots_has_its_description(
    dataset: Dataset, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset.root / "masks" / "notes").mkdir()
    monkeypatch.chdir(dataset.root / "masks" / ("" if words == "." else "notes"))
    found = description_of(NAME, Path(words))
    assert found is not None
    assert found.samefile(Layout(dataset.root).description(NAME))


def test_a_description_that_is_damaged_or_of_another_case_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    layout = Layout(dataset.root)
    # On the same grid, but its brain lies elsewhere on it, and the frame with it.
    convert(saved_case(tmp_path, images_in(brain_in(at=(0.3, 0.3), radius=4)), None, name="p2"), dataset.root)
    layout.description("p2").replace(layout.description(NAME))
    assert f"{layout.description(NAME)}: describes the case p2" in refused(dataset)
    layout.description(NAME).write_bytes(b"")
    assert refused(dataset).startswith(f"{layout.description(NAME)}: is damaged")


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        pytest.param((20, 24, 6), np.eye(4), id="another number of slices"),
        pytest.param((24, 20, 5), np.eye(4), id="axes of one another's size"),
        pytest.param(SHAPE, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]), id="another origin"),
        pytest.param(SHAPE, np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), id="turned"),
    ],
)
def test_a_reference_on_another_grid_is_refused(
    dataset: Dataset, tmp_path: Path, shape: tuple[int, int, int], change: npt.NDArray[np.float64]
) -> None:
    reference = save(tmp_path / "other.nii", images_in(brain_in(shape))[Modality.FLAIR], BRATS_AFFINE @ change)
    message = refusal(dataset.root, reference, dataset.output)
    assert message.startswith(f"{reference}: is not the grid from which the slices of {NAME} were made")


def test_a_reference_that_cannot_be_read_is_named_and_one_of_another_patient_is_warned_of(
    dataset: Dataset, tmp_path: Path
) -> None:
    other = small_case(tmp_path / "other", seed=1).images[Modality.FLAIR]
    result = convert_back(dataset.root, other, dataset.output)
    assert [warning.partition(": ")[2] for warning in result.warnings] == [
        "is none of the files from which the slices of p1 were made; is it that case?"
    ]
    other.write_bytes(b"no image")
    assert refusal(dataset.root, other, tmp_path / "second.nii").startswith(f"{other}: ")


def test_the_conventions_of_the_segmentations_are_known(tmp_path: Path) -> None:
    brain, planned = brain_in(), []
    for name, labels in (("a", 3), ("b", 4), ("c", 0)):
        case = saved_case(tmp_path, images_in(brain), labels_in(brain, enhancing=labels) if labels else None, name=name)
        convert(case, tmp_path / "out")
        planned.append(planned_label_map(tmp_path / "out", case.images[Modality.FLAIR], tmp_path / "x.nii", case=name))
    assert conventions_of(planned) == {Labels.BRATS2020, Labels.BRATS2023}
    assert conventions_of(planned[2:]) == set()
    Layout(tmp_path / "out").description("a").write_bytes(b"{")
    assert conventions_of(planned) == {Labels.BRATS2020}


# --- padding


def test_labels_in_the_padding_are_dropped_with_a_warning_and_those_at_the_edge_kept(dataset: Dataset) -> None:
    def draw(pixels: Pixels) -> None:  # SHAPE lies at rows 110 to 129, columns 109 to 132, see test_nii2png
        pixels[[110, 129], 109] = pixels[[110, 129], 132] = 2

    rewrite(mask_slice(dataset.root, 2), draw)
    assert not dataset.back().warnings
    assert dataset.labels()[:: SHAPE[0] - 1, :: SHAPE[1] - 1, 2].tolist() == [[2, 2], [2, 2]]
    before = dataset.labels().copy()
    rewrite(mask_slice(dataset.root, 2), lambda pixels: pixels.__setitem__(([0, 109, 130], 120), 2))
    result = dataset.back(overwrite=True)
    (warning,) = result.warnings
    assert "3 labelled pixels of p1 lie outside its image" in warning
    assert result.document["warnings"] == [warning]
    np.testing.assert_array_equal(dataset.labels(), before)


def test_labels_outside_the_brain_are_warned_of_as_transposed_slices_put_them_there(dataset: Dataset) -> None:
    for z in range(SHAPE[2]):
        rewrite(mask_slice(dataset.root, z), lambda pixels: np.roll(pixels, 2, axis=1))
    (warning,) = dataset.back().warnings
    assert "of the labelled voxels of p1 lie outside the brain" in warning
    assert warning.endswith("is 0; are the slices transposed or mirrored, or those of another case?")


# --- the output


def test_the_document_tells_what_was_written(dataset: Dataset) -> None:
    document = dataset.back().document
    labels = labels_in(brain_in())
    ncr, ed, et = (int(np.count_nonzero(labels == label)) for label in (1, 2, 4))
    voxels = {"NCR": ncr, "ED": ed, "ET": et, "WT": ncr + ed + et, "TC": ncr + et}
    assert document == {
        "case": NAME,
        "output": str(dataset.output),
        "output_sha256": hashlib.sha256(dataset.output.read_bytes()).hexdigest(),
        "labels": {"convention": "brats2020", "values": {"NCR": 1, "ED": 2, "ET": 4}},
        "volumes_ml": {name: count / 1000 for name, count in voxels.items()},  # voxels of 1 mm
        "voxels": voxels,
        "reference": str(dataset.reference),
        "description": str(Layout(dataset.root).description(NAME)),
        "warnings": [],
        "skipped": False,
    }


def test_any_number_of_threads_gives_the_same_bytes_and_the_inputs_stay_as_they_are(dataset: Dataset, tmp_path: Path) -> None:
    before = contents(tmp_path)
    dataset.back()
    convert_back(dataset.root, dataset.reference, tmp_path / "a" / "other.nii", threads=4)
    assert (tmp_path / "a" / "other.nii").read_bytes() == dataset.output.read_bytes()
    convert_back(dataset.root, dataset.reference, tmp_path / "b" / "c" / "back.nii.gz")
    assert (tmp_path / "b" / "c" / "back.nii.gz").read_bytes().startswith(b"\x1f\x8b")
    after = contents(tmp_path)
    assert {name: content for name, content in after.items() if name in before} == before


@pytest.mark.parametrize(
    ("there", "unasked", "skip_existing", "overwrite"),
    [
        ("nothing", "written", "written", "written"),
        ("the same labels", "refused", "skipped", "written"),
        ("described otherwise", "refused", "skipped", "written"),
        ("other slices", "refused", "refused", "written"),
        ("other labels", "refused", "refused", "written"),
        ("a person's", "refused", "refused", "written"),
    ],
)
def test_what_becomes_of_an_output_that_is_there(
    dataset: Dataset, there: str, unasked: str, skip_existing: str, overwrite: str
) -> None:
    if there == "a person's":
        dataset.output.write_bytes(b"a person's")
    elif there != "nothing":
        dataset.back(labels=Labels.BRATS2023 if there == "other labels" else None)
    if there == "described otherwise":
        content = dataset.output.read_bytes()
        dataset.output.write_bytes(content[:148] + b"by hand" + content[155:])  # the header's descrip
    if there == "other slices":
        rewrite(mask_slice(dataset.root, 2), np.zeros_like)
    for options, expected in (
        ({}, unasked),
        ({"skip_existing": True}, skip_existing),
        ({"overwrite": True}, overwrite),
    ):
        before = dataset.output.read_bytes() if there != "nothing" else None
        stamp = dataset.output.stat() if before else None
        if expected == "refused":
            with pytest.raises(OutputError, match="give --overwrite to replace it"):
                dataset.back(**options)
            assert dataset.output.read_bytes() == before
        else:
            result = dataset.back(**options)
            assert result.skipped is result.document["skipped"] is (expected == "skipped")
            assert (dataset.output.stat() == stamp) is (expected == "skipped")
            assert result.document["output_sha256"] == hashlib.sha256(dataset.output.read_bytes()).hexdigest()
        if there == "nothing":
            dataset.output.unlink()
    if there not in ("nothing", "other slices"):
        np.testing.assert_array_equal(dataset.labels(), labels_in(brain_in()))


def test_no_image_of_the_case_is_ever_the_output_nor_a_place_that_cannot_be_one(dataset: Dataset, tmp_path: Path) -> None:
    (link := tmp_path / "link.nii").symlink_to(dataset.reference)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    other = dataset.case.images[Modality.T2]
    planned = replace(planned_label_map(dataset.root, dataset.reference, dataset.output), images=(other,))
    for overwrite in (True, False):
        settings = LabelMapSettings(folder=dataset.root / "masks", overwrite=overwrite, skip_existing=not overwrite)
        for output in (dataset.reference, link, other):
            with pytest.raises(OutputError, match="is an image of p1; name another output"):
                check_outputs([replace(planned, output=output)], settings)
        for output in (tmp_path / "folder", tmp_path / "file" / "back.nii"):
            with pytest.raises(OutputError):
                check_outputs([replace(planned, output=output)], settings)


def test_a_failed_run_leaves_the_earlier_label_map(dataset: Dataset) -> None:
    dataset.back()
    before = dataset.output.read_bytes()
    mask_slice(dataset.root, 0).write_bytes(b"")
    with pytest.raises(CaseError, match="is empty"):
        dataset.back(overwrite=True)
    assert dataset.output.read_bytes() == before


def test_a_label_map_that_has_appeared_meanwhile_is_not_replaced(dataset: Dataset) -> None:
    planned = planned_label_map(dataset.root, dataset.reference, dataset.output)
    dataset.output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        convert_labels(planned, LabelMapSettings(folder=dataset.root / "masks"))
    assert dataset.output.read_bytes() == b"mine"
