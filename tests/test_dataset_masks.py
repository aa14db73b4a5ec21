"""Pictures with mask files: which belongs to which, and what the values of masks mean."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_files import mask_of, pictures_of, reasons, square, why_unreadable, write
from training_pictures import grey, save

from engines.datasets import load_form, open_dataset
from engines.datasets.labelled import IGNORED, DatasetError, Options, Pixels, read_pictures
from engines.datasets.pairing import MaskOf, pair


def paired(*paths: str) -> dict[str, list[tuple[str, str]]]:
    """Masks and their class word by picture; [] for a picture without, and `""` holds masks of no picture."""
    pairs = pair(paths)
    found = {
        picture.path: [(mask.path, mask.word) for mask in pairs.masks.get(picture.path, [])]
        for picture in pairs.pictures
    }
    return found | ({"": [(orphan.path, "") for orphan in pairs.orphans]} if pairs.orphans else {})


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("images/a.png", "masks/a.png"),
        ("image/a.jpg", "label/a.png"),
        ("IMG/a.JPG", "GT/A.PNG"),
        ("imgs/a.bmp", "ground_truth/a.bmp"),
        ("data/a.png", "annotations/a.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/train/a.png", "masks/train/a.png"),
        ("train_img/a.png", "train_lab/a.png"),
        ("set/TrainImages/a.png", "set/TrainMasks/a.png"),
        ("Defect_images/a.png", "Mask_images/a_mask.png"),
        ("images/a.png", "masks/a_GT.png"),
        ("images/a.png", "masks/a-mask.png"),
        ("a.png", "label/a.png"),
        ("Class1/Train/0001.PNG", "Class1/Train/Label/0001_label.PNG"),
        ("kos01/Part5.jpg", "kos01/Part5_label.bmp"),
        ("train/10001.png", "train/10001_GT.png"),
        ("MT_Crack/Imgs/a.jpg", "MT_Crack/Imgs/a.png"),
        ("test/crack/000.png", "ground_truth/crack/000_mask.png"),
        ("test/ko/000.bmp", "ground_truth/ko/000.png"),
        ("crack/x.png", "masks/crack/x.png"),
    ],
)
def test_masks_are_found_by_the_names_of_public_sets(picture: str, mask: str) -> None:
    """Each layout the field uses: the mask belongs to the picture, and has no class folder of its own."""
    assert paired(picture, mask) == {picture: [(mask, "")]}


def test_same_names_in_two_splits_are_kept_apart() -> None:
    """`train` goes with `train`; a mask tree without splits belongs to `test`, as MVTec has it."""
    assert paired("train/images/a.png", "val/images/a.png", "val/masks/a.png", "train/masks/a.png") == {
        "train/images/a.png": [("train/masks/a.png", "")],
        "val/images/a.png": [("val/masks/a.png", "")],
    }
    assert paired("train/dent/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png") == {
        "train/dent/0.png": [],
        "test/dent/0.png": [("ground_truth/dent/0_mask.png", "")],
    }


def test_a_folder_that_only_masks_have_is_their_class() -> None:
    """One picture may have a mask in each of several."""
    assert paired("images/a.png", "masks/scratch/a.png", "masks/dent/a.png", "masks/dent/b.png") == {
        "images/a.png": [("masks/scratch/a.png", "scratch"), ("masks/dent/a.png", "dent")],
        "": [("masks/dent/b.png", "")],
    }


def test_a_class_called_like_a_mask_word_is_still_a_class() -> None:
    """`label_missing/` is a defect of bottles, not a folder of masks."""
    assert paired("label_missing/a.png", "ok/b.png") == {"label_missing/a.png": [], "ok/b.png": []}
    assert pair(["x/a.jpg", "x/a.png"]).masks == {"x/a.jpg": [MaskOf("x/a.png", "", True)]}


def image_mask(folder: Path, **masks: np.ndarray) -> Path:
    """`images/a.png` and `masks/a.png` for each mask."""
    for name, mask in masks.items():
        save(folder / "images" / f"{name}.png", grey(90, *mask.shape[:2]))
        save(folder / "masks" / f"{name}.png", mask)
    return folder


def labels_of(folder: Path, options: Options | None = None) -> dict[str, Pixels]:
    """Labels by stem of the picture."""
    dataset = open_dataset(folder, options)
    assert dataset.form == "image-mask"
    return {Path(path).stem: picture.labels for path, picture in pictures_of(dataset).items()}


@pytest.mark.parametrize("bright", [1, 2, 38, 128, 255])
def test_two_values_are_good_and_defect(bright: int, tmp_path: Path) -> None:
    """0/1 and 0/255 masks mean the same; also where one mask of the set is empty."""
    folder = image_mask(tmp_path, a=square(2, 3, value=bright), b=square(2, 3, value=0))
    assert open_dataset(folder).classes == ("good", "defect")
    labels = labels_of(folder)
    assert np.array_equal(labels["a"], square(2, 3, value=1))
    assert not labels["b"].any()


def test_a_set_of_empty_masks_is_all_good(tmp_path: Path) -> None:
    """Nothing marked anywhere is no reason to fail."""
    assert not labels_of(image_mask(tmp_path, a=square(2, 3, value=0)))["a"].any()


def test_fuzz_of_compression_and_smoothing_is_no_class(tmp_path: Path) -> None:
    """JPEG masks and blurred edges are cut at half the brightest value of the set."""
    clean = square(6, 8, 8, 255, (40, 40))
    image_mask(tmp_path / "jpeg", a=clean)
    (tmp_path / "jpeg/masks/a.png").unlink()
    assert cv2.imwrite(str(tmp_path / "jpeg/masks/a.jpg"), clean, [cv2.IMWRITE_JPEG_QUALITY, 60])
    assert np.array_equal(labels_of(tmp_path / "jpeg")["a"], clean // 255)
    soft = cv2.blur(clean, (3, 3))
    assert 2 < np.unique(soft).size < 12
    assert np.array_equal(labels_of(image_mask(tmp_path / "soft", a=soft))["a"], soft > 127)


def test_a_few_values_are_classes_in_ascending_order(tmp_path: Path) -> None:
    """1, 2, 3 as well as 85, 170, 255; names come from the options where they are given."""
    indexes = mask_of("0123", "0003", "0120")
    names = ("ok", "a", "b", "c")
    for factor in (1, 85):
        folder = image_mask(tmp_path / str(factor), x=np.kron(indexes * factor, np.ones((4, 4), np.uint8)))
        assert open_dataset(folder).classes == ("good", "class 1", "class 2", "class 3")
        assert np.array_equal(labels_of(folder)["x"][::4, ::4], indexes)
        assert open_dataset(folder, Options(classes=names)).classes == names
        assert np.array_equal(labels_of(folder, Options(classes=names))["x"][::4, ::4], indexes)
    with pytest.raises(DatasetError, match="3 values beside the background"):
        open_dataset(folder, Options(classes=("ok", "a", "b")))


def test_classes_txt_makes_values_indexes(tmp_path: Path) -> None:
    """Index 2 is the third name although nothing has index 1; 255 is not known; an index too many is told."""
    folder = image_mask(tmp_path, a=mask_of("0022"), b=np.array([[0, 2, 255]], np.uint8), c=mask_of("0007"))
    write(folder / "classes.txt", "\ufeffnormal\r\nvoid\r\npin hole\r\n")
    dataset = open_dataset(folder)
    assert dataset.classes == ("normal", "void", "pin hole")
    pictures, skipped = read_pictures(dataset, dataset.samples)
    assert [picture.labels.tolist() for picture in pictures] == [[[0, 0, 2, 2]], [[0, 2, IGNORED]]]
    assert [picture.class_index for picture in pictures] == [2, 2]
    assert reasons(skipped) == {
        "images/c.png": "mask holds value 7, but classes have only value 0, value 1, value 2, value 255"
    }


def test_two_names_and_black_and_white_masks(tmp_path: Path) -> None:
    """`good`, `scratch` with 0/255 masks: 255 is the scratch, not a value without a class and not ignored."""
    folder = image_mask(tmp_path, a=square(2, 3))
    write(folder / "classes.txt", "good\nscratch\n")
    assert np.array_equal(labels_of(folder)["a"], square(2, 3, value=1))


def test_colours_are_classes(tmp_path: Path) -> None:
    """Black is the background, the others are classes in the order of their RGB code."""
    mask = np.zeros((4, 6, 3), np.uint8)
    mask[:2, :2] = 0, 0, 255  # red, as OpenCV has it
    mask[2:, 2:4] = 0, 255, 0
    folder = image_mask(tmp_path, a=mask, b=np.zeros((4, 6), np.uint8))
    assert open_dataset(folder).classes == ("good", "class 1", "class 2")
    assert labels_of(folder)["a"].tolist() == [[2, 2, 0, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 0, 0]] * 2
    assert not labels_of(folder)["b"].any()


def palette_png(indexes: np.ndarray, palette: list[tuple[int, int, int]], bits: int) -> bytes:
    """An indexed PNG, packed by hand as the specification says."""
    rows = [b"\0" + bytes(np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel())) for row in indexes]
    header = struct.pack(">IIBBBBB", indexes.shape[1], indexes.shape[0], bits, 3, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", bytes(sum(palette, ()))), (b"IDAT", zlib.compress(b"".join(rows)))]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_images_are_read_by_index(bits: int, tmp_path: Path) -> None:
    """VOC's palette masks: the index counts, whatever its colour, also with 2 or 4 bits a pixel."""
    indexes = mask_of("0123", "3210")
    image_mask(tmp_path, a=indexes)
    colours = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
    write(tmp_path / "masks/a.png", palette_png(indexes, colours, bits))
    write(tmp_path / "classes.txt", "good\na\nb\nc\n")
    assert np.array_equal(labels_of(tmp_path)["a"], indexes)
    greys = [(0, 0, 0), (255, 255, 255), (0, 0, 0), (0, 0, 0)]
    write(tmp_path / "masks/a.png", palette_png(indexes % 2, greys, bits))
    (tmp_path / "classes.txt").unlink()
    assert np.array_equal(labels_of(tmp_path)["a"], indexes % 2)


def test_class_folders_of_masks(tmp_path: Path) -> None:
    """A sub-folder of masks is a class; where masks of a picture overlap the later name wins."""
    save(tmp_path / "images/a.png", grey(90, 20, 30))
    save(tmp_path / "masks/scratch/a.png", square(2, 3))
    save(tmp_path / "masks/dent/a.png", square(4, 5))
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("good", "dent", "scratch")
    expected = square(4, 5, value=1)
    expected[2:6, 3:7] = 2
    assert np.array_equal(pictures_of(dataset)["images/a.png"].labels, expected)


def test_a_picture_without_a_mask_is_told_unless_a_folder_calls_it_good(tmp_path: Path) -> None:
    """Never taken for good by silence."""
    image_mask(tmp_path, a=square(2, 3))
    save(tmp_path / "images/b.png", grey(90))
    save(tmp_path / "NODefect_images/c.png", grey(90))
    dataset = open_dataset(tmp_path)
    assert "has no mask" in reasons(dataset.problems)["images/b.png"]
    assert {path: picture.class_index for path, picture in pictures_of(dataset).items()} == {
        "images/a.png": 1,
        "NODefect_images/c.png": 0,
    }


def test_masks_beside_their_pictures_make_folders_groups(tmp_path: Path) -> None:
    """KolektorSDD: eight pictures of one commutator lie in a folder; a split is no such folder."""
    for folder in ("kos01", "kos02", "train"):
        for name in ("Part0", "Part1"):
            save(tmp_path / folder / f"{name}.jpg", grey(90, 20, 30))
            save(tmp_path / folder / f"{name}_label.bmp", square(2, 3))
    dataset = open_dataset(tmp_path)
    assert dataset.form == "image-mask"
    groups = {sample.image: sample.group for sample in dataset.samples}
    assert groups["kos01/Part0.jpg"] == groups["kos01/Part1.jpg"] == "kos01"
    assert groups["train/Part0.jpg"] == "train/Part0.jpg"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (square(2, 3, shape=(21, 30)), "mask is 30×21 px, picture 30×20 px"),
        (None, "mask a.png cannot be decoded"),
    ],
)
def test_masks_that_cannot_be_used_are_told(mask: np.ndarray | None, reason: str, tmp_path: Path) -> None:
    """Another size, or no image at all: the picture is left out with the reason."""
    image_mask(tmp_path, a=square(2, 3))
    write(tmp_path / "masks/a.png", b"nothing") if mask is None else save(tmp_path / "masks/a.png", mask)
    assert why_unreadable(open_dataset(tmp_path)) == reason


# Class folders.


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Two good tiles and a cracked one of two exposures, in the form of the magnetic tiles."""
    for name in ("free-a", "free-b"):
        save(tmp_path / "MT_Free" / f"{name}.jpg", grey(90))
        save(tmp_path / "MT_Free" / f"{name}.png", grey(0))
    mask = grey(0)
    mask[5:9, 3:20] = 200
    mask[20:22, 3:20] = 127  # at the threshold, not above: no defect
    for name in ("crack-1", "crack-2"):
        save(tmp_path / "MT_Crack" / f"{name}.jpg", grey(60))
        save(tmp_path / "MT_Crack" / f"{name}.png", mask)
    rows = ["image,class,group,time", "MT_Free/free-a.jpg,free,f0,1", "MT_Free/free-b.jpg,free,f1,2"]
    rows += [f"MT_Crack/crack-{n}.jpg,crack,c0,3" for n in (1, 2)]
    write(tmp_path / "groups.csv", "\r\n".join(rows))
    return tmp_path


def test_groups_csv_gives_class_group_and_time(tiles: Path) -> None:
    """The good class comes first; a mask pixel above 127 has the class of its picture."""
    dataset = open_dataset(tiles)
    assert (dataset.form, dataset.classes) == ("class-folders", ("free", "crack"))
    pictures = pictures_of(dataset)
    assert [picture.class_index for picture in pictures.values()] == [1, 1, 0, 0]
    assert pictures["MT_Crack/crack-1.jpg"].labels.sum() == 4 * 17
    assert [(sample.group, sample.time) for sample in dataset.samples] == [("c0", "3")] * 2 + [("f0", "1"), ("f1", "2")]


def test_rows_and_pictures_that_do_not_meet_are_told(tiles: Path) -> None:
    """A picture that groups.csv forgets, and a row whose picture is gone."""
    save(tiles / "MT_Free" / "new.jpg", grey(90))
    (tiles / "MT_Free" / "free-b.jpg").unlink()
    (tiles / "MT_Free" / "free-b.png").unlink()
    assert reasons(open_dataset(tiles).problems) == {
        "MT_Free/new.jpg": "has no class in groups.csv",
        "MT_Free/free-b.jpg": "MT_Free/free-b.jpg is missing (named in groups.csv)",
    }


def test_without_groups_the_folder_is_the_class(tiles: Path) -> None:
    """Each picture is a group of its own, and masks are not taken for pictures."""
    (tiles / "groups.csv").unlink()
    dataset = open_dataset(tiles)
    assert dataset.classes == ("MT_Free", "MT_Crack")
    assert [sample.group for sample in dataset.samples] == [sample.image for sample in dataset.samples]
    assert len(dataset.samples) == 4


def test_a_picture_without_a_mask_has_its_class_and_no_more(tiles: Path) -> None:
    """Background all over where it is good; not known all over where it is not."""
    (tiles / "MT_Free" / "free-a.png").unlink()
    (tiles / "MT_Crack" / "crack-1.png").unlink()
    pictures = pictures_of(open_dataset(tiles))
    assert not pictures["MT_Free/free-a.jpg"].labels.any()
    assert (pictures["MT_Crack/crack-1.jpg"].labels == IGNORED).all()
    assert pictures["MT_Crack/crack-1.jpg"].unmarked


def test_dark_masks_are_cut_at_half_their_brightest(tmp_path: Path) -> None:
    """0/1 masks in class folders are no empty ones."""
    for kind, value in (("good", 0), ("dent", 1)):
        save(tmp_path / kind / "a.png", grey(90, 20, 30))
        save(tmp_path / "masks" / kind / "a.png", square(2, 3, value=value))
    assert pictures_of(open_dataset(tmp_path))["dent/a.png"].labels.sum() == 16


def test_the_layout_of_mvtec(tmp_path: Path) -> None:
    """`train/good`, `test/<class>` and `ground_truth/<class>/x_mask.png`, one folder deeper than named or not."""
    for path in ("train/good/000.png", "test/good/000.png", "test/crack/000.png", "test/dent/000.png"):
        save(tmp_path / "capsule" / path, grey(90, 20, 30))
    save(tmp_path / "capsule/ground_truth/crack/000_mask.png", square(2, 3))
    for folder in (tmp_path, tmp_path / "capsule"):
        dataset = open_dataset(folder)
        assert (dataset.form, dataset.classes, dataset.problems) == ("class-folders", ("good", "crack", "dent"), ())
        found = {Path(path).parent.name: picture for path, picture in pictures_of(dataset).items()}
        assert np.array_equal(found["crack"].labels, square(2, 3, value=1))
        assert found["dent"].unmarked
        assert found["good"].class_index == 0
        assert len(dataset.samples) == 4


def test_products_side_by_side_share_their_classes(tmp_path: Path) -> None:
    """The folder that calls some pictures good is the one that tells the class, not the product above it."""
    for path in (
        "bottle/test/good/0.png",
        "bottle/test/broken/0.png",
        "cable/test/good/0.png",
        "cable/test/bent/0.png",
    ):
        save(tmp_path / path, grey(90))
    assert open_dataset(tmp_path).classes == ("good", "bent", "broken")


def test_a_single_folder_of_pairs_is_no_class(tmp_path: Path) -> None:
    """`crops/1.jpg` with `crops/1.png`: pictures and masks, for there is nothing else to tell apart."""
    for name in "12":
        save(tmp_path / "crops" / f"{name}.jpg", grey(90, 20, 30))
        save(tmp_path / "crops" / f"{name}.png", square(2, 3))
    assert np.array_equal(labels_of(tmp_path)["1"], square(2, 3, value=1))
    assert len({sample.group for sample in open_dataset(tmp_path).samples}) == 2


def test_nothing_good_is_an_error_that_lists_names(tmp_path: Path) -> None:
    """The engineer reads the classes and the option to name one with."""
    for kind in ("alpha", "beta"):
        save(tmp_path / kind / "a.png", grey(90))
    with pytest.raises(DatasetError, match=r"--good: alpha, beta"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"no class 'gamma'.*alpha, beta"):
        open_dataset(tmp_path, Options(good="gamma"))
    assert open_dataset(tmp_path, Options(good="beta")).classes == ("beta", "alpha")


def test_images_and_masks_by_class_are_class_folders(tmp_path: Path) -> None:
    """`images/good`, `images/bad` with `masks/bad`: the folder is the class, and good pictures need no mask."""
    save(tmp_path / "images/good/a.png", grey(90, 20, 30))
    save(tmp_path / "images/bad/b.png", grey(90, 20, 30))
    save(tmp_path / "masks/bad/b.png", square(2, 3))
    assert not load_form("image-mask").fits(tmp_path)
    pictures = pictures_of(open_dataset(tmp_path))
    assert [picture.class_index for picture in pictures.values()] == [1, 0]
