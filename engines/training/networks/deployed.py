"""What stands around a network in an exported file: camera pixels in, the outputs of engines.base out.

Each takes uint8 [N, H, W, C], so that an engine is handed what the camera gave; K here is the number of the
recipe's classes, the good one or the background among them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SURE = 0.5  # a sigmoid from here on is a defect
LEVELS = 255.0  # of a confidence, whose 1 is the last


class Deployed(nn.Module):
    """A network asked with the camera's pixels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def scores(self, pixels: Tensor) -> Tensor:
        """uint8 [N, H, W, C] → the network's raw scores."""
        scores: Tensor = self.net(pixels.permute(0, 3, 1, 2).float())
        return scores


class DeployedClassifier(Deployed):
    """A network of K scores: → float32 [N, K], softmax."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scores(pixels).softmax(1)


class DeployedGate(Deployed):
    """A network of one score, that of a defect: → float32 [N, 2], P(good) = 1 − P(defect) first."""

    def forward(self, pixels: Tensor) -> Tensor:
        # 1 − sigmoid(s) = sigmoid(−s), which keeps a small chance of being good from being rounded to none.
        scores = self.scores(pixels)
        return torch.cat([-scores, scores], 1).sigmoid()


class DeployedSegmenter(Deployed):
    """A network of K scores per pixel: → uint8 [N, H, W] the class of the largest, and its softmax × 255."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        chance, label = self.scores(pixels).softmax(1).max(1)
        return label.to(torch.uint8), as_levels(chance)


class DeployedSigmoids(Deployed):
    """A network of K − 1 scores per pixel, one per defect class: → uint8 [N, H, W] labels and confidence.

    The label is the defect of the largest sigmoid where that is at least 0.5, else 0; its confidence is that
    sigmoid, or 1 − it for the background, × 255. So a confidence is never below 128.
    """

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        chance, defect = self.scores(pixels).sigmoid().max(1)
        found = chance >= SURE
        label = torch.where(found, defect + 1, torch.zeros_like(defect))
        return label.to(torch.uint8), as_levels(torch.where(found, chance, 1 - chance))


def as_levels(chance: Tensor) -> Tensor:
    """0 … 1 → uint8 0 … 255, rounded."""
    return (chance * LEVELS).round().to(torch.uint8)
