"""What an engine is: a network that answers batches of uint8 tiles; it knows no frame and no recipe.

Tensors, the same for every engine and every exported ONNX file (N is the batch, always dynamic):

    input   `pixels`      uint8    [N, H, W, C]   C = 1 (mono8) or 3 (BGR8), values as the camera gave them
    classifier  → `scores`      float32  [N, K]       softmax over the recipe's classes; class 0 is "good"
    segmenter   → `labels`      uint8    [N, H, W]    argmax over the recipe's classes; 0 is background
                  `confidence`  uint8    [N, H, W]    probability of the winning label × 255, rounded

Normalisation, softmax and argmax are part of the graph, so that few bytes move in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Kind = Literal["classifier", "segmenter"]
Failure = Literal["missing", "unfit", "batch", "memory", "broken"]
Pixels = npt.NDArray[np.uint8]
Outputs = Mapping[str, npt.NDArray[np.generic]]
OUTPUTS: dict[Kind, tuple[str, ...]] = {"classifier": ("scores",), "segmenter": ("labels", "confidence")}


class EngineError(Exception):
    """An engine cannot be opened or a batch could not be run; the text says what to do.

    `kind` is what the worker acts on: `missing` (no such file or package), `unfit` (the model is not what
    the recipe says), `batch` (this batch failed, the engine still works), `memory` (too little on the device: fewer
    tiles at a time may do), `broken` (the engine is gone, and on a GPU the process's whole context with it).
    """

    def __init__(self, message: str, kind: Failure = "broken") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class EngineOptions:
    """How to run a model: the same knobs for every engine, and which file it must be."""

    device: str = ""  # engine's own default when empty; OpenVINO: CPU, GPU, NPU; TensorRT: number of the GPU
    threads: int = 0  # 0: every core
    in_flight: int = 2  # batches that may be submitted and not yet collected
    max_batch: int = 8
    sha256: str = ""  # of the model file; empty: any file will do
    precision: str = "fp32"  # of that file; an engine that is not told computes in float32


@dataclass(frozen=True)
class EngineSpec:
    """What an opened engine says of itself."""

    engine: str  # its name in ENGINES
    kind: Kind
    device: str  # in words, the same for every device that computes alike
    height: int  # px
    width: int  # px
    channels: int  # 1 or 3
    classes: tuple[str, ...]
    max_batch: int
    in_flight: int
    model_hash: str  # sha256 of the model file, hexadecimal
    runtime: str = ""  # what computes it, with its version: other versions may compute otherwise

    remark: str = ""  # of whoever opened it: what a verdict must say besides

    @property
    def place(self) -> str:
        """The device with the remark, as it stands in verdicts."""
        return f"{self.device} ({self.remark})" if self.remark else self.device

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one tile."""
        return self.height, self.width, self.channels


class Ticket(Protocol):
    """One submitted batch."""

    def done(self) -> bool: ...  # never blocks

    def result(self) -> Outputs: ...  # blocks until done; arrays are the caller's; raises EngineError


class Engine(Protocol):
    """A network on a device. Nothing is loaded or allocated before `__enter__`.

    Its maker reads the model file once and checks those bytes before a runtime sees them (engines/onnx_file.py).
    `__enter__` loads, compiles and warms up every batch size, so that no later batch pays for it.
    `submit` takes uint8 [n, H, W, C], 1 ≤ n ≤ max_batch; it does not block while fewer than `in_flight`
    tickets are uncollected; the array must not change until the ticket is done. `notify` is called from
    any thread when the ticket is done. Padding to a profile is the engine's own business.
    """

    @property
    def spec(self) -> EngineSpec: ...

    def __enter__(self) -> Engine: ...

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> Ticket: ...

    def __exit__(self, *exc: object) -> None: ...


class EngineFactory(Protocol):
    """What stands behind a name in ENGINES."""

    def __call__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> Engine: ...


def check_batch(spec: EngineSpec, batch: Pixels) -> None:
    """Refuse what is not uint8 [1…max_batch, H, W, C], with both shapes in the message."""
    fits = batch.dtype == np.uint8 and batch.shape[1:] == spec.tile_shape and 1 <= len(batch) <= spec.max_batch
    if not fits:
        want = f"uint8 [1…{spec.max_batch}, {spec.height}, {spec.width}, {spec.channels}]"
        raise EngineError(f"{spec.kind} takes {want}, got {batch.dtype} {list(batch.shape)}", "batch")
