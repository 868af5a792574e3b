"""The loss of some steps ago, known without waiting for the device."""

import math

import torch
from torch import Tensor


class RecentLoss:
    """The loss of some steps ago. On a GPU it is fetched without waiting for what is still computed."""

    def __init__(self, device: torch.device) -> None:
        self.value: float | None = None
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._copy = torch.empty((), pin_memory=True)
            self._copied: torch.cuda.Event | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it was a number, as far as is known."""
        return self.value is None or math.isfinite(self.value)

    def look_at(self, loss: Tensor) -> None:
        """Learn of this loss, now or when it is there."""
        if not self._on_gpu:
            self.value = float(loss)
            return
        if self._copied is not None:
            if not self._copied.query():  # type: ignore[no-untyped-call]
                return
            self.value = float(self._copy)
        self._copy.copy_(loss, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
