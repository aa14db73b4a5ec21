"""`aoi evaluate`: what is measured is what runs, every figure by hand, and no bad picture ends it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fake_recipe, make_frame
from dataset_files import shared
from training_pictures import grey, save, with_spot

from engines.datasets import open_dataset
from engines.datasets.labelled import IGNORED, Box, Dataset, Options, Picture, Problem, Sample, Truth
from pipeline.class_names import match_names
from pipeline.errors import RecipeError
from pipeline.evaluate_command import values_of
from pipeline.evaluation import Evaluation, Job, Settings, evaluate, try_rules
from pipeline.evaluation_json import as_json
from pipeline.evaluation_page import page
from pipeline.examine import Examined, examine, judged
from pipeline.inspector import Inspector, prepare
from pipeline.messages import Frame, Verdict
from pipeline.opening import open_engines
from pipeline.operating_point import ACCEPTED, BROKEN, NOTHING, Grid, Rate
from pipeline.preprocess import plan_tiles
from pipeline.recipe import Recipe, load_recipe, parse_recipe
from pipeline.regions_by_rule import regions_by_rule, with_rules
from pipeline.stream import Delivery
from pipeline.worst_misses import Miss, WorstMisses


def inspected(recipe: Recipe, pictures: list[np.ndarray]) -> list[Verdict]:
    """Verdicts of the line's own inspector, in order."""
    with open_engines(recipe) as engines:
        inspector, verdicts = Inspector(recipe, engines), {}
        for number, pixels in enumerate(pictures):
            form = "bgr8" if pixels.ndim == 3 else "mono8"
            shape = {"height": pixels.shape[0], "width": pixels.shape[1]}
            frame = replace(make_frame(number), pixels=pixels, pixel_format=form, **shape)
            inspector.add(prepare(delivered(frame), recipe, inspector.spec), time.monotonic_ns())
        end = time.monotonic() + 60
        while inspector.busy and time.monotonic() < end:
            verdicts |= {d.frame.sequence: v for d, v in inspector.step(time.monotonic_ns())}
    return [verdicts[number] for number in range(len(pictures))]


def delivered(frame: Frame) -> Delivery:
    return Delivery(frame, frame.frame_id, b"", frame.payload_bytes, time.time_ns())


def dataset_of(
    folder: Path, pictures: dict[str, np.ndarray], labels: dict[str, np.ndarray] | None = None,
    classes: tuple[str, ...] = ("good", "scratch"), boxes: dict[str, tuple[Box, ...]] | None = None,
) -> Dataset:  # fmt: skip
    """A data set of these pictures on disk; a group is the name up to its first `-`."""
    labels = labels or {name: np.where(pixels >= 250, 1, 0).astype(np.uint8) for name, pixels in pictures.items()}
    for name, pixels in pictures.items():
        save(folder / name, pixels)

    def truth_of(sample: Sample, shape: tuple[int, int]) -> Truth:
        known = labels[sample.image]
        marked = known[(known > 0) & (known != IGNORED)]
        return Truth(int(marked[0]) if marked.size else 0, known, boxes and boxes[sample.image])

    samples = tuple(Sample(name, "", name.partition("-")[0], None) for name in pictures)
    return Dataset(folder, "test", classes, samples, truth_of)


def evaluated(recipe: Recipe, dataset: Dataset, settings: Settings | None = None) -> Evaluation:
    return evaluate([Job(recipe, dataset, dataset.samples)], settings or Settings())


# ------------------------------------------------------- what is measured is what runs


@pytest.mark.parametrize("mode", ["cascade", "classify", "segment"])
@pytest.mark.parametrize("tables", [{}, {"roi": [10, 0, 90, 80], "scale": 0.5}, {"contrast": "equalize"}])
def test_judged_as_the_inspector_judges(tmp_path: Path, mode: str, tables: dict[str, object]) -> None:
    """Small, tiled, cut out, shrunk: judgement, reason, defects and masks are the line's own."""
    recipe = fake_recipe(tmp_path, mode, picture=tables, judge={"min_area_px": 10, "ng_above": 0.5})
    pictures = {f"{n}.png": with_spot(130, 12 * n, 1 + n) for n in range(9)}
    dataset = dataset_of(tmp_path / "data", pictures)
    with open_engines(recipe) as engines:
        answers = list(examine(recipe, engines, dataset, dataset.samples))
    for answer, verdict in zip(answers, inspected(recipe, list(pictures.values())), strict=True):
        assert isinstance(answer, Examined)
        judgement, reason, findings = judged(answer, recipe)
        assert (judgement, reason, findings.defects) == (verdict.judgement, verdict.reason, verdict.defects)
        assert findings.masks.keys() == verdict.masks.keys()
        assert all(np.array_equal(findings.masks[name], verdict.masks[name]) for name in findings.masks)


def test_real_recipe_is_judged_as_on_the_line() -> None:
    """A shipped recipe on real pictures, one of every class."""
    pytest.importorskip("openvino", reason="the shipped recipe runs on the cpu engine; pip install '.[cpu]'")
    folder = shared("magnetic-tile")
    shipped = load_recipe("magnetic-tile")
    recipe = replace(
        shipped,
        batching=replace(shipped.batching, max_batch=2),
        judge=replace(shipped.judge, ng_above=0.97),
    )
    dataset = open_dataset(folder, Options(good="free"), "class-folders")
    samples = [next(s for s in dataset.samples if s.class_index == index) for index in range(len(dataset.classes))]
    with open_engines(recipe) as engines:
        answers = [a for a in examine(recipe, engines, dataset, samples) if isinstance(a, Examined)]
    assert len(answers) == len(samples)
    for answer, verdict in zip(answers, inspected(recipe, [a.picture.pixels for a in answers]), strict=True):
        judgement, reason, findings = judged(answer, recipe)
        assert (judgement, reason) == (verdict.judgement, verdict.reason)
        assert findings.defects == verdict.defects


def test_recipe_with_a_golden_template_is_judged_as_on_the_line(tmp_path: Path) -> None:
    """The recipe's own template, or the picture's where the data gives one; a wrong one is a problem."""
    board = np.kron(np.random.default_rng(2).integers(40, 200, (16, 16)), np.ones((4, 4))).astype(np.uint8)
    save(tmp_path / "golden.png", board)
    recipe = fake_recipe(tmp_path, model='{"channels": 3}', template={"file": "golden.png", "align": "shift"})
    bad = board.copy()
    bad[20:26, 30:40] = 255
    pictures = {"bad.png": bad, "good.png": board, "strange.png": grey(90, 64, 64)}
    dataset = dataset_of(tmp_path / "data", pictures)
    save(tmp_path / "data" / "own.png", bad)
    samples = [*dataset.samples, replace(dataset.samples[0], reference="own.png")]
    with open_engines(recipe) as engines:
        *answers, strange, own = list(examine(recipe, engines, dataset, samples))
    verdicts = inspected(recipe, list(pictures.values()))
    for answer, verdict in zip(answers, verdicts[:2], strict=True):
        assert isinstance(answer, Examined)
        assert judged(answer, recipe)[:2] == (verdict.judgement, verdict.reason)
    assert isinstance(strange, Problem)
    assert (verdicts[2].judgement, verdicts[2].detail) == ("UNINSPECTED", strange.reason)
    assert isinstance(own, Examined)


def seen(labels: np.ndarray, scores: list[list[float]], confidence: int = 255) -> Examined:
    """A picture of two tiles, side by side, whose answers are given."""
    plan = plan_tiles(labels.shape[0], labels.shape[1], labels.shape[0], labels.shape[1] // 2, 0)
    picture = Picture(Sample("a.png", "", "a", None), labels, labels, 0)
    return Examined(picture, plan, np.array(scores, np.float32), labels, np.full(labels.shape, confidence, np.uint8))


def test_classifier_gates_tile_by_tile(tmp_path: Path) -> None:
    """The same answer at any threshold: only suspect tiles keep their labels; the suspicion is the worst tile's."""
    examined = seen(np.ones((4, 8), np.uint8), [[0.9, 0.1], [0.25, 0.75]])
    assert examined.p_defect == 0.75
    assert examined.worst_scores == [0.25, 0.75]
    for threshold, columns in ((0.05, range(8)), (0.5, range(4, 8)), (0.9, ())):
        recipe = with_rules(fake_recipe(tmp_path), threshold, 0.0, 1)
        labels, confidence = examined.gated(recipe)
        assert np.flatnonzero(labels.any(axis=0)).tolist() == list(columns)
        assert np.array_equal(labels > 0, confidence > 0)


@pytest.mark.parametrize("accept", [[], [{"class": "scratch", "max_area_px": 12, "max_count": 2}]])
def test_every_rule_of_the_grid_means_what_it_means_on_the_line(tmp_path: Path, accept: list[object]) -> None:
    """For random regions, tile scores and rules, the grid's state is what `judge` makes of the recipe."""
    rng = np.random.default_rng(4)
    grid = Grid((0.1, 0.5, 0.9), (0.0, 0.5, 0.75), (1, 4, 9, 16), (1.01,))
    recipe = fake_recipe(tmp_path, accept=accept)
    met = set()
    for _ in range(12):
        labels = np.kron(rng.random((6, 12)) < 0.25, np.ones((3, 3))).astype(np.uint8)
        good = rng.random(2)
        examined = seen(labels, [[p, 1 - p] for p in good])
        examined = replace(examined, confidence=rng.integers(100, 256, labels.shape).astype(np.uint8))
        states = regions_by_rule(examined, recipe, grid)
        for t, s, a in np.ndindex(*states.shape):
            tried = with_rules(recipe, grid.thresholds[t], grid.min_scores[s], grid.min_areas[a])
            judgement, _, findings = judged(examined, tried)
            expected = BROKEN if judgement == "NG" else ACCEPTED if findings.defects else NOTHING
            assert states[t, s, a] == expected
            met.add(expected)
    assert met == ({BROKEN, ACCEPTED, NOTHING} if accept else {BROKEN, NOTHING})


# ----------------------------------------------------------------------------- figures


@pytest.fixture
def few(tmp_path: Path) -> Dataset:
    """Part a: found, and missed at another exposure; part b: good, and killed at another; part c: good."""
    pictures = {"a-0.png": with_spot(), "a-1.png": with_spot(value=200), "b-0.png": grey(100, 64, 64)}
    pictures |= {"b-1.png": with_spot(side=4), "c-0.png": grey(100, 64, 64)}
    labels = {name: grey(0, 64, 64) for name in pictures}
    labels["a-0.png"][20:28, 20:32] = 1  # half as wide again as what is found
    labels["a-1.png"][20:28, 20:28] = 1
    return dataset_of(tmp_path / "data", pictures, labels)


def test_figures_by_hand(tmp_path: Path, few: Dataset) -> None:
    """1 of 2 escapes, 1 of 3 overkilled; 64 px both, 64 + 16 called, 96 + 64 true; parts count once."""
    evaluation = evaluated(fake_recipe(tmp_path), few)
    facts = as_json(evaluation, try_rules(evaluation))
    assert (facts["n"], facts["parts"]) == (5, 3)
    assert (facts["escape"], facts["overkill"], facts["review"]) == (1 / 2, 1 / 3, 0)
    assert facts["dice"] == facts["dice_class_aware"] == pytest.approx(2 * 64 / (80 + 160))
    assert facts["miou"] == facts["iou_per_class"]["scratch"] == pytest.approx(64 / (80 + 160 - 64))
    assert facts["accuracy"] == facts["accuracy_good_bad"] == 3 / 5
    assert facts["confusion"]["good"] == {"good": 2, "scratch": 1, "REVIEW": 0}
    assert facts["recall_per_class"] == {"good": 2 / 3, "scratch": 1 / 2}
    assert facts["n_per_class"] == {"good": 3, "scratch": 2}
    assert facts["escape_parts"] == [1, 1]
    assert facts["overkill_parts"] == [1, 2]
    assert facts["escape_interval"] == pytest.approx([0.0126, 0.9874], abs=1e-4)
    assert facts["dice_image_mean_all_empty"] == pytest.approx(3 / 5)
    assert facts["dice_image_mean"] == pytest.approx((2 * 64 / (64 + 96) + 0 + 1 + 0 + 1) / 5)
    assert "f1" not in facts
    json.dumps(facts, allow_nan=False)


def test_gate_by_hand(tmp_path: Path, few: Dataset) -> None:
    """The classifier sends on a-0 and b-1: one of two defective pictures, one in vain; a classifier alone is none."""
    evaluation = evaluated(fake_recipe(tmp_path, "cascade"), few)
    gate = as_json(evaluation, tried := try_rules(evaluation))["gate"]
    assert [point["threshold"] for point in gate] == sorted({point["threshold"] for point in gate})
    assert {(point["recall"], point["precision"], point["sent"]) for point in gate} == {(1 / 2, 1 / 2, 2 / 5)}
    assert "as a gate" in page(evaluation, tried, None)
    for mode in ("classify", "segment"):
        evaluation = evaluated(fake_recipe(tmp_path, mode), few)
        assert as_json(evaluation, tried := try_rules(evaluation))["gate"] == []
        assert "as a gate" not in page(evaluation, tried, None)


def test_chosen_rules_are_better_and_hold(tmp_path: Path, few: Dataset) -> None:
    """An area between the false alarm's 16 px and the defect's 64 px; a recipe with them does as promised."""
    recipe = fake_recipe(tmp_path)
    tried = try_rules(evaluated(recipe, few, Settings(escape_target=0.5)))
    assert tried.chosen is not None
    rules = tried.chosen.rules
    assert 16 < rules.min_area_px <= 64
    assert (tried.chosen.escape, tried.chosen.overkill) == (Rate(1, 2), Rate(0, 3))
    assert tried.chosen_parts == Rate(1, 1)
    again = evaluated(with_rules(recipe, rules.threshold, rules.min_score, rules.min_area_px, rules.ng_above), few)
    assert (again.escape, again.overkill) == (tried.chosen.escape, tried.chosen.overkill)


def test_review_is_neither_escape_nor_overkill(tmp_path: Path, few: Dataset) -> None:
    """Suspects whose regions are all noise go to a person: right for neither accuracy."""
    recipe = fake_recipe(tmp_path, judge={"min_area_px": 20, "review_above": 0.9})
    facts = as_json(evaluation := evaluated(recipe, few), try_rules(evaluation))
    assert (facts["escape"], facts["overkill"], facts["reviews"]) == (1 / 2, 0, 1)
    assert facts["confusion"]["good"] == {"good": 2, "scratch": 0, "REVIEW": 1}
    assert facts["accuracy_good_bad"] == 3 / 5


def test_classifier_alone_has_no_pixels(tmp_path: Path, few: Dataset) -> None:
    """Null, not 0: it never said where; a threshold can be chosen all the same."""
    evaluation = evaluated(fake_recipe(tmp_path, "classify"), few)
    facts = as_json(evaluation, try_rules(evaluation))
    assert facts["dice"] is facts["miou"] is facts["iou_per_class"]["scratch"] is None
    assert (facts["escape"], facts["overkill"], facts["accuracy"]) == (1 / 2, 1 / 3, 3 / 5)
    assert facts["chosen"]["escape"] == 1 / 2


def test_boxes_are_counted_where_they_are_the_truth(tmp_path: Path) -> None:
    """One found well, one found too small, one missed: precision ½, recall ⅓."""
    pictures = {"a.png": with_spot(), "b.png": with_spot(), "c.png": grey(100, 64, 64)}
    truth = {"a.png": (Box(20, 20, 8, 9, 1),), "b.png": (Box(20, 20, 30, 30, 1),), "c.png": (Box(0, 0, 5, 5, 1),)}
    evaluation = evaluated(fake_recipe(tmp_path), dataset_of(tmp_path / "data", pictures, boxes=truth))
    facts = as_json(evaluation, try_rules(evaluation))
    assert (facts["precision"], facts["recall"], facts["iou_threshold"]) == (1 / 2, 1 / 3, 0.33)
    assert facts["f1"] == pytest.approx(2 / 5)
    assert facts["map"] == facts["ap_per_class"]["scratch"] == pytest.approx(1 / 3 * 1 / 2)


def test_rules_by_boxes_where_every_picture_is_defective(tmp_path: Path) -> None:
    """Beside each 64 px defect a speck of 16 px: F1 ⅔ with it, 1 without; a good picture weighs escapes instead."""
    speckled = with_spot()
    speckled[50:54, 50:54] = 255
    truth = (Box(20, 20, 8, 8, 1),)
    pictures = {"a.png": speckled, "b.png": speckled}
    data = dataset_of(tmp_path / "data", pictures, boxes=dict.fromkeys(pictures, truth))
    recipe = fake_recipe(tmp_path)
    tried = try_rules(evaluation := evaluated(recipe, data))
    assert evaluation.boxes.f1 == pytest.approx(2 / 3)
    assert tried.chosen is None
    assert tried.boxes is not None
    assert (tried.boxes.f1, tried.boxes.precision, tried.boxes.recall) == (1, 1, 1)
    assert 16 < tried.boxes.min_area_px <= 64
    assert as_json(evaluation, tried)["chosen_by_boxes"]["min_area_px"] == tried.boxes.min_area_px
    values = values_of(recipe.mode, tried)
    again = evaluated(replace(recipe, judge=replace(recipe.judge, **values["judge"])), data)
    assert again.boxes.f1 == 1
    good = dataset_of(
        tmp_path / "more",
        {**pictures, "c.png": grey(100, 64, 64)},
        boxes={**dict.fromkeys(pictures, truth), "c.png": ()},
    )
    assert try_rules(evaluated(recipe, good)).boxes is None


def test_bad_pictures_are_told_and_end_nothing(tmp_path: Path) -> None:
    """A broken file, a picture below the recipe's size, one that breaks the engine: the neighbours are judged."""
    poison = with_spot()
    poison[0, 0] = 7
    pictures = {"a.png": with_spot(), "broken.png": with_spot(), "small.png": grey(100, 20, 20)}
    pictures |= {"poison.png": poison, "z.png": grey(100, 64, 64)}
    dataset = dataset_of(tmp_path / "data", pictures)
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG no more")
    recipe = fake_recipe(tmp_path, model='{"poison": 7}', picture={"min_size": [32, 32]})
    seen_progress: list[tuple[int, int]] = []
    evaluation = evaluate([Job(recipe, dataset, dataset.samples)], Settings(), lambda *at: seen_progress.append(at))
    assert [row.image for row in evaluation.rows] == ["a.png", "z.png"]
    assert {problem.path for problem in evaluation.problems} == {"broken.png", "small.png", "poison.png"}
    assert all(problem.reason for problem in evaluation.problems)
    assert seen_progress == [(done, 5) for done in range(1, 6)]
    assert len(as_json(evaluation, try_rules(evaluation))["problems"]) == 3


def test_nothing_examined_is_no_figure(tmp_path: Path) -> None:
    """Every picture broken: nulls and the reasons, no division by zero."""
    dataset = dataset_of(tmp_path / "data", {"a.png": with_spot()})
    (tmp_path / "data" / "a.png").write_bytes(b"")
    evaluation = evaluated(fake_recipe(tmp_path), dataset)
    facts = as_json(evaluation, try_rules(evaluation))
    assert (facts["n"], facts["escape"], facts["accuracy"], facts["chosen"]) == (0, None, None, None)
    assert "a.png" in page(evaluation, try_rules(evaluation), None)


def test_folds_are_pooled(tmp_path: Path, few: Dataset) -> None:
    """Two recipes, each with its own pictures, give the figures of all of them; classes must agree."""
    recipe = fake_recipe(tmp_path)
    jobs = [Job(recipe, few, few.samples[:2]), Job(replace(recipe, name="other"), few, few.samples[2:])]
    pooled, whole = evaluate(jobs, Settings()), evaluated(recipe, few)
    both = [as_json(each, try_rules(each)) for each in (pooled, whole)]
    assert len(both[0].pop("recipes")) == 1 + len(both[1].pop("recipes"))
    assert both[0] == both[1]
    assert not pooled.remarks
    twice = evaluate([jobs[0], Job(recipe, few, few.samples)], Settings())
    assert twice.remarks == ["2 pictures are judged by more than one recipe: these are no folds"]
    strange = replace(recipe, segmenter=replace(recipe.segmenter, classes=("good", "dent")))
    with pytest.raises(RecipeError, match="in mode or classes"):
        evaluate([jobs[0], Job(strange, few, few.samples)], Settings())


# --------------------------------------------------------------------------- class names


def recipe_knowing(*defects: str) -> Recipe:
    stage = {"file": "net", "classes": ["ok", *defects]}
    return parse_recipe({"name": "r", "classifier": stage, "segmenter": stage})


def test_classes_are_matched_by_name() -> None:
    """Whatever their order and capitals; one that a side lacks is told and never right."""
    names = match_names(("good", "pit", "crack", "dent"), recipe_knowing("Crack", "pit", "spur"))
    assert names.classes == ("good", "pit", "crack", "dent", "spur")
    assert names.of_segmenter[:4].tolist() == [0, 2, 1, 4]
    assert names.of_data[:4].tolist() == [0, 1, 2, 3]
    assert names.of_data[IGNORED] == IGNORED
    assert names.of_name == {"Crack": 2, "pit": 1, "spur": 4}
    assert [word in " ".join(names.remarks) for word in ("dent", "spur", "crack")] == [True, True, False]


@pytest.mark.parametrize(
    ("data", "defects"), [(("good", "pit", "crack"), ("defect",)), (("good", "defect"), ("pit", "crack"))]
)
def test_one_kind_of_defect_is_compared_as_defective_or_good(data: tuple[str, ...], defects: tuple[str, ...]) -> None:
    """Where either side does not tell classes apart; and that is told."""
    names = match_names(data, recipe_knowing(*defects))
    assert names.classes == ("good", "defect")
    assert set(names.of_name.values()) == {1}
    assert names.of_data[: len(data)].tolist() == [0] + [1] * (len(data) - 1)
    assert "not told apart" in names.remarks[0]


def test_two_class_recipe_on_data_of_many_classes(tmp_path: Path) -> None:
    """Found is found whatever the data calls it; the data's classes are still counted apart."""
    pictures = {"a.png": with_spot(), "b.png": with_spot(), "c.png": grey(100, 64, 64)}
    labels = {name: np.where(pixels >= 250, 1, 0).astype(np.uint8) for name, pixels in pictures.items()}
    labels["b.png"] *= 2
    evaluation = evaluated(
        fake_recipe(tmp_path), dataset_of(tmp_path / "data", pictures, labels, ("good", "pit", "dent"))
    )
    facts = as_json(evaluation, try_rules(evaluation))
    assert (facts["dice"], facts["dice_class_aware"], facts["accuracy"]) == (1, 1, 1)
    assert facts["found_per_class"] == {"good": 1, "pit": 1, "dent": 1}


# ---------------------------------------------------------------- worst misses and page


def test_escapes_come_before_overkill_before_outlines() -> None:
    """The escape that looked best first, the overkill that looked worst, then the least Dice; faultless is no miss."""
    empty = grey(0, 8, 8)

    def miss(image: str, wrong: str, p: float, dice: float | None = None) -> Miss:
        return Miss(wrong, image, "crack", "OK", p, dice, empty, empty, empty)

    worst = WorstMisses(5)
    for each in (
        miss("e", "", 0.9, 0.4), miss("b", "escape", 0.3), miss("x", "", 0.9, 1.0), miss("d", "overkill", 0.6),
        miss("a", "escape", 0.1), miss("f", "", 0.9, 0.8), miss("y", "", 0.0), miss("c", "overkill", 0.9),
    ):  # fmt: skip
        worst.offer(each)
    assert "".join(each.image for each in worst.kept) == "abcde"


def test_page_shows_the_misses_and_runs_nothing(tmp_path: Path) -> None:
    """Names are text and no markup; everything lies in the page."""
    name = "<script>alert(1)&.png"
    pictures = {name: with_spot(value=200), "b.png": with_spot(side=4)}
    labels = {name: np.where(pictures[name] == 200, 1, 0).astype(np.uint8), "b.png": grey(0, 64, 64)}
    evaluation = evaluated(fake_recipe(tmp_path), dataset_of(tmp_path / "data", pictures, labels))
    text = page(evaluation, try_rules(evaluation), b"png")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&amp;.png" in text
    assert text.count("<figure>") == 2
    assert "http" not in text
    assert text.index("class=escape") < text.index("class=overkill")
