"""A second recipe on live frames: copied onto a line of its own, judged there, and paired with the line's verdicts.

The line knows nothing of it: frames are looked at, not taken; the copies have a ledger, a budget and verdicts of
their own, and are shed where the shadow's workers cannot keep up. Nothing of it can reach the line's judgement.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.errors import AoiError, StreamDown, WireError
from pipeline.messages import Frame, Verdict
from pipeline.results import watched
from pipeline.stream import Entry, Stream, Watched, read_verdict

Paired = Callable[[Verdict, Verdict, Frame | None], None]  # of the line, of the shadow, the frame if it is still held
MAX_HELD_BYTES = 256 * 1024 * 1024
MAX_WAITING = 100_000  # verdicts of one side whose other has not come


@dataclass
class ShadowCounts:
    """What a shadow has done."""

    copied: int = 0
    shed: int = 0  # copies that its own workers were too slow for
    unreadable: int = 0
    paired: int = 0
    unpaired: int = 0  # verdicts that were given up waiting for their other side


@dataclass
class Pairing:
    """Verdicts of both sides in by `line` and `shadow`, in any order; a pair out as soon as it is one."""

    paired: Paired
    counts: ShadowCounts = field(default_factory=ShadowCounts)
    max_bytes: int = MAX_HELD_BYTES
    max_waiting: int = MAX_WAITING
    _frames: OrderedDict[str, Frame] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0
    _waiting: tuple[OrderedDict[str, Verdict], OrderedDict[str, Verdict]] = field(
        default_factory=lambda: (OrderedDict(), OrderedDict()), repr=False
    )

    def frame(self, frame: Frame) -> None:
        """Hold its pixels, as far as there is room, until both verdicts are there."""
        self._frames[frame.frame_id] = frame
        self._bytes += frame.payload_bytes
        while self._bytes > self.max_bytes:
            _, oldest = self._frames.popitem(last=False)
            self._bytes -= oldest.payload_bytes

    def verdict(self, verdict: Verdict, of_shadow: bool) -> None:
        """One side's; those of frames that were never copied wait in vain and are given up, the oldest first."""
        mine, others = self._waiting[of_shadow], self._waiting[not of_shadow]
        frame_id = verdict.frame.frame_id
        other = others.pop(frame_id, None)
        if other is None:
            mine[frame_id] = verdict
            while len(mine) > self.max_waiting:
                mine.popitem(last=False)
                self.counts.unpaired += 1
            return
        frame = self._frames.pop(frame_id, None)
        self._bytes -= frame.payload_bytes if frame else 0
        if verdict.reason == "shed" or other.reason == "shed":
            self.counts.shed += 1
            return
        self.counts.paired += 1
        self.paired(*((other, verdict) if of_shadow else (verdict, other)), frame)

    @property
    def waiting(self) -> int:
        """The line's verdicts whose shadow has not spoken."""
        return len(self._waiting[0])


class Shadow:
    """Copies a line's frames onto another until `stop`, and pairs the verdicts of both."""

    def __init__(self, line: Stream, onto: Stream, paired: Paired) -> None:
        self._line, self._onto = line, onto
        self.pairing, self._lock = Pairing(paired), threading.Lock()
        self._stop = threading.Event()
        self._failure: AoiError | None = None

    @property
    def counts(self) -> ShadowCounts:
        return self.pairing.counts

    def stop(self) -> None:
        """Copy no more, pair what is there, then let `run` return."""
        self._stop.set()

    def run(self, look: Callable[[], None] = lambda: None) -> ShadowCounts:
        """Raises StreamError when a stream refuses, and what `look` does; it is called about ten times a second."""
        copied, ended = self._line.newest("frames"), threading.Event()
        places: dict[bool, str] = {False: self._line.newest(), True: self._onto.newest()}
        threads = [
            self._thread(lambda: self._follow(self._line, "frames", copied, self._stop, self._copy)),
            self._thread(lambda: self._follow(self._line, "verdicts", places[False], ended, self._spoke(False))),
            self._thread(lambda: self._follow(self._onto, "verdicts", places[True], ended, self._spoke(True))),
        ]
        try:
            while not self._stop.wait(0.1) and not self._failure:
                look()
            self._stop.set()
            threads[0].join()
            self._wait_for_the_last(look)
        finally:
            self._stop.set()
            ended.set()
            for thread in threads:
                thread.join()
        if self._failure:
            raise self._failure
        return self.counts

    def _wait_for_the_last(self, look: Callable[[], None], rounds: int = 100) -> None:
        """Until nothing that was copied is left to judge; not for ever, as a worker may be gone."""
        pause = threading.Event()
        for _ in range(rounds):
            look()
            pause.wait(0.1)
            try:
                if not self._onto.audit().outstanding:
                    pause.wait(0.6)  # the last verdicts are on their way to us
                    return
            except StreamDown:
                return

    def _copy(self, entry: Entry) -> None:
        try:
            frame = Frame.from_wire(entry.header, entry.body)
        except WireError:
            self.counts.unreadable += 1
            return
        with self._lock:
            self.pairing.frame(frame)
        try:
            self._onto.offer([replace(frame, deadline_ns=0)], "shed-newest")
            self.counts.copied += 1
        except StreamDown:  # the line's frames are not ours to wait for
            self.counts.shed += 1

    def _spoke(self, of_shadow: bool) -> Callable[[Entry], None]:
        def spoke(entry: Entry) -> None:
            with self._lock:
                self.pairing.verdict(read_verdict(entry.header, entry.body), of_shadow)

        return spoke

    def _follow(
        self, stream: Stream, log: Watched, after: str, until: threading.Event, each: Callable[[Entry], None]
    ) -> None:
        for entries in watched(stream, log, after, until):
            for entry in entries:
                each(entry)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except AoiError as error:
                self._failure = self._failure or error
                self._stop.set()

        thread = threading.Thread(target=guarded, name="aoi-shadow", daemon=True)
        thread.start()
        return thread
