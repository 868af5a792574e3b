"""Weights in other formats. Each file is read or run again, and compared with what it was made from, before it is published."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from drunet_cli.errors import DeviceError, OutputError, WeightsError
from drunet_cli.network.engine import Precision

if TYPE_CHECKING:
    from drunet_cli.network.comparison import Images
    from drunet_cli.weights.checkpoint import Checkpoint, State

# Of a logit, as a share of the largest; of classes, how far apart the two best logits may lie where the class differs. On
# comparison_images, with the golden weights, a trained network of base width 4 and random ones of widths 1, 2 and 16, it was
# 1.4e-7 to 3.8e-6 in float32 and 8e-5 to 5.2e-3 in float16, which keeps 11 bits. A wrong layer is off by tenths.
TOLERANCES: Final[Mapping[Precision, float]] = {Precision.FLOAT32: 1e-4, Precision.FLOAT16: 1e-2}
_ONNX_LIMIT: Final = 2**31 - 2**20  # bytes of weights: protobuf ends at 2 GiB, and nodes and names need some
_OF_LOGITS: Final = "largest difference of a logit from PyTorch's, as a share of the largest"
_LARGEST_FLOAT16: Final = 65504.0
_OVERFLOW: Final = {
    Precision.FLOAT32: "its numbers are not finite",
    Precision.FLOAT16: "float16 overflows in this network; use --precision float32",
}


class Format(StrEnum):
    """Of an exported file."""

    ONNX = "onnx"
    KERAS = "keras"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What to make of weights. head: what an ONNX file answers, a member of graph.Head; other files hold weights alone."""

    format: Format
    precision: Precision = Precision.FLOAT32
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a file is from what it was made from, and may be. measured: what that figure is, in words."""

    difference: float
    tolerance: float
    measured: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written and found good."""

    sha256: str
    n_bytes: int
    check: Check


def export(checkpoint: "Checkpoint", target: Path, variant: Variant, *, overwrite: bool) -> Exported:
    """Write weights in another format, complete and checked or not at all.

    Raises OutputError when the file cannot be written or does not hold what it should, WeightsError for weights that do not fit
    the network or whose output is not finite, DeviceError when memory does not suffice.
    """
    from drunet_cli.io.atomic import write_atomically
    from drunet_cli.io.volumes import file_sha256

    encode, check = _KINDS[variant.format]
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


def _onnx(checkpoint: "Checkpoint", variant: Variant) -> bytes:
    from google.protobuf.message import EncodeError

    from drunet_cli.network.onnx_engine import Head, build_graph, embedded

    with np.errstate(over="ignore"):  # told below
        graph = build_graph(checkpoint, head=Head(variant.head or Head.LOGITS), precision=variant.precision)
    n_bytes = sum(array.nbytes for array in graph.weights.values())
    if n_bytes > _ONNX_LIMIT:
        raise OutputError(f"an ONNX file holds 2 GB, these weights are {n_bytes / 1e9:.1f} GB; export safetensors")
    if not all(np.isfinite(array).all() for array in graph.weights.values()):
        raise OutputError(_OVERFLOW[variant.precision])
    model = embedded(graph)
    del graph  # up to 306 MB of the published network, as are the weights, the model and its bytes
    try:
        content: bytes = model.SerializeToString()
    except EncodeError as error:  # below its limit, protobuf fails for one reason alone
        raise DeviceError("device cpu: memory does not suffice for the file") from error
    return content


def _check_onnx(checkpoint: "Checkpoint", variant: Variant, path: Path) -> Check:
    from drunet_cli.network.comparison import comparison_images, reference_of
    from drunet_cli.network.onnx_engine import Head

    batches = comparison_images()
    answers = _onnx_answers(path, batches)
    reference = reference_of(checkpoint, batches)
    # onnxruntime computes float16 in float32 on most CPUs, and would not see what overflows on a GPU.
    unseen = variant.precision is Precision.FLOAT16 and reference.largest_activation > _LARGEST_FLOAT16
    if unseen or not all(np.isfinite(answer).all() for answer in answers):
        raise OutputError(_OVERFLOW[variant.precision])
    tolerance = TOLERANCES[variant.precision]
    match variant.head:
        case Head.SOFTMAX:
            # A probability changes by no more than half of what the logits change by.
            tolerance *= reference.largest_logit / 2
            difference = reference.probability_difference(answers)
            measured = "largest difference of a probability from PyTorch's"
        case Head.ARGMAX:
            difference = reference.class_difference(answers)
            measured = "largest gap of the two best logits where the class differs from PyTorch's, as a share of the largest"
        case _:
            difference, measured = reference.logit_difference(answers), _OF_LOGITS
    return Check(difference=difference, tolerance=tolerance, measured=measured)


def _onnx_answers(path: Path, batches: "list[Images]") -> list[npt.NDArray[Any]]:
    from drunet_cli.host import disable_onnxruntime_telemetry, granted_cpus

    disable_onnxruntime_telemetry()
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    from drunet_cli.network.comparison import NO_MEMORY
    from drunet_cli.network.onnx_engine import INPUT, is_out_of_memory

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = granted_cpus()
    options.log_severity_level = 4  # what goes wrong is raised too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [session.run(None, {INPUT: batch})[0] for batch in batches]
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.RuntimeException) as error:
        if is_out_of_memory(error):
            raise DeviceError(NO_MEMORY) from error
        raise OutputError(f"ONNX Runtime does not run it: {error}") from error


def _keras(checkpoint: "Checkpoint", _variant: Variant) -> memoryview:
    from drunet_cli.weights.keras import write_keras_h5

    content = io.BytesIO()
    write_keras_h5(content, checkpoint)
    return content.getbuffer()


def _check_keras(checkpoint: "Checkpoint", _variant: Variant, path: Path) -> Check:
    from drunet_cli.weights.keras import read_keras_h5

    try:
        _, state = read_keras_h5(path)
    except WeightsError as error:
        raise OutputError(f"it cannot be read back: {error}") from error
    return _check_state(state, checkpoint.state)


def _safetensors(checkpoint: "Checkpoint", variant: Variant) -> bytes:
    from drunet_cli.weights.checkpoint import encode_checkpoint

    return encode_checkpoint(_rounded(checkpoint.state, variant.precision), checkpoint.metadata)


def _check_safetensors(checkpoint: "Checkpoint", variant: Variant, path: Path) -> Check:
    from drunet_cli.weights.checkpoint import read_checkpoint

    try:
        again = read_checkpoint(path)
    except WeightsError as error:
        raise OutputError(f"it cannot be read back: {error}") from error
    if again.metadata != checkpoint.metadata:
        raise OutputError("read back, its metadata differ")
    exact = _check_state(again.state, _rounded(checkpoint.state, variant.precision))
    if variant.precision is Precision.FLOAT32 or exact.difference > 0:
        return exact
    from drunet_cli.network.comparison import comparison_images, reference_of

    batches = comparison_images()
    difference = reference_of(checkpoint, batches).logit_difference(reference_of(again, batches).logits)
    return Check(difference=difference, tolerance=TOLERANCES[variant.precision], measured=_OF_LOGITS)


def _rounded(state: "State", precision: Precision) -> Mapping[str, npt.NDArray[Any]]:
    if precision is Precision.FLOAT32:
        return state
    with np.errstate(over="ignore"):
        rounded = {name: array.astype(np.float16) for name, array in state.items()}
    if not all(np.isfinite(array).all() for array in rounded.values()):
        raise OutputError(_OVERFLOW[precision])
    return rounded


def _check_state(state: "State", expected: Mapping[str, npt.NDArray[Any]]) -> Check:
    shapes = [{name: array.shape for name, array in tensors.items()} for tensors in (state, expected)]
    if shapes[0] != shapes[1]:
        raise OutputError("read back, it does not hold the tensors it should")
    difference = max(float(np.abs(array - expected[name]).max()) for name, array in state.items())
    return Check(difference=difference, tolerance=0, measured="largest difference of a weight")


_Encode: TypeAlias = Callable[["Checkpoint", Variant], bytes | memoryview]
_Compare: TypeAlias = Callable[["Checkpoint", Variant, Path], Check]
_KINDS: Final[Mapping[Format, tuple[_Encode, _Compare]]] = {
    Format.ONNX: (_onnx, _check_onnx),
    Format.KERAS: (_keras, _check_keras),
    Format.SAFETENSORS: (_safetensors, _check_safetensors),
}
