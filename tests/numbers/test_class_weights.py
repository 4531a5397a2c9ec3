"""Class weights and label smoothing: the losses of torch, wherever a gradient is computed, and in training only."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, scaled_site
from local_training import batched, built, work, work_on
from private_training import flat, private_work
from torch.nn import functional

from consilium.client.data import Examples
from consilium.client.data.target import CLASSES, ClassTarget
from consilium.client.models import Model, get_weights
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import begin, full_gradient, train
from consilium.client.training.private import private_gradients
from consilium.client.training.work import LocalWork

WEIGHTS, SMOOTHING = (0.5, 1.0, 4.0), 0.2


def answers(outputs: int, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return answers and labels at random."""
    generator = torch.Generator().manual_seed(outputs)
    y = torch.randint(0, max(2, outputs), (count,), generator=generator)
    return 3 * torch.randn(count, outputs, generator=generator), y


def test_weighted_loss_is_torchs_over_all_rows() -> None:
    """Of several classes cross_entropy with these weights, summed and divided by the rows; with smoothing by rows."""
    z, y = answers(3)
    expected = functional.cross_entropy(z, y, weight=torch.tensor(WEIGHTS), reduction="sum") / len(y)
    assert float(expected) == pytest.approx(float(ClassTarget(WEIGHTS).loss(z, y)), rel=1e-6)
    smooth = functional.cross_entropy(z, y, label_smoothing=SMOOTHING)
    assert float(smooth) == pytest.approx(float(ClassTarget((), SMOOTHING).loss(z, y)), rel=1e-6)
    rows = functional.cross_entropy(z, y, label_smoothing=SMOOTHING, reduction="none")
    both = (rows * torch.tensor(WEIGHTS)[y]).mean()
    assert float(both) == pytest.approx(float(ClassTarget(WEIGHTS, SMOOTHING).loss(z, y)), rel=1e-6)


def test_one_logit_has_the_loss_of_two() -> None:
    """z as one logit, and (0, z) as two: with weights, with smoothing, with both."""
    z, y = answers(1)
    two = torch.cat([torch.zeros_like(z), z], dim=1)
    for weights, smoothing in (((0.5, 3.0), 0.0), ((), 0.3), ((0.5, 3.0), 0.3)):
        target = ClassTarget(weights, smoothing)
        assert float(target.loss(two, y)) == pytest.approx(float(target.loss(z, y)), rel=1e-6)


def test_weights_of_1_and_no_smoothing_are_the_plain_loss() -> None:
    """Up to rounding; without any it is the plain loss itself, which has a formula."""
    z, y = answers(3)
    assert float(CLASSES.loss(z, y)) == pytest.approx(float(ClassTarget((1.0, 1.0, 1.0)).loss(z, y)), rel=1e-6)
    assert CLASSES.plain and not ClassTarget((1.0, 1.0)).plain and not ClassTarget((), 0.1).plain


def by_torch(model: Model, task: LocalWork) -> list[torch.Tensor]:
    """Return the gradient of the weighted loss by autograd, of all rows together."""
    model.module.train()
    parameters = [p for name, p in model.module.named_parameters() if name in model.trainable]
    z, y = model.module(task.examples.x), task.examples.y
    two = torch.cat([torch.zeros_like(z), z], dim=1) if z.shape[1] == 1 else z
    rows = functional.cross_entropy(two, y, label_smoothing=SMOOTHING, reduction="none")
    return list(torch.autograd.grad((rows * torch.tensor(WEIGHTS)[y]).mean(), parameters))


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 5}])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_gradients_are_those_of_the_weighted_loss(name: str, changes: dict[str, Any]) -> None:
    """The linear model too, whose plain gradient has a formula; in pieces of five rows it is the same."""
    task = work(name, target=ClassTarget(WEIGHTS[:2], SMOOTHING), **changes)
    model = built(name)
    at = list(begin(model).values())
    _, found = full_gradient(model.module, task.examples.x, task.examples.y, at, task)
    torch.testing.assert_close(flat(by_torch(model, task)), flat(found), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "outputs"), [("linear", 1), ("mlp", 3)])
def test_private_gradients_are_those_of_the_weighted_loss(name: str, outputs: int) -> None:
    """Without noise and clip a step is the mean gradient, though plain layers have a formula for the plain loss."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(0, max(2, outputs), (9,), generator=generator)
    target = ClassTarget(WEIGHTS[: max(2, outputs)], SMOOTHING)
    task = private_work(Examples(torch.randn(9, 3, generator=generator), y), target=target)
    model = built(name, outputs=outputs)
    ((_, found),) = private_gradients(model, begin(model), task)
    torch.testing.assert_close(flat(by_torch(model, task)), flat(found), rtol=1e-5, atol=1e-6)


def test_measurements_stay_plain() -> None:
    """Training with weights moves the weights otherwise; how a model is measured says nothing of them."""
    task = batched("mlp")
    plain, weighted = built("mlp"), built("mlp")
    train(plain, task)
    train(weighted, replace(task, target=ClassTarget((0.1, 5.0))))
    assert not np.array_equal(get_weights(plain.module)["head.weight"], get_weights(weighted.module)["head.weight"])
    z = weighted.module.eval()(task.examples.x)
    expected = functional.binary_cross_entropy_with_logits(z[:, 0], task.examples.y.float())
    assert float(expected.detach()) == pytest.approx(evaluate(weighted.module, task.examples).loss, rel=1e-5)


def test_weight_of_a_class_counts_as_often_as_its_rows() -> None:
    """One step with weight 2 is one with that class's row twice, at 4 / 3 of the rate: four rows in place of three."""
    x = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    y = np.array([0, 1, 0])
    once, twice = built(), built()
    train(once, work_on(x, y, target=ClassTarget((1.0, 2.0)), learning_rate=0.1))
    train(twice, work_on(np.vstack([x, x[1:2]]), np.append(y, 1), learning_rate=0.1 * 4 / 3))
    one, other = (get_weights(model.module)["weight"].astype(np.float64) for model in (once, twice))
    np.testing.assert_allclose(other, one, rtol=1e-5)


def test_a_study_weighs_by_a_sites_own_counts_or_by_name(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """`balanced` is N / (C n_c) of the training rows; numbers are taken in the order of the task's classes."""
    path = make_sites({"berlin": 40})["berlin"]
    base = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}

    def target(**changes: Any) -> Any:
        return scaled_site(path, make_study(sites=["berlin"], training=base | changes)).learner.work(1).target

    assert target() is None
    site = scaled_site(path, make_study(sites=["berlin"], training=base))
    y = site.learner.data.train.y.numpy()
    counts = np.bincount(y)
    assert tuple(len(y) / (2 * counts)) == pytest.approx(target(class_weights="balanced").weights)
    assert ClassTarget((1.0, 4.0), 0.1) == target(class_weights={"yes": 4, "no": 1}, label_smoothing=0.1)
