"""What teaching our pair minimises, by hand."""

from __future__ import annotations

from math import exp, log

import pytest

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")

from engines.datasets.labelled import IGNORED  # noqa: E402
from engines.training.losses import (  # noqa: E402
    BALANCED_PART,
    CELL_PART,
    SMOOTHING,
    balanced_mean,
    cell_labels,
    cell_loss,
    commonest_defect,
    defect_mean,
    pair_loss,
    pixel_loss,
    tile_dice_loss,
)

# Chances of good, a and b at four pixels in a row; the last one is unknown and must never count.
CHANCE = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.2, 0.5], [0.0, 0.0, 1.0]]
LABELS = [0, 1, 2, IGNORED]


def row(chance: list[list[float]]) -> torch.Tensor:
    """float [1, K, 1, W]"""
    return torch.tensor(chance).T.reshape(1, -1, 1, len(chance))


def labels(*values: int) -> torch.Tensor:
    """int64 [1, 1, W]"""
    return torch.tensor([[list(values)]])


def scores(chance: list[list[float]]) -> torch.Tensor:
    """Whose softmax these chances are."""
    return row(chance).clamp(min=1e-30).log()


def test_tile_dice_is_half_of_any_defect_and_half_of_the_commonest_class() -> None:
    """1 − the mean of (2 Σ p·t + 1) / (Σ p + Σ t + 1) for defect against good and for class 1, over known pixels."""
    defect = (2 * (0.9 + 0.7) + 1) / ((0.3 + 0.9 + 0.7) + 2 + 1)
    first = (2 * 0.8 + 1) / ((0.2 + 0.8 + 0.2) + 1 + 1)
    assert tile_dice_loss(row(CHANCE), labels(*LABELS)).item() == pytest.approx(1 - (defect + first) / 2)


def test_tile_dice_counts_every_tile_alike() -> None:
    """The mean over tiles, however small the defect of one of them."""
    chance, truth = torch.cat([row(CHANCE)] * 2), torch.cat([labels(*LABELS), labels(0, 0, 1, 1)])
    alone = [tile_dice_loss(chance[n : n + 1], truth[n : n + 1]).item() for n in (0, 1)]
    assert tile_dice_loss(chance, truth).item() == pytest.approx(sum(alone) / 2)
    assert alone[0] != pytest.approx(alone[1])


def test_perfect_marks_cost_nothing() -> None:
    """Dice is 1, and cross-entropy 0."""
    truth = labels(0, 2, 2, IGNORED)
    right = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert tile_dice_loss(row(right), truth).item() == pytest.approx(0)
    assert pixel_loss(scores(right), truth).item() == pytest.approx(0, abs=1e-6)


def test_the_commonest_defect_leaves_good_and_unknown_pixels_aside() -> None:
    """The class of most pixels, the lower one of two alike, 0 where there is none."""
    truth = torch.cat([labels(0, 0, 0, 3, 3, 1), labels(*[IGNORED] * 4, 2, 1), labels(0, 0, 0, 0, 0, IGNORED)])
    assert commonest_defect(truth).tolist() == [3, 1, 0]
    assert commonest_defect(labels(*[IGNORED] * 4)).tolist() == [0]


def test_the_mean_of_defects_is_taken_by_tile() -> None:
    """Three pixels of one tile weigh as much as the one of the other."""
    each = torch.tensor([[[1.0, 2.0, 6.0, 50.0]], [[7.0, 9.0, 60.0, 70.0]]])
    truth = torch.tensor([[[1, 2, 1, 0]], [[0, 3, IGNORED, 0]]])
    assert defect_mean(each, truth).item() == pytest.approx((3.0 + 9.0) / 2)


def test_pixel_loss_is_the_sum_of_its_three_parts() -> None:
    """Plain cross-entropy over known pixels, a part of that over defects, and the Dice loss."""
    plain = -(log(0.7) + log(0.8) + log(0.5)) / 3
    part = -(log(0.8) + log(0.5)) / 2
    dice = tile_dice_loss(row(CHANCE), labels(*LABELS)).item()
    expected = plain + BALANCED_PART * part + dice
    assert pixel_loss(scores(CHANCE), labels(*LABELS)).item() == pytest.approx(expected, rel=1e-5)


def test_tiles_without_a_defect_only_count_in_the_plain_part() -> None:
    """A good tile beside a defective one thins out its cross-entropy, and changes nothing else."""
    good = labels(0, 0, 0, 0)
    plain = -(log(0.7) + log(0.1) + log(0.3)) / 3
    both = torch.cat([scores(CHANCE)] * 2)
    assert pixel_loss(scores(CHANCE), labels(0, 0, 0, IGNORED)).item() == pytest.approx(plain, rel=1e-5)
    together = pixel_loss(both[..., :3], torch.cat([labels(*LABELS), good])[..., :3]).item()
    alone = pixel_loss(scores(CHANCE), labels(*LABELS)).item()
    defective = -(log(0.7) + log(0.8) + log(0.5)) / 3
    assert together == pytest.approx(alone - defective + (defective + plain) / 2, rel=1e-5)


def test_where_nothing_is_known_nothing_is_learnt() -> None:
    """A defective picture that nobody marked: the loss of its pixels and cells is 0, and so is its slope."""
    wrong = scores(CHANCE).requires_grad_()
    loss = pixel_loss(wrong, labels(*[IGNORED] * 4)) + cell_loss(wrong, labels(*[IGNORED] * 4))
    loss.backward()
    assert loss.item() == 0
    assert wrong.grad is not None
    assert not wrong.grad.any()


def test_unknown_pixels_have_no_slope() -> None:
    """Whatever is said there."""
    said = scores(CHANCE).requires_grad_()
    pixel_loss(said, labels(*LABELS)).backward()
    assert said.grad is not None
    assert not said.grad[..., 3].any()
    assert said.grad[..., :3].abs().min() > 0


def test_cells_take_the_highest_class_in_them() -> None:
    """A cell with any defect pixel is defective; one of which nothing is known stays unknown."""
    truth = torch.zeros(1, 4, 6, dtype=torch.long)
    truth[0, 0, 1], truth[0, 1, 1], truth[0, 2:, 2:4], truth[0, 2:, 4] = 1, 2, IGNORED, IGNORED
    assert cell_labels(truth, 2).tolist() == [[[2, 0, 0], [0, IGNORED, 0]]]


def test_balanced_mean_weighs_defects_like_the_good() -> None:
    """Three good pixels weigh as much as one defect pixel, unknown ones nothing; one kind alone is a plain mean."""
    each = torch.tensor([[[1.0, 2.0, 3.0, 10.0, 99.0]]])
    truth = torch.tensor([[[0, 0, 0, 2, IGNORED]]])
    assert balanced_mean(each, truth).item() == pytest.approx((2 + 10) / 2)
    assert balanced_mean(each, truth * 0).item() == pytest.approx(115 / 5)
    assert balanced_mean(each, truth * 0 + IGNORED).item() == 0


def test_cell_loss_is_balanced_cross_entropy() -> None:
    """One sure defective cell against three undecided ones, of which one is unknown."""
    truth = torch.zeros(1, 4, 4, dtype=torch.long)
    truth[0, 0, 1], truth[0, 2:, 2:] = 2, IGNORED
    cells = torch.zeros(1, 3, 2, 2)
    cells[0, 2, 0, 0] = 5.0
    assert cell_loss(cells, truth).item() == pytest.approx((log(1 + 2 * exp(-5.0)) + log(3)) / 2, rel=1e-4)


def test_the_pair_learns_from_pixels_tile_and_cells() -> None:
    """The tile's cross-entropy is smoothed: a share of its truth is spread over all classes."""
    truth = torch.zeros(1, 4, 4, dtype=torch.long)
    truth[0, :2, :2] = 1
    pixels, cells = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)
    tile = torch.tensor([[0.0, 2.0]])
    wanted, other = -log(1 / (1 + exp(-2.0))), -log(1 / (1 + exp(2.0)))
    judged = (1 - SMOOTHING / 2) * wanted + SMOOTHING / 2 * other
    expected = judged + pixel_loss(pixels, truth).item() + CELL_PART * log(2)
    assert pair_loss(tile, cells, pixels, truth, torch.tensor([1])).item() == pytest.approx(expected, rel=1e-5)
