"""Where tiles lie on a picture, how they are cut, and what class a tile has; it knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from engines.training.dataset import Picture, Pixels, most_frequent_defect

IGNORED = 255  # label of pixels that lie outside the picture: they neither teach nor count
AMBIGUOUS = -1  # class of a tile that shows a sliver too small to call


@dataclass(frozen=True)
class TileShape:
    """How pictures are cut: the same numbers stand in the recipe."""

    size: int = 256  # side of the square tile, px after scaling
    overlap: int = 32  # px that neighbours share at least
    scale: float = 1.0  # tile px per picture px
    sliver: int = 12  # fewer defect px than this, but not none, leave a tile's class open


@dataclass(frozen=True, eq=False)
class Tile:
    """One cut."""

    pixels: Pixels  # uint8 [size, size]
    labels: Pixels  # uint8 [size, size], class index or IGNORED
    class_index: int  # or AMBIGUOUS


def scaled(picture: Picture, scale: float) -> Picture:
    """The picture at tile resolution: areas are averaged, labels take the nearest pixel."""
    if scale == 1.0:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.pixels.shape)
    pixels = cv2.resize(picture.pixels, (width, height), interpolation=cv2.INTER_AREA)
    labels = cv2.resize(picture.labels, (width, height), interpolation=cv2.INTER_NEAREST)
    return Picture(picture.sample, np.asarray(pixels, np.uint8), np.asarray(labels, np.uint8), picture.class_index)


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the fewest evenly spread tiles that cover `length` px with at least `overlap` px in common.

    >>> positions(500, 256, 32)
    [0, 122, 244]
    """
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(step * (length - tile) / (count - 1)) for step in range(count)]


def cover(pixels: Pixels, shape: TileShape) -> list[tuple[int, int]]:
    """(y, x) of every tile over a scaled picture, row by row."""
    down, across = (positions(length, shape.size, shape.overlap) for length in pixels.shape)
    return [(y, x) for y in down for x in across]


def cut(pixels: Pixels, y: int, x: int, size: int) -> Pixels:
    """uint8 [size, size] from (y, x); beyond the picture its border is repeated."""
    part = pixels[y : y + size, x : x + size]
    below, right = size - part.shape[0], size - part.shape[1]
    padded = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def cut_labels(labels: Pixels, y: int, x: int, size: int) -> Pixels:
    """Like `cut`, with IGNORED beyond the picture."""
    cut_out = np.full((size, size), IGNORED, np.uint8)
    part = labels[y : y + size, x : x + size]
    cut_out[: part.shape[0], : part.shape[1]] = part
    return cut_out


def tile_class(labels: Pixels, sliver: int) -> int:
    """Class with the most defect pixels; 0 when there are none, AMBIGUOUS when fewer than `sliver`."""
    defects = labels[(labels != 0) & (labels != IGNORED)]
    if not defects.size:
        return 0
    return AMBIGUOUS if defects.size < sliver else most_frequent_defect(defects)


def tiles_of(picture: Picture, shape: TileShape) -> Iterator[Tile]:
    """Every tile of a picture as it is cut on the line; `picture` is already scaled."""
    for y, x in cover(picture.pixels, shape):
        labels = cut_labels(picture.labels, y, x, shape.size)
        yield Tile(cut(picture.pixels, y, x, shape.size), labels, tile_class(labels, shape.sliver))
