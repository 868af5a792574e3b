"""Reading NIfTI files, however made or damaged, and what no refusal may do: traceback, hang, print or take memory."""

import gzip
import hashlib
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.io.nifti import load_volume
from tests.io.nifti_files import (
    AFFINE,
    REFUSAL_BYTES,
    SHAPE,
    nifti1,
    nifti2,
    refusal,
    refused_within_a_few_mebibytes,
    stored,
    voxels_of,
    with_fields,
)
from tests.support import unprivileged

HEADER_BYTES: Final = 352  # of NIfTI-1: 348 and the four that say whether an extension follows


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


# --- what is read


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz", "T1.NII.GZ", "t1"])
@pytest.mark.parametrize("compressed", [False, True])
def test_content_and_not_the_name_says_whether_a_file_is_compressed(tmp_path: Path, name: str, compressed: bool) -> None:
    content = gzip.compress(nifti1()) if compressed else nifti1()
    volume = load_volume(stored(tmp_path, content, name))
    np.testing.assert_array_equal(volume.voxels, voxels_of())
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_of_every_type_and_byte_order_are_read_exactly(
    tmp_path: Path, dtype: str, order: str, image_class: type[nib.Nifti1Image]
) -> None:
    voxels = voxels_of(dtype)
    image = image_class(voxels, AFFINE, image_class.header_class(endianness=order), dtype=np.dtype(dtype))
    volume = load_volume(stored(tmp_path, bytes(image.to_bytes())))
    assert volume.header.endianness == order
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_slope_and_intercept_are_applied_in_float64(tmp_path: Path, order: str) -> None:
    image = nib.Nifti1Image(voxels_of(), AFFINE, nib.Nifti1Header(endianness=order), dtype=np.int16)
    image.header.set_slope_inter(0.37, -12.5)
    content = bytearray(image.to_bytes())
    content[HEADER_BYTES:] = voxels_of().astype(f"{order}i2").tobytes(order="F")  # nibabel would store the quotient
    volume = load_volume(stored(tmp_path, bytes(content)))
    assert volume.voxels.dtype == np.float64
    np.testing.assert_array_equal(volume.voxels, voxels_of().astype(np.float64) * float(np.float32(0.37)) - 12.5)


@pytest.mark.parametrize("scaling", [(0, 5), (np.nan, np.nan), (np.nan, 0), (np.inf, 0), (1, 0)])
def test_a_slope_that_means_none_leaves_the_voxels_as_they_are(tmp_path: Path, scaling: tuple[float, float]) -> None:
    content = with_fields(nifti1(), {"scl_slope": scaling[0], "scl_inter": scaling[1]})
    volume = load_volume(stored(tmp_path, content))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, voxels_of())


def test_scaling_needs_no_more_than_one_float64_copy_beside_the_file(tmp_path: Path) -> None:
    voxels = voxels_of(np.int16, (128, 128, 64))
    path = stored(tmp_path, with_fields(nifti1(voxels), {"scl_slope": 0.5, "scl_inter": 3}))
    tracemalloc.start()
    try:
        load_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The file's bytes (with room to grow, as a bytearray has) and one float64 array; a second would be 8 bytes a voxel more.
    assert peak < 1.5 * voxels.nbytes + 8 * voxels.size + REFUSAL_BYTES / 2


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1), (7, 6, 1)])
def test_trailing_axes_of_length_one_do_not_count_beyond_the_third(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = load_volume(stored(tmp_path, nifti1(voxels_of(shape=shape))))
    assert volume.voxels.shape == shape[:3]
    np.testing.assert_array_equal(volume.voxels, voxels_of(shape=shape).reshape(shape[:3]))


def test_an_extension_before_the_voxels_is_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels_of(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 500))
    volume = load_volume(stored(tmp_path, bytes(image.to_bytes())))
    assert int(volume.header["vox_offset"]) > HEADER_BYTES + 500
    np.testing.assert_array_equal(volume.voxels, voxels_of())


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_bytes_after_the_voxels_are_refused_because_header_and_voxels_do_not_belong_together(tmp_path: Path, name: str) -> None:
    content = nifti1() + b"garbage"
    message = refusal(stored(tmp_path, gzip.compress(content) if name.endswith(".gz") else content, name))
    assert "longer than the 772 bytes that its header promises" in message


def test_a_compressed_file_of_several_members_is_read_whole(tmp_path: Path) -> None:
    content = nifti1()
    path = stored(tmp_path, gzip.compress(content[:400]) + gzip.compress(content[400:]), "t1.nii.gz")
    np.testing.assert_array_equal(load_volume(path).voxels, voxels_of())


def test_the_digest_is_of_the_bytes_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t1.nii"
    content = nifti1()
    path.write_bytes(content)
    assert load_volume(path).sha256 == hashlib.sha256(content).hexdigest()


# --- where the voxels lie


def test_sform_is_taken_before_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels_of(), AFFINE)
    image.set_sform(AFFINE, 2)
    image.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    np.testing.assert_array_equal(load_volume(stored(tmp_path, bytes(image.to_bytes()))).affine, AFFINE)


def test_qform_is_taken_where_there_is_no_sform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels_of(), AFFINE)
    image.set_sform(np.diag([3.0, 3, 3, 1]), 0)
    image.set_qform(AFFINE, 1)
    # Quaternion and offsets are float32 in the file; these are exact in it.
    np.testing.assert_allclose(load_volume(stored(tmp_path, bytes(image.to_bytes()))).affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), False), ((1, 0), True), ((0, 1), True), ((4, 4), True)])
def test_a_volume_knows_whether_its_header_gives_an_orientation(tmp_path: Path, codes: tuple[int, int], expected: bool) -> None:
    content = with_fields(nifti1(), {"sform_code": codes[0], "qform_code": codes[1]})
    assert load_volume(stored(tmp_path, content)).has_orientation is expected


def test_a_header_without_orientation_means_left_front_up_as_nibabel_takes_it(tmp_path: Path) -> None:
    content = with_fields(nifti1(), {"sform_code": 0, "qform_code": 0})
    affine = load_volume(stored(tmp_path, content)).affine
    np.testing.assert_array_equal(affine[:3, :3], np.diag([-1.0, 1.0, 2.0]))


# --- what is no readable file


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "t1.nii.gz") == "cannot be read: No such file or directory"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(stored(tmp_path, b"")) == "is empty; copy or download it again"


def test_an_empty_compressed_file_is_refused(tmp_path: Path) -> None:
    assert refusal(stored(tmp_path, gzip.compress(b""), "t1.nii.gz")) == "is empty; copy or download it again"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_a_file_without_permission_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in folders that only its owner may enter
        Path(folder).chmod(0o755)
        path = stored(Path(folder), nifti1())
        path.chmod(0)
        with unprivileged():
            assert refusal(path) == "cannot be read: Permission denied"


@pytest.mark.timeout(5)
def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t1.nii"
    os.mkfifo(path)
    assert "is not a regular file" in refusal(path)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_at_once(device: str) -> None:
    assert "is not a regular file" in refusal(Path(device))


# --- what is damaged


@pytest.mark.parametrize("length", [HEADER_BYTES, HEADER_BYTES + 1, 400, 539, 540, 541, -1])
def test_a_plain_file_cut_in_its_voxels_is_called_truncated(tmp_path: Path, length: int) -> None:
    assert "truncated" in refusal(stored(tmp_path, nifti1(voxels_of(shape=(9, 9, 9)))[:length]))


@pytest.mark.parametrize("length", [1, 3, 4, 100, 343, 347])
def test_a_plain_file_cut_in_its_header_is_refused(tmp_path: Path, length: int) -> None:
    refusal(stored(tmp_path, nifti1()[:length]))


@pytest.mark.parametrize("length", [348, 400, 539, 543])
def test_a_nifti2_file_cut_in_its_header_is_refused(tmp_path: Path, length: int) -> None:
    refusal(stored(tmp_path, nifti2()[:length]))


@pytest.mark.parametrize("length", [3, 9, 10, 15, 60, 5000, -9, -8, -4, -1])
def test_a_compressed_file_cut_anywhere_is_called_truncated(tmp_path: Path, length: int) -> None:
    content = gzip.compress(nifti1(voxels_of(shape=(20, 20, 20))))
    assert "truncated" in refusal(stored(tmp_path, content[:length], "t1.nii.gz"))


def test_one_flipped_bit_in_the_compressed_stream_is_found_wherever_it_is(tmp_path: Path) -> None:
    content = gzip.compress(nifti1(voxels_of(shape=(12, 12, 12))))
    rng = np.random.default_rng(5)
    for position in rng.choice(np.arange(10, len(content)), 60, replace=False):  # the first ten bytes are gzip's own header
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        refusal(stored(tmp_path, bytes(damaged), "t1.nii.gz"))


def test_a_flipped_bit_in_stored_blocks_is_found_by_the_check_sum(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(nifti1(), compresslevel=0))  # uncompressed blocks: only the check sum can tell
    content[-20] ^= 1
    assert "corrupt" in refusal(stored(tmp_path, bytes(content), "t1.nii.gz"))


def test_garbage_after_a_compressed_stream_is_refused(tmp_path: Path) -> None:
    assert "corrupt" in refusal(stored(tmp_path, gzip.compress(nifti1()) + b"garbage", "t1.nii.gz"))


def test_a_file_far_longer_than_its_header_promises_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, gzip.compress(nifti1() + bytes(20 * 2**20), compresslevel=1), "t1.nii.gz")
    assert "longer than the 772 bytes" in refusal(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_gibibyte_that_is_promised_but_missing_is_never_allocated(tmp_path: Path, compressed: bool) -> None:
    content = with_fields(nifti1(voxels_of(np.float64)), {"dim": [3, 512, 512, 512, 1, 1, 1, 1]})
    path = stored(tmp_path, gzip.compress(content) if compressed else content)
    assert "truncated" in refused_within_a_few_mebibytes(path)


def test_an_intercept_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    assert "header is damaged" in refusal(stored(tmp_path, with_fields(nifti1(), {"scl_slope": 2, "scl_inter": np.nan})))
