"""Which number format an engine computes in, and which file holds the model in it; runs nothing.

`classifier.onnx` is the model; `classifier.int8.onnx` and `classifier.fp16.onnx` beside it are made from it
(`aoi build`) and take its place in the engines whose name ends so. In float32 every engine runs the model itself.
"""

from __future__ import annotations

from pathlib import Path

FLOAT = "fp32"
PRECISIONS = (FLOAT, "fp16", "int8", "fp8")


def precision_of(engine: str) -> str:
    """Of an engine's name in ENGINES: `cpu-int8` → int8; `cpu` → fp32."""
    last = engine.rpartition("-")[2]
    return last if last in PRECISIONS else FLOAT


def variant_path(model: Path, precision: str) -> Path:
    """Where the model in this precision lies: beside it, its precision before the suffix."""
    return model if precision == FLOAT else model.with_suffix(f".{precision}{model.suffix}")
