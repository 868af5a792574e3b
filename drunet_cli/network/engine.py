"""What an engine is, and which one computes."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from importlib import metadata, util
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap
from drunet_cli.errors import MisuseError
from drunet_cli.host import disable_onnxruntime_telemetry, may_have_gpu
from drunet_cli.weights.checkpoint import Checkpoint


class EngineName(StrEnum):
    """The software that computes. `auto` is ONNX Runtime on a CPU in float32, where it is installed, else PyTorch."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"


class Precision(StrEnum):
    """Number format of the network's arithmetic. `auto` is float32, in which the labels equal the published code's."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class WindowMode(StrEnum):
    """What the network sees of a slice: whole frames, or the smallest window that holds the brain.

    The metadata of weights say for which they were trained.
    """

    FULL = "full"
    AUTO = "auto"


def ignore_progress(_n_slices: int) -> None:
    """For who does not ask how far an engine has come."""


class Engine(Protocol):
    """Runs the network on any number of slices [N, X, Y, 4] (channels FLAIR, T1ce, T1, T2; 0-255, background 0).

    X and Y are multiples of 32 plus 16. on_done is told of slices as they are done, by their number since it was told last.
    name: torch or onnxruntime. batch_size: the most slices that are computed at once; it shrinks when memory runs out.
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

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y]."""
        ...

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4].

        dropout_seeds: one a slice, of a sample with dropout on, which depends on nothing else; for an engine that was opened
        with a dropout rate.
        """
        ...


_EXTRA: Final = ("onnx", "onnxruntime")


def choose_engine(name: EngineName, *, device: str, precision: Precision, sampling: bool = False) -> EngineName:
    """The engine that a name, a device (auto, cpu, cuda, cuda:N, mps) and a precision amount to. No torch.

    sampling: whether samples with dropout on are to be taken.

    Raises MisuseError where ONNX Runtime is asked for and is not installed, or for what it is not used for here.
    """
    if name is EngineName.TORCH:
        return name
    fits = device in ("auto", "cpu") and precision in (Precision.AUTO, Precision.FLOAT32)
    if name is EngineName.ONNXRUNTIME:
        if sampling:
            raise MisuseError("--mc-samples needs dropout, which --engine onnxruntime has not; use --engine torch")
        if not fits:
            raise MisuseError("--engine onnxruntime computes on the CPU in float32; for others use --engine torch")
        check_onnx()
        return name
    if not fits or sampling or _missing() or (device == "auto" and _torch_may_find_gpu()):
        return EngineName.TORCH
    return EngineName.ONNXRUNTIME


def check_onnx() -> None:
    """Raise MisuseError unless the packages of the extra `onnx` are installed."""
    if missing := _missing():
        raise MisuseError(f"{' and '.join(missing)} not installed; run: pip install 'drunet-cli[onnx]'")


def settle_device(engine: EngineName, device: str, *, on_warning: Callable[[str], None]) -> str:
    """The device that an engine of choose_engine computes on; for PyTorch, which is asked, this takes seconds.

    Raises DeviceError when a device that was named is absent.
    """
    if engine is EngineName.ONNXRUNTIME:
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
    on_warning: Callable[[str], None],
) -> Engine:
    """The engine on a settled device, with the weights loaded.

    dropout: rate of the samples that are taken. deterministic: equal bytes from run to run on a GPU too.
    on_warning: told when memory does not suffice for a batch.
    """

    def on_halved(batch_size: int) -> None:
        on_warning(f"memory on {device} did not suffice: now {batch_size} slices at once")

    if name is EngineName.ONNXRUNTIME:
        disable_onnxruntime_telemetry()
        try:
            from drunet_cli.network.onnx_engine import OnnxEngine
        except (ImportError, TypeError) as error:  # as of a protobuf or a C++ library that is too old
            reason = str(error).split("\n")[0]
            raise MisuseError(f"ONNX Runtime is installed but cannot be imported ({reason}); use --engine torch") from error

        return OnnxEngine(checkpoint, batch_size=batch_size, threads=threads, on_halved=on_halved)
    import torch

    from drunet_cli.network.torch_engine import TorchEngine

    return TorchEngine(
        checkpoint,
        device=torch.device(device),
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        dropout=dropout,
        deterministic=deterministic,
        on_halved=on_halved,
    )


def _missing() -> list[str]:
    specs = {package: util.find_spec(package) for package in _EXTRA}
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]  # a mere folder has no origin


def _torch_may_find_gpu() -> bool:
    """Whether `auto` may be a GPU, by the build of PyTorch that is installed and by the driver, without importing it."""
    return metadata.version("torch").partition("+")[2] != "cpu" and may_have_gpu()
