"""Reads a model file once, checks it is the one meant, and that it is whole in itself; runs nothing.

Whoever opens a model hands on the bytes that were checked, never the path again: between two readings a file may
change. An ONNX file may name other files for its weights, whose content no hash of it covers and which a runtime
looks for in the folder it happens to run in; so a model's weights must lie in the file itself.

Only as much of protobuf is read as leads to the tensors: https://protobuf.dev/programming-guides/encoding and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the field numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from engines.base import EngineError

LARGEST = 1 << 31  # bytes; of a protobuf message
GRAPH, LOCATION, EXTERNAL_DATA = 7, 14, 13
FIELDS: Mapping[str, Mapping[int, str]] = {  # message → field → the message that lies in it
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_model_file(path: Path, sha256: str = "") -> tuple[bytes, str]:
    """The file's bytes and their SHA-256; EngineError when a hash is wanted and it is another."""
    try:
        if path.stat().st_size > LARGEST:
            raise EngineError(f"{path} is larger than a model can be ({LARGEST} bytes)", "unfit")
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}", "missing") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256.lower():
        wrong = f"{path} is not the file that the recipe was made with (sha256 differs)"
        raise EngineError(f"{wrong}; put the right file back or correct sha256", "unfit")
    return content, found


def check_self_contained(content: bytes, name: object) -> None:
    """EngineError unless these bytes are an ONNX model with all its weights in it."""
    try:
        outside = [kind for kind, number, value in _fields(content) if _points_outside(kind, number, value)]
        has_graph = any(number == GRAPH and wire == BYTES for number, wire, _ in split_message(memoryview(content)))
    except ValueError as error:
        raise EngineError(f"{name} is not an ONNX model: {error}; copy it again", "unfit") from error
    if not has_graph:
        raise EngineError(f"{name} is not an ONNX model: it holds no graph; copy it again", "unfit")
    if outside:
        mend = "save it with its weights inside (onnx.save without save_as_external_data)"
        raise EngineError(f"{name} keeps weights in other files; {mend}", "unfit")


def _points_outside(kind: str, number: int, value: int | memoryview) -> bool:
    return kind == "tensor" and (number == EXTERNAL_DATA or (number == LOCATION and value != 0))


def _fields(content: bytes) -> Iterator[tuple[str, int, int | memoryview]]:
    """(message, field, value) of everything that may lead to a tensor, nested however deep."""
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for number, wire, value in split_message(message):
            yield kind, number, value
            inner = FIELDS[kind].get(number)
            if inner and wire == BYTES and isinstance(value, memoryview):
                waiting.append((inner, value))


def split_message(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field, wire type, value) of one message; ValueError where it is none or cut off."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview = 0
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32, BYTES):
            length, at = (8 if wire == FIXED64 else 4, at) if wire != BYTES else _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError("its bytes are no protobuf message")
        if at > len(message):
            raise ValueError("it is cut off")
        yield number, wire, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("its bytes are no protobuf message")
