"""The systems that can be trained by name: which networks, taught how; plain data.

The first four are what the field's published systems do, from their data form to their loss; `inline` is ours.
Where a published number would take days on two cores (epochs), the schedule here is shorter; the network, the
loss, the optimiser's rate and the input size are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engines.datasets.labelled import DatasetError
from engines.training.augment import Variation
from engines.training.schedule import Schedule
from engines.training.tiles import TileShape

Role = Literal["pair", "classifier", "segmenter"]
PLAIN = Schedule(decay=0.0, average=0.0)


@dataclass(frozen=True)
class Lesson:
    """One network to be taught."""

    role: Role
    network: str  # in NETWORKS
    loss: str  # of a segmenter, in PIXEL_LOSSES
    schedule: Schedule
    options: Mapping[str, Any] = field(default_factory=dict)  # of the network
    input: tuple[int, int] | None = None  # height, width in px to which the tile is brought inside the network
    whole: bool = False  # shows whole tiles instead of crops
    activation: Literal["softmax", "sigmoid"] = "softmax"  # of a segmenter: may a pixel be of two classes?
    weigh: bool = False  # classes of few pictures more
    gate: bool = False  # knows good and defective only
    good_share: float = 0.5


@dataclass(frozen=True)
class Preset:
    """One system."""

    name: str
    says: str  # one line for the list
    form: str  # of data it was made for; any other will do too
    mode: Literal["cascade", "classify", "segment"]
    lessons: tuple[Lesson, ...]
    variation: Variation = field(default_factory=Variation)
    contrast: str = "none"  # none, equalize, clahe
    shape: TileShape | None = None  # None: chosen from the pictures …
    scale: float = 0.0  # … but for a scale that is wanted, where this is above 0
    tile: tuple[int, int] | None = None  # … and a height and width that are
    threshold: float | None = None  # the classifier's, where the system fixes it; None: chosen on validation
    minutes: float = 40.0  # of training on two cores, at most


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "inline",
            "ours, the default: classifier and segmenter of one encoder that knows photographs",
            "any",
            "cascade",
            (Lesson("pair", "inline", "pair", Schedule(steps=2000), good_share=0.35),),
            Variation(paste=0.5),
        ),
        Preset(
            "lcd-unet",
            "LCD panel segmentation: small U-Net (16–256 filters), Dice loss, Adam 1e-4",
            "labelme",
            "segment",
            (
                Lesson(
                    "segmenter",
                    "lcd-unet",
                    "dice",
                    replace(PLAIN, steps=2400, batch=4, learning_rate=1e-4),
                    {"batch_norm": True},
                    activation="sigmoid",
                    good_share=0.2,
                ),
            ),
            Variation(zoom=0.1, stretch=0.0, tilt=0.0, light=0.2, blur=0.0),
            shape=TileShape(256, 256, 32, 1.0, (256, 256)),
        ),
        Preset(
            "aoi-six-class",
            "AOI six-class classification: MobileNet v2 (or --network mobilenet-v1), 224×224",
            "id-label",
            "classify",
            (
                Lesson(
                    "classifier",
                    "mobilenet-v2",
                    "cross-entropy",
                    replace(PLAIN, steps=1600, batch=16, learning_rate=1e-3),
                    input=(224, 224),
                    whole=True,
                ),
            ),
            Variation(zoom=0.0, stretch=0.0, tilt=0.0, light=0.0, blur=0.0, drift=0.05),
        ),
        Preset(
            "steel-cascade",
            "steel strip: ResNet-50 gate at 0.01, then ResUNet (16–256) with a sigmoid per class",
            "steel-rle",
            "cascade",
            (
                Lesson(
                    "classifier",
                    "resnet-50",
                    "cross-entropy",
                    replace(PLAIN, steps=600, batch=8, learning_rate=5e-4),
                    input=(256, 256),
                    whole=True,
                    gate=True,
                ),
                Lesson(
                    "segmenter",
                    "res-unet",
                    "focal-tversky",
                    replace(PLAIN, steps=1200, batch=6, learning_rate=1e-3),
                    activation="sigmoid",
                    weigh=True,
                    good_share=0.2,
                ),
            ),
            Variation(zoom=0.1, stretch=0.0, tilt=0.0, light=0.2, blur=0.0),
            threshold=0.01,
            minutes=55.0,
        ),
        Preset(
            "low-contrast",
            "faint defects in noise: U-Net with added skips, BCE first and Dice later",
            "image-mask",
            "segment",
            (
                Lesson(
                    "segmenter",
                    "add-skip-unet",
                    "bce-then-dice",
                    replace(PLAIN, steps=900, batch=4, learning_rate=5e-4),
                    activation="sigmoid",
                    good_share=0.1,
                ),
            ),
            Variation(zoom=0.0, stretch=0.0, tilt=0.0, light=0.0, blur=0.0),
            shape=TileShape(256, 256, 32, 1.0, (256, 256)),
        ),
    )
}


# What each network answers, and so in which lessons it can stand for another.
ROLES: dict[str, Role] = {
    "inline": "pair",
    "unet": "segmenter",
    "lcd-unet": "segmenter",
    "res-unet": "segmenter",
    "add-skip-unet": "segmenter",
    "mobilenet-v1": "classifier",
    "mobilenet-v2": "classifier",
    "resnet-50": "classifier",
}


def with_network(preset: Preset, name: str) -> Preset:
    """The preset with another network of the same role. Raises DatasetError when it has no such role."""
    if name not in ROLES:
        raise DatasetError(f"no network {name!r}; there are: {', '.join(ROLES)}")
    taught = [lesson.role for lesson in preset.lessons]
    if ROLES[name] not in taught:
        fitting = ", ".join(each for each, role in ROLES.items() if role in taught)
        raise DatasetError(f"preset {preset.name} has no place for {name}, a {ROLES[name]}; it can take: {fitting}")
    lessons = (
        replace(lesson, network=name, options={}) if lesson.role == ROLES[name] and lesson.network != name else lesson
        for lesson in preset.lessons
    )
    return replace(preset, lessons=tuple(lessons))


def with_loss(preset: Preset, name: str) -> Preset:
    """The preset with another loss of its segmenter. Raises DatasetError when it has none of its own."""
    if not any(lesson.role == "segmenter" for lesson in preset.lessons):
        choices = [each.name for each in PRESETS.values() if any(lesson.role == "segmenter" for lesson in each.lessons)]
        raise DatasetError(f"preset {preset.name} has no loss to choose; these have: {', '.join(choices)}")
    lessons = (replace(lesson, loss=name) if lesson.role == "segmenter" else lesson for lesson in preset.lessons)
    return replace(preset, lessons=tuple(lessons))


def find_preset(name: str) -> Preset:
    """A preset by name; raises DatasetError that lists them."""
    if name not in PRESETS:
        raise DatasetError(f"no preset {name!r}; `aoi train --list` tells: {', '.join(PRESETS)}")
    return PRESETS[name]
