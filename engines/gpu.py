"""What of a GPU an engine needs: buffers, streams, a compiled network; and what its errors mean. Imports no driver.

`engines.trt` has the real one; the tests have one in host memory, and one contract is run over both. Everything but
the properties is called with the context current in the calling thread (`with gpu.current():`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.base import EngineError, Failure
from engines.batch_profiles import Profile

Array = npt.NDArray[np.generic]

# Driver errors after which nothing in this process's context works any more: CUresult 214, 700, 702, 709, 710, 713 …
# 719 (CUDA Driver API, "Data types used by CUDA driver", "…the process must be terminated and relaunched").
STICKY = (
    "illegal memory access",
    "illegal address",
    "launch failed",
    "launch failure",
    "launch timed out",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "uncorrectable",
    "device-side assert",
    "context is destroyed",
    "contained",
)
MEMORY = ("out of memory", "outofmemory", "out_of_memory")
GONE = (
    "no cuda-capable device",
    "no device",
    "driver version is insufficient",
    "initialization error",
    "not initialized",
)


class GpuError(Exception):
    """Whatever a GPU refuses; `kind` as of EngineError."""

    def __init__(self, text: str, kind: Failure | None = None) -> None:
        self.kind: Failure = kind or kind_of(text)
        super().__init__(text.partition("\n")[0].strip())


def kind_of(text: str) -> Failure:
    """What a driver's or TensorRT's words mean for the engine; `batch` where they name nothing worse."""
    said = text.lower()
    if any(words in said for words in STICKY):
        return "broken"
    if any(words in said for words in MEMORY):
        return "memory"
    if any(words in said for words in GONE):
        return "missing"
    return "batch"


def engine_error(error: GpuError, at: str) -> EngineError:
    """The same for whoever runs an engine, with what is to be done."""
    mend = {
        "missing": "see `aoi doctor`",
        "memory": "use a smaller max_batch or in_flight, or end what else is on the GPU",
        "broken": "the process must be started again",
    }.get(error.kind, "")
    return EngineError(f"{at}: {error}" + (f"; {mend}" if mend else ""), error.kind)


@dataclass(frozen=True)
class GpuFacts:
    """What a compiled network depends on."""

    name: str
    capability: str  # compute capability, as 8.9
    memory: int  # bytes
    driver: str  # CUDA version of the driver, as 13.0
    product: str  # tensorrt or tensorrt_rtx
    version: str  # of it


class Event(Protocol):
    """A moment in a stream."""

    def wait(self) -> None: ...  # blocks until the stream has come there; raises what went wrong before


class Stream(Protocol):
    """Work in the order in which it was given; several run side by side."""

    @property
    def handle(self) -> int: ...  # as the driver knows it

    def to_device(self, address: int, host: Array) -> None: ...

    def to_host(self, host: Array, address: int) -> None: ...

    def record(self) -> Event: ...

    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None: ...  # its replay; None: cannot

    def close(self) -> None: ...


class Memory(Protocol):
    """Bytes on the device, at an address of 256 bytes' alignment."""

    @property
    def address(self) -> int: ...

    def free(self) -> None: ...


class Pinned(Protocol):
    """Page-locked host memory: copies from and to it run beside everything else."""

    @property
    def array(self) -> Array: ...

    def free(self) -> None: ...


class Execution(Protocol):
    """A network at one batch size."""

    def run(self, stream: Stream) -> None: ...

    def close(self) -> None: ...


class Network(Protocol):
    """A compiled network on the device."""

    @property
    def workspace(self) -> int: ...  # bytes of device memory that one execution at a time needs

    def execution(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], workspace: int
    ) -> Execution: ...

    def close(self) -> None: ...


class Gpu(Protocol):
    """One GPU in one process."""

    @property
    def facts(self) -> GpuFacts: ...

    def current(self) -> AbstractContextManager[None]: ...  # makes the context current in this thread

    def build(self, model: bytes, profiles: Sequence[Profile], timings: bytes) -> tuple[bytes, bytes]: ...

    # ONNX → plan, and the builder's measurements to go on with

    def load(self, plan: bytes) -> Network | None: ...  # None: a plan of another release or device

    def allocate(self, size: int) -> Memory: ...

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned: ...

    def stream(self) -> Stream: ...

    def close(self) -> None: ...
