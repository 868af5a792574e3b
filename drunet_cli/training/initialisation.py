"""The numbers that a network begins with."""

import math
from typing import Final

import torch
from torch import nn

from drunet_cli.network.model import Bottleneck, DecoderBlock, DRUNet104, InputBlock
from drunet_cli.training.recipe import NetworkSettings

# Keras draws "he_normal" from a normal that is cut at two SD, and widens it so that the SD is that of the name.
_CUT_AT_SD: Final = 2.0
_SD_OF_CUT_NORMAL: Final = 0.87962566103423978


def new_network(settings: NetworkSettings, *, seed: int) -> DRUNet104:
    """DR-Unet104 on the CPU as training begins it: He-normal kernels, Glorot-uniform in transposed and output layer, no bias.

    With zero_residual the last convolution of every residual branch is 0, so that each block begins as its shortcut.
    Source: the published code's Keras initialisers (reference.md).
    """
    torch.manual_seed(seed)
    network = DRUNet104(settings.base_width, bn_epsilon=settings.bn_epsilon, dropout=settings.dropout)
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d) or module is network.head:
            _glorot_uniform(module)
        elif isinstance(module, nn.Conv2d):
            _he_normal(module)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = settings.bn_momentum
    if settings.zero_residual:
        for module in network.modules():
            if isinstance(module, InputBlock | Bottleneck):
                nn.init.zeros_(module.conv3.weight)
            elif isinstance(module, DecoderBlock):
                nn.init.zeros_(module.conv2.weight)
    return network


def _he_normal(layer: nn.Conv2d) -> None:
    sd = math.sqrt(2 / layer.weight[0].numel()) / _SD_OF_CUT_NORMAL
    nn.init.trunc_normal_(layer.weight, std=sd, a=-_CUT_AT_SD * sd, b=_CUT_AT_SD * sd)
    _zero_bias(layer)


def _glorot_uniform(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)


def _zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
