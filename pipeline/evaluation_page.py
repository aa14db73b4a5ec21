"""An evaluation as one page that needs nothing beside it: pictures lie in it, and no script runs; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as plain

from pipeline.evaluation import Evaluation, Tried
from pipeline.evaluation_tables import number, remarks, share
from pipeline.gate import GatePoint
from pipeline.operating_point import NEVER, Point
from pipeline.page_frame import data_uri, document, picture, table
from pipeline.worst_misses import Miss, draw_miss


def page(evaluation: Evaluation, tried: Tried, curve_png: bytes | None) -> str:
    """The whole report as HTML; without matplotlib there is no curve, but its table."""
    title = f"{', '.join(evaluation.recipes)} on {evaluation.settings.side} pictures"
    count, parts = len(evaluation.rows), len(set(evaluation.parts))
    sections = [
        f"<h1>{plain(title)}</h1><p class=sub>{count:,} pictures of {parts:,} parts</p>",
        *(f"<p class=remark>{plain(remark)}</p>" for remark in remarks(evaluation)),
        _tiles(evaluation),
        "<h2>Classes</h2>" + _classes(evaluation),
        "<h2>True class (rows), and what was said</h2>" + _confusion(evaluation),
        "<h2>Escape against overkill</h2>" + _curve(tried, curve_png),
        *(["<h2>The classifier alone as a gate</h2>" + _gate(gate)] if (gate := evaluation.gate) else []),
        "<h2>Worst misses</h2>" + _gallery(evaluation.misses.kept),
    ]
    return document(title, sections)


def _tiles(evaluation: Evaluation) -> str:
    agreement, review = evaluation.agreement, evaluation.review
    facts = [
        ("escape", share(evaluation.escape.share), f"{evaluation.escape}", f"parts: {evaluation.escape_parts}"),
        ("overkill", share(evaluation.overkill.share), f"{evaluation.overkill}", f"parts: {evaluation.overkill_parts}"),
        ("REVIEW", share(review.share), f"{review.count} of {review.total}", "counted as neither"),
    ]
    right = evaluation.confusion
    facts.append(("accuracy", share(right.accuracy_good_bad), "good or bad", f"by class {share(right.accuracy)}"))
    if agreement.known:
        aware = f"by class {number(agreement.class_aware_dice)}"
        facts.append(("Dice, pooled", number(agreement.defect_dice), "defective or good", aware))
        alone = f"segmenter alone {number(evaluation.alone.mean_iou)}"
        facts.append(("mean IoU", number(agreement.mean_iou), "of the defect classes there", alone))
    if evaluation.boxes_known:
        boxes = evaluation.boxes
        both = f"precision {number(boxes.precision)}, recall {number(boxes.recall)}"
        facts.append((f"F1 of boxes, IoU {boxes.least_iou:g}", number(boxes.f1), both, ""))
        facts.append(("mAP", number(evaluation.ranked.mean_ap), f"{sum(boxes.true.values()):,} true boxes", ""))
    tiles = [
        f"<div class=tile><span>{plain(name)}</span><b>{plain(value)}</b>"
        f"{plain(first)}<br><span>{plain(second)}</span></div>"
        for name, value, first, second in facts
    ]
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _classes(evaluation: Evaluation) -> str:
    boxes = evaluation.boxes_known
    rows = [["class", "pictures", "rightly good or bad", "class right", "Dice", "IoU", *["AP"] * boxes]]
    names, agreement = evaluation.names.classes, evaluation.agreement
    for name, rate in evaluation.found_per_class.items():
        index = names.index(name) if name in names else 0
        pixels = index > 0 and agreement.known
        rows.append([
            name,
            f"{rate.total:,}",
            str(rate) if rate.total else "–",
            share(evaluation.confusion.recall(index)) if index or name == names[0] else "–",
            number(agreement.dice(index) if pixels else None),
            number(agreement.iou(index) if pixels else None),
            *[number(evaluation.ranked.ap(index) if index else None)] * boxes,
        ])  # fmt: skip
    return table(rows)


def _confusion(evaluation: Evaluation) -> str:
    names, counts = evaluation.names.classes, evaluation.confusion.counts
    rows = []
    for index, name in enumerate(names):
        total = int(counts[index].sum())
        if not total:
            continue
        cells = []
        for column, count in enumerate(counts[index]):
            colour = "55, 178, 77" if column == index else "224, 49, 49"
            shade = f" style='background: rgba({colour}, {0.08 + 0.55 * count / total:.2f})'" if count else ""
            cells.append(f"<td{shade}>{count if count else '·'}</td>")
        rows.append(f"<tr><td>{plain(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{plain(name)}</th>" for name in ("", *names, "REVIEW"))
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _curve(tried: Tried, png: bytes | None) -> str:
    if not tried.curve:
        return "<p>It takes good and defective pictures.</p>"
    image = f"<p><img class=figure alt='escape against overkill' src='{data_uri(png)}'></p>" if png else ""
    rows = [["overkill", "escape", "REVIEW", "threshold", "min score", "min area px", "NG above"]]
    rows += [_point(point) for point in tried.curve]
    place = next((n for n, point in enumerate(tried.curve) if tried.chosen and point.rules == tried.chosen.rules), None)
    return image + table(rows, place) + _chosen(tried)


def _gate(points: Sequence[GatePoint]) -> str:
    rows = [["threshold", "recall", "precision", "sent on"]]
    rows += [[f"{p.threshold:g}", str(p.recall), share(p.precision.share), share(p.sent.share)] for p in points]
    return table(rows, None)


def _point(point: Point) -> list[str]:
    rules = point.rules
    above = "never" if rules.ng_above >= NEVER else f"{rules.ng_above:g}"
    rates = [share(rate.share) for rate in (point.overkill, point.escape, point.review)]
    return [*rates, f"{rules.threshold:g}", f"{rules.min_score:g}", str(rules.min_area_px), above]


def _chosen(tried: Tried) -> str:
    if not (chosen := tried.chosen):
        return ""
    met = "Chosen" if chosen.meets_target else "No rules meet the target; chosen for the least escape"
    said = f"{met}: escape {chosen.escape}, parts {tried.chosen_parts}; overkill {chosen.overkill}."
    return f"<p>{plain(said)}</p>"


def _gallery(misses: Sequence[Miss]) -> str:
    if not misses:
        return "<p>None.</p>"
    legend = "<p class=sub>outlines: <span class=true>true</span>, <span class=found>found</span></p>"
    return f"{legend}<div class=gallery>{''.join(_figure(miss) for miss in misses)}</div>"


def _figure(miss: Miss) -> str:
    dice = f" · Dice {miss.dice:.3f}" if miss.dice is not None else ""
    wrong = f"<b class={miss.wrong}>{miss.wrong}</b> · " if miss.wrong else ""
    facts = f"{miss.true_class}, judged {miss.said} · P(defect) {miss.p_defect:.3f}{dice}"
    caption = f"{wrong}{plain(facts)}<br>{plain(miss.image)}"
    return f"<figure>{picture(draw_miss(miss))}<figcaption>{caption}</figcaption></figure>"
