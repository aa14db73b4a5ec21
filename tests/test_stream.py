"""One contract over every stream: the memory twin and a real Redis keep the same promise."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from conftest import make_frame, wait_until

from pipeline.deadlines import fail_safe
from pipeline.errors import StreamDown, StreamError
from pipeline.messages import Frame, Verdict
from pipeline.redis_binary import find_server
from pipeline.stream import POLICIES, Delivery, Limits, Settlement, Stream, open_stream

Opener = Callable[..., Stream]


@pytest.fixture(params=["memory", "redis"])
def opened(request: pytest.FixtureRequest, line: str) -> Opener:
    """Opens clients of one line on the stream under test."""
    url = "memory://contract" if request.param == "memory" else request.getfixturevalue("redis_url")
    return lambda worker="w1", limits=None: open_stream(url, line, worker, limits)


def verdict_for(delivery: Delivery, judgement: str = "OK", reason: str = "") -> tuple[Delivery, Verdict]:
    frame = delivery.frame.without_pixels()
    return delivery, Verdict(frame=frame, judgement=judgement, reason=reason)  # type: ignore[arg-type]


def assert_holds(stream: Stream) -> None:
    audit = stream.audit()
    assert audit.holds, audit


def test_frame_goes_through_and_is_settled_once(opened: Opener) -> None:
    """Offer, take, settle: one verdict, nothing outstanding, and a second settlement changes nothing."""
    stream = opened()
    frame = make_frame(0, bright=True)
    assert stream.offer([frame]) == 1
    assert stream.audit().outstanding == 1
    (delivery,) = stream.take(5)
    assert (delivery.frame.image() == frame.image()).all()
    assert delivery.frame.frame_id == frame.frame_id
    assert stream.settle([verdict_for(delivery, "NG", "scratch")]) == [True]
    assert stream.settle([verdict_for(delivery, "OK")]) == [False]
    audit = stream.audit()
    assert (audit.offered, audit.judged["NG"], audit.judged["OK"], audit.outstanding) == (1, 1, 0, 0)
    assert audit.outstanding_bytes == 0
    assert audit.reasons == {"NG scratch": 1}
    ((_, verdict),) = stream.read("0", 10)
    assert (verdict.judgement, verdict.frame.frame_id) == ("NG", frame.frame_id)


def test_order_and_bound_of_take(opened: Opener) -> None:
    """Frames come in the order of their offering, at most as many as asked for, each to one worker only."""
    one, two = opened("w1"), opened("w2")
    one.offer([make_frame(i) for i in range(5)])
    first, second, rest = one.take(2), two.take(2), one.take(9)
    assert [d.frame.sequence for d in first + second + rest] == [0, 1, 2, 3, 4]
    assert one.take(3) == []


def test_offering_again_counts_once(opened: Opener) -> None:
    """A producer whose answer got lost offers again; the ledger counts each sequence once."""
    stream = opened()
    frames = [make_frame(i) for i in range(3)]
    assert stream.offer(frames[:2]) == 2
    assert stream.offer(frames) == 3
    assert stream.audit().offered == 3
    assert len(stream.take(9)) == 3


def test_gap_in_sequence_is_listed(opened: Opener) -> None:
    """Frames that never reached the stream are visible as a gap of their source's session."""
    stream = opened()
    stream.offer([make_frame(0), make_frame(3), make_frame(4)])
    assert list(stream.audit().gaps) == [("cam-s", 1, 2)]
    assert_holds(stream)


def test_full_by_bytes_makes_the_producer_wait(opened: Opener) -> None:
    """With policy `wait` a full stream takes a prefix; room comes back by settling, to the byte."""
    stream = opened(limits=Limits(max_bytes=10_000))
    frames = [make_frame(i) for i in range(4)]  # 4096 px and a header each
    assert stream.offer(frames) == 2
    assert stream.audit().outstanding_bytes <= 10_000
    assert stream.offer(frames[2:]) == 0
    (delivery, *_) = stream.take(1)
    stream.settle([verdict_for(delivery)])
    assert stream.offer(frames[2:]) == 1
    assert_holds(stream)


def test_full_by_count(opened: Opener) -> None:
    """The number of outstanding frames is bounded too."""
    stream = opened(limits=Limits(max_frames=3))
    assert stream.offer([make_frame(i) for i in range(5)]) == 3


def test_shed_newest_gives_the_new_frame_its_verdict(opened: Opener) -> None:
    """What a camera cannot wait with is UNINSPECTED: shed, and counted as offered."""
    stream = opened(limits=Limits(max_frames=2))
    assert stream.offer([make_frame(i) for i in range(3)], "shed-newest") == 3
    ((_, verdict),) = stream.read("0", 10)
    assert (verdict.judgement, verdict.reason, verdict.frame.sequence) == ("UNINSPECTED", "shed", 2)
    assert [d.frame.sequence for d in stream.take(9)] == [0, 1]
    assert_holds(stream)


def test_shed_oldest_spares_what_a_worker_holds(opened: Opener) -> None:
    """The oldest frame nobody has taken is shed; when all are taken, the new one is."""
    stream = opened(limits=Limits(max_frames=2))
    stream.offer([make_frame(0), make_frame(1)])
    (held,) = stream.take(1)
    assert stream.offer([make_frame(2)], "shed-oldest") == 1
    assert [v.frame.sequence for _, v in stream.read("0", 10)] == [1]
    (also_held,) = stream.take(1)
    assert also_held.frame.sequence == 2
    assert stream.offer([make_frame(3)], "shed-oldest") == 1
    assert [v.frame.sequence for _, v in stream.read("0", 10)] == [1, 3]
    assert stream.settle([verdict_for(held), verdict_for(also_held)]) == [True, True]
    assert_holds(stream)
    assert stream.audit().outstanding == 0


@pytest.mark.parametrize("policy", ["wait", "shed-newest", "shed-oldest"])
def test_frame_larger_than_the_budget(opened: Opener, policy: str) -> None:
    """A frame that can never fit gets its verdict at once instead of blocking the line for ever."""
    stream = opened(limits=Limits(max_bytes=5_000))
    stream.offer([make_frame(0)])
    assert stream.offer([make_frame(1, size=100)], policy) == 1  # type: ignore[arg-type]
    ((_, verdict),) = stream.read("0", 10)
    assert (verdict.reason, verdict.frame.sequence) == ("too_large", 1)
    assert stream.audit().outstanding == 1
    assert_holds(stream)


def test_dead_worker_is_reclaimed_and_its_late_verdict_dropped(opened: Opener) -> None:
    """Frames of a worker that is gone go to another; if it comes back, its verdict changes nothing."""
    gone, heir = opened("gone"), opened("heir")
    gone.offer([make_frame(0)])
    (lost,) = gone.take(1)
    assert heir.reclaim(9) == [], "a living worker keeps its frames"
    gone.close()
    (found,) = heir.reclaim(9)
    assert found.frame.frame_id == lost.frame.frame_id
    assert found.deliveries == 2
    returned = opened("gone")
    assert returned.settle([verdict_for(lost, "NG")]) == [False]
    assert heir.settle([verdict_for(found, "OK")]) == [True]
    assert heir.audit().judged["OK"] == 1
    assert len(heir.read("0", 10)) == 1


def test_poison_is_put_aside_with_its_verdict(opened: Opener) -> None:
    """A frame that took as many workers with it as allowed goes to the dead, judged UNINSPECTED: poison."""
    limits = Limits(max_deliveries=2)
    for name in ("w1", "w2"):
        worker = opened(name, limits)
        worker.offer([make_frame(0)])
        assert len(worker.take(1) + worker.reclaim(1)) == 1
        worker.close()
    heir = opened("w3", limits)
    assert heir.reclaim(9) == []
    ((_, verdict),) = heir.read("0", 10)
    assert (verdict.judgement, verdict.reason, verdict.frame.sequence) == ("UNINSPECTED", "poison", 0)
    audit = heir.audit()
    assert (audit.dead, audit.outstanding, audit.outstanding_bytes, audit.holds) == (1, 0, 0, True)


def test_poison_kept_aside_is_bounded(opened: Opener) -> None:
    """The oldest poison goes when there is more than an eighth of the budget; its verdict stays."""
    limits = Limits(max_bytes=8 * 10_000, max_deliveries=1)
    for sequence in range(5):
        worker = opened(f"w{sequence}", limits)
        worker.offer([make_frame(sequence)])  # 4096 px and a header: two of them fit into 10,000
        assert len(worker.take(1)) == 1
        worker.close()
        opened("heir", limits).reclaim(9)
    audit = opened().audit()
    assert (audit.dead, audit.reasons) == (2, {"UNINSPECTED poison": 5})
    assert_holds(opened())


def test_large_poison_is_kept_without_its_pixels(opened: Opener) -> None:
    """It must not take the room of many others."""
    limits = Limits(max_bytes=80_000, max_deliveries=1)
    worker = opened("w", limits)
    worker.offer([make_frame(0, size=200)])
    assert len(worker.take(1)) == 1
    worker.close()
    heir = opened("heir", limits)
    heir.reclaim(9)
    audit = heir.audit()
    assert (audit.dead, audit.outstanding_bytes, audit.holds) == (1, 0, True)


def test_frame_on_its_last_delivery_comes_alone_of_its_kind(opened: Opener) -> None:
    """One that kills its workers must not take its neighbours with it: they are handed out one after the other."""
    limits = Limits(max_deliveries=2)
    dies, heir = opened("dies", limits), opened("heir", limits)
    dies.offer([make_frame(i) for i in range(3)])
    assert len(dies.take(3)) == 3
    dies.close()
    for sequence in range(3):
        (only,) = heir.reclaim(9)
        assert (only.frame.sequence, only.deliveries) == (sequence, 2)
        assert heir.reclaim(9) == [], "another one while the first is in hand"
        heir.settle([verdict_for(only)])
    assert heir.audit().judged["OK"] == 3


def test_reclaiming_is_a_sign_of_life(opened: Opener) -> None:
    """Workers that start together and reclaim first do not take each other's frames."""
    dead, one, two = opened("dead"), opened("one"), opened("two")
    dead.offer([make_frame(0)])
    dead.take(1)
    dead.close()
    assert len(one.reclaim(9)) == 1
    assert two.reclaim(9) == []


def test_take_waits_for_a_frame(opened: Opener) -> None:
    """A waiting take returns when a frame is offered, not only when its time is over."""
    taker, giver = opened("w1"), opened("w2")
    got: list[Delivery] = []

    def take() -> None:
        while not got:
            got.extend(taker.take(1, 0.5))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    giver.offer([make_frame(0)])
    thread.join(10)
    assert [d.frame.sequence for d in got] == [0]


def test_following_verdicts(opened: Opener) -> None:
    """A reader goes on where it stopped; after the newest there is only what comes from now on."""
    stream = opened()
    assert stream.newest() == "0"
    stream.offer([make_frame(i) for i in range(3)])
    one, two, three = stream.take(3)
    stream.settle([verdict_for(one)])
    ((place, _),) = stream.read("0", 10)
    stream.settle([verdict_for(two), verdict_for(three)])
    assert [v.frame.sequence for _, v in stream.read(place, 10)] == [1, 2]
    place = stream.newest()
    assert stream.read(place, 10) == []
    stream.offer([make_frame(3)])
    stream.settle([verdict_for(delivery) for delivery in stream.take(1)])
    assert [v.frame.sequence for _, v in stream.read(place, 10)] == [3]


def test_old_verdicts_leave_but_stay_counted(opened: Opener) -> None:
    """Only settled verdicts are ever trimmed, and the ledger keeps counting them."""
    stream = opened(limits=Limits(keep_verdicts=10))
    for i in range(400):
        stream.offer([make_frame(i, size=1)])
    while deliveries := stream.take(100):
        stream.settle([verdict_for(delivery) for delivery in deliveries])
    assert stream.audit().settled == 400
    assert 10 <= len(stream.read("0", 1000)) < 400


def test_unreadable_header_still_gets_a_verdict(opened: Opener) -> None:
    """A frame whose header says impossible things is delivered with a fault, not thrown away."""
    stream = opened()
    stream.offer([replace(make_frame(0), pixel_format="mono7")])  # type: ignore[arg-type]
    (delivery,) = stream.take(1)
    assert "mono7" in delivery.frame.fault
    assert stream.settle([verdict_for(delivery, "UNINSPECTED", "undecodable")]) == [True]
    assert_holds(stream)
    assert stream.audit().outstanding == 0


def test_identity_holds_under_concurrent_use(opened: Opener) -> None:
    """Producers and workers at once: at every look offered = settled + outstanding, at the end none twice."""
    limits = Limits(max_frames=20)
    total = 300

    def offer(source: str) -> None:
        client = opened("", limits)
        for i in range(total):
            while not client.offer([make_frame(i, source, size=4)]):
                pass

    def work(name: str) -> None:
        client = opened(name, limits)
        while client.audit().settled < 2 * total:
            client.settle([verdict_for(delivery) for delivery in client.take(7, 0.01)])

    threads = [threading.Thread(target=offer, args=(s,), daemon=True) for s in ("a", "b")]
    threads += [threading.Thread(target=work, args=(w,), daemon=True) for w in ("w1", "w2", "w3")]
    for thread in threads:
        thread.start()
    watcher = opened("watch", limits)
    while any(thread.is_alive() for thread in threads):
        assert_holds(watcher)
    ids = [v.frame.frame_id for _, v in watcher.read("0", 10_000)]
    assert len(ids) == len(set(ids)) == 2 * total


def test_unknown_url_and_line_are_refused() -> None:
    """A wrong URL or line name is one line that says what to use."""
    with pytest.raises(StreamError, match="redis://"):
        open_stream("http://x", "l")
    with pytest.raises(StreamError, match="line name"):
        open_stream("memory://x", "a{b}")


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


def due_in(sequence: int, seconds: float, **facts: object) -> Frame:
    """A frame whose deadline comes so soon."""
    frame = make_frame(sequence, **facts)  # type: ignore[arg-type]
    return replace(frame, deadline_ns=time.time_ns() + int(1e9 * seconds))


def reasons(stream: Stream) -> list[tuple[int, str, str]]:
    return [(v.frame.sequence, v.judgement, v.reason) for _, v in stream.read("0", 100)]


def test_frame_nobody_took_gets_its_fail_safe_verdict(opened: Opener) -> None:
    """Only the frame whose deadline is near; the rest wait on, and the time to the next deadline is told."""
    stream = opened()
    stream.offer([due_in(0, 60.0), due_in(1, 0.001), make_frame(2)])
    left = stream.expire(fail_safe("NG", "part@1"))
    assert left is not None
    assert 30 < left < 60
    assert reasons(stream) == [(1, "NG", "deadline")]
    ((_, verdict),) = stream.read("0", 9)
    assert verdict.recipe == "part@1"
    audit = stream.audit()
    assert (audit.outstanding, audit.judged["NG"], audit.reasons) == (2, 1, {"NG deadline": 1})
    assert [d.frame.sequence for d in stream.take(9)] == [0, 2]
    assert_holds(stream)


def test_frame_is_given_up_as_early_as_it_would_need(opened: Opener) -> None:
    """Whoever asks says how long a frame takes; one with less left is not worth taking."""
    stream = opened()
    stream.offer([due_in(0, 20.0), due_in(1, 60.0), due_in(2, 20.0)])
    stream.take(1)
    stream.expire(fail_safe("REVIEW"), 40.0)
    assert [sequence for sequence, _, _ in reasons(stream)] == [2], "neither what is held nor what has the time"


def test_when_to_look_again(opened: Opener) -> None:
    """When the next frame is due: earlier for one nobody has taken, and a held one near its end is not asked for."""
    stream = opened()
    stream.offer([due_in(0, 30.0)])
    assert 9 < (stream.expire(fail_safe("REVIEW"), 20.0) or 0) < 10
    stream.take(1)
    assert 29 < (stream.expire(fail_safe("REVIEW"), 40.0) or 0) < 30
    assert_holds(stream)


def test_no_frame_has_a_deadline(opened: Opener) -> None:
    """Nothing expires, before the first frame too."""
    stream = opened()
    assert stream.expire(fail_safe("REVIEW")) is None
    stream.offer([make_frame(0)])
    assert stream.expire(fail_safe("REVIEW")) is None
    assert stream.audit().outstanding == 1


def test_frame_a_worker_holds_has_until_the_last_moment(opened: Opener) -> None:
    """A frame nobody has taken expires a little earlier than one whose worker may still make it."""
    stream = opened()
    stream.offer([due_in(0, 0.008), due_in(1, 0.008)])
    stream.take(1)
    stream.expire(fail_safe("REVIEW"))
    first = [sequence for sequence, _, _ in reasons(stream)]
    assert 1 in first
    wait_until(lambda: stream.expire(fail_safe("REVIEW")) is None)
    assert sorted(sequence for sequence, _, _ in reasons(stream)) == [0, 1]


def test_real_answer_after_the_fail_safe_verdict_is_an_amendment(opened: Opener) -> None:
    """One verdict stays one verdict: the counters stay, the answer stands beside it, once."""
    stream = opened()
    stream.offer([due_in(0, 0.001)])
    (held,) = stream.take(1)
    assert stream.expire(fail_safe("REVIEW")) is None
    answer = verdict_for(held, "NG", "scratch")
    assert stream.settle([answer, answer]) == [Settlement.AMENDED, Settlement.TWIN]
    assert stream.settle([answer]) == [Settlement.TWIN]
    assert reasons(stream) == [(0, "REVIEW", "deadline")]
    ((_, amendment),) = stream.read("0", 9, 0.0, "amendments")
    assert (amendment.judgement, amendment.frame.frame_id) == ("NG", held.frame.frame_id)
    audit = stream.audit()
    assert (audit.judged["REVIEW"], audit.judged["NG"], dict(audit.amended)) == (1, 0, {"NG": 1})
    ((place, _),) = stream.read("0", 9, 0.0, "amendments")
    assert stream.newest("amendments") == place
    assert_holds(stream)


def test_fail_safe_verdict_of_the_worker_itself(opened: Opener) -> None:
    """Settled like any other; settled again it changes nothing; the real answer amends it."""
    stream = opened()
    stream.offer([due_in(0, 60.0)])
    (held,) = stream.take(1)
    late = verdict_for(held, "REVIEW", "segmenter_busy")
    assert stream.settle([late]) == [Settlement.PUBLISHED]
    assert stream.settle([late]) == [Settlement.TWIN], "an answer got lost, and it was settled again"
    assert stream.expire(fail_safe("REVIEW")) is None, "it has its verdict"
    assert stream.settle([verdict_for(held, "OK")]) == [Settlement.AMENDED]
    assert reasons(stream) == [(0, "REVIEW", "segmenter_busy")]


def test_frame_nobody_took_is_not_waited_for(opened: Opener) -> None:
    """Where no worker has a frame no answer can come; what looks like one changes nothing."""
    stream = opened()
    stream.offer([due_in(0, 0.001)])
    stream.expire(fail_safe("REVIEW"))
    stranger = Delivery(make_frame(0), "1-1", b"", 0, 0)
    assert stream.settle([verdict_for(stranger, "OK")]) == [Settlement.TWIN]
    assert stream.audit().amended == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_frame_off_the_stream_has_no_deadline_left(opened: Opener, policy: str) -> None:
    """Settled, shed or poisoned: it does not expire once more."""
    stream, heir = opened("w1", Limits(max_frames=2, max_deliveries=1)), opened("w2", Limits(max_deliveries=1))
    stream.offer([due_in(0, 60), due_in(1, 60)])
    stream.settle([verdict_for(stream.take(1)[0])])
    stream.take(1)
    stream.offer([due_in(2, 60), due_in(3, 60)], policy)  # type: ignore[arg-type]
    stream.close()
    assert heir.reclaim(9) == []
    for delivery in heir.take(9):
        heir.settle([verdict_for(delivery)])
    assert heir.expire(fail_safe("REVIEW")) is None
    assert heir.audit().outstanding == 0
    assert_holds(heir)


def test_verdicts_kept_are_bounded_by_bytes_too(opened: Opener) -> None:
    """Verdicts with large masks: about as many bytes of them as allowed, the newest; the ledger counts all."""
    stream = opened(limits=Limits(keep_verdict_bytes=2_000_000))
    for sequence in range(400):
        stream.offer([make_frame(sequence, size=2)])
        (delivery,) = stream.take(1)
        _, verdict = verdict_for(delivery, "NG", "scratch")
        stream.settle([(delivery, replace(verdict, detail="m" * 40_000))])
    rows = [row for place in [stream.read("0", 1000)] for row in place]
    assert 20 <= len(rows) <= 200
    assert rows[-1][1].frame.sequence == 399
    assert stream.audit().judged["NG"] == 400


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


def test_verdict_after_the_deadline_is_counted(opened: Opener) -> None:
    """Whoever gave it: the worker, or whoever looked after deadlines too late."""
    stream = opened()
    stream.offer([due_in(0, -1.0), due_in(1, -1.0), due_in(2, 60.0), make_frame(3)])
    first, *_ = stream.take(1)
    stream.settle([verdict_for(first)])
    assert stream.audit().missed == 1
    stream.expire(fail_safe("REVIEW"))
    for delivery in stream.take(9):
        stream.settle([verdict_for(delivery)])
    assert (stream.audit().missed, stream.audit().settled) == (2, 4)


def test_great_backlog_of_overdue_frames_is_worked_off_in_turns(redis_url: str, line: str) -> None:
    """One call ends a bounded number, says that more are due at once, and lets others have the server between."""
    stream = open_stream(redis_url, line)
    stream.offer([due_in(sequence, -1.0, size=2) for sequence in range(600)])
    settled = []
    while stream.expire(fail_safe("REVIEW")) == 0:
        settled.append(stream.audit().settled)
    assert settled == [256, 512]
    assert stream.audit().settled == 600


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
