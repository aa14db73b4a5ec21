"""Which rules to run a recipe with: escapes and overkill over a grid of them, and the point to choose; pure.

An escape is a defective picture judged OK, overkill a good one judged NG; REVIEW is neither and counted apart. The
intervals are exact (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404): few defects look like few defects.
Exposures of one part are not independent, so they are counted as parts too: a part has escaped when any of its
pictures has, which is the worst that the line, seeing one of them, could meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NEVER = 1.01
NOTHING, ACCEPTED, BROKEN = 0, 1, 2  # what a picture's regions are under the rules: none, within them, against them


@dataclass(frozen=True)
class Rules:
    """The four numbers that an operating point sets."""

    threshold: float  # classifier.threshold
    min_score: float  # judge.min_score
    min_area_px: int  # judge.min_area_px
    ng_above: float  # judge.ng_above


@dataclass(frozen=True)
class Grid:
    """Rules that are tried: every combination; each axis ascending."""

    thresholds: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    min_scores: tuple[float, ...] = (0.0, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    min_areas: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    ng_aboves: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, NEVER)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Length of each axis."""
        return len(self.thresholds), len(self.min_scores), len(self.min_areas), len(self.ng_aboves)

    def rules(self, place: Sequence[int]) -> Rules:
        """The rules at a place of the grid."""
        t, s, a, n = (int(step) for step in place)
        return Rules(self.thresholds[t], self.min_scores[s], self.min_areas[a], self.ng_aboves[n])

    def with_rules(self, some: Iterable[Rules]) -> Grid:
        """The grid with these rules' own numbers among its steps."""
        some = list(some)
        return Grid(
            tuple(sorted({*self.thresholds, *(rules.threshold for rules in some)})),
            tuple(sorted({*self.min_scores, *(rules.min_score for rules in some)})),
            tuple(sorted({*self.min_areas, *(rules.min_area_px for rules in some)})),
            tuple(sorted({*self.ng_aboves, *(rules.ng_above for rules in some)})),
        )


def grid_for(mode: str, present: Sequence[Rules]) -> Grid:
    """What a mode's judgement depends on varies; the rest stays as it is at present (1…n rules, one a recipe)."""
    grid, held = Grid().with_rules(present), Grid((), (), (), ()).with_rules(present[:1])
    if mode == "classify":
        return replace(held, thresholds=grid.thresholds)
    if mode == "segment":
        return replace(held, min_scores=grid.min_scores, min_areas=grid.min_areas)
    return grid


@dataclass(frozen=True, eq=False)
class Shown:
    """What the rules have to work on, over N pictures; computed once, whatever rules are tried."""

    regions: npt.NDArray[np.uint8]  # [N, thresholds, min_scores, min_areas]: NOTHING, ACCEPTED or BROKEN
    p_defect: npt.NDArray[np.float64]  # [N] of the worst tile; 0 where it decides nothing by itself
    review_above: npt.NDArray[np.float64]  # [N] of the recipe that judged the picture
    defective: Mask  # [N]
    parts: tuple[str, ...]  # [N] name of the physical part


@dataclass(frozen=True)
class Rate:
    """`count` of `total`, and how far that can be trusted."""

    count: int
    total: int

    @property
    def share(self) -> float | None:
        """None where there was nothing to be counted."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 % confidence."""
        return exact_interval(self.count, self.total) if self.total else None

    def __str__(self) -> str:
        """
        >>> str(Rate(0, 12)), str(Rate(5, 155)), str(Rate(0, 0))
        ('0 of 12 (95 %: 0 – 26 %)', '5 of 155 = 3.2 % (95 %: 1.1 – 7.4 %)', 'none of that kind')
        """
        if self.share is None or self.interval is None:
            return "none of that kind"
        low, high = (_percent(end) for end in self.interval)
        share = f" = {_percent(self.share)} %" if self.count else ""
        return f"{self.count} of {self.total}{share} (95 %: {low} – {high} %)"


def _percent(share: float) -> str:
    """Two digits, without more promise than that."""
    value = 100 * share
    return f"{value:.0f}" if value >= 9.95 or not value else f"{value:.1f}" if value >= 0.095 else f"{value:.2g}"


@dataclass(frozen=True)
class Point:
    """Rules, and what they would have done."""

    rules: Rules
    escape: Rate
    overkill: Rate
    review: Rate
    meets_target: bool = True


@dataclass(frozen=True, eq=False)
class Sweep:
    """Counts of pictures over the whole grid."""

    grid: Grid
    escapes: Counts  # [thresholds, min_scores, min_areas, ng_aboves]
    overkill: Counts
    review: Counts
    defective: int
    good: int

    def point(self, place: Sequence[int], meets_target: bool = True) -> Point:
        """The figures at one place."""
        at = tuple(int(step) for step in place)
        rates = (
            Rate(int(self.escapes[at]), self.defective),
            Rate(int(self.overkill[at]), self.good),
            Rate(int(self.review[at]), self.defective + self.good),
        )
        return Point(self.grid.rules(at), *rates, meets_target)


def sweep(shown: Shown, grid: Grid) -> Sweep:
    """Count what every rule of the grid would have done."""
    escapes, overkill, review = (np.zeros(grid.shape, np.int64) for _ in range(3))
    nothing = (shown.regions == NOTHING).reshape(len(shown.parts), -1)
    accepted, broken = shown.regions == ACCEPTED, shown.regions == BROKEN
    always_ok, always_ng = accepted[shown.defective].sum(axis=0), broken[~shown.defective].sum(axis=0)
    for n, ng_above in enumerate(grid.ng_aboves):
        ng = shown.p_defect >= ng_above
        asked = ~ng & (shown.p_defect >= shown.review_above)
        escapes[..., n] = always_ok + _weighed(shown.defective & ~ng & ~asked, nothing, grid)
        overkill[..., n] = always_ng + _weighed(~shown.defective & ng, nothing, grid)
        review[..., n] = _weighed(asked, nothing, grid)
    defective = int(shown.defective.sum())
    return Sweep(grid, escapes, overkill, review, defective, len(shown.parts) - defective)


def _weighed(pictures: Mask, nothing: Mask, grid: Grid) -> Counts:
    """[thresholds, min_scores, min_areas] How many of these pictures have no region."""
    return nothing[pictures].sum(axis=0, dtype=np.int64).reshape(grid.shape[:3])


def curve(swept: Sweep) -> list[Point]:
    """Escape against overkill: points that no other beats in one without losing in the other, least overkill first."""
    pairs = np.unique(np.stack([swept.overkill.ravel(), swept.escapes.ravel()], axis=1), axis=0)
    points, fewest = [], swept.defective + 1
    for overkill, escapes in pairs:
        if escapes < fewest:
            fewest = int(escapes)
            points.append(swept.point(_best_place(swept, (swept.overkill == overkill) & (swept.escapes == escapes))))
    return points


def choose(swept: Sweep, escape_target: float) -> Point | None:
    """Least overkill among the rules whose escape meets the target; least escape where none does.

    None where there is no defective or no good picture: rules cannot be weighed then.
    """
    if not swept.defective or not swept.good:
        return None
    meets = swept.escapes <= escape_target * swept.defective + 1e-9
    if meets.any():
        wanted = meets & (swept.overkill == swept.overkill[meets].min())
    else:
        wanted = swept.escapes == swept.escapes.min()
        wanted &= swept.overkill == swept.overkill[wanted].min()
    wanted &= swept.escapes == swept.escapes[wanted].min()
    return swept.point(_best_place(swept, wanted), bool(meets.any()))


def _best_place(swept: Sweep, wanted: Mask) -> tuple[int, ...]:
    """Of equally good rules those with the least REVIEW, then amid their plateau, then the roundest."""
    wanted = wanted & (swept.review == swept.review[wanted].min())
    margin = sum((_margin(wanted, axis) for axis in range(wanted.ndim)), np.zeros(wanted.shape, np.int64))
    deepest = [tuple(int(step) for step in place) for place in np.argwhere(wanted & (margin == margin[wanted].max()))]
    return min(deepest, key=lambda place: (_signs(swept.grid.rules(place)), place))


def _margin(wanted: Mask, axis: int) -> Counts:
    """Steps to the nearer end of the run of wanted rules along one axis; the end of the grid is an end."""
    lines = np.moveaxis(wanted, axis, 0)
    up, down = np.zeros(lines.shape, np.int64), np.zeros(lines.shape, np.int64)
    for step in range(len(lines)):
        back = len(lines) - 1 - step
        up[step] = np.where(lines[step], 1 + (up[step - 1] if step else 0), 0)
        down[back] = np.where(lines[back], 1 + (down[back + 1] if step else 0), 0)
    return np.moveaxis(np.minimum(up, down), 0, axis)


def _signs(rules: Rules) -> int:
    """How many signs it takes to write them down: the fewer, the rounder."""
    return sum(len(f"{getattr(rules, each.name):g}") for each in fields(rules))


def escaped(shown: Shown, grid: Grid, rules: Rules) -> Mask:
    """[N] Would these rules, which are of the grid, have judged the picture OK although it is defective?"""
    t = grid.thresholds.index(rules.threshold)
    s = grid.min_scores.index(rules.min_score)
    a = grid.min_areas.index(rules.min_area_px)
    regions = shown.regions[:, t, s, a]
    unsuspected = shown.p_defect < np.minimum(rules.ng_above, shown.review_above)
    return shown.defective & ((regions == ACCEPTED) | ((regions == NOTHING) & unsuspected))


def by_part(parts: Sequence[str], hit: Mask, among: Mask) -> Rate:
    """Parts with at least one picture in `hit`, of the parts with one in `among`."""
    names = np.array(parts)
    return Rate(len(set(names[hit & among])), len(set(names[among])))


def exact_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson: every probability under which `count` or fewer, and `count` or more, is no rarity.

    >>> [round(end, 4) for end in exact_interval(0, 12)]
    [0.0, 0.2646]
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"no interval for {count} of {total}")
    rare = (1 - confidence) / 2
    high = _solve(lambda p: _at_most(count, total, p) >= rare) if count < total else 1.0
    low = 1 - _solve(lambda p: _at_most(total - count, total, p) >= rare) if count else 0.0
    return low, high


def _solve(holds: Callable[[float], bool]) -> float:
    """The probability up to which it holds, by bisection to the last bit."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _at_most(count: int, total: int, p: float) -> float:
    """P(X ≤ count) of `total` trials at probability 0 < p < 1."""
    k = np.arange(count + 1)
    ways = np.cumsum([0.0, *np.log((total - k[1:] + 1) / k[1:])])  # log of `total` over k
    return float(np.exp(ways + k * math.log(p) + (total - k) * math.log1p(-p)).sum())
