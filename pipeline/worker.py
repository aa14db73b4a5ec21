"""The sentence at work: take frames, let them be batched and inspected, settle their verdicts; all overlapping.

Threads that wait for different things: `receive` for the stream, `run` for the engines, `settle` for the stream
again; `sign` says that we live; `deadlines` gives overdue frames their fail-safe verdict, also those that nobody
has taken or a dead worker holds. The engine never waits for Redis: frames are taken ahead, and verdicts are kept
while it is away.
A stop finishes and settles what is held; a kill loses nothing, because what is not settled is still outstanding.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, cast

from engines.base import EngineError
from pipeline.deadlines import DeadlineKeeper, fail_safe
from pipeline.errors import StreamDown
from pipeline.inspector import Done, Inspector, prepare
from pipeline.messages import Judgement, Verdict
from pipeline.patience import Patience
from pipeline.shown import counted
from pipeline.stage import Gray8, Job
from pipeline.stream import Delivery, Settlement, Stream
from pipeline.supervisor import Supervisor

log = logging.getLogger("aoi.worker")

SIGN_EVERY_S = 1.0
TAKE_WAIT_S = 0.5  # how long one `take` waits, and so how soon a stop is seen
RECLAIM_EVERY_S = 1.0
RECLAIM_AGAIN_S = 0.02  # … and while there are some: those on their last delivery come one by one
AHEAD = 0.4  # of the time frames have, at most, for what is held before them
FETCH_S = 0.25  # in which the next batch is taken and decoded, generously
MAX_HELD_BYTES = 512 * 1024 * 1024
MARGIN_NS = (4_000_000, 100_000_000)  # before a deadline: at least, at most; between, twice what settling takes
SETTLE_AT_ONCE = 256  # verdicts in one call: the server serves nobody else meanwhile


class Keeper(Protocol):
    """Someone who is shown judged frames (overlays); must neither block nor raise."""

    def show(self, delivery: Delivery, verdict: Verdict) -> None: ...


class Observer(Protocol):
    """Someone who is told what was settled, and when (metrics); must neither block nor raise."""

    def settled(self, batch: Sequence[Done], became: Sequence[Settlement], settled_ns: int) -> None: ...


@dataclass
class Counts:
    """What this worker has done since it started."""

    taken: int = 0
    settled: int = 0
    late: int = 0  # verdicts that came after somebody else's
    amended: int = 0  # … of those, published as amendments of a fail-safe verdict


class Held:
    """What the worker has taken and not settled, in frames, bytes and tiles; and how much more it should take.

    A batch in the engine and one ready are enough for an engine that is slow (`batch_s`): others may be idle
    meanwhile. A fast one gets as many more as it does while the next are fetched. Where frames have deadlines, what
    is held must leave them most of their time (`ahead_s`; 0: none): the rest may be judged by others, or given up
    without having cost anything.
    """

    def __init__(
        self,
        max_batch: int,
        in_flight: int,
        batch_s: Callable[[], float] = lambda: 0.0,
        ahead_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._max_batch, self._most_batches, self._batch_s = max_batch, in_flight + 2, batch_s
        self._ahead_s = ahead_s
        self._frames: dict[str, tuple[int, int]] = {}  # token → bytes, tiles
        self._bytes = self._tiles = 0
        self._tiles_a_frame = self._most_tiles()  # not known: one frame first
        self._changed = threading.Condition()

    def add(self, delivery: Delivery, tiles: list[Gray8]) -> None:
        """A frame was taken; what it takes in memory is its pixels as decoded, if they are more."""
        size = max(delivery.size, sum(tile.nbytes for tile in tiles))
        self.release([delivery])  # it may have been ours before, and come back from somebody who died
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
            return max(1, self._most_tiles() // self._tiles_a_frame)
        most = self._most_tiles()
        free = most - self._tiles
        return max(0, free // self._tiles_a_frame) if free >= min(self._max_batch, most // 2) else 0

    def _most_tiles(self) -> int:
        batch_s, ahead_s = self._batch_s(), self._ahead_s()
        needed = 1 + math.ceil(FETCH_S / batch_s) if batch_s > 0 else self._most_batches
        most = self._max_batch * min(self._most_batches, max(2, needed))
        in_time = int(ahead_s / batch_s * self._max_batch) if ahead_s and batch_s else most
        return max(2, min(most, in_time))


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
        supervisor: Supervisor | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.stream, self.name, self.counts = stream, name, Counts()
        self._wake, self._stop, self._received_all = threading.Event(), threading.Event(), threading.Event()
        self.inspector = inspector_for(self._wake.set)
        recipe, batching = self.inspector.recipe, self.inspector.recipe.batching
        nobody_could = fail_safe(cast(Judgement, recipe.judge.fail_safe), recipe.label, name)
        budget_s = batching.deadline_ms / 1e3
        self._deadlines = DeadlineKeeper(stream, nobody_could, budget_s, lambda: self.inspector.need_ns / 1e9)
        self._settling_ns = 0.0
        first = self.inspector.first
        self._held = Held(
            batching.max_batch,
            batching.in_flight,
            lambda: first.cost(batching.max_batch) / 1e9,
            lambda: AHEAD * self._deadlines.budget_s,
        )
        self._keeper, self._grace_s, self._stall_s = keeper, grace_s, stall_s
        self._supervisor, self._observer = supervisor or Supervisor(), observer
        self.stepped_at = self.heard_at = time.monotonic()  # the loop went round, the stream answered
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
        self.inspector.calibrate(self._stall_s)
        receiver, settler = self._thread(self._receive, "receive"), self._thread(self._settle, "settle")
        signer, keeper = self._thread(self._sign, "sign"), self._thread(self._deadlines.run, "deadlines")
        self._supervisor.ready(f"inspecting as {self.name}")
        try:
            while not self._finished():
                self._wait()
                self.step(time.monotonic_ns())
                self._supervisor.alive(f"{self.counts.settled} frames settled")
        finally:
            self._supervisor.stopping("settling what is held")
            self.stop()
            receiver.join()
            self._outbox.put(None)
            settler.join()
            self._left.set()
            self._deadlines.stop()
            signer.join()
            keeper.join()
            self.stream.close()
        if self._failure:
            raise self._failure
        return self.counts

    def step(self, now: int) -> None:
        """New frames to the inspector, ready verdicts to the settler."""
        self.stepped_at = now / 1e9
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

    def _hangs(self) -> bool:
        """Does an engine keep the loop from going round? Then we are silent, so that our frames go to others."""
        return not self._stop.is_set() and time.monotonic() - self.stepped_at > self._stall_s

    def _sign(self) -> None:
        """Say every second that we live: decoding, a drain after a stop or a full inbox may keep `_receive` busy."""
        while not self._left.wait(SIGN_EVERY_S):
            if self._hangs():
                continue
            with suppress(StreamDown):
                self.stream.take(0)
                self.heard_at = time.monotonic()

    def _receive(self) -> None:
        """Take frames ahead of the engines, decode them, and look every second for those of dead workers."""
        reclaim_at, pause, patience = time.monotonic() + self.stream.forgets_s, RECLAIM_EVERY_S, Patience(log)
        while not self._stop.is_set():
            if self._hangs():
                self._left.wait(TAKE_WAIT_S)
                continue
            try:
                room = self._held.wait_for_room(min(TAKE_WAIT_S, pause))
                if room and time.monotonic() >= reclaim_at:
                    self._admit(found := self.stream.reclaim(room))
                    pause = RECLAIM_AGAIN_S if found else min(2 * pause, RECLAIM_EVERY_S)
                    reclaim_at, room = time.monotonic() + pause, self._held.wait_for_room(0)
                self._admit(self.stream.take(room, min(TAKE_WAIT_S, pause)))
                patience.back()
            except StreamDown as error:
                patience.wait(error, "no new frames meanwhile", self._stop)
                reclaim_at = time.monotonic() + self.stream.forgets_s  # others must have time to say that they live
        self._received_all.set()

    def _admit(self, deliveries: list[Delivery]) -> None:
        recipe, spec = self.inspector.recipe, self.inspector.spec
        for delivery in deliveries:
            job = prepare(delivery, recipe, spec)
            self._deadlines.saw(delivery.frame)
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
                at = time.time_ns()
                settled = self._timed_settle(batch)
                break
            except StreamDown as error:
                if self._stop.is_set() and stopped.waited_s >= self._grace_s:
                    raise
                current = stopped if self._stop.is_set() else patience
                current.wait(error, f"{counted(len(batch), 'verdict')} kept meanwhile", self._never)
        patience.back()
        if self._observer:
            self._observer.settled(batch, settled, at)
        self._held.release([delivery for delivery, _ in batch])
        self.counts.settled += settled.count(Settlement.PUBLISHED)
        self.counts.late += len(settled) - settled.count(Settlement.PUBLISHED)
        self.counts.amended += settled.count(Settlement.AMENDED)

    def _timed_settle(self, batch: list[Done]) -> list[Settlement]:
        """What settling takes is kept free before deadlines."""
        start = time.monotonic_ns()
        settled = self.stream.settle(batch)
        self._settling_ns = 0.8 * self._settling_ns + 0.2 * (time.monotonic_ns() - start)
        least, most = MARGIN_NS
        self.inspector.margin_ns = min(least + int(2 * self._settling_ns), most)
        return settled
