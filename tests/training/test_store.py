"""Cases on the disk for training: what a store holds, when it is made again, and what is read of it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion.dataset import Layout
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.volumes import read_images
from drunet_cli.training import store
from drunet_cli.training.cases import TrainingCase, find_training_cases, read_labelled_slices
from drunet_cli.training.store import SCHEMA, CaseSummary, StoredCase, StoreTask, open_store, store_case
from drunet_cli.weights.checkpoint import Metadata, write_checkpoint
from tests.conversion.small_cases import (
    BLANK,
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    images_in,
    labels_in,
    mask_slice,
    pixels_of,
    save,
    save_pixels,
    saved_case,
    small_case,
)
from tests.io.test_geometry import stored_otherwise
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, contents, open_image, touch, unprivileged

Pixels = npt.NDArray[np.uint8]


def found_in(path: Path) -> TrainingCase:
    sources = find_training_cases([path])
    assert not sources.refused
    [case] = sources.cases
    return case


def prepare(path: Path, folder: Path, *, write: bool = True) -> CaseSummary:
    """Put the one case that a source holds into a store."""
    return store_case(StoreTask(case=found_in(path), folder=folder, write=write))


def opened(folder: Path, name: str = NAME) -> StoredCase:
    [case] = open_store(folder, [name])
    return case


def stored(path: Path, folder: Path) -> StoredCase:
    return opened(folder, prepare(path, folder).name)


def file_of(folder: Path, name: str = NAME) -> Path:
    return folder / f"{name}.safetensors"


def replaced_by_junk(path: Path) -> None:
    """Other bytes of the same size, at the same time."""
    stamp = path.stat()
    path.write_bytes(os.urandom(stamp.st_size))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def with_document(path: Path, change: Callable[[dict[str, Any]], object], pixels: Pixels | None = None) -> None:
    """The same file with other metadata, or with other pixels."""
    with safetensors.safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["drunet"])
        tensor = file.get_tensor("slices") if pixels is None else pixels
    change(document)
    path.write_bytes(safetensors.numpy.save({"slices": tensor}, {"drunet": json.dumps(document)}))


def brute_force_box(mask: npt.NDArray[np.bool_]) -> list[int]:
    """The box of one slice."""
    if not mask.any():
        return [0, 0, 0, 0]
    xs, ys = np.nonzero(mask)
    return [xs.min(), xs.max() + 1, ys.min(), ys.max() + 1]


# --- what is stored


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a case, `nifti`, the same as slices, `png`, and the store of each."""
    folder = tmp_path_factory.mktemp("template") / "case"
    convert(small_case(folder / "nifti"), folder / "png")
    for source in ("nifti", "png"):
        prepare(folder / source, folder / f"{source}-store")
    shutil.copytree(folder, folder.with_name("original"))
    return folder


@pytest.fixture
def kept(template: Path) -> Iterator[Path]:
    """That folder, to be changed: in its place and with the times of its files, by which a store knows them."""
    yield template
    shutil.rmtree(template)
    shutil.copytree(template.with_name("original"), template)


def test_a_case_on_the_brats_grid_is_stored_as_segment_sees_it(tmp_path: Path) -> None:
    case = Case("golden", GOLDEN_IMAGES, GOLDEN_LABELS)
    store_case(StoreTask(case=TrainingCase("golden", case), folder=tmp_path))
    read = opened(tmp_path, "golden")
    np.testing.assert_array_equal(read.slices(), read_images(case).slices())
    label_map = np.asarray(open_image(GOLDEN_LABELS).dataobj)
    assert (label_map == 4).any()
    np.testing.assert_array_equal(read.classes(), np.moveaxis(np.where(label_map == 4, 3, label_map), 2, 0))
    assert read.slices().dtype == read.classes().dtype == np.uint8


@pytest.mark.parametrize(
    ("order", "backwards"),
    [
        ((0, 1, 2), (True, True, False)),  # RAS
        ((2, 1, 0), (False, True, True)),  # SAR
        ((1, 2, 0), (False, True, False)),  # PIL
    ],
)
def test_labels_are_turned_with_their_images(tmp_path: Path, order: tuple[int, ...], backwards: tuple[bool, ...]) -> None:
    brain = brain_in()
    images, labels = images_in(brain), labels_in(brain)
    saved_case(tmp_path / "lps", images, labels)
    expected = stored(tmp_path / "lps", tmp_path / "store")
    turned = {modality: stored_otherwise(voxels, BRATS_AFFINE, order, backwards)[0] for modality, voxels in images.items()}
    label_map, affine = stored_otherwise(labels, BRATS_AFFINE, order, backwards)
    saved_case(tmp_path / "turned", turned, label_map, affine=affine)
    read = stored(tmp_path / "turned", tmp_path / "store2")
    np.testing.assert_array_equal(read.slices(), expected.slices())
    np.testing.assert_array_equal(read.classes(), expected.classes())
    assert expected.classes().any()


def test_counts_and_boxes_are_those_of_each_slice(tmp_path: Path) -> None:
    brain, labels = brain_in(), labels_in(brain_in())
    labels[:, :, 1] = 0
    labels[:9, :, 2] = labels[:, 14:, 2] = 0
    saved_case(tmp_path / "nifti", images_in(brain), labels)
    read = stored(tmp_path / "nifti", tmp_path / "store")
    shown, classes = np.asarray(read.slices().any(axis=3)), read.classes()
    for z in range(SHAPE[2]):
        assert read.counts[z].tolist() == [shown[z].sum(), *((classes[z] == n).sum() for n in (1, 2, 3))]
        assert read.brain_boxes[z].tolist() == brute_force_box(shown[z])
        assert read.tumour_boxes[z].tolist() == brute_force_box(np.asarray(classes[z] > 0))
    for z in BLANK:
        assert not any(table[z].any() for table in (read.counts, read.brain_boxes, read.tumour_boxes))
    assert not read.tumour_boxes[1].any()
    assert read.brain_boxes[1].any()
    assert {table.shape for table in (read.counts, read.brain_boxes, read.tumour_boxes)} == {(SHAPE[2], 4)}
    assert read.counts.dtype == np.int64


def test_what_is_stored_is_cropped_to_brain_and_labels(tmp_path: Path) -> None:
    brain = brain_in()
    labels = labels_in(brain)
    labels[0, 0, 0] = 1  # no brain there
    saved_case(tmp_path / "nifti", images_in(brain), labels)
    read = stored(tmp_path / "nifti", tmp_path / "store")
    with safetensors.safe_open(file_of(tmp_path / "store"), framework="numpy") as file:
        tensor = file.get_tensor("slices")
        document = json.loads(file.metadata()["drunet"])
    assert document["schema"] == SCHEMA
    assert (document["case"], document["frame"]) == (NAME, [SHAPE[2], FRAME, FRAME])
    outside = np.maximum(read.slices().max(axis=3), read.classes())
    box = tuple(slice(start, start + size) for start, size in zip(document["start"], tensor.shape[:3], strict=True))
    np.testing.assert_array_equal(tensor[..., :4], read.slices()[box])
    np.testing.assert_array_equal(tensor[..., 4], read.classes()[box])
    assert all(outside[box].any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))
    outside[box] = 0
    assert not outside.any()


def test_nothing_of_a_path_is_stored(template: Path) -> None:
    for source in ("nifti", "png"):
        assert template.parent.name.encode() not in file_of(template / f"{source}-store").read_bytes()
    inputs = opened(template / "nifti-store").inputs
    for name, file in found_in(template / "nifti").inputs.items():
        assert inputs[name].sha256 == hashlib.sha256(file[0].read_bytes()).hexdigest()  # as other programs give it
    assert {name: file.name for name, file in inputs.items()} == {
        **{modality.value: f"{NAME}_{modality}.nii" for modality in CHANNELS},
        "seg": f"{NAME}_seg.nii",
    }


# --- windows


@pytest.fixture(scope="module")
def padded(template: Path) -> tuple[StoredCase, Pixels]:
    """A case, and its whole frames [Z, X, Y, 5] within 300 black pixels on all sides."""
    read = opened(template / "nifti-store")
    whole = np.concatenate([read.slices(), read.classes()[..., np.newaxis]], axis=3)
    return read, np.pad(whole, ((0, 0), (300, 300), (300, 300), (0, 0)))


def expected_window(whole: Pixels, z: int, x: int, y: int, shape: tuple[int, int]) -> Pixels:
    return whole[z, 300 + x : 300 + x + shape[0], 300 + y : 300 + y + shape[1]]


# The brain lies at 110-130 and 109-133 of the frame: starts at, over and beyond its edges and those of the frame.
starts = st.one_of(st.integers(-300, 280), st.sampled_from((-1, 0, 1, 109, 110, 111, 129, 130, 133, 239, 240)))


@given(z=st.integers(0, SHAPE[2] - 1), x=starts, y=starts, shape=st.tuples(st.integers(1, 300), st.integers(1, 260)))
def test_a_window_shows_the_frame_from_any_start(
    padded: tuple[StoredCase, Pixels], z: int, x: int, y: int, shape: tuple[int, int]
) -> None:
    read, whole = padded
    shape = min(shape[0], 300 + FRAME - x), min(shape[1], 300 + FRAME - y)
    window = read.window(z, x, y, shape)
    np.testing.assert_array_equal(window, expected_window(whole, z, x, y, shape))
    assert window.dtype == np.uint8
    assert window.shape == (*shape, 5)
    window[:] = 7  # the caller's to change
    np.testing.assert_array_equal(read.window(z, x, y, shape), expected_window(whole, z, x, y, shape))


def test_several_threads_read_at_the_same_time(padded: tuple[StoredCase, Pixels]) -> None:
    read, whole = padded
    starts = [(z, x) for z in range(SHAPE[2]) for x in range(80, 130)] * 4
    with ThreadPoolExecutor(4) as threads:
        windows = list(threads.map(lambda start: read.window(start[0], start[1], 100, (40, 40)), starts))
    for (z, x), window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, expected_window(whole, z, x, 100, (40, 40)))


def test_open_cases_outlive_their_file_and_keep_no_file_descriptor(kept: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    cases = open_store(kept / "nifti-store", [NAME] * 20)
    assert cases[-1].window(2, 0, 0, (144, 176)).shape == (144, 176, 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    file_of(kept / "nifti-store").unlink()
    assert cases[0].window(2, 90, 90, (60, 60)).any()


# --- what cannot be opened


def assert_not_opened(path: Path, match: str) -> None:
    with pytest.raises(CaseError, match=match) as caught:
        opened(path.parent)
    assert str(caught.value).startswith(f"{path}: ")


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


OURS_NO_MORE: Final[dict[str, Callable[[Path], object]]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "longer": grown,
    "no JSON": lambda path: path.write_bytes(path.read_bytes().replace(b'\\"case\\"', b'\\"case"X')),
    "without rows": lambda path: with_document(path, lambda document: document.pop("rows")),
    "one row too few": lambda path: with_document(path, lambda document: document["rows"].pop()),
    "rows of fractions": lambda path: with_document(path, lambda document: document["rows"][0].__setitem__(0, 0.5)),
    "ragged rows": lambda path: with_document(path, lambda document: document["rows"][0].pop()),
    "negative count": lambda path: with_document(path, lambda document: document["rows"][0].__setitem__(1, -1)),
    "count beyond the frame": lambda path: with_document(path, lambda document: document["rows"][0].__setitem__(0, 57601)),
    "box beyond the frame": lambda path: with_document(path, lambda document: document["rows"][0].__setitem__(5, 241)),
    "box inside out": lambda path: with_document(path, lambda document: document["rows"][0].__setitem__(10, 200)),
    "other columns": lambda path: with_document(path, lambda document: document["columns"].reverse()),
    "start beyond the frame": lambda path: with_document(path, lambda document: document["start"].__setitem__(1, 239)),
    "start before the frame": lambda path: with_document(path, lambda document: document["start"].__setitem__(1, -1)),
    "start of fractions": lambda path: with_document(path, lambda document: document["start"].__setitem__(1, 1.5)),
    "other frame": lambda path: with_document(path, lambda document: document["frame"].__setitem__(1, 480)),
    "huge frame": lambda path: with_document(path, lambda document: document["frame"].__setitem__(0, 10**12)),
    "frame is no list": lambda path: with_document(path, lambda document: document.update(frame=240)),
    "inputs of other fields": lambda path: with_document(path, lambda document: document["inputs"]["seg"].pop("sha256")),
    "four channels": lambda path: with_document(path, lambda _: None, np.zeros((3, 18, 18, 4), dtype=np.uint8)),
    "other numbers": lambda path: with_document(path, lambda _: None, np.zeros((3, 18, 18, 5), dtype=np.int8)),
    "schema to come": lambda path: with_document(path, lambda document: document.update(schema="drunet.training-slices/2")),
}


@pytest.mark.parametrize("damage", OURS_NO_MORE)
def test_a_file_that_is_not_as_it_was_written_is_not_opened_but_made_again(kept: Path, damage: str) -> None:
    path = file_of(kept / "nifti-store")
    good = path.read_bytes()
    OURS_NO_MORE[damage](path)
    assert path.read_bytes() != good
    assert_not_opened(path, "prepare the case again")
    assert not prepare(kept / "nifti", path.parent).reused
    assert path.read_bytes() == good


def test_a_case_under_another_name_is_not_opened_but_made_again(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti", name="q")
    prepare(tmp_path / "nifti", tmp_path / "store")
    file_of(tmp_path / "store", "q").rename(file_of(tmp_path / "store"))
    assert_not_opened(file_of(tmp_path / "store"), "holds the case q, not p1")
    shutil.rmtree(tmp_path / "nifti")
    small_case(tmp_path / "nifti")
    assert not prepare(tmp_path / "nifti", tmp_path / "store").reused
    assert opened(tmp_path / "store").name == NAME


def weights(path: Path) -> None:
    write_checkpoint(path, {}, Metadata(name="w", base_width=1, bn_epsilon=1e-3), overwrite=False)


def tensors(path: Path) -> None:
    path.write_bytes(safetensors.numpy.save({"slices": np.zeros((1, 1, 1, 5), dtype=np.uint8)}))


FOREIGN: Final[dict[str, Callable[[Path], object]]] = {
    "text": lambda path: path.write_text("my notes"),
    "weights": weights,
    "tensors": tensors,
    "folder": Path.mkdir,
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, kind: str, write: bool) -> None:
    small_case(tmp_path / "nifti")
    path = file_of(tmp_path / "store")
    path.parent.mkdir()
    FOREIGN[kind](path)
    before = contents(path.parent)
    with pytest.raises(OutputError, match=r"p1\.safetensors: is no case of drunet's store; remove it"):
        prepare(tmp_path / "nifti", path.parent, write=write)
    assert contents(path.parent) == before
    with pytest.raises(CaseError, match=r"p1\.safetensors: "):
        opened(path.parent)


# --- what is there already


def is_reused(kept: Path, source: str, *, moved_to: Path | None = None) -> bool:
    """Whether a store takes a source for the one that it was made from; if not, it holds the other one after."""
    folder = kept / f"{source}-store"
    case = found_in(moved_to or kept / source)
    before = contents(folder)
    prepared = store_case(StoreTask(case=case, folder=folder))
    if prepared.reused:
        assert contents(folder) == before
    else:
        read = read_labelled_slices(case)
        np.testing.assert_array_equal(opened(folder).slices(), read.images)
        np.testing.assert_array_equal(opened(folder).classes(), read.classes)
    return prepared.reused


def images_of(kept: Path, source: str) -> list[Path]:
    return sorted((kept / source).rglob("*.nii" if source == "nifti" else "*.png"))


def replace_all_by_junk(kept: Path, source: str) -> None:
    for path in images_of(kept, source):
        replaced_by_junk(path)


def touch_all(kept: Path, source: str) -> None:
    for path in images_of(kept, source):
        touch(path)


def move(kept: Path, source: str) -> Path:
    return (kept / source).rename(kept / "elsewhere")


def copy(kept: Path, source: str) -> Path:
    shutil.copytree(kept / source, kept / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(kept / source)
    return kept / "elsewhere"


def edit_label(kept: Path, source: str) -> None:
    if source == "nifti":
        path = kept / "nifti" / NAME / f"{NAME}_seg.nii"
        save(path, labels_in(brain_in(), 9))
    else:
        path = mask_slice(kept / "png", 2)
        pixels = pixels_of(path)
        pixels[120, 120] = (pixels[120, 120] + 1) % 4
        save_pixels(path, pixels)
    touch(path)


def edit_image(kept: Path, source: str) -> None:
    path = kept / "nifti" / NAME / f"{NAME}_t2.nii"
    save(path, images_in(brain_in(), 9)[Modality.T2])
    touch(path)


def swap(kept: Path, source: str) -> None:
    paths = images_of(kept, source)
    names = ("_t1.nii", "_t2.nii") if source == "nifti" else ("masks/p1_slice_1.png", "masks/p1_slice_2.png")
    one, other = (next(path for path in paths if path.as_posix().endswith(name)) for name in names)
    aside = one.rename(one.with_name("aside"))
    other.rename(one)
    aside.rename(other)


# What has happened to the files since they were stored -> whether the store takes them for the same.
CHANGES: Final[dict[str, tuple[str, Callable[[Path, str], Path | None], bool]]] = {
    **{f"{source} unread": (source, replace_all_by_junk, True) for source in ("nifti", "png")},  # same size and time
    **{f"{source} touched": (source, touch_all, True) for source in ("nifti", "png")},
    **{f"{source} moved": (source, move, True) for source in ("nifti", "png")},
    **{f"{source} copied": (source, copy, True) for source in ("nifti", "png")},
    "label map edited": ("nifti", edit_label, False),
    "image edited": ("nifti", edit_image, False),
    "label slice edited": ("png", edit_label, False),
    "images swapped": ("nifti", swap, False),
    "label slices swapped": ("png", swap, False),
    "slices for images": ("nifti", lambda kept, _: kept / "png", False),
    "description lost": ("png", lambda kept, _: Layout(kept / "png").description(NAME).unlink(), False),
}


@pytest.mark.parametrize(("source", "change", "same"), CHANGES.values(), ids=CHANGES)
def test_a_case_is_made_again_where_its_files_are_no_longer_the_same(
    source: str, change: Callable[[Path, str], Path | None], same: bool, kept: Path
) -> None:
    moved_to = change(kept, source)
    assert is_reused(kept, source, moved_to=moved_to) is same


def test_a_bare_case_of_one_slice_whose_number_has_changed_is_made_again(kept: Path) -> None:
    shutil.rmtree(kept / "png" / "cases")
    for path in (kept / "png").rglob("*.png"):
        if "_slice_2" not in path.name:
            path.unlink()
    prepare(kept / "png", kept / "png-store")
    for path in (kept / "png").rglob("*.png"):
        path.rename(path.with_name(f"{NAME}_slice_7.png"))
    assert not is_reused(kept, "png")


@pytest.mark.parametrize("other", ["size", "content"])
def test_other_files_of_the_same_names_and_times_are_not_the_same(kept: Path, other: str) -> None:
    # As an archive unpacks them: one time of change for all.
    shape = SHAPE if other == "content" else (20, 24, 6)
    small_case(kept / "elsewhere", seed=1, shape=shape)
    for path in [*(kept / "nifti").rglob("*.nii"), *(kept / "elsewhere").rglob("*.nii")]:
        os.utime(path, ns=(10**18, 10**18))
    file_of(kept / "nifti-store").unlink()  # which was made at other times
    prepare(kept / "nifti", kept / "nifti-store")
    assert not is_reused(kept, "nifti", moved_to=kept / "elsewhere")


def test_a_missing_image_is_told_though_the_case_is_stored(kept: Path) -> None:
    case = found_in(kept / "nifti")
    (kept / "nifti" / NAME / f"{NAME}_t1.nii").unlink()
    with pytest.raises(CaseError, match=r"p1_t1\.nii: cannot be read"):
        store_case(StoreTask(case=case, folder=kept / "nifti-store"))


def test_a_complete_store_need_not_be_writable() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only their owner may enter
        folder = Path(name)
        folder.chmod(0o755)
        small_case(folder / "nifti")
        prepare(folder / "nifti", folder / "nifti-store")
        (folder / "nifti-store").chmod(0o555)
        with unprivileged():
            assert is_reused(folder, "nifti")
        (folder / "nifti-store").chmod(0o755)


# --- writing


def test_a_dry_run_checks_and_writes_nothing_and_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    planned = prepare(tmp_path / "nifti", tmp_path / "store", write=False)
    assert not (tmp_path / "store").exists()
    assert planned == prepare(tmp_path / "nifti", tmp_path / "store")
    assert (planned.name, planned.n_slices, planned.n_tumour_slices, planned.reused) == (NAME, SHAPE[2], 3, False)
    before = contents(tmp_path / "store")
    assert prepare(tmp_path / "nifti", tmp_path / "store", write=False) == replace(planned, reused=True)
    small_case(tmp_path / "other", seed=1)
    assert not prepare(tmp_path / "other", tmp_path / "store", write=False).reused
    assert contents(tmp_path / "store") == before
    file_of(tmp_path / "store").unlink()
    prepare(tmp_path / "nifti", tmp_path / "store")
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("write", [True, False])
def test_a_case_that_cannot_be_read_is_refused_and_leaves_nothing(tmp_path: Path, write: bool) -> None:
    case = small_case(tmp_path / "nifti")
    assert case.segmentation is not None
    save(case.segmentation, labels_in(brain_in()) * np.uint8(3))
    with pytest.raises(CaseError, match="holds label 6"):
        prepare(tmp_path / "nifti", tmp_path / "store", write=write)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("write", [True, False])
def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, write: bool) -> None:
    small_case(tmp_path / "nifti")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(OutputError, match="store is not a folder"):
        prepare(tmp_path / "nifti", tmp_path / "store", write=write)


def test_a_case_that_another_run_has_stored_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_case(tmp_path / "nifti")
    path = file_of(tmp_path / "store")

    def read_while_another_run_writes(case: TrainingCase) -> Any:
        monkeypatch.undo()
        prepare(tmp_path / "nifti", tmp_path / "store")
        inodes.append(path.stat().st_ino)
        return read_labelled_slices(case)

    inodes: list[int] = []
    monkeypatch.setattr(store, "read_labelled_slices", read_while_another_run_writes)
    assert not prepare(tmp_path / "nifti", tmp_path / "store").reused
    assert [path.stat().st_ino] == inodes  # whoever has mapped it over a network need not lose it


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = small_case(tmp_path / "nifti").images

    def read_while_somebody_writes(case: TrainingCase) -> Any:
        read = read_labelled_slices(case)
        touch(images[Modality.T1])
        return read

    monkeypatch.setattr(store, "read_labelled_slices", read_while_somebody_writes)
    with pytest.raises(CaseError, match="have changed while they were read"):
        prepare(tmp_path / "nifti", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_writer_that_fails_keeps_what_was_there(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = contents(kept / "nifti-store")
    small_case(kept / "elsewhere", seed=1)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        prepare(kept / "elsewhere", kept / "nifti-store")
    assert contents(kept / "nifti-store") == before
