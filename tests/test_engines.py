"""One contract over every engine: same tensors, same answers in any company, clear refusals."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from made_engines import quantised_panel

from engines import open_engine, trt
from engines.base import OUTPUTS, Engine, EngineError, EngineOptions, Kind
from engines.cpu import batch_sizes
from engines.plan_cache import PlanCache
from engines.plan_engine import PlanEngine
from pipeline.recipe import load_recipe
from pipeline.sources.panel import PanelSimulator

Opener = Callable[..., Engine]
KINDS: tuple[Kind, ...] = ("classifier", "segmenter")


ENGINES = ("fake", "cpu", "cpu-int8", "ort", "torch", "plan", "trt-fp32", "trt-fp16", "trt-int8")


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The panel model with what is made from it; the layers in float are those that OpenVINO computes otherwise."""
    folder = quantised_panel(
        tmp_path_factory.mktemp("quantised") / "panel", ("/net/encoder/stem/stem.0/Conv", "/net/decide/Gemm")
    )
    from engines.half import half  # noqa: PLC0415 - an extra

    for kind in KINDS:
        (folder / f"{kind}.fp16.onnx").write_bytes(half((folder / f"{kind}.onnx").read_bytes()))
    return folder


@pytest.fixture(scope="session")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks as torch knows them, beside their engine files; of one seed, for any other may have classes that tie."""
    torch = pytest.importorskip("torch", reason="engine torch needs torch: pip install 'inline-aoi[train]'")
    from engines.training.kept_weights import Blueprint, build, keep  # noqa: PLC0415 - an extra

    folder = tmp_path_factory.mktemp("untaught")
    classes = load_recipe("panel").classifier.classes
    blueprint = Blueprint("pair", "inline", {}, "softmax", None, classes, 1, False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        keep(blueprint, build(blueprint).eval(), folder)
    for kind in KINDS:
        shutil.copy(load_recipe("panel").folder / f"{kind}.onnx", folder)
    return folder


@pytest.fixture(params=[(engine, kind) for engine in ENGINES for kind in KINDS], ids="-".join)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens one engine and stage; the fake from a file made here, the others from the shipped panel model.

    `plan` is the engine of GPUs over one in host memory; `trt-…` is the same on a real one.
    """
    engine, kind = request.param
    recipe = load_recipe("panel")
    model = getattr(recipe, kind)
    path = recipe.model_path(model)
    if engine == "fake":
        path = tmp_path / "net.fake"
        path.write_text('{"height": 256, "width": 256, "bright": 190}')
    if engine.startswith("cpu"):
        pytest.importorskip("openvino", reason="engine cpu needs openvino")
    if engine.startswith("trt") and (missing := trt.lacks()):
        pytest.skip("no GPU: " + "; ".join(map(str, missing)))
    if engine == "ort":
        pytest.importorskip("onnxruntime", reason="engine ort needs onnxruntime: pip install 'inline-aoi[int8]'")
    if engine in ("cpu-int8", "trt-fp16", "trt-int8"):
        path = request.getfixturevalue("quantised") / path.name
    if engine == "torch":
        path = request.getfixturevalue("untaught") / path.name
    if engine == "plan":
        pytest.importorskip("onnxruntime", reason="the GPU in host memory needs onnxruntime")
        cache = PlanCache(tmp_path / "plans")
        return lambda **options: PlanEngine(
            path, kind, model.classes, EngineOptions(**options), lambda number: FakeGpu(), cache
        )
    return lambda **options: open_engine(engine, path, kind, model.classes, EngineOptions(**options))


@pytest.fixture
def tiles() -> np.ndarray:
    """uint8 [6, 256, 256, 1], good and defective."""
    simulator = PanelSimulator(seed=5, defect_rate=0.7)
    return np.stack([simulator.panel(i).image for i in range(6)])[..., None]


@pytest.fixture
def engine(opener: Opener) -> Iterator[Engine]:
    with opener(max_batch=6) as opened:
        yield opened


def test_outputs_are_the_contract(engine: Engine, tiles: np.ndarray) -> None:
    """Names, shapes, dtypes and ranges are those of engines.base."""
    answer = engine.submit(tiles).result()
    assert set(answer) == set(OUTPUTS[engine.spec.kind])
    if engine.spec.kind == "classifier":
        assert answer["scores"].shape == (6, len(engine.spec.classes))
        assert answer["scores"].dtype == np.float32
        np.testing.assert_allclose(answer["scores"].sum(axis=1), 1.0, atol=1e-4)
    else:
        for name in OUTPUTS["segmenter"]:
            assert (answer[name].shape, answer[name].dtype) == ((6, 256, 256), np.uint8)
        assert answer["labels"].max() < len(engine.spec.classes)


def test_same_answer_alone_and_in_company(engine: Engine, tiles: np.ndarray) -> None:
    """A tile's answer does not depend on who shares its batch."""
    together = engine.submit(tiles).result()
    for i in range(len(tiles)):
        alone = engine.submit(tiles[i : i + 1]).result()
        for name, value in together.items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(alone[name][0], value[i], atol=1e-4)
            else:
                wrong = np.mean(np.abs(alone[name][0].astype(int) - value[i].astype(int)) > 1)
                assert wrong < 1e-3


def test_any_batch_size(engine: Engine, tiles: np.ndarray) -> None:
    """Every size from 1 to max_batch gives as many rows as were asked for."""
    for size in range(1, 7):
        assert all(len(rows) == size for rows in engine.submit(tiles[:size]).result().values())


def test_two_batches_in_flight_do_not_mix(engine: Engine, tiles: np.ndarray) -> None:
    """Tickets may be collected in any order; each has its own answer, and what is returned stays as it is."""
    first, second = engine.submit(tiles[:2].copy()), engine.submit(tiles[2:4].copy())
    late, early = second.result(), first.result()
    kept = {name: value.copy() for name, value in late.items()}
    name = OUTPUTS[engine.spec.kind][0]
    np.testing.assert_allclose(early[name], engine.submit(tiles[:2]).result()[name], atol=1e-4)
    for key, value in kept.items():
        np.testing.assert_array_equal(late[key], value)


def test_notify_is_called_when_done(engine: Engine, tiles: np.ndarray) -> None:
    """Whoever waits for a batch is woken once it is done."""
    woken = threading.Event()
    ticket = engine.submit(tiles, woken.set)
    assert woken.wait(20)
    assert ticket.done()
    ticket.result()


def test_wrong_batches_are_refused(engine: Engine, tiles: np.ndarray) -> None:
    """Wrong size, shape or dtype: an error with both shapes, and the engine goes on working."""
    for wrong in (tiles[:0], np.concatenate([tiles, tiles]), tiles[:, :100], tiles.astype(np.float32)):
        with pytest.raises(EngineError, match="takes uint8") as caught:
            engine.submit(wrong)
        assert caught.value.kind == "batch"
    engine.submit(tiles).result()


def test_closed_engine_refuses_and_opens_again(opener: Opener, tiles: np.ndarray) -> None:
    """Nothing is loaded before entering; after leaving it can be entered again with the same answers."""
    engine = opener(max_batch=2)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(tiles[:1])
    name = OUTPUTS[engine.spec.kind][0]
    with engine:
        before = engine.submit(tiles[:1]).result()[name]
    with pytest.raises(EngineError, match="closed"):
        engine.submit(tiles[:1])
    with engine:
        np.testing.assert_allclose(engine.submit(tiles[:1]).result()[name], before, atol=1e-5)


def test_unknown_engine_and_missing_file(tmp_path: Path) -> None:
    """Both say what there is, or what to correct."""
    with pytest.raises(EngineError, match="there are: fake, cpu"):
        open_engine("gpu9", tmp_path, "classifier", ("good", "bad"))
    with pytest.raises(EngineError, match="does not exist; correct `file`"):
        open_engine("cpu", tmp_path / "no.onnx", "classifier", ("good", "bad"))


def test_cpu_refuses_what_is_no_model(tmp_path: Path) -> None:
    """A file that is not ONNX is refused in one line."""
    pytest.importorskip("openvino", reason="engine cpu needs openvino")
    (tmp_path / "net.onnx").write_bytes(b"not a model at all")
    with pytest.raises(EngineError, match="is not an ONNX model") as caught:
        open_engine("cpu", tmp_path / "net.onnx", "classifier", ("good", "bad"))
    assert "\n" not in str(caught.value)


def test_cpu_refuses_the_wrong_model() -> None:
    """A segmenter where a classifier belongs, or another number of classes, is told before any frame."""
    pytest.importorskip("openvino", reason="engine cpu needs openvino")
    recipe = load_recipe("panel")
    segmenter, classifier = recipe.model_path(recipe.segmenter), recipe.model_path(recipe.classifier)
    with pytest.raises(EngineError, match="has no output 'scores'"):
        open_engine("cpu", segmenter, "classifier", recipe.classifier.classes)
    with pytest.raises(EngineError, match="the recipe names 2"):
        open_engine("cpu", classifier, "classifier", ("good", "bad"))
    with pytest.raises(EngineError, match="no device 'TPU'"):
        open_engine("cpu", classifier, "classifier", recipe.classifier.classes, EngineOptions(device="TPU"))


def test_batch_sizes_cover_every_size_with_little_padding() -> None:
    """Sizes grow strictly up to the largest, and no batch is padded by more than a quarter."""
    for largest in range(1, 100):
        sizes = batch_sizes(largest)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == largest
        for size in range(1, largest + 1):
            assert next(s for s in sizes if s >= size) <= max(size + 1, 1.25 * size)
