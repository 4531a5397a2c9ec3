"""Own numbers of the methods that say what is shared and how a round is trained: by hand, and their limits.

Numbers by hand are of logistic regression (the model `linear`) in float64 NumPy. A point is the vector
(weights, intercept), and every row of features ends in a 1, so that the gradient of the mean loss is
`rows.T @ (sigmoid(rows @ point) - y) / n`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy, scaled_site
from local_training import SHAPES, Vector, batched, built, flat, gradient, loss_at, result, unflat, work

from consilium.client.data import Examples
from consilium.client.methods.ditto import Ditto
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.fedbabu import FedBabu
from consilium.client.methods.fedbn import FedBn
from consilium.client.methods.fedprox import FedProx
from consilium.client.methods.fedrep import FedRep
from consilium.client.methods.lg_fedavg import LgFedAvg
from consilium.client.methods.scaffold import Scaffold
from consilium.client.models import divide, get_weights, set_weights
from consilium.client.site.site import Site
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.codecs import Identity
from consilium.common.errors import ModelError
from consilium.common.protocol.plans import InitialWeightsPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.common.seeds import seed_for
from consilium.common.weights.arrays import Array, Weights, under, with_prefix

with_batch_norm = pytest.mark.parametrize("name", ["mlp_bn", "small_cnn"])
every_model = pytest.mark.parametrize("name", sorted(SHAPES))


# --- FedProx ---------------------------------------------------------------------------------------


def test_fedprox_steps_are_pulled_towards_the_weights_received() -> None:
    """By hand: w1 = w0 - lr g(w0), for nothing pulls at the start; then w(i+1) = wi - lr (g(wi) + mu (wi - w0))."""
    model, task, mu, lr = built(), work(epochs=3), 0.7, 0.5
    w0 = flat(get_weights(model.module))
    w1 = w0 - lr * gradient(w0, task)
    w2 = w1 - lr * (gradient(w1, task) + mu * (w1 - w0))
    w3 = w2 - lr * (gradient(w2, task) + mu * (w2 - w0))
    _, after = result(FedProx(mu=mu), model, task)
    np.testing.assert_allclose(w3, flat(after), rtol=1e-5, atol=1e-6)


@every_model
def test_fedprox_without_a_pull_is_fedavg(name: str) -> None:
    """With mu = 0 every bit is FedAvg's, loss included; with mu > 0 it is not."""
    plain, same, pulled = (
        (outcome.loss, after)
        for outcome, after in (
            result(method, built(name), batched(name)) for method in (FedAvg(), FedProx(mu=0.0), FedProx(mu=0.5))
        )
    )
    np.testing.assert_equal(plain, same)
    assert any(not np.array_equal(plain[1][key], pulled[1][key]) for key in built(name).trainable)


def test_fedprox_tells_the_loss_without_the_pull() -> None:
    """Steps 1 and 2 see w0 and w1 as FedAvg does, so the mean of the two losses is FedAvg's."""
    losses = [result(method, built(), work(epochs=2))[0].loss for method in (FedAvg(), FedProx(mu=0.7))]
    assert losses[0] == losses[1]


def test_fedprox_with_a_strong_pull_stays_near_the_weights_received() -> None:
    """At rest the pull balances the gradient: w - w0 = -g(w) / mu, at most max |g| / mu = 0.05 here; FedAvg leaves."""
    away = []
    for method in (FedProx(mu=20.0), FedAvg()):
        model, task = built(), work(epochs=100, learning_rate=0.04)
        w0 = flat(get_weights(model.module))
        w = flat(result(method, model, task)[1])
        away.append(float(np.abs(w - w0).max()))
        if isinstance(method, FedProx):
            np.testing.assert_allclose(-gradient(w, task) / 20.0, w - w0, atol=1e-5)
    assert away[0] < 0.05 < 0.5 < away[1]


# --- SCAFFOLD --------------------------------------------------------------------------------------


@every_model
def test_scaffold_takes_the_first_round_as_fedavg_does(name: str) -> None:
    """With c = c_k = 0 the correction is nothing: every bit of weights and loss is FedAvg's."""
    task = batched(name, momentum=0.0)
    zeros = {key: np.zeros_like(a) for key, a in get_weights(built(name).module, built(name).trainable).items()}
    for control in ({}, zeros):
        (outcome, after), (plain, expected) = (
            result(method, built(name), replace(task, control=control)) for method in (Scaffold(), FedAvg())
        )
        np.testing.assert_equal((plain.loss, expected), (outcome.loss, after))
        assert zeros.keys() == outcome.control.keys()


def test_scaffold_control_variate_is_the_mean_of_the_gradients() -> None:
    """By hand, from c = c_k = 0: after three steps from w0, c_k+ = (w0 - w3) / (3 lr) = (g(w0) + g(w1) + g(w2)) / 3."""
    model, task, lr = built(), work(epochs=3), 0.5
    w0 = flat(get_weights(model.module))
    w1 = w0 - lr * gradient(w0, task)
    w2 = w1 - lr * gradient(w1, task)
    mean = (gradient(w0, task) + gradient(w1, task) + gradient(w2, task)) / 3
    outcome, _ = result(Scaffold(), model, task)
    np.testing.assert_allclose(mean, flat(outcome.control), rtol=1e-4, atol=1e-6)
    np.testing.assert_equal(dict(outcome.control), under(outcome.memory, "control/"))


def test_scaffold_adds_the_servers_variate_and_takes_its_own_away() -> None:
    """By hand, two steps w <- w - lr (g(w) - c_k + c), then c_k+ = c_k - c + (w0 - w2) / (2 lr); c_k+ - c_k is sent."""
    model, lr = built(), 0.5
    c, c_k = np.array([0.3, -0.2, 0.1, 0.05]), np.array([-0.1, 0.4, 0.2, -0.3])
    task = work(epochs=2, control=unflat(c))
    w0 = flat(get_weights(model.module))
    w1 = w0 - lr * (gradient(w0, task) - c_k + c)
    w2 = w1 - lr * (gradient(w1, task) - c_k + c)
    new = c_k - c + (w0 - w2) / (2 * lr)
    outcome, after = result(Scaffold(), model, task, with_prefix(unflat(c_k), "control/"))
    np.testing.assert_allclose(w2, flat(after), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new, flat(under(outcome.memory, "control/")), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new - c_k, flat(outcome.control), rtol=1e-5, atol=1e-6)


def test_scaffold_stands_still_where_all_sites_together_do() -> None:
    """Two sites with the same features and opposite labels: together they rest at 0, alone neither does.

    There c = 0 and c_k = g_k(0), so that every corrected gradient is 0; FedAvg's first step leaves.
    """
    task = work(epochs=4)
    for labels in (task.examples.y, 1 - task.examples.y):
        mine = replace(task, examples=Examples(task.examples.x, labels), control=unflat(np.zeros(4)))
        own = gradient(np.zeros(4), mine)
        model = built()
        set_weights(model.module, unflat(np.zeros(4)))
        outcome, after = result(Scaffold(), model, mine, with_prefix(unflat(own), "control/"))
        np.testing.assert_allclose(np.zeros(4), flat(after), atol=1e-6)
        np.testing.assert_allclose(np.zeros(4), flat(outcome.control), atol=1e-6)
        assert np.abs(own).max() > 0.05


def test_scaffold_leaves_alone_what_the_server_sends_no_variate_for() -> None:
    """By hand, one step with c for the weights only: they take g + c, the intercept takes g and gets no variate."""
    model, lr, c = built(), 0.5, np.array([0.3, -0.2, 0.1, 0.0])
    task = work(control={"weight": unflat(c)["weight"]})
    w0 = flat(get_weights(model.module))
    outcome, after = result(Scaffold(), model, task)
    np.testing.assert_allclose(w0 - lr * (gradient(w0, task) + c), flat(after), rtol=1e-5, atol=1e-6)
    assert {"weight"} == outcome.control.keys()
    np.testing.assert_allclose(gradient(w0, task)[:3], outcome.control["weight"][0], rtol=1e-4, atol=1e-6)


@with_batch_norm
def test_scaffold_controls_what_is_shared_and_trained(name: str) -> None:
    """BatchNorm that stays at the site has no variate, sent or not; running statistics never have one."""
    shared = divide(built(name, batch_norm="local"), Scaffold()).shared
    initial = get_weights(built(name).module)
    for control in ({}, {key: np.zeros_like(initial[key]) for key in shared}):
        outcome, _ = result(Scaffold(), built(name, batch_norm="local"), batched(name, control=control))
        assert shared == outcome.control.keys() == under(outcome.memory, "control/").keys()
    average = built(name)
    outcome, _ = result(Scaffold(), average, batched(name))
    assert average.trainable == outcome.control.keys()
    for key in average.trainable:
        assert (initial[key].shape, initial[key].dtype) == (outcome.control[key].shape, outcome.control[key].dtype)


def scaffold_on_paper(
    x: Vector, tasks: list[LocalWork], cohorts: list[list[int]], *, steps: int, rate: float
) -> tuple[Vector, Vector]:
    """Return server weights and control variate by algorithm 1 of the paper with option II, in plain NumPy."""
    c, own = np.zeros(4), [np.zeros(4) for _ in tasks]
    for cohort in cohorts:
        weight_changes, control_changes = [], []
        for i in cohort:
            y = x.copy()
            for _ in range(steps):
                y = y - rate * (gradient(y, tasks[i]) - own[i] + c)
            updated = own[i] - c + (x - y) / (steps * rate)
            weight_changes.append(y - x)
            control_changes.append(updated - own[i])
            own[i] = updated
        x = x + np.sum(weight_changes, axis=0) / len(cohort)
        c = c + np.sum(control_changes, axis=0) / len(tasks)
    return x, c


def test_scaffold_follows_the_algorithm_of_the_paper() -> None:
    """Three sites, four rounds of which one without the third site, three local steps, a server in NumPy: to 1e-5."""
    tasks = [work(data=number, epochs=3) for number in (1, 2, 3)]
    cohorts = [[0, 1, 2], [0, 1], [0, 1, 2], [1, 2]]
    start = flat(get_weights(built().module))
    x, c, memories = start, np.zeros(4), [dict[str, Array]() for _ in tasks]
    for cohort in cohorts:
        deltas, changes = [], []
        for i in cohort:
            model = built()
            set_weights(model.module, unflat(x))
            outcome, after = result(Scaffold(), model, replace(tasks[i], control=unflat(c)), memories[i])
            memories[i] = dict(outcome.memory)
            deltas.append(flat(after) - x)
            changes.append(flat(outcome.control))
        x, c = x + np.mean(deltas, axis=0), c + np.sum(changes, axis=0) / len(tasks)
    expected = scaffold_on_paper(start, tasks, cohorts, steps=3, rate=0.5)
    np.testing.assert_allclose(expected[0], x, atol=1e-5)
    np.testing.assert_allclose(expected[1], c, atol=1e-5)
    assert np.abs(x - start).max() > 0.1


# --- FedRep ----------------------------------------------------------------------------------------


def test_fedrep_trains_the_head_and_then_the_backbone() -> None:
    """By hand on `linear`, whose head is the intercept: two steps on it alone, then one on the weights alone.

    The loss is the mean over the three steps.
    """
    model, task, lr = built(), work(), 0.5
    head, backbone = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 0])
    w0 = flat(get_weights(model.module))
    w1 = w0 - lr * head * gradient(w0, task)
    w2 = w1 - lr * head * gradient(w1, task)
    w3 = w2 - lr * backbone * gradient(w2, task)
    outcome, after = result(FedRep(head_epochs=2), model, task)
    np.testing.assert_allclose(w3, flat(after), rtol=1e-5, atol=1e-6)
    assert np.mean([loss_at(w, task) for w in (w0, w1, w2)]) == pytest.approx(outcome.loss, rel=1e-5)


@with_batch_norm
def test_fedrep_leaves_the_backbone_alone_while_it_trains_the_head(name: str) -> None:
    """The head is what training it under the received backbone gives; BatchNorm counts the second phase's batches."""
    model, expected, task = built(name), built(name), batched(name)
    train(expected, replace(task, epochs=3, seed=seed_for(task.seed, "head")), names=expected.head)
    _, after = result(FedRep(head_epochs=3), model, task)
    np.testing.assert_equal(get_weights(expected.module, model.head), {key: after[key] for key in model.head})
    train(expected, task, names=frozenset(model.names) - model.head)
    np.testing.assert_equal(get_weights(expected.module), after)
    counters = {int(after[key]) for key in model.batch_norm if key.endswith("num_batches_tracked")}
    assert {task.num_steps} == counters


@pytest.mark.parametrize("amount", [{"epochs": 2, "steps": None}, {"epochs": None, "steps": 5}])
def test_fedrep_budget_counts_the_batches_of_both_phases(amount: dict[str, int | None]) -> None:
    """12 examples in batches of 5 are 3 a pass: 4 passes of the head are 12, and the round's own 6 or 5."""
    task = batched("mlp", **amount)
    own = 6 if amount["epochs"] else 5
    assert own == task.num_steps
    assert 12 + own == FedRep(head_epochs=4).budget(task).per_round.num_steps


@every_model
def test_fedrep_and_fedbabu_share_the_names_outside_the_head(name: str) -> None:
    """Backbone shared, head personal, as with FedPer."""
    model = built(name)
    assert (
        set(model.names) - model.head
        == FedRep(head_epochs=10).shared(model)
        == FedBabu(epochs=5, optimiser="sgd", learning_rate=0.01, layers="all").shared(model)
    )


# --- LG-FedAvg -------------------------------------------------------------------------------------


@every_model
def test_lg_fedavg_shares_exactly_the_head(name: str) -> None:
    """The other way round than FedPer; for `linear` sites share the intercept."""
    model = built(name)
    head = {"bias"} if name == "linear" else {"head.weight", "head.bias"}
    assert head == LgFedAvg().shared(model) == divide(model, LgFedAvg()).shared
    assert set(model.names) - head == divide(model, LgFedAvg()).personal


@every_model
def test_lg_fedavg_and_fedbn_train_as_fedavg_does(name: str) -> None:
    """They differ from it in what is shared, not in how a round is trained."""
    results = [result(method, built(name), batched(name)) for method in (FedAvg(), LgFedAvg(), FedBn())]
    for outcome, after in results[1:]:
        np.testing.assert_equal((results[0][0].loss, results[0][1]), (outcome.loss, after))


# --- FedBABU ---------------------------------------------------------------------------------------


@every_model
def test_fedbabu_trains_all_but_the_head(name: str) -> None:
    """The head keeps its bits, the rest is what training it under that head gives."""
    model, expected = built(name), built(name)
    initial = get_weights(model.module, model.head)
    outcome, after = result(FedBabu(epochs=5, optimiser="sgd", learning_rate=0.01, layers="all"), model, batched(name))
    loss = train(expected, batched(name), names=frozenset(model.names) - model.head)
    np.testing.assert_equal((loss, get_weights(expected.module)), (outcome.loss, after))
    np.testing.assert_equal(initial, {key: after[key] for key in model.head})


@every_model
@pytest.mark.parametrize("layers", ["all", "head"])
def test_fedbabu_serves_a_fine_tuned_copy(name: str, layers: Any) -> None:
    """`epochs` passes at `learning_rate` in their own order; with `layers = "head"` the backbone stays as it is."""
    method, task = FedBabu(epochs=3, learning_rate=0.02, layers=layers, optimiser="sgd"), batched(name)
    served, expected = built(name), built(name)
    method.personalise(served, {}, task)
    tuning = method.budget(task).before_serving
    assert tuning is not None and tuning.seed != task.seed
    assert (task.num_steps, 9) == (method.budget(task).per_round.num_steps, tuning.num_steps)
    train(
        expected,
        replace(task, epochs=3, learning_rate=0.02, seed=tuning.seed),
        names=None if layers == "all" else served.head,
    )
    np.testing.assert_equal(get_weights(expected.module), get_weights(served.module))
    before, after = get_weights(built(name).module), get_weights(served.module)
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert (set(served.names) if layers == "all" else served.head) == moved


# --- FedBN -----------------------------------------------------------------------------------------


@with_batch_norm
def test_fedbn_shares_everything_but_batch_norm(name: str) -> None:
    """Scale, shift and running statistics of every BatchNorm layer stay; all else leaves."""
    model = built(name, batch_norm="local")
    norms = {key for key in model.names if ".norm." in key}
    assert len(norms) in (5, 10)
    assert set(model.names) - norms == FedBn().shared(model)
    assert norms == divide(model, FedBn()).personal


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_fedbn_of_a_model_without_batch_norm_is_refused(name: str) -> None:
    """It would be FedAvg under another name; the sentence says what to choose."""
    with pytest.raises(ModelError, match=r"'fedbn' keeps BatchNorm personal.* none: choose method 'fedavg'.*'mlp_bn'"):
        FedBn().shared(built(name, batch_norm="local"))


# --- Ditto -----------------------------------------------------------------------------------------


@every_model
def test_ditto_sends_what_fedavg_sends(name: str) -> None:
    """After training, the model holds the shared weights, running statistics included, whatever the memory is."""
    memory = with_prefix(get_weights(built(name, seed=2).module), "v/")
    (outcome, after), (plain, expected) = (
        result(method, built(name), batched(name), memory) for method in (Ditto(lam=0.5), FedAvg())
    )
    np.testing.assert_equal((plain.loss, expected), (outcome.loss, after))


def test_ditto_personal_model_is_pulled_towards_the_weights_received() -> None:
    """By hand, v <- v - lr (g(v) + lam (v - w)), three steps from the v kept; w is received, not w after training."""
    model, task, lr, lam = built(), work(epochs=3), 0.5, 0.6
    w, v = flat(get_weights(model.module)), np.array([0.4, -0.8, 1.2, 0.1])
    memory = with_prefix(unflat(v), "v/")
    for _ in range(3):
        v = v - lr * (gradient(v, task) + lam * (v - w))
    outcome, _ = result(Ditto(lam=lam), model, task, memory)
    np.testing.assert_allclose(v, flat(under(outcome.memory, "v/")), rtol=1e-5, atol=1e-6)


@every_model
def test_ditto_without_a_pull_is_local_training(name: str) -> None:
    """With lam = 0, two rounds take v on from the first weights received by plain training, whatever came after."""
    model, alone, memory = built(name), built(name), dict[str, Array]()
    for number in (1, 2):
        set_weights(model.module, get_weights(built(name, seed=number).module))
        task = batched(name, seed=number)
        memory = dict(result(Ditto(lam=0.0), model, task, memory)[0].memory)
        train(alone, replace(task, seed=seed_for(number, "ditto")))
    np.testing.assert_equal(get_weights(alone.module), under(memory, "v/"))


def test_ditto_rests_where_the_pull_balances_the_gradient() -> None:
    """At the fixed point v = w - g(v) / lam; the stronger the pull, the nearer: lam = 20 holds v within 0.05 of w."""
    away = []
    for lam in (0.5, 20.0):
        model, task = built(), work(epochs=150, learning_rate=0.04 if lam > 1 else 1.0)
        w = flat(get_weights(model.module))
        outcome, _ = result(Ditto(lam=lam), model, task)
        v = flat(under(outcome.memory, "v/"))
        np.testing.assert_allclose(w - gradient(v, task) / lam, v, atol=1e-5)
        away.append(float(np.abs(v - w).max()))
    assert away[1] < 0.05 < 0.2 < away[0]


@with_batch_norm
@pytest.mark.parametrize("policy", ["average", "local", "freeze"])
def test_ditto_serves_the_personal_model(name: str, policy: str) -> None:
    """The memory is all of the model that moves, and is what is served; before a round, the weights received are."""
    model = built(name, batch_norm=policy)
    before = get_weights(model.module)
    Ditto(lam=1.0).personalise(model, {}, batched(name))
    np.testing.assert_equal(before, get_weights(model.module))
    outcome, after = result(Ditto(lam=1.0), model, batched(name))
    kept = under(outcome.memory, "v/")
    assert model.moving == kept.keys()
    Ditto(lam=1.0).personalise(model, outcome.memory, batched(name))
    served = get_weights(model.module)
    np.testing.assert_equal({**after, **kept}, served)
    assert any(not np.array_equal(after[key], served[key]) for key in model.trainable)


# --- through the site ------------------------------------------------------------------------------


def table_site(path: Path, make_study: MakeStudy, name: str, method: dict[str, Any]) -> Site:
    """Return a site with a table in a study of a method."""
    model = {"name": "mlp_bn", "hidden": [5], "batch_norm": "local" if method["kind"] == "fedbn" else "average"}
    return scaled_site(path, make_study(sites=[name], model=model, method=method))


def do_round(site: Site, name: str, number: int, weights: Weights) -> tuple[RoundReply, dict[str, Array]]:
    """Do a round and return the reply, and the personal arrays that the site keeps after it."""
    past: dict[str, Any] = {"accepted": number - 1 or None, "asked": number}
    plan = RoundPlan(study=study_digest(site._study), run="run", site=name, round=number, **past)
    reply, _ = site.answer(plan, Identity().encode(weights))
    assert isinstance(reply, RoundReply)
    kept = site._folder(plan).load(number)
    assert kept is not None
    return reply, dict(kept.personal)


def initial(site: Site, name: str) -> dict[str, Any]:
    """Return the initial weights that a site sends."""
    _, payload = site.answer(InitialWeightsPlan(study=study_digest(site._study), run="run", site=name), None)
    assert payload is not None
    return Identity().decode(payload)


@pytest.mark.parametrize("kind", ["fedrep", "lg_fedavg", "fedbn"])
def test_site_serves_what_it_received_with_its_own_part(
    kind: str, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Shared arrays as received and personal ones as trained last, together, are what the second round measures."""
    site = table_site(make_sites({"berlin": 40})["berlin"], make_study, "berlin", {"kind": kind})
    weights = initial(site, "berlin")
    do_round(site, "berlin", 1, weights)
    received = {key: (array + 0.1).astype(array.dtype) for key, array in weights.items()}
    reply, own = do_round(site, "berlin", 2, received)
    assert divide(site.learner.model, site.learner.method).personal == own.keys()
    with site.learner.holding(received, own) as module:
        assert evaluate(module, site.learner.data.validation).loss == reply.metrics["personal.loss"]


def test_fedbabu_head_is_the_same_at_all_sites_in_all_rounds(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Made from the study's seed, changed by no round and by no serving: the bits of round 0 at both sites."""
    heads = []
    for name, path in make_sites({"berlin": 40, "lyon": 30}).items():
        site = table_site(path, make_study, name, {"kind": "fedbabu"})
        weights = initial(site, name)
        first = get_weights(site.learner.model.module, site.learner.model.head)
        for number in (1, 2):
            reply, own = do_round(site, name, number, weights)
            np.testing.assert_equal(first, own)
            assert np.isfinite(reply.metrics["personal.loss"])
        heads.append(first)
    np.testing.assert_equal(heads[0], heads[1])
