"""PNG files: ours read by others, others' read by us, and whatever is damaged or hostile refused."""

import itertools
import struct
import subprocess
import sys
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
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.png import Pixels, decode_png, encode_label_slices, encode_slices, label_slice

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SIZE: Final = (6, 5)  # rows and columns of the small images
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification, table 11.1

# Decodes what stands on stdin, and prints by how many KiB the most memory that it ever held has grown. getrusage would tell
# the most of the process that has started this one, if that was more.
DECODE_AND_MEASURE: Final = """
import re, sys
from pathlib import Path
import numpy as np
from drunet_cli.errors import CaseError
from drunet_cli.io.png import decode_png, encode_slices
most = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
content = sys.stdin.buffer.read()
decode_png(encode_slices(np.zeros((1, 240, 240, 3), np.uint8))[0], (240, 240))
before = most()
try:
    decode_png(content, (240, 240))
except CaseError:
    pass
print(most() - before)
"""


def random_pixels(*shape: int, seed: int = 3) -> Pixels:
    """No pixel is 0 in any channel: a zero in what is read means that it was not read."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def header(size: tuple[int, int] = SIZE, colour_type: int = RGB, *, bits: int = 8, interlaced: bool = False) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, colour_type, 0, 0, interlaced))


def scanlines(pixels: Pixels) -> bytes:
    """Unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def image_data(pixels: Pixels) -> bytes:
    return zlib.compress(scanlines(pixels))


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


PIXELS: Final = random_pixels(*SIZE, 3)
DATA: Final = image_data(PIXELS)
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
    return str(caught.value)


def check_refused_or_whole(content: bytes, pixels: Pixels = PIXELS) -> None:
    """Never a part of the pixels, never others, never an exception of another kind."""
    try:
        decoded = decode_png(content, (pixels.shape[0], pixels.shape[1]))
    except CaseError:
        return
    np.testing.assert_array_equal(decoded, pixels)


# --- what we write


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("size", [(240, 240), (1, 1), (1, 7), (7, 1), (3, 500), (155, 240)])
def test_pillow_reads_the_pixels_that_were_written(channels: int, size: tuple[int, int]) -> None:
    stack = random_pixels(3, *size, channels)
    files = encode_slices(stack)
    assert len(files) == 3
    for pixels, file in zip(stack, files, strict=True):
        np.testing.assert_array_equal(pillow_pixels(file, channels), pixels)
        np.testing.assert_array_equal(decode_png(file, size), pixels)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_slices_are_written_whole(value: int) -> None:
    stack = np.full((2, 240, 240, 4), value, dtype=np.uint8)
    for file in encode_slices(stack):
        np.testing.assert_array_equal(pillow_pixels(file, 4), stack[0])


def test_no_slices_make_no_files() -> None:
    assert encode_slices(np.zeros((0, 9, 9, 4), dtype=np.uint8)) == []
    assert encode_label_slices(np.zeros((0, 9, 9), dtype=np.uint8)) == []


def stored_otherwise(stack: Pixels) -> Iterator[Pixels]:
    """The same pixels in other orders of memory."""
    yield stack.copy()
    yield np.asfortranarray(stack)
    for order in itertools.permutations(range(stack.ndim)):
        yield np.ascontiguousarray(stack.transpose(order)).transpose(np.argsort(order))
    for axis in range(stack.ndim):
        yield np.flip(np.ascontiguousarray(np.flip(stack, axis)), axis)
        yield np.repeat(stack, 2, axis)[tuple(slice(None, None, 2 if n == axis else 1) for n in range(stack.ndim))]
    locked = stack.copy()
    locked.flags.writeable = False
    yield locked


@pytest.mark.parametrize("channels", MODES)
def test_equal_pixels_give_equal_bytes_however_they_lie_in_memory(channels: int) -> None:
    stack = random_pixels(4, 9, 7, channels)
    expected = encode_slices(stack)
    for other in stored_otherwise(stack):
        assert encode_slices(other) == expected
    constant = np.broadcast_to(stack[:1, :1, :1], stack.shape)
    assert encode_slices(constant) == encode_slices(constant.copy())


def test_a_slices_bytes_do_not_depend_on_the_slices_beside_it() -> None:
    stack = random_pixels(5, 9, 7, 4)
    assert encode_slices(stack) == [encode_slices(stack[n : n + 1])[0] for n in range(5)]


def test_the_stack_is_left_as_it_was() -> None:
    stack = random_pixels(2, 9, 7, 4)
    before = stack.copy()
    encode_slices(stack)
    np.testing.assert_array_equal(stack, before)


def class_stack(labelled: tuple[int, ...], n_slices: int = 5) -> ClassMap:
    """[N, 9, 7], of which these slices show tumour."""
    classes = np.zeros((n_slices, 9, 7), dtype=np.uint8)
    for index in labelled:
        classes[index] = np.random.default_rng(index).integers(0, 4, (9, 7))
    return classes


@pytest.mark.parametrize("labelled", [(), (0,), (4,), (1, 3), (0, 1, 2, 3, 4)])
def test_label_slices_hold_the_class_index_in_all_three_channels(labelled: tuple[int, ...]) -> None:
    classes = class_stack(labelled)
    files = encode_label_slices(classes)
    assert len(files) == len(classes)
    for plane, file in zip(classes, files, strict=True):
        np.testing.assert_array_equal(pillow_pixels(file, 3), np.stack([plane] * 3, axis=-1))
        np.testing.assert_array_equal(label_slice(decode_png(file, (9, 7))), plane)


@pytest.mark.parametrize("labelled", [(), (1, 3), (0, 1, 2, 3, 4)])
def test_equal_label_slices_give_equal_bytes_however_they_lie_in_memory(labelled: tuple[int, ...]) -> None:
    classes = class_stack(labelled)
    expected = encode_label_slices(classes)
    for other in stored_otherwise(classes):
        assert encode_label_slices(other) == expected


def test_a_single_labelled_pixel_in_the_last_corner_is_written() -> None:
    classes = class_stack(())
    classes[2, -1, -1] = 1
    assert [label_slice(decode_png(file, (9, 7))).sum() for file in encode_label_slices(classes)] == [0, 0, 1, 0, 0]


# --- what others write


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("options", [{"optimize": True}, *({"compress_level": level} for level in range(10))], ids=str)
def test_files_of_pillow_are_read(channels: int, options: dict[str, Any]) -> None:
    smooth = np.cumsum(random_pixels(40, 30, channels) % 3, axis=1, dtype=np.uint8)  # so that it uses every filter
    for pixels in (random_pixels(40, 30, channels), smooth):
        np.testing.assert_array_equal(decode_png(pillow_file(pixels, **options), (40, 30)), pixels)


def filtered(pixels: Pixels, kind: int) -> bytes:
    """Scanlines under one filter, as the PNG specification, section 9.2, defines it."""
    rows, _, channels = pixels.shape
    above = np.zeros_like(pixels[0])
    result = b""
    for row in range(rows):
        line = pixels[row].astype(np.int64)
        left, corner = (np.concatenate([np.zeros((1, channels), np.int64), of[:-1]]) for of in (line, above.astype(np.int64)))
        up = above.astype(np.int64)
        guess = left + up - corner
        distances = np.abs(np.stack([guess - left, guess - up, guess - corner]))
        paeth = np.choose(np.argmin(distances, axis=0), [left, up, corner])  # of equal ones the first, as specified
        predicted = (np.zeros_like(line), left, up, (left + up) // 2, paeth)[kind]
        result += bytes([kind]) + ((line - predicted) % 256).astype(np.uint8).tobytes()
        above = pixels[row]
    return result


@pytest.mark.parametrize("kind", range(5))
def test_every_filter_of_the_specification_is_undone(kind: int) -> None:
    content = png(header(), chunk(b"IDAT", zlib.compress(filtered(PIXELS, kind))))
    np.testing.assert_array_equal(decode_png(content, SIZE), PIXELS)


@pytest.mark.parametrize("kind", [5, 6, 127, 255])
@pytest.mark.parametrize("row", [0, 5])
def test_a_filter_that_does_not_exist_is_refused(kind: int, row: int) -> None:
    lines = bytearray(scanlines(PIXELS))
    lines[row * 16] = kind
    refusal(png(header(), chunk(b"IDAT", zlib.compress(lines))))


@pytest.mark.parametrize("length", [1, 2, 7, len(DATA)])
def test_pixels_in_several_pieces_are_read(length: int) -> None:
    pieces = [DATA[start : start + length] for start in range(0, len(DATA), length)]
    content = png(header(), chunk(b"IDAT"), *(chunk(b"IDAT", piece) for piece in pieces), chunk(b"IDAT"))
    np.testing.assert_array_equal(decode_png(content, SIZE), PIXELS)


def test_text_and_colour_profiles_do_not_matter() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "ImageJ")
    text.add_text("Comment", "x" * 5000, zip=True)
    text.add_itxt("Title", "Schnitt", lang="de", tkey="Titel")
    content = pillow_file(PIXELS, pnginfo=text, dpi=(72, 72), icc_profile=b"profile" * 99)
    np.testing.assert_array_equal(decode_png(content, SIZE), PIXELS)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_unknown_chunks_do_not_matter_wherever_they_stand(place: int) -> None:
    chunks = [header(), chunk(b"IDAT", DATA)]
    chunks[max(1, place) : max(1, place)] = [chunk(b"drUn", b"anything"), chunk(b"tIME", b"\x07\xe6\x0b\x17\x02\x09\x20")]
    np.testing.assert_array_equal(decode_png(png(*chunks), SIZE), PIXELS)


@pytest.mark.parametrize("trailing", [b"\0", b"\0" * 4096, PLAIN, b"text after the image\n"])
def test_what_follows_the_end_does_not_matter(trailing: bytes) -> None:
    check_refused_or_whole(PLAIN + trailing)


# --- other kinds of PNG


def adam7(pixels: Pixels) -> bytes:
    """Scanlines of the seven passes, as the PNG specification, section 8.2, lays them out."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = (pixels[row::row_step, column::column_step] for row, column, row_step, column_step in passes)
    return b"".join(scanlines(part) for part in parts if part.size)


def test_an_interlaced_file_is_refused_with_the_remedy() -> None:
    content = png(header(interlaced=True), chunk(b"IDAT", zlib.compress(adam7(PIXELS))))
    np.testing.assert_array_equal(pillow_pixels(content, 3), PIXELS)  # a good file
    assert refusal(content) == "is interlaced; save it without interlacing"


@pytest.mark.parametrize(
    ("colour_type", "bits", "said"),
    [
        *((GREY, bits, f"has {bits} bits a channel") for bits in (1, 2, 4, 16)),
        *((colour_type, 16, "has 16 bits a channel") for colour_type in (RGB, RGBA)),
        *((PALETTE, bits, "has a palette") for bits in (1, 2, 4, 8)),
        *((GREY_ALPHA, bits, "has grey with alpha") for bits in (8, 16)),
    ],
)
def test_another_kind_of_pixel_is_refused_with_the_remedy(colour_type: int, bits: int, said: str) -> None:
    assert refusal(png(header(SIZE, colour_type, bits=bits), chunk(b"IDAT", DATA))) == f"{said}; save it as 8-bit RGB"


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16"])
def test_files_of_pillow_in_another_mode_are_refused(mode: str) -> None:
    stream = BytesIO()
    grey = Image.fromarray(PIXELS[..., 0])
    (Image.new(mode, SIZE[::-1]) if mode == "I;16" else grey.convert(mode)).save(stream, "PNG")
    refusal(stream.getvalue())


@pytest.mark.parametrize("colour_type", [1, 5, 7, 8, 255])
@pytest.mark.parametrize("bits", [0, 3, 8, 255])
def test_a_kind_of_pixel_that_does_not_exist_is_refused(colour_type: int, bits: int) -> None:
    refusal(png(header(SIZE, colour_type, bits=bits), chunk(b"IDAT", DATA)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_is_refused(channels: int) -> None:
    pixels = random_pixels(*SIZE, channels)
    content = pillow_file(pixels, transparency=7 if channels == 1 else (7, 7, 7))
    assert b"tRNS" in content
    assert refusal(content) == "has a transparent colour; save it without transparency"


@pytest.mark.parametrize("size", [(5, 6), (6, 6), (7, 5), (1, 30), (240, 240), (0, 0), (6, 0), (2**31, 2**31), (2**32 - 1, 5)])
def test_another_size_is_refused_before_anything_is_decoded(size: tuple[int, int]) -> None:
    assert refusal(png(header(size))) == f"has {size[0]} x {size[1]} pixels (rows x columns), not 6 x 5"


def frame_control(size: tuple[int, int], offset: tuple[int, int] = (0, 0)) -> bytes:
    """The fcTL chunk of an APNG's first frame."""
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, size[1], size[0], offset[1], offset[0], 1, 1, 0, 0))


def test_the_first_frame_of_an_animation_is_read_or_refused() -> None:
    first, second = (Image.fromarray(pixels) for pixels in (PIXELS, random_pixels(*SIZE, 3, seed=8)))
    for default in (False, True):
        stream = BytesIO()
        first.save(stream, "PNG", save_all=True, append_images=[second, first], default_image=default)
        assert b"acTL" in stream.getvalue()
        check_refused_or_whole(stream.getvalue())


@pytest.mark.parametrize("n_rows", [1, 3, 5])
def test_a_frame_that_is_smaller_than_the_image_leaves_no_pixel_out(n_rows: int) -> None:
    check_refused_or_whole(png(header(), frame_control((n_rows, SIZE[1])), chunk(b"IDAT", DATA)))


@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 5])
def test_pixels_of_a_frame_do_not_stand_for_those_of_the_image(n_rows: int, animated: bool) -> None:
    other = chunk(b"fdAT", struct.pack(">I", 1) + image_data(PIXELS[:n_rows]))
    animation = [chunk(b"acTL", struct.pack(">II", 1, 0))] if animated else []
    check_refused_or_whole(png(header(), *animation, frame_control(SIZE), other, chunk(b"IDAT", DATA)))


@pytest.mark.parametrize("n_rows", [1, 3, 5])
def test_pixels_in_a_chunk_of_another_kind_do_not_stand_for_those_of_the_image(n_rows: int) -> None:
    other = chunk(b"DDAT", image_data(PIXELS[:n_rows]))  # which Pillow takes for IDAT
    check_refused_or_whole(png(header(), chunk(b"IDAT"), other, chunk(b"IDAT", DATA)))


@pytest.mark.parametrize("place", [1, 2])
def test_an_animation_without_frames_gives_no_warning(place: int) -> None:
    chunks = [header(), chunk(b"IDAT", DATA)]
    chunks.insert(place, chunk(b"acTL", struct.pack(">II", 0, 0)))
    check_refused_or_whole(png(*chunks))  # pytest makes an error of a warning


# --- damage


@pytest.fixture(params=["ours", "Pillow's", "with text"])
def small_file(request: pytest.FixtureRequest) -> bytes:
    """A file of PIXELS."""
    if request.param == "ours":
        return encode_slices(PIXELS[np.newaxis])[0]
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "text", zip=True)
    return pillow_file(PIXELS, pnginfo=text if request.param == "with text" else None)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(small_file: bytes) -> None:
    np.testing.assert_array_equal(decode_png(small_file, SIZE), PIXELS)
    for length in range(len(small_file)):
        refusal(small_file[:length])


def test_a_file_with_one_bit_changed_is_refused_or_gives_the_same_pixels(small_file: bytes) -> None:
    for position in range(8 * len(small_file)):
        damaged = bytearray(small_file)
        damaged[position // 8] ^= 1 << position % 8
        check_refused_or_whole(bytes(damaged))


@pytest.mark.parametrize("place", range(4))
def test_the_check_sum_of_every_chunk_is_verified(place: int) -> None:
    chunks = [header(), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", DATA), chunk(b"IEND")]
    chunks[place] = chunks[place][:-1] + bytes([chunks[place][-1] ^ 1])
    assert "a check sum does not agree" in refusal(SIGNATURE + b"".join(chunks))


def test_a_changed_bit_in_the_compressed_pixels_is_found_although_the_chunks_check_sum_agrees() -> None:
    for position in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[position // 8] ^= 1 << position % 8
        check_refused_or_whole(png(header(), chunk(b"IDAT", bytes(damaged))))


def test_compressed_pixels_that_end_early_are_refused_wherever_they_end() -> None:
    for length in range(len(DATA)):
        refusal(png(header(), chunk(b"IDAT", DATA[:length])))


@pytest.mark.parametrize("n_bytes", [-96, -95, -80, -16, -1, 1, 16, 4096])
def test_too_few_or_too_many_scanlines_are_refused(n_bytes: int) -> None:
    lines = scanlines(PIXELS)
    changed = lines[:n_bytes] if n_bytes < 0 else lines + b"\0" * n_bytes
    assert "another number of pixels" in refusal(png(header(), chunk(b"IDAT", zlib.compress(changed))))


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"IDAT", DATA)],
        [chunk(b"IDAT", DATA), header()],
        [chunk(b"tEXt", b"a\0b"), header(), chunk(b"IDAT", DATA)],
        [header(), header(), chunk(b"IDAT", DATA)],
        [header(), chunk(b"IDAT", DATA), header()],
        [header(), header((240, 240)), chunk(b"IDAT", DATA)],
        [],
    ],
)
def test_a_header_that_is_missing_doubled_or_out_of_place_is_refused(chunks: list[bytes]) -> None:
    assert refusal(png(*chunks)) == "is damaged: its header is not where it must be"


@pytest.mark.parametrize("length", [0, 1, 12, 14, 26])
def test_a_header_of_another_length_is_refused(length: int) -> None:
    payload = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, RGB, 0, 0, 0) * 2
    refusal(png(chunk(b"IHDR", payload[:length]), chunk(b"IDAT", DATA)))


@pytest.mark.parametrize("pixels", [[], [chunk(b"IDAT")], [chunk(b"IDAT")] * 3, [chunk(b"IDAT", zlib.compress(b""))]])
def test_a_file_without_pixels_is_refused(pixels: list[bytes]) -> None:
    refusal(png(header(), *pixels))


def test_a_file_without_its_end_is_refused() -> None:
    assert refusal(PLAIN[:-12]).startswith("is truncated")


def test_pixels_that_another_chunk_divides_are_refused_or_read_whole() -> None:
    for length in range(len(DATA) + 1):
        parts = chunk(b"IDAT", DATA[:length]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", DATA[length:])
        check_refused_or_whole(png(header(), *parts))


@pytest.mark.parametrize("wbits", [-15, 31])  # raw deflate, and gzip
def test_pixels_that_are_not_a_zlib_stream_are_refused(wbits: int) -> None:
    deflate = zlib.compressobj(wbits=wbits)
    refusal(png(header(), chunk(b"IDAT", deflate.compress(scanlines(PIXELS)) + deflate.flush())))


def test_pixels_that_need_a_dictionary_are_refused() -> None:
    deflate = zlib.compressobj(zdict=scanlines(PIXELS))
    refusal(png(header(), chunk(b"IDAT", deflate.compress(scanlines(PIXELS)) + deflate.flush())))


KNOWN_CHUNKS: Final = (
    *(b"PLTE", b"DDAT", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"tIME", b"eXIf"),
    *(b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"drUn", b"____"),
)


@pytest.mark.parametrize("payload", [b"", b"\0", b"ab", b"a\0", b"a\0\x07x", b"\0\0\0\1" * 10, b"\xff" * 20, b"a\0\0\xff\xff"])
@pytest.mark.parametrize("place", [1, 2])
def test_no_small_chunk_of_any_kind_breaks_the_reading(payload: bytes, place: int) -> None:
    for kind in KNOWN_CHUNKS:
        if kind == b"acTL" and payload.startswith(b"\xff"):
            continue  # test_an_animation_without_frames_gives_no_warning
        chunks = [header(), chunk(b"IDAT", DATA)]
        chunks.insert(place, chunk(kind, payload))
        check_refused_or_whole(png(*chunks))


@pytest.mark.parametrize("kind", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"    ", b"id\xe4t", b"1234"])
@pytest.mark.parametrize("place", [1, 2])
def test_a_chunk_without_a_proper_name_does_not_break_the_reading(kind: bytes, place: int) -> None:
    chunks = [header(), chunk(b"IDAT", DATA)]
    chunks.insert(place, chunk(kind, b"x"))
    check_refused_or_whole(png(*chunks))


@pytest.mark.parametrize("payload", [b"ab", b"\0\0", b"name\0\0\xff", b"name\0\5"])
@pytest.mark.parametrize("place", [1, 2])
def test_a_damaged_colour_profile_does_not_break_the_reading(payload: bytes, place: int) -> None:
    chunks = [header(), chunk(b"IDAT", DATA)]
    chunks.insert(place, chunk(b"iCCP", payload))
    check_refused_or_whole(png(*chunks))


@pytest.mark.parametrize("payload", [b"", b"name\0"])
def test_a_colour_profile_that_is_cut_off_behind_the_pixels_does_not_break_the_reading(payload: bytes) -> None:
    check_refused_or_whole(png(header(), chunk(b"IDAT", DATA), chunk(b"iCCP", payload)))


def test_a_file_that_is_empty_says_so() -> None:
    assert refusal(b"") == "is empty"


@pytest.mark.parametrize(
    "content", [b"\x89", SIGNATURE[:7], b"id,label\n1,2\n", b"\x89PNG\n\x1a\n" + PLAIN[8:], b"\0" + PLAIN, b"\0" * 1000]
)
def test_a_file_of_another_kind_is_refused(content: bytes) -> None:
    assert refusal(content) == "is not a PNG file"


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "PPM"])
def test_an_image_of_another_format_is_refused(kind: str) -> None:
    stream = BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    assert refusal(stream.getvalue()) == "is not a PNG file"


def test_what_follows_the_signature_alone_is_truncated() -> None:
    assert refusal(SIGNATURE).startswith("is truncated")
    assert refusal(SIGNATURE + b"\xff\xff\xff\xffIHDR").startswith("is truncated")  # a chunk of 4 GiB


# --- bombs


def inflating_to(n_mib: int) -> bytes:
    """A correct zlib stream of so many MiB of zeros, about a thousandth of that."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(b"\0" * 2**20) + deflate.flush(zlib.Z_FULL_FLUSH)
    adler = (n_mib * 2**20 % 65521) << 16 | 1  # of zeros: RFC 1950
    return b"\x78\x9c" + block * n_mib + b"\x03\x00" + struct.pack(">I", adler)


def grown_mib(content: bytes) -> float:
    command = [sys.executable, "-c", DECODE_AND_MEASURE]
    return int(subprocess.run(command, input=content, capture_output=True, check=True).stdout) / 1024


WHOLE: Final = chunk(b"IDAT", image_data(random_pixels(FRAME, FRAME, 3)))


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([chunk(b"IDAT", inflating_to(1024))], id="pixels"),
        pytest.param([chunk(b"zTXt", b"a\0\0" + inflating_to(1024)), WHOLE], id="text"),
        pytest.param([chunk(b"iTXt", b"a\0\1\0\0\0" + inflating_to(1024)), WHOLE], id="text, international"),
        pytest.param([WHOLE, chunk(b"zTXt", b"a\0\0" + inflating_to(1024))], id="text, behind"),
        pytest.param([chunk(b"iCCP", b"a\0\0" + inflating_to(1024)), WHOLE], id="colour profile"),
        pytest.param([*(chunk(b"zTXt", b"%d\0\0" % n + inflating_to(1)) for n in range(60)), WHOLE], id="many texts"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the most memory of a process")
def test_a_file_that_inflates_to_a_gibibyte_takes_little_memory(chunks: list[bytes]) -> None:
    # The file itself is 1 MiB and a slice 0.2; 60 MiB of text are far beyond.
    assert grown_mib(png(header((FRAME, FRAME)), *chunks)) < 24


def test_a_gibibyte_of_pixels_is_refused() -> None:
    assert "another number of pixels" in refusal(png(header(), chunk(b"IDAT", inflating_to(1024))))


# --- label colours


def label_pixels(classes: ClassMap, channels: int, *, published: bool = False, alpha: int = 255) -> Pixels:
    pixels = np.stack([classes] * min(channels, 3), axis=-1)
    if published:
        pixels[..., 0] *= 50  # evaluate.py
        pixels[..., 1:] = 0
    if channels == 4:
        pixels = np.concatenate([pixels, np.full((*classes.shape, 1), alpha, dtype=np.uint8)], axis=-1)
    return pixels


CLASSES: Final = np.random.default_rng(0).integers(0, 4, SIZE, dtype=np.uint8)


@pytest.mark.parametrize("channels", MODES)
def test_the_class_index_in_every_channel_is_read(channels: int) -> None:
    content = pillow_file(label_pixels(CLASSES, channels))
    classes = label_slice(decode_png(content, SIZE))
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, CLASSES)


@pytest.mark.parametrize("channels", [3, 4])
def test_50_times_the_class_index_in_red_is_read(channels: int) -> None:
    content = pillow_file(label_pixels(CLASSES, channels, published=True))
    np.testing.assert_array_equal(label_slice(decode_png(content, SIZE)), CLASSES)


@pytest.mark.parametrize("alpha", [0, 1, 128, 254])
@pytest.mark.parametrize("published", [False, True])
def test_labels_that_are_not_opaque_are_refused(alpha: int, published: bool) -> None:
    pixels = label_pixels(CLASSES, 4, published=published)
    pixels[4, 3, 3] = alpha
    with pytest.raises(CaseError, match=r"has 1 pixels of illegal colour.* in row 4, column 3;"):
        label_slice(pixels)


def is_legal(red: int, green: int, blue: int) -> bool:
    return (red < 4 and red == green == blue) or (red in (50, 100, 150) and green == blue == 0)


def test_of_all_colours_only_the_seven_legal_ones_are_read() -> None:
    values = [*range(8), 49, 50, 51, 99, 100, 101, 149, 150, 151, 200, 250, 254, 255]
    read = set()
    for colour in itertools.product(values, repeat=3):
        try:
            label_slice(np.array([[colour]], dtype=np.uint8))
        except CaseError:
            assert not is_legal(*colour)
        else:
            read.add(colour)
    assert read == {(n, n, n) for n in range(4)} | {(50 * n, 0, 0) for n in range(4)}


def test_of_all_greys_only_the_four_class_indices_are_read() -> None:
    for grey in range(256):
        pixels = np.full((1, 1, 1), grey, dtype=np.uint8)
        if grey < 4:
            assert label_slice(pixels).tolist() == [[grey]]
        else:
            with pytest.raises(CaseError, match=rf"the first \({grey}\) in row 0, column 0;"):
                label_slice(pixels)


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
