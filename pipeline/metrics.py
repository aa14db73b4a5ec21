"""What a worker and a producer say of themselves to Prometheus: computed from verdicts, and nowhere else.

The steps of a frame's way are the times that stand in its verdict; a step whose ends are not both known (a frame
that never came to an engine) is left out of its histogram, and one that ends before it starts, as between two
machines' clocks, counts as 0:

    queue   offered → received     on the stream
    batch   received → batched     decoded, waiting for an engine and for company
    infer   batched → inferred     in the engines, between them too
    settle  inferred → settled     judging, then waiting to be handed to Redis
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from engines.base import Engine, Kind
from pipeline.inspector import Done
from pipeline.messages import JUDGEMENTS, Frame, Verdict
from pipeline.producer import Offered
from pipeline.recipe import Recipe
from pipeline.stream import Settlement
from pipeline.worker import Worker

SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0),
)
TILES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)
STAGES = ("queue", "batch", "infer", "settle")
STILL_S = 10.0  # a loop that has not gone round, or a stream that has not answered, for so long makes no progress


class Tally:
    """A histogram by upper bounds; not prometheus-client's, which locks and searches anew for every number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        rows, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            rows.append((bound, float(so_far)))
        return rows


class WorkerMetrics:
    """Told by the worker what it settled; tells Prometheus. `facts` are what aoi_worker_info says of the worker."""

    def __init__(self, line: str, facts: Mapping[str, str]) -> None:
        self._line, self._facts = line, dict(facts)
        self._lock = threading.Lock()
        self._stages, self._latency, self._batches = [Tally(SECONDS) for _ in STAGES], Tally(SECONDS), Tally(TILES)
        self._frames: Counter[str] = Counter()
        self._twins = self._amended = self._engine = self._redelivered = 0

    def settled(self, batch: Sequence[Done], became: Sequence[Settlement], settled_ns: int) -> None:
        """These were handed to the stream at this time; of a frame that had its verdict before, no time counts."""
        with self._lock:
            for (delivery, verdict), settlement in zip(batch, became, strict=True):
                self._engine += verdict.reason == "engine"
                if settlement is Settlement.PUBLISHED:
                    self._frames[verdict.judgement] += 1
                    self._redelivered += verdict.deliveries > 1
                    self._observe(delivery.frame, verdict, settled_ns)
                else:
                    self._amended += settlement is Settlement.AMENDED
                    self._twins += settlement is Settlement.TWIN

    def _observe(self, frame: Frame, verdict: Verdict, settled_ns: int) -> None:
        at = (frame.offered_ns, verdict.received_ns, verdict.batched_ns, verdict.inferred_ns, settled_ns)
        for tally, start, end in zip(self._stages, at, at[1:], strict=False):
            if start and end:
                tally.add(max(0, end - start) / 1e9)
        if frame.triggered_ns:
            self._latency.add(max(0, settled_ns - frame.triggered_ns) / 1e9)
        if verdict.batch_size:
            self._batches.add(verdict.batch_size)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            families = [*self._histograms(), *self._counters()]
        yield InfoMetricFamily("aoi_worker", "What this worker runs.", {"line": self._line, **self._facts})
        yield from families

    def _histograms(self) -> Iterator[Metric]:
        stages = HistogramMetricFamily("aoi_stage_seconds", "Steps of a frame's way.", labels=["line", "stage"])
        for name, tally in zip(STAGES, self._stages, strict=True):
            stages.add_metric([self._line, name], tally.buckets(), tally.total)
        yield stages
        for name, text, tally in (
            ("aoi_latency_seconds", "From the moment a frame was due to its verdict.", self._latency),
            ("aoi_batch_size", "Tiles in the batch that a frame was judged in; once a frame.", self._batches),
        ):
            family = HistogramMetricFamily(name, text, labels=["line"])
            family.add_metric([self._line], tally.buckets(), tally.total)
            yield family

    def _counters(self) -> Iterator[Metric]:
        frames = {judgement: self._frames[judgement] for judgement in JUDGEMENTS}
        yield _counter("aoi_worker_frames", "Frames settled by this worker.", self._line, "judgement", frames)
        for name, text, count in (
            ("aoi_worker_late_verdicts", "Verdicts that came after somebody else's.", self._twins),
            ("aoi_worker_amendments", "Real answers that came after a fail-safe verdict.", self._amended),
            ("aoi_worker_redelivered_frames", "Frames settled here that another worker had before.", self._redelivered),
            ("aoi_engine_errors", "Frames that the engine failed on, even alone.", self._engine),
        ):
            yield _counter(name, text, self._line, "", {"": count})


class ProducerMetrics:
    """What a producer has offered, and what it waits for."""

    def __init__(self, line: str, source: str, offered: Offered) -> None:
        self._labels, self._offered = {"line": line, "source": source}, offered

    def collect(self) -> Iterator[Metric]:
        now, labels = self._offered, list(self._labels)
        for name, text, count in (
            ("aoi_producer_frames", "Frames offered.", now.frames),
            ("aoi_producer_bytes", "Pixels of these, as they travel.", now.bytes),
            ("aoi_producer_faulty_frames", "Frames that could not be read at the source.", now.faulty),
            ("aoi_producer_full_waits", "Times the stream was full.", now.full_waits),
            ("aoi_producer_stream_outages", "Times the stream went away.", now.outages),
            (
                "aoi_producer_stream_outage_seconds",
                "Time waited for a stream that was away.",
                now.away_s(time.monotonic()),
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=labels)
            counter.add_metric(list(self._labels.values()), count)
            yield counter
        text = "Age of the frame in hand, or of the last when it was offered; how late a paced source is."
        lag = GaugeMetricFamily("aoi_producer_lag_seconds", text, labels=labels)
        lag.add_metric(list(self._labels.values()), now.lag_s(time.time_ns()))
        yield lag


def worker_facts(name: str, recipe: Recipe, engines: Mapping[Kind, Engine], version: str) -> dict[str, str]:
    """What aoi_worker_info says: who inspects by what, on what; a stage that the recipe lacks is empty."""
    hashes = {str(kind): engine.spec.model_hash[:12] for kind, engine in engines.items()}
    devices = " ".join(sorted({engine.spec.device for engine in engines.values()}))
    stages = {"classifier": "", "segmenter": "", **hashes}
    return {"worker": name, "recipe": recipe.label, **stages, "device": devices, "version": version}


def worker_trouble(worker: Worker) -> str:
    """Why this worker makes no progress; nothing while it does."""
    now = time.monotonic()
    if (still := now - worker.stepped_at) > STILL_S:
        return f"the worker's loop has stood still for {still:.0f} s"
    if (silent := now - worker.heard_at) > STILL_S:
        return f"the stream has not answered for {silent:.0f} s"
    return ""


def producer_trouble(offered: Offered) -> str:
    """Why this producer makes no progress; a source at rest and a full stream are no trouble of its own."""
    since = offered.away_since
    if since and (away := time.monotonic() - since) > STILL_S:
        return f"the stream has been away for {away:.0f} s"
    return ""


def _counter(name: str, text: str, line: str, label: str, counts: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["line", label] if label else ["line"])
    for value, count in counts.items():
        family.add_metric([line, value] if label else [line], count)
    return family
