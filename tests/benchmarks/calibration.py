"""Whether probabilities are as often right as they say, and whether the uncertainty lies where the errors are.

    drunet segment CASES -o RESULTS --weights WEIGHTS --probabilities --uncertainty
    python -m tests.benchmarks.calibration RESULTS CASES

CASES: folders of cases with segmentations, which the weights have not been trained on. RESULTS: what `segment` wrote. Counted
are voxels of the brain, and apart from them those that the label map or the reference calls tumour, where nothing is easy.

ECE: the expected calibration error, the mean difference between the highest of the four probabilities and the share of voxels
in which it is right, over 15 bins of equal width, weighted by their voxels. Source: Guo et al. 2017, On Calibration of Modern
Neural Networks, arXiv:1706.04599, equation 3.
AUROC: the probability that a voxel whose class is wrong has a higher entropy than one whose class is right; ties count half.
Printed are each case and the mean of the cases.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from drunet_cli.brats import TumourClass
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of, read_images

N_BINS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("cases", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = []
    print("| case | ECE, brain | ECE, tumour | AUROC, brain | AUROC, tumour |\n|---|---|---|---|---|")
    for case in find_cases(arguments.cases).cases:
        assert case.segmentation is not None, f"{case.name} has no segmentation"
        reference = class_map_of(load_volume(case.segmentation))[0]
        brain = read_images(case).brain
        probabilities = voxels_of(arguments.results / f"{case.name}_probabilities.nii.gz")
        entropy = voxels_of(arguments.results / f"{case.name}_entropy.nii.gz")
        predicted = class_map_of(load_volume(arguments.results / f"{case.name}.nii.gz"))[0]
        tumour = (predicted != TumourClass.BACKGROUND) | (reference != TumourClass.BACKGROUND)
        confidence, is_right = probabilities.max(axis=-1), predicted == reference
        areas = (brain, tumour)
        rows.append(
            [
                *(calibration_error(confidence[area], is_right[area]) for area in areas),
                *(auroc(entropy[area], ~is_right[area]) for area in areas),
            ]
        )
        print(f"| {case.name} | {' | '.join(f'{score:.3f}' for score in rows[-1])} |", flush=True)
    print(f"| mean of {len(rows)} | {' | '.join(f'{score:.3f}' for score in np.mean(rows, axis=0))} |")


def voxels_of(path: Path) -> npt.NDArray[np.float32]:
    """The voxels of an image of any number of axes."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image.get_fdata(dtype=np.float32)


def calibration_error(confidence: npt.NDArray[np.floating], is_right: npt.NDArray[np.bool_]) -> float:
    """Both [N]; confidence from 0 to 1."""
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    n_right = np.bincount(bins, weights=is_right, minlength=N_BINS)
    confident = np.bincount(bins, weights=confidence, minlength=N_BINS)
    return float(np.abs(n_right - confident).sum() / confidence.size)


def auroc(score: npt.NDArray[np.floating], is_wrong: npt.NDArray[np.bool_]) -> float:
    """Both [N]. Source: the relation of the area to the Mann-Whitney U statistic."""
    ranks = rankdata(score)
    n_wrong = int(np.count_nonzero(is_wrong))
    n_right = is_wrong.size - n_wrong
    return float((ranks[is_wrong].sum() - n_wrong * (n_wrong + 1) / 2) / (n_wrong * n_right))


if __name__ == "__main__":
    main()
