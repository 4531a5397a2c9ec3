"""Personalisation methods: one contract for all that are registered, then the first methods' own numbers."""

import dataclasses
import functools
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
from pydantic import TypeAdapter, ValidationError
from torch import nn

from consilium.client.data import Examples
from consilium.client.methods import METHODS, Method, build_method, extended
from consilium.client.methods.fine_tune import FineTune
from consilium.client.models import Model, Names, build_model, divide, get_weights, set_weights
from consilium.client.site.kept import Kept
from consilium.client.site.site import Site
from consilium.client.site.state_folder import StateFolder
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork, batches
from consilium.common.codecs import Identity
from consilium.common.errors import ModelError
from consilium.common.protocol.plans import CONTROL, InitialWeightsPlan, RoundPlan, study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.methods import MethodConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Array, Weights, is_float, under, with_prefix
from consilium.common.weights.checks import check_finite

SHAPES = {"linear": (3,), "mlp": (3,), "mlp_bn": (3,), "small_cnn": (1, 8, 8)}
PARTS, POLICIES = ("all", "head", "last_block"), ("average", "local", "freeze")
KINDS = sorted(METHODS)


def method_of(kind: str, **settings: Any) -> Method:
    """Return a method as a study builds it, with its settings' defaults."""
    return build_method(TypeAdapter(MethodConfig).validate_python({"kind": kind, **settings}))


@functools.cache
def study_values(kind: str, policy: str) -> dict[str, Any] | None:
    """Return what a study with this method and BatchNorm policy says beside its task; None if the rules refuse it."""
    plain = TypeAdapter(MethodConfig).validate_python({"kind": kind}).plain_sgd
    for strategy in ("fedavg", kind):  # some methods are one half of a strategy of the same name
        values: dict[str, Any] = {
            "method": {"kind": kind},
            "strategy": {"kind": strategy},
            "model": {"batch_norm": policy},
        }
        values["training"] = {"epochs": 1, "batch_size": 16, "learning_rate": 0.1, "momentum": 0.0 if plain else 0.9}
        task = {"kind": "images", "classes": ["no", "yes"]}
        try:
            StudyConfig.model_validate({"name": "contract", "sites": ["berlin"], "task": task, **values})
        except ValidationError:
            continue
        return values
    return None


def values_for(kind: str) -> dict[str, Any]:
    """Return the values of a study that the rules accept, with the first BatchNorm policy that will do."""
    accepted = [values for policy in POLICIES if (values := study_values(kind, policy)) is not None]
    assert accepted, f"the rules refuse method '{kind}' under every BatchNorm policy"
    return accepted[0]


def built(name: str, *, kind: str = "fedavg", **settings: Any) -> Model:
    """Return a model as a site has it in a study with this method."""
    config = ModelConfig.model_validate({"name": name, "hidden": (5,), **settings})
    model = build_model(config, input_shape=SHAPES[name], num_outputs=1, weights_dir=None, seed=1)
    return extended(method_of(kind), model, SHAPES[name])


def built_for(kind: str, name: str) -> Model:
    """Return a model as a site has it in the study that the rules accept for a method."""
    return built(name, kind=kind, **values_for(kind)["model"])


def legal(kind: str, name: str, *, policy: str | None = None, part: str = "all") -> bool:
    """Tell whether a site would take a study with this method and model."""
    policy = policy or values_for(kind)["model"]["batch_norm"]
    if study_values(kind, policy) is None:
        return False
    try:
        divide(built(name, kind=kind, batch_norm=policy, trainable=part), method_of(kind))
    except ModelError:
        return False
    return True


def work(name: str, kind: str = "fedavg", **changes: Any) -> LocalWork:
    """Return local work on these examples; keyword arguments replace settings."""
    generator, count = torch.Generator().manual_seed(3), 12
    x = torch.randn(count, *SHAPES[name], generator=generator)
    y = (x.flatten(1).mean(dim=1) + 0.1 * torch.randn(count, generator=generator) > 0).long()
    settings: dict[str, Any] = {"batch_size": 6, "seed": 11, "optimiser": "sgd", "learning_rate": 0.1}
    settings |= {"momentum": values_for(kind)["training"]["momentum"], "weight_decay": 0.0, "epochs": 1, "steps": None}
    examples, validation = Examples(x, y), Examples(x[:5] + 0.1, y[:5])
    return LocalWork(**({"examples": examples, "validation": validation} | settings | changes))


def changed(before: Weights, after: Weights) -> set[str]:
    """Return the names of the arrays that differ."""
    return {name for name in before if not np.array_equal(before[name], after[name])}


def trained(method: Method, model: Model, task: LocalWork) -> tuple[Any, float, dict[str, Array]]:
    """Return a method's memory, its loss and the model's weights after a round."""
    outcome = method.train(model, {}, task)
    return outcome.memory, outcome.loss, get_weights(model.module)


def sent(model: Model, number: int) -> dict[str, Array]:
    """Return weights that a server might send in a round: the initial ones, moved a little, and a method's counters."""
    generator, weights = np.random.default_rng(number), get_weights(model.module)
    noise = {name: 0.1 * np.abs(generator.normal(size=a.shape)) for name, a in weights.items() if is_float(a)}
    counted = {name: np.array(number > 1) for name in model.extra if not is_float(weights[name])}
    return add_scaled(weights, noise | counted)


def play(
    kind: str, name: str, number: int, kept: Weights, *, model: Model | None = None, **changes: Any
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Do a round as a site does it; return what it keeps and what could be seen of it."""
    fresh, method, task = built_for(kind, name), method_of(kind), work(name, kind, seed=number, **changes)
    model = fresh if model is None else model
    names, initial, received = divide(fresh, method), get_weights(fresh.module), sent(fresh, number)
    start = initial | {key: received[key] for key in names.shared}
    before = Kept.from_arrays(kept)
    set_weights(model.module, start | dict(before.personal))
    outcome = method.train(model, before.method, task)
    after = get_weights(model.module)
    personal = {key: after[key] for key in names.personal}
    set_weights(model.module, start | personal)
    module = method.personalise(model, outcome.memory, task)
    served = evaluate(module, task.validation or task.examples)
    seen: dict[str, Any] = {"after": after, "start": start}
    seen |= {"loss": outcome.loss, "memory": dict(outcome.memory), "control": dict(outcome.control)}
    seen |= {"metrics": dict(outcome.metrics), "served": get_weights(module), "served loss": served.loss}
    return Kept(personal=personal, method=outcome.memory).to_arrays(), seen


every_method = pytest.mark.parametrize("kind", KINDS)
every_model = pytest.mark.parametrize("name", sorted(SHAPES))
REFUSED = {("fedbn", "linear"), ("fedbn", "mlp"), ("moon", "linear"), ("fenda", "linear"), ("feddbe", "linear")}
"""FedBN needs BatchNorm; MOON, FENDA and FedDBE need features."""
NOTHING_IF_FROZEN = {"fedper", "fedrep", "fedbabu", "moon", "fenda"}
"""Methods that would share nothing where the backbone is frozen."""
WITH_BATCH_NORM = ("mlp_bn", "small_cnn")
CASES = [(kind, name) for kind, name in itertools.product(KINDS, sorted(SHAPES)) if (kind, name) not in REFUSED]
every_case = pytest.mark.parametrize(("kind", "name"), CASES)
table_and_images = pytest.mark.parametrize(("kind", "name"), list(itertools.product(KINDS, ("mlp_bn", "small_cnn"))))
"""The two models with all there is in a model: for laws over several rounds, which take longer."""


# --- the contract: a new method is tested by being listed ------------------------------------------


def test_only_what_cannot_work_is_refused() -> None:
    """What is listed above, each for its reason. All else is tested below."""
    assert {(kind, name) for kind in KINDS for name in SHAPES if not legal(kind, name)} == REFUSED
    assert {kind for kind in KINDS if not legal(kind, "small_cnn", part="head")} == NOTHING_IF_FROZEN
    assert all(legal(kind, "small_cnn", part="last_block") for kind in KINDS)
    assert {name for name in SHAPES if built(name).batch_norm} == set(WITH_BATCH_NORM)
    for kind, policy in itertools.product(KINDS, POLICIES):
        assert (study_values(kind, policy) is not None) == (policy in policies_of(kind)), (kind, policy)


@every_method
def test_method_is_a_frozen_dataclass_of_settings(kind: str) -> None:
    """What a method remembers is an argument: nothing can be set on it."""
    method = method_of(kind)
    assert dataclasses.is_dataclass(method)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        method.memory = {}


@every_case
def test_method_shares_names_of_the_model(kind: str, name: str) -> None:
    """What may leave is a subset of the model's names, whatever the values of its arrays."""
    model, method = built_for(kind, name), method_of(kind)
    shared = method.shared(model)
    assert shared <= set(model.names)
    trained(method, model, work(name, kind))
    assert shared == method.shared(model)


@every_case
def test_method_gives_the_same_result_twice(kind: str, name: str) -> None:
    """Training and serving are functions of weights, memory and work: equal bits, wherever global generators stand."""
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
        results.append(play(kind, name, 1, {}))
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])
    np.testing.assert_equal(results[0], results[1])


@every_case
def test_method_leaves_its_inputs_alone(kind: str, name: str) -> None:
    """Memory and examples are read, never written: the caller may use them again."""
    method, model, task = method_of(kind), built_for(kind, name), work(name, kind)
    memory = dict(method.train(model, {}, task).memory)
    copy = {key: array.copy() for key, array in memory.items()}
    tensors = [part for of in (task.examples, task.validation) for part in (of.x, of.y)]
    copies = [tensor.clone() for tensor in tensors]
    method.train(model, memory, task)
    method.personalise(model, memory, task)
    method.budget(task)
    np.testing.assert_equal(copy, memory)
    assert all(torch.equal(*pair) for pair in zip(copies, tensors, strict=True))


def policies_of(kind: str) -> tuple[str, ...]:
    """Return the BatchNorm policies that go with a method: FedBN is one."""
    return ("local",) if kind == "fedbn" else POLICIES


def parts_and_policies(kind: str, name: str) -> list[tuple[str, str]]:
    """Return what a study may say of a model; BatchNorm's policy matters where there is BatchNorm that is trained."""
    policies = policies_of(kind) if name in WITH_BATCH_NORM else ("average",)
    parts = [part for part in PARTS[1:] if part != "head" or kind not in NOTHING_IF_FROZEN]
    return [("all", policy) for policy in policies] + [(part, "local") for part in parts]


@pytest.mark.parametrize(
    ("kind", "name", "part", "policy"),
    [(kind, name, part, policy) for kind, name in CASES for part, policy in parts_and_policies(kind, name)],
)
def test_method_changes_what_the_study_lets_it_and_no_more(kind: str, name: str, part: str, policy: str) -> None:
    """A round moves all that is shared; with serving, all of `moving` moves; frozen arrays and buffers never do."""
    model, method = built(name, kind=kind, trainable=part, batch_norm=policy), method_of(kind)
    task = work(name, kind)
    names, before = divide(model, method), get_weights(model.module)
    memory, _, after = trained(method, model, task)
    in_training = changed(before, after)
    assert names.shared <= in_training <= names.moving
    method.personalise(model, memory, task)
    in_serving = changed(after, get_weights(model.module))
    assert in_serving <= names.moving
    assert names.moving == in_training | in_serving


@every_case
def test_method_serves_a_module_that_answers_and_can_be_stored(kind: str, name: str) -> None:
    """One finite row of logits per example, from a module whose arrays are finite; also before any round."""
    task, method = work(name, kind), method_of(kind)
    for memory_of_a_round in (False, True):
        model = built_for(kind, name)
        memory = method.train(model, {}, task).memory if memory_of_a_round else {}
        module = method.personalise(model, memory, task)
        assert isinstance(module, nn.Module)
        module.eval()
        with torch.no_grad():
            logits = module(task.validation.x)
        assert (5, 1) == tuple(logits.shape)
        assert bool(torch.isfinite(logits).all())
        check_finite(get_weights(module), who="served")


@every_case
def test_method_keeps_finite_arrays_under_names_of_its_own(kind: str, name: str) -> None:
    """Memory is arrays that the state file can hold, and no name of it is a name of the model: none can be shared."""
    _, seen = play(kind, name, 1, {})
    assert all(isinstance(array, np.ndarray) for array in seen["memory"].values())
    check_finite(seen["memory"], who="memory")
    assert not seen["memory"].keys() & set(built_for(kind, name).names)
    assert all(np.isfinite(value) for value in (seen["loss"], *seen["metrics"].values()))


@every_method
def test_only_scaffold_sends_control_variates(kind: str) -> None:
    """Beside the shared weights nothing leaves a site but SCAFFOLD's variate of the parameters that are shared."""
    _, seen = play(kind, "mlp_bn", 1, {})
    model = built_for(kind, "mlp_bn")
    assert (model.trainable if kind == "scaffold" else set()) == seen["control"].keys()


@table_and_images
def test_method_continues_from_disk_bit_for_bit(kind: str, name: str, tmp_path: Path) -> None:
    """A site that starts anew before every round, from its state file, trains, sends, keeps and serves the same."""
    folder, going, kept = StateFolder(tmp_path, "berlin"), built_for(kind, name), dict[str, Array]()
    for number in (1, 2, 3):
        stored = folder.load(number - 1 or None)
        assert stored is not None
        again, anew = play(kind, name, number, stored.to_arrays())
        kept, seen = play(kind, name, number, kept, model=going)
        np.testing.assert_equal(seen, anew)
        np.testing.assert_equal(kept, again)
        folder.save(Kept.from_arrays(again), round_number=number, accepted=number - 1 or None)


@table_and_images
def test_late_joiner_starts_from_the_weights_received(kind: str, name: str) -> None:
    """A site without memory at round 5 starts from the weights of round 5, whatever its model held before.

    At a vanishing learning rate, what it sends and keeps of parameters is then what it received, to the last digits.
    """
    used = built_for(kind, name)
    play(kind, name, 1, {}, model=used)
    np.testing.assert_equal(play(kind, name, 5, {}), play(kind, name, 5, {}, model=used))
    _, seen = play(kind, name, 5, {}, learning_rate=1e-9)
    for key in used.trainable:
        np.testing.assert_allclose(seen["start"][key], seen["after"][key], rtol=0, atol=1e-6, err_msg=key)


@table_and_images
def test_method_needs_no_validation_examples(kind: str, name: str) -> None:
    """A study may do without a validation split: training and serving then choose nothing by it."""
    task = work(name)
    nothing = Examples(task.validation.x[:0], task.validation.y[:0])
    kept, _ = play(kind, name, 1, {}, validation=nothing)
    _, seen = play(kind, name, 2, kept, validation=nothing)
    check_finite(seen["served"], who="served")
    assert np.isfinite(seen["served loss"])


@every_method
def test_method_budget_is_on_the_sites_own_training_examples(kind: str) -> None:
    """The local-only baseline gets what the served model is trained on: the same examples, no others."""
    task = work("mlp", kind)
    budget = method_of(kind).budget(task)
    assert budget.per_round.examples is task.examples
    assert budget.per_round.num_steps >= task.num_steps
    assert budget.before_serving is None or budget.before_serving.examples is task.examples


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
