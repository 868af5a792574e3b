"""Interpolation along one axis, as sparse weights."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Taps:
    """A matrix of weights [targets, sources] by the few of each row that are not 0.

    As products of matrices these would have BLAS start threads of its own inside those that read the four modalities.
    """

    def __init__(self, weights: FloatArray) -> None:
        n_taps = int(np.count_nonzero(weights, axis=1).max(initial=1))
        self._sources = np.argsort(-weights, axis=1, kind="stable")[:, :n_taps]
        self._weights = np.take_along_axis(weights, self._sources, axis=1)

    def along_first(self, plane: FloatArray) -> FloatArray:
        """[sources, M] to [targets, M]."""
        taps = zip(self._weights.T, self._sources.T, strict=True)
        return np.asarray(np.sum([weight[:, None] * plane[source] for weight, source in taps], axis=0))

    def along_second(self, plane: FloatArray) -> FloatArray:
        """[M, sources] to [M, targets]."""
        return np.asarray(self.along_first(plane.T).T)


def interpolation(targets: FloatArray, target_size: float, sources: FloatArray, source_size: float) -> FloatArray:
    """Weights [targets, sources]: the mean over what a coarser target covers, linear interpolation at a finer one.

    All positions and sizes in mm, positions of centres. A row sums to 1 inside the sources' extent and is 0 outside it.
    """
    distance = np.abs(targets[:, None] - sources[None, :])
    if target_size > source_size:
        weights = np.clip((target_size + source_size) / 2 - distance, 0.0, source_size)  # overlap of the two intervals
    else:
        weights = np.clip(1.0 - distance / source_size, 0.0, None)
    inside = (targets > sources[0] - source_size / 2) & (targets < sources[-1] + source_size / 2)
    weights[~inside] = 0.0
    sums = weights.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weights, sums, out=weights, where=sums > 0))
