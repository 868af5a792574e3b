"""The two terms of the loss, against torch's own and by hand."""

from typing import Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drunet_cli.brats import N_CLASSES
from drunet_cli.training.learner import loss_of, soft_dice
from drunet_cli.training.recipe import LossSettings

CROSS_ENTROPY: Final = LossSettings(cross_entropy=1, dice=0)
DICE: Final = LossSettings(cross_entropy=0, dice=1)
SHAPE: Final = (3, 6, 5)  # N, X, Y
NCR, ED, ET = 1, 2, 3


def logits_and_classes(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, N_CLASSES, 6, 5, generator=generator) * 3, torch.randint(0, N_CLASSES, SHAPE, generator=generator)


def one_hot(classes: Tensor) -> Tensor:
    return functional.one_hot(classes, N_CLASSES).movedim(-1, 1).float()


def of_class(index: int, n_pixels: int) -> Tensor:
    """Classes [1, 4, 5] of which the first pixels are of a class and the others background."""
    classes = torch.zeros(20, dtype=torch.int64)
    classes[:n_pixels] = index
    return classes.reshape(1, 4, 5)


def test_cross_entropy_is_torchs() -> None:
    logits, classes = logits_and_classes()
    # Sums of 90 float32 terms in another order.
    assert float(loss_of(logits, classes, CROSS_ENTROPY)) == pytest.approx(
        float(functional.cross_entropy(logits, classes)), rel=1e-6
    )


def test_gradient_of_cross_entropy_is_torchs() -> None:
    logits, classes = logits_and_classes()
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(loss_of(logits, classes, CROSS_ENTROPY), logits)
    (torchs,) = torch.autograd.grad(functional.cross_entropy(logits, classes), logits)
    assert torch.allclose(ours, torchs, rtol=1e-5, atol=1e-8)  # float32, of numbers around 0.01


@pytest.mark.parametrize("classes", [of_class(ET, 6), of_class(ED, 1), of_class(0, 0), logits_and_classes()[1]])
def test_dice_of_a_perfect_prediction_is_1(classes: Tensor) -> None:
    truth = one_hot(classes)
    assert soft_dice(truth, truth).tolist() == [1, 1, 1]


def test_dice_of_an_empty_prediction_is_what_the_smoothing_pixel_leaves() -> None:
    # (2 x 0 + 1) / (0 + n + 1), of n = 6 pixels of ET, which are WT and TC too.
    assert soft_dice(one_hot(of_class(0, 0)), one_hot(of_class(ET, 6))).tolist() == pytest.approx([1 / 7] * 3)


def test_dice_of_a_prediction_where_nothing_is_is_what_the_smoothing_pixel_leaves() -> None:
    assert soft_dice(one_hot(of_class(ET, 6)), one_hot(of_class(0, 0))).tolist() == pytest.approx([1 / 7] * 3)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    # Five pixels of ET, which are WT = 1 + 2 + 3 and TC = 1 + 3 (reference.md, Classes): where one has all five and the other
    # none, the smoothing pixel leaves 1 / (5 + 1).
    [(ET, [1, 1, 1]), (NCR, [1, 1, 1 / 6]), (ED, [1, 1 / 6, 1 / 6]), (0, [1 / 6, 1 / 6, 1 / 6])],
    ids=["as ET", "as NCR", "as ED", "as background"],
)
def test_dice_counts_the_regions_of_brats(predicted: int, expected: list[float]) -> None:
    truth = one_hot(of_class(ET, 5))
    assert soft_dice(one_hot(of_class(predicted, 5)), truth).tolist() == pytest.approx(expected)


def test_dice_of_probabilities_counts_them_as_shares_of_a_pixel() -> None:
    even = torch.full((1, N_CLASSES, 4, 5), 0.25)
    # 8 pixels of ED: WT has probability 3/4 everywhere, TC 1/2, ET 1/4, of 20 pixels.
    expected = [(2 * 8 * 0.75 + 1) / (15 + 8 + 1), 1 / (10 + 1), 1 / (5 + 1)]
    assert soft_dice(even, one_hot(of_class(ED, 8))).tolist() == pytest.approx(expected)


def test_dice_is_that_of_the_whole_batch_and_no_mean_of_its_slices() -> None:
    truth = one_hot(torch.cat([of_class(ET, 10), of_class(ET, 2)]))
    predicted = one_hot(torch.cat([of_class(ET, 10), of_class(0, 0)]))
    assert soft_dice(predicted, truth).tolist() == pytest.approx([(2 * 10 + 1) / (10 + 12 + 1)] * 3)


def test_dice_term_is_1_less_the_mean_of_the_regions() -> None:
    logits, classes = logits_and_classes()
    dice = soft_dice(logits.softmax(dim=1), one_hot(classes))
    assert float(loss_of(logits, classes, DICE)) == pytest.approx(1 - float(dice.mean()), rel=1e-6)  # float32


@pytest.mark.parametrize(("cross_entropy", "dice"), [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0)])
def test_terms_are_summed_by_their_weights(cross_entropy: float, dice: float) -> None:
    logits, classes = logits_and_classes()
    terms = cross_entropy * loss_of(logits, classes, CROSS_ENTROPY) + dice * loss_of(logits, classes, DICE)
    together = loss_of(logits, classes, LossSettings(cross_entropy=cross_entropy, dice=dice))
    assert float(together) == pytest.approx(float(terms), rel=1e-6)  # float32


def test_confident_and_right_prediction_loses_nothing() -> None:
    _, classes = logits_and_classes()
    # The other classes have probability exp(-100), which float32 does not tell from nothing beside 1.
    assert float(loss_of(100 * one_hot(classes), classes, LossSettings())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("settings", [CROSS_ENTROPY, DICE, LossSettings()], ids=["cross-entropy", "Dice", "both"])
@pytest.mark.parametrize("size", [0.0, 1e2, 1e4, 1e30])
def test_loss_and_gradient_are_finite_for_extreme_logits(settings: LossSettings, size: float) -> None:
    signs, classes = logits_and_classes()
    logits = (signs.sign() * size).requires_grad_()
    loss = loss_of(logits, classes, settings)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, classes = logits_and_classes()
    halved = logits.to(dtype)
    loss = loss_of(halved, classes, LossSettings())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(halved.float(), classes, LossSettings()))
