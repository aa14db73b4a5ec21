"""Faint defects: pictures by number, alike the published ones but for the leak, and curves against contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dataset_files import shared

from engines.datasets.contrast_curve import ContrastCurve, contrast_curve
from engines.datasets.labelled import DatasetError
from engines.datasets.low_contrast import CLASSES, SHAPES, FaintPicture, LowContrast, as_published, write_folder
from engines.datasets.low_contrast_rules import box_threshold, leaked, pooled_dice
from pipeline.cli import aoi
from pipeline.errors import DiskError, SourceError


@pytest.fixture(scope="module")
def published() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and masks of the published set."""
    folder = shared("low-contrast")
    return [(cv2.imread(str(p), 0), cv2.imread(str(folder / "label" / p.name), 0) > 0) for p in folder.glob("*.png")]


@pytest.fixture(scope="module")
def ours() -> list[FaintPicture]:
    generator = as_published(seed=5)
    return [generator.picture(number) for number in range(40)]


def test_number_decides_the_picture() -> None:
    """The same seed and number give the same bytes in any order; another seed or number gives others."""
    first, again = LowContrast(seed=3, size=(64, 80), side=(8, 30)), LowContrast(seed=3, size=(64, 80), side=(8, 30))
    again.picture(0)
    one, same = first.picture(7), again.picture(7)
    assert one.pixels.shape == (64, 80)
    assert one.pixels.dtype == one.labels.dtype == np.uint8
    assert np.array_equal(one.pixels, same.pixels)
    assert np.array_equal(one.numbers, same.numbers)
    assert not np.array_equal(one.pixels, first.picture(8).pixels)
    assert not np.array_equal(one.pixels, replace(first, seed=4).picture(7).pixels)


def test_pictures_that_differ_only_in_contrast_are_twins() -> None:
    """Shapes and noise stay; inside the defects the picture is lighter by the difference, outside it is the same."""
    faint, clear = (LowContrast(contrast=(levels, levels)).picture(2) for levels in (3.0, 8.0))
    assert np.array_equal(faint.numbers, clear.numbers)
    added = clear.pixels.astype(int) - faint.pixels
    assert (added[faint.labels == 0] == 0).all()
    assert (added[faint.labels == 1] == 5).all()


def test_ours_look_like_the_published_ones(ours: list[FaintPicture], published: list[Any]) -> None:
    """Background, noise, contrast and share of defects are those of the published set; the noise is not uniform."""
    looks = []
    for pictures in ([(each.pixels, each.labels > 0) for each in ours], published):
        outside = np.concatenate([pixels[~true] for pixels, true in pictures]).astype(float)
        inside = np.concatenate([pixels[true] for pixels, true in pictures]).astype(float)
        share = inside.size / (inside.size + outside.size)
        looks.append((outside.mean(), outside.std(), inside.mean() - outside.mean(), 100 * share))
    assert looks[0] == pytest.approx(looks[1], abs=0.6)
    assert looks[0][:3] == pytest.approx((112.0, 7.0, 3.0), abs=0.1)
    assert ours[0].pixels.max() > 127
    assert max(int(pixels.max()) for pixels, _ in published) == 127


def test_box_filter_reaches_what_it_should(ours: list[FaintPicture], published: list[Any]) -> None:
    """17 × 17 with a threshold: Dice 0.877 on the published pictures, as much on ours: they are as hard."""
    there = pooled_dice((box_threshold(pixels), true) for pixels, true in published)
    here = pooled_dice((box_threshold(each.pixels), each.labels > 0) for each in ours)
    assert there == pytest.approx(0.877, abs=0.003)
    assert here == pytest.approx(there, abs=0.03)


def test_leak_of_the_published_pictures_is_not_in_ours(ours: list[FaintPicture], published: list[Any]) -> None:
    """Grey values that only background has give Dice 0.945 there, and 0.2 here, far below the honest filter."""
    assert pooled_dice((leaked(pixels), true) for pixels, true in published) == pytest.approx(0.945, abs=0.003)
    assert pooled_dice((leaked(each.pixels), each.labels > 0) for each in ours) < 0.25


def test_dice_by_hand() -> None:
    """Two of three found and one false: 2·2 ÷ (3 + 3); nothing anywhere is right."""
    true, found = np.array([[1, 1, 1, 0]], bool), np.array([[1, 1, 0, 1]], bool)
    assert pooled_dice([(found, true)]) == pytest.approx(4 / 6)
    assert pooled_dice([(found & ~found, true & ~true)]) == 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_stays_within_its_size(shape: str) -> None:
    """One defect of 10 to 20 px lies inside a box of that size (a line reaches over its ends by half its thickness)."""
    generator = LowContrast(shapes=(shape,), count=(1, 1), side=(10, 20), thickness=(3, 3))
    for number in range(20):
        picture = generator.picture(number)
        _, _, width, height = cv2.boundingRect(picture.labels)
        assert max(width, height) <= 20 + (4 if shape == "line" else 0)
        assert picture.labels.any()
        assert picture.numbers.max() == len(picture.contrast_to_noise) == 1


def test_contrast_to_noise_is_what_the_defect_adds() -> None:
    """3.5 grey levels over σ 7 are 0.5, dark or bright; a lens that blurs takes some of it."""
    dark = LowContrast(contrast=(-3.5, -3.5)).picture(1)
    assert dark.contrast_to_noise == pytest.approx([0.5] * len(dark.contrast_to_noise))
    blurred = LowContrast(contrast=(3.5, 3.5), blur=2.0).picture(1)
    assert np.array_equal(blurred.numbers, dark.numbers)
    assert all(0.1 < ratio < 0.5 for ratio in blurred.contrast_to_noise)


def test_defect_that_is_wholly_covered_counts_no_more() -> None:
    """Numbers are 1, 2, … without a gap, each with pixels and a ratio of its own."""
    generator = LowContrast(size=(16, 16), side=(6, 16), count=(8, 8), thickness=(3, 3), contrast=(1, 9))
    counts = []
    for number in range(30):
        picture = generator.picture(number)
        counts.append(len(picture.contrast_to_noise))
        left = set(np.unique(picture.numbers)) - {0}
        assert left == set(range(1, counts[-1] + 1))
    assert min(counts) < 8


def test_count_shading_and_noise_are_as_set() -> None:
    """No defect where none is wanted; hills of at most the shading; σ as stated."""
    plain = LowContrast(count=(0, 0), noise_sigma=4.0, background=80.0).picture(0)
    assert not plain.labels.any()
    assert plain.contrast_to_noise == ()
    assert (plain.pixels.mean(), plain.pixels.std()) == (pytest.approx(80, abs=0.1), pytest.approx(4.01, abs=0.05))
    shaded = cv2.blur(LowContrast(count=(0, 0), shading=40.0).picture(0).pixels, (17, 17))
    assert 15 < int(shaded.max()) - int(shaded.min()) < 50


def test_values_are_cut_where_a_byte_ends() -> None:
    """A background near black does not wrap round to white."""
    assert LowContrast(background=2.0, contrast=(3, 3)).picture(0).pixels.max() < 60


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"size": (4, 64)}, "size is"),
        ({"noise_sigma": 0.0}, "noise_sigma is 0.0"),
        ({"shapes": ("star",)}, "shapes are"),
        ({"shapes": ()}, "shapes are"),
        ({"count": (3, 2)}, "count is 3 to 2"),
        ({"side": (8, 300)}, "side is 8 to 300"),
        ({"contrast": (5.0, 3.0)}, "contrast is"),
        ({"background": 300.0}, "background is"),
        ({"shading": -1.0}, "shading is"),
        ({"blur": 99.0}, "blur is"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, Any], told: str) -> None:
    """With the value and what it may be."""
    with pytest.raises(DatasetError, match=told):
        LowContrast(**wrong)


def test_negative_number_is_refused() -> None:
    """Pictures are counted from 0."""
    with pytest.raises(DatasetError, match="counted from 0"):
        LowContrast().picture(-1)


def test_folder_holds_pictures_labels_and_names(tmp_path: Path) -> None:
    """What is read back is what was drawn; a second run does not mix into the first."""
    generator = LowContrast(size=(48, 64), side=(8, 20))
    write_folder(generator, tmp_path / "set", 3)
    for number in range(3):
        drawn = generator.picture(number)
        for kind, pixels in (("image", drawn.pixels), ("label", drawn.labels)):
            stored = cv2.imread(str(tmp_path / "set" / kind / f"{number:06d}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(stored, pixels)
    assert (tmp_path / "set" / "classes.txt").read_text().split() == list(CLASSES)
    with pytest.raises(DatasetError, match="not empty"):
        write_folder(generator, tmp_path / "set", 3)
    with pytest.raises(DatasetError, match="at least 1"):
        write_folder(generator, tmp_path / "other", 0)


def test_shapes_and_count_by_command(tmp_path: Path) -> None:
    """What the published set shows, with our noise; a shape nobody draws is told with those there are."""
    given = ["--kind", "low-contrast", "--frames", "2", "--seed", "4"]
    aoi.main(
        ["simulate", str(tmp_path / "set"), *given, "--shapes", "rectangle", "--count", "2", "2"], standalone_mode=False
    )
    for number in range(2):
        stored = cv2.imread(str(tmp_path / "set" / "label" / f"{number:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, as_published(seed=4).picture(number).labels)
    with pytest.raises(SourceError, match="star; there are rectangle, ellipse, line, blob"):
        aoi.main(["simulate", str(tmp_path / "other"), *given, "--shapes", "star"], standalone_mode=False)


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where the folder should be is a disk's error, of either kind of picture: one line, no traceback."""
    (tmp_path / "set").write_text("")
    for kind, what in (("low-contrast", "pictures"), ("panel", "panels")):
        with pytest.raises(DiskError, match=f"cannot write {what}"):
            aoi.main(["simulate", str(tmp_path / "set"), "--kind", kind, "--frames", "1"], standalone_mode=False)


NUMBERS = np.array([[1, 1, 0, 0, 0, 0, 0, 2, 2, 2]], np.uint8)
FOUND = np.array([[1, 0, 1, 0, 0, 1, 1, 1, 1, 0]], bool)


def test_curve_by_hand() -> None:
    """Each false pixel is charged to the nearest defect: 1 of 2 and 1 false, 2 of 3 and 2 false."""
    points, loose = contrast_curve([(FOUND, NUMBERS, [0.25, 0.75])], [0.0, 0.5, 1.0])
    assert [point.dice for point in points] == pytest.approx([2 / 4, 4 / 7])
    assert [point.pixel_recall for point in points] == pytest.approx([1 / 2, 2 / 3])
    assert [point.recall() for point in points] == [1.0, 1.0]
    assert [point.recall(0.6) for point in points] == [0.0, 1.0]
    assert loose == 0


def test_points_together_are_the_pooled_dice(ours: list[FaintPicture]) -> None:
    """No pixel counts twice and none is left out: one point over everything is Dice as always."""
    found = [box_threshold(each.pixels) for each in ours]
    (point,), _ = contrast_curve(
        [(mask, each.numbers, each.contrast_to_noise) for mask, each in zip(found, ours, strict=True)], [0.0, 1.0]
    )
    assert point.dice == pytest.approx(pooled_dice((m, e.labels > 0) for m, e in zip(found, ours, strict=True)))


def test_clearer_defects_are_found_better() -> None:
    """Along a curve from 1 to 7 grey levels the box filter's recall rises from next to nothing to nearly everything."""
    generator = LowContrast(contrast=(1.0, 7.0), seed=1)
    pictures = [generator.picture(number) for number in range(40)]
    points, _ = contrast_curve(
        [(box_threshold(each.pixels), each.numbers, each.contrast_to_noise) for each in pictures],
        [0.1, 0.2, 0.5, 1.01],
    )
    recalls = [point.recall() or 0.0 for point in points]
    assert recalls[0] < 0.3 < 0.5 < recalls[1] < recalls[2]
    assert recalls[2] > 0.85


def test_empty_bins_and_empty_pictures() -> None:
    """No defect in a bin: no figure for it; what is found where no defect is at all is told apart."""
    nothing = np.zeros_like(NUMBERS)
    points, loose = contrast_curve([(FOUND, NUMBERS, [0.9, 1.0]), (FOUND, nothing, [])], [0.0, 0.5, 1.0])
    assert (points[0].dice, points[0].recall(), points[0].pixel_recall) == (None, None, None)
    assert len(points[1].outcomes) == 2
    assert loose == 6


def test_curve_refuses_what_does_not_fit() -> None:
    """Edges that leave a defect out or do not grow, contrasts of another picture."""
    curve = ContrastCurve()
    with pytest.raises(DatasetError, match="not of one picture"):
        curve.add(FOUND, NUMBERS, [0.5])
    curve.add(FOUND, NUMBERS, [0.5, 2.0])
    with pytest.raises(DatasetError, match=r"0\.50 to 2\.00"):
        curve.points([0.0, 1.0])
    with pytest.raises(DatasetError, match="each above the last"):
        curve.points([0.0, 0.0, 3.0])
