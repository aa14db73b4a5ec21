"""From a source to a stream: in order, complete, and patient with a stream that is full or away."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import make_frame, wait_until
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError, StreamDown
from pipeline.messages import Frame, Verdict
from pipeline.producer import GATHER_BYTES, Offered, Paced, produce
from pipeline.stream import Limits, Policy, Stream, open_stream


def opened(line: str, worker: str = "w", **limits: int) -> Stream:
    return open_stream("memory://producer", line, worker, Limits(**limits))


def settle_all(stream: Stream, n: int = 100) -> list[int]:
    """Take and settle what waits; the sequences in the order they came."""
    taken = stream.take(n)
    stream.settle([(d, Verdict(frame=d.frame.without_pixels(), judgement="OK")) for d in taken])
    return [d.frame.sequence for d in taken]


class Impatient(threading.Event):
    """A stop signal whose waiting takes no time: every pause is an act of the test instead."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.act, self.pauses = act, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses += 1
        self.act()
        return self.is_set()


class Wrapped:
    """A real stream behind a network that fails as the test says."""

    def __init__(self, stream: Stream, fails: Sequence[str]) -> None:
        self.stream, self.fails, self.calls = stream, list(fails), []  # type: ignore[var-annotated]

    def offer(self, frames: Sequence[Frame], policy: Policy = "wait") -> int:
        self.calls.append([f.sequence for f in frames])
        how = self.fails.pop(0) if self.fails else ""
        if how == "before":
            raise StreamDown("cannot be reached")
        dealt = self.stream.offer(frames, policy)
        if how == "after":
            raise StreamDown("the answer got lost")
        return dealt


@pytest.mark.parametrize("gather", [1, 3, 100])
def test_every_frame_is_offered_in_order(line: str, gather: int) -> None:
    """Whatever is gathered in one round trip; what was done is counted."""
    stream = opened(line)
    frames = [replace(make_frame(i), fault="broken" if i == 4 else "") for i in range(10)]
    told: list[int] = []
    offered = produce(frames, stream, gather=gather, seen=lambda so_far: told.append(so_far.frames))
    assert offered == Offered(frames=10, bytes=10 * 64 * 64, faulty=1, full_waits=0)
    assert settle_all(stream) == list(range(10))
    assert told == sorted({*range(gather, 10, gather), 10})


def test_large_frames_are_not_hoarded(line: str) -> None:
    """A round trip ends by bytes, so that gathering does not hold megabytes back."""
    stream = Wrapped(opened(line), [])
    size = int((GATHER_BYTES / 2) ** 0.5) + 1
    produce([make_frame(i, size=size) for i in range(5)], stream, gather=100)  # type: ignore[arg-type]
    assert stream.calls == [[0, 1], [2, 3], [4]]


def test_full_stream_is_waited_for(line: str) -> None:
    """Policy `wait`: nothing is shed, order is kept, and the producer says how often it waited."""
    stream = opened(line, max_frames=3)
    done: list[int] = []
    stop = Impatient(lambda: done.extend(settle_all(stream, 2)))
    offered = produce([make_frame(i) for i in range(20)], stream, "wait", 7, stop)
    done += settle_all(stream)
    assert done == list(range(20))
    assert (offered.frames, offered.full_waits) == (20, stop.pauses)
    assert stop.pauses > 0
    audit = stream.audit()
    assert (audit.judged["OK"], audit.judged["UNINSPECTED"], audit.holds) == (20, 0, True)


@pytest.mark.parametrize(("policy", "kept"), [("shed-newest", [0, 1, 2]), ("shed-oldest", [7, 8, 9])])
def test_source_that_cannot_wait_sheds(line: str, policy: Policy, kept: list[int]) -> None:
    """It never pauses; what is shed has its verdict, and the rest is the oldest or the newest."""
    stream, stop = opened(line, max_frames=3), Impatient()
    offered = produce([make_frame(i) for i in range(10)], stream, policy, 4, stop)
    assert (offered.frames, offered.full_waits, stop.pauses) == (10, 0, 0)
    assert settle_all(stream) == kept
    assert stream.audit().reasons == {"UNINSPECTED shed": 7}
    assert stream.audit().holds


def test_stream_that_is_away_gets_every_frame_once(line: str) -> None:
    """Not there, or its answer lost on the way: offered again, counted once, in order."""
    stream = opened(line)
    shaky = Wrapped(stream, ["before", "before", "after", "", "after", "before", ""])
    stop = Impatient()
    offered = produce([make_frame(i) for i in range(9)], shaky, "wait", 3, stop)  # type: ignore[arg-type]
    assert (offered.frames, offered.bytes, offered.full_waits, stop.pauses) == (9, 9 * 4096, 0, 5)
    assert settle_all(stream) == list(range(9))
    audit = stream.audit()
    assert (audit.offered, audit.settled, list(audit.gaps), audit.holds) == (9, 9, [], True)


def test_away_and_full_at_once(line: str) -> None:
    """A lost answer to a partly accepted offer loses and doubles nothing."""
    stream = opened(line, max_frames=4)
    shaky = Wrapped(stream, ["after", "before", "after", "", "after"])
    done: list[int] = []
    stop = Impatient(lambda: done.extend(settle_all(stream, 1)))
    produce([make_frame(i) for i in range(12)], shaky, "wait", 6, stop)  # type: ignore[arg-type]
    assert done + settle_all(stream) == list(range(12))
    assert stream.audit().holds


def test_stop_between_frames_offers_what_was_taken(line: str) -> None:
    """Nothing taken from the source is dropped, and nothing more is taken."""
    stream, stop = opened(line), threading.Event()
    source = iter([make_frame(i) for i in range(10)])

    def stop_at_four() -> Iterator[Frame]:
        for frame in source:
            if frame.sequence == 4:
                stop.set()
            yield frame

    offered = produce(stop_at_four(), stream, gather=3, stop=stop)
    assert offered.frames == 5
    assert settle_all(stream) == [0, 1, 2, 3, 4]
    assert next(source).sequence == 5


@pytest.mark.parametrize("trouble", ["full", "away"])
def test_stop_while_waiting_ends_it(line: str, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that stays full or away does not hold the producer for ever; what was not offered is told."""
    stream = opened(line, max_frames=2)
    wrapped = Wrapped(stream, ["", *["before"] * 99] if trouble == "away" else [])
    stop = Impatient(lambda: stop.set() if stop.pauses == 5 else None)
    offered = produce([make_frame(i) for i in range(9)], wrapped, "wait", 3, stop)  # type: ignore[arg-type]
    assert offered.frames == 2
    assert stream.audit().offered == 2
    assert "1 frame in hand" in caplog.text


def test_real_pauses_end_with_the_stop(line: str) -> None:
    """The pause itself is cut short: a producer on a full stream stops when told."""
    stream, stop = opened(line, max_frames=1), threading.Event()
    frames = [make_frame(i) for i in range(3)]
    thread = threading.Thread(target=produce, args=(frames, stream, "wait", 1, stop), name="aoi-producer")
    thread.start()
    wait_until(lambda: stream.audit().offered == 1)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_error_of_the_source_is_passed_on(line: str) -> None:
    """A camera that broke ends the producer with its error; what came before is on the stream."""
    stream = opened(line)

    def broken() -> Iterator[Frame]:
        yield make_frame(0)
        raise SourceError("camera gives no more images")

    with pytest.raises(SourceError, match="no more images"):
        produce(broken(), stream)
    assert settle_all(stream) == [0]


def test_source_without_frames(line: str) -> None:
    """Nothing is offered, nothing is an error."""
    assert produce([], opened(line), gather=5) == Offered()


# ------------------------------------------------------------------------ pacing


class Clock(threading.Event):
    """A clock in ns that moves only by waiting on it; asleep a little too long each time, as a machine is."""

    def __init__(self, oversleep: int = 0) -> None:
        super().__init__()
        self.now, self.oversleep = 10**18, oversleep

    def __call__(self) -> int:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += int((timeout or 0) * 1e9) + self.oversleep
        return self.is_set()


def paced_by(clock: Clock, frames: Any, rate: float) -> Iterator[tuple[Frame, int]]:
    """Each frame with the time at which it came, since the start."""
    for frame in Paced(frames, rate, clock, clock, clock):
        yield frame, clock.now - 10**18


def test_pace_is_the_schedules() -> None:
    """Frame n is triggered n periods after the start and not handed out earlier; lateness does not add up."""
    clock = Clock(oversleep=3_000_000)
    seen = list(paced_by(clock, [make_frame(i) for i in range(50)], 100))
    assert [f.triggered_ns - 10**18 for f, _ in seen] == [n * 10_000_000 for n in range(50)]
    assert all(0 <= came - n * 10_000_000 <= 3_000_100 for n, (_, came) in enumerate(seen))


def test_stall_is_not_hidden() -> None:
    """After a stall the frames keep their scheduled trigger times, so that their latency shows it, and catch up."""
    clock = Clock()
    frames = paced_by(clock, [make_frame(i) for i in range(20)], 10)
    triggers = []
    for number, (frame, came) in enumerate(frames):
        triggers.append(frame.triggered_ns - 10**18)
        if number == 4:
            assert came == 400_000_000
            clock.now += 1_000_000_000  # the stream was full for a second
        if 5 <= number <= 13:
            assert came == 1_400_000_000, "what is late comes at once"
        if number >= 14:
            assert came == number * 100_000_000, "then the schedule holds again"
    assert triggers == [n * 100_000_000 for n in range(20)]


@given(st.integers(1, 10**9), st.floats(0.01, 10_000))
def test_deadline_moves_with_the_trigger(budget: int, rate: float) -> None:
    """The frame's own budget counts from its scheduled trigger; without one there is still none."""
    frames = [replace(make_frame(0), triggered_ns=5, deadline_ns=5 + budget), make_frame(1)]
    first, second = Paced(frames, rate, clock := Clock(), clock, clock)
    assert first.deadline_ns - first.triggered_ns == budget
    assert second.deadline_ns == 0
    assert abs(second.triggered_ns - first.triggered_ns - 1e9 / rate) <= 1


def test_what_is_overdue_is_offered_together_and_nothing_waits_for_company() -> None:
    """On time each frame goes alone; after a stall the overdue ones share round trips, so that it catches up."""
    clock, sizes = Clock(), []

    class Recording:
        def offer(self, frames: list[Frame], policy: str) -> int:
            sizes.append(len(frames))
            if sum(sizes) == 3:
                clock.now += 1_000_000_000
            return len(frames)

    frames = Paced([make_frame(i) for i in range(16)], 10, clock, clock, clock)
    produce(frames, Recording(), gather=8, stop=clock)  # type: ignore[arg-type]
    assert sizes == [1, 1, 1, 8, 2, 1, 1, 1]


def test_pacing_stops_when_told() -> None:
    """Also in the middle of a long pause, and an endless source is not read on."""
    clock = Clock()
    frames = Paced((make_frame(i) for i in itertools.count()), 0.001, clock, clock, clock)
    assert next(frames).sequence == 0
    clock.set()
    assert list(frames) == []


def test_frames_taken_before_the_source_failed_are_offered(line: str):
    """A camera dies with three frames gathered: they are offered first, then its error is told."""
    stream = open_stream(f"memory://{line}", line)

    def source() -> Iterator[Frame]:
        yield from (make_frame(i) for i in range(3))
        raise SourceError("the cable is out")

    with pytest.raises(SourceError, match="cable"):
        produce(source(), stream, gather=10)
    assert stream.audit().offered == 3
