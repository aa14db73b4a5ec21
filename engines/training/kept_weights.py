"""A taught network's weights beside its model, so that it can be exported again; it teaches nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engines.base import Kind
from engines.datasets.labelled import DatasetError
from engines.training.networks import load_network
from engines.training.networks.deployed import DeployedClassifier, DeployedSegmenter, DeployedSigmoids
from engines.training.networks.inline import Inline, InlineClassifier, InlineSegmenter
from engines.training.networks.resized import Resized
from engines.training.presets import Lesson

FOLDER = "weights"


@dataclass(frozen=True)
class Blueprint:
    """What a network is before it has learnt anything; plain values, so that a file can hold them."""

    role: str
    network: str
    options: dict[str, Any]
    activation: str
    input: tuple[int, int] | None
    classes: tuple[str, ...]
    channels: int
    template: bool


def blueprint_of(lesson: Lesson, classes: tuple[str, ...], channels: int, template: bool) -> Blueprint:
    """Of a lesson taught on pictures of so many channels."""
    facts = (lesson.role, lesson.network, dict(lesson.options), lesson.activation, lesson.input)
    return Blueprint(*facts, classes, channels, template)


def build(blueprint: Blueprint) -> nn.Module:
    """The network, untaught; our pair with the encoder that knows photographs."""
    outputs = len(blueprint.classes)
    if blueprint.role == "pair":
        return Inline(blueprint.channels, outputs, blueprint.template)
    outputs -= blueprint.activation == "sigmoid"
    net = load_network(blueprint.network)(channels=blueprint.channels, classes=outputs, **blueprint.options)
    return Resized(net, blueprint.input) if blueprint.input else net


def check_sides(net: nn.Module, sides: tuple[int, int]) -> None:
    """Raises DatasetError when tiles of this height and width, px, are not what the network can halve and double."""
    step = int(getattr(net, "side_step", 1))
    if any(side % step for side in sides):
        raise DatasetError(f"tiles of {sides[0]}×{sides[1]} px do not suit the network; give multiples of {step} px")


def deployed(blueprint: Blueprint, net: nn.Module) -> dict[Kind, nn.Module]:
    """The network as the engines run it: one file's worth per kind."""
    if blueprint.role == "pair":
        assert isinstance(net, Inline)
        judge, marker = DeployedClassifier(InlineClassifier(net)), DeployedSegmenter(InlineSegmenter(net))
        return {"classifier": judge, "segmenter": marker}
    if blueprint.role == "classifier":
        return {"classifier": DeployedClassifier(net)}
    return {"segmenter": (DeployedSigmoids if blueprint.activation == "sigmoid" else DeployedSegmenter)(net)}


def keep(blueprint: Blueprint, net: nn.Module, folder: Path) -> Path:
    """Write the weights below a model folder; returns the file. Raises DatasetError when it cannot be written."""
    path = folder / FOLDER / f"{blueprint.role}.pt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"blueprint": vars(blueprint), "weights": net.state_dict()}, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch
        raise DatasetError(f"{path} cannot be written; make room, or choose another folder") from error
    return path


def kept(folder: Path) -> list[tuple[Blueprint, nn.Module]]:
    """Every network kept below a model folder. Raises DatasetError when there is none or it is damaged."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.pt")):
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            blueprint = Blueprint(**{each.name: stored["blueprint"][each.name] for each in fields(Blueprint)})
            net = build(blueprint)
            net.load_state_dict(stored["weights"])
        except Exception as error:
            raise DatasetError(f"{path} cannot be read ({type(error).__name__}); train again") from error
        found.append((blueprint, net.eval()))
    if not found:
        raise DatasetError(f"{folder / FOLDER} holds no weights; give a folder that `aoi train` wrote")
    return found
