"""Small masks that hypothesis draws, for comparisons with plain renderings of the definitions."""

from typing import Final

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

SPACINGS_MM: Final = st.sampled_from([(1.0, 1.0, 1.0), (0.9375, 0.9375, 1.5), (0.5, 1.25, 2.0)])
SHAPES: Final = st.tuples(*[st.integers(1, 6)] * 3)
plainly = settings(deadline=None, derandomize=True, max_examples=50)


def masks(n: int) -> "st.SearchStrategy[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]":
    """n masks [n, I, J, K]; hypothesis shrinks towards empty ones."""
    return SHAPES.flatmap(lambda shape: arrays(np.bool_, (n, *shape)))
