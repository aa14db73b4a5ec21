"""What recipes are worth on labelled pictures: every figure, out of what the engines say and what is true.

All figures but those named otherwise are of the recipe as the line runs it: labels behind the classifier's gate, and
regions by its rules. It reads no option and draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from engines import rle
from engines.datasets.agreement import Agreement, Confusion, image_dice
from engines.datasets.boxes import BoxScore, boxes_from_labels
from engines.datasets.labelled import Dataset, Problem, Sample
from pipeline.box_rules import BoxPoint, BoxSweep
from pipeline.class_names import ClassNames, match_names
from pipeline.errors import RecipeError
from pipeline.examine import Examined, examine, judged
from pipeline.gate import GatePoint, gate_curve
from pipeline.messages import Judgement
from pipeline.opening import open_engines
from pipeline.operating_point import Grid, Point, Rate, Rules, Shown, by_part, choose, curve, escaped, grid_for, sweep
from pipeline.postprocess import Findings
from pipeline.recipe import Recipe
from pipeline.regions_by_rule import regions_by_rule, with_rules
from pipeline.worst_misses import Miss, WorstMisses

Gray8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]  # pictures done, of how many


@dataclass(frozen=True)
class Job:
    """One recipe, and the pictures that are to judge it: for a fold, those that it has not seen."""

    recipe: Recipe
    dataset: Dataset
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Settings:
    """What is asked of an evaluation."""

    side: str = "held-out"
    escape_target: float = 0.02
    least_iou: float = 0.33
    merge_px: int = 0  # regions of one class with less between them are one box
    pad_px: int = 0  # room that the data's boxes leave around a defect
    gallery: int = 24  # worst misses to keep


@dataclass(frozen=True)
class Row:
    """One picture: what is true, and what was said."""

    image: str
    part: str
    true_class: int  # of the data
    judgement: Judgement
    reason: str
    p_defect: float


@dataclass
class Evaluation:
    """Everything measured, added up picture by picture; figures are None where nothing was there to be counted."""

    names: ClassNames
    data_classes: tuple[str, ...]
    settings: Settings
    recipes: tuple[str, ...]
    grid: Grid
    mode: str  # of the recipes
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    agreement: Agreement = field(init=False)
    alone: Agreement = field(init=False)  # the segmenter's labels without gate and rules
    confusion: Confusion = field(init=False)
    boxes: BoxScore = field(init=False)  # those of the rules
    ranked: BoxScore = field(init=False)  # whatever their score, for AP
    box_sweep: BoxSweep = field(init=False)
    boxes_known: bool = False
    misses: WorstMisses = field(init=False)
    remarks: list[str] = field(default_factory=list)
    _regions: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _suspicion: list[tuple[float, float]] = field(default_factory=list)  # P(defect), from where on to REVIEW

    def __post_init__(self) -> None:
        count = len(self.names.classes)
        self.agreement, self.alone, self.confusion = Agreement(count), Agreement(count), Confusion(count)
        self.boxes, self.ranked = BoxScore(self.settings.least_iou), BoxScore(self.settings.least_iou)
        self.box_sweep = BoxSweep(self.grid.min_scores, self.grid.min_areas, self.settings.least_iou)
        self.misses = WorstMisses(self.settings.gallery)

    def add(self, examined: Examined, recipe: Recipe) -> None:
        """Count one picture."""
        picture, sample = examined.picture, examined.picture.sample
        judgement, reason, findings = judged(examined, recipe)
        row = Row(sample.image, sample.group, picture.class_index, judgement, reason, examined.p_defect)
        self.rows.append(row)
        alone = recipe.mode == "classify"  # the threshold has said it all
        self._suspicion.append((0.0, np.inf) if alone else (row.p_defect, recipe.judge.review_above))
        self._regions.append(regions_by_rule(examined, recipe, self.grid))
        self.confusion.add(int(self.names.of_data[picture.class_index]), self._said(row, findings))
        true = self.names.of_data[picture.labels]
        found = self._found(findings, true)
        if examined.labels is not None and examined.confidence is not None:
            self.agreement.add(found, true)
            self.alone.add(self.names.of_segmenter[examined.labels], true)
            self._add_boxes(examined, examined.confidence, recipe, found)
        self._add_miss(row, examined, found, true)

    def _said(self, row: Row, findings: Findings) -> int | None:
        """Class that was said: the one of most defective pixels, or the classifier's; None: sent to a person."""
        if row.judgement != "NG":
            return 0 if row.judgement == "OK" else None
        pixels: Counter[str] = Counter()
        for defect in findings.defects:
            pixels[defect.class_name] += defect.area_px
        name = max(pixels, key=lambda name: pixels[name], default=row.reason)
        return self.names.of_name[name]

    def _found(self, findings: Findings, true: Gray8) -> Gray8:
        """The verdict's masks as one label map."""
        found = np.zeros(true.shape, np.uint8)
        for name, runs in findings.masks.items():
            found[rle.decode(runs, findings.mask_shape)] = self.names.of_name[name]
        return found

    def _add_boxes(self, examined: Examined, confidence: Gray8, recipe: Recipe, found: Gray8) -> None:
        if (boxes := examined.picture.boxes) is None:
            return
        self.boxes_known = True
        known = [replace(box, class_index=int(self.names.of_data[box.class_index])) for box in boxes]
        lenient = replace(recipe, judge=replace(recipe.judge, min_score=0.0))
        open_rules = with_rules(recipe, recipe.classifier.threshold, 0.0, 1)
        for score, rules in ((self.boxes, None), (self.ranked, lenient), (self.box_sweep, open_rules)):
            labels = found if rules is None else self._found(examined.findings(rules), found)
            score.add(boxes_from_labels(labels, confidence, self.settings.merge_px, self.settings.pad_px), known)

    def _add_miss(self, row: Row, examined: Examined, found: Gray8, true: Gray8) -> None:
        defective = row.true_class > 0
        dice = image_dice(found, true) if self.has_segmenter and defective else None
        wrong = {(True, "OK"): "escape", (False, "NG"): "overkill"}.get((defective, row.judgement), "")
        said = f"{row.judgement} {row.reason}".strip()
        name = self.data_classes[row.true_class]
        miss = Miss(wrong, row.image, name, said, row.p_defect, dice, examined.picture.pixels, true, found)
        self.misses.offer(miss)

    @property
    def has_segmenter(self) -> bool:
        """Are pixels marked at all?"""
        return self.mode != "classify"

    @property
    def defective(self) -> npt.NDArray[np.bool_]:
        """[N] What is true of each picture."""
        return np.array([row.true_class > 0 for row in self.rows], bool)

    def judged_as(self, judgement: Judgement) -> npt.NDArray[np.bool_]:
        """[N] What was said of each."""
        return np.array([row.judgement == judgement for row in self.rows], bool)

    @property
    def parts(self) -> tuple[str, ...]:
        """[N] Name of each picture's part."""
        return tuple(row.part for row in self.rows)

    @property
    def escape(self) -> Rate:
        """Defective pictures judged OK."""
        return Rate(int((self.defective & self.judged_as("OK")).sum()), int(self.defective.sum()))

    @property
    def overkill(self) -> Rate:
        """Good pictures judged NG."""
        return Rate(int((~self.defective & self.judged_as("NG")).sum()), int((~self.defective).sum()))

    @property
    def review(self) -> Rate:
        """Pictures sent to a person."""
        return Rate(int(self.judged_as("REVIEW").sum()), len(self.rows))

    @property
    def escape_parts(self) -> Rate:
        """Defective parts of which at least one picture was judged OK."""
        return by_part(self.parts, self.judged_as("OK"), self.defective)

    @property
    def overkill_parts(self) -> Rate:
        """Good parts of which at least one picture was judged NG."""
        return by_part(self.parts, self.judged_as("NG"), ~self.defective)

    @property
    def found_per_class(self) -> dict[str, Rate]:
        """Per class of the data, the good one too: pictures judged rightly good or bad, whatever the class said."""
        right: Counter[int] = Counter()
        for row in self.rows:
            right[row.true_class] += row.judgement == ("NG" if row.true_class else "OK")
        total = Counter(row.true_class for row in self.rows)
        return {name: Rate(right[index], total[index]) for index, name in enumerate(self.data_classes)}

    @property
    def gate(self) -> list[GatePoint]:
        """What the classifier alone sends on by threshold; empty where it is no gate or one of the kinds is missing."""
        if self.mode != "cascade" or not self.escape.total or not self.overkill.total:
            return []
        return gate_curve(np.array([row.p_defect for row in self.rows]), self.defective, self.grid.thresholds)

    def shown(self) -> Shown:
        """What rules can be tried on."""
        p_defect, review_above = (np.array(column) for column in zip(*self._suspicion, strict=True))
        return Shown(np.stack(self._regions), p_defect, review_above, self.defective, self.parts)


@dataclass(frozen=True)
class Tried:
    """What other rules would have done on the same pictures."""

    curve: list[Point]
    chosen: Point | None
    chosen_parts: Rate  # defective parts with an escaped picture under the chosen rules
    boxes: BoxPoint | None = None  # where escapes cannot be weighed: the rules with the best boxes


def evaluate(jobs: Sequence[Job], settings: Settings, progress: Progress = lambda done, total: None) -> Evaluation:
    """Run every recipe over its pictures and pool what comes out.

    Raises RecipeError when the recipes differ in mode or classes, EngineError when an engine cannot be opened.
    """
    _check_alike([job.recipe for job in jobs])
    first = jobs[0]
    grid = grid_for(first.recipe.mode, [present_rules(job.recipe) for job in jobs])
    names = match_names(first.dataset.classes, first.recipe)
    labels = tuple(job.recipe.label for job in jobs)
    evaluation = Evaluation(names, first.dataset.classes, settings, labels, grid, first.recipe.mode)
    evaluation.remarks += names.remarks
    shared = Counter(sample.image for job in jobs for sample in job.samples)
    if several := sum(count > 1 for count in shared.values()):
        evaluation.remarks.append(f"{several} pictures are judged by more than one recipe: these are no folds")
    total = sum(len(job.samples) for job in jobs)
    for done, (job, answer) in enumerate(_answers(jobs), 1):
        if isinstance(answer, Problem):
            evaluation.problems.append(answer)
        else:
            evaluation.add(answer, job.recipe)
        progress(done, total)
    return evaluation


def _answers(jobs: Sequence[Job]) -> Iterator[tuple[Job, Examined | Problem]]:
    for job in jobs:
        with open_engines(job.recipe, unpromoted=True) as engines:
            for answer in examine(job.recipe, engines, job.dataset, job.samples):
                yield job, answer


def present_rules(recipe: Recipe) -> Rules:
    """The recipe's operating point as it is."""
    rules = recipe.judge
    return Rules(recipe.classifier.threshold, rules.min_score, rules.min_area_px, rules.ng_above)


def _check_alike(recipes: Sequence[Recipe]) -> None:
    first = recipes[0]
    for other in recipes[1:]:
        same = (first.mode, first.classifier.classes, first.segmenter.classes)
        if (other.mode, other.classifier.classes, other.segmenter.classes) != same:
            raise RecipeError(
                f"{other.label} differs from {first.label} in mode or classes; pool folds of one training"
            )


def try_rules(evaluation: Evaluation) -> Tried:
    """The curve, and the point with the least overkill at the stated escape target."""
    if not evaluation.rows:
        return Tried([], None, Rate(0, 0))
    shown = evaluation.shown()
    swept = sweep(shown, evaluation.grid)
    chosen = choose(swept, evaluation.settings.escape_target)
    if chosen is None:
        return Tried([], None, Rate(0, 0), evaluation.box_sweep.best())
    ok = escaped(shown, evaluation.grid, chosen.rules)
    return Tried(curve(swept), chosen, by_part(evaluation.parts, ok, evaluation.defective))
