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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from engines.base import Engine, EngineError, EngineSpec, Kind, Outputs
from pipeline.errors import WireError
from pipeline.golden_templates import templates_of
from pipeline.messages import Judgement, Verdict
from pipeline.postprocess import Findings, audited, find_defects, judge, judge_scores
from pipeline.preprocess import cut_tiles, plan_tiles, stitch, to_frame, working_image
from pipeline.recipe import Recipe
from pipeline.registration import TemplateError
from pipeline.stage import Job, Stage, Tile
from pipeline.stream import Delivery

Done = tuple[Delivery, Verdict]
MARGIN_NS = 5_000_000  # kept free before a deadline for settling, until the worker has measured that


def prepare(delivery: Delivery, recipe: Recipe, spec: EngineSpec) -> Job:
    """Decode a frame and cut it into tiles; what cannot be inspected becomes a job that is only a fault."""
    try:
        image = delivery.frame.image()
        golden = templates_of(recipe).of(delivery.frame.reference) if recipe.template.used else None
        picture = working_image(image, recipe, spec.channels, golden)
    except TemplateError as error:
        return Job(delivery, fault=("template", str(error)))
    except WireError as error:
        return Job(delivery, fault=("undecodable", str(error)))
    except MemoryError:
        return Job(delivery, fault=("undecodable", "too large for the memory that is left on this machine"))
    height, width = picture.shape[:2]
    plan = plan_tiles(height, width, spec.height, spec.width, recipe.picture.overlap)
    return Job(delivery, image.shape, plan, cut_tiles(picture, plan))


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
        _check_template(recipe, self.spec)
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
        at = [stage.due_at() for stage in self.stages.values()]
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
        if not found and not job.had_fail_safe and audited(job.delivery.frame.frame_id, self.recipe.judge.audit_share):
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
            scores = () if worst is None else worst.tolist()
            judgement, reason = judge(findings.defects, job.p_defect(), recipe, scores)
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
            device=self.spec.place,
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


def _check_template(recipe: Recipe, spec: EngineSpec) -> None:
    """A template that is missing, or that the networks cannot take, is told at the start."""
    if recipe.template.used and spec.channels != 3:
        said = f"the {spec.kind} takes {spec.channels} channel: with [template] it must take 3"
        raise EngineError(f"{said} (picture, template, difference); export it so, or remove [template]", "unfit")
    if recipe.template.used:
        templates_of(recipe)
