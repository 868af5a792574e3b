"""The authors' weights file: a Keras 2 `save_weights` HDF5 file, as a state dict of the PyTorch model.

Keras numbers layers by kind in the order in which the authors' code creates them; that order, not the file's, says which
layer is which. A file is taken only if every number in it has exactly one place in the model, and every place one number.
Source of names, order and layouts: Dr_Unet104_model.py, and files written by Keras 2.15.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from drunet_cli.errors import WeightsError
from drunet_cli.network.checkpoint import MAX_BASE_WIDTH, State
from drunet_cli.network.model import Bottleneck, DecoderBlock, DRUNet104, InputBlock

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d

_CONV, _NORM, _UPSAMPLE, _OUTPUT = "conv2d", "batch_normalization", "conv2d_transpose", "output_layer"
_LAYER_NAME: Final = re.compile(rf"({_UPSAMPLE}|{_CONV}|{_NORM}|{_OUTPUT})(?:_(\d+))?")
_WEIGHTS: Final = {  # Keras weight name: PyTorch parameter or buffer
    nn.Conv2d: {"kernel:0": "weight", "bias:0": "bias"},
    nn.ConvTranspose2d: {"kernel:0": "weight", "bias:0": "bias"},
    nn.BatchNorm2d: {
        "gamma:0": "weight",
        "beta:0": "bias",
        "moving_mean:0": "running_mean",
        "moving_variance:0": "running_var",
    },
}
# What h5py raises for a damaged file or one with another content where a group, a dataset or a string is expected.
_H5PY_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)


def keras_layers(model: DRUNet104) -> Iterator[tuple[str, str, Layer]]:
    """Yield (Keras kind, path in the model, layer) in the authors' order of creation.

    The input block and the decoder's blocks create their shortcut convolution first, the down block last.
    """
    for path, block in model.named_modules():
        match block:
            case InputBlock():
                convolutions, norms = ["shortcut", "conv1", "conv2", "conv3"], ["norm1", "norm2"]
            case Bottleneck():
                down = isinstance(block.shortcut, nn.Conv2d)
                convolutions = ["conv1", "conv2", "conv3", *(["shortcut"] if down else [])]
                norms = ["norm1", "norm2", "norm3"]
            case DecoderBlock():
                yield _UPSAMPLE, f"{path}.upsample", block.upsample
                convolutions, norms = ["shortcut", "conv1", "conv2"], ["norm1", "norm2"]
            case _:
                continue
        for kind, names in ((_CONV, convolutions), (_NORM, norms)):
            for name in names:
                yield kind, f"{path}.{name}", block.get_submodule(name)
    yield _NORM, "head_norm", model.head_norm
    yield _OUTPUT, "head", model.head


def read_keras_h5(path: Path) -> tuple[int, State]:
    """Read the base width and the state dict (float32, without `num_batches_tracked`) from a Keras 2 HDF5 file.

    Files of `save_weights` and of `model.save` are read. Nothing in the file is executed.
    Raises WeightsError naming the layer that is missing, left over, of another shape, or not finite.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path)
    except _H5PY_ERRORS as error:
        raise WeightsError(f"{path}: not a readable Keras HDF5 weights file: {error}") from error


def _read(file: h5py.File, path: Path) -> tuple[int, State]:
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise WeightsError(f"{path}: has no layer_names; a Keras 2 save_weights file of DR-Unet104 is needed")
    found = _layers_by_kind(root, path)
    base_width = _base_width(root, found, path)
    with torch.device("meta"):
        model = DRUNet104(base_width, bn_epsilon=1.0)
    state: State = {}
    used: set[str] = set()
    for kind, layer_path, layer in keras_layers(model):
        if not found[kind]:
            raise WeightsError(f"{path}: a layer {kind} is missing; DR-Unet104 has more of them")
        name = found[kind].pop(0)
        for keras_name, parameter in _WEIGHTS[type(layer)].items():
            dataset_name = f"{name}/{name}/{keras_name}"
            shape = tuple(
                layer.get_parameter(parameter).shape if "running" not in parameter else layer.get_buffer(parameter).shape
            )
            state[f"{layer_path}.{parameter}"] = _tensor(root, dataset_name, shape, path)
            used.add(dataset_name)
    left_over = sorted(name for names in found.values() for name in names) + sorted(_dataset_names(root) - used)
    if left_over:
        raise WeightsError(f"{path}: {left_over[0]} is left over; this is not DR-Unet104 at base width {base_width}")
    return base_width, state


def _layers_by_kind(root: h5py.Group, path: Path) -> dict[str, list[str]]:
    """Names of the layers that hold weights, by kind, sorted by their number, which must run without a gap."""
    numbered: dict[str, dict[int, str]] = {_CONV: {}, _NORM: {}, _UPSAMPLE: {}, _OUTPUT: {}}
    for name in map(_text, root.attrs["layer_names"]):
        if name not in root:
            raise WeightsError(f"{path}: layer {name} is listed but missing")
        if len(root[name].attrs["weight_names"]) == 0:
            continue
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            raise WeightsError(f"{path}: layer {name} is left over; DR-Unet104 has none of that name")
        numbered[match[1]][int(match[2] or 0)] = name
    for kind, names in numbered.items():
        gaps = set(range(min(names, default=0), max(names, default=0))) - names.keys()
        if gaps:
            raise WeightsError(f"{path}: layer {kind}_{min(gaps)} is missing")
    return {kind: [names[number] for number in sorted(names)] for kind, names in numbered.items()}


def _base_width(root: h5py.Group, found: dict[str, list[str]], path: Path) -> int:
    if not found[_CONV]:
        raise WeightsError(f"{path}: holds no convolution")
    name = found[_CONV][0]  # the input block's shortcut: [1, 1, 4, 4w]
    shape = root[f"{name}/{name}/kernel:0"].shape
    if len(shape) != 4 or shape[3] % 4 or not 1 <= shape[3] // 4 <= MAX_BASE_WIDTH:
        raise WeightsError(f"{path}: layer {name} has a kernel of shape {shape}; DR-Unet104 begins with [1, 1, 4, 4w]")
    return int(shape[3]) // 4


def _tensor(root: h5py.Group, name: str, shape: tuple[int, ...], path: Path) -> npt.NDArray[np.float32]:
    """One dataset in PyTorch's layout: kernels [h, w, in, out] to [out, in, h, w], transposed kernels likewise."""
    if name not in root:
        raise WeightsError(f"{path}: {name} is missing")
    dataset = root[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f" or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{path}: {name} is not an array of numbers kept in this file")
    keras_shape = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape
    if dataset.shape != keras_shape:
        raise WeightsError(f"{path}: {name} has shape {dataset.shape}, DR-Unet104 needs {keras_shape}")
    array = dataset[()].astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise WeightsError(f"{path}: {name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    if name.endswith("moving_variance:0") and array.min() < 0:
        raise WeightsError(f"{path}: {name} holds a negative variance")
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if len(shape) == 4 else array


def _dataset_names(root: h5py.Group) -> set[str]:
    names: set[str] = set()
    root.visititems(lambda name, item: names.add(name) if isinstance(item, h5py.Dataset) else None)
    return names


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
