"""Keras 2 weights files of any width with random numbers, laid out as Keras writes them."""

from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np

from drunet_cli.weights.keras import keras_layers
from drunet_cli.weights.structure import tensor_shapes


def write_keras_h5(path: Path, *, base_width: int, seed: int = 0, first_number: int = 0, group: str = "/") -> None:
    """Write random weights; kernels are small enough for the logits to stay finite.

    first_number: where Keras' numbering begins, above 0 if the process had built another model. group: `model_weights` as
    `model.save` has it.
    """
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(base_width)
    numbers: dict[str, int] = defaultdict(lambda: first_number)
    with h5py.File(path, "w") as file:
        root = file.require_group(group)
        names = ["input_1"]
        root.create_group("input_1").attrs["weight_names"] = np.array([], dtype="S1")
        for kind, layer in keras_layers():
            name = kind if kind == "output_layer" or numbers[kind] == 0 else f"{kind}_{numbers[kind]}"
            numbers[kind] += 1
            shape = shapes[f"{layer}.weight"]
            if kind == "batch_normalization":
                arrays = {
                    "gamma:0": rng.uniform(0.5, 1, shape),
                    "beta:0": rng.normal(0, 0.1, shape),
                    "moving_mean:0": rng.normal(0, 0.1, shape),
                    "moving_variance:0": rng.uniform(0.5, 2, shape),
                }
            else:
                out, channels, height, width = shape if kind != "conv2d_transpose" else (shape[1], shape[0], *shape[2:])
                fan_in = channels * height * width
                kernel = rng.standard_normal((height, width, *shape[1::-1]), dtype=np.float32) * (0.5 / np.sqrt(fan_in))
                arrays = {"kernel:0": kernel, "bias:0": rng.normal(0, 0.1, out)}
            layer_group = root.create_group(name)
            layer_group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight in arrays]
            for weight, array in arrays.items():
                layer_group.create_dataset(f"{name}/{weight}", data=array.astype(np.float32))
            names.append(name)
        root.attrs["layer_names"] = [name.encode() for name in names]
