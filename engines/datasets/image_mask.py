"""The form `image-mask`: pictures and mask images of the same names; what belongs together is decided in `pairing`.

`images/a.png` with `masks/a.png`, `train/images/…` with `train/masks/…`, `a.png` with `label/a.png`, `Part5.jpg`
with `Part5_label.bmp` beside it, `masks/scratch/a.png` and `masks/dent/a.png` for one picture: see the words in
`pairing`. Values are class indexes where `classes.txt` (one class a line, the good one first) names them, else
`mask_values` finds what they mean; a sub-folder that only the masks have is a class, and its masks are binary.
A picture without a mask is a good one where a folder says so (`good/`, `NODefect/`); otherwise it is a problem.
Where masks lie beside their pictures in several folders, each that is no split is one part, as in KolektorSDD.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from engines.datasets.foreign_text import read_text
from engines.datasets.grouping import grouped
from engines.datasets.labelled import (
    Dataset,
    DatasetError,
    Options,
    Problem,
    Sample,
    Shape,
    Truth,
    good_class,
    most_frequent_defect,
)
from engines.datasets.listing import list_files
from engines.datasets.mask_values import Meaning, find_meaning, find_threshold, read_levels
from engines.datasets.pairing import SPLITS, MaskOf, Pairs, Placed, pair

CLASSES_FILE = "classes.txt"
HALF_OF_BYTE = 127


def fits(folder: Path) -> bool:
    """Whether pictures and masks pair up here, and not by class folders."""
    pairs = pair(list_files(folder).pictures())
    return bool(pairs.masks) and not is_by_class(pairs)


def is_by_class(pairs: Pairs) -> bool:
    """Whether the folders above pictures are their classes: each pair lies in one, and one is called good.

    So it is, too, where a mask is the PNG of the same name, and several folders that are no splits hold such.
    """
    paired = [picture for picture in pairs.pictures if picture.path in pairs.masks]
    twins = {picture.parts for picture in paired if _is_bare_twin(picture, pairs.masks[picture.path])}
    if len(twins) > 1:
        return True
    return all(picture.parts for picture in paired) and any(_is_good(picture) for picture in pairs.pictures)


def open(folder: Path, options: Options) -> Dataset:
    """List pictures with masks; raises DatasetError when mask values contradict the class names."""
    listing = list_files(folder)
    pairs = pair(listing.pictures())
    parts = _part_folders(pairs)
    samples, unmarked = [], []
    for picture in pairs.pictures:
        masks = pairs.masks.get(picture.path, [])
        if masks or _is_good(picture):
            parent = posixpath.dirname(picture.path)
            group = parent if parent in parts else picture.path
            samples.append(Sample(picture.path, masks[0].path if masks else "", group, None if masks else 0))
        else:
            reason = "has no mask; a good picture needs an empty one, or a folder named good"
            unmarked.append(Problem(picture.path, reason))
    placed, unknown = grouped(samples, listing, options)
    truths = _truths(folder, pairs, options)
    problems = (*listing.problems, *unmarked, *pairs.orphans, *unknown)
    return Dataset(folder, "image-mask", truths.classes, placed, truths.truth_of, problems)


def class_names(folder: Path, options: Options) -> tuple[str, ...]:
    """Names by index: those of the options, or the lines of `classes.txt`; empty where nobody names any."""
    path = folder / CLASSES_FILE
    if options.classes or not path.is_file():
        return options.classes
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    names = tuple(lines[0].split() if len(lines) == 1 else lines)
    if len(set(names)) < max(2, len(names)):
        raise DatasetError(f"{path} must name two classes or more, the good one first, none of them twice")
    return names


@dataclass(frozen=True)
class _Truths:
    """Reads the masks of a picture; `class_of_word` is empty where values, not folders, tell the class."""

    folder: Path
    masks: Mapping[str, list[MaskOf]]
    classes: tuple[str, ...]
    meaning: Meaning | None
    class_of_word: Mapping[str, int]
    threshold: float = 0.0

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError when a mask is missing, has another size, or a value without a class."""
        labels = np.zeros(shape, np.uint8)
        in_order = sorted(self.masks.get(sample.image, []), key=lambda mask: self.class_of_word.get(mask.word, 0))
        for mask in in_order:
            levels = read_levels(self.folder / mask.path, shape)
            if self.meaning is not None:
                labels = self.meaning.labels(levels)
            else:
                labels[levels > self.threshold] = self.class_of_word[mask.word]
        return Truth(most_frequent_defect(labels), labels)


def _truths(folder: Path, pairs: Pairs, options: Options) -> _Truths:
    all_masks = [mask for masks in pairs.masks.values() for mask in masks]
    paths = [folder / mask.path for mask in all_masks]
    names = class_names(folder, options)
    words = {mask.word for mask in all_masks}
    if words <= {""}:
        indexes = not options.classes and (folder / CLASSES_FILE).is_file()
        meaning = find_meaning(paths, names, options.good, indexes)
        return _Truths(folder, pairs.masks, meaning.classes, meaning, {})
    classes, class_of_word = _classes_of_folders(words, names, options)
    return _Truths(folder, pairs.masks, classes, None, class_of_word, find_threshold(paths, HALF_OF_BYTE))


def _classes_of_folders(
    words: set[str], names: tuple[str, ...], options: Options
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names by index, and the index by folder name; masks outside such a folder are of the class `defect`."""
    named = {word: word or "defect" for word in words}
    good = next((name for name in sorted(named.values()) if name == options.good or good_class([name])), "")
    classes = names or (options.good or good or "good", *sorted(set(named.values()) - {good}))
    missing = sorted(set(named.values()) - set(classes))
    if missing:
        raise DatasetError(f"masks lie in folders named {', '.join(missing)}, which is none of {', '.join(classes)}")
    return classes, {word: classes.index(name) for word, name in named.items()}


def _is_good(picture: Placed) -> bool:
    return any(good_class([part]) for part in picture.parts)


def _is_bare_twin(picture: Placed, masks: list[MaskOf]) -> bool:
    stem = PurePosixPath(picture.path).stem
    return bool(picture.parts) and any(mask.beside and PurePosixPath(mask.path).stem == stem for mask in masks)


def _part_folders(pairs: Pairs) -> set[str]:
    """Folders with masks beside pictures that each show one part; a single one is but the place where all lie."""
    found = {posixpath.dirname(path) for path, masks in pairs.masks.items() if any(mask.beside for mask in masks)}
    found = {folder for folder in found if posixpath.basename(folder).lower() not in {"", *SPLITS}}
    return found if len(found) > 1 else set()
