"""The loop from a source to a stream, and what to do when the stream is full or away; reads no pixels.

While the stream is away the frames in hand are kept and offered again: offering twice counts once. A source
that cannot wait is given a shedding policy, and what is shed has its verdict.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.errors import AoiError, StreamDown
from pipeline.messages import Frame
from pipeline.patience import Patience
from pipeline.stream import Policy, Stream

log = logging.getLogger("aoi.producer")

GATHER_BYTES = 1024 * 1024
FULL_PAUSE_S = (0.002, 0.02)


@dataclass
class Offered:
    """What a producer has done."""

    frames: int = 0
    bytes: int = 0
    faulty: int = 0  # could not be read at the source; they have their verdict
    full_waits: int = 0  # times the stream was full


def produce(
    frames: Iterable[Frame],
    stream: Stream,
    policy: Policy = "wait",
    gather: int = 1,
    stop: threading.Event | None = None,
    seen: Callable[[Offered], None] = lambda offered: None,
) -> Offered:
    """Offer every frame of the source; returns when it ends or `stop` is set (all taken from it is offered).

    `gather` frames, or GATHER_BYTES, are offered in one round trip: 1 for a source that comes in its own time.
    """
    stop, offered = stop or threading.Event(), Offered()
    for batch in _gathered(frames, gather, stop):
        if not _offer(batch, stream, policy, stop, offered):
            break
        offered.frames += len(batch)
        offered.bytes += sum(frame.payload_bytes for frame in batch)
        offered.faulty += sum(bool(frame.fault) for frame in batch)
        seen(offered)
    return offered


def _gathered(frames: Iterable[Frame], gather: int, stop: threading.Event) -> Iterator[list[Frame]]:
    """Lists of frames; what a source gave before it failed comes first, then its error."""
    batch: list[Frame] = []
    size = 0
    failure: AoiError | None = None
    source = iter(frames)
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
        if len(batch) >= gather or size >= GATHER_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
    if failure:
        raise failure


def _offer(batch: list[Frame], stream: Stream, policy: Policy, stop: threading.Event, offered: Offered) -> bool:
    """Until all are dealt with; False when stopped before that (the rest was never offered)."""
    pause, patience = FULL_PAUSE_S[0], Patience(log)
    left, full = batch, False
    while left:
        try:
            dealt = stream.offer(left[:1] if full else left, policy)  # while full one frame is asked with, not all
        except StreamDown as error:
            dealt = 0
            patience.wait(error, f"{len(left)} frames are kept", stop)
        else:
            patience.back()
            full = not dealt
            offered.full_waits += full
            pause = min(2 * pause, FULL_PAUSE_S[1]) if full else FULL_PAUSE_S[0]
            if full:
                stop.wait(pause)
        left = left[dealt:]
        if left and stop.is_set():
            offered.frames += len(batch) - len(left)
            log.warning("stopped with %d frames in hand that the stream did not take", len(left))
            return False
    return True


def paced(
    frames: Iterable[Frame],
    per_second: float,
    stop: threading.Event | None = None,
    clock: Callable[[], int] = time.time_ns,
) -> Iterator[Frame]:
    """Frames at a fixed rate, timed by the schedule and not by when they were late: a stall is not hidden."""
    stop = stop or threading.Event()
    start = clock()
    for number, frame in enumerate(frames):
        due = start + int(number * 1e9 / per_second)
        while (early := due - clock()) > 0 and not stop.wait(early / 1e9):
            pass
        if stop.is_set():
            return
        budget = frame.deadline_ns - frame.triggered_ns if frame.deadline_ns else 0
        yield replace(frame, triggered_ns=due, deadline_ns=due + budget if budget else 0)
