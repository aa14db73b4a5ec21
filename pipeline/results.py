"""The reader's side: verdicts as they are published, and what many of them say together."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import StreamDown
from pipeline.messages import JUDGEMENTS, Verdict
from pipeline.patience import Patience
from pipeline.stream import Entry, Log, Stream, Watched, read_verdict

log = logging.getLogger("aoi.results")
STEPS = ("triggered", "offered", "received", "batched", "inferred", "settled")
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


def follow(
    stream: Stream, after: str = "0", stop: threading.Event | None = None, log_: Log = "verdicts"
) -> Iterator[Verdict]:
    """Every verdict after this place, and then each new one until `stop`; waits out a stream that is away."""
    for entries in watched(stream, log_, after, stop or threading.Event()):
        for _, header, body in entries:
            yield read_verdict(header, body)


def watched(
    stream: Stream, log_: Watched, after: str, stop: threading.Event, wait_s: float = 0.5
) -> Iterator[list[Entry]]:
    """What lies on the stream after this place, as it comes, until `stop`; an empty list where nothing came in time.

    Waits out a stream that is away, and goes on from its newest where it has fewer entries than were read.
    """
    patience, away = Patience(log), False
    while not stop.is_set():
        try:
            entries = stream.watch(log_, after, 256, wait_s)
            if away and not entries:
                after = _not_beyond(stream.newest(log_), after, log_)
        except StreamDown as error:
            patience.wait(error, f"no {log_} meanwhile", stop)
            away, entries = True, []
        else:
            patience.back()
            away = False
        after = entries[-1].place if entries else after
        yield entries


def order_of(place: str) -> tuple[int, ...]:
    """What places are compared by."""
    return tuple(int(part) for part in place.split("-"))


def _not_beyond(newest: str, after: str, log_: Watched) -> str:
    """The place to go on from; a server that took over with a clock behind may be short of where we were."""
    if order_of(newest) >= order_of(after):
        return after
    if log_ != "frames":  # those leave as they are judged
        log.warning("the stream has fewer %s than were read: going on from its newest, some may be missing", log_)
    return newest


def kept(stream: Stream, log_: Log = "verdicts") -> Iterator[Verdict]:
    """Every verdict the stream still keeps, oldest first, up to the one that is the newest now."""
    after, last = "0", stream.newest(log_)
    while after != last and (rows := stream.read(after, 256, 0.0, log_)):
        for place, verdict in rows:
            after = place
            yield verdict
            if place == last:
                break


def latency_ms(verdict: Verdict) -> float:
    """From trigger to settlement, in ms."""
    return (verdict.settled_ns - verdict.frame.triggered_ns) / 1e6


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 and max by linear interpolation (numpy's default); empty for no values."""
    if not len(values):
        return {}
    found = np.percentile(values, list(PERCENTILES.values()))
    return {**{name: float(v) for name, v in zip(PERCENTILES, found, strict=True)}, "max": float(max(values))}


@dataclass
class Summary:
    """Counts and times of the verdicts added to it."""

    judgements: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(JUDGEMENTS, 0)))
    reasons: Counter[str] = field(default_factory=Counter)  # of what is neither OK nor NG
    defects: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0

    def add(self, verdict: Verdict) -> None:
        self.judgements[verdict.judgement] += 1
        if verdict.judgement in ("REVIEW", "UNINSPECTED"):
            self.reasons[f"{verdict.judgement}: {verdict.reason}"] += 1
        self.defects.update(defect.class_name for defect in verdict.defects)
        if verdict.frame.triggered_ns:  # unknown where the header could not be read
            self.latencies_ms.append(latency_ms(verdict))
        if verdict.batch_size:
            self.batch_sizes.append(verdict.batch_size)
        offered = verdict.frame.offered_ns or self.first_ns
        self.first_ns = min(self.first_ns or offered, offered)
        self.last_ns = max(self.last_ns, verdict.settled_ns)

    @property
    def frames(self) -> int:
        return self.judgements.total()

    @property
    def fps(self) -> float:
        """Frames per second from the first offer to the last settlement."""
        return self.frames / ((self.last_ns - self.first_ns) / 1e9) if self.last_ns > self.first_ns else 0.0

    @property
    def mean_batch(self) -> float:
        """Mean size of the batch a frame was judged in, weighted by frames."""
        return float(np.mean(self.batch_sizes)) if self.batch_sizes else 0.0
