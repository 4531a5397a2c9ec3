"""Cut a model behind its frozen part, so that a frozen backbone computes the features of every example once.

The cut is found in the model's own graph (torch.fx), so it needs no list of architectures: everything that
depends on a moving array or on chance (dropout) is the tail; the inputs of the tail are the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from consilium.client.models.build import Model

_CHANCE = ("dropout", "stochastic_depth", "drop_path", "rrelu")
"""Words in the names of layers and functions that draw random numbers in training."""


@dataclass(frozen=True)
class Cut:
    """A model in two parts: `tail.module(body(x))` is what the whole model gives for x, in training too.

    Args:
        body: the part that never changes; takes examples, returns one tensor of features `(B, ...)`.
        tail: the rest, with the names, head and trainable arrays that the model has; its modules are the model's.
    """

    body: nn.Module
    tail: Model


def cut(model: Model) -> Cut | None:
    """Return the model cut behind its frozen part; None where there is nothing to gain or no single place to cut."""
    if all(name in model.moving for name, _ in model.module.named_parameters()):
        return None  # nothing is frozen
    if (graph := _traced(model.module)) is None:
        return None
    modules = dict(model.module.named_modules())
    live: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _is_drawn(node):
            return None  # its `training` is a constant of the graph now
        if _moves(node, modules, model.moving) or live.intersection(node.all_input_nodes):
            live.add(node)
    constants = {node for node in graph.nodes if node.op == "get_attr"}
    given = {used for node in live for used in node.all_input_nodes} - live - constants
    if len(given) != 1:
        return None
    (features,) = given
    body = _part(model.module, graph, features)
    if not any(True for _ in body.parameters()):
        return None
    if any(used.op == "call_method" and str(used.target).endswith("_") for used in features.users):
        return None  # it would write into the features
    for used in features.users:
        if used.kwargs.get("inplace"):
            used.update_kwarg("inplace", False)
    tail = _part(model.module, graph, next(node for node in graph.nodes if node.op == "output"), features)
    for layer in tail.modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]  # methods give the same features to several passes
    for name in model.extra:
        tail.register_buffer(name, model.module.get_buffer(name))
    names = tuple(tail.state_dict())
    kept = frozenset(names)
    policy = model.batch_norm_policy
    parts = (model.head & kept, model.batch_norm & kept, model.trainable & kept)
    return Cut(body, Model(tail, *parts, names, policy, model.extra))


class _Tracer(fx.Tracer):
    """Looks into no BatchNorm, also not into those that a library derives from torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a layer is one node of the graph."""
        return isinstance(m, nn.modules.batchnorm._BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module) -> fx.Graph | None:
    """Return the module's graph; None where there is none, or where it is another one in training than outside.

    A graph holds what `self.training` was when it was made: what depends on that could not be seen in it.
    """
    try:
        outside, inside = (_Tracer().trace(module.train(training)) for training in (False, True))
    except Exception:  # a model whose forward depends on values cannot be traced, and may raise any error
        return None
    same = str(outside) == str(inside)
    return inside if same else None


def _moves(node: fx.Node, modules: Mapping[str, nn.Module], moving: frozenset[str]) -> bool:
    """Say whether a node's own value can differ from call to call for one input."""
    if node.op == "get_attr":
        return str(node.target) in moving
    if node.op == "output":
        return True
    if node.op != "call_module":
        return False
    layer = modules[str(node.target)]
    own = {f"{node.target}.{name}" for name in layer.state_dict()}
    return bool(own & moving) or any(_draws(part) for part in layer.modules())


def _draws(layer: nn.Module) -> bool:
    """Say whether a layer draws random numbers in training: dropout of nothing does not."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return float(layer.p) > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return float(layer.dropout) > 0
    return isinstance(layer, nn.RReLU | nn.Transformer)


def _is_drawn(node: fx.Node) -> bool:
    """Say whether a function draws random numbers in training."""
    name = getattr(node.target, "__name__", "")
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p") or (node.args[4] if len(node.args) > 4 else 0))
    return any(word in name for word in _CHANCE)


def _part(root: nn.Module, graph: fx.Graph, output: fx.Node, given: fx.Node | None = None) -> nn.Module:
    """Return the module that computes one node of a graph, from the graph's own input or from the node `given`."""
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if given is not None:
        copies[given] = part.placeholder("features")
    needed, todo = set(copies), [output]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    for node in graph.nodes:
        if node in needed and node is not given:
            copies[node] = part.node_copy(node, lambda used: copies[used])
    if output.op != "output":
        part.output(copies[output])
    return fx.GraphModule(root, part)


@torch.no_grad()
def features_of(body: nn.Module, x: Tensor, *, batch_size: int) -> Tensor:
    """Return the features `(N, ...)` of all examples, float32, in evaluation mode."""
    body.eval()
    parts: list[Any] = [body(part) for part in torch.split(x, batch_size)]
    return torch.cat(parts)
