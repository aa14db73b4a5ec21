"""`aoi replay`: a recorded shift onto a line again, and what is said of it now beside what was said then."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.broker import Broker
from pipeline.connected import on_signal
from pipeline.diff_output import Bounds, both_pictures, comparison, write_page
from pipeline.diff_tables import replay_lines, show_diff
from pipeline.errors import AoiError, Exit, WireError
from pipeline.judge_again import Judged, Line, Manner, VerdictFile, judge_again, with_verdicts_of
from pipeline.messages import Verdict
from pipeline.options import as_json, option
from pipeline.recipe import load_recipe
from pipeline.replay import ReplayCounts
from pipeline.shift_choice import Wanted, frames_of, wanted_options
from pipeline.shift_format import Recorded
from pipeline.verdict_diff import VerdictDiff

MOST_PICTURES = 60


@click.command()
@click.argument("path", metavar="SHIFT", type=click.Path(path_type=Path))
@wanted_options
@option("--recipe", envvar="AOI_REPLAY_RECIPE", default="", help="Judge with it, by workers started for this.")
@option("--workers", type=click.IntRange(1, 64), default=1, help="With --recipe: how many.")
@option("--line", default="replay", help="Line to offer to; not one that has had these frames.")
@option("--url", envvar="AOI_URL", default="", help="Redis of that line; without one a Redis for this run alone.")
@option("--speed", type=click.FloatRange(0), default=0.0, help="Times the recorded rhythm; 0: as fast as it goes.")
@option("--deadlines", is_flag=True, help="Frames have as long as they had; without it none is late.")
@option("--against", default="", help="Compare with what was `recorded`, or with the verdicts of another RECIPE.")
@comparison
@as_json
def replay(
    path: Path,
    wanted: Wanted,
    recipe: str,
    workers: int,
    line: str,
    url: str,
    speed: float,
    deadlines: bool,
    against: str,
    report: Path | None,
    bounds: Bounds,
    as_json: bool,
) -> int:
    """Offer the frames of SHIFT again, with their ids and trigger times, and compare the verdicts.

    \b
    aoi replay ./shifts --recipe ./new-model --against recorded --report diff.html --max-escapes 0
    aoi replay ./shifts --recipe ./new-model --against ./old-model --lot 4711
    aoi replay ./shifts --speed 1 --line line2 --url redis://line-pc:6379
    """
    _check(recipe, url, against, report is not None or bounds != Bounds())
    stop = threading.Event()
    on_signal(stop.set)
    manner = Manner(speed, deadlines)
    diff = VerdictDiff()
    with ExitStack() as stack:
        where = url or stack.enter_context(_own_broker())
        target = Line(where, line, recipe, workers)

        def again(frames: Iterator[Recorded], onto: Line, judged: Judged, said: str) -> ReplayCounts:
            with _progress(said, path, wanted) as look:
                return judge_again(onto, frames, manner, judged, look, stop)

        frames = _judgeable(frames_of(path, wanted))
        if against not in ("", "recorded"):
            before = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aoi-replay-"))) / "before.mcap"
            kept = VerdictFile(before)
            again(frames, Line(where, f"{line}-before", against, workers), kept.add, "judging as before")
            kept.close()
            frames = with_verdicts_of(_judgeable(frames_of(path, wanted)), before)
        counts = again(frames, target, _compare(diff) if against else lambda *_: None, "judging again")
    if report:
        _write(report, diff, f"{path.name}: {recipe or line} against {against}", path, bool(speed))
    _show(counts, diff, speed, bool(against), as_json)
    if stop.is_set():
        return int(Exit.INTERRUPTED)
    return int(bounds.gate(diff)) if against else int(Exit.OK)


def _check(recipe: str, url: str, against: str, compares: bool) -> None:
    if not recipe and not url:
        raise click.UsageError("nobody would judge: give --recipe, or --url and --line of a line that has workers")
    if compares and not against:
        raise click.UsageError("--report and --max-… compare: say with what, --against recorded or --against RECIPE")
    for name in filter(None, (recipe, "" if against == "recorded" else against)):
        load_recipe(name)


@contextmanager
def _own_broker() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="aoi-replay-") as folder, Broker(Path(folder), durable=False) as broker:
        yield broker.url


def _judgeable(frames: Iterator[Recorded]) -> Iterator[Recorded]:
    """Without answers that came after a fail-safe verdict: they are no frames."""
    return (each for each in frames if each.pixels is not None or each.verdict is not None)


def _compare(diff: VerdictDiff) -> Judged:
    def judged(recorded: Recorded, after: Verdict) -> None:
        try:
            before = recorded.judged()
        except WireError:
            before = None
        diff.add(before, after)

    return judged


@contextmanager
def _progress(said: str, path: Path, wanted: Wanted) -> Iterator[Callable[[ReplayCounts], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tail = (TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, *tail, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(said, total=None, rate="")

        def look(counts: ReplayCounts) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{counts.judged / elapsed:.0f}/s" if elapsed > 1 else ""
            bar.update(task, completed=counts.judged, rate=rate)

        yield look


def _show(counts: ReplayCounts, diff: VerdictDiff, speed: float, compared: bool, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {name: getattr(counts, name) for name in ("offered", "judged", "without_pixels")}
        told |= {"late": counts.late.as_json() if speed else None, "diff": diff.as_json() if compared else None}
        click.echo(json.dumps(told))
        return
    for line in replay_lines(counts, speed):
        click.echo(line)
    if compared:
        show_diff(Console(), diff)


def _write(report: Path, diff: VerdictDiff, title: str, path: Path, in_rhythm: bool) -> None:
    flips = {flip.after.frame.frame_id: flip for flip in diff.flips[:MOST_PICTURES]}
    pictures = {}
    if flips:
        for each in frames_of(path, Wanted(ids=tuple(flips))):
            try:
                frame = each.frame()
                flip = flips[frame.frame_id]
                pictures[frame.frame_id] = both_pictures(frame, flip.before, flip.after)
            except AoiError:
                continue
    write_page(report, diff, title, pictures, in_rhythm)
