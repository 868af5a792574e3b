"""Compare the label maps of the two CPU engines, voxel by voxel and region by region.

    python tests/benchmarks/engines.py WEIGHTS CASE_FOLDER... [--window full|auto]

Prints for each case the share of voxels with equal labels and the Dice of WT / TC / ET; a region that neither has counts 1.
"""

import argparse
from pathlib import Path

import numpy as np

from drunet_cli.brats import REGIONS
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.host import cpu_name, granted_cpus, limit_openmp_spinning
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.volumes import read_images
from drunet_cli.network.engine import EngineName, Precision, WindowMode, open_engine
from drunet_cli.segmentation.predict import predict
from drunet_cli.weights.cache import open_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--window", type=WindowMode, default=WindowMode.FULL)
    arguments = parser.parse_args()
    limit_openmp_spinning()
    checkpoint = open_weights(arguments.weights)
    engines = [
        open_engine(
            name,
            checkpoint,
            device="cpu",
            precision=Precision.FLOAT32,
            batch_size=None,
            threads=granted_cpus(),
            on_warning=print,
        )
        for name in (EngineName.TORCH, EngineName.ONNXRUNTIME)
    ]
    versions = ", ".join(f"{name} {version}" for engine in engines for name, version in engine.versions.items())
    print(f"{cpu_name()}, {versions}, {arguments.weights}")
    print("| case | voxels with equal labels | Dice WT / TC / ET |\n|---|---|---|")
    for case in find_cases(arguments.cases).cases:
        images = read_images(case)
        slices = images.slices()
        torchs, onnxs = (predict(slices, images.geometry, [engine], window=arguments.window).class_map for engine in engines)
        scores = (dice(mask_of(torchs, classes), mask_of(onnxs, classes)) for classes in REGIONS.values())
        n_differ = int(np.count_nonzero(torchs != onnxs))
        print(
            f"| {case.name} | all but {n_differ} of {torchs.size} | {' / '.join(f'{score:.6f}' for score in scores)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
