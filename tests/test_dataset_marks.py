"""Pictures whose truth is a table, a list of boxes or drawn shapes: each form's own rules, counted by hand."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dataset_files import pictures_of, reasons, shared, square, why_unreadable, write
from training_pictures import grey, save

from engines import rle
from engines.datasets import open_dataset
from engines.datasets.labelled import IGNORED, Box, DatasetError, Options, Pixels, read_pictures
from engines.datasets.steel_rle import rows

# labelme, on a picture of 30 × 20 px.


def shape(kind: str | None, *points: tuple[float, float], label: str = "dent", **more: Any) -> dict[str, Any]:
    told = {} if kind is None else {"shape_type": kind}
    return {"label": label, "points": [list(point) for point in points], **told, **more}


def labelme(folder: Path, *shapes: dict[str, Any], **more: Any) -> Path:
    save(folder / "a.jpg", grey(90, 20, 30))
    write(folder / "a.json", json.dumps({"imagePath": "a.jpg", "imageData": None, "shapes": shapes, **more}))
    return folder


def drawn(folder: Path, *shapes: dict[str, Any], options: Options | None = None) -> Pixels:
    return pictures_of(open_dataset(labelme(folder, *shapes), options))["a.jpg"].labels


def patch(rows: int, columns: int) -> str:
    """A mask of a 5.x file: all set but the first row."""
    pixels = np.ones((rows, columns), np.uint8)
    pixels[0] = 0
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


@pytest.mark.parametrize(
    ("marked", "pixels"),
    [
        (shape("polygon", (2, 3), (6, 3), (6, 5), (2, 5)), 5 * 3),
        (shape(None, (2.9, 3.2), (6.9, 3.2), (6.1, 5.7), (2.1, 5.7)), 5 * 3),
        (shape("polygon", (0, 0), (4, 0), (0, 4)), 5 + 4 + 3 + 2 + 1),
        (shape("polygon", (-3, -3), (4, -3), (4, 4), (-3, 4)), 5 * 5),
        (shape("rectangle", (6, 5), (2, 3)), 5 * 3),
        (shape("rectangle", (2, 5), (6, 3)), 5 * 3),
        (shape("rectangle", (2, 3), (6, 3), (6, 5), (2, 5)), 5 * 3),
        (shape("rectangle", (26, 17), (40, 25)), 4 * 3),
        (shape("rectangle", (-9, -9), (-2, -2)), 0),
        (shape("circle", (10, 10), (10, 13)), 29),
        (shape("circle", (0, 0), (2, 0)), 3 + 2 + 1),
        (shape("point", (10.7, 10.2)), 29),
        (shape("line", (5, 5), (13, 5)), (9 + 2) * 3),
        (shape("linestrip", (5, 5), (9, 5), (9, 9)), 7 * 3 + 4 * 3),
        (shape("mask", (3, 4), (7, 9), mask=patch(6, 5)), 5 * 5),
    ],
)
def test_each_labelme_shape_fills_its_pixels(marked: dict[str, Any], pixels: int, tmp_path: Path) -> None:
    """Polygons and rectangles with their outline, a circle of radius 3 of 29 px, a line 3 px wide."""
    labels = drawn(tmp_path, shape("point", (29, 19), label="zzz"), marked)
    assert (labels == 1).sum() == pixels


def test_labelmes_own_labels_are_no_classes(tmp_path: Path) -> None:
    """`__ignore__` is not known, `_background_` is good, and neither has a name among the classes."""
    whole, unknown, wiped = (shape("rectangle", (2, 3), (x, 5)) for x in (6, 4, 2))
    labels = drawn(tmp_path, whole, unknown | {"label": "__ignore__"}, wiped | {"label": "_background_"})
    assert open_dataset(tmp_path).classes == ("good", "dent")
    assert [(labels == index).sum() for index in (1, IGNORED)] == [2 * 3, 2 * 3]


def test_later_shapes_cover_earlier_ones_and_classes_are_sorted(tmp_path: Path) -> None:
    """`Void` is 1, `dent` 2, in the order of their names; a shape called good wipes."""
    marked = [shape("rectangle", (0, 0), (9, 9)), shape("rectangle", (5, 0), (14, 9), label="Void")]
    labels = drawn(tmp_path, *marked, shape("rectangle", (0, 0), (0, 9), label="good"))
    assert open_dataset(tmp_path).classes == ("good", "Void", "dent")
    assert [(labels == index).sum() for index in (1, 2)] == [10 * 10, 4 * 10]


def test_masks_are_opened_and_closed(tmp_path: Path) -> None:
    """With 5×5 px: opening takes a hair away, closing fills a slit; neither moves a large square."""
    large, hair = shape("rectangle", (2, 2), (11, 11)), shape("rectangle", (12, 5), (20, 6))
    slit = shape("rectangle", (6, 2), (7, 11), label="good")
    assert drawn(tmp_path, large, hair, options=Options(morphology="open")).sum() == 100
    assert drawn(tmp_path, large, slit).sum() == 80
    assert drawn(tmp_path, large, slit, options=Options(morphology="close")).sum() == 100
    with pytest.raises(DatasetError, match="open, close"):
        open_dataset(tmp_path, Options(morphology="blur"))


@pytest.mark.parametrize(
    "path", ["..\\pictures\\a.jpg", "../pictures/a.jpg", "D:\\old\\place\\a.jpg", "renamed.jpg", None]
)
def test_the_picture_is_found_from_either_system(path: str | None, tmp_path: Path) -> None:
    """Either slash; where labelme's path leads nowhere, the picture of the file's own name is meant."""
    save(tmp_path / "pictures" / "a.jpg", grey(90, 20, 30))
    write(tmp_path / "labels" / "a.json", json.dumps({"imagePath": path, "shapes": [shape("point", (9, 9))]}))
    assert [sample.image for sample in open_dataset(tmp_path).samples] == ["pictures/a.jpg"]


def test_pictures_nobody_labelled_and_files_that_are_none_are_told(tmp_path: Path) -> None:
    """Without a JSON file a picture is not taken for good; rubbish is told under its picture's name."""
    labelme(tmp_path, shape("point", (9, 9)))
    for name in ("b", "c", "d", "e"):
        save(tmp_path / f"{name}.jpg", grey(90))
    write(tmp_path / "c.json", b"\xff\x00 no json")
    write(tmp_path / "d.json", "[" * 100_000)
    write(tmp_path / "e.json", '{"shapes": {"label": 1}}')
    told = reasons(open_dataset(tmp_path).problems)
    assert told.keys() == {"b.jpg", "c.jpg", "d.jpg", "e.jpg"}
    assert "has no .json file" in told["b.jpg"]
    assert "is no JSON" in told["c.jpg"]
    assert "nested too deeply" in told["d.jpg"]


@pytest.mark.parametrize(
    ("marked", "reason"),
    [
        (shape("polygon", (1, 1), (2, 2)), "polygon has 2 points, it needs 3"),
        (shape("polygon", (1, 1), (2, 2), (1e8, 3)), "far outside the picture"),
        (shape("polygon", (1, 1), (2, 2), (math.nan, 3)), "no number"),
        (shape("circle", (1, 1)), "circle has 1 points, it needs 2"),
        (shape("spline", (1, 1)), "shape type 'spline' is not known"),
        (shape("mask", (3, 4), (7, 9), mask=patch(6, 6)), "no PNG of the size"),
        (shape("mask", (3, 4), (7, 25), mask=patch(22, 5)), "does not lie in the picture"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_told(marked: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The picture is left out, and the reason names the shape."""
    told = why_unreadable(open_dataset(labelme(tmp_path, marked)))
    assert told.startswith("shape 1 (dent): ")
    assert reason in told


def test_a_file_of_another_picture_size_is_told(tmp_path: Path) -> None:
    """Labels drawn on a picture that was scaled since are not this picture's."""
    dataset = open_dataset(labelme(tmp_path, shape("point", (9, 9)), imageHeight=40, imageWidth=60))
    assert why_unreadable(dataset) == "labelled as 60×40 px, but the picture is 30×20 px"


@pytest.mark.parametrize(
    "broken", [{"label": 3}, {"points": 7}, {"points": [[1]]}, {"points": [["a", 1]]}, {"label": None}]
)
def test_shapes_of_wrong_types_are_told(broken: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the JSON holds, there is a reason and no traceback."""
    labelme(tmp_path, {**shape("polygon", (1, 1), (2, 2), (3, 1)), **broken})
    with pytest.raises(DatasetError, match=r"a\.jpg: shape 1"):
        open_dataset(tmp_path)


def test_the_ball_screws_are_read() -> None:
    """All 40 pictures, the first shape of the first file where it was drawn."""
    dataset = open_dataset(shared("ball-screw-labelme"))
    pictures = pictures_of(dataset)
    assert len(pictures) == 40
    assert all(picture.class_index == 1 for picture in pictures.values())
    assert dataset.classes == ("good", "Pitting")
    first = dataset.samples[0]
    content = json.loads((dataset.folder / first.truth).read_text())
    x, y = (int(value) for value in content["shapes"][0]["points"][0])
    assert pictures[first.image].labels[y, x] == 1


# DeepPCB.


def board(folder: Path, boxes: str) -> Path:
    """A board of 30 × 20 px that differs from its template in 4×4 px at x 5, y 3."""
    save(folder / "group7/7/0_temp.png", grey(0, 20, 30))
    save(folder / "group7/7/0_test.png", square(3, 5, 4, 128))
    write(folder / "group7/7_not/0.txt", boxes)
    write(folder / "trainval.txt", "group7/7/0.png group7/7_not/0.txt\r\n")
    return folder


def test_pixels_inside_a_box_get_its_type(tmp_path: Path) -> None:
    """Only there; and the box itself stays the truth, with the pixel of x2, y2 outside."""
    dataset = open_dataset(board(tmp_path, "4 2 7 9 3\n\n20,10,25,15,6\n"))
    picture = pictures_of(dataset)["group7/7/0_test.png"]
    assert (picture.labels == 3).sum() == 3 * 7
    assert np.count_nonzero(picture.labels) == 3 * 7 + 5 * 5
    assert picture.boxes == (Box(4, 2, 3, 7, 3), Box(20, 10, 5, 5, 6))
    assert picture.reference is not None
    assert dataset.samples[0].group == "group7"
    assert dataset.classes[6] == "pin-hole"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 2 3 4", "has 4 numbers"),
        ("1 2 3 four 1", "no whole numbers"),
        ("1 2 3 4 7", "type 7 is none of 1…6"),
        ("5 2 5 4 1", "does not lie in the picture of 30×20 px"),
        ("1 2 31 4 1", "does not lie in the picture"),
    ],
)
def test_a_box_line_that_is_wrong_is_told_with_its_number(line: str, reason: str, tmp_path: Path) -> None:
    """The picture is left out: a box that was dropped would make its defect a good one."""
    told = why_unreadable(open_dataset(board(tmp_path, f"1 1 2 2 1\n{line}\n")))
    assert told.startswith("0.txt, line 2: ")
    assert reason in told


def test_boards_that_are_not_listed_or_not_there_are_told(tmp_path: Path) -> None:
    """The list says what belongs to the set; without one every board with a template does."""
    board(tmp_path, "")
    save(tmp_path / "group7/7/1_test.png", grey(0, 20, 30))
    save(tmp_path / "group7/7/1_temp.png", grey(0, 20, 30))
    write(tmp_path / "group7/7_not/1.txt", "")
    write(tmp_path / "test.txt", "group7/7/2.png group7/7_not/2.txt\nword\n")
    told = reasons(open_dataset(tmp_path).problems)
    assert told["group7/7/1_test.png"] == "is in none of the lists"
    assert told["group7/7/2_test.png"] == "group7/7/2_test.png is missing"
    assert len(told) == 3
    for name in ("trainval.txt", "test.txt"):
        (tmp_path / name).unlink()
    assert len(open_dataset(tmp_path).samples) == 2


def test_real_boards_have_copper_where_their_boxes_are() -> None:
    """Of the first 20 pictures every box but few holds pixels of its type, and nothing outside has any."""
    dataset = open_dataset(shared("deep-pcb"))
    pictures, skipped = read_pictures(dataset, dataset.samples[:20])
    assert skipped == []
    boxes = [(picture, box) for picture in pictures for box in picture.boxes or ()]
    filled = [
        (picture.labels[box.y : box.y + box.height, box.x : box.x + box.width] == box.class_index).any()
        for picture, box in boxes
    ]
    assert len(filled) > 50
    assert np.mean(filled) > 0.98


# ID,Label.


def test_numbers_are_the_contests_classes(tmp_path: Path) -> None:
    """Names with and without suffix, in any folder; `3.0` is 3; rows without label or picture are told."""
    for name in ("train_images/a.png", "train_images/b.PNG", "test_images/c.png", "d.png", "e.png"):
        save(tmp_path / name.lower(), grey(90))
        (tmp_path / name.lower()).rename(tmp_path / name)
    write(tmp_path / "train.csv", "\ufeffid,LABEL\r\na.png,0\r\nb,3.0\r\ngone.png,1\r\nd.png,1\r\nd.png,2\r\n")
    write(tmp_path / "test.csv", "ID,Label\nc.png,\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("normal", "void", "horizontal defect", "vertical defect", "edge defect", "particle")
    assert {path: picture.class_index for path, picture in pictures_of(dataset).items()} == {
        "train_images/a.png": 0,
        "train_images/b.PNG": 3,
    }
    assert reasons(dataset.problems) == {
        "gone.png": "gone.png is missing",
        "test_images/c.png": "has no label in test.csv",
        "d.png": "is labelled more than once: 1, 2",
        "e.png": "has no row",
    }


def test_labels_in_words_need_a_good_one(tmp_path: Path) -> None:
    """Told by its name or by the option; numbers beyond the names are told one by one."""
    for name in "abc":
        save(tmp_path / f"{name}.png", grey(90))
    write(tmp_path / "l.csv", "ID,Label\na,scratch\nb,OK\nc,dent\n")
    assert open_dataset(tmp_path).classes == ("OK", "dent", "scratch")
    write(tmp_path / "l.csv", "ID,Label\na,scratch\nb,plain\nc,dent\n")
    with pytest.raises(DatasetError, match="--good: dent, plain, scratch"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, Options(good="plain")).classes == ("plain", "dent", "scratch")
    write(tmp_path / "l.csv", "ID,Label\na,0\nb,1\nc,2\n")
    dataset = open_dataset(tmp_path, Options(classes=("fine", "bad")))
    assert reasons(dataset.problems) == {"c.png": "label 2 has no name"}


# Steel.


def test_the_steel_rows_are_read_and_come_back() -> None:
    """All 638 rows of the competition: decode, encode, and the same text comes out."""
    found, problems = rows(shared("severstal-rle") / "train_rows.csv")
    assert (len(found), problems) == (638, [])
    assert [sum(row.class_index == index for row in found) for index in (1, 2, 3, 4)] == [92, 19, 459, 68]
    for row in found:
        assert rle.to_text(rle.encode(rle.decode(rle.from_text(row.code), (256, 1600)))) == row.code


def test_pictures_without_a_row_are_good_where_others_have_one(tmp_path: Path) -> None:
    """The test part is not good but not labelled; Kaggle's example answer is no table of labels."""
    for name in ("train_images/a.jpg", "train_images/b.jpg", "test_images/c.jpg"):
        save(tmp_path / name, grey(90, 4, 5))
    write(tmp_path / "train.csv", "ImageId,ClassId,EncodedPixels\na.jpg,1,1 2\na.jpg,6,2 3\nz.jpg,1,1 1\n")
    write(tmp_path / "sample_submission.csv", "ImageId,EncodedPixels,ClassId\nc.jpg,1 20,1\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("good", *(f"class {index}" for index in range(1, 7)))
    pictures = pictures_of(dataset)
    assert pictures["train_images/a.jpg"].labels[:, 0].tolist() == [1, 6, 6, 6]
    assert pictures["train_images/b.jpg"].class_index == 0
    assert reasons(dataset.problems) == {
        "z.jpg": "z.jpg is missing",
        "test_images/c.jpg": "has no row, nor has any picture of its folder",
    }
    with pytest.raises(DatasetError, match="up to ClassId 6"):
        open_dataset(tmp_path, Options(classes=("good", "a", "b")))


@pytest.mark.parametrize("code", ["1 21", "20 2", "1", "a 1", "0 1", "3 3 1 1"])
def test_a_code_that_does_not_fit_is_told(code: str, tmp_path: Path) -> None:
    """Of another picture size, cut off, out of order: the picture is left out with the reason."""
    save(tmp_path / "a.jpg", grey(90, 4, 5))
    write(tmp_path / "t.csv", f"ImageId,ClassId,EncodedPixels\na.jpg,2,{code}\n")
    told = why_unreadable(open_dataset(tmp_path))
    assert told.startswith("row of class 2: run-length code")


@pytest.mark.parametrize("kind", ["0", "-1", "x", "255", "99999999999999999999"])
def test_a_class_that_is_none_is_told_and_does_not_make_the_picture_good(kind: str, tmp_path: Path) -> None:
    """What is left of such a picture's rows is not its truth."""
    for name in "ab":
        save(tmp_path / f"{name}.jpg", grey(90, 4, 5))
    write(tmp_path / "t.csv", f"ImageId,ClassId,EncodedPixels\na.jpg,{kind},1 2\nb.jpg,1,1 2\n")
    dataset = open_dataset(tmp_path)
    assert [sample.image for sample in dataset.samples] == ["b.jpg"]
    assert "is no number from 1 to 254" in reasons(dataset.problems)["a.jpg"]
