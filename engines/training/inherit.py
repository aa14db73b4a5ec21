"""How a segmenter starts from what a classifier has learnt; it reads the classifier's ONNX file, nothing else.

Both have the same encoder. A classifier learns from a handful of defective tiles what a segmenter, which must
also learn to draw, would need many more steps for.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from engines.base import EngineError
from engines.training.nets import Encoder


def inherit_encoder(encoder: Encoder, classifier: Path, normalised: Tensor) -> None:
    """Copy the convolutions of `classifier` into `encoder`; `normalised` is float [N, 2, H, W] of real tiles.

    The file's batch normalisation is folded into weights and biases. It is put back so that the encoder
    answers as before on these tiles, whether their statistics or the kept ones are used.
    Raises EngineError when the file's encoder has another width or stem.
    """
    graph = onnx.load(str(classifier)).graph
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = []
    for layer, norm, node in zip(layers, norms, nodes, strict=False):
        weights, biases = (torch.from_numpy(stored[name].copy()) for name in node.input[1:3])
        if weights.shape != layer.weight.shape:
            raise EngineError(f"{classifier} has another encoder; train it with the same width and stem", "unfit")
        layer.weight.data.copy_(weights)
        hooks.append(norm.register_forward_pre_hook(_unfolding(biases)))
    with torch.no_grad():
        encoder(normalised)
    for hook in hooks:
        hook.remove()


def _unfolding(biases: Tensor):  # type: ignore[no-untyped-def]
    def unfold(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.data.copy_((variance + norm.eps).sqrt())
        norm.bias.data.copy_(biases + mean)

    return unfold
