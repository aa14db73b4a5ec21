"""What a network is shown: pictures scaled, cut and varied, with their labels and golden templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from training_pictures import grey, pictures_with_defects

from engines.datasets.labelled import IGNORED, Picture, Sample
from engines.training import geometry
from engines.training.augment import Variation, draw_tile, pasted, relit
from engines.training.geometry import choose_scale, choose_shape, small_defect
from engines.training.tiles import (
    AMBIGUOUS,
    Tile,
    TileShape,
    cut,
    cut_labels,
    planes_of,
    positions,
    scaled,
    tile_class,
    tiles_of,
)
from pipeline.preprocess import cut_tiles, plan_tiles

STILL = Variation(flips=False, zoom=0.0, stretch=0.0, tilt=0.0, light=0.0, blur=0.0)


def shape(side: int = 64, overlap: int = 16, sliver: int = 12) -> TileShape:
    return TileShape(side, side, overlap, 1.0, (side, side), sliver)


def picture(labels: np.ndarray, pixels: np.ndarray | None = None, reference: np.ndarray | None = None) -> Picture:
    sample = Sample("a.png", "b.png", "g", 1)
    return Picture(sample, labels if pixels is None else pixels, labels, 1, None, reference)


def tile(pixels: np.ndarray, labels: np.ndarray, class_index: int) -> Tile:
    return Tile(pixels.reshape(*labels.shape, -1), labels, class_index)


@pytest.mark.parametrize(("side", "overlap"), [(64, 16), (32, 32), (16, 32)])
def test_tiles_cover_a_picture_with_the_overlap_asked_for(side: int, overlap: int) -> None:
    """Every pixel is on a tile, neighbours share at least the overlap, or all they can; a small picture needs one."""
    for length in (10, 64, 65, 100, 112, 113, 150):
        starts = positions(length, side, overlap)
        assert starts[0] == 0
        assert starts[-1] + side == max(length, side)
        assert all(a < b <= a + side - min(overlap, side - 1) for a, b in pairwise(starts))


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (65, 200), (150, 64), (97, 131)])
def test_tiles_are_those_of_the_line(size: tuple[int, int]) -> None:
    """What teaches and validates is cut exactly as the worker cuts its frames."""
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    ours = [tile.pixels for tile in tiles_of(picture(grey(0, *size), pixels), shape())]
    lines = cut_tiles(pixels, plan_tiles(*size, 64, 64, 16))
    assert len(ours) == len(lines)
    assert all(np.array_equal(a, b) for a, b in zip(ours, lines, strict=True))


def test_beyond_the_picture_the_border_is_repeated_and_ignored() -> None:
    """Pixels beyond the right and bottom repeat the border; their labels never count."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    seen = cut(pixels, 0, 0, 6, 6)
    assert seen[1].tolist() == [4, 5, 6, 7, 7, 7]
    assert seen[5].tolist() == [8, 9, 10, 11, 11, 11]
    labels = cut_labels(grey(1, 3, 4), 0, 0, 6, 6)
    assert (labels == IGNORED).sum() == 36 - 12


def test_a_sliver_leaves_the_class_of_a_tile_open() -> None:
    """Few defect pixels are ambiguous, none are good, many are the class that has most."""
    labels = grey(0, 16, 16)
    assert tile_class(labels, 6, 1) == 0
    labels[0, :5] = 1
    assert tile_class(labels, 6, 1) == AMBIGUOUS
    labels[1, :9] = 2
    assert tile_class(labels, 6, 1) == 2
    labels[2:] = IGNORED
    assert tile_class(labels, 6, 1) == 2


def test_a_tile_that_nobody_marked_is_like_its_picture() -> None:
    """Only where nothing at all is known: a known good corner of a defective picture is good."""
    labels = grey(IGNORED, 16, 16)
    assert tile_class(labels, 6, 3) == 3
    assert tile_class(labels, 6, 0) == 0
    labels[0, 0] = 0
    assert tile_class(labels, 6, 3) == 0


def test_planes_are_grey_or_colour_or_picture_template_and_difference() -> None:
    """uint8 [h, w, C]; the difference is absolute."""
    assert planes_of(grey(7, 4, 5)).shape == (4, 5, 1)
    assert planes_of(np.dstack([grey(1), grey(2), grey(3)]))[0, 0].tolist() == [1, 2, 3]
    assert planes_of(grey(40), grey(90))[3, 3].tolist() == [40, 90, 50]


def test_scaling_keeps_class_indexes_and_brings_the_template_along() -> None:
    """Labels are never averaged into another class; areas of pixels and template are."""
    labels = grey(0, 40, 40)
    labels[:, 15:] = 4
    pixels = np.tile(np.array([[0, 100]], np.uint8), (40, 20))
    small = scaled(picture(labels, pixels, pixels + 50), 0.5)
    assert small.labels.shape == (20, 20)
    assert set(np.unique(small.labels)) == {0, 4}
    assert np.unique(small.pixels).tolist() == [50]
    assert small.reference is not None
    assert np.unique(small.reference).tolist() == [100]


@pytest.mark.parametrize("kind", ["grey", "colour", "template"])
def test_pixels_labels_and_template_are_varied_together(kind: str) -> None:
    """After flips, turns, zoom and tilt a defect is still where its label is, in every plane it was in."""
    labels = grey(0, 80, 90)
    labels[20:40, 30:60] = 1
    bright = np.where(labels > 0, 200, 50).astype(np.uint8)
    colour = np.dstack([bright, bright // 2, 255 - bright])
    shown = picture(labels, colour if kind == "colour" else bright, bright if kind == "template" else None)
    rng = np.random.default_rng(0)
    varied = Variation(turns=True, zoom=0.2, tilt=8, light=0)
    for _ in range(30):
        drawn = draw_tile(shown, shape(), varied, rng)
        assert drawn.pixels.shape == (64, 64, 1 if kind == "grey" else 3)
        known = drawn.labels != IGNORED
        assert ((drawn.pixels[..., 0] > 125) == (drawn.labels == 1))[known].mean() > 0.97
        if kind == "colour":
            assert np.abs(drawn.pixels[..., 0].astype(int) + drawn.pixels[..., 2] - 255).max() <= 2
        if kind == "template":
            assert np.array_equal(drawn.pixels[..., 0], drawn.pixels[..., 1])
            assert not drawn.pixels[..., 2].any()


def test_a_template_may_lie_wrong_by_the_shift_that_registration_leaves() -> None:
    """The template alone is moved; by at most so many px, and differently from draw to draw."""
    pixels = grey(50, 64, 64)
    pixels[24:40, 24:40] = 200
    shown, rng = picture(grey(0, 64, 64), pixels, pixels), np.random.default_rng(1)
    offsets = []
    for _ in range(20):
        planes = draw_tile(shown, shape(), replace(STILL, shift=2.0), rng).pixels.astype(float)
        middles = [np.average(np.arange(64), weights=(planes[..., plane] - 50).sum(0)) for plane in (0, 1)]
        offsets.append(middles[1] - middles[0])
    assert max(map(abs, offsets)) <= 2.05
    assert min(offsets) < -0.5 < 0.5 < max(offsets)


def test_a_small_defect_is_brought_into_view() -> None:
    """Most draws from a large defective picture show some of its defect, not one in thirty."""
    labels = grey(0, 400, 400)
    labels[300:310, 200:210] = 1
    rng = np.random.default_rng(0)
    seen = [draw_tile(picture(labels), shape(), STILL, rng).class_index for _ in range(100)]
    assert 70 <= sum(index == 1 for index in seen) <= 95


def test_light_changes_grey_values_only() -> None:
    """Another exposure moves the mean, keeps shape and type, and is off at 0."""
    for pixels in (grey(100, 64, 64), np.dstack([grey(100, 64, 64)] * 3)):
        rng = np.random.default_rng(0)
        assert relit(pixels, replace(STILL, blur=2.0), rng) is pixels
        varied = [relit(pixels, Variation(light=1), rng) for _ in range(20)]
        assert {(each.shape, each.dtype) for each in varied} == {(pixels.shape, pixels.dtype)}
        means = [each.mean() for each in varied]
        assert min(means) < 80 < 120 < max(means)


def marked_tile(value: int = 50, around: int = 100) -> Tile:
    """A tile of 64 × 64 px whose square of class 3 has another grey value than its surroundings."""
    labels = grey(0, 64, 64)
    labels[20:30, 20:30] = 3
    return tile(np.where(labels > 0, value, around).astype(np.uint8), labels, 3)


def test_a_pasted_defect_matches_the_light_of_its_new_tile() -> None:
    """A defect half as bright as its surroundings is so on the new tile too; only its pixels change class."""
    donor, good = marked_tile(), tile(grey(200, 64, 64), grey(0, 64, 64), 0)
    made = pasted(good, donor, 12)
    assert made.class_index == 3
    assert np.array_equal(made.labels, donor.labels)
    assert made.pixels.shape == (64, 64, 1)
    assert made.pixels[25, 25, 0] == pytest.approx(100, abs=3)
    assert made.pixels[50, 50, 0] == 200


def test_a_pasted_defect_keeps_the_difference_to_its_template() -> None:
    """Picture and template are both the donor's there; everywhere the third plane is what they differ by."""
    plain, donor = grey(100, 64, 64), marked_tile()
    of_donor = Tile(planes_of(donor.pixels[..., 0], plain), donor.labels, 3)
    good = Tile(planes_of(grey(200, 64, 64), grey(180, 64, 64)), grey(0, 64, 64), 0)
    made = pasted(good, of_donor, 12, template=True).pixels.astype(int)
    assert np.array_equal(made[..., 2], np.abs(made[..., 0] - made[..., 1]))
    assert made[25, 25, 2] > 60
    assert made[50, 50].tolist() == [200, 180, 20]


def test_a_defect_is_not_pasted_where_it_cannot_be() -> None:
    """A defect that fills the tile, is not marked, or would lie beyond the picture leaves the good tile as it is."""
    good = tile(grey(200, 64, 64), grey(0, 64, 64), 0)
    for value in (1, IGNORED):
        assert pasted(good, tile(grey(90, 64, 64), grey(value, 64, 64), 1), 12) is good
    good.labels[:, 25:] = IGNORED
    assert pasted(good, marked_tile(), 12) is good


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limits to calculate with, whatever has been found to be best; the largest tile, px."""
    for name, value in (("LEAST_PICTURE", 160), ("LEAST_UNMARKED", 320), ("CROPS", (96, 128, 160, 192))):
        monkeypatch.setattr(geometry, name, value)
    return 320 * 256


def sized(height: int, width: int, defect: int = 0, count: int = 3) -> list[Picture]:
    """Pictures of one size, each with a square defect of so many px."""
    labels = grey(0, height, width)
    labels[4 : 4 + defect, 4 : 4 + defect] = 1
    return [picture(labels)] * count


@pytest.mark.parametrize(
    ("longer", "small", "expected"),
    [
        (2048, 20, 0.25),  # 5 px are left of it
        (2048, 10, 0.5),  # 0.375 would leave 3.75
        (2048, 3, 1.0),  # is too small already
        (400, 60, 0.5),  # 0.375 would leave 150 px of the picture
        (200, 60, 1.0),
        (2048, float("inf"), 0.25),
    ],
)
def test_pictures_are_shrunk_as_far_as_small_defects_allow(longer: float, small: float, expected: float) -> None:
    """A small defect keeps 4 px, a picture's longer side what is asked for."""
    assert choose_scale(longer, small, least=160) == expected


def test_the_size_of_small_defects_leaves_specks_aside() -> None:
    """The side of a square of their area; a pen's speck beside a region is no defect; inf where none is marked."""
    labels = grey(0, 100, 100)
    labels[10:30, 10:60] = 1  # 1000 px
    labels[50, 50] = 1  # less than a twentieth of it
    assert small_defect([picture(labels)]) == pytest.approx(1000**0.5)
    assert small_defect([picture(grey(IGNORED, 9, 9)), picture(grey(0, 9, 9))]) == float("inf")
    assert small_defect(sized(100, 100, 20) + sized(100, 100, 6)) == pytest.approx(6)


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (sized(200, 210, 30), TileShape(224, 224, 32, 1.0, (192, 192))),  # seen whole
        (sized(100, 70, 30), TileShape(128, 96, 32, 1.0, (128, 128))),
        (sized(1000, 1400, 40), TileShape(256, 256, 32, 0.25, (192, 192))),  # 250 × 350 px are too many at once
        (sized(1000, 1400), TileShape(256, 256, 32, 0.25, (192, 192))),
        (sized(64, 64, 3), TileShape(64, 64, 32, 1.0, (64, 64))),
    ],
)
def test_a_tile_holds_a_whole_picture_where_that_is_affordable(
    pictures: Sequence[Picture], expected: TileShape, limits: int
) -> None:
    """Sides are multiples of 32; crops show about half of it."""
    assert choose_shape(pictures, limits) == expected


def test_a_scale_and_a_larger_tile_may_be_wanted(limits: int) -> None:
    """A given scale is taken as it is; networks that see pictures whole are given them whole."""
    pictures = sized(1000, 1400, 40)
    assert choose_shape(pictures, limits, scale=0.5).scale == 0.5
    whole = choose_shape(pictures, 1 << 22)
    assert (whole.height, whole.width) == (256, 352)
    assert whole.height * whole.width > limits


def test_synthetic_pictures_are_what_the_other_tests_take_them_for() -> None:
    """Good, spot and line in turn, each of 64 × 64 px, the defects clearly brighter."""
    pictures = pictures_with_defects(6)
    assert [np.unique(each.labels).tolist() for each in pictures] == [[0], [0, 1], [0, 2]] * 2
    assert all(each.pixels[each.labels > 0].min() > each.pixels[each.labels == 0].max() for each in pictures[1:3])
