"""A step: network, optimiser and average; the loss; and the network with which a training begins."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from drunet_cli.brats import N_CLASSES
from drunet_cli.network.engine import Precision
from drunet_cli.network.model import Bottleneck, DRUNet104, InputBlock
from drunet_cli.training.batches import BatchPlan, SliceWindow
from drunet_cli.training.learner import Learner, learning_rate, loss_of, new_network, soft_dice
from drunet_cli.training.recipe import (
    RECIPES,
    AugmentationSettings,
    Decay,
    LossSettings,
    NetworkSettings,
    OptimiserSettings,
    Recipe,
    RecipeName,
    changed,
)
from tests.training.shallow import SHALLOW, stage_blocks

CPU: Final = torch.device("cpu")
N_STEPS: Final = 100
NO_AUGMENTATION: Final = dict.fromkeys((item.name for item in fields(AugmentationSettings)), 0.0)
RECIPE: Final = changed(
    RECIPES[RecipeName.MODERN],
    {"network": {"base_width": 1}, "batches": {"size": 4}, "optimiser": {"warmup": 0.0, "decay": "constant"}},
    where="",
)
NCR, ED, ET = 1, 2, 3

# The learning rate

PEAK: Final = 2e-3
RATES: Final = OptimiserSettings(learning_rate=PEAK, warmup=0.1, decay=Decay.COSINE)


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    rates = [learning_rate(RATES, step=step, n_steps=N_STEPS) for step in range(N_STEPS)]
    assert rates[:10] == pytest.approx([PEAK * step / 11 for step in range(1, 11)])
    assert rates[10] == max(rates) == PEAK
    assert rates[10:] == pytest.approx([PEAK * (1 + math.cos(math.pi * step / 90)) / 2 for step in range(90)])
    assert all(before > after > 0 for before, after in pairwise(rates[10:]))


def test_constant_learning_rate_stays_and_without_warm_up_begins_at_its_height() -> None:
    constant = replace(RATES, decay=Decay.CONSTANT)
    assert {learning_rate(constant, step=step, n_steps=N_STEPS) for step in range(10, N_STEPS)} == {PEAK}
    assert learning_rate(replace(RATES, warmup=0.0), step=0, n_steps=N_STEPS) == PEAK
    for n_steps, warmup in ((1, 0.1), (2, 1.0), (3, 1.0)):  # few steps: none is lost at a rate of 0
        rates = [learning_rate(replace(RATES, warmup=warmup), step=step, n_steps=n_steps) for step in range(n_steps)]
        assert all(0 < rate <= PEAK for rate in rates)


# The step


def learner(recipe: Recipe = RECIPE, *, part: slice = slice(None), **options: Any) -> Learner:
    """A learner of a shallow network."""
    options = {"n_steps": N_STEPS, **options}
    with stage_blocks(SHALLOW):
        return Learner(new_network(recipe.network, seed=recipe.seed), recipe, device=CPU, part=part, **options)


def with_changes(**sections: dict[str, Any]) -> Recipe:
    return changed(RECIPE, sections, where="")


def plan(step: int, shape: tuple[int, int] = (16, 16)) -> BatchPlan:
    return BatchPlan(step, shape, (SliceWindow(case=0, z=0, x=0, y=0, flip_x=False, flip_y=False),) * 4)


def batch(shape: tuple[int, int] = (16, 16)) -> Tensor:
    """[4, X, Y, 5]: classes that can be told from the brightness."""
    rng = np.random.default_rng(0)
    classes = np.zeros((4, *shape), dtype=np.uint8)
    classes[:, 4:12, 4:10] = rng.integers(1, 4, (4, 1, 1))
    grey = 60 + 50 * classes[..., np.newaxis] + rng.integers(0, 20, (4, *shape, 4), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([grey, classes[..., np.newaxis]], axis=-1))


def parameters(of: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.network.named_parameters()}


def numbers(of: Learner) -> dict[str, Tensor]:
    """Parameters and batch-norm statistics."""
    return {name: tensor.clone() for name, tensor in of.network.state_dict().items() if tensor.is_floating_point()}


def test_step_changes_every_kernel_and_leaves_no_gradient_behind() -> None:
    one = learner(with_changes(network={"zero_residual": False}))  # else what is behind a zero has no gradient yet
    before = parameters(one)
    loss = one.step(batch(), plan(0))
    after = parameters(one)
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), torch.float32, False)
    kernels = [name for name, tensor in before.items() if tensor.ndim == 4]
    assert not [name for name in (*kernels, "head.bias", "head_norm.weight") if torch.equal(before[name], after[name])]
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in one.network.parameters())


def test_steps_on_one_batch_lower_its_loss() -> None:
    one = learner(with_changes(augmentation=NO_AUGMENTATION, optimiser={"learning_rate": 0.03}))
    losses = [float(one.step(batch((48, 48)), plan(step, (48, 48)))) for step in range(10)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_same_steps_give_equal_bytes_and_each_step_and_seed_draws_its_own() -> None:
    ends = []
    for n_other_draws in (0, 5):
        one = learner(with_changes(network={"dropout": 0.3}))
        torch.rand(n_other_draws)
        for step in range(2):
            one.step(batch(), plan(step))
        ends.append(numbers(one))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    for changes in (
        {"network": {"dropout": 0.0}, "augmentation": {"noise": 0.0}},
        {"network": {"dropout": 0.5}, "augmentation": NO_AUGMENTATION},
    ):
        losses = set()
        for seed, step in ((0, 0), (0, 1), (1, 0)):
            one = learner(with_changes(**changes))
            one.recipe = replace(one.recipe, seed=seed)  # the same network
            losses.add(float(one.step(batch(), plan(step))))
        assert len(losses) == 3


@pytest.mark.parametrize(("name", "kind"), [(RecipeName.PAPER, torch.optim.Adam), (RecipeName.MODERN, torch.optim.AdamW)])
def test_optimiser_is_that_of_the_recipe_with_its_numbers(name: RecipeName, kind: type) -> None:
    recipe = changed(RECIPES[name], {"network": {"base_width": 1}, "optimiser": {"warmup": 0.1, "decay": "cosine"}}, where="")
    one, settings = learner(recipe), recipe.optimiser
    one.step(batch(), plan(3))
    assert type(one.optimiser) is kind
    rate = learning_rate(settings, step=3, n_steps=N_STEPS)
    for group in one.optimiser.param_groups:
        found = group["lr"], group["betas"], group["eps"]
        assert found == (rate, (settings.beta1, settings.beta2), settings.epsilon)


def test_weight_decay_shrinks_kernels_alone() -> None:
    decaying, plain = (learner(with_changes(optimiser={"weight_decay": decay})) for decay in (0.5, 0.0))
    before = parameters(plain)
    for one in (decaying, plain):
        one.step(batch(), plan(0))
    shrunk = RECIPE.optimiser.learning_rate * 0.5  # decoupled (AdamW): by that share, whatever the gradient
    after = parameters(decaying)
    for name, parameter in parameters(plain).items():
        expected = parameter - shrunk * before[name] * (parameter.ndim == 4)
        assert torch.allclose(after[name], expected, rtol=1e-5, atol=1e-7), name  # float32


def gradient_norm(clip_norm: float) -> float:
    """Norm of the gradient as the optimiser sees it in the first step."""
    one, norms = learner(with_changes(optimiser={"clip_norm": clip_norm})), []

    def measure(*_: object) -> None:
        gradients = [parameter.grad for parameter in one.network.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    one.optimiser.register_step_pre_hook(measure)
    one.step(batch(), plan(0))
    return norms[0]


def test_gradient_is_clipped_to_its_norm_where_it_is_longer() -> None:
    free = gradient_norm(0.0)
    assert free > 0.1
    # The norm may exceed by the rounding of float32, and falls short by the 1e-6 that torch adds where it divides.
    assert gradient_norm(0.1) == pytest.approx(0.1, rel=1e-4)
    assert gradient_norm(2 * free) == free


# The rule of the average's start: (n + 1) / (n + 10) after n steps, until that exceeds the recipe's decay.
@pytest.mark.parametrize(("step", "decay"), [(0, 1 / 10), (5, 6 / 15), (10_000, 0.99)])
def test_average_follows_closely_at_first_and_by_its_decay_later(step: int, decay: float) -> None:
    one = learner(with_changes(average={"decay": 0.99}), n_steps=20_000)
    before = numbers(one)
    assert one.averages.keys() == before.keys()
    assert all(torch.equal(average, before[name]) for name, average in one.averages.items())
    one.step(batch(), plan(step))
    after = numbers(one)
    for name, average in one.averages.items():
        expected = decay * before[name] + (1 - decay) * after[name]
        assert torch.allclose(average, expected, rtol=1e-5, atol=1e-6), name  # float32


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_with_one_number_that_is_none_are_not_finite(value: float) -> None:
    one = learner()
    assert one.is_finite()
    with torch.no_grad():
        one.network.head.bias[2] = value
    assert not one.is_finite()


def test_bfloat16_gives_the_loss_of_float32_roughly_and_keeps_the_weights_in_float32() -> None:
    learners = [learner(precision=precision) for precision in (Precision.FLOAT32, Precision.BFLOAT16)]
    losses = [float(one.step(batch((48, 48)), plan(0, (48, 48)))) for one in learners]
    # bfloat16 has 8 bits, and errors of some hundred layers add up; computed in float32 the losses would be equal.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    assert {parameter.dtype for parameter in learners[1].network.parameters()} == {torch.float32}


def test_narrow_networks_alone_keep_the_usual_order_of_memory() -> None:
    orders = [learner(with_changes(network={"base_width": width})).memory_format for width in (1, 4)]
    assert orders == [torch.contiguous_format, torch.channels_last]


def test_parts_of_a_batch_are_varied_as_in_the_whole() -> None:
    """Two processes learn from what one learns from; except for batch-norm statistics, which each takes of its own part."""
    seen: list[Tensor] = []
    for part in (slice(0, 4), slice(0, 2), slice(2, 4)):
        one = learner(with_changes(augmentation={"noise": 0.0}), part=part)
        one.forward.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
        one.step(batch()[part], plan(0))
    assert torch.equal(torch.cat(seen[1:]), seen[0])


# The loss

CROSS_ENTROPY: Final = LossSettings(cross_entropy=1, dice=0)
DICE: Final = LossSettings(cross_entropy=0, dice=1)


def logits_and_classes() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(3, N_CLASSES, 6, 5, generator=random) * 3, torch.randint(0, N_CLASSES, (3, 6, 5), generator=random)


def one_hot(classes: Tensor) -> Tensor:
    return functional.one_hot(classes, N_CLASSES).movedim(-1, 1).float()


def pixels_of_class(index: int, n_pixels: int) -> Tensor:
    """Classes [1, 4, 5] of which the first pixels are of a class and the others background."""
    classes = torch.zeros(20, dtype=torch.int64)
    classes[:n_pixels] = index
    return classes.reshape(1, 4, 5)


def test_cross_entropy_and_its_gradient_are_those_of_torch() -> None:
    logits, classes = logits_and_classes()
    logits.requires_grad_()
    ours, torchs = loss_of(logits, classes, CROSS_ENTROPY), functional.cross_entropy(logits, classes)
    assert float(ours.detach()) == pytest.approx(float(torchs.detach()), rel=1e-6)  # sums of 90 float32 terms in another order
    gradient, expected = (torch.autograd.grad(loss, logits)[0] for loss in (ours, torchs))
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)  # float32, of numbers around 0.01


# predicted and true (class, pixels) of each slice -> Dice of WT = NCR + ED + ET, TC = NCR + ET, ET; one smoothing pixel.
DICES: Final[dict[str, tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]], Sequence[float]]]] = {
    "right": ([(ET, 6)], [(ET, 6)], [1, 1, 1]),
    "right that there is none": ([(0, 0)], [(0, 0)], [1, 1, 1]),
    "nothing found": ([(0, 0)], [(ET, 6)], [1 / 7] * 3),
    "nothing there": ([(ET, 6)], [(0, 0)], [1 / 7] * 3),
    "ET as NCR": ([(NCR, 5)], [(ET, 5)], [1, 1, 1 / 6]),
    "ET as ED": ([(ED, 5)], [(ET, 5)], [1, 1 / 6, 1 / 6]),
    "over the batch, no mean of slices": ([(ET, 10), (0, 0)], [(ET, 10), (ET, 2)], [21 / 23] * 3),
}


@pytest.mark.parametrize(("predicted", "truth", "dice"), DICES.values(), ids=DICES)
def test_dice_counts_the_regions_of_brats_over_the_batch(
    predicted: Sequence[tuple[int, int]], truth: Sequence[tuple[int, int]], dice: Sequence[float]
) -> None:
    one, other = (one_hot(torch.cat([pixels_of_class(*each) for each in side])) for side in (predicted, truth))
    assert soft_dice(one, other).tolist() == pytest.approx(list(dice))


def test_dice_of_probabilities_counts_them_as_shares_of_a_pixel() -> None:
    even = torch.full((1, N_CLASSES, 4, 5), 0.25)
    # 8 pixels of ED: WT has probability 3/4 everywhere, TC 1/2, ET 1/4, of 20 pixels.
    expected = [(2 * 8 * 0.75 + 1) / (15 + 8 + 1), 1 / (10 + 1), 1 / (5 + 1)]
    assert soft_dice(even, one_hot(pixels_of_class(ED, 8))).tolist() == pytest.approx(expected)


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    logits, classes = logits_and_classes()
    dice = 1 - float(soft_dice(logits.softmax(dim=1), one_hot(classes)).mean())
    cross_entropy = float(loss_of(logits, classes, CROSS_ENTROPY))
    assert float(loss_of(logits, classes, DICE)) == pytest.approx(dice, rel=1e-6)  # float32
    together = float(loss_of(logits, classes, LossSettings(cross_entropy=0.5, dice=2.0)))
    assert together == pytest.approx(0.5 * cross_entropy + 2 * dice, rel=1e-6)
    # The other classes have probability exp(-100), which float32 does not tell from nothing beside 1.
    assert float(loss_of(100 * one_hot(classes), classes, LossSettings())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("settings", [CROSS_ENTROPY, DICE], ids=["cross-entropy", "Dice"])
@pytest.mark.parametrize("size", [0.0, 1e4, 1e30])
def test_loss_and_gradient_are_finite_for_extreme_logits(settings: LossSettings, size: float) -> None:
    signs, classes = logits_and_classes()
    logits = (signs.sign() * size).requires_grad_()
    loss = loss_of(logits, classes, settings)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (bool(loss.isfinite()), bool(gradient.isfinite().all())) == (True, True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, classes = logits_and_classes()
    loss = loss_of(logits.to(dtype), classes, LossSettings())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(logits.to(dtype).float(), classes, LossSettings()))


# The network with which a training begins, as Keras draws it

# Keras' VarianceScaling: a normal that is cut at two SD, widened until its SD is the wanted one again.
CUT_NORMAL: Final = stats.truncnorm(-2, 2)


@pytest.fixture(scope="module")
def published() -> DRUNet104:
    return new_network(NetworkSettings(base_width=2, zero_residual=False), seed=0)


@pytest.fixture(scope="module")
def zeroed() -> DRUNet104:
    return new_network(NetworkSettings(base_width=1, zero_residual=True), seed=0)


def test_convolutions_are_he_normal(published: DRUNet104) -> None:
    layers = [module for module in published.modules() if isinstance(module, nn.Conv2d) and module is not published.head]
    # In units of the SD of He: the root of 2 over the numbers that flow into an output.
    kernels = [layer.weight.detach() / math.sqrt(2 / (layer.in_channels * math.prod(layer.kernel_size))) for layer in layers]
    pooled = torch.cat([kernel.flatten() for kernel in kernels])
    assert len(pooled) == 848_320
    # The SD of so many is known to 0.08 % and the mean to 0.0011, the SD of ten thousand to 0.7 %: five times that.
    assert float(pooled.std()) == pytest.approx(1, rel=0.004)
    assert float(pooled.mean()) == pytest.approx(0, abs=0.0055)
    large = [float(kernel.std()) for kernel in kernels if kernel.numel() > 10_000]
    assert large == pytest.approx([1.0] * 16, rel=0.035)
    end = 2 / CUT_NORMAL.std()
    assert end * 0.999 < float(pooled.abs().max()) <= end * (1 + 1e-6)  # float32
    # No share of the numbers is off by more than 0.2 % but once in a thousand (Kolmogorov: 1.95 / root n).
    found = stats.kstest((pooled * float(CUT_NORMAL.std())).numpy(), CUT_NORMAL.cdf).statistic
    assert found < 1.95 / math.sqrt(len(pooled))


def test_transposed_and_output_layers_are_glorot_uniform(published: DRUNet104) -> None:
    layers = [*(module for module in published.modules() if isinstance(module, nn.ConvTranspose2d)), published.head]
    kernels = [
        layer.weight.detach() / math.sqrt(6 / ((layer.in_channels + layer.out_channels) * math.prod(layer.kernel_size)))
        for layer in layers
    ]
    pooled = torch.cat([kernel.flatten() for kernel in kernels])
    assert len(kernels) == 6
    assert float(pooled.abs().max()) <= 1 + 1e-6  # float32
    assert stats.kstest(pooled.numpy(), stats.uniform(-1, 2).cdf).statistic < 1.95 / math.sqrt(len(pooled))
    # The largest of 16 numbers is below half of the bound once in 65,536; the head of base width 2 has 16.
    assert min(float(kernel.abs().max()) for kernel in kernels) > 0.5


def test_biases_begin_at_0_and_batch_norm_as_identity_with_the_numbers_of_the_recipe() -> None:
    settings = NetworkSettings(base_width=3, bn_epsilon=2e-4, bn_momentum=0.03, dropout=0.4)
    network = new_network(settings, seed=0)
    assert isinstance(network.dropout, nn.Dropout)
    assert (network.base_width, network.bn_epsilon, network.dropout.p) == (3, 2e-4, 0.4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            assert (module.eps, module.momentum) == (2e-4, 0.03)
            assert [set(tensor.tolist()) for tensor in tensors] == [{1}, {0}, {0}, {1}]


def test_zero_residual_zeroes_one_layer_a_block_which_still_gets_a_gradient(zeroed: DRUNet104) -> None:
    layers = [module for module in zeroed.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(not layer.weight.any() for layer in layers) == 36
    zeroed.train()(torch.rand(2, 4, 48, 48, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    for block in zeroed.modules():
        if isinstance(block, InputBlock | Bottleneck):
            assert block.conv3.weight.grad is not None
            assert block.conv3.weight.grad.any()


def test_seed_alone_draws_the_network() -> None:
    one = new_network(NetworkSettings(base_width=1), seed=5).state_dict()
    torch.rand(10)
    same, other = (new_network(NetworkSettings(base_width=1), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["head.weight"], other["head.weight"])
