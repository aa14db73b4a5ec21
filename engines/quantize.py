"""A model in float32 → the same model with 8-bit weights and activations, as Q/DQ ONNX that every engine takes.

What TensorRT asks is the strictest, so all get it: signed symmetric activations and weights, biases left in float
(TensorRT refuses INT32 ones). Weights have 7 bits, because CPUs without VNNI add two 8-bit products in 16 bits and
saturate (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "reduce_range"). Ranges are
the least and greatest values met, not those of an entropy: that cuts off what is rare, and defects are rare.
Only convolutions and matrix products are quantised, they are where the time goes; all else stays as it is.

It decides no layer's precision: whoever has measured says which stay in float.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from engines.base import EngineError, Pixels
from engines.calibration import batches

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
TYPES = {"int8": QuantType.QInt8, "fp8": QuantType.QFLOAT8E4M3FN}


class _Reader:
    """What the calibrator asks for batches."""

    def __init__(self, tiles: Sequence[Pixels]) -> None:
        self._batches = batches(tiles)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


class Quantizer:
    """A model ready to be quantised, again and again with other layers left in float."""

    def __init__(self, model: bytes, tiles: Sequence[Pixels], precision: str = "int8") -> None:
        """`tiles`: uint8 [H, W, C] each, as the line cuts them. Raises EngineError when the model is not one."""
        if not tiles:
            raise EngineError("no tile to calibrate with; give real frames of the line", "unfit")
        self._tiles, self._type = tiles, TYPES[precision]
        self._model = _prepared(model)
        nodes = onnx.load_model_from_string(self._model).graph.node
        self.layers = tuple(node.name for node in nodes if node.op_type in LAYERS)
        """Names of what can be quantised, in the order of the graph."""

    def quantized(self, only: Collection[str] | None = None) -> bytes:
        """The model as Q/DQ ONNX; `only` these layers, all of them without it."""
        chosen = [name for name in self.layers if only is None or name in only]
        if not chosen:
            return self._model
        with _quiet(), tempfile.TemporaryDirectory(prefix="aoi-quantize-") as folder:
            source, made = Path(folder, "model.onnx"), Path(folder, "quantized.onnx")
            source.write_bytes(self._model)
            quantize_static(
                source,
                made,
                _Reader(self._tiles),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                nodes_to_quantize=chosen,
                activation_type=self._type,
                weight_type=self._type,
                per_channel=self._type == QuantType.QInt8,
                reduce_range=self._type == QuantType.QInt8,
                calibrate_method=_method(self._type),
                extra_options=OPTIONS,
            )
            return made.read_bytes()


def _method(kind: Any) -> Any:
    """What ONNX Runtime wants for each type: 8-bit floats are scaled by a distribution."""
    return CalibrationMethod.MinMax if kind == QuantType.QInt8 else CalibrationMethod.Distribution


def _prepared(model: bytes) -> bytes:
    """Batch normalisation folded in, constants computed, shapes inferred, and a name on every layer."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="aoi-quantize-") as folder:
        source, made = Path(folder, "model.onnx"), Path(folder, "prepared.onnx")
        source.write_bytes(model)
        try:
            # Symbolic shapes fail on a resize by a computed size, and are not needed for what is quantised here.
            quant_pre_process(source, made, skip_symbolic_shape=True)
            loaded = onnx.load(made)
        except Exception as error:  # whatever the optimiser of the moment raises
            raise EngineError(f"the model cannot be prepared for quantisation: {_line(error)}", "unfit") from error
    for number, node in enumerate(loaded.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return bytes(loaded.SerializeToString())


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that the quantiser gives to whoever calls it by hand."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logging.disable(before)
