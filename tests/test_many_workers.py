"""Four and more worker processes on one line: nobody hoards, anybody may come, go or die at any time."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis
from conftest import make_frame, wait_until
from line_processes import LineProcesses, Process, finished

from pipeline.messages import Verdict
from pipeline.results import kept
from pipeline.stream import Delivery, open_stream
from pipeline.worker import Held

BATCH, IN_FLIGHT = 4, 2


@pytest.fixture
def processes(tmp_path: Path, redis_url: str, line: str) -> Iterator[LineProcesses]:
    with LineProcesses(tmp_path, redis_url, line) as found:
        yield found


def ready(processes: LineProcesses, workers: int) -> None:
    wait_until(lambda: len(processes.audit().workers) == workers, 40)


def offer(processes: LineProcesses, frames: int) -> None:
    stream = open_stream(processes.url, processes.line)
    assert stream.offer([make_frame(i, size=8) for i in range(frames)]) == frames
    stream.close()


def by_worker(verdicts: Sequence[Verdict]) -> Counter[str]:
    return Counter(verdict.worker for verdict in verdicts)


def holds(processes: LineProcesses, worker: str) -> int:
    """Frames in this worker's hands."""
    with redis.Redis.from_url(processes.url) as client:
        rows = client.xinfo_consumers(f"aoi:{{{processes.line}}}:frames", "workers")
    return sum(row["pending"] for row in rows if row["name"].decode().startswith(f"{worker}~"))


def stop(*workers: Process) -> None:
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    for worker in workers:
        finished(worker)


def test_equal_workers_share_equally(processes: LineProcesses) -> None:
    """Of a backlog none of four equal workers settles more than 40 % or less than 10 %."""
    total = 800
    workers = [processes.work(f"w{i}", delay_ms=40) for i in range(4)]
    ready(processes, 4)
    offer(processes, total)
    verdicts = processes.verdicts(total)
    shares = [count / total for count in by_worker(verdicts).values()]
    assert len(shares) == 4
    assert 0.1 < min(shares) <= max(shares) < 0.4
    assert {verdict.deliveries for verdict in verdicts} == {1}
    stop(*workers)


def test_slow_worker_holds_nobody_up(processes: LineProcesses) -> None:
    """Three fast workers do nearly all; a slow one holds no more than a batch in work and one ready.

    When the backlog is gone the line waits for what the slow one holds, so for two of its batches at most.
    """
    total, slow_s = 600, 0.6
    workers = [processes.work(f"fast{i}", delay_ms=20) for i in range(3)]
    slow = processes.work("slow", delay_ms=1000 * slow_s)
    ready(processes, 4)
    offer(processes, 2 * BATCH)
    wait_until(lambda: not processes.audit().outstanding)
    stream = open_stream(processes.url, processes.line)
    assert stream.offer([make_frame(i, "more", size=8) for i in range(total)]) == total
    most, left_at = 0, time.monotonic()
    while outstanding := processes.audit().outstanding:
        most = max(most, holds(processes, "slow"))
        if outstanding > most:
            left_at = time.monotonic()
    waited = time.monotonic() - left_at
    verdicts = processes.verdicts(total + 2 * BATCH)
    counts = by_worker(verdicts)
    assert 0 < counts["slow"] < total / 10
    assert most <= BATCH * (IN_FLIGHT + 2), "before it knows how slow it is"
    assert waited < 3 * slow_s
    stream.close()
    stop(slow, *workers)


def test_worker_with_a_slow_engine_takes_less_ahead() -> None:
    """As soon as it knows: a batch in work and one ready; a fast one as much as it does while more is fetched."""
    cost = 0.0
    held = Held(BATCH, IN_FLIGHT, lambda: cost)
    first = Delivery(make_frame(0), "0", b"", 10, 0)
    held.add(first, [make_frame(0).image()])
    held.release([first])
    rooms = {}
    for cost in (0.0, 0.005, 0.1, 0.2, 0.25, 2.0):
        rooms[cost] = held.wait_for_room(0) // BATCH
    assert rooms == {0.0: 4, 0.005: 4, 0.1: 4, 0.2: 3, 0.25: 2, 2.0: 2}


def test_workers_come_and_go_under_load(processes: LineProcesses) -> None:
    """SIGTERM drains: exit 0, what it held it settles itself and nobody does it again; who joins does its part."""
    total = 1500
    producer = processes.produce(total, "--rate", "200")
    first = [processes.work(f"w{i}", delay_ms=30) for i in range(4)]
    ready(processes, 4)
    wait_until(lambda: processes.audit().settled > 100, 40)
    first[0].send_signal(signal.SIGTERM)
    joined = processes.work("late", delay_ms=30)
    finished(first[0])
    assert not holds(processes, "w0"), "it left frames behind"
    ready(processes, 4)
    before = processes.audit().settled
    first[1].send_signal(signal.SIGTERM)
    first[2].send_signal(signal.SIGTERM)
    finished(first[1])
    finished(first[2])
    assert processes.audit().settled < total, "they must leave in the middle"
    verdicts = processes.verdicts(total)
    assert {verdict.deliveries for verdict in verdicts} == {1}, "somebody's frames were done again"
    counts = by_worker(verdicts)
    assert set(counts) == {"w0", "w1", "w2", "w3", "late"}
    assert 0 < before < total
    finished(producer)
    stop(first[3], joined)


def test_frames_of_killed_workers_go_to_several_others(processes: LineProcesses) -> None:
    """Each survivor takes no more of them than it will work on soon, so they are shared; every frame is judged once."""
    slow_s, batch = 1.3, 2
    workers = [processes.work(f"w{i}", 1000 * slow_s, batch) for i in range(4)]
    ready(processes, 4)
    stream = open_stream(processes.url, processes.line)
    before = 0
    while min(by_worker(list(kept(stream)))[f"w{i}"] for i in range(4)) < 2:  # until each knows how slow it is
        before += stream.offer([make_frame(before + i, size=8) for i in range(4)])
        wait_until(lambda: not stream.audit().outstanding, 40)
    assert stream.offer([make_frame(i, "more", size=8) for i in range(16)]) == 16
    wait_until(lambda: min(holds(processes, f"w{i}") for i in range(4)) == 2 * batch)
    for victim in workers[:2]:
        victim.kill()
    verdicts = processes.verdicts(before + 16)
    again = by_worker([verdict for verdict in verdicts if verdict.deliveries > 1])
    assert again == {"w2": 2 * batch, "w3": 2 * batch}
    stream.close()
    stop(*workers[2:])
