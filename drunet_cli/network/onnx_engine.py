"""The network in ONNX Runtime, on the CPU in float32, and its graph. Imports no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

import drunet_cli
from drunet_cli.brats import CHANNELS, N_CLASSES, ClassMap, TumourClass
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.network.engine import EngineName, Precision, ignore_progress
from drunet_cli.weights.checkpoint import Checkpoint, check_tensors
from drunet_cli.weights.structure import BRIDGE, N_CHANNELS, PADDED_STAGE, STAGE_BLOCKS, Block, stage_blocks

Weight: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]

INPUT: Final = "slices"
_OPSET: Final = 17
_IR_VERSION: Final = 8  # that of the opset, so that every runtime that knows it reads the file
_NUMBERS: Final = {Precision.FLOAT32: (TensorProto.FLOAT, np.float32), Precision.FLOAT16: (TensorProto.FLOAT16, np.float16)}


class Head(StrEnum):
    """What comes out: the four logits of a pixel, their softmax, or the index of the greatest."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    ARGMAX = "argmax"

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return {Head.LOGITS: "logits", Head.SOFTMAX: "probabilities", Head.ARGMAX: "classes"}[self]


@dataclass(frozen=True)
class Graph:
    """model: its weights are named but lie outside, in `weights`."""

    model: onnx.ModelProto
    weights: Mapping[str, Weight]


def build_graph(checkpoint: Checkpoint, *, head: Head = Head.LOGITS, precision: Precision = Precision.FLOAT32) -> Graph:
    """The network with these weights.

    Input `slices`: float32 [batch, 4, x, y], uint8 slices / 255; x and y are multiples of 32 plus 16.
    Output: float32 logits or probabilities [batch, 4, x, y], or uint8 classes [batch, x, y].
    precision: float32, or float16 for all that lies between. Raises WeightsError where weights do not fit the network.
    """
    check_tensors(checkpoint)
    builder = _Builder(checkpoint, precision)
    logits = builder.network(INPUT)
    if head is Head.ARGMAX:
        output = helper.make_tensor_value_info(head.output, TensorProto.UINT8, ["batch", "x", "y"])
        builder.node("Cast", builder.node("ArgMax", logits, axis=1, keepdims=0), output=head.output, to=TensorProto.UINT8)
    else:
        output = helper.make_tensor_value_info(head.output, TensorProto.FLOAT, ["batch", N_CLASSES, "x", "y"])
        if head is Head.SOFTMAX:
            builder.node("Softmax", logits, output=head.output, axis=1)
        else:
            builder.node("Identity", logits, output=head.output)
    images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", N_CHANNELS, "x", "y"])
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


def embedded(graph: Graph) -> onnx.ModelProto:
    """The model as one file holds it, weights inside. At most 2 GB, which protobuf allows: base width 41."""
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
    """What a user of the file must know, as text."""
    facts: dict[str, Any] = {
        **asdict(checkpoint.metadata),
        "sha256": checkpoint.sha256,
        "network": "DR-Unet104, Colman et al. 2020, arXiv:2011.02840",
        "channels": json.dumps(list(CHANNELS)),
        "classes": json.dumps([of.name for of in TumourClass]),
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


class _Builder:
    """Nodes in the order of computation, and the weights they name. Methods take and return names of maps."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self._state = checkpoint.state
        self._epsilon = checkpoint.metadata.bn_epsilon
        self._type, self._number = _NUMBERS[precision]
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.weights: dict[str, Weight] = {}

    def network(self, slices: str) -> str:
        """Images to logits: DRUNet104.forward."""
        x = slices if self._type == TensorProto.FLOAT else self.node("Cast", slices, to=self._type)
        skips = []
        for stage in range(len(STAGE_BLOCKS)):
            for kind, path in stage_blocks(stage):
                x = self._input_block(x, path) if kind is Block.INPUT else self._bottleneck(x, path, kind)
            skips.append(x)  # of the padded stage before its padding, which the decoder would only crop
            if stage == PADDED_STAGE:
                x = self.node("Pad", x, self._constant("padding", np.array([0, 0, 1, 1, 0, 0, 1, 1])))
        for level in range(BRIDGE):
            x = self._decoder_block(x, skips[BRIDGE - 1 - level], f"decoder.{level}", crop=BRIDGE - 1 - level == PADDED_STAGE)
        x = self._convolution(self._norm_relu(x, "head_norm"), "head")
        return x if self._type == TensorProto.FLOAT else self.node("Cast", x, to=TensorProto.FLOAT)

    def _input_block(self, x: str, path: str) -> str:
        y = self.node("Relu", self._convolution(x, f"{path}.conv1", norm=f"{path}.norm1"))
        y = self.node("Relu", self._convolution(y, f"{path}.conv2", norm=f"{path}.norm2"))
        return self.node("Add", self._convolution(x, f"{path}.shortcut"), self._convolution(y, f"{path}.conv3"))

    def _bottleneck(self, x: str, path: str, kind: Block) -> str:
        stride = 2 if kind is Block.DOWN else 1
        y = self._norm_relu(x, f"{path}.norm1")
        y = self.node("Relu", self._convolution(y, f"{path}.conv1", norm=f"{path}.norm2", stride=stride))
        y = self.node("Relu", self._convolution(y, f"{path}.conv2", norm=f"{path}.norm3"))
        shortcut = self._convolution(x, f"{path}.shortcut", stride=stride) if stride > 1 else x
        return self.node("Add", shortcut, self._convolution(y, f"{path}.conv3"))

    def _decoder_block(self, x: str, skip: str, path: str, *, crop: bool) -> str:
        up = self._transposed_convolution(x, f"{path}.upsample", crop=crop)
        channels = len(self._state[f"{path}.upsample.bias"])
        parts = {"upsampled": (up, slice(channels)), "skip": (skip, slice(channels, None))}
        conv1, shortcut = [], []
        for name, (part, of) in parts.items():
            normed = self._norm_relu(part, f"{path}.norm1", name, of)
            conv1.append(self._convolution(normed, f"{path}.conv1", norm=f"{path}.norm2", part=name, of=of))
            shortcut.append(self._convolution(part, f"{path}.shortcut", part=name, of=of))
        y = self._convolution(self.node("Relu", self.node("Add", *conv1)), f"{path}.conv2")
        return self.node("Add", self.node("Add", *shortcut), y)

    def _convolution(
        self, x: str, path: str, *, norm: str = "", stride: int = 1, part: str = "", of: slice = slice(None)
    ) -> str:
        """part, of: only these input channels of the kernel; the bias goes with the first."""
        kernel: npt.NDArray[np.floating[Any]] = self._state[f"{path}.weight"][:, of]
        bias: npt.NDArray[np.floating[Any]] = self._state[f"{path}.bias"]
        if norm:
            scale, shift = self._scale_and_shift(norm)
            kernel, bias = kernel * scale[:, None, None, None].astype(np.float32), bias * scale + shift
        suffix = f".{part}" if part else ""
        inputs = [self._weight(f"{path}.weight{suffix}", kernel)]
        if not of.start:
            inputs.append(self._weight(f"{path}.bias", bias))
        size = kernel.shape[2]
        return self.node("Conv", x, *inputs, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4)

    def _transposed_convolution(self, x: str, path: str, *, crop: bool) -> str:
        # pads name what is left out of the result: the last row and column, and the border that padding had added.
        pads = [1, 1, 2, 2] if crop else [0, 0, 1, 1]
        weights = (self._weight(f"{path}.{name}", self._state[f"{path}.{name}"]) for name in ("weight", "bias"))
        return self.node("ConvTranspose", x, *weights, kernel_shape=[3, 3], strides=[2, 2], pads=pads)

    def _norm_relu(self, x: str, path: str, part: str = "", of: slice = slice(None)) -> str:
        scale, shift = (array[of] for array in self._scale_and_shift(path))
        suffix = f".{part}" if part else ""
        # Mean 0 and variance 1: as float16 the true ones might overflow.
        weights = {"scale": scale, "shift": shift, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
        names = (self._weight(f"{path}.{name}{suffix}", array) for name, array in weights.items())
        return self.node("Relu", self.node("BatchNormalization", x, *names, epsilon=0.0))

    def _scale_and_shift(self, norm: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What a batch norm multiplies by, and then adds."""
        names = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self._state[f"{norm}.{name}"].astype(np.float64) for name in names)
        scale = gamma / np.sqrt(variance + self._epsilon)
        return scale, beta - mean * scale

    def _weight(self, name: str, array: npt.NDArray[np.floating[Any]]) -> str:
        """A weight, which lies outside the model."""
        self.weights[name] = np.ascontiguousarray(array, dtype=self._number)
        tensor = TensorProto(name=name, data_type=self._type, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="memory")
        self.initialisers.append(tensor)
        return name

    def _constant(self, name: str, array: npt.NDArray[np.int64]) -> str:
        """Whole numbers that shapes depend on, which therefore lie within the model."""
        self.initialisers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name


_HeadFunction: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]

# A slice for each thread saves them waiting for one another (tests/benchmarks/cpu.py), but takes memory for each.
_MOST_AT_ONCE: Final = 4
_RUNTIME_ERRORS: Final = (MemoryError, ort_errors.Fail, ort_errors.RuntimeException)
_OUT_OF_MEMORY_WORDS: Final = ("Failed to allocate memory", "bad allocation", "bad_alloc")


class OnnxEngine:
    """An Engine that computes slices side by side: `batch_size` of them, but no more than there are threads.

    Each has a thread of its own; those that are left over help all of them.

    on_halved: called with the new batch size whenever memory did not suffice for the old one.
    """

    name: Final = EngineName.ONNXRUNTIME
    device: Final = "cpu"
    precision: Final = Precision.FLOAT32

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
        on_halved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.threads = threads or granted_cpus()
        self.batch_size = min(self.threads, batch_size or _MOST_AT_ONCE)
        self._on_halved = on_halved
        with np.errstate(over="ignore"):  # told when the output is not finite
            graph = build_graph(checkpoint)
        options = ort.SessionOptions()
        # ONNX Runtime's pool belongs to the session: its threads but one, and those that call it, compute.
        options.intra_op_num_threads = self.threads - self.batch_size + 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes want the CPUs too
        options.log_severity_level = 4  # what goes wrong is raised too
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        try:
            self._session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(error) from error

    @property
    def device_name(self) -> str:
        """The processor in words."""
        return cpu_name()

    @property
    def versions(self) -> dict[str, str]:
        """Of the software that computes."""
        return {"onnxruntime": ort.__version__}

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(axis=0), result, on_done)
        return result

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        assert dropout_seeds is None, "the graph has no dropout; choose_engine takes PyTorch for samples"
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(slices, _softmax, result, on_done)
        return result

    def _run(
        self, slices: npt.NDArray[np.uint8], head: _HeadFunction, result: npt.NDArray[Any], on_done: Callable[[int], None]
    ) -> None:
        remaining = list(range(len(slices)))
        while True:
            how = ort.RunOptions()
            runs: dict[int, Future[None]] = {}
            with ThreadPoolExecutor(self.batch_size, thread_name_prefix="drunet-engine") as pool:
                try:
                    for index in remaining:
                        runs[index] = pool.submit(self._forward, slices[index], head, result[index], how)
                    failed = _wait(runs, on_done)
                except BaseException:  # an interruption, too, waits for no slice
                    how.terminate = True
                    raise
                finally:
                    _cancel(runs)
            if not failed:
                return
            if self.batch_size == 1:
                error = next(iter(failed.values()))
                raise _out_of_memory(error) from error
            self.batch_size //= 2
            self._on_halved(self.batch_size)
            remaining = [index for index, run in runs.items() if index in failed or run.cancelled()]

    def _forward(
        self, image: npt.NDArray[np.uint8], head: _HeadFunction, result: npt.NDArray[Any], how: "ort.RunOptions"
    ) -> None:
        """One slice [X, Y, 4] through the network; the head takes its logits [4, X, Y]."""
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        pixels /= 255
        (logits,) = self._session.run(None, {INPUT: pixels}, how)
        if not np.isfinite(logits).all():  # else argmax would call it background
            raise WeightsError("the network's output is not finite; these weights are damaged")
        result[...] = head(logits[0])


def _wait(runs: Mapping[int, Future[None]], on_done: Callable[[int], None]) -> dict[int, Exception]:
    """Wait for slices, by index; return those for which memory did not suffice, after which no other begins."""
    failed: dict[int, Exception] = {}
    for index, run in runs.items():
        try:
            run.result()
        except CancelledError:
            continue
        except _RUNTIME_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            failed[index] = error
            _cancel(runs)
        else:
            on_done(1)
    return failed


def _cancel(runs: Mapping[int, Future[None]]) -> None:
    for run in runs.values():
        run.cancel()


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[4, X, Y] to probabilities [X, Y, 4]."""
    exponentials = np.exp(logits - logits.max(axis=0))
    return np.moveaxis(exponentials / exponentials.sum(axis=0), 0, 2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether this, of ONNX Runtime or numpy, says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def _out_of_memory(error: Exception) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device cpu: memory does not suffice for the network and one slice ({first_line})")
