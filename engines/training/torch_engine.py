"""The network that was taught, in torch, behind the engine contract: what every engine file is compared with.

It runs no ONNX: beside the model file lie the weights that `aoi train` kept (engines.training.kept_weights), and the
network is built around them again. On a GPU (`device = "cuda"`) it stands in where no TensorRT runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engines.base import OUTPUTS, EngineError, EngineOptions, EngineSpec, Kind, Outputs, Pixels, check_batch
from engines.datasets.labelled import DatasetError
from engines.onnx_file import read_model_file
from engines.onnx_tensors import tile_shape
from engines.training.kept_weights import deployed, kept


class TorchTicket:
    """One batch that runs, or has run, on torch's own stream."""

    def __init__(self, outputs: dict[str, torch.Tensor]) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        return True

    def result(self) -> Outputs:
        try:
            return {name: value.cpu().numpy() for name, value in self._outputs.items()}
        except RuntimeError as error:  # what went wrong on a GPU is told when one waits for it
            raise EngineError(f"torch: {_line(error)}", "broken") from error


class TorchEngine:
    """A kept network of a model folder; `model` tells the tile, and whose weights they should be."""

    def __init__(self, model: Path, kind: Kind, classes: tuple[str, ...], options: EngineOptions) -> None:
        content, model_hash = read_model_file(model, options.sha256)
        height, width, channels = tile_shape(content, model, kind, classes)
        self._device = torch.device(options.device or "cpu")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError("torch sees no GPU; install its driver, or take another device", "missing")
        self._net: nn.Module | None = None
        self._made = _network(model.parent, kind, classes)
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU by torch"
        self.spec = EngineSpec(
            engine="torch",
            kind=kind,
            device=name,
            height=height,
            width=width,
            channels=channels,
            classes=classes,
            max_batch=options.max_batch,
            in_flight=options.in_flight,
            model_hash=model_hash,
            runtime=f"torch {torch.__version__}",
        )

    def __enter__(self) -> TorchEngine:
        self._net = self._made.to(self._device).eval()
        self.submit(np.zeros((1, *self.spec.tile_shape), np.uint8)).result()
        return self

    def __exit__(self, *exc: object) -> None:
        self._net = None

    def submit(self, batch: Pixels, notify: Callable[[], None] | None = None) -> TorchTicket:
        check_batch(self.spec, batch)
        if self._net is None:
            raise EngineError("engine is closed; enter it first", "broken")
        names = OUTPUTS[self.spec.kind]
        try:
            with torch.inference_mode():
                said = self._net(torch.from_numpy(np.ascontiguousarray(batch)).to(self._device))
        except torch.OutOfMemoryError as error:
            raise EngineError(f"torch: {_line(error)}", "memory") from error
        except RuntimeError as error:
            raise EngineError(f"torch: {_line(error)}", "batch") from error
        if notify:
            notify()
        return TorchTicket(dict(zip(names, said if isinstance(said, tuple) else (said,), strict=True)))


def _network(folder: Path, kind: Kind, classes: tuple[str, ...]) -> nn.Module:
    """The kept network of this kind; EngineError when there is none for these classes."""
    try:
        found = [(blueprint, deployed(blueprint, net)) for blueprint, net in kept(folder)]
    except DatasetError as error:
        raise EngineError(f"engine torch: {error}", "missing") from error
    for blueprint, made in found:
        if kind in made and len(blueprint.classes) == len(classes):
            return made[kind]
    raise EngineError(f"{folder} keeps no weights of a {kind} for {len(classes)} classes; train it again", "unfit")


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def devices() -> list[str]:
    """What torch runs on here."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [f"CPU (torch {torch.__version__})", *names]
