"""Which headers are taken and which are refused, and in what words: no traceback, no print, no memory."""

import gzip
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import load_grid, load_volume
from tests.io.nifti_files import (
    AFFINE,
    SHAPE,
    nifti1,
    nifti2,
    refusal,
    refused_within_a_few_mebibytes,
    stored,
    voxels_of,
    with_fields,
)

NOT_NIFTI: Final = "is not a NIfTI file; convert it to .nii or .nii.gz first"


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


# --- the header alone


@pytest.mark.parametrize("compressed", [False, True])
def test_the_header_alone_says_where_the_voxels_lie(tmp_path: Path, compressed: bool) -> None:
    content = nifti1()
    path = stored(tmp_path, gzip.compress(content) if compressed else content)
    grid, volume = load_grid(path), load_volume(path)
    assert (grid.shape, grid.axcodes, grid.spacing_mm) == (volume.shape, volume.axcodes, volume.spacing_mm)
    np.testing.assert_array_equal(grid.affine, volume.affine)


def test_the_header_alone_is_read_of_a_file_whose_voxels_are_cut_short(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (40, 30, 20)).astype(np.int16)
    content = gzip.compress(nifti1(voxels))
    path = stored(tmp_path, content[: len(content) // 2], "t1.nii.gz")
    assert load_grid(path).shape == (40, 30, 20)
    assert "is truncated" in refusal(path)


@pytest.mark.parametrize("n_bytes", [0, 100, 360, 600])
def test_a_header_is_refused_in_the_same_words_without_the_voxels(tmp_path: Path, n_bytes: int) -> None:
    path = stored(tmp_path, nifti1()[:n_bytes])
    with pytest.raises(CaseError) as caught:
        load_grid(path)
    assert str(caught.value) == f"{path}: {refusal(path)}"


# --- what is no readable header


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


@pytest.mark.parametrize("offset", [0, 100, 351, -352, 2.0**25, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_voxels_that_begin_at_an_impossible_byte_are_refused(tmp_path: Path, offset: float) -> None:
    refused_within_a_few_mebibytes(stored(tmp_path, with_fields(nifti1(), {"vox_offset": offset})))


@pytest.mark.parametrize("offset", [0, 100, 543, 2**40, -(2**40)])
def test_nifti2_voxels_that_begin_at_an_impossible_byte_are_refused(tmp_path: Path, offset: int) -> None:
    refusal(stored(tmp_path, with_fields(nifti2(), {"vox_offset": offset}, header=nib.Nifti2Header)))


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
