"""How well models find defects against how faint these are: simulated pictures of every contrast, one curve a model.

Contrast-to-noise ratio: the grey levels that a defect adds over the deviation of the noise. Every model sees the same
pictures, by the line's own preparation and tiling; a box filter with the best fixed threshold is the mark to beat.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.machine import describe_machine, describe_project
from bench.report import make_folder
from engines.datasets import open_dataset
from engines.datasets.contrast_curve import contrast_curve
from engines.datasets.labelled import Problem
from engines.datasets.low_contrast import LowContrast, write_folder
from engines.datasets.low_contrast_rules import box_threshold, pooled_dice
from pipeline.errors import DiskError, ReportError
from pipeline.examine import examine
from pipeline.opening import open_engines
from pipeline.recipe import Recipe

Mask = npt.NDArray[np.bool_]
Tell = Callable[[str], None]  # what is measured next
SCHEMA, KIND = 1, "cnr"
BOX_FILTER = "box filter 17×17"
THRESHOLDS = np.arange(0.6, 4.0, 0.2)  # grey levels over the background, of which the box filter has the best


@dataclass(frozen=True)
class Plan:
    """What is shown to whom."""

    recipes: Sequence[tuple[str, Recipe]]
    generator: LowContrast
    pictures: int
    steps: int  # of the curve, evenly spread over the generator's contrasts


@dataclass(frozen=True)
class Curve:
    """One model: pooled Dice in all, and by contrast-to-noise ratio."""

    name: str
    dice: float
    by_step: tuple[float | None, ...]
    recall_by_step: tuple[float | None, ...]  # share of defects of which half or more was found


@dataclass(frozen=True)
class CnrReport:
    """What came out; `edges` are contrast-to-noise ratios, one more than steps."""

    created: str  # ISO 8601, UTC
    machine: dict[str, Any]
    project: dict[str, Any]
    generator: dict[str, Any]
    pictures: int
    edges: tuple[float, ...]
    defects: tuple[int, ...]  # in each step
    curves: tuple[Curve, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {"schema": SCHEMA, "kind": KIND, **asdict(self)}


def measure_curves(plan: Plan, tell: Tell) -> CnrReport:
    """Show every model the same pictures. Raises EngineError, ReportError for one that cannot be examined."""
    created = datetime.now(timezone.utc)
    drawn = [plan.generator.picture(number) for number in range(plan.pictures)]
    low, high = (each / plan.generator.noise_sigma for each in plan.generator.contrast)
    edges = np.linspace(low, high + 1e-6, plan.steps + 1)
    edges[0] -= 1e-6

    def curve(name: str, found: Sequence[Mask]) -> tuple[Curve, tuple[int, ...]]:
        shown = ((mask, each.numbers, each.contrast_to_noise) for mask, each in zip(found, drawn, strict=True))
        points, _ = contrast_curve(shown, edges.tolist())
        dice = pooled_dice((mask, each.labels > 0) for mask, each in zip(found, drawn, strict=True))
        by_step, recall = tuple(point.dice for point in points), tuple(point.recall() for point in points)
        return Curve(name, dice, by_step, recall), tuple(len(point.outcomes) for point in points)

    tell(BOX_FILTER)
    background = plan.generator.background
    filtered = [[box_threshold(each.pixels, background, above=above) for each in drawn] for above in THRESHOLDS]
    best = max(filtered, key=lambda masks: pooled_dice((m, e.labels > 0) for m, e in zip(masks, drawn, strict=True)))
    mark, defects = curve(BOX_FILTER, best)
    curves = [mark]
    with tempfile.TemporaryDirectory(prefix="aoi-bench-") as scratch:
        write_folder(plan.generator, Path(scratch) / "faint", plan.pictures)
        for name, recipe in plan.recipes:
            tell(name)
            curves.append(curve(name, list(_found(recipe, Path(scratch) / "faint")))[0])
    return CnrReport(
        created=created.isoformat(timespec="seconds"),
        machine=describe_machine(),
        project=describe_project(),
        generator=asdict(plan.generator),
        pictures=plan.pictures,
        edges=tuple(edges.tolist()),
        defects=defects,
        curves=tuple(curves),
    )


def _found(recipe: Recipe, folder: Path) -> Iterator[Mask]:
    """Where the recipe marks a defect, picture by picture, before its rules leave any out."""
    data = open_dataset(folder)
    samples = sorted(data.samples, key=lambda sample: sample.image)
    with open_engines(recipe) as engines:
        for answer in examine(recipe, engines, data, samples):
            if isinstance(answer, Problem):
                raise ReportError(f"{recipe.name} cannot examine a simulated picture: {answer.reason}")
            if answer.labels is None:
                raise ReportError(f"{recipe.name} marks no pixels; give a model with a segmenter")
            yield answer.gated(recipe)[0] > 0


def save(report: CnrReport, folder: Path) -> Path:
    """Write the report's JSON into the folder; DiskError when that cannot be done."""
    make_folder(folder)
    when = report.created.replace("-", "").replace(":", "").partition("+")[0]
    path = folder / f"cnr-{when}.json"
    try:
        path.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"report cannot be written to {path}: {error.strerror}; choose another --out") from error
    return path
