"""A line's ledger as Prometheus metrics, read when somebody asks; keeps no count of its own.

Every process of a line tells the same ledger, so take `max`, never `sum`, over processes. While the ledger cannot
be read `aoi_stream_up` is 0 and every other number is absent: none is ever stale.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.errors import StreamError
from pipeline.messages import JUDGEMENTS
from pipeline.stream import FAIL_SAFE_REASONS, Audit, Limits

log = logging.getLogger("aoi.metrics")

FRESH_S = 1.0  # scrapes closer together see the same ledger: who asks often does not load the server
PATIENCE_S = 2.0  # how long a scrape waits for the stream; well below Prometheus' own 10 s
MOST_NAMES = 200  # sources and reasons that have a series each; what comes later is counted together
LONGEST_NAME = 120
OTHER = "other"
KNOWN_REASONS = (  # there from the start, at 0: a counter that appears at 1 has not risen, for Prometheus
    *(f"UNINSPECTED {reason}" for reason in ("undecodable", "template", "engine", "shed", "too_large", "poison")),
    *(f"REVIEW {reason}" for reason in ("no_region", *FAIL_SAFE_REASONS)),
)


class LedgerMetrics:
    """A collector over `audit`, which must be of a client of its own: it may block, and nobody else waits then."""

    def __init__(
        self,
        line: str,
        audit: Callable[[], Audit],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._line, self._ask, self._limits = line, audit, limits
        self._clock, self._patience_s = clock, patience_s
        self._lock = threading.Lock()
        self._asked: futures.Future[Audit] | None = None
        self._answered = 0.0  # when
        self._was_up = True
        self._sources, self._reasons = BoundedNames(), BoundedNames()

    def collect(self) -> Iterator[Metric]:
        audit = self._read()
        up = GaugeMetricFamily("aoi_stream_up", "1 while the ledger can be read, 0 while not.", labels=["line"])
        up.add_metric([self._line], float(audit is not None))
        yield up
        if audit:
            yield from gauges(self._line, audit, self._limits)
            yield from self._counters(audit)

    def _read(self) -> Audit | None:
        """The ledger, FRESH_S old at most; None when it cannot be had in time."""
        asked = self._question()
        try:
            return asked.result(self._patience_s)
        except (StreamError, futures.TimeoutError):
            return None

    def _question(self) -> futures.Future[Audit]:
        """The question that is open, or answered just now; else a new one. So one thread waits at most."""
        with self._lock:
            asked = self._asked
            if asked is None or (asked.done() and self._clock() - self._answered >= FRESH_S):
                asked = self._asked = futures.Future()
                threading.Thread(target=self._answer, args=(asked,), name="aoi-ledger", daemon=True).start()
            return asked

    def _answer(self, asked: futures.Future[Audit]) -> None:
        error: StreamError | None = None
        audit: Audit | None = None
        try:
            audit = self._ask()
        except StreamError as reason:
            error = reason
        except Exception as reason:  # whatever lies in that ledger: the scrape goes on
            log.exception("the ledger cannot be understood")
            error = StreamError(str(reason))
        self._say(error)
        self._answered = self._clock()
        if audit:
            asked.set_result(audit)
        else:
            asked.set_exception(error)

    def _say(self, error: StreamError | None) -> None:
        if error and self._was_up:
            log.warning("no ledger for the metrics: %s", error)
        self._was_up = error is None

    def _counters(self, audit: Audit) -> Iterator[Metric]:
        yield from self._by_source(audit)
        yield from self._by_reason(audit)
        amended = {(judgement,): audit.amended.get(judgement, 0) for judgement in JUDGEMENTS}
        missing = sum(last - first + 1 for _, first, last in audit.gaps)
        text = "Real answers that came after a frame's fail-safe verdict."
        yield self._counter("aoi_verdict_amendments", text, amended, "judgement")
        yield self._counter("aoi_deadline_misses", "Verdicts after their frame's deadline.", {(): audit.missed})
        yield self._counter("aoi_sequence_gaps", "Gaps in the sequences of the sources.", {(): len(audit.gaps)})
        yield self._counter("aoi_frames_never_offered", "Frames missing in these gaps.", {(): missing})

    def _by_source(self, audit: Audit) -> Iterator[Metric]:
        offered: Counter[tuple[str, ...]] = Counter()
        judged: Counter[tuple[str, ...]] = Counter()
        for name, source in audit.sources.items():
            short = self._sources.of(name)
            offered[short,] += source.offered
            for judgement in JUDGEMENTS:
                judged[short, judgement] += source.judged.get(judgement, 0)
        yield self._counter("aoi_frames_offered", "Frames ever offered.", offered, "source")
        yield self._counter("aoi_verdicts", "Verdicts ever settled; each frame has one.", judged, "source", "judgement")

    def _by_reason(self, audit: Audit) -> Iterator[Metric]:
        reasons: Counter[tuple[str, ...]] = Counter()
        failsafe = {(reason,): 0 for reason in FAIL_SAFE_REASONS}
        for key, count in {**dict.fromkeys(KNOWN_REASONS, 0), **audit.reasons}.items():
            judgement, _, reason = key.partition(" ")
            reasons[judgement, self._reasons.of(reason)] += count
            if reason in FAIL_SAFE_REASONS:
                failsafe[reason,] += count
        yield self._counter("aoi_verdict_reasons", "Verdicts that have a reason.", reasons, "judgement", "reason")
        text = "Verdicts given so that there was one before the deadline."
        yield self._counter("aoi_deadline_failsafe", text, failsafe, "reason")

    def _counter(self, name: str, text: str, counts: Mapping[Any, int], *labels: str) -> Metric:
        family = CounterMetricFamily(name, text, labels=["line", *labels])
        for values, count in counts.items():
            family.add_metric([self._line, *values], count)
        return family


def gauges(line: str, audit: Audit, limits: Limits) -> Iterator[Metric]:
    """What the ledger says of this moment."""
    for name, text, value in (
        ("aoi_backlog_frames", "Frames offered and not settled yet.", audit.outstanding),
        ("aoi_backlog_bytes", "Headers and pixels of these frames.", audit.outstanding_bytes),
        ("aoi_backlog_budget_frames", "How many may wait, by this process' options.", limits.max_frames),
        ("aoi_backlog_budget_bytes", "How much may wait, by this process' options.", limits.max_bytes),
        ("aoi_dead_frames", "Frames that killed their workers and are kept aside.", audit.dead),
        ("aoi_workers_alive", "Workers that said within a few seconds that they live.", len(audit.workers)),
        ("aoi_ledger_balanced", "1 while offered = judged + outstanding; 0 must never be.", audit.holds),
    ):
        family = GaugeMetricFamily(name, text, labels=["line"])
        family.add_metric([line], float(value))
        yield family


class BoundedNames:
    """Label values out of names that anybody may invent: printable, not too long, and not too many."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most, self._known = most, set[str]()
        self._lock = threading.Lock()

    def of(self, name: str) -> str:
        """The name; `other` for those that came after the first `most`, which keep their series."""
        short = "".join(c if c.isprintable() else "?" for c in name[:LONGEST_NAME])
        with self._lock:
            if len(self._known) < self._most:
                self._known.add(short)
            return short if short in self._known else OTHER
