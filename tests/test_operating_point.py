"""Escapes and overkill over a grid of rules, the point that is chosen, and how far figures can be trusted."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.operating_point import (
    ACCEPTED,
    BROKEN,
    NEVER,
    NOTHING,
    Grid,
    Point,
    Rate,
    Rules,
    Shown,
    Sweep,
    by_part,
    choose,
    curve,
    escaped,
    exact_interval,
    grid_for,
    sweep,
)

SMALL = Grid((0.1, 0.5), (0.0, 0.5, 0.9), (1, 10), (0.8, NEVER))


def shown(regions: np.ndarray, p_defect: list[float], defective: list[bool], review_above: float = NEVER) -> Shown:
    n = len(defective)
    columns = np.array(p_defect), np.full(n, review_above), np.array(defective)
    return Shown(regions.astype(np.uint8), *columns, tuple("p" * n))


# -------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 12, 0.0, 0.2646),  # 1 - 0.025 ** (1 / 12)
        (12, 12, 0.7354, 1.0),
        (1, 10, 0.0025, 0.4450),  # the textbook's table of exact 95 % limits
        (5, 10, 0.1871, 0.8129),
        (10, 100, 0.0490, 0.1762),
    ],
)
def test_interval_is_that_of_the_tables(count: int, total: int, low: float, high: float) -> None:
    """Clopper and Pearson's limits, to four decimals."""
    assert exact_interval(count, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60)
def test_at_its_ends_the_interval_is_as_rare_as_stated(counted: tuple[int, int]) -> None:
    """P(X ≥ count) at the lower end and P(X ≤ count) at the upper one are 2.5 %, summed term by term."""
    count, total = counted
    low, high = exact_interval(count, total)

    def chance(k: int, p: float) -> float:
        return comb(total, k) * p**k * (1 - p) ** (total - k)

    assert 0 <= low <= count / total <= high <= 1
    if count:
        assert sum(chance(k, low) for k in range(count, total + 1)) == pytest.approx(0.025, rel=1e-6)
    if count < total:
        assert sum(chance(k, high) for k in range(count + 1)) == pytest.approx(0.025, rel=1e-6)


def test_interval_of_nothing_is_refused() -> None:
    """No total, or more than the total."""
    for count, total in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no interval"):
            exact_interval(count, total)


def test_few_defects_look_like_few_defects() -> None:
    """The interval stands beside every count."""
    assert str(Rate(0, 12)) == "0 of 12 (95 %: 0 – 26 %)"
    assert str(Rate(0, 0)) == "none of that kind"
    assert (Rate(0, 0).share, Rate(0, 0).interval) == (None, None)
    assert str(Rate(2, 2)) == "2 of 2 = 100 % (95 %: 16 – 100 %)"


def test_a_part_has_escaped_when_any_of_its_pictures_has() -> None:
    """Exposures of one part count once, and only parts with a picture among those in question."""
    parts = ["a", "a", "a", "b", "b", "c"]
    hit = np.array([False, True, True, False, False, True])
    among = np.array([True, True, True, True, True, False])
    assert by_part(parts, hit, among) == Rate(1, 2)


# ------------------------------------------------------------------------ sweep


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_sweep_counts_what_judging_picture_by_picture_would(seed: int) -> None:
    """Broken rules: NG; accepted regions: OK; no region: NG, REVIEW or OK by the worst tile."""
    rng = np.random.default_rng(seed)
    n = 7
    some = shown(
        rng.integers(0, 3, (n, *SMALL.shape[:3])),
        rng.choice([0.0, 0.7, 0.8, 0.95], n).tolist(),
        (rng.random(n) < 0.5).tolist(),
        review_above=0.75,
    )
    swept = sweep(some, SMALL)
    for t, s, a, g in np.ndindex(*SMALL.shape):
        counts = {"OK": [0, 0], "NG": [0, 0], "REVIEW": [0, 0]}
        ok = np.zeros(n, bool)
        for i in range(n):
            state, p = some.regions[i, t, s, a], some.p_defect[i]
            said = {BROKEN: "NG", ACCEPTED: "OK"}.get(int(state)) or (
                "NG" if p >= SMALL.ng_aboves[g] else "REVIEW" if p >= 0.75 else "OK"
            )
            counts[said][int(some.defective[i])] += 1
            ok[i] = said == "OK" and some.defective[i]
        assert swept.escapes[t, s, a, g] == counts["OK"][1]
        assert swept.overkill[t, s, a, g] == counts["NG"][0]
        assert swept.review[t, s, a, g] == sum(counts["REVIEW"])
        np.testing.assert_array_equal(escaped(some, SMALL, SMALL.rules((t, s, a, g))), ok)


def swept_with(escapes: np.ndarray, overkill: np.ndarray, grid: Grid, review: np.ndarray | None = None) -> Sweep:
    zero = np.zeros(grid.shape, np.int64)
    return Sweep(grid, zero + escapes, zero + overkill, zero if review is None else zero + review, 100, 200)


LINE = Grid((0.5,), (0.0, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6), (1,), (NEVER,))


def along(*values: int) -> np.ndarray:
    """Counts along the scores of LINE."""
    return np.array(values).reshape(1, 7, 1, 1)


def test_curve_keeps_what_nothing_beats() -> None:
    """Least overkill first, ever fewer escapes, dominated rules left out."""
    escapes, overkill = along(0, 1, 1, 5, 5, 9, 9), along(40, 9, 12, 9, 3, 3, 0)
    points = curve(swept_with(escapes, overkill, LINE))
    assert [(p.overkill.count, p.escape.count) for p in points] == [(0, 9), (3, 5), (9, 1), (40, 0)]
    assert [p.rules.min_score for p in points] == [0.6, 0.45, 0.1, 0.0]
    assert points[0].overkill == Rate(0, 200)
    assert points[0].escape == Rate(9, 100)


def test_least_overkill_that_meets_the_target_is_chosen() -> None:
    """At 2 % of 100: at most 2 escapes; the target itself is met."""
    escapes, overkill = along(0, 1, 2, 3, 5, 9, 9), along(40, 20, 12, 9, 3, 3, 0)
    chosen = choose(swept_with(escapes, overkill, LINE), 0.02)
    assert chosen is not None
    assert (chosen.rules.min_score, chosen.escape.count, chosen.overkill.count) == (0.2, 2, 12)
    assert chosen.meets_target


def test_target_out_of_reach_gives_the_least_escape() -> None:
    """And says so; among equals the least overkill."""
    escapes, overkill = along(6, 6, 5, 5, 8, 9, 9), along(40, 20, 12, 9, 3, 3, 0)
    chosen = choose(swept_with(escapes, overkill, LINE), 0.02)
    assert chosen is not None
    assert (chosen.escape.count, chosen.overkill.count, chosen.meets_target) == (5, 9, False)


def test_middle_of_a_plateau_is_chosen() -> None:
    """Five scores do equally well: the third, from which both ends are farthest."""
    chosen = choose(swept_with(along(9, 1, 1, 1, 1, 1, 9), along(0, 0, 0, 0, 0, 0, 0), LINE), 0.02)
    assert chosen is not None
    assert chosen.rules.min_score == 0.3


def test_of_two_middles_the_rounder_is_chosen() -> None:
    """0.45 and 0.5 lie equally deep."""
    chosen = choose(swept_with(along(9, 9, 9, 1, 1, 1, 1), along(0, 0, 0, 0, 0, 0, 0), LINE), 0.02)
    assert chosen is not None
    assert chosen.rules.min_score == 0.5


def test_rules_that_send_fewer_to_a_person_are_preferred() -> None:
    """REVIEW is work too: before any plateau."""
    review = along(5, 5, 5, 5, 5, 5, 4)
    chosen = choose(swept_with(along(1, 1, 1, 1, 1, 1, 1), along(0, 0, 0, 0, 0, 0, 0), LINE, review), 0.02)
    assert chosen is not None
    assert chosen.rules.min_score == 0.6


def test_chosen_point_lies_on_the_curve() -> None:
    """With the same rules, whatever the counts."""
    rng = np.random.default_rng(1)
    grid = Grid()
    for target in (0.0, 0.1, 0.4):
        regions = rng.integers(0, 3, (40, *grid.shape[:3]))
        swept = sweep(shown(regions, rng.random(40).tolist(), (np.arange(40) < 15).tolist()), grid)
        chosen = choose(swept, target)
        assert chosen is not None
        assert chosen.rules in [point.rules for point in curve(swept)]


@pytest.mark.parametrize("defective", [True, False])
def test_nothing_is_chosen_without_both_kinds(defective: bool) -> None:
    """All good or all defective: overkill or escape cannot be weighed."""
    regions = np.full((3, *SMALL.shape[:3]), NOTHING)
    assert choose(sweep(shown(regions, [0.0] * 3, [defective] * 3), SMALL), 0.02) is None


def test_grid_varies_what_the_mode_depends_on() -> None:
    """And always holds the present rules."""
    present = Rules(0.33, 0.77, 33, 0.999)
    classify, segment, cascade = (grid_for(mode, [present]) for mode in ("classify", "segment", "cascade"))
    assert classify.shape[1:] == (1, 1, 1)
    assert (segment.shape[0], segment.shape[3]) == (1, 1)
    for grid in (classify, segment, cascade):
        assert 0.33 in grid.thresholds
        assert 0.77 in grid.min_scores
        assert 33 in grid.min_areas
        assert 0.999 in grid.ng_aboves
    assert len(grid_for("cascade", [present, Rules(0.34, 0.77, 33, 0.999)]).thresholds) == len(cascade.thresholds) + 1


def test_point_reads_like_its_place() -> None:
    """Rules and rates of one place of the grid."""
    swept = swept_with(along(0, 1, 2, 3, 4, 5, 6), along(9, 8, 7, 6, 5, 4, 3), LINE)
    assert swept.point((0, 4, 0, 0)) == Point(Rules(0.5, 0.45, 1, NEVER), Rate(4, 100), Rate(5, 200), Rate(0, 300))
