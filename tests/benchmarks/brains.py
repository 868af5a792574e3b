"""Print what drunet's checks of brains rest on: their volumes, shares of the grid, distances to its sides, and outlines.

    python tests/benchmarks/brains.py CASE_FOLDER CASE_FOLDER ...

Each folder holds `*_flair.nii.gz`, `*_t1ce.nii.gz`, `*_t1.nii.gz` and `*_t2.nii.gz` on one grid for all cases.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.evaluation.scores import dice
from drunet_cli.io.checks import voxel_litres
from drunet_cli.io.nifti import load_volume

Mask = npt.NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path)
    masks: dict[str, dict[Modality, Mask]] = {}
    print("| case | litres | share of the grid | voxels to the nearest side in plane |\n|---|---|---|---|")
    for case in parser.parse_args().cases:
        volumes = {modality: load_volume(next(case.glob(f"*_{modality}.nii.gz"))) for modality in CHANNELS}
        masks[case.name] = {modality: volume.voxels > 0 for modality, volume in volumes.items()}
        brain = np.logical_or.reduce(list(masks[case.name].values()))
        litres = np.count_nonzero(brain) * voxel_litres(volumes[Modality.FLAIR].affine)
        reached = [np.flatnonzero(brain.any(axis=(1 - axis, 2))) for axis in (0, 1)]
        margin = min(min(planes[0], brain.shape[axis] - 1 - planes[-1]) for axis, planes in enumerate(reached))
        print(f"| {case.name} | {litres:.2f} | {brain.mean():.3f} | {margin} |")
    flair, *others = CHANNELS
    within = [dice(case[flair], case[modality]) for case in masks.values() for modality in others]
    print(f"Dice of outlines, FLAIR with the others of its case: at least {min(within):.4f}")
    between = [dice(one[flair], other[Modality.T1]) for one, other in itertools.permutations(masks.values(), 2)]
    if between:
        print(f"Dice of outlines, FLAIR with T1 of another case: at most {max(between):.4f}")


if __name__ == "__main__":
    main()
