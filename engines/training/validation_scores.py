"""How good a network is while it is being taught, in one number for pixels and one for pictures; nothing is kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.datasets.agreement import Agreement


def pixel_score(agreement: Agreement) -> float:
    """Mean of the Dice of defect against good, and of the mean Dice of the classes that are truly there; 0 … 1.

    1 where there is no defect and none is found.
    """
    if agreement.defect_dice is None:
        return float(not agreement.found[1:].any())
    there = [agreement.dice(index) or 0.0 for index in range(1, agreement.classes) if agreement.true[index]]
    return (agreement.defect_dice + float(np.mean(there))) / 2


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
