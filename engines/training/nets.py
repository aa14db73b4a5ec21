"""The two networks; they turn grey values into raw scores and know nothing of files or training.

Both are chains of residual 3×3 blocks (He et al. 2016, arXiv:1512.03385), each at half the resolution of the
one before. The stem may step by 4 at once: about three times as fast, and enough where no defect is one pixel.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DARK = 8.0  # grey levels added before a ratio is taken: below, noise is larger than texture


class Normalise(nn.Module):
    """Grey values [N, 1, H, W] → two channels [N, 2, H, W]: the value, and its ratio to what surrounds it.

    The ratio, as a logarithm, does not change with exposure or smooth shading (the idea of Retinex: Land and
    McCann 1971); the value keeps what a large dark area is. Mean and deviation of the training pictures'
    values are kept beside the weights.
    """

    def __init__(self, mean: float = 128.0, deviation: float = 64.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("deviation", torch.tensor(float(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        around = F.avg_pool2d(x, 16)
        around = F.avg_pool2d(around, 3, stride=1, padding=1, count_include_pad=False)
        around = F.interpolate(around, scale_factor=16.0, mode="bilinear", align_corners=False)
        ratio = torch.log((x + DARK) / (around + DARK))
        return torch.cat([(x - self.mean) / self.deviation, 4 * ratio], 1)


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + two convolutions of x; shape stays [N, channels, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.change = nn.Sequential(convolution(channels, channels), second, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.change(x))


class Encoder(nn.Module):
    """Features at 1, 1/2, 1/4 and 1/8 of the stem's resolution."""

    def __init__(self, width: int, stem_stride: int) -> None:
        super().__init__()
        self.channels = (width, 2 * width, 3 * width, 5 * width)
        self.stem = convolution(2, width, kernel=2 * stem_stride - 1, stride=stem_stride)
        steps = pairwise(self.channels)
        self.steps = nn.ModuleList(
            nn.Sequential(convolution(few, many, stride=2), Residual(many)) for few, many in steps
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for step in self.steps:
            features.append(step(features[-1]))
        return features


class Classifier(nn.Module):
    """What is on a tile: float [N, 1, H, W] grey values 0 … 255 → float [N, K] scores before softmax.

    Defects are a few pixels of a tile, so the mean of the features is joined by their maximum, and by the
    maximum of a map of cells that is taught by the masks (mixed supervision: Božič et al. 2021,
    arXiv:2104.06064).
    """

    def __init__(self, classes: int, width: int = 16, stem_stride: int = 2) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.encoder = Encoder(width, stem_stride)
        _, _, fine, coarse = self.encoder.channels
        self.context = nn.Conv2d(coarse, fine, 1)
        self.cells = nn.Conv2d(fine, classes, 1)
        self.dropout = nn.Dropout(0.2)
        self.decide = nn.Linear(2 * coarse + classes, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_cells(x)[0]

    def with_cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tile scores [N, K] and cell scores [N, K, h, w] at a quarter of the stem's resolution."""
        _, _, fine, coarse = self.encoder(self.normalise(x))
        above = F.interpolate(self.context(coarse), scale_factor=2.0, mode="nearest")
        cells = self.cells(F.relu(fine + above))
        pooled = [coarse.mean((2, 3)), coarse.amax((2, 3)), cells.amax((2, 3))]
        return self.decide(self.dropout(torch.cat(pooled, 1))), cells


class Segmenter(nn.Module):
    """What each pixel is: float [N, 1, H, W] grey values 0 … 255 → float [N, K, H, W] before softmax.

    An encoder and a way back that adds the finer features at each step (feature pyramid: Lin et al. 2017,
    arXiv:1612.03144). The last step from the stem's resolution to full pixels is a pixel shuffle (Shi et al.
    2016, arXiv:1609.05158): most of a U-Net's time would go into its full-resolution layers. H and W must be
    multiples of 8 × `stem_stride`.
    """

    def __init__(self, classes: int, width: int = 16, stem_stride: int = 2) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem_stride = stem_stride
        self.encoder = Encoder(width, stem_stride)
        channels = self.encoder.channels
        self.deepest = Residual(channels[-1])
        steps = list(pairwise(channels))[::-1]
        self.narrow = nn.ModuleList(nn.Conv2d(many, few, 1) for few, many in steps)
        self.refine = nn.ModuleList(convolution(few, few) for few, _ in steps)
        self.decide = nn.Conv2d(channels[0], classes * stem_stride**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        *finer, deepest = self.encoder(self.normalise(x))
        y = self.deepest(deepest)
        for narrow, refine, skipped in zip(self.narrow, self.refine, finer[::-1], strict=True):
            y = refine(F.interpolate(narrow(y), scale_factor=2.0, mode="nearest") + skipped)
        return F.pixel_shuffle(self.decide(y), self.stem_stride)


def parameter_count(net: nn.Module) -> int:
    """Numbers that training can change."""
    return sum(weights.numel() for weights in net.parameters() if weights.requires_grad)
