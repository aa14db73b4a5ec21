"""Many durations in little memory: counted by size, so that percentiles of a whole night need no list of them."""

from __future__ import annotations

import math

STEPS = 32  # bins in each doubling: a percentile is right to 1.1 %
LEAST_NS, DOUBLINGS = 1000, 40  # from 1 µs to 12 days; what is shorter or longer counts as that


class Spans:
    """Durations in ns, by size. What is negative (a clock was set) counts as the least."""

    def __init__(self) -> None:
        self.count, self.longest_ns = 0, 0
        self._bins = [0] * (STEPS * DOUBLINGS)

    def add(self, span_ns: int) -> None:
        self.count += 1
        self.longest_ns = max(self.longest_ns, span_ns)
        step = int(STEPS * math.log2(span_ns / LEAST_NS)) if span_ns > LEAST_NS else 0
        self._bins[min(step, len(self._bins) - 1)] += 1

    def percentile_ms(self, percent: float) -> float:
        """So many per cent are at most this, in ms, by nearest rank; the middle of its bin. NaN: there are none."""
        rank = max(1, math.ceil(percent / 100 * self.count))
        for step, count in enumerate(self._bins):
            rank -= count
            if rank <= 0:
                middle: float = LEAST_NS * 2 ** ((step + 0.5) / STEPS)
                return min(middle, self.longest_ns) / 1e6
        return math.nan

    def as_json(self) -> dict[str, float | int | None]:
        """Count, and p50, p90, p99 and the longest in ms; null where there are none."""
        shares = {f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)}
        known = {**shares, "max_ms": self.longest_ns / 1e6}
        return {"count": self.count, **{name: round(v, 3) if self.count else None for name, v in known.items()}}
