"""MobileNet v1 and v2: a picture in, raw scores of its class out; made for 224 × 224 px, any other size will do.

Both spend on a look around per channel (depthwise 3×3) and a mixing of channels (1×1) what a full convolution
would spend at once, and end in global average pooling and one dense layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from engines.training.networks.beginnings import Normalise, start_as_he

# Howard et al. 2017, arXiv:1704.04861, table 1: channels and stride of each pair of depthwise and 1×1 layers
V1_PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# Sandler et al. 2018, arXiv:1801.04381, table 2: expansion, channels, repeats, stride
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM = 32  # channels
V2_LAST = 1280  # channels; a smaller width leaves them as they are
DROPPED = 0.2  # of the pooled features, while training


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def rounded(channels: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of what was asked for.

    >>> rounded(12), rounded(8.4), rounded(3.2)
    (16, 8, 8)
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class Pooled(nn.Module):
    """Normalised picture → features → their mean → scores [N, K]."""

    side_step = 1

    def __init__(self, channels: int, classes: int, features: nn.Sequential, width: int) -> None:
        super().__init__()
        self.normalise = Normalise(channels)
        self.features = features
        self.drop = nn.Dropout(DROPPED)
        self.decide = nn.Linear(width, classes)
        start_as_he(self)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(self.normalise(x)).mean((2, 3))
        scores: Tensor = self.decide(self.drop(pooled))
        return scores


class MobileNetV1(Pooled):
    """float [N, C, H, W] → scores [N, K]; 4,231,976 parameters with C = 3, K = 1000 and `width` 1."""

    def __init__(self, channels: int, classes: int, width: float = 1.0) -> None:
        previous = rounded(STEM * width)
        layers = [convolution(channels, previous, 3, 2)]
        for outputs, stride in V1_PAIRS:
            wanted = rounded(outputs * width)
            layers += [convolution(previous, previous, 3, stride, previous), convolution(previous, wanted)]
            previous = wanted
        super().__init__(channels, classes, nn.Sequential(*layers), previous)


class InvertedResidual(nn.Module):
    """Widen, look around per channel, narrow without ReLU; added to its input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [convolution(inputs, wide)] if expansion > 1 else []
        look = convolution(wide, wide, 3, stride, wide)
        narrow = nn.Conv2d(wide, outputs, 1, bias=False)
        self.change = nn.Sequential(*widen, look, narrow, nn.BatchNorm2d(outputs))
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.change(x)
        return x + y if self.keeps else y


class MobileNetV2(Pooled):
    """float [N, C, H, W] → scores [N, K]; 3,504,872 parameters with C = 3, K = 1000 and `width` 1."""

    def __init__(self, channels: int, classes: int, width: float = 1.0) -> None:
        previous = rounded(STEM * width)
        layers: list[nn.Module] = [convolution(channels, previous, 3, 2)]
        for expansion, outputs, repeats, first_stride in V2_STAGES:
            wanted = rounded(outputs * width)
            for stride in [first_stride, *[1] * (repeats - 1)]:
                layers.append(InvertedResidual(previous, wanted, stride, expansion))
                previous = wanted
        last = rounded(V2_LAST * max(1.0, width))
        layers.append(convolution(previous, last))
        super().__init__(channels, classes, nn.Sequential(*layers), last)
