"""Samples with dropout on: of the seed alone, in whatever batch."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from drunet_cli.network.torch_engine import SliceDropout, TorchEngine
from drunet_cli.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
SEEDS = [3, 14, 15, 92, 65]
ROUNDING = 1e-4  # of float32 in probabilities, which differs between CPUs; other masks change them by over 10 times as much


def _engine(checkpoint: Checkpoint, rate: float = 0.2, *, batch_size: int | None = None) -> TorchEngine:
    return TorchEngine(checkpoint, device=CPU, dropout=rate, batch_size=batch_size)


def test_a_sample_is_the_same_whatever_it_is_computed_beside(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    together = _engine(checkpoint, batch_size=5).probabilities(slices, dropout_seeds=SEEDS)
    for batch_size in (1, 2):
        apart = _engine(checkpoint, batch_size=batch_size).probabilities(slices, dropout_seeds=SEEDS)
        np.testing.assert_allclose(apart, together, atol=ROUNDING)
    turned = _engine(checkpoint).probabilities(slices[::-1].copy(), dropout_seeds=SEEDS[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=ROUNDING)


def test_other_seeds_give_other_samples(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = _engine(checkpoint)
    first, again, other = (engine.probabilities(slices[:1], dropout_seeds=[seed]) for seed in (SEEDS[0], SEEDS[0], SEEDS[1]))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 10 * ROUNDING


def test_without_seeds_dropout_is_off(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine, plain = _engine(checkpoint), TorchEngine(checkpoint, device=CPU)
    engine.probabilities(slices[:1], dropout_seeds=[1])
    assert engine.probabilities(slices).tobytes() == plain.probabilities(slices).tobytes()


def test_a_rate_of_zero_changes_nothing(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = _engine(checkpoint, rate=0.0)
    assert engine.probabilities(slices, dropout_seeds=SEEDS).tobytes() == engine.probabilities(slices).tobytes()


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate: float) -> None:
    dropout = SliceDropout(rate)
    ones = torch.ones(2, 50, 40, 40).contiguous(memory_format=torch.channels_last)
    with dropout.sampled([7, 8], CPU):
        dropped = dropout(ones)
    assert abs(float((dropped == 0).float().mean()) - rate) < 0.01  # of 160,000 draws
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert not torch.equal(dropped[0], dropped[1])


def test_a_mask_is_the_same_in_any_batch() -> None:
    dropout, ones = SliceDropout(0.2), torch.ones(len(SEEDS), 4, 9, 7)
    with dropout.sampled(SEEDS, CPU):
        together = dropout(ones)
    for index, seed in enumerate(SEEDS):
        with dropout.sampled([seed], CPU):
            assert torch.equal(dropout(ones[:1])[0], together[index])


def test_the_layers_of_a_slice_have_masks_of_their_own() -> None:
    dropout = SliceDropout(0.5)
    with dropout.sampled([7], CPU):
        first, second = dropout(torch.ones(1, 4, 8, 8)), dropout(torch.ones(1, 4, 8, 8))
    assert not torch.equal(first, second)
