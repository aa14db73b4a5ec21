"""What is in a data set, counted and measured picture by picture; it draws nothing and shares nothing out.

A defect is a connected region (8-neighbours) of one class in the labels, or a box where boxes are the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engines.datasets.labelled import IGNORED, Box, Dataset, Picture, Pixels, Problem

MAP = 48  # cells of a position map on either side
KEPT_PX = 3.0  # px that a small defect should keep across itself in what a network sees
SPECK_PX = 4  # a mark of fewer px is a slip of the pen rather than a defect
TILES = (64, 96, 128, 192, 256, 384, 512)
SIDES = ("training", "validation", "held-out", "left-out")  # in the order of tables
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Defect:
    """One defect, in px of its picture."""

    class_index: int
    area: int  # px
    width: float  # px across where it is thickest; a box's shorter side
    extent: int  # px, longer side of its upright rectangle


@dataclass(frozen=True)
class PictureFacts:
    """What is kept of one picture."""

    image: str
    group: str
    class_index: int
    height: int
    width: int
    brightness: float  # mean grey value, 0 … 255
    contrast: float  # standard deviation of grey values
    unmarked: bool  # called defective with nothing marked
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class Advice:
    """How a recipe could look at these pictures, from the sizes of their defects."""

    scale: float  # picture.scale
    tile: int  # px, side of the network's input
    small_px: float  # width that 95 % of the defects reach, in the class with the thinnest
    long_px: float  # extent that three quarters of the defects do not exceed


@dataclass
class Census:
    """The facts of every picture that could be read, and what could not; it grows by `add`."""

    classes: tuple[str, ...]
    form: str
    pictures: list[PictureFacts] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _marked: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)

    def add(self, picture: Picture) -> None:
        """Measure one picture; its pixels are not kept."""
        self.pictures.append(facts_of(picture))
        for index in {defect.class_index for defect in self.pictures[-1].defects}:
            shown = _shown(picture, index)
            cells = cv2.resize(shown, (MAP, MAP), interpolation=cv2.INTER_AREA)
            self._marked[index] = self._marked.get(index, np.zeros((MAP, MAP))) + cells

    def position_map(self, class_index: int) -> npt.NDArray[np.float64]:
        """[48, 48], share of the pictures showing this class in which the cell is covered by it, 0 … 1."""
        showing = sum(any(d.class_index == class_index for d in facts.defects) for facts in self.pictures)
        return self._marked.get(class_index, np.zeros((MAP, MAP))) / max(showing, 1)

    def class_of(self) -> dict[str, int]:
        """Class by picture path, of every picture that could be read."""
        return {facts.image: facts.class_index for facts in self.pictures}


def new_census(dataset: Dataset) -> Census:
    """An empty one that already holds the items which the form could not list."""
    return Census(dataset.classes, dataset.form, problems=list(dataset.problems))


def facts_of(picture: Picture) -> PictureFacts:
    """Measure one picture."""
    grey = cv2.cvtColor(picture.pixels, cv2.COLOR_BGR2GRAY) if picture.pixels.ndim == 3 else picture.pixels
    mean, deviation = cv2.meanStdDev(grey)
    height, width = picture.labels.shape
    return PictureFacts(
        picture.sample.image,
        picture.sample.group,
        picture.class_index,
        height,
        width,
        float(mean[0, 0]),
        float(deviation[0, 0]),
        picture.unmarked and not picture.boxes,
        tuple(defects_of(picture.labels, picture.boxes)),
    )


def defects_of(labels: Pixels, boxes: Sequence[Box] | None = None) -> list[Defect]:
    """Defects of labels uint8 [H, W], class by class in the order of their first pixel; boxes take precedence."""
    if boxes is not None:
        return [
            Defect(b.class_index, b.width * b.height, float(min(b.width, b.height)), max(b.width, b.height))
            for b in boxes
        ]
    found = []
    for index in np.unique(labels):
        if index not in (0, IGNORED):
            found += _regions(labels == index, int(index))
    return found


def _regions(mask: npt.NDArray[np.bool_], class_index: int) -> list[Defect]:
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    # The border counts as the end of a defect: padded, so that one at the edge is not measured as thicker.
    inside = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    thickest = np.zeros(count)
    np.maximum.at(thickest, regions[mask], inside[mask])
    return [
        # A distance of 1 px is from the middle of a pixel to the middle of the next one outside.
        Defect(class_index, int(area), float(2 * thickest[number] - 1), int(max(width, height)))
        for number, (_, _, width, height, area) in enumerate(stats)
        if number
    ]


def _shown(picture: Picture, class_index: int) -> npt.NDArray[np.float32]:
    if picture.boxes is None:
        return (picture.labels == class_index).astype(np.float32)
    shown = np.zeros(picture.labels.shape, np.float32)
    for box in picture.boxes:
        if box.class_index == class_index:
            shown[box.y : box.y + box.height, box.x : box.x + box.width] = 1
    return shown


def advise(census: Census) -> Advice | None:
    """Scale and tile for a recipe; None where no defect is marked.

    The scale shrinks only as far as 95 % of every class's defects keep 3 px across; the tile is the smallest usual one
    into which three quarters of the defects then go whole. Specks say nothing of either.
    """
    defects = [d for facts in census.pictures for d in facts.defects if d.area >= SPECK_PX]
    if not defects:
        return None
    widths = [[defect.width for defect in defects if defect.class_index == i] for i in range(len(census.classes))]
    small = min(float(np.percentile(of_class, 5)) for of_class in widths if of_class)
    long = float(np.percentile([defect.extent for defect in defects], 75))
    scale = min(1.0, max(0.1, np.ceil(20 * KEPT_PX / max(small, 1.0)) / 20))
    tile = next((tile for tile in TILES if tile >= long * scale), TILES[-1])
    return Advice(float(scale), tile, small, long)


def class_table(census: Census) -> dict[str, dict[str, Any]]:
    """Per class: pictures called so, groups that hold one, pictures with it marked, defects, their sizes."""
    table: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(census.classes):
        called = [facts for facts in census.pictures if facts.class_index == index]
        defects = [defect for facts in census.pictures for defect in facts.defects if defect.class_index == index]
        table[name] = {
            "pictures": len(called),
            "groups": len({facts.group for facts in called}),
            "pictures_marked": sum(any(d.class_index == index for d in facts.defects) for facts in census.pictures),
            "defects": len(defects),
            "area_px": percentiles([defect.area for defect in defects]),
            "width_px": percentiles([defect.width for defect in defects]),
            "brightness": percentiles([facts.brightness for facts in called]),
        }
    return table


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`{"p5": …, "p95": …}`, empty without values."""
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"p{name}": round(float(value), 2) for name, value in zip(PERCENTILES, found, strict=True)}


def side_table(census: Census, side_of: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Per side of a split: pictures of each class."""
    table: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
    for facts in census.pictures:
        table[side_of.get(facts.image, "training")][census.classes[facts.class_index]] += 1
    return {side: {name: counts[name] for name in census.classes} for side, counts in table.items() if counts}


def disagreeing(census: Census, sets: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Sets of near-duplicates that are called good and defective: labels worth a second look."""
    class_of = census.class_of()
    found = []
    for paths in sets:
        called = {class_of[path] > 0 for path in paths if path in class_of}
        if len(called) > 1:
            found.append(tuple(paths))
    return found


def as_json(census: Census) -> dict[str, Any]:
    """The numbers of the page for a machine; `advice` is null where no defect is marked."""
    pictures = census.pictures
    advice = advise(census)
    per_picture = Counter(len(facts.defects) for facts in pictures)
    sizes = Counter(f"{facts.width}×{facts.height}" for facts in pictures)
    return {
        "form": census.form,
        "classes": list(census.classes),
        "pictures": len(pictures),
        "good": sum(facts.class_index == 0 for facts in pictures),
        "defective": sum(facts.class_index > 0 for facts in pictures),
        "unmarked": sum(facts.unmarked for facts in pictures),
        "groups": len({facts.group for facts in pictures}),
        "defects": sum(len(facts.defects) for facts in pictures),
        "specks": sum(defect.area < SPECK_PX for facts in pictures for defect in facts.defects),
        "defects_per_picture": {str(count): per_picture[count] for count in sorted(per_picture)},
        "sizes": {
            "different": len(sizes),
            "most_frequent": sizes.most_common(1)[0][0] if sizes else "",
            "width_px": percentiles([facts.width for facts in pictures]),
            "height_px": percentiles([facts.height for facts in pictures]),
        },
        "per_class": class_table(census),
        "advice": asdict(advice) if advice else None,
        "problems": [asdict(problem) for problem in census.problems],
    }
