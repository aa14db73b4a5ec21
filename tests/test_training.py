"""Training makes ONNX files of the engine contract: networks, losses, fitting, export, and the figures of a card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_pictures import MODELS, grey

torch = pytest.importorskip("torch", reason="training is an extra: pip install 'inline-aoi[train]'")
pytest.importorskip("openvino", reason="an export is checked with the cpu engine: pip install 'inline-aoi[cpu]'")

from click.testing import CliRunner  # noqa: E402
from rich.console import Console  # noqa: E402

from engines import open_engine  # noqa: E402
from engines.base import EngineError, EngineOptions  # noqa: E402
from engines.training.__main__ import cli  # noqa: E402
from engines.training.augment import Variation  # noqa: E402
from engines.training.cascade import Answers, Rules, find_defects, judge, stitch  # noqa: E402
from engines.training.dataset import Picture, Sample  # noqa: E402
from engines.training.export import check_export, export  # noqa: E402
from engines.training.fit import BalancedDraw, Schedule, Task, fit  # noqa: E402
from engines.training.inherit import inherit_encoder  # noqa: E402
from engines.training.losses import (  # noqa: E402
    BALANCED_PART,
    balanced_mean,
    cell_labels,
    pixel_loss,
    soft_dice_loss,
    tile_loss,
)
from engines.training.measure import Overlap, Tally, area_under_roc  # noqa: E402
from engines.training.nets import Classifier, Segmenter, parameter_count  # noqa: E402
from engines.training.tiles import IGNORED, TileShape  # noqa: E402

KINDS = ["classifier", "segmenter"]
QUIET = Console(quiet=True)


@pytest.mark.parametrize("stem_stride", [2, 4])
def test_networks_are_small_and_shaped_as_promised(stem_stride: int) -> None:
    """[N, 1, H, W] becomes [N, K] or [N, K, H, W]; both networks together stay below 4 MB of float32."""
    tiles = torch.rand(3, 1, 64, 96) * 255
    classifier, segmenter = Classifier(6, 16, stem_stride).eval(), Segmenter(6, 16, stem_stride).eval()
    assert classifier(tiles).shape == (3, 6)
    assert classifier.with_cells(tiles)[1].shape == (3, 6, 16 // stem_stride, 24 // stem_stride)
    assert segmenter(tiles).shape == (3, 6, 64, 96)
    assert 1e5 < parameter_count(classifier) < parameter_count(segmenter)
    assert parameter_count(classifier) + parameter_count(segmenter) < 1e6


def test_soft_dice_loss_equals_the_sum_by_hand() -> None:
    """1 - 2 Σ p·t / (Σ p + Σ t) for the one class present; IGNORED pixels and absent classes do not count."""
    chance = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    chance = chance.T.reshape(1, 3, 1, 3)
    labels = torch.tensor([[[0, 1, IGNORED]]])
    expected = 1 - 2 * 0.7 / ((0.25 + 0.7) + 1)
    assert soft_dice_loss(chance, labels).item() == pytest.approx(expected, rel=1e-5)
    background = torch.zeros(1, 1, 3, dtype=torch.long)
    assert soft_dice_loss(chance, background).item() == 0


def test_balanced_mean_weighs_defects_like_the_good() -> None:
    """Three good pixels weigh as much as one defect pixel, and IGNORED ones nothing."""
    each = torch.tensor([[[1.0, 2.0, 3.0, 10.0, 99.0]]])
    labels = torch.tensor([[[0, 0, 0, 2, IGNORED]]])
    assert balanced_mean(each, labels).item() == pytest.approx((2 + 10) / 2)
    assert balanced_mean(each, labels * 0).item() == pytest.approx(115 / 5)


def test_pixel_loss_is_the_sum_of_its_three_parts() -> None:
    """Plain cross-entropy, a part of the balanced one, and the Dice loss, by hand for two pixels."""
    chance = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    scores = chance.log().T.reshape(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, IGNORED]]])
    entropy = -(np.log(0.5) + np.log(0.8)) / 2  # one good and one defect pixel: balanced is the same
    dice = 1 - 2 * 0.8 / (0.5 + 0.8 + 1)
    expected = (1 + BALANCED_PART) * entropy + dice
    assert pixel_loss(scores, labels).item() == pytest.approx(expected, rel=1e-5)


def test_cells_take_the_defect_and_weigh_like_the_good() -> None:
    """A cell with any defect pixel is defective; one defective cell weighs as much as all the good ones."""
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0, 1], labels[0, 2:, 2:] = 2, IGNORED
    assert cell_labels(labels, 2).tolist() == [[[2, 0], [0, IGNORED]]]
    cells = torch.zeros(1, 3, 2, 2)
    cells[0, 2, 0, 0] = 5.0  # sure of the defect; the good cells are undecided
    sure = np.log(1 + 2 * np.exp(-5.0))
    undecided_tile = np.log(3)
    loss = tile_loss(torch.zeros(1, 3), cells, torch.tensor([2]), labels)
    assert loss.item() == pytest.approx(undecided_tile + (sure + np.log(3)) / 2, rel=1e-4)


def test_drawing_balances_classes_and_tiles() -> None:
    """Half of the draws are good, and a tile of many exposures is drawn no more often than one of few."""
    marked = grey(1, 32, 32)
    frequent = [Picture(Sample("a", "", "a", 1), marked, marked, 1)] * 30
    rare = [Picture(Sample("b", "", "b", 1), marked, marked * 0 + 2, 2)]
    good = [Picture(Sample("c", "", "c", 0), marked, marked * 0, 0)] * 100
    draw = BalancedDraw(frequent + rare + good, TileShape(32), Variation(zoom=0, tilt=0), good_share=0.5)
    classes = [tile.class_index for tile in draw.tiles(400, np.random.default_rng(0))]
    assert [abs(classes.count(index) / 400 - share) < 0.08 for index, share in enumerate((0.5, 0.25, 0.25))]
    assert 60 < classes.count(2) < 140


def small_pictures() -> list[Picture]:
    """Squares on noise: class 1, or nothing."""
    rng = np.random.default_rng(3)
    pictures = []
    for number in range(8):
        labels, pixels = grey(0, 64, 64), rng.normal(120, 4, (64, 64))
        if number % 2:
            labels[20:36, 20:36] = 1
            pixels[20:36, 20:36] -= 70
        sample = Sample(str(number), "", str(number), number % 2)
        pictures.append(Picture(sample, pixels.clip(0, 255).astype(np.uint8), labels, number % 2))
    return pictures


def test_a_short_fit_lowers_the_loss_and_keeps_the_best_weights() -> None:
    """Fitting learns, stops when nothing gets better, and leaves the weights of the best epoch."""
    torch.manual_seed(0)
    net = Segmenter(2, width=8, stem_stride=4)
    draw = BalancedDraw(small_pictures(), TileShape(64), Variation(zoom=0, tilt=0, light=0))
    losses: list[float] = []
    middles: list[float] = []

    def loss_of(batch: object) -> object:
        loss = pixel_loss(net(batch.pixels).float(), batch.labels)  # type: ignore[attr-defined]
        losses.append(loss.item())
        return loss

    def score_of() -> float:
        middles.append(net.decide.weight.sum().item())
        return 1.0 if len(middles) == 3 else 0.0

    schedule = Schedule(epochs=30, tiles=64, batch=8, patience=3, half=False)
    assert fit(net, Task(draw, loss_of, score_of), schedule, QUIET) == 1.0
    assert len(middles) == 6  # the third was the best, three more brought nothing
    assert net.decide.weight.sum().item() == pytest.approx(middles[2])
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    assert not net.training


def test_fitting_twice_gives_the_same_weights() -> None:
    """The seed decides everything: two fits end in the same weights."""

    def weights() -> object:
        torch.manual_seed(0)
        net = Classifier(2, width=8, stem_stride=4)
        draw = BalancedDraw(small_pictures(), TileShape(64), Variation())
        task = Task(draw, lambda b: tile_loss(*net.with_cells(b.pixels), b.classes, b.labels), lambda: 0.0)
        fit(net, task, Schedule(epochs=1, tiles=32, batch=8, half=False), QUIET)
        return net.decide.weight

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_what_the_engines_expect(kind: str, tmp_path: Path) -> None:
    """Names, types and shapes are those of engines.base, and the batch may change from call to call."""
    torch.manual_seed(1)
    net = Classifier(3, 8, 4) if kind == "classifier" else Segmenter(3, 8, 4)
    path = tmp_path / f"{kind}.onnx"
    export(net.eval(), kind, 64, path)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 1), np.uint8)
    check_export(net, kind, path, tiles, ("good", "a", "b"))
    ov = pytest.importorskip("openvino")
    model = ov.Core().read_model(path)
    assert model.input(0).partial_shape.to_string() == "[?,64,64,1]"
    with open_engine("cpu", path, kind, ("good", "a", "b"), EngineOptions(max_batch=5)) as engine:
        together = engine.submit(tiles).result()
        alone = [engine.submit(tiles[n : n + 1]).result() for n in range(5)]
    if kind == "classifier":
        assert (together["scores"].shape, together["scores"].dtype) == ((5, 3), np.float32)
        assert np.allclose(together["scores"].sum(1), 1, atol=1e-5)
        assert np.allclose(together["scores"], np.concatenate([a["scores"] for a in alone]), atol=1e-5)
    else:
        for name in ("labels", "confidence"):
            assert (together[name].shape, together[name].dtype) == ((5, 64, 64), np.uint8)
        assert together["labels"].max() <= 2
        assert together["confidence"].min() >= 84  # the winner of three has at least a third
        same = np.concatenate([a["labels"] for a in alone]) == together["labels"]
        assert same.mean() > 0.999


def test_an_export_of_other_weights_is_refused(tmp_path: Path) -> None:
    """The check compares answers, not only shapes."""
    torch.manual_seed(1)
    exported, other = Classifier(3, 8, 4).eval(), Classifier(3, 8, 4).eval()
    export(exported, "classifier", 64, tmp_path / "classifier.onnx")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)
    with pytest.raises(EngineError, match="differs from the network"):
        check_export(other, "classifier", tmp_path / "classifier.onnx", tiles, ("good", "a", "b"))


def test_a_segmenter_can_start_from_a_classifier(tmp_path: Path) -> None:
    """The inherited encoder gives the classifier's features; another width is refused."""
    torch.manual_seed(1)
    classifier, segmenter = Classifier(3, 8, 4), Segmenter(3, 8, 4)
    tiles = classifier.normalise(torch.rand(6, 1, 64, 64) * 255)
    for _ in range(40):
        classifier.encoder(tiles)  # lets the kept statistics become those of these tiles
    export(classifier.eval(), "classifier", 64, tmp_path / "classifier.onnx")
    before = segmenter.eval().encoder(tiles)[-1]
    inherit_encoder(segmenter.train().encoder, tmp_path / "classifier.onnx", tiles)
    expected, inherited = classifier.encoder(tiles)[-1], segmenter.eval().encoder(tiles)[-1]
    assert not torch.allclose(before, expected, atol=0.1)
    assert torch.allclose(inherited, expected, atol=0.02)
    with pytest.raises(EngineError, match="same width"):
        inherit_encoder(Segmenter(3, 16, 4).encoder, tmp_path / "classifier.onnx", tiles)


def test_area_under_roc_counts_pairs() -> None:
    """Of six pairs, four are in order and one is a tie."""
    assert area_under_roc([1, 1, 0, 0, 0], [0.9, 0.4, 0.5, 0.4, 0.1]) == pytest.approx(4.5 / 6)
    assert np.isnan(area_under_roc([1, 1], [0.2, 0.3]))


def test_dice_is_pooled_over_pictures() -> None:
    """2·both / (predicted + true) over all pixels; the right place with the wrong class is not found."""
    overlap = Overlap(3)
    overlap.add(np.array([0, 1, 1, 2], np.uint8), np.array([0, 1, 2, 2], np.uint8))
    overlap.add(np.array([1, 0], np.uint8), np.array([IGNORED, 2], np.uint8))
    assert overlap.dice()[1:] == pytest.approx([2 / 3, 1 / 2])
    assert overlap.pooled_dice() == pytest.approx(2 * 2 / (3 + 4))
    assert overlap.mean_dice() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_escapes_and_overkill_leave_review_aside() -> None:
    """Defective judged OK is an escape, good judged NG is overkill; REVIEW is neither."""
    tally = Tally(("good", "a", "b"))
    for class_index, judgement in [(0, "OK"), (0, "NG"), (0, "REVIEW"), (1, "OK"), (1, "NG"), (2, "REVIEW")]:
        tally.add(class_index, judgement)
    assert tally.escapes() == (1, 3)
    assert tally.overkill() == (1, 3)


def answers(defect: list[float]) -> Answers:
    """Two 8×8 tiles that share columns 4 to 7 of an 8×12 picture: all class 1 left, all class 2 right."""
    labels = np.stack([grey(1, 8, 8), grey(2, 8, 8)])
    confidence = np.stack([grey(255, 8, 8), grey(204, 8, 8)])
    return Answers((8, 12), [(0, 0), (0, 4)], np.array(defect, np.float32), labels, confidence, 1.0)


def test_stitching_gives_each_tile_its_half_of_the_overlap() -> None:
    """In the shared columns each half belongs to the tile whose middle is nearer; good tiles stay empty."""
    labels, _ = stitch(answers([0.5, 0.5]), 0.1)
    assert labels.shape == (8, 12)
    assert labels[0].tolist() == labels[7].tolist()
    assert labels[3].tolist() == [1] * 6 + [2] * 6
    labels, _ = stitch(answers([0.05, 0.5]), 0.1)
    assert labels[3].tolist() == [0] * 6 + [2] * 6


def test_rules_judge_areas_by_size_and_score() -> None:
    """An area counts when it is large and sure enough; a sure classifier without one asks for a person."""
    given = answers([0.95, 0.5])
    planes, classes = stitch(given, 0.1), ("good", "a", "b")
    found = find_defects(*planes, Rules(min_score=0.9), classes)
    assert [(defect.class_index, defect.area, defect.score) for defect in found] == [(1, 48, 1.0)]
    assert judge(given, found, Rules()) == "NG"
    none = find_defects(*planes, Rules(min_score=0.9, min_area=60), classes)
    assert judge(given, none, Rules(review_above=0.9)) == "REVIEW"
    assert judge(given, none, Rules(review_above=0.99)) == "OK"


def test_split_train_and_evaluate_from_the_command_line(indexed_folder: Path, tmp_path: Path) -> None:
    """Four commands lead from a folder to a measured pair of ONNX files."""
    out = tmp_path / "model"
    base = ["--data", str(indexed_folder)]
    short = ["--split", str(out), "--out", str(out), "--tile", "64", "--epochs", "1", "--tiles", "16"]
    short += ["--batch", "8", "--width", "8", "--stem-stride", "4"]
    runner = CliRunner()
    for command in (
        ["split", *base, "--out", str(out), "--held-out", "0", "--validation", "0.4"],
        ["classifier", *base, *short],
        ["segmenter", *base, *short],
    ):
        result = runner.invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    result = runner.invoke(cli, ["evaluate", *base, "--model", str(out), "--tile", "64"], catch_exceptions=False)
    assert "escapes" in result.output
    assert "| particle | 6 |" in result.output
    assert sum(path.stat().st_size for path in out.glob("*.onnx")) < 4e6
    result = runner.invoke(cli, ["evaluate", *base, "--model", str(out), "--tile", "64", "--sweep"])
    assert "| 0.01 | 0.5 | 10 |" in result.output


@pytest.mark.parametrize("name", ["magnetic-tile", "panel"])
def test_shipped_pairs_are_small_and_their_card_names_them(name: str) -> None:
    """A pair stays below 4 MB, opens on the default engine, and the card holds the hash of each file."""
    folder = MODELS / name
    card = (folder / "card.md").read_text("utf-8")
    classes = ("good", *"abcde")
    for kind in KINDS:
        with open_engine("cpu", folder / f"{kind}.onnx", kind, classes, EngineOptions(max_batch=1)) as engine:
            assert engine.spec.model_hash in card
    assert sum((folder / f"{kind}.onnx").stat().st_size for kind in KINDS) < 4e6
