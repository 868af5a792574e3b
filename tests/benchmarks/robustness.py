"""How much mild changes of the images change the Dice: flips, noise, a bias field, other intensities, thick slices.

    python -m tests.benchmarks.robustness WEIGHTS CASE_FOLDER... [--threads N]

Case folders hold a segmentation. Each change is made to the voxels of all four images before they are normalised, within the
brain, and a flipped case is compared with the flipped truth. Prints for each case the mean Dice of those regions (WT, TC, ET)
that the truth has, for the images as they are, and what each change adds to it; last the Dice of WT, and what slices of 5 mm
add to that; then the mean of all cases.

noise: normally distributed, of 2 % of the largest intensity. bias: a smooth field, different for each image, from 0.85 to 1.15.
scaling: T1 times 0.5, T1ce times 3, T2 times 0.2, FLAIR times 1.5. 5 mm: means over 5 voxels along K, as slices of 5 mm have
them, and linear interpolation between their middles, as a preparation to 1 mm does it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import interp1d

from drunet_cli.brats import REGIONS, Modality
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.io.case import Case
from drunet_cli.io.checks import brain_mask
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.geometry import fit
from drunet_cli.io.volumes import CaseImages, class_map_of, read_labelled
from drunet_cli.network.engine import Engine, EngineName, Precision, WindowMode, choose_engine, open_engine
from drunet_cli.segmentation.predict import predict
from drunet_cli.weights.cache import open_weights

Voxels = npt.NDArray[Any]
Change = Callable[[Voxels, Modality], Voxels]

FACTORS: Final = {Modality.T1: 0.5, Modality.T1CE: 3.0, Modality.T2: 0.2, Modality.FLAIR: 1.5}


def flip(axis: int) -> Change:
    return lambda voxels, _: np.flip(voxels, axis)


def noise(voxels: Voxels, modality: Modality) -> Voxels:
    """Voxels stay above 0 where they were."""
    drawn = np.random.default_rng(list(Modality).index(modality)).normal(scale=0.02 * voxels.max(), size=voxels.shape)
    return np.where(voxels > 0, np.maximum(voxels + drawn, 1e-3), 0)


def bias(voxels: Voxels, modality: Modality) -> Voxels:
    knots = np.random.default_rng(list(Modality).index(modality)).uniform(0.85, 1.15, size=(3, 3, 3))
    zoom = [size / 3 for size in voxels.shape]
    return np.asarray(voxels * ndimage.zoom(knots, zoom, order=1, mode="nearest", grid_mode=True))


def scaling(voxels: Voxels, modality: Modality) -> Voxels:
    return voxels * FACTORS[modality]


def thick_slices(voxels: Voxels, _: Modality) -> Voxels:
    """Voxels outside the brain stay 0."""
    mean = ndimage.uniform_filter1d(voxels, 5, axis=2, mode="nearest")
    middles = np.arange(2, voxels.shape[2], 5)
    between = interp1d(
        middles, mean[:, :, middles], axis=2, bounds_error=False, fill_value=(mean[..., 2], mean[..., middles[-1]])
    )
    return np.where(voxels > 0, np.maximum(between(np.arange(voxels.shape[2])), 1e-3), 0).astype(np.float32)


CHANGES: Final[dict[str, Change]] = {
    "as it is": lambda voxels, _: voxels,
    **{f"flip {name}": flip(axis) for axis, name in enumerate(("I", "J", "K"))},
    "noise": noise,
    "bias": bias,
    "scaling": scaling,
    "5 mm": thick_slices,
}
FLIPS: Final = [change for name, change in CHANGES.items() if name.startswith("flip")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=granted_cpus())
    arguments = parser.parse_args()
    checkpoint = open_weights(arguments.weights)
    engine = open_engine(
        choose_engine(EngineName.AUTO, device="cpu", precision=Precision.FLOAT32),
        checkpoint,
        device="cpu",
        precision=Precision.FLOAT32,
        batch_size=None,
        threads=arguments.threads,
        on_warning=print,
    )
    window = WindowMode(checkpoint.metadata.window)
    print(f"{cpu_name()}, {arguments.threads} threads, {engine.name}, {arguments.weights}")
    print(f"| case | {' | '.join(CHANGES)} | WT | WT of 5 mm |\n|{'---|' * (3 + len(CHANGES))}")
    rows = []
    for case in find_cases(arguments.cases).cases:
        rows.append(scores(case, engine, window))
        print(line(case.name, rows[-1]), flush=True)
    print(line(f"mean of {len(rows)}", np.nanmean(rows, axis=0)))


def scores(case: Case, engine: Engine, window: WindowMode) -> npt.NDArray[np.float64]:
    """[changes, 3]: Dice of the regions of one case, NaN where it has none."""
    labelled = read_labelled(case)
    if labelled.segmentation is None:
        raise SystemExit(f"{case.name}: has no segmentation")
    truth, _ = class_map_of(labelled.segmentation.volume)
    return np.array([dice_of(labelled.images, truth, change, engine, window) for change in CHANGES.values()])


def dice_of(images: CaseImages, truth: Voxels, change: Change, engine: Engine, window: WindowMode) -> list[float]:
    volumes = {
        modality: replace(volume, voxels=change(volume.voxels.astype(np.float32), modality))
        for modality, volume in images.volumes.items()
    }
    geometry = fit(brain_mask(volumes), affine=images.reference.affine)
    changed = replace(images, volumes=volumes, geometry=geometry)
    prediction = predict(changed.slices(), geometry, [engine], window=window).class_map
    truth = change(truth, Modality.FLAIR) if change in FLIPS else truth
    masks = [(mask_of(prediction, classes), mask_of(truth, classes)) for classes in REGIONS.values()]
    return [dice(one, other) if other.any() else np.nan for one, other in masks]


def line(case: str, row: npt.NDArray[np.float64]) -> str:
    """One row of the table: figures of the images as they are, and what the others add to them. row: [changes, 3]."""
    means, (whole, *_, thick) = np.nanmean(row, axis=1), row[:, list(REGIONS).index("WT")]
    added = " | ".join(f"{value - means[0]:+.3f}" for value in means[1:])
    return f"| {case} | {means[0]:.3f} | {added} | {whole:.3f} | {thick - whole:+.3f} |"


if __name__ == "__main__":
    main()
