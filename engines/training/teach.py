"""What teaching a lesson means: its network, loss and validation score, then the networks to export; no file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from engines.datasets.agreement import Agreement
from engines.datasets.labelled import IGNORED, DatasetError, Picture, Pixels
from engines.training.augment import Variation
from engines.training.class_weights import effective_number
from engines.training.draw import BalancedDraw, Batch, as_batch
from engines.training.fit import State, Task, fit
from engines.training.kept_weights import Blueprint, blueprint_of, build, check_sides, deployed
from engines.training.loss_names import find_loss
from engines.training.losses import pair_loss
from engines.training.networks.inline import Inline
from engines.training.networks.resized import Resized
from engines.training.presets import Lesson
from engines.training.tiles import AMBIGUOUS, Tile, TileShape, scaled, tiles_of
from engines.training.validation_scores import area_under_roc, pixel_score

MOST_VALIDATION_TILES = 400  # more would cost more time than they tell


@dataclass(frozen=True, eq=False)
class Class:
    """What is taught and to whom: the pictures (at full resolution) and how they are shown."""

    classes: tuple[str, ...]
    training: list[Picture]
    validation: list[Picture]
    shape: TileShape
    variation: Variation
    channels: int
    template: bool = False
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Taught:
    """What came out, and how the training went."""

    blueprint: Blueprint
    net: nn.Module
    state: State


def teach(lesson: Lesson, lecture: Class, checkpoint: Path, console: Console) -> Taught:
    """Teach one lesson, going on from its checkpoint if there is one. Raises DatasetError."""
    if lesson.gate:
        lecture = replace(
            lecture,
            classes=(lecture.classes[0], "defective"),
            training=[_gated(picture) for picture in lecture.training],
            validation=[_gated(picture) for picture in lecture.validation],
        )
    if lesson.whole:
        whole = (lecture.shape.height, lecture.shape.width)
        lecture = replace(lecture, shape=replace(lecture.shape, crop=whole))
    torch.manual_seed(lesson.schedule.seed)
    blueprint = blueprint_of(lesson, lecture.classes, lecture.channels, lecture.template)
    net = build(blueprint)
    for sides in ((lecture.shape.height, lecture.shape.width), lecture.shape.crop):
        check_sides(net, sides)
    task = TASKS[lesson.role](lesson, lecture, net)
    return Taught(blueprint, net, fit(net, task, lesson.schedule, checkpoint, console))


def _gated(picture: Picture) -> Picture:
    labels = np.where((picture.labels > 0) & (picture.labels != IGNORED), np.uint8(1), picture.labels)
    return replace(picture, labels=labels, class_index=min(1, picture.class_index))


def _pair_task(lesson: Lesson, lecture: Class, net: nn.Module) -> Task:
    assert isinstance(net, Inline)

    def loss_of(net: nn.Module, batch: Batch, progress: float) -> Tensor:
        tile, cells, pixels = (each.float() for each in net(batch.pixels))
        return pair_loss(tile, cells, pixels, batch.labels, batch.classes)

    def score_of(net: nn.Module) -> float:
        agreement, truth, scores = Agreement(len(lecture.classes)), [], []
        for batch in map(as_batch, looks):
            tile, _, pixels = net(batch.to(lecture.device).pixels)
            agreement.add(_labels(pixels.argmax(1)), _labels(batch.labels))
            truth.append(batch.classes > 0)
            scores.append(1 - tile.softmax(1)[:, 0].cpu())
        return (pixel_score(agreement) + _separation(truth, scores)) / 2

    looks = _looks(lesson, lecture)
    taught = frozenset(f"encoder.{name}" for name, _ in net.encoder.named_parameters())
    return Task(_draw(lesson, lecture, marked=False), loss_of, score_of, taught, lecture.device)


def _classifier_task(lesson: Lesson, lecture: Class, net: nn.Module) -> Task:
    _tell(net, lecture)

    def loss_of(net: nn.Module, batch: Batch, progress: float) -> Tensor:
        return nn.functional.cross_entropy(net(batch.pixels).float(), batch.classes)

    def score_of(net: nn.Module) -> float:
        """Mean recall of the classes, and a little of the loss, which still moves where the recall does not."""
        answers = [
            (net(batch.to(lecture.device).pixels).float().cpu(), batch.classes) for batch in map(as_batch, looks)
        ]
        scores, truth = (torch.cat(each) for each in zip(*answers, strict=True))
        right = scores.argmax(1) == truth
        recall = torch.stack([right[truth == index].float().mean() for index in truth.unique()]).mean()
        return float(recall) - 0.01 * float(nn.functional.cross_entropy(scores, truth))

    looks = _looks(lesson, lecture)
    return Task(_draw(lesson, lecture, marked=False), loss_of, score_of, device=lecture.device)


def _segmenter_task(lesson: Lesson, lecture: Class, net: nn.Module) -> Task:
    _tell(net, lecture)
    loss, weights = find_loss(lesson.loss), _weights(lecture) if lesson.weigh else None
    blueprint = blueprint_of(lesson, lecture.classes, lecture.channels, lecture.template)

    def loss_of(net: nn.Module, batch: Batch, progress: float) -> Tensor:
        return loss(net(batch.pixels).float(), batch.labels, lesson.activation, progress, weights)

    def score_of(net: nn.Module) -> float:
        agreement, run = Agreement(len(lecture.classes)), deployed(blueprint, net)["segmenter"]
        for batch in map(as_batch, looks):
            pixels = batch.pixels.to(lecture.device).permute(0, 2, 3, 1).to(torch.uint8)
            agreement.add(_labels(run(pixels)[0]), _labels(batch.labels))
        return pixel_score(agreement)

    looks = _looks(lesson, lecture)
    return Task(_draw(lesson, lecture, marked=True), loss_of, score_of, device=lecture.device)


TASKS = {"pair": _pair_task, "classifier": _classifier_task, "segmenter": _segmenter_task}


def _tell(net: nn.Module, lecture: Class) -> None:
    """Tell the network the mean and deviation of the training pictures."""
    inner = net.net if isinstance(net, Resized) else net
    values = np.concatenate([picture.pixels.ravel()[::97] for picture in lecture.training])
    inner.normalise.mean.fill_(float(values.mean()))
    inner.normalise.deviation.fill_(max(1.0, float(values.std())))


def _weights(lecture: Class) -> Tensor:
    """Of the defect classes, float [K − 1]: a class of few pictures weighs more."""
    counts = np.bincount([picture.class_index for picture in lecture.training], minlength=len(lecture.classes))
    return effective_number(torch.from_numpy(counts))[1:].clamp(min=0.01).to(lecture.device)


def _draw(lesson: Lesson, lecture: Class, marked: bool) -> BalancedDraw:
    """What the training tiles are drawn from; `marked`: only pictures whose pixels are known teach."""
    pictures = [picture for picture in lecture.training if not (marked and picture.unmarked)]
    if not any(picture.class_index for picture in pictures):
        what = "defect that is marked" if marked else "defective picture"
        raise DatasetError(f"the training side holds no {what}; split again or check the masks")
    shown = [scaled(picture, lecture.shape.scale) for picture in pictures]
    return BalancedDraw(shown, lecture.shape, lecture.variation, lesson.good_share)


def _looks(lesson: Lesson, lecture: Class) -> list[list[Tile]]:
    """Validation tiles by batch, cut as on the line; at most so many, spread over the whole list."""
    tiles = [
        tile
        for picture in lecture.validation
        for tile in tiles_of(scaled(picture, lecture.shape.scale), lecture.shape)
        if tile.class_index != AMBIGUOUS
    ]
    if not tiles:
        raise DatasetError("the validation side holds no picture that can judge; split again")
    spread = tiles[:: -(-len(tiles) // MOST_VALIDATION_TILES)]
    size = lesson.schedule.batch
    return [spread[start : start + size] for start in range(0, len(spread), size)]


def _labels(classes: Tensor) -> Pixels:
    """Class indexes as they are kept elsewhere: uint8, on the CPU."""
    return classes.to(torch.uint8).cpu().numpy()


def _separation(truth: list[Tensor], scores: list[Tensor]) -> float:
    """Area under the ROC of P(defect); 1 where good or bad is missing and nothing can be told apart."""
    area = area_under_roc(torch.cat(truth).numpy(), torch.cat(scores).numpy())
    return 1.0 if np.isnan(area) else area
