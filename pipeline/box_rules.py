"""Which least score and area make found boxes agree best with true ones; pure counts.

Where every picture is defective nothing can be overkilled, so escapes weigh nothing: the rules that remain to be
chosen are those of the regions, and what they are worth is F1 over the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.datasets.boxes import Found, match_boxes
from engines.datasets.labelled import Box


@dataclass(frozen=True)
class BoxPoint:
    """Rules, and what boxes they leave."""

    min_score: float
    min_area_px: int
    precision: float
    recall: float
    f1: float


class BoxSweep:
    """Adds up pictures under every pair of least score and least area."""

    def __init__(self, min_scores: Sequence[float], min_areas: Sequence[int], least_iou: float) -> None:
        self._scores, self._areas, self._least_iou = tuple(min_scores), tuple(min_areas), least_iou
        shape = (len(self._scores), len(self._areas))
        self._right, self._found = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._true = 0

    def add(self, found: Sequence[Found], true: Sequence[Box]) -> None:
        """One picture: everything that is found without any rule, and the true boxes."""
        self._true += len(true)
        known: dict[tuple[bool, ...], tuple[int, int]] = {}
        for s, a in np.ndindex(*self._right.shape):
            kept = tuple(each.score >= self._scores[s] and each.area >= self._areas[a] for each in found)
            if kept not in known:
                left = [each for each, keep in zip(found, kept, strict=True) if keep]
                right = sum(match is not None for match in match_boxes(left, true, self._least_iou))
                known[kept] = (right, len(left))
            right, count = known[kept]
            self._right[s, a] += right
            self._found[s, a] += count

    def best(self) -> BoxPoint | None:
        """Of all pairs the one with the highest F1, amid its equals; None where there is no true box."""
        if not self._true:
            return None
        f1 = 2 * self._right / (self._found + self._true)
        equals = np.argwhere(f1 == f1.max())
        s, a = (int(step) for step in equals[len(equals) // 2])
        right, found = int(self._right[s, a]), int(self._found[s, a])
        precision = right / found if found else 0.0
        return BoxPoint(self._scores[s], self._areas[a], precision, right / self._true, float(f1[s, a]))
