"""Time drunet on the CPU against a plain PyTorch loop, and against MONAI's network for BraTS, side by side in one run.

    python tests/benchmarks/cpu.py WEIGHTS CASE_FOLDER [--threads N] [--repeats N]

Prints the seconds and the peak memory of whole processes: a loop that feeds all slices of the volume one by one through the
network in PyTorch without any of drunet's measures; MONAI's SegResNet as its BraTS bundle has it, where MONAI is installed (by
`pip install --no-deps monai`); and `drunet segment` with each engine, with windows, and with `--fast`, which computes in
bfloat16 where the processor has it. Then the network alone: seconds a slice by engine and number of slices at once, and the
share of the rate of a plain matrix product; and for one process and for two that share the CPUs, with OpenMP's own way of
waiting and with drunet's. CASE_FOLDER holds `*_flair.nii.gz` and so on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from drunet_cli.brats import CHANNELS
from drunet_cli.host import cpu_name, granted_cpus, has_bfloat16, limit_openmp_spinning
from drunet_cli.network.engine import EngineName, Precision, open_engine
from drunet_cli.weights.cache import open_weights

GIGAFLOP_A_SLICE = 54.16  # 240 x 240, base width 16, an addition and a multiplication being two

PLAIN_LOOP = """
import sys
from pathlib import Path
import nibabel as nib, numpy as np, torch
from drunet_cli.weights.cache import open_weights
from drunet_cli.network.torch_engine import build_model
weights, threads, output, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
model = build_model(open_weights(weights))
channels = []
for file in files:
    volume = nib.load(file).get_fdata()
    brain = volume > 0
    mean, deviation = volume[brain].mean(), volume[brain].std()
    scaled = np.where(brain, (volume - mean) / (3 * deviation / 128) + 127, 0)
    channels.append(np.clip(scaled, 0, 255).astype(np.uint8))
image = np.stack(channels)
labels = np.zeros(image.shape[1:], dtype=np.uint8)
with torch.no_grad():
    for z in range(image.shape[3]):
        logits = model(torch.from_numpy(np.ascontiguousarray(image[None, ..., z])).float() / 255)
        labels[..., z] = logits.argmax(1)[0].numpy()
nib.Nifti1Image(labels, nib.load(files[0]).affine).to_filename(output)
"""

# The network, window and arithmetic of MONAI's bundle brats_mri_segmentation, with weights of chance: these take no other time.
MONAI_WINDOW = """
import sys
import nibabel as nib, numpy as np, torch
from monai.networks.nets import SegResNet
threads, output, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
model = SegResNet(
    blocks_down=[1, 2, 2, 4], blocks_up=[1, 1, 1], init_filters=16, in_channels=4, out_channels=3, dropout_prob=0.2
)
model.eval()
image = np.zeros((4, 240, 240, 160), dtype=np.float32)
for channel, file in zip(image, files):
    volume = nib.load(file).get_fdata(dtype=np.float32)
    brain = volume != 0
    channel[..., : volume.shape[2]] = np.where(brain, (volume - volume[brain].mean()) / volume[brain].std(), 0)
with torch.no_grad():
    regions = model(torch.from_numpy(image[None]))[0, ..., : volume.shape[2]].sigmoid() > 0.5
labels = np.zeros(volume.shape, dtype=np.uint8)
for region, label in zip((1, 0, 2), (2, 1, 4)):
    labels[regions[region].numpy()] = label
nib.Nifti1Image(labels, nib.load(files[0]).affine).to_filename(output)
"""


NETWORK_ALONE = """
import sys, time
import numpy as np
from drunet_cli.weights.cache import open_weights
from drunet_cli.network.engine import EngineName, Precision
from drunet_cli.network.engine import open_engine
engine = open_engine(
    EngineName(sys.argv[3]), open_weights(sys.argv[1]), device="cpu", precision=Precision.FLOAT32, batch_size=None,
    threads=int(sys.argv[2]), on_warning=print,
)
slices = np.random.default_rng(0).integers(0, 256, (16, 240, 240, 4), dtype=np.uint8)
engine.classes(slices[:2])
begin = time.perf_counter()
engine.classes(slices)
print((time.perf_counter() - begin) / len(slices))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("case", type=Path)
    parser.add_argument("--threads", type=int, default=granted_cpus())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{cpu_name()}, {arguments.threads} threads")
    # First, while this process is small: Linux counts its memory to that of the processes it starts.
    whole_processes(arguments.weights, arguments.case, arguments.threads, arguments.repeats)
    shared_cpus(arguments.weights, arguments.threads)
    network_alone(arguments.weights, arguments.threads, arguments.repeats)


def network_alone(weights: str, threads: int, repeats: int) -> None:
    """Eight slices; the median of the repeats, which go through engines and batch sizes in turn."""
    import torch

    checkpoint = open_weights(weights)
    torch.set_num_threads(threads)
    factor = torch.rand(2048, 2048)
    slices = np.random.default_rng(0).integers(0, 256, (8, 240, 240, 4), dtype=np.uint8)
    runs: dict[tuple[EngineName, int], Callable[[], object]] = {}
    names = (EngineName.TORCH, EngineName.ONNXRUNTIME, *([EngineName.OPENVINO] if has_bfloat16() else []))
    for name in names:
        for batch_size in (1, 2, 4):
            engine = open_engine(
                name,
                checkpoint,
                device="cpu",
                precision=Precision.BFLOAT16 if name is EngineName.OPENVINO else Precision.FLOAT32,
                batch_size=batch_size,
                threads=threads,
                on_warning=print,
            )
            runs[name, batch_size] = partial(engine.classes, slices)
    seconds: dict[tuple[EngineName, int], list[float]] = {key: [] for key in runs}
    gigaflops = []
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        for _ in range(10):
            factor @ factor
        gigaflops.append(10 * 2 * 2048**3 / (time.perf_counter() - begin) / 1e9)
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            if repeat:  # the first warms up
                seconds[key].append((time.perf_counter() - begin) / len(slices))
    rate = float(np.median(gigaflops[1:]))
    print(f"matrix product: {rate:.0f} GFLOP/s")
    print("| engine | slices at once | seconds a slice | share of that rate |\n|---|---|---|---|")
    work = GIGAFLOP_A_SLICE * (checkpoint.metadata.base_width / 16) ** 2
    for (engine_name, batch_size), times in seconds.items():
        a_slice = float(np.median(times))
        print(f"| {engine_name} | {batch_size} | {a_slice:.3f} | {work / a_slice / rate:.2f} |", flush=True)


def shared_cpus(weights: str, threads: int) -> None:
    """Network alone, sixteen slices, in one process and in two at once."""
    print("| engine | processes | waiting | seconds a slice |\n|---|---|---|---|")
    considerate: dict[str, str] = {}
    limit_openmp_spinning(considerate)
    runs: list[tuple[EngineName, str, dict[str, str]]] = [
        (EngineName.TORCH, "OpenMP's", {}),
        (EngineName.TORCH, "drunet's", considerate),
        (EngineName.ONNXRUNTIME, "", {}),
    ]
    for engine, name, variables in runs:
        for n_processes in (1, 2):
            command = [sys.executable, "-c", NETWORK_ALONE, weights, str(threads), engine]
            environment = {**os.environ, **variables}
            processes = [
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(n_processes)
            ]
            seconds = [float(process.communicate()[0]) for process in processes]
            print(f"| {engine} | {n_processes} | {name} | {max(seconds):.3f} |", flush=True)


def whole_processes(weights: str, case: Path, threads: int, repeats: int) -> None:
    """One case from files to file, in turn."""
    files = {modality: str(next(case.glob(f"*_{modality}.nii.gz"))) for modality in CHANNELS}
    options = [word for modality, file in files.items() for word in (f"--{modality}", file)]
    with tempfile.TemporaryDirectory() as scratch:
        drunet = [sys.executable, "-m", "drunet_cli", "segment", *options, "--weights", weights, "-o", f"{scratch}/seg.nii.gz"]
        drunet += ["--threads", str(threads), "--quiet", "--overwrite", "--device", "cpu"]
        commands = {
            "plain loop": [sys.executable, "-c", PLAIN_LOOP, weights, str(threads), f"{scratch}/plain.nii.gz", *files.values()]
        }
        if find_spec("monai") is not None:
            monai = [sys.executable, "-c", MONAI_WINDOW, str(threads), f"{scratch}/monai.nii.gz", *files.values()]
            commands["MONAI's SegResNet"] = monai
        for window in ("full", "auto"):
            for engine in ("torch", "onnxruntime"):
                commands[f"{engine}, --window {window}"] = [*drunet, "--engine", engine, "--window", window]
        if has_bfloat16():
            commands["--precision bfloat16"] = [*drunet, "--precision", "bfloat16"]
        commands["--fast"] = [*drunet, "--fast"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        peaks_gb = dict.fromkeys(commands, 0.0)
        for _ in range(repeats):
            for name, command in commands.items():
                begin = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                if status != 0:
                    raise RuntimeError(f"{name} failed")
                seconds[name].append(time.perf_counter() - begin)
                peaks_gb[name] = max(peaks_gb[name], usage.ru_maxrss * 1024 / 1e9)
    plain = np.median(seconds["plain loop"])
    print("| one case, whole process | seconds | times as fast | peak memory GB |\n|---|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {np.median(times):.1f} | {plain / np.median(times):.2f} | {peaks_gb[name]:.2f} |")


if __name__ == "__main__":
    main()
