"""Write cases to train on beside real and synthetic ones: synthetic tumours in real brains.

    python -m tests.benchmarks.compact_implants CASES OUT

CASES: a folder of cases with segmentations, on grids of 1 mm whose first axis runs from side to side (BraTS). Writes three
cases of each, OUT/implant_NUMBER_0 to 2; what is drawn depends on the number at the end of the case's name alone. Links each
case to OUT/copy_NUMBER too, so that a training on both folders draws it twice as often.

In about 3 of 5 cases the patient's own tumour is first covered by the mirror image of the other hemisphere. Then one tumour, in
1 of 5 cases a second, is laid into the tissue. In 1 of 4 cases one image becomes such as has thick slices.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.phantom.scanner import Phantom, write_phantom
from tests.benchmarks.heads import ORDER, Scan, covered, read_scan, thick_slices
from tests.benchmarks.implants import with_tumour

N_PER_CASE: Final = 3


def implanted(scan: Scan, rng: np.random.Generator) -> Phantom:
    """The scan with one or two tumours more, or with these in place of its own."""
    head = scan.head
    if rng.random() < 0.6:
        head = covered(head, reach_mm=6.0)
    for _ in range(1 + int(rng.random() < 0.2)):
        head = with_tumour(head, rng)
    if rng.random() < 0.25:
        modality, axis = ORDER[int(rng.integers(4))], int(rng.integers(3))
        thick = thick_slices(head.images[modality], scan.head.brain, axis=axis, thickness=int(rng.integers(3, 6)))
        head = replace(head, images={**head.images, modality: thick})
    return scan.with_head(head)


def link_again(case: Case, folder: Path) -> None:
    """The case as one of another name, in a folder of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, path in case.files.items():
        link = folder / f"{folder.name}_{part}.nii.gz"
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())


def main(folder: Path, output: Path) -> None:
    for case in find_cases([folder]).cases:
        scan, number = read_scan(case), case.name.rpartition("_")[2]
        link_again(case, output / f"copy_{number}")
        for index in range(N_PER_CASE):
            phantom = implanted(scan, np.random.default_rng([int(number), index]))
            write_phantom(phantom, output, f"implant_{number}_{index}", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
