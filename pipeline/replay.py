"""Offers a recorded shift to a line again, in its own order and rhythm, and brings new verdicts to the old ones.

Frames keep their ids, trigger times and all else that they came with. Deadlines do not travel: what a frame is judged
must not depend on how fast this machine is. Memory holds what is read ahead and what has no verdict yet.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from pipeline.errors import StreamDown, WireError
from pipeline.messages import Frame, Verdict
from pipeline.producer import Offered, produce
from pipeline.results import watched
from pipeline.shift_format import Recorded
from pipeline.spans import Spans
from pipeline.stream import Entry, Stream, read_verdict

Item = TypeVar("Item")
AHEAD = 64  # frames read ahead, at most; a chunk is about as many
AHEAD_BYTES = 64 * 1024 * 1024
GATHER = 16  # frames offered in one round trip, of those that are due


@dataclass
class ReplayCounts:
    """What a replay has done."""

    offered: int = 0
    judged: int = 0
    without_pixels: int = 0  # recorded without them: cannot be judged again
    unreadable: int = 0  # their header cannot be read
    not_taken: int = 0  # the line takes each number of a session once, in rising order
    late: Spans = field(default_factory=Spans)  # after their time on the schedule, when handed on


class ReadAhead(Generic[Item]):
    """The items of an iterable, read by a thread of its own ahead of their use: reading a chunk takes its time."""

    def __init__(self, items: Iterable[Item], size_of: Callable[[Item], int]) -> None:
        self._items, self._size_of = items, size_of
        self._ready: queue.SimpleQueue[Item | BaseException | None] = queue.SimpleQueue()
        self._room, self._held, self._count, self._stop = threading.Condition(), 0, 0, False
        self._thread = threading.Thread(target=self._read, name="aoi-read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with self._room:
                self._held, self._count = self._held - self._size_of(item), self._count - 1
                self._room.notify()
            yield item

    def close(self) -> None:
        """Read no further."""
        with self._room:
            self._stop = True
            self._room.notify()
        self._thread.join()

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._room:
                    self._room.wait_for(lambda: self._stop or (self._held < AHEAD_BYTES and self._count < AHEAD))
                    if self._stop:
                        break
                    self._held, self._count = self._held + self._size_of(item), self._count + 1
                self._ready.put(item)
        except BaseException as error:  # it is the reader's to deal with
            self._ready.put(error)
        self._ready.put(None)


class InRhythm:
    """Frames at the times they were offered when they were recorded, `speed` times as fast; 0: as they can be had.

    The schedule starts with the first frame and never moves: a line that could not follow for a while is given the
    frames that are overdue at once, as a camera would. `late` is told of each frame how late it was handed on, in ns;
    `at_hand` makes of it what is handed on, at that moment.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        speed: float,
        stop: threading.Event,
        late: Callable[[int], None] = lambda ns: None,
        clock: Callable[[], int] = time.monotonic_ns,
        at_hand: Callable[[Frame], Frame] = lambda frame: frame,
    ) -> None:
        self._frames, self._speed, self._stop, self._late, self._clock = iter(frames), speed, stop, late, clock
        self._at_hand = at_hand
        self._next: Frame | None = None
        self._first_ns = self._start = 0

    def is_due(self) -> bool:
        """Would the next frame come without waiting?"""
        if not self._speed:
            return True
        frame = self._peek()
        return frame is None or self._due(frame) <= self._clock()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = self._peek()
        if frame is None or self._stop.is_set():
            raise StopIteration
        if self._speed:
            self._wait(frame)
        self._next = None
        return self._at_hand(frame)

    def _wait(self, frame: Frame) -> None:
        if not self._start:
            self._first_ns, self._start = frame.offered_ns, self._clock()
        due = self._due(frame)
        while (early := due - self._clock()) > 0:
            if self._stop.wait(early / 1e9):
                raise StopIteration
        self._late(self._clock() - due)

    def _due(self, frame: Frame) -> int:
        return self._start + int((frame.offered_ns - self._first_ns) / self._speed)

    def _peek(self) -> Frame | None:
        if self._next is None:
            self._next = next(self._frames, None)
        return self._next


class Replay:
    """One shift onto one line. `keep_deadlines`: each frame has as long as it had, from now on."""

    def __init__(
        self,
        stream: Stream,
        recorded: Iterable[Recorded],
        speed: float = 0.0,
        keep_deadlines: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self._stream, self._recorded, self._speed, self._keep = stream, recorded, speed, keep_deadlines
        self._stop, self._ended = stop or threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[str, Recorded] = {}  # by frame id: offered, or about to be, and not judged
        self._failure: BaseException | None = None
        self._drained = False
        self.counts, self.offered = ReplayCounts(), Offered()

    def run(self, judged: Callable[[Recorded, Verdict], None], look: Callable[[], None] = lambda: None) -> ReplayCounts:
        """Offer everything, and give each new verdict with what was recorded of its frame (its pixels are gone).

        Returns when all frames have their verdict, or when stopped. `look` is called about ten times a second.
        Raises what reading the shift or the stream raises, and what `look` does.
        """
        after = self._stream.newest()
        thread = threading.Thread(target=self._offer, name="aoi-replay", daemon=True)
        thread.start()
        try:
            for entries in watched(self._stream, "verdicts", after, self._ended, 0.1):
                for entry in entries:
                    self._take(entry, judged)
                look()
                if self._failure:
                    raise self._failure
                if not thread.is_alive() and not entries and self._is_over():
                    self._ended.set()
        except BaseException:
            self._stop.set()
            raise
        finally:
            thread.join()
        return self.counts

    def _take(self, entry: Entry, judged: Callable[[Recorded, Verdict], None]) -> None:
        verdict = read_verdict(entry.header, entry.body)
        with self._lock:
            recorded = self._waiting.pop(verdict.frame.frame_id, None)
        if recorded is not None:
            self.counts.judged += 1
            judged(recorded, verdict)

    def _is_over(self) -> bool:
        """Nothing of ours is on the line any more; what then still waits was never taken by it."""
        if self._stop.is_set() or not self._waiting:
            return True
        try:
            if self._stream.audit().outstanding:
                return False
        except StreamDown:
            return False
        if not self._drained:  # the last verdicts may have come since we looked
            self._drained = True
            return False
        self.counts.not_taken = len(self._waiting)
        return True

    def _offer(self) -> None:
        ahead = ReadAhead(self._recorded, lambda each: each.size)
        try:
            frames = InRhythm(self._frames(ahead), self._speed, self._stop, self.counts.late.add, at_hand=self._for_now)
            produce(frames, self._stream, "wait", GATHER, self._stop, offered=self.offered)
        except BaseException as error:
            self._failure = error
        finally:
            ahead.close()

    def _frames(self, recorded: Iterable[Recorded]) -> Iterator[Frame]:
        for each in recorded:
            if each.pixels is None:
                self.counts.without_pixels += 1
                continue
            try:
                frame = each.frame()
            except WireError:
                self.counts.unreadable += 1
                continue
            with self._lock:
                self._waiting[frame.frame_id] = replace(each, pixels=None)
            self.counts.offered += 1
            yield frame

    def _for_now(self, frame: Frame) -> Frame:
        budget = frame.deadline_ns - frame.offered_ns if frame.deadline_ns else 0
        return replace(frame, deadline_ns=time.time_ns() + max(1, budget) if self._keep and budget else 0)
