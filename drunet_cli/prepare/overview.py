"""A picture of a prepared case: the four scans on the BraTS grid, skull and all, with the outline of the brain over each.

A scan that was registered badly does not fill the outline; a mask that is wrong cuts into the brain, or goes around an eye.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import Colour, Modality
from drunet_cli.io.geometry import box_of
from drunet_cli.io.png import BLACK, DIM, LIGHT, WHITE, Canvas, Pixels, enlarged, fitted

_ORDER: Final = (Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR)
_OUTLINE: Final[Colour] = (0xF0, 0xE4, 0x42)  # yellow of Okabe and Ito, which no grey hides
_BRIGHTEST_PERCENTILE: Final = 99.5

# Pixels. A voxel of the grid is a square of three halves.
_SCALE: Final = 1.5
_MARGIN: Final = 24
_GAP: Final = 12
_CELL: Final = 360
_HEADER: Final = 104
_NAME_SIZE: Final = 34
_SIZE: Final = 26
_SMALL: Final = 22
_LINE: Final = 40
_LETTERS: Final = (("A", "R"), ("S", "R"), ("S", "A"))  # at the top and at the left of each plane


def draw_overview(
    images: Mapping[Modality, npt.NDArray[Any]], brain: npt.NDArray[np.bool_], *, name: str, warnings: Sequence[str] = ()
) -> bytes:
    """The picture as a PNG file. Equal arguments give equal bytes.

    images: each [X, Y, Z] on the BraTS grid (L, P, S), with or without skull. brain: [X, Y, Z].
    """
    middle = _middle_of(brain)
    heights = [round(rows * _SCALE) for rows in (brain.shape[1], brain.shape[2], brain.shape[2])]
    width = 2 * _MARGIN + len(_ORDER) * _CELL + (len(_ORDER) - 1) * _GAP
    canvas = Canvas(width, _HEADER + sum(heights) + len(heights) * _GAP + 2 * _LINE + _MARGIN, BLACK)
    canvas.text((_MARGIN, _MARGIN + 26), fitted(name, _NAME_SIZE, width - 2 * _MARGIN), size=_NAME_SIZE, colour=WHITE)
    for column, modality in enumerate(_ORDER):
        left = _MARGIN + column * (_CELL + _GAP)
        canvas.text((left + _CELL // 2, _HEADER - 12), modality.display, size=_SIZE, colour=LIGHT, anchor="ms")
        brightest = _brightest(images[modality], brain)
        top = _HEADER
        for axis, height in zip((2, 1, 0), heights, strict=True):
            canvas.paste(_cut(images[modality], brain, brightest, axis, middle[axis]), (left, top))
            if column == 0:
                for letter, place in zip(_LETTERS[2 - axis], ((_CELL // 2, 14), (12, height // 2)), strict=True):
                    canvas.text((left + place[0], top + place[1]), letter, size=_SMALL, colour=LIGHT, anchor="mm")
            top += height + _GAP
    baseline = top + _LINE // 2
    canvas.first_warning((_MARGIN, baseline), warnings, size=_SMALL, width=width - 2 * _MARGIN)
    words = "Yellow: the brain, the same in all. Radiological view: the patient's left is on the right."
    canvas.text((_MARGIN, baseline + _LINE), words, size=_SMALL, colour=DIM)
    return canvas.png()


def _middle_of(brain: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    box = box_of(brain)
    if box is None:
        return tuple(n // 2 for n in brain.shape)
    middle = [(part.start + part.stop) // 2 for part in box]
    middle[0] -= (box[0].stop - box[0].start) // 8  # beside the cleft between the halves, which shows little
    return tuple(middle)


def _brightest(voxels: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> float:
    """The intensity that becomes white, as 0 becomes black: one of the brain, so that a bright skull darkens nothing."""
    inside = voxels[brain]
    inside = inside[inside > 0]
    return float(np.percentile(inside, _BRIGHTEST_PERCENTILE)) if inside.size else 1.0


def _cut(voxels: npt.NDArray[Any], brain: npt.NDArray[np.bool_], brightest: float, axis: int, index: int) -> Pixels:
    """One plane across an axis, [rows, columns, 3], with the outline."""
    section: npt.NDArray[Any] = np.take(voxels, index, axis=axis).T
    inside: npt.NDArray[np.bool_] = np.take(brain, index, axis=axis).T
    if axis != 2:  # the head's top is where Z ends
        section, inside = section[::-1], inside[::-1]
    shares = np.clip(section.astype(np.float64) / brightest, 0, 1)
    greys: Pixels = np.rint(shares * 255).astype(np.uint8)
    size = (round(section.shape[0] * _SCALE), _CELL)
    pixels = np.repeat(enlarged(greys, size)[..., np.newaxis], 3, axis=2)
    area = enlarged(inside.astype(np.uint8) * 255, size) > 127
    pixels[area & ~ndimage.binary_erosion(area, iterations=2)] = _OUTLINE
    return pixels
