"""PNG files: ours read by others, others' read by us, and whatever is damaged or hostile refused."""

import itertools
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from drunet_cli.brats import ClassMap
from drunet_cli.errors import CaseError
from drunet_cli.io.png import (
    DamagedPngError,
    Pixels,
    decode_label_slice,
    decode_png,
    encode_label_slices,
    encode_slices,
    encode_webp,
    label_slice,
    read_label_slice,
    read_slice_file,
)

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SIZE: Final = (6, 5)  # rows and columns of the small images
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification, table 11.1


def random_pixels(*shape: int, seed: int = 3) -> Pixels:
    """No pixel is 0 in any channel: a zero in what is read means that it was not read."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def header(size: tuple[int, int] = SIZE, colour_type: int = RGB, *, bits: int = 8) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, colour_type, 0, 0, 0))


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


PIXELS: Final = random_pixels(*SIZE, 3)
SCANLINES: Final = b"".join(b"\0" + row.tobytes() for row in PIXELS)
DATA: Final = zlib.compress(SCANLINES)
PLAIN: Final = png(header(), chunk(b"IDAT", DATA))


def pillow_file(pixels: Pixels, **options: Any) -> bytes:  # whatever Pillow's writer takes
    stream = BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def pillow_pixels(content: bytes, channels: int) -> Pixels:
    with Image.open(BytesIO(content)) as image:
        assert image.mode == MODES[channels]
        return np.asarray(image).reshape(image.height, image.width, channels)


def refusal(content: bytes, size: tuple[int, int] = SIZE) -> str:
    with pytest.raises(CaseError) as caught:
        decode_png(content, size)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def check_refused_or_whole(content: bytes) -> None:
    """Never a part of the pixels, never others, never an exception of another kind."""
    try:
        decoded = decode_png(content, SIZE)
    except CaseError:
        return
    np.testing.assert_array_equal(decoded, PIXELS)


# --- what we write


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("size", [(240, 240), (1, 1), (1, 7), (7, 1)])
def test_pillow_reads_the_pixels_that_were_written(channels: int, size: tuple[int, int]) -> None:
    stack = np.concatenate([random_pixels(2, *size, channels), np.zeros((1, *size, channels), np.uint8)])
    for pixels, file in zip(stack, encode_slices(stack), strict=True):
        np.testing.assert_array_equal(pillow_pixels(file, channels), pixels)
        np.testing.assert_array_equal(decode_png(file, size), pixels)


def stored_otherwise(stack: Pixels) -> Iterator[Pixels]:
    """The same pixels in other orders of memory."""
    yield np.asfortranarray(stack)
    yield np.ascontiguousarray(stack[::-1])[::-1]
    yield np.repeat(stack, 2, axis=2)[:, :, ::2]


@pytest.mark.parametrize("channels", MODES)
def test_equal_pixels_give_equal_bytes_however_they_lie_in_memory(channels: int) -> None:
    stack = random_pixels(4, 9, 7, channels)
    expected = encode_slices(stack)
    assert expected == [encode_slices(stack[n : n + 1])[0] for n in range(4)]
    for other in stored_otherwise(stack):
        assert encode_slices(other) == expected


@pytest.mark.parametrize("labelled", [(), (0,), (4,), (1, 3), (0, 1, 2, 3, 4)])
def test_label_slices_hold_the_class_index_in_all_three_channels(labelled: tuple[int, ...]) -> None:
    classes = np.zeros((5, 9, 7), dtype=np.uint8)
    for index in labelled:
        classes[index, -1, -1] = 1
        classes[index, :4] = np.random.default_rng(index).integers(0, 4, (4, 7))
    files = encode_label_slices(classes)
    for plane, file in zip(classes, files, strict=True):
        np.testing.assert_array_equal(pillow_pixels(file, 3), np.stack([plane] * 3, axis=-1))
        np.testing.assert_array_equal(decode_label_slice(file, (9, 7)), plane)


# --- what others write


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("options", [{"optimize": True}, {"compress_level": 0}, {"compress_level": 9}], ids=str)
def test_files_of_pillow_are_read(channels: int, options: dict[str, Any]) -> None:
    smooth = np.cumsum(random_pixels(40, 30, channels) % 3, axis=1, dtype=np.uint8)  # so that it uses every filter
    for pixels in (random_pixels(40, 30, channels), smooth):
        np.testing.assert_array_equal(decode_png(pillow_file(pixels, **options), (40, 30)), pixels)


def test_texts_profiles_pieces_and_what_follows_the_end_do_not_matter() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 5000, zip=True)
    text.add_itxt("Title", "Schnitt", lang="de", tkey="Titel")
    pieces = [chunk(b"IDAT", DATA[start : start + 7]) for start in range(0, len(DATA), 7)]
    for content in (
        pillow_file(PIXELS, pnginfo=text, dpi=(72, 72), icc_profile=b"profile" * 99),
        png(header(), chunk(b"drUn", b"anything"), *pieces),
        PLAIN + b"text after the image\n",
    ):
        np.testing.assert_array_equal(decode_png(content, SIZE), PIXELS)


OTHER_KINDS: Final = {
    "16 bits": (png(header(SIZE, RGB, bits=16), chunk(b"IDAT", DATA)), "has 16 bits a channel; save it as 8-bit RGB"),
    "4 bits": (png(header(SIZE, GREY, bits=4), chunk(b"IDAT", DATA)), "has 4 bits a channel; save it as 8-bit RGB"),
    "1 bit": (png(header(SIZE, GREY, bits=1), chunk(b"IDAT", DATA)), "has 1 bits a channel; save it as 8-bit RGB"),
    "grey with alpha": (png(header(SIZE, GREY_ALPHA), chunk(b"IDAT", DATA)), "has grey with alpha; save it as 8-bit RGB"),
    "transparent colour": (pillow_file(PIXELS, transparency=(7, 7, 7)), "has a transparent colour; save it without"),
    "transposed": (png(header((5, 6))), "has 5 x 6 pixels (rows x columns), not 6 x 5"),
    "huge": (png(header((2**31 - 1, 2**31 - 1))), "pixels"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(1000), "is not a PNG file"),
    "table": (b"id,label\n1,2\n", "is not a PNG file"),
    "other line ends": (b"\x89PNG\n\x1a\n" + PLAIN[8:], "is not a PNG file"),
    "signature alone": (SIGNATURE, "is truncated or damaged"),
    "a chunk of 4 GiB": (SIGNATURE + b"\xff\xff\xff\xffIHDR", "is truncated or damaged"),
    "no header": (png(chunk(b"IDAT", DATA)), "is truncated or damaged"),
    "header second": (png(chunk(b"tEXt", b"a\0b"), header(), chunk(b"IDAT", DATA)), "its header is not where it must be"),
    "no pixels": (png(header()), "damaged"),
    "too few pixels": (png(header(), chunk(b"IDAT", zlib.compress(SCANLINES[:-20]))), "damaged"),
    "unknown filter": (png(header(), chunk(b"IDAT", zlib.compress(b"\x09" + SCANLINES[1:]))), "damaged"),
    "raw deflate": (png(header(), chunk(b"IDAT", DATA[2:-4])), "damaged"),
    "end missing": (PLAIN[:-12], "damaged"),
    "pixels cut": (PLAIN[:-30], "damaged"),
    "check sum": (PLAIN[:-13] + bytes([PLAIN[-13] ^ 1]) + PLAIN[-12:], "damaged"),
    "text bomb": (png(header(), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))), chunk(b"IDAT", DATA)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_any_other_kind_of_file_is_refused_in_one_line(kind: str) -> None:
    content, words = OTHER_KINDS[kind]
    assert words in refusal(content)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF"])
def test_an_image_of_another_format_is_refused(kind: str) -> None:
    stream = BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    assert refusal(stream.getvalue()) == "is not a PNG file"


def test_a_file_that_ends_early_or_has_one_bit_changed_is_refused_or_gives_the_same_pixels() -> None:
    for length in range(len(PLAIN) - 4):  # without the last check sum, which is of no content, the file is whole
        with pytest.raises(DamagedPngError):  # so that a resumed conversion makes the slice again
            decode_png(PLAIN[:length], SIZE)
    for position in range(8 * len(PLAIN)):
        damaged = bytearray(PLAIN)
        damaged[position // 8] ^= 1 << position % 8
        check_refused_or_whole(bytes(damaged))


@pytest.mark.parametrize("payload", [b"", b"\0", b"a\0\x07x", b"\0\0\0\1" * 10, b"name\0\0\xff"])
@pytest.mark.parametrize("place", [1, 2])
def test_no_small_chunk_of_any_kind_breaks_the_reading(payload: bytes, place: int) -> None:
    kinds = (*(b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"pHYs", b"bKGD", b"eXIf"), *(b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"1234"))
    for kind in kinds:
        chunks = [header(), chunk(b"IDAT", DATA)]
        chunks.insert(place, chunk(kind, payload))
        check_refused_or_whole(png(*chunks))


def test_a_slice_is_read_from_a_file_and_a_refusal_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p_slice_0.png"
    path.write_bytes(PLAIN)
    np.testing.assert_array_equal(read_slice_file(path, SIZE), PIXELS)
    for content in (PLAIN[:-30], b"x", bytes(2**22 + 1)):
        path.write_bytes(content)
        for read in (read_slice_file, read_label_slice):
            with pytest.raises(CaseError, match=rf"^{path}: is "):
                read(path, SIZE)
    with pytest.raises(CaseError, match=r"is not a regular file"):
        read_slice_file(tmp_path, SIZE)
    with pytest.raises(CaseError, match=r"cannot be read: No such file"):
        read_slice_file(tmp_path / "gone.png", SIZE)


@pytest.mark.parametrize(("width", "size"), [(30, (30, 40)), (60, (30, 40)), (15, (15, 20))])
def test_a_picture_becomes_webp_no_wider_than_asked(width: int, size: tuple[int, int]) -> None:
    content, columns, rows = encode_webp(pillow_file(random_pixels(40, 30, 3)), width=width)
    assert (columns, rows) == size
    with Image.open(BytesIO(content)) as image:
        assert (image.format, image.size) == ("WEBP", size)


# --- label colours

CLASSES: Final = np.random.default_rng(0).integers(0, 4, SIZE, dtype=np.uint8)


def label_pixels(classes: ClassMap, channels: int, *, published: bool = False, alpha: int = 255) -> Pixels:
    pixels = np.stack([classes] * min(channels, 3), axis=-1)
    if published:
        pixels[..., 0] *= 50  # evaluate.py
        pixels[..., 1:] = 0
    if channels == 4:
        pixels = np.concatenate([pixels, np.full((*classes.shape, 1), alpha, dtype=np.uint8)], axis=-1)
    return pixels


@pytest.mark.parametrize(("channels", "published"), [(1, False), (3, False), (4, False), (3, True), (4, True)])
def test_both_layouts_of_label_slices_are_read(channels: int, published: bool) -> None:
    content = pillow_file(label_pixels(CLASSES, channels, published=published))
    classes = decode_label_slice(content, SIZE)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, CLASSES)


def palette_file(indices: ClassMap, colours: list[tuple[int, int, int]], **options: Any) -> bytes:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([value for colour in colours for value in colour])
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"bits": 2}, {"transparency": 0}], ids=str)
@pytest.mark.parametrize(
    ("colours", "class_of"),
    [
        ([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)], [0, 1, 2, 3]),  # annotation tools: the index is the class
        ([(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)], [0, 1, 2, 3]),
        ([(3, 3, 3), (0, 0, 0), (1, 1, 1), (2, 2, 2)], [3, 0, 1, 2]),  # a training mask, reduced to a palette
        ([(0, 0, 0), (150, 0, 0), (50, 0, 0), (100, 0, 0)], [0, 3, 1, 2]),  # a published prediction, likewise
    ],
)
def test_a_palettes_colours_count_where_they_are_label_colours_and_its_indices_elsewhere(
    colours: list[tuple[int, int, int]], class_of: list[int], options: dict[str, int]
) -> None:
    content = palette_file(CLASSES, colours, **options)
    np.testing.assert_array_equal(decode_label_slice(content, SIZE), np.array(class_of)[CLASSES])
    np.testing.assert_array_equal(decode_png(content, SIZE), np.array(colours, dtype=np.uint8)[CLASSES])


def is_legal(red: int, green: int, blue: int) -> bool:
    return (red < 4 and red == green == blue) or (red in (50, 100, 150) and green == blue == 0)


def test_of_all_colours_only_the_seven_legal_ones_are_read() -> None:
    values = [*range(6), 49, 50, 51, 100, 149, 150, 151, 200, 255]
    read = set()
    for colour in itertools.product(values, repeat=3):
        try:
            label_slice(np.array([[colour]], dtype=np.uint8))
        except CaseError:
            assert not is_legal(*colour)
        else:
            read.add(colour)
    assert read == {(n, n, n) for n in range(4)} | {(50 * n, 0, 0) for n in range(4)}


def test_a_slice_of_both_layouts_or_with_transparent_labels_is_refused() -> None:
    pixels = label_pixels(CLASSES, 4)
    pixels[4, 3, 3] = 128
    with pytest.raises(CaseError, match=r"has 1 pixels of illegal colour.* in row 4, column 3;"):
        label_slice(pixels)
    mixed = label_pixels(np.ones(SIZE, dtype=np.uint8), 3)
    mixed[2, 1] = 50, 0, 0
    with pytest.raises(CaseError, match=r"mixes two layouts: .*row 0, column 0.*row 2, column 1"):
        label_slice(mixed)


def test_the_first_illegal_colour_is_named_with_row_and_column_and_all_are_counted() -> None:
    pixels = label_pixels(CLASSES, 3)
    pixels[2, 4] = 255, 7, 0
    pixels[3, 1] = 9
    with pytest.raises(CaseError) as caught:
        label_slice(pixels)
    assert str(caught.value) == (
        "has 2 pixels of illegal colour, the first (255, 7, 0) in row 2, column 4; a label slice holds the class index 0-3 in "
        "every channel, or 50 times it in red alone"
    )
