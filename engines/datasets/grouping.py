"""Which pictures show the same physical part, and when each was taken, where a table says so; it splits nothing.

The table is a CSV with the columns image and group, and optionally time and class: `groups.csv` in the data folder,
or a file named by the options. A picture it does not name is a group of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path

from engines.datasets.foreign_text import Row, columns, read_table
from engines.datasets.labelled import DatasetError, Options, Problem, Sample, UnreadablePictureError
from engines.datasets.listing import Listing

FILE = "groups.csv"


def grouped(
    samples: Iterable[Sample], listing: Listing, options: Options
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    """The samples with group and time out of the table, and each of its rows that names no picture.

    Raises DatasetError when the table cannot be read, or names no picture of this folder at all.
    """
    known = tuple(samples)
    path = table_of(listing.folder, options)
    if path is None:
        return known, ()
    rows, problems = rows_by_picture(path, listing, {sample.image for sample in known})
    if options.groups and known and not any(sample.image in rows for sample in known):
        raise DatasetError(f"{path} names no picture of {listing.folder}; its column image holds paths below it")
    return tuple(_placed(sample, rows.get(sample.image)) for sample in known), problems


def table_of(folder: Path, options: Options) -> Path | None:
    """The file with the groups: the one of the options, or `groups.csv` in the folder."""
    if options.groups is not None and not options.groups.is_file():
        raise DatasetError(f"{options.groups} does not exist; correct --groups")
    own = folder / FILE
    return options.groups or (own if {"image", "group"} <= columns(own) else None)


def rows_by_picture(
    path: Path, listing: Listing, pictures: Container[str]
) -> tuple[dict[str, Row], tuple[Problem, ...]]:
    """Rows of the table by the picture they mean, and the rows that mean none; masks are no pictures."""
    found: dict[str, Row] = {}
    problems = []
    for row in read_table(path, "image", "group"):
        try:
            found[listing.find_anywhere(row["image"], among=pictures)] = row
        except UnreadablePictureError as error:
            problems.append(Problem(row["image"] or path.name, f"{error} (named in {path.name})"))
    return found, tuple(problems)


def _placed(sample: Sample, row: Row | None) -> Sample:
    if row is None:
        return sample
    return replace(sample, group=row["group"] or sample.group, time=row.get("time", "") or sample.time)
