"""What only a real Redis can do to a line: be away, full, silent, foreign, or lose an answer."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
import redis
from conftest import make_frame, wait_until
from line_clients import assert_holds, due_in, verdict_for

from pipeline.deadlines import fail_safe
from pipeline.errors import StreamDown, StreamError
from pipeline.redis_binary import find_server
from pipeline.stream import Delivery, Limits, Stream, open_stream


def test_redis_that_is_not_there(line: str) -> None:
    """Opening needs no server; the first verb says that it cannot be reached, and may be tried again."""
    stream = open_stream("redis://127.0.0.1:1/0", line)
    with pytest.raises(StreamDown, match="cannot be reached"):
        stream.audit()


def test_reply_lost_on_the_way_is_recovered(redis_url: str, line: str) -> None:
    """Frames handed out in an answer that never arrived are found again by their own worker."""
    stream = open_stream(redis_url, line, "w1")
    stream.offer([make_frame(i) for i in range(3)])
    (kept,) = stream.take(1)
    twin = open_stream(redis_url, line, "w1")  # its deliveries stand for the answer that got lost
    twin.take(1)
    assert stream.reclaim(9) == [], "nothing is lost as long as no call failed"
    stream._reply_lost = True  # type: ignore[attr-defined]
    (found,) = stream.reclaim(9)
    assert (kept.frame.sequence, found.frame.sequence) == (0, 1)
    assert stream.settle([verdict_for(kept), verdict_for(found)]) == [True, True]


def test_out_of_memory_passes(redis_url: str, line: str) -> None:
    """A Redis over its memory limit cannot take a frame now, and can later: nothing is counted meanwhile."""
    stream, admin = open_stream(redis_url, line), redis.Redis.from_url(redis_url)
    admin.config_set("maxmemory", "1")
    try:
        with pytest.raises(StreamDown, match="cannot take this now"):
            stream.offer([make_frame(0)])
    finally:
        admin.config_set("maxmemory", "0")
    assert stream.offer([make_frame(0)]) == 1
    assert stream.audit().offered == 1


def test_foreign_entry_is_an_unreadable_frame(redis_url: str, line: str) -> None:
    """Whatever somebody else puts on the stream, the worker goes on and the entry leaves with a verdict."""
    stream, admin = open_stream(redis_url, line, "w1"), redis.Redis.from_url(redis_url)
    admin.xadd(f"aoi:{{{line}}}:frames", {"hello": "world"})
    (delivery,) = stream.take(1)
    assert "unreadable header" in delivery.frame.fault
    assert stream.settle([verdict_for(delivery, "UNINSPECTED", "undecodable")]) == [True]
    admin.delete(f"aoi:{{{line}}}:ledger")  # it does not balance, and other tests ask for all lines


def test_worker_that_falls_silent_is_reclaimed(redis_url: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without goodbye (SIGKILL) the server forgets a worker after its time; then its frames are anyone's."""
    monkeypatch.setattr("pipeline.stream_redis.ALIVE_MS", 50)
    killed, heir = open_stream(redis_url, line, "killed"), open_stream(redis_url, line, "heir")
    killed.offer([make_frame(0)])
    assert len(killed.take(1)) == 1
    found: list[Delivery] = []
    wait_until(lambda: found.extend(heir.reclaim(1)) or found)
    assert found[0].deliveries == 2


@pytest.mark.usefixtures("redis_url")  # skips where there is no server
def test_a_redis_of_the_users_own_by_url(tmp_path: Path, line: str) -> None:
    """Over TCP with a password: works with it, and says what to check without it; the password is never told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary, _ = find_server()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        "s3cret",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        stream = open_stream(f"redis://:s3cret@127.0.0.1:{port}/0", line, "w1")
        wait_until(lambda: reachable(stream))
        assert stream.offer([make_frame(0)]) == 1
        (delivery,) = stream.take(1)
        assert stream.settle([verdict_for(delivery)]) == [True]
        assert_holds(stream)
        with pytest.raises(StreamError, match="check user and password") as refused:
            open_stream(f"redis://:wr0ng@127.0.0.1:{port}/0", line).audit()
        assert "wr0ng" not in str(refused.value)
    finally:
        server.terminate()
        server.wait(20)


def reachable(stream: Stream) -> bool:
    try:
        stream.audit()
    except StreamDown:
        return False
    return True


def test_server_out_of_memory_still_settles(redis_url: str, line: str) -> None:
    """What waits must be able to leave, or memory never comes back; new frames are kept by their producer."""
    worker, server = open_stream(redis_url, line, "w", Limits(max_deliveries=1)), redis.Redis.from_url(redis_url)
    worker.offer([make_frame(0), make_frame(1), due_in(2, 0.001), make_frame(3)])
    held = worker.take(2)
    server.config_set("maxmemory", 1)
    try:
        with pytest.raises(StreamDown, match="OOM"):
            worker.offer([make_frame(4)])
        assert worker.settle([verdict_for(held[0]), verdict_for(held[1], "NG", "scratch")]) == [1, 1]
        assert worker.expire(fail_safe("REVIEW")) is None
    finally:
        server.config_set("maxmemory", 0)
    audit = worker.audit()
    assert (audit.settled, audit.outstanding, audit.holds) == (3, 1, True)
    assert worker.offer([make_frame(4)]) == 1


def test_full_stream_is_asked_before_a_frame_is_sent_again(redis_url: str, line: str) -> None:
    """A waiting producer tries many times a second; a frame of megabytes must not travel each time."""
    server, limits = redis.Redis.from_url(redis_url), Limits(max_bytes=5_000_000)
    producer, worker = open_stream(redis_url, line, limits=limits), open_stream(redis_url, line, "w")
    producer.offer([make_frame(0, size=2000)])
    assert producer.offer([make_frame(1, size=2000)]) == 0
    before = int(server.info("stats")["total_net_input_bytes"])
    for _ in range(20):
        assert producer.offer([make_frame(1, size=2000)]) == 0
    assert int(server.info("stats")["total_net_input_bytes"]) - before < 100_000
    worker.settle([verdict_for(*worker.take(1))])
    assert producer.offer([make_frame(1, size=2000)]) == 1


def test_lost_answers_put_no_two_last_chances_in_one_hand(redis_url: str, line: str) -> None:
    """A reclaimed frame whose answer got lost is found again; no second one on its last delivery beside it."""
    limits = Limits(max_deliveries=2)
    first, heir = open_stream(redis_url, line, "w1", limits), open_stream(redis_url, line, "w2", limits)
    first.offer([make_frame(i) for i in range(3)])
    assert len(first.take(3)) == 3
    first.close()
    lost = open_stream(redis_url, line, "w2", limits)
    assert len(lost.reclaim(9)) == 1, "its answer never arrived: the heir knows nothing of it"
    heir._reply_lost = True  # type: ignore[attr-defined]
    assert [d.deliveries for d in heir.reclaim(9)] == [2]
