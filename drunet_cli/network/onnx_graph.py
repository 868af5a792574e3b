"""The network as an ONNX graph, made from the table of layers. Imports no torch."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import drunet_cli
from drunet_cli.brats import CHANNELS, N_CLASSES, TumourClass
from drunet_cli.network.engine import Head, Precision
from drunet_cli.weights.checkpoint import Checkpoint, check_tensors
from drunet_cli.weights.structure import IMAGES, N_CHANNELS, PlacedLayer, folded_norms, layers

Weight: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_OPSET: Final = 17
_IR_VERSION: Final = 8  # that of the opset, so that every runtime that knows it reads the file
_NUMBERS: Final = {Precision.FLOAT32: (TensorProto.FLOAT, np.float32), Precision.FLOAT16: (TensorProto.FLOAT16, np.float16)}


@dataclass(frozen=True)
class Graph:
    """The network in ONNX. model: names its weights, which lie outside, in `weights`."""

    model: onnx.ModelProto
    weights: Mapping[str, Weight]


def build_graph(checkpoint: Checkpoint, *, head: Head = Head.LOGITS, precision: Precision = Precision.FLOAT32) -> Graph:
    """Make the ONNX graph of the network with these weights.

    Input `slices`: float32 [batch, 4, x, y], uint8 slices / 255; x and y are multiples of 32 plus 16.
    Output: float32 logits or probabilities [batch, 4, x, y], or uint8 classes [batch, x, y].
    precision: of the numbers between both ends, float32 or float16. Raises WeightsError where weights do not fit the network.
    """
    check_tensors(checkpoint)
    builder = _Builder(checkpoint, precision)
    logits = builder.network(IMAGES)
    if head is Head.ARGMAX:
        output = helper.make_tensor_value_info(head.output, TensorProto.UINT8, ["batch", "x", "y"])
        builder.node("Cast", builder.node("ArgMax", logits, axis=1, keepdims=0), output=head.output, to=TensorProto.UINT8)
    else:
        output = helper.make_tensor_value_info(head.output, TensorProto.FLOAT, ["batch", N_CLASSES, "x", "y"])
        if head is Head.SOFTMAX:
            builder.node("Softmax", logits, output=head.output, axis=1)
        else:
            builder.node("Identity", logits, output=head.output)
    images = helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, ["batch", N_CHANNELS, "x", "y"])
    graph = helper.make_graph(builder.nodes, "DR-Unet104", [images], [output], builder.initialisers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="drunet",
        producer_version=drunet_cli.__version__,
    )
    helper.set_model_props(model, _properties(checkpoint, head, precision))
    return Graph(model, builder.weights)


def embed_weights(graph: Graph) -> onnx.ModelProto:
    """Put the weights into the model, as one file holds both. At most 2 GB, which protobuf allows: base width 41."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name not in graph.weights:
            continue
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = graph.weights[tensor.name].tobytes()
    return model


def _properties(checkpoint: Checkpoint, head: Head, precision: Precision) -> dict[str, str]:
    """Facts that a user of the file must know, as text."""
    postprocessing = checkpoint.metadata.postprocessing
    facts: dict[str, Any] = {
        **asdict(checkpoint.metadata),
        "postprocessing": postprocessing and json.dumps(asdict(postprocessing)),
        "sha256": checkpoint.sha256,
        "network": "DR-Unet104, Colman et al. 2020, arXiv:2011.02840",
        "channels": json.dumps(list(CHANNELS)),
        "classes": json.dumps([each.name for each in TumourClass]),
        "labels": "enhancing tumour (ET) is 4 in files of BraTS 2012 to 2022, 3 from 2023 on; the others are as here",
        "normalisation": (
            "by modality over the whole volume, voxels > 0: (v - mean) / (3 SD / 128) + 127, cut to 0-255, truncated to uint8; "
            "voxels <= 0 are 0; then divided by 255"
        ),
        "slices": "axial, [x, y] as voxel axes L, P; x and y are multiples of 32 plus 16, 240 as published",
        "head": head,
        "precision": precision,
        "drunet": drunet_cli.__version__,
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "", ())}


@dataclass(frozen=True)
class _Part:
    """A map of the graph that holds these channels of a map of the table.

    A concatenated map stays in parts: a convolution of it is the sum of the convolutions of its parts, which saves the copy.
    """

    name: str
    channels: slice


class _Builder:
    """Makes the nodes of the table's layers one after the other, and the weights that they name."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self._state = checkpoint.state
        self._metadata = checkpoint.metadata
        self._type, self._number = _NUMBERS[precision]
        self._norm_of = {convolution: norm for norm, convolution in folded_norms().items()}
        self._maps: dict[str, tuple[_Part, ...]] = {}  # by their paths in the table
        self._unpadded: dict[str, tuple[str, int]] = {}  # what was padded, and by how much
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.weights: dict[str, Weight] = {}

    def network(self, slices: str) -> str:
        """From the name of the images to that of the logits, both float32."""
        images = slices if self._type == TensorProto.FLOAT else self.node("Cast", slices, to=self._type)
        self._maps[IMAGES] = (_Part(images, slice(0, N_CHANNELS)),)
        for placed in layers(self._metadata.base_width):
            parts = self._compute(placed)
            if then := placed.layer.then:
                parts = tuple(_Part(self.node(then, part.name), part.channels) for part in parts)
            self._maps[placed.path] = parts
        logits = self._whole(placed.path)
        return logits if self._type == TensorProto.FLOAT else self.node("Cast", logits, to=TensorProto.FLOAT)

    def _compute(self, placed: PlacedLayer) -> tuple[_Part, ...]:
        match placed.layer.operator:
            case "Concat":
                return tuple(self._concatenated(placed.inputs))
            case "BatchNormalization" if placed.path in self._norm_of.values():
                return self._maps[placed.inputs[0]]  # the convolution before it has done its work
            case "BatchNormalization":
                return tuple(_Part(self._norm(part, placed.path), part.channels) for part in self._maps[placed.inputs[0]])
            case "Conv":
                name = self._convolution(placed)
            case "ConvTranspose":
                name = self._transposed_convolution(placed)
            case "Pad":
                name = self._padded(placed)
            case operator:
                name = self.node(operator, *(self._whole(path) for path in placed.inputs))
        return (_Part(name, slice(0, placed.out_channels)),)

    def _concatenated(self, paths: tuple[str, ...]) -> Iterator[_Part]:
        start = 0
        for part in (part for path in paths for part in self._maps[path]):
            size = part.channels.stop - part.channels.start
            yield _Part(part.name, slice(start, start + size))
            start += size

    def _whole(self, path: str) -> str:
        """The name of a map in one piece."""
        names = [part.name for part in self._maps[path]]
        return names[0] if len(names) == 1 else self.node("Concat", *names, axis=1)

    def _convolution(self, placed: PlacedLayer) -> str:
        path, size, stride = placed.path, placed.layer.kernel, placed.layer.stride
        kernel: npt.NDArray[np.floating[Any]] = self._state[f"{path}.weight"]
        bias: npt.NDArray[np.floating[Any]] = self._state[f"{path}.bias"]
        if norm := self._norm_of.get(path):
            scale, shift = self._scale_and_shift(norm)
            kernel, bias = kernel * scale[:, None, None, None].astype(np.float32), bias * scale + shift
        sums: list[str] = []
        for part in self._maps[placed.inputs[0]]:
            weights = [self._weight(f"{path}.weight.{part.channels.start}", kernel[:, part.channels])]
            if not sums:
                weights.append(self._weight(f"{path}.bias", bias))
            inputs = [part.name, *weights]
            sums.append(self.node("Conv", *inputs, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4))
        return functools.reduce(lambda one, other: self.node("Add", one, other), sums)

    def _transposed_convolution(self, placed: PlacedLayer) -> str:
        # pads name what is left out of the result: the last row and column, and the border.
        cut, size, stride = -placed.layer.border, placed.layer.kernel, placed.layer.stride
        weights = [self._weight(f"{placed.path}.{name}", self._state[f"{placed.path}.{name}"]) for name in ("weight", "bias")]
        inputs = [self._whole(placed.inputs[0]), *weights]
        pads = [cut, cut, cut + 1, cut + 1]
        return self.node("ConvTranspose", *inputs, kernel_shape=[size, size], strides=[stride, stride], pads=pads)

    def _padded(self, placed: PlacedLayer) -> str:
        border = placed.layer.border
        unpadded, added = self._unpadded.get(placed.inputs[0], ("", 0))
        if added and added == -border:
            return unpadded
        name = self._whole(placed.inputs[0])
        self._unpadded[placed.path] = name, border
        pads = np.array([0, 0, border, border] * 2)
        self.initialisers.append(numpy_helper.from_array(pads, f"{placed.path}.pads"))  # within the model: shapes depend on it
        return self.node("Pad", name, f"{placed.path}.pads")

    def _norm(self, part: _Part, path: str) -> str:
        scale, shift = (array[part.channels] for array in self._scale_and_shift(path))
        # Mean 0 and variance 1: as float16 the true ones might overflow.
        weights = {"scale": scale, "shift": shift, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
        names = (self._weight(f"{path}.{name}.{part.channels.start}", array) for name, array in weights.items())
        return self.node("BatchNormalization", part.name, *names, epsilon=0.0)

    def _scale_and_shift(self, norm: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The factor that a batch norm multiplies by, and the number that it adds then."""
        names = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self._state[f"{norm}.{name}"].astype(np.float64) for name in names)
        scale = gamma / np.sqrt(variance + self._metadata.bn_epsilon)
        return scale, beta - mean * scale

    def _weight(self, name: str, array: npt.NDArray[np.floating[Any]]) -> str:
        """Note a weight, which lies outside the model; return its name."""
        self.weights[name] = np.ascontiguousarray(array, dtype=self._number)
        tensor = TensorProto(name=name, data_type=self._type, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="memory")
        self.initialisers.append(tensor)
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
