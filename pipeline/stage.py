"""One engine of the cascade: what waits for it, what is in it, and what its batches cost. Decides no verdict."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.base import Engine, EngineError, Kind, Outputs, Ticket
from pipeline.batcher import Batcher
from pipeline.preprocess import TilePlan
from pipeline.recipe import Recipe
from pipeline.stream import Delivery

Gray8 = npt.NDArray[np.uint8]


@dataclass
class Job:
    """One frame on its way through the stages."""

    delivery: Delivery
    image_shape: tuple[int, ...] = (0, 0)
    plan: TilePlan | None = None
    tiles: list[Gray8] = field(default_factory=list)
    scores: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)  # tile → [K]
    labels: dict[int, Gray8] = field(default_factory=dict)  # tile → [h, w]
    confidence: dict[int, Gray8] = field(default_factory=dict)
    in_engine: int = 0  # tiles not answered yet
    fault: tuple[str, str] = ("", "")  # reason and detail of an UNINSPECTED verdict
    number: int = 0  # of the frames this inspector has taken
    due: int = 0  # monotonic ns at which its verdict must be on its way; 0: whenever
    stage: Kind = "classifier"  # where it is
    had_fail_safe: bool = False
    abandoned: bool = False  # tiles of it were not run for want of time: no answer will be complete
    audited: bool = False  # not suspect: the segmenter is to look all the same
    batch_size: int = 0
    batched_ns: int = 0
    inferred_ns: int = 0

    def p_defect(self) -> float:
        """Of the worst tile; 0 where no classifier ran."""
        return max((1.0 - float(row[0]) for row in self.scores.values()), default=0.0)

    def worst_scores(self) -> npt.NDArray[np.float32] | None:
        return min(self.scores.values(), key=lambda row: float(row[0]), default=None)


Tile = tuple[Job, int]


@dataclass
class _Running:
    ticket: Ticket
    tiles: list[Tile]
    buffer: Gray8
    submitted_ns: int


@dataclass
class _Refused:
    """The ticket of a batch that the engine did not even take."""

    error: EngineError

    def done(self) -> bool:
        return True

    def result(self) -> Outputs:
        raise self.error


class Stage:
    """An engine, the tiles that wait for it, and the batches in flight."""

    def __init__(self, engine: Engine, recipe: Recipe, wake: Callable[[], None]) -> None:
        spec = engine.spec
        self.engine, self.wake = engine, wake
        self._base_ns: dict[int, int] = {}  # of a batch of that size on a quiet machine
        self._load, self._spread = 1.0, 0.0  # how much longer batches take now, and how far that varies
        self.batcher: Batcher[Tile] = Batcher(spec.max_batch, int(recipe.batching.max_wait_ms * 1e6), self.cost)
        self.alone: deque[Tile] = deque()  # of failed batches: to be run one by one
        self.running: list[_Running] = []
        shape = (spec.max_batch, *spec.tile_shape)
        self._buffers = [np.empty(shape, np.uint8) for _ in range(spec.in_flight)]

    def cost(self, size: int) -> int:
        """How many ns a batch takes at worst, as the last ones went; 0 if none was measured.

        Mean and twice the mean deviation, both exponentially weighted, as TCP does it (RFC 6298, there four times).
        """
        return int((self._load + 2 * self._spread) * self._quiet_cost(size)) if self._base_ns else 0

    def _quiet_cost(self, size: int) -> float:
        return float(np.interp(size, list(self._base_ns), list(self._base_ns.values())))

    def calibrate(self, longest_s: float) -> None:
        """Measure batches of every power of two up to the largest, alone; before the first frame comes."""
        most = self.engine.spec.max_batch
        for size in sorted({most, *(1 << k for k in range(most.bit_length()) if 1 << k <= most)}):
            batch = self._buffers[0][:size]
            batch[:] = 0
            took = [self._time(batch, longest_s) for _ in range(2)]
            self._base_ns[size] = min(took)

    def _time(self, batch: Gray8, longest_s: float) -> int:
        answered, start = threading.Event(), time.monotonic_ns()
        ticket = self._submit(batch, answered.set)
        if not answered.wait(longest_s):
            raise EngineError(f"an engine has not answered for {longest_s:.0f} s at its start", "broken")
        try:
            ticket.result()
        except EngineError as error:
            if error.kind == "broken":
                raise
        return time.monotonic_ns() - start

    def due_at(self) -> int | None:
        """When the next batch should start although nothing wakes us; None: never, or no slot is free."""
        return self.batcher.due_at() if self._buffers else None

    def busy(self) -> bool:
        return bool(self.running or self.alone or len(self.batcher))

    def hopeless(self, now: int) -> list[Job]:
        """Take out frames that could not make it any more.

        With nothing in flight the oldest is tried all the same: else a cost that was once measured far too high
        would never be measured again.
        """
        if not self.running:
            return []
        taken_out = self.batcher.hopeless(now, self.engine.spec.in_flight, lambda tile: tile[0])
        return [job for job, _ in taken_out]

    def forget(self, job: Job) -> int:
        """Take out a frame's tiles that no engine has seen yet; how many."""
        out = len(self.batcher.remove(lambda tile: tile[0] is job))
        alone = [tile for tile in self.alone if tile[0] is not job]
        out += len(self.alone) - len(alone)
        self.alone = deque(alone)
        return out

    def dispatch(self, now: int, wall: int) -> None:
        """Give every free slot of the engine what is due; `wall` is for the verdicts' times."""
        while self._buffers and (self.alone or self.batcher.due(now)):
            tiles = [self.alone.popleft()] if self.alone else self.batcher.take(now)
            buffer = self._buffers.pop()
            for row, (job, index) in enumerate(tiles):
                buffer[row] = job.tiles[index]
                job.batched_ns = job.batched_ns or wall
            ticket = self._submit(buffer[: len(tiles)], self.wake)
            self.running.append(_Running(ticket, tiles, buffer, now))

    def _submit(self, batch: Gray8, wake: Callable[[], None]) -> Ticket:
        try:
            return self.engine.submit(batch, wake)
        except EngineError as error:
            wake()
            return _Refused(error)

    def collect(self, now: int) -> list[tuple[list[Tile], Outputs | EngineError]]:
        """Batches that are done, in order of completion as far as it can be seen."""
        done = [batch for batch in self.running if batch.ticket.done()]
        return [answer for batch in done for answer in self._answer(batch, now)]

    def _answer(self, batch: _Running, now: int) -> list[tuple[list[Tile], Outputs | EngineError]]:
        self.running.remove(batch)
        try:
            outputs = batch.ticket.result()
        except EngineError as error:
            if error.kind == "broken":
                raise
            if len(batch.tiles) > 1:
                self.alone.extend(batch.tiles)
                return []
            return [(batch.tiles, error)]
        finally:
            self._buffers.append(batch.buffer)
        self._learn(len(batch.tiles), now - batch.submitted_ns)
        return [(batch.tiles, outputs)]

    def _learn(self, size: int, took_ns: int) -> None:
        if not self._base_ns:
            self._base_ns[size] = max(1, took_ns)
        ratio = took_ns / self._quiet_cost(size)
        self._spread = 0.8 * self._spread + 0.2 * abs(ratio - self._load)
        self._load = 0.8 * self._load + 0.2 * ratio
