"""The model that a study begins with at a site, and what is told of it.

Sites of one process that answer one after the other can take turns with one model: every block of `Learner.holding`
writes all of its arrays, so what it held before has no influence.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from consilium.client.methods import Method, extended
from consilium.client.models import Model, Names, build_model, divide, get_weights
from consilium.common.seeds import seed_for
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Weights, digest


@dataclass(frozen=True, eq=False)
class Beginning:
    """The whole model that a study begins with.

    Args:
        initial: all its arrays; `initial_digest` is theirs.
        names: how they are divided.
        shared: those that leave the site, in the order of their names; `shared_digest` is theirs.
    """

    model: Model
    initial: Weights
    initial_digest: str
    names: Names
    shared: Weights
    shared_digest: str


Models = dict[str, Beginning]
"""Models that sites take turns with, by all that they depend on."""

_models: ContextVar[Models | None] = ContextVar("models", default=None)


@contextmanager
def taking_turns(models: Models) -> Iterator[None]:
    """Within the block, and in this thread alone, sites use the same model where they would build equal ones.

    No two of them may answer at the same time.
    """
    token = _models.set(models)
    try:
        yield
    finally:
        _models.reset(token)


def takes_turns() -> bool:
    """Say whether sites take turns with their models here."""
    return _models.get() is not None


def beginning_of(
    study: StudyConfig,
    method: Method,
    input_shape: tuple[int, ...],
    *,
    weights_dir: Path | None,
    device: torch.device,
) -> Beginning:
    """Return what a study begins with, built now or by a site that takes turns with this one.

    Raises:
        ModelError: the model or its pretrained weights do not fit the study.
    """
    models = _models.get()
    if models is None:
        return _made(study, method, input_shape, weights_dir=weights_dir)
    parts = [study.model.model_dump_json(), study.method.model_dump_json(), study.task.num_outputs, study.seed]
    weights = "" if study.model.pretrained is None else str(weights_dir)
    key = json.dumps([*parts, input_shape, weights, str(device)])
    if key not in models:
        models[key] = _made(study, method, input_shape, weights_dir=weights_dir)
    return models[key]


def _made(study: StudyConfig, method: Method, input_shape: tuple[int, ...], *, weights_dir: Path | None) -> Beginning:
    model = initial_model(study, method, input_shape, weights_dir=weights_dir)
    initial, names = get_weights(model.module), divide(model, method)
    shared = {name: initial[name] for name in sorted(names.shared)}
    return Beginning(model, initial, digest(initial), names, shared, digest(shared))


def initial_model(
    study: StudyConfig, method: Method, input_shape: tuple[int, ...], *, weights_dir: Path | None
) -> Model:
    """Return the model that a study begins with at every site.

    Raises:
        ConfigError: a package that it is of is not installed, or may not be used.
        ModelError: it or its pretrained weights do not fit the study.
    """
    built = build_model(
        study.model,
        input_shape=input_shape,
        num_outputs=study.task.num_outputs,
        weights_dir=weights_dir,
        seed=seed_for(study.seed, "initial weights"),
    )
    return extended(method, built, input_shape)
