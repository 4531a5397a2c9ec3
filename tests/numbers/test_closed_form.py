"""The gradient of a linear model by its formula is autograd's, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from consilium.client.data import Examples
from consilium.client.data.target import CLASSES, NumberTarget, loss_of
from consilium.client.models import build_model
from consilium.client.models.small import FlatLinear
from consilium.client.training.closed_form import is_linear, linear_gradient
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.study.training import ModelConfig


@given(
    rows=st.integers(1, 70),
    features=st.integers(1, 60),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    number=st.booleans(),
)
def test_the_formula_gives_autograds_bits(rows: int, features: int, seed: int, size: float, number: bool) -> None:
    """Loss and gradient of both losses, for any batch: equal to what torch.autograd.grad says, not merely close."""
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(rows, features, generator=generator)
    y = torch.randn(rows, generator=generator) if number else torch.randint(0, 2, (rows,), generator=generator)
    model = FlatLinear(features, 1)
    loss = loss_of(model(x), y)
    expected = torch.autograd.grad(loss, [model.weight, model.bias])
    found, gradients = linear_gradient(model, x, y)
    assert float(loss.detach()) == found
    assert torch.equal(expected[0], gradients[model.weight])
    assert torch.equal(expected[1], gradients[model.bias])


@pytest.mark.parametrize("number", [True, False])
def test_training_is_the_same_with_and_without_the_formula(number: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs with momentum and weight decay end in the same weights where autograd does the work."""

    def trained() -> list[torch.Tensor]:
        model = build_model(ModelConfig(name="linear"), input_shape=(5,), num_outputs=1, weights_dir=None, seed=0)
        train(model, work)
        return [parameter.detach().clone() for parameter in model.module.parameters()]

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(41, 5, generator=generator)
    examples = Examples(
        x, x[:, 0] - x[:, 1] if number else (x[:, 0] > 0).long(), NumberTarget(0.5) if number else CLASSES
    )
    settings = {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "steps": None}
    work = LocalWork(examples=examples, validation=examples, batch_size=8, seed=1, epochs=3, **settings)  # type: ignore[arg-type]  # any settings
    by_formula = trained()
    monkeypatch.setattr("consilium.client.training.loop.is_linear", lambda *_: False)
    for expected, found in zip(trained(), by_formula, strict=True):
        assert torch.equal(expected, found)


def test_only_a_plain_linear_model_has_the_formula() -> None:
    """Not one with several outputs, with a hook on what it is given, of another kind, or asked by other tensors."""
    model, own = FlatLinear(3, 1), list(FlatLinear(3, 1).parameters())
    assert is_linear(model, [model.bias])
    assert not is_linear(model, own)
    assert not is_linear(FlatLinear(3, 2), [])
    assert not is_linear(nn.Linear(3, 1), [])
    assert not is_linear(lambda x: model(x), [model.bias])
    model.register_forward_pre_hook(lambda _, args: args)
    assert not is_linear(model, [model.bias])
