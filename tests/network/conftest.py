"""The golden weights and slices, which every engine is asked about."""

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.network.acquisition import open_weights
from drunet_cli.network.checkpoint import Checkpoint
from tests.support import GOLDEN, GOLDEN_WEIGHTS


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_weights(str(GOLDEN_WEIGHTS))


@pytest.fixture(scope="module")
def slices() -> npt.NDArray[np.uint8]:
    return np.asarray(np.load(GOLDEN / "slices.npz")["slices"])
