"""`bench engines`, `bench tune`: parse → plan → measure → show, keep."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from bench.engine_alone import batches_of, tiles_of
from bench.engines_compared import Plan, compare_engines
from bench.engines_table import show_engines
from bench.load import Pictures, render
from bench.measure import doubling
from bench.report import make_folder
from bench.table import WIDTH
from bench.tune import chosen, settings_for, tune
from engines.base import Engine, Kind, Pixels
from engines.datasets.labelled import DatasetError
from pipeline.data_options import LabelledFolder, data_options
from pipeline.errors import DiskError, SourceError
from pipeline.options import as_json, option
from pipeline.parity_command import engine_names, pictures_of
from pipeline.recipe import find_recipe, load_recipe
from pipeline.recipe_edit import write_values

GPU = "cpu,trt-fp32,trt-fp16,trt-int8"


@click.command("engines")
@click.argument("model")
@option("--engines", default=GPU, callback=engine_names, help="The reference, then the others; NAME@DEVICE if need be.")
@data_options
@option("--limit", type=click.IntRange(1), default=300, help="Pictures whose verdicts are compared.")
@option("--max-batch", type=click.IntRange(1, 1024), default=8, help="Batches of 1, 2, 4 … up to this.")
@option("--rounds", type=click.IntRange(1), default=5, help="Turns of every engine; the median counts.")
@option("--seconds", type=click.FloatRange(0.01), default=1.0, help="Of an engine's turn at each batch size.")
@option("--line/--no-line", default=True, help="The whole line with each engine too, on an embedded Redis.")
@option("--images", type=click.Path(path_type=Path), help="Folder for the line's load instead of the simulator.")
@option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("bench/results"), help="Report.")
@as_json
def engines_(
    model: str,
    engines: tuple[str, ...],
    data: LabelledFolder | None,
    limit: int,
    max_batch: int,
    rounds: int,
    seconds: float,
    line: bool,
    images: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Engines of one model side by side: verdicts, speed, what the GPU can do at best, the whole line.

    The one command for a GPU machine: it builds what is not built, compares verdicts with the reference, measures
    engines in turns and copies and matrix products beside them, and keeps all with the machine's description.

    \b
    bench engines ./my-part --data ./frames
    bench engines ./my-part --engines cpu,cpu-int8 --data ./frames --no-line
    """
    if data is None:
        raise click.UsageError("give the folder of pictures with --data; labels are not needed")
    recipe, messages = load_recipe(model), Console(stderr=True)
    try:
        dataset, samples = pictures_of(data, recipe, limit=limit)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    make_folder(out)
    plan = Plan(
        recipe_name=model,
        recipe=recipe,
        engines=engines,
        dataset=dataset,
        samples=samples,
        sizes=doubling(max_batch),
        rounds=rounds,
        seconds=seconds,
        line=line,
        pictures=Pictures(str(images or "")),
    )
    report = compare_engines(plan, lambda step: messages.print(step, style="dim", highlight=False))
    path = out / f"engines-{recipe.name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    try:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    if as_json:
        click.echo(json.dumps(report, allow_nan=False))
    else:
        console = Console(highlight=False)
        console.width = max(WIDTH, console.width)
        console.print(show_engines(report))
    messages.print(f"report: {path}", highlight=False, soft_wrap=True)


@click.command("tune")
@click.argument("model")
@option("--engine", type=click.Choice(["cpu", "cpu-int8"]), default=None, help="Instead of the recipe's.")
@option("--max-batch", type=click.IntRange(1, 1024), default=None, help="Instead of the recipe's.")
@option("--rounds", type=click.IntRange(1), default=3, help="Turns of every setting; the median counts.")
@option("--seconds", type=click.FloatRange(0.01), default=1.0, help="Of each turn.")
@option("--images", type=click.Path(path_type=Path), help="Folder of your own images instead of the simulator.")
@option("--write", "writes", is_flag=True, help="Put the setting into the recipe.")
@as_json
def tune_(
    model: str,
    engine: str | None,
    max_batch: int | None,
    rounds: int,
    seconds: float,
    images: Path | None,
    writes: bool,
    as_json: bool,
) -> None:
    """Streams, requests and threads of the cpu engine, chosen by measurement on this machine.

    \b
    bench tune panel
    bench tune ./my-part --images ./frames --write
    """
    recipe = load_recipe(model)
    changes = {"engine": engine, "max_batch": max_batch}
    given = {key: value for key, value in changes.items() if value is not None}
    recipe = replace(recipe, batching=replace(recipe.batching, fallback="", **given))  # type: ignore[arg-type]
    frames, messages = render(Pictures(str(images or ""))), Console(stderr=True)

    def batches(engines: Mapping[Kind, Engine]) -> Sequence[Pixels]:
        spec = next(iter(engines.values())).spec
        return batches_of(tiles_of(frames, recipe, spec), spec.tile_shape, spec.max_batch)

    settings = settings_for(len(os.sched_getaffinity(0)))
    tell = lambda step: messages.print(step, style="dim", highlight=False)  # noqa: E731 - one line, used once
    rates = tune(recipe, settings, batches, rounds, seconds, tell)
    best = chosen(rates)
    if as_json:
        rows = [{**vars(setting), "tiles_per_s": found} for setting, found in rates.items()]
        click.echo(json.dumps({"chosen": vars(best), "settings": rows}))
    else:
        for setting, found in rates.items():
            mark = "→" if setting == best else " "
            told = ", ".join(f"{rate:.0f}" for rate in found)
            click.echo(f"{mark} in_flight = {setting.in_flight}, threads = {setting.threads}: {told} tiles/s")
    if writes:
        write_values(path := find_recipe(model), {"batching": vars(best)})
        messages.print(f"written into {path}", highlight=False, soft_wrap=True)
