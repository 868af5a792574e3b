"""A seeded synthetic case for the demo, tests and training: four skull-stripped images of a brain with a glioma, and the truth.

Anatomy is built in atlas millimetres: x to the left, y to the back, z upwards, 0 near the middle of the brain, the SRI24 size
of BraTS. A structure is a signed distance, which becomes a share of tissue by a ramp one voxel wide, and is bent by smooth
noise. Tissues then get intensities, and the scanner adds blur, noise and a bias field. Lengths without a unit are atlas mm.

Outlines, tissue contrasts, textures and volumes were measured on ten BraTS 2021 cases; no voxel of them is in here.
"""

import gzip
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, ClassMap, Labels, Modality, TumourClass, label_values
from drunet_cli.errors import MisuseError
from drunet_cli.io import atomic
from drunet_cli.io.case import Case, case_of
from drunet_cli.io.naming import SEGMENTATION, may_name_a_file
from drunet_cli.io.nifti import encode_label_map
from drunet_cli.io.nifti_header import new_header
from drunet_cli.phantom.glioma import draw_glioma
from drunet_cli.phantom.grid import BRATS_SHAPE, Grid, Shape
from drunet_cli.phantom.head import Head, healthy_shares
from drunet_cli.phantom.scanner import scanned
from drunet_cli.phantom.tumour import tumour_shares

_SMALLEST: Final = 24  # voxels an axis, below which nothing looks like a brain
_GZIP_LEVEL: Final = 1  # voxel noise hardly compresses; level 6 takes four times as long for 5 %


@dataclass(frozen=True)
class Phantom:
    """A synthetic case. images: int16 [X, Y, Z], above 0 in the brain alone, which is one mask for all four.

    affine: 4 x 4, voxel axes L, P, S as in BraTS.
    """

    images: Mapping[Modality, npt.NDArray[np.int16]]
    class_map: ClassMap
    affine: npt.NDArray[np.float64]


def make_phantom(
    seed: int,
    *,
    shape: Shape = BRATS_SHAPE,
    spacing_mm: float = 1.0,
    tumour: bool = True,
    enhancing: bool | None = None,
) -> Phantom:
    """The case of this seed. The same head and tumour at every shape, only the noise is drawn anew.

    A volume smaller than BraTS' 240 x 240 x 155 mm holds the whole brain made smaller. Without a tumour the brain is that of
    the same seed, unequal only around where its tumour would be. enhancing: whether it has enhancing tumour; by default the
    seed decides (about three of four have). Its size may differ between the two: what does not enhance is larger.
    Equal arguments give equal arrays, but for rounding of numpy's functions on other processors, or another stream of its
    generator in a later release. Raises ValueError for a negative seed or a shape too small for a brain.
    """
    if min(shape) < _SMALLEST or spacing_mm <= 0:
        raise ValueError(f"shape {shape} at {spacing_mm} mm is too small for a brain")
    for_head, for_tumour, for_scan = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3))
    grid = Grid.of(shape, spacing_mm)
    glioma = draw_glioma(for_tumour, enhancing)
    grid = grid.around(Head.of(grid.coarser(), deepcopy(for_head), None).brain)  # with or without a tumour the same voxels
    head = Head.of(grid, for_head, glioma if tumour else None)
    shares = healthy_shares(head, for_head)
    class_map = np.zeros(shape, dtype=np.uint8)
    if tumour:
        of_tumour, classes = tumour_shares(glioma, head, shares, for_tumour)
        shares |= of_tumour
        class_map[grid.box] = grid.spread(np.where(head.brain, classes, TumourClass.BACKGROUND))
    images = {modality: np.zeros(shape, dtype=np.int16) for modality in CHANNELS}
    for modality, image in scanned(shares, head, for_scan):
        images[modality][grid.box] = image
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = (shape[1] - 1) * spacing_mm
    return Phantom(images, class_map, affine)


def write_phantom(
    phantom: Phantom, folder: Path, name: str, *, labels: Labels = Labels.BRATS2020, overwrite: bool = False
) -> Case:
    """Write `folder/name/name_flair.nii.gz` and so on, `name_seg.nii.gz` with the truth, named as BraTS 2021 names them.

    Nothing is written when one of the five exists and is not to be replaced. Raises OutputError, and MisuseError for a name
    that cannot be that of a file.
    """
    if not may_name_a_file(name):
        raise MisuseError(f"{name!r}: cannot be part of a file name; give the case another")
    check_phantom_writable(folder, name, overwrite=overwrite)
    paths = _paths(folder, name)
    header = new_header(phantom.class_map.shape, np.int16, phantom.affine)
    for modality, voxels in phantom.images.items():
        with atomic.written(paths[modality], overwrite=overwrite) as stream:
            content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
            stream.write(gzip.compress(content, _GZIP_LEVEL, mtime=0))
    with atomic.written(paths[SEGMENTATION], overwrite=overwrite) as stream:
        stream.write(encode_label_map(label_values(phantom.class_map, labels), header, compress=True))
    images = {modality: paths[modality] for modality in CHANNELS}
    return case_of(images, name=name, segmentation=paths[SEGMENTATION])


def check_phantom_writable(folder: Path, name: str, *, overwrite: bool) -> None:
    """Raise OutputError now for what would stop write_phantom later."""
    for path in _paths(folder, name).values():
        atomic.check_writable(path, overwrite=overwrite)


def _paths(folder: Path, name: str) -> dict[str, Path]:
    return {role: folder / name / f"{name}_{role}.nii.gz" for role in (*CHANNELS, SEGMENTATION)}
