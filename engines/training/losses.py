"""What training minimises; it knows tensors only. Labels are class indexes, IGNORED pixels never count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.training.tiles import IGNORED

BALANCED_PART = 0.3  # small: weighing a few pixels like all the others invites false marks on good tiles


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, some of it balanced, plus soft Dice: float [N, K, H, W], int64 [N, H, W] → a scalar.

    Plain cross-entropy keeps good tiles clean, the balanced part gets small defects noticed at all, and Dice
    gets their extent right.
    """
    # One softmax serves all three: on a CPU these planes cost as much as a small network.
    log_chance = scores.log_softmax(1)
    each = F.nll_loss(log_chance, labels, ignore_index=IGNORED, reduction="none")
    plain = each.sum() / (labels != IGNORED).sum().clamp(min=1)
    return plain + BALANCED_PART * balanced_mean(each, labels) + soft_dice_loss(log_chance.exp(), labels)


def balanced_mean(each: Tensor, labels: Tensor) -> Tensor:
    """Mean of a loss per pixel, [N, h, w], in which all defect pixels weigh as much as all good ones."""
    parts = [labels == 0, (labels > 0) & (labels != IGNORED)]
    means = [(each * part).sum() / part.sum() for part in parts if part.any()]
    return torch.stack(means).mean() if means else each.sum() * 0


def soft_dice_loss(chance: Tensor, labels: Tensor) -> Tensor:
    """1 − mean over the defect classes present of 2 Σ p·t / (Σ p + Σ t), pooled over the batch.

    Milletari et al. 2016, arXiv:1606.04797, with p instead of p² below the line; `chance` is float
    [N, K, H, W] after softmax. 0 when no defect is there.
    """
    valid = (labels != IGNORED).unsqueeze(1)
    sums = (chance * valid).sum((0, 2, 3))
    parts = []
    for index in range(1, chance.shape[1]):
        where = labels == index
        if where.any():
            parts.append(2 * (chance[:, index] * where).sum() / (sums[index] + where.sum()))
    return 1 - torch.stack(parts).mean() if parts else chance.sum() * 0


def tile_loss(scores: Tensor, cells: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of tiles [N, K] against int64 [N], plus the balanced one of their cells [N, K, h, w].

    A little label smoothing keeps the scores from saturating, so that a threshold can still move.
    """
    truth = cell_labels(labels, labels.shape[1] // cells.shape[2])
    each = F.cross_entropy(cells, truth, ignore_index=IGNORED, reduction="none")
    return F.cross_entropy(scores, classes, label_smoothing=0.02) + balanced_mean(each, truth)


def cell_labels(labels: Tensor, side: int) -> Tensor:
    """int64 [N, H / side, W / side]: the highest class in each cell, IGNORED where nothing else is in it."""
    known = labels.masked_fill(labels == IGNORED, -1).unsqueeze(1).float()
    highest = F.max_pool2d(known, side).squeeze(1).long()
    return highest.masked_fill(highest < 0, IGNORED)
