"""Which post-processing label maps of held-out cases ask for: Dice, whole and by lesions, of each choice.

    python -m tests.benchmarks.postprocessing RESULTS CASES [--jobs N]

RESULTS: label maps that `segment` wrote without post-processing, by weights that have not been trained on the cases. CASES:
folders of cases with segmentations. A row is a choice of `--min-volume` and `--min-enhancing`. Dice is the mean over the cases
that have the region; the last column counts the cases in which enhancing tumour is found and there is none. Lesion-wise Dice is
that of BraTS 2023 (`drunet evaluate --convention lesionwise`), which counts every false part.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.brats import REGIONS, ClassMap, Convention, TumourClass
from drunet_cli.evaluation.evaluate import compare
from drunet_cli.evaluation.scores import SpacingMm
from drunet_cli.io.checks import voxel_litres
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of
from drunet_cli.segmentation.label_map import clean_up
from drunet_cli.weights.checkpoint import Postprocessing

# Limits for the parts of WT; with the best of these, those of TC; with the best of both, those of ET; and for all of ET.
MIN_VOLUMES_ML: Final = (
    *((volume, 0.0, 0.0) for volume in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)),
    *((1.0, volume, 0.0) for volume in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)),
    *((1.0, 0.5, volume) for volume in (0.05, 0.1, 0.25, 0.5, 1.0)),
)
CHOICES: Final = [
    *(Postprocessing(min_volume_ml=volumes) for volumes in MIN_VOLUMES_ML),
    *(Postprocessing(min_volume_ml=(1.0, 0.5, 0.1), min_enhancing_ml=volume) for volume in (0.1, 0.25, 0.5)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    references = [(case.name, case.segmentation) for case in find_cases(arguments.cases).cases if case.segmentation is not None]
    with Pool(arguments.jobs) as pool:
        by_case = pool.map(partial(scores_of_case, arguments.results), references, chunksize=1)
    columns = [f"{score} {region}" for score in Convention for region in REGIONS]
    print(f"{len(by_case)} cases\n| min volume | min enhancing | {' | '.join(columns)} | false ET |")
    print("|---" * (3 + len(columns)) + "|")
    for choice, rows in zip(CHOICES, zip(*by_case, strict=True), strict=True):
        means = np.nanmean([scores for scores, _ in rows], axis=0)
        shown = " | ".join(f"{mean:.3f}" for mean in means)
        n_false = sum(is_false for _, is_false in rows)
        parts = ", ".join(f"{volume:g}" for volume in choice.least_parts_ml.values())
        print(f"| {parts} | {choice.min_enhancing_ml} | {shown} | {n_false} |")


def scores_of_case(results: Path, case: tuple[str, Path]) -> list[tuple[list[float], bool]]:
    """For each choice, Dice by convention and region, NaN where the reference lacks the region; and whether ET is false."""
    name, path = case
    reference_volume = load_volume(path)
    reference = class_map_of(reference_volume)[0]
    predicted = class_map_of(load_volume(results / f"{name}.nii.gz"))[0]
    voxel_ml = voxel_litres(reference_volume.affine) * 1000
    rows = []
    scores_by_map: dict[bytes, list[float]] = {}  # most choices change nothing
    for choice in CHOICES:
        cleaned = clean_up(predicted, choice, voxel_ml=voxel_ml).class_map
        if (key := cleaned.tobytes()) not in scores_by_map:
            scores_by_map[key] = list(scores_of(cleaned, reference, reference_volume.spacing_mm))
        is_false = bool((cleaned == TumourClass.ET).any() and not (reference == TumourClass.ET).any())
        rows.append((scores_by_map[key], is_false))
    return rows


def scores_of(cleaned: ClassMap, reference: ClassMap, spacing_mm: SpacingMm) -> Iterator[float]:
    for convention in Convention:
        scores = compare(cleaned, reference, spacing_mm=spacing_mm, convention=convention)
        for region, classes in REGIONS.items():
            yield scores[region].dice if np.isin(reference, classes).any() else np.nan


if __name__ == "__main__":
    main()
