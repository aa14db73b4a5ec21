"""Which image file is a picture and which the mask of which picture, told by names alone; it opens no file.

A folder's name tells its role: `images`, `img`, `JPEGImages`, `data` hold pictures; `masks`, `labels`, `gt`,
`ground_truth`, `annotations`, `SegmentationClass` hold masks, also as a part of a name (`train_masks`). What else is
in the path (a split such as `train`, a class such as `scratch`) must be the same on both sides, as must the stem, to
which a mask may add `_mask`, `_label` or `_gt`. Beside its picture a mask is known by that ending, or by being the
PNG of the same stem.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from engines.datasets.labelled import GOOD_NAMES, Problem

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev", "trainval"}
IMAGE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "jpegimages"}
MASK_WORDS = {"label", "labels", "lab", "mask", "masks", "gt", "gts", "groundtruth", "annotation", "annotations"}
MASK_WORDS |= {"annot", "annots", "segmentation", "segmentations", "segmentationclass", "seg"}
NO_WORDS = {"class", "png", "jpg", "bmp", "binary", "pixel", "all", ""}  # beside a word above they say nothing
STATE_WORDS = SPLITS | {"defect", "defects", "defective"} | set(GOOD_NAMES)
MASK_ENDING = re.compile(r"[ ._-](masks?|labels?|gt|groundtruth)$", re.IGNORECASE)
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")  # a mask beside its picture, likeliest first


@dataclass(frozen=True)
class Placed:
    """One image file: what its folders say of it."""

    path: str
    is_mask: bool
    kept: tuple[str, ...]  # its folders in their own spelling, without those that only tell the role

    @property
    def parts(self) -> tuple[str, ...]:
        """Its folders, but for those that name a split: what is left may be a class or a part."""
        return tuple(word for word in self.kept if word.lower() not in SPLITS)

    @cached_property
    def key(self) -> tuple[tuple[str, ...], str]:
        return _lower(self.kept), self.stem

    @cached_property
    def stem(self) -> str:
        return posixpath.splitext(posixpath.basename(self.path))[0].lower()

    @cached_property
    def bare_stem(self) -> str:
        """The stem of the picture that this mask would have."""
        return MASK_ENDING.sub("", self.stem)


@dataclass(frozen=True)
class MaskOf:
    """A mask that belongs to a picture."""

    path: str
    word: str  # name of the folder that only the mask has: its class; "" where there is none
    beside: bool  # in the picture's own folder


@dataclass(frozen=True)
class Pairs:
    """Every picture with its masks (none, one, or one per class), and the masks of no picture."""

    pictures: tuple[Placed, ...]
    masks: dict[str, list[MaskOf]]  # by path of the picture
    orphans: tuple[Problem, ...]


def pair(paths: Iterable[str]) -> Pairs:
    """Sort image files into pictures and their masks."""
    placed = [place(path) for path in paths]
    beside = _masks_beside(placed)
    pictures = [file for file in placed if not file.is_mask and file.path not in beside]
    masks: dict[str, list[MaskOf]] = defaultdict(list)
    for mask, picture in beside.items():
        masks[picture].append(MaskOf(mask, "", True))
    finder, orphans = _Finder(pictures), []
    for file in placed:
        if not file.is_mask:
            continue
        found = finder.picture_of(file)
        if found is None:
            orphans.append(Problem(file.path, "lies among the masks, but no picture has its name"))
        elif any(other.word == _word(file, found) for other in masks[found.path]):
            orphans.append(Problem(file.path, f"is a second mask of {found.path}"))
        else:
            masks[found.path].append(MaskOf(file.path, _word(file, found), False))
    return Pairs(tuple(pictures), dict(masks), tuple(orphans))


def place(path: str) -> Placed:
    """What the folders above one image file say of it."""
    kept: list[str] = []
    is_mask = False
    for folder in path.split("/")[:-1]:
        role, words = _role(folder)
        is_mask |= role == "mask"
        kept += words
    return Placed(path, is_mask, tuple(kept))


@lru_cache(maxsize=4096)
def _role(folder: str) -> tuple[str, tuple[str, ...]]:
    """`mask`, `image` or "", and the words of this folder's name that still tell something."""
    if folder.lower() == "data":
        return "image", ()
    # Camel case is cut where a capital follows a small letter: TrainMasks, but not JPEGImages.
    words = re.split(r"[^a-z]+", re.sub(r"ground[ _-]?truth", "groundtruth", _uncamelled(folder)))
    told = [word for word in words if word in IMAGE_WORDS | MASK_WORDS]
    rest = [word for word in words if word not in IMAGE_WORDS | MASK_WORDS | NO_WORDS]
    if not told or not set(rest) <= STATE_WORDS:
        return "", (folder,)
    return ("mask" if set(told) & MASK_WORDS else "image"), tuple(rest)


def _uncamelled(folder: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", folder).lower()


def _masks_beside(placed: list[Placed]) -> dict[str, str]:
    """Masks that lie in the folder of their picture, and that picture."""
    there: dict[tuple[str, str], list[Placed]] = defaultdict(list)
    for file in placed:
        if not file.is_mask:
            there[posixpath.dirname(file.path), file.stem].append(file)
    found = {}
    for (folder, _), files in there.items():
        for file in files:
            owners = there.get((folder, file.bare_stem)) if file.bare_stem != file.stem else None
            if owners:
                found[file.path] = owners[0].path
    for files in there.values():
        pictures = [file for file in files if file.path not in found]
        mask = next((file for end in LOSSLESS for file in pictures if file.path.lower().endswith(end)), None)
        if mask is not None and len(pictures) == 2:
            found[mask.path] = next(file.path for file in pictures if file is not mask)
    return found


class _Finder:
    """Finds the picture of a mask that lies in a tree of its own."""

    def __init__(self, pictures: list[Placed]) -> None:
        self.by_key = {picture.key: picture for picture in pictures}
        self.by_parts: dict[tuple[tuple[str, ...], str], list[Placed]] = defaultdict(list)
        self.by_stem: dict[str, list[Placed]] = defaultdict(list)
        for picture in pictures:
            self.by_parts[_lower(picture.parts), picture.stem].append(picture)
            self.by_stem[picture.stem].append(picture)

    def picture_of(self, mask: Placed) -> Placed | None:
        """The same place; the same but for the split; the same but for one folder, a class; the only one so named."""
        stems = dict.fromkeys((mask.stem, mask.bare_stem))
        for kept in (_lower(mask.kept), *_one_left_out(mask)):
            for stem in stems:
                found = self.by_key.get((kept, stem)) or _one(self.by_parts[_unsplit(kept), stem])
                if found is not None:
                    return found
        return next((one for stem in stems if (one := _one(self.by_stem[stem]))), None)


def _one(found: list[Placed]) -> Placed | None:
    """The only one; of the same picture name in train and test the one of test: MVTec's masks belong to it."""
    tested = [file for file in found if any(word.lower().startswith("test") for word in file.kept)]
    return found[0] if len(found) == 1 else tested[0] if len(tested) == 1 else None


def _one_left_out(mask: Placed) -> list[tuple[str, ...]]:
    kept = _lower(mask.kept)
    last_first = [index for index in reversed(range(len(kept))) if kept[index] not in SPLITS]
    return [kept[:index] + kept[index + 1 :] for index in last_first]


def _word(mask: Placed, picture: Placed) -> str:
    of_picture = _lower(picture.kept)
    return next((word for word in reversed(mask.parts) if word.lower() not in of_picture), "")


def _lower(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word.lower() for word in words)


def _unsplit(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in SPLITS)
