"""A picture of a segmented case: three cuts with the labels over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import CLASS_COLOURS, CLASS_NAMES, REGION_NAMES, ClassMap, Modality, TumourClass, volume_in_words
from drunet_cli.io.geometry import Affine, Box, Turn, box_of, spacing_mm
from drunet_cli.io.png import BLACK, DIM, LIGHT, WHITE, Canvas, Pixels, enlarged, fitted

Greys = npt.NDArray[np.uint8]
Voxels = npt.NDArray[Any]

_PERCENTILES: Final = (0.5, 99.5)
_MOST_SAMPLED: Final = 2**20  # voxels that the percentiles are taken of


class Plane(StrEnum):
    """The direction of a cut."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


@dataclass(frozen=True)
class Letters:
    """The sides of the patient at which the four edges of a cut lie."""

    top: str
    bottom: str
    left: str
    right: str


LETTERS: Final = {
    Plane.AXIAL: Letters(top="A", bottom="P", left="R", right="L"),
    Plane.CORONAL: Letters(top="S", bottom="I", left="R", right="L"),
    Plane.SAGITTAL: Letters(top="S", bottom="I", left="A", right="P"),
}


@dataclass(frozen=True)
class Cut:
    """One plane through the case.

    greys: by modality, [rows, columns], the contrast already set. classes: class indices [rows, columns].
    height_mm, width_mm: of the whole cut, outer edge to outer edge. position_mm: RAS coordinate of its middle, across it.
    """

    plane: Plane
    greys: Mapping[Modality, Greys]
    classes: ClassMap
    height_mm: float
    width_mm: float
    position_mm: float


def largest_cuts(images: Mapping[Modality, Voxels], class_map: ClassMap, *, affine: Affine) -> tuple[Cut, Cut, Cut]:
    """The axial, the coronal and the sagittal plane with the most tumour voxels; without any tumour, the brain's middle.

    images: each [I, J, K], background 0. class_map: [I, J, K]. affine: voxel indices to RAS millimetres; an oblique one goes to
    the nearest axes. Where several planes hold equally many, the middle one is taken.
    """
    turn = Turn.of(affine, class_map.shape)
    turned = {modality: turn.turned(voxels) for modality, voxels in images.items()}
    classes = turn.turned(class_map)
    box = box_of_all([*turned.values(), classes])
    windows = {modality: grey_window(voxels[box]) for modality, voxels in turned.items()}
    tumour = classes[box] > 0
    of_tumour = box_of(tumour)

    def cut(plane: Plane, axis: int) -> Cut:
        index = box[axis].start + _fullest(tumour, of_tumour, axis)
        section = (*box[:axis], index, *box[axis + 1 :])
        greys = {modality: _grey(_seen(voxels[section], plane), windows[modality]) for modality, voxels in turned.items()}
        seen = _seen(classes[section], plane)
        across_mm, down_mm = np.delete(spacing_mm(turn.affine), axis)
        height_mm, width_mm = float(seen.shape[0] * down_mm), float(seen.shape[1] * across_mm)
        return Cut(plane, greys, seen, height_mm, width_mm, _position_mm(turn.affine, classes.shape, axis, index))

    return cut(Plane.AXIAL, 2), cut(Plane.CORONAL, 1), cut(Plane.SAGITTAL, 0)


def box_of_all(volumes: Sequence[Voxels]) -> Box:
    """The box of whatever is above 0 in any; the whole of them where nothing is."""
    whole = (slice(0, volumes[0].shape[0]), slice(0, volumes[0].shape[1]), slice(0, volumes[0].shape[2]))
    mask = np.asarray(volumes[0] > 0)
    for voxels in volumes[1:]:
        mask |= voxels > 0
    return box_of(mask) or whole


def _fullest(mask: npt.NDArray[np.bool_], box: Box | None, axis: int) -> int:
    """The plane across this axis with the most voxels; the middle one of those that have as many. box: of the mask."""
    if box is None:
        return int(mask.shape[axis]) // 2
    counts = np.count_nonzero(mask[box], axis=tuple({0, 1, 2} - {axis}))
    fullest = np.flatnonzero(counts == counts.max())
    return int(box[axis].start) + int(fullest[len(fullest) // 2])


def _position_mm(affine: Affine, shape: tuple[int, ...], axis: int, index: int) -> float:
    """affine, shape: of the turned volume. index: of the plane across this axis."""
    middle = (np.array(shape) - 1) / 2
    middle[axis] = index
    return float(affine[axis] @ [*middle, 1])


def _seen(section: Voxels, plane: Plane) -> Voxels:
    """A plane of turned voxels, its two axes in their order, as [rows, columns]."""
    return section.T if plane is Plane.AXIAL else section.T[::-1]


def grey_window(voxels: Voxels) -> tuple[float, float]:
    """The intensities that become black and white: percentiles of the brain, which is whatever is above 0.

    A brain of one intensity becomes grey.
    """
    step = max(1, math.ceil((voxels.size / _MOST_SAMPLED) ** (1 / 3)))
    sampled = voxels[::step, ::step, ::step]
    brain = sampled[sampled > 0]
    if brain.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(brain, _PERCENTILES))
    return (low, high) if low < high else (0.0, 2 * high)


def _grey(section: Voxels, window: tuple[float, float]) -> Greys:
    low, high = window
    shares = (np.clip(section.astype(np.float64), low, high) - low) / (high - low)
    return np.rint(shares * 255).astype(np.uint8)


_EIGHT_NEIGHBOURS: Final = np.ones((3, 3))


def stretched(classes: ClassMap, size: tuple[int, int]) -> ClassMap:
    """Class indices [rows, columns] at another size, never mixed; where that is smaller, the highest of those that meet.

    So no voxel of tumour is lost, and none turns into background beside it.
    """
    for axis, length in enumerate(size):
        available = classes.shape[axis]
        if length < available:
            classes = np.maximum.reduceat(classes, np.arange(length) * available // length, axis=axis)
        else:
            # The voxel whose area holds the centre of the pixel, in whole numbers so that nothing is rounded.
            classes = classes.take((2 * np.arange(length) + 1) * available // (2 * length), axis=axis)
    return classes


def outlines(classes: ClassMap, thickness: int) -> ClassMap:
    """The class index along the inner edge of its area, 0 elsewhere.

    Towards background it has the full thickness; of two classes that meet, the inner one alone, as two lines would hide what
    lies between: necrosis lies within enhancing tumour, and both within oedema. But enhancing tumour keeps half a line there,
    so that none of it is without its colour.
    classes: [rows, columns]. thickness: pixels, even. Beyond the border of the picture lies background.
    """
    rows, columns = classes.shape
    padded = np.pad(classes, thickness)
    necrosis, enhancing = classes == TumourClass.NCR, classes == TumourClass.ET
    edge = np.zeros(classes.shape, dtype=bool)
    for distance in range(1, thickness + 1):
        for down, across in ((distance, 0), (-distance, 0), (0, distance), (0, -distance)):
            there = padded[thickness + down :, thickness + across :][:rows, :columns]
            edge |= there == TumourClass.BACKGROUND
            edge |= necrosis & (there != TumourClass.NCR)
            edge |= enhancing & (there == TumourClass.ED)
            if distance <= thickness // 2:
                edge |= enhancing & (there == TumourClass.NCR)
    return np.where(edge, classes, np.uint8(TumourClass.BACKGROUND))


def surrounded_specks(classes: ClassMap, side: int, margin: int) -> ClassMap:
    """Class indices with every lone speck grown by `margin` pixels into the background, so that its outline lies around it.

    classes: [rows, columns]. A lone speck is a connected part of the tumour that fits a square of `side` pixels.
    """
    parts, boxes = _parts(classes)
    small = [number for number, box in enumerate(boxes, start=1) if _fits(box, side)]
    if not small:
        return classes
    grown = ndimage.grey_dilation(np.where(np.isin(parts, small), classes, np.uint8(0)), size=2 * margin + 1)
    return np.where(classes == TumourClass.BACKGROUND, grown, classes)


def centres_if_all_specks(classes: ClassMap, side: int) -> list[tuple[int, int]]:
    """The centre (row, column) of every connected part of the tumour, if each fits a square of this side; else none."""
    _, boxes = _parts(classes)
    if not all(_fits(box, side) for box in boxes):
        return []
    return [((rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2) for rows, columns in boxes]


def _parts(classes: ClassMap) -> tuple[npt.NDArray[np.int32], list[tuple[slice, slice]]]:
    """Connected parts of the tumour, numbered from 1, and the box of each."""
    parts, _ = ndimage.label(classes > 0, structure=_EIGHT_NEIGHBOURS)
    return parts, ndimage.find_objects(parts)


def _fits(box: tuple[slice, slice], side: int) -> bool:
    return all(extent.stop - extent.start <= side for extent in box)


_REGIONS_BESIDE_CLASSES: Final = ("WT", "TC")  # ET is a class too
_NO_TUMOUR: Final = "No tumour was found"
_NO_DEVICE: Final = "Research use only; not a medical device."
_WORLD_AXES: Final = {Plane.AXIAL: "z", Plane.CORONAL: "y", Plane.SAGITTAL: "x"}


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
_SPECK: Final = 12  # the side of a small part
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
    caveat: str = "",
) -> bytes:
    """The picture as a PNG file of 1496 x 1244 pixels. Equal arguments give equal bytes.

    flair, t1ce: [I, J, K] in the case's own axes, any type, background 0. class_map: class indices [I, J, K].
    affine: voxel indices to RAS millimetres. volumes_ml: of NCR, ED, ET, WT and TC, as `brats.volumes_ml` gives them.
    caveat: what is to be said of the weights.
    The same case stored in another orientation gives the same picture.
    """
    cuts = largest_cuts({Modality.FLAIR: flair, Modality.T1CE: t1ce}, class_map, affine=affine)
    pixels_per_mm = _PICTURE / max(max(cut.height_mm, cut.width_mm) for cut in cuts)
    canvas = Canvas(_WIDTH, _HEIGHT, BLACK)
    words = fitted(name, _NAME_SIZE, _WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, _MARGIN + 26), words, size=_NAME_SIZE, colour=WHITE)
    for top, modality in zip(_TOP, cuts[0].greys, strict=True):
        canvas.text((_MARGIN, top + 18), modality.display, size=_SIZE, colour=LIGHT)
    for left, cut in zip(_LEFT, cuts, strict=True):
        words = f"{cut.plane}, {_WORLD_AXES[cut.plane]} = {_whole(cut.position_mm)} mm"
        canvas.text((left + _CELL // 2, _HEADER - 10), words, size=_SMALL, colour=DIM, anchor="ms")
        _draw_cut(canvas, cut, left, pixels_per_mm)
    _draw_footer(canvas, volumes_ml, warnings, caveat, pixels_per_mm, empty=not class_map.any())
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
            canvas.ring((left + column, top + row), _RING_RADIUS, _OUTLINE, WHITE)
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
        canvas.text(place, letter, size=_SIZE, colour=LIGHT, anchor="mm")


def _coloured(greys: Pixels, lines: ClassMap) -> Pixels:
    """Grey pixels [rows, columns] as [rows, columns, 3], with the class colours where a line has a class index."""
    pixels = np.repeat(greys[..., np.newaxis], 3, axis=2)
    for tumour_class, colour in CLASS_COLOURS.items():
        pixels[lines == tumour_class] = colour
    return pixels


def _draw_footer(
    canvas: Canvas,
    volumes_ml: Mapping[str, float],
    warnings: Sequence[str],
    caveat: str,
    pixels_per_mm: float,
    *,
    empty: bool,
) -> None:
    """Legend with volumes, or that there is none; scale, warnings, and how the picture is to be taken."""
    first, second, third, fourth = (_HEADER + _PANELS + line * _LINE for line in range(1, 5))
    if empty:
        canvas.text((_MARGIN, first), _NO_TUMOUR, size=_NAME_SIZE, colour=WHITE)
        canvas.text((_MARGIN, second), "The cuts go through the middle of the brain.", size=_SIZE, colour=LIGHT)
    else:
        for left, (tumour_class, colour) in zip(_LEFT, CLASS_COLOURS.items(), strict=True):
            canvas.rectangle((left, first - 20), 22, 22, colour)
            words = f"{tumour_class.name}  {CLASS_NAMES[tumour_class]}  {volume_in_words(volumes_ml[tumour_class.name])}"
            canvas.text((left + 34, first), words, size=_SIZE, colour=LIGHT)
        for left, region in zip(_LEFT, _REGIONS_BESIDE_CLASSES, strict=False):
            words = f"{region}  {REGION_NAMES[region]}  {volume_in_words(volumes_ml[region])}"
            canvas.text((left + 34, second), words, size=_SIZE, colour=LIGHT)
    _draw_scale(canvas, (_WIDTH - _MARGIN, second), pixels_per_mm)
    canvas.first_warning((_MARGIN, third), warnings, size=_SMALL, width=_WIDTH - 2 * _MARGIN)
    words = "Radiological view: the patient's left is on the right of axial and coronal cuts."
    canvas.text((_MARGIN, fourth), words, size=_SMALL, colour=DIM)
    words, colour = (f"{caveat[:1].upper()}{caveat[1:]}.", WHITE) if caveat else (_NO_DEVICE, DIM)
    canvas.text(
        (_WIDTH - _MARGIN, fourth), fitted(words, _SMALL, _WIDTH // 2 - _MARGIN), size=_SMALL, colour=colour, anchor="rs"
    )


def _draw_scale(canvas: Canvas, right_end: tuple[int, int], pixels_per_mm: float) -> None:
    """A bar of a round length."""
    length_mm = next((mm for mm in _SCALE_BARS_MM if mm * pixels_per_mm <= _CELL // 3), _SCALE_BARS_MM[-1])
    length, (right, baseline) = round(length_mm * pixels_per_mm), right_end
    canvas.rectangle((right - length, baseline - 10), length, 3, LIGHT)
    canvas.text((right - length - 12, baseline), f"{length_mm} mm", size=_SMALL, colour=LIGHT, anchor="rs")


def _whole(mm: float) -> int:
    """Rounded in two steps, so that what lies in the middle but for float rounding goes one way from every orientation."""
    return round(round(mm, 3))
