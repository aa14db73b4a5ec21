"""How much each class weighs in a loss, from how often it occurs; it knows counts only.

Weights have a mean of 1 over the classes that occur; one that does not occur weighs 0. For losses of sigmoids,
which have no background, leave the first weight out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.datasets.labelled import IGNORED

TINY = 1e-300  # without a single label all weights are 0, and not 0 / 0


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """How many of each class, int64 [classes], in integer labels of any shape; IGNORED ones are left out."""
    return torch.bincount(labels[labels != IGNORED].long().flatten(), minlength=classes)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Weights 1 / n, float32 [classes]: all classes together weigh the same, however rare."""
    return of_mean_one(1 / counts.double(), counts)


def effective_number(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Weights (1 − β) / (1 − β^n), float32 [classes]; 0 < β < 1.

    Cui et al. 2019, arXiv:1901.05555: the n-th example of a class adds less than the first. β towards 0 weighs
    all alike, towards 1 as inverse_frequency does; classes of far more than 1 / (1 − β) examples weigh the same,
    so count pictures or defects here rather than pixels, or choose β = 1 − 1 / all.
    """
    rate = torch.log(torch.tensor(beta, dtype=torch.float64))
    return of_mean_one((1 - beta) / -torch.expm1(counts.double() * rate.to(counts.device)), counts)


def of_mean_one(raw: Tensor, counts: Tensor) -> Tensor:
    """Scale weights so; what a class without examples has is thrown away."""
    present = counts > 0
    raw = torch.where(present, raw, 0.0)
    return (raw * present.sum() / raw.sum().clamp(min=TINY)).float()
