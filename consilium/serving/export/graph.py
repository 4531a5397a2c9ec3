"""Builds an ONNX graph node by node: operators, constants, and another graph in the middle."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

OPSET = 18
"""Of the operators of ONNX itself: what runtimes of the last years know."""
ML_OPSET = 3
"""Of the operators for texts."""
IR_VERSION = 9
ML = "ai.onnx.ml"
MOST_BYTES = 2_000_000_000
"""Size of the largest file in the form of protobuf."""

Array = npt.NDArray[Any]


class Graph:
    """An ONNX graph that is being built; values are told apart by names that no input has.

    Args:
        taken: names of the graph's own inputs and outputs.
    """

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._nodes, self._constants = list[Any](), list[Any]()
        self._known, self._count = dict[tuple[str, tuple[int, ...], bytes], str](), 0
        self._taken, self._domains = frozenset(taken), {""}

    def op(self, kind: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any) -> str:
        """Add an operator with one output, and return the output's name: `name`, or a new one."""
        output = name or self._name()
        self._domains.add(domain)
        self._nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, array: Array | float | Sequence[Any], dtype: Any = None) -> str:
        """Add a constant, or take the equal one that is there, and return its name."""
        values = np.ascontiguousarray(array, dtype) if np.ndim(array) else np.array(array, dtype)
        key = (
            str(values.dtype),
            values.shape,
            repr(values.tolist()).encode() if values.dtype.kind in "OU" else values.tobytes(),
        )
        if key not in self._known:
            self._known[key] = name = self._name()
            self._constants.append(
                numpy_helper.from_array(values.astype(object) if values.dtype.kind == "U" else values, name)
            )
        return self._known[key]

    def include(self, model: ModelProto, value: str) -> str:
        """Add all of a model with one input and one output, given `value`, and return its output's name."""
        (given,), (answer,) = model.graph.input, model.graph.output
        names = {given.name: value, answer.name: self._name()}
        for one in model.graph.initializer:
            names[one.name] = self._name()
            copy = type(one)()
            copy.CopyFrom(one)
            copy.name = names[one.name]
            self._constants.append(copy)
        for node in model.graph.node:
            copied = type(node)()
            copied.CopyFrom(node)
            copied.name = ""
            self._domains.add(node.domain)
            for side in (copied.input, copied.output):
                side[:] = [self._known_as(names, name) for name in side]
            self._nodes.append(copied)
        return names[answer.name]

    def model(
        self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], metadata: Mapping[str, str]
    ) -> ModelProto:
        """Return the model with these inputs and outputs."""
        graph = helper.make_graph(self._nodes, "model", list(inputs), list(outputs), self._constants)
        versions = {"": OPSET, ML: ML_OPSET}
        opsets = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(self._domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="consilium")
        helper.set_model_props(model, dict(metadata))
        return model

    def _known_as(self, names: dict[str, str], name: str) -> str:
        if name and name not in names:
            names[name] = self._name()
        return names.get(name, "")  # an input that is left out has an empty name

    def _name(self) -> str:
        self._count += 1
        while (name := f"v{self._count}") in self._taken:
            self._count += 1
        return name
