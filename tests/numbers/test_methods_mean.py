"""Own numbers of the methods that hold sites together around a mean: FedDyn, FedDBE and MR-MTL; by hand and in limits.

Numbers by hand are of logistic regression (the model `linear`) in float64 NumPy, as in `test_methods_shared`: a point
is the vector (weights, intercept), and every row of features ends in a 1.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import MakeSites, MakeStudy, method_settings
from flwr.app import Error, Message
from local_training import SHAPES, Vector, batched, built, flat, gradient, result, unflat, work
from safetensors.numpy import load_file
from torch import nn

from consilium.adaptation.adapt import adapt_site
from consilium.client.data import Examples
from consilium.client.flower.message import plan_of
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.feddbe import KNOWN, MEAN, SHIFT, FedDbe
from consilium.client.methods.feddyn import FedDyn
from consilium.client.methods.fedprox import FedProx
from consilium.client.methods.local import Local
from consilium.client.methods.mr_mtl import MrMtl
from consilium.client.models import Model, Shifted, cut, divide, get_weights, set_weights
from consilium.client.site.kept import Kept
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork, batches
from consilium.common.errors import ModelError
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.common.study.load import load_study
from consilium.common.weights.arrays import Array, under, with_prefix
from consilium.running.in_process import Answering, run_in_process
from consilium.server.strategies import Update
from consilium.server.strategies.feddyn import FedDyn as FedDynServer
from consilium.server.study.checkpoint import load_checkpoint

TASK = {
    "kind": "table",
    "classes": ["no", "yes"],
    "label": "ill",
    "columns": {"a": {"kind": "number"}, "b": {"kind": "number"}},
    "scale": "site",
}
"""The conftest's tables, with a scale that does not depend on which sites take part."""
SERVED_FILE = "models/personal/weights.safetensors"
every_model = pytest.mark.parametrize("name", sorted(SHAPES))
with_features = pytest.mark.parametrize("name", ["mlp", "mlp_bn", "small_cnn"])
with_batch_norm = pytest.mark.parametrize("name", ["mlp_bn", "small_cnn"])


def unlike(seed: int, **changes: Any) -> LocalWork:
    """Return the work of one of several sites whose best points are far apart: every fourth label is turned round."""
    task = work(data=seed, **changes)
    x, y = task.examples.x + 0.5 * seed, task.examples.y.clone()
    y[::4] = 1 - y[::4]
    return replace(task, examples=Examples(x, y if seed % 2 else 1 - y))


# --- FedDyn ----------------------------------------------------------------------------------------


def test_feddyn_adds_the_pull_and_takes_its_gradient_away() -> None:
    """By hand: t <- t - lr (F'(t) - g + alpha (t - w)), three steps from w; then g+ = g - alpha (t3 - w).

    The pull is the gradient of the squared norm: it grows with the distance, and is 0 at the first step.
    """
    model, task, alpha, lr = built(), work(epochs=3), 0.7, 0.5
    g = np.array([0.3, -0.2, 0.1, 0.05])
    w = flat(get_weights(model.module))
    t = w
    for _ in range(3):
        t = t - lr * (gradient(t, task) - g + alpha * (t - w))
    outcome, after = result(FedDyn(alpha=alpha), model, task, with_prefix(unflat(g), "gradient/"))
    np.testing.assert_allclose(t, flat(after), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(g - alpha * (t - w), flat(under(outcome.memory, "gradient/")), rtol=1e-4, atol=1e-6)
    assert {} == dict(outcome.control)


@every_model
def test_feddyn_takes_the_first_round_as_fedprox_does(name: str) -> None:
    """With g = 0 only the pull is there: every bit of weights and loss is FedProx's with mu = alpha."""
    task = batched(name)
    (outcome, after), (proximal, expected) = (
        result(method, built(name), task) for method in (FedDyn(alpha=0.3), FedProx(mu=0.3))
    )
    np.testing.assert_equal((proximal.loss, expected), (outcome.loss, after))


def test_feddyn_solved_exactly_keeps_the_gradient_of_where_it_ended() -> None:
    """At rest F'(t) - g + alpha (t - w) = 0, so that g+ = g - alpha (t - w) = F'(t)."""
    model, task = built(), work(epochs=400)
    outcome, after = result(FedDyn(alpha=0.5), model, task)
    at = gradient(flat(after), task)
    np.testing.assert_allclose(at, flat(under(outcome.memory, "gradient/")), atol=1e-5)
    assert np.abs(at).max() > 0.02


def feddyn_on_paper(
    w: Vector, tasks: list[LocalWork], cohorts: list[list[int]], *, steps: int, rate: float, alpha: float
) -> tuple[Vector, list[Vector]]:
    """Return server weights and the sites' gradients by algorithm 1 of the paper, in plain NumPy."""
    h, g = np.zeros(4), [np.zeros(4) for _ in tasks]
    for cohort in cohorts:
        ends = []
        for k in cohort:
            theta = w.copy()
            for _ in range(steps):
                theta = theta - rate * (gradient(theta, tasks[k]) - g[k] + alpha * (theta - w))
            g[k] = g[k] - alpha * (theta - w)
            ends.append(theta)
        h = h - alpha / len(tasks) * sum(theta - w for theta in ends)
        w = np.mean(ends, axis=0) - h / alpha
    return w, g


def feddyn_here(
    w: Vector, tasks: list[LocalWork], cohorts: list[list[int]], *, alpha: float
) -> tuple[Vector, list[dict[str, Array]]]:
    """Return the same by the two halves of this project."""
    server, memories = FedDynServer(num_sites=len(tasks)), [dict[str, Array]() for _ in tasks]
    state = server.init(unflat(w))
    for cohort in cohorts:
        updates = []
        for k in cohort:
            model = built()
            set_weights(model.module, state.weights)
            outcome, after = result(FedDyn(alpha=alpha), model, tasks[k], memories[k])
            memories[k] = dict(outcome.memory)
            updates.append(Update(str(k), {n: after[n] - state.weights[n] for n in after}, 12, {}))
        state = server.apply(state, updates, {}).state
    return flat(state.weights), memories


def test_feddyn_follows_the_algorithm_of_the_paper() -> None:
    """Three sites, five rounds, two of them without a site, three local steps: server and sites, to 1e-5."""
    tasks = [unlike(seed, epochs=3) for seed in (1, 2, 3)]
    cohorts = [[0, 1, 2], [0, 1], [0, 1, 2], [1, 2], [0, 1, 2]]
    start = flat(get_weights(built().module))
    expected, own = feddyn_on_paper(start, tasks, cohorts, steps=3, rate=0.5, alpha=0.4)
    w, memories = feddyn_here(start, tasks, cohorts, alpha=0.4)
    np.testing.assert_allclose(expected, w, atol=2e-5)
    for g, memory in zip(own, memories, strict=True):
        np.testing.assert_allclose(g, flat(under(memory, "gradient/")), atol=2e-5)
    assert np.abs(w - start).max() > 0.1


def test_feddyn_ends_where_the_mean_of_all_gradients_is_nothing() -> None:
    """Three unlike sites of ten local steps, 150 rounds: |mean gradient| < 1e-4; FedAvg stays above 1e-2.

    That point is the best one for all sites together, which many local steps alone do not find.
    """
    tasks = [unlike(seed, epochs=10) for seed in (1, 2, 3)]
    w, _ = feddyn_here(flat(get_weights(built().module)), tasks, [[0, 1, 2]] * 150, alpha=0.5)
    assert np.abs(np.mean([gradient(w, task) for task in tasks], axis=0)).max() < 1e-4
    w = flat(get_weights(built().module))
    for _ in range(150):
        ends = []
        for task in tasks:
            model = built()
            set_weights(model.module, unflat(w))
            ends.append(flat(result(FedAvg(), model, task)[1]))
        w = np.mean(ends, axis=0)
    assert np.abs(np.mean([gradient(w, task) for task in tasks], axis=0)).max() > 1e-2


@with_batch_norm
def test_feddyn_regularises_what_is_shared_and_trained(name: str) -> None:
    """BatchNorm that stays at the site is trained without a pull and has no g; running statistics never have one."""
    for policy in ("local", "average"):
        model = built(name, batch_norm=policy)
        controlled = divide(model, FedDyn(alpha=0.1)).shared & model.trainable
        outcome, after = result(FedDyn(alpha=2.0), model, batched(name))
        assert controlled == under(outcome.memory, "gradient/").keys()
        for key in controlled:
            kept = outcome.memory[f"gradient/{key}"]
            assert (after[key].shape, after[key].dtype) == (kept.shape, kept.dtype)
    own = built(name, batch_norm="local")
    zero = {f"gradient/{key}": np.full_like(after[key], 0.5) for key in after}
    one, other = (result(FedDyn(alpha=2.0), built(name, batch_norm="local"), work(name), m)[1] for m in ({}, zero))
    for key in own.trainable & own.batch_norm:  # at the first step, neither g nor the pull reaches them
        np.testing.assert_equal(one[key], other[key])


# --- MR-MTL ----------------------------------------------------------------------------------------


def test_mr_mtl_steps_from_its_own_model_towards_the_mean() -> None:
    """By hand, from v and not from w: v <- v - lr (g(v) + lam (v - w)), two steps; v is sent, kept and served."""
    model, task, lam, lr = built(), work(epochs=2), 0.7, 0.5
    w, v = flat(get_weights(model.module)), np.array([0.5, -0.4, 0.3, 0.2])
    expected = v
    for _ in range(2):
        expected = expected - lr * (gradient(expected, task) + lam * (expected - w))
    outcome, after = result(MrMtl(lam=lam), model, task, with_prefix(unflat(v), "v/"))
    np.testing.assert_allclose(expected, flat(after), rtol=1e-5, atol=1e-6)
    np.testing.assert_equal(dict(after), under(outcome.memory, "v/"))
    set_weights(model.module, unflat(w))
    np.testing.assert_equal(dict(after), get_weights(MrMtl(lam=lam).personalise(model, outcome.memory, task)))


@every_model
def test_mr_mtl_first_round_is_fedprox(name: str) -> None:
    """Without a model of its own a site starts from w: every bit is FedProx's with mu = lam."""
    (outcome, after), (proximal, expected) = (
        result(method, built(name), batched(name)) for method in (MrMtl(lam=0.4), FedProx(mu=0.4))
    )
    np.testing.assert_equal((proximal.loss, expected), (outcome.loss, after))


@every_model
def test_mr_mtl_without_a_pull_is_local_training(name: str) -> None:
    """lam = 0: over three rounds, whatever is received, v is what training alone gives, bit for bit, BatchNorm too."""
    alone, joined, memory = built(name), built(name), dict[str, Array]()
    for number in (1, 2, 3):
        task = batched(name, seed=number)
        Local().train(alone, {}, task)
        memory = dict(MrMtl(lam=0.0).train(joined, memory, task).memory)
        np.testing.assert_equal(get_weights(alone.module), get_weights(joined.module))
        set_weights(joined.module, {key: a + 1 for key, a in get_weights(joined.module, joined.moving).items()})


def test_mr_mtl_with_a_strong_pull_is_near_the_mean() -> None:
    """At rest v - w = -g(v) / lam: at most max |g| / lam apart, wherever v began."""
    model, task = built(), work(epochs=100, learning_rate=0.04)
    w = flat(get_weights(model.module))
    memory = with_prefix(unflat(w + 1), "v/")
    v = flat(result(MrMtl(lam=20.0), model, task, memory)[1])
    np.testing.assert_allclose(-gradient(v, task) / 20.0, v - w, atol=1e-5)
    assert np.abs(v - w).max() < 0.05


def test_mr_mtl_mean_is_the_fixed_point_of_the_joint_problem() -> None:
    """Three sites, lam = 1: v_k and w = mean v_k end where g_k(v_k) + lam (v_k - w) = 0 for every site.

    That is the minimum of sum F_k(v_k) + lam / 2 sum |v_k - mean v|**2, whose gradients sum to 0 over the sites.
    """
    tasks, lam = [unlike(seed, epochs=10) for seed in (1, 2, 3)], 1.0
    w, memories = flat(get_weights(built().module)), [dict[str, Array]() for _ in tasks]
    for _ in range(200):
        own = []
        for k, task in enumerate(tasks):
            model = built()
            set_weights(model.module, unflat(w))
            outcome, after = result(MrMtl(lam=lam), model, task, memories[k])
            memories[k] = dict(outcome.memory)
            own.append(flat(after))
        w = np.mean(own, axis=0)
    for v, task in zip(own, tasks, strict=True):
        np.testing.assert_allclose(-lam * (v - w), gradient(v, task), atol=1e-4)
    assert max(float(np.abs(v - w).max()) for v in own) > 0.05


@with_batch_norm
def test_mr_mtl_pulls_no_batch_norm_of_the_sites_own(name: str) -> None:
    """Where BatchNorm is local, a pull of any strength leaves its first step to the gradient alone."""
    one, other = (
        result(MrMtl(lam=lam), built(name, batch_norm="local"), work(name), memory)[1]
        for lam in (0.0, 3.0)
        for memory in [with_prefix({k: a + 0.25 for k, a in parameters(name).items()}, "v/")]
    )
    own = built(name).batch_norm & built(name).trainable
    for key in built(name).trainable:
        assert (key in own) == np.array_equal(one[key], other[key]), key


def parameters(name: str) -> dict[str, Any]:
    """Return the trained parameters of a model."""
    model = built(name)
    return get_weights(model.module, model.trainable)


# --- FedDBE ----------------------------------------------------------------------------------------


def known(model: Model, mean: npt.ArrayLike) -> Model:
    """Give a model the mean of all sites' features, as the weights of round 2 hold it."""
    set_weights(model.module, {MEAN: np.asarray(mean, np.float32), KNOWN: np.array(1)})
    return model


@with_features
def test_feddbe_trains_the_first_round_as_fedavg_does(name: str) -> None:
    """Without gbar every bit of weights and loss is FedAvg's, and the shift stays 0."""
    method, task = FedDbe(kappa=3.0, mu=1.0), batched(name)
    (outcome, after), (plain, expected) = (
        result(method, built(name, method=method), task),
        result(FedAvg(), built(name), task),
    )
    assert plain.loss == outcome.loss
    np.testing.assert_equal(expected, {key: after[key] for key in expected})
    np.testing.assert_equal(np.zeros_like(after[MEAN]), outcome.memory[SHIFT])


@pytest.mark.parametrize("mu", [1.0, 0.25])
def test_feddbe_tells_the_running_mean_of_its_features(mu: float) -> None:
    """With a backbone that is not trained: rbar <- (1 - mu) rbar + mu mean(B) over the batches, from 0."""
    method, task = FedDbe(mu=mu, kappa=1.0), batched("mlp")
    model = built("mlp", method=method, trainable="head")
    expected = np.zeros(5)
    for x, _ in batches(task):
        with torch.no_grad():
            seen = model.module.get_submodule("backbone")(x).double().numpy()
        expected = (1 - mu) * expected + mu * seen.mean(axis=0)
    _, after = result(method, model, task)
    np.testing.assert_allclose(expected, after[MEAN], rtol=1e-5, atol=1e-6)
    assert 1 == after[KNOWN]


def test_feddbe_keeps_the_mean_of_round_1() -> None:
    """In later rounds a site sends the gbar that it received: its delta is 0, whatever its own features are."""
    method = FedDbe(kappa=1.0, mu=1.0)
    model = known(built("mlp", method=method), np.linspace(-1, 1, 5))
    _, after = result(method, model, batched("mlp"))
    np.testing.assert_equal(np.linspace(-1, 1, 5).astype(np.float32), after[MEAN])
    assert 1 == after[KNOWN]


def test_feddbe_steps_by_hand() -> None:
    """`mlp` with one hidden layer, in NumPy, three steps with kappa = 2, mu = 0.5: backbone, head and shift.

    phi = relu(x A' + a), z = (phi + m) b' + c; with e = (sigmoid(z) - y) / n, dF/dphi = e b, dF/dm = sum_i e_i b, and
    the pull adds kappa mu (rbar - gbar) / (D n) to dF/dphi of every example: rbar moves by mu / n with each phi_i, and
    what rbar was before the batch counts as a constant.
    """
    method, lr, kappa, mu = FedDbe(kappa=2.0, mu=0.5), 0.3, 2.0, 0.5
    task = work("mlp", epochs=3, learning_rate=lr)
    gbar, m = np.linspace(-0.5, 0.5, 5), np.linspace(0.2, -0.3, 5)
    model = known(built("mlp", method=method), gbar)
    start = {key: a.astype(np.float64) for key, a in get_weights(model.module).items()}
    a_w, a_b = start["backbone.layer1.0.weight"], start["backbone.layer1.0.bias"]
    b, c = start["head.weight"][0], start["head.bias"][0]
    x, y = task.examples.x.double().numpy(), task.examples.y.double().numpy()
    memory, rbar, losses = {SHIFT: m.astype(np.float32)}, np.zeros(5), []
    for _ in range(3):
        before = x @ a_w.T + a_b
        phi = np.maximum(before, 0)
        z = (phi + m) @ b + c
        e = (1 / (1 + np.exp(-z)) - y) / len(y)
        rbar = (1 - mu) * rbar + mu * phi.mean(axis=0)
        losses.append(np.mean(np.logaddexp(0, z) - y * z) + kappa / 2 * np.mean((rbar - gbar) ** 2))
        slope = (e[:, None] * b + kappa * mu * (rbar - gbar) / (5 * len(y))) * (before > 0)
        grads = slope.T @ x, slope.sum(axis=0), e @ (phi + m), e.sum(), e.sum() * b
        a_w, a_b, b, c, m = (now - lr * g for now, g in zip((a_w, a_b, b, c, m), grads, strict=True))
    outcome, after = result(method, model, task, memory)
    np.testing.assert_allclose(a_w, after["backbone.layer1.0.weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a_b, after["backbone.layer1.0.bias"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(b, after["head.weight"][0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(c, after["head.bias"][0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(m, outcome.memory[SHIFT].astype(np.float64), rtol=1e-4, atol=1e-6)
    assert np.mean(losses) == pytest.approx(outcome.loss, rel=1e-5)


def test_feddbe_with_a_strong_pull_holds_the_features_mean() -> None:
    """kappa = 200 over many steps: the batch's mean features end near gbar; without a pull they leave it."""
    apart = []
    for kappa in (0.0, 200.0):
        method = FedDbe(kappa=kappa, mu=1.0)
        model = built("mlp", method=method)
        task = work("mlp", epochs=300, learning_rate=0.05)
        _, first = result(method, model, replace(task, epochs=1, learning_rate=1e-9))
        gbar = first[MEAN] + np.float32(0.3)
        known(model, gbar)
        result(method, model, task)
        with torch.no_grad():
            _, seen = Shifted(model, torch.zeros(5)).see(task.examples.x)
        apart.append(float(np.abs(seen.mean(dim=0).numpy() - gbar).max()))
    assert apart[1] < 0.05 < 0.2 < apart[0]


@with_features
def test_feddbe_serves_the_model_with_its_shift(name: str) -> None:
    """The head answers to features + m; with m = 0 the logits are the received model's, bit for bit."""
    method, task = FedDbe(kappa=1.0, mu=1.0), work(name)
    model = built(name, method=method)
    plain = evaluate(model.module, task.examples).logits
    assert torch.equal(plain, evaluate(method.personalise(model, {}, task), task.examples).logits)
    width = get_weights(model.module)[MEAN].shape[0]
    shift = np.linspace(0.5, 1.0, width).astype(np.float32)
    served = method.personalise(model, {SHIFT: shift}, task)
    moved = evaluate(served, task.examples).logits
    held: dict[str, Any] = get_weights(model.module)
    np.testing.assert_allclose((plain.numpy() + held["head.weight"] @ shift), moved.numpy(), rtol=1e-4, atol=1e-5)
    kept = get_weights(served)
    assert {SHIFT} == {key for key in kept if not key.startswith("model.")}
    np.testing.assert_equal(held, under(kept, "model."))
    assert torch.equal(plain, evaluate(model.module, task.examples).logits)  # no hook is left in the module


def test_shift_of_maps_is_per_channel() -> None:
    """A head that is given maps `(D, H, W)`: each channel moves by one number, and features are their means."""
    convolution = nn.Conv2d(2, 1, 1, bias=False)
    module = nn.Sequential(nn.Identity(), convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    names = ("1.weight",)
    maps = Model(module, frozenset(names), frozenset(), frozenset(names), names, "average")
    x = torch.arange(16.0).reshape(1, 2, 2, 4)
    shifted = Shifted(maps, torch.tensor([1.0, -2.0]))
    with torch.no_grad():
        logits, features = shifted.see(x)
    weight = convolution.weight.detach().flatten()
    assert [3.5, 11.5] == features[0].tolist()
    assert float(logits) == pytest.approx(float(weight[0] * 4.5 + weight[1] * 9.5), rel=1e-5)


def test_feddbe_buffers_are_shared_and_never_optimised() -> None:
    """They leave the site with the weights, as buffers; local-only training leaves them as they are."""
    method = FedDbe(kappa=1.0, mu=1.0)
    model = built("mlp", method=method)
    assert {MEAN, KNOWN} == model.extra == divide(model, method).shared - model.trainable
    train(model, batched("mlp"))
    assert (0, 0) == (int(get_weights(model.module)[KNOWN]), int(np.count_nonzero(get_weights(model.module)[MEAN])))


def test_feddbe_leaves_what_a_site_trains_alone_as_it_is(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The local-only model measures as in a study with `fedavg`, bit for bit, in every round and on the test rows."""
    seen = []
    for kind in ("fedavg", "feddbe"):
        run_in_process(make_study(method={"kind": kind}), make_sites(under=kind), tmp_path / kind)
        found = json.loads((tmp_path / kind / "result.json").read_text(encoding="utf-8"))
        metrics = [each["sites"][site]["metrics"] for each in found["rounds"] for site in sorted(each["sites"])]
        tests = [found["sites"][site]["test"] for site in sorted(found["sites"])]
        seen.append(([each["local.loss"] for each in metrics], [each["local"] for each in tests]))
        ends = [each["global.loss"] == each["personal.loss"] for each in metrics]
        assert (kind == "fedavg") == all(ends)
    assert seen[0] == seen[1]


def test_feddbe_buffers_outlive_the_cut_behind_a_frozen_backbone() -> None:
    """A site that computes a frozen backbone's features once has the same buffers in what is left."""
    method = FedDbe(kappa=1.0, mu=1.0)
    model = built("small_cnn", method=method, trainable="head")
    parted = cut(model)
    assert parted is not None
    assert {MEAN, KNOWN} == parted.tail.extra <= set(parted.tail.names)
    assert {*model.head, MEAN, KNOWN} == divide(parted.tail, method).shared
    _, after = result(method, parted.tail, replace(work("small_cnn"), examples=features(parted.body)))
    assert (1, 64) == (int(after[KNOWN]), int(np.count_nonzero(after[MEAN]) + np.count_nonzero(after[MEAN] == 0)))


def features(body: nn.Module) -> Examples:
    """Return the examples behind a backbone."""
    task = work("small_cnn")
    body.eval()
    with torch.no_grad():
        return task.examples.with_inputs(body(task.examples.x))


def test_feddbe_federation_has_the_mean_over_sites_by_size(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """In process: round 1's gbar is the mean of what each site alone tells, by size, and later rounds keep it.

    A site alone in a study starts from the same weights and tells its own rbar: its gbar after one round.
    """
    sizes, method = {"berlin": 40, "lyon": 24}, {"kind": "feddbe", "kappa": 0.5, "mu": 0.5}
    values = {"method": method, "task": TASK, "local_baseline": False}
    ends = {}
    for sites, rounds in ((("berlin",), 1), (("lyon",), 1), (("berlin", "lyon"), 1), (("berlin", "lyon"), 3)):
        folder = tmp_path / f"{'-'.join(sites)}-{rounds}"
        study = make_study(sites=list(sites), rounds=rounds, **values)
        paths = make_sites(sizes, under=f"{folder.name}-sites")
        run_in_process(study, {site: paths[site] for site in sites}, folder)
        facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))["sites"]
        ends[sites, rounds] = load_file(folder / "model/weights.safetensors"), {s: facts[s]["num_train"] for s in sites}
    (one, n1), (other, n2) = ends[("berlin",), 1], ends[("lyon",), 1]
    (both, n), (later, _) = ends[("berlin", "lyon"), 1], ends[("berlin", "lyon"), 3]
    assert n1 | n2 == n
    mean = (n["berlin"] * one[MEAN] + n["lyon"] * other[MEAN]) / (n["berlin"] + n["lyon"])
    np.testing.assert_allclose(mean, both[MEAN], rtol=1e-5, atol=1e-7)
    np.testing.assert_equal(both[MEAN], later[MEAN])
    assert (1, 1) == (int(both[KNOWN]), int(later[KNOWN]))
    assert np.abs(one[MEAN] - other[MEAN]).max() > 1e-3
    served = load_file(tmp_path / "berlin-lyon-3-sites" / "lyon" / "state" / "quick" / "berlin-lyon-3" / SERVED_FILE)
    assert np.abs(served[SHIFT]).max() > 0
    assert both.keys() <= under(served, "model.").keys()


STUDY = """
name = "quick"
sites = ["berlin", "lyon"]
rounds = 2
method = {{kind = "feddbe"}}
model = {{name = "mlp", hidden = [6], trainable = "{trainable}"}}
training = {{epochs = 1, batch_size = 8, learning_rate = 0.1}}

[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
columns = {{a = {{kind = "number"}}, b = {{kind = "number"}}}}
"""


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_feddbe_weights_can_be_adapted_elsewhere(tmp_path: Path, make_sites: MakeSites, trainable: str) -> None:
    """The model's folder holds gbar beside the model, frozen backbone or not; a new site reads it and starts there."""
    sites, study_file, folder = make_sites(), tmp_path / "study.toml", tmp_path / "run"
    study_file.write_text(STUDY.format(trainable=trainable), encoding="utf-8")
    run_in_process(load_study(study_file), {site: sites[site] for site in ("berlin", "lyon")}, folder)
    found = adapt_site(sites["porto"], model=folder / "model", study_file=study_file, steps=1).as_json()
    assert {"federated", "random"} == set(found["starts"])
    assert {MEAN, KNOWN} <= load_file(folder / "model" / "weights.safetensors").keys()


def test_feddbe_of_a_model_without_features_is_refused() -> None:
    """The head of `linear` is given the inputs: their mean must not leave the site."""
    with pytest.raises(ModelError, match="'feddbe' shifts the features before the head"):
        divide(built(method=FedDbe(kappa=1.0, mu=1.0)), FedDbe(kappa=1.0, mu=1.0))


# --- FedDyn in a federation ------------------------------------------------------------------------


def comes_to_rest(kind: str) -> dict[str, Any]:
    """Return settings under which all sites end at one point: a linear model, whole batches."""
    training = {"epochs": 5, "batch_size": 64, "learning_rate": 1.0, "momentum": 0.0}
    values = method_settings(kind) | {"model": {"name": "linear"}, "training": training, "rounds": 160}
    return values | {"quorum": 1, "evaluate_every": 160, "local_baseline": False, "task": TASK}


@pytest.mark.nightly
def test_feddyn_comes_to_rest_where_scaffold_does_whatever_was_lost(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Both rest where the mean of all sites' gradients is 0; a lost reply leaves no trace at site or server.

    -h / alpha, which the server keeps, is then the mean of -g_k / alpha, which the sites keep.
    """
    ends = []
    for kind, missed in (("scaffold", {}), ("feddyn", {}), ("feddyn", {(5, "lyon"), (6, "lyon"), (9, "porto")})):
        name = f"{kind}-{len(missed)}"
        study, sites = make_study(**comes_to_rest(kind)), make_sites(under=name)

        def deliver(site: str, message: Message, answering: Answering, missed: Any = missed) -> Message | None:
            plan, reply = plan_of(message)[0], answering(message)
            if isinstance(plan, RoundPlan) and (plan.round, site) in missed:
                return Message(Error(code=0, reason="no way back"), reply_to=message)
            return reply

        run_in_process(study, sites, tmp_path / name / "run", deliver=deliver)
        ends.append(flat(load_file(tmp_path / name / "run" / "model/weights.safetensors")))
        if kind == "feddyn":
            state = load_checkpoint(
                tmp_path / name / "run" / "checkpoint.safetensors", study_digest=study_digest(study)
            )
            folders = [path.parent / "state" / "quick" / "run" for path in sites.values()]
            kept = [
                flat(under(Kept.from_arrays(load_file(folder / "round-000160.safetensors")).method, "gradient/"))
                for folder in folders
            ]
            np.testing.assert_allclose(
                -np.mean(kept, axis=0) / 0.1, flat(under(state.memory, "drift/")), rtol=0, atol=1e-4
            )
            assert max(float(np.abs(g).max()) for g in kept) > 0.01
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ends[1], ends[2], rtol=0, atol=1e-4)


# --- FedExP in a federation ------------------------------------------------------------------------


def test_fedexp_federation_ends_with_the_mean_of_the_last_two_iterates(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The file of weights, and what every site serves, is the mean of the weights after rounds 2 and 3.

    Round 3 begins from the iterate and not from the mean: the run of two rounds ends in the state that it goes on from.
    """
    states, ends = [], []
    for rounds in (2, 3):
        study, sites = make_study(rounds=rounds, strategy={"kind": "fedexp"}), make_sites(under=str(rounds))
        folder = tmp_path / str(rounds) / "run"
        run_in_process(study, sites, folder)
        states.append(load_checkpoint(folder / "checkpoint.safetensors", study_digest=study_digest(study)).weights)
        ends.append(load_file(folder / "model/weights.safetensors"))
        for path in sites.values():
            served = load_file(path.parent / "state" / "quick" / "run" / SERVED_FILE)
            np.testing.assert_equal(ends[-1], served)
    for name, last in states[1].items():
        mean = (states[0][name].astype(np.float64) + last.astype(np.float64)) / 2
        np.testing.assert_allclose(mean, ends[1][name], rtol=1e-6, atol=1e-8)
        assert not np.array_equal(last, ends[1][name])
