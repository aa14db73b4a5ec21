"""Which pictures a data folder holds, their class, tile group and mask; it knows nothing of splits or tiles.

Two forms of folder are read:

* one folder per class: `MT_Crack/Imgs/a.jpg` with a binary mask `a.png` beside it (threshold at 127), and
  optionally `groups.csv` with the columns image, class and group; without it the class is the folder's name
  and every picture is a group of its own;
* `image/a.png` with `label/a.png`, whose pixel values are class indexes, and `classes.txt`, one class a line.

Class 0 is the good one; in a mask it is the background.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

MASK_THRESHOLD = 127
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}


class DatasetError(Exception):
    """A data folder that cannot be used as it is; one line that says what to do."""


class UnreadablePictureError(Exception):
    """One picture or its mask cannot be read; the text is the reason, the rest of the set is still good."""


@dataclass(frozen=True)
class Sample:
    """One picture of a data set, not yet read."""

    image: str  # path below the data folder, with forward slashes
    mask: str
    group: str  # pictures of one physical tile share it
    folder_class: int | None  # class of the whole picture; None: the mask's pixels are class indexes


@dataclass(frozen=True)
class Dataset:
    """A data folder: what is in it and which classes there are."""

    folder: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture in memory."""

    sample: Sample
    pixels: Pixels  # uint8 [H, W], mono8
    labels: Pixels  # uint8 [H, W], class index per pixel
    class_index: int  # class of the whole picture; 0 is good

    @property
    def unmarked(self) -> bool:
        """True for a picture that is called defective but has nothing marked: it cannot teach a tile."""
        return self.class_index > 0 and not self.labels.any()


def open_dataset(folder: Path, good: str = "") -> Dataset:
    """List a data folder; `good` names the good class where the folder itself does not.

    Raises DatasetError when the folder is in neither form or holds no picture.
    """
    if not folder.is_dir():
        raise DatasetError(f"data folder {folder} does not exist; correct --data")
    dataset = _indexed_form(folder) if (folder / "classes.txt").is_file() else _class_form(folder, good)
    if not dataset.samples:
        raise DatasetError(f"{folder} holds no picture with a mask; see engines/training/dataset.py for the forms")
    return dataset


def _indexed_form(folder: Path) -> Dataset:
    classes = tuple((folder / "classes.txt").read_text("utf-8").split())
    names = sorted(path.name for path in _pictures_under(folder / "image"))
    samples = (Sample(f"image/{name}", f"label/{Path(name).stem}.png", name, None) for name in names)
    return Dataset(folder, classes, tuple(samples))


def _class_form(folder: Path, good: str) -> Dataset:
    index = folder / "groups.csv"
    rows = _indexed_rows(index) if index.is_file() else _walked_rows(folder)
    names = {name for _, name, _ in rows}
    if good not in names:
        raise DatasetError(f"no class {good!r} in {folder}; say which is good with --good: {', '.join(sorted(names))}")
    classes = (good, *sorted(names - {good}))
    samples = (
        Sample(image, Path(image).with_suffix(".png").as_posix(), group, classes.index(name))
        for image, name, group in sorted(rows)
    )
    return Dataset(folder, classes, tuple(samples))


def _indexed_rows(index: Path) -> list[tuple[str, str, str]]:
    with index.open(newline="", encoding="utf-8") as file:
        try:
            return [(row["image"], row["class"], row["group"]) for row in csv.DictReader(file)]
        except KeyError as error:
            raise DatasetError(f"{index} has no column {error}; it needs image, class and group") from error


def _walked_rows(folder: Path) -> list[tuple[str, str, str]]:
    paths = [path.relative_to(folder) for path in _pictures_under(folder)]
    masks = {path.with_suffix("") for path in paths if path.suffix != ".png"}
    pictures = [path for path in paths if not (path.suffix == ".png" and path.with_suffix("") in masks)]
    return [(path.as_posix(), path.parts[0], path.as_posix()) for path in pictures if len(path.parts) > 1]


def _pictures_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)


def read_pictures(dataset: Dataset, samples: Iterable[Sample]) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Read samples in order: the pictures, and (path, reason) of each one that had to be left out."""
    pictures, skipped = [], []
    for sample in samples:
        try:
            pictures.append(read_picture(dataset, sample))
        except UnreadablePictureError as error:
            skipped.append((sample.image, str(error)))
    return pictures, skipped


def read_picture(dataset: Dataset, sample: Sample) -> Picture:
    """Read one picture and its mask; raises UnreadablePictureError with the reason."""
    pixels = _read_grey(dataset.folder / sample.image, "picture")
    mask = _read_grey(dataset.folder / sample.mask, "mask")
    if mask.shape != pixels.shape:
        raise UnreadablePictureError(
            f"mask is {mask.shape[1]}×{mask.shape[0]} px, picture {pixels.shape[1]}×{pixels.shape[0]}"
        )
    if sample.folder_class is not None:
        labels = np.where(mask > MASK_THRESHOLD, np.uint8(sample.folder_class), np.uint8(0))
        return Picture(sample, pixels, labels, sample.folder_class)
    if mask.max() >= len(dataset.classes):
        raise UnreadablePictureError(
            f"mask holds class index {mask.max()}, classes.txt ends at {len(dataset.classes) - 1}"
        )
    return Picture(sample, pixels, mask, most_frequent_defect(mask))


def _read_grey(path: Path, what: str) -> Pixels:
    if not path.is_file():
        raise UnreadablePictureError(f"{what} {path.name} is missing")
    # Decoding from memory keeps OpenCV from printing its own warning about a file that is no picture.
    content = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
    if pixels is None:
        raise UnreadablePictureError(f"{what} {path.name} cannot be decoded")
    return np.asarray(pixels, np.uint8)


def most_frequent_defect(labels: Pixels) -> int:
    """The defect class that covers most pixels of `labels` (uint8, any shape), or 0 when there is none."""
    counts = np.bincount(labels.ravel(), minlength=2)[1:]
    return int(counts.argmax()) + 1 if counts.any() else 0
