"""Engines, which compute logits: their interface, and the choice of software, device and precision.

The command line imports this module for its options, so numpy is imported where it is needed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from drunet_cli.errors import MisuseError, one_line
from drunet_cli.host import (
    check_installed,
    cpu_name,
    disable_onnxruntime_telemetry,
    has_bfloat16,
    may_have_gpu,
    missing_packages,
)
from drunet_cli.weights.structure import N_CHANNELS, PROVED_FINGERPRINT, fingerprint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from drunet_cli.brats import ClassMap
    from drunet_cli.weights.checkpoint import Checkpoint

    Images: TypeAlias = npt.NDArray[np.float32]  # [N, 4, X, Y]: slices divided by 255; logits have the same shape
else:
    Images = Any

_LOG: Final = logging.getLogger("drunet_cli")

# Largest difference of a logit between two engines in float32, as a share of the largest logit. With the golden weights, a
# trained network of base width 4 and random ones of widths 1, 2 and 16 it was at most 3.8e-6; a wrong layer is off by tenths.
SAME_NETWORK: Final = 1e-4


# In-plane sizes that the network takes: multiples of the stride plus the rest, since it pads by 1 after four of five halvings.
WINDOW_STRIDE: Final = 32
WINDOW_REST: Final = 16


class EngineName(StrEnum):
    """The software that computes. `auto` is ONNX Runtime on a CPU in float32, OpenVINO there in bfloat16, else PyTorch."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """Number format of the network's arithmetic. `auto` is float32, in which the labels equal the published code's."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class WindowMode(StrEnum):
    """The part of a slice that the network sees: whole frames, or the smallest window that holds the brain.

    The metadata of weights say for which they were trained.
    """

    FULL = "full"
    AUTO = "auto"


class Head(StrEnum):
    """The output of an ONNX file: the four logits of a pixel, their softmax, or the index of the greatest."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    ARGMAX = "argmax"

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return {Head.LOGITS: "logits", Head.SOFTMAX: "probabilities", Head.ARGMAX: "classes"}[self]


class Format(StrEnum):
    """The format of an exported file."""

    ONNX = "onnx"
    KERAS = "keras"
    SAFETENSORS = "safetensors"


def ignore_progress(_n_slices: int) -> None:
    """Stand in for a callback where nobody asks how far an engine has come."""


class Engine(Protocol):
    """Runs the network on any number of slices [N, X, Y, 4] (channels FLAIR, T1ce, T1, T2; 0-255, background 0).

    X and Y are multiples of WINDOW_STRIDE plus WINDOW_REST. on_progress is called with the number of slices done since its
    last call.
    name: of the software. batch_size: the most slices that are computed at once; it shrinks when memory runs out.
    device, device_name: as the engine names it, and the hardware in words. threads: of the CPU.
    versions: of the software that computes.
    """

    @property
    def name(self) -> EngineName: ...  # noqa: D102

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def device_name(self) -> str: ...  # noqa: D102

    @property
    def threads(self) -> int: ...  # noqa: D102

    @property
    def versions(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def precision(self) -> Precision: ...  # noqa: D102

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y]. Raises DeviceError when not even one slice fits into memory."""
        ...

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_progress: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4]. Raises DeviceError when not even one slice fits into memory.

        dropout_seeds: one for each slice, for samples with dropout on; a sample depends on its seed and its slice alone. The
        engine must have been opened with a dropout rate.
        """
        ...


@dataclass(frozen=True)
class _CpuSoftware:
    """Software that computes on the CPU beside PyTorch. title: its name in messages. precisions: the first is named there."""

    title: str
    packages: tuple[str, ...]
    precisions: tuple[Precision, ...]


_ON_CPU: Final = {
    EngineName.ONNXRUNTIME: _CpuSoftware("ONNX Runtime", ("onnx", "onnxruntime"), (Precision.FLOAT32, Precision.AUTO)),
    EngineName.OPENVINO: _CpuSoftware("OpenVINO", ("onnx", "openvino"), (Precision.BFLOAT16,)),
}


def choose_engine(name: EngineName, *, device: str, precision: Precision, sampling: bool = False) -> EngineName:
    """Decide which software computes on a device (auto, cpu, cuda, cuda:N, mps) in a precision. No torch.

    sampling: whether samples with dropout on are to be taken.
    Raises MisuseError where a software is asked for that is not installed or cannot do the work, and for bfloat16 on a CPU that
    would only emulate it, unless PyTorch is asked for.
    """
    if name is EngineName.TORCH:
        _LOG.info("engine: PyTorch, as asked for")
        return name
    may_be_cpu = device in ("auto", "cpu")
    if name in _ON_CPU:
        software = _ON_CPU[name]
        if sampling:
            raise MisuseError(f"mc_samples=N needs dropout, which engine={name} has not; use engine=torch")
        if not may_be_cpu or precision not in software.precisions:
            raise MisuseError(f"engine={name} computes on the CPU in {software.precisions[0]}; for others use engine=torch")
        check_installed(software.packages)
        _check_arithmetic(precision)
        _LOG.info("engine: %s, as asked for", software.title)
        return name
    fitting = [each for each, software in _ON_CPU.items() if may_be_cpu and precision in software.precisions]
    if not fitting:
        reason = "for this device or precision"
    elif device == "auto" and _torch_may_find_gpu():
        reason = "since there may be a GPU"
    else:
        _check_arithmetic(precision)
        software = _ON_CPU[fitting[0]]
        if sampling:
            reason = "for samples with dropout"
        elif missing := missing_packages(software.packages):
            reason = f"since {' and '.join(missing)} not installed, which would be faster"
        else:
            _LOG.info("engine: %s, which is the fastest on a CPU in %s", software.title, software.precisions[0])
            return fitting[0]
    _LOG.info("engine: PyTorch, %s", reason)
    return EngineName.TORCH


def fastest_precision(name: EngineName, *, device: str, sampling: bool = False) -> Precision:
    """The fastest precision for an engine and device as they were asked for: bfloat16 on a CPU that has it, else `auto`."""
    on_cpu = device == "cpu" or (device == "auto" and not _torch_may_find_gpu())
    may_choose = name is EngineName.AUTO and not sampling and not missing_packages(_ON_CPU[EngineName.OPENVINO].packages)
    return Precision.BFLOAT16 if may_choose and on_cpu and has_bfloat16() else Precision.AUTO


def _check_arithmetic(precision: Precision) -> None:
    if precision is Precision.BFLOAT16 and not has_bfloat16():
        raise MisuseError(
            f"precision=bfloat16: this processor ({cpu_name()}) has no arithmetic for it, so that it would be slower than "
            "float32; leave it out, or emulate it with engine=torch"
        )


def settle_device(engine: EngineName, device: str, *, on_warning: Callable[[str], None]) -> str:
    """Name the device that a chosen engine computes on. For PyTorch, which is asked, this takes seconds.

    Raises DeviceError when a device that was named is absent.
    """
    if engine in _ON_CPU:
        return "cpu"
    from drunet_cli.network.torch_engine import resolve_device

    return str(resolve_device(device, on_warning=on_warning))


def open_engine(
    name: EngineName,
    checkpoint: Checkpoint,
    *,
    device: str,
    precision: Precision,
    batch_size: int | None,
    threads: int,
    dropout: float = 0.0,
    deterministic: bool = False,
    named: bool = True,
    on_warning: Callable[[str], None],
) -> Engine:
    """Load the weights into a chosen engine on a settled device.

    dropout: rate of the samples that are taken. deterministic: equal bytes from run to run on a GPU too. named: the user asked
    for this engine; without that, PyTorch stands in for an ONNX Runtime that cannot be imported.
    on_warning: called with a sentence when memory does not suffice for a batch, or PyTorch stands in.
    Raises WeightsError for weights of another network, DeviceError where memory does not suffice, MisuseError where ONNX
    Runtime cannot be imported, or computes another network than model.py holds.
    """

    if checkpoint.metadata.network not in ("", changed_network()):
        on_warning(
            f"weights {checkpoint.metadata.name}: were trained with a network/model.py that somebody had changed, and not with "
            "the one that computes now; unless both compute the same, the labels mean nothing"
        )

    def on_halved(batch_size: int) -> None:
        on_warning(f"memory on {device} did not suffice: now {batch_size} slices at once")

    if name in _ON_CPU:
        disable_onnxruntime_telemetry()
        try:
            from drunet_cli.network.cpu_engine import OnnxEngine, OpenvinoEngine, import_openvino

            if name is EngineName.OPENVINO:
                import_openvino()
        except (ImportError, TypeError) as error:  # TypeError: a protobuf or a C++ library that is too old
            failure = f"{_ON_CPU[name].title} is installed but cannot be imported ({one_line(str(error))})"
            if named:
                raise MisuseError(f"{failure}; use engine=torch") from error
            on_warning(f"{failure}; PyTorch computes, which is slower")
        else:
            if not is_proved():  # in float32, which shows more; all engines of the CPU compute one graph
                _check_same_network(OnnxEngine(checkpoint, threads=threads).logits, checkpoint)
            kind = OnnxEngine if name is EngineName.ONNXRUNTIME else OpenvinoEngine
            cpu_engine = kind(checkpoint, batch_size=batch_size, threads=threads, on_halved=on_halved)
            _log_opened(cpu_engine, checkpoint)
            return cpu_engine
    import torch

    from drunet_cli.network.torch_engine import TorchEngine

    torch_engine = TorchEngine(
        checkpoint,
        device=torch.device(device),
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        dropout=dropout,
        deterministic=deterministic,
        on_halved=on_halved,
    )
    _log_opened(torch_engine, checkpoint)
    return torch_engine


def _log_opened(engine: Engine, checkpoint: Checkpoint) -> None:
    metadata = checkpoint.metadata
    _LOG.info(
        "weights %s (base width %d, epsilon %g, SHA-256 %s...): %s on %s (%s) in %s, %d threads, %d slices at once",
        *(metadata.name, metadata.base_width, metadata.bn_epsilon, checkpoint.sha256[:12]),
        ", ".join(f"{software} {version}" for software, version in engine.versions.items()),
        *(engine.device, engine.device_name, engine.precision, engine.threads, engine.batch_size),
    )


@functools.cache
def changed_network() -> str:
    """The fingerprint of model.py and the table of its layers; empty where the tests have proved that they compute the same."""
    try:
        found = fingerprint(Path(__file__).with_name("model.py").read_bytes())
    except OSError:  # an installation without sources, which nobody changes
        return ""
    return "" if found == PROVED_FINGERPRINT else found


def is_proved() -> bool:
    """Whether model.py and the table of its layers are those that the tests have proved to compute the same."""
    return not changed_network()


def _check_same_network(logits: Callable[[Images], Images], checkpoint: Checkpoint) -> None:
    """Compare the logits of one small slice with those of model.py. Takes the seconds that importing PyTorch takes."""
    import numpy as np

    from drunet_cli.network.torch_engine import logits_of

    images = np.random.default_rng(0).random((1, N_CHANNELS, 48, 80), dtype=np.float32)
    expected = logits_of(checkpoint, images)
    difference = float(np.abs(logits(images) - expected).max() / (np.abs(expected).max() or 1))
    if not difference <= SAME_NETWORK:
        raise MisuseError(
            f"network/model.py was changed and computes another network than ONNX Runtime does (logits differ by "
            f"{difference:.0%}); use engine=torch, or change the table in weights/structure.py likewise"
        )


def _torch_may_find_gpu() -> bool:
    """Whether `auto` may be a GPU, by the build of PyTorch that is installed and by the driver, without importing PyTorch."""
    from importlib import metadata  # brings the parser of e-mail

    return metadata.version("torch").partition("+")[2] != "cpu" and may_have_gpu()
