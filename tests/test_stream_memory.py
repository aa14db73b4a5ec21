"""What a line costs the server in memory: its byte budget and a stated overhead, whatever the frames and the policy.

Beside the frames there are, for each frame, its place on the stream and in the workers' list; and for a moment the
copies of what is under way: an offer of at most 4 MiB (or one frame) is held twice by the script and once for each
producer that is sending, an answer of at most 4 MiB (or one frame) once for each worker that is reading. An
allocator that rounds up (jemalloc) adds a quarter. Not counted here: an append-only file's buffer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from redis_nodes import Node

from pipeline.errors import StreamDown
from pipeline.messages import Frame, Verdict, frame_id
from pipeline.stream import Delivery, Limits, Policy, Stream, open_stream
from pipeline.stream_redis import OFFER_BYTES, TAKE_BYTES

pytestmark = pytest.mark.usefixtures("redis_url")  # skips where there is no server

MIB = 1024 * 1024
BUDGET = 40 * MIB
PRODUCERS = WORKERS = 2
PLACE_BYTES = 512  # of a frame on the stream, beside its header and pixels
VERDICT_BYTES = 512  # of a verdict without masks
EMPTY_BYTES = 2 * MIB  # the server itself, its scripts, its clients' smallest buffers
SIZES = {
    "50 kB": (50_000,),
    "1 MB": (1_000_000,),
    "16 MB": (16_000_000,),
    "mixed": (200, 50_000, 1_000_000, 16_000_000, 3_000),
}


def make_frame(sequence: int, source: str, size: int) -> Frame:
    return Frame(
        frame_id=frame_id(source, "s", sequence),
        source=source,
        session="s",
        sequence=sequence,
        height=1,
        width=size,
        triggered_ns=time.time_ns(),
        pixels=np.zeros((1, size), np.uint8),
    )


def verdict_for(delivery: Delivery) -> tuple[Delivery, Verdict]:
    return delivery, Verdict(frame=delivery.frame.without_pixels(), judgement="OK", reason="")


@dataclass
class Load:
    """Producers that push and workers that are slow, on one line of a server of its own."""

    node: Node
    sizes: tuple[int, ...]
    policy: Policy
    each: int  # frames of each producer
    offered: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        jobs = [lambda i=i: self._produce(f"cam{i}") for i in range(PRODUCERS)]  # type: ignore[misc]
        jobs += [lambda i=i: self._work(f"w{i}") for i in range(WORKERS)]  # type: ignore[misc]
        threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not self.failures, self.failures
        assert not [thread for thread in threads if thread.is_alive()]

    def open(self, worker: str = "") -> Stream:
        return open_stream(f"redis://{self.node.address}", "memory", worker, Limits(max_bytes=BUDGET))

    def _produce(self, source: str) -> None:
        stream, pause, left = self.open(), threading.Event(), []
        for sequence in range(self.each):
            left.append(make_frame(sequence, source, self.sizes[sequence % len(self.sizes)]))
            while left and (len(left) == 8 or sequence == self.each - 1):
                dealt = stream.offer(left, self.policy)
                left = left[dealt:]
                if left:
                    pause.wait(0.02)
        stream.close()

    def _work(self, name: str) -> None:
        stream, pause = self.open(name), threading.Event()
        while self.policy != "wait" and "UNINSPECTED shed" not in stream.audit().reasons:
            pause.wait(0.01)  # however fast the machine is, the budget is full once
        while stream.audit().settled < PRODUCERS * self.each:
            pause.wait(0.01)
            stream.settle([verdict_for(delivery) for delivery in stream.take(16, 0.05)])
        stream.close()

    def _guarded(self, job: object) -> None:
        try:
            job()  # type: ignore[operator]
        except BaseException as error:
            self.failures.append(error)


def most_memory(load: Load, allocator: str) -> float:
    """The budget and all that may lie beside it for this load, in bytes."""
    largest = max(load.sizes)
    under_way = (2 + PRODUCERS) * max(OFFER_BYTES, largest) + WORKERS * max(TAKE_BYTES, largest)
    rounded = 1.0 if allocator == "libc" else 1.25
    beside = PRODUCERS * load.each * (PLACE_BYTES + VERDICT_BYTES) + EMPTY_BYTES
    return rounded * (BUDGET + under_way) + beside


@contextmanager
def sampled(node: Node, line_holds: Stream) -> Iterator[list[float]]:
    """Memory as another connection sees it while the load runs; the ledger is looked at as often."""
    samples: list[float] = []
    stop = threading.Event()

    def look() -> None:
        with node.client() as client:
            while not stop.wait(0.01):
                samples.append(client.info("memory")["used_memory"])
                assert line_holds.audit().holds

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield samples
    stop.set()
    thread.join(10)
    samples.append(node.client().info("memory")["used_memory_peak"])


@pytest.mark.parametrize("policy", ["wait", "shed-newest", "shed-oldest"])
@pytest.mark.parametrize("sizes", SIZES)
def test_memory_stays_under_the_budget(sizes: str, policy: Policy, tmp_path: Path) -> None:
    """Producers push three times the budget at slow workers; what is shed has its verdict, nothing is lost."""
    each = int(1.5 * BUDGET / np.mean(SIZES[sizes]))
    with Node(tmp_path) as node:
        load = Load(node, SIZES[sizes], policy, each)
        stream = load.open()
        with sampled(node, stream) as samples:
            load.run()
        audit, memory = stream.audit(), node.client().info("memory")
        allowed = most_memory(load, "libc" if memory["mem_allocator"].startswith("libc") else "other")
    assert max(samples) < allowed
    assert (audit.offered, audit.settled, audit.outstanding_bytes) == (PRODUCERS * each, PRODUCERS * each, 0)
    assert (policy == "wait") == ("UNINSPECTED shed" not in audit.reasons)


def test_answers_are_small_whatever_is_asked_for(tmp_path: Path) -> None:
    """Going by the frames that came, a worker is given 4 MiB at once, or one frame; all come in the end."""
    with Node(tmp_path) as node:
        stream = Load(node, (), "wait", 0).open("w")
        assert stream.offer([make_frame(i, "cam", 1_000_000) for i in range(12)]) == 12
        assert len(stream.take(1)) == 1
        assert len(stream.take(9)) == 4
        stream.close()
        heir = Load(node, (), "wait", 0).open("heir")
        assert len(heir.reclaim(1)) == 1
        assert len(heir.reclaim(9)) == 4
        assert [len(heir.take(9)) for _ in range(3)] == [4, 3, 0]


def test_a_newcomer_is_not_given_a_full_line_at_once(tmp_path: Path) -> None:
    """A worker that has seen no frame yet goes by those that wait, and so does the one that inherits."""
    with Node(tmp_path) as node:
        stream = Load(node, (), "wait", 0).open("w")
        assert stream.offer([make_frame(i, "cam", 1_000_000) for i in range(12)]) == 12
        assert len(stream.take(9)) == 4
        stream.close()
        assert len(Load(node, (), "wait", 0).open("heir").reclaim(9)) == 4


def test_frames_that_come_from_a_full_server_are_taken(tmp_path: Path) -> None:
    """It has no room for a sign of life but hands frames out: they must not be lost on the way, again and again."""
    with Node(tmp_path) as node:
        stream = Load(node, (), "wait", 0).open("w")
        assert stream.offer([make_frame(i, "cam", 100) for i in range(4)]) == 4
        assert len(stream.take(1)) == 1
        with node.client() as client:
            client.config_set("maxmemory", "1")
            assert [delivery.frame.sequence for delivery in stream.take(2)] == [1, 2]
            with pytest.raises(StreamDown, match="cannot take this now"):
                stream.take(0)
            client.config_set("maxmemory", "0")
        assert [delivery.frame.sequence for delivery in stream.take(2)] == [3]
