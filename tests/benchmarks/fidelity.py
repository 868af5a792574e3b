"""Count the voxels in which drunet differs from label maps that the authors' scripts made, in several orientations.

    python tests/benchmarks/fidelity.py WEIGHTS CASE_FOLDER=REFERENCE.nii.gz ... [--orientations RAS,PIL]

CASE_FOLDER holds `*_flair.nii.gz`, `*_t1ce.nii.gz`, `*_t1.nii.gz` and `*_t2.nii.gz`. Each orientation is stored in new files,
run through the command line as its own process, and compared in the axes of the reference.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from drunet_cli.brats import CHANNELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("pairs", nargs="+", metavar="CASE_FOLDER=REFERENCE")
    parser.add_argument("--orientations", default="LPS,RAS,SAR,PIL,IRP,ASL")
    arguments = parser.parse_args()
    print("| case | stored as | voxels that differ | of |\n|---|---|---|---|")
    for pair in arguments.pairs:
        folder, reference = map(Path, pair.split("="))
        for axcodes in arguments.orientations.split(","):
            differing, total = compare(folder, reference, arguments.weights, axcodes)
            print(f"| {folder.name} | {axcodes} | {differing} | {total} |", flush=True)


def compare(folder: Path, reference: Path, weights: str, axcodes: str) -> tuple[int, int]:
    """Voxels that differ, and voxels in all."""
    with tempfile.TemporaryDirectory() as scratch:
        options = []
        for modality in CHANNELS:
            (source,) = folder.glob(f"*_{modality}.nii.gz")
            image: Any = nib.load(source)
            turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes))
            stored = Path(scratch) / f"case_{modality}.nii.gz"
            image.as_reoriented(turn).to_filename(stored)
            options += [f"--{modality}", str(stored)]
        output = Path(scratch) / "seg.nii.gz"
        command = [sys.executable, "-m", "drunet_cli", "segment", *options, "--weights", weights, "-o", str(output), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        expected: Any = nib.load(reference)
        ours: Any = nib.load(output)
        back = ornt_transform(io_orientation(ours.affine), io_orientation(expected.affine))
        labels = np.asarray(ours.as_reoriented(back).dataobj)
        return int(np.count_nonzero(labels != np.asarray(expected.dataobj))), labels.size


if __name__ == "__main__":
    main()
