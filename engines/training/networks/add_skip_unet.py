"""The low-contrast system's U-Net, whose skips are added and not put beside: pixels in, raw scores of pixels out.

Adding halves the inputs of the first convolution of each level on the way up, where a U-Net spends most.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from engines.training.networks.beginnings import Normalise, start_as_he

LEVELS = 5  # resolutions from full to 1/16, the filters doubling at each
DROPPED = 0.5  # of the features of the two deepest levels, while training


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions with ReLU; the size is kept."""
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


class AddingRise(nn.Module):
    """One step up: pixels repeated, convolved 2×2, added to the finer features, convolved twice."""

    def __init__(self, deep: int, fine: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(deep, fine, 2)
        self.refine = twice(fine, fine)

    def forward(self, deep: Tensor, fine: Tensor) -> Tensor:
        large = F.interpolate(deep, scale_factor=2.0, mode="nearest")
        # A kernel of even side cannot be centred: it reaches one pixel to the right and down.
        narrow = F.relu(self.narrow(F.pad(large, (0, 1, 0, 1))))
        refined: Tensor = self.refine(fine + narrow)
        return refined


class AddSkipUNet(nn.Module):
    """float [N, C, H, W] → scores [N, K, H, W]; 6,976,161 parameters with C = 1, K = 1 and 32 … 512 filters."""

    side_step = 2 ** (LEVELS - 1)

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        filters = [width * 2**level for level in range(LEVELS)]
        self.normalise = Normalise(channels)
        self.levels = nn.ModuleList(twice(few, many) for few, many in pairwise([channels, *filters]))
        self.rises = nn.ModuleList(AddingRise(deep, fine) for deep, fine in pairwise(filters[::-1]))
        self.drop = nn.Dropout(DROPPED)
        self.decide = nn.Conv2d(width, classes, 1)
        start_as_he(self)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.levels[0](self.normalise(x))]
        for depth, level in enumerate(self.levels[1:], 1):
            y = level(F.max_pool2d(features[-1], 2))
            features.append(self.drop(y) if depth >= LEVELS - 2 else y)
        y = features.pop()
        for rise, fine in zip(self.rises, features[::-1], strict=True):
            y = rise(y, fine)
        scores: Tensor = self.decide(y)
        return scores
