"""DR-Unet104, to be read top to bottom beside the paper.

Paper: Colman, Zhang, Duan, Ye, "DR-Unet104 for Multimodal MRI Brain Tumor Segmentation", BrainLes 2020, LNCS 12659,
arXiv 2011.02840. Code: jordan-colman/DR-Unet104, Dr_Unet104_model.py (TensorFlow, Apache-2.0), which this follows to the
last layer. The same network stands in weights/structure.py as a table, from which the rest of drunet derives what it needs:
whoever changes one changes the other.

Tensors are [N, C, X, Y]: X is the first axis of the axial slice as stored (the authors' image rows), Y the second.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from drunet_cli.brats import N_CLASSES
from drunet_cli.weights.structure import N_CHANNELS, PADDED_STAGE, STAGE_BLOCKS

_BN_MOMENTUM: Final = 0.01  # Keras' 0.99, counted from the other end


class InputBlock(nn.Module):
    """Residual block on the raw image: no normalisation before the first convolution, a 1x1 convolution as shortcut."""

    def __init__(self, width: int, bn_epsilon: float) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(N_CHANNELS, 4 * width, 1)
        self.conv1 = nn.Conv2d(N_CHANNELS, width, 1)
        self.norm1 = nn.BatchNorm2d(width, bn_epsilon, _BN_MOMENTUM)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width, bn_epsilon, _BN_MOMENTUM)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, X, Y] to [N, 4w, X, Y]."""
        y = self.conv1(x)
        y = self.conv2(functional.relu(self.norm1(y)))
        y = self.conv3(functional.relu(self.norm2(y)))
        return torch.add(self.shortcut(x), y)


class Bottleneck(nn.Module):
    """Pre-activation bottleneck (ResNetV2): 1x1, 3x3, 1x1 with four times the width at both ends.

    stride 2 halves the map on the first 1x1 convolution, and the shortcut becomes a 1x1 convolution of the raw input.
    """

    def __init__(self, channels: int, width: int, bn_epsilon: float, *, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, bn_epsilon, _BN_MOMENTUM)
        self.conv1 = nn.Conv2d(channels, width, 1, stride=stride)
        self.norm2 = nn.BatchNorm2d(width, bn_epsilon, _BN_MOMENTUM)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(width, bn_epsilon, _BN_MOMENTUM)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, X, Y] to [N, 4w, X / stride, Y / stride]."""
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        y = self.conv3(functional.relu(self.norm3(y)))
        return torch.add(self.shortcut(x), y)


class DecoderBlock(nn.Module):
    """Doubles the map, joins the encoder's, and mixes both in a pre-activation block of two 3x3 convolutions."""

    def __init__(self, channels: int, skip_channels: int, out_channels: int, bn_epsilon: float, *, crop: int = 0) -> None:
        super().__init__()
        joined = 2 * skip_channels
        self.crop = crop
        self.upsample = nn.ConvTranspose2d(channels, skip_channels, 3, stride=2)
        self.shortcut = nn.Conv2d(joined, out_channels, 1)
        self.norm1 = nn.BatchNorm2d(joined, bn_epsilon, _BN_MOMENTUM)
        self.conv1 = nn.Conv2d(joined, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels, bn_epsilon, _BN_MOMENTUM)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, channels, X/2, Y/2] and the skip [N, skip_channels, X, Y] to [N, out_channels, X - 2 crop, Y - 2 crop]."""
        # Keras "same" drops the last row and column; padding=1, output_padding=1 would drop the first and shift the image.
        x = self.upsample(x)[..., :-1, :-1]
        x = torch.cat([x, skip], dim=1)
        if self.crop:
            x = x[..., self.crop : -self.crop, self.crop : -self.crop]
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return torch.add(self.shortcut(x), y)


class DRUNet104(nn.Module):
    """104 = 93 convolutions in encoder and bridge, 10 in the decoder and the output layer; 16 more in shortcuts and upsampling.

    base_width: w of the first stage, 16 as published (76,516,708 numbers with batch-norm statistics).
    bn_epsilon: belongs to the weights; 1e-3 and 1e-5 give different labels.
    dropout: rate of the nine dropout layers while training; without effect in evaluation mode.
    """

    def __init__(self, base_width: int = 16, *, bn_epsilon: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_width, self.bn_epsilon = base_width, bn_epsilon
        widths = [base_width << stage for stage in range(len(STAGE_BLOCKS))]
        stages: list[nn.Module] = []
        for stage, (width, n_blocks) in enumerate(zip(widths, STAGE_BLOCKS, strict=True)):
            first: nn.Module = (
                Bottleneck(4 * widths[stage - 1], width, bn_epsilon, stride=2) if stage else InputBlock(width, bn_epsilon)
            )
            stages.append(nn.Sequential(first, *(Bottleneck(4 * width, width, bn_epsilon) for _ in range(n_blocks - 1))))
        self.encoder = nn.ModuleList(stages[:-1])
        self.bridge = stages[-1]

        decoder: list[nn.Module] = []
        channels = 4 * widths[-1]
        for stage in reversed(range(len(self.encoder))):
            # The skip of stage 4 comes padded (forward), so its level is cropped back to the grid of the others.
            crop = 1 if stage == PADDED_STAGE else 0
            decoder.append(DecoderBlock(channels, 4 * widths[stage], 2 * widths[stage], bn_epsilon, crop=crop))
            channels = 2 * widths[stage]
        self.decoder = nn.ModuleList(decoder)
        self.head_norm = nn.BatchNorm2d(channels, bn_epsilon, _BN_MOMENTUM)
        self.head = nn.Conv2d(channels, N_CLASSES, 1)
        self.dropout: nn.Module = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 4, X, Y] float in 0-1, channels FLAIR, T1ce, T1, T2, to logits [N, 4, X, Y].

        X and Y are multiples of 32 plus 16 (240 in the paper), because of the padding after stage 4.
        """
        skips = []
        for stage, blocks in enumerate(self.encoder):
            x = blocks(x)
            if stage > 0:
                x = self.dropout(x)
            if stage == PADDED_STAGE:
                x = functional.pad(x, (1, 1, 1, 1))  # 30 x 30 to 32 x 32, which can be halved twice more
            skips.append(x)
        x = self.dropout(self.bridge(x))
        for level, block in enumerate(self.decoder):
            x = block(x, skips.pop())
            if level < len(self.decoder) - 1:
                x = self.dropout(x)
        logits: Tensor = self.head(functional.relu(self.head_norm(x)))
        return logits
