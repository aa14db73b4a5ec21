"""The networks that the field's systems use, by name, each in a file of its own; none knows files or training.

All of them take float [N, C, H, W], grey values 0 … 255 as the camera gave them, C = 1 (mono8) or 3 (BGR8), and
give raw scores: [N, K] of a picture, or [N, K, H, W] of its pixels. K counts the planes of scores: every class
where a softmax follows; the defect classes alone, without the background, where a sigmoid follows each.
Constructors take `channels` and `classes` (= K) first. `side_step` says what H and W must be multiples of. What
turns scores into an engine's outputs is in `deployed`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from engines.base import EngineError

NETWORKS = {
    "unet": "engines.training.networks.unet:UNet",
    "lcd-unet": "engines.training.networks.unet:LcdUNet",
    "mobilenet-v1": "engines.training.networks.mobilenet:MobileNetV1",
    "mobilenet-v2": "engines.training.networks.mobilenet:MobileNetV2",
    "resnet-50": "engines.training.networks.resnet:ResNet50",
    "res-unet": "engines.training.networks.res_unet:ResUNet",
    "add-skip-unet": "engines.training.networks.add_skip_unet:AddSkipUNet",
}


def load_network(name: str) -> Callable[..., Any]:
    """The class behind a network's name. Raises EngineError for a name that is none."""
    if name not in NETWORKS:
        raise EngineError(f"no network {name!r}; there are: {', '.join(NETWORKS)}", "missing")
    module, attribute = NETWORKS[name].split(":")
    network: Callable[..., Any] = getattr(import_module(module), attribute)
    return network
