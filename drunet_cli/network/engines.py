"""Which engine computes, settled before anything that takes time is imported."""

from collections.abc import Callable
from importlib import metadata, util
from typing import Final

from drunet_cli.errors import MisuseError
from drunet_cli.host import keep_to_itself, may_have_gpu
from drunet_cli.network.engine import Engine, EngineName, Precision
from drunet_cli.weights.checkpoint import Checkpoint

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
    from drunet_cli.network.devices import resolve_device

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
        keep_to_itself()
        try:
            from drunet_cli.network.engine_onnx import OnnxEngine
        except (ImportError, TypeError) as error:  # as of a protobuf or a C++ library that is too old
            reason = str(error).split("\n")[0]
            raise MisuseError(f"ONNX Runtime is installed but cannot be imported ({reason}); use --engine torch") from error

        return OnnxEngine(checkpoint, batch_size=batch_size, threads=threads, on_halved=on_halved)
    import torch

    from drunet_cli.network.engine_torch import TorchEngine

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
