"""What Prometheus is told: the ledger's and the verdicts' own numbers, by its conventions, at no cost to the line.

The dashboard and the alerts in deploy/ are held against what a real worker and a real producer say.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest
import yaml
from conftest import fake_recipe, make_frame, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from promql_parser import VectorSelector, walk
from promql_parser import parse as parse_promql
from redis_nodes import Node

from engines.base import EngineError
from pipeline import metrics, metrics_server
from pipeline.errors import Exit, StreamDown
from pipeline.inspector import Inspector, open_engines
from pipeline.messages import JUDGEMENTS, Frame, Verdict
from pipeline.metrics import ProducerMetrics, WorkerMetrics, producer_trouble, worker_trouble
from pipeline.metrics_ledger import MOST_NAMES, LedgerMetrics
from pipeline.metrics_server import MetricsServer
from pipeline.producer import Offered, produce
from pipeline.results import kept
from pipeline.stream import Audit, Delivery, Limits, Settlement, SourceCount, open_stream
from pipeline.worker import Worker

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
Sample = tuple[str, frozenset[tuple[str, str]]]


# -------------------------------------------------------------- a line that runs


@contextmanager
def process(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command with `--metrics 0` and the address that it names on stderr."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--metrics", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stderr
            told = started.stderr.readline()
            assert told.startswith("metrics at http://127.0.0.1:"), told + started.stderr.read()
            yield started, told.split()[-1]
        finally:
            started.kill()


def get(url: str, accept: str = "") -> str:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=20) as answer:
        return str(answer.read().decode())


def health(url: str) -> tuple[int, str]:
    try:
        with urlopen(url.replace("/metrics", "/healthz"), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def numbers(text: str) -> dict[Sample, float]:
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse(text) for s in family.samples}


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels; fails when there is none."""
    found = [n for (of, has), n in numbers(text).items() if of == name and labels.items() <= dict(has).items()]
    assert found, f"no {name} {labels}"
    return sum(found)


@dataclass
class Said:
    """What a worker and a producer said after a folder had gone through, and what was to be said."""

    worker: str
    producer: str
    open_metrics: str
    audit: dict[str, Any]
    verdicts: list[Verdict]
    line: str


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "net.fake").write_text('{"delay_ms": 5, "poison": 7}')
    stage = 'file = "net.fake"\nclasses = ["good", "scratch"]\n'
    text = f'name = "fake"\n[classifier]\n{stage}[segmenter]\n{stage}[batching]\nengine = "fake"\nmax_batch = 4\n'
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def said(redis_url: str, recipe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Thirty parts: good ones, scratches, one that breaks the engine, one broken and one empty file."""
    images, line = tmp_path_factory.mktemp("images"), f"said-{time.monotonic_ns()}"
    for i in range(28):
        image = np.full((64, 64), 100, np.uint8)
        image[10:20, 10:20] = 255 if i % 4 == 0 else 100
        image[0, 0] = 7 if i == 1 else 100
        cv2.imwrite(str(images / f"part{i}.png"), image)
    (images / "part28.png").write_bytes(b"\x89PNG no more")
    (images / "part29.bmp").write_bytes(b"")
    here = ("--url", redis_url, "--line", line)
    reader = open_stream(redis_url, line)
    with (
        process("work", "--recipe", recipe_folder, *here) as (_, work),
        process("produce", images, "--watch", "--lot", "4711", *here) as (_, offer),
    ):
        wait_until(lambda: reader.audit().settled == 30, 60)
        for url in (work, offer):
            wait_until(lambda url=url: total(get(url), "aoi_verdicts_total") == 30)  # type: ignore[misc]
        wait_until(lambda: total(get(work), "aoi_worker_frames_total") == 30)
        assert health(work) == health(offer) == (200, "ok\n")
        audit = [sys.executable, "-m", "pipeline.cli", "audit", "--json", *here]
        told = json.loads(subprocess.run(audit, capture_output=True, text=True, check=True, timeout=60).stdout)
        open_metrics = get(work, "application/openmetrics-text; version=1.0.0")
        return Said(get(work), get(offer), open_metrics, told, list(kept(reader)), line)


# -------------------------------------------------------------- the ledger's numbers


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


# -------------------------------------------------------------- a process's own numbers


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


def done(
    judgement: Any = "OK", reason: str = "", deadline_ns: int = 0, deliveries: int = 1
) -> tuple[Delivery, Verdict]:
    """A frame that took 1 ms to the worker, 2 to a batch, 4 in the engine; due 10 ms before it was offered."""
    s = 10**9
    frame = Frame(
        frame_id="f",
        source="cam",
        session="s",
        sequence=0,
        triggered_ns=s,
        offered_ns=s + 10**7,
        deadline_ns=deadline_ns,
    )
    delivery = Delivery(frame, "0-1", b"", 1, frame.offered_ns + 10**6, deliveries)
    verdict = Verdict(
        frame=frame,
        judgement=judgement,
        reason=reason,
        deliveries=deliveries,
        batch_size=4,
        received_ns=delivery.received_ns,
        batched_ns=delivery.received_ns + 2 * 10**6,
        inferred_ns=delivery.received_ns + 6 * 10**6,
    )
    return delivery, verdict


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


# -------------------------------------------------------------- names by convention


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


# -------------------------------------------------------------- the server


def test_says_starting_then_ok_then_what_is_wrong() -> None:
    """/healthz is 503 with the reason until there is progress; other paths and methods are refused."""
    with MetricsServer("127.0.0.1", 0) as server:
        assert health(server.url) == (503, "starting\n")
        server.trouble = lambda: ""
        assert health(server.url) == (200, "ok\n")
        server.trouble = lambda: "the stream has not answered for 12 s"
        assert health(server.url) == (503, "the stream has not answered for 12 s\n")
        assert "process_resident_memory_bytes" in get(server.url)
        assert refusal("GET", server.url.replace("/metrics", "/etc/passwd")) == 404
        assert [refusal(method, server.url) for method in ("POST", "PUT", "DELETE")] == [501, 501, 501]
    with pytest.raises(OSError, match="refused"):
        get(server.url)


def refusal(method: str, url: str) -> int:
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, method=method), timeout=20)
    with refused.value as answer:
        return answer.code


def test_clients_that_say_nothing_hold_up_neither_the_others_for_ever_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them than the server takes are hung up on; with eight still there, leaving is immediate."""
    monkeypatch.setattr(metrics_server._Answer, "timeout", 100.0)
    with MetricsServer("127.0.0.1", 0) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(metrics_server.MOST_CLIENTS)]
        with pytest.raises((OSError, http.client.HTTPException)):
            get(server.url)
        silent.pop().close()
        wait_until(lambda: answers(server.url))
        start = time.monotonic()
    assert time.monotonic() - start < 20
    for client in silent:
        client.close()


def answers(url: str) -> bool:
    try:
        return bool(get(url))
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_listens_where_it_is_told(host: str) -> None:
    """HOST:PORT, IPv6 in brackets as in URLs; alone, a port is this machine's only."""
    if "::" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with MetricsServer(host.strip("[]"), 0) as server:
        assert server.url == f"http://{host}:{server.port}/metrics"
        assert get(server.url)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("command", [("produce", "panel:"), ("work", "--recipe", "panel")])
def test_address_that_cannot_be_had_is_refused_in_one_line(command: tuple[str, ...]) -> None:
    """A port in use, and text that is no address: before anything is started, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for address, words in ((port, f"127.0.0.1:{port}: Address already in use"), ("here:http", "give [HOST:]PORT")):
            run = [sys.executable, "-m", "pipeline.cli", *command, "--metrics", address]
            done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == Exit.USAGE, done.stderr
            errors = [row for row in done.stderr.splitlines() if row.startswith("Error: ")]
            assert len(errors) == 1
            assert words in errors[0]


def test_redis_killed_while_being_watched(recipe_folder: Path, tmp_path: Path) -> None:
    """The worker goes on and says that its stream is down, then that it is back; SIGTERM ends it all the same."""
    with Node(tmp_path / "redis", ("--appendonly", "yes", "--requirepass", "hunter2")) as node:
        here = ("--url", f"redis://:hunter2@{node.address}/0", "--line", "l")
        stream = open_stream(here[1], "l")
        stream.offer([make_frame(i) for i in range(8)])
        with process("work", "--recipe", recipe_folder, *here) as (worker, url):
            wait_until(lambda: names(get(url)) >= {"aoi_backlog_frames"} and total(get(url), "aoi_verdicts_total") == 8)
            node.kill()
            wait_until(lambda: total(get(url), "aoi_stream_up") == 0)
            text = get(url)
            ledger = {"aoi_backlog_frames", "aoi_verdicts_total", "aoi_ledger_balanced", "aoi_workers_alive"}
            assert not names(text) & ledger, "no stale number"
            assert total(text, "aoi_worker_frames_total") == 8
            assert "hunter2" not in text
            node.start()
            wait_until(lambda: total(get(url), "aoi_stream_up") == 1, 40)
            assert total(get(url), "aoi_verdicts_total") == 8
            with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))):  # it says nothing
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(60) == Exit.OK


def names(text: str) -> set[str]:
    return {name for name, _ in numbers(text)}


def test_worker_that_hears_nothing_or_stands_still_is_not_healthy(tmp_path: Path, redis_url: str, line: str) -> None:
    """It is healthy while the stream answers and its loop goes round; hanging in an engine it is not."""
    recipe = fake_recipe(tmp_path)
    with open_engines(recipe) as engines:
        stream = open_stream(redis_url, line, "w")
        worker = Worker(stream, lambda wake: Inspector(recipe, engines, wake), "w")
        held, hanging = threading.Event(), threading.Event()

        def hang(now: int) -> list[Any]:
            hanging.set()
            held.wait(60)
            raise EngineError("gone", "broken")

        worker.inspector.step = hang  # type: ignore[method-assign]

        def run() -> None:
            with pytest.raises(EngineError):
                worker.run()

        thread = threading.Thread(target=run, daemon=True)
        assert worker_trouble(worker) == ""
        worker.heard_at -= metrics.STILL_S + 1
        assert worker_trouble(worker).startswith("the stream has not answered for 1")
        thread.start()
        try:
            assert hanging.wait(20)
            wait_until(lambda: worker_trouble(worker) == "")
            worker.stepped_at -= metrics.STILL_S + 1
            assert worker_trouble(worker).startswith("the worker's loop has stood still for 1")
        finally:
            held.set()
            thread.join(20)
        assert not thread.is_alive()


# -------------------------------------------------------------- deploy/


BOARD = json.loads((DEPLOY / "grafana" / "aoi-line.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
FILLED = {"$__rate_interval": "1m", "$__range": "1h", "$line": ".*"}
PROMETHEUS_OWN = {"up"}


def filled(expression: str) -> str:
    """As Grafana sends it; a variable that Grafana does not know stays, and the parser refuses it."""
    for variable, value in FILLED.items():
        expression = expression.replace(variable, value)
    return expression


QUERIES = [(f"{p['title']}, {t['refId']}", filled(t["expr"])) for p in PANELS for t in p["targets"]]
QUERIES += [(rule["alert"], rule["expr"]) for rule in RULES]


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The metrics that an expression asks for, and the labels it matches them by; fails where it does not parse."""
    nodes: list[Any] = []
    walk(parse_promql(query), nodes.append)
    found = [node for node in nodes if isinstance(node, VectorSelector)]
    return [(node.name or "", {matcher.name for matcher in node.matchers.matchers}) for node in found]


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_query_parses_and_asks_for_what_is_told(said: Said, where: str, query: str) -> None:
    """Every metric and label that a panel or an alert names is in the output of a running worker or producer."""
    labels: dict[str, set[str]] = {}
    for name, has in (*numbers(said.worker), *numbers(said.producer)):
        labels.setdefault(name, set()).update(dict(has))
    asked = selectors(query)
    assert asked
    for name, matched in asked:
        assert name in labels.keys() | PROMETHEUS_OWN, f"{where}: {name} does not exist"
        assert matched <= labels.get(name, set()) | {"job", "instance"}, f"{where}: {name} has no such label"
    grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r",\s*", by)}
    assert grouped <= set().union(*(labels.get(name, set()) for name, _ in asked)), where


def test_ledger_numbers_are_never_summed_over_processes(said: Said) -> None:
    """Every process tells the same ledger: without max or min first, three processes would count each frame thrice."""
    ledger = names(said.worker) & names(said.producer)
    for where, query in QUERIES:
        for name in (name for name in ledger if name.startswith("aoi_") and re.search(rf"\b{name}\b", query)):
            assert re.search(rf"(max|min) by \([^)]*\) \((rate\(|increase\()?{name}\b", query), f"{where}: {name}"


def test_dashboard_is_one_for_any_datasource_and_line() -> None:
    """It imports without edits: the datasource and the line are variables that every query uses; nothing overlaps."""
    assert [v["name"] for v in BOARD["templating"]["list"]] == ["datasource", "line"]
    own = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == own, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == own, panel["title"]
            assert 'line=~"$line"' in target["expr"], panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbered = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbered) == len(set(numbered))


def test_dashboard_fits_grafanas_own_schema() -> None:
    """Read and written again by Grafana's SDK, made from Grafana's schema: nothing lost, so nothing misspelt."""
    if sys.version_info < (3, 11):
        pytest.skip("Grafana's SDK needs Python 3.11")
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    plugins.register_default_plugins()
    written = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(BOARD)))
    assert list(lost(BOARD, written, "")) == []


def lost(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from lost(value, found[key], f"{path}/{key}") if key in found else [f"{path}/{key}"]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif wanted != found:
        yield path


def test_alerts_say_what_happened_and_what_to_do() -> None:
    """Each has a severity, a summary that names the line or the process, and a next step; what must not be is there."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels." in rule["annotations"]["summary"], rule["alert"]
        assert len(rule["annotations"]["description"]) > 20
    asked = " ".join(rule["expr"] for rule in RULES)
    needed = ("ledger_balanced", "workers_alive", "deadline_failsafe", "dead_frames", "engine_errors", "stream_up")
    assert all(word in asked for word in needed)


def test_scrape_config_loads_the_alerts_and_gives_up_in_time() -> None:
    """The rules it names lie beside it, and a scrape may take longer than the process ever waits for its stream."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in " ".join(rule["expr"] for rule in RULES)
    assert 2.0 < float(job["scrape_timeout"].rstrip("s")) < float(config["global"]["scrape_interval"].rstrip("s"))
