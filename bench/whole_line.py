"""The whole line under load: a real worker process, a load process for each run, and a reader of every verdict.

A run in which the ledger does not balance, or a verdict was not read back, has no figures: LedgerError.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass

from bench.children import Child
from bench.line_summary import Seen, summarise
from bench.load import Load, Pictures
from bench.report import Cost, LineRun
from bench.usage import Usage, server_pid, usage_of
from pipeline.errors import LedgerError
from pipeline.recipe import Batching
from pipeline.stream import Audit, open_stream

READ_AT_ONCE = 1000
LOOK_EVERY_S = 0.1  # seldom enough that reading costs the line little
STALL_S = 60.0  # all is offered and nothing more is settled: something is lost


@dataclass(frozen=True)
class Site:
    """Where and with what a line is set up."""

    url: str
    recipe: str  # name, folder or file, as `aoi work` takes it
    batching: Batching  # as it is to be run
    pictures: Pictures


class Line:
    """`with Line(site, max_batch) as line:` a worker is up and its engines are warm; then `drive` it."""

    def __init__(self, site: Site, max_batch: int) -> None:
        self._site, self._max_batch = site, max_batch
        self.name = f"bench-{os.getpid()}-{time.time_ns()}"
        self._stream = open_stream(site.url, self.name)
        self._read_to = "0"
        self._runs = 0

    def __enter__(self) -> Line:
        with ExitStack() as stack:
            stack.callback(self._stream.close)
            self._stream.audit()  # a Redis that is not there is told before anything is started
            self._worker = stack.enter_context(Child("worker", self._worker_arguments(), {"AOI_URL": self._site.url}))
            self._wait_for_worker()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def worker_pid(self) -> int:
        return self._worker.pid

    def _worker_arguments(self) -> list[str]:
        site, b = self._site, self._site.batching
        work = ["-m", "pipeline.cli", "work", "--recipe", site.recipe, "--line", self.name]  # not the URL: ps shows it
        device = ["--device", b.device] if b.device else []
        engine = ["--engine", b.engine, *device, "--threads", str(b.threads), "--max-batch", str(self._max_batch)]
        return [*work, "--name", "measured", "--unpromoted", *engine]

    def _wait_for_worker(self) -> None:
        """Until it has compiled its engines and asked for frames; the ledger knows who is alive."""
        while not self._stream.audit().workers:
            self._worker.must_live()
            time.sleep(LOOK_EVERY_S)

    def drive(
        self,
        *,
        rate: float = 0.0,
        load: float = 0.0,
        frames: int = 0,
        seconds: float = 10.0,
        deadline_ms: float = 0.0,
        recorded: bool = False,
    ) -> LineRun:
        """One run: closed loop without a rate, else open loop at `rate` frames/s (`load` % of the capacity).

        With `recorded` it is the whole shift that the pictures come from, in its rhythm; `rate` is then its mean.
        """
        self._runs += 1
        offered = Load(
            url=self._site.url,
            line=self.name,
            source=f"run{self._runs}",
            pictures=self._site.pictures,
            rate=rate,
            frames=frames,
            seconds=seconds,
            deadline_ms=deadline_ms,
            recorded=recorded,
            window=outstanding_at_most(self._max_batch, self._site.batching.in_flight),
        )
        with Child("producer", ["-m", "bench.load"]) as producer:
            producer.say(offered.to_line())
            _expect_ready(producer)
            before = self._usage()
            producer.say("go\n")
            seen, told = self._follow(producer)
            costs = _costs(before, self._usage(), max(1, len(seen)))
        costs["producer"] = Cost(cpu_us=told["cpu_s"] * 1e6 / max(1, len(seen)), rss_peak=int(told["rss_peak"]))
        check_ledger(self._stream.audit(), offered.source, int(told["offered"]), len(seen))
        return summarise(seen, self._max_batch, costs, load, rate)

    def _follow(self, producer: Child) -> tuple[Seen, dict[str, float]]:
        """Read verdicts until there is one for each frame the producer says it offered."""
        seen, told, progress_at = Seen(), None, time.monotonic()
        while told is None or len(seen) < told["offered"]:
            before = len(seen)
            self._read_into(seen)
            if told is None and producer.ended():
                told, progress_at = json.loads(producer.hear()), time.monotonic()
            self._worker.must_live()
            progress_at = time.monotonic() if len(seen) > before else progress_at
            if told and time.monotonic() - progress_at > STALL_S:
                raise LedgerError(f"{told['offered'] - len(seen):.0f} frames have no verdict after {STALL_S:.0f} s")
            time.sleep(LOOK_EVERY_S)
        return seen, told

    def _read_into(self, seen: Seen) -> None:
        while rows := self._stream.read(self._read_to, READ_AT_ONCE):
            self._read_to = rows[-1][0]
            for _, verdict in rows:
                seen.add(verdict)

    def _usage(self) -> dict[str, Usage]:
        pids = {"redis": server_pid(self._site.url), "worker": self.worker_pid, "reader": os.getpid()}
        return {name: usage_of(pid) for name, pid in pids.items() if pid}


def check_ledger(audit: Audit, source: str, offered: int, read: int) -> None:
    """LedgerError unless every frame this source offered is settled, and its verdict was read, exactly once."""
    count = audit.sources.get(source)
    ledger = (count.offered, count.settled) if count else (0, 0)
    if not audit.holds or audit.outstanding or ledger != (offered, offered) or read != offered:
        raise LedgerError(
            f"the run has no result: {offered} frames sent, the ledger says {ledger[0]} offered and {ledger[1]} "
            f"settled, {audit.outstanding} outstanding, {read} verdicts read"
        )


def outstanding_at_most(max_batch: int, in_flight: int) -> int:
    """Enough for the worker never to starve: several times what it takes ahead, and never a handful."""
    return max(64, 4 * max_batch * (in_flight + 2))


def _expect_ready(producer: Child) -> None:
    while producer.hear() != "ready":  # a library may have something to say first
        pass


def _costs(before: dict[str, Usage], after: dict[str, Usage], frames: int) -> dict[str, Cost]:
    return {
        name: Cost(cpu_us=(after[name].cpu_s - before[name].cpu_s) * 1e6 / frames, rss_peak=after[name].rss_peak)
        for name in before
    }
