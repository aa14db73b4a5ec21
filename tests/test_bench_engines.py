"""`bench engines` and `bench tune`: the order of a comparison, ceilings over a GPU in host memory, what is chosen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from made_engines import panel_copy, panel_pictures
from training_pictures import MODELS

from bench.engines_compared import ratios
from bench.tune import Setting, chosen, settings_for
from engines import trt

RunBench = Callable[..., tuple[int, str, str]]


@pytest.mark.timeout(300)
def test_engines_side_by_side(run_bench: RunBench, tmp_path: Path) -> None:
    """Verdicts, speed and ratios of each in one file; an engine that cannot run here is left out with the reason."""
    pytest.importorskip("onnxruntime", reason="compares with onnxruntime: pip install 'inline-aoi[int8]'")
    data = panel_pictures(tmp_path / "data", 24)
    model = panel_copy(tmp_path / "panel")
    short = ("--rounds", 1, "--seconds", 0.01, "--max-batch", 2, "--no-line", "--limit", 20)
    code, out, err = run_bench(
        "engines", model, "--engines", "cpu,ort,cpu-int8", "--data", data, *short, "--out", tmp_path / "out"
    )
    assert code == 0, err
    (path,) = (tmp_path / "out").glob("engines-panel-*.json")
    report = json.loads(path.read_text())
    assert [row["engine"] for row in report["engines"]] == ["cpu", "ort"]
    assert "int8.onnx does not exist" in report["left_out"]["cpu-int8"]
    assert report["parity"]["promoted"] == {"ort": True}
    assert len(report["speed"]) == 2 * 2 * 2
    assert all(row["tiles_per_s"] > 0 and row["flop_per_s"] > 0 for row in report["speed"])
    assert report["machine"]["versions"]
    if missing := trt.lacks():
        assert report["ceilings"] == {"missing": [str(lack) for lack in missing]}
    assert "ort judges as the reference does" in out


def test_ratios_are_of_the_same_stage() -> None:
    """Batch against single, and both against the reference."""
    table = {("a", 1): 100.0, ("a", 8): 150.0, ("b", 1): 200.0, ("b", 8): 600.0}
    speed = [
        {"engine": engine, "stage": "classifier", "batch": size, "tiles_per_s": rate}
        for (engine, size), rate in table.items()
    ]
    mine = ratios(speed, "a")[1]
    assert mine["batch_against_single"] == pytest.approx(3.0)
    assert mine["single_against_reference"] == pytest.approx(2.0)
    assert mine["best_against_reference"] == pytest.approx(4.0)


def test_ceilings_give_back_what_they_take() -> None:
    """Bytes and operations a second by the clock they are given; nothing stays allocated."""
    pytest.importorskip("onnxruntime", reason="the fake GPU computes with onnxruntime: pip install 'inline-aoi[int8]'")
    from bench.gpu_ceiling import copies, products  # noqa: PLC0415 - needs onnx when called

    gpu = FakeGpu()
    with gpu.current():
        found = copies(gpu, 0.0, itertools.count(0.0, 0.5).__next__, size=4096)
        rate = products(gpu, "fp32", 0.0, itertools.count(0.0, 0.5).__next__, side=32, deep=2)
    assert found["to_device_bytes_per_s"] == found["to_host_bytes_per_s"] == pytest.approx(8 * 4096 / 1.0)
    assert rate == pytest.approx(2 * 2 * 32**3 * 8 / 1.0)
    assert not gpu.held
    assert not gpu.open


def test_operations_of_a_network_are_counted() -> None:
    """Two for each multiplication of a convolution or a product."""
    onnx = pytest.importorskip("onnx", reason="reads the network: pip install 'inline-aoi[int8]'")
    from bench.network_work import operations  # noqa: PLC0415 - needs onnx when called

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = [
        onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "conv"),
        onnx.numpy_helper.from_array(np.zeros((10, 4 * 64), np.float32), "gemm"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["y"], pads=[1] * 4),
        helper.make_node("Flatten", ["y"], ["z"]),
        helper.make_node("Gemm", ["z", "gemm"], ["out"], transB=1),
    ]
    ends = [
        [helper.make_tensor_value_info(name, kind, shape)] for name, shape in (("x", [1, 3, 8, 8]), ("out", [1, 10]))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, weights))
    assert operations(model.SerializeToString()) == 2 * 4 * 64 * 27 + 2 * 10 * 256
    assert operations((MODELS / "panel" / "classifier.onnx").read_bytes()) > 1e6


def test_as_fast_with_fewer_batches_is_better() -> None:
    """Within what is not worth a batch that waits; a clear gain is."""
    assert chosen({Setting(1, 2): [98.0], Setting(2, 2): [100.0]}) == Setting(1, 2)
    assert chosen({Setting(1, 2): [80.0], Setting(2, 2): [100.0], Setting(2, 1): [99.0]}) == Setting(2, 1)
    assert Setting(4, 8) in settings_for(8)
    assert settings_for(1) == [Setting(1, 1), Setting(2, 1)]


@pytest.mark.timeout(300)
def test_tune_writes_what_it_chose(run_bench: RunBench, tmp_path: Path) -> None:
    """Into the recipe's [batching]; what stood there besides stays."""
    pytest.importorskip("openvino", reason="it tunes the cpu engine: pip install 'inline-aoi[cpu]'")
    model = panel_copy(tmp_path / "panel")
    code, out, err = run_bench("tune", model, "--rounds", 1, "--seconds", 0.01, "--max-batch", 1, "--write", "--json")
    assert code == 0, err
    best = json.loads(out)["chosen"]
    text = (model / "recipe.toml").read_text()
    assert f"in_flight = {best['in_flight']}" in text
    assert f"threads = {best['threads']}" in text
    assert "max_batch = 8" in text
