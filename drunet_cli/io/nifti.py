"""NIfTI files to arrays, and label maps to NIfTI files: the only module that knows the format.

A file that comes in is taken as hostile: every size that its header claims is checked before anything of that size is read,
and all of its bytes are read, so that the check sum of a compressed file is verified.
"""

import base64
import gzip
import hashlib
import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from drunet_cli.brats import LabelMap
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import axcodes, farthest_corner_mm, spacing_mm, why_implausible
from drunet_cli.io.inputs import InputFile, stand_in

Header: TypeAlias = nib.Nifti1Header  # Nifti2Header derives from it
_HEADER_CLASSES: Final[tuple[type[Header], ...]] = (nib.Nifti1Header, nib.Nifti2Header)
NiftiImage: TypeAlias = nib.Nifti1Image  # Nifti2Image derives from it
Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """The grid of one image by its header: where its voxels lie.

    affine: 4 x 4 float64, voxel indices to RAS millimetres (sform if its code is set, else qform, else the spacing alone).
    mended: how the qform of the header differs from the file's; empty where it does not.
    """

    path: Path
    affine: npt.NDArray[np.float64]
    header: Header
    mended: str = field(default="", kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """I, J, K."""
        return _checked_shape(self.header, self.path)

    @property
    def axcodes(self) -> str:
        """The directions of I, J, K, such as LPS."""
        return axcodes(self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along I, J, K."""
        return spacing_mm(self.affine)

    @property
    def forms_differ_mm(self) -> float:
        """How far sform and qform place a corner of the image apart; 0 where only one of them is set."""
        if self.header["sform_code"] == 0 or self.header["qform_code"] == 0:
            return 0.0
        return farthest_corner_mm(self.affine, self.header.get_qform(), self.shape)

    @property
    def has_orientation(self) -> bool:
        """Whether the header says how the voxels lie in the patient (sform or qform code above 0)."""
        return bool(self.header["sform_code"] > 0 or self.header["qform_code"] > 0)


@dataclass(frozen=True)
class Volume(Grid):
    """One image as stored: voxels [I, J, K] in the file's axis order and type, and where they lie.

    source: the file when it was read; None for a volume that comes from no file.
    rounded_zero: the value that the scaling of the file gave to the background, where this was set back to 0; else 0.
    """

    voxels: npt.NDArray[Any]
    source: InputFile | None = None
    rounded_zero: float = field(default=0.0, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """I, J, K."""
        return self.voxels.shape

    @cached_property
    def brain(self) -> npt.NDArray[np.bool_]:
        """[I, J, K]: the voxels above 0."""
        return np.asarray(self.voxels > 0)


def load_volume(path: Path) -> Volume:
    """Read a 3D scalar NIfTI-1 or NIfTI-2 file, plain or gzip-compressed whatever its suffix, of either byte order.

    A fourth axis of length 1 is dropped. scl_slope and scl_inter are applied where they change anything (float64 then).
    Raises CaseError when the file is missing, unreadable, truncated, corrupt, not NIfTI, not 3D, or absurdly large.
    """
    with _refuse_in_one_line(path), _open(path, chunk_bytes=_CHUNK_BYTES) as file:
        header, shape, start, n_bytes = _read_header(file)
        mended = _mend_qform(header)
        affine = _checked_affine(header, shape, path)
        content = _read_to_the_end(file, start, n_bytes)
        source = InputFile.of(path, file.status, sha256=file.hashed.sha256)
        return Volume(path, affine, header, _voxels(content, header, shape), source, mended=mended)


def load_grid(path: Path) -> Grid:
    """Read the header alone, which takes a few kB. Raises CaseError as load_volume would, for what these bytes tell.

    They tell whether a plain file is shorter or longer than its header promises; for a compressed file only the voxels do.
    """
    with _refuse_in_one_line(path), _open(path, chunk_bytes=_HEADER_CHUNK_BYTES) as file:
        header, shape, *_ = _read_header(file)
        mended = _mend_qform(header)
        return Grid(path, _checked_affine(header, shape, path), header, mended=mended)


def volume_of(voxels: npt.NDArray[Any], affine: npt.ArrayLike, *, name: str) -> Volume:
    """The volume that a file of these voxels [I, J, K] and this affine, 4 x 4, would give.

    name: stands for the path in messages. The affine is rounded to float32, as in files. Raises CaseError for what no such file
    could hold.
    """
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CaseError(f"{name}: its affine is no matrix of numbers") from error
    if voxels.ndim != len("IJK") or voxels.size == 0:
        raise CaseError(f"{name}: has the shape {voxels.shape}; an image is an array [I, J, K]")
    if voxels.dtype.kind not in "iuf":
        raise CaseError(f"{name}: holds {voxels.dtype} voxels; one real number a voxel is needed")
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise CaseError(f"{name}: its affine is no 4 x 4 matrix whose last row is 0 0 0 1")
    matrix = matrix.astype(np.float32).astype(np.float64)
    if reason := why_implausible(matrix, voxels.shape):
        raise CaseError(f"{name}: {reason}")
    _check_perpendicular(matrix, Path(name))
    return Volume(Path(name), matrix, new_header(voxels.shape, np.uint8, matrix), voxels)


def new_header(shape: tuple[int, ...], dtype: npt.DTypeLike, affine: npt.NDArray[np.float64]) -> Header:
    """The header of an image that comes from no file: sform and qform as a scanner sets them, millimetres, little-endian."""
    header = Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    return header


def stored_header(header: Header) -> str:
    """The header of an image as text, so that a label map can be laid on the image's grid without the image."""
    return base64.b64encode(_without_text(header).binaryblock).decode()


def header_of(stored: str, *, name: str) -> Header:
    """The header that `stored_header` gave. name: stands for the path in messages. Raises CaseError for anything else."""
    try:
        content = base64.b64decode(stored, validate=True)
    except ValueError as error:
        raise CaseError(f"{name}: holds a header that is none") from error
    with _refuse_in_one_line(Path(name)):
        header = _parse_header(content, Path(name))
        _checked_affine(header, _checked_shape(header, Path(name)), Path(name))
        return header


_GZIP_LEVEL: Final = 6
_FIELDS_OF_THE_IMAGE: Final = (
    *("cal_min", "cal_max", "slice_start", "slice_end", "slice_code", "slice_duration", "toffset"),
    *("intent_code", "intent_p1", "intent_p2", "intent_p3"),
)


def label_image(label_map: LabelMap, like: Header) -> NiftiImage:
    """The image that nibabel reads from the file of a label map; NIfTI-2 where `like` is."""
    kind = nib.Nifti2Image if isinstance(like, nib.Nifti2Header) else nib.Nifti1Image
    return kind.from_bytes(encode_map(label_map, like, compress=False))


def encode_map(values: npt.NDArray[Any], like: Header, *, compress: bool) -> bytes:
    """A map [I, J, K] or [I, J, K, N] as a NIfTI file in the geometry of `like`: its sform, qform, codes, zooms and units.

    The voxels are unscaled, in the type of the map; float16, which NIfTI lacks, becomes float32. compress: as .nii.gz; equal
    maps give equal bytes. No text and no extension of `like` is taken over.
    """
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    header = _without_text(like)
    header.set_data_dtype(values.dtype)
    header["dim"] = [values.ndim, *values.shape, *[1] * (_MOST_AXES - values.ndim)]
    if values.ndim > len("IJK"):
        header["pixdim"][4:] = 1.0
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name in _FIELDS_OF_THE_IMAGE:
        header[name] = 0
    return _assembled(header, values, compress=compress)


def encode_again(volume: Volume) -> bytes:
    """The file that a volume was read from, as .nii.gz: its stored voxels, type and scaling, in a header without any text.

    Raises CaseError where the file is no longer the one that was read.
    """
    path = volume.path
    with _refuse_in_one_line(path), _open(path, chunk_bytes=_CHUNK_BYTES) as file:
        header, _, start, n_bytes = _read_header(file)
        content = _read_to_the_end(file, start, n_bytes)
    if volume.source is None or file.hashed.sha256 != volume.source.sha256:
        raise CaseError(f"{path}: was changed while drunet was working on it; try again")
    stored = np.frombuffer(content, header.get_data_dtype(), offset=int(header.get_data_offset()))
    return _assembled(_without_text(header), stored.astype(stored.dtype.newbyteorder("<"), copy=False), compress=True)


def _assembled(header: Header, values: npt.NDArray[Any], *, compress: bool) -> bytes:
    """A file of a little-endian header and of values as they are stored."""
    header["vox_offset"] = header.single_vox_offset
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(b"\0" * (header.single_vox_offset - stream.tell()))  # four bytes: no extension follows
    content = stream.getvalue() + values.tobytes(order="F")
    return gzip.compress(content, _GZIP_LEVEL, mtime=0) if compress else content


def _without_text(like: Header) -> Header:
    """A little-endian copy of a header without any text: it may name the patient, db_name of old files above all."""
    header: Header = like.as_byteswapped("<") if like.endianness != "<" else like.copy()
    for name, (dtype, *_) in (header.template_dtype.fields or {}).items():
        if dtype.kind == "S" and name != "magic":
            header[name] = b""
    return header


_GZIP_SIGNATURE: Final = b"\x1f\x8b"
_MOST_INFLATED: Final = 1032  # bytes that deflate can make of one (zlib's technical notes)
_CHUNK_BYTES: Final = 2**17
_HEADER_CHUNK_BYTES: Final = 2**14  # holds a gzip header, and what inflates to a NIfTI header


class _HashedFile(io.RawIOBase):
    """A file that is read once, from its beginning to its end, and the SHA-256 of what was read.

    chunk_bytes: the most that is read at once.
    """

    def __init__(self, file: io.FileIO, chunk_bytes: int) -> None:
        self._file, self._chunk_bytes = file, chunk_bytes
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        """True: io asks."""
        return True

    def readinto(self, buffer: Any) -> int:  # typeshed's type of a buffer has another name in every Python
        """Fill a buffer, or the beginning of one."""
        view = memoryview(buffer)[: self._chunk_bytes]
        n_bytes = self._file.readinto(view)
        self._sha256.update(view[:n_bytes])
        return n_bytes

    @property
    def sha256(self) -> str:
        """The digest of what has been read, in hexadecimal."""
        return self._sha256.hexdigest()


@dataclass(frozen=True)
class _OpenFile:
    """An open file. status: from before the opening. content: its bytes, inflated, of which there are n_least to n_most."""

    path: Path
    status: os.stat_result
    hashed: _HashedFile
    content: BinaryIO
    n_least: int
    n_most: int


@contextmanager
def _open(path: Path, *, chunk_bytes: int) -> Iterator[_OpenFile]:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise CaseError(f"{path}: is a folder, not a NIfTI file")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe, or reading a device, need never end
        raise CaseError(f"{path}: is not a regular file but a pipe or device; write the image to a file first")
    n_stored = status.st_size
    with path.open("rb", buffering=0) as file:
        compressed = file.read(len(_GZIP_SIGNATURE)) == _GZIP_SIGNATURE
        file.seek(0)
        hashed = _HashedFile(file, chunk_bytes)
        if compressed:
            content = cast(BinaryIO, igzip.IGzipFile(fileobj=hashed, mode="rb"))  # inflates outside the interpreter's lock
            yield _OpenFile(path, status, hashed, content, 0, n_stored * _MOST_INFLATED)
        else:
            yield _OpenFile(path, status, hashed, cast(BinaryIO, io.BufferedReader(hashed, chunk_bytes)), n_stored, n_stored)


def _read_header(file: _OpenFile) -> tuple[Header, Shape, bytes, int]:
    """The header, the shape it claims, the bytes that were read, and how many bytes of content the header promises."""
    path = file.path
    start = file.content.read(nib.Nifti2Header.sizeof_hdr)
    header = _parse_header(start, path)
    shape = _checked_shape(header, path)
    n_bytes = _checked_data_offset(header, path) + math.prod(shape) * header.get_data_dtype().itemsize
    if file.n_most < n_bytes:  # before memory is given to a mere promise
        raise _truncated(path, n_bytes)
    if max(file.n_least, len(start)) > n_bytes:
        raise _too_long(path, n_bytes)
    return header, shape, start, n_bytes


def _read_to_the_end(file: _OpenFile, start: bytes, n_bytes: int) -> npt.NDArray[np.uint8]:
    """The content, of which `start` has been read already; its end is met, which verifies a compressed file's check sum."""
    content = np.empty(n_bytes, dtype=np.uint8)  # numpy's memory comes in larger pages, and so sooner, than bytes' does
    n_read = len(start)
    content[:n_read] = np.frombuffer(start, dtype=np.uint8)
    while n_read < n_bytes:
        piece = file.content.read(min(_CHUNK_BYTES, n_bytes - n_read))
        if not piece:
            raise _truncated(file.path, n_bytes)
        content[n_read : n_read + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        n_read += len(piece)
    if file.content.read(1):
        raise _too_long(file.path, n_bytes)
    return content


def _voxels(content: npt.NDArray[np.uint8], header: Header, shape: Shape) -> npt.NDArray[Any]:
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    raw = np.frombuffer(content, dtype, count=math.prod(shape), offset=offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1.0, 0.0):
        return raw.astype(dtype.newbyteorder("="), order="K", copy=False)
    return np.asarray(raw.astype(np.float64, order="K") * slope + intercept)


@contextmanager
def _refuse_in_one_line(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into one CaseError that names it."""
    try:
        with np.errstate(all="ignore"):  # what overflows in a damaged header is found as not finite
            yield
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    except EOFError as error:
        reason = "is truncated, or has stray bytes at its end: its compressed data do not end as they must"
        raise CaseError(f"{path}: {reason}; copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error, isal_zlib.error) as error:  # type: ignore[misc]  # a class, whatever isal's stub says
        raise CaseError(f"{path}: its compressed data are corrupt; copy or download it again") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror or error}") from error


def _truncated(path: Path, n_bytes: int) -> CaseError:
    return CaseError(f"{path}: is truncated: its header promises {n_bytes} bytes; copy or download it again")


def _too_long(path: Path, n_bytes: int) -> CaseError:
    return _damaged(path, f"the file is longer than the {n_bytes} bytes that its header promises")


def _damaged(path: Path, reason: str) -> CaseError:
    return CaseError(f"{path}: its NIfTI header is damaged: {reason}; export the image again")


_MOST_AXES: Final = 7
# 512 x 512 x 512: twice as fine in every axis as the BraTS grid. Anything above is a damaged header or no brain MRI.
_MAX_VOXELS: Final = 2**27
_MAX_HEADER_BYTES: Final = 2**24  # room for extensions before the voxels
_LAST_FORM_CODE: Final = 5  # of sform and qform: unknown, scanner, aligned, Talairach, MNI, other template

# nibabel reports what it mends in a header; the user hears only of what cannot be mended, as a CaseError.
_NIBABEL_REPORTS: Final = logging.getLogger(__name__)
_NIBABEL_REPORTS.addHandler(logging.NullHandler())
_NIBABEL_REPORTS.propagate = False
_UNMENDABLE: Final = 40  # nibabel's severity from which it refuses a header itself


def _parse_header(start: bytes, path: Path) -> Header:
    """The header at the start of a file. Raises CaseError for anything else, and says what it seems to be."""
    if not start:
        raise CaseError(f"{path}: is empty; copy or download it again")
    for header_class in _HEADER_CLASSES:
        size = header_class.sizeof_hdr  # which the file begins with, in its byte order
        order = {size.to_bytes(4, "little"): "<", size.to_bytes(4, "big"): ">"}.get(start[:4])
        if order is None:
            continue
        if len(start) < size:
            raise CaseError(f"{path}: is truncated: {len(start)} bytes are not even a header; copy or download it again")
        header = header_class(start[:size], endianness=order, check=False)
        if header["magic"] == header_class.pair_magic:
            raise CaseError(f"{path}: is the header of a .hdr/.img pair; convert the pair to one .nii file")
        if header["magic"] == header_class.single_magic:
            _check_codes(header, path)
            header.check_fix(_NIBABEL_REPORTS, _UNMENDABLE)
            return header
    if found := stand_in(start):
        raise CaseError(f"{path}: {found}")
    if start[:2] == _GZIP_SIGNATURE:
        raise CaseError(f"{path}: is compressed twice; decompress it once")
    if start[128:132] == b"DICM":
        raise CaseError(f"{path}: is a DICOM file; give the folder of its series to drunet prepare")
    raise CaseError(f"{path}: is not a NIfTI file; convert it to .nii or .nii.gz first")


def _check_codes(header: Header, path: Path) -> None:
    """Raise CaseError for codes that nibabel would mend silently, to the harm of the orientation."""
    for form in ("sform_code", "qform_code"):
        if not 0 <= int(header[form]) <= _LAST_FORM_CODE:  # nibabel would take it for 0 and the orientation for unknown
            raise _damaged(path, f"{form} {int(header[form])} is not defined")
    if not 1 <= int(header["dim"][0]) <= _MOST_AXES:
        raise _damaged(path, f"{int(header['dim'][0])} axes")


def _checked_shape(header: Header, path: Path) -> Shape:
    """The three axes."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    size = " x ".join(map(str, shape))
    if len(shape) != 3:
        remedy = "; give one volume a file" if len(shape) > 3 else ""
        raise CaseError(f"{path}: is {len(shape)}D ({size}), not 3D{remedy}")
    if min(shape) < 1:
        raise _damaged(path, f"it claims a size of {size} voxels")
    if math.prod(shape) > _MAX_VOXELS:
        raise _damaged(path, f"it claims {size} voxels, more than any brain MRI has")
    if header.get_data_dtype().kind not in "iuf":
        raise CaseError(f"{path}: holds {header.get_value_label('datatype')} voxels; one real number a voxel is needed")
    return shape


def _checked_data_offset(header: Header, path: Path) -> int:
    """The byte at which the voxels begin."""
    offset = int(header.get_data_offset())
    if not header.single_vox_offset <= offset <= _MAX_HEADER_BYTES:
        raise _damaged(path, f"it says that the voxels begin at byte {offset}")
    return offset


def _mend_qform(header: Header) -> str:
    """Mend a qform that label maps would inherit and other programs refuse; say what was done, empty for nothing.

    A quaternion longer than 1, as rounding leaves it, is scaled to 1 like the NIfTI library's nifti_quatern_to_mat44 does it.
    A qform that is not finite goes where there is an sform, by which the image lies where it lies.
    """
    if header["qform_code"] == 0:
        return ""
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    others = [header["pixdim"][:4], *(header[f"qoffset_{axis}"] for axis in "xyz")]
    if not (np.isfinite(quaternion).all() and all(np.isfinite(values).all() for values in others)):
        if header["sform_code"] == 0 or not np.isfinite(header.get_sform()).all():
            return ""  # refused by whoever reads the affine
        header["qform_code"] = 0
        header["pixdim"][:4] = [1, *spacing_mm(np.asarray(header.get_sform(), dtype=np.float64))]
        for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[name] = 0
        return "its qform is not finite and was left out"
    length = float(np.linalg.norm(quaternion))
    if length**2 - 1 <= abs(header.quaternion_threshold):  # nibabel reads these, and others do
        return ""
    for axis, value in zip("bcd", quaternion / length, strict=True):
        header[f"quatern_{axis}"] = value
    return f"the quaternion of its qform is {length:.7g} long and was scaled to 1"


def _checked_affine(header: Header, shape: Shape, path: Path) -> npt.NDArray[np.float64]:
    """[4, 4], voxel indices to RAS millimetres, of a grid that a brain may have been scanned on."""
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(header["pixdim"][1:4]).all() or not (header["qform_code"] == 0 or np.isfinite(header.get_qform()).all()):
        # Not used where there is an sform, but the label map would inherit them, and other programs read the qform first.
        raise _damaged(path, "its qform or its voxel sizes are not finite")
    if reason := why_implausible(affine, shape):
        raise _damaged(path, reason)
    _check_perpendicular(affine, path)
    return affine


def _check_perpendicular(affine: npt.NDArray[np.float64], path: Path) -> None:
    """Raise CaseError for axes that no scanner has."""
    if abs(np.linalg.det(affine[:3, :3])) < 0.5 * math.prod(spacing_mm(affine)):
        raise CaseError(f"{path}: the axes of its affine are not perpendicular; resample it to a regular grid first")
