"""Several processes that learn as one, under torchrun: each takes its part of every batch; rank 0 alone writes.

Gradients go through the devices' own channel (NCCL on GPUs, gloo on CPUs); what the processes have to agree on goes through
gloo, so that no GPU waits for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from drunet_cli.errors import DeviceError
from drunet_cli.network.torch_engine import resolve_device
from drunet_cli.training.processes import Processes

Value = TypeVar("Value")
# Rank 0 may read a dataset for hours while the others wait; a process that dies meanwhile is noticed at once nevertheless.
_PATIENCE: Final = timedelta(days=2)
_GONE_WORDS: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket recv",
)


class Team:
    """This process among the others; of one process, everything here does nothing."""

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self.processes = processes
        self._device = device
        self._control: Any = None

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, and part from them when the block ends. Raises DeviceError when one of them is gone."""
        if not self.processes.several:
            yield
            return
        with _telling_of_the_gone(self.processes):
            backend = "nccl" if self._device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE if backend == "gloo" else None)
            try:
                self._control = dist.new_group(backend="gloo", timeout=_PATIENCE)
                yield
            finally:
                dist.destroy_process_group()

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes; batch-norm statistics are those of rank 0."""
        if not self.processes.several:
            return network
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def agreed(self, wish: int) -> int:
        """The largest of what the processes wish."""
        if not self.processes.several:
            return wish
        wishes = torch.tensor(wish)
        dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._control)
        return int(wishes)

    def mean(self, value: float) -> float:
        """Over the processes."""
        if not self.processes.several:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return float(total) / self.processes.n

    def told(self, value: Value) -> Value:
        """What rank 0 says."""
        if not self.processes.several:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def gathered(self, values: Sequence[Value]) -> list[Value]:
        """The values of all processes, in the order of their ranks."""
        if not self.processes.several:
            return list(values)
        parts: list[list[Value]] = [[] for _ in range(self.processes.n)]
        dist.all_gather_object(parts, list(values), group=self._control)
        return [value for part in parts for value in part]

    def follow_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have at rank 0."""
        if self.processes.several:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def own_device(processes: Processes, name: str, *, on_warning: Callable[[str], None] = lambda _: None) -> torch.device:
    """The device of this process where all are told the same name: of several GPUs of a machine each takes its own.

    Raises DeviceError.
    """
    device = resolve_device(name, on_warning=on_warning)
    return resolve_device(f"cuda:{processes.local_rank}") if processes.several and device.type == "cuda" else device


@contextmanager
def _telling_of_the_gone(processes: Processes) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistBackendError and DistNetworkError are such
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _GONE_WORDS):
            raise
        raise DeviceError(
            f"rank {processes.rank} of {processes.n}: another process of this training has ended, or cannot be reached; "
            "its own message says why; if the training had begun, --resume continues it"
        ) from error
