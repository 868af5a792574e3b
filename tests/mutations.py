"""Damaged NIfTI files, made from good ones: the same from the same seed, each with a name that says what was done."""

import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final, TypeAlias

import nibabel as nib
import numpy as np

N_MUTATIONS: Final = 200
SEED: Final = 20200711

HEADER_BYTES: Final = 348
VOXELS_BEGIN: Final = 352
_HEADER: Final = nib.Nifti1Header.template_dtype
_NAN, _INF = math.nan, math.inf

Value: TypeAlias = float | bytes
Change: TypeAlias = tuple[str, int, Value]  # field, element of it, new value
Damage: TypeAlias = Callable[[bytes, np.random.Generator], tuple[bytes, str]]  # to the damaged bytes, and where or how much

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
# Fields that count only together with others.
_BY_QFORM: Final[tuple[Change, ...]] = (("sform_code", 0, 0), ("qform_code", 0, 1))
_TOGETHER: Final[tuple[tuple[Change, ...], ...]] = (
    (*_BY_QFORM, ("quatern_b", 0, _NAN)),
    (*_BY_QFORM, ("quatern_c", 0, 2.0)),
    (*_BY_QFORM, ("pixdim", 0, _NAN)),
    (*_BY_QFORM, ("pixdim", 1, 0)),
    (*_BY_QFORM, ("pixdim", 2, -1)),
    (*_BY_QFORM, ("pixdim", 3, _INF)),
    (*_BY_QFORM, ("qoffset_x", 0, 1e30)),
    (("scl_slope", 0, 1), ("scl_inter", 0, _NAN)),
    (("scl_slope", 0, -1), ("scl_inter", 0, 1000)),
    (("dim", 1, 32767), ("dim", 2, 32767), ("dim", 3, 32767)),
    (("dim", 1, 32767), ("dim", 2, 32767), ("datatype", 0, 1536)),
    (("srow_x", 0, 0), ("srow_y", 1, 0), ("srow_z", 2, 0)),
)


@dataclass(frozen=True)
class Mutation:
    """One damaged file. name: what was done to the good one; suffix: the one that its content was meant to have."""

    name: str
    suffix: str
    content: bytes


@dataclass(frozen=True)
class _Way:
    """A damage to the bytes as stored, compressed or not."""

    name: str
    compressed: bool
    damage: Damage


def mutations(good: Sequence[Path], *, seed: int = SEED) -> list[Mutation]:
    """N_MUTATIONS damaged files; the n-th is made from the n-th good one, beginning again after the last.

    good: NIfTI-1 files, compressed, little-endian, without extensions.
    """
    generator = np.random.default_rng(seed)
    ways = list(islice(_ways(), N_MUTATIONS))
    generator.shuffle(ways)  # else the modalities would go with the kinds of damage
    sources = cycle([gzip.decompress(path.read_bytes()) for path in good])
    return [_mutation(way, nifti, generator) for way, nifti in zip(ways, sources, strict=False)]


def with_fields(nifti: bytes, changes: Sequence[Change]) -> bytes:
    """A NIfTI-1 file with header fields set to any bytes or numbers, checked by nobody."""
    header = np.frombuffer(nifti[:HEADER_BYTES], _HEADER.newbyteorder("<")).copy()
    for field, element, value in changes:
        header[field].reshape(-1)[element] = value
    return header.tobytes() + nifti[HEADER_BYTES:]


def _mutation(way: _Way, nifti: bytes, generator: np.random.Generator) -> Mutation:
    suffix = ".nii.gz" if way.compressed else ".nii"
    content, place = way.damage(gzip.compress(nifti, 1, mtime=0) if way.compressed else nifti, generator)
    return Mutation(" ".join(f"{suffix}: {way.name} {place}".split()), suffix, content)


def _ways() -> Iterator[_Way]:
    """Without end, the last of them again and again."""
    alone = [((field, *change),) for field, values in _EXTREMES.items() for change in _each(values)]
    for n, changes in enumerate([*alone, *_TOGETHER]):
        yield _Way(_in_words(changes), compressed := n % 2 == 0, _set(changes, compressed=compressed))
    for compressed in (True, False):
        yield from 5 * [_Way("truncated", compressed, _truncated)]
        yield from 2 * [_Way("bytes inserted", compressed, _inserted)]
        yield from 2 * [_Way("bytes removed", compressed, _removed)]
        yield _Way("garbage appended", compressed, lambda content, generator: (content + generator.bytes(999), ""))
        yield _Way("of zero length", compressed, lambda *_: (b"", ""))
        yield _Way("noise after the first two bytes", compressed, _noise)
    yield from 2 * [_Way("truncated in the header", False, lambda *given: _truncated(*given, end=HEADER_BYTES))]
    yield from 6 * [_Way("bit flipped", True, _flipped)]
    yield from 2 * [_Way("bit flipped in check sum or length", True, lambda *given: _flipped(*given, begin=-8))]
    yield from 3 * [_Way("bit flipped in the voxels", False, lambda *given: _flipped(*given, begin=VOXELS_BEGIN))]
    yield _Way("gzip of gzip", True, lambda content, _: (gzip.compress(content, mtime=0), ""))
    yield _Way("gzip of nothing", True, lambda *_: (gzip.compress(b"", mtime=0), ""))
    yield _Way("header alone byte-swapped", False, _byte_swapped)
    while True:
        yield _Way("bit flipped in the header", False, lambda *given: _flipped(*given, end=HEADER_BYTES))


def _each(values: dict[int, tuple[Value, ...]]) -> Iterator[tuple[int, Value]]:
    return ((element, value) for element, several in values.items() for value in several)


def _in_words(changes: Sequence[Change]) -> str:
    return ", ".join(f"{field}[{element}] = {value!r}" for field, element, value in changes)


def _set(changes: Sequence[Change], *, compressed: bool) -> Damage:
    def damage(content: bytes, _: np.random.Generator) -> tuple[bytes, str]:
        if compressed:
            return gzip.compress(with_fields(gzip.decompress(content), changes), 1, mtime=0), ""
        return with_fields(content, changes), ""

    return damage


def _truncated(content: bytes, generator: np.random.Generator, *, end: int | None = None) -> tuple[bytes, str]:
    place = int(generator.integers(end or len(content)))
    return content[:place], f"to {place} bytes"


def _inserted(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    noise, place = generator.bytes(int(generator.integers(1, 1000))), int(generator.integers(len(content)))
    return content[:place] + noise + content[place:], f"at {place}: {len(noise)}"


def _removed(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    n_bytes, place = int(generator.integers(1, 1000)), int(generator.integers(len(content)))
    return content[:place] + content[place + n_bytes :], f"at {place}: {n_bytes}"


def _noise(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    return content[:2] + generator.bytes(len(content)), ""


def _byte_swapped(content: bytes, _: np.random.Generator) -> tuple[bytes, str]:
    return np.frombuffer(content[:HEADER_BYTES], _HEADER).byteswap().tobytes() + content[HEADER_BYTES:], ""


def _flipped(
    content: bytes, generator: np.random.Generator, *, begin: int | None = None, end: int | None = None
) -> tuple[bytes, str]:
    place = int(generator.choice(range(len(content))[begin:end]))
    bit = int(generator.integers(8))
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :], f"bit {bit} of byte {place}"
