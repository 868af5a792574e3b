"""NIfTI files to arrays and label maps to NIfTI files: with nifti_header, the only modules that know the format.

Files are taken as hostile: every size is checked before memory is given, every byte of a compressed file is read so that its
check sum is verified, and whatever is wrong ends in one CaseError that names the file.
"""

import gzip
import hashlib
import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from drunet_cli.brats import LabelMap
from drunet_cli.errors import CaseError
from drunet_cli.io.inflated import CHUNK_BYTES, CORRUPT, GZIP_SIGNATURE, MOST_INFLATED, Inflated
from drunet_cli.io.nifti_header import (
    MOST_AXES,
    Grid,
    Header,
    Shape,
    check_perpendicular,
    checked_affine,
    checked_data_offset,
    checked_shape,
    damaged,
    header_in,
    implausible,
    new_header,
)

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
