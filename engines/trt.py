"""TensorRT or TensorRT-RTX on NVIDIA's GPUs, by pycuda: the only file that imports any of them, and only when asked.

Both products share the names used here and in engines.plan_build; where one has more, it is asked for. The device's
primary context is used, which torch and TensorRT's own calls share; a second one would break them. It is made current
by every call, for the calling thread alone, and each of pycuda's errors leaves as a GpuError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy.typing as npt

from engines.base import EngineError, EngineOptions, Kind
from engines.batch_profiles import Profile
from engines.cuda_driver import Lack, driver_trouble, kernel_driver
from engines.gpu import Array, GpuError, GpuFacts, Stream
from engines.plan_build import build_plan, logger
from engines.plan_engine import PlanEngine

log = logging.getLogger("aoi.engines")
PRODUCTS = ("tensorrt", "tensorrt_rtx")  # the first that is installed
FIRST_WITH_FP8 = (8, 9)
INSTALL_PRODUCT = (
    "RTX cards: pip install 'inline-aoi[rtx]'; servers and Jetson: 'inline-aoi[tensorrt]' from NVIDIA's index"
)


def lacks() -> list[Lack]:
    """What is missing to run on a GPU of this machine; nothing: it can be tried."""
    found = []
    if not any(map(_installed, PRODUCTS)):
        found.append(Lack(f"neither {' nor '.join(PRODUCTS)} is installed", INSTALL_PRODUCT))
    if not _installed("pycuda"):
        found.append(Lack("pycuda is not installed", "pip install pycuda, with CUDA's headers and compiler at hand"))
    if not _installed("onnx"):
        found.append(Lack("onnx is not installed", "pip install onnx"))
    if trouble := driver_trouble():
        found.append(trouble)
    return found


def _installed(name: str) -> bool:
    return find_spec(name) is not None


def devices() -> list[str]:
    """The GPUs of this machine. Raises EngineError with all that is missing."""
    cuda = _cuda()
    found = []
    for number in range(cuda.Device.count()):
        device = cuda.Device(number)
        capability = ".".join(map(str, device.compute_capability()))
        found.append(f"{number}: {device.name()} ({capability}, {device.total_memory() / 2**30:.0f} GiB)")
    return found


def _cuda() -> Any:
    """pycuda's driver interface, initialised. Raises EngineError with all that is missing."""
    if missing := lacks():
        raise EngineError("; ".join(map(str, missing)), "missing")
    cuda = _loaded("pycuda.driver")
    try:
        cuda.init()
    except cuda.Error as error:
        raise EngineError(f"the NVIDIA driver does not start: {error}; see `aoi doctor`", "missing") from error
    return cuda


def _loaded(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise EngineError(f"{name} cannot be loaded: {error}; see `aoi doctor`", "missing") from error


def _tensorrt() -> Any:
    return _loaded(next(name for name in PRODUCTS if _installed(name)))


class TrtEngine(PlanEngine):
    """An ONNX file compiled for one GPU; `options.device` is its number."""

    def __init__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> None:
        super().__init__(model, kind, classes, options, CudaGpu)
        capability = tuple(int(part) for part in self._gpu.facts.capability.split("."))
        if options.precision == "fp8" and capability < FIRST_WITH_FP8:
            raise EngineError(f"{self.spec.device} has no FP8 (compute capability 8.9 or more): use trt-int8", "unfit")


class CudaGpu:
    """One GPU by its number; see engines.gpu.Gpu."""

    def __init__(self, number: str = "") -> None:
        self._cuda, self._trt = _cuda(), _tensorrt()
        count = self._cuda.Device.count()
        if number and not (number.isdecimal() and int(number) < count):
            raise EngineError(f"no GPU {number!r}: device is a number below {count}", "missing")
        with _told(self._cuda):
            device = self._cuda.Device(int(number or 0))
            version = self._cuda.get_driver_version()
            self.facts = GpuFacts(
                name=device.name(),
                capability=".".join(map(str, device.compute_capability())),
                memory=device.total_memory(),
                driver=f"{version // 1000}.{version % 1000 // 10} {kernel_driver()}".strip(),
                product=self._trt.__name__,
                version=self._trt.__version__,
            )
        self._device: Any = device
        self._context: Any = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context, for this thread and this block; one pop for each push, whatever happens."""
        with _told(self._cuda):
            if self._context is None:
                self._context = self._device.retain_primary_context()
            self._context.push()
        try:
            with _told(self._cuda):
                yield
        finally:
            self._cuda.Context.pop()

    def build(self, model: bytes, profiles: Sequence[Profile], timings: bytes) -> tuple[bytes, bytes]:
        """See engines.plan_build; what it is doing goes to the log."""
        for_tensorrt = _loaded("engines.trt_graph").for_tensorrt
        log.info("building for %s with %s %s", self.facts.name, self.facts.product, self.facts.version)
        return build_plan(self._trt, for_tensorrt(model), profiles, log.info, timings)

    def load(self, plan: bytes) -> CudaNetwork | None:
        """None when TensorRT does not take it: then it was built elsewhere, or is damaged."""
        lines: list[str] = []
        runtime = self._trt.Runtime(logger(self._trt, lines))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            log.info("%s", "; ".join(lines))
            return None
        return CudaNetwork(self._cuda, self._trt, runtime, engine, lines)

    def allocate(self, size: int) -> CudaMemory:
        with _told(self._cuda):
            return CudaMemory(self._cuda, self._cuda.mem_alloc(size))

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> CudaPinned:
        with _told(self._cuda):
            return CudaPinned(self._cuda, self._cuda.pagelocked_empty(shape, dtype))

    def stream(self) -> CudaStream:
        with _told(self._cuda):
            return CudaStream(self._cuda, self._cuda.Stream())

    def close(self) -> None:
        """Let the primary context go; others of this process may still hold it."""
        if self._context is not None:
            with _told(self._cuda):
                self._context.detach()
            self._context = None


class CudaMemory:
    """Device memory, freed when told and no later."""

    def __init__(self, cuda: Any, held: Any) -> None:
        self._cuda, self._held = cuda, held
        self.address = int(held)

    def free(self) -> None:
        with _told(self._cuda):
            self._held.free()


class CudaPinned:
    """Page-locked host memory."""

    def __init__(self, cuda: Any, array: Any) -> None:
        self._cuda, self.array = cuda, array

    def free(self) -> None:
        with _told(self._cuda):
            self.array.base.free()


class CudaEvent:
    """Waits asleep, not spinning: the line's other threads need the core."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._cuda = cuda
        self._event = cuda.Event(cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING)
        self._event.record(stream)

    def wait(self) -> None:
        with _told(self._cuda):
            self._event.synchronize()


class CudaStream:
    """A stream, and the CUDA graphs captured from it."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._cuda, self._stream, self._graphs = cuda, stream, list[Any]()
        self.handle = int(stream.handle)

    def to_device(self, address: int, host: Array) -> None:
        with _told(self._cuda):
            self._cuda.memcpy_htod_async(address, host, self._stream)

    def to_host(self, host: Array, address: int) -> None:
        with _told(self._cuda):
            self._cuda.memcpy_dtoh_async(host, address, self._stream)

    def record(self) -> CudaEvent:
        with _told(self._cuda):
            return CudaEvent(self._cuda, self._stream)

    def synchronize(self) -> None:
        with _told(self._cuda):
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """The work as a CUDA graph, which pycuda has no words for; None without cuda-bindings, or if it is refused."""
        if not (_installed("cuda") and _installed("cuda.bindings")):
            return None
        api = _loaded("cuda.bindings.driver")
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(api, api.cuStreamBeginCapture(self.handle, mode))
        try:
            work()
        except GpuError as error:
            api.cuStreamEndCapture(self.handle)
            log.info("no CUDA graph: %s", error)
            return None
        graph = _checked(api, api.cuStreamEndCapture(self.handle))
        launchable = _checked(api, api.cuGraphInstantiate(graph, 0))
        _checked(api, api.cuGraphDestroy(graph))
        self._graphs.append(launchable)

        def replay() -> None:
            _checked(api, api.cuGraphLaunch(launchable, self.handle))

        return replay

    def close(self) -> None:
        for launchable in self._graphs:
            _loaded("cuda.bindings.driver").cuGraphExecDestroy(launchable)
        self._graphs.clear()
        self._stream = None


class CudaNetwork:
    """A deserialised engine; `lines` is its log."""

    def __init__(self, cuda: Any, trt: Any, runtime: Any, engine: Any, lines: list[str]) -> None:
        self._cuda, self._trt, self._runtime, self._engine, self._lines = cuda, trt, runtime, engine, lines
        self.workspace = int(engine.device_memory_size_v2)

    def execution(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], workspace: int
    ) -> CudaExecution:
        """A context of its own for one size: a captured graph lives as long as its shapes and addresses stay."""
        context = self._context()
        stream = self._cuda.Stream()
        context.set_device_memory(workspace, max(1, self.workspace))
        said = [context.set_optimization_profile_async(profile, int(stream.handle))]
        stream.synchronize()
        said += [context.set_input_shape(name, shape) for name, shape in shapes.items()]
        said += [context.set_tensor_address(name, address) for name, address in addresses.items()]
        names = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}
        if not all(said) or names != set(addresses):
            raise GpuError(f"TensorRT refuses batches like {dict(shapes)}: {'; '.join(self._lines[-3:])}", "unfit")
        return CudaExecution(context, self._lines)

    def _context(self) -> Any:
        """With memory of ours; TensorRT-RTX compiles its kernels now, not behind the first batches' backs."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if eager := getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None):
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = eager.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise GpuError(f"TensorRT makes no execution context: {'; '.join(self._lines[-3:]) or 'out of memory'}")
        return context

    def close(self) -> None:
        self._engine = self._runtime = None


class CudaExecution:
    """One execution context, its shapes and addresses set for good."""

    def __init__(self, context: Any, lines: list[str]) -> None:
        self._context, self._lines = context, lines

    def run(self, stream: Stream) -> None:
        if not self._context.execute_async_v3(stream.handle):
            raise GpuError(f"TensorRT did not start a batch: {'; '.join(self._lines[-3:]) or 'it says nothing'}")

    def close(self) -> None:
        self._context = None


@contextmanager
def _told(cuda: Any) -> Iterator[None]:
    """pycuda's errors as ours."""
    try:
        yield
    except cuda.MemoryError as error:
        raise GpuError(str(error), "memory") from error
    except cuda.Error as error:
        raise GpuError(str(error)) from error


def _checked(api: Any, answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings gives besides its code; GpuError for a code."""
    code, *rest = answer
    if int(code):
        words = api.cuGetErrorString(code)[1]
        raise GpuError(words.decode() if isinstance(words, bytes) else str(words))
    return rest[0] if rest else None
