"""A comparison of two runs on the terminal; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.messages import JUDGEMENTS
from pipeline.replay import ReplayCounts
from pipeline.shown import counted, safe
from pipeline.spans import Spans
from pipeline.verdict_diff import VerdictDiff

MOST_CLASSES = 8


def show_diff(console: Console, diff: VerdictDiff) -> None:
    """What changed, the worst first."""
    for line in diff_lines(diff):
        console.print(Text(line), soft_wrap=True)
    if diff.flipped:
        console.print(_judgements(diff))
        changed = [(pair, count) for pair, count in diff.classes.most_common() if pair[0] != pair[1]]
        for (before, after), count in changed[:MOST_CLASSES]:
            console.print(Text(f"  class {safe(before or 'none')} → {safe(after or 'none')}: {count}"))


def diff_lines(diff: VerdictDiff) -> Iterator[str]:
    """Its facts, a line each."""
    for said, counter in zip(("before", "after "), diff.recipes, strict=True):
        yield f"{said}  {safe(', '.join(name for name, _ in counter.most_common(3)) or 'no recipe named')}"
    alike = "all the same to the last bit" if diff.alike == diff.frames else f"{diff.alike} the same to the last bit"
    yield f"{counted(diff.frames, 'frame')} compared, {alike}"
    if diff.without_before:
        yield f"{counted(diff.without_before, 'frame')} had no verdict before"
    yield f"{counted(diff.flipped, 'flip')}: {diff.escapes} from NG to OK, {diff.overkill} from OK to NG"
    if diff.mean_iou is not None:
        yield f"masks: mean IoU {diff.mean_iou:.4f} over {counted(sum(diff.ious), 'frame')} with any"
    if any(diff.shifts):
        yield f"P(defect): largest change {diff.largest_shift:+.4g}"
    yield f"latency before: {spans(diff.latency_before)}"
    yield f"latency after:  {spans(diff.latency_after)}"


def spans(of: Spans) -> str:
    """Percentiles in words."""
    if not of.count:
        return "unknown"
    return f"p50 {of.percentile_ms(50):.1f} ms, p99 {of.percentile_ms(99):.1f} ms"


def replay_lines(counts: ReplayCounts, speed: float) -> Iterator[str]:
    """What a replay has done, a line each."""
    yield f"{counted(counts.offered, 'frame')} offered, {counts.judged} judged"
    if counts.without_pixels:
        yield f"{counted(counts.without_pixels, 'frame')} left out: recorded without pixels"
    if counts.unreadable:
        yield f"{counted(counts.unreadable, 'frame')} left out: unreadable header"
    if speed and counts.late.count:
        late = counts.late
        told = f"p50 {late.percentile_ms(50):.2f} ms, p99 {late.percentile_ms(99):.2f} ms"
        yield f"handed on after their time: {told}, at most {late.longest_ns / 1e6:.2f} ms"


def _judgements(diff: VerdictDiff) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("before \\ after", style="dim")
    for name in JUDGEMENTS:
        table.add_column(name, justify="right")
    for before in JUDGEMENTS:
        counts = [diff.kinds[before, after] for after in JUDGEMENTS]
        if any(counts):
            table.add_row(before, *(str(count or "·") for count in counts))
    return table
