"""A comparison of two runs as one page, each flip with both its pictures side by side; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as plain
from itertools import pairwise

from pipeline.diff_tables import spans
from pipeline.messages import JUDGEMENTS, Verdict
from pipeline.page_frame import document, table
from pipeline.verdict_diff import ESCAPE, IOU_BINS, OVERKILL, SHIFT_EDGES, Flip, VerdictDiff, main_class

Pictures = Mapping[str, tuple[str, str]]  # frame id → elements with what was marked before and after
CLASS_OF = {ESCAPE: "escape", OVERKILL: "overkill"}


def diff_page(diff: VerdictDiff, title: str, pictures: Pictures, in_rhythm: bool) -> str:
    """The whole report as HTML."""
    sections = [
        f"<h1>{plain(title)}</h1>",
        *_runs(diff),
        *_remarks(diff, in_rhythm),
        _tiles(diff),
        "<h2>Judgements: before (rows) and after</h2>" + _judgements(diff),
        "<h2>Classes</h2>" + _classes(diff),
        "<h2>Masks: IoU of all that was marked</h2>" + _bars(_iou_bins(diff)),
        "<h2>P(defect): after minus before</h2>" + _bars(_shift_bins(diff)),
        "<h2>Flips</h2>" + _flips(diff, pictures),
    ]
    return document(title, sections)


def _runs(diff: VerdictDiff) -> list[str]:
    rows = []
    for said, counter in zip(("before", "after"), diff.recipes, strict=True):
        names = ", ".join(f"{name or 'no recipe named'} ({count:,})" for name, count in counter.most_common())
        rows.append(f"<p class=sub>{said}: {plain(names or 'nothing')}</p>")
    return rows


def _remarks(diff: VerdictDiff, in_rhythm: bool) -> list[str]:
    told = ["A flip is a change from what was said before, not from what is true."]
    if diff.without_before:
        told.append(f"{diff.without_before:,} frames had no verdict before and are not compared.")
    if not in_rhythm:
        told.append("Frames were offered as fast as the line took them: latencies after are not those of a line.")
    return [f"<p class=remark>{plain(text)}</p>" for text in told]


def _tiles(diff: VerdictDiff) -> str:
    same = f"{diff.alike:,} the same to the last bit"
    facts = [
        ("flips", f"{diff.flipped:,}", f"of {diff.frames:,} frames, {same}"),
        ("NG → OK", f"{diff.escapes:,}", "possible escapes"),
        ("OK → NG", f"{diff.overkill:,}", "possible overkill"),
        ("mean IoU", "–" if diff.mean_iou is None else f"{diff.mean_iou:.3f}", f"{sum(diff.ious):,} frames with masks"),
        ("largest change", f"{diff.largest_shift:+.3g}", "of P(defect)"),
        ("latency p50", _p50(diff), f"before {spans(diff.latency_before)}; after {spans(diff.latency_after)}"),
    ]
    return f"<div class=tiles>{''.join(_tile(*map(plain, fact)) for fact in facts)}</div>"


def _tile(name: str, value: str, told: str) -> str:
    return f"<div class=tile><span>{name}</span><b>{value}</b><span>{told}</span></div>"


def _p50(diff: VerdictDiff) -> str:
    both = diff.latency_before, diff.latency_after
    return " → ".join(f"{of.percentile_ms(50):.1f}" if of.count else "–" for of in both) + " ms"


def _judgements(diff: VerdictDiff) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", *JUDGEMENTS))
    rows = []
    for before in JUDGEMENTS:
        cells = []
        for after in JUDGEMENTS:
            count = diff.kinds[before, after]
            colour = "55, 178, 77" if before == after else "224, 49, 49"
            shade = f" style='background: rgba({colour}, 0.25)'" if count else ""
            cells.append(f"<td{shade}>{f'{count:,}' if count else '·'}</td>")
        if any(diff.kinds[before, after] for after in JUDGEMENTS):
            rows.append(f"<tr><td>{before}</td>{''.join(cells)}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _classes(diff: VerdictDiff) -> str:
    if not diff.classes:
        return "<p>No class was named.</p>"
    rows = [["before", "after", "frames"]]
    rows += [[before or "none", after or "none", f"{n:,}"] for (before, after), n in diff.classes.most_common(40)]
    return table(rows)


def _iou_bins(diff: VerdictDiff) -> list[tuple[str, int]]:
    return [(f"{n / IOU_BINS:.1f} … {(n + 1) / IOU_BINS:.1f}", count) for n, count in enumerate(diff.ious)]


def _shift_bins(diff: VerdictDiff) -> list[tuple[str, int]]:
    names = [f"{low:+g} … {high:+g}" for low, high in pairwise(SHIFT_EDGES)]
    return list(zip(names, diff.shifts, strict=True))


def _bars(bins: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in bins), default=0)
    if not most:
        return "<p>None.</p>"
    rows = []
    for name, count in bins:
        bar = f"<div class=bar style='width: {14 * count / most:.2f}rem'></div>"
        rows.append(f"<tr><td>{plain(name)}</td><td>{f'{count:,}' if count else '·'}</td><td>{bar}</td></tr>")
    return f"<div class=wide><table class=bars>{''.join(rows)}</table></div>"


def _flips(diff: VerdictDiff, pictures: Pictures) -> str:
    if not diff.flips:
        return "<p>None.</p>"
    left = diff.flipped - len(diff.flips)
    more = f"<p class=sub>{left:,} more are counted above but not shown.</p>" if left else ""
    return f"<div class=flips>{''.join(_flip(flip, pictures) for flip in diff.flips)}</div>{more}"


def _flip(flip: Flip, pictures: Pictures) -> str:
    frame, (before, after) = flip.after.frame, flip.kind
    iou = "" if flip.iou is None else f" · IoU {flip.iou:.3f}"
    where = " · ".join(filter(None, [frame.name, frame.lot and f"lot {frame.lot}", frame.panel, frame.frame_id]))
    shown = "".join(pictures.get(frame.frame_id, ()))
    kind = f"<b class={CLASS_OF.get(flip.kind, 'flip')}>{before} → {after}</b>"
    caption = f"{kind} · {plain(_why(flip.before))} → {plain(_why(flip.after))}{iou}<br>{plain(where)}"
    return f"<figure><div class=pair>{shown}</div><figcaption>{caption}</figcaption></figure>"


def _why(verdict: Verdict) -> str:
    return ", ".join(filter(None, dict.fromkeys((main_class(verdict), verdict.reason)))) or "nothing found"
