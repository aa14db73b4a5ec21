"""Which pictures teach, which choose and which only judge; it never cuts a part in two, and reads no picture.

A split is a folder of plain text files, one picture path or one set of groups a line, so that it can be read,
shipped with a model and checked by anybody:

    same-tile.txt   groups that show one physical part although the data set lists them apart (input)
    held-out.txt    pictures that neither taught nor chose anything
    validation.txt  pictures that chose the checkpoint and the thresholds
    left-out.txt    pictures whose label another picture of the same part contradicts

What is in none of them teaches. A line that starts with # is a remark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.datasets.labelled import Dataset, DatasetError, Sample

SAME_TILE = "same-tile.txt"
RANDOM_REMARK = "# random split: pictures of one part are on both sides"


@dataclass(frozen=True)
class Split:
    """Picture paths on each side; every path of the data set is in exactly one of them."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    cuts_groups: bool = False  # True: drawn picture by picture, so what it measures flatters

    def samples(self, dataset: Dataset, side: Sequence[str]) -> list[Sample]:
        """The data set's samples whose path is in `side`."""
        wanted = set(side)
        return [sample for sample in dataset.samples if sample.image in wanted]

    def sides(self) -> dict[str, tuple[str, ...]]:
        """Every side by its name, training first."""
        return {
            "training": self.training,
            "validation": self.validation,
            "held-out": self.held_out,
            "left-out": self.left_out,
        }

    def side_of(self) -> dict[str, str]:
        """The name of the side that each picture is on."""
        return {path: name for name, paths in self.sides().items() for path in paths}


def write_split(split: Split, folder: Path) -> None:
    """Write the sides that are not for training; a list that an earlier split left here and this one lacks goes.

    Raises DatasetError when the folder cannot be written.
    """
    remark = f"{RANDOM_REMARK}\n" if split.cuts_groups else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, paths in split.sides().items():
            file = folder / f"{name}.txt"
            if name != "training" and paths:
                file.write_text(remark + "".join(f"{path}\n" for path in paths), encoding="utf-8")
            elif name != "training":
                file.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"split cannot be written to {folder}: {error.strerror}; choose another --out") from error


def read_split(dataset: Dataset, folder: Path) -> Split:
    """The split in a folder; raises DatasetError when it names a picture that the data set lacks."""
    validation, held_out, left_out = (_listed(folder, name) for name in ("validation", "held-out", "left-out"))
    if not validation:
        raise DatasetError(f"{folder} has no validation.txt; make one with `aoi dataset split DATA --out {folder}`")
    known = [sample.image for sample in dataset.samples]
    taken = {*validation, *held_out, *left_out}
    if len(taken) < len(validation) + len(held_out) + len(left_out):
        raise DatasetError(f"the split in {folder} names a picture twice; make it anew with `aoi dataset split`")
    if unknown := taken - set(known):
        raise DatasetError(f"the split in {folder} names {min(unknown)}, which {dataset.folder} does not have")
    training = tuple(path for path in known if path not in taken)
    return Split(training, validation, held_out, left_out, _is_random(folder))


def read_same_tile(folder: Path) -> list[list[str]]:
    """Sets of groups from `same-tile.txt`; empty when the folder has none."""
    return [line.split() for line in _lines(folder / SAME_TILE)]


def _listed(folder: Path, name: str) -> tuple[str, ...]:
    return tuple(_lines(folder / f"{name}.txt"))


def _is_random(folder: Path) -> bool:
    return (folder / "validation.txt").read_text("utf-8").startswith(RANDOM_REMARK)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error}); make the split anew") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
