"""Dropout that stays on when the network is evaluated, with a stream of its own for every slice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SliceDropout(nn.Module):
    """Dropout whose mask of a slice depends on the slice's seed alone, not on the batch that it is computed in.

    Without seeds it passes everything through, as dropout does in evaluation mode. One such module serves all dropout layers of
    a network: the layers of one slice draw from its stream one after another.
    Source of the method: Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016, arXiv:1506.02142.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._generators: list[torch.Generator] = []

    @contextmanager
    def sampled(self, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
        """Draw masks meanwhile for a batch of as many slices as there are seeds."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        try:
            yield
        finally:
            self._generators = []

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, X, Y] to the same."""
        if not self._generators:
            return x
        kept = torch.stack(
            [
                torch.empty(x.shape[1:], device=x.device).bernoulli_(1 - self.rate, generator=generator)
                for generator in self._generators
            ]
        )
        return x * (kept / (1 - self.rate)).to(x.dtype)
