"""How many floating point operations a network takes for a tile: two a multiplication, of layers with weights."""

from __future__ import annotations

import math
from typing import Any


def operations(model: bytes) -> int:
    """Of convolutions and matrix products, for one tile, from the file's own shapes. Needs onnx."""
    import onnx  # noqa: PLC0415 - an extra, and only here

    loaded = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    graph = loaded.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        shapes.setdefault(info.name, tuple(dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim))
    return sum(_of(node, shapes) for node in graph.node)


def _of(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    weights = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
    made = shapes.get(node.output[0], ()) if node.output else ()
    if node.op_type == "Conv" and weights:
        return 2 * math.prod(made) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose" and weights:
        return 2 * math.prod(shapes.get(node.input[0], ())) * math.prod(weights[1:])
    if node.op_type in ("Gemm", "MatMul") and len(weights) == 2:
        deep = weights[1] if _transposed(node) else weights[0]
        return 2 * math.prod(made) * deep
    return 0


def _transposed(node: Any) -> bool:
    return any(each.name == "transB" and each.i for each in node.attribute)
