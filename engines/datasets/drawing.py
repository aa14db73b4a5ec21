"""Which pixels lie in a drawn shape, by the rules of the two tools whose files we read; it knows no file and no class.

labelme fills its polygons with PIL, from the pixels that hold the points, outline included; COCO takes the pixels
whose centre lies inside. So a square from 2 to 6 has 5×5 px in labelme and 4×4 px in COCO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import Shape

Points = Sequence[tuple[float, float]]  # x, y in px
Mask = npt.NDArray[np.bool_]

POINT_RADIUS_PX = 3
LINE_WIDTH_PX = 3


def outlined_polygon(points: Points, shape: Shape) -> Mask:
    """labelme's rule, for points no farther outside than check_near allows."""
    return cv2.fillPoly(np.zeros(shape, np.uint8), [_held(points)], 1).astype(bool)


def upright_rectangle(points: Points, shape: Shape) -> Mask:
    """From corner to corner, both included, in whichever order they come."""
    corners = _held(points)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    mask = np.zeros(shape, bool)
    mask[max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)] = True
    return mask


def disc(centre: tuple[float, float], radius: float, shape: Shape) -> Mask:
    """The pixels whose coordinates lie no farther than `radius` px from the centre."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2 + 1e-9


def line(points: Points, shape: Shape) -> Mask:
    """A line through the points, LINE_WIDTH_PX wide with square ends: one as thin as a pixel teaches nothing."""
    thin = cv2.polylines(np.zeros(shape, np.uint8), [_held(points)], False, 1)
    return cv2.dilate(thin, np.ones((LINE_WIDTH_PX, LINE_WIDTH_PX), np.uint8)).astype(bool)


def check_near(points: Points, shape: Shape) -> None:
    """Raises ValueError for a point that is no number, or lies outside by more than the picture's own size."""
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError("holds a point that is no number")
        if not (-shape[1] <= x <= 2 * shape[1] and -shape[0] <= y <= 2 * shape[0]):
            raise ValueError(f"point {x:.6g}, {y:.6g} lies far outside the picture of {shape[1]}×{shape[0]} px")


def centred_polygon(points: Points, shape: Shape) -> Mask:
    """COCO's rule (even-odd): pixels whose centre lies inside; a centre on the left or upper edge does."""
    crossings = np.zeros((shape[0] + 1, shape[1]), np.int32)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], *points[:1]], strict=True):
        first, end = sorted(math.ceil(min(max(x, 0.0), shape[1]) - 0.5) for x in (x0, x1))
        if first < end:
            columns = np.arange(first, end)
            y = y0 + (columns + 0.5 - x0) * ((y1 - y0) / (x1 - x0))
            crossings[np.clip(np.ceil(y - 0.5), 0, shape[0]).astype(np.int64), columns] += 1
    return (crossings[:-1].cumsum(axis=0) % 2).astype(bool)


def smoothed(labels: npt.NDArray[np.uint8], how: str) -> npt.NDArray[np.uint8]:
    """Each class of labels [H, W] opened or closed with 5×5 px, lowest first; what is added covers background only."""
    operation, margin = {"open": (cv2.MORPH_OPEN, 0), "close": (cv2.MORPH_CLOSE, 4)}[how]
    out = labels.copy()
    for index in np.unique(labels[labels > 0]).tolist():
        before = (labels == index).astype(np.uint8)
        # Without a margin OpenCV closes the gap between a region and the edge of the picture.
        wide = cv2.morphologyEx(np.pad(before, margin), operation, np.ones((5, 5), np.uint8))
        after = wide[margin : margin + labels.shape[0], margin : margin + labels.shape[1]].astype(bool)
        out[(before > 0) & ~after & (out == index)] = 0
        out[after & (out == 0)] = index
    return out


def _held(points: Points) -> npt.NDArray[np.int32]:
    """The pixels that hold the points, as PIL takes them."""
    return np.floor(np.asarray(points, float)).astype(np.int32)
