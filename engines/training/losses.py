"""What teaching our pair minimises; it knows tensors only. Labels are class indexes, IGNORED pixels never count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.datasets.labelled import IGNORED

BALANCED_PART = 0.3  # small: weighing a few pixels like all the others invites false marks on good tiles
CELL_PART = 0.5
SMOOTHING = 0.05  # keeps scores from saturating, so that a threshold can still move


def pair_loss(tile: Tensor, cells: Tensor, pixels: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """A scalar of scores [N, K], [N, K, h, w] and [N, K, H, W] against labels int64 [N, H, W] and classes [N]."""
    judged = F.cross_entropy(tile, classes, label_smoothing=SMOOTHING)
    return pixel_loss(pixels, labels) + judged + CELL_PART * cell_loss(cells, labels)


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, some of it over defects only, plus soft Dice: float [N, K, H, W], int64 [N, H, W] → a scalar.

    Plain cross-entropy keeps good tiles clean, the second part gets small defects noticed at all, and Dice gets
    their extent right. The last two are means over tiles, not over pixels: a defect counts as one, however small.
    """
    log_chance = scores.log_softmax(1)
    each = F.nll_loss(log_chance, labels, ignore_index=IGNORED, reduction="none")
    plain = each.sum() / (labels != IGNORED).sum().clamp(min=1)
    defective = ((labels > 0) & (labels != IGNORED)).flatten(1).any(1)
    if not defective.any():
        return plain
    part = defect_mean(each[defective], labels[defective])
    return plain + BALANCED_PART * part + tile_dice_loss(log_chance[defective].exp(), labels[defective])


def defect_mean(each: Tensor, labels: Tensor) -> Tensor:
    """Mean over tiles of a loss [N, H, W] over their defective pixels; every tile must have one."""
    where = ((labels > 0) & (labels != IGNORED)).float()
    return ((each * where).sum((1, 2)) / where.sum((1, 2))).mean()


def tile_dice_loss(chance: Tensor, labels: Tensor) -> Tensor:
    """1 − soft Dice, mean over tiles, half for defect against good and half for each tile's commonest class.

    Soft Dice is (2 Σ p·t + 1) / (Σ p + Σ t + 1) over the known pixels of a tile (Milletari et al. 2016,
    arXiv:1606.04797, with p instead of p² below the line); `chance` is float [N, K, H, W] after softmax.
    """
    known = (labels != IGNORED).float()
    wanted = commonest_defect(labels)
    own = chance.gather(1, wanted[:, None, None, None].expand(-1, 1, *labels.shape[1:])).squeeze(1)
    pairs = (
        ((1 - chance[:, 0]) * known, ((labels > 0) & (labels != IGNORED)).float()),
        (own * known, (labels == wanted[:, None, None]).float()),
    )
    dice = [(2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1) for p, t in pairs]
    return 1 - torch.stack(dice).mean()


def commonest_defect(labels: Tensor) -> Tensor:
    """int64 [N]: the class with most pixels among the defects of each tile; 0 where there is none."""
    flat = labels.flatten(1)
    counted = F.one_hot(flat.masked_fill(flat == IGNORED, 0)).sum(1)
    counted[:, 0] = 0
    return counted.argmax(1)


def cell_loss(cells: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [N, K, h, w] in which all defective cells weigh as much as all good ones."""
    truth = cell_labels(labels, labels.shape[1] // cells.shape[2])
    each = F.cross_entropy(cells, truth, ignore_index=IGNORED, reduction="none")
    return balanced_mean(each, truth)


def balanced_mean(each: Tensor, labels: Tensor) -> Tensor:
    """Mean of a loss per pixel, [N, h, w], in which all defect pixels weigh as much as all good ones."""
    parts = [labels == 0, (labels > 0) & (labels != IGNORED)]
    means = [(each * part).sum() / part.sum() for part in parts if part.any()]
    return torch.stack(means).mean() if means else each.sum() * 0


def cell_labels(labels: Tensor, side: int) -> Tensor:
    """int64 [N, H / side, W / side]: the highest class in each cell, IGNORED where nothing else is in it."""
    known = labels.masked_fill(labels == IGNORED, -1).unsqueeze(1).float()
    highest = F.max_pool2d(known, side).squeeze(1).long()
    return highest.masked_fill(highest < 0, IGNORED)
