"""`aoi train` and `aoi export`: parse → read → have it taught → choose rules on the validation side → write.

The training package is named by path and loaded when it is wanted, because only a machine that trains has torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from engines.datasets.labelled import Dataset, DatasetError, Picture, Problem, UnreadablePictureError, read_classes
from engines.datasets.sharing import make_split
from engines.datasets.split import SAME_TILE, Split, read_split, write_split
from pipeline.data_options import LabelledFolder, data_options
from pipeline.errors import SourceError
from pipeline.evaluate_command import chosen_values, values_of
from pipeline.evaluation import Evaluation, Job, Settings, evaluate, try_rules
from pipeline.evaluation_tables import show_evaluation
from pipeline.model_folder import Contents, Engine, card_text, evaluate_command, recipe_text, write_text
from pipeline.operating_point import Rules, choose, sweep
from pipeline.options import option
from pipeline.recipe import find_recipe, load_recipe
from pipeline.recipe_edit import write_values
from pipeline.registration import TemplateError, onto, register

OPEN_THRESHOLD = 0.01
TOLD = 10  # pictures that were left out, on the card
PLACES = {"data": "DATA", "out": "MODEL", "split": "SPLIT", "groups": "GROUPS"}  # stand on the card for paths


def _training(module: str) -> Any:
    """A module of the training package; SourceError where torch is missing."""
    try:
        return import_module(f"engines.training.{module}")
    except ImportError as error:
        raise SourceError(f"training needs {error.name}; install it: pip install 'inline-aoi[train]'") from error


@click.command()
@data_options
@option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Model folder to write; one that exists goes on."
)
@option("--preset", default="inline", help="Which system; --list tells them.")
@option("--list", "lists", is_flag=True, help="List the presets and end.")
@option("--split", type=click.Path(path_type=Path), help="Folder of `aoi dataset split` [default: one is made].")
@option(
    "--validation", type=click.FloatRange(0.01, 0.9), default=0.2, help="Share of parts that choose, if one is made."
)
@option("--network", default="", help="Another network than the preset's.")
@option("--loss", default="", help="Another loss than the preset's segmenter has.")
@option(
    "--contrast", type=click.Choice(["none", "equalize", "clahe"]), default=None, help="Contrast step of the recipe."
)
@option("--scale", type=click.FloatRange(0.01, 4), default=None, help="Tile px per picture px [default: chosen].")
@option("--tile", type=click.IntRange(32, 4096), nargs=2, default=None, help="Height and width of a tile, px.")
@option("--turns", is_flag=True, help="Quarter turns too: the texture has no direction.")
@option("--steps", type=click.IntRange(1), default=None, help="Batches to learn from [default: the preset's].")
@option("--minutes", type=click.FloatRange(0), default=None, help="Fewer steps if they would take longer; 0: no limit.")
@option("--batch", type=click.IntRange(1), default=None, help="Tiles in a batch.")
@option("--rate", type=click.FloatRange(0, min_open=True), default=None, help="Peak learning rate.")
@option("--seed", type=click.IntRange(0, 2**31 - 1), default=1, help="The same seed teaches the same.")
@option("--device", default="", help="cpu, cuda or cuda:N [default: what is there].")
@option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: all.")
@option("--escape-target", type=click.FloatRange(0, 1), default=0.02, help="Share of escapes the rules are to meet.")
def train(data: LabelledFolder | None, lists: bool, out: Path | None, split: Path | None, **options: Any) -> None:
    """Teach a preset on labelled images: engine files, recipe and card, its rules chosen on the validation side.

    A training that was interrupted goes on when the same command is given again.

    \b
    aoi train --data ./tiles --out ./my-model
    aoi train --data ./tiles --split ./split --out ./my-model --minutes 30
    aoi train --list
    """
    presets = _training("presets")
    if lists:
        _show_presets(presets.PRESETS)
        return
    if out is None or data is None:
        raise click.UsageError("give labelled images with --data and a model folder with --out")
    console = Console(stderr=True)
    try:
        preset = _changed(presets.find_preset(options["preset"]), options)
        dataset = data.open()
        for problem in dataset.problems:
            console.print(f"skipped {problem.path}: {problem.reason}", style="yellow", markup=False, soft_wrap=True)
        sides = _sides(dataset, split, out, options["validation"], options["seed"], console)
        _run(data, dataset, sides, preset, out, options, console)
    except DatasetError as error:
        raise SourceError(str(error)) from error


def _run(
    folder: LabelledFolder,
    data: Dataset,
    sides: Split,
    preset: Any,
    out: Path,
    options: Mapping[str, Any],
    console: Console,
) -> None:
    maker = _training("make_model")
    maker.use_threads(options["threads"])
    samples = {name: sides.samples(data, paths) for name, paths in sides.sides().items() if paths}
    console.print(", ".join(f"{len(side)} {name}" for name, side in samples.items()), highlight=False)
    device = maker.find_device(options["device"])
    order = maker.Order(data, samples["training"], samples["validation"], preset, out, device, _registered)
    made = maker.make_model(order, console)
    contents = _contents(made, preset, out)
    write_text(out / "recipe.toml", recipe_text(contents))
    recipe = load_recipe(str(out))
    settings = Settings(side="validation", escape_target=options["escape_target"], gallery=0)
    job = Job(recipe, data, samples["validation"])
    console.print("choosing rules on the validation side …")
    tried = try_rules(measured := evaluate([job], settings))
    values = values_of(recipe.mode, tried)
    if tried.chosen and preset.threshold is not None:
        values = chosen_values(recipe.mode, _rules_at(preset.threshold, measured))
    if values:
        write_values(out / "recipe.toml", values)
        tried = try_rules(measured := evaluate([replace(job, recipe=load_recipe(str(out)))], settings))
    else:
        console.print("rules stay open: set them with `aoi evaluate --choose --write` on good and defective pictures")
    facts = _facts(made, preset, folder, "held-out" if samples.get("held-out") else "all")
    facts["left out"] = _left_out([*data.problems, *made.problems])
    write_text(out / "card.md", card_text(contents, data, samples, measured, tried, facts))
    show_evaluation(Console(), measured, tried)
    files = ", ".join(each.file for each in contents.engines)
    console.print(f"{out}: {files}, recipe.toml, card.md", markup=False, soft_wrap=True)


def _rules_at(threshold: float, measured: Evaluation) -> Rules:
    """The best rules at the threshold that the system fixes. Only asked where good and defective are there."""
    shown, at = measured.shown(), measured.grid.thresholds.index(threshold)
    fixed = replace(measured.grid, thresholds=(threshold,))
    swept = sweep(replace(shown, regions=shown.regions[:, at : at + 1]), fixed)
    chosen = choose(swept, measured.settings.escape_target)
    assert chosen is not None
    return chosen.rules


def _registered(picture: Picture) -> Picture:
    """With its golden template where the line lays it. Raises UnreadablePictureError when the line would refuse."""
    assert picture.reference is not None
    try:
        found = register(picture.pixels, picture.reference)
    except TemplateError as error:
        raise UnreadablePictureError(str(error)) from error
    return replace(picture, reference=onto(picture.pixels, picture.reference, found))


def _changed(preset: Any, options: Mapping[str, Any]) -> Any:
    """The preset with what the command line says otherwise."""
    wanted = {
        key: options[name]
        for key, name in (("steps", "steps"), ("batch", "batch"), ("learning_rate", "rate"), ("seed", "seed"))
        if options[name] is not None
    }
    lessons = [replace(lesson, schedule=replace(lesson.schedule, **wanted)) for lesson in preset.lessons]
    preset = replace(preset, lessons=tuple(lessons))
    if options["network"]:
        preset = _training("presets").with_network(preset, options["network"])
    if options["loss"]:
        _training("loss_names").find_loss(options["loss"])
        preset = _training("presets").with_loss(preset, options["loss"])
    changes: dict[str, Any] = {name: options[name] for name in ("scale", "tile") if options[name] is not None}
    if options["contrast"] is not None:
        changes["contrast"] = options["contrast"]
    if options["minutes"] is not None:
        changes["minutes"] = options["minutes"]
    if options["turns"]:
        changes["variation"] = replace(preset.variation, turns=True)
    return replace(preset, **changes)


def _sides(data: Dataset, split: Path | None, out: Path, validation: float, seed: int, console: Console) -> Split:
    """The split that was given, or the one this folder had, or a new one; kept beside the model either way."""
    if split is None and not (out / "validation.txt").is_file():
        made = make_split(data, seed, 0.0, validation, class_of=read_classes(data))
        console.print("no --split: one is made by part; nothing is held out, so measure on other pictures")
    else:
        made = read_split(data, split or out)
        if split is None:
            console.print("no --split: the one that the model folder has")
    if not made.training or not made.validation:
        empty = "validation" if made.training else "training"
        raise DatasetError(
            f"the split leaves no {empty} pictures; a class needs 3 parts to be shared out, or a --split"
        )
    if split is None or split.resolve() != out.resolve():
        write_split(made, out)
        if split is not None and (same_tile := split / SAME_TILE).is_file():
            write_text(out / SAME_TILE, same_tile.read_text(encoding="utf-8"))
    return made


def _contents(made: Any, preset: Any, out: Path) -> Contents:
    engines = [Engine(each.kind, each.name, each.sha256, each.classes) for each in made.files]
    threshold = preset.threshold if preset.threshold is not None else OPEN_THRESHOLD
    shape = made.shape
    name = out.resolve().name
    return Contents(name, preset.mode, engines, shape.scale, shape.overlap, preset.contrast, made.template, threshold)


def _facts(made: Any, preset: Any, folder: LabelledFolder, side: str) -> dict[str, str]:
    """Sentences of the card."""
    looks = ["; ".join(f"{step}: {score:.3f}" for step, _, score in state.history) for state in made.states]
    tile = f"{made.shape.height}×{made.shape.width} px at scale {made.shape.scale:g}"
    steps = " and ".join(str(state.step) for state in made.states)
    return {
        "what": f"Preset `{preset.name}`: {preset.says}. Tiles of {tile}.",
        "command": _command(),
        "training": f"{made.minutes:.0f} minutes, {steps} steps. Validation score by step: {' | '.join(looks)}.",
        "evaluate": evaluate_command(folder.form, folder.options.good, ",".join(folder.options.classes), side),
    }


def _command() -> str:
    """The command as it was given, with words for the places on this machine."""
    context, words = click.get_current_context(), ["aoi", "train"]
    for each in context.command.params:
        name = str(each.name)
        if context.get_parameter_source(name) in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP):
            continue
        value = PLACES.get(name, context.params[name])
        words += [each.opts[0], *map(str, value if isinstance(value, tuple) else [value] if value is not True else [])]
    return shlex.join(words)


def _left_out(problems: Sequence[Problem]) -> str:
    """A sentence, or "" where nothing was."""
    told = [f"{problem.path} ({problem.reason})" for problem in problems[:TOLD]]
    more = f" and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
    return f"Left out: {'; '.join(told)}{more}." if told else ""


def _show_presets(presets: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("preset", "what it is", "form of data", "minutes"):
        table.add_column(column, no_wrap=column != "what it is")
    for preset in presets.values():
        table.add_row(preset.name, preset.says, preset.form, f"≤ {preset.minutes:g}")
    Console().print(table)
    click.echo("minutes: on two cores; fewer steps are taken where a machine would need longer")


@click.command()
@click.argument("model", type=click.Path(path_type=Path, file_okay=False, exists=True))
@option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Model folder to write.")
@option("--tile", type=click.IntRange(32, 4096), nargs=2, required=True, help="Height and width of a tile, px.")
def export(model: Path, out: Path, tile: tuple[int, int]) -> None:
    """Write the engine files of a trained MODEL again, for tiles of another size; recipe and rules go with them.

    \b
    aoi export ./my-model --tile 256 512 --out ./my-wide-model
    """
    recipe = find_recipe(str(model))
    overlap = load_recipe(str(recipe)).picture.overlap
    try:
        files = _training("make_model").export_again(model, out, tile)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    text = recipe.read_text(encoding="utf-8")
    for each in files:
        old = getattr(load_recipe(str(recipe)), each.kind).sha256
        text = text.replace(old, each.sha256) if old else text
    write_text(out / "recipe.toml", text)
    if overlap > min(tile) // 2:
        write_values(out / "recipe.toml", {"picture": {"overlap": min(tile) // 2}})
    load_recipe(str(out))
    click.echo(f"{out}: {', '.join(each.name for each in files)}, recipe.toml; measure it again before use", err=True)
