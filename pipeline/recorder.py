"""Follows a line and writes its shift: frames by one thread, verdicts by another; takes nothing from the workers.

It reads as anybody may and claims nothing, so the line neither waits for it nor knows of it. A frame leaves the
stream with its verdict: one that was judged before it could be looked at is in the shift without pixels, and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import AoiError, StreamDown
from pipeline.patience import Patience
from pipeline.results import order_of, watched
from pipeline.shift_files import RollBy, make_room, new_name
from pipeline.shift_joining import Joined, Joiner, Keep, RecordCounts
from pipeline.shift_writer import ShiftWriter
from pipeline.stream import Entry, Stream

Answer = TypeVar("Answer")
log = logging.getLogger("aoi.recorder")
FLUSH_S = 1.0  # what was recorded before is safe from a kill
MAX_WAITING_BYTES = 512 * 1024 * 1024


class FrameWatcher:
    """Looks on as frames come, in a thread of its own, and hands each to `saw`."""

    def __init__(self, stream: Stream, saw: Callable[[Entry], None]) -> None:
        self._stream, self._saw = stream, saw
        self._stop = threading.Event()
        self._looked = threading.Condition()
        self._looks = 0  # answers that were handed on
        self.failure: AoiError | None = None
        self._thread = threading.Thread(target=self._run, name="aoi-watch", daemon=True)

    def start(self, longest_s: float = 2.0) -> None:
        """Hand on what lies on the stream now, then what comes; returns when the first look is over."""
        self._thread.start()
        with self._looked:
            self._looked.wait_for(lambda: self._looks or not self._thread.is_alive(), longest_s)

    @property
    def looks(self) -> int:
        return self._looks

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for entries in watched(self._stream, "frames", "0", self._stop):
                for entry in entries:
                    self._saw(entry)
                with self._looked:
                    self._looks += 1
                    self._looked.notify_all()
        except AoiError as error:
            self.failure = error


class Recorder:
    """Writes the shift of a line into files of a folder until `stop`. `quota`: bytes of all shifts there; 0: any."""

    def __init__(
        self,
        stream: Stream,
        folder: Path,
        keep: Keep,
        roll: RollBy,
        quota: int = 0,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        grace_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._stream, self._folder, self._roll, self._quota = stream, folder, roll, quota
        self._joiner, self._lock = Joiner(keep, max_waiting_bytes), threading.Lock()
        self._grace_s, self._clock, self._wall = grace_s, clock, wall
        self._writer: ShiftWriter | None = None
        self._begun_at = self._flushed_at = 0.0
        self._unmatched: deque[tuple[int, Entry]] = deque()  # verdicts whose frame may still be on its way to us
        self._amended = "0"
        self._stop = threading.Event()

    @property
    def counts(self) -> RecordCounts:
        return self._joiner.counts

    @property
    def waiting(self) -> int:
        """Frames at hand whose verdict has not come."""
        return self._joiner.waiting

    def stop(self) -> None:
        """Look at no more frames, wait for the verdicts of those at hand, then let `run` return."""
        self._stop.set()

    def run(self, seen: Callable[[RecordCounts], None] = lambda counts: None) -> RecordCounts:
        """Raises DiskError where no more can be written, StreamError when the stream refuses; the file ends whole."""
        watcher = FrameWatcher(self._stream, self._saw)
        start, settled = self._asked(self._newest_verdict, ("0", 0))
        self._amended = self._asked(lambda: self._stream.newest("amendments"), "0")
        self._open()
        watcher.start()
        try:
            self._follow(watcher, start, settled, seen)
            for joined in self._joiner.rest():
                self._write(joined)
        finally:
            watcher.stop()
            self._close()
        return self.counts

    def _saw(self, entry: Entry) -> None:
        with self._lock:
            self._joiner.frame(entry.header, entry.body)

    def _follow(
        self, watcher: FrameWatcher, start: str, settled_before: int, seen: Callable[[RecordCounts], None]
    ) -> None:
        """Verdicts from `start` on, until stopped and all frames at hand have theirs, or their time is over."""
        began = self._asked(self._stream.newest, start)  # what was judged up to here may have been gone at first look
        after, last, read, settled, ends_at = start, "", 0, settled_before, 0.0
        ended = threading.Event()
        for entries in watched(self._stream, "verdicts", start, ended, 0.1):
            for entry in entries:
                after, known, in_time = entry.place, self._knows(entry), not last or not _after(entry.place, last)
                read += in_time
                if known or (in_time and _after(entry.place, began)):
                    self._unmatched.append((0 if known else watcher.looks + 1, entry))
            self._write_matched(watcher.looks)
            self._write_amendments()
            self._keep_house()
            seen(self.counts)
            if watcher.failure:
                raise watcher.failure
            if self._stop.is_set() and not last:
                watcher.stop()
                ends_at = self._clock() + self._grace_s
                try:
                    last, settled = self._newest_verdict()
                except StreamDown:
                    last, settled, ends_at = after, settled_before + read, 0.0
            elif last and not entries and (not self._joiner.waiting or self._clock() >= ends_at):
                ended.set()
        self._write_matched(watcher.looks + 1)
        self.counts.lost_verdicts = max(0, settled - settled_before - read)

    def _knows(self, entry: Entry) -> bool:
        with self._lock:
            return self._joiner.knows(entry.header)

    def _write_amendments(self) -> None:
        try:
            entries = self._stream.watch("amendments", self._amended, 256)
        except StreamDown:
            return
        for entry in entries:
            self._amended = entry.place
            self._write(self._joiner.amendment(entry.header, entry.body))

    def _write_matched(self, looks: int) -> None:
        """Verdicts in their order, as soon as their frame is here or can no more come."""
        while self._unmatched and (self._unmatched[0][0] <= looks or self._knows(self._unmatched[0][1])):
            _, entry = self._unmatched.popleft()
            with self._lock:
                joined = self._joiner.verdict(entry.header, entry.body)
            self._write(joined)

    def _newest_verdict(self) -> tuple[str, int]:
        """The place of the newest verdict, and how many there have been up to it."""
        for _ in range(100):
            place, settled = self._stream.newest(), self._stream.audit().settled
            if self._stream.newest() == place:
                break
        return place, settled

    def _asked(self, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
        """The stream's answer, as soon as it gives one; `otherwise` where we are stopped before."""
        patience = Patience(log)
        while not self._stop.is_set():
            try:
                return ask()
            except StreamDown as error:
                patience.wait(error, "nothing is recorded meanwhile", self._stop)
        return otherwise

    # -------------------------------------------------------------- files

    def _open(self) -> None:
        self._writer = ShiftWriter(new_name(self._folder, self._stream.line, self._wall()))
        self._begun_at = self._flushed_at = self._clock()
        self.counts.files += 1

    def _write(self, joined: Joined) -> None:
        if self._writer is None:
            self._open()
        assert self._writer
        self._writer.add(joined.recorded, joined.judgement, joined.settled_ns)

    def _keep_house(self) -> None:
        now, writer = self._clock(), self._writer
        if writer is None or now - self._flushed_at < FLUSH_S:
            return
        writer.flush()
        self._flushed_at = now
        if writer.rows and self._roll.due(writer.size, now - self._begun_at, len(writer.rows)):
            self._close()
        if self._quota:
            for path in make_room(self._folder, self._quota):
                log.info("quota: %s deleted, the oldest", path.name)

    def _close(self) -> None:
        """The next frame begins a new file."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.close()
        self.counts.bytes += writer.path.stat().st_size
        log.info("%s: %d frames, %.1f MB", writer.path.name, len(writer.rows), writer.path.stat().st_size / 1e6)


def _after(place: str, other: str) -> bool:
    return order_of(place) > order_of(other)
