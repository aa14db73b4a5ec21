"""Which pictures teach, which choose and which only judge; it decides by tile group and never cuts one.

A split is a folder of plain text files, one picture path or one set of groups a line, so that it can be read,
shipped with a model and checked by anybody:

    same-tile.txt   groups that show one physical tile although the data set lists them apart (input)
    held-out.txt    pictures that neither taught nor chose anything
    validation.txt  pictures that chose the checkpoint and the thresholds
    left-out.txt    pictures whose label another picture of the same tile contradicts

What is in none of them teaches.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.training.dataset import Dataset, DatasetError, Sample


@dataclass(frozen=True)
class Split:
    """Picture paths on each side; every path of the data set is in exactly one of them."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def samples(self, dataset: Dataset, side: Sequence[str]) -> list[Sample]:
        """The data set's samples whose path is in `side`."""
        wanted = set(side)
        return [sample for sample in dataset.samples if sample.image in wanted]


def make_split(
    dataset: Dataset,
    seed: int,
    held_out_share: float,
    validation_share: float,
    same_tile: Iterable[Iterable[str]] = (),
) -> Split:
    """Share whole tiles out, per class, by a seeded shuffle.

    A tile called both good and defective cannot be scored: it is never held out, and its good pictures are
    left out. Shares are of tiles, 0 … 1; a class with at least three tiles gets one on either side.
    """
    tiles = _tiles(dataset, same_tile)
    by_class: dict[int, list[list[Sample]]] = defaultdict(list)
    sides: dict[str, list[str]] = {"training": [], "validation": [], "held_out": [], "left_out": []}
    for samples in tiles:
        classes = {sample.folder_class or 0 for sample in samples}
        if 0 in classes and len(classes) > 1:
            sides["left_out"] += [sample.image for sample in samples if not sample.folder_class]
            sides["training"] += [sample.image for sample in samples if sample.folder_class]
        else:
            by_class[min(classes)].append(samples)
    for class_index in sorted(by_class):
        shuffled = by_class[class_index]
        random.Random(f"{seed} {class_index}").shuffle(shuffled)
        held = _count(len(shuffled), held_out_share)
        chosen = held + _count(len(shuffled), validation_share)
        for side, part in (("held_out", shuffled[:held]), ("validation", shuffled[held:chosen])):
            sides[side] += [sample.image for samples in part for sample in samples]
        sides["training"] += [sample.image for samples in shuffled[chosen:] for sample in samples]
    return Split(**{name: tuple(sorted(paths)) for name, paths in sides.items()})


def _count(tiles: int, share: float) -> int:
    return max(1, round(tiles * share)) if share and tiles >= 3 else 0


def _tiles(dataset: Dataset, same_tile: Iterable[Iterable[str]]) -> list[list[Sample]]:
    """Samples of one physical tile together, in the order of their first group's name."""
    first = {sample.group: sample.group for sample in dataset.samples}
    for together in same_tile:
        names = list(together)
        if unknown := set(names) - set(first):
            raise DatasetError(f"same-tile.txt names the group {min(unknown)!r}, which the data set does not have")
        merged = {first[name] for name in names}
        for group, name in first.items():
            if name in merged:
                first[group] = min(merged)
    tiles: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        tiles[first[sample.group]].append(sample)
    return [tiles[name] for name in sorted(tiles)]


def read_same_tile(folder: Path) -> list[list[str]]:
    """Sets of groups from `same-tile.txt`; empty when the folder has none."""
    return [line.split() for line in _lines(folder / "same-tile.txt")]


def write_split(split: Split, folder: Path) -> None:
    """Write the sides that are not for training."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"held-out": split.held_out, "validation": split.validation, "left-out": split.left_out}
    for name, paths in sides.items():
        if paths:
            (folder / f"{name}.txt").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")


def read_split(dataset: Dataset, folder: Path) -> Split:
    """The split in a folder; raises DatasetError when it names a picture that the data set lacks."""
    sides = [tuple(_lines(folder / f"{name}.txt")) for name in ("validation", "held-out", "left-out")]
    if not sides[0]:
        raise DatasetError(f"{folder} has no validation.txt; make one with `python -m engines.training split`")
    known = [sample.image for sample in dataset.samples]
    taken = {path for side in sides for path in side}
    if unknown := taken - set(known):
        raise DatasetError(f"the split in {folder} names {min(unknown)}, which {dataset.folder} does not have")
    return Split(tuple(path for path in known if path not in taken), *sides)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
