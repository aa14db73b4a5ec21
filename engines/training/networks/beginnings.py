"""Where every network begins: grey values of one scale in, weights of one scale; it knows no network's shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x − mean) / deviation per channel: float [N, C, H, W], grey values 0 … 255, shape kept.

    Both are buffers [C, 1, 1] beside the weights, so that an exported file carries what its training pictures
    were like; training fills them in.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, mean: float = 128.0, deviation: float = 64.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), mean))
        self.register_buffer("deviation", torch.full((channels, 1, 1), deviation))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def start_as_he(net: nn.Module) -> None:
    """Draw every convolution's weights so that values keep their size from layer to layer; biases become 0.

    He et al. 2015, arXiv:1502.01852: variance 2 / inputs in front of a ReLU. A 2 × 2 transposed convolution of
    stride 2 sums over its input channels only and has no ReLU behind it: variance 1 / channels.
    """
    for layer in net.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, layer.in_channels**-0.5)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
