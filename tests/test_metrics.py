"""What Prometheus is told: the ledger's and the verdicts' own numbers, by its conventions, at no cost to the line."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import make_frame, wait_until
from metrics_scrapes import Said, done, numbers, total
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from pipeline import metrics
from pipeline.errors import StreamDown
from pipeline.messages import JUDGEMENTS, Frame
from pipeline.metrics import ProducerMetrics, WorkerMetrics, producer_trouble
from pipeline.metrics_ledger import MOST_NAMES, LedgerMetrics
from pipeline.producer import Offered, produce
from pipeline.stream import Audit, Limits, Settlement, SourceCount, open_stream


@pytest.mark.parametrize("who", ["worker", "producer"])
def test_ledger_is_told_as_audit_tells_it(said: Said, who: str) -> None:
    """Offered, verdicts by source and judgement, reasons and backlog: the very numbers of `aoi audit --json`."""
    text, audit, line = getattr(said, who), said.audit, said.line
    assert audit["judgements"] == {"OK": 20, "NG": 7, "REVIEW": 0, "UNINSPECTED": 3}
    for source, counts in audit["sources"].items():
        assert total(text, "aoi_frames_offered_total", line=line, source=source) == counts["offered"]
        for name in JUDGEMENTS:
            told = total(text, "aoi_verdicts_total", line=line, source=source, judgement=name)
            assert told == counts["judgements"].get(name, 0)
    for key, count in audit["reasons"].items():
        judgement, reason = key.split(" ", 1)
        assert total(text, "aoi_verdict_reasons_total", line=line, judgement=judgement, reason=reason) == count
    assert total(text, "aoi_verdict_reasons_total", line=line) == sum(audit["reasons"].values())
    assert total(text, "aoi_backlog_frames", line=line) == audit["outstanding"] == 0
    assert total(text, "aoi_backlog_bytes", line=line) == audit["outstanding_bytes"] == 0
    assert total(text, "aoi_backlog_budget_bytes", line=line) == Limits().max_bytes
    assert total(text, "aoi_workers_alive", line=line) == len(audit["workers"]) == 1
    assert total(text, "aoi_ledger_balanced", line=line) == total(text, "aoi_stream_up", line=line) == 1


def test_backlog_gaps_poison_amendments_and_cooked_books_are_told() -> None:
    """What the audit says besides: each number at its place, and a ledger that does not hold is 0."""
    audit = Audit(
        outstanding=2,
        outstanding_bytes=300,
        sources={"left": SourceCount(10, {"OK": 5, "REVIEW": 1})},
        reasons={"REVIEW deadline": 1, "NG some scratch": 4},
        gaps=[("left-s", 3, 5), ("left-s", 8, 8)],
        dead=1,
        amended={"NG": 1},
        missed=3,
    )
    text = scraped(LedgerMetrics("press4", lambda: audit, Limits(max_bytes=1000)))
    told = {
        "aoi_backlog_frames": 2,
        "aoi_backlog_bytes": 300,
        "aoi_backlog_budget_bytes": 1000,
        "aoi_sequence_gaps_total": 2,
        "aoi_frames_never_offered_total": 4,
        "aoi_dead_frames": 1,
        "aoi_workers_alive": 0,
        "aoi_ledger_balanced": 0,
        "aoi_deadline_failsafe_total": 1,
        "aoi_verdict_amendments_total": 1,
        "aoi_deadline_misses_total": 3,
    }
    assert {name: total(text, name, line="press4") for name in told} == told
    assert total(text, "aoi_deadline_failsafe_total", reason="deadline") == 1
    assert total(text, "aoi_verdict_amendments_total", judgement="NG") == 1
    assert total(text, "aoi_verdict_reasons_total", judgement="NG", reason="some scratch") == 4
    assert total(text, "aoi_verdict_reasons_total", judgement="UNINSPECTED", reason="poison") == 0, (
        "there from the start"
    )


def scraped(*collectors: Any) -> str:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def test_hostile_source_names_cannot_blow_up_the_server(redis_url: str, line: str) -> None:
    """Names come from frames: printable, cut, and at most so many series; the sums stay right, none moves over."""
    stream = open_stream(redis_url, line)
    names = [f'bad"\n}}\x00{i} ' + "long" * 100 for i in range(3)] + [f"cam{i}" for i in range(MOST_NAMES + 50)]
    stream.offer([make_frame(0, name, size=8) for name in names])
    collector = LedgerMetrics(line, stream.audit, Limits(), clock=iter(range(0, 1000, 5)).__next__)
    first = scraped(collector)
    sources = {dict(has)["source"] for (name, has) in numbers(first) if name == "aoi_frames_offered_total"}
    assert len(sources) == MOST_NAMES + 1
    assert all(len(source) <= 120 and source.isprintable() for source in sources)
    assert total(first, "aoi_frames_offered_total") == len(names)
    stream.offer([make_frame(0, "one more", size=8)])
    second = scraped(collector)
    before, after = numbers(first), numbers(second)
    risen = {
        dict(has)["source"] for (of, has), n in after.items() if of.endswith("offered_total") and n > before[of, has]
    }
    assert risen == {"other"}


def test_scrapes_close_together_ask_once() -> None:
    """Whoever scrapes a hundred times a second does not load the server a hundred times."""
    asked, now = [], [100.0]

    def audit() -> Audit:
        asked.append(now[0])
        return Audit(0, 0, {}, {}, [])

    collector = LedgerMetrics("l", audit, Limits(), clock=lambda: now[0])
    for now[0] in (100.0, 100.3, 100.9, 101.1):
        scraped(collector)
    assert asked == [100.0, 101.1]


def test_a_stream_that_hangs_or_is_away_bounds_the_scrape_and_tells_nothing_stale() -> None:
    """The first answer is told; then `aoi_stream_up` is 0 and no number is there; one thread waits, not one each."""
    hang, asked, now = threading.Event(), [], [0.0]

    def audit() -> Audit:
        asked.append(1)
        if len(asked) == 2:
            hang.wait(60)
        if len(asked) == 3:
            raise StreamDown("cannot be reached")
        return Audit(7, 0, {}, {}, [])

    collector = LedgerMetrics("l", audit, Limits(), clock=lambda: now[0], patience_s=0.05)
    assert total(scraped(collector), "aoi_backlog_frames") == 7
    now[0] = 5.0
    for _ in range(3):
        assert numbers(scraped(collector)) == {("aoi_stream_up", frozenset({("line", "l")})): 0.0}
    assert len(asked) == 2, "the hanging question stays the only one"
    hang.set()
    wait_until(lambda: total(scraped(collector), "aoi_stream_up") == 1)
    now[0] = 10.0
    wait_until(lambda: total(scraped(collector), "aoi_stream_up") == 0)
    assert len(asked) == 3


def test_ledger_that_cannot_be_understood_is_a_stream_that_is_not_up() -> None:
    """Somebody wrote nonsense into it: the scrape goes on and says that there is no ledger, until it can be read."""
    lines, now = ["x", "7"], [0.0]
    collector = LedgerMetrics("l", lambda: Audit(int(lines.pop(0)), 0, {}, {}, []), Limits(), clock=lambda: now[0])
    assert total(scraped(collector), "aoi_stream_up") == 0
    now[0] = 5.0
    assert total(scraped(collector), "aoi_backlog_frames") == 7


def test_worker_tells_what_its_verdicts_say(said: Said) -> None:
    """Counts exactly, times to a millisecond a frame: the histograms are the verdicts' own times."""
    text, verdicts, line = said.worker, said.verdicts, said.line
    for name in JUDGEMENTS:
        count = sum(v.judgement == name for v in verdicts)
        assert total(text, "aoi_worker_frames_total", line=line, judgement=name) == count
    ways = {
        "queue": [(v.frame.offered_ns, v.received_ns) for v in verdicts],
        "batch": [(v.received_ns, v.batched_ns) for v in verdicts],
        "infer": [(v.batched_ns, v.inferred_ns) for v in verdicts],
        "settle": [(v.inferred_ns, v.settled_ns) for v in verdicts],
    }
    for stage, way in ways.items():
        times = [(end - start) / 1e9 for start, end in way if start and end]
        assert total(text, "aoi_stage_seconds_count", line=line, stage=stage) == len(times) >= 28
        assert total(text, "aoi_stage_seconds_sum", stage=stage) == pytest.approx(sum(times), abs=0.001 * len(times))
    latency = [(v.settled_ns - v.frame.triggered_ns) / 1e9 for v in verdicts]
    assert total(text, "aoi_latency_seconds_count", line=line) == 30
    assert total(text, "aoi_latency_seconds_sum") == pytest.approx(sum(latency), abs=0.03)
    assert total(text, "aoi_batch_size_sum", line=line) == sum(v.batch_size for v in verdicts)
    assert total(text, "aoi_engine_errors_total", line=line) == 1
    assert total(text, "aoi_worker_late_verdicts_total", line=line) == 0
    recipe, device = verdicts[0].recipe, "none"
    assert total(text, "aoi_worker_info", line=line, recipe=recipe, device=device, worker=verdicts[0].worker) == 1


def test_producer_tells_what_it_offered(said: Said) -> None:
    """Frames, bytes and those that could not be read; a lag below a minute, as they were offered at once."""
    text, labels = said.producer, {"line": said.line, "source": next(iter(said.audit["sources"]))}
    assert total(text, "aoi_producer_frames_total", **labels) == 30
    assert total(text, "aoi_producer_faulty_frames_total", **labels) == 1
    assert total(text, "aoi_producer_bytes_total", **labels) > 28 * 64
    assert total(text, "aoi_producer_stream_outages_total", **labels) == 0
    assert 0 <= total(text, "aoi_producer_lag_seconds", **labels) < 60


def test_what_became_of_a_verdict_decides_what_counts() -> None:
    """Twins and amendments are counted as such, and only a frame's one verdict counts its times and its judgement."""
    seen = WorkerMetrics("l", {})
    batch = [
        done(),
        done("NG", "scratch"),
        done("UNINSPECTED", "engine", deliveries=2),
        done(),
        done("NG"),
    ]
    became = [Settlement.PUBLISHED] * 3 + [Settlement.TWIN, Settlement.AMENDED]
    seen.settled(batch, became, 10**9 + 20 * 10**6)
    text = scraped(seen)
    told = {
        "aoi_worker_frames_total": 3,
        "aoi_worker_late_verdicts_total": 1,
        "aoi_worker_amendments_total": 1,
        "aoi_worker_redelivered_frames_total": 1,
        "aoi_engine_errors_total": 1,
        "aoi_latency_seconds_count": 3,
        "aoi_batch_size_count": 3,
    }
    assert {name: total(text, name) for name in told} == told
    assert total(text, "aoi_latency_seconds_sum") == pytest.approx(3 * 0.020)
    spent = {stage: total(text, "aoi_stage_seconds_sum", stage=stage) for stage in metrics.STAGES}
    assert spent == pytest.approx({"queue": 0.003, "batch": 0.006, "infer": 0.012, "settle": 0.009})


def test_a_value_falls_into_the_bucket_that_bounds_it() -> None:
    """`le`: a time of exactly a bound counts below it; one above the last bound only in +Inf; clocks never run back."""
    seen = WorkerMetrics("l", {})
    for settled_ms in (50, 50.001, 20_000, -500):
        seen.settled([done()], [Settlement.PUBLISHED], int(10**9 + settled_ms * 10**6))
    text = scraped(seen)
    below = {le: total(text, "aoi_latency_seconds_bucket", le=le) for le in ("0.001", "0.03", "0.05", "0.075", "10.0")}
    assert below == {"0.001": 1, "0.03": 1, "0.05": 2, "0.075": 3, "10.0": 3}
    assert total(text, "aoi_latency_seconds_bucket", le="+Inf") == 4
    assert total(text, "aoi_latency_seconds_sum") == pytest.approx(0.05 + 0.050001 + 20)


def test_a_frame_that_no_engine_saw_has_no_such_stage() -> None:
    """A broken image was never in a batch: its 0 is no time, and its settling is not counted from 1970."""
    seen = WorkerMetrics("l", {})
    delivery, verdict = done("UNINSPECTED", "undecodable")
    bare = replace(verdict, batched_ns=0, inferred_ns=0, batch_size=0)
    seen.settled([(delivery, bare)], [Settlement.PUBLISHED], 2 * 10**9)
    counts = {stage: total(scraped(seen), "aoi_stage_seconds_count", stage=stage) for stage in metrics.STAGES}
    assert counts == {"queue": 1, "batch": 0, "infer": 0, "settle": 0}
    assert total(scraped(seen), "aoi_batch_size_count") == 0


class Away:
    """A stream that is away for the first so many offers, then takes all."""

    def __init__(self, times: int, look: Callable[[], None]) -> None:
        self._left, self._look = times, look

    def offer(self, frames: list[Frame], policy: str = "wait") -> int:
        self._look()
        self._left -= 1
        if self._left >= 0:
            raise StreamDown("cannot be reached")
        return len(frames)


def test_producer_tells_its_outages_and_how_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the stream is away the lag grows with the frame in hand, and health says for how long; then it is over."""
    monkeypatch.setattr(metrics, "STILL_S", 0.05)
    offered = Offered()
    own, seen, health_said = ProducerMetrics("l", "cam", offered), [], []

    def look() -> None:
        seen.append(total(scraped(own), "aoi_producer_lag_seconds"))
        health_said.append(producer_trouble(offered))

    frame = replace(make_frame(0), triggered_ns=time.time_ns() - 3 * 10**9)
    produce([frame, make_frame(1)], Away(2, look), offered=offered)  # type: ignore[arg-type]
    assert 3 <= seen[0] < seen[1] < seen[2]
    assert seen[3] < 1, "the next frame was due just now"
    assert health_said[0] == ""
    assert health_said[2].startswith("the stream has been away for")
    assert producer_trouble(offered) == ""
    text = scraped(own)
    assert total(text, "aoi_producer_stream_outages_total") == 1
    assert 0.3 <= total(text, "aoi_producer_stream_outage_seconds_total") < 20
    assert total(text, "aoi_producer_frames_total") == 2
    assert total(text, "aoi_producer_lag_seconds") < 1


SUFFIXES = ("_total", "_sum", "_count", "_bucket", "_info", "_created")
ODD_UNITS = ("milliseconds", "ms", "us", "ns", "minutes", "hours", "kilobytes", "kib", "mib", "percent", "msec", "sec")


@pytest.mark.parametrize("who", ["worker", "producer"])
def test_names_follow_the_conventions(said: Said, who: str) -> None:
    """What `promtool check metrics` asks for: help, `_total` for counters and only for them, base units, snake case."""
    families = [family for family in parse(getattr(said, who)) if not family.name.startswith("process_")]
    assert len(families) > 15
    assert len({family.name for family in families}) == len(families), "a name stands for one thing"
    for family in families:
        assert re.fullmatch(r"aoi(_[a-z]+)+", family.name), family.name
        assert len(family.documentation) > 10, f"{family.name} has no help"
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not set(family.name.split("_")) & {*ODD_UNITS, "counter", "gauge", "histogram"}, family.name
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
        elif not family.name.endswith("_info"):
            assert not family.name.endswith(SUFFIXES), family.name
        for sample in family.samples:
            assert sample.labels["line"] == said.line
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels)


def test_openmetrics_is_spoken_to_those_who_ask(said: Said) -> None:
    """Negotiated as prometheus-client does, and its strict parser takes it."""
    assert said.open_metrics.endswith("# EOF\n")
    assert not said.worker.endswith("# EOF\n")
    assert {f.name for f in parse_openmetrics(said.open_metrics)} >= {
        "aoi_verdicts",
        "aoi_latency_seconds",
        "aoi_worker",
    }
