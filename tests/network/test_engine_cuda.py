"""The PyTorch engine on a GPU, where this machine has one."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
import torch

from drunet_cli.network.engine import Precision
from drunet_cli.network.torch_engine import TorchEngine
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint
from tests.keras_file import write_keras_h5

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")

CPU: Final = torch.device("cpu")
CUDA: Final = torch.device("cuda:0")
# Of an 8 GB card, what CUDA's own context leaves.
_CAP_BYTES: Final = 7e9


def test_labels_are_those_of_the_cpu_where_the_decision_is_clear(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    expected = TorchEngine(checkpoint, device=CPU).probabilities(slices)
    engine = TorchEngine(checkpoint, device=CUDA, batch_size=2)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-3  # nearer ones may fall either way by float32 rounding
    assert np.array_equal(engine.classes(slices)[clear], expected.argmax(axis=-1)[clear])
    np.testing.assert_allclose(engine.probabilities(slices), expected, atol=1e-4)


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.FLOAT16])
def test_deterministic_computing_gives_equal_bytes(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], precision: Precision
) -> None:
    engines = [TorchEngine(checkpoint, device=CUDA, precision=precision, deterministic=True, batch_size=2) for _ in range(2)]
    assert engines[0].probabilities(slices).tobytes() == engines[1].probabilities(slices).tobytes()


def test_batches_that_a_small_card_cannot_hold_are_halved_and_end_in_the_same_labels(
    slices: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    write_keras_h5(tmp_path / "full.h5", base_width=16)
    checkpoint = open_weights(str(tmp_path / "full.h5"))
    many = np.concatenate([slices] * 31)  # 155, as a BraTS case has
    expected = TorchEngine(checkpoint, device=CUDA, batch_size=5).classes(slices)
    halvings: list[int] = []
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, _CAP_BYTES / torch.cuda.get_device_properties(CUDA).total_memory), CUDA)
    try:
        found = TorchEngine(checkpoint, device=CUDA, batch_size=len(many), on_halved=halvings.append).classes(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    assert halvings
    agreement = np.mean(found.reshape(31, *expected.shape) == expected)
    assert agreement > 0.999  # random weights, so that many voxels lie nearly between two classes
