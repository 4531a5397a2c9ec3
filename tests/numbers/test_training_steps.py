"""Gradient clipping and AdamW are torch's; balanced draws are those of its weighted sampler."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from local_training import batched, built, work
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import WeightedRandomSampler

from consilium.client.data import Examples
from consilium.client.data.target import loss_of
from consilium.client.models import get_weights
from consilium.client.training.loop import shortened, train
from consilium.client.training.sampling import balanced, balanced_weights, chances
from consilium.client.training.work import LocalWork, batches


def by_torch(task: LocalWork, make: Any) -> dict[str, Any]:
    """Return the weights that a plain loop in torch leaves, with the clip of the work."""
    model = built("mlp")
    parameters = [p for name, p in model.module.named_parameters() if name in model.trainable]
    optimiser = make(parameters)
    for x, y in batches(task):
        optimiser.zero_grad()
        torch.autograd.backward(loss_of(model.module(x), y))
        if task.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(parameters, task.clip_gradient)
        optimiser.step()
    return dict(get_weights(model.module))


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipping_is_torchs_to_the_last_bit(clip: float) -> None:
    """SGD with momentum, with a norm that shortens every step and with one that shortens none."""
    task, model = batched("mlp", clip_gradient=clip), built("mlp")
    train(model, task)
    expected = by_torch(task, lambda p: torch.optim.SGD(p, lr=task.learning_rate, momentum=task.momentum))
    np.testing.assert_equal(expected, get_weights(model.module))
    free = built("mlp")
    train(free, replace(task, clip_gradient=None))
    assert (clip == 1e6) == np.array_equal(get_weights(free.module)["head.weight"], expected["head.weight"])


def test_a_correction_is_part_of_what_is_clipped() -> None:
    """With a pull a thousand times as long as the gradient, a step is still no longer than rate times the norm."""
    task, model = work("mlp", clip_gradient=0.01), built("mlp")
    before = get_weights(model.module)
    train(model, task, correction=lambda name, parameter: 1000.0 * torch.ones_like(parameter))
    after = get_weights(model.module)
    moved = [after[name].astype(np.float64) - before[name].astype(np.float64) for name in before]
    length = np.sqrt(sum(float((one**2).sum()) for one in moved))
    assert length == pytest.approx(0.01 * task.learning_rate, rel=1e-3)


def test_gradients_that_are_not_there_stay_so() -> None:
    """A loss that depends on no parameter gives nothing to shorten; a zero gradient stays zero."""
    assert [None] == shortened([None], 1.0)
    found = shortened([None, torch.zeros(2)], 1.0)
    assert found[0] is None and found[1] is not None and not found[1].any()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(decay: float) -> None:
    """Decoupled weight decay: other weights than Adam's where there is any, equal ones without."""
    task, model, adam = batched("mlp", optimiser="adamw", weight_decay=decay), built("mlp"), built("mlp")
    train(model, task)
    expected = by_torch(task, lambda p: torch.optim.AdamW(p, lr=task.learning_rate, weight_decay=decay))
    for name, array in get_weights(model.module).items():
        np.testing.assert_allclose(expected[name], array.astype(np.float64), rtol=1e-6, atol=1e-8)
    train(adam, replace(task, optimiser="adam"))
    same = np.array_equal(get_weights(model.module)["head.weight"], get_weights(adam.module)["head.weight"])
    assert same == (decay == 0)


def uneven(count: int = 60, rare: int = 5) -> Examples:
    """Return rows of three classes, of which the last is rare; each can be recognised."""
    y = torch.cat([torch.zeros(count, dtype=torch.long), torch.ones(2 * rare).long(), torch.full((rare,), 2)])
    x = torch.arange(len(y), dtype=torch.float32)[:, None].repeat(1, 3)
    return Examples(x, y)


def test_balanced_draws_are_those_of_torchs_weighted_sampler() -> None:
    """With the weights 1 / n_c of scikit-learn's balanced classes, from the same generator, row by row."""
    y = uneven().y
    by_class = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
    weights = by_class[y.numpy()]
    sampler = WeightedRandomSampler(
        (weights / weights.sum()).tolist(), len(y), replacement=True, generator=torch.Generator().manual_seed(4)
    )
    assert list(sampler) == balanced(y, torch.Generator().manual_seed(4)).tolist()
    assert chances(y).sum() == pytest.approx(1.0)
    np.testing.assert_allclose(by_class, balanced_weights(y, 3))
    np.testing.assert_allclose((*by_class, 0.0), balanced_weights(y, 4))


def test_balanced_batches_are_as_many_and_as_large_and_hold_classes_alike() -> None:
    """Each of three classes has a third of 200 passes' rows, within five standard deviations; shuffled ones do not."""
    examples = uneven()
    task = work("linear", examples=examples, batch_size=8, epochs=200, sampling="balanced")
    drawn = list(batches(task))
    plain = list(batches(replace(task, sampling="shuffled")))
    assert [len(y) for _, y in plain] == [len(y) for _, y in drawn]
    assert task.num_steps == len(drawn)
    labels = torch.cat([y for _, y in drawn])
    shares = torch.bincount(labels).double() / len(labels)
    assert float((shares - 1 / 3).abs().max()) < 5 * np.sqrt(2 / 9 / len(labels))
    assert all(torch.equal(examples.y[x[:, 0].long()], y) for x, y in drawn)
    again = list(batches(task))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(drawn, again, strict=True))


def test_default_settings_train_bit_for_bit_as_a_plain_loop() -> None:
    """Nothing of what is new touches a study that asks for none of it: SGD and Adam of torch, to the last bit."""
    for optimiser, make in (
        ("sgd", lambda task: lambda p: torch.optim.SGD(p, lr=task.learning_rate, momentum=task.momentum)),
        ("adam", lambda task: lambda p: torch.optim.Adam(p, lr=task.learning_rate)),
    ):
        task, model = batched("mlp", optimiser=optimiser), built("mlp")
        train(model, task)
        np.testing.assert_equal(by_torch(task, make(task)), get_weights(model.module))
