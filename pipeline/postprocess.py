"""From labels and scores to defects, and from defects to a judgement by the recipe's rules; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from engines import rle
from pipeline.messages import Defect, Judgement
from pipeline.recipe import Accept, Recipe

Gray8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Findings:
    """Everything the segmenter found in one frame."""

    defects: tuple[Defect, ...] = ()
    masks: Mapping[str, rle.Runs] = field(default_factory=dict)
    mask_shape: tuple[int, int] = (0, 0)


def find_defects(labels: Gray8, confidence: Gray8, recipe: Recipe) -> Findings:
    """Connected regions (8-neighbourhood) per class of labels [H, W], with mean confidence [H, W] ÷ 255.

    Regions below the recipe's `min_area_px` or `min_score` are noise: neither listed nor in the masks.
    """
    defects: list[Defect] = []
    masks: dict[str, rle.Runs] = {}
    for index in np.flatnonzero(np.bincount(labels.ravel(), minlength=2)):
        if 0 < index <= len(recipe.defect_classes):
            name = recipe.defect_classes[index - 1]
            found, kept = _regions(labels == index, confidence, name, recipe)
            if found:
                defects += found
                masks[name] = rle.encode(kept)
    return Findings(tuple(defects), masks, (labels.shape[0], labels.shape[1]))


def _regions(
    mask: npt.NDArray[np.bool_], confidence: Gray8, name: str, recipe: Recipe
) -> tuple[list[Defect], npt.NDArray[np.bool_]]:
    count, regions, stats, centroids = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    sums = np.bincount(regions.ravel(), weights=confidence.ravel(), minlength=count)
    keep = np.zeros(count, dtype=bool)
    defects = []
    for i in range(1, count):
        area = int(stats[i, cv2.CC_STAT_AREA])
        score = float(sums[i]) / (255 * area)
        if area >= recipe.judge.min_area_px and score >= recipe.judge.min_score:
            keep[i] = True
            defects.append(_defect(name, score, stats[i], centroids[i], regions, i, recipe.optics.um_per_px))
    return defects, keep[regions]


def _defect(
    name: str,
    score: float,
    stats: Sequence[int],
    centroid: Sequence[float],
    regions: npt.NDArray[np.int32],
    index: int,
    um_per_px: float,
) -> Defect:
    x, y, width, height, area = (int(value) for value in stats)
    mm = um_per_px / 1000
    ys, xs = np.nonzero(regions[y : y + height, x : x + width] == index)
    _, sides, _ = cv2.minAreaRect(np.stack([xs, ys], axis=1).astype(np.float32))
    return Defect(
        class_name=name,
        score=round(score, 4),
        bbox=(x, y, width, height),
        area_px=area,
        centroid=(round(float(centroid[0]), 2), round(float(centroid[1]), 2)),
        area_mm2=area * mm * mm,
        length_mm=(max(sides) + 1) * mm,  # minAreaRect measures between pixel centres
        width_mm=(min(sides) + 1) * mm,
    )


def judge(
    defects: Sequence[Defect], p_defect: float, recipe: Recipe, scores: Sequence[float] = ()
) -> tuple[Judgement, str]:
    """(judgement, reason) of one frame: NG names the first class that broke its rule.

    Without a region, the likeliest defect class of `scores`: the classifier's, of the tile whose P(defect) this is.
    """
    for name in dict.fromkeys(defect.class_name for defect in defects):
        of_class = [defect for defect in defects if defect.class_name == name]
        if not _acceptable(of_class, [rule for rule in recipe.accept if rule.class_name == name]):
            return "NG", name
    if not defects and p_defect >= recipe.judge.ng_above:
        return "NG", _likeliest_defect(scores, recipe)
    if not defects and p_defect >= recipe.judge.review_above:
        return "REVIEW", "no_region"
    return "OK", ""


def _acceptable(defects: Sequence[Defect], rules: Sequence[Accept]) -> bool:
    """Every defect must fall under some rule, and no rule may have to take more than its count."""
    taken: list[list[Defect]] = [[] for _ in rules]

    def place(defect: Defect, tried: set[int]) -> bool:
        """Under a rule with room, or by moving another defect to a rule of its own (augmenting path)."""
        for i, rule in enumerate(rules):
            if i in tried or not _within(defect, rule):
                continue
            tried.add(i)
            if len(taken[i]) < rule.max_count:
                taken[i].append(defect)
                return True
            for k, other in enumerate(taken[i]):
                if place(other, tried):
                    taken[i][k] = defect
                    return True
        return False

    return all(place(defect, set()) for defect in defects)


def _within(defect: Defect, rule: Accept) -> bool:
    x, y = defect.centroid
    in_zone = not rule.zone or (
        rule.zone[0] <= x < rule.zone[0] + rule.zone[2] and rule.zone[1] <= y < rule.zone[1] + rule.zone[3]
    )
    short = not rule.max_length_mm or defect.length_mm <= rule.max_length_mm
    return in_zone and short and defect.area_px <= rule.max_area_px


def judge_scores(scores: Sequence[float], recipe: Recipe) -> tuple[Judgement, str]:
    """(judgement, reason) in mode `classify`: NG from the threshold on, named by the likeliest defect class."""
    if 1.0 - scores[0] < recipe.classifier.threshold:
        return "OK", ""
    return "NG", _likeliest_defect(scores, recipe)


def _likeliest_defect(scores: Sequence[float], recipe: Recipe) -> str:
    return recipe.classifier.classes[1 + int(np.argmax(scores[1:]))]


def audited(frame_id: str, share: float) -> bool:
    """Is this frame in the random share that the segmenter sees although the classifier passed it?

    Drawn from the frame's id, so that a replay draws the same frames. BLAKE2, because a plain multiplicative
    hash (FNV-1a) hardly moves with the last digits and would draw a thousand neighbours together or none.
    """
    digest = hashlib.blake2b(frame_id.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48) < share
