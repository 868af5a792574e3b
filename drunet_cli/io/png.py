"""PNG slices: RGBA images of the four modalities, and label slices.

The pixels are those that the published scripts write. One fixed filter and run-length deflate take a fraction of the time
that Pillow takes, for files of about the same size (tests/benchmarks/convert.py). Files that come in are
taken as hostile: nothing of a size that the header merely claims is decoded, and every check sum is verified.
"""

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from drunet_cli.brats import N_CLASSES, ClassMap
from drunet_cli.errors import CaseError, MisuseError

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">IIBBBBB")
_CHANNELS_BY_COLOUR_TYPE: Final = {0: 1, 2: 3, 6: 4}
_COLOUR_TYPES: Final = {channels: colour_type for colour_type, channels in _CHANNELS_BY_COLOUR_TYPE.items()}
_OTHER_COLOUR_TYPES: Final = {3: "a palette", 4: "grey with alpha"}
_FILTER_SUB: Final = 1  # each byte less that of the pixel before it
_OPAQUE: Final = 255
_LARGEST_BYTES: Final = 2**22  # a frame of RGBA that does not compress at all takes 231 kB
_PICTURE_SIZE: Final = struct.Struct(">II")  # columns, rows
_PICTURE_SIZE_AT: Final = slice(16, 24)
_LARGEST_PICTURE: Final = 2**24
_WEBP_QUALITY, _WEBP_EFFORT = 75, 2
PUBLISHED_STEP: Final = 50  # evaluate.py writes the class index x 50 in red

Pixels = npt.NDArray[np.uint8]


class DamagedPngError(CaseError):
    """A PNG file that is not as it was written: truncated, or with a check sum that does not agree."""


def encode_slices(stack: Pixels) -> list[bytes]:
    """Slices [N, rows, columns, channels] as PNG files: one channel is grey, three are RGB, four RGBA.

    Equal pixels give equal bytes.
    """
    n_slices, rows, columns, channels = stack.shape
    lines = stack.reshape(n_slices, rows, columns * channels)
    filtered = np.empty((n_slices, rows, 1 + columns * channels), dtype=np.uint8)
    filtered[..., 0] = _FILTER_SUB
    filtered[..., 1 : 1 + channels] = lines[..., :channels]
    np.subtract(lines[..., channels:], lines[..., :-channels], out=filtered[..., 1 + channels :])
    return [_file((rows, columns, channels), _deflated(lines)) for lines in filtered]


def encode_label_slices(classes: ClassMap) -> list[bytes]:
    """Class indices [N, X, Y] as the published training masks have them: RGB, the index in all three channels."""
    files = encode_slices(np.zeros((1, *classes.shape[1:], 3), dtype=np.uint8)) * len(classes)  # most show no tumour
    labelled = np.flatnonzero(classes.any(axis=(1, 2)))
    for index, file in zip(labelled, encode_slices(np.repeat(classes[labelled, ..., np.newaxis], 3, axis=3)), strict=True):
        files[index] = file
    return files


def read_slice_file(path: Path, size: tuple[int, int]) -> Pixels:
    """The pixels [rows, columns, channels] of a slice, as `decode_png` gives them.

    Raises CaseError that names the file, also for a pipe, whose end might never come.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CaseError(f"{path}: is not a regular file")
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise CaseError(f"{path}: is larger than any slice of {size[0]} x {size[1]} pixels")
    try:
        return decode_png(content, size)
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from error


def read_label_slice(path: Path, size: tuple[int, int]) -> ClassMap:
    """Class indices [rows, columns] of a label slice, as `label_slice` has them. Raises CaseError that names the file."""
    pixels = read_slice_file(path, size)
    try:
        return label_slice(pixels)
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from error


def decode_png(content: bytes, size: tuple[int, int]) -> Pixels:
    """The pixels [rows, columns, channels] of a PNG file of 8-bit grey, RGB or RGBA, and of this size (rows, columns).

    Raises CaseError, without a file name, for any other kind or size, and for a file that is damaged anywhere.
    """
    if not content.startswith(_SIGNATURE):
        if content.strip(b"\0"):
            raise CaseError("is not a PNG file")
        raise DamagedPngError("is not a PNG file" if content else "is empty")
    compressed = []
    channels = 0
    for position, (kind, payload) in enumerate(_chunks(content)):
        if (kind == b"IHDR") != (position == 0):
            raise CaseError("is damaged: its header is not where it must be")
        if kind == b"IHDR":
            channels = _checked_header(payload, size)
        elif kind == b"IDAT":
            compressed.append(payload)
        elif kind == b"tRNS":
            raise CaseError("has a transparent colour; save it without transparency")
    from PIL import Image  # writing does without

    rows, columns = size
    deflated = b"".join(compressed)
    _check_deflated(deflated, rows * (1 + columns * channels))
    # Pillow would take pixels from other chunks too, and stumble over what they hold: it is given the verified ones alone.
    verified = _file((rows, columns, channels), deflated)
    try:
        with Image.open(io.BytesIO(verified), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except OSError as error:  # a filter that does not exist
        raise CaseError(f"is damaged: {error}") from error
    return pixels.reshape(rows, columns, channels)


def encode_webp(content: bytes, *, width: int) -> tuple[bytes, int, int]:
    """A PNG picture as WebP, smaller where it is wider than this; with its width and height.

    Raises CaseError as `decode_png` does, MisuseError where Pillow lacks WebP.
    """
    from PIL import Image, features

    if not features.check("webp"):
        raise MisuseError(
            "a Pillow with WebP is needed, which this one was built without: pip install --force-reinstall pillow"
        )
    rows, columns = _PICTURE_SIZE.unpack(content[_PICTURE_SIZE_AT].ljust(_PICTURE_SIZE.size, b"\0"))[::-1]
    if rows * columns > _LARGEST_PICTURE:
        raise CaseError(f"has {rows} x {columns} pixels (rows x columns), more than a picture may have")
    picture = Image.fromarray(decode_png(content, (rows, columns)).squeeze()).convert("RGB")
    if columns > width:
        picture = picture.resize((width, max(1, round(rows * width / columns))), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="WEBP", quality=_WEBP_QUALITY, method=_WEBP_EFFORT)
    return stream.getvalue(), *picture.size


def label_slice(pixels: Pixels) -> ClassMap:
    """Class indices [X, Y] of a decoded label slice.

    Read are the index in every channel (training masks), and 50 times the index in red alone (the published predictions).
    Raises CaseError, without a file name, that tells the first colour which is neither.
    """
    colour, alpha = (pixels[..., :3], pixels[..., 3]) if pixels.shape[2] == 4 else (pixels, None)
    red = colour[..., 0]
    uniform = np.all(colour == red[..., np.newaxis], axis=2)
    ours = uniform & (red < N_CLASSES)
    published = ~uniform & (red % PUBLISHED_STEP == 0) & (red < PUBLISHED_STEP * N_CLASSES) & ~colour[..., 1:].any(axis=2)
    if published.any() and (mixed := ours & (red > 0)).any():
        (row, column), (other_row, other_column) = (np.argwhere(mask)[0].tolist() for mask in (mixed, published))
        raise CaseError(
            f"mixes two layouts: the class index in every channel (row {row}, column {column}), and {PUBLISHED_STEP} times it "
            f"in red alone (row {other_row}, column {other_column})"
        )
    illegal = ~(ours | published)
    if alpha is not None:
        illegal |= alpha != _OPAQUE
    if illegal.any():
        row, column = (int(index) for index in np.argwhere(illegal)[0])
        values = ", ".join(str(int(value)) for value in pixels[row, column])
        raise CaseError(
            f"has {int(illegal.sum())} pixels of illegal colour, the first ({values}) in row {row}, column {column}; a label "
            f"slice holds the class index 0-{N_CLASSES - 1} in every channel, or {PUBLISHED_STEP} times it in red alone"
        )
    return np.where(published, red // PUBLISHED_STEP, red)


def _deflated(lines: Pixels) -> bytes:
    """By zlib, not ISA-L, which is faster still but was seen to give equal pixels other bytes, once in some 10,000 slices."""
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return deflate.compress(lines.data) + deflate.flush()


def _file(shape: tuple[int, int, int], deflated: bytes) -> bytes:
    """shape: rows, columns, channels. deflated: the filtered scanlines."""
    rows, columns, channels = shape
    header = _HEADER.pack(columns, rows, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", deflated) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind)))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of every chunk up to IEND, each with its check sum verified."""
    position = len(_SIGNATURE)
    while True:
        if len(content) < position + 12:
            raise DamagedPngError("is truncated; copy or make it again")
        length = int.from_bytes(content[position : position + 4], "big")
        kind, end = content[position + 4 : position + 8], position + 8 + length
        if len(content) < end + 4:
            raise DamagedPngError("is truncated; copy or make it again")
        payload = content[position + 8 : end]
        if zlib.crc32(payload, zlib.crc32(kind)) != int.from_bytes(content[end : end + 4], "big"):
            raise DamagedPngError("is damaged: a check sum does not agree; copy or make it again")
        yield kind, payload
        if kind == b"IEND":
            return
        position = end + 4


def _checked_header(payload: bytes, size: tuple[int, int]) -> int:
    """The number of channels."""
    if len(payload) != _HEADER.size:
        raise CaseError("is damaged: its header has the wrong length")
    columns, rows, bits, colour_type, _, _, interlaced = _HEADER.unpack(payload)
    if (rows, columns) != size:
        raise CaseError(f"has {rows} x {columns} pixels (rows x columns), not {size[0]} x {size[1]}")
    if colour_type in _OTHER_COLOUR_TYPES:
        raise CaseError(f"has {_OTHER_COLOUR_TYPES[colour_type]}; save it as 8-bit RGB")
    if bits != 8 or colour_type not in _CHANNELS_BY_COLOUR_TYPE:
        raise CaseError(f"has {bits} bits a channel; save it as 8-bit RGB")
    if interlaced:
        raise CaseError("is interlaced; save it without interlacing")
    return _CHANNELS_BY_COLOUR_TYPE[colour_type]


def _check_deflated(compressed: bytes, n_bytes: int) -> None:
    """That the pixels are all there and their check sum agrees: Pillow takes missing ones for 0, and reads no check sum."""
    inflate = isal_zlib.decompressobj()
    try:
        n_inflated = len(inflate.decompress(compressed, n_bytes + 1))
    except isal_zlib.error as error:  # type: ignore[misc]  # a class, whatever its stub says
        raise DamagedPngError("is damaged: its compressed data are corrupt; copy or make it again") from error
    if n_inflated != n_bytes or not inflate.eof:
        raise DamagedPngError("is damaged: it holds another number of pixels than its header says; copy or make it again")
