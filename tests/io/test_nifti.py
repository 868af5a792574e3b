"""NIfTI files: what is read exactly, what is refused in one line, and the geometry that label maps keep."""

import gzip
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drunet_cli.errors import CaseError
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.nifti import Volume, encode_map, load_grid, load_volume, volume_of
from tests.support import open_image, unprivileged

SHAPE: Final = (7, 6, 5)
AFFINE: Final = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 2], [0, 0, 2, -4], [0, 0, 0, 1]])
HEADER_BYTES: Final = 352  # of NIfTI-1: 348 and the four that say whether an extension follows
# The reader asks for 128 KiB at once; a refused file may cost some of these and the modules of a first use, not what it claims.
REFUSAL_BYTES: Final = 8 * 2**20
Order = Literal["<", ">"]

both_classes = pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
both_orders = pytest.mark.parametrize("order", ["<", ">"])


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


def random_voxels(dtype: npt.DTypeLike = np.int16, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[Any]:
    """Over most of the type's range, also below 0 where it has that; fractions where it has those."""
    rng = np.random.default_rng(11)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(np.dtype(dtype))
        return rng.integers(limits.min, limits.max, shape, dtype=np.dtype(dtype))
    return rng.normal(0, 1e4, shape).astype(dtype)


def nifti1(voxels: npt.NDArray[Any] | None = None, *, affine: npt.NDArray[np.float64] = AFFINE, **fields: Any) -> bytes:
    """An uncompressed NIfTI-1 file, some raw header fields of which hold what no writer puts there."""
    image = nib.Nifti1Image(random_voxels() if voxels is None else voxels, affine)
    return with_fields(bytes(image.to_bytes()), nib.Nifti1Header, fields)


def nifti2(**fields: Any) -> bytes:
    return with_fields(bytes(nib.Nifti2Image(random_voxels(), AFFINE).to_bytes()), nib.Nifti2Header, fields)


def with_fields(content: bytes, header: type[nib.Nifti1Header], fields: Mapping[str, Any]) -> bytes:
    raw = np.frombuffer(content[: header.sizeof_hdr], dtype=header.template_dtype).copy()
    for name, value in fields.items():
        raw[name] = value
    return raw.tobytes() + content[header.sizeof_hdr :]


def stored(folder: Path, content: bytes, name: str = "t1.nii") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    """The one line about the file, without its name; neither printing nor memory comes with it."""
    tracemalloc.start()
    try:
        with pytest.raises(CaseError) as caught:
            load_volume(path)
        assert tracemalloc.get_traced_memory()[1] < REFUSAL_BYTES
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


# --- what is read


@pytest.mark.parametrize("name", ["t1.nii", "T1.NII.GZ", "t1"])
@pytest.mark.parametrize("compressed", [False, True])
def test_content_and_not_the_name_says_whether_a_file_is_compressed(tmp_path: Path, name: str, compressed: bool) -> None:
    content = gzip.compress(nifti1()) if compressed else nifti1()
    path = stored(tmp_path, content, name)
    volume, grid = load_volume(path), load_grid(path)
    np.testing.assert_array_equal(volume.voxels, random_voxels())
    np.testing.assert_array_equal(volume.affine, AFFINE)
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert (grid.shape, grid.axcodes, grid.spacing_mm) == (volume.shape, volume.axcodes, volume.spacing_mm)
    assert volume.source == InputFile(str(path), len(content), path.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@both_orders
def test_voxels_of_every_type_and_byte_order_are_read_exactly(tmp_path: Path, dtype: str, order: Order) -> None:
    image_class: type[nib.Nifti1Image] = nib.Nifti2Image if dtype[1] in "48" else nib.Nifti1Image
    voxels = random_voxels(dtype)
    image = image_class(voxels, AFFINE, image_class.header_class(endianness=order), dtype=np.dtype(dtype))
    volume = load_volume(stored(tmp_path, bytes(image.to_bytes())))
    assert volume.header.endianness == order
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels, voxels)


@both_orders
def test_slope_and_intercept_are_applied_in_float64(tmp_path: Path, order: Order) -> None:
    image = nib.Nifti1Image(random_voxels(), AFFINE, nib.Nifti1Header(endianness=order), dtype=np.int16)
    image.header.set_slope_inter(0.37, -12.5)
    content = bytearray(image.to_bytes())
    content[HEADER_BYTES:] = random_voxels().astype(f"{order}i2").tobytes(order="F")  # nibabel would store the quotient
    volume = load_volume(stored(tmp_path, bytes(content)))
    assert volume.voxels.dtype == np.float64
    np.testing.assert_array_equal(volume.voxels, random_voxels().astype(np.float64) * float(np.float32(0.37)) - 12.5)


@pytest.mark.parametrize("scaling", [(0, 5), (np.nan, np.nan), (np.nan, 0), (np.inf, 0), (1, 0)])
def test_a_slope_that_means_none_leaves_the_voxels_as_they_are(tmp_path: Path, scaling: tuple[float, float]) -> None:
    volume = load_volume(stored(tmp_path, nifti1(scl_slope=scaling[0], scl_inter=scaling[1])))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, random_voxels())


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1), (7, 6, 1)])
def test_trailing_axes_of_length_one_do_not_count_beyond_the_third(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = load_volume(stored(tmp_path, nifti1(random_voxels(shape=shape))))
    assert volume.voxels.shape == shape[:3]
    np.testing.assert_array_equal(volume.voxels, random_voxels(shape=shape).reshape(shape[:3]))


def test_an_extension_before_the_voxels_is_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_voxels(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 500))
    np.testing.assert_array_equal(load_volume(stored(tmp_path, bytes(image.to_bytes()))).voxels, random_voxels())


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 2500), max_size=5), level=st.integers(0, 9), n_zeros=st.sampled_from([0, 1, 600]))
def test_members_of_a_gzip_file_and_the_zeros_between_them_are_one_file(cuts: list[int], level: int, n_zeros: int) -> None:
    content = nifti1(random_voxels(shape=(12, 10, 9)))
    ends = [0, *sorted(cuts), len(content)]
    members = [gzip.compress(content[a:b], level) + bytes(n_zeros) for a, b in itertools.pairwise(ends)]
    with tempfile.TemporaryDirectory() as folder:
        volume = load_volume(stored(Path(folder), b"".join(members)))
    np.testing.assert_array_equal(volume.voxels, random_voxels(shape=(12, 10, 9)))


def test_the_header_alone_is_read_where_the_voxels_are_cut_short_and_a_whole_reading_says_so(tmp_path: Path) -> None:
    content = gzip.compress(nifti1(random_voxels(shape=(40, 30, 20))))
    path = stored(tmp_path, content[: len(content) // 2])
    assert load_grid(path).shape == (40, 30, 20)
    assert "is truncated" in refusal(path)


def test_scaling_needs_no_more_than_one_float64_copy_beside_the_file(tmp_path: Path) -> None:
    voxels = random_voxels(np.int16, (128, 128, 64))
    path = stored(tmp_path, nifti1(voxels, scl_slope=0.5, scl_inter=3))
    tracemalloc.start()
    try:
        load_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The file's bytes and one float64 array; a second would be 8 bytes a voxel more.
    assert peak < 1.5 * voxels.nbytes + 8 * voxels.size + REFUSAL_BYTES / 2


# --- where the voxels lie

OTHER: Final = np.diag([3.0, 3, 3, 1])


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ({"sform": (AFFINE, 2), "qform": (OTHER, 1)}, AFFINE),
        ({"sform": (OTHER, 0), "qform": (AFFINE, 1)}, AFFINE),
        ({"sform": (OTHER, 0), "qform": (OTHER, 0)}, None),  # as nibabel takes it: left, front, up
    ],
)
def test_sform_comes_before_qform_and_without_either_the_spacing_alone_counts(
    tmp_path: Path, forms: Mapping[str, tuple[npt.NDArray[np.float64], int]], expected: npt.NDArray[np.float64] | None
) -> None:
    image = nib.Nifti1Image(random_voxels(), AFFINE)
    image.set_sform(*forms["sform"])
    image.set_qform(*forms["qform"])
    volume = load_volume(stored(tmp_path, bytes(image.to_bytes())))
    assert volume.has_orientation is (expected is not None)
    if expected is None:
        np.testing.assert_array_equal(volume.affine[:3, :3], np.diag([-3.0, 3, 3]))
    else:
        np.testing.assert_allclose(volume.affine, expected, atol=1e-6)  # quaternion and offsets are float32 in the file


QUATERNIONS: Final[dict[str, tuple[dict[str, Any], str, int]]] = {
    "rounded": ({"quatern_d": 1.000001}, "the quaternion of its qform is 1.000001 long and was scaled to 1", 1),
    "rounded to float32": ({"quatern_d": 1.0000001}, "", 1),
    "far too long": ({"quatern_d": 1.2}, "the quaternion of its qform is 1.2 long and was scaled to 1", 1),
    "not finite": ({"quatern_b": np.nan}, "its qform is not finite and was left out", 0),
    "offset not finite": ({"qoffset_x": np.inf}, "its qform is not finite and was left out", 0),
    "spacing not finite": ({"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}, "its qform is not finite and was left out", 0),
}


@pytest.mark.parametrize("kind", QUATERNIONS)
@pytest.mark.parametrize("sform_code", [0, 1])
def test_a_qform_that_others_refuse_is_mended_and_not_inherited(tmp_path: Path, kind: str, sform_code: int) -> None:
    fields, words, qform_code = QUATERNIONS[kind]
    turned: dict[str, Any] = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 1, "pixdim": [1, 1, 1, 2, 1, 1, 1, 1]}  # AFFINE's
    turned |= {"qoffset_x": 3, "qoffset_y": 2, "qoffset_z": -4}
    path = stored(tmp_path, nifti1(**{**turned, **fields, "qform_code": 1, "sform_code": sform_code}))
    if sform_code == qform_code == 0:
        assert "header is damaged" in refusal(path)
        return
    for grid in (load_volume(path), load_grid(path)):
        assert grid.mended == words
        np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-6)
    label_map = stored(tmp_path, encode_map(np.zeros(SHAPE, np.uint8), load_volume(path).header, compress=False), "seg.nii")
    image = open_image(label_map)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.header["qform_code"] == qform_code
    if qform_code:
        np.testing.assert_allclose(image.header.get_qform(), AFFINE, atol=1e-6)
    np.testing.assert_array_equal(image.header.get_zooms(), (1, 1, 2))


# --- what is refused

NOT_NIFTI: Final = "is not a NIfTI file; convert it to .nii or .nii.gz first"
BIG: Final = random_voxels(shape=(20, 20, 20))


def analyze() -> bytes:
    header = nib.AnalyzeHeader()
    header.set_data_shape(SHAPE)
    return bytes(header.binaryblock) + bytes(1000)


def dim(*sizes: int) -> list[int]:
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]


def flipped(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1
    return bytes(damaged)


REFUSED: Final[dict[str, tuple[bytes, str]]] = {
    # no NIfTI
    "empty": (b"", "is empty; copy or download it again"),
    "empty, compressed": (gzip.compress(b""), "is empty; copy or download it again"),
    "compressed twice": (gzip.compress(gzip.compress(nifti1())), "is compressed twice; decompress it once"),
    "DICOM": (bytes(128) + b"DICM" + bytes(2000), "is a DICOM file; give the folder of its series to drunet prepare"),
    "pair": (nifti1(magic=b"ni1"), ".hdr/.img pair"),
    "pair, NIfTI-2": (nifti2(magic=b"ni2"), ".hdr/.img pair"),
    "Analyze": (analyze(), NOT_NIFTI),
    "web page": (b"<!DOCTYPE html><html></html>" * 50, "is a web page, not the file itself; open its address"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a pointer of Git LFS, not the file"),
    "git-annex": (b"/annex/objects/MD5E-s2000843--00.nii.gz\n", "is a pointer of git-annex, not the file itself; run datalad"),
    "an old git-annex link": (b"../.git/annex/objects/Mk/MD5E-s2--0.nii.gz", "is a pointer of git-annex"),
    "noise": (np.random.default_rng(0).bytes(4000), NOT_NIFTI),
    "another magic": (nifti1(magic=b"n+1\n"), NOT_NIFTI),
    # cut, longer, corrupt
    "header cut": (nifti1()[:347], "is truncated: 347 bytes are not even a header"),
    "header cut, NIfTI-2": (nifti2()[:539], "is truncated: 539 bytes are not even a header"),
    "before the voxels": (nifti1()[:HEADER_BYTES], "is truncated: its header promises 772 bytes"),
    "last byte": (nifti1()[:-1], "is truncated: its header promises 772 bytes"),
    "one byte more": (nifti1() + b"x", "longer than the 772 bytes that its header promises"),
    "one byte more, compressed": (gzip.compress(nifti1() + b"x"), "longer than the 772 bytes"),
    "20 MiB more, compressed": (gzip.compress(nifti1() + bytes(20 * 2**20), 1), "longer than the 772 bytes"),
    "gzip header cut": (gzip.compress(nifti1())[:9], "is truncated"),
    "compressed voxels cut": (gzip.compress(nifti1(BIG))[:5000], "is truncated"),
    "check sum cut": (gzip.compress(nifti1(BIG))[:-8], "is truncated"),
    "last byte, compressed": (gzip.compress(nifti1(BIG))[:-1], "is truncated"),
    "second member cut": (gzip.compress(nifti1()[:400]) + gzip.compress(nifti1()[400:])[:-1], "is truncated"),
    "garbage behind": (gzip.compress(nifti1()) + b"garbage", "stray bytes at its end"),
    "more garbage behind": (gzip.compress(nifti1()) + b"garbage" * 99, "corrupt"),
    "check sum": (flipped(gzip.compress(nifti1()), -6), "corrupt"),
    "length": (flipped(gzip.compress(nifti1()), -1), "corrupt"),
    "stored block": (flipped(gzip.compress(nifti1(), 0), -20), "corrupt"),
    "no deflate": (b"\x1f\x8b\x07" + bytes(40), "corrupt"),
    # sizes
    "a gibibyte": (nifti1(random_voxels(np.float64), dim=dim(512, 512, 512)), "is truncated"),
    "a gibibyte, compressed": (gzip.compress(nifti1(random_voxels(np.float64), dim=dim(512, 512, 512))), "is truncated"),
    "absurd": (nifti1(dim=dim(32767, 32767, 32767)), "more than any brain MRI"),
    "absurd, NIfTI-2": (nifti2(dim=dim(2**62, 2**62, 2**62)), "more than any brain MRI"),
    "seven axes": (nifti1(dim=dim(*[99] * 7)), "not 3D"),
    "four axes": (nifti1(random_voxels(shape=(7, 6, 5, 2))), "is 4D (7 x 6 x 5 x 2), not 3D; give one volume a file"),
    "five axes": (nifti1(random_voxels(shape=(7, 6, 5, 1, 2))), "not 3D; give one volume a file"),
    "two axes": (nifti1(random_voxels(shape=(7, 6))), "not 3D"),
    **{f"{n} axes": (nifti1(dim=[n, *SHAPE, *[1] * 4]), f"{n} axes") for n in (0, 8, 300)},
    **{f"axis {axis} of {n}": (nifti1(dim=[3, *np.where(np.arange(3) == axis, n, SHAPE), *[1] * 4]), "claims a size")
       for axis, n in ((0, 0), (1, -1), (2, -32768))},
    # voxel types
    "complex": (nifti1(random_voxels(np.float32).astype(np.complex64)), "complex64"),
    "colour": (nifti1(np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])), "RGB"),
    **{f"datatype {code}": (nifti1(datatype=code), "") for code in (0, 1, 255, 999, -1)},
    "scaling": (nifti1(scl_slope=2, scl_inter=np.nan), "header is damaged"),
    # where the voxels begin
    **{f"vox_offset {at}": (nifti1(vox_offset=at), "header is damaged") for at in (100, 351, 2.0**25, 1e30, np.inf, np.nan)},
    **{f"vox_offset {at}, NIfTI-2": (nifti2(vox_offset=at), "header is damaged") for at in (100, 543, 2**40, -(2**40))},
    # where they lie
    **{f"{form} {code}": (nifti1(**dict[str, Any]({form: code})), f"{form} {code} is not defined")
       for form in ("sform_code", "qform_code") for code in (-1, 6)},
    **{f"srow {value}": (nifti1(srow_x=[value, 0, 0, 0]), "not finite") for value in (np.nan, np.inf)},
    "spacing without a qform": (nifti1(qform_code=0, pixdim=[1, np.nan, 1, 1, 1, 1, 1, 1]), "header is damaged"),
    "quaternion": (nifti1(sform_code=0, qform_code=1, quatern_b=np.nan), "header is damaged"),
    "qform overflows": (nifti2(sform_code=0, qform_code=1, pixdim=[1, 1e300, 1, 1, 1, 1, 1, 1]), ""),
    "sform overflows": (nifti2(srow_x=[1e300, 0, 0, 0]), "impossible"),
    "not perpendicular": (nifti1(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0], srow_z=[0, 0, 1, 0]), "not perpendicular"),
    **{f"voxels of {size} mm": (nifti1(srow_x=[size, 0, 0, 0]), "impossible for brain MRI") for size in (0, 0.099, 20.1, 1e6)},
    "a metre": (nifti1(random_voxels(shape=(101, 2, 2)), affine=np.diag([10.0, 1, 1, 1])), "larger than any head"),
}  # fmt: skip


@pytest.mark.parametrize("damage", REFUSED)
def test_a_damaged_file_is_refused_in_one_line_without_the_memory_that_it_claims(tmp_path: Path, damage: str) -> None:
    content, words = REFUSED[damage]
    path = stored(tmp_path, content)
    assert words in refusal(path)
    if not content.startswith(b"\x1f\x8b") and damage != "scaling":  # else the header alone does not tell
        with pytest.raises(CaseError) as caught:
            load_grid(path)
        assert words in str(caught.value)


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path / "t1.nii.gz") == "cannot be read: No such file or directory"
    assert "is a folder" in refusal(tmp_path)
    assert "is not a regular file" in refusal(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe.nii")
    assert "is not a regular file" in refusal(tmp_path / "pipe.nii")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in folders that only its owner may enter
        Path(folder).chmod(0o755)
        path = stored(Path(folder), nifti1())
        path.chmod(0)
        with unprivileged():
            assert refusal(path) == "cannot be read: Permission denied"


@pytest.mark.parametrize("size_mm", [0.1001, 19.99])
def test_voxels_of_an_unusual_size_are_read(tmp_path: Path, size_mm: float) -> None:
    volume = load_volume(stored(tmp_path, nifti1(srow_x=[size_mm, 0, 0, 0])))
    assert volume.spacing_mm[0] == pytest.approx(size_mm, rel=1e-7)  # srow is float32


SMALL_GZIP: Final = gzip.compress(nifti1(random_voxels(shape=(12, 12, 12))), mtime=0)


@settings(max_examples=50)
@given(position=st.integers(10, len(SMALL_GZIP) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_in_a_compressed_file_is_found_or_changes_nothing(position: int, bit: int) -> None:
    damaged = bytearray(SMALL_GZIP)  # the first ten bytes are gzip's own header, some of which say nothing
    damaged[position] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = stored(Path(folder), bytes(damaged))
        if inflated(bytes(damaged)) is None:
            assert "copy or download it again" in refusal(path)
        else:  # a repeated zero may be copied from one place or from another
            np.testing.assert_array_equal(load_volume(path).voxels, random_voxels(shape=(12, 12, 12)))


def inflated(content: bytes) -> bytes | None:
    """What gzip's reference reader makes of a file, None where it finds damage."""
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return None


@both_classes
def test_any_damaged_header_is_read_or_refused_in_one_line(tmp_path: Path, image_class: type[nib.Nifti1Image]) -> None:
    content = bytes(image_class(random_voxels(), AFFINE).to_bytes())
    rng = np.random.default_rng(3)
    refusals = []
    for _ in range(100):
        damaged = bytearray(content)
        for position in rng.integers(0, image_class.header_class.sizeof_hdr, rng.integers(1, 6)):
            damaged[position] ^= 1 << int(rng.integers(8))
        path = stored(tmp_path, bytes(damaged))
        try:
            load_volume(path)
        except CaseError as error:
            refusals.append(str(error).removeprefix(f"{path}: "))
    assert all(len(words.splitlines()) == 1 and str(tmp_path) not in words for words in refusals)
    assert 10 < len(refusals) < 100  # not all bits matter, and not all are ignored


def test_nothing_that_nibabel_says_about_a_header_is_printed_in_a_fresh_process(tmp_path: Path) -> None:
    fields: tuple[dict[str, Any], ...] = (
        {"sform_code": 99},
        {"bitpix": 7},
        {"vox_offset": 353},
        {"datatype": 999},
        {"pixdim": -1},
    )
    paths = [stored(tmp_path, nifti1(**each) + b"\0", f"{n}.nii") for n, each in enumerate(fields)]
    program = """
import sys
from contextlib import suppress
from pathlib import Path
from drunet_cli.errors import CaseError
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.nifti import load_volume
for path in sys.argv[1:]:
    with suppress(CaseError):
        load_volume(Path(path))
"""
    process = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("", "")


# --- arrays that come from no file


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (np.zeros((3, 3)), np.eye(4), "has the shape (3, 3)"),
        (np.zeros((3, 3, 0)), np.eye(4), "has the shape (3, 3, 0)"),
        (np.zeros((3, 3, 3), dtype=bool), np.eye(4), "holds bool voxels"),
        (np.zeros((3, 3, 3)), "an affine", "no matrix of numbers"),
        (np.zeros((3, 3, 3)), np.eye(3), "no 4 x 4 matrix"),
        (np.zeros((3, 3, 3)), np.full((4, 4), 1.0), "no 4 x 4 matrix"),
        (np.zeros((3, 3, 3)), np.diag([0.01, 1, 1, 1]), "impossible for brain MRI"),
        (np.zeros((3, 3, 3)), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "not perpendicular"),
    ],
)
def test_an_array_that_no_file_could_hold_is_refused(voxels: npt.NDArray[Any], affine: npt.ArrayLike, words: str) -> None:
    with pytest.raises(CaseError) as caught:
        volume_of(voxels, affine, name="p1, array t1")
    assert str(caught.value).startswith("p1, array t1: ")
    assert words in str(caught.value)


def test_an_array_gives_the_volume_that_its_file_would_give(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 0.1  # not a float32
    volume = volume_of(random_voxels(), affine, name="p1")
    from_file = load_volume(stored(tmp_path, nifti1(affine=affine)))
    np.testing.assert_array_equal(volume.affine, from_file.affine)
    np.testing.assert_array_equal(volume.voxels, from_file.voxels)


# --- label maps: in the input's geometry, field for field, and with nothing else of the input in them

# What places the voxels, in the header's own words.
GEOMETRY_FIELDS: Final = (
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "magic"),
)
# Turned by about 20 and 10 degrees, mirrored (determinant below 0, so that qfac is -1), spacing 0.9 x 1.1 x 2.5 mm.
OBLIQUE: Final = np.array(
    [
        [0.9 * 0.9397, 1.1 * 0.3368, 2.5 * 0.0594, 80.5],
        [0.9 * 0.3420, -1.1 * 0.9254, -2.5 * 0.1632, 101.25],
        [0.0, -1.1 * 0.1736, 2.5 * 0.9848, -62.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
PATIENT: Final = b"DOE^JANE"
LABELS: Final = np.random.default_rng(2).choice(np.array([0, 1, 2, 4], dtype=np.uint8), SHAPE)


def oblique_image(
    path: Path, image_class: type[nib.Nifti1Image] = nib.Nifti1Image, order: Order = "<", forms: tuple[int, int] = (1, 1)
) -> nib.Nifti1Image:
    """An input with the oblique affine in sform and qform under these two codes, scaled, in an unusual unit, and with texts."""
    image = image_class(random_voxels(), OBLIQUE, image_class.header_class(endianness=order), dtype=np.int16)
    image.set_sform(OBLIQUE, forms[0])
    image.set_qform(OBLIQUE, forms[1])
    image.header.set_xyzt_units("micron", "sec")
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = PATIENT
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", PATIENT))
    path.write_bytes(image.to_bytes())
    return image


def raw_header(path: Path, header: type[nib.Nifti1Header], order: Order = "<") -> np.void:
    """The header's fields as they lie in the file, unmended."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    fields: np.void = np.frombuffer(content[: header.sizeof_hdr], dtype=header.template_dtype.newbyteorder(order))[0]
    return fields


@pytest.mark.parametrize("forms", [(1, 1), (2, 0), (0, 1), (4, 3), (0, 0)])
@both_orders
@both_classes
def test_a_label_map_has_the_geometry_of_its_input_and_uint8_voxels_without_scaling(
    tmp_path: Path, image_class: type[nib.Nifti1Image], order: Order, forms: tuple[int, int]
) -> None:
    source, target = tmp_path / "flair.nii", tmp_path / "seg.nii.gz"
    oblique_image(source, image_class, order, forms)
    like = load_volume(source).header
    like["scl_slope"], like["scl_inter"] = 0.5, 7
    before = bytes(like.binaryblock)
    target.write_bytes(encode_map(LABELS, like, compress=True))

    asked, written = raw_header(source, image_class.header_class, order), raw_header(target, image_class.header_class)
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(written[field], asked[field], err_msg=field)
    np.testing.assert_array_equal(written["pixdim"][:4], asked["pixdim"][:4])
    assert asked["pixdim"][0] == -1  # so that qfac is seen to be kept
    datatype = {field: written[field].item() for field in ("datatype", "bitpix", "scl_slope", "scl_inter")}
    assert datatype == {"datatype": 2, "bitpix": 8, "scl_slope": 1, "scl_inter": 0}  # 2: NIFTI_TYPE_UINT8

    image, original = open_image(target), open_image(source)
    assert type(image) is image_class
    np.testing.assert_array_equal(np.asarray(image.dataobj), LABELS)
    np.testing.assert_array_equal(image.affine, original.affine)
    np.testing.assert_array_equal(image.header.get_zooms(), original.header.get_zooms())
    content = gzip.decompress(target.read_bytes())
    assert source.read_bytes().count(PATIENT) == 4
    assert PATIENT not in content  # no text of the input
    assert len(content) == image.header.sizeof_hdr + 4 + LABELS.size  # no extension
    assert bytes(like.binaryblock) == before


def test_old_text_fields_and_a_trailing_axis_of_the_input_are_not_in_the_label_map(tmp_path: Path) -> None:
    path = stored(tmp_path, nifti1(random_voxels(shape=(*SHAPE, 1)), db_name=PATIENT, data_type=PATIENT))
    stored(tmp_path, encode_map(LABELS, load_volume(path).header, compress=False), "seg.nii")
    assert open_image(tmp_path / "seg.nii").shape == SHAPE
    assert PATIENT not in (tmp_path / "seg.nii").read_bytes()


@pytest.mark.parametrize("compress", [False, True])
def test_equal_labels_give_equal_bytes_at_any_time_and_in_any_order_of_memory(
    tmp_path: Path, compress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = volume_of(random_voxels(), OBLIQUE, name="p1").header
    expected = encode_map(LABELS, like, compress=compress)
    monkeypatch.setattr("time.time", lambda: 2e9)  # which gzip would write into the file
    turned = np.ascontiguousarray(LABELS[::-1].transpose(2, 1, 0)).transpose(2, 1, 0)[::-1]
    for same in (np.asfortranarray(LABELS), turned):
        assert encode_map(same, like, compress=compress) == expected
    assert expected.startswith(b"\x1f\x8b") == compress
    np.testing.assert_array_equal(load_volume(stored(tmp_path, expected)).voxels, LABELS)


def test_maps_of_several_values_a_voxel_are_written_in_their_own_type(tmp_path: Path) -> None:
    like: Volume = volume_of(random_voxels(), OBLIQUE, name="p1")
    probabilities = np.random.default_rng(0).random((*SHAPE, 4)).astype(np.float16)
    stored(tmp_path, encode_map(probabilities, like.header, compress=False), "p.nii")
    image = open_image(tmp_path / "p.nii")
    assert image.get_data_dtype() == np.float32  # NIfTI has no float16
    np.testing.assert_array_equal(np.asarray(image.dataobj), probabilities)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_a_bomb_is_never_inflated_whole(tmp_path: Path) -> None:
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    content = gzip.compress(nifti1())[:10] + block * 512 + b"\x03\0" + bytes(8)
    assert refusal(stored(tmp_path, content)) == NOT_NIFTI
