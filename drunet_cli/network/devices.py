"""Devices that PyTorch computes on, and what they report when they cannot."""

import warnings
from collections.abc import Callable
from typing import Final

import torch

from drunet_cli.errors import DeviceError, LostDeviceError
from drunet_cli.host import cpu_name

# What allocators raise as a plain RuntimeError: the CPU's, MPS, cuBLAS, and cuDNN, which finds no engine that fits.
_OUT_OF_MEMORY_WORDS: Final = (
    *("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED", "could not create a primitive"),
    *("unable to find an engine", "Unable to find a valid cuDNN algorithm"),
)
_DEVICE_FAULT_WORDS: Final = ("CUDA error", "cuDNN error", "CUDA driver", "does not support bfloat16")


def resolve_device(name: str, *, on_warning: Callable[[str], None] = lambda _: None) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names; `auto` is the first CUDA device, else the CPU.

    on_warning: told why `auto` passes over a GPU that the driver reports as unusable.
    Raises DeviceError when a device that was named is absent.
    """
    with warnings.catch_warnings(record=True) as caught:  # torch warns, for example, of a driver that is too old
        warnings.simplefilter("always")
        cuda = torch.cuda.is_available()
    reports = [str(report.message).split("\n")[0] for report in caught]
    if name == "auto":
        for report in reports:
            on_warning(f"computing on the CPU: {report}")
        return torch.device("cuda:0" if cuda else "cpu")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps: this machine, or its PyTorch, has none; use --device cpu")
    if device.type == "cuda" and not cuda:
        reason = reports[0] if reports else _why_no_cuda()
        raise DeviceError(f"device {name}: no usable CUDA GPU: {reason}; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: absent; this machine shows {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    return torch.device("cuda:0") if name == "cuda" else device


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"the installed PyTorch {torch.__version__} is built without CUDA"
    return "PyTorch finds no NVIDIA GPU or driver"


def device_name(device: torch.device) -> str:
    """The hardware in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA device computes in bfloat16 by itself: from compute capability 8.0, Ampere, on."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this says that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def check_device_fault(device: torch.device, error: RuntimeError) -> None:
    """Raise LostDeviceError for what the driver reports, such as a GPU without code in this PyTorch; the rest is our bug."""
    first_line = str(error).split("\n")[0]
    if device.type == "cuda" and any(words in first_line for words in _DEVICE_FAULT_WORDS):
        raise LostDeviceError(f"device {device}: {first_line}; use --device cpu, or --precision float32") from error
