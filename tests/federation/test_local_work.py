"""Feature cache of a frozen backbone, gradient accumulation, mixed precision: each against plain training."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from consilium.client.data import Examples, SiteData
from consilium.client.data.target import loss_of
from consilium.client.models import Model, build_model, cut, features_of, get_weights
from consilium.client.site.feature_cache import FeatureCache
from consilium.client.training.loop import full_gradient, gradient, train
from consilium.client.training.work import LocalWork
from consilium.common.protocol.cards import DataCard
from consilium.common.study.training import ModelConfig


def built(name: str, shape: tuple[int, ...], **settings: Any) -> Model:
    """Return a model as a site builds it."""
    config = ModelConfig.model_validate({"name": name, **settings})
    return build_model(config, input_shape=shape, num_outputs=3, weights_dir=None, seed=1)


def examples(shape: tuple[int, ...], count: int = 20, seed: int = 0) -> Examples:
    """Return random examples of three classes."""
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.rand(count, *shape, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def work_on(data: Examples, **settings: Any) -> LocalWork:
    """Return local work on examples; keyword arguments replace settings."""
    values: dict[str, Any] = {
        "examples": data,
        "batch_size": 6,
        "seed": 3,
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "epochs": 2,
        "steps": None,
        "validation": data,
    }
    return LocalWork(**values | settings)


def split_data(shape: tuple[int, ...]) -> SiteData:
    """Return a site's data with random parts."""
    card = DataCard(
        num_examples=40, num_train=20, num_validation=10, num_test=10, num_skipped=0, classes=(), schema_digest=""
    )
    parts: dict[str, Any] = {
        name: examples(shape, n, seed) for seed, (name, n) in enumerate([("train", 20), ("validation", 10)])
    }
    return SiteData(**parts, test=examples(shape, 10, 7), card=card)


FROZEN = [
    ("small_cnn", (1, 8, 8), "head", (64,)),
    ("small_cnn", (1, 8, 8), "last_block", (512,)),
    ("mlp", (5,), "head", (32,)),
    ("squeezenet1_0", (3, 32, 32), "head", (512, 1, 1)),
    ("resnet18", (3, 32, 32), "last_block", (256, 2, 2)),
]


@pytest.mark.parametrize(("name", "shape", "part", "of_features"), FROZEN)
def test_tail_on_features_trains_as_the_whole_model_does(
    name: str, shape: tuple[int, ...], part: str, of_features: tuple[int, ...]
) -> None:
    """Bit for bit, from the features that the frozen part gives."""
    whole, parted = built(name, shape, trainable=part), cut(built(name, shape, trainable=part))
    assert parted is not None
    data = examples(shape)
    seen = features_of(parted.body, data.x, batch_size=7)
    assert tuple(seen.shape[1:]) == of_features
    assert parted.tail.moving == whole.moving
    assert not [name for name, _ in parted.body.named_parameters() if name in whole.moving]

    loss = train(whole, work_on(data))
    on_features = train(parted.tail, work_on(Examples(seen, data.y)))
    assert on_features == pytest.approx(loss, rel=1e-4)
    after: dict[str, Any] = get_weights(whole.module, parted.tail.names)
    tail: dict[str, Any] = get_weights(parted.tail.module)
    for key, array in tail.items():
        np.testing.assert_allclose(array, after[key], rtol=1e-3, atol=1e-5)


class Chancy(nn.Module):
    """A backbone that draws random numbers, in the way that `how` says, before a head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.drop, self.head, self._how = nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3), how
        if how == "nothing":
            self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer, with dropout where the test wants it."""
        hidden = self.first(x)
        if self._how in ("layer", "nothing"):
            hidden = self.drop(hidden)
        if self._how == "training":
            hidden = 2 * hidden if self.training else hidden
        if self._how == "function":
            hidden = nn.functional.dropout(hidden, training=self.training)
        if self._how == "values" and hidden.sum() > 0:
            hidden = hidden + 1
        out: torch.Tensor = self.head(hidden + x if self._how == "two inputs" else hidden)
        return out


@pytest.mark.parametrize(
    ("how", "expected"), [("layer", "behind first"), ("function", None), ("values", None), ("training", None)]
)
def test_chance_is_never_cached(how: str, expected: str | None) -> None:
    """A frozen part that draws at random, or does in training what it does not do outside, is no part to cache."""
    model = chancy(how)
    parted = cut(model)
    assert (parted is None) == (expected is None)
    if parted is not None:
        assert isinstance(parted.tail.module.get_submodule("drop"), nn.Dropout)
        x = torch.rand(2, 4)
        torch.testing.assert_close(features_of(parted.body, x, batch_size=2), model.module.get_submodule("first")(x))


def test_dropout_of_nothing_is_no_chance() -> None:
    """Many libraries build their models with dropout layers of probability 0: the cut is behind them."""
    parted = cut(chancy("nothing"))
    assert parted is not None
    assert ("head.weight", "head.bias") == parted.tail.names
    assert "drop" not in dict(parted.tail.module.named_modules())


def test_two_ways_around_the_frozen_part_join_in_it() -> None:
    """What both inputs pass is cut behind the place where they join."""
    parted = cut(chancy("two inputs"))
    assert parted is not None
    assert [name for name, _ in parted.tail.module.named_parameters()] == ["head.weight", "head.bias"]


def test_features_are_not_written_into_by_what_is_behind_the_cut() -> None:
    """Methods give one batch to several passes: dropout and activations behind the cut must leave it as it is."""
    module = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), drop=nn.Dropout(0.5, inplace=True), head=nn.Linear(4, 3)))
    head = frozenset({"head.weight", "head.bias"})
    parted = cut(Model(module, head, frozenset(), head, tuple(module.state_dict()), "average"))
    assert parted is not None
    seen = features_of(parted.body, torch.rand(5, 4), batch_size=5)
    before = seen.clone()
    parted.tail.module.train()
    parted.tail.module(seen)
    assert torch.equal(seen, before)


def chancy(how: str) -> Model:
    """Return a model whose frozen part has chance in it, in some way."""
    module, head = Chancy(how), frozenset({"head.weight", "head.bias"})
    return Model(module, head, frozenset(), head, tuple(module.state_dict()), "average")


@pytest.mark.parametrize(("name", "part"), [("small_cnn", "all"), ("linear", "head"), ("mlp", "last_block")])
def test_nothing_frozen_in_front_is_left_as_it_is(name: str, part: str) -> None:
    """Then there is nothing to cache."""
    assert cut(built(name, (1, 8, 8), trainable=part)) is None


def test_features_are_kept_and_belong_to_data_and_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data or another backbone have features of their own."""
    monkeypatch.setattr("consilium.client.site.feature_cache.LEAST_SECONDS", 0.0)
    data, shape = split_data((1, 8, 8)), (1, 8, 8)
    _, first = FeatureCache(tmp_path, "a").apply(built("small_cnn", shape, trainable="head"), data)
    (file,) = tmp_path.glob("*.safetensors")
    assert file.stat().st_mode & 0o777 == 0o600

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    computed: list[int] = []

    def counting(*args: Any, **options: Any) -> Any:
        computed.append(len(args[1]))
        return features_of(*args, **options)

    monkeypatch.setattr("consilium.client.site.feature_cache.features_of", counting)
    _, again = FeatureCache(tmp_path, "a").apply(built("small_cnn", shape, trainable="head"), data)
    assert computed == [1]  # only the one example that tells the size
    assert torch.equal(again.train.x, first.train.x)

    FeatureCache(tmp_path, "b").apply(built("small_cnn", shape, trainable="head"), data)  # other data
    other = built("small_cnn", shape, trainable="head")
    with torch.no_grad():
        next(iter(other.module.parameters())).add_(1.0)  # another backbone
    FeatureCache(tmp_path, "a").apply(other, data)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    file.write_bytes(b"damaged")
    _, third = FeatureCache(tmp_path, "a").apply(built("small_cnn", shape, trainable="head"), data)
    assert torch.equal(third.train.x, first.train.x)


def test_features_much_larger_than_the_examples_are_not_kept(tmp_path: Path) -> None:
    """The disk of a site is not filled for speed."""
    data = split_data((5,))
    model = built("mlp", (5,), trainable="head", hidden=[64])
    assert FeatureCache(tmp_path, "a").apply(model, data) == (model, data)


# --- gradient accumulation ---------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2, 5, 6, 100])
def test_gradient_in_pieces_is_the_gradient(micro: int) -> None:
    """The mean over a batch does not depend on its pieces."""
    model, data = built("mlp", (5,)), examples((5,), 11)
    at = list(model.module.parameters())
    loss = loss_of(model.module(data.x), data.y)
    expected = torch.autograd.grad(loss, at)
    found, pieces = full_gradient(model.module, data.x, data.y, at, work_on(data, micro_batch_size=micro))
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(pieces, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_pieces_bound_the_examples_in_one_pass() -> None:
    """No pass has more examples than the study allows."""
    model, data, sizes = built("mlp", (5,)), examples((5,), 12), list[int]()
    model.module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    train(model, work_on(data, batch_size=12, epochs=1, micro_batch_size=4))
    assert sizes == [4, 4, 4]


def test_without_pieces_training_is_bit_for_bit_plain_training() -> None:
    """The loop adds nothing of its own."""
    data = examples((1, 8, 8))
    first, second = built("small_cnn", (1, 8, 8)), built("small_cnn", (1, 8, 8))
    train(first, work_on(data, weight_decay=0.01))
    train(second, work_on(data, weight_decay=0.01, micro_batch_size=1000))
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_unused_parameter_has_no_gradient_and_does_not_decay() -> None:
    """Weight decay is for what is trained."""
    data = examples((5,))
    spare = nn.Parameter(torch.ones(2))
    module = nn.Sequential(nn.Linear(5, 3))
    module.register_parameter("spare", spare)
    names = frozenset(name for name, _ in module.named_parameters())
    model = Model(module, frozenset(), frozenset(), names, tuple(module.state_dict()), "average")
    _, found = gradient(module, data.x, data.y, list(module.parameters()), work_on(data))
    assert [one is None for one in found].count(True) == 1
    train(model, work_on(data, weight_decay=0.5))
    assert torch.equal(spare, torch.ones(2))


# --- mixed precision ---------------------------------------------------------------------------------


def test_bfloat16_computes_in_half_and_keeps_float32() -> None:
    """Weights stay float32 while the passes are bfloat16."""
    model, data, seen = built("mlp", (5,)), examples((5,)), list[torch.dtype]()
    model.module.get_submodule("head").register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    half = work_on(data, precision="bfloat16")
    loss, found = full_gradient(model.module, data.x, data.y, list(model.module.parameters()), half)
    exact, expected = full_gradient(model.module, data.x, data.y, list(model.module.parameters()), work_on(data))
    assert seen == [torch.bfloat16, torch.float32]
    assert {one.dtype for one in found} == {torch.float32}
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.01)
    before = get_weights(model.module)
    train(model, replace(half, learning_rate=1e-5))  # smaller than bfloat16 could add to a weight
    assert all((before[name] != array).any() for name, array in get_weights(model.module).items())
