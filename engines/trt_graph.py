"""An engine file as `aoi train` exports it → the same network in the words that TensorRT's parser takes; runs nothing.

TensorRT knows uint8 at the edges of a network alone: the first node after `pixels` must be its cast. PyTorch lays the
channels in front first. Casting and transposing change places here: the values are the same, bit for bit.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from engines.base import EngineError


def for_tensorrt(model: bytes) -> bytes:
    """The model with the cast of `pixels` first. Raises EngineError when they are not cast soon."""
    loaded = onnx.load_model_from_string(model)
    while (first := _only_reader(loaded, "pixels")).op_type != "Cast":
        _swap(loaded, first, _only_reader(loaded, first.output[0]))
    return bytes(loaded.SerializeToString())


def _only_reader(model: ModelProto, tensor: str) -> NodeProto:
    readers = [node for node in model.graph.node if tensor in node.input]
    if len(readers) != 1:
        raise EngineError(f"{tensor!r} goes to {len(readers)} nodes; export it so that its cast comes first", "unfit")
    return readers[0]


def _swap(model: ModelProto, mover: NodeProto, cast: NodeProto) -> None:
    """mover, cast → cast, mover; only for nodes that move values and change none."""
    if mover.op_type not in ("Transpose", "Reshape", "Squeeze", "Unsqueeze") or cast.op_type != "Cast":
        said = f"`pixels` goes through {mover.op_type} and {cast.op_type} as uint8, which TensorRT does not compute in"
        raise EngineError(f"{said}; export it so that its cast comes first", "unfit")
    between, last = f"{mover.output[0]}_cast", cast.output[0]
    cast.input[0], mover.input[0] = mover.input[0], between
    cast.output[0], mover.output[0] = between, last
    nodes = list(model.graph.node)
    a, b = nodes.index(mover), nodes.index(cast)
    nodes[a], nodes[b] = nodes[b], nodes[a]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    to = next(attribute.i for attribute in nodes[a].attribute if attribute.name == "to")
    _retype(model, {last: to})


def _retype(model: ModelProto, types: dict[str, int]) -> None:
    """Shapes that the file states stay true: only `last` keeps its name, and it already has its type."""
    known = [info for info in model.graph.value_info if info.name not in types or _is(info, types[info.name])]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def _is(info: onnx.ValueInfoProto, kind: int) -> bool:
    return bool(info.type.tensor_type.elem_type in (kind, TensorProto.UNDEFINED))
