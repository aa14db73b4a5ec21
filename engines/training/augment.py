"""How a tile drawn for training is varied: place, size, tilt, flips, light; it knows no network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from engines.datasets.labelled import IGNORED, Picture, Pixels
from engines.training.tiles import Tile, TileShape, planes_of, tile_class

PASTE_AREA = 0.12  # larger defects, as a share of the tile, are not moved: their surroundings belong to them
RIM = 7  # px around a defect that move with it and fade out
ON_TARGET = 0.8  # share of draws from a defective picture that are made to show a marked pixel
INTO_VIEW = 0.1  # share of the tile's side that such a pixel keeps from its edge


@dataclass(frozen=True)
class Variation:
    """What the material allows. Zero, or False, switches a kind off."""

    flips: bool = True  # left-right and up-down, each in half of the draws
    turns: bool = False  # quarter turns: only where the texture has no direction
    zoom: float = 0.25  # size factor 1 / (1 + zoom) … 1 + zoom
    stretch: float = 0.1  # the same for the width alone
    tilt: float = 5.0  # degrees to either side
    drift: float = 0.0  # share of the side by which a picture that fills the tile may lie off its place
    shift: float = 0.0  # px by which a golden template may still lie wrong after registration
    paste: float = 0.0  # share of good draws that receive the defect of another draw
    light: float = 0.6  # 1: exposure factor 0.5 … 2, gamma 0.6 … 1.7, offset ±30, noise up to 6 grey levels
    blur: float = 1.2  # px: lens out of focus, in a third of the draws


def draw_tile(picture: Picture, shape: TileShape, variation: Variation, rng: np.random.Generator) -> Tile:
    """A random, varied tile of the shape's crop, from a picture that is already scaled."""
    picture = _reoriented(picture, variation, rng)
    matrix = _affine(picture.labels, shape.crop, variation, rng)
    side = shape.crop[::-1]
    labels = cv2.warpAffine(picture.labels, matrix, side, flags=cv2.INTER_NEAREST, borderValue=IGNORED)

    def warped(pixels: Pixels, matrix: np.ndarray) -> Pixels:
        moved = cv2.warpAffine(pixels, matrix, side, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return relit(np.asarray(moved, np.uint8), variation, rng)

    pixels, reference = warped(picture.pixels, matrix), None
    if picture.reference is not None:
        reference = warped(picture.reference, matrix + [[0, 0, _within(variation.shift, rng)] for _ in range(2)])
    whole = tile_class(labels, shape.sliver, picture.class_index)
    return Tile(planes_of(pixels, reference), np.asarray(labels, np.uint8), whole)


def _within(most: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(-most, most))


def _reoriented(picture: Picture, variation: Variation, rng: np.random.Generator) -> Picture:
    vertical, horizontal = (variation.flips and rng.random() < 0.5 for _ in range(2))
    turns = int(rng.integers(4)) if variation.turns else 0

    def turned(pixels: Pixels) -> Pixels:
        pixels = pixels[::-1] if vertical else pixels
        pixels = pixels[:, ::-1] if horizontal else pixels
        return np.ascontiguousarray(np.rot90(pixels, turns))

    reference = None if picture.reference is None else turned(picture.reference)
    return replace(picture, pixels=turned(picture.pixels), labels=turned(picture.labels), reference=reference)


def _affine(labels: Pixels, crop: tuple[int, int], variation: Variation, rng: np.random.Generator) -> np.ndarray:
    """float64 [2, 3] from picture px to tile px."""
    zoom = (1 + variation.zoom) ** rng.uniform(-1, 1)
    across = zoom * (1 + variation.stretch) ** rng.uniform(-1, 1)
    angle = np.deg2rad(rng.uniform(-variation.tilt, variation.tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [across, zoom]
    size = np.array([labels.shape[1], labels.shape[0]], float)
    middle, extent = turn @ (size / 2), np.abs(np.diag(turn)) * size
    window = crop[::-1]
    start = [_start(*each, variation.drift, rng) for each in zip(middle, extent, window, strict=True)]
    marked = np.flatnonzero((labels > 0) & (labels != IGNORED)) if rng.random() < ON_TARGET else np.empty(0, int)
    if marked.size:
        y, x = np.unravel_index(int(rng.choice(marked)), labels.shape)
        spot = turn @ np.array([x, y], float)
        seen = rng.uniform(INTO_VIEW, 1 - INTO_VIEW, 2) * window
        start = [
            _kept_inside(s - v, m, e, w) if e > w else old
            for s, v, m, e, w, old in zip(spot, seen, middle, extent, window, start, strict=True)
        ]
    return np.column_stack([turn, -np.array(start)])


def _start(middle: float, extent: float, crop: float, drift: float, rng: np.random.Generator) -> float:
    """Where, along one axis of the turned picture, the tile begins; a small picture lies anywhere in the tile."""
    spare = abs(extent - crop) / 2 + drift * crop
    return middle - crop / 2 + rng.uniform(-spare, spare)


def _kept_inside(start: float, middle: float, extent: float, crop: float) -> float:
    return float(np.clip(start, middle - extent / 2, middle + extent / 2 - crop))


def relit(pixels: Pixels, variation: Variation, rng: np.random.Generator) -> Pixels:
    """uint8 of the same shape under another exposure, gamma, offset, focus and sensor noise."""
    light = variation.light
    if not light:
        return pixels
    gain, gamma = 2 ** (light * rng.uniform(-1, 1)), 1.7 ** (light * rng.uniform(-1, 1))
    offset = 30 * light * rng.uniform(-1, 1)
    curve = 255 * gain * (np.arange(256) / 255) ** gamma + offset
    varied = curve.astype(np.float32)[pixels]
    varied += rng.standard_normal(pixels.shape, np.float32) * np.float32(6 * light * rng.random())
    if variation.blur and rng.random() < 1 / 3:
        varied = cv2.GaussianBlur(varied, (0, 0), rng.uniform(0.3, max(0.4, variation.blur)))
    return np.asarray(np.clip(varied + 0.5, 0, 255), np.uint8)


def pasted(good: Tile, donor: Tile, sliver: int, template: bool = False) -> Tile:
    """The good tile with the donor's defect at the same place, or the good tile where that cannot be.

    Few tiles carry a defect, so a network would sooner learn those tiles by heart than the defect; on other
    tiles' texture it cannot (copy-paste augmentation: Ghiasi et al. 2021, arXiv:2012.07177). Grey values are
    matched by the ratio of both rims, because exposure acts as a factor. With `template` the donor's piece of its
    golden template comes along, and the third plane is the difference of what then lies there.
    """
    defect = (donor.labels != 0) & (donor.labels != IGNORED)
    if not 0 < defect.mean() <= PASTE_AREA or (good.labels[defect] == IGNORED).any():
        return good
    wide = cv2.dilate(defect.astype(np.uint8), np.ones((RIM, RIM), np.uint8))
    rim = (wide > 0) & ~defect
    factor = (good.pixels[rim].mean() + 1) / (donor.pixels[rim].mean() + 1)
    alpha = np.maximum(cv2.GaussianBlur(wide.astype(np.float32), (0, 0), 1.5), defect)[..., None]
    mixed = good.pixels * (1 - alpha) + donor.pixels * np.float32(factor) * alpha
    pixels = np.asarray(np.clip(mixed + 0.5, 0, 255), np.uint8)
    if template:
        pixels = planes_of(pixels[..., 0], pixels[..., 1])
    labels = np.where(defect, donor.labels, good.labels)
    return Tile(pixels, labels, tile_class(labels, sliver, 0))
