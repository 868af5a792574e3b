"""Label maps as files: in the input's geometry, field for field, and with nothing else of the input in them."""

import gzip
from pathlib import Path
from typing import Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import LabelMap
from drunet_cli.io.nifti import Volume, encode_label_map, load_volume

SHAPE: Final = (9, 8, 6)
# What places the voxels, in the header's own words.
GEOMETRY_FIELDS: Final = (
    "sform_code",
    "qform_code",
    "srow_x",
    "srow_y",
    "srow_z",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "xyzt_units",
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


def save_label_map(path: Path, labels: npt.NDArray[np.uint8], like: Volume) -> None:
    path.write_bytes(encode_label_map(labels, like.header, compress=path.suffix.lower() == ".gz"))


def labels_of(shape: tuple[int, ...] = SHAPE) -> LabelMap:
    return np.random.default_rng(2).choice(np.array([0, 1, 2, 4], dtype=np.uint8), shape)


def saved_image(
    path: Path,
    *,
    image_class: type[nib.Nifti1Image] = nib.Nifti1Image,
    order: str = "<",
    forms: tuple[int, int] = (1, 1),
    units: str = "mm",
    dtype: npt.DTypeLike = np.int16,
    shape: tuple[int, ...] = SHAPE,
) -> Volume:
    """An input with the oblique affine in its sform and its qform under these two codes, read as drunet reads it."""
    voxels = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    image = image_class(voxels, OBLIQUE, image_class.header_class(endianness=order), dtype=np.dtype(dtype))
    image.set_sform(OBLIQUE, forms[0])
    image.set_qform(OBLIQUE, forms[1])
    image.header.set_xyzt_units(units, "sec")
    path.write_bytes(image.to_bytes())
    return load_volume(path)


def opened(path: Path) -> nib.Nifti1Image:
    """As nibabel alone reads it; Nifti2Image derives from Nifti1Image."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def raw_header(path: Path, header: type[nib.Nifti1Header], order: Literal["<", ">"] = "<") -> np.void:
    """The header's fields as they lie in the file, unmended."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    fields: np.void = np.frombuffer(content[: header.sizeof_hdr], dtype=header.template_dtype.newbyteorder(order))[0]
    return fields


@pytest.fixture
def like(tmp_path: Path) -> Volume:
    return saved_image(tmp_path / "flair.nii")


@pytest.mark.parametrize("forms", [(1, 1), (2, 0), (0, 1), (4, 3), (0, 0)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_field_that_places_the_voxels_is_the_inputs_own(
    tmp_path: Path, image_class: type[nib.Nifti1Image], order: Literal["<", ">"], forms: tuple[int, int]
) -> None:
    source, target = tmp_path / "flair.nii", tmp_path / "seg.nii"
    volume = saved_image(source, image_class=image_class, order=order, forms=forms)
    save_label_map(target, labels_of(), volume)
    given = raw_header(source, image_class.header_class, order)
    written = raw_header(target, image_class.header_class)
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(written[field], given[field], err_msg=field)
    np.testing.assert_array_equal(written["pixdim"][:4], given["pixdim"][:4])
    assert given["pixdim"][0] == -1  # so that qfac is seen to be kept
    assert written["magic"] == given["magic"]


@pytest.mark.parametrize("forms", [(1, 1), (0, 1), (2, 0), (0, 0)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_nibabel_reads_the_labels_and_the_inputs_affine_back(
    tmp_path: Path, image_class: type[nib.Nifti1Image], order: Literal["<", ">"], forms: tuple[int, int]
) -> None:
    source, target = tmp_path / "flair.nii", tmp_path / "seg.nii.gz"
    volume = saved_image(source, image_class=image_class, order=order, forms=forms)
    save_label_map(target, labels_of(), volume)
    image, given = opened(target), opened(source)
    assert type(image) is image_class
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels_of())
    np.testing.assert_array_equal(image.affine, given.affine)
    np.testing.assert_array_equal(image.header.get_zooms(), given.header.get_zooms()[:3])


def test_an_oblique_affine_that_only_the_qform_holds_survives(tmp_path: Path) -> None:
    target = tmp_path / "seg.nii"
    save_label_map(target, labels_of(), saved_image(tmp_path / "flair.nii", forms=(0, 1)))
    # The constants of OBLIQUE have four digits, and the qform makes a rotation of them: 1e-4 of 2.5 mm.
    np.testing.assert_allclose(load_volume(target).affine, OBLIQUE, atol=2.5e-4)


@pytest.mark.parametrize("units", ["mm", "meter", "micron", "unknown"])
def test_units_are_kept(tmp_path: Path, units: str) -> None:
    save_label_map(tmp_path / "seg.nii", labels_of(), saved_image(tmp_path / "flair.nii", units=units))
    assert opened(tmp_path / "seg.nii").header.get_xyzt_units()[0] == units


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_voxels_are_unscaled_bytes_whatever_the_input_had(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    target = tmp_path / "seg.nii"
    save_label_map(target, labels_of(), saved_image(tmp_path / "flair.nii", dtype=dtype))
    header = raw_header(target, nib.Nifti1Header)
    assert header["datatype"] == 2  # NIFTI_TYPE_UINT8
    assert header["bitpix"] == 8
    assert header["scl_slope"] == 1
    assert header["scl_inter"] == 0


def test_the_inputs_own_scaling_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "flair.nii"
    saved_image(source)
    content = bytearray(source.read_bytes())
    content[112:120] = np.array([0.5, 7], dtype="<f4").tobytes()  # scl_slope and scl_inter
    source.write_bytes(content)
    save_label_map(tmp_path / "seg.nii", labels_of(), load_volume(source))
    np.testing.assert_array_equal(opened(tmp_path / "seg.nii").get_fdata(), labels_of())


def test_a_trailing_axis_of_the_input_is_not_in_the_label_map(tmp_path: Path) -> None:
    volume = saved_image(tmp_path / "flair.nii", shape=(*SHAPE, 1))
    save_label_map(tmp_path / "seg.nii", labels_of(), volume)
    assert opened(tmp_path / "seg.nii").shape == SHAPE


def test_no_text_of_the_input_is_in_the_label_map(tmp_path: Path) -> None:
    source, target = tmp_path / "flair.nii", tmp_path / "seg.nii"
    saved_image(source)
    image = opened(source)
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[field] = PATIENT
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", PATIENT))
    source.write_bytes(image.to_bytes())
    assert source.read_bytes().count(PATIENT) == 6
    save_label_map(target, labels_of(), load_volume(source))
    assert PATIENT not in target.read_bytes()


def test_no_text_of_a_nifti2_input_is_in_the_label_map(tmp_path: Path) -> None:
    source, target = tmp_path / "flair.nii", tmp_path / "seg.nii"
    saved_image(source, image_class=nib.Nifti2Image)
    image = opened(source)
    for field in ("descrip", "aux_file", "intent_name", "unused_str"):
        image.header[field] = PATIENT
    source.write_bytes(image.to_bytes())
    save_label_map(target, labels_of(), load_volume(source))
    assert PATIENT not in target.read_bytes()


def test_no_extension_follows_the_header(tmp_path: Path, like: Volume) -> None:
    save_label_map(tmp_path / "seg.nii", labels_of(), like)
    content = (tmp_path / "seg.nii").read_bytes()
    assert content[348:352] == bytes(4)
    assert len(content) == 352 + np.prod(SHAPE)


@pytest.mark.parametrize("name", ["seg.nii", "seg.nii.gz"])
def test_equal_labels_give_equal_bytes_at_any_time_and_under_any_name(
    tmp_path: Path, like: Volume, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_label_map(tmp_path / name, labels_of(), like)
    monkeypatch.setattr("time.time", lambda: 2e9)  # which gzip would write into the file
    save_label_map(tmp_path / f"other_{name}", np.asfortranarray(labels_of()), like)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"other_{name}").read_bytes()


@pytest.mark.parametrize(("name", "compressed"), [("seg.nii", False), ("seg.nii.gz", True), ("SEG.NII.GZ", True)])
def test_the_suffix_says_whether_the_label_map_is_compressed(tmp_path: Path, like: Volume, name: str, compressed: bool) -> None:
    save_label_map(tmp_path / name, labels_of(), like)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") is compressed
    np.testing.assert_array_equal(load_volume(tmp_path / name).voxels, labels_of())


def test_labels_of_a_turned_view_are_written_in_the_files_own_axes(tmp_path: Path, like: Volume) -> None:
    view = labels_of(SHAPE[::-1]).transpose(2, 1, 0)[::-1]
    save_label_map(tmp_path / "seg.nii", view, like)
    np.testing.assert_array_equal(load_volume(tmp_path / "seg.nii").voxels, view)


def test_the_input_header_is_left_as_it_was(tmp_path: Path, like: Volume) -> None:
    before = bytes(like.header.binaryblock)
    save_label_map(tmp_path / "seg.nii", labels_of(), like)
    assert bytes(like.header.binaryblock) == before
