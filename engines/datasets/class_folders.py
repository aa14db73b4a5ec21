"""The form `class-folders`: a folder's name is the class of the pictures in it; which mask is whose says `pairing`.

`MT_Crack/Imgs/a.jpg` with a binary mask `a.png` beside it; `test/crack/x.png` with `ground_truth/crack/x_mask.png`
and `train/good/…` (MVTec); `crack/x.png` with `masks/crack/x.png`; or no masks at all. Folders that name a split or
the role of their files are no class. `groups.csv` with the columns image, class, group and optionally time says it
all instead. A mask pixel above 127 is of the picture's class (above half the brightest, where all masks are darker).
Without a mask a good picture is background all over, of a defective one the pixels are not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.datasets.foreign_text import columns
from engines.datasets.grouping import grouped, rows_by_picture, table_of
from engines.datasets.labelled import (
    IGNORED,
    Dataset,
    DatasetError,
    Options,
    Problem,
    Sample,
    Shape,
    Truth,
    good_class,
)
from engines.datasets.listing import Listing, list_files
from engines.datasets.mask_values import find_threshold, read_levels
from engines.datasets.pairing import Pairs, pair

MASK_THRESHOLD = 127


def fits(folder: Path) -> bool:
    """Whether there are pictures in folders below it."""
    return any("/" in path for path in list_files(folder).pictures())


def open(folder: Path, options: Options) -> Dataset:
    """List pictures by class; raises DatasetError when nothing says which class is the good one."""
    listing = list_files(folder)
    pairs = pair(listing.pictures())
    named, problems = _classes_of_pictures(listing, pairs, options)
    classes = _in_order(set(named.values()), options, folder)
    known = [picture.path for picture in pairs.pictures if picture.path in named]
    masks = {path: pairs.masks[path][0].path for path in known if path in pairs.masks}
    samples = [Sample(path, masks.get(path, ""), path, classes.index(named[path])) for path in known]
    placed, unknown = grouped(samples, listing, options)
    defective = [folder / masks[sample.image] for sample in samples if sample.class_index and sample.image in masks]
    truths = _Truths(folder, find_threshold(defective, MASK_THRESHOLD))
    problems = (*listing.problems, *problems, *pairs.orphans, *unknown)
    return Dataset(folder, "class-folders", classes, placed, truths.truth_of, tuple(dict.fromkeys(problems)))


@dataclass(frozen=True)
class _Truths:
    folder: Path
    threshold: float

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError when the mask is missing or has another size."""
        class_index = sample.class_index or 0
        if not sample.truth:
            return Truth(class_index, np.full(shape, IGNORED if class_index else 0, np.uint8))
        marked = read_levels(self.folder / sample.truth, shape) > self.threshold
        return Truth(class_index, np.where(marked, np.uint8(class_index), np.uint8(0)))


def _classes_of_pictures(
    listing: Listing, pairs: Pairs, options: Options
) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    """The name of each picture's class, and the pictures that have none."""
    table = table_of(listing.folder, options)
    if table is not None and "class" in columns(table):
        # Rows without a picture are told when the samples are grouped.
        rows, _ = rows_by_picture(table, listing, {file.path for file in pairs.pictures})
        named = {path: row["class"] for path, row in rows.items() if row["class"]}
        reason = f"has no class in {table.name}"
    else:
        named = _classes_of_folders(pairs, options.good)
        reason = "lies in no class folder"
    return named, tuple(Problem(file.path, reason) for file in pairs.pictures if file.path not in named)


def _classes_of_folders(pairs: Pairs, good: str) -> dict[str, str]:
    """The first folder of which one is good, whatever products lie above it; else the first that varies."""
    parts = {picture.path: picture.parts for picture in pairs.pictures if picture.parts}
    depths = range(min(map(len, parts.values()), default=1))
    names = [{of[depth] for of in parts.values()} for depth in depths]
    telling = (depth for depth in depths if good in names[depth] or (not good and good_class(names[depth])))
    varying = (depth for depth in depths if len(names[depth]) > 1)
    chosen = next(telling, next(varying, depths[-1]))
    return {path: of[chosen] for path, of in parts.items()}


def _in_order(names: set[str], options: Options, folder: Path) -> tuple[str, ...]:
    if options.classes:
        unknown = sorted(names - set(options.classes))
        if unknown:
            raise DatasetError(f"{folder} has the classes {', '.join(unknown)}, which --classes does not name")
        return options.classes
    good = good_class(names, options.good)
    if not good:
        raise DatasetError(f"nothing says which class of {folder} is good; say it with --good: {_listed(names)}")
    return (good, *sorted(names - {good}))


def _listed(names: set[str]) -> str:
    first = sorted(names)[:20]
    return ", ".join(first) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
