"""The pixels and boxes of one COCO annotation, as far as the picture has room for them; it knows no file and no list.

A region is a list of polygons `[x, y, x, y, …]`, run lengths `{"size": [h, w], "counts": […]}`, or the same with the
counts packed into a string (pycocotools, `mask.py`). Each is compared with the picture before anything is set aside
for it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from engines import rle
from engines.datasets.drawing import Mask, centred_polygon, check_near
from engines.datasets.labelled import Box, Shape


def region(segmentation: Any, shape: Shape) -> Mask:
    """The pixels [H, W] of a segmentation; raises ValueError when it is none, or not of this shape."""
    if isinstance(segmentation, dict):
        return _run_region(segmentation, shape)
    if not isinstance(segmentation, list):
        raise ValueError("segmentation is neither polygons nor run lengths")
    mask = np.zeros(shape, bool)
    for polygon in segmentation:
        numbers = _numbers(polygon, "polygon")
        if len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(f"polygon has {len(numbers)} numbers; it needs x and y of three points or more")
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        check_near(points, shape)
        mask |= centred_polygon(points, shape)
    return mask


def touched_box(bbox: Any, shape: Shape, class_index: int) -> Box:
    """The pixels that a `bbox` touches, as far as they lie in the picture; raises ValueError where none do."""
    numbers = _numbers(bbox, "bbox")
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError("has no segmentation, and bbox is not x, y, width, height")
    x, y, width, height = numbers
    left, right = max(math.floor(x), 0), min(math.ceil(x + width), shape[1])
    top, bottom = max(math.floor(y), 0), min(math.ceil(y + height), shape[0])
    if left >= right or top >= bottom:
        raise ValueError("bbox lies outside the picture")
    return Box(left, top, right - left, bottom - top, class_index)


def _run_region(code: dict[str, Any], shape: Shape) -> Mask:
    if code.get("size") != list(shape):
        raise ValueError(f"run lengths are of size {str(code.get('size'))[:40]}, the picture is {list(shape)}")
    counts = code.get("counts")
    if isinstance(counts, str):
        counts = rle.counts_from_text(counts)
    pixels = shape[0] * shape[1]
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count <= pixels for count in counts):
        raise ValueError("counts are neither a string nor numbers of pixels")
    if sum(counts) != pixels:
        raise ValueError(f"counts add up to {sum(counts)} px instead of {pixels}")
    return rle.decode(rle.from_counts(counts), shape)


def _numbers(values: Any, what: str) -> list[float]:
    plain = isinstance(values, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in values)
    if not plain:  # NaN, which JSON readers let through, is not below anything either
        raise ValueError(f"{what} is no list of numbers")
    return [float(value) for value in values]
