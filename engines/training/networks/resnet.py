"""ResNet-50, the steel system's gate: a picture in, raw scores of its class out; 256 × 256 px there.

He et al. 2015, arXiv:1512.03385, table 1. A block that halves the resolution does so in its 3×3 convolution and
not in its first 1×1, which would look at a quarter of the pixels only.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from engines.training.networks.beginnings import Normalise, start_as_he

REPEATS = (3, 4, 6, 3)  # blocks at 1/4, 1/8, 1/16 and 1/32 of the resolution
EXPANSION = 4  # a block's channels over its narrow middle


def normalised(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Narrow 1×1, look around 3×3, widen 1×1, added to the input or its projection; ReLU between and after."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * middle
        self.narrow = normalised(inputs, middle, 1)
        self.look = normalised(middle, middle, 3, stride)
        self.widen = normalised(middle, outputs, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else normalised(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.look(F.relu(self.narrow(x))))
        return F.relu(self.widen(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """float [N, C, H, W] → scores [N, K]; 25,557,032 parameters with C = 3, K = 1000 and `width` 64."""

    side_step = 1

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.normalise = Normalise(channels)
        self.stem = normalised(channels, width, 7, 2)
        blocks, previous = [], width
        for stage, repeats in enumerate(REPEATS):
            middle = width * 2**stage
            for block in range(repeats):
                blocks.append(Bottleneck(previous, middle, 2 if stage and not block else 1))
                previous = EXPANSION * middle
        self.blocks = nn.Sequential(*blocks)
        self.decide = nn.Linear(previous, classes)
        start_as_he(self)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.stem(self.normalise(x))), 3, stride=2, padding=1)
        scores: Tensor = self.decide(self.blocks(y).mean((2, 3)))
        return scores
