"""One contract over what stands for a GPU: the fake of these tests, and a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fake_gpu import FakeGpu

from engines import trt
from engines.gpu import Gpu, GpuError, engine_error, kind_of

MIB = 1 << 20


@pytest.fixture(params=["fake", "real"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """With its context current in this thread."""
    if request.param == "real" and (missing := trt.lacks()):
        pytest.skip("no GPU to try it on: " + "; ".join(map(str, missing)))
    opened: Gpu = FakeGpu() if request.param == "fake" else trt.CudaGpu("0")
    with opened.current():
        yield opened
    opened.close()


def test_what_goes_to_the_device_comes_back(gpu: Gpu) -> None:
    """Bytes, in the order of the stream, whatever their type."""
    host, back = gpu.pinned((256, 1024), np.float32), gpu.pinned((256, 1024), np.float32)
    memory, stream = gpu.allocate(MIB), gpu.stream()
    host.array[:] = np.arange(256 * 1024).reshape(256, 1024)
    back.array[:] = 0
    stream.to_device(memory.address, host.array)
    stream.to_host(back.array, memory.address)
    stream.record().wait()
    np.testing.assert_array_equal(back.array, host.array)
    stream.close()
    for each in (memory, host, back):
        each.free()


def test_an_event_is_a_moment_of_its_stream(gpu: Gpu) -> None:
    """What was given before it is done when it has been waited for."""
    host, back = gpu.pinned((64,), np.uint8), gpu.pinned((64,), np.uint8)
    memory, stream = gpu.allocate(64), gpu.stream()
    host.array[:] = 3
    stream.to_device(memory.address, host.array)
    first = stream.record()
    stream.to_host(back.array, memory.address)
    second = stream.record()
    second.wait()
    first.wait()
    assert (back.array == 3).all()
    stream.close()
    for each in (memory, host, back):
        each.free()


def test_captured_work_can_be_run_again(gpu: Gpu) -> None:
    """With what the buffers hold then; a driver that cannot capture says so with None."""
    host, back = gpu.pinned((64,), np.uint8), gpu.pinned((64,), np.uint8)
    memory, stream = gpu.allocate(64), gpu.stream()

    def work() -> None:
        stream.to_device(memory.address, host.array)
        stream.to_host(back.array, memory.address)

    work()
    stream.synchronize()
    replay = stream.capture(work)
    for value in (7, 9) if replay else ():
        host.array[:] = value
        assert replay
        replay()
        stream.record().wait()
        assert (back.array == value).all()
    stream.close()
    for each in (memory, host, back):
        each.free()


def test_more_than_there_is_is_told_as_memory(gpu: Gpu) -> None:
    """And the GPU goes on working."""
    with pytest.raises(GpuError) as refused:
        gpu.allocate(1 << 45)
    assert refused.value.kind == "memory"
    gpu.allocate(64).free()


def test_facts_are_whole(gpu: Gpu) -> None:
    """They name a plan: none may be empty."""
    assert all(vars(gpu.facts).values())


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("cuMemAlloc failed: out of memory", "memory"),
        ("Error Code 2: OutOfMemory (Requested size was 8388608 bytes.)", "memory"),
        ("cuEventSynchronize failed: an illegal memory access was encountered", "broken"),
        ("cuStreamSynchronize failed: unspecified launch failure", "broken"),
        ("cuEventSynchronize failed: the launch timed out and was terminated", "broken"),
        ("uncorrectable ECC error encountered", "broken"),
        ("cuInit failed: no CUDA-capable device is detected", "missing"),
        ("CUDA driver version is insufficient for CUDA runtime version", "missing"),
        ("cuMemcpyHtoDAsync failed: invalid argument", "batch"),
    ],
)
def test_what_a_driver_says_and_what_the_worker_makes_of_it(said: str, kind: str) -> None:
    """A sticky error ends the process, short memory asks for less, anything else is this batch's."""
    assert kind_of(said) == kind
    assert engine_error(GpuError(said), "trt-fp16").kind == kind


def test_a_long_log_becomes_one_line() -> None:
    """An error is read on one line."""
    assert "\n" not in str(GpuError("first\nsecond\nthird"))
