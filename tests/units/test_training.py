"""The training and evaluation loops: what a batch holds, what a step does, and what stays as it was."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.data.target import ClassTarget, loss_of
from consilium.client.models import Model, build_model, get_weights
from consilium.client.training.evaluation import EVALUATION_BATCH, evaluate
from consilium.client.training.loop import proximal, train
from consilium.client.training.work import LocalWork, batches
from consilium.common.study.training import ModelConfig


def examples(count: int, *, shape: tuple[int, ...] = (3,), classes: int = 2, seed: int = 0) -> Examples:
    """Return random examples; `x[i].flatten()[0]` is `i`, so that each can be recognised."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator)
    x.view(count, -1)[:, 0] = torch.arange(count, dtype=torch.float32)
    return Examples(x, torch.arange(count) % classes)


def work(data: Examples, **changes: object) -> LocalWork:
    """Return local work on these examples; keyword arguments replace settings."""
    base = LocalWork(
        examples=data,
        batch_size=4,
        seed=7,
        optimiser="sgd",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        epochs=1,
        steps=None,
        validation=data,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # any settings


def seen(task: LocalWork) -> list[list[int]]:
    """Return the rows of each batch."""
    return [[int(row) for row in x.view(len(x), -1)[:, 0]] for x, _ in batches(task)]


def built(name: str, shape: tuple[int, ...] = (3,), outputs: int = 1, **settings: object) -> Model:
    """Return a model as a site builds it."""
    config = ModelConfig(name=name, hidden=(5,), **settings)  # type: ignore[arg-type]  # any settings
    return build_model(config, input_shape=shape, num_outputs=outputs, weights_dir=None, seed=1)


# --- batches ---------------------------------------------------------------------------------------


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 99))
def test_batches_give_every_example_exactly_once_per_epoch(count: int, batch_size: int, epochs: int, seed: int) -> None:
    """Epoch by epoch, the batches together hold each example once; labels stay with their examples."""
    data = examples(count)
    flat = [i for batch in seen(work(data, batch_size=batch_size, epochs=epochs, seed=seed)) for i in batch]
    assert epochs * count == len(flat)
    for epoch in range(epochs):
        assert list(range(count)) == sorted(flat[epoch * count : (epoch + 1) * count])
    for x, y in batches(work(data, batch_size=batch_size, seed=seed)):
        assert (x[:, 0].long() % 2).tolist() == y.tolist()


@given(count=st.integers(2, 60), batch_size=st.integers(2, 20))
def test_batches_never_hold_a_lone_example(count: int, batch_size: int) -> None:
    """BatchNorm cannot train on one example: a lone last one joins the batch before it."""
    sizes = [len(batch) for batch in seen(work(examples(count), batch_size=batch_size))]
    assert 2 <= min(sizes)
    assert batch_size + 1 >= max(sizes)


@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), steps=st.integers(1, 25))
def test_batches_by_steps_are_exactly_that_many(count: int, batch_size: int, steps: int) -> None:
    """`steps` counts batches, over as many passes as that takes, each pass over all examples."""
    found = seen(work(examples(count), batch_size=batch_size, epochs=None, steps=steps))
    assert steps == len(found)
    flat = [i for batch in found for i in batch]
    assert min(count, len(flat)) == len(set(flat[:count]))


def test_batches_with_the_same_seed_come_in_the_same_order_and_others_do_not() -> None:
    """The order is a function of the seed, and it differs from epoch to epoch."""
    data = examples(30)
    first = seen(work(data, epochs=2))
    assert first == seen(work(data, epochs=2))
    assert first != seen(work(data, epochs=2, seed=8))
    assert first[: len(first) // 2] != first[len(first) // 2 :]


# --- losses and predictions ------------------------------------------------------------------------


def test_loss_of_one_logit_is_binary_cross_entropy() -> None:
    """By hand: -log sigmoid(z) for class 1 and -log(1 - sigmoid(z)) for class 0, at z = log 3: 3/4 and 1/4."""
    logits, y = torch.full((2, 1), math.log(3)), torch.tensor([1, 0])
    expected = (-math.log(3 / 4), -math.log(1 / 4))
    assert np.mean(expected) == pytest.approx(float(loss_of(logits, y)), rel=1e-6)
    assert sum(expected) == pytest.approx(float(loss_of(logits, y, reduction="sum")), rel=1e-6)


def test_loss_of_several_logits_is_cross_entropy() -> None:
    """By hand: logits log(1), log(2), log(5) are probabilities 1/8, 2/8, 5/8."""
    logits, y = torch.tensor([[0.0, math.log(2), math.log(5)]] * 2), torch.tensor([2, 0])
    assert (-math.log(5 / 8) - math.log(1 / 8)) / 2 == pytest.approx(float(loss_of(logits, y)), rel=1e-6)


def test_predictions_are_probability_one_half_or_the_largest() -> None:
    """One logit: class 1 above zero; several: the largest."""
    assert [0, 0, 1] == ClassTarget().answers(torch.tensor([[-0.1], [0.0], [0.1]])).tolist()
    assert [2, 0] == ClassTarget().answers(torch.tensor([[0.0, 1.0, 2.0], [-1.0, -2.0, -3.0]])).tolist()


# --- train -----------------------------------------------------------------------------------------


def test_train_one_step_is_the_hand_derived_update() -> None:
    """One batch of all rows, no momentum: w - lr * mean((sigmoid(xw + b) - y) x), b - lr * mean(sigmoid - y)."""
    model, data = built("linear"), examples(10)
    w, b = (get_weights(model.module)[name].astype(np.float64) for name in ("weight", "bias"))
    x, y = data.x.double().numpy(), data.y.double().numpy()
    error = 1 / (1 + np.exp(-(x @ w[0] + b[0]))) - y
    loss = float(np.mean(np.logaddexp(0, x @ w[0] + b[0]) - y * (x @ w[0] + b[0])))
    returned = train(model, work(data, batch_size=10, momentum=0.0, learning_rate=0.25))
    after: dict[str, Any] = get_weights(model.module)
    np.testing.assert_allclose(w[0] - 0.25 * (error[:, None] * x).mean(axis=0), after["weight"][0], rtol=1e-5)
    np.testing.assert_allclose(b - 0.25 * error.mean(), after["bias"], rtol=1e-5)
    assert loss == pytest.approx(returned, rel=1e-5)


def test_train_weight_decay_and_momentum_are_those_of_sgd() -> None:
    """Two steps on one batch: v1 = g1 + d w0, w1 = w0 - lr v1, v2 = m v1 + g2 + d w1, w2 = w1 - lr v2."""
    model, data = built("linear"), examples(6)
    x, y = data.x.double().numpy(), data.y.double().numpy()
    start = get_weights(model.module)
    w, b = start["weight"][0].astype(np.float64), float(start["bias"][0])
    vw, vb, lr, m, d = np.zeros(3), 0.0, 0.05, 0.9, 0.01
    for _ in range(2):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        vw, vb = m * vw + (error[:, None] * x).mean(axis=0) + d * w, m * vb + error.mean() + d * b
        w, b = w - lr * vw, b - lr * vb
    train(model, work(data, batch_size=6, momentum=m, learning_rate=lr, weight_decay=d, epochs=2))
    np.testing.assert_allclose(w, get_weights(model.module)["weight"][0], rtol=1e-4)
    assert b == pytest.approx(float(get_weights(model.module)["bias"][0]), rel=1e-4)


def test_train_first_step_of_adam_moves_every_weight_by_the_learning_rate() -> None:
    """Adam's first step is lr * g / (|g| + eps): the sign of the gradient times the learning rate."""
    model, data = built("linear"), examples(8)
    before: dict[str, Any] = get_weights(model.module)
    train(model, work(data, batch_size=8, optimiser="adam", learning_rate=0.01))
    moved = [np.abs(array - before[name]) for name, array in get_weights(model.module).items()]
    np.testing.assert_allclose(0.01, np.concatenate([array.ravel() for array in moved]), rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp_bn", "small_cnn"])
def test_train_with_names_changes_only_those(name: str) -> None:
    """Whatever is not named keeps its bits, running statistics of BatchNorm included."""
    shape = (1, 8, 8) if name == "small_cnn" else (3,)
    model = built(name, shape)
    before = get_weights(model.module)
    train(model, work(examples(12, shape=shape)), names=model.head)
    after = get_weights(model.module)
    assert model.head == {key for key in before if not np.array_equal(before[key], after[key])}


def test_train_after_training_some_names_trains_everything_again() -> None:
    """A call with names does not leave the rest frozen for the next call."""
    model = built("mlp")
    train(model, work(examples(12)), names=model.head)
    before = get_weights(model.module)
    train(model, work(examples(12)))
    after = get_weights(model.module)
    assert set(model.names) == {key for key in before if not np.array_equal(before[key], after[key])}


def test_train_correction_is_added_to_the_gradient() -> None:
    """One SGD step with and one without a correction of 2 differ by -lr * 2, where it was asked for."""
    plain, corrected, data = built("linear"), built("linear"), examples(6)
    task = work(data, batch_size=6, learning_rate=0.25)
    train(plain, task)
    train(corrected, task, correction=lambda name, p: torch.full_like(p, 2.0 if name == "bias" else 0.0))
    one: dict[str, Any] = get_weights(plain.module)
    other: dict[str, Any] = get_weights(corrected.module)
    np.testing.assert_allclose(one["bias"] - 0.5, other["bias"], rtol=1e-5)
    np.testing.assert_array_equal(one["weight"], other["weight"])


def test_proximal_is_strength_times_the_way_from_the_anchor() -> None:
    """3 * (0.5 moved) = 1.5 at every element, whatever happens to the model afterwards; the anchor is a copy."""
    model = built("linear")
    pull = proximal(model, 3.0)
    parameters = dict(model.module.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert not bool(pull(name, parameter).any())
            parameter.add_(0.5)
            np.testing.assert_allclose(np.full(parameter.shape, 1.5), pull(name, parameter), rtol=1e-6)


def test_train_of_nothing_changes_nothing() -> None:
    """No parameter to train: loss 0.0 and the model as it was."""
    model = built("mlp")
    before = get_weights(model.module)
    assert 0.0 == train(model, work(examples(12)), names=())
    np.testing.assert_equal(before, get_weights(model.module))


def with_dropout() -> Model:
    """Return a model that draws at random while it trains."""
    layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    names = tuple(layers.state_dict())
    return Model(layers, frozenset({"2.weight", "2.bias"}), frozenset(), frozenset(names), names, "average")


@pytest.mark.parametrize("make", [lambda: built("mlp"), with_dropout], ids=["mlp", "dropout"])
def test_train_is_a_function_of_its_seed(make: Callable[[], Model]) -> None:
    """Same model, same work: same bits and same loss, wherever the global generator stands."""
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = make()
        results.append((train(model, work(examples(20), epochs=2)), get_weights(model.module)))
    np.testing.assert_equal(results[0], results[1])


@pytest.mark.parametrize("make", [lambda: built("mlp"), with_dropout], ids=["mlp", "dropout"])
def test_train_leaves_the_global_generators_alone(make: Callable[[], Model]) -> None:
    """Neither torch's nor NumPy's global generator is read or moved."""
    model = make()
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    train(model, work(examples(20)))
    evaluate(model.module, examples(20))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])


# --- evaluate --------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Passes its input on and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the second and third column as logits."""
        self.calls.append((len(x), self.training))
        return x[:, 1:]


@pytest.mark.parametrize("count", [1, EVALUATION_BATCH, EVALUATION_BATCH + 1, 2 * EVALUATION_BATCH + 37])
def test_evaluate_does_not_depend_on_its_batches(count: int) -> None:
    """Loss, accuracy and flags are those of all examples at once, also when the last batch is short."""
    module, data = Counting(), examples(count)
    found = evaluate(module, data)
    probabilities = torch.softmax(data.x[:, 1:].double(), dim=1)[torch.arange(count), data.y]
    assert float(-probabilities.log().mean()) == pytest.approx(found.loss, rel=1e-5)
    right = (data.x[:, 2] > data.x[:, 1]).long() == data.y
    assert right.tolist() == found.right.tolist()
    assert float(right.double().mean()) == pytest.approx(found.accuracy)
    assert count == sum(size for size, _ in module.calls)
    assert not any(training for _, training in module.calls)


def test_evaluate_changes_no_array_of_the_model() -> None:
    """BatchNorm uses its running statistics and leaves them; one example is answered as among many."""
    model, data = built("small_cnn", (1, 8, 8)), examples(9, shape=(1, 8, 8))
    train(model, work(data))
    before = get_weights(model.module)
    together = evaluate(model.module, data)
    alone = [evaluate(model.module, Examples(data.x[i : i + 1], data.y[i : i + 1])) for i in range(9)]
    np.testing.assert_equal(before, get_weights(model.module))
    assert together.loss == pytest.approx(float(np.mean([one.loss for one in alone])), rel=1e-4)
