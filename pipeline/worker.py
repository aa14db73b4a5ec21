"""The sentence at work: take frames, let them be batched and inspected, settle their verdicts; all overlapping.

Threads that wait for different things: `receive` for the stream, `run` for the engines, `settle` for the stream
again; `sign` says that we live. The engine never waits for Redis: frames are taken ahead, and verdicts are kept
while it is away.
A stop finishes and settles what is held; a kill loses nothing, because what is not settled is still outstanding.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from engines.base import EngineError
from pipeline.errors import StreamDown
from pipeline.inspector import Done, Gray8, Inspector, Job, prepare
from pipeline.messages import Verdict
from pipeline.patience import Patience
from pipeline.stream import Delivery, Stream

log = logging.getLogger("aoi.worker")

SIGN_EVERY_S = 1.0
TAKE_WAIT_S = 0.5  # how long one `take` waits, and so how soon a stop is seen
RECLAIM_EVERY_S = 1.0
MAX_HELD_BYTES = 512 * 1024 * 1024
SETTLE_AT_ONCE = 256  # verdicts in one call: the server serves nobody else meanwhile


class Keeper(Protocol):
    """Someone who is shown judged frames (overlays); must neither block nor raise."""

    def show(self, delivery: Delivery, verdict: Verdict) -> None: ...


@dataclass
class Counts:
    """What this worker has done since it started."""

    taken: int = 0
    settled: int = 0
    late: int = 0  # verdicts that came after somebody else's


class Held:
    """What the worker has taken and not settled, in frames, bytes and tiles; and how much more it should take."""

    def __init__(self, max_batch: int, in_flight: int) -> None:
        self._most_tiles, self._refill = max_batch * (in_flight + 2), max_batch
        self._frames: dict[str, tuple[int, int]] = {}  # token → bytes, tiles
        self._bytes = self._tiles = 0
        self._tiles_a_frame = self._most_tiles  # not known: one frame first
        self._changed = threading.Condition()

    def add(self, delivery: Delivery, tiles: list[Gray8]) -> None:
        """A frame was taken; what it takes in memory is its pixels as decoded, if they are more."""
        size = max(delivery.size, sum(tile.nbytes for tile in tiles))
        with self._changed:
            self._tiles_a_frame = len(tiles) or self._tiles_a_frame
            self._frames[delivery.token] = (size, len(tiles))
            self._bytes, self._tiles = self._bytes + size, self._tiles + len(tiles)

    def release(self, deliveries: list[Delivery]) -> None:
        with self._changed:
            for delivery in deliveries:
                size, tiles = self._frames.pop(delivery.token, (0, 0))
                self._bytes, self._tiles = self._bytes - size, self._tiles - tiles
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> int:
        """How many frames to take now; 0 when after this time there is still no room for a batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._room() > 0, timeout_s)
            return self._room()

    def _room(self) -> int:
        if self._bytes >= MAX_HELD_BYTES:
            return 0
        if len(self._frames) < 2:  # frames of more tiles than we would hold: one in work, one ready
            return max(1, self._most_tiles // self._tiles_a_frame)
        free = self._most_tiles - self._tiles
        return max(0, free // self._tiles_a_frame) if free >= self._refill else 0


class Worker:
    """Runs until `stop`; then finishes what it holds. `grace_s` bounds how long it then waits for the stream.

    An engine that has not answered for `stall_s` is taken for broken, so that its frames can go to others.
    """

    def __init__(
        self,
        stream: Stream,
        inspector_for: Callable[[Callable[[], None]], Inspector],
        name: str = "",
        keeper: Keeper | None = None,
        grace_s: float = 30.0,
        stall_s: float = 60.0,
    ) -> None:
        self.stream, self.name, self.counts = stream, name, Counts()
        self._wake, self._stop, self._received_all = threading.Event(), threading.Event(), threading.Event()
        self.inspector = inspector_for(self._wake.set)
        batching = self.inspector.recipe.batching
        self._held = Held(batching.max_batch, batching.in_flight)
        self._keeper, self._grace_s, self._stall_s = keeper, grace_s, stall_s
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Done | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._never, self._left = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Take nothing more, finish and settle what is held, then let `run` return. Safe in a signal handler."""
        self._stop.set()
        self._wake.set()

    def run(self) -> Counts:
        """Work until `stop`. Raises EngineError when an engine is gone, StreamError when the stream refuses."""
        receiver, settler = self._thread(self._receive, "receive"), self._thread(self._settle, "settle")
        signer = self._thread(self._sign, "sign")
        try:
            while not self._finished():
                self._wait()
                self.step(time.monotonic_ns())
        finally:
            self.stop()
            receiver.join()
            self._outbox.put(None)
            settler.join()
            self._left.set()
            signer.join()
            self.stream.close()
        if self._failure:
            raise self._failure
        return self.counts

    def step(self, now: int) -> None:
        """New frames to the inspector, ready verdicts to the settler."""
        while not self._inbox.empty():
            self.inspector.add(self._inbox.get(), now)
        for delivery, verdict in self.inspector.step(now):
            if self._keeper:
                self._keeper.show(delivery, verdict)
            self._outbox.put((delivery, replace(verdict, worker=self.name)))
        if (waited := self.inspector.waiting_ns(now) / 1e9) > self._stall_s:
            raise EngineError(f"an engine has not answered for {waited:.0f} s; start the worker again", "broken")

    def _finished(self) -> bool:
        if self._failure:
            return True
        return self._received_all.is_set() and self._inbox.empty() and not self.inspector.busy

    def _wait(self) -> None:
        """Until a frame comes, a batch is done, or a bounded wait ends."""
        now = time.monotonic_ns()
        due = self.inspector.due_at(now)
        timeout = TAKE_WAIT_S if due is None else max(0.0, (due - now) / 1e9)
        self._wake.wait(min(timeout, TAKE_WAIT_S))
        self._wake.clear()

    def _thread(self, work: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # a dead thread must not leave a worker that only looks alive
                self._failure = self._failure or error
                self._stop.set()
            finally:
                self._wake.set()

        thread = threading.Thread(target=guarded, name=f"aoi-{name}", daemon=True)
        thread.start()
        return thread

    def _sign(self) -> None:
        """Say every second that we live: decoding, a drain after a stop or a full inbox may keep `_receive` busy."""
        while not self._left.wait(SIGN_EVERY_S):
            with suppress(StreamDown):
                self.stream.take(0)

    def _receive(self) -> None:
        """Take frames ahead of the engines, decode them, and look every second for those of dead workers."""
        reclaim_at, patience = time.monotonic() + self.stream.forgets_s, Patience(log)
        while not self._stop.is_set():
            try:
                room = self._held.wait_for_room(TAKE_WAIT_S)
                if room and time.monotonic() >= reclaim_at:
                    self._admit(self.stream.reclaim(room))
                    reclaim_at, room = time.monotonic() + RECLAIM_EVERY_S, self._held.wait_for_room(0)
                self._admit(self.stream.take(room, TAKE_WAIT_S))
                patience.back()
            except StreamDown as error:
                patience.wait(error, "no new frames meanwhile", self._stop)
                reclaim_at = time.monotonic() + self.stream.forgets_s  # others must have time to say that they live
        self._received_all.set()

    def _admit(self, deliveries: list[Delivery]) -> None:
        recipe, spec = self.inspector.recipe, self.inspector.spec
        for delivery in deliveries:
            job = prepare(delivery, recipe, spec)
            self._held.add(delivery, job.tiles)
            self.counts.taken += 1
            self._inbox.put(job)
            self._wake.set()

    def _settle(self) -> None:
        """Settle in the order of completion, all that is ready in one call."""
        while (first := self._outbox.get()) is not None:
            batch = [first]
            while not self._outbox.empty() and len(batch) < SETTLE_AT_ONCE:
                done = self._outbox.get()
                if done is None:
                    self._outbox.put(None)
                    break
                batch.append(done)
            self._settle_batch(batch)

    def _settle_batch(self, batch: list[Done]) -> None:
        """Keep trying while the stream is away; after a stop for `grace_s` only: then the frames go to others."""
        patience, stopped = Patience(log), Patience(log)
        while True:
            try:
                settled = self.stream.settle(batch)
                break
            except StreamDown as error:
                if self._stop.is_set() and stopped.waited_s >= self._grace_s:
                    raise
                current = stopped if self._stop.is_set() else patience
                current.wait(error, f"{len(batch)} verdicts are kept", self._never)
        patience.back()
        self._held.release([delivery for delivery, _ in batch])
        self.counts.settled += sum(settled)
        self.counts.late += len(settled) - sum(settled)
