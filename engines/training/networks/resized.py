"""A network that sees its tile at another size: the tile is shrunk, or stretched, inside the graph."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Resized(nn.Module):
    """[N, C, H, W] → what `net` says of it at `size` (height, width) px.

    Whole px are averaged first and what is left is interpolated, so that nothing falls between the samples.
    """

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        whole = [max(1, int(side) // wanted) for side, wanted in zip(x.shape[2:], self.size, strict=True)]
        if max(whole) > 1:
            x = F.avg_pool2d(x, whole)
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        answer: Tensor = self.net(x)
        return answer
