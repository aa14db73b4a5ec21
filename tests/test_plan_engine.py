"""The compiled engine over a GPU that is none: slots, padding, plans, and what becomes of errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FACTS, FakeGpu
from made_engines import panel_tiles
from training_pictures import MODELS

from engines.base import EngineError, EngineOptions
from engines.batch_profiles import Profile, prepared_sizes, profile_for, profiles, size_for
from engines.plan_cache import PlanCache, PlanFacts
from engines.plan_engine import PlanEngine
from pipeline.recipe import load_recipe

pytest.importorskip("onnxruntime", reason="the fake GPU computes with onnxruntime: pip install 'inline-aoi[int8]'")
CLASSES = load_recipe("panel").classifier.classes
Make = Callable[..., PlanEngine]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def make(tmp_path: Path, gpu: FakeGpu) -> Make:
    """A classifier's engine on that GPU, its plans in a folder of this test."""
    model = MODELS / "panel" / "classifier.onnx"

    def made(**options: object) -> PlanEngine:
        told = EngineOptions(**{"max_batch": 4, **options})  # type: ignore[arg-type]
        return PlanEngine(model, "classifier", CLASSES, told, lambda number: gpu, PlanCache(tmp_path / "plans"))

    return made


def test_everything_is_given_back(make: Make, gpu: FakeGpu) -> None:
    """Memory, streams and executions, in the thread that left, however often it is entered."""
    engine = make()
    assert not gpu.held
    for _ in range(2):
        with engine:
            engine.submit(np.stack(panel_tiles(2))).result()
            assert gpu.held
            assert gpu.open
        assert gpu.room == 1 << 30
        assert not gpu.held
        assert not gpu.open


def test_a_plan_is_built_once(make: Make, gpu: FakeGpu, tmp_path: Path) -> None:
    """And again when what it was made from has changed, or its file has; the timings stay."""
    for _ in range(2):
        with make():
            pass
    assert gpu.built == 1
    with make(max_batch=8):
        pass
    assert gpu.built == 2
    gpu.facts = replace(FACTS, driver="13.0 580.2")
    with make():
        pass
    assert gpu.built == 3
    for plan in (tmp_path / "plans").glob("*.plan"):
        plan.write_bytes(plan.read_bytes() + b"x")
    with make():
        pass
    assert gpu.built == 4
    assert len(list((tmp_path / "plans").glob("*.timings"))) == 1


def test_a_plan_that_the_runtime_refuses_is_built_again(make: Make, gpu: FakeGpu) -> None:
    """Once; a fresh one that is refused too is an error that says so."""
    with make():
        pass
    gpu.refuses = 1
    with make() as engine:
        engine.submit(np.stack(panel_tiles(1))).result()
    assert gpu.built == 2
    gpu.refuses = 2
    with pytest.raises(EngineError, match="refuses the plan that it has just built"), make():
        pass
    assert not gpu.held


def test_a_sidecar_names_what_a_plan_was_made_from(tmp_path: Path) -> None:
    """A plan without one, or of other facts under its name, is not loaded."""
    facts = PlanFacts("a" * 64, "fp16", FACTS, profiles(8))
    cache = PlanCache(tmp_path)
    cache.keep(facts, b"plan")
    assert cache.find(facts) == b"plan"
    for other in (
        replace(facts, precision="int8"),
        replace(facts, model_hash="b" * 64),
        replace(facts, profiles=profiles(4)),
        replace(facts, gpu=replace(FACTS, version="1.1")),
        replace(facts, gpu=replace(FACTS, name="Another GPU")),
    ):
        assert other.key != facts.key
        assert cache.find(other) is None
    sidecar = tmp_path / f"{facts.key}.json"
    told = json.loads(sidecar.read_text())
    told["facts"]["precision"] = "fp32"
    sidecar.write_text(json.dumps(told))
    assert cache.find(facts) is None
    sidecar.unlink()
    assert cache.find(facts) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of the setting that helps."""
    (tmp_path / "plans").write_text("a file")
    with pytest.raises(EngineError, match="AOI_PLANS"), make():
        pass


def test_short_memory_is_told_as_such(make: Make, gpu: FakeGpu) -> None:
    """When it is opened, with nothing left behind; fewer tiles fit."""
    gpu.room = 600_000
    with pytest.raises(EngineError, match="smaller max_batch") as refused, make(max_batch=8):
        pass
    assert refused.value.kind == "memory"
    assert gpu.room == 600_000
    with make(max_batch=1) as engine:
        engine.submit(np.stack(panel_tiles(1))).result()


@pytest.mark.parametrize(
    ("said", "kind"), [("an illegal memory access was encountered", "broken"), ("invalid argument", "batch")]
)
def test_a_batch_that_fails_fails_its_own_ticket(make: Make, gpu: FakeGpu, said: str, kind: str) -> None:
    """With the kind that the worker acts on; of what is not sticky the engine recovers."""
    tiles = np.stack(panel_tiles(2))
    with make() as engine:
        before = engine.submit(tiles).result()["scores"]
        gpu.fails = said
        woken = threading.Event()
        ticket = engine.submit(tiles, woken.set)
        assert woken.wait(20)
        assert ticket.done()
        with pytest.raises(EngineError, match=said) as failed:
            ticket.result()
        assert failed.value.kind == kind
        np.testing.assert_array_equal(engine.submit(tiles).result()["scores"], before)


def test_no_more_batches_than_slots(make: Make) -> None:
    """Told, not waited for: the caller is the one who must collect."""
    with make(in_flight=2) as engine:
        tickets = [engine.submit(np.stack(panel_tiles(1))) for _ in range(2)]
        with pytest.raises(EngineError, match="collect one first"):
            engine.submit(np.stack(panel_tiles(1)))
        for ticket in tickets:
            ticket.result()
        engine.submit(np.stack(panel_tiles(1))).result()


def test_graphs_change_no_answer(make: Make, gpu: FakeGpu) -> None:
    """Where the driver has none, batches are given step by step."""
    answers = []
    for graphs in (True, False):
        gpu.graphs = graphs
        with make() as engine:
            answers.append(engine.submit(np.stack(panel_tiles(3))).result()["scores"])
    np.testing.assert_array_equal(*answers)


def test_profiles_cover_every_size() -> None:
    """Each batch has a prepared size of at most half as much again, and that a profile."""
    for most in range(1, 70):
        of, sizes = profiles(most), prepared_sizes(most)
        assert sizes[0] == 1
        assert sizes[-1] == most
        for rows in range(1, most + 1):
            size = size_for(rows, sizes)
            assert rows <= size <= max(rows + 1, 1.5 * rows)
            profile = of[profile_for(size, of)]
            assert profile.least <= size <= profile.most
    assert profiles(8)[1] == Profile(2, 8, 8)
