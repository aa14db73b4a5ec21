"""OpenVINO behind the engine contract: Intel and AMD CPUs, and Intel's iGPU and NPU by device name.

One static model per batch size is compiled, because a dynamic batch costs up to half the speed when sizes
alternate and stalls on each size's first use; a batch between two sizes is padded to the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from engines.base import OUTPUTS, EngineError, EngineOptions, EngineSpec, Kind, Outputs, Pixels, check_batch
from engines.onnx_file import check_self_contained, read_model_file
from engines.precision import FLOAT


def batch_sizes(max_batch: int) -> list[int]:
    """Compiled sizes: all up to 4, then steps of a quarter octave at most, so that padding stays small.

    >>> batch_sizes(16)
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    sizes, size, step = [], 1, 1
    while size < max_batch:
        sizes.append(size)
        step = max(1, (1 << (size.bit_length() - 1)) // 4)
        size += step
    return [*sizes, max_batch]


class CpuTicket:
    """One running request; `result` copies its outputs, so the request is free for the next batch."""

    def __init__(self, engine: CpuEngine, size: int, rows: int, batch: Pixels) -> None:
        self._engine, self._size, self._rows = engine, size, rows
        self._batch = batch  # OpenVINO reads it in place: it must live as long as the request
        self._request = engine._idle[size].pop()
        self._done = threading.Event()

    def start(self, notify: Callable[[], None] | None) -> CpuTicket:
        def finished(_: object) -> None:
            self._done.set()
            if notify:
                notify()

        try:
            self._request.set_callback(finished, None)
            self._request.set_input_tensor(ov.Tensor(self._batch, shared_memory=True))
            self._request.start_async()
        except RuntimeError as error:
            self._engine._idle[self._size].append(self._request)
            raise EngineError(f"OpenVINO: {_first_line(error)}", "batch") from error
        return self

    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Outputs:
        try:
            self._request.wait()
            names = OUTPUTS[self._engine.spec.kind]
            return {name: self._request.get_tensor(name).data[: self._rows].copy() for name in names}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO: {_first_line(error)}", "batch") from error
        finally:
            self._engine._idle[self._size].append(self._request)


class CpuEngine:
    """An ONNX file on an OpenVINO device; see engines.base for the tensors."""

    def __init__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> None:
        self._options = options
        self._core = ov.Core()
        content, model_hash = read_model_file(model, options.sha256)
        check_self_contained(content, model)
        self._model = self._read(model, content)
        height, width, channels = _tile_shape(self._model, model, kind, classes)
        self._idle: dict[int, list[Any]] = {}
        device = options.device or "CPU"
        self.spec = EngineSpec(
            engine="cpu" if options.precision == FLOAT else f"cpu-{options.precision}",
            kind=kind,
            device=self._device_name(device),
            height=height,
            width=width,
            channels=channels,
            classes=classes,
            max_batch=options.max_batch,
            in_flight=options.in_flight,
            model_hash=model_hash,
            runtime=f"OpenVINO {ov.__version__.partition('-')[0]}",
        )

    def _read(self, model: Path, content: bytes) -> ov.Model:
        try:
            return self._core.read_model(content, b"")
        except RuntimeError as error:
            raise EngineError(f"{model} is not an ONNX model: {_first_line(error)}", "unfit") from error

    def _device_name(self, device: str) -> str:
        try:
            return str(self._core.get_property(device, "FULL_DEVICE_NAME")).strip()
        except RuntimeError as error:
            have = ", ".join(self._core.available_devices)
            raise EngineError(f"OpenVINO has no device {device!r} here; there are: {have}", "missing") from error

    def __enter__(self) -> CpuEngine:
        for size in batch_sizes(self.spec.max_batch):
            compiled = self._compile(size)
            self._idle[size] = [compiled.create_infer_request() for _ in range(self.spec.in_flight)]
        for size in self._idle:
            self.submit(np.zeros((size, *self.spec.tile_shape), np.uint8)).result()
        return self

    def _compile(self, size: int) -> Any:
        model = self._model.clone()
        model.reshape([size, *self.spec.tile_shape])
        config: dict[str, Any] = {"CACHE_DIR": ""}
        device = self._options.device or "CPU"
        if device == "CPU":
            config |= {"NUM_STREAMS": self.spec.in_flight, "INFERENCE_NUM_THREADS": self._options.threads}
            config["ENABLE_CPU_PINNING"] = False  # pinned processes fight over the same cores
            config["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 wherever the CPU has it: other verdicts
        try:
            return self._core.compile_model(model, device, config)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile for {device}: {_first_line(error)}", "unfit") from error

    def __exit__(self, *exc: object) -> None:
        self._idle.clear()

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> CpuTicket:
        check_batch(self.spec, batch)
        if not self._idle:
            raise EngineError("engine is closed; enter it first", "broken")
        rows = len(batch)
        size = next(size for size in self._idle if size >= rows)
        padded = np.ascontiguousarray(batch) if size == rows else _padded(batch, size)
        return CpuTicket(self, size, rows, padded).start(notify)


def _padded(batch: Pixels, size: int) -> Pixels:
    padded = np.zeros((size, *batch.shape[1:]), dtype=np.uint8)
    padded[: len(batch)] = batch
    return padded


def _tile_shape(model: ov.Model, path: Path, kind: Kind, classes: tuple[str, ...]) -> tuple[int, int, int]:
    """(H, W, C) of the input; EngineError when inputs or outputs are not those of engines.base."""
    inputs = [(port.any_name, port.element_type, port.partial_shape) for port in model.inputs]
    outputs = {name: port for port in model.outputs for name in port.names}
    wants = f"a {kind} has one input pixels: uint8 [N, H, W, 1 or 3] and the outputs {', '.join(OUTPUTS[kind])}"
    if len(inputs) != 1 or inputs[0][0] != "pixels" or inputs[0][1] != ov.Type.u8 or len(inputs[0][2]) != 4:
        found = "; ".join(f"{name}: {dtype.get_type_name()} {shape}" for name, dtype, shape in inputs)
        raise EngineError(f"{path} has wrong inputs ({found}): {wants}", "unfit")
    if missing := [name for name in OUTPUTS[kind] if name not in outputs]:
        raise EngineError(f"{path} has no output {missing[0]!r}: {wants}", "unfit")
    if any(dimension.is_dynamic for dimension in list(inputs[0][2])[1:]):
        raise EngineError(f"{path} leaves its tile size open: export it with fixed H, W and C", "unfit")
    if kind == "classifier":
        width = outputs["scores"].partial_shape[1]
        if width.is_static and width.get_length() != len(classes):
            raise EngineError(f"{path} scores {width.get_length()} classes, the recipe names {len(classes)}", "unfit")
    height, width, channels = (dimension.get_length() for dimension in list(inputs[0][2])[1:])
    return height, width, channels


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def devices() -> list[str]:
    """What OpenVINO can run on here, e.g. `CPU (AMD EPYC)`."""
    core = ov.Core()
    return [f"{name} ({str(core.get_property(name, 'FULL_DEVICE_NAME')).strip()})" for name in core.available_devices]
