"""ONNX → plan, in names that TensorRT 10.13 to 11.4 and TensorRT-RTX share; the module itself is handed in.

Strongly typed networks only: precision is what the file says. A missing half-precision flag can so never mean
float32 without a word. Names of this file are checked against old and new releases (tests/test_trt_names.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engines.base import EngineError
from engines.batch_profiles import Profile
from engines.gpu import kind_of
from engines.onnx_tensors import tensors

Tell = Callable[[str], None]
WORKSPACE = 1 << 30  # bytes that the builder may try tactics with
WITH_TIMINGS = ("tensorrt",)  # TensorRT-RTX measures nothing when it builds
KEPT = 3  # lines of TensorRT's log that an error tells


def logger(trt: Any, lines: list[str]) -> Any:
    """A TensorRT logger that keeps errors and warnings for whoever must explain what went wrong."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                lines.append(message.strip())

    return Log()


def build_plan(
    trt: Any, model: bytes, profiles: Sequence[Profile], tell: Tell = lambda said: None, timings: bytes = b""
) -> tuple[bytes, bytes]:
    """(plan, timing cache). `model`: as engines.trt_graph leaves it. Raises EngineError with TensorRT's own words."""
    lines: list[str] = []
    log = logger(trt, lines)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        said = "; ".join(f"{each.node_operator()} {each.node_name()!r}: {_first(each.desc())}" for each in errors)
        raise EngineError(f"{trt.__name__} {trt.__version__} does not take the model: {said}", "unfit")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.progress_monitor = _monitor(trt, tell)
    if trt.__name__ in WITH_TIMINGS:
        config.set_timing_cache(config.create_timing_cache(timings), False)
    name, shape = _input(model)
    for each in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(name, *((size, *shape) for size in (each.least, each.best, each.most)))
        if config.add_optimization_profile(profile) < 0:  # set_shape itself takes anything
            raise EngineError(f"{trt.__name__} refuses batches of {each.least} to {each.most}; {_last(lines)}", "unfit")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = _last(lines)
        kind = kind_of(said)
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot build it: {said}", "unfit" if kind == "batch" else kind
        )
    return bytes(plan), bytes(config.get_timing_cache().serialize()) if trt.__name__ in WITH_TIMINGS else b""


def _input(model: bytes) -> tuple[str, tuple[int, ...]]:
    inputs, _ = tensors(model)
    return inputs[0].name, inputs[0].shape[1:]


def _monitor(trt: Any, tell: Tell) -> Any:
    """Phases of the build, as they begin."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                tell(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

    return Monitor()


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _last(lines: Sequence[str]) -> str:
    return "; ".join(_first(line) for line in lines[-KEPT:]) or "it says nothing"
