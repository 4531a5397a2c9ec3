"""The last part of an exported graph: from the network's logits to probabilities, class names, or numbers."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from consilium.common.model import LabelTemperatures, ModelRecord, Residuals, Temperature
from consilium.serving.export.front import Front, input_names
from consilium.serving.export.graph import Graph


@dataclass(frozen=True)
class Outputs:
    """Names of a graph's outputs: of a class its name and all probabilities, or a number with its interval.

    Of several labels it is the probability of each; of masks the class of every pixel and all their probabilities.
    """

    names: tuple[str, ...]
    numbers: str
    """The output that is compared with the model: probabilities, or the value."""


def outputs_of(record: ModelRecord) -> Outputs:
    """Return which outputs the graph of a model has; an underscore is put behind a name that a column has too."""
    wanted: tuple[str, ...] = ("class", "probabilities")
    if record.task.number is not None:
        wanted = ("value", "low", "high") if isinstance(record.calibration, Residuals) else ("value",)
    elif record.task.label_names:
        wanted = ("probabilities",)
    elif record.task.label_kind == "masks":
        wanted = ("mask", "probabilities")
    named, taken = list[str](), set(input_names(record.task))
    for name in wanted:
        while name in taken:
            name += "_"
        named.append(name)
    return Outputs(tuple(named), named[-1] if record.task.number is None else named[0])


def back_of(graph: Graph, record: ModelRecord, logits: str, front: Front) -> tuple[ValueInfoProto, ...]:
    """Add the last part to a graph and return the graph's outputs; a row that is not usable is answered with NaN."""
    names = outputs_of(record).names
    if record.task.label_names:
        return _labels(graph, record, logits, front, names[0])
    if record.task.label_kind == "masks":
        return _masks(graph, record, logits, names)
    add = _classes if record.task.number is None else _number
    return add(graph, record, logits, front, names)


def _classes(
    graph: Graph, record: ModelRecord, logits: str, front: Front, names: tuple[str, ...]
) -> tuple[ValueInfoProto, ...]:
    if isinstance(record.calibration, Temperature):
        logits = graph.op("Div", logits, graph.constant(record.calibration.temperature, np.float32))
    chosen, probabilities = names
    end = "" if front.usable is not None else probabilities
    if record.task.num_outputs == 1:
        one = graph.op("Sigmoid", logits)
        other = graph.op("Sub", graph.constant(1, np.float32), one)
        shares = graph.op("Concat", other, one, axis=1, name=end)
    else:
        shares = graph.op("Softmax", logits, axis=1, name=end)
    place = graph.op("ArgMax", shares, axis=1, keepdims=0)
    texts = graph.constant(np.array(record.classes, dtype=object))
    named = graph.op("Gather", texts, place, axis=0, name="" if front.usable is not None else chosen)
    if front.usable is not None:
        graph.op("Where", front.usable, shares, graph.constant(np.nan, np.float32), name=probabilities)
        flat = graph.op("Squeeze", front.usable, graph.constant([1], np.int64))
        graph.op("Where", flat, named, graph.constant(np.array([""], dtype=object)), name=chosen)
    return (
        helper.make_tensor_value_info(chosen, TensorProto.STRING, ["N"]),
        helper.make_tensor_value_info(probabilities, TensorProto.FLOAT, ["N", len(record.classes)]),
    )


def _masks(graph: Graph, record: ModelRecord, logits: str, names: tuple[str, ...]) -> tuple[ValueInfoProto, ...]:
    """Add the probabilities of every pixel and its class; every picture can be answered."""
    if isinstance(record.calibration, Temperature):
        logits = graph.op("Div", logits, graph.constant(record.calibration.temperature, np.float32))
    mask, probabilities = names
    shares = graph.op("Softmax", logits, axis=1, name=probabilities)
    place = graph.op("ArgMax", shares, axis=1, keepdims=0)
    graph.op("Cast", place, to=TensorProto.UINT8, name=mask)
    sides = list(record.task.input_shape[1:])
    return (
        helper.make_tensor_value_info(mask, TensorProto.UINT8, ["N", *sides]),
        helper.make_tensor_value_info(probabilities, TensorProto.FLOAT, ["N", len(record.classes), *sides]),
    )


def _labels(graph: Graph, record: ModelRecord, logits: str, front: Front, name: str) -> tuple[ValueInfoProto, ...]:
    if isinstance(record.calibration, LabelTemperatures):
        divisors = np.array(record.calibration.divisors(record.task.label_names), dtype=np.float32)
        logits = graph.op("Div", logits, graph.constant(divisors))
    chances = graph.op("Sigmoid", logits, name="" if front.usable is not None else name)
    if front.usable is not None:
        graph.op("Where", front.usable, chances, graph.constant(np.nan, np.float32), name=name)
    return (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(record.task.label_names)]),)


def _number(
    graph: Graph, record: ModelRecord, logits: str, front: Front, names: tuple[str, ...]
) -> tuple[ValueInfoProto, ...]:
    number = record.task.number
    assert number is not None
    exact = graph.op("Cast", graph.op("Squeeze", logits, graph.constant([1], np.int64)), to=TensorProto.DOUBLE)
    scaled = graph.op("Mul", exact, graph.constant(number.scale, np.float64))
    end = "" if front.usable is not None else names[0]
    value = graph.op("Add", scaled, graph.constant(number.center, np.float64), name=end)
    if front.usable is not None:
        flat = graph.op("Squeeze", front.usable, graph.constant([1], np.int64))
        value = graph.op("Where", flat, value, graph.constant(np.nan, np.float64), name=names[0])
    if isinstance(record.calibration, Residuals):
        width = graph.constant(record.calibration.width, np.float64)
        graph.op("Sub", value, width, name=names[1])
        graph.op("Add", value, width, name=names[2])
    return tuple(helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N"]) for name in names)
