"""An evaluation as one flat object of plain values: null where nothing was there to be counted, never NaN."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.evaluation import Evaluation, Tried
from pipeline.gate import GatePoint
from pipeline.operating_point import Point, Rate


def as_json(evaluation: Evaluation, tried: Tried) -> dict[str, Any]:
    """What `aoi evaluate --json` prints; shares 0…1, intervals of 95 % as [low, high]."""
    return {
        "n": len(evaluation.rows),
        "recipes": list(evaluation.recipes),
        "side": evaluation.settings.side,
        "classes": list(evaluation.data_classes),
        **_pixels_json(evaluation),
        **_judgements_json(evaluation),
        **_boxes_json(evaluation),
        "escape_target": evaluation.settings.escape_target,
        "chosen": tried.chosen and _point_json(tried.chosen, tried.chosen_parts),
        "gate": [_gate_json(point) for point in evaluation.gate],
        "chosen_by_boxes": tried.boxes and asdict(tried.boxes),
        "curve": [_point_json(point) for point in tried.curve],
        "remarks": list(evaluation.remarks),
        "problems": [{"path": problem.path, "reason": problem.reason} for problem in evaluation.problems],
    }


def _pixels_json(evaluation: Evaluation) -> dict[str, Any]:
    agreement, alone = evaluation.agreement, evaluation.alone
    defects = list(enumerate(evaluation.names.classes))[1:]
    return {
        "dice": agreement.defect_dice,
        "dice_class_aware": agreement.class_aware_dice,
        "miou": agreement.mean_iou,
        "iou_per_class": {name: agreement.iou(index) if agreement.known else None for index, name in defects},
        "dice_per_class": {name: agreement.dice(index) if agreement.known else None for index, name in defects},
        "true_px_per_class": {name: int(agreement.true[index]) for index, name in defects},
        "dice_image_mean": agreement.mean_image_dice,
        "dice_image_mean_all_empty": agreement.mean_image_dice_of_nothing,
        "dice_segmenter_alone": alone.defect_dice,
        "dice_class_aware_segmenter_alone": alone.class_aware_dice,
        "miou_segmenter_alone": alone.mean_iou,
    }


def _judgements_json(evaluation: Evaluation) -> dict[str, Any]:
    names, confusion = evaluation.names.classes, evaluation.confusion
    found = evaluation.found_per_class
    return {
        "n_per_class": {name: rate.total for name, rate in found.items()},
        "found_per_class": {name: rate.share for name, rate in found.items()},
        "escape": evaluation.escape.share,
        "escapes": evaluation.escape.count,
        "defective": evaluation.escape.total,
        "overkill": evaluation.overkill.share,
        "overkills": evaluation.overkill.count,
        "good": evaluation.overkill.total,
        "review": evaluation.review.share,
        "reviews": evaluation.review.count,
        "escape_interval": _ends(evaluation.escape),
        "overkill_interval": _ends(evaluation.overkill),
        "parts": len(set(evaluation.parts)),
        "escape_parts": [evaluation.escape_parts.count, evaluation.escape_parts.total],
        "overkill_parts": [evaluation.overkill_parts.count, evaluation.overkill_parts.total],
        "escape_interval_parts": _ends(evaluation.escape_parts),
        "overkill_interval_parts": _ends(evaluation.overkill_parts),
        "accuracy": confusion.accuracy,
        "accuracy_good_bad": confusion.accuracy_good_bad,
        "recall_per_class": {name: confusion.recall(index) for index, name in enumerate(names)},
        "confusion": {
            true: dict(zip((*names, "REVIEW"), map(int, confusion.counts[index]), strict=True))
            for index, true in enumerate(names)
        },
    }


def _boxes_json(evaluation: Evaluation) -> dict[str, Any]:
    if not evaluation.boxes_known:
        return {}
    defects = list(enumerate(evaluation.names.classes))[1:]
    return {
        "precision": evaluation.boxes.precision,
        "recall": evaluation.boxes.recall,
        "f1": evaluation.boxes.f1,
        "map": evaluation.ranked.mean_ap,
        "ap_per_class": {name: evaluation.ranked.ap(index) for index, name in defects},
        "boxes_per_class": {name: evaluation.boxes.true.get(index, 0) for index, name in defects},
        "iou_threshold": evaluation.settings.least_iou,
        "merge_px": evaluation.settings.merge_px,
        "pad_px": evaluation.settings.pad_px,
    }


def _point_json(point: Point, parts: Rate | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "threshold": point.rules.threshold,
        "min_score": point.rules.min_score,
        "min_area_px": point.rules.min_area_px,
        "ng_above": point.rules.ng_above,
        "escape": point.escape.share,
        "overkill": point.overkill.share,
        "review": point.review.share,
    }
    if parts is not None:
        facts["meets_target"] = point.meets_target
        facts["escape_interval"] = _ends(point.escape)
        facts["overkill_interval"] = _ends(point.overkill)
        facts["escape_interval_parts"] = _ends(parts)
    return facts


def _gate_json(point: GatePoint) -> dict[str, Any]:
    return {
        "threshold": point.threshold,
        "recall": point.recall.share,
        "recall_interval": _ends(point.recall),
        "precision": point.precision.share,
        "sent": point.sent.share,
    }


def _ends(rate: Rate) -> list[float] | None:
    return None if rate.interval is None else list(rate.interval)
