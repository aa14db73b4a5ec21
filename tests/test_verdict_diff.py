"""What changed between two verdicts is counted as what it is, and nothing is called the same that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_frame
from hypothesis import given
from hypothesis import strategies as st

from engines import rle
from pipeline.diff_output import Bounds
from pipeline.diff_page import diff_page
from pipeline.diff_tables import diff_lines
from pipeline.errors import Exit
from pipeline.messages import Defect, Judgement, Verdict
from pipeline.spans import Spans
from pipeline.verdict_diff import VerdictDiff, main_class, mask_iou, p_defect, said_alike

SHAPE = (64, 64)


def said(
    judgement: Judgement, number: int = 0, p: float = 0.5, box: tuple[int, int, int, int] | None = None, **facts: object
) -> Verdict:
    """A verdict that marks a rectangle (x, y, width, height), as class "void" where nothing else is said."""
    name = str(facts.pop("class_name", "void"))
    frame = replace(make_frame(number), offered_ns=1_000_000_000, lot="4711").without_pixels()
    defects, masks = (), {}
    if box:
        x, y, width, height = box
        mask = np.zeros(SHAPE, bool)
        mask[y : y + height, x : x + width] = True
        masks = {name: rle.encode(mask)}
        area = width * height
        defects = (Defect(class_name=name, score=p, bbox=box, area_px=area, centroid=(x + width / 2, y + height / 2)),)
    known: dict[str, object] = {"recipe": "panel@1", "engine": "classifier@2", "settled_ns": 1_005_000_000, **facts}
    return Verdict(
        frame=frame, judgement=judgement, scores={"good": 1 - p, name: p}, defects=defects, masks=masks,
        mask_shape=SHAPE if box else (0, 0), **known,  # type: ignore[arg-type]
    )  # fmt: skip


def test_who_said_it_and_when_does_not_matter() -> None:
    """All else does, to the last bit of a score and to one pixel of a mask."""
    one = said("NG", box=(10, 10, 5, 5))
    elsewhere = replace(
        one, worker="w2", device="GPU", batch_size=7, deliveries=2, received_ns=1, batched_ns=2, inferred_ns=3,
        settled_ns=4, recipe="panel@3", engine="x", frame=replace(one.frame, offered_ns=5, line="other"),
    )  # fmt: skip
    assert said_alike(one, elsewhere)
    assert not said_alike(one, replace(one, scores={"good": 0.5, "void": float(np.nextafter(0.5, 1))}))
    assert not said_alike(one, said("NG", box=(10, 10, 5, 6)))
    assert not said_alike(one, replace(one, masks={}))
    assert not said_alike(one, replace(one, reason="void"))
    assert not said_alike(one, replace(one, frame=replace(one.frame, frame_id="another")))


def test_flips_by_kind() -> None:
    """NG to OK is a possible escape, OK to NG possible overkill; unchanged ones are no flips."""
    diff = VerdictDiff()
    pairs = [("OK", "OK"), ("NG", "OK"), ("OK", "NG"), ("NG", "OK"), ("NG", "REVIEW"), ("OK", "UNINSPECTED")]
    for number, (before, after) in enumerate(pairs):
        diff.add(said(before, number), said(after, number))  # type: ignore[arg-type]
    diff.add(None, said("NG", 9))
    assert (diff.frames, diff.flipped, diff.escapes, diff.overkill, diff.without_before) == (6, 5, 2, 1, 1)
    assert [flip.kind for flip in diff.flips][:3] == [("NG", "OK"), ("NG", "OK"), ("NG", "REVIEW")]
    assert [flip.after.frame.sequence for flip in diff.flips][:2] == [1, 3]
    report = diff.as_json()
    assert report["judgements"]["NG"] == {"OK": 2, "NG": 0, "REVIEW": 1, "UNINSPECTED": 0}
    assert [flip["frame_id"] for flip in report["flips"]] == [f.after.frame.frame_id for f in diff.flips]


def test_the_worst_flips_are_kept() -> None:
    """However many there are before and after them; all are counted."""
    diff = VerdictDiff(keep_flips=3)
    for number in range(50):
        diff.add(said("OK", number), said("NG", number))
    for number in range(50, 52):
        diff.add(said("NG", number), said("OK", number))
    for number in range(52, 99):
        diff.add(said("OK", number), said("NG", number))
    assert [flip.after.frame.sequence for flip in diff.flips] == [50, 51, 0]
    assert diff.flipped == 99


def test_iou_of_masks_by_hand() -> None:
    """Two rectangles of 20 px that share 10: one third; one alone: nothing; none at all: not counted."""
    left, right = said("NG", box=(0, 0, 4, 5)), said("NG", box=(2, 0, 4, 5), class_name="scratch")
    assert mask_iou(left, right) == pytest.approx(1 / 3)
    assert mask_iou(left, left) == 1.0
    assert mask_iou(left, said("OK")) == 0.0
    assert mask_iou(said("OK"), said("OK")) is None
    assert mask_iou(left, replace(left, mask_shape=(64, 65))) == 0.0
    diff = VerdictDiff()
    for after in (left, right, said("OK")):
        diff.add(left, after)
    diff.add(said("OK"), said("OK"))
    assert (sum(diff.ious), diff.ious[9], diff.ious[3], diff.ious[0]) == (3, 1, 1, 1)
    assert diff.mean_iou == pytest.approx((1 + 1 / 3) / 3)


def test_the_class_a_verdict_is_about() -> None:
    """Of the largest defect; without one the best defective score, and none for a good frame."""
    small, large = said("NG", box=(0, 0, 2, 2), class_name="edge"), said("NG", box=(9, 9, 8, 8))
    assert main_class(replace(small, defects=small.defects + large.defects)) == "void"
    assert main_class(replace(said("REVIEW"), scores={"good": 0.9, "edge": 0.01, "void": 0.09})) == "void"
    assert main_class(said("OK", p=0.4)) == ""
    assert main_class(replace(said("NG"), scores={})) == ""


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=30))
def test_every_score_is_in_the_distribution(pairs: list[tuple[float, float]]) -> None:
    """Once, and the largest change is the largest."""
    diff = VerdictDiff()
    for number, (before, after) in enumerate(pairs):
        diff.add(said("OK", number, before), said("OK", number, after))
    assert sum(diff.shifts) == len(pairs)
    changes = [(p_defect(said("OK", p=b)) or 0) - (p_defect(said("OK", p=a)) or 0) for b, a in pairs]
    assert abs(diff.largest_shift) == pytest.approx(max(map(abs, changes)))


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=200), st.sampled_from([50, 90, 99]))
def test_percentiles_without_a_list(values: list[int], percent: int) -> None:
    """Within 1.1 % of the nearest rank, or the least that is told apart."""
    spans = Spans()
    for value in values:
        spans.add(value)
    true = float(np.percentile(values, percent, method="inverted_cdf"))
    assert spans.percentile_ms(percent) * 1e6 == pytest.approx(true, rel=0.011, abs=1011)
    assert (spans.count, spans.longest_ns) == (len(values), max(values))


def test_the_page_shows_each_flip_with_both_pictures() -> None:
    """Names come from messages: nothing of them is taken for HTML."""
    diff = VerdictDiff()
    bad = replace(said("NG", box=(0, 0, 4, 4)), frame=replace(said("NG").frame, name="<script>alert(1)</script>"))
    diff.add(bad, replace(said("OK"), frame=bad.frame))
    html = diff_page(diff, "a & b", {bad.frame.frame_id: ("<img alt='' src='one'>", "<img alt='' src='two'>")}, False)
    assert "<img alt='' src='one'><img alt='' src='two'>" in html
    assert "<script>" not in html
    assert "a &amp; b" in html
    assert "NG → OK</b>" in html
    assert "as fast as the line took them" in html
    assert any("1 flip: 1 from NG to OK" in line for line in diff_lines(diff))


@pytest.mark.parametrize(
    ("bounds", "code", "told"),
    [
        (Bounds(), Exit.OK, ""),
        (Bounds(escapes=2, overkill=1, flipped=4), Exit.OK, ""),
        (Bounds(escapes=1), Exit.REFUSED, "refused: 2 escapes, at most 1 allowed"),
        (Bounds(overkill=0), Exit.REFUSED, "refused: 1 overkill, at most 0 allowed"),
        (Bounds(flipped=3), Exit.REFUSED, "refused: 4 flipped, at most 3 allowed"),
    ],
)
def test_a_change_beyond_a_bound_is_refused(
    bounds: Bounds, code: Exit, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as the bound are allowed; one more is told and refused."""
    diff = VerdictDiff()
    for number, (before, after) in enumerate(
        (("NG", "OK"), ("NG", "OK"), ("OK", "NG"), ("NG", "REVIEW"), ("OK", "OK"))
    ):
        diff.add(said(before, number), said(after, number))  # type: ignore[arg-type]
    assert bounds.gate(diff) == code
    assert capsys.readouterr().err.strip() == told


def test_an_empty_comparison_says_so() -> None:
    """Nothing is divided by nothing."""
    diff = VerdictDiff()
    assert "0 frames compared" in "\n".join(diff_lines(diff))
    assert "None." in diff_page(diff, "nothing", {}, True)
    assert diff.as_json()["mask_iou"]["mean"] is None
