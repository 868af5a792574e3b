"""The network in PyTorch, on CPU, CUDA or MPS."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from drunet_cli.brats import ClassMap
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.network.arithmetic import exact_arithmetic
from drunet_cli.network.devices import check_device_fault, device_name, is_out_of_memory
from drunet_cli.network.dropout import SliceDropout
from drunet_cli.network.engine import EngineName, Precision, ignore_progress
from drunet_cli.network.model import Bottleneck, DecoderBlock, DRUNet104, InputBlock
from drunet_cli.network.transfer import Arrival, Transfer
from drunet_cli.weights.checkpoint import Checkpoint, check_tensors

# Measured on 2 cores at base width 16: 0.35 s a slice one by one, 0.36 in twos, 0.47 in fours, 0.55 in eights
# (tests/benchmarks/cpu.py).
_BATCH_SIZE: Final = {"cpu": 2, "cuda": 16, "mps": 8}
_FOLDED: Final[Mapping[type[nn.Module], tuple[tuple[str, str], ...]]] = {
    InputBlock: (("conv1", "norm1"), ("conv2", "norm2")),
    Bottleneck: (("conv1", "norm2"), ("conv2", "norm3")),
    DecoderBlock: (("conv1", "norm2"),),
}
_DTYPES: Final = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}


def build_model(checkpoint: Checkpoint) -> DRUNet104:
    """The network with these weights, in evaluation mode, sharing the checkpoint's memory.

    Raises WeightsError naming the first tensor that is missing, left over, or of another shape.
    """
    check_tensors(checkpoint)
    metadata = checkpoint.metadata
    with torch.device("meta"):
        model = DRUNet104(metadata.base_width, bn_epsilon=metadata.bn_epsilon)
    state = {key: torch.from_numpy(array) for key, array in checkpoint.state.items()}
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    model.load_state_dict(state | counters, assign=True)
    return model.eval()


def fold_norms(model: DRUNet104) -> None:
    """Make every batch norm that follows a convolution a part of it; the others follow sums."""
    for block in model.modules():
        for names in _FOLDED.get(type(block), ()):
            convolution, norm = (block.get_submodule(name) for name in names)
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(convolution, norm)
            for name, module in zip(names, (fused, nn.Identity()), strict=True):
                setattr(block, name, module)


def round_convolutions(model: DRUNet104, dtype: torch.dtype) -> None:
    """Hold the weights of all convolutions in half precision, to which autocast would round them for every batch anew.

    Batch norms keep their float32, as under autocast.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


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
        """Of the software that computes."""
        return {"torch": torch.__version__}

    @property
    def threads(self) -> int:
        """CPU threads that PyTorch computes with."""
        return torch.get_num_threads()

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(dim=1).to(torch.uint8), result, on_done)
        return result

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(
            slices, lambda logits: logits.float().softmax(dim=1).permute(0, 2, 3, 1), result, on_done, seeds=dropout_seeds or ()
        )
        return result

    def _run(
        self,
        slices: npt.NDArray[np.uint8],
        head: Callable[[Tensor], Tensor],
        result: npt.NDArray[np.generic],
        on_done: Callable[[int], None],
        *,
        seeds: Sequence[int] = (),
    ) -> None:
        begun: deque[tuple[slice, Arrival]] = deque()
        start = 0

        def end_one() -> None:
            place, arrival = begun.popleft()
            result[place] = self._arrived(arrival)
            on_done(place.stop - place.start)

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
        """Set a batch going; None where memory does not suffice for it, but may for half of it."""
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
        """Go on with half of a batch that did not fit. Only with its exception and frames gone can its memory be given back."""
        self.batch_size = batch_size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        self._on_halved(self.batch_size)

    @torch.inference_mode()
    def _forward(self, batch: npt.NDArray[np.uint8], head: Callable[[Tensor], Tensor]) -> Arrival:
        """The head's answers, and whether all logits are finite."""
        images = self._transfer.to_device(batch).permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)
        half = _DTYPES.get(self.precision)
        with torch.autocast(self._device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            logits = self._model(images.float() / 255)
        return self._transfer.to_host(head(logits), torch.isfinite(logits).all())

    def _arrived(self, arrival: Arrival) -> npt.NDArray[np.generic]:
        """The answers. What went wrong while a device computed shows only here."""
        try:
            answers, finite = arrival.wait()
        except RuntimeError as error:
            check_device_fault(self._device, error)
            raise
        if not finite:  # argmax has called it background
            if self.precision is not Precision.FLOAT32:
                raise DeviceError(f"the network overflows in {self.precision}; use --precision float32")
            raise WeightsError("the network's output is not finite; these weights are damaged")
        return answers


def _out_of_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device {device}: memory does not suffice for the network and one slice ({first_line})")
