"""How drunet does on a GPU, in about ten minutes: fidelity, network, one case, a cohort, memory, training.

    python -m tests.benchmarks.gpu [WEIGHTS] [--cases CASE_FOLDER...] [--device cuda] [--sections network,memory]

Without WEIGHTS a network of --base-width 16 with random numbers is made, which is as fast as a trained one; without case
folders, two synthetic cases. Every section is a process of its own, so that a failure costs only itself. Before running this on
a GPU, try all of it on the CPU, where the default is one golden case of five slices:
`--device cpu --base-width 1 --batch-sizes 2 --n-cases 2`.

fidelity  voxels that differ from the label map of float32 on the CPU, and the lowest Dice of WT, TC and ET, by precision. Give
          trained WEIGHTS, since random ones find little else than one class. At full width the CPU takes minutes a case.
network   seconds a case (155 slices, copies included) and peak memory, by precision and batch size; and the share of the rate
          of a matrix product in the same format
case      `drunet segment` of one case, a process from files to file; twice, since the first run fills the disk cache
cohort    `drunet segment` of --n-cases cases: cases per second in all, and after the first
memory    with the memory capped, whether a batch that is too large ends in the same labels
train     training steps, by tests.benchmarks.train
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from drunet_cli import Segmenter
from drunet_cli.brats import CHANNELS, REGIONS, TUMOUR_CLASSES, ClassMap, class_indices
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.host import granted_cpus
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.volumes import read_images
from drunet_cli.network.engine import Engine, EngineName, Precision, open_engine
from drunet_cli.network.torch_engine import device_name
from drunet_cli.weights.cache import open_weights

GIGAFLOP_A_SLICE: Final = 54.16  # 240 x 240, base width 16, an addition and a multiplication being two
N_SLICES: Final = 155
ROUNDS: Final = 3
ROOT: Final = Path(__file__).parents[2]
PRECISIONS: Final = (Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--cases", dest="folders", type=Path, nargs="+", metavar="CASE_FOLDER")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="the first GPU, or the CPU")
    parser.add_argument("--base-width", type=int, default=16, help="width of the random network, and of the trained one")
    parser.add_argument("--precision", type=Precision, default=Precision.BFLOAT16, help="of case, cohort and training")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--n-cases", type=int, default=6, help="of the cohort; the folders are used again and again")
    parser.add_argument("--memory-cap", type=float, default=7.0, help="GB; 7 is about what an 8 GB card leaves to PyTorch")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, separated by commas")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sections = given.sections.split(",")
    if unknown := set(sections) - SECTIONS.keys():
        parser.error(f"no such sections: {', '.join(sorted(unknown))}")
    if given.in_this_process:
        SECTIONS[sections[0]](given)
    elif not run_sections(given, sections):
        sys.exit(1)


def run_sections(given: argparse.Namespace, sections: list[str]) -> bool:
    """Whether all of them ran to their end."""
    device = torch.device(given.device)
    print(f"{device_name(device)}, torch {torch.__version__}, {granted_cpus()} CPUs", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        given.folders = given.folders or make_cases(Path(scratch) / "cases", given.device)
        given.weights = given.weights or make_weights(Path(scratch) / "random.safetensors", given)
        if Path(given.weights).exists():  # else a name
            given.weights = str(Path(given.weights).absolute())
        folders = [str(folder.absolute()) for folder in given.folders]
        common = [given.weights, "--cases", *folders, "--batch-sizes", *map(str, given.batch_sizes)]
        for name in ("device", "base_width", "precision", "n_cases", "memory_cap"):
            common += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
        for section in sections:
            print(f"\n## {section}\n", flush=True)
            begin = time.monotonic()
            command = [sys.executable, "-m", "tests.benchmarks.gpu", *common, "--sections", section, "--in-this-process"]
            if subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode:
                failed.append(section)
            print(f"\n({time.monotonic() - begin:.0f} s)", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return not failed


def environment() -> dict[str, str]:
    """This one, with this checkout's package before an installed one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def make_cases(folder: Path, device: str) -> list[Path]:
    from drunet_cli.phantom.scanner import make_phantom, write_phantom

    if device == "cpu":
        (folder / "golden").mkdir(parents=True)
        for path in (ROOT / "tests" / "golden" / "case").iterdir():
            (folder / "golden" / path.name.replace("seg_expected", "seg")).symlink_to(path)
        return [folder / "golden"]
    for seed in range(2):
        write_phantom(make_phantom(seed), folder, f"phantom_{seed}", overwrite=True)
    return [folder / f"phantom_{seed}" for seed in range(2)]


def make_weights(path: Path, given: argparse.Namespace) -> str:
    """He-normal numbers, with the batch norms set by slices of the first case: else activations double from block to block."""
    from drunet_cli.training.learner import new_network
    from drunet_cli.training.recipe import RECIPES, RecipeName
    from drunet_cli.weights.checkpoint import Metadata, write_checkpoint

    settings = replace(RECIPES[RecipeName.PAPER].network, base_width=given.base_width, bn_momentum=1.0, dropout=0.0)
    model = new_network(settings, seed=0).train()
    with torch.no_grad():
        model(torch.from_numpy(slices_of(given, N_SLICES)[::30]).permute(0, 3, 1, 2).float() / 255)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "num_batches" not in name}
    metadata = Metadata(name="random", base_width=given.base_width, bn_epsilon=settings.bn_epsilon)
    write_checkpoint(path, state, metadata, overwrite=False)
    return str(path)


def cases_of(given: argparse.Namespace) -> tuple[Case, ...]:
    return find_cases(given.folders).cases


def slices_of(given: argparse.Namespace, n: int) -> Any:
    """[N, 240, 240, 4] of the first case, again and again if need be."""
    slices = read_images(cases_of(given)[0]).slices()
    return np.ascontiguousarray(slices[np.arange(n) % len(slices)])


def engine_of(given: argparse.Namespace, precision: Precision, batch_size: int) -> Engine:
    device = "cuda:0" if given.device == "cuda" else given.device
    return open_engine(
        EngineName.TORCH,
        open_weights(given.weights),
        device=device,
        precision=precision,
        batch_size=batch_size,
        threads=granted_cpus(),
        on_warning=print,
    )


def fidelity(given: argparse.Namespace) -> None:
    """Whole cases through the class that `drunet segment` uses."""

    def class_maps(device: str, precision: Precision) -> list[ClassMap]:
        segmenter = Segmenter(given.weights, device=device, precision=precision.value)
        found = []
        for each in cases_of(given):
            flair, t1ce, t1, t2 = (each.images[modality] for modality in CHANNELS)
            found.append(class_indices(segmenter.segment(t1=t1, t1ce=t1ce, t2=t2, flair=flair).label_map))
        return found

    expected = class_maps("cpu", Precision.FLOAT32)
    print("| precision | voxels that differ | of | lowest Dice WT / TC / ET |\n|---|---|---|---|")
    for precision in PRECISIONS:
        found = class_maps(given.device, precision)
        n_differ = sum(int(np.count_nonzero(ours != theirs)) for ours, theirs in zip(found, expected, strict=True))
        lowest = [
            min(dice(mask_of(ours, classes), mask_of(theirs, classes)) for ours, theirs in zip(found, expected, strict=True))
            for classes in REGIONS.values()
        ]
        scores = " / ".join(f"{value:.5f}" for value in lowest)
        print(f"| {precision} | {n_differ} | {sum(each.size for each in expected)} | {scores} |", flush=True)
    counts = {index.name: sum(int((each == index).sum()) for each in expected) for index in TUMOUR_CLASSES}
    print("\nvoxels of the label maps on the CPU: " + ", ".join(f"{name} {n}" for name, n in counts.items()))


def network(given: argparse.Namespace) -> None:
    """The median of three rounds after one to warm up."""
    on_gpu = given.device == "cuda"
    width = open_weights(given.weights).metadata.base_width
    teraflop = GIGAFLOP_A_SLICE * (width / 16) ** 2 * N_SLICES / 1000
    slices = slices_of(given, N_SLICES if on_gpu else 2 * max(given.batch_sizes))
    print("| precision | slices at once | seconds a case | share of a matrix product's rate | peak GB |\n|---|---|---|---|---|")
    for precision in PRECISIONS:
        rate = matrix_rate(given, precision)
        for batch_size in given.batch_sizes:
            engine = engine_of(given, precision, batch_size)
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            times = [seconds_of(partial(engine.classes, slices)) for _ in range(ROUNDS + 1)]
            a_case = sorted(times[1:])[ROUNDS // 2] * N_SLICES / len(slices)
            peak = f"{torch.cuda.max_memory_reserved() / 1e9:.2f}" if on_gpu else ""
            print(f"| {precision} | {engine.batch_size} | {a_case:.3f} | {teraflop / a_case / rate:.2f} | {peak} |", flush=True)


def matrix_rate(given: argparse.Namespace, precision: Precision) -> float:
    """TFLOP/s of a large matrix product."""
    size = 8192 if given.device == "cuda" else 256
    dtype = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(size, size, device=given.device, dtype=dtype)
    wait: Callable[[], None] = torch.cuda.synchronize if given.device == "cuda" else lambda: None
    for n in range(15):
        if n == 5:
            wait()
            begin = time.perf_counter()
        matrix @ matrix
    wait()
    return 10 * 2 * size**3 / (time.perf_counter() - begin) / 1e12


def seconds_of(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def segment_command(given: argparse.Namespace, *arguments: str) -> list[str]:
    options = ["--weights", given.weights, "--device", given.device, "--precision", given.precision, "--engine", "torch"]
    return [sys.executable, "-m", "drunet_cli", "segment", *arguments, *options, "--quiet", "--overwrite"]


def case(given: argparse.Namespace) -> None:
    """Whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = segment_command(given, str(given.folders[0]), "-o", f"{folder}/seg.nii.gz")
        for name in ("first", "again"):
            seconds = seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
            print(f"{name}: {seconds:.2f} s", flush=True)


def cohort(given: argparse.Namespace) -> None:
    """One process; its pace after the first case has no start-up in it."""
    found = cases_of(given)
    cases = [found[n % len(found)] for n in range(given.n_cases)]
    rows = [f"case_{n}," + ",".join(str(each.images[m].absolute()) for m in CHANNELS) for n, each in enumerate(cases)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "cases.csv"
        table.write_text("\n".join(["case," + ",".join(CHANNELS), *rows]) + "\n")
        begin = time.perf_counter()
        command = segment_command(given, str(table), "-o", f"{folder}/out")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            ended = [time.perf_counter() for _ in process.stdout]
    if process.returncode or len(ended) != len(cases):
        raise SystemExit(f"exit code {process.returncode}, {len(ended)} of {len(cases)} cases")
    seconds = time.perf_counter() - begin
    pace = (len(cases) - 1) / (ended[-1] - ended[0]) if len(cases) > 1 else float("nan")
    print(f"{len(cases)} cases in {seconds:.1f} s, {len(cases) / seconds:.2f} cases/s; after the first {pace:.2f} cases/s")


def memory(given: argparse.Namespace) -> None:
    """float32, which needs most. The CPU has no cap, so that only the comparison is tried there."""
    slices = slices_of(given, N_SLICES if given.device == "cuda" else 4)
    expected = engine_of(given, Precision.FLOAT32, 2).classes(slices)
    if given.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, given.memory_cap * 1e9 / total), 0)
    engine = engine_of(given, Precision.FLOAT32, len(slices))
    n_differ = int(np.count_nonzero(engine.classes(slices) != expected))
    print(f"cap {given.memory_cap:g} GB: {len(slices)} slices asked for at once, {engine.batch_size} computed")
    print(f"{n_differ} of {expected.size} voxels differ from those of two slices at once")


def train(given: argparse.Namespace) -> None:
    """Against a plain loop, in the same process."""
    command = [sys.executable, "-m", "tests.benchmarks.train", *map(str, given.folders), "--device", given.device]
    command += ["--base-width", str(given.base_width), "--precision", given.precision]
    command += [] if given.device == "cuda" else ["--batch-size", "2", "--steps", "3"]
    subprocess.run(command, check=True)


SECTIONS: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    section.__name__: section for section in (fidelity, network, case, cohort, memory, train)
}

if __name__ == "__main__":
    main()
