"""What teaching a classifier or a segmenter means: net, loss and validation score; it touches no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from engines.training.augment import Variation
from engines.training.dataset import Picture
from engines.training.fit import BalancedDraw, Batch, Schedule, Task, as_batch, fit, half_precision
from engines.training.inherit import inherit_encoder
from engines.training.losses import pixel_loss, tile_loss
from engines.training.measure import Overlap, area_under_roc
from engines.training.nets import Classifier, Segmenter
from engines.training.tiles import AMBIGUOUS, Tile, TileShape, scaled, tiles_of


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out, beside the pictures."""

    shape: TileShape
    variation: Variation
    schedule: Schedule
    width: int = 16  # channels of the stem; the cost grows with its square
    stem_stride: int = 2
    good_share: float = 0.5  # of the tiles drawn
    encoder_from: Path | None = None  # classifier.onnx whose encoder a segmenter starts from


def teach_classifier(
    classes: tuple[str, ...], training: list[Picture], validation: list[Picture], plan: Plan, console: Console
) -> tuple[nn.Module, float]:
    """A classifier and its validation score: area under the ROC of P(defect), less 1 % of the loss."""
    torch.manual_seed(plan.schedule.seed)
    net = Classifier(len(classes), plan.width, plan.stem_stride)
    draw = _prepare(net, training, plan)
    batches = _validation_batches(validation, plan)

    def loss_of(batch: Batch) -> torch.Tensor:
        scores, cells = net.with_cells(batch.pixels)
        return tile_loss(scores.float(), cells.float(), batch.classes, batch.labels)

    def score_of() -> float:
        scores = torch.cat([_answer(net, batch, plan) for batch in batches])
        truth = torch.cat([batch.classes for batch in batches])
        loss = nn.functional.cross_entropy(scores, truth).item()
        return area_under_roc(truth > 0, 1 - scores.softmax(1)[:, 0]) - 0.01 * loss

    return net, fit(net, Task(draw, loss_of, score_of), plan.schedule, console)


def teach_segmenter(
    classes: tuple[str, ...], training: list[Picture], validation: list[Picture], plan: Plan, console: Console
) -> tuple[nn.Module, float]:
    """A segmenter and its validation score: the mean of pooled Dice and of the classes' mean Dice."""
    torch.manual_seed(plan.schedule.seed)
    net = Segmenter(len(classes), plan.width, plan.stem_stride)
    draw = _prepare(net, training, plan)
    if plan.encoder_from:
        tiles = as_batch(draw.tiles(32, np.random.default_rng(plan.schedule.seed)))
        inherit_encoder(net.encoder, plan.encoder_from, net.normalise(tiles.pixels))
    batches = _validation_batches(validation, plan)

    def loss_of(batch: Batch) -> torch.Tensor:
        return pixel_loss(net(batch.pixels).float(), batch.labels)

    def score_of() -> float:
        overlap = Overlap(len(classes))
        for batch in batches:
            labels = _answer(net, batch, plan).argmax(1).to(torch.uint8)
            overlap.add(labels.numpy(), batch.labels.to(torch.uint8).numpy())
        return (overlap.pooled_dice() + overlap.mean_dice()) / 2

    return net, fit(net, Task(draw, loss_of, score_of), plan.schedule, console)


def _answer(net: nn.Module, batch: Batch, plan: Plan) -> torch.Tensor:
    with half_precision(plan.schedule.half):
        answer: torch.Tensor = net(batch.pixels)
    return answer.float()


def _prepare(net: nn.Module, training: list[Picture], plan: Plan) -> BalancedDraw:
    """Tell the network the mean and deviation of the training pictures; returns what to draw from."""
    pictures = [scaled(picture, plan.shape.scale) for picture in training]
    values = np.concatenate([picture.pixels.ravel()[::17] for picture in pictures])
    net.normalise.mean.fill_(float(values.mean()))
    net.normalise.deviation.fill_(max(1.0, float(values.std())))
    return BalancedDraw(pictures, plan.shape, plan.variation, plan.good_share)


def _validation_batches(validation: list[Picture], plan: Plan) -> list[Batch]:
    tiles: list[Tile] = []
    for picture in validation:
        if not picture.unmarked:
            tiles += tiles_of(scaled(picture, plan.shape.scale), plan.shape)
    clear = [tile for tile in tiles if tile.class_index != AMBIGUOUS]
    size = plan.schedule.batch
    return [as_batch(clear[start : start + size]) for start in range(0, len(clear), size)]
