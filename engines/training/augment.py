"""How a tile drawn for training is varied: place, size, tilt, flips, light; it knows no network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engines.training.dataset import Picture, Pixels
from engines.training.tiles import IGNORED, Tile, TileShape, tile_class

PASTE_AREA = 0.12  # larger defects, as a share of the tile, are not moved: their surroundings belong to them
RIM = 7  # px around a defect that move with it and fade out
ON_TARGET = 0.8  # share of draws from a defective picture that are made to show a marked pixel


@dataclass(frozen=True)
class Variation:
    """What the material allows. Zero, or False, switches a kind off."""

    flips: bool = True  # left-right and up-down, each in half of the draws
    turns: bool = False  # quarter turns: only where the texture has no direction
    zoom: float = 0.15  # size factor 1 / (1 + zoom) … 1 + zoom
    tilt: float = 4.0  # degrees to either side
    paste: float = 0.0  # share of good draws that receive the defect of another draw
    light: float = 0.5  # 1: exposure factor 0.5 … 2, gamma 0.6 … 1.7, offset ±30, noise up to 6 grey levels


def draw_tile(picture: Picture, shape: TileShape, variation: Variation, rng: np.random.Generator) -> Tile:
    """A random, varied tile of a picture that is already scaled."""
    pixels, labels = _reoriented(picture, variation, rng)
    top, left = _place(labels, shape.size, rng)
    matrix = _affine(top, left, shape.size, variation, rng)
    side = (shape.size, shape.size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(pixels, matrix, side, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    labels = cv2.warpAffine(labels, matrix, side, flags=flags, borderValue=IGNORED)
    return Tile(relit(pixels, variation.light, rng), labels, tile_class(labels, shape.sliver))


def _reoriented(picture: Picture, variation: Variation, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    # Before cutting: on the line a small picture is always filled up at its right and bottom.
    both = np.stack([picture.pixels, picture.labels])
    for axis in (1, 2):
        if variation.flips and rng.random() < 0.5:
            both = np.flip(both, axis)
    if variation.turns:
        both = np.rot90(both, int(rng.integers(4)), axes=(1, 2))
    return np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1])


def _place(labels: Pixels, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """(top, left) of the cut; 0 where the picture is smaller than a tile."""
    target = None
    if rng.random() < ON_TARGET and (marked := np.flatnonzero(labels)).size:
        target = np.unravel_index(int(rng.choice(marked)), labels.shape)
    corner = []
    for axis, length in enumerate(labels.shape):
        if length <= size:
            corner.append(0.0)  # as on the line, which fills a small picture up at its right and bottom
            continue
        first, last = 0.0, float(length - size)
        if target is not None:
            first, last = max(first, target[axis] - size + 1.0), min(last, float(target[axis]))
        corner.append(rng.uniform(first, last))
    return corner[0], corner[1]


def _affine(top: float, left: float, size: int, variation: Variation, rng: np.random.Generator) -> np.ndarray:
    """float64 [2, 3] from tile px to picture px: zoom and tilt about the tile's middle."""
    factor = (1 + variation.zoom) ** rng.uniform(-1, 1)
    angle = np.deg2rad(rng.uniform(-variation.tilt, variation.tilt))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
    middle = np.array([size / 2, size / 2])
    shift = np.array([left, top]) + middle - turn @ middle
    return np.column_stack([turn, shift])


def relit(pixels: Pixels, light: float, rng: np.random.Generator) -> Pixels:
    """uint8 of the same shape under another exposure, gamma, offset and sensor noise; `light` is 0 … 1."""
    if not light:
        return pixels
    gain, gamma = 2 ** (light * rng.uniform(-1, 1)), 1.7 ** (light * rng.uniform(-1, 1))
    offset = 30 * light * rng.uniform(-1, 1)
    curve = 255 * gain * (np.arange(256) / 255) ** gamma + offset
    varied = curve.astype(np.float32)[pixels]
    varied += rng.standard_normal(pixels.shape, np.float32) * np.float32(6 * light * rng.random())
    return np.asarray(np.clip(varied + 0.5, 0, 255), np.uint8)


def pasted(good: Tile, donor: Tile, sliver: int) -> Tile:
    """The good tile with the donor's defect at the same place, or the good tile where that cannot be.

    Few tiles carry a defect, so a network would sooner learn those tiles by heart than the defect; on other
    tiles' texture it cannot (copy-paste augmentation: Ghiasi et al. 2021, arXiv:2012.07177). Grey values are
    matched by the ratio of both rims, because exposure acts as a factor.
    """
    defect = (donor.labels != 0) & (donor.labels != IGNORED)
    if not 0 < defect.mean() <= PASTE_AREA or (good.labels[defect] == IGNORED).any():
        return good
    wide = cv2.dilate(defect.astype(np.uint8), np.ones((RIM, RIM), np.uint8))
    rim = (wide > 0) & ~defect
    factor = (good.pixels[rim].mean() + 1) / (donor.pixels[rim].mean() + 1)
    alpha = np.maximum(cv2.GaussianBlur(wide.astype(np.float32), (0, 0), 1.5), defect)
    mixed = good.pixels * (1 - alpha) + donor.pixels * np.float32(factor) * alpha
    labels = np.where(defect, donor.labels, good.labels)
    return Tile(np.asarray(np.clip(mixed + 0.5, 0, 255), np.uint8), labels, tile_class(labels, sliver))
