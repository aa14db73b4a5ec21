"""Boxes out of label maps and against true ones, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.datasets.boxes import BoxScore, Found, average_precision, box_iou, boxes_from_labels, match_boxes
from engines.datasets.labelled import Box


def labels_with(*regions: tuple[int, int, int, int, int]) -> np.ndarray:
    """A label map [30, 40] with rectangles (label, x, y, width, height)."""
    labels = np.zeros((30, 40), np.uint8)
    for label, x, y, width, height in regions:
        labels[y : y + height, x : x + width] = label
    return labels


def claim(x: int, score: float, class_index: int = 1, width: int = 10) -> Found:
    return Found(Box(x, 0, width, 10, class_index), score, 100)


def test_region_becomes_a_box_with_its_mean_confidence() -> None:
    """One box a region and class, in pixels of the picture."""
    labels = labels_with((1, 3, 4, 5, 2), (2, 20, 10, 1, 6))
    confidence = np.full(labels.shape, 51, np.uint8)
    confidence[4, 3:8] = 255  # half of the first region
    first, second = boxes_from_labels(labels, confidence)
    assert (first.box, first.area) == (Box(3, 4, 5, 2, 1), 10)
    assert first.score == pytest.approx(0.6)
    assert (second.box, second.area) == (Box(20, 10, 1, 6, 2), 6)
    assert second.score == pytest.approx(0.2)
    assert boxes_from_labels(labels_with(), confidence) == []


@pytest.mark.parametrize(("merge_px", "boxes"), [(0, 2), (1, 2), (3, 2), (4, 1), (7, 1)])
def test_near_regions_of_a_class_become_one(merge_px: int, boxes: int) -> None:
    """With 3 px between them, from 4 px on; the box is that of the pixels, not of what joined them."""
    labels = labels_with((1, 5, 5, 4, 4), (1, 12, 5, 4, 4), (2, 12, 10, 4, 4))
    found = boxes_from_labels(labels, np.full(labels.shape, 255, np.uint8), merge_px)
    ones = [each for each in found if each.box.class_index == 1]
    assert len(ones) == boxes
    assert len(found) == boxes + 1  # a class never joins another
    if boxes == 1:
        assert (ones[0].box, ones[0].area, ones[0].score) == (Box(5, 5, 11, 4, 1), 32, 1.0)


def test_boxes_grow_by_the_room_that_data_leaves() -> None:
    """On every side, and not beyond the picture; area and score stay those of the pixels."""
    labels = labels_with((1, 3, 10, 5, 2), (1, 36, 26, 4, 4))
    found = boxes_from_labels(labels, np.full(labels.shape, 255, np.uint8), pad_px=5)
    assert [each.box for each in found] == [Box(0, 5, 13, 12, 1), Box(31, 21, 9, 9, 1)]
    assert [(each.area, each.score) for each in found] == [(10, 1.0), (16, 1.0)]


@given(st.integers(0, 1000))
def test_without_merging_every_box_fits_its_region(seed: int) -> None:
    """The pixels of a class are exactly shared out among its boxes."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((12, 15)) < 0.3).astype(np.uint8) * rng.integers(1, 3, (12, 15), dtype=np.uint8)
    found = boxes_from_labels(labels, np.full(labels.shape, 255, np.uint8))
    for index in (1, 2):
        assert sum(each.area for each in found if each.box.class_index == index) == np.count_nonzero(labels == index)
    for each in found:
        box = each.box
        inside = labels[box.y : box.y + box.height, box.x : box.x + box.width] == box.class_index
        assert inside.any(axis=0)[[0, -1]].all()
        assert inside.any(axis=1)[[0, -1]].all()


def test_overlap_of_boxes() -> None:
    """Half shifted: 50 of 150 px²; touching or apart: nothing."""
    assert box_iou(Box(0, 0, 10, 10, 1), Box(5, 0, 10, 10, 1)) == pytest.approx(50 / 150)
    assert box_iou(Box(0, 0, 10, 10, 1), Box(0, 0, 10, 10, 2)) == 1.0
    assert box_iou(Box(0, 0, 10, 10, 1), Box(10, 0, 10, 10, 1)) == 0.0
    assert box_iou(Box(0, 0, 10, 10, 1), Box(20, 20, 10, 10, 1)) == 0.0


def test_surer_box_chooses_first_and_takes_the_true_one_away() -> None:
    """Each true box is found once; the class must be right; the threshold itself is enough."""
    true = [Box(0, 0, 10, 10, 1)]
    assert match_boxes([claim(0, 0.5), claim(1, 0.9)], true, 0.33) == [None, 0]
    assert match_boxes([claim(0, 0.9, class_index=2)], true, 0.33) == [None]
    assert match_boxes([claim(5, 0.9)], true, 1 / 3) == [0]
    assert match_boxes([claim(5, 0.9)], true, 0.34) == [None]
    assert match_boxes([claim(0, 0.9)], [], 0.33) == [None]


def test_box_takes_the_true_one_that_it_overlaps_most() -> None:
    """Not the first that would do."""
    assert match_boxes([claim(4, 0.9)], [Box(0, 0, 10, 10, 1), Box(6, 0, 10, 10, 1)], 0.33) == [1]


def test_precision_recall_and_f1() -> None:
    """Over two pictures: 3 found, 2 of them right, 4 true."""
    score = BoxScore(0.5)
    score.add([claim(0, 0.9), claim(30, 0.8)], [Box(0, 0, 10, 10, 1), Box(60, 0, 10, 10, 2)])
    score.add([claim(0, 0.7, 2)], [Box(0, 0, 10, 10, 2), Box(40, 0, 10, 10, 2)])
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(2 / 4)
    assert score.f1 == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_average_precision_by_hand() -> None:
    """Right, wrong, right, right on 4: recall ¼ at 1, then ½ and ¾ at the later, better precision of ¾."""
    claims = [(0.9, True), (0.8, False), (0.7, True), (0.6, True)]
    assert average_precision(claims, 4) == pytest.approx(1 / 4 * 1 + 1 / 4 * 3 / 4 + 1 / 4 * 3 / 4)
    assert average_precision([(0.9, True), (0.8, True)], 2) == 1.0
    assert average_precision([(0.9, False)], 2) == average_precision([], 2) == 0.0


@given(st.permutations([(0.5, True), (0.5, False), (0.5, True), (0.9, False), (0.2, True)]))
def test_order_of_equal_scores_does_not_matter(claims: list[tuple[float, bool]]) -> None:
    """Claims of one score count together: after them 2 of 4, after the last 3 of 5."""
    assert average_precision(claims, 3) == pytest.approx(1.0 * 3 / 5)


def test_map_is_the_mean_of_the_classes_that_are_there() -> None:
    """A class without a true box has no AP, and its false alarms cost precision only."""
    score = BoxScore(0.5)
    score.add([claim(0, 0.9), claim(0, 0.9, 3)], [Box(0, 0, 10, 10, 1), Box(60, 0, 10, 10, 2)])
    assert (score.ap(1), score.ap(2), score.ap(3)) == (1.0, 0.0, None)
    assert score.mean_ap == 0.5
    assert score.precision == 0.5
    assert BoxScore(0.5).f1 is None
    assert BoxScore(0.5).mean_ap is None
