"""An evaluation as one page that needs nothing beside it: pictures lie in it, and no script runs; computes nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape as plain

import cv2

from pipeline.evaluation import Evaluation, Tried
from pipeline.evaluation_tables import number, remarks, share
from pipeline.gate import GatePoint
from pipeline.operating_point import NEVER, Point
from pipeline.worst_misses import Miss, draw_miss

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #d9dee4; --ground: #fff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #3a444f; --ground: #16191d; --card: #1f2429; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 68rem; padding: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p.sub, figcaption { color: var(--soft); } p.sub { margin: .2rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
tr.chosen td { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; } .tile span { color: var(--soft); }
.remark { border-left: 3px solid #e0a100; padding: .1rem .8rem; margin: .3rem 0; }
img.figure { max-width: 100%; width: 46rem; border-radius: .5rem; background: #fff; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; overflow: hidden; }
figure img { width: 100%; height: 15rem; object-fit: contain; background: #0b0d0f; display: block; }
figcaption { padding: .5rem .7rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); } .escape { color: #d1495b; } .overkill { color: #c98a00; }
.true { color: #37b24d; } .found { color: #e03131; }
"""


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
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{plain(title)}</title>"
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


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
    return _table(rows)


def _table(rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    head = "".join(f"<th>{plain(cell)}</th>" for cell in rows[0])
    body = [
        f"<tr{' class=chosen' if number == chosen else ''}>{''.join(f'<td>{plain(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows[1:])
    ]
    return f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div>"


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
    image = f"<p><img class=figure alt='escape against overkill' src='{_data_uri(png)}'></p>" if png else ""
    rows = [["overkill", "escape", "REVIEW", "threshold", "min score", "min area px", "NG above"]]
    rows += [_point(point) for point in tried.curve]
    place = next((n for n, point in enumerate(tried.curve) if tried.chosen and point.rules == tried.chosen.rules), None)
    return image + _table(rows, place) + _chosen(tried)


def _gate(points: Sequence[GatePoint]) -> str:
    rows = [["threshold", "recall", "precision", "sent on"]]
    rows += [[f"{p.threshold:g}", str(p.recall), share(p.precision.share), share(p.sent.share)] for p in points]
    return _table(rows, None)


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
    _, data = cv2.imencode(".jpg", draw_miss(miss), [cv2.IMWRITE_JPEG_QUALITY, 88])
    dice = f" · Dice {miss.dice:.3f}" if miss.dice is not None else ""
    wrong = f"<b class={miss.wrong}>{miss.wrong}</b> · " if miss.wrong else ""
    facts = f"{miss.true_class}, judged {miss.said} · P(defect) {miss.p_defect:.3f}{dice}"
    caption = f"{wrong}{plain(facts)}<br>{plain(miss.image)}"
    return f"<figure><img alt='' src='{_data_uri(data.tobytes(), 'jpeg')}'><figcaption>{caption}</figcaption></figure>"


def _data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
