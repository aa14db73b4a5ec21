"""The form `id-label`: a CSV `ID,Label` and pictures of these names; it knows the class of a picture, never its place.

Labels are numbers, 0 the good one, named by the options or, up to 5, as in the AOI contest; or they are names. A row
without a label is one of the test part. Pixels are not known, but for good pictures, which are background all over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from engines.datasets.foreign_text import columns, read_table
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
    good_class,
)
from engines.datasets.listing import Listing, list_files

# Classification of AOI defects, AIdea (ITRI): label 0 to 5.
CONTEST_CLASSES = ("normal", "void", "horizontal defect", "vertical defect", "edge defect", "particle")
NUMBER = re.compile(r"(\d{1,4})(\.0*)?")  # `3.0`: a table that went through a tool without whole numbers


def fits(folder: Path) -> bool:
    """Whether a CSV with the columns ID and Label lies at the top."""
    return bool(_tables(list_files(folder)))


def open(folder: Path, options: Options) -> Dataset:
    """List the labelled pictures; raises DatasetError when names do not tell the good class or are too few."""
    listing = list_files(folder)
    labels, problems = _labels(listing)
    classes, index_of = _classes(set(labels.values()), options, folder)
    samples = [
        Sample(path, label, path, index_of[label]) for path, label in sorted(labels.items()) if label in index_of
    ]
    problems += [Problem(path, f"label {label} has no name") for path, label in labels.items() if label not in index_of]
    told = {problem.path for problem in problems}
    problems += [Problem(path, "has no row") for path in listing.pictures() if path not in labels and path not in told]
    placed, unknown = grouped(samples, listing, options)
    problems = [*listing.problems, *problems, *unknown]
    return Dataset(folder, "id-label", classes, placed, truth_of, tuple(dict.fromkeys(problems)))


def truth_of(sample: Sample, shape: Shape) -> Truth:
    """The class of the whole picture; labels are IGNORED all over a defective one."""
    class_index = sample.class_index or 0
    return Truth(class_index, np.full(shape, IGNORED if class_index else 0, np.uint8))


def _tables(listing: Listing) -> list[str]:
    found = listing.with_suffix(".csv", root_only=True)
    return [path for path in found if {"id", "label"} <= columns(listing.folder / path)]


def _labels(listing: Listing) -> tuple[dict[str, str], list[Problem]]:
    """Label by picture; and rows without one or without a picture, and pictures with more than one."""
    found: dict[str, set[str]] = {}
    problems = []
    for table in _tables(listing):
        for row in read_table(listing.folder / table, "id", "label"):
            try:
                path = listing.find_anywhere(row["id"])
            except UnreadablePictureError as error:
                problems.append(Problem(row["id"] or table, str(error)))
                continue
            if row["label"]:
                found.setdefault(path, set()).add(_plain(row["label"]))
            else:
                problems.append(Problem(path, f"has no label in {table}"))
    torn = {path: sorted(labels) for path, labels in found.items() if len(labels) > 1}
    problems += [Problem(path, f"is labelled more than once: {', '.join(labels)}") for path, labels in torn.items()]
    return {path: next(iter(labels)) for path, labels in found.items() if path not in torn}, problems


def _plain(label: str) -> str:
    number = NUMBER.fullmatch(label)
    return str(int(number[1])) if number else label


def _classes(labels: set[str], options: Options, folder: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, the good one first, and the index of every label that has one."""
    if all(label.isdecimal() for label in labels):
        names = list(options.classes or _numbered(max(map(int, labels), default=0)))
        named = {label: names[int(label)] for label in labels if int(label) < len(names)}
        good = options.good or names[0]
    else:
        names = list(options.classes or sorted(labels))
        named = {label: label for label in labels if label in names}
        good = options.classes[0] if options.classes else good_class(labels, options.good)
    if good not in names:
        raise DatasetError(f"nothing says which label of {folder} is good; say it with --good: {_listed(names)}")
    names.sort(key=lambda name: name != good)
    return tuple(names), {label: names.index(name) for label, name in named.items()}


def _numbered(highest: int) -> tuple[str, ...]:
    if highest < len(CONTEST_CLASSES):
        return CONTEST_CLASSES
    return ("good", *(f"class {index}" for index in range(1, min(highest, IGNORED - 1) + 1)))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:20])
