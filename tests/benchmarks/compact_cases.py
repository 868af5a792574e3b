"""Write the synthetic cases that the bundled weights were trained on beside real ones.

    python -m tests.benchmarks.compact_cases FOLDER

FOLDER/first holds the four of the first training, FOLDER/second the six without a tumour that the second had as well, and
FOLDER/third six more of those, for the fifth.
"""

import sys
from pathlib import Path

from drunet_cli.phantom.scanner import make_phantom, write_phantom


def main(folder: Path) -> None:
    for seed, tumour, enhancing in ((101, True, True), (103, True, True), (105, True, False), (106, False, True)):
        phantom = make_phantom(seed, tumour=tumour, enhancing=enhancing)
        write_phantom(phantom, folder / "first", f"phantom_{seed}", overwrite=True)
    for seed in range(200, 212):
        part = folder / ("second" if seed < 206 else "third")
        write_phantom(make_phantom(seed, tumour=False), part, f"healthy_{seed}", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
