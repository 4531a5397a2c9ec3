"""A network in int8: 8 bits for each weight, and for what layers pass on, by ranges measured on some rows.

    q = round(x / scale) + zero_point in -128 .. 127;  weights: a scale for each output of a layer, zero_point = 0

(Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
https://arxiv.org/abs/1712.05877, equation 1), by onnxruntime's static quantisation. Preparation of the inputs, and
probabilities, stay as exact as they are.
"""

import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from consilium.common.errors import ModelError
from consilium.serving.export.check import batches_of
from consilium.serving.export.network import quiet

LAYERS = ("Conv", "Gemm", "MatMul")
"""Layers whose weights become int8: nearly all of a network's size."""
_BATCH = 32


class _Batches(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Prepared inputs, as onnxruntime's calibration asks for them."""

    def __init__(self, x: Tensor) -> None:
        self._batches = iter(batches_of(x, _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


def int8_of(network: ModelProto, x: Tensor, *, name: str) -> ModelProto:
    """Return a network in int8, whose ranges are those that prepared inputs `x` `(N, ...)` lead to.

    Raises:
        ModelError: the network has no layer that could be.
    """
    if not any(node.op_type in LAYERS for node in network.graph.node):
        raise ModelError(f"int8: {name} has none of the layers {', '.join(LAYERS)}, so nothing of it becomes smaller")
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.shape_inference.infer_shapes(network),
            path,
            _Batches(x),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        small = onnx.load(path)
    _leave_answers_exact(small)
    _leave_zeros_out(small)
    return small


def _leave_answers_exact(model: ModelProto) -> None:
    """Take the rounding of the logits out: of two classes that are nearly as probable, the right one stays ahead."""
    graph, (answer,) = model.graph, model.graph.output
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[answer.name]
    if last.op_type != "DequantizeLinear" or (before := makers.get(last.input[0])) is None:
        return
    maker = makers.get(before.input[0])
    if before.op_type != "QuantizeLinear" or maker is None:
        return
    exact = before.input[0]
    if sum(name == exact for node in graph.node for name in node.input) > 1:
        return
    maker.output[list(maker.output).index(exact)] = answer.name
    graph.node.remove(last)
    graph.node.remove(before)


def _leave_zeros_out(model: ModelProto) -> None:
    """Leave out what says nothing: zero points of weights are 0, as they are where none is given."""
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3:
            zero = constants.get(node.input[2])
            if node.input[0] in constants and zero is not None and not numpy_helper.to_array(zero).any():
                del node.input[2]
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
