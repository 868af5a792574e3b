"""What weights find in synthetic brains without a tumour.

    python -m tests.benchmarks.tumour_free WEIGHTS [--seeds N]

Prints for seeds 0 to N - 1 (12) the volume of WT in mL, of which anything is wrong, and the largest.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from drunet_cli import Segmenter
from drunet_cli.brats import Modality
from drunet_cli.phantom.scanner import make_phantom, write_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--seeds", type=int, default=12)
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.weights, device="cpu")
    largest = max(found_ml(segmenter, seed) for seed in range(arguments.seeds))
    print(f"largest: {largest:.3f} mL")


def found_ml(segmenter: Segmenter, seed: int) -> float:
    with TemporaryDirectory() as folder:
        case = write_phantom(make_phantom(seed, tumour=False), Path(folder), f"healthy_{seed}")
        t1, t1ce, t2, flair = (case.images[modality] for modality in (Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR))
        volume_ml = segmenter.segment(t1=t1, t1ce=t1ce, t2=t2, flair=flair).volumes_ml["WT"]
    print(f"seed {seed}: {volume_ml:.3f} mL", flush=True)
    return volume_ml


if __name__ == "__main__":
    main()
