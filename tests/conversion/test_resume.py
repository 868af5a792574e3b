"""What a second run finds and does: complete cases are left, killed ones are done again, nobody's work is replaced unasked."""

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.conversion import nii2png
from drunet_cli.conversion.dataset import Layout
from drunet_cli.conversion.nii2png import CaseTask, convert_case
from drunet_cli.conversion.png2nii import convert_labels
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import write_file_atomically
from drunet_cli.io.case import Case
from tests.conversion.small_cases import (
    N_FILES,
    NAME,
    brain_in,
    convert,
    files_in,
    image_slice,
    label_task,
    labels_in,
    mask_slice,
    pixels_of,
    save,
    save_pixels,
    small_case,
    task_of,
)

# What may befall one file of a complete case without anybody having meant it.
LOSSES: Final[dict[str, Callable[[Path], object]]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@dataclass(frozen=True)
class Converted:
    """A complete case and what its folder holds."""

    case: Case
    root: Path
    files: dict[str, bytes]

    @property
    def description(self) -> Path:
        return Layout(self.root).description(NAME)

    @property
    def unfinished(self) -> Path:
        return Layout(self.root).unfinished(NAME)

    def assert_unchanged(self) -> None:
        assert files_in(self.root) == self.files


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out")
    return Converted(case, tmp_path / "out", files_in(tmp_path / "out"))


def touch(path: Path) -> None:
    """Another time of change, the same content."""
    stamp = path.stat()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))


def assert_refused(done: Converted, *, match: str, case: Case | None = None, skip_blank: bool = False) -> None:
    """With --skip-existing, in one line, with the remedy; and --overwrite does it."""
    before = files_in(done.root)
    with pytest.raises(OutputError, match=match) as caught:
        convert(case or done.case, done.root, skip_existing=True, skip_blank=skip_blank)
    assert "--overwrite" in str(caught.value)
    assert files_in(done.root) == before
    assert not convert(case or done.case, done.root, overwrite=True, skip_blank=skip_blank).skipped


def changed_image(done: Converted, modality: Modality = CHANNELS[1]) -> None:
    """Other voxels in a file of the same size."""
    path = done.case.images[modality]
    content = bytearray(path.read_bytes())
    content[-2 * 24 * 20 * 3] += 1
    path.write_bytes(content)


# --- complete cases


def test_a_complete_case_is_left_alone_when_asked(converted: Converted) -> None:
    result = convert(converted.case, converted.root, skip_existing=True)
    assert result.skipped
    assert result.path == converted.description
    assert [row.z for row in result.description.rows] == [0, 1, 2, 3, 4]
    converted.assert_unchanged()


@pytest.mark.parametrize("skip_blank", [False, True])
def test_a_complete_case_is_refused_unasked(converted: Converted, skip_blank: bool) -> None:
    with pytest.raises(OutputError, match="converted already; give --skip-existing"):
        convert(converted.case, converted.root, skip_blank=skip_blank)
    with pytest.raises(OutputError, match="exists already; give --skip-existing"):  # also without the check before
        convert_case(CaseTask(case=converted.case, layout=Layout(converted.root), skip_blank=skip_blank))
    converted.assert_unchanged()


def test_a_complete_case_without_blank_slices_is_left_alone(tmp_path: Path) -> None:
    case = small_case(tmp_path)
    convert(case, tmp_path / "out", skip_blank=True)
    before = files_in(tmp_path / "out")
    assert convert(case, tmp_path / "out", skip_blank=True, skip_existing=True).skipped
    assert files_in(tmp_path / "out") == before


def test_a_new_case_is_converted_with_skip_existing(tmp_path: Path) -> None:
    assert not convert(small_case(tmp_path), tmp_path / "out", skip_existing=True).skipped


def test_a_file_that_was_only_touched_is_the_same_input(converted: Converted) -> None:
    for path in (*converted.case.images.values(), converted.case.segmentation):
        assert path is not None
        touch(path)
    assert convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


def test_the_same_files_in_another_folder_are_the_same_input(converted: Converted, tmp_path: Path) -> None:
    assert convert(small_case(tmp_path / "moved"), converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("modality", CHANNELS)
def test_another_image_of_the_same_size_is_not_the_same_input(converted: Converted, modality: Modality) -> None:
    changed_image(converted, modality)
    touch(converted.case.images[modality])
    assert_refused(converted, match=rf"{NAME}_{modality}\.nii: is not the file from which")


def test_another_segmentation_is_not_the_same_input(converted: Converted) -> None:
    assert converted.case.segmentation is not None
    save(converted.case.segmentation, labels_in(brain_in(), seed=5))
    touch(converted.case.segmentation)
    assert_refused(converted, match=rf"{NAME}_seg\.nii: is not the file from which")


def test_an_image_of_another_size_is_not_the_same_input(converted: Converted, tmp_path: Path) -> None:
    assert_refused(converted, case=small_case(tmp_path / "other", shape=(20, 24, 4)), match="is not the file from which")


def test_other_files_of_the_same_size_and_time_are_not_the_same_input(converted: Converted) -> None:
    # As an archive unpacks them: one time of change for all, and one size, being uncompressed. Here T1 and T2 are swapped.
    one, other = (converted.case.images[modality] for modality in (Modality.T1, Modality.T2))
    for path in converted.case.images.values():
        os.utime(path, ns=(10**18, 10**18))
    convert(converted.case, converted.root, overwrite=True)
    swapped = replace(converted.case, images={**converted.case.images, Modality.T1: other, Modality.T2: one})
    assert_refused(converted, case=swapped, match="is not the file from which")


def test_a_segmentation_that_came_later_is_not_ignored(tmp_path: Path) -> None:
    case = small_case(tmp_path, segmented=False)
    convert(case, tmp_path / "out")
    done = Converted(case, tmp_path / "out", files_in(tmp_path / "out"))
    assert_refused(done, case=small_case(tmp_path), match="without a segmentation")


def test_a_segmentation_that_has_gone_is_not_ignored(converted: Converted) -> None:
    assert_refused(converted, case=replace(converted.case, segmentation=None), match="with a segmentation")


def test_another_choice_of_blank_slices_is_refused(converted: Converted) -> None:
    assert_refused(converted, match="without --skip-blank", skip_blank=True)
    assert_refused(converted, match="with --skip-blank")


# --- damage and changes


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("slice_of", [image_slice, mask_slice])
@pytest.mark.parametrize("z", [0, 2])
def test_a_lost_slice_is_made_again(converted: Converted, loss: str, slice_of: Callable[[Path, int], Path], z: int) -> None:
    LOSSES[loss](slice_of(converted.root, z))
    assert not convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_lost_folder_is_made_again(converted: Converted, folder: str) -> None:
    for path in (converted.root / folder).iterdir():
        path.unlink()
    (converted.root / folder).rmdir()
    assert not convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("slice_of", [image_slice, mask_slice])
def test_an_edited_slice_is_not_replaced(converted: Converted, slice_of: Callable[[Path, int], Path]) -> None:
    path = slice_of(converted.root, 2)
    pixels = pixels_of(path)
    pixels[120, 120] = 1
    save_pixels(path, pixels)
    assert_refused(converted, match=rf"{NAME}_slice_2\.png: has been changed")
    converted.assert_unchanged()


@pytest.mark.parametrize("kind", ["palette", "16 bit", "another size", "JPEG"])
def test_an_edit_that_was_saved_as_another_kind_of_picture_is_not_replaced(converted: Converted, kind: str) -> None:
    path = mask_slice(converted.root, 2)
    picture = Image.fromarray(pixels_of(path))
    match kind:
        case "palette":
            picture.convert("P").save(path, "PNG")
        case "16 bit":
            Image.fromarray(pixels_of(path)[..., 0].astype(np.uint16)).save(path, "PNG")
        case "another size":
            picture.resize((480, 480)).save(path, "PNG")
        case "JPEG":
            picture.save(path, "JPEG")
    assert_refused(converted, match="has been changed since it was converted")


def test_a_pipe_in_the_place_of_a_slice_is_refused(converted: Converted) -> None:
    path = mask_slice(converted.root, 2)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError, match="has been changed since it was converted"):
        convert(converted.case, converted.root, skip_existing=True)


def test_a_slice_that_another_program_has_saved_again_is_not_replaced(converted: Converted) -> None:
    save_pixels(mask_slice(converted.root, 2), pixels_of(mask_slice(converted.root, 2)))
    assert_refused(converted, match="has been changed")


@pytest.mark.parametrize("lost", [0, 4])
def test_an_edited_slice_is_not_replaced_where_another_is_lost(converted: Converted, lost: int) -> None:
    save_pixels(mask_slice(converted.root, 2), np.ones((240, 240, 3), dtype=np.uint8))
    mask_slice(converted.root, lost).unlink()
    assert_refused(converted, match="has been changed")


def test_own_label_slices_survive_where_an_image_slice_is_lost(tmp_path: Path) -> None:
    case = small_case(tmp_path, segmented=False)
    convert(case, tmp_path / "out")
    own = mask_slice(tmp_path / "out", 2)
    save_pixels(own, np.ones((240, 240, 3), dtype=np.uint8))  # drawn by hand, or the output of another network
    before = own.read_bytes()
    image_slice(tmp_path / "out", 3).unlink()
    with suppress(OutputError):  # to refuse is as good
        convert(case, tmp_path / "out", skip_existing=True)
    assert own.is_file()
    assert own.read_bytes() == before


def test_an_empty_description_is_that_of_no_complete_case(converted: Converted) -> None:
    converted.description.write_bytes(b"")
    mask_slice(converted.root, 1).write_bytes(b"")
    with pytest.raises(OutputError):
        convert(converted.case, converted.root)
    assert not convert(converted.case, converted.root, skip_existing=True).skipped
    converted.assert_unchanged()


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b"null", b"\0" * 500, b"\xff\xfe"])
def test_a_damaged_description_is_refused(converted: Converted, content: bytes) -> None:
    converted.description.write_bytes(content)
    with pytest.raises(OutputError, match=rf"{NAME}\.json: is damaged.*--overwrite"):
        convert_case(task_of(converted.case, converted.root, skip_existing=True))
    assert files_in(converted.root) == {**converted.files, f"cases/{NAME}.json": content}
    convert(converted.case, converted.root, overwrite=True)
    converted.assert_unchanged()


# --- unfinished cases, and slices of others


@pytest.mark.parametrize("skip_existing", [False, True])
def test_an_unfinished_case_is_converted_again(converted: Converted, skip_existing: bool) -> None:
    converted.description.rename(converted.unfinished)
    save_pixels(image_slice(converted.root, 17), np.zeros((240, 240, 4), dtype=np.uint8))
    mask_slice(converted.root, 1).unlink()
    assert not convert(converted.case, converted.root, skip_existing=skip_existing).skipped
    converted.assert_unchanged()


def test_a_marker_beside_a_complete_case_goes_away(converted: Converted) -> None:
    # As a kill after the last file, and before the marker is removed, leaves it.
    converted.unfinished.write_bytes(b"")
    convert(converted.case, converted.root, skip_existing=True)
    converted.assert_unchanged()


@pytest.mark.parametrize("skip_existing", [False, True])
@pytest.mark.parametrize("name", ["images/p1_slice_2.png", "masks/p1_slice_2.png", "masks/p1_slice_002.png"])
def test_slices_that_drunet_did_not_make_are_not_replaced(tmp_path: Path, name: str, skip_existing: bool) -> None:
    root = tmp_path / "out"
    save_pixels(root / name, np.ones((240, 240, 4), dtype=np.uint8))
    before = files_in(root)
    with pytest.raises(OutputError, match="which drunet did not make; give --overwrite"):
        convert(small_case(tmp_path), root, skip_existing=skip_existing)
    assert files_in(root) == before


def test_a_removed_description_makes_the_slices_those_of_somebody(converted: Converted) -> None:
    converted.description.unlink()
    with pytest.raises(OutputError, match="which drunet did not make"):
        convert(converted.case, converted.root, skip_existing=True)


# --- --overwrite


def test_overwriting_removes_slices_that_no_longer_belong(converted: Converted, tmp_path: Path) -> None:
    fewer = small_case(tmp_path / "fewer", shape=(20, 24, 3))
    convert(fewer, converted.root, overwrite=True)
    convert(fewer, tmp_path / "fresh")
    assert files_in(converted.root) == files_in(tmp_path / "fresh")


def test_overwriting_without_segmentation_removes_the_label_slices(converted: Converted, tmp_path: Path) -> None:
    bare = replace(converted.case, segmentation=None)
    convert(bare, converted.root, overwrite=True)
    convert(bare, tmp_path / "fresh")
    assert files_in(converted.root) == files_in(tmp_path / "fresh")


def test_overwriting_removes_zero_padded_slices_of_the_case(converted: Converted) -> None:
    for path in (image_slice(converted.root, 2), mask_slice(converted.root, 2)):
        path.with_name(f"{NAME}_slice_002.png").write_bytes(path.read_bytes())
    convert(converted.case, converted.root, overwrite=True)
    converted.assert_unchanged()


def test_overwriting_one_case_leaves_the_files_of_others(converted: Converted, tmp_path: Path) -> None:
    convert(small_case(tmp_path, name="p10", seed=1), converted.root)
    strangers = ("images/p1_slice_.png", "images/notes.txt", "masks/p1.png", "images/p1_slice_2.png.bak")
    for stranger in strangers:
        (converted.root / stranger).write_bytes(b"a person's")
    before = files_in(converted.root)
    convert(converted.case, converted.root, overwrite=True)
    assert files_in(converted.root) == before


# --- kills


N_BEFORE: Final = [pytest.param(n, False, id=f"before {n}") for n in range(N_FILES)]
N_AFTER: Final = [pytest.param(n, True, id=f"after {n}") for n in range(N_FILES - 1)]
LEFT_MARKER: Final = pytest.param(
    N_FILES - 1,
    True,
    id="with the description",
)


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, n: int, *, after: bool = False) -> Iterator[None]:
    """Stop the conversion at its n-th file, as Ctrl-C does: just before it is there, or just after."""
    count = iter(range(n + 1))

    def putting(target: Path, content: bytes) -> None:
        last = next(count) == n
        if after or not last:
            write_file_atomically(target, content)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(nii2png, "write_file_atomically", putting)
        with pytest.raises(KeyboardInterrupt):
            yield


@contextmanager
def killed_at_removal(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Stop the conversion when it has removed this file."""
    unlink = Path.unlink

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.name == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "unlink", unlinking)
        with pytest.raises(KeyboardInterrupt):
            yield


# A process that is killed while it renames its n-th file.
DYING: Final = """
import os, signal, sys
from pathlib import Path
from tests.conversion.small_cases import convert, small_case

folder, n = Path(sys.argv[1]), int(sys.argv[2])
case, count, replace = small_case(folder), iter(range(n + 1)), Path.replace

def replacing(path, target):
    if next(count) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

Path.replace = replacing
convert(case, folder / "out")
"""


def undisturbed(case: Case, root: Path) -> dict[str, bytes]:
    convert(case, root)
    return files_in(root)


@pytest.mark.parametrize(("n", "after"), [*N_BEFORE, *N_AFTER, LEFT_MARKER])
def test_a_first_run_killed_at_any_file_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, after: bool
) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    with killed_at(monkeypatch, n, after=after):
        convert(case, root)
    convert(case, root, skip_existing=True)
    assert files_in(root) == undisturbed(case, tmp_path / "fresh")


@pytest.mark.parametrize(("n", "after"), [*N_BEFORE, *N_AFTER, LEFT_MARKER])
def test_an_overwriting_run_killed_at_any_file_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, after: bool
) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    convert(small_case(tmp_path / "earlier", seed=3, shape=(20, 24, 9)), root)
    earlier = files_in(root)
    with killed_at(monkeypatch, n, after=after):
        convert(case, root, overwrite=True)
    if files_in(root).keys() - {f"cases/{NAME}.part"} == earlier.keys():  # killed before anything was replaced
        assert {**files_in(root), f"cases/{NAME}.part": b""} == {**earlier, f"cases/{NAME}.part": b""}
        with pytest.raises(OutputError, match="is not the file from which"):  # the earlier case, still complete
            convert(case, root, skip_existing=True)
        convert(case, root, overwrite=True)
    else:
        convert(case, root, skip_existing=True)
    assert files_in(root) == undisturbed(case, tmp_path / "fresh")


@pytest.mark.parametrize("name", [f"{NAME}.json", f"{NAME}_slice_5.png", f"{NAME}_slice_8.png", f"{NAME}.part"])
def test_an_overwriting_run_killed_at_a_removal_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    convert(small_case(tmp_path / "earlier", seed=3, shape=(20, 24, 9)), root)
    with killed_at_removal(monkeypatch, name):
        convert(case, root, overwrite=True)
    convert(case, root, skip_existing=True)
    assert files_in(root) == undisturbed(case, tmp_path / "fresh")


@pytest.mark.parametrize("n", range(N_FILES))
def test_no_slice_of_a_killed_run_passes_for_a_complete_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    with killed_at(monkeypatch, n):
        convert(case, root)
    assert not Layout(root).description(NAME).exists()
    assert not Layout(root).manifest.exists()
    assert n == 0 or Layout(root).unfinished(NAME).exists()


@pytest.mark.parametrize("n", range(1, N_FILES))
def test_a_killed_run_continues_without_the_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    with killed_at(monkeypatch, n):
        convert(case, root)
    bare = replace(case, segmentation=None)
    convert(bare, root, skip_existing=True)
    assert files_in(root) == undisturbed(bare, tmp_path / "fresh")


def test_the_label_slices_of_an_unfinished_case_are_not_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the BraTS grid, where no description is needed: else slices of two segmentations would make one label map.
    shape, root = (240, 240, 5), tmp_path / "out"
    convert(small_case(tmp_path / "earlier", seed=3, shape=shape), root)
    case = small_case(tmp_path, shape=shape)
    with killed_at(monkeypatch, N_FILES // 2):
        convert(case, root, overwrite=True)
    with pytest.raises(CaseError, match=NAME):
        convert_labels(label_task(root, case.images[Modality.FLAIR], tmp_path / "back.nii"))


def test_a_repair_that_is_killed_is_completed(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    image_slice(converted.root, 4).unlink()
    with killed_at(monkeypatch, 4):
        convert(converted.case, converted.root, skip_existing=True)
    convert(converted.case, converted.root, skip_existing=True)
    converted.assert_unchanged()


@pytest.mark.parametrize("n", [0, 1, 6, N_FILES - 1, N_FILES])  # the last is the table
def test_a_run_that_dies_within_a_file_is_completed_and_cleaned_up(tmp_path: Path, n: int) -> None:
    case, root = small_case(tmp_path), tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), str(n)], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in files_in(root))
    convert(case, root, skip_existing=True)
    assert files_in(root) == undisturbed(case, tmp_path / "fresh")


def test_the_check_sums_are_those_of_the_files(converted: Converted) -> None:
    description = convert(converted.case, converted.root, skip_existing=True).description
    for row in description.rows:
        assert row.image_crc == zlib.crc32(image_slice(converted.root, row.z).read_bytes())
        assert row.mask_crc == zlib.crc32(mask_slice(converted.root, row.z).read_bytes())
