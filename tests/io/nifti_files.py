"""Small NIfTI files, as bytes to be damaged, and what is said of them."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.errors import CaseError
from drunet_cli.io.nifti import load_volume

SHAPE: Final = (7, 6, 5)
AFFINE: Final = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 2], [0, 0, 2, -4], [0, 0, 0, 1]])
# The largest block that the reader asks for is 1 MiB; a refused file may cost a few of these, not what its header claims.
REFUSAL_BYTES: Final = 8 * 2**20


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


def refused_within_a_few_mebibytes(path: Path) -> str:
    tracemalloc.start()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < REFUSAL_BYTES
    return message
