"""Personalisation methods: one contract for all that are registered, then the first methods' own numbers."""

import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, scaled_site, write_site
from PIL import Image
from torch import nn

from consilium.client.data import Examples
from consilium.client.methods import METHODS
from consilium.client.methods.fine_tune import FineTune
from consilium.client.models import Model, Names, divide, get_weights, set_weights
from consilium.client.site.site import Site
from consilium.client.training.loop import train
from consilium.client.training.work import batches
from consilium.common.codecs import Identity
from consilium.common.errors import ModelError
from consilium.common.protocol.plans import CONTROL, InitialWeightsPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Array, under, with_prefix
from consilium.testing import every, method_contract
from consilium.testing.method_cases import (
    POLICIES,
    SHAPES,
    built,
    changed,
    legal,
    method_of,
    study_values,
    trained,
    values_for,
    work,
)

KINDS = sorted(METHODS)
every_method = pytest.mark.parametrize("kind", KINDS)
every_model = pytest.mark.parametrize("name", sorted(SHAPES))
REFUSED = {("fedbn", "linear"), ("fedbn", "mlp"), ("moon", "linear"), ("fenda", "linear"), ("feddbe", "linear")} | {
    ("fedbn", "cnn1d"),
    ("fedbn", "gru"),
}
"""FedBN needs BatchNorm; MOON, FENDA and FedDBE need features."""
NOTHING_IF_FROZEN = {"fedper", "fedrep", "fedbabu", "moon", "fenda"}
"""Methods that would share nothing where the backbone is frozen."""
WITH_BATCH_NORM = ("mlp_bn", "small_cnn")


# --- the contract: a new method is tested by being listed, or by being installed -------------------

test_method_keeps_the_contract = method_contract(*every("methods", METHODS))


def test_only_what_cannot_work_is_refused() -> None:
    """What is listed above, each for its reason. All else is tested below."""
    assert {(kind, name) for kind in KINDS for name in SHAPES if not legal(kind, name)} == REFUSED
    assert {kind for kind in KINDS if not legal(kind, "small_cnn", part="head")} == NOTHING_IF_FROZEN
    assert all(legal(kind, "small_cnn", part="last_block") for kind in KINDS)
    assert {name for name in SHAPES if built(name).batch_norm} == set(WITH_BATCH_NORM)
    for kind, policy in itertools.product(KINDS, POLICIES):
        assert (study_values(kind, policy) is not None) == (policy in policies_of(kind)), (kind, policy)


def policies_of(kind: str) -> tuple[str, ...]:
    """Return the BatchNorm policies that go with a method: FedBN is one."""
    return ("local",) if kind == "fedbn" else POLICIES


@every_method
def test_method_cites_where_it_comes_from(kind: str) -> None:
    """The module's docstring names title, year and link; training alone has no paper."""
    text = inspect.getdoc(inspect.getmodule(METHODS[kind])) or ""
    assert kind == "local" or "https://" in text


# --- the contract through the site -----------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Write twelve pictures of each class, darker and brighter."""
    generator = np.random.default_rng(5)
    for label, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 128, size=(8, 8)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02d}.png")


def image_site(folder: Path, make_study: MakeStudy, kind: str, *, policy: str | None = None) -> Site:
    """Return a site with pictures in a study of a method."""
    path = write_site(folder / "site", "berlin", kind="images", data="images")
    if not (path.parent / "images").exists():
        write_images(path.parent / "images")
    values = study_values(kind, policy) if policy else values_for(kind)
    assert values is not None
    task = {"kind": "images", "classes": ["no", "yes"], "size": 8, "channels": 1}
    model = values["model"] | {"name": "small_cnn"}
    return scaled_site(path, make_study(sites=["berlin"], task=task, **(values | {"model": model})))


def table_site(path: Path, make_study: MakeStudy, kind: str, *, name: str = "mlp_bn") -> Site:
    """Return a site with a table in a study of a method."""
    values = values_for(kind)
    model = values["model"] | {"name": name, "hidden": (5,)}
    return scaled_site(path, make_study(sites=["berlin"], **(values | {"model": model})))


def round_plan(site: Site, number: int) -> RoundPlan:
    """Return the plan of a round in which all earlier updates counted."""
    past: dict[str, Any] = {"accepted": number - 1 or None, "asked": number}
    return RoundPlan(study=study_digest(site._study), run="run", site="berlin", round=number, **past)


def initial(site: Site) -> bytes:
    """Return the initial weights that a site sends."""
    payload = site.answer(InitialWeightsPlan(study=study_digest(site._study), run="run", site="berlin"), None)[1]
    assert payload is not None
    return payload


def do_round(site: Site, number: int, payload: bytes) -> tuple[RoundReply, dict[str, Array]]:
    """Have a site do a round; return its reply and its update."""
    reply, content = site.answer(round_plan(site, number), payload)
    assert isinstance(reply, RoundReply) and content is not None
    return reply, Identity().decode(content)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [(kind, "table") for kind in KINDS] + [(kind, policy) for kind in KINDS for policy in policies_of(kind)],
)
def test_method_never_lets_a_personal_name_leave(
    kind: str, policy: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The update and the initial weights hold exactly the shared names, in every round."""
    if policy == "table":
        site = table_site(make_sites({"berlin": 30})["berlin"], make_study, kind)
    else:
        site = image_site(tmp_path, make_study, kind, policy=policy)
    names = divide(site.learner.model, method_of(kind))
    payload = initial(site)
    assert names.shared == Identity().decode(payload).keys()
    for number in (1, 2):
        _, delta = do_round(site, number, payload)
        control = under(delta, CONTROL)
        assert names.shared == delta.keys() - with_prefix(control, CONTROL).keys()
        assert control.keys() <= names.shared & site.learner.model.trainable


@every_method
def test_site_reads_no_test_example_in_a_round(kind: str, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Started anew before every round and with other test examples, a site sends and measures the same, bit for bit."""
    one = table_site(make_sites({"berlin": 40}, under="one")["berlin"], make_study, kind)
    path = make_sites({"berlin": 40}, under="two")["berlin"]
    weights, given = Identity().decode(initial(one)), one.learner.work(1)
    assert given.examples is one.learner.data.train and given.validation is one.learner.data.validation
    for number in (1, 2):
        other = table_site(path, make_study, kind)
        data = other.learner.data
        data = replace(data, test=Examples(data.test.x + 100, 1 - data.test.y))
        other._learner = replace(other.learner, data=data)
        (reply, delta), (same, again) = (do_round(site, number, Identity().encode(weights)) for site in (one, other))
        np.testing.assert_equal((dict(reply.metrics), delta), (dict(same.metrics), again))
        weights = add_scaled(weights, {key: delta[key] for key in weights})


# --- the first methods' own numbers ----------------------------------------------------------------


@every_model
def test_fedavg_and_fine_tune_share_all_names(name: str) -> None:
    """Nothing is personal."""
    model = built(name)
    assert set(model.names) == method_of("fedavg").shared(model) == method_of("fine_tune").shared(model)


@every_model
def test_fedper_shares_exactly_the_names_outside_the_head(name: str) -> None:
    """Backbone shared, head personal; for `linear` the head is the intercept."""
    model = built(name)
    head = {"bias"} if name == "linear" else {"head.weight", "head.bias"}
    assert set(model.names) - head == method_of("fedper").shared(model)
    assert Names(model.trainable | model.batch_norm, frozenset(model.names) - head, frozenset(head)) == divide(
        model, method_of("fedper")
    )


def test_fedper_of_a_model_whose_backbone_is_frozen_is_refused() -> None:
    """With `trainable = "head"` nothing would ever be shared: the study says so instead of pretending."""
    model = built("small_cnn", trainable="head")
    with pytest.raises(ModelError, match=r"method 'FedPer' shares nothing of this model.*model\.trainable"):
        divide(model, method_of("fedper"))


def test_local_shares_nothing_and_serves_the_local_only_model(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Empty updates, and the served model measures like the local-only baseline in every round."""
    site = scaled_site(make_sites({"berlin": 40})["berlin"], make_study(sites=["berlin"], method={"kind": "local"}))
    payload = initial(site)
    assert {} == Identity().decode(payload)
    losses = []
    for number in (1, 2, 3):
        reply, delta = do_round(site, number, payload)
        assert {} == delta
        assert reply.metrics["local.loss"] == reply.metrics["personal.loss"]
        assert "global.loss" not in reply.metrics
        losses.append(reply.metrics["local.loss"])
    assert 3 == len(set(losses))


@every_model
def test_fedavg_and_fedper_serve_the_weights_as_they_are(name: str) -> None:
    """`personalise` changes nothing: the parts were put together before it."""
    for kind in ("fedavg", "fedper", "local"):
        model = built(name)
        before = get_weights(model.module)
        method_of(kind).personalise(model, {}, work(name))
        np.testing.assert_equal(before, get_weights(model.module))


@every_model
def test_fine_tune_serves_another_model_but_sends_the_update_of_fedavg(name: str) -> None:
    """The served model is a continuation of the received one; the update is FedAvg's, bit for bit."""
    updates = [trained(method_of(kind), built(name), work(name))[1:] for kind in ("fedavg", "fine_tune")]
    np.testing.assert_equal(updates[0], updates[1])
    model = built(name)
    before = get_weights(model.module)
    method_of("fine_tune").personalise(model, {}, work(name))
    assert set(model.names) == changed(before, get_weights(model.module))


def test_fine_tune_update_after_serving_is_still_that_of_fedavg(tmp_path: Path, make_study: MakeStudy) -> None:
    """Through the whole site, with BatchNorm: what was served in round 1 does not reach the update of round 2."""
    deltas = []
    for kind in ("fedavg", "fine_tune"):
        site = image_site(tmp_path / kind, make_study, kind)
        payload = initial(site)
        deltas.append([do_round(site, number, payload)[1] for number in (1, 2)])
    np.testing.assert_equal(deltas[0], deltas[1])


def test_fine_tune_is_plain_training_at_its_own_rate_and_length() -> None:
    """`epochs` passes at `learning_rate` from the received weights, as one direct call to `train` does."""
    task, served, expected = work("mlp"), built("mlp"), built("mlp")
    method = FineTune(epochs=3, learning_rate=0.02, steps=None, optimiser="sgd", layers="all")
    method.personalise(served, {}, task)
    tuning = method.budget(task).before_serving
    assert tuning is not None
    seed = tuning.seed
    train(expected, replace(task, epochs=3, learning_rate=0.02, seed=seed))
    np.testing.assert_equal(get_weights(expected.module), get_weights(served.module))
    assert seed != task.seed


def test_fine_tune_by_steps_takes_so_many_batches() -> None:
    """One step is the first batch of the first pass, at the method's own rate."""
    task, served, expected = work("mlp"), built("mlp"), built("mlp")
    method = FineTune(steps=1, learning_rate=0.02, epochs=5, optimiser="sgd", layers="all")
    method.personalise(served, {}, task)
    tuning = method.budget(task).before_serving
    assert tuning is not None
    train(expected, replace(task, epochs=None, steps=1, learning_rate=0.02, seed=tuning.seed))
    np.testing.assert_equal(get_weights(expected.module), get_weights(served.module))


@pytest.mark.parametrize("kind", ["fine_tune", "fedbabu"])
@pytest.mark.parametrize(("of_study", "own"), list(itertools.product(["sgd", "adam"], ["sgd", "adam"])))
def test_fine_tuning_has_an_optimiser_of_its_own(kind: str, of_study: str, own: str) -> None:
    """torch.optim's, stepped here: SGD with the study's momentum only where that is SGD as well; so is local-only."""
    task = work("mlp", optimiser=of_study, momentum=0.8, weight_decay=0.01)
    served, expected = built("mlp"), built("mlp")
    method = method_of(kind, optimiser=own, epochs=2, learning_rate=0.02)
    method.personalise(served, {}, task)
    tuning, parameters = method.budget(task).before_serving, expected.module.parameters()
    assert tuning is not None
    optimiser = (
        torch.optim.Adam(parameters, lr=0.02, weight_decay=0.01)
        if own == "adam"
        else torch.optim.SGD(parameters, lr=0.02, momentum=0.8 if of_study == "sgd" else 0.0, weight_decay=0.01)
    )
    for x, y in batches(replace(task, epochs=2, seed=tuning.seed)):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(expected.module(x)[:, 0], y.float()))
        optimiser.step()
    for name, array in get_weights(expected.module).items():
        ours = get_weights(served.module)[name]
        np.testing.assert_allclose(array.astype(np.float64), ours.astype(np.float64), rtol=1e-6, atol=1e-7)
    alone = built("mlp")
    train(alone, tuning)
    np.testing.assert_equal(get_weights(served.module), get_weights(alone.module))


@every_model
def test_fine_tune_of_the_head_serves_the_received_backbone(name: str) -> None:
    """With `layers = "head"` the backbone keeps its bits, running statistics included; the head moves."""
    model = built(name)
    before = get_weights(model.module)
    FineTune(layers="head", epochs=5, steps=None, optimiser="sgd", learning_rate=0.01).personalise(
        model, {}, work(name)
    )
    assert model.head == changed(before, get_weights(model.module))


# --- how the site divides a model: BatchNorm and trainable parts -----------------------------------


def running(model: Model) -> frozenset[str]:
    """Return the names of BatchNorm's running statistics."""
    return frozenset(name for name in model.batch_norm if "running" in name or "num_batches" in name)


@pytest.mark.parametrize("kind", ["fedavg", "fine_tune", "fedper"])
def test_batch_norm_average_shares_running_statistics(kind: str) -> None:
    """All of a BatchNorm layer leaves, so that all sites compute the same from the same weights."""
    model = built("small_cnn", batch_norm="average")
    assert 10 == len(model.batch_norm) and 6 == len(running(model))
    assert model.batch_norm <= divide(model, method_of(kind)).shared


@every_method
def test_batch_norm_local_keeps_every_array_of_it_personal(kind: str) -> None:
    """FedBN: scale, shift and running statistics stay at the site, whatever the method shares."""
    model = built("small_cnn", kind=kind, batch_norm="local")
    names = divide(model, method_of(kind))
    assert model.batch_norm <= names.personal
    assert not model.batch_norm & names.shared


@every_method
def test_batch_norm_freeze_neither_trains_nor_moves(kind: str) -> None:
    """No BatchNorm array is shared, personal or changed by training and serving."""
    model, method = built("small_cnn", kind=kind, batch_norm="freeze"), method_of(kind)
    names = divide(model, method)
    assert not model.batch_norm & (names.moving | names.shared | names.personal)
    before = get_weights(model.module, model.batch_norm)
    memory, _, _ = trained(method, model, work("small_cnn"))
    method.personalise(model, memory, work("small_cnn"))
    np.testing.assert_equal(before, get_weights(model.module, model.batch_norm))


@pytest.mark.parametrize(
    ("kind", "policy"), list(itertools.product(["fedavg", "fine_tune", "local"], ["average", "local", "freeze"]))
)
def test_trainable_head_moves_no_buffer_of_the_backbone(kind: str, policy: str) -> None:
    """A frozen backbone computes the same before and after, running statistics included."""
    model, method = built("small_cnn", trainable="head", batch_norm=policy), method_of(kind)
    names = divide(model, method)
    assert model.head == names.moving
    before = get_weights(model.module)
    memory, _, after = trained(method, model, work("small_cnn"))
    assert model.head == changed(before, after)
    method.personalise(model, memory, work("small_cnn"))
    assert changed(after, get_weights(model.module)) <= model.head


def test_division_is_complete_and_disjoint() -> None:
    """Shared and personal together are what moves; names outside never travel and never change."""
    for kind, policy, part in itertools.product(METHODS, ("average", "local", "freeze"), ("all", "last_block")):
        model = built("small_cnn", kind=kind, batch_norm=policy, trainable=part)
        names = divide(model, method_of(kind))
        assert names.moving == names.shared | names.personal
        assert not names.shared & names.personal
        assert names.moving <= set(model.names)


def test_site_with_received_weights_starts_from_them() -> None:
    """`set_weights` then `train`: two models with the same weights go the same way."""
    one, other = built("mlp"), built("mlp")
    train(one, work("mlp"))
    set_weights(other.module, get_weights(one.module))
    first, second = (trained(method_of("fedavg"), model, work("mlp"))[1:] for model in (one, other))
    np.testing.assert_equal(first, second)
