"""From labels and scores to defects with their sizes, and from defects to a judgement by the recipe's rules."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import rle
from pipeline.messages import Defect
from pipeline.postprocess import audited, find_defects, judge, judge_scores
from pipeline.recipe import Recipe, parse_recipe

CLASSES = ["good", "scratch", "pit"]


def recipe_with(accept: list[dict[str, Any]] | None = None, **tables: Any) -> Recipe:
    model = {"file": "net", "classes": CLASSES}
    stages = {"classifier": model, "segmenter": model}
    return parse_recipe({"name": "r", "mode": "segment", **stages, "accept": accept or [], **tables})


def labels_with(*regions: tuple[int, int, int, int, int], shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Label image with rectangles (label, x, y, width, height)."""
    labels = np.zeros(shape, np.uint8)
    for label, x, y, width, height in regions:
        labels[y : y + height, x : x + width] = label
    return labels


def sure(labels: np.ndarray, confidence: int = 255) -> np.ndarray:
    return np.full(labels.shape, confidence, np.uint8)


def defect(name: str = "pit", x: float = 5, y: float = 5, area: int = 4, length: float = 0.0) -> Defect:
    return Defect(class_name=name, score=1.0, bbox=(0, 0, 1, 1), area_px=area, centroid=(x, y), length_mm=length)


# --------------------------------------------------------------------- defects


def test_region_becomes_a_defect_with_its_sizes() -> None:
    """Place, area, centre and confidence are those of the pixels; mm come from the recipe's µm per pixel."""
    labels = labels_with((1, 10, 20, 8, 3))
    found = find_defects(labels, sure(labels, 204), recipe_with(optics={"um_per_px": 10}))
    (scratch,) = found.defects
    assert (scratch.class_name, scratch.bbox, scratch.area_px) == ("scratch", (10, 20, 8, 3), 24)
    assert scratch.centroid == (13.5, 21.0)
    assert scratch.score == pytest.approx(0.8, abs=1e-4)
    assert scratch.area_mm2 == pytest.approx(24 * 0.01 * 0.01)
    assert (scratch.length_mm, scratch.width_mm) == (pytest.approx(0.08), pytest.approx(0.03))
    assert found.mask_shape == (40, 60)
    assert np.array_equal(rle.decode(found.masks["scratch"], found.mask_shape), labels == 1)


def test_length_follows_a_slanted_defect() -> None:
    """The smallest enclosing rectangle is turned with it: a diagonal scratch is longer than its box is wide."""
    labels = np.zeros((60, 60), np.uint8)
    for i in range(40):
        labels[10 + i, 10 + i] = 1
    (scratch,) = find_defects(labels, sure(labels), recipe_with(optics={"um_per_px": 1000})).defects
    assert scratch.length_mm == pytest.approx(39 * 2**0.5 + 1, abs=0.1)
    assert scratch.width_mm == pytest.approx(1, abs=0.1)


def test_without_pixel_size_millimetres_are_not_known() -> None:
    """They are 0, and a single pixel is a defect like any other."""
    labels = labels_with((2, 59, 39, 1, 1))
    (pit,) = find_defects(labels, sure(labels), recipe_with()).defects
    assert (pit.bbox, pit.area_px, pit.centroid) == ((59, 39, 1, 1), 1, (59.0, 39.0))
    assert (pit.area_mm2, pit.length_mm, pit.width_mm) == (0, 0, 0)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    """8-neighbourhood: a diagonal line is one scratch, not many."""
    labels = labels_with((1, 5, 5, 2, 2), (1, 7, 7, 2, 2), (1, 20, 20, 1, 1))
    assert sorted(d.area_px for d in find_defects(labels, sure(labels), recipe_with()).defects) == [1, 8]


def test_touching_regions_of_two_classes_stay_apart() -> None:
    """Each class has its own regions and its own mask."""
    labels = labels_with((1, 5, 5, 4, 4), (2, 9, 5, 3, 4))
    found = find_defects(labels, sure(labels), recipe_with())
    assert [(d.class_name, d.area_px) for d in found.defects] == [("scratch", 16), ("pit", 12)]
    assert np.array_equal(rle.decode(found.masks["pit"], found.mask_shape), labels == 2)


def test_noise_is_neither_listed_nor_in_the_mask() -> None:
    """Below the smallest area or the least confidence; at the limit a region counts."""
    labels = labels_with((1, 0, 0, 2, 2), (1, 10, 10, 5, 1), (1, 20, 20, 5, 5))
    confidence = sure(labels)
    confidence[20:25, 20:25] = 127  # below 0.5
    recipe = recipe_with(judge={"min_area_px": 5, "min_score": 0.5})
    found = find_defects(labels, confidence, recipe)
    assert [d.bbox for d in found.defects] == [(10, 10, 5, 1)]
    assert np.array_equal(rle.decode(found.masks["scratch"], found.mask_shape), labels_with((1, 10, 10, 5, 1)) == 1)
    assert find_defects(labels_with((1, 0, 0, 2, 2)), confidence, recipe).masks == {}


def test_clean_frame_has_no_defects() -> None:
    """Background only: nothing found, but the frame's size is known."""
    labels = labels_with()
    found = find_defects(labels, sure(labels), recipe_with())
    assert (found.defects, dict(found.masks), found.mask_shape) == ((), {}, (40, 60))


@given(st.integers(0, 2**32))
def test_defects_and_masks_say_the_same(seed: int) -> None:
    """Areas add up to the mask's pixels, boxes hold their centres, whatever the shapes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=(17, 23), p=(0.6, 0.3, 0.1)).astype(np.uint8)
    found = find_defects(labels, sure(labels), recipe_with())
    for name in ("scratch", "pit"):
        mask = labels == CLASSES.index(name)
        of_class = [d for d in found.defects if d.class_name == name]
        assert sum(d.area_px for d in of_class) == np.count_nonzero(mask)
        if of_class:
            assert np.array_equal(rle.decode(found.masks[name], found.mask_shape), mask)
    for d in found.defects:
        x, y, width, height = d.bbox
        assert x <= d.centroid[0] <= x + width - 1
        assert y <= d.centroid[1] <= y + height - 1


# -------------------------------------------------------------------- judgement


def test_any_defect_is_ng_without_a_rule() -> None:
    """NG names the class; nothing found is OK."""
    assert judge([defect("pit")], 1.0, recipe_with()) == ("NG", "pit")
    assert judge([], 0.0, recipe_with()) == ("OK", "")


def test_rule_accepts_its_class_only() -> None:
    """A small pit may be; a scratch beside it may not."""
    recipe = recipe_with([{"class": "pit", "max_area_px": 4}])
    assert judge([defect("pit", area=4)], 1.0, recipe) == ("OK", "")
    assert judge([defect("pit", area=5)], 1.0, recipe) == ("NG", "pit")
    assert judge([defect("pit"), defect("scratch", area=1)], 1.0, recipe) == ("NG", "scratch")


def test_rule_counts() -> None:
    """As many as allowed, and not one more; 0 allows none."""
    recipe = recipe_with([{"class": "pit", "max_area_px": 4, "max_count": 2}])
    assert judge([defect()] * 2, 1.0, recipe) == ("OK", "")
    assert judge([defect()] * 3, 1.0, recipe) == ("NG", "pit")
    none = recipe_with([{"class": "pit", "max_area_px": 4, "max_count": 0}])
    assert judge([defect()], 1.0, none) == ("NG", "pit")


def test_rule_without_area_accepts_nothing() -> None:
    """A limit that was forgotten is not a limit without end."""
    assert judge([defect(area=1)], 1.0, recipe_with([{"class": "pit"}])) == ("NG", "pit")


@pytest.mark.parametrize(
    ("x", "y", "judgement"),
    [(10, 20, "OK"), (39.9, 49.9, "OK"), (40, 30, "NG"), (30, 50, "NG"), (9.9, 30, "NG"), (30, 19.9, "NG")],
)
def test_rule_holds_in_its_zone(x: float, y: float, judgement: str) -> None:
    """The defect's centre decides; the zone begins with its first pixel and ends before x + width."""
    recipe = recipe_with([{"class": "pit", "zone": [10, 20, 30, 30], "max_area_px": 9}])
    assert judge([defect(x=x, y=y)], 1.0, recipe)[0] == judgement


def test_rule_limits_the_length() -> None:
    """In mm, of the longer side."""
    recipe = recipe_with([{"class": "pit", "max_area_px": 9, "max_length_mm": 0.5}], optics={"um_per_px": 10})
    assert judge([defect(length=0.5)], 1.0, recipe)[0] == "OK"
    assert judge([defect(length=0.51)], 1.0, recipe)[0] == "NG"


def test_defects_share_out_the_rules() -> None:
    """What can be accepted is, in whatever order the defects are found and the rules are written."""
    anywhere = {"class": "pit", "max_area_px": 100}
    small_on_the_left = {"class": "pit", "max_area_px": 10, "zone": [0, 0, 20, 60]}
    small, large, outside = defect(area=5), defect(area=50), defect(x=40, area=5)
    for rules in itertools.permutations([anywhere, small_on_the_left]):
        recipe = recipe_with(list(rules))
        for found in itertools.permutations([small, large]):
            assert judge(found, 1.0, recipe) == ("OK", "")
        for found in itertools.permutations([large, outside]):
            assert judge(found, 1.0, recipe) == ("NG", "pit")


def fits_somehow(defects: list[Defect], rules: list[dict[str, Any]]) -> bool:
    """Tries every way to give each defect a place under a rule."""
    places = [rule for rule in rules for _ in range(rule["max_count"])]
    for order in itertools.permutations(places, len(defects)) if len(defects) <= len(places) else ():
        if all(d.area_px <= rule["max_area_px"] for d, rule in zip(defects, order, strict=True)):
            return True
    return not defects


@given(
    st.lists(st.integers(1, 4), max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=3),
)
def test_accepted_is_what_some_sharing_out_accepts(areas: list[int], limits: list[tuple[int, int]]) -> None:
    """Neither an escape nor overkill by the order of things: compared with trying every way."""
    rules = [{"class": "pit", "max_area_px": area, "max_count": count} for area, count in limits]
    defects = [defect(area=area) for area in areas]
    expected = "OK" if fits_somehow(defects, rules) else "NG"
    assert judge(defects, 1.0, recipe_with(rules))[0] == expected


def test_suspicion_without_a_region_goes_to_review() -> None:
    """From the recipe's probability on; by default never; a region that is accepted has explained it."""
    recipe = recipe_with([{"class": "pit", "max_area_px": 4}], judge={"review_above": 0.9})
    assert judge([], 0.9, recipe) == ("REVIEW", "no_region")
    assert judge([], 0.89, recipe) == ("OK", "")
    assert judge([], 1.0, recipe_with()) == ("OK", "")
    assert judge([defect()], 1.0, recipe) == ("OK", "")
    assert judge([defect("scratch")], 1.0, recipe) == ("NG", "scratch")


def test_sure_classifier_makes_a_frame_without_a_region_ng() -> None:
    """Named by its likeliest defect class, before REVIEW; by default never; an accepted region has explained it."""
    accept = [{"class": "pit", "max_area_px": 4}]
    recipe = recipe_with(accept, judge={"review_above": 0.5, "ng_above": 0.9})
    assert judge([], 0.9, recipe, [0.1, 0.2, 0.7]) == ("NG", "pit")
    assert judge([], 0.9, recipe, [0.1, 0.6, 0.3]) == ("NG", "scratch")
    assert judge([], 0.89, recipe, [0.11, 0.6, 0.29]) == ("REVIEW", "no_region")
    assert judge([defect()], 0.9, recipe, [0.1, 0.2, 0.7]) == ("OK", "")
    assert judge([], 1.0, recipe_with(), [0.0, 0.5, 0.5]) == ("OK", "")


def test_scores_alone_judge_in_mode_classify() -> None:
    """NG from the threshold on, named by the likeliest defect class."""
    recipe = recipe_with(mode="classify", classifier={"file": "net", "classes": CLASSES, "threshold": 0.25})
    assert judge_scores([0.76, 0.2, 0.04], recipe) == ("OK", "")
    assert judge_scores([0.75, 0.05, 0.2], recipe) == ("NG", "pit")
    assert judge_scores([0.1, 0.6, 0.3], recipe) == ("NG", "scratch")


def test_scores_that_are_no_numbers_never_pass() -> None:
    """An engine that gives NaN has not said that the part is good."""
    assert judge_scores([float("nan")] * 3, recipe_with())[0] != "OK"


# ------------------------------------------------------------------------ audit


def test_audit_draws_its_share_and_the_same_frames_again() -> None:
    """None at 0, all at 1, about the share in between, and more with a larger share, never others."""
    ids = [f"cam-20250101T000000-{i}" for i in range(4000)]
    drawn = {share: [i for i in ids if audited(i, share)] for share in (0.0, 0.1, 0.5, 1.0)}
    assert (drawn[0.0], drawn[1.0]) == ([], ids)
    assert 320 <= len(drawn[0.1]) <= 480
    assert 1850 <= len(drawn[0.5]) <= 2150
    assert set(drawn[0.1]) < set(drawn[0.5])
    chosen = set(drawn[0.1])
    longest = max(len(list(run)) for _, run in itertools.groupby(ids, chosen.__contains__))
    assert longest < 150, "neighbours are drawn independently, not in long runs"
    assert audited("cam-s-17", 0.5) == audited("cam-s-17", 0.5)
