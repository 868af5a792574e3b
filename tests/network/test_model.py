"""The network against the paper's numbers."""

import pytest
import torch
from torch import nn

from drunet_cli.network.model import DRUNet104


@pytest.fixture(scope="module")
def published() -> DRUNet104:
    with torch.device("meta"):
        return DRUNet104(bn_epsilon=1e-3)


def test_base_width_16_has_the_published_count_of_numbers(published: DRUNet104) -> None:
    # Counted in the published Keras model: 76,431,716 trainable, 76,516,708 with batch-norm statistics.
    assert sum(parameter.numel() for parameter in published.parameters()) == 76_431_716
    state = published.state_dict()
    assert sum(tensor.numel() for key, tensor in state.items() if "num_batches" not in key) == 76_516_708


def test_it_has_104_layers_besides_shortcuts_and_upsampling(published: DRUNet104) -> None:
    convolutions = [name for name, module in published.named_modules() if isinstance(module, nn.Conv2d)]
    assert len([name for name in convolutions if not name.endswith("shortcut")]) == 104
    assert len([name for name in convolutions if name.endswith("shortcut")]) == 11
    assert sum(isinstance(module, nn.ConvTranspose2d) for module in published.modules()) == 5
    assert sum(isinstance(module, nn.BatchNorm2d) for module in published.modules()) == 103


@pytest.mark.parametrize("size", [(240, 240), (144, 176), (16, 48)])
def test_sizes_of_multiples_of_32_plus_16_keep_their_shape(size: tuple[int, int]) -> None:
    model = DRUNet104(1, bn_epsilon=1e-3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 4, *size)).shape == (2, 4, *size)


def test_dropout_follows_every_stage_but_the_first_and_every_decoder_level_but_the_last() -> None:
    model = DRUNet104(1, bn_epsilon=1e-3, dropout=0.5)
    calls: list[torch.Size] = []
    model.dropout.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].shape[1:]))
    model(torch.rand(2, 4, 240, 240))
    # [channels, X, Y] at base width 1: four stages, the bridge, four decoder levels.
    encoder = [(8, 120, 120), (16, 60, 60), (32, 30, 30), (64, 16, 16), (128, 8, 8)]
    decoder = [(32, 16, 16), (16, 30, 30), (8, 60, 60), (4, 120, 120)]
    assert [tuple(shape) for shape in calls] == encoder + decoder


def test_epsilon_reaches_every_batch_norm() -> None:
    model = DRUNet104(1, bn_epsilon=1e-5)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
