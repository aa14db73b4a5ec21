"""How far a label map agrees with the truth, in pooled pixel counts; it knows neither network nor judgement.

Per class c, with P the pixels called c and T the pixels that are c, over all pictures together:

    Dice  2·|P ∩ T| / (|P| + |T|)    Dice 1945, doi:10.2307/1932409
    IoU   |P ∩ T| / |P ∪ T|          Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x

Pooled, an empty picture neither adds nor takes. A mean over pictures pays for every empty one, so it is never given
without what finding nothing at all would score. A figure is None where nothing was there to be counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED

Pixels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


@dataclass
class Agreement:
    """Adds up label maps with their truths, for `classes` classes of which 0 is the background."""

    classes: int
    both: Counts = field(init=False)  # [K] pixels called and truly of that class
    found: Counts = field(init=False)  # [K] called
    true: Counts = field(init=False)  # [K] truly
    any_both: int = 0  # pixels called defective and truly so, whatever the class
    pictures: int = 0  # with at least one pixel that counts
    empty_pairs: int = 0  # (picture, defect class) without a true pixel: what finding nothing gets right
    dice_sum: float = 0.0  # over (picture, defect class), both empty counting 1

    def __post_init__(self) -> None:
        self.both, self.found, self.true = (np.zeros(self.classes, np.int64) for _ in range(3))

    def add(self, found: Pixels, true: Pixels) -> None:
        """Count one picture: two uint8 arrays [H, W] of class indexes; IGNORED in `true` does not count.

        Raises ValueError when the two differ in shape.
        """
        if found.shape != true.shape:
            raise ValueError(f"labels of {found.shape} cannot be compared with a truth of {true.shape}")
        known = true != IGNORED
        if not known.any():
            return
        joint = self._joint(found[known], true[known])
        both, called, real = joint.diagonal(), joint.sum(axis=0), joint.sum(axis=1)
        self.both += both
        self.found += called
        self.true += real
        self.any_both += int(joint[1:, 1:].sum())
        self._add_means(both[1:], called[1:] + real[1:], real[1:])

    def _joint(self, found: Pixels, true: Pixels) -> Counts:
        """[K true, K found] pixel counts."""
        pairs = true.astype(np.int64) * self.classes + found
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def _add_means(self, both: Counts, sums: Counts, real: Counts) -> None:
        self.pictures += 1
        self.empty_pairs += int(np.count_nonzero(real == 0))
        self.dice_sum += sum(2 * int(b) / int(s) if s else 1.0 for b, s in zip(both, sums, strict=True))

    @property
    def known(self) -> bool:
        """Is any pixel truly defective? Without one no figure of pixels says anything."""
        return bool(self.true[1:].any())

    def dice(self, index: int) -> float | None:
        """Of one class; None when it is neither called nor true."""
        return _ratio(2 * int(self.both[index]), int(self.found[index] + self.true[index]))

    def iou(self, index: int) -> float | None:
        """Of one class; None when it is neither called nor true."""
        return _ratio(int(self.both[index]), int(self.found[index] + self.true[index] - self.both[index]))

    @property
    def defect_dice(self) -> float | None:
        """Defective against good, whatever the class."""
        return _ratio(2 * self.any_both, int(self.found[1:].sum() + self.true[1:].sum())) if self.known else None

    @property
    def class_aware_dice(self) -> float | None:
        """All defect classes together; a pixel counts as found only in its own class."""
        sums = int(self.found[1:].sum() + self.true[1:].sum())
        return _ratio(2 * int(self.both[1:].sum()), sums) if self.known else None

    @property
    def mean_iou(self) -> float | None:
        """Mean of the IoU of the defect classes that are truly there; the background is left out."""
        there = [self.iou(index) for index in range(1, self.classes) if self.true[index]]
        values = [value for value in there if value is not None]
        return sum(values) / len(values) if values else None

    @property
    def mean_image_dice(self) -> float | None:
        """Mean over (picture, defect class), both empty counting 1: the Severstal competition's figure."""
        return _ratio(self.dice_sum, self.pictures * (self.classes - 1)) if self.known else None

    @property
    def mean_image_dice_of_nothing(self) -> float | None:
        """What an empty label map would score there: the share of pairs without a true pixel (Severstal: 0.8556)."""
        return _ratio(self.empty_pairs, self.pictures * (self.classes - 1)) if self.known else None


def image_dice(found: Pixels, true: Pixels) -> float | None:
    """Defective against good in one picture; None without a defective pixel on either side, or with none known."""
    known = true != IGNORED
    called, real = (found > 0) & known, (true > 0) & known
    sums = int(np.count_nonzero(called)) + int(np.count_nonzero(real))
    return _ratio(2 * int(np.count_nonzero(called & real)), sums)


@dataclass
class Confusion:
    """Pictures by true class and by what was said: one of the classes, or the extra last column."""

    classes: int
    counts: Counts = field(init=False)  # [K true, K + 1 said]; column K: neither good nor bad, sent to a person

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes + 1), np.int64)

    def add(self, true: int, said: int | None) -> None:
        """Count one picture; None: it was sent to a person."""
        self.counts[true, self.classes if said is None else said] += 1

    def recall(self, index: int) -> float | None:
        """Of the pictures of this class, the share that was called so."""
        return _ratio(int(self.counts[index, index]), int(self.counts[index].sum()))

    @property
    def accuracy(self) -> float | None:
        """Of all pictures, the share whose class was said; a picture sent to a person is not one of them."""
        return _ratio(int(self.counts.trace()), int(self.counts.sum()))

    @property
    def accuracy_good_bad(self) -> float | None:
        """Of all pictures, the share called good or bad rightly, whatever the class."""
        right = self.counts[0, 0] + self.counts[1:, 1:-1].sum()
        return _ratio(int(right), int(self.counts.sum()))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
