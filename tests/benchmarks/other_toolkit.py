"""How near a case that `drunet prepare` made comes to the same patient prepared by another toolkit.

    python -m tests.benchmarks.other_toolkit PREPARED OTHER [--labels PREDICTED REFERENCE] [--atlas FILE]

PREPARED, OTHER: case folders with four images on the BraTS grid. Prints the correlation of T1ce within both brains (voxels
above 0) and the Dice of the brains, as placed and after a rigid registration of the two T1ce, and how far that moves the brain.
--labels: a label map of PREPARED and one of OTHER, whose whole tumours are compared alike. --atlas: a skull-stripped image,
such as the one that the other toolkit uses; prints the normalised mutual information of each image with the atlas, within both
images and the atlas. The better an image lies on the atlas, the more.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.evaluation.scores import dice
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.geometry import Affine
from drunet_cli.io.nifti import Volume, load_volume
from drunet_cli.prepare.registration import isotropic, mutual_information, register, resampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--labels", type=Path, nargs=2, metavar=("PREDICTED", "REFERENCE"))
    parser.add_argument("--atlas", type=Path)
    arguments = parser.parse_args()
    prepared, other = (find_cases([folder]).cases[0] for folder in (arguments.prepared, arguments.other))
    ours, theirs = (load_volume(case.files[Modality.T1CE]) for case in (prepared, other))
    found = register(*(isotropic(np.asarray(t1ce.voxels), t1ce.affine) for t1ce in (ours, theirs)))
    voxels = np.argwhere(np.asarray(theirs.voxels) > 0) @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
    moved = np.linalg.norm(voxels @ found[:3, :3].T + found[:3, 3] - voxels, axis=1)
    print(f"placed {moved.mean():.1f} mm (mean), at most {moved.max():.1f} mm, from the other's place")
    print("| measure | as placed | after registering the two T1ce |\n|---|---|---|")
    in_both = [compared(ours, theirs, transform) for transform in (np.eye(4), found)]
    for words, values in zip(("correlation of T1ce", "Dice of the brains"), zip(*in_both, strict=True), strict=True):
        print(f"| {words} | {' | '.join(f'{value:.3f}' for value in values)} |")
    if arguments.labels is not None:
        predicted, reference = map(load_volume, arguments.labels)
        tumours = [dice(on_grid(predicted, reference, each, mask=True) > 0.5, tumour(reference)) for each in (np.eye(4), found)]
        print(f"| Dice of whole tumour | {' | '.join(f'{value:.3f}' for value in tumours)} |")
    if arguments.atlas is not None:
        print_agreement(prepared, other, load_volume(arguments.atlas))


def tumour(label_map: Volume) -> npt.NDArray[np.bool_]:
    return np.asarray(label_map.voxels) > 0


def on_grid(image: Volume, grid: Volume, transform: Affine, *, mask: bool = False) -> npt.NDArray[np.float32]:
    """An image, or where it is above 0, at the voxels of another one."""
    voxels = tumour(image).astype(np.float32) if mask else np.asarray(image.voxels)
    return resampled(voxels, image.affine, grid.affine, grid.voxels.shape, transform=transform)


def compared(ours: Volume, theirs: Volume, transform: Affine) -> tuple[float, float]:
    """Correlation within both brains, and the Dice of the brains."""
    moved, fixed = on_grid(ours, theirs, transform), np.asarray(theirs.voxels)
    brain, inside = on_grid(ours, theirs, transform, mask=True) > 0.5, fixed > 0
    return float(np.corrcoef(moved[brain & inside], fixed[brain & inside])[0, 1]), dice(brain, inside)


def print_agreement(prepared: Case, other: Case, atlas: Volume) -> None:
    print("| normalised mutual information with the atlas | other toolkit | drunet |\n|---|---|---|")
    fixed = np.asarray(atlas.voxels)
    for modality in CHANNELS:
        images = [on_grid(load_volume(case.files[modality]), atlas, np.eye(4)) for case in (other, prepared)]
        inside = (fixed > 0) & np.logical_and(*(image > 0 for image in images))
        values = " | ".join(f"{mutual_information(fixed, image, inside):.4f}" for image in images)
        print(f"| {modality.display} | {values} |")


if __name__ == "__main__":
    main()
