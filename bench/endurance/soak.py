"""A soak: a real line under a steady load for long; what it holds in memory and what it gets done, sample by sample.

Decides when what is sampled, and which part is warm-up. What the samples mean `slopes.py` says.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from bench.children import Child
from bench.endurance.server import fact
from bench.endurance.slopes import Slope, slope_of
from bench.load import Load, Pictures
from bench.usage import server_pid
from bench.whole_line import check_ledger, outstanding_at_most
from pipeline.broker import SOCKET, Broker
from pipeline.errors import LedgerError
from pipeline.recipe import Recipe
from pipeline.stream import Audit, Stream, open_stream

LINE = "soak"
MIB = 1024 * 1024
WARMUP = 0.25  # of the time, left out …
KEPT_SHARE = 0.1  # … and within the first so much of it the log of verdicts has its full length
LEAST_KEPT = 100
CAPACITY_S = 10.0  # of a closed loop, to know what 100 % are
LOOK_S = 0.1
SETTLE_S = 60.0

Tell = Callable[[str], None]
Samples = dict[str, list[float]]  # series → values; `seconds` among them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is driven, how hard, how long."""

    recipe_name: str
    recipe: Recipe
    pictures: Pictures
    minutes: float
    load: float = 70.0  # per cent of the closed loop's frames/s
    every_s: float = 2.0  # between two samples
    memory_margin: float = 10.0  # MiB/h: more than this for certain is a leak
    speed_margin: float = 5.0  # %/h: more than this for certain is a slowing down


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What came out."""

    plan: Plan
    capacity: float  # frames/s of the closed loop
    rate: float  # frames/s offered
    frames: int
    warmup_s: float
    samples: Samples
    slopes: Mapping[str, Slope | None]  # memory in MiB, `frames/s`

    @property
    def grows(self) -> list[str]:
        """What certainly goes up, or down, by more than its margin."""
        memory, speed = self.plan.memory_margin, self.plan.speed_margin
        found = []
        for name, slope in self.slopes.items():
            if slope is None:
                continue
            if name == "frames/s" and slope.percent[2] < -speed:
                found.append(f"{name} {slope.percent[0]:+.2f} %/h")
            if name.endswith((" RSS", " used")) and slope.low > memory:  # PSS depends on who else shares
                found.append(f"{name} {slope.per_hour:+.2f} MiB/h")
        return found


def run_soak(plan: Plan, tell: Tell) -> Soaked:
    """Raises what the line raises, and LedgerError when the ledger does not balance at any sample or at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aoi-soak-")))
        broker = stack.enter_context(Broker(folder))
        stream = open_stream(broker.url, LINE)
        stack.callback(stream.close)
        tell("measuring what the line can do")
        with Child("worker", _work(plan, broker, LEAST_KEPT)) as worker:
            capacity = _capacity(plan, broker, stream, worker)
        rate = capacity * plan.load / 100
        kept = max(LEAST_KEPT, int(rate * plan.minutes * 60 * WARMUP * KEPT_SHARE))
        worker = stack.enter_context(Child("worker", _work(plan, broker, kept)))
        _wait_for(worker, stream)
        return _soak(plan, broker, stream, worker, capacity, tell)


def _work(plan: Plan, broker: Broker, kept: int) -> list[str]:
    b = plan.recipe.batching
    words = ["-m", "pipeline.cli", "work", "--recipe", plan.recipe_name, "--url", broker.url, "--line", LINE]
    words += ["--engine", b.engine, "--threads", str(b.threads), "--max-batch", str(b.max_batch)]
    return [*words, *(["--device", b.device] if b.device else []), "--keep-verdicts", str(kept)]


def _load(plan: Plan, broker: Broker, source: str, **how: float) -> Load:
    window = outstanding_at_most(plan.recipe.batching.max_batch, plan.recipe.batching.in_flight)
    base = Load(url=broker.url, line=LINE, source=source, pictures=plan.pictures, window=window)
    return replace(base, **how)  # type: ignore[arg-type]


def _wait_for(worker: Child, stream: Stream) -> None:
    while not stream.audit().workers:
        worker.must_live()
        time.sleep(LOOK_S)


def _capacity(plan: Plan, broker: Broker, stream: Stream, worker: Child) -> float:
    """Frames per second, as fast as they are settled."""
    _wait_for(worker, stream)
    with Child("producer", ["-m", "bench.load"]) as producer:
        _begin(producer, _load(plan, broker, "capacity", seconds=min(CAPACITY_S, plan.minutes * 15)))
        begun, first = time.monotonic(), stream.audit().settled
        while not producer.ended():
            worker.must_live()
            time.sleep(LOOK_S)
        rate = (stream.audit().settled - first) / (time.monotonic() - begun)
    _settled(stream, worker)
    return rate


def _begin(producer: Child, load: Load) -> None:
    producer.say(load.to_line())
    while producer.hear() != "ready":
        pass
    producer.say("go\n")


def _settled(stream: Stream, worker: Child) -> Audit:
    """The ledger once nothing is outstanding."""
    end = time.monotonic() + SETTLE_S
    while (audit := stream.audit()).outstanding:
        worker.must_live()
        if time.monotonic() > end:
            raise LedgerError(f"{audit.outstanding} frames have no verdict after {SETTLE_S:.0f} s")
        time.sleep(LOOK_S)
    return audit


def _soak(plan: Plan, broker: Broker, stream: Stream, worker: Child, capacity: float, tell: Tell) -> Soaked:
    rate, seconds = capacity * plan.load / 100, plan.minutes * 60
    with Child("producer", ["-m", "bench.load"]) as producer:
        _begin(producer, _load(plan, broker, "soak", rate=rate, seconds=seconds))
        pids = {"worker": worker.pid, "producer": producer.pid, "redis": server_pid(broker.url)}
        samples: Samples = {}
        for at, audit in _looks(stream, worker, producer, plan.every_s):
            for name, value in {
                **_memory(pids, broker.folder / SOCKET),
                "seconds": at,
                "settled": float(audit.settled),
            }.items():
                samples.setdefault(name, []).append(value)
            tell(f"{at / 60:.1f} of {plan.minutes:g} min, {audit.settled:,} verdicts")
        audit = _settled(stream, worker)
        count = audit.sources["soak"]
    check_ledger(audit, "soak", count.offered, count.settled)
    return _soaked(plan, capacity, rate, count.settled, samples)


def _looks(stream: Stream, worker: Child, producer: Child, every_s: float) -> Iterator[tuple[float, Audit]]:
    """The ledger every so often while the producer is at work."""
    begun, due = time.monotonic(), 0.0
    while not producer.ended():
        worker.must_live()
        if (at := time.monotonic() - begun) >= due:
            audit = stream.audit()
            if not audit.holds:
                raise LedgerError(f"{audit.offered} offered, {audit.settled} judged, {audit.outstanding} outstanding")
            yield at, audit
            due += every_s
        time.sleep(LOOK_S)


def _memory(pids: Mapping[str, int], redis_socket: Path) -> dict[str, float]:
    """MiB by process: resident, proportional (shared pages shared out), and what Redis says it uses."""
    found: dict[str, float] = {}
    for name, pid in pids.items():
        memory = psutil.Process(pid).memory_full_info()
        found[f"{name} RSS"], found[f"{name} PSS"] = memory.rss / MIB, memory.pss / MIB
    found["redis used"] = int(fact(redis_socket, "used_memory")) / MIB
    return found


def _soaked(plan: Plan, capacity: float, rate: float, frames: int, samples: Samples) -> Soaked:
    seconds, settled = samples["seconds"], samples.pop("settled")
    pairs = list(zip(seconds, settled, strict=True))
    speed = [(b - a) / (t - s) for (s, a), (t, b) in itertools.pairwise(pairs)]
    samples["frames/s"] = [speed[0] if speed else 0.0, *speed]
    warmup_s = plan.minutes * 60 * WARMUP
    first = next((i for i, at in enumerate(seconds) if at >= warmup_s), len(seconds))
    names = [name for name in samples if name != "seconds"]
    slopes = {name: slope_of(seconds[first:], samples[name][first:]) for name in names}
    return Soaked(
        plan=plan, capacity=capacity, rate=rate, frames=frames, warmup_s=warmup_s, samples=samples, slopes=slopes
    )


def as_json(soaked: Soaked) -> dict[str, Any]:
    """Plain facts; no URL and no path."""
    plan = soaked.plan
    settings = {name: getattr(plan, name) for name in ("minutes", "load", "every_s", "memory_margin", "speed_margin")}
    return {
        "recipe": plan.recipe.label,
        "engine": plan.recipe.batching.engine,
        "settings": {**settings, "size": list(plan.pictures.size), "warmup_s": soaked.warmup_s},
        "capacity_frames_per_s": soaked.capacity,
        "rate_frames_per_s": soaked.rate,
        "frames": soaked.frames,
        "slopes_per_hour": {name: slope and slope.__dict__ for name, slope in soaked.slopes.items()},
        "samples": {name: [round(value, 3) for value in values] for name, values in soaked.samples.items()},
    }
