"""The loop from a source to a stream, and what to do when the stream is full or away; reads no pixels.

While the stream is away the frames in hand are kept and offered again: offering twice counts once. A source
that cannot wait is given a shedding policy, and what is shed has its verdict.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from pipeline.errors import AoiError, StreamDown
from pipeline.messages import Frame
from pipeline.patience import Patience
from pipeline.shown import counted
from pipeline.stream import Policy, Stream

log = logging.getLogger("aoi.producer")

GATHER_BYTES = 1024 * 1024
FULL_PAUSE_S = (0.002, 0.02)
FULL_WORD_S = (3.0, 30.0)  # a stream that stays full is told after, and then every


@dataclass
class Offered:
    """What a producer has done, and what it waits for; written by `produce`, read by anybody."""

    frames: int = 0
    bytes: int = 0
    faulty: int = 0  # could not be read at the source; they have their verdict
    full_waits: int = 0  # times the stream was full
    outages: int = 0  # times the stream went away
    away_since: float = field(default=0.0, compare=False)  # monotonic, s; 0 while the stream answers
    away_before_s: float = field(default=0.0, compare=False)  # in the outages that are over
    in_hand_ns: int = field(default=0, compare=False)  # when the oldest frame in hand was due; 0: none is
    last_lag_s: float = field(default=0.0, compare=False)  # how old the last batch was when it had been offered

    def away_s(self, now: float) -> float:
        """How long the stream has been away in all. `now`: monotonic, in seconds."""
        since = self.away_since
        return self.away_before_s + (now - since if since else 0.0)

    def lag_s(self, now: int) -> float:
        """How old the frame in hand is, or the last one was when it was offered. `now`: ns since 1970."""
        in_hand = self.in_hand_ns
        return max(0, now - in_hand) / 1e9 if in_hand else self.last_lag_s

    def went(self) -> None:
        self.outages += not self.away_since
        self.away_since = self.away_since or time.monotonic()

    def came_back(self) -> None:
        self.away_before_s, self.away_since = self.away_s(time.monotonic()), 0.0

    def took_in_hand(self, batch: list[Frame]) -> None:
        self.in_hand_ns = batch[0].triggered_ns

    def dealt_with(self, batch: list[Frame]) -> None:
        self.last_lag_s, self.in_hand_ns = self.lag_s(time.time_ns()) if self.in_hand_ns else 0.0, 0
        self.frames += len(batch)
        self.bytes += sum(frame.payload_bytes for frame in batch)
        self.faulty += sum(bool(frame.fault) for frame in batch)


@runtime_checkable
class Timed(Protocol):
    """Frames that have a time of their own."""

    def is_due(self) -> bool:
        """Would the next frame come without waiting?"""
        ...


def produce(
    frames: Iterable[Frame],
    stream: Stream,
    policy: Policy = "wait",
    gather: int = 1,
    stop: threading.Event | None = None,
    seen: Callable[[Offered], None] = lambda offered: None,
    offered: Offered | None = None,
) -> Offered:
    """Offer every frame of the source; returns when it ends or `stop` is set (all taken from it is offered).

    `gather` frames, or GATHER_BYTES, are offered in one round trip: 1 for a source that comes in its own time;
    of a Timed one, only those that are due already: no frame waits for company.
    `offered` is what it counts in, for who wants to look on.
    """
    stop, offered = stop or threading.Event(), offered or Offered()
    for batch in _gathered(frames, gather, stop):
        offered.took_in_hand(batch)
        if not _offer(batch, stream, policy, stop, offered):
            break
        offered.dealt_with(batch)
        seen(offered)
    return offered


def _gathered(frames: Iterable[Frame], gather: int, stop: threading.Event) -> Iterator[list[Frame]]:
    """Lists of frames; what a source gave before it failed comes first, then its error."""
    batch: list[Frame] = []
    size = 0
    failure: AoiError | None = None
    source, company = iter(frames), frames.is_due if isinstance(frames, Timed) else lambda: True
    while not stop.is_set():
        try:
            frame = next(source)
        except StopIteration:
            break
        except AoiError as error:
            failure = error
            break
        batch.append(frame)
        size += frame.payload_bytes
        if len(batch) >= gather or size >= GATHER_BYTES or not company():
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
    if failure:
        raise failure


def _offer(batch: list[Frame], stream: Stream, policy: Policy, stop: threading.Event, offered: Offered) -> bool:
    """Until all are dealt with; False when stopped before that (the rest was never offered)."""
    pause, patience = FULL_PAUSE_S[0], Patience(log)
    left, full, tell_at = batch, False, time.monotonic() + FULL_WORD_S[0]
    while left:
        try:
            dealt = stream.offer(left[:1] if full else left, policy)  # while full one frame is asked with, not all
        except StreamDown as error:
            dealt = 0
            offered.went()
            patience.wait(error, f"{counted(len(left), 'frame')} kept meanwhile", stop)
        else:
            patience.back()
            offered.came_back()
            full = not dealt
            offered.full_waits += full
            pause = min(2 * pause, FULL_PAUSE_S[1]) if full else FULL_PAUSE_S[0]
            if full:
                tell_at = _tell_full(stream, tell_at)
                stop.wait(pause)
        left = left[dealt:]
        if left and stop.is_set():
            offered.frames += len(batch) - len(left)
            log.warning("stopped with %s in hand that the stream did not take", counted(len(left), "frame"))
            return False
    return True


def _tell_full(stream: Stream, tell_at: float) -> float:
    """A word now and then while the stream stays full; when the next is due."""
    if time.monotonic() < tell_at:
        return tell_at
    log.warning(
        "the stream of %s is full, frames wait for room: is a worker there? aoi work --line %s", *2 * [stream.line]
    )
    return time.monotonic() + FULL_WORD_S[1]


class Paced:
    """Frames at a fixed rate, timed by the schedule and not by when they were late: a stall is not hidden."""

    def __init__(
        self,
        frames: Iterable[Frame],
        per_second: float,
        stop: threading.Event | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._frames, self._rate, self._clock, self._wall = enumerate(frames), per_second, clock, wall
        self._stop = stop or threading.Event()
        self._start = self._next = self._to_wall = 0  # the first frame starts the schedule

    def is_due(self) -> bool:
        """Would the next frame come without waiting?"""
        return self._next <= self._clock()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        number, frame = next(self._frames)
        if not number:
            self._start = self._clock()
            self._to_wall = self._wall() - self._start
        due = self._start + int(number * 1e9 / self._rate)
        while (early := due - self._clock()) > 0 and not self._stop.wait(early / 1e9):
            pass
        if self._stop.is_set():
            raise StopIteration
        self._next = self._start + int((number + 1) * 1e9 / self._rate)
        budget = frame.deadline_ns - frame.triggered_ns if frame.deadline_ns else 0
        triggered = due + self._to_wall
        return replace(frame, triggered_ns=triggered, deadline_ns=triggered + budget if budget else 0)
