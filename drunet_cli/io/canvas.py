"""A picture to draw on, with letters: what pictures of cases and of prepared scans share."""

import io
import unicodedata
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, features

from drunet_cli.brats import Colour
from drunet_cli.errors import MisuseError

Pixels = npt.NDArray[np.uint8]

_ELLIPSIS: Final = "..."
_SMOOTH: Final = 4  # times finer a ring is drawn than it is shown
_COMPRESSION: Final = 3  # zlib's 6 takes twice the time for 4 % less


def check_drawable() -> None:
    """Raise MisuseError where Pillow was built without FreeType, which draws its letters; the wheels of PyPI have it."""
    if not features.check("freetype2"):
        raise MisuseError(
            "preview=True needs a Pillow with FreeType, which this one was built without: pip install --force-reinstall pillow"
        )


class Canvas:
    """An RGB picture to draw on. Places are (x, y) in pixels from the top left; sizes of text are the em in pixels."""

    def __init__(self, width: int, height: int, background: Colour) -> None:
        self._image = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, place: tuple[int, int], words: str, *, size: int, colour: Colour, anchor: str = "ls") -> None:
        """One line. anchor: Pillow's two letters, l, m or r across and s (baseline) or m (middle) down."""
        self._draw.text(place, words, fill=colour, font=_font(size), anchor=anchor)

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
