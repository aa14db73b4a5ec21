"""How well defects are found against how faint they are: Dice and recall by contrast-to-noise ratio; it draws nothing.

A pixel that is found and is no defect has no contrast of its own; it is charged to the nearest defect of its picture,
so that every pixel counts once. In a picture without defects there is none to charge: such pixels are told apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import DatasetError, Pixels

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What became of one defect, in px."""

    contrast_to_noise: float
    true_px: int
    found_px: int  # … of them
    false_px: int  # found beside it, and nearer to it than to any other


@dataclass(frozen=True)
class Point:
    """All defects with a contrast-to-noise ratio from `low` to below `high`."""

    low: float
    high: float
    outcomes: tuple[Outcome, ...]

    @property
    def dice(self) -> float | None:
        """2 TP ÷ (2 TP + FP + FN) over their pixels together; None where there is no defect."""
        found = 2 * sum(each.found_px for each in self.outcomes)
        whole = sum(each.true_px + each.found_px + each.false_px for each in self.outcomes)
        return found / whole if whole else None

    @property
    def pixel_recall(self) -> float | None:
        """Share of their pixels that were found; None where there is no defect."""
        true = sum(each.true_px for each in self.outcomes)
        return sum(each.found_px for each in self.outcomes) / true if true else None

    def recall(self, least_share: float = 0.5) -> float | None:
        """Share of defects of which at least this share of pixels was found; None where there is no defect."""
        hit = [each.found_px >= least_share * each.true_px for each in self.outcomes]
        return sum(hit) / len(hit) if hit else None


@dataclass
class ContrastCurve:
    """Add pictures one by one, then ask for points."""

    outcomes: list[Outcome] = field(default_factory=list)
    loose_px: int = 0  # found in pictures without any defect

    def add(self, found: Mask, numbers: Pixels, contrast_to_noise: Sequence[float]) -> None:
        """One picture: found bool [H, W], numbers uint8 [H, W] (0: none, n: defect n), ratios of defects 1, 2, ….

        Raises DatasetError when they do not belong together.
        """
        if found.shape != numbers.shape or int(numbers.max(initial=0)) != len(contrast_to_noise):
            raise DatasetError("found pixels, defect numbers and contrasts are not of one picture")
        if not len(contrast_to_noise):
            self.loose_px += int(found.sum())
            return
        size = len(contrast_to_noise) + 1
        true = np.bincount(numbers.ravel(), minlength=size)
        hits = np.bincount(numbers[found], minlength=size)
        wrong = np.bincount(_nearest(numbers)[found & (numbers == 0)], minlength=size)
        self.outcomes += [
            Outcome(float(ratio), int(true[n]), int(hits[n]), int(wrong[n]))
            for n, ratio in enumerate(contrast_to_noise, start=1)
        ]

    def points(self, edges: Sequence[float]) -> list[Point]:
        """One point for each pair of neighbouring edges; the last one holds its upper edge too.

        Raises DatasetError for edges that do not grow or that leave a defect out.
        """
        if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise DatasetError(f"edges {list(edges)} of a contrast curve must be two or more, each above the last")
        ratios = np.array([each.contrast_to_noise for each in self.outcomes])
        if ratios.size and (ratios.min() < edges[0] or ratios.max() > edges[-1]):
            span = f"{ratios.min():.2f} to {ratios.max():.2f}"
            raise DatasetError(f"defects have contrast-to-noise ratios of {span}; let the edges reach so far")
        place = np.clip(np.searchsorted(edges, ratios, side="right") - 1, 0, len(edges) - 2)
        return [
            Point(edges[i], edges[i + 1], tuple(self.outcomes[k] for k in np.flatnonzero(place == i)))
            for i in range(len(edges) - 1)
        ]


def contrast_curve(
    pictures: Iterable[tuple[Mask, Pixels, Sequence[float]]], edges: Sequence[float]
) -> tuple[list[Point], int]:
    """Points of (found, numbers, contrast-to-noise ratios) of many pictures, and px found where no defect is at all."""
    curve = ContrastCurve()
    for found, numbers, ratios in pictures:
        curve.add(found, numbers, ratios)
    return curve.points(edges), curve.loose_px


def _nearest(numbers: Pixels) -> npt.NDArray[np.int64]:
    """The number of the defect nearest to each pixel; int64 [H, W]."""
    outside = (numbers == 0).astype(np.uint8)
    _, cells = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    owner = np.zeros(int(cells.max()) + 1, np.int64)
    inside = numbers > 0
    owner[cells[inside]] = numbers[inside]
    return np.asarray(owner[cells])
