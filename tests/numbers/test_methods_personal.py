"""Methods with a personal model or a meta-learned start: their own numbers, and independent NumPy transcriptions."""

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from local_training import NOTHING, Vector, after_training, built, flat, sigmoid, unflat, work_on
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.methods.apfl import Apfl
from consilium.client.methods.contract import Memory, Method
from consilium.client.methods.fedala import FedAla, top_layers
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.knn_per import KnnPer
from consilium.client.methods.per_fedavg import PerFedAvg, Variant, meta_step
from consilium.client.methods.pfedme import PFedMe
from consilium.client.methods.reptile import Reptile
from consilium.client.models import Model, WithNeighbours, get_weights, set_weights
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.seeds import seed_for
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Weights, under


def line(weight: float = 0.0, bias: float = 0.0) -> Model:
    """Return the model `logit = weight * x + bias` for one number x."""
    model = built("linear", (1,))
    set_weights(model.module, point(weight, bias))
    return model


def point(weight: float, bias: float, *, prefix: str = "") -> dict[str, Any]:
    """Return weight and bias of a model of one input."""
    arrays = {"weight": np.array([[weight]], np.float32), "bias": np.array([bias], np.float32)}
    return {prefix + name: array for name, array in arrays.items()}


def numbers(weights: Weights) -> tuple[float, float]:
    """Return weight and bias of a model of one input as numbers."""
    return float(weights["weight"].item()), float(weights["bias"].item())


def one(**changes: Any) -> LocalWork:
    """Return work on the single example x = 1 of class 1."""
    return work_on([[1.0]], [1], **changes)


def random_work(shape: tuple[int, ...] = (3,), count: int = 20, **changes: Any) -> LocalWork:
    """Return local work on random examples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, *shape, generator=generator)
    y = (x.flatten(1).mean(dim=1) + 0.1 * torch.randn(count, generator=generator) > 0).long()
    return work_on(x, y, **({"batch_size": 6, "epochs": 2, "steps": None} | changes))


def served(method: Method, model: Model, memory: Memory, task: LocalWork) -> Weights:
    """Return the weights of what a site serves."""
    return get_weights(method.personalise(model, memory, task))


# --- a federation of three sites on a convex problem, for the transcriptions -----------------------

ROUNDS, STEPS = 3, 2


def three_sites() -> list[tuple[Vector, Vector]]:
    """Return inputs with a column of ones `(n, 4)` and labels, shifted from site to site, in float64."""
    generator, sites = np.random.default_rng(5), []
    for size, direction in ((12, [2.0, -1.0, 0.5]), (9, [-1.0, 1.0, 0.5]), (15, [0.5, 2.0, -2.0])):
        x = generator.normal(size=(size, 3)).astype(np.float32).astype(np.float64)
        sites.append((np.column_stack([x, np.ones(size)]), (x @ direction + 0.3 > 0).astype(np.float64)))
    return sites


SITES = three_sites()
SHARES = [len(y) / sum(len(labels) for _, labels in SITES) for _, y in SITES]


@functools.cache
def start() -> Vector:
    """Return the initial weights of the linear model; not to be written to."""
    return flat(get_weights(built("linear", (3,)).module))


def gradient(theta: Vector, site: tuple[Vector, Vector]) -> Vector:
    """Return the gradient of the mean logistic loss over a site's examples."""
    x, y = site
    return np.asarray(x.T @ (sigmoid(x @ theta) - y) / len(y))


def mean_loss(theta: Vector, site: tuple[Vector, Vector]) -> float:
    """Return the mean logistic loss over a site's examples."""
    x, y = site
    return float(np.mean(np.logaddexp(0, x @ theta) - y * (x @ theta)))


def federate(method: Method, learning_rate: float) -> tuple[Vector, list[Memory], list[Vector]]:
    """Run three rounds of full batches; return the global weights, the sites' memories and what they serve."""
    model, weights = built("linear", (3,)), start()
    memories: list[Memory] = [{}, {}, {}]
    tasks = [work_on(x[:, :3], y.astype(int), steps=STEPS, learning_rate=learning_rate) for x, y in SITES]
    for _ in range(ROUNDS):
        sent = []
        for number, task in enumerate(tasks):
            set_weights(model.module, unflat(weights))
            memories[number], after = after_training(method, model, memories[number], task)
            sent.append(flat(after))
        weights = sum(share * vector for share, vector in zip(SHARES, sent, strict=True))  # type: ignore[assignment]  # sum begins with 0
    serving = []
    for memory, task in zip(memories, tasks, strict=True):
        set_weights(model.module, unflat(weights))
        serving.append(flat(served(method, model, memory, task)))
    return weights, memories, serving


def mean_of(vectors: list[Vector]) -> Vector:
    """Return the mean over sites by size."""
    return np.average(vectors, axis=0, weights=SHARES)


# --- APFL ------------------------------------------------------------------------------------------


def test_apfl_gives_the_numbers_worked_out_by_hand() -> None:
    """One example x = 1, y = 1; w = (0, 0), v = (2, 0), alpha = 1/4, learning rate 0.1.

    mixed = 1/4 * 2 = 0.5, so m = sigmoid(0.5) - 1 = -0.3775407 for weight and bias; at w g = 0.5 - 1 = -0.5.
    w = (0.05, 0.05): its own gradient, and not overwritten by v. v = (2, 0) + 0.1 * 0.25 * 0.3775407 =
    (2.0094385, 0.0094385); taken at v instead of the mix it would be 2.0029801.
    slope = m * (2 - 0) + m * (0 - 0) = -0.7550813, alpha = 0.25 + 0.0755081 = 0.3255081.
    """
    memory = point(2, 0, prefix="v/") | {"alpha": np.array(0.25)}
    model = line()
    outcome = Apfl(alpha=0.5, adaptive=True).train(model, memory, one())
    assert pytest.approx((0.05, 0.05), abs=1e-7) == numbers(get_weights(model.module))
    assert pytest.approx((2.0094385, 0.0094385), abs=1e-6) == numbers(under(outcome.memory, "v/"))
    assert pytest.approx(0.3255081, abs=1e-7) == float(outcome.memory["alpha"]) == outcome.metrics["apfl.alpha"]
    assert pytest.approx(math.log(2), abs=1e-6) == outcome.loss


def test_apfl_serves_the_mix_of_its_own_and_the_received_model() -> None:
    """alpha = 1/4, v = (2, 4), received (1, 0): weight 1/4 * 2 + 3/4 * 1 = 1.25, bias 1/4 * 4 = 1."""
    memory = point(2, 4, prefix="v/") | {"alpha": np.array(0.25)}
    assert (1.25, 1.0) == numbers(served(Apfl(alpha=0.5, adaptive=True), line(1, 0), memory, one()))


def test_apfl_moves_alpha_once_a_round_and_only_if_adaptive() -> None:
    """More batches move v and w further, alpha no more than the first did; without `adaptive` it stays."""
    memory = point(2, 0, prefix="v/") | {"alpha": np.array(0.25)}
    alphas = [
        Apfl(alpha=0.5, adaptive=True).train(line(), memory, one(steps=steps)).metrics["apfl.alpha"] for steps in (1, 4)
    ]
    assert alphas[0] == alphas[1] != 0.25
    assert 0.25 == Apfl(adaptive=False, alpha=0.5).train(line(), memory, one()).metrics["apfl.alpha"]


@pytest.mark.parametrize(("own", "end"), [(3.0, 1.0), (-3.0, 0.0)])
def test_apfl_keeps_alpha_between_0_and_1(own: float, end: float) -> None:
    """With a step of 100 alpha runs to the side that fits the example: v = 3 does, v = -3 does not."""
    memory = point(own, 0, prefix="v/") | {"alpha": np.array(0.5)}
    assert end == Apfl(alpha=0.5, adaptive=True).train(line(), memory, one(learning_rate=100.0)).metrics["apfl.alpha"]


def test_apfl_starts_from_the_received_weights_with_the_alpha_of_the_settings() -> None:
    """At the first round v = w, so alpha has no slope: it is as set, and without a round the site serves w."""
    assert 0.75 == Apfl(alpha=0.75, adaptive=True).train(line(2, 1), {}, one()).metrics["apfl.alpha"]
    assert (2.0, 1.0) == numbers(served(Apfl(alpha=0.75, adaptive=True), line(2, 1), {}, one()))


@pytest.mark.parametrize(("name", "shape"), [("linear", (3,)), ("mlp", (3,)), ("small_cnn", (1, 8, 8))])
def test_apfl_sends_the_update_of_fedavg(name: str, shape: tuple[int, ...]) -> None:
    """Whatever alpha: w takes its own steps, and BatchNorm's shared statistics are those of w's passes."""
    task = random_work(shape)
    _, expected = after_training(FedAvg(), built(name, shape), {}, task)
    for alpha in (0.0, 0.5):
        model = built(name, shape)
        memory, after = after_training(Apfl(alpha=alpha, adaptive=True), model, {}, task)
        np.testing.assert_equal(expected, after)
        np.testing.assert_equal(
            expected, after_training(Apfl(alpha=alpha, adaptive=True), built(name, shape), memory, task)[1]
        )


def test_apfl_with_alpha_0_serves_the_global_model() -> None:
    """Not adaptive, alpha = 0: v never moves and has no part in what is served."""
    method, task = Apfl(alpha=0.0, adaptive=False), random_work()
    model = built("mlp", (3,))
    received = get_weights(model.module)
    memory, _ = after_training(method, model, {}, task)
    np.testing.assert_equal(received, under(memory, "v/"))
    set_weights(model.module, received)
    np.testing.assert_equal(received, served(method, model, memory, task))


@pytest.mark.parametrize(("name", "shape"), [("mlp", (3,)), ("small_cnn", (1, 8, 8))])
def test_apfl_with_alpha_1_is_local_training(name: str, shape: tuple[int, ...]) -> None:
    """Not adaptive, alpha = 1: v goes on alone over the rounds, running statistics included, and is served."""
    method, task = Apfl(alpha=1.0, adaptive=False), random_work(shape)
    model, alone = built(name, shape), built(name, shape)
    memory: Memory = {}
    for number in (1, 2):
        set_weights(model.module, {n: a * number for n, a in get_weights(built(name, shape).module).items()})
        memory, _ = after_training(method, model, memory, task)
        train(alone, task)
        np.testing.assert_equal(get_weights(alone.module), under(memory, "v/"))
    np.testing.assert_equal(get_weights(alone.module), served(method, model, memory, task))


def apfl_transcribed(rate: float, alpha: float) -> tuple[Vector, list[tuple[Vector, float]], list[Vector]]:
    """Deng 2020, algorithm 1, on full batches; alpha is updated at the first step of a round."""
    w_global, personal = start().copy(), [(start().copy(), alpha)] * 3
    for _ in range(ROUNDS):
        sent = []
        for number, site in enumerate(SITES):
            w, (v, share) = w_global.copy(), personal[number]
            for step in range(STEPS):
                at_mix = gradient(share * v + (1 - share) * w, site)
                next_v, next_w = v - rate * share * at_mix, w - rate * gradient(w, site)
                if step == 0:
                    share = float(np.clip(share - rate * at_mix @ (v - w), 0, 1))
                v, w = next_v, next_w
            personal[number] = (v, share)
            sent.append(w)
        w_global = mean_of(sent)
    return w_global, personal, [share * v + (1 - share) * w_global for v, share in personal]


def test_apfl_agrees_with_a_transcription_of_the_paper() -> None:
    """Three rounds on three sites: global weights, v, alpha and what is served agree to 1e-5, and alpha has moved."""
    weights, memories, serving = federate(Apfl(alpha=0.4, adaptive=True), 0.5)
    expected, personal, expected_serving = apfl_transcribed(0.5, 0.4)
    np.testing.assert_allclose(expected, weights, atol=1e-5)
    for memory, (v, alpha) in zip(memories, personal, strict=True):
        np.testing.assert_allclose(v, flat(under(memory, "v/")), atol=1e-5)
        assert pytest.approx(alpha, abs=1e-5) == float(memory["alpha"])
        assert abs(alpha - 0.4) > 1e-3
    np.testing.assert_allclose(expected_serving, serving, atol=1e-5)


def test_apfl_budget_counts_both_gradients() -> None:
    """One for w and one for v per batch: 2 * 2 epochs * 4 batches (of 20 examples, 6 to a batch) = 16."""
    assert 16 == Apfl(alpha=0.5, adaptive=True).budget(random_work()).per_round.num_steps


# --- pFedMe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inner_steps", "theta", "w"), [(1, 0.05, 0.025), (2, 0.08750208, 0.04375104)])
def test_pfedme_gives_the_numbers_worked_out_by_hand(inner_steps: int, theta: float, w: float) -> None:
    """x = 1, y = 1, all 0; lam = 2, personal rate 0.1, learning rate 0.25; weight and bias go alike.

    First: g = -0.5, theta = 0 - 0.1 * (-0.5 + 2 * 0) = 0.05. Second: logit 0.1, g = sigmoid(0.1) - 1 = -0.4750208,
    theta = 0.05 - 0.1 * (-0.4750208 + 2 * 0.05) = 0.08750208. w = 0 - 0.25 * 2 * (0 - theta) = theta / 2.
    """
    model = line()
    method = PFedMe(lam=2.0, inner_steps=inner_steps, personal_learning_rate=0.1)
    memory, after = after_training(method, model, {}, one(learning_rate=0.25))
    assert pytest.approx((theta, theta), abs=1e-7) == numbers(under(memory, "theta/"))
    assert pytest.approx((w, w), abs=1e-7) == numbers(after)
    assert pytest.approx((theta, theta), abs=1e-7) == numbers(served(method, line(9, 9), memory, one()))


def test_pfedme_with_a_strong_pull_keeps_theta_at_w() -> None:
    """lam * personal rate = 1: theta = w - personal rate * g, so with lam = 1e6 it stays within 1e-6."""
    method = PFedMe(lam=1e6, inner_steps=3, personal_learning_rate=1e-6)
    memory, _ = after_training(method, line(0.5, 0.25), {}, one(learning_rate=1e-9))
    assert pytest.approx((0.5, 0.25), abs=1e-6) == numbers(under(memory, "theta/"))


def test_pfedme_serves_the_received_weights_before_its_first_round() -> None:
    """A late joiner has no theta."""
    assert (2.0, 1.0) == numbers(
        served(PFedMe(lam=15.0, inner_steps=5, personal_learning_rate=0.05), line(2, 1), {}, one())
    )


def test_pfedme_starts_theta_anew_from_the_received_weights() -> None:
    """What was trained in an earlier round is served, not trained on: memory has no part in `train`."""
    results = [
        after_training(PFedMe(lam=15.0, inner_steps=5, personal_learning_rate=0.05), line(), memory, one())
        for memory in ({}, point(7, 7, prefix="theta/"))
    ]
    np.testing.assert_equal(results[0], results[1])


def test_pfedme_serves_theta_with_the_statistics_it_was_trained_under() -> None:
    """BatchNorm's buffers in memory are those that the passes left, and they are what is shared."""
    model = built("small_cnn", (1, 8, 8))
    memory, after = after_training(
        PFedMe(inner_steps=2, lam=15.0, personal_learning_rate=0.05),
        model,
        {},
        random_work((1, 8, 8), learning_rate=0.01),
    )
    theirs = under(memory, "theta/")
    buffers = model.moving - model.trainable
    assert 6 == len(buffers)
    np.testing.assert_equal({n: after[n] for n in buffers}, {n: theirs[n] for n in buffers})
    assert 2 * 2 * 4 == after["backbone.block1.norm.num_batches_tracked"]


def pfedme_transcribed(rate: float, lam: float, inner: int, personal: float) -> tuple[Vector, list[Vector]]:
    """Dinh 2020, algorithm 1 with beta = 1, on full batches and gradient descent for the inner problem."""
    w_global, thetas = start().copy(), [start()] * 3
    for _ in range(ROUNDS):
        sent = []
        for number, site in enumerate(SITES):
            w_local, theta = w_global.copy(), w_global.copy()
            for _ in range(STEPS):
                for _ in range(inner):
                    theta = theta - personal * (gradient(theta, site) + lam * (theta - w_local))
                w_local = w_local - rate * lam * (w_local - theta)
            thetas[number] = theta
            sent.append(w_local)
        w_global = mean_of(sent)
    return w_global, thetas


def test_pfedme_agrees_with_a_transcription_of_the_paper() -> None:
    """Three rounds on three sites: global weights and every theta agree to 1e-5."""
    method = PFedMe(lam=2.0, inner_steps=3, personal_learning_rate=0.2)
    weights, memories, serving = federate(method, 0.15)
    expected, thetas = pfedme_transcribed(0.15, 2.0, 3, 0.2)
    np.testing.assert_allclose(expected, weights, atol=1e-5)
    np.testing.assert_allclose(thetas, [flat(under(memory, "theta/")) for memory in memories], atol=1e-5)
    np.testing.assert_allclose(thetas, serving, atol=1e-5)
    assert float(np.abs(weights - start()).max()) > 0.05


def test_pfedme_budget_counts_the_inner_steps() -> None:
    """5 inner steps * 2 epochs * 4 batches = 40."""
    assert 40 == PFedMe(lam=15.0, inner_steps=5, personal_learning_rate=0.05).budget(random_work()).per_round.num_steps


# --- FedALA ----------------------------------------------------------------------------------------


def mixing(weight: float, bias: float = 1.0) -> dict[str, Any]:
    """Return the memory of a site that trained (0, 0) last and has learned these mixes."""
    return point(0, 0, prefix="local/") | point(weight, bias, prefix="mix/")


@pytest.mark.parametrize(
    ("rate", "label", "mix"), [(0.25, 0, 0.55960146), (1.0, 0, 0.0), (0.25, 1, 1.0)], ids=["inside", "at 0", "at 1"]
)
def test_fedala_gives_the_numbers_worked_out_by_hand(rate: float, label: int, mix: float) -> None:
    """local = (0, 0), received = (2, 0), W = 1, x = 1: the logit is 2, and received - local is (2, 0).

    y = 0: g = sigmoid(2) = 0.8807971, W = 1 - 0.25 * 0.8807971 * 2 = 0.55960146; with rate 1 it is below 0: clipped.
    y = 1: g = -0.1192029, W would grow above 1: clipped. The bias has nothing to mix. init = 0 + W * (2 - 0).
    """
    method, task = FedAla(mix_learning_rate=rate, layers=1, fraction=0.8, tolerance=0.1), work_on([[1.0]], [label])
    assert pytest.approx((2 * mix, 0.0), abs=1e-6) == numbers(served(method, line(2, 0), mixing(1), task))
    memory, after = after_training(method, line(2, 0), mixing(1), task)
    assert pytest.approx((mix, 1.0), abs=1e-6) == numbers(under(memory, "mix/"))
    step = 0.1 * (sigmoid(2 * mix) - label)
    assert pytest.approx((2 * mix - step, -step), abs=1e-6) == numbers(after) == numbers(under(memory, "local/"))


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_fedala_serves_local_where_w_is_0_and_received_where_it_is_1(name: str, mix: float) -> None:
    """To the bit, in the top layer; below it, and in all buffers, always what was received."""
    shape = (3,) if name == "mlp" else (1, 8, 8)
    task, model = random_work(shape), built(name, shape)
    received = get_weights(model.module)
    memory, after = after_training(
        FedAla(layers=1, fraction=0.8, mix_learning_rate=1.0, tolerance=0.1), model, {}, task
    )
    assert {"local/head.weight", "local/head.bias"} == set(memory)
    known = {f"mix/{n}": np.full_like(received[n], mix) for n in ("head.weight", "head.bias")}
    set_weights(model.module, received)
    result = served(
        FedAla(mix_learning_rate=1e-30, layers=1, fraction=0.8, tolerance=0.1), model, dict(memory) | known, task
    )
    expected = received if mix else received | {n: after[n] for n in ("head.weight", "head.bias")}
    np.testing.assert_equal(expected, result)


def test_fedala_learns_its_mix_with_layers_as_they_are_served() -> None:
    """By hand, one batch, BatchNorm by its running statistics: W = clip(W - rate * g * (received - local), 0, 1).

    No statistic of the batch enters, and none moves: all that is served below the head is what was received.
    """
    generator, task = np.random.default_rng(4), random_work(batch_size=100, epochs=1)
    model = built("mlp_bn", (3,))
    initial: dict[str, Any] = get_weights(model.module)
    received: dict[str, Any] = {
        name: np.asarray(array + generator.uniform(0.5, 1.5, array.shape)).astype(array.dtype)
        for name, array in initial.items()
    }
    set_weights(model.module, received)
    head = {name: received[name] for name in ("head.weight", "head.bias")}
    local = {name: (array - generator.normal(size=array.shape)).astype(np.float32) for name, array in head.items()}
    mix = {name: np.full_like(array, 0.5) for name, array in head.items()}
    x, y = task.examples.x.numpy().astype(np.float64), task.examples.y.numpy()
    w, scale, shift, mean, var = (
        received[f"backbone.layer1.{name}"]
        for name in ("linear.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    )
    hidden = np.maximum((x @ w.T - mean) / np.sqrt(var + 1e-5) * scale + shift, 0)
    start = {name: local[name] + 0.5 * (head[name] - local[name]) for name in head}
    error = (sigmoid(hidden @ start["head.weight"].T + start["head.bias"]) - y[:, None]) / len(y)
    gradients = {"head.weight": error.T @ hidden, "head.bias": error.sum(axis=0)}
    rate, inside = 2.0, 0
    memory, _ = after_training(
        FedAla(fraction=1.0, mix_learning_rate=rate, layers=1, tolerance=0.1),
        model,
        {f"local/{name}": array for name, array in local.items()}
        | {f"mix/{name}": array for name, array in mix.items()},
        task,
    )
    for name, gradient in gradients.items():
        expected = np.clip(0.5 - rate * gradient * (head[name] - local[name]), 0, 1)
        np.testing.assert_allclose(expected, memory[f"mix/{name}"].astype(np.float64), rtol=0, atol=1e-5)
        inside += int(((expected > 0) & (expected < 1) & (abs(expected - 0.5) > 0.01)).sum())
    assert inside >= 3
    set_weights(model.module, received)
    result = served(FedAla(fraction=1.0, mix_learning_rate=rate, layers=1, tolerance=0.1), model, memory, task)
    before, after = ({name: a for name, a in part.items() if name not in head} for part in (received, result))
    np.testing.assert_equal(before, after)


def test_fedala_is_fedavg_at_the_first_round() -> None:
    """Nothing to mix yet: the same bits are sent, and W is not learned; a late joiner serves what it received."""
    task, model = random_work(), built("mlp", (3,))
    memory, after = after_training(
        FedAla(layers=1, fraction=0.8, mix_learning_rate=1.0, tolerance=0.1), model, {}, task
    )
    np.testing.assert_equal(after_training(FedAvg(), built("mlp", (3,)), {}, task)[1], after)
    assert not under(memory, "mix/")
    assert (2.0, 1.0) == numbers(
        served(FedAla(layers=1, fraction=0.8, mix_learning_rate=1.0, tolerance=0.1), line(2, 1), {}, one())
    )


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, {"head"}), (2, {"head", "linear"}), (4, {"head", "linear", "norm", "conv"})]
)
def test_fedala_top_layers_are_the_last_modules_with_trainable_parameters(layers: int, expected: set[str]) -> None:
    """small_cnn from the top: head, linear, then norm and convolution of the second block; no buffer among them."""
    model = built("small_cnn", (1, 8, 8))
    names = top_layers(model, layers)
    assert expected == {name.split(".")[-2] for name in names}
    assert not any("block1" in name or "running" in name for name in names)
    assert model.head == top_layers(built("small_cnn", (1, 8, 8), trainable="head"), layers)


def test_fedala_learns_on_a_part_of_the_examples() -> None:
    """One of four examples is `fraction` 0.25: W is what one of x = 1, 2, 3, 4 (y = 0) alone would give.

    local = (0, 0), received = (0.5, 0): W = 1 - 0.1 * sigmoid(x / 2) * x * 0.5; another seed takes another example.
    """
    x = np.array([1.0, 2.0, 3.0, 4.0])
    candidates, found = 1 - 0.1 * sigmoid(x / 2) * x * 0.5, set()
    for seed in range(8):
        task = work_on(x[:, None], [0, 0, 0, 0], seed=seed)
        memory, _ = after_training(
            FedAla(fraction=0.25, mix_learning_rate=0.1, layers=1, tolerance=0.1), line(0.5, 0), mixing(1), task
        )
        near = np.isclose(candidates, float(memory["mix/weight"].item()), atol=1e-6)
        assert 1 == near.sum()
        found.add(int(near.argmax()))
    assert len(found) > 1


def test_fedala_goes_on_learning_at_the_first_time_only() -> None:
    """With a tiny rate W sinks by the same amount in every pass, so that its fall counts the passes.

    100 passes where the losses never settle, 10 where they do from the start (as it takes ten), one once W is known.
    """
    sunk, fresh = [], point(0, 0, prefix="local/")
    for memory, tolerance in ((fresh, 1e-30), (fresh, 1.0), (mixing(1), 1e-30)):
        method = FedAla(mix_learning_rate=1e-4, tolerance=tolerance, layers=1, fraction=0.8)
        after, _ = after_training(method, line(2, 0), memory, work_on([[1.0]], [0]))
        sunk.append(1 - float(after["mix/weight"].item()))
    assert pytest.approx(1e-4 * 2 * 0.8807971, rel=1e-2) == sunk[2]
    assert pytest.approx((100, 10), rel=1e-2) == (sunk[0] / sunk[2], sunk[1] / sunk[2])


def fedala_transcribed(rate: float, eta: float, tolerance: float) -> tuple[Vector, list[Vector], list[Vector]]:
    """Zhang 2023, algorithm 1, with every layer a top layer, all examples and full batches."""
    w_global, local, mixes = start().copy(), [start()] * 3, [np.ones(4) for _ in SITES]
    for number_of_round in range(ROUNDS):
        sent = []
        for number, site in enumerate(SITES):
            theta = w_global.copy()
            if number_of_round > 0:
                theta, mixes[number] = fedala_start(
                    local[number], w_global, mixes[number], site, eta, None if number_of_round > 1 else tolerance
                )
            for _ in range(STEPS):
                theta = theta - rate * gradient(theta, site)
            local[number] = theta
            sent.append(theta)
        w_global = mean_of(sent)
    serving = [fedala_start(local[i], w_global, mixes[i], SITES[i], eta, None)[0] for i in range(3)]
    return w_global, mixes, serving


def fedala_start(
    local: Vector, received: Vector, mix: Vector, site: tuple[Vector, Vector], eta: float, tolerance: float | None
) -> tuple[Vector, Vector]:
    """Return where FedALA's training begins, and the mix, by the paper's loop in plain NumPy."""
    losses: list[float] = []
    while True:
        start = local + mix * (received - local)
        losses.append(mean_loss(start, site))
        mix = np.clip(mix - eta * gradient(start, site) * (received - local), 0, 1)
        settled = tolerance is None or (len(losses) >= 10 and float(np.std(losses[-10:])) < tolerance)
        if settled or len(losses) == 100:
            return local + mix * (received - local), mix


def test_fedala_agrees_with_a_transcription_of_the_paper() -> None:
    """Three rounds on three sites: global weights, W and what is served agree to 1e-5; some of W is inside (0, 1)."""
    method = FedAla(fraction=1.0, mix_learning_rate=2.0, tolerance=1e-4, layers=1)
    weights, memories, serving = federate(method, 0.5)
    expected, mixes, expected_serving = fedala_transcribed(0.5, 2.0, 1e-4)
    np.testing.assert_allclose(expected, weights, atol=1e-5)
    np.testing.assert_allclose(mixes, [flat(under(memory, "mix/")) for memory in memories], atol=1e-5)
    np.testing.assert_allclose(expected_serving, serving, atol=1e-5)
    assert ((np.array(mixes) > 0.01) & (np.array(mixes) < 0.99)).any()


def test_fedala_budget_counts_one_pass_over_its_part() -> None:
    """2 epochs * 4 batches, and 0.8 * 20 = 16 examples in batches of 6 = 3 more; as many before serving."""
    budget = FedAla(layers=1, fraction=0.8, mix_learning_rate=1.0, tolerance=0.1).budget(random_work())
    assert budget.before_serving is not None
    assert (11, 3) == (budget.per_round.num_steps, budget.before_serving.num_steps)


# --- kNN-Per ---------------------------------------------------------------------------------------


def probabilities(module: nn.Module, x: Any) -> Vector:
    """Return the probability of class 1 for one logit, of every class otherwise, in float64."""
    with torch.no_grad():
        logits = module.eval()(torch.as_tensor(x, dtype=torch.float32)).double()
    return np.asarray(logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1))


def test_knn_per_two_neighbours_by_hand() -> None:
    """Examples at 0 (class 1) and ln 2 (class 0); at x = 0 the distances are 0 and ln 2, so votes 1 and 1/2.

    p_kNN(1) = 1 / 1.5 = 2/3; with mix 1/2 and a global p(1) = sigmoid(0) = 1/2: (2/3 + 1/2) / 2 = 7/12. Squared
    distances would give 1 / (1 + exp(-(ln 2)**2)) = 0.618.
    """
    task = work_on([[0.0], [math.log(2)]], [1, 0])
    assert pytest.approx([2 / 3], abs=1e-6) == probabilities(
        KnnPer(mix=1, neighbours=10).personalise(line(), {}, task), [[0.0]]
    )
    assert pytest.approx([7 / 12], abs=1e-6) == probabilities(
        KnnPer(mix=0.5, neighbours=10).personalise(line(), {}, task), [[0.0]]
    )


def test_knn_per_of_three_classes_by_hand() -> None:
    """At x = 0, of examples at 0, ln 2, ln 4 and 50 (classes 2, 0, 2, 1) the nearest three vote 1, 1/2 and 1/4.

    p = (0.5, 0, 1.25) / 1.75 = (2/7, 0, 5/7); class 1 keeps 1e-7, so that its loss is finite.
    """
    model = built("linear", (1,), outputs=3)
    task = work_on([[0.0], [math.log(2)], [math.log(4)], [50.0]], [2, 0, 2, 1])
    module = KnnPer(neighbours=3, mix=1).personalise(model, {}, task)
    np.testing.assert_allclose([[2 / 7, 1e-7, 5 / 7]], probabilities(module, [[0.0]]), atol=1e-6)
    class_1 = Examples(torch.zeros(1, 1), torch.ones(1, dtype=torch.long))
    assert pytest.approx(-math.log(1e-7), rel=1e-4) == evaluate(module, class_1).loss


@pytest.mark.parametrize("name", ["linear", "mlp", "small_cnn"])
def test_knn_per_answers_the_class_of_an_example_it_remembers(name: str) -> None:
    """k = 1, mix = 1: every training example gets its own class, with all the probability there is."""
    shape = (1, 8, 8) if name == "small_cnn" else (3,)
    task = random_work(shape)
    module = KnnPer(neighbours=1, mix=1).personalise(built(name, shape), {}, task)
    seen = evaluate(module, task.examples)
    assert (1.0, True) == (seen.accuracy, seen.loss < 1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_knn_per_without_neighbours_share_is_the_global_model(outputs: int) -> None:
    """mix = 0: the probabilities are the global model's to 1e-6."""
    task, model = random_work(), built("mlp", (3,), outputs=outputs)
    x = task.examples.x + 0.5
    expected = probabilities(model.module, x)
    np.testing.assert_allclose(
        expected, probabilities(KnnPer(mix=0, neighbours=10).personalise(model, {}, task), x), atol=1e-6
    )


def test_knn_per_far_from_all_examples_still_votes() -> None:
    """At a distance of 10,000 every exp(-d) is 0 in any float; the votes are relative to the nearest: 2/3 again."""
    task = work_on([[0.0], [-math.log(2)]], [1, 0])
    assert pytest.approx([2 / 3], abs=1e-3) == probabilities(
        KnnPer(mix=1, neighbours=10).personalise(line(), {}, task), [[1e4]]
    )


def test_knn_per_asks_no_more_neighbours_than_there_are() -> None:
    """k = 10 of 2 examples is both; x = 5 lies beyond both, by ln 2 further from one."""
    task = work_on([[0.0], [math.log(2)]], [1, 0])
    assert pytest.approx([1 / 3], abs=1e-6) == probabilities(
        KnnPer(mix=1, neighbours=10).personalise(line(), {}, task), [[5.0]]
    )


def test_knn_per_features_are_what_the_head_is_given() -> None:
    """The inputs for `linear` (images flattened), the backbone's output otherwise; maps are averaged."""
    x = random_work((1, 8, 8)).examples.x
    flattened = WithNeighbours.of_examples(
        built("linear", (1, 8, 8)), x, torch.zeros(20, dtype=torch.long), neighbours=1
    )
    assert torch.equal(x.flatten(1), flattened.features)
    model = built("small_cnn", (1, 8, 8))
    expected = model.module.eval().get_submodule("backbone")(x).detach()
    assert torch.equal(
        expected, WithNeighbours.of_examples(model, x, torch.zeros(20, dtype=torch.long), neighbours=1).features
    )
    head = nn.Conv2d(1, 2, kernel_size=1)
    module = nn.Sequential(nn.Identity(), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    names = ("1.weight", "1.bias")
    maps = Model(module, frozenset(names), frozenset(), frozenset(names), names, "average")
    averaged = WithNeighbours.of_examples(maps, x, torch.zeros(20, dtype=torch.long), neighbours=1).features
    np.testing.assert_allclose(x.mean(dim=(2, 3)).numpy(), averaged.numpy(), atol=1e-6)


def test_knn_per_remembers_and_answers_in_batches_as_at_once() -> None:
    """1,200 examples are more than two batches: features of all are there, in order, and answers are the same."""
    task, model = random_work(count=1200), built("mlp", (3,))
    module = KnnPer(mix=0.5, neighbours=10).personalise(model, {}, task)
    assert isinstance(module, WithNeighbours)
    assert torch.equal(task.examples.y, module.classes)
    with torch.no_grad():
        whole = module(task.examples.x)
        parts = torch.cat([module(part) for part in torch.split(task.examples.x, 100)])
        np.testing.assert_allclose(model.module.get_submodule("backbone")(task.examples.x), module.features, atol=1e-6)
    np.testing.assert_allclose(whole.numpy(), parts.numpy(), atol=1e-4)


def tuned(validation: Examples) -> float:
    """Return the mix that is tuned for neighbours that say class 1 at 0 and class 0 at 10, and a global 1/2."""
    task = work_on([[0.0], [10.0]], [1, 0], validation=validation)
    module = KnnPer(neighbours=1, mix=None).personalise(line(), {}, task)
    assert isinstance(module, WithNeighbours)
    return float(module.mix)


def test_knn_per_tunes_the_mix_on_validation_examples() -> None:
    """Neighbours always right: 1; always wrong: 0; right in 7 of 10: 0.4; nothing to tune on: 0.5.

    With p = (1 + mix) / 2 for the neighbours' class, -0.7 ln p - 0.3 ln(1 - p) is least at p = 0.7, so mix = 0.4.
    """
    x, right = torch.zeros(10, 1), torch.ones(10, dtype=torch.long)
    mostly = torch.tensor([1] * 7 + [0] * 3)
    assert [1.0, 0.0, 0.4] == [tuned(Examples(x, y)) for y in (right, 1 - right, mostly)]
    assert 0.5 == tuned(NOTHING)


def test_knn_per_takes_the_smaller_of_equal_mixes() -> None:
    """A neighbour that says what the global model says: every mix is as good, so 0."""
    task = work_on([[0.0], [0.0]], [1, 0], validation=Examples(torch.zeros(3, 1), torch.ones(3, dtype=torch.long)))
    module = KnnPer(neighbours=2, mix=None).personalise(line(), {}, task)
    assert isinstance(module, WithNeighbours)
    assert 0.0 == float(module.mix)


def test_knn_per_stores_the_model_and_what_it_remembers() -> None:
    """`personal.safetensors` holds enough to answer alone: weights, features, classes and the mix; nothing is sent."""
    task, model = random_work(), built("mlp", (3,))
    arrays = served(KnnPer(mix=0.3, neighbours=10), model, {}, task)
    assert {f"model.{name}" for name in model.names} | {"features", "classes", "mix"} == set(arrays)
    assert ((20, 5), (20,), 0.3) == (arrays["features"].shape, arrays["classes"].shape, arrays["mix"].item())
    memory, after = after_training(KnnPer(neighbours=10, mix=None), model, {}, task)
    assert (0, set(model.names)) == (len(memory), set(after))


# --- Per-FedAvg ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "expected"), [("first_order", 4.68), ("hessian_free", 4.744)])
def test_per_fedavg_on_a_quadratic(variant: Variant, expected: float) -> None:
    """f(w) = a/2 (w - c)^2 with a = 2, c = 1 from w = 5; alpha = 0.1, beta = 0.05.

    First order: w - beta a (1 - alpha a) (w - c) = 5 - 0.05 * 2 * 0.8 * 4 = 4.68; Hessian-free, which is exact for a
    quadratic: the factor 0.8 twice, 5 - 0.256 = 4.744. A step from the adapted weights 4.2 would give 3.88, 3.944.
    """

    def slope(at: list[Tensor], batch: int) -> list[Tensor]:
        return [2 * (at[0] - 1)]

    start = [torch.tensor(5.0, dtype=torch.float64)]
    (after,) = meta_step(start, slope, alpha=0.1, beta=0.05, variant=variant, difference=1e-3)
    assert pytest.approx(expected, abs=1e-9) == float(after)
    assert 5.0 == float(start[0])


def test_per_fedavg_of_a_loss_without_curvature_is_first_order() -> None:
    """The gradient is the same everywhere: both variants go w - beta g, 2 - 0.5 * 3 = 0.5."""

    def constant(at: list[Tensor], batch: int) -> list[Tensor]:
        return [torch.full_like(at[0], 3.0)]

    for variant in ("first_order", "hessian_free"):
        start = [torch.tensor([2.0], dtype=torch.float64)]
        (after,) = meta_step(start, constant, alpha=0.1, beta=0.5, variant=variant, difference=1e-3)
        assert pytest.approx([0.5], abs=1e-9) == after.tolist()


def test_per_fedavg_uses_each_batch_where_it_belongs() -> None:
    """With gradient = batch number + 1, and 7 for D'' ahead: the inner step shows D, the outer one D'."""
    seen: list[tuple[int, float]] = []

    def told(at: list[Tensor], batch: int) -> list[Tensor]:
        seen.append((batch, float(at[0])))
        return [torch.tensor(batch + 1.0)]

    meta_step([torch.tensor(0.0)], told, alpha=1.0, beta=1.0, variant="hessian_free", difference=0.5)
    assert [(0, 0.0), (1, -1.0), (2, 1.0), (2, -1.0)] == seen


@pytest.mark.parametrize("variant", ["first_order", "hessian_free"])
def test_per_fedavg_trains_by_the_formula(variant: Variant) -> None:
    """On full batches, where D = D' = D'', two outer steps; the loss is that at the two adapted weights v.

    First order w - beta g(v); Hessian-free w - beta (g(v) - alpha H g(v)) with the Hessian H of logistic regression
    at w; v = w - alpha g(w).
    """
    (x, y), w, losses = SITES[0], start(), []
    alpha, beta = 0.5, 0.3
    for _ in range(2):
        v = w - alpha * gradient(w, SITES[0])
        outer, p = gradient(v, SITES[0]), sigmoid(x @ w)
        hessian = (x.T * (p * (1 - p))) @ x / len(y)
        losses.append(mean_loss(v, SITES[0]))
        w = w - beta * (outer - (alpha * hessian @ outer if variant == "hessian_free" else 0))
    model = built("linear", (3,))
    method = PerFedAvg(variant=variant, inner_learning_rate=alpha, difference=1e-2, adapt_steps=1)
    outcome = method.train(model, {}, work_on(x[:, :3], y.astype(int), steps=2, learning_rate=beta))
    np.testing.assert_allclose(w, flat(get_weights(model.module)), atol=2e-5)
    assert pytest.approx(np.mean(losses), abs=1e-5) == outcome.loss
    assert float(np.abs(w - start()).max()) > 0.05


def test_per_fedavg_draws_its_batches_independently() -> None:
    """Batches of one of x = 1, 2, 4 (y = 1): the step tells which were D and D'; over seeds they are equal and unequal.

    From 0: v = alpha * 0.5 * (x, 1), then w = beta * (1 - sigmoid(v * x' + bias)) * x'.
    """
    x, pairs = np.array([1.0, 2.0, 4.0]), set()
    inner = 0.5 * 0.5 * np.column_stack([x, np.ones(3)])
    expected = 0.1 * (1 - sigmoid(inner[:, :1] * x[None, :] + inner[:, 1:])) * x[None, :]
    for seed in range(16):
        task = work_on(x[:, None], [1, 1, 1], batch_size=1, seed=seed)
        _, after = after_training(
            PerFedAvg(inner_learning_rate=0.5, variant="first_order", difference=0.001, adapt_steps=1), line(), {}, task
        )
        near = np.isclose(expected, numbers(after)[0], atol=1e-6)
        assert 1 == near.sum()
        pairs.add(tuple(int(i) for i in np.argwhere(near)[0]))
    assert {True, False} == {first == second for first, second in pairs}


def test_per_fedavg_differences_gradients_under_one_dropout_mask() -> None:
    """With dropout the Hessian-free step differs from the first-order one by alpha * beta * H g, not by mask noise.

    Two masks would differ by O(1), divided by 2 * 1e-3: the steps would be apart by some 100 times beta * alpha.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Dropout(0.5), nn.Linear(50, 1))
    names = tuple(module.state_dict())
    model = Model(module, frozenset(names[2:]), frozenset(), frozenset(names), names, "average")
    start, results = get_weights(module), []
    for variant in ("first_order", "hessian_free"):
        set_weights(module, start)
        results.append(
            after_training(
                PerFedAvg(variant=variant, inner_learning_rate=0.01, difference=0.001, adapt_steps=1),
                model,
                {},
                random_work(steps=1, epochs=None),
            )[1]
        )
    apart = max(float(np.abs(subtract(*results)[n]).max()) for n in names)
    assert 0 < apart < 2 * 0.1 * 0.01  # beta, alpha, and H g of order 1 at most


@pytest.mark.parametrize(
    "method",
    [
        PerFedAvg(adapt_steps=3, variant="first_order", inner_learning_rate=0.01, difference=0.001),
        Reptile(adapt_steps=3, adapt_learning_rate=0.01),
    ],
)
def test_adaptation_is_plain_training_on_training_examples(method: PerFedAvg | Reptile) -> None:
    """`adapt_steps` batches at its own rate and order; validation examples, were they read, would make NaN of it."""
    poison = Examples(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long))
    task = random_work(validation=poison, momentum=0.9 if isinstance(method, Reptile) else 0.0)
    model, expected = built("mlp", (3,)), built("mlp", (3,))
    result = served(method, model, {}, task)
    train(expected, replace(task, epochs=None, steps=3, learning_rate=0.01, seed=seed_for(task.seed, "adapt")))
    np.testing.assert_equal(get_weights(expected.module), result)
    assert all(np.isfinite(array).all() for array in result.values())
    assert not np.array_equal(result["head.weight"], get_weights(built("mlp", (3,)).module)["head.weight"])


def test_per_fedavg_adapts_by_plain_sgd_whatever_the_study_says() -> None:
    """The step of the paper has neither momentum nor weight decay; Reptile's is the study's own optimiser."""
    plain, other = random_work(), random_work(momentum=0.9, weight_decay=0.1, optimiser="adam")
    one_way, another = (
        served(
            PerFedAvg(adapt_steps=3, variant="first_order", inner_learning_rate=0.01, difference=0.001),
            built("mlp", (3,)),
            {},
            task,
        )
        for task in (plain, other)
    )
    np.testing.assert_equal(one_way, another)
    one_way, another = (
        served(Reptile(adapt_steps=3, adapt_learning_rate=0.01), built("mlp", (3,)), {}, task)
        for task in (plain, other)
    )
    assert not np.array_equal(one_way["head.weight"], another["head.weight"])


@pytest.mark.parametrize(
    "method",
    [
        PerFedAvg(adapt_steps=0, variant="first_order", inner_learning_rate=0.01, difference=0.001),
        Reptile(adapt_steps=0, adapt_learning_rate=0.01),
    ],
)
def test_without_adaptation_the_global_model_is_served(method: Method) -> None:
    """`adapt_steps = 0`: to the bit, and nothing is budgeted for it."""
    model, task = built("mlp", (3,)), random_work()
    before = get_weights(model.module)
    np.testing.assert_equal(before, served(method, model, {}, task))
    assert method.budget(task).before_serving is None


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (PerFedAvg(variant="first_order", inner_learning_rate=0.01, difference=0.001, adapt_steps=1), 16),
        (PerFedAvg(variant="hessian_free", inner_learning_rate=0.01, difference=0.001, adapt_steps=1), 32),
        (Reptile(adapt_steps=1, adapt_learning_rate=0.01), 8),
    ],
)
def test_meta_learning_budget_counts_gradients_and_the_adaptation(method: Method, steps: int) -> None:
    """8 outer steps of 2 or 4 gradients; Reptile takes one a step. Then one batch of adaptation at its own rate."""
    budget = method.budget(random_work())
    assert budget.before_serving is not None
    assert (steps, 1, 0.01) == (
        budget.per_round.num_steps,
        budget.before_serving.num_steps,
        budget.before_serving.learning_rate,
    )


# --- Reptile and kNN-Per train as FedAvg -----------------------------------------------------------


@pytest.mark.parametrize("method", [Reptile(adapt_steps=5, adapt_learning_rate=0.01), KnnPer(neighbours=10, mix=None)])
def test_what_is_served_does_not_reach_the_update_of_fedavg(method: Method) -> None:
    """Both train as FedAvg does, to the bit, with the study's own optimiser; they keep nothing."""
    task = random_work(momentum=0.9)
    expected = after_training(FedAvg(), built("mlp", (3,)), {}, task)
    np.testing.assert_equal(expected, after_training(method, built("mlp", (3,)), {}, task))
