"""Which pictures a person should look at first, and what they look like: escapes, overkill, then the lowest Dice."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED

Gray8 = npt.NDArray[np.uint8]
TRUE, FOUND = (80, 220, 80), (60, 60, 255)  # BGR
SHORTEST_SIDE = 320  # px; smaller pictures are enlarged, so that outlines can be told apart
LONGEST_SIDE = 800  # px; larger ones are shrunk
ORDER = {"escape": 0, "overkill": 1, "": 2}


@dataclass(frozen=True, eq=False)
class Miss:
    """A picture, and how far the recipe was off."""

    wrong: str  # escape, overkill, or "" where only the outline is
    image: str
    true_class: str
    said: str
    p_defect: float
    dice: float | None  # defective against good; None: nothing to outline
    pixels: Gray8  # [H, W] or [H, W, 3]
    true: Gray8  # [H, W]
    found: Gray8  # [H, W]

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the worst first: escapes that looked best, overkill that looked worst, least Dice."""
        weight = {"escape": self.p_defect, "overkill": -self.p_defect}.get(self.wrong, self.dice or 0.0)
        return ORDER[self.wrong], weight


class WorstMisses:
    """Keeps the worst few."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept: list[Miss] = []  # the worst first

    def offer(self, miss: Miss) -> None:
        """Keep it if it is among the worst; a picture without any fault is not."""
        if not miss.wrong and (miss.dice is None or miss.dice == 1.0):
            return
        self.kept.append(miss)
        self.kept.sort(key=lambda miss: miss.rank)
        del self.kept[self._limit :]


def draw_miss(miss: Miss) -> Gray8:
    """BGR picture, enlarged where it is small: what is true outlined in green, what was found in red."""
    picture = cv2.cvtColor(miss.pixels, cv2.COLOR_GRAY2BGR) if miss.pixels.ndim == 2 else miss.pixels.copy()
    height, width = picture.shape[:2]
    zoom = min(max(1.0, SHORTEST_SIDE / min(height, width)), LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_NEAREST)
    for labels, colour in ((miss.true, TRUE), (miss.found, FOUND)):
        mask = ((labels > 0) & (labels != IGNORED)).astype(np.uint8)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 2, cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
