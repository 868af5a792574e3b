"""The network in PyTorch, on CPU, CUDA or MPS."""

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
from drunet_cli.network.checkpoint import Checkpoint, check_tensors
from drunet_cli.network.devices import check_device_fault, device_name, is_out_of_memory
from drunet_cli.network.dropout import SliceDropout
from drunet_cli.network.engine import EngineName, Precision, ignore_progress
from drunet_cli.network.model import Bottleneck, DecoderBlock, DRUNet104, InputBlock

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
        model = build_model(checkpoint)
        fold_norms(model)
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
        done = 0
        while done < len(slices):
            batch = slices[done : done + self.batch_size]
            try:
                with (
                    exact_arithmetic(deterministic=self._deterministic),
                    self._dropout.sampled(seeds[done : done + len(batch)], self._device),
                ):
                    result[done : done + len(batch)] = self._forward(batch, head)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    check_device_fault(self._device, error)
                    raise
                if self.batch_size == 1 or len(batch) == 1:
                    raise _out_of_memory(self._device, error) from error
                self.batch_size = len(batch) // 2
            else:
                done += len(batch)
                on_done(len(batch))
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


def _out_of_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device {device}: memory does not suffice for the network and one slice ({first_line})")
