"""Losses of pixels by the names that presets and `--loss` use; what each of them is stands in `region_losses`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engines.datasets.labelled import DatasetError
from engines.training.region_losses import (
    Activation,
    CrossEntropyThenDice,
    cross_entropy,
    dice_loss,
    focal_loss,
    focal_tversky_loss,
    jaccard_loss,
    tversky_loss,
)

# (scores, labels, activation, progress 0 … 1, weights of the defect classes or None) → a scalar
PixelLoss = Callable[[Tensor, Tensor, Activation, float, Tensor | None], Tensor]
PIXEL_LOSSES: dict[str, PixelLoss] = {
    "bce": lambda scores, labels, activation, progress, weights: cross_entropy(scores, labels, activation),
    "dice": lambda scores, labels, activation, progress, weights: dice_loss(scores, labels, activation, weights),
    "bce-then-dice": lambda scores, labels, activation, progress, weights: CrossEntropyThenDice()(
        scores, labels, activation, progress
    ),
    "jaccard": lambda scores, labels, activation, progress, weights: jaccard_loss(scores, labels, activation, weights),
    "tversky": lambda scores, labels, activation, progress, weights: tversky_loss(
        scores, labels, activation, weights=weights
    ),
    "focal": lambda scores, labels, activation, progress, weights: focal_loss(scores, labels, activation),
    "focal-tversky": lambda scores, labels, activation, progress, weights: focal_tversky_loss(
        scores, labels, activation, weights=weights
    ),
}


def find_loss(name: str) -> PixelLoss:
    """A loss by name; raises DatasetError that lists them."""
    if name not in PIXEL_LOSSES:
        raise DatasetError(f"no loss {name!r}; there are: {', '.join(PIXEL_LOSSES)}")
    return PIXEL_LOSSES[name]
