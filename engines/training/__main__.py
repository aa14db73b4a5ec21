"""`python -m engines.training …`: parse, read, call, report; it decides nothing about training itself."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console

from engines.base import EngineError, Kind
from engines.training.augment import Variation
from engines.training.cascade import Rules
from engines.training.dataset import Dataset, DatasetError, Picture, Sample, open_dataset, read_pictures
from engines.training.export import check_export, export
from engines.training.fit import Schedule
from engines.training.report import measure, write_report
from engines.training.split import make_split, read_same_tile, read_split, write_split
from engines.training.teach import Plan, teach_classifier, teach_segmenter
from engines.training.tiles import TileShape, scaled, tiles_of

FOLDER = click.Path(path_type=Path, file_okay=False)
CONSOLE = Console(stderr=True)


@click.group()
def cli() -> None:
    """Train, export and measure the two networks of a model folder."""


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that reads pictures takes."""
    options = [
        click.option("--data", type=FOLDER, required=True, help="Picture and mask folder."),
        click.option("--good", default="", help="Name of the good class, where the folder does not say it."),
        click.option("--tile", "size", default=256, show_default=True, help="Side of a tile, px after scaling."),
        click.option("--overlap", default=32, show_default=True, help="Px that neighbouring tiles share."),
        click.option("--scale", default=1.0, show_default=True, help="Tile px per picture px."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """What decides how a network is trained."""
    default = Schedule()
    options = [
        click.option("--split", "split_folder", type=FOLDER, required=True, help="Folder that `split` wrote."),
        click.option("--out", type=FOLDER, required=True, help="Model folder to write the ONNX file into."),
        click.option("--epochs", default=default.epochs, show_default=True),
        click.option("--tiles", default=default.tiles, show_default=True, help="Tiles drawn per epoch."),
        click.option("--batch", default=default.batch, show_default=True),
        click.option("--rate", default=default.learning_rate, show_default=True, help="Peak learning rate."),
        click.option("--patience", default=default.patience, show_default=True, help="Epochs without progress."),
        click.option("--seed", default=default.seed, show_default=True),
        click.option("--width", default=16, show_default=True, help="Channels of the first layer."),
        click.option("--stem-stride", default=2, show_default=True, help="Step of the first layer: 2 or 4."),
        click.option("--good-share", default=0.5, show_default=True, help="Share of draws from good pictures."),
        click.option("--zoom", default=0.15, show_default=True, help="Size variation."),
        click.option("--tilt", default=4.0, show_default=True, help="Tilt variation, degrees."),
        click.option("--light", default=0.5, show_default=True, help="Exposure and noise variation, 0 to 1."),
        click.option("--paste", default=0.0, show_default=True, help="Share of good draws given a defect."),
        click.option("--flips/--no-flips", default=True, help="Mirror: where the pattern allows it."),
        click.option("--turns/--no-turns", default=False, help="Quarter turns: texture without a direction."),
        click.option("--threads", default=2, show_default=True, help="CPU threads."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _plan(options: dict[str, Any]) -> Plan:
    return Plan(
        TileShape(options["size"], options["overlap"], options["scale"]),
        Variation(**{name: options[name] for name in ("flips", "turns", "zoom", "tilt", "paste", "light")}),
        Schedule(
            options["epochs"],
            options["tiles"],
            options["batch"],
            options["rate"],
            options["patience"],
            options["seed"],
        ),
        options["width"],
        options["stem_stride"],
        options["good_share"],
        options.get("encoder_from"),
    )


@cli.command()
@click.option("--data", type=FOLDER, required=True, help="Picture and mask folder.")
@click.option("--good", default="", help="Name of the good class, where the folder does not say it.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the lists; same-tile.txt is read from it.")
@click.option("--held-out", "held_out_share", default=0.2, show_default=True, help="Share of tiles that only judge.")
@click.option("--validation", "validation_share", default=0.15, show_default=True, help="Share of tiles that choose.")
@click.option("--seed", default=1, show_default=True)
def split(data: Path, good: str, out: Path, **shares: Any) -> None:
    """Decide which pictures teach, choose and judge, by tile group."""
    made = make_split(open_dataset(data, good), same_tile=read_same_tile(out), **shares)
    write_split(made, out)
    sides = ("training", "validation", "held_out", "left_out")
    CONSOLE.print(", ".join(f"{len(getattr(made, side))} {side.replace('_', ' ')}" for side in sides))


@cli.command()
@data_options
@plan_options
def classifier(**options: Any) -> None:
    """Train the network that decides which tiles are suspect; writes classifier.onnx."""
    _train("classifier", options)


@cli.command()
@data_options
@plan_options
@click.option(
    "--encoder-from",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="classifier.onnx of the same width and stem to start from.",
)
def segmenter(**options: Any) -> None:
    """Train the network that marks defects in suspect tiles; writes segmenter.onnx."""
    _train("segmenter", options)


def _train(kind: Kind, options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    plan = _plan(options)
    dataset = open_dataset(options["data"], options["good"])
    sides = read_split(dataset, options["split_folder"])
    training = _read(dataset, sides.samples(dataset, sides.training))
    validation = _read(dataset, sides.samples(dataset, sides.validation))
    started = time.monotonic()
    teach = teach_classifier if kind == "classifier" else teach_segmenter
    net, score = teach(dataset.classes, training, validation, plan, CONSOLE)
    minutes = (time.monotonic() - started) / 60
    path = options["out"] / f"{kind}.onnx"
    export(net, kind, plan.shape.size, path)
    difference = check_export(net, kind, path, _some_tiles(validation, plan.shape), dataset.classes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    CONSOLE.print(
        f"{path}: {path.stat().st_size / 2**20:.2f} MiB, validation {score:.4f}, {minutes:.1f} minutes", soft_wrap=True
    )
    CONSOLE.print(
        f"engine against torch {difference:.2g}; classes {', '.join(dataset.classes)}; sha256 {digest}", soft_wrap=True
    )


def _some_tiles(pictures: list[Picture], shape: TileShape, count: int = 8) -> np.ndarray:
    """uint8 [n, size, size, 1]: the first tile of pictures spread over the whole list."""
    spread = pictures[:: max(1, len(pictures) // count)][:count]
    return np.stack([next(tiles_of(scaled(picture, shape.scale), shape)).pixels for picture in spread])[..., None]


def _read(dataset: Dataset, samples: Sequence[Sample]) -> list[Picture]:
    pictures, skipped = read_pictures(dataset, samples)
    for path, reason in skipped:
        CONSOLE.print(f"skipped {path}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if not pictures:
        raise DatasetError(f"none of {len(samples)} pictures in {dataset.folder} can be read")
    return pictures


@cli.command()
@data_options
@click.option("--model", type=FOLDER, required=True, help="Folder with classifier.onnx and segmenter.onnx.")
@click.option("--split", "split_folder", type=FOLDER, help="Folder of the split; without it, every picture.")
@click.option("--side", type=click.Choice(["validation", "held_out"]), default="validation", show_default=True)
@click.option("--threshold", default=0.01, show_default=True, help="P(defect) from which a tile is suspect.")
@click.option("--min-area", default=20, show_default=True, help="Px of the picture.")
@click.option("--min-score", default=0.5, show_default=True)
@click.option("--review-above", default=0.9, show_default=True)
@click.option("--sweep", is_flag=True, help="Try thresholds instead; for validation only.")
def evaluate(**options: Any) -> None:
    """Run the cascade over whole pictures and report escapes, overkill and Dice."""
    dataset = open_dataset(options["data"], options["good"])
    samples: Sequence[Sample] = dataset.samples
    if options["split_folder"]:
        sides = read_split(dataset, options["split_folder"])
        samples = sides.samples(dataset, getattr(sides, options["side"]))
    shape = TileShape(options["size"], options["overlap"], options["scale"])
    rules = Rules(*(options[name] for name in ("threshold", "min_area", "min_score", "review_above")))
    measured = measure(_read(dataset, samples), options["model"], dataset.classes, shape)
    write_report(measured, rules, options["sweep"], click.echo)


def main() -> None:
    """Run, and turn what a user can put right into one line and exit code 2."""
    try:
        cli.main(prog_name="python -m engines.training", standalone_mode=False)
    except (DatasetError, EngineError) as error:
        CONSOLE.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)


if __name__ == "__main__":
    main()
