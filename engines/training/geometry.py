"""How pictures are scaled and cut, chosen from the pictures themselves; pure numbers, no pixels are changed here.

A network judges best what it sees whole, and fastest what is small: so pictures are shrunk as far as their
smallest defects allow, and a tile is made large enough to hold a whole picture where that is affordable.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from engines.datasets.labelled import IGNORED, Picture
from engines.training.tiles import TileShape

SCALES = (1.0, 0.75, 0.5, 0.375, 0.25)
SMALLEST_KEPT = 4.0  # px that a small defect's side keeps after scaling
SMALL = 10  # percentile of the defects' sizes that counts as small
LEAST_PICTURE = 256  # px: longer sides are not shrunk below this …
LEAST_UNMARKED = 320  # … or this, where nobody marked how small defects are
LARGEST_TILE = 320 * 352  # px: larger pictures are cut
STEP = 32  # px: tile sides are multiples of it
CROPS = (96, 128, 160, 192, 224)


def choose_shape(pictures: Sequence[Picture], largest_tile: int = LARGEST_TILE, scale: float = 0.0) -> TileShape:
    """The scale, tile and crop for these pictures (at full resolution; not empty); a `scale` above 0 is taken."""
    sizes = np.array([picture.pixels.shape[:2] for picture in pictures])
    small = small_defect(pictures)
    least = LEAST_PICTURE if np.isfinite(small) else LEAST_UNMARKED
    scale = scale or choose_scale(float(np.median(sizes.max(1))), small, least)
    height, width = (_rounded(np.percentile(sizes[:, axis], 95) * scale) for axis in (0, 1))
    if height * width > largest_tile:
        height, width = (min(side, 256) for side in (height, width))
    side = float(np.median(sizes.max(1))) * scale  # a crop shows half of the pictures whole, if it can
    crop = next((each for each in CROPS if each >= side), CROPS[-1])
    crop = min(crop, max(height, width))
    return TileShape(height, width, 32, scale, (crop, crop))


def choose_scale(longer_side: float, small: float, least: float = LEAST_PICTURE) -> float:
    """The smallest scale that leaves a small defect of `small` px its size, and a picture its own.

    >>> choose_scale(2048, 20), choose_scale(2048, 6), choose_scale(200, 60)
    (0.25, 0.75, 1.0)
    """
    fits = [each for each in SCALES if each * small >= SMALLEST_KEPT and each * longer_side >= least]
    return min(fits, default=1.0)


def small_defect(pictures: Sequence[Picture]) -> float:
    """Side in px of the square of a small defect's area: the tenth percentile of all regions; inf without any."""
    sides: list[float] = []
    for picture in pictures:
        marked = ((picture.labels > 0) & (picture.labels != IGNORED)).astype(np.uint8)
        if marked.any():
            _, _, stats, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
            largest = stats[1:, cv2.CC_STAT_AREA].max()
            # specks beside a region are the pen's, not defects of their own
            sides += [float(np.sqrt(area)) for area in stats[1:, cv2.CC_STAT_AREA] if area >= largest / 20]
    return float(np.percentile(sides, SMALL)) if sides else float("inf")


def _rounded(side: float) -> int:
    return max(2 * STEP, int(np.ceil(side / STEP)) * STEP)
