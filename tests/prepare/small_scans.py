"""Scans that take next to no time: of a few voxels, and on the BraTS grid already."""

import struct
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.io.case import Case, case_of
from drunet_cli.prepare.grid import BRATS_AFFINE, BRATS_SHAPE
from drunet_cli.prepare.preparation import PreparationSettings
from drunet_cli.prepare.prepared_case import PreparedFiles, plan_preparations, prepare_case
from tests.prepare.simulated import write_nifti

NAME: Final = "p1"
Stripped = tuple[Case, PreparedFiles, str]


def small_scan(path: Path, *, shape: tuple[int, int, int] = (20, 20, 20), spacing_mm: float = 4.0, code: int = 1) -> Path:
    voxels = np.random.default_rng(sum(map(ord, path.name))).integers(1, 900, shape).astype(np.int16)
    return write_nifti(path, voxels, np.diag([spacing_mm, spacing_mm, spacing_mm, 1]), code=code)


def brats_case(folder: Path, name: str = NAME) -> Case:
    """Four blobs on the BraTS grid, smaller than any brain: the network has less to compute."""
    i, j, k = np.ogrid[: BRATS_SHAPE[0], : BRATS_SHAPE[1], : BRATS_SHAPE[2]]
    distance = np.sqrt(((i - 120) / 22) ** 2 + ((j - 120) / 26) ** 2 + ((k - 75) / 15) ** 2)
    inside = distance < 1
    paths = {}
    for level, modality in enumerate(CHANNELS, start=1):
        voxels = np.zeros(BRATS_SHAPE, dtype=np.int16)
        voxels[inside] = (900 - 100 * level * distance[inside]).astype(np.int16)
        paths[modality] = write_nifti(folder / f"{name}_{modality}.nii", voxels, BRATS_AFFINE)
    return case_of(paths)


def prepared_at_once(folder: Path) -> Stripped:
    """A case on the BraTS grid that names its patient, what was made of it, and what was told; no test changes them."""
    case = brats_case(folder / "raw")
    scaled = case.images[Modality.T2]
    content = bytearray(scaled.read_bytes())
    content[112:120] = struct.pack("<ff", 0.5, 0)  # scl_slope, scl_inter
    content[148:154] = b"Miller"  # descrip
    scaled.write_bytes(content)
    (planned,) = plan_preparations([case], PreparationSettings(folder=folder / "out"))
    result = prepare_case(planned)
    assert result is not None
    return case, planned.files, result.in_words
