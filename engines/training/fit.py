"""How a network is taught: seeded steps, the best validated checkpoint, an early end; it knows no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from engines.training.augment import Variation, draw_tile, pasted
from engines.training.dataset import Picture
from engines.training.tiles import AMBIGUOUS, Tile, TileShape


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int = 30
    tiles: int = 800  # drawn per epoch
    batch: int = 16
    learning_rate: float = 3e-3  # the peak of one cycle (Smith 2018, arXiv:1803.09820)
    patience: int = 12  # epochs without a better validation score before the end
    seed: int = 1
    half: bool = True  # bfloat16 inside the network: twice as fast on CPUs that have it

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return max(1, self.tiles // self.batch)


@dataclass(frozen=True, eq=False)
class Batch:
    """Tiles as tensors."""

    pixels: Tensor  # float32 [N, 1, H, W], 0 … 255
    labels: Tensor  # int64 [N, H, W]
    classes: Tensor  # int64 [N]


def as_batch(tiles: list[Tile]) -> Batch:
    """Stack tiles of one size."""
    pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles])).float().unsqueeze(1)
    labels = torch.from_numpy(np.stack([tile.labels for tile in tiles])).long()
    classes = torch.tensor([tile.class_index for tile in tiles])
    return Batch(pixels.contiguous(memory_format=torch.channels_last), labels, classes)


class BalancedDraw:
    """Draws training tiles: a fixed share of good pictures, then every defect class and tile group alike."""

    def __init__(
        self, pictures: list[Picture], shape: TileShape, variation: Variation, good_share: float = 0.5
    ) -> None:
        self._shape, self._variation, self._good_share = shape, variation, good_share
        self._groups: dict[int, dict[str, list[Picture]]] = {}
        for picture in pictures:
            if not picture.unmarked:
                groups = self._groups.setdefault(picture.class_index, {})
                groups.setdefault(picture.sample.group, []).append(picture)
        self._defects = sorted(set(self._groups) - {0})

    def tiles(self, count: int, rng: np.random.Generator) -> list[Tile]:
        """`count` tiles, none of them ambiguous."""
        drawn: list[Tile] = []
        while len(drawn) < count:
            tile = draw_tile(self._picture(rng), self._shape, self._variation, rng)
            if tile.class_index == 0 and self._defects and rng.random() < self._variation.paste:
                donor = draw_tile(self._any(self._defects, rng), self._shape, self._variation, rng)
                tile = pasted(tile, donor, self._shape.sliver)
            if tile.class_index != AMBIGUOUS:
                drawn.append(tile)
        return drawn

    def _picture(self, rng: np.random.Generator) -> Picture:
        good = 0 in self._groups and (not self._defects or rng.random() < self._good_share)
        return self._any([0] if good else self._defects, rng)

    def _any(self, classes: list[int], rng: np.random.Generator) -> Picture:
        groups = self._groups[classes[rng.integers(len(classes))]]
        pictures = groups[sorted(groups)[rng.integers(len(groups))]]
        return pictures[rng.integers(len(pictures))]


@dataclass(frozen=True, eq=False)
class Task:
    """What is taught: where tiles come from, what is minimised, and what says how good the network is.

    `score_of` is called after every epoch, in evaluation mode without gradients; higher is better.
    """

    draw: BalancedDraw
    loss_of: Callable[[Batch], Tensor]
    score_of: Callable[[], float]


def fit(net: nn.Module, task: Task, schedule: Schedule, console: Console | None = None) -> float:
    """Teach `net` in place and leave it with its best validated weights; returns their score."""
    torch.manual_seed(schedule.seed)
    net.to(memory_format=torch.channels_last)
    total = schedule.epochs * schedule.steps
    steps = _steps(net, task, schedule, total)
    best, best_epoch, best_weights = -np.inf, 0, net.state_dict()
    with _progress(console) as bar:
        watched = bar.track(steps, total=total, description="training")
        for epoch in range(1, schedule.epochs + 1):
            net.train()
            loss = np.mean(list(islice(watched, schedule.steps)))
            score = _scored(net, task.score_of)
            bar.console.print(f"epoch {epoch:3d}  loss {loss:.4f}  validation {score:.4f}")
            if score > best:
                best, best_epoch, best_weights = score, epoch, deepcopy(net.state_dict())
            elif epoch - best_epoch >= schedule.patience:
                bar.console.print(f"no better for {schedule.patience} epochs: ended early")
                break
    net.load_state_dict(best_weights)
    net.eval()
    return float(best)


def _steps(net: nn.Module, task: Task, schedule: Schedule, total: int) -> Iterator[float]:
    """Take one step after another; yields the loss of each."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=schedule.learning_rate, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.learning_rate, total_steps=total, pct_start=0.2)
    for batch in _drawn_ahead(task.draw, schedule, total):
        optimiser.zero_grad(set_to_none=True)
        with half_precision(schedule.half):
            loss = task.loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        rate.step()
        yield loss.item()


def half_precision(half: bool) -> AbstractContextManager[Any]:
    """bfloat16 for the heavy layers, or nothing."""
    context: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    return context


def _scored(net: nn.Module, score_of: Callable[[], float]) -> float:
    net.eval()
    with torch.no_grad():
        return score_of()


def _drawn_ahead(draw: BalancedDraw, schedule: Schedule, count: int) -> Iterator[Batch]:
    """Batches in a fixed order; the next one is drawn while the network works on this one."""
    rng = np.random.default_rng(schedule.seed)
    with ThreadPoolExecutor(1) as drawing:

        def ask() -> Any:
            return drawing.submit(lambda: as_batch(draw.tiles(schedule.batch, rng)))

        waiting = ask()
        for _ in range(count):
            ready, waiting = waiting.result(), ask()
            yield ready


def _progress(console: Console | None) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console or Console(stderr=True))
