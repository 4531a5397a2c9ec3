"""What every model must hold: laws over a few sizes of inputs, one function each."""

from collections.abc import Callable

import numpy as np
import torch

from consilium.client.models import Model, build_model, get_weights
from consilium.common.errors import ConsiliumError
from consilium.common.study.training import ModelConfig

SHAPES = ((3,), (12, 2), (1, 16, 16), (3, 32, 32), (3, 224, 224))
"""Shapes of inputs that are tried, the smallest first; a model must take one of them."""


def built(name: str, *, num_outputs: int = 1, seed: int = 1, **settings: object) -> tuple[Model, tuple[int, ...]]:
    """Return a model with the smallest inputs that it takes, and their shape."""
    problems = []
    for shape in SHAPES:
        config = ModelConfig.model_validate({"name": name, **settings})
        try:
            return build_model(config, input_shape=shape, num_outputs=num_outputs, weights_dir=None, seed=seed), shape
        except ConsiliumError as error:
            problems.append(str(error))
    raise AssertionError("\n".join(problems))


def is_the_same_for_the_same_seed(name: str) -> None:
    """Equal seeds give equal weights, other seeds others, and no global generator is moved."""
    before = torch.get_rng_state()
    weights = [get_weights(built(name, seed=seed)[0].module) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_equal(weights[0], weights[1])
    assert any(not np.array_equal(weights[0][key], weights[2][key]) for key in weights[0])


def has_a_head_and_a_backbone(name: str) -> None:
    """The head's names are names of the model, and something is left without them."""
    model, _ = built(name)
    assert model.head < set(model.names)


def answers_every_example(name: str) -> None:
    """As many outputs as asked for, one row per example, each whatever the others are."""
    for outputs in (1, 4):
        model, shape = built(name, num_outputs=outputs)
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
        model.module.eval()
        with torch.no_grad():
            together, alone = model.module(x), torch.cat([model.module(one[None]) for one in x])
        assert (3, outputs) == tuple(together.shape)
        assert bool(torch.isfinite(together).all())
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def trains_what_is_trainable(name: str) -> None:
    """Every trainable array has a gradient, and with `trainable = "head"` the head's alone."""
    for part in ("all", "head"):
        model, shape = built(name, trainable=part)
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
        model.module.train()
        model.module(x).square().sum().backward()
        moved = {key for key, value in model.module.named_parameters() if value.grad is not None}
        assert moved == model.trainable
        assert part == "all" or model.trainable <= model.head


LAWS: tuple[Callable[[str], None], ...] = (
    is_the_same_for_the_same_seed,
    has_a_head_and_a_backbone,
    answers_every_example,
    trains_what_is_trainable,
)
"""All laws; each takes the model's name."""
