"""What a labelled image is, whatever form it lies in on disk; it knows no form and no network.

Class 0 is the good one; in labels it is the background. Labels are class indexes per pixel, or IGNORED where
nothing is known: outside the picture, or all over a defective picture that nobody has marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int]  # height, width in px

IGNORED = 255
LONGEST_TEXT = 500  # characters of a reason
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
GOOD_NAMES = ("good", "ok", "free", "normal", "clean", "perfect", "nodefect", "nondefective", "defectfree", "none")


class DatasetError(Exception):
    """A data folder that cannot be used as it is; one line that says what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class UnreadablePictureError(Exception):
    """One picture or its truth cannot be read; the text is the reason, the rest of the set is still good."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


@dataclass(frozen=True)
class Problem:
    """One item that was left out, and why."""

    path: str  # below the data folder
    reason: str

    def __post_init__(self) -> None:
        for name in ("path", "reason"):
            object.__setattr__(self, name, one_line(getattr(self, name)))


@dataclass(frozen=True)
class Options:
    """What a folder may leave unsaid; each form uses what it needs."""

    good: str = ""  # name of the good class
    classes: tuple[str, ...] = ()  # names by index, the good one first, where the data has only numbers
    groups: Path | None = None  # CSV with image, group and optionally time: what a split must not cut
    morphology: str = ""  # "open" or "close", 5 × 5: masks drawn by hand are smoothed; empty: as they are


@dataclass(frozen=True)
class Box:
    """An upright rectangle in px of the picture; x, y is its upper left pixel."""

    x: int
    y: int
    width: int
    height: int
    class_index: int


@dataclass(frozen=True)
class Sample:
    """One picture of a data set, not yet read."""

    image: str  # path below the data folder, with forward slashes
    truth: str  # where the form finds its labels: a path, a row number; "" where there is nothing to find
    group: str  # pictures of one physical part share it: a split never cuts it
    class_index: int | None  # of the whole picture; None: its labels say so
    reference: str = ""  # path of its golden template
    time: str = ""  # sorts by time of taking; "" where it is not known


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of one picture."""

    class_index: int  # of the whole picture; 0 is good
    labels: Pixels  # uint8 [H, W], class index or IGNORED
    boxes: tuple[Box, ...] | None = None  # None: boxes are not what the data marks


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture in memory."""

    sample: Sample
    pixels: Pixels  # uint8 [H, W] mono8, or [H, W, 3] BGR8
    labels: Pixels  # uint8 [H, W], class index or IGNORED
    class_index: int
    boxes: tuple[Box, ...] | None = None
    reference: Pixels | None = None  # golden template, of the same shape as `pixels`

    @property
    def unmarked(self) -> bool:
        """True for a picture that is called defective but has nothing marked: it cannot teach a pixel."""
        return self.class_index > 0 and not ((self.labels > 0) & (self.labels != IGNORED)).any()


@dataclass(frozen=True)
class Dataset:
    """A data folder: what is in it, which classes there are, what had to be left out already."""

    folder: Path
    form: str
    classes: tuple[str, ...]  # the good one first
    samples: tuple[Sample, ...]
    truth_of: Callable[[Sample, Shape], Truth]  # raises UnreadablePictureError with the reason
    problems: tuple[Problem, ...] = ()


class Form(Protocol):
    """A way in which labelled images lie on disk: one module, named in FORMS."""

    def fits(self, folder: Path) -> bool: ...  # a look at names only

    def open(self, folder: Path, options: Options) -> Dataset: ...  # raises DatasetError


def read_pictures(
    dataset: Dataset, samples: Iterable[Sample], colour: bool = False
) -> tuple[list[Picture], list[Problem]]:
    """Read samples in order: the pictures, and each one that had to be left out with the reason."""
    pictures, skipped = [], []
    for sample in samples:
        try:
            pictures.append(read_picture(dataset, sample, colour))
        except UnreadablePictureError as error:
            skipped.append(Problem(sample.image, str(error)))
    return pictures, skipped


def read_picture(dataset: Dataset, sample: Sample, colour: bool = False) -> Picture:
    """Read one picture with its truth; raises UnreadablePictureError with the reason."""
    pixels = read_image(dataset.folder / sample.image, "picture", colour)
    truth = dataset.truth_of(sample, (pixels.shape[0], pixels.shape[1]))
    reference = read_image(dataset.folder / sample.reference, "template", colour) if sample.reference else None
    if reference is not None and reference.shape != pixels.shape:
        raise UnreadablePictureError(f"template is {size_of(reference)}, picture {size_of(pixels)}")
    return Picture(sample, pixels, truth.labels, truth.class_index, truth.boxes, reference)


def read_classes(dataset: Dataset) -> dict[str, int]:
    """Class by path of every picture whose labels decide it; what cannot be read is left out."""
    open_ones = [sample for sample in dataset.samples if sample.class_index is None]
    classes = {}
    for sample in open_ones:
        with suppress(UnreadablePictureError):
            classes[sample.image] = read_picture(dataset, sample).class_index
    return classes


def read_image(path: Path, what: str, colour: bool = False) -> Pixels:
    """uint8 [H, W], or [H, W, 3] BGR; raises UnreadablePictureError that calls it `what`."""
    if not path.is_file():
        raise UnreadablePictureError(f"{what} {path.name} is missing")
    # Decoding from memory keeps OpenCV from printing its own warning about a file that is no picture.
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) if content.size else None
    except OSError as error:
        raise UnreadablePictureError(f"{what} {path.name} cannot be read: {error.strerror}") from error
    except cv2.error:  # declares more pixels than OpenCV is ready to decode
        pixels = None
    if pixels is None:
        raise UnreadablePictureError(f"{what} {path.name} cannot be decoded")
    return np.asarray(pixels, np.uint8)


def one_line(text: str) -> str:
    """A text that quotes foreign data, fit to be shown: one line of printable characters, not endless."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: LONGEST_TEXT + 1])
    return plain if len(plain) <= LONGEST_TEXT else plain[: LONGEST_TEXT - 1] + "…"


def check_size(told: tuple[int | None, int | None], shape: Shape, how: str) -> None:
    """Height and width that a label file tells of its picture, None where it is silent, against those it has.

    Raises UnreadablePictureError that begins with `how`: labels of another size would lie in the wrong place.
    """
    if any(side is not None and side != is_so for side, is_so in zip(told, shape, strict=True)):
        raise UnreadablePictureError(f"{how} {told[1]}×{told[0]} px, but the picture is {shape[1]}×{shape[0]} px")


def size_of(pixels: Pixels) -> str:
    """`640×480 px`, width first, as people say it."""
    return f"{pixels.shape[1]}×{pixels.shape[0]} px"


def pictures_under(folder: Path) -> list[Path]:
    """Every image file below a folder, in the order of its path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)


def good_class(names: Iterable[str], wanted: str = "") -> str:
    """Which of these names is the good class: the wanted one, or one that says so itself; "" when none does.

    Raises DatasetError when the wanted one is not there.
    """
    known = sorted(set(names))
    if wanted and wanted not in known:
        raise DatasetError(f"no class {wanted!r}; say which is good with --good: {', '.join(known)}")
    plain = {name: "".join(filter(str.isalnum, name.lower())) for name in known}
    exact = [name for name in known if plain[name] in GOOD_NAMES]
    ending = [name for name in known if any(_ends_well(plain[name], good) for good in ("good", "free", "normal"))]
    return wanted or next(iter(exact + ending), "")


def _ends_well(plain: str, good: str) -> bool:
    """`mtfree`, but not `abnormal` and not `nogood`."""
    return plain.endswith(good) and not plain.removesuffix(good).endswith(("ab", "no", "not", "non", "un"))


def most_frequent_defect(labels: Pixels) -> int:
    """The defect class that covers most pixels of `labels` (uint8, any shape), or 0 when there is none."""
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)[1:IGNORED]
    return int(counts.argmax()) + 1 if counts.any() else 0
