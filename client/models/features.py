"""The features that a model's head is given, and models built on them: nearest examples, or a second extractor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.client.models.build import Model

_BATCH = 512
_FASTEST, _ONE_WAY = "use_mm_for_euclid_dist_if_necessary", "donot_use_mm_for_euclid_dist"
"""How torch computes distances."""
_LEAST = 1e-7
"""Probabilities are kept this far from 0, so that every loss is finite."""


def head_layer(model: Model) -> str:
    """Return the path of the module that owns the head; empty for a model that is one module (`linear`)."""
    return next(name for name in model.names if name in model.head).rpartition(".")[0]


def num_outputs(model: Model) -> int:
    """Return how many numbers the model answers per example: the length of its head's last array."""
    last = [name for name in model.names if name in model.head][-1]
    return int(model.module.state_dict()[last].shape[0])


@contextmanager
def watched(module: nn.Module, layer: str) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Give a function that answers x with the module's logits `(B, outputs)` and the inputs of its `layer`.

    These are the features `(B, ...)` where the layer is the head's; an empty path is the module itself.
    """
    given: list[Tensor] = []

    def ask(x: Tensor) -> tuple[Tensor, Tensor]:
        given.clear()
        return module(x), given[0]

    hook = module.get_submodule(layer).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        yield ask
    finally:
        hook.remove()


def flattened(features: Tensor, layer: str) -> Tensor:
    """Return features `(B, ...)` of a `layer` as `(B, D)`.

    Maps `(B, D, H, W)` are averaged; a model that is one module is given the inputs, flattened.
    """
    return features.flatten(1) if not layer or features.ndim == 2 else features.flatten(2).mean(dim=2)


class WithNeighbours(nn.Module):
    """A model mixed with the examples nearest to an input, by what its head is given for them.

        p(y|x) = mix * p_near(y|x) + (1 - mix) * p_model(y|x)
        p_near(y|x) ~ sum over the `neighbours` nearest examples i of [y_i = y] * exp(-|phi(x) - phi(x_i)|)

    with phi(x) = `features`. Takes and returns what the model does: one logit `(B, 1)`, or log-probabilities
    `(B, C)`. Its state_dict holds the model under `model.`, and `features` and `classes` of the examples and
    the `mix` next to it: the file reveals traits of the examples.

    Args:
        model: stays the same module; must not be trained while this one is in use.
        features, classes: `(N, D)` and `(N,)` of the examples to remember, at least one.
        neighbours: how many vote; all examples, where there are fewer.
    """

    features: Tensor
    classes: Tensor
    mix: Tensor

    def __init__(self, model: Model, features: Tensor, classes: Tensor, *, neighbours: int) -> None:
        super().__init__()
        self.model, self._owner, self._neighbours = model.module, head_layer(model), min(neighbours, len(classes))
        self._one_logit = num_outputs(model) == 1
        self.register_buffer("features", features)
        self.register_buffer("classes", classes.clone())
        self.register_buffer("mix", torch.zeros((), dtype=torch.float64, device=features.device))
        self.eval()

    @classmethod
    def of_examples(cls, model: Model, x: Tensor, y: Tensor, *, neighbours: int) -> "WithNeighbours":
        """Return the model with what its head is given for examples `x` `(N, ...)` of classes `y` `(N,)`."""
        model.module.eval()
        with watched(model.module, owner := head_layer(model)) as ask, torch.no_grad():
            features = torch.cat([flattened(ask(part)[1], owner) for part in torch.split(x, _BATCH)])
        return cls(model, features, y, neighbours=neighbours)

    @torch.no_grad()
    def see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's logits `(B, outputs)`, and the features `(B, D)`: what the head's own module is given."""
        with watched(self.model, self._owner) as ask:
            logits, features = ask(x)
        return logits, flattened(features, self._owner)

    @torch.no_grad()
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return p_near and p_model, each `(B, C)` in float64."""
        if torch.compiler.is_exporting():  # a program for any B has no loop over parts of a batch
            return self._parts(x)
        found = [self._parts(part) for part in torch.split(x, _BATCH)]
        return torch.cat([near for near, _ in found]), torch.cat([whole for _, whole in found])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.see(x)
        if self._one_logit:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        # In float64, as distances of close points are small differences of large numbers.
        # A program for any B has one way to compute them; torch has another one from 26 rows on.
        way = _ONE_WAY if torch.compiler.is_exporting() else _FASTEST
        distances, nearest = torch.cdist(features.double(), self.features.double(), compute_mode=way).topk(
            self._neighbours, dim=1, largest=False
        )
        # Relative to the nearest: far from all examples, every exp(-distance) would be 0.
        votes = torch.exp(distances[:, :1] - distances)
        near = (functional.one_hot(self.classes[nearest], logits.shape[1]) * votes[:, :, None]).sum(dim=1)
        return near / near.sum(dim=1, keepdim=True), logits.double().softmax(dim=1)

    def answer(self, near: Tensor, whole: Tensor, mix: float | Tensor) -> Tensor:
        """Return the logits of `mix * near + (1 - mix) * whole`, finite."""
        mixed = mix * near + (1 - mix) * whole
        if self._one_logit:
            return mixed[:, 1:].clamp(_LEAST, 1 - _LEAST).logit()
        return mixed.clamp(min=_LEAST).log()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, outputs)`."""
        return self.answer(*self.parts(inputs), self.mix).to(inputs.dtype)


class TwoExtractors(nn.Module):
    """The sum of two models' logits: a linear head on the features of both, joined.

    Its state_dict holds the first under `model.`, the second under `own.`; arrays that the two share because they are
    not trained (a frozen backbone whose features are cached) are in the served file once, under `model.`.

    Args:
        model, own: stay the same modules, and in the modes they are in.
    """

    def __init__(self, model: nn.Module, own: nn.Module) -> None:
        super().__init__()
        self.model, self.own = model, own

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, outputs)`."""
        logits: Tensor = self.model(inputs) + self.own(inputs)
        return logits
