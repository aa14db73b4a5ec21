"""What the classifier alone sends on to the segmenter, threshold by threshold; pure counts.

A gate is judged by its recall, for a defect that it passes is never looked at again; its precision only says how much
work is left for the segmenter. Recall and precision as Van Rijsbergen 1979 has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.operating_point import Rate


@dataclass(frozen=True)
class GatePoint:
    """One threshold."""

    threshold: float  # P(defect) of a picture's worst tile from which it is sent on
    recall: Rate  # of the defective pictures, those sent on
    precision: Rate  # of those sent on, the defective ones
    sent: Rate  # of all


def gate_curve(
    p_defect: npt.NDArray[np.float64], defective: npt.NDArray[np.bool_], thresholds: Sequence[float]
) -> list[GatePoint]:
    """P(defect) and truth of N pictures, [N] each → one point a threshold, in their order.

    >>> p, truth = np.array([0.9, 0.4, 0.2, 0.0]), np.array([True, True, False, False])
    >>> [(str(each.recall.count), each.precision.total) for each in gate_curve(p, truth, (0.1, 0.5))]
    [('2', 3), ('1', 1)]
    """
    points = []
    for threshold in thresholds:
        sent = p_defect >= threshold
        hit, count = int((sent & defective).sum()), int(sent.sum())
        points.append(
            GatePoint(threshold, Rate(hit, int(defective.sum())), Rate(hit, count), Rate(count, len(p_defect)))
        )
    return points
