"""How a network is taught: rates, balanced draws, looks, and a training that survives its own death to the bit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training_pictures import grey, pictures_with_defects

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")

from rich.console import Console  # noqa: E402
from torch import nn  # noqa: E402

from engines.datasets.agreement import Agreement  # noqa: E402
from engines.datasets.labelled import DatasetError, Picture, Sample  # noqa: E402
from engines.training import fit as fit_module  # noqa: E402
from engines.training.augment import Variation  # noqa: E402
from engines.training.draw import BalancedDraw, Batch, batches  # noqa: E402
from engines.training.fit import State, Task, fit  # noqa: E402
from engines.training.losses import pixel_loss  # noqa: E402
from engines.training.schedule import TIMED, Schedule, affordable, rate  # noqa: E402
from engines.training.tiles import TileShape  # noqa: E402
from engines.training.validation_scores import area_under_roc, pixel_score  # noqa: E402

SHAPE = TileShape(64, 64, 16, 1.0, (32, 32))
SHORT = Schedule(steps=12, batch=4, looks=4, average=0.9, seed=5)
Weights = dict[str, "torch.Tensor"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TinyNet(nn.Module):
    """Everything that has a state of its own: kept statistics, dropout, a first layer that comes already taught."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, padding=1)
        self.level = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.decide = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.decide(self.drop(self.level(self.enter(x / 64 - 2)).relu()))
        return scores


def tiny_net() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


def draw_of(pictures: list[Picture] | None = None, variation: Variation | None = None) -> BalancedDraw:
    return BalancedDraw(pictures or pictures_with_defects(12), SHAPE, variation or Variation())


def task_of(
    score_of: Callable[[nn.Module], float] | None = None, losses: list[float] | None = None, pause: int = 0
) -> Task:
    """Marks pixels. `losses` gets every step's; the process dies in step `pause`, as far as the caller can tell."""
    told = losses if losses is not None else []

    def loss_of(net: nn.Module, batch: Batch, progress: float) -> torch.Tensor:
        loss = pixel_loss(net(batch.pixels), batch.labels)
        told.append(loss.item())
        if len(told) == pause:
            raise KeyboardInterrupt
        return loss

    def sharpness(net: nn.Module) -> float:
        """Differs from look to look, and follows from the weights alone."""
        return float(sum(weights.abs().mean() for weights in net.parameters()))

    return Task(draw_of(), loss_of, score_of or sharpness, frozenset({"enter.weight"}))


def taught(path: Path, schedule: Schedule = SHORT, **facts: object) -> tuple[Weights, State]:
    net = tiny_net()
    state = fit(net, task_of(**facts), schedule, path, Console(quiet=True))  # type: ignore[arg-type]
    return dict(net.state_dict()), state


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    """Straight up over the first tenth, then half a cosine: halfway down in its middle."""
    assert [rate(x) for x in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])
    assert rate(0.325) == pytest.approx((1 + 0.5**0.5) / 2)


@pytest.mark.parametrize(
    ("minutes", "seconds", "expected"),
    [(1.0, 0.5, 120), (60.0, 0.5, 1500), (0.01, 0.5, 10), (1e-9, 0.5, 10), (1.0, 60.0, 10)],
)
def test_steps_are_those_that_fit_into_the_minutes(minutes: float, seconds: float, expected: int) -> None:
    """Never more than the schedule has, never fewer than one a look, however little time there is."""
    assert affordable(Schedule(steps=1500, minutes=minutes, looks=10), seconds) == expected


def test_a_schedule_of_few_steps_is_not_made_longer() -> None:
    """Neither looks nor the steps that are needed to time one add any."""
    assert affordable(Schedule(steps=3, minutes=1e-9), 1.0) == 3
    assert affordable(Schedule(steps=100, minutes=1e-9, looks=2), 1.0) == TIMED


def test_drawing_balances_classes_and_parts() -> None:
    """The good have their share, defects share the rest, and a part of many pictures does not speak for all."""
    marked = grey(1, 32, 32)

    def pictures(part: str, class_index: int, count: int) -> list[Picture]:
        labels = np.full_like(marked, class_index)
        return [Picture(Sample(part, "", part, class_index), labels * 60, labels, class_index)] * count

    still = Variation(flips=False, zoom=0, stretch=0, tilt=0, light=0, blur=0)
    many = pictures("often", 1, 18) + pictures("seldom", 1, 2)
    draw = BalancedDraw(many + pictures("b", 2, 1) + pictures("good", 0, 100), SHAPE, still, good_share=0.4)
    drawn = Counter(tile.class_index for tile in draw.tiles(1000, np.random.default_rng(0)))
    assert [drawn[index] / 1000 for index in (0, 1, 2)] == pytest.approx([0.4, 0.3, 0.3], abs=0.05)
    drawn = Counter(draw._any(1, np.random.default_rng(n)).sample.group for n in range(1000))
    assert drawn["seldom"] / 1000 == pytest.approx(0.5 * 0.5 + 0.5 * 0.1, abs=0.05)


def test_no_drawn_tile_is_left_open() -> None:
    """Where every draw shows a sliver, the picture's own class is taken."""
    labels = grey(0, 32, 32)
    labels[3, 3:8] = 2
    sliver = Picture(Sample("a", "", "a", 2), grey(90, 32, 32), labels, 2)
    still = Variation(zoom=0, stretch=0, tilt=0)
    assert {tile.class_index for tile in draw_of([sliver], still).tiles(20, np.random.default_rng(0))} == {2}


def test_defects_are_pasted_on_good_tiles_where_that_is_wanted() -> None:
    """With a paste of 1 every good draw that has room for one carries somebody's defect."""
    draw = BalancedDraw(pictures_with_defects(12), SHAPE, Variation(paste=1.0), good_share=1.0)
    classes = Counter(tile.class_index for tile in draw.tiles(60, np.random.default_rng(0)))
    assert classes[1] + classes[2] > 30
    plain = BalancedDraw(pictures_with_defects(12), SHAPE, Variation(), good_share=1.0)
    assert {tile.class_index for tile in plain.tiles(60, np.random.default_rng(0))} == {0}


def test_what_a_step_shows_follows_from_seed_and_step() -> None:
    """From the beginning or from the middle, alone or in company: the same tiles; another seed shows others."""
    whole = list(batches(draw_of(), 3, 7, range(6)))
    rest = list(batches(draw_of(), 3, 7, range(4, 6)))
    other = list(batches(draw_of(), 3, 8, range(2)))
    assert [len(each) for each in (whole, rest, other)] == [6, 2, 2]
    for ours, theirs in zip(whole[4:], rest, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.labels, theirs.labels)
    assert not torch.equal(whole[0].pixels, other[0].pixels)
    assert not torch.equal(whole[0].pixels, whole[1].pixels)


def test_a_short_fit_lowers_the_loss_and_keeps_the_best_weights(tmp_path: Path) -> None:
    """Fitting learns, and leaves the averaged weights of the look that was best, ready for use."""
    losses: list[float] = []
    seen: list[float] = []
    net = tiny_net()

    def third_is_best(net: nn.Module) -> float:
        seen.append(float(net.decide.weight.detach().sum()))
        assert not net.training
        return 1.0 if len(seen) == 3 else 0.5

    schedule = replace(SHORT, steps=48, batch=4, looks=6, learning_rate=0.02)
    state = fit(net, task_of(third_is_best, losses), schedule, tmp_path / "a.pt", Console(quiet=True))
    assert len(losses) == state.step == 48
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert (state.best_score, state.best_look, len(state.history)) == (1.0, 3, 6)
    assert float(net.decide.weight.detach().sum()) == pytest.approx(seen[2])
    assert not net.training


def test_weights_that_come_taught_change_less(tmp_path: Path) -> None:
    """Their rate is a share of the others': at a share of nothing they stay what they were."""
    before = dict(tiny_net().state_dict())
    after, _ = taught(tmp_path / "a.pt", replace(SHORT, taught_share=0.0))
    assert torch.equal(after["enter.weight"], before["enter.weight"])
    assert not torch.equal(after["enter.bias"], before["enter.bias"])


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit; another seed gives others."""
    first, again = (taught(tmp_path / name)[0] for name in ("a.pt", "b.pt"))
    assert same(first, again)
    assert not same(first, taught(tmp_path / "c.pt", replace(SHORT, seed=6))[0])


@pytest.mark.parametrize("pause", [2, 4, 8, 12])
def test_a_training_that_was_killed_ends_with_the_same_weights(pause: int, tmp_path: Path) -> None:
    """Killed before the first look, or some steps after any of them: it ends bit for bit where the other ended."""
    whole, state = taught(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "killed.pt", pause=pause)
    losses: list[float] = []
    resumed, again = taught(tmp_path / "killed.pt", losses=losses)
    assert same(resumed, whole)
    assert again.history == state.history
    assert len(losses) == 12 - (pause - 1) // 3 * 3  # looks, and so checkpoints, are three steps apart


def test_a_training_that_was_through_is_not_taught_again(tmp_path: Path) -> None:
    """Neither after its last step nor after it ended early; the weights are there again at once."""
    for name, schedule in (("steps", SHORT), ("early", replace(SHORT, steps=40, looks=20, patience=2))):
        whole, state = taught(tmp_path / f"{name}.pt", schedule, score_of=lambda net: 0.0)
        losses: list[float] = []
        again, kept = taught(tmp_path / f"{name}.pt", schedule, score_of=lambda net: 1.0, losses=losses)
        assert losses == []
        assert same(again, whole)
        assert kept.history == state.history


def test_a_training_that_gets_no_better_ends_early(tmp_path: Path) -> None:
    """After as many looks without a better score as its patience; the best weights are kept."""
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    _, state = taught(
        tmp_path / "a.pt", replace(SHORT, steps=60, looks=20, patience=3), score_of=lambda net: next(scores)
    )
    assert [score for _, _, score in state.history] == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert (state.step, state.best_look, state.best_score) == (15, 2, 0.5)


def test_steps_that_the_clock_took_away_stay_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once timed, a training keeps its number of steps: killed and gone on with, whatever the clock says then."""
    schedule = replace(SHORT, steps=100, looks=4, minutes=0.1)
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(monotonic=iter([0.0, 4.0]).__next__))  # eight steps' time
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "a.pt", schedule, pause=11)
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(monotonic=iter([0.0, 9999.0]).__next__))
    _, state = taught(tmp_path / "a.pt", schedule)
    assert (state.steps, state.step) == (12, 12)  # 6 s of 0.5 s each
    assert [step for step, _, _ in state.history] == [9, 12]


def test_progress_is_told_with_loss_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr: a line a look, and from which step a training goes on."""
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), task_of(lambda net: 0.25, pause=8), SHORT, tmp_path / "a.pt")
    said = capsys.readouterr()
    assert said.out == ""
    assert "step     3  loss" in said.err
    assert "validation 0.2500" in said.err
    fit(tiny_net(), task_of(lambda net: 0.25), SHORT, tmp_path / "a.pt")
    assert "going on from step 6 of 12" in capsys.readouterr().err


def other_net(path: Path) -> None:
    torch.save({"net": nn.Linear(2, 2).state_dict(), "optimiser": {}, "state": {}}, path)


def foreign_state(path: Path) -> None:
    net = tiny_net()
    fit(net, task_of(), SHORT, path, Console(quiet=True))
    kept = torch.load(path, weights_only=True)
    torch.save({**kept, "state": {**kept["state"], "epoch": 3}}, path)


def cut_short(path: Path) -> None:
    fit(tiny_net(), task_of(), SHORT, path, Console(quiet=True))
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "spoil",
    [
        other_net,
        foreign_state,
        cut_short,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no checkpoint at all"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"net": os.getcwd}, path),  # code, which is not run
    ],
    ids=["other-network", "foreign-state", "cut-short", "empty", "text", "list", "code"],
)
def test_a_checkpoint_of_another_training_is_refused(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    """In one line that says what to do."""
    path = tmp_path / "a.pt"
    spoil(path)
    with pytest.raises(DatasetError, match=r"a\.pt is of another training; remove it") as refused:
        taught(path)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The folder's name is a file's: one line, no traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written; make room"):
        taught(tmp_path / "file" / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    """Before it spoils a weight, with the step and what to change; nothing is kept of it."""

    def loss_of(net: nn.Module, batch: Batch, progress: float) -> torch.Tensor:
        return net(batch.pixels).mean() * (value if progress > 0.15 else 1.0)

    net = tiny_net()
    with pytest.raises(DatasetError, match=r"the loss of step 3 is (nan|-?inf).* lower --rate"):
        fit(net, Task(draw_of(), loss_of, lambda net: 0.0), SHORT, tmp_path / "a.pt", Console(quiet=True))
    assert all(torch.isfinite(weights).all() for weights in net.state_dict().values())
    assert not (tmp_path / "a.pt").exists()


def test_a_slope_or_a_score_that_is_no_number_is_refused_too(tmp_path: Path) -> None:
    """A root has no slope at 0 although it has a value there; a score may fail where the loss did not."""

    def rooted(net: nn.Module, batch: Batch, progress: float) -> torch.Tensor:
        return (net(batch.pixels) * 0).sum().sqrt()

    with pytest.raises(DatasetError, match="loss of step 1 is 0, its slope nan"):
        fit(tiny_net(), Task(draw_of(), rooted, lambda net: 0.0), SHORT, tmp_path / "a.pt", Console(quiet=True))
    with pytest.raises(DatasetError, match="validation score of step 3 is nan"):
        taught(tmp_path / "b.pt", score_of=lambda net: float("nan"))
    assert not (tmp_path / "b.pt").exists()


def test_area_under_roc_counts_pairs() -> None:
    """Of six pairs, four are in order and one is a tie."""
    assert area_under_roc([1, 1, 0, 0, 0], [0.9, 0.4, 0.5, 0.4, 0.1]) == pytest.approx(4.5 / 6)
    assert np.isnan(area_under_roc([1, 1], [0.2, 0.3]))


def test_the_score_of_pixels_is_pooled_and_knows_no_absent_class() -> None:
    """Mean of the Dice of defect or good, and of the mean Dice of the classes that are there; 255 counts nowhere."""
    counts = Agreement(4)
    counts.add(np.array([0, 1, 1, 2, 1], np.uint8), np.array([0, 1, 2, 2, 255], np.uint8))
    counts.add(np.array([1, 0], np.uint8), np.array([0, 2], np.uint8))
    either = 2 * 3 / (4 + 4)
    by_class = (2 * 1 / (1 + 3) + 2 * 1 / (3 + 1)) / 2
    assert pixel_score(counts) == pytest.approx((either + by_class) / 2)


def test_nothing_to_find_is_right_when_nothing_was_found() -> None:
    """Without a true defect the score is 1, or 0 for any false one."""
    clean, false, nothing = Agreement(2), Agreement(2), np.zeros(3, np.uint8)
    clean.add(nothing, nothing)
    false.add(np.array([0, 1, 0], np.uint8), nothing)
    assert (pixel_score(clean), pixel_score(false)) == (1.0, 0.0)
