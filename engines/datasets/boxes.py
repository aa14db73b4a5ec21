"""Upright boxes: out of a label map, and against the true ones; it knows neither network nor judgement.

A found box matches a true one of its class when their IoU reaches a threshold. Found boxes choose in the order of
their score, each the free true box that it overlaps most; what remains is a false alarm or a miss.

AP is the area under the precision–recall curve made monotone, with a step at every recall (all-point interpolation,
Pascal VOC from 2010 on: Everingham et al. 2015, doi:10.1007/s11263-014-0733-5, section 4.2). Boxes of one score count
together, so that their order decides nothing. mAP is the mean over the classes that have a true box.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import Box

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """A box that somebody claims."""

    box: Box
    score: float  # 0…1
    area: int  # px of its class inside


def boxes_from_labels(labels: Pixels, confidence: Pixels, merge_px: int = 0, pad_px: int = 0) -> list[Found]:
    """A box around every connected region (8 neighbours) of each class of labels [H, W].

    `score` is the mean confidence [H, W] ÷ 255 over its pixels. Regions of one class with fewer than `merge_px` px
    between them, counted along rows and columns, are one. Boxes grow by `pad_px` on every side as far as the picture
    goes: some data is marked with room around the defect (DeepPCB: 10 px).
    """
    found = []
    for index in np.flatnonzero(np.bincount(labels.ravel(), minlength=2)):
        if index:
            found += _of_class(labels == index, confidence, int(index), merge_px)
    height, width = labels.shape
    return [replace(each, box=_padded(each.box, pad_px, height, width)) for each in found]


def _padded(box: Box, pad_px: int, height: int, width: int) -> Box:
    x, y = max(0, box.x - pad_px), max(0, box.y - pad_px)
    right, bottom = min(width, box.x + box.width + pad_px), min(height, box.y + box.height + pad_px)
    return Box(x, y, right - x, bottom - y, box.class_index)


def _of_class(mask: npt.NDArray[np.bool_], confidence: Pixels, index: int, merge_px: int) -> list[Found]:
    plain = mask.view(np.uint8)
    joined = cv2.dilate(plain, np.ones((merge_px, merge_px), np.uint8)) if merge_px > 1 else plain
    count, regions, _, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    ys, xs = np.nonzero(mask)
    of = regions[ys, xs]
    areas = np.bincount(of, minlength=count)
    sums = np.bincount(of, weights=confidence[ys, xs], minlength=count)
    left, top = _extremes(np.minimum, of, count, xs, ys)
    right, bottom = _extremes(np.maximum, of, count, xs, ys)
    return [
        Found(
            Box(int(left[i]), int(top[i]), int(right[i] - left[i]) + 1, int(bottom[i] - top[i]) + 1, index),
            float(sums[i]) / (255 * int(areas[i])),
            int(areas[i]),
        )
        for i in range(1, count)
    ]


def _extremes(
    better: np.ufunc, of: npt.NDArray[np.int32], count: int, *places: npt.NDArray[np.intp]
) -> list[npt.NDArray[np.intp]]:
    """Least or greatest of each coordinate, per region."""
    start = np.iinfo(np.intp).max if better is np.minimum else -1
    ends = [np.full(count, start, np.intp) for _ in places]
    for end, place in zip(ends, places, strict=True):
        better.at(end, of, place)
    return ends


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in px²; 0 where they only touch."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    shared = max(0, width) * max(0, height)
    return shared / (a.width * a.height + b.width * b.height - shared)


def match_boxes(found: Sequence[Found], true: Sequence[Box], least_iou: float) -> list[int | None]:
    """For each found box the index of the true one that it matches, or None."""
    matches: list[int | None] = [None] * len(found)
    free = set(range(len(true)))
    for i in sorted(range(len(found)), key=lambda i: -found[i].score):
        box = found[i].box
        near = [(box_iou(box, true[k]), -k) for k in free if true[k].class_index == box.class_index]
        best, place = max(near, default=(0.0, 0))
        if near and best >= least_iou:
            matches[i] = -place
            free.remove(-place)
    return matches


@dataclass
class BoxScore:
    """Adds up pictures' found and true boxes; figures are None where nothing was there to be counted."""

    least_iou: float
    true: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # class → true boxes
    claims: defaultdict[int, list[tuple[float, bool]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, found: Sequence[Found], true: Sequence[Box]) -> None:
        """Count one picture."""
        for box in true:
            self.true[box.class_index] += 1
        for each, match in zip(found, match_boxes(found, true, self.least_iou), strict=True):
            self.claims[each.box.class_index].append((each.score, match is not None))

    @property
    def right(self) -> int:
        """Found boxes that match."""
        return sum(hit for claims in self.claims.values() for _, hit in claims)

    @property
    def precision(self) -> float | None:
        """Of the found boxes, the share that matches."""
        found = sum(len(claims) for claims in self.claims.values())
        return self.right / found if found else None

    @property
    def recall(self) -> float | None:
        """Of the true boxes, the share that is found."""
        true = sum(self.true.values())
        return self.right / true if true else None

    @property
    def f1(self) -> float | None:
        """2 · right / (found + true): the harmonic mean of precision and recall."""
        both = sum(len(claims) for claims in self.claims.values()) + sum(self.true.values())
        return 2 * self.right / both if both else None

    def ap(self, index: int) -> float | None:
        """Average precision of one class; None when it has no true box."""
        if not self.true.get(index):
            return None
        return average_precision(self.claims.get(index, []), self.true[index])

    @property
    def mean_ap(self) -> float | None:
        """Mean of the classes that have a true box."""
        values = [value for index in sorted(self.true) if (value := self.ap(index)) is not None]
        return sum(values) / len(values) if values else None


def average_precision(claims: Sequence[tuple[float, bool]], true: int) -> float:
    """AP of (score, right?) claims on `true` > 0 boxes; 0…1."""
    if not claims:
        return 0.0
    scores = np.array([score for score, _ in claims])
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(np.array([hit for _, hit in claims])[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(claims) - 1)  # of the claims of one score
    recall, precision = right[last] / true, right[last] / (last + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
