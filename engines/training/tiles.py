"""Where tiles lie on a picture, how they are cut, and what class a tile has; it knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from engines.datasets.labelled import IGNORED, Picture, Pixels, most_frequent_defect

AMBIGUOUS = -1  # class of a tile that shows a sliver too small to call


@dataclass(frozen=True)
class TileShape:
    """How pictures are cut on the line (the same numbers stand in the recipe), and what one lesson shows of them."""

    height: int = 256  # px after scaling
    width: int = 256
    overlap: int = 32  # px that neighbours share at least
    scale: float = 1.0  # tile px per picture px
    crop: tuple[int, int] = (192, 192)  # height and width of what is shown in training, px after scaling
    sliver: int = 12  # fewer defect px than this, but not none, leave a tile's class open


@dataclass(frozen=True, eq=False)
class Tile:
    """One cut."""

    pixels: Pixels  # uint8 [h, w, C]
    labels: Pixels  # uint8 [h, w], class index or IGNORED
    class_index: int  # or AMBIGUOUS


def scaled(picture: Picture, scale: float) -> Picture:
    """The picture at tile resolution: areas are averaged, labels take the nearest pixel."""
    if scale == 1.0:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.pixels.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR

    def resized(pixels: Pixels, how: int) -> Pixels:
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=how), np.uint8)

    reference = None if picture.reference is None else resized(picture.reference, how)
    labels = resized(picture.labels, cv2.INTER_NEAREST)
    return replace(picture, pixels=resized(picture.pixels, how), labels=labels, reference=reference)


def planes_of(pixels: Pixels, reference: Pixels | None = None) -> Pixels:
    """uint8 [h, w, C] as a network takes it: C = 1, 3 (BGR), or 3 (picture, golden template, difference)."""
    if reference is None:
        return pixels.reshape(*pixels.shape[:2], -1)
    return np.dstack([pixels, reference, cv2.absdiff(pixels, reference)])


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the fewest evenly spread tiles that cover `length` px with at least `overlap` px in common.

    >>> positions(500, 256, 32)
    [0, 122, 244]
    """
    if length <= tile:
        return [0]
    overlap = min(overlap, tile - 1)
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(step * (length - tile) / (count - 1)) for step in range(count)]


def cut(pixels: Pixels, y: int, x: int, height: int, width: int) -> Pixels:
    """uint8 [height, width, …] from (y, x); beyond the picture its border is repeated."""
    part = pixels[y : y + height, x : x + width]
    below, right = height - part.shape[0], width - part.shape[1]
    padded = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def cut_labels(labels: Pixels, y: int, x: int, height: int, width: int) -> Pixels:
    """Like `cut`, with IGNORED beyond the picture."""
    cut_out = np.full((height, width), IGNORED, np.uint8)
    part = labels[y : y + height, x : x + width]
    cut_out[: part.shape[0], : part.shape[1]] = part
    return cut_out


def tile_class(labels: Pixels, sliver: int, whole: int) -> int:
    """Class with the most defect pixels; 0 when there are none, AMBIGUOUS when fewer than `sliver`.

    `whole` is the picture's own class: a tile of a defective picture whose pixels nobody marked is like it.
    """
    known = labels != IGNORED
    defects = labels[(labels != 0) & known]
    if not defects.size:
        return 0 if whole == 0 or known.any() else whole
    return AMBIGUOUS if defects.size < sliver else most_frequent_defect(defects)


def tiles_of(picture: Picture, shape: TileShape) -> Iterator[Tile]:
    """Every tile of a picture as it is cut on the line; `picture` is already scaled."""
    planes = planes_of(picture.pixels, picture.reference)
    for y in positions(planes.shape[0], shape.height, shape.overlap):
        for x in positions(planes.shape[1], shape.width, shape.overlap):
            labels = cut_labels(picture.labels, y, x, shape.height, shape.width)
            pixels = cut(planes, y, x, shape.height, shape.width).reshape(shape.height, shape.width, -1)
            yield Tile(pixels, labels, tile_class(labels, shape.sliver, picture.class_index))
