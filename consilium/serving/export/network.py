"""Turns a network of torch into an ONNX graph from prepared inputs to logits, with nothing of this machine in it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from consilium.common.errors import ModelError, clean
from consilium.serving.export.graph import MOST_BYTES, OPSET

_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")


def network_of(module: nn.Module, input_shape: tuple[int, ...], *, name: str) -> ModelProto:
    """Return a network as a graph from `x` `(N, ...)` to `logits` `(N, outputs)`, for any N.

    Args:
        module: in evaluation mode, on the CPU.
        name: of the model, for sentences.

    Raises:
        ModelError: ONNX cannot hold the network, or it is too large for one file.
    """
    size = sum(part.numel() * part.element_size() for part in (*module.parameters(), *module.buffers()))
    if size > MOST_BYTES:
        raise ModelError(
            f"{name} has {size} bytes of weights, one ONNX file holds at most {MOST_BYTES}: use torch-export"
        )
    example = torch.zeros(2, *input_shape)
    with quiet():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["x"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                external_data=False,
                verbose=False,
                custom_translation_table=_translations(),
            )
        except Exception as error:  # of a network of anybody's making, every part may fail in its own way
            raise cannot_hold("ONNX", name, error) from error
    assert program is not None
    graph: ModelProto = program.model_proto
    _strip(graph)
    return graph


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch and its translators warn of, which no user can change anything about."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def cannot_hold(form: str, name: str, error: Exception) -> ModelError:
    """Return the sentence about a network that a form cannot hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "No ONNX function" in line or "Unsupported" in line or "dynamic" in line]
    reason = clean((telling or lines or [type(error).__name__])[0], 300)
    return ModelError(
        f"{form} cannot hold {name}: {type(error).__name__}: {reason}; use the folder itself ('consilium predict', "
        "'consilium serve'), or write the network with operators that torch exports for a batch of any size"
    )


def _translations() -> dict[Any, Any]:
    """Return the operators that torch leaves untranslated, and ours."""
    from onnxscript import opset18

    op: Any = opset18  # its types are those of finished graphs

    def distances(a: Any, b: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
        """Return Euclidean distances of all pairs of rows; knn_per asks for no others."""
        apart = op.Sub(op.Unsqueeze(a, op.Constant(value_ints=[1])), op.Unsqueeze(b, op.Constant(value_ints=[0])))
        return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), op.Constant(value_ints=[2]), keepdims=0))

    return {torch.ops.aten._cdist_forward.default: distances}


def _strip(model: ModelProto) -> None:
    """Take out where each operator stood in a program: it is of this machine, and makes a file larger."""
    graph = model.graph
    functions = [part for function in model.functions for part in (function, *function.node)]
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    parts: list[Any] = [model, graph, *graph.node, *values, *functions]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def parameters_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a network's weights: what layers multiply with, not biases and norms."""
    for path, layer in module.named_modules():
        for name, part in layer.named_parameters(recurse=False):
            if part.ndim > 1:
                yield f"{path}.{name}".lstrip("."), part
