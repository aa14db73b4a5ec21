"""The losses of the field's systems, by pixel and by region, from raw scores; it knows tensors and no network.

Every loss takes float scores [N, K, H, W] and int64 labels [N, H, W], class indexes with 0 the background, and
gives a scalar; IGNORED pixels count nowhere. `activation` says what the scores are:

    softmax   K classes, the background among them; pixels compete
    sigmoid   K defect classes; plane k answers for label k + 1, and a pixel may be none

Region losses compare areas. They are taken of each defect class over the whole batch (one small defect alone in
its picture would make that picture's loss jump), then averaged over the classes; the background has no say. Below,
p is the probability and t the truth, 0 or 1, of a pixel; TP = Σ p·t, missed = Σ (1 − p)·t, false = Σ p·(1 − t).
`smooth` (s) is added above and below the line: for a class that is not there the loss then asks that nothing be
marked, instead of dividing nothing by nothing. It must be above 0. `weights` of regions are float [defect classes].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.datasets.labelled import IGNORED

Activation = Literal["softmax", "sigmoid"]
SMOOTH = 1.0  # px
LEAST = 1e-6  # below, (1 − index)^γ of γ < 1 is so steep that its slope is no number any more


@dataclass(frozen=True)
class Regions:
    """Sums over the batch, float [defect classes]."""

    both: Tensor  # TP
    marked: Tensor  # Σ p
    true: Tensor  # Σ t
    marked_squared: Tensor  # Σ p²

    @property
    def missed(self) -> Tensor:
        """Σ (1 − p)·t"""
        return self.true - self.both

    @property
    def false(self) -> Tensor:
        """Σ p·(1 − t)"""
        return self.marked - self.both


def regions(scores: Tensor, labels: Tensor, activation: Activation) -> Regions:
    """What all region losses are made of."""
    # In half precision the sum over a batch's pixels would overflow.
    scores = scores.float()
    chance = scores.softmax(1)[:, 1:] if activation == "softmax" else scores.sigmoid()
    truth = defect_planes(labels, chance.shape[1])
    chance = chance * known(labels)
    where = (0, 2, 3)
    return Regions((chance * truth).sum(where), chance.sum(where), truth.sum(where), (chance**2).sum(where))


def defect_planes(labels: Tensor, defects: int) -> Tensor:
    """int64 [N, H, W] → float [N, defects, H, W]: 1 where the label is plane + 1; IGNORED is none of them."""
    indexes = torch.arange(1, defects + 1, device=labels.device).view(1, -1, 1, 1)
    return (labels.unsqueeze(1) == indexes).float()


def known(labels: Tensor) -> Tensor:
    """bool [N, 1, H, W]: pixels that count."""
    return (labels != IGNORED).unsqueeze(1)


def dice_loss(
    scores: Tensor, labels: Tensor, activation: Activation, weights: Tensor | None = None, smooth: float = SMOOTH
) -> Tensor:
    """1 − (2·TP + s) / (Σ p + Σ t + s), the soft Dice with plain sums that the field's systems use."""
    sums = regions(scores, labels, activation)
    return mean_of((sums.marked + sums.true - 2 * sums.both) / (sums.marked + sums.true + smooth), weights)


def squared_dice_loss(
    scores: Tensor, labels: Tensor, activation: Activation, weights: Tensor | None = None, smooth: float = SMOOTH
) -> Tensor:
    """1 − (2·TP + s) / (Σ p² + Σ t + s), as Milletari et al. 2016, arXiv:1606.04797, wrote it (t² = t)."""
    sums = regions(scores, labels, activation)
    below = sums.marked_squared + sums.true + smooth
    return mean_of(1 - (2 * sums.both + smooth) / below, weights)


def jaccard_loss(
    scores: Tensor, labels: Tensor, activation: Activation, weights: Tensor | None = None, smooth: float = SMOOTH
) -> Tensor:
    """1 − (TP + s) / (TP + missed + false + s): one minus the soft intersection over union."""
    return tversky_loss(scores, labels, activation, 1.0, 1.0, weights, smooth)


def tversky_loss(
    scores: Tensor,
    labels: Tensor,
    activation: Activation,
    alpha: float = 0.7,
    beta: float = 0.3,
    weights: Tensor | None = None,
    smooth: float = SMOOTH,
) -> Tensor:
    """1 − (TP + s) / (TP + α·missed + β·false + s); with α above β a missed pixel costs more than a false one.

    Salehi et al. 2017, arXiv:1706.05721, have the letters the other way round: their β weighs what is missed.
    α and β are here as in Abraham & Khan 2018. α = β = ½ is Dice, α = β = 1 is intersection over union.
    """
    return mean_of(tversky_shortfall(regions(scores, labels, activation), alpha, beta, smooth), weights)


def focal_tversky_loss(
    scores: Tensor,
    labels: Tensor,
    activation: Activation,
    alpha: float = 0.7,
    gamma: float = 0.75,
    weights: Tensor | None = None,
    smooth: float = SMOOTH,
) -> Tensor:
    """(1 − TI)^γ with TI the Tversky index of α and β = 1 − α, averaged over the classes.

    Abraham & Khan 2018, arXiv:1810.07842, write (1 − TI)^(1/γ) and add the classes up; their γ = 4/3 is our
    0.75. An exponent below 1 makes a class that is nearly right matter more than a plain mean would.
    """
    shortfall = tversky_shortfall(regions(scores, labels, activation), alpha, 1 - alpha, smooth)
    return mean_of(shortfall.clamp(min=LEAST) ** gamma, weights)


def tversky_shortfall(sums: Regions, alpha: float, beta: float, smooth: float) -> Tensor:
    """1 − Tversky index of each class, float [classes]; `alpha` weighs what is missed, `beta` what is false."""
    errors = alpha * sums.missed + beta * sums.false
    return errors / (sums.both + errors + smooth)


def mean_of(each: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the classes, float [classes] → scalar, weighted where there are weights."""
    return each.mean() if weights is None else (each * weights).sum() / weights.sum()


def cross_entropy(scores: Tensor, labels: Tensor, activation: Activation, weights: Tensor | None = None) -> Tensor:
    """Mean of −log(probability of the truth) over the pixels; with sigmoids over pixels and planes (BCE).

    `weights`: with a softmax [K], each pixel counts as its label's weight; with sigmoids [K], each plane as its
    defect's. The mean is the weighted one.
    """
    return focal_loss(scores, labels, activation, 0.0, None, weights)


def focal_loss(
    scores: Tensor,
    labels: Tensor,
    activation: Activation,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean of −α_t · (1 − p_t)^γ · log p_t, p_t being the probability of the truth.

    Lin et al. 2017, arXiv:1708.02002: what is already sure hardly counts. α_t is `alpha` where a defect is and
    1 − `alpha` where none is; None leaves it out. The paper divides by the number of objects, which pixels have
    not: here it is the mean over the pixels that count (and planes). `weights` as in cross_entropy.
    """
    scores = scores.float()
    if activation == "softmax":
        log_truth = log_chance_of_label(scores, labels)
        defect = (labels > 0).unsqueeze(1)
        counts = known(labels) * of_label(weights, labels)
    else:
        defect = defect_planes(labels, scores.shape[1]) > 0
        log_truth = torch.where(defect, F.logsigmoid(scores), F.logsigmoid(-scores))
        planes = torch.ones_like(scores) if weights is None else weights.view(1, -1, 1, 1).expand_as(scores)
        counts = known(labels) * planes
    # Where p_t is 1 to the last digit, a power of γ < 1 has no slope.
    fade = (-torch.expm1(log_truth)).clamp(min=LEAST) ** gamma if gamma else 1.0
    share = torch.where(defect, alpha, 1 - alpha) if alpha is not None else 1.0
    return -(share * fade * log_truth * counts).sum() / counts.sum().clamp(min=LEAST)


def log_chance_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """log softmax of each pixel's own label, float [N, 1, H, W]; at IGNORED ones that of the background."""
    index = labels.masked_fill(labels == IGNORED, 0).unsqueeze(1)
    return scores.log_softmax(1).gather(1, index)


def of_label(weights: Tensor | None, labels: Tensor) -> Tensor:
    """Each pixel's weight by its label, float [N, 1, H, W]; 1 without weights."""
    if weights is None:
        return torch.ones_like(labels, dtype=torch.float32).unsqueeze(1)
    return weights[labels.masked_fill(labels == IGNORED, 0)].unsqueeze(1)


@dataclass(frozen=True)
class CrossEntropyThenDice:
    """Cross-entropy first, Dice last: the one finds where to look, the other then fits the outline.

    Between `start` and `end`, parts 0 … 1 of the training, one fades into the other; at the same point they change
    over at once. Dice alone from the beginning often stays at marking nothing.
    """

    start: float = 0.5
    end: float = 0.5

    def dice_share(self, progress: float) -> float:
        """How much of the loss is Dice, 0 … 1."""
        if progress < self.start:
            return 0.0
        return 1.0 if progress >= self.end else (progress - self.start) / (self.end - self.start)

    def __call__(self, scores: Tensor, labels: Tensor, activation: Activation, progress: float) -> Tensor:
        """`progress` is the part of the training that is done, 0 … 1."""
        share = self.dice_share(progress)
        if share in (0.0, 1.0):
            return (dice_loss if share else cross_entropy)(scores, labels, activation)
        entropy, dice = cross_entropy(scores, labels, activation), dice_loss(scores, labels, activation)
        return (1 - share) * entropy + share * dice
