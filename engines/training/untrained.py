"""Networks as they are before they have learnt anything, as engine files: their speed is that of taught ones."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from engines.base import Kind
from engines.datasets.labelled import DatasetError
from engines.training.export import export, halve
from engines.training.kept_weights import blueprint_of, build, check_sides, deployed
from engines.training.presets import PRESETS, ROLES, Lesson

WIDE = re.compile("(.+)-([1-9][0-9]{0,2})")  # network and width


@dataclass(frozen=True)
class Untrained:
    """One engine file."""

    kind: Kind
    name: str  # in the model folder
    sha256: str


def write_untrained(
    folder: Path, network: str, tile: tuple[int, int], channels: int, classes: tuple[str, ...]
) -> list[Untrained]:
    """Write `network` for tiles of this height and width, px, and 1 or 3 channels.

    A name of ROLES, built as the presets build it, or one with its filters at full resolution behind it, such as
    unet-16. Raises DatasetError for any other name, and for tiles that do not suit the network.
    """
    blueprint = blueprint_of(lesson_of(network), classes, channels, template=False)
    net = build(blueprint).eval()
    check_sides(net, tile)
    files = []
    for kind, module in deployed(blueprint, net).items():
        path = folder / f"{kind}.onnx"
        export(module, kind, (*tile, channels), path)
        halve(path)  # as a taught one
        files.append(Untrained(kind, path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return files


def lesson_of(name: str) -> Lesson:
    """The lesson in which a preset teaches this network, or one of the same role with this network in it."""
    wide = None if name in ROLES else WIDE.fullmatch(name)
    network, width = (wide[1], int(wide[2])) if wide else (name, 0)
    if network not in ROLES or (width and ROLES[network] != "segmenter"):
        known = ", ".join(ROLES)
        raise DatasetError(f"no network {name!r}; there are: {known}; the U-Nets with a width too, such as unet-16")
    lessons = [lesson for preset in PRESETS.values() for lesson in preset.lessons]
    same = [lesson for lesson in lessons if lesson.network == network]
    alike = [replace(lesson, network=network, options={}) for lesson in lessons if lesson.role == ROLES[network]]
    lesson = [*same, *alike][0]
    return replace(lesson, options={**lesson.options, "width": width}) if width else lesson
