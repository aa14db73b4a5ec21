"""The steel system's ResUNet, a U-Net of residual blocks: pixels in, raw scores of pixels out."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.training.networks.beginnings import Normalise, start_as_he

LEVELS = 5  # resolutions from full to 1/16, the filters doubling at each


def normalised(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, and batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """A 1×1 and a 3×3 convolution, each normalised, beside a 1×1 shortcut: [N, inputs, h, w] → [N, outputs, h, w].

    The shortcut is a projection (option C of He et al. 2015, arXiv:1512.03385): every block changes the width.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.change = nn.Sequential(normalised(inputs, outputs, 1), relu, normalised(outputs, outputs, 3))
        self.shortcut = normalised(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.change(x) + self.shortcut(x))


class ResUNet(nn.Module):
    """float [N, C, H, W] → scores [N, K, H, W]; a sigmoid for each of steel's four defects, so K = 4 there.

    16, 32, 64, 128, 256 filters: 1,206,180 parameters with C = 3, K = 4; another 4,384 numbers are kept means
    and deviations, so that those who count both say 1,210,564. The biases in front of a batch normalisation
    change nothing and are kept for that count's sake.
    """

    side_step = 2 ** (LEVELS - 1)

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        filters = [width * 2**level for level in range(LEVELS)]
        self.normalise = Normalise(channels)
        relu = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(normalised(channels, width, 3), relu, normalised(width, width, 3), relu)
        self.levels = nn.ModuleList(ResidualBlock(few, many) for few, many in pairwise(filters))
        self.rises = nn.ModuleList(ResidualBlock(deep + fine, fine) for deep, fine in pairwise(filters[::-1]))
        self.decide = nn.Conv2d(width, classes, 1)
        start_as_he(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(self.normalise(x))
        finer = []
        for level in self.levels:
            finer.append(y)
            y = level(F.max_pool2d(y, 2))
        for rise, fine in zip(self.rises, finer[::-1], strict=True):
            y = rise(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), fine], 1))
        scores: Tensor = self.decide(y)
        return scores
