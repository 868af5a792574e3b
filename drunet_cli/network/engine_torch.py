"""The network in PyTorch, on CPU, CUDA or MPS."""

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drunet_cli.brats import ClassMap
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import cpu_name
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import Precision
from drunet_cli.network.model import DRUNet104

# Measured on 2 cores at base width 16: 0.35 s a slice one by one, 0.36 in twos, 0.47 in fours, 0.55 in eights
# (tests/benchmarks/cpu.py).
_BATCH_SIZE: Final = {"cpu": 2, "cuda": 16, "mps": 8}
# What allocators raise as a plain RuntimeError: the CPU's, MPS, cuBLAS, and cuDNN, which finds no engine that fits.
_OUT_OF_MEMORY_WORDS: Final = (
    *("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED"),
    *("unable to find an engine", "Unable to find a valid cuDNN algorithm"),
)
_DEVICE_FAULT_WORDS: Final = ("CUDA error", "cuDNN error", "CUDA driver", "does not support bfloat16")
_DTYPES: Final = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}


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


def build_model(checkpoint: Checkpoint) -> DRUNet104:
    """The network with these weights, in evaluation mode, sharing the checkpoint's memory.

    Raises WeightsError naming the first tensor that is missing, left over, or of another shape.
    """
    metadata = checkpoint.metadata
    with torch.device("meta"):
        model = DRUNet104(metadata.base_width, bn_epsilon=metadata.bn_epsilon)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key in sorted(expected.keys() | checkpoint.state.keys()):
        if key not in checkpoint.state:
            raise WeightsError(f"weights {metadata.name}: tensor {key} is missing")
        if key not in expected:
            raise WeightsError(f"weights {metadata.name}: tensor {key} is left over; DR-Unet104 has none of that name")
        if checkpoint.state[key].shape != expected[key]:
            shapes = f"{checkpoint.state[key].shape}, base width {metadata.base_width} needs {tuple(expected[key])}"
            raise WeightsError(f"weights {metadata.name}: tensor {key} has shape {shapes}")
    state = {key: torch.from_numpy(array) for key, array in checkpoint.state.items()}
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    model.load_state_dict(state | counters, assign=True)
    return model.eval()


class TorchEngine:
    """An Engine that holds the weights on one device.

    on_halved: called with the new batch size whenever memory did not suffice for the old one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        precision: Precision = Precision.AUTO,
        batch_size: int | None = None,
        threads: int | None = None,
        on_halved: Callable[[int], None] = lambda _: None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device
        self.precision = Precision.FLOAT32 if precision is Precision.AUTO else precision
        self.batch_size = batch_size or _BATCH_SIZE[device.type]
        self._on_halved = on_halved
        _forbid_tf32()
        model = build_model(checkpoint)
        # MPS has given wrong results for views of channels-last tensors (pytorch issue 180984).
        self._memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
        try:
            self._model = model.to(device=device, memory_format=self._memory_format)  # type: ignore[call-overload]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                _check_device_fault(device, error)
                raise
            raise _out_of_memory(device, error) from error

    @property
    def device(self) -> str:
        """As PyTorch names it: cpu, cuda:0."""
        return str(self._device)

    @property
    def device_name(self) -> str:
        """The hardware in words."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return cpu_name()

    @property
    def versions(self) -> dict[str, str]:
        """Of the software that computes."""
        return {"torch": torch.__version__}

    @property
    def threads(self) -> int:
        """CPU threads that PyTorch computes with."""
        return torch.get_num_threads()

    def classes(self, slices: npt.NDArray[np.uint8]) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(dim=1).to(torch.uint8), result)
        return result

    def probabilities(self, slices: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(slices, lambda logits: logits.float().softmax(dim=1).permute(0, 2, 3, 1), result)
        return result

    def _run(self, slices: npt.NDArray[np.uint8], head: Callable[[Tensor], Tensor], result: npt.NDArray[np.generic]) -> None:
        done = 0
        while done < len(slices):
            batch = slices[done : done + self.batch_size]
            try:
                result[done : done + len(batch)] = self._forward(batch, head)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    _check_device_fault(self._device, error)
                    raise
                if self.batch_size == 1 or len(batch) == 1:
                    raise _out_of_memory(self._device, error) from error
                self.batch_size = len(batch) // 2
            else:
                done += len(batch)
                continue
            # Only here, with the exception and its frames gone, can the failed batch's memory be given back.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            elif self._device.type == "mps":
                torch.mps.empty_cache()
            self._on_halved(self.batch_size)

    @torch.inference_mode()
    def _forward(self, batch: npt.NDArray[np.uint8], head: Callable[[Tensor], Tensor]) -> npt.NDArray[np.generic]:
        images = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)
        half = _DTYPES.get(self.precision)
        with torch.autocast(self._device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            logits = self._model(images.float() / 255)
        if not torch.isfinite(logits).all():  # else argmax would call it background
            if half is not None:
                raise DeviceError(f"the network overflows in {self.precision}; use --precision float32")
            raise WeightsError("the network's output is not finite; these weights are damaged")
        return np.asarray(head(logits).cpu().numpy())


def _forbid_tf32() -> None:
    """Let float32 mean it: cuDNN would otherwise round the inputs of convolutions to TF32's ten bits."""
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9, where the older switch warns
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:
        torch.backends.cudnn.allow_tf32 = False


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def _check_device_fault(device: torch.device, error: RuntimeError) -> None:
    """Raise DeviceError for what the driver reports, such as a GPU that this PyTorch has no code for; the rest is our bug."""
    first_line = str(error).split("\n")[0]
    if device.type == "cuda" and any(words in first_line for words in _DEVICE_FAULT_WORDS):
        raise DeviceError(f"device {device}: {first_line}; use --device cpu, or --precision float32") from error


def _out_of_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device {device}: memory does not suffice for the network and one slice ({first_line})")
