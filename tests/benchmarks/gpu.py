"""What a GPU makes of drunet: network, one cold case, a cohort, memory, and how equal the labels are.

    python tests/benchmarks/gpu.py WEIGHTS [CASE_FOLDER...] [--fidelity [WEIGHTS]] [--device cuda] [--minutes 9]

WEIGHTS may be `random`: a network of --base-width (16) with random numbers, which is as fast as a trained one. Without case
folders synthetic cases are made. Every section is a process of its own, so that none disturbs the next and a failure costs only
itself; after --minutes it ends, and says what it left out. `--sections network,cold` runs only those. On `--device cpu` all but
`variants` run too, which is how this script is tried: with a narrow network, `--batch-sizes 2 --cases 2`.

cases, weights  what the others use, if it is to be made
cold            one case as a process, in its parts, and `drunet segment` as a whole
cohort          --cases cases from disk to disk: `drunet segment`, and a plain loop that loads, normalises, predicts and saves
network         by precision and batch size: seconds a case (155 slices, copies included), share of the measured rate of a
                matrix product in the same format, peak memory, and what the first use of a shape costs
variants        float16: as it is, with cudnn.benchmark, as CUDA graph, compiled: seconds to prepare, seconds a case
memory          with the allocator capped at --memory-cap GB, whether a batch that is too large ends in the same labels
fidelity        voxels equal to those of float32 on the CPU, and Dice of WT / TC / ET, by case and precision;
                at full width the CPU's label maps take minutes: `--sections fidelity --fidelity --minutes 30`
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

GIGAFLOP_A_SLICE = 54.16  # 240 x 240, base width 16, an addition and a multiplication being two
N_SLICES = 155
ROUNDS = 3
ROOT = Path(__file__).parents[2]  # where drunet_cli lies, installed or not
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")  # tf32: float32 with the inputs of convolutions rounded to 10 bits
SECTIONS = ("cases", "weights", "cold", "cohort", "network", "variants", "memory", "fidelity")
SEVERAL = {"network": PRECISIONS, "variants": ("eager", "cudnn.benchmark", "graph", "compile")}  # a process for each
MOST_SECONDS = {"compile": 90.0, "cohort": 300.0, "fidelity": 3600.0}
USUAL_SECONDS = 180.0

PLAIN_LOOP = """
import sys, time
from pathlib import Path
import nibabel as nib, numpy as np, torch
from drunet_cli.brats import CHANNELS
from drunet_cli.weights.cache import open_weights
from drunet_cli.network.torch_engine import build_model
weights, device, precision, output, *folders = sys.argv[1:]
device = torch.device(device)
if hasattr(torch.backends.cudnn, "conv"):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
else:
    torch.backends.cudnn.allow_tf32 = False
model = build_model(open_weights(weights)).to(device)
half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
for n, folder in enumerate(folders):
    channels = []
    for modality in CHANNELS:
        image = nib.load(next(Path(folder).glob(f"*_{modality}.nii.gz")))
        volume = image.get_fdata()
        brain = volume > 0
        mean, deviation = volume[brain].mean(), volume[brain].std()
        scaled = np.where(brain, (volume - mean) / (3 * deviation / 128) + 127, 0)
        channels.append(np.clip(scaled, 0, 255).astype(np.uint8))
    case = np.stack(channels)
    labels = np.zeros(case.shape[1:], dtype=np.uint8)
    with torch.no_grad(), torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
        for z in range(0, case.shape[3], 16):
            slices = torch.from_numpy(np.ascontiguousarray(case[..., z : z + 16].transpose(3, 0, 1, 2))).to(device)
            labels[..., z : z + 16] = model(slices.float() / 255).argmax(1).cpu().numpy().transpose(1, 2, 0)
    nib.Nifti1Image(labels, image.affine).to_filename(f"{output}/{n}.nii.gz")
    print(n, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("folders", type=Path, nargs="*", metavar="CASE_FOLDER")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="the first GPU, or the CPU")
    parser.add_argument("--base-width", type=int, default=16, help="of `random` weights")
    parser.add_argument("--cases", type=int, default=20, help="of the cohort; the folders are used again and again")
    parser.add_argument("--precision", default="float16", choices=("float32", "bfloat16", "float16"), help="of cold and cohort")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--fidelity", nargs="?", const="", metavar="WEIGHTS", help="compare labels; by default of WEIGHTS")
    parser.add_argument("--memory-cap", type=float, default=7.0, help="GB; 7 is about what an 8 GB card leaves to PyTorch")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, separated by commas")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of a section, in its own process
    arguments = parser.parse_args()
    if unknown := set(arguments.sections.split(",")) - set(SECTIONS):
        parser.error(f"no such sections: {', '.join(sorted(unknown))}")
    if arguments.part:
        section, _, part = arguments.part.partition(":")
        arguments.device = arguments.device.replace("cuda", "cuda:0")  # as some of PyTorch's functions want it
        run_part(arguments, section, part)
    elif not run_all(arguments):
        sys.exit(1)


def run_all(given: argparse.Namespace) -> bool:
    """Each part as a process of this script, with what is left of the time; whether all of them ran to their end."""
    begin, left_out, failed = time.monotonic(), [], []
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as scratch:
        weights, folders = given.weights, given.folders
        if weights == "random":
            weights = f"{scratch}/random.safetensors"
        if not folders:
            folders = [Path(scratch) / "cases" / f"phantom_{seed}" for seed in range(2)]
        command = [
            sys.executable,
            __file__,
            weights,
            *map(str, folders),
            "--device",
            given.device,
            "--precision",
            given.precision,
        ]
        command += ["--base-width", str(given.base_width), "--cases", str(given.cases), "--memory-cap", str(given.memory_cap)]
        command += ["--batch-sizes", *map(str, given.batch_sizes), "--fidelity", given.fidelity or weights]
        for section in SECTIONS:
            needless = {
                "weights": given.weights != "random",
                "cases": bool(given.folders),
                "variants": given.device == "cpu",
                "fidelity": given.fidelity is None,
            }
            wanted = section in given.sections.split(",") or section in ("cases", "weights")
            for part in () if needless.get(section) or not wanted else SEVERAL.get(section, ("",)):
                left = given.minutes * 60 - (time.monotonic() - begin)
                if left < 10:
                    left_out.append(f"{section} {part}".strip())
                    continue
                most = min(left, MOST_SECONDS.get(part or section, USUAL_SECONDS))
                name = f"{section} {part}".strip()
                if not run_process([*command, "--part", f"{section}:{part}"], name, most):
                    failed.append(name)
    if left_out:
        print(f"\nleft out for lack of time: {', '.join(left_out)}")
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return not (left_out or failed)


def run_process(command: list[str], name: str, most_seconds: float) -> bool:
    """Print what it prints; say how it failed, if it did. Nothing that it started outlives it, to disturb the next."""
    begin = time.monotonic()
    print(f"\n## {name}\n", flush=True)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    try:
        _, complaints = process.communicate(timeout=most_seconds)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {most_seconds:.0f} s", flush=True)
        return False
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        print(f"{name}: failed with {process.returncode}\n{complaints[-3000:]}", flush=True)
    print(f"\n({name}: {time.monotonic() - begin:.1f} s)", flush=True)
    return process.returncode == 0


def run_part(given: argparse.Namespace, section: str, part: str) -> None:
    if section == "weights":
        write_random_weights(given)
    elif section == "cases":
        write_cases(given.folders)
    elif section == "cold":
        cold_case(given)
    elif section == "cohort":
        cohort(given)
    elif section == "network":
        network(given, part)
    elif section == "variants":
        variant(given, part)
    elif section == "memory":
        memory(given)
    elif section == "fidelity":
        fidelity(given)
    else:
        raise SystemExit(f"{section!r} is none of {', '.join(SECTIONS)}")


def write_random_weights(given: argparse.Namespace) -> None:
    """He-normal numbers, with the batch norms set by slices of the first case: else activations double from block to block."""
    import torch

    from drunet_cli.training.learner import new_network
    from drunet_cli.training.recipe import RECIPES, RecipeName
    from drunet_cli.weights.checkpoint import Metadata, write_checkpoint

    settings = replace(RECIPES[RecipeName.PAPER].network, base_width=given.base_width, bn_momentum=1.0, dropout=0.0)
    model = new_network(settings, seed=0).train()
    with torch.no_grad():
        model(torch.from_numpy(case_slices(given, N_SLICES)[::30]).permute(0, 3, 1, 2).float() / 255)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "num_batches" not in name}
    metadata = Metadata(name="random", base_width=given.base_width, bn_epsilon=settings.bn_epsilon)
    write_checkpoint(Path(given.weights), state, metadata, overwrite=False)
    print(f"random weights of base width {given.base_width}")


def write_cases(folders: list[Path]) -> None:
    from drunet_cli.phantom.scanner import make_phantom, write_phantom

    for seed, folder in enumerate(folders):
        write_phantom(make_phantom(seed), folder.parent, name=folder.name)
    print(f"{len(folders)} synthetic cases")


def describe(given: argparse.Namespace) -> None:
    """The line that belongs to every figure."""
    import torch

    from drunet_cli.host import granted_cpus
    from drunet_cli.network.torch_engine import device_name

    device = device_name(torch.device(given.device))
    print(f"{device}, torch {torch.__version__}, {granted_cpus()} CPUs, {Path(given.weights).name}\n", flush=True)


def open_engine_of(given: argparse.Namespace, precision: str, *, batch_size: int | None = None, **options: Any) -> Any:
    import torch

    from drunet_cli.network.engine import Precision
    from drunet_cli.network.torch_engine import TorchEngine
    from drunet_cli.weights.cache import open_weights

    if precision == "tf32":
        allow_tf32()
    return TorchEngine(
        options.pop("checkpoint", None) or open_weights(given.weights),
        device=torch.device(given.device),
        precision=Precision("float32" if precision == "tf32" else precision),
        batch_size=batch_size,
        **options,
    )


def allow_tf32() -> None:
    """For the rest of this process, against drunet's own rule."""
    import torch

    from drunet_cli.network import torch_engine

    owner, name, exact = torch_engine._tf32_switch()
    torch_engine._tf32_switch = lambda: (owner, name, "tf32" if exact == "ieee" else True)
    torch.set_float32_matmul_precision("high")


def synchronise(given: argparse.Namespace) -> None:
    import torch

    if given.device != "cpu":
        torch.cuda.synchronize()


def matrix_rate(given: argparse.Namespace, precision: str) -> float:
    """TFLOP/s of a large matrix product."""
    import torch

    size = 1024 if given.device == "cpu" else 8192
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(size, size, device=given.device, dtype=dtype)
    for n in range(30):
        if n == 10:
            synchronise(given)
            begin = time.perf_counter()
        matrix @ matrix
    synchronise(given)
    return 20 * 2 * size**3 / (time.perf_counter() - begin) / 1e12


def case_slices(given: argparse.Namespace, n: int) -> Any:
    """[N, 240, 240, 4] of the first case, again and again if need be."""
    import numpy as np

    from drunet_cli.io.discovery import find_cases
    from drunet_cli.io.volumes import read_images

    slices = read_images(find_cases(given.folders).cases[0]).slices()
    return np.ascontiguousarray(slices[np.arange(n) % len(slices)])


def seconds_of(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def network(given: argparse.Namespace, precision: str) -> None:
    """One precision at every batch size."""
    import torch

    if given.device == "cpu" and precision == "tf32":
        return
    describe(given)
    on_gpu = given.device != "cpu"
    slices = case_slices(given, N_SLICES if on_gpu else 2 * max(given.batch_sizes))
    engine = open_engine_of(given, precision)
    rate = matrix_rate(given, precision)
    width = engine._model.base_width
    teraflop = GIGAFLOP_A_SLICE * (width / 16) ** 2 * N_SLICES / 1000
    print(f"{precision}: matrix product {rate:.3g} TFLOP/s; a case is {teraflop:.2f} TFLOP\n")
    print("| slices at once | seconds a case | first time | TFLOP/s | share | peak GB, in use | reserved |")
    print("|---|---|---|---|---|---|---|")
    for batch_size in given.batch_sizes:
        engine.batch_size = batch_size
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = [seconds_of(lambda: engine.classes(slices)) for _ in range(ROUNDS + 1)]
        usual = sorted(times[1:])[ROUNDS // 2] * N_SLICES / len(slices)
        peaks = (torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9) if on_gpu else (0, 0)
        halved = "" if engine.batch_size == batch_size else f" (became {engine.batch_size})"
        print(
            f"| {batch_size}{halved} | {usual:.4f} | {times[0]:.3f} | {teraflop / usual:.3g} | {teraflop / usual / rate:.2f} "
            f"| {peaks[0]:.2f} | {peaks[1]:.2f} |",
            flush=True,
        )
    print("\n| slices of one call | first time | again |\n|---|---|---|")
    engine.batch_size = max(given.batch_sizes)
    for n in (1, max(given.batch_sizes) - 1):
        times = [seconds_of(partial(engine.classes, slices[:n])) for _ in range(2)]
        print(f"| {n} | {times[0]:.4f} | {times[1]:.4f} |", flush=True)


def variant(given: argparse.Namespace, name: str) -> None:
    """Ten batches of 16 in float16, prepared in one of several ways. The first time holds all that preparation costs."""
    import torch

    n_batches, batch_size = 10, 16
    slices = case_slices(given, n_batches * batch_size)
    torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
    engine = open_engine_of(given, "float16", batch_size=batch_size)
    engine.classes(slices[:1])  # CUDA itself
    begin = time.perf_counter()
    if name == "compile":
        engine._model = torch.compile(engine._model)
    run = graph_of(engine, slices[-batch_size:]) if name == "graph" else lambda: engine.classes(slices)
    run()
    prepared = time.perf_counter() - begin
    times = sorted(seconds_of(run) for _ in range(5))
    per_case = times[2] * N_SLICES / len(slices)
    print("| float16, batches of 16 | prepared and first case, s | seconds a case |\n|---|---|---|")
    print(f"| {name} | {prepared:.2f} | {per_case:.4f} |", flush=True)


def graph_of(engine: Any, batch: Any) -> Callable[[], object]:
    """The engine's network captured as a CUDA graph; what is returned runs it ten times, copies included."""
    import torch

    device = engine._device
    pinned = torch.from_numpy(batch).pin_memory()
    pixels = pinned.to(device)

    @torch.inference_mode()
    def step() -> Any:
        images = pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", dtype=torch.float16, cache_enabled=False):
            return engine._model(images.float() / 255).argmax(dim=1).to(torch.uint8)

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        classes = step()
    arrived = torch.empty(classes.shape, dtype=classes.dtype, pin_memory=True)

    def run() -> None:
        for _ in range(10):
            pixels.copy_(pinned, non_blocking=True)
            graph.replay()
            arrived.copy_(classes, non_blocking=True)
        torch.cuda.synchronize()

    return run


def cold_case(given: argparse.Namespace) -> None:
    """What a process goes through, by the functions of `drunet segment`; then that command itself."""
    marks: list[tuple[str, float]] = []
    last = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal last
        marks.append((name, time.perf_counter() - last))
        last = time.perf_counter()

    from drunet_cli.io.discovery import find_cases
    from drunet_cli.io.volumes import read_images
    from drunet_cli.network.engine import WindowMode
    from drunet_cli.segmentation import pipeline
    from drunet_cli.segmentation.outputs import Target
    from drunet_cli.segmentation.predict import Plan
    from drunet_cli.segmentation.steps import Network

    def read(case: Any) -> Any:
        images = read_images(case)
        mark("read: files to voxels, checks")
        return images

    case = find_cases(given.folders).cases[0]
    mark("imports but PyTorch's")
    with patch.object(pipeline, "read_images", read):
        prepared = pipeline.prepare(case)
    mark("normalise, hash")
    import torch

    from drunet_cli.weights.cache import open_weights

    mark("import PyTorch")
    torch.zeros(1, device=given.device)
    synchronise(given)
    mark("start the device")
    checkpoint = open_weights(given.weights)
    mark("weights: file to memory")
    engine = open_engine_of(given, given.precision, checkpoint=checkpoint)
    synchronise(given)
    mark("weights: fold, to the device")
    plan = Plan(window=WindowMode.FULL)
    segmentation = pipeline.segment(prepared, [engine], plan=plan)
    mark("network, first case")
    pipeline.segment(prepared, [engine], plan=plan)
    mark("(the same again, warm)")
    settings = Network(checkpoints=[checkpoint], engines=[[engine]], plan=plan).settings
    document = pipeline.describe(segmentation, engine, [checkpoint], settings)
    with tempfile.TemporaryDirectory() as folder:
        Target(label_map=Path(folder) / "seg.nii.gz").write(segmentation, document)
    mark("write")
    describe(given)
    print(f"| {given.precision}, batches of {engine.batch_size} | seconds |\n|---|---|")
    for name, seconds in marks:
        print(f"| {name} | {seconds:.3f} |")
    with tempfile.TemporaryDirectory() as folder:
        command = [*drunet(given), str(given.folders[0]), "-o", f"{folder}/seg.nii.gz"]
        for name in ("drunet segment, a process from files to file", "the same again"):
            print(f"| {name} | {seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)):.3f} |")


def drunet(given: argparse.Namespace) -> list[str]:
    options = ["--weights", given.weights, "--device", given.device, "--precision", given.precision, "--engine", "torch"]
    options += ["--window", "full"]  # as the plain loop
    return [sys.executable, "-m", "drunet_cli", "segment", *options, "--quiet", "--overwrite"]


def cohort(given: argparse.Namespace) -> None:
    """Whole processes, in turn; and the pace between the first and the last case, when start-up is over."""
    from drunet_cli.brats import CHANNELS
    from drunet_cli.io.discovery import find_cases

    found = find_cases(given.folders).cases
    cases = [found[n % len(found)] for n in range(given.cases)]
    rows = [f"case_{n}," + ",".join(str(case.images[m].absolute()) for m in CHANNELS) for n, case in enumerate(cases)]
    describe(given)
    print(f"| {len(cases)} cases, {given.precision} | seconds in all | cases/s in all | cases/s after the first |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "cases.csv"
        table.write_text("\n".join(["case," + ",".join(CHANNELS), *rows]) + "\n")
        folders = [str(case.images[CHANNELS[0]].parent) for case in cases]
        ways = {
            "drunet segment": [*drunet(given), str(table), "-o", f"{folder}/out"],
            "plain loop": [sys.executable, "-c", PLAIN_LOOP, given.weights, given.device, given.precision, folder, *folders],
        }
        for name in (*ways, *ways):
            begin = time.perf_counter()
            with subprocess.Popen(ways[name], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                ended = [time.perf_counter() for _ in process.stdout]
            if process.returncode or len(ended) != len(cases):
                raise SystemExit(f"{name}: exit code {process.returncode}, {len(ended)} cases")
            seconds = time.perf_counter() - begin
            pace = f"{(len(cases) - 1) / (ended[-1] - ended[0]):.2f}" if len(cases) > 1 else ""
            print(f"| {name} | {seconds:.1f} | {len(cases) / seconds:.2f} | {pace} |", flush=True)


def memory(given: argparse.Namespace) -> None:
    """float32, which needs most."""
    import numpy as np
    import torch

    describe(given)
    slices = case_slices(given, N_SLICES if given.device != "cpu" else 4)
    expected = open_engine_of(given, "float32", batch_size=2).classes(slices)
    if given.device != "cpu":
        total = torch.cuda.get_device_properties(given.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, given.memory_cap * 1e9 / total), torch.device(given.device))
        torch.cuda.reset_peak_memory_stats()
    engine = open_engine_of(
        given, "float32", batch_size=len(slices), on_halved=lambda n: print(f"memory did not suffice: now {n} slices at once")
    )
    differ = int(np.count_nonzero(engine.classes(slices) != expected))
    peak = f", {torch.cuda.max_memory_reserved() / 1e9:.2f} GB reserved at most" if given.device != "cpu" else ""
    print(
        f"cap {given.memory_cap:g} GB, {len(slices)} slices asked for at once, {engine.batch_size} computed{peak}; "
        f"of {expected.size} voxels {differ} differ from those of two slices at once"
    )


def fidelity(given: argparse.Namespace) -> None:
    """Ten cases at most."""
    import numpy as np

    from drunet_cli.brats import REGIONS
    from drunet_cli.evaluation.scores import dice, mask_of
    from drunet_cli.host import granted_cpus
    from drunet_cli.io.discovery import find_cases
    from drunet_cli.io.volumes import read_images
    from drunet_cli.network.engine import EngineName, Precision, WindowMode, choose_engine, open_engine
    from drunet_cli.segmentation.predict import Plan, predict
    from drunet_cli.weights.cache import open_weights

    given.weights = given.fidelity
    describe(given)
    checkpoint = open_weights(given.weights)
    plan = Plan(window=WindowMode(checkpoint.metadata.window))
    on_cpu = choose_engine(EngineName.AUTO, device="cpu", precision=Precision.FLOAT32)
    reference = open_engine(
        on_cpu,
        checkpoint,
        device="cpu",
        precision=Precision.FLOAT32,
        batch_size=None,
        threads=granted_cpus(),
        on_warning=print,
    )
    # tf32 last: it cannot be forbidden again
    names = [name for name in ("float32", "bfloat16", "float16", "tf32") if not (given.device == "cpu" and name == "tf32")]
    cases = find_cases(given.folders).cases[:10]
    if not cases:
        raise SystemExit("no case was found")
    read = {case.name: read_images(case) for case in cases}
    expected = {
        name: predict(images.slices(), images.geometry, [reference], plan=plan).class_map for name, images in read.items()
    }
    print(
        f"against {on_cpu}, float32, on the CPU\n\n| precision | case | voxels equal | Dice WT / TC / ET |\n|---|---|---|---|"
    )
    least = dict.fromkeys(names, 1.0)
    for precision in names:
        engine = open_engine_of(given, precision, checkpoint=checkpoint)
        for name, images in read.items():
            found = predict(images.slices(), images.geometry, [engine], plan=plan).class_map
            scores = [dice(mask_of(found, classes), mask_of(expected[name], classes)) for classes in REGIONS.values()]
            least[precision] = min([least[precision], *scores])
            share = 1 - np.count_nonzero(found != expected[name]) / found.size
            print(f"| {precision} | {name} | {share:.8f} | {' / '.join(f'{score:.6f}' for score in scores)} |", flush=True)
    print("\nlowest Dice: " + ", ".join(f"{name} {value:.6f}" for name, value in least.items()))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
