"""`aoi evaluate`: what recipes are worth on labelled pictures that they have not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engines.datasets.labelled import Dataset, DatasetError
from engines.datasets.split import read_same_tile, read_split
from pipeline.data_options import LabelledFolder, data_options
from pipeline.errors import DiskError, SourceError
from pipeline.evaluation import Evaluation, Job, Settings, Tried, evaluate, try_rules
from pipeline.evaluation_json import as_json as facts_of
from pipeline.evaluation_page import page
from pipeline.evaluation_tables import show_evaluation
from pipeline.operating_point import Rules
from pipeline.options import as_json, option
from pipeline.recipe import Recipe, find_recipe, load_recipe
from pipeline.recipe_edit import Values, toml_lines, write_values

SIDES = ("held-out", "validation", "training", "all")
FLATTERED = "a random split: pictures of one part are on both sides, and the figures flatter"


@click.command("evaluate")
@click.argument("recipes", nargs=-1, required=True)
@data_options
@option(
    "--split",
    type=click.Path(path_type=Path),
    help="Folder with held-out.txt and validation.txt; FOLDER/fold-{n} is that of recipe n, from 0 "
    "[default: each recipe's own folder].",
)
@option("--side", type=click.Choice(SIDES), default="held-out", help="Which pictures of the split.")
@option("--escape-target", type=click.FloatRange(0, 1), default=0.02, help="Share of escapes to be met.")
@option("--choose", "chooses", is_flag=True, help="Print the rules with the least overkill at that target, as TOML.")
@option("--write", "writes", is_flag=True, help="With --choose: put them into the recipes.")
@option("--iou", type=click.FloatRange(0.01, 1), default=0.33, help="Overlap from which a box is found.")
@option("--merge", type=click.IntRange(0), default=0, help="Regions with fewer px between them are one box.")
@option("--pad", type=click.IntRange(0), default=0, help="Room in px that the data's boxes leave around a defect.")
@option("--report", type=click.Path(path_type=Path), help="Folder for a page with curve and worst misses.")
@option("--gallery", type=click.IntRange(0), default=24, help="Worst misses on the page.")
@as_json
def evaluate_(
    recipes: tuple[str, ...],
    data: LabelledFolder | None,
    split: Path | None,
    side: str,
    escape_target: float,
    chooses: bool,
    writes: bool,
    iou: float,
    merge: int,
    pad: int,
    report: Path | None,
    gallery: int,
    as_json: bool,
) -> None:
    """Escapes, overkill, Dice and boxes of recipes on labelled images; several recipes are folds, and are pooled.

    \b
    aoi evaluate magnetic-tile --data ./tiles --good free
    aoi evaluate runs/fold-0 runs/fold-1 runs/fold-2 --data ./tiles --split './split/fold-{n}' --report runs/report
    aoi evaluate ./model --data ./tiles --side validation --escape-target 0.02 --choose --write

    Where every picture is defective and boxes are the truth, --choose takes the score and area with the best F1.
    """
    if writes and not chooses:
        raise click.UsageError("--write goes with --choose")
    if data is None:
        raise click.UsageError("give the folder of labelled images with --data")
    chosen = [load_recipe(name) for name in recipes]
    dataset = data.open()
    try:
        folders = [Path(str(split).replace("{n}", str(n))) if split else chosen[n].folder for n in range(len(chosen))]
        jobs, flattered = zip(*(_job(*each, side) for each in zip(chosen, repeat(dataset), folders)), strict=True)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    evaluation = _with_progress(jobs, Settings(side, escape_target, iou, merge, pad, gallery if report else 0))
    evaluation.problems[:0] = dataset.problems
    evaluation.remarks += [FLATTERED] * any(flattered)
    tried = try_rules(evaluation)
    facts = facts_of(evaluation, tried)
    if report:
        _write_report(report, evaluation, tried, facts)
    if as_json:
        click.echo(json.dumps(facts, allow_nan=False))
    else:
        show_evaluation(Console(), evaluation, tried)
    if chooses:
        _choose(tried, chosen, recipes if writes else (), side, as_json)


def _job(recipe: Recipe, dataset: Dataset, folder: Path, side: str) -> tuple[Job, bool]:
    """What judges this recipe, and whether the split flatters. Raises DatasetError when there is no such split."""
    if side == "all":
        return Job(recipe, dataset, dataset.samples), False
    split = read_split(dataset, folder)
    if not (chosen := split.samples(dataset, split.sides()[side])):
        raise DatasetError(f"the split in {folder} has no {side} pictures; give another --split, or --side all")
    part_of = {name: names[0] for names in read_same_tile(folder) for name in names}
    parts = [replace(sample, group=part_of.get(sample.group, sample.group)) for sample in chosen]
    return Job(recipe, dataset, parts), split.cuts_groups


def _with_progress(jobs: Sequence[Job], settings: Settings) -> Evaluation:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("examining", total=sum(len(job.samples) for job in jobs))
        return evaluate(jobs, settings, lambda done, total: bar.update(task, completed=done, total=total))


def _write_report(folder: Path, evaluation: Evaluation, tried: Tried, facts: dict[str, Any]) -> None:
    """`index.html`, which needs nothing beside it, the curve as PNG, and the figures as JSON."""
    messages = Console(stderr=True)
    try:
        curve: bytes | None = import_module("pipeline.evaluation_figures").curve_png(evaluation, tried)
    except ImportError as error:
        messages.print(f"no curve ({error}); pip install 'inline-aoi\\[plots]'", soft_wrap=True)
        curve = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(page(evaluation, tried, curve), encoding="utf-8")
        (folder / "evaluation.json").write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
        if curve:
            (folder / "curve.png").write_bytes(curve)
    except OSError as error:
        raise DiskError(f"report cannot be written to {folder}: {error.strerror}; choose another --report") from error
    messages.print(f"report: {folder / 'index.html'}", highlight=False, soft_wrap=True)


def _choose(tried: Tried, recipes: Sequence[Recipe], written: Sequence[str], side: str, quiet: bool) -> None:
    messages = Console(stderr=True)
    if tried.chosen is None and tried.boxes is None:
        raise SourceError("rules cannot be chosen without both good and defective pictures; take another --side")
    if side != "validation":
        messages.print(f"chosen on {side} pictures: what they say of these rules is too rosy", style="yellow")
    values = values_of(recipes[0].mode, tried)
    click.echo(toml_lines(values), err=quiet)
    for name in written:
        write_values(path := find_recipe(name), values)
        messages.print(f"written into {path}", highlight=False, soft_wrap=True)


def values_of(mode: str, tried: Tried) -> Values:
    """The keys of a recipe that what was chosen sets; none where nothing could be."""
    if tried.chosen:
        return chosen_values(mode, tried.chosen.rules)
    if tried.boxes:
        return {"judge": {"min_score": tried.boxes.min_score, "min_area_px": tried.boxes.min_area_px}}
    return {}


def chosen_values(mode: str, rules: Rules) -> Values:
    """The keys of a recipe that an operating point sets in this mode."""
    classifier = {"threshold": rules.threshold}
    judge = {"min_score": rules.min_score, "min_area_px": rules.min_area_px}
    if mode == "classify":
        return {"classifier": classifier}
    if mode == "segment":
        return {"judge": judge}
    return {"classifier": classifier, "judge": {**judge, "ng_above": rules.ng_above}}
