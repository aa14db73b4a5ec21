"""How good answers are, as numbers with their counts: escapes, overkill, Dice; it knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.training.tiles import IGNORED


def area_under_roc(defective: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that a defective item scores above a good one, ties half (Mann and Whitney 1947); 0 … 1.

    NaN when one of the two kinds is missing.
    """
    truth, values = np.asarray(defective, bool), np.asarray(scores, float)
    bad, good = values[truth], np.sort(values[~truth])
    if not bad.size or not good.size:
        return float("nan")
    below, up_to = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float((below + up_to).sum() / (2 * bad.size * good.size))


@dataclass
class Overlap:
    """Pixel counts per class, pooled over pictures."""

    classes: int
    both: npt.NDArray[np.int64] = field(init=False)  # [K] predicted and true
    predicted: npt.NDArray[np.int64] = field(init=False)  # [K]
    true: npt.NDArray[np.int64] = field(init=False)  # [K]

    def __post_init__(self) -> None:
        self.both, self.predicted, self.true = (np.zeros(self.classes, np.int64) for _ in range(3))

    def add(self, predicted: npt.NDArray[np.uint8], true: npt.NDArray[np.uint8]) -> None:
        """Count one picture or batch: two uint8 arrays of one shape; IGNORED in `true` does not count."""
        valid = true != IGNORED
        predicted, true = predicted[valid], true[valid]
        self.predicted += np.bincount(predicted, minlength=self.classes)
        self.true += np.bincount(true, minlength=self.classes)
        self.both += np.bincount(true[predicted == true], minlength=self.classes)

    def dice(self) -> list[float]:
        """2 · both / (predicted + true) per class; NaN for a class that is neither predicted nor true."""
        sums = self.predicted + self.true
        return [2 * int(b) / int(s) if s else float("nan") for b, s in zip(self.both, sums, strict=True)]

    def pooled_dice(self) -> float:
        """Dice of all defect classes' pixels together; a pixel counts as found only in its own class."""
        return float(2 * self.both[1:].sum() / max(1, (self.predicted + self.true)[1:].sum()))

    def mean_dice(self) -> float:
        """Mean Dice of the defect classes that are truly there."""
        there = [dice for dice, true in zip(self.dice()[1:], self.true[1:], strict=True) if true]
        return float(np.mean(there)) if there else 0.0


@dataclass
class Tally:
    """Judgements counted per true class: judgements[class][judgement] = number of pictures."""

    classes: Sequence[str]
    judgements: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, class_index: int, judgement: str) -> None:
        """Count one picture; judgement is OK, NG or REVIEW."""
        row = self.judgements.setdefault(self.classes[class_index], {"OK": 0, "NG": 0, "REVIEW": 0})
        row[judgement] += 1

    def escapes(self) -> tuple[int, int]:
        """(defective judged OK, defective)."""
        rows = [row for name, row in self.judgements.items() if name != self.classes[0]]
        return sum(row["OK"] for row in rows), sum(sum(row.values()) for row in rows)

    def overkill(self) -> tuple[int, int]:
        """(good judged NG, good)."""
        row = self.judgements.get(self.classes[0], {"NG": 0})
        return row["NG"], sum(row.values())
