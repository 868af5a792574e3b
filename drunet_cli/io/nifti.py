"""NIfTI files to arrays, and label maps to NIfTI files: the only module that knows the format."""

import gzip
import hashlib
import io
import logging
import math
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from nibabel.spatialimages import HeaderDataError

from drunet_cli.brats import LabelMap
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import axcodes, farthest_corner_mm, spacing_mm

GZIP_SIGNATURE: Final = b"\x1f\x8b"
MOST_INFLATED: Final = 1032  # bytes that deflate can make of one (zlib's technical notes)
# What `Inflated` raises for a stream that is not as it was written; isal's stub calls its class an instance.
CORRUPT: Final[tuple[type[Exception], ...]] = (zlib.error, isal_zlib.error)  # type: ignore[assignment]
CHUNK_BYTES: Final = 2**17
_WITH_GZIP_HEADER: Final = 31  # zlib: the largest window, and a gzip header


class Inflated:
    """The content of a gzip file of any number of members.

    gzip.GzipFile takes pieces of 8 kB in Python 3.11 and holds the interpreter's lock between them, so that the four threads
    which read a case wait for one another; and ISA-L inflates faster than zlib.
    """

    def __init__(self, file: BinaryIO, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._member = isal_zlib.decompressobj(wbits=_WITH_GZIP_HEADER)

    def read(self, n_bytes: int) -> bytes:
        """So many bytes; fewer only at the end, where every check sum has been verified.

        Raises EOFError where the file ends too early, one of CORRUPT where it is damaged.
        """
        pieces = []
        while n_bytes > 0 and (piece := self._some(n_bytes)):
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        """At least one byte; none at the end."""
        while True:
            if self._member.eof:
                compressed = self._member.unused_data
                while not (compressed := compressed.lstrip(b"\0")):  # padding
                    compressed = self._file.read(self._chunk_bytes)
                    if not compressed:
                        return b""
                if len(compressed) < self._chunk_bytes:  # ISA-L misreads a header that comes in two pieces
                    compressed += self._file.read(self._chunk_bytes)
                if not compressed.startswith(GZIP_SIGNATURE[: len(compressed)]):
                    raise zlib.error("something else follows a complete stream")
                self._member = isal_zlib.decompressobj(wbits=_WITH_GZIP_HEADER)
            else:
                compressed = self._member.unconsumed_tail or self._file.read(self._chunk_bytes)
            content = self._member.decompress(compressed, most)
            if content:
                return content
            if not compressed and not self._member.eof:
                raise EOFError


Header: TypeAlias = nib.Nifti1Header  # Nifti2Header derives from it
Shape: TypeAlias = tuple[int, int, int]

MOST_AXES: Final = 7
# 512 x 512 x 512: twice as fine in every axis as the BraTS grid. Anything above is a damaged header or no brain MRI.
_MAX_VOXELS: Final = 2**27
_MAX_HEADER_BYTES: Final = 2**24  # room for extensions before the voxels
_LAST_FORM_CODE: Final = 5  # of sform and qform: unknown, scanner, aligned, Talairach, MNI, other template
_MAX_FIELD_OF_VIEW_MM: Final = 1000.0
_SPACING_RANGE_MM: Final = (0.1, 20.0)

# nibabel reports what it mends in a header; the user hears only of what cannot be mended, as a CaseError.
_NIBABEL_REPORTS: Final = logging.getLogger(__name__)
_NIBABEL_REPORTS.addHandler(logging.NullHandler())
_NIBABEL_REPORTS.propagate = False
_UNMENDABLE: Final = 40  # nibabel's severity from which it refuses a header itself


@dataclass(frozen=True)
class Grid:
    """What the header of one image says: where its voxels lie.

    affine: 4 x 4 float64, voxel indices to RAS millimetres (sform if its code is set, else qform, else the spacing alone).
    """

    path: Path
    affine: npt.NDArray[np.float64]
    header: Header

    @property
    def shape(self) -> tuple[int, ...]:
        """I, J, K."""
        return checked_shape(self.header, self.path)

    @property
    def axcodes(self) -> str:
        """Where I, J, K point, such as LPS."""
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


def header_in(content: bytes, path: Path) -> Header:
    """The header that the first bytes of a file are. Raises CaseError for anything else, and says what it seems to be."""
    if not content:
        raise CaseError(f"{path}: is empty; copy or download it again")
    for header_class, magic in ((nib.Nifti1Header, b"n+1\0"), (nib.Nifti2Header, b"n+2\0")):
        size = header_class.sizeof_hdr
        order = {struct.pack("<i", size): "<", struct.pack(">i", size): ">"}.get(content[:4])
        if order is None:
            continue
        if len(content) < size:
            raise CaseError(f"{path}: is truncated: {len(content)} bytes are not even a header; copy or download it again")
        start = header_class.template_dtype.fields["magic"][1]  # type: ignore[index]  # the dtype has fields
        if content[start : start + 4] == magic:
            return _checked_header(header_class, content[:size], order, path)
        if content[start : start + 3] in (b"ni1", b"ni2"):
            raise CaseError(f"{path}: is the header of a .hdr/.img pair; convert the pair to one .nii file")
    if content[:2] == GZIP_SIGNATURE:
        raise CaseError(f"{path}: is compressed twice; decompress it once")
    if content[128:132] == b"DICM":
        raise CaseError(f"{path}: is a DICOM file; convert the series to NIfTI first, for example with dcm2niix")
    raise CaseError(f"{path}: is not a NIfTI file; convert it to .nii or .nii.gz first")


def _checked_header(header_class: type[Header], content: bytes, order: str, path: Path) -> Header:
    header: Header = header_class(content, endianness=order, check=False)
    for form in ("sform_code", "qform_code"):
        if not 0 <= int(header[form]) <= _LAST_FORM_CODE:  # nibabel would take it for 0 and the orientation for unknown
            raise damaged(path, f"{form} {int(header[form])} is not defined")
    if not 1 <= int(header["dim"][0]) <= MOST_AXES:
        raise damaged(path, f"{int(header['dim'][0])} axes")
    header.check_fix(_NIBABEL_REPORTS, _UNMENDABLE)
    return header


def checked_shape(header: Header, path: Path) -> Shape:
    """The three axes, checked before anything of their size is read."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    size = " x ".join(map(str, shape))
    if len(shape) != 3:
        remedy = "; give one volume a file" if len(shape) > 3 else ""
        raise CaseError(f"{path}: is {len(shape)}D ({size}), not 3D{remedy}")
    if min(shape) < 1:
        raise damaged(path, f"it claims a size of {size} voxels")
    if math.prod(shape) > _MAX_VOXELS:
        raise damaged(path, f"it claims {size} voxels, more than any brain MRI has")
    if header.get_data_dtype().kind not in "iuf":
        raise CaseError(f"{path}: holds {header.get_value_label('datatype')} voxels; one real number a voxel is needed")
    return shape


def checked_data_offset(header: Header, path: Path) -> int:
    """The byte at which the voxels begin."""
    offset = int(header.get_data_offset())
    if not header.single_vox_offset <= offset <= _MAX_HEADER_BYTES:
        raise damaged(path, f"it says that the voxels begin at byte {offset}")
    return offset


def checked_affine(header: Header, shape: Shape, path: Path) -> npt.NDArray[np.float64]:
    """[4, 4], voxel indices to RAS millimetres, of a grid that a brain may have been scanned on."""
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(header["pixdim"][1:4]).all() or not (header["qform_code"] == 0 or np.isfinite(header.get_qform()).all()):
        # Not used where there is an sform, but the label map would inherit them, and other programs read the qform first.
        raise damaged(path, "its qform or its voxel sizes are not finite")
    if reason := implausible(affine, shape):
        raise damaged(path, reason)
    check_perpendicular(affine, path)
    return affine


def implausible(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> str | None:
    """Why this cannot be where the voxels of a head lie, in words; None where it can."""
    if not np.isfinite(affine).all():
        return "its affine holds values that are not finite"
    spacing = spacing_mm(affine)
    sizes = " x ".join(f"{size:g}" for size in spacing)
    smallest, largest = _SPACING_RANGE_MM
    if not all(smallest <= size <= largest for size in spacing):
        return f"voxels of {sizes} mm are impossible for brain MRI; it may not be in mm"
    if any(n * size > _MAX_FIELD_OF_VIEW_MM for n, size in zip(shape, spacing, strict=True)):
        return f"{' x '.join(map(str, shape))} voxels of {sizes} mm are larger than any head"
    return None


def check_perpendicular(affine: npt.NDArray[np.float64], path: Path) -> None:
    """Raise CaseError for axes that no scanner has."""
    if abs(np.linalg.det(affine[:3, :3])) < 0.5 * math.prod(spacing_mm(affine)):
        raise CaseError(f"{path}: the axes of its affine are not perpendicular; resample it to a regular grid first")


def new_header(shape: tuple[int, ...], dtype: npt.DTypeLike, affine: npt.NDArray[np.float64]) -> Header:
    """Of an image that comes from no file: sform and qform as of a scanner, millimetres, little-endian."""
    header = Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header


def damaged(path: Path, reason: str) -> CaseError:
    """What is wrong with a header, as an error."""
    return CaseError(f"{path}: its NIfTI header is damaged: {reason}; export the image again")


_Bytes: TypeAlias = npt.NDArray[np.uint8]

_GZIP_LEVEL: Final = 6
_HEADER_CHUNK_BYTES: Final = 2**14  # holds a gzip header and what inflates to ours
_OF_THE_IMAGE_ALONE: Final = (
    *("cal_min", "cal_max", "slice_start", "slice_end", "slice_code", "slice_duration", "toffset"),
    *("intent_code", "intent_p1", "intent_p2", "intent_p3"),
)


@dataclass(frozen=True)
class Volume(Grid):
    """One image as stored: voxels [I, J, K] in the file's axis order and type, and where they lie.

    sha256: of the file's bytes.
    """

    voxels: npt.NDArray[Any]
    sha256: str

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
    with _readable(path):
        return _load(path)


def load_grid(path: Path) -> Grid:
    """Read the header alone, of a compressed file a few kB. Raises CaseError as load_volume would, for what these tell.

    A plain file that is shorter or longer than its header promises is among it; of a compressed one only the voxels tell.
    """
    with _readable(path), _opened(path, chunk_bytes=_HEADER_CHUNK_BYTES) as opened:
        _, header, shape, _ = _promised(opened)
        return Grid(path, checked_affine(header, shape, path), header)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever can be wrong with a file as one CaseError that names it."""
    try:
        with np.errstate(all="ignore"):  # what overflows in a damaged header is found as not finite
            yield
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise damaged(path, " ".join(str(error).split())) from error
    except EOFError as error:
        raise CaseError(f"{path}: is truncated: the compressed data end too early; copy or download it again") from error
    except CORRUPT as error:
        raise CaseError(f"{path}: its compressed data are corrupt; copy or download it again") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror or error}") from error


def encode_label_map(label_map: LabelMap, like: Header, *, compress: bool) -> bytes:
    """Labels [I, J, K] as a uint8 NIfTI file in the geometry of `like`: its sform, qform, codes, zooms and units, unscaled.

    compress: as .nii.gz; equal labels give equal bytes. No text and no extension of `like` is taken over.
    """
    return encode_map(label_map, like, compress=compress)


def encode_map(values: npt.NDArray[Any], like: Header, *, compress: bool) -> bytes:
    """The same of any values [I, J, K] or [I, J, K, N], in their own type; float16, which NIfTI lacks, becomes float32."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    header = like.as_byteswapped("<") if like.endianness != "<" else like.copy()
    header.set_data_dtype(values.dtype)
    header["dim"] = [values.ndim, *values.shape, *[1] * (MOST_AXES - values.ndim)]
    if values.ndim > len("IJK"):
        header["pixdim"][4:] = 1.0
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    for field in _OF_THE_IMAGE_ALONE:
        header[field] = 0
    for field, (dtype, *_) in header.template_dtype.fields.items():
        if dtype.kind == "S" and field != "magic":  # any of them may name the patient, db_name of old files above all
            header[field] = b""
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(b"\0" * (header.single_vox_offset - stream.tell()))  # four bytes: no extension follows
    content = stream.getvalue() + values.tobytes(order="F")
    return gzip.compress(content, _GZIP_LEVEL, mtime=0) if compress else content


def volume_of(voxels: npt.NDArray[Any], affine: npt.ArrayLike, *, name: str) -> Volume:
    """The image that a file of these voxels [I, J, K] and this affine, 4 x 4, would be. name: for messages, in place of a path.

    The affine is rounded to float32, as in files. Raises CaseError for what no such file could hold.
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
    if reason := implausible(matrix, voxels.shape):
        raise CaseError(f"{name}: {reason}")
    check_perpendicular(matrix, Path(name))
    return Volume(Path(name), matrix, new_header(voxels.shape, np.uint8, matrix), voxels, sha256="")


def _load(path: Path) -> Volume:
    with _opened(path) as opened:
        head, header, shape, n_bytes = _promised(opened)
        content = _read(opened, head, n_bytes)
        opened.file.seek(0)
        digest = hashlib.file_digest(opened.file, "sha256").hexdigest()
    affine = checked_affine(header, shape, path)
    return Volume(path, affine, header, _voxels(content, header, shape, path), digest)


@dataclass(frozen=True)
class _Opened:
    """A file and its bytes decompressed. n_least, n_most: how many of these it can hold at all."""

    path: Path
    file: io.BufferedReader
    stream: BinaryIO | Inflated
    n_least: int
    n_most: int


@contextmanager
def _opened(path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[_Opened]:
    """chunk_bytes: of a compressed file, read at once."""
    status = path.stat()
    mode, n_stored = status.st_mode, status.st_size
    if stat.S_ISDIR(mode):
        raise CaseError(f"{path}: is a folder, not a NIfTI file")
    if not stat.S_ISREG(mode):  # opening a named pipe, or reading a device, need never end
        raise CaseError(f"{path}: is not a regular file but a pipe or device; write the image to a file first")
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_SIGNATURE
        file.seek(0)
        if compressed:
            yield _Opened(path, file, Inflated(file, chunk_bytes=chunk_bytes), 0, n_stored * MOST_INFLATED)
        else:
            yield _Opened(path, file, file, n_stored, n_stored)


def _promised(opened: _Opened) -> tuple[bytes, Header, Shape, int]:
    """The first bytes, the header and the shape in them, and how many bytes these promise; the file can hold so many."""
    path = opened.path
    head = opened.stream.read(nib.Nifti2Header.sizeof_hdr)
    header = header_in(head, path)
    shape = checked_shape(header, path)
    n_bytes = checked_data_offset(header, path) + math.prod(shape) * header.get_data_dtype().itemsize
    if opened.n_most < n_bytes:  # before memory is given to a mere promise
        raise _truncated(path, n_bytes)
    if max(opened.n_least, len(head)) > n_bytes:
        raise _too_long(path, n_bytes)
    return head, header, shape, n_bytes


def _read(opened: _Opened, head: bytes, n_bytes: int) -> _Bytes:
    """Read as many bytes as the header promises, then to the end, which verifies a compressed stream's check sum."""
    content = np.empty(n_bytes, dtype=np.uint8)  # numpy's memory comes in larger pages, and so sooner, than bytes' does
    n_read = len(head)
    content[:n_read] = np.frombuffer(head, dtype=np.uint8)
    while n_read < n_bytes:
        piece = opened.stream.read(min(CHUNK_BYTES, n_bytes - n_read))
        if not piece:
            raise _truncated(opened.path, n_bytes)
        content[n_read : n_read + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        n_read += len(piece)
    if opened.stream.read(1):
        raise _too_long(opened.path, n_bytes)
    return content


def _voxels(content: _Bytes, header: Header, shape: Shape, path: Path) -> npt.NDArray[Any]:
    dtype, offset = header.get_data_dtype(), checked_data_offset(header, path)
    raw = np.frombuffer(content, dtype, count=math.prod(shape), offset=offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1.0, 0.0):
        return raw.astype(dtype.newbyteorder("="), order="K", copy=False)
    return np.asarray(raw.astype(np.float64, order="K") * slope + intercept)


def _truncated(path: Path, n_bytes: int) -> CaseError:
    return CaseError(f"{path}: is truncated: its header promises {n_bytes} bytes; copy or download it again")


def _too_long(path: Path, n_bytes: int) -> CaseError:
    return damaged(path, f"the file is longer than the {n_bytes} bytes that its header promises")
