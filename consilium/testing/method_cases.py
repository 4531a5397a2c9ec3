"""Models, examples and rounds that methods are tested with."""

import functools
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from consilium.client.data import Examples
from consilium.client.methods import Method, build_method, extended
from consilium.client.models import Model, build_model, divide, get_weights, set_weights
from consilium.client.site.kept import Kept
from consilium.client.training.evaluation import evaluate
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.study.methods import MethodConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Array, Weights, is_float

SHAPES = {"linear": (3,), "mlp": (3,), "mlp_bn": (3,), "small_cnn": (1, 8, 8), "cnn1d": (9, 2), "gru": (9, 2)}
PARTS, POLICIES = ("all", "head", "last_block"), ("average", "local", "freeze")


def method_of(kind: str, **settings: Any) -> Method:
    """Return a method as a study builds it, with its settings' defaults."""
    return build_method(TypeAdapter(MethodConfig).validate_python({"kind": kind, **settings}))


@functools.cache
def study_values(kind: str, policy: str) -> dict[str, Any] | None:
    """Return what a study with this method and BatchNorm policy says beside its task; None if the rules refuse it."""
    settings = TypeAdapter(MethodConfig).validate_python({"kind": kind})
    plain = settings.plain_sgd
    for strategy in ("fedavg", settings.own_strategy or kind):  # some methods are one half of a strategy
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
