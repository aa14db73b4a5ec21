"""What one picture's regions come to under every rule of a grid: none, within the acceptance rules, or against them.

Regions depend on the classifier's threshold only through the tiles it lets pass, so they are found once for each set
of tiles; score and area then only leave some out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.examine import Examined
from pipeline.messages import Defect
from pipeline.operating_point import ACCEPTED, BROKEN, NOTHING, Grid
from pipeline.postprocess import judge
from pipeline.recipe import Recipe

States = npt.NDArray[np.uint8]


def regions_by_rule(examined: Examined, recipe: Recipe, grid: Grid) -> States:
    """uint8 [thresholds, min_scores, min_areas]: NOTHING, ACCEPTED or BROKEN.

    In mode `classify` a tile at the threshold is itself what breaks the rules.
    """
    states = np.zeros(grid.shape[:3], np.uint8)
    if recipe.mode == "classify":
        states[np.array(grid.thresholds) <= examined.p_defect] = BROKEN
        return states
    known: dict[tuple[int, ...], States] = {}
    for place, threshold in enumerate(grid.thresholds):
        loose = with_rules(recipe, threshold, 0.0, 1)
        suspects = examined.suspects(loose)
        if suspects not in known:
            known[suspects] = _states(examined.findings(loose).defects, loose, grid)
        states[place] = known[suspects]
    return states


def with_rules(
    recipe: Recipe, threshold: float, min_score: float, min_area_px: int, ng_above: float | None = None
) -> Recipe:
    """The recipe at other rules; `ng_above` None: as it is."""
    rules = replace(recipe.judge, min_score=min_score, min_area_px=min_area_px)
    if ng_above is not None:
        rules = replace(rules, ng_above=ng_above)
    return replace(recipe, classifier=replace(recipe.classifier, threshold=threshold), judge=rules)


def _states(defects: Sequence[Defect], recipe: Recipe, grid: Grid) -> States:
    """[min_scores, min_areas] of the regions that a set of tiles shows."""
    scores = np.array([defect.score for defect in defects])
    areas = np.array([defect.area_px for defect in defects])
    kept = (scores[:, None, None] >= np.array(grid.min_scores)[:, None]) & (
        areas[:, None, None] >= np.array(grid.min_areas)
    )
    if not recipe.accept or not defects:
        return np.where(kept.any(axis=0), BROKEN, NOTHING).astype(np.uint8)
    states = np.zeros(kept.shape[1:], np.uint8)
    known: dict[bytes, int] = {}
    for s, a in np.ndindex(*states.shape):
        mark = kept[:, s, a].tobytes()
        if mark not in known:
            known[mark] = _state([d for d, keep in zip(defects, kept[:, s, a], strict=True) if keep], recipe)
        states[s, a] = known[mark]
    return states


def _state(defects: Sequence[Defect], recipe: Recipe) -> int:
    if not defects:
        return NOTHING
    return BROKEN if judge(defects, 0.0, recipe)[0] == "NG" else ACCEPTED
