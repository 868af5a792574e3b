"""Several processes that learn as one, under torchrun: each takes its part of every batch; rank 0 alone writes.

Gradients go through the channel of the devices (NCCL on GPUs, gloo on CPUs). What the processes have to agree on goes through
gloo, so that no GPU waits for it.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from drunet_cli.errors import DeviceError, MisuseError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Value = TypeVar("Value")
_SAY_AFTER_S: Final = 5.0  # peers that a scheduler starts together come within seconds
_LOOK_EVERY_S: Final = 0.25
# A process that was asked to stop waits for the others so long, and as long as two steps take: they save the state together.
_PATIENCE_S: Final = 5.0
_LOST_PEER_WORDS: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket recv",
)


@dataclass(frozen=True)
class Processes:
    """The place of this process among the processes of its training.

    local_rank: among the processes of this machine; the number of its GPU. address: where the processes meet, for messages.
    """

    rank: int = 0
    n: int = 1
    local_rank: int = 0
    address: str = ""

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.n > 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return which slices of every batch this process takes. Raises MisuseError where the parts would be unequal."""
        if batch_size % self.n:
            raise MisuseError(f"a batch of {batch_size} cannot be dealt out to {self.n} processes; give another --batch-size")
        share = batch_size // self.n
        return slice(self.rank * share, (self.rank + 1) * share)


def processes_of(environment: Mapping[str, str] = os.environ) -> Processes:
    """Read the variables that torchrun sets; an empty variable counts as unset. Without RANK and WORLD_SIZE: one process.

    Raises MisuseError for variables that are missing, or are no numbers.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return Processes()
    n, rank = _whole_number("WORLD_SIZE", given, least=1), _whole_number("RANK", given)
    if rank >= n:
        raise MisuseError(f"RANK={rank}, WORLD_SIZE={n}: ranks are counted from 0 to {n - 1}; {_REMEDY}")
    if n == 1:
        return Processes()
    local_rank = _whole_number("LOCAL_RANK", given) if "LOCAL_RANK" in given else rank
    if "MASTER_ADDR" not in given:
        raise MisuseError(f"MASTER_ADDR: is not set, but WORLD_SIZE={n} is; {_REMEDY}")
    port = _whole_number("MASTER_PORT", given, least=1, most=65535)
    return Processes(rank, n, local_rank, f"{given['MASTER_ADDR']}:{port}")


_REMEDY: Final = "start the processes with torchrun, or unset RANK and WORLD_SIZE to train with one process"


def _whole_number(name: str, given: Mapping[str, str], *, least: int = 0, most: int = 2**31 - 1) -> int:
    if name not in given:
        others = " and ".join(f"{other}={given[other]}" for other in ("RANK", "WORLD_SIZE") if other in given)
        raise MisuseError(f"{name}: is not set, but {others}; {_REMEDY}")
    value = given[name]
    if not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
        raise MisuseError(f"{name}={value}: must be a whole number from {least} to {most}; {_REMEDY}")
    return int(value)


def own_device(processes: Processes, name: str, *, on_warning: Callable[[str], None] = lambda _: None) -> "torch.device":
    """Return the device of this process. All processes are given the same name; of several GPUs each takes its own.

    Raises DeviceError.
    """
    from drunet_cli.network.torch_engine import resolve_device

    device = resolve_device(name, on_warning=on_warning)
    return resolve_device(f"cuda:{processes.local_rank}") if processes.several and device.type == "cuda" else device


class Team:
    """This process among the others, while a `with` block runs. Alone, a process waits for nobody.

    timeout_min: how long to wait for another process, for the first time or later.
    Every method raises DeviceError when another process is lost, or does not come in time.
    """

    def __init__(
        self,
        processes: Processes,
        device: "torch.device",
        *,
        timeout_min: float = 30.0,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.processes = processes
        self.device = device
        self._timeout = timedelta(minutes=timeout_min)
        self._on_warning = on_warning
        self._control: Any = None  # the gloo group
        self._watch = _Watch(on_warning)
        self._agreed_at: float | None = None

    def __enter__(self) -> Self:
        """Wait for the others."""
        if self.processes.several:
            self._watch.start(
                f"rank {self.processes.rank} of {self.processes.n}: waiting for {self.processes.n - 1} other "
                f"process{'es' if self.processes.n > 2 else ''} at {self.processes.address}, for at most "
                f"{self._timeout.total_seconds() / 60:g} min (--peer-timeout)"
            )
            try:
                with self.waiting():
                    self._meet()
            except BaseException:
                self._watch.stop()
                raise
            self._watch.has_met = True
        return self

    def _meet(self) -> None:
        from torch import distributed

        distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=self._timeout)
        self._control = distributed.new_group(backend="gloo", timeout=self._timeout)

    def __exit__(self, *_: object) -> None:
        """Part from the others."""
        if self.processes.several:
            from torch import distributed

            try:
                with self.waiting():
                    distributed.destroy_process_group()
            finally:
                self._watch.stop()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a block that may wait for another process: a signal ends this process even if the other one never answers."""
        if not self.processes.several:
            yield
            return
        with self._watch.waiting(), _lost_peers_as_device_errors(self.processes, self._timeout):
            yield

    def parallel(self, network: "nn.Module") -> "nn.Module":
        """Return the network with gradients averaged over the processes; batch-norm statistics are those of rank 0."""
        if not self.processes.several:
            return network
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        with self.waiting():
            return DistributedDataParallel(network, device_ids=devices)

    def gather(self, values: Sequence[Value]) -> list[Value]:
        """Return the values of all processes, in the order of their ranks."""
        if not self.processes.several:
            return list(values)
        from torch import distributed

        parts: list[list[Value]] = [[] for _ in range(self.processes.n)]
        with self.waiting():
            distributed.all_gather_object(parts, list(values), group=self._control)
        return [value for part in parts for value in part]

    def broadcast(self, value: Value) -> Value:
        """Return the value of rank 0."""
        return self.gather([value])[0]

    def agree(self, wish: int) -> int:
        """Return the largest wish of all processes; called before every step and after every validation."""
        largest = max(self.gather([wish]))
        now = time.monotonic()
        if self._agreed_at is not None:
            self._watch.longest_step_s = max(self._watch.longest_step_s, now - self._agreed_at)
        self._agreed_at = now
        return largest

    def mean(self, value: float) -> float:
        """Return the mean of a value over the processes."""
        return sum(self.gather([value])) / self.processes.n

    def follow_first(self, tensors: "Sequence[Tensor]") -> None:
        """Give tensors the values that they have at rank 0."""
        if self.processes.several:
            from torch import distributed

            with self.waiting():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)


class _Watch:
    """A thread that ends this process at a signal while PyTorch waits for another process, which Python cannot interrupt.

    Python's own handlers run as soon as PyTorch returns. Where it does not return in time, the process ends with the exit code
    of the signal; files that are being written stay as they were, because they are renamed when they are complete.
    """

    def __init__(self, on_warning: Callable[[str], None]) -> None:
        self.has_met = False
        self.longest_step_s = 0.0
        self._on_warning = on_warning
        self._since: float | None = None  # begin of the wait in which the process is
        self._is_over = False

    def start(self, announcement: str) -> None:
        """Begin the thread. announcement: said when the others do not come within seconds."""
        self._announcement = announcement
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        # Python writes the number of every signal there, at once, whatever the main thread does.
        self._before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, daemon=True, name="peers")
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        signal.set_wakeup_fd(self._before)
        self._is_over = True
        self._thread.join()
        self._receiver.close()
        self._sender.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a wait."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _run(self) -> None:
        begin, is_announced = time.monotonic(), False
        signals: list[tuple[int, float]] = []
        while not self._is_over:
            ready, _, _ = select.select([self._receiver], [], [], _LOOK_EVERY_S)
            now = time.monotonic()
            if ready:
                signals += [(number, now) for number in self._receiver.recv(16) if number in (signal.SIGINT, signal.SIGTERM)]
            if not (self.has_met or is_announced) and now - begin > _SAY_AFTER_S:
                self._on_warning(self._announcement)
                is_announced = True
            since = self._since
            if signals and since is not None and now - max(since, signals[0][1]) > self._patience_s(signals):
                self._end(signals[0][0])

    def _patience_s(self, signals: Sequence[tuple[int, float]]) -> float:
        """How long a wait may last after a signal. Before the others have come, and at a second Ctrl-C, there is no reason."""
        if not self.has_met or [number for number, _ in signals].count(signal.SIGINT) > 1:
            return 2 * _LOOK_EVERY_S
        return _PATIENCE_S + 2 * self.longest_step_s

    def _end(self, number: int) -> None:
        if self.has_met:
            self._on_warning("another process of this training does not answer; stopped without saving the state again")
        os._exit(128 + number)


@contextmanager
def _lost_peers_as_device_errors(processes: Processes, timeout: timedelta) -> Iterator[None]:
    from torch import distributed

    try:
        yield
    except RuntimeError as error:  # torch's DistBackendError and DistNetworkError are such
        message, this = str(error), f"rank {processes.rank} of {processes.n}"
        if "imed out" in message or "imeout" in message:
            raise DeviceError(
                f"{this}: no answer from another process within {timeout.total_seconds() / 60:g} min (they meet at "
                f"{processes.address}); start all {processes.n} processes, or allow more time with --peer-timeout"
            ) from error
        if not isinstance(error, distributed.DistError) and not any(words in message for words in _LOST_PEER_WORDS):
            raise
        raise DeviceError(
            f"{this}: another process of this training has ended, or cannot be reached; its own message says why; if the "
            "training had begun, --resume continues it"
        ) from error
