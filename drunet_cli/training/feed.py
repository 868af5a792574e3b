"""Batches ready before the device asks for them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor

from drunet_cli.training.batches import BatchPlan, Planner, SliceSource, assembled

_AHEAD: Final = 4  # batches


class Feed:
    """The batches of steps first to end, in order, assembled by threads while the device computes.

    part: which slices of each batch are wanted. To be closed. waited_s: what whoever takes the batches has waited for them.
    """

    def __init__(
        self,
        planner: Planner,
        cases: Sequence[SliceSource],
        *,
        first: int,
        end: int,
        device: torch.device,
        part: slice = slice(None),
        threads: int = 1,
    ) -> None:
        self._planner, self._cases, self._device, self._part = planner, cases, device, part
        self._steps = iter(range(first, end))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._waiting: deque[tuple[BatchPlan, Future[Tensor]]] = deque()
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[tuple[BatchPlan, Tensor]]:
        """Yield each plan with its pixels [N, X, Y, 5] uint8 on the device."""
        for _ in range(_AHEAD):
            self._submit_next()
        while self._waiting:
            plan, future = self._waiting.popleft()
            begin = time.perf_counter()
            pixels = future.result()
            self.waited_s += time.perf_counter() - begin
            self._submit_next()
            yield plan, pixels.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Let go of what was not taken."""
        self._executor.shutdown(cancel_futures=True)

    def _submit_next(self) -> None:
        if (step := next(self._steps, None)) is not None:
            plan = self._planner.plan(step)
            self._waiting.append((plan, self._executor.submit(self._assembled, plan)))

    def _assembled(self, plan: BatchPlan) -> Tensor:
        pixels = torch.from_numpy(assembled(plan, self._cases, self._part))
        return pixels.pin_memory() if self._device.type == "cuda" else pixels
