"""LoRA: the formula, what is trained, and what averaging does to the factors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from consilium.client.methods import build_method
from consilium.client.models import build_model, divide, get_weights
from consilium.client.models.lora import Lora, sizes, with_adapters
from consilium.common.errors import ModelError
from consilium.common.study.adapter import LoraConfig
from consilium.common.study.methods import FedAvgMethod, FedPerMethod
from consilium.common.study.training import ModelConfig


class Conv1D(nn.Module):
    """A linear layer whose matrix is `(inputs, outputs)`, as GPT-2's of the package transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the answer."""
        return x @ self.weight + self.bias


def built(**adapter: Any) -> Any:
    """Return an mlp of 4, 6, 5 and 1 with adapters."""
    config = ModelConfig(name="mlp", hidden=(6, 5), adapter=LoraConfig(**adapter))
    return build_model(config, input_shape=(4,), num_outputs=1, weights_dir=None, seed=7)


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_answer_is_that_of_the_changed_matrix(layer: nn.Module) -> None:
    """With W' = W + alpha / rank * B A the layer itself answers what the layer with its adapter does."""
    adapted = Lora(layer, LoraConfig(rank=2, alpha=3))
    with torch.no_grad():
        adapted.lora_b.normal_()
    x = torch.randn(7, 5)
    change = 3 / 2 * adapted.lora_b @ adapted.lora_a
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    assert isinstance(weight, torch.Tensor) and isinstance(layer.bias, torch.Tensor)
    torch.testing.assert_close(x @ (weight + change).t() + layer.bias, adapted(x))
    assert (5, 3) == sizes(layer)


def test_a_model_begins_as_it_was() -> None:
    """B is 0, so that the adapted model answers as the one without adapters, bit for bit."""
    config = ModelConfig(name="mlp", hidden=(6, 5))
    plain = build_model(config, input_shape=(4,), num_outputs=1, weights_dir=None, seed=7)
    x = torch.randn(9, 4)
    assert torch.equal(plain.module(x), built(rank=2).module(x))


def test_adapters_and_head_are_all_that_is_trained() -> None:
    """The matrices and biases of the backbone stay; with freeze_a so does A, which is the same for equal seeds."""
    model, frozen = built(rank=2), built(rank=2, freeze_a=True)
    layers = [f"backbone.layer{place}.0" for place in (1, 2)]
    small = {f"{layer}.lora_{which}" for layer in layers for which in "ab"}
    assert small | {"head.weight", "head.bias"} == model.trainable == model.moving
    assert {name for name in model.trainable if not name.endswith("lora_a")} == frozen.trainable
    first, second = get_weights(built(rank=2).module), get_weights(built(rank=2, freeze_a=True).module)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_only_named_layers_get_an_adapter() -> None:
    """Targets are the ends of layers' names; one that is nowhere is refused, and the known names are said."""
    assert {"backbone.layer2.0.lora_a", "backbone.layer2.0.lora_b"} == {
        name for name in built(rank=2, targets=("layer2.0",)).names if "lora" in name
    }
    with pytest.raises(ModelError, match="no linear layer of model 'mlp' is called 'query', known: 0"):
        built(targets=("query",))
    with pytest.raises(ModelError, match="a layer of 4 x 6 takes at most 4"):
        built(rank=5)
    with pytest.raises(ModelError, match="no linear layer of model 'mlp' is there"):
        with_adapters(nn.Conv2d(1, 1, 1), frozenset(), LoraConfig(), name="mlp", seed=1)


def test_what_leaves_is_the_adapters_and_a_personal_head_stays() -> None:
    """FedAvg shares adapters and head, FedPer the adapters alone: rank * (inputs + outputs) numbers per layer."""
    model = built(rank=2)
    names = divide(model, build_method(FedPerMethod()))
    assert {"head.weight", "head.bias"} == names.personal
    assert all("lora" in name for name in names.shared)
    assert 2 * (4 + 6) + 2 * (6 + 5) == sum(get_weights(model.module, names.shared)[name].size for name in names.shared)
    assert names.shared | names.personal == divide(model, build_method(FedAvgMethod())).shared


def test_the_mean_of_b_is_the_mean_of_the_changes_where_a_is_common() -> None:
    """FFA-LoRA: mean(B) A = mean(B A); and mean(B) mean(A) differs from mean(B A) where A is trained too."""
    generator = np.random.default_rng(1)
    common, own = generator.normal(size=(2, 6)), generator.normal(size=(3, 2, 6))
    b = generator.normal(size=(3, 5, 2))
    np.testing.assert_allclose(b.mean(axis=0) @ common, np.mean([one @ common for one in b], axis=0))
    exact = np.mean([one @ a for one, a in zip(b, own, strict=True)], axis=0)
    assert np.abs(b.mean(axis=0) @ own.mean(axis=0) - exact).max() > 0.1
