"""Tiles that tell a quantiser which values a network meets; it knows no network.

Defects are what a line looks for and what its frames seldom show, so a plain sample would cut their values off as
outliers. Whoever has labels takes as many tiles of defects as of good parts (`balanced`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np

from engines.base import Pixels

BATCH = 8  # tiles at a time: enough to be quick, little enough for the memory


def evenly(items: Sequence[Pixels], most: int) -> list[Pixels]:
    """At most so many, spread over all of them, the first one among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def balanced(by_class: Sequence[Sequence[Pixels]], most: int) -> list[Pixels]:
    """At most so many tiles, of every class as many as it has up to an equal share, classes taking turns."""
    turns = zip_longest(*(evenly(tiles, most) for tiles in by_class))
    return [tile for tile in chain.from_iterable(turns) if tile is not None][:most]


def batches(tiles: Sequence[Pixels]) -> Iterator[Pixels]:
    """uint8 [n, H, W, C], n ≤ BATCH."""
    for start in range(0, len(tiles), BATCH):
        yield np.stack(tiles[start : start + BATCH])
