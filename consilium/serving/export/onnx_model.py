"""A served model as one ONNX graph: its columns or pictures in, class names and probabilities, or numbers, out."""

import json

import onnx
from onnx import ModelProto, TensorProto

import consilium.common
from consilium.client.served.load import ServedModel
from consilium.common.model import WEIGHTS, ModelRecord
from consilium.common.study.task import CategoryColumn, TableTask
from consilium.serving.export.back import back_of, outputs_of
from consilium.serving.export.front import front_of, input_names
from consilium.serving.export.graph import Graph

TEXT, NUMBER, BYTES = "texts", "numbers (float64)", "bytes (uint8)"


def onnx_of(model: ServedModel, network: ModelProto) -> ModelProto:
    """Return the whole graph of a model around its network.

    Args:
        network: from prepared inputs to logits, of `network_of`, in int8 or not.
    """
    task, record = model.record.task, model.record
    graph = Graph((*input_names(task), *outputs_of(record).names))
    front = front_of(graph, task, model.preparation)
    outputs = back_of(graph, record, graph.include(network, front.x), front)
    whole = graph.model(front.inputs, outputs, metadata_of(record))
    onnx.checker.check_model(whole)
    return whole


def metadata_of(record: ModelRecord) -> dict[str, str]:
    """Return what a graph says of itself: what it answers, and where it comes from."""
    come = record.provenance
    texts = {
        "study": come.study,
        "study_digest": come.study_digest,
        "run": come.run,
        "served": come.served,
        "site": come.site or "",
        "weights_sha256": record.files.get(WEIGHTS, ""),
        "consilium": consilium.common.__version__,
    }
    columns = {}
    if isinstance(record.task, TableTask):
        for name, column in record.task.columns.items():
            columns[name] = list(column.values) if isinstance(column, CategoryColumn) else "number"
    return texts | {
        name: json.dumps(value, ensure_ascii=False)
        for name, value in {"classes": record.classes, "labels": record.task.label_names, "columns": columns}.items()
        if value
    }


def described(model: ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """Return inputs and outputs of a graph in words, by name."""
    kinds = {TensorProto.STRING: TEXT, TensorProto.DOUBLE: NUMBER, TensorProto.UINT8: BYTES}

    def of(values: object) -> dict[str, str]:
        texts = {}
        for one in values:  # type: ignore[attr-defined] # a repeated field of protobuf
            tensor = one.type.tensor_type
            shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
            texts[one.name] = f"{kinds.get(tensor.elem_type, 'numbers (float32)')}, shape ({shape})"
        return texts

    return of(model.graph.input), of(model.graph.output)
