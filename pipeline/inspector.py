"""The cascade: takes frames, runs the engines over their tiles, gives exactly one verdict for each.

Two stages, a batcher each: the classifier sees every tile; what it suspects, of whatever frame, shares the
segmenter's batches. One bad frame never spoils its neighbours: a failed batch is run again tile by tile.
A frame that cannot be judged before its deadline gets the recipe's fail-safe verdict in time; if its tiles are in
an engine by then, the real answer follows as an amendment.
Nothing here blocks, and nothing knows where frames come from or where verdicts go.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from engines import open_engine
from engines.base import Engine, EngineError, EngineOptions, EngineSpec, Kind, Outputs, Ticket
from pipeline.batcher import Batcher
from pipeline.errors import WireError
from pipeline.messages import Judgement, Verdict
from pipeline.postprocess import Findings, audited, find_defects, judge, judge_scores
from pipeline.preprocess import TilePlan, cut_tiles, plan_tiles, stitch, to_frame, working_image
from pipeline.recipe import Recipe
from pipeline.stream import Delivery

Gray8 = npt.NDArray[np.uint8]
Done = tuple[Delivery, Verdict]
MARGIN_NS = 5_000_000  # kept free before a deadline for settling, until the worker has measured that


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


def prepare(delivery: Delivery, recipe: Recipe, spec: EngineSpec) -> Job:
    """Decode a frame and cut it into tiles; what cannot be decoded becomes a job that is only a fault."""
    try:
        image = delivery.frame.image()
        picture = working_image(image, recipe, spec.channels)
    except WireError as error:
        return Job(delivery, fault=("undecodable", str(error)))
    except MemoryError:
        return Job(delivery, fault=("undecodable", "too large for the memory that is left on this machine"))
    height, width = picture.shape[:2]
    plan = plan_tiles(height, width, spec.height, spec.width, recipe.picture.overlap)
    return Job(delivery, image.shape, plan, cut_tiles(picture, plan))


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

    def busy(self) -> bool:
        return bool(self.running or self.alone or len(self.batcher))

    def hopeless(self, now: int) -> list[Job]:
        """Take out frames that could not make it any more.

        With nothing in flight the oldest is tried all the same: else a cost that was once measured far too high
        would never be measured again.
        """
        return [job for job, _ in self.batcher.hopeless(now)] if self.running else []

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


class Inspector:
    """Frames in by `add`, verdicts out by `step`; `wake` is called from any thread when a step has work.

    `now` is monotonic, in ns, and decides; the wall clock, which may jump, only stamps verdicts.
    """

    def __init__(
        self,
        recipe: Recipe,
        engines: Mapping[Kind, Engine],
        wake: Callable[[], None] = lambda: None,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.recipe, self._wall = recipe, wall
        self.stages: dict[Kind, Stage] = {kind: Stage(engine, recipe, wake) for kind, engine in engines.items()}
        self.first = next(iter(self.stages.values()))
        self.spec = self.first.engine.spec
        _check_same_tiles([stage.engine.spec for stage in self.stages.values()])
        self._label = " ".join(f"{kind}@{s.engine.spec.model_hash[:12]}" for kind, s in self.stages.items())
        self._done: list[Done] = []
        self.margin_ns = MARGIN_NS
        self._numbers = itertools.count(1)
        self._dated: dict[int, Job] = {}  # frames with a deadline and without a verdict, by number
        self._due: list[tuple[int, int]] = []  # heap of (due, number)

    @property
    def busy(self) -> bool:
        """Is any frame in here?"""
        return bool(self._done) or any(stage.busy() for stage in self.stages.values())

    def due_at(self, now: int) -> int | None:
        """When the next step has work although nothing wakes it (a bounded wait ends); None: never."""
        while self._due and self._due[0][1] not in self._dated:
            heapq.heappop(self._due)
        at = [stage.batcher.due_at() for stage in self.stages.values() if stage._buffers]
        at += [due for due, _ in self._due[:1]]
        return min((each for each in at if each is not None), default=None)

    def waiting_ns(self, now: int) -> int:
        """How long the oldest batch has been in an engine; 0 when none is."""
        submitted = [batch.submitted_ns for stage in self.stages.values() for batch in stage.running]
        return now - min(submitted, default=now)

    def calibrate(self, longest_s: float = 60.0) -> None:
        """Learn what batches cost. Raises EngineError when an engine does not answer for that long."""
        for stage in self.stages.values():
            stage.calibrate(longest_s)

    @property
    def need_ns(self) -> int:
        """How long a frame alone takes to its verdict from its taking on, as far as measured, through every stage."""
        return self.margin_ns + sum(stage.cost(1) for stage in self.stages.values())

    def add(self, job: Job, now: int) -> None:
        """Take a frame; its verdict comes from a later `step`."""
        if job.fault[0]:
            self._finish(job)
            return
        if deadline := job.delivery.frame.deadline_ns:
            job.number, job.due = next(self._numbers), max(1, now + deadline - self._wall() - self.margin_ns)
            self._dated[job.number] = job
            heapq.heappush(self._due, (job.due, job.number))
        self._send(job, range(len(job.tiles)), self.spec.kind, now)

    def step(self, now: int) -> list[Done]:
        """Collect what the engines have done, pass it on, start what is due; verdicts that became ready."""
        for kind, stage in self.stages.items():
            for tiles, answer in stage.collect(now):
                self._take_answer(kind, tiles, answer, now)
        self._expire(now)
        for stage in reversed(self.stages.values()):
            for job in stage.hopeless(now):
                self._fail_safe(job, taken_out=1)
            stage.dispatch(now, self._wall())
        done, self._done = self._done, []
        return done

    def _expire(self, now: int) -> None:
        """Fail-safe verdicts for frames whose time is up."""
        while self._due and self._due[0][0] <= now:
            _, number = heapq.heappop(self._due)
            if number in self._dated:
                self._fail_safe(self._dated[number])

    def _fail_safe(self, job: Job, taken_out: int = 0) -> None:
        """The frame's verdict for want of time; what no engine has begun of it is not done any more."""
        taken_out += sum(stage.forget(job) for stage in self.stages.values())
        job.in_engine -= taken_out
        job.abandoned = job.abandoned or taken_out > 0
        if self._dated.pop(job.number, None) is None:
            return  # it has its verdict
        if job.audited:  # the classifier had passed it: no time for a second look is no reason to doubt it
            job.abandoned = True
            self._done.append((job.delivery, self._verdict(job)))
        else:
            job.had_fail_safe = True
            self._done.append((job.delivery, self._fail_safe_verdict(job)))

    def _send(self, job: Job, indexes: Sequence[int], kind: Kind, now: int) -> None:
        job.stage, job.in_engine = kind, len(indexes)
        due = 0 if job.had_fail_safe else job.due
        spare = self.stages["segmenter"].cost(1) if kind == "classifier" and self.recipe.mode == "cascade" else 0
        for index in indexes:
            self.stages[kind].batcher.add((job, index), now, due, spare)

    def _take_answer(self, kind: Kind, tiles: list[Tile], answer: Outputs | EngineError, now: int) -> None:
        for row, (job, index) in enumerate(tiles):
            job.in_engine -= 1
            if isinstance(answer, EngineError):
                job.fault = ("engine", str(answer))
            elif kind == "classifier":
                job.scores[index] = answer["scores"][row]
                if not np.isfinite(job.scores[index]).all():  # it would compare as good
                    job.fault = ("engine", "the classifier's scores are not finite")
            else:
                job.labels[index], job.confidence[index] = answer["labels"][row], answer["confidence"][row]
            job.batch_size = max(job.batch_size, len(tiles)) if kind == self.spec.kind else job.batch_size
            if not job.in_engine:
                self._advance(kind, job, now)

    def _advance(self, kind: Kind, job: Job, now: int) -> None:
        """A stage has answered every tile of this frame: on to the next stage, or to its verdict."""
        job.inferred_ns = self._wall()
        suspects = self._suspects(job) if kind == "classifier" and self.recipe.mode == "cascade" else []
        if job.abandoned or (job.had_fail_safe and job.fault[0]):
            job.tiles = []
        elif not suspects or job.fault[0]:
            self._finish(job)
        elif not job.had_fail_safe or not self.stages["segmenter"].busy():
            self._send(job, suspects, "segmenter", now)
        else:  # others can still make it
            job.tiles = []

    def _suspects(self, job: Job) -> list[int]:
        threshold = self.recipe.classifier.threshold
        found = [index for index, row in job.scores.items() if 1.0 - float(row[0]) >= threshold]
        if not found and audited(job.delivery.frame.frame_id, self.recipe.judge.audit_share):
            job.audited = True
            return list(job.scores)
        return found

    def _finish(self, job: Job) -> None:
        self._dated.pop(job.number, None)
        self._done.append((job.delivery, self._verdict(job)))
        job.tiles = []

    def _fail_safe_verdict(self, job: Job) -> Verdict:
        busy = job.stage == "segmenter" and self.recipe.mode == "cascade"
        detail = "suspect, and the segmenter could not look in time" if busy else "could not be judged in time"
        judgement, reason = cast(Judgement, self.recipe.judge.fail_safe), "segmenter_busy" if busy else "deadline"
        return self._signed(job, judgement, reason, detail, Findings())

    def _verdict(self, job: Job) -> Verdict:
        recipe, worst, findings, detail = self.recipe, job.worst_scores(), Findings(), ""
        judgement: Judgement
        if job.fault[0]:
            judgement, reason, detail = "UNINSPECTED", *job.fault
        elif recipe.mode == "classify" and worst is not None:
            judgement, reason = judge_scores(worst.tolist(), recipe)
        else:
            findings = self._findings(job)
            judgement, reason = judge(findings.defects, job.p_defect(), recipe)
        return self._signed(job, judgement, reason, detail, findings)

    def _signed(self, job: Job, judgement: Judgement, reason: str, detail: str, findings: Findings) -> Verdict:
        frame, recipe, worst = job.delivery.frame, self.recipe, job.worst_scores()
        return Verdict(
            frame=frame.without_pixels(),
            judgement=judgement,
            reason=reason,
            detail=detail,
            scores={} if worst is None else dict(zip(recipe.classifier.classes, worst.tolist(), strict=True)),
            defects=findings.defects,
            masks=findings.masks,
            mask_shape=findings.mask_shape,
            recipe=recipe.label,
            engine=self._label,
            device=self.spec.device,
            batch_size=job.batch_size,
            deliveries=job.delivery.deliveries,
            received_ns=job.delivery.received_ns,
            batched_ns=job.batched_ns,
            inferred_ns=job.inferred_ns,
        )

    def _findings(self, job: Job) -> Findings:
        if not job.labels or job.plan is None:
            return Findings(mask_shape=(job.image_shape[0], job.image_shape[1]))
        labels = to_frame(stitch(job.labels, job.plan), job.image_shape, self.recipe)
        if not labels.any():
            return Findings(mask_shape=(labels.shape[0], labels.shape[1]))
        confidence = to_frame(stitch(job.confidence, job.plan), job.image_shape, self.recipe)
        return find_defects(labels, confidence, self.recipe)


def _check_same_tiles(specs: Sequence[EngineSpec]) -> None:
    shapes = {spec.tile_shape for spec in specs}
    if len(shapes) > 1:
        raise EngineError(f"classifier and segmenter take different tiles ({shapes}); export both alike", "unfit")


@contextmanager
def open_engines(recipe: Recipe) -> Iterator[dict[Kind, Engine]]:
    """The recipe's engines, compiled and warm, by stage in the order they run; released on leaving.

    Raises EngineError when a file is missing, is not the one whose hash the recipe states, or does not fit.
    """
    batching = recipe.batching
    options = EngineOptions(batching.device, batching.threads, batching.in_flight, batching.max_batch)
    with ExitStack() as stack:
        engines: dict[Kind, Engine] = {}
        for stage in recipe.stages:
            model, kind = getattr(recipe, stage), cast(Kind, stage)
            meant = replace(options, sha256=model.sha256)
            engine = open_engine(batching.engine, recipe.model_path(model), kind, model.classes, meant)
            engines[kind] = stack.enter_context(engine)
        yield engines
