"""Deadlines on every stream: fail-safe verdicts in time, amendments, and what is counted as missed."""

from __future__ import annotations

import pytest
from conftest import Opener, make_frame, wait_until
from line_clients import assert_holds, due_in, verdict_for

from pipeline.deadlines import fail_safe
from pipeline.stream import POLICIES, Delivery, Limits, Settlement, Stream, open_stream


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
