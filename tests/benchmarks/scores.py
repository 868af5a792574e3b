"""Compare drunet's scores with MedPy's and surface-distance's on real segmentations against perturbed copies of themselves.

    pip install MedPy==0.5.2 surface-distance==0.1        (beside drunet)
    python -m tests.benchmarks.scores SEGMENTATION...

Prints the largest difference of each score over all cases, perturbations and regions, at the spacing of the file and at
0.9375 x 0.9375 x 1.5 mm; lesion-wise scores against a plain rendering of the published code.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from drunet_cli.brats import REGIONS, ClassMap
from drunet_cli.evaluation.evaluate import Convention, compare
from drunet_cli.evaluation.scores import box_around
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of
from tests.evaluation.make_reference_scores import TOLERANCES_MM, package_scores, published_lesionwise

ANISOTROPIC_MM = (0.9375, 0.9375, 1.5)
MARGIN = 10  # voxels around the tumour, more than any step needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmentations", type=Path, nargs="+")
    largest: dict[str, float] = defaultdict(float)
    n_compared = 0
    for number, path in enumerate(parser.parse_args().segmentations):
        volume = load_volume(path)
        reference = around_tumour(class_map_of(volume)[0])
        spacing_mm = ANISOTROPIC_MM if number % 2 else volume.spacing_mm
        for prediction in (shifted(reference), ragged(reference), with_islands(reference)):
            n_compared += compared(prediction, reference, spacing_mm, largest)
    print(f"{n_compared} comparisons of a region\n| score | largest difference |\n|---|---|")
    for name, difference in largest.items():
        print(f"| {name} | {difference:.1e} |")


def compared(
    prediction: ClassMap, reference: ClassMap, spacing_mm: tuple[float, float, float], largest: dict[str, float]
) -> int:
    """Enter the differences of one pair; return how many regions could be compared: the packages know no empty ones."""
    whole = compare(prediction, reference, spacing_mm=spacing_mm, convention=Convention.BRATS, tolerance_mm=TOLERANCES_MM[1])
    by_lesion = compare(prediction, reference, spacing_mm=spacing_mm, convention=Convention.LESIONWISE)
    n_compared = 0
    for region, classes in REGIONS.items():
        masks = np.isin(prediction, classes), np.isin(reference, classes)
        if not (masks[0].any() and masks[1].any()):
            continue
        n_compared += 1
        theirs, published = package_scores(*masks, spacing_mm), published_lesionwise(*masks, spacing_mm)
        pairs = {name: (getattr(whole[region], name), theirs[name]) for name in ("dice", "hd95_mm", "sensitivity", "precision")}
        pairs["surface_dice"] = whole[region].surface_dice, theirs["surface_dice"][1]
        pairs |= {f"lesionwise {name}": (getattr(by_lesion[region], name), published[name]) for name in ("dice", "hd95_mm")}
        for name, (ours, other) in pairs.items():
            largest[name] = max(largest[name], abs(ours - other))
    return n_compared


def around_tumour(class_map: ClassMap) -> ClassMap:
    box = box_around(class_map > 0)
    return class_map[tuple(slice(max(axis.start - MARGIN, 0), axis.stop + MARGIN) for axis in box)]


def shifted(class_map: ClassMap) -> ClassMap:
    return np.roll(class_map, (1, 2, 1), axis=(0, 1, 2))


def ragged(class_map: ClassMap) -> ClassMap:
    """A tenth of the tumour's voxels missing, anywhere."""
    return np.where(np.random.default_rng(0).random(class_map.shape) < 0.1, 0, class_map).astype(np.uint8)


def with_islands(class_map: ClassMap) -> ClassMap:
    """Twelve false islands of enhancing tumour."""
    changed = shifted(class_map)
    for corner in np.random.default_rng(1).integers(0, np.array(class_map.shape) - 4, (12, 3)):
        changed[tuple(slice(at, at + 4) for at in corner)] = 3
    return changed


if __name__ == "__main__":
    main()
