"""How good a network is while it is being taught, in one number for pixels and one for pictures; nothing is kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.datasets.labelled import IGNORED


class PixelCounts:
    """Pixels per class, pooled over batches: in both, predicted, true; IGNORED ones never count."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.pairs = torch.zeros(classes * classes, dtype=torch.int64)  # true × predicted

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Two integer tensors of one shape."""
        known = labels != IGNORED
        pairs = labels[known].long() * self.classes + predicted[known].long()
        self.pairs += torch.bincount(pairs, minlength=self.classes**2)

    def score(self) -> float:
        """Mean of the Dice of defect against good, and of the Dice of each class that is truly there; 0 … 1.

        1 where there is no defect and none is predicted.
        """
        table = self.pairs.reshape(self.classes, self.classes).double()
        both, true, predicted = table[1:, 1:].sum(), table[1:].sum(), table[:, 1:].sum()
        if not true:
            return float(not predicted)
        there = table.sum(1)[1:] > 0
        dice = 2 * table.diagonal()[1:] / (table.sum(0) + table.sum(1))[1:].clamp(min=1)
        return float((2 * both / (true + predicted) + dice[there].mean()) / 2)


def area_under_roc(defective: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that a defective item scores above a good one, ties half (Mann and Whitney 1947); 0 … 1.

    NaN when one of the two kinds is missing.
    """
    truth, values = np.asarray(defective, bool), np.asarray(scores, float)
    bad, good = values[truth], np.sort(values[~truth])
    if not bad.size or not good.size:
        return float("nan")
    below, up_to = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float((below + up_to).sum() / (2 * bad.size * good.size))
