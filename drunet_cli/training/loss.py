"""How far predictions are from the truth, as training counts it."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from drunet_cli.brats import N_CLASSES, REGIONS
from drunet_cli.training.recipe import LossSettings

_SMOOTH: Final = 1.0  # pixel: defines the Dice of an empty region


def loss_of(logits: Tensor, classes: Tensor, settings: LossSettings) -> Tensor:
    """Weighted sum of cross-entropy and 1 less the soft Dice, a scalar.

    logits: [N, 4, X, Y]; classes: [N, X, Y] int64.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    truth = functional.one_hot(classes, N_CLASSES).movedim(3, 1).to(log_probabilities.dtype)
    total = logits.new_zeros((), dtype=torch.float32)
    if settings.cross_entropy:
        # By the one-hot truth and not by index, whose backward pass on CUDA is not reproducible.
        total = total - settings.cross_entropy * (log_probabilities * truth).sum(dim=1).mean()
    if settings.dice:
        total = total + settings.dice * (1 - soft_dice(log_probabilities.exp(), truth).mean())
    return total


def soft_dice(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Dice of WT, TC and ET over a whole batch, [3]; probabilities and one-hot truth: [N, 4, X, Y]."""
    predicted, actual = _regions(probabilities), _regions(truth)
    both = (predicted * actual).sum(dim=(1, 2, 3))
    return (2 * both + _SMOOTH) / (predicted.sum(dim=(1, 2, 3)) + actual.sum(dim=(1, 2, 3)) + _SMOOTH)


def _regions(by_class: Tensor) -> Tensor:
    """[N, 4, X, Y] summed over the classes of each region: [3, N, X, Y]."""
    # By slices: an index list would be copied to the device, which waits for it.
    summed = [torch.stack([by_class[:, index] for index in classes]).sum(dim=0) for classes in REGIONS.values()]
    return torch.stack(summed)
