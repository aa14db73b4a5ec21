"""The cascade: exactly one verdict a frame, suspects share batches, one bad frame spoils no neighbour."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fake_recipe, make_frame

from engines.base import EngineError
from pipeline.inspector import Done, Inspector, prepare
from pipeline.messages import Frame, Verdict
from pipeline.opening import open_engines
from pipeline.recipe import Recipe
from pipeline.stream import Delivery


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def inspector_for(recipe: Recipe, stack: ExitStack) -> Inspector:
    return Inspector(recipe, stack.enter_context(open_engines(recipe)))


def deliver(frame: Frame) -> Delivery:
    return Delivery(frame, frame.frame_id, b"", frame.payload_bytes, time.time_ns())


def inspect(inspector: Inspector, frames: list[Frame]) -> dict[int, Verdict]:
    """Verdicts by sequence; fails when a frame has none or more than one."""
    for frame in frames:
        inspector.add(prepare(deliver(frame), inspector.recipe, inspector.spec), time.time_ns())
    done: list[Done] = []
    for _ in range(10_000):
        done += inspector.step(time.time_ns())
        if not inspector.busy:
            break
    assert sorted(d.frame.sequence for d, _ in done) == sorted(frame.sequence for frame in frames)
    return {delivery.frame.sequence: verdict for delivery, verdict in done}


def test_cascade_finds_the_defect_where_it_is(tmp_path: Path, stack: ExitStack) -> None:
    """A suspect frame gets its mask, box, area and class; a good one is OK without the segmenter."""
    recipe = fake_recipe(tmp_path, optics={"um_per_px": 500.0})
    verdicts = inspect(inspector_for(recipe, stack), [make_frame(0), make_frame(1, bright=True)])
    assert (verdicts[0].judgement, verdicts[0].defects) == ("OK", ())
    bad = verdicts[1]
    assert (bad.judgement, bad.reason) == ("NG", "scratch")
    (defect,) = bad.defects
    assert defect.bbox == (30, 20, 8, 8)
    assert defect.area_px == 64
    assert defect.area_mm2 == pytest.approx(16.0)
    assert (defect.length_mm, defect.width_mm) == (pytest.approx(4.0), pytest.approx(4.0))
    assert defect.centroid == (33.5, 23.5)
    expected = np.zeros((64, 64), bool)
    expected[20:28, 30:38] = True
    np.testing.assert_array_equal(bad.mask("scratch"), expected)
    assert bad.scores == {"good": 0.0, "scratch": 1.0}
    assert bad.recipe == recipe.label
    assert "segmenter@" in bad.engine


@pytest.mark.parametrize("mode", ["classify", "segment", "cascade"])
def test_every_mode_judges(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    """Classifier alone, segmenter alone, or both: same judgements here, masks only where a segmenter ran."""
    verdicts = inspect(inspector_for(fake_recipe(tmp_path, mode), stack), [make_frame(0), make_frame(1, bright=True)])
    assert [verdicts[i].judgement for i in (0, 1)] == ["OK", "NG"]
    assert verdicts[1].reason == "scratch"
    assert bool(verdicts[1].masks) == (mode != "classify")


def test_sure_classifier_alone_makes_a_frame_ng(tmp_path: Path, stack: ExitStack) -> None:
    """With `ng_above`, a frame whose regions are all noise is NG, named by the classifier; without, it is OK."""
    for above, expected in ((0.9, ("NG", "scratch")), (1.01, ("OK", ""))):
        recipe = fake_recipe(tmp_path, judge={"min_area_px": 100, "ng_above": above})
        verdict = inspect(inspector_for(recipe, stack), [make_frame(0, bright=True)])[0]
        assert (verdict.judgement, verdict.reason) == expected
        assert verdict.defects == ()


def test_frame_larger_than_the_network_is_tiled_and_stitched(tmp_path: Path, stack: ExitStack) -> None:
    """A defect across a tile border comes out whole and once, at its place in the frame."""
    frame = make_frame(0, size=150)
    pixels = np.array(frame.pixels)
    pixels[55:70, 40:110] = 255
    verdicts = inspect(inspector_for(fake_recipe(tmp_path), stack), [replace(frame, pixels=pixels)])
    (defect,) = verdicts[0].defects
    assert (defect.bbox, defect.area_px) == ((40, 55, 70, 15), 70 * 15)
    np.testing.assert_array_equal(verdicts[0].mask(), pixels == 255)


def test_region_of_interest_and_scale_lay_the_mask_back_onto_the_frame(tmp_path: Path, stack: ExitStack) -> None:
    """Defects are told in pixels of the frame, whatever part and scale the network saw."""
    recipe = fake_recipe(tmp_path, picture={"roi": [100, 50, 128, 128], "scale": 0.5})
    frame = make_frame(0, size=300)
    pixels = np.array(frame.pixels)
    pixels[60:80, 120:160] = 255
    pixels[0:40, 0:40] = 255  # outside the region of interest
    verdicts = inspect(inspector_for(recipe, stack), [replace(frame, pixels=pixels)])
    (defect,) = verdicts[0].defects
    assert defect.bbox == (120, 60, 40, 20)
    assert verdicts[0].mask_shape == (300, 300)


def test_frame_smaller_than_the_network(tmp_path: Path, stack: ExitStack) -> None:
    """It is continued at its edge; no defect appears outside it."""
    verdicts = inspect(inspector_for(fake_recipe(tmp_path), stack), [make_frame(0, size=40, bright=True)])
    assert verdicts[0].mask_shape == (40, 40)
    assert verdicts[0].defects[0].bbox == (30, 20, 8, 8)


def test_undecodable_frame_is_uninspected_and_neighbours_are_judged(tmp_path: Path, stack: ExitStack) -> None:
    """Broken pixels, wrong sizes and wrong bit depths each have their verdict with the reason."""
    frames = [
        make_frame(0),
        replace(make_frame(1), encoding="png", pixels=b"\x89PNG broken"),
        replace(make_frame(2), pixels=b"\0" * 17),
        replace(make_frame(3), pixel_format="mono16", pixels=b"\0" * 64 * 64),
        replace(make_frame(4), fault="the file is empty", pixels=b""),
        make_frame(5, bright=True),
    ]
    verdicts = inspect(inspector_for(fake_recipe(tmp_path), stack), frames)
    assert [verdicts[i].judgement for i in range(6)] == ["OK", *["UNINSPECTED"] * 4, "NG"]
    assert {verdicts[i].reason for i in range(1, 5)} == {"undecodable"}
    assert "empty" in verdicts[4].detail


def test_failing_batch_is_run_again_tile_by_tile(tmp_path: Path, stack: ExitStack) -> None:
    """The engine fails on one frame of a batch: that one is UNINSPECTED: engine, its neighbours are judged."""
    recipe = fake_recipe(tmp_path, model='{"poison": 7}')
    frames = [make_frame(i, bright=i == 2) for i in range(4)]
    poisoned = np.array(frames[1].pixels)
    poisoned[0, 0] = 7
    frames[1] = replace(frames[1], pixels=poisoned)
    verdicts = inspect(inspector_for(recipe, stack), frames)
    assert [verdicts[i].judgement for i in range(4)] == ["OK", "UNINSPECTED", "NG", "OK"]
    assert (verdicts[1].reason, verdicts[1].detail) == ("engine", "a tile of this batch is poison")


def test_frames_share_batches_and_suspects_share_the_segmenters(tmp_path: Path, stack: ExitStack) -> None:
    """Eight frames that wait together go through in two full batches of four."""
    verdicts = inspect(inspector_for(fake_recipe(tmp_path), stack), [make_frame(i, bright=True) for i in range(8)])
    assert {verdict.batch_size for verdict in verdicts.values()} == {4}


def test_verdict_is_the_same_alone_and_in_company(tmp_path: Path, stack: ExitStack) -> None:
    """Batch composition changes no judgement, score, defect or mask."""
    recipe = fake_recipe(tmp_path)
    frames = [make_frame(i, bright=i % 3 == 0, size=64 + 10 * i) for i in range(7)]
    together = inspect(inspector_for(recipe, stack), frames)
    alone = inspector_for(recipe, stack)
    for frame in frames:
        one = inspect(alone, [frame])[frame.sequence]
        many = together[frame.sequence]
        assert (one.judgement, one.scores, one.defects) == (many.judgement, many.scores, many.defects)
        np.testing.assert_array_equal(one.mask(), many.mask())


def test_audit_share_sends_good_frames_to_the_segmenter(tmp_path: Path, stack: ExitStack) -> None:
    """With share 1 the segmenter also sees what the classifier passed, and may find what that missed."""
    blind = '{"bright": 250}'
    recipe = fake_recipe(tmp_path, model=blind, judge={"audit_share": 1.0})
    (tmp_path / "blind.fake").write_text('{"bright": 256}')
    recipe = replace(recipe, classifier=replace(recipe.classifier, file="blind.fake"))
    assert inspect(inspector_for(recipe, stack), [make_frame(0, bright=True)])[0].judgement == "NG"
    unaudited = replace(recipe, judge=replace(recipe.judge, audit_share=0.0))
    assert inspect(inspector_for(unaudited, stack), [make_frame(0, bright=True)])[0].judgement == "OK"


def test_times_of_the_way_are_in_order(tmp_path: Path, stack: ExitStack) -> None:
    """Every step of a frame's way has its time, in the order of the way."""
    verdict = inspect(inspector_for(fake_recipe(tmp_path), stack), [make_frame(0)])[0]
    times = [verdict.frame.triggered_ns, verdict.received_ns, verdict.batched_ns, verdict.inferred_ns]
    assert all(times)
    assert times == sorted(times)


def test_model_file_that_is_not_the_recipes_is_refused(tmp_path: Path) -> None:
    """A recipe that states a hash runs with that file and no other."""
    recipe = fake_recipe(tmp_path)
    wrong = replace(recipe, classifier=replace(recipe.classifier, sha256="0" * 64))
    with pytest.raises(EngineError, match="sha256 differs"), open_engines(wrong):
        pass


def test_stages_with_different_tiles_are_refused(tmp_path: Path, stack: ExitStack) -> None:
    """Suspects are passed on as they are, so both networks must take the same tile."""
    recipe = fake_recipe(tmp_path)
    (tmp_path / "small.fake").write_text('{"height": 32, "width": 32}')
    with pytest.raises(EngineError, match="export both alike"):
        inspector_for(replace(recipe, segmenter=replace(recipe.segmenter, file="small.fake")), stack)


def test_scores_that_are_no_numbers_are_uninspected_not_ok(tmp_path: Path, stack: ExitStack) -> None:
    """NaN compares as good; a frame with such scores must never leave as OK."""
    inspector = inspector_for(fake_recipe(tmp_path), stack)
    engine = inspector.stages["classifier"].engine
    engine._answer = lambda batch: {"scores": np.full((len(batch), 2), np.nan, np.float32)}  # type: ignore[attr-defined]
    verdict = inspect(inspector, [make_frame(0)])[0]
    assert (verdict.judgement, verdict.reason) == ("UNINSPECTED", "engine")


def test_batch_the_engine_does_not_take_is_a_failed_batch(tmp_path: Path, stack: ExitStack) -> None:
    """An engine that refuses at once is treated as one that fails: every frame has its verdict."""
    inspector = inspector_for(fake_recipe(tmp_path), stack)
    engine = inspector.stages["classifier"].engine

    def refuse(batch: np.ndarray, notify: object = None) -> None:
        raise EngineError("no memory for this batch", "batch")

    engine.submit = refuse  # type: ignore[method-assign, assignment]
    verdicts = inspect(inspector, [make_frame(i) for i in range(3)])
    assert {(v.judgement, v.detail) for v in verdicts.values()} == {("UNINSPECTED", "no memory for this batch")}
