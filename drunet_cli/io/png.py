"""PNG files: slices of the four modalities as RGBA, label slices, and pictures for people with letters in them.

Pillow reads slices and draws pictures. Writing slices is ours: one fixed filter and run-length deflate take a fraction of the
time that Pillow takes, for files of about the same size (tests/benchmarks/convert.py), and the pixels are those that the
published scripts write.
"""

import io
import stat
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, features

from drunet_cli.brats import N_CLASSES, ClassMap, Colour
from drunet_cli.errors import CaseError, MisuseError, name_file, without_folder

Pixels = npt.NDArray[np.uint8]

PUBLISHED_STEP: Final = 50  # evaluate.py writes the class index x 50 in red
_OPAQUE: Final = 255
_LARGEST_BYTES: Final = 2**22  # a frame of RGBA that does not compress at all takes 231 kB
_LARGEST_PICTURE: Final = 2**24  # pixels
_WEBP_QUALITY, _WEBP_EFFORT = 75, 2


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
    with name_file(path):
        return decode_png(_read(path, size), size)


def read_label_slice(path: Path, size: tuple[int, int]) -> ClassMap:
    """Class indices [rows, columns] of a label slice, as `decode_label_slice` gives them.

    Raises CaseError that names the file.
    """
    with name_file(path):
        return decode_label_slice(_read(path, size), size)


def decode_png(content: bytes, size: tuple[int, int]) -> Pixels:
    """The pixels [rows, columns, channels] of a PNG file of 8-bit grey, RGB, RGBA or palette colours, and of this size.

    size: rows, columns. Colours of a palette become RGB. Raises CaseError, without a file name, for any other kind or size,
    and DamagedPngError for a file that is truncated or has a wrong check sum.
    """
    image = _decoded(content, size)
    return _pixels(image.convert("RGB") if image.mode == _PALETTE else image)


def decode_label_slice(content: bytes, size: tuple[int, int]) -> ClassMap:
    """Class indices [rows, columns] of a label slice, as `label_slice` tells them from its pixels.

    A slice with a palette holds the class index in two ways. A picture that was reduced to a palette keeps its colours, and
    their places in the palette are chance; tools for annotation store the class index, and colours that please the eye. So the
    colours count where each of them is a label colour, and the indices elsewhere. Raises CaseError as `decode_png` does.
    """
    image = _decoded(content, size)
    if image.mode != _PALETTE:
        return label_slice(_pixels(image))
    try:
        return label_slice(_pixels(image.convert("RGB")))
    except CaseError:
        return label_slice(_pixels(image))


def encode_webp(content: bytes, *, width: int) -> tuple[bytes, int, int]:
    """A PNG picture as WebP, smaller where it is wider than `width`; with its width and height.

    Raises CaseError as `decode_png` does, MisuseError where Pillow lacks WebP.
    """
    if not features.check("webp"):
        raise MisuseError(
            "a Pillow with WebP is needed, which this one was built without: pip install --force-reinstall pillow"
        )
    columns, rows = _opened(content).size
    if rows * columns > _LARGEST_PICTURE:
        raise CaseError(f"has {rows} x {columns} pixels (rows x columns), more than a picture may have")
    picture = _decoded(content, (rows, columns)).convert("RGB")
    if columns > width:
        picture = picture.resize((width, max(1, round(rows * width / columns))), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="WEBP", quality=_WEBP_QUALITY, method=_WEBP_EFFORT)
    return stream.getvalue(), *picture.size


def label_slice(pixels: Pixels) -> ClassMap:
    """Class indices [X, Y] that the pixels of a label slice show.

    Two layouts are read: the index in every channel (training masks), and 50 times the index in red alone (the published
    predictions).
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


def _read(path: Path, size: tuple[int, int]) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CaseError("is not a regular file")
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise CaseError(f"cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise CaseError(f"is larger than any slice of {size[0]} x {size[1]} pixels")
    return content


_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER_AT: Final = slice(12, 16)
_BITS_AT: Final = 24  # in the header, which must come first
_PALETTE: Final = "P"
_MODES: Final = ("L", "RGB", "RGBA", _PALETTE)
_TRUNCATED_OR_DAMAGED: Final = "is truncated or damaged; copy or make it again"
# The exceptions of Pillow for a damaged file, beside OSError: of the chunks' own readers.
_DAMAGE: Final = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, zlib.error)


def _decoded(content: bytes, size: tuple[int, int]) -> Image.Image:
    """The image, its pixels read, every check sum verified, and of a kind and size that a slice may have."""
    image = _opened(content)
    columns, rows = image.size
    if (rows, columns) != size:  # before anything of that size is decoded
        raise CaseError(f"has {rows} x {columns} pixels (rows x columns), not {size[0]} x {size[1]}")
    bits = content[_BITS_AT]
    if image.mode not in _MODES or (bits != 8 and image.mode != _PALETTE):
        kind = "grey with alpha" if image.mode == "LA" else f"{bits} bits a channel"
        raise CaseError(f"has {kind}; save it as 8-bit RGB")
    if "transparency" in image.info and image.mode != _PALETTE:
        raise CaseError("has a transparent colour; save it without transparency")
    try:
        image.verify()
        image = _opened(content)  # an image that has been verified cannot be loaded
        image.load()
    except _DAMAGE as error:
        raise DamagedPngError(_TRUNCATED_OR_DAMAGED) from error
    return image


def _opened(content: bytes) -> Image.Image:
    """The image, of which no pixel has been read."""
    if not content.startswith(_SIGNATURE):
        if not content.strip(b"\0") or _SIGNATURE.startswith(content):  # what a machine that lost its power may leave
            raise DamagedPngError("is not a PNG file" if content else "is empty")
        raise CaseError("is not a PNG file")
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG",))
    except Image.DecompressionBombError as error:
        raise CaseError("has more pixels than a picture may have") from error
    except _DAMAGE as error:
        raise DamagedPngError(_TRUNCATED_OR_DAMAGED) from error
    if content[_HEADER_AT] != b"IHDR":
        raise CaseError("is damaged: its header is not where it must be")
    return image


def _pixels(image: Image.Image) -> Pixels:
    """[rows, columns, channels]."""
    return np.asarray(image).reshape(image.height, image.width, len(image.getbands()))


_HEADER: Final = struct.Struct(">IIBBBBB")
_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}  # by channels: grey, RGB, RGBA
_FILTER_SUB: Final = 1  # each byte less that of the pixel before it


def _deflated(lines: Pixels) -> bytes:
    """By zlib, not ISA-L, which is faster still but was seen to give equal pixels other bytes, once in some 10,000 slices."""
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return deflate.compress(lines.data) + deflate.flush()


def _file(shape: tuple[int, int, int], deflated: bytes) -> bytes:
    """The content of a PNG file. shape: rows, columns, channels. deflated: the filtered scanlines."""
    rows, columns, channels = shape
    header = _HEADER.pack(columns, rows, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", deflated) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind)))


_ELLIPSIS: Final = "..."
_SMOOTH: Final = 4  # times finer a ring is drawn than it is shown
_COMPRESSION: Final = 3  # zlib's 6 takes twice the time for 4 % less


def check_drawable() -> None:
    """Raise MisuseError where Pillow was built without FreeType, which draws its letters; the wheels of PyPI have it."""
    if not features.check("freetype2"):
        raise MisuseError(
            "preview=True needs a Pillow with FreeType, which this one was built without: pip install --force-reinstall pillow"
        )


BLACK: Final[Colour] = (0, 0, 0)
WHITE: Final[Colour] = (255, 255, 255)
LIGHT: Final[Colour] = (225, 225, 225)  # of most words
DIM: Final[Colour] = (160, 160, 160)


class Canvas:
    """An RGB picture to draw on. Places are (x, y) in pixels from the top left; sizes of text are the em in pixels."""

    def __init__(self, width: int, height: int, background: Colour) -> None:
        self._image = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, place: tuple[int, int], words: str, *, size: int, colour: Colour, anchor: str = "ls") -> None:
        """One line. anchor: Pillow's two letters, l, m or r across and s (baseline) or m (middle) down."""
        self._draw.text(place, words, fill=colour, font=_font(size), anchor=anchor)

    def first_warning(self, place: tuple[int, int], warnings: Sequence[str], *, size: int, width: int) -> None:
        """The first of several warnings and how many more there are, in one line of at most `width` pixels."""
        if warnings:
            more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
            words = fitted(f"Warning: {without_folder(warnings[0])}", size, width - text_width(more, size))
            self.text(place, words + more, size=size, colour=LIGHT)

    def paste(self, pixels: Pixels, place: tuple[int, int]) -> None:
        """Put pixels [rows, columns, 3] into the picture, their top left corner at `place`."""
        self._image.paste(Image.fromarray(pixels), place)

    def rectangle(self, place: tuple[int, int], width: int, height: int, colour: Colour) -> None:
        """Fill a rectangle whose top left corner is at `place`."""
        self._draw.rectangle((*place, place[0] + width - 1, place[1] + height - 1), fill=colour)

    def ring(self, centre: tuple[int, int], radius: int, width: int, colour: Colour) -> None:
        """Draw a circle line whose outer edge is at the radius."""
        side = 2 * radius + 1
        stencil = Image.new("L", (side * _SMOOTH, side * _SMOOTH))
        outer = side * _SMOOTH - 1
        ImageDraw.Draw(stencil).ellipse((0, 0, outer, outer), outline=255, width=width * _SMOOTH)
        stencil = stencil.resize((side, side), Image.Resampling.BOX)
        self._image.paste(colour, (centre[0] - radius, centre[1] - radius), stencil)

    def png(self) -> bytes:
        """The file; equal drawings give equal bytes."""
        stream = io.BytesIO()
        self._image.save(stream, format="PNG", compress_level=_COMPRESSION)
        return stream.getvalue()


def text_width(words: str, size: int) -> int:
    """Pixels, rounded up."""
    return int(np.ceil(_font(size).getlength(words)))


def fitted(words: str, size: int, width: int) -> str:
    """Words in the letters that the font has, the middle left out where they are wider than `width` pixels.

    Accents are dropped, whatever else is not ASCII becomes a question mark.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", words) if not unicodedata.combining(letter))
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in plain)
    if text_width(plain, size) <= width:
        return plain
    kept = len(plain)
    shortened = _ELLIPSIS
    while kept > 0:
        kept -= 1
        head, tail = (kept + 1) // 2, kept // 2
        shortened = plain[:head].rstrip() + _ELLIPSIS + plain[len(plain) - tail :].lstrip()
        if text_width(shortened, size) <= width:
            break
    return shortened


def enlarged(greys: Pixels, size: tuple[int, int]) -> Pixels:
    """Grey pixels [rows, columns] interpolated to another size (rows, columns); also to a smaller one."""
    rows, columns = size
    return np.asarray(Image.fromarray(np.ascontiguousarray(greys)).resize((columns, rows), Image.Resampling.BICUBIC))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "what has no FreeType is refused before"
    return font
