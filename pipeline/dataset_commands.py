"""What an engineer does with labelled images before training: `aoi dataset forms`, `explore`, `split` and `coco`."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engines.datasets import FORMS, load_form
from engines.datasets.coco import write_coco
from engines.datasets.exploration import as_json as exploration_json
from engines.datasets.exploration import explore
from engines.datasets.labelled import (
    Dataset,
    DatasetError,
    Picture,
    Problem,
    UnreadablePictureError,
    read_picture,
)
from engines.datasets.sharing import make_folds, make_split, split_at_random, split_by_time
from engines.datasets.split import RANDOM_REMARK, Split, read_same_tile, read_split, write_split
from pipeline.data_options import LabelledFolder, data_argument
from pipeline.errors import DiskError, Exit, SourceError
from pipeline.options import as_json, option
from pipeline.shown import counted, safe

SHOWN_PROBLEMS = 10
Tell = Callable[[str, int, int], None]  # what is done, so many, of so many


@click.group()
def dataset() -> None:
    """Labelled images before training: which forms are read, what is in a folder, how it is shared out.

    \b
    aoi dataset explore ./tiles
    aoi dataset split ./tiles --out ./split
    """


@dataset.command()
@as_json
def forms(as_json: bool) -> None:
    """The forms of data folders that are read, and how each looks on disk.

    \b
    aoi dataset forms
    """
    known = {name: _of_form(name) for name in FORMS}
    if as_json:
        click.echo(json.dumps(known))
        return
    table = Table("form", "how it looks on disk", box=box.SIMPLE_HEAD, header_style="dim", show_edge=False)
    for name, said in known.items():
        table.add_row(name, said, end_section=True)
    Console().print(table)
    click.echo("a folder's form is recognised; --form says it where that goes wrong")


@dataset.command("explore")
@data_argument
@option("--split", type=click.Path(path_type=Path), help="Folder of a split: duplicates across its sides are told.")
@option("--out", type=click.Path(path_type=Path), help="Folder for page and figures [default: explored; --json: none].")
@as_json
def explore_(data: LabelledFolder, split: Path | None, out: Path | None, as_json: bool) -> int:
    """Look at labelled images once: counts, sizes, light, places, near-duplicates, as a page with figures.

    \b
    aoi dataset explore ./tiles
    aoi dataset explore ./tiles --split ./split --out ./explored
    aoi dataset explore ./tiles --json | jq .duplicates.sets
    """
    folder = out or (None if as_json else Path("explored"))
    page = _page_writer() if folder else None
    with _errors_told():
        opened = data.open()
        sides = read_split(opened, split) if split else None
        with _progress() as tell:
            found = explore(opened, sides, tell)
        written = page.write_page(found, folder) if page else None
    facts = exploration_json(found)
    if as_json:
        click.echo(json.dumps(facts, allow_nan=False))
    else:
        _show_exploration(facts)
    if written:
        click.echo(f"page: {written}", err=True)
    return int(Exit.OK)


@dataset.command()
@data_argument
@option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the lists; its same-tile.txt is read."
)
@option(
    "--by",
    type=click.Choice(["group", "time", "random"]),
    default="group",
    help="group: whole parts, class by class; time: the last are held out; random: parts are cut, to compare.",
)
@option("--held-out", type=click.FloatRange(0, 1), default=0.2, help="Share that only judges.")
@option("--validation", type=click.FloatRange(0, 1), default=0.15, help="Share that chooses checkpoint and rules.")
@option("--folds", type=click.IntRange(0), default=0, help="Cross-validation: fold-0, fold-1, … instead of one split.")
@option("--seed", type=int, default=1, help="The same seed draws the same parts.")
@option("--group-duplicates", is_flag=True, help="Find near-duplicates first, and keep them on one side.")
@as_json
def split(data: LabelledFolder, out: Path, by: str, group_duplicates: bool, as_json: bool, **shares: Any) -> None:
    """Share labelled images out to training, validation and held-out; a part is never cut.

    \b
    aoi dataset split ./tiles --out ./split
    aoi dataset split ./tiles --out ./split --group-duplicates
    aoi dataset split ./tiles --out ./split --folds 5
    """
    if by != "group" and shares["folds"]:
        raise click.UsageError(f"--folds are drawn by group; leave out --by {by}")
    if by == "random" and group_duplicates:
        raise click.UsageError("--by random cuts parts; leave out --group-duplicates")
    with _errors_told():
        opened = data.open()
        class_of, together = _looked_at(opened, group_duplicates)
        made = _shared_out(opened, out, by, class_of, together, **shares)
        for folder, each in made.items():
            write_split(each, folder)
    _show_splits(opened, made, class_of, as_json)
    _warn(opened, made, class_of, together, by)


@dataset.command()
@data_argument
@option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON file to write.")
def coco(data: LabelledFolder, out: Path) -> None:
    """Write labelled images of any form as COCO: one JSON file, regions as run-length codes.

    \b
    aoi dataset coco ./tiles --out ./tiles.json
    """
    with _errors_told():
        opened = data.open()
        problems = list(opened.problems)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with _progress() as tell:
                problems += write_coco(opened, _pictures(opened, problems, tell), out)
        except OSError as error:
            raise DiskError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    _tell_problems(problems)
    click.echo(
        f"{out}: {counted(len(opened.samples), 'picture')} of {opened.form} data, less what is told above", err=True
    )


def _of_form(name: str) -> str:
    """What the module behind a form says of its layout."""
    summary, _, layout = inspect.cleandoc(load_form(name).__doc__ or "").partition("\n\n")
    what = summary.partition(": ")[2].partition(";")[0].rstrip(".")
    return " ".join(f"{what}. {layout}".replace("`", "").split())


def _page_writer() -> Any:
    """The module that writes the page, before an hour of reading rather than after it."""
    try:
        return import_module("engines.datasets.explore_page")
    except ImportError as error:
        raise SourceError(f"no figures ({error}); pip install 'inline-aoi[plots]', or ask for --json") from error


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        raise SourceError(str(error)) from error


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on stderr with the time that is left; one for each kind of work."""
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield tell


def _looked_at(data: Dataset, group_duplicates: bool) -> tuple[dict[str, int], Sequence[Sequence[str]]]:
    """Class by picture, and the sets to keep together: the pictures are read only if one of the two needs it."""
    if not group_duplicates and all(sample.class_index is not None for sample in data.samples):
        _tell_problems(data.problems)
        return {sample.image: sample.class_index or 0 for sample in data.samples}, ()
    with _progress() as tell:
        if group_duplicates:
            found = explore(data, None, tell)
            _tell_problems(found.census.problems)
            return found.census.class_of(), found.joined()
        problems = list(data.problems)
        class_of = {picture.sample.image: picture.class_index for picture in _pictures(data, problems, tell)}
    _tell_problems(problems)
    return class_of, ()


def _pictures(data: Dataset, problems: list[Problem], tell: Tell) -> Iterator[Picture]:
    """Every picture that can be read, one at a time; the others go to the problems."""
    for done, sample in enumerate(data.samples, 1):
        try:
            yield read_picture(data, sample)
        except UnreadablePictureError as error:
            problems.append(Problem(sample.image, str(error)))
        tell("reading", done, len(data.samples))


def _shared_out(
    data: Dataset,
    out: Path,
    by: str,
    class_of: Mapping[str, int],
    together: Sequence[Sequence[str]],
    held_out: float,
    validation: float,
    folds: int,
    seed: int,
) -> dict[Path, Split]:
    """The split for each folder."""
    if by == "time":
        return {out: split_by_time(data, held_out, validation, together)}
    if by == "random":
        return {out: split_at_random(data, seed, held_out, validation, class_of)}
    same_tile = read_same_tile(out)
    if folds:
        made = make_folds(data, seed, folds, validation, same_tile, class_of, together)
        return {out / f"fold-{number}": each for number, each in enumerate(made)}
    return {out: make_split(data, seed, held_out, validation, same_tile, class_of, together)}


def _show_splits(data: Dataset, made: Mapping[Path, Split], class_of: Mapping[str, int], as_json: bool) -> None:
    facts = {str(folder): _sides(data, each, class_of) for folder, each in made.items()}
    if as_json:
        click.echo(json.dumps(facts))
        return
    table = _table("folder", "side", "groups", *data.classes)
    for folder, sides in facts.items():
        for number, (side, counts) in enumerate(sides.items()):
            shown = "" if number else safe(Path(folder).name)
            table.add_row(shown, side, str(counts["groups"]), *(f"{n:,}" for n in counts["classes"].values()))
    Console().print(table)


def _sides(data: Dataset, made: Split, class_of: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Per side that is not empty: pictures, groups, and pictures of each class."""
    sides = {}
    for side, paths in made.sides().items():
        if paths:
            counts = Counter(class_of.get(path) for path in paths)
            sides[side] = {
                "pictures": len(paths),
                "groups": len({sample.group for sample in made.samples(data, paths)}),
                "classes": {name: counts[index] for index, name in enumerate(data.classes)},
            }
    return sides


def _warn(
    data: Dataset,
    made: Mapping[Path, Split],
    class_of: Mapping[str, int],
    together: Sequence[Sequence[str]],
    by: str,
) -> None:
    if by == "random":
        click.echo(f"warning: {RANDOM_REMARK.lstrip('# ')}; what is measured on it flatters", err=True)
    elif together:
        click.echo(f"{counted(len(together), 'set')} of near-duplicates kept together", err=True)
    elif len({sample.group for sample in data.samples}) == len(data.samples):
        said = (
            "every picture is a group of its own; if a part was taken more than once use --groups or --group-duplicates"
        )
        click.echo(f"warning: {said}", err=True)
    known = set(class_of.values())
    for folder, each in made.items():
        held = {class_of.get(path) for path in each.held_out}
        if missing := [data.classes[index] for index in sorted(known - held)] if each.held_out else []:
            click.echo(f"warning: {folder}: nothing held out of {', '.join(missing)}; too few groups", err=True)


def _show_exploration(facts: Mapping[str, Any]) -> None:
    table = _table("class", "pictures", "groups", "defects", "area px, median", "width px, 5 %")
    for name, row in facts["per_class"].items():
        area, width = row["area_px"].get("p50"), row["width_px"].get("p5")
        table.add_row(
            safe(name),
            f"{row['pictures']:,}",
            f"{row['groups']:,}",
            f"{row['defects']:,}",
            "–" if area is None else f"{area:,.0f}",
            "–" if width is None else f"{width:.1f}",
        )
    Console().print(table)
    twins, advice = facts["duplicates"], facts["advice"]
    if advice:
        click.echo(f"for a recipe: picture.scale {advice['scale']:g}, tiles of {advice['tile']} px")
    if twins["parts_look_alike"]:
        click.echo("the parts look alike by design: near-duplicates cannot be told by looks")
    else:
        pairs = counted(twins["same_bytes"] + twins["same_pixels"], "exact duplicate")
        click.echo(f"{pairs}; {counted(twins['sets'], 'scene')} taken more than once")
    if facts["split"]:
        scenes = counted(len(facts["split"]["sets_over_sides"]), "scene")
        click.echo(f"{scenes} on more than one side of the split")
    _tell_problems([Problem(**problem) for problem in facts["problems"]])


def _tell_problems(problems: Sequence[Problem]) -> None:
    """What was left out, and why, on stderr; of many the first."""
    for problem in problems[:SHOWN_PROBLEMS]:
        click.echo(f"left out: {safe(problem.path)}: {safe(problem.reason)}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        click.echo(f"… and {len(problems) - SHOWN_PROBLEMS} more", err=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(safe(column), justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table
