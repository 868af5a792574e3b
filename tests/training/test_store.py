"""Cases on the disk for training: what a store holds, when it is made again, and what is read of it."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy

from drunet_cli import jobs
from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion.dataset import Layout
from drunet_cli.errors import CaseError, DrunetError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.volumes import read_images
from drunet_cli.training import store
from drunet_cli.training.cases import TrainingCase, find_sources, read_labelled_slices
from drunet_cli.training.store import SCHEMA, PreparedCase, StoredCase, StoreTask, open_store, prepare_case
from drunet_cli.weights.checkpoint import Metadata, write_checkpoint
from tests.conversion.small_cases import (
    BLANK,
    BRATS_AFFINE,
    NAME,
    SHAPE,
    brain_in,
    convert,
    files_in,
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
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, open_image, unprivileged

Pixels = npt.NDArray[np.uint8]
PADDED_X: Final = slice(110, 130)  # where a brain of SHAPE lies on the frame
PADDED_Y: Final = slice(109, 133)


def found_in(path: Path) -> TrainingCase:
    sources = find_sources([path])
    assert not sources.refused
    [case] = sources.cases
    return case


def prepare(path: Path, folder: Path, *, write: bool = True) -> PreparedCase:
    """Put the one case that a source holds into a store."""
    return prepare_case(StoreTask(case=found_in(path), folder=folder, write=write))


def opened(folder: Path, name: str = NAME) -> StoredCase:
    [case] = open_store(folder, [name])
    return case


def stored(path: Path, folder: Path) -> StoredCase:
    return opened(folder, prepare(path, folder).name)


def file_of(folder: Path, name: str = NAME) -> Path:
    return folder / f"{name}.safetensors"


def touch(path: Path) -> None:
    """Another time of change, the same content."""
    stamp = path.stat()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))


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
    """Of one slice."""
    if not mask.any():
        return [0, 0, 0, 0]
    xs, ys = np.nonzero(mask)
    return [xs.min(), xs.max() + 1, ys.min(), ys.max() + 1]


# --- what is stored


def test_a_case_on_the_brats_grid_is_stored_as_segment_sees_it(tmp_path: Path) -> None:
    case = Case("golden", GOLDEN_IMAGES, GOLDEN_LABELS)
    prepare_case(StoreTask(case=TrainingCase("golden", case), folder=tmp_path))
    read = opened(tmp_path, "golden")
    np.testing.assert_array_equal(read.slices(), read_images(case).slices())
    label_map = np.asarray(open_image(GOLDEN_LABELS).dataobj)
    assert (label_map == 4).any()
    np.testing.assert_array_equal(read.classes(), np.moveaxis(np.where(label_map == 4, 3, label_map), 2, 0))
    assert read.slices().dtype == read.classes().dtype == np.uint8


@pytest.mark.parametrize("enhancing", [3, 4])
def test_labels_lie_on_the_frame_where_their_images_do(tmp_path: Path, enhancing: int) -> None:
    brain = brain_in()
    case = saved_case(tmp_path / "nifti", images_in(brain), labels_in(brain, enhancing=enhancing))
    read = stored(tmp_path / "nifti", tmp_path / "store")
    np.testing.assert_array_equal(read.slices(), read_images(case).slices())
    expected = np.zeros((SHAPE[2], FRAME, FRAME), dtype=np.uint8)
    expected[:, PADDED_X, PADDED_Y] = np.moveaxis(labels_in(brain, enhancing=3), 2, 0)
    np.testing.assert_array_equal(read.classes(), expected)


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


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("skip_blank", [True, False])
def test_images_and_the_slices_made_of_them_are_stored_alike(tmp_path: Path, skip_blank: bool, described: bool) -> None:
    convert(small_case(tmp_path / "nifti"), tmp_path / "png", skip_blank=skip_blank)
    if not described:
        shutil.rmtree(tmp_path / "png" / "cases")
    of_images = stored(tmp_path / "nifti", tmp_path / "store")
    of_slices = stored(tmp_path / "png", tmp_path / "store2")
    n = SHAPE[2] - 1 if skip_blank and not described else SHAPE[2]  # nothing tells of blank slices above the last
    assert (of_images.n_slices, of_slices.n_slices) == (SHAPE[2], n)
    for attribute in ("counts", "brain_boxes", "tumour_boxes"):
        np.testing.assert_array_equal(getattr(of_slices, attribute), getattr(of_images, attribute)[:n])
    np.testing.assert_array_equal(of_slices.slices(), of_images.slices()[:n])
    np.testing.assert_array_equal(of_slices.classes(), of_images.classes()[:n])


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


def test_counts_and_boxes_cannot_be_written_to(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    read = stored(tmp_path / "nifti", tmp_path / "store")
    for table in (read.counts, read.brain_boxes, read.tumour_boxes):
        with pytest.raises(ValueError, match="read-only"):
            table[0, 0] = 1


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


def test_a_case_without_any_label_is_stored(tmp_path: Path) -> None:
    brain = brain_in()
    saved_case(tmp_path / "nifti", images_in(brain), np.zeros(SHAPE, dtype=np.uint8))
    assert prepare(tmp_path / "nifti", tmp_path / "store").n_tumour_slices == 0
    assert not opened(tmp_path / "store").classes().any()


def test_nothing_of_a_path_is_stored(tmp_path: Path) -> None:
    convert(small_case(tmp_path / "nifti"), tmp_path / "png")
    for source in ("nifti", "png"):
        prepare(tmp_path / source, tmp_path / f"{source}-store")
        content = file_of(tmp_path / f"{source}-store").read_bytes()
        assert tmp_path.name.encode() not in content
    assert {name: file.name for name, file in opened(tmp_path / "nifti-store").inputs.items()} == {
        **{modality.value: f"{NAME}_{modality}.nii" for modality in CHANNELS},
        "seg": f"{NAME}_seg.nii",
    }


def test_the_check_sums_of_single_files_are_those_that_other_programs_give(tmp_path: Path) -> None:
    files = small_case(tmp_path / "nifti").files
    inputs = stored(tmp_path / "nifti", tmp_path / "store").inputs
    for name, file in files.items():
        assert inputs[name].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert inputs[name].n_bytes == file.stat().st_size


def test_the_report_of_a_case_tells_what_is_stored(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    for reused in (False, True):
        prepared = prepare(tmp_path / "nifti", tmp_path / "store")
        assert prepared.reused is reused
        assert (prepared.name, prepared.path) == (NAME, file_of(tmp_path / "store"))
        assert (prepared.n_slices, prepared.n_tumour_slices) == (5, 3)
        assert prepared.n_bytes == file_of(tmp_path / "store").stat().st_size
        assert prepared.seconds > 0


def test_warnings_of_the_images_are_passed_on(tmp_path: Path) -> None:
    saved_case(tmp_path / "nifti", images_in(np.ones(SHAPE, dtype=np.bool_)), np.zeros(SHAPE, dtype=np.uint8))
    [warning] = prepare(tmp_path / "nifti", tmp_path / "store").warnings
    assert "skull-stripped" in warning


def test_cases_are_prepared_by_worker_processes(tmp_path: Path) -> None:
    for n in range(3):
        small_case(tmp_path / "nifti", name=f"p{n}", seed=n)
    convert(small_case(tmp_path / "more", name="q"), tmp_path / "png")
    sources = find_sources([tmp_path / "nifti", tmp_path / "png"])
    tasks = [StoreTask(case=case, folder=tmp_path / "store") for case in sources.cases]
    with closing(jobs.run_tasks(prepare_case, tasks, n_processes=2)) as outcomes:
        names = {outcome.name for _, outcome in outcomes if not isinstance(outcome, DrunetError)}
    assert names == {"p0", "p1", "p2", "q"}
    assert [case.name for case in open_store(tmp_path / "store", ["q", "p1"])] == ["q", "p1"]


# --- windows


@pytest.fixture
def padded(tmp_path: Path) -> tuple[StoredCase, Pixels]:
    """A case, and its whole frames [Z, X, Y, 5] within 300 black pixels on all sides."""
    small_case(tmp_path / "nifti")
    read = stored(tmp_path / "nifti", tmp_path / "store")
    whole = np.concatenate([read.slices(), read.classes()[..., np.newaxis]], axis=3)
    return read, np.pad(whole, ((0, 0), (300, 300), (300, 300), (0, 0)))


def expected_window(whole: Pixels, z: int, x: int, y: int, shape: tuple[int, int]) -> Pixels:
    return whole[z, 300 + x : 300 + x + shape[0], 300 + y : 300 + y + shape[1]]


# Starts at, over and beyond the edges of the frame and of what is stored (110-130, 109-133), and within.
STARTS: Final = (-300, -145, -144, -30, -1, 0, 1, 90, 109, 110, 111, 120, 129, 130, 133, 239, 240, 280)


@pytest.mark.parametrize("shape", [(8, 5), (20, 24)])
def test_a_window_shows_the_frame_from_any_start(padded: tuple[StoredCase, Pixels], shape: tuple[int, int]) -> None:
    read, whole = padded
    for x in STARTS:
        for y in STARTS:
            window = read.window(2, x, y, shape)
            assert window.dtype == np.uint8
            assert window.shape == (*shape, 5)
            np.testing.assert_array_equal(window, expected_window(whole, 2, x, y, shape))


@pytest.mark.parametrize("z", range(SHAPE[2]))
def test_a_window_may_be_larger_than_the_frame(padded: tuple[StoredCase, Pixels], z: int) -> None:
    read, whole = padded
    window = read.window(z, -30, -7, (300, 260))
    np.testing.assert_array_equal(window, expected_window(whole, z, -30, -7, (300, 260)))
    assert window.any() == (z not in BLANK)


def test_every_corner_of_the_frame_is_read(tmp_path: Path) -> None:
    brain = np.ones((FRAME, FRAME, 2), dtype=np.bool_)
    saved_case(tmp_path / "nifti", images_in(brain), labels_in(brain))
    read = stored(tmp_path / "nifti", tmp_path / "store")
    whole = np.concatenate([read.slices(), read.classes()[..., np.newaxis]], axis=3)
    whole = np.pad(whole, ((0, 0), (300, 300), (300, 300), (0, 0)))
    for z in (0, 1):
        for x in (0, FRAME - 144, -10, FRAME - 134):
            for y in (0, FRAME - 176, -10, FRAME - 166):
                window = read.window(z, x, y, (144, 176))
                np.testing.assert_array_equal(window, expected_window(whole, z, x, y, (144, 176)))


def test_a_window_is_the_callers_to_change(padded: tuple[StoredCase, Pixels]) -> None:
    read, whole = padded
    read.window(2, 100, 100, (60, 60))[:] = 7
    np.testing.assert_array_equal(read.window(2, 100, 100, (60, 60)), expected_window(whole, 2, 100, 100, (60, 60)))


def test_several_threads_read_at_the_same_time(padded: tuple[StoredCase, Pixels]) -> None:
    read, whole = padded
    starts = [(z, x) for z in range(SHAPE[2]) for x in range(80, 130)] * 4
    with ThreadPoolExecutor(4) as threads:
        windows = list(threads.map(lambda start: read.window(start[0], start[1], 100, (40, 40)), starts))
    for (z, x), window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, expected_window(whole, z, x, 100, (40, 40)))


def test_a_case_pickles_as_its_path(padded: tuple[StoredCase, Pixels]) -> None:
    read, whole = padded
    content = pickle.dumps(read)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert (again.name, again.path, again.n_slices, again.inputs) == (read.name, read.path, read.n_slices, read.inputs)
    np.testing.assert_array_equal(again.counts, read.counts)
    np.testing.assert_array_equal(again.window(2, 90, 90, (60, 60)), expected_window(whole, 2, 90, 90, (60, 60)))


def test_a_case_that_was_made_of_other_files_meanwhile_is_not_unpickled(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    content = pickle.dumps(stored(tmp_path / "nifti", tmp_path / "store"))
    small_case(tmp_path / "other", seed=1)
    prepare(tmp_path / "other", tmp_path / "store")
    with pytest.raises(CaseError, match="another run has made it anew"):
        pickle.loads(content)


def test_an_open_case_outlives_its_file(padded: tuple[StoredCase, Pixels]) -> None:
    read, whole = padded
    read.path.unlink()
    np.testing.assert_array_equal(read.window(2, 90, 90, (60, 60)), expected_window(whole, 2, 90, 90, (60, 60)))


def test_open_cases_keep_no_file_descriptor(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    prepare(tmp_path / "nifti", tmp_path / "store")
    before = len(list(Path("/proc/self/fd").iterdir()))
    cases = open_store(tmp_path / "store", [NAME] * 20)
    assert cases[-1].window(2, 0, 0, (144, 176)).shape == (144, 176, 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- what cannot be opened


def assert_not_opened(path: Path, match: str) -> None:
    with pytest.raises(CaseError, match=match) as caught:
        opened(path.parent)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_case_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert_not_opened(file_of(tmp_path / "nowhere"), "is missing from the store")


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
def test_a_file_that_is_not_as_it_was_written_is_not_opened_but_made_again(tmp_path: Path, damage: str) -> None:
    small_case(tmp_path / "nifti")
    prepare(tmp_path / "nifti", tmp_path / "store")
    path = file_of(tmp_path / "store")
    good = path.read_bytes()
    OURS_NO_MORE[damage](path)
    assert path.read_bytes() != good
    assert_not_opened(path, "prepare the case again")
    assert not prepare(tmp_path / "nifti", tmp_path / "store").reused
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
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, kind: str, write: bool) -> None:
    small_case(tmp_path / "nifti")
    path = file_of(tmp_path / "store")
    path.parent.mkdir()
    FOREIGN[kind](path)
    before = files_in(path.parent)
    with pytest.raises(OutputError, match=r"p1\.safetensors: is no case of drunet's store; remove it"):
        prepare(tmp_path / "nifti", path.parent, write=write)
    assert files_in(path.parent) == before
    with pytest.raises(CaseError, match=r"p1\.safetensors: "):
        opened(path.parent)


# --- what is there already


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with a case, `nifti`, the same as slices, `png`, and the store of each."""
    convert(small_case(tmp_path / "nifti"), tmp_path / "png")
    for source in ("nifti", "png"):
        prepare(tmp_path / source, tmp_path / f"{source}-store")
    return tmp_path


every_source = pytest.mark.parametrize("source", ["nifti", "png"])


def is_reused(kept: Path, source: str, *, moved_to: Path | None = None) -> bool:
    """Whether a store takes a source for the one that it was made from; if not, it holds the other one after."""
    folder = kept / f"{source}-store"
    case = found_in(moved_to or kept / source)
    before = files_in(folder)
    prepared = prepare_case(StoreTask(case=case, folder=folder))
    if prepared.reused:
        assert files_in(folder) == before
    else:
        read = read_labelled_slices(case)
        np.testing.assert_array_equal(opened(folder).slices(), read.images)
        np.testing.assert_array_equal(opened(folder).classes(), read.classes)
    return prepared.reused


def images_of(kept: Path, source: str) -> list[Path]:
    return sorted((kept / source).rglob("*.nii" if source == "nifti" else "*.png"))


@every_source
def test_a_case_that_is_there_is_reused_without_a_look_at_its_images(kept: Path, source: str) -> None:
    for path in images_of(kept, source):
        replaced_by_junk(path)
    assert is_reused(kept, source)


@every_source
def test_files_that_were_only_touched_are_the_same(kept: Path, source: str) -> None:
    for path in images_of(kept, source):
        touch(path)
    assert is_reused(kept, source)


@every_source
def test_a_dataset_that_was_moved_is_the_same(kept: Path, source: str) -> None:
    (kept / source).rename(kept / "elsewhere")
    assert is_reused(kept, source, moved_to=kept / "elsewhere")


@every_source
def test_a_dataset_that_was_copied_is_the_same(kept: Path, source: str) -> None:
    shutil.copytree(kept / source, kept / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(kept / source)
    assert is_reused(kept, source, moved_to=kept / "elsewhere")


@every_source
def test_a_path_in_other_words_is_the_same(kept: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in images_of(kept, source):
        replaced_by_junk(path)
    monkeypatch.chdir(kept)
    assert is_reused(kept, source, moved_to=Path(source))


@pytest.mark.parametrize("role", [*CHANNELS, "seg"])
def test_a_case_one_of_whose_files_has_changed_is_made_again(kept: Path, role: str) -> None:
    path = kept / "nifti" / NAME / f"{NAME}_{role}.nii"
    n_bytes = path.stat().st_size
    save(path, labels_in(brain_in(), 9) if role == "seg" else images_in(brain_in(), 9)[Modality(role)])
    touch(path)
    assert path.stat().st_size == n_bytes
    assert not is_reused(kept, "nifti")


def test_a_dataset_one_of_whose_label_slices_was_edited_is_made_again(kept: Path) -> None:
    path = mask_slice(kept / "png", 2)
    pixels = pixels_of(path)
    pixels[120, 120] = (pixels[120, 120] + 1) % 4
    save_pixels(path, pixels)
    touch(path)
    assert not is_reused(kept, "png")


def test_label_slices_that_were_swapped_are_not_the_same(kept: Path) -> None:
    one, other = (mask_slice(kept / "png", z) for z in (1, 2))
    aside = one.rename(one.with_name("aside"))
    other.rename(one)
    aside.rename(other)
    assert not is_reused(kept, "png")


def test_a_bare_case_of_one_slice_whose_number_has_changed_is_made_again(tmp_path: Path) -> None:
    convert(small_case(tmp_path / "nifti"), tmp_path / "png")
    shutil.rmtree(tmp_path / "png" / "cases")
    for path in (tmp_path / "png").rglob("*.png"):
        if "_slice_2" not in path.name:
            path.unlink()
    prepare(tmp_path / "png", tmp_path / "png-store")
    for path in (tmp_path / "png").rglob("*.png"):
        path.rename(path.with_name(f"{NAME}_slice_7.png"))
    assert not is_reused(tmp_path, "png")


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


def test_images_that_were_swapped_are_not_the_same(kept: Path) -> None:
    case = found_in(kept / "nifti")
    assert isinstance(case.source, Case)
    images = dict(case.source.images)
    images[Modality.T1], images[Modality.T2] = images[Modality.T2], images[Modality.T1]
    swapped = TrainingCase(NAME, replace(case.source, images=images))
    assert not prepare_case(StoreTask(case=swapped, folder=kept / "nifti-store")).reused


def test_a_case_that_was_stored_from_images_is_made_again_from_slices(kept: Path) -> None:
    assert not is_reused(kept, "nifti", moved_to=kept / "png")


def test_a_dataset_that_has_lost_its_description_is_made_again(kept: Path) -> None:
    Layout(kept / "png").description(NAME).unlink()
    assert not is_reused(kept, "png")


def test_a_missing_image_is_told_though_the_case_is_stored(kept: Path) -> None:
    case = found_in(kept / "nifti")
    (kept / "nifti" / NAME / f"{NAME}_t1.nii").unlink()
    with pytest.raises(CaseError, match=r"p1_t1\.nii: cannot be read"):
        prepare_case(StoreTask(case=case, folder=kept / "nifti-store"))


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


def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    planned = prepare(tmp_path / "nifti", tmp_path / "store", write=False)
    assert not (tmp_path / "store").exists()
    written = prepare(tmp_path / "nifti", tmp_path / "store")
    assert replace(planned, seconds=0) == replace(written, seconds=0)
    assert prepare(tmp_path / "nifti", tmp_path / "store", write=False).reused


def test_a_dry_run_replaces_nothing(kept: Path) -> None:
    before = files_in(kept / "nifti-store")
    small_case(kept / "elsewhere", seed=1)
    assert not prepare(kept / "elsewhere", kept / "nifti-store", write=False).reused
    assert files_in(kept / "nifti-store") == before


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


def test_equal_inputs_give_equal_bytes(kept: Path) -> None:
    before = files_in(kept / "nifti-store")
    file_of(kept / "nifti-store").unlink()
    assert not prepare(kept / "nifti", kept / "nifti-store").reused
    assert files_in(kept / "nifti-store") == before


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


KILLED: Final = """
import os, signal, sys
from pathlib import Path
from drunet_cli.training.cases import find_sources
from drunet_cli.training.store import StoreTask, prepare_case
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing published
[case] = find_sources([Path(sys.argv[1])]).cases
prepare_case(StoreTask(case=case, folder=Path(sys.argv[2])))
"""


def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_case(tmp_path: Path) -> None:
    small_case(tmp_path / "nifti")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "nifti"), str(tmp_path / "store")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    [left] = files_in(tmp_path / "store")
    assert left.startswith(".")
    assert_not_opened(file_of(tmp_path / "store"), "is missing")
    assert not prepare(tmp_path / "nifti", tmp_path / "store").reused
    assert list(files_in(tmp_path / "store")) == [f"{NAME}.safetensors"]


def test_a_writer_that_fails_keeps_what_was_there(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = files_in(kept / "nifti-store")
    small_case(kept / "elsewhere", seed=1)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        prepare(kept / "elsewhere", kept / "nifti-store")
    assert files_in(kept / "nifti-store") == before
