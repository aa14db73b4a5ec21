"""The form `coco`: regions and boxes of many pictures in one JSON file, read and written; its pixels are another's.

`instances_*.json`, or any file with the lists images, annotations and categories (cocodataset.org, `format-data`). A
region, read by `coco_region`, covers those of earlier annotations. An annotation with a box only makes boxes the
truth of the whole set; pixels inside its box are not known. A picture without annotations is good. Nothing in the
file is believed before it is compared with the picture.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from engines import rle
from engines.datasets.coco_region import region, touched_box
from engines.datasets.drawing import Mask
from engines.datasets.foreign_text import read_json
from engines.datasets.grouping import grouped
from engines.datasets.labelled import (
    GOOD_NAMES,
    IGNORED,
    Box,
    Dataset,
    DatasetError,
    Options,
    Picture,
    Pixels,
    Problem,
    Sample,
    Shape,
    Truth,
    UnreadablePictureError,
    check_size,
    most_frequent_defect,
)
from engines.datasets.listing import Listing, list_files

LISTS = ("images", "annotations", "categories")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """A picture as the files list it."""

    size: tuple[int | None, int | None]  # height, width; None where it does not say
    annotations: tuple[tuple[Entry, str], ...]  # each with the name of its category


def fits(folder: Path) -> bool:
    """Whether a JSON file that is of no single picture has the three lists in it."""
    listing = list_files(folder)
    stems = {PurePosixPath(path).stem for path in listing.pictures()}
    return any(
        PurePosixPath(path).stem not in stems and _mentions_lists(folder / path)
        for path in listing.with_suffix(".json")
    )


def open(folder: Path, options: Options) -> Dataset:
    """Read the files of a folder; raises DatasetError when none is COCO, or the class names do not fit."""
    listing = list_files(folder)
    contents, problems = _contents(listing)
    pictures: dict[str, Listed] = {}
    sources: dict[str, str] = {}
    for path, content in contents.items():
        found, its_problems = _pictures(listing, path, content)
        problems += its_problems + [Problem(name, f"is listed again in {path}") for name in found if name in pictures]
        pictures = found | pictures
        sources = dict.fromkeys(found, path) | sources
    classes, index_of = _classes(contents, options)
    boxed = any(_is_box_only(entry) for of in pictures.values() for entry, _ in of.annotations)
    known = set(pictures) | {problem.path for problem in problems}
    problems += [Problem(path, "is listed in no file") for path in listing.pictures() if path not in known]
    placed, unknown = grouped([Sample(p, sources[p], p, None) for p in sorted(pictures)], listing, options)
    truths = _Truths(pictures, index_of, boxed)
    return Dataset(folder, "coco", classes, placed, truths.truth_of, (*listing.problems, *problems, *unknown))


@dataclass(frozen=True)
class _Truths:
    pictures: Mapping[str, Listed]
    index_of: Mapping[str, int]
    boxed: bool

    def truth_of(self, sample: Sample, shape: Shape) -> Truth:
        """Raises UnreadablePictureError when size, region or box cannot be this picture's."""
        of = self.pictures[sample.image]
        check_size(of.size, shape, "listed as")
        labels, boxes = np.zeros(shape, np.uint8), []
        for entry, name in of.annotations:
            try:
                boxes += self._drawn(labels, entry, self.index_of[name])
            except ValueError as error:
                raise UnreadablePictureError(f"annotation {_id_of(entry)}: {error}") from error
        marked = most_frequent_defect(labels) or (boxes[0].class_index if boxes else 0)
        return Truth(marked, labels, tuple(boxes) if self.boxed else None)

    def _drawn(self, labels: Pixels, entry: Entry, class_index: int) -> list[Box]:
        shape = (labels.shape[0], labels.shape[1])
        if _is_box_only(entry):
            box = touched_box(entry.get("bbox"), shape, class_index)
            labels[box.y : box.y + box.height, box.x : box.x + box.width] = IGNORED if class_index else 0
            return [box] if class_index else []
        mask = region(entry["segmentation"], shape)
        labels[mask] = class_index
        return [_bounds(mask, class_index)] if self.boxed and class_index and mask.any() else []


def write_coco(dataset: Dataset, pictures: Iterable[Picture], path: Path) -> list[Problem]:
    """Write pictures with their labels as COCO: every connected region, or box where no pixel is known, an annotation.

    Returns the pictures that COCO cannot express and that are left out: those with pixels of which nothing is known.
    """
    images: list[Entry] = []
    annotations: list[Entry] = []
    problems = []
    for picture in pictures:
        found = _annotations(picture)
        if found is None:
            problems.append(Problem(picture.sample.image, "has pixels of which nothing is known, and no boxes"))
            continue
        height, width = picture.labels.shape
        number = len(images) + 1
        images.append({"id": number, "file_name": picture.sample.image, "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + index, "image_id": number, "iscrowd": 0, **entry}
            for index, entry in enumerate(found, 1)
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.classes) if index]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return problems


def _annotations(picture: Picture) -> list[Entry] | None:
    """What is marked in one picture; None where that cannot be said."""
    if (picture.labels == IGNORED).any():
        return None if picture.boxes is None else [_box_entry(box) for box in picture.boxes]
    entries = []
    for index in np.unique(picture.labels[picture.labels > 0]).tolist():
        count, parts = cv2.connectedComponents((picture.labels == index).astype(np.uint8))
        entries += [_region_entry(parts == part, index) for part in range(1, count)]
    return entries


def _region_entry(mask: Mask, class_index: int) -> Entry:
    shape = (mask.shape[0], mask.shape[1])
    counts = rle.counts_to_text(rle.to_counts(rle.encode(mask), shape))
    code = {"size": list(shape), "counts": counts}
    return {**_box_entry(_bounds(mask, class_index)), "segmentation": code, "area": int(mask.sum())}


def _box_entry(box: Box) -> Entry:
    bbox = [box.x, box.y, box.width, box.height]
    return {"category_id": box.class_index, "bbox": bbox, "area": box.width * box.height, "segmentation": []}


def _bounds(mask: Mask, class_index: int) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Box(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1, class_index)


def _is_box_only(entry: Entry) -> bool:
    return not entry.get("segmentation")


def _contents(listing: Listing) -> tuple[dict[str, Entry], list[Problem]]:
    """Every COCO file by path, and the other JSON files."""
    contents, problems = {}, []
    for path in listing.with_suffix(".json"):
        try:
            content = read_json(listing.folder / path)
        except DatasetError as error:
            problems.append(Problem(path, str(error)))
            continue
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in LISTS):
            contents[path] = content
        else:
            problems.append(Problem(path, f"is no COCO file: it needs the lists {', '.join(LISTS)}"))
    if not contents:
        reason = f"; {problems[0].path}: {problems[0].reason}" if problems else ""
        raise DatasetError(f"{listing.folder} holds no COCO file{reason}")
    return contents, problems


def _pictures(listing: Listing, path: str, content: Entry) -> tuple[dict[str, Listed], list[Problem]]:
    """Pictures of one file with their annotations, and every entry that cannot be used."""
    names = {key: name for entry in content["categories"] if (key := _key(entry, "id")) and (name := _name(entry))}
    by_image: dict[str, list[tuple[Entry, str]]] = defaultdict(list)
    spoiled: dict[str, str] = {}
    images = {key for entry in content["images"] if (key := _key(entry, "id"))}
    problems = []
    for number, entry in enumerate(content["annotations"]):
        image, name = _key(entry, "image_id"), names.get(_key(entry, "category_id"), "")
        if image not in images:
            problems.append(Problem(f"{path}: annotations[{number}]", "names no picture of the list"))
        elif not name:
            spoiled[image] = f"annotation {_id_of(entry)} names no category of the list"
        else:
            by_image[image].append((entry, name))
    found: dict[str, Listed] = {}
    for number, entry in enumerate(content["images"]):
        key = _key(entry, "id")
        try:
            picture = _picture(listing, path, entry)
            if key in spoiled or picture in found:
                raise UnreadablePictureError(spoiled.get(key) or f"is listed twice in {path}")
            found[picture] = Listed((_side(entry, "height"), _side(entry, "width")), tuple(by_image[key]))
        except UnreadablePictureError as error:
            problems.append(Problem(_file_name(entry) or f"{path}: images[{number}]", str(error)))
    return found, problems


def _picture(listing: Listing, path: str, entry: Any) -> str:
    if not _file_name(entry) or not _key(entry, "id"):
        raise UnreadablePictureError("has no id and file_name")
    return listing.find_anywhere(_file_name(entry), str(PurePosixPath(path).parent))


def _side(entry: Entry, key: str) -> int | None:
    value = entry.get(key)
    if value is not None and type(value) is not int:
        raise UnreadablePictureError(f"{key} is no whole number")
    return value


def _classes(contents: Mapping[str, Entry], options: Options) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, the good one first and the others in the order of their ids, and the index of each category."""
    entries = [entry for content in contents.values() for entry in content["categories"]]
    if not all(_key(entry, "id") and _name(entry) for entry in entries):
        raise DatasetError(f"{next(iter(contents))}: a category has no id and name")
    ordered = sorted(entries, key=lambda entry: (len(_key(entry, "id")), _key(entry, "id")))
    names = list(dict.fromkeys(_name(entry) for entry in ordered))
    used = {_key(entry, "category_id") for content in contents.values() for entry in content["annotations"]}
    parents = {str(entry.get("supercategory")) for entry in entries}
    # Roboflow lists the kind of all its categories as one more of them.
    unused = {_name(entry) for entry in entries if _key(entry, "id") not in used and _name(entry) in parents}
    kept = [name for name in names if name not in unused]
    own = next((name for name in kept if name.lower() in (*GOOD_NAMES, "background")), "")
    good = options.good or own or "good"
    classes = options.classes or (good, *(name for name in kept if name != good))
    missing = [name for name in kept if name not in classes]
    if missing or len(classes) > IGNORED:
        raise DatasetError(f"categories {', '.join(missing[:20])} have no name in --classes, or there are too many")
    return classes, {name: classes.index(name) for name in kept}


def _key(entry: Any, key: str) -> str:
    """An id as text, as some tools write numbers and some text; "" where there is none."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return str(value) if type(value) in (int, str) else ""


def _name(entry: Any) -> str:
    value = entry.get("name") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""


def _file_name(entry: Any) -> str:
    value = entry.get("file_name") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""


def _id_of(entry: Entry) -> str:
    return _key(entry, "id") or "without id"


def _mentions_lists(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return all(f'"{name}"'.encode() in content for name in LISTS)
