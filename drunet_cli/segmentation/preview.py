"""A picture of a segmented case, to be looked at, passed on or shown in a talk.

Three cuts through the largest section of the tumour, over FLAIR (upper row) and T1ce (lower row), all in one scale. The view is
radiological: the patient's left is on the right of the axial and coronal cuts; the sagittal cut has the face on the left.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CLASS_NAMES, REGION_NAMES, ClassMap, Modality, TumourClass
from drunet_cli.segmentation.drawing import Canvas, Colour, Pixels, enlarged, fitted, text_width
from drunet_cli.segmentation.outlines import centres_if_all_specks, outlines, stretched, surrounded_specks
from drunet_cli.segmentation.sections import LETTERS, Cut, Letters, Plane, largest_cuts

# Three of the eight colours of Okabe and Ito, that every kind of colour vision tells from each other and from grey;
# tests/segmentation/test_preview.py computes how well.
CLASS_COLOURS: Final[Mapping[TumourClass, Colour]] = {
    TumourClass.NCR: (0xD5, 0x5E, 0x00),
    TumourClass.ED: (0x56, 0xB4, 0xE9),
    TumourClass.ET: (0xF0, 0xE4, 0x42),
}
_REGIONS_BESIDE_CLASSES: Final = ("WT", "TC")  # ET is a class too
_NO_TUMOUR: Final = "No tumour was found"
_WORLD_AXES: Final = {Plane.AXIAL: "z", Plane.CORONAL: "y", Plane.SAGITTAL: "x"}

_BLACK: Final = (0, 0, 0)
_WHITE: Final = (255, 255, 255)
_TEXT: Final = (225, 225, 225)
_DIM: Final = (160, 160, 160)

# Pixels. At half size the smallest letters are still 11 high.
_MARGIN: Final = 24
_GAP: Final = 16
_CELL: Final = 472
_LETTER_STRIP: Final = 28
_PICTURE: Final = _CELL - 2 * _LETTER_STRIP
_WIDTH: Final = 2 * _MARGIN + 3 * _CELL + 2 * _GAP
_NAME_SIZE: Final = 34
_SIZE: Final = 26
_SMALL: Final = 22
_LINE: Final = 40
_HEADER: Final = 100
_FOOTER: Final = 4 * _LINE + _MARGIN
_PANELS: Final = 2 * _CELL + _GAP
_HEIGHT: Final = _HEADER + _PANELS + _FOOTER
_LEFT: Final = tuple(_MARGIN + column * (_CELL + _GAP) for column in range(3))
_TOP: Final = tuple(_HEADER + row * (_CELL + _GAP) for row in range(2))
_OUTLINE: Final = 2
_SPECK: Final = 12  # the side of what is hard to find
_RING_RADIUS: Final = 22
_MOST_RINGS: Final = 9
_SCALE_BARS_MM: Final = (100, 50, 20, 10, 5, 2, 1)


def draw_preview(
    flair: npt.NDArray[Any],
    t1ce: npt.NDArray[Any],
    class_map: ClassMap,
    *,
    affine: npt.NDArray[np.float64],
    name: str,
    volumes_ml: Mapping[str, float],
    warnings: Sequence[str] = (),
) -> bytes:
    """The picture as a PNG file of 1496 x 1244 pixels. Equal arguments give equal bytes.

    flair, t1ce: [I, J, K] in the case's own axes, any type, background 0. class_map: class indices [I, J, K].
    affine: voxel indices to RAS millimetres. volumes_ml: of NCR, ED, ET, WT and TC, as `brats.volumes_ml` gives them.
    The same case stored in another orientation gives the same picture.
    """
    cuts = largest_cuts({Modality.FLAIR: flair, Modality.T1CE: t1ce}, class_map, affine=affine)
    pixels_per_mm = _PICTURE / max(max(cut.height_mm, cut.width_mm) for cut in cuts)
    canvas = Canvas(_WIDTH, _HEIGHT, _BLACK)
    words = fitted(name, _NAME_SIZE, _WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, _MARGIN + 26), words, size=_NAME_SIZE, colour=_WHITE)
    for top, modality in zip(_TOP, cuts[0].greys, strict=True):
        canvas.text((_MARGIN, top + 18), modality.display, size=_SIZE, colour=_TEXT)
    for left, cut in zip(_LEFT, cuts, strict=True):
        words = f"{cut.plane}, {_WORLD_AXES[cut.plane]} = {_whole(cut.position_mm)} mm"
        canvas.text((left + _CELL // 2, _HEADER - 10), words, size=_SMALL, colour=_DIM, anchor="ms")
        _draw_cut(canvas, cut, left, pixels_per_mm)
    _draw_footer(canvas, volumes_ml, warnings, pixels_per_mm, empty=not class_map.any())
    return canvas.png()


def _draw_cut(canvas: Canvas, cut: Cut, cell_left: int, pixels_per_mm: float) -> None:
    """One plane of all modalities, each in the middle of its cell: image, outlines, and rings around what is hard to find."""
    height, width = (max(1, round(mm * pixels_per_mm)) for mm in (cut.height_mm, cut.width_mm))
    classes = stretched(cut.classes, (height, width))
    lines = outlines(surrounded_specks(classes, _SPECK, _OUTLINE), _OUTLINE)
    for cell_top, greys in zip(_TOP, cut.greys.values(), strict=True):
        left, top = cell_left + (_CELL - width) // 2, cell_top + (_CELL - height) // 2
        canvas.paste(_coloured(enlarged(greys, (height, width)), lines), (left, top))
        for row, column in centres_if_all_specks(classes, _SPECK)[:_MOST_RINGS]:
            canvas.ring((left + column, top + row), _RING_RADIUS, _OUTLINE, _WHITE)
        _draw_letters(canvas, LETTERS[cut.plane], (left, top), width, height)


def _draw_letters(canvas: Canvas, letters: Letters, corner: tuple[int, int], width: int, height: int) -> None:
    """In the strip around an image with this top left corner."""
    (left, top), half = corner, _LETTER_STRIP // 2
    middle = (left + width // 2, top + height // 2)
    for letter, place in (
        (letters.top, (middle[0], top - half)),
        (letters.bottom, (middle[0], top + height + half)),
        (letters.left, (left - half, middle[1])),
        (letters.right, (left + width + half, middle[1])),
    ):
        canvas.text(place, letter, size=_SIZE, colour=_TEXT, anchor="mm")


def _coloured(greys: Pixels, lines: ClassMap) -> Pixels:
    """Grey pixels [rows, columns] as [rows, columns, 3], with the class colours where a line has a class index."""
    pixels = np.repeat(greys[..., np.newaxis], 3, axis=2)
    for tumour_class, colour in CLASS_COLOURS.items():
        pixels[lines == tumour_class] = colour
    return pixels


def _draw_footer(
    canvas: Canvas, volumes_ml: Mapping[str, float], warnings: Sequence[str], pixels_per_mm: float, *, empty: bool
) -> None:
    """Legend with volumes, or that there is none; scale, warnings, and how the picture is to be taken."""
    first, second, third, fourth = (_HEADER + _PANELS + line * _LINE for line in range(1, 5))
    if empty:
        canvas.text((_MARGIN, first), _NO_TUMOUR, size=_NAME_SIZE, colour=_WHITE)
        canvas.text((_MARGIN, second), "The cuts go through the middle of the brain.", size=_SIZE, colour=_TEXT)
    else:
        for left, (tumour_class, colour) in zip(_LEFT, CLASS_COLOURS.items(), strict=True):
            canvas.rectangle((left, first - 20), 22, 22, colour)
            words = f"{tumour_class.name}  {CLASS_NAMES[tumour_class]}  {_millilitres(volumes_ml[tumour_class.name])}"
            canvas.text((left + 34, first), words, size=_SIZE, colour=_TEXT)
        for left, region in zip(_LEFT, _REGIONS_BESIDE_CLASSES, strict=False):
            words = f"{region}  {REGION_NAMES[region]}  {_millilitres(volumes_ml[region])}"
            canvas.text((left + 34, second), words, size=_SIZE, colour=_TEXT)
    _draw_scale(canvas, (_WIDTH - _MARGIN, second), pixels_per_mm)
    if warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        room = _WIDTH - 2 * _MARGIN - text_width(more, _SMALL)
        canvas.text((_MARGIN, third), fitted(f"Warning: {warnings[0]}", _SMALL, room) + more, size=_SMALL, colour=_TEXT)
    words = "Radiological view: the patient's left is on the right of axial and coronal cuts."
    canvas.text((_MARGIN, fourth), words, size=_SMALL, colour=_DIM)
    words = "Research use only; not a medical device."
    canvas.text((_WIDTH - _MARGIN, fourth), words, size=_SMALL, colour=_DIM, anchor="rs")


def _draw_scale(canvas: Canvas, right_end: tuple[int, int], pixels_per_mm: float) -> None:
    """A bar of a round length."""
    length_mm = next((mm for mm in _SCALE_BARS_MM if mm * pixels_per_mm <= _CELL // 3), _SCALE_BARS_MM[-1])
    length, (right, baseline) = round(length_mm * pixels_per_mm), right_end
    canvas.rectangle((right - length, baseline - 10), length, 3, _TEXT)
    canvas.text((right - length - 12, baseline), f"{length_mm} mm", size=_SMALL, colour=_TEXT, anchor="rs")


def _millilitres(volume_ml: float) -> str:
    """To a tenth of a mL, what is smaller to a cubic millimetre."""
    return f"{volume_ml:.3f} mL" if 0 < volume_ml < 1 else f"{volume_ml:.1f} mL"


def _whole(mm: float) -> int:
    """Rounded in two steps, so that what lies in the middle but for float rounding goes one way from every orientation."""
    return round(round(mm, 3))
