"""How a trained network becomes an ONNX file of the engine contract; it knows nothing of its training."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines import open_engine
from engines.base import OUTPUTS, EngineError, EngineOptions, Kind

OPSET = 17
TOLERANCE = 2e-3  # largest difference of a probability between torch and the engine


class DeployedClassifier(nn.Module):
    """uint8 [N, H, W, 1] → float32 [N, K] scores, as engines.base describes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels.permute(0, 3, 1, 2).float()).softmax(1)


class DeployedSegmenter(nn.Module):
    """uint8 [N, H, W, 1] → uint8 [N, H, W] labels and confidence, as engines.base describes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        chance, label = self.net(pixels.permute(0, 3, 1, 2).float()).softmax(1).max(1)
        return label.to(torch.uint8), (chance * 255).round().to(torch.uint8)


def deployed(net: nn.Module, kind: Kind) -> nn.Module:
    """The network with everything around it that the contract asks for, ready to run."""
    wrapped = DeployedClassifier(net) if kind == "classifier" else DeployedSegmenter(net)
    return wrapped.eval()


def export(net: nn.Module, kind: Kind, size: int, path: Path) -> None:
    """Write `path` for tiles of `size` × `size` px, mono8, any batch.

    The exporter that traces is used: it folds batch normalisation and leaves no trace of this machine in the
    file, where the one that compiles writes source paths and stack traces into every node.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, size, size, 1, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the other exporter is recommended
        torch.onnx.export(
            deployed(net.float(), kind),
            (example,),
            str(path),
            input_names=["pixels"],
            output_names=list(OUTPUTS[kind]),
            dynamic_axes={name: {0: "N"} for name in ("pixels", *OUTPUTS[kind])},
            opset_version=OPSET,
            dynamo=False,
        )


def check_export(net: nn.Module, kind: Kind, path: Path, tiles: np.ndarray, classes: tuple[str, ...]) -> float:
    """Compare the file, run by the cpu engine, with the network on uint8 [n, H, W, 1].

    Returns the largest difference of a score (classifier), or the most probability by which a label falls
    short of the winner (segmenter: a tie that rounding decides costs nothing). Raises EngineError when it is
    above TOLERANCE.
    """
    with torch.no_grad():
        chance = net.float()(torch.from_numpy(tiles).permute(0, 3, 1, 2).float()).softmax(1)
    with open_engine("cpu", path, kind, classes, EngineOptions(max_batch=len(tiles), in_flight=1)) as engine:
        got = engine.submit(tiles).result()
    if kind == "classifier":
        difference = (torch.from_numpy(got["scores"]) - chance).abs().max().item()
    else:
        label = torch.from_numpy(got["labels"]).long().unsqueeze(1)
        difference = (chance.max(1, keepdim=True).values - chance.gather(1, label)).max().item()
    if difference > TOLERANCE:
        raise EngineError(f"{path} differs from the network by {difference:.4g}, allowed is {TOLERANCE}", "unfit")
    return difference
