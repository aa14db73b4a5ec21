"""The line's cascade on a set of pictures, to choose rules and report figures; it knows nothing of the line.

Classifier over every tile, segmenter over the suspect ones, connected areas per class, rules, judgement. It
uses the exported files, so that what is measured is what is shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engines import open_engine
from engines.base import Engine, EngineOptions, Outputs
from engines.training.dataset import Picture, Pixels
from engines.training.tiles import TileShape, cover, cut, scaled


@dataclass(frozen=True)
class Rules:
    """When a picture is bad."""

    threshold: float = 0.01  # a tile with P(defect) at or above it goes to the segmenter
    min_area: int = 20  # px of the picture; smaller areas are no defect
    min_score: float = 0.5  # mean confidence, 0 … 1, below which an area is no defect
    review_above: float = 0.9  # P(defect) from which a picture without a defect still goes to a person


@dataclass(frozen=True, eq=False)
class Answers:
    """Everything the two networks say about one picture, before any rule."""

    shape: tuple[int, int]  # of the picture, px
    corners: list[tuple[int, int]]  # (y, x) per tile, scaled px
    defect: npt.NDArray[np.float32]  # [T] P(defect) per tile
    labels: Pixels  # [T, size, size]
    confidence: Pixels  # [T, size, size]
    scale: float


@dataclass(frozen=True)
class Defect:
    """A connected area that passes the rules."""

    class_index: int
    area: int  # px of the picture
    score: float


def ask_networks(
    pictures: list[Picture], model: Path, classes: tuple[str, ...], shape: TileShape, batch: int = 8
) -> Iterator[Answers]:
    """Run `classifier.onnx` and `segmenter.onnx` of a model folder over whole pictures, in order."""
    options = EngineOptions(max_batch=batch)
    with ExitStack() as stack:
        classifier = stack.enter_context(open_engine("cpu", model / "classifier.onnx", "classifier", classes, options))
        segmenter = stack.enter_context(open_engine("cpu", model / "segmenter.onnx", "segmenter", classes, options))
        for picture in pictures:
            pixels = scaled(picture, shape.scale).pixels
            corners = cover(pixels, shape)
            tiles = np.stack([cut(pixels, y, x, shape.size) for y, x in corners])[..., None]
            scores = _run(classifier, tiles)["scores"]
            found = _run(segmenter, tiles)
            yield Answers(
                (picture.pixels.shape[0], picture.pixels.shape[1]),
                corners,
                1 - scores[:, 0].astype(np.float32),
                found["labels"].astype(np.uint8),
                found["confidence"].astype(np.uint8),
                shape.scale,
            )


def _run(engine: Engine, tiles: Pixels) -> Outputs:
    size = engine.spec.max_batch
    parts = [engine.submit(tiles[start : start + size]).result() for start in range(0, len(tiles), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stitch(answers: Answers, threshold: float) -> tuple[Pixels, Pixels]:
    """Labels and confidence, uint8 [H, W] of the picture; tiles below the threshold are background.

    Where tiles overlap, each has the half of the overlap that is nearer to its middle.
    """
    height, width = (max(1, round(side * answers.scale)) for side in answers.shape)
    labels, confidence = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    size = answers.labels.shape[1]
    rows = _owned({y for y, _ in answers.corners}, size, height)
    columns = _owned({x for _, x in answers.corners}, size, width)
    for tile in np.flatnonzero(answers.defect >= threshold):
        y, x = answers.corners[tile]
        (top, bottom), (left, right) = rows[y], columns[x]
        inside = np.s_[top - y : bottom - y, left - x : right - x]
        labels[top:bottom, left:right] = answers.labels[tile][inside]
        confidence[top:bottom, left:right] = answers.confidence[tile][inside]
    back = (answers.shape[1], answers.shape[0])
    resized = [cv2.resize(plane, back, interpolation=cv2.INTER_NEAREST) for plane in (labels, confidence)]
    return np.asarray(resized[0], np.uint8), np.asarray(resized[1], np.uint8)


def _owned(starts: set[int], size: int, length: int) -> dict[int, tuple[int, int]]:
    """First and end of the part that the tile at each start has for itself, along one axis."""
    ordered = sorted(starts)
    cuts = [0, *((a + size + b) // 2 for a, b in pairwise(ordered)), length]
    return dict(zip(ordered, pairwise(cuts), strict=True))


def find_defects(labels: Pixels, confidence: Pixels, rules: Rules, classes: tuple[str, ...]) -> list[Defect]:
    """Connected areas (8 neighbours) of each class that are large and sure enough."""
    defects = []
    for index in range(1, len(classes)):
        mask = (labels == index).astype(np.uint8)
        if not mask.any():
            continue
        count, marks, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        sums = np.bincount(marks.ravel(), weights=confidence.ravel(), minlength=count)
        for component in range(1, count):
            area = int(stats[component, cv2.CC_STAT_AREA])
            score = float(sums[component] / area / 255)
            if area >= rules.min_area and score >= rules.min_score:
                defects.append(Defect(index, area, score))
    return defects


def judge(answers: Answers, defects: list[Defect], rules: Rules) -> str:
    """NG with a defect; REVIEW when the classifier is sure of one nobody found; otherwise OK."""
    if defects:
        return "NG"
    return "REVIEW" if answers.defect.max() >= rules.review_above else "OK"
