"""A model in float32 → the same model computed in float16, its inputs and outputs as they were; runs nothing.

TensorRT networks are strongly typed: half precision is what the file says, not a wish to the builder, which newer
releases would silently not grant. Softmax, means and logarithms of grey values stay in float32: 65,504 is the
largest number in float16, and a sum over a tile's pixels is soon beyond it.
"""

from __future__ import annotations

import warnings

import onnx
from onnxconverter_common import float16

from engines.base import EngineError

# A value too small to be told from 0 in float16 is set to that smallest one; one too large would become infinite.
KEPT = ("AveragePool", "GlobalAveragePool", "LogSoftmax", "Log", "Exp", "Pow", "Sqrt", "Div", "ReduceMean", "ReduceSum",
        "ReduceSumSquare", "Resize", "Softmax", "Sigmoid", "ArgMax", "ReduceMax", "Max")  # fmt: skip


def half(model: bytes) -> bytes:
    """The model in float16, `pixels` and every output of their old type. Raises EngineError when it is no model."""
    try:
        before = onnx.load_model_from_string(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is rounded to the smallest number
            loaded = float16.convert_float_to_float16(
                before,
                keep_io_types=True,
                op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *KEPT],
            )
    except Exception as error:  # the converter raises whatever it meets
        raise EngineError(f"the model cannot be converted to float16: {error}", "unfit") from error
    _retarget(loaded, {output for node in before.graph.node if node.op_type == "Cast" for output in node.output})
    return bytes(loaded.SerializeToString())


def _retarget(model: onnx.ModelProto, old: set[str]) -> None:
    """The model's own casts to float32 lead to float16 now: the converter takes their results for that."""
    for node in model.graph.node:
        if node.op_type == "Cast" and node.output[0] in old:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.FLOAT16
