"""The numbers that a network begins with, as Keras draws them (reference.md, Network)."""

import math
from typing import Final

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from drunet_cli.network.model import Bottleneck, DecoderBlock, DRUNet104, InputBlock
from drunet_cli.training.learner import new_network
from drunet_cli.training.recipe import RECIPES, NetworkSettings, RecipeName

PUBLISHED: Final = NetworkSettings(base_width=2, zero_residual=False)
BLOCKS: Final = (InputBlock, Bottleneck, DecoderBlock)
# Keras' VarianceScaling: a normal that is cut at two SD, widened until its SD is the wanted one again.
CUT_NORMAL: Final = stats.truncnorm(-2, 2)


@pytest.fixture(scope="module")
def published() -> DRUNet104:
    return new_network(PUBLISHED, seed=0)


@pytest.fixture(scope="module")
def zeroed() -> DRUNet104:
    return new_network(NetworkSettings(base_width=1, zero_residual=True), seed=0)


def he_kernels(network: DRUNet104) -> list[Tensor]:
    """Every kernel in units of its SD: the root of 2 over the numbers that flow into an output."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module is not network.head]
    return [layer.weight.detach() / math.sqrt(2 / (layer.in_channels * math.prod(layer.kernel_size))) for layer in layers]


def glorot_kernels(network: DRUNet104) -> list[Tensor]:
    """Every kernel in units of its bound: the root of 6 over the numbers that flow in and out."""
    layers = [*(module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)), network.head]
    return [
        layer.weight.detach() / math.sqrt(6 / ((layer.in_channels + layer.out_channels) * math.prod(layer.kernel_size)))
        for layer in layers
    ]


def pooled(kernels: list[Tensor]) -> Tensor:
    return torch.cat([kernel.flatten() for kernel in kernels])


def test_convolutions_are_he_normal(published: DRUNet104) -> None:
    numbers = pooled(he_kernels(published))
    assert len(numbers) == 848_320
    # The SD of so many is known to 0.08 % and the mean to 0.0011: five times that.
    assert float(numbers.std()) == pytest.approx(1, rel=0.004)
    assert float(numbers.mean()) == pytest.approx(0, abs=0.0055)


def test_convolutions_have_their_own_sd_each(published: DRUNet104) -> None:
    large = [kernel for kernel in he_kernels(published) if kernel.numel() > 10_000]
    assert len(large) == 16
    # Of ten thousand numbers to 0.7 %; five times that.
    assert [float(kernel.std()) for kernel in large] == pytest.approx([1.0] * len(large), rel=0.035)


def test_he_normal_is_cut_where_keras_cuts_it(published: DRUNet104) -> None:
    end = 2 / CUT_NORMAL.std()
    largest = float(pooled(he_kernels(published)).abs().max())
    assert largest <= end * (1 + 1e-6)  # float32
    assert largest > end * 0.999


def test_he_normal_has_the_shape_of_a_cut_normal(published: DRUNet104) -> None:
    numbers = pooled(he_kernels(published)) * float(CUT_NORMAL.std())
    # No share of them is off by more than 0.2 % but once in a thousand (Kolmogorov: 1.95 / root n).
    assert stats.kstest(numbers.numpy(), CUT_NORMAL.cdf).statistic < 1.95 / math.sqrt(len(numbers))


def test_transposed_and_output_layers_are_glorot_uniform(published: DRUNet104) -> None:
    kernels = glorot_kernels(published)
    numbers = pooled(kernels)
    assert len(kernels) == 6
    assert float(numbers.abs().max()) <= 1 + 1e-6  # float32
    assert stats.kstest(numbers.numpy(), stats.uniform(-1, 2).cdf).statistic < 1.95 / math.sqrt(len(numbers))  # as above


def test_every_glorot_layer_fills_its_own_bounds(published: DRUNet104) -> None:
    # The largest of 16 numbers is below half of the bound once in 65,536; the head of base width 2 has 16.
    assert min(float(kernel.abs().max()) for kernel in glorot_kernels(published)) > 0.5


@pytest.mark.parametrize("name", list(RecipeName))
def test_every_bias_begins_at_0(name: RecipeName) -> None:
    settings = RECIPES[name].network
    network = new_network(NetworkSettings(base_width=1, zero_residual=settings.zero_residual), seed=0)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert not any(layer.bias is None or layer.bias.any() for layer in layers)


def test_batch_norm_begins_as_identity_with_the_recipes_numbers() -> None:
    network = new_network(NetworkSettings(base_width=1, bn_epsilon=2e-4, bn_momentum=0.03), seed=0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(2e-4, 0.03)}
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert [float(tensor.detach().mean()) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [
            1,
            0,
            0,
            1,
        ]


def test_network_has_the_width_and_dropout_of_the_recipe() -> None:
    network = new_network(NetworkSettings(base_width=3, dropout=0.4), seed=0)
    assert isinstance(network.dropout, nn.Dropout)
    assert (network.base_width, network.bn_epsilon, network.dropout.p) == (3, 1e-5, 0.4)


def branches(network: DRUNet104) -> dict[str, bool]:
    """Whether each block's output equals its shortcut, in a pass of random images."""
    shortcuts: dict[nn.Module, Tensor] = {}
    equal: dict[str, bool] = {}

    def remember(module: nn.Module, _inputs: object, output: Tensor) -> None:
        shortcuts[module] = output.clone()

    for name, block in network.named_modules():
        if isinstance(block, BLOCKS):
            block.shortcut.register_forward_hook(remember)

            def compare(module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                assert isinstance(module, BLOCKS)
                equal[name] = torch.equal(output, shortcuts[module.shortcut])

            block.register_forward_hook(compare)
    with torch.no_grad():
        network.train()(torch.rand(2, 4, 48, 48, generator=torch.Generator().manual_seed(0)))
    return equal


def test_every_block_begins_as_its_shortcut_with_zero_residual(zeroed: DRUNet104) -> None:
    equal = branches(zeroed)
    assert len(equal) == 36  # reference.md: 2 + 3 + 3 + 5 + 14 + 4 in encoder and bridge, 5 in the decoder
    assert all(equal.values())


def test_no_block_begins_as_its_shortcut_without_zero_residual() -> None:
    assert not any(branches(new_network(NetworkSettings(base_width=1, zero_residual=False), seed=0)).values())


def test_zero_residual_zeroes_one_layer_a_block_and_no_other(zeroed: DRUNet104) -> None:
    layers = [module for module in zeroed.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(not layer.weight.any() for layer in layers) == 36


def test_zero_residual_lets_the_gradient_reach_what_it_zeroed(zeroed: DRUNet104) -> None:
    zeroed.train()(torch.rand(2, 4, 48, 48, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    for block in zeroed.modules():
        if isinstance(block, InputBlock | Bottleneck):
            assert block.conv3.weight.grad is not None
            assert block.conv3.weight.grad.any()


def test_same_seed_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    one = new_network(NetworkSettings(base_width=1), seed=5).state_dict()
    torch.rand(10)
    other = new_network(NetworkSettings(base_width=1), seed=5).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_another_seed_gives_other_kernels() -> None:
    one, other = (new_network(NetworkSettings(base_width=1, zero_residual=False), seed=seed) for seed in (0, 1))
    assert not torch.equal(one.head.weight, other.head.weight)
