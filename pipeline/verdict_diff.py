"""What changed between two verdicts of each frame, and between two of a whole shift; reads no stream and no file.

A flip is a change of judgement. One from NG to OK is a possible escape, one from OK to NG possible overkill: against
what was said before, not against the truth. Memory does not grow with the shift but with the flips that are kept.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.messages import JUDGEMENTS, Verdict
from pipeline.spans import Spans

# by whom, on what and when it was said: what may differ between two verdicts that say the same
WHO_AND_WHEN = {
    *("recipe", "engine", "device", "worker", "batch_size", "deliveries"),
    *("received_ns", "batched_ns", "inferred_ns", "settled_ns"),
}
ESCAPE, OVERKILL = ("NG", "OK"), ("OK", "NG")
SEVERITY = {ESCAPE: 0, ("NG", "UNINSPECTED"): 1, ("REVIEW", "OK"): 2, ("NG", "REVIEW"): 3, OVERKILL: 4}
KEEP_FLIPS = 200
IOU_BINS = 10
SHIFT_EDGES = (-1.0, -0.5, -0.2, -0.1, -0.05, -0.01, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def said_alike(before: Verdict, after: Verdict) -> bool:
    """Is every word the same, to the last bit of scores and masks? By whom and when it was said does not matter."""
    return _words(before) == _words(after)


def _words(verdict: Verdict) -> dict[str, Any]:
    facts = {name: getattr(verdict, name) for name in verdict.__slots__ if name not in WHO_AND_WHEN}
    facts["masks"] = {name: runs.tobytes() for name, runs in verdict.masks.items()}
    facts["frame"] = verdict.frame.frame_id
    return facts


def main_class(verdict: Verdict) -> str:
    """The class that a verdict is about: of its largest defect, else of its best score when it is not OK."""
    if verdict.defects:
        return max(verdict.defects, key=lambda defect: defect.area_px).class_name
    if verdict.judgement in ("OK", "UNINSPECTED") or not verdict.scores:
        return ""
    defective = dict(itertools.islice(verdict.scores.items(), 1, None))
    return max(defective, key=lambda name: defective[name], default="")


def mask_iou(before: Verdict, after: Verdict) -> float | None:
    """Intersection over union of all that is marked, in px; None where neither marks anything.

    Jaccard, "The distribution of the flora in the alpine zone", New Phytologist 11 (1912).
    """
    if not before.masks and not after.masks:
        return None
    if before.masks and after.masks and before.mask_shape != after.mask_shape:
        return 0.0
    one, other = (v.mask() if v.masks else None for v in (before, after))
    if one is None or other is None:
        return 0.0
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else None


def p_defect(verdict: Verdict) -> float | None:
    """Of the first class, which is the good one, what is left to 1; None without scores."""
    good = next(iter(verdict.scores.values()), None)
    return None if good is None else 1.0 - float(good)


@dataclass(frozen=True)
class Flip:
    """A frame of which something else is said now."""

    before: Verdict
    after: Verdict
    iou: float | None

    @property
    def kind(self) -> tuple[str, str]:
        return self.before.judgement, self.after.judgement

    def as_json(self) -> dict[str, Any]:
        frame = self.after.frame
        return {
            "frame_id": frame.frame_id, "name": frame.name, "lot": frame.lot, "panel": frame.panel,
            "before": self.before.judgement, "before_reason": self.before.reason,
            "before_class": main_class(self.before),
            "after": self.after.judgement, "after_reason": self.after.reason,
            "after_class": main_class(self.after),
            "iou": None if self.iou is None else round(self.iou, 4),
        }  # fmt: skip


@dataclass
class VerdictDiff:
    """Two verdicts of each frame in by `add`; what changed, added up."""

    keep_flips: int = KEEP_FLIPS
    frames: int = 0
    alike: int = 0  # to the last bit
    without_before: int = 0  # nothing was said of them then
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # (before, after) → frames, also unchanged ones
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)  # of main_class, where either has one
    ious: list[int] = field(default_factory=lambda: [0] * IOU_BINS)
    iou_sum: float = 0.0
    shifts: list[int] = field(default_factory=lambda: [0] * (len(SHIFT_EDGES) - 1))
    largest_shift: float = 0.0
    latency_before: Spans = field(default_factory=Spans)  # from offer to verdict
    latency_after: Spans = field(default_factory=Spans)
    recipes: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    _flips: list[tuple[int, int, Flip]] = field(default_factory=list, repr=False)  # heap, the least severe first

    def add(self, before: Verdict | None, after: Verdict) -> None:
        """One frame's two verdicts."""
        if before is None:
            self.without_before += 1
            return
        self.frames += 1
        self.alike += said_alike(before, after)
        self.kinds[before.judgement, after.judgement] += 1
        for counter, verdict in zip(self.recipes, (before, after), strict=True):
            counter[f"{verdict.recipe} · {verdict.engine}" if verdict.recipe else ""] += 1
        if any(classes := (main_class(before), main_class(after))):
            self.classes[classes] += 1
        iou = mask_iou(before, after)
        if iou is not None:
            self.ious[min(int(iou * IOU_BINS), IOU_BINS - 1)] += 1
            self.iou_sum += iou
        self._add_shift(p_defect(before), p_defect(after))
        for spans, verdict in ((self.latency_before, before), (self.latency_after, after)):
            if verdict.frame.offered_ns and verdict.settled_ns:
                spans.add(verdict.settled_ns - verdict.frame.offered_ns)
        if before.judgement != after.judgement:
            self._keep(Flip(before, after, iou))

    def _add_shift(self, before: float | None, after: float | None) -> None:
        if before is None or after is None:
            return
        shift = after - before
        self.largest_shift = max(self.largest_shift, shift, key=abs)
        self.shifts[min(max(int(np.searchsorted(SHIFT_EDGES, shift, "right")) - 1, 0), len(self.shifts) - 1)] += 1

    def _keep(self, flip: Flip) -> None:
        """The most severe, and of those the first."""
        row = (-SEVERITY.get(flip.kind, 5), -self.frames, flip)
        if len(self._flips) < self.keep_flips:
            heapq.heappush(self._flips, row)
        elif self.keep_flips:
            heapq.heappushpop(self._flips, row)

    @property
    def flips(self) -> list[Flip]:
        """Those kept, the most severe first."""
        return [flip for _, _, flip in sorted(self._flips, key=lambda row: row[:2], reverse=True)]

    @property
    def flipped(self) -> int:
        """All of them, kept or not."""
        return sum(count for (before, after), count in self.kinds.items() if before != after)

    @property
    def escapes(self) -> int:
        return self.kinds[ESCAPE]

    @property
    def overkill(self) -> int:
        return self.kinds[OVERKILL]

    @property
    def mean_iou(self) -> float | None:
        """Over frames on which either marks anything."""
        total = sum(self.ious)
        return self.iou_sum / total if total else None

    def as_json(self) -> dict[str, Any]:
        """Plain values; the flips that were kept among them."""
        names: Mapping[str, Counter[str]] = dict(zip(("before", "after"), self.recipes, strict=True))
        return {
            "frames": self.frames, "alike": self.alike, "without_before": self.without_before, "flipped": self.flipped,
            "escapes": self.escapes, "overkill": self.overkill,
            "judgements": {one: {other: self.kinds[one, other] for other in JUDGEMENTS} for one in JUDGEMENTS},
            "classes": [{"before": b, "after": a, "frames": n} for (b, a), n in self.classes.most_common()],
            "recipes": {name: dict(counter) for name, counter in names.items()},
            "mask_iou": {"mean": None if self.mean_iou is None else round(self.mean_iou, 4), "tenths": self.ious},
            "p_defect_shift": {"edges": SHIFT_EDGES, "frames": self.shifts, "largest": round(self.largest_shift, 6)},
            "latency": {"before": self.latency_before.as_json(), "after": self.latency_after.as_json()},
            "flips": [flip.as_json() for flip in self.flips],
        }  # fmt: skip
