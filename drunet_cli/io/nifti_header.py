"""Headers of NIfTI files: told by their bytes, and checked as hostile before anything of their size is read."""

import logging
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt

from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import axcodes, farthest_corner_mm, spacing_mm
from drunet_cli.io.inflated import GZIP_SIGNATURE

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
