"""Reading NIfTI files, however made or damaged, and what no refusal may do: traceback, hang, print or take memory."""

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import load_volume
from tests.support import unprivileged

SHAPE: Final = (7, 6, 5)
NOT_NIFTI: Final = "is not a NIfTI file; convert it to .nii or .nii.gz first"
AFFINE: Final = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 2], [0, 0, 2, -4], [0, 0, 0, 1]])
HEADER_BYTES: Final = 352  # of NIfTI-1: 348 and the four that say whether an extension follows
# The largest block that the reader asks for is 1 MiB; a refused file may cost a few of these, not what its header claims.
REFUSAL_BYTES: Final = 8 * 2**20


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


def voxels_of(dtype: npt.DTypeLike = np.int16, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[Any]:
    """Random voxels over most of the type's range, also below 0 where it has that; fractions where it has those."""
    rng = np.random.default_rng(11)
    kind = np.dtype(dtype).kind
    if kind in "iu":
        limits = np.iinfo(np.dtype(dtype))
        return rng.integers(limits.min, limits.max, shape, dtype=np.dtype(dtype))
    return rng.normal(0, 1e4, shape).astype(dtype)


def nifti1(voxels: npt.NDArray[Any] | None = None, *, affine: npt.NDArray[np.float64] = AFFINE) -> bytes:
    """An uncompressed NIfTI-1 file."""
    return bytes(nib.Nifti1Image(voxels_of() if voxels is None else voxels, affine).to_bytes())


def nifti2() -> bytes:
    """An uncompressed NIfTI-2 file."""
    return bytes(nib.Nifti2Image(voxels_of(), AFFINE).to_bytes())


def with_fields(content: bytes, fields: Mapping[str, Any], *, header: type[nib.Nifti1Header] = nib.Nifti1Header) -> bytes:
    """The same file with raw header fields replaced."""
    raw = np.frombuffer(content[: header.sizeof_hdr], dtype=header.template_dtype).copy()
    for name, value in fields.items():
        raw[name] = value
    return raw.tobytes() + content[header.sizeof_hdr :]


def stored(folder: Path, content: bytes, name: str = "t1.nii") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    """What is said about the file, after its name."""
    with pytest.raises(CaseError) as caught:
        load_volume(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


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


@pytest.mark.parametrize("n_bytes", [4, 100, 347])
def test_a_file_cut_inside_its_header_is_called_truncated(tmp_path: Path, n_bytes: int) -> None:
    assert refusal(stored(tmp_path, nifti1()[:n_bytes])).startswith(f"is truncated: {n_bytes} bytes are not even a header")


def test_a_file_compressed_twice_is_told_so(tmp_path: Path) -> None:
    content = gzip.compress(gzip.compress(nifti1()))
    assert refusal(stored(tmp_path, content, "t1.nii.gz")) == "is compressed twice; decompress it once"


@pytest.mark.parametrize("field", ["sform_code", "qform_code"])
@pytest.mark.parametrize("code", [-1, 6, 99])
def test_a_form_code_that_nifti_does_not_define_is_refused(tmp_path: Path, field: str, code: int) -> None:
    assert f"{field} {code} is not defined" in refusal(stored(tmp_path, with_fields(nifti1(), {field: code})))


@pytest.mark.parametrize("fields", [{"qform_code": 1, "quatern_b": np.nan}, {"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}])
def test_a_qform_or_spacing_that_is_not_finite_is_refused_even_beside_a_good_sform(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    assert "damaged" in refusal(stored(tmp_path, with_fields(nifti1(), {"sform_code": 1, **fields})))


# --- what is no NIfTI file


def test_a_dicom_file_is_named_and_the_converter_too(tmp_path: Path) -> None:
    message = refusal(stored(tmp_path, bytes(128) + b"DICM" + bytes(2000), "IM0001"))
    assert "DICOM" in message
    assert "dcm2niix" in message


@pytest.mark.parametrize(("header_class", "magic"), [(nib.Nifti1Header, b"ni1"), (nib.Nifti2Header, b"ni2")])
def test_the_header_of_a_pair_is_named(tmp_path: Path, header_class: type[nib.Nifti1Header], magic: bytes) -> None:
    content = with_fields(nifti1() if magic == b"ni1" else nifti2(), {"magic": magic}, header=header_class)
    assert ".hdr/.img pair" in refusal(stored(tmp_path, content, "t1.hdr"))


def test_an_analyze_header_is_refused(tmp_path: Path) -> None:
    header = nib.AnalyzeHeader()
    header.set_data_shape(SHAPE)
    assert refusal(stored(tmp_path, bytes(header.binaryblock) + bytes(1000), "t1.hdr")) == NOT_NIFTI


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    content = np.random.default_rng(seed).bytes(4000)
    assert refusal(stored(tmp_path, content)) == NOT_NIFTI


def test_a_web_page_under_an_image_name_is_refused(tmp_path: Path) -> None:
    assert refusal(stored(tmp_path, b"<!DOCTYPE html><html></html>" * 50, "t1.nii.gz")) == NOT_NIFTI


# --- what cannot be segmented


@pytest.mark.parametrize("shape", [(7, 6, 5, 2), (7, 6, 5, 1, 2), (7, 6, 5, 2, 1)])
def test_several_volumes_in_one_file_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "not 3D; give one volume a file" in refusal(stored(tmp_path, nifti1(voxels_of(shape=shape))))


@pytest.mark.parametrize("shape", [(7,), (7, 6)])
def test_fewer_than_three_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "not 3D" in refusal(stored(tmp_path, nifti1(voxels_of(shape=shape))))


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    assert "complex64" in refusal(stored(tmp_path, nifti1(voxels_of(np.float32).astype(np.complex64))))


def test_colour_voxels_are_refused(tmp_path: Path) -> None:
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in refusal(stored(tmp_path, nifti1(colours)))


@pytest.mark.parametrize("code", [0, 1, 3, 255, 999, -1])
def test_an_unknown_voxel_type_is_refused(tmp_path: Path, code: int) -> None:
    refusal(stored(tmp_path, with_fields(nifti1(), {"datatype": code})))


def refused_within_a_few_mebibytes(path: Path) -> str:
    tracemalloc.start()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < REFUSAL_BYTES
    return message


@pytest.mark.parametrize(
    "dim", [(3, 32767, 32767, 32767, 1, 1, 1, 1), (3, 32767, 32767, 1, 1, 1, 1, 1), (7, 99, 99, 99, 99, 99, 99, 99)]
)
def test_an_absurd_size_costs_no_memory(tmp_path: Path, dim: tuple[int, ...]) -> None:
    refused_within_a_few_mebibytes(stored(tmp_path, with_fields(nifti1(), {"dim": dim})))


@pytest.mark.parametrize("n", [0, -1, -32768])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_an_axis_without_voxels_is_refused(tmp_path: Path, axis: int, n: int) -> None:
    dim = [3, *SHAPE, 1, 1, 1, 1]
    dim[axis] = n
    assert "claims a size" in refusal(stored(tmp_path, with_fields(nifti1(), {"dim": dim})))


def test_an_absurd_nifti2_size_is_refused(tmp_path: Path) -> None:
    content = with_fields(nifti2(), {"dim": [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]}, header=nib.Nifti2Header)
    assert "more than any brain MRI" in refused_within_a_few_mebibytes(stored(tmp_path, content))


@pytest.mark.parametrize("n_axes", [0, 8, 300, 32767])
def test_an_impossible_number_of_axes_is_refused(tmp_path: Path, n_axes: int) -> None:
    refusal(stored(tmp_path, with_fields(nifti1(), {"dim": [n_axes, *SHAPE, 1, 1, 1, 1]})))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_gibibyte_that_is_promised_but_missing_is_never_allocated(tmp_path: Path, compressed: bool) -> None:
    content = with_fields(nifti1(voxels_of(np.float64)), {"dim": [3, 512, 512, 512, 1, 1, 1, 1]})
    path = stored(tmp_path, gzip.compress(content) if compressed else content)
    assert "truncated" in refused_within_a_few_mebibytes(path)


@pytest.mark.parametrize("offset", [0, 100, 351, -352, 2.0**25, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_voxels_that_begin_at_an_impossible_byte_are_refused(tmp_path: Path, offset: float) -> None:
    refused_within_a_few_mebibytes(stored(tmp_path, with_fields(nifti1(), {"vox_offset": offset})))


@pytest.mark.parametrize("offset", [0, 100, 543, 2**40, -(2**40)])
def test_nifti2_voxels_that_begin_at_an_impossible_byte_are_refused(tmp_path: Path, offset: int) -> None:
    refusal(stored(tmp_path, with_fields(nifti2(), {"vox_offset": offset}, header=nib.Nifti2Header)))


def test_an_intercept_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    assert "header is damaged" in refusal(stored(tmp_path, with_fields(nifti1(), {"scl_slope": 2, "scl_inter": np.nan})))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_affine_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    assert "not finite" in refusal(stored(tmp_path, with_fields(nifti1(), {"srow_x": [value, 0, 0, 0]})))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_spacing_that_overflows_in_the_qform_is_refused_without_a_word_of_numpy(tmp_path: Path, value: float) -> None:
    fields = {"sform_code": 0, "qform_code": 1, "pixdim": [1, value, 1, 1, 1, 1, 1, 1]}
    refusal(stored(tmp_path, with_fields(nifti2(), fields, header=nib.Nifti2Header)))


def test_an_affine_that_overflows_is_refused_without_a_word_of_numpy(tmp_path: Path) -> None:
    content = with_fields(nifti2(), {"srow_x": [1e300, 0, 0, 0]}, header=nib.Nifti2Header)
    assert "impossible" in refusal(stored(tmp_path, content))


def test_an_impossible_quaternion_is_refused(tmp_path: Path) -> None:
    assert "header is damaged" in refusal(
        stored(tmp_path, with_fields(nifti1(), {"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}))
    )


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    fields = {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0], "srow_z": [0, 0, 1, 0]}
    assert "not perpendicular" in refusal(stored(tmp_path, with_fields(nifti1(), fields)))


@pytest.mark.parametrize("column", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_an_affine_with_a_zero_column_is_refused(tmp_path: Path, column: tuple[int, int, int]) -> None:
    affine = AFFINE.copy()
    affine[:3, column.index(1)] = 0
    fields = {"srow_x": affine[0], "srow_y": affine[1], "srow_z": affine[2]}
    assert "impossible" in refusal(stored(tmp_path, with_fields(nifti1(), fields)))


@pytest.mark.parametrize("size_mm", [0.0, 1e-3, 0.099, 20.1, 1e6])
def test_voxels_of_an_impossible_size_are_refused(tmp_path: Path, size_mm: float) -> None:
    content = with_fields(nifti1(), {"srow_x": [size_mm, 0, 0, 0]})
    assert "impossible for brain MRI" in refusal(stored(tmp_path, content))


@pytest.mark.parametrize("size_mm", [0.1001, 19.99])
def test_voxels_of_an_unusual_size_are_read(tmp_path: Path, size_mm: float) -> None:
    volume = load_volume(stored(tmp_path, with_fields(nifti1(), {"srow_x": [size_mm, 0, 0, 0]})))
    assert volume.spacing_mm[0] == pytest.approx(size_mm, rel=1e-7)  # srow is float32


def test_a_field_of_view_beyond_a_metre_is_refused(tmp_path: Path) -> None:
    content = nifti1(voxels_of(shape=(101, 2, 2)), affine=np.diag([10.0, 1, 1, 1]))
    assert "larger than any head" in refusal(stored(tmp_path, content))


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_any_damaged_header_is_either_read_or_refused_in_one_line(tmp_path: Path, image_class: type[nib.Nifti1Image]) -> None:
    content = bytes(image_class(voxels_of(), AFFINE).to_bytes())
    rng = np.random.default_rng(3)
    complaints = []
    for _ in range(500):
        damaged = bytearray(content)
        for position in rng.integers(0, image_class.header_class.sizeof_hdr, rng.integers(1, 6)):
            damaged[position] ^= 1 << int(rng.integers(8))
        path = stored(tmp_path, bytes(damaged))
        try:
            load_volume(path)
        except CaseError as error:
            complaints.append(str(error).removeprefix(f"{path}: "))
    assert all(len(complaint.splitlines()) == 1 and str(tmp_path) not in complaint for complaint in complaints)
    assert 50 < len(complaints) < 500  # not all bits matter, and not all are ignored


@pytest.mark.parametrize(
    "fields", [{"sform_code": 99}, {"bitpix": 7}, {"vox_offset": 353}, {"datatype": 999}, {"pixdim": [0, -1] * 4}]
)
def test_what_nibabel_has_to_say_about_a_header_is_printed_in_no_fresh_process(
    tmp_path: Path, fields: Mapping[str, Any]
) -> None:
    path = stored(tmp_path, with_fields(nifti1(), fields) + b"\0")
    program = """
import sys
from pathlib import Path
from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import load_volume
try:
    load_volume(Path(sys.argv[1]))
except CaseError:
    pass
"""
    process = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("", "")
