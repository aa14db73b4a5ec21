"""A recorded shift judged by a recipe on a line of its own: workers started, frames offered, verdicts paired."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pipeline.crew import Crew
from pipeline.errors import ShiftError, StreamDown
from pipeline.messages import Verdict
from pipeline.recipe import load_recipe
from pipeline.replay import Replay, ReplayCounts
from pipeline.shift_format import Recorded, identity
from pipeline.shift_reader import open_shift
from pipeline.shift_writer import ShiftWriter
from pipeline.stream import Limits, Stream, open_stream

Judged = Callable[[Recorded, Verdict], None]
LOOK_AHEAD = 4096  # earlier verdicts held while the one of a frame is looked for
SLOWEST_START_S = 300.0


@dataclass(frozen=True)
class Line:
    """Where a shift is judged again. Without a recipe somebody else's workers do it."""

    url: str
    name: str
    recipe: str = ""
    workers: int = 1
    options: tuple[str, ...] = ()  # of `aoi work`


@dataclass(frozen=True)
class Manner:
    """How frames are offered: `speed` times as fast as they were; 0: as fast as the line takes them."""

    speed: float = 0.0
    keep_deadlines: bool = False


def judge_again(
    line: Line,
    recorded: Iterable[Recorded],
    manner: Manner,
    judged: Judged,
    look: Callable[[ReplayCounts], None] = lambda counts: None,
    stop: threading.Event | None = None,
) -> ReplayCounts:
    """Offer a shift to the line until each frame has its verdict; returns what was done.

    Raises ShiftError when the line has had frames of this shift before, and what a worker that failed said.
    """
    stop = stop or threading.Event()
    with tempfile.TemporaryDirectory(prefix="aoi-replay-") as folder:
        limits = _limits(line, manner)
        stream = open_stream(line.url, line.name, limits=limits)
        names = [f"worker {n + 1}" for n in range(line.workers)] if line.recipe else []
        command = ["work", "--recipe", line.recipe, "--line", line.name, *line.options]
        crew = Crew(dict.fromkeys(names, command), Path(folder) / "workers.log", {"AOI_URL": line.url})
        try:
            for name in names:
                crew.start(name)
            _wait_for_workers(stream, crew, len(names), stop)
            replay = Replay(stream, recorded, manner.speed, manner.keep_deadlines, stop)
            counts = replay.run(judged, lambda: _look(crew, look, replay.counts))
        finally:
            crew.stop()
            stream.close()
    if counts.not_taken:
        why = "it has had them, or the recorded order is not that of their numbers"
        raise ShiftError(f"line {line.name} did not take {counts.not_taken} frames: {why}; give another --line")
    return counts


def _look(crew: Crew, look: Callable[[ReplayCounts], None], counts: ReplayCounts) -> None:
    crew.look()
    look(counts)


def _limits(line: Line, manner: Manner) -> Limits:
    """Of a line that is ours and has no rhythm to keep: enough frames for the engines, few enough that none waits."""
    if not line.recipe or manner.speed:
        return Limits()
    batching = load_recipe(line.recipe).batching
    return Limits(max_frames=3 * batching.max_batch * batching.in_flight * line.workers)


def _wait_for_workers(stream: Stream, crew: Crew, count: int, stop: threading.Event) -> None:
    """Until they are warm: the rhythm of the shift must not begin before."""
    ends_at = time.monotonic() + SLOWEST_START_S
    while count and not stop.wait(0.05) and time.monotonic() < ends_at:
        crew.look()
        try:
            if len(stream.audit().workers) >= count:
                return
        except StreamDown:
            continue


def with_verdicts_of(recorded: Iterable[Recorded], path: Path) -> Iterator[Recorded]:
    """The same frames with the verdicts of another shift file in place of their own; both in the same order."""
    others, ahead = open_shift(path).recorded(), dict[str, Recorded]()
    for each in recorded:
        frame_id = identity(each.header)[0]
        if frame_id not in ahead:
            for other in islice(others, LOOK_AHEAD - len(ahead)):
                ahead[name := identity(other.header)[0]] = other
                if name == frame_id:
                    break
        found = ahead.pop(frame_id, None)
        yield replace(each, verdict=found.verdict if found else None)


class VerdictFile:
    """Keeps the verdicts of a run, without pixels, to be compared with those of another.

    They are told as if they had been given when the frames were recorded: as long after the offer as they took now.
    """

    def __init__(self, path: Path) -> None:
        self._writer = ShiftWriter(path)

    def add(self, recorded: Recorded, verdict: Verdict) -> None:
        settled_ns = identity(recorded.header)[3] + verdict.settled_ns - verdict.frame.offered_ns
        told = Recorded(recorded.header, verdict=replace(verdict, settled_ns=max(0, settled_ns)).body())
        self._writer.add(told, verdict.judgement, settled_ns)

    def close(self) -> None:
        self._writer.close()
