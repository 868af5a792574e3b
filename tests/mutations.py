"""Damaged NIfTI files, made from good ones: the same ones every time, each with a name that says what was done."""

import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final, TypeAlias

import nibabel as nib
import numpy as np

SEED: Final = 20200711
HEADER_BYTES: Final = 348
_HEADER: Final = nib.Nifti1Header.template_dtype
_NAN, _INF = math.nan, math.inf

Value: TypeAlias = float | bytes
Change: TypeAlias = tuple[str, int, Value]  # field, element of it, new value

# Every field of the header with values that no scanner writes; where a field has one legal meaning for 3D, others of it.
_EXTREMES: Final[dict[str, dict[int, tuple[Value, ...]]]] = {
    "sizeof_hdr": {0: (0, -1, 347, 540, 0x5C010000)},  # the last is 348 in the other byte order
    "data_type": {0: (b"\xff" * 10,)},
    "db_name": {0: (b"\xff" * 18,)},
    "extents": {0: (-1,)},
    "session_error": {0: (-1,)},
    "regular": {0: (b"\xff",)},
    "dim_info": {0: (255,)},
    "dim": {
        0: (0, -1, 1, 2, 4, 7, 8, 32767),
        1: (0, -1, 1, 239, 32767),
        2: (0, -1, 2, 241, 32767),
        3: (0, -1, 1, 2, 4, 6, 32767),
        4: (0, 2, 32767),
        7: (-1,),
    },
    "intent_p1": {0: (_NAN,)},
    "intent_p2": {0: (_INF,)},
    "intent_p3": {0: (1e30,)},
    "intent_code": {0: (-1, 1007)},  # 1007: vectors
    "datatype": {0: (0, 1, 2, 8, 16, 32, 64, 128, 256, 512, 768, 1536, -1, 32767)},
    "bitpix": {0: (0, -1, 8)},
    "slice_start": {0: (-1,)},
    "slice_end": {0: (32767,)},
    "slice_code": {0: (255,)},
    "slice_duration": {0: (_NAN,)},
    "toffset": {0: (_INF,)},
    "pixdim": {0: (0, _NAN, 1e30), 1: (0, -1, _NAN), 2: (_INF, 1e30), 3: (1e-30, 0, 5), 4: (_NAN,)},
    "vox_offset": {0: (_NAN, _INF, 1e9, -5, 1, 351, 353, 400)},
    "scl_slope": {0: (0, _INF, 1e30, 1e-30, -1)},
    "scl_inter": {0: (_INF, 1e30, -1)},
    "xyzt_units": {0: (1, 3, 255)},
    "cal_max": {0: (_NAN,)},
    "cal_min": {0: (_INF,)},
    "glmax": {0: (-1,)},
    "glmin": {0: (-1,)},
    "descrip": {0: (b"\xff" * 80,)},
    "aux_file": {0: (b"/dev/zero\n",)},
    "qform_code": {0: (1, -1, 32767)},
    "sform_code": {0: (0, -1, 32767)},
    "quatern_b": {0: (_NAN,)},
    "quatern_c": {0: (2,)},
    "quatern_d": {0: (-_INF,)},
    "qoffset_x": {0: (_NAN,)},
    "qoffset_y": {0: (_INF,)},
    "qoffset_z": {0: (1e30,)},
    "srow_x": {0: (0, _NAN, -1e30), 3: (_INF,)},
    "srow_y": {1: (0, 1e30), 3: (1e30,)},
    "srow_z": {0: (0.9, _NAN), 2: (0, 1e-30, -1, 3)},
    "intent_name": {0: (b"\xff" * 16,)},
    "magic": {0: (b"ni1\0", b"n+2\0", b"n+1\n", b"\0\0\0\0")},
}


def _truncated(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: int(generator.integers(len(content)))]


def _inserted(content: bytes, generator: np.random.Generator) -> bytes:
    place = int(generator.integers(len(content)))
    return content[:place] + generator.bytes(int(generator.integers(1, 1000))) + content[place:]


def _removed(content: bytes, generator: np.random.Generator) -> bytes:
    place = int(generator.integers(len(content)))
    return content[:place] + content[place + int(generator.integers(1, 1000)) :]


def _flipped(content: bytes, generator: np.random.Generator) -> bytes:
    place = int(generator.integers(len(content)))
    return content[:place] + bytes([content[place] ^ 1 << int(generator.integers(8))]) + content[place + 1 :]


# What is done to the bytes of a file, compressed or not.
_DAMAGES: Final[dict[str, Callable[[bytes, np.random.Generator], bytes]]] = {
    **{f"truncated {n}": _truncated for n in range(4)},
    **{f"bytes inserted {n}": _inserted for n in range(2)},
    **{f"bytes removed {n}": _removed for n in range(2)},
    **{f"bit flipped {n}": _flipped for n in range(4)},
    **{f"bit flipped in the header {n}": lambda c, g: _flipped(c[:HEADER_BYTES], g) + c[HEADER_BYTES:] for n in range(4)},
    "header cut": lambda content, _: content[:200],
    "bit flipped in check sum or length": lambda content, generator: content[:-8] + _flipped(content[-8:], generator),
    "garbage appended": lambda content, generator: content + generator.bytes(999),
    "of zero length": lambda *_: b"",
    "noise after the first two bytes": lambda content, generator: content[:2] + generator.bytes(len(content)),
    "compressed once more": lambda content, _: gzip.compress(content, mtime=0),
    "header alone byte-swapped": lambda c, _: np.frombuffer(c[:HEADER_BYTES], _HEADER).byteswap().tobytes() + c[HEADER_BYTES:],
}


@dataclass(frozen=True)
class Mutation:
    """One damaged file. name: what was done to the good one; suffix: the one that its content was meant to have."""

    name: str
    suffix: str
    content: bytes


def mutations(good: Sequence[Path]) -> Iterator[Mutation]:
    """Damaged files; the n-th is made from the n-th good one, beginning again after the last.

    good: NIfTI-1 files, compressed, little-endian, without extensions.
    """
    generator, sources = np.random.default_rng(SEED), cycle([gzip.decompress(path.read_bytes()) for path in good])
    fields = [(field, at, value) for field, values in _EXTREMES.items() for at, each in values.items() for value in each]
    for n, (field, at, value) in enumerate(fields):
        content, name = with_fields(next(sources), [(field, at, value)]), f"{field}[{at}] = {value!r}"
        if n // len(good) % 2:
            yield Mutation(f".nii: {name}", ".nii", content)
        else:
            yield Mutation(f".nii.gz: {name}", ".nii.gz", gzip.compress(content, 1, mtime=0))
    for name, damage in _DAMAGES.items():
        yield Mutation(f".nii: {name}", ".nii", damage(next(sources), generator))
        yield Mutation(f".nii.gz: {name}", ".nii.gz", damage(gzip.compress(next(sources), 1, mtime=0), generator))


def with_fields(nifti: bytes, changes: Sequence[Change]) -> bytes:
    """A NIfTI-1 file with header fields set to any bytes or numbers, checked by nobody."""
    header = np.frombuffer(nifti[:HEADER_BYTES], _HEADER.newbyteorder("<")).copy()
    for field, element, value in changes:
        header[field].reshape(-1)[element] = value
    return header.tobytes() + nifti[HEADER_BYTES:]
