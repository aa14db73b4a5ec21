"""`bench single`, `batch`, `models`, `compare`: parse → build a plan → measure → show, keep, draw; others join in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import cnr as cnr_
from bench import compare as compare_
from bench import models_compared as models_
from bench import models_report
from bench import report as report_
from bench.beside import draw_beside
from bench.cnr_table import show_cnr
from bench.endurance.commands import chaos, soak
from bench.engines_commands import engines_, tune_
from bench.load import Pictures, mean_rate
from bench.measure import Plan, Tell, doubling, measure
from bench.models_table import show_models
from bench.table import WIDTH, show_comparison, show_report
from bench.untaught import write_untaught
from engines import ENGINES
from engines.datasets.labelled import DatasetError
from engines.datasets.low_contrast import SHAPES, LowContrast
from pipeline.options import as_json, option, simulator_options
from pipeline.recipe import load_recipe

Command = TypeVar("Command", bound=Callable[..., Any])
USUAL_LOADS = {"single": (50.0, 70.0, 90.0), "batch": (70.0,)}


class PercentOrShift(click.ParamType):
    """A number from 1 to 200, or a recorded shift's file or folder."""

    name = "percent or shift"

    def get_metavar(self, param: click.Parameter, *_: Any) -> str:
        return "PERCENT|SHIFT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Path:
        try:
            percent = float(value)
        except (TypeError, ValueError):
            if (path := Path(str(value))).exists():
                return path
            self.fail(f"{value!r} is neither a percentage nor a recorded shift", param, ctx)
        if not 1 <= percent <= 200:
            self.fail(f"{value} %: give 1 to 200, or a recorded shift", param, ctx)
        return percent


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def bench() -> None:
    """How fast the line is, how late its verdicts come, and what that costs.

    \b
    bench single                                     one frame at a time
    bench batch --max-batch 16 --seconds 30          batches of 1, 2, 4, 8, 16
    bench models runs/mine runs/theirs               accuracy against speed
    bench cnr runs/mine runs/theirs                  how faint a defect may be
    bench compare runs/bench/A.json runs/bench/B.json
    """


def measuring(command: Command) -> Command:
    """Options of everything that measures."""
    for decorate in (
        as_json,
        option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("runs/bench"),
            help="Folder for report and plot.",
        ),
        simulator_options,
        option("--images", type=click.Path(path_type=Path), help="Folder of your own images instead of the simulator."),
        option("--url", envvar="AOI_URL", default="", help="Redis to use; without one an embedded one, in memory."),
        option("--line/--no-line", default=True, help="Measure the whole line too, not the engines alone."),
        option(
            "--load",
            "loads",
            type=PercentOrShift(),
            multiple=True,
            help="… at so many % of capacity, or SHIFT: a recorded one, its frames at the times they were offered.",
        ),
        option("--rate", "rates", type=click.FloatRange(0.001), multiple=True, help="Open loop at so many frames/s …"),
        option("--deadline-ms", type=click.FloatRange(0), default=0.0, help="Open loop: of every frame; 0: none."),
        option("--frames", type=click.IntRange(10), help="Frames in each run of the line [default: by --seconds]."),
        option("--seconds", type=click.FloatRange(0.1), default=10.0, help="Length of each run."),
        option("--engine", type=click.Choice(list(ENGINES)), help="Instead of the recipe's."),
        option("--recipe", envvar="AOI_RECIPE", default="panel", help="Shipped name, model folder or recipe.toml."),
    ):
        command = decorate(command)
    return command


@bench.command()
@measuring
def single(**options: Any) -> None:
    """Batch size 1: each engine alone, then the whole line.

    The line is driven as fast as it settles (closed loop: frames/s), then at fixed rates (open loop: latency),
    by default 50, 70 and 90 % of that. Latency counts from the moment a frame was due, so a stall is not hidden;
    the first tenth of every run is warm-up. --rate and --load can be given several times. With --deadline-ms it
    is also counted how many frames were judged in time, and how many had their fail-safe verdict instead.

    \b
    bench single
    bench single --recipe magnetic-tile --images ./tiles --rate 100
    bench single --no-line --json | jq '.runs[].tiles_per_s'
    """
    _measure("single", (1,), options)


@bench.command()
@option("--max-batch", type=click.IntRange(1, 1024), default=8, help="Measure batches of 1, 2, 4 … up to this.")
@measuring
def batch(max_batch: int, **options: Any) -> None:
    """Batch sizes 1, 2, 4 …: each engine alone, then the whole line.

    As `bench single`, for every size; the open loop is by default at 70 % of what each size reached.

    \b
    bench batch
    bench batch --max-batch 16 --rate 200 --seconds 30
    bench batch --deadline-ms 100 --load 70 --load 150 --load 200
    bench batch --load ./shifts/press4-20261127T220000.000Z.mcap
    """
    _measure("batch", doubling(max_batch), options)


@bench.command()
@click.argument("folders", nargs=-1, metavar="[MODEL]...")
@option("--untrained", default="", metavar="NAME,NAME…", help="Networks as they are before they were taught, too.")
@option("--tile", type=click.IntRange(32, 4096), nargs=2, default=(256, 256), help="Of --untrained: height, width, px.")
@option("--batch", "batches", type=click.IntRange(1, 1024), multiple=True, help="A batch size besides 1 [default: 8].")
@option("--max-batch", type=click.IntRange(1, 1024), help="Batches of 1, 2, 4 … up to this instead.")
@option("--rounds", type=click.IntRange(1), default=5, help="Turns of every model; the median counts.")
@option("--seconds", type=click.FloatRange(0.01), default=1.0, help="Of a network's turn at each batch size.")
@option("--accuracy", type=click.Choice(models_.ACCURACIES), default="dice", help="Which one of evaluation.json.")
@option("--against", default="", metavar="NAME", help="Model the others are compared with [default: the first].")
@option("--engine", type=click.Choice(list(ENGINES)), default="cpu", help="The same for all.")
@option("--threads", type=click.IntRange(0), default=0, help="The same for all; 0: every core.")
@option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/bench"), help="Report and plot.")
@as_json
def models(folders: tuple[str, ...], untrained: str, tile: tuple[int, int], **options: Any) -> None:
    """Accuracy against speed of several models, measured in one run.

    MODEL is a model folder or a shipped name. All models take turns in every round, so that a busy machine disturbs
    all alike. Accuracy is what `aoi evaluate MODEL … --report MODEL` left in the folder; without one a model is
    measured all the same. Tiles differ in size, so models are compared per megapixel of tile.

    \b
    bench models runs/inline runs/lcd-unet runs/low-contrast --against lcd-unet
    bench models panel --untrained unet-64,unet-16,lcd-unet --against unet-64 --max-batch 8
    """
    messages = _console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="aoi-bench-") as scratch:
        names = [name for name in dict.fromkeys(untrained.split(",")) if name]
        contenders = _contenders(folders, write_untaught(names, tile, Path(scratch)) if names else ())
        plan = _models_plan(contenders, options)
        report_.make_folder(options["out"])
        with _progress(messages, plan.steps) as tell:
            report = models_.compare_models(plan, tell)
    path = models_report.save(report, options["out"])
    (messages if options["as_json"] else _console()).print(show_models(report))
    draw_beside("bench.models_plot", report, path, messages)
    messages.print(f"report: {path}", soft_wrap=True)
    if options["as_json"]:
        click.echo(json.dumps(report.as_json()))


def _contenders(folders: Sequence[str], untaught: Iterable[tuple[str, Path]]) -> list[models_.Contender]:
    """Folders first; every recipe is read before anything is written or measured."""
    recipes = [load_recipe(folder) for folder in folders]
    names = models_.names_of([recipe.folder for recipe in recipes])
    taught = [models_.Contender(*each) for each in zip(names, recipes, strict=True)]
    written = [models_.Contender(f"{name} (untaught)", load_recipe(str(path)), True) for name, path in untaught]
    if not taught and not written:
        raise click.UsageError("give model folders, or networks with --untrained")
    return taught + written


def _models_plan(contenders: Sequence[models_.Contender], given: dict[str, Any]) -> models_.Plan:
    if given["batches"] and given["max_batch"]:
        raise click.UsageError("give --batch or --max-batch, not both")
    names, against = [each.name for each in contenders], given["against"]
    meant = [name for name in (against, f"{against} (untaught)") if name in names] if against else names
    if not meant:
        raise click.UsageError(f"--against {against}: no such model here; there are: {', '.join(names)}")
    sizes = doubling(given["max_batch"]) if given["max_batch"] else (1, *(given["batches"] or (8,)))
    shared = {name: given[name] for name in ("rounds", "seconds", "accuracy", "engine", "threads")}
    return models_.Plan(contenders=contenders, against=meant[0], batches=tuple(sorted(set(sizes))), **shared)


@bench.command()
@click.argument("folders", nargs=-1, required=True, metavar="MODEL...")
@option("--pictures", type=click.IntRange(1), default=300, help="Simulated ones; the same for all.")
@option("--contrast", type=click.FloatRange(0.1, 128), nargs=2, default=(1.0, 9.0), help="Grey levels, from and to.")
@option("--noise", type=click.FloatRange(0.1, 64), default=7.0, help="Deviation of the Gaussian noise, grey levels.")
@option("--shapes", default="rectangle", help=f"Of {', '.join(SHAPES)}, with commas between.")
@option("--steps", type=click.IntRange(1, 20), default=8, help="Points of the curve.")
@option("--seed", type=click.IntRange(0), default=900, help="Which pictures.")
@option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/bench"), help="Report and plot.")
@as_json
def cnr(folders: tuple[str, ...], pictures: int, steps: int, out: Path, as_json: bool, **drawn: Any) -> None:
    """How faint a defect may be: Dice against contrast-to-noise ratio, beside a box filter.

    \b
    bench cnr runs/low-contrast runs/inline
    bench cnr runs/low-contrast --contrast 1 14 --shapes rectangle,ellipse --steps 10
    """
    messages = _console(stderr=True)
    recipes = [load_recipe(folder) for folder in folders]
    names = models_.names_of([recipe.folder for recipe in recipes])
    shapes = tuple(drawn["shapes"].split(","))
    try:
        generator = LowContrast(
            seed=drawn["seed"], noise_sigma=drawn["noise"], contrast=drawn["contrast"], shapes=shapes, count=(2, 2)
        )
    except DatasetError as error:
        raise click.UsageError(str(error)) from error
    plan = cnr_.Plan(list(zip(names, recipes, strict=True)), generator, pictures, steps)
    report_.make_folder(out)
    with _progress(messages, 1 + len(recipes)) as tell:
        report = cnr_.measure_curves(plan, tell)
    path = cnr_.save(report, out)
    (messages if as_json else _console()).print(show_cnr(report))
    draw_beside("bench.cnr_plot", report, path, messages)
    messages.print(f"report: {path}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(report.as_json()))


@bench.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@option("--anyway", is_flag=True, help="Even if the machines differ; the differences are shown.")
@as_json
def compare(a: Path, b: Path, anyway: bool, as_json: bool) -> None:
    """The figures of two reports side by side; exits with 10 when they are of different machines.

    \b
    bench compare runs/bench/before.json runs/bench/after.json
    """
    before, after = report_.load(a), report_.load(b)
    if not anyway:
        compare_.check_machines(before, after)
    machines = compare_.differences(before.machine, after.machine)
    others = compare_.other_differences(before, after)
    rows = compare_.compare(before, after)
    if as_json:
        unlike = {"machine": [str(each) for each in machines], "other": [str(each) for each in others]}
        click.echo(json.dumps({"differences": unlike, "figures": [row.as_json() for row in rows]}))
    else:
        _console().print(show_comparison(rows, machines, others))


def _measure(kind: str, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    """The body of both commands: tables on stdout, or with --json one object there and all else on stderr."""
    plan, messages = _plan(kind, sizes, options), _console(stderr=True)
    report_.make_folder(options["out"])  # told before an hour is spent on what could not be kept
    with _progress(messages, plan.steps) as tell:
        report = measure(plan, tell)
    path = report_.save(report, options["out"])
    (messages if options["as_json"] else _console()).print(show_report(report))
    draw_beside("bench.plot", report, path, messages)
    messages.print(f"report: {path}", soft_wrap=True)
    if options["as_json"]:
        click.echo(json.dumps(report.as_json()))


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    console.width = max(WIDTH, console.width)
    return console


def _plan(kind: str, sizes: tuple[int, ...], given: dict[str, Any]) -> Plan:
    recipe = load_recipe(given["recipe"])
    if given["url"].startswith("memory:"):
        raise click.UsageError("--url memory:// lives in one process, the line has three; leave --url out")
    if given["engine"]:
        recipe = replace(recipe, batching=replace(recipe.batching, engine=given["engine"]))
    percent = tuple(load for load in given["loads"] if isinstance(load, float))
    shifts = [load for load in given["loads"] if isinstance(load, Path)]
    if len(shifts) > 1 or (shifts and given["images"]):
        raise click.UsageError("one source of pictures: --images, or one shift for --load")
    shift = str(shifts[0]) if shifts else ""
    pictures = Pictures(str(given["images"] or ""), shift, **asdict(given["simulator"]))
    usual = () if given["rates"] or shift else USUAL_LOADS[kind]
    return Plan(
        kind=kind,
        recipe_name=given["recipe"],
        recipe=recipe,
        sizes=sizes,
        pictures=pictures,
        seconds=given["seconds"],
        frames=given["frames"] or 0,
        rates=given["rates"],
        loads=percent or usual,
        shift_rate=mean_rate(shift) if shift else 0.0,
        deadline_ms=given["deadline_ms"],
        line=given["line"],
        url=given["url"],
    )


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Tell]:
    """A bar on a terminal; a line for each step anywhere else."""
    columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=steps, completed=-1)

        def tell(step: str) -> None:
            bar.update(task, description=step, advance=1)
            if not console.is_terminal:
                console.print(step)

        yield tell


for command in (engines_, tune_, chaos, soak):
    bench.add_command(command)
