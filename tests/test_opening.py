"""Which engines a recipe gets: fewer tiles where memory is short, another engine where it may; nothing is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_gpu import FakeGpu

from engines import open_engine
from engines.base import Engine, EngineError, EngineOptions, Kind
from engines.plan_cache import PlanCache
from engines.plan_engine import PlanEngine
from pipeline import opening
from pipeline.opening import open_engines
from pipeline.recipe import Recipe, load_recipe

pytest.importorskip("onnxruntime", reason="the fake GPU computes with onnxruntime: pip install 'inline-aoi[int8]'")
TILE = 2 * 10 * 256 * 256  # bytes that one tile of the panel pair takes, two batches in flight, pinned and on the GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    """Engines called trt-… run on this one."""
    gpu, cache = FakeGpu(), PlanCache(tmp_path / "plans")

    def opened(name: str, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> Engine:
        if not name.startswith("trt"):
            return open_engine(name, model, kind, classes, options)
        return PlanEngine(model, kind, classes, options, lambda number: gpu, cache)

    monkeypatch.setattr(opening, "open_engine", opened)
    return gpu


def recipe(**batching: object) -> Recipe:
    panel = load_recipe("panel")
    told = {"engine": "trt-fp32", "max_batch": 8, **batching}
    return replace(panel, batching=replace(panel.batching, **told))  # type: ignore[arg-type]


def test_short_memory_halves_the_batch(gpu: FakeGpu) -> None:
    """Until both stages fit; what was tried before is given back."""
    gpu.room = room = 6 * TILE
    with open_engines(recipe(), unpromoted=True) as engines:
        assert [engine.spec.max_batch for engine in engines.values()] == [4, 4]
        assert engines["classifier"].spec.place == "Fake GPU (not promoted)"
    assert gpu.room == room
    assert not gpu.open


def test_too_little_for_one_tile_is_an_error(gpu: FakeGpu) -> None:
    """There is an end to halving."""
    gpu.room = TILE // 8
    with pytest.raises(EngineError, match="smaller max_batch"), open_engines(recipe(), unpromoted=True):
        pass
    assert not gpu.held


def test_a_line_that_may_goes_on_without_its_gpu(gpu: FakeGpu) -> None:
    """With the engine that its recipe names, and each verdict names both."""
    pytest.importorskip("openvino", reason="it falls back on the default engine")
    gpu.room = 0
    with open_engines(recipe(fallback="cpu", max_batch=1), unpromoted=True) as engines:
        assert engines["segmenter"].spec.engine == "cpu"
        assert engines["segmenter"].spec.place.endswith("(in place of trt-fp32)")


def test_what_is_not_promoted_is_not_even_opened(gpu: FakeGpu) -> None:
    """No plan is built for an engine that would be refused."""
    with pytest.raises(EngineError, match="trt-fp32 was not promoted for panel"), open_engines(recipe()):
        pass
    assert gpu.built == 0
