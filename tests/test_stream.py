"""One contract over every stream: the memory twin and a real Redis keep the same promise."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from conftest import Opener, make_frame
from line_clients import assert_holds, verdict_for

from pipeline.errors import StreamError
from pipeline.messages import Frame
from pipeline.stream import Delivery, Entry, Limits, open_stream


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


def test_watching_takes_nothing(opened: Opener) -> None:
    """Who looks on sees frames until they are judged, and verdicts with the same header; workers miss nothing."""
    stream, onlooker = opened("w"), opened("")
    assert onlooker.watch("frames", "0", 10) == []
    stream.offer([make_frame(i) for i in range(3)])
    first, *_ = stream.take(2)
    seen = onlooker.watch("frames", "0", 10)
    assert [Frame.from_wire(entry.header).sequence for entry in seen] == [0, 1, 2]
    assert seen[0].body == bytes(make_frame(0).payload())
    assert [entry.place for entry in onlooker.watch("frames", "0", 2)] == [entry.place for entry in seen[:2]]
    assert onlooker.newest("frames") == seen[-1].place
    stream.settle([verdict_for(first)])
    assert onlooker.watch("frames", "0", 10) == seen[1:]
    assert onlooker.watch("frames", seen[-1].place, 10) == []
    (verdict,) = onlooker.watch("verdicts", "0", 10)
    assert verdict.header == seen[0].header
    assert len(stream.take(9)) == 1
    assert_holds(stream)


def test_watching_waits_for_a_frame(opened: Opener) -> None:
    """It is woken by one that comes."""
    onlooker, giver = opened(""), opened("")
    got: list[Entry] = []
    thread = threading.Thread(target=lambda: got.extend(onlooker.watch("frames", "0", 1, 20)), daemon=True)
    thread.start()
    giver.offer([make_frame(0)])
    thread.join(10)
    assert len(got) == 1


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
