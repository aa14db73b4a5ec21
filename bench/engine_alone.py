"""An engine with nothing around it: how long a batch takes, and how many tiles a second when kept busy."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bench.percentiles import spread
from bench.report import EngineRun
from engines.base import Engine, EngineSpec, Pixels, Ticket
from pipeline.golden_templates import templates_of
from pipeline.messages import Frame
from pipeline.preprocess import cut_tiles, plan_tiles, working_image
from pipeline.recipe import Recipe

Clock = Callable[[], int]  # ns
WARMUP_SHARE = 0.1  # of a run's time, not counted; the engine has also warmed up by itself when entered


def tiles_of(frames: Sequence[Frame], recipe: Recipe, spec: EngineSpec) -> list[npt.NDArray[np.uint8]]:
    """Tiles as the worker would cut them from these frames."""
    tiles: list[npt.NDArray[np.uint8]] = []
    for frame in frames:
        golden = templates_of(recipe).of(frame.reference) if recipe.template.used else None
        picture = working_image(frame.image(), recipe, spec.channels, golden)
        plan = plan_tiles(picture.shape[0], picture.shape[1], spec.height, spec.width, recipe.picture.overlap)
        tiles += cut_tiles(picture, plan)
    return tiles


def batches_of(tiles: Sequence[npt.NDArray[np.uint8]], shape: tuple[int, int, int], size: int) -> list[Pixels]:
    """As many different batches of this size as the tiles give, at least four; uint8 [size, H, W, C]."""
    endless = itertools.cycle(tiles)
    count = max(4, len(tiles) // size)
    return [np.stack([next(endless).reshape(shape) for _ in range(size)]) for _ in range(count)]


def measure_engine(
    engine: Engine, batches: Sequence[Pixels], seconds: float, clock: Clock = time.monotonic_ns
) -> EngineRun:
    """Half of the time one batch after the other, half with as many in flight as the engine takes."""
    spec, size = engine.spec, len(batches[0])
    half_ns = int(seconds * 5e8)
    times = one_at_a_time(engine, itertools.cycle(batches), half_ns, clock)
    cpu = time.process_time_ns()
    finished = kept_busy(engine, itertools.cycle(batches), half_ns, clock)
    cpu = time.process_time_ns() - cpu
    return EngineRun(
        stage=spec.kind,
        batch=size,
        in_flight=spec.in_flight,
        tiles_per_s=size * rate_of(finished),
        batch_ms=spread(np.array(_counted(times)) / 1e6),
        cpu_us=cpu / 1e3 / (size * len(finished)),
    )


def one_at_a_time(engine: Engine, batches: Iterator[Pixels], for_ns: int, clock: Clock) -> list[int]:
    """Submit → result of each batch, in ns; at least ten."""
    times: list[int] = []
    end = clock() + for_ns
    while len(times) < 10 or clock() < end:
        batch = next(batches)
        start = clock()
        engine.submit(batch).result()
        times.append(clock() - start)
    return times


def kept_busy(engine: Engine, batches: Iterator[Pixels], for_ns: int, clock: Clock) -> list[int]:
    """When each batch was done, in ns, with a new one started whenever one is done; at least ten."""
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    slots: dict[int, Ticket] = {}

    def submit(slot: int) -> None:
        slots[slot] = engine.submit(next(batches), lambda: done.put(slot))

    for slot in range(engine.spec.in_flight):
        submit(slot)
    finished: list[int] = []
    end = clock() + for_ns
    while slots:
        slot = done.get()
        slots.pop(slot).result()
        finished.append(clock())
        if len(finished) < 10 or finished[-1] < end:
            submit(slot)
    return finished


def rate_of(moments: Sequence[int]) -> float:
    """Events per second after the warm-up: those after a moment, up to and with the last."""
    counted = _counted(moments)
    took = counted[-1] - counted[0]
    return (len(counted) - 1) * 1e9 / took if took > 0 else 0.0


def _counted(values: Sequence[int]) -> Sequence[int]:
    return values[int(len(values) * WARMUP_SHARE) :]
