"""Reading gzip files of any number of members, whole, early ended, damaged, and hostile."""

import gzip
import itertools
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Final

import numpy as np
import pytest

from drunet_cli.io.nifti import CORRUPT, MOST_INFLATED, Inflated

CHUNK_BYTES: Final = 2**17  # that inflated.py takes from the file at a time
FEXTRA, FNAME, FCOMMENT = 4, 8, 16  # flags of a gzip header: RFC 1952


def noise(n_bytes: int, seed: int = 0, *, top: int = 256) -> bytes:
    return np.random.default_rng(seed).integers(0, top, n_bytes, dtype=np.uint8).tobytes()


def member(content: bytes, level: int = 6) -> bytes:
    return gzip.compress(content, level, mtime=0)


def named_member(content: bytes, *, extra: bytes = b"", name: bytes = b"", comment: bytes = b"") -> bytes:
    """With the optional fields that gzip, bgzip and others write."""
    plain = member(content)
    flags = (FEXTRA if extra else 0) | (FNAME if name else 0) | (FCOMMENT if comment else 0)
    fields = (struct.pack("<H", len(extra)) + extra if extra else b"") + b"".join(
        text + b"\0" for text in (name, comment) if text
    )
    return plain[:3] + bytes([flags]) + plain[4:10] + fields + plain[10:]


def read_all(content: bytes, n_bytes: int) -> bytes:
    """In reads of so many bytes, each of which is full but the last."""
    stream = Inflated(BytesIO(content))
    pieces = []
    while len(piece := stream.read(n_bytes)) == n_bytes:
        pieces.append(piece)
    assert stream.read(1) == stream.read(10**6) == b""
    return b"".join([*pieces, piece])


def outcome(content: bytes) -> bytes | None:
    """What is read, or None where it is refused in one of the ways that are promised."""
    try:
        return read_all(content, 64)
    except EOFError:
        return None
    except CORRUPT:
        return None


# --- whole


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 7, 348, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10**7])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_reads_of_any_size_give_the_content(n_bytes: int, level: int) -> None:
    content = noise(40_000 if n_bytes < 300 else 400_000, top=5)
    assert read_all(member(content, level), n_bytes) == content


def test_reads_of_changing_size_give_the_content() -> None:
    content = noise(500_000, top=3)
    stream = Inflated(BytesIO(member(content)))
    sizes = np.random.default_rng(1).integers(0, 9000, 200).tolist()
    assert b"".join(stream.read(size) for size in sizes) == content[: sum(sizes)]


def test_a_read_of_nothing_gives_nothing_and_loses_nothing() -> None:
    stream = Inflated(BytesIO(member(b"content")))
    assert (stream.read(0), stream.read(3), stream.read(0), stream.read(9)) == (b"", b"con", b"", b"tent")


def test_members_of_any_size_are_read_as_one() -> None:
    sizes = [0, 1, 2, 3, 0, 0, 100, 65_280, 1, 70_000, 0, 5]
    contents = [noise(size, seed, top=1 + 50 * (seed % 6)) for seed, size in enumerate(sizes)]
    content = b"".join(member(part, level) for level, part in enumerate(contents[:10])) + b"".join(map(member, contents[10:]))
    for n_bytes in (1000, 65_280, 10**6):
        assert read_all(content, n_bytes) == gzip.decompress(content) == b"".join(contents)


# ISA-L loses its place in a header of which it gets only a part that ends before the last optional field; zlib does not.
HEADERS: Final = [
    pytest.param({}, id="none"),
    pytest.param({"name": b"seg.nii"}, id="name"),
    pytest.param({"extra": b"BC\2\0\x1b\0"}, id="extra"),
    *(
        pytest.param(fields, id="+".join(fields))
        for fields in ({"extra": b"BC\2\0\x1b\0", "name": b"seg.nii"}, {"name": b"seg.nii", "comment": b"a comment"})
    ),
]


@pytest.mark.parametrize("fields", HEADERS)
@pytest.mark.parametrize("padded", [False, True])
def test_members_may_begin_and_end_anywhere_in_what_is_taken_from_the_file(fields: dict[str, bytes], padded: bool) -> None:
    whole = named_member(b"second", **fields)
    for before in range(CHUNK_BYTES - len(whole) - 1, CHUNK_BYTES + 2):  # the border falls once on every byte of it
        first = member(b"first") if padded else member(noise(CHUNK_BYTES // 2), 0)
        room = before - len(first)
        filling = b"\0" * room if padded else named_member(b"", name=b"x" * (room - len(member(b"")) - 1))
        content = first + filling + whole + member(b"third")
        assert content.index(whole) == before
        assert read_all(content, 50_000).endswith(b"secondthird")


def test_thousands_of_tiny_members_are_read() -> None:
    contents = [bytes([n % 256]) * (n % 4) for n in range(20_000)]  # 460 kB: across several chunks
    content = b"".join(gzip_of[part] for gzip_of in [{part: member(part) for part in set(contents)}] for part in contents)
    assert len(content) > 3 * CHUNK_BYTES
    assert read_all(content, 1000) == b"".join(contents)


def test_every_optional_field_of_a_header_is_passed_over() -> None:
    for extra, name, comment in itertools.product(
        (b"", b"BC\2\0\x1b\0", b"x" * 30_000), (b"", b"seg.nii"), (b"", b"a comment")
    ):
        content = named_member(b"content", extra=extra, name=name, comment=comment)
        assert read_all(content * 2, 100) == b"content" * 2
    assert read_all(named_member(b"content", name=b"n" * 200_000), 100) == b"content"  # longer than a chunk


@pytest.mark.parametrize("n_zeros", [1, 2, 511, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_zeros_between_and_behind_members_are_padding(n_zeros: int) -> None:
    content = member(b"first") + b"\0" * n_zeros + member(b"second") + b"\0" * n_zeros
    assert read_all(content, 100) == gzip.decompress(content) == b"firstsecond"


def test_a_flushed_stream_and_stored_blocks_are_read() -> None:
    deflate = zlib.compressobj(wbits=31)
    parts = [noise(n, n, top=9) for n in (0, 1, 70_000, 3)]
    content = b"".join(deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in parts) + deflate.flush()
    assert read_all(content + member(noise(200_000), 0), 999) == b"".join(parts) + noise(200_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_members_equals_what_gzip_makes_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(int(rng.integers(1, 60))):
        part = noise(int(rng.choice([0, 1, 2, 100, 5000, 40_000])), int(rng.integers(99)), top=int(rng.choice([2, 4, 256])))
        texts = {field: b"x" * int(rng.integers(0, 300)) for field in ("extra", "name", "comment") if rng.random() < 0.3}
        parts += [named_member(part, **texts) if texts else member(part, int(rng.integers(10)))]
        parts += [b"\0" * int(rng.choice([0, 0, 1, 7, 600]))]
    content = b"".join(parts)
    for n_bytes in (997, 30_000, CHUNK_BYTES, 10**7):
        assert read_all(content, n_bytes) == gzip.decompress(content)


# --- damaged

SMALL: Final = [
    pytest.param([noise(300, top=9)], id="one member"),
    pytest.param([noise(60, top=9), b"", b"second", b"x"], id="four members"),
]


@pytest.mark.parametrize("contents", SMALL)
def test_a_file_that_ends_early_is_refused_wherever_it_ends(contents: list[bytes]) -> None:
    content = b"".join(map(member, contents))
    ends = {sum(len(member(part)) for part in contents[:n]): b"".join(contents[:n]) for n in range(1, len(contents) + 1)}
    for length in range(len(content) + 1):
        if length in ends:  # a shorter file, but a whole one
            assert read_all(content[:length], 64) == ends[length]
        else:
            with pytest.raises(EOFError):
                read_all(content[:length], 64)


def flipped(content: bytes) -> Iterator[bytes]:
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        yield bytes(damaged)


@pytest.mark.parametrize("contents", SMALL)
def test_a_file_with_one_bit_changed_is_refused_or_gives_the_same_content(contents: list[bytes]) -> None:
    content = b"".join(map(member, contents))
    results = [outcome(damaged) for damaged in flipped(content)]
    assert set(results) == {None, b"".join(contents)}
    # Of a header's 10 bytes 6 say nothing of the content (time, system), and some flags, such as that it is text, say little.
    assert sum(result is not None for result in results) <= len(contents) * (6 * 8 + 8 + 8)


@pytest.mark.parametrize("offset", [-1, -4, -5, -8])  # RFC 1952: the trailer is CRC-32 and length
def test_a_wrong_check_sum_or_length_is_found_in_every_member(offset: int) -> None:
    damaged = bytearray(member(b"content"))
    damaged[offset] ^= 1
    for content in (bytes(damaged), member(b"before") + bytes(damaged), bytes(damaged) + member(b"behind")):
        with pytest.raises(CORRUPT):
            read_all(content, 100)


def test_a_wrong_check_sum_is_found_when_no_more_than_the_content_has_been_asked_for() -> None:
    damaged = bytearray(member(b"content"))
    damaged[-6] ^= 1
    stream = Inflated(BytesIO(bytes(damaged)))
    with pytest.raises(CORRUPT):
        assert stream.read(7) + stream.read(1) == b"content"


@pytest.mark.parametrize("behind", [b"x", b"\x1f", b"\x1f\x8c", b"\x1e\x8b", b"\0\0x", b"PK\3\4", b"\x1f\x8b\x07" + b"\0" * 20])
def test_anything_else_behind_a_member_is_refused(behind: bytes) -> None:
    assert outcome(member(b"content") + behind) is None
    assert outcome(member(b"content") + b"\0" * CHUNK_BYTES + behind) is None


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8b", b"\0" * 20, b"no gzip file", zlib.compress(b"content")])
def test_a_file_that_is_not_gzip_is_refused(content: bytes) -> None:
    assert outcome(content) is None


def test_the_content_before_the_damage_is_given_and_then_the_error() -> None:
    stream = Inflated(BytesIO(member(b"first") + member(noise(5000))[:-3000]))
    assert stream.read(5) == b"first"
    with pytest.raises(EOFError):
        stream.read(5000)


# --- bombs


def bomb(n_mib: int) -> bytes:
    """So many MiB of zeros in about a thousandth of that; its check sum is not theirs."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(b"\0" * 2**20) + deflate.flush(zlib.Z_FULL_FLUSH)
    return member(b"")[:10] + block * n_mib + b"\x03\0" + b"\0" * 8


def test_a_bomb_takes_no_more_memory_than_is_asked_for() -> None:
    stream = Inflated(BytesIO(bomb(1024)))
    tracemalloc.start()
    try:
        for _ in range(20):
            assert stream.read(348) == bytes(348)
            assert stream.read(2**17) == bytes(2**17)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**21  # a chunk of the file, what is left of it, and a read, each 128 KiB


def test_a_bomb_of_empty_members_takes_no_memory() -> None:
    content = member(b"") * 50_000
    tracemalloc.start()
    try:
        assert Inflated(BytesIO(content)).read(1) == b""
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**21


def test_no_stream_inflates_to_more_than_is_said() -> None:
    # nifti.py refuses by this number what cannot hold as much as its header promises: a good file must never exceed it.
    for content in (b"\0" * 2**24, b"ab" * 2**22, b"\xff" * 2**20):
        assert len(content) <= MOST_INFLATED * len(member(content, 9))
