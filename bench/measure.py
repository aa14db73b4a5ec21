"""The order of a measurement: each engine alone, then the whole line, for every batch size; gives a Report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.engine_alone import batches_of, measure_engine, tiles_of
from bench.load import Pictures, render
from bench.machine import describe_machine, describe_project, load_average
from bench.report import EngineRun, LineRun, Report, Run
from bench.whole_line import Line, Site
from engines.base import Engine
from pipeline.broker import Broker
from pipeline.messages import Frame
from pipeline.opening import open_engines
from pipeline.recipe import Recipe
from pipeline.redis_binary import find_server

Tell = Callable[[str], None]  # what is measured next


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    kind: str  # `single` or `batch`
    recipe_name: str  # name, folder or file, as the user gave it
    recipe: Recipe  # with the batching it is to be run with
    sizes: tuple[int, ...]  # largest batch, tiles
    pictures: Pictures
    seconds: float  # of each run
    frames: int = 0  # of each run of the line; 0: by `seconds`
    rates: tuple[float, ...] = ()  # open loop, frames/s
    loads: tuple[float, ...] = ()  # open loop, per cent of the closed loop's frames/s
    deadline_ms: float = 0.0  # of every frame of the open loop; 0: none
    shift_rate: float = 0.0  # open loop at the recorded times of the shift in `pictures`: its mean frames/s; 0: no
    line: bool = True
    url: str = ""  # empty: an embedded Redis

    @property
    def steps(self) -> int:
        """How many times `tell` will be called."""
        opens = len(self.rates) + len(self.loads) + bool(self.shift_rate)
        return len(self.sizes) * (len(self.recipe.stages) + (1 + opens if self.line else 0))


def doubling(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and at last `most` itself.

    >>> doubling(12)
    (1, 2, 4, 8, 12)
    """
    return (*(1 << i for i in range((most - 1).bit_length())), most)


def measure(plan: Plan, tell: Tell) -> Report:
    """Run the plan to its end. Raises what engines and streams raise, and LedgerError for a lost frame."""
    created, busy = datetime.now(timezone.utc), load_average()
    frames = render(plan.pictures)
    engines, device, tiles = _measure_engines(plan, frames, tell)
    lines, server = _measure_lines(plan, tell) if plan.line else ([], "")
    runs: list[Run] = [*engines, *lines]
    return Report(
        kind=plan.kind,
        created=created.isoformat(timespec="seconds"),
        machine=describe_machine(),
        project=describe_project(),
        conditions={"load_average_before": busy},
        recipe=plan.recipe.label,
        engine=plan.recipe.batching.engine,
        device=device,
        settings={**_settings(plan, frames), "tiles_per_frame": round(tiles / len(frames), 3), "server": server},
        runs=tuple(runs),
    )


def _settings(plan: Plan, frames: list[Frame]) -> dict[str, Any]:
    """What must be alike for two reports to be about the same thing; no URL, it may hold a password."""
    batching = asdict(plan.recipe.batching)
    batching.pop("max_batch")
    return {
        "mode": plan.recipe.mode,
        "batching": batching,
        "pictures": _without_folders(plan.pictures),
        "frame_bytes": round(sum(frame.payload_bytes for frame in frames) / len(frames)),
        "seconds": plan.seconds,
        "frames": plan.frames,
        **({"deadline_ms": plan.deadline_ms} if plan.deadline_ms else {}),
    }


def _without_folders(pictures: Pictures) -> dict[str, Any]:
    facts = {**asdict(pictures), "images": Path(pictures.images).name}
    shift = facts.pop("shift")
    return {**facts, "shift": Path(shift).name} if shift else facts


def _measure_engines(plan: Plan, frames: list[Frame], tell: Tell) -> tuple[list[EngineRun], str, int]:
    """Runs of every stage and batch size, the device's name, and how many tiles these frames have."""
    batching = replace(plan.recipe.batching, max_batch=max(plan.sizes))
    recipe = replace(plan.recipe, batching=batching)
    runs: list[EngineRun] = []
    with open_engines(recipe, unpromoted=True) as engines:
        first: Engine = next(iter(engines.values()))
        tiles = tiles_of(frames, recipe, first.spec)
        for kind, engine in engines.items():
            for size in plan.sizes:
                tell(f"{kind} alone, batch {size}")
                batches = batches_of(tiles, engine.spec.tile_shape, size)
                runs.append(measure_engine(engine, batches, plan.seconds))
    return runs, first.spec.device, len(tiles)


def _measure_lines(plan: Plan, tell: Tell) -> tuple[list[LineRun], str]:
    """Runs of every batch size, and which server they went through."""
    runs: list[LineRun] = []
    with _server(plan.url) as (url, server):
        site = Site(url, plan.recipe_name, plan.recipe.batching, plan.pictures)
        for size in plan.sizes:
            with Line(site, size) as line:
                runs += _drive(line, plan, size, tell)
    return runs, server


def _drive(line: Line, plan: Plan, size: int, tell: Tell) -> Iterator[LineRun]:
    """The closed loop, which says what the line can do; then each rate of the open loop."""
    bounds: dict[str, Any] = {"frames": plan.frames, "seconds": plan.seconds}
    tell(f"line, batch {size}, closed loop")
    closed = line.drive(**bounds)
    yield closed
    for load in plan.loads:
        rate = closed.frames_per_s * load / 100
        tell(f"line, batch {size}, {load:g} % = {rate:.0f} frames/s")
        yield line.drive(rate=rate, load=load, deadline_ms=plan.deadline_ms, **bounds)
    for rate in plan.rates:
        tell(f"line, batch {size}, {rate:g} frames/s")
        yield line.drive(rate=rate, deadline_ms=plan.deadline_ms, **bounds)
    if plan.shift_rate:
        tell(f"line, batch {size}, as recorded, {plan.shift_rate:.0f} frames/s on average")
        yield line.drive(rate=plan.shift_rate, frames=plan.frames, deadline_ms=plan.deadline_ms, recorded=True)


@contextmanager
def _server(url: str) -> Iterator[tuple[str, str]]:
    """The URL to use and what stands behind it."""
    if url:
        yield url, "given by URL"
        return
    with tempfile.TemporaryDirectory(prefix="aoi-bench-") as folder, Broker(Path(folder), durable=False) as broker:
        yield broker.url, f"embedded {find_server()[1]}"
