"""Read and write the authors' weights file, a Keras 2 `save_weights` HDF5 file.

The format has two orders of layers: they are numbered in the order in which the authors' code creates them, and listed in the
order in which the network computes them. Both are facts of that format and stand here.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import h5py
import numpy as np
import numpy.typing as npt

from drunet_cli.errors import WeightsError
from drunet_cli.weights.checkpoint import Checkpoint, State
from drunet_cli.weights.structure import MAX_BASE_WIDTH, Block, Shape, blocks, tensor_shapes

_CONV, _NORM, _UPSAMPLE, _OUTPUT = "conv2d", "batch_normalization", "conv2d_transpose", "output_layer"
_LAYER_NAME: Final = re.compile(rf"({_UPSAMPLE}|{_CONV}|{_NORM}|{_OUTPUT})(?:_(\d+))?")
_KERNEL_AND_BIAS: Final = {"kernel:0": "weight", "bias:0": "bias"}
WEIGHT_NAMES: Final = {  # for each kind of layer: Keras' names of the arrays, and those of the state dict
    _CONV: _KERNEL_AND_BIAS,
    _UPSAMPLE: _KERNEL_AND_BIAS,
    _OUTPUT: _KERNEL_AND_BIAS,
    _NORM: {"gamma:0": "weight", "beta:0": "bias", "moving_mean:0": "running_mean", "moving_variance:0": "running_var"},
}
# Keras numbers the layers of a kind in the order in which the authors' code creates them. The input block and the decoder's
# blocks create their shortcut convolution first, the down block last.
_DECODER: Final = {_UPSAMPLE: ("upsample",), _CONV: ("shortcut", "conv1", "conv2"), _NORM: ("norm1", "norm2")}
_CREATED: Final[Mapping[Block, Mapping[str, tuple[str, ...]]]] = {
    Block.INPUT: {_CONV: ("shortcut", "conv1", "conv2", "conv3"), _NORM: ("norm1", "norm2")},
    Block.DOWN: {_CONV: ("conv1", "conv2", "conv3", "shortcut"), _NORM: ("norm1", "norm2", "norm3")},
    Block.BOTTLENECK: {_CONV: ("conv1", "conv2", "conv3"), _NORM: ("norm1", "norm2", "norm3")},
    Block.PADDED: {},
    Block.DECODER: _DECODER,
    Block.CROPPED_DECODER: _DECODER,
    Block.HEAD: {_NORM: ("head_norm",), _OUTPUT: ("head",)},
}
# The file lists the layers, those without weights too, in the order in which the network computes them: layers with weights by
# their names in model.py, the others by Keras' kind.
_BOTTLENECK: Final = ("norm1", "re_lu", "conv1", "norm2", "re_lu", "conv2", "norm3", "re_lu", "conv3")
_MIXED: Final = ("norm1", "re_lu", "conv1", "norm2", "re_lu", "shortcut", "conv2", "add")
_COMPUTED: Final[Mapping[Block, tuple[str, ...]]] = {
    Block.INPUT: ("conv1", "norm1", "re_lu", "conv2", "norm2", "re_lu", "conv3", "shortcut", "add"),
    Block.DOWN: (*_BOTTLENECK, "shortcut", "add"),
    Block.BOTTLENECK: (*_BOTTLENECK, "add"),
    Block.PADDED: ("zero_padding2d",),
    Block.DECODER: ("upsample", "concatenate", *_MIXED),
    Block.CROPPED_DECODER: ("upsample", "concatenate", "cropping2d", *_MIXED),
    Block.HEAD: ("head_norm", "re_lu", "head"),
}
_FILE_ATTRIBUTES: Final = {"backend": b"tensorflow", "keras_version": b"2.15.0"}
_INPUT: Final = "input_1"  # the one kind that Keras numbers from 1
# The exceptions of h5py for a damaged file or one with another content where a group, a dataset or a string is expected.
_H5PY_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)


def read_keras_h5(path: Path) -> tuple[int, State]:
    """Read the base width and the state dict (float32, without `num_batches_tracked`) from a Keras 2 HDF5 file.

    Files of `save_weights` and of `model.save` are read. Nothing in the file is executed.
    Raises WeightsError naming the layer that is missing, left over, of another shape, or not finite.
    """
    try:
        # From a stream: HDF5 locks the files that it opens by name, which some network file systems refuse.
        with path.open("rb") as stream, h5py.File(stream, "r") as file:
            return _read(file, path)
    except _H5PY_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of HDF5
            raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
        # HDF5 itself names the two lengths in its own terms.
        reason = "it is cut short; copy or download it again" if "truncated file" in str(error) else error
        raise WeightsError(f"{path}: not a readable Keras HDF5 weights file: {reason}") from error


def write_keras_h5(stream: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write the weights as Keras does, to a stream that can be read and sought too.

    Such a file has no place for the metadata, and so not for epsilon.
    """
    with h5py.File(stream, "w") as file:
        file.attrs.update(_FILE_ATTRIBUTES)
        file.create_group("top_level_model_weights").attrs["weight_names"] = []
        names = []
        for name, kind, path in _listed_layers():
            names.append(name.encode())
            group = file.create_group(name)
            weights = WEIGHT_NAMES.get(kind, {})
            group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight in weights]
            for weight, parameter in weights.items():
                array = checkpoint.state[f"{path}.{parameter}"]
                group[f"{name}/{weight}"] = np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
        file.attrs["layer_names"] = names


def keras_layers() -> Iterator[tuple[str, str]]:
    """Yield (Keras kind, path in the model) of every layer with weights, in the authors' order of creation."""
    for block in blocks():
        for kind, names in _CREATED[block.kind].items():
            yield from ((kind, _path(block.path, name)) for name in names)


def _read(file: h5py.File, path: Path) -> tuple[int, State]:
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise WeightsError(f"{path}: has no layer_names; a Keras 2 save_weights file of DR-Unet104 is needed")
    datasets = _datasets(root)
    found = _layers_by_kind(root, path)
    base_width = _base_width(datasets, found, path)
    shapes = tensor_shapes(base_width)
    state: State = {}
    used: set[str] = set()
    for kind, layer_path in keras_layers():
        if not found[kind]:
            raise WeightsError(f"{path}: a layer {kind} is missing; DR-Unet104 has more of them")
        name = found[kind].pop(0)
        for keras_name, parameter in WEIGHT_NAMES[kind].items():
            dataset_name, tensor_name = f"{name}/{name}/{keras_name}", f"{layer_path}.{parameter}"
            state[tensor_name] = _tensor(datasets, dataset_name, shapes[tensor_name], path)
            used.add(dataset_name)
    left_over = sorted(name for names in found.values() for name in names) + sorted(datasets.keys() - used)
    if left_over:
        raise WeightsError(f"{path}: {left_over[0]} is left over; this is not DR-Unet104 at base width {base_width}")
    return base_width, state


def _datasets(root: h5py.Group) -> dict[str, h5py.Dataset]:
    """Every dataset by its name, found in one walk, which is faster than to ask for each by name."""
    datasets: dict[str, h5py.Dataset] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    root.visititems(add)
    return datasets


def _layers_by_kind(root: h5py.Group, path: Path) -> dict[str, list[str]]:
    """Names of the layers that hold weights, by kind, sorted by their number, which must run without a gap."""
    numbered: dict[str, dict[int, str]] = {_CONV: {}, _NORM: {}, _UPSAMPLE: {}, _OUTPUT: {}}
    for name in map(_text, root.attrs["layer_names"]):
        layer = root.get(name)
        if layer is None:
            raise WeightsError(f"{path}: layer {name} is listed but missing")
        if len(layer.attrs["weight_names"]) == 0:
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


def _base_width(datasets: Mapping[str, h5py.Dataset], found: dict[str, list[str]], path: Path) -> int:
    if not found[_CONV]:
        raise WeightsError(f"{path}: holds no convolution")
    name = found[_CONV][0]  # the input block's shortcut: [1, 1, 4, 4w]
    kernel = datasets.get(f"{name}/{name}/kernel:0")
    shape: tuple[int, ...] = () if kernel is None else kernel.shape
    if len(shape) != 4 or shape[3] % 4 or not 1 <= shape[3] // 4 <= MAX_BASE_WIDTH:
        raise WeightsError(f"{path}: layer {name} has a kernel of shape {shape}; DR-Unet104 begins with [1, 1, 4, 4w]")
    return int(shape[3]) // 4


def _tensor(datasets: Mapping[str, h5py.Dataset], name: str, shape: Shape, path: Path) -> npt.NDArray[np.float32]:
    """One dataset in PyTorch's layout: kernels [h, w, in, out] to [out, in, h, w], transposed kernels likewise."""
    dataset = datasets.get(name)
    if dataset is None:
        raise WeightsError(f"{path}: {name} is missing")
    if dataset.dtype.kind != "f" or dataset.external or dataset.is_virtual:
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


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _listed_layers() -> Iterator[tuple[str, str, str]]:
    """Keras' name, its kind, and the path in the model of every layer in the file's order; without weights, no path."""
    numbers: Counter[str] = Counter()

    def numbered(kind: str) -> str:
        numbers[kind] += 1
        return kind if numbers[kind] == 1 else f"{kind}_{numbers[kind] - 1}"

    with_weights = {path: (numbered(kind), kind) for kind, path in keras_layers()}
    yield _INPUT, "", ""
    for block in blocks():
        for name in _COMPUTED[block.kind]:
            path = _path(block.path, name)
            yield (*with_weights[path], path) if path in with_weights else (numbered(name), "", "")
        if block.dropout:
            yield numbered("dropout"), "", ""


def _path(block_path: str, name: str) -> str:
    return f"{block_path}.{name}" if block_path else name
