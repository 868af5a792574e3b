"""Weights in other formats. Each file is run or read again and compared with the weights before it gets its name.

An ONNX file is asked the same slices as PyTorch. The others are read back.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS
from drunet_cli.errors import DeviceError, OutputError, WeightsError
from drunet_cli.host import check_installed, disable_onnxruntime_telemetry, granted_cpus, is_out_of_memory
from drunet_cli.io.atomic import write_atomically
from drunet_cli.io.inputs import file_sha256
from drunet_cli.io.intensities import normalise
from drunet_cli.network.engine import SAME_NETWORK, Format, Head, Images, Precision
from drunet_cli.phantom.scanner import make_phantom
from drunet_cli.weights.checkpoint import Checkpoint, State, encode_checkpoint, read_checkpoint
from drunet_cli.weights.structure import IMAGES

if TYPE_CHECKING:
    from torch import Tensor, nn

# Largest difference of a logit, as a share of the largest; for classes, how far apart the two best logits may lie where the
# class differs. In float16, which keeps 11 bits, it was 8e-5 to 5.2e-3 on comparison_images with the weights that SAME_NETWORK
# was measured with.
TOLERANCES: Final[Mapping[Precision, float]] = {Precision.FLOAT32: SAME_NETWORK, Precision.FLOAT16: 1e-2}
_ONNX_LIMIT: Final = 2**31 - 2**20  # bytes of weights: protobuf ends at 2 GiB, and nodes and names need some
_LOGIT_DIFFERENCE: Final = "largest difference of a logit from PyTorch's, as a share of the largest"
_LARGEST_FLOAT16: Final = 65504.0
_OVERFLOW: Final = {
    Precision.FLOAT32: "its numbers are not finite",
    Precision.FLOAT16: "float16 overflows in this network; use --precision float32",
}
_NO_MEMORY: Final = "device cpu: memory does not suffice to compare the file with the weights"
_FRAME: Final = 240
_WINDOW: Final = (144, 176)  # another legal size; the phantom's brain is made smaller until it fits
_DEPTH: Final = 93

Outputs: TypeAlias = Sequence[npt.NDArray[Any]]  # one array for each batch of images


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kind of file to make of weights. head: the output of an ONNX file, by default the logits; others hold weights alone."""

    format: Format
    precision: Precision = Precision.FLOAT32
    head: Head | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a file is from the weights that it was made from, and how far it may be. measured: the figure in words."""

    difference: float
    tolerance: float
    measured: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written and found good."""

    sha256: str
    n_bytes: int
    check: Check


def export(checkpoint: Checkpoint, target: Path, variant: Variant, *, overwrite: bool) -> Exported:
    """Write weights in another format, complete and checked or not at all.

    Raises OutputError when the file cannot be written or does not hold what it should, WeightsError for weights that do not fit
    the network or whose output is not finite, DeviceError when memory does not suffice.
    """
    encode, check = _ENCODE_AND_CHECK[variant.format]
    with write_atomically(target, overwrite=overwrite) as stream:
        try:
            stream.write(encode(checkpoint, variant))
            stream.flush()
            temporary = Path(stream.name)
            found = check(checkpoint, variant, temporary)
            if not found.difference <= found.tolerance:
                figures = f"{found.measured} {found.difference:.2g}, allowed {found.tolerance:.2g}"
                raise OutputError(f"it failed its check: {figures}")
        except OutputError as error:
            raise OutputError(f"{target}: not written: {error}") from error
        return Exported(sha256=file_sha256(temporary), n_bytes=temporary.stat().st_size, check=found)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """PyTorch's logits in float32, and the largest magnitudes of a logit and of any map on the way to the logits."""

    logits: list[npt.NDArray[np.float32]]  # each [N, 4, X, Y]
    largest_logit: float
    largest_activation: float

    def logit_difference(self, logits: Outputs) -> float:
        """The largest difference of a logit, as a share of the largest logit."""
        return _largest_difference(logits, self.logits) / self.largest_logit

    def probability_difference(self, probabilities: Outputs) -> float:
        """The largest difference of a probability."""
        exponentials = [np.exp(logits - logits.max(axis=1, keepdims=True)) for logits in self.logits]
        return _largest_difference(probabilities, [array / array.sum(axis=1, keepdims=True) for array in exponentials])

    def class_difference(self, classes: Outputs) -> float:
        """The largest distance of the two best logits where the class differs, as a share of the largest logit."""
        gap = 0.0
        for found, logits in zip(classes, self.logits, strict=True):
            second, best = np.moveaxis(np.partition(logits, -2, axis=1)[:, -2:], 1, 0)
            gap = max(gap, float((best - second).max(where=found != logits.argmax(axis=1), initial=0)))
        return gap / self.largest_logit


@functools.cache
def comparison_images() -> list[Images]:
    """Slices of a synthetic case with tumour, and a blank one: two of 240 x 240 in one batch, one of 144 x 176 alone."""
    phantom = make_phantom(0, shape=(*_WINDOW, _DEPTH))
    volume = np.stack([normalise(phantom.images[modality]) for modality in CHANNELS])
    most_tumour = int((phantom.class_map > 0).sum(axis=(0, 1)).argmax())
    margins = [((_FRAME - size) // 2,) * 2 for size in _WINDOW]
    frame = np.pad(volume[..., _DEPTH // 2], [(0, 0), *margins])
    batches = (np.stack([frame, np.zeros_like(frame)]), volume[None, ..., most_tumour])
    return [np.ascontiguousarray(batch, dtype=np.float32) / np.float32(255) for batch in batches]


def compute_reference(checkpoint: Checkpoint, batches: Sequence[Images]) -> Reference:
    """Run the network in PyTorch. Raises WeightsError when a logit is not finite, DeviceError when memory does not suffice."""
    import torch

    from drunet_cli.network.torch_engine import build_model

    torch.set_num_threads(granted_cpus())
    model = build_model(checkpoint)
    largest = 0.0

    def watch(_module: "nn.Module", _inputs: "tuple[Tensor, ...]", output: "Tensor") -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    for module in model.modules():
        module.register_forward_hook(watch)
    try:
        with torch.inference_mode():
            logits = [np.asarray(model(torch.from_numpy(batch)).numpy()) for batch in batches]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(_NO_MEMORY) from error
    if not all(np.isfinite(array).all() for array in logits):
        raise WeightsError(f"weights {checkpoint.metadata.name}: the network's output is not finite; they are damaged")
    largest_logit = max(float(np.abs(array).max()) for array in logits)
    # 1 where all logits are 0, of which there is no share.
    return Reference(logits=logits, largest_logit=largest_logit or 1.0, largest_activation=largest)


def _largest_difference(outputs: Outputs, references: Outputs) -> float:
    return max(float(np.abs(output - reference).max()) for output, reference in zip(outputs, references, strict=True))


def check_onnx() -> None:
    """Raise MisuseError unless the packages are installed that make an ONNX file and check it."""
    check_installed(["onnx", "onnxruntime"])


def _encode_onnx(checkpoint: Checkpoint, variant: Variant) -> bytes:
    from google.protobuf.message import EncodeError

    from drunet_cli.network.onnx_graph import build_graph, embed_weights

    with np.errstate(over="ignore"):  # what overflows is refused below
        graph = build_graph(checkpoint, head=variant.head or Head.LOGITS, precision=variant.precision)
    n_bytes = sum(array.nbytes for array in graph.weights.values())
    if n_bytes > _ONNX_LIMIT:
        raise OutputError(f"an ONNX file holds 2 GB, these weights are {n_bytes / 1e9:.1f} GB; export safetensors")
    if not all(np.isfinite(array).all() for array in graph.weights.values()):
        raise OutputError(_OVERFLOW[variant.precision])
    model = embed_weights(graph)
    del graph  # 306 MB for the published network, as much as the weights, the model and its bytes take each
    try:
        content: bytes = model.SerializeToString()
    except EncodeError as error:  # below its limit, protobuf fails for lack of memory alone
        raise DeviceError("device cpu: memory does not suffice for the file") from error
    return content


def _check_onnx(checkpoint: Checkpoint, variant: Variant, path: Path) -> Check:
    batches = comparison_images()
    outputs = _run_onnx(path, batches)
    reference = compute_reference(checkpoint, batches)
    # ONNX Runtime computes float16 in float32 on most CPUs, and would not see what overflows on a GPU.
    unseen = variant.precision is Precision.FLOAT16 and reference.largest_activation > _LARGEST_FLOAT16
    if unseen or not all(np.isfinite(output).all() for output in outputs):
        raise OutputError(_OVERFLOW[variant.precision])
    tolerance = TOLERANCES[variant.precision]
    match variant.head:
        case Head.SOFTMAX:
            # A probability changes by no more than half of what the logits change by.
            tolerance *= reference.largest_logit / 2
            difference = reference.probability_difference(outputs)
            measured = "largest difference of a probability from PyTorch's"
        case Head.ARGMAX:
            difference = reference.class_difference(outputs)
            measured = "largest gap of the two best logits where the class differs from PyTorch's, as a share of the largest"
        case _:
            difference, measured = reference.logit_difference(outputs), _LOGIT_DIFFERENCE
    return Check(difference=difference, tolerance=tolerance, measured=measured)


def _run_onnx(path: Path, batches: list[Images]) -> list[npt.NDArray[Any]]:
    disable_onnxruntime_telemetry()
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = granted_cpus()
    options.log_severity_level = 4  # what goes wrong is raised too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [session.run(None, {IMAGES: batch})[0] for batch in batches]
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.RuntimeException) as error:
        if is_out_of_memory(error):
            raise DeviceError(_NO_MEMORY) from error
        raise OutputError(f"ONNX Runtime does not run it: {error}") from error


def _encode_keras(checkpoint: Checkpoint, _variant: Variant) -> memoryview:
    from drunet_cli.weights.keras import write_keras_h5  # h5py: not before an output that is refused

    content = io.BytesIO()
    write_keras_h5(content, checkpoint)
    return content.getbuffer()


def _check_keras(checkpoint: Checkpoint, _variant: Variant, path: Path) -> Check:
    from drunet_cli.weights.keras import read_keras_h5

    try:
        _, state = read_keras_h5(path)
    except WeightsError as error:
        raise OutputError(f"it cannot be read back: {error}") from error
    return _check_state(state, checkpoint.state)


def _encode_safetensors(checkpoint: Checkpoint, variant: Variant) -> bytes:
    return encode_checkpoint(_rounded(checkpoint.state, variant.precision), checkpoint.metadata)


def _check_safetensors(checkpoint: Checkpoint, variant: Variant, path: Path) -> Check:
    try:
        again = read_checkpoint(path)
    except WeightsError as error:
        raise OutputError(f"it cannot be read back: {error}") from error
    if again.metadata != checkpoint.metadata:
        raise OutputError("read back, its metadata differ")
    exact = _check_state(again.state, _rounded(checkpoint.state, variant.precision))
    if variant.precision is Precision.FLOAT32 or exact.difference > 0:
        return exact
    batches = comparison_images()
    difference = compute_reference(checkpoint, batches).logit_difference(compute_reference(again, batches).logits)
    return Check(difference=difference, tolerance=TOLERANCES[variant.precision], measured=_LOGIT_DIFFERENCE)


def _rounded(state: State, precision: Precision) -> Mapping[str, npt.NDArray[Any]]:
    if precision is Precision.FLOAT32:
        return state
    with np.errstate(over="ignore"):
        rounded = {name: array.astype(np.float16) for name, array in state.items()}
    if not all(np.isfinite(array).all() for array in rounded.values()):
        raise OutputError(_OVERFLOW[precision])
    return rounded


def _check_state(state: State, expected: Mapping[str, npt.NDArray[Any]]) -> Check:
    shapes = [{name: array.shape for name, array in tensors.items()} for tensors in (state, expected)]
    if shapes[0] != shapes[1]:
        raise OutputError("read back, it does not hold the tensors it should")
    difference = max(float(np.abs(array - expected[name]).max()) for name, array in state.items())
    return Check(difference=difference, tolerance=0, measured="largest difference of a weight")


_Encode: TypeAlias = Callable[[Checkpoint, Variant], bytes | memoryview]
_Compare: TypeAlias = Callable[[Checkpoint, Variant, Path], Check]
_ENCODE_AND_CHECK: Final[Mapping[Format, tuple[_Encode, _Compare]]] = {
    Format.ONNX: (_encode_onnx, _check_onnx),
    Format.KERAS: (_encode_keras, _check_keras),
    Format.SAFETENSORS: (_encode_safetensors, _check_safetensors),
}
