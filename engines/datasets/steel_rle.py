"""The form `steel-rle`: a CSV with Kaggle's run-length codes and a folder of pictures; what a code means knows `rle`.

Columns are `ImageId,ClassId,EncodedPixels`, or `ImageId_ClassId,EncodedPixels` with a row for every class and an
empty code where there is no defect (Severstal: Steel Defect Detection). A picture without a code is a good one, if it
lies in a folder of which some row names a picture: the pictures of the test part are not labelled, not good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from engines import rle
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
    most_frequent_defect,
)
from engines.datasets.listing import Listing, list_files

CODE, IMAGE, CLASS, BOTH = "encodedpixels", "imageid", "classid", "imageid_classid"
NO_LABELS = "sample_submission"  # Kaggle ships it beside the labels, with made-up codes
USUAL_CLASSES = 4


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    image: str
    class_index: int  # from 1
    code: str  # Kaggle's text form; "" for no defect of this class


def fits(folder: Path) -> bool:
    """Whether a CSV of run-length codes lies at the top."""
    return bool(_tables(list_files(folder)))


def rows(path: Path) -> tuple[list[Row], list[Problem]]:
    """The rows of one CSV in order, and those that say no class; raises DatasetError when it is no such table."""
    read, problems = [], []
    single = IMAGE in columns(path)
    for line in read_table(path, CODE, *((IMAGE, CLASS) if single else (BOTH,))):
        image, kind = (line[IMAGE], line[CLASS]) if single else line[BOTH].rpartition("_")[::2]
        try:
            read.append(Row(image, _class_index(kind, bool(line[CODE])), line[CODE]))
        except ValueError as error:
            problems.append(Problem(image or path.name, f"{error} (in {path.name})"))
    return read, problems


def open(folder: Path, options: Options) -> Dataset:
    """List the pictures with their rows; raises DatasetError when there are more classes than names."""
    listing = list_files(folder)
    read, problems = [], []
    for table in _tables(listing):
        its_rows, its_problems = rows(folder / table)
        read += its_rows
        problems += its_problems
    codes, missing = _by_picture(listing, read)
    samples, unlabelled = _samples(listing, codes, {problem.path for problem in problems})
    placed, unknown = grouped(samples, listing, options)
    problems = [*listing.problems, *problems, *missing, *unlabelled, *unknown]
    classes = _class_names(max((row.class_index for row in read), default=0), options)
    truths = _Truths(codes)
    return Dataset(folder, "steel-rle", classes, placed, truths.truth_of, tuple(dict.fromkeys(problems)))


@dataclass(frozen=True)
class _Truths:
    codes: Mapping[str, list[Row]]

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError for a code that does not fit into the picture."""
        labels = np.zeros(shape, np.uint8)
        for row in self.codes.get(sample.image, []):
            try:
                labels[rle.decode(rle.from_text(row.code), shape)] = row.class_index
            except ValueError as error:
                reason = "run-length code holds no whole numbers" if "invalid literal" in str(error) else error
                raise UnreadablePictureError(f"row of class {row.class_index}: {reason}") from error
        return Truth(most_frequent_defect(labels), labels)


def _tables(listing: Listing) -> list[str]:
    found = [path for path in listing.with_suffix(".csv", root_only=True) if not path.lower().startswith(NO_LABELS)]
    return [path for path in found if _is_table(columns(listing.folder / path))]


def _is_table(names: set[str]) -> bool:
    return CODE in names and (IMAGE in names or BOTH in names)


def _class_index(text: str, has_code: bool) -> int:
    """From 1; a row without a code may leave it out. Raises ValueError."""
    if not text and not has_code:
        return 1
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) < IGNORED:
        raise ValueError(f"ClassId {text!r} is no number from 1 to {IGNORED - 1}")
    return int(text)


def _by_picture(listing: Listing, read: Iterable[Row]) -> tuple[dict[str, list[Row]], list[Problem]]:
    """Rows by the picture they name, and the names of pictures that are not there, once each."""
    named: dict[str, list[Row]] = defaultdict(list)
    for row in read:
        named[row.image].append(row)
    found: dict[str, list[Row]] = {}
    problems = []
    for image, its_rows in named.items():
        try:
            found.setdefault(listing.find_anywhere(image), []).extend(its_rows)
        except UnreadablePictureError as error:
            problems.append(Problem(image, str(error)))
    return found, problems


def _samples(listing: Listing, codes: Mapping[str, list[Row]], spoiled: set[str]) -> tuple[list[Sample], list[Problem]]:
    """`spoiled` are names of pictures with a row that could not be used: what is left of them is not their truth."""
    labelled_folders = {PurePosixPath(path).parent for path in codes}
    samples, problems = [], []
    for path in listing.pictures():
        if path in spoiled or PurePosixPath(path).name in spoiled:
            continue
        if path in codes or PurePosixPath(path).parent in labelled_folders:
            is_good = not any(row.code for row in codes.get(path, []))
            samples.append(Sample(path, "" if is_good else "row", path, 0 if is_good else None))
        else:
            problems.append(Problem(path, "has no row, nor has any picture of its folder"))
    return samples, problems


def _class_names(highest: int, options: Options) -> tuple[str, ...]:
    if options.classes and len(options.classes) <= highest:
        raise DatasetError(
            f"rows go up to ClassId {highest}, but --classes has {len(options.classes)} with the good one"
        )
    numbered = (f"class {index}" for index in range(1, max(highest, USUAL_CLASSES) + 1))
    return options.classes or (options.good or "good", *numbered)
