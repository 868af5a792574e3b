"""All slices of a case through the network."""

from collections.abc import Callable

import numpy as np

from drunet_cli.brats import ClassMap
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import Engine


def predict(
    slices: SliceStack, geometry: Geometry, engine: Engine, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> ClassMap:
    """Class indices [I, J, K], in the case's own geometry, of slices [Z, 240, 240, 4].

    Full frames, each slice for itself; slices without any brain are all the same and are computed once. The batch size changes
    nothing but float32 rounding. on_progress: called with (slices done, slices in all).
    """
    n_slices = len(slices)
    blank = ~slices.any(axis=(1, 2, 3))
    planes = np.empty((n_slices, geometry.x.size, geometry.y.size), dtype=np.uint8)
    n_blank = int(np.count_nonzero(blank))
    if n_blank:
        planes[blank] = _planes(slices[blank][:1], geometry, engine)
    on_progress(n_blank, n_slices)
    indices = np.flatnonzero(~blank)
    done = 0
    while done < len(indices):
        batch = indices[done : done + engine.batch_size]
        planes[batch] = _planes(slices[batch], geometry, engine)
        done += len(batch)
        on_progress(n_blank + done, n_slices)
    return np.asarray(geometry.turned_back(np.moveaxis(planes, 0, 2)))


def _planes(slices: SliceStack, geometry: Geometry, engine: Engine) -> ClassMap:
    """[N, 240, 240, 4] to class indices [N, X, Y]."""
    if geometry.resampled:
        return geometry.classes_of_probabilities(engine.probabilities(slices))
    return geometry.classes(engine.classes(slices))
