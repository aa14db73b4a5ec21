"""Every form of data folder: found by itself, read back as it was written, and safe against what lies outside."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import pictures_of, reasons, shared, square, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from training_pictures import grey, save

from engines import rle
from engines.datasets import FORMS, load_form, open_dataset
from engines.datasets.foreign_text import read_table
from engines.datasets.labelled import IGNORED, DatasetError, Options, good_class, read_pictures
from engines.datasets.listing import list_files


@pytest.mark.parametrize("name", FORMS)
def test_every_form_satisfies_the_protocol(name: str, tmp_path: Path) -> None:
    """A form has `fits(folder)` and `open(folder, options)`, and an empty folder is none of its own."""
    form = load_form(name)
    assert list(inspect.signature(form.fits).parameters) == ["folder"]
    assert list(inspect.signature(form.open).parameters) == ["folder", "options"]
    assert form.fits(tmp_path) is False


@pytest.mark.parametrize("name", FORMS)
def test_an_empty_folder_is_an_error_of_one_line_in_every_form(name: str, tmp_path: Path) -> None:
    """Whoever names a form for a folder without pictures reads what is missing."""
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path, form=name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "form", "classes", "samples", "groups"),
    [
        ("magnetic-tile", "class-folders", 6, 1014, 161),
        ("deep-pcb", "deep-pcb", 7, 1000, 7),
        ("ball-screw-labelme", "labelme", 2, 40, 40),
        ("low-contrast", "image-mask", 2, 20, 20),
    ],
)
def test_real_folders_are_recognised(name: str, form: str, classes: int, samples: int, groups: int) -> None:
    """Without a word about the form the shared sets open with their classes, pictures and groups, and no problem."""
    dataset = open_dataset(shared(name))
    assert (dataset.form, len(dataset.classes)) == (form, classes)
    assert len(dataset.samples) == samples
    assert len({sample.group for sample in dataset.samples}) == groups
    assert dataset.problems == ()


# A form's own way of writing pictures with labels 0, 1, 2, of which it keeps all.


def as_image_mask(folder: Path, name: str, labels: np.ndarray) -> None:
    save(folder / "images" / f"{name}.png", grey(90, *labels.shape))
    save(folder / "masks" / f"{name}.png", labels)
    write(folder / "classes.txt", "good\r\na\r\nb\r\n")


def as_class_folders(folder: Path, name: str, labels: np.ndarray) -> None:
    kind = str(labels.max())
    save(folder / kind / f"{name}.jpg", grey(90, *labels.shape))
    save(folder / kind / f"{name}.png", (labels > 0).astype(np.uint8) * 255)


def as_labelme(folder: Path, name: str, labels: np.ndarray) -> None:
    save(folder / f"{name}.png", grey(90, *labels.shape))
    shapes = [
        {"label": "ab"[labels[y, x] - 1], "points": [[x, y], [x, y]], "shape_type": "rectangle"}
        for y, x in np.argwhere(labels).tolist()
    ]
    content = {"imagePath": f"{name}.png", "imageData": None, "shapes": shapes}
    write(folder / f"{name}.json", json.dumps(content))


def as_steel_rle(folder: Path, name: str, labels: np.ndarray) -> None:
    save(folder / "train_images" / f"{name}.jpg", grey(90, *labels.shape))
    table = folder / "train.csv"
    lines = [table.read_text() if table.is_file() else "ImageId_ClassId,EncodedPixels\n"]
    lines += [f"{name}.jpg_{kind},{rle.to_text(rle.encode(labels == kind))}\n" for kind in (1, 2)]
    write(table, "".join(lines))


def as_coco(folder: Path, name: str, labels: np.ndarray) -> None:
    save(folder / f"{name}.png", grey(90, *labels.shape))
    path = folder / "instances_all.json"
    old = json.loads(path.read_text()) if path.is_file() else {"images": [], "annotations": []}
    number = len(old["images"])
    old["images"].append({"id": number, "file_name": f"{name}.png"})
    for kind in (1, 2):
        counts = rle.to_counts(rle.encode(labels == kind), labels.shape)
        code = {"size": list(labels.shape), "counts": rle.counts_to_text(counts)}
        old["annotations"].append({"id": 9, "image_id": number, "category_id": kind, "segmentation": code})
    old["categories"] = [{"id": kind, "name": "xab"[kind]} for kind in (1, 2)]
    write(path, json.dumps(old))


def as_deep_pcb(folder: Path, name: str, labels: np.ndarray) -> None:
    template = grey(0, *labels.shape)
    save(folder / "group1" / "1" / f"{name}_temp.png", template)
    save(folder / "group1" / "1" / f"{name}_test.png", np.where(labels > 0, 255, template).astype(np.uint8))
    boxes = [f"{x},{y},{x + 1},{y + 1},{labels[y, x]}" for y, x in np.argwhere(labels).tolist()]
    write(folder / "group1" / "1_not" / f"{name}.txt", "\n".join(boxes))


def as_id_label(folder: Path, name: str, labels: np.ndarray) -> None:
    save(folder / "images" / f"{name}.png", grey(90, *labels.shape))
    table = folder / "train.csv"
    before = table.read_text() if table.is_file() else "ID,Label\n"
    write(table, f"{before}{name}.png,{labels.max()}\n")


WRITERS: dict[str, Callable[[Path, str, np.ndarray], None]] = {
    "deep-pcb": as_deep_pcb,
    "steel-rle": as_steel_rle,
    "coco": as_coco,
    "labelme": as_labelme,
    "id-label": as_id_label,
    "image-mask": as_image_mask,
    "class-folders": as_class_folders,
}
WHOLE_PICTURE = {"id-label"}
ONE_CLASS_A_PICTURE = {"class-folders"}

LABELS = st.tuples(st.integers(2, 6), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 2))
)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(some=LABELS)
def test_what_was_written_is_read(form: str, some: np.ndarray) -> None:
    """In every form a set of three pictures comes back to the labels it was written from, by autodetection."""
    both = np.zeros_like(some)
    both[0, :2] = 1, 2
    written = {"none": np.zeros_like(some), "both": both, "some": some}
    with tempfile.TemporaryDirectory() as place:
        for name, labels in written.items():
            WRITERS[form](Path(place), name, labels)
        dataset = open_dataset(Path(place), Options(good="0" if form == "class-folders" else ""))
        assert dataset.form == form
        assert dataset.problems == ()
        pictures = pictures_of(dataset)
    assert len(pictures) == 3
    for path, picture in pictures.items():
        labels = written[Path(path).stem.removesuffix("_test")]
        if form in WHOLE_PICTURE:
            assert picture.class_index == labels.max()
            assert (picture.labels == (IGNORED if labels.any() else 0)).all()
        elif form in ONE_CLASS_A_PICTURE:
            named = dataset.classes.index(str(labels.max()))
            assert picture.class_index == named
            assert np.array_equal(picture.labels, np.where(labels > 0, named, 0))
        else:
            assert np.array_equal(picture.labels, labels)


# What no form may read.


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    """`__MACOSX`, `._a.png` and the like, which archives bring along, are neither pictures nor problems."""
    for path in ("a.PNG", "__MACOSX/a.png", "._a.png", ".cache/b.png"):
        save(tmp_path / "x.png", grey(1))
        write(tmp_path / path, (tmp_path / "x.png").read_bytes())
    listing = list_files(tmp_path)
    assert listing.files == ("a.PNG", "x.png")
    assert listing.problems == ()


def test_links_that_lead_out_are_problems(tmp_path: Path) -> None:
    """A link to a file or folder elsewhere is not read but listed; one to a file inside is a file as any other."""
    save(tmp_path / "elsewhere" / "secret.png", grey(1))
    data = tmp_path / "data"
    save(data / "images" / "a.png", grey(1))
    (data / "images" / "b.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (data / "images" / "c.png").symlink_to("a.png")
    (data / "images" / "d.png").symlink_to("nothing.png")
    (data / "loop").symlink_to("loop")
    (data / "masks").symlink_to(tmp_path / "elsewhere")
    listing = list_files(data)
    assert listing.files == ("images/a.png", "images/c.png")
    assert reasons(listing.problems).keys() == {"images/b.png", "images/d.png", "loop", "masks"}
    assert "leads out of the data folder" in reasons(listing.problems)["images/b.png"]


def outside_by_groups(folder: Path) -> None:
    save(folder / "good" / "a.png", grey(1))
    write(folder / "groups.csv", "image,class,group\ngood/a.png,good,g\n../secret.png,good,h\n/etc/secret.png,good,i\n")


def outside_by_steel(folder: Path) -> None:
    save(folder / "a.png", grey(1))
    write(folder / "train.csv", "ImageId,ClassId,EncodedPixels\na.png,1,1 1\n..\\secret.png,1,1 1\n")


def outside_by_id(folder: Path) -> None:
    save(folder / "a.png", grey(1))
    write(folder / "train.csv", "ID,Label\na,0\n../secret.png,0\n")


def outside_by_board(folder: Path) -> None:
    as_deep_pcb(folder, "a", np.eye(3, dtype=np.uint8))
    names = "group1/1/a.png group1/1_not/a.txt\n../secret.png group1/1_not/a.txt\ngroup1/1/a.png ../secret.txt\n"
    write(folder / "trainval.txt", names)


def outside_by_labelme(folder: Path) -> None:
    as_labelme(folder, "a", np.eye(3, dtype=np.uint8))
    write(folder / "secret.json", json.dumps({"imagePath": "..\\secret.png", "shapes": []}))


def outside_by_coco(folder: Path) -> None:
    as_coco(folder, "a", np.eye(3, dtype=np.uint8))
    content = json.loads((folder / "instances_all.json").read_text())
    content["images"].append({"id": 77, "file_name": "../secret.png"})
    write(folder / "instances_all.json", json.dumps(content))


@pytest.mark.parametrize(
    "make",
    [outside_by_groups, outside_by_steel, outside_by_id, outside_by_board, outside_by_labelme, outside_by_coco],
)
def test_names_that_lead_out_are_problems(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A table, list or JSON that names `../secret.png` gets a problem for it, and the rest of the set is read."""
    save(tmp_path / "secret.png", grey(200))
    write(tmp_path / "secret.txt", "0 0 1 1 1")
    make(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert "leads out of the data folder" in " ".join(problem.reason for problem in dataset.problems)
    assert [Path(sample.image).stem.removesuffix("_test") for sample in dataset.samples] == ["a"]
    assert len(pictures_of(dataset)) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_are_read_however_they_were_saved(encoding: str, separator: str, end: str, tmp_path: Path) -> None:
    """BOM, UTF-16, Latin-1, Windows and old Mac lines, semicolons and tabs: the same rows."""
    lines = [f"Image{separator}GROUP", f"prüfung.png{separator}t1", "", "b.png"]
    path = write(tmp_path / "t.csv", end.join(lines).encode(encoding))
    assert read_table(path, "image", "group") == [
        {"image": "prüfung.png", "group": "t1"},
        {"image": "b.png", "group": ""},
    ]


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff\xfe", b'"' + b"x" * 200_000, bytes(range(256))])
def test_tables_that_are_none_are_an_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    """Binary rubbish under a CSV's name tells the file and what it lacks."""
    with pytest.raises(DatasetError, match=r"t\.csv"):
        read_table(write(tmp_path / "t.csv", content), "image", "group")


def test_names_out_of_foreign_files_cannot_fake_a_line(tmp_path: Path) -> None:
    """Line ends and terminal codes are shown as escapes, and a name without end is cut."""
    save(tmp_path / "a.png", grey(1))
    rows = ["ID,Label", "a,0", '"b\nc\x1b[2J",1', f"{'x' * 9000},1"]
    write(tmp_path / "t.csv", "\n".join(rows))
    problems = open_dataset(tmp_path).problems
    assert problems[0].path == "b\\nc\\x1b[2J"
    assert len(problems[1].path) == len(problems[1].reason) == 500


def test_abnormal_is_not_taken_for_normal() -> None:
    """Only a name that really ends in a good word is good: `MT_Free`, but neither `abnormal` nor `no_good`."""
    assert good_class(["abnormal", "MT_Free", "no_good"]) == "MT_Free"
    assert good_class(["abnormal", "no_good", "crack"]) == ""


def test_groups_come_from_a_table_elsewhere(tmp_path: Path) -> None:
    """`--groups` gives any form its groups and times; a table that names none of the pictures is an error."""
    for name in ("a", "b"):
        as_image_mask(tmp_path / "data", name, square(2, 3, value=1))
    table = write(tmp_path / "g.csv", "image,group,time\nimages/a.png,board-1,2024-05-01\nb,board-1,2024-05-02\n")
    samples = open_dataset(tmp_path / "data", Options(groups=table)).samples
    assert [(sample.group, sample.time) for sample in samples] == [("board-1", "2024-05-01"), ("board-1", "2024-05-02")]
    with pytest.raises(DatasetError, match="names no picture"):
        open_dataset(tmp_path / "data", Options(groups=write(tmp_path / "h.csv", "image,group\nz.png,1\n")))
    with pytest.raises(DatasetError, match="correct --groups"):
        open_dataset(tmp_path / "data", Options(groups=tmp_path / "none.csv"))


def test_a_picture_that_declares_a_huge_size_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    """A PNG header of 2³⁰ px a side is told as undecodable, as picture and as mask."""
    as_image_mask(tmp_path, "a", square(2, 3, value=1))
    as_image_mask(tmp_path, "b", square(2, 3, value=1))
    as_image_mask(tmp_path, "c", square(2, 3, value=1))
    for path in (tmp_path / "images" / "a.png", tmp_path / "masks" / "b.png"):
        content = bytearray(path.read_bytes())
        content[16:24] = (1 << 30).to_bytes(4, "big") * 2
        path.write_bytes(bytes(content))
    dataset = open_dataset(tmp_path)
    pictures, skipped = read_pictures(dataset, dataset.samples)
    assert [picture.sample.image for picture in pictures] == ["images/c.png"]
    assert all("cannot be decoded" in problem.reason for problem in skipped)
