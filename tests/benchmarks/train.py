"""Training speed: drunet's loop against a plain PyTorch loop, in one run.

    python tests/benchmarks/train.py CASES... --base-width 4 --steps 12 [--device cuda --precision bfloat16]

The plain loop is what one writes first: a Dataset that decodes the PNG slices of `drunet convert nii2png` (Pillow), a
DataLoader, whole frames, the published optimiser and flips. drunet trains the paper recipe (the same frames and arithmetic) and
the modern one (windows, augmentation, average). The loops take turns, step by step in blocks, so that a busy machine slows all.
On a GPU also: the share of the card's measured matrix rate, and the share of the time that the loop waited for slices.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from drunet_cli.conversion.dataset import Layout, slice_files
from drunet_cli.conversion.nii2png import SliceSettings, convert_case, plan_slices
from drunet_cli.io.discovery import find_cases
from drunet_cli.network.engine import Precision
from drunet_cli.network.model import DRUNet104
from drunet_cli.training.batches import Feed, Planner
from drunet_cli.training.cases import find_training_cases
from drunet_cli.training.learner import Learner, new_network
from drunet_cli.training.recipe import RECIPES, Recipe, RecipeName
from drunet_cli.training.store import StoredCase, StoreTask, open_store, store_case

BLOCKS = 3
FRAME_GFLOP = 54.16  # forward, base width 16, per 240 x 240 slice (drunet_cli/network/README.md); backward is twice that


class PngSlices(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Every slice with its mask, decoded each time it is asked for, flipped as published."""

    def __init__(self, layout: Layout) -> None:
        self.images = [file.path for files in slice_files(layout.images).values() for file in files]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.images[index]
        image = np.asarray(Image.open(path), dtype=np.float32) / 255
        mask = np.asarray(Image.open(path.parents[1] / "masks" / path.name))[..., 0].astype(np.int64)
        for axis in (0, 1):
            if torch.rand(()) < 0.5:
                image, mask = np.flip(image, axis), np.flip(mask, axis)
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask.copy())


def plain(layout: Layout, base_width: int, batch: int, device: torch.device) -> Iterator[None]:
    loader = DataLoader(PngSlices(layout), batch_size=batch, shuffle=True, drop_last=True)
    network = DRUNet104(base_width, bn_epsilon=1e-5, dropout=0.2).to(device).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, eps=1e-7)
    loss_of = nn.CrossEntropyLoss()
    while True:
        for images, masks in loader:
            loss = loss_of(network(images.to(device)), masks.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            yield


class Drunet:
    """The package's own loop, without validation."""

    def __init__(self, recipe: Recipe, cases: Sequence[StoredCase], n: int, device: torch.device, precision: Precision) -> None:
        network = new_network(recipe.network, seed=0)
        self.learner = Learner(network, recipe, n_steps=n, device=device, precision=precision)
        planner = Planner(cases, recipe.batches, recipe.augmentation, seed=0)
        self.feed = Feed(planner, cases, first=0, end=n, device=device)
        self.pixels = 0

    def steps(self) -> Iterator[None]:
        for plan, pixels in self.feed:
            self.learner.step(pixels, plan)
            self.pixels += len(plan.windows) * plan.shape[0] * plan.shape[1]
            yield


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """TFLOP/s of a large matrix product."""
    dtype = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(8192, 8192, device=device, dtype=dtype)
    for n in range(30):
        if n == 10:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        matrix @ matrix
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--base-width", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12, help="of each loop, in three blocks after one step to warm up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", type=Precision, default=Precision.FLOAT32)
    arguments = parser.parse_args()
    device, per_block = torch.device(arguments.device), arguments.steps // BLOCKS
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as folder:
        layout, store = Layout(Path(folder) / "png"), Path(folder) / "slices"
        settings = SliceSettings(folder=layout.root)
        for planned in plan_slices(find_cases(arguments.cases).cases, settings):
            convert_case(planned, settings)
        found = find_training_cases(arguments.cases).cases
        for item in found:
            store_case(StoreTask(case=item, folder=store))
        stored = open_store(store, [item.name for item in found])
        ours: dict[str, Drunet] = {}
        for name in RecipeName:
            recipe = RECIPES[name]
            recipe = replace(recipe, network=replace(recipe.network, base_width=arguments.base_width))
            recipe = replace(recipe, batches=replace(recipe.batches, size=arguments.batch_size))
            ours[name] = Drunet(recipe, stored, arguments.steps + 1, device, arguments.precision)
        loops: dict[str, Iterator[None]] = {"plain": plain(layout, arguments.base_width, arguments.batch_size, device)}
        loops |= {name: own.steps() for name, own in ours.items()}
        seconds = dict.fromkeys(loops, 0.0)
        for loop in loops.values():
            next(loop)
        waited = {name: own.feed.waited_s for name, own in ours.items()}
        for _ in range(BLOCKS):
            for kind, loop in loops.items():
                synchronise()
                begin = time.perf_counter()
                for _ in range(per_block):
                    next(loop)
                synchronise()
                seconds[kind] += time.perf_counter() - begin
        n_slices = BLOCKS * per_block * arguments.batch_size
        print(
            f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, base width {arguments.base_width}, ",
            end="",
        )
        print(f"batch {arguments.batch_size}, drunet in {arguments.precision}, plain in float32\n")
        print("| loop | slices/s | against plain | waited for slices |\n|---|---|---|---|")
        for kind, took in seconds.items():
            share = f"{(ours[kind].feed.waited_s - waited[kind]) / took:.1%}" if kind in ours else ""
            print(f"| {kind} | {n_slices / took:.1f} | {seconds['plain'] / took:.2f} | {share} |")
        if device.type == "cuda":
            peak = matrix_rate(device, arguments.precision)
            print(f"\n{torch.cuda.get_device_name(device)}: matrix product {peak:.0f} TFLOP/s")
            for kind, own in ours.items():
                flop = 3 * FRAME_GFLOP * 1e9 * (arguments.base_width / 16) ** 2 * own.pixels / 240**2
                flop *= BLOCKS * per_block / (BLOCKS * per_block + 1)
                print(f"{kind}: {flop / seconds[kind] / 1e12:.1f} TFLOP/s, {flop / seconds[kind] / 1e12 / peak:.1%} of it")
        for own in ours.values():
            own.feed.close()


if __name__ == "__main__":
    main()
