"""The inputs and outputs that an ONNX file states, read without any runtime.

As in engines.onnx_file, no more of protobuf is read than leads there: graph → value_info → type → tensor type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.base import OUTPUTS, EngineError, Kind
from engines.onnx_file import GRAPH, split_message

FLOAT, UINT8 = 1, 2  # onnx.TensorProto.DataType
INITIALIZER, INPUT, OUTPUT = 5, 11, 12  # fields of a graph


@dataclass(frozen=True)
class Tensor:
    """A graph's input or output; a size of 0 is open."""

    name: str
    dtype: int
    shape: tuple[int, ...]


def tensors(content: bytes) -> tuple[list[Tensor], list[Tensor]]:
    """(inputs, outputs). Raises EngineError when the bytes are no ONNX model."""
    try:
        graph = next(_messages(memoryview(content), GRAPH), memoryview(b""))
        weights = {bytes(name) for each in _messages(graph, INITIALIZER) for name in _messages(each, 8)}
        inputs = [_tensor(each) for each in _messages(graph, INPUT)]
        return (
            [each for each in inputs if each.name.encode() not in weights],
            [_tensor(each) for each in _messages(graph, OUTPUT)],
        )
    except ValueError as error:
        raise EngineError(f"not an ONNX model: {error}; copy it again", "unfit") from error


def _messages(message: memoryview, field: int) -> Iterator[memoryview]:
    for number, _, value in split_message(message):
        if number == field and isinstance(value, memoryview):
            yield value


def _numbers(message: memoryview, field: int) -> Iterator[int]:
    for number, _, value in split_message(message):
        if number == field and isinstance(value, int):
            yield value


def _tensor(info: memoryview) -> Tensor:
    name = bytes(next(_messages(info, 1), memoryview(b""))).decode()
    kind = next((t for each in _messages(info, 2) for t in _messages(each, 1)), memoryview(b""))
    dims = [next(_numbers(dim, 1), 0) for shape in _messages(kind, 2) for dim in _messages(shape, 1)]
    return Tensor(name, next(_numbers(kind, 1), 0), tuple(dims))


def tile_shape(content: bytes, path: Path, kind: Kind, classes: tuple[str, ...]) -> tuple[int, int, int]:
    """(H, W, C) of the input; EngineError when inputs or outputs are not those of engines.base."""
    inputs, outputs = tensors(content)
    wants = f"a {kind} has one input pixels: uint8 [N, H, W, 1 or 3] and the outputs {', '.join(OUTPUTS[kind])}"
    if [(each.name, each.dtype, len(each.shape)) for each in inputs] != [("pixels", UINT8, 4)]:
        found = "; ".join(f"{each.name}: type {each.dtype} {list(each.shape)}" for each in inputs) or "none"
        raise EngineError(f"{path} has wrong inputs ({found}): {wants}", "unfit")
    there = {each.name: each for each in outputs}
    if missing := [name for name in OUTPUTS[kind] if name not in there]:
        raise EngineError(f"{path} has no output {missing[0]!r}: {wants}", "unfit")
    height, width, channels = inputs[0].shape[1:]
    if not (height and width and channels):
        raise EngineError(f"{path} leaves its tile size open: export it with fixed H, W and C", "unfit")
    scored = there["scores"].shape[1:2] if kind == "classifier" else ()
    if scored and scored[0] not in (0, len(classes)):
        raise EngineError(f"{path} scores {scored[0]} classes, the recipe names {len(classes)}", "unfit")
    return height, width, channels
