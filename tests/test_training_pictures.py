"""Pictures for training: read, split without cutting a tile group, cut into tiles, varied."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from training_pictures import MODELS, REPOSITORY, grey, save

from engines.training.augment import Variation, draw_tile, pasted, relit
from engines.training.dataset import Dataset, DatasetError, Picture, Sample, open_dataset, read_pictures
from engines.training.split import make_split, read_same_tile, read_split, write_split
from engines.training.tiles import (
    AMBIGUOUS,
    IGNORED,
    Tile,
    TileShape,
    cover,
    cut,
    cut_labels,
    positions,
    scaled,
    tile_class,
)

DATA = Path(os.environ.get("AOI_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Two good tiles and a cracked one of two exposures, in the form of the magnetic tiles."""
    for name in ("free-a", "free-b"):
        save(tmp_path / "MT_Free" / f"{name}.jpg", grey(90))
        save(tmp_path / "MT_Free" / f"{name}.png", grey(0))
    mask = grey(0)
    mask[5:9, 3:20] = 200
    mask[20:22, 3:20] = 100  # below the threshold: no defect
    for name in ("crack-1", "crack-2"):
        save(tmp_path / "MT_Crack" / f"{name}.jpg", grey(60))
        save(tmp_path / "MT_Crack" / f"{name}.png", mask)
    rows = ["image,class,group", "MT_Free/free-a.jpg,free,f0", "MT_Free/free-b.jpg,free,f1"]
    rows += [f"MT_Crack/crack-{n}.jpg,crack,c0" for n in (1, 2)]
    (tmp_path / "groups.csv").write_text("\n".join(rows))
    return tmp_path


def picture(labels: np.ndarray, pixels: np.ndarray | None = None, class_index: int = 1) -> Picture:
    sample = Sample("a.png", "b.png", "g", class_index)
    return Picture(sample, labels if pixels is None else pixels, labels, class_index)


def many_groups(count: int, exposures: int = 3) -> Dataset:
    """`count` tiles of each of two classes, each at several exposures."""
    samples = [
        Sample(f"{name}/{tile}-{exposure}.jpg", "", f"{name}-{tile}", index)
        for index, name in enumerate(("good", "bad"))
        for tile in range(count)
        for exposure in range(exposures)
    ]
    return Dataset(Path(), ("good", "bad"), tuple(samples))


def test_class_folders_give_the_good_class_first_and_binary_masks(class_folder: Path) -> None:
    """Classes come from groups.csv, good first; a mask pixel above 127 has the class of its folder."""
    dataset = open_dataset(class_folder, "free")
    assert dataset.classes == ("free", "crack")
    pictures, skipped = read_pictures(dataset, dataset.samples)
    assert [picture.class_index for picture in pictures] == [1, 1, 0, 0]
    assert skipped == []
    assert np.unique(pictures[0].labels).tolist() == [0, 1]
    assert pictures[0].labels.sum() == 4 * 17


def test_without_groups_each_picture_is_its_own_tile(class_folder: Path) -> None:
    """Where groups.csv is missing, the class is the folder's name; masks are not taken for pictures."""
    (class_folder / "groups.csv").unlink()
    dataset = open_dataset(class_folder, "MT_Free")
    assert dataset.classes == ("MT_Free", "MT_Crack")
    assert len({sample.group for sample in dataset.samples}) == len(dataset.samples) == 4


def test_indexed_folder_takes_the_class_from_the_mask(indexed_folder: Path) -> None:
    """In the image/label form a picture's class is the defect that covers most of its mask."""
    dataset = open_dataset(indexed_folder)
    pictures, _ = read_pictures(dataset, dataset.samples)
    assert dataset.classes == ("normal", "void", "particle")
    assert [picture.class_index for picture in pictures] == [0, 2] * 6


def test_unreadable_pictures_are_listed_with_their_reason(indexed_folder: Path) -> None:
    """A missing mask, a broken file, a wrong size and an unknown class leave one picture out each."""
    (indexed_folder / "label" / "000000.png").unlink()
    (indexed_folder / "image" / "000001.png").write_bytes(b"not a picture")
    save(indexed_folder / "label" / "000002.png", grey(0, 8, 8))
    save(indexed_folder / "label" / "000003.png", grey(9, 64, 64))
    dataset = open_dataset(indexed_folder)
    pictures, skipped = read_pictures(dataset, dataset.samples)
    reasons = dict(skipped)
    assert len(pictures) == 8
    assert "is missing" in reasons["image/000000.png"]
    assert "cannot be decoded" in reasons["image/000001.png"]
    assert "8×8 px, picture 64×64" in reasons["image/000002.png"]
    assert "class index 9" in reasons["image/000003.png"]


def test_a_folder_that_cannot_be_used_says_what_to_do(class_folder: Path, tmp_path: Path) -> None:
    """No such folder, no such good class: one line that names the option to correct."""
    with pytest.raises(DatasetError, match="--data"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"--good: crack, free"):
        open_dataset(class_folder, "perfect")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_split_never_cuts_a_tile(seed: int) -> None:
    """All exposures of a tile are on one side, every picture is on exactly one, both classes on each."""
    dataset = many_groups(20)
    split = make_split(dataset, seed, 0.2, 0.15)
    sides = [split.training, split.validation, split.held_out]
    groups = [{path.rsplit("-", 1)[0] for path in side} for side in sides]
    assert sorted(path for side in sides for path in side) == sorted(s.image for s in dataset.samples)
    assert not groups[0] & groups[1]
    assert not groups[2] & (groups[0] | groups[1])
    assert [len([group for group in side if group.startswith("bad")]) for side in groups] == [13, 3, 4]


def test_a_split_follows_from_its_seed() -> None:
    """The same seed gives the same split, another seed another one."""
    dataset = many_groups(20)
    first = make_split(dataset, 1, 0.2, 0.15)
    assert make_split(dataset, 1, 0.2, 0.15) == first
    assert make_split(dataset, 2, 0.2, 0.15) != first


def test_groups_that_show_one_tile_stay_together() -> None:
    """Joined groups move as one; where they disagree on good, the good pictures are left out."""
    dataset = many_groups(10)
    for seed in range(8):
        split = make_split(dataset, seed, 0.3, 0.2, [["bad-0", "bad-1"], ["good-2", "bad-2"]])
        sides = [split.training, split.validation, split.held_out]
        assert sum(any(path.startswith(("bad/0-", "bad/1-")) for path in side) for side in sides) == 1
        assert split.left_out == ("good/2-0.jpg", "good/2-1.jpg", "good/2-2.jpg")
        assert {"bad/2-0.jpg", "bad/2-1.jpg", "bad/2-2.jpg"} <= set(split.training)


def test_same_tile_must_name_known_groups() -> None:
    """A slip in same-tile.txt is not silently ignored."""
    with pytest.raises(DatasetError, match="bad-77"):
        make_split(many_groups(4), 1, 0.2, 0.2, [["bad-0", "bad-77"]])


def test_a_written_split_reads_back(tmp_path: Path) -> None:
    """What `split` writes is what training reads; a list of another data set is refused."""
    dataset = many_groups(10)
    split = make_split(dataset, 1, 0.2, 0.2)
    write_split(split, tmp_path)
    again = read_split(dataset, tmp_path)
    assert (set(again.training), again.validation) == (set(split.training), split.validation)
    assert again.held_out == split.held_out
    with pytest.raises(DatasetError, match="does not have"):
        read_split(many_groups(3), tmp_path)


def test_the_shipped_split_is_clean() -> None:
    """In the shipped lists of the magnetic tiles no physical tile is on two sides, none is scored twice."""
    folder = DATA / "magnetic-tile"
    if not folder.is_dir():
        pytest.skip(f"real pictures are not here: {folder}; set AOI_DATA")
    dataset = open_dataset(folder, "free")
    lists = MODELS / "magnetic-tile"
    split = read_split(dataset, lists)
    joined = {name: names[0] for names in read_same_tile(lists) for name in names}
    tile_of = {sample.image: joined.get(sample.group, sample.group) for sample in dataset.samples}
    training, validation, held_out = (
        {tile_of[path] for path in side} for side in (split.training, split.validation, split.held_out)
    )
    assert not held_out & (training | validation)
    assert not training & validation
    assert held_out
    assert set(split.held_out).isdisjoint(split.left_out)


def test_tiles_cover_a_picture_with_the_overlap_asked_for() -> None:
    """Every pixel is on a tile, neighbours share at least the overlap, a small picture needs one tile."""
    for length in (10, 64, 65, 100, 112, 113, 500):
        starts = positions(length, 64, 16)
        assert starts[0] == 0
        assert starts[-1] + 64 == max(length, 64)
        assert all(a < b <= a + 48 for a, b in pairwise(starts))
    assert cover(grey(0, 30, 100), TileShape(64, 16)) == [(0, 0), (0, 36)]


def test_beyond_the_picture_the_border_is_repeated_and_ignored() -> None:
    """Pixels beyond the right and bottom repeat the border; their labels never count."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tile = cut(pixels, 0, 0, 6)
    assert tile[1].tolist() == [4, 5, 6, 7, 7, 7]
    assert tile[5].tolist() == [8, 9, 10, 11, 11, 11]
    labels = cut_labels(grey(1, 3, 4), 0, 0, 6)
    assert (labels == IGNORED).sum() == 36 - 12


def test_a_sliver_leaves_the_class_of_a_tile_open() -> None:
    """Few defect pixels are ambiguous, none are good, many are the class that has most."""
    labels = grey(0, 16, 16)
    assert tile_class(labels, 6) == 0
    labels[0, :5] = 1
    assert tile_class(labels, 6) == AMBIGUOUS
    labels[1, :9] = 2
    assert tile_class(labels, 6) == 2
    labels[2:] = IGNORED
    assert tile_class(labels, 6) == 2


def test_scaling_keeps_class_indexes() -> None:
    """Labels are never averaged into another class."""
    labels = grey(0, 40, 40)
    labels[:, 15:] = 4
    small = scaled(picture(labels), 0.5)
    assert small.labels.shape == (20, 20)
    assert set(np.unique(small.labels)) == {0, 4}


def test_pixels_and_labels_are_varied_together() -> None:
    """After flips, turns, zoom and tilt a defect is still where its label is."""
    labels = grey(0, 80, 90)
    labels[20:40, 30:60] = 1
    bright = np.where(labels > 0, 200, 50).astype(np.uint8)
    rng = np.random.default_rng(0)
    variation = Variation(turns=True, zoom=0.2, tilt=8, light=0)
    for _ in range(30):
        tile = draw_tile(picture(labels, bright), TileShape(64), variation, rng)
        known = tile.labels != IGNORED
        assert ((tile.pixels > 125) == (tile.labels == 1))[known].mean() > 0.97


def test_light_changes_grey_values_only() -> None:
    """Another exposure moves the mean, keeps shape and type, and is off at 0."""
    pixels, rng = grey(100, 64, 64), np.random.default_rng(0)
    assert relit(pixels, 0, rng) is pixels
    means = [relit(pixels, 1, rng).mean() for _ in range(20)]
    assert min(means) < 80 < 120 < max(means)


def test_a_pasted_defect_matches_the_light_of_its_new_tile() -> None:
    """A defect half as bright as its surroundings is so on the new tile too; only its pixels change class."""
    labels = grey(0, 64, 64)
    labels[20:30, 20:30] = 3
    donor = Tile(np.where(labels > 0, 50, 100).astype(np.uint8), labels, 3)
    good = Tile(grey(200, 64, 64), grey(0, 64, 64), 0)
    tile = pasted(good, donor, 12)
    assert tile.class_index == 3
    assert np.array_equal(tile.labels, labels)
    assert tile.pixels[25, 25] == pytest.approx(100, abs=3)
    assert tile.pixels[50, 50] == 200


def test_a_defect_is_not_pasted_where_it_cannot_be() -> None:
    """A defect that fills the tile, or would lie beyond the picture, leaves the good tile as it is."""
    good = Tile(grey(200, 64, 64), grey(0, 64, 64), 0)
    assert pasted(good, Tile(grey(90, 64, 64), grey(1, 64, 64), 1), 12) is good
    narrow = Tile(grey(200, 64, 64), grey(0, 64, 64), 0)
    narrow.labels[:, 25:] = IGNORED
    labels = grey(0, 64, 64)
    labels[20:30, 20:30] = 3
    assert pasted(narrow, Tile(grey(90, 64, 64), labels, 3), 12) is narrow
