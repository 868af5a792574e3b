"""Write cases for training in which the tumour of one patient stands in the brain of another, both on the BraTS grid.

    python -m tests.benchmarks.carved_cases CASES FOLDER --donors 2

FOLDER/HOST_DONOR is the host's case with all of the donor's tumour and some millimetres around it, half of the time mirrored
from left to right. The donor's images are scaled so that its brain without tumour has the host's median and quartiles. Borders
of the part are blended, and lie in tissue that is labelled as the donor's. Idea: CarveMix (Zhang et al., MICCAI 2021), which
cuts through tumours too. Both patients must be among those that a network may learn from.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import Modality

SEED: Final = 0
MARGIN_MM: Final = (4.0, 12.0)  # around the donor's tumour
BLEND_MM: Final = 3.0
FAR_MM: Final = 5  # from a tumour to tissue that counts as free of it


def main(cases: Path, folder: Path, *, donors: int) -> None:
    names = sorted(path.name for path in cases.iterdir() if path.is_dir())
    rng = np.random.default_rng(SEED)
    for host in names:
        for donor in rng.choice([name for name in names if name != host], donors, replace=False):
            write(cases / host, cases / str(donor), folder, rng)


def write(host: Path, donor: Path, folder: Path, rng: np.random.Generator) -> None:
    target = folder / f"{host.name}_{donor.name}"
    target.mkdir(parents=True)
    classes, given = read_classes(host), read_classes(donor)
    mirrored = bool(rng.random() < 0.5)
    if mirrored:
        given = given[::-1]
    margin = float(rng.uniform(*MARGIN_MM))
    distance = ndimage.distance_transform_edt(given == 0)  # voxels of 1 mm
    share = np.clip((margin - distance) / BLEND_MM, 0, 1)
    brains = []
    images = {}
    for modality in Modality:
        ours, theirs = read(host, modality), read(donor, modality)
        if mirrored:
            theirs = theirs[::-1]
        images[modality] = ours, theirs
        brains.append((ours > 0) & (theirs > 0))
    share *= np.logical_and.reduce(brains)
    free, given_free = far_from(classes), far_from(given)
    affine = nib.Nifti1Image.from_filename(file_of(host, Modality.FLAIR)).affine
    for modality, (ours, theirs) in images.items():
        low, middle, high = np.percentile(ours[free & (ours > 0)], (25, 50, 75))
        their_low, their_middle, their_high = np.percentile(theirs[given_free & (theirs > 0)], (25, 50, 75))
        scaled = np.maximum((theirs - their_middle) * (high - low) / (their_high - their_low) + middle, 1)
        mixed = (1 - share) * ours + share * scaled
        nib.save(
            nib.Nifti1Image(np.clip(np.rint(mixed), 0, 32767).astype(np.int16), affine),
            target / f"{target.name}_{modality.value}.nii.gz",
        )
    labels = np.where(share > 0.5, given, classes)
    labels[labels == 3] = 4
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), target / f"{target.name}_seg.nii.gz")


def far_from(classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(~ndimage.binary_dilation(classes > 0, iterations=FAR_MM))


def file_of(case: Path, what: str) -> Path:
    return case / f"{case.name}_{what}.nii.gz"


def read(case: Path, what: str) -> npt.NDArray[Any]:
    return np.asarray(nib.Nifti1Image.from_filename(file_of(case, what)).dataobj, dtype=np.float32)


def read_classes(case: Path) -> npt.NDArray[Any]:
    labels = read(case, "seg").astype(np.uint8)
    labels[labels == 4] = 3
    return labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--donors", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.cases, arguments.folder, donors=arguments.donors)
