"""Time the scores of `drunet evaluate` on one CPU, for segmentations against perturbed copies of themselves.

    taskset -c 0 python tests/benchmarks/evaluate.py SEGMENTATION...

Prints, for each convention and perturbation, the seconds that all regions, classes and scores of one case take, as median and
worst over the cases: in this process, and as a whole process (`drunet evaluate`) for the first case. MedPy is timed beside, on
the three regions, where it is installed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np

from drunet_cli.brats import REGIONS, ClassMap, Convention, Labels, label_values
from drunet_cli.evaluation.evaluate import compare
from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of


def shifted(class_map: ClassMap) -> ClassMap:
    return np.roll(class_map, (1, 2, 1), axis=(0, 1, 2))


def speckled(class_map: ClassMap) -> ClassMap:
    """Three thousand false voxels all over the volume."""
    rng = np.random.default_rng(0)
    noisy = class_map.copy()
    noisy.ravel()[rng.integers(noisy.size, size=3000)] = rng.integers(1, 4, 3000)
    return noisy


PERTURBATIONS: Final[dict[str, Callable[[ClassMap], ClassMap]]] = {"shifted": shifted, "speckled": speckled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmentations", type=Path, nargs="+")
    paths = parser.parse_args().segmentations
    print(f"{cpu_name()}, {granted_cpus()} CPUs, {len(paths)} cases")
    volumes = [load_volume(path) for path in paths]
    references = [class_map_of(volume)[0] for volume in volumes]
    print("| convention | perturbation | median s | worst s |\n|---|---|---|---|")
    for convention in Convention:
        for name, perturb in PERTURBATIONS.items():
            seconds = []
            for volume, reference in zip(volumes, references, strict=True):
                prediction = perturb(reference)
                begin = time.perf_counter()
                compare(prediction, reference, spacing_mm=volume.spacing_mm, convention=convention)
                seconds.append(time.perf_counter() - begin)
            print(f"| {convention} | {name} | {np.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)
    beside_medpy(references)
    whole_process(paths[0], shifted(references[0]))


def beside_medpy(references: list[ClassMap]) -> None:
    try:
        from medpy.metric.binary import dc, hd95  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return
    seconds = []
    for reference in references:
        prediction = shifted(reference)
        begin = time.perf_counter()
        for classes in REGIONS.values():
            masks = np.isin(prediction, classes), np.isin(reference, classes)
            if masks[1].any():
                dc(*masks)
                hd95(*masks)
        seconds.append(time.perf_counter() - begin)
    print(f"| MedPy, Dice and HD95 of three regions | shifted | {np.median(seconds):.2f} | {max(seconds):.2f} |")


def whole_process(path: Path, prediction: ClassMap) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        changed = Path(scratch) / "prediction.nii.gz"
        nib.Nifti1Image(label_values(prediction, Labels.BRATS2020), load_volume(path).affine).to_filename(changed)
        command = [sys.executable, "-m", "drunet_cli", "evaluate", str(changed), str(path), "--quiet", "--json"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"one case as a whole process: {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
