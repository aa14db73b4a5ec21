"""Losses by pixel and by region give the values that their papers' formulas give by hand, and skip IGNORED pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log

import pytest

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")

from engines.datasets.labelled import IGNORED  # noqa: E402
from engines.training.class_weights import count_labels, effective_number, inverse_frequency  # noqa: E402
from engines.training.region_losses import (  # noqa: E402
    CrossEntropyThenDice,
    cross_entropy,
    dice_loss,
    focal_loss,
    focal_tversky_loss,
    jaccard_loss,
    squared_dice_loss,
    tversky_loss,
)

ACTIVATIONS = ("softmax", "sigmoid")
ALL = {
    "dice": dice_loss,
    "squared dice": squared_dice_loss,
    "jaccard": jaccard_loss,
    "tversky": tversky_loss,
    "focal tversky": focal_tversky_loss,
    "cross-entropy": cross_entropy,
    "focal": focal_loss,
    "cross-entropy then dice": partial(CrossEntropyThenDice(0, 1), progress=0.5),
}
each_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

# One row of four pixels, one defect class: TP = 0.8 + 0.4, missed = 0.2 + 0.6, false = 0.3; the last is unknown.
CHANCE = (0.8, 0.4, 0.3, 0.9)
LABELS = torch.tensor([[[1, 1, 0, IGNORED]]])
TP, MISSED, FALSE = 0.8 + 0.4, 0.2 + 0.6, 0.3
MARKED, TRUE = 0.8 + 0.4 + 0.3, 2


def scores_of(chance: tuple[float, ...], activation: str) -> object:
    """Scores [1, K, 1, W] of which the defect has these probabilities."""
    score = torch.tensor([log(p / (1 - p)) for p in chance]).view(1, 1, 1, -1)
    return score if activation == "sigmoid" else torch.cat([torch.zeros_like(score), score], 1)


BY_HAND = [
    (dice_loss, {}, 1 - (2 * TP + 1) / (MARKED + TRUE + 1)),
    (dice_loss, {"smooth": 0.5}, 1 - (2 * TP + 0.5) / (MARKED + TRUE + 0.5)),
    (squared_dice_loss, {}, 1 - (2 * TP + 1) / (0.64 + 0.16 + 0.09 + TRUE + 1)),
    (jaccard_loss, {}, 1 - (TP + 1) / (MARKED + TRUE - TP + 1)),
    (tversky_loss, {}, 1 - (TP + 1) / (TP + 0.7 * MISSED + 0.3 * FALSE + 1)),
    (tversky_loss, {"alpha": 0.2, "beta": 0.9}, 1 - (TP + 1) / (TP + 0.2 * MISSED + 0.9 * FALSE + 1)),
    (focal_tversky_loss, {}, (1 - (TP + 1) / (TP + 0.7 * MISSED + 0.3 * FALSE + 1)) ** 0.75),
    (focal_tversky_loss, {"alpha": 0.6, "gamma": 2}, (1 - 2.2 / (1.2 + 0.6 * 0.8 + 0.4 * 0.3 + 1)) ** 2),
    (cross_entropy, {}, -(log(0.8) + log(0.4) + log(0.7)) / 3),
    (
        focal_loss,
        {},
        -(0.25 * 0.2**2 * log(0.8) + 0.25 * 0.6**2 * log(0.4) + 0.75 * 0.3**2 * log(0.7)) / 3,
    ),
    (focal_loss, {"alpha": None, "gamma": 1.0}, -(0.2 * log(0.8) + 0.6 * log(0.4) + 0.3 * log(0.7)) / 3),
    (CrossEntropyThenDice(), {"progress": 0.4}, -(log(0.8) + log(0.4) + log(0.7)) / 3),
    (CrossEntropyThenDice(), {"progress": 0.5}, 1 - 3.4 / 4.5),
    (
        CrossEntropyThenDice(0.2, 0.6),
        {"progress": 0.3},
        0.75 * -(log(0.8) + log(0.4) + log(0.7)) / 3 + 0.25 * (1 - 3.4 / 4.5),
    ),
]


@each_activation
@pytest.mark.parametrize(("loss", "options", "expected"), BY_HAND)
def test_values_are_those_of_the_formula(
    loss: Callable[..., object], options: dict[str, float], expected: float, activation: str
) -> None:
    """For one defect class, softmax and sigmoid give the same value, and it is the formula's."""
    assert loss(scores_of(CHANCE, activation), LABELS, activation, **options).item() == pytest.approx(expected)


# Two pictures of two pixels, two defect classes; the rows are pixels, the columns background and both classes.
THREE = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]])
THREE_SCORES = THREE.log().permute(0, 2, 1).unsqueeze(2)  # [2, 3, 1, 2]
THREE_LABELS = torch.tensor([[[1, 0]], [[2, 1]]])


def test_regions_are_pooled_over_the_batch_and_averaged_over_the_defect_classes() -> None:
    """Each class has one Dice over all pictures; the background has none; weights weigh the classes' mean."""
    first = 1 - (2 * (0.5 + 0.3) + 1) / ((0.5 + 0.1 + 0.7 + 0.3) + 2 + 1)
    second = 1 - (2 * 0.2 + 1) / ((0.3 + 0.3 + 0.2 + 0.2) + 1 + 1)
    assert dice_loss(THREE_SCORES, THREE_LABELS, "softmax").item() == pytest.approx((first + second) / 2)
    weighted = dice_loss(THREE_SCORES, THREE_LABELS, "softmax", torch.tensor([1.0, 3.0])).item()
    assert weighted == pytest.approx((1 * first + 3 * second) / 4)


def test_sigmoid_planes_answer_for_the_class_above_them() -> None:
    """Plane 0 is right on label 1 and plane 1 on label 2: almost no loss; exchanged planes are wrong throughout."""
    truth = torch.tensor([[[0, 1, 2, 2]]])
    right = torch.where(torch.tensor([[[0, 1, 0, 0]], [[0, 0, 1, 1]]]) > 0, 12.0, -12.0).unsqueeze(0)
    for loss in (dice_loss, cross_entropy):
        assert loss(right, truth, "sigmoid").item() < 1e-4
        assert loss(right.flip(1), truth, "sigmoid").item() > 0.5


def test_weights_of_pixels_are_those_of_their_labels_or_planes() -> None:
    """With a softmax a pixel counts as its label's weight, with sigmoids a plane as its defect's."""
    expected = -(2 * log(0.5) + 1 * log(0.6) + 4 * log(0.2) + 2 * log(0.3)) / (2 + 1 + 4 + 2)
    assert cross_entropy(THREE_SCORES, THREE_LABELS, "softmax", torch.tensor([1.0, 2, 4])).item() == pytest.approx(
        expected
    )
    scores = torch.tensor([log(0.8 / 0.2), log(0.4 / 0.6)]).view(1, 2, 1, 1)  # of one pixel, whose label is 2
    expected = -(1 * log(1 - 0.8) + 3 * log(0.4)) / (1 + 3)
    weighted = cross_entropy(scores, torch.tensor([[[2]]]), "sigmoid", torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(expected)


def test_a_class_that_is_not_there_asks_for_no_marks() -> None:
    """Half a pixel marked where there is nothing: 1 − 1 / (0.5 + 1); nothing marked costs nothing."""
    labels = torch.zeros(1, 1, 2, dtype=torch.long)
    marked = scores_of((0.3, 0.2), "sigmoid")
    assert dice_loss(marked, labels, "sigmoid").item() == pytest.approx(1 - 1 / (0.3 + 0.2 + 1))
    assert dice_loss(marked - 50, labels, "sigmoid").item() == pytest.approx(0, abs=1e-6)


def test_a_missed_pixel_costs_more_than_a_false_one() -> None:
    """The α of 0.7 weighs what is missed: of two pixels, one missed is worse than one marked for nothing."""
    missed = torch.tensor([20.0, -20, -20]).view(1, 1, 1, 3), torch.tensor([[[1, 1, 0]]])
    false = torch.tensor([20.0, 20, -20]).view(1, 1, 1, 3), torch.tensor([[[1, 0, 0]]])
    assert tversky_loss(*missed, "sigmoid").item() == pytest.approx(0.7 / (1 + 0.7 + 1))
    assert tversky_loss(*false, "sigmoid").item() == pytest.approx(0.3 / (1 + 0.3 + 1))


@each_activation
@each_loss
def test_ignored_pixels_neither_count_nor_teach(loss: Callable[..., object], activation: str) -> None:
    """Whatever is said of an unknown pixel, the loss is the same and no slope reaches it."""
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 8, 8, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[:, 2:5, 3:6] = IGNORED
    value = loss(scores, labels, activation)
    value.backward()
    unknown = (labels == IGNORED).unsqueeze(1).expand_as(scores)
    assert scores.grad[unknown].abs().max() == 0
    assert (scores.grad[~unknown] != 0).all()
    other = torch.where(unknown, torch.full_like(scores, 9.0), scores.detach())
    assert loss(other, labels, activation).item() == value.item()


@each_activation
@each_loss
def test_nothing_known_and_nothing_wrong_give_finite_slopes(loss: Callable[..., object], activation: str) -> None:
    """A batch of unknown pixels only costs 0; there, and where all is right to the last digit, slopes are numbers."""
    scores = torch.zeros(1, 3, 4, 4, requires_grad=True)
    nothing = loss(scores, torch.full((1, 4, 4), IGNORED), activation)
    nothing.backward()
    assert nothing.item() == pytest.approx(0, abs=1e-4)
    assert torch.isfinite(scores.grad).all()
    certain = torch.full((1, 3, 4, 4), -200.0)
    certain[:, 1] = 200
    certain.requires_grad_()
    right = loss(certain, torch.full((1, 4, 4), 1 if activation == "softmax" else 2), activation)
    right.backward()
    assert right.item() == pytest.approx(0, abs=1e-4)
    assert torch.isfinite(certain.grad).all()


@each_activation
@each_loss
def test_following_the_slope_finds_the_labels(loss: Callable[..., object], activation: str) -> None:
    """Every loss, followed down from nothing known, ends with each pixel of both defects in its class."""
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, :2, :4], labels[0, 5:, 6:] = 1, 2
    planes = 3 if activation == "softmax" else 2
    scores = torch.zeros(1, planes, 8, 8, requires_grad=True)
    steps = torch.optim.Adam([scores], lr=0.3)
    for _ in range(40):
        steps.zero_grad()
        loss(scores, labels, activation).backward()
        steps.step()
    found = scores if activation == "softmax" else torch.cat([torch.zeros_like(scores[:, :1]), scores], 1)
    assert torch.equal(found.argmax(1), labels)


@each_loss
def test_half_precision_does_not_overflow(loss: Callable[..., object]) -> None:
    """More pixels than half precision can count, 65,504, give the value that single precision gives."""
    scores = torch.full((1, 2, 320, 320), 1.5)
    labels = torch.ones(1, 320, 320, dtype=torch.long)
    labels[:, :10] = 2
    half = loss(scores.half(), labels, "sigmoid").item()
    assert half == pytest.approx(loss(scores, labels, "sigmoid").item())


def test_dice_comes_in_between_its_two_points() -> None:
    """Before the start there is none of it, half way half, from the end on nothing else."""
    schedule = CrossEntropyThenDice(0.2, 0.6)
    assert [schedule.dice_share(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [CrossEntropyThenDice().dice_share(p) for p in (0.49, 0.5)] == [0, 1]


def test_labels_are_counted_without_the_ignored() -> None:
    """A class that does not occur has its place."""
    labels = torch.tensor([[0, 0, 2], [IGNORED, 0, 2]], dtype=torch.uint8)
    assert count_labels(labels, 4).tolist() == [3, 0, 2, 0]


def test_rare_classes_weigh_more() -> None:
    """1 / n, or (1 − β) / (1 − β^n), scaled to a mean of 1 over the classes that occur."""
    counts = torch.tensor([6, 2, 0, 1])
    raw = [1 / 6, 1 / 2, 0, 1 / 1]
    assert inverse_frequency(counts).tolist() == pytest.approx([3 * w / sum(raw) for w in raw])
    raw = [0.1 / (1 - 0.9**6), 0.1 / (1 - 0.9**2), 0, 0.1 / (1 - 0.9)]
    assert effective_number(counts, 0.9).tolist() == pytest.approx([3 * w / sum(raw) for w in raw])
    many = effective_number(torch.tensor([10**9, 10**8]), 1 - 1e-9)
    assert many.tolist() == pytest.approx([2 * w / (1.5820 + 10.5083) for w in (1.5820, 10.5083)], abs=1e-4)
    assert inverse_frequency(torch.zeros(2)).tolist() == [0, 0]
