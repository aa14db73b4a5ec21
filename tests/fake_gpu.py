"""A GPU in host memory behind engines.gpu.Gpu: real addresses, streams that run late, plans that ONNX Runtime computes.

Nothing of a stream's work is done before somebody waits for it, and then in order: who reads too early reads nothing.
Every call asks whether the context is current in its thread, and everything that was allocated is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.batch_profiles import Profile
from engines.gpu import Array, GpuError, GpuFacts, Stream

FACTS = GpuFacts("Fake GPU", "8.9", 1 << 30, "13.0 580.1", "tensorrt_fake", "1.0")


@dataclass
class FakeGpu:
    """`room`: bytes until it is out of memory; `fails`: what the next batch dies of."""

    facts: GpuFacts = FACTS
    room: int = 1 << 30
    fails: str = ""
    graphs: bool = True
    built: int = 0
    refuses: int = 0  # plans not taken
    held: dict[int, np.ndarray] = field(default_factory=dict)  # address → bytes
    open: list[object] = field(default_factory=list)  # streams, executions, networks
    _here: threading.local = field(default_factory=threading.local)
    _next: int = 0x7000_0000

    @contextmanager
    def current(self) -> Iterator[None]:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            yield
        finally:
            self._here.depth -= 1

    def check(self) -> None:
        if not getattr(self._here, "depth", 0):
            raise GpuError("invalid device context: no currently active context?")

    def build(self, model: bytes, profiles: Sequence[Profile], timings: bytes) -> tuple[bytes, bytes]:
        self.check()
        self.built += 1
        return b"plan" + model, timings or b"timings"

    def load(self, plan: bytes) -> FakeNetwork | None:
        self.check()
        if self.refuses:
            self.refuses -= 1
            return None
        return FakeNetwork(self, plan.removeprefix(b"plan"))

    def allocate(self, size: int) -> FakeMemory:
        self.check()
        return FakeMemory(self, size)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> FakePinned:
        self.check()
        memory = FakeMemory(self, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return FakePinned(memory, memory.bytes.view(dtype).reshape(shape))

    def stream(self) -> FakeStream:
        self.check()
        return FakeStream(self)

    def close(self) -> None:
        pass

    def bytes_at(self, address: int) -> np.ndarray:
        if address not in self.held:
            raise GpuError("an illegal memory access was encountered")
        return self.held[address]


class FakeMemory:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        if size > gpu.room:
            raise GpuError("cuMemAlloc failed: out of memory")
        gpu.room -= size
        gpu._next += -(-size // 256) * 256 + 256
        self._gpu, self.address, self.bytes = gpu, gpu._next, np.full(size, 0xAA, np.uint8)
        gpu.held[self.address] = self.bytes

    def free(self) -> None:
        self._gpu.check()
        self._gpu.room += len(self._gpu.held.pop(self.address))


@dataclass
class FakePinned:
    memory: FakeMemory
    array: Array

    def free(self) -> None:
        self.memory.free()


class FakeStream:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.work, self.lock, self.handle = gpu, list[Callable[[], None]](), threading.RLock(), id(self)
        self._captured: list[Callable[[], None]] | None = None
        gpu.open.append(self)

    def give(self, work: Callable[[], None]) -> None:
        self.gpu.check()
        if self._captured is not None:
            self._captured.append(work)
            return
        with self.lock:
            self.work.append(work)

    def to_device(self, address: int, host: Array) -> None:
        self.give(lambda: self._copy(self.gpu.bytes_at(address)[: host.nbytes], host.reshape(-1).view(np.uint8)))

    def to_host(self, host: Array, address: int) -> None:
        self.give(lambda: self._copy(host.reshape(-1).view(np.uint8), self.gpu.bytes_at(address)[: host.nbytes]))

    @staticmethod
    def _copy(to: np.ndarray, source: np.ndarray) -> None:
        to[:] = source

    def record(self) -> FakeEvent:
        self.gpu.check()
        return FakeEvent(self, len(self.work))

    def run(self, count: int) -> None:
        """The next so many of what was given, in order."""
        with self.lock:
            for _ in range(min(count, len(self.work))):
                self.work.pop(0)()

    def synchronize(self) -> None:
        self.gpu.check()
        self.run(len(self.work))

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        self.gpu.check()
        if not self.gpu.graphs:
            return None
        self._captured = []
        work()
        steps, self._captured = self._captured, None
        return lambda: self.give(lambda: [step() for step in steps])  # type: ignore[arg-type,return-value]

    def close(self) -> None:
        self.gpu.check()
        self.gpu.open.remove(self)


@dataclass
class FakeEvent:
    stream: FakeStream
    count: int

    def wait(self) -> None:
        self.stream.gpu.check()
        self.stream.run(self.count)


class FakeNetwork:
    workspace = 4096

    def __init__(self, gpu: FakeGpu, model: bytes) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - an extra

        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        self.gpu, self.session = gpu, ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        gpu.open.append(self)

    def execution(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], workspace: int
    ) -> FakeExecution:
        self.gpu.check()
        return FakeExecution(self, shapes, addresses)

    def close(self) -> None:
        self.gpu.check()
        self.gpu.open.remove(self)


class FakeExecution:
    def __init__(
        self, network: FakeNetwork, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]
    ) -> None:
        self._network, self._shape, self._addresses = network, shapes["pixels"], addresses
        network.gpu.open.append(self)

    def run(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        stream.give(self._compute)

    def _compute(self) -> None:
        gpu, session = self._network.gpu, self._network.session
        if gpu.fails:
            said, gpu.fails = gpu.fails, ""
            raise GpuError(said)
        count = int(np.prod(self._shape))
        pixels = gpu.bytes_at(self._addresses["pixels"])[:count].reshape(self._shape)
        names = [each.name for each in session.get_outputs()]
        for name, value in zip(names, session.run(names, {"pixels": pixels}), strict=True):
            raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            gpu.bytes_at(self._addresses[name])[: len(raw)] = raw

    def close(self) -> None:
        self._network.gpu.check()
        self._network.gpu.open.remove(self)
