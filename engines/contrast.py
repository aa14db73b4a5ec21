"""The contrast steps a recipe can ask for, the same in training and on the line; pure."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
CONTRASTS = ("none", "equalize", "clahe")


def contrasted(picture: Pixels, step: str) -> Pixels:
    """uint8 [H, W] or [H, W, 3] BGR, of the same shape; of a coloured picture the lightness alone (CIELAB).

    `equalize`: histogram equalisation; `clahe`: contrast limited, 8 × 8 cells, clip limit 2 (Zuiderveld 1994).
    """
    if step == "none":
        return picture
    if picture.ndim == 3:
        lab = cv2.cvtColor(picture, cv2.COLOR_BGR2LAB)
        lab[..., 0] = contrasted(np.ascontiguousarray(lab[..., 0]), step)
        return cast(Pixels, cv2.cvtColor(lab, cv2.COLOR_LAB2BGR))
    if step == "equalize":
        return cast(Pixels, cv2.equalizeHist(picture))
    return cast(Pixels, cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(picture))
