"""`bench chaos` and `bench soak`: parse → build a plan → run → show and keep; a broken promise becomes an error."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import report as report_
from bench.beside import draw_beside
from bench.endurance import soak as soak_
from bench.endurance.chaos import KEEP_VERDICTS, Outcome, Plan, run_chaos
from bench.load import Pictures
from bench.machine import describe_machine, describe_project
from bench.table import WIDTH
from engines import ENGINES
from pipeline.errors import AoiError, DiskError, LedgerError, MissedError
from pipeline.options import option, simulator_options
from pipeline.recipe import load_recipe
from pipeline.sources.panel import PanelSimulator

TELL_EVERY_S = 10.0  # where there is no terminal
SHORTEST_MIN = 5.0  # a start-up looks like a leak in what is shorter


@click.command()
@option("--frames", type=click.IntRange(100), default=20_000, help="Small frames to offer.")
@option("--faults", type=click.IntRange(0), default=20, help="Faults to inject while they are under way.")
@option("--seed", type=click.IntRange(0), default=0, help="Which frames, and which faults in which order.")
@option("--minutes", type=click.FloatRange(0.01), default=10.0, help="Give up after so long.")
@option("--workers", type=click.IntRange(2, 64), default=3, help="Worker processes to begin with.")
@option("--producers", type=click.IntRange(1, 64), default=2, help="Producer processes.")
@option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write what came out here.")
def chaos(frames: int, faults: int, seed: int, minutes: float, workers: int, producers: int, file: Path | None) -> None:
    """Break a line in every way we know, again and again, and count its verdicts.

    Real producers and workers on a Redis of its own with an append-only file; killed, stopped, cut off, out of
    memory, read-only, its disk full. Exits with 8 when a frame was lost or judged twice, with 11 when it was not
    done in time. The faults and their order follow from the seed; what they meet does not.

    \b
    bench chaos --frames 100000 --faults 100 --seed 7
    bench chaos --frames 1000000 --faults 1000 --minutes 45 --json chaos.json
    """
    plan = Plan(frames=frames, faults=faults, seed=seed, minutes=minutes, workers=workers, producers=producers)
    messages = Console(stderr=True, highlight=False)
    with _folder() as folder:
        with _told(messages) as tell:
            outcome = run_chaos(plan, folder, tell)
        Console(highlight=False).print(_table(outcome))
        if file:
            _write(file, {"kind": "chaos", **_circumstances(), "outcome": asdict(outcome)})
        judge_outcome(outcome)


def judge_outcome(outcome: Outcome) -> None:
    """LedgerError when the promise was broken, MissedError when it was kept but the run is not what was asked for."""
    plan, struck = outcome.plan, sum(outcome.faults.values())
    if outcome.broken:
        counted = f"{outcome.losses} frames lost, {outcome.duplicates} verdicts double, {outcome.wrong} wrong"
        raise LedgerError(f"the promise is broken: {counted}; {'; '.join(outcome.broken)}")
    if outcome.behind > KEEP_VERDICTS:
        fell = f"the judge fell {outcome.behind:,} verdicts behind, and {KEEP_VERDICTS:,} stay readable"
        raise MissedError(f"{fell}: it could not read them all; run it on a quieter machine")
    if outcome.ended:
        raise MissedError(f"ended without a fault: {'; '.join(outcome.ended)}; its log says why")
    if not outcome.complete or struck < plan.faults:
        done = f"{outcome.verdicts} of {plan.frames} verdicts, {struck} of {plan.faults} faults"
        raise MissedError(f"not done after {outcome.seconds / 60:.1f} min: {done}; give more --minutes or --frames")


@contextmanager
def _folder() -> Iterator[Path]:
    """Data and logs of a run; kept, and told where, when it went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="aoi-chaos-"))
    try:
        yield folder
    except AoiError as error:
        error.args = (f"{error}; logs and data are kept in {folder}",)
        raise
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(console: Console) -> Iterator[Callable[[str], None]]:
    """How far it is: one line that changes on a terminal, a line now and then anywhere else."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
        return
    said_at = -TELL_EVERY_S

    def tell(word: str) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= TELL_EVERY_S:
            said_at = time.monotonic()
            console.print(word)

    yield tell


def _table(outcome: Outcome) -> Table:
    table = Table.grid(padding=(0, 2))
    rate = outcome.verdicts / outcome.seconds
    rows = {
        "frames offered": f"{outcome.offered:,} by {outcome.plan.producers} producers, seed {outcome.plan.seed}",
        "faults": f"{sum(outcome.faults.values()):,}",
        **{f"  {name}": f"{count:,}" for name, count in outcome.faults.items()},
        "processes started": f"{outcome.starts:,} (Redis not counted)",
        "verdicts": f"{outcome.verdicts:,}",
        **{f"  {name}": f"{count:,}" for name, count in outcome.judgements.items()},
        "  of these, not deadly": f"{outcome.innocent:,} judged poison after as many kills as allowed",
        "late twins refused": f"{outcome.late:,} that workers told of which ended in order",
        "looks at the ledger": f"{outcome.audits:,}, each of which must balance",
        "judge behind at most": f"{outcome.behind:,} verdicts, of {KEEP_VERDICTS:,} that stay readable",
        "duplicates": f"{outcome.duplicates:,}",
        "losses": f"{outcome.losses:,}" if outcome.complete else "not known: not all was offered and judged",
        "wrong verdicts": f"{outcome.wrong:,}",
        "duration": f"{outcome.seconds:,.0f} s, {rate:,.0f} verdicts/s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _circumstances() -> dict[str, Any]:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"created": created, "machine": describe_machine(), "project": describe_project()}


def _write(path: Path, facts: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}; choose another file") from error


@click.command()
@option("--minutes", type=click.FloatRange(0.05), default=10.0, help="How long the load lasts.")
@option("--load", type=click.FloatRange(1, 100), default=70.0, help="Per cent of what the line can do.")
@option("--every-s", type=click.FloatRange(0.1), default=2.0, help="Between two samples.")
@option("--recipe", envvar="AOI_RECIPE", default="panel", help="Shipped name, model folder or recipe.toml.")
@option("--engine", type=click.Choice(list(ENGINES)), help="Instead of the recipe's.")
@simulator_options
@option("--memory-margin", type=click.FloatRange(0), default=10.0, help="MiB/h of growth that are no leak yet.")
@option("--speed-margin", type=click.FloatRange(0), default=5.0, help="%/h of slowing down that are tolerated.")
@option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bench"),
    help="Folder for report and plot.",
)
def soak(recipe: str, engine: str | None, simulator: PanelSimulator, out: Path, **settings: float) -> None:
    """Load a line steadily for long, and say whether memory grows or work slows down.

    Worker, producer and Redis as they are shipped. Slopes are least squares over what follows the first quarter,
    with 95 % confidence intervals that allow for samples resembling their neighbours. Exits with 11 when the whole
    interval lies beyond a margin, with 8 when the ledger did not balance.

    \b
    bench soak --minutes 60
    bench soak --minutes 60 --load 90 --recipe magnetic-tile
    """
    chosen = load_recipe(recipe)
    if engine:
        chosen = replace(chosen, batching=replace(chosen.batching, engine=engine))
    report_.make_folder(out)
    plan = soak_.Plan(recipe_name=recipe, recipe=chosen, pictures=Pictures(**asdict(simulator)), **settings)
    messages = Console(stderr=True, highlight=False)
    with _told(messages) as tell:
        soaked = soak_.run_soak(plan, tell)
    facts = {"kind": "soak", **_circumstances(), **soak_.as_json(soaked)}
    name = f"soak-{chosen.name}-{chosen.batching.engine}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    path = out / f"{name}.json"
    console = Console(highlight=False)
    console.width = max(WIDTH, console.width)
    console.print(_slopes(soaked))
    _write(path, facts)
    draw_beside("bench.endurance.soak_plot", soaked, path, messages)
    messages.print(f"report: {path}", soft_wrap=True)
    if soaked.grows and soaked.plan.minutes < SHORTEST_MIN:
        messages.print(f"too short to tell: slopes are judged from {SHORTEST_MIN:g} minutes on")
    elif soaked.grows:
        raise MissedError(f"beyond the margin for certain: {'; '.join(soaked.grows)}")


def _slopes(soaked: soak_.Soaked) -> Table:
    plan = soaked.plan
    title = f"{plan.minutes:g} min at {soaked.rate:,.0f} frames/s, {plan.load:g} % of {soaked.capacity:,.0f}; "
    title += f"{soaked.frames:,} frames, each with one verdict"
    table = Table(box=None, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("mean", "per hour", "95 % interval", "% per hour", "samples worth"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, slope in soaked.slopes.items():
        if slope is None:
            table.add_row(name, "too few samples; give more --minutes")
            continue
        unit = "" if name == "frames/s" else " MiB"
        span = f"{slope.low:+,.2f} … {slope.high:+,.2f}"
        worth = f"{slope.independent:.0f} of {slope.samples}"
        change = f"{slope.per_hour:+,.2f}{unit}"
        table.add_row(name, f"{slope.mean:,.1f}{unit}", change, span, f"{slope.percent[0]:+.2f}", worth)
    return table
