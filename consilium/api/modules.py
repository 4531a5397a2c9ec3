"""A torch module of the caller's own, as a model of a study: copied, its head named, its answers checked."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consilium.client.models import get_weights
from consilium.client.models.given import Given
from consilium.common.errors import ModelError, clean
from consilium.common.study.models import OWN
from consilium.common.weights.arrays import digest


class OneLogit(nn.Module):
    """A module with the one logit `(B, 1)` that two classes take: the second one's less the first one's.

    Cross-entropy of two logits is binary cross-entropy of their difference, to the last digit of its formula.
    """

    def __init__(self, module: nn.Module, *, pair: bool) -> None:
        super().__init__()
        self.module = module
        self._pair = pair

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, 1)`."""
        logits: Tensor = self.module(inputs)
        return logits[:, 1:2] - logits[:, 0:1] if self._pair else logits[:, None]


def given_module(
    module: nn.Module, *, input_shape: tuple[int, ...], num_outputs: int, head: str | Sequence[str] | None = None
) -> Given:
    """Return a copy of a module, on the CPU, as a model of a study; the module itself is left as it is.

    Args:
        num_outputs: what the study's task asks of a model.
        head: names of the layers that are the head; without it, the last layer with weights that is called.

    Raises:
        ModelError: it cannot take such inputs, answers something else, or has no such head.
    """
    called = type(module).__name__
    try:
        own = copy.deepcopy(module).cpu()
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{called} cannot be copied: {clean(str(error), 200)}") from error
    answers, order = _tried(own, input_shape, called)
    wrapped, prefix = _answering(own, answers, num_outputs, called)
    names = frozenset(f"{prefix}{name}" for name in _head_names(own, order, head, called))
    for name, value in own.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ModelError(f"{called}: array '{name}' has type {value.dtype}, expected torch.float32: call .float()")
    weights = get_weights(wrapped)
    return Given(f"{OWN}{called}-{digest(weights)[:12]}", wrapped, names)


def own_head(
    module: nn.Module, input_shape: tuple[int, ...], head: str | Sequence[str] | None
) -> tuple[nn.Module, frozenset[str]]:
    """Return a module, tried with blank inputs, and the state_dict names of its head.

    Raises:
        ModelError: it cannot take such inputs, has no weights, or no such head.
    """
    called = type(module).__name__
    _, order = _tried(module, input_shape, called)
    return module, _head_names(module, order, head, called)


def _head_names(
    module: nn.Module, order: Sequence[str], head: str | Sequence[str] | None, called: str
) -> frozenset[str]:
    if not any(True for _ in module.parameters()):
        raise ModelError(f"{called} has no weights, so there is nothing to learn")
    layers = [head] if isinstance(head, str) else list(head) if head is not None else [order[-1]] if order else [""]
    return frozenset(name for layer in layers for name in _within(module, layer, called))


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the caller's own module inside what a study trains."""
    return module.module if isinstance(module, OneLogit) else module


def _tried(module: nn.Module, shape: tuple[int, ...], called: str) -> tuple[Tensor, list[str]]:
    """Return the answers to two blank examples, and the layers with weights of their own as they were called."""
    order: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, layer in module.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answers = module(torch.zeros(2, *shape))
    except Exception as error:  # whatever somebody's module raises
        raise ModelError(f"{called} cannot take inputs of shape {shape}: {clean(str(error), 300)}") from error
    finally:
        for hook in hooks:
            hook.remove()
        module.train(training)
    if not isinstance(answers, Tensor):
        raise ModelError(f"{called} answers with a {type(answers).__name__}, expected one tensor of logits")
    return answers, order


def _answering(module: nn.Module, answers: Tensor, wanted: int, called: str) -> tuple[nn.Module, str]:
    """Return the module with answers `(B, wanted)`, and what its arrays' names now begin with."""
    shape = tuple(answers.shape)
    if shape == (2, wanted):
        return module, ""
    if wanted == 1 and shape in ((2,), (2, 2)):
        return OneLogit(module, pair=len(shape) == 2), "module."
    what = "one number" if wanted == 1 else f"{wanted} numbers, one for each class,"
    got = f"{shape[1]}" if len(shape) == 2 and shape[0] == 2 else f"an array of shape {shape} for two"
    raise ModelError(
        f"{called} answers {got} per example, expected {what} as the labels have it: change its last layer, or say "
        "classes=[...] if some have no example"
    )


def _within(module: nn.Module, layer: str, called: str) -> list[str]:
    names = list(module.state_dict())
    found = [name for name in names if name == layer or name.startswith(f"{layer}.") or not layer]
    if not found:
        known = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        raise ModelError(
            f"head: {called} has no layer '{clean(str(layer), 60)}' with weights, its layers are {clean(known)}"
        )
    return found
