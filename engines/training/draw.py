"""Which tiles are shown next: balanced between good and bad, classes and parts; it knows no network.

Every step has a random generator of its own, drawn from seed and step: a training that was killed and goes on
shows the same tiles as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.datasets.labelled import Picture
from engines.training.augment import Variation, draw_tile, pasted
from engines.training.tiles import AMBIGUOUS, Tile, TileShape

MOST_TRIES = 50  # draws of one tile before an ambiguous one is taken for what its picture is
AHEAD = 2  # batches drawn while the network works


@dataclass(frozen=True, eq=False)
class Batch:
    """Tiles as tensors."""

    pixels: Tensor  # float32 [N, C, H, W], 0 … 255
    labels: Tensor  # int64 [N, H, W]
    classes: Tensor  # int64 [N]

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return Batch(self.pixels.to(device), self.labels.to(device), self.classes.to(device))


def as_batch(tiles: list[Tile]) -> Batch:
    """Stack tiles of one size."""
    pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles])).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(np.stack([tile.labels for tile in tiles])).long()
    classes = torch.tensor([tile.class_index for tile in tiles])
    return Batch(pixels.contiguous(memory_format=torch.channels_last), labels, classes)


class BalancedDraw:
    """Draws training tiles: a fixed share of good pictures, then every defect class alike.

    Within a class every other draw takes a part first and then one of its pictures, so that a part that was
    taken often does not speak for all; the rest take any picture.
    """

    def __init__(
        self, pictures: list[Picture], shape: TileShape, variation: Variation, good_share: float = 0.35
    ) -> None:
        self._shape, self._variation, self._good_share = shape, variation, good_share
        self._template = any(picture.reference is not None for picture in pictures)
        self._pictures: dict[int, list[Picture]] = {}
        self._parts: dict[int, dict[str, list[Picture]]] = {}
        for picture in pictures:
            self._pictures.setdefault(picture.class_index, []).append(picture)
            self._parts.setdefault(picture.class_index, {}).setdefault(picture.sample.group, []).append(picture)
        self._defects = sorted(set(self._pictures) - {0})

    def tiles(self, count: int, rng: np.random.Generator) -> list[Tile]:
        """`count` tiles, none of them ambiguous."""
        return [self._tile(rng) for _ in range(count)]

    def _tile(self, rng: np.random.Generator) -> Tile:
        picture = self._any(self._class(rng), rng)
        for _ in range(MOST_TRIES):
            tile = draw_tile(picture, self._shape, self._variation, rng)
            if tile.class_index == 0 and self._defects and rng.random() < self._variation.paste:
                donor = draw_tile(self._any(self._defect(rng), rng), self._shape, self._variation, rng)
                tile = pasted(tile, donor, self._shape.sliver, self._template)
            if tile.class_index != AMBIGUOUS:
                return tile
        return Tile(tile.pixels, tile.labels, picture.class_index)

    def _class(self, rng: np.random.Generator) -> int:
        good = 0 in self._pictures and (not self._defects or rng.random() < self._good_share)
        return 0 if good else self._defect(rng)

    def _defect(self, rng: np.random.Generator) -> int:
        return self._defects[rng.integers(len(self._defects))]

    def _any(self, class_index: int, rng: np.random.Generator) -> Picture:
        pictures = self._pictures[class_index]
        if rng.random() < 0.5:
            parts = self._parts[class_index]
            pictures = parts[sorted(parts)[rng.integers(len(parts))]]
        return pictures[rng.integers(len(pictures))]


def batches(draw: BalancedDraw, size: int, seed: int, steps: range) -> Iterator[Batch]:
    """One batch for each of these steps, in order; the next ones are drawn while the network works on this one."""

    def drawn(step: int) -> Batch:
        return as_batch(draw.tiles(size, np.random.default_rng([seed, step])))

    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: list[Future[Batch]] = []
        for step in steps:
            waiting += [
                pool.submit(drawn, ahead) for ahead in range(step + len(waiting), min(step + AHEAD, steps.stop))
            ]
            yield waiting.pop(0).result()
