"""How a trained network becomes an ONNX file of the engine contract; it knows nothing of its training."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from engines import open_engine
from engines.base import OUTPUTS, EngineError, EngineOptions, Kind

OPSET = 17
TOLERANCE = 0.01  # largest difference of a probability between the network and its file: one or two levels of 255
HALVES_MAY_COST = 0.05  # … and where the weights are halved: a pixel at the edge of a defect is soon moved
HALVED_FROM = 64  # numbers in a tensor: smaller ones, such as biases, stay whole


def export(deployed: nn.Module, kind: Kind, shape: tuple[int, int, int], path: Path) -> None:
    """Write `path` for tiles uint8 [H, W, C], any batch; `deployed` takes and gives what engines.base says.

    The exporter that traces is used: it folds batch normalisation and leaves no trace of this machine in the
    file, where the one that compiles writes source paths and stack traces into every node.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the other exporter is recommended; that shapes are fixed
        torch.onnx.export(
            deployed.float().cpu().eval(),
            (example,),
            str(path),
            input_names=["pixels"],
            output_names=list(OUTPUTS[kind]),
            dynamic_axes={name: {0: "N"} for name in ("pixels", *OUTPUTS[kind])},
            opset_version=OPSET,
            dynamo=False,
        )


def export_small(
    deployed: nn.Module,
    kind: Kind,
    shape: tuple[int, int, int],
    path: Path,
    tiles: np.ndarray,
    classes: tuple[str, ...],
) -> float:
    """Write and check the file; its weights are halved where the answers on `tiles` hardly change.

    Returns the largest difference as `check_export` does, which raises for a file that is not the network.
    """
    export(deployed, kind, shape, path)
    exact = check_export(deployed, kind, path, tiles, classes)
    whole = path.read_bytes()
    halve(path)
    try:
        return check_export(deployed, kind, path, tiles, classes, HALVES_MAY_COST)
    except EngineError:
        path.write_bytes(whole)
        return exact


def halve(path: Path) -> None:
    """Keep the weights as 16-bit floats that are widened on loading: half the file, the same arithmetic."""
    model = onnx.load(str(path))
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= HALVED_FROM:
            name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def check_export(
    deployed: nn.Module,
    kind: Kind,
    path: Path,
    tiles: np.ndarray,
    classes: tuple[str, ...],
    tolerance: float = TOLERANCE,
) -> float:
    """Compare the file, run by the cpu engine, with the network on uint8 [n, H, W, C].

    Returns the largest difference of a score (classifier), or of the winning label's confidence (segmenter).
    Raises EngineError when it is above `tolerance`.
    """
    with torch.no_grad():
        want = deployed.float().cpu().eval()(torch.from_numpy(tiles))
    with open_engine("cpu", path, kind, classes, EngineOptions(max_batch=len(tiles), in_flight=1)) as engine:
        got = engine.submit(tiles).result()
    if kind == "classifier":
        difference = float(np.abs(got["scores"] - want.numpy()).max())
    else:
        difference = float(np.abs(got["confidence"].astype(int) - want[1].numpy().astype(int)).max() / 255)
    if difference > tolerance:
        raise EngineError(f"{path} differs from the network by {difference:.4g}, allowed is {tolerance}", "unfit")
    return difference
