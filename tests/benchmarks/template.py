"""Make the template that `drunet prepare` lays brains on: the mean of cases on the BraTS grid, 2 mm, tumours left out.

python -m tests.benchmarks.template BraTS2021_TrainingData -o drunet_cli/prepare/template.nii.gz

The template in the package was made of eighteen cases of BraTS 2021 and one of BraTS 2023 (see NOTICE). Equal cases give equal
bytes. Registered to this mean, the middles of these brains move by 1 to 8 mm, and one by 17 mm. To make a sharper mean of the
registered brains was tried: a patient whose images another toolkit had prepared came to lie 3.8 mm from where that toolkit had
put them, in place of 2.9 mm.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import Modality
from drunet_cli.io.atomic import write_atomically
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.nifti import encode_map, load_volume, new_header
from drunet_cli.prepare.grid import BRATS_AFFINE, BRATS_SHAPE

FACTOR: Final = 2  # millimetres of a voxel
TUMOUR_MARGIN: Final = 3  # voxels around a tumour that it may have changed
LEAST_SHARE: Final = 0.5  # of the brains that must cover a voxel of the template
MEDIAN: Final = 100  # what the median of every brain becomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--modality", type=Modality, default=Modality.T1CE)
    arguments = parser.parse_args()
    shape = tuple(n // FACTOR for n in BRATS_SHAPE)
    total, n_healthy, n_brains = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    cases = find_cases(arguments.cases).cases
    for case in cases:
        voxels = load_volume(case.images[arguments.modality]).voxels
        assert voxels.shape == BRATS_SHAPE, case.name
        assert case.segmentation is not None, case.name
        tumour = ndimage.binary_dilation(load_volume(case.segmentation).voxels > 0, iterations=TUMOUR_MARGIN)
        brain = voxels > 0
        healthy = brain & ~tumour
        total += block_sums(np.where(healthy, voxels / np.median(voxels[healthy]) * MEDIAN, 0))
        n_healthy += block_sums(healthy)
        n_brains += block_sums(brain)
    inside = n_brains >= LEAST_SHARE * len(cases) * FACTOR**3
    mean = np.where(inside, total / np.maximum(n_healthy, 1), 0)
    affine = BRATS_AFFINE.copy()
    affine[:3, :3] *= FACTOR
    affine[:3, 3] += BRATS_AFFINE[:3, :3] @ np.full(3, (FACTOR - 1) / 2)
    template = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    content = encode_map(template, new_header(template.shape, np.uint8, affine), compress=True)
    with write_atomically(arguments.output, overwrite=True) as stream:
        stream.write(content)
    print(f"{arguments.output}: {len(cases)} cases, {len(content) / 1000:.0f} kB")


def block_sums(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Sums of cubes of voxels; what is beyond the last whole cube is left out."""
    i, j, k = (n // FACTOR for n in values.shape)
    cubes = values[: i * FACTOR, : j * FACTOR, : k * FACTOR].reshape(i, FACTOR, j, FACTOR, k, FACTOR)
    return np.asarray(cubes.sum(axis=(1, 3, 5), dtype=np.float64))


if __name__ == "__main__":
    main()
