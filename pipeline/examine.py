"""A recipe's engines over labelled pictures, whole and before any rule, so that every rule can be tried afterwards.

Pictures are prepared, tiled and stitched by the line's own code, and judged by its own rules: what is measured is
what runs. Only the order differs: the segmenter sees every tile, and the classifier's gate is applied to its answer.
Which of the good frames are audited (`judge.audit_share`) is drawn by frame on the line, and so left out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from engines.base import Engine, EngineError, EngineSpec, Kind, Outputs, Ticket
from engines.datasets.labelled import Dataset, Picture, Problem, Sample, UnreadablePictureError, read_picture
from pipeline.errors import WireError
from pipeline.golden_templates import templates_of
from pipeline.messages import Judgement
from pipeline.postprocess import Findings, find_defects, judge, judge_scores
from pipeline.preprocess import TilePlan, cut_tiles, plan_tiles, stitch, to_frame, working_image
from pipeline.recipe import Recipe
from pipeline.registration import TemplateError

Gray8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Examined:
    """One picture, and everything the engines say of it."""

    picture: Picture
    plan: TilePlan
    scores: npt.NDArray[np.float32] | None  # [T, K] of the classifier, per tile; None: the recipe has none
    labels: Gray8 | None  # [H, W] of the whole picture, of every tile; None: the recipe has no segmenter
    confidence: Gray8 | None  # [H, W], 0…255

    @property
    def tile_suspicion(self) -> list[float]:
        """P(defect) of each tile; empty without a classifier."""
        return [] if self.scores is None else [1.0 - float(row[0]) for row in self.scores]

    @property
    def p_defect(self) -> float:
        """Of the worst tile; 0 without a classifier."""
        return max(self.tile_suspicion, default=0.0)

    @property
    def worst_scores(self) -> list[float]:
        """Class scores of the most suspect tile; empty without a classifier."""
        if self.scores is None:
            return []
        return [float(score) for score in self.scores[int(self.scores[:, 0].argmin())]]

    def suspects(self, recipe: Recipe) -> tuple[int, ...]:
        """The tiles whose labels count: those that the classifier does not pass, all of them in mode `segment`."""
        if recipe.mode != "cascade":
            return tuple(range(len(self.plan.origins)))
        return tuple(i for i, p in enumerate(self.tile_suspicion) if p >= recipe.classifier.threshold)

    def findings(self, recipe: Recipe) -> Findings:
        """The defects in the suspect tiles, by the recipe's rules."""
        labels, confidence = self.gated(recipe)
        if not labels.any():
            return Findings(mask_shape=(labels.shape[0], labels.shape[1]))
        return find_defects(labels, confidence, recipe)

    def gated(self, recipe: Recipe) -> tuple[Gray8, Gray8]:
        """Labels and confidence [H, W] as the line has them: 0 where the classifier has passed the tile."""
        height, width = self.picture.pixels.shape[:2]
        chosen = self.suspects(recipe)
        if self.labels is None or self.confidence is None or not chosen:
            return np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
        if len(chosen) == len(self.plan.origins):
            return self.labels, self.confidence
        seen = np.ones((self.plan.tile_height, self.plan.tile_width), np.uint8)
        gate = to_frame(stitch(dict.fromkeys(chosen, seen), self.plan), (height, width), recipe)
        return self.labels * gate, self.confidence * gate


def judged(examined: Examined, recipe: Recipe) -> tuple[Judgement, str, Findings]:
    """(judgement, reason, findings) as an inspector would give them for this picture."""
    if recipe.mode == "classify":
        return (*judge_scores(examined.worst_scores, recipe), Findings())
    findings = examined.findings(recipe)
    return (*judge(findings.defects, examined.p_defect, recipe, examined.worst_scores), findings)


@dataclass(frozen=True, eq=False)
class Cut:
    """A picture that is cut and not yet shown to an engine."""

    picture: Picture
    plan: TilePlan
    tiles: list[Gray8]


def examine(
    recipe: Recipe, engines: Mapping[Kind, Engine], dataset: Dataset, samples: Iterable[Sample]
) -> Iterator[Examined | Problem]:
    """One answer for every sample, in order: what the engines say, or why it could not be examined.

    `engines` are open, as `open_engines` gives them. Raises EngineError when an engine is broken.
    """
    spec = next(iter(engines.values())).spec
    enough = spec.max_batch * spec.in_flight  # tiles that keep the engines busy
    waiting: list[Cut | Problem] = []
    for sample in samples:
        waiting.append(prepared(recipe, spec, dataset, sample))
        if sum(len(each.tiles) for each in waiting if isinstance(each, Cut)) >= enough:
            yield from _answer(recipe, engines, waiting)
            waiting = []
    yield from _answer(recipe, engines, waiting)


def prepared(recipe: Recipe, spec: EngineSpec, dataset: Dataset, sample: Sample) -> Cut | Problem:
    """One picture read and cut as the line does it, or why it could not be."""
    try:
        picture = read_picture(dataset, sample, colour=spec.channels == 3 and not recipe.template.used)
        working = working_image(picture.pixels, recipe, spec.channels, _template(recipe, picture))
    except (UnreadablePictureError, WireError, TemplateError) as error:
        return Problem(sample.image, str(error))
    height, width = working.shape[:2]
    plan = plan_tiles(height, width, spec.height, spec.width, recipe.picture.overlap)
    return Cut(picture, plan, cut_tiles(working, plan))


def _template(recipe: Recipe, picture: Picture) -> Gray8 | None:
    """The golden template that the data gives, or else the recipe's own."""
    if not recipe.template.used:
        return None
    return templates_of(recipe).of("") if picture.reference is None else picture.reference


def _answer(
    recipe: Recipe, engines: Mapping[Kind, Engine], waiting: Sequence[Cut | Problem]
) -> Iterator[Examined | Problem]:
    cut = [each for each in waiting if isinstance(each, Cut)]
    answers = iter(_ask(recipe, engines, cut))
    for each in waiting:
        yield each if isinstance(each, Problem) else next(answers)


def _ask(recipe: Recipe, engines: Mapping[Kind, Engine], cut: Sequence[Cut]) -> list[Examined | Problem]:
    """All together; when that fails, one by one, so that a bad picture spoils no other."""
    try:
        tiles = [tile for each in cut for tile in each.tiles]
        outputs = {kind: run(engine, tiles) for kind, engine in engines.items()} if tiles else {}
    except EngineError as error:
        if error.kind == "broken":
            raise
        if len(cut) > 1:
            return [answer for each in cut for answer in _ask(recipe, engines, [each])]
        return [Problem(cut[0].picture.sample.image, str(error))]
    answers: list[Examined | Problem] = []
    start = 0
    for each in cut:
        rows = slice(start, start + len(each.tiles))
        answers.append(whole(recipe, each, outputs, rows))
        start = rows.stop
    return answers


def run(engine: Engine, tiles: Sequence[Gray8], size: int = 0) -> Outputs:
    """Every tile through the engine, `size` in a batch (0: its largest), as many batches in flight as it takes."""
    size, running, parts = size or engine.spec.max_batch, list[Ticket](), []
    try:
        for start in range(0, len(tiles), size):
            if len(running) == engine.spec.in_flight:
                parts.append(running.pop(0).result())
            running.append(engine.submit(np.stack(tiles[start : start + size])))
        while running:
            parts.append(running.pop(0).result())
    finally:  # a ticket that nobody collects keeps its place in the engine
        for ticket in running:
            with suppress(EngineError):
                ticket.result()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def whole(recipe: Recipe, each: Cut, outputs: Mapping[Kind, Outputs], rows: slice) -> Examined | Problem:
    """One picture's rows of the answer, its planes laid onto the picture."""
    scores = labels = confidence = None
    if "classifier" in outputs:
        scores = cast(npt.NDArray[np.float32], outputs["classifier"]["scores"][rows])
        if not np.isfinite(scores).all():
            return Problem(each.picture.sample.image, "the classifier's scores are not finite")
    if "segmenter" in outputs:
        planes = (cast(Gray8, outputs["segmenter"][name][rows]) for name in ("labels", "confidence"))
        shape = each.picture.pixels.shape
        labels, confidence = (to_frame(stitch(dict(enumerate(p)), each.plan), shape, recipe) for p in planes)
    return Examined(each.picture, each.plan, scores, labels, confidence)
