"""The network in PyTorch, on CPU, CUDA or MPS."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from drunet_cli.brats import ClassMap
from drunet_cli.errors import DeviceError, LostDeviceError, WeightsError
from drunet_cli.host import cpu_name, is_out_of_memory
from drunet_cli.network.engine import EngineName, Images, Precision, ignore_progress, is_proved
from drunet_cli.network.model import DRUNet104
from drunet_cli.weights.checkpoint import Checkpoint, check_tensors
from drunet_cli.weights.structure import folded_norms, tensor_shapes

# Measured on 2 cores at base width 16: 0.35 s a slice one by one, 0.36 in twos, 0.47 in fours, 0.55 in eights
# (tests/benchmarks/cpu.py).
_BATCH_SIZE: Final = {"cpu": 2, "cuda": 16, "mps": 8}
_COUNTER: Final = "num_batches_tracked"  # of batch norms; nothing here uses it
_DTYPES: Final = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}
_DEVICE_FAULT_WORDS: Final = ("CUDA error", "cuDNN error", "CUDA driver", "does not support bfloat16")


class TorchEngine:
    """An Engine that holds the weights on one device.

    dropout: rate of the samples that `probabilities` takes with seeds. deterministic: equal bytes from run to run on a GPU too.
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
        dropout: float = 0.0,
        deterministic: bool = False,
        on_halved: Callable[[int], None] = lambda _: None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device
        self.precision = Precision.FLOAT32 if precision is Precision.AUTO else precision
        self.batch_size = batch_size or _BATCH_SIZE[device.type]
        self._on_halved = on_halved
        self._deterministic = deterministic
        self._transfer = Transfer(device)
        model = build_model(checkpoint)
        if is_proved():  # else a changed model.py may do otherwise than the table says, and is run as it stands
            fold_norms(model)
        if self.precision in _DTYPES:
            round_convolutions(model, _DTYPES[self.precision])
        model.dropout = self._dropout = SliceDropout(dropout)
        # MPS has given wrong results for views of channels-last tensors (pytorch issue 180984).
        self._memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
        try:
            self._model = model.to(device=device, memory_format=self._memory_format)  # type: ignore[call-overload]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                check_device_fault(device, error)
                raise
            raise _out_of_memory(device, error) from error

    @property
    def name(self) -> EngineName:
        """PyTorch."""
        return EngineName.TORCH

    @property
    def device(self) -> str:
        """As PyTorch names it: cpu, cuda:0."""
        return str(self._device)

    @property
    def device_name(self) -> str:
        """The hardware in words."""
        return device_name(self._device)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software that computes."""
        return {"torch": torch.__version__}

    @property
    def threads(self) -> int:
        """CPU threads that PyTorch computes with."""
        return torch.get_num_threads()

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(dim=1).to(torch.uint8), result, on_progress)
        return result

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_progress: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(
            slices,
            lambda logits: logits.float().softmax(dim=1).permute(0, 2, 3, 1),
            result,
            on_progress,
            seeds=dropout_seeds or (),
        )
        return result

    def _run(
        self,
        slices: npt.NDArray[np.uint8],
        head: Callable[[Tensor], Tensor],
        result: npt.NDArray[np.generic],
        on_progress: Callable[[int], None],
        *,
        seeds: Sequence[int] = (),
    ) -> None:
        begun: deque[tuple[slice, Arrival]] = deque()
        start = 0

        def end_one() -> None:
            place, arrival = begun.popleft()
            result[place] = self._arrived(arrival)
            on_progress(place.stop - place.start)

        with exact_arithmetic(deterministic=self._deterministic):
            while start < len(slices):
                place = slice(start, min(start + self.batch_size, len(slices)))
                arrival = self._begin(slices[place], head, seeds[place])
                if arrival is not None:
                    begun.append((place, arrival))
                    start = place.stop
                while len(begun) > (0 if arrival is None else self._transfer.ahead):
                    end_one()
                if arrival is None:
                    self._halve(place.stop - place.start)
            while begun:
                end_one()

    def _begin(self, batch: npt.NDArray[np.uint8], head: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> Arrival | None:
        """Begin a batch; return None where memory does not suffice for the batch, but may for half of it."""
        try:
            with self._dropout.sampled(seeds, self._device):
                return self._forward(batch, head)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                check_device_fault(self._device, error)
                raise
            if len(batch) == 1:
                raise _out_of_memory(self._device, error) from error
            return None

    def _halve(self, batch_size: int) -> None:
        """Halve the batch size. To be called when the exception is gone, whose frames hold the memory of the batch."""
        self.batch_size = batch_size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        self._on_halved(self.batch_size)

    @torch.inference_mode()
    def _forward(self, batch: npt.NDArray[np.uint8], head: Callable[[Tensor], Tensor]) -> Arrival:
        """The head's results, and whether all logits are finite."""
        images = self._transfer.to_device(batch).permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)
        half = _DTYPES.get(self.precision)
        with torch.autocast(self._device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            logits = self._model(images.float() / 255)
        return self._transfer.to_host(head(logits), torch.isfinite(logits).all())

    def _arrived(self, arrival: Arrival) -> npt.NDArray[np.generic]:
        """Wait for the results of a batch. A fault of the device shows only here."""
        try:
            results, finite = arrival.wait()
        except RuntimeError as error:
            check_device_fault(self._device, error)
            raise
        if not finite:  # argmax calls such pixels background
            if self.precision is not Precision.FLOAT32:
                raise DeviceError(f"the network overflows in {self.precision}; use --precision float32")
            raise WeightsError("the network's output is not finite; these weights are damaged")
        return results


def build_model(checkpoint: Checkpoint) -> DRUNet104:
    """Make the network with these weights, in evaluation mode, sharing the checkpoint's memory.

    Raises WeightsError naming the first tensor that is missing, left over, or of another shape.
    """
    check_tensors(checkpoint)
    metadata = checkpoint.metadata
    with torch.device("meta"):
        model = DRUNet104(metadata.base_width, bn_epsilon=metadata.bn_epsilon)
    check_model(model)
    state = {key: torch.from_numpy(array) for key, array in checkpoint.state.items()}
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith(_COUNTER)}
    model.load_state_dict(state | counters, assign=True)
    return model.eval()


def check_model(model: DRUNet104) -> None:
    """Raise WeightsError where model.py and the table of its layers name other tensors, or tensors of other shapes."""
    expected = tensor_shapes(model.base_width)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(_COUNTER)}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            shapes = f"{found.get(name, 'absent')} in network/model.py, {expected.get(name, 'absent')} in weights/structure.py"
            raise WeightsError(f"the network was changed in one place of two: tensor {name} is {shapes}; change both")


def logits_of(checkpoint: Checkpoint, images: Images) -> Images:
    """Logits [N, 4, X, Y] of images [N, 4, X, Y] by model.py as it stands, on the CPU in float32."""
    with torch.inference_mode():
        return np.asarray(build_model(checkpoint)(torch.from_numpy(images)).numpy())


def fold_norms(model: DRUNet104) -> None:
    """Make every batch norm that follows a convolution a part of it; the others follow sums."""
    for paths in folded_norms().items():
        norm, convolution = (model.get_submodule(path) for path in paths)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        for path, module in zip(paths, (nn.Identity(), fuse_conv_bn_eval(convolution, norm)), strict=True):
            model.set_submodule(path, module)


def round_convolutions(model: DRUNet104, dtype: torch.dtype) -> None:
    """Round the weights of all convolutions to half precision once, where autocast would round them for every batch anew.

    Batch norms stay in float32, as under autocast.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def resolve_device(name: str, *, on_warning: Callable[[str], None] = lambda _: None) -> torch.device:
    """Find the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names; `auto` is the first CUDA device, else the CPU.

    on_warning: called with the reason where `auto` passes over a GPU that the driver reports as unusable.
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


def visible_gpus() -> dict[str, str]:
    """The GPUs that PyTorch can use: their devices, as --device names them, and the hardware in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `resolve_device` tells them
        n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = {}
    for n in range(n_cuda):
        properties = torch.cuda.get_device_properties(n)
        gpus[f"cuda:{n}"] = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    return {**gpus, "mps": "Apple GPU"} if torch.backends.mps.is_available() else gpus


def device_name(device: torch.device) -> str:
    """The hardware in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def check_device_fault(device: torch.device, error: RuntimeError) -> None:
    """Raise LostDeviceError for a fault that the driver reports, such as a GPU without code in this PyTorch."""
    first_line = str(error).split("\n")[0]
    if device.type == "cuda" and any(words in first_line for words in _DEVICE_FAULT_WORDS):
        raise LostDeviceError(f"device {device}: {first_line}; use --device cpu, or --precision float32") from error


def _out_of_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device {device}: memory does not suffice for the network and one slice ({first_line})")


_lock: Final = threading.Lock()
_undo: Final = ExitStack()
_n_inside = 0


@contextmanager
def exact_arithmetic(*, deterministic: bool = False) -> Iterator[None]:
    """Compute in full float32 within the block: cuDNN would otherwise round the inputs of convolutions to TF32's ten bits.

    deterministic: also forbid algorithms that may give other bytes from run to run. For any number of threads at once: the
    switches are put back when the last thread leaves, so that none finds them changed in the midst of its work.
    """
    global _n_inside
    owner, name, off = _tf32_switch()
    with _lock:
        if _n_inside == 0:
            _undo.callback(setattr, owner, name, getattr(owner, name))
            _undo.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            _undo.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
        _n_inside += 1
        setattr(owner, name, off)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which PyTorch refuses cuBLAS
            torch.backends.cudnn.benchmark = False  # which chooses algorithms by the clock
            torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                _undo.close()


def _tf32_switch() -> tuple[Any, str, object]:
    """The switch of cuDNN's convolutions, as an object and its attribute, and the value for full float32."""
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9, where the older switch warns
        return torch.backends.cudnn.conv, "fp32_precision", "ieee"
    return torch.backends.cudnn, "allow_tf32", False


class Arrival:
    """Tensors on their way to the host's memory, which have arrived when an event has happened, if there is one."""

    def __init__(self, tensors: Sequence[Tensor], event: torch.cuda.Event | None = None) -> None:
        self._tensors = tensors
        self._event = event

    def wait(self) -> tuple[npt.NDArray[Any], ...]:
        """Wait for the arrays. Raises RuntimeError for a fault that the device has met before."""
        if self._event is not None:
            self._event.synchronize()
        return tuple(np.asarray(tensor.numpy()) for tensor in self._tensors)


class Transfer:
    """Copies arrays from the host to one device and back.

    ahead: how many batches may be on their way while the next is begun. One keeps a GPU busy. All batches go through one
    stream in their order, so that a batch uses the memory that the last has left.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"  # memory from which and to which a GPU copies by itself
        self.ahead = 1 if self._pinned else 0

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy an array to the device. The array may be changed as soon as this returns."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._pinned else tensor.to(self._device)

    def to_host(self, *tensors: Tensor) -> Arrival:
        """Send tensors of the device on their way."""
        if not self._pinned:
            return Arrival([tensor.cpu() for tensor in tensors])
        arriving = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for target, tensor in zip(arriving, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        # blocking: a thread that waits sleeps, and leaves the CPU to the threads that read the next cases.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return Arrival(arriving, event)


class SliceDropout(nn.Module):
    """Dropout whose mask for a slice depends on the slice's seed alone, not on the batch that the slice is computed in.

    Without seeds everything passes through, as in evaluation mode. One such module serves all dropout layers of a network: the
    layers draw from the slice's stream one after another.
    Source of the method: Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016, arXiv:1506.02142.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._generators: list[torch.Generator] = []

    @contextmanager
    def sampled(self, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
        """Draw masks within the block, for a batch of as many slices as there are seeds."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        try:
            yield
        finally:
            self._generators = []

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, X, Y] to the same."""
        if not self._generators or self.rate == 0:
            return x
        _, channels, *shape = x.shape
        kept = torch.stack([self._kept((*shape, channels), generator) for generator in self._generators])
        return x * kept.permute(0, 3, 1, 2).to(x.dtype).mul_(1 / (1 - self.rate))

    def _kept(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw what one slice keeps, from 16 random bits a number: five times as fast on a CPU as torch's bernoulli_."""
        n = math.prod(shape)
        words = torch.empty((n + 1) // 2, dtype=torch.int32, device=generator.device)
        bits = words.random_(-(2**31), 2**31, generator=generator).view(torch.int16)[:n]
        least_dropped = round((1 - self.rate) * 2**16) - 2**15
        return (bits < min(least_dropped, 2**15 - 1)).view(shape)
