"""Compare windows around the brain with whole frames: labels, Dice against the truth, and the network's time.

    python tests/benchmarks/windows.py WEIGHTS CASE_FOLDER... [--precision bfloat16] [--exact auto] [--threads N]

Case folders hold a segmentation. Prints for each case the pixels that the network saw, as a share of whole frames of all
slices; its seconds, as a share of those of whole frames; the Dice of the label map with that of whole frames; and the Dice of
both with the truth; WT / TC / ET. Regions that are in neither count 1.

With --precision bfloat16 the windows are those of `--fast`; a processor without bfloat16 emulates it in PyTorch, where the
labels tell something and the seconds nothing. --exact auto compares with windows in float32, by which weights that were
trained on windows are run.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import REGIONS, ClassMap
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.host import cpu_name, granted_cpus, has_bfloat16
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.volumes import class_map_of, read_labelled
from drunet_cli.network.engine import Engine, EngineName, Precision, WindowMode, choose_engine, open_engine
from drunet_cli.segmentation.predict import predict, windows_by_shape
from drunet_cli.weights.cache import open_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--precision", type=Precision, default=Precision.FLOAT32)
    parser.add_argument("--exact", type=WindowMode, default=WindowMode.FULL)
    parser.add_argument("--threads", type=int, default=granted_cpus())
    arguments = parser.parse_args()
    exact, fast = (opened(arguments, precision) for precision in (Precision.FLOAT32, arguments.precision))
    print(f"{cpu_name()}, {arguments.threads} threads, {arguments.weights}")
    print(f"{exact.name} {exact.precision} {arguments.exact}, {fast.name} {fast.precision} {WindowMode.AUTO}")
    print("| case | pixels | seconds | Dice with whole frames | Dice with truth | of whole frames |\n|---|---|---|---|---|---|")
    rows = []
    for case in find_cases(arguments.cases).cases:
        rows.append(compared(case, exact, arguments.exact, fast))
        print(line(case.name, rows[-1]), flush=True)
    print(line(f"mean of {len(rows)}", np.mean(rows, axis=0)))


def opened(arguments: argparse.Namespace, precision: Precision) -> Engine:
    """The engine of `auto`, or PyTorch where that would have to emulate the precision."""
    emulates = precision is Precision.BFLOAT16 and not has_bfloat16()
    name = EngineName.TORCH if emulates else EngineName.AUTO
    return open_engine(
        choose_engine(name, device="cpu", precision=precision),
        open_weights(arguments.weights),
        device="cpu",
        precision=precision,
        batch_size=None,
        threads=arguments.threads,
        on_warning=print,
    )


def compared(case: Case, exact: Engine, mode: WindowMode, fast: Engine) -> npt.NDArray[np.float64]:
    """Pixels, seconds, and three times the Dice of WT, TC, ET."""
    labelled = read_labelled(case)
    if labelled.segmentation is None:
        raise SystemExit(f"{case.name}: has no segmentation")
    truth, _ = class_map_of(labelled.segmentation.volume)
    slices, geometry = labelled.images.slices(), labelled.images.geometry

    def run(engine: Engine, mode: WindowMode) -> tuple[ClassMap, float]:
        begin = time.perf_counter()
        return predict(slices, geometry, [engine], window=mode).class_map, time.perf_counter() - begin

    whole, whole_seconds = run(exact, mode)
    part, seconds = run(fast, WindowMode.AUTO)
    groups = windows_by_shape(slices, WindowMode.AUTO)
    seen = sum(x * y * len(group) for (x, y), group in groups.items())
    shares = [seen / slices[..., 0].size, seconds / whole_seconds]
    return np.array([*shares, *dices(part, whole), *dices(part, truth), *dices(whole, truth)])


def dices(one: ClassMap, other: ClassMap) -> list[float]:
    """Of WT, TC, ET."""
    return [dice(mask_of(one, classes), mask_of(other, classes)) for classes in REGIONS.values()]


def line(case: str, row: npt.NDArray[np.float64]) -> str:
    """One row of the table."""
    triples = (" / ".join(f"{value:.3f}" for value in row[first : first + 3]) for first in (2, 5, 8))
    return f"| {case} | {row[0]:.2f} | {row[1]:.2f} | {' | '.join(triples)} |"


if __name__ == "__main__":
    main()
