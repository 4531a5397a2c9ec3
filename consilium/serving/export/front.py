"""The first part of an exported graph: from a hospital's own columns or pictures to what the network is given.

It computes what `consilium predict` does to inputs, in the same precision: missing numbers are filled, categories
become one-hot, pictures are resized as Pillow does, and all is scaled. A row that `consilium predict` would name as one
that it cannot read (a missing value that nothing fills, an unknown category, a number that is too large) is marked.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from consilium.client.data.cells import booleans_of
from consilium.client.data.preparation import Preparation
from consilium.common.data.words import MISSING_IN_NUMBERS, number_in
from consilium.common.study.task import CategoryColumn, PictureTask, TableTask, Task
from consilium.serving.export.graph import ML, Array, Graph

PICTURES, ARRAYS = "pictures", "x"
"""Names of the input of models about pictures and about arrays."""
_LARGEST = float(np.finfo(np.float32).max)
_BITS = 22
"""Pillow's weights of pixels are whole numbers of 2^-22."""


@dataclass(frozen=True)
class Front:
    """What a graph begins with.

    Args:
        inputs: of the whole graph.
        x: the value that the network is given, float32 `(N, ...)`.
        usable: bool `(N, 1)`, rows that can be answered; None where every row can.
    """

    inputs: tuple[ValueInfoProto, ...]
    x: str
    usable: str | None


def front_of(graph: Graph, task: Task, preparation: Preparation) -> Front:
    """Add the first part for a task to a graph."""
    add = next((_FRONTS[cls] for cls in type(task).__mro__ if cls in _FRONTS), _arrays)
    return add(graph, task, preparation)


def input_names(task: Task) -> tuple[str, ...]:
    """Return the names of a graph's inputs: the columns of a table, or one."""
    if isinstance(task, TableTask):
        return tuple(task.columns)
    return (PICTURES,) if isinstance(task, PictureTask) else (ARRAYS,)


def _table(graph: Graph, task: TableTask, preparation: Preparation) -> Front:
    inputs, parts = [], []
    for name, column in task.columns.items():
        kind = TensorProto.STRING if isinstance(column, CategoryColumn) else TensorProto.DOUBLE
        inputs.append(helper.make_tensor_value_info(name, kind, ["N"]))
        if isinstance(column, CategoryColumn):
            parts.append(_one_hot(graph, name, task, column.values))
        else:
            known = _without_codes(graph, name, task.codes_of(name))
            parts.append(graph.op("Unsqueeze", known, graph.constant([1], np.int64)))
    x = graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    if preparation.fill is not None:
        x = graph.op("Where", graph.op("IsNaN", x), graph.constant(preparation.fill.numpy()), x)
    return _checked(graph, inputs, _scaled(graph, x, preparation))


def _without_codes(graph: Graph, name: str, codes: Sequence[str]) -> str:
    """Return a column of numbers with NaN in place of codes for a missing value."""
    for code in codes:
        if (number := number_in(code)) is not None and math.isfinite(number):
            same = graph.op("Equal", name, graph.constant(number, np.float64))
            name = graph.op("Where", same, graph.constant(math.nan, np.float64), name)
    return name


def _in_any_case(text: str) -> Iterator[str]:
    return map("".join, itertools.product(*({one.lower(), one.upper()} for one in text)))


def _one_hot(graph: Graph, name: str, task: TableTask, values: tuple[str, ...]) -> str:
    """Look each text up: its one-hot row, NaN where it is missing (it may be filled), infinity where it is unknown."""
    codes: dict[str, int] = {}
    for truth, word in booleans_of(task, name).items():
        if word in values:
            codes |= dict.fromkeys(_in_any_case(str(truth)), values.index(word))
    for text in MISSING_IN_NUMBERS:
        codes |= dict.fromkeys(_in_any_case(text), len(values))
    for code in reversed(range(len(values))):
        number = number_in(values[code])
        if number is not None and math.isfinite(number):
            codes |= {repr(number): code} | ({str(int(number)): code} if number == int(number) else {})
    codes |= {value: code for code, value in enumerate(values)}
    for text in task.codes_of(name):
        number = number_in(text)
        written = {text} if number is None or number != int(number) else {text, str(int(number)), repr(number)}
        codes |= dict.fromkeys(written, len(values))
    place = graph.op(
        "LabelEncoder",
        name,
        domain=ML,
        keys_strings=list(codes),
        values_int64s=list(codes.values()),
        default_int64=len(values) + 1,
    )
    width = len(values) - 1
    rows = np.concatenate([np.eye(len(values))[:, 1:], np.full((1, width), math.nan), np.full((1, width), math.inf)])
    return graph.op("Gather", graph.constant(rows), place, axis=0)


def _arrays(graph: Graph, task: Task, preparation: Preparation) -> Front:
    kind = TensorProto.FLOAT if preparation.mean is None else TensorProto.DOUBLE
    given, x = helper.make_tensor_value_info(ARRAYS, kind, ["N", *task.input_shape]), ARRAYS
    if preparation.fill is not None:
        fill = preparation.fill.numpy().astype(np.float32 if preparation.mean is None else np.float64)
        x = graph.op("Where", graph.op("IsNaN", x), graph.constant(fill), x)
    return _checked(graph, [given], _scaled(graph, x, preparation, cast=preparation.mean is not None))


def _scaled(graph: Graph, x: str, preparation: Preparation, *, cast: bool = True) -> str:
    if cast:  # what no float32 can hold is refused before it is scaled
        fine = graph.op("LessOrEqual", graph.op("Abs", x), graph.constant(_LARGEST, np.float64))
        x = graph.op("Where", fine, x, graph.constant(math.nan, np.float64))
    if preparation.mean is not None and preparation.std is not None:
        x = graph.op("Sub", x, graph.constant(preparation.mean.numpy()))
        x = graph.op("Div", x, graph.constant(preparation.std.numpy()))
    return graph.op("Cast", x, to=TensorProto.FLOAT) if cast else x


def _checked(graph: Graph, inputs: list[ValueInfoProto], x: str) -> Front:
    fine = graph.op("LessOrEqual", graph.op("Abs", x), graph.constant(_LARGEST, np.float32))
    flat = graph.op("Flatten", graph.op("Cast", fine, to=TensorProto.FLOAT), axis=1)
    least = graph.op("ReduceMin", flat, graph.constant([1], np.int64), keepdims=1)
    usable = graph.op("Cast", least, to=TensorProto.BOOL)
    return Front(tuple(inputs), graph.op("Where", fine, x, graph.constant(0, np.float32)), usable)


def _pictures(graph: Graph, task: PictureTask, preparation: Preparation) -> Front:
    given = helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, ["N", "H", "W", task.channels])
    x = graph.op("Transpose", PICTURES, perm=[0, 3, 1, 2])
    x = graph.op("Cast", x, to=TensorProto.DOUBLE)
    sizes = graph.op("Shape", x, start=2)
    # First along the rows, then along the columns, rounded to 8 bits after each, as Pillow does.
    along = graph.op("Transpose", _weights(graph, sizes, 1, task.size), perm=[1, 0])
    x = _rounded(graph, graph.op("MatMul", x, along))
    x = _rounded(graph, graph.op("MatMul", _weights(graph, sizes, 0, task.size), x))
    x = graph.op("Cast", x, to=TensorProto.FLOAT)
    x = graph.op("Div", x, graph.constant(255, np.float32))
    if task.pixel_max != 1:
        x = graph.op("Mul", x, graph.constant(task.pixel_max, np.float32))
    for mean, std in _scales(task, preparation):
        x = graph.op("Sub", x, graph.constant(mean)) if mean.any() else x
        x = graph.op("Div", x, graph.constant(std)) if (std != 1).any() else x
    return Front((given,), x, None)


def _scales(task: PictureTask, preparation: Preparation) -> list[tuple[Array, Array]]:
    study = [np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in (task.mean, task.std)]
    scales = [(study[0], study[1])]
    if preparation.mean is not None and preparation.std is not None:
        scales.append((preparation.mean.numpy(), preparation.std.numpy()))
    return scales


def _weights(graph: Graph, sizes: str, axis: int, size: int) -> str:
    """Return Pillow's bilinear weights `(size, n)` of n pixels, in 2^-22: a triangle as wide as a new pixel."""

    def number(value: float) -> str:
        return graph.constant(value, np.float64)

    pixels = graph.op("Cast", graph.op("Gather", sizes, graph.constant(axis, np.int64)), to=TensorProto.DOUBLE)
    step = graph.op("Div", pixels, number(size))
    centres = graph.op("Mul", graph.constant(np.arange(size)[:, None] + 0.5), step)
    places = graph.op("Add", graph.op("Range", number(0), pixels, number(1)), number(0.5))
    far = graph.op("Abs", graph.op("Sub", places, centres))
    near = graph.op("Sub", number(1), graph.op("Div", far, graph.op("Max", step, number(1))))
    shares = graph.op("Max", near, number(0))
    whole = graph.op("Div", shares, graph.op("ReduceSum", shares, graph.constant([1], np.int64), keepdims=1))
    return graph.op("Floor", graph.op("Add", graph.op("Mul", whole, number(2**_BITS)), number(0.5)))


def _rounded(graph: Graph, sums: str) -> str:
    """Return sums of pixels in 2^-22 as whole pixels in 0..255."""
    pixels = graph.op("Div", sums, graph.constant(2**_BITS, np.float64))
    whole = graph.op("Floor", graph.op("Add", pixels, graph.constant(0.5, np.float64)))
    return graph.op("Clip", whole, graph.constant(0, np.float64), graph.constant(255, np.float64))


_FRONTS: Mapping[type, Callable[[Graph, Any, Preparation], Front]] = MappingProxyType(
    {TableTask: _table, PictureTask: _pictures}
)
"""By the task's class, and by that of what it is made from; all others take arrays as their reader gives them."""
