"""Which pictures of a data set are shown to a person, small, with their defects outlined; it measures nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED, Box, Picture, Pixels

PER_CLASS = 5
LONG_SIDE = 400  # px
# BGR, by class index, again from the second on where there are more; the good one is first
COLOURS = (
    (143, 157, 42), (91, 73, 209), (163, 111, 29), (59, 162, 233), (191, 107, 142), (58, 158, 90), (168, 111, 194),
    (46, 92, 140), (190, 170, 60),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Outline:
    """The rim of one defect."""

    class_index: int
    points: npt.NDArray[np.float32]  # [N, 2], x and y in px of the shown picture; the first is the last again


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture as it is shown."""

    image: str
    pixels: Pixels  # uint8 [h, w, 3] BGR, the longer side at most 400 px
    outlines: tuple[Outline, ...] = ()


@dataclass
class Gallery:
    """The first pictures of each class, each of another part as far as there are enough; it grows by `add`."""

    by_class: dict[int, list[Shown]] = field(default_factory=lambda: defaultdict(list))
    _groups: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, picture: Picture) -> None:
        """Keep the picture where its class still has room and its part is not shown yet."""
        index, group = picture.class_index, picture.sample.group
        if len(self.by_class[index]) < PER_CLASS and group not in self._groups[index]:
            self._groups[index].add(group)
            self.by_class[index].append(shown(picture))


def shown(picture: Picture) -> Shown:
    """The picture shrunk, and the rim of each of its defects, or its boxes where they are the truth."""
    pixels = shrunk(picture.pixels)
    factor = pixels.shape[1] / picture.pixels.shape[1]
    rims = _boxes(picture.boxes) if picture.boxes is not None else _rims(picture.labels)
    # A pixel's middle is half a pixel from its corner, before and after.
    outlines = tuple(Outline(rim.class_index, (rim.points + 0.5) * factor - 0.5) for rim in rims)
    return Shown(picture.sample.image, pixels, outlines)


def _rims(labels: Pixels) -> list[Outline]:
    found = []
    for index in np.unique(labels):
        if index not in (0, IGNORED):
            around, _ = cv2.findContours((labels == index).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            found += [Outline(int(index), _closed(line[:, 0, :])) for line in around]
    return found


def _boxes(boxes: Sequence[Box]) -> list[Outline]:
    corners = [
        (box, np.array([(0, 0), (box.width - 1, 0), (box.width - 1, box.height - 1), (0, box.height - 1)]))
        for box in boxes
    ]
    return [Outline(box.class_index, _closed(around + np.array((box.x, box.y)))) for box, around in corners]


def _closed(points: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.vstack([points, points[:1]]).astype(np.float32)


def shrunk(pixels: Pixels) -> Pixels:
    """uint8 [h, w, 3] BGR with a longer side of at most 400 px; never enlarged, always a copy."""
    factor = min(1.0, LONG_SIDE / max(pixels.shape[:2]))
    height, width = (max(1, round(size * factor)) for size in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_GRAY2BGR) if small.ndim == 2 else small.copy(), np.uint8)


def colour(class_index: int) -> tuple[int, int, int]:
    """BGR of a class."""
    return COLOURS[class_index if class_index < len(COLOURS) else 1 + (class_index - 1) % (len(COLOURS) - 1)]


def bright(class_index: int) -> tuple[int, int, int]:
    """BGR of a class, half way to white: seen on a dark part too."""
    blue, green, red = ((value + 255) // 2 for value in colour(class_index))
    return blue, green, red
