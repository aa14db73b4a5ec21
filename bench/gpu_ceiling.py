"""What one GPU can do at best, measured on the spot: copies over its bus, and one large matrix product after another.

Achieved figures are held against these, not against a data sheet: a card in a narrow slot, or warm, has others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from engines.batch_profiles import Profile
from engines.gpu import Gpu

MIB = 1 << 20
COPIED = 64 * MIB
SIDE, DEEP = 4096, 8  # rows and columns of each matrix, and how many of them
Clock = Callable[[], float]


def ceilings(gpu: Gpu, seconds: float = 1.0, clock: Clock = time.perf_counter) -> dict[str, float]:
    """{"to_device_bytes_per_s", "to_host_bytes_per_s", "fp32_flop_per_s", "fp16_flop_per_s"}"""
    with gpu.current():
        found = copies(gpu, seconds / 4, clock)
        for name in ("fp32", "fp16"):
            found[f"{name}_flop_per_s"] = products(gpu, name, seconds / 4, clock)
    return found


def copies(gpu: Gpu, seconds: float, clock: Clock, size: int = COPIED) -> dict[str, float]:
    """Bytes a second of pinned memory, each way alone."""
    host, device, stream = gpu.pinned((size,), np.uint8), gpu.allocate(size), gpu.stream()
    host.array[:] = 1
    try:
        down = _rate(lambda: stream.to_device(device.address, host.array), stream, seconds, clock)
        up = _rate(lambda: stream.to_host(host.array, device.address), stream, seconds, clock)
    finally:
        stream.synchronize()
        stream.close()
        device.free()
        host.free()
    return {"to_device_bytes_per_s": size * down, "to_host_bytes_per_s": size * up}


def products(gpu: Gpu, precision: str, seconds: float, clock: Clock, side: int = SIDE, deep: int = DEEP) -> float:
    """Operations a second of `deep` products of matrices of `side` × `side`, by the same runtime as the engines."""
    plan, _ = gpu.build(_matrices(precision, side, deep), (Profile(side, side, side),), b"")
    network = gpu.load(plan)
    assert network is not None, "refused right after it was built"
    buffers = {"pixels": gpu.allocate(side * side), "scores": gpu.allocate(4 * side * side)}
    workspace, stream = gpu.allocate(max(1, network.workspace)), gpu.stream()
    addresses = {name: each.address for name, each in buffers.items()}
    execution = network.execution(0, {"pixels": (side, side, 1, 1)}, addresses, workspace.address)
    try:
        return 2 * deep * side**3 * _rate(lambda: execution.run(stream), stream, seconds, clock)
    finally:
        stream.synchronize()
        for each in (execution, network, stream):
            each.close()
        for memory in (*buffers.values(), workspace):
            memory.free()


def _rate(work: Callable[[], None], stream: Any, seconds: float, clock: Clock) -> float:
    """How often a second, several at a time between two waits; the first ones are not counted."""
    for _ in range(3):
        work()
    stream.synchronize()
    done, start = 0, clock()
    while done < 8 or clock() - start < seconds:
        for _ in range(8):
            work()
        stream.synchronize()
        done += 8
    return done / (clock() - start)


def _matrices(precision: str, side: int, deep: int) -> bytes:
    """pixels uint8 [N, side, 1, 1] → scores float32 [N, side], as an ONNX file in this precision."""
    import onnx  # noqa: PLC0415 - an extra, and only here
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    kind, dtype = (TensorProto.FLOAT16, np.float16) if precision == "fp16" else (TensorProto.FLOAT, np.float32)
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((random.standard_normal((side, side)) / side**0.5).astype(dtype), f"w{number}")
        for number in range(deep)
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind),
        helper.make_node("Flatten", ["cast"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(deep)),
        helper.make_node("Cast", [f"x{deep}"], ["scores"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", side, 1, 1])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", side])]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
