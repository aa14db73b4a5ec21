"""The form `deep-pcb`: a board picture, its golden template and boxes of six defect types; it trains on nothing.

`trainval.txt` and `test.txt` list pairs `group20085/20085/20085000.jpg group20085/20085_not/20085000.txt`; the
picture is `20085000_test.jpg`, its template `20085000_temp.jpg` (github.com/tangsanli5201/DeepPCB). Without such a
list every picture with a template counts. A line of a box file is `x1 y1 x2 y2 type`, separated by spaces or commas,
x2 and y2 just outside the box. Boxes are what the data marks, so labels fill them, the later box winning where two
overlap: regions of such labels are the boxes again (F1 0.999 at an overlap of 0.33), while those of the pixels in
which picture and template differ fall into fragments (0.12). All pictures of a board group are one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from engines.datasets.foreign_text import read_text
from engines.datasets.grouping import grouped
from engines.datasets.labelled import (
    Box,
    Dataset,
    DatasetError,
    Options,
    Problem,
    Sample,
    Shape,
    Truth,
    UnreadablePictureError,
    most_frequent_defect,
)
from engines.datasets.listing import Listing, list_files

TYPES = ("good", "open", "short", "mousebite", "spur", "copper", "pin-hole")
PICTURE, TEMPLATE, BOXES = "_test", "_temp", "_not"


def fits(folder: Path) -> bool:
    """Whether a picture `…_test` has a template `…_temp` beside it and box files in a folder `…_not`."""
    files = list_files(folder).files
    stems = {path.rpartition(".")[0] for path in files}
    has_boxes = any(f"{BOXES}/" in path and path.lower().endswith(".txt") for path in files)
    return has_boxes and any(stem.endswith(PICTURE) and f"{stem[: -len(PICTURE)]}{TEMPLATE}" in stems for stem in stems)


def open(folder: Path, options: Options) -> Dataset:
    """List pictures with template and boxes; raises DatasetError when class names are not seven."""
    if options.classes and len(options.classes) != len(TYPES):
        raise DatasetError(f"deep-pcb has {len(TYPES)} classes ({', '.join(TYPES)}); name as many, or none")
    listing = list_files(folder)
    samples, problems = [], []
    for name, boxes in _pairs(listing):
        try:
            samples.append(_sample(listing, name, boxes))
        except UnreadablePictureError as error:
            problems.append(Problem(_twin(name, PICTURE), str(error)))
    known = {sample.image for sample in samples} | {problem.path for problem in problems}
    problems += [Problem(path, "is in none of the lists") for path in _boards(listing) if path not in known]
    placed, unknown = grouped(samples, listing, options)
    problems = [*listing.problems, *problems, *unknown]
    return Dataset(
        folder, "deep-pcb", options.classes or TYPES, placed, _Truths(folder).truth_of, tuple(dict.fromkeys(problems))
    )


@dataclass(frozen=True)
class _Truths:
    folder: Path

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError when the boxes cannot be read, with the line."""
        boxes = read_boxes(self.folder / sample.truth, shape)
        labels = np.zeros(shape, np.uint8)
        for box in boxes:
            labels[box.y : box.y + box.height, box.x : box.x + box.width] = box.class_index
        return Truth(most_frequent_defect(labels) or (boxes[0].class_index if boxes else 0), labels, boxes)


def read_boxes(path: Path, shape: Shape) -> tuple[Box, ...]:
    """The boxes of one file, for a picture [H, W]; raises UnreadablePictureError with the line that is wrong."""
    boxes = []
    try:
        lines = read_text(path).splitlines()
    except DatasetError as error:
        raise UnreadablePictureError(str(error)) from error
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        try:
            if words:
                boxes.append(_box([int(word) for word in words], shape))
        except ValueError as error:
            reason = "holds no whole numbers" if "invalid literal" in str(error) else str(error)
            raise UnreadablePictureError(f"{path.name}, line {number}: {reason}") from error
    return tuple(boxes)


def _box(numbers: list[int], shape: Shape) -> Box:
    if len(numbers) != 5:
        raise ValueError(f"has {len(numbers)} numbers instead of x1 y1 x2 y2 type")
    left, top, right, bottom, kind = numbers
    if not 1 <= kind < len(TYPES):
        raise ValueError(f"type {kind} is none of 1…{len(TYPES) - 1}")
    if not (0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]):
        raise ValueError(f"box {left} {top} {right} {bottom} does not lie in the picture of {shape[1]}×{shape[0]} px")
    return Box(left, top, right - left, bottom - top, kind)


def _pairs(listing: Listing) -> Iterator[tuple[str, str]]:
    """Picture and box file as the lists name them, or as they lie on disk where there is no list."""
    lists = [path for path in listing.with_suffix(".txt", root_only=True) if _is_list(listing.folder / path)]
    for path in lists:
        for line in read_text(listing.folder / path).splitlines():
            words = line.replace(",", " ").split()
            if words:
                yield (words[0], words[1]) if len(words) == 2 else (line.strip(), "")
    for path in [] if lists else _boards(listing):
        pure = PurePosixPath(path)
        stem = pure.stem.removesuffix(PICTURE)
        yield path, f"{pure.parent}{BOXES}/{stem}.txt"


def _is_list(path: Path) -> bool:
    words = read_text(path).partition("\n")[0].replace(",", " ").split()
    return len(words) == 2 and words[1].lower().endswith(".txt")


def _boards(listing: Listing) -> list[str]:
    return [path for path in listing.pictures() if PurePosixPath(path).stem.endswith(PICTURE)]


def _sample(listing: Listing, name: str, boxes: str) -> Sample:
    if not boxes:
        raise UnreadablePictureError("its line in the list does not name a picture and a box file")
    picture, template = listing.find(_twin(name, PICTURE)), listing.find(_twin(name, TEMPLATE))
    folders = PurePosixPath(picture).parts[:-1]
    group = next((part for part in folders if part.startswith("group")), "/".join(folders)) or picture
    return Sample(picture, listing.find(boxes), group, None, template)


def _twin(name: str, ending: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem.removesuffix(PICTURE)}{ending}{dot}{suffix}"
