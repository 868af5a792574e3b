"""Print what drunet's checks of label maps rest on: how references, or other label maps, lie in their brains.

    python tests/benchmarks/label_maps.py CASES_FOLDER [LABEL_MAPS]

CASES_FOLDER holds cases with segmentations. LABEL_MAPS holds CASE.nii.gz of drunet segment: these are measured in place of the
segmentations, and their Dice is printed before and after `--within-brain` where that changes anything.
"""

import argparse
from pathlib import Path

import numpy as np

from drunet_cli.brats import REGIONS, ClassMap
from drunet_cli.evaluation.scores import dice
from drunet_cli.io.checks import voxel_litres
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of, read_images
from drunet_cli.segmentation.label_map import clean_up, label_map_warnings, measure
from drunet_cli.weights.checkpoint import Postprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("label_maps", nargs="?", type=Path)
    arguments = parser.parse_args()
    print("| case | share of the brain | mL outside | mm2 on a side | small parts | warnings | Dice with --within-brain |")
    print("|---|---|---|---|---|---|---|")
    for case in find_cases([arguments.cases]).cases:
        assert case.segmentation is not None, f"{case.name} has no segmentation"
        images = read_images(case)
        reference, _ = class_map_of(load_volume(case.segmentation))
        class_map = reference
        if arguments.label_maps is not None:
            class_map, _ = class_map_of(load_volume(arguments.label_maps / f"{case.name}.nii.gz"))
        voxel_ml = voxel_litres(images.reference.affine) * 1000
        measures = measure(class_map, images.brain, images.geometry, voxel_ml=voxel_ml)
        codes = ", ".join(warning.code for warning in label_map_warnings(measures))
        if measures is None:
            print(f"| {case.name} | | | | | {codes} | |")
            continue
        cleaned = clean_up(class_map, Postprocessing(), brain=images.brain, voxel_ml=voxel_ml).class_map
        changed = _dice_in_words(class_map, cleaned, reference) if class_map is not reference else ""
        print(
            f"| {case.name} | {measures.brain_share:.3f} | {measures.outside_ml:.3f} | {max(measures.edges_mm2.values()):.0f} "
            f"| {measures.n_small_parts} | {codes} | {changed} |",
            flush=True,
        )


def _dice_in_words(before: ClassMap, after: ClassMap, reference: ClassMap) -> str:
    if np.array_equal(before, after):
        return ""
    changes = []
    for region, classes in REGIONS.items():
        truth = np.isin(reference, classes)
        was, becomes = (dice(np.isin(class_map, classes), truth) for class_map in (before, after))
        changes.append(f"{region} {was:.4f} to {becomes:.4f}")
    return ", ".join(changes)


if __name__ == "__main__":
    main()
