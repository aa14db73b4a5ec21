"""COCO files: regions of every kind counted by hand, boxes alone, files that lie, and our own way there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import mask_of, pictures_of, reasons, square, why_unreadable, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from training_pictures import grey, save

from engines.datasets import open_dataset
from engines.datasets.coco import write_coco
from engines.datasets.labelled import IGNORED, Box, Dataset, DatasetError, Options, Picture, Sample

CATEGORIES = [{"id": 10, "name": "dent"}, {"id": 9, "name": "void"}]


def coco(folder: Path, *annotations: Any, **more: Any) -> Path:
    """One picture of 10 × 9 px, a.png of id 5, with these annotations of category 10."""
    save(folder / "images" / "a.png", grey(90, 9, 10))
    listed = [
        {"id": index, "image_id": 5, "category_id": 10, **entry} if isinstance(entry, dict) else entry
        for index, entry in enumerate(annotations, 1)
    ]
    images = [{"id": 5, "file_name": "a.png", "height": 9, "width": 10}]
    content = {"images": images, "annotations": listed, "categories": CATEGORIES, **more}
    write(folder / "annotations" / "instances_train.json", json.dumps(content))
    return folder


def read(folder: Path) -> Picture:
    return pictures_of(open_dataset(folder))["images/a.png"]


SQUARE = [2, 2, 6, 2, 6, 5, 2, 5]


@pytest.mark.parametrize(
    ("segmentation", "pixels"),
    [
        ([SQUARE], 4 * 3),
        ([[5, 2, 5, 6, 2, 6]], 1 + 2 + 3),
        ([SQUARE, [0, 0, 1, 0, 1, 9, 0, 9]], 4 * 3 + 9),
        ([[-5, -5, 3, -5, 3, 2, -5, 2]], 3 * 2),
        ([[2.4, 2.4, 6.4, 2.4, 6.4, 5.4, 2.4, 5.4]], 4 * 3),
        ([[0, 0, 4, 4, 0, 4]], 4 + 3 + 2 + 1),
        ({"size": [9, 10], "counts": [6, 1, 40, 4, 5, 4, 5, 4, 21]}, 1 + 3 * 4),
        ({"size": [9, 10], "counts": "61X13mN000`0"}, 1 + 3 * 4),
        ({"size": [9, 10], "counts": [0, 90]}, 90),
    ],
)
def test_every_kind_of_region_fills_its_pixels(segmentation: Any, pixels: int, tmp_path: Path) -> None:
    """Polygons by the centres of pixels, union of several; run lengths as a list and as a string."""
    picture = read(coco(tmp_path, {"segmentation": segmentation, "bbox": [0, 0, 1, 1]}))
    assert (picture.labels == 2).sum() == pixels
    assert np.count_nonzero(picture.labels) == pixels
    assert picture.boxes is None


def test_categories_are_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    """9 before 10; the good class is a category that says so, or there is one more; later regions cover earlier."""
    folder = coco(tmp_path, {"segmentation": [SQUARE]}, {"segmentation": [SQUARE], "category_id": 9})
    assert open_dataset(folder).classes == ("good", "void", "dent")
    assert (read(folder).labels == 1).sum() == 12
    named = [*CATEGORIES, {"id": 1, "name": "Background"}]
    assert open_dataset(coco(tmp_path, categories=named)).classes == ("Background", "void", "dent")
    roboflow = [{"id": 0, "name": "chips"}, *({**of, "supercategory": "chips"} for of in CATEGORIES)]
    assert open_dataset(coco(tmp_path, categories=roboflow)).classes == ("good", "void", "dent")


def test_boxes_alone_are_the_truth(tmp_path: Path) -> None:
    """Pixels inside are not known; fractions widen, what sticks out is cut; beside them a region has its box, too."""
    folder = coco(
        tmp_path, {"bbox": [2.5, 3, 2, 2], "segmentation": []}, {"bbox": [8, 7, 5, 5]}, {"segmentation": [SQUARE]}
    )
    picture = read(folder)
    assert picture.boxes == (Box(2, 3, 3, 2, 2), Box(8, 7, 2, 2, 2), Box(2, 2, 4, 3, 2))
    assert (picture.labels == IGNORED).sum() == 4
    assert picture.class_index == 2
    save(tmp_path / "images" / "b.png", grey(90, 9, 10))
    images = [{"id": 5, "file_name": "images/a.png"}, {"id": "7", "file_name": "b.png"}]
    pictures = pictures_of(open_dataset(coco(tmp_path, {"bbox": [1, 1, 1, 1]}, images=images)))
    assert pictures["images/b.png"].boxes == ()
    assert pictures["images/b.png"].class_index == 0


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon has 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "polygon is no list of numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "polygon is no list of numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e300]]}, "polygon is no list of numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e8]]}, "far outside the picture"),
        ({"segmentation": "61X1"}, "neither polygons nor run lengths"),
        ({"segmentation": [7]}, "polygon is no list of numbers"),
        ({"segmentation": {"size": [1 << 40, 1 << 40], "counts": [1]}}, "run lengths are of size"),
        ({"segmentation": {"size": [9, 10], "counts": [1 << 70, 3]}}, "counts are neither"),
        ({"segmentation": {"size": [9, 10], "counts": [80, 5]}}, "counts add up to 85 px instead of 90"),
        ({"segmentation": {"size": [9, 10], "counts": [80.0, 10]}}, "counts are neither"),
        ({"segmentation": {"size": [9, 10], "counts": "X"}}, "cut off"),
        ({"segmentation": {"counts": "0"}}, "run lengths are of size None"),
        ({"bbox": [1, 2, 0, 4]}, "bbox is not x, y, width, height"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bbox is no list of numbers"),
        ({"bbox": [50, 2, 3, 4]}, "bbox lies outside the picture"),
        ({}, "bbox is no list of numbers"),
    ],
)
def test_an_annotation_that_cannot_be_is_told(annotation: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The picture is left out with the annotation's id; nothing is set aside by a size that the file declares."""
    told = why_unreadable(open_dataset(coco(tmp_path, annotation)))
    assert told.startswith("annotation 1: ")
    assert reason in told


def test_entries_that_do_not_meet_are_told(tmp_path: Path) -> None:
    """Pictures missing, listed twice or not at all; annotations of no picture; categories that are none."""
    folder = coco(tmp_path, {"image_id": 99}, 7, {"image_id": 6, "category_id": 3}, {"segmentation": [SQUARE]})
    content = json.loads((folder / "annotations/instances_train.json").read_text())
    more = [("b.png", 6), ("gone.png", 8), ("a.png", 11), (None, 12)]
    content["images"] += [{"id": number, "file_name": name} for name, number in more] + ["x"]
    write(folder / "annotations/instances_train.json", json.dumps(content))
    write(folder / "notes.json", "{}")
    for name in ("b", "c"):
        save(folder / "images" / f"{name}.png", grey(90))
    dataset = open_dataset(folder)
    assert [sample.image for sample in dataset.samples] == ["images/a.png"]
    told = reasons(dataset.problems)
    place = "annotations/instances_train.json"
    assert told[f"{place}: annotations[0]"] == told[f"{place}: annotations[1]"] == "names no picture of the list"
    assert told["b.png"] == "annotation 3 names no category of the list"
    assert told["gone.png"] == "gone.png is missing"
    assert told["a.png"] == f"is listed twice in {place}"
    assert told[f"{place}: images[4]"] == told[f"{place}: images[5]"] == "has no id and file_name"
    assert told["images/c.png"] == "is listed in no file"
    assert "is no COCO file" in told["notes.json"]


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{", "\0", '{"images": 1, "annotations": 2, "categories": 3}', "[" * 50_000]
)
def test_a_file_that_is_no_coco_is_an_error_of_one_line(content: str, tmp_path: Path) -> None:
    """Wrong types, rubbish and bottomless nesting: DatasetError."""
    write(tmp_path / "instances.json", content)
    with pytest.raises(DatasetError, match="no COCO file"):
        open_dataset(tmp_path, form="coco")


@pytest.mark.parametrize("categories", [[{"id": 1}], [{"name": "x"}], ["x"], [{"id": [1], "name": "x"}]])
def test_categories_of_wrong_types_are_an_error(categories: list[Any], tmp_path: Path) -> None:
    """Without names there are no classes."""
    with pytest.raises(DatasetError, match="a category has no id and name"):
        open_dataset(coco(tmp_path, categories=categories))


def test_listed_size_and_names_must_fit(tmp_path: Path) -> None:
    """A picture that was scaled since, and names that leave a category out."""
    images = [{"id": 5, "file_name": "a.png", "height": 90, "width": 100}]
    told = why_unreadable(open_dataset(coco(tmp_path, images=images)))
    assert told == "listed as 100×90 px, but the picture is 10×9 px"
    with pytest.raises(DatasetError, match="dent have no name in --classes"):
        open_dataset(tmp_path, Options(classes=("good", "void")))


def picture(name: str, labels: np.ndarray, boxes: tuple[Box, ...] | None = None) -> Picture:
    sample = Sample(name, "", name, None)
    return Picture(sample, grey(90, *labels.shape), labels, int(labels.max()), boxes)


def written(folder: Path, *pictures: Picture) -> list[str]:
    """The folder as our own writer makes it; names of pictures that were left out."""
    dataset = Dataset(folder, "test", ("good", "void", "dent"), (), lambda sample, shape: None)  # type: ignore[arg-type,return-value]
    for one in pictures:
        save(folder / one.sample.image, one.pixels)
    return [problem.path for problem in write_coco(dataset, pictures, folder / "coco.json")]


@settings(max_examples=20, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_labels_go_there_and_back(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    """What our writer writes our reader reads, pixel by pixel."""
    folder = tmp_path_factory.mktemp("coco")
    assert written(folder, picture("a.png", labels)) == []
    dataset = open_dataset(folder)
    assert (dataset.form, dataset.classes) == ("coco", ("good", "void", "dent"))
    assert np.array_equal(pictures_of(dataset)["a.png"].labels, labels)


def test_each_region_is_an_annotation_with_box_and_area(tmp_path: Path) -> None:
    """Two spots of a class are two, with the numbers that COCO's tools expect."""
    written(tmp_path, picture("a.png", mask_of("01100", "00002")), picture("b.png", mask_of("10100")))
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["images"][1] == {"id": 2, "file_name": "b.png", "height": 1, "width": 5}
    found = content["annotations"]
    assert [(of["id"], of["image_id"], of["category_id"], of["area"]) for of in found] == [
        (1, 1, 1, 2), (2, 1, 2, 1), (3, 2, 1, 1), (4, 2, 1, 1),
    ]  # fmt: skip
    assert found[0]["bbox"] == [1, 0, 2, 1]
    assert found[0]["segmentation"] == {"size": [2, 5], "counts": "21104"}


def test_boxes_go_there_and_back_and_the_unknown_is_told(tmp_path: Path) -> None:
    """Where boxes are the truth they are written; a picture nobody marked cannot be, and is named."""
    box = Box(3, 2, 4, 4, 1)
    unknown = square(2, 3, 4, IGNORED, (9, 10))
    assert written(tmp_path, picture("a.png", unknown, (box,)), picture("b.png", unknown)) == ["b.png"]
    found = pictures_of(open_dataset(tmp_path))["a.png"]
    assert found.boxes == (box,)
    assert np.array_equal(found.labels, unknown)
