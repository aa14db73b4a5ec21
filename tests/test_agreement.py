"""Label maps against truth, each figure computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engines.datasets.agreement import Agreement, Confusion, image_dice
from engines.datasets.labelled import IGNORED


def row(*labels: int) -> np.ndarray:
    """A label map of one line."""
    return np.array([labels], np.uint8)


@pytest.fixture
def counted() -> Agreement:
    """Three classes; class 1 half found, two pixels of it called class 2; then an empty picture found empty."""
    agreement = Agreement(3)
    agreement.add(found=row(1, 1, 2, 2, 0, 2), true=row(1, 1, 1, 1, 0, 0))
    agreement.add(found=row(0, 0, 0, 0, 0, 0), true=row(0, 0, 0, 0, 0, 0))
    return agreement


def test_dice_and_iou_per_class(counted: Agreement) -> None:
    """Class 1: 2 of 4 true pixels, none too many; class 2 is never true, so all its pixels are wrong."""
    assert counted.dice(1) == pytest.approx(2 * 2 / (2 + 4))
    assert counted.iou(1) == pytest.approx(2 / 4)
    assert counted.dice(2) == counted.iou(2) == 0
    assert counted.iou(0) == pytest.approx(7 / 8)  # 7 both; 7 called, 8 true


def test_dice_of_all_defects(counted: Agreement) -> None:
    """Whatever the class, 4 pixels are both; by class only 2; 5 are called and 4 are true."""
    assert counted.defect_dice == pytest.approx(2 * 4 / (5 + 4))
    assert counted.class_aware_dice == pytest.approx(2 * 2 / (5 + 4))


def test_mean_iou_leaves_out_background_and_absent_classes(counted: Agreement) -> None:
    """Only class 1 is truly there."""
    assert counted.mean_iou == pytest.approx(0.5)


def test_mean_over_images_stands_beside_what_nothing_would_score(counted: Agreement) -> None:
    """Four pairs of picture and class: 2/3, 0 (called, not there), and twice 1; nothing found gets three right."""
    assert counted.mean_image_dice == pytest.approx((4 / 6 + 0 + 1 + 1) / 4)
    assert counted.mean_image_dice_of_nothing == pytest.approx(3 / 4)
    empty = Agreement(3)
    empty.add(row(0, 0, 0), row(1, 1, 0))
    empty.add(row(0, 0, 0), row(0, 0, 0))
    assert empty.mean_image_dice == empty.mean_image_dice_of_nothing == pytest.approx(3 / 4)


def test_order_and_number_of_pictures_do_not_matter_when_pooled() -> None:
    """Two pictures counted apart give the figures of both laid side by side."""
    rng = np.random.default_rng(3)
    found, true = rng.integers(0, 4, (2, 8, 20)).astype(np.uint8)
    apart, together = Agreement(4), Agreement(4)
    together.add(found, true)
    for part in (np.s_[:, 12:], np.s_[:, :12]):
        apart.add(found[part], true[part])
    for index in range(4):
        both = np.count_nonzero((found == index) & (true == index))
        either = np.count_nonzero((found == index) | (true == index))
        assert apart.iou(index) == together.iou(index) == pytest.approx(both / either)


def test_what_is_not_known_does_not_count() -> None:
    """Ignored pixels are on neither side; a picture of nothing else is no picture."""
    agreement = Agreement(2)
    agreement.add(row(1, 1, 0), row(IGNORED, 1, 0))
    agreement.add(row(1, 1, 1), row(IGNORED, IGNORED, IGNORED))
    assert agreement.defect_dice == 1.0
    assert agreement.pictures == 1


def test_without_a_true_defect_there_is_no_figure() -> None:
    """Not 0, which would blame, and not 1, which would praise."""
    agreement = Agreement(2)
    agreement.add(row(1, 0), row(0, 0))
    figures = (agreement.defect_dice, agreement.class_aware_dice, agreement.mean_iou, agreement.mean_image_dice)
    assert figures == (None,) * 4
    assert Agreement(2).dice(1) is None


def test_shapes_that_differ_are_refused() -> None:
    """A truth of another size is no truth."""
    with pytest.raises(ValueError, match="cannot be compared"):
        Agreement(2).add(row(0, 0), row(0, 0, 0))


def test_dice_of_one_picture_asks_only_for_defects() -> None:
    """Classes may differ; None where there is nothing on either side."""
    assert image_dice(row(2, 2, 0, 0), row(1, 1, 1, 0)) == pytest.approx(2 * 2 / 5)
    assert image_dice(row(0, 0), row(0, 0)) is None
    assert image_dice(row(1, 1), row(IGNORED, IGNORED)) is None


def test_confusion_counts_pictures() -> None:
    """Rows are true, columns said, the last one sent to a person: never right, for either accuracy."""
    confusion = Confusion(3)
    for true, said in ((0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, None), (0, None)):
        confusion.add(true, said)
    assert confusion.counts.tolist() == [[2, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]]
    assert [confusion.recall(index) for index in range(3)] == [0.5, 0.5, 0.0]
    assert confusion.accuracy == pytest.approx(3 / 8)
    assert confusion.accuracy_good_bad == pytest.approx(4 / 8)  # 2 good, and 2 bad under whatever name
    assert Confusion(2).accuracy is None
