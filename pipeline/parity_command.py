"""`aoi parity`: parse → open every engine → compare → promote or refuse, in the model folder's own files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engines import ENGINES
from engines.datasets import open_dataset
from engines.datasets.labelled import Dataset, DatasetError, Sample
from engines.datasets.split import read_split
from engines.datasets.unlabelled import open_unlabelled
from pipeline.data_options import LabelledFolder, data_options
from pipeline.errors import DiskError, Exit, SourceError
from pipeline.options import as_json, option
from pipeline.parity import Allowed, Parity
from pipeline.parity_run import Engines, open_all, run_parity
from pipeline.parity_tables import as_json as facts_of
from pipeline.parity_tables import card_section, show_parity, with_section
from pipeline.promotion import needs_promotion, promotion_of, write_promotions
from pipeline.recipe import Recipe, load_recipe

SIDES = ("all", "held-out", "validation", "training")


def engine_names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Names with commas between, the reference first; click's BadParameter for one that is none."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name.partition("@")[0] not in ENGINES:
            raise click.BadParameter(
                f"no engine {name!r}; there are: {', '.join(ENGINES)}, each with @DEVICE if need be"
            )
    if len(names) < 2:
        raise click.BadParameter("name a reference and one engine or more, such as cpu,cpu-int8")
    return names


def _batches(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """0 stands for the recipe's largest."""
    try:
        sizes = tuple(0 if word.strip() == "max" else int(word) for word in value.split(","))
        if not sizes or any(size < 0 or size > 1024 for size in sizes):
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r}: give sizes such as 1,3,8,max") from None
    return sizes


@click.command("parity")
@click.argument("model")
@option("--engines", default="cpu,cpu-int8", callback=engine_names, help="The reference, then those held against it.")
@option("--batches", default="1,3,max", callback=_batches, help="Batch sizes; max: the recipe's.")
@data_options
@option("--side", type=click.Choice(SIDES), default="all", help="Only these pictures of a split.")
@option("--split", type=click.Path(path_type=Path), help="Folder of the split [default: the model folder].")
@option("--limit", type=click.IntRange(1), default=None, help="Pictures at most, spread over all.")
@option("--max-flips", type=click.FloatRange(0, 1), default=0.0, help="Share of pictures that may be judged otherwise.")
@option("--max-to-ok", type=click.IntRange(0), default=0, help="Pictures that may be let through among those.")
@option("--max-score", type=click.FloatRange(0, 1), default=0.5, help="Difference of a probability at most.")
@option("--dry-run", is_flag=True, help="Compare only; write neither promotions nor card.")
@as_json
def parity_(
    model: str,
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    data: LabelledFolder | None,
    side: str,
    split: Path | None,
    limit: int | None,
    max_flips: float,
    max_to_ok: int,
    max_score: float,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Promote engines that judge as the reference does; exits with 12 when one is refused.

    Every picture goes through every engine, alone and in company, and is judged by the recipe's own rules. A worker
    runs no quantised or compiled engine that was not promoted, on its own kind of device, by this command.

    \b
    aoi parity ./my-part --engines cpu,cpu-int8 --data ./tiles --side held-out
    aoi parity ./my-part --engines torch,cpu,cpu-int8,trt-fp16,trt-int8 --batches 1,3,8,max --data ./frames
    """
    if data is None:
        raise click.UsageError("give the folder of pictures with --data; labels are not needed")
    recipe = load_recipe(model)
    try:
        dataset, samples = pictures_of(data, recipe, side, split, limit)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    sizes = [size or recipe.batching.max_batch for size in batches]
    with ExitStack() as stack:
        opened = open_all(recipe, engines, max(sizes), stack)
        parity = _with_progress(recipe, opened, sizes, dataset, samples)
    allowed = Allowed(max_flips, max_to_ok, max_score)
    refusals = {engine: parity.refusals(engine, allowed) for engine in engines[1:]}
    if not dry_run:
        _record(recipe, opened, parity, refusals)
    if as_json:
        click.echo(json.dumps(facts_of(parity, refusals), allow_nan=False))
    else:
        show_parity(Console(), parity, refusals)
    return int(Exit.REFUSED if any(refusals.values()) else Exit.OK)


def pictures_of(
    data: LabelledFolder, recipe: Recipe, side: str = "all", split: Path | None = None, limit: int | None = None
) -> tuple[Dataset, Sequence[Sample]]:
    """Labelled or not, one side of a split or all. Raises DatasetError when there is no picture."""
    try:
        dataset = open_dataset(data.folder, data.options, data.form)
    except DatasetError:
        if data.form or side != "all" or data.options.good or data.options.classes:
            raise
        dataset = open_unlabelled(data.folder)
    samples: Sequence[Sample] = dataset.samples
    if side != "all":
        sides = read_split(dataset, split or recipe.folder)
        samples = sides.samples(dataset, sides.sides()[side])
    if not samples:
        raise DatasetError(f"the split has no {side} pictures; give another --split, or --side all")
    if limit and len(samples) > limit:
        samples = [samples[i * len(samples) // limit] for i in range(limit)]
    return dataset, samples


def _with_progress(
    recipe: Recipe, opened: Mapping[str, Engines], sizes: Sequence[int], dataset: Dataset, samples: Sequence[Sample]
) -> Parity:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=len(samples))
        return run_parity(recipe, opened, sizes, dataset, samples, lambda done: bar.update(task, completed=done))


def _record(
    recipe: Recipe, opened: Mapping[str, Engines], parity: Parity, refusals: Mapping[str, Sequence[str]]
) -> None:
    """`promoted.json` first: what a worker goes by; then the card, for people."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    specs = {name: {kind: engine.spec for kind, engine in opened[name].items()} for name in refusals}
    compiled = [name for name in refusals if needs_promotion(*_name_and_device(name))]
    pictures = sum(parity.judged.values())
    flips = {name: max(len(each.against.flips) for each in parity.of(name)) for name in refusals}
    passed = [
        promotion_of(recipe, specs[name], parity.reference, pictures, flips[name], at)
        for name in compiled
        if not refusals[name]
    ]
    first = {name: next(iter(specs[name].values())) for name in compiled}
    refused = [(first[name].engine, first[name].device) for name in compiled if refusals[name]]
    write_promotions(recipe.folder, passed, refused)
    facts = [f"By `aoi parity` on {at[:10]}, against `{parity.reference}`:", ""]
    facts += [f"- {name}: {first[name].device}, {first[name].runtime}" for name in compiled] + [""]
    path = recipe.folder / "card.md"
    try:
        card = path.read_text("utf-8") if path.exists() else f"# {recipe.name}\n"
        path.write_text(with_section(card, card_section(parity, refusals, facts)), "utf-8")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}; check space and rights") from error


def _name_and_device(engine: str) -> tuple[str, str]:
    name, _, device = engine.partition("@")
    return name, device
