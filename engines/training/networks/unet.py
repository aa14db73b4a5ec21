"""The U-Net, as published and as the LCD system made it small: pixels in, raw scores of pixels out.

Ronneberger et al. 2015, arXiv:1505.04597, with convolutions that keep the size, so that every pixel is answered.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.training.networks.beginnings import Normalise, start_as_he

LEVELS = 5  # resolutions from full to 1/16, the filters doubling at each


def convolutions(inputs: int, outputs: int, count: int, batch_norm: bool) -> nn.Sequential:
    """`count` times a 3×3 convolution with ReLU; the size is kept."""
    layers: list[nn.Module] = []
    for previous in [inputs, *[outputs] * (count - 1)]:
        layers.append(nn.Conv2d(previous, outputs, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Rise(nn.Module):
    """One step up: the deep features doubled in size, the finer ones put beside them, both convolved."""

    def __init__(self, deep: int, fine: int, learned: bool, batch_norm: bool) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(deep, fine, 2, stride=2) if learned else None
        beside = 2 * fine if learned else deep + fine
        self.convolve = convolutions(beside, fine, 2 if learned else 1, batch_norm)

    def forward(self, deep: Tensor, fine: Tensor) -> Tensor:
        large = self.enlarge(deep) if self.enlarge else F.interpolate(deep, scale_factor=2.0, mode="nearest")
        merged: Tensor = self.convolve(torch.cat([large, fine], 1))
        return merged


class UNet(nn.Module):
    """float [N, C, H, W] → scores [N, K, H, W]; `width` filters at full resolution, 16 × `width` at 1/16.

    With a `learned_rise` each step up is a transposed convolution 2×2 and two convolutions; without, it repeats
    pixels and convolves once. Of width 64 this is the published one: 31,031,745 parameters with C = 3, K = 1.
    """

    side_step = 2 ** (LEVELS - 1)

    def __init__(
        self, channels: int, classes: int, width: int = 64, learned_rise: bool = True, batch_norm: bool = False
    ) -> None:
        super().__init__()
        filters = [width * 2**level for level in range(LEVELS)]
        self.normalise = Normalise(channels)
        steps = pairwise([channels, *filters])
        self.levels = nn.ModuleList(convolutions(few, many, 2, batch_norm) for few, many in steps)
        self.rises = nn.ModuleList(Rise(deep, fine, learned_rise, batch_norm) for deep, fine in pairwise(filters[::-1]))
        self.decide = nn.Conv2d(width, classes, 1)
        start_as_he(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.levels[0](self.normalise(x))
        finer = []
        for level in self.levels[1:]:
            finer.append(y)
            y = level(F.max_pool2d(y, 2))
        for rise, fine in zip(self.rises, finer[::-1], strict=True):
            y = rise(y, fine)
        scores: Tensor = self.decide(y)
        return scores


class LcdUNet(UNet):
    """The LCD system's U-Net: 16, 32, 64, 128, 256 filters; 1,766,257 parameters with C = 1, K = 1.

    Its count of ≈ 1.76 M decides what its way up is: pixels repeated and one convolution per level come to
    1.766 M, a transposed convolution with one to 1.745 M, with two to 1.941 M. It has no batch normalisation;
    with it (1,768,721 parameters) it learns sooner and, once exported, costs nothing more.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, batch_norm: bool = False) -> None:
        super().__init__(channels, classes, width, learned_rise=False, batch_norm=batch_norm)
