"""What fixed rules find in low-contrast pictures, as a mark for networks to beat; it learns nothing.

`box_threshold` is the honest rule. `leaked` is none: it reads the published set's uniform noise, and is here so that
everybody can see how far that alone leads there, and how little of it is left on Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import Pixels

Mask = npt.NDArray[np.bool_]

LEAST_INSIDE = 103  # grey level that the published pictures have in a defect


def box_threshold(pixels: Pixels, background: float = 112.0, side: int = 17, above: float = 1.4) -> Mask:
    """Where the mean over side × side px lies `above` grey levels over the background; bool [H, W].

    Beyond the border there is background. 1.4 is the best threshold on the published pictures themselves.
    """
    over = pixels.astype(np.float32) - np.float32(background)
    mean = cv2.boxFilter(over, cv2.CV_32F, (side, side), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(mean > above)


def leaked(pixels: Pixels, side: int = 11) -> Mask:
    """Everything that a square of this side covers without a value that only background has; bool [H, W]."""
    possible = (pixels >= LEAST_INSIDE).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(possible, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)) > 0)


def pooled_dice(pairs: Iterable[tuple[Mask, Mask]]) -> float:
    """2 TP ÷ (2 TP + FP + FN) over the pixels of all (found, true) masks [H, W] together; 1 when both are empty."""
    both = either = 0
    for found, true in pairs:
        both += 2 * int((found & true).sum())
        either += int(found.sum()) + int(true.sum())
    return both / either if either else 1.0
