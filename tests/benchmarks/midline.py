"""Print what the side of a tumour rests on: how well planes mirror brains, and how far they differ from themselves.

    python tests/benchmarks/midline.py CASE_FOLDER CASE_FOLDER ... [--label-maps RESULTS]

Each folder holds `*_flair.nii.gz` and `*_seg.nii.gz` of a case with voxels of 1 mm and axes L, P, S, as BraTS has them. A brain
is where FLAIR is above 0. It is turned by 8 and -12 degrees of yaw, and half as much of roll the other way, in voxels of 2 mm.
RESULTS: label maps of the same cases, whose sides are printed beside those of the references.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of
from drunet_cli.segmentation.label_map import Midplane, midsagittal_plane, sides_of

TURNS_DEGREES: Final = (8.0, -12.0)
STEP: Final = 2
Voxels = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path)
    parser.add_argument("--label-maps", type=Path, metavar="RESULTS")
    arguments = parser.parse_args()
    print("| case | unlike its mirror image | image's middle off by (mm) | differs when turned (mm) | reference | label map |")
    print("|---|---|---|---|---|---|")
    for case in arguments.cases:
        flair = load_volume(next(case.glob("*_flair.nii.gz")))
        brain = flair.brain
        plane = found_in(brain, 1.0)
        places = np.argwhere(brain) + 0.5
        in_plane = places[np.abs(plane.left_of(places)) < 1]
        off_mm = np.abs(in_plane[:, 0] - brain.shape[0] / 2).max()
        apart = ", ".join(f"{differs_when_turned(brain, plane, degrees):.1f}" for degrees in TURNS_DEGREES)
        geometry = fit(brain, affine=flair.affine)
        reference = side_in(next(case.glob("*_seg.nii.gz")), brain, geometry)
        label_map = (
            "" if arguments.label_maps is None else side_in(arguments.label_maps / f"{case.name}.nii.gz", brain, geometry)
        )
        print(f"| {case.name} | {plane.unlikeness:.1%} | {off_mm:.1f} | {apart} | {reference} | {label_map} |", flush=True)


def side_in(label_map: Path, brain: Voxels, geometry: Geometry) -> str:
    sides = sides_of(class_map_of(load_volume(label_map))[0], brain, geometry)
    return "" if sides is None else f"{sides.word}: {sides.left:g}, {sides.middle:g}, {sides.right:g} %"


def found_in(brain: Voxels, size_mm: float) -> Midplane:
    plane = midsagittal_plane(brain, np.full(3, size_mm))
    assert plane is not None, "a case has a brain"
    return plane


def differs_when_turned(brain: Voxels, plane: Midplane, degrees: float) -> float:
    """How far, in mm at most, the plane of a turned brain lies from the turned plane, at the places of the brain."""
    coarse = brain[::STEP, ::STEP, ::STEP]
    left_mm = plane.left_of(np.moveaxis(np.indices(coarse.shape), 0, -1) * STEP + 0.5)
    turned = turn(coarse.astype(np.float32), degrees) > 0.5
    places = np.argwhere(turned)
    found = found_in(turned, STEP).left_of((places + 0.5) * STEP)
    return float(np.abs(turn(left_mm.astype(np.float32), degrees)[turned] - found).max())


def turn(voxels: npt.NDArray[np.float32], degrees: float) -> npt.NDArray[np.float32]:
    for angle, axes in ((degrees, (0, 1)), (-degrees / 2, (0, 2))):
        voxels = ndimage.rotate(voxels, angle, axes=axes, reshape=False, order=1, mode="nearest")
    return voxels


if __name__ == "__main__":
    main()
