"""Personalisation methods: one contract for all that are registered, then each method's own numbers."""

import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, write_site
from PIL import Image

from client.data import Examples
from client.methods import METHODS, Method
from client.methods.fine_tune import FineTune
from client.models import Model, build_model, get_weights, set_weights
from client.site import Names, Site, divide
from client.training import LocalWork, train
from common.codecs import Identity
from common.config import ModelConfig, load_site
from common.errors import ModelError
from common.protocol import InitialWeightsPlan, RoundPlan, RoundReply
from common.weights import Array

SHAPES = {"linear": (3,), "mlp": (3,), "small_cnn": (1, 8, 8)}
every_method = pytest.mark.parametrize("kind", sorted(METHODS))
every_model = pytest.mark.parametrize("name", sorted(SHAPES))


def built(name: str, **settings: Any) -> Model:
    config = ModelConfig.model_validate({"name": name, "hidden": (5,), **settings})
    return build_model(config, input_shape=SHAPES[name], num_outputs=1, weights_dir=None, seed=1)


def work(name: str, **changes: Any) -> LocalWork:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, *SHAPES[name], generator=generator)
    y = (x.flatten(1).mean(dim=1) + 0.1 * torch.randn(20, generator=generator) > 0).long()
    settings: dict[str, Any] = {"batch_size": 6, "seed": 11, "optimiser": "sgd", "learning_rate": 0.1}
    settings |= {"momentum": 0.9, "weight_decay": 0.0, "epochs": 2, "steps": None}
    examples, validation = Examples(x, y), Examples(x[:5] + 0.1, y[:5])
    return LocalWork(examples=examples, validation=validation, **(settings | changes))


def changed(before: dict[str, Array], after: dict[str, Array]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


def trained(method: Method, model: Model, task: LocalWork) -> tuple[Any, float, dict[str, Array]]:
    outcome = method.train(model, {}, task)
    return outcome.memory, outcome.loss, get_weights(model.module)


# --- the contract: a new method is tested by being listed ------------------------------------------


@every_method
@every_model
def test_method_shares_names_of_the_model(kind: str, name: str) -> None:
    """What may leave is a subset of the model's names, whatever the values of its arrays."""
    model, method = built(name), METHODS[kind]()
    shared = method.shared(model)
    assert shared <= set(model.names)
    trained(method, model, work(name))
    assert shared == method.shared(model)


@every_method
@every_model
def test_method_gives_the_same_result_twice(kind: str, name: str) -> None:
    """Training and personalising are functions of weights, memory and work: equal bits, equal loss."""
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model, method = built(name), METHODS[kind]()
        memory, loss, after = trained(method, model, work(name))
        method.personalise(model, memory, work(name))
        results.append((loss, dict(memory), after, get_weights(model.module)))
    np.testing.assert_equal(*results)


@every_method
@every_model
def test_method_leaves_its_inputs_alone(kind: str, name: str) -> None:
    """Memory and examples are read, never written: the caller may use them again."""
    method, model, task = METHODS[kind](), built(name), work(name)
    memory = dict(method.train(model, {}, task).memory)
    copy = {key: array.copy() for key, array in memory.items()}
    x, y = task.examples.x.clone(), task.examples.y.clone()
    method.train(model, memory, task)
    method.personalise(model, memory, task)
    method.budget(task)
    np.testing.assert_equal(copy, memory)
    assert torch.equal(x, task.examples.x) and torch.equal(y, task.examples.y)


@every_method
@every_model
@pytest.mark.parametrize("trainable", ["all", "head", "last_block"])
@pytest.mark.parametrize("batch_norm", ["average", "local", "freeze"])
def test_method_changes_only_what_the_study_lets_it(kind: str, name: str, trainable: str, batch_norm: str) -> None:
    """Neither `train` nor `personalise` touches an array outside `moving`, frozen BatchNorm buffers included."""
    model, method = built(name, trainable=trainable, batch_norm=batch_norm), METHODS[kind]()
    if kind != "local" and not method.shared(model) & model.trainable:
        with pytest.raises(ModelError, match="shares nothing of this model"):
            divide(model, method)
        return
    names = divide(model, method)
    before = get_weights(model.module)
    memory, _, after = trained(method, model, work(name))
    assert names.moving == changed(before, after)
    method.personalise(model, memory, work(name))
    assert changed(after, get_weights(model.module)) <= names.moving


@every_method
def test_method_budget_is_on_the_sites_own_training_examples(kind: str) -> None:
    """The local-only baseline gets what the served model is trained on: the same examples, no others."""
    task = work("mlp")
    budget = METHODS[kind]().budget(task)
    assert budget.per_round.examples is task.examples
    assert budget.per_round.num_steps >= task.num_steps
    assert budget.before_serving is None or budget.before_serving.examples is task.examples


@every_method
def test_method_cites_where_it_comes_from(kind: str) -> None:
    """The module's docstring names title, year and link; training alone has no paper."""
    text = inspect.getdoc(inspect.getmodule(METHODS[kind])) or ""
    assert kind == "local" or "https://" in text


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(5)
    for label, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            pixels = generator.integers(0, 128, size=(8, 8)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02d}.png")


def image_site(folder: Path, make_study: MakeStudy, kind: str, *, batch_norm: str = "average") -> Site:
    path = write_site(folder / "site", "berlin", kind="images", data="images")
    if not (path.parent / "images").exists():
        write_images(path.parent / "images")
    study = make_study(
        sites=["berlin"],
        task={"kind": "images", "classes": ["no", "yes"], "size": 8, "channels": 1},
        model={"name": "small_cnn", "batch_norm": batch_norm},
        method={"kind": kind},
    )
    return Site(load_site(path), study)


def round_plan(site: Site, number: int) -> RoundPlan:
    return RoundPlan(study=site._study, run="run", site="berlin", round=number)


def initial(site: Site) -> bytes:
    payload = site.answer(InitialWeightsPlan(study=site._study, run="run", site="berlin"), None)[1]
    assert payload is not None
    return payload


def do_round(site: Site, number: int, payload: bytes) -> tuple[RoundReply, dict[str, Array]]:
    reply, content = site.answer(round_plan(site, number), payload)
    assert isinstance(reply, RoundReply) and content is not None
    return reply, Identity().decode(content)


@every_method
@pytest.mark.parametrize("kind_of_data", ["table", "images-average", "images-local", "images-freeze"])
def test_method_never_lets_a_personal_name_leave(
    kind: str, kind_of_data: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The update and the initial weights hold exactly the shared names, in every round."""
    if kind_of_data == "table":
        site = Site(
            load_site(make_sites({"berlin": 30})["berlin"]), make_study(sites=["berlin"], method={"kind": kind})
        )
        policy = "average"
    else:
        policy = kind_of_data.removeprefix("images-")
        site = image_site(tmp_path, make_study, kind, batch_norm=policy)
    names = divide(site._model, METHODS[kind]())
    payload = initial(site)
    assert names.shared == Identity().decode(payload).keys()
    for number in (1, 2):
        _, delta = do_round(site, number, payload)
        assert names.shared == delta.keys()
        assert not names.personal & delta.keys()


# --- each method's own numbers ---------------------------------------------------------------------


@every_model
def test_fedavg_and_fine_tune_share_all_names(name: str) -> None:
    """Nothing is personal."""
    model = built(name)
    assert set(model.names) == METHODS["fedavg"]().shared(model) == METHODS["fine_tune"]().shared(model)


@every_model
def test_fedper_shares_exactly_the_names_outside_the_head(name: str) -> None:
    """Backbone shared, head personal; for `linear` the head is the intercept."""
    model = built(name)
    head = {"bias"} if name == "linear" else {"head.weight", "head.bias"}
    assert set(model.names) - head == METHODS["fedper"]().shared(model)
    assert Names(model.trainable | model.batch_norm, frozenset(model.names) - head, frozenset(head)) == divide(
        model, METHODS["fedper"]()
    )


def test_fedper_of_a_model_whose_backbone_is_frozen_is_refused() -> None:
    """With `trainable = "head"` nothing would ever be shared: the study says so instead of pretending."""
    model = built("small_cnn", trainable="head")
    with pytest.raises(ModelError, match=r"method 'FedPer' shares nothing of this model.*model\.trainable"):
        divide(model, METHODS["fedper"]())


def test_local_shares_nothing_and_serves_the_local_only_model(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Empty updates, and the served model measures like the local-only baseline in every round."""
    site = Site(load_site(make_sites({"berlin": 40})["berlin"]), make_study(sites=["berlin"], method={"kind": "local"}))
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
        METHODS[kind]().personalise(model, {}, work(name))
        np.testing.assert_equal(before, get_weights(model.module))


@every_model
def test_fine_tune_serves_another_model_but_sends_the_update_of_fedavg(name: str) -> None:
    """The served model is a continuation of the received one; the update is FedAvg's, bit for bit."""
    updates = [trained(METHODS[kind](), built(name), work(name))[1:] for kind in ("fedavg", "fine_tune")]
    np.testing.assert_equal(*updates)
    model = built(name)
    before = get_weights(model.module)
    METHODS["fine_tune"]().personalise(model, {}, work(name))
    assert set(model.names) == changed(before, get_weights(model.module))


def test_fine_tune_update_after_serving_is_still_that_of_fedavg(tmp_path: Path, make_study: MakeStudy) -> None:
    """Through the whole site, with BatchNorm: what was served in round 1 does not reach the update of round 2."""
    deltas = []
    for kind in ("fedavg", "fine_tune"):
        site = image_site(tmp_path / kind, make_study, kind)
        payload = initial(site)
        deltas.append([do_round(site, number, payload)[1] for number in (1, 2)])
    np.testing.assert_equal(*deltas)


def test_fine_tune_is_plain_training_at_its_own_rate_and_length() -> None:
    """`epochs` passes at `learning_rate` from the received weights, as one direct call to `train` does."""
    task, served, expected = work("mlp"), built("mlp"), built("mlp")
    method = FineTune(epochs=3, learning_rate=0.02)
    method.personalise(served, {}, task)
    tuning = method.budget(task).before_serving
    assert tuning is not None
    seed = tuning.seed
    train(expected, replace(task, epochs=3, learning_rate=0.02, seed=seed))
    np.testing.assert_equal(get_weights(expected.module), get_weights(served.module))
    assert seed != task.seed


@every_model
def test_fine_tune_of_the_head_serves_the_received_backbone(name: str) -> None:
    """With `layers = "head"` the backbone keeps its bits, running statistics included; the head moves."""
    model = built(name)
    before = get_weights(model.module)
    FineTune(layers="head").personalise(model, {}, work(name))
    assert model.head == changed(before, get_weights(model.module))


# --- how the site divides a model: BatchNorm and trainable parts -----------------------------------


def running(model: Model) -> frozenset[str]:
    return frozenset(name for name in model.batch_norm if "running" in name or "num_batches" in name)


@pytest.mark.parametrize("kind", ["fedavg", "fine_tune", "fedper"])
def test_batch_norm_average_shares_running_statistics(kind: str) -> None:
    """All of a BatchNorm layer leaves, so that all sites compute the same from the same weights."""
    model = built("small_cnn", batch_norm="average")
    assert 10 == len(model.batch_norm) and 6 == len(running(model))
    assert model.batch_norm <= divide(model, METHODS[kind]()).shared


@every_method
def test_batch_norm_local_keeps_every_array_of_it_personal(kind: str) -> None:
    """FedBN: scale, shift and running statistics stay at the site, whatever the method shares."""
    model = built("small_cnn", batch_norm="local")
    names = divide(model, METHODS[kind]())
    assert model.batch_norm <= names.personal
    assert not model.batch_norm & names.shared


@every_method
def test_batch_norm_freeze_neither_trains_nor_moves(kind: str) -> None:
    """No BatchNorm array is shared, personal or changed by training and serving."""
    model, method = built("small_cnn", batch_norm="freeze"), METHODS[kind]()
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
    model, method = built("small_cnn", trainable="head", batch_norm=policy), METHODS[kind]()
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
        model = built("small_cnn", batch_norm=policy, trainable=part)
        names = divide(model, METHODS[kind]())
        assert names.moving == names.shared | names.personal
        assert not names.shared & names.personal
        assert names.moving <= set(model.names)


def test_site_with_received_weights_starts_from_them() -> None:
    """`set_weights` then `train`: two models with the same weights go the same way."""
    one, other = built("mlp"), built("mlp")
    train(one, work("mlp"))
    set_weights(other.module, get_weights(one.module))
    np.testing.assert_equal(*(trained(METHODS["fedavg"](), model, work("mlp"))[1:] for model in (one, other)))
