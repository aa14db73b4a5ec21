"""A compiled network behind the engine contract, on any `engines.gpu.Gpu`: what waits where, and who frees what.

Each batch in flight has a slot of its own: pinned buffers, device buffers, a stream, and an execution for every
prepared size, so that copies of one batch run beside the computing of another and nothing is allocated on the way.
Where the driver can, copies and kernels of a size are one CUDA graph. A batch is copied into its slot when it is
submitted and out of it when it is collected: its arrays are the caller's. Rows that pad a batch hold what was there
before; no row's answer depends on another's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.base import OUTPUTS, EngineError, EngineOptions, EngineSpec, Kind, Outputs, Pixels, check_batch
from engines.batch_profiles import prepared_sizes, profile_for, profiles, size_for
from engines.gpu import Event, Execution, Gpu, GpuError, Memory, Network, Pinned, Stream, engine_error
from engines.onnx_file import check_self_contained, read_model_file
from engines.onnx_tensors import tile_shape
from engines.plan_cache import PlanCache, PlanFacts, plan_of

INPUT = "pixels"
OpenGpu = Callable[[str], Gpu]  # of a device's number; raises EngineError where there is none


class PlanTicket:
    """One batch in one slot."""

    def __init__(self, engine: PlanEngine, slot: _Slot, rows: int, notify: Callable[[], None] | None) -> None:
        self._engine, self.slot, self.rows, self._notify = engine, slot, rows, notify
        self._done = threading.Event()
        self._error: EngineError | None = None

    def finish(self, error: EngineError | None) -> None:
        """Called once, by the thread that waits for the GPU."""
        self._error = error
        self._done.set()
        if self._notify:
            self._notify()

    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Outputs:
        self._done.wait()
        try:
            if self._error:
                raise self._error
            return {name: np.array(pinned.array[: self.rows]) for name, pinned in self.slot.host_out.items()}
        finally:
            self._engine.give_back(self.slot)


@dataclass(eq=False)
class _Slot:
    """What one batch in flight needs; `free` undoes it in reverse."""

    stream: Stream
    host_in: Pinned
    host_out: dict[str, Pinned] = field(default_factory=dict)
    device: dict[str, Memory] = field(default_factory=dict)
    workspace: Memory | None = None
    executions: dict[int, Execution] = field(default_factory=dict)  # by size
    graphs: dict[int, Callable[[], None]] = field(default_factory=dict)

    def run(self, size: int) -> Event:
        """A prepared size, from pinned memory to pinned memory."""
        if size in self.graphs:
            self.graphs[size]()
        else:
            self.work(size)
        return self.stream.record()

    def work(self, size: int) -> None:
        self.stream.to_device(self.device[INPUT].address, self.host_in.array[:size])
        self.executions[size].run(self.stream)
        for name, pinned in self.host_out.items():
            self.stream.to_host(pinned.array[:size], self.device[name].address)

    def free(self) -> None:
        with suppress(GpuError):  # of a context that is broken nothing can be freed, and the process ends
            self.stream.synchronize()
        self.graphs.clear()
        made = [execution.close for execution in self.executions.values()] + [self.stream.close]
        made += [memory.free for memory in self.device.values()]
        made += [pinned.free for pinned in (self.host_in, *self.host_out.values())]
        made += [self.workspace.free] if self.workspace else []
        for undo in made:
            with suppress(GpuError):
                undo()


class PlanEngine:
    """See the module's text; `open_gpu` is the driver."""

    def __init__(
        self,
        model: Path,
        kind: Kind,
        classes: tuple[str, ...],
        options: EngineOptions,
        open_gpu: OpenGpu,
        cache: PlanCache | None = None,
    ) -> None:
        self._content, model_hash = read_model_file(model, options.sha256)
        check_self_contained(self._content, model)
        height, width, channels = tile_shape(self._content, model, kind, classes)
        self._options, self._cache = options, cache or PlanCache()
        self._gpu = open_gpu(options.device)
        facts = self._gpu.facts
        self.spec = EngineSpec(
            engine=f"trt-{options.precision}",
            kind=kind,
            device=facts.name,
            height=height,
            width=width,
            channels=channels,
            classes=classes,
            max_batch=options.max_batch,
            in_flight=options.in_flight,
            model_hash=model_hash,
            runtime=f"{facts.product} {facts.version}, CUDA driver {facts.driver}",
        )
        self._profiles, self._sizes = profiles(options.max_batch), prepared_sizes(options.max_batch)
        self._network: Network | None = None
        self._slots: list[_Slot] = []
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._running: queue.SimpleQueue[tuple[PlanTicket, Event] | None] = queue.SimpleQueue()
        self._waiter: threading.Thread | None = None

    def __enter__(self) -> PlanEngine:
        try:
            with self._gpu.current():
                self._open()
        except GpuError as error:
            self.__exit__()
            raise engine_error(error, f"{self.spec.engine} cannot be opened") from error
        except BaseException:
            self.__exit__()
            raise
        self._waiter = threading.Thread(target=self._wait, name="aoi-gpu", daemon=True)
        self._waiter.start()
        return self

    def _open(self) -> None:
        facts = PlanFacts(self.spec.model_hash, self._options.precision, self._gpu.facts, self._profiles)
        self._network = plan_of(self._cache, facts, self._build, self._gpu.load)
        for _ in range(self.spec.in_flight):
            self._slots.append(slot := self._slot(self._network))
            self._fill(slot, self._network)
            self._idle.put(slot)

    def _build(self) -> bytes:
        timings = self._cache.timings(self._gpu.facts)
        before = timings.read_bytes() if timings.is_file() else b""
        plan, after = self._gpu.build(self._content, self._profiles, before)
        if after and after != before:
            self._cache.write(timings, after)
        return plan

    def _slot(self, network: Network) -> _Slot:
        shape = (self.spec.max_batch, *self.spec.tile_shape)
        return _Slot(self._gpu.stream(), self._gpu.pinned(shape, np.uint8))

    def _fill(self, slot: _Slot, network: Network) -> None:
        """Allocate, prepare every size and run it once, so that no later batch pays for it."""
        slot.host_in.array[:] = 0
        for name, (shape, dtype) in self._outputs().items():
            slot.host_out[name] = self._gpu.pinned(shape, dtype)
        arrays = {INPUT: slot.host_in.array, **{name: each.array for name, each in slot.host_out.items()}}
        for name, array in arrays.items():
            slot.device[name] = self._gpu.allocate(array.nbytes)
        slot.workspace = self._gpu.allocate(max(1, network.workspace))
        addresses = {name: memory.address for name, memory in slot.device.items()}
        for size in self._sizes:
            shapes = {INPUT: (size, *self.spec.tile_shape)}
            number = profile_for(size, self._profiles)
            slot.executions[size] = network.execution(number, shapes, addresses, slot.workspace.address)
            slot.run(size).wait()
            if graph := slot.stream.capture(lambda size=size: slot.work(size)):  # type: ignore[misc]
                slot.graphs[size] = graph
                slot.run(size).wait()

    def _outputs(self) -> Mapping[str, tuple[tuple[int, ...], type[np.generic]]]:
        most, height, width = self.spec.max_batch, self.spec.height, self.spec.width
        if self.spec.kind == "classifier":
            return {"scores": ((most, len(self.spec.classes)), np.float32)}
        return dict.fromkeys(OUTPUTS["segmenter"], ((most, height, width), np.uint8))

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> PlanTicket:
        check_batch(self.spec, batch)
        if self._waiter is None:
            raise EngineError("engine is closed; enter it first", "broken")
        rows = len(batch)
        try:
            slot = self._idle.get_nowait()
        except queue.Empty:
            raise EngineError(
                f"{self.spec.in_flight} batches are not collected yet; collect one first", "batch"
            ) from None
        ticket = PlanTicket(self, slot, rows, notify)
        try:
            slot.host_in.array[:rows] = batch
            with self._gpu.current():
                event = slot.run(size_for(rows, self._sizes))
        except GpuError as error:
            self._idle.put(slot)
            raise engine_error(error, self.spec.engine) from error
        self._running.put((ticket, event))
        return ticket

    def give_back(self, slot: _Slot) -> None:
        """Its batch was collected."""
        self._idle.put(slot)

    def _wait(self) -> None:
        """Wait for batches in the order they were submitted, and say when each is done."""
        while (running := self._running.get()) is not None:
            ticket, event = running
            failure: EngineError | None = None
            try:
                with self._gpu.current():
                    event.wait()
            except GpuError as error:
                failure = engine_error(error, self.spec.engine)
            ticket.finish(failure)

    def __exit__(self, *exc: object) -> None:
        if self._waiter:
            self._running.put(None)
            self._waiter.join()
            self._waiter = None
        with suppress(GpuError), self._gpu.current():
            for slot in self._slots:
                slot.free()
            if self._network:
                with suppress(GpuError):
                    self._network.close()
        self._slots, self._network, self._idle = [], None, queue.SimpleQueue()
