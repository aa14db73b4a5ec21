"""Which frames of which shift files a command is about, and those frames in the order they were offered."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.messages import JUDGEMENTS
from pipeline.options import option
from pipeline.shift_files import files_of
from pipeline.shift_format import Recorded, Row, identity
from pipeline.shift_reader import FOREVER, Shift, open_shift
from pipeline.shown import safe


@dataclass(frozen=True)
class Wanted:
    """Which frames of a shift; empty: any."""

    from_ns: int = 0
    to_ns: int = FOREVER
    lots: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    judgements: tuple[str, ...] = ()

    @property
    def only_time(self) -> bool:
        """Does nothing but the time decide?"""
        return self == Wanted(self.from_ns, self.to_ns)

    def takes(self, row: Row) -> bool:
        return (
            self.from_ns <= row.time_ns < self.to_ns
            and (not self.lots or row.lot in self.lots)
            and (not self.panels or row.panel in self.panels)
            and (not self.ids or row.frame_id in self.ids)
            and (not self.judgements or row.judgement in self.judgements)
        )


def when_ns(text: str) -> int:
    """Nanoseconds since 1970 of an ISO time (local unless it says otherwise) or of such a number itself."""
    if text.isdecimal():
        return int(text)
    try:
        return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1e6) * 1000
    except ValueError:
        raise click.BadParameter(f"{text!r}: give a time such as 2025-03-01T22:15:00, or ns since 1970") from None


def wanted_options(command: Any) -> Any:
    """The command is given `wanted`."""

    @wraps(command)
    def with_wanted(
        start: str, end: str, lot: tuple[str, ...], panel: tuple[str, ...], frame: tuple[str, ...],
        judgement: tuple[str, ...], **others: Any,
    ) -> Any:  # fmt: skip
        span = when_ns(start) if start else 0, when_ns(end) if end else FOREVER
        return command(wanted=Wanted(*span, lot, panel, frame, judgement), **others)

    decorated: Any = with_wanted
    for decorate in (
        option("--judgement", type=click.Choice(JUDGEMENTS), multiple=True, help="Only frames judged so."),
        option("--frame", multiple=True, help="Only this frame id."),
        option("--panel", multiple=True, help="Only this panel."),
        option("--lot", multiple=True, help="Only this lot."),
        option("--to", "end", default="", help="Only frames offered before this time."),
        option("--from", "start", default="", help="Only frames offered from this time on."),
    ):
        decorated = decorate(decorated)
    return decorated


def frames_of(path: Path, wanted: Wanted) -> Iterator[Recorded]:
    """The wanted frames of a file or a folder in the order they were offered; damage is told on stderr.

    A file holds frames in the order of their verdicts, so two may overlap in time: those that do are read together.
    """
    shifts = sorted((open_shift(file) for file in files_of(path)), key=lambda shift: shift.start_ns)
    if wanted.only_time:
        yield from in_order(shifts, lambda shift: shift.recorded(wanted.from_ns, wanted.to_ns))
    else:
        yield from in_order(shifts, lambda shift: shift.chosen(wanted.takes))


@dataclass(order=True)
class _Open:
    """A file that is being read, at its next frame."""

    time_ns: int
    number: int
    recorded: Recorded = field(compare=False)
    rest: Iterator[Recorded] = field(compare=False)
    shift: Shift = field(compare=False)


def in_order(shifts: Sequence[Shift], read: Callable[[Shift], Iterator[Recorded]]) -> Iterator[Recorded]:
    """What `read` gives of shifts that are sorted by their start, merged by time; opens each when it is its turn."""
    heap, later = list[_Open](), list(reversed(shifts))
    while later or heap:
        while later and (not heap or later[-1].start_ns <= heap[0].time_ns):
            shift = later.pop()
            _go_on(heap, len(later), read(shift), shift)
        if heap:
            first = heapq.heappop(heap)
            yield first.recorded
            _go_on(heap, first.number, first.rest, first.shift)


def _go_on(heap: list[_Open], number: int, rest: Iterator[Recorded], shift: Shift) -> None:
    """The file at its next frame; at its end, what was found damaged is told."""
    if (recorded := next(rest, None)) is None:
        tell_damage(shift)
    else:
        heapq.heappush(heap, _Open(identity(recorded.header)[3], number, recorded, rest, shift))


def tell_damage(found: Shift) -> None:
    for line in found.damage:
        click.echo(f"damaged: {safe(line)}", err=True)
