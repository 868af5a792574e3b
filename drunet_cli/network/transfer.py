"""Arrays to a device and back. From and to a CUDA device they travel while the host goes on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Arrival:
    """Tensors that are on their way to the host's memory, until an event if there is one."""

    def __init__(self, tensors: Sequence[Tensor], event: torch.cuda.Event | None = None) -> None:
        self._tensors = tensors
        self._event = event

    def wait(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, once they are there. Raises RuntimeError for whatever the device met before."""
        if self._event is not None:
            self._event.synchronize()
        return tuple(np.asarray(tensor.numpy()) for tensor in self._tensors)


class Transfer:
    """The way between the host and one device.

    ahead: how many batches may be on their way while the next is begun. One keeps a GPU busy: the host begins the next and
    takes what is done meanwhile. One stream keeps the order, so that a batch uses the memory that the last has left.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"  # memory from which and to which a GPU copies by itself
        self.ahead = 1 if self._pinned else 0

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """The same array on the device. It may be changed as soon as this returns."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._pinned else tensor.to(self._device)

    def to_host(self, *tensors: Tensor) -> Arrival:
        """Send tensors of the device on their way."""
        if not self._pinned:
            return Arrival([tensor.cpu() for tensor in tensors])
        arriving = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for target, tensor in zip(arriving, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        # Whoever waits for it sleeps, and leaves the CPU to those who read the next cases.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return Arrival(arriving, event)
