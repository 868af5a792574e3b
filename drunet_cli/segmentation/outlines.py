"""Labels of a cut at the resolution of a picture: their outlines, and specks too small to be noticed. Arrays only."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import ClassMap, TumourClass

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
