"""From labelled pictures to the ONNX files of a model folder, by one preset; it writes no recipe and judges nothing."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from engines.base import Kind
from engines.contrast import contrasted
from engines.datasets.labelled import (
    Dataset,
    DatasetError,
    Picture,
    Problem,
    Sample,
    UnreadablePictureError,
    read_image,
    read_pictures,
)
from engines.training.export import export_small
from engines.training.fit import State
from engines.training.geometry import LARGEST_TILE, choose_shape
from engines.training.kept_weights import Blueprint, check_sides, deployed, keep, kept
from engines.training.presets import Lesson, Preset
from engines.training.teach import Class, Taught, teach
from engines.training.tiles import TileShape, scaled, tiles_of

CHECKPOINTS = "checkpoints"  # below the model folder; training itself goes on from them, nothing else needs them
COLOURED = 4.0  # mean difference of a picture's channels, grey levels, from which it is a coloured one
LOOKED_AT = 24  # pictures, for their colour
CHECKED = 8  # tiles on which the file is compared with the network
WHOLE_TILE = 1 << 22  # px: as large as a tile may be where a network sees pictures whole


@dataclass(frozen=True)
class Order:
    """What to make and from what."""

    dataset: Dataset
    training: Sequence[Sample]
    validation: Sequence[Sample]
    preset: Preset
    out: Path
    device: str = "cpu"
    align: Callable[[Picture], Picture] | None = None  # lays a golden template onto its picture; may refuse it


@dataclass(frozen=True)
class File:
    """One exported network."""

    kind: Kind
    name: str  # in the model folder
    sha256: str
    classes: tuple[str, ...]
    difference: float  # largest, of a probability, between file and network


@dataclass(frozen=True, eq=False)
class Made:
    """What came out, for the recipe and the card."""

    order: Order
    files: tuple[File, ...]
    shape: TileShape
    template: bool
    states: tuple[State, ...]
    minutes: float
    problems: tuple[Problem, ...]


def make_model(order: Order, console: Console) -> Made:
    """Teach, export and check every network of the preset. Raises DatasetError or EngineError."""
    started = time.monotonic()
    lecture, problems = _lecture(order, console)
    files: list[File] = []
    states: list[State] = []
    lessons = [_timed(lesson, order.preset) for lesson in order.preset.lessons]
    checkpoints = [_checkpoint(order, lesson, lecture) for lesson in lessons]
    for lesson, checkpoint in zip(lessons, checkpoints, strict=True):
        taught = teach(lesson, lecture, checkpoint, console)
        files += _exported(taught, lecture, order.out)
        states.append(taught.state)
    for old in set((order.out / CHECKPOINTS).glob("*.pt")) - set(checkpoints):
        old.unlink()  # of a training that this one has replaced
    minutes = (time.monotonic() - started) / 60
    return Made(order, tuple(files), lecture.shape, lecture.template, tuple(states), minutes, tuple(problems))


def _lecture(order: Order, console: Console) -> tuple[Class, list[Problem]]:
    preset, samples = order.preset, [*order.training, *order.validation]
    colour = _is_coloured(order.dataset, samples)
    without = sum(not sample.reference for sample in samples)
    template = without == 0
    if 0 < without < len(samples):
        console.print(f"{without} of {len(samples)} pictures have no golden template: none is used", highlight=False)
    sides, problems = [], []
    for wanted in (order.training, order.validation):
        shown = wanted if template else [replace(sample, reference="") for sample in wanted]
        pictures, skipped = _read(order, shown, colour and not template)
        problems += skipped
        sides.append(pictures)
    for problem in problems:
        console.print(f"skipped {problem.path}: {problem.reason}", style="yellow", markup=False, soft_wrap=True)
    if not sides[0] or not sides[1]:
        raise DatasetError(f"no picture to {'learn from' if sides[1] else 'validate with'}; see what was skipped")
    whole = any(lesson.whole for lesson in preset.lessons)
    shape = _wanted(preset, preset.shape or choose_shape(sides[0], WHOLE_TILE if whole else LARGEST_TILE, preset.scale))
    channels = 3 if colour or template else 1
    training, validation = sides
    lecture = Class(
        order.dataset.classes, training, validation, shape, preset.variation, channels, template, order.device
    )
    return lecture, problems


def _wanted(preset: Preset, shape: TileShape) -> TileShape:
    """The shape with what the preset insists on."""
    if preset.scale:
        shape = replace(shape, scale=preset.scale)
    if preset.tile:
        height, width = preset.tile
        crop = (min(shape.crop[0], height), min(shape.crop[1], width))
        overlap = min(shape.overlap, height // 2, width // 2)
        shape = replace(shape, height=height, width=width, overlap=overlap, crop=crop)
    return shape


def _read(order: Order, samples: Iterable[Sample], colour: bool) -> tuple[list[Picture], list[Problem]]:
    """The pictures of one side, ready to be shown, and those that had to be left out."""
    pictures, problems = read_pictures(order.dataset, samples, colour)
    ready = []
    for picture in pictures:
        try:
            ready.append(_ready(picture, order))
        except UnreadablePictureError as error:
            problems.append(Problem(picture.sample.image, str(error)))
    return ready, problems


def _ready(picture: Picture, order: Order) -> Picture:
    """As the line's preparation leaves it, but for the scale; raises UnreadablePictureError where that refuses."""
    step = order.preset.contrast
    picture = order.align(picture) if order.align and picture.reference is not None else picture
    reference = None if picture.reference is None else contrasted(picture.reference, step)
    return replace(picture, pixels=contrasted(picture.pixels, step), reference=reference)


def _is_coloured(dataset: Dataset, samples: Sequence[Sample]) -> bool:
    """Do most of a few pictures show more than grey?"""
    spread = samples[:: max(1, len(samples) // LOOKED_AT)][:LOOKED_AT]
    coloured = []
    for sample in spread:
        with suppress(UnreadablePictureError):  # told when all are read
            picture = read_image(dataset.folder / sample.image, "picture", colour=True).astype(np.float32)
            coloured.append(np.abs(picture - picture.mean(2, keepdims=True)).mean() > COLOURED)
    return bool(coloured) and float(np.mean(coloured)) > 0.5


def _timed(lesson: Lesson, preset: Preset) -> Lesson:
    """The preset's minutes, shared out evenly."""
    minutes = preset.minutes / len(preset.lessons)
    return replace(lesson, schedule=replace(lesson.schedule, minutes=minutes))


def _checkpoint(order: Order, lesson: Lesson, lecture: Class) -> Path:
    """Named by everything that decides what is taught, so that another training never goes on from it."""
    told = {
        "lesson": asdict(lesson),
        "shape": asdict(lecture.shape),
        "variation": asdict(lecture.variation),
        "contrast": order.preset.contrast,
        "classes": lecture.classes,
        "planes": (lecture.channels, lecture.template),
        "training": [_fingerprint(picture) for picture in lecture.training],
        "validation": [_fingerprint(picture) for picture in lecture.validation],
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return order.out / CHECKPOINTS / f"{lesson.role}-{digest[:12]}.pt"


def _fingerprint(picture: Picture) -> tuple[str, ...]:
    """Of a picture and its labels: a mask that was put right is another training."""
    planes = (picture.pixels, picture.labels, picture.reference)
    sums = [str(zlib.crc32(plane.tobytes())) for plane in planes if plane is not None]
    return (picture.sample.image, picture.sample.group, str(picture.class_index), *sums)


def _exported(taught: Taught, lecture: Class, out: Path) -> list[File]:
    shape = (lecture.shape.height, lecture.shape.width, lecture.channels)
    keep(taught.blueprint, taught.net, out)
    return export_files(taught.blueprint, taught.net, shape, out, _some_tiles(lecture))


def export_files(
    blueprint: Blueprint, net: nn.Module, shape: tuple[int, int, int], out: Path, tiles: np.ndarray
) -> list[File]:
    """Write and check a file for each kind of engine that the network serves."""
    files = []
    for kind, module in deployed(blueprint, net).items():
        path = out / f"{kind}.onnx"
        difference = export_small(module, kind, shape, path, tiles, blueprint.classes)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(File(kind, path.name, digest, blueprint.classes, difference))
    return files


def export_again(folder: Path, out: Path, tile: tuple[int, int]) -> list[File]:
    """The kept networks of a model folder for tiles of another height and width. Raises DatasetError, EngineError."""
    files: list[File] = []
    for blueprint, net in kept(folder):
        check_sides(net, tile)
        shape = (*tile, blueprint.channels)
        tiles = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
        files += export_files(blueprint, net, shape, out, tiles)
    return files


def _some_tiles(lecture: Class) -> np.ndarray:
    """uint8 [n, H, W, C]: the first tile of validation pictures spread over the whole list."""
    spread = lecture.validation[:: max(1, len(lecture.validation) // CHECKED)][:CHECKED]
    return np.stack([next(tiles_of(scaled(each, lecture.shape.scale), lecture.shape)).pixels for each in spread])


def find_device(wanted: str = "") -> str:
    """The device of this name, or `cuda` where torch finds one, else `cpu`. Raises DatasetError when it is not here."""
    if not wanted:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise DatasetError(f"device {wanted!r} cannot be trained on here; there are: {there}") from error
    return wanted


def use_threads(count: int) -> None:
    """Train with so many CPU threads; 0: as many as there are cores."""
    torch.set_num_threads(count or os.cpu_count() or 1)
