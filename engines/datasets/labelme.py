"""The form `labelme`: shapes drawn in labelme, one JSON file a picture (3.x to 5.x); what a shape fills says `drawing`.

Polygons (also without `shape_type`, as before 3.5), rectangles by two corners or four, circles by centre and a point
of the rim, lines and line strips 3 px wide, points of 3 px radius, and masks as a PNG patch. A later shape covers an
earlier one. Classes are the labels in alphabetical order, after the good one; as in labelme `__ignore__` is not known
and `_background_` good. A picture without a JSON file is a problem: labelme writes one as soon as it is saved.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from engines.datasets import drawing
from engines.datasets.foreign_text import read_json
from engines.datasets.grouping import grouped
from engines.datasets.labelled import (
    IGNORED,
    Dataset,
    DatasetError,
    Options,
    Problem,
    Sample,
    Shape,
    Truth,
    UnreadablePictureError,
    check_size,
    good_class,
    most_frequent_defect,
)
from engines.datasets.listing import Listing, list_files

IGNORE, BACKGROUND = "__ignore__", "_background_"
MORPHOLOGY = ("", "open", "close")


@dataclass(frozen=True)
class Drawn:
    """One shape of a file."""

    label: str
    kind: str
    points: tuple[tuple[float, float], ...]  # x, y in px
    patch: bytes = b""  # PNG, of a shape of kind `mask`


@dataclass(frozen=True)
class Drawing:
    """What one file says."""

    image: str  # path of the picture as the file has it
    size: tuple[int | None, int | None]  # height, width; None in files that do not say
    shapes: tuple[Drawn, ...]


def fits(folder: Path) -> bool:
    """Whether a picture has a JSON file of its name."""
    listing = list_files(folder)
    stems = {PurePosixPath(path).stem for path in listing.pictures()}
    return any(PurePosixPath(path).stem in stems for path in listing.with_suffix(".json"))


def open(folder: Path, options: Options) -> Dataset:
    """Read every JSON file; raises DatasetError for an unknown morphology, or labels without a name."""
    if options.morphology not in MORPHOLOGY:
        raise DatasetError(f"no morphology {options.morphology!r}; known: open, close")
    listing = list_files(folder)
    drawings, sources, problems = _drawings(listing)
    labels = {shape.label for of in drawings.values() for shape in of.shapes} - {IGNORE, BACKGROUND}
    classes = _classes(labels, options)
    index_of = {name: index for index, name in enumerate(classes)} | {IGNORE: IGNORED, BACKGROUND: 0}
    samples = [Sample(path, sources[path], path, None) for path in sorted(drawings)]
    bare = set(listing.pictures()) - set(drawings) - {problem.path for problem in problems}
    problems += [Problem(path, "has no .json file; save it in labelme, without a shape if it is good") for path in bare]
    placed, unknown = grouped(samples, listing, options)
    truths = _Truths(drawings, index_of, options.morphology)
    return Dataset(
        folder, "labelme", classes, placed, truths.truth_of, (*listing.problems, *sorted(problems, key=_path), *unknown)
    )


def read_drawing(path: Path) -> Drawing:
    """What one labelme file says; raises UnreadablePictureError when it is none, with the shape that is wrong."""
    try:
        content = read_json(path)
    except DatasetError as error:
        raise UnreadablePictureError(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UnreadablePictureError(f"{path.name} is no labelme file: it has no list of shapes")
    image = content.get("imagePath")
    size = (_size(content, "imageHeight"), _size(content, "imageWidth"))
    shapes = tuple(_drawn(shape, number) for number, shape in enumerate(content["shapes"], 1))
    return Drawing(image if isinstance(image, str) else "", size, shapes)


@dataclass(frozen=True)
class _Truths:
    drawings: Mapping[str, Drawing]
    index_of: Mapping[str, int]
    morphology: str

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError when the file is of another picture size, or a shape cannot be drawn."""
        of = self.drawings[sample.image]
        check_size(of.size, shape, "labelled as")
        labels = np.zeros(shape, np.uint8)
        for number, drawn in enumerate(of.shapes, 1):
            try:
                labels[filled(drawn, shape)] = self.index_of[drawn.label]
            except ValueError as error:
                raise UnreadablePictureError(f"shape {number} ({drawn.label}): {error}") from error
        if self.morphology:
            known = np.where(labels == IGNORED, np.uint8(0), labels)
            labels = np.where(labels == IGNORED, labels, drawing.smoothed(known, self.morphology))
        return Truth(most_frequent_defect(labels), labels)


def filled(drawn: Drawn, shape: Shape) -> drawing.Mask:
    """The pixels [H, W] of one shape; raises ValueError with the reason when it cannot be drawn."""
    if drawn.kind not in FILLED:
        raise ValueError(f"shape type {drawn.kind!r} is not known; known: {', '.join(FILLED)}")
    drawing.check_near(drawn.points, shape)
    fill, at_least = FILLED[drawn.kind]
    if len(drawn.points) < at_least:
        raise ValueError(f"{drawn.kind} has {len(drawn.points)} points, it needs {at_least}")
    return fill(drawn, shape)


def _circle(drawn: Drawn, shape: Shape) -> drawing.Mask:
    (x, y), rim = drawn.points[:2]
    return drawing.disc((x, y), math.hypot(rim[0] - x, rim[1] - y), shape)


def _points(drawn: Drawn, shape: Shape) -> drawing.Mask:
    mask = np.zeros(shape, bool)
    for x, y in drawn.points:
        mask |= drawing.disc((math.floor(x), math.floor(y)), drawing.POINT_RADIUS_PX, shape)
    return mask


def _rectangle(drawn: Drawn, shape: Shape) -> drawing.Mask:
    if len(drawn.points) > 2:
        return drawing.outlined_polygon(drawn.points, shape)
    return drawing.upright_rectangle(drawn.points, shape)


def _patch(drawn: Drawn, shape: Shape) -> drawing.Mask:
    """A PNG that fills the rectangle between two points, both included; its size is looked at before it is decoded."""
    (left, top), (right, bottom) = ((math.floor(x), math.floor(y)) for x, y in drawn.points[:2])
    if not (0 <= left <= right < shape[1] and 0 <= top <= bottom < shape[0]):
        raise ValueError("mask does not lie in the picture")
    wanted = (bottom - top + 1, right - left + 1)
    told = (int.from_bytes(drawn.patch[20:24], "big"), int.from_bytes(drawn.patch[16:20], "big"))
    if not drawn.patch.startswith(b"\x89PNG") or told != wanted:
        raise ValueError("mask is no PNG of the size that its points say")
    pixels = cv2.imdecode(np.frombuffer(drawn.patch, np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError("mask cannot be decoded")
    mask = np.zeros(shape, bool)
    mask[top : bottom + 1, left : right + 1] = pixels > 0
    return mask


# How each shape type is filled, and how many points it needs.
FILLED: dict[str, tuple[Callable[[Drawn, Shape], drawing.Mask], int]] = {
    "polygon": (lambda drawn, shape: drawing.outlined_polygon(drawn.points, shape), 3),
    "rectangle": (_rectangle, 2),
    "circle": (_circle, 2),
    "line": (lambda drawn, shape: drawing.line(drawn.points, shape), 2),
    "linestrip": (lambda drawn, shape: drawing.line(drawn.points, shape), 2),
    "point": (_points, 1),
    "points": (_points, 1),
    "mask": (_patch, 2),
}


def _drawings(listing: Listing) -> tuple[dict[str, Drawing], dict[str, str], list[Problem]]:
    """What is drawn by picture, the file that says so, and what cannot be used."""
    drawings: dict[str, Drawing] = {}
    sources: dict[str, str] = {}
    problems = []
    for path in listing.with_suffix(".json"):
        picture = path
        try:
            picture = _own_picture(listing, path) or path
            of = read_drawing(listing.folder / path)
            picture = _picture_of(listing, path, of.image)
        except UnreadablePictureError as error:
            problems.append(Problem(picture, str(error)))
            continue
        if picture in drawings:
            problems.append(Problem(path, f"is about {picture}, as is {sources[picture]}"))
        else:
            drawings[picture], sources[picture] = of, path
    return drawings, sources, problems


def _picture_of(listing: Listing, path: str, image: str) -> str:
    """The picture that the file names, or where it was moved without it, the one of the file's own name."""
    try:
        return listing.find(image, str(PurePosixPath(path).parent))
    except UnreadablePictureError as error:
        own = _own_picture(listing, path)
        if not own:
            raise UnreadablePictureError(f"picture {error}") from error
        return own


def _own_picture(listing: Listing, path: str) -> str:
    try:
        return listing.find_anywhere(str(PurePosixPath(path).with_suffix("")))
    except UnreadablePictureError:
        return ""


def _classes(labels: set[str], options: Options) -> tuple[str, ...]:
    if options.classes:
        unknown = sorted(labels - set(options.classes))
        if unknown:
            raise DatasetError(f"shapes are labelled {', '.join(unknown[:20])}, which --classes does not name")
        return options.classes
    if len(labels) >= IGNORED:
        raise DatasetError(f"shapes have {len(labels)} different labels; more than {IGNORED - 1} are no classes")
    good = options.good or good_class(labels) or "good"
    return (good, *sorted(labels - {good}))


def _drawn(shape: Any, number: int) -> Drawn:
    try:
        label, kind = shape["label"], shape.get("shape_type") or "polygon"
        points = tuple((_number(x), _number(y)) for x, y in shape["points"])
        patch = base64.b64decode(shape.get("mask") or "", validate=True) if kind == "mask" else b""
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise UnreadablePictureError(f"shape {number} is not as labelme writes it ({error})") from error
    if not isinstance(label, str) or not isinstance(kind, str):
        raise UnreadablePictureError(f"shape {number} has a label or type that is no text")
    return Drawn(label, kind, points, patch)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9:
        raise ValueError("a coordinate is no number")
    return float(value)


def _size(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnreadablePictureError(f"{key} is no whole number")
    return value


def _path(problem: Problem) -> str:
    return problem.path
