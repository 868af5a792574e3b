"""Time drunet on the CPU against a plain PyTorch loop, side by side in one run.

    python tests/benchmarks/cpu.py WEIGHTS CASE_FOLDER [--threads N] [--repeats N]

Prints the seconds of whole processes: `drunet segment`, and a loop that feeds all slices of the volume one by one through the
same network without any of drunet's measures; then the network's seconds a slice for one process and for two that share the
CPUs, with OpenMP's own way of waiting and with drunet's, and for several batch sizes. CASE_FOLDER holds `*_flair.nii.gz` and
so on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from drunet_cli.brats import CHANNELS
from drunet_cli.host import cpu_name, granted_cpus, wait_considerately

PLAIN_LOOP = """
import sys
from pathlib import Path
import nibabel as nib, numpy as np, torch
from drunet_cli.network.acquisition import open_weights
from drunet_cli.network.engine_torch import build_model
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


NETWORK_ALONE = """
import sys, time
import numpy as np, torch
from drunet_cli.network.acquisition import open_weights
from drunet_cli.network.engine_torch import TorchEngine
engine = TorchEngine(open_weights(sys.argv[1]), device=torch.device("cpu"), threads=int(sys.argv[2]))
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
    batch_sizes(arguments.weights, arguments.threads, arguments.repeats)


def batch_sizes(weights: str, threads: int, repeats: int) -> None:
    """Network alone, eight slices; the median of the repeats, which go through the batch sizes in turn."""
    import torch

    from drunet_cli.network.acquisition import open_weights
    from drunet_cli.network.engine_torch import TorchEngine

    engine = TorchEngine(open_weights(weights), device=torch.device("cpu"), threads=threads)
    slices = np.random.default_rng(0).integers(0, 256, (8, 240, 240, 4), dtype=np.uint8)
    seconds: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
    for repeat in range(repeats + 1):
        for batch_size, times in seconds.items():
            engine.batch_size = batch_size
            begin = time.perf_counter()
            engine.classes(slices)
            if repeat:  # the first warms up
                times.append((time.perf_counter() - begin) / len(slices))
    print("| batch size | seconds a slice |\n|---|---|")
    for batch_size, times in seconds.items():
        print(f"| {batch_size} | {np.median(times):.3f} |", flush=True)


def shared_cpus(weights: str, threads: int) -> None:
    """Network alone, sixteen slices, in one process and in two at once."""
    print("| processes | waiting | seconds a slice |\n|---|---|---|")
    considerate: dict[str, str] = {}
    wait_considerately(considerate)
    for n_processes in (1, 2):
        for name, variables in (("OpenMP's", {}), ("drunet's", considerate)):
            command = [sys.executable, "-c", NETWORK_ALONE, weights, str(threads)]
            environment = {**os.environ, **variables}
            processes = [
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(n_processes)
            ]
            seconds = [float(process.communicate()[0]) for process in processes]
            print(f"| {n_processes} | {name} | {max(seconds):.3f} |", flush=True)


def whole_processes(weights: str, case: Path, threads: int, repeats: int) -> None:
    """One case from files to file, in turn."""
    files = {modality: str(next(case.glob(f"*_{modality}.nii.gz"))) for modality in CHANNELS}
    seconds: dict[str, list[float]] = {"plain loop": [], "drunet segment": []}
    peaks_gb = dict.fromkeys(seconds, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            output = f"{scratch}/{repeat}.nii.gz"
            plain = [sys.executable, "-c", PLAIN_LOOP, weights, str(threads), f"{scratch}/plain.nii.gz", *files.values()]
            options = [word for modality, file in files.items() for word in (f"--{modality}", file)]
            drunet = [sys.executable, "-m", "drunet_cli", "segment", *options, "--weights", weights, "-o", output]
            for name, command in (("plain loop", plain), ("drunet segment", [*drunet, "--threads", str(threads), "--quiet"])):
                begin = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                if status != 0:
                    raise RuntimeError(f"{name} failed")
                seconds[name].append(time.perf_counter() - begin)
                peaks_gb[name] = max(peaks_gb[name], usage.ru_maxrss * 1024 / 1e9)
    print("| one case, whole process | seconds | peak memory GB |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {np.median(times):.1f} | {peaks_gb[name]:.2f} |")
    print(f"ratio {np.median(seconds['plain loop']) / np.median(seconds['drunet segment']):.2f}")


if __name__ == "__main__":
    main()
